"""The other two ways of adding noise: variance exploding (SigmaSchedule) and rectified flow (FlowSchedule).

A NoiseSchedule is what a network was trained with, and solvers choose steps on it. These two are continuous
in training; an object of either is the list of levels that a solver visits, in the order it visits them.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from diffusion_fast import _checks
from diffusion_fast.schedules import MAX_STEPS, as_float64


class _LevelList:
    """Strictly descending float64 numbers above 0; immutable, hashable, picklable. 0 follows the last one."""

    _values: np.ndarray
    name: str

    def _fill(self, values: np.ndarray, name: str) -> None:
        if not isinstance(name, str):
            raise _checks.bad_type("name", name, "a string")
        # vars() because __setattr__ refuses; bytes because an array's flag can be set again
        vars(self).update(_values=np.frombuffer(values.tobytes(), dtype=np.float64), name=name)

    @property
    def n_steps(self) -> int:
        """How many levels there are, the final 0 not counted."""
        return len(self._values)

    def _copy(self) -> torch.Tensor:
        return torch.from_numpy(self._values.copy())

    def __len__(self) -> int:
        return len(self._values)

    def __eq__(self, other: object) -> bool:
        if type(other) is not type(self):
            return NotImplemented
        return self._values.tobytes() == other._values.tobytes()

    def __hash__(self) -> int:
        return hash((type(self), self._values.tobytes()))

    def __setattr__(self, key: str, value: Any) -> None:
        raise AttributeError(f"{key}: a {type(self).__name__} is immutable")

    def __delattr__(self, key: str) -> None:
        raise AttributeError(f"{key}: a {type(self).__name__} is immutable")


class SigmaSchedule(_LevelList):
    """Noise levels of x = x0 + sigma n, strictly descending; sigma = 0 follows the last and is not listed.

    sigmas: a sequence, NumPy array or torch tensor of at least one finite number > 0. The chain starts from
    sigmas[0] times N(0, I). name: shown by repr; no effect on the numbers or on equality.

    Raises TypeError for what is not a list of real numbers, ValueError for a list that does not strictly
    descend, or holds 0, a negative number or NaN; the constructors by name too, for what they are given.
    """

    def __init__(self, sigmas: Any, *, name: str = "custom") -> None:
        self._fill(check_descending("sigmas", as_float64("sigmas", sigmas)), name)

    @classmethod
    def karras(
        cls, n_steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0, rho: float = 7.0
    ) -> SigmaSchedule:
        """Evenly spaced in sigma^(1 / rho) (Karras et al. 2022, eq. 5)."""
        count, low, high = _range(n_steps, sigma_min, sigma_max)
        return cls(karras_sigmas(count, low, high, _checks.real("rho", rho, 0.01, 1e3)), name="karras")

    @classmethod
    def edm(cls, n_steps: int = 18) -> SigmaSchedule:
        """`karras` with the range and the number of steps of Karras et al. 2022, table 1."""
        return cls(cls.karras(n_steps)._values, name="edm")

    @classmethod
    def exponential(cls, n_steps: int, sigma_min: float = 0.002, sigma_max: float = 80.0) -> SigmaSchedule:
        """Evenly spaced in log(sigma), and so in log-SNR: the geometric sequence of Song & Ermon 2019."""
        return cls(exponential_sigmas(*_range(n_steps, sigma_min, sigma_max)), name="exponential")

    @property
    def sigmas(self) -> torch.Tensor:
        """(n_steps,) float64, a fresh copy."""
        return self._copy()

    def __repr__(self) -> str:
        levels = f"sigmas {self._values[0]:g} .. {self._values[-1]:g}"
        return f"SigmaSchedule({self.name!r}, n_steps={len(self)}, {levels})"


class FlowSchedule(_LevelList):
    """Times of a rectified flow x_t = (1 - t) x0 + t n, strictly descending in (0, 1]; 0 follows the last.

    times: a sequence, NumPy array or torch tensor. The network predicts the velocity v = n - x0 (Liu et al.
    2023, eq. 1, with time reversed). The chain starts from N(0, I), taken for x at times[0]: let that be 1.
    name: shown by repr; no effect on the numbers or on equality.

    Raises TypeError for what is not a list of real numbers, ValueError for a list that does not strictly
    descend or leaves (0, 1]; `linear` too, for n_steps below 1 or a shift outside of [0.001, 1000].
    """

    def __init__(self, times: Any, *, name: str = "custom") -> None:
        values = as_float64("times", times)
        self._fill(check_descending("times", values, high=1.0), name)

    @classmethod
    def linear(cls, n_steps: int, shift: float = 1.0) -> FlowSchedule:
        """Evenly spaced from 1, then t -> shift t / (1 + (shift - 1) t) (Esser et al. 2024, eq. 23).

        shift > 1 spends more steps near the noise; 1 leaves the times as they are.
        """
        count = _checks.integer("n_steps", n_steps, 1, MAX_STEPS)
        factor = _checks.real("shift", shift, 1e-3, 1e3)
        t = np.arange(count, 0, -1) / count
        return cls(factor * t / (1 + (factor - 1) * t), name="linear")

    @property
    def times(self) -> torch.Tensor:
        """(n_steps,) float64, a fresh copy."""
        return self._copy()

    def __repr__(self) -> str:
        times = f"times {self._values[0]:g} .. {self._values[-1]:g}"
        return f"FlowSchedule({self.name!r}, n_steps={len(self)}, {times})"


def karras_sigmas(n_steps: int, low: float, high: float, rho: float = 7.0) -> np.ndarray:
    """Karras et al. 2022, eq. 5, without the final 0: float64 (n_steps,), both ends exact."""
    roots = np.linspace(high ** (1 / rho), low ** (1 / rho), n_steps)
    return _with_ends(roots**rho, low, high)


def exponential_sigmas(n_steps: int, low: float, high: float) -> np.ndarray:
    """Evenly spaced logarithms: float64 (n_steps,), both ends exact."""
    return _with_ends(np.exp(np.linspace(np.log(high), np.log(low), n_steps)), low, high)


def check_descending(name: str, values: np.ndarray, high: float = np.inf, hint: str = "") -> np.ndarray:
    """Finite numbers in (0, high], strictly descending; ValueError names the first that is not."""
    top = f" in (0, {high:g}]" if np.isfinite(high) else " above 0"
    accepted = f"strictly descending numbers{top}, without the final 0{hint}"
    good = (values > 0) & (values <= high) & np.isfinite(values)
    if not good.all():
        where = int(np.argmin(good))
        raise ValueError(f"{name}: got {values[where]} at index {where}; accepted: {accepted}")
    falls = np.diff(values) < 0
    if not falls.all():
        where = int(np.argmin(falls)) + 1
        before = values[where - 1]
        raise ValueError(
            f"{name}: got {values[where]} at index {where}, after {before}; accepted: {accepted}"
        )
    return values


def _with_ends(values: np.ndarray, low: float, high: float) -> np.ndarray:
    values[-1] = low
    values[0] = high  # last, for with one step it is the level that counts
    return values


def _range(n_steps: Any, sigma_min: Any, sigma_max: Any) -> tuple[int, float, float]:
    count = _checks.integer("n_steps", n_steps, 1, MAX_STEPS)
    high = _checks.real("sigma_max", sigma_max, 0.0, 1e9, open_low=True)
    low = _checks.real("sigma_min", sigma_min, 0.0, 1e9, open_low=True)
    if low >= high:
        raise _checks.bad_value("sigma_min", sigma_min, f"a number below sigma_max = {high:g}")
    return count, low, high
