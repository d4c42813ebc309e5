"""System D's samples that a reward steers: SVDD, towards log p(y given x) by a trained classifier, with the
reward at the posterior mean and with a soft value that was learned of noisy rows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from diffusion_fast.fused_training import FusedTrainer
from diffusion_fast.schedules import NoiseSchedule
from diffusion_fast.svdd import SVDDSampler
from diffusion_fast.systems import labelled_points as points
from diffusion_fast.systems import schedules_2d
from diffusion_fast.systems.run import Run

if TYPE_CHECKING:
    from diffusion_fast.systems.guidance_2d import Labelled

METHODS = ("SVDD-PM", "SVDD-MC")
CANDIDATES = 10
VALUE_STEPS, VALUE_BATCH, VALUE_RATE, VALUE_WIDTH = 5000, 250, 3e-3, 64
BLOCK_STEPS = 500
LEAST = 1e-4  # the regression tells no smaller probability from 0


def samples(
    run: Run, case: Labelled, schedule: NoiseSchedule, method: str, labels: np.ndarray, weight: float
) -> Tensor:
    """One sample for each label, from the null class of the case's denoiser, steered by the judge alone
    towards p(x) p(y given x)^(1 + weight)."""
    how: dict[str, Any] = {"alpha": 1 / (1 + weight), "candidates": CANDIDATES, "backend": "native"}
    wanted = 0  # one sampler for all classes: a network takes long to capture
    if method == "SVDD-MC":
        value = soft_value(run, case, schedule, weight)
        how["value"] = lambda rows, t: value(rows, t)[:, wanted]
    else:
        how["reward"] = lambda rows: points.log_probability(case.judge, rows)[:, wanted]

    def draw() -> dict[str, Tensor]:
        nonlocal wanted
        sampler = SVDDSampler(case.model, schedule, **how)
        x = torch.empty(len(labels), case.data.dim)
        for wanted in np.unique(labels).tolist():
            own = torch.from_numpy(labels == wanted)
            x[own] = sampler.sample(int(own.sum()), seed=run.seed, start=wanted << 32)
        return {"x": x}

    return run.stage(f"{case.name}-{method}-{weight:g}", "sampling", draw)["x"]


def soft_value(
    run: Run, case: Labelled, schedule: NoiseSchedule, weight: float
) -> Callable[[Tensor, int], Tensor]:
    """(rows at step t, t) -> alpha log E[p(y given x0)^(1 / alpha)] of each class; 1 / alpha = 1 + weight.

    The mean is what regression finds, of the judge's p(y given x0)^(1 / alpha) on the noisy row and its level
    of noise (SVDD-MC regresses r itself, which gives the soft value for alpha large against its spread).
    """
    data, noise = case.data, (1 - schedule.alphas_cumprod).sqrt().float()
    rows = torch.from_numpy(data.standardised_train).float()
    aims = (points.log_probability(case.judge, rows) * (1 + weight)).exp()
    widths = (data.dim + 1, VALUE_WIDTH, VALUE_WIDTH, data.n_classes)

    def make() -> nn.Sequential:
        first, second, last = (nn.Linear(*pair) for pair in itertools.pairwise(widths))
        return nn.Sequential(first, nn.SiLU(), second, nn.SiLU(), last, nn.Sigmoid())

    network = schedules_2d.seeded(run, make)

    def fit(network: nn.Module) -> dict[str, Any]:
        assert isinstance(network, nn.Sequential)
        trainer, generator = FusedTrainer(network), torch.Generator().manual_seed(run.seed)
        losses = []
        for first in range(0, VALUE_STEPS, BLOCK_STEPS):
            count = BLOCK_STEPS * VALUE_BATCH
            chosen = torch.randint(len(rows), (count,), generator=generator)
            level = noise[torch.randint(len(noise), (count, 1), generator=generator)]
            z = torch.randn(count, data.dim, generator=generator)
            x = torch.cat([(1 - level**2).sqrt() * rows[chosen] + level * z, level], dim=1)
            turns = math.pi / VALUE_STEPS * np.arange(first, first + BLOCK_STEPS)
            rates = VALUE_RATE / 2 * (1 + np.cos(turns))
            found = trainer.run(x, aims[chosen], batch_size=VALUE_BATCH, lr=rates)
            losses.append(found.mean().item())
        return {"loss": losses}

    run.trained(f"{case.name}-soft-value-{weight:g}", network, fit)

    @torch.no_grad()
    def value(x: Tensor, t: int) -> Tensor:
        means = network(torch.cat([x, noise[t].expand(len(x), 1)], dim=1))
        return means.clamp_min(LEAST).log() / (1 + weight)

    return value
