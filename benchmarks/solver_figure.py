"""How near every solver comes to the data, by network evaluations and by seconds.

python -m benchmarks.solver_figure writes solvers.json and solvers.png into benchmarks/results/; with --draw
it only draws solvers.json again. Two targets: a mixture of Gaussians whose exact score takes the place of a
network, so that all that is left is the solver's own error; and a small network trained on two moons, where
that of the network joins it.
"""

from __future__ import annotations

import argparse
import json
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch

import diffusion_fast as df
from benchmarks import machine
from benchmarks.exact import ExactDenoiser, SlicedLaw
from benchmarks.run import RESULTS
from benchmarks.solver_panels import draw

SEED = 0
SAMPLES = {"mixture": 1 << 16, "moons": 1 << 15}
EVALUATIONS = {
    "mixture": (4, 6, 10, 16, 30, 64, 200),
    "moons": (5, 8, 14, 30, 100),
}
EPOCHS = 80
FLOOR_DRAWS = 8  # of fresh data
SCHEDULE = df.NoiseSchedule.linear(1000)
SIGMA_MIN, SIGMA_MAX = 0.02, 80.0
LEVELS, SIGMA_FIRST = 10, 3.0  # of annealed Langevin dynamics
SINGLE_LEVEL = 0.05  # of Langevin dynamics, whose samples keep that noise


@dataclass(frozen=True)
class Run:
    """One line: a solver with its options. schedule(n): what it visits with about n evaluations."""

    name: str
    family: str
    solver: str
    options: Callable[[int], dict[str, Any]]
    schedule: Callable[[int], Any] = lambda n: SCHEDULE
    kind: str = "preserving"  # of the exact denoiser; the trained network knows no other


def _steps(n: int) -> dict[str, Any]:
    return {"steps": n, "spacing": "logsnr"}


def _two_stages(n: int) -> dict[str, Any]:
    return _steps((n + 1) // 2)


def _one_more(n: int) -> dict[str, Any]:
    return _steps(n - 1)


def _karras(n: int) -> df.SigmaSchedule:
    return df.SigmaSchedule.karras((n + 1) // 2, SIGMA_MIN, SIGMA_MAX)


def _annealed(n: int) -> df.SigmaSchedule:
    return df.SigmaSchedule.exponential(min(n - 1, LEVELS), SIGMA_MIN, SIGMA_FIRST)


def _flow(n: int) -> df.FlowSchedule:
    return df.FlowSchedule.linear(n)


RUNS = [
    Run("ddim", "deterministic", "ddim", _steps),
    Run("euler", "deterministic", "euler", _steps),
    Run("heun", "deterministic", "heun", _two_stages),
    Run("dpm_solver_2", "deterministic", "dpm_solver_2", _two_stages),
    Run("dpmpp_2m", "deterministic", "dpmpp_2m", _steps),
    Run("unipc", "deterministic", "unipc", _steps),
    Run("plms", "deterministic", "plms", _one_more),
    Run("lms", "deterministic", "lms", _steps),
    Run("ddpm", "stochastic", "ddpm", _steps),
    Run("euler_ancestral", "stochastic", "euler_ancestral", _steps),
    Run("dpmpp_2s_ancestral", "stochastic", "dpmpp_2s_ancestral", _two_stages),
    Run("dpmpp_2m_sde", "stochastic", "dpmpp_2m_sde", _steps),
    Run("dpmpp_3m_sde", "stochastic", "dpmpp_3m_sde", _steps),
    Run("edm", "sigma and flow", "edm", lambda n: {}, _karras, "exploding"),
    Run("edm, s_churn 10", "sigma and flow", "edm", lambda n: {"s_churn": 10.0}, _karras, "exploding"),
    Run("flow_euler", "sigma and flow", "flow_euler", lambda n: {}, _flow, "flow"),
    Run("flow_heun", "sigma and flow", "flow_heun", lambda n: {}, lambda n: _flow((n + 1) // 2), "flow"),
    Run(
        "langevin",
        "Langevin",
        "langevin",
        lambda n: {"steps": n, "step_size": SINGLE_LEVEL**2},
        lambda n: df.SigmaSchedule([SINGLE_LEVEL]),
        "exploding",
    ),
    Run(
        "annealed_langevin",
        "Langevin",
        "annealed_langevin",
        lambda n: {"steps_per_level": (n - 1) // LEVELS or 1, "step_size": SIGMA_MIN**2, "denoise": True},
        _annealed,
        "exploding",
    ),
]


@dataclass
class Line:
    name: str
    family: str
    evaluations: list[int] = field(default_factory=list)
    distance: list[float] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)


@dataclass
class Target:
    """What is sampled, and what samples are compared with. floor: distances of fresh data."""

    name: str
    law: SlicedLaw
    sampler: Callable[[Run, int], df.Sampler]
    runs: Sequence[Run]
    floor: list[float]
    times: int  # calls, the fastest of which counts

    def measure(self, evaluations: Sequence[int]) -> list[Line]:
        return [self.line(run, evaluations) for run in self.runs]

    def line(self, run: Run, evaluations: Sequence[int]) -> Line:
        line = Line(run.name, run.family)
        n = self.law.quantiles.shape[1]
        for wanted in evaluations:
            sampler = self.sampler(run, wanted)
            nfe = sampler.table.nfe
            if nfe in line.evaluations:
                continue
            seconds = []
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore", RuntimeWarning
                )  # a solver that diverges is seen in the figure
                for _ in range(self.times):
                    begin = time.perf_counter()
                    x = sampler.sample(n, seed=SEED)
                    seconds.append(time.perf_counter() - begin)
            line.seconds.append(min(seconds))
            line.evaluations.append(nfe)
            line.distance.append(self.law.distance(x.numpy()))
        return line


def mixture(n: int) -> Target:
    law = df.datasets.gaussian_ring().mixture
    assert law is not None
    nets = {kind: ExactDenoiser(law, kind).eval() for kind in ("preserving", "exploding", "flow")}

    def sampler(run: Run, evaluations: int) -> df.Sampler:
        flow = run.kind == "flow"
        return df.Sampler(
            nets[run.kind],
            run.schedule(evaluations),
            shape=2,
            solver=run.solver,
            prediction_type="flow" if flow else "epsilon",
            time_input="unit" if flow else "sigma",
            backend="native",
            **run.options(evaluations),
        )

    exact, rng = SlicedLaw.of_mixture(law, n), np.random.default_rng(SEED)
    floor = [exact.distance(law.draw(rng, n)[0]) for _ in range(FLOOR_DRAWS)]
    return Target("mixture", exact, sampler, RUNS, floor, times=2)


def moons(n: int, epochs: int) -> Target:
    """A 2-128-128-2 network of the package, trained here; the solvers of a NoiseSchedule."""
    data = df.datasets.moons(20_000, (1 + FLOOR_DRAWS) * n, seed=SEED)
    torch.manual_seed(SEED)
    model = df.models.MLPDenoiser(2, (128, 128), "relu", "sinusoidal", len(SCHEDULE))
    options: dict[str, Any] = {"lr": 3e-3, "lr_decay": "cosine", "ema": 0.999, "progress": False}
    df.train(model, SCHEDULE, data, epochs=epochs, batch_size=512, seed=SEED, **options)

    def sampler(run: Run, evaluations: int) -> df.Sampler:
        return df.Sampler(
            model.eval(),
            SCHEDULE,
            solver=run.solver,
            backend="native",
            standardiser=data.standardiser,
            **run.options(evaluations),
        )

    held_out, *fresh = np.split(data.test, 1 + FLOOR_DRAWS)
    law = SlicedLaw.of_rows(held_out)
    floor = [law.distance(rows) for rows in fresh]
    runs = [run for run in RUNS if run.kind == "preserving"]
    return Target("moons", law, sampler, runs, floor, times=1)  # its seconds are not drawn


def measure(scale: int, epochs: int) -> dict[str, Any]:
    """Everything that is drawn; `scale` divides the numbers of samples."""
    content: dict[str, Any] = {"machine": machine.describe(), "targets": {}}
    targets = (mixture(SAMPLES["mixture"] // scale), moons(SAMPLES["moons"] // scale, epochs))
    for target in targets:
        lines = [asdict(line) for line in target.measure(EVALUATIONS[target.name])]
        content["targets"][target.name] = {
            "samples": target.law.quantiles.shape[1],
            "floor": target.floor,
            "lines": lines,
        }
    return content


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--draw", action="store_true", help="only draw again what was measured")
    options = parser.parse_args()
    path = RESULTS / "solvers.json"
    if not options.draw:
        torch.set_num_threads(min(2, torch.get_num_threads()))
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(measure(1, EPOCHS), indent=1) + "\n")
        print(f"written: {path}")
    draw(json.loads(path.read_text())).savefig(path.with_suffix(".png"), dpi=130)
    print(f"written: {path.with_suffix('.png')}")


if __name__ == "__main__":
    main()
