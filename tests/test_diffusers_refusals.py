"""Bad input to the schedulers: each message names the argument and what is accepted."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed: pip install '.[diffusers]'")
from diffusers_loops import NAMES, START, network, original, ours

pytestmark = [
    pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning"),  # theirs, about NumPy 2
    pytest.mark.filterwarnings("ignore::FutureWarning"),  # theirs, about dpmsolver without ++
]

CONFIGS: list[tuple[str, dict[str, Any], str]] = [
    *((name, {"prediction_type": "epsilom"}, "prediction_type.*epsilom.*epsilon") for name in NAMES),
    ("EulerAncestralDiscreteScheduler", {"prediction_type": "sample"}, "prediction_type.*sample"),
    ("DDPMScheduler", {"variance_type": "fixed_large_log"}, "variance_type.*fixed_large_log.*NaN"),
    (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver", "solver_order": 3, "final_sigmas_type": "sigma_min"},
        "solver_order.*3.*1 or 2",
    ),
    ("DPMSolverMultistepScheduler", {"solver_order": 0}, "solver_order.*0"),
    ("UniPCMultistepScheduler", {"solver_order": 0}, "solver_order.*0"),
    (
        "UniPCMultistepScheduler",
        {"prediction_type": "flow_prediction", "predict_x0": False},
        "prediction_type.*flow_prediction",
    ),
]


@pytest.mark.parametrize("name, config, message", CONFIGS)
def test_config(name: str, config: dict[str, Any], message: str) -> None:
    original(name, **config)  # which accepts it, and fails or gives NaN in step
    with pytest.raises(ValueError, match=message):
        ours(name, **config)


@pytest.mark.parametrize("name", ["DDIMScheduler", "DPMSolverMultistepScheduler", "UniPCMultistepScheduler"])
def test_step_before_set_timesteps(name: str) -> None:
    with pytest.raises(ValueError, match=r"num_inference_steps: got None.*set_timesteps"):
        ours(name).step(START, 5, START)


@pytest.mark.parametrize(
    "output, sample, error, message",
    [
        (START[:, :2], START, ValueError, r"model_output: got .*\(2, 2, 4, 5\).*\(2, 3, 4, 5\)"),
        (START[:1], START, ValueError, "model_output: got"),
        (START.tolist(), START, TypeError, "model_output: got"),
        (START, START.numpy(), TypeError, "sample: got"),
        (START.clone().requires_grad_(), START, ValueError, r"model_output: .*requires grad.*detach"),
        (START, START.clone().requires_grad_(), ValueError, r"sample: .*requires grad.*detach"),
    ],
)
@pytest.mark.parametrize("name", NAMES)
def test_tensors(name: str, output: Any, sample: Any, error: type[Exception], message: str) -> None:
    scheduler = ours(name)
    scheduler.set_timesteps(4)
    with pytest.raises(error, match=message):
        scheduler.step(output, scheduler.timesteps[0], sample)


COUNTING = [name for name in NAMES if name[0] != "H" and not name.startswith("DD")]  # Heun's goes on with NaN


@pytest.mark.parametrize("name", COUNTING)
def test_more_steps_than_there_are(name: str) -> None:
    scheduler = ours(name)
    scheduler.set_timesteps(2)
    x, times = START, scheduler.timesteps
    for t in times:
        x = scheduler.step(network(x), t, x).prev_sample
    with pytest.raises(IndexError, match="step_index: got"):
        scheduler.step(network(x), times[-1], x)


def test_timesteps() -> None:
    scheduler = ours("DDPMScheduler")
    scheduler.set_timesteps(4)
    with pytest.raises(IndexError, match="timestep: got 3; accepted: one of"):
        scheduler.step(START, 3, START)
    with pytest.raises(TypeError):
        scheduler.step(START, 750.0, START)
    for name in ("EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler"):
        with pytest.raises(ValueError, match="timestep: got 3"):
            ours(name).step(START, 3, START)


@pytest.mark.parametrize(
    "name, given",
    [
        ("DPMSolverMultistepScheduler", {"timesteps": [9, 5, 5, 1]}),
        ("EulerDiscreteScheduler", {"timesteps": [1, 5, 9]}),
        ("EulerDiscreteScheduler", {"sigmas": [9.0, 1.0, 5.0]}),
        ("EulerDiscreteScheduler", {"sigmas": [9.0, float("nan"), 5.0]}),
        ("HeunDiscreteScheduler", {"timesteps": [1, 5, 9]}),
        ("DDPMScheduler", {"timesteps": [9, 5, 5]}),
    ],
)
def test_lists_that_do_not_descend(name: str, given: dict[str, list[float]]) -> None:
    scheduler = ours(name)
    (key,) = given
    before = scheduler.timesteps.clone()
    with pytest.raises(ValueError, match=rf"{key}\[\d\], {key}\[\d\]: got .*; accepted: .*strictly descends"):
        scheduler.set_timesteps(**given)
    assert torch.equal(scheduler.timesteps, before)


@pytest.mark.parametrize("last", ["zero", "sigma_min"])
def test_a_runs_own_sigmas_descend(last: str) -> None:
    scheduler = ours("EulerDiscreteScheduler", final_sigmas_type=last)
    scheduler.set_timesteps(5)
    sigmas = scheduler.sigmas
    scheduler.set_timesteps(sigmas=sigmas.tolist())
    assert torch.equal(scheduler.sigmas, sigmas)


def test_learned_variance_needs_its_channels() -> None:
    scheduler = ours("DDPMScheduler", variance_type="learned_range")
    with pytest.raises(ValueError, match=r"model_output: .*twice the 3 channels"):
        scheduler.step(START, 500, START)
    scheduler.step(START, 0, START)  # no noise in the last step


def test_two_sources_of_noise() -> None:
    scheduler = ours("DDIMScheduler")
    scheduler.set_timesteps(4)
    with pytest.raises(ValueError, match=r"variance_noise: .*generator"):
        scheduler.step(START, 500, START, eta=1.0, variance_noise=START, generator=torch.Generator())
