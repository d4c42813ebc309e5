"""SigmaSchedule and FlowSchedule: their numbers, what they refuse, and the times that networks are given."""

from __future__ import annotations

import math
import pickle
import re
from typing import Any

import numpy as np
import pytest
import torch
from samplers import SCHEDULE, Foreign, make_model

import diffusion_fast as df
from diffusion_fast import solvers
from diffusion_fast.capture import network_time
from diffusion_fast.schedules import NoiseSchedule
from diffusion_fast.sigma_schedules import FlowSchedule, SigmaSchedule
from diffusion_fast.solvers.spacing import log_sigmas, sigma_of_time, time_of_sigma


def test_known_sigmas() -> None:
    """Karras et al. 2022, eq. 5, evaluated by hand for 5 steps."""
    a, b = 80 ** (1 / 7), 0.002 ** (1 / 7)
    by_hand = [(a + i / 4 * (b - a)) ** 7 for i in range(5)]
    np.testing.assert_allclose(SigmaSchedule.karras(5).sigmas, by_hand, rtol=1e-14)
    assert SigmaSchedule.karras(5).sigmas[[0, -1]].tolist() == [80.0, 0.002]
    assert SigmaSchedule.edm() == SigmaSchedule.karras(18)
    np.testing.assert_allclose(SigmaSchedule.exponential(3, 0.01, 1.0).sigmas, [1.0, 0.1, 0.01], rtol=1e-14)
    assert SigmaSchedule.karras(1).sigmas.tolist() == [80.0]
    assert FlowSchedule.linear(4).times.tolist() == [1.0, 0.75, 0.5, 0.25]
    np.testing.assert_allclose(FlowSchedule.linear(2, shift=3.0).times, [1.0, 0.75], rtol=1e-15)


@pytest.mark.parametrize("make", [list, tuple, np.array, torch.tensor, lambda v: torch.tensor(v).float()])
def test_values(make: Any) -> None:
    for cls, name in ((SigmaSchedule, "sigmas"), (FlowSchedule, "times")):
        schedule = cls(make([1.0, 0.5, 0.125]))
        values = getattr(schedule, name)
        assert values.dtype is torch.float64 and values.tolist() == [1.0, 0.5, 0.125]
        values.fill_(0)
        assert getattr(schedule, name).tolist() == [1.0, 0.5, 0.125]
        assert len(schedule) == schedule.n_steps == 3
        assert schedule == pickle.loads(pickle.dumps(schedule)) == cls([1.0, 0.5, 0.125], name="other")
        assert len({schedule, cls([1.0, 0.5, 0.125]), cls([1.0, 0.5])}) == 2
        for change in (lambda s=schedule: setattr(s, "name", "x"), lambda s=schedule: delattr(s, "name")):
            with pytest.raises(AttributeError, match="immutable"):
                change()
    assert SigmaSchedule([1.0]) != FlowSchedule([1.0])
    assert repr(SigmaSchedule.karras(3)) == "SigmaSchedule('karras', n_steps=3, sigmas 80 .. 0.002)"
    assert repr(FlowSchedule.linear(4)) == "FlowSchedule('linear', n_steps=4, times 1 .. 0.25)"


REFUSALS = {
    "ascends": (
        lambda: SigmaSchedule([1.0, 2.0]),
        ValueError,
        "sigmas: got 2.0 at index 1, after 1.0; .*desc",
    ),
    "twice": (lambda: SigmaSchedule([2.0, 2.0]), ValueError, "sigmas: got 2.0 at index 1, after 2.0"),
    "ends in 0": (
        lambda: SigmaSchedule([1.0, 0.0]),
        ValueError,
        "sigmas: got 0.0 at index 1.*without the final 0",
    ),
    "nan": (lambda: SigmaSchedule([math.nan]), ValueError, "sigmas: got nan at index 0"),
    "inf": (lambda: SigmaSchedule([math.inf, 1.0]), ValueError, "sigmas: got inf at index 0"),
    "empty": (lambda: SigmaSchedule([]), ValueError, "sigmas: got .*1 to 1048576"),
    "rank": (lambda: SigmaSchedule([[1.0]]), ValueError, "sigmas: got .*1-D"),
    "strings": (lambda: SigmaSchedule(["a"]), TypeError, "sigmas: got .*real numbers"),
    "grad": (lambda: SigmaSchedule(torch.ones(1, requires_grad=True)), ValueError, "sigmas: .*require grad"),
    "name": (lambda: SigmaSchedule([1.0], name=3), TypeError, "name: got 3"),
    "steps": (lambda: SigmaSchedule.karras(0), ValueError, "n_steps: got 0 .*from 1"),
    "steps float": (lambda: SigmaSchedule.karras(3.0), TypeError, "n_steps: got 3.0"),
    "range": (
        lambda: SigmaSchedule.karras(3, 2.0, 1.0),
        ValueError,
        "sigma_min: got 2.0 .*below sigma_max = 1",
    ),
    "sigma_max": (lambda: SigmaSchedule.karras(3, sigma_max=-1.0), ValueError, "sigma_max: got -1.0"),
    "rho": (lambda: SigmaSchedule.karras(3, rho=0.0), ValueError, "rho: got 0.0"),
    "time above 1": (lambda: FlowSchedule([1.5, 1.0]), ValueError, r"times: got 1.5 at index 0; .*\(0, 1\]"),
    "time ascends": (lambda: FlowSchedule([0.5, 0.6]), ValueError, "times: got 0.6 at index 1, after 0.5"),
    "shift": (lambda: FlowSchedule.linear(3, shift=0.0), ValueError, "shift: got 0.0"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case: str) -> None:
    call, error, pattern = REFUSALS[case]
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error and re.search(pattern, str(caught.value), re.S), str(caught.value)


# ---- a NoiseSchedule's levels between its timesteps ----


def test_log_sigmas_keep_their_digits() -> None:
    schedule = NoiseSchedule.linear(1000)
    abar = schedule.alphas_cumprod.numpy()
    np.testing.assert_allclose(np.exp(log_sigmas(schedule)), np.sqrt((1 - abar) / abar), rtol=1e-9)
    # sigma^2 = 8 beta, where 1 - abar has no digit left; and abar = 2^-2000, which is 0 in float64
    np.testing.assert_allclose(log_sigmas(NoiseSchedule([1e-18] * 8))[-1], math.log(8e-18) / 2, rtol=1e-12)
    np.testing.assert_allclose(
        log_sigmas(NoiseSchedule.constant(2000, 0.5))[-1], 1000 * math.log(2), rtol=1e-12
    )
    assert log_sigmas(NoiseSchedule.cosine(20, max_beta=None))[-1] == math.inf


def test_time_and_sigma_are_inverse() -> None:
    schedule = NoiseSchedule.cosine(60)
    times = np.array([59.0, 41.25, 3.5, 0.0])
    np.testing.assert_allclose(time_of_sigma(schedule, sigma_of_time(schedule, times)), times, atol=1e-10)
    np.testing.assert_allclose(time_of_sigma(schedule, [1e9, 1e-9]), [59, 0])


@pytest.mark.parametrize("spacing", ["karras", "exponential", "logsnr"])
def test_levels_are_exact_and_times_the_nearest(spacing: str) -> None:
    schedule = NoiseSchedule.linear(100)
    low, high = np.exp(log_sigmas(schedule))[[0, -1]]
    cls = SigmaSchedule.karras if spacing == "karras" else SigmaSchedule.exponential
    sigmas = cls(60, low, high).sigmas.numpy()
    fractional = solvers.ddim(schedule, steps=60, spacing=spacing, fractional_time=True)
    np.testing.assert_allclose(sigma_of_time(schedule, fractional.timesteps), sigmas, rtol=1e-10)
    nearest = solvers.ddim(schedule, steps=60, spacing=spacing)
    np.testing.assert_array_equal(nearest.timesteps, np.rint(fractional.timesteps))
    assert nearest.rows["a"].tolist() == fractional.rows["a"].tolist()
    distinct = list(dict.fromkeys(nearest.timesteps.tolist()))
    assert len(distinct) < 60 and nearest.table_timesteps.tolist() == distinct  # rows share network times
    assert nearest.table_timesteps[nearest.rows["table"]].tolist() == nearest.timesteps.tolist()
    signal = 1 / np.hypot(1, sigmas)  # ddim: a = signal_next / signal
    np.testing.assert_allclose(nearest.rows["a"], np.append(signal[1:], 1.0) / signal, rtol=1e-6)
    explicit = solvers.ddim(schedule, sigmas=sigmas)
    np.testing.assert_allclose(explicit.rows["a"], nearest.rows["a"], rtol=1e-7)


def test_network_times() -> None:
    sigmas, flow = SigmaSchedule([4.0, 1.0, 0.5]), FlowSchedule([1.0, 0.5])
    assert network_time([4.0, 0.5], "sigma", sigmas).tolist() == [4.0, 0.5]
    assert network_time([4.0], "log_sigma/4", sigmas).item() == pytest.approx(math.log(4) / 4)
    assert network_time([0.5, 4.0], "index", sigmas).tolist() == [2, 0]
    assert network_time([0.5], "index1", sigmas).tolist() == [3]
    assert network_time([0.5], "unit", flow).tolist() == [0.5]
    assert network_time([0.5], "sigma", flow).tolist() == [1.0]
    assert network_time([1.0, 0.5], "index", flow).dtype is torch.int64
    between = network_time([3.5], "sigma", SCHEDULE).item()
    assert between == pytest.approx(float(np.exp(log_sigmas(SCHEDULE)[3:5].mean())))
    assert network_time([3.5], "unit", SCHEDULE).item() == pytest.approx(4.5 / len(SCHEDULE))
    for times, name, schedule, pattern in (
        ([2.0], "index", sigmas, "time_input: got 'index' .*the solver visits 2, between"),
        ([4.0], "unit", sigmas, "time_input: got 'unit' .*'sigma'"),
        ([1.0], "sigma", flow, "time_input: got 'sigma' .*finite"),
        ([3.5], "index", SCHEDULE, r"timesteps: got \[3.5\] .*integers from 0 to 39"),
        ([39.5], "unit", SCHEDULE, r"timesteps: got \[39.5\]"),
    ):
        with pytest.raises(ValueError, match=pattern):
            network_time(times, name, schedule)


# ---- Sampler ----


def test_a_denoiser_runs_natively_with_a_new_solver() -> None:
    for solver in ("dpmpp_2m", "unipc", "heun", "pndm"):
        given = {"solver": solver, "steps": 20, "spacing": "karras"}
        native = df.Sampler(make_model(), SCHEDULE, backend="native", **given)
        torch_run = df.Sampler(make_model(), SCHEDULE, backend="torch", **given)
        torch.testing.assert_close(native.sample(50), torch_run.sample(50), rtol=1e-4, atol=1e-4)
        assert pickle.loads(pickle.dumps(native)).sample(7).equal(native.sample(7))


@pytest.mark.parametrize("time_input", ["sigma", "log_sigma/4", "unit"])
def test_a_continuous_time_is_told_between_timesteps(time_input: str) -> None:
    given: dict[str, Any] = {"solver": "dpm_solver_2", "steps": 9, "spacing": "karras", "shape": (2,)}
    sampler = df.Sampler(Foreign().eval(), SCHEDULE, time_input=time_input, **given)
    assert sampler.table.table_timesteps.dtype == np.float64
    whole = df.Sampler(Foreign().eval(), SCHEDULE, time_input=time_input, fractional_time=False, **given)
    assert whole.table.table_timesteps.dtype == np.int64
    index = df.Sampler(Foreign().eval(), SCHEDULE, **given)
    assert index.table == whole.table


@pytest.mark.parametrize(
    "schedule, time_input, kind, solver",
    [
        (SigmaSchedule.karras(8), "log_sigma/4", "edm", "edm"),
        (SigmaSchedule.karras(8), "sigma", "epsilon", "dpmpp_3m_sde"),
        (SigmaSchedule.exponential(8, 0.1, 5.0), "index", "score", "annealed_langevin"),
        (FlowSchedule.linear(8, 3.0), "unit", "flow", "flow_heun"),
    ],
)
def test_foreign_modules(schedule: Any, time_input: str, kind: str, solver: str) -> None:
    options = {"step_size": 1e-3, "steps_per_level": 3} if solver == "annealed_langevin" else {}
    given = {"shape": (2,), "time_input": time_input, "prediction_type": kind, "solver": solver, **options}
    native = df.Sampler(Foreign().eval(), schedule, backend="native", **given)
    x = native.sample(64, seed=3)
    y = df.Sampler(Foreign().eval(), schedule, backend="torch", **given).sample(64, seed=3)
    torch.testing.assert_close(x, y, rtol=1e-4, atol=1e-4 * float(y.std()))
    assert native.sample(10, seed=3, start=20).equal(x[20:30])


def test_sampler_refusals() -> None:
    model = make_model()  # made for 40 steps
    with pytest.raises(ValueError, match=r"schedule: got '41 steps' .*at most model.n_steps = 40"):
        df.Sampler(model, SigmaSchedule.karras(41), solver="euler", time_input="index")
    with pytest.raises(TypeError, match=r"schedule: got 3 .*SigmaSchedule or FlowSchedule"):
        df.Sampler(model, 3)
    with pytest.raises(TypeError, match=r"schedule: got SigmaSchedule.*a NoiseSchedule"):
        df.Sampler(model, SigmaSchedule.karras(9))
    with pytest.raises(ValueError, match=r"prediction_type: got 'epsilon' .*one of flow, sample"):
        df.Sampler(Foreign().eval(), FlowSchedule.linear(5), solver="euler", shape=2, time_input="unit")
    with pytest.raises(ValueError, match=r"solver: got 'dpmpp2m' .*did you mean 'dpmpp_2m'"):
        df.Sampler(model, SCHEDULE, solver="dpmpp2m")
