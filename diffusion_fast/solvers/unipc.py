"""UniPC (Zhao et al. 2023): a predictor and a corrector of any order that share each evaluation."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from diffusion_fast import _checks
from diffusion_fast.solvers.chain import H1, H2, H3, NOTHING, Chain, M, Terms, X
from diffusion_fast.solvers.phi import phi
from diffusion_fast.solvers.table import StepTable

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from diffusion_fast.solvers.levels import GridOptions


def unipc(
    schedule: Any,
    *,
    solver_order: int = 2,
    solver_type: str = "bh2",
    lower_order_final: bool = True,
    **options: Unpack[GridOptions],
) -> StepTable:
    """UniPC-p for x0: UniC-p corrects x by the prediction made at it, UniP-p goes on; one evaluation a row.

    x_next = (noise_next / noise) x - signal_next ((e^-h - 1) m + B(h) sum_k rho_k (m_k - m) / r_k), where
    the corrector's sum also holds the prediction at x_next itself. The last evaluation is not corrected.

    solver_order: p, 1 to 3; p = 2 and p = 3 are what is in use. solver_type: "bh1" for B(h) = -h, "bh2" for
    B(h) = e^-h - 1. lower_order_final: the order falls to 1 at the end (the very last step is of order 1 in
    any case). options: see `levels.GridOptions`.

    Raises ValueError or TypeError naming the argument.
    """
    order = _checks.integer("solver_order", solver_order, 1, 3)
    _checks.choice("solver_type", solver_type, ("bh1", "bh2"))
    _checks.flag("lower_order_final", lower_order_final)
    chain = Chain("unipc", schedule, options, needs_signal=True)
    n = len(chain.steps)
    lam = [now.lam for now, _ in chain.steps] + [math.inf]
    p, guess = 0, NOTHING  # of the step that led to this row
    for i, (now, after) in enumerate(chain.steps):
        x = X
        if i:  # UniC-p shares all but the sum with UniP-p, so the new sum takes the place of the old
            earlier = {lam[i - 2]: H2, lam[i - 3]: H3} if i > 1 else {}
            nodes = dict(list(earlier.items())[: p - 1]) | {lam[i]: M}
            x = X - chain.before(guess) + now.signal * differences(solver_type, lam[i - 1], lam[i], H1, nodes)
        p = min(order, i + 1, n - i if lower_order_final or i == n - 1 else order)
        nodes = dict(list({lam[i - 1]: H1, lam[i - 2]: H2}.items())[: p - 1])
        guess = after.signal * differences(solver_type, lam[i], lam[i + 1], M, nodes)
        x = after.noise / now.noise * x - after.signal * math.expm1(lam[i] - lam[i + 1]) * M + guess
        chain.add(now, x, push=True)
    return chain.table()


def differences(solver_type: str, start: float, end: float, m: Terms, nodes: dict[float, Terms]) -> Terms:
    """-B(h) sum_k rho_k (m_k - m) / r_k over predictions m_k at lambda_k = start + r_k h.

    sum_k rho_k r_k^(j-1) = j! (-h) phi_{j+1}(-h) / B(h) for j = 1 .. len(nodes), the conditions of order; a
    single node takes 1/2, as the authors do.
    """
    if not nodes:
        return NOTHING
    h = end - start
    B = -h if solver_type == "bh1" else math.expm1(-h)
    r = np.array([(lam - start) / h for lam in nodes])
    j = np.arange(len(r))
    target = [math.factorial(k + 1) * -h * phi(k + 2, -h) / B for k in j.tolist()]
    rho = [0.5] if len(r) == 1 else np.linalg.solve(r ** j[:, None], target)
    total = NOTHING
    for weight, r_k, m_k in zip(rho, r, nodes.values(), strict=True):
        total += weight / r_k * (m_k - m)
    return -B * total
