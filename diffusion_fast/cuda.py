"""The CUDA kernels: whether they can be used, and the calls into them, on torch's current stream.

Importing this module needs neither a driver nor kernels; diffusion_fast._cuda is imported at first use.
"""

from __future__ import annotations

import importlib
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from diffusion_fast import _checks, _cpu
from diffusion_fast.solvers.table import StepRow

_INSUFFICIENT_DRIVER = 35  # cudaErrorInsufficientDriver
# What a driver is called that first supports a major version of CUDA.
_DRIVERS = {12: "525", 13: "580"}
_prepared: set[int] = set()


def cuda_available() -> bool:
    """Whether the CUDA kernels are built and have a device; build_info()["cuda"] says why not."""
    return problem() is None


def problem() -> str | None:
    """Why the CUDA kernels cannot be used and what to do about it; None where they can."""
    return _state()[1]


def info() -> dict[str, Any]:
    """build_info()'s entry: available, and either the reason why not or the number of devices; versions."""
    module, reason = _state()
    if module is None:
        return {"available": False, "reason": reason}
    driver, runtime, devices, _, _ = module.probe()
    told: dict[str, Any] = {"available": reason is None}
    told |= {"devices": devices} if reason is None else {"reason": reason}
    return told | {
        "runtime": _version(runtime),
        "driver": _version(driver) if driver else None,
        "architectures": module.architectures(),
    }


def prepare(device: torch.device | str | int | None = None) -> None:
    """Loads every kernel on a device, the current one by default: the first launch may then be captured in a
    CUDA graph. The first call outside of a capture does it too.

    Raises ValueError for a device that does not exist, RuntimeError where CUDA cannot be used.
    """
    reason = problem()
    if reason is not None:
        raise RuntimeError(f"prepare: CUDA cannot be used: {reason}")
    index = device_of("device", "cuda" if device is None else device).index
    module_for(index)


def device_of(name: str, device: Any) -> torch.device:
    """A CUDA device with its index, or the CPU. Raises TypeError, ValueError: of another kind, not there."""
    accepted = "the CPU or a CUDA device"
    try:
        found = torch.device("cuda", device) if type(device) is int else torch.device(device)
    except (TypeError, RuntimeError, ValueError):
        error = _checks.bad_value if isinstance(device, (str, int)) else _checks.bad_type
        raise error(name, device, accepted) from None
    if found.type == "cpu":
        return torch.device("cpu")
    reason = problem()
    if found.type != "cuda" or reason is not None:
        raise _checks.bad_value(name, device, accepted if reason is None else f"the CPU, for {reason}")
    devices = _state()[0].probe()[2]
    if found.index is not None and found.index >= devices:
        raise _checks.bad_value(name, device, f"a CUDA device below {devices}")
    if not torch.backends.cuda.is_built():
        raise _checks.bad_value(name, device, "the CPU, for this torch is built without CUDA")
    return torch.device("cuda", torch.cuda.current_device() if found.index is None else found.index)


def number(name: str, value: Tensor, device: torch.device) -> Tensor:
    """A whole number in device memory, that a replayed graph reads anew: int64, of one element."""
    if value.dtype is not torch.int64 or value.numel() != 1 or value.device != device:
        raise _checks.bad_value(name, value, f"an integer, or an int64 tensor of one element on {device}")
    return value


def reverse_step(
    row: StepRow,
    dtype: int,
    tensors: tuple[int, ...],
    scale: float,
    x: Tensor,
    start: int,
    seed: int | Tensor,
    step: int | Tensor,
) -> None:
    """The kernel itself, for a call that ops.reverse_step has checked; tensors by address, as in _cuda."""
    n, device = x.shape[0], x.device
    module = module_for(device.index)
    factor = threshold = 0
    if row.rescale or row.quantile:
        statistics = torch.empty((2, n), dtype=torch.float32, device=device)
        factor, threshold = (part.data_ptr() for part in statistics)
    seed, seed_at = by_address(seed)
    step, step_at = by_address(step)
    module.reverse_step(
        row.packed,
        row.terms,
        dtype,
        tensors,
        scale,
        n,
        x.numel() // n,
        start,
        seed,
        step,
        seed_at,
        step_at,
        factor,
        threshold,
        device.index,
        torch.cuda.current_stream(device).cuda_stream,
    )


def normal(out: Tensor, start: int, seed: int, step: int, purpose: int, substream: int) -> None:
    """Fills out (n, dim), float32, for a call that noise.normal has checked."""
    n, dim = out.shape
    module_for(out.device.index).normal(
        out.data_ptr(),
        n,
        dim,
        start,
        seed,
        step,
        purpose,
        substream,
        0,
        0,
        out.device.index,
        torch.cuda.current_stream(out.device).cuda_stream,
    )


def by_address(value: int | Tensor) -> tuple[int, int]:
    """A number as the kernels take it: itself, or where in device memory it is read."""
    return (0, value.data_ptr()) if isinstance(value, Tensor) else (value, 0)


def module_for(index: int) -> Any:
    """_cuda, its kernels loaded on the device."""
    module = _state()[0]
    if index not in _prepared:
        if torch.cuda.is_current_stream_capturing():
            raise RuntimeError(
                f"a CUDA graph is being captured and no kernel has been loaded on cuda:{index}: "
                "call diffusion_fast.cuda.prepare() before the capture"
            )
        module.prepare(index)
        _prepared.add(index)
    return module


@lru_cache(maxsize=1)
def _state() -> tuple[Any, str | None]:
    """The module, None where there is none, and the problem."""
    try:
        module = importlib.import_module("diffusion_fast._cuda")
    except ModuleNotFoundError:
        why = _cpu.without_cuda or "what was built is gone"
        return None, (
            f"not built ({why}): with the CUDA toolkit 12.8 or later installed, build again with "
            "DIFFUSION_FAST_CUDA=1, which tells what is missing"
        )
    except ImportError as error:
        return None, f"built, but it cannot be loaded ({error}): build the package again on this system"
    driver, runtime, devices, code, message = module.probe()
    major = runtime // 1000
    needed = f"one that supports CUDA {major} ({_DRIVERS.get(major, 'a newer one')} or later)"
    if driver == 0:
        return module, f"no NVIDIA driver: install {needed}"
    if code == _INSUFFICIENT_DRIVER or driver // 1000 < major:
        return module, (
            f"the NVIDIA driver is too old: it supports CUDA {_version(driver)}, and this build has the "
            f"runtime of {_version(runtime)}; install {needed}"
        )
    if devices == 0:
        why = f" ({message})" if message else ""
        return module, f"no CUDA device{why}: see nvidia-smi, and whether CUDA_VISIBLE_DEVICES hides it"
    return module, None


def _version(number: int) -> str:
    return f"{number // 1000}.{number % 1000 // 10}"
