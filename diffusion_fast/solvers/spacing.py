"""Which levels of a NoiseSchedule a solver visits: trained timesteps, or noise levels between them."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from diffusion_fast import _checks, _cpu
from diffusion_fast.schedules import NoiseSchedule, as_float64
from diffusion_fast.sigma_schedules import check_descending, exponential_sigmas, karras_sigmas

SPACINGS = ("leading", "trailing", "linspace")  # of timesteps
SIGMA_SPACINGS = ("karras", "exponential", "logsnr")  # of noise levels


def resolve_timesteps(n_train: int, steps: Any, spacing: Any, timesteps: Any) -> np.ndarray:
    """The timesteps in the order they run, int64, strictly descending, each a 0-based index below n_train.

    steps: how many, 1 to n_train; None for all of them.
    spacing: (Lin et al. 2024, Table 2; with T = n_train, N = steps)
        "leading"   i * (T // N): starts below the last timestep where N < T, ends at 0
        "trailing"  round(T - i * T / N) - 1: starts at the last timestep; few steps lose least this way
        "linspace"  round(linspace(0, T - 1, N)): both ends; with N = 1 only timestep 0
        Halves are rounded to even. The lists are those of diffusers with steps_offset = 0.
    timesteps: an explicit list instead, strictly descending; not together with `steps`.

    Raises ValueError or TypeError that names the argument.
    """
    _checks.choice("spacing", spacing, (*SPACINGS, *SIGMA_SPACINGS))
    if timesteps is not None:
        if steps is not None:
            raise _checks.bad_value("timesteps", timesteps, "either steps or timesteps, not both")
        return _explicit(n_train, timesteps)
    count = n_train if steps is None else _checks.integer("steps", steps, 1, n_train)
    return _cpu.spaced_timesteps(spacing, n_train, count)


def resolve_sigmas(schedule: NoiseSchedule, steps: Any, spacing: Any, sigmas: Any) -> np.ndarray:
    """Noise levels sqrt((1 - abar) / abar) in the order they run, float64, strictly descending.

    spacing: from the level of the last timestep to that of timestep 0,
        "karras"       Karras et al. 2022, eq. 5, with rho = 7
        "exponential"  evenly spaced in log(sigma)
        "logsnr"       evenly spaced in log-SNR = -2 log(sigma): the same levels
    sigmas: an explicit list instead, within that range; not together with `steps`.

    Raises ValueError or TypeError that names the argument.
    """
    trained = np.exp(log_sigmas(schedule))
    low, high = float(trained[0]), float(trained[-1])
    if sigmas is not None:
        if steps is not None:
            raise _checks.bad_value("sigmas", sigmas, "either steps or sigmas, not both")
        hint = f", within the schedule's {low:.6g} to {high:.6g}"
        values = check_descending("sigmas", as_float64("sigmas", sigmas), hint=hint)
        # a list rounded to a few digits at its ends is still meant to be this range
        outside = (values < low * 0.999) | (values > high * 1.001)
        if outside.any():
            raise _checks.bad_value("sigmas", float(values[np.argmax(outside)]), f"noise levels{hint[1:]}")
        return values
    _checks.choice("spacing", spacing, SIGMA_SPACINGS)
    count = len(schedule) if steps is None else _checks.integer("steps", steps, 1, len(schedule))
    if not np.isfinite(high):
        raise _checks.bad_value(
            "spacing", spacing, f"with alphas_cumprod = 0 at the last timestep: {', '.join(SPACINGS)}"
        )
    if count > 1 and low == high:
        raise _checks.bad_value("steps", steps, f"1 with spacing={spacing!r} on one noise level")
    return (karras_sigmas if spacing == "karras" else exponential_sigmas)(count, low, high)


def log_sigmas(schedule: NoiseSchedule) -> np.ndarray:
    """log(sqrt((1 - abar) / abar)) of every timestep, float64, ascending; inf where abar = 0."""
    with np.errstate(divide="ignore", over="ignore"):
        logs = np.cumsum(np.log1p(-schedule.betas.numpy()))  # log(abar) without forming 1 - abar
        large = logs < -700  # where exp(-log) would overflow
        return np.where(large, -logs / 2, np.log(np.expm1(np.where(large, 700.0, -logs))) / 2)


def time_of_sigma(schedule: NoiseSchedule, sigma: Any) -> np.ndarray:
    """The fractional timestep with this noise level: log(sigma) is interpolated linearly, the ends hold."""
    logs = log_sigmas(schedule)
    known = np.isfinite(logs)
    return np.interp(np.log(sigma), logs[known], np.arange(len(logs))[known])


def sigma_of_time(schedule: NoiseSchedule, time: Any) -> np.ndarray:
    """The noise level of a fractional timestep, inverse to `time_of_sigma`."""
    logs = log_sigmas(schedule)
    return np.exp(np.interp(time, np.arange(len(logs)), logs))


def _explicit(n_train: int, timesteps: Any) -> np.ndarray:
    accepted = f"a strictly descending list of integers from 0 to {n_train - 1}"
    if isinstance(timesteps, torch.Tensor):
        timesteps = _checks.readable("timesteps", timesteps, accepted).cpu().numpy()
    try:
        values = np.asarray(timesteps)
    except ValueError:  # ragged lists
        raise _checks.bad_type("timesteps", timesteps, accepted) from None
    if values.ndim != 1 or values.size == 0:
        raise _checks.bad_value("timesteps", timesteps, accepted)
    if values.dtype.kind not in "iu":
        raise _checks.bad_type("timesteps", timesteps, accepted)
    for i, value in enumerate(values.tolist()):  # Python ints: unsigned and huge values compare exactly
        if not 0 <= value < n_train:
            raise ValueError(f"timesteps: got {value} at index {i}; accepted: {accepted}")
        if i and value == values[i - 1]:
            raise ValueError(f"timesteps: got {value} twice, at index {i - 1} and {i}; accepted: {accepted}")
        if i and value > values[i - 1]:
            raise ValueError(f"timesteps: got {value} at index {i}, after less; accepted: {accepted}")
    return values.astype(np.int64)


def spaced_timesteps_ref(name: str, n_train: int, steps: int) -> np.ndarray:
    """NumPy twin of csrc/schedule.cpp's spaced_timesteps."""
    if name == "leading":
        return np.arange(steps)[::-1] * (n_train // steps)
    if name == "trailing":
        # arange may give one value too many where the increment is rounded down
        return np.round(np.arange(n_train, 0, -n_train / steps))[:steps].astype(np.int64) - 1
    _checks.choice("name", name, ["linspace"])
    return np.round(np.linspace(0, n_train - 1, steps))[::-1].astype(np.int64)
