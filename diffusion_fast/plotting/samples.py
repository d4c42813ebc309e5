"""Samples beside data: histograms and scatter plots."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from diffusion_fast import _checks
from diffusion_fast.plotting import histograms, style
from diffusion_fast.plotting import rows as rows_of
from diffusion_fast.plotting.histograms import DENSITY_LOOK, Density, RowSet


def compare_samples(
    samples: Any,
    data: Any,
    *,
    columns: Sequence[str] | None = None,
    title: str | None = None,
    sample_labels: Any = None,
    data_labels: Any = None,
    classes: Sequence[str] | None = None,
    density: Density | None = None,
) -> Figure:
    """Samples beside data on the same axes: histograms in one dimension, scatter plots in two and three.

    Args:
        samples, data: (n, dim) arrays or tensors. Of more than three columns the first three are shown; the
            title says so. Samples that hold NaN or infinity are counted as outside; data must be finite.
        columns: dim names for the axes.
        sample_labels, data_labels: (n,) integers from 0, drawn in the colors of their classes. Above eight
            classes the marker changes as well, and there may be no more than 32.
        classes: the names of all classes; without them the classes are numbered.
        density: for one dimension only, the true density, drawn over the histograms: called with an
            increasing (k,) float64 array, it gives (k,) finite numbers that are not negative.

    Raises TypeError or ValueError naming the argument for anything else.
    """
    real, drawn = rows_of.both(samples, data)
    dim = real.shape[1]
    names = rows_of.column_names(columns, dim)
    top = _highest_label(classes, sample_labels, data_labels)
    sets = [
        RowSet("data", real[:, :3], style.DATA_COLOR, _labels("data_labels", data_labels, len(real), top)),
        RowSet(
            "samples",
            drawn[:, :3],
            style.SAMPLE_COLOR,
            _labels("sample_labels", sample_labels, len(drawn), top),
        ),
    ]
    of_class = _class_names(classes, sets)
    if density is not None and dim > 1:
        raise _checks.bad_value("density", density, f"None for data of {dim} columns: it belongs to one")
    low, high = rows_of.limits(sets[0].rows)
    figure = style.make_figure(*_size(low, high, bool(of_class)), rows_of.say_columns(title, dim))
    if dim > 1:
        _draw_scatters(figure, sets, low, high, names)
    else:
        curve = histograms.density_curve(density, low[0], high[0])
        _draw_histograms(figure, sets, low, high, names[0], of_class, curve)
    if of_class:
        style.class_legend(figure, of_class, lines=dim == 1)
    return figure


def _size(low: np.ndarray, high: np.ndarray, labelled: bool) -> tuple[float, float]:
    """Inches that the panels fill."""
    if len(low) == 1:
        return (9.5, 4) if labelled else (6.5, 4.4)
    if len(low) == 3:
        return 9.5, 4.5
    return 9.5, float(np.clip(4.3 * (style.equal_ratio(low, high) or 0.9) + 1.1, 2.8, 6.5))


def _draw_scatters(
    figure: Figure, sets: list[RowSet], low: np.ndarray, high: np.ndarray, names: list[str]
) -> None:
    flat = len(low) == 2
    for position, part in enumerate(sets, start=1):
        axes = style.add_panel(figure, (1, 2, position), spatial=not flat)
        chosen = rows_of.choose(len(part.rows))
        within = rows_of.inside(part.rows, low, high)
        note = rows_of.count_note(part.rows, len(chosen), within)
        chosen = chosen[within[chosen]]  # 3-D axes would draw the others outside of the box
        style.scatter(
            axes, part.rows[chosen], part.color, None if part.labels is None else part.labels[chosen]
        )
        style.set_limits(axes, low, high)
        first = position == 1
        style.decorate(axes, *(names if first or not flat else names[:1]), title=part.name, note=note)
        if flat:
            axes.tick_params(labelleft=first)


def _draw_histograms(
    figure: Figure,
    sets: list[RowSet],
    low: np.ndarray,
    high: np.ndarray,
    name: str,
    classes: list[str],
    curve: tuple[np.ndarray, np.ndarray] | None,
) -> None:
    """Over each other, or in two panels where there are classes to tell."""
    edges = histograms.bin_edges(min(len(part.rows) for part in sets), low[0], high[0])
    panels = figure.subplots(1, 2 if classes else 1, sharex=True, sharey=True, squeeze=False)[0]
    for axes, part in zip(panels, sets, strict=False):
        title: str | None = None
        note: str | None = None
        if classes:
            histograms.draw_by_class(axes, part, edges, len(classes))
            within = rows_of.inside(part.rows, low, high)
            title, note = part.name, rows_of.count_note(part.rows, len(part.rows), within)
        else:
            histograms.draw_both(axes, sets, low[0], high[0])
            place = {"loc": "lower left", "bbox_to_anchor": (0, 1)}
            histograms.draw_legend(axes, sets, low, high, density=curve is not None, **place)
        if curve is not None:
            axes.plot(*curve, **DENSITY_LOOK)
        style.set_limits(axes, low, high)
        style.decorate(axes, name, "density" if part is sets[0] else "", title=title, note=note)
        style.open_frame(axes)


def _highest_label(classes: Any, *labels: Any) -> int:
    if classes is None:
        return style.MAX_CLASSES - 1
    accepted = f"a list of 1 to {style.MAX_CLASSES} names"
    if isinstance(classes, str) or not isinstance(classes, Sequence):
        raise _checks.bad_type("classes", classes, accepted)
    if not 1 <= len(classes) <= style.MAX_CLASSES:
        raise _checks.bad_value("classes", classes, accepted)
    if all(given is None for given in labels):
        raise _checks.bad_value("classes", classes, "None without sample_labels or data_labels")
    return len(classes) - 1


def _labels(name: str, labels: Any, n: int, high: int) -> np.ndarray | None:
    if labels is None:
        return None
    return _checks.class_labels(
        name, labels, n, high, f"({n},) integers from 0 to {high}, one per row"
    ).numpy()


def _class_names(classes: Sequence[str] | None, sets: list[RowSet]) -> list[str]:
    """Names of all classes; none where neither set has labels."""
    if classes is not None:
        return [str(name) for name in classes]
    return [str(k) for k in range(1 + max(-1 if part.labels is None else part.labels.max() for part in sets))]
