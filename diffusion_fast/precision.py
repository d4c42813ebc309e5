"""What the fused chain on the CPU computes the network in: float32, products of bfloat16, or a table; and the
choice by an error.

precision="auto" tries what is faster than float32, the fastest first, on a pilot with the noise of a seed of
its own: the first is taken whose samples differ from the float32 ones by no more than the tolerance, and from
their law by less than so many samples can tell. The choice is a function of the plan, the tolerance and
expected_samples; what is faster is told by counting operations, not by a clock.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from diffusion_fast import _checks, _cpu, network_table
from diffusion_fast.network_table import NetworkTable
from diffusion_fast.network_table.table import LOOKUP_WORK
from diffusion_fast.plan import Plan

PRECISIONS = ("float32", "bfloat16", "table", "auto")
TOLERANCE = 1e-3
LEAST_TOLERANCE = 1e-6  # below, float32 itself rounds
SEED = 0xB0D6E7
PILOT = 4096  # samples
# The candidates of "auto", the fastest first: tables with this part of the tolerance as that of the network.
TABLES = (1.0, 0.125)
# and after them, where the processor has products of bfloat16, so many of the rows with them: the last rows
# leave the samples no time to forget an error.
LOW_SHARES = (1.0, 0.75, 0.5)
PILOTS = 4  # chains of PILOT samples that a choice of bfloat16 takes, at most


@dataclass(frozen=True)
class Tier:
    """name: "float32", "bfloat16", "table", or on CUDA "float16". low_rows: on the CPU, the first rows, in
    which wide layers multiply in bfloat16. notes: lines for explain()."""

    name: str
    table: NetworkTable | None = None
    low_rows: int = 0
    notes: tuple[str, ...] = ()

    @property
    def identity(self) -> str:
        """What samples of one plan and seed are a function of."""
        if self.table is None:
            return f"{self.name}, {self.low_rows} rows" if self.low_rows else self.name
        return f"{self.name}, tolerance {self.table.tolerance:g}, {self.table.digest[:32]}"


@dataclass(frozen=True)
class Asked:
    """The arguments of Sampler: tolerance of "table" and "auto", expected_samples of "auto"."""

    precision: str
    tolerance: float
    expected_samples: int | None


def asked(precision: str, tolerance: Any, expected_samples: Any) -> Asked:
    """Raises TypeError or ValueError naming the argument; precision has been checked."""
    if tolerance is not None and precision not in ("table", "auto"):
        accepted = f"None with precision={precision!r}; a number with 'table' and 'auto'"
        raise _checks.bad_value("tolerance", tolerance, accepted)
    given = TOLERANCE if tolerance is None else tolerance
    checked = _checks.real("tolerance", given, LEAST_TOLERANCE, 1.0)
    if expected_samples is not None:
        if precision != "auto":
            accepted = f"None with precision={precision!r}; a number with 'auto'"
            raise _checks.bad_value("expected_samples", expected_samples, accepted)
        expected_samples = _checks.integer("expected_samples", expected_samples, 1, _checks.MAX_SAMPLES)
    return Asked(precision, checked, expected_samples)


def tier_of(plan: Plan, want: Asked, threads: int) -> Tier:
    """The tier of a plan on the CPU. Raises ValueError where the one that is asked for cannot be had."""
    if want.precision == "float32":
        return Tier("float32")
    if want.precision == "bfloat16":
        _check_bfloat16()
        return _low(plan, 1.0) or Tier("float32", notes=(f"bfloat16: float32, for {NARROW}",))
    if want.precision == "table":
        problem = _no_table(plan)
        if problem is not None:
            raise _checks.bad_value("precision", "table", f"'float32' or 'auto', for {problem}")
        return _tabulated(plan, want.tolerance, threads)
    return _chosen(plan, want, threads)


def without_plan(precision: str, on_cpu: bool) -> Tier:
    """The tier where torch runs the module. Raises ValueError as `tier_of`."""
    if precision == "bfloat16" and on_cpu:
        _check_bfloat16()
    notes = () if precision == "float32" else (f"{precision}: float32, for torch runs the module",)
    return Tier("float32", notes=notes)


def _check_bfloat16() -> None:
    if not _cpu.has_bfloat16():
        accepted = "'float32', 'table' or 'auto' on this processor, which has no AVX-512 BF16"
        raise _checks.bad_value("precision", "bfloat16", accepted)


NARROW = "no layer has 32 inputs and outputs"


def _low(plan: Plan, share: float) -> Tier | None:
    """Products of bfloat16 in a share of the rows; None where no layer is wide enough."""
    rows = math.ceil(share * len(plan.rows))
    if not _cpu.Program(plan.to_bytes(), low_rows=rows).has_pairs:
        return None
    return Tier("bfloat16", low_rows=rows, notes=(f"products of bfloat16 in the first {rows} rows",))


def _tabulated(plan: Plan, tolerance: float, threads: int) -> Tier:
    table = network_table.build(plan, tolerance, threads)
    return Tier("table", table, notes=tuple(table.explain(_work(plan))))


def _work(plan: Plan) -> int:
    return int(_cpu.Program(plan.to_bytes()).work_per_step)


def _no_table(plan: Plan) -> str | None:
    if plan.dim > 2:
        return f"a sample has {plan.dim} elements and tables are for 1 and 2"
    if plan.n_context:
        return "the model has a context and tables are for classes alone"
    if plan.branches == 2 and bool((plan.rows["rescale"] != 0).any()):
        return "guidance_rescale divides by a deviation that is 0 in places, where no grid is fine enough"
    return None


def _does_not_pay(plan: Plan, want: Asked, work: int) -> str | None:
    """Before a table is made: whether reading it would be slower, or its points alone cost more samples."""
    if work <= LOOKUP_WORK[plan.dim]:
        return "the network is less work than reading a table"
    least = network_table.build_evaluations(plan) // len(plan.rows)
    if want.expected_samples is not None and want.expected_samples < least:
        return (
            f"a table takes the work of {least:,} samples or more, and {want.expected_samples:,} are expected"
        )
    return None


def _candidates(plan: Plan, want: Asked, threads: int, notes: list[str]) -> Iterator[Tier]:
    problem = _no_table(plan) or _does_not_pay(plan, want, _work(plan))
    if problem is not None:
        notes.append(f"auto: no table, for {problem}")
    for part in TABLES if problem is None else ():
        try:
            yield _tabulated(plan, want.tolerance * part, threads)
        except ValueError as error:
            notes.append(f"auto: no table ({error})")
            break
    few = want.expected_samples is not None and want.expected_samples < PILOTS * PILOT
    if plan.n_context or few or not _cpu.has_bfloat16():  # a pilot has no context to draw with
        return
    for share in LOW_SHARES:
        if low := _low(plan, share):
            yield low


def _chosen(plan: Plan, want: Asked, threads: int) -> Tier:
    notes: list[str] = []
    exact: np.ndarray | None = None
    for tier in _candidates(plan, want, threads, notes):
        exact = _pilot(plan, Tier("float32"), threads) if exact is None else exact
        holds, measured = _compared(_pilot(plan, tier, threads), exact, want.tolerance)
        error = "" if tier.table is None else f" with a network error of {tier.table.tolerance:g}"
        notes.append(f"auto: {tier.name}{error} {measured}")
        if holds:
            return replace(tier, notes=(*notes, *tier.notes))
    return Tier("float32", notes=(*notes, "auto: float32, for no faster tier holds"))


def _compared(given: np.ndarray, exact: np.ndarray, tolerance: float) -> tuple[bool, str]:
    """Whether samples hold beside those of float32, and what was measured."""
    from diffusion_fast.metrics import sliced_wasserstein  # imports solvers of transport, and few need it

    if not (np.isfinite(given).all() and np.isfinite(exact).all()):
        return False, "does not hold: some of the samples are not finite"
    deviation = np.sqrt(np.square(exact - exact.mean(axis=0)).mean())
    error = float(np.sqrt(np.square(given - exact).mean()) / max(deviation, 1e-30))
    distance = sliced_wasserstein(given, exact, seed=SEED)
    holds = error <= tolerance and distance.value <= distance.floor
    return holds, (
        f"{'holds' if holds else 'does not hold'}: {len(exact):,} samples differ by {error:.2g} rms of their "
        f"deviation (tolerance {tolerance:g}), sliced Wasserstein {distance.value:.2g} beside a sampling "
        f"floor of {distance.floor:.2g}"
    )


def _pilot(plan: Plan, tier: Tier, threads: int) -> np.ndarray:
    """(PILOT, dim) float64, all classes in turn."""
    out = np.empty((PILOT, plan.dim), np.float32)
    labels = (np.arange(PILOT) % max(plan.n_classes, 1)).astype(np.int32)
    program: Any = _cpu.Program(plan.to_bytes(), low_rows=tier.low_rows)
    program.run(
        out.ctypes.data,
        PILOT,
        0,
        SEED,
        threads,
        labels=labels.ctypes.data if plan.n_classes else 0,
        tables=None if tier.table is None else tier.table.packed(),
    )
    return out.astype(np.float64)
