"""k-diffusion's functions against the published loops in float64, and the library where it is installed."""

from __future__ import annotations

import inspect
import itertools
import math
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import solver_loops
import torch
from solver_targets import MIXTURE
from torch import Tensor

from diffusion_fast import _checks, noise
from diffusion_fast.integrations import k_diffusion
from diffusion_fast.sigma_schedules import SigmaSchedule

N = 300
SIGMAS = torch.cat([SigmaSchedule.karras(9, 0.02, 20.0).sigmas, torch.zeros(1)]).float()
CHURN = {"s_churn": 4.0, "s_tmin": 0.05, "s_tmax": 15.0, "s_noise": 1.007}

# name: (function, its options, the loop, the loop's options)
Case = tuple[str, dict[str, Any], Callable[..., solver_loops.Steps], dict[str, Any]]
CASES: dict[str, Case] = {
    "euler": ("sample_euler", {}, solver_loops.edm, {"order": 1}),
    "heun": ("sample_heun", {}, solver_loops.edm, {}),
    "dpm_2": ("sample_dpm_2", {}, solver_loops.dpm_solver_2, {}),
    "dpmpp_2m": ("sample_dpmpp_2m", {}, solver_loops.dpmpp_2m, {}),
    "lms": ("sample_lms", {}, solver_loops.lms, {}),
    "lms 2": ("sample_lms", {"order": 2}, solver_loops.lms, {"order": 2}),
}
for loop in ("euler_ancestral", "dpmpp_2s_ancestral", "dpmpp_2m_sde", "dpmpp_3m_sde"):
    for eta, s_noise in ((1.0, 1.0), (0.6, 1.1), (0.0, 1.0), (1.5, 0.9)):
        given = {"eta": eta, "s_noise": s_noise}
        CASES[f"{loop} {eta}"] = (f"sample_{loop}", given, getattr(solver_loops, loop), given)
HEUN = {"eta": 1.0, "s_noise": 1.0, "solver_type": "heun"}
CASES["dpmpp_2m_sde heun"] = ("sample_dpmpp_2m_sde", HEUN, solver_loops.dpmpp_2m_sde, HEUN)
FUNCTIONS = sorted({case[0] for case in CASES.values()})


def denoiser(x: Tensor, sigma: Tensor) -> Tensor:
    assert sigma.shape == (N,) and sigma.dtype is x.dtype and (sigma == sigma[0]).all()
    return torch.from_numpy(MIXTURE.denoised(x.double().numpy(), 1.0, sigma[0].item())).to(x.dtype)


def start() -> Tensor:
    return SIGMAS[0] * torch.randn(N, 1)


def normals() -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return (torch.randn(N, 1, generator=generator) for _ in itertools.count())


def options(function: Callable[..., Tensor], given: dict[str, Any]) -> dict[str, Any]:
    """The case's options, and where the function takes a noise_sampler one that hands out `normals`."""
    if "noise_sampler" not in inspect.signature(function).parameters:
        return given
    z = normals()
    return given | {"noise_sampler": lambda sigma, sigma_next: next(z)}


def assert_close(ours: Any, theirs: Any, share: float) -> None:
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=share * np.sqrt(np.mean(theirs**2)))


@pytest.mark.parametrize("name", CASES)
def test_published_loop(name: str) -> None:
    function, given, loop, loop_options = CASES[name]
    ours, x = getattr(k_diffusion, function), start()
    seen: list[dict[str, Any]] = []
    got = ours(denoiser, x, SIGMAS, callback=seen.append, disable=True, **options(ours, given))
    z = normals()
    steps = list(loop(x.double().numpy(), SIGMAS.tolist(), lambda: next(z).double().numpy(), **loop_options))
    assert_close(got, steps[-1][0], 1e-5)
    assert_close(ours(denoiser, x, SIGMAS, disable=True, **options(ours, given)), got, 0.0)  # in place too
    # the callback: once a step, with the state before it
    assert [call["i"] for call in seen] == list(range(9))
    torch.testing.assert_close(torch.stack([call["sigma"] for call in seen]), SIGMAS[:-1], rtol=0, atol=0)
    torch.testing.assert_close(torch.stack([call["sigma_hat"] for call in seen]), SIGMAS[:-1])
    two_stages = len(steps) > 9 and loop is not solver_loops.lms
    ends = steps[1::2] if two_stages else steps
    assert_close(seen[0]["x"], x, 0.0)
    for call, (state, _) in zip(seen[1:], ends, strict=False):
        assert_close(call["x"], state, 1e-5)
        assert_close(call["denoised"], denoiser(call["x"], call["sigma"].expand(N)), 0.0)


@pytest.mark.parametrize("order", [1, 2])
def test_churn(order: int) -> None:
    """The noise of step k is the stream's at the row before its first evaluation; sigma_hat is told."""
    function, x = (k_diffusion.sample_euler, k_diffusion.sample_heun)[order - 1], start()
    torch.manual_seed(5)
    seed = _checks.seed("seed", torch.default_generator)
    gammas = [CHURN["s_churn"] / 9 if 0.05 <= s <= 15 else 0.0 for s in SIGMAS[:-1].tolist()]
    rows = iter(order * k for k, gamma in enumerate(gammas) if gamma)
    steps = list(
        solver_loops.edm(
            x.double().numpy(),
            SIGMAS.tolist(),
            lambda: noise.normal(N, 1, seed=seed, step=next(rows)).double().numpy(),
            order=order,
            **CHURN,
        )
    )
    hats: list[float] = []
    torch.manual_seed(5)
    got = function(
        denoiser, x, SIGMAS, None, lambda call: hats.append(call["sigma_hat"].item()), True, **CHURN
    )
    assert_close(got, steps[-1][0], 1e-5)
    expected = SIGMAS[:-1].numpy() * (1 + np.minimum(gammas, math.sqrt(2) - 1))
    np.testing.assert_allclose(hats, expected, rtol=1e-6)
    torch.manual_seed(5)
    assert torch.equal(function(denoiser, x, SIGMAS, disable=True, **CHURN), got)
    assert not torch.equal(function(denoiser, x, SIGMAS, disable=True, **CHURN), got)


@pytest.fixture(scope="module")
def peer() -> ModuleType:
    try:
        from k_diffusion import sampling
    except Exception as reason:  # its torchvision may not fit the torch that is here
        pytest.skip(f"k_diffusion.sampling cannot be imported: {reason!r}")
    return sampling


@pytest.mark.parametrize("name", CASES)
def test_the_library_itself(peer: ModuleType, name: str) -> None:
    function, given, _, _ = CASES[name]
    x, calls = start(), ([], [])
    results = []
    for module, seen in zip((k_diffusion, peer), calls, strict=True):
        run = getattr(module, function)
        results.append(run(denoiser, x, SIGMAS, None, seen.append, True, **options(run, given)))
    for ours, theirs in zip(*calls, strict=True):
        assert ours.keys() == theirs.keys()
        for key in ours:
            assert_close(ours[key], theirs[key], 3e-5)
    assert_close(*results, 3e-5)


@pytest.mark.parametrize("function", FUNCTIONS)
def test_signature_of_the_library(peer: ModuleType, function: str) -> None:
    ours, theirs = (inspect.signature(getattr(m, function)).parameters for m in (k_diffusion, peer))
    assert [(p.name, p.default) for p in ours.values()] == [(p.name, p.default) for p in theirs.values()]


def test_noise_sampler_in_the_library(peer: ModuleType) -> None:
    x = start()
    ours, theirs = (
        module.sample_dpmpp_2m_sde(
            denoiser, x, SIGMAS, disable=True, noise_sampler=k_diffusion.noise_sampler(x, seed=3)
        )
        for module in (k_diffusion, peer)
    )
    assert_close(ours, theirs, 3e-5)


def test_noise_sampler_is_the_stream_step_by_step() -> None:
    x = torch.zeros(5, 2, 3, dtype=torch.bfloat16)
    draw = k_diffusion.noise_sampler(x, seed=7)
    for step in range(3):
        expected = noise.normal(5, 6, seed=7, step=step).view(5, 2, 3).bfloat16()
        assert torch.equal(draw(SIGMAS[step], SIGMAS[step + 1]), expected)
    torch.manual_seed(2)
    first = k_diffusion.noise_sampler(x)(1.0, 0.5)
    assert not torch.equal(k_diffusion.noise_sampler(x)(1.0, 0.5), first)
    torch.manual_seed(2)
    assert torch.equal(k_diffusion.noise_sampler(x)(1.0, 0.5), first)


def test_noise_sampler_is_asked_for_each_step() -> None:
    asked = []

    def draw(sigma: Tensor, sigma_next: Tensor) -> Tensor:
        asked.append((sigma.item(), sigma_next.item()))
        return torch.zeros(N, 1)

    for function in (k_diffusion.sample_dpmpp_2s_ancestral, k_diffusion.sample_dpmpp_3m_sde):
        asked.clear()
        function(denoiser, start(), SIGMAS, disable=True, noise_sampler=draw)
        assert asked == list(itertools.pairwise(SIGMAS[:-1].tolist()))


def test_global_seed_repeats_a_run_and_ode_solvers_leave_it_alone() -> None:
    x = start()
    torch.manual_seed(4)
    first = k_diffusion.sample_euler_ancestral(denoiser, x, SIGMAS, disable=True)
    assert not torch.equal(k_diffusion.sample_euler_ancestral(denoiser, x, SIGMAS, disable=True), first)
    torch.manual_seed(4)
    assert torch.equal(k_diffusion.sample_euler_ancestral(denoiser, x, SIGMAS, disable=True), first)
    state = torch.get_rng_state()
    k_diffusion.sample_dpmpp_2m(denoiser, x, SIGMAS, disable=True)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("function", FUNCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_images_extra_args_and_the_callers_x(function: str, dtype: torch.dtype) -> None:
    x = (2 * torch.randn(3, 4, 5, 2)).to(dtype).permute(0, 3, 1, 2)
    kept = x.clone()

    def model(x: Tensor, sigma: Tensor, *, scale: float) -> Tensor:
        assert not torch.is_grad_enabled()
        return scale * x / (1 + sigma[:, None, None, None] ** 2)

    got = getattr(k_diffusion, function)(model, x, torch.tensor([2.0, 1.0, 0.0]), {"scale": 0.5}, None, True)
    assert got.shape == x.shape and got.dtype is dtype and torch.isfinite(got).all()
    assert torch.equal(x, kept)


def test_guidance_by_a_gradient() -> None:
    def model(x: Tensor, sigma: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            (slope,) = torch.autograd.grad(-x.square().sum() / 2, x)
            return x + slope

    x = k_diffusion.sample_euler(model, start(), SIGMAS, disable=True)
    assert not x.requires_grad and x.abs().max() == 0


BAD_SIGMAS: dict[str, tuple[Any, str]] = {
    "no final zero": (torch.tensor([2.0, 1.0]), "the last of them 0"),
    "only zero": (torch.tensor([0.0]), "at least two"),
    "two axes": (torch.ones(2, 2), "a 1-D tensor"),
    "not falling": (torch.tensor([2.0, 2.0, 0.0]), "got 2.0 at index 1, after 2.0"),
    "rising": (torch.tensor([1.0, 2.0, 0.0]), "got 2.0 at index 1, after 1.0"),
    "zero inside": (torch.tensor([2.0, 0.0, 0.0]), "got 0.0 at index 1"),
    "NaN": (torch.tensor([2.0, math.nan, 0.0]), "got nan at index 1"),
}


@pytest.mark.parametrize("name", BAD_SIGMAS)
def test_refused_sigmas(name: str) -> None:
    sigmas, message = BAD_SIGMAS[name]
    with pytest.raises(ValueError, match=f"^sigmas: .*{message}"):
        k_diffusion.sample_euler(denoiser, start(), sigmas)


def never(x: Tensor, sigma: Tensor) -> Tensor:
    raise AssertionError("the arguments were not checked first")


REFUSED: dict[str, tuple[str, dict[str, Any], type[Exception], str]] = {
    "list": ("euler", {"sigmas": [2.0, 0.0]}, TypeError, "^sigmas: .*a 1-D tensor"),
    "x": ("euler", {"x": [1.0]}, TypeError, "^x: .*counts samples"),
    "x, no axis": ("lms", {"x": torch.tensor(1.0)}, ValueError, "^x: .*counts samples"),
    "x, float64": ("lms", {"x": torch.ones(2, 1).double()}, ValueError, "^x: .*bfloat16"),
    "x, grad": ("lms", {"x": torch.ones(2, 1, requires_grad=True)}, ValueError, "^x: .*x.detach"),
    "churn": ("dpm_2", {"s_churn": 1.0}, ValueError, "^s_churn: got 1.0.*sample_heun"),
    "churn < 0": ("heun", {"s_churn": -1.0}, ValueError, "^s_churn: "),
    "order": ("lms", {"order": 5}, ValueError, "^order: got 5.*1 to 4"),
    "extra": ("euler", {"extra_args": [1]}, TypeError, "^extra_args: .*a dict"),
    "eta": ("euler_ancestral", {"eta": -1.0}, ValueError, "^eta: "),
    "type": ("dpmpp_2m_sde", {"solver_type": "mid"}, ValueError, "^solver_type: .*midpoint"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    function, given, error, message = REFUSED[name]
    arguments = {"model": never, "x": torch.ones(2, 1), "sigmas": SIGMAS} | given
    with pytest.raises(error, match=message):
        getattr(k_diffusion, f"sample_{function}")(**arguments)


def test_refused_model_output_and_noise() -> None:
    x = torch.ones(4, 2)
    with pytest.raises(ValueError, match=r"^model_output: .*shape \(4, 1\)"):
        k_diffusion.sample_euler(lambda x, sigma: x[:, :1], x, SIGMAS, disable=True)
    with pytest.raises(ValueError, match=r"^noise: .*shape \(4, 1\)"):
        k_diffusion.sample_euler_ancestral(
            lambda x, sigma: x, x, SIGMAS, disable=True, noise_sampler=lambda *_: torch.ones(4, 1)
        )
