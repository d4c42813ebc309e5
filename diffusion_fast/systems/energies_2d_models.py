"""The four models of system C, each trained on a set of points and sampled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from diffusion_fast import datasets, training
from diffusion_fast.baselines import energy, gan, score
from diffusion_fast.datasets import Dataset
from diffusion_fast.models import EnergyMLP, EnergyScore, MLPDenoiser
from diffusion_fast.sampler import Sampler
from diffusion_fast.schedules import NoiseSchedule
from diffusion_fast.sigma_schedules import SigmaSchedule
from diffusion_fast.standardiser import Standardiser
from diffusion_fast.systems.run import Run

Module = TypeVar("Module", bound=nn.Module)


@dataclass(frozen=True)
class Sizes:
    """Steps of training, and how many samples; chain steps of the published training."""

    ebm: int
    dsm: int
    ddpm: int
    gan: tuple[int, int]  # and for the pinwheel
    mean: tuple[int, int]
    samples: int


QUICK = Sizes(3000, 50_000, 36_000, (4000, 4000), (200, 50), samples=2000)
FULL = Sizes(20_000, 200_000, 300_000, (500_000, 1_000_000), (2000, 500), samples=10_000)
FRESH_ROWS = 4000
SIGMA = 0.1  # of denoising score matching, in units of the data
STEP_SIZE, START_SCALE = 5e-3, 2.0  # of Langevin dynamics, from START_SCALE N(0, I)
EBM_STEPS, DSM_STEPS = 1000, 2000  # of a chain
DDPM_BATCH, DDPM_PASSES = 250, 20  # passes over the rows in what train() takes for an epoch
LOSSES = ("train", "validation", "discriminator")


@dataclass(frozen=True)
class Points:
    """A set: its 2000 rows, of which 500 are held out, and as many again that nothing was fitted to."""

    name: str
    data: Dataset
    rows: np.ndarray
    fresh: np.ndarray
    standardiser: Standardiser

    @property
    def limits(self) -> np.ndarray:
        low, high = self.rows.min(0), self.rows.max(0)
        return np.stack([low, high], 1) + 0.15 * np.array([-1, 1]) * (high - low)[:, None]


@dataclass(frozen=True)
class Outcome:
    """samples (n, 2) of a trained model; losses by their names; landscape: an energy, or the length of the
    network's output, at points (n, 2); of a score model the samples without its noise, too."""

    samples: np.ndarray
    losses: dict[str, list[float]]
    landscape: Callable[[Tensor], Tensor]
    denoised: np.ndarray | None = None


def points(name: str, seed: int) -> Points:
    data = datasets.load(name, seed=seed)
    fresh = datasets.load(name, n_train=FRESH_ROWS, n_test=10, seed=seed + 1).train
    return Points(name, data, np.concatenate([data.train, data.test]), fresh, Standardiser.fit(data.train))


def fit_energy(run: Run, part: Points) -> Outcome:
    """Trained on standardised rows, so that one step size serves all sets."""
    model, scale = seeded(run, lambda: EnergyMLP(2)), part.standardiser.transform
    steps = run.pick(QUICK, FULL).ebm

    def fit(module: nn.Module) -> dict[str, Any]:
        options = {"steps": steps, "lr": 5e-3, "validation": scale(part.data.test), "seed": run.seed}
        return losses(energy.train(module, scale(part.data.train), progress=run.progress, **options))  # type: ignore[arg-type]

    found = run.trained(f"ebm-{part.name}", model, fit)
    make = partial(langevin, EnergyScore(model), EBM_STEPS, part.standardiser)
    return outcome(run, f"ebm-{part.name}", make, found, lambda x: model(scale(x)))


def fit_score(run: Run, part: Points) -> Outcome:
    model = seeded(run, lambda: score.ScoreMLP(2))

    def fit(module: nn.Module) -> dict[str, Any]:
        options = {
            "steps": run.pick(QUICK, FULL).dsm,
            "sigma": SIGMA,
            "validation": part.data.test,
            "seed": run.seed,
        }
        return losses(score.train(module, part.data.train, progress=run.progress, **options))  # type: ignore[arg-type]

    found = run.trained(f"dsm-{part.name}", model, fit)
    make = partial(langevin, model, DSM_STEPS, None)
    drawn = outcome(run, f"dsm-{part.name}", make, found, lambda x: model(x).norm(dim=1))
    x = torch.from_numpy(drawn.samples)
    with torch.no_grad():
        return replace(drawn, denoised=(x + SIGMA**2 * model(x)).numpy())


def fit_diffusion(run: Run, part: Points) -> Outcome:
    """The published layers, with features of time in place of a table of 1000 learned rows, a cosine schedule
    of 200 steps in place of a linear one of 1000, and larger batches at a falling rate."""
    schedule = NoiseSchedule.cosine(200)
    model = seeded(run, lambda: MLPDenoiser(2, (128, 128), "silu", "sinusoidal", 200, time_dim=32))
    scale = part.standardiser.transform

    def fit(module: nn.Module) -> dict[str, Any]:
        rows = np.tile(scale(part.data.train), (DDPM_PASSES, 1))
        epochs = max(1, run.pick(QUICK, FULL).ddpm * DDPM_BATCH // len(rows))
        options: dict[str, Any] = {"epochs": epochs, "batch_size": DDPM_BATCH, "lr": 3e-3, "seed": run.seed}
        options |= {"lr_decay": "cosine", "ema": 0.999, "validation": scale(part.data.test)}
        return losses(training.train(module, schedule, rows, progress=run.progress, **options))

    found = run.trained(f"ddpm-{part.name}", model, fit)
    make = partial(Sampler, model, schedule, backend="native", standardiser=part.standardiser)
    first = torch.zeros(1, dtype=torch.int64)

    def noise(x: Tensor) -> Tensor:
        return model(scale(x), first.expand(len(x))).norm(dim=1)

    return outcome(run, f"ddpm-{part.name}", make, found, noise)


def fit_gan(run: Run, part: Points) -> Outcome:
    model = seeded(run, lambda: gan.GAN(2))

    def fit(module: nn.Module) -> dict[str, Any]:
        steps = run.pick(QUICK, FULL).gan[part.name == "pinwheel"]
        options = {"steps": steps, "seed": run.seed, "progress": run.progress}
        generator, discriminator = gan.train(module, part.data.train, **options)  # type: ignore[arg-type]
        return losses(generator) | {"discriminator": discriminator.train_loss}

    found = run.trained(f"gan-{part.name}", model, fit)

    def real(x: Tensor) -> Tensor:
        return model.discriminator(x).sigmoid().squeeze(1)

    return outcome(run, f"gan-{part.name}", lambda: model, found, real)


def walk_of_the_mean(run: Run, part: Points) -> Outcome:
    """As published: both chains follow the gradient of the batch's mean energy, 1/128 and 1/2000 of the
    score, in the data's own units; those of training start anew at each step. (The published loss also sends
    its gradient through the chain, which this leaves out.)"""
    model = seeded(run, lambda: EnergyMLP(2))
    steps, chain_steps = run.pick(QUICK, FULL).mean

    def fit(module: nn.Module) -> dict[str, Any]:
        options: dict[str, Any] = {"drift": "mean", "restart": 1.0, "penalty": 0.1, "clip_norm": 0.1}
        options |= {"steps": steps, "chain_steps": chain_steps, "step_size": 1e-2}
        options |= {"validation": part.data.test, "seed": run.seed, "ema": 0.0}
        return losses(energy.train(module, part.data.train, progress=run.progress, **options))  # type: ignore[arg-type]

    found = run.trained(f"mean-{part.name}", model, fit)
    make = partial(langevin, Scaled(EnergyScore(model), 1 / 2000), EBM_STEPS, None)
    return outcome(run, f"mean-{part.name}", make, found, model)


class Scaled(nn.Module):
    """factor times what a score module returns."""

    def __init__(self, module: EnergyScore, factor: float) -> None:
        super().__init__()
        self.module, self.factor, self.shape = module, factor, module.shape

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.factor * self.module(x, t)


def langevin(
    model: nn.Module, steps: int, standardiser: Standardiser | None, size: float = STEP_SIZE
) -> Sampler:
    options: dict[str, Any] = {"solver": "langevin", "prediction_type": "score", "backend": "native"}
    options |= {"steps": steps, "step_size": size, "start_scale": START_SCALE, "standardiser": standardiser}
    return Sampler(model.eval(), SigmaSchedule([SIGMA]), **options)


def seeded(run: Run, make: Callable[[], Module]) -> Module:
    """A new network whose first weights come from the run's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        return make()


def losses(history: training.TrainingHistory) -> dict[str, Any]:
    return {"train": history.train_loss, "validation": history.validation_loss}


def outcome(
    run: Run,
    name: str,
    make: Callable[[], Any],
    found: dict[str, Any],
    landscape: Callable[[Tensor], Tensor],
) -> Outcome:
    """make() -> what has sample(n, seed=...)."""
    count = run.pick(QUICK, FULL).samples
    drawn = run.stage(name, "sampling", lambda: {"x": make().sample(count, seed=run.seed)})
    curves = {key: [float(v) for v in found[key]] for key in LOSSES if len(found.get(key, ()))}
    return Outcome(np.asarray(drawn["x"]), curves, torch.no_grad()(landscape))
