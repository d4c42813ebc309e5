"""Data sets: by name, by formula, and from files.

| name                 | dim | classes | train / test   | scaled        |
|----------------------|-----|---------|----------------|---------------|
| `3d_sin_5_5`         | 3   |         | 15,686 / 7,781 | mean 0, std 1 |
| `helix_3d`           | 3   |         | 10,000 / 5,000 | mean 0, std 1 |
| `two_gaussians`      | 1   |         | 10,000 / 1,000 | no            |
| `two_gaussians_wide` | 1   |         | 10,000 / 1,000 | no            |
| `three_gaussians`    | 1   |         | 10,000 / 1,000 | no            |
| `checkerboard`       | 2   |         | 1,500 / 500    | no            |
| `gaussian_ring`      | 2   |         | 1,500 / 500    | no            |
| `pinwheel`           | 2   |         | 1,498 / 500    | no            |
| `spiral`             | 2   |         | 1,500 / 500    | no            |
| `moons`              | 2   | 2       | 8,000 / 4,000  | to [-1, 1]    |
| `circles`            | 2   | 2       | 8,000 / 4,000  | to [-1, 1]    |
| `manycircles`        | 2   | 8       | 8,000 / 4,000  | to [-1, 1]    |
| `blobs`              | 2   | 2       | 8,000 / 4,000  | to [-1, 1]    |
| `helix_labelled`     | 3   | 2       | 10,000 / 5,000 | to [-1, 1]    |
| `swiss_roll`         | 3   |         | 10,000 / 5,000 | mean 0, std 1 |
| `digits`             | 64  | 10      | 1,437 / 360    | less 0.5      |

`load(name)` gives one of them, and so does the function of that name (`sin_5_5_3d` for the first). The same
seed gives the same rows. `mnist(folder)` reads the four files of MNIST, `load_file(path)` a file of any data,
`read(path)` one without a split.

Each function of a set takes n_train, n_test and seed: it raises TypeError or ValueError for numbers of rows
that are no integers or too few (below 10), and for a seed outside of [0, 2^64).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from diffusion_fast import _checks
from diffusion_fast.datasets.dataset import MIN_ROWS, SCALINGS, Dataset, Mixture, fitted
from diffusion_fast.datasets.files import Table, load_file, read
from diffusion_fast.datasets.images import digits, mnist
from diffusion_fast.datasets.mixtures import (
    MIXTURES,
    blobs,
    gaussian_ring,
    manycircles,
    three_gaussians,
    two_gaussians,
    two_gaussians_wide,
)
from diffusion_fast.datasets.points import (
    checkerboard,
    circles,
    helix_3d,
    helix_labelled,
    moons,
    pinwheel,
    sin_5_5_3d,
    spiral,
    swiss_roll,
)

_SETS: dict[str, Callable[..., Dataset]] = {
    "3d_sin_5_5": sin_5_5_3d,
    "helix_3d": helix_3d,
    "two_gaussians": two_gaussians,
    "two_gaussians_wide": two_gaussians_wide,
    "three_gaussians": three_gaussians,
    "checkerboard": checkerboard,
    "gaussian_ring": gaussian_ring,
    "pinwheel": pinwheel,
    "spiral": spiral,
    "moons": moons,
    "circles": circles,
    "manycircles": manycircles,
    "blobs": blobs,
    "helix_labelled": helix_labelled,
    "swiss_roll": swiss_roll,
    "digits": digits,
}
NAMES = tuple(_SETS)
__all__ = [
    "MIN_ROWS",
    "MIXTURES",
    "NAMES",
    "SCALINGS",
    "Dataset",
    "Mixture",
    "Table",
    "load",
    "load_file",
    "mnist",
    "read",
    "sin_5_5_3d",
    *NAMES[1:],
]


def load(
    name: str,
    n_train: int | None = None,
    n_test: int | None = None,
    *,
    seed: int = 0,
    scaling: str | None = None,
) -> Dataset:
    """The data set of one of NAMES, by default of the sizes and scaled as the table above says.

    Args:
        n_train, n_test: rows to learn from and rows held out, each at least 10.
        seed: in [0, 2^64); the same seed gives the same rows.
        scaling: "standard" (mean 0 and deviation 1 over the training rows), "min_max" (columns to [-1, 1]) or
            "none". Says what `standardiser` does; `train` and `test` are in the data's own units always.

    Raises ValueError or TypeError for an argument outside of these.

    >>> data = load("moons", 1000, 200)
    >>> data.train.shape, data.classes
    ((1000, 2), ('0', '1'))
    """
    make = _SETS[_checks.choice("name", name, NAMES)]
    if scaling is not None:
        _checks.choice("scaling", scaling, SCALINGS)
    given: dict[str, Any] = {"n_train": n_train, "n_test": n_test}
    data = make(seed=seed, **{size: n for size, n in given.items() if n is not None})
    return data if scaling is None else dataclasses.replace(data, standardiser=fitted(scaling, data.train))
