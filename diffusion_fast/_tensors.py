"""Checks of the tensors whose pointers cross into C++: dtype, shape, device, layout, gradients, overlap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion_fast import _checks, _cpu

_cpu.use_torch(Tensor, torch.empty_like, getattr(Tensor, "__dlpack_c_exchange_api__", None))
CPU = torch.device("cpu")
_LARGE = 1 << 22  # bytes; smaller blocks come from malloc's arenas, already mapped


def given(
    name: str, tensor: Any, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device = CPU
) -> Tensor:
    """A dense tensor of this dtype, shape and device that needs no gradient; contiguous, or made so."""
    fits = isinstance(tensor, Tensor) and tensor.dtype is dtype and tensor.shape == shape
    if not fits or tensor.layout is not torch.strided or not _is_on(tensor, device):
        accepted = f"a {dtype} tensor of shape {tuple(shape)} on {_the(device)}"
        error = _checks.bad_value if isinstance(tensor, Tensor) else _checks.bad_type
        raise error(name, tensor, accepted)
    if tensor.requires_grad:
        no_gradient(name, tensor)
    if tensor.is_contiguous() and not tensor.is_neg():
        if device is not CPU and tensor.data_ptr() % tensor.element_size():
            raise _checks.bad_value(name, f"memory at {tensor.data_ptr():#x}", "whole elements' addresses")
        return tensor
    return tensor.contiguous().resolve_neg()


def given_near(
    name: str, tensor: Any, dtype: torch.dtype, shape: tuple[int, ...], device: torch.device
) -> Tensor:
    """As `given`, where it lies: on the device or on the CPU."""
    elsewhere = isinstance(tensor, Tensor) and not tensor.is_cpu
    return given(name, tensor, dtype, shape, device if elsewhere else CPU)


def finite_near(name: str, tensor: Any, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """As `given_near`, float32 without NaN and infinity."""
    if _cpu.finite_floats(tensor, *shape):  # the usual case in one question
        return tensor
    _checks.refuse_mask(name, tensor)
    return _checks.finite(name, given_near(name, tensor, torch.float32, shape, device))


def of_array(name: str, value: Any, *dtypes: Any) -> Any:
    """The tensor of a NumPy array of these dtypes, of any byte order and strides; by default of floating
    numbers, and then float64 is made float32. What is no such array, and no tensor, is returned as it is."""
    _checks.refuse_mask(name, value)
    if isinstance(value, np.ndarray):
        native = value.dtype.newbyteorder("=")
        if native in (dtypes or (np.float16, np.float32, np.float64)):
            value = torch.from_numpy(np.require(value, native, ["C", "W"]))  # torch warns of read-only ones
    double = not dtypes and isinstance(value, Tensor) and value.dtype == torch.float64
    return value.to(torch.float32) if double else value


def _is_on(tensor: Tensor, device: torch.device) -> bool:
    return tensor.is_cpu if device is CPU else tensor.device == device


def _the(device: torch.device) -> str:
    return "the CPU" if device is CPU else str(device)


def no_gradient(name: str, tensor: Tensor) -> None:
    if tensor.requires_grad:
        raise _checks.bad_value(name, "a tensor that requires grad", f"one without: pass {name}.detach()")


def output(
    name: str,
    out: Any,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    inputs: Sequence[Tensor | None],
    *,
    in_place: bool,
    device: torch.device = CPU,
) -> Tensor:
    """Memory to write to: a contiguous tensor, or a writable float32 NumPy array, that overlaps no input.

    in_place allows the very same memory as an input, where each element is read before it is written.
    """
    tensor = out
    if isinstance(out, np.ndarray):
        if not out.flags.writeable or not out.flags.c_contiguous:
            state = f"strides {out.strides}" if out.flags.writeable else "read-only"
            raise _checks.bad_value(
                name, f"{_checks.describe(out)}, {state}", _writable(dtype, shape, device)
            )
        if out.dtype != np.float32:
            raise _checks.bad_value(name, out, _writable(dtype, shape, device))
        tensor = torch.from_numpy(out)
    if given(name, tensor, dtype, shape, device) is not tensor:
        strides = f"{_checks.describe(tensor)}, strides {tensor.stride()}"
        raise _checks.bad_value(name, strides, _writable(dtype, shape, device))
    no_overlap(name, tensor, inputs, in_place=in_place)
    return tensor


def no_overlap(name: str, tensor: Tensor, inputs: Sequence[Tensor | None], *, in_place: bool) -> None:
    begin = tensor.data_ptr()
    end = begin + tensor.nbytes
    for other in inputs:
        if other is None or (in_place and other is tensor):
            continue
        at = other.data_ptr()
        if at < end and begin < at + other.nbytes and not (in_place and at == begin):
            raise _checks.bad_value(name, tensor, "memory that overlaps no other argument")


def _writable(dtype: torch.dtype, shape: tuple[int, ...], device: torch.device) -> str:
    return f"a writable, contiguous {dtype} tensor or array of shape {tuple(shape)} on {_the(device)}"


def empty_like(x: Tensor) -> Tensor:
    """A contiguous, uninitialised tensor of x's shape and dtype where x is; on the CPU a large one is in
    memory that goes round."""
    if x.nbytes < _LARGE or not x.is_cpu:
        made = torch.empty_like(x)  # at once, for a step on a small tensor is a few of these
        return made if made.is_contiguous() else torch.empty_like(x, memory_format=torch.contiguous_format)
    memory = torch.frombuffer(_cpu.Block(x.nbytes), dtype=torch.uint8)
    return torch.empty(0, dtype=x.dtype, device=CPU).set_(memory.untyped_storage(), 0, x.shape)  # type: ignore[call-overload]


def allocate(shape: Sequence[int], device: torch.device = CPU, name: str = "n") -> Tensor:
    """An uninitialised float32 tensor. name: the argument to blame for one too large, n or chunk_size."""
    size = 4 * math.prod(shape)
    if size >= 1 << 62:
        raise _checks.bad_value(name, shape, "an output below 2^62 bytes")
    try:
        return torch.empty(tuple(shape), dtype=torch.float32, device=device)
    except RuntimeError as error:  # torch's allocator raises no MemoryError
        less = "stream()" if device is CPU else "stream(), or out= with memory on the CPU"
        raise MemoryError(
            f"{name}: an output of shape {tuple(shape)} needs {size / 2**30:.1f} GiB on {_the(device)}; use "
            + (less if name == "n" else "a smaller one")
        ) from error
