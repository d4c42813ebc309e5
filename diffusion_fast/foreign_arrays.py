"""ops.reverse_step on arrays of NumPy, JAX, CuPy and others: DLPack, so their memory is used where it lies.

On CUDA the array's library is told of torch's current stream, as the protocol has it, and orders its work.
DLPack and its Python protocol: https://dmlc.github.io/dlpack/latest/python_spec.html
"""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion_fast import _checks, cuda, ops

_CPU, _CUDA = 1, 2  # kDLCPU, kDLCUDA
_IMMUTABLE = ("jax", "jaxlib", "tensorflow")  # they export memory that nobody may write to
_READABLE = "a float32, bfloat16 or float16 array on the CPU or a CUDA device that supports DLPack"
_WRITABLE = "a writable, contiguous array like x where x is"


def reverse_step(
    x: Any,
    model_output: Any,
    row: Any,
    *,
    history: Any,
    prediction: Any,
    out: Any,
    **options: Any,
) -> Any:
    """ops.reverse_step with every argument given and x no tensor; the other arrays may be of any kind.

    Returns out, or without it a new array of x's kind: made by from_dlpack of x's array namespace or of the
    package that x's type comes from, a tensor where there is none. Raises what ops.reverse_step raises;
    ValueError too for an array on a device of another kind and for memory to be written that is read-only.
    """
    if isinstance(history, (list, tuple)):
        pushes = getattr(row, "push", True)
        history = [_tensor(f"history[{k}]", h, writes=pushes) for k, h in enumerate(history)]
    result = ops.reverse_step(
        _tensor("x", x),
        _tensor("model_output", model_output),
        row,
        history=history,
        prediction=_tensor("prediction", prediction, writes=True),
        out=_tensor("out", out, writes=True),
        **{name: _tensor(name, value) for name, value in options.items()},
    )
    return _of_kind(x, result) if out is None else out


def _tensor(name: str, value: Any, *, writes: bool = False) -> Any:
    """A tensor over the memory of an array; what is no array is left to the checks of the op."""
    if isinstance(value, Tensor) or not hasattr(value, "__dlpack__"):
        return value
    accepted = _WRITABLE if writes else _READABLE
    device = tuple(value.__dlpack_device__())
    reason = cuda.problem() if device[0] == _CUDA else None
    if device[0] not in (_CPU, _CUDA) or reason is not None:
        given = f"{_checks.describe(value)} on DLPack device {(int(device[0]), device[1])}"
        why = "" if reason is None else f" (CUDA cannot be used: {reason})"
        raise ValueError(f"{name}: got {given}; accepted: {accepted}{why}")
    if writes and not _is_writable(value):
        raise ValueError(f"{name}: got {_checks.describe(value)}, read-only; accepted: {accepted}")
    if any(stride < 0 for stride in getattr(value, "strides", None) or ()):  # torch would end the process
        if writes or not isinstance(value, np.ndarray):
            raise ValueError(f"{name}: got strides {value.strides}; accepted: {accepted}, no negative stride")
        value = np.ascontiguousarray(value)
    try:
        return torch.from_dlpack(value)
    except (AssertionError, BufferError, RuntimeError, TypeError, ValueError) as error:
        given = f"{_checks.describe(value)}, which cannot be exported ({error})"
        raise ValueError(f"{name}: got {given}; accepted: {accepted}") from error


def _is_writable(value: Any) -> bool:
    if isinstance(value, np.ndarray):
        return value.flags.writeable
    return _package(value) not in _IMMUTABLE


def _package(value: Any) -> str:
    return type(value).__module__.partition(".")[0]


def _of_kind(x: Any, result: Tensor) -> Any:
    if isinstance(x, np.ndarray):
        return result.numpy()
    own = x.__array_namespace__() if hasattr(x, "__array_namespace__") else sys.modules.get(_package(x))
    convert = getattr(own, "from_dlpack", None)
    return result if convert is None else convert(result)
