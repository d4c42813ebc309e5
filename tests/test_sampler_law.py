"""Sampler: the exact law of the samples of a Gaussian."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from samplers import SCHEDULE, T
from torch import Tensor, nn

import diffusion_fast as df


@pytest.fixture(autouse=True)
def one_torch_thread() -> None:
    """Torch's products here are too small for two threads; the kernels' threads are asked for by argument."""
    torch.set_num_threads(1)


# ---- the exact law

MEAN, DEVIATION = np.array([1.5, -0.7]), np.array([0.6, 2.0])
FALSE_ALARM = 5.0  # standard deviations


class ExactVelocity(nn.Module):
    """E[v | x_t] for data N(MEAN, I): -sqrt(1 - abar) MEAN whatever x is, so that it can be fused."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2, bias=False)
        nn.init.zeros_(self.layer.weight)
        noise = (1 - SCHEDULE.alphas_cumprod).sqrt()
        self.table = nn.Embedding.from_pretrained((-noise[:, None] * torch.from_numpy(MEAN)).float())

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.layer(x) + self.table(t)


class ExactNoise(nn.Module):
    """E[eps | x_t] for data N(MEAN, DEVIATION^2): x times a function of t; `fused` or in torch."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.fused = fused
        abar = SCHEDULE.alphas_cumprod[:, None]
        slope = (1 - abar).sqrt() / (abar * torch.from_numpy(DEVIATION) ** 2 + 1 - abar)
        self.slope = nn.Embedding.from_pretrained(slope.float())
        self.shift = nn.Embedding.from_pretrained((-slope * abar.sqrt() * torch.from_numpy(MEAN)).float())

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        eps = self.slope(t) * x + self.shift(t)
        return eps if self.fused else eps + 0 * torch.cumsum(x, dim=1)  # which no tile program has


def exact_law(deviation: np.ndarray, eta: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of the samples, from N(0, 1) on: every row is affine in x, plus independent noise.

    Song et al. 2020, eq. 12 and 16, with x0 and eps replaced by their expectations given x_t.
    """
    abar = np.append(SCHEDULE.alphas_cumprod.numpy(), 1.0)  # index -1: the data
    mean, variance = np.zeros(2), np.ones(2)
    for t in reversed(range(T)):
        now, before = abar[t], abar[t - 1]
        sigma = eta * np.sqrt((1 - before) / (1 - now) * (1 - now / before))
        gain = 1 / (now * deviation**2 + 1 - now)
        x0 = np.sqrt(now) * deviation**2 * gain  # E[x0 | x] = MEAN + x0 (x - sqrt(now) MEAN)
        eps = np.sqrt(1 - now) * gain
        direction = np.sqrt(1 - before - sigma**2)
        slope = np.sqrt(before) * x0 + direction * eps
        mean = np.sqrt(before) * MEAN + slope * (mean - np.sqrt(now) * MEAN)
        variance = slope**2 * variance + sigma**2
    return mean, variance


@pytest.mark.parametrize(
    "solver", [{"solver": "ddpm"}, {"solver": "ddim", "eta": 0.5}, {"solver": "ddim"}], ids=str
)
@pytest.mark.parametrize("what", ["velocity", "noise", "noise, in torch"])
def test_samples_of_a_gaussian_have_its_exact_law(what: str, solver: dict[str, Any]) -> None:
    """Mean and variance of 100,000 samples within 5 standard errors of the closed form.

    By chance one of the 36 comparisons would be off in 2.1e-5 of the seeds. (ddpm is ddim with eta = 1.)
    """
    n = 100_000
    velocity, fused = what == "velocity", what != "noise, in torch"
    model, kind = (ExactVelocity(), "v_prediction") if velocity else (ExactNoise(fused), "epsilon")
    sampler = df.Sampler(model.eval(), SCHEDULE, shape=2, prediction_type=kind, **solver)
    assert (sampler.plan is not None) == fused
    x = sampler.sample(n, seed=20).double().numpy()
    mean, variance = exact_law(
        np.ones(2) if velocity else DEVIATION, solver.get("eta", 1.0 if solver["solver"] == "ddpm" else 0.0)
    )
    assert (np.abs(x.mean(0) - mean) < FALSE_ALARM * np.sqrt(variance / n)).all()
    assert (np.abs(x.var(0) / variance - 1) < FALSE_ALARM * np.sqrt(2 / n)).all()
    # two independent elements: the correlation of n pairs has standard error 1 / sqrt(n)
    assert abs(np.corrcoef(x.T)[0, 1]) < FALSE_ALARM / np.sqrt(n)
