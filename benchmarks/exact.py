"""Targets of which more than samples is known: a mixture with its exact score, and the distance to a law."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.special import ndtr
from torch import Tensor, nn

from diffusion_fast.datasets.dataset import Mixture
from diffusion_fast.metrics.result import threaded

DIRECTIONS = 32
GRID = 1 << 15  # points at which a projected distribution function is tabulated


class ExactDenoiser(nn.Module):
    """The perfect network for a mixture of round Gaussians of one deviation.

    kind: what t is and what is returned, for x = signal x0 + noise n. "preserving": t is sigma = noise /
    signal with signal^2 + noise^2 = 1, returns E[n | x]; "exploding": the same with signal = 1; "flow": t is
    noise = 1 - signal, returns E[n - x0 | x].
    """

    def __init__(self, mixture: Mixture, kind: str) -> None:
        super().__init__()
        variance = mixture.covariances[0, 0, 0]
        if not (mixture.covariances == variance * np.eye(len(mixture.centers[0]))).all():
            raise ValueError("mixture: got covariances that differ; accepted: one multiple of the identity")
        self.kind, self.variance = kind, float(variance)
        centers = torch.from_numpy(mixture.centers).float()
        self.register_buffer("centers", centers)
        self.register_buffer("prior", torch.from_numpy(mixture.weights).log().float())
        self.register_buffer("energy", (centers**2).sum(1) / 2)

    def level(self, t: Tensor) -> tuple[Tensor, Tensor]:
        if self.kind == "flow":
            return 1 - t, t
        if self.kind == "exploding":
            return torch.ones_like(t), t
        signal = torch.rsqrt(1 + t**2)
        return signal, t * signal

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        signal, noise = self.level(t[:, None])
        total = signal**2 * self.variance + noise**2  # of one component, with the noise
        logits = (signal / total) * (x @ self.centers.T) + (self.prior - signal**2 / total * self.energy)
        center = torch.softmax(logits, dim=1) @ self.centers  # E of the component's center
        # E[x0 | x] = (signal v x + noise^2 center) / total, and n = (x - signal x0) / noise
        n = (noise / total) * x - (signal * noise / total) * center
        if self.kind != "flow":
            return n
        return n - (signal * self.variance / total) * x - (noise**2 / total) * center


@dataclass(frozen=True)
class SlicedLaw:
    """A law by its quantiles along some directions: `distance` is to n samples.

    The mean over the directions of the Wasserstein-1 distance between projections (Bonneel et al. 2015).
    directions (k, dim), quantiles (k, n) ascending, float32.
    """

    directions: np.ndarray
    quantiles: np.ndarray

    @classmethod
    def of_mixture(cls, mixture: Mixture, n: int) -> SlicedLaw:
        """Exact but for the interpolation: the quantiles at (i + 1/2) / n."""
        directions = _directions(2)
        levels = (np.arange(n) + 0.5) / n

        def quantiles(direction: np.ndarray) -> np.ndarray:
            mean = mixture.centers @ direction
            std = np.sqrt(np.einsum("i,kij,j->k", direction, mixture.covariances, direction))
            grid = np.linspace((mean - 7 * std).min(), (mean + 7 * std).max(), GRID)
            cdf = ndtr((grid[:, None] - mean) / std) @ mixture.weights
            return np.interp(levels, cdf, grid)

        return cls(directions, np.array(threaded(quantiles, directions), dtype=np.float32))

    @classmethod
    def of_rows(cls, rows: np.ndarray) -> SlicedLaw:
        directions = _directions(rows.shape[1])
        return cls(directions, np.sort(directions @ rows.T.astype(np.float32)))

    def distance(self, rows: np.ndarray) -> float:
        """rows: (n, dim), as many as there are quantiles. inf where one is not finite."""
        if not np.isfinite(rows).all():
            return np.inf
        columns = np.ascontiguousarray(rows.T, dtype=np.float32)

        def along(both: tuple[np.ndarray, np.ndarray]) -> float:
            direction, quantiles = both
            return float(np.abs(np.sort(direction @ columns) - quantiles).mean(dtype=np.float64))

        return float(np.mean(threaded(along, zip(self.directions, self.quantiles, strict=True))))


def _directions(dim: int) -> np.ndarray:
    """The line itself, evenly around the circle, else at random (the same each time)."""
    if dim == 1:
        return np.ones((1, 1), np.float32)
    if dim == 2:
        angles = (np.arange(DIRECTIONS) + 0.5) * np.pi / DIRECTIONS
        return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    normals = np.random.default_rng(0).standard_normal((DIRECTIONS, dim))
    return (normals / np.linalg.norm(normals, axis=1, keepdims=True)).astype(np.float32)
