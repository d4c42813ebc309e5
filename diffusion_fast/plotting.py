"""Pictures of samples beside data, and of a training run.

The functions return matplotlib Figures made without pyplot: no window, no global state, any thread;
`figure.savefig(path)` writes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from diffusion_fast import _checks
from diffusion_fast.training import TrainingHistory

# Okabe and Ito's colors, told apart with any kind of color vision.
DATA_COLOR = "#0072B2"
SAMPLE_COLOR = "#D55E00"
MAX_POINTS = 5000  # more would only cover each other
BINS = 100


def compare_samples(
    samples: Any, data: Any, *, columns: Sequence[str] | None = None, title: str | None = None
) -> Figure:
    """Samples beside data on equal axes: histograms in one dimension, scatter plots in two and three.

    samples, data: (n, dim) arrays or tensors, of which up to 5000 random rows are drawn as points; of more
    than three columns the first three are shown. columns: dim names for the axes.
    """
    drawn, real = _points("samples", samples), _points("data", data)
    if drawn.shape[1] != real.shape[1]:
        raise _checks.bad_value("samples", samples, f"rows of {real.shape[1]} numbers, as data has")
    names = [f"column {i}" for i in range(real.shape[1])] if columns is None else list(columns)
    if len(names) != real.shape[1]:
        raise _checks.bad_value("columns", columns, f"{real.shape[1]} names")
    sets = [("data", real, DATA_COLOR), ("samples", drawn, SAMPLE_COLOR)]
    low, high = _limits(real)
    if real.shape[1] == 1:
        figure = _histograms(sets, (low[0], high[0]), names[0])
    elif real.shape[1] == 2:
        figure = _scatter_2d(sets, low, high, names)
    else:
        figure = _scatter_3d(sets, low, high, names)
    if title is not None:
        figure.suptitle(title)
    return figure


def loss_curve(history: TrainingHistory) -> Figure:
    """Training and validation loss by epoch, with the epoch whose weights were kept."""
    if not history.train_loss:
        raise _checks.bad_value("history", history, "the history of a run of at least one epoch")
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    axes.plot(history.train_loss, color=DATA_COLOR, linewidth=1, label="training")
    if history.validation_loss:
        axes.plot(history.validation_loss, color=SAMPLE_COLOR, linewidth=1, label="validation")
        axes.axvline(history.best_epoch, color="0.4", linewidth=1, linestyle=":", label="weights kept")
    axes.set(xlabel="epoch", ylabel="mean squared error", yscale="log")
    axes.legend(frameon=False)
    return figure


def _histograms(sets: list[tuple[str, np.ndarray, str]], limits: tuple[float, float], name: str) -> Figure:
    figure = Figure(figsize=(6, 4), layout="constrained")
    axes = figure.subplots()
    width = (limits[1] - limits[0]) / BINS
    for label, rows, color in sets:
        axes.hist(
            rows[:, 0],
            bins=BINS,
            range=limits,
            # density=True would hide the samples that lie outside of the range.
            weights=np.full(len(rows), 1 / (len(rows) * width)),
            histtype="step",
            linewidth=1.5,
            color=color,
            label=label,
        )
    axes.set(xlabel=name, ylabel="density", xlim=limits)
    axes.legend(frameon=False)
    return figure


def _scatter_2d(
    sets: list[tuple[str, np.ndarray, str]], low: np.ndarray, high: np.ndarray, names: list[str]
) -> Figure:
    figure = Figure(figsize=(9, 4.5), layout="constrained")
    panels = figure.subplots(1, 2, sharex=True, sharey=True)
    for axes, (label, rows, color) in zip(panels, sets, strict=True):
        rows = _some(rows)
        axes.scatter(rows[:, 0], rows[:, 1], s=3, alpha=0.5, linewidths=0, color=color)
        axes.set(title=label, xlabel=names[0], xlim=(low[0], high[0]), ylim=(low[1], high[1]))
    panels[0].set_ylabel(names[1])
    return figure


def _scatter_3d(
    sets: list[tuple[str, np.ndarray, str]], low: np.ndarray, high: np.ndarray, names: list[str]
) -> Figure:
    figure = Figure(figsize=(10, 5), layout="constrained")
    for position, (label, rows, color) in enumerate(sets, start=1):
        rows = _some(rows)
        axes: Any = figure.add_subplot(1, 2, position, projection="3d")
        axes.scatter(rows[:, 0], rows[:, 1], rows[:, 2], s=3, alpha=0.5, linewidths=0, color=color)
        axes.set(title=label, xlabel=names[0], ylabel=names[1], zlabel=names[2])
        axes.set(xlim=(low[0], high[0]), ylim=(low[1], high[1]), zlim=(low[2], high[2]))
    return figure


def _points(name: str, value: Any) -> np.ndarray:
    rows = value.detach().cpu().float().numpy() if isinstance(value, Tensor) else value
    if not isinstance(rows, np.ndarray) or rows.dtype.kind not in "fiub":
        raise _checks.bad_type(name, value, "an (n, dim) array or tensor of numbers")
    if rows.ndim != 2 or rows.size == 0:
        raise _checks.bad_value(name, value, "an (n, dim) array or tensor of numbers with n >= 1")
    return rows


def _limits(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The range of the data and a tenth more on each side."""
    low, high = rows.min(axis=0).astype(float), rows.max(axis=0).astype(float)
    margin = np.where(high > low, 0.1 * (high - low), 1.0)
    return low - margin, high + margin


def _some(rows: np.ndarray) -> np.ndarray:
    if len(rows) <= MAX_POINTS:
        return rows
    return rows[np.random.default_rng(0).choice(len(rows), MAX_POINTS, replace=False)]
