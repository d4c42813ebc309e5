"""Denoisers with a context, written afresh from published descriptions, for the tests of conditions."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

T = 12


class Policy(nn.Module):
    """Diffusion-QL's actor: [action, time embedding, state] -> Mish layers (Wang et al. 2023, appendix)."""

    def __init__(self, dim: int = 6, state: int = 17, width: int = 40) -> None:
        super().__init__()
        self.time = nn.Sequential(nn.Linear(8, 16), nn.Mish(), nn.Linear(16, 8))
        self.mid = nn.Sequential(
            nn.Linear(dim + 8 + state, width), nn.Mish(), nn.Linear(width, width), nn.Mish()
        )
        self.last = nn.Linear(width, dim)

    def forward(self, x: Tensor, t: Tensor, state: Tensor) -> Tensor:
        angle = t.to(x.dtype)[:, None] / torch.tensor([1.0, 3, 9, 27], dtype=x.dtype)
        time = self.time(torch.cat([angle.sin(), angle.cos()], dim=1))
        return self.last(self.mid(torch.cat([x, time, state], dim=1)))


class FilmPolicy(nn.Module):
    """Global conditioning by FiLM on an encoder of named observations, with classes beside."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(7, 12), nn.SiLU(), nn.Linear(12, 12))
        self.time, self.label = nn.Embedding(T, 12), nn.Embedding(4, 12)
        self.first, self.film, self.last = nn.Linear(3, 16), nn.Linear(12, 32), nn.Linear(16, 3)

    def forward(self, x: Tensor, t: Tensor, y: Tensor, *, obs: Tensor, goal: Tensor) -> Tensor:
        e = self.encoder(torch.cat([obs.flatten(1), goal], dim=1)) + self.label(y) + self.time(t)
        scale, shift = self.film(nnf.silu(e)).chunk(2, dim=1)
        return self.last(torch.relu(self.first(x) * (1 + scale) + shift))


class LateContext(nn.Module):
    """The context enters behind two layers, by a sum: the layers before are the same in both branches."""

    def __init__(self) -> None:
        super().__init__()
        self.time = nn.Embedding(T, 20)
        self.body = nn.Sequential(nn.Linear(9, 20), nn.ReLU(), nn.Linear(20, 20))
        self.context = nn.Linear(5, 20)
        self.last = nn.Linear(20, 9)

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        return self.last(torch.tanh(self.body(x) + self.time(t) + self.context(context)))


def made(make: Callable[[], nn.Module], seed: int = 0) -> nn.Module:
    """A module of this seed in eval mode; torch's global generator is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return make().eval()
