"""Linear multistep methods on epsilon: Adams-Bashforth in sigma, and the pseudo method of PNDM."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from diffusion_fast import _checks
from diffusion_fast.schedules import NoiseSchedule
from diffusion_fast.solvers.chain import H1, H2, H3, NOTHING, Chain, M, X
from diffusion_fast.solvers.table import StepTable

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from diffusion_fast.solvers.levels import GridOptions

# Weights of epsilon now and one, two, three rows ago for equal steps: Adams-Bashforth
_ADAMS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))
_PAST = (M, H1, H2, H3)


def plms(schedule: Any, **options: Unpack[GridOptions]) -> StepTable:
    """Liu et al. 2022, PNDM with the pseudo linear multi-step method from the start (skip_prk_steps).

    x goes from level to level as in DDIM (their transfer function phi), along epsilon' = (55 epsilon - 59
    epsilon_1 + 37 epsilon_2 - 9 epsilon_3) / 24, with fewer terms in the first rows. The first step is Heun's
    and takes two rows, n + 1 in all. The weights are those of equal steps. options: see `levels.GridOptions`;
    clip is not accepted.

    Raises ValueError or TypeError naming the argument.
    """
    chain = Chain("plms", schedule, options, m="epsilon", kinds=(NoiseSchedule,), needs_signal=True)
    for i, (now, after) in enumerate(chain.steps):
        x, step = X / now.signal, after.sigma - now.sigma
        slope = NOTHING
        for weight, epsilon in zip(_ADAMS[min(i, 3)], _PAST, strict=False):
            slope += weight * epsilon
        chain.add(now, after.signal * (x + step * slope), push=True)
        if i == 0 and len(chain.steps) > 1:
            x = chain.before(x)
            chain.add(after, after.signal * (x + step * (0.5 * M + 0.5 * H1)))
    return chain.table()


def lms(schedule: Any, *, solver_order: int = 4, **options: Unpack[GridOptions]) -> StepTable:
    """Adams-Bashforth for d(x / signal) = epsilon d sigma, with the weights of the actual sigmas.

    solver_order: how many evaluations the polynomial goes through, 1 to 4; fewer in the first rows. options:
    see `levels.GridOptions`; clip is not accepted.

    Raises ValueError or TypeError naming the argument.
    """
    order = _checks.integer("solver_order", solver_order, 1, 4)
    chain = Chain("lms", schedule, options, m="epsilon", needs_signal=True)
    sigmas = [level.sigma for level in chain.grid.levels]
    for i, (now, after) in enumerate(chain.steps):
        x = X / now.signal
        nodes = sigmas[max(i + 1 - order, 0) : i + 1][::-1]
        for weight, epsilon in zip(_lagrange_integrals(nodes, sigmas[i], sigmas[i + 1]), _PAST, strict=False):
            x += weight * epsilon
        chain.add(now, after.signal * x, push=True)
    return chain.table()


def _lagrange_integrals(nodes: list[float], start: float, end: float) -> list[float]:
    """Integrals from start to end of the polynomials that are 1 at one node and 0 at the others."""
    points, weights = np.polynomial.legendre.leggauss(2)  # exact up to degree 3
    at = start + (end - start) * (points + 1) / 2
    integrals = []
    for k, node in enumerate(nodes):
        others = np.array(nodes[:k] + nodes[k + 1 :])
        values = np.prod((at[:, None] - others) / (node - others), axis=1)
        integrals.append(float((weights * values).sum() * (end - start) / 2))
    return integrals
