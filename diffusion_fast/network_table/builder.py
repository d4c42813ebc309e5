"""Making a NetworkTable: where the samples are, and grids refined until their error is below the tolerance.

A pilot, float32 samples of a seed of its own, tells for each row the box that samples come from. The grid on
it begins with 16 cells an axis; where the error on random points is above the tolerance it gets more, as many
as the order of the interpolation lets expect. Half of the points are where the pilot was, half anywhere in
the box. All of it is a function of the plan and the tolerance.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from diffusion_fast import _checks, _cpu
from diffusion_fast.network_table.table import Floats, Integers, NetworkTable
from diffusion_fast.plan import Plan
from diffusion_fast.solvers.table import EVAL
from diffusion_fast.tile_ops import FUNCTION_NAMES

SEED = 0x7AB1E
PILOT = 4096  # samples
TRAJECTORY_FLOATS = 1 << 26  # of the pilot: fewer samples in a chain of very many rows
POINTS = {1: 1024, 2: 4096}  # of a grid on which its error is measured
MARGIN = 0.05  # of the box's width, on each side; what a sample beside it costs is one run of the network
FIRST_CELLS = 16
MAX_CELLS = 1 << 14  # of an axis
MAX_BYTES = 1 << 29
BATCH = 1 << 20  # points and classes that the network is run on at a time
# The error falls with this power of the spacing: cubic splines; the rms of what has kinks
ORDER, ORDER_OF_KINKS = 4.0, 1.5
KINKED = {"relu", "leaky_relu", "elu", "abs", "clamp_min", "clamp_max"}
KINKED |= {"relu_slope", "leaky_relu_slope", "elu_slope"}


def build(plan: Plan, tolerance: float, threads: int) -> NetworkTable:
    """The table of a plan of one or two elements without context or guidance rescale.

    tolerance: of the error of the network's output, relative to its RMS in the row: of the largest on random
    points, or where the network has kinks (ReLU) of the rms, for near a kink no grid makes it small.

    Raises ValueError naming the tolerance where it takes tables of more than 512 MB, the precision where any
    tolerance does or the points that the tables are judged by, and the model where its output is not finite
    on the grids.
    """
    builder = _Builder(plan, tolerance, threads)
    while len(unfinished := np.flatnonzero(~builder.finished)):
        builder.check_size()
        for cells in np.unique(builder.cells[unfinished]):
            alike = unfinished[builder.cells[unfinished] == cells]
            step = max(1, BATCH // (len(builder.classes) * _nodes_of(int(cells), plan.dim)))
            for at in range(0, len(alike), step):
                builder.refine(alike[at : at + step], int(cells))
    return builder.table()


def build_evaluations(plan: Plan) -> int:
    """Evaluations of the network that any table takes: the pilot's, at points, and of the first grids."""
    rows = int(((plan.rows["flags"] & EVAL) != 0).sum())
    classes = max(plan.n_classes, 1)
    return rows * (PILOT + classes * (POINTS[plan.dim] + _nodes_of(FIRST_CELLS, plan.dim)))


def kinked(plan: Plan) -> bool:
    """Whether the network's output has kinks in x, as its functions have."""
    return any(FUNCTION_NAMES[op["kind"]][op["function"]] in KINKED for op in plan.ops)


def _nodes_of(cells: int, dim: int) -> int:
    return int((cells + 1 + 2 * _cpu.FIT_MARGIN) ** dim)


def _grids_of(plan: Plan) -> tuple[Integers, Integers]:
    """The grid of each row, -1 for none, and each grid's first row; equal evaluations share one."""
    rows = plan.rows
    evaluated = (rows["flags"] & EVAL) != 0
    guidance = rows["guidance"] if plan.branches == 2 else np.ones(len(rows), np.float32)
    keys = np.stack([rows["table"].astype(np.float64), rows["c_in"], guidance], axis=1)
    of_row = np.full(len(rows), -1, np.int32)
    _, first, same = np.unique(keys[evaluated], axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    of_row[evaluated] = np.argsort(order)[same.ravel()]
    return of_row, np.flatnonzero(evaluated)[first[order]].astype(np.int32)


def _address(array: np.ndarray) -> int:
    return int(array.ctypes.data)


@dataclass
class _Builder:
    plan: Plan
    tolerance: float
    threads: int

    def __post_init__(self) -> None:
        self.program: Any = _cpu.Program(self.plan.to_bytes())
        self.of_row, self.first = _grids_of(self.plan)
        self.classes = range(max(self.plan.n_classes, 1))
        self.smooth = not kinked(self.plan)
        self.evaluations = 0
        n_grids, dim = len(self.first), self.plan.dim
        self.cells = np.full(n_grids, FIRST_CELLS, np.int32)
        judged = 4 * (len(self.classes) + 1) * n_grids * POINTS[dim] * dim  # exact, and points
        if max(self._size(), judged) > MAX_BYTES:
            accepted = (
                f"'float32' or 'auto', for making {n_grids} tables of {len(self.classes)} classes takes more "
                f"than {MAX_BYTES >> 20} MB"
            )
            raise _checks.bad_value("precision", "table", accepted)
        self._look_where_samples_are()
        self._choose_points()
        self.finished = np.zeros(n_grids, bool)
        self.values: list[Floats] = [np.empty(0, np.float32)] * n_grids
        self.scale, self.shift = np.empty((n_grids, dim), np.float32), np.empty((n_grids, dim), np.float32)
        self.rms_error, self.max_error = np.full(n_grids, np.inf), np.full(n_grids, np.inf)

    # ---- the pilot

    def _look_where_samples_are(self) -> None:
        """low, high: (n_grids, dim), the box of each grid."""
        plan, rows = self.plan, len(self.plan.rows)
        n = int(np.clip(TRAJECTORY_FLOATS // (rows * plan.dim), 256, PILOT))
        out = np.empty((n, plan.dim), np.float32)
        self.pilot = np.empty((rows + 1, n, plan.dim), np.float32)
        labels = (np.arange(n) % len(self.classes)).astype(np.int32)
        given = {"labels": _address(labels)} if plan.n_classes else {}
        self.program.run(_address(out), n, 0, SEED, self.threads, trajectory=_address(self.pilot), **given)
        self.evaluations += n * rows
        if not np.isfinite(self.pilot).all():
            raise _checks.bad_value("model", "one whose samples are not finite", "one with finite samples")
        there = self.of_row >= 0
        shape = len(self.first), plan.dim
        low, high = np.full(shape, np.inf), np.full(shape, -np.inf)
        np.minimum.at(low, self.of_row[there], self.pilot[:-1].min(axis=1)[there])
        np.maximum.at(high, self.of_row[there], self.pilot[:-1].max(axis=1)[there])
        least = 1e-6 * np.maximum(np.abs(low), np.abs(high)) + 1e-30  # samples that are all the same
        margin = np.maximum(MARGIN * (high - low), least)
        self.low, self.high = low - margin, high + margin

    def _choose_points(self) -> None:
        """points: (n_grids, k, dim), half of them the pilot's; exact: (classes, n_grids, k, dim)."""
        n_grids, dim = self.low.shape
        half = min(POINTS[dim] // 2, self.pilot.shape[1])
        anywhere = np.random.default_rng(SEED).random((n_grids, half, dim))
        box = self.low[:, None] + anywhere * (self.high - self.low)[:, None]
        self.points = np.concatenate([self.pilot[self.first, :half], box.astype(np.float32)], axis=1)
        del self.pilot
        self.exact = self._network(self.first, self.points)
        usual = self.exact[:, :, :half].astype(np.float64)
        self.rms = np.maximum(np.sqrt(np.square(usual).mean(axis=(0, 2, 3))), 1e-30)

    def _network(self, rows: Integers, points: Floats) -> Floats:
        """(classes, rows, k, dim) for points (rows, k, dim)."""
        out = np.empty((len(self.classes), *points.shape), np.float32)
        points = np.ascontiguousarray(points)
        for label in self.classes:
            self.program.network(
                rows, _address(points), _address(out[label]), points.shape[1], label, self.threads
            )
        self.evaluations += out.size // self.plan.dim
        if not np.isfinite(out).all():
            given = "one whose output is not finite near its samples"
            raise _checks.bad_value("model", given, "one with a finite output, with precision='table'")
        return out

    # ---- the grids

    def _floats_of(self, cells: np.ndarray) -> np.ndarray:
        """Of grids of one class."""
        wide = cells.astype(np.int64)
        return 4 * wide if self.plan.dim == 1 else 2 * (wide + 3) ** 2

    def _size(self) -> int:
        """Bytes of the tables with so many cells."""
        return 4 * len(self.classes) * int(self._floats_of(self.cells).sum())

    def check_size(self) -> None:
        if self._size() > MAX_BYTES or self.cells.max() > MAX_CELLS:
            known = np.isfinite(self.max_error)
            reached = (self.max_error if self.smooth else self.rms_error)[known].max()
            accepted = (
                f"a larger one, for this takes tables of more than {MAX_BYTES >> 20} MB or of more than "
                f"{MAX_CELLS} cells an axis; the largest error is still {reached:.2g}"
            )
            raise _checks.bad_value("tolerance", self.tolerance, accepted)

    def refine(self, grids: np.ndarray, cells: int) -> None:
        """Makes the grids with so many cells an axis, and finds what they are good for."""
        n, dim = len(grids), self.plan.dim
        scale = (cells / (self.high - self.low)[grids]).astype(np.float32)
        shift = (-self.low[grids] * scale).astype(np.float32)
        sizes = np.full((n, dim), cells, np.int32)
        places = np.arange(-_cpu.FIT_MARGIN, cells + 1 + _cpu.FIT_MARGIN)
        axes = (places[:, None] - shift.astype(np.float64)[:, None]) / scale.astype(np.float64)[:, None]
        F = self._at_nodes(self.first[grids], axes)
        values = np.empty((n, len(self.classes), int(self._floats_of(np.array(cells)))), np.float32)
        for label in self.classes:
            fitted = np.empty((n, values.shape[2]), np.float32)
            _cpu.fit(sizes[0], _address(F[label]), _address(fitted), n)
            values[:, label] = fitted
        found = self._lookup(sizes, scale, shift, values, self.points[grids])
        self._judge(grids, found - self.exact[:, grids].astype(np.float64))
        self.scale[grids], self.shift[grids] = scale, shift
        for i, grid in enumerate(grids):
            if self.finished[grid]:
                self.values[grid] = values[i].ravel()

    def _at_nodes(self, rows: Integers, axes: npt.NDArray[np.float64]) -> Floats:
        """(classes, rows, nodes, dim) for the places of nodes, axes (rows, places, dim): in the plane all
        pairs of them, of which the first axis runs faster."""
        if self.plan.dim == 1:
            return self._network(rows, axes.astype(np.float32))
        n, places, _ = axes.shape
        F = np.empty((len(self.classes), n, places, places, 2), np.float32)
        lines = max(1, BATCH // (n * places))  # one grid may have more nodes than a batch
        for at in range(0, places, lines):
            both = np.broadcast_arrays(axes[:, None, :, 0], axes[:, at : at + lines, None, 1])
            points = np.stack(both, axis=-1).astype(np.float32).reshape(n, -1, 2)
            part = F[:, :, at : at + lines]
            part[:] = self._network(rows, points).reshape(part.shape)
        return F.reshape(len(self.classes), n, places**2, 2)

    def _lookup(
        self, sizes: Integers, scale: Floats, shift: Floats, values: Floats, points: Floats
    ) -> Floats:
        """(classes, n, k, dim) of the tables at points (n, k, dim)."""
        every = np.arange(len(points), dtype=np.int32)
        made: Any = _cpu.Tables(
            self.plan.dim, self.plan.n_classes, every, scale, shift, sizes, values.ravel()
        )
        found = np.empty((len(self.classes), *points.shape), np.float32)
        points = np.ascontiguousarray(points)
        for label in self.classes:
            made.lookup(every, _address(points), _address(found[label]), points.shape[1], label)
        return found

    def _judge(self, grids: np.ndarray, error: np.ndarray) -> None:
        """error: (classes, n, k, dim). Sets what is known of the grids, and the cells of the next try."""
        square = np.square(error)
        half = error.shape[2] // 2
        # Rounding may put a point of the box's edge beside the grid, where the network is run: no error.
        self.rms_error[grids] = np.sqrt(np.nanmean(square[:, :, :half], axis=(0, 2, 3))) / self.rms[grids]
        self.max_error[grids] = np.sqrt(np.nanmax(square, axis=(0, 2, 3))) / self.rms[grids]
        errors, order = (self.max_error, ORDER) if self.smooth else (self.rms_error, ORDER_OF_KINKS)
        ratio = np.maximum(errors[grids] / self.tolerance, 1e-30)
        self.finished[grids] = ratio <= 1
        # Cells are 16 times powers of the fourth root of 2: many grids have as many and are made together.
        steps = np.clip(np.ceil(4 * np.log2(ratio) / order + 0.25), 1, 8)
        at = np.rint(4 * np.log2(self.cells[grids] / FIRST_CELLS)) + steps
        more = np.rint(FIRST_CELLS * 2 ** (at / 4)).astype(np.int32)
        self.cells[grids] = np.where(ratio <= 1, self.cells[grids], more)

    def table(self) -> NetworkTable:
        return NetworkTable(
            self.tolerance,
            self.of_row,
            self.scale,
            self.shift,
            np.repeat(self.cells[:, None], self.plan.dim, axis=1).astype(np.int32),
            np.concatenate(self.values),
            self.plan.n_classes,
            self.rms_error,
            self.max_error,
            self.points.shape[1],
            self.smooth,
            self.evaluations,
        )
