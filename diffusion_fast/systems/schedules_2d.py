"""System D's unconditional chains: T by schedule, and ranges of betas."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from diffusion_fast import metrics
from diffusion_fast.datasets import Dataset
from diffusion_fast.metrics import MetricResult
from diffusion_fast.models import MLPDenoiser
from diffusion_fast.plotting import rows as rows_of
from diffusion_fast.plotting import style
from diffusion_fast.sampler import Sampler
from diffusion_fast.schedules import NoiseSchedule
from diffusion_fast.systems import published_d as published
from diffusion_fast.systems.run import Run
from diffusion_fast.training import train

SCHEDULES = {"linear": "linear", "sigmoid_ramp": "sigmoid", "sine_squared": "cosine"}  # as the report says
BETAS = (0.001, 0.02)
ALL_BETAS = ((0.0001, 0.02), BETAS, (0.002, 0.02), (0.001, 0.05), (0.001, 0.1))
BETA_STEPS = 100
EPOCHS = 30
FITTING: dict[str, Any] = {"batch_size": 100, "lr": 0.01}
EMD_ROWS = 600
QUICK_ROWS = 4000  # of samples and data in the NLL, whose cost is their product

T = TypeVar("T")


@dataclass(frozen=True)
class Chain:
    """What a schedule's samples of one set score."""

    schedule: NoiseSchedule
    nll: MetricResult
    emd: MetricResult


def by_steps(run: Run, sets: list[Dataset]) -> dict[str, Chain]:
    """T by schedule, on every set; -> of each set the linear chain of the report's betas, T = 100."""
    steps = run.pick((10, 100), published.STEPS)
    run.cut("Unconditional: T = 10 and 100 of 10, 50, 100, 150, 200; the ranges of betas on moons alone.")
    run.cut(f"Unconditional: kernel NLL on {QUICK_ROWS:,} rows of samples and of data, not on all.")
    rows: list[list[Any]] = []
    found: dict[str, dict[str, list[float]]] = {}
    reported = {}
    for data in sets:
        floor = fresh(run, data)
        found[data.name] = {name: [] for name in SCHEDULES} | {"fresh": [floor.value]}
        for n_steps in steps:
            chains = {name: chain(run, data, name, n_steps, BETAS) for name in SCHEDULES}
            for name, c in chains.items():
                found[data.name][name].append(c.nll.value)
            if n_steps == BETA_STEPS:
                reported[data.name] = chains["linear"]
            at = published.STEPS.index(n_steps)
            theirs = [published.NLL[data.name][name][at] for name in SCHEDULES]
            nlls, emds = ([getattr(c, kind) for c in chains.values()] for kind in ("nll", "emd"))
            own = published.OWN_NLL[data.name]
            rows.append([data.name, n_steps, *nlls, floor, *theirs, own, *emds, emds[0].floor])
    names = SCHEDULES.values()
    columns = [*(f"NLL {n}" for n in names), "NLL of fresh data"]
    columns += [*(f"published {n}" for n in names), "its data's own NLL"]
    columns += [*(f"EMD {n}" for n in names), "EMD of fresh data"]
    run.table(
        f"Unconditional samples by T and schedule, betas from 0.001 to 0.02, {EPOCHS} epochs",
        ["set", "T", *columns],
        rows,
        "NLL: metrics.kernel_nll, tau 0.1; near to that of fresh data is good, below it samples crowd. The "
        "report's rows of manycircles and blobs are other draws, scaled by their own range. "
        f"EMD: per matched pair of {EMD_ROWS} rows; the report has none. All three schedules end at the "
        "same abar_T, far from 0 (0.90 at T = 10, 0.12 at T = 200), while sampling starts from N(0, I).",
    )
    caption = "Kernel NLL by T; dashed: published; grey: what fresh data score."
    run.picture("nll_by_steps", nll_curves(steps, found), caption)
    return reported


def by_betas(run: Run, sets: list[Dataset], reported: dict[str, Chain]) -> None:
    """The other ranges of betas beside the report's."""
    rows: list[list[Any]] = []
    for data in sets:
        floor = fresh(run, data)
        for betas in ALL_BETAS:
            c = reported[data.name] if betas == BETAS else chain(run, data, "linear", BETA_STEPS, betas)
            abar = float(c.schedule.alphas_cumprod[-1])
            rows.append([data.name, *betas, abar, c.nll, floor, c.emd, c.emd.floor])
    run.table(
        f"Five ranges of betas, linear, T = {BETA_STEPS}",
        ["set", "beta_start", "beta_end", "abar_T", "NLL", "NLL of fresh data", "EMD", "EMD of fresh data"],
        rows,
        "The report calls 0.001 to 0.02 the best, without figures. What differs most is abar_T, which a "
        "start from N(0, I) takes for 0.",
    )


def chain(run: Run, data: Dataset, name: str, n_steps: int, betas: tuple[float, float]) -> Chain:
    """A denoiser of the set trained on a schedule, and what as many samples as rows score."""
    schedule = NoiseSchedule.from_name(name, n_steps, beta_start=betas[0], beta_end=betas[1])
    stage = f"{data.name}-{name}-{n_steps}-{betas[0]:g}-{betas[1]:g}"
    width = 4 * data.dim + 8
    model = seeded(
        run,
        lambda: MLPDenoiser(data.dim, (width, width), "relu", "sinusoidal", n_steps, time_dim=4),
    )
    rows = data.standardised_train

    def fit(model: nn.Module) -> dict[str, Any]:
        history = train(model, schedule, rows, epochs=EPOCHS, seed=run.seed, progress=run.progress, **FITTING)
        return {"loss": history.train_loss}

    run.trained(stage, model, fit)

    def draw() -> dict[str, Tensor]:
        return {"x": Sampler(model, schedule, backend="native").sample(len(rows), seed=run.seed)}

    x = run.stage(f"{stage}-samples", "sampling", draw)["x"]
    scores = run.stage(
        f"{stage}-scores",
        "evaluation",
        lambda: {"nll": nll(run, x, rows), "emd": metrics.emd(x, rows, EMD_ROWS, seed=run.seed)},
    )
    return Chain(schedule, scores["nll"], scores["emd"])


def fresh(run: Run, data: Dataset) -> MetricResult:
    """The NLL of held-out rows."""

    def work() -> dict[str, MetricResult]:
        return {"nll": nll(run, data.standardised_test, data.standardised_train)}

    return run.stage(f"{data.name}-fresh", "evaluation", work)["nll"]


def nll(run: Run, x: Any, rows: Any, most: int = QUICK_ROWS) -> MetricResult:
    """The report's NLL; in a quick run of at most so many of the rows."""
    if not run.full:
        x, rows = (part[rows_of.choose(len(part), most)] for part in (x, rows))
    return metrics.kernel_nll(x, rows, seed=run.seed)


def seeded(run: Run, make: Callable[[], T]) -> T:
    """What make() returns with torch's global generator at the run's seed, which it leaves as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        return make()


def nll_curves(steps: tuple[int, ...], found: dict[str, dict[str, list[float]]]) -> Figure:
    figure = style.make_figure(13, 3.6)
    panels = figure.subplots(1, len(found), squeeze=False)[0]
    for axes, (name, curves) in zip(panels, found.items(), strict=True):
        for k, schedule in enumerate(SCHEDULES):
            color = style.COLORS[k]
            axes.plot(steps, curves[schedule], color=color, marker="o", markersize=4)
            axes.plot(
                published.STEPS, published.NLL[name][schedule], color=color, linestyle="--", linewidth=0.9
            )
        axes.axhline(curves["fresh"][0], color=style.GREY, linewidth=1)
        style.decorate(axes, "T", "kernel NLL" if axes is panels[0] else "", title=name)
        style.open_frame(axes)
    style.legend(
        figure,
        panels[0].get_lines()[: 2 * len(SCHEDULES) : 2],
        list(SCHEDULES.values()),
        loc="outside lower center",
        ncols=3,
    )
    return figure
