"""Data sets of points: the helix by its formula, and any array from a file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffusion_fast import _checks
from diffusion_fast.standardiser import Standardiser

MIN_ROWS = 10


@dataclass(frozen=True, eq=False)
class Dataset:
    """Rows to learn from and rows held out, both float64 (n, dim) in the data's own units.

    `standardiser` is fitted on `train` alone; `columns` names the dim columns.
    """

    name: str
    train: np.ndarray
    test: np.ndarray
    columns: tuple[str, ...]
    standardiser: Standardiser

    @property
    def dim(self) -> int:
        return self.train.shape[1]

    @property
    def standardised_train(self) -> np.ndarray:
        return self.standardiser.transform(self.train)

    @property
    def standardised_test(self) -> np.ndarray:
        return self.standardiser.transform(self.test)


def helix_3d(n_train: int = 10_000, n_test: int = 5_000, seed: int = 0) -> Dataset:
    """A noisy helix of 2.2 turns: z ~ U(-2, -1), (cos 14 z, sin 14 z, z) + 0.03 N(0, I).

    The means are about (-0.06, -0.08, -1.50), the standard deviations (0.69, 0.72, 0.29).
    """
    n_train = _checks.integer("n_train", n_train, MIN_ROWS)
    n_test = _checks.integer("n_test", n_test, MIN_ROWS)
    rng = np.random.default_rng(_checks.seed("seed", seed))
    z = rng.uniform(-2.0, -1.0, n_train + n_test)
    rows = np.stack([np.cos(14 * z), np.sin(14 * z), z], axis=1) + 0.03 * rng.standard_normal((len(z), 3))
    return _split("helix_3d", rows, n_train, ("x", "y", "z"))


def load_array(path: str | os.PathLike[str], *, test_fraction: float = 0.2, seed: int = 0) -> Dataset:
    """The rows of a .npy file, (n, dim) or (n,), shuffled by seed and split into train and test.

    Raises FileNotFoundError, and ValueError for a file that is no array of finite real numbers with at
    least 10 rows (pickled objects are never loaded).
    """
    fraction = _checks.real("test_fraction", test_fraction, 0.0, 0.9, open_low=True)
    file = Path(path)
    accepted = "a .npy file with an (n, dim) array of numbers"
    try:
        raw = np.load(file, allow_pickle=False)
    except (ValueError, EOFError) as error:
        message = f"path: got {str(file)!r}, which cannot be read ({error}); accepted: {accepted}"
        raise ValueError(message) from error
    if not isinstance(raw, np.ndarray):
        raise ValueError(f"path: got {str(file)!r}, an archive of arrays; accepted: {accepted}")
    if raw.dtype.kind not in "fiub":
        raise ValueError(f"path: got {str(file)!r} with {_checks.describe(raw)}; accepted: {accepted}")
    rows = raw.astype(np.float64)
    if rows.ndim == 1:
        rows = rows[:, None]
    if rows.ndim != 2 or rows.shape[1] == 0 or len(rows) < MIN_ROWS:
        raise ValueError(
            f"path: got {str(file)!r} with {_checks.describe(raw)}; accepted: {accepted}, with at least "
            f"{MIN_ROWS} rows"
        )
    bad = ~np.isfinite(rows).all(axis=1)
    if bad.any():
        first = int(bad.argmax())
        raise ValueError(
            f"path: got {str(file)!r} with NaN or infinity in {int(bad.sum())} rows, the first of them row "
            f"{first}; accepted: finite numbers"
        )
    order = np.random.default_rng(_checks.seed("seed", seed)).permutation(len(rows))
    n_test = min(max(1, round(fraction * len(rows))), len(rows) - 1)
    columns = tuple(f"column {i}" for i in range(rows.shape[1]))
    return _split(file.stem, rows[order], len(rows) - n_test, columns)


def _split(name: str, rows: np.ndarray, n_train: int, columns: tuple[str, ...]) -> Dataset:
    train, test = rows[:n_train].copy(), rows[n_train:].copy()
    return Dataset(name, train, test, columns, Standardiser.fit(train))
