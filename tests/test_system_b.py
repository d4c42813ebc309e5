"""System B: the exact denoiser and its chain against published references, and a whole run at tiny size."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from solver_targets import Mixture as Reference

import diffusion_fast as df
from diffusion_fast import datasets
from diffusion_fast.systems import mixtures_1d
from diffusion_fast.systems.run import Run


@pytest.mark.parametrize("name", mixtures_1d.SETS)
def test_the_exact_denoiser_is_that_of_an_independent_computation(name: str) -> None:
    mixture = datasets.MIXTURES[name]
    schedule = df.NoiseSchedule.cosine(20)
    reference = Reference(
        mixture.weights.tolist(), mixture.centers[:, 0].tolist(), mixture.covariances[:, 0, 0].tolist()
    )
    x = np.linspace(-12, 12, 49)
    model = df.models.MixtureDenoiser(mixture, schedule)
    for t in (0, 7, 18):
        abar = float(schedule.alphas_cumprod[t])
        x0 = reference.denoised(x, abar**0.5, (1 - abar) ** 0.5)
        wanted = (x - abar**0.5 * x0) / (1 - abar) ** 0.5
        found = model(torch.from_numpy(x[:, None]).float(), torch.full((len(x),), t))
        np.testing.assert_allclose(found[:, 0].numpy(), wanted, rtol=1e-4, atol=1e-4 * np.abs(wanted).max())


def test_the_exact_denoiser_refuses_what_it_is_not_made_for() -> None:
    schedule = df.NoiseSchedule.cosine(5)
    with pytest.raises(ValueError, match=r"^mixture: got .*2-dimensional rows"):
        df.models.MixtureDenoiser(datasets.MIXTURES["blobs"], schedule)
    with pytest.raises(TypeError, match=r"^mixture: got"):
        df.models.MixtureDenoiser([1, 2], schedule)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match=r"^schedule: got"):
        df.models.MixtureDenoiser(datasets.MIXTURES["two_gaussians"], [0.1])  # type: ignore[arg-type]
    model = df.models.MixtureDenoiser(datasets.MIXTURES["two_gaussians"], schedule)
    with pytest.raises(ValueError, match=r"^x: got"):
        model(torch.zeros(3, 2), torch.zeros(3, dtype=torch.int64))


def loss_of_the_exact_denoiser(reference: Reference, signal: float, noise: float) -> float:
    """E[(epsilon - E[epsilon | x])^2] over x_0 and epsilon, by Gauss-Hermite quadrature in both."""
    points, weights = np.polynomial.hermite_e.hermegauss(48)
    weights = weights / weights.sum()
    total = 0.0
    for w, mean, variance in zip(reference.w, reference.mu, reference.v, strict=True):
        x = signal * (mean + variance**0.5 * points[:, None]) + noise * points
        found = (x - signal * reference.denoised(x, signal, noise)) / noise
        total += w * weights @ (points - found) ** 2 @ weights
    return total


@pytest.mark.parametrize(
    ("name", "known"),
    [("two_gaussians", 0.4024), ("two_gaussians_wide", 0.3907), ("three_gaussians", 0.4634)],
)
def test_the_least_loss_is_that_of_an_independent_computation(name: str, known: float) -> None:
    """Of t = 1 .. 249; `known` are values of another computation, by drawing, good to about 0.004."""
    mixture = datasets.MIXTURES[name]
    exact = df.models.MixtureDenoiser(mixture, mixtures_1d.SCHEDULE)
    reference = Reference(
        mixture.weights.tolist(), mixture.centers[:, 0].tolist(), mixture.covariances[:, 0, 0].tolist()
    )
    steps = df.NoiseSchedule(mixtures_1d.SCHEDULE.betas[:249])
    losses = [
        loss_of_the_exact_denoiser(reference, abar**0.5, (1 - abar) ** 0.5)
        for abar in steps.alphas_cumprod.tolist()
    ]
    found = mixtures_1d.least_loss(exact, steps)
    assert found == pytest.approx(np.mean(losses), abs=1e-3)
    assert found == pytest.approx(known, abs=0.004)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("two_gaussians", (0.346, 0.654)),
        ("two_gaussians_wide", (0.416, 0.584)),
        ("three_gaussians", (0.257, 0.252, 0.491)),
    ],
)
def test_the_exact_chain_from_n01_misses_the_weights_by_what_is_known(
    name: str, weights: tuple[float, ...], tmp_path: Path
) -> None:
    """100,000 samples: a deviation of 0.0016 at most, and of the reference as much."""
    x = mixtures_1d.exact_samples(Run("B", tmp_path), name, "none")
    mixture = datasets.MIXTURES[name]
    assert mixtures_1d.component_weights(x, mixture) == pytest.approx(weights, abs=0.006)
    scaled = mixtures_1d.exact_samples(Run("B", tmp_path), name, "standard")
    assert mixtures_1d.component_weights(scaled, mixture) == pytest.approx(mixture.weights, abs=0.006)


def test_weights_of_samples_far_from_all_components() -> None:
    shares = mixtures_1d.component_weights(np.array([[-1e4], [1e4]]), datasets.MIXTURES["two_gaussians"])
    assert shares == [0.5, 0.5]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    recipes = mixtures_1d.recipes

    def shorter(run: Run) -> dict[str, mixtures_1d.Recipe]:
        few = {"epochs": 1, "batch_size": 1000}
        return {
            key: dataclasses.replace(recipe, training=recipe.training | few)
            for key, recipe in recipes(run).items()
        }

    monkeypatch.setattr(mixtures_1d, "recipes", shorter)
    monkeypatch.setattr(mixtures_1d, "N_SAMPLES", 500)
    monkeypatch.setattr(mixtures_1d, "SETS", {"three_gaussians": "three Gaussians"})


def test_a_run_reports_all_rows(tmp_path: Path, tiny: None) -> None:
    run = Run("B", tmp_path, as_published=True)
    mixtures_1d.run(run)
    facts = run.finish(mixtures_1d.TITLE)
    results = json.loads((tmp_path / "results.json").read_text())
    weights, losses, times = (table["rows"] for table in results["tables"])
    assert [row[0] for row in weights] == [
        "the true law",
        "fresh real data",
        "the exact chain",
        "the exact chain, rows scaled",
        "the published network",
        "rows scaled, time embedded",
        "the published network, as published",
    ]
    assert all(sum(row[1:4]) == pytest.approx(1) for row in weights)
    assert len(losses) == 3 and times[-1][2:] == [45.0, 3.7]
    assert len(results["pictures"]) == 6 and facts["cuts"]


@pytest.mark.slow
@pytest.mark.parametrize("name", mixtures_1d.SETS)
def test_scaled_rows_bring_the_true_weights(tmp_path: Path, name: str) -> None:
    """A network of 16-16, trained as in a quick run; an unscaled chain of two_gaussians_wide is 0.08 off."""
    run = Run("B", tmp_path)
    net = mixtures_1d.trained_network(run, name, "scaled", mixtures_1d.recipes(run)["scaled"])
    mixture = datasets.MIXTURES[name]
    found = mixtures_1d.component_weights(net.samples, mixture)
    assert found == pytest.approx(mixture.weights, abs=0.02)
