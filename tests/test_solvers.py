"""Solvers: golden rows, identities between solvers and prediction types, zero terminal SNR, refusals."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from diffusion_fast import _cpu, solvers
from diffusion_fast.schedules import NoiseSchedule
from diffusion_fast.solvers import TERM_BITS, ddim, ddpm

FOUR = NoiseSchedule([0.1, 0.2, 0.3, 0.4])
SQRT_BETA = [0.632455532034, 0.547722557505, 0.4472135955, 0.0]

# 40-digit evaluations of the papers' formulas for betas 0.1, 0.2, 0.3, 0.4; timesteps 3, 2, 1, 0.
# ddpm, eq. 11: 1 / sqrt(alpha), -beta / sqrt(alpha (1 - abar)); posterior sigma; eq. 7's factors of x0 and x
DDPM_A = [1.29099444874, 1.19522860933, 1.11803398875, 1.05409255339]
DDPM_E = [-0.618274208537, -0.509133174977, -0.422577127364, -0.333333333333]
POSTERIOR_S = [0.533295105664, 0.411527445877, 0.267261241912, 0.0]
MEAN_X0 = [0.407069709846, 0.513222663764, 0.677630927179, 1.0]
MEAN_X = [0.550745338222, 0.472308079495, 0.3194382825, 0.0]
# x0 = P_X x + P_F epsilon
P_X = [1.81848241863, 1.40859042455, 1.17851130198, 1.05409255339]
P_F = [-1.51884110653, -0.992031745524, -0.623609564462, -0.333333333333]
# ddim, eqs. 12 and 16: a is DDPM_A; eta = 0 and eta = 0.5
DDIM_E = [-0.373997545222, -0.312616587082, -0.275380212293, -0.333333333333]
DDIM_SIGNAL = [0.709929573972, 0.848528137424, 0.948683298051, 1.0]  # sqrt(abar_prev)
DDIM_NOISE = [0.704272674466, 0.529150262213, 0.316227766017, 0.0]  # sqrt(1 - abar_prev)
HALF_E = [-0.4264273839, -0.35426167976, -0.305002226199, -0.333333333333]
HALF_S = [0.266647552832, 0.205763722938, 0.133630620956, 0.0]
HALF_NOISE = [0.651842835789, 0.487505169534, 0.286605752111, 0.0]
SQRT_ABAR = [0.549909083395, 0.709929573972, 0.848528137424, 0.948683298051]
SQRT_VAR = [0.835224520712, 0.704272674466, 0.529150262213, 0.316227766017]

# (solver, options) -> the columns that are not neutral
GOLDEN: dict[str, tuple[Any, dict[str, Any], dict[str, Any]]] = {
    "ddpm posterior": (ddpm, {}, {"a": DDPM_A, "e": DDPM_E, "s": POSTERIOR_S}),
    "ddpm beta": (ddpm, {"variance": "beta"}, {"a": DDPM_A, "e": DDPM_E, "s": SQRT_BETA}),
    "ddpm none": (ddpm, {"variance": "none"}, {"a": DDPM_A, "e": DDPM_E}),
    "ddpm last noise": (
        ddpm,
        {"variance": "beta", "last_noise": True},
        {"a": DDPM_A, "e": DDPM_E, "s": [*SQRT_BETA[:3], 0.316227766017]},
    ),
    "ddpm stop": (  # three rows down to the level of timestep 0, noise at the last of them
        ddpm,
        {"timesteps": [3, 2, 1], "stop": 0, "last_noise": True},
        {"a": DDPM_A[:3], "e": DDPM_E[:3], "s": POSTERIOR_S[:3]},
    ),
    "ddpm stop, no last noise": (
        ddpm,
        {"timesteps": [3, 2, 1], "stop": 0},
        {"a": DDPM_A[:3], "e": DDPM_E[:3], "s": [*POSTERIOR_S[:2], 0.0]},
    ),
    "ddpm two steps": (  # beta of the stride 3 -> 1 is 1 - 0.7 * 0.6
        ddpm,
        {"steps": 2, "spacing": "trailing"},
        {
            "a": [1.54303349962, 1.17851130198],
            "e": [-1.07151958256, -0.623609564462],
            "s": [0.482491621832, 0.0],
        },
    ),
    "ddpm two steps, beta": (
        ddpm,
        {"timesteps": [3, 1], "variance": "beta"},
        {
            "a": [1.54303349962, 1.17851130198],
            "e": [-1.07151958256, -0.623609564462],
            "s": [0.761577310586, 0.0],
        },
    ),
    "ddpm clip": (
        ddpm,
        {"clip": 1.5},
        {"p_x": P_X, "p_F": P_F, "clip": 1.5, "a": MEAN_X, "b": MEAN_X0, "s": POSTERIOR_S},
    ),
    "ddpm sample": (ddpm, {"prediction_type": "sample"}, {"a": MEAN_X, "e": MEAN_X0, "s": POSTERIOR_S}),
    "ddpm sample clip": (
        ddpm,
        {"prediction_type": "sample", "clip": 1.5},
        {"p_F": 1.0, "clip": 1.5, "a": MEAN_X, "b": MEAN_X0, "s": POSTERIOR_S},
    ),
    "ddpm v": (
        ddpm,
        {"prediction_type": "v_prediction"},
        {
            "a": np.add(MEAN_X, np.multiply(MEAN_X0, SQRT_ABAR)),
            "e": -np.multiply(MEAN_X0, SQRT_VAR),
            "s": POSTERIOR_S,
        },
    ),
    "ddpm v clip": (
        ddpm,
        {"prediction_type": "v_prediction", "clip": 2.0},
        {
            "p_x": SQRT_ABAR,
            "p_F": -np.array(SQRT_VAR),
            "clip": 2.0,
            "a": MEAN_X,
            "b": MEAN_X0,
            "s": POSTERIOR_S,
        },
    ),
    "ddim": (ddim, {}, {"a": DDPM_A, "e": DDIM_E}),
    "ddim half": (ddim, {"eta": 0.5}, {"a": DDPM_A, "e": HALF_E, "s": HALF_S}),
    "ddim eta 1": (ddim, {"eta": 1.0}, {"a": DDPM_A, "e": DDPM_E, "s": POSTERIOR_S}),
    "ddim two steps": (
        ddim,
        {"steps": 2, "spacing": "trailing"},
        {"a": [1.54303349962, 1.17851130198], "e": [-0.759629152952, -0.623609564462]},
    ),
    "ddim two steps, half": (
        ddim,
        {"timesteps": [3, 1], "eta": 0.5},
        {
            "a": [1.54303349962, 1.17851130198],
            "e": [-0.817822454588, -0.623609564462],
            "s": [0.241245810916, 0],
        },
    ),
    "ddim clip": (
        ddim,
        {"clip": 1.5},
        {"p_x": P_X, "p_F": P_F, "clip": 1.5, "b": DDIM_SIGNAL, "e": DDIM_NOISE},
    ),
    "ddim clip half": (
        ddim,
        {"clip": 1.5, "eta": 0.5},
        {"p_x": P_X, "p_F": P_F, "clip": 1.5, "b": DDIM_SIGNAL, "e": HALF_NOISE, "s": HALF_S},
    ),
    "ddim sample": (
        ddim,
        {"prediction_type": "sample"},
        {
            "a": np.divide(DDIM_NOISE, SQRT_VAR),
            "e": np.subtract(DDIM_SIGNAL, np.multiply(DDIM_NOISE, np.divide(SQRT_ABAR, SQRT_VAR))),
        },
    ),
    "ddim v": (
        ddim,
        {"prediction_type": "v_prediction"},
        {
            "a": np.multiply(DDIM_SIGNAL, SQRT_ABAR) + np.multiply(DDIM_NOISE, SQRT_VAR),
            "e": np.multiply(DDIM_NOISE, SQRT_ABAR) - np.multiply(DDIM_SIGNAL, SQRT_VAR),
        },
    ),
    "ddim v clip": (
        ddim,
        {"prediction_type": "v_prediction", "clip": 2.0},
        {
            "p_x": SQRT_ABAR,
            "p_F": -np.array(SQRT_VAR),
            "clip": 2.0,
            "a": np.multiply(DDIM_NOISE, SQRT_VAR),
            "b": DDIM_SIGNAL,
            "e": np.multiply(DDIM_NOISE, SQRT_ABAR),
        },
    ),
}


@pytest.mark.parametrize("case", GOLDEN)
def test_golden_rows(case: str) -> None:
    solver, options, columns = GOLDEN[case]
    table = solver(FOUR, **options)
    neutral = {"c_in": 1.0, "clip": np.inf}
    for name in solvers.COEFFICIENTS:
        expected = np.broadcast_to(columns.get(name, neutral.get(name, 0.0)), len(table))
        # one rounding to float32 of a number given with 12 digits; zero means zero
        np.testing.assert_allclose(table.rows[name], expected, rtol=6.1e-8, err_msg=name)
        assert bool(table.terms & TERM_BITS[name]) == (name in columns), name
    assert table.nfe == len(table) and not table.terms & TERM_BITS["push"]


def test_coefficients_are_the_nearest_float32() -> None:
    """One row by hand in float64: the rounding to float32 is the only one that shows."""
    beta, abar, abar_prev = 0.3, 0.9 * 0.8 * 0.7, 0.9 * 0.8
    row = ddpm(FOUR)[1]
    assert row.a == float(np.float32(1 / math.sqrt(0.7)))
    assert row.e == float(np.float32(-beta / math.sqrt(0.7 * (1 - abar))))
    assert row.s == float(np.float32(math.sqrt(beta * (1 - abar_prev) / (1 - abar))))


def test_small_betas_keep_their_digits() -> None:
    """1 - abar and 1 - abar_t / abar_prev lose every digit at beta = 1e-13; sums of log1p(-beta) do not."""
    tiny = NoiseSchedule([1e-13] * 8)
    table = ddpm(tiny, steps=4, variance="beta")
    np.testing.assert_allclose(table.rows["s"][:-1], math.sqrt(2e-13), rtol=1e-6)
    # 2 beta / sqrt(7 beta) at timestep 6, whose abar is (1 - beta)^7
    np.testing.assert_allclose(table.rows["e"][0], -math.sqrt(4e-13 / 7), rtol=1e-6)


def test_vanishing_abar_is_no_obstacle_without_clip() -> None:
    """alphas_cumprod = 1e-323 and then 0 by underflow, yet each step is an ordinary one."""
    table = ddpm(NoiseSchedule.constant(1200, 0.5), variance="beta")
    np.testing.assert_allclose(table.rows["a"][:1000], math.sqrt(2), rtol=1e-6)
    np.testing.assert_allclose(table.rows["e"][:1000], -0.5 * math.sqrt(2), rtol=1e-6)


def test_eta_one_is_ddpm() -> None:
    schedule = NoiseSchedule.linear(1000)
    for options in (
        {},
        {"steps": 37},
        {"steps": 50, "spacing": "linspace", "prediction_type": "v_prediction"},
    ):
        one, other = ddim(schedule, eta=1.0, **options), ddpm(schedule, **options)
        for name in ("a", "e", "s"):
            np.testing.assert_allclose(one.rows[name], other.rows[name], rtol=2e-7, atol=1e-9)


@given(
    st.lists(st.floats(1e-4, 0.7), min_size=2, max_size=12),
    st.floats(0, 1),
    st.sampled_from([None, 0.8]),
    st.floats(-3, 3),
    st.floats(-3, 3),
)
def test_prediction_types_are_one_model(
    betas: list[float], eta: float, clip: Any, x: float, epsilon: float
) -> None:
    """The same x0 and epsilon told in three ways give the same step, clamped or not."""
    schedule = NoiseSchedule(betas)
    abar = schedule.alphas_cumprod.numpy()[::-1]
    x0 = (x - np.sqrt(1 - abar) * epsilon) / np.sqrt(abar)
    v = np.sqrt(abar) * epsilon - np.sqrt(1 - abar) * x0
    outputs = {"epsilon": np.full(len(abar), epsilon), "sample": x0, "v_prediction": v}
    for solve in (lambda **k: ddpm(schedule, **k), lambda **k: ddim(schedule, eta=eta, **k)):
        results = []
        for kind, F in outputs.items():
            r = solve(prediction_type=kind, clip=clip).rows
            m = np.clip(r["p_x"] * x + r["p_F"] * F, -r["clip"], r["clip"])
            results.append(r["a"] * x + r["b"] * m + r["e"] * F)
        scale = 1e-5 * (1 + np.abs(x0).max())
        np.testing.assert_allclose(results[1], results[0], atol=scale)
        np.testing.assert_allclose(results[2], results[0], atol=scale)


# ---- zero terminal SNR ----


@pytest.mark.parametrize("kind", ["sample", "v_prediction"])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_zero_terminal_snr_first_row(kind: str, clip: float | None) -> None:
    """At abar = 0 x is pure noise: the mean is sqrt(abar_prev) x0, x0 = F or -v."""
    schedule = NoiseSchedule.linear(10).zero_terminal_snr()
    signal = math.sqrt(float(schedule.alphas_cumprod[-2]))
    sign = 1.0 if kind == "sample" else -1.0
    row = ddpm(schedule, prediction_type=kind, clip=clip)[0]
    assert row.a == 0.0 and row.e + row.b * row.p_F == pytest.approx(sign * signal, rel=1e-6)
    row = ddim(schedule, prediction_type=kind, clip=clip)[0]  # epsilon is x itself
    assert row.a == pytest.approx(math.sqrt(1 - signal**2), rel=1e-6)
    assert row.e + row.b * row.p_F == pytest.approx(sign * signal, rel=1e-6)


def test_epsilon_where_abar_is_zero_is_refused_only_if_visited() -> None:
    schedule = NoiseSchedule.cosine(10, max_beta=None)
    for solver in (ddpm, ddim):
        with pytest.raises(ValueError, match=r"prediction_type: got 'epsilon'.*timestep 9.*'v_prediction'"):
            solver(schedule)
        assert solver(schedule, steps=5).timesteps.tolist() == [8, 6, 4, 2, 0]


def test_registry() -> None:
    assert solvers.get("ddim") is ddim
    assert solvers.solve("ddpm", FOUR, variance="beta") == ddpm(FOUR, variance="beta")


# ---- refusals: (call, error, what the message must hold) ----

LINEAR = NoiseSchedule.linear(10)

REFUSALS = {
    "solver": (lambda: solvers.get("dpdm"), ValueError, "solver: got 'dpdm' .*did you mean 'ddpm'"),
    "solver type": (lambda: solvers.get(None), TypeError, "solver: got None .*one of ddpm, ddim"),
    "option": (
        lambda: solvers.solve("ddim", LINEAR, variance="beta"),
        ValueError,
        "options of solver 'ddim': got 'variance' .*one of steps, .*did you mean",
    ),
    "schedule": (lambda: ddpm([0.1]), TypeError, r"schedule: got \[0.1\] .*a NoiseSchedule"),
    "steps above": (lambda: ddpm(LINEAR, steps=11), ValueError, "steps: got 11 .*from 1 to 10"),
    "steps zero": (lambda: ddim(LINEAR, steps=0), ValueError, "steps: got 0 .*from 1 to 10"),
    "steps float": (lambda: ddim(LINEAR, steps=5.0), TypeError, "steps: got 5.0 .*an integer"),
    "spacing": (lambda: ddpm(LINEAR, spacing="linspce"), ValueError, "spacing: .*did you mean 'linspace'"),
    "both": (
        lambda: ddpm(LINEAR, steps=2, timesteps=[1, 0]),
        ValueError,
        "timesteps: .*either steps or timesteps",
    ),
    "list empty": (
        lambda: ddpm(LINEAR, timesteps=[]),
        ValueError,
        r"timesteps: got \[\] .*strictly descending",
    ),
    "list rank": (
        lambda: ddpm(LINEAR, timesteps=[[1, 0]]),
        ValueError,
        "timesteps: got .*strictly descending",
    ),
    "list ragged": (
        lambda: ddpm(LINEAR, timesteps=[[1], 0]),
        TypeError,
        "timesteps: got .*integers from 0 to 9",
    ),
    "list float": (
        lambda: ddpm(LINEAR, timesteps=[1.0, 0.0]),
        TypeError,
        "timesteps: got .*integers from 0 to 9",
    ),
    "list bool": (lambda: ddpm(LINEAR, timesteps=[True]), TypeError, "timesteps: got .*integers from 0 to 9"),
    "list high": (
        lambda: ddpm(LINEAR, timesteps=[10, 0]),
        ValueError,
        "timesteps: got 10 at index 0; .*0 to 9",
    ),
    "list low": (
        lambda: ddim(LINEAR, timesteps=[3, -1]),
        ValueError,
        "timesteps: got -1 at index 1; .*0 to 9",
    ),
    "list huge": (
        lambda: ddim(LINEAR, timesteps=[2**63]),
        ValueError,
        "timesteps: got 9223372036854775808 at",
    ),
    "list twice": (
        lambda: ddim(LINEAR, timesteps=[5, 3, 3]),
        ValueError,
        "timesteps: got 3 twice, at index 1 and 2",
    ),
    "list ascends": (
        lambda: ddim(LINEAR, timesteps=[3, 5]),
        ValueError,
        "timesteps: got 5 at index 1.*descending",
    ),
    "variance": (
        lambda: ddpm(LINEAR, variance="postrior"),
        ValueError,
        "variance: .*did you mean 'posterior'",
    ),
    "last_noise": (lambda: ddpm(LINEAR, last_noise=1), TypeError, "last_noise: got 1 .*True or False"),
    "last_noise idle": (
        lambda: ddpm(LINEAR, last_noise=True),
        ValueError,
        "last_noise: got True .*that variance is 0",
    ),
    "last_noise of none": (
        lambda: ddpm(LINEAR, variance="none", last_noise=True),
        ValueError,
        "last_noise: got True .*variance='none'",
    ),
    "stop above": (lambda: ddpm(LINEAR, timesteps=[5, 3], stop=3), ValueError, "stop: got 3 .*from 0 to 2"),
    "stop below": (lambda: ddpm(LINEAR, timesteps=[5, 3], stop=-1), ValueError, "stop: got -1 .*from 0 to 2"),
    "stop at zero": (lambda: ddpm(LINEAR, stop=0), ValueError, "stop: got 0 .*None"),
    "prediction_type": (
        lambda: ddim(LINEAR, prediction_type="eps"),
        ValueError,
        "prediction_type: got 'eps' .*did you mean 'epsilon'",
    ),
    "clip zero": (lambda: ddpm(LINEAR, clip=0.0), ValueError, "clip: got 0.0 .*finite number in"),
    "clip negative": (lambda: ddim(LINEAR, clip=-1), ValueError, "clip: got -1 .*finite number in"),
    "clip inf": (lambda: ddim(LINEAR, clip=math.inf), ValueError, "clip: got inf .*finite number in"),
    "clip float64": (lambda: ddim(LINEAR, clip=1e39), ValueError, r"clip: got 1e\+39 .*finite number in"),
    "clip bool": (lambda: ddim(LINEAR, clip=True), TypeError, "clip: got True .*finite number in"),
    "eta above": (lambda: ddim(LINEAR, eta=1.5), ValueError, r"eta: got 1.5 .*in \[0, 1\]"),
    "eta nan": (lambda: ddim(LINEAR, eta=math.nan), ValueError, r"eta: got nan .*in \[0, 1\]"),
    "float32": (
        lambda: ddpm(NoiseSchedule.constant(300, 0.5), clip=1.0),
        ValueError,
        "schedule: got a coefficient p_x = .* for timestep .*v_prediction",
    ),
    "core spacing": (
        lambda: _cpu.spaced_timesteps("even", 10, 5),
        ValueError,
        "spacing: 'even' is not one of",
    ),
    "core steps": (
        lambda: _cpu.spaced_timesteps("leading", 10, 11),
        ValueError,
        "steps: got 11; accepted: 1 to 10",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case: str) -> None:
    call, error, pattern = REFUSALS[case]
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    assert re.search(pattern, str(caught.value), re.S), str(caught.value)
