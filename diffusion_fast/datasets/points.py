"""Points on curves and surfaces in two and three dimensions, drawn by their formulas."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from diffusion_fast import _checks
from diffusion_fast.datasets.dataset import Dataset, sizes, split

XY, XYZ = ("x", "y"), ("x", "y", "z")
TWO_CLASSES = ("0", "1")


def sin_5_5_3d(n_train: int = 15_686, n_test: int = 7_781, seed: int = 0) -> Dataset:
    """A wavy surface over the unit disc: z = sin(5 x) cos(5 y) (1 - r) + 0.01 N(0, 1), (x, y) uniform.

    The means are 0, the standard deviations about (0.50, 0.50, 0.20). Scaled to mean 0 and deviation 1.
    """
    n_train, n_test, rng = _start(n_train, n_test, seed)
    n = n_train + n_test
    r, angle = np.sqrt(rng.uniform(size=n)), rng.uniform(0.0, 2 * np.pi, n)
    x, y = r * np.cos(angle), r * np.sin(angle)
    z = np.sin(5 * x) * np.cos(5 * y) * (1 - r) + 0.01 * rng.standard_normal(n)
    return split("3d_sin_5_5", np.stack([x, y, z], axis=1), n_train, XYZ, scaling="standard")


def helix_3d(n_train: int = 10_000, n_test: int = 5_000, seed: int = 0) -> Dataset:
    """A noisy helix of 2.2 turns: z ~ U(-2, -1), (cos 14 z, sin 14 z, z) + 0.03 N(0, I).

    The means are about (-0.06, -0.08, -1.50), the standard deviations (0.69, 0.72, 0.29). Scaled to mean 0
    and deviation 1.
    """
    n_train, n_test, rng = _start(n_train, n_test, seed)
    return split("helix_3d", _helix(rng, n_train + n_test), n_train, XYZ, scaling="standard")


def helix_labelled(n_train: int = 10_000, n_test: int = 5_000, seed: int = 0) -> Dataset:
    """The rows of `helix_3d` in two classes, "1" with probability (1 + sin(4 x y z)) / 2. Scaled to [-1, 1].

    The classes overlap: the best possible classifier is right for 81 % of the rows.
    """
    n_train, n_test, rng = _start(n_train, n_test, seed)
    rows = _helix(rng, n_train + n_test)
    labels = rng.uniform(size=len(rows)) < (1 + np.sin(4 * rows.prod(axis=1))) / 2
    return split("helix_labelled", rows, n_train, XYZ, scaling="min_max", labels=labels, classes=TWO_CLASSES)


def moons(n_train: int = 8_000, n_test: int = 4_000, seed: int = 0) -> Dataset:
    """scikit-learn's two half circles with noise 0.04, two classes. Scaled to [-1, 1].

    The training rows are `make_moons(n_train, noise=0.04, random_state=seed)`; seed 42 and the default size
    give the rows of published results.
    """
    from sklearn.datasets import make_moons

    n_train, rows, labels = _draw(make_moons, n_train, n_test, seed, noise=0.04)
    return split("moons", rows, n_train, XY, scaling="min_max", labels=labels, classes=TWO_CLASSES)


def circles(n_train: int = 8_000, n_test: int = 4_000, seed: int = 0) -> Dataset:
    """scikit-learn's two circles, radii 1 and 0.7, noise 0.04, two classes. Scaled to [-1, 1].

    The training rows are `make_circles(n_train, noise=0.04, factor=0.7, random_state=seed)`; seed 42 and the
    default size give the rows of published results.
    """
    from sklearn.datasets import make_circles

    n_train, rows, labels = _draw(make_circles, n_train, n_test, seed, noise=0.04, factor=0.7)
    return split("circles", rows, n_train, XY, scaling="min_max", labels=labels, classes=TWO_CLASSES)


def swiss_roll(n_train: int = 10_000, n_test: int = 5_000, seed: int = 0) -> Dataset:
    """scikit-learn's rolled-up sheet in 3-D with noise 0.5 (its turns are 2 pi apart). Mean 0, deviation 1.

    The training rows are `make_swiss_roll(n_train, noise=0.5, random_state=seed)`.
    """
    from sklearn.datasets import make_swiss_roll

    n_train, rows, _ = _draw(make_swiss_roll, n_train, n_test, seed, noise=0.5)
    return split("swiss_roll", rows, n_train, XYZ, scaling="standard")


def checkerboard(n_train: int = 1_500, n_test: int = 500, seed: int = 0) -> Dataset:
    """Uniform on eight of the sixteen squares of side 2 of a board over [-4, 4]^2. Not scaled."""
    n_train, n_test, rng = _start(n_train, n_test, seed)
    n = n_train + n_test
    x = rng.uniform(-2.0, 2.0, n)
    y = rng.uniform(size=n) - 2 * rng.integers(0, 2, n) + np.floor(x) % 2
    return split("checkerboard", 2 * np.stack([x, y], axis=1), n_train, XY, scaling="none")


def pinwheel(n_train: int = 1_498, n_test: int = 500, seed: int = 0) -> Dataset:
    """Three bent arms (r sin a, r cos a): arm j has a from 4 j to 4 j + 4 along r from 0 to 1, + 0.2 N(0, 1).

    The radii are evenly spaced, (n_train + n_test) / 3 (rounded up) on each arm; which rows are held out is
    random. Not scaled.
    """
    n_train, n_test, rng = _start(n_train, n_test, seed)
    n = n_train + n_test
    along = np.linspace(0.0, 1.0, -(-n // 3))
    r, angle = np.tile(along, 3), np.concatenate([4 * j + 4 * along for j in range(3)])
    angle = angle + 0.2 * rng.standard_normal(len(angle))
    rows = np.stack([r * np.sin(angle), r * np.cos(angle)], axis=1)
    return split("pinwheel", rng.permutation(rows)[:n], n_train, XY, scaling="none")


def spiral(n_train: int = 1_500, n_test: int = 500, seed: int = 0) -> Dataset:
    """Three turns of r = 0.05 a, a ~ U(0, 6 pi): (r cos a, r sin a) + 0.04 N(0, I). Not scaled."""
    n_train, n_test, rng = _start(n_train, n_test, seed)
    n = n_train + n_test
    angle = rng.uniform(0.0, 6 * np.pi, n)
    curve = 0.05 * angle * np.stack([np.cos(angle), np.sin(angle)])
    return split("spiral", curve.T + 0.04 * rng.standard_normal((n, 2)), n_train, XY, scaling="none")


def _start(n_train: Any, n_test: Any, seed: Any) -> tuple[int, int, np.random.Generator]:
    n_train, n_test = sizes(n_train, n_test)
    return n_train, n_test, np.random.default_rng(_checks.seed("seed", seed))


def _helix(rng: np.random.Generator, n: int) -> np.ndarray:
    z = rng.uniform(-2.0, -1.0, n)
    return np.stack([np.cos(14 * z), np.sin(14 * z), z], axis=1) + 0.03 * rng.standard_normal((n, 3))


def _draw(
    make: Callable[..., tuple[np.ndarray, np.ndarray]], n_train: Any, n_test: Any, seed: Any, **law: float
) -> tuple[int, np.ndarray, np.ndarray]:
    """n_train, and the rows and targets of one of scikit-learn's functions, those to learn from first."""
    n_train, n_test = sizes(n_train, n_test)
    number = _checks.seed("seed", seed)
    # The functions take NumPy's older generator only, whose seeds have 32 bits or are lists.
    state = np.random.RandomState(number if number < 1 << 32 else [number & 0xFFFFFFFF, number >> 32])
    parts = [make(n, random_state=state, **law) for n in (n_train, n_test)]
    rows, targets = (np.concatenate(both) for both in zip(*parts, strict=True))
    return n_train, rows, targets
