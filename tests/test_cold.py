"""Cold diffusion: the degradation, the law of what it leaves, and the algorithms."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from diffusion_fast import cold

IMAGES = torch.rand(5, 1, 12, 12, generator=torch.Generator().manual_seed(0)) - 0.5


def level(ink: cold.StirredInk, t: int, images: Tensor = IMAGES) -> Tensor:
    return ink(images, torch.full((len(images),), t))


def test_level_0_is_the_image_and_nothing_leaves_it() -> None:
    ink = cold.StirredInk(6, 12, turn=0.0, spread=3.0)
    torch.testing.assert_close(level(ink, 0), IMAGES, rtol=0, atol=1e-5)
    for t in range(7):
        torch.testing.assert_close(level(ink, t).mean((2, 3)), IMAGES.mean((2, 3)), rtol=0, atol=1e-5)
    each = ink(IMAGES, torch.arange(5))  # every image at its own level
    for t in range(5):
        torch.testing.assert_close(each[t : t + 1], level(ink, t, IMAGES[t : t + 1]))


def test_the_blur_is_that_of_a_gaussian() -> None:
    blurred = level(cold.StirredInk(4, 12, turn=0.0, spread=2.0), 4)
    wanted = gaussian_filter(IMAGES[:, 0].double().numpy(), (0, 2, 2), mode="reflect", truncate=8)
    np.testing.assert_allclose(blurred[:, 0], wanted, atol=2e-3)
    assert level(cold.StirredInk(4, 12, turn=0.0, spread=2.0), 2).std() > blurred.std()


def test_the_image_is_turned_most_in_the_middle() -> None:
    whole = cold.StirredInk(3, 12, turn=math.pi / 2, reach=1e6, spread=0.0)
    torch.testing.assert_close(level(whole, 3), torch.rot90(IMAGES, 1, (2, 3)), rtol=0, atol=1e-4)
    middle = cold.StirredInk(3, 12, turn=math.pi / 2, reach=3.0, spread=0.0)
    change = (level(middle, 3) - IMAGES).abs().mean((0, 1))
    assert change[5:7, 5:7].mean() > 30 * change[[0, 0, -1, -1], [0, -1, 0, -1]].mean()  # the corners


class Restorer(torch.nn.Module):
    """Knows the images, and is off by `error`, another one for each level."""

    def __init__(self, error: Tensor) -> None:
        super().__init__()
        self.error = error

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return IMAGES + self.error[t]


def test_algorithm_2_forgives_errors_that_the_degradation_keeps() -> None:
    """Bansal et al. 2022, section 3.3: an error that D passes through unchanged cancels in algorithm 2."""
    ink = cold.StirredInk(6, 12)
    x_T = level(ink, 6)
    exact = Restorer(torch.zeros(6, 1, 1, 1))
    for algorithm in cold.ALGORITHMS:
        torch.testing.assert_close(
            cold.sample(exact, ink, x_T, algorithm=algorithm), IMAGES, rtol=0, atol=1e-5
        )
    off = Restorer(torch.linspace(0.5, 1, 6).view(6, 1, 1, 1))  # a constant: blur and turns keep it
    torch.testing.assert_close(cold.sample(off, ink, x_T), IMAGES, rtol=0, atol=1e-5)
    first = cold.sample(off, ink, x_T, algorithm="algorithm_1")
    torch.testing.assert_close(first, IMAGES + 0.5, rtol=0, atol=1e-5)
    torch.testing.assert_close(
        cold.sample(off, ink, x_T, algorithm="one_step"), IMAGES + 1, rtol=0, atol=1e-5
    )


def test_networks_see_the_level_less_one() -> None:
    seen = []

    class Spy(torch.nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            seen.append(t.tolist())
            return x

    ink = cold.StirredInk(3, 12)
    cold.sample(Spy(), ink, IMAGES[:2])
    assert seen == [[2, 2], [1, 1], [0, 0]]
    x, t, target = cold.degraded(ink)(IMAGES.repeat(40, 1, 1, 1), torch.Generator().manual_seed(0))
    assert set(t.tolist()) == {0, 1, 2} and torch.equal(target, IMAGES.repeat(40, 1, 1, 1))
    torch.testing.assert_close(x, ink(target, t + 1))


def test_the_prior_has_the_moments_of_degraded_images() -> None:
    generator = torch.Generator().manual_seed(1)
    bumps = torch.randn(3000, 1, 3, 3, generator=generator)
    images = torch.nn.functional.interpolate(bumps, (12, 12), mode="bilinear")
    ink = cold.StirredInk(4, 12, spread=2.0)
    wanted = level(ink, 4, images).flatten(1)
    prior = cold.DegradedPrior(ink, images, 2)
    found = prior.sample(6000, seed=3).flatten(1)
    # standard error of a mean: 1 / sqrt(2000) of the deviation
    assert float(((found.mean(0) - wanted.mean(0)) / wanted.std(0)).abs().max()) < 0.1
    difference = found.T.cov() - wanted.T.cov()
    assert float(difference.norm() / wanted.T.cov().norm()) < 0.1
    assert torch.equal(prior.sample(3, seed=3), prior.sample(3, seed=3))
    assert not torch.equal(prior.sample(3, seed=3), prior.sample(3, seed=4))


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: cold.StirredInk(0), "n_steps: got 0"),
        (lambda: cold.StirredInk(side=1), "side: got 1"),
        (lambda: cold.StirredInk(reach=0.0), "reach: got 0"),
        (lambda: cold.StirredInk(spread=-1.0), "spread: got -1"),
        (lambda: cold.StirredInk(turn=math.nan), "turn: got nan"),
        (
            lambda: cold.sample(Restorer(torch.zeros(6)), cold.StirredInk(6, 12), IMAGES * math.nan),
            "x_T: got nan",
        ),
        (
            lambda: cold.sample(Restorer(torch.zeros(6)), cold.StirredInk(6, 12), IMAGES, algorithm="3"),
            "algorithm: got '3'",
        ),
    ],
)
def test_arguments_are_refused(make, named: str) -> None:
    with pytest.raises(ValueError, match=named):
        make()
