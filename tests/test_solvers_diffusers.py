"""Trajectories of diffusers' schedulers on the exact score, to 1e-4 of the rms (their tables are float32)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from solver_targets import MIXTURE, output, pair, run_exact

from diffusion_fast import solvers
from diffusion_fast.schedules import NoiseSchedule
from diffusion_fast.sigma_schedules import FlowSchedule, SigmaSchedule

diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: pip install '.[bench]'")

# theirs, about NumPy 2
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

TRAINED = NoiseSchedule.linear(1000)
# float32 betas: their cumulative products are 1e-5 off, in double they are ours
BETAS = {"trained_betas": TRAINED.betas.tolist(), "num_train_timesteps": 1000}
START = np.random.default_rng(0).standard_normal(300)
STEPS = 12
Array = Any


def perfect(kind: str, schedule: Any, x: Array, time: float) -> torch.Tensor:
    signal, noise = pair(schedule, time)
    return torch.from_numpy(output(kind, x, MIXTURE.denoised(x, signal, noise), signal, noise))


def run_peer(peer: Any, kind: str, start: Array, schedule: Any = TRAINED, **extra: Any) -> list[Array]:
    """The states after each of the peer's steps, float64."""
    x = torch.from_numpy(start)[:, None]  # UniPC wants two axes
    states = []
    for i, t in enumerate(peer.timesteps):
        u = peer.scale_model_input(x, t).double().numpy()
        given = {name: value(i) for name, value in extra.items()}
        x = peer.step(perfect(kind, schedule, u, float(t)), t, x, **given).prev_sample.double()
        states.append(x[:, 0].numpy())
    return states


def assert_rows(got: Array, states: list[Array]) -> None:
    assert len(got) == len(states)
    for i, (ours, theirs) in enumerate(zip(got, states, strict=True)):
        gap = np.sqrt(np.mean((ours - theirs) ** 2)) / np.sqrt(np.mean(theirs**2))
        assert gap < 3e-5, f"after row {i}: {gap}"  # NaN fails too


def seeded(i: int) -> torch.Generator:
    return torch.Generator().manual_seed(i)


def normals(n: int) -> Array:
    """What a peer draws at step i from seeded(i)."""
    return np.stack(
        [torch.randn(len(START), 1, dtype=torch.float64, generator=seeded(i))[:, 0].numpy() for i in range(n)]
    )


# ---- schedulers that keep x / signal ----

SIGMA_PEERS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "euler": ("EulerDiscreteScheduler", "euler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", "euler_ancestral", {}),
    "heun": ("HeunDiscreteScheduler", "heun", {}),
    "dpm_solver_2": ("KDPM2DiscreteScheduler", "dpm_solver_2", {}),
    "lms": ("LMSDiscreteScheduler", "lms", {}),
}


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", SIGMA_PEERS)
@pytest.mark.parametrize("spacing", ["leading", "trailing", "karras"])
def test_sigma_schedulers(name: str, spacing: str, kind: str) -> None:
    cls, solver, options = SIGMA_PEERS[name]
    if spacing == "karras" and name == "euler_ancestral":
        pytest.skip("EulerAncestralDiscreteScheduler has no karras sigmas")
    shared = BETAS | {"prediction_type": kind}
    shared |= {"use_karras_sigmas": True} if spacing == "karras" else {"timestep_spacing": spacing}
    peer = getattr(diffusers, cls)(**shared)
    peer.set_timesteps(STEPS)
    # their karras sigmas are over the range of "linspace", which is the whole, as are ours
    given: dict[str, Any] = {"steps": STEPS, "spacing": spacing, "fractional_time": True}
    table = solvers.solve(solver, TRAINED, prediction_type=kind, **given, **options)
    z = normals(len(table))
    got = run_exact(table, TRAINED, START, kind=kind, noise=z)[1:]
    draw = {"generator": seeded} if name == "euler_ancestral" else {}
    levels = peer.sigmas.double().numpy()
    if name == "dpm_solver_2":  # its first stage ends between the levels
        middle = peer.sigmas_interpol.double().numpy()
        levels = np.where(np.arange(len(levels)) % 2 == 1, middle, levels)
    states = run_peer(peer, kind, START * np.hypot(1, levels[0]), **draw)
    if name == "dpm_solver_2" and spacing == "karras":
        # theirs rounds the outer timesteps and not the middle ones; only the levels can be compared
        np.testing.assert_allclose(levels[2::2][:-1], table_levels(given), rtol=1e-4)
        return
    assert_rows(got, [state / np.hypot(1, s) for state, s in zip(states, levels[1:], strict=False)])


def table_levels(given: dict[str, Any]) -> Array:
    from diffusion_fast.solvers.levels import Grid

    return np.array([level.sigma for level in Grid("euler", TRAINED, given, (NoiseSchedule,)).levels[1:-1]])


# ---- schedulers that keep x ----

VP_PEERS: dict[str, tuple[str, dict[str, Any], str, dict[str, Any]]] = {
    "2m": ("DPMSolverMultistepScheduler", {}, "dpmpp_2m", {}),
    "2m heun": ("DPMSolverMultistepScheduler", {"solver_type": "heun"}, "dpmpp_2m", {"solver_type": "heun"}),
    "2m sde": ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, "dpmpp_2m_sde", {}),
    "2m sde heun": (
        "DPMSolverMultistepScheduler",
        {"algorithm_type": "sde-dpmsolver++", "solver_type": "heun"},
        "dpmpp_2m_sde",
        {"solver_type": "heun"},
    ),
}
for order in (1, 2, 3):
    for kind in ("bh1", "bh2"):
        both = {"solver_order": order, "solver_type": kind}
        VP_PEERS[f"unipc {order} {kind}"] = ("UniPCMultistepScheduler", both, "unipc", both)


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("name", VP_PEERS)
@pytest.mark.parametrize("spacing", ["leading", "karras"])
def test_vp_schedulers(name: str, spacing: str, kind: str) -> None:
    cls, theirs, solver, options = VP_PEERS[name]
    shared = BETAS | {"prediction_type": kind, "use_karras_sigmas": spacing == "karras"}
    peer = getattr(diffusers, cls)(**shared, **theirs)
    peer.set_timesteps(STEPS)
    given: dict[str, Any] = {"steps": STEPS, "spacing": "karras"}
    if spacing == "leading":
        given = {"timesteps": peer.timesteps}
    table = solvers.solve(solver, TRAINED, prediction_type=kind, **given, **options)
    assert table.timesteps.tolist() == peer.timesteps.tolist()
    z = np.random.default_rng(1).standard_normal((STEPS, len(START)))
    draw: dict[str, Callable[[int], Any]] = {}
    if "sde" in name:
        draw["variance_noise"] = lambda i: torch.from_numpy(z[i])[:, None]
    got = run_exact(table, TRAINED, START, kind=kind, noise=z)[1:]
    states = run_peer(peer, kind, START, **draw)
    if "bh1" in name:  # theirs ends in NaN: B(h) is infinite on the way to the data
        assert np.isnan(states[-1]).all() and np.isfinite(got).all()
        got, states = got[:-1], states[:-1]
    assert_rows(got, states)


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("steps", [20, 2, 3])
def test_pndm(steps: int, kind: str) -> None:
    peer = diffusers.PNDMScheduler(skip_prk_steps=True, set_alpha_to_one=True, prediction_type=kind, **BETAS)
    peer.set_timesteps(steps)
    table = solvers.solve("pndm", TRAINED, steps=steps, prediction_type=kind)
    assert table.timesteps.tolist() == peer.timesteps.tolist()
    got = run_exact(table, TRAINED, START, kind=kind)[1:]
    if kind == "v_prediction":
        # theirs averages v over levels where we average epsilon: the first row alone is the same
        got, states = got[:1], run_peer(peer, kind, START)[:1]
        assert_rows(got, states)
        return
    assert_rows(got, run_peer(peer, kind, START))


# ---- EDM and flow ----


@pytest.mark.parametrize("sigmas", ["karras", "exponential"])
@pytest.mark.parametrize("name", ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler"])
def test_edm_schedulers(name: str, sigmas: str) -> None:
    peer = getattr(diffusers, name)(sigma_schedule=sigmas, sigma_min=0.01, sigma_max=50.0)
    peer.set_timesteps(STEPS)
    schedule = getattr(SigmaSchedule, sigmas)(STEPS, 0.01, 50.0)
    np.testing.assert_allclose(peer.sigmas[:-1], schedule.sigmas, rtol=1e-5)
    x, states = torch.from_numpy(START * 50.0), []
    for t, s in zip(peer.timesteps, schedule.sigmas.tolist(), strict=True):
        u = peer.scale_model_input(x, t).double().numpy()
        F = output("edm", u * np.hypot(s, 0.5), MIXTURE.denoised(u * np.hypot(s, 0.5), 1.0, s), 1.0, s)
        x = peer.step(torch.from_numpy(F), t, x).prev_sample.double()
        states.append(x.numpy())
    for solver in {"EDMEulerScheduler": ["euler", "edm"]}.get(name, ["dpmpp_2m"]):
        options = {"solver_order": 1} if solver == "edm" else {}
        table = solvers.solve(solver, schedule, prediction_type="edm", **options)
        assert_rows(run_exact(table, schedule, START, kind="edm")[2:], states)


@pytest.mark.parametrize("shift", [1.0, 3.0])
def test_flow_match_euler(shift: float) -> None:
    schedule = FlowSchedule.linear(STEPS, shift)
    peer = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
    peer.set_timesteps(sigmas=FlowSchedule.linear(STEPS).times.tolist())
    np.testing.assert_allclose(peer.sigmas[:-1], schedule.times, rtol=1e-6)
    x, states = torch.from_numpy(START), []
    for t, time in zip(peer.timesteps, schedule.times.tolist(), strict=True):
        x = peer.step(perfect("flow", schedule, x.numpy(), time), t, x).prev_sample.double()
        states.append(x.numpy())
    got = run_exact(solvers.flow_euler(schedule), schedule, START, kind="flow")[1:]
    assert_rows(got, states)


def test_flow_match_heun() -> None:
    peer = diffusers.FlowMatchHeunDiscreteScheduler()
    peer.set_timesteps(STEPS)
    times = np.unique(peer.sigmas.double().numpy())[:0:-1]
    schedule = FlowSchedule(times)
    x, states = torch.from_numpy(START), []
    for t in peer.timesteps:
        x = peer.step(perfect("flow", schedule, x.numpy(), float(t) / 1000), t, x).prev_sample.double()
        states.append(x.numpy())
    assert_rows(run_exact(solvers.flow_heun(schedule), schedule, START, kind="flow")[1:], states)
