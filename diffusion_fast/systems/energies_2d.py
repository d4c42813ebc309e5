"""System C: an energy-based model, denoising score matching, DDPM and a GAN on four sets of points.

Samples are scored by the log density of a kernel estimate of the data, as published. That score looks one way
(samples that crowd at the densest point beat real data), so the distance to what fresh data scores is what
counts, and two-sided measures stand beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from diffusion_fast import datasets, metrics, training
from diffusion_fast._timing import fma_peak
from diffusion_fast.baselines import energy, gan, score
from diffusion_fast.datasets import Dataset
from diffusion_fast.metrics.result import MetricResult
from diffusion_fast.models import EnergyMLP, EnergyScore, MLPDenoiser
from diffusion_fast.sampler import Sampler
from diffusion_fast.schedules import NoiseSchedule
from diffusion_fast.sigma_schedules import SigmaSchedule
from diffusion_fast.standardiser import Standardiser
from diffusion_fast.systems import energies_2d_pictures as pictures
from diffusion_fast.systems.report import Cell
from diffusion_fast.systems.run import Run

Module = TypeVar("Module", bound=nn.Module)

TITLE = "Energies, scores, diffusion and a GAN on four sets of points in the plane"
SECONDS = {"quick": 420.0, "full": 14_000.0}

SETS = {
    "checkerboard": "Checkerboard",
    "gaussian_ring": "Gaussians",
    "pinwheel": "Pinwheel",
    "spiral": "Spiral",
}
METHODS = {"ebm": "EBM", "dsm": "DSM", "ddpm": "DDPM", "gan": "GAN"}
AS_PUBLISHED = "EBM, gradient of the mean energy"
# The mean KDE score of 2000 samples, in the order of SETS.
PUBLISHED = {
    "EBM": (-10.578, -143.24, -751.49, -888.06),
    "DSM": (-4.0294, -1.5735, -1.0193, -0.9244),
    "DDPM": (-4.0365, -1.3905, -1.2387, -1.0680),
    "GAN": (-3.9356, -1.3370, -0.6129, -0.9622),
}


@dataclass(frozen=True)
class Sizes:
    """Steps of training (epochs of DDPM), and how many samples; chain steps of the published training."""

    ebm: int
    dsm: int
    ddpm: int
    gan: tuple[int, int]  # and for the pinwheel
    mean: tuple[int, int]
    samples: int


QUICK = Sizes(ebm=2000, dsm=10_000, ddpm=1200, gan=(4000, 4000), mean=(200, 50), samples=2000)
FULL = Sizes(ebm=10_000, dsm=10_000, ddpm=20_000, gan=(500_000, 1_000_000), mean=(2000, 500), samples=10_000)
FRESH_ROWS = 4000
SIGMA = 0.1  # of denoising score matching, in units of the data
STEP_SIZE, START_SCALE = 5e-3, 2.0  # of Langevin dynamics, from START_SCALE N(0, I)
EBM_STEPS, DSM_STEPS = 1000, 2000  # of a chain
RING_RADIUS, SQUARE_RADIUS = 0.36, 1.0  # three deviations of a Gaussian; half a square's side
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
    network's output, at points (n, 2)."""

    samples: np.ndarray
    losses: dict[str, list[float]]
    landscape: Callable[[Tensor], Tensor]


def run(run: Run) -> None:
    for what in CUTS:
        run.cut(what)
    sets = [points(name, run.seed) for name in SETS]
    outcomes = {METHODS[key]: [fit(run, part) for part in sets] for key, fit in FITS.items()}
    if run.as_published:
        outcomes[AS_PUBLISHED] = [walk_of_the_mean(run, part) for part in sets]
    fresh = [
        datasets.load(part.name, n_train=FRESH_ROWS // 2, n_test=10, seed=run.seed + 2).train for part in sets
    ]
    measured = {"fresh data": measure(run, "fresh", sets, fresh)}
    for method, found in outcomes.items():
        measured[method] = measure(run, method, sets, [outcome.samples for outcome in found])
    show_scores(run, measured)
    show_distances(run, measured)
    show_speed(run)
    show_pictures(run, sets, outcomes)


def points(name: str, seed: int) -> Points:
    data = datasets.load(name, seed=seed)
    fresh = datasets.load(name, n_train=FRESH_ROWS, n_test=10, seed=seed + 1).train
    return Points(name, data, np.concatenate([data.train, data.test]), fresh, Standardiser.fit(data.train))


# ---- the four models


def fit_energy(run: Run, part: Points) -> Outcome:
    """Trained on standardised rows, so that one step size serves all sets."""
    model, scale = seeded(run, lambda: EnergyMLP(2)), part.standardiser.transform
    steps = run.pick(QUICK, FULL).ebm

    def fit(module: nn.Module) -> dict[str, Any]:
        options = {"steps": steps, "validation": scale(part.data.test), "seed": run.seed}
        return losses(energy.train(module, scale(part.data.train), progress=run.progress, **options))  # type: ignore[arg-type]

    found = run.trained(f"ebm-{part.name}", model, fit)
    sampler = langevin(EnergyScore(model), EBM_STEPS, part.standardiser)
    return outcome(run, f"ebm-{part.name}", sampler.sample, found, lambda x: model(scale(x)))


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
    sampler = langevin(model, DSM_STEPS, None)
    return outcome(run, f"dsm-{part.name}", sampler.sample, found, lambda x: model(x).norm(dim=1))


def fit_diffusion(run: Run, part: Points) -> Outcome:
    """The published layers, with features of time in place of a table of 1000 learned rows, each of which so
    few steps would hardly touch, a cosine schedule of 200 steps in place of a linear one of 1000, and larger
    batches at a falling rate: 7,200 steps come nearer to fresh data than the published 500,000."""
    schedule = NoiseSchedule.cosine(200)
    model = seeded(run, lambda: MLPDenoiser(2, (128, 128), "silu", "sinusoidal", 200, time_dim=32))
    scale = part.standardiser.transform

    def fit(module: nn.Module) -> dict[str, Any]:
        options: dict[str, Any] = {"epochs": run.pick(QUICK, FULL).ddpm, "batch_size": 250, "lr": 3e-3}
        options |= {"lr_decay": "cosine", "ema": 0.999, "validation": scale(part.data.test), "seed": run.seed}
        rows = scale(part.data.train)
        return losses(training.train(module, schedule, rows, progress=run.progress, **options))

    found = run.trained(f"ddpm-{part.name}", model, fit)
    sampler = Sampler(model, schedule, backend="native", standardiser=part.standardiser)
    first = torch.zeros(1, dtype=torch.int64)

    def noise(x: Tensor) -> Tensor:
        return model(scale(x), first.expand(len(x))).norm(dim=1)

    return outcome(run, f"ddpm-{part.name}", sampler.sample, found, noise)


def fit_gan(run: Run, part: Points) -> Outcome:
    model = seeded(run, lambda: gan.GAN(2))

    def fit(module: nn.Module) -> dict[str, Any]:
        steps = run.pick(QUICK, FULL).gan[part.name == "pinwheel"]
        options = {"steps": steps, "seed": run.seed, "progress": run.progress}
        generator, discriminator = gan.train(module, part.data.train, **options)  # type: ignore[arg-type]
        return losses(generator) | {"discriminator": discriminator.train_loss}

    found = run.trained(f"gan-{part.name}", model, fit)
    return outcome(
        run, f"gan-{part.name}", model.sample, found, lambda x: model.discriminator(x).sigmoid().squeeze(1)
    )


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
    sampler = langevin(Scaled(EnergyScore(model), 1 / 2000), EBM_STEPS, None)
    return outcome(run, f"mean-{part.name}", sampler.sample, found, model)


FITS = {"ebm": fit_energy, "dsm": fit_score, "ddpm": fit_diffusion, "gan": fit_gan}
CUTS = (
    "The EBM is trained for 2,000 steps; `--full` takes 10,000.",
    "DDPM is trained for 7,200 steps of 250 rows; `--full` takes 120,000, the report 500,000 of 128.",
    "The GAN is trained for 4,000 steps; the report and `--full` take 500,000 (pinwheel 1,000,000).",
    "The EBM as published is trained for 200 steps with chains of 50; `--full` takes 2,000 and 500.",
    "2,000 samples, as in the report; `--full` draws 10,000.",
)


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
    draw: Callable[..., Tensor],
    found: dict[str, Any],
    landscape: Callable[[Tensor], Tensor],
) -> Outcome:
    drawn = run.stage(name, "sampling", lambda: {"x": draw(run.pick(QUICK, FULL).samples, seed=run.seed)})
    curves = {key: [float(v) for v in found[key]] for key in LOSSES if len(found.get(key, ()))}
    return Outcome(np.asarray(drawn["x"]), curves, torch.no_grad()(landscape))


# ---- what the samples score


def measure(
    run: Run, name: str, sets: list[Points], samples: list[np.ndarray]
) -> dict[str, list[MetricResult]]:
    def work() -> dict[str, Any]:
        found: dict[str, list[list[float]]] = {}
        for part, x in zip(sets, samples, strict=True):
            for key, result in measures(part, x, run.seed).items():
                found.setdefault(key, []).append([result.value, result.floor, result.spread, *result.n])
        return found

    stored = run.stage(f"measures-{name.replace(' ', '-')}", "evaluation", work)
    return {
        key: [MetricResult(value, floor, spread, (int(n), int(m))) for value, floor, spread, n, m in rows]
        for key, rows in stored.items()
    }


def measures(part: Points, x: np.ndarray, seed: int) -> dict[str, MetricResult]:
    few = x[:2000]
    both = metrics.precision_recall(few, part.fresh[:2000], seed=seed)
    found = {
        "kde": metrics.kde_score(x, part.rows),
        "emd": metrics.emd(few, part.fresh, n=min(1000, len(few)), seed=seed, repeats=2),
        "precision": both.precision,
        "recall": both.recall,
    }
    centers = modes(part.data)
    if centers is not None:
        radius = RING_RADIUS if part.data.mixture else SQUARE_RADIUS
        found["modes"] = metrics.mode_coverage(few, part.fresh, centers, radius, seed=seed)
    return found


def modes(data: Dataset) -> np.ndarray | None:
    """The middles of the Gaussians or of the board's squares; the other sets have no modes."""
    if data.mixture is not None:
        return data.mixture.centers
    if data.name != "checkerboard":
        return None
    return np.array([(2 * c + 1, 2 * (row + c % 2) + 1) for c in range(-2, 2) for row in (-2, 0)], float)


def show_scores(run: Run, measured: dict[str, dict[str, list[MetricResult]]]) -> None:
    rows: list[list[Any]] = [[name, *found["kde"]] for name, found in measured.items()]
    rows += [[f"{name}, published", *scores] for name, scores in PUBLISHED.items()]
    note = (
        "Mean log density of the samples under a Gaussian kernel estimate of the 2,000 points. Near to fresh "
        "data is good, above it is under-dispersed. The published EBM row is the score of a random walk: its "
        "chains followed the gradient of the mean energy over 2,000 points, 1/2000 of the score."
    )
    run.table("Mean KDE score (the published Table 1)", ["", *SETS.values()], rows, note)


def show_distances(run: Run, measured: dict[str, dict[str, list[MetricResult]]]) -> None:
    rows: list[list[Cell]] = [[name, *found["emd"]] for name, found in measured.items()]
    note = "Earth mover's distance of 1,000 samples to 1,000 fresh points, mean cost of a matched pair."
    run.table("Distance to fresh data, both ways", ["", *SETS.values()], rows, note)
    rows = []
    for name, found in measured.items():
        both = zip(found["precision"], found["recall"], strict=True)
        rows.append([name, *(f"{p.value:.3f} / {r.value:.3f}" for p, r in both)])
    note = "Share of samples near the data / share of the data near samples (k = 5)."
    run.table("Precision / recall", ["", *SETS.values()], rows, note)
    rows = [[name, *found["modes"]] for name, found in measured.items()]
    note = "Share of the squares and of the Gaussians that samples cover, weighted by the data in them."
    run.table("Coverage of modes", ["", *list(SETS.values())[:2]], rows, note)


# ---- the chains' speed


def show_speed(run: Run) -> None:
    found = run.stage(
        "speed", "evaluation", lambda: speed(EnergyScore(seeded(run, lambda: EnergyMLP(2))), 2000, EBM_STEPS)
    )
    rows = [
        ["fused kernel", found["native"], f"{100 * found['share']:.0f} %", 1.0],
        ["PyTorch, EnergyScore in place", found["torch"], None, found["torch"] / found["native"]],
        ["PyTorch, autograd", found["autograd"], None, found["autograd"] / found["native"]],
    ]
    columns = [
        "2,000 chains x 1,000 steps of the EBM, 2-64-64-1",
        "seconds",
        "of the FMA peak",
        "times the kernel's",
    ]
    note = "16,896 flop a chain and step (E itself is not needed). The best of 3; torch's from 100 steps."
    run.table("Langevin dynamics of an energy", columns, rows, note)


def speed(model: EnergyScore, n: int, steps: int) -> dict[str, float]:
    """Seconds of n chains by the kernel and by torch, and the kernel's share of the multiply-add peak."""
    sampler = langevin(model, steps, None)
    assert sampler.plan is not None
    x, few = torch.randn(n, 2, generator=torch.Generator().manual_seed(0)), max(1, steps // 10)

    def by_autograd(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return -torch.autograd.grad(model.net(x).sum(), x)[0]

    def in_torch(gradient: Callable[[Tensor], Tensor]) -> None:
        at = x.clone()
        for _ in range(few):
            at = at + STEP_SIZE * gradient(at) + (2 * STEP_SIZE) ** 0.5 * torch.randn_like(at)

    with torch.random.fork_rng(devices=[]):
        native = best(lambda: sampler.sample(n))
        plain = best(lambda: in_torch(torch.no_grad()(model))) * steps / few
        autograd = best(lambda: in_torch(by_autograd)) * steps / few
    gflops = 1e-9 * sampler.plan.flops_per_sample_step * n * steps / native
    return {"native": native, "torch": plain, "autograd": autograd, "share": gflops / fma_peak()}


def best(work: Callable[[], Any]) -> float:
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)


# ---- pictures


def show_pictures(run: Run, sets: list[Points], outcomes: dict[str, list[Outcome]]) -> None:
    names = [SETS[part.name] for part in sets]
    samples = {"data": [part.rows for part in sets]}
    samples |= {method: [found.samples for found in row] for method, row in outcomes.items()}
    limits = [part.limits for part in sets]
    run.picture("samples", pictures.samples(samples, names, limits), "The data, and samples of each model.")
    densities = {
        method: [metrics.kde_log_density(x, part.rows) for x, part in zip(row, sets, strict=True)]
        for method, row in samples.items()
    }
    caption = "Log densities of the samples under the data's kernel estimate; lines at 25, 50 and 75 %."
    run.picture("kde", pictures.densities(densities, names), caption)
    curves = {method: [found.losses for found in row] for method, row in outcomes.items()}
    run.picture("losses", pictures.losses(curves, names), "Training and validation losses.")
    fields = {method: [found.landscape for found in row] for method, row in outcomes.items()}
    caption = (
        "The EBM's energy, the length of the score (DSM) and of the predicted noise at the first timestep "
        "(DDPM), and the GAN's probability of data."
    )
    run.picture("landscapes", pictures.landscapes(fields, names, limits), caption)
