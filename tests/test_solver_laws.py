"""Solvers: the exact law of Gaussian data propagated through the rows, and single steps of a peer."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from diffusion_fast.schedules import NoiseSchedule
from diffusion_fast.solvers import StepTable, ddim, ddpm
from diffusion_fast.solvers.spacing import SPACINGS

MU, V = 1.7, 0.09  # data N(MU, V), one dimension


def network(schedule: NoiseSchedule, kind: str) -> tuple[np.ndarray, np.ndarray]:
    """The optimal output F = f1 x + f0 at every timestep, from E[x0 | x_t] of a Gaussian pair."""
    abar = schedule.alphas_cumprod.numpy()
    total = abar * V + 1 - abar
    x0_1 = np.sqrt(abar) * V / total
    x0_0 = MU - x0_1 * np.sqrt(abar) * MU
    eps_1, eps_0 = np.sqrt(1 - abar) / total, -np.sqrt(1 - abar) / total * np.sqrt(abar) * MU
    if kind == "sample":
        return x0_1, x0_0
    if kind == "epsilon":
        return eps_1, eps_0
    signal, noise = np.sqrt(abar), np.sqrt(1 - abar)
    return signal * eps_1 - noise * x0_1, signal * eps_0 - noise * x0_0


def law_of_rows(table: StepTable, schedule: NoiseSchedule, kind: str = "epsilon") -> tuple[float, float]:
    """Mean and variance after the rows, started from N(0, 1), in float64."""
    f1, f0 = network(schedule, kind)
    mean, var = 0.0, 1.0
    for row, t in zip(table, table.timesteps, strict=True):
        slope = row.a + row.b * (row.p_x + row.p_F * f1[t]) + row.e * f1[t]
        shift = row.b * row.p_F * f0[t] + row.e * f0[t]
        mean, var = slope * mean + shift, slope**2 * var + row.s**2
    return mean, var


def law_of_bayes(schedule: NoiseSchedule, timesteps: Any, variance: str) -> tuple[float, float]:
    """DDPM by Bayes' rule in precision form: prior N(sqrt(abar_prev) x0, 1 - abar_prev) times the likelihood
    of x_t ~ N(sqrt(alpha) x_prev, beta), with x0 = E[x0 | x_t]."""
    abar = schedule.alphas_cumprod.numpy()
    g1, g0 = network(schedule, "sample")
    mean, var = 0.0, 1.0
    for i, t in enumerate(timesteps):
        if i + 1 == len(timesteps):  # the prior is a point
            return g1[t] * mean + g0[t], g1[t] ** 2 * var
        prev = abar[timesteps[i + 1]]
        alpha = abar[t] / prev
        precision = 1 / (1 - prev) + alpha / (1 - alpha)
        w_x0, w_x = np.sqrt(prev) / (1 - prev) / precision, np.sqrt(alpha) / (1 - alpha) / precision
        sigma2 = 1 / precision if variance == "posterior" else 1 - alpha
        mean, var = w_x0 * (g1[t] * mean + g0[t]) + w_x * mean, (w_x0 * g1[t] + w_x) ** 2 * var + sigma2
    raise AssertionError("no timesteps")


@pytest.mark.parametrize("variance", ["posterior", "beta"])
@pytest.mark.parametrize("steps", [None, 50, 7, 1])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_ddpm_law(spacing: str, steps: int | None, variance: str) -> None:
    schedule = NoiseSchedule.linear(200, 1e-4, 0.04)
    table = ddpm(schedule, steps=steps, spacing=spacing, variance=variance)
    expected = law_of_bayes(schedule, table.timesteps, variance)
    # rtol: 200 roundings to float32 of coefficients near 1
    for kind in ("epsilon", "sample", "v_prediction"):
        for clip in (None, 1e6):  # a bound that is never reached
            options = {"variance": variance, "prediction_type": kind, "clip": clip}
            table = ddpm(schedule, steps=steps, spacing=spacing, **options)
            np.testing.assert_allclose(law_of_rows(table, schedule, kind), expected, rtol=2e-5, atol=1e-7)


@pytest.mark.parametrize("steps", [None, 50, 7, 1])
@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("clip", [None, 1e6])
def test_ddim_law(spacing: str, steps: int | None, clip: float | None) -> None:
    """x - sqrt(abar) MU shrinks by (sqrt(abar_prev abar) V + sqrt((1 - abar_prev)(1 - abar))) / Var(x_t)."""
    schedule = NoiseSchedule.linear(200, 1e-4, 0.04)
    table = ddim(schedule, steps=steps, spacing=spacing, clip=clip)
    abar = schedule.alphas_cumprod.numpy()[table.timesteps]
    prev = np.append(abar[1:], 1.0)
    shrink = ((np.sqrt(prev * abar) * V + np.sqrt((1 - prev) * (1 - abar))) / (abar * V + 1 - abar)).prod()
    expected = MU - shrink * np.sqrt(abar[0]) * MU, shrink**2
    np.testing.assert_allclose(law_of_rows(table, schedule), expected, rtol=2e-5, atol=1e-7)


def test_long_chains_converge_to_the_data() -> None:
    schedule = NoiseSchedule.linear(1000)  # abar_T = 4e-5, so N(0, 1) is the right start
    errors = []
    for steps in (10, 100, 1000):
        mean, var = law_of_rows(ddim(schedule, steps=steps, spacing="trailing"), schedule)
        errors.append(abs(var / V - 1))
        assert mean == pytest.approx(MU, rel=0.02)
    assert errors[0] > errors[1] > errors[2] and errors[2] < 0.01
    # the two variances of ddpm bound the entropy of the exact reverse step (Ho et al. 2020, section 3.2)
    low, high = (law_of_rows(ddpm(schedule, variance=name), schedule) for name in ("posterior", "beta"))
    assert low[0] == pytest.approx(MU, rel=1e-4) and high[0] == pytest.approx(MU, rel=1e-4)
    assert 0.97 * V < low[1] < V < high[1] < 1.03 * V


@pytest.mark.parametrize("kind", ["epsilon", "sample", "v_prediction"])
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("steps", [100, 10])
def test_steps_of_diffusers(kind: str, clip: float | None, steps: int) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: pip install '.[bench]'")
    schedule = NoiseSchedule.linear(100)
    x, F, z = (torch.randn(1000, 1) for _ in range(3))
    shared = {
        "trained_betas": schedule.betas.tolist(),
        "num_train_timesteps": 100,
        "prediction_type": kind,
        "clip_sample": clip is not None,
    }
    ours = {"steps": steps, "prediction_type": kind, "clip": clip}
    peers = [
        (
            diffusers.DDIMScheduler(**shared),
            ddim(schedule, eta=0.5, **ours),
            {"eta": 0.5, "variance_noise": z},
        ),
        (diffusers.DDPMScheduler(**shared), ddpm(schedule, **ours), {}),
        (
            diffusers.DDPMScheduler(variance_type="fixed_large", **shared),
            ddpm(schedule, variance="beta", **ours),
            {},
        ),
    ]
    for peer, table, extra in peers:
        peer.set_timesteps(steps)
        assert peer.timesteps.tolist() == table.timesteps.tolist()
        for row in table:
            noise = z
            if not extra:  # DDPM draws its own noise
                noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(5))
                extra_now = {"generator": torch.Generator().manual_seed(5)}
            else:
                extra_now = extra
            theirs = peer.step(F, int(row.timestep), x, **extra_now).prev_sample
            m = (row.p_x * x + row.p_F * F).clamp(-row.clip, row.clip)
            got = row.a * x + row.b * m + row.e * F + row.s * noise
            # their coefficients are float32 throughout: 1 - abar has 3e-4 relative error at beta = 1e-4
            torch.testing.assert_close(got, theirs, rtol=1e-3, atol=1e-3)
