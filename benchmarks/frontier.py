"""How near samples come to the data in how many seconds: every solver, number of steps and tier.

python -m benchmarks.frontier writes frontier.json and frontier.png into benchmarks/results/; with --draw it
only draws frontier.json again; --quick (three minutes) is of six solvers, float32 and a quarter of the
samples, frontier-quick.json. The models are those of the systems A to D, trained here as `diffusion-fast
reproduce` trains them. `diffusion-fast sample --quality` takes its settings from this study.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

import numpy as np
import torch

import diffusion_fast as df
from benchmarks import frontier_picture, machine
from benchmarks.exact import SlicedLaw
from benchmarks.run import RESULTS
from benchmarks.solver_figure import RUNS, Run, Target
from diffusion_fast.cli.options import default_epochs
from diffusion_fast.systems import guidance_2d, mixtures_1d, points_3d

SEED = 0
SAMPLES = 1 << 17
QUICK = ("ddim", "heun", "dpmpp_2m", "unipc", "ddpm", "dpmpp_2m_sde")
EVALUATIONS = (5, 8, 12, 20, 50)  # and the whole schedule
FLOOR_DRAWS = 8  # of fresh data
GUIDANCE_WEIGHT = 0.2


@dataclass(frozen=True)
class Model:
    """What a system samples. train: epochs, at most -> the trained network, its schedule and its data.

    options: of Sampler; ddpm: with that solver. labelled: the samples have the labels of as many rows of the
    data.
    """

    name: str
    title: str
    train: Callable[[int, int], tuple[torch.nn.Module, df.NoiseSchedule, df.datasets.Dataset]]
    tiers: tuple[str, ...]
    options: dict[str, Any] = field(default_factory=dict)
    ddpm: dict[str, Any] = field(default_factory=dict)
    labelled: bool = False


def helix(rows: int, most: int) -> tuple[Any, ...]:
    data = df.datasets.helix_3d(n_test=rows, seed=SEED)
    schedule = df.NoiseSchedule.cosine(points_3d.FINAL_STEPS)
    model = df.models.MLPDenoiser(3, points_3d.FINAL_HIDDEN, "relu", "sinusoidal", len(schedule))
    epochs = min(most, default_epochs(len(data.train), points_3d.BATCH_SIZE))
    return _trained(model, schedule, data, epochs=epochs, **points_3d.FINAL)


def gaussians(rows: int, most: int) -> tuple[Any, ...]:
    data = df.datasets.load("three_gaussians", n_test=rows, seed=SEED, scaling="standard")
    schedule = mixtures_1d.SCHEDULE
    model = df.models.MLPDenoiser(1, mixtures_1d.HIDDEN, "relu", "sinusoidal", len(schedule))
    options = {"epochs": min(most, 400), "batch_size": 1024, "lr": 3e-3, "lr_decay": "cosine", "ema": 0.999}
    return _trained(model, schedule, data, **options)


def pinwheel(rows: int, most: int) -> tuple[Any, ...]:
    data = df.datasets.load("pinwheel", n_test=rows, seed=SEED)
    schedule = df.NoiseSchedule.cosine(200)
    model = df.models.MLPDenoiser(2, (128, 128), "silu", "sinusoidal", 200, time_dim=32)
    epochs = min(most, default_epochs(len(data.train), 512))
    options = {"epochs": epochs, "batch_size": 512, "lr": 3e-3, "lr_decay": "cosine", "ema": 0.999}
    return _trained(model, schedule, data, **options)


def moons(rows: int, most: int) -> tuple[Any, ...]:
    data, schedule = df.datasets.load("moons", n_test=rows, seed=SEED), guidance_2d.SCHEDULE
    model = df.models.ConditionalMLPDenoiser(2, 2, guidance_2d.WIDE, n_steps=len(schedule), time_dim=4)
    fitting = guidance_2d.WIDE_FITTING | {"epochs": min(most, guidance_2d.WIDE_FITTING["epochs"])}
    labels = {"labels": data.train_labels, "label_dropout": guidance_2d.LABEL_DROPOUT}
    return _trained(model, schedule, data, **fitting, **labels)


def _trained(
    model: torch.nn.Module, schedule: df.NoiseSchedule, data: df.datasets.Dataset, **options: Any
) -> tuple[Any, ...]:
    torch.manual_seed(SEED)
    for module in model.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    df.train(model, schedule, data.standardised_train, seed=SEED, progress=False, **options)
    return model.eval(), schedule, data


PLANE = ("float32", "table")
MODELS = (
    Model("A", "A: helix, 3-128-128-128-3", helix, ("float32",)),
    Model("B", "B: three Gaussians, 1-16-16-1", gaussians, PLANE, ddpm={"variance": "beta"}),
    Model("C", "C: pinwheel, 2-128-128-2", pinwheel, PLANE),
    Model(
        "D",
        f"D: moons, guided (w = {GUIDANCE_WEIGHT}), 2-64-64-2",
        moons,
        PLANE,
        {"guidance_weight": GUIDANCE_WEIGHT},
        labelled=True,
    ),
)


@dataclass(frozen=True)
class Labelled:
    """A sampler whose samples have given labels."""

    sampler: df.Sampler
    labels: torch.Tensor

    @property
    def table(self) -> df.StepTable:
        return self.sampler.table

    def sample(self, n: int, seed: int) -> torch.Tensor:
        return self.sampler.sample(n, seed=seed, labels=self.labels)


def targets(model: Model, n: int, epochs: int, quick: bool) -> tuple[dict[str, Target], int]:
    """The model, trained, as a target of solvers in each tier; the steps of its schedule."""
    net, schedule, data = model.train((1 + FLOOR_DRAWS) * n, epochs)
    held_out, *fresh = np.split(data.test, 1 + FLOOR_DRAWS)
    law = SlicedLaw.of_rows(held_out)

    def sampler(tier: str, run: Run, evaluations: int) -> Any:
        whole = evaluations == len(schedule)
        made = df.Sampler(
            net,
            schedule,
            solver=run.solver,
            standardiser=data.standardiser,
            backend="native",
            precision=tier,
            **({} if whole else run.options(evaluations)),
            **(model.ddpm if run.solver == "ddpm" else {}),
            **model.options,
        )
        return Labelled(made, torch.from_numpy(data.test_labels[:n])) if model.labelled else made

    runs = [run for run in RUNS if run.kind == "preserving" and (not quick or run.name in QUICK)]
    floor = [law.distance(rows) for rows in fresh]
    found = {
        tier: Target(f"{model.name} {tier}", law, partial(sampler, tier), runs, floor, times=2)
        for tier in model.tiers[: 1 if quick else None]
    }
    return found, len(schedule)


def measure(n: int, epochs: int, quick: bool = False) -> dict[str, Any]:
    """Everything that is drawn: n samples of models trained for at most so many epochs."""
    content: dict[str, Any] = {"machine": machine.describe(), "samples": n, "models": {}}
    for model in MODELS:
        by_tier, steps = targets(model, n, epochs, quick)
        lines = [
            asdict(line) | {"tier": tier}
            for tier, found in by_tier.items()
            for line in found.measure((*EVALUATIONS, steps))
        ]
        floor = next(iter(by_tier.values())).floor
        content["models"][model.name] = {"title": model.title, "floor": floor, "lines": lines}
        print(f"{model.title}: done", flush=True)
    return content


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draw", action="store_true", help="only draw again what was measured")
    parser.add_argument("--quick", action="store_true", help="six solvers, float32, fewer samples")
    options = parser.parse_args()
    path = RESULTS / f"frontier{'-quick' if options.quick else ''}.json"
    if not options.draw:
        torch.set_num_threads(min(2, torch.get_num_threads()))
        path.parent.mkdir(exist_ok=True)
        content = measure(SAMPLES // (4 if options.quick else 1), 1 << 20, options.quick)
        path.write_text(json.dumps(content, indent=1) + "\n")
        print(f"written: {path}")
    content = json.loads(path.read_text())
    print(frontier_picture.table(content))
    frontier_picture.draw(content).savefig(path.with_suffix(".png"), dpi=130)
    print(f"written: {path.with_suffix('.png')}")


if __name__ == "__main__":
    main()
