"""Torch on a CUDA device, without one: host tensors that say they are there, kernels by the emulator.

A tensor on the device meets none on the CPU but in a copy, and a copy that need not be waited for is made
when its event is: what a device would refuse, or get wrong, shows here.
"""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import samplers
import torch
from conditional_nets import T as POLICY_STEPS
from cuda_build import emulated
from cuda_chains import LIMITS
from samplers import SCHEDULE
from test_cuda_ops import DEVICE, OnAnother, OnDevice, device, to  # noqa: F401  (device: for every test)
from torch import Tensor, nn

import diffusion_fast as df
from diffusion_fast import capture

N = 70
WIDE = {"hidden": (72,)}
POLICY_SCHEDULE = df.NoiseSchedule.linear(POLICY_STEPS, beta_start=1e-2, beta_end=0.4)
_to, _copy, _empty = Tensor.to, Tensor.copy_, torch.empty
_captured: dict[Any, tuple[nn.Module, Any]] = {}  # with the module, so that its id is no other's
make_model = functools.cache(samplers.make_model)  # captured once


@functools.cache
def _program() -> Any:
    return emulated().Program


@pytest.fixture
def tensor_cores(torch_there: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulated(), "Program", _program())


def plain(value: Tensor) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        return value.as_subclass(Tensor)


def strict(kind: type, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
    """An operation on the device. Numbers of no dimension may come from the CPU, as in torch."""
    flat = [part for arg in args for part in (arg if isinstance(arg, (list, tuple)) else [arg])]
    if any(type(part) in (Tensor, nn.Parameter) and part.dim() for part in flat):
        raise RuntimeError(f"{function}: tensors on two devices")
    return Tensor.__torch_function__.__func__(kind, function, types, args, kwargs)  # type: ignore[attr-defined]


def is_cuda(place: Any) -> bool:
    return isinstance(place, (str, torch.device)) and torch.device(place).type == "cuda"


def to_there(self: Tensor, *args: Any, **options: Any) -> Tensor:
    if args and isinstance(args[0], Tensor):
        return to_there(self, args[0].device, args[0].dtype)
    if not args or not isinstance(args[0], (str, torch.device)):
        return _to(self, *args, **options)
    there = is_cuda(args[0])
    if isinstance(self, OnDevice) is there and len(args) == 1 and not options:
        return self
    made = plain(self).clone()
    made = _to(made, *args[1:], **options) if args[1:] or options else made
    return made.as_subclass(OnDevice) if there else made


class Copies:
    """Copies that are made when they are waited for."""

    def __init__(self) -> None:
        self.queued: list[Callable[[], Any]] = []

    def copy_(self, target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        if non_blocking:
            self.queued.append(lambda: _copy(plain(target), plain(source)))
            return target
        _copy(plain(target), plain(source))
        return target

    def event(self) -> Any:
        waiting: list[Callable[[], Any]] = []

        def record(stream: Any) -> None:
            assert not waiting, "a buffer is written again before it was read"
            waiting.extend(self.queued)
            self.queued.clear()

        def synchronize() -> None:
            for queued in waiting:
                queued()
            waiting.clear()

        return SimpleNamespace(record=record, synchronize=synchronize)


@pytest.fixture(autouse=True)
def torch_there(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    torch.set_num_threads(1)
    copies, empty = Copies(), torch.empty

    def pinned(*size: Any, pin_memory: bool = False, **options: Any) -> Tensor:
        made = empty(*size, **options)
        return made.fill_(7) if pin_memory else made

    def there(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def wrapped(*args: Any, device: Any = None, **options: Any) -> Tensor:
            made = make(*args, **options)
            return made.as_subclass(OnDevice) if is_cuda(device) else made

        return wrapped

    def module_to_cpu(module: nn.Module) -> nn.Module:
        for part in module.modules():
            for name, tensor in part._parameters.items():
                part._parameters[name] = None if tensor is None else nn.Parameter(plain(tensor.data))
            part._buffers.update(
                {name: plain(tensor) for name, tensor in part._buffers.items() if tensor is not None}
            )
        return module

    stream = SimpleNamespace(cuda_stream=0, synchronize=lambda: None, wait_stream=lambda other: None)
    monkeypatch.setattr(OnDevice, "__torch_function__", classmethod(strict))
    # the general path, which has the CPU's bits
    monkeypatch.setattr(device, "Program", functools.partial(_program(), tensor_cores=False))
    limits = SimpleNamespace(
        shared_memory_per_block_optin=LIMITS["shared_bytes"],
        major=9,
        minor=0,
        multi_processor_count=LIMITS["multiprocessors"],
    )
    again = lambda self, memo: to(plain(self))  # noqa: E731
    monkeypatch.setattr(OnDevice, "__deepcopy__", again, raising=False)
    fakes: list[tuple[Any, str, Any]] = [
        (Tensor, "to", to_there),
        (Tensor, "cpu", lambda self: to_there(self, "cpu")),
        (Tensor, "copy_", lambda *args, **options: copies.copy_(*args, **options)),
        (Tensor, "record_stream", lambda self, stream: None),
        (nn.Module, "cpu", module_to_cpu),
        (torch, "empty", pinned),
        (torch, "full", there(torch.full)),
        (torch, "as_tensor", there(torch.as_tensor)),
        (torch.cuda, "get_device_properties", lambda device: limits),
        (torch.cuda, "current_stream", lambda device: stream),
        (torch.cuda, "Stream", lambda device: stream),
        (torch.cuda, "Event", copies.event),
        (torch.cuda, "stream", lambda stream: contextlib.nullcontext()),
        (torch.cuda, "mem_get_info", lambda device: (1 << 30, 1 << 30)),
        (torch.cuda, "memory_reserved", lambda device: 0),
        (torch.cuda, "memory_allocated", lambda device: 0),
    ]
    trace = capture.capture

    def capture_with_torch_as_it_is(*args: Any) -> Any:
        with pytest.MonkeyPatch.context() as undone:
            for (owner, name, _), real in zip(fakes, reals, strict=True):
                undone.setattr(owner, name, real)
            undone.setattr(torch, "empty", _empty)
            if (key := (id(args[0]), repr(args[1:]))) not in _captured:
                _captured[key] = args[0], trace(*args)
            return _captured[key][1]

    reals = [getattr(owner, name) for owner, name, _ in fakes]
    for owner, name, fake in fakes:
        monkeypatch.setattr(owner, name, fake)
    monkeypatch.setattr(capture, "capture", capture_with_torch_as_it_is)


def on_device(module: nn.Module) -> nn.Module:
    """A copy of the module with its weights on the device."""
    module = copy.deepcopy(module)
    for part in module.modules():
        for store in (part._parameters, part._buffers):
            for name, tensor in store.items():
                store[name] = None if tensor is None else to(tensor.data)
    return module


def pair(model: nn.Module, schedule: Any = SCHEDULE, **options: Any) -> tuple[df.Sampler, df.Sampler]:
    """The samplers on the CPU and on the device."""
    options = {"backend": "native", "steps": 4} | options
    return df.Sampler(model, schedule, **options), df.Sampler(model, schedule, device="cuda", **options)


def check_same(samplers: tuple[df.Sampler, df.Sampler], n: int = N, **call: Any) -> None:
    """The same bits, whether what is given lies on the CPU or on the device."""
    cpu, there = samplers
    want = cpu.sample(n, **call)
    for given in (call, {name: placed(value) for name, value in call.items()}):
        got = there.sample(n, **given)
        assert isinstance(got, OnDevice) and got.device == DEVICE and torch.equal(plain(got), want)
    out = torch.zeros_like(want)
    assert there.sample(n, out=out, **call) is out and torch.equal(out, want)


def placed(value: Any) -> Any:
    return {k: to(v) for k, v in value.items()} if isinstance(value, dict) else to(value)
