"""Kernel densities and coverage against scipy, scikit-learn, closed forms and published values."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from points import published_helix
from scipy.spatial.distance import cdist
from scipy.stats import gaussian_kde
from sklearn.neighbors import NearestNeighbors

from diffusion_fast.datasets import load
from diffusion_fast.metrics import (
    MetricResult,
    emd,
    emd_sum,
    energy_distance,
    kde_score,
    kernel_nll,
    mode_coverage,
    precision_recall,
    sliced_wasserstein,
)

RING = 1.2 * np.stack([f(np.arange(7) * 2 * np.pi / 7) for f in (np.cos, np.sin)], axis=1)


def ring(n: int, seed: int, modes: int = 7) -> np.ndarray:
    """Rows at the first of seven Gaussians on a circle, of deviation 0.12."""
    rng = np.random.default_rng(seed)
    return RING[rng.integers(modes, size=n)] + 0.12 * rng.standard_normal((n, 2))


def test_a_result_is_a_number_with_its_noise():
    result = MetricResult(1.5, 1.25, 0.125, (3, 4))
    assert float(result) == 1.5
    assert str(result) == "1.5000 +- 0.1250 (real against real 1.2500)"


@pytest.mark.parametrize("scale", [1e-30, 1e-12, 1e12, 1e29])
def test_emd_in_any_unit(scale):
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((300, 2)), rng.standard_normal((400, 2)) + 0.3
    assert emd(scale * x, scale * y, 150).value == pytest.approx(scale * emd(x, y, 150).value, rel=1e-9)
    assert emd(scale * x, scale * x, 300).value < 1e-8 * scale
    assert emd(np.zeros((3, 2)), np.zeros((3, 2)), 3).value == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_the_largest_numbers_taken_give_finite_results(dtype):
    rng = np.random.default_rng(0)
    signs = [dtype(1e30) * rng.choice([-1, 1], (300, 4)).astype(dtype) for _ in range(2)]
    x, data = (part * rng.uniform(0.5, 1, part.shape).astype(dtype) for part in signs)
    x[0], data[0] = signs[0][0], signs[1][0]
    results = [metric(x, data) for metric in (emd, emd_sum, energy_distance, sliced_wasserstein, kde_score)]
    results += [kernel_nll(x, data, tau) for tau in (1e-30, 1e30)]
    results += [mode_coverage(x, data, data[:5], 1e30), *precision_recall(x, data)]
    assert np.isfinite([(result.value, result.floor) for result in results]).all()


# ---- kernel likelihood ----


def test_kernel_nll_is_its_formula():
    rng = np.random.default_rng(0)
    x, data, tau = rng.standard_normal((40, 2)), rng.standard_normal((70, 2)), 0.3
    kernel = (2 * np.pi * tau) ** -1.0 * np.exp(-cdist(x, data, "sqeuclidean") / (4 * tau))
    result = kernel_nll(x, data, tau)
    assert result.value == pytest.approx(-math.log(kernel.mean()), rel=1e-12)
    rows = kernel.mean(axis=1)
    assert result.spread == pytest.approx(rows.std(ddof=1) / math.sqrt(40) / rows.mean(), rel=1e-9)


def test_kernel_nll_of_two_points_and_far_away():
    one, far = np.zeros((1, 1)), np.full((1, 1), 1000.0)
    normalizer = 0.5 * math.log(2 * math.pi * 0.1)
    assert kernel_nll(one, one).value == pytest.approx(normalizer, rel=1e-12)
    # exp(-2.5e6) is 0 in float64; its logarithm is not.
    assert kernel_nll(far, one).value == pytest.approx(normalizer + 1e6 / 0.4, rel=1e-12)


def test_kernel_nll_does_not_depend_on_the_chunks(monkeypatch):
    train, test = published_helix()
    whole = kernel_nll(train[:300], test[:200]).value
    monkeypatch.setattr("diffusion_fast.metrics.density.CHUNK_ELEMENTS", 700)
    assert kernel_nll(train[:300], test[:200]).value == pytest.approx(whole, rel=1e-14)


def test_kernel_nll_of_the_helix_has_the_published_self_value():
    train, test = published_helix()
    assert kernel_nll(test, test).value == pytest.approx(2.2527, abs=5e-5)
    assert kernel_nll(train[:5000], test).value == pytest.approx(2.2532, abs=5e-5)


@pytest.mark.parametrize(("name", "value"), [("moons", 0.9495), ("circles", 0.9891)])
def test_kernel_nll_has_the_published_self_values(name, value):
    """Of the very rows, as scikit-learn makes them."""
    rows = load(name, seed=42).standardised_train
    assert kernel_nll(rows, rows).value == pytest.approx(value, abs=5e-5)


def test_kernel_nll_has_the_published_self_value_of_published_rows(test_data):
    with np.load(test_data / "system_d" / "blobs.npz") as file:
        rows = file["X"]
    assert kernel_nll(rows, rows).value == pytest.approx(0.0028, abs=5e-5)


# ---- kernel density estimate


@pytest.mark.parametrize(("n", "m", "dim"), [(30, 50, 1), (40, 25, 2), (5, 200, 3), (10, 12, 8)])
def test_kde_score_is_that_of_scipy(n, m, dim):
    rng = np.random.default_rng(n)
    mix = rng.standard_normal((dim, dim)) + 2 * np.eye(dim)
    x, data = rng.standard_normal((n, dim)) @ mix + 100, rng.standard_normal((m, dim)) @ mix + 100
    log_density = gaussian_kde(data.T).logpdf(x.T)
    result = kde_score(x, torch.from_numpy(data))
    assert result.value == pytest.approx(log_density.mean(), abs=1e-10)
    assert result.spread == pytest.approx(log_density.std(ddof=1) / math.sqrt(n), abs=1e-10)
    assert result.n == (n, m)


def test_kde_score_floor_leaves_each_row_out(monkeypatch):
    data = np.random.default_rng(0).standard_normal((60, 2))
    kde = gaussian_kde(data.T)
    kernels = np.exp(-0.5 * cdist(data, data, "mahalanobis", VI=np.linalg.inv(kde.covariance)) ** 2)
    np.fill_diagonal(kernels, 0)
    density = kernels.sum(axis=1) / 59 / (2 * np.pi * math.sqrt(np.linalg.det(kde.covariance)))
    expected = pytest.approx(np.log(density).mean(), abs=1e-10)
    assert kde_score(data, data).floor == expected
    monkeypatch.setattr("diffusion_fast.metrics.density.CHUNK_ELEMENTS", 420)  # blocks of 7 rows
    assert kde_score(data, data).floor == expected


@pytest.mark.parametrize("scale", [1e-15, 1e15])
def test_kde_score_in_any_unit(scale):
    """The product of 30 deviations leaves the range of float64; its logarithm does not."""
    data = np.random.default_rng(0).standard_normal((60, 30))
    shift = 30 * math.log(scale)
    assert kde_score(scale * data, scale * data).value == pytest.approx(kde_score(data, data).value - shift)


def test_kde_score_far_from_all_data():
    data = np.random.default_rng(0).standard_normal((60, 2))
    far = np.array([[1e4, -1e4]])
    result = kde_score(far, data)
    assert result.value == pytest.approx(gaussian_kde(data.T).logpdf(far.T)[0], rel=1e-9)
    assert result.value < -1e6
    assert math.isnan(result.spread)


@pytest.mark.parametrize(
    ("name", "own", "fresh", "spread"),
    [
        ("checkerboard", -4.014, -4.021, 0.006),
        ("gaussian_mixtures", -1.352, -1.361, 0.008),
        ("pinwheel", -0.643, -0.652, 0.003),
        ("spiral", -0.711, -0.725, 0.016),
    ],
)
def test_kde_score_has_the_published_values(test_data, name, own, fresh, spread):
    """The published ones are means over other draws: 4 of their deviations, odds of 6e-5 each."""
    data = np.load(test_data / "system_c" / f"{name}_seed0.npy")
    result = kde_score(data, data)
    assert result.value == pytest.approx(own, abs=4 * spread + 5e-4)
    assert result.floor == pytest.approx(fresh, abs=4 * spread + 5e-4)


# ---- coverage of modes


def test_mode_coverage_counts_shares():
    centers = np.array([[0.0], [10.0]])
    data = np.array([[0.0]] * 6 + [[10.0]] * 2 + [[5.0]] * 2)  # shares 0.6, 0.2 and 0.2 in none
    assert mode_coverage(data, data, centers, 1.0).value == 1
    x = np.array([[0.9]] * 3 + [[9.2]] * 6 + [[11.2]])  # 0.3, 0.6 and 0.1 in none
    assert mode_coverage(x, data, centers, 1.0).value == pytest.approx((0.3 + 0.2) / 0.8, rel=1e-12)
    assert mode_coverage(x[:3], data, centers, 1.0).value == pytest.approx(0.6 / 0.8, rel=1e-12)
    assert mode_coverage(x[9:], data, centers, 1.0).value == 0


def test_mode_coverage_sees_a_missing_mode():
    """The floor and the spread are those of fresh data over 100 draws, within 5 standard errors (10 %)."""
    data = ring(2000, 0)
    fresh = [mode_coverage(ring(500, seed), ring(2000, seed + 1000), RING, 0.36) for seed in range(1, 101)]
    values = np.array([r.value for r in fresh])
    error = values.std(ddof=1) / 10
    assert np.mean([r.floor for r in fresh]) == pytest.approx(values.mean(), abs=5 * error)
    assert 0.5 < np.mean([r.spread for r in fresh]) / values.std(ddof=1) < 2
    missing = mode_coverage(ring(2000, 1, modes=6), data, RING, 0.36)
    assert missing.value == pytest.approx(6 / 7, abs=0.04)
    assert missing.value < missing.floor - 4 * missing.spread


# ---- precision and recall


def neighbour_reference(x: np.ndarray, data: np.ndarray, k: int) -> float:
    """Precision by scikit-learn's neighbours."""
    radii = NearestNeighbors(n_neighbors=k).fit(data).kneighbors()[0][:, -1]
    return float((cdist(x, data) <= radii).any(axis=1).mean())


@pytest.mark.parametrize(
    ("n", "m", "dim", "k"), [(80, 60, 2, 1), (60, 90, 3, 5), (7, 40, 20, 6), (60, 60, 100, 3)]
)
def test_precision_recall_are_those_of_scikit_learn(monkeypatch, n, m, dim, k):
    rng = np.random.default_rng(n)
    x, data = rng.standard_normal((n, dim)) * 1.3, rng.standard_normal((m, dim)) + 0.2
    for elements in (1 << 21, 150):
        monkeypatch.setattr("diffusion_fast.metrics.result.CHUNK_ELEMENTS", elements)
        precision, recall = precision_recall(x, torch.from_numpy(data), k)
        assert precision.value == neighbour_reference(x, data, k)
        assert recall.value == neighbour_reference(data, x, k)
        assert precision.n == recall.n == (n, m)
        assert math.isnan(precision.spread) == (min(n, m) // 2 <= k)


def test_precision_recall_floor_leaves_each_row_out():
    data = np.random.default_rng(0).standard_normal((70, 2))
    left_out = [neighbour_reference(data[i : i + 1], np.delete(data, i, axis=0), 3) for i in range(70)]
    precision, recall = precision_recall(data, data, 3)
    assert precision.floor == recall.floor == pytest.approx(np.mean(left_out), rel=1e-12)
    assert precision.value == recall.value == 1


@pytest.mark.parametrize("elements", [1 << 21, 150])
def test_precision_recall_floor_with_equal_rows_and_equal_distances(monkeypatch, elements):
    monkeypatch.setattr("diffusion_fast.metrics.result.CHUNK_ELEMENTS", elements)
    rng = np.random.default_rng(0)
    x, data = (rng.integers(0, 3, (400, 2)).astype(float) for _ in range(2))
    for result in precision_recall(x, data):
        assert result.value == result.floor == 1
    grid = rng.integers(0, 12, (60, 2)).astype(float)  # ties of distances among different rows
    left_out = [neighbour_reference(grid[i : i + 1], np.delete(grid, i, axis=0), 3) for i in range(60)]
    assert np.mean(left_out) < 1
    assert precision_recall(grid, grid, 3).precision.floor == pytest.approx(np.mean(left_out), rel=1e-12)


@pytest.mark.parametrize("subset", [2000, 40])
def test_precision_recall_floors_are_what_fresh_data_gets(monkeypatch, subset):
    """Means over 20 data sets of deviation 0.03: 5 standard errors of a difference are 0.04.

    A deviation over 20 has a standard error of 16 %, the mean of the spreads one of 10 %.
    """
    monkeypatch.setattr("diffusion_fast.metrics.coverage.SUBSET_ROWS", subset)
    results = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        results.append(precision_recall(rng.standard_normal((150, 2)), rng.standard_normal((400, 2)), 3))
    for fresh in zip(*results, strict=True):
        values = [r.value for r in fresh]
        assert np.mean(values) == pytest.approx(np.mean([r.floor for r in fresh]), abs=0.04)
        assert 0.4 < np.mean([r.spread for r in fresh]) / np.std(values, ddof=1) < 2.5


def test_precision_and_recall_tell_stray_from_missing():
    data = ring(1000, 0)
    missing = precision_recall(ring(1000, 1, modes=4), data)
    assert missing.precision.value > 0.9
    assert missing.recall.value == pytest.approx(4 / 7, abs=0.1)
    stray = precision_recall(np.concatenate([ring(500, 2), ring(500, 3) + [10, 0]]), data)
    assert stray.precision.value == pytest.approx(0.5, abs=0.05)
    assert stray.recall.value > 0.9


@pytest.mark.parametrize("dim", [2, 100])
def test_precision_with_equal_rows(dim):
    """Radii of 0: rows at the very same place are inside, others are not."""
    rows = np.random.default_rng(0).standard_normal((20, dim))
    x = np.concatenate([rows[:10], rows[:10] + 1e-3])
    assert precision_recall(x, np.repeat(rows, 3, axis=0), 2).precision.value == 0.5
    assert precision_recall(np.repeat(rows[:5], 3, axis=0), rows, 2).recall.value == 0.25
