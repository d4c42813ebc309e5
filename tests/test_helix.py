"""The helix that the demo and the published models learn."""

from __future__ import annotations

import math

import numpy as np
import pytest

from diffusion_fast.datasets import helix_3d


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
