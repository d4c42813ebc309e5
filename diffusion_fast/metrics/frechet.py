"""Frechet distance between two sets of rows, such as features of images."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch

from diffusion_fast import _checks
from diffusion_fast.metrics.result import MetricResult, draw, pair, std

REPEATS = 8


def frechet_distance(x: Any, y: Any, *, seed: int | torch.Generator = 0) -> MetricResult:
    """|m_x - m_y|^2 + tr(C_x + C_y - 2 (C_x C_y)^(1/2)), of the rows' means and covariances.

    The squared 2-Wasserstein distance of the two Gaussians with these moments (Dowson & Landau 1982); with
    rows that are features of images it is what Heusel et al. 2017 call FID. In float64.

    It is biased upwards, by an amount that falls as 1/n_x + 1/n_y, so values compare at equal numbers of
    rows, and with `floor`: the mean over random halves of y against each other, scaled by 1/n_x + 1/n_y to
    the sizes compared. `spread` is the deviation between 8 random halves of x and y (a delete-half
    jackknife). NaN, both, where a half has fewer than two rows.

    Args:
        x, y: (n_x, dim) and (n_y, dim) finite numbers, arrays or tensors, each with at least two rows; many
            more than dim of them, or the covariances say little.
        seed: of the halves.

    Raises TypeError or ValueError naming the argument.
    """
    a, b = (part.astype(np.float64) for part in pair(x, y))
    for name, part in (("x", a), ("y", b)):
        if len(part) < 2:
            raise _checks.bad_value(name, part, "at least two rows")
    rng = np.random.default_rng(_checks.seed("seed", seed))
    value, n = _distance(a, b), (len(a), len(b))
    if min(n) < 4:
        return MetricResult(value, math.nan, math.nan, n)
    half_a, half_b = len(a) // 2, len(b) // 2
    parts = [_distance(draw(rng, a, half_a), draw(rng, b, half_b)) for _ in range(REPEATS)]
    whole = 1 / len(a) + 1 / len(b)
    # Rows drawn without replacement vary by 1/half - 1/n, all of them by 1/n.
    spread = std(parts) * math.sqrt(whole / (1 / half_a + 1 / half_b - whole))
    real = [np.split(draw(rng, b, 2 * half_b), 2) for _ in range(REPEATS)]
    floor = whole / (2 / half_b) * float(np.mean([_distance(*halves) for halves in real]))
    return MetricResult(value, floor, spread, n)


def _distance(a: np.ndarray, b: np.ndarray) -> float:
    shift = a.mean(0) - b.mean(0)
    cov_a, cov_b = (np.atleast_2d(np.cov(part, rowvar=False)) for part in (a, b))
    # (C_a C_b)^(1/2) has the trace of (R C_b R)^(1/2) with R = C_a^(1/2), which is symmetric.
    values, vectors = np.linalg.eigh(cov_a)
    root = vectors * np.sqrt(np.maximum(values, 0)) @ vectors.T
    crossed = np.sqrt(np.maximum(np.linalg.eigvalsh(root @ cov_b @ root), 0)).sum()
    return max(0.0, float(shift @ shift + np.trace(cov_a) + np.trace(cov_b) - 2 * crossed))
