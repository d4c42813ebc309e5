"""Whether samples reach all of the data and stay on it: shares of modes, precision and recall."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import numpy as np
import torch

from diffusion_fast import _checks
from diffusion_fast.metrics.result import MetricResult, distance_blocks, draw, pair, rows, std

SIMULATIONS = 1000
REPEATS = 4
SUBSET_ROWS = 2000  # beyond twice as many rows, subsets tell a spread as well as halves do


class PrecisionRecall(NamedTuple):
    """precision: the share of samples that lie on the data. recall: the share of data that samples reach."""

    precision: MetricResult
    recall: MetricResult


def mode_coverage(
    x: Any, data: Any, centers: Any, radius: float, *, seed: int | torch.Generator = 0
) -> MetricResult:
    """Share of the data's modes that samples cover, each mode weighted by the data in it: 1 is all of them.

    A row belongs to the mode of its nearest center if it lies within `radius` of it. With p_k and q_k the
    shares of the rows of x and of data in mode k, the value is sum_k min(p_k, q_k) / sum_k q_k. So a missing
    mode costs the share that data has there, a mode that is too rare costs what it lacks, and samples that
    lie between the modes count for nothing.
    `floor` is the mean over simulated counts of both sets from the shares q_k, `spread` the deviation over
    simulated counts from p_k and q_k (1000 draws each).

    Args:
        x, data: (n_x, dim) and (n_data, dim) finite numbers, arrays or tensors.
        centers: (n_modes, dim), one row per mode.
        radius: above 0, in units of the data; about 3 standard deviations of a mode. Some data must lie
            within it.

    Raises TypeError or ValueError naming the argument.
    """
    a, b = pair(x, data, "x", "data")
    middles = rows("centers", centers)
    if middles.shape[1] != b.shape[1]:
        raise _checks.bad_value("centers", centers, f"rows of {b.shape[1]} numbers, as data has")
    radius = _checks.real("radius", radius, 0.0, open_low=True)
    p, q = (_mode_shares(part, middles, radius) for part in (a, b))
    if not q[:-1].any():
        raise _checks.bad_value("radius", radius, "one within which some rows of data lie of the centers")
    rng = np.random.default_rng(_checks.seed("seed", seed))
    samples, real, reference = (
        rng.multinomial(n, shares, SIMULATIONS) / n for n, shares in ((len(a), p), (len(a), q), (len(b), q))
    )
    floor = float(_overlap(real, reference).mean())
    spread = float(_overlap(samples, reference).std(ddof=1))
    return MetricResult(float(_overlap(p, q)), floor, spread, (len(a), len(b)))


def precision_recall(x: Any, data: Any, k: int = 5, *, seed: int | torch.Generator = 0) -> PrecisionRecall:
    """Precision and recall by nearest neighbours (Kynkaanniemi et al. 2019, with the rows as features).

    precision: the share of x within any row of data's distance to its k-th nearest other row of data; recall
    the same with x and data exchanged. Low precision: samples off the data; low recall: data that no samples
    are near. `floor` leaves every row of data out in turn, as a sample of its own, exactly (for recall, among
    as many rows of data as x has, where x has fewer). `spread` is the deviation between 4 random halves of
    both sets (a delete-half jackknife), or scaled from subsets of 2000 rows of the smaller where there are
    more than 4000; NaN where a half has no more than k rows. Float64, by 2 n_x n_data + n_x^2 + n_data^2
    distances in blocks of bounded memory.

    Args:
        x, data: (n_x, dim) and (n_data, dim) finite numbers, arrays or tensors.
        k: from 1 up; x and data must each have more than k rows.
        seed: of the subsets, and of the rows of data that stand for x in the floor of recall.

    Raises TypeError or ValueError naming the argument.
    """
    a, b = pair(x, data, "x", "data")
    k = _checks.integer("k", k, 1)
    for name, part in (("x", a), ("data", b)):
        if len(part) <= k:
            raise _checks.bad_value(name, part, f"more than k = {k} rows")
    rng = np.random.default_rng(_checks.seed("seed", seed))
    radii_b, floor = _neighbours(b, k)
    radii_a, _ = _neighbours(a, k)
    recall_floor = _neighbours(draw(rng, b, len(a)), k)[1] if len(a) < len(b) else floor
    n = (len(a), len(b))
    spreads = _spreads(rng, a, b, k)
    return PrecisionRecall(
        MetricResult(_share_inside(a, b, radii_b), floor, spreads[0], n),
        MetricResult(_share_inside(b, a, radii_a), recall_floor, spreads[1], n),
    )


def _spreads(rng: np.random.Generator, a: np.ndarray, b: np.ndarray, k: int) -> tuple[float, float]:
    """Deviations of precision and recall, from those between random subsets of both sets."""
    part = min(0.5, SUBSET_ROWS / min(len(a), len(b)))
    if int(part * min(len(a), len(b))) <= k:
        return math.nan, math.nan
    shares = []
    for _ in range(REPEATS):
        few, some = (draw(rng, rows, int(part * len(rows))) for rows in (a, b))
        radii = _neighbours(few, k)[0], _neighbours(some, k)[0]
        shares.append((_share_inside(few, some, radii[1]), _share_inside(some, few, radii[0])))
    # Rows drawn without replacement vary by 1/part - 1 of what all of them do: the same for halves.
    scale = math.sqrt(part / (1 - part))
    precision, recall = (scale * std(values) for values in zip(*shares, strict=True))
    return precision, recall


def _mode_shares(part: np.ndarray, centers: np.ndarray, radius: float) -> np.ndarray:
    """Of the rows in each mode; the last entry is the share in none."""
    counts = np.zeros(len(centers) + 1)
    for _, distances in distance_blocks(part, centers):
        least, nearest = distances.min(dim=1)
        nearest[least > radius] = len(centers)
        counts += np.bincount(nearest.numpy(), minlength=len(counts))
    return counts / len(part)


def _overlap(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    """Over the modes, the last axis less its last entry; 0 where q has nothing in any mode."""
    return np.minimum(p, q)[..., :-1].sum(axis=-1) / np.maximum(q[..., :-1].sum(axis=-1), 1e-300)


def _neighbours(part: np.ndarray, k: int) -> tuple[torch.Tensor, float]:
    """Each row's distance to its k-th nearest other row, and the share of rows inside the others' balls.

    Were a row left out, it would lie inside the ball of another just if it is no further than that one's
    k-th nearest (of which there may be several): the ball is then, without it, as large or larger. Otherwise
    the ball is the same and does not reach it.
    """
    radii = torch.empty(len(part), dtype=torch.float64)
    inside = torch.zeros(len(part), dtype=torch.bool)
    for block, distances in distance_blocks(part, part):
        distances.diagonal(block.start).fill_(math.inf)
        radii[block] = distances.topk(k, dim=1, largest=False).values[:, -1]
        inside |= (distances <= radii[block, None]).any(dim=0)
    return radii, float(inside.double().mean())


def _share_inside(points: np.ndarray, centers: np.ndarray, radii: torch.Tensor) -> float:
    """Of the points within the radius of any of the centers."""
    count = sum(
        int((distances <= radii).any(dim=1).sum()) for _, distances in distance_blocks(points, centers)
    )
    return count / len(points)
