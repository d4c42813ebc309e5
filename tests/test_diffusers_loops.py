"""Full loops against diffusers' own schedulers, which get the same noise.

Their tables are float32, and so is their arithmetic: ours must be as close to their step in float64 as theirs
is, within the rule of twice, and both must agree to 1e-4 of the rms.
"""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Iterator
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed: pip install '.[diffusers]'")
from diffusers.utils.torch_utils import randn_tensor
from diffusers_loops import NOISY, gap, original, ours, run

from diffusion_fast import _cpu

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning"),  # theirs, about NumPy 2
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # theirs, about dpmsolver without ++
]
KINDS = ("epsilon", "sample", "v_prediction")
SPACINGS = ("leading", "trailing", "linspace")
SIGMAS: tuple[dict[str, Any], ...] = (
    {},
    {"use_karras_sigmas": True},
    {"use_exponential_sigmas": True},
    {"use_beta_sigmas": True},
)
MODULES = ("ddpm", "ddim", "euler_discrete", "euler_ancestral_discrete", "dpmsolver_multistep")


@pytest.fixture(autouse=True)
def noise_in_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """Their loop in float64 draws the same noise as that in float32."""

    def drawn(shape: Any, dtype: torch.dtype, **given: Any) -> torch.Tensor:
        return randn_tensor(shape, dtype=torch.float32, **given).to(dtype)

    for name in MODULES:
        monkeypatch.setattr(
            importlib.import_module(f"diffusers.schedulers.scheduling_{name}"), "randn_tensor", drawn
        )


@pytest.fixture
def kernel_calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How often each of the kernel's two entries did the work."""
    calls = [0]
    step, small = _cpu.reverse_step, _cpu.small_step

    def counted(*args: Any) -> None:
        calls[0] += 1
        step(*args)

    def counted_small(*args: Any) -> Any:
        made = small(*args)
        calls[0] += made is not None
        return made

    monkeypatch.setattr(_cpu, "reverse_step", counted)
    monkeypatch.setattr(_cpu, "small_step", counted_small)
    yield calls


def compare(
    name: str,
    calls: list[int],
    config: dict[str, Any],
    *,
    unfused: int = 0,
    limit: float = 1e-4,
    **options: Any,
) -> None:
    """unfused: steps that are left to the original."""
    options["noisy"] = name in NOISY or options.pop("noisy", False)
    theirs = run(original(name, **config), **options)
    exact = run(original(name, **config), exact=True, **options)
    runs = []
    for dense in (False, True):
        calls[0] = 0
        scheduler = ours(name, **config)
        runs.append(run(scheduler, dense=dense, **options))
        steps = len(scheduler.timesteps) - (options.get("begin") or 0)
        assert calls[0] >= steps - unfused, f"{config}: the kernel ran {calls[0]} times in {steps} steps"
    got = runs[0]
    assert all(map(torch.equal, *runs)), config
    assert [s.dtype for s in got] == [s.dtype for s in theirs]
    assert all(torch.isfinite(s).all() for s in theirs), config
    assert gap(got, exact) <= 2 * gap(theirs, exact) + 3e-6, config
    assert gap(got, theirs) < limit, config


# ---- DDPM


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_ddpm(kind: str, clip: bool, kernel_calls: list[int]) -> None:
    for spacing, variance in itertools.product(SPACINGS, ("fixed_small", "fixed_small_log", "fixed_large")):
        shared = {"prediction_type": kind, "clip_sample": clip, "timestep_spacing": spacing}
        compare("DDPMScheduler", kernel_calls, {**shared, "variance_type": variance})


@pytest.mark.parametrize("variance", ["learned", "learned_range"])
@pytest.mark.parametrize("kind", KINDS)
def test_ddpm_learned_variance(kind: str, variance: str, kernel_calls: list[int]) -> None:
    config = {"prediction_type": kind, "variance_type": variance}
    compare("DDPMScheduler", kernel_calls, config, channels=6)


@pytest.mark.parametrize(
    "config",
    [
        {"beta_schedule": "squaredcos_cap_v2", "clip_sample_range": 1.5},
        {"beta_schedule": "scaled_linear", "steps_offset": 1},
        {"beta_schedule": "sigmoid", "variance_type": "fixed_large", "clip_sample": False},
        {"trained_betas": [0.01, 0.02, 0.05, 0.1, 0.2] * 4, "num_train_timesteps": 20},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
        {"rescale_betas_zero_snr": True, "prediction_type": "sample", "timestep_spacing": "trailing"},
        {"variance_type": "other"},  # the original takes it for "fixed_small"
    ],
    ids=str,
)
def test_ddpm_options(config: dict[str, Any], kernel_calls: list[int]) -> None:
    compare("DDPMScheduler", kernel_calls, config)


def test_ddpm_without_a_signal(kernel_calls: list[int]) -> None:
    """No x0 comes of an epsilon where there is none in x: the original's step, which clamps infinity."""
    config = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    theirs = run(original("DDPMScheduler", **config), noisy=True)
    assert gap(run(ours("DDPMScheduler", **config), noisy=True), theirs) < 1e-4
    assert kernel_calls[0] == 11


def test_ddpm_timesteps(kernel_calls: list[int]) -> None:
    compare("DDPMScheduler", kernel_calls, {}, times={"timesteps": [900, 700, 430, 20, 3]})
    compare("DDPMScheduler", kernel_calls, {"num_train_timesteps": 30}, steps=None)  # all of them


# ---- DDIM


@pytest.mark.parametrize("clip", [True, False])
@pytest.mark.parametrize("kind", KINDS)
def test_ddim(kind: str, clip: bool, kernel_calls: list[int]) -> None:
    for spacing, eta, clipped in itertools.product(SPACINGS, (0.0, 0.6), (False, True)):
        config = {"prediction_type": kind, "clip_sample": clip, "timestep_spacing": spacing}
        options = {"eta": eta, "use_clipped_model_output": clipped, "noisy": eta > 0}
        compare("DDIMScheduler", kernel_calls, config, **options)


@pytest.mark.parametrize(
    "config",
    [
        {"set_alpha_to_one": False, "steps_offset": 1},
        {"beta_schedule": "scaled_linear", "clip_sample_range": 2.0},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction", "timestep_spacing": "trailing"},
    ],
    ids=str,
)
def test_ddim_options(config: dict[str, Any], kernel_calls: list[int]) -> None:
    compare("DDIMScheduler", kernel_calls, config, noisy=True, eta=1.0)
    compare("DDIMScheduler", kernel_calls, config, steps=7)  # no divisor of the trained timesteps


# ---- thresholding


@pytest.mark.parametrize("most", [0.5, 1.0, 1.7])
@pytest.mark.parametrize(
    "name, config",
    [
        ("DDPMScheduler", {}),
        ("DDPMScheduler", {"prediction_type": "v_prediction"}),
        ("DDIMScheduler", {"prediction_type": "sample"}),
        ("DPMSolverMultistepScheduler", {}),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++", "solver_order": 3}),
        ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}),
        ("UniPCMultistepScheduler", {}),
        ("UniPCMultistepScheduler", {"predict_x0": False, "final_sigmas_type": "sigma_min"}),
    ],
)
def test_thresholding(name: str, config: dict[str, Any], most: float, kernel_calls: list[int]) -> None:
    shared = {"thresholding": True, "sample_max_value": most, "dynamic_thresholding_ratio": 0.9, **config}
    compare(name, kernel_calls, shared, noisy="sde" in config.get("algorithm_type", ""))


def test_thresholding_at_the_smallest(kernel_calls: list[int]) -> None:
    config = {"thresholding": True, "sample_max_value": 3.0, "dynamic_thresholding_ratio": 0.0}
    compare("DDIMScheduler", kernel_calls, config)


# ---- Euler and Heun


@pytest.mark.parametrize("kind", KINDS)
def test_euler(kind: str, kernel_calls: list[int]) -> None:
    for spacing, sigmas in itertools.product(SPACINGS, SIGMAS):
        config = {"prediction_type": kind, "timestep_spacing": spacing, **sigmas}
        compare("EulerDiscreteScheduler", kernel_calls, config)
    churn = {"s_churn": 6.0, "s_tmin": 0.1, "s_tmax": 9.0, "s_noise": 1.05}
    compare("EulerDiscreteScheduler", kernel_calls, {"prediction_type": kind}, noisy=True, **churn)


@pytest.mark.parametrize(
    "config",
    [
        {"interpolation_type": "log_linear"},
        {"final_sigmas_type": "sigma_min", "use_karras_sigmas": True},
        {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"},
        {"timestep_type": "continuous", "prediction_type": "v_prediction", "use_karras_sigmas": True},
        {"use_karras_sigmas": True, "sigma_min": 0.1, "sigma_max": 20.0},
        {"prediction_type": "original_sample"},
    ],
    ids=str,
)
def test_euler_options(config: dict[str, Any], kernel_calls: list[int]) -> None:
    compare("EulerDiscreteScheduler", kernel_calls, config)


def test_euler_levels(kernel_calls: list[int]) -> None:
    compare("EulerDiscreteScheduler", kernel_calls, {}, times={"timesteps": [990, 500, 120, 7]})
    compare("EulerDiscreteScheduler", kernel_calls, {}, times={"sigmas": [12.0, 4.0, 1.0, 0.2, 0.0]})


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_euler_ancestral(spacing: str, kind: str, kernel_calls: list[int]) -> None:
    config = {"prediction_type": kind, "timestep_spacing": spacing}
    compare("EulerAncestralDiscreteScheduler", kernel_calls, config)


@pytest.mark.parametrize("kind", KINDS)
def test_heun(kind: str, kernel_calls: list[int]) -> None:
    for clip in (False, True):
        compare("HeunDiscreteScheduler", kernel_calls, {"prediction_type": kind, "clip_sample": clip})


@pytest.mark.parametrize(
    "config", [{"beta_schedule": "exp", "timestep_spacing": "leading"}, *SIGMAS[1:]], ids=str
)
def test_heun_options(config: dict[str, Any], kernel_calls: list[int]) -> None:
    # their constructor makes a timestep of every sigma
    compare("HeunDiscreteScheduler", kernel_calls, {**config, "num_train_timesteps": 100})


# ---- multistep

DPM = [
    *itertools.product(["dpmsolver++", "sde-dpmsolver++", "dpmsolver"], [1, 2, 3]),
    *itertools.product(["sde-dpmsolver"], [1, 2]),
]


@pytest.mark.parametrize("algorithm, order", DPM)
def test_dpm_solver(algorithm: str, order: int, kernel_calls: list[int]) -> None:
    solver_types = ("midpoint", "heun") if order == 2 else ("midpoint",)
    for kind, solver_type, steps in itertools.product(KINDS, solver_types, (6, 17)):
        config = {
            "algorithm_type": algorithm,
            "solver_order": order,
            "solver_type": solver_type,
            "prediction_type": kind,
            "final_sigmas_type": "zero" if "++" in algorithm else "sigma_min",
        }
        noisy = algorithm.startswith("sde")
        compare("DPMSolverMultistepScheduler", kernel_calls, config, noisy=noisy, steps=steps)


@pytest.mark.parametrize(
    "config",
    [
        {"lower_order_final": False, "solver_order": 3, "final_sigmas_type": "sigma_min"},
        {"euler_at_final": True, "final_sigmas_type": "sigma_min", "solver_order": 3},
        {"use_karras_sigmas": True, "solver_order": 3},
        {"use_lu_lambdas": True},
        {"use_exponential_sigmas": True, "beta_schedule": "scaled_linear"},
        {"use_beta_sigmas": True, "timestep_spacing": "trailing"},
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0},
        {"lambda_min_clipped": -3.0, "timestep_spacing": "leading", "steps_offset": 1},
        {"rescale_betas_zero_snr": True, "prediction_type": "v_prediction"},
    ],
    ids=str,
)
def test_dpm_solver_options(config: dict[str, Any], kernel_calls: list[int]) -> None:
    compare("DPMSolverMultistepScheduler", kernel_calls, config)


def test_dpm_solver_keeps_the_mean_of_a_learned_variance(kernel_calls: list[int]) -> None:
    compare("DPMSolverMultistepScheduler", kernel_calls, {"variance_type": "learned_range"}, channels=6)


def test_dpm_solver_on_equal_levels(kernel_calls: list[int]) -> None:
    """karras sigmas end at sigma_min: a step of no length, which is left to the original."""
    config = {"use_karras_sigmas": True, "final_sigmas_type": "sigma_min"}
    compare("DPMSolverMultistepScheduler", kernel_calls, config, steps=17, unfused=1)


@pytest.mark.parametrize("order", [1, 2, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_unipc(kind: str, order: int, kernel_calls: list[int]) -> None:
    for solver_type, of_x0, steps in itertools.product(("bh1", "bh2"), (True, False), (6, 17)):
        config = {
            "solver_order": order,
            "solver_type": solver_type,
            "predict_x0": of_x0,
            "prediction_type": kind,
            "final_sigmas_type": "sigma_min",
        }
        # an epsilon made of x0 where there is little noise loses digits, theirs and ours
        limit = 1e-3 if kind == "sample" and not of_x0 else 1e-4
        compare("UniPCMultistepScheduler", kernel_calls, config, steps=steps, limit=limit)


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"disable_corrector": [0, 1, 4], "solver_order": 3},
        {"use_karras_sigmas": True},
        {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0},
        {"lower_order_final": False, "final_sigmas_type": "sigma_min"},
    ],
    ids=str,
)
def test_unipc_options(config: dict[str, Any], kernel_calls: list[int]) -> None:
    compare("UniPCMultistepScheduler", kernel_calls, config)


@pytest.mark.parametrize("begin", [1, 5])
@pytest.mark.parametrize(
    "name, config",
    [
        ("EulerDiscreteScheduler", {}),
        ("EulerAncestralDiscreteScheduler", {}),
        ("DPMSolverMultistepScheduler", {"solver_order": 3}),
        ("UniPCMultistepScheduler", {"solver_order": 3}),
    ],
)
def test_beginning_in_the_middle(
    name: str, config: dict[str, Any], begin: int, kernel_calls: list[int]
) -> None:
    compare(name, kernel_calls, config, begin=begin)
    compare("HeunDiscreteScheduler", kernel_calls, {}, begin=2 * begin)
