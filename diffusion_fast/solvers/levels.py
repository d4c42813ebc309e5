"""The noise levels between which each row steps, and predictions as affine functions of x and F."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from diffusion_fast import _checks
from diffusion_fast.schedules import NoiseSchedule
from diffusion_fast.solvers.spacing import resolve_timesteps

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")


class Affine(NamedTuple):
    """x * .x + F * .F, float64, one entry per row."""

    x: np.ndarray
    F: np.ndarray


@dataclass(frozen=True)
class Levels:
    """float64 arrays (n_rows,) in the order the rows run.

    abar is alphas_cumprod at timestep t, abar_prev that at the next timestep of the *list*, nearer to the
    data, and 1 (or the level asked for) after the last.
    """

    t: np.ndarray  # int64
    sqrt_abar: np.ndarray
    sqrt_abar_prev: np.ndarray
    var: np.ndarray  # 1 - abar
    var_prev: np.ndarray  # 1 - abar_prev
    alpha: np.ndarray  # abar / abar_prev
    beta: np.ndarray  # 1 - alpha: the effective beta of a stride over several timesteps

    @classmethod
    def of(cls, schedule: Any, steps: Any, spacing: Any, timesteps: Any, stop: Any = None) -> Levels:
        """Levels of a schedule at the timesteps asked for; after the last comes level `stop`, or the data.

        Everything is formed from log(1 - beta), summed over each stride, so that neither 1 - abar for small
        betas nor abar / abar_prev for a vanishing abar loses digits.
        """
        if not isinstance(schedule, NoiseSchedule):
            raise _checks.bad_type("schedule", schedule, "a NoiseSchedule")
        t = resolve_timesteps(len(schedule), steps, spacing, timesteps)
        first = 0  # the first beta of the last row's stride
        if stop is not None:
            first = 1 + _checks.integer("stop", stop, 0, max(int(t[-1]) - 1, 0))
            if first > t[-1]:
                raise _checks.bad_value("stop", stop, "None, since the last timestep that runs is 0")
        with np.errstate(divide="ignore"):  # beta = 1, the last one, gives -inf, as it should
            logs = np.log1p(-schedule.betas.numpy())
        starts = np.concatenate([[first], t[:0:-1] + 1])
        strides = np.add.reduceat(logs[: t[0] + 1], starts)
        before = float(logs[:first].sum())
        ends = before + np.cumsum(strides)
        prev = np.concatenate([[before], ends[:-1]])
        columns = (np.exp(ends / 2), np.exp(prev / 2), -np.expm1(ends), -np.expm1(prev), np.exp(strides))
        return cls(t, *(c[::-1].copy() for c in (*columns, -np.expm1(strides))))

    def predictions(self, prediction_type: Any) -> tuple[Affine, Affine]:
        """x0 and epsilon in terms of x = sqrt(abar) x0 + sqrt(1 - abar) epsilon and the network's output F.

        v = sqrt(abar) epsilon - sqrt(1 - abar) x0 (Salimans & Ho 2022, section 4). Raises ValueError for an
        epsilon prediction at abar = 0, where x holds nothing of x0.
        """
        zero, one = np.zeros(len(self.t)), np.ones(len(self.t))
        signal, noise = self.sqrt_abar, np.sqrt(self.var)
        kind = _checks.choice("prediction_type", prediction_type, PREDICTION_TYPES)
        if kind == "sample":
            return Affine(zero, one), Affine(1 / noise, -signal / noise)
        if kind == "v_prediction":
            return Affine(signal, -noise), Affine(noise, signal)
        if not signal.all():
            where = int(self.t[np.argmin(signal)])
            raise ValueError(
                f"prediction_type: got 'epsilon' with alphas_cumprod = 0 at timestep {where}, where x0 "
                "cannot be recovered from epsilon; accepted there: 'v_prediction' or 'sample'"
            )
        return Affine(1 / signal, -noise / signal), Affine(zero, one)


def check_clip(clip: Any) -> float:
    """The bound of the clamp of x0 as the rows hold it: a float32-sized number > 0, or inf for none."""
    if clip is None:
        return np.inf
    limits = np.finfo(np.float32)
    return _checks.real("clip", clip, float(limits.tiny), float(limits.max))
