"""Distances between samples and data, each with the value that fresh real data would get.

A number alone says little: even perfect samples have a distance above 0 to a finite data set. So every result
carries a `floor`, real data against real data, estimated from two disjoint random halves of `y`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import ot
import torch
from torch import Tensor

from diffusion_fast import _checks

EMD_ROWS = 2000  # the exact solver takes about a second at this size, and its time grows as n^3
REPEATS = 4
CHUNK_ELEMENTS = 1 << 21  # 16 MB of float64 kernel values at a time


@dataclass(frozen=True)
class MetricResult:
    """A measured distance.

    value: the distance. floor: what fresh real data in place of the samples would get, NaN where y has too
    few rows to be split. spread: standard deviation of `value` that comes from the finite number of rows,
    NaN where it cannot be told. n: rows of x and of y that one evaluation compares.
    """

    value: float
    floor: float
    spread: float
    n: tuple[int, int]

    def __float__(self) -> float:
        return self.value

    def __str__(self) -> str:
        return f"{self.value:.4f} +- {self.spread:.4f} (real against real {self.floor:.4f})"


def emd(
    x: Any, y: Any, n: int | None = None, *, seed: int | torch.Generator = 0, repeats: int = REPEATS
) -> MetricResult:
    """Earth mover's distance of x to y per matched pair: mean Euclidean cost of the best matching of n rows.

    Exact (network simplex of POT). With n below the number of rows, the mean over `repeats` random subsamples
    of both, with `spread` their standard deviation; `floor` is the same for disjoint rows of y against each
    other (NaN if 2 n > len(y)), and depends on n, so compare values at equal n only.

    Args:
        x, y: (n_x, dim) and (n_y, dim) finite numbers, arrays or tensors.
        n: rows per subsample; None takes 2000, or fewer where x or half of y has fewer.
    """
    a, b = _pair(x, y)
    if n is None:
        n = min(EMD_ROWS, len(a), max(1, len(b) // 2))
    n = _checks.integer("n", n, 1, min(len(a), len(b)))
    repeats = _checks.integer("repeats", repeats, 1)
    rng = np.random.default_rng(_checks.seed("seed", seed))
    if n == len(a) == len(b):
        values = [_matching_cost(a, b)]  # the one subsample that there is
    else:
        values = [_matching_cost(_draw(rng, a, n), _draw(rng, b, n)) for _ in range(repeats)]
    floor = math.nan
    if 2 * n <= len(b):
        pairs = [_draw(rng, b, 2 * n) for _ in range(repeats)]
        floor = float(np.mean([_matching_cost(rows[:n], rows[n:]) for rows in pairs]))
    return MetricResult(float(np.mean(values)), floor, _std(values), (n, n))


def sliced_wasserstein(
    x: Any, y: Any, *, n_projections: int = 64, seed: int | torch.Generator = 0, repeats: int = REPEATS
) -> MetricResult:
    """Sliced 1-Wasserstein distance: the mean, over random directions, of W1 between the projected rows.

    Bonneel et al. 2015, with p = 1, so that it has the unit of the data and is at most `emd` of the full
    sets. Takes all rows (a sort per direction), whatever their number. `spread` is the deviation between
    random halves of x and y (a delete-half jackknife). `floor` is that of two halves of y, scaled by
    sqrt(1/n_x + 1/n_y) to the sizes compared, as the W1 of equal laws scales.

    Args:
        x, y: (n_x, dim) and (n_y, dim) finite numbers, arrays or tensors.
    """
    a, b = _pair(x, y)
    n_projections = _checks.integer("n_projections", n_projections, 1)
    repeats = _checks.integer("repeats", repeats, 1)
    rng = np.random.default_rng(_checks.seed("seed", seed))
    directions = rng.standard_normal((a.shape[1], n_projections))
    directions /= np.linalg.norm(directions, axis=0)
    value = _sliced(a, b, directions)
    if min(len(a), len(b)) < 4:
        return MetricResult(value, math.nan, math.nan, (len(a), len(b)))
    halves = [
        _sliced(_draw(rng, a, len(a) // 2), _draw(rng, b, len(b) // 2), directions) for _ in range(repeats)
    ]
    half = len(b) // 2
    scale = math.sqrt((1 / len(a) + 1 / len(b)) / (2 / half))
    shuffled = [_draw(rng, b, 2 * half) for _ in range(repeats)]
    floor = scale * float(np.mean([_sliced(rows[:half], rows[half:], directions) for rows in shuffled]))
    return MetricResult(value, floor, _std(halves), (len(a), len(b)))


def kernel_nll(x: Any, data: Any, tau: float = 0.1, *, seed: int | torch.Generator = 0) -> MetricResult:
    """-log mean_ij K(x_i, data_j) with K(u, v) = (2 pi tau)^(-dim/2) exp(-|u - v|^2 / (4 tau)).

    The "NLL" of published results on these data sets. It is not a proper score: samples that crowd at the
    densest point get less than real data do, so the distance to `floor` is what matters, not how low it is.
    (K is what those results use: a Gaussian of variance 2 tau with the normalizer of variance tau.)
    `floor` is that of two halves of data, `spread` the standard error from the rows of x. Computed in float64
    over all pairs.

    Args:
        x, data: (n_x, dim) and (n_data, dim) finite numbers, arrays or tensors.
        tau: above 0, in squared units of the data.
    """
    a, b = _pair(x, data, "x", "data")
    tau = _checks.real("tau", tau, 0.0, open_low=True)
    rng = np.random.default_rng(_checks.seed("seed", seed))
    value, spread = _kernel_nll(a, b, tau)
    floor, half = math.nan, len(b) // 2
    if half:
        rows = _draw(rng, b, 2 * half)
        floor = _kernel_nll(rows[:half], rows[half:], tau)[0]
    return MetricResult(value, floor, spread, (len(a), len(b)))


def _matching_cost(a: np.ndarray, b: np.ndarray) -> float:
    cost = ot.dist(a, b, metric="euclidean")
    # POT stops at 100,000 pivots by default, short of the optimum at a few thousand rows.
    value, log = ot.emd2([], [], cost, numItermax=10_000_000, log=True)
    if log.get("warning"):
        raise RuntimeError(f"the optimal transport solver did not finish: {log['warning']}")
    return float(value)


def _sliced(a: np.ndarray, b: np.ndarray, directions: np.ndarray) -> float:
    distance = _quantile_distance(len(a), len(b))
    # In float32, which NumPy sorts with vector instructions; centered, lest an offset take the digits.
    center = b.mean(axis=0, dtype=np.float64)
    p, q = (np.ascontiguousarray((rows - center).T, dtype=np.float32) for rows in (a, b))
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:  # sorting lets go of the interpreter
        costs = pool.map(lambda d: distance(np.sort(d @ p), np.sort(d @ q)), directions.T.astype(np.float32))
        return float(np.mean(list(costs)))


def _quantile_distance(n: int, m: int) -> Callable[[np.ndarray, np.ndarray], float]:
    """W1 of two sorted sets of n and m numbers: the integral of |difference of the quantile functions|."""
    if n == m:
        return lambda a, b: float(np.abs(a - b).mean())
    # Both quantile functions are constant between neighbours of these levels, counted in units of 1/(n m).
    # (A level that occurs twice has weight 0 the second time.)
    levels = np.sort(np.concatenate([np.arange(1, n + 1) * m, np.arange(1, m + 1) * n]))
    weights = (np.diff(levels, prepend=0) / (n * m)).astype(np.float32)
    index_a, index_b = (levels - 1) // m, (levels - 1) // n
    return lambda a, b: float(np.abs(a[index_a] - b[index_b]) @ weights)


def _kernel_nll(a: np.ndarray, b: np.ndarray, tau: float) -> tuple[float, float]:
    """The value and its standard error from the rows of a."""
    u, v = torch.from_numpy(a).to(torch.float64), torch.from_numpy(b).to(torch.float64)
    center = v.mean(0)  # distances do not change, but the squares below lose fewer digits
    u, v = u - center, v - center
    # One product gives all exponents: (u . v) / (2 tau) - |u|^2 / (4 tau) - |v|^2 / (4 tau).
    left = torch.cat([u / (2 * tau), _squares(u, tau), torch.ones(len(u), 1, dtype=u.dtype)], dim=1)
    right = torch.cat([v, torch.ones(len(v), 1, dtype=v.dtype), _squares(v, tau)], dim=1).T.contiguous()
    rows = max(1, CHUNK_ELEMENTS // len(v))
    # Sums in the log domain: samples far from all data have kernels below the smallest float64.
    log_sums = torch.cat([torch.logsumexp(part @ right, dim=1) for part in left.split(rows)])
    total = torch.logsumexp(log_sums, dim=0)
    normalizer = 0.5 * a.shape[1] * math.log(2 * math.pi * tau)
    value = normalizer + math.log(len(a)) + math.log(len(b)) - float(total)
    shares = torch.exp(log_sums - total) * len(a)  # each row's kernel mean over the mean of all, mean 1
    error = float(shares.std()) / math.sqrt(len(a)) if len(a) > 1 else math.nan
    return value, error


def _squares(u: Tensor, tau: float) -> Tensor:
    return -(u * u).sum(1, keepdim=True) / (4 * tau)


def _draw(rng: np.random.Generator, rows: np.ndarray, n: int) -> np.ndarray:
    """n of the rows, without replacement, in random order."""
    return rows[rng.choice(len(rows), n, replace=False)]


def _std(values: list[float]) -> float:
    return float(np.std(values, ddof=1)) if len(values) > 1 else math.nan


def _pair(x: Any, y: Any, x_name: str = "x", y_name: str = "y") -> tuple[np.ndarray, np.ndarray]:
    a, b = _rows(x_name, x), _rows(y_name, y)
    if a.shape[1] != b.shape[1]:
        raise _checks.bad_value(x_name, x, f"rows of {b.shape[1]} numbers, as {y_name} has")
    return a, b


def _rows(name: str, value: Any) -> np.ndarray:
    accepted = "an (n, dim) array or tensor of numbers with n >= 1"
    if isinstance(value, Tensor):
        value = value.detach().cpu()
        value = value.float().numpy() if value.dtype in (torch.bfloat16, torch.float16) else value.numpy()
    if not isinstance(value, np.ndarray) or value.dtype.kind not in "fiub":
        raise _checks.bad_type(name, value, accepted)
    if value.ndim != 2 or value.size == 0:
        raise _checks.bad_value(name, value, accepted)
    rows = value if value.dtype in (np.float32, np.float64) else value.astype(np.float64)
    _checks.finite(name, torch.from_numpy(np.ascontiguousarray(rows)))
    return rows
