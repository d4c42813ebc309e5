"""Sampler on a CUDA device that cuda_torch.py stands in for: what is refused, and how."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch
from cuda_torch import WIDE, is_cuda, make_model, on_device, plain, torch_there  # noqa: F401  (fixtures)
from samplers import N_CLASSES, SCHEDULE
from test_cuda_ops import DEVICE, OnAnother, OnDevice, device, to  # noqa: F401  (device: for every test)
from torch import Tensor, nn

import diffusion_fast as df


def made_on(device: Any = "cuda", model: Any = None, **options: Any) -> df.Sampler:  # noqa: F811
    return df.Sampler(model or make_model(**WIDE), SCHEDULE, device=device, steps=2, **options)


def two_devices() -> nn.Module:
    model = on_device(make_model(**WIDE))
    _name, last = list(model.named_modules())[-1]
    for key, tensor in last._parameters.items():
        last._parameters[key] = plain(tensor.data).as_subclass(OnAnother)  # type: ignore[assignment,union-attr]
    return model


BAD_SAMPLERS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no such device": (lambda: made_on("cuda:7"), ValueError, "device: got 'cuda:7'.*a CUDA device below"),
    "another kind": (lambda: made_on("mps"), ValueError, "device: got 'mps'.*the CPU or a CUDA device"),
    "no device": (lambda: made_on(3.5), TypeError, "device: got 3.5"),
    "a precision of CUDA": (
        lambda: made_on("cpu", precision="float16"),
        ValueError,
        "precision: got 'float16'.*'float32'.* on the CPU",
    ),
    "a precision of the kernels": (
        lambda: made_on(precision="float16", backend="torch"),
        ValueError,
        "precision: .*backend='torch'",
    ),
    "an unknown precision": (lambda: made_on(precision="fp16"), ValueError, "did you mean 'float16'"),
    "weights on two devices": (
        lambda: made_on(None, two_devices()),
        ValueError,
        "model: got .* on cuda:1, .* on cuda:0.*on one CUDA device",
    ),
}


@pytest.mark.parametrize("name", BAD_SAMPLERS)
def test_samplers_that_are_refused(name: str) -> None:
    make, error, pattern = BAD_SAMPLERS[name]
    with pytest.raises(error, match=pattern):
        make()


BAD_CALLS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "x_T elsewhere": ({"x_T": to(torch.zeros(4, 3), OnAnother)}, ValueError, "x_T: got .*cuda:1.*cuda:0"),
    "noise elsewhere": ({"noise": to(torch.zeros(2, 4, 3), OnAnother)}, ValueError, "noise: got .*cuda:1"),
    "NaN in x_T": ({"x_T": to(torch.full((4, 3), torch.nan))}, ValueError, r"x_T: got nan at index \(0, 0\)"),
    "x_T of another shape": ({"x_T": to(torch.zeros(3, 3))}, ValueError, r"x_T: got .*\(3, 3\).*\(4, 3\)"),
    "x_T in float64": ({"x_T": to(torch.zeros(4, 3).double())}, ValueError, "x_T: got a torch.float64"),
    "out elsewhere": ({"out": to(torch.zeros(4, 3), OnAnother)}, ValueError, "out: got .*cuda:1.*cuda:0"),
    "out of another shape": ({"out": to(torch.zeros(3, 3))}, ValueError, r"out: got .*\(3, 3\)"),
    "out not contiguous": ({"out": to(torch.zeros(3, 4)).t()}, ValueError, "out: got .*strides"),
    "a label too large": ({"labels": to(torch.tensor([0, 1, 9, 0]))}, ValueError, "labels: got 9"),
    "scales": ({"guidance_scale": to(torch.ones(4))}, ValueError, "guidance_scale: got .*accepted: None"),
    "values elsewhere": (
        {"fixed_mask": torch.ones(3).bool(), "fixed_values": to(torch.zeros(3), OnAnother)},
        ValueError,
        "fixed_values: got .*cuda:1",
    ),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_calls_that_are_refused(name: str) -> None:
    given, error, pattern = BAD_CALLS[name]
    sampler = made_on(model=make_model(N_CLASSES, **WIDE))
    with pytest.raises(error, match=pattern):
        sampler.sample(4, **given)


def test_a_sampler_on_the_cpu_takes_nothing_of_a_device() -> None:
    sampler = made_on("cpu")
    for name in ("x_T", "out"):
        with pytest.raises(ValueError, match=f"{name}: got .*cuda:0; accepted: .* on the CPU"):
            sampler.sample(4, **{name: to(torch.zeros(4, 3))})
    with pytest.raises(TypeError, match="seed: got"):
        sampler.sample(4, seed=torch.tensor([1]))


def test_running_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler, there = made_on(), torch.empty

    def exhausted(*size: Any, device: Any = None, **options: Any) -> Tensor:  # noqa: F811
        if is_cuda(device):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return there(*size, **options)

    monkeypatch.setattr(torch, "empty", exhausted)
    with pytest.raises(
        MemoryError, match=r"n: an output of shape \(4, 3\).*on cuda:0; use stream\(\), or out="
    ):
        sampler.sample(4)
    with pytest.raises(MemoryError, match=r"chunk_size: got 3; accepted: .*a smaller one"):
        next(sampler.stream(4, 3))
    monkeypatch.setattr(torch, "aminmax", lambda *_, **__: exhausted(1, device="cuda"))
    monkeypatch.setattr(torch, "empty", there)
    with pytest.raises(MemoryError, match=r"n: got 4; accepted: .*a smaller n, stream"):
        sampler.sample(4)


def test_a_torch_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    for place in ("cuda", "cuda:0"):
        with pytest.raises(ValueError, match=r"device: got .*the CPU, for this torch is built without CUDA"):
            made_on(place)


def test_no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    pickled = pickle.dumps(made_on())
    monkeypatch.setattr(df.cuda, "_state", lambda: (None, "not built: build it"))
    for call in (made_on, lambda: pickle.loads(pickled)):
        with pytest.raises(ValueError, match=r"device: got .*the CPU, for not built: build it"):
            call()
    with pytest.raises(ValueError, match=r"model: got .*the CPU, for not built"):
        made_on(None, on_device(make_model(**WIDE)))
