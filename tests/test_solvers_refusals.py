"""Solvers: each argument out of its range is refused by its name, its value and what is accepted."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch

from diffusion_fast import solvers
from diffusion_fast.schedules import NoiseSchedule
from diffusion_fast.sigma_schedules import FlowSchedule, SigmaSchedule

LINEAR, SIGMAS, FLOW = NoiseSchedule.linear(10), SigmaSchedule.karras(5), FlowSchedule.linear(5)
ZERO = LINEAR.zero_terminal_snr()

# solver, schedule, options, error, pattern of the message
REFUSALS: dict[str, tuple[str, Any, dict[str, Any], type[Exception], str]] = {
    "solver": ("eular", LINEAR, {}, ValueError, "solver: got 'eular' .*did you mean 'euler'"),
    "option": ("heun", LINEAR, {"eta": 1.0}, ValueError, "options of solver 'heun': got 'eta'"),
    "typo": (
        "heun",
        LINEAR,
        {"spacng": "karras"},
        ValueError,
        "options of solver 'heun': .*did you mean 'spacing'",
    ),
    "schedule": (
        "euler",
        [1.0],
        {},
        TypeError,
        r"schedule: got \[1.0\] .*NoiseSchedule or a SigmaSchedule or",
    ),
    "edm kind": (
        "edm",
        LINEAR,
        {},
        TypeError,
        "schedule: got NoiseSchedule.*a SigmaSchedule for solver 'edm'",
    ),
    "plms kind": (
        "pndm",
        SIGMAS,
        {},
        TypeError,
        "schedule: got SigmaSchedule.*a NoiseSchedule for solver 'plms'",
    ),
    "flow kind": ("flow_euler", SIGMAS, {}, TypeError, "schedule: got SigmaSchedule.*a FlowSchedule"),
    "annealed kind": ("annealed_langevin", LINEAR, {}, TypeError, "schedule: got Noise.*a SigmaSchedule"),
    "langevin kind": ("langevin", FLOW, {"step_size": 1.0}, TypeError, "schedule: got FlowSchedule"),
    "ddpm kind": ("ddpm", SIGMAS, {}, TypeError, "schedule: got SigmaSchedule.*a NoiseSchedule"),
    "steps above": ("euler", LINEAR, {"steps": 11}, ValueError, "steps: got 11 .*from 1 to 10"),
    "steps zero": (
        "lms",
        LINEAR,
        {"steps": 0, "spacing": "karras"},
        ValueError,
        "steps: got 0 .*from 1 to 10",
    ),
    "steps float": ("heun", LINEAR, {"steps": 5.0}, TypeError, "steps: got 5.0 .*an integer"),
    "steps of sigmas": ("heun", SIGMAS, {"steps": 4}, ValueError, "steps: got 4 .*None or 5, the length"),
    "spacing": (
        "heun",
        LINEAR,
        {"spacing": "karas"},
        ValueError,
        "spacing: got 'karas' .*did you mean 'karras'",
    ),
    "spacing type": ("heun", LINEAR, {"spacing": 3}, TypeError, "spacing: got 3"),
    "spacing of sigmas": (
        "heun",
        SIGMAS,
        {"spacing": "karras"},
        ValueError,
        "spacing: got 'karras' .*None with",
    ),
    "timesteps of a flow": (
        "euler",
        FLOW,
        {"timesteps": [1, 0]},
        ValueError,
        "timesteps: got .*None with a Flow",
    ),
    "timesteps ascend": ("heun", LINEAR, {"timesteps": [3, 5]}, ValueError, "timesteps: got 5 at index 1"),
    "timesteps float": ("heun", LINEAR, {"timesteps": [3.0, 1.0]}, TypeError, "timesteps: got .*integers"),
    "sigmas ascend": (
        "ddim",
        LINEAR,
        {"sigmas": [0.1, 0.2]},
        ValueError,
        "sigmas: got 0.2 at index 1, after 0.1",
    ),
    "sigmas end in 0": ("heun", LINEAR, {"sigmas": [0.2, 0.0]}, ValueError, "sigmas: got 0.0 at index 1"),
    "sigmas outside": (
        "heun",
        LINEAR,
        {"sigmas": [99.0, 0.1]},
        ValueError,
        "sigmas: got 99.0 .*within the sched",
    ),
    "sigmas and steps": (
        "heun",
        LINEAR,
        {"sigmas": [0.1], "steps": 1},
        ValueError,
        "sigmas: .*either steps or",
    ),
    "both lists": (
        "heun",
        LINEAR,
        {"sigmas": [0.1], "timesteps": [1]},
        ValueError,
        "timesteps: .*either timest",
    ),
    "stop": ("ddpm", LINEAR, {"spacing": "karras", "stop": 0}, ValueError, "stop: got 0 .*None with levels"),
    "fractional_time": ("heun", LINEAR, {"fractional_time": 1}, TypeError, "fractional_time: got 1"),
    "karras at abar 0": (
        "euler",
        ZERO,
        {"spacing": "karras", "prediction_type": "v_prediction"},
        ValueError,
        "spacing: got 'karras' .*alphas_cumprod = 0 .*leading",
    ),
    "epsilon at abar 0": (
        "euler",
        ZERO,
        {},
        ValueError,
        "prediction_type: got 'epsilon' .*timestep 9.*'v_pred",
    ),
    "score at abar 0": (
        "dpmpp_2m",
        ZERO,
        {"prediction_type": "score"},
        ValueError,
        "prediction_type: got 'score' .*timestep 9",
    ),
    "no signal": (
        "heun",
        ZERO,
        {"prediction_type": "v_prediction"},
        ValueError,
        "schedule: got NoiseSchedule.*keeps some signal with solver 'heun'.*dpmpp_2m",
    ),
    "no signal in a flow": ("unipc", FLOW, {}, ValueError, "schedule: got FlowSchedule.*solver 'unipc'"),
    "prediction of vp": (
        "heun",
        LINEAR,
        {"prediction_type": "flow"},
        ValueError,
        "prediction_type: got 'flow'",
    ),
    "prediction of ve": (
        "heun",
        SIGMAS,
        {"prediction_type": "v_prediction"},
        ValueError,
        "prediction_type: .*one of epsilon, sample, score, edm",
    ),
    "prediction empty": ("heun", SIGMAS, {"prediction_type": ""}, ValueError, "prediction_type: got ''"),
    "sigma_data": ("heun", SIGMAS, {"sigma_data": 0.0}, ValueError, "sigma_data: got 0.0"),
    "clip": ("heun", SIGMAS, {"clip": -1.0}, ValueError, "clip: got -1.0"),
    "clip of plms": ("plms", LINEAR, {"clip": 1.0}, ValueError, "clip: got 1.0 .*None with solver 'plms'"),
    "clip of lms": ("lms", SIGMAS, {"clip": 1.0}, ValueError, "clip: got 1.0 .*None with solver 'lms'"),
    "clip of langevin": (
        "langevin",
        SIGMAS,
        {"clip": 1.0, "step_size": 0.1},
        ValueError,
        "clip: got 1.0 .*None with solver 'langevin'",
    ),
    "unipc order": ("unipc", LINEAR, {"solver_order": 4}, ValueError, "solver_order: got 4 .*from 1 to 3"),
    "unipc type": ("unipc", LINEAR, {"solver_type": "bh3"}, ValueError, "solver_type: .*did you mean 'bh"),
    "unipc flag": ("unipc", LINEAR, {"lower_order_final": 1}, TypeError, "lower_order_final: got 1"),
    "lms order": ("lms", LINEAR, {"solver_order": 5}, ValueError, "solver_order: got 5 .*from 1 to 4"),
    "lms order 0": ("lms", LINEAR, {"solver_order": 0}, ValueError, "solver_order: got 0"),
    "edm order": ("edm", SIGMAS, {"solver_order": 3}, ValueError, "solver_order: got 3 .*from 1 to 2"),
    "2m type": (
        "dpmpp_2m",
        LINEAR,
        {"solver_type": "bh2"},
        ValueError,
        "solver_type: got 'bh2' .*midpoint, heun",
    ),
    "s_churn": ("edm", SIGMAS, {"s_churn": -1.0}, ValueError, "s_churn: got -1.0"),
    "s_churn nan": ("edm", SIGMAS, {"s_churn": math.nan}, ValueError, "s_churn: got nan"),
    "s_tmin": ("edm", SIGMAS, {"s_tmin": "0"}, TypeError, "s_tmin: got '0'"),
    "s_tmax": ("edm", SIGMAS, {"s_tmin": 2.0, "s_tmax": 1.0}, ValueError, r"s_tmax: got 1.0 .*\[2, inf"),
    "s_noise edm": ("edm", SIGMAS, {"s_noise": -0.1}, ValueError, "s_noise: got -0.1"),
    "step_size": ("langevin", SIGMAS, {}, TypeError, "step_size: got None"),
    "step_size 0": ("annealed_langevin", SIGMAS, {"step_size": 0.0}, ValueError, "step_size: got 0.0"),
    "level": ("langevin", SIGMAS, {"step_size": 0.1, "level": 5}, ValueError, "level: got 5 .*from 0 to 4"),
    "langevin steps": ("langevin", SIGMAS, {"step_size": 0.1, "steps": 0}, ValueError, "steps: got 0"),
    "start_scale": (
        "langevin",
        SIGMAS,
        {"step_size": 0.1, "start_scale": -1.0},
        ValueError,
        "start_scale: got -1",
    ),
    "per level": ("annealed_langevin", SIGMAS, {"steps_per_level": 0}, ValueError, "steps_per_level: got 0"),
    "rows": (
        "annealed_langevin",
        SIGMAS,
        {"steps_per_level": 1 << 19},
        ValueError,
        "steps_per_level: got 524288 .*with 5 levels",
    ),
    "rule": (
        "annealed_langevin",
        SIGMAS,
        {"step_rule": "scale"},
        ValueError,
        "step_rule: .*did you mean 'scaled'",
    ),
    "denoise": ("annealed_langevin", SIGMAS, {"denoise": None}, TypeError, "denoise: got None"),
}
for name in ("euler_ancestral", "dpmpp_2s_ancestral", "dpmpp_2m_sde", "dpmpp_3m_sde"):
    REFUSALS[f"eta of {name}"] = (name, LINEAR, {"eta": -0.1}, ValueError, "eta: got -0.1")
    REFUSALS[f"eta inf of {name}"] = (name, LINEAR, {"eta": math.inf}, ValueError, "eta: got inf")
    REFUSALS[f"s_noise of {name}"] = (name, LINEAR, {"s_noise": "1"}, TypeError, "s_noise: got '1'")


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case: str) -> None:
    solver, schedule, options, error, pattern = REFUSALS[case]
    with pytest.raises(error) as caught:
        solvers.solve(solver, schedule, **options)
    assert type(caught.value) is error
    assert re.search(pattern, str(caught.value), re.S), str(caught.value)
    assert "accepted" in str(caught.value)


@pytest.mark.parametrize(
    "solver", [name for name in solvers.SOLVERS if name not in ("ddpm", "ddim", "langevin")]
)
def test_a_direct_call_names_an_unknown_option(solver: str) -> None:
    schedule = {"edm": SIGMAS, "annealed_langevin": SIGMAS}.get(solver, FLOW if "flow" in solver else LINEAR)
    with pytest.raises(
        ValueError, match=f"options of solver '{solver}': got 'spacin' .*did you mean 'spacing'"
    ):
        solvers.SOLVERS[solver](schedule, spacin="karras")


@pytest.mark.parametrize("solver", ["euler", "euler_ancestral", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde"])
def test_pure_noise_is_no_obstacle_for_these(solver: str) -> None:
    """From alphas_cumprod = 0 the first step forgets x but for its noise: x <- signal x0 + noise x / 1."""
    for kind in ("v_prediction", "sample"):
        table = solvers.solve(solver, NoiseSchedule.linear(50).zero_terminal_snr(), prediction_type=kind)
        assert all(np.isfinite(table.rows[name]).all() for name in solvers.COEFFICIENTS if name != "clip")
        row = table[0]
        signal = float(NoiseSchedule.linear(50).zero_terminal_snr().alphas_cumprod[-2]) ** 0.5
        sign = 1.0 if kind == "sample" else -1.0
        assert row.e + row.b * row.p_F == pytest.approx(sign * signal, rel=1e-6)
        assert row.a**2 + row.s**2 == pytest.approx(1 - signal**2, rel=1e-6)


@pytest.mark.parametrize("solver", [name for name in solvers.SOLVERS if "langevin" not in name])
def test_every_last_row_ends_at_x0_without_noise(solver: str) -> None:
    schedule: Any = LINEAR
    if solver == "edm":
        schedule = SIGMAS
    elif "flow" in solver:
        schedule = FLOW
    steps_of = (1, 2, 10) if schedule is LINEAR else (None,)
    for steps in steps_of:
        table = solvers.solve(solver, schedule, steps=steps, prediction_type="sample")
        last = table[-1]
        assert last.s == 0.0 and last.eval
        values = [getattr(last, name) for name in ("a", "b", "e", "c1", "c2", "c3")]
        assert all(math.isfinite(value) for value in values)
        if solver not in ("plms", "lms"):  # theirs goes along an extrapolated epsilon
            assert last.e + last.b * last.p_F == pytest.approx(1.0)
            assert abs(last.a + last.b * last.p_x) + abs(last.c1) + abs(last.c2) < 1e-6


def test_the_history_that_each_solver_needs() -> None:
    """h3 is the oldest there is: UniPC-3, lms 4 and plms use it, nobody else."""
    needs = {"heun": 1, "dpm_solver_2": 1, "dpmpp_2m": 1, "dpmpp_2s_ancestral": 1, "dpmpp_2m_sde": 1}
    needs |= {"dpmpp_3m_sde": 2, "unipc": 2, "plms": 3, "lms": 3, "euler": 0, "euler_ancestral": 0}
    for name, depth in needs.items():
        terms = solvers.solve(name, LINEAR).terms
        assert [bool(terms & solvers.TERM_BITS[f"c{k}"]) for k in (1, 2, 3)] == [
            k <= depth for k in (1, 2, 3)
        ], name
    three = solvers.unipc(LINEAR, solver_order=3)
    assert three.terms & solvers.TERM_BITS["c3"]
    folded = solvers.euler(LINEAR)
    assert not folded.terms & (solvers.TERM_BITS["b"] | solvers.TERM_BITS["push"] | solvers.TERM_BITS["p_x"])


def test_torch_lists_are_accepted() -> None:
    by_tensor = solvers.heun(LINEAR, timesteps=torch.tensor([9, 4, 0]))
    assert by_tensor == solvers.heun(LINEAR, timesteps=[9, 4, 0])
    assert by_tensor.timesteps.tolist() == [9, 4, 4, 0, 0] and by_tensor.nfe == 5
