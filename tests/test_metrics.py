"""Metrics against scipy, closed forms and published values; data sets and standardisation."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import ot
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from scipy.stats import wasserstein_distance

from diffusion_fast.datasets import helix_3d, load_array
from diffusion_fast.metrics import emd, kernel_nll, sliced_wasserstein
from diffusion_fast.standardiser import Standardiser

DATA = Path(__file__).parent / "data"


@pytest.fixture(scope="module")
def helix() -> tuple[np.ndarray, np.ndarray]:
    """The published train and test sets, standardised by the train set."""
    with np.load(DATA / "helix_3d.npz") as file:
        train, test = file["train"], file["test"]
    standardiser = Standardiser.fit(train)
    return standardiser.transform(train), standardiser.transform(test)


# ---- earth mover's distance ----


def test_emd_is_the_optimal_assignment():
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((300, 3)), rng.standard_normal((300, 3)) + 0.5
    cost = cdist(x, y)
    rows, columns = linear_sum_assignment(cost)
    result = emd(x, y, 300)
    assert result.value == pytest.approx(cost[rows, columns].mean(), rel=1e-12)
    assert result.n == (300, 300)
    assert math.isnan(result.spread)  # there is one subsample only
    assert math.isnan(result.floor)  # 300 rows of y have no two disjoint sets of 300
    assert emd(x[::-1], torch.from_numpy(y), 300).value == pytest.approx(result.value, rel=1e-12)


def test_emd_of_a_shift_is_its_length():
    x = np.random.default_rng(0).standard_normal((100, 2))
    assert emd(x, x + [3.0, 4.0], 100).value == pytest.approx(5.0, rel=1e-12)
    assert emd(x, x, 100).value == pytest.approx(0.0, abs=1e-12)


def test_emd_floor_is_what_fresh_data_gets():
    """Fresh normal data has to lie at the floor and a shift of 1 far above it.

    Value and floor are means over 4 subsamples of spread about 0.02, so 0.1 is more than 5 standard
    deviations of their difference: odds of a false alarm below 1e-6 (and the seed is fixed).
    """
    rng = np.random.default_rng(1)
    y = rng.standard_normal((4000, 2))
    fresh = emd(rng.standard_normal((3000, 2)), y, 500)
    assert abs(fresh.value - fresh.floor) < 0.1
    assert 0 < fresh.spread < 0.1
    moved = emd(rng.standard_normal((3000, 2)) + [1.0, 0.0], y, 500)
    assert moved.value > moved.floor + 0.5


def test_emd_on_the_helix_has_the_known_floor(helix):
    """Real against real at 2000 rows is 0.114 +- 0.012 in the published analysis: 0.06 is 5 of them."""
    train, test = helix
    result = emd(train, test)
    assert result.n == (2000, 2000)
    assert result.value == pytest.approx(0.114, abs=0.06)
    assert result.floor == pytest.approx(0.114, abs=0.06)


def test_emd_is_seeded(helix):
    train, test = helix
    first, again, other = (emd(train, test, 200, seed=seed, repeats=2).value for seed in (3, 3, 4))
    assert first == again != other


# ---- sliced Wasserstein ----


@pytest.mark.parametrize(("n", "m"), [(50, 50), (50, 20), (21, 64), (1, 9)])
def test_sliced_wasserstein_in_one_dimension_is_w1(n, m):
    rng = np.random.default_rng(n)
    x, y = rng.standard_normal((n, 1)), rng.standard_normal((m, 1)) + 0.3
    expected = wasserstein_distance(x[:, 0], y[:, 0])
    assert sliced_wasserstein(x, y, n_projections=3).value == pytest.approx(expected, rel=1e-5)


def test_sliced_wasserstein_agrees_with_pot():
    """Both average over 2000 random directions of their own, which costs about 1 % of agreement each."""
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((200, 3)), rng.standard_normal((150, 3)) * [1, 2, 3]
    expected = ot.sliced_wasserstein_distance(x, y, n_projections=2000, p=1, seed=1)
    assert sliced_wasserstein(x, y, n_projections=2000, repeats=1).value == pytest.approx(expected, rel=0.05)


def test_sliced_wasserstein_of_a_shift_has_a_closed_form():
    """W1 of a shift v in direction d is |v . d|; its mean over the sphere in 3-D is |v| / 2."""
    x = np.random.default_rng(0).standard_normal((500, 3))
    moved = x + [0, 0, 4.0]
    result = sliced_wasserstein(moved, x, n_projections=1000, repeats=1)
    assert result.value == pytest.approx(2.0, rel=0.1)  # sd of the mean of |cos| over 1000: 1.8 %
    # Float32 has steps of 8 at 1e8, but an offset of all data must not cost digits.
    far = sliced_wasserstein(moved + 1e8, x + 1e8, n_projections=1000, repeats=1)
    assert far.value == pytest.approx(result.value, rel=1e-5)


def test_sliced_wasserstein_floor_is_what_fresh_data_gets():
    """Over 30 data sets the means of value and floor agree within 20 % (standard errors 4 % and 3 %)."""
    results = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        x, y = rng.standard_normal((3000, 2)), rng.standard_normal((600, 2))
        results.append(sliced_wasserstein(x, y, n_projections=16, repeats=2))
    value = np.mean([r.value for r in results])
    assert np.mean([r.floor for r in results]) == pytest.approx(value, rel=0.2)
    deviation = np.std([r.value for r in results], ddof=1)
    assert 0.5 < np.mean([r.spread for r in results]) / deviation < 2


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


def test_kernel_nll_does_not_depend_on_the_chunks(monkeypatch, helix):
    whole = kernel_nll(helix[0][:300], helix[1][:200]).value
    monkeypatch.setattr("diffusion_fast.metrics.CHUNK_ELEMENTS", 700)
    assert kernel_nll(helix[0][:300], helix[1][:200]).value == pytest.approx(whole, rel=1e-14)


def test_kernel_nll_of_the_helix_has_the_published_self_value(helix):
    train, test = helix
    assert kernel_nll(test, test).value == pytest.approx(2.2527, abs=5e-5)
    assert kernel_nll(train[:5000], test).value == pytest.approx(2.2532, abs=5e-5)


# ---- bad input ----


@pytest.mark.parametrize("metric", [emd, sliced_wasserstein, kernel_nll])
@pytest.mark.parametrize(
    ("x", "error", "part"),
    [
        (np.zeros(5), ValueError, "(n, dim)"),
        (np.zeros((0, 2)), ValueError, "n >= 1"),
        (np.zeros((5, 3)), ValueError, "rows of 2 numbers"),
        (np.array([[0.0, np.nan]]), ValueError, "finite"),
        (np.array([["a", "b"]]), TypeError, "numbers"),
        ([[1.0, 2.0]], TypeError, "array or tensor"),
    ],
)
def test_bad_samples_are_named(metric, x, error, part):
    with pytest.raises(error) as caught:
        metric(x, np.zeros((6, 2)))
    assert str(caught.value).startswith("x: got")
    assert part in str(caught.value)


def test_bad_options_are_named():
    x = np.zeros((6, 2))
    with pytest.raises(ValueError, match=r"^n: got 7 .*1 to 6"):
        emd(x, x, 7)
    with pytest.raises(ValueError, match=r"^repeats: got 0"):
        emd(x, x, repeats=0)
    with pytest.raises(ValueError, match=r"^tau: got 0"):
        kernel_nll(x, x, 0)
    with pytest.raises(ValueError, match=r"^n_projections: got 0"):
        sliced_wasserstein(x, x, n_projections=0)


# ---- data and standardisation ----


def test_helix_follows_its_formula():
    """Bounds of 5 standard errors on 15,000 rows: odds of a false alarm about 1e-6 each, and seeded."""
    data = helix_3d(seed=5)
    rows = np.concatenate([data.train, data.test])
    assert data.train.shape == (10_000, 3)
    assert data.test.shape == (5_000, 3)
    x, y, z = rows.T
    assert np.hypot(x, y).mean() == pytest.approx(1 + 0.03**2 / 2, abs=5 * 0.03 / math.sqrt(15_000))
    assert np.hypot(x, y).std() == pytest.approx(0.03, rel=5 / math.sqrt(2 * 15_000))
    assert z.mean() == pytest.approx(-1.5, abs=5 * math.sqrt(1 / 12 / 15_000))
    assert z.var() == pytest.approx(1 / 12 + 0.03**2, rel=0.05)
    angle = np.angle((x + 1j * y) * np.exp(-14j * z))
    sd = math.hypot(0.03, 14 * 0.03)  # noise across the tube and noise of z, which turns by 14 rad per unit
    assert angle.std() == pytest.approx(sd, rel=0.05)
    assert abs(angle.mean()) < 5 * sd / math.sqrt(15_000)
    again, other = helix_3d(seed=5), helix_3d(seed=6)
    np.testing.assert_array_equal(again.train, data.train)
    assert not np.array_equal(other.train, data.train)
    np.testing.assert_allclose(data.standardised_train.std(axis=0), 1, rtol=1e-12)


def test_load_array_splits_all_rows_by_seed(tmp_path):
    rows = np.arange(100, dtype=np.int64)
    np.save(tmp_path / "rows.npy", rows)
    data = load_array(tmp_path / "rows.npy", test_fraction=0.25, seed=1)
    assert data.name == "rows"
    assert data.train.shape == (75, 1)
    assert data.test.shape == (25, 1)
    assert sorted(np.concatenate([data.train, data.test])[:, 0]) == list(range(100))
    assert not np.array_equal(data.test, load_array(tmp_path / "rows.npy", test_fraction=0.25, seed=2).test)


@pytest.mark.parametrize(
    ("content", "part"),
    [
        (np.zeros((20, 2, 2)), "(n, dim)"),
        (np.zeros((9, 2)), "at least 10 rows"),
        (np.zeros((20, 0)), "(n, dim)"),
        (np.array(["a"] * 20), "numbers"),
        (np.zeros(20, dtype=np.complex64), "numbers"),
        (np.array([0.0] * 19 + [np.inf]), "row 19"),
        (np.array([{}] * 20, dtype=object), "cannot be read"),
    ],
)
def test_load_array_refuses(tmp_path, content, part):
    np.save(tmp_path / "bad.npy", content)
    with pytest.raises(ValueError, match=r"^path: got '.*bad\.npy'") as caught:
        load_array(tmp_path / "bad.npy")
    assert part in str(caught.value)


def test_load_array_refuses_other_files(tmp_path):
    (tmp_path / "cut.npy").write_bytes(b"\x93NUMPY\x01\x00")
    (tmp_path / "empty.npy").write_bytes(b"")
    np.savez(tmp_path / "archive.npz", a=np.zeros((20, 2)))
    for name in ("cut.npy", "empty.npy", "archive.npz"):
        with pytest.raises(ValueError, match=r"^path: got"):
            load_array(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        load_array(tmp_path / "none.npy")


def test_standardiser_round_trip_keeps_kind_and_type():
    data = np.random.default_rng(0).standard_normal((50, 3)) * [1, 10, 0.1] + [5, 0, 1e6]
    standardiser = Standardiser.fit(data)
    z = standardiser.transform(data)
    np.testing.assert_allclose(z.mean(axis=0), 0, atol=1e-8)
    np.testing.assert_allclose(z.std(axis=0), 1, rtol=1e-8)
    np.testing.assert_allclose(standardiser.inverse(z), data, rtol=1e-12)
    tensor = standardiser.inverse(torch.from_numpy(z).float())
    assert isinstance(tensor, torch.Tensor)
    assert tensor.dtype == torch.float32


def test_standardiser_only_shifts_a_constant_column():
    data = np.array([[1.0, 0.1], [2.0, 0.1], [4.0, 0.1]])
    assert Standardiser.fit(data).std[1] == 1
    assert Standardiser.fit(data).transform(data)[:, 1] == pytest.approx([0, 0, 0], abs=1e-15)


@pytest.mark.parametrize(
    ("make", "part"),
    [
        (lambda: Standardiser([0.0], [0.0]), "std: got"),
        (lambda: Standardiser([0.0, 1.0], [1.0]), "std: got"),
        (lambda: Standardiser([np.nan], [1.0]), "mean: got"),
        (lambda: Standardiser([[0.0]], [[1.0]]), "mean: got"),
        (lambda: Standardiser.fit(np.zeros((0, 2))), "data: got"),
        (lambda: Standardiser.fit(np.array([[np.inf]])), "data: got"),
        (lambda: Standardiser([0.0], [1.0]).transform(np.zeros((3, 2))), "x: got"),
    ],
)
def test_standardiser_refuses(make, part):
    with pytest.raises(ValueError, match=part):
        make()
