"""The exact law of the samples for Gaussian data: of the rows, by the methods' closed forms, and drawn."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from solver_targets import Mixture, output, pair
from torch import Tensor, nn

import diffusion_fast as df
from diffusion_fast import solvers
from diffusion_fast.schedules import NoiseSchedule
from diffusion_fast.sigma_schedules import FlowSchedule, SigmaSchedule

MU, V = 1.7, 0.09
GAUSS = Mixture([1.0], [MU], [V])


def law_of_rows(table: solvers.StepTable, schedule: Any, kind: str) -> tuple[float, float]:
    """Mean and variance after the rows from N(0, 1): of the vector x, h1, h2, h3, in float64."""
    mean, cov = np.zeros(4), np.diag([1.0, 0.0, 0.0, 0.0])
    for row, time in zip(table, table.table_timesteps[table.rows["table"]], strict=True):
        signal, noise = pair(schedule, float(time))
        at = np.array([0.0, 1.0])
        f0, f1 = output(kind, at, GAUSS.denoised(at, signal, noise), signal, noise)
        f1 -= f0
        m = np.array([row.p_x + row.p_F * f1, 0, 0, 0]), row.p_F * f0
        step = np.array([row.a + row.e * f1, row.c1, row.c2, row.c3]) + row.b * m[0]
        A, shift = np.eye(4), np.zeros(4)
        A[0], shift[0] = step, row.e * f0 + row.b * m[1]
        if row.push:
            A[1], A[2], A[3], shift[1] = m[0], np.eye(4)[1], np.eye(4)[2], m[1]
        mean, cov = A @ mean + shift, A @ cov @ A.T
        cov[0, 0] += row.s**2
    return float(mean[0]), float(cov[0, 0])


# ---- closed forms: x / signal - MU is multiplied by a factor and gains a variance at each step ----

Step = Callable[[float, float], tuple[float, float]]


def g(s: float) -> float:
    """epsilon = g(sigma) (x - MU) for x = x0 + sigma n."""
    return s / (V + s**2)


def down_up(s: float, s_next: float, eta: float) -> tuple[float, float]:
    up = min(s_next, eta * math.sqrt(s_next**2 * (s**2 - s_next**2) / s**2))
    return math.sqrt(s_next**2 - up**2), up


def euler(s: float, s_next: float) -> tuple[float, float]:
    return 1 + (s_next - s) * g(s), 0.0


def ancestral(s: float, s_next: float) -> tuple[float, float]:
    down, up = down_up(s, s_next, 0.7)
    return (V + down * s) / (V + s**2), up**2


def heun(s: float, s_next: float) -> tuple[float, float]:
    h = s_next - s
    return 1 + h / 2 * (g(s) + g(s_next) * (1 + h * g(s))) if s_next else V / (V + s**2), 0.0


def midpoint(s: float, s_next: float) -> tuple[float, float]:
    mid = math.sqrt(s * s_next)
    if not mid:
        return V / (V + s**2), 0.0
    return 1 + (s_next - s) * g(mid) * (1 + (mid - s) * g(s)), 0.0


def two_stage_ancestral(s: float, s_next: float) -> tuple[float, float]:
    down, up = down_up(s, s_next, 1.0)
    if not down:
        return V / (V + s**2), 0.0
    mid = math.sqrt(s * down)
    u = mid / s + (1 - mid / s) * V / (V + s**2)
    return down / s + (1 - down / s) * V / (V + mid**2) * u, up**2


ONE_STEP: dict[str, tuple[str, dict[str, Any], Step]] = {
    "euler": ("euler", {}, euler),
    "euler_ancestral": ("euler_ancestral", {"eta": 0.7}, ancestral),
    "heun": ("heun", {}, heun),
    "dpm_solver_2": ("dpm_solver_2", {}, midpoint),
    "dpmpp_2s_ancestral": ("dpmpp_2s_ancestral", {}, two_stage_ancestral),
    "lms 1": ("lms", {"solver_order": 1}, euler),
}


@pytest.mark.parametrize("name", ONE_STEP)
@pytest.mark.parametrize("n", [1, 2, 7, 40])
def test_law_of_one_step_methods(name: str, n: int) -> None:
    solver, options, step = ONE_STEP[name]
    trained = NoiseSchedule.linear(400, 1e-4, 0.03)
    cases: list[tuple[Any, str, dict[str, Any], list[float], float]] = [
        (SigmaSchedule.karras(n, 0.01, 30.0) if n > 1 else SigmaSchedule([30.0]), "epsilon", {}, [], 30.0)
    ]
    abar = trained.alphas_cumprod.numpy()
    t = np.arange(n)[::-1] * (400 // n)
    between = np.sqrt((1 - abar) / abar)[t].tolist()
    cases.append((trained, "v_prediction", {"steps": n}, between, 1 / math.sqrt(abar[t[0]])))
    for schedule, kind, given, levels, start in cases:
        sigmas = [*(levels or schedule.sigmas.tolist()), 0.0]
        mean, var = -MU, start**2  # of x / signal - MU
        for s, s_next in itertools.pairwise(sigmas):
            factor, gained = step(s, s_next)
            mean, var = factor * mean, factor**2 * var + gained
        given = given | {"fractional_time": True}
        table = solvers.solve(solver, schedule, prediction_type=kind, **given, **options)
        got = law_of_rows(table, schedule, kind)
        # two steps from 30 to 0 cancel most of what float32 holds
        np.testing.assert_allclose(got, (mean + MU, var), rtol=3e-5, atol=1e-7 + 1e-5 * math.sqrt(var))


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("n", [2, 3, 30])
def test_law_of_the_two_step_sde(n: int, eta: float) -> None:
    """dpmpp_2m_sde as a recursion of (x - MU, m_before - MU), and dpmpp_2m at eta = 0."""
    schedule = SigmaSchedule.karras(n, 0.01, 30.0)
    sigmas = schedule.sigmas.tolist()
    mean, cov = np.array([-MU, 0.0]), np.diag([900.0, 0.0])
    h_last = 0.0
    for i, s in enumerate(sigmas):
        k = V / (V + s**2)
        if i == n - 1:
            expected = k * mean[0] + MU, k**2 * cov[0, 0]
            break
        h = math.log(s / sigmas[i + 1])
        w = 1 - math.exp(-(1 + eta) * h)
        half = w / 2 * h / h_last if i else 0.0
        A = np.array([[math.exp(-(1 + eta) * h) + (w + half) * k, -half], [k, 0.0]])
        mean, cov = A @ mean, A @ cov @ A.T
        cov[0, 0] += sigmas[i + 1] ** 2 * (1 - math.exp(-2 * eta * h))
        h_last = h
    tables = [solvers.dpmpp_2m_sde(schedule, eta=eta, prediction_type="edm")]
    if eta == 0:
        tables.append(solvers.dpmpp_2m(schedule, prediction_type="edm"))
    for table in tables:
        np.testing.assert_allclose(law_of_rows(table, schedule, "edm"), expected, rtol=3e-5)


@pytest.mark.parametrize("s_churn", [0.0, 5.0, 100.0])
def test_law_of_the_edm_sampler(s_churn: float) -> None:
    schedule = SigmaSchedule.karras(12, 0.01, 30.0)
    sigmas = [*schedule.sigmas.tolist(), 0.0]
    mean, var = -MU, 900.0
    for s, s_next in itertools.pairwise(sigmas):
        hat = s * (1 + (min(s_churn / 12, math.sqrt(2) - 1) if 0.02 <= s <= 20.0 else 0.0))
        factor, _ = heun(hat, s_next)
        mean, var = factor * mean, factor**2 * (var + 1.01**2 * (hat**2 - s**2))
    options = {"s_churn": s_churn, "s_tmin": 0.02, "s_tmax": 20.0, "s_noise": 1.01}
    table = solvers.edm(schedule, prediction_type="edm", **options)
    np.testing.assert_allclose(law_of_rows(table, schedule, "edm"), (mean + MU, var), rtol=3e-5)


@pytest.mark.parametrize("solver", ["flow_euler", "flow_heun"])
def test_law_of_the_flow(solver: str) -> None:
    """v (x, t) has slope ((t - (1 - t) V)) / ((1 - t)^2 V + t^2); x - (1 - t) MU is multiplied."""
    schedule = FlowSchedule.linear(10, 2.0)
    t = [*schedule.times.tolist(), 0.0]

    def k(time: float) -> float:
        return (time - (1 - time) * V) / ((1 - time) ** 2 * V + time**2)

    factor = 1.0
    for now, after in itertools.pairwise(t):
        h = after - now
        guess = 1 + h * k(now)
        factor *= 1 + h / 2 * (k(now) + k(after) * guess) if after and solver == "flow_heun" else guess
    table = solvers.solve(solver, schedule)
    np.testing.assert_allclose(law_of_rows(table, schedule, "flow"), (MU, factor**2), rtol=3e-5)


def test_law_of_langevin() -> None:
    """x - MU is multiplied by rho = 1 - eta / (V + sigma^2) and gains 2 eta: a geometric series."""
    schedule, eta = SigmaSchedule([0.5, 0.2]), 5e-3
    rho = 1 - eta / (V + 0.04)
    for steps in (1, 10, 3000):
        table = solvers.langevin(schedule, steps=steps, step_size=eta, start_scale=2.0)
        q = rho ** (2 * steps)
        expected = MU - rho**steps * MU, 4 * q + 2 * eta * (1 - q) / (1 - rho**2)
        np.testing.assert_allclose(law_of_rows(table, schedule, "epsilon"), expected, rtol=3e-5)
    assert expected[1] == pytest.approx((V + 0.04) / (1 - eta / (2 * (V + 0.04))), rel=1e-6)


def test_law_of_annealed_langevin() -> None:
    schedule = SigmaSchedule.exponential(6, 0.05, 5.0)
    mean, var = -MU, 25.0
    for s in schedule.sigmas.tolist():
        alpha = 1e-3 * (s / 0.05) ** 2
        rho = 1 - alpha / 2 / (V + s**2)
        for _ in range(30):
            mean, var = rho * mean, rho**2 * var + alpha
    table = solvers.annealed_langevin(schedule, steps_per_level=30, step_size=1e-3)
    np.testing.assert_allclose(law_of_rows(table, schedule, "epsilon"), (mean + MU, var), rtol=3e-5)


ALL = [name for name in solvers.SOLVERS if "langevin" not in name and "flow" not in name]


@pytest.mark.parametrize("solver", [name for name in ALL if name not in ("ddpm", "ddim", "plms")])
def test_many_steps_give_the_data(solver: str) -> None:
    errors = []
    for n in (15, 60, 240):
        schedule = SigmaSchedule.karras(n)
        mean, var = law_of_rows(solvers.solve(solver, schedule), schedule, "epsilon")
        assert mean == pytest.approx(MU, rel=0.02)
        errors.append(abs(var / V - 1))
    assert errors[2] < 0.06 and errors[2] < errors[0] / 3


@pytest.mark.parametrize("solver", [name for name in ALL if name != "edm"])
@pytest.mark.parametrize("spacing", ["trailing", "karras", "exponential", "logsnr"])
def test_spacings_end_at_the_data(solver: str, spacing: str) -> None:
    """Of a NoiseSchedule with a network that knows whole timesteps only."""
    schedule = NoiseSchedule.linear(1000)
    table = solvers.solve(solver, schedule, steps=100, spacing=spacing)
    assert table.table_timesteps.dtype == np.int64 and len(table.table_timesteps) <= table.nfe
    mean, var = law_of_rows(table, schedule, "epsilon")
    assert mean == pytest.approx(MU, rel=0.02) and var == pytest.approx(V, rel=0.2)


# ---- drawn ----


class Known(nn.Module):
    """A network whose output depends on the time alone: the right one for these targets."""

    def __init__(self, of_time: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.zero = nn.Linear(2, 2)
        nn.init.zeros_(self.zero.weight)
        nn.init.zeros_(self.zero.bias)
        self.of_time = of_time

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.zero(x) + self.of_time(t)[:, None]


def assert_law(x: Tensor, mean: float, var: float) -> None:
    """Two columns of independent normals: beyond 5 standard errors once in 1.7 million seeds."""
    x, n = x.double().flatten(), x.numel()
    assert abs(float(x.mean()) - mean) < 5 * math.sqrt(var / n)
    assert abs(float(x.var()) / var - 1) < 5 * math.sqrt(2 / n)


@pytest.mark.parametrize("solver", [name for name in ALL if name not in ("ddpm", "ddim", "plms")])
def test_drawn_from_a_sigma_schedule(solver: str) -> None:
    """With sigma_data^2 = V, D(x) = c_skip x + sigma^2 MU / (V + sigma^2), so F is a function of sigma."""
    data = math.sqrt(V)
    model = Known(lambda s: s * MU / (data * torch.sqrt(V + s**2))).eval()
    schedule = SigmaSchedule.karras(10)
    options = {"s_churn": 3.0} if solver == "edm" else {}
    given = {"prediction_type": "edm", "sigma_data": data, **options}
    sampler = df.Sampler(
        model, schedule, shape=(2,), solver=solver, time_input="sigma", backend="native", **given
    )
    mean, var = law_of_affine(sampler.table, lambda s: s * MU / (data * math.sqrt(V + s**2)))
    assert_law(sampler.sample(60_000, seed=11), mean, var)


@pytest.mark.parametrize("solver", [name for name in ALL if name != "edm"])
def test_drawn_from_a_noise_schedule(solver: str) -> None:
    """Data N(MU, 1) keep unit variance at every level, and v = -noise MU."""
    schedule = NoiseSchedule.linear(100, 1e-3, 0.08)
    noise = torch.sqrt(1 - schedule.alphas_cumprod).float()
    model = Known(lambda t: -noise[t] * MU).eval()
    given = {"steps": 12, "spacing": "karras", "prediction_type": "v_prediction"}
    sampler = df.Sampler(model, schedule, shape=(2,), solver=solver, backend="native", **given)
    mean, var = law_of_affine(sampler.table, lambda t: -float(noise[int(t)]) * MU)
    assert_law(sampler.sample(60_000, seed=12), mean, var)


def law_of_affine(table: solvers.StepTable, F: Callable[[float], float]) -> tuple[float, float]:
    """law_of_rows for a network that returns F(time)."""
    mean, cov = np.zeros(4), np.diag([1.0, 0.0, 0.0, 0.0])
    for row, time in zip(table, table.table_timesteps[table.rows["table"]], strict=True):
        out = F(float(time)) if row.eval else 0.0
        A, shift = np.eye(4), np.zeros(4)
        A[0] = row.a + row.b * row.p_x, row.c1, row.c2, row.c3
        shift[0] = (row.e + row.b * row.p_F) * out
        if row.push:
            A[1:] = [row.p_x, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 0]
            shift[1] = row.p_F * out
        mean, cov = A @ mean + shift, A @ cov @ A.T
        cov[0, 0] += row.s**2
    return float(mean[0]), float(cov[0, 0])


def test_drawn_by_a_known_score() -> None:
    """Langevin at sigma = 0.3 on data N(0, V), whose score is -x / (V + sigma^2)."""

    class Score(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return (0.0 * t[:, None] - x) / (V + 0.09)

    given = {"shape": (2,), "solver": "langevin", "steps": 200, "step_size": 0.02, "time_input": "sigma"}
    sampler = df.Sampler(Score().eval(), SigmaSchedule([0.3]), prediction_type="score", **given)
    rho = 1 - 0.02 / (V + 0.09)
    var = rho**400 + 0.04 * (1 - rho**400) / (1 - rho**2)
    assert_law(sampler.sample(30_000, seed=13), 0.0, var)
