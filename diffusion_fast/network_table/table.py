"""NetworkTable: the output of a plan's network on grids, one for each row, as splines through the nodes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from diffusion_fast import _cpu

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int32]

LOOKUP_WORK = dict(enumerate(_cpu.LOOKUP_WORK, 1))  # csrc/cpu/tables.h


@dataclass(frozen=True, eq=False)
class NetworkTable:
    """The grids of a plan's rows, and what is known of their error.

    tolerance: that was asked for. of_row: (n_rows,), the grid of each row, -1 where it evaluates no network;
    rows that evaluate the same share one. scale, shift, cells: (n_grids, dim); x is at scale x + shift of an
    axis, whose nodes are the whole numbers from 0 to cells. values: what csrc/cpu/tables.h says, float32.
    n_classes: of the plan. rms_error, max_error: (n_grids,), on `points` random points each, relative to
    the RMS of the network's output in that row. smooth: whether the tolerance is of the maximum, else of the
    rms. evaluations: of the network, that making the table took.
    """

    tolerance: float
    of_row: Integers
    scale: Floats
    shift: Floats
    cells: Integers
    values: Floats
    n_classes: int
    rms_error: npt.NDArray[np.float64]
    max_error: npt.NDArray[np.float64]
    points: int
    smooth: bool
    evaluations: int

    @property
    def dim(self) -> int:
        return self.scale.shape[1]

    @cached_property
    def digest(self) -> str:
        """SHA-256 of all that samples are a function of, in hexadecimal."""
        digest = hashlib.sha256(f"{self.n_classes} {self.scale.shape}\n".encode())
        for array in (self.of_row, self.scale, self.shift, self.cells, self.values):
            digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()

    @cached_property
    def block(self) -> int:
        """Samples with which the kernels make the most of what they read of the table."""
        return int(self.packed().block)

    def packed(self) -> Any:
        """What the kernels take; it reads the values where they are."""
        return _cpu.Tables(
            self.dim, self.n_classes, self.of_row, self.scale, self.shift, self.cells, self.values
        )

    def pays_from(self, work_per_step: int) -> int | None:
        """Samples from which on making the table and reading it is less work than running a network of so
        many multiply-adds; None where reading it alone is more."""
        saved = work_per_step - LOOKUP_WORK[self.dim]
        rows = int((self.of_row >= 0).sum())
        return None if saved <= 0 else -(-self.evaluations * work_per_step // (saved * rows))

    def explain(self, work_per_step: int) -> list[str]:
        sizes = sorted({tuple(cells) for cells in self.cells.tolist()}, key=np.prod)
        named = [" x ".join(map(str, size)) for size in (sizes[0], sizes[-1])]
        of_classes = f" for each of {self.n_classes} classes" if self.n_classes else ""
        criterion = "largest" if self.smooth else "rms, for the network has kinks"
        points, pays = len(self.cells) * self.points, self.pays_from(work_per_step)
        return [
            f"table: {len(self.cells)} grids of {' to '.join(dict.fromkeys(named))} cells{of_classes}, "
            f"{self.values.nbytes / 1e6:.1f} MB; cubic splines, and the network itself beside the grids",
            f"table: on {points:,} random points, relative to the network's RMS in a row, an error of "
            f"{self.rms_error.max():.2g} rms and {self.max_error.max():.2g} at most "
            f"(tolerance {self.tolerance:g}, of the {criterion})",
            f"table: it took {self.evaluations:,} evaluations of the network and "
            + (
                "does not pay: reading it is more work than the network"
                if pays is None
                else f"pays from about {pays:,} samples on"
            ),
        ]
