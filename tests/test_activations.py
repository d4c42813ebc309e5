"""The kernels' activations against the exact functions: how far off they may be, the same bits everywhere.

An ulp is the distance of neighbouring float32 numbers at the exact result. Results below 2^-120 may underflow
to zero early, since exp is cut off at -105; there the absolute error is what counts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import mpmath
import numpy as np
import pytest
import torch
from scipy import special

from diffusion_fast import _cpu, reference
from diffusion_fast.tile_ops import ACTIVATIONS, FUNCTIONS

ISAS = _cpu.isas()
PARAMS = {"leaky_relu": float(np.float32(0.2)), "elu": float(np.float32(0.7))}
TINY = 2.0**-120
TINY_ERROR = 1e-36

# The envelope: name -> (accepted, measured) ulp. Measured at every fifth float32 with 2^-6 <= |x| < 128; the
# test draws fewer inputs, of every size. sigmoid and silu are below 2.0 for |x| <= 10.
ENVELOPE: dict[str, tuple[float, float]] = {
    "identity": (0.0, 0.0),
    "relu": (0.0, 0.0),
    "leaky_relu": (0.5, 0.5),
    "elu": (2.0, 1.7),
    "tanh": (6.0, 5.0),
    "sigmoid": (3.0, 2.5),
    "silu": (3.0, 2.4),
    "gelu": (8.0, 6.8),
    "gelu_tanh": (4.5, 3.8),
    "softplus": (3.5, 2.7),
    "mish": (5.5, 4.7),
}
GELU_CORE = (7.0, 6.3)  # gelu on [-10, 10]; below, its values are smaller than 1e-22


def exact(name: str, x: np.ndarray) -> np.ndarray:
    """The function in float64, written so that nothing cancels."""
    param = PARAMS.get(name, 0.0)
    with np.errstate(all="ignore"):
        e = np.exp(-np.abs(x))
        if name == "identity":
            return x
        if name == "relu":
            return np.maximum(x, 0)
        if name == "leaky_relu":
            return np.where(x > 0, x, param * x)
        if name == "elu":
            return np.where(x > 0, x, param * np.expm1(np.minimum(x, 0)))
        if name == "tanh":
            return np.tanh(x)
        if name == "sigmoid":
            return special.expit(x)
        if name == "silu":
            return x * special.expit(x)
        if name == "gelu":
            return 0.5 * x * special.erfc(-x / np.sqrt(2))
        if name == "gelu_tanh":
            return x * special.expit(np.sqrt(8 / np.pi) * (x + 0.044715 * x**3))
        if name == "softplus":
            return np.maximum(x, 0) + np.log1p(e)
        # mish = x tanh(ln(1 + e^x)) = x n / (n + 2) with n = e^x (e^x + 2)
        up = x * (1 + 2 * e) / (1 + 2 * e + 2 * e * e)
        down = x * e * (e + 2) / (e * (e + 2) + 2)
        return np.where(x > 0, up, down)


MP: dict[str, Callable[[Any], Any]] = {
    "identity": lambda x: x,
    "relu": lambda x: max(x, 0),
    "leaky_relu": lambda x: x if x > 0 else PARAMS["leaky_relu"] * x,
    "elu": lambda x: x if x > 0 else PARAMS["elu"] * mpmath.expm1(x),
    "tanh": mpmath.tanh,
    "sigmoid": lambda x: 1 / (1 + mpmath.exp(-x)),
    "silu": lambda x: x / (1 + mpmath.exp(-x)),
    "gelu": lambda x: x * mpmath.erfc(-x / mpmath.sqrt(2)) / 2,
    "gelu_tanh": lambda x: (
        x / (1 + mpmath.exp(-2 * mpmath.sqrt(2 / mpmath.pi) * (x + mpmath.mpf("0.044715") * x**3)))
    ),
    "softplus": lambda x: mpmath.log1p(mpmath.exp(x)),
    "mish": lambda x: x * mpmath.tanh(mpmath.log1p(mpmath.exp(x))),
}


def inputs() -> np.ndarray:
    rng = np.random.default_rng(0)
    dense = np.linspace(-12, 12, 800_001)
    tails = np.linspace(-110, 110, 300_001)
    patterns = rng.integers(0, 2**32, 500_000, dtype=np.uint32).view(np.float32)
    near_zero = rng.standard_normal(200_000) * 10.0 ** rng.uniform(-8, 0, 200_000)
    x = np.concatenate([dense, tails, near_zero]).astype(np.float32)
    return np.concatenate([x, patterns[np.isfinite(patterns)], edges()])


def edges() -> np.ndarray:
    """Zeros, subnormals, the largest numbers, and both neighbours of every place where a formula changes."""
    limits = np.finfo(np.float32)
    places = [9.02, 12, 14.6, 20, 30, 87.33655, 88.72284, 90, 103.97208, 105, 0.5, 1, np.log(2) / 2]
    around = [np.nextafter(np.float32(p), np.float32(q)) for p in places for q in (-np.inf, p, np.inf)]
    sizes = [0.0, 1e-45, 3e-42, limits.tiny, 1e-30, 1e-10, *around, 1e3, 1e10, 1e20, 1e30, limits.max]
    return np.array([*sizes, *(-np.float32(s) for s in sizes)], np.float32)


X = inputs()


def kernel(name: str, x: np.ndarray, isa: str = "") -> np.ndarray:
    return _cpu.activate(ACTIVATIONS.index(name), PARAMS.get(name, 0.0), x, isa)


def by_torch(name: str, x: np.ndarray, dtype: torch.dtype = torch.float32) -> np.ndarray:
    return reference.FUNCTIONS[name](torch.from_numpy(x).to(dtype), PARAMS.get(name, 0.0)).numpy()


def errors(got: np.ndarray, want: np.ndarray) -> np.ndarray:
    """In ulp of the exact result; a tiny one counts as 0 where its absolute error is small."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        rounded = want.astype(np.float32)
        ulp = np.spacing(np.abs(rounded)).astype(np.float64)
        error = np.abs(got.astype(np.float64) - want) / ulp
    error = np.where(np.isinf(rounded), np.where(got == rounded, 0, np.inf), error)
    tiny = np.abs(want) < TINY
    assert (np.abs(got[tiny] - want[tiny]) < TINY_ERROR).all()
    return np.where(tiny, 0, error)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_the_exact_functions_are_exact(name: str) -> None:
    points = np.concatenate([X[::20_000], edges()]).astype(np.float64)
    points = points[np.abs(points) < 200]
    with mpmath.workdps(60):
        want = np.array([float(MP[name](mpmath.mpf(float(x)))) for x in points])
    got = exact(name, points)
    normal = np.abs(want) > TINY
    assert (np.abs(got - want) <= 1e-13 * np.abs(want))[normal].all()
    assert (np.abs(got - want) < 1e-45)[~normal].all()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_envelope(name: str) -> None:
    error = errors(kernel(name, X), exact(name, X.astype(np.float64)))
    accepted, measured = ENVELOPE[name]
    worst = int(np.argmax(error))
    assert error[worst] <= accepted, f"{error[worst]:.2f} ulp at {X[worst]!r}"
    assert error[worst] >= 0.6 * measured, "the table's measured value is out of date"
    if name == "gelu":
        assert error[np.abs(X) <= 10].max() <= GELU_CORE[0]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_no_worse_than_twice_torch(name: str) -> None:
    """Root mean square and 99.9th percentile on the inputs that networks have, each beside torch's own."""
    x = X[np.abs(X) <= 12]
    want = exact(name, x.astype(np.float64))
    ours, theirs = (np.abs(y.astype(np.float64) - want) for y in (kernel(name, x), by_torch(name, x)))
    for measure in (lambda e: np.sqrt(np.mean(e**2)), lambda e: np.quantile(e, 0.999)):
        ulp = np.spacing(np.float32(np.sqrt(np.mean(want**2))))
        assert measure(ours) <= 2 * measure(theirs) + 4 * ulp


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_same_bits_on_every_instruction_set(name: str) -> None:
    x = np.concatenate([X[::7], [np.nan, np.inf, -np.inf]]).astype(np.float32)
    first = kernel(name, x, ISAS[0])
    for isa in ISAS[1:]:
        other = kernel(name, x, isa)
        same = (first.view(np.uint32) == other.view(np.uint32)) | (np.isnan(first) & np.isnan(other))
        assert same.all(), f"{isa} at {x[~same][0]!r}"


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_special_values_as_in_torch(name: str, isa: str) -> None:
    """NaN, infinities and zeros where torch has them, wherever a value sits in the vector.

    torch in float64: its float32 gelu gives infinity for 3.4e38 and NaN for infinity, but only in vectors.
    """
    special_values = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 3.4e38, -3.4e38], np.float32)
    for shift in range(17):
        x = np.ones(40, np.float32)
        x[shift : shift + len(special_values)] = special_values
        got, want = kernel(name, x, isa), by_torch(name, x, torch.float64)
        assert np.array_equal(np.isnan(got), np.isnan(want))
        assert np.array_equal(np.isinf(got), np.isinf(want))
        assert np.array_equal(got == 0, want == 0)
        finite = np.isfinite(want)
        assert np.allclose(got[finite], want[finite], rtol=1e-6, atol=0)


@pytest.mark.parametrize("isa", ISAS)
def test_the_parameter_is_used(isa: str) -> None:
    x = np.array([-2.0, -0.5, 3.0], np.float32)
    for param in (0.0, 0.01, -0.3, 1.0, 7.5):
        leaky = _cpu.activate(ACTIVATIONS.index("leaky_relu"), param, x, isa)
        assert np.array_equal(leaky, np.where(x > 0, x, x * np.float32(param)))
        elu = _cpu.activate(ACTIVATIONS.index("elu"), param, x, isa)
        assert np.allclose(elu, np.where(x > 0, x, param * np.expm1(x)), rtol=3e-7, atol=0)


def test_bounded_functions_stay_in_bounds() -> None:
    assert np.abs(kernel("tanh", X)).max() == 1
    sigmoid = kernel("sigmoid", X)
    assert sigmoid.min() == 0
    assert sigmoid.max() == 1
    assert kernel("softplus", X).min() == 0
    assert kernel("gelu", X).min() > -0.17001
    assert kernel("elu", X).min() == -np.float32(PARAMS["elu"])


def test_unknown_code() -> None:
    with pytest.raises(ValueError, match="code"):
        _cpu.activate(len(FUNCTIONS), 0.0, np.zeros(1, np.float32))
