"""Modules of others, captured: beside this package's own, and beside their chains in torch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch

from benchmarks import conditional
from benchmarks.cases import PEER_SECONDS, REPEATS, SMALL, one_chunk
from diffusion_fast import NoiseSchedule, Sampler
from diffusion_fast._timing import Contender, Result, burst_rate, compare, fma_peak
from diffusion_fast._torch_peers import best_chunk, limited_run, linear_betas
from diffusion_fast.models import MLPDenoiser

SMALL_GFLOP = 50.0  # of an entry under pytest-benchmark
FEW = 256  # samples up to which all are drawn at once
Peers = dict[str, Callable[[conditional.Problem], Any]]


@dataclass(frozen=True)
class Captured:
    """The chain of a foreign module. `faster`: a peer's name and the ratio ours must reach."""

    name: str
    title: str
    make: Callable[[], conditional.Problem]
    samples: int
    peak_share: float | None = None
    faster: dict[str, float] = field(default_factory=dict)
    peers: Peers = field(default_factory=lambda: dict(conditional.PEERS))
    calls: tuple[int, int] = (1, 1)  # of ours and of a peer, timed in a row
    rounds: int = REPEATS

    @property
    def names(self) -> tuple[str, ...]:
        return "ours", *self.peers

    @cached_property
    def problem(self) -> conditional.Problem:
        return self.make()

    def peer(self, name: str) -> Any:
        return (conditional.OursConditional if name == "ours" else self.peers[name])(self.problem)

    def prepare(self, name: str) -> Callable[[], object]:
        small = max(1, int(SMALL_GFLOP / self.problem.gflop_per_sample))
        return partial(one_chunk, self.peer(name), min(small, self.samples, SMALL))

    def contender(self, name: str) -> Contender:
        peer, n, steps = self.peer(name), self.samples, self.problem.steps
        if n <= FEW:
            run, note = partial(one_chunk, peer, n), ""
            run()
        else:
            cut = None if isinstance(peer, conditional.OursConditional) else steps
            run, note = limited_run(peer, n, best_chunk(peer, n, steps), PEER_SECONDS, cut)
        return Contender(name, run, self.calls[0 if name == "ours" else 1], note, self.faster.get(name))

    def measure(self, quick: bool) -> Result:
        title = f"{self.title}, {self.problem.steps} steps, {self.samples:,} samples"
        found = [self.contender(name) for name in self.names]
        rounds = 3 if quick else self.rounds
        if self.peak_share is None:
            return compare(Result(self.name, title, "samples/s"), found, self.samples, rounds)
        result = Result(self.name, f"{title}; ceiling = FMA peak", "GFLOP/s", gflop_per_unit=1.0)
        work = self.problem.gflop_per_sample
        burst = partial(burst_rate, self.peer("ours").chunk, work)
        return compare(result, found, work * self.samples, rounds, fma_peak, self.peak_share, burst)


@dataclass(frozen=True)
class SameNetwork:
    """A foreign module against MLPDenoiser, the two being the same network but for the numbers."""

    name: str = "captured-2-128-128-2"
    names: tuple[str, ...] = ("ours", "MLPDenoiser")
    samples: int = 20_000
    required: float = 0.97

    @cached_property
    def problem(self) -> conditional.Problem:
        return conditional.points()

    def prepare(self, name: str) -> Callable[[], object]:
        return partial(self.sampler(name).sample, SMALL)

    def sampler(self, name: str) -> Sampler:
        if name == "ours":
            return conditional.OursConditional(self.problem).sampler
        steps = self.problem.steps
        torch.manual_seed(0)
        model = MLPDenoiser(2, (128, 128), "relu", "sinusoidal", steps).eval()
        return Sampler(model, NoiseSchedule(linear_betas(steps)), variance="posterior", backend="native")

    def measure(self, quick: bool) -> Result:
        n = self.samples // 4 if quick else self.samples
        steps = self.problem.steps
        title = f"a foreign module, {steps} steps, {n:,} samples, against the package's own of the same shape"
        result = Result(self.name, title, "GFLOP/s", gflop_per_unit=1.0)
        found = []
        for name in self.names:
            run = partial(self.sampler(name).sample, n)
            run()
            required = None if name == "ours" else self.required
            found.append(Contender(name, run, required=required))
        work = self.problem.gflop_per_sample * n
        return compare(result, found, work, 3 if quick else 2 * REPEATS, fma_peak)


def merged(problem: conditional.Problem) -> conditional.FoldedConditional:
    return conditional.FoldedConditional(conditional.merged(problem))


CASES: list[Captured | SameNetwork] = [
    SameNetwork(),
    Captured(
        "captured-tabddpm",
        "TabDDPM on 14 columns, 14-128-256-256-14",
        conditional.tabddpm,
        100_000,
        0.85,
        {"torch eager": 1.8, "torch folded": 1.2},
        conditional.PEERS | {"torch merged": merged},
    ),
    Captured(
        "captured-policy-1",
        "the policy of Diffusion-QL, 6-256-256-256-6 mish, 17 columns of state",
        partial(conditional.policy, 10),
        1,
        faster={"torch eager": 20.0},
        calls=(200, 20),
        rounds=15,
    ),
    Captured(
        "captured-policy-256",
        "the policy of Diffusion-QL, 6-256-256-256-6 mish, 17 columns of state",
        partial(conditional.policy, 100),
        256,
        faster={"torch eager": 2.5},
        rounds=9,
    ),
]
