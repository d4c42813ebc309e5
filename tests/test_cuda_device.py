"""The step and the noise on a real device, which `make gpu-check` runs; test_cuda_step.py emulates one."""

from __future__ import annotations

import itertools
import math
from typing import Any

import pytest
import torch
from test_ops import DTYPES, FULL, made_row
from torch import Tensor

import diffusion_fast as df
from diffusion_fast.ops import reverse_step

pytestmark = pytest.mark.cuda

PLAIN = made_row(eval=True, a=0.7, e=-0.2, s=0.3)
EVERY = made_row(eval=True, clip=0.8, push=True, **FULL)
SHAPES = [(1, 1), (1001, 1), (999, 2), (501, 3), (65, 4), (33, 5), (17, 63), (9, 3, 16, 16), (3, 4100)]


def there(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [there(v) for v in value]
    return value.cuda() if isinstance(value, Tensor) else value


def same(a: Tensor, b: Tensor) -> bool:
    """To the bit; of a NaN only that it is one."""
    return torch.equal(torch.nan_to_num(a.cpu(), 123.0), torch.nan_to_num(b, 123.0))


def check(x: Tensor, F: Tensor | None, row: Any, history: Any = (), **options: Any) -> None:
    """Both devices on copies."""
    moved, kept = there([h.clone() for h in history]), [h.clone() for h in history]
    arguments = {name: there(value) for name, value in options.items()}
    got = reverse_step(x.cuda(), there(F), row, history=moved, **arguments)
    assert same(got, reverse_step(x, F, row, history=kept, **options))
    assert all(same(ours, theirs) for ours, theirs in zip(moved, kept, strict=True))


def values(count: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> list[Tensor]:
    return [torch.randn(shape).to(dtype) for _ in range(count)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_sizes_as_on_the_cpu(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    x, F, u, h1, h2, h3 = values(6, shape, dtype)
    scales = torch.linspace(0, 4, shape[0])
    for step in (0, 3, 6):
        check(x, F, PLAIN, seed=2**64 - 5, step=step, start=2**32 - 2)
        check(x, F, EVERY, [h1, h2, h3], seed=3, step=step, uncond_output=u, guidance_scale=scales)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_combination_of_options(dtype: torch.dtype) -> None:
    cases = itertools.product((False, True), (math.inf, 0.5), (False, True), range(4), range(3), range(3))
    for push, clip, learned, n_history, guidance, source in cases:
        x, F, u, z, v, *history = values(5 + n_history, (19, 8), dtype)
        names = ("p_x", "p_F", "a", "b", "e", "s")[: 5 if source == 2 else 6]
        used = {name: FULL[name] for name in (*names, *(f"c{k + 1}" for k in range(n_history)))}
        options: dict[str, Any] = [{"seed": 5, "step": 2, "start": 9}, {"noise": z}, {}][source]
        if learned:
            options["log_variance"] = v
        if guidance:
            scale = 2.5 if guidance == 1 else torch.linspace(0, 4, 19)
            options |= {"uncond_output": u, "guidance_scale": scale}
        check(x, F, made_row(eval=True, **used, clip=clip, push=push), history, **options)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [2, 37, 512, 600, 5000])
def test_statistics_as_on_the_cpu(dim: int, dtype: torch.dtype) -> None:
    x, F, u = values(3, (21, dim), dtype)
    moments = {"p_x": 1.5, "p_F": -0.5, "a": 0.5, "b": 0.5, "s": 0.3}
    for rescale, quantile in ((0.7, 0.0), (0.0, 0.9), (0.7, 0.37)):
        row = made_row(eval=True, rescale=rescale, quantile=quantile, clip=2.0, **moments)
        check(x, F, row, seed=4, uncond_output=u, guidance_scale=torch.linspace(1, 4, 21))


@pytest.mark.parametrize("dim", [1, 2, 3, 4, 5, 64, 65])
def test_noise_to_the_bit(dim: int) -> None:
    for step, purpose in ((0, "step"), (3, "step"), (7, "initial"), (7, "forward")):
        how: dict[str, Any] = {"seed": 2**64 - 5, "step": step, "purpose": purpose, "start": 2**32 - 5}
        assert same(df.noise.normal(10_001, dim, device="cuda", **how), df.noise.normal(10_001, dim, **how))


def test_a_sample_does_not_depend_on_the_others() -> None:
    x, F = (value.cuda() for value in values(2, (41, 3)))
    whole = reverse_step(x, F, PLAIN, seed=2, step=3, start=100)
    cuts = [0, 1, 2, 17, 18, 41]
    parts = [
        reverse_step(x[i:j], F[i:j], PLAIN, seed=2, step=3, start=100 + i)
        for i, j in itertools.pairwise(cuts)
    ]
    assert torch.equal(torch.cat(parts), whole)


def test_a_replayed_graph_draws_fresh_noise() -> None:
    df.cuda.prepare()
    x, F = (value.cuda() for value in values(2, (500, 8)))
    seed, step, out = torch.tensor([1], device="cuda"), torch.tensor([4], device="cuda"), torch.empty_like(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        reverse_step(x, F, PLAIN, seed=seed, step=step, out=out)
        step.add_(1)
    results = []
    for number, position in ((1, 4), (1, 5), (-3, 6)):
        seed.fill_(number)
        graph.replay()
        want = reverse_step(x, F, PLAIN, seed=number % 2**64, step=position)
        assert torch.equal(out, want)
        results.append(out.clone())
    assert not torch.equal(results[0], results[1])


def test_the_current_stream_is_used_and_nothing_waits() -> None:
    x, F = (value.cuda() for value in values(2, (1000, 8)))
    want = reverse_step(x, F, PLAIN, seed=1)
    stream, late = torch.cuda.Stream(), torch.zeros_like(x)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        with torch.cuda.stream(stream):
            torch.cuda._sleep(200_000_000)
            late.copy_(x)
            got = reverse_step(late, F, PLAIN, seed=1)
            done = stream.record_event()
        assert not done.query()  # the call came back while the stream was still asleep
    finally:
        torch.cuda.set_sync_debug_mode("default")
    done.synchronize()
    assert torch.equal(got, want)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one CUDA device")
def test_the_tensors_device_is_used_and_the_current_one_kept() -> None:
    x, F = values(2, (100, 3))
    want = reverse_step(x, F, PLAIN, seed=1)
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        assert same(reverse_step(x.to(device), F.to(device), PLAIN, seed=1), want)
        assert torch.cuda.current_device() == 0
    with pytest.raises(ValueError, match=r"model_output: got .*cuda:1"):
        reverse_step(x.cuda(0), F.to("cuda:1"), PLAIN, seed=1)


def test_running_out_of_memory_is_an_error() -> None:
    n = torch.cuda.get_device_properties(0).total_memory // 4
    with pytest.raises(torch.OutOfMemoryError):
        df.noise.normal(n, 4, seed=0, step=0, device="cuda")
    assert df.noise.normal(4, 4, seed=0, step=0, device="cuda").isfinite().all()


def test_inside_a_compiled_function() -> None:
    x, F = (value.cuda() for value in values(2, (64, 8)))
    step = torch.compile(lambda a, b: reverse_step(a, b, PLAIN, seed=1, step=2), fullgraph=True)
    assert torch.equal(step(x, F), reverse_step(x, F, PLAIN, seed=1, step=2))
