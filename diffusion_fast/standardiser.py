"""Column-wise standardisation: (x - mean) / std, and back."""

from __future__ import annotations

from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from diffusion_fast import _checks

Array = TypeVar("Array", np.ndarray, Tensor)


class Standardiser:
    """Shift and scale of each column, kept as float64 tensors `mean` and `std` of shape (dim,).

    Denoisers start from N(0, 1) noise, so they want data of mean 0 and standard deviation 1. Keep the
    standardiser with the checkpoint: samples are brought back to the data's own units by `inverse`.
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

        A constant column keeps std = 1, so that it is only shifted.
        """
        rows = torch.as_tensor(data)
        if rows.ndim != 2 or len(rows) == 0:
            raise _checks.bad_value("data", data, "an (n, dim) array with at least one row")
        rows = _checks.finite("data", rows.detach().to(torch.float64))
        mean = rows.mean(0)
        std = rows.std(0, correction=0)
        # Rounding leaves a constant column with a std of about eps |mean|, not exactly 0.
        constant = std <= 1e-14 * mean.abs()
        return cls(mean, torch.where(constant, torch.ones_like(std), std))

    @property
    def dim(self) -> int:
        return len(self.mean)

    def transform(self, x: Array) -> Array:
        """(x - mean) / std for x (n, dim); array or tensor in, the same out, a floating dtype kept."""
        return self._apply(x, forward=True)

    def inverse(self, x: Array) -> Array:
        """x * std + mean for x (n, dim); array or tensor in, the same out, a floating dtype kept."""
        return self._apply(x, forward=False)

    def _apply(self, x: Array, *, forward: bool) -> Array:
        if not isinstance(x, np.ndarray | Tensor):
            raise _checks.bad_type("x", x, f"an (n, {self.dim}) array or tensor")
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise _checks.bad_value("x", x, f"an (n, {self.dim}) array or tensor")
        rows = torch.as_tensor(x)
        dtype = rows.dtype if rows.is_floating_point() else torch.float64
        # In float64: data far from 0 (mean much larger than std) would lose its digits in float32.
        mean, std = self.mean.to(rows.device), self.std.to(rows.device)
        result = ((rows - mean) / std if forward else rows * std + mean).to(dtype)
        return result.numpy() if isinstance(x, np.ndarray) else result

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Standardiser):
            return NotImplemented
        return torch.equal(self.mean, other.mean) and torch.equal(self.std, other.std)

    __hash__ = None  # type: ignore[assignment]  # it holds tensors

    def __repr__(self) -> str:
        return f"Standardiser(mean={self.mean.tolist()}, std={self.std.tolist()})"


def _column(name: str, value: Any) -> Tensor:
    try:
        column = torch.as_tensor(value).detach().to("cpu", torch.float64, copy=True)
    except (TypeError, ValueError, RuntimeError) as error:
        raise _checks.bad_type(name, value, "a sequence of dim numbers") from error
    if column.ndim != 1 or len(column) == 0:
        raise _checks.bad_value(name, value, "a sequence of dim numbers")
    return _checks.finite(name, column)
