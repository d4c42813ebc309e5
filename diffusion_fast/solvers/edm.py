"""The stochastic sampler of Karras et al. 2022, "Elucidating the Design Space", Algorithm 2."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from diffusion_fast import _checks
from diffusion_fast.sigma_schedules import SigmaSchedule
from diffusion_fast.solvers.chain import Chain, M, X
from diffusion_fast.solvers.table import StepTable

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from diffusion_fast.solvers.levels import GridOptions


def edm(
    schedule: Any,
    *,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
    solver_order: int = 2,
    **options: Unpack[GridOptions],
) -> StepTable:
    """Raise the level from t to t_hat = (1 + gamma) t by noise, then a step of Heun from there.

    s_churn: gamma = min(s_churn / n, sqrt(2) - 1) for levels in [s_tmin, s_tmax], else 0. s_noise: deviation
    of that noise. solver_order: 2, or 1 for a step of Euler. The noise is added by the row before, and the
    first row, which scales x, adds the first. options: see `levels.GridOptions`.

    Raises ValueError or TypeError naming the argument.
    """
    s_churn = _checks.real("s_churn", s_churn, 0.0)
    s_tmin = _checks.real("s_tmin", s_tmin, 0.0)
    s_tmax = s_tmax if s_tmax == math.inf else _checks.real("s_tmax", s_tmax, s_tmin)
    s_noise = _checks.real("s_noise", s_noise, 0.0)
    order = _checks.integer("solver_order", solver_order, 1, 2)
    chain = Chain("edm", schedule, options, kinds=(SigmaSchedule,))
    for now, after in chain.steps:
        t, t_next = now.sigma, after.sigma
        gamma = min(s_churn / len(chain.steps), math.sqrt(2) - 1) if s_tmin <= t <= s_tmax else 0.0
        hat = chain.grid.at(t + gamma * t)
        chain.stir(s_noise * t * math.sqrt(gamma * (2 + gamma)))  # sqrt(t_hat^2 - t^2)
        x, step = X, t_next - hat.sigma
        d = (x - M) / hat.sigma
        second = order == 2 and t_next > 0
        chain.add(hat, x + step * d, push=second)
        if second:
            x, d = chain.before(x), chain.before(d)
            d_next = (X - M) / t_next
            chain.add(after, x + step * (0.5 * d + 0.5 * d_next))
    return chain.table()
