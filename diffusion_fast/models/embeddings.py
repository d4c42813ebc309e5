"""Embeddings of the timestep t, (B,) int64 in [0, n_steps), and of the class y, (B,) int64, to columns beside
the input of a denoiser.

They depend on t or y alone, so sampling folds them into a table with a row per step or class: their cost
never shows.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as nnf

N_FREQUENCIES = 8


class LearnedTimeEmbedding(nn.Sequential):
    """Linear(1, time_dim) - tanh - Linear(time_dim, time_dim) - tanh of (t + 1) / n_steps - 1/2."""

    def __init__(self, n_steps: int, time_dim: int) -> None:
        super().__init__(nn.Linear(1, time_dim), nn.Tanh(), nn.Linear(time_dim, time_dim), nn.Tanh())
        self.n_steps = n_steps

    def features(self, t: Tensor) -> Tensor:
        """What the layers see of t: (B, 1)."""
        dtype = self.get_parameter("0.weight").dtype
        return ((t + 1).to(dtype) / self.n_steps - 0.5).unsqueeze(-1)

    def forward(self, t: Tensor) -> Tensor:
        return super().forward(self.features(t))


class SinusoidalTimeEmbedding(nn.Module):
    """Linear(16, time_dim) of sin and cos of (t + 1) * n_steps^(-i / 8), i = 0 .. 7.

    The transformer's positional features (Vaswani et al. 2017, section 3.5) with base n_steps in place of
    10000, so that the periods cover 2 pi to about 2 pi n_steps, just the times that occur.
    """

    def __init__(self, n_steps: int, time_dim: int) -> None:
        super().__init__()
        exponents = torch.arange(N_FREQUENCIES, dtype=torch.float64) / N_FREQUENCIES
        # Not a weight: it follows from n_steps, so a state dict does not carry it.
        self.register_buffer("frequencies", (float(n_steps) ** -exponents).float(), persistent=False)
        self.proj = nn.Linear(2 * N_FREQUENCIES, time_dim)

    def features(self, t: Tensor) -> Tensor:
        """What the layer sees of t: (B, 16)."""
        frequencies = self.get_buffer("frequencies")
        angles = (t + 1).to(frequencies.dtype).unsqueeze(-1) * frequencies
        return torch.cat([torch.sin(angles), torch.cos(angles)], dim=-1)

    def forward(self, t: Tensor) -> Tensor:
        return self.proj(self.features(t))


class ScalarTime(nn.Module):
    """The raw number t + 1 as one column (no weights; time_dim has no part in it)."""

    def forward(self, t: Tensor) -> Tensor:
        return (t + 1).to(torch.float32).unsqueeze(-1)


TIME_EMBEDDINGS = ("learned", "sinusoidal", "table", "scalar")


def make_time_embedding(name: str, n_steps: int, time_dim: int) -> tuple[nn.Module, int]:
    """The embedding of one of TIME_EMBEDDINGS and the number of columns that it returns."""
    if name == "learned":
        return LearnedTimeEmbedding(n_steps, time_dim), time_dim
    if name == "sinusoidal":
        return SinusoidalTimeEmbedding(n_steps, time_dim), time_dim
    if name == "table":
        return nn.Embedding(n_steps, time_dim), time_dim
    return ScalarTime(), 1


class OneHotEmbedding(nn.Linear):
    """Linear(n_rows, class_dim) of one_hot(y): the columns of the weight, without forming the ones."""

    def forward(self, y: Tensor) -> Tensor:
        return nnf.embedding(y, self.weight.T) + self.bias


CLASS_EMBEDDINGS = {"table": nn.Embedding, "one_hot": OneHotEmbedding}
