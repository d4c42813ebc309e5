"""Classifier-free guidance beside float64 loops written from the papers: scales per sample, intervals,
rescale, null classes and null contexts, and the same bits on every path.

Samples have 9 elements and more: over two or three a standard deviation may come near 0, and rescale divides
by it.
"""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from capture_nets import in_float64
from conditional_nets import FilmPolicy, LateContext, Policy, T, made
from samplers import N_CLASSES, SCHEDULE, assert_close_as_torch, make_model
from torch import Tensor, nn

import diffusion_fast as df
from diffusion_fast import _cpu, reference

SHORT = df.NoiseSchedule.linear(T, beta_start=1e-2, beta_end=0.4)
N = 64


def ancestral_loop(
    module: nn.Module,
    schedule: df.NoiseSchedule,
    conditional: tuple[Tensor, ...],
    null: tuple[Tensor, ...],
    scale: Tensor,
    dim: int,
    *,
    interval: tuple[int, int] | None = None,
    rescale: float = 0.0,
    dtype: torch.dtype = torch.float64,
) -> Tensor:
    """Ho & Salimans 2022, algorithm 2, with the posterior variance, Lin et al. 2024's eq. 15 and 16, guided
    in the steps of the interval only; in plain torch with the stream's noise."""
    n, steps = len(scale), len(schedule)
    betas = schedule.betas
    abar = torch.cumprod(1 - betas, 0)
    x = df.noise.normal(n, dim, seed=4, step=0, purpose="initial").to(dtype)
    for i, t in enumerate(reversed(range(steps))):
        time = torch.full((n,), t)
        c = evaluate(module, dtype, x, time, *conditional)
        eps = c
        if interval is None or interval[0] <= i < interval[1]:
            u = evaluate(module, dtype, x, time, *null)
            eps = u + scale.to(dtype)[:, None] * (c - u)
            factor = rescale * c.std(1, keepdim=True) / eps.std(1, keepdim=True) + 1 - rescale
            eps = eps * factor if rescale else eps
        mean = (x - betas[t] / (1 - abar[t]).sqrt() * eps) / (1 - betas[t]).sqrt()
        x = mean.to(dtype)
        if t:
            sigma = (betas[t] * (1 - abar[t - 1]) / (1 - abar[t])).sqrt()
            x = x + sigma.to(dtype) * df.noise.normal(n, dim, seed=4, step=i).to(dtype)
    return x


def evaluate(module: nn.Module, dtype: torch.dtype, *args: Tensor) -> Tensor:
    if dtype is torch.float64:
        return in_float64(module, *args).detach()
    return module.float()(*args).detach()


OPTIONS: dict[str, dict[str, Any]] = {
    "all rows": {},
    "an interval": {"interval": (3, 9)},
    "rescaled": {"rescale": 0.7},
    "rescaled in an interval": {"interval": (0, 5), "rescale": 1.0},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("per_sample", [False, True], ids=["one scale", "scale per sample"])
def test_classes(name: str, per_sample: bool) -> None:
    model, options = make_model(N_CLASSES, dim=12, n_steps=T), OPTIONS[name]
    labels = torch.arange(N) % N_CLASSES
    scale = torch.linspace(-0.5, 4, N) if per_sample else torch.full((N,), 2.5)
    given = {f"guidance_{key}": value for key, value in options.items()}
    loop = (model, SHORT, (labels,), (torch.full((N,), N_CLASSES),), scale, 12)
    plain, exact = (ancestral_loop(*loop, **options, dtype=d) for d in (torch.float32, torch.float64))
    model.float()
    for backend in ("native", "torch"):
        sampler = df.Sampler(model, SHORT, backend=backend, guidance_scale=2.5, **given)
        own = {"guidance_scale": scale} if per_sample else {}
        assert_close_as_torch(sampler.sample(N, seed=4, labels=labels, **own), plain, exact)
        by_weight = {"guidance_weight": scale - 1} if per_sample else {}
        again = df.Sampler(model, SHORT, backend=backend, guidance_weight=1.5, **given)
        same = again.sample(N, seed=4, labels=labels, **by_weight)
        torch.testing.assert_close(
            same, sampler.sample(N, seed=4, labels=labels, **own), rtol=1e-4, atol=1e-4
        )


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("make", [Policy, LateContext])
def test_a_null_context(make: type[nn.Module], name: str) -> None:
    module, options = made(make), OPTIONS[name]
    dim, width = (6, 17) if make is Policy else (9, 5)
    context, null = torch.randn(N, width), torch.linspace(-1, 1, width)
    loop = (module, SHORT, (context,), (null.expand(N, -1),), torch.full((N,), 3.0), dim)
    plain, exact = (ancestral_loop(*loop, **options, dtype=d) for d in (torch.float32, torch.float64))
    module.float()
    given = {f"guidance_{key}": value for key, value in options.items()}
    for backend in ("native", "torch"):
        how: dict[str, Any] = {"shape": dim, "context_shape": width, "null_context": null, "backend": backend}
        sampler = df.Sampler(module, SHORT, guidance_scale=3.0, **how, **given)
        assert_close_as_torch(sampler.sample(N, seed=4, context=context), plain, exact)


def test_a_null_class_and_a_null_context_together() -> None:
    module, labels = made(FilmPolicy), torch.arange(N) % 3
    context = {"obs": torch.randn(N, 5, 1), "goal": torch.randn(N, 2)}
    how: dict[str, Any] = {
        "shape": 3,
        "n_classes": 3,
        "context_shape": {"obs": (5, 1), "goal": 2},
        "null_context": 0.0,
        "guidance_scale": 2.0,
    }
    native, plain = (df.Sampler(module, SHORT, backend=b, **how) for b in ("native", "torch"))
    got = native.sample(N, labels=labels, context=context)
    torch.testing.assert_close(got, plain.sample(N, labels=labels, context=context), rtol=1e-4, atol=1e-5)
    nothing = native.sample(N, labels=3, context={"obs": torch.zeros(5, 1), "goal": torch.zeros(2)})
    zero = df.Sampler(module, SHORT, **(how | {"guidance_scale": 0.0})).sample(
        N, labels=labels, context=context
    )
    torch.testing.assert_close(zero, nothing, rtol=1e-4, atol=1e-5)


# ---- work and bits


def test_work_that_both_branches_share_is_done_once() -> None:
    """Of LateContext's layers the first two read neither the context nor the class."""
    module = made(LateContext)
    how: dict[str, Any] = {"shape": 9, "context_shape": 5, "null_context": 0.0, "backend": "native"}
    guided = df.Sampler(module, SHORT, guidance_scale=2.0, **how)
    assert guided.plan is not None
    program = _cpu.Program(guided.plan.to_bytes())
    # multiply-adds: 9 x 20 and 20 x 20 once, 20 x 9 for each branch; the context's 5 x 20 once for a chain
    other = program.work_per_step - (9 * 20 + 20 * 20 + 2 * 20 * 9)
    assert 0 <= other < 20 * 2 * 8 * 2  # what is not a product, at most two of its operations in each branch


CASES: dict[str, tuple[nn.Module, dict[str, Any], dict[str, Any]]] = {
    "classes": (
        make_model(N_CLASSES, dim=12, n_steps=T),
        {"guidance_scale": 2.5, "guidance_rescale": 0.5},
        {"labels": torch.arange(N) % N_CLASSES, "guidance_scale": torch.linspace(0, 3, N)},
    ),
    "a context": (
        made(Policy),
        {"shape": 6, "context_shape": 17, "null_context": 0.0, "guidance_scale": 2.0},
        {"context": torch.randn(N, 17, generator=torch.Generator().manual_seed(1))},
    ),
    "a late context, rescaled, thresholded": (
        made(LateContext),
        {
            "shape": 9,
            "context_shape": 5,
            "null_context": 0.0,
            "guidance_scale": 2.0,
            "guidance_rescale": 0.7,
            "guidance_interval": (2, 9),
            "clip": 2.0,
            "dynamic_threshold": 0.6,
        },
        {"context": torch.randn(N, 5, generator=torch.Generator().manual_seed(2))},
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_same_bits_however_split(name: str) -> None:
    module, options, call = CASES[name]
    sampler = df.Sampler(module, SHORT, backend="native", **options)
    whole = sampler.sample(N, seed=3, start=7, threads=1, **call)
    assert torch.equal(sampler.sample(N, seed=3, start=7, threads=2, **call), whole)
    for size in (1, 7, 50):
        assert torch.equal(torch.cat(list(sampler.stream(N, size, seed=3, start=7, **call))), whole)


@pytest.mark.parametrize("isa", _cpu.isas())
@pytest.mark.parametrize("name", CASES)
def test_the_same_bits_on_every_instruction_set(name: str, isa: str) -> None:
    module, options, call = CASES[name]
    sampler = df.Sampler(module, SHORT, backend="native", **options)
    want = sampler.sample(N, seed=3, **call)
    assert sampler.plan is not None
    got, given = torch.empty_like(want), {}
    if "labels" in call:
        labels = call["labels"].int()
        given["labels"] = labels.data_ptr()
    if "guidance_scale" in call:
        given["guidance"] = call["guidance_scale"].data_ptr()
    if "context" in call:
        given |= {"context": call["context"].data_ptr(), "context_stride": call["context"].shape[1]}
    _cpu.Program(sampler.plan.to_bytes(), isa).run(got.data_ptr(), N, 0, 3, 1, **given)
    assert torch.equal(got, want)


@pytest.mark.parametrize("name", CASES)
def test_the_kernel_is_the_reference(name: str) -> None:
    module, options, call = CASES[name]
    sampler = df.Sampler(module, SHORT, backend="native", **options)
    given = {"guidance" if key == "guidance_scale" else key: value for key, value in call.items()}
    assert sampler.plan is not None
    plain, exact = (
        reference.run(sampler.plan, N, seed=3, dtype=dtype, **given)
        for dtype in (torch.float32, torch.float64)
    )
    assert_close_as_torch(sampler.sample(N, seed=3, **call), plain, exact)


# ---- what is refused

CONDITIONAL = make_model(N_CLASSES)
REFUSED: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "no null class": (
        {"guidance_scale": 2.0, "null_class": False},
        {},
        r"guidance_scale: got 2\.0 .*no null class",
    ),
    "an interval alone": ({"guidance_interval": (0, 3)}, {}, r"guidance_interval: .*without guidance_scale"),
    "a rescale alone": ({"guidance_rescale": 0.5}, {}, r"guidance_rescale: .*without guidance_scale"),
    "an empty interval": (
        {"guidance_scale": 2.0, "guidance_interval": (3, 3)},
        {},
        r"guidance_interval: got \(3, 3\).*0 <= first < last <= 40",
    ),
    "an interval too long": (
        {"guidance_scale": 2.0, "guidance_interval": (0, 41)},
        {},
        r"guidance_interval: got \(0, 41\).*<= 40",
    ),
    "a rescale above 1": (
        {"guidance_scale": 2.0, "guidance_rescale": 1.5},
        {},
        r"guidance_rescale: got 1\.5",
    ),
    "a scale per sample of the wrong length": (
        {"guidance_scale": 2.0},
        {"labels": 0, "guidance_scale": torch.ones(4)},
        r"guidance_scale: got .*\(4,\).*\(5,\)",
    ),
    "a scale per sample that is NaN": (
        {"guidance_scale": 2.0},
        {"labels": 0, "guidance_scale": torch.tensor([1, 2, float("nan"), 0, 0])},
        r"guidance_scale: got nan at index \(2,\)",
    ),
    "a number at the call": (
        {"guidance_scale": 2.0},
        {"labels": 0, "guidance_scale": 3.0},
        r"guidance_scale: got 3\.0",
    ),
    "scales for a sampler without": (
        {},
        {"guidance_scale": torch.ones(5)},
        r"guidance_scale: .*made without guidance",
    ),
    "scales for a sampler of scale 1": (
        {"guidance_scale": 1.0},
        {"labels": 0, "guidance_weight": torch.ones(5)},
        r"guidance_weight: .*made without guidance",
    ),
    "a null context without context": (
        {"guidance_scale": 2.0, "null_context": 0.0},
        {},
        r"null_context: got 0\.0 .*context_shape",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    options, call, pattern = REFUSED[name]
    with pytest.raises((ValueError, TypeError), match=pattern):
        df.Sampler(CONDITIONAL, SCHEDULE, **options).sample(5, **call)


def test_rescale_needs_more_than_one_element() -> None:
    with pytest.raises(ValueError, match=r"guidance_rescale: got 0\.5 .*one element"):
        df.Sampler(make_model(2, dim=1), SCHEDULE, guidance_scale=2.0, guidance_rescale=0.5)


@pytest.mark.parametrize("one_hot", [False, True])
def test_a_model_without_a_null_class(one_hot: bool) -> None:
    """An embedding with a row for each class and no more, and ones at the classes' places."""

    class Labelled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.label, self.net = nn.Embedding(3, 3), nn.Linear(5, 2)

        def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
            columns = nn.functional.one_hot(y, 3).float() if one_hot else self.label(y)
            return self.net(torch.cat([x, columns], dim=1))

    module = made(Labelled)
    reason = r"(index out of range|smaller than num_classes).*null_class=False"
    for options in ({"backend": "native"}, {"guidance_scale": 2.0}, {"precision": "table"}):
        with pytest.raises(df.CaptureError, match=reason):
            df.Sampler(module, SHORT, shape=2, n_classes=3, **options)
    for options in ({}, {"precision": "auto"}):
        assert re.search(reason, df.Sampler(module, SHORT, shape=2, n_classes=3, **options).explain())
    native, plain = (
        df.Sampler(module, SHORT, shape=2, n_classes=3, null_class=False, backend=b)
        for b in ("native", "torch")
    )
    labels = torch.arange(N) % 3
    torch.testing.assert_close(
        native.sample(N, labels=labels), plain.sample(N, labels=labels), rtol=1e-4, atol=1e-5
    )
    for labels, pattern in ((None, "labels: got None .*no null class"), (3, "labels: got 3 .*0 to 2")):
        with pytest.raises(ValueError, match=pattern):
            native.sample(2, labels=labels)
