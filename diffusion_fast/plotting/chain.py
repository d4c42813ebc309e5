"""The reverse chain: how noise becomes samples, as a strip of frames."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from diffusion_fast import _checks
from diffusion_fast.plotting import histograms, style
from diffusion_fast.plotting import rows as rows_of
from diffusion_fast.plotting.images import as_images, draw_mosaic, grey_range

ACCEPTED = (
    "(steps + 1, n, dim) numbers, or (steps + 1, n, height, width) of images, of at least one step, as "
    "sample(return_trajectory=True) returns them"
)
MAX_FRAMES = 300  # of a film, all are in memory at once
PER_LINE = 6
POINTS = 2000  # in a frame, which is small
IMAGES = 16
NOISE_TAIL = 0.005  # of the noise, on either side of each column, may lie outside


def chain_strip(
    trajectory: Any,
    *,
    frames: int | Sequence[int] = 6,
    columns: Sequence[str] | None = None,
    shape: tuple[int, int] | None = None,
    title: str | None = None,
) -> Figure:
    """The chain from noise (left) to samples (right), in frames with the same limits.

    Args:
        trajectory: (steps + 1, n, dim) as ``sample(return_trajectory=True)`` returns it, drawn as histograms
            (one column), points (two) or points in space (the first three of more); or images, (steps + 1, n,
            height, width), (steps + 1, n, 1, height, width), or flat rows with `shape`, of which the first 16
            are drawn.
        frames: how many, 2 to 300, evenly spaced from the first to the last (fewer where the chain has
            fewer), or the indices to draw: 0 is the noise, steps the samples.
        columns: dim names for the axes. shape: (height, width) of flat images.

    The limits hold the samples and the middle 99 percent of the noise in each column; each frame says how
    many of its rows lie outside. Images have the grey scale of the samples.

    Raises TypeError or ValueError naming the argument for anything else.
    """
    painter = ChainPainter(trajectory, frames, columns, shape, compact=True)
    count = len(painter.chosen)
    n_columns = min(PER_LINE, count)
    n_lines = -(-count // n_columns)
    height = 0.2 + (2.15 if painter.images else 2.6) * n_lines + (0.3 if title else 0)
    figure = style.make_figure(0.3 + 2.0 * n_columns, height, painter.say_columns(title))
    for k, index in enumerate(painter.chosen):
        axes = painter.add_axes(figure, (n_lines, n_columns, k + 1))
        painter.draw(axes, index, f"step {index}" + (": samples" if index == painter.steps else ""))
        if not painter.spatial:  # what the panels share is said once
            left, bottom = k % n_columns == 0, k + n_columns >= count
            axes.tick_params(labelleft=left, labelbottom=bottom)
            axes.yaxis.label.set_visible(left)
            axes.xaxis.label.set_visible(bottom)
    return figure


class ChainPainter:
    """Draws the chosen frames of a chain, all with the same limits and the same rows.

    compact: for small panels, without numbers on the axes in space.
    """

    def __init__(
        self,
        trajectory: Any,
        frames: Any,
        columns: Sequence[str] | None,
        shape: tuple[int, int] | None,
        *,
        compact: bool,
    ) -> None:
        self.compact = compact
        array = rows_of.as_array("trajectory", trajectory, (3, 4, 5), ACCEPTED)
        if len(array) < 2:
            raise _checks.bad_value("trajectory", trajectory, ACCEPTED)
        self.steps = len(array) - 1
        self.chosen = _choose_frames(frames, self.steps)
        self.images = array.ndim > 3 or shape is not None
        self.spatial = not self.images and array.shape[2] >= 3
        if self.images:
            if columns is not None:
                raise _checks.bad_value("columns", columns, "None for images")
            self.frames = [as_images("trajectory", array[index], shape) for index in range(self.steps + 1)]
            self.grey = grey_range("trajectory", self.frames[-1])
            return
        self.names = rows_of.column_names(columns, array.shape[2])
        self.frames = [frame[:, :3] for frame in array]
        self.points = rows_of.choose(array.shape[1], POINTS)
        self.low, self.high = self._limits(trajectory)
        if array.shape[2] == 1:
            self.edges = histograms.bin_edges(array.shape[1], self.low[0], self.high[0])
            self.top = 1.1 * max(self._heights(index).max() for index in self.chosen) or 1.0

    def _limits(self, trajectory: Any) -> tuple[np.ndarray, np.ndarray]:
        """Those of the samples and of most of the noise: its tails would leave little room for them."""
        noise, samples = (rows[np.isfinite(rows).all(axis=1)] for rows in (self.frames[0], self.frames[-1]))
        if not len(noise) or not len(samples):
            raise _checks.bad_value("trajectory", trajectory, "finite rows in the first and the last frame")
        low, high = rows_of.limits(samples)
        tails = np.quantile(noise, [NOISE_TAIL, 1 - NOISE_TAIL], axis=0)
        return np.minimum(low, tails[0]), np.maximum(high, tails[1])

    def _heights(self, index: int) -> np.ndarray:
        rows = self.frames[index]
        return histograms.heights(rows[:, 0], self.edges, len(rows))

    def add_axes(self, figure: Figure, position: tuple[int, int, int]) -> Any:
        return style.add_panel(figure, position, spatial=self.spatial, zoom=1.1 if self.compact else 0.82)

    def say_columns(self, title: str | None) -> str | None:
        return title if self.images else rows_of.say_columns(title, len(self.names))

    def draw(self, axes: Any, index: int, title: str) -> None:
        if self.images:
            images = self.frames[index][:IMAGES]
            draw_mosaic(axes, images, math.isqrt(len(images) - 1) + 1, *self.grey)
            style.decorate(axes, title=title)
            return
        rows, low, high = self.frames[index], self.low, self.high
        within = rows_of.inside(rows, low, high)
        outside = len(rows) - int(np.count_nonzero(within))
        if len(low) == 1:
            look = {"histtype": "stepfilled", "color": style.SAMPLE_COLOR, "alpha": 0.6}
            histograms.draw_bars(axes, self.edges, self._heights(index), **look)
            axes.set(ylim=(0, self.top))
            style.open_frame(axes)
        else:
            points = self.points[within[self.points]]
            style.scatter(axes, rows[points], style.SAMPLE_COLOR, small=self.compact)
        style.set_limits(axes, low, high)
        if self.spatial and self.compact:
            for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
                axis.set_ticklabels([])
                axis.labelpad = -14  # where those would be
        names = [*self.names, "density"][:2] if not self.spatial else self.names[:3]
        note = rows_of.outside_note(rows, outside) if outside else " "  # titles stay in line
        style.decorate(axes, *names, title=title, note=note)


def _choose_frames(frames: Any, steps: int) -> list[int]:
    if isinstance(frames, Sequence) and not isinstance(frames, str):
        if not 1 <= len(frames) <= MAX_FRAMES:
            raise _checks.bad_value("frames", frames, f"1 to {MAX_FRAMES} indices, or a number of frames")
        return [_checks.integer("frames", index, 0, steps) for index in frames]
    count = _checks.integer("frames", frames, 2, MAX_FRAMES)
    return np.unique(np.linspace(0, steps, count).round().astype(int)).tolist()
