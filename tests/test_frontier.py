"""The study of the frontier at a tiny size: what is measured, its table and picture, what --quality takes."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from benchmarks import frontier, frontier_picture
from benchmarks.exact import SlicedLaw
from diffusion_fast.cli.quality import QUALITIES


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    chosen = ("ddim", "ddpm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frontier, "RUNS", [run for run in frontier.RUNS if run.name in chosen])
        patch.setattr(frontier, "EVALUATIONS", (5,))
        models = [dataclasses.replace(m, tiers=m.tiers[: 2 if m.name == "B" else 1]) for m in frontier.MODELS]
        patch.setattr(frontier, "MODELS", models)
        return json.loads(json.dumps(frontier.measure(1024, 1)))


def test_every_system_solver_and_tier(content: dict[str, Any]) -> None:
    assert list(content["models"]) == ["A", "B", "C", "D"]
    for name, found in content["models"].items():
        lines = {(line["name"], line["tier"]) for line in found["lines"]}
        assert lines >= {("ddim", "float32"), ("ddpm", "float32")}
        assert ("ddpm", "table") in lines if name == "B" else len(lines) == 2
        for line in found["lines"]:
            few, whole = line["evaluations"]
            assert few == 5 and whole in (100, 200, 250)
            assert min(line["seconds"]) > 0 and len(line["distance"]) == 2
        assert len(found["floor"]) == frontier.FLOOR_DRAWS


def test_the_table_has_what_no_other_run_beats(content: dict[str, Any]) -> None:
    text = frontier_picture.table(content)
    rows = [line.strip("| ").split(" | ") for line in text.splitlines()[2:]]
    for name, found in content["models"].items():
        own = [row for row in rows if row[0] == name]
        seconds, distance = ([float(row[k]) for row in own] for k in (4, 5))
        assert seconds == sorted(seconds) and distance == sorted(distance, reverse=True)
        least = min(run["distance"] for run in frontier_picture.points(found))
        assert distance[-1] <= frontier_picture.NEAR * least + 1e-4


def test_the_picture(content: dict[str, Any]) -> None:
    figure = frontier_picture.draw(content)
    assert isinstance(figure, Figure) and len(figure.axes) == 4
    tables = [
        line for line in figure.axes[1].lines if line.get_linestyle() == ":" and len(line.get_xdata()) == 2
    ]
    assert len(tables) >= 2  # the table tier of B


def test_directions_of_any_dimension() -> None:
    rng = np.random.default_rng(0)
    for dim in (1, 2, 3):
        rows = rng.standard_normal((4000, dim)).astype(np.float32)
        law = SlicedLaw.of_rows(rows)
        np.testing.assert_allclose(np.linalg.norm(law.directions, axis=1), 1, rtol=1e-6)
        assert law.distance(rows) < 1e-6
        shift = np.full(dim, 0.5, np.float32)
        expected = float(np.abs(law.directions @ shift).mean())
        assert law.distance(rows + shift) == pytest.approx(expected, rel=1e-3)


def test_qualities_are_runs_of_the_study() -> None:
    solvers = {run.solver for run in frontier.RUNS if run.kind == "preserving"}
    for settings in QUALITIES.values():
        assert settings["solver"] in solvers
        assert settings["steps"] in (None, *frontier.EVALUATIONS)
