"""All pairs of a few columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from diffusion_fast import _checks
from diffusion_fast.plotting import histograms, style
from diffusion_fast.plotting import rows as rows_of
from diffusion_fast.plotting.histograms import RowSet

MAX_COLUMNS = 8
POINTS = 500  # of each set: the panels are small, and many


def pair_plot(
    samples: Any, data: Any, *, columns: Sequence[str] | None = None, title: str | None = None
) -> Figure:
    """Histograms of all columns, and every pair of columns with both sets in one panel; of two to eight
    columns.

    samples, data, columns, title: as for `compare_samples`. A panel holds up to 500 points of each set,
    mixed, so that neither covers the other. Raises TypeError or ValueError naming the argument.
    """
    real, drawn = rows_of.both(samples, data)
    dim = real.shape[1]
    if not 2 <= dim <= MAX_COLUMNS:
        raise _checks.bad_value("data", data, f"rows of 2 to {MAX_COLUMNS} numbers")
    names = rows_of.column_names(columns, dim)
    low, high = rows_of.limits(real)
    sets = [RowSet("data", real, style.DATA_COLOR), RowSet("samples", drawn, style.SAMPLE_COLOR)]
    size = 1.0 + max(1.15, 5.6 / dim) * dim
    figure = style.make_figure(size, size, title)
    points, kinds = _mixed(sets, low, high)
    grid = figure.add_gridspec(dim, dim)
    for i in range(dim):
        for j in range(i + 1):
            axes = figure.add_subplot(grid[i, j])
            if i == j:
                histograms.draw_both(axes, sets, low[i], high[i], i)
                style.set_limits(axes, low[[i]], high[[i]])
                axes.set_yticks([])
            else:
                style.scatter(axes, points[:, [j, i]], "", kinds, small=True)
                style.set_limits(axes, low[[j, i]], high[[j, i]], equal=False)
            labels = names[j] if i == dim - 1 else "", names[i] if j == 0 < i else ""
            style.decorate(axes, *labels, length=style.SHORT_LENGTH)
            axes.locator_params(nbins=3)
            axes.tick_params(labelbottom=i == dim - 1, labelleft=j == 0)
    corner = figure.add_subplot(grid[0, -1])
    corner.set_axis_off()
    legend = histograms.draw_legend(corner, sets, low, high, loc="upper right")
    legend.set_in_layout(False)  # the column would be widened for it
    figure.align_labels()
    return figure


def _mixed(sets: list[RowSet], low: np.ndarray, high: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Points of both sets in random order, and 0 or 1 for the set that each is of."""
    parts = []
    for part in sets:
        rows = part.rows[rows_of.choose(len(part.rows), POINTS)]
        parts.append(rows[rows_of.inside(rows, low, high)])
    order = np.random.default_rng(0).permutation(len(parts[0]) + len(parts[1]))
    return np.concatenate(parts)[order], np.repeat([0, 1], [len(part) for part in parts])[order]
