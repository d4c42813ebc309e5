"""Langevin dynamics at one noise level, and annealed over all of them."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from diffusion_fast import _checks
from diffusion_fast.schedules import NoiseSchedule
from diffusion_fast.sigma_schedules import SigmaSchedule
from diffusion_fast.solvers.chain import Chain, M, Terms, X, Z
from diffusion_fast.solvers.levels import Level
from diffusion_fast.solvers.table import MAX_ROWS, StepTable

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from diffusion_fast.solvers.levels import GridOptions


def langevin(
    schedule: Any,
    *,
    steps: int | None = 100,
    step_size: float | None = None,
    level: int | None = None,
    start_scale: float = 1.0,
    last_noise: bool = True,
    prediction_type: str | None = None,
    clip: float | None = None,
) -> StepTable:
    """x <- x + step_size score(x) + sqrt(2 step_size) z, `steps` times (100 for None) at one noise level.

    Samples the data with the noise of that level still in it. step_size: has no default. level: the timestep
    of a NoiseSchedule or the position in a SigmaSchedule; None for the one of least noise. start_scale: the
    chain starts from start_scale N(0, I). last_noise: whether the last row adds noise too. prediction_type:
    see `levels.GridOptions`. clip: not accepted.

    Raises ValueError or TypeError naming the argument.
    """
    count = 100 if steps is None else _checks.integer("steps", steps, 1, MAX_ROWS - 1)
    eta = _step_size(step_size)
    scale = _checks.real("start_scale", start_scale, 0.0)
    _checks.flag("last_noise", last_noise)
    chain = Chain(
        "langevin",
        schedule,
        {"prediction_type": prediction_type, "clip": clip},
        m="epsilon",
        kinds=(NoiseSchedule, SigmaSchedule),
        start=scale,
    )
    now, _ = chain.steps[-1]
    if level is not None:
        at = _checks.integer("level", level, 0, len(schedule) - 1)
        now, _ = chain.steps[at if isinstance(schedule, SigmaSchedule) else -1 - at]
    for i in range(count):
        x = X + eta * _score(now)
        if last_noise or i < count - 1:
            x += math.sqrt(2 * eta) * Z
        chain.add(now, x)
    return chain.table()


def annealed_langevin(
    schedule: Any,
    *,
    steps_per_level: int = 100,
    step_size: float = 2e-5,
    step_rule: str = "scaled",
    denoise: bool = False,
    **options: Unpack[GridOptions],
) -> StepTable:
    """Song & Ermon 2019, Algorithm 1: x <- x + alpha_i / 2 score(x, sigma_i) + sqrt(alpha_i) z.

    steps_per_level: T. step_size: epsilon; from 4 sigma_L^2 up, chains diverge where the data are narrow.
    step_rule: "scaled" for alpha_i = epsilon sigma_i^2 / sigma_L^2, "fixed" for alpha_i = epsilon. denoise:
    one last row to x0 at the last level (Jolicoeur-Martineau et al. 2021). The chain starts from
    sigma_1 N(0, I). options: see `levels.GridOptions`; clip is not accepted.

    Raises ValueError or TypeError naming the argument.
    """
    count = _checks.integer("steps_per_level", steps_per_level, 1, MAX_ROWS)
    epsilon = _step_size(step_size)
    _checks.choice("step_rule", step_rule, ("scaled", "fixed"))
    _checks.flag("denoise", denoise)
    chain = Chain("annealed_langevin", schedule, options, m="epsilon", kinds=(SigmaSchedule,))
    if count * len(chain.steps) > MAX_ROWS - 2:
        accepted = f"at most {(MAX_ROWS - 2) // len(chain.steps)} with {len(chain.steps)} levels"
        raise _checks.bad_value("steps_per_level", steps_per_level, accepted)
    last, _ = chain.steps[-1]
    for now, _ in chain.steps:
        alpha = epsilon * (now.sigma / last.sigma) ** 2 if step_rule == "scaled" else epsilon
        for _ in range(count):
            chain.add(now, X + alpha / 2 * _score(now) + math.sqrt(alpha) * Z)
    if denoise:
        chain.add(last, X - last.sigma * M)
    return chain.table()


def _score(now: Level) -> Terms:
    """The gradient of log q(x), from m = epsilon."""
    return -1 / now.noise * M


def _step_size(value: Any) -> float:
    return _checks.real("step_size", value, 0.0, 1e12, open_low=True)
