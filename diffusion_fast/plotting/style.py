"""The style of all pictures: colors, sizes, and the primitives that draw with them.

Everything is set on the artists themselves, never through rcParams: those are global, and other threads and
the user's own pictures depend on them. Names that come from a user's file are not read as formulas ("$" stays
"$").
"""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.layout_engine import ConstrainedLayoutEngine
from matplotlib.lines import Line2D

from diffusion_fast import _checks

# Okabe and Ito's colors; yellow, weak on white, comes last.
BLUE, VERMILION, GREEN, PURPLE = "#0072B2", "#D55E00", "#009E73", "#CC79A7"
ORANGE, SKY, BLACK, YELLOW = "#E69F00", "#56B4E9", "#000000", "#F0E442"
COLORS = np.array([BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK, YELLOW])
DATA_COLOR, SAMPLE_COLOR = BLUE, VERMILION
# What comes after the eighth color takes the colors again with the next of these.
MARKERS = ("o", "^", "s", "D")
LINES = ("-", "--", ":", "-.")
MAX_CLASSES = len(COLORS) * len(MARKERS)
GREY = "0.35"

TITLE_SIZE, PANEL_SIZE, LABEL_SIZE, TICK_SIZE = 12, 10.5, 10, 8.5
NAME_LENGTH = 40  # of a column, more is cut
SHORT_LENGTH = 20  # where there is little room
LEGEND_ROWS = 16


def make_figure(width: float, height: float, title: str | None = None) -> Figure:
    """An empty figure of so many inches, with the title in as many lines as it needs."""
    layout = ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06)
    figure = Figure(figsize=(width, height), layout=layout, facecolor="white")
    if title is not None:
        if not isinstance(title, str):
            raise _checks.bad_type("title", title, "a string or None")
        lines = [textwrap.fill(line, max(12, int(10 * width))) for line in title.splitlines()]
        figure.suptitle("\n".join(lines), fontsize=TITLE_SIZE, parse_math=False)
    return figure


def decorate(
    axes: Any, *names: str, title: str | None = None, note: str | None = None, length: int = NAME_LENGTH
) -> None:
    """Names of the axes in order x, y, z; title with a smaller note under it; light ticks and frame."""
    axes.tick_params(labelsize=TICK_SIZE, colors=GREY, labelcolor="black")
    for spine in axes.spines.values():
        spine.set_color(GREY)
    for axis, name in zip("xyz", names, strict=False):
        getattr(axes, f"set_{axis}label")(shorten(name, length), fontsize=LABEL_SIZE, parse_math=False)
    if title is not None:
        axes.set_title(title, fontsize=PANEL_SIZE, parse_math=False, pad=20 if note else 6)
    if note:
        # annotate, not text: the offset is in points, whatever the size of the panel, and in 3-D too
        axes.annotate(
            note,
            (0.5, 1.0),
            (0, 5),
            xycoords="axes fraction",
            textcoords="offset points",
            ha="center",
            va="bottom",
            fontsize=TICK_SIZE,
            color=GREY,
        )


def add_panel(figure: Figure, position: tuple[int, int, int], *, spatial: bool, zoom: float = 0.92) -> Any:
    """Axes at (rows, columns, number), in space or flat. zoom: of the box in space, 1 cuts the name of z."""
    if not spatial:
        return figure.add_subplot(*position)
    axes = figure.add_subplot(*position, projection="3d")
    axes.set_box_aspect(None, zoom=zoom)
    return axes


def set_limits(axes: Any, low: np.ndarray, high: np.ndarray, *, equal: bool = True) -> None:
    """Of one, two or three axes. Of two, one unit is as long on both, unless that makes a narrow strip."""
    for axis, bottom, top in zip("xyz", low, high, strict=False):
        getattr(axes, f"set_{axis}lim")(bottom, top)
    if equal and len(low) == 2 and equal_ratio(low, high) is not None:
        axes.set_aspect("equal")


def equal_ratio(low: np.ndarray, high: np.ndarray) -> float | None:
    """Height over width of a panel with equal units; None where it would be a narrow strip."""
    width, height = high - low
    return height / width if 0.4 < height / width < 2.5 else None


def open_frame(axes: Any) -> None:
    """Without the lines at the top and on the right, for curves."""
    axes.spines[["top", "right"]].set_visible(False)


def shorten(name: str, length: int = NAME_LENGTH) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


def scatter(
    axes: Any, rows: np.ndarray, color: str, labels: np.ndarray | None = None, *, small: bool = False
) -> None:
    """Points of one color, or of one color and marker per class; small ones for small panels."""
    # In space the axes make distant points paler, and a hue needs some area to be told.
    strong = rows.shape[1] == 3 or labels is not None
    area = float(np.clip(10_000 / max(1, len(rows)), 3, 16)) * (1.6 if strong else 1)
    look = {
        "s": min(area, 3) if small else area,
        "alpha": 0.8 if strong else 0.5,
        "linewidths": 0,
        "rasterized": True,  # else a PDF or SVG holds thousands of paths
    }
    if labels is None:
        axes.scatter(*rows.T, color=color, **look)
        return
    for group, marker in enumerate(MARKERS):
        # In the given, random order, not class by class: the last one would cover all others.
        chosen = labels // len(COLORS) == group
        if chosen.any():
            axes.scatter(*rows[chosen].T, c=COLORS[labels[chosen] % len(COLORS)], marker=marker, **look)


def line_look(k: int) -> dict[str, Any]:
    """Color and dashes of the k-th line."""
    return {"color": COLORS[k % len(COLORS)], "linestyle": LINES[k // len(COLORS)], "linewidth": 1.5}


def class_legend(figure: Figure, names: Sequence[str], *, lines: bool) -> None:
    """One entry per class, a line or a marker, at the right of all panels."""
    handles = []
    for k in range(len(names)):
        marker = {"linestyle": "", "marker": MARKERS[k // len(COLORS)], "color": COLORS[k % len(COLORS)]}
        handles.append(Line2D([], [], **(line_look(k) if lines else marker)))
    short = [shorten(name, SHORT_LENGTH) for name in names]
    legend(figure, handles, short, loc="outside right center", ncols=-(-len(names) // LEGEND_ROWS))


def legend(parent: Any, handles: Sequence[Any], names: Sequence[str], **options: Any) -> Any:
    box = parent.legend(handles, [""] * len(names), frameon=False, fontsize=9, handlelength=1.6, **options)
    # Set afterwards, because matplotlib leaves out names that begin with "_".
    for text, name in zip(box.get_texts(), names, strict=True):
        text.set(text=name, parse_math=False)
    return box
