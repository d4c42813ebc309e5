"""Rectified flow (Liu et al. 2023, Lipman et al. 2023): dx = v dt from t = 1, noise, to t = 0, the data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from diffusion_fast.sigma_schedules import FlowSchedule
from diffusion_fast.solvers.chain import Chain, M, X
from diffusion_fast.solvers.table import StepTable

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from diffusion_fast.solvers.levels import GridOptions


def flow_euler(schedule: Any, **options: Unpack[GridOptions]) -> StepTable:
    """x_next = x + (t_next - t) v, v = (x - x0) / t. options: see `levels.GridOptions`.

    Raises ValueError or TypeError naming the argument.
    """
    chain = Chain("flow_euler", schedule, options, kinds=(FlowSchedule,))
    for now, after in chain.steps:
        chain.add(now, X + (after.noise - now.noise) * ((X - M) / now.noise))
    return chain.table()


def flow_heun(schedule: Any, **options: Unpack[GridOptions]) -> StepTable:
    """x_next = x + (t_next - t) (v + v_next) / 2 with Euler's x for v_next; the last step is Euler's.

    Two rows a step, 2 n - 1 in all. options: see `levels.GridOptions`; with clip the history is of x0, else
    of v itself.

    Raises ValueError or TypeError naming the argument.
    """
    clipped = options.get("clip") is not None
    m = "x0" if clipped else "velocity"
    chain = Chain("flow_heun", schedule, options, m=m, kinds=(FlowSchedule,))
    for now, after in chain.steps:
        x, step = X, after.noise - now.noise
        v = (X - M) / now.noise if clipped else M
        chain.add(now, x + step * v, push=after.noise > 0)
        if after.noise > 0:
            x, v = chain.before(x), chain.before(v)
            v_next = (X - M) / after.noise if clipped else M
            chain.add(after, x + step * (0.5 * v + 0.5 * v_next))
    return chain.table()
