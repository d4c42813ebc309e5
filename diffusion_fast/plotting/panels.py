"""Many sets of samples beside the data, a small panel each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from diffusion_fast import _checks
from diffusion_fast.plotting import rows as rows_of
from diffusion_fast.plotting import style

PER_LINE = 4
MAX_PANELS = 31
POINTS = 2000  # in a panel, which is small


def sample_panels(
    samples: Mapping[str, Any], data: Any, *, columns: Sequence[str] | None = None, title: str | None = None
) -> Figure:
    """Scatter plots of the data, then of each set of samples, in panels with the same limits.

    Args:
        samples: name -> (n, dim) array or tensor, up to 31 of them; rows with NaN or infinity are counted as
            outside.
        data: (n, dim), finite. dim from 2 up; of more than three columns the first three are shown.
        columns: dim names for the axes.

    Raises TypeError or ValueError naming the argument for anything else.
    """
    accepted = f"a dictionary of 1 to {MAX_PANELS} names with samples each"
    if not isinstance(samples, Mapping):
        raise _checks.bad_type("samples", samples, accepted)
    if not 1 <= len(samples) <= MAX_PANELS:
        raise _checks.bad_value("samples", samples, accepted)
    real = rows_of.finite_array("data", data)
    dim = real.shape[1]
    if dim < 2:
        raise _checks.bad_value("data", data, "rows of 2 numbers or more")
    sets = {"data": real} | {name: rows_of.both(rows, real)[1] for name, rows in samples.items()}
    names = rows_of.column_names(columns, dim)[:3]
    low, high = rows_of.limits(real[:, :3])
    across = min(PER_LINE, len(sets))
    down = -(-len(sets) // across)
    figure = style.make_figure(0.3 + 2.4 * across, 0.3 + 2.7 * down, rows_of.say_columns(title, dim))
    for k, (name, rows) in enumerate(sets.items()):
        axes = style.add_panel(figure, (down, across, k + 1), spatial=dim > 2)
        color = style.DATA_COLOR if k == 0 else style.SAMPLE_COLOR
        _draw(axes, rows[:, :3], color, low, high)
        outside = len(rows) - int(np.count_nonzero(rows_of.inside(rows[:, :3], low, high)))
        note = rows_of.outside_note(rows, outside) if outside else " "  # titles stay in line
        style.decorate(axes, *names, title=style.shorten(name), note=note)
    return figure


def _draw(axes: Any, rows: np.ndarray, color: str, low: np.ndarray, high: np.ndarray) -> None:
    chosen = rows_of.choose(len(rows), POINTS)
    chosen = chosen[rows_of.inside(rows[chosen], low, high)]  # 3-D axes would draw the others out of the box
    style.scatter(axes, rows[chosen], color, small=True)
    style.set_limits(axes, low, high)
    if len(low) == 3:
        for axis in (axes.xaxis, axes.yaxis, axes.zaxis):
            axis.set_ticklabels([])
            axis.labelpad = -14  # where those would be
