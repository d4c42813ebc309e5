"""System C at tiny size, and its claims as long tests."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diffusion_fast import metrics
from diffusion_fast.systems import energies_2d as system
from diffusion_fast.systems import energies_2d_models as models
from diffusion_fast.systems import report
from diffusion_fast.systems.run import Run

TINY = models.Sizes(ebm=3, dsm=3, ddpm=2, gan=(3, 3), mean=(2, 2), samples=60)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "QUICK", TINY)
    monkeypatch.setattr(models, "EBM_STEPS", 20)
    monkeypatch.setattr(models, "DSM_STEPS", 20)
    monkeypatch.setattr(models, "FRESH_ROWS", 600)
    # One with modes, one without.
    two = {name: system.SETS[name] for name in ("checkerboard", "spiral")}
    monkeypatch.setattr(system, "SETS", two)


def test_a_run_writes_its_report(tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(report, "RESOLUTIONS", (30,))  # pictures take most of the time
    run = Run("C", tmp_path, as_published=True)
    system.run(run)
    run.finish(system.TITLE)
    results = json.loads((tmp_path / "results.json").read_text())
    scores, distances, *_ = results["tables"]
    rows = [row[0] for row in scores["rows"]]
    ours = ["fresh data", "EBM", "DSM", system.DENOISED, "DDPM", "GAN", system.AS_PUBLISHED]
    assert rows[:7] == ours
    assert rows[7:] == ["EBM, published", "DSM, published", "DDPM, published", "GAN, published"]
    fresh = [cell["value"] for cell in scores["rows"][0][1:]]
    np.testing.assert_allclose(fresh, [-4.021, -0.725], atol=0.1)
    assert len(distances["rows"]) == 7 and len(results["pictures"]) == 4
    for picture in results["pictures"]:
        assert 0 < (tmp_path / picture["file"]).stat().st_size < 200_000
    monkeypatch.setattr(Run, "picture", lambda *_: None)
    again = Run("C", tmp_path, as_published=True, resume=True)
    system.run(again)  # reads every stage back
    assert again.report.tables == run.report.tables


def test_every_mode_is_there() -> None:
    for name, count in (("checkerboard", 8), ("gaussian_ring", 7)):
        part = models.points(name, 0)
        centers = system.modes(part.data)
        assert len(centers) == count
        nearest = np.linalg.norm(part.rows[:, None] - centers, axis=2)
        assert set(nearest.argmin(1)) == set(range(count))
        if name == "checkerboard":  # each point lies in the square of its nearest middle
            at = centers[np.abs(part.rows[:, None] - centers).max(2).argmin(1)]
            assert (np.abs(part.rows - at) <= 1 + 1e-6).all()


def test_the_walk_of_the_mean_scores_what_was_published(tiny: None, tmp_path: Path) -> None:
    """The published EBM row is a random walk from 2 N(0, I): 1000 steps of 5e-3 make it N(0, 14 I)."""
    run = Run("C", tmp_path)
    monkey = {"checkerboard": -10.578, "gaussian_ring": -143.24}
    models.EBM_STEPS = 1000  # the fixture's own value is restored
    for name, published in monkey.items():
        part = models.points(name, 0)
        found = models.walk_of_the_mean(run, part)
        assert metrics.kde_score(found.samples, part.rows).value == pytest.approx(published, rel=0.35)


@pytest.fixture(scope="module")
def quick(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    run = Run("C", tmp_path_factory.mktemp("C"))
    system.run(run)
    return {table["title"]: table["rows"] for table in run.report.tables}


@pytest.mark.slow
def test_the_energy_based_model_samples_the_data(quick: dict[str, Any]) -> None:
    rows = {row[0]: row[1:] for row in quick["Mean KDE score (the published Table 1)"]}
    for real, ours in zip(rows["fresh data"], rows["EBM"], strict=True):
        assert abs(ours["value"] - real["value"]) < 0.5


@pytest.mark.slow
@pytest.mark.parametrize("method", ["DSM", "DDPM"])
def test_as_close_to_fresh_data_as_published(quick: dict[str, Any], method: str) -> None:
    rows = {row[0]: row[1:] for row in quick["Mean KDE score (the published Table 1)"]}
    for real, ours, theirs in zip(
        rows["fresh data"], rows[method], rows[f"{method}, published"], strict=True
    ):
        # both are means over 2,000 random points
        allowance = 2 * (ours["spread"] ** 2 + real["spread"] ** 2) ** 0.5
        assert abs(ours["value"] - real["value"]) <= abs(theirs - real["value"]) + allowance
