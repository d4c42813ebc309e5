"""Score and energy fields over two dimensions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from diffusion_fast import _checks
from diffusion_fast.plotting import rows as rows_of
from diffusion_fast.plotting import style

ACCEPTED = "a function from (n, 2) float32 tensors to (n,) or (n, 1) energies, or (n, 2) vectors"
ARROWS = 24  # along each axis
LEVELS = 16
# From light to dark evenly, for any kind of color vision; light enough at the end for black arrows.
PALE = LinearSegmentedColormap.from_list("pale", ["#FFFFFF", "#D6E6F4", "#9CC8E4", "#56A4D0"])


def field(
    function: Callable[[torch.Tensor], Any],
    limits: Sequence[Sequence[float]],
    *,
    resolution: int = 200,
    columns: Sequence[str] | None = None,
    label: str | None = None,
    title: str | None = None,
) -> Figure:
    """A score as arrows over its magnitude, or an energy as filled contours.

    Args:
        function: called once with an (n, 2) float32 tensor of all points. A result of shape (n, 2) is drawn
            as vectors (arrows of one length show the direction, the color how long they are), one of shape
            (n,) or (n, 1) as contours. Of a noise prediction eps at step t the score is -eps / sqrt(1 -
            abar_t) (Song et al. 2021, "Score-based generative modeling through SDEs"):
            ``lambda x: -model(x, torch.full((len(x),), t)) / (1 -
            schedule.alphas_cumprod[t]).sqrt().float()``.
        limits: ((x_low, x_high), (y_low, y_high)).
        resolution: points along each axis, 24 to 1000.
        columns: the names of the two axes. label: what the color shows. title: over the picture.

    The colors end at the 98th percentile of the magnitudes, and soon above the 90th of the energies, which
    grow without bound away from the data; the bar then ends in an arrow. Values that are not finite stay
    blank.

    Raises TypeError or ValueError naming the argument, also where the function returns another shape or
    nothing finite.
    """
    if not callable(function):
        raise _checks.bad_type("function", function, ACCEPTED)
    low, high = _check_limits(limits)
    resolution = _checks.integer("resolution", resolution, ARROWS, 1000)
    if label is not None and not isinstance(label, str):
        raise _checks.bad_type("label", label, "a string or None")
    names = ["x", "y"] if columns is None else rows_of.column_names(columns, 2)
    ratio = style.equal_ratio(low, high) or 0.9
    figure = style.make_figure(6.2, float(np.clip(4.7 * ratio + (0.9 if title else 0.6), 3, 8)), title)
    x, y = (np.linspace(a, b, resolution) for a, b in zip(low, high, strict=True))
    values = _evaluate(function, x, y)
    axes = figure.subplots()
    if values.shape[-1] == 2:
        colors = _draw_vectors(axes, x, y, values)
    else:
        colors = _draw_contours(axes, x, y, values[..., 0])
    style.set_limits(axes, low, high)
    style.decorate(axes, *names)
    bar = figure.colorbar(colors, ax=axes)
    bar.ax.tick_params(labelsize=style.TICK_SIZE)
    shown = label or ("magnitude" if values.shape[-1] == 2 else "energy")
    bar.set_label(shown, fontsize=style.LABEL_SIZE, parse_math=False)
    return figure


def _draw_vectors(axes: Any, x: np.ndarray, y: np.ndarray, vectors: np.ndarray) -> Any:
    length = np.linalg.norm(vectors, axis=-1)
    top = float(np.nanquantile(length, 0.98)) or 1.0
    colors = axes.pcolormesh(
        x, y, length, cmap=PALE.copy(), vmin=0, vmax=top, shading="nearest", rasterized=True
    )
    colors.cmap.colorbar_extend = "max" if np.nanmax(length) > top else "neither"
    every = np.linspace(0, len(x) - 1, ARROWS + 2).round().astype(int)[1:-1]
    spots = np.ix_(every, every)
    with np.errstate(invalid="ignore"):  # a vector of length 0 has no direction and no arrow
        unit = vectors[spots] / length[spots][..., None]
    look = {"scale": 1.2 * ARROWS, "width": 0.0028, "headwidth": 4, "pivot": "mid", "color": "black"}
    axes.quiver(x[every], y[every], unit[..., 0], unit[..., 1], **look)
    return colors


def _draw_contours(axes: Any, x: np.ndarray, y: np.ndarray, energy: np.ndarray) -> Any:
    low, high = float(np.nanmin(energy)), float(np.nanquantile(energy, 0.9))
    if high <= low:
        low, high = low - 0.5, low + 0.5
    levels = MaxNLocator(LEVELS).tick_values(low, high)
    masked = np.ma.masked_invalid(energy)
    extend = "max" if np.nanmax(energy) > levels[-1] else "neither"
    colors = axes.contourf(x, y, masked, levels, cmap="viridis", extend=extend)
    axes.contour(x, y, masked, levels[1:], colors="white", linewidths=0.4, alpha=0.6)
    return colors


def _evaluate(function: Callable[[torch.Tensor], Any], x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """(len(y), len(x), 1 or 2) float64, NaN where the function is not finite."""
    points = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    result = function(torch.from_numpy(points.astype(np.float32)))
    values = rows_of.as_array("function", result, (1, 2), ACCEPTED)
    if len(values) != len(points) or (values.ndim == 2 and values.shape[1] not in (1, 2)):
        raise _checks.bad_value("function", result, ACCEPTED)
    values = values.reshape(len(y), len(x), -1).astype(np.float64)
    values[~np.isfinite(values).all(axis=-1)] = np.nan
    if np.isnan(values).all():
        raise _checks.bad_value("function", result, "finite values at some of the points")
    return values


def _check_limits(limits: Any) -> tuple[np.ndarray, np.ndarray]:
    accepted = "((x_low, x_high), (y_low, y_high)) with each low below its high"
    try:
        (x_low, x_high), (y_low, y_high) = limits
    except (TypeError, ValueError):
        raise _checks.bad_type("limits", limits, accepted) from None
    low, high = (
        np.array([_checks.real("limits", value) for value in pair])
        for pair in ((x_low, y_low), (x_high, y_high))
    )
    if not (low < high).all():
        raise _checks.bad_value("limits", limits, accepted)
    return low, high
