"""Solvers: functions from a schedule and options to a StepTable, which any backend runs.

To add one, write the function (keyword options with defaults, returning a StepTable) and add its line to
SOLVERS. `chain` has what a solver of several stages or with a history needs.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from diffusion_fast import _checks
from diffusion_fast.solvers.ddim import ddim
from diffusion_fast.solvers.ddpm import ddpm
from diffusion_fast.solvers.dpmpp import dpmpp_2m, dpmpp_2m_sde, dpmpp_2s_ancestral, dpmpp_3m_sde
from diffusion_fast.solvers.edm import edm
from diffusion_fast.solvers.euler import euler, euler_ancestral
from diffusion_fast.solvers.flow import flow_euler, flow_heun
from diffusion_fast.solvers.heun import dpm_solver_2, heun
from diffusion_fast.solvers.langevin import annealed_langevin, langevin
from diffusion_fast.solvers.levels import GRID_OPTIONS
from diffusion_fast.solvers.multistep import lms, plms
from diffusion_fast.solvers.table import COEFFICIENTS, EVAL, PUSH, ROW_DTYPE, TERM_BITS, StepRow, StepTable
from diffusion_fast.solvers.unipc import unipc

__all__ = [
    "ALIASES",
    "COEFFICIENTS",
    "EVAL",
    "PUSH",
    "ROW_DTYPE",
    "SOLVERS",
    "TERM_BITS",
    "StepRow",
    "StepTable",
    "annealed_langevin",
    "ddim",
    "ddpm",
    "dpm_solver_2",
    "dpmpp_2m",
    "dpmpp_2m_sde",
    "dpmpp_2s_ancestral",
    "dpmpp_3m_sde",
    "edm",
    "euler",
    "euler_ancestral",
    "flow_euler",
    "flow_heun",
    "get",
    "heun",
    "langevin",
    "lms",
    "options_of",
    "plms",
    "solve",
    "unipc",
]

SOLVERS: dict[str, Callable[..., StepTable]] = {
    "ddpm": ddpm,
    "ddim": ddim,
    "euler": euler,
    "euler_ancestral": euler_ancestral,
    "heun": heun,
    "dpm_solver_2": dpm_solver_2,
    "dpmpp_2m": dpmpp_2m,
    "dpmpp_2s_ancestral": dpmpp_2s_ancestral,
    "dpmpp_2m_sde": dpmpp_2m_sde,
    "dpmpp_3m_sde": dpmpp_3m_sde,
    "unipc": unipc,
    "plms": plms,
    "lms": lms,
    "edm": edm,
    "flow_euler": flow_euler,
    "flow_heun": flow_heun,
    "langevin": langevin,
    "annealed_langevin": annealed_langevin,
}
ALIASES = {"pndm": "plms"}  # with skip_prk_steps


def get(name: str) -> Callable[..., StepTable]:
    """The solver called `name`; ValueError with the nearest name where there is none."""
    name = ALIASES.get(name, name) if isinstance(name, str) else name
    return SOLVERS[_checks.choice("solver", name, SOLVERS)]


def options_of(name: str) -> list[str]:
    """The options that the solver called `name` takes. Raises what `get` does."""
    parameters = inspect.signature(get(name)).parameters.values()
    named = [p.name for p in parameters if p.kind is p.KEYWORD_ONLY]
    shared = any(p.kind is p.VAR_KEYWORD for p in parameters)
    return [*named, *GRID_OPTIONS] if shared else named


def solve(name: str, schedule: Any, **options: Any) -> StepTable:
    """The table of the solver called `name`; ValueError for an option it lacks, with the nearest one."""
    solver, accepted = get(name), options_of(name)
    for key in options:
        _checks.choice(f"options of solver {name!r}", key, accepted)
    return solver(schedule, **options)
