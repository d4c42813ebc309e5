"""Sampler: determinism, and what a call takes and gives."""

from __future__ import annotations

import itertools
import pickle
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from samplers import N_CLASSES, SCHEDULE, T, WithCumsum, make_model
from torch import Tensor, nn

import diffusion_fast as df
from diffusion_fast import _checks
from diffusion_fast.torch_chain import MODULE_CHUNK


@pytest.fixture(autouse=True)
def one_torch_thread() -> None:
    """Torch's products here are too small for two threads; the kernels' threads are asked for by argument."""
    torch.set_num_threads(1)


# ---- determinism


@pytest.mark.parametrize("dim", [1, 2, 3, 20])
def test_any_split_has_the_same_bits(dim: int) -> None:
    sampler = df.Sampler(make_model(dim=dim), SCHEDULE, backend="native", steps=10)
    whole = sampler.sample(300, seed=7, start=1000)
    for cuts in ([0, 1, 2, 5, 16, 33, 100, 299, 300], list(range(0, 301, 60))):
        parts = [sampler.sample(j - i, seed=7, start=1000 + i) for i, j in itertools.pairwise(cuts)]
        assert torch.equal(torch.cat(parts), whole)
    for size in (1, 7, 64, 299, 1 << 18):
        chunks = list(sampler.stream(300, size, seed=7, start=1000))
        assert max(map(len, chunks)) <= size and torch.equal(torch.cat(chunks), whole)
    for threads in (1, 2, 3, 16):
        assert torch.equal(sampler.sample(300, seed=7, start=1000, threads=threads), whole)


def test_the_environment_sets_the_threads(sampler: df.Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sampler.sample(100)
    monkeypatch.setenv("DIFFUSION_FAST_THREADS", "3")
    assert torch.equal(sampler.sample(100), whole)
    monkeypatch.setenv("DIFFUSION_FAST_THREADS", "many")
    with pytest.raises(ValueError, match=r"DIFFUSION_FAST_THREADS: got 'many'.*accepted: an integer"):
        sampler.sample(100)


def test_seed_and_start_name_the_samples(sampler: df.Sampler) -> None:
    draws = [
        sampler.sample(4, seed=seed, start=start) for seed in (0, 1, 2**32, 2**64 - 1) for start in (0, 2**32)
    ]
    draws.append(sampler.sample(4, start=2**48 - 4))
    rows = torch.cat(draws)
    assert len(rows.unique(dim=0)) == len(rows) == 36  # all different
    assert torch.equal(sampler.sample(4), draws[0])


def test_a_generator_gives_one_seed_per_call(sampler: df.Sampler) -> None:
    generators = [torch.Generator().manual_seed(3) for _ in range(3)]
    first = [sampler.sample(5, seed=g) for g in generators[:2]]
    assert torch.equal(*first) and not torch.equal(first[0], sampler.sample(5, seed=generators[0]))
    streamed = torch.cat(list(sampler.stream(5, 2, seed=generators[2])))
    assert torch.equal(streamed, first[0])
    seeds = {_checks.seed("seed", generators[0]) for _ in range(20)}
    assert len(seeds) == len({s >> 32 for s in seeds}) == len({s % 2**32 for s in seeds}) == 20  # all 64 bits


def test_stream_slices_labels(conditional: df.Sampler) -> None:
    labels = torch.arange(50) % 5
    whole = conditional.sample(50, seed=1, labels=labels)
    assert torch.equal(torch.cat(list(conditional.stream(50, 7, seed=1, labels=labels))), whole)


@pytest.mark.parametrize("labels", [1, torch.arange(20) % 5], ids=["an int", "a tensor"])
def test_stream_with_guidance(labels: Any) -> None:
    guided = df.Sampler(make_model(N_CLASSES), SCHEDULE, backend="native", steps=4, guidance_scale=2.0)
    assert torch.equal(torch.cat(list(guided.stream(20, 7, labels=labels))), guided.sample(20, labels=labels))


class WithContext(nn.Module):
    def forward(self, x: Tensor, t: Tensor, y: Tensor, context: Tensor) -> Tensor:
        return x * context + y[:, None]


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_stream_does_not_read_what_the_caller_writes_later(backend: str) -> None:
    sampler = df.Sampler(
        WithContext().eval(),
        SCHEDULE,
        shape=3,
        steps=4,
        n_classes=3,
        context_shape=3,
        guidance_scale=2.0,
        backend=backend,
    )
    given = {
        "labels": torch.arange(20) % 3,
        "context": torch.linspace(0.1, 1, 60).view(20, 3),
        "guidance_scale": torch.linspace(1, 3, 20),
        "fixed_mask": torch.tensor([True, False, False]),
        "fixed_values": torch.linspace(-1, 1, 60).view(20, 3),
    }
    whole = sampler.sample(20, **given)
    for name, buffer in given.items():
        before, chunks = buffer.clone(), []
        for chunk in sampler.stream(20, 7, **given):
            chunks.append(chunk)
            buffer.fill_(0)
        buffer.copy_(before)
        assert torch.equal(torch.cat(chunks), whole), name


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["read-only", "another byte order", "strides", "float64"])
def test_arrays_of_any_kind(kind: str) -> None:
    def as_array(tensor: Tensor) -> np.ndarray:
        array = tensor.numpy()
        if kind == "another byte order":
            return array.astype(array.dtype.newbyteorder())
        if kind == "strides":
            return array[..., ::-1].copy()[..., ::-1]
        if kind == "float64" and array.dtype != bool:
            return array.astype(np.float64)
        array.flags.writeable = False
        return array

    model = make_model(N_CLASSES)
    sampler = df.Sampler(model, SCHEDULE, steps=3, guidance_scale=2.0)
    given = {
        "guidance_scale": torch.linspace(1, 3, 6),
        "fixed_mask": torch.tensor([True, False, False]),
        "fixed_values": torch.linspace(-1, 1, 18).view(6, 3),
    }
    arrays = {name: as_array(value.clone()) for name, value in given.items()}
    assert torch.equal(sampler.sample(6, labels=1, **arrays), sampler.sample(6, labels=1, **given))


def test_one_sampler_in_two_threads(conditional: df.Sampler) -> None:
    jobs = [(200 + 13 * i, i % 3, 50 * i, i % 5) for i in range(24)]

    def draw(job: tuple[int, int, int, int]) -> Tensor:
        n, seed, start, label = job
        return conditional.sample(n, seed=seed, start=start, labels=label)

    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(draw, jobs))
    assert all(torch.equal(got, draw(job)) for got, job in zip(together, jobs, strict=True))


@pytest.mark.parametrize("guidance", [None, 2.0])
def test_pickle(guidance: float | None) -> None:
    standardiser = df.Standardiser([1.0, -2.0, 0.5], [2.0, 0.1, 1.0])
    sampler = df.Sampler(
        make_model(N_CLASSES), SCHEDULE, guidance_scale=guidance, clip=2.0, standardiser=standardiser
    )
    again = pickle.loads(pickle.dumps(sampler))
    assert torch.equal(again.sample(33, seed=2, labels=1), sampler.sample(33, seed=2, labels=1))
    assert again.explain() == sampler.explain() and again.plan == sampler.plan


# ---- what a call takes and gives


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_start_values_and_noise_of_ones_own(backend: str, dim: int) -> None:
    """Given what the stream would have drawn, the samples are those of the stream, to the bit."""
    sampler = df.Sampler(make_model(dim=dim), SCHEDULE, backend=backend, steps=9)
    want = sampler.sample(21, seed=5, start=3, return_trajectory=True)
    x_T = df.noise.normal(21, dim, seed=5, step=0, purpose="initial", start=3)
    noise = torch.stack([df.noise.normal(21, dim, seed=5, step=i, start=3) for i in range(9)])
    assert torch.equal(want[0], x_T)
    for given in ({"x_T": x_T}, {"noise": noise}, {"x_T": x_T, "noise": noise}):
        assert torch.equal(sampler.sample(21, seed=5, start=3, return_trajectory=True, **given), want)
    assert torch.equal(sampler.sample(21, seed=8, x_T=x_T, noise=noise), want[-1])
    strided = torch.stack([x_T, x_T], dim=-1)[..., 0]
    assert not strided.is_contiguous() and torch.equal(
        sampler.sample(21, seed=5, start=3, x_T=strided), want[-1]
    )


def test_the_trajectory_is_the_chain_row_by_row(sampler: df.Sampler) -> None:
    path = sampler.sample(10, seed=1, return_trajectory=True)
    assert path.shape == (T + 1, 10, 3) and torch.equal(path[-1], sampler.sample(10, seed=1))
    with torch.no_grad():
        for i, row in enumerate(sampler.table):
            F = sampler.model(path[i], torch.full((10,), int(row.timestep)))
            want = df.ops.reverse_step(path[i], F, row, seed=1, step=i)
            torch.testing.assert_close(path[i + 1], want, rtol=1e-5, atol=1e-6)


def test_torch_takes_large_batches_in_parts() -> None:
    """More samples than one call of the module takes: each keeps its own noise and label."""
    model, n = make_model(N_CLASSES, hidden=(8,)), 2 * MODULE_CHUNK + 40
    labels, x_T = torch.arange(n) % 5, torch.randn(n, 3)
    want, got = (
        df.Sampler(model, SCHEDULE, backend=backend, steps=3).sample(n, labels=labels, x_T=x_T, start=9)
        for backend in ("native", "torch")
    )
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("trajectory", [False, True])
def test_out(backend: str, trajectory: bool) -> None:
    sampler = df.Sampler(make_model(), SCHEDULE, backend=backend, steps=5)
    want = sampler.sample(19, seed=3, return_trajectory=trajectory)
    memory = torch.full((want.numel() + 8,), 7.0)
    inside = memory[4:-4].view(want.shape)
    assert sampler.sample(19, seed=3, return_trajectory=trajectory, out=inside) is inside
    assert torch.equal(inside, want) and torch.equal(memory[:4], memory[-4:]) and memory[-1] == 7
    array = np.zeros(want.shape, np.float32)
    got = sampler.sample(19, seed=3, return_trajectory=trajectory, out=array)
    assert np.array_equal(array, want.numpy()) and got.data_ptr() == array.ctypes.data


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_no_samples(backend: str) -> None:
    sampler = df.Sampler(make_model(N_CLASSES), SCHEDULE, backend=backend, steps=5)
    assert sampler.sample(0).shape == (0, 3)
    assert sampler.sample(0, labels=torch.empty(0, dtype=torch.int64), start=2**48).shape == (0, 3)
    assert sampler.sample(0, return_trajectory=True).shape == (6, 0, 3)
    assert list(sampler.stream(0)) == []


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_the_standardiser_is_undone(backend: str) -> None:
    standardiser = df.Standardiser([10.0, -2.0, 0.5], [2.0, 0.1, 1.0])
    plain = df.Sampler(make_model(), SCHEDULE, backend=backend, steps=5)
    sampler = df.Sampler(make_model(), SCHEDULE, backend=backend, steps=5, standardiser=standardiser)
    want = standardiser.inverse(plain.sample(10_000))
    assert torch.equal(sampler.sample(10_000), want)
    out = np.empty((10_000, 3), np.float32)
    sampler.sample(10_000, out=out)
    assert np.array_equal(out, want.numpy())
    assert torch.equal(torch.cat(list(sampler.stream(10_000, 3333))), want) or backend == "torch"
    assert torch.equal(sampler.sample(8, return_trajectory=True)[-1], sampler.sample(8))


def test_sample_splits_the_options() -> None:
    model = make_model(N_CLASSES)
    plan_time: dict[str, Any] = {
        "solver": "ddim",
        "steps": 6,
        "eta": 0.5,
        "backend": "native",
        "guidance_weight": 1.0,
    }
    call_time: dict[str, Any] = {"seed": 3, "start": 5, "labels": 2, "return_trajectory": True, "threads": 1}
    got = df.sample(model, SCHEDULE, 12, **plan_time, **call_time)
    assert torch.equal(got, df.Sampler(model, SCHEDULE, **plan_time).sample(12, **call_time))
    out = torch.empty(12, 3)
    assert df.sample(model, SCHEDULE, 12, labels=0, out=out, steps=4) is out


@pytest.mark.parametrize("backend", ["native", "auto", "torch"])
def test_progress(backend: str, capfd: pytest.CaptureFixture[str]) -> None:
    model = make_model() if backend != "auto" else WithCumsum().eval()
    sampler = df.Sampler(model, SCHEDULE, backend=backend, shape=3 if backend != "auto" else 2, steps=4)
    quiet = sampler.sample(20_000)
    assert capfd.readouterr().err == ""
    assert torch.equal(sampler.sample(20_000, progress=True), quiet)
    shown = capfd.readouterr().err
    assert "100%" in shown and "20.0k" in shown and "sample" in shown
