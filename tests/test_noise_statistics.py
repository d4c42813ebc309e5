"""The noise stream as random numbers: 3 10^8 values put to statistical tests.

Every comparison fails by chance with odds of 1e-6 (ODDS); there are about 700 of them, so a sound stream
fails one with odds of 1 in 1400. As seeds are fixed, the result is the same in every run.
"""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
from scipy import special, stats

from diffusion_fast import noise

pytestmark = pytest.mark.slow

ODDS = 1e-6
Z_LIMIT = float(stats.norm.isf(ODDS / 2))  # 4.89
CHUNK = 4_000_000
PAIRS = 1_000_000

# (dim, seed, step, purpose, start) of the chunks
CHUNKS = [
    (dim, 1000 * i + k, 7 * k + i, list(noise.PURPOSES)[(i + k) % 3], (0, 2**32 - 99, 2**47)[k % 3])
    for i, dim in enumerate((1, 2, 3, 4, 5, 8, 64, 1000))
    for k in range(4)
]


def draw(count: int, dim: int, **at: Any) -> np.ndarray:
    """At least count normals, (n, dim)."""
    return noise.normal(-(-count // dim), dim, **{"step": 0, "seed": 0, **at}).numpy()


def check_z(name: str, z: float) -> None:
    assert abs(z) < Z_LIMIT, f"{name}: {z:.2f} standard deviations; chance alone stays below {Z_LIMIT:.2f}"


def check_p(name: str, p: float) -> None:
    assert p > ODDS, f"{name}: p = {p:.2g}; chance alone stays above {ODDS:g}"


@dataclass
class Totals:
    n: int
    moments: np.ndarray  # sums of z, z^2 .. z^6
    above: dict[float, int]
    below: dict[float, int]
    largest: float
    bins: np.ndarray  # 2^14 of equal probability
    worst_ks: float  # smallest p of the chunks


@pytest.fixture(scope="module")
def totals() -> Totals:
    t = Totals(0, np.zeros(6), {}, {}, 0.0, np.zeros(1 << 14, np.int64), 1.0)
    for dim, seed, step, purpose, start in CHUNKS:
        z = draw(CHUNK, dim, seed=seed, step=step, purpose=purpose, start=start).ravel().astype(np.float64)
        t.n += len(z)
        power = np.ones_like(z)
        for k in range(6):
            power *= z
            t.moments[k] += power.sum()
        for level in (2.0, 3.0, 4.0, 5.0, 6.0):
            t.above[level] = t.above.get(level, 0) + int((z > level).sum())
            t.below[level] = t.below.get(level, 0) + int((z < -level).sum())
        t.largest = max(t.largest, float(np.abs(z).max()))
        z.sort()
        cdf = special.ndtr(z)
        t.bins += np.bincount((cdf * len(t.bins)).astype(np.int64), minlength=len(t.bins))
        grid = np.arange(len(z) + 1) / len(z)
        distance = max(np.abs(cdf - grid[1:]).max(), np.abs(cdf - grid[:-1]).max())
        t.worst_ks = min(t.worst_ks, float(special.kolmogorov(distance * math.sqrt(len(z)))))
    return t


def test_moments(totals: Totals) -> None:
    assert totals.n >= 10**8
    expected = [0, 1, 0, 3, 0, 15]
    squares = [1, 3, 15, 105, 945, 10395]  # E z^(2k)
    for k in range(6):
        spread = math.sqrt((squares[k] - expected[k] ** 2) / totals.n)
        check_z(f"moment {k + 1}", (totals.moments[k] / totals.n - expected[k]) / spread)


def test_kolmogorov_smirnov(totals: Totals) -> None:
    check_p("Kolmogorov-Smirnov, the worst chunk", totals.worst_ks)


def test_equal_bins(totals: Totals) -> None:
    expected = totals.n / len(totals.bins)
    chi2 = ((totals.bins - expected) ** 2 / expected).sum()
    check_p(
        "chi-square",
        2 * min(stats.chi2.sf(chi2, len(totals.bins) - 1), stats.chi2.cdf(chi2, len(totals.bins) - 1)),
    )


def test_tails(totals: Totals) -> None:
    for side, counts in (("above", totals.above), ("below -", totals.below)):
        for level, count in counts.items():
            mean = totals.n * stats.norm.sf(level)
            # n is large and the tail thin: the count is Poisson to 2 %, and binomial exactly
            tails = (
                stats.binom.cdf(count, totals.n, mean / totals.n),
                stats.binom.sf(count - 1, totals.n, mean / totals.n),
            )
            check_p(f"{count} values {side} {level:g}, {mean:.1f} expected", 2 * min(tails))
    assert (
        5.4 < totals.largest < 6.77
    )  # the largest that u = 2^-33 can give; 10^8 values reach 5.4 for certain


def check_independent(name: str, a: np.ndarray, b: np.ndarray) -> None:
    """Correlation of a and b, of their squares (volatility), and of each with the other's square."""
    a, b = (np.asarray(v, np.float64).ravel() for v in (a, b))
    n = len(a)
    a2, b2 = a * a - 1, b * b - 1
    check_z(f"{name}: a b", float(a @ b) / math.sqrt(n))
    check_z(f"{name}: a^2 b^2", float(a2 @ b2) / math.sqrt(4 * n))
    check_z(f"{name}: a b^2", float(a @ b2) / math.sqrt(2 * n))
    check_z(f"{name}: a^2 b", float(a2 @ b) / math.sqrt(2 * n))


@pytest.mark.parametrize("dim", [1, 2, 3, 8])
def test_seeds(dim: int) -> None:
    seeds = [0, 1, 2, 3, 4, 5]
    others = [(0, 2**32), (1, 2**32 + 1), (0, 2**63), (1, 2**64 - 1), (2**32, 2**33), (42, 42 << 32)]
    for s, t in itertools.chain(itertools.pairwise(seeds), others):
        check_independent(f"seeds {s} and {t}", draw(PAIRS, dim, seed=s), draw(PAIRS, dim, seed=t))


@pytest.mark.parametrize("dim", [1, 2, 3, 8])
def test_steps(dim: int) -> None:
    for i, j in [(0, 1), (0, 2), (1, 2), (0, 3), (0, 4), (3, 4), (1, 5), (7, 8), (0, 1000), (1, 1 << 27)]:
        check_independent(f"steps {i} and {j}", draw(PAIRS, dim, step=i), draw(PAIRS, dim, step=j))


@pytest.mark.parametrize("dim", [1, 2, 3, 8])
def test_samples(dim: int) -> None:
    z = draw(PAIRS + 64 * dim, dim, seed=11)
    for lag in (1, 2, 3, 4, 8, 16, 64):
        check_independent(f"samples {lag} apart", z[:-lag], z[lag:])
    for far in (2**16, 2**32, 2**32 + 1, 2**47):
        check_independent(f"samples {far} apart", z, draw(z.size, dim, seed=11, start=far))


def test_elements() -> None:
    z = draw(4 * PAIRS, 64, seed=5)
    for lag in (1, 2, 3, 4, 5, 8, 16, 32, 63):
        check_independent(f"elements {lag} apart", z[:, :-lag], z[:, lag:])
    for i, j in [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3), (3, 4), (0, 63)]:
        check_independent(f"elements {i} and {j}", z[:, i], z[:, j])


def test_purposes_and_substreams() -> None:
    for dim in (1, 2, 3):
        parts = {p: draw(PAIRS, dim, seed=2, purpose=p) for p in noise.PURPOSES}
        for (p, a), (q, b) in itertools.combinations(parts.items(), 2):
            check_independent(f"purposes {p} and {q}", a, b)
        streams = {s: draw(PAIRS, dim, seed=2, substream=s) for s in (0, 1, 2, 65535)}
        for (s, a), (t, b) in itertools.combinations(streams.items(), 2):
            check_independent(f"substreams {s} and {t}", a, b)


@pytest.mark.parametrize(("first", "second"), [(0, 1), (2, 3), (0, 2), (1, 3)])
def test_the_plane_is_filled_evenly(first: int, second: int) -> None:
    """Pairs of one Philox call, in 128 x 128 cells of equal probability."""
    z = draw(4 * PAIRS * 4, 4, seed=3)
    cells = [(special.ndtr(z[:, i].astype(np.float64)) * 128).astype(np.int64) for i in (first, second)]
    counts = np.bincount(cells[0] * 128 + cells[1], minlength=128 * 128)
    expected = len(z) / 128**2
    chi2 = ((counts - expected) ** 2 / expected).sum()
    check_p("chi-square", 2 * min(stats.chi2.sf(chi2, 128**2 - 1), stats.chi2.cdf(chi2, 128**2 - 1)))


def test_sums_over_a_chain() -> None:
    """What a chain adds up: sums over 1000 steps of one sample are normal with variance 1000."""
    for dim in (1, 2, 3):
        total = sum(noise.normal(20_000, dim, seed=8, step=i).numpy().astype(np.float64) for i in range(1000))
        sums = np.asarray(total).ravel() / math.sqrt(1000)
        check_p(f"dim {dim}", stats.kstest(sums, "norm").pvalue)
