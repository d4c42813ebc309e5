"""What every data set is: rows to learn from, rows held out, and what is known about them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from diffusion_fast import _checks
from diffusion_fast.standardiser import Standardiser

MIN_ROWS = 10
SCALINGS = ("standard", "min_max", "none")


@dataclass(frozen=True, eq=False)
class Mixture:
    """A mixture of k Gaussians in the data's own units.

    weights (k,), summing to 1; centers (k, dim); covariances (k, dim, dim). All float64.
    """

    weights: np.ndarray
    centers: np.ndarray
    covariances: np.ndarray

    def draw(self, rng: np.random.Generator, n: int) -> tuple[np.ndarray, np.ndarray]:
        """n independent rows (n, dim), and the component (n,) that each is from.

        Raises NumPy's TypeError or ValueError for an n that is no number of rows, and its LinAlgError (a
        ValueError) for covariances that are not positive definite.
        """
        component = rng.choice(len(self.weights), n, p=self.weights)
        noise = rng.standard_normal((n, self.centers.shape[1]))
        roots = np.linalg.cholesky(self.covariances)
        return self.centers[component] + np.einsum("nij,nj->ni", roots[component], noise), component


@dataclass(frozen=True, eq=False)
class Dataset:
    """Rows to learn from and rows held out, both (n, dim), float32 or float64, in the data's own units.

    `standardiser` is fitted on `train` alone; `columns` names the dim columns. `train_labels` and
    `test_labels`, int64 (n,), count into `classes`, the names of the classes; without labels they are None
    and `classes` is (). `image_shape` is (height, width) where a row is an image, and `mixture` the exact law
    of the rows where it is a mixture of Gaussians.
    """

    name: str
    train: np.ndarray
    test: np.ndarray
    columns: tuple[str, ...]
    standardiser: Standardiser
    train_labels: np.ndarray | None = None
    test_labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    image_shape: tuple[int, int] | None = None
    mixture: Mixture | None = None

    @property
    def dim(self) -> int:
        return self.train.shape[1]

    @property
    def n_classes(self) -> int:
        """The number of classes, 0 without labels."""
        return len(self.classes)

    @property
    def standardised_train(self) -> np.ndarray:
        return self.standardiser.transform(self.train)

    @property
    def standardised_test(self) -> np.ndarray:
        return self.standardiser.transform(self.test)


def fitted(scaling: str, train: np.ndarray) -> Standardiser:
    """The standardiser of one of SCALINGS: mean 0 and deviation 1, columns to [-1, 1], or as they are."""
    if _checks.choice("scaling", scaling, SCALINGS) == "standard":
        return Standardiser.fit(train)
    return Standardiser.min_max(train) if scaling == "min_max" else Standardiser.identity(train.shape[1])


def sizes(n_train: Any, n_test: Any) -> tuple[int, int]:
    return _checks.integer("n_train", n_train, MIN_ROWS), _checks.integer("n_test", n_test, MIN_ROWS)


def split(
    name: str,
    rows: np.ndarray,
    n_train: int,
    columns: tuple[str, ...],
    *,
    scaling: str,
    labels: np.ndarray | None = None,
    classes: tuple[str, ...] = (),
    image_shape: tuple[int, int] | None = None,
    mixture: Mixture | None = None,
) -> Dataset:
    """The first n_train rows to learn from, the others held out; both are views of rows."""
    train = rows[:n_train]
    parts: tuple[np.ndarray | None, np.ndarray | None] = (None, None)
    if labels is not None:
        labels = labels.astype(np.int64)
        parts = (labels[:n_train], labels[n_train:])
    standardiser = fitted(scaling, train)
    return Dataset(name, train, rows[n_train:], columns, standardiser, *parts, classes, image_shape, mixture)
