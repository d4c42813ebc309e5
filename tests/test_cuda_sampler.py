"""Sampler on a CUDA device that cuda_torch.py stands in for: its samples, their way to the CPU, itself."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest
import torch
from conditional_nets import FilmPolicy, LateContext, made
from cuda_torch import (  # noqa: F401  (fixtures)
    POLICY_SCHEDULE,
    WIDE,
    N,
    check_same,
    make_model,
    on_device,
    pair,
    plain,
    tensor_cores,
    torch_there,
)
from samplers import N_CLASSES, SCHEDULE, WithCumsum
from test_cuda_ops import DEVICE, OnAnother, OnDevice, device, to  # noqa: F401  (device: for every test)
from torch import Tensor

import diffusion_fast as df
from diffusion_fast import cuda_chain

# ---- the samples of the CPU


@pytest.mark.parametrize("trajectory", [False, True])
def test_the_general_path_has_the_cpus_bits(trajectory: bool) -> None:
    samplers = pair(make_model(**WIDE))
    assert "general" in samplers[1].explain()
    check_same(samplers, seed=2**64 - 5, start=2**40, return_trajectory=trajectory)
    check_same(samplers, x_T=torch.randn(N, 3), noise=torch.randn(4, N, 3), return_trajectory=trajectory)


@pytest.mark.usefixtures("tensor_cores")
def test_tensor_cores_agree() -> None:
    cpu, there = pair(make_model(N_CLASSES), guidance_scale=2.0)
    assert "mma" in there.explain() and "cuda:0" in there.explain()
    labels = torch.arange(N) % (N_CLASSES + 1)
    want = cpu.sample(N, labels=labels, seed=5)
    got = plain(there.sample(N, labels=labels, seed=5))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    for precision in ("bfloat16", "float16"):
        low = df.Sampler(
            there.model, SCHEDULE, device="cuda", precision=precision, steps=4, guidance_scale=2.0
        )
        assert precision in low.explain()
        rough = plain(low.sample(N, labels=labels, seed=5))
        assert not torch.equal(rough, got)
        torch.testing.assert_close(rough, want, rtol=0.1, atol=0.1)


def test_labels_and_guidance() -> None:
    samplers = pair(make_model(N_CLASSES, **WIDE), guidance_scale=2.5, guidance_rescale=0.5)
    labels = torch.arange(N) % (N_CLASSES + 1)
    check_same(samplers, labels=labels)
    check_same(samplers, labels=3, guidance_scale=torch.linspace(0, 3, N))
    check_same(pair(make_model(N_CLASSES, **WIDE)))  # all of the null class


def test_contexts() -> None:
    one = pair(
        made(LateContext), POLICY_SCHEDULE, shape=9, context_shape=5, null_context=0.0, guidance_scale=2.0
    )
    check_same(one, context=torch.randn(N, 5))
    check_same(one, context=torch.randn(5))
    shapes = {"obs": (2, 2), "goal": (3,)}
    named = pair(
        made(FilmPolicy), POLICY_SCHEDULE, shape=3, n_classes=4, null_class=False, context_shape=shapes
    )
    context = {"obs": torch.randn(N, 2, 2), "goal": torch.randn(3)}
    check_same(named, labels=torch.arange(N) % 4, context=context)
    mixed = {"obs": to(context["obs"]), "goal": context["goal"]}
    there = plain(named[1].sample(N, labels=1, context=mixed))
    assert torch.equal(there, named[0].sample(N, labels=1, context=context))


@pytest.mark.parametrize("clean", [False, True])
def test_fixed_coordinates_and_the_standardiser(clean: bool) -> None:
    scale = df.Standardiser([10.0, -2.0, 0.5], [2.0, 0.1, 1.0])
    samplers = pair(make_model(**WIDE), standardiser=scale)
    mask = torch.tensor([True, False, True])
    check_same(samplers, fixed_mask=mask, fixed_values=torch.randn(N, 3) + 9, fixed_clean=clean)
    check_same(samplers, fixed_mask=mask, fixed_values=torch.ones(3), return_trajectory=True)


def test_a_langevin_table() -> None:
    schedule = df.SigmaSchedule.exponential(3, 0.1, 2.0)
    how: dict[str, Any] = {"solver": "annealed_langevin", "steps_per_level": 2, "steps": None}
    check_same(pair(make_model(**WIDE), schedule, prediction_type="score", **how))


@pytest.mark.parametrize("hidden", [(72,), (32, 24)], ids=["wide", "narrow"])
@pytest.mark.usefixtures("tensor_cores")
def test_any_split_has_the_same_bits(hidden: tuple[int, ...]) -> None:
    there = df.Sampler(make_model(N_CLASSES, hidden=hidden), SCHEDULE, steps=3, device="cuda")
    y = torch.arange(N) % 5
    whole = plain(there.sample(N, seed=7, start=1000, labels=y))
    parts = [plain(there.sample(1, seed=7, start=1000 + i, labels=y[i : i + 1])) for i in (0, 33, N - 1)]
    assert torch.equal(torch.cat(parts), whole[[0, 33, N - 1]])
    assert torch.equal(torch.cat(list(there.stream(N, 33, seed=7, start=1000, labels=y))), whole)


# ---- samples that leave the device


@pytest.mark.parametrize("size", [1, 30, 35, 69, 70])
def test_chunks_on_their_way_to_the_cpu(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_chain, "chunk_size", lambda *_: size)
    cpu, there = pair(make_model(N_CLASSES, **WIDE))
    n = 6 if size == 1 else N
    given: dict[str, Any] = {
        "labels": torch.arange(n) % 5,
        "x_T": torch.randn(n, 3),
        "noise": torch.randn(4, n, 3),
    }
    for trajectory in (False, True):
        want = cpu.sample(n, return_trajectory=trajectory, **given)
        for out in (torch.zeros_like(want), np.zeros(want.shape, np.float32)):
            got = there.sample(n, return_trajectory=trajectory, out=out, **given)
            assert type(got) is Tensor and torch.equal(got, want)
            assert np.array_equal(np.asarray(out), want.numpy())


@pytest.mark.parametrize("size", [1, 30, 35, 69, 70, 100])
def test_stream(size: int, capfd: pytest.CaptureFixture[str]) -> None:
    """Chunks are copied out while the next ones are drawn, each to memory of its own."""
    cpu, there = pair(make_model(N_CLASSES, **WIDE))
    n = 6 if size == 1 else N
    for trajectory in (False, True):
        call: dict[str, Any] = {"labels": torch.arange(n) % 5, "return_trajectory": trajectory, "seed": 3}
        chunks = list(there.stream(n, size, **call))
        assert all(type(chunk) is Tensor and chunk.shape[trajectory] <= size for chunk in chunks)
        assert torch.equal(torch.cat(chunks, dim=int(trajectory)), cpu.sample(n, **call))
    assert list(there.stream(0, size)) == []
    assert torch.equal(torch.cat(list(there.stream(n, size, progress=True))), cpu.sample(n))
    assert "100%" in capfd.readouterr().err


def test_a_stream_of_samples_that_are_not_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    there = pair(make_model(**WIDE))[1]
    run = cuda_chain.CudaChain.run

    def sample_65_is_not(self: Any, call: Any, target: Tensor) -> Any:
        return run(self, call, target) | to(torch.arange(call.start, call.start + call.n) == 65)

    monkeypatch.setattr(cuda_chain.CudaChain, "run", sample_65_is_not)
    stream = there.stream(N, 40, start=5)
    with pytest.warns(RuntimeWarning, match="1 of 30 samples hold NaN or infinity: sample 65 ") as told:
        assert len(list(stream)) == 2
    assert told[0].filename == __file__


def test_a_stream_notices_other_weights() -> None:
    there = pair(make_model(hidden=(73,)), backend="native")[1]  # a model that no other test shares
    stream = there.stream(N, 20)
    next(stream)
    with torch.no_grad():
        next(there.model.parameters()).add_(1)
    with pytest.raises(RuntimeError, match="weights have changed"):
        next(stream)


def test_chunk_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def sizes(n: int, sample_bytes: int) -> int:
        return cuda_chain.chunk_size(n, sample_bytes, DEVICE)

    assert sizes(10, 12) >= 10 and sizes(0, 0) >= 1
    assert sizes(4_000_000, 12) == 1_000_000
    assert sizes(1 << 40, 16) == cuda_chain.PINNED_BYTES // 16
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1 << 20, 1 << 30))
    assert sizes(1 << 20, 16) == (1 << 20) // 8 // 16
    assert sizes(1 << 20, 1 << 30) == 1


def test_out_on_the_device_and_progress(capfd: pytest.CaptureFixture[str]) -> None:
    there = pair(make_model(**WIDE))[1]
    want = there.sample(N)
    out = to(torch.zeros(N, 3))
    assert there.sample(N, out=out) is out and torch.equal(plain(out), plain(want))
    for target in (None, np.zeros((N, 3), np.float32)):
        there.sample(N, out=target, progress=True)
        assert "100%" in capfd.readouterr().err
    assert there.sample(0).shape == (0, 3) and there.sample(0, out=torch.empty(0, 3)).shape == (0, 3)


def test_samples_that_are_not_finite_are_named() -> None:
    there = pair(make_model(**WIDE))[1]
    x_T = torch.randn(N, 3)
    x_T[[4, 60]] = 3e38
    for out in (None, torch.empty(N, 3)):
        with pytest.warns(
            RuntimeWarning, match="2 of 70 samples hold NaN or infinity: sample 9, 65 "
        ) as told:
            there.sample(N, start=5, x_T=x_T, out=out)
        assert told[0].filename == __file__


# ---- the module, its weights, the sampler itself


def test_the_device_of_the_weights() -> None:
    model = make_model(**WIDE)
    want = df.Sampler(model, SCHEDULE, steps=4).sample(N)
    there = df.Sampler(on_device(make_model(**WIDE)), SCHEDULE, steps=4, backend="native")
    assert there.device == DEVICE and torch.equal(plain(there.sample(N)), want)
    assert isinstance(next(iter(there.model.parameters())), OnDevice)  # the module is as it was
    here = df.Sampler(there.model, SCHEDULE, steps=4, device="cpu")
    assert torch.equal(here.sample(N), want)
    with torch.no_grad():
        next(iter(there.model.parameters())).add_(1)
    for sampler in (there, here):
        with pytest.raises(RuntimeError, match="weights have changed"):
            sampler.sample(N)


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_the_module_in_torch(backend: str) -> None:
    model = WithCumsum().eval()
    here = df.Sampler(model, SCHEDULE, shape=2, steps=4, backend=backend)
    for device in ("cuda", "cuda:0"):  # noqa: F402
        with pytest.raises(ValueError, match=r"model: got 'one on cpu'.*model\.to\('cuda:0'\)"):
            df.Sampler(model, SCHEDULE, shape=2, backend=backend, device=device)
    there = df.Sampler(on_device(model), SCHEDULE, shape=2, steps=4, backend=backend)
    assert ", torch" in there.explain()
    mask = torch.tensor([True, False])
    for call in ({}, {"fixed_mask": mask, "fixed_values": torch.ones(2)}, {"return_trajectory": True}):
        for out in (None, torch.zeros(5 * N * 2).view(5, N, 2) if "return_trajectory" in call else None):
            got, want = there.sample(N, seed=3, out=out, **call), here.sample(N, seed=3, **call)
            torch.testing.assert_close(plain(got), want)


def test_a_guided_module_in_torch() -> None:
    model, how = make_model(N_CLASSES), {"backend": "torch", "steps": 3, "guidance_scale": 2.0}
    here = df.Sampler(model, SCHEDULE, **how)  # type: ignore[arg-type]
    there = df.Sampler(on_device(make_model(N_CLASSES)), SCHEDULE, **how)  # type: ignore[arg-type]
    labels = torch.arange(N) % N_CLASSES
    scales = torch.linspace(0, 3, N)
    for call in ({"labels": labels}, {"labels": 2, "guidance_scale": scales}):
        torch.testing.assert_close(plain(there.sample(N, **call)), here.sample(N, **call))  # type: ignore[arg-type]


def test_pickle() -> None:
    cpu, there = pair(make_model(**WIDE))
    again = pickle.loads(pickle.dumps(there))
    assert again.device == DEVICE and again.explain() == there.explain()
    assert torch.equal(plain(again.sample(N)), cpu.sample(N))


def test_a_seed_in_device_memory() -> None:
    there = pair(make_model(**WIDE))[1]
    seed = torch.tensor([-3])
    want = plain(there.sample(N, seed=2**64 - 3))
    assert torch.equal(plain(there.sample(N, seed=to(seed))), want)
    for bad in (seed, to(seed, OnAnother), to(torch.ones(1)), to(torch.tensor([1, 2]))):
        with pytest.raises(ValueError, match=r"seed: got .*int64 tensor of one element on cuda:0"):
            there.sample(N, seed=bad)
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    first, second = (plain(there.sample(N, seed=g)) for g in generators)
    assert torch.equal(first, second)
