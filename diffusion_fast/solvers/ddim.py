"""Song et al. 2020, "Denoising Diffusion Implicit Models"."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffusion_fast import _checks
from diffusion_fast.schedules import NoiseSchedule
from diffusion_fast.solvers.levels import Levels, check_clip
from diffusion_fast.solvers.table import StepTable


def ddim(
    schedule: NoiseSchedule,
    *,
    steps: int | None = None,
    spacing: str = "leading",
    timesteps: Sequence[int] | np.ndarray | None = None,
    sigmas: Sequence[float] | np.ndarray | None = None,
    fractional_time: bool = False,
    eta: float = 0.0,
    prediction_type: str = "epsilon",
    clip: float | None = None,
) -> StepTable:
    """x_prev = sqrt(abar_prev) x0 + sqrt(1 - abar_prev - sigma^2) epsilon + sigma z (eq. 12).

    eta: sigma = eta times the posterior deviation of DDPM (eq. 16); 0 is deterministic, 1 is `ddpm` with
        variance "posterior". In [0, 1].
    steps, spacing, timesteps, sigmas, fractional_time, prediction_type, clip: as for `ddpm`. With clip, x0 is
        clamped and epsilon is the one predicted, not recomputed from the clamped x0.

    Raises ValueError or TypeError naming the argument; an epsilon prediction at abar = 0 is refused.
    """
    eta = _checks.real("eta", eta, 0.0, 1.0)
    bound = check_clip(clip)
    q = Levels.of(schedule, steps, spacing, timesteps, None, sigmas, fractional_time)
    x0, epsilon = q.predictions(prediction_type)

    direction, s = split_noise(q, eta)
    a, b, e = direction * epsilon.x, q.sqrt_abar_prev, direction * epsilon.F

    if clip is None:  # x0 is affine in x and F
        return StepTable.from_columns("ddim", q.t, a=a + b * x0.x, e=e + b * x0.F, s=s, **q.level)
    columns = {"p_x": x0.x, "p_F": x0.F, "clip": bound, "a": a, "b": b, "e": e, "s": s}
    return StepTable.from_columns("ddim", q.t, **columns, **q.level)


def split_noise(q: Levels, eta: float) -> tuple[np.ndarray, np.ndarray]:
    """The weights of the predicted epsilon and of new noise: together the deviation at the next level."""
    s = eta * np.sqrt(q.beta * q.var_prev / q.var)  # eq. 16
    # sqrt(1 - abar_prev - sigma^2), without the cancellation
    return np.sqrt(q.var_prev * (1.0 - eta**2 * q.beta / q.var)), s
