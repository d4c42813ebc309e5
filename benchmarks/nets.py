"""Denoisers of others, written afresh from their published descriptions as plain torch modules."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn


class TabDDPM(nn.Module):
    """Kotelnikov et al. 2023, MLPDiffusion: projected x plus a time MLP plus a label embedding."""

    def __init__(
        self, dim: int, hidden: tuple[int, ...] = (64, 96), n_classes: int = 0, dim_t: int = 32
    ) -> None:
        super().__init__()
        self.dim_t = dim_t
        self.proj = nn.Linear(dim, dim_t)
        self.time_embed = nn.Sequential(nn.Linear(dim_t, dim_t), nn.SiLU(), nn.Linear(dim_t, dim_t))
        self.label_emb = nn.Embedding(n_classes, dim_t) if n_classes else None
        blocks: list[nn.Module] = []
        for n_in, n_out in zip((dim_t, *hidden), hidden, strict=False):
            blocks.append(nn.Sequential(nn.Linear(n_in, n_out), nn.ReLU(), nn.Dropout(0.1)))
        self.blocks, self.head = nn.ModuleList(blocks), nn.Linear(hidden[-1], dim)

    def embed(self, timesteps: Tensor) -> Tensor:
        half = self.dim_t // 2
        freqs = torch.exp(-math.log(10000) * torch.arange(0, half, dtype=torch.float32) / half)
        args = timesteps[:, None].float() * freqs[None].to(timesteps.device)
        return self.time_embed(torch.cat([torch.cos(args), torch.sin(args)], dim=-1))

    def forward(self, x: Tensor, timesteps: Tensor, y: Tensor | None = None) -> Tensor:
        emb = self.embed(timesteps)
        if self.label_emb is not None:
            emb += nnf.silu(self.label_emb(y))
        x = self.proj(x) + emb
        for block in self.blocks:
            x = block(x)
        return self.head(x)


class ContextMLP(nn.Module):
    """x, a time MLP of 16 columns and a context side by side, then layers of one activation.

    With 17 columns of state for the context and three layers of Mish it is the policy of Diffusion-QL (Wang
    et al. 2023, appendix B); without a context the denoiser of points of most tutorials.
    """

    def __init__(
        self, dim: int, hidden: Sequence[int], activation: type[nn.Module], context_dim: int = 0
    ) -> None:
        super().__init__()
        n_in = 16
        self.register_buffer("frequencies", torch.logspace(0, -4, n_in // 2))
        self.time_mlp = nn.Sequential(nn.Linear(n_in, 2 * n_in), nn.Mish(), nn.Linear(2 * n_in, n_in))
        layers: list[nn.Module] = []
        n_in += dim + context_dim
        for width in hidden:
            layers += [nn.Linear(n_in, width), activation()]
            n_in = width
        self.net = nn.Sequential(*layers, nn.Linear(n_in, dim))

    def embed(self, t: Tensor) -> Tensor:
        angles = t[:, None].float() * self.frequencies
        return self.time_mlp(torch.cat([angles.sin(), angles.cos()], dim=-1))

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        rest = [] if context is None else [context]
        return self.net(torch.cat([x, self.embed(t), *rest], dim=-1))
