"""The table tier: trained networks of one and two columns, beside their float32 chain and PyTorch."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch

from benchmarks import cases
from diffusion_fast import NoiseSchedule, Sampler, datasets, network_table, train
from diffusion_fast._timing import Check, Contender, Result, compare
from diffusion_fast._torch_peers import TorchEager, best_chunk, limited_run
from diffusion_fast.models import MLPDenoiser
from diffusion_fast.systems import mixtures_1d

TOLERANCE = 1e-3
ROWS = 20_000  # to learn from


@dataclass(frozen=True)
class Table:
    """Samples from a table against the float32 chain. included: making the table counts in each run.

    float32_samples: as many as that chain draws, its time scaled to n. faster: as in cases.Chain.
    """

    name: str
    data: str
    model: tuple[Any, ...]  # the arguments of MLPDenoiser
    schedule: NoiseSchedule
    samples: int
    float32_samples: int
    included: bool
    training: dict[str, Any]
    faster: dict[str, float] = field(default_factory=dict)

    @property
    def names(self) -> tuple[str, ...]:
        return ("ours", "float32", "torch eager")

    @cached_property
    def trained(self) -> MLPDenoiser:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = MLPDenoiser(*self.model)
        data = datasets.load(self.data, n_train=ROWS, seed=0)
        train(model, self.schedule, data, seed=0, progress=False, **self.training)
        return model.eval()

    def sampler(self, precision: str) -> Sampler:
        how: dict[str, Any] = {"tolerance": TOLERANCE} if precision == "table" else {}
        return Sampler(self.trained, self.schedule, backend="native", precision=precision, **how)

    def prepare(self, name: str) -> Callable[[], object]:
        if name == "torch eager":
            return partial(cases.one_chunk, TorchEager(self.trained), cases.SMALL)
        return partial(self.sampler("table" if name == "ours" else "float32").sample, cases.SMALL)

    def measure(self, quick: bool) -> Result:
        n = self.samples // (10 if quick else 1)
        few = min(n, self.float32_samples)
        ready, float32 = self.sampler("table"), self.sampler("float32")
        table, plan = ready.tier.table, ready.plan
        assert table is not None and plan is not None
        title = (
            f"{len(ready.table)} steps, {n:,} samples, the table {'included' if self.included else 'made'}"
        )
        result = Result(self.name, title, "M samples/s")

        def ours() -> None:
            if self.included:  # made once more
                network_table.build(plan, TOLERANCE, torch.get_num_threads())
            ready.sample(n)

        peer = TorchEager(self.trained)
        size = best_chunk(peer, n, len(ready.table))
        run, note = limited_run(peer, n, size, cases.PEER_SECONDS)
        repeats = 3 if quick or n > 1_000_000 else cases.REPEATS
        found = [
            Contender("ours", ours),
            Contender("float32", partial(scaled, float32, few, n), required=self.faster.get("float32")),
            Contender("torch eager", run, note=note, required=self.faster.get("torch eager")),
        ]
        compare(result, found, n / 1e6, repeats)
        error, kind = (table.max_error, "largest") if table.smooth else (table.rms_error, "rms")
        text = f"{kind} error of the network in its RMS"
        result.checks.append(Check(text, float(error.max()), TOLERANCE, "", most=True))
        result.missing += ready.explain().splitlines()[3:6]
        return result


def scaled(sampler: Sampler, few: int, n: int) -> float:
    """Seconds for n samples, from those for few."""
    began = time.perf_counter()
    sampler.sample(few)
    return (time.perf_counter() - began) * n / few


def line(name: str, samples: int, included: bool, faster: dict[str, float]) -> Table:
    """The published network of system B."""
    model = 1, mixtures_1d.HIDDEN, "relu", "scalar", len(mixtures_1d.SCHEDULE)
    training = {"epochs": 100, "batch_size": 64, "lr": 0.8e-4}
    few = min(samples, 500_000)
    return Table(
        name, "three_gaussians", model, mixtures_1d.SCHEDULE, samples, few, included, training, faster
    )


def plane(activation: str) -> Table:
    schedule, name = NoiseSchedule.linear(200), f"table-plane-{activation}"
    model = 2, (128, 128), activation, "table", len(schedule)
    training = {"epochs": 100, "batch_size": 250, "lr": 3e-3, "lr_decay": "cosine"}
    return Table(name, "checkerboard", model, schedule, 10_000_000, 50_000, True, training, {"float32": 20.0})


CASES = [
    line("table-line", 100_000, True, {"torch eager": 60.0}),
    line("table-line-10M", 10_000_000, True, {"float32": 5.0}),
    plane("silu"),
    plane("relu"),
]
