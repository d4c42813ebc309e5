"""System A: points in three dimensions; epochs, sizes of the network, lengths of the chain, noise schedules.

The published experiment changes one thing at a time around one setting and judges by the earth mover's
distance as a sum over 128 pairs, the best of three runs. Fresh real data gets 46 to 64 of it, give or take 5,
so most of its differences are noise; the distance per pair at 2000 rows tells more, and the tables have both.
Its betas do not depend on the length T of the chain, so that T and the noise of x_T change together (abar_T
in the tables), and no setting ends near the N(0, 1) that sampling starts from. The cosine schedule does.
"""

from __future__ import annotations

import copy
import functools
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn

from diffusion_fast import datasets
from diffusion_fast.cli.options import default_epochs
from diffusion_fast.metrics import MetricResult, emd, emd_sum, kernel_nll
from diffusion_fast.models import MLPDenoiser
from diffusion_fast.plotting import compare_samples, sample_panels, schedule_curves
from diffusion_fast.sampler import Sampler
from diffusion_fast.schedules import NoiseSchedule
from diffusion_fast.systems import published_a as published
from diffusion_fast.systems.published_a import HELIX, SIN, Figures
from diffusion_fast.systems.report import Cell
from diffusion_fast.systems.run import Run
from diffusion_fast.training import train

TITLE = "points in three dimensions: epochs, sizes, lengths of the chain, schedules"
SECONDS = {"quick": 200.0, "full": 6000.0}  # full: from the seconds of an epoch

SETS = (SIN, HELIX)
SIZES = {"small": (256, 256), "middle": (256, 512, 256), "large": (256, 512, 1024, 512, 256)}
BETA_START, BETA_END = 1e-5, 0.0128
SWEEP = ((1e-5, 0.0032), (1e-4, 0.0128), (1e-3, 0.0128), (1e-5, 0.0512), (1e-5, 0.1))
BATCH_SIZE, LEARNING_RATE, WEIGHT_DECAY = 1024, 1e-3, 1e-3  # of the report, weight decay in Adam
EMD_ROWS = 2000
# Of a quick run: epochs, rows, and the tables that it has of both sets.
QUICK_EPOCHS = (50, 100, 200)
FEW_ROWS, OF_BOTH_SETS = 4000, ("epochs", "lengths", "schedules")
# The final model: a schedule that ends in the noise which sampling starts from, a smaller network that is
# trained for longer, a decaying learning rate and averaged weights.
FINAL_STEPS, FINAL_HIDDEN = 100, (128, 128, 128)
FINAL: dict[str, Any] = {"batch_size": BATCH_SIZE, "lr": 3e-3, "lr_decay": "cosine", "ema": 0.999}
COSINE_NOTE = (
    "The cosine schedule ends at abar_T = 0, its last beta clipped at 0.999: the first step of the chain "
    "divides by sqrt(1 - 0.999) and so takes the network's error of epsilon 32 times. What leaves the range "
    "of the data there was never trained on, and the steps after it go on from a guess. As usual for this "
    "schedule the clean sample that is predicted is therefore clipped to the range of the data (no change to "
    "the training); the row without shows what happens else. No other schedule here comes near: the largest "
    "factor of a step is 1.05 up to beta 0.1."
)


@dataclass(frozen=True)
class Setting:
    """One training of the report."""

    data: str
    hidden: tuple[int, ...]
    epochs: int
    n_steps: int
    schedule: str = "linear"
    beta_start: float = BETA_START
    beta_end: float = BETA_END
    learned_time: bool = True
    as_published: bool = False
    clipped: bool = False  # the predicted clean sample, in sampling

    @property
    def name(self) -> str:
        """Of its files."""
        parts = [self.data, "x".join(map(str, self.hidden)), f"T{self.n_steps}", self.schedule]
        if self.schedule != "cosine":
            parts.append(f"{self.beta_start:g}-{self.beta_end:g}")
        parts += ["frozen"] * (not self.learned_time) + ["as-published"] * self.as_published
        parts += ["clipped"] * self.clipped
        return "_".join([*parts, f"e{self.epochs}"])

    def noise(self) -> NoiseSchedule:
        if self.schedule == "cosine":
            return NoiseSchedule.cosine(self.n_steps)
        if self.schedule == "constant":
            return NoiseSchedule.constant(self.n_steps, self.beta_end)
        ends = {"beta_start": self.beta_start, "beta_end": self.beta_end}
        return NoiseSchedule.from_name(self.schedule, self.n_steps, **ends)


class Entry(NamedTuple):
    """A row of a table: what is said of it, what is trained, what the report prints."""

    label: str
    setting: Setting
    published: Figures | None = None


class Table(NamedTuple):
    name: str
    title: str
    entries: list[Entry]
    note: str = ""


def run(run: Run) -> None:
    run.text(
        "Distances are on columns of mean 0 and deviation 1. EMD 128: the sum over 128 matched pairs, the "
        f"least of three runs, as published. EMD per pair: the mean over {EMD_ROWS:,} matched pairs, the one "
        "to compare by. NLL: the published kernel estimate, no proper score: best is nearest to that of "
        "fresh real data, not lowest. Sampling adds sqrt(beta_t) z and starts from N(0, I), as published; "
        "abar_T is the share of the data's variance left in x_T, which that start neglects."
    )
    if run.as_published:
        run.text(
            "As published, the time embedding is not trained (the optimizer never saw it), t = 0 is never "
            "drawn, and in training the network sees at array index t the time of index t - 1. The other "
            "rows do none of this, but for the embedding where it is called frozen."
        )
    say_cuts(run)
    lab = Lab(run)
    fresh = {name: lab.fresh(name) for name in SETS}
    run.text("## Final models")
    for name in SETS:
        report_final(lab, name, fresh[name])
    curves = {name: Setting(SIN, (), 1, 150, name).noise() for name in (*published.SCHEDULES[SIN], "cosine")}
    run.picture("schedules", schedule_curves(curves), "The schedules at T = 150")
    for of_sets in zip(*(tables(run, name) for name in SETS), strict=True):
        run.text(f"## {of_sets[0].title}")
        for name, table in zip(SETS, of_sets, strict=True):
            if run.full or name == HELIX or table.name in OF_BOTH_SETS:
                report_table(lab, name, table, fresh[name])


def say_cuts(run: Run) -> None:
    fewest, some, most = QUICK_EPOCHS
    run.cut(
        f"Trainings take {some} epochs ({fewest}, {some} and {most} where epochs are compared); the report "
        "has 600 (500, 1000 and 2000)."
    )
    run.cut("They train the small network, 256-256; the report has 256-512-256 in all but one of them.")
    run.cut("T = 10 and 150; the report has 10, 50, 100, 150 and 200.")
    run.cut("Linear, warmup50 and cosine; without constant, quadratic and warmup10.")
    run.cut("One other pair of betas; the sweep has five.")
    run.cut("Sizes, betas and the frozen embedding on the helix alone; without the large network.")
    run.cut(
        f"{FEW_ROWS:,} samples and as many rows of test and train, two repetitions of the distance per pair; "
        "a full run has all rows, as many samples as the test set, and four repetitions."
    )


def base_of(run: Run, name: str) -> Setting:
    hidden, epochs = run.pick((SIZES["small"], QUICK_EPOCHS[1]), (SIZES["middle"], 600))
    return Setting(name, hidden, epochs, n_steps=150)


def tables(run: Run, name: str) -> list[Table]:
    """The report's questions, in its order, but for the one that takes longest: of a run that is interrupted
    the others are there."""
    base = base_of(run, name)
    short = replace(base, n_steps=50)
    by_epochs = [
        Entry(f"{n} epochs", replace(short, epochs=n), run.pick({}, published.EPOCHS[name]).get(n))
        for n in run.pick(QUICK_EPOCHS, tuple(published.EPOCHS[SIN]))
    ]
    by_size = [
        Entry(size, replace(short, hidden=SIZES[size]), published.SIZES[name].get(size))
        for size in run.pick(("small", "middle"), tuple(SIZES))
    ]
    by_length = [
        Entry(f"T = {n}", replace(base, n_steps=n), published.LENGTHS[name].get(n))
        for n in run.pick((10, 150), tuple(published.LENGTHS[name]))
    ]
    cosine = replace(base, schedule="cosine")
    by_schedule = [
        Entry(schedule, replace(base, schedule=schedule), published.SCHEDULES[name][schedule])
        for schedule in run.pick(("linear", "warmup50"), tuple(published.SCHEDULES[name]))
    ]
    by_schedule += [Entry("cosine", replace(cosine, clipped=True)), Entry("cosine, not clipped", cosine)]
    by_betas = [
        Entry(f"{low:g} to {high:g}", replace(base, beta_start=low, beta_end=high))
        for low, high in ((BETA_START, BETA_END), *SWEEP[run.pick(-1, 0) :])
    ]
    by_time = [Entry("learned", base), Entry("frozen", replace(base, learned_time=False))]
    return [
        Table("epochs", "Epochs (T = 50)", by_epochs),
        Table("lengths", "Number of steps", by_length),
        Table("schedules", "Noise schedules (T = 150)", by_schedule, COSINE_NOTE),
        Table("time", "Time embedding (linear, T = 150)", by_time),
        Table("betas", "First and last beta (linear, T = 150)", by_betas),
        Table("sizes", "Sizes of the network (T = 50)", by_size),
    ]


class Result(NamedTuple):
    """Samples, scaled as the network's rows are, and their distances by column of the tables."""

    samples: np.ndarray
    scores: dict[str, MetricResult]


class Lab:
    """Trains and measures each setting once, whatever the number of tables that it stands in."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.data = {name: datasets.load(name, seed=run.seed) for name in SETS}
        self.stage_epochs = run.pick(QUICK_EPOCHS[1], 100)  # a stage that is interrupted is lost
        self.models: dict[Setting, MLPDenoiser] = {}
        self.results: dict[Setting, Result] = {}

    def trained(self, setting: Setting) -> MLPDenoiser:
        """By stages: that of fewer epochs goes on, with a new optimizer."""
        setting = replace(setting, clipped=False)
        if setting in self.models:
            return self.models[setting]
        before = (setting.epochs - 1) // self.stage_epochs * self.stage_epochs
        if before:
            model = copy.deepcopy(self.trained(replace(setting, epochs=before)))
        else:
            model = new_model(setting, self.run.seed)
        noise = setting.noise()
        seen = shifted(noise) if setting.as_published else noise

        def fit(model: nn.Module) -> dict[str, Any]:
            history = train(
                model,
                seen,
                self.data[setting.data],
                epochs=setting.epochs - before,
                batch_size=BATCH_SIZE,
                lr=LEARNING_RATE,
                weight_decay=WEIGHT_DECAY,
                seed=self.run.seed ^ before,
                progress=self.run.progress,
            )
            return {"train_loss": history.train_loss}

        self.run.trained(setting.name, model, fit)
        self.models[setting] = model
        return model

    def result(self, setting: Setting) -> Result:
        if setting not in self.results:
            model, noise = self.trained(setting), setting.noise()
            rows = self.data[setting.data].standardised_train
            how = {"variance": "beta", "clip": float(abs(rows).max()) if setting.clipped else None}
            self.results[setting] = self.sampled(setting.name, setting.data, model, noise, **how)
        return self.results[setting]

    def sampled(self, stage: str, data: str, model: nn.Module, schedule: NoiseSchedule, **how: Any) -> Result:
        """As many samples as the test set has rows, and their scores."""

        def draw() -> dict[str, np.ndarray]:
            sampler = Sampler(model, schedule, backend="native", **how)
            return {"x": sampler.sample(self.count(data), seed=self.run.seed).numpy()}

        return self.measured(stage, data, self.run.stage(stage, "sampling", draw)["x"])

    def measured(self, stage: str, data: str, x: np.ndarray) -> Result:
        most, repeats = self.run.pick((FEW_ROWS, 2), (None, 4))
        both = self.data[data].standardised_test[:most], self.data[data].standardised_train[:most]
        work = functools.partial(scores, x, *both, repeats=repeats, seed=self.run.seed)
        return Result(x, self.run.stage(f"scores_{stage}", "evaluation", work))

    def fresh(self, name: str) -> Result:
        """Rows of the same law, which nobody has learned from."""
        data = self.data[name]
        rows = datasets.load(name, seed=self.run.seed ^ 1).test[: self.count(name)]
        return self.measured(f"fresh_{name}", name, data.standardiser.transform(rows))

    def count(self, name: str) -> int:
        """Of samples."""
        return self.run.pick(FEW_ROWS, len(self.data[name].test))

    def final(self, name: str) -> Result:
        noise = NoiseSchedule.cosine(FINAL_STEPS)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(self.run.seed)
            model = MLPDenoiser(3, FINAL_HIDDEN, "relu", "sinusoidal", FINAL_STEPS)
        data, epochs = self.data[name], default_epochs(len(self.data[name].train), BATCH_SIZE)

        def fit(model: nn.Module) -> dict[str, Any]:
            common = FINAL | {"epochs": epochs, "seed": self.run.seed, "progress": self.run.progress}
            return vars(train(model, noise, data, **common))

        self.run.trained(f"{name}_final", model, fit)
        return self.sampled(f"{name}_final", name, model, noise)


def scores(
    x: np.ndarray, test: np.ndarray, train: np.ndarray, *, repeats: int, seed: int
) -> dict[str, MetricResult]:
    found = {}
    for name, rows in (("test", test), ("train", train)):
        found[f"emd_sum_{name}"] = emd_sum(x, rows, seed=seed)
        # Of fewer than twice its rows emd finds no floor, half of its work: fresh data has a row of its own.
        found[f"emd_{name}"] = emd(x, rows[: 2 * EMD_ROWS - 1], EMD_ROWS, seed=seed, repeats=repeats)
        found[f"nll_{name}"] = kernel_nll(x, rows, seed=seed)
    return found


def new_model(setting: Setting, seed: int) -> MLPDenoiser:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = MLPDenoiser(3, setting.hidden, "tanh", "learned", setting.n_steps)
    model.time_embed.requires_grad_(setting.learned_time)
    return model


def shifted(noise: NoiseSchedule) -> NoiseSchedule:
    """The levels 1 .. T - 1 of a schedule as steps 0 .. T - 2: what the published training draws.

    There x_t of array index t goes with the time t / T - 1/2, which sampling gives the network at index
    t - 1.
    """
    first = 1 - noise.alphas_cumprod[1:2]
    return NoiseSchedule(torch.cat([first, noise.betas[2:]]))


COLUMNS = {
    "EMD 128, test": "emd_sum_test",
    "EMD 128, train": "emd_sum_train",
    "EMD per pair, test": "emd_test",
    "EMD per pair, train": "emd_train",
    "NLL, test": "nll_test",
    "NLL, train": "nll_train",
}


def score_cells(result: Result) -> list[Cell]:
    return [result.scores[key] for key in COLUMNS.values()]


def published_cells(figures: Figures) -> list[Cell]:
    """In the order of COLUMNS; nothing was published of the distance per pair."""
    test_emd, train_emd, test_nll, train_nll = figures
    return [test_emd, train_emd, None, None, test_nll, train_nll]


def report_table(lab: Lab, name: str, table: Table, fresh: Result) -> None:
    data = lab.data[name]
    rows: list[list[Cell]] = []
    panels: dict[str, Any] = {}
    for entry in table.entries:
        result = lab.result(entry.setting)
        rows.append([entry.label, float(entry.setting.noise().alphas_cumprod[-1]), *score_cells(result)])
        if entry.published:
            rows.append([f"{entry.label}, published", None, *published_cells(entry.published)])
        panels[entry.label] = data.standardiser.inverse(result.samples)
    rows.append(["fresh real data", None, *score_cells(fresh)])
    lab.run.table(f"{name}: {table.title}", ["setting", "abar_T", *COLUMNS], rows, table.note)
    picture = sample_panels(panels, data.test, columns=data.columns)
    lab.run.picture(f"{name}_{table.name}", picture, f"{name}: {table.title}")


def report_final(lab: Lab, name: str, fresh: Result) -> None:
    """The final model beside the report's own, whose distance per pair its published weights give."""
    data, schedule = lab.data[name], published.FINAL_SCHEDULE[name]
    theirs = replace(base_of(lab.run, name), schedule=schedule)
    ours = lab.final(name)
    found = {
        f"cosine, T = {FINAL_STEPS}, {'-'.join(map(str, FINAL_HIDDEN))} ReLU": ours,
        f"the report's: {schedule}, T = 150": lab.result(theirs),
    }
    if lab.run.as_published:
        wrong = replace(theirs, learned_time=False, as_published=True)
        found["the report's, as published"] = lab.result(wrong)
    real = fresh.scores["emd_test"].value
    rows: list[list[Cell]] = [
        [what, result.scores["emd_test"].value / real, *score_cells(result)] for what, result in found.items()
    ]
    low, high = published.FINAL_EMD[name]
    figures = published_cells(published.SCHEDULES[name][schedule])
    figures[2] = f"{low} to {high}"
    rows += [["published", None, *figures], ["fresh real data", 1.0, *score_cells(fresh)]]
    note = "Ratio: of the EMD per pair, test, to that of fresh real data."
    lab.run.table(f"{name}: final model", ["model", "ratio", *COLUMNS], rows, note)
    samples = data.standardiser.inverse(ours.samples)
    picture = compare_samples(samples, data.test, columns=data.columns)
    lab.run.picture(f"{name}_final", picture, f"{name}: samples of the final model")
