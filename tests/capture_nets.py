"""The module, schedule and steps that the tests of capture share."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_fast.schedules import NoiseSchedule

SCHEDULE = NoiseSchedule.linear(n_steps=20, beta_start=1e-4, beta_end=0.2)
STEPS = list(range(19, -1, -2))
ULP = 2.0**-23


class Net(nn.Module):
    """A module with some layers whose forward is the given function of (self, x, t, y)."""

    def __init__(self, body: Callable[..., Any]) -> None:
        super().__init__()
        self.body = body
        self.first, self.last, self.square = nn.Linear(3, 8), nn.Linear(8, 3), nn.Linear(8, 8)
        self.wide, self.short = nn.Linear(11, 8), nn.Linear(3, 3)
        self.time, self.label = nn.Embedding(20, 8), nn.Embedding(4, 8)
        self.offset = nn.Parameter(torch.randn(1, 8))
        self.register_buffer("count", torch.ones(1))
        self.register_buffer("table", torch.randn(20, 8, dtype=torch.float64))
        self.norm, self.groups = nn.BatchNorm1d(8), nn.LayerNorm(8)
        self.calls = 0

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Any:
        return self.body(self, x, t, y)
