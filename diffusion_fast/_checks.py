"""Argument checks shared by every public entry point.

Each message names the argument, what was given and what is accepted, so that a caller can mend the call
without opening the source.
"""

from __future__ import annotations

import math
import numbers
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch.nn.parameter import is_lazy

from diffusion_fast import _cpu
from diffusion_fast._spelling import did_you_mean

MAX_SAMPLES = 1 << 48  # sample indices are 48 bits of the Philox counter


def describe(value: Any) -> str:
    """One short phrase for a value of any type, for use in error messages."""
    if isinstance(value, torch.Tensor):
        layout = "" if value.layout is torch.strided else f"{value.layout} "
        return f"a {value.dtype} {layout}tensor of shape {tuple(value.shape)} on {value.device}"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return f"a {value.dtype} array of shape {tuple(value.shape)}"
    text = " ".join(line.strip() for line in repr(value).splitlines())
    if len(text) > 80:
        text = text[:77] + "..."
    return f"{text} ({type(value).__name__})"


def bad_value(name: str, given: Any, accepted: str) -> ValueError:
    return ValueError(f"{name}: got {describe(given)}; accepted: {accepted}")


def bad_type(name: str, given: Any, accepted: str) -> TypeError:
    return TypeError(f"{name}: got {describe(given)}; accepted: {accepted}")


def integer(name: str, value: Any, low: int, high: int | None = None) -> int:
    """An int (or NumPy integer, never a bool) in [low, high]."""
    if type(value) is int and low <= value and (high is None or value <= high):
        return value  # the usual case, without building a message
    top = "" if high is None else f" to {high}"
    accepted = f"an integer from {low}{top or ' up'}"
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise bad_type(name, value, accepted)
    number = int(value)
    if number < low or (high is not None and number > high):
        raise bad_value(name, value, accepted)
    return number


def real(
    name: str, value: Any, low: float = -math.inf, high: float = math.inf, *, open_low: bool = False
) -> float:
    """A finite real number in [low, high], or in (low, high] with open_low."""
    left = "(" if open_low or low == -math.inf else "["
    accepted = f"a finite number in {left}{low:g}, {high:g}{')' if high == math.inf else ']'}"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise bad_type(name, value, accepted)
    number = float(value)
    if not math.isfinite(number) or number < low or number > high or (open_low and number == low):
        raise bad_value(name, value, accepted)
    return number


def choice(name: str, value: Any, accepted: Iterable[str]) -> str:
    """One of the accepted names; an unknown one is answered with the nearest valid one."""
    names = list(accepted)
    if not isinstance(value, str):
        raise bad_type(name, value, f"one of {', '.join(names)}")
    if value not in names:
        raise bad_value(name, value, f"one of {', '.join(names)}{did_you_mean(value, names, cutoff=0.0)}")
    return value


def flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise bad_type(name, value, "True or False")
    return value


def seed(name: str, value: Any) -> int:
    """A seed in [0, 2^64), or a torch.Generator from which one is drawn."""
    if type(value) is not int and isinstance(value, torch.Generator):  # the usual case costs no look-up
        low, high = torch.randint(
            0, 1 << 32, (2,), generator=value, dtype=torch.int64, device=value.device
        ).tolist()
        return low | high << 32
    return integer(name, value, 0, (1 << 64) - 1)


def readable(name: str, tensor: torch.Tensor, accepted: str) -> torch.Tensor:
    """A tensor whose values can be read: dense, and not on the meta device."""
    if tensor.layout is not torch.strided or tensor.device.type == "meta":
        raise bad_value(name, tensor, accepted)
    return tensor


def weights(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A parameter or buffer of a module, detached: it has values, and where it is of floats finite ones."""
    if is_lazy(tensor):
        accepted = "weights with values: call the lazy module once"
        raise bad_value(name, "one that is not initialised", accepted)
    values = readable(name, tensor.detach(), "dense weights with values")
    return finite(name, values) if values.is_floating_point() else values


def refuse_mask(name: str, value: Any) -> None:
    """TypeError for a masked array: NumPy and torch would take what is behind the mask."""
    if isinstance(value, np.ma.MaskedArray):
        raise TypeError(
            f"{name}: got a masked array of shape {value.shape}; accepted: an array without a mask, of the "
            "rows without gaps or with the gaps filled"
        )


def class_labels(name: str, labels: Any, n: int, high: int, accepted: str) -> torch.Tensor:
    """(n,) integers of any kind in [0, high], as int64 on the CPU."""
    refuse_mask(name, labels)
    if isinstance(labels, torch.Tensor):
        labels = readable(name, labels.detach(), accepted).cpu()
    try:
        values = np.asarray(labels)
    except (TypeError, ValueError, RuntimeError):  # ragged lists; bfloat16
        raise bad_type(name, labels, accepted) from None
    if values.dtype.kind not in "iu" and (values.size or not isinstance(labels, (list, tuple))):
        raise bad_type(name, labels, accepted)
    if values.shape != (n,):
        raise bad_value(name, labels, accepted)
    wrong = values[(values < 0) | (values > high)]
    if len(wrong):
        raise bad_value(name, int(wrong[0]), accepted)
    return torch.from_numpy(values.astype(np.int64))


def sample_range(n: Any, start: Any) -> tuple[int, int]:
    """n >= 0 samples from index start, all below 2^48."""
    count = integer("n", n, 0, MAX_SAMPLES)
    first = integer("start", start, 0, MAX_SAMPLES)
    if count + first > MAX_SAMPLES:
        raise bad_value("start", start, f"start + n at most 2^48, with n = {count}")
    return count, first


def finite(name: str, tensor: torch.Tensor) -> torch.Tensor:
    """A tensor without NaN or infinity; the first bad position is named."""
    readable = tensor.dtype is torch.float32 and tensor.is_cpu and tensor.is_contiguous()
    if readable and _cpu.all_finite(tensor.data_ptr(), tensor.numel()):
        return tensor
    bad = ~torch.isfinite(tensor)
    if bool(bad.any()):
        where = tuple(int(i) for i in bad.nonzero()[0])
        value = tensor[where].item()
        raise ValueError(
            f"{name}: got {value} at index {where} ({int(bad.sum())} such); accepted: finite numbers"
        )
    return tensor
