"""Kernel densities: the "NLL" of published results on point sets, and the mean log of a KDE."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion_fast import _checks
from diffusion_fast.metrics.result import CHUNK_ELEMENTS, MetricResult, draw, pair, standard_error
from diffusion_fast.standardiser import LARGEST


def kernel_nll(x: Any, data: Any, tau: float = 0.1, *, seed: int | torch.Generator = 0) -> MetricResult:
    """-log mean_ij K(x_i, data_j) with K(u, v) = (2 pi tau)^(-dim/2) exp(-|u - v|^2 / (4 tau)).

    The "NLL" of published results on these data sets. It is not a proper score: samples that crowd at the
    densest point get less than real data do, so the distance to `floor` is what matters, not how low it is.
    (K is what those results use: a Gaussian of variance 2 tau with the normalizer of variance tau.)
    `floor` is that of two halves of data, `spread` the standard error from the rows of x. Computed in float64
    over all pairs.

    Args:
        x, data: (n_x, dim) and (n_data, dim) finite numbers, arrays or tensors.
        tau: in squared units of the data, from 1e-30 to 1e30.

    Raises TypeError or ValueError naming the argument.
    """
    a, b = pair(x, data, "x", "data")
    tau = _checks.real("tau", tau, 1 / LARGEST, LARGEST)
    rng = np.random.default_rng(_checks.seed("seed", seed))
    value, spread = _kernel_nll(a, b, tau)
    floor, half = math.nan, len(b) // 2
    if half:
        rows = draw(rng, b, 2 * half)
        floor = _kernel_nll(rows[:half], rows[half:], tau)[0]
    return MetricResult(value, floor, spread, (len(a), len(b)))


def kde_score(x: Any, data: Any) -> MetricResult:
    """Mean log density of x under a Gaussian kernel density estimate of data, in nats.

    That of scipy.stats.gaussian_kde: one Gaussian per row of data, of the covariance of all of them times
    n_data^(-2 / (dim + 4)) (Scott 1992). Like `kernel_nll` it looks one way: samples under-dispersed at the
    densest points score above real data, so neither high nor low is good but near to `floor`.
    `floor` is the mean over data of the density of each row under the kernels of all others, `spread` the
    standard error from the rows of x. Computed in float64 over all pairs, in blocks of bounded memory.

    Args:
        x, data: (n_x, dim) and (n_data, dim) finite numbers, arrays or tensors; the covariance of data must
            not be singular: at least dim + 1 rows, which lie on no plane.

    Raises TypeError or ValueError naming the argument.
    """
    a, b = pair(x, data, "x", "data")
    u, v, normalizer = _kernel_coordinates(a, b)
    scores = _log_kernel_sums(u, v, 0.5).numpy() - (normalizer + math.log(len(b)))
    real = _log_kernel_sums(v, v, 0.5, leave_out=True).numpy() - (normalizer + math.log(len(b) - 1))
    spread = standard_error(scores)
    return MetricResult(float(scores.mean()), float(real.mean()), spread, (len(a), len(b)))


def kde_log_density(x: Any, data: Any) -> np.ndarray:
    """The log density of each row of x, (n_x,) float64, whose mean is `kde_score`; arguments as there.

    Raises TypeError or ValueError naming the argument.
    """
    a, b = pair(x, data, "x", "data")
    u, v, normalizer = _kernel_coordinates(a, b)
    log_density: np.ndarray = _log_kernel_sums(u, v, 0.5).numpy() - (normalizer + math.log(len(b)))
    return log_density


def _kernel_coordinates(a: np.ndarray, b: np.ndarray) -> tuple[Tensor, Tensor, float]:
    """a and b in coordinates where every kernel is exp(-|u - v|^2 / 2), and the log of its normalizer."""
    n, dim = b.shape
    factor = _cholesky(b) * n ** (-1 / (dim + 4))
    center = b.mean(axis=0, dtype=np.float64)
    u, v = (torch.from_numpy(np.linalg.solve(factor, (rows - center).T).T) for rows in (a, b))
    return u, v, float(np.log(np.diag(factor)).sum()) + 0.5 * dim * math.log(2 * math.pi)


def _cholesky(data: np.ndarray) -> np.ndarray:
    """The lower factor of the covariance of the rows."""
    n, dim = data.shape
    accepted = f"rows of nonsingular covariance: at least {dim + 1} that lie on no plane"
    if n <= dim:
        raise _checks.bad_value("data", data, accepted)
    covariance = np.atleast_2d(np.cov(data, rowvar=False, dtype=np.float64))
    # Rounding may leave a constant column with a variance; a variance below this has lost its digits.
    constant = (np.ptp(data, axis=0) == 0) | (np.diag(covariance) < 1e-290)
    if constant.any():
        raise _checks.bad_value("data", f"rows with column {int(constant.argmax())} constant", accepted)
    scale = np.sqrt(np.diag(covariance))
    correlation = covariance / np.outer(scale, scale)
    if np.linalg.eigvalsh(correlation)[0] <= dim * np.finfo(np.float64).eps * 10:
        raise _checks.bad_value("data", "rows of singular covariance (dependent columns)", accepted)
    return np.linalg.cholesky(covariance)


def _kernel_nll(a: np.ndarray, b: np.ndarray, tau: float) -> tuple[float, float]:
    """The value and its standard error from the rows of a."""
    u, v = torch.from_numpy(a).to(torch.float64), torch.from_numpy(b).to(torch.float64)
    center = v.mean(0)  # distances do not change, but the squares in the exponents lose fewer digits
    log_sums = _log_kernel_sums(u - center, v - center, tau)
    total = torch.logsumexp(log_sums, dim=0)
    normalizer = 0.5 * a.shape[1] * math.log(2 * math.pi * tau)
    value = normalizer + math.log(len(a)) + math.log(len(b)) - float(total)
    shares = torch.exp(log_sums - total) * len(a)  # each row's kernel mean over the mean of all, mean 1
    return value, standard_error(shares.numpy())


def _log_kernel_sums(u: Tensor, v: Tensor, tau: float, *, leave_out: bool = False) -> Tensor:
    """log sum_j exp(-|u_i - v_j|^2 / (4 tau)) for every i, float64; with leave_out, over j other than i."""
    # One product gives all exponents: (u . v) / (2 tau) - |u|^2 / (4 tau) - |v|^2 / (4 tau).
    left = torch.cat([u / (2 * tau), _squares(u, tau), torch.ones(len(u), 1, dtype=u.dtype)], dim=1)
    right = torch.cat([v, torch.ones(len(v), 1, dtype=v.dtype), _squares(v, tau)], dim=1).T.contiguous()
    size = max(1, CHUNK_ELEMENTS // len(v))
    sums = []
    for at in range(0, len(u), size):
        exponents = left[at : at + size] @ right
        if leave_out:
            exponents.diagonal(at).fill_(-math.inf)
        # Sums in the log domain: samples far from all data have kernels below the smallest float64.
        sums.append(torch.logsumexp(exponents, dim=1))
    return torch.cat(sums)


def _squares(u: Tensor, tau: float) -> Tensor:
    return -(u * u).sum(1, keepdim=True) / (4 * tau)
