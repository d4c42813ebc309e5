"""The frame of the five systems: stages that are read back, reports, and the command with its refusals."""

from __future__ import annotations

import contextlib
import json
import math
import types
from pathlib import Path

import click
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from matplotlib.figure import Figure
from PIL import Image

from diffusion_fast import systems
from diffusion_fast.cli import main, reproduce
from diffusion_fast.metrics.result import MetricResult
from diffusion_fast.systems.run import Run


def fill_with_twos(model: torch.nn.Module) -> dict[str, object]:
    torch.nn.init.constant_(model.weight, 2.0)
    return {"loss": [1.0, 0.5], "t": torch.arange(3), "x": np.arange(2.0)}


def test_a_stage_is_read_back(tmp_path: Path) -> None:
    result = MetricResult(0.5, 0.1, math.nan, (10, 20))
    values = {"emd": result, "n": np.int64(3), "x": torch.ones(4, 4)[:, 1], "nested": {"a": [1, None]}}
    first = Run("A", tmp_path)
    assert first.stage("one", "evaluation", lambda: values)["emd"] is result

    def again() -> dict[str, object]:
        raise AssertionError("this stage was done")

    second = Run("A", tmp_path, resume=True)
    found = second.stage("one", "evaluation", again)
    assert found["n"] == 3 and found["nested"] == {"a": [1, None]} and torch.equal(found["x"], torch.ones(4))
    assert str(found["emd"]) == str(result) and found["emd"].n == (10, 20)
    assert second.seconds == first.seconds
    with pytest.raises(AssertionError, match="was done"):
        Run("A", tmp_path).stage("one", "evaluation", again)  # without resume


def test_a_trained_model_is_read_back(tmp_path: Path) -> None:
    values = Run("A", tmp_path).trained("net", torch.nn.Linear(2, 1), fill_with_twos)
    model = torch.nn.Linear(2, 1)
    again = Run("A", tmp_path, resume=True).trained("net", model, fill_with_twos)
    assert model.weight.tolist() == [[2.0, 2.0]] and not model.training
    assert again.keys() == values.keys() == {"loss", "t", "x"}
    assert isinstance(again["x"], np.ndarray) and isinstance(again["t"], torch.Tensor)


@pytest.mark.parametrize(
    ("run", "named"),
    [({"system": "B"}, "system is 'A'"), ({"seed": 1}, "seed is 0"), ({"full": True}, "size is 'quick'")],
)
def test_a_stage_of_another_run_is_refused(tmp_path: Path, run: dict[str, object], named: str) -> None:
    Run("A", tmp_path).stage("one", "sampling", lambda: {"n": 1})
    with pytest.raises(ValueError, match=rf"out: got .*{named}.*accepted: "):
        Run(**{"system": "A", "out": tmp_path, "resume": True} | run).stage("one", "sampling", dict)


@pytest.mark.parametrize("content", [b"", b"x" * 100, b"\xff" * 8 + b"{}"])
def test_a_damaged_stage_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "stages").mkdir()
    (tmp_path / "stages" / "one.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match="no stage of a run or damaged"):
        Run("A", tmp_path, resume=True).stage("one", "sampling", dict)


def noisy_picture() -> Figure:
    figure = Figure(figsize=(5, 4))
    axes = figure.add_axes((0, 0, 1, 1))
    axes.imshow(np.random.default_rng(0).random((200, 300, 3)))
    return figure


def test_the_report_has_it_all(tmp_path: Path) -> None:
    run = Run("B", tmp_path, seed=3)
    run.cut("one set of two")
    run.text("First words.")
    rows = [["ours", 0.123456, MetricResult(0.5, 0.1, 0.02, (1, 1))], ["fresh | data", math.nan, None]]
    run.table("Distances", ["row", "loss", "EMD"], rows, "Of one run.")
    run.picture("noise", noisy_picture(), "Nothing to see")
    facts = run.finish("a title")
    text = (tmp_path / "report.md").read_text()
    for line in ("# System B: a title", "* one set of two", "| ours | 0.1235 | 0.5 ± 0.02 |", "Of one run."):
        assert line in text
    assert "| fresh / data | not a number |  |" in text and "![Nothing to see](noise.png)" in text
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["tables"][0]["rows"][0][2] == {"value": 0.5, "floor": 0.1, "spread": 0.02, "n": [1, 1]}
    assert results["tables"][0]["rows"][1][1] is None and results["seed"] == 3 == facts["seed"]
    assert (tmp_path / "noise.png").stat().st_size < 200_000
    assert Image.open(tmp_path / "noise.png").size[0] > 140


def test_a_row_that_does_not_fit_is_a_fault(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="3 cells under 2 columns"):
        Run("A", tmp_path).table("T", ["a", "b"], [[1, 2, 3]])


@pytest.fixture
def toy(monkeypatch: pytest.MonkeyPatch) -> list[Run]:
    """In place of the five systems one that notes its runs."""
    runs: list[Run] = []

    def run(run: Run) -> None:
        runs.append(run)
        run.stage("work", "sampling", lambda: {"n": len(runs)})

    module = types.SimpleNamespace(TITLE="a toy", SECONDS={"quick": 1.0, "full": 9000.0}, run=run)
    monkeypatch.setattr(systems, "load", lambda name: module)
    return runs


def command(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["reproduce", *arguments], catch_exceptions=False)


def test_the_command_runs_one_or_all(tmp_path: Path, toy: list[Run]) -> None:
    result = command("all", "--out", str(tmp_path / "new" / "out"), "--json")
    assert result.exit_code == 0 and [run.system for run in toy] == list(reproduce.SYSTEMS)
    assert json.loads(result.stdout)["systems"][4]["title"] == "a toy"
    assert "this will take about" in result.stderr
    assert (tmp_path / "new" / "out" / "E" / "report.md").is_file()
    again = command("B", "--out", str(tmp_path / "new" / "out"), "--resume", "--as-published")
    assert again.exit_code == 0 and toy[-1].as_published and "B: a toy" in again.stdout


def test_an_interrupted_run_leaves_the_report_of_what_was_done(
    tmp_path: Path, toy: list[Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    out, told = tmp_path / "out", True

    def run(run: Run) -> None:
        run.table("First", ["n"], [[1]])
        if told:
            raise KeyboardInterrupt
        run.table("Second", ["n"], [[2]])

    monkeypatch.setattr(systems.load("A"), "run", run)

    def reported(*more: str) -> tuple[str, bool]:
        with contextlib.suppress(click.Abort):
            main(["reproduce", "A", "--out", str(out), *more], standalone_mode=False)
        facts = json.loads((out / "A" / "results.json").read_text())
        return (out / "A" / "report.md").read_text(), facts["interrupted"]

    text, interrupted = reported()
    assert "**Interrupted" in text and "First" in text and "Second" not in text and interrupted
    told = False
    text, interrupted = reported("--resume")
    assert "Interrupted" not in text and "Second" in text and not interrupted
    told = True
    assert reported("--resume") == (text, False), "the whole report stays"


def test_files_of_the_user_are_looked_at_before_anything_is_done(tmp_path: Path) -> None:
    """Those of E too, whose turn comes last."""
    (tmp_path / "data").mkdir()
    out = tmp_path / "out"
    result = command("all", "--data", str(tmp_path / "data"), "--out", str(out))
    assert (
        result.exit_code == 2 and "--data: " in result.stderr and "train-images-idx3-ubyte" in result.stderr
    )
    assert result.stderr.count("\n") == 1 and not out.exists()
    (tmp_path / "data" / "albatross.npy").write_bytes(b"")
    result = command("D", "--data", str(tmp_path / "data"), "--out", str(out))
    assert result.exit_code == 2 and "albatross.npy" in result.stderr and not out.exists()


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("F",), "got 'F'; accepted: one of A, B, C, D, E, all"),
        (("A", "--data", "nowhere"), "--data: got 'nowhere'; accepted: a folder that exists"),
        (("A", "--out", "file"), "--out: got 'file', which cannot be used"),
        (
            ("A", "--out", "full"),
            "--out: got 'full', which is not empty; accepted: a new or empty folder, or",
        ),
        (("A", "--out", "full", "--resume"), "which holds no run.json"),
        (("A", "--out", "old", "--resume", "--seed", "1"), "where run.json has"),
        (("A", "--out", "bad", "--resume"), "where run.json is damaged"),
        (("A", "--out", "/proc/nothing"), "--out: got '/proc/nothing', which cannot be used"),
    ],
)
def test_bad_arguments_are_refused(
    tmp_path: Path, toy: list[Run], monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], named: str
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("full", "old", "bad"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "kept").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "old" / "run.json").write_text('{"size": "quick", "seed": 0, "data": null}')
    (tmp_path / "bad" / "run.json").write_text("{")
    result = CliRunner().invoke(main, ["reproduce", *arguments])
    assert result.exit_code == 2 and named in result.stderr and result.stderr.count("\n") == 1
    assert not toy and all((tmp_path / name / "kept").exists() for name in ("full", "old", "bad"))
