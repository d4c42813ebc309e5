"""Whole trajectories against the published algorithms in float64, to 1e-5 of the rms of each row."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from solver_loops import (
    Array,
    D,
    Steps,
    dpm_solver_2,
    dpmpp_2m,
    dpmpp_2m_sde,
    dpmpp_2s_ancestral,
    dpmpp_3m_sde,
    edm,
    euler,
    euler_ancestral,
    lms,
    plms,
    unipc,
)
from solver_targets import MIXTURE, run_exact

from diffusion_fast import solvers
from diffusion_fast.schedules import NoiseSchedule
from diffusion_fast.sigma_schedules import FlowSchedule, SigmaSchedule

N_SAMPLES = 400

# name: (solver, its options, loop, the loop's options); SDE solvers draw in the row that ends at a level
CASES: dict[str, tuple[str, dict[str, Any], Callable[..., Steps], dict[str, Any]]] = {
    "euler": ("euler", {}, euler, {}),
    "heun": ("heun", {}, edm, {}),
    "dpm_solver_2": ("dpm_solver_2", {}, dpm_solver_2, {}),
    "dpmpp_2m": ("dpmpp_2m", {}, dpmpp_2m, {}),
    "lms": ("lms", {}, lms, {}),
    "plms": ("plms", {}, plms, {}),
}
for eta, s_noise in ((1.0, 1.0), (0.6, 1.1), (0.0, 1.0), (1.5, 0.9)):
    given = {"eta": eta, "s_noise": s_noise}
    for loop in (euler_ancestral, dpmpp_2s_ancestral, dpmpp_2m_sde, dpmpp_3m_sde):
        CASES[f"{loop.__name__}, eta {eta}"] = (loop.__name__, given, loop, given)
for loop in (dpmpp_2m, dpmpp_2m_sde):
    given = {"solver_type": "heun"}
    noisy = {"eta": 1.0, "s_noise": 1.0} if loop is dpmpp_2m_sde else {}
    CASES[f"{loop.__name__}, heun"] = (loop.__name__, given, loop, given | noisy)
for order, kind, low in itertools.product((1, 2, 3), ("bh1", "bh2"), (True, False)):
    ours = {"solver_order": order, "solver_type": kind, "lower_order_final": low}
    theirs = {"order": order, "kind": kind, "lower_order_final": low}
    CASES[f"unipc {order} {kind} {low}"] = ("unipc", ours, unipc, theirs)
for order in (1, 2, 3):
    CASES[f"lms {order}"] = ("lms", {"solver_order": order}, lms, {"order": order})
CHURN = {"s_churn": 4.0, "s_tmin": 0.05, "s_tmax": 20.0, "s_noise": 1.007}
EDM_CASES = {
    "edm": ({}, {}),
    "edm, churn": (CHURN, CHURN),
    "edm, all churn": ({"s_churn": 100.0}, {"s_churn": 100.0}),
    "edm, euler": (CHURN | {"solver_order": 1}, CHURN | {"order": 1}),
}


def assert_same_rows(got: Array, steps: Steps, scale: Callable[[float], float]) -> None:
    """got: (rows, n) states, steps: what the loop yields; equal to 1e-5 of the rms of each."""
    expected = list(steps)
    assert len(got) == len(expected)
    for ours, (x, sigma) in zip(got, expected, strict=True):
        theirs = scale(sigma) * x
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-5 * np.sqrt(np.mean(theirs**2)))


def noise_of(table: solvers.StepTable, seed: int = 1) -> tuple[Array, Callable[[], Array]]:
    """Normals for each row, and a function that hands out those of the rows that add some, in order."""
    z = np.random.default_rng(seed).standard_normal((len(table), N_SAMPLES))
    used = iter(z[table.rows["s"] != 0])
    return z, lambda: next(used, 0.0)  # 0: eta = 0 draws nothing


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("spacing", ["karras", "leading"])
def test_rows_of_a_noise_schedule(case: str, spacing: str) -> None:
    solver, options, loop, loop_options = CASES[case]
    schedule = NoiseSchedule.linear(200, 1e-4, 0.06)
    table = solvers.solve(solver, schedule, steps=9, spacing=spacing, fractional_time=True, **options)
    abar = schedule.alphas_cumprod.numpy()
    trained = np.sqrt((1 - abar) / abar)
    if spacing == "karras":
        ramp = np.linspace(0, 1, 9)
        sigmas = (trained[-1] ** (1 / 7) + ramp * (trained[0] ** (1 / 7) - trained[-1] ** (1 / 7))) ** 7
    else:
        sigmas = trained[np.arange(9)[::-1] * 22]
    start = np.random.default_rng(0).standard_normal(N_SAMPLES)
    z, draw = noise_of(table)
    got = run_exact(table, schedule, start, noise=z)[1:]
    x = start * np.hypot(1, sigmas[0])  # x / signal
    steps = loop(x, [*sigmas.tolist(), 0.0], draw, **loop_options)
    assert_same_rows(got, steps, lambda sigma: 1 / np.hypot(1, sigma))


@pytest.mark.parametrize("case", [name for name in CASES if name != "plms"])
@pytest.mark.parametrize("kind", ["edm", "epsilon"])
def test_rows_of_a_sigma_schedule(case: str, kind: str) -> None:
    solver, options, loop, loop_options = CASES[case]
    check_sigma(solver, options, loop, loop_options, kind)


@pytest.mark.parametrize("case", EDM_CASES)
def test_rows_of_the_edm_sampler(case: str) -> None:
    options, loop_options = EDM_CASES[case]
    check_sigma("edm", options, edm, loop_options, "edm")
    table = solvers.edm(SigmaSchedule.karras(9), **options)
    assert table[0].eval is False and table.nfe == (9 if options.get("solver_order") == 1 else 17)


def check_sigma(solver: str, options: Any, loop: Any, loop_options: Any, kind: str) -> None:
    schedule = SigmaSchedule.karras(9)
    table = solvers.solve(solver, schedule, prediction_type=kind, **options)
    ramp = np.linspace(0, 1, 9)
    sigmas = (80 ** (1 / 7) + ramp * (0.002 ** (1 / 7) - 80 ** (1 / 7))) ** 7
    start = np.random.default_rng(0).standard_normal(N_SAMPLES)
    z, draw = noise_of(table)
    trajectory = run_exact(table, schedule, start, kind=kind, noise=z)
    if solver == "edm":  # churn belongs to the row before: take it away to compare row by row
        churned = trajectory - np.concatenate([np.zeros((1, N_SAMPLES)), table.rows["s"][:, None] * z])
        np.testing.assert_allclose(churned[1], 80 * start, rtol=1e-6)
        trajectory = churned
    assert_same_rows(trajectory[2:], loop(start * 80.0, [*sigmas, 0.0], draw, **loop_options), lambda _: 1.0)


@pytest.mark.parametrize("shift", [1.0, 3.0])
@pytest.mark.parametrize("clip", [None, 1e3])
def test_rows_of_a_flow(shift: float, clip: float | None) -> None:
    schedule = FlowSchedule.linear(8, shift)
    t = np.arange(8, 0, -1) / 8
    t = [*(shift * t / (1 + (shift - 1) * t)), 0.0]
    start = np.random.default_rng(0).standard_normal(N_SAMPLES)

    def v(x: Array, time: float) -> Array:
        return (x - MIXTURE.denoised(x, 1 - time, time)) / time

    x, rows = start, []
    for now, after in itertools.pairwise(t):
        x = x + (after - now) * v(x, now)
        rows.append((x, 0.0))
    for kind in ("flow", "sample"):
        for solver in ("flow_euler", "euler"):
            table = solvers.solve(solver, schedule, prediction_type=kind, clip=clip)
            assert_same_rows(run_exact(table, schedule, start, kind=kind)[1:], iter(rows), lambda _: 1.0)
    x, rows = start, []
    for now, after in itertools.pairwise(t):
        slope_now = v(x, now)
        guess = x + (after - now) * slope_now
        rows.append((guess, 0.0))
        if after > 0:
            x = x + (after - now) * (slope_now + v(guess, after)) / 2
            rows.append((x, 0.0))
    table = solvers.flow_heun(schedule, clip=clip)
    assert_same_rows(run_exact(table, schedule, start, kind="flow")[1:], iter(rows), lambda _: 1.0)


@pytest.mark.parametrize("rule", ["scaled", "fixed"])
def test_rows_of_annealed_langevin(rule: str) -> None:
    """Song & Ermon 2019, Algorithm 1."""
    schedule = SigmaSchedule.exponential(5, 0.1, 3.0)
    options = {"steps_per_level": 4, "step_size": 2e-3, "step_rule": rule, "denoise": True}
    table = solvers.annealed_langevin(schedule, prediction_type="score", **options)
    start = np.random.default_rng(0).standard_normal(N_SAMPLES)
    z, draw = noise_of(table)
    got = run_exact(table, schedule, start, kind="score", noise=z)[2:]
    sigmas = schedule.sigmas.tolist()
    x, rows = 3.0 * start, []
    for s in sigmas:
        alpha = 2e-3 * s**2 / sigmas[-1] ** 2 if rule == "scaled" else 2e-3
        for _ in range(4):
            x = x + alpha / 2 * (D(x, s) - x) / s**2 + alpha**0.5 * draw()
            rows.append((x, s))
    rows.append((D(x, sigmas[-1]), 0.0))
    assert_same_rows(got, iter(rows), lambda _: 1.0)
    assert len(table.table_timesteps) == 5 and table.nfe == 21


def test_rows_of_langevin() -> None:
    for schedule, level, signal in (
        (SigmaSchedule([1.0, 0.4, 0.1]), 1, 1.0),
        (NoiseSchedule.linear(50), 7, None),
    ):
        table = solvers.langevin(
            schedule, steps=6, step_size=5e-3, level=level, start_scale=2.0, last_noise=False
        )
        start = np.random.default_rng(0).standard_normal(N_SAMPLES)
        z, draw = noise_of(table)
        noise = 0.4
        if signal is None:
            signal = float(schedule.alphas_cumprod[7]) ** 0.5
            noise = (1 - signal**2) ** 0.5
        x, rows = 2 * start, [(2 * start, 0.0)]
        for i in range(6):
            score = (signal * MIXTURE.denoised(x, signal, noise) - x) / noise**2
            x = x + 5e-3 * score + (0.01**0.5 * draw() if i < 5 else 0.0)
            rows.append((x, 0.0))
        assert_same_rows(run_exact(table, schedule, start, noise=z)[1:], iter(rows), lambda _: 1.0)


@pytest.mark.parametrize(
    "name", ["euler", "heun", "dpm_solver_2", "dpmpp_2m", "dpmpp_2s_ancestral", "unipc", "lms"]
)
def test_rows_of_a_flow_that_starts_with_some_signal(name: str) -> None:
    """In x / (1 - t) and sigma = t / (1 - t) a flow is like any other schedule."""
    loop = {"euler": euler, "heun": edm, "lms": lms, "unipc": unipc, "dpmpp_2m": dpmpp_2m}.get(name)
    options: dict[str, Any] = {}
    if name == "dpm_solver_2":
        loop = dpm_solver_2
    if name == "dpmpp_2s_ancestral":
        loop, options = dpmpp_2s_ancestral, {"eta": 0.5, "s_noise": 1.0}
    assert loop is not None
    times = np.linspace(0.95, 0.1, 8)
    schedule = FlowSchedule(times)
    table = solvers.solve(name, schedule, **options)
    start = np.random.default_rng(0).standard_normal(N_SAMPLES)
    z, draw = noise_of(table)
    got = run_exact(table, schedule, start, kind="flow", noise=z)[1:]
    sigmas = [*(times / (1 - times)).tolist(), 0.0]
    assert_same_rows(got, loop(start / 0.05, sigmas, draw, **options), lambda sigma: 1 / (1 + sigma))


@pytest.mark.parametrize("solver", ["euler", "euler_ancestral", "heun", "dpmpp_2m_sde", "unipc", "lms"])
def test_prediction_types_are_one_model(solver: str) -> None:
    start = np.random.default_rng(0).standard_normal(N_SAMPLES)
    kinds = {
        NoiseSchedule.linear(100, 1e-3, 0.08): ("epsilon", "sample", "v_prediction", "score"),
        SigmaSchedule.karras(8, 0.05, 20.0): ("epsilon", "sample", "score", "edm"),
    }
    for schedule, names in kinds.items():
        results = []
        for kind in names:
            steps = 8 if isinstance(schedule, NoiseSchedule) else None
            table = solvers.solve(solver, schedule, steps=steps, prediction_type=kind)
            z, _ = noise_of(table)
            results.append(run_exact(table, schedule, start, kind=kind, noise=z)[-1])
        for other in results[1:]:
            np.testing.assert_allclose(other, results[0], atol=2e-5)


def test_clip_bounds_x0_at_each_evaluation() -> None:
    """Euler and Heun with the denoiser's value clamped, which is what both see of it."""
    schedule = SigmaSchedule.karras(8, 0.05, 20.0)
    start = np.random.default_rng(0).standard_normal(N_SAMPLES)

    def clipped(x: Array, signal: float, noise: float) -> Array:
        return np.clip(MIXTURE.denoised(x, signal, noise), -0.7, 0.7)

    for solver in ("euler", "heun", "dpmpp_2m", "unipc", "edm", "dpmpp_3m_sde"):
        ours = solvers.solve(solver, schedule, prediction_type="sample", clip=0.7)
        plain = solvers.solve(solver, schedule, prediction_type="sample")
        z, _ = noise_of(ours)
        got = run_exact(ours, schedule, start, kind="sample", noise=z)
        expected = run_exact(plain, schedule, start, denoised=clipped, kind="sample", noise=z)
        np.testing.assert_allclose(got, expected, atol=1e-4)
        assert np.abs(got[-1]).max() <= 0.7 + 1e-6


def test_network_times_of_the_rows() -> None:
    """A row that evaluates nothing adds none; churn raises those of first stages; middles use the nearest."""
    schedule = SigmaSchedule.karras(5)
    sigmas = schedule.sigmas.tolist()
    assert solvers.euler(schedule).table_timesteps.tolist() == sigmas
    assert solvers.euler(schedule).timesteps.tolist() == [sigmas[0], *sigmas]
    churned = solvers.edm(schedule, s_churn=1.0, solver_order=1)
    np.testing.assert_allclose(churned.table_timesteps, np.multiply(sigmas, 1.2), rtol=1e-14)
    trained = NoiseSchedule.linear(1000)
    whole = solvers.dpm_solver_2(trained, steps=40).timesteps
    between = solvers.dpm_solver_2(trained, steps=40, fractional_time=True).timesteps
    np.testing.assert_array_equal(whole, np.rint(between))
    assert (np.abs(between - np.floor(between) - 0.5) < 0.4).any()  # some round up, some down
