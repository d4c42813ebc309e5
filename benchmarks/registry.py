"""Every case by its name: what `make bench` runs and what pytest-benchmark finds."""

from __future__ import annotations

from benchmarks import around, cases, scaling, schedulers

_ALL: list[cases.Case] = [
    *cases.CHAINS,
    *cases.LATENCIES,
    *cases.STEPS,
    *scaling.SCALINGS,
    *around.CASES,
    *schedulers.SCHEDULERS,
]
CASES = {case.name: case for case in _ALL}
