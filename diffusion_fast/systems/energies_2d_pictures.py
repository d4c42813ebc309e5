"""The pictures of system C: a panel for each model (rows) and set of points (columns)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeVar

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from diffusion_fast.plotting import style

RESOLUTION = 80
MOST_POINTS = 2000

T = TypeVar("T")


def _grid(
    rows: Mapping[str, Sequence[T]], columns: Sequence[str], draw: Callable[[Any, T, int], None]
) -> Figure:
    """draw(axes, value, column) for every value of every row."""
    figure = style.make_figure(2.7 * len(columns), 2.4 * len(rows))
    panels = figure.subplots(len(rows), len(columns), squeeze=False)
    for i, (axes_row, (name, values)) in enumerate(zip(panels, rows.items(), strict=True)):
        for k, (axes, value) in enumerate(zip(axes_row, values, strict=True)):
            draw(axes, value, k)
            style.decorate(axes, title=None if i else columns[k])
        axes_row[0].set_ylabel(style.shorten(name, style.SHORT_LENGTH), fontsize=style.LABEL_SIZE)
    return figure


def samples(
    rows: Mapping[str, Sequence[np.ndarray]], columns: Sequence[str], limits: Sequence[np.ndarray]
) -> Figure:
    def draw(axes: Any, x: np.ndarray, k: int) -> None:
        style.scatter(axes, x[:MOST_POINTS], style.SAMPLE_COLOR, small=True)
        style.set_limits(axes, *limits[k].T)

    return _grid(rows, columns, draw)


def densities(rows: Mapping[str, Sequence[np.ndarray]], columns: Sequence[str]) -> Figure:
    """Histograms of log densities with their quartiles, from the data's lowest up; how many lie below."""
    data = next(iter(rows.values()))
    ranges = [(float(np.quantile(values, 0.001)) - 1, float(values.max()) + 0.2) for values in data]

    def draw(axes: Any, values: np.ndarray, k: int) -> None:
        low, high = ranges[k]
        shown = values[values > low]
        axes.hist(shown, bins=60, range=(low, high), color=style.SAMPLE_COLOR, alpha=0.5)
        axes.set_xlim(low, high)
        for quartile in np.quantile(values, [0.25, 0.5, 0.75]):
            if quartile > low:
                axes.axvline(quartile, color=style.GREY, linewidth=1, linestyle="--")
        if len(shown) < len(values):
            axes.text(
                0.03,
                0.9,
                f"{len(values) - len(shown)} lower",
                transform=axes.transAxes,
                fontsize=style.TICK_SIZE,
            )
        axes.set_yticks([])

    return _grid(rows, columns, draw)


def losses(rows: Mapping[str, Sequence[Mapping[str, Sequence[float]]]], columns: Sequence[str]) -> Figure:
    """Each loss over the share of the steps done; a legend where a model has several."""

    def draw(axes: Any, curves: Mapping[str, Sequence[float]], k: int) -> None:
        for i, (name, values) in enumerate(curves.items()):
            axes.plot(
                np.linspace(0, 1, len(values)), values, **style.line_look(i) | {"linewidth": 1}, label=name
            )
        if k == 0:
            axes.legend(frameon=False, fontsize=style.TICK_SIZE)
        style.open_frame(axes)

    return _grid(rows, columns, draw)


def landscapes(
    rows: Mapping[str, Sequence[Callable[[Tensor], Tensor]]],
    columns: Sequence[str],
    limits: Sequence[np.ndarray],
) -> Figure:
    """Filled by value, between its 2nd and 98th percentile."""

    def draw(axes: Any, function: Callable[[Tensor], Tensor], k: int) -> None:
        x, y = (np.linspace(low, high, RESOLUTION) for low, high in limits[k])
        points = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2).astype(np.float32)
        values = function(torch.from_numpy(points)).reshape(RESOLUTION, RESOLUTION).numpy()
        low, high = np.quantile(values, [0.02, 0.98])
        axes.pcolormesh(x, y, values, cmap="viridis", vmin=low, vmax=high, shading="nearest", rasterized=True)
        style.set_limits(axes, *limits[k].T)

    return _grid(rows, columns, draw)
