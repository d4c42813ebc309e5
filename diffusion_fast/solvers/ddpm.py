"""Ancestral sampling of Ho et al. 2020, "Denoising Diffusion Probabilistic Models", Algorithm 2."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from diffusion_fast import _checks
from diffusion_fast.schedules import NoiseSchedule
from diffusion_fast.solvers.levels import Levels, check_clip
from diffusion_fast.solvers.table import StepTable


def ddpm(
    schedule: NoiseSchedule,
    *,
    steps: int | None = None,
    spacing: str = "leading",
    timesteps: Sequence[int] | np.ndarray | None = None,
    sigmas: Sequence[float] | np.ndarray | None = None,
    fractional_time: bool = False,
    variance: str = "posterior",
    last_noise: bool = False,
    stop: int | None = None,
    prediction_type: str = "epsilon",
    clip: float | None = None,
) -> StepTable:
    """x_prev = mean of q(x_prev | x_t, x0) at the predicted x0, plus sigma z (eqs. 7 and 11).

    steps, spacing, timesteps, sigmas, fractional_time: which levels are visited, see `levels.GridOptions`;
        with fewer than T, beta is the effective 1 - abar_t / abar_prev of the stride.
    variance: "beta" for sigma^2 = beta_t, "posterior" for beta_t (1 - abar_prev) / (1 - abar_t)
        (section 3.2: the two extreme choices, exact for x0 ~ N(0, I) and for a single point); "none" for the
        mean alone, a function of x_T. (`ddim` is the one that keeps the law.)
    last_noise: whether the last row adds noise too. (Not with variance "none", nor with "posterior" and
        stop=None: that variance is 0 where abar_prev = 1.)
    stop: the timestep whose noise level the chain ends at, below the last one that runs; None ends at the
        data, abar_prev = 1.
    prediction_type: what the network's output means, "epsilon", "sample" (x0), "v_prediction" or "score".
    clip: bound of |x0| > 0, in the units of the data; None for no clamp.

    Raises ValueError or TypeError naming the argument; an epsilon prediction at abar = 0 is refused.
    """
    _checks.choice("variance", variance, ("beta", "posterior", "none"))
    _checks.flag("last_noise", last_noise)
    if last_noise and variance == "none":
        raise _checks.bad_value("last_noise", last_noise, "False with variance='none'")
    if last_noise and variance == "posterior" and stop is None:
        accepted = "False with variance='posterior' and stop=None, where that variance is 0"
        raise _checks.bad_value("last_noise", last_noise, accepted)
    bound = check_clip(clip)
    q = Levels.of(schedule, steps, spacing, timesteps, stop, sigmas, fractional_time)
    x0, _ = q.predictions(prediction_type)

    mean_x, mean_x0, small = posterior(q)
    s = np.sqrt({"beta": q.beta, "posterior": small, "none": np.zeros_like(small)}[variance])
    if not last_noise:
        s[-1] = 0.0

    if clip is None:  # x0 is affine in x and F: eq. 11
        affine = {"a": mean_x + mean_x0 * x0.x, "e": mean_x0 * x0.F}
        return StepTable.from_columns("ddpm", q.t, s=s, **affine, **q.level)
    columns = {"p_x": x0.x, "p_F": x0.F, "clip": bound, "a": mean_x, "b": mean_x0, "s": s}
    return StepTable.from_columns("ddpm", q.t, **columns, **q.level)


def posterior(q: Levels) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """q(x_prev | x, x0): the weights of x and of x0 in its mean (eq. 7), and its variance (eq. 6)."""
    mean_x = np.sqrt(q.alpha) * q.var_prev / q.var
    mean_x0 = q.sqrt_abar_prev * q.beta / q.var
    return mean_x, mean_x0, q.beta * q.var_prev / q.var
