"""What a metric returns, and the checks and helpers that all metrics share."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from diffusion_fast import _checks
from diffusion_fast.standardiser import LARGEST

In = TypeVar("In")
Out = TypeVar("Out")

CHUNK_ELEMENTS = 1 << 21  # 16 MB of float64 for each block of a matrix over all pairs
DIRECT_DIM = 64  # columns up to which distances are summed column by column, the faster way there
ROUNDING = 1e-14  # of a squared distance, beside the squares it is the difference of


@dataclass(frozen=True)
class MetricResult:
    """A measured number.

    value: the measurement. floor: what fresh real data in place of the samples would get, NaN where that
    cannot be told (too few rows to be split, say, or no held-out rows given). spread: standard deviation of
    `value` that comes from the finite number of rows, NaN where it cannot be told. n: rows of x and of y that
    one evaluation compares.
    """

    value: float
    floor: float
    spread: float
    n: tuple[int, int]

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return f"{self.value:.4f} +- {self.spread:.4f} (real against real {self.floor:.4f})"


def pair(x: Any, y: Any, x_name: str = "x", y_name: str = "y") -> tuple[np.ndarray, np.ndarray]:
    """Two sets of rows of one dimension, each as `rows` gives it."""
    a, b = rows(x_name, x), rows(y_name, y)
    if a.shape[1] != b.shape[1]:
        raise _checks.bad_value(x_name, x, f"rows of {b.shape[1]} numbers, as {y_name} has")
    return a, b


def rows(name: str, value: Any) -> np.ndarray:
    """An (n, dim) array or tensor of finite numbers up to 1e30, n >= 1, as a float32 or float64 array."""
    accepted = "an (n, dim) array or tensor of numbers with n >= 1"
    _checks.refuse_mask(name, value)
    if isinstance(value, Tensor):
        value = _checks.readable(name, value.detach(), accepted).cpu()
        value = value.float().numpy() if value.dtype in (torch.bfloat16, torch.float16) else value.numpy()
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub":
        raise _checks.bad_type(name, value, accepted)
    if value.ndim != 2 or value.size == 0:
        raise _checks.bad_value(name, value, accepted)
    array = value if value.dtype in (np.float32, np.float64) else value.astype(np.float64)
    if not np.isfinite(array).all():
        _checks.finite(name, torch.from_numpy(np.ascontiguousarray(array)))  # names the first bad one
    limit = array.dtype.type(LARGEST)
    if max(array.max(), -array.min()) > limit:
        row, column = (int(i) for i in np.argwhere(np.abs(array) > limit)[0])
        raise ValueError(
            f"{name}: got a value of {array[row, column]:g} at row {row}, column {column}; accepted: finite "
            f"numbers of magnitude up to {LARGEST:g}, for they are squared, and some are taken in float32"
        )
    return array


def draw(rng: np.random.Generator, array: np.ndarray, n: int) -> np.ndarray:
    """n of the rows, without replacement, in random order."""
    return array[rng.choice(len(array), n, replace=False)]


def std(values: Sequence[float] | np.ndarray) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def standard_error(values: np.ndarray) -> float:
    """Of the mean of independent values."""
    return std(values) / math.sqrt(len(values))


def threaded(function: Callable[[In], Out], items: Iterable[In]) -> list[Out]:
    """[function(item) for each], on torch's number of threads: for work that lets go of the interpreter."""
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return list(pool.map(function, items))


def distance_blocks(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[slice, Tensor]]:
    """Euclidean distances of all rows of a to all rows of b, float64, block by block of a's rows.

    Exactly 0 for equal rows; above DIRECT_DIM columns, for nearly equal ones too (see below).
    """
    u, v = (torch.from_numpy(np.ascontiguousarray(part, dtype=np.float64)) for part in (a, b))
    direct = u.shape[1] <= DIRECT_DIM
    center = v.mean(0)
    squares = ((v - center) ** 2).sum(1)
    size = max(1, CHUNK_ELEMENTS // len(v))
    for at in range(0, len(u), size):
        part = slice(at, min(at + size, len(u)))
        if direct:
            yield part, torch.cdist(u[part], v, compute_mode="donot_use_mm_for_euclid_dist")
            continue
        # By |p|^2 + |q|^2 - 2 p.q, one product instead of a pass per column. What is left of it below the
        # rounding of its terms says nothing but that the rows agree to seven digits.
        p = u[part] - center
        sums = (p * p).sum(1, keepdim=True) + squares
        distances = torch.addmm(sums, p, (v - center).T, alpha=-2)
        yield part, distances.masked_fill_(distances < ROUNDING * sums, 0).sqrt_()
