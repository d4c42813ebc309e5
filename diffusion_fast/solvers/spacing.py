"""Which timesteps a solver visits: all of them, some evenly spaced, or a list."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from diffusion_fast import _checks, _cpu

SPACINGS = ("leading", "trailing", "linspace")


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
    _checks.choice("spacing", spacing, SPACINGS)
    if timesteps is not None:
        if steps is not None:
            raise _checks.bad_value("timesteps", timesteps, "either steps or timesteps, not both")
        return _explicit(n_train, timesteps)
    count = n_train if steps is None else _checks.integer("steps", steps, 1, n_train)
    return _cpu.spaced_timesteps(spacing, n_train, count)


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
