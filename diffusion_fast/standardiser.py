"""Column-wise standardisation: (x - mean) / std, and back."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from diffusion_fast import _checks

Array = TypeVar("Array", np.ndarray, Tensor)

LARGEST = 1e30  # beyond it a value may leave the range of float32 on the way, or its square that of float64
BLOCK_ELEMENTS = 1 << 21  # 16 MB of float64 at a time: rows may lie in a file larger than the memory


class Standardiser:
    """Shift and scale of each column, kept as float64 tensors `mean` and `std` of shape (dim,).

    >>> scale = Standardiser.fit(np.array([[1.0, 10.0], [3.0, 30.0]]))
    >>> scale.transform(np.array([[2.0, 40.0]]))
    array([[0., 2.]])

    Denoisers start from N(0, 1) noise, so they want data of mean 0 and standard deviation 1. Keep the
    standardiser with the checkpoint: samples are brought back to the data's own units by `inverse`.
    Raises TypeError for a mean or std that is no list of numbers, ValueError for one that is empty, of
    another length, not finite, or a std that is not above 0.
    """

    def __init__(self, mean: Any, std: Any) -> None:
        """mean and std: (dim,) finite numbers, std > 0; else ValueError."""
        self.mean = _column("mean", mean)
        self.std = _column("std", std)
        if self.mean.shape != self.std.shape:
            raise _checks.bad_value("std", std, f"as many numbers as mean, {len(self.mean)}")
        if bool((self.std <= 0).any()):
            raise _checks.bad_value("std", std, "numbers above 0")

    @classmethod
    def fit(cls, data: np.ndarray | Tensor) -> Standardiser:
        """Mean and population standard deviation of the rows of data, (n, dim), n >= 1.

        A constant column keeps std = 1, so that it is only shifted. Raises TypeError or ValueError for
        what is no (n, dim) array of finite numbers.
        """
        n, mean, var = 0, torch.zeros(1, dtype=torch.float64), torch.zeros(1, dtype=torch.float64)
        for block in _blocks(data):
            # Chan, Golub and LeVeque 1979: moments of two sets of rows joined.
            old, new = n / (n + len(block)), len(block) / (n + len(block))
            step = block.mean(0).cpu() - mean
            var = old * var + new * block.var(0, correction=0).cpu() + old * new * step * step
            mean = mean + new * step
            n += len(block)
        std = var.sqrt()
        # Rounding leaves a constant column with a std of about eps |mean|, not exactly 0.
        constant = std <= 1e-14 * mean.abs()
        return cls(mean, torch.where(constant, torch.ones_like(std), std))

    @classmethod
    def min_max(cls, data: np.ndarray | Tensor) -> Standardiser:
        """Each column of data, (n, dim), n >= 1, to [-1, 1]: `mean` is its middle, `std` half its range.

        A constant column keeps std = 1, so that it is only shifted, to 0. Raises ValueError as `fit` does.
        """
        low, high = torch.tensor([torch.inf]), torch.tensor([-torch.inf])
        for block in _blocks(data):
            low, high = torch.minimum(low, block.amin(0).cpu()), torch.maximum(high, block.amax(0).cpu())
        half = high / 2 - low / 2  # high - low could overflow
        return cls(low + half, torch.where(half == 0, torch.ones_like(half), half))

    @classmethod
    def identity(cls, dim: int) -> Standardiser:
        """Leaves dim >= 1 columns as they are. Raises TypeError or ValueError for another dim."""
        dim = _checks.integer("dim", dim, 1)
        return cls(torch.zeros(dim), torch.ones(dim))

    @property
    def dim(self) -> int:
        return len(self.mean)

    def transform(self, x: Array) -> Array:
        """(x - mean) / std for x (n, dim); array or tensor in, the same out, a floating dtype kept.

        Raises TypeError for what is no array or tensor of numbers, ValueError for another shape.
        """
        return self._apply(x, forward=True)

    def inverse(self, x: Array) -> Array:
        """x * std + mean for x (n, dim); array or tensor in, the same out, a floating dtype kept.

        Raises TypeError for what is no array or tensor of numbers, ValueError for another shape.
        """
        return self._apply(x, forward=False)

    def _apply(self, x: Array, *, forward: bool) -> Array:
        _checks.refuse_mask("x", x)
        if not isinstance(x, np.ndarray | Tensor) or (
            isinstance(x, np.ndarray) and x.dtype.kind not in "fiub"
        ):
            raise _checks.bad_type("x", x, f"an (n, {self.dim}) array or tensor")
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise _checks.bad_value("x", x, f"an (n, {self.dim}) array or tensor")
        # In float64: data far from 0 (mean much larger than std) would lose its digits in float32.
        if isinstance(x, Tensor):
            mean, std = self.mean.to(x.device), self.std.to(x.device)
            dtype = x.dtype if x.is_floating_point() else torch.float64
            return ((x - mean) / std if forward else x * std + mean).to(dtype)
        mean, std = self.mean.numpy(), self.std.numpy()
        result = np.empty(x.shape, x.dtype if x.dtype.kind == "f" else np.float64)
        for rows in row_ranges(x):
            result[rows] = (x[rows] - mean) / std if forward else x[rows] * std + mean
        return result

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Standardiser):
            return NotImplemented
        return torch.equal(self.mean, other.mean) and torch.equal(self.std, other.std)

    __hash__ = None  # type: ignore[assignment]  # it holds tensors

    def __repr__(self) -> str:
        return f"Standardiser(mean={self.mean.tolist()}, std={self.std.tolist()})"


def _column(name: str, value: Any) -> Tensor:
    _checks.refuse_mask(name, value)
    try:
        column = torch.as_tensor(value, device="cpu").detach().to(torch.float64, copy=True)
    except (TypeError, ValueError, RuntimeError) as error:
        raise _checks.bad_type(name, value, "a sequence of dim numbers") from error
    if column.ndim != 1 or len(column) == 0:
        raise _checks.bad_value(name, value, "a sequence of dim numbers")
    return _checks.finite(name, column)


def row_ranges(data: np.ndarray | Tensor) -> Iterator[slice]:
    """The rows of data, (n, dim), in order, a block at a time."""
    step = max(1, BLOCK_ELEMENTS // max(1, data.shape[1]))
    return (slice(start, start + step) for start in range(0, len(data), step))


def _blocks(data: Any) -> Iterator[Tensor]:
    """The rows of data as finite float64 tensors, a block at a time."""
    _checks.refuse_mask("data", data)
    if not isinstance(data, np.ndarray):
        data = torch.as_tensor(data).detach()
    accepted = "an (n, dim) array of numbers with at least one row"
    if isinstance(data, np.ndarray) and data.dtype.kind not in "fiub":
        raise _checks.bad_type("data", data, accepted)
    if data.ndim != 2 or len(data) == 0:
        raise _checks.bad_value("data", data, accepted)
    for rows in row_ranges(data):
        part = data[rows]
        if isinstance(part, np.ndarray):
            # NumPy is quicker to look for NaN, and makes a copy: torch warns of arrays that are read-only.
            finite, block = bool(np.isfinite(part).all()), torch.from_numpy(np.array(part, np.float64))
        else:
            finite, block = bool(torch.isfinite(part).all()), part.to(torch.float64)
        if not finite:
            _checks.finite(
                "data", torch.as_tensor(np.array(data, np.float64) if isinstance(data, np.ndarray) else data)
            )
        yield block
