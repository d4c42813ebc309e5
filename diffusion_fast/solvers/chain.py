"""A solver's rows, written as its paper writes them and solved for what a row can see.

A row sees the sample x, the network's prediction m, earlier ones h1, h2, h3, and noise z. `X`, `M`, `H1`, ...
stand for them; sums and multiples of them are `Terms`, with float64 coefficients. What an earlier row saw,
such as the sample at the start of a two-stage step, is affine in what the next one sees: `Chain.before`
expresses it so, which is how a step of several stages fits rows that keep nothing but x and the history.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from diffusion_fast import _checks
from diffusion_fast.schedules import NoiseSchedule
from diffusion_fast.sigma_schedules import FlowSchedule, SigmaSchedule
from diffusion_fast.solvers.levels import Grid, GridOptions, Level
from diffusion_fast.solvers.table import StepTable

ALL_KINDS = (NoiseSchedule, SigmaSchedule, FlowSchedule)
_COLUMNS = ("a", "b", "c1", "c2", "c3", "s")  # of x, m, h1, h2, h3, z


class Terms:
    """c[0] x + c[1] m + c[2] h1 + c[3] h2 + c[4] h3 + c[5] z."""

    __slots__ = ("c",)
    __array_ufunc__ = None  # so that NumPy's scalars leave * to this class

    def __init__(self, c: Iterable[float]) -> None:
        self.c = tuple(c)

    def __add__(self, other: Terms) -> Terms:
        return Terms(p + q for p, q in zip(self.c, other.c, strict=True))

    def __sub__(self, other: Terms) -> Terms:
        return Terms(p - q for p, q in zip(self.c, other.c, strict=True))

    def __rmul__(self, factor: float) -> Terms:
        return Terms(float(factor) * p for p in self.c)

    def __truediv__(self, divisor: float) -> Terms:
        return Terms(p / float(divisor) for p in self.c)


X, M, H1, H2, H3, Z = (Terms(row) for row in np.eye(6).tolist())
NOTHING = 0.0 * X


class Chain:
    """Collects rows for the levels of a schedule.

    m: what the rows take for m, "x0" (clamped by clip), "epsilon" or "velocity" = epsilon - x0.
    kinds: the schedules that the solver is made for. needs_signal: whether it divides by the signal, which
    refuses a first level that is pure noise. start: the deviation of the prior, where it is not that of the
    schedule.

    steps: (level, next level) pairs, the last one to the data. A schedule whose prior is not N(0, I) begins
    with a row that scales x and evaluates nothing.
    """

    def __init__(
        self,
        solver: str,
        schedule: Any,
        options: GridOptions,
        *,
        m: str = "x0",
        kinds: tuple[type, ...] = ALL_KINDS,
        needs_signal: bool = False,
        start: float | None = None,
    ) -> None:
        grid = Grid(solver, schedule, options, kinds)
        first = grid.levels[0]
        if needs_signal and first.signal == 0:
            raise _checks.bad_value(
                "schedule",
                schedule,
                f"one whose first level keeps some signal with solver {solver!r}, which divides by it; or "
                "'euler', 'euler_ancestral', 'dpmpp_2m', 'dpmpp_2m_sde', 'dpmpp_3m_sde', 'flow_heun'",
            )
        if m != "x0" and np.isfinite(grid.clip):
            accepted = f"None with solver {solver!r}, whose history is not of x0"
            raise _checks.bad_value("clip", options.get("clip"), accepted)
        self.grid = grid
        self.steps = list(zip(grid.levels[:-1], grid.levels[1:], strict=True))
        self._solver, self._m = solver, m
        self._rows: list[tuple[Level, Terms, bool, bool]] = []  # level, new x, evaluates, push
        scale = grid.start if start is None else start
        if scale is not None and start != 1.0:
            self._rows.append((first, scale * X, False, False))

    def add(self, level: Level, x: Terms, *, push: bool = False) -> None:
        """A row that evaluates the network at `level` and goes on to x; push keeps m as the next H1."""
        self._rows.append((level, x, True, push))

    def before(self, terms: Terms) -> Terms:
        """What the last row called `terms`, in terms of what the next row sees."""
        _, x_next, _, push = self._rows[-1]
        x, m, h1, h2, h3, z = terms.c
        # x_next = a x + rest, so that x = (x_next - rest) / a
        a, *rest, noise = x_next.c
        share = x / a if x else 0.0
        m, h1, h2, h3 = (p - share * q for p, q in zip((m, h1, h2, h3), rest, strict=True))
        assert not (share and noise) and not z, "the noise of a row is not kept"
        if push:
            assert not h3, "the oldest of the history is gone"
            return Terms((share, 0.0, m, h1, h2, 0.0))
        assert not m, "a prediction that was not pushed is gone"
        return Terms((share, 0.0, h1, h2, h3, 0.0))

    def stir(self, deviation: float) -> None:
        """Noise of this standard deviation, added by the last row."""
        level, x, evaluates, push = self._rows[-1]
        self._rows[-1] = (level, x + deviation * Z, evaluates, push)

    def table(self) -> StepTable:
        """The rows as a StepTable. Without clip and history x0 needs no row of its own: m is affine in x and
        F and folds into a and e."""
        levels, updates, evaluates, push = zip(*self._rows, strict=True)
        neighbours = zip(levels, (*levels[1:], levels[-1]), evaluates, strict=True)
        columns = dict(zip(_COLUMNS, np.array([x.c for x in updates]).T, strict=True))
        c_in, x0, epsilon = self.grid.predictions(levels)
        kinds = {"x0": x0, "epsilon": epsilon, "velocity": _minus(epsilon, x0)}
        runs = np.array(evaluates)
        p_x, p_F = (np.where(runs, part, 0.0) for part in kinds[self._m])
        columns["c_in"] = np.where(runs, c_in, 1.0)
        columns["signal"], columns["noise"] = np.array([(lv.signal, lv.noise) for lv in levels]).T
        if any(push) or np.isfinite(self.grid.clip):
            columns |= {"p_x": p_x, "p_F": p_F, "clip": np.where(runs, self.grid.clip, np.inf)}
        else:
            b = columns.pop("b")
            columns["a"], columns["e"] = columns["a"] + b * p_x, b * p_F
        # a row that evaluates nothing goes by the time of the next
        times = np.array([(now if runs else after).time for now, after, runs in neighbours])
        return StepTable.from_columns(self._solver, times, evaluates=runs, push=np.array(push), **columns)


def _minus(p: tuple[np.ndarray, np.ndarray], q: tuple[np.ndarray, np.ndarray]) -> Any:
    return p[0] - q[0], p[1] - q[1]
