"""Targets whose exact score is known, and float64 chains over them; shared by the tests of the solvers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import norm
from torch import Tensor

from diffusion_fast import reference
from diffusion_fast.plan import TileProgram, build_plan
from diffusion_fast.schedules import NoiseSchedule
from diffusion_fast.sigma_schedules import FlowSchedule, SigmaSchedule
from diffusion_fast.solvers import StepTable
from diffusion_fast.solvers.spacing import sigma_of_time
from diffusion_fast.tile_ops import LinearOp

Array = Any


class Mixture:
    """A mixture of Gaussians on the line: weights w, means mu, variances v."""

    def __init__(self, w: list[float], mu: list[float], v: list[float]) -> None:
        self.w, self.mu, self.v = np.array(w), np.array(mu), np.array(v)

    def denoised(self, x: Array, signal: float, noise: float) -> Array:
        """E[x0 | x = signal x0 + noise n]."""
        mean, var = signal * self.mu, signal**2 * self.v + noise**2
        gap = np.asarray(x)[..., None] - mean
        log_p = np.log(self.w) - np.log(var) / 2 - gap**2 / (2 * var)
        p = np.exp(log_p - log_p.max(axis=-1, keepdims=True))
        p /= p.sum(axis=-1, keepdims=True)
        return (p * (self.mu + signal * self.v / var * gap)).sum(axis=-1)

    def cdf(self, x: Array, signal: float, noise: float) -> Array:
        std = np.sqrt(signal**2 * self.v + noise**2)
        return (self.w * norm.cdf((np.asarray(x)[..., None] - signal * self.mu) / std)).sum(axis=-1)

    def quantile(self, p: Array, signal: float, noise: float) -> Array:
        """The x with cdf p, by bisection to float64's last digits."""
        low, high = np.full(np.shape(p), -200.0), np.full(np.shape(p), 200.0)
        for _ in range(70):
            mid = (low + high) / 2
            below = self.cdf(mid, signal, noise) < p
            low, high = np.where(below, mid, low), np.where(below, high, mid)
        return (low + high) / 2


MIXTURE = Mixture([0.3, 0.5, 0.2], [-1.5, 0.4, 2.0], [0.2, 0.1, 0.3])


def pair(schedule: Any, time: float) -> tuple[float, float]:
    """(signal, noise) at a network time, written anew from the definition of each schedule."""
    if isinstance(schedule, FlowSchedule):
        return 1 - time, time
    if isinstance(schedule, SigmaSchedule):
        return 1.0, time
    sigma = float(sigma_of_time(schedule, time))
    return 1 / np.sqrt(1 + sigma**2), sigma / np.sqrt(1 + sigma**2)


def output(kind: str, x: Array, x0: Array, signal: float, noise: float, sigma_data: float = 0.5) -> Array:
    """What a perfect network returns for x, whose E[x0 | x] is x0."""
    epsilon = (x - signal * x0) / noise
    total = np.sqrt(noise**2 + sigma_data**2)
    return {
        "epsilon": lambda: epsilon,
        "sample": lambda: x0,
        "v_prediction": lambda: signal * epsilon - noise * x0,
        "score": lambda: -epsilon / noise,
        "flow": lambda: epsilon - x0,
        "edm": lambda: (x0 - sigma_data**2 / total**2 * x) / (noise * sigma_data / total),
    }[kind]()


def run_exact(
    table: StepTable,
    schedule: NoiseSchedule | SigmaSchedule | FlowSchedule,
    x_T: Array,
    *,
    denoised: Callable[..., Array] = MIXTURE.denoised,
    kind: str = "epsilon",
    noise: Array = None,
) -> Array:
    """(rows + 1, n) trajectory by reference.run in float64, its network replaced by the exact function."""
    n_tables = len(table.table_timesteps)
    program = TileProgram(1, (LinearOp(0, 1, np.zeros((1, 1), np.float32)),), 1, n_tables)

    def net(plan: Any, u: Tensor, index: int, *conditions: Any) -> Tensor:
        signal, level = pair(schedule, float(table.table_timesteps[index]))
        c_in = 1 / np.sqrt(level**2 + 0.25) if kind == "edm" else 1.0
        x = u[:, 0].numpy() / c_in
        return torch.from_numpy(output(kind, x, denoised(x, signal, level), signal, level))[:, None]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reference, "net", net)
        x = torch.as_tensor(np.asarray(x_T, dtype=np.float64))[:, None]
        z = None if noise is None else torch.as_tensor(np.asarray(noise, dtype=np.float64))[..., None]
        run = reference.run(
            build_plan(table, program), len(x), x_T=x, noise=z, dtype=torch.float64, return_trajectory=True
        )
    return run[..., 0].numpy()
