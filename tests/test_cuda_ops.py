"""ops.reverse_step and noise.normal on CUDA tensors, without a device: host tensors that say they are on one.

The emulator runs the kernels; all that Python does on the way is what a device would see.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from cuda_build import emulated
from test_ops import DTYPES, FULL, made_row
from torch import Tensor

import diffusion_fast as df
from diffusion_fast import cuda
from diffusion_fast.ops import reverse_step

DEVICE = torch.device("cuda", 0)
PLAIN = made_row(eval=True, a=0.7, e=-0.2, s=0.3)
EVERY = made_row(eval=True, clip=0.8, push=True, **FULL)
STATISTICS = made_row(eval=True, rescale=0.7, quantile=0.9, clip=2.0, p_x=1.0, p_F=0.5, a=0.5, b=0.5, s=0.3)


class OnDevice(Tensor):
    """Host memory that passes for that of a CUDA device."""

    where = DEVICE
    is_cpu = False
    is_cuda = True

    @property
    def device(self) -> torch.device:
        return self.where


class OnAnother(OnDevice):
    where = torch.device("cuda", 1)


def to(value: Any, kind: type[Tensor] = OnDevice) -> Any:
    if isinstance(value, (list, tuple)):
        return [to(v, kind) for v in value]
    return value.clone().as_subclass(kind) if isinstance(value, Tensor) else value


def plain(value: Tensor) -> Tensor:
    return value.as_subclass(Tensor)


@pytest.fixture(autouse=True)
def device(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The emulated module in place of diffusion_fast._cuda, and torch's CUDA calls of these tests."""
    module, empty = emulated(), torch.empty
    monkeypatch.setattr(cuda, "_state", lambda: (module, None))
    monkeypatch.setattr(cuda, "_prepared", set())
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 0)
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)

    def empty_there(*size: Any, device: Any = None, **options: Any) -> Tensor:
        made = empty(*size, **options)
        return made if device is None or torch.device(device).type == "cpu" else made.as_subclass(OnDevice)

    monkeypatch.setattr(torch, "empty", empty_there)
    return module


def values(count: int, shape: tuple[int, ...] = (5, 3), dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(shape).to(dtype) for _ in range(count)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(7, 2), (5, 3), (4, 2, 6)], ids=str)
def test_every_argument_reaches_the_kernel(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, F, u, z, v, *history = values(8, shape, dtype)
    scales = torch.linspace(0, 3, shape[0])
    seeded: dict[str, Any] = {"seed": 2**64 - 3, "step": 5, "start": 2**33}
    calls: list[tuple[Any, dict[str, Any]]] = [
        (PLAIN, seeded),
        (PLAIN, {"noise": z, "log_variance": v}),
        (PLAIN, seeded | {"uncond_output": u, "guidance_scale": 2.5}),
        (EVERY, seeded | {"uncond_output": u, "guidance_scale": scales, "history": history}),
        (EVERY, {"noise": z, "history": history, "prediction": torch.zeros_like(x)}),
        (STATISTICS, seeded | {"uncond_output": u, "guidance_scale": scales}),
    ]
    for row, options in calls:
        there = {name: to(value) for name, value in options.items()}
        here = {name: to(value, Tensor) for name, value in options.items()}
        got, want = reverse_step(to(x), to(F), row, **there), reverse_step(x, F, row, **here)
        assert isinstance(got, OnDevice) and torch.equal(plain(got), want)
        for name in ("history", "prediction"):
            ours, theirs = there.get(name, ()), here.get(name, ())
            assert all(torch.equal(plain(a), b) for a, b in zip(ours, theirs, strict=True))


def test_in_place_strided_and_doubled() -> None:
    x, F, u = values(3, (6, 4))
    want = reverse_step(x, F, PLAIN, seed=1)
    there = to(x)
    assert reverse_step(there, to(F), PLAIN, seed=1, out=there) is there
    assert torch.equal(plain(there), want)
    strided = to(F.t().contiguous()).t()
    assert torch.equal(plain(reverse_step(to(x), strided, PLAIN, seed=1)), want)
    both = {"seed": 1, "guidance_scale": 2.0, "doubled": "uncond_first"}
    want = reverse_step(x, torch.cat([u, F]), PLAIN, **both)
    assert torch.equal(plain(reverse_step(to(x), to(torch.cat([u, F])), PLAIN, **both)), want)
    nothing = reverse_step(to(torch.empty(0, 3)), to(torch.empty(0, 3)), PLAIN, seed=1)
    assert nothing.shape == (0, 3)


def test_seed_and_step_from_memory() -> None:
    x, F = values(2)
    want = reverse_step(x, F, PLAIN, seed=2**64 - 3, step=9)
    seed, step = to(torch.tensor([-3])), to(torch.tensor([9]))
    assert torch.equal(plain(reverse_step(to(x), to(F), PLAIN, seed=seed, step=step)), want)


def test_the_noise_stream() -> None:
    how: dict[str, Any] = {"seed": 7, "step": 3, "start": 2**40, "purpose": "initial", "substream": 5}
    for device in ("cuda", "cuda:0", DEVICE):
        got = df.noise.normal(9, 5, device=device, **how)
        assert isinstance(got, OnDevice) and torch.equal(plain(got), df.noise.normal(9, 5, **how))


X, F, U = torch.randn(3, 5, 3)
THERE = {"x": to(X), "model_output": to(F), "seed": 1}
MEMORY = to(torch.randn(20))
REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "an output on the CPU": ({"model_output": F}, ValueError, r"model_output: got .* on cpu; .* on cuda:0"),
    "two devices": ({"model_output": to(F, OnAnother)}, ValueError, "model_output: got .*on cuda:1.*cuda:0"),
    "noise on the CPU": ({"seed": None, "noise": F}, ValueError, "noise: got .*cuda:0"),
    "x on the CPU": ({"x": X}, ValueError, r"model_output: got .*cuda:0; accepted: .*on the CPU"),
    "an array": ({"model_output": F.numpy()}, TypeError, "model_output: got .*on cuda:0"),
    "history on the CPU": ({"history": [F]}, ValueError, r"history\[0\]: got .*on cpu"),
    "another result": ({"out": X.clone()}, ValueError, "out: got .*on cpu"),
    "a NumPy result": ({"out": X.numpy().copy()}, ValueError, "out: got .*on cpu"),
    "scales on the CPU": (
        {"uncond_output": to(U), "guidance_scale": torch.ones(5)},
        ValueError,
        "guidance_scale: got .*on cpu",
    ),
    "float64": ({"x": to(X.double())}, ValueError, "x: got a torch.float64 tensor"),
    "a gradient": ({"model_output": to(F).requires_grad_()}, ValueError, "model_output: .*requires grad"),
    "an overlap": (
        {"model_output": MEMORY[:15].view(5, 3), "out": MEMORY[3:18].view(5, 3)},
        ValueError,
        "out: got .*; accepted: memory",
    ),
    "a seed on the CPU": ({"seed": torch.tensor([1])}, ValueError, "seed: got .*int64 tensor of one element"),
    "a float seed": ({"seed": to(torch.ones(1))}, ValueError, "seed: got .*one element on cuda:0"),
    "two steps": ({"step": to(torch.tensor([1, 2]))}, ValueError, "step: got .*one element on cuda:0"),
    "a seed and noise": ({"seed": to(torch.tensor([1])), "noise": to(F)}, ValueError, "seed and noise"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    given, error, pattern = REFUSED[name]
    with pytest.raises(error, match=pattern):
        reverse_step(row=PLAIN, **THERE | given)


def test_half_an_elements_address_is_refused() -> None:
    memory = torch.zeros(4 * 16, dtype=torch.uint8)
    crooked = torch.frombuffer(memory.numpy().data[2 : 2 + 48], dtype=torch.float32).view(4, 3)
    assert crooked.data_ptr() % 4 == 2
    x = torch.zeros(4, 3)
    with pytest.raises(ValueError, match=r"model_output: got 'memory at 0x.*whole elements"):
        reverse_step(to(x), crooked.as_subclass(OnDevice), PLAIN, seed=1)


def test_a_tensor_is_no_seed_on_the_cpu() -> None:
    for given in ({"seed": torch.tensor([1])}, {"seed": 1, "step": torch.tensor([1])}):
        with pytest.raises(TypeError, match=r"(seed|step): got .*accepted: an integer"):
            reverse_step(X, F, PLAIN, **given)


def test_a_capture_needs_kernels_that_are_loaded(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    capturing = True
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: capturing)
    calls: list[Callable[[], Any]] = [
        lambda: reverse_step(to(X), to(F), PLAIN, seed=1),
        lambda: df.noise.normal(3, 2, seed=1, step=0, device="cuda"),
    ]
    for call in calls:
        with pytest.raises(RuntimeError, match=re.escape("call diffusion_fast.cuda.prepare() before")):
            call()
    capturing = False
    cuda.prepare()
    capturing = True
    for call in calls:
        call()


def test_devices_that_do_not_exist(device: Any) -> None:
    count = device.probe()[2]
    for call in (
        lambda: cuda.prepare(count),
        lambda: df.noise.normal(3, 2, seed=1, step=0, device=f"cuda:{count}"),
    ):
        with pytest.raises(ValueError, match=f"device: got .*a CUDA device below {count}"):
            call()
    with pytest.raises(RuntimeError, match="Device"):  # the module's own check
        device.normal(torch.empty(4).data_ptr(), 1, 4, 0, 0, 0, 0, 0, 0, 0, count, 0)


# ---- arrays of other libraries


def test_arrays_on_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """What CuPy and JAX export there is used where it lies; a result without out is of x's kind."""

    class Array:
        def __init__(self, tensor: Tensor) -> None:
            self.tensor, self.shape, self.dtype = tensor, tensor.shape, tensor.dtype

        def __dlpack__(self, **options: Any) -> Any:
            raise AssertionError("from_dlpack is another here")

        def __dlpack_device__(self) -> tuple[int, int]:
            return 2, 0

        def __array_namespace__(self) -> Any:
            return SimpleNamespace(from_dlpack=Array)

    monkeypatch.setattr(torch, "from_dlpack", lambda array: array.tensor)
    x, F, h, out = values(4)
    want = reverse_step(x, F, EVERY, seed=3, history=[h.clone(), h.clone(), h.clone()])
    x, F, out = to([x, F, out])
    past = to([h, h, h])
    arrays = [Array(tensor) for tensor in past]
    assert reverse_step(Array(x), F, EVERY, seed=3, history=arrays, out=Array(out)).tensor is out
    assert torch.equal(plain(out), want)
    assert torch.equal(plain(past[1]), h) and not torch.equal(plain(past[0]), h)
    got = reverse_step(Array(x), Array(F), PLAIN, seed=3)
    assert type(got) is Array and torch.equal(
        plain(got.tensor), reverse_step(plain(x), plain(F), PLAIN, seed=3)
    )
    with pytest.raises(ValueError, match=r"model_output: got .*accepted: .* on cuda:0"):
        reverse_step(Array(x), plain(F), PLAIN, seed=3)
