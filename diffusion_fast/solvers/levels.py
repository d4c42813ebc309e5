"""The noise levels between which each row steps, and predictions as affine functions of x and F.

Every kind of schedule is x = signal x0 + noise n: NoiseSchedule (sqrt(abar), sqrt(1 - abar)), SigmaSchedule
(1, sigma), FlowSchedule (1 - t, t). Solvers take both numbers from here, for the level of each row and for
the one it steps to; after the last comes the data, (1, 0).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypedDict

import numpy as np

from diffusion_fast import _checks
from diffusion_fast.schedules import NoiseSchedule
from diffusion_fast.sigma_schedules import FlowSchedule, SigmaSchedule
from diffusion_fast.solvers.spacing import (
    SIGMA_SPACINGS,
    resolve_sigmas,
    resolve_timesteps,
    time_of_sigma,
)

PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")  # those that `train` knows
PREDICTIONS: dict[type, tuple[str, ...]] = {
    NoiseSchedule: (*PREDICTION_TYPES, "score"),
    SigmaSchedule: ("epsilon", "sample", "score", "edm"),
    FlowSchedule: ("flow", "sample"),
}
Schedule = NoiseSchedule | SigmaSchedule | FlowSchedule


class Affine(NamedTuple):
    """x * .x + F * .F, float64, one entry per row."""

    x: np.ndarray
    F: np.ndarray


class GridOptions(TypedDict, total=False):
    """The options that all solvers share, except `ddpm`, `ddim` and `langevin`, which list their own.

    steps: how many rows of levels; None for all. With a SigmaSchedule or FlowSchedule, which are themselves
        the list of levels, nothing but their length.
    spacing, timesteps, sigmas: which levels of a NoiseSchedule, see `spacing.resolve_timesteps` and
        `spacing.resolve_sigmas`. Between trained timesteps the levels are exact and the network is given the
        nearest timestep, or the fractional one with fractional_time (for a network with a continuous time).
    prediction_type: what the network's output means. NoiseSchedule: "epsilon", "sample" (x0), "v_prediction",
        "score". SigmaSchedule: "epsilon", "sample", "score", or "edm" for the raw output of a network with
        the preconditioning of Karras et al. 2022, table 1, and sigma_data. FlowSchedule: "flow" (the
        velocity), "sample". None for the first of each.
    clip: bound of |x0| > 0, in the units of the data; None for no clamp.
    """

    steps: int | None
    spacing: str | None
    timesteps: Sequence[int] | np.ndarray | None
    sigmas: Sequence[float] | np.ndarray | None
    fractional_time: bool
    prediction_type: str | None
    sigma_data: float
    clip: float | None


GRID_OPTIONS = tuple(GridOptions.__annotations__)


class Level(NamedTuple):
    """One noise level x = signal x0 + noise n, and the time that the network is given there."""

    time: float
    signal: float
    noise: float

    @property
    def sigma(self) -> float:
        """noise / signal: the sigma of x / signal = x0 + sigma n (Karras et al. 2022); inf without signal."""
        return self.noise / self.signal if self.signal else math.inf

    @property
    def lam(self) -> float:
        """lambda = log(signal / noise), half the log-SNR (Lu et al. 2022); inf at the data."""
        if not self.noise:
            return math.inf
        return math.log(self.signal) - math.log(self.noise) if self.signal else -math.inf


@dataclass(frozen=True)
class Levels:
    """A NoiseSchedule's levels: float64 arrays (n_rows,) in the order the rows run.

    abar is alphas_cumprod at timestep t, abar_prev that at the next timestep of the *list*, nearer to the
    data, and 1 (or the level asked for) after the last.
    """

    t: np.ndarray  # int64, or float64 with fractional_time
    sqrt_abar: np.ndarray
    sqrt_abar_prev: np.ndarray
    var: np.ndarray  # 1 - abar
    var_prev: np.ndarray  # 1 - abar_prev
    alpha: np.ndarray  # abar / abar_prev
    beta: np.ndarray  # 1 - alpha: the effective beta of a stride over several timesteps

    @classmethod
    def of(
        cls,
        schedule: Any,
        steps: Any,
        spacing: Any,
        timesteps: Any,
        stop: Any = None,
        sigmas: Any = None,
        fractional_time: Any = False,
    ) -> Levels:
        """Levels of a schedule at the timesteps or sigmas asked for; after the last comes level `stop`, or
        the data.

        Everything is formed from log(1 - beta), summed over each stride, so that neither 1 - abar for small
        betas nor abar / abar_prev for a vanishing abar loses digits.
        """
        if not isinstance(schedule, NoiseSchedule):
            raise _checks.bad_type("schedule", schedule, "a NoiseSchedule")
        _checks.flag("fractional_time", fractional_time)
        if sigmas is not None or (timesteps is None and spacing in SIGMA_SPACINGS):
            if timesteps is not None:
                raise _checks.bad_value("timesteps", timesteps, "either timesteps or sigmas, not both")
            if stop is not None:
                raise _checks.bad_value("stop", stop, "None with levels between the timesteps")
            levels = resolve_sigmas(schedule, steps, spacing, sigmas)
            t = time_of_sigma(schedule, levels)
            t = t if fractional_time else np.rint(t).astype(np.int64)
            ends = -np.log1p(levels[::-1] ** 2)  # log(abar), from the data up
            return cls._from_logs(t, ends, np.diff(ends, prepend=0.0), 0.0)
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
        return cls._from_logs(t, before + np.cumsum(strides), strides, before)

    @classmethod
    def _from_logs(cls, t: np.ndarray, ends: np.ndarray, strides: np.ndarray, before: float) -> Levels:
        """From log(abar) of each level and log(alpha) of each stride, both from the data up."""
        prev = np.concatenate([[before], ends[:-1]])
        columns = (np.exp(ends / 2), np.exp(prev / 2), -np.expm1(ends), -np.expm1(prev), np.exp(strides))
        return cls(t, *(c[::-1].copy() for c in (*columns, -np.expm1(strides))))

    @property
    def level(self) -> dict[str, np.ndarray]:
        """The columns signal and noise of a table."""
        return {"signal": self.sqrt_abar, "noise": np.sqrt(self.var)}

    def predictions(self, prediction_type: Any) -> tuple[Affine, Affine]:
        """x0 and epsilon in terms of x = sqrt(abar) x0 + sqrt(1 - abar) epsilon and the network's output F.

        Raises ValueError for an epsilon prediction at abar = 0, where x holds nothing of x0.
        """
        kind = _checks.choice("prediction_type", prediction_type, PREDICTIONS[NoiseSchedule])
        return predict(kind, self.t, self.sqrt_abar, np.sqrt(self.var))


class Grid:
    """The levels that a solver visits on any kind of schedule, and what the network's output means there.

    levels: Level tuple in the order they run, with the data after the last. start: the standard deviation by
    which N(0, I) is scaled before the first row, None for not at all. clip: inf for none.
    """

    def __init__(self, solver: str, schedule: Any, options: GridOptions, kinds: tuple[type, ...]) -> None:
        if not isinstance(schedule, kinds):
            names = " or a ".join(kind.__name__ for kind in kinds)
            raise _checks.bad_type("schedule", schedule, f"a {names} for solver {solver!r}")
        for key in options:
            _checks.choice(f"options of solver {solver!r}", key, GRID_OPTIONS)
        assert isinstance(schedule, (NoiseSchedule, SigmaSchedule, FlowSchedule))
        self.schedule: Schedule = schedule
        self.clip = check_clip(options.get("clip"))
        self.sigma_data = _checks.real("sigma_data", options.get("sigma_data", 0.5), 1e-6, 1e6)
        accepted = PREDICTIONS[type(schedule)]
        kind = options.get("prediction_type")
        self.prediction_type = (
            accepted[0] if kind is None else _checks.choice("prediction_type", kind, accepted)
        )
        self._fractional = _checks.flag("fractional_time", options.get("fractional_time", False))
        self.levels = (*self._visited(options), Level(0.0, 1.0, 0.0))
        self.start = float(schedule.sigmas[0]) if isinstance(schedule, SigmaSchedule) else None

    def _visited(self, options: GridOptions) -> list[Level]:
        schedule, steps = self.schedule, options.get("steps")
        if isinstance(schedule, NoiseSchedule):
            spacing = options.get("spacing")
            spacing = "leading" if spacing is None else spacing
            chosen = (steps, spacing, options.get("timesteps"), None, options.get("sigmas"), self._fractional)
            q = Levels.of(schedule, *chosen)
            columns = (column.tolist() for column in (q.t, q.sqrt_abar, np.sqrt(q.var)))
            return [Level(*row) for row in zip(*columns, strict=True)]
        for name in ("spacing", "timesteps", "sigmas"):
            given = options.get(name)
            if given is not None:
                accepted = f"None with a {type(schedule).__name__}, which is itself the list of levels"
                raise _checks.bad_value(name, given, accepted)
        if steps is not None and _checks.integer("steps", steps, 1) != len(schedule):
            accepted = f"None or {len(schedule)}, the length of the {type(schedule).__name__}"
            raise _checks.bad_value("steps", steps, accepted)
        return [self._level(float(value)) for value in schedule._values]

    def _level(self, time: float) -> Level:
        """The level of a sigma or of a flow's time."""
        if isinstance(self.schedule, FlowSchedule):
            return Level(time, 1.0 - time, time)
        return Level(time, 1.0, time)

    def at(self, sigma: float) -> Level:
        """The level with this sigma = noise / signal, between two that are visited."""
        if isinstance(self.schedule, SigmaSchedule):
            return self._level(sigma)
        if isinstance(self.schedule, FlowSchedule):
            return self._level(sigma / (1 + sigma))
        time = float(time_of_sigma(self.schedule, sigma))
        length = math.hypot(1.0, sigma)
        return Level(time if self._fractional else round(time), 1 / length, sigma / length)

    def predictions(self, levels: Sequence[Level]) -> tuple[np.ndarray, Affine, Affine]:
        """c_in, x0 and epsilon at levels: the network is given c_in x and returns F."""
        times, signal, noise = np.array(levels, dtype=np.float64).T
        c_in = np.ones(len(levels))
        if self.prediction_type == "edm":
            c_in = 1 / np.hypot(noise, self.sigma_data)
        return c_in, *predict(self.prediction_type, times, signal, noise, self.sigma_data)


def predict(
    kind: str, times: np.ndarray, signal: np.ndarray, noise: np.ndarray, sigma_data: float = 0.5
) -> tuple[Affine, Affine]:
    """x0 and epsilon in terms of x = signal x0 + noise epsilon and F."""
    zero, one = np.zeros(len(signal)), np.ones(len(signal))
    if kind == "sample":
        return Affine(zero, one), Affine(1 / noise, -signal / noise)
    if kind == "v_prediction":  # v = signal epsilon - noise x0 (Salimans & Ho 2022, section 4)
        return Affine(signal, -noise), Affine(noise, signal)
    if kind == "flow":  # v = epsilon - x0, with signal + noise = 1
        return Affine(one, -noise), Affine(one, signal)
    if kind == "edm":  # x0 = c_skip x + c_out F (Karras et al. 2022, eq. 7), with signal = 1
        total = np.hypot(noise, sigma_data)
        c_skip, c_out = (sigma_data / total) ** 2, noise * sigma_data / total
        return Affine(c_skip, c_out), Affine(noise / total**2, -sigma_data / total)
    if not signal.all():
        where = times[np.argmin(signal)]
        raise ValueError(
            f"prediction_type: got {kind!r} with alphas_cumprod = 0 at timestep {where:.12g}, where x0 "
            "cannot be recovered from epsilon; accepted there: 'v_prediction' or 'sample'"
        )
    if kind == "score":  # the gradient of log q(x) is -epsilon / noise
        return Affine(1 / signal, noise**2 / signal), Affine(zero, -noise)
    return Affine(1 / signal, -noise / signal), Affine(zero, one)


def check_clip(clip: Any) -> float:
    """The bound of the clamp of x0 as the rows hold it: a float32-sized number > 0, or inf for none."""
    if clip is None:
        return np.inf
    limits = np.finfo(np.float32)
    return _checks.real("clip", clip, float(limits.tiny), float(limits.max))
