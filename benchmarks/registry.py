"""Every case by its name: what `make bench` runs and what pytest-benchmark finds."""

from __future__ import annotations

from benchmarks import around, captured, cases, guided, low_precision, scaling, schedulers, tables, training

_ALL: list[cases.Case] = [
    *cases.CHAINS,
    *cases.LATENCIES,
    *cases.STEPS,
    *scaling.SCALINGS,
    *captured.CASES,
    *guided.CASES,
    *around.CASES,
    *training.CASES,
    *schedulers.SCHEDULERS,
    *tables.CASES,
    *low_precision.CASES,
]
CASES = {case.name: case for case in _ALL}
