"""System E: handwritten digits by a convolutional network, two sets of hyper-parameters, and cold diffusion.

Report 004: MNIST in [-0.5, 0.5], a network of convolutions without skips, betas on a line, early stopping,
4 x 4 samples at every epoch. Then the half of the assignment that the report leaves undone: a degradation of
one's own, trained and sampled as Bansal et al. 2022 do.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion_fast import cold, plotting
from diffusion_fast.cli.errors import naming
from diffusion_fast.datasets import Dataset, digits, mnist
from diffusion_fast.datasets.images import MNIST_FROM
from diffusion_fast.image_training import gaussian
from diffusion_fast.metrics import (
    ImageClassifier,
    MetricResult,
    classifier_accuracy,
    image_fidelity,
    train_classifier,
)
from diffusion_fast.models import CNNDenoiser
from diffusion_fast.sampler import Sampler
from diffusion_fast.schedules import NoiseSchedule
from diffusion_fast.systems.epochs import LEAST_GAIN, PATIENCE, Training, epoch_means, running_means
from diffusion_fast.systems.published_e import (
    SET_1,
    SET_2,
    WEIGHTS_FILE,
    Settings,
    load_published,
    report_schedule,
)
from diffusion_fast.systems.run import Run

Module = TypeVar("Module", bound=nn.Module)

TITLE = "handwritten digits: a convolutional DDPM, and cold diffusion"
SECONDS = {"quick": 310.0, "full": 2.3e5}  # full: from the images a second of training and sampling
SHAPE = (1, 28, 28)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
SAMPLES = 64, 500  # of each model and sampler, quick and full
QUICK_DDPM_STEPS = 50
PRIOR_ROWS = 20_000  # that the law of wholly degraded images is fitted to, at most
QUICK_EPOCHS = 8, 4
QUICK_ROWS = 1197, 600  # to train on, held out
QUICK_SETS = (
    replace(SET_1, n_hidden=(16, 32, 16), lr=2e-3),
    replace(SET_2, n_hidden=(16, 32, 32, 16), lr=2e-3),
)
CHUNK = 32  # images at a time: more would not fit the processor's caches
GRID = 16
# name, evaluations of the network (None: all T), options of the sampler
Solver = tuple[str, int | None, dict[str, Any]]
CLIP = 0.5  # of the predicted image: no pixel is further from 0
SOLVERS: tuple[Solver, ...] = (
    ("DDPM", None, {"solver": "ddpm", "variance": "beta", "spacing": "trailing", "clip": CLIP}),
    ("DDIM", 50, {"solver": "ddim", "spacing": "trailing", "clip": CLIP}),  # from pure noise, as x_T is
    ("DPM-Solver++ (2M)", 20, {"solver": "dpmpp_2m", "clip": CLIP}),
    ("UniPC", 10, {"solver": "unipc", "clip": CLIP}),
)
AS_PUBLISHED: Solver = ("DDPM, not clipped, as published", None, {"solver": "ddpm", "variance": "beta"})
FAST = SOLVERS[2]
ALGORITHMS = {"one_step": "one step", "algorithm_1": "algorithm 1", "algorithm_2": "algorithm 2"}
MEASURES = ("confidence", "entropy", "class coverage", "Frechet distance", "its floor")
INTRODUCTION = f"""
Levels of noise are those of the report, t = 1 .. T with time t / T; its T + 1 betas are written as T here,
the first two as one, because nothing ever visits index 0. Training draws t from all T levels (the report
leaves out T). Losses are those of each epoch; the report shows the mean since the start of training, which
falls as 1 / epoch even when nothing more is learned, and stops on it. Here training stops when the best
loss is less than {LEAST_GAIN} below that of {PATIENCE} epochs before. The image that the network predicts is
clipped to the range of pixels at every step of sampling, which the report does not do: at the noisy end the
prediction divides an error of the network by sqrt(abar_T), 0.006.
"""
COLD = """
The degradation: a drop of ink in water. The digit is turned about its centre, more in the middle than
outside, while it spreads by the heat equation, until seven cosine modes a side are left. There is no noise
in it: what is random when sampling is the wholly degraded image, drawn from a mixture of Gaussians that is
fitted to those of real digits, as Bansal et al. do for blur. The network restores the digit, trained in the
mean absolute error.
"""
FIDELITY_NOTE = (
    "Confidence and entropy of a classifier's class probabilities; coverage is 1 where each class has its "
    "share; the Frechet distance is that of the classifier's features to those of held-out digits, as a "
    "share of their variance, and its floor what as many real digits would have. Real digits: one half of "
    "the held-out ones against the other."
)


@dataclass
class Digits:
    """Images (n, 1, 28, 28) float32 in [-0.5, 0.5], labels (n,) int64."""

    train: Tensor
    test: Tensor
    train_labels: Tensor
    test_labels: Tensor


def run(run: Run) -> None:
    run.text(INTRODUCTION)
    data = load_data(run)
    run.picture("data", plotting.image_grid(data.train, rows=4), f"The first of {len(data.train):,} digits.")
    judge = Judge(run, data)
    run.cut(
        "networks of 16-32-16 and 16-32-32-16 channels, not 32-64-64-32 and 32-64-128-64-32; rate 0.002, "
        "batches of 32; 8 and 4 epochs, so that early stopping has no say"
    )
    run.cut("64 samples, not 500; DDPM in 50 steps, not 1000 and 2000, and its figures show what that costs")
    rows, losses = [judge.real()], []
    for settings, epochs in run.pick(
        zip(QUICK_SETS, QUICK_EPOCHS, strict=True), ((SET_1, 100), (SET_2, 100))
    ):
        training = gaussian_training(run, settings, data)
        training.until(epoch_means, epochs)
        rows += solver_rows(judge, settings.name, training.model, report_schedule(settings))
        losses += [published_losses(settings), training.losses()]
        stopped = len(training.steps)
        if run.as_published:
            training.until(running_means, epochs)
        if len(training.steps) > stopped:
            name = f"{settings.name}, stopped as published"
            rows += solver_rows(judge, name, training.model, report_schedule(settings))
            losses.append(training.losses(", stopped as published"))
        training.show("mean squared error")
    rows += published_rows(judge)
    cold_training, cold_rows = cold_diffusion(run, data, judge)
    losses.append(cold_training.losses(", mean absolute error"))
    run.table("Losses", ("training", "epochs", "first", "last", "held out", "mean since the start"), losses)
    run.table(
        "Fidelity",
        ("model", "sampler", "evaluations", "samples", *MEASURES, "ms a sample"),
        rows + cold_rows,
        FIDELITY_NOTE,
    )


def check_data(folder: Path | None, full: bool) -> None:
    """Raises ValueError where a run would find no MNIST."""
    if folder is not None or full:
        load_mnist(folder)


def load_mnist(folder: Path | None) -> Dataset:
    with naming("folder", "--data"):
        found = mnist(folder)
        if found.image_shape != SHAPE[1:]:
            got = f"images of shape {found.image_shape} in {str(folder)!r}"
            raise ValueError(f"folder: got {got}; accepted: {SHAPE[1:]}, {MNIST_FROM}")
    return found


def load_data(run: Run) -> Digits:
    """MNIST from the user's files, or for full runs from openml.org; else scikit-learn's digits."""
    if run.data is not None or run.full:
        found = load_mnist(run.data)
        run.cut("1,197 of 60,000 digits to train on, 600 of 10,000 held out")
    else:
        found = digits(*QUICK_ROWS, seed=run.seed, side=SHAPE[1])
        run.cut("scikit-learn's 8 x 8 digits, enlarged to 28 x 28, in place of MNIST (--data FOLDER)")
    n_train, n_test = run.pick(QUICK_ROWS, (None, None))
    rows = found.standardised_train[:n_train], found.standardised_test[:n_test]
    assert found.train_labels is not None and found.test_labels is not None
    labels = found.train_labels[:n_train], found.test_labels[:n_test]
    images = (torch.from_numpy(part).float().view(-1, *SHAPE) for part in rows)
    return Digits(*images, *map(torch.from_numpy, labels))


class Judge:
    """A classifier trained on the real digits, and what it says of samples."""

    def __init__(self, run: Run, data: Digits) -> None:
        self.run, self.real_digits = run, data.test
        self.classifier = made(run, lambda: ImageClassifier(SHAPE, 10))
        epochs = run.pick(12, 5)

        def fit(_: nn.Module) -> dict[str, Any]:
            known = self.classifier, data.train, data.train_labels
            losses = train_classifier(*known, epochs=epochs, seed=run.seed, progress=run.progress)
            accuracy = classifier_accuracy(self.classifier, data.test, data.test_labels)
            return {"losses": losses, "accuracy": accuracy}

        found = run.trained("classifier", self.classifier, fit)
        columns = ("epochs", "last loss", "accuracy on held-out digits")
        run.table("The classifier that judges", columns, [(epochs, found["losses"][-1], found["accuracy"])])

    def real(self) -> list[Any]:
        half = len(self.real_digits) // 2
        scores = image_fidelity(self.classifier, self.real_digits[:half], self.real_digits[half:])
        return ["real digits", "", None, half, *_cells(scores), None]

    def row(
        self, model: str, sampler: str, evaluations: int, draw: Callable[[], Tensor]
    ) -> tuple[list[Any], Tensor]:
        """The row of a table, and the samples that draw() gave."""

        def sampled() -> dict[str, Any]:
            began = time.perf_counter()
            return {"x": draw(), "seconds": time.perf_counter() - began}

        name = slug(f"{model} {sampler}")
        drawn = self.run.stage(f"{name}-samples", "sampling", sampled)
        x = drawn["x"]
        scores = self.run.stage(
            f"{name}-scores",
            "evaluation",
            lambda: image_fidelity(self.classifier, x, self.real_digits)._asdict(),
        )
        milliseconds = 1e3 * drawn["seconds"] / len(x)
        return [model, sampler, evaluations, len(x), *_cells(list(scores.values())), milliseconds], x

    def best_and_worst(self, x: Tensor) -> dict[str, Tensor]:
        with torch.no_grad():
            order = self.classifier(x).softmax(1).amax(1).argsort(descending=True)
        return {"clearest": x[order[:GRID]], "least clear": x[order[-GRID:]]}


def slug(name: str) -> str:
    """For names of files."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def made(run: Run, make: Callable[[], Module]) -> Module:
    """A module with initial weights of the run's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        return make()


def denoiser(run: Run, n_hidden: tuple[int, ...], n_steps: int) -> CNNDenoiser:
    return made(run, lambda: CNNDenoiser(n_hidden, n_steps)).to(DEVICE)


def drawn(sampler: Sampler, n: int, seed: int) -> Tensor:
    return torch.cat([part.cpu() for part in sampler.stream(n, CHUNK, seed=seed)])


def gaussian_training(run: Run, settings: Settings, data: Digits) -> Training:
    schedule = report_schedule(settings)
    model = denoiser(run, settings.n_hidden, settings.n_steps)

    def grid() -> Tensor:
        _, steps, how = FAST
        return drawn(Sampler(model, schedule, steps=steps, **how), GRID, run.seed)

    images, corrupt = (data.train, data.test), gaussian(schedule)
    return Training(run, settings.name, model, images, corrupt, F.mse_loss, settings.lr, grid)


def solver_rows(judge: Judge, name: str, model: CNNDenoiser, schedule: NoiseSchedule) -> list[list[Any]]:
    """A row for each solver, and a picture of what they draw."""
    run, rows, samples = judge.run, [], {}
    for solver, steps, how in (*SOLVERS, *([AS_PUBLISHED] if run.as_published else [])):
        steps = steps or run.pick(QUICK_DDPM_STEPS, len(schedule))
        sampler = Sampler(model, schedule, steps=steps, **how)
        row, x = judge.row(name, solver, steps, partial(drawn, sampler, run.pick(*SAMPLES), run.seed))
        rows.append(row)
        samples[f"{solver}, {steps}"] = x
        if solver == FAST[0]:
            best_and_worst = judge.best_and_worst(x)
    caption = f"{name}: samples by solver and evaluations; the clearest and least clear of {FAST[0]}."
    figure = plotting.image_panels(samples | best_and_worst, columns=3)
    run.picture(f"{slug(name)}-samples", figure, caption)
    return rows


def published_rows(judge: Judge) -> list[list[Any]]:
    """Those of the published weights of set 1, where the user's folder has them."""
    folder = judge.run.data
    if folder is None or not (folder / WEIGHTS_FILE).is_file():
        return []
    model, schedule = load_published(folder / WEIGHTS_FILE)
    return solver_rows(judge, "set 1, published weights", model, schedule)


def published_losses(settings: Settings) -> list[Any]:
    of = settings
    return [f"{of.name}, published", of.stopped, of.first_loss, of.last_loss, None, of.shown_loss]


def cold_diffusion(run: Run, data: Digits, judge: Judge) -> tuple[Training, list[list[Any]]]:
    """The second half: ink that is stirred and spreads, restored in the mean absolute error."""
    run.text(COLD)
    run.cut("cold diffusion: a network of 16-32-16 channels, 5 epochs, not 40")
    ink = cold.StirredInk(side=SHAPE[1])
    levels = {
        f"level {t}": ink(data.test[:GRID], torch.full((GRID,), t)) for t in range(0, ink.n_steps + 1, 5)
    }
    run.picture("cold-levels", plotting.image_panels(levels, columns=5), "Digits, stirred and spread.")
    prior = cold.DegradedPrior(ink, data.train[:PRIOR_ROWS], run.pick(15, 60), seed=run.seed)
    x_T = prior.sample(run.pick(*SAMPLES), seed=run.seed)
    n_hidden, rate, most = run.pick((QUICK_SETS[0].n_hidden, 2e-3, 5), (SET_1.n_hidden, 5e-4, 40))
    model = denoiser(run, n_hidden, ink.n_steps)

    def draw(algorithm: str, start: Tensor) -> Tensor:
        parts = start.to(DEVICE).split(CHUNK)
        return torch.cat([cold.sample(model, ink, part, algorithm=algorithm).cpu() for part in parts])

    images, corrupt = (data.train, data.test), cold.degraded(ink)
    grid = partial(draw, "algorithm_2", x_T[:GRID])
    training = Training(run, "cold", model, images, corrupt, F.l1_loss, rate, grid)
    training.until(epoch_means, most)
    training.show("mean absolute error")
    rows, samples = [], {"where it starts": x_T}
    for algorithm, label in ALGORITHMS.items():
        evaluations = 1 if algorithm == "one_step" else ink.n_steps
        row, samples[label] = judge.row("cold", label, evaluations, partial(draw, algorithm, x_T))
        rows.append(row)
    samples |= judge.best_and_worst(samples[label])
    caption = "Where cold diffusion starts, what becomes of it, the clearest and least clear of algorithm 2."
    run.picture("cold-samples", plotting.image_panels(samples, columns=3), caption)
    return training, rows


def _cells(scores: Sequence[MetricResult]) -> list[Any]:
    *others, frechet = scores
    return [*others, frechet, frechet.floor]
