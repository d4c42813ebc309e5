"""Mixtures of Gaussians, whose law is known exactly: `Dataset.mixture` has weights, centers, covariances."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from diffusion_fast import _checks
from diffusion_fast.datasets.dataset import Dataset, Mixture, sizes, split

RING_RADIUS, RING_STD = 1.2, 0.12
MANYCIRCLES_STD = 0.25


def _mixture_1d(weights: Sequence[float], centers: Sequence[float], stds: Sequence[float]) -> Mixture:
    shares = np.array(weights, dtype=np.float64) / np.sum(weights)
    return Mixture(shares, np.array(centers)[:, None], np.square(stds)[:, None, None])


def _ring(modes: int, radius: float, std: float) -> Mixture:
    angles = 2 * np.pi * np.arange(modes) / modes
    centers = radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return Mixture(np.full(modes, 1 / modes), centers, np.tile(std**2 * np.eye(2), (modes, 1, 1)))


def _blobs() -> Mixture:
    f, g = 0.005 * np.eye(2), 0.004 * (1 - np.eye(2))
    return Mixture(
        np.array([0.8, 0.2 * 0.2, 0.2 * 0.8]),
        np.array([[0.3, 0.4], [0.2, 0.3], [0.8, 0.8]]),
        np.stack([f, 2 * f + g, f - g]),
    )


MIXTURES = {
    "two_gaussians": _mixture_1d([1, 2], [-4, 4], [1, 1]),
    "two_gaussians_wide": _mixture_1d([1, 2], [-4, 10], [1, 1]),
    "three_gaussians": _mixture_1d([1, 1, 2], [-4, 0, 4], [1, 2, 1]),
    "gaussian_ring": _ring(7, RING_RADIUS, RING_STD),
    "manycircles": _ring(8, 1.0, MANYCIRCLES_STD),
    "blobs": _blobs(),
}


def two_gaussians(n_train: int = 10_000, n_test: int = 1_000, seed: int = 0) -> Dataset:
    """1-D: N(-4, 1) with weight 1/3 and N(4, 1) with 2/3. Not scaled."""
    return _dataset("two_gaussians", n_train, n_test, seed)


def two_gaussians_wide(n_train: int = 10_000, n_test: int = 1_000, seed: int = 0) -> Dataset:
    """1-D: N(-4, 1) with weight 1/3 and N(10, 1) with 2/3. Not scaled."""
    return _dataset("two_gaussians_wide", n_train, n_test, seed)


def three_gaussians(n_train: int = 10_000, n_test: int = 1_000, seed: int = 0) -> Dataset:
    """1-D: N(-4, 1), N(0, 2^2) and N(4, 1) with weights 1/4, 1/4 and 1/2. Not scaled."""
    return _dataset("three_gaussians", n_train, n_test, seed)


def gaussian_ring(n_train: int = 1_500, n_test: int = 500, seed: int = 0) -> Dataset:
    """2-D: seven round Gaussians of deviation 0.12, evenly on a circle of radius 1.2. Not scaled."""
    return _dataset("gaussian_ring", n_train, n_test, seed)


def manycircles(n_train: int = 8_000, n_test: int = 4_000, seed: int = 0) -> Dataset:
    """2-D, eight classes: round Gaussians of deviation 0.25, evenly on the unit circle. Scaled to [-1, 1].

    The classes overlap: the best possible classifier is right for 87 % of the rows.
    """
    classes = tuple(str(group) for group in range(8))
    return _dataset("manycircles", n_train, n_test, seed, "min_max", classes, np.arange(8))


def blobs(n_train: int = 8_000, n_test: int = 4_000, seed: int = 0) -> Dataset:
    """2-D, two classes: one round Gaussian (80 % of the rows) and two tilted ones. Scaled to [-1, 1].

    With f = 0.005 I and g = 0.004 off the diagonal: "negative" is N((0.3, 0.4), f); "positive" is
    N((0.2, 0.3), 2 f + g) with weight 0.2 and N((0.8, 0.8), f - g) with 0.8. The best possible classifier is
    right for 97 % of the rows.
    """
    classes = ("negative", "positive")
    return _dataset("blobs", n_train, n_test, seed, "min_max", classes, np.array([0, 1, 1]))


def _dataset(
    name: str,
    n_train: Any,
    n_test: Any,
    seed: Any,
    scaling: str = "none",
    classes: tuple[str, ...] = (),
    class_of: np.ndarray | None = None,
) -> Dataset:
    """class_of: the class of each component, where the set has classes."""
    n_train, n_test = sizes(n_train, n_test)
    mixture = MIXTURES[name]
    rows, component = mixture.draw(np.random.default_rng(_checks.seed("seed", seed)), n_train + n_test)
    labels = None if class_of is None else class_of[component]
    columns = ("x", "y")[: rows.shape[1]]
    return split(
        name, rows, n_train, columns, scaling=scaling, labels=labels, classes=classes, mixture=mixture
    )
