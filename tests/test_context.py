"""Context inputs: captured once for a chain, native beside torch, refusals (guided: test_guidance.py)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from conditional_nets import FilmPolicy, LateContext, Policy, T, made
from samplers import assert_close_as_torch
from torch import Tensor, nn

import diffusion_fast as df
from diffusion_fast import reference

SCHEDULE = df.NoiseSchedule.linear(T, beta_start=1e-2, beta_end=0.4)
N = 150
NAMED: dict[str, Any] = {"shape": 3, "n_classes": 3, "context_shape": {"obs": (5, 1), "goal": 2}}
LABELS = torch.arange(N) % 4


def policy_sampler(**options: Any) -> df.Sampler:
    return df.Sampler(made(Policy), SCHEDULE, shape=6, context_shape=17, **{"backend": "native"} | options)


def named_context(n: int = N) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(3)
    return {"obs": torch.randn(n, 5, 1, generator=generator), "goal": torch.randn(n, 2, generator=generator)}


def test_what_reads_the_context_alone_runs_once() -> None:
    sampler = policy_sampler()
    plan = sampler.plan
    assert plan is not None and plan.n_context == 17 and plan.n_prologue == 1
    assert plan.flops_per_sample_step == 2 * (6 * 40 + 40 * 40 + 40 * 6)
    assert "linear 17 -> 40, once for a chain" in sampler.explain()
    film = df.Sampler(made(FilmPolicy), SCHEDULE, backend="native", **NAMED)
    # the encoder's two layers, the class among them; the time joins behind it, so the rest runs at every step
    assert film.plan is not None and film.plan.n_prologue == 2
    late = df.Sampler(made(LateContext), SCHEDULE, shape=9, context_shape=5, backend="native").plan
    assert late is not None and late.n_prologue == 1
    assert late.flops_per_sample_step == 2 * (9 * 20 + 20 * 20 + 20 * 9)


@pytest.mark.parametrize("solver", ["ddpm", "dpmpp_2m", "heun"])
def test_a_positional_context(solver: str) -> None:
    context = torch.randn(N, 17)
    native = policy_sampler(solver=solver)
    assert native.plan is not None
    got = native.sample(N, seed=2, context=context)
    plain, exact = (
        reference.run(native.plan, N, seed=2, context=context, dtype=d)
        for d in (torch.float32, torch.float64)
    )
    assert_close_as_torch(got, plain, exact)
    assert_close_as_torch(
        policy_sampler(solver=solver, backend="torch").sample(N, seed=2, context=context), plain, exact
    )


def test_named_contexts_beside_classes() -> None:
    native, plain = (df.Sampler(made(FilmPolicy), SCHEDULE, backend=b, **NAMED) for b in ("native", "torch"))
    call: dict[str, Any] = {"labels": LABELS, "context": named_context(), "seed": 1}
    torch.testing.assert_close(native.sample(N, **call), plain.sample(N, **call), rtol=1e-4, atol=1e-5)
    other = {"labels": LABELS, "context": named_context() | {"goal": torch.zeros(2)}, "seed": 1}
    one_goal = native.sample(N, **other)
    torch.testing.assert_close(one_goal, plain.sample(N, **other), rtol=1e-4, atol=1e-5)
    assert not torch.equal(one_goal, native.sample(N, **call))


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_one_row_for_all_is_that_row_for_each(backend: str) -> None:
    sampler, row = policy_sampler(backend=backend), torch.randn(17)
    want = sampler.sample(N, context=row.repeat(N, 1))
    for given in (row, row[None], row.numpy(), row.double(), row.numpy().astype(np.float64)):
        assert torch.equal(sampler.sample(N, context=given), want)


def test_each_sample_has_its_own_context() -> None:
    sampler, context = policy_sampler(), torch.randn(N, 17)
    whole = sampler.sample(N, seed=5, start=100, context=context, threads=2)
    for i in (0, 1, 63, N - 1):
        assert torch.equal(sampler.sample(1, seed=5, start=100 + i, context=context[i]), whole[i : i + 1])
    for size in (1, 17, 64):
        parts = list(sampler.stream(N, size, seed=5, start=100, context=context))
        assert torch.equal(torch.cat(parts), whole)
    strided = torch.stack([context, context], dim=-1)[..., 0]
    assert torch.equal(sampler.sample(N, seed=5, start=100, context=strided), whole)
    assert sampler.sample(0, context=context[:0]).shape == (0, 6)


def test_stream_does_not_take_a_row_for_samples() -> None:
    """A context as wide as there are samples: one row, for all of them."""
    sampler, row = policy_sampler(), torch.randn(17)
    parts = torch.cat(list(sampler.stream(17, 4, context=row)))
    assert torch.equal(parts, sampler.sample(17, context=row))


def test_df_sample_takes_context_and_scales() -> None:
    how: dict[str, Any] = {"shape": 6, "context_shape": 17, "null_context": 0.0}
    context, scales = torch.randn(9, 17), torch.linspace(0, 2, 9)
    want = df.Sampler(made(Policy), SCHEDULE, guidance_scale=3.0, **how)
    one = df.sample(made(Policy), SCHEDULE, 9, context=context, guidance_scale=3.0, **how)
    own = df.sample(made(Policy), SCHEDULE, 9, context=context, guidance_scale=scales, **how)
    assert torch.equal(one, want.sample(9, context=context))
    assert torch.equal(own, want.sample(9, context=context, guidance_scale=scales))


class ByKeyword(FilmPolicy):
    """What it reads comes by **kwargs."""

    def forward(self, x: Tensor, t: Tensor, y: Tensor, **kwargs: Tensor) -> Tensor:
        return super().forward(x, t, y, obs=kwargs["obs"], goal=kwargs["goal"])


def test_a_module_that_takes_kwargs() -> None:
    call: dict[str, Any] = {"labels": LABELS, "context": named_context(), "seed": 1}
    named, anything = (
        df.Sampler(made(make), SCHEDULE, backend="native", **NAMED).sample(N, **call)
        for make in (FilmPolicy, ByKeyword)
    )
    assert torch.equal(named, anything)


class BatchMean(Policy):
    def forward(self, x: Tensor, t: Tensor, state: Tensor) -> Tensor:
        return super().forward(x, t, state - state.mean(0))


class Scaled(Policy):
    def forward(self, x: Tensor, t: Tensor, state: Tensor) -> Tensor:
        return super().forward(x, t, state.mul_(2.0))


class ByValue(Policy):
    def forward(self, x: Tensor, t: Tensor, state: Tensor) -> Tensor:
        return super().forward(x, t, state if state[0, 0] > 0 else -state)


@pytest.mark.parametrize(
    ("make", "pattern"),
    [
        (BatchMean, "mixes the samples of a batch|influence each other"),
        (Scaled, "writes to its argument state"),
        (ByValue, "decides by the values"),
    ],
)
def test_what_capture_refuses_of_a_context(make: type[nn.Module], pattern: str) -> None:
    with pytest.raises(df.CaptureError, match=pattern):
        df.Sampler(made(make), SCHEDULE, shape=6, context_shape=17, backend="native")


GOOD = torch.zeros(5, 17)
REFUSED: dict[str, tuple[dict[str, Any], Any, str]] = {
    "no context": ({}, None, r"context: got None .*\(5, 17\), or \(17,\) for all"),
    "another width": ({}, torch.zeros(5, 16), r"context: got .*\(5, 16\).*\(5, 17\)"),
    "another length": ({}, torch.zeros(4, 17), r"context: got .*\(4, 17\).*\(5, 17\)"),
    "integers": ({}, torch.zeros(5, 17, dtype=torch.int64), r"context: got .*int64.*float32"),
    "a list": ({}, [[0.0] * 17] * 5, r"context: got .*list.*a float32 tensor"),
    "NaN": ({}, torch.full((5, 17), float("nan")), r"context: got nan at index \(0, 0\)"),
    "a gradient": ({}, torch.zeros(5, 17, requires_grad=True), r"context: got .*requires grad"),
    "a dict": ({}, {"state": GOOD}, r"context: got .*dict.*a float32 tensor"),
    "a wrong shape": ({"context_shape": (0,)}, GOOD, r"context_shape: got 0 .*from 1"),
    "no shape": ({"context_shape": ()}, GOOD, r"context_shape: got \(\)"),
    "no name": ({"context_shape": {"": 17}}, GOOD, r"context_shape: got ''"),
    "a wide context": (
        {"context_shape": 2049},
        GOOD,
        r"context of 2049 elements, the kernels take up to 2048",
    ),
    "too narrow a module": ({"context_shape": 18}, GOOD, r"model: it raised RuntimeError when called with"),
    "a null context of another width": (
        {"null_context": torch.zeros(3)},
        GOOD,
        r"null_context: got .*\(3,\).*\(17,\)",
    ),
    "a null context of text": ({"null_context": "zero"}, GOOD, r"null_context: got 'zero'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    options, context, pattern = REFUSED[name]
    how = {"shape": 6, "context_shape": 17, "backend": "native"} | options
    with pytest.raises((ValueError, TypeError), match=pattern):
        df.Sampler(made(Policy), SCHEDULE, **how).sample(5, context=context)


def test_a_context_that_no_one_asked_for() -> None:
    model = df.models.MLPDenoiser(2, (8,), n_steps=T).eval()
    with pytest.raises(ValueError, match=r"context: got .*None, for the sampler has no context_shape"):
        df.Sampler(model, SCHEDULE).sample(3, context=torch.zeros(3, 2))


@pytest.mark.parametrize(
    ("context", "pattern"),
    [
        (torch.zeros(5, 7), r"context: got .*tensor.*a dict of tensors with the keys obs, goal"),
        ({"obs": torch.zeros(5, 1)}, r"context: got .*keys obs.*accepted: .*obs, goal"),
        ({"obs": torch.zeros(5, 1), "goal": torch.zeros(3)}, r"context\['goal'\]: got .*\(3,\)"),
    ],
)
def test_refusals_of_named_contexts(context: Any, pattern: str) -> None:
    sampler = df.Sampler(made(FilmPolicy), SCHEDULE, **NAMED)
    with pytest.raises((ValueError, TypeError), match=pattern):
        sampler.sample(4, labels=0, context=context)
