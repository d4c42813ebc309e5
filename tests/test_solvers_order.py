"""Order of convergence on a mixture of Gaussians, whose exact flow maps quantiles to quantiles."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from solver_targets import MIXTURE, pair, run_exact

from diffusion_fast import solvers
from diffusion_fast.schedules import NoiseSchedule
from diffusion_fast.sigma_schedules import FlowSchedule, SigmaSchedule

P = np.linspace(0.02, 0.98, 33)


def error(solver: str, schedule: Any, options: dict[str, Any], kind: str) -> float:
    """rms error of x at the last level, before the step to the data, whose length does not shrink with n."""
    table = solvers.solve(solver, schedule, prediction_type=kind, **options)
    times = table.timesteps
    first, last = pair(schedule, times[0]), pair(schedule, times[-1])
    start = MIXTURE.quantile(P, *first)
    scale = table.rows["a"][0] if not table[0].eval else 1.0
    got = run_exact(table, schedule, start / scale, kind=kind)[-2]
    exact = MIXTURE.quantile(P, *last)
    return float(np.sqrt(np.mean((got - exact) ** 2)))


def slope(errors: list[float], counts: list[int]) -> float:
    """Least squares of log error over log steps, without what has reached the float32 coefficients' floor."""
    kept = [(np.log(n), np.log(e)) for n, e in zip(counts, errors, strict=True) if e > 3e-6]
    assert len(kept) >= 3, errors
    x, y = np.array(kept).T
    return -float(np.polyfit(x, y, 1)[0])


# name -> solver, options, band of the order, numbers of steps. A multistep method starts with rows of lower
# order, but where the noise hides the data and the flow is all but straight, so that high orders still show.
FEW, MANY = (8, 16, 32, 64), (16, 32, 64, 128)
SMOOTH: dict[str, tuple[str, dict[str, Any], tuple[float, float], tuple[int, ...]]] = {
    "euler": ("euler", {}, (0.95, 1.1), MANY),
    "euler_ancestral, eta 0": ("euler_ancestral", {"eta": 0.0}, (0.95, 1.1), MANY),
    "heun": ("heun", {}, (1.95, 2.2), MANY),
    "dpm_solver_2": ("dpm_solver_2", {}, (1.95, 2.2), MANY),
    "dpmpp_2m": ("dpmpp_2m", {}, (1.95, 2.25), MANY),
    "dpmpp_2m, heun": ("dpmpp_2m", {"solver_type": "heun"}, (1.95, 2.25), MANY),
    "dpmpp_2s, eta 0": ("dpmpp_2s_ancestral", {"eta": 0.0}, (1.9, 2.1), MANY),
    "dpmpp_2m_sde, eta 0": ("dpmpp_2m_sde", {"eta": 0.0}, (1.95, 2.25), MANY),
    "dpmpp_3m_sde, eta 0": ("dpmpp_3m_sde", {"eta": 0.0}, (1.8, 2.6), MANY),  # see its docstring
    "unipc 1": ("unipc", {"solver_order": 1}, (1.9, 2.1), MANY),  # UniPC-p is of order p + 1
    "unipc 2": ("unipc", {}, (2.9, 3.4), MANY),
    "unipc 2, bh1": ("unipc", {"solver_type": "bh1"}, (2.9, 3.6), MANY),
    "unipc 3": ("unipc", {"solver_order": 3}, (3.8, 5.2), FEW),
    "unipc 3, bh1": ("unipc", {"solver_order": 3, "solver_type": "bh1"}, (3.8, 5.2), FEW),
    "lms 1": ("lms", {"solver_order": 1}, (0.95, 1.1), MANY),
    "lms 2": ("lms", {"solver_order": 2}, (1.8, 2.1), MANY),
    "lms 3": ("lms", {"solver_order": 3}, (2.6, 3.1), MANY),
    "lms 4": ("lms", {}, (3.1, 4.1), MANY),
}
RANGE = {"sigma_min": 0.1, "sigma_max": 20.0}


@pytest.mark.parametrize("name", SMOOTH)
def test_order_of_convergence(name: str) -> None:
    """On sigmas of Karras et al., and on the same levels of a NoiseSchedule."""
    solver, options, (low, high), counts = SMOOTH[name]
    grids = [SigmaSchedule.karras(n, **RANGE) for n in counts]
    errors = [error(solver, grid, options, "epsilon") for grid in grids]
    assert low < slope(errors, counts) < high, errors
    trained = NoiseSchedule.linear(1000)
    between = [{"sigmas": grid.sigmas, "fractional_time": True, **options} for grid in grids[:-1]]
    same = [error(solver, trained, given, "v_prediction") for given in between]
    np.testing.assert_allclose(same, errors[:-1], rtol=0.05)  # the last step starts at the same sigma


@pytest.mark.parametrize(
    "solver, options, low, high",
    [("edm", {}, 1.95, 2.2), ("edm", {"solver_order": 1}, 0.95, 1.1), ("heun", {}, 1.95, 2.2)],
)
def test_order_with_preconditioning(solver: str, options: dict[str, Any], low: float, high: float) -> None:
    errors = [error(solver, SigmaSchedule.exponential(n, **RANGE), options, "edm") for n in MANY]
    assert low < slope(errors, MANY) < high, errors


@pytest.mark.parametrize(
    "solver, low, high",
    # from pure noise, log-SNR = -inf, dpmpp_2m takes two steps of first order
    [("flow_euler", 0.95, 1.1), ("euler", 0.95, 1.1), ("flow_heun", 1.95, 2.15), ("dpmpp_2m", 1.6, 2.1)],
)
def test_order_on_a_flow(solver: str, low: float, high: float) -> None:
    errors = [error(solver, FlowSchedule(np.linspace(1, 0.1, n)), {}, "flow") for n in MANY]
    assert low < slope(errors, MANY) < high, errors


def test_plms_is_of_order_two_on_even_timesteps() -> None:
    """Its weights are those of equal steps in t, while x moves along sigma (Liu et al. 2022, section 3.3)."""
    counts = (9, 17, 33, 65)
    schedule = NoiseSchedule.linear(1025)
    lists = [np.linspace(900, 100, n).round().astype(int) for n in counts]
    errors = [error("plms", schedule, {"timesteps": t}, "epsilon") for t in lists]
    assert 1.7 < slope(errors, counts) < 2.6, errors


def test_plms_weights_are_those_of_lms_on_equal_sigmas() -> None:
    given = {"sigmas": np.linspace(8, 0.1, 12), "fractional_time": True}
    schedule = NoiseSchedule.linear(1000)
    ours, exact = solvers.plms(schedule, **given).rows[2:], solvers.lms(schedule, **given).rows[1:]
    for name in ("a", "b", "c1", "c2", "c3"):
        # from where the history is full to the step before the last, which is of another length
        np.testing.assert_allclose(ours[name][3:-1], exact[name][3:-1], rtol=1e-5, atol=1e-6)


def test_the_slope_of_a_known_sequence() -> None:
    counts = [8, 16, 32, 64]
    assert slope([n**-2.0 for n in counts], counts) == pytest.approx(2.0)
