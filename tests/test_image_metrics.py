"""Frechet distance, and fidelity of images as a classifier sees them."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Tensor

from diffusion_fast.metrics import (
    ImageClassifier,
    classifier_accuracy,
    frechet_distance,
    image_fidelity,
    train_classifier,
)

RNG = np.random.default_rng(0)


def by_scipy(a: np.ndarray, b: np.ndarray) -> float:
    shift = a.mean(0) - b.mean(0)
    cov_a, cov_b = np.cov(a.T), np.cov(b.T)
    return float(shift @ shift + np.trace(cov_a + cov_b - 2 * scipy.linalg.sqrtm(cov_a @ cov_b).real))


@pytest.mark.parametrize("dim", [2, 7])
def test_frechet_distance_is_that_of_the_moments(dim: int) -> None:
    x = RNG.normal(size=(60, dim)) @ RNG.normal(size=(dim, dim)) + 1
    y = RNG.normal(size=(90, dim)) @ RNG.normal(size=(dim, dim))
    result = frechet_distance(x, torch.from_numpy(y))
    assert result.value == pytest.approx(by_scipy(x, y), rel=1e-6) and result.n == (60, 90)
    assert frechet_distance(x, x).value == pytest.approx(0, abs=1e-9)
    assert frechet_distance(3 * x, 3 * y).value == pytest.approx(9 * result.value, rel=1e-9)
    assert frechet_distance(x, y, seed=1).floor != result.floor


def test_frechet_distance_in_one_dimension_and_with_dependent_columns() -> None:
    x, y = RNG.normal(size=(50, 1)), 2 + 3 * RNG.normal(size=(40, 1))
    wanted = (x.mean() - y.mean()) ** 2 + (x.std(ddof=1) - y.std(ddof=1)) ** 2
    assert frechet_distance(x, y).value == pytest.approx(wanted, rel=1e-9)
    assert frechet_distance(np.hstack([x, x]), np.hstack([y, y])).value == pytest.approx(2 * wanted, rel=1e-6)


def test_the_floor_is_what_rows_of_the_same_law_get() -> None:
    y = RNG.normal(size=(1000, 6))
    drawn = [frechet_distance(RNG.normal(size=(200, 6)), y) for _ in range(40)]
    values = np.array([result.value for result in drawn])
    assert np.mean([result.floor for result in drawn]) == pytest.approx(values.mean(), rel=0.25)
    shifted = [frechet_distance(RNG.normal(size=(200, 6)) + 0.5, y) for _ in range(40)]
    spread = np.std([result.value for result in shifted])
    assert np.mean([result.spread for result in shifted]) == pytest.approx(spread, rel=0.4)


def test_few_rows_have_no_floor() -> None:
    result = frechet_distance(RNG.normal(size=(3, 2)), RNG.normal(size=(9, 2)))
    assert math.isfinite(result.value) and math.isnan(result.floor) and math.isnan(result.spread)
    with pytest.raises(ValueError, match=r"x: got .*at least two rows"):
        frechet_distance(RNG.normal(size=(1, 2)), RNG.normal(size=(9, 2)))


# ---- by a classifier


def bars(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """Noisy 12 x 12 images with a bright row (class 0), column (1) or square (2)."""
    generator = torch.Generator().manual_seed(seed)
    images = 0.2 * torch.randn(n, 1, 12, 12, generator=generator)
    labels = torch.randint(3, (n,), generator=generator)
    images[labels == 0, :, 5:7, :] += 1
    images[labels == 1, :, :, 5:7] += 1
    images[labels == 2, :, 3:9, 3:9] += 1
    return images, labels


@pytest.fixture(scope="module")
def classifier() -> ImageClassifier:
    torch.set_num_threads(1)  # images so small leave nothing to a second thread
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ImageClassifier((1, 12, 12), 3)
    losses = train_classifier(model, *bars(300, 1), epochs=20)
    assert losses[-1] < 0.3 * losses[0] and not model.training
    return model


def test_the_classifier_learns_and_says_how_well(classifier: ImageClassifier) -> None:
    images, labels = bars(200, 2)
    result = classifier_accuracy(classifier, images, labels)
    assert result.value > 0.95 and math.isnan(result.floor)
    wrong = classifier_accuracy(classifier, images, (labels + 1) % 3)
    assert wrong.value == pytest.approx(0, abs=0.05)
    half = classifier_accuracy(
        classifier, images, torch.where(torch.arange(200) < 100, labels, (labels + 1) % 3)
    )
    assert half.spread == pytest.approx(math.sqrt(0.25 / 200), rel=0.1)


def test_training_is_fixed_by_the_seed() -> None:
    def trained(seed: int) -> Tensor:
        torch.set_num_threads(1)
        torch.manual_seed(3)
        model = ImageClassifier((1, 12, 12), 3)
        train_classifier(model, *bars(100, 1), epochs=1, seed=seed)
        return model.head.weight

    assert torch.equal(trained(0), trained(0)) and not torch.equal(trained(0), trained(1))


def test_fidelity_tells_real_images_from_others(classifier: ImageClassifier) -> None:
    real = bars(400, 3)[0]
    good = image_fidelity(classifier, bars(200, 4)[0], real)
    for result in good:
        assert result.n == (200, 400)
        assert abs(result.value - result.floor) < max(5 * result.spread, 0.02)
    images, labels = bars(400, 5)
    one_class = image_fidelity(classifier, images[labels == 0], real)
    assert one_class.coverage.value == pytest.approx(1 / 3, abs=0.08)  # of three classes
    assert one_class.frechet.value > 20 * good.frechet.value
    noise = image_fidelity(classifier, 0.5 * torch.randn(200, 1, 12, 12), real)
    assert noise.confidence.value < good.confidence.value - 0.05
    assert noise.entropy.value > good.entropy.value + 0.1
    # the unit of the features has no part in it
    with torch.no_grad():
        classifier.body[-1].weight.mul_(7)
        classifier.body[-1].bias.mul_(7)
        classifier.head.weight.div_(7)
        scaled = image_fidelity(classifier, bars(200, 4)[0], real)
    assert scaled.frechet.value == pytest.approx(good.frechet.value, rel=1e-3)
    assert scaled.entropy.value == pytest.approx(good.entropy.value, rel=1e-2)


@pytest.mark.parametrize(
    ("samples", "error", "named"),
    [
        (np.zeros((9, 1, 12, 12)), TypeError, "samples: got .*float32 tensor"),
        (torch.zeros(9, 12, 12), ValueError, r"samples: .*\(n, 1, 12, 12\)"),
        (torch.zeros(3, 1, 12, 12), ValueError, "samples: .*at least 4"),
        (torch.full((9, 1, 12, 12), math.nan), ValueError, "samples: got nan"),
    ],
)
def test_other_samples_are_refused(samples: Any, error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
        image_fidelity(ImageClassifier((1, 12, 12), 3), samples, torch.zeros(9, 1, 12, 12))


def test_classifiers_that_cannot_be_are_refused() -> None:
    with pytest.raises(ValueError, match="n_classes: got 1"):
        ImageClassifier((1, 12, 12), 1)
    with pytest.raises(ValueError, match=r"shape: got .*at least 4"):
        ImageClassifier((1, 3, 12), 2)
