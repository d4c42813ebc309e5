"""Noise schedules of variance-preserving diffusion: the betas and everything that follows from them alone.

The numbers come from the C++ core (csrc/schedule.cpp) in float64. The `*_ref` functions at the end are their
NumPy twins, which the tests compare with; both do the same operations in the same order.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from diffusion_fast import _checks, _cpu

MAX_STEPS = 1 << 20  # rows of one plan

_BETA = "a number in (0, 1)"


class NoiseSchedule:
    """The betas of a diffusion process with T steps; immutable, hashable and picklable.

    betas: a sequence, NumPy array or torch tensor of T numbers. ``betas[t]`` is the variance added by forward
    step t (0-based), so ``q(x_t | x_0) = N(sqrt(abar_t) x_0, (1 - abar_t) I)`` with
    ``abar_t = prod_{s <= t} (1 - beta_s)`` (Ho et al. 2020, eq. 4). Each must lie in (0, 1]; only the last
    may be 1 (then abar is 0 there and an epsilon prediction has no meaning). A leading 0, which some codes
    use to make index t mean t steps, is dropped with a UserWarning and remembered in ``note``.
    name: shown by repr and kept by copies; it has no effect on the numbers or on equality.

    Raises TypeError for a value that is not a list of real numbers, ValueError for betas outside the range,
    NaN, another rank, an empty list or more than 2^20 of them. The constructors by name raise TypeError or
    ValueError for an n_steps outside of 1 to 2^20 and a number outside of (0, 1).
    """

    _betas: np.ndarray
    name: str
    note: str | None

    def __init__(self, betas: Any, *, name: str = "custom") -> None:
        values = as_float64("betas", betas)
        note = None
        if len(values) > 1 and values[0] == 0.0:
            note = "a leading beta of 0 was dropped: index t here is index t + 1 of the list given"
            warnings.warn(f"betas: {note}", UserWarning, stacklevel=2)
            values = values[1:]
        _check_betas(values)
        if not isinstance(name, str):
            raise _checks.bad_type("name", name, "a string")
        # vars() because __setattr__ refuses
        vars(self).update(_betas=np.frombuffer(values.tobytes(), dtype=np.float64), name=name, note=note)

    # ---- named schedules ----

    @classmethod
    def from_name(cls, name: str, n_steps: int, **options: Any) -> NoiseSchedule:
        """The schedule called `name` (see ``SCHEDULE_NAMES``) with the options of the method of that name.

        Raises ValueError for an unknown name or option, with the nearest valid one.
        """
        method = getattr(cls, _checks.choice("name", name, SCHEDULE_NAMES))
        accepted = [key for key in inspect.signature(method).parameters if key != "n_steps"]
        for key in options:
            _checks.choice(f"options of schedule {name!r}", key, accepted)
        return method(n_steps, **options)

    @classmethod
    def linear(cls, n_steps: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> NoiseSchedule:
        """Evenly spaced betas; the defaults are those of Ho et al. 2020, section 4, for 1000 steps."""
        return cls._ramp("linear", n_steps, beta_start, beta_end)

    @classmethod
    def constant(cls, n_steps: int, beta: float = 0.02) -> NoiseSchedule:
        """The same beta at every step."""
        return cls._build("constant", n_steps, {"beta": _beta("beta", beta)})

    @classmethod
    def quadratic(cls, n_steps: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> NoiseSchedule:
        """Square roots of the betas evenly spaced (Ho et al. 2020, the authors' code, "quad")."""
        return cls._ramp("quadratic", n_steps, beta_start, beta_end)

    @classmethod
    def scaled_linear(
        cls, n_steps: int, beta_start: float = 0.00085, beta_end: float = 0.012
    ) -> NoiseSchedule:
        """The formula of `quadratic` under the name and with the defaults of latent diffusion models."""
        return cls._ramp("scaled_linear", n_steps, beta_start, beta_end)

    @classmethod
    def warmup10(cls, n_steps: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> NoiseSchedule:
        """Linear over the first tenth of the steps, then beta_end (Ho et al. 2020, the authors' code)."""
        return cls._ramp("warmup10", n_steps, beta_start, beta_end)

    @classmethod
    def warmup50(cls, n_steps: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> NoiseSchedule:
        """Linear over the first half of the steps, then beta_end (Ho et al. 2020, the authors' code)."""
        return cls._ramp("warmup50", n_steps, beta_start, beta_end)

    @classmethod
    def cosine(cls, n_steps: int, s: float = 0.008, max_beta: float | None = 0.999) -> NoiseSchedule:
        """abar(u) = cos^2((u + s) / (1 + s) pi / 2), u = t / T (Nichol & Dhariwal 2021, eq. 17).

        max_beta clips the betas, in (0, 1); None leaves them as they are, and then the last one is exactly 1.
        """
        if _checks.real("s", s) <= 0.0 or s >= 1.0:
            raise _checks.bad_value("s", s, _BETA)
        top = 1.0 if max_beta is None else _beta("max_beta", max_beta)
        return cls._build("cosine", n_steps, {"s": float(s), "max_beta": top})

    @classmethod
    def sigmoid(cls, n_steps: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> NoiseSchedule:
        """Betas shaped by a sigmoid over [-6, 6], as in GeoDiff and diffusers."""
        return cls._ramp("sigmoid", n_steps, beta_start, beta_end)

    @classmethod
    def sigmoid_ramp(cls, n_steps: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> NoiseSchedule:
        """Betas shaped by a sigmoid over [-10, 10]: nearly a step half way from beta_start to beta_end."""
        return cls._ramp("sigmoid_ramp", n_steps, beta_start, beta_end)

    @classmethod
    def sine_squared(cls, n_steps: int, beta_start: float = 1e-4, beta_end: float = 0.02) -> NoiseSchedule:
        """beta_start + (beta_end - beta_start) sin^2(u), u from 0 to pi/2.

        Sometimes called "cosine" because sin^2 = 1 - cos^2; it is not the schedule of Nichol & Dhariwal.
        """
        return cls._ramp("sine_squared", n_steps, beta_start, beta_end)

    @classmethod
    def _ramp(cls, name: str, n_steps: int, beta_start: float, beta_end: float) -> NoiseSchedule:
        ends = {"beta_start": _beta("beta_start", beta_start), "beta_end": _beta("beta_end", beta_end)}
        return cls._build(name, n_steps, ends)

    @classmethod
    def _build(cls, name: str, n_steps: int, params: dict[str, float]) -> NoiseSchedule:
        count = _checks.integer("n_steps", n_steps, 1, MAX_STEPS)
        return cls(_cpu.schedule_betas(name, count, params), name=name)

    def zero_terminal_snr(self) -> NoiseSchedule:
        """A copy rescaled so that abar of the last step is exactly 0 (Lin et al. 2024, Algorithm 1).

        The first beta is kept. Such a schedule needs a model that predicts the sample or v.
        Raises ValueError where the first and the last abar do not differ (a schedule of one step, say).
        """
        return NoiseSchedule(_cpu.zero_terminal_snr(self._betas), name=f"{self.name}, zero terminal SNR")

    # ---- what follows from the betas: a fresh copy each time, so that nothing can change the schedule ----

    @property
    def n_steps(self) -> int:
        """T."""
        return len(self._betas)

    @property
    def betas(self) -> torch.Tensor:
        """beta_t, (T,) float64."""
        return torch.from_numpy(self._betas.copy())

    @property
    def alphas(self) -> torch.Tensor:
        """1 - beta_t, (T,) float64."""
        return torch.from_numpy(1.0 - self._betas)

    @property
    def alphas_cumprod(self) -> torch.Tensor:
        """abar_t, the running product of the alphas, (T,) float64."""
        return torch.from_numpy(_cpu.alphas_cumprod(self._betas))

    @property
    def snr(self) -> torch.Tensor:
        """Signal-to-noise ratio abar_t / (1 - abar_t), (T,) float64."""
        abar = self.alphas_cumprod
        return abar / (1.0 - abar)

    @property
    def log_snr(self) -> torch.Tensor:
        """log(abar_t / (1 - abar_t)), (T,) float64; -inf where abar_t = 0."""
        return torch.from_numpy(_cpu.log_snr(_cpu.alphas_cumprod(self._betas)))

    def __len__(self) -> int:
        return len(self._betas)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, NoiseSchedule):
            return NotImplemented
        return self._betas.tobytes() == other._betas.tobytes()

    def __hash__(self) -> int:
        return hash(self._betas.tobytes())

    def __repr__(self) -> str:
        first, last, abar = self._betas[0], self._betas[-1], float(self.alphas_cumprod[-1])
        betas = f"betas {first:g} .. {last:g}, abar_T={abar:.4g}"
        return f"NoiseSchedule({self.name!r}, n_steps={len(self)}, {betas})"

    def __setattr__(self, key: str, value: Any) -> None:
        raise AttributeError(f"{key}: a NoiseSchedule is immutable")

    def __delattr__(self, key: str) -> None:
        raise AttributeError(f"{key}: a NoiseSchedule is immutable")


SCHEDULE_NAMES = (
    "linear",
    "constant",
    "quadratic",
    "scaled_linear",
    "warmup10",
    "warmup50",
    "cosine",
    "sigmoid",
    "sigmoid_ramp",
    "sine_squared",
)


def as_float64(name: str, values: Any) -> np.ndarray:
    """A list, array or tensor of 1 to 2^20 real numbers as a float64 array; `name` is the argument's."""
    accepted = "a 1-D list, array or tensor of real numbers"
    if isinstance(values, torch.Tensor):
        if values.requires_grad:
            raise _checks.bad_value(name, values, "a tensor that does not require grad")
        values = _checks.readable(name, values, accepted)
        values = values.cpu().double().numpy() if values.dtype.is_floating_point else values.cpu().numpy()
    try:
        array = np.asarray(values)
    except ValueError:  # ragged lists
        raise _checks.bad_type(name, values, accepted) from None
    if array.dtype.kind not in "fiu":
        raise _checks.bad_type(name, values, accepted)
    if array.ndim != 1 or not 1 <= len(array) <= MAX_STEPS:
        raise _checks.bad_value(name, values, f"a 1-D list of 1 to {MAX_STEPS} numbers")
    return array.astype(np.float64)


def _check_betas(values: np.ndarray) -> None:
    good = (values > 0.0) & (values <= 1.0)  # NaN compares false
    good[:-1] &= values[:-1] < 1.0
    if not good.all():
        where = int(np.argmin(good))
        raise ValueError(
            f"betas: got {values[where]} at index {where}; accepted: numbers in (0, 1], 1 only as the last"
        )


def _beta(name: str, value: Any) -> float:
    number = _checks.real(name, value)
    if not 0.0 < number < 1.0:
        raise _checks.bad_value(name, value, _BETA)
    return number


# ---- float64 twins of csrc/schedule.cpp ----


def schedule_betas_ref(name: str, n_steps: int, params: Mapping[str, float]) -> np.ndarray:
    """Betas of a named schedule, float64 (n_steps,)."""
    if name == "constant":
        return np.full(n_steps, params["beta"])
    if name == "cosine":
        # 1 - cos^2(q) / cos^2(p) = sin(q - p) sin(q + p) / cos^2(p), which does not cancel
        s, max_beta = params["s"], params["max_beta"]
        angles = (np.arange(n_steps + 1) / n_steps + s) * (np.pi / 2 / (1 + s))
        p, q = angles[:-1], angles[1:]
        betas = np.minimum(np.sin(q - p) * np.sin(q + p) / np.cos(p) ** 2, max_beta)
        betas[-1] = max_beta  # abar(1) = 0 exactly, so the unclipped last beta is 1
        return betas
    low, high = params["beta_start"], params["beta_end"]
    if name == "linear":
        return np.linspace(low, high, n_steps)
    if name in ("quadratic", "scaled_linear"):
        return np.linspace(low**0.5, high**0.5, n_steps) ** 2
    if name in ("warmup10", "warmup50"):
        ramp = int(n_steps * (0.1 if name == "warmup10" else 0.5))
        return np.concatenate([np.linspace(low, high, ramp), np.full(n_steps - ramp, high)])
    if name in ("sigmoid", "sigmoid_ramp"):
        reach = 6.0 if name == "sigmoid" else 10.0
        return 1 / (1 + np.exp(-np.linspace(-reach, reach, n_steps))) * (high - low) + low
    _checks.choice("name", name, ["sine_squared"])
    return np.sin(np.linspace(0, np.pi / 2, n_steps)) ** 2 * (high - low) + low


def alphas_cumprod_ref(betas: np.ndarray) -> np.ndarray:
    """Running product of 1 - beta, float64 (T,)."""
    return np.cumprod(1 - betas)


def log_snr_ref(alphas_cumprod: np.ndarray) -> np.ndarray:
    """log(abar / (1 - abar)), float64 (T,)."""
    with np.errstate(divide="ignore"):  # abar = 0 gives -inf, as it should
        return np.log(alphas_cumprod) - np.log1p(-alphas_cumprod)


def zero_terminal_snr_ref(betas: np.ndarray) -> np.ndarray:
    """Betas rescaled to zero terminal SNR, float64 (T,) (Lin et al. 2024, Algorithm 1)."""
    root = np.sqrt(np.cumprod(1 - betas))
    root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
    abar = root**2
    return np.concatenate([betas[:1], 1 - abar[1:] / abar[:-1]])
