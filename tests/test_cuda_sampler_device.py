"""Sampler on a real device, which `make gpu-check` runs; test_cuda_sampler.py emulates one."""

from __future__ import annotations

import pickle
import threading
from typing import Any

import numpy as np
import pytest
import torch
from samplers import N_CLASSES, SCHEDULE, make_model
from torch import Tensor

import diffusion_fast as df
from diffusion_fast import cuda_chain

pytestmark = pytest.mark.cuda

N = 1001
# hidden layers and precision: what runs them is the device's choice, on Hopper every path but the general one
NETS: dict[str, tuple[tuple[int, ...], str]] = {
    "wider": ((264, 136), "float32"),
    "wider bfloat16": ((264, 136), "bfloat16"),
    "wide": ((72,), "float32"),
    "wide bfloat16": ((128, 100), "bfloat16"),
    "wide float16": ((9, 70, 128), "float16"),
    "narrow": ((32, 24), "float32"),
    "narrow float16": ((64,), "float16"),
}
TOLERANCE = {"float16": 2.0**-9, "bfloat16": 2.0**-6}  # in rms, relative to the samples'


def pair(name: str, **options: Any) -> tuple[df.Sampler, df.Sampler]:
    """The CPU's in float32 and the device's"""
    hidden, precision = NETS[name]
    options = {"backend": "native", "steps": 5} | options
    model = make_model(N_CLASSES, hidden=hidden, activation="relu")
    here = df.Sampler(model, SCHEDULE, **options)
    return here, df.Sampler(model, SCHEDULE, device="cuda", precision=precision, **options)


def check(name: str, there: df.Sampler, got: Tensor, want: Tensor) -> None:
    """The general path has the CPU's bits."""
    precision = NETS[name][1]
    if ", general" in there.explain():
        assert torch.equal(got.cpu(), want)
    elif precision == "float32":
        torch.testing.assert_close(got.cpu(), want, rtol=1e-4, atol=1e-4)
    else:
        assert (got.cpu() - want).square().mean() < TOLERANCE[precision] ** 2 * want.square().mean()


def test_the_path_on_hopper() -> None:
    if torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("wgmma is of compute capability 9.0 alone")
    paths = ["wide", "wide", "wgmma", "wgmma", "wgmma", "mma", "mma"]
    for name, path in zip(NETS, paths, strict=True):
        assert f"cuda:0, {path} (" in pair(name)[1].explain()


@pytest.mark.parametrize("name", NETS)
def test_samples_as_on_the_cpu(name: str) -> None:
    here, there = pair(name, guidance_scale=2.0)
    assert "native on cuda:0" in there.explain()
    labels = torch.arange(N) % N_CLASSES
    given = {
        "x_T": torch.randn(N, 3),
        "noise": torch.randn(5, N, 3),
        "guidance_scale": torch.linspace(0, 3, N),
    }
    for call in ({}, {"start": 2**40, "return_trajectory": True}, given):
        want = here.sample(N, seed=2**64 - 3, labels=labels, **call)  # type: ignore[arg-type]
        check(name, there, there.sample(N, seed=2**64 - 3, labels=labels, **call), want)  # type: ignore[arg-type]
        moved = {key: value.cuda() if isinstance(value, Tensor) else value for key, value in call.items()}
        got = there.sample(N, seed=2**64 - 3, labels=labels.cuda(), **moved)
        assert got.is_cuda
        check(name, there, got, want)


@pytest.mark.parametrize("name", NETS)
def test_any_split_and_the_way_out(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    there = pair(name)[1]
    whole = there.sample(N, seed=3, labels=1)
    assert torch.equal(torch.cat(list(there.stream(N, 77, seed=3, labels=1))), whole.cpu())
    for size in (1 << 20, 300, 77):
        monkeypatch.setattr(cuda_chain, "chunk_size", lambda *_, size=size: size)
        out = np.zeros((N, 3), np.float32)
        there.sample(N, seed=3, labels=1, out=out)
        assert np.array_equal(out, whole.cpu().numpy())


def test_streams_and_threads() -> None:
    there = pair("narrow")[1]
    want = there.sample(100_000, seed=1, labels=0)
    results: list[Tensor | None] = [None] * 4

    def draw(i: int) -> None:
        with torch.cuda.stream(torch.cuda.Stream()):
            results[i] = there.sample(100_000, seed=1, labels=0)
            torch.cuda.current_stream().synchronize()

    workers = [threading.Thread(target=draw, args=(i,)) for i in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert all(result is not None and torch.equal(result, want) for result in results)


@pytest.mark.parametrize("name", NETS)
def test_a_replayed_graph_draws_fresh_samples(name: str) -> None:
    there = pair(name)[1]
    seed, out = torch.tensor([1], device="cuda"), torch.empty((N, 3), device="cuda")
    there.sample(N, seed=seed, labels=1, out=out)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        there.sample(N, seed=seed, labels=1, out=out)
    for number in (1, 7, -3):
        seed.fill_(number)
        graph.replay()
        assert torch.equal(out, there.sample(N, seed=number % 2**64, labels=1))


def test_a_module_on_the_device() -> None:
    model = make_model().cuda()
    here = df.Sampler(make_model(), SCHEDULE, steps=5).sample(N)
    for backend in ("native", "torch"):
        there = df.Sampler(model, SCHEDULE, steps=5, backend=backend)
        assert there.device.type == "cuda" and next(model.parameters()).is_cuda
        torch.testing.assert_close(there.sample(N).cpu(), here, rtol=1e-3, atol=1e-3)
        again = pickle.loads(pickle.dumps(there))
        assert torch.equal(again.sample(N), there.sample(N))


def test_running_out_of_memory() -> None:
    there = pair("wide")[1]
    with pytest.raises(MemoryError, match=r"n: .*stream"):
        there.sample(1 << 40, labels=0)
    assert there.sample(3, labels=0).shape == (3, 3)


def test_two_devices() -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    model = make_model()
    first, second = (df.Sampler(model, SCHEDULE, steps=5, device=f"cuda:{i}") for i in range(2))
    want = first.sample(N)
    got = second.sample(N)  # the current device is the first
    assert got.device.index == 1 and torch.cuda.current_device() == 0
    torch.testing.assert_close(got.cpu(), want.cpu())
    with pytest.raises(ValueError, match=r"x_T: got .*cuda:0.*accepted: .*cuda:1"):
        second.sample(N, x_T=want)
