"""sin, cos, log, pow and the other functions of single features: within a few ulp of the exact value.

The activations are in test_activations.py, their slopes in test_energy.py.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from diffusion_fast import _cpu, reference
from diffusion_fast.tile_ops import ACTIVATIONS, FUNCTIONS, SLOPES

ISAS = _cpu.isas()
RNG = np.random.default_rng(0)
EVERY_SCALE = np.float32(RNG.choice([-1, 1], 200_000) * 10.0 ** RNG.uniform(-44, 38, 200_000))
ANGLES = np.float32(
    np.concatenate([RNG.uniform(-10, 10, 100_000), RNG.uniform(-(2**20), 2**20, 100_000), EVERY_SCALE])
)
ANGLES = ANGLES[np.abs(ANGLES) <= 2**20]
NEAR_ONE = np.float32(1 + RNG.uniform(-1e-3, 1e-3, 50_000))
MULTIPLES = np.float32(np.arange(1, 20_000) * (np.pi / 2))  # where a reduced angle is smallest
# Largest error measured, in ulp of the exact value: (inputs, parameter, bound).
CASES = {
    "sin": (np.concatenate([ANGLES, MULTIPLES]), 0.0, 1.6),
    "cos": (np.concatenate([ANGLES, MULTIPLES]), 0.0, 1.6),
    "exp": (np.float32(RNG.uniform(-100, 88, 200_000)), 0.0, 1.5),
    "log": (np.concatenate([np.abs(EVERY_SCALE), NEAR_ONE]), 0.0, 1.9),
    "sqrt": (np.abs(EVERY_SCALE), 0.0, 0.5),
    "abs": (EVERY_SCALE, 0.0, 0.0),
    "reciprocal": (EVERY_SCALE, 0.0, 0.5),
    "pow": (np.float32(10.0 ** RNG.uniform(-10, 10, 50_000)), 1.7, 0.51),
    "exponential": (np.float32(RNG.uniform(-300, 300, 200_000)), 1.7, 1.5),
    "clamp_min": (EVERY_SCALE, 0.3, 0.0),
    "clamp_max": (EVERY_SCALE, 0.3, 0.0),
    "add": (EVERY_SCALE, 0.3, 0.5),
    "mul": (EVERY_SCALE, 0.3, 0.5),
}


def apply(name: str, param: float, x: np.ndarray, isa: str = "") -> np.ndarray:
    return _cpu.activate(FUNCTIONS.index(name), param, x, isa)


def exact(name: str, param: float, x: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore", divide="ignore"):
        return reference.FUNCTIONS[name](torch.from_numpy(x).double(), float(np.float32(param))).numpy()


def test_every_function_is_here() -> None:
    assert {*CASES, *ACTIVATIONS, *SLOPES.values()} == set(FUNCTIONS)


@pytest.mark.parametrize("name", CASES)
def test_close_to_the_exact_value(name: str) -> None:
    x, param, bound = CASES[name]
    want = exact(name, param, x)
    finite = np.abs(want) <= np.finfo(np.float32).max
    got = apply(name, param, x).astype(np.float64)
    assert np.isinf(got[~finite]).all()
    ulp = np.spacing(np.maximum(np.abs(want[finite]).astype(np.float32), np.finfo(np.float32).tiny))
    error = np.abs(got[finite] - want[finite]) / ulp
    assert error.max() <= bound, f"{error.max():.3f} ulp at {x[finite][error.argmax()]!r}"


@pytest.mark.parametrize("name", CASES)
def test_one_set_of_bits(name: str) -> None:
    x, param, _ = CASES[name]
    special = np.float32([0.0, -0.0, np.inf, -np.inf, np.nan, 1e-45, -1e-45, 1.0, -1.0, 3e38, -2.5])
    x = np.concatenate([x[:20_000], special])
    want = apply(name, param, x, ISAS[-1])
    for isa in ISAS[:-1]:
        got = apply(name, param, x, isa)
        same = (got.view(np.uint32) == want.view(np.uint32)) | (np.isnan(got) & np.isnan(want))
        assert same.all(), f"{isa}: {x[~same][:4]}"


@pytest.mark.parametrize("param", [2.0, 3.0, -1.0, -2.0, 0.5, -0.5, 0.0, 1.5, -3.0])
def test_pow_at_the_edges(param: float) -> None:
    x = np.float32([0.0, 1.0, -1.0, 2.0, -2.0, 0.5, -0.5, np.inf, -np.inf, np.nan, 3e38, 1e-45, 1e-30, -1e-3])
    if abs(param) == 0.5:
        x = x[x != -np.inf]  # torch takes a square root there, which has no value
    got, want = apply("pow", param, x), exact("pow", param, x).astype(np.float32)
    np.testing.assert_allclose(got, want, rtol=2e-7)


@pytest.mark.parametrize("base", [2.0, 10.0, 0.3, 1.0000001, 1e-30, 3e38])
def test_powers_of_a_base(base: float) -> None:
    special = np.float32([0.0, -0.0, 1.0, -1.0, 126.0, -126.0, -149.5, 3e38, -3e38, np.inf, -np.inf, np.nan])
    x = np.concatenate(
        [np.float32(RNG.uniform(-1, 1, 100_000) * 160 / max(abs(np.log2(base)), 1e-7)), special]
    )
    with np.errstate(over="ignore"):
        got, want = apply("exponential", base, x), exact("exponential", base, x).astype(np.float32)
    np.testing.assert_allclose(got, want, rtol=1.9e-7, atol=1.5e-45)


def test_special_values() -> None:
    x = np.float32([0.0, -0.0, np.inf, -np.inf, np.nan, -1.0])
    np.testing.assert_array_equal(
        apply("log", 0, x), np.float32([-np.inf, -np.inf, np.inf, np.nan, np.nan, np.nan])
    )
    for name in ("sin", "cos"):
        assert np.isnan(apply(name, 0, np.float32([np.inf, -np.inf, np.nan, 2.0**21]))).all()
    for name in ("clamp_min", "clamp_max", "abs", "sqrt", "reciprocal", "add", "mul"):
        assert np.isnan(apply(name, 0.5, np.float32([np.nan]))).all()
