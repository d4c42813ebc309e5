"""What the fused chain on the CPU computes the network in: float32, or a table; and the choice by an error.

precision="auto" tries what is faster than float32, the fastest first, on a pilot with the noise of a seed of
its own: the first is taken whose samples differ from the float32 ones by no more than the tolerance, and from
their law by less than so many samples can tell. The choice is a function of the plan, the tolerance and
expected_samples; what is faster is told by counting operations, not by a clock.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from diffusion_fast import _checks, _cpu, network_table
from diffusion_fast.network_table import NetworkTable
from diffusion_fast.network_table.table import LOOKUP_WORK
from diffusion_fast.plan import Plan

PRECISIONS = ("float32", "table", "auto")
TOLERANCE = 1e-3
LEAST_TOLERANCE = 1e-6  # below, float32 itself rounds
SEED = 0xB0D6E7
PILOT = 4096  # samples
# The candidates of "auto", the fastest first: tables with this part of the tolerance as that of the network.
TABLES = (1.0, 0.125)


@dataclass(frozen=True)
class Tier:
    """name: "float32", "table", or on CUDA "bfloat16" or "float16". notes: lines for explain()."""

    name: str
    table: NetworkTable | None = None
    notes: tuple[str, ...] = ()

    @property
    def identity(self) -> str:
        """What samples of one plan and seed are a function of."""
        if self.table is None:
            return self.name
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
    """The tier of a plan on the CPU. Raises ValueError where "table" cannot be had."""
    if want.precision == "float32":
        return Tier("float32")
    work = int(_cpu.Program(plan.to_bytes()).work_per_step)
    problem = _no_table(plan)
    if want.precision == "table":
        if problem is not None:
            raise _checks.bad_value("precision", "table", f"'float32' or 'auto', for {problem}")
        table = network_table.build(plan, want.tolerance, threads)
        return Tier("table", table, tuple(table.explain(work)))
    if problem is None:
        problem = _does_not_pay(plan, want, work)
    if problem is not None:
        return Tier("float32", notes=(f"auto: float32, for {problem}",))
    return _chosen(plan, want, work, threads)


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


def _chosen(plan: Plan, want: Asked, work: int, threads: int) -> Tier:
    notes: list[str] = []
    exact = _pilot(plan, None, threads)
    for part in TABLES:
        try:
            table = network_table.build(plan, want.tolerance * part, threads)
        except ValueError as error:
            notes.append(f"auto: no table ({error})")
            break
        holds, measured = _compared(_pilot(plan, table, threads), exact, want.tolerance)
        notes.append(f"auto: a table with a network error of {table.tolerance:g} {measured}")
        if holds:
            return Tier("table", table, (*notes, *table.explain(work)))
    return Tier("float32", notes=(*notes, "auto: float32, for no faster tier holds"))


def _compared(given: np.ndarray, exact: np.ndarray, tolerance: float) -> tuple[bool, str]:
    """Whether samples hold beside those of float32, and what was measured."""
    from diffusion_fast.metrics import sliced_wasserstein  # imports solvers of transport, and few need it

    deviation = np.sqrt(np.square(exact - exact.mean(axis=0)).mean())
    error = float(np.sqrt(np.square(given - exact).mean()) / max(deviation, 1e-30))
    distance = sliced_wasserstein(given, exact, seed=SEED)
    holds = error <= tolerance and distance.value <= distance.floor
    return holds, (
        f"{'holds' if holds else 'does not hold'}: {len(exact):,} samples differ by {error:.2g} rms of their "
        f"deviation (tolerance {tolerance:g}), sliced Wasserstein {distance.value:.2g} beside a sampling "
        f"floor of {distance.floor:.2g}"
    )


def _pilot(plan: Plan, table: NetworkTable | None, threads: int) -> np.ndarray:
    """(PILOT, dim) float64, all classes in turn."""
    out = np.empty((PILOT, plan.dim), np.float32)
    labels = (np.arange(PILOT) % max(plan.n_classes, 1)).astype(np.int32)
    program: Any = _cpu.Program(plan.to_bytes())
    program.run(
        out.ctypes.data,
        PILOT,
        0,
        SEED,
        threads,
        labels=labels.ctypes.data if plan.n_classes else 0,
        tables=None if table is None else table.packed(),
    )
    return out.astype(np.float64)
