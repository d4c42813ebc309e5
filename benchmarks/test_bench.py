"""pytest-benchmark entries over the same registry: python -m pytest benchmarks --benchmark-only

One for each case and contender, at a small size; -k "chain and ours" chooses.
"""

from __future__ import annotations

from typing import Any

import pytest

from benchmarks.registry import CASES

pytest.importorskip("pytest_benchmark")
ENTRIES = [(case, name) for case in CASES.values() for name in case.names]


@pytest.mark.parametrize(("case", "name"), ENTRIES, ids=[f"{case.name}-{name}" for case, name in ENTRIES])
def test_case(benchmark: Any, case: Any, name: str) -> None:
    try:
        run = case.prepare(name)
    except ImportError as error:
        pytest.skip(str(error))
    benchmark.pedantic(run, rounds=3, warmup_rounds=1)
