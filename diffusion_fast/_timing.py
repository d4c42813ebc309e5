"""Interleaved timing: every contender once in each round, so that a drifting machine drifts for all.

Shared by `shape_benchmark` and by benchmarks/.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from diffusion_fast import _cpu

PEAK_SECONDS = 0.2
BURST_SECONDS = 0.03  # the bursts of the peak take 0.02 to 0.04
BURST_SAMPLES = 192  # and multiples: whole tiles for two threads, whatever the instruction set
BURSTS = 12  # ceilings and bursts in turn for each round: with neighbours, few have both cores to themselves
SETTLE_SECONDS = 0.05  # idle threads of the contender before may still be spinning


@dataclass(frozen=True)
class Contender:
    """run() is timed `calls` times in a row; a float that it returns is its own seconds (of a chunked run
    that is scaled to n), anything else is ignored.
    """

    name: str
    run: Callable[[], object]
    calls: int = 1
    note: str = ""
    required: float | None = None  # how many times faster than this contender ours must be
    flop_per_byte: float | None = None

    def seconds(self) -> float:
        own = 0.0
        begin = time.perf_counter()
        for _ in range(self.calls):
            result = self.run()  # the one before is freed here, as in a loop of a user's
            if isinstance(result, float):
                own += result
        elapsed = time.perf_counter() - begin
        return (own or elapsed) / self.calls


@dataclass(frozen=True)
class Check:
    """One requirement: value is at least (or, with `most`, at most) `required`."""

    text: str
    value: float
    required: float
    unit: str = "x"
    most: bool = False

    @property
    def met(self) -> bool:
        return self.value <= self.required if self.most else self.value >= self.required

    def __str__(self) -> str:
        def show(number: float) -> str:
            return f"{100 * number:.0f} %" if self.unit == "%" else f"{number:.4g}{self.unit}"

        bound = f"{'<=' if self.most else '>='} {show(self.required)}"
        return f"{'ok  ' if self.met else 'MISS'}  {self.text}: {show(self.value)} (required {bound})"


@dataclass(frozen=True)
class Row:
    """Medians over the rounds. `rate` is in the result's unit, `ratio` is this contender's time over ours.

    flop_per_byte: useful operations for each byte that the method moves to and from memory or caches.
    """

    name: str
    seconds: float
    rate: float
    best_rate: float
    of_ceiling: float | None
    ratio: float
    note: str = ""
    flop_per_byte: float | None = None


@dataclass
class Result:
    name: str
    title: str
    unit: str = ""
    ceiling: float | None = None  # median, in `unit`
    best_ceiling: float | None = None
    rows: list[Row] = field(default_factory=list)
    checks: list[Check] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    gflop_per_unit: float | None = None  # what turns a rate into GFLOP/s
    best_burst: float | None = None  # of ours, in runs as short as the ceiling's

    def as_dict(self) -> dict[str, Any]:
        return asdict(self) | {"checks": [asdict(check) | {"met": check.met} for check in self.checks]}

    def __str__(self) -> str:
        lines = [f"{self.name}: {self.title}"]
        if self.rows:
            lines.append(f"  {'':18}{'time':>11}{self.unit:>12}{'of ceiling':>12}{'against ours':>14}")
        for row in self.rows:
            share = "" if row.of_ceiling is None else f"{100 * row.of_ceiling:.0f} %"
            ratio = "" if row is self.rows[0] else f"{row.ratio:.2f}x"
            figures = f"{show_seconds(row.seconds):>11}{row.rate:>12.1f}{share:>12}{ratio:>14}"
            lines.append(f"  {row.name:18}{figures}  {row.note}".rstrip())
        if self.ceiling is not None:
            lines.append(f"  {'ceiling':18}{'':>11}{self.ceiling:>12.1f}")
        lines += [f"  {name}" for name in self.missing] + [f"  {check}" for check in self.checks]
        return "\n".join(lines)


def show_seconds(seconds: float) -> str:
    return f"{seconds:.3f} s" if seconds >= 0.1 else f"{1e3 * seconds:.3f} ms"


@contextmanager
def torch_threads(threads: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def fma_peak(seconds: float = PEAK_SECONDS, pairs: bool = False) -> float:
    """GFLOP/s of multiply-adds on registers alone: the chosen instruction set, as many threads as torch."""
    return float(_cpu.fma_peak(_cpu.isa(), torch.get_num_threads(), seconds, pairs))


def burst_rate(run: Callable[[int], object], work: float) -> float:
    """The best rate of run(n) in bursts as long as the peak's, for PEAK_SECONDS; `work` is one sample's."""
    n, best, begin = BURST_SAMPLES, 0.0, time.perf_counter()
    while (start := time.perf_counter()) - begin < PEAK_SECONDS:
        run(n)
        took = time.perf_counter() - start
        best = max(best, work * n / took)
        n = BURST_SAMPLES * math.ceil(n / BURST_SAMPLES * BURST_SECONDS / took)
    return best


def compare(
    result: Result,
    contenders: Sequence[Contender],
    work: float,
    repeats: int,
    ceiling: Callable[[], float] | None = None,
    required_share: float | None = None,
    burst: Callable[[], float] | None = None,
) -> Result:
    """Fills in rows and checks; the first contender is ours. A rate is `work` / seconds.

    Ratios between contenders are medians of the ratios inside each round: both sides saw the same machine. A
    share of the ceiling is best over best: whatever else runs on a machine only ever slows a measurement.
    burst: our rate in runs as short as the ceiling's, in turn with it, for the share that is required. Of two
    cores that others use too, a run of seconds never has both to itself; a burst of 30 ms has.
    """
    times: list[list[float]] = [[] for _ in contenders]
    ceilings: list[float] = []
    bursts: list[float] = []
    for _ in range(repeats):
        for _ in range(BURSTS if burst is not None else 1):
            if ceiling is not None:
                ceilings.append(ceiling())
            if burst is not None:
                bursts.append(burst())
        for contender, series in zip(contenders, times, strict=True):
            time.sleep(SETTLE_SECONDS)
            series.append(contender.seconds())
    for contender, series in zip(contenders, times, strict=True):
        ratio = statistics.median(s / ours for s, ours in zip(series, times[0], strict=True))
        median = statistics.median(series)
        result.rows.append(
            Row(
                contender.name,
                median,
                work / median,
                work / min(series),
                work / min(series) / max(ceilings) if ceilings else None,
                ratio,
                contender.note,
                contender.flop_per_byte,
            )
        )
        if contender.required is not None:
            result.checks.append(Check(f"faster than {contender.name}", ratio, contender.required))
    if ceilings:
        result.ceiling, result.best_ceiling = statistics.median(ceilings), max(ceilings)
    if bursts:
        result.best_burst = max(bursts)
    if required_share is not None:
        share = max([*bursts, result.rows[0].best_rate]) / max(ceilings)
        text = "of the ceiling, both in bursts" if bursts else "of the ceiling"
        result.checks.insert(0, Check(text, share, required_share, "%"))
    return result
