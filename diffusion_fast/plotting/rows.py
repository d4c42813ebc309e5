"""Rows to be drawn: what is accepted, which of them, between which limits, and how many lie outside."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from torch import Tensor

from diffusion_fast import _checks

MAX_POINTS = 5000  # more would only cover each other
ACCEPTED = "an (n, dim) array or tensor of numbers with n >= 1"


def as_array(name: str, value: Any, ranks: Sequence[int] = (2,), accepted: str = ACCEPTED) -> np.ndarray:
    """The numbers without a copy where that is possible; they may hold NaN."""
    if isinstance(value, Tensor):
        value = _checks.readable(name, value.detach(), accepted).cpu()
        if value.is_floating_point() and value.element_size() < 4:
            value = value.float()  # NumPy has no bfloat16
        value = value.numpy()
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub":
        raise _checks.bad_type(name, value, accepted)
    if value.ndim not in ranks or value.size == 0:
        raise _checks.bad_value(name, value, accepted)
    return value.astype(np.uint8) if value.dtype == bool else value


def finite_array(name: str, value: Any, ranks: Sequence[int] = (2,), accepted: str = ACCEPTED) -> np.ndarray:
    array = as_array(name, value, ranks, accepted)
    good = np.isfinite(array)
    if not good.all():
        where = tuple(int(i) for i in np.unravel_index(int(np.argmin(good)), array.shape))
        raise ValueError(f"{name}: got {array[where]} at index {where}; accepted: finite numbers")
    return array


def both(samples: Any, data: Any) -> tuple[np.ndarray, np.ndarray]:
    """Data, finite, and samples of as many columns."""
    real = finite_array("data", data)
    drawn = as_array("samples", samples)
    if drawn.shape[1] != real.shape[1]:
        raise _checks.bad_value("samples", samples, f"rows of {real.shape[1]} numbers, as data has")
    return real, drawn


def limits(rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lowest and highest of each column to show: its range and a twentieth more on each side.

    A range that a few rows stretch is cut: the thousandth of the rows at either end (one row at least)
    extends it by at most half the width of all others.
    """
    last = len(rows) - 1
    few = min(1 + len(rows) // 1000, last // 2)
    order = [0, few, last - few, last]
    low, inner_low, inner_high, high = np.partition(rows, order, axis=0)[order].astype(np.float64)
    width = inner_high - inner_low
    reach = np.where(width > 0, 0.5 * width, np.inf)  # most rows equal: then the others are the picture
    low, high = np.maximum(low, inner_low - reach), np.minimum(high, inner_high + reach)
    margin = np.where(high > low, 0.05 * (high - low), np.where(high == 0, 1.0, 0.1 * np.abs(high)))
    return low - margin, high + margin


def inside(rows: np.ndarray, low: np.ndarray, high: np.ndarray) -> np.ndarray:
    """Which rows lie within the limits, (n,) bool; a row with NaN does not."""
    return np.all((rows >= low) & (rows <= high), axis=1)


def choose(n: int, most: int = MAX_POINTS) -> np.ndarray:
    """Indices of at most so many of n rows, in random order, the same ones each time."""
    return np.random.default_rng(0).choice(n, min(n, most), replace=False)


def count_note(rows: np.ndarray, shown: int, within: np.ndarray) -> str:
    """How many of how many rows are shown, and how many of all lie outside of the limits."""
    n, outside = len(rows), len(rows) - int(np.count_nonzero(within))
    text = f"{n:,} rows" if shown == n else f"{shown:,} of {n:,} rows drawn"
    return text + (f", {outside_note(rows, outside)}" if outside else "")


def outside_note(rows: np.ndarray, outside: int) -> str:
    broken = len(rows) - int(np.count_nonzero(np.isfinite(rows).all(axis=1)))
    return f"{outside:,} outside" + (f" ({broken:,} not finite)" if broken else "")


def say_columns(title: str | None, dim: int) -> str | None:
    """The title, with the columns that are shown where those are not all."""
    if dim <= 3 or not (title is None or isinstance(title, str)):
        return title
    return (f"{title}\n" if title else "") + f"first three of {dim} columns"


def column_names(columns: Sequence[str] | None, dim: int) -> list[str]:
    if columns is None:
        return [f"column {i}" for i in range(dim)]
    accepted = f"a list of {dim} names"
    if isinstance(columns, str) or not isinstance(columns, Sequence):
        raise _checks.bad_type("columns", columns, accepted)
    if not all(isinstance(name, str) for name in columns):
        raise _checks.bad_type("columns", columns, accepted)
    if len(columns) != dim:
        raise _checks.bad_value("columns", columns, accepted)
    return list(columns)
