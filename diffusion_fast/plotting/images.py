"""Grids of small grey images."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from diffusion_fast import _checks
from diffusion_fast.plotting import rows as rows_of
from diffusion_fast.plotting import style

ACCEPTED = "(n, height, width) or (n, 1, height, width) numbers, or (n, height * width) with shape given"
SIDE = 8  # images in a row and a column where nothing else is said
MAX_COLUMNS = 16
MAX_SIDE = 64  # rows of images
LINE_COLOR = np.array([184, 196, 206], np.uint8)  # told from black, white and the greys of most images
NAN_COLOR = np.array([213, 94, 0], np.uint8)


def image_grid(
    images: Any,
    data: Any = None,
    *,
    shape: tuple[int, int] | None = None,
    rows: int | None = None,
    title: str | None = None,
) -> Figure:
    """The first images in a grid, and as many of the data beside them where data is given.

    Args:
        images, data: (n, height, width), (n, 1, height, width), or (n, height * width) with `shape`; arrays
            or tensors. NaN in images is drawn vermilion; data must be finite.
        shape: (height, width) of flat rows; not needed where the images are square.
        rows: of the grid, 1 to 64, with up to 16 images in each; without it, a square of up to 8 x 8.

    The grey scale goes from black to white over the range of the data (else of the images), without a few far
    values, and is the same for both. Raises TypeError or ValueError naming the argument for anything else.
    """
    sets = {"samples": as_images("images", images, shape)}
    if data is not None:
        sets = {"data": as_images("data", data, shape), **sets}
        rows_of.finite_array("data", sets["data"], (3,))
        if sets["data"].shape[1:] != sets["samples"].shape[1:]:
            size = " x ".join(str(n) for n in sets["data"].shape[1:])
            raise _checks.bad_value("images", images, f"images of {size}, as data has")
    n_rows, n_columns = _layout(min(len(part) for part in sets.values()), rows)
    count = n_rows * n_columns
    low, high = grey_range("images", next(iter(sets.values())))
    height, width = sets["samples"].shape[1:]
    side = 4.5
    panel_height = min(9.0, side * n_rows * height / (n_columns * width))
    heading = 0.4 + (0.2 if data is not None else 0) + (0.3 if title else 0)
    figure = style.make_figure(0.3 + side * len(sets), heading + panel_height, title)
    for axes, (name, part) in zip(np.ravel(figure.subplots(1, len(sets))), sets.items(), strict=True):
        shown = min(count, len(part))
        draw_mosaic(axes, part[:shown], n_columns, low, high)
        note = f"{shown:,} of {len(part):,}, black {low:.3g}, white {high:.3g}"
        style.decorate(axes, title=name if data is not None else None, note=note)
    return figure


def image_panels(
    sets: Mapping[str, Any], *, shape: tuple[int, int] | None = None, columns: int = 4, side: int = 4
) -> Figure:
    """Small square grids of images beside each other, each under its name: epochs, solvers, levels of noise.

    Args:
        sets: name -> images, as image_grid takes them, of one size; the first side x side of each are drawn.
        shape: (height, width) of flat rows; not needed where the images are square.
        columns: panels in a row, 1 to 16. side: 1 to 16.

    The grey scale is that of the last set. Raises TypeError or ValueError naming the argument.
    """
    if not isinstance(sets, Mapping) or not sets:
        raise _checks.bad_type("sets", sets, "a dictionary of one or more names with images each")
    columns = min(_checks.integer("columns", columns, 1, MAX_COLUMNS), len(sets))
    side = _checks.integer("side", side, 1, MAX_COLUMNS)
    parts = {name: as_images(f"sets[{name!r}]", part, shape) for name, part in sets.items()}
    low, high = grey_range("sets", list(parts.values())[-1])
    rows = -(-len(parts) // columns)
    figure = style.make_figure(0.3 + 1.7 * columns, 0.2 + 1.95 * rows)
    panels = np.ravel(figure.subplots(rows, columns))
    for axes, (name, part) in zip(panels, parts.items(), strict=False):
        draw_mosaic(axes, part[: side * side], side, low, high)
        style.decorate(axes, title=name)
    for axes in panels[len(parts) :]:
        axes.set_axis_off()
    return figure


def as_images(name: str, value: Any, shape: tuple[int, int] | None) -> np.ndarray:
    """(n, height, width) as a view where that is possible."""
    array = rows_of.as_array(name, value, (2, 3, 4), ACCEPTED)
    if array.ndim == 4:
        if array.shape[1] != 1:
            raise _checks.bad_value(name, value, ACCEPTED)
        array = array[:, 0]
    size = array.shape[1:] if array.ndim == 3 else image_shape(shape, array.shape[1])
    if shape is not None and image_shape(shape, math.prod(size)) != size:
        raise _checks.bad_value("shape", shape, f"{size}, as {name} has")
    return array.reshape(len(array), *size)


def image_shape(shape: Any, pixels: int) -> tuple[int, int]:
    """(height, width) of a row of so many pixels; a square where shape is None."""
    if shape is None:
        side = math.isqrt(pixels)
        if side * side != pixels:
            raise _checks.bad_value("shape", shape, f"(height, width) of {pixels} pixels, which is no square")
        return side, side
    accepted = f"(height, width) of {pixels} pixels"
    if not isinstance(shape, (tuple, list)) or len(shape) != 2:
        raise _checks.bad_type("shape", shape, accepted)
    height, width = (_checks.integer("shape", side, 1) for side in shape)
    if height * width != pixels:
        raise _checks.bad_value("shape", shape, accepted)
    return height, width


def grey_range(name: str, images: np.ndarray) -> tuple[float, float]:
    """What is drawn black and white: the range of the finite values, without a few that lie far away."""
    values = images[rows_of.choose(len(images))].reshape(-1, 1)
    values = values[np.isfinite(values[:, 0])]
    if not len(values):
        raise _checks.bad_value(name, images, "images with finite numbers")
    low, high = rows_of.limits(values)
    # Without the margin that points need; a lone grey needs some range to be drawn at all.
    inner = float(max(low[0], values.min())), float(min(high[0], values.max()))
    return inner if inner[1] > inner[0] else (float(low[0]), float(high[0]))


def draw_mosaic(axes: Any, images: np.ndarray, columns: int, low: float, high: float) -> None:
    axes.imshow(mosaic(images, columns, low, high), interpolation="nearest", rasterized=True)
    axes.set(xticks=[], yticks=[])


def mosaic(images: np.ndarray, columns: int, low: float, high: float) -> np.ndarray:
    """The images row by row as one (height, width, 3) uint8 picture, with lines between them."""
    n, height, width = images.shape
    rows = -(-n // columns)
    line = max(1, round(min(height, width) / 14))
    tiles = np.empty((rows * columns, height + line, width + line, 3), np.uint8)
    tiles[:] = LINE_COLOR
    grey = np.clip((images.astype(np.float64) - low) / (high - low), 0, 1)
    broken = np.isnan(grey)
    pixels = np.rint(255 * np.where(broken, 0, grey)).astype(np.uint8)
    tiles[:n, :height, :width] = np.where(broken[..., None], NAN_COLOR, pixels[..., None])
    grid = tiles.reshape(rows, columns, height + line, width + line, 3).swapaxes(1, 2)
    return grid.reshape(rows * (height + line), columns * (width + line), 3)[:-line, :-line]


def _layout(n: int, rows: int | None) -> tuple[int, int]:
    if rows is None:
        columns = min(SIDE, math.ceil(math.sqrt(n)))
        return min(columns, -(-n // columns)), columns
    count = _checks.integer("rows", rows, 1, MAX_SIDE)
    columns = min(MAX_COLUMNS, -(-n // count))
    return min(count, -(-n // columns)), columns
