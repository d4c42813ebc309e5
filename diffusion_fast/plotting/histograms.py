"""Histograms of one column, of one set or of several over each other."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patches import Patch

from diffusion_fast import _checks
from diffusion_fast.plotting import rows as rows_of
from diffusion_fast.plotting import style

Density = Callable[[np.ndarray], Any]
DENSITY_POINTS = 512
DENSITY_LOOK: dict[str, Any] = {"color": "black", "linewidth": 1.2, "linestyle": "--"}


@dataclass(frozen=True, eq=False)
class RowSet:
    """One side of a comparison."""

    name: str
    rows: np.ndarray
    color: str
    labels: np.ndarray | None = None


def bin_edges(n: int, low: float, high: float) -> np.ndarray:
    """As many bins as n values fill without looking ragged, at most 100."""
    return np.linspace(low, high, 1 + min(100, int(np.ceil(4 * n ** (1 / 3)))))


def heights(values: np.ndarray, edges: np.ndarray, n: int) -> np.ndarray:
    """The density by bin, of n values in all: that of the counted ones alone would hide what lies outside."""
    return np.histogram(values, edges)[0] / (n * (edges[1] - edges[0]))


def draw_bars(axes: Any, edges: np.ndarray, weights: np.ndarray, **look: Any) -> None:
    axes.hist(edges[:-1], bins=edges, weights=weights, **look)


def draw_both(axes: Any, sets: list[RowSet], low: float, high: float, column: int = 0) -> None:
    """Data filled, samples as a line over it."""
    looks: list[dict[str, Any]] = [
        {"histtype": "stepfilled", "alpha": 0.35},
        {"histtype": "step", "linewidth": 1.5},
    ]
    edges = bin_edges(min(len(part.rows) for part in sets), low, high)
    for part, look in zip(sets, looks, strict=True):
        weights = heights(part.rows[:, column], edges, len(part.rows))
        draw_bars(axes, edges, weights, color=part.color, **look)


def draw_by_class(axes: Any, part: RowSet, edges: np.ndarray, n_classes: int) -> None:
    """One outline per class, whose areas are the shares of the classes; one filled shape without labels."""
    if part.labels is None:
        weights = heights(part.rows[:, 0], edges, len(part.rows))
        draw_bars(axes, edges, weights, histtype="stepfilled", color=part.color, alpha=0.35)
        return
    for k in range(n_classes):
        weights = heights(part.rows[part.labels == k, 0], edges, len(part.rows))
        draw_bars(axes, edges, weights, histtype="step", **style.line_look(k))


def draw_legend(
    axes: Any, sets: list[RowSet], low: np.ndarray, high: np.ndarray, *, density: bool = False, **place: Any
) -> Any:
    """Both sets with their counts."""
    handles: list[Any] = [Patch(color=part.color, alpha=0.35 + 0.65 * k) for k, part in enumerate(sets)]
    names = []
    for part in sets:
        within = rows_of.inside(part.rows, low, high)
        names.append(f"{part.name}: {rows_of.count_note(part.rows, len(part.rows), within)}")
    if density:
        handles.append(Line2D([], [], **DENSITY_LOOK))
        names.append("true density")
    return style.legend(axes, handles, names, **place)


def density_curve(density: Density | None, low: float, high: float) -> tuple[np.ndarray, np.ndarray] | None:
    """Its points, checked."""
    if density is None:
        return None
    accepted = "a function from (k,) numbers to as many densities, finite and not negative"
    if not callable(density):
        raise _checks.bad_type("density", density, accepted)
    x = np.linspace(low, high, DENSITY_POINTS)
    y = rows_of.finite_array("density", density(x), (1,), accepted)
    if y.shape != x.shape or y.min() < 0:
        raise _checks.bad_value("density", y, accepted)
    return x, y
