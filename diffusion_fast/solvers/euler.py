"""Euler's method on the probability-flow ODE, and its ancestral form.

With x = signal (x0 + sigma epsilon) the ODE is d(x / signal) = epsilon d sigma (Karras et al. 2022, eq. 3 and
appendix B), so that a step of Euler replaces sigma by the next one and keeps x0 and epsilon: DDIM.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from diffusion_fast import _checks
from diffusion_fast.solvers.chain import Chain, M, Terms, X, Z
from diffusion_fast.solvers.levels import Level
from diffusion_fast.solvers.table import StepTable

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from diffusion_fast.solvers.levels import GridOptions


def euler(schedule: Any, **options: Unpack[GridOptions]) -> StepTable:
    """x_next = signal_next x0 + noise_next epsilon.

    options: see `levels.GridOptions`. With clip, epsilon is that of the clamped x0 (`ddim` keeps the one
    predicted).

    Raises ValueError or TypeError naming the argument.
    """
    chain = Chain("euler", schedule, options)
    for now, after in chain.steps:
        chain.add(now, after.signal * M + after.noise * epsilon_of(now))
    return chain.table()


def euler_ancestral(
    schedule: Any, *, eta: float = 1.0, s_noise: float = 1.0, **options: Unpack[GridOptions]
) -> StepTable:
    """Euler's step to a level below the next one, then noise up to it (Song et al. 2021, appendix F).

    eta: share of the noise that is drawn anew; 0 is `euler`, 1 has the variance of the posterior. >= 0.
    s_noise: factor of the noise drawn. options: see `levels.GridOptions`.

    Raises ValueError or TypeError naming the argument.
    """
    eta, s_noise = check_noise(eta, s_noise)
    chain = Chain("euler_ancestral", schedule, options)
    for now, after in chain.steps:
        down, up = ancestral(now, after, eta)
        x = M + down * epsilon_of(now) + s_noise * up * Z
        chain.add(now, after.signal * x)
    return chain.table()


def epsilon_of(now: Level) -> Terms:
    """epsilon from x and m = x0."""
    return (X - now.signal * M) / now.noise


def ancestral(now: Level, after: Level, eta: float) -> tuple[float, float]:
    """sigma_down and sigma_up with sigma_down^2 + sigma_up^2 = sigma_next^2; for eta = 1, sigma_up^2 is the
    variance sigma_next^2 (sigma^2 - sigma_next^2) / sigma^2 of q(x_next | x, x0)."""
    share = after.sigma / now.sigma
    up = min(1.0, eta * math.sqrt(1 - share**2))
    return after.sigma * math.sqrt(1 - up**2), after.sigma * up


def check_noise(eta: Any, s_noise: Any) -> tuple[float, float]:
    return _checks.real("eta", eta, 0.0), _checks.real("s_noise", s_noise, 0.0)
