"""Standardisation: round trips, kinds and types kept, what is refused."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffusion_fast.standardiser import Standardiser


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
    "take",
    [
        Standardiser.fit,
        Standardiser.min_max,
        Standardiser.identity(2).transform,
        Standardiser.identity(2).inverse,
        lambda rows: Standardiser(rows[0], np.ones(2)),
    ],
)
def test_standardiser_refuses_masked_arrays(take):
    with pytest.raises(TypeError, match=r": got a masked array of shape \(.*\); accepted: .*without a mask"):
        take(np.ma.masked_greater(np.arange(6.0).reshape(3, 2), 4))


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
