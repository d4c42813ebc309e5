"""ops.reverse_step against its twin in plain torch, the noise stream, and the chain."""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import diffusion_fast as df
from diffusion_fast.ops import reverse_step
from diffusion_fast.reference import reverse_step_ref
from diffusion_fast.solvers.table import COEFFICIENTS, TERM_BITS, StepRow

SCHEDULE = df.NoiseSchedule.linear(n_steps=10, beta_start=0.01, beta_end=0.3)
ROW = df.solvers.ddpm(SCHEDULE, variance="beta")[4]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
SHAPES = [(1,), (2,), (3,), (4,), (5,), (7,), (63,), (64,), (65,), (1024,), (3, 28, 28)]
LARGE_SEED = 0xFEDC_BA98_7654_3210


def made_row(**values: Any) -> StepRow:
    """A row of all zeros but `values`, with the terms that they use."""
    neutral = {"c_in": 1.0, "clip": math.inf}
    numbers = {name: float(np.float32(values.pop(name, neutral.get(name, 0.0)))) for name in COEFFICIENTS}
    used = [name for name, value in numbers.items() if value != neutral.get(name, 0.0)]
    used += ["push"] if values.get("push") else []
    terms = sum(TERM_BITS[name] for name in used)
    return dataclasses.replace(ROW, **{**numbers, "push": False, "terms": terms, **values})


FULL = {"p_x": 0.9, "p_F": -0.4, "a": 0.7, "b": 0.3, "e": -0.2, "c1": 0.15, "c2": -0.1, "c3": 0.05, "s": 0.3}


def like(x: Tensor, n: int) -> list[Tensor]:
    return [torch.randn(x.shape).to(x.dtype) for _ in range(n)]


def assert_close_as_torch(got: Tensor, torch_twin: Tensor, exact: Tensor) -> None:
    """|kernel - float64| <= 2 |torch - float64| + 4 ulp of the rms; by the largest error and by the rms."""
    assert got.dtype == torch_twin.dtype and got.shape == exact.shape
    rms = exact.square().mean().sqrt().item()
    ulp = torch.finfo(got.dtype).eps * 2.0 ** math.floor(math.log2(max(rms, 1e-30)))
    ours, theirs = (value.double() - exact for value in (got, torch_twin))
    for measure in (lambda e: e.abs().max(), lambda e: e.square().mean().sqrt()):
        assert measure(ours) <= 2 * measure(theirs) + 4 * ulp


def check(
    x: Tensor, F: Tensor | None, row: StepRow, history: list[Tensor] | None = None, **options: Any
) -> Tensor:
    """Runs kernel, twin and float64 twin on copies; compares the results and the shifted histories."""
    wide = {
        key: value.double() if isinstance(value, Tensor) and key != "guidance_scale" else value
        for key, value in options.items()
    }
    pasts = [[h.to(dtype, copy=True) for h in history or []] for dtype in (x.dtype, x.dtype, torch.float64)]
    got = reverse_step(x, F, row, history=pasts[0], **options)
    twin = reverse_step_ref(x, F, row, history=pasts[1], **options)
    exact = reverse_step_ref(x.double(), None if F is None else F.double(), row, history=pasts[2], **wide)
    assert_close_as_torch(got, twin, exact)
    for ours, theirs, true in zip(*pasts, strict=True):
        assert_close_as_torch(ours, theirs, true)
    return got


# ---- against the twin


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_follows_the_twin_in_every_size(shape: tuple[int, ...], dtype: torch.dtype) -> None:
    for n in (1, 2, 5, 33) if math.prod(shape) < 1000 else (1, 3):
        x = torch.randn(n, *shape).to(dtype)
        F, *history = like(x, 4)
        check(x, F, ROW, seed=LARGE_SEED, step=7, start=11)
        check(x, F, made_row(**FULL, clip=0.8, push=True), history, seed=3, step=6)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_writes_the_prediction(dtype: torch.dtype) -> None:
    """m beside x, whatever else the row does with m."""
    for n, shape in itertools.product((1, 7, 600), ((1,), (3,), (17,))):
        x = torch.randn(n, *shape).to(dtype)
        F, h1 = like(x, 2)
        for row in (
            made_row(p_x=0.5, p_F=-1.25, a=0.9, e=0.1, s=0.3),
            made_row(p_x=0.5, p_F=-1.25, a=0.9, b=0.2, c1=0.4, s=0.3, clip=0.8, push=True),
        ):
            made, exact = torch.empty_like(x), torch.empty_like(x, dtype=torch.float64)
            alone = reverse_step(x, F, row, seed=1, history=[h1.clone()])
            past = [h1.clone()]
            assert torch.equal(reverse_step(x, F, row, seed=1, history=past, prediction=made), alone)
            reverse_step_ref(x.double(), F.double(), row, seed=1, history=[h1.double()], prediction=exact)
            plain = (0.5 * x.float() - 1.25 * F.float()).clamp(-row.clip, row.clip)
            assert_close_as_torch(made, plain.to(dtype), exact)
            assert not row.push or torch.equal(past[0], made)


def test_prediction_is_memory_of_its_own() -> None:
    x, F = torch.randn(2, 4, 3)
    for bad in (x, F, torch.empty(3, 4).T, torch.empty(4, 3, dtype=torch.float16)):
        with pytest.raises(ValueError, match="prediction: got"):
            reverse_step(x, F, ROW, seed=0, prediction=bad)


GUIDANCE = ["plain", "scalar", "per sample"]
SOURCES = ["seed", "noise", "none"]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("guidance", GUIDANCE)
def test_every_combination_of_options(guidance: str, source: str, dtype: torch.dtype) -> None:
    """History, push, clamp, log_variance and destination, for each guidance, noise source and dtype."""
    cases = itertools.product((False, True), (math.inf, 0.5), (False, True), (0, 1, 2, 3))
    for push, clip, learned, n_history in cases:
        x = torch.randn(19, 3).to(dtype)
        F, uncond, noise, log_variance, *history = like(x, 4 + n_history)
        used = ("p_x", "p_F", "a", "b", "e", "s")[: 5 if source == "none" else 6]
        values = {name: FULL[name] for name in (*used, *(f"c{k + 1}" for k in range(n_history)))}
        row = made_row(**values, clip=clip, push=push)
        sources = {"seed": {"seed": 5, "step": 2, "start": 9}, "noise": {"noise": noise}, "none": {}}
        options: dict[str, Any] = sources[source]
        if learned:
            options["log_variance"] = log_variance
        if guidance != "plain":
            scale = 2.5 if guidance == "scalar" else torch.linspace(0, 4, 19)
            options |= {"uncond_output": uncond, "guidance_scale": scale}
        fresh = check(x, F, row, history, **options)
        other, same = torch.full_like(x, 7.0), x.clone()
        for source_x, out in ((x, other), (same, same)):  # elsewhere, and in place: the same bits
            past = [h.clone() for h in history]
            assert reverse_step(source_x, F, row, history=past, out=out, **options) is out
            assert torch.equal(out, fresh)


def test_history_shifts() -> None:
    x, (F, h1, h2, h3) = torch.randn(6, 4), like(torch.zeros(6, 4), 4)
    past = [h.clone() for h in (h1, h2, h3)]
    reverse_step(x, F, made_row(a=1.0, p_F=1.0, push=True), history=past)
    assert torch.equal(past[0], F) and torch.equal(past[1], h1) and torch.equal(past[2], h2)
    reverse_step(x, F, made_row(a=1.0, p_F=1.0), history=past)  # no push: left alone
    assert torch.equal(past[0], F) and torch.equal(past[2], h2)


def test_a_row_without_evaluation_takes_no_output() -> None:
    row = made_row(a=0.9, s=0.5, c1=0.2, eval=False)
    check(torch.randn(7, 3), None, row, [torch.randn(7, 3)], seed=1)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_extreme_values_are_carried_as_torch_carries_them(dtype: torch.dtype) -> None:
    """NaN and infinity stay where they are, and a clamp does not swallow NaN."""
    top = torch.finfo(dtype).max
    values = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-7, top, -top, top / 2, 1.0]
    x = torch.tensor(values * 5, dtype=dtype).reshape(25, 2)
    F = torch.randn(25, 2).to(dtype)
    for row in (made_row(a=1.0, e=0.25), made_row(p_x=0.5, p_F=0.5, a=0.25, b=0.5, clip=1.0)):
        got, want = reverse_step(x, F, row), reverse_step_ref(x, F, row)
        torch.testing.assert_close(got, want, equal_nan=True)
        assert torch.equal(torch.isnan(got), torch.isnan(want))


@pytest.mark.parametrize("shape", [(0, 3), (0, 1), (0, 3, 28, 28), (4, 0)])
def test_nothing_to_do(shape: tuple[int, ...]) -> None:
    x = torch.empty(shape)
    assert reverse_step(x, x, ROW, seed=0).shape == shape
    out = torch.empty(shape)
    assert reverse_step(x, x, ROW, seed=0, out=out) is out


# ---- noise


@pytest.mark.parametrize("dim", [1, 2, 3, 4, 5, 64, 65])
@pytest.mark.parametrize("start", [0, 2**32 - 3, 2**48 - 7])
@pytest.mark.parametrize("seed", [0, LARGE_SEED])
def test_noise_is_the_stream_to_the_bit(dim: int, start: int, seed: int) -> None:
    zero, only_noise = torch.zeros(7, dim), made_row(s=1.0)
    for step in (0, 1, 2, 3, 6, (1 << 28) - 1):
        got = reverse_step(zero, zero, only_noise, seed=seed, step=step, start=start)
        assert torch.equal(got, df.noise.normal(7, dim, seed=seed, step=step, start=start))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_generator_is_torchs_own_noise(dtype: torch.dtype) -> None:
    x, F = torch.randn(9, 5).to(dtype), torch.randn(9, 5).to(dtype)
    got = reverse_step(x, F, ROW, generator=torch.Generator().manual_seed(4))
    noise = torch.randn(9, 5, dtype=dtype, generator=torch.Generator().manual_seed(4))
    assert torch.equal(got, reverse_step(x, F, ROW, noise=noise))


def test_a_row_without_noise_leaves_the_generator_alone() -> None:
    generator = torch.Generator().manual_seed(4)
    before = generator.get_state()
    reverse_step(torch.zeros(3, 2), torch.zeros(3, 2), made_row(a=1.0), generator=generator)
    assert torch.equal(generator.get_state(), before)


def test_samples_are_independent_of_the_batch() -> None:
    x, F = torch.randn(41, 3), torch.randn(41, 3)
    whole = reverse_step(x, F, ROW, seed=2, step=3, start=100)
    cuts = [0, 1, 2, 17, 18, 41]
    parts = [
        reverse_step(x[i:j], F[i:j], ROW, seed=2, step=3, start=100 + i) for i, j in itertools.pairwise(cuts)
    ]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("shape", [(1,), (2,), (3,), (65,), (3, 5, 5)])
def test_thread_count_does_not_change_a_bit(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    n = 30_001 if len(shape) == 1 else 1_001
    x, F, h = (torch.randn(n, *shape) for _ in range(3))
    row = made_row(**{**FULL, "c2": 0.0, "c3": 0.0}, push=True)
    results = []
    for threads in ("1", "2", "3", "7"):
        monkeypatch.setenv("DIFFUSION_FAST_THREADS", threads)
        past = h.clone()
        results.append((reverse_step(x, F, row, seed=8, history=[past]), past))
    for got, past in results[1:]:
        assert torch.equal(got, results[0][0]) and torch.equal(past, results[0][1])


# ---- the chain


class Silent(torch.nn.Module):
    """Predicts exactly 0, so that a chain is nothing but its coefficients and its noise."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.layer = torch.nn.Linear(dim, dim)
        torch.nn.init.zeros_(self.layer.weight)
        torch.nn.init.zeros_(self.layer.bias)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.layer(x)


def loop(sampler: df.Sampler, model: torch.nn.Module, n: int, seed: int, start: int) -> Tensor:
    """What a user who keeps the loop would write."""
    dim = math.prod(sampler.shape)
    x = df.noise.normal(n, dim, seed=seed, step=0, purpose="initial", start=start).view(n, *sampler.shape)
    past = [torch.zeros_like(x) for _ in range(3)]
    for i, row in enumerate(sampler.table):
        with torch.no_grad():
            F = model(row.c_in * x, torch.full((n,), int(row.timestep)))
        reverse_step(x, F, row, seed=seed, step=i, start=start, history=past, out=x)
    return x


@pytest.mark.parametrize("dim", [1, 2, 3, 5, 64])
@pytest.mark.parametrize("solver", ["ddpm", "ddim"])
def test_the_chain_is_a_loop_of_steps_to_the_bit(dim: int, solver: str) -> None:
    """Without a network's rounding, Sampler and the loop share every bit."""
    model = Silent(dim).eval()
    options = {"eta": 0.7, "clip": 2.0} if solver == "ddim" else {"variance": "beta"}
    sampler = df.Sampler(model, SCHEDULE, shape=dim, solver=solver, backend="native", **options)
    want = loop(sampler, model, 21, seed=LARGE_SEED, start=5)
    assert torch.equal(sampler.sample(21, seed=LARGE_SEED, start=5), want)


def test_the_chain_is_a_loop_of_model_and_steps() -> None:
    model = df.models.MLPDenoiser(3, (24, 24), "silu", n_steps=10).eval()
    for options in ({}, {"clip": 1.0}, {"solver": "ddim", "eta": 0.5, "prediction_type": "v_prediction"}):
        sampler = df.Sampler(model, SCHEDULE, backend="native", **options)
        got = sampler.sample(50, seed=1, start=3)
        # Float32 rounding of ten steps of a network of gain about 1: a few ulp of values near 1.
        torch.testing.assert_close(got, loop(sampler, model, 50, 1, 3), rtol=2e-5, atol=2e-5)


# ---- memory


def strided(values: Tensor) -> Tensor:
    """The same values with gaps between the rows and between the columns."""
    wide = torch.full((2 * values.shape[0], 3 * values.shape[1]), math.nan, dtype=values.dtype)
    view = wide[::2, 1::3]
    view.copy_(values)
    return view


def test_inputs_of_any_strides() -> None:
    x, (F, u, z, v, h) = torch.randn(12, 5), like(torch.zeros(12, 5), 5)
    row = made_row(p_x=0.5, a=0.5, b=0.2, e=-0.3, c1=0.2, s=0.4)
    want = reverse_step(
        x, F, row, noise=z, uncond_output=u, guidance_scale=torch.arange(12.0), history=[h], log_variance=v
    )
    scale = torch.arange(24.0).div(2)[::2]
    assert not scale.is_contiguous() and not strided(x).is_contiguous()
    got = reverse_step(
        strided(x),
        x.new_tensor(F.T.tolist()).T,
        row,
        noise=strided(z),
        uncond_output=strided(u),
        guidance_scale=scale,
        history=[h],
        log_variance=strided(v),
    )
    assert got.is_contiguous() and torch.equal(got, want)
    expanded = reverse_step(x[:1].expand(12, 5), F[:1].expand(12, 5), made_row(a=1.0, e=1.0))
    assert torch.equal(expanded, (x[:1] + F[:1]).expand(12, 5))


def test_images_in_channels_last() -> None:
    x, F = torch.randn(4, 3, 8, 8), torch.randn(4, 3, 8, 8)
    want = reverse_step(x, F, ROW, seed=1)
    x, F = (value.to(memory_format=torch.channels_last) for value in (x, F))
    got = reverse_step(x, F, ROW, seed=1)
    assert torch.equal(got, want)


def test_inputs_are_not_written_to() -> None:
    x, (F, u, z, v) = torch.randn(12, 5), like(torch.zeros(12, 5), 4)
    copies = [value.clone() for value in (x, F, u, z, v)]
    reverse_step(x, F, ROW, noise=z, uncond_output=u, guidance_scale=3.0, log_variance=v)
    assert all(torch.equal(value, copy) for value, copy in zip((x, F, u, z, v), copies, strict=True))


@pytest.mark.parametrize("name", ["x", "model_output", "noise", "uncond_output", "log_variance"])
def test_out_may_be_any_one_of_the_inputs(name: str) -> None:
    x, (F, u, z, v) = torch.randn(37, 5), like(torch.zeros(37, 5), 4)
    values = {"x": x, "model_output": F, "noise": z, "uncond_output": u, "log_variance": v}
    want = reverse_step(row=ROW, guidance_scale=3.0, **values)
    got = reverse_step(row=ROW, guidance_scale=3.0, out=values[name], **values)
    assert got is values[name] and torch.equal(got, want)


@pytest.mark.parametrize("name", ["x", "model_output", "noise", "uncond_output", "log_variance", "history"])
@pytest.mark.parametrize("shift", [-59, -3, 5, 59])
def test_a_shifted_overlap_is_refused(name: str, shift: int) -> None:
    memory = torch.randn(300)
    values: dict[str, Any] = {
        key: torch.randn(12, 5) for key in ("x", "model_output", "noise", "uncond_output", "log_variance")
    }
    values["history"] = [torch.randn(12, 5)]
    inside = memory[100:160].view(12, 5)
    values[name] = [inside] if name == "history" else inside
    out = memory[100 + shift : 160 + shift].view(12, 5)
    before = memory.clone()
    with pytest.raises(ValueError, match=r"out: got .*; accepted: memory"):
        reverse_step(row=made_row(**{**FULL, "c2": 0, "c3": 0}), guidance_scale=2.0, out=out, **values)
    assert torch.equal(memory, before)


def test_neighbours_do_not_overlap() -> None:
    memory = torch.randn(180)
    before, x, after = (memory[60 * i : 60 * i + 60].view(12, 5) for i in range(3))
    want = reverse_step(x, x, ROW, seed=1)
    for out in (before, after):
        assert torch.equal(reverse_step(x, x, ROW, seed=1, out=out), want)


def test_out_may_not_overlap_the_guidance_scale() -> None:
    """Each sample's scale is read while other samples are written: shared memory would change it."""
    row = df.solvers.ddpm(df.NoiseSchedule.linear(10, 1e-3, 0.3))[3]
    x, F, u = (torch.randn(64, 4) for _ in range(3))
    before = x.clone()
    with pytest.raises(ValueError, match="out"):
        reverse_step(x, F, row, seed=0, uncond_output=u, guidance_scale=x.view(-1)[:64], out=x)
    assert torch.equal(x, before)


def test_a_hand_made_row_must_say_that_it_pushes() -> None:
    row = df.solvers.ddpm(df.NoiseSchedule.linear(10, 1e-3, 0.3))[3]
    x = torch.randn(4, 4)
    with pytest.raises(ValueError, match="push"):
        reverse_step(x, x, dataclasses.replace(row, push=True), seed=0, history=[torch.zeros(4, 4)])
    with pytest.raises(ValueError, match="eval"):
        reverse_step(x, None, dataclasses.replace(row, eval=False), seed=0)
