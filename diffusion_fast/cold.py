"""Cold diffusion (Bansal et al. 2022): images are degraded without any noise, and a network restores them.

A degradation D(x0, t) is deterministic, D(x0, 0) = x0, and D(x0, T) keeps so little of an image that what it
leaves can be drawn from a simple law. The network R(x_t, t) learns x0 in the mean absolute error. Sampling
draws x_T from that law and goes back level by level; algorithm 2 of the paper takes off what the degradation
does to the estimate instead of degrading it anew, so that errors of the network do not add up.

Networks are called as model(x, t - 1): t here counts levels of degradation from 0 (none) to T.
"""

from __future__ import annotations

import math
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion_fast import _checks
from diffusion_fast.image_training import Corruption

ALGORITHMS = ("one_step", "algorithm_1", "algorithm_2")


class Degradation(Protocol):
    """n_steps: the number of levels T."""

    n_steps: int

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """x (B, C, H, W) degraded to the levels t (B,) int64 in [0, n_steps], 0 leaves it as it is."""


class StirredInk:
    """A drop of ink in water: the image is stirred and spreads.

    At level t it is turned about its centre, bilinearly, by an angle of turn (t / T) exp(-(r / reach)^2) at
    the distance r; then blurred by the heat equation with reflecting walls, so that nothing leaves the image:
    mode k of the cosines along a side of n pixels is multiplied by exp(-(pi k s / n)^2 / 2), the blur of a
    Gaussian of width s = spread (t / T)^2 pixels.

    side: of the square images in pixels. turn in radians; spread and reach in pixels.
    """

    def __init__(
        self,
        n_steps: int = 20,
        side: int = 28,
        *,
        turn: float = math.pi / 2,
        reach: float = 8.0,
        spread: float = 4.0,
    ) -> None:
        self.n_steps = _checks.integer("n_steps", n_steps, 1)
        self.side = _checks.integer("side", side, 2)
        fraction = torch.linspace(0, 1, self.n_steps + 1, dtype=torch.float64)
        self.grids = _turned_grids(
            fraction * _checks.real("turn", turn), self.side, _checks.real("reach", reach, 0, open_low=True)
        )
        self.modes = _cosine_modes(self.side)
        width = _checks.real("spread", spread, 0.0) * fraction**2
        k = torch.arange(self.side)
        self.damping = torch.exp(-((math.pi * k * width[:, None] / self.side) ** 2) / 2)
        self.blurs = (self.modes.T * self.damping[:, None]) @ self.modes

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        """x (B, C, side, side) float32, t (B,) int64 in [0, n_steps] -> as x."""
        grids, blurs = (table.to(x)[t] for table in (self.grids, self.blurs))
        x = F.grid_sample(x, grids, mode="bilinear", padding_mode="border", align_corners=True)
        return blurs[:, None] @ x @ blurs[:, None].mT


class DegradedPrior:
    """The law of wholly degraded images, D(x0, T): a mixture of Gaussians on the cosine modes that are left.

    Fitted to the degraded images of `images`, (n, 1, side, side), by expectation maximisation, with full
    covariances. Modes whose damping at T is below `least` are left out: nothing of them can be seen.
    """

    def __init__(
        self,
        degradation: StirredInk,
        images: Tensor,
        n_components: int,
        *,
        least: float = 0.02,
        seed: int = 0,
    ) -> None:
        from sklearn.mixture import GaussianMixture

        last = torch.full((len(images),), degradation.n_steps)
        kept = int((degradation.damping[-1] >= least).sum())
        self.modes = degradation.modes[:kept].float()
        rows = (self.modes @ degradation(images, last)[:, 0] @ self.modes.T).flatten(1)
        self.scale = rows.std(0)
        self.mixture = GaussianMixture(n_components, reg_covar=1e-4, random_state=seed)
        self.mixture.fit((rows / self.scale).numpy())

    def sample(self, n: int, *, seed: int = 0) -> Tensor:
        """(n, 1, side, side) float32."""
        rng = np.random.default_rng(_checks.seed("seed", seed))
        component = rng.choice(len(self.mixture.weights_), n, p=self.mixture.weights_)
        roots = np.linalg.cholesky(self.mixture.covariances_)[component]
        normal = rng.standard_normal((n, len(self.scale)))
        rows = self.mixture.means_[component] + np.einsum("nij,nj->ni", roots, normal)
        kept = len(self.modes)
        modes = (torch.from_numpy(rows).float() * self.scale).view(n, 1, kept, kept)
        return self.modes.T @ modes @ self.modes


def degraded(degradation: Degradation) -> Corruption:
    """For EpochTrainer: images at levels uniform in 1 .. T; the answer is the image itself."""

    def corrupt(x0: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        t = torch.randint(1, degradation.n_steps + 1, (len(x0),), generator=generator)
        return degradation(x0, t), t - 1, x0

    return corrupt


@torch.no_grad()
def sample(
    model: nn.Module, degradation: Degradation, x_T: Tensor, *, algorithm: str = "algorithm_2"
) -> Tensor:
    """Images from wholly degraded ones, (n, C, H, W) float32 -> the same shape.

    algorithm: "algorithm_2", x_{t-1} = x_t - D(x0', t) + D(x0', t - 1) with x0' = R(x_t, t); "algorithm_1",
    x_{t-1} = D(x0', t - 1); "one_step", R(x_T, T) alone.
    """
    _checks.choice("algorithm", algorithm, ALGORITHMS)
    x = _checks.finite("x_T", x_T)
    for level in range(degradation.n_steps, 0, -1):
        t = torch.full((len(x),), level, device=x.device)
        estimate = model(x, t - 1)
        if algorithm == "one_step":
            return estimate
        before = degradation(estimate, t - 1)
        x = before if algorithm == "algorithm_1" else x - degradation(estimate, t) + before
    return x


def _turned_grids(angles: Tensor, side: int, reach: float) -> Tensor:
    """Where each pixel of the turned image comes from, as grid_sample takes it: (levels, side, side, 2)."""
    half = (side - 1) / 2
    place = torch.arange(side, dtype=torch.float64) - half
    y, x = torch.meshgrid(place, place, indexing="ij")
    angle = angles[:, None, None] * torch.exp(-(x**2 + y**2) / reach**2)
    cos, sin = angle.cos(), angle.sin()
    return torch.stack([cos * x - sin * y, sin * x + cos * y], dim=-1) / half


def _cosine_modes(side: int) -> Tensor:
    """The orthonormal DCT-II: row k is mode k of a side."""
    k = torch.arange(side, dtype=torch.float64)
    modes = torch.cos(math.pi * k[:, None] * (k + 0.5) / side) * math.sqrt(2 / side)
    modes[0] /= math.sqrt(2)
    return modes
