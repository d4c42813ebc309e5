"""How the cost of a chain grows with the number of samples, the steps, the width and the dimension."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import Any

from benchmarks.cases import Chain
from diffusion_fast._timing import Check, Contender, Result, compare, fma_peak, show_seconds
from diffusion_fast._torch_peers import TorchFolded, best_chunk, seconds_for

NAMES = ("ours", TorchFolded.name)


@dataclass(frozen=True)
class Setting:
    samples: int = 4096
    steps: int = 50
    width: int = 128
    dim: int = 2

    @property
    def chain(self) -> Chain:
        return Chain((self.dim, self.width, self.width, self.dim), "relu", self.steps, self.samples)


@dataclass
class Growth:
    """Median seconds of a call for each value of what varies; `at_peak`: its work at the FMA peak."""

    name: str
    axis: str
    values: list[int]
    seconds: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in NAMES})
    gflop: list[float] = field(default_factory=list)
    at_peak: list[float] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def __str__(self) -> str:
        others = ", ".join(
            f"{name} {value}" for name, value in asdict(Setting()).items() if name != self.axis
        )
        lines = [f"{self.name}: time of a call; {others}, relu"]
        columns = [*NAMES, "ratio", "at the peak"]
        lines.append(f"  {self.axis:>10}" + "".join(f"{name:>14}" for name in columns))
        for i, value in enumerate(self.values):
            ours, folded = (self.seconds[name][i] for name in NAMES)
            texts = [show_seconds(ours), show_seconds(folded), f"{folded / ours:.2f}x"]
            texts.append(show_seconds(self.at_peak[i]))
            lines.append(f"  {value:>10,}" + "".join(f"{text:>14}" for text in texts))
        return "\n".join(lines)


@dataclass(frozen=True)
class Scaling:
    axis: str
    values: tuple[int, ...]

    @property
    def name(self) -> str:
        return f"scaling-{self.axis}"

    @property
    def names(self) -> tuple[str, ...]:
        return NAMES

    def prepare(self, name: str) -> Callable[[], object]:
        return self.at(self.values[0]).prepare(name)

    def at(self, value: int) -> Chain:
        return Setting(**{self.axis: value}).chain

    def measure(self, quick: bool) -> Growth:
        growth = Growth(self.name, self.axis, list(self.values[:-2] if quick else self.values))
        peak = 0.0
        for value in growth.values:
            chain = self.at(value)
            n, peer = chain.samples, TorchFolded(chain.model)
            size = min(n, best_chunk(peer, n, chain.steps))
            for warm in (partial(chain.ours, n), partial(peer.chunk, size)):
                warm()
            calls = max(1, 256 // n)
            found = [
                Contender(NAMES[0], partial(chain.ours, n), calls),
                Contender(NAMES[1], partial(seconds_for, peer, n, size), calls),
            ]
            work = chain.gflop_per_sample * n
            result = compare(Result("", ""), found, work, 3, partial(fma_peak, 0.02))
            for row in result.rows:
                growth.seconds[row.name].append(row.seconds)
            growth.gflop.append(work)
            peak = max(peak, result.best_ceiling or 0.0)
        growth.at_peak = [work / peak for work in growth.gflop]
        return growth


SCALINGS = [
    Scaling("samples", (1, 16, 256, 4096, 65_536)),
    Scaling("steps", (10, 30, 100, 300, 1000)),
    Scaling("width", (16, 32, 64, 128, 256, 512, 1024)),
    Scaling("dim", (1, 4, 16, 64, 256)),
]
