"""Methods of two stages per step: Heun's, and the midpoint in log(sigma)."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from diffusion_fast.solvers.chain import Chain, M, X
from diffusion_fast.solvers.table import StepTable

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from diffusion_fast.solvers.levels import GridOptions


def heun(schedule: Any, **options: Unpack[GridOptions]) -> StepTable:
    """Karras et al. 2022, Algorithm 1: trapezoidal rule with an Euler predictor; the last step is Euler's.

    Two rows a step, 2 n - 1 in all. options: see `levels.GridOptions`.

    Raises ValueError or TypeError naming the argument.
    """
    chain = Chain("heun", schedule, options, needs_signal=True)
    for now, after in chain.steps:
        x = X / now.signal
        d = (x - M) / now.sigma
        step = after.sigma - now.sigma
        chain.add(now, after.signal * (x + step * d), push=after.sigma > 0)
        if after.sigma > 0:
            x, d = chain.before(x), chain.before(d)
            d_next = (X / after.signal - M) / after.sigma
            chain.add(after, after.signal * (x + step * (0.5 * d + 0.5 * d_next)))
    return chain.table()


def dpm_solver_2(schedule: Any, **options: Unpack[GridOptions]) -> StepTable:
    """Lu et al. 2022, DPM-Solver-2 (Algorithm 1, r1 = 1/2): the slope at the middle of log(sigma).

    u = x + (sigma_mid - sigma) epsilon(x), x_next = x + (sigma_next - sigma) epsilon(u) for x / signal; the
    last step is Euler's. Two rows a step, 2 n - 1 in all. options: see `levels.GridOptions`.

    Raises ValueError or TypeError naming the argument.
    """
    chain = Chain("dpm_solver_2", schedule, options, needs_signal=True)
    for now, after in chain.steps:
        x = X / now.signal
        d = (x - M) / now.sigma
        if after.sigma == 0:
            chain.add(now, x - now.sigma * d)
            break
        mid = chain.grid.at(math.sqrt(now.sigma * after.sigma))
        chain.add(now, mid.signal * (x + (mid.sigma - now.sigma) * d), push=True)
        x = chain.before(x)
        d_mid = (X / mid.signal - M) / mid.sigma
        chain.add(mid, after.signal * (x + (after.sigma - now.sigma) * d_mid))
    return chain.table()
