"""Schedules: golden values, the C++ core against its NumPy twins, the schedule object, refusals."""

from __future__ import annotations

import copy
import math
import pickle
import re
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from diffusion_fast import _cpu
from diffusion_fast.schedules import (
    SCHEDULE_NAMES,
    NoiseSchedule,
    alphas_cumprod_ref,
    log_snr_ref,
    schedule_betas_ref,
    zero_terminal_snr_ref,
)

# 40-digit evaluations of the papers' formulas, rounded: T = 5, betas from 1e-4 to 0.02 (scaled_linear from
# 0.00085 to 0.012), cosine with s = 0.008 and no clipping, written as 1 - abar(t + 1) / abar(t).
GOLDEN_BETAS = {
    "linear": [0.0001, 0.005075, 0.01005, 0.015025, 0.02],
    "quadratic": [0.0001, 0.0018365800858899106, 0.0057321067811865475, 0.011786580085889911, 0.02],
    "scaled_linear": [0.00085, 0.0024257789567003484, 0.0048093719422671312, 0.0080007789567003484, 0.012],
    "warmup10": [0.02, 0.02, 0.02, 0.02, 0.02],
    "warmup50": [0.0001, 0.02, 0.02, 0.02, 0.02],
    "sigmoid": [
        0.00014920520081703201,
        0.0010437748762335789,
        0.01005,
        0.019056225123766421,
        0.019950794799182968,
    ],
    "sigmoid_ramp": [
        0.00010090341758717844,
        0.00023318773339326863,
        0.01005,
        0.019866812266606731,
        0.019999096582412822,
    ],
    "sine_squared": [0.0001, 0.0030142875271938521, 0.01005, 0.017085712472806148, 0.02],
    "constant": [0.02] * 5,
    "cosine": [0.10129407940049111, 0.27954384598402997, 0.47363535344943127, 0.72405236910825705, 1.0],
}
# What follows from the golden linear betas.
GOLDEN_ABAR = [0.9999, 0.9948255075, 0.984827511149625, 0.97003047779460188, 0.95062986823870985]
GOLDEN_LOG_SNR = [
    9.2102403669758494,
    5.2588260857232194,
    4.1729826663832969,
    3.4771465526382926,
    2.957779162972539,
]
GOLDEN_ZERO_SNR = [0.0001, 0.19330479694502082, 0.39820437781788721, 0.67569874828319152, 1.0]

RAMP = {"beta_start": 1e-5, "beta_end": 0.0128}


def params_of(name: str) -> dict[str, float]:
    special = {"constant": {"beta": 0.0128}, "cosine": {"s": 0.008, "max_beta": 0.999}}
    return special.get(name, RAMP)


def test_every_name_has_a_golden_list() -> None:
    assert set(GOLDEN_BETAS) == set(SCHEDULE_NAMES)


@pytest.mark.parametrize("name", SCHEDULE_NAMES)
def test_golden_betas(name: str) -> None:
    schedule = NoiseSchedule.from_name(name, 5, **({"max_beta": None} if name == "cosine" else {}))
    assert schedule.betas.dtype == torch.float64
    np.testing.assert_allclose(schedule.betas.numpy(), GOLDEN_BETAS[name], rtol=2e-15)
    assert schedule.name == name and len(schedule) == schedule.n_steps == 5


def test_golden_products() -> None:
    schedule = NoiseSchedule.linear(5)
    np.testing.assert_allclose(schedule.alphas.numpy(), 1 - np.array(GOLDEN_BETAS["linear"]), rtol=1e-15)
    np.testing.assert_allclose(schedule.alphas_cumprod.numpy(), GOLDEN_ABAR, rtol=1e-15)
    # 1 - abar at abar = 0.9999 keeps 12 digits
    np.testing.assert_allclose(schedule.log_snr.numpy(), GOLDEN_LOG_SNR, rtol=1e-12)
    np.testing.assert_allclose(schedule.snr.numpy(), np.exp(GOLDEN_LOG_SNR), rtol=1e-11)
    # each beta here is 1 - a ratio of differences of numbers near 1
    np.testing.assert_allclose(schedule.zero_terminal_snr().betas.numpy(), GOLDEN_ZERO_SNR, rtol=1e-13)


# Sum of the betas and last abar at T = 150, betas 1e-5 .. 0.0128, as published for these five schedules.
PUBLISHED_150 = {
    "linear": (0.961, 0.381),
    "constant": (1.92, 0.145),
    "quadratic": (0.660, 0.515),
    "warmup10": (1.824, 0.160),
    "warmup50": (1.440, 0.235),
}


@pytest.mark.parametrize("name", PUBLISHED_150)
def test_published_sums(name: str) -> None:
    schedule = NoiseSchedule.from_name(name, 150, **params_of(name))
    total, abar = PUBLISHED_150[name]
    assert float(schedule.betas.sum()) == pytest.approx(total, abs=6e-4)
    assert float(schedule.alphas_cumprod[-1]) == pytest.approx(abar, abs=6e-4)


@pytest.mark.parametrize(
    ("beta_start", "beta_end", "expected"),
    [(1e-5, 0.0128, (0.938, 0.725, 0.526, 0.381, 0.276)), (0.001, 0.02, (0.900, 0.589, 0.348, 0.205, 0.121))],
)
def test_published_terminal_abar(beta_start: float, beta_end: float, expected: tuple[float, ...]) -> None:
    for n_steps, abar in zip((10, 50, 100, 150, 200), expected, strict=True):
        schedule = NoiseSchedule.linear(n_steps, beta_start, beta_end)
        assert float(schedule.alphas_cumprod[-1]) == pytest.approx(abar, abs=6e-4)


def test_the_three_ramps_from_one_range_share_their_sum() -> None:
    """Odd symmetry about the middle: only the shape differs, hardly the final noise level."""
    ramps = [
        getattr(NoiseSchedule, name)(100, 0.001, 0.02) for name in ("linear", "sigmoid_ramp", "sine_squared")
    ]
    for ramp in ramps[1:]:
        assert float(ramp.betas.sum()) == pytest.approx(float(ramps[0].betas.sum()), rel=1e-13)
        assert float(ramp.alphas_cumprod[-1]) == pytest.approx(float(ramps[0].alphas_cumprod[-1]), abs=1e-3)


def test_constant_is_a_power() -> None:
    abar = NoiseSchedule.constant(250, 0.02).alphas_cumprod
    np.testing.assert_allclose(abar.numpy(), 0.98 ** np.arange(1, 251), rtol=1e-13)


# ---- C++ against its twin ----


@pytest.mark.parametrize("n_steps", [1, 2, 3, 9, 10, 19, 150, 1000])
@pytest.mark.parametrize("name", SCHEDULE_NAMES)
def test_betas_equal_their_twin(name: str, n_steps: int) -> None:
    ours = _cpu.schedule_betas(name, n_steps, params_of(name))
    assert ours.dtype == np.float64 and ours.shape == (n_steps,)
    np.testing.assert_allclose(ours, schedule_betas_ref(name, n_steps, params_of(name)), rtol=1e-15)


@given(st.lists(st.floats(1e-7, 0.9), min_size=2, max_size=60))
def test_products_equal_their_twins(betas: list[float]) -> None:
    b = np.array(betas)
    abar = _cpu.alphas_cumprod(b)
    np.testing.assert_array_equal(abar, alphas_cumprod_ref(b))
    # atol: the difference of two logarithms near abar = 1/2
    np.testing.assert_allclose(_cpu.log_snr(abar), log_snr_ref(abar), rtol=1e-15, atol=1e-15)
    np.testing.assert_allclose(_cpu.zero_terminal_snr(b), zero_terminal_snr_ref(b), rtol=1e-15)


# ---- what a schedule object promises ----


def test_cosine_clipping() -> None:
    clipped, free = NoiseSchedule.cosine(100), NoiseSchedule.cosine(100, max_beta=None)
    assert float(clipped.betas[-1]) == 0.999 and float(free.betas[-1]) == 1.0
    assert torch.equal(clipped.betas[:-1], free.betas[:-1])
    assert float(free.alphas_cumprod[-1]) == 0.0
    for n_steps in range(1, 200):  # by the formula alone the last beta is off by a rounding at some of these
        assert float(NoiseSchedule.cosine(n_steps, max_beta=None).betas[-1]) == 1.0
    assert float(NoiseSchedule.cosine(100, max_beta=0.2).betas.max()) == 0.2
    u = (np.arange(1, 100) / 100 + 0.008) / 1.008 * np.pi / 2
    expected = np.cos(u) ** 2 / math.cos(0.008 / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(free.alphas_cumprod[:-1].numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("name", SCHEDULE_NAMES)
def test_zero_terminal_snr(name: str) -> None:
    schedule = NoiseSchedule.from_name(name, 100)
    rescaled = schedule.zero_terminal_snr()
    assert float(rescaled.alphas_cumprod[-1]) == 0.0 and float(rescaled.snr[-1]) == 0.0
    assert float(rescaled.log_snr[-1]) == -math.inf
    assert torch.equal(rescaled.betas[:1], schedule.betas[:1])
    root, old = rescaled.alphas_cumprod.sqrt(), schedule.alphas_cumprod.sqrt()
    shifted = (old - old[-1]) * old[0] / (old[0] - old[-1])  # the definition, on the square roots
    np.testing.assert_allclose(root.numpy(), shifted.numpy(), rtol=1e-12, atol=1e-15)
    again = rescaled.zero_terminal_snr()  # nothing left to do
    np.testing.assert_allclose(again.betas.numpy(), rescaled.betas.numpy(), rtol=1e-10)


@pytest.mark.parametrize("make", [list, tuple, np.array, torch.tensor, lambda b: torch.tensor(b).float()])
def test_any_betas(make: Any) -> None:
    schedule = NoiseSchedule(make([0.25, 0.5, 1.0]))
    assert schedule.betas.tolist() == [0.25, 0.5, 1.0] and schedule.note is None and schedule.name == "custom"
    assert schedule.alphas_cumprod.tolist() == [0.75, 0.375, 0.0]


def test_leading_zero_is_dropped_with_a_note() -> None:
    betas = np.insert(np.linspace(1e-4, 0.02, 1000), 0, 0.0)
    with pytest.warns(UserWarning, match="leading beta of 0 was dropped"):
        schedule = NoiseSchedule(betas)
    assert len(schedule) == 1000 and schedule.note is not None and "dropped" in schedule.note
    assert schedule == NoiseSchedule.linear(1000)
    assert float(schedule.alphas_cumprod[-1]) == pytest.approx(4.04e-5, abs=6e-8)
    assert pickle.loads(pickle.dumps(schedule)).note == schedule.note


def test_immutable() -> None:
    source = np.full(4, 0.1)
    schedule = NoiseSchedule(source)
    source[:] = 0.5
    schedule.betas.fill_(0.5)
    schedule.alphas_cumprod.fill_(0.5)
    assert schedule.betas.tolist() == [0.1] * 4
    for change in (lambda: setattr(schedule, "name", "x"), lambda: delattr(schedule, "name")):
        with pytest.raises(AttributeError, match="immutable"):
            change()


def test_equality_hash_pickle_repr() -> None:
    one, same, other = NoiseSchedule.linear(50), NoiseSchedule.linear(50), NoiseSchedule.linear(51)
    assert one == same and hash(one) == hash(same) and one != other and one != "linear"
    assert one == NoiseSchedule(one.betas)  # by betas alone
    for twin in (pickle.loads(pickle.dumps(one)), copy.deepcopy(one)):
        assert twin == one and twin.name == "linear" and twin.note is None
    assert repr(one) == "NoiseSchedule('linear', n_steps=50, betas 0.0001 .. 0.02, abar_T=0.603)"


# ---- refusals: (call, error, what the message must hold) ----

GRAD = torch.full((3,), 0.1, requires_grad=True)
REFUSALS = {
    "name unknown": (
        lambda: NoiseSchedule.from_name("linaer", 10),
        ValueError,
        "name: .*'linaer'.*did you mean 'linear'",
    ),
    "name type": (lambda: NoiseSchedule.from_name(3, 10), TypeError, "name: got 3 .*one of linear"),
    "option": (
        lambda: NoiseSchedule.from_name("linear", 10, beta_strt=0.1),
        ValueError,
        "options of schedule 'linear': .*'beta_strt'.*did you mean 'beta_start'",
    ),
    "option of another": (
        lambda: NoiseSchedule.from_name("constant", 10, beta_end=0.1),
        ValueError,
        "options of schedule 'constant': .*'beta_end'.*'beta'",
    ),
    "n_steps zero": (lambda: NoiseSchedule.linear(0), ValueError, "n_steps: got 0 .*from 1 to 1048576"),
    "n_steps huge": (lambda: NoiseSchedule.linear(2**20 + 1), ValueError, "n_steps: got 1048577 .*from 1 to"),
    "n_steps float": (lambda: NoiseSchedule.cosine(10.0), TypeError, "n_steps: got 10.0 .*an integer"),
    "n_steps bool": (lambda: NoiseSchedule.cosine(True), TypeError, "n_steps: got True .*an integer"),
    "beta_start": (lambda: NoiseSchedule.linear(9, 0.0), ValueError, r"beta_start: got 0.0 .*in \(0, 1\)"),
    "beta_end": (lambda: NoiseSchedule.warmup10(9, 0.1, 1.0), ValueError, r"beta_end: got 1.0 .*in \(0, 1\)"),
    "beta nan": (lambda: NoiseSchedule.constant(9, math.nan), ValueError, "beta: got nan .*finite"),
    "beta type": (lambda: NoiseSchedule.constant(9, "1"), TypeError, "beta: got '1' .*finite number"),
    "s": (lambda: NoiseSchedule.cosine(9, s=-0.1), ValueError, r"s: got -0.1 .*in \(0, 1\)"),
    "max_beta": (
        lambda: NoiseSchedule.cosine(9, max_beta=1.5),
        ValueError,
        r"max_beta: got 1.5 .*in \(0, 1\)",
    ),
    "betas empty": (lambda: NoiseSchedule([]), ValueError, r"betas: got \[\] .*1-D list of 1 to"),
    "betas rank": (lambda: NoiseSchedule(np.ones((2, 2))), ValueError, r"betas: got .*\(2, 2\).*1-D"),
    "betas ragged": (lambda: NoiseSchedule([[0.1], [0.1, 0.2]]), TypeError, "betas: got .*real numbers"),
    "betas text": (lambda: NoiseSchedule("linear"), TypeError, "betas: got 'linear' .*real numbers"),
    "betas None": (lambda: NoiseSchedule(None), TypeError, "betas: got None .*real numbers"),
    "betas bool": (lambda: NoiseSchedule([True]), TypeError, "betas: got .*real numbers"),
    "betas complex": (lambda: NoiseSchedule([0.1 + 0j]), TypeError, "betas: got .*real numbers"),
    "betas grad": (lambda: NoiseSchedule(GRAD), ValueError, "betas: got .*does not require grad"),
    "betas nan": (
        lambda: NoiseSchedule([0.1, math.nan]),
        ValueError,
        r"betas: got nan at index 1; .*\(0, 1\]",
    ),
    "betas inf": (lambda: NoiseSchedule([math.inf]), ValueError, "betas: got inf at index 0"),
    "betas negative": (lambda: NoiseSchedule([0.1, -0.1]), ValueError, "betas: got -0.1 at index 1"),
    "betas zero": (lambda: NoiseSchedule([0.1, 0.0, 0.1]), ValueError, "betas: got 0.0 at index 1"),
    "betas one": (
        lambda: NoiseSchedule([0.1, 1.0, 0.1]),
        ValueError,
        "betas: got 1.0 at index 1.*1 only as the last",
    ),
    "betas above": (lambda: NoiseSchedule([0.1, 1.5]), ValueError, "betas: got 1.5 at index 1"),
    "only zero": (lambda: NoiseSchedule([0.0]), ValueError, "betas: got 0.0 at index 0"),
    "schedule name": (lambda: NoiseSchedule([0.1], name=1), TypeError, "name: got 1 .*a string"),
    "one step": (
        lambda: NoiseSchedule([0.1]).zero_terminal_snr(),
        ValueError,
        "betas: got .*at least 2 betas",
    ),
    # the core checks again on its own side
    "core name": (lambda: _cpu.schedule_betas("liner", 5, RAMP), ValueError, "name: 'liner'"),
    "core n_steps": (
        lambda: _cpu.schedule_betas("linear", -1, RAMP),
        ValueError,
        "n_steps: got -1; accepted: 1 to",
    ),
    "core missing": (
        lambda: _cpu.schedule_betas("linear", 5, {}),
        ValueError,
        "params: 'beta_start' is missing",
    ),
    "core extra": (
        lambda: _cpu.schedule_betas("linear", 5, {**RAMP, "s": 1.0}),
        ValueError,
        "params: 's' is not",
    ),
    "core range": (
        lambda: _cpu.schedule_betas("constant", 5, {"beta": math.nan}),
        ValueError,
        "beta: got nan",
    ),
    "core one": (lambda: _cpu.schedule_betas("constant", 5, {"beta": 1.0}), ValueError, "beta: got 1.0"),
    "core betas": (lambda: _cpu.alphas_cumprod([0.1, math.nan]), ValueError, "betas: got nan at index 1"),
    "core rank": (lambda: _cpu.alphas_cumprod(np.ones((2, 2))), ValueError, "betas: .*1-D"),
    "core abar": (lambda: _cpu.log_snr([1.5]), ValueError, "alphas_cumprod: got 1.5.* at index 0"),
    "core flat": (lambda: _cpu.zero_terminal_snr([1e-17, 1e-17]), ValueError, "betas: got .*do not differ"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case: str) -> None:
    call, error, pattern = REFUSALS[case]
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    assert re.search(pattern, str(caught.value), re.S), str(caught.value)
