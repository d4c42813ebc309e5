"""Distances between two sets of rows: earth mover's, sliced Wasserstein, energy."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import ot
import torch

from diffusion_fast import _checks
from diffusion_fast.metrics.result import MetricResult, distance_blocks, draw, pair, std, threaded

EMD_ROWS = 2000  # the exact solver takes about half a second at this size, and its time grows as n^3
REPEATS = 4
SUM_GROUPS = 16  # of the sum's `runs`: its spread is known to 18 %, its floor to a quarter of the spread
SLICED_ROWS = 1 << 15  # rows beyond which subsets tell spread and floor as well as halves do

Pair = tuple[np.ndarray, np.ndarray]


def emd(
    x: Any, y: Any, n: int | None = None, *, seed: int | torch.Generator = 0, repeats: int = REPEATS
) -> MetricResult:
    """Earth mover's distance of x to y per matched pair: mean Euclidean cost of the best matching of n rows.

    Exact (network simplex of POT). With n below the number of rows, the mean over `repeats` random subsamples
    of both, with `spread` their standard deviation; `floor` is the same for disjoint rows of y against each
    other (NaN if 2 n > len(y)), and depends on n, so compare values at equal n only. The matchings run on
    torch's number of threads.

    Args:
        x, y: (n_x, dim) and (n_y, dim) finite numbers, arrays or tensors.
        n: rows per subsample; None takes 2000, or fewer where x or half of y has fewer.

    Raises TypeError or ValueError naming the argument.
    """
    a, b = pair(x, y)
    if n is None:
        n = min(EMD_ROWS, len(a), max(1, len(b) // 2))
    n = _checks.integer("n", n, 1, min(len(a), len(b)))
    repeats = _checks.integer("repeats", repeats, 1)
    rng = np.random.default_rng(_checks.seed("seed", seed))
    matched = _subsamples(rng, a, b, n, repeats)
    real = [_halves(rng, b, n) for _ in range(repeats)] if 2 * n <= len(b) else []
    costs = threaded(_matching_cost, matched + real)
    values, floors = costs[: len(matched)], costs[len(matched) :]
    floor = float(np.mean(floors)) if floors else math.nan
    return MetricResult(float(np.mean(values)), floor, std(values), (n, n))


def emd_sum(
    x: Any, y: Any, pairs: int = 128, *, seed: int | torch.Generator = 0, runs: int = 3
) -> MetricResult:
    """The least of `runs` sums of Euclidean distances over the best matching of `pairs` rows of x and of y.

    How much published work on these data sets reports the earth mover's distance: a sum, not a mean (a mass
    of 1 per row), over 128 rows, the best of 3 runs. Its noise is large; for a comparison take `emd`, which
    is this over `pairs`, at more rows and without choosing.
    `spread` is the standard deviation of the same over 16 sets of runs, the first of which is the value;
    `floor` is the mean of 16 sets on disjoint rows of y (NaN if 2 pairs > len(y)).

    Args:
        x, y: (n_x, dim) and (n_y, dim) finite numbers, arrays or tensors.
        pairs: rows of each that are matched.
        runs: subsamples of which the least sum counts.

    Raises TypeError or ValueError naming the argument.
    """
    a, b = pair(x, y)
    pairs = _checks.integer("pairs", pairs, 1, min(len(a), len(b)))
    runs = _checks.integer("runs", runs, 1)
    rng = np.random.default_rng(_checks.seed("seed", seed))
    sums = _best_sums(_subsamples(rng, a, b, pairs, runs * SUM_GROUPS), runs, pairs)
    floor = math.nan
    if 2 * pairs <= len(b):
        real = [_halves(rng, b, pairs) for _ in range(runs * SUM_GROUPS)]
        floor = float(np.mean(_best_sums(real, runs, pairs)))
    return MetricResult(sums[0], floor, std(sums), (pairs, pairs))


def sliced_wasserstein(
    x: Any, y: Any, *, n_projections: int = 64, seed: int | torch.Generator = 0, repeats: int = REPEATS
) -> MetricResult:
    """Sliced 1-Wasserstein distance: the mean, over random directions, of W1 between the projected rows.

    Bonneel et al. 2015, with p = 1, so that it has the unit of the data and is at most `emd` of the full
    sets. Takes all rows (a sort per direction), whatever their number. `spread` is the deviation between
    random halves of x and y (a delete-half jackknife). `floor` is that of two halves of y, scaled by
    sqrt(1/n_x + 1/n_y) to the sizes compared, as the W1 of equal laws scales. Of sets above 65,536 rows,
    32,768 rows take the place of a half and `spread` is scaled alike.

    Args:
        x, y: (n_x, dim) and (n_y, dim) finite numbers, arrays or tensors.

    Raises TypeError or ValueError naming the argument.
    """
    a, b = pair(x, y)
    n_projections = _checks.integer("n_projections", n_projections, 1)
    repeats = _checks.integer("repeats", repeats, 1)
    rng = np.random.default_rng(_checks.seed("seed", seed))
    directions = rng.standard_normal((a.shape[1], n_projections))
    directions /= np.linalg.norm(directions, axis=0)
    value = _sliced(a, b, directions)
    if min(len(a), len(b)) < 4:
        return MetricResult(value, math.nan, math.nan, (len(a), len(b)))
    size_a, size_b = min(len(a) // 2, SLICED_ROWS), min(len(b) // 2, SLICED_ROWS)
    parts = [_sliced(draw(rng, a, size_a), draw(rng, b, size_b), directions) for _ in range(repeats)]
    # Rows drawn without replacement vary by 1/size - 1/n, all of them by 1/n: the same for a half.
    whole = 1 / len(a) + 1 / len(b)
    spread = std(parts) * math.sqrt(whole / (1 / size_a + 1 / size_b - whole))
    real = [_halves(rng, b, size_b) for _ in range(repeats)]
    floor = math.sqrt(whole / (2 / size_b)) * float(np.mean([_sliced(*rows, directions) for rows in real]))
    return MetricResult(value, floor, spread, (len(a), len(b)))


def energy_distance(x: Any, y: Any) -> MetricResult:
    """sqrt(2 E|X - Y| - E|X - X'| - E|Y - Y'|) over all pairs of rows, each with itself included.

    Szekely & Rizzo 2013; in one dimension that of scipy.stats.energy_distance. It is 0 for equal sets alone.
    `floor` is sqrt((1/n_x + 1/n_y) E|Y - Y'|) over different rows of y: the root of what the expectation of
    the square is exactly, where x has the law of y. `spread` follows from the variances of the rows' own
    terms (the delta method). Exact, float64, with n_x n_y + n_x^2 + n_y^2 distances: a second or two for
    10,000 rows each, in blocks of bounded memory.

    Args:
        x, y: (n_x, dim) and (n_y, dim) finite numbers, arrays or tensors.

    Raises TypeError or ValueError naming the argument.
    """
    a, b = pair(x, y)
    n, m = len(a), len(b)
    across_a, across_b = _mean_distances(a, b)
    within_a, within_b = _mean_distances(a, a)[0], _mean_distances(b, b)[0]
    square = float(2 * across_a.mean() - within_a.mean() - within_b.mean())
    value = math.sqrt(max(square, 0.0))  # rounding may leave -1e-16 for equal sets
    if min(n, m) < 2:
        return MetricResult(value, math.nan, math.nan, (n, m))
    floor = math.sqrt((1 / n + 1 / m) * float(within_b.mean()) * m / (m - 1))
    variance = 4 * (np.var(across_a - within_a, ddof=1) / n + np.var(across_b - within_b, ddof=1) / m)
    spread = math.sqrt(variance) / (2 * value) if value else math.nan
    return MetricResult(value, floor, spread, (n, m))


def _subsamples(rng: np.random.Generator, a: np.ndarray, b: np.ndarray, n: int, count: int) -> list[Pair]:
    if n == len(a) == len(b):
        return [(a, b)]  # the one that there is
    return [(draw(rng, a, n), draw(rng, b, n)) for _ in range(count)]


def _halves(rng: np.random.Generator, b: np.ndarray, n: int) -> Pair:
    """Two disjoint sets of n rows."""
    both = draw(rng, b, 2 * n)
    return both[:n], both[n:]


def _matching_cost(both: Pair) -> float:
    # Not by ot.dist: in float32 its squares overflow, and equal rows come out 1e-8 apart.
    cost = torch.cat([distances for _, distances in distance_blocks(*both)]).numpy()
    # POT takes differences below 1e-14 or so for 0, whatever the unit: a power of 2 changes no digit.
    scale = 2.0 ** math.frexp(cost.max())[1]
    # POT stops at 100,000 pivots by default, short of the optimum at a few thousand rows.
    value, log = ot.emd2([], [], cost / scale, numItermax=10_000_000, log=True)
    if log.get("warning"):
        raise RuntimeError(f"the optimal transport solver did not finish: {log['warning']}")
    return float(value) * scale


def _best_sums(matched: list[Pair], runs: int, pairs: int) -> list[float]:
    sums = [cost * pairs for cost in threaded(_matching_cost, matched)]
    return [min(sums[at : at + runs]) for at in range(0, len(sums), runs)]


def _sliced(a: np.ndarray, b: np.ndarray, directions: np.ndarray) -> float:
    distance = _quantile_distance(len(a), len(b))
    # In float32, which NumPy sorts with vector instructions; centered, lest an offset take the digits.
    center = b.mean(axis=0, dtype=np.float64)
    p, q = (np.ascontiguousarray((rows - center).T, dtype=np.float32) for rows in (a, b))
    costs = threaded(lambda d: distance(np.sort(d @ p), np.sort(d @ q)), directions.T.astype(np.float32))
    return float(np.mean(costs))


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


def _mean_distances(a: np.ndarray, b: np.ndarray) -> Pair:
    """Of each row of a to the rows of b, and of each row of b to the rows of a."""
    means = torch.empty(len(a), dtype=torch.float64)
    sums = torch.zeros(len(b), dtype=torch.float64)
    for part, distances in distance_blocks(a, b):
        means[part] = distances.mean(dim=1)
        sums += distances.sum(dim=0)
    return means.numpy(), sums.numpy() / len(a)
