"""System D: five labelled sets of points; classes, guidance, classifiers and rewards from one denoiser.

The report's networks and training throughout: two hidden layers, Adam at 0.01, batches of 100, data scaled to
[-1, 1], which is the unit of every number here. Its "sigmoid" and "cosine" are sigmoid_ramp and sine_squared:
betas between the same two ends, not the schedules otherwise known by those names.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffusion_fast import datasets, metrics
from diffusion_fast.classifier import ClassifierDDPM
from diffusion_fast.datasets import Dataset
from diffusion_fast.metrics import MetricResult
from diffusion_fast.models import ConditionalMLPDenoiser
from diffusion_fast.plotting import rows as rows_of
from diffusion_fast.plotting import style
from diffusion_fast.sampler import Sampler
from diffusion_fast.schedules import NoiseSchedule
from diffusion_fast.systems import labelled_points as points
from diffusion_fast.systems import published_d as published
from diffusion_fast.systems import rewards_2d, schedules_2d, vectors_64d
from diffusion_fast.systems.run import Run
from diffusion_fast.training import train

TITLE = "guidance, classifiers and rewards on five labelled sets of points"
SECONDS = {"quick": 150.0, "full": 2000.0}

SCHEDULE = NoiseSchedule.linear(100, *schedules_2d.BETAS)
WEIGHTS = (0.0, *published.WEIGHTS)
LABEL_DROPOUT = 0.2
FITTING: dict[str, Any] = {"epochs": 100, **schedules_2d.FITTING}
# Resolves the classes of the helix, and moons without their classes, which the report's networks do not.
WIDE = (64, 64)
WIDE_FITTING: dict[str, Any] = {
    "epochs": 200,
    "batch_size": 200,
    "lr": 0.01,
    "lr_decay": "cosine",
    "ema": 0.999,
}
EMD_ROWS = 250  # of a class
QUICK_ROWS = 2000
QUICK_REWARDS, QUICK_REWARD_ROWS = ("moons", "manycircles"), 1000


@dataclass(frozen=True)
class Labelled:
    """A set, the report's denoiser of its classes, and the trained classifier that judges samples."""

    data: Dataset
    model: nn.Module
    judge: nn.Module

    @property
    def name(self) -> str:
        return self.data.name

    @property
    def labels(self) -> tuple[np.ndarray, np.ndarray]:
        """Of the training and of the held-out rows."""
        return points.labels_of(self.data)


def run(run: Run) -> None:
    sets = [datasets.load(name, seed=42 + run.seed) for name in published.SETS]
    run.text("## Unconditional chains")
    reported = schedules_2d.by_steps(run, sets)
    schedules_2d.by_betas(run, sets if run.full else sets[:1], reported)
    run.text("## Classes and guidance")
    cases = []
    for data in sets:
        width = 4 * data.dim + 2 * (data.n_classes + 1 + 4)
        model = conditional(run, data, (width, width), FITTING)
        cases.append(Labelled(data, model, points.judge(run, data)))
    guidance(run, cases)
    wide = [replace(case, model=conditional(run, case.data, WIDE, WIDE_FITTING)) for case in cases]
    run.text("## Classifiers")
    classification(run, cases, wide)
    run.text("## Rewards")
    rewards(run, [case for case in wide if run.full or case.name in QUICK_REWARDS])
    run.text("## The 64-dimensional set")
    vectors_64d.experiment(run)


def check_data(folder: Path | None, full: bool) -> None:
    """Raises ValueError where a file of the user's is not what its name says."""
    for file in vectors_64d.FILES:
        vectors_64d.own_rows(folder, file)


# ---- classes and guidance


def conditional(run: Run, data: Dataset, hidden: tuple[int, int], fitting: dict[str, Any]) -> nn.Module:
    """A denoiser with classes, the null class in the place of a fifth of the labels."""
    model = schedules_2d.seeded(
        run,
        lambda: ConditionalMLPDenoiser(data.dim, data.n_classes, hidden, n_steps=len(SCHEDULE), time_dim=4),
    )

    def fit(model: nn.Module) -> dict[str, Any]:
        labels = {"labels": data.train_labels, "label_dropout": LABEL_DROPOUT}
        how: dict[str, Any] = {"seed": run.seed, "progress": run.progress, **labels, **fitting}
        return {"loss": train(model, SCHEDULE, data.standardised_train, **how).train_loss}

    run.trained(f"{data.name}-conditional-{hidden[0]}", model, fit)
    return model


def guidance(run: Run, cases: list[Labelled]) -> None:
    run.cut(f"Guidance: kernel NLL on {QUICK_ROWS:,} rows of each class, not on all.")
    rows: list[list[Any]] = []
    for case in cases:
        labels = case.labels[0]
        samples = guided_samples(run, case, "guided", WEIGHTS)
        for weight, x in samples.items():
            scores = class_scores(run, case, f"guided-{weight:g}", x, labels, weight)
            own = dict(zip(published.WEIGHTS, published.GUIDED_NLL[case.name], strict=True)).get(weight)
            correct = points.accuracy(case.judge, x, labels)
            rows.append([case.name, weight, scores["nll"], own, scores["emd"], scores["aim"], correct])
        rows.append(fresh_row(run, case))
        picture(run, case, samples)
    run.table(
        "Guidance by its weight w: (1 + w) eps(x, t, y) - w eps(x, t), T = 100",
        [
            "set",
            "w",
            "NLL",
            "published NLL (data: their own)",
            "EMD to the class",
            "EMD to the guided law",
            "class correct",
        ],
        rows,
        "Means over the classes; w = 0 is conditional sampling. NLL and EMD (per matched pair of "
        f"{EMD_ROWS} rows) are against the class's training rows. The guided law is p(x given y) p(y "
        "given x)^w, drawn exactly from the set's own p(y given x). class correct: by a separately "
        "trained MLP, whose accuracy on real data is in the row of fresh data; above that, guidance "
        "keeps away from where classes overlap. NLL falls with w because samples concentrate, not "
        "because they are better.",
    )


def guided_samples(run: Run, case: Labelled, stage: str, weights: tuple[float, ...]) -> dict[float, Tensor]:
    """For each weight as many samples of each class as the set has rows, in the order of its labels."""
    labels = torch.from_numpy(case.labels[0])

    def draw() -> dict[str, Tensor]:
        sampler = Sampler(case.model, SCHEDULE, guidance_weight=1.0, backend="native")
        how: dict[str, Any] = {"seed": run.seed, "labels": labels}
        each = {w: torch.full((len(labels),), w) for w in weights}
        return {f"{w:g}": sampler.sample(len(labels), guidance_weight=own, **how) for w, own in each.items()}

    drawn = run.stage(f"{case.name}-{stage}", "sampling", draw)
    return {weight: drawn[f"{weight:g}"] for weight in weights}


def class_scores(
    run: Run, case: Labelled, stage: str, x: Tensor, labels: np.ndarray, weight: float
) -> dict[str, MetricResult]:
    """Means over the classes: NLL and EMD to the class's training rows, EMD to the law that guidance aims
    at."""

    def emd(a: Any, b: Any) -> MetricResult:
        return metrics.emd(a, b, min(EMD_ROWS, len(a)), seed=run.seed)

    def nll(a: Any, b: Any) -> MetricResult:
        return schedules_2d.nll(run, a, b, QUICK_ROWS)

    def work() -> dict[str, MetricResult]:
        own = points.by_class(case.data, x.numpy(), labels)
        real = points.by_class(case.data, case.data.standardised_train, case.labels[0])
        aim = points.guided_law(case.data, weight, run.seed)
        pairs = {"nll": (nll, real), "emd": (emd, real), "aim": (emd, aim)}
        return {name: points.class_average(metric, own, rows) for name, (metric, rows) in pairs.items()}

    return run.stage(f"{case.name}-{stage}-scores", "evaluation", work)


def fresh_row(run: Run, case: Labelled) -> list[Any]:
    data = case.data
    x = torch.from_numpy(data.standardised_test)
    scores = class_scores(run, case, "fresh", x, case.labels[1], 0.0)
    correct = points.accuracy(case.judge, x, case.labels[1])
    own = published.OWN_CLASS_NLL[data.name]
    return [data.name, "fresh data", scores["nll"], own, scores["emd"], scores["aim"], correct]


def picture(run: Run, case: Labelled, samples: dict[float, Tensor]) -> None:
    """Data, conditional and guided samples side by side, in the colors of their classes."""
    data = case.data
    real = data.standardised_train
    shown = {"data": real, "conditional": samples[0.0].numpy(), "guided, w = 1": samples[1.0].numpy()}
    low, high = rows_of.limits(real)
    figure = style.make_figure(11, 4)
    chosen = rows_of.choose(len(real), 3000)
    for k, (name, rows) in enumerate(shown.items(), start=1):
        axes = style.add_panel(figure, (1, 3, k), spatial=data.dim == 3)
        kept = chosen[rows_of.inside(rows[chosen], low, high)]
        style.scatter(axes, rows[kept], style.BLUE, case.labels[0][kept], small=True)
        style.set_limits(axes, low, high)
        style.decorate(axes, *data.columns, title=name)
    style.class_legend(figure, data.classes, lines=False)
    run.picture(
        f"guided_{data.name}", figure, f"{data.name}: data, conditional and guided samples, by class."
    )


# ---- classifiers


def classification(run: Run, cases: list[Labelled], wide: list[Labelled]) -> None:
    n = run.pick(QUICK_ROWS, None)
    run.cut(f"Classifiers on {QUICK_ROWS:,} held-out rows.")
    rows: list[list[Any]] = []
    for case, wider in zip(cases, wide, strict=True):
        data = case.data
        x = torch.from_numpy(data.standardised_test[:n]).float()
        labels = torch.from_numpy(case.labels[1][:n])
        found = classified(run, case, "report", x)
        row = [
            agreement(classified(run, wider, "wide", x)["log"].argmax(1), labels),
            agreement(found["log"].argmax(1), labels),
            points.bayes_rate(data, data.test[:n], labels.numpy()),
        ]
        row += [points.accuracy(case.judge, x, labels)]
        if run.as_published:
            row += [agreement(found["apart"].argmax(1), labels), agreement(found["apart"].argmin(1), labels)]
        rows.append([case.name, *row, published.ACCURACY[case.name]])
    more = ["published rule", "its sign turned"] if run.as_published else []
    run.table(
        "Accuracy on held-out rows",
        ["set", "ClassifierDDPM", "of the report's network", "Bayes", "trained MLP", *more, "published"],
        rows,
        "ClassifierDDPM takes the class with the least weighted error of the predicted noise, from a "
        f"conditional denoiser as it is: one of two layers of {WIDE[0]}, and the report's network, which has "
        "22 to 34 a layer and does not tell the classes of the helix apart. Bayes: the true posterior on the "
        "same rows. The published rule sums |eps(x, t, y) - eps(x, t)| over ten "
        "random t and takes the largest: the class that differs most from no class, which is mostly a "
        "wrong one.",
    )


def classified(run: Run, case: Labelled, name: str, x: Tensor) -> dict[str, Tensor]:
    """log p(y | x) by a denoiser; as published also the sums of the published rule."""
    prior = np.bincount(case.labels[0]) / len(case.labels[0])

    def work() -> dict[str, Tensor]:
        classifier = ClassifierDDPM(case.model, SCHEDULE, prior=prior, seed=run.seed, backend="native")
        return {"log": classifier(x), "apart": norm_differences(case.model, case.data.n_classes, x, run.seed)}

    return run.stage(f"{case.name}-classified-{name}", "evaluation", work)


@torch.no_grad()
def norm_differences(model: nn.Module, n_classes: int, x: Tensor, seed: int, rounds: int = 10) -> Tensor:
    """The published rule: sums of |eps(x_t, t, y) - eps(x_t, t)| over rounds of random t, (n, n_classes)."""
    generator = torch.Generator().manual_seed(seed)
    abar = SCHEDULE.alphas_cumprod.float()[:, None]
    total = torch.zeros(len(x), n_classes)
    for _ in range(rounds):
        t = torch.randint(len(SCHEDULE), (len(x),), generator=generator)
        noisy = abar[t].sqrt() * x + (1 - abar[t]).sqrt() * torch.randn(x.shape, generator=generator)
        null = model(noisy, t)
        for label in range(n_classes):
            total[:, label] += (model(noisy, t, torch.full_like(t, label)) - null).norm(dim=1)
    return total


def agreement(found: Tensor, labels: Tensor) -> float:
    return float((found == labels).float().mean())


# ---- rewards


def rewards(run: Run, cases: list[Labelled]) -> None:
    run.cut(f"Rewards: moons and manycircles, w = 0 and 1, {QUICK_REWARD_ROWS:,} samples.")
    rows: list[list[Any]] = []
    for case in cases:
        labels = case.labels[0][: run.pick(QUICK_REWARD_ROWS, None)]
        weights = run.pick((0.0, 1.0), WEIGHTS)
        guided = guided_samples(run, case, "guided-wide", weights)
        for weight in weights:
            each = {"guidance": guided[weight][: len(labels)]}
            for method in rewards_2d.METHODS:
                each[method] = rewards_2d.samples(run, case, SCHEDULE, method, labels, weight)
            for method, x in each.items():
                scores = class_scores(run, case, f"{method}-{weight:g}", x, labels, weight)
                correct = points.accuracy(case.judge, x, labels)
                aim = scores["aim"]
                rows.append([case.name, weight, method, aim, aim.floor, scores["nll"], correct])
    run.table(
        "A reward in the place of guidance: r(x) = log p(y given x), alpha = 1 / (1 + w)",
        ["set", "w", "method", "EMD to the guided law", "of fresh data", "NLL", "class correct"],
        rows,
        f"SVDD chooses among {rewards_2d.CANDIDATES} candidates for each step of the *unconditional* chain "
        "(the null class of the same denoiser, the wider one). Both aim at p(x) p(y given x)^(1 + w), and "
        "choose by the soft value of a noisy sample, alpha log E[p(y given x0)^(1 + w)]. SVDD-PM takes for "
        "it the MLP's log p(y given x) at the clean sample that is predicted. Between the moons, where that "
        "prediction lies while there is noise, no data are and the MLP is sure of one class or the other, "
        "where the true value is near log 1/2: every step goes as far as it can, as with a weight that is "
        "much too large, and more candidates do not help (0.38 with 10, 0.35 with 40, all from one x_T). "
        "SVDD-MC learns the value of noisy samples by regression, and mends that. What is left is the price "
        "of few candidates, higher with eight classes than with two: with 40, the moons are at 0.096 and "
        "0.956 of them right. Where classes overlap, as the circles do, SVDD-PM's value is not so steep.",
    )
