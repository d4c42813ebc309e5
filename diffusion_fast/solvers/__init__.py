"""Solvers: functions from a schedule and options to a StepTable, which any backend runs.

To add one, write the function (keyword options with defaults, returning a StepTable) and add its line to
SOLVERS.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from diffusion_fast import _checks
from diffusion_fast.schedules import NoiseSchedule
from diffusion_fast.solvers.ddim import ddim
from diffusion_fast.solvers.ddpm import ddpm
from diffusion_fast.solvers.table import COEFFICIENTS, EVAL, PUSH, ROW_DTYPE, TERM_BITS, StepRow, StepTable

__all__ = [
    "COEFFICIENTS",
    "EVAL",
    "PUSH",
    "ROW_DTYPE",
    "SOLVERS",
    "TERM_BITS",
    "StepRow",
    "StepTable",
    "ddim",
    "ddpm",
    "get",
    "solve",
]

SOLVERS: dict[str, Callable[..., StepTable]] = {
    "ddpm": ddpm,
    "ddim": ddim,
}


def get(name: str) -> Callable[..., StepTable]:
    """The solver called `name`; ValueError with the nearest name where there is none."""
    return SOLVERS[_checks.choice("solver", name, SOLVERS)]


def solve(name: str, schedule: NoiseSchedule, **options: Any) -> StepTable:
    """The table of the solver called `name`; ValueError for an option it lacks, with the nearest one."""
    solver = get(name)
    accepted = [key for key in inspect.signature(solver).parameters if key != "schedule"]
    for key in options:
        _checks.choice(f"options of solver {name!r}", key, accepted)
    return solver(schedule, **options)
