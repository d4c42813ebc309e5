"""DPM-Solver++ (Lu et al. 2022b): exponential integrators for x0, deterministic and with noise.

lambda = log(signal / noise) and h is its step. To the data h is infinite, and each method ends with the step
of first order, which is x0 itself.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from diffusion_fast import _checks
from diffusion_fast.solvers.chain import H1, H2, NOTHING, Chain, M, Terms, X, Z
from diffusion_fast.solvers.euler import ancestral, check_noise
from diffusion_fast.solvers.levels import Level
from diffusion_fast.solvers.phi import phi
from diffusion_fast.solvers.table import StepTable

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from diffusion_fast.solvers.levels import GridOptions

SOLVER_TYPES = ("midpoint", "heun")


def dpmpp_2m(schedule: Any, *, solver_type: str = "midpoint", **options: Unpack[GridOptions]) -> StepTable:
    """DPM-Solver++(2M), Algorithm 2 of Lu et al. 2022b: two-step, one evaluation a row.

    x_next = (noise_next / noise) x - signal_next (e^-h - 1) D, D = m + h / (2 h_before) (m - m_before).
    solver_type: "midpoint" is the paper's; "heun" weighs the difference by the exact integral instead of its
    leading order. options: see `levels.GridOptions`.

    Raises ValueError or TypeError naming the argument.
    """
    _checks.choice("solver_type", solver_type, SOLVER_TYPES)
    chain = Chain("dpmpp_2m", schedule, options)
    for i, (now, _) in enumerate(chain.steps):
        chain.add(now, multistep(chain.steps, i, min(i + 1, 2), solver_type=solver_type), push=True)
    return chain.table()


def dpmpp_2s_ancestral(
    schedule: Any, *, eta: float = 1.0, s_noise: float = 1.0, **options: Unpack[GridOptions]
) -> StepTable:
    """DPM-Solver++(2S), Algorithm 1 of Lu et al. 2022b with r = 1/2, down to sigma_down; then noise.

    u = e^(-h/2) x - (e^(-h/2) - 1) m(x), x_down = e^-h x - (e^-h - 1) m(u) for x / signal. Two rows a step,
    2 n - 1 in all. eta, s_noise: as for `euler_ancestral`. options: see `levels.GridOptions`.

    Raises ValueError or TypeError naming the argument.
    """
    eta, s_noise = check_noise(eta, s_noise)
    chain = Chain("dpmpp_2s_ancestral", schedule, options, needs_signal=True)
    for now, after in chain.steps:
        down, up = ancestral(now, after, eta)
        x, noise = X / now.signal, s_noise * up * Z
        if down == 0:  # the data, or a step that forgets x
            chain.add(now, after.signal * (M + noise))
            continue
        h = math.log(now.sigma / down)
        mid = chain.grid.at(math.sqrt(now.sigma * down))
        chain.add(now, mid.signal * (math.exp(-h / 2) * x - math.expm1(-h / 2) * M), push=True)
        x = chain.before(x)
        chain.add(mid, after.signal * (math.exp(-h) * x - math.expm1(-h) * M + noise))
    return chain.table()


def dpmpp_2m_sde(
    schedule: Any,
    *,
    eta: float = 1.0,
    s_noise: float = 1.0,
    solver_type: str = "midpoint",
    **options: Unpack[GridOptions],
) -> StepTable:
    """SDE-DPM-Solver++(2M): `dpmpp_2m` for the reverse SDE with eta times its noise.

    eta: 0 is `dpmpp_2m`, 1 the reverse SDE. >= 0. s_noise: factor of the noise drawn. solver_type: as for
    `dpmpp_2m`. options: see `levels.GridOptions`.

    Raises ValueError or TypeError naming the argument.
    """
    eta, s_noise = check_noise(eta, s_noise)
    _checks.choice("solver_type", solver_type, SOLVER_TYPES)
    chain = Chain("dpmpp_2m_sde", schedule, options)
    for i, (now, _) in enumerate(chain.steps):
        chain.add(now, multistep(chain.steps, i, min(i + 1, 2), eta, s_noise, solver_type), push=True)
    return chain.table()


def dpmpp_3m_sde(
    schedule: Any, *, eta: float = 1.0, s_noise: float = 1.0, **options: Unpack[GridOptions]
) -> StepTable:
    """The three-step method of the same family: x0 as a polynomial of degree 2 in lambda.

    eta, s_noise: as for `dpmpp_2m_sde`. The first two rows are of lower order. The weight of the curvature,
    z phi_3(-z), is that of k-diffusion and half the exact integral's, so that with eta = 0 the order is 2;
    kept, for it is what is in use. options: see `levels.GridOptions`.

    Raises ValueError or TypeError naming the argument.
    """
    eta, s_noise = check_noise(eta, s_noise)
    chain = Chain("dpmpp_3m_sde", schedule, options)
    for i, (now, _) in enumerate(chain.steps):
        chain.add(now, multistep(chain.steps, i, min(i + 1, 3), eta, s_noise, "heun"), push=True)
    return chain.table()


Steps = Sequence[tuple[Level, Level]]  # a level and the next, for each row


def multistep(
    steps: Steps, i: int, order: int, eta: float = 0.0, s_noise: float = 1.0, solver_type: str = "midpoint"
) -> Terms:
    """The new x of row i of the multistep family, of order 1 to 3; to the data the order is 1.

    eta = 0 is the deterministic method. solver_type counts in order 2.
    """
    now, after = steps[i]
    h = after.lam - now.lam
    x = _sde_first_order(now, after, eta, s_noise)
    if order == 1 or not math.isfinite(h):
        return x
    z = (1 + eta) * h
    if order == 2:
        return x + after.signal * _second_order(z, solver_type) * slope(steps, i, h)
    first, second = derivatives(steps, i, h)
    return x + after.signal * (z * phi(2, -z) * first + z * phi(3, -z) * second)


def _sde_first_order(now: Level, after: Level, eta: float, s_noise: float) -> Terms:
    """(noise_next / noise) e^(-eta h) x + signal_next (1 - e^(-(1 + eta) h)) m + noise: exact for constant
    x0."""
    h = after.lam - now.lam
    if not math.isfinite(h):  # to the data, or from pure noise where x0 is all that counts
        kept, fresh = (1.0, 0.0) if eta == 0 else (0.0, 1.0)
        return after.noise / now.noise * kept * X + after.signal * M + after.noise * fresh * s_noise * Z
    kept = math.exp(-eta * h)
    drawn = math.sqrt(-math.expm1(-2 * eta * h))
    x = after.noise / now.noise * kept * X - after.signal * math.expm1(-(1 + eta) * h) * M
    return x + after.noise * drawn * s_noise * Z


def derivatives(steps: Steps, i: int, h: float) -> tuple[Terms, Terms]:
    """h dm / dlambda and h^2 / 2 d2m / dlambda2 at level i by Newton's divided differences of the last three
    predictions."""
    first = slope(steps, i, h)
    r0, r1 = (_lag(steps, i - k, h) for k in (0, 1))
    earlier = (H1 - H2) / r1 if math.isfinite(r1) else NOTHING
    second = (first - earlier) / (r0 + r1)
    return first + (r0 * second if math.isfinite(r1) else NOTHING), second


def slope(steps: Steps, i: int, h: float) -> Terms:
    """h dm / dlambda from the last two predictions; nothing where the earlier is infinitely far."""
    lag = _lag(steps, i, h)
    return (M - H1) / lag if math.isfinite(lag) else NOTHING


def _lag(steps: Steps, i: int, h: float) -> float:
    """The step before level i, in units of h; inf where it came from pure noise."""
    before, now = steps[i - 1]
    return (now.lam - before.lam) / h


def _second_order(z: float, solver_type: str) -> float:
    """The weight of h dm / dlambda: the integral z phi_2(-z), or half the weight of m."""
    return z * phi(2, -z) if solver_type == "heun" else -math.expm1(-z) / 2
