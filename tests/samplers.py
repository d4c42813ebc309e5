"""A small model and its samplers, shared by the tests of Sampler."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

import diffusion_fast as df

T = 40
SCHEDULE = df.NoiseSchedule.linear(n_steps=T, beta_start=1e-3, beta_end=0.15)
N_CLASSES = 4


def make_model(n_classes: int | None = None, dim: int = 3, **options: Any) -> df.models.MLPDenoiser:
    options = {
        "hidden": (32, 24),
        "activation": "silu",
        "time_embedding": "sinusoidal",
        "n_steps": T,
    } | options
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return df.models.MLPDenoiser(dim, n_classes=n_classes, **options).eval()


def assert_close_as_torch(ours: Tensor, theirs: Tensor, exact: Tensor) -> None:
    """|ours - float64| <= 2 |theirs - float64| + 4 ulp of the rms, by rms and by the 99.9th percentile."""
    rms = exact.square().mean().sqrt().item()
    slack = 4 * torch.finfo(torch.float32).eps * 2.0 ** math.floor(math.log2(rms))
    a, b = ((value.double() - exact).abs().flatten() for value in (ours, theirs))
    assert a.square().mean().sqrt() <= 2 * b.square().mean().sqrt() + slack
    assert a.quantile(0.999) <= 2 * b.quantile(0.999) + slack


class Foreign(nn.Module):
    """An nn.Sequential over x beside the time that it was trained on, whatever that is."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.net = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2))
        self.seen: list[float] = []

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            self.seen.append(float(t[0]))
        time = t.to(torch.float32)[:, None] / 10
        return self.net(torch.cat([x, time.sin(), time.cos(), time], dim=1))


class WithCumsum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 16), nn.Linear(16, 2)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        hidden = self.first(torch.cat([x, t[:, None] / T], dim=1))
        return self.last(torch.cumsum(hidden / 4, dim=1))
