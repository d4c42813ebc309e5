"""System C: an energy-based model, denoising score matching, DDPM and a GAN on four sets of points.

Samples are scored by the log density of a kernel estimate of the data, as published. That score looks one way
(samples that crowd at the densest point beat real data), so the distance to what fresh data scores is what
counts, and two-sided measures stand beside it.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion_fast import datasets, metrics
from diffusion_fast._timing import fma_peak
from diffusion_fast.datasets import Dataset
from diffusion_fast.metrics.result import MetricResult
from diffusion_fast.models import EnergyMLP, EnergyScore
from diffusion_fast.systems import energies_2d_models as models
from diffusion_fast.systems import energies_2d_pictures as pictures
from diffusion_fast.systems.energies_2d_models import FULL, QUICK, Outcome, Points
from diffusion_fast.systems.report import Cell
from diffusion_fast.systems.run import Run

TITLE = "Energies, scores, diffusion and a GAN on four sets of points in the plane"
SECONDS = {"quick": 300.0, "full": 7000.0}  # full: from the seconds of a step, the GAN's for most

SETS = {
    "checkerboard": "Checkerboard",
    "gaussian_ring": "Gaussians",
    "pinwheel": "Pinwheel",
    "spiral": "Spiral",
}
MODELS = {
    "EBM": models.fit_energy,
    "DSM": models.fit_score,
    "DDPM": models.fit_diffusion,
    "GAN": models.fit_gan,
}
DENOISED, AS_PUBLISHED = "DSM, denoised", "EBM, gradient of the mean energy"
# The mean KDE score of 2000 samples: of EBM, DSM, DDPM and GAN.
PUBLISHED = {
    "checkerboard": (-10.578, -4.0294, -4.0365, -3.9356),
    "gaussian_ring": (-143.24, -1.5735, -1.3905, -1.3370),
    "pinwheel": (-751.49, -1.0193, -1.2387, -0.6129),
    "spiral": (-888.06, -0.9244, -1.0680, -0.9622),
}
MODE_RADIUS = {"checkerboard": 1.0, "gaussian_ring": 0.36}  # half a square's side; three deviations


def run(run: Run) -> None:
    say_cuts(run)
    sets = [models.points(name, run.seed) for name in SETS]
    outcomes = {method: [fit(run, part) for part in sets] for method, fit in MODELS.items()}
    if run.as_published:
        outcomes[AS_PUBLISHED] = [models.walk_of_the_mean(run, part) for part in sets]
    count = models.FRESH_ROWS // 2
    fresh = [datasets.load(part.name, count, n_test=10, seed=run.seed + 2).train for part in sets]
    measured = {"fresh data": measure(run, "fresh", sets, fresh)}
    for method, found in outcomes.items():
        measured[method] = measure(run, method, sets, [outcome.samples for outcome in found])
        denoised = [outcome.denoised for outcome in found if outcome.denoised is not None]
        if denoised:
            measured[DENOISED] = measure(run, DENOISED, sets, denoised)
    show_scores(run, measured)
    show_distances(run, measured)
    show_speed(run)
    show_pictures(run, sets, outcomes)


def say_cuts(run: Run) -> None:
    few, all_of = QUICK, FULL
    run.cut(f"The EBM is trained for {few.ebm:,} steps; `--full` takes {all_of.ebm:,}.")
    run.cut(f"DSM is trained for {few.dsm:,} steps; `--full` takes {all_of.dsm:,}.")
    run.cut(
        f"DDPM is trained for {few.ddpm:,} steps of {models.DDPM_BATCH} rows; `--full` takes "
        f"{all_of.ddpm:,}, the report 500,000 of 128."
    )
    run.cut(
        f"The GAN is trained for {few.gan[0]:,} steps; the report and `--full` take {all_of.gan[0]:,} "
        f"(pinwheel {all_of.gan[1]:,})."
    )
    run.cut(
        "The EBM as published is trained for {} steps with chains of {}; `--full` takes {:,} and {}.".format(
            *few.mean, *all_of.mean
        )
    )
    run.cut(f"{few.samples:,} samples, as in the report; `--full` draws {all_of.samples:,}.")


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

    stored = run.stage(f"measures-{name.replace(' ', '-').replace(',', '')}", "evaluation", work)
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
    radius = MODE_RADIUS.get(part.name)
    if radius is not None:
        found["modes"] = metrics.mode_coverage(few, part.fresh, modes(part.data), radius, seed=seed)
    return found


def modes(data: Dataset) -> np.ndarray:
    """The middles of the Gaussians or of the board's squares."""
    if data.mixture is not None:
        return data.mixture.centers
    return np.array([(2 * c + 1, 2 * (row + c % 2) + 1) for c in range(-2, 2) for row in (-2, 0)], float)


def show_scores(run: Run, measured: dict[str, dict[str, list[MetricResult]]]) -> None:
    rows: list[list[Any]] = [[name, *found["kde"]] for name, found in measured.items()]
    theirs = zip(*(PUBLISHED[name] for name in SETS), strict=True)
    rows += [[f"{name}, published", *scores] for name, scores in zip(MODELS, theirs, strict=True)]
    note = (
        "Mean log density of the samples under a Gaussian kernel estimate of the 2,000 points. Near to fresh "
        "data is good, above it is under-dispersed. The published EBM row is the score of a random walk: its "
        "chains followed the gradient of the mean energy over 2,000 points, 1/2000 of the score. DSM learns "
        f"the data with noise of {models.SIGMA} in it and so samples that; denoised, each sample is moved to "
        "the mean of what it may have been without (Tweedie's formula, x + sigma^2 score)."
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
    note = (
        "Share of samples near the data / share of the data near samples (k = 5). Where few of the data are "
        "near samples, the GAN has collapsed: on the pinwheel it stays on one of the arms with 30,000 steps "
        "at the published rate (recall 0.33), with 10,000 at ten times that (0.22) and with the published "
        "first weights (0.30), while its discriminator's loss stands at 2 ln 2. Its published scores, above "
        "fresh data on three of four sets, are under-dispersed too."
    )
    run.table("Precision / recall", ["", *SETS.values()], rows, note)
    rows = [[name, *found["modes"]] for name, found in measured.items()]
    note = "Share of the squares and of the Gaussians that samples cover, weighted by the data in them."
    run.table("Coverage of modes", ["", *(SETS[name] for name in SETS if name in MODE_RADIUS)], rows, note)


# ---- the chains' speed


def show_speed(run: Run) -> None:
    score = EnergyScore(models.seeded(run, lambda: EnergyMLP(2)))
    found = run.stage("speed", "evaluation", lambda: speed(score, 2000, models.EBM_STEPS))
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
    sampler = models.langevin(model, steps, None)
    assert sampler.plan is not None
    x, few = torch.randn(n, 2, generator=torch.Generator().manual_seed(0)), max(1, steps // 10)

    def by_autograd(x: Tensor) -> Tensor:
        x = x.detach().requires_grad_()
        return -torch.autograd.grad(model.net(x).sum(), x)[0]

    def in_torch(gradient: Callable[[Tensor], Tensor]) -> None:
        at = x.clone()
        for _ in range(few):
            at = at + models.STEP_SIZE * gradient(at) + (2 * models.STEP_SIZE) ** 0.5 * torch.randn_like(at)

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
