"""What bad input to the pictures gets: the argument, the value and what is accepted; no file is written."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

import diffusion_fast as df
from diffusion_fast import plotting
from diffusion_fast.training import TrainingHistory

V, Ty = ValueError, TypeError
ROWS = np.random.default_rng(0).random((20, 2))
ONE = ROWS[:, :1]
IMAGES = np.random.default_rng(0).random((6, 4, 4))
CHAIN = np.random.default_rng(0).random((5, 20, 2))
SCHEDULE = df.NoiseSchedule.linear(10)
SQUARE = ((-1, 1), (-1, 1))
BAD = ROWS.copy()
BAD[3, 1] = np.nan


def compare(samples: Any = ROWS, data: Any = ROWS, **options: Any) -> None:
    plotting.compare_samples(samples, data, **options)


def film(path: Path | str, **options: Any) -> None:
    plotting.chain_animation(CHAIN, path, frames=2, **options)


class Case(NamedTuple):
    """argument is "function argument"; given and accepted are searched in those parts of the message."""

    argument: str
    fault: str
    call: Callable[[Path], Any]
    error: type[Exception]
    given: str
    accepted: str


# fmt: off
CASES = [
    Case("compare_samples samples", "list", lambda _: compare([[1.0, 2.0]]), Ty, "list", r"\(n, dim\)"),
    Case("compare_samples samples", "text", lambda _: compare(np.array([["a"]])), Ty, "<U1", "numbers"),
    Case("compare_samples samples", "complex", lambda _: compare(ROWS * 1j), Ty, "complex128", "numbers"),
    Case("compare_samples samples", "rank", lambda _: compare(ROWS[0]), V, r"\(2,\)", r"\(n, dim\)"),
    Case("compare_samples samples", "empty", lambda _: compare(ROWS[:0]), V, r"\(0, 2\)", "n >= 1"),
    Case("compare_samples samples", "other columns", lambda _: compare(ONE),
         V, r"\(20, 1\)", "rows of 2 numbers"),
    Case("compare_samples samples", "sparse", lambda _: compare(torch.eye(2).to_sparse()),
         V, "tensor", "numbers"),
    Case("compare_samples samples", "meta", lambda _: compare(torch.ones(3, 2, device="meta")),
         V, "meta", "numbers"),
    Case("compare_samples data", "None", lambda _: compare(data=None), Ty, "None", r"\(n, dim\)"),
    Case("compare_samples data", "NaN", lambda _: compare(data=BAD), V, r"nan at index \(3, 1\)", "finite"),
    Case("compare_samples data", "no columns", lambda _: compare(data=ROWS[:, :0]),
         V, r"\(20, 0\)", "n >= 1"),
    Case("compare_samples columns", "too few", lambda _: compare(columns=["x"]), V, r"\['x'\]", "2 names"),
    Case("compare_samples columns", "one string", lambda _: compare(columns="xy"), Ty, "'xy'", "2 names"),
    Case("compare_samples columns", "numbers", lambda _: compare(columns=[1, 2]), Ty, r"\[1, 2\]", "2 names"),
    Case("compare_samples title", "number", lambda _: compare(title=3), Ty, "3", "string or None"),
    Case("compare_samples data_labels", "too few", lambda _: compare(data_labels=[0]),
         V, r"\[0\]", r"\(20,\)"),
    Case("compare_samples data_labels", "floats", lambda _: compare(data_labels=np.zeros(20)),
         Ty, "float64", "integers"),
    Case("compare_samples sample_labels", "negative", lambda _: compare(sample_labels=[-1] * 20),
         V, "-1", "from 0"),
    Case("compare_samples sample_labels", "above 31", lambda _: compare(sample_labels=[32] * 20),
         V, "32", "from 0 to 31"),
    Case("compare_samples sample_labels", "beyond classes",
         lambda _: compare(sample_labels=[2] * 20, classes=["a", "b"]), V, "2", "from 0 to 1"),
    Case("compare_samples classes", "without labels", lambda _: compare(classes=["a"]),
         V, "'a'", "None without"),
    Case("compare_samples classes", "string", lambda _: compare(classes="ab", data_labels=[0] * 20),
         Ty, "'ab'", "list of 1 to 32"),
    Case("compare_samples classes", "33 of them", lambda _: compare(classes=["a"] * 33, data_labels=[0] * 20),
         V, "'a'", "list of 1 to 32"),
    Case("compare_samples density", "two columns", lambda _: compare(density=np.sin),
         V, "sin", "belongs to one"),
    Case("compare_samples density", "no function", lambda _: compare(ONE, ONE, density=3),
         Ty, "3", "function"),
    Case("compare_samples density", "negative", lambda _: compare(ONE, ONE, density=lambda x: x - 1),
         V, r"\(512,\)", "not negative"),
    Case("compare_samples density", "shape", lambda _: compare(ONE, ONE, density=lambda x: x[1:]),
         V, r"\(511,\)", "as many"),
    Case("compare_samples density", "NaN", lambda _: compare(ONE, ONE, density=lambda x: x * np.nan),
         V, "nan at index", "finite"),
    Case("pair_plot data", "one column", lambda _: plotting.pair_plot(ONE, ONE), V, r"\(20, 1\)", "2 to 8"),
    Case("pair_plot data", "nine columns", lambda _: plotting.pair_plot(np.ones((5, 9)), np.ones((5, 9))),
         V, r"\(5, 9\)", "2 to 8"),
    Case("pair_plot samples", "other columns", lambda _: plotting.pair_plot(ONE, ROWS),
         V, r"\(20, 1\)", "2 numbers"),
    Case("image_grid images", "rank", lambda _: plotting.image_grid(ROWS[0]), V, r"\(2,\)", "height"),
    Case("image_grid images", "three channels", lambda _: plotting.image_grid(np.ones((2, 3, 4, 4))),
         V, r"\(2, 3, 4, 4\)", r"\(n, 1, height, width\)"),
    Case("image_grid images", "size unlike data's", lambda _: plotting.image_grid(IMAGES, np.ones((6, 5, 4))),
         V, r"\(6, 4, 4\)", "images of 5 x 4"),
    Case("image_grid images", "all NaN", lambda _: plotting.image_grid(IMAGES * np.nan),
         V, r"\(6, 4, 4\)", "finite"),
    Case("image_grid data", "NaN", lambda _: plotting.image_grid(IMAGES, IMAGES * np.nan),
         V, "nan at index", "finite"),
    Case("image_grid shape", "missing, no square", lambda _: plotting.image_grid(np.ones((3, 6))),
         V, "None", "6 pixels"),
    Case("image_grid shape", "other product", lambda _: plotting.image_grid(np.ones((3, 6)), shape=(2, 4)),
         V, r"\(2, 4\)", "6 pixels"),
    Case("image_grid shape", "other images", lambda _: plotting.image_grid(IMAGES, shape=(2, 8)),
         V, r"\(2, 8\)", r"\(4, 4\)"),
    Case("image_grid shape", "number", lambda _: plotting.image_grid(np.ones((3, 6)), shape=6),
         Ty, "6", r"\(height, width\)"),
    Case("image_grid rows", "zero", lambda _: plotting.image_grid(IMAGES, rows=0), V, "0", "1 to 64"),
    Case("image_grid rows", "float", lambda _: plotting.image_grid(IMAGES, rows=2.0), Ty, "2.0", "integer"),
    Case("image_panels sets", "list", lambda _: plotting.image_panels([IMAGES]), Ty, "list", "dictionary"),
    Case("image_panels sets", "empty", lambda _: plotting.image_panels({}), Ty, "dict", "one or more"),
    Case(r"image_panels sets\['a'\]", "rank", lambda _: plotting.image_panels({"a": ROWS[0]}),
         V, r"\(2,\)", "height"),
    Case("image_panels columns", "zero", lambda _: plotting.image_panels({"a": IMAGES}, columns=0),
         V, "0", "1 to 16"),
    Case("image_panels side", "float", lambda _: plotting.image_panels({"a": IMAGES}, side=2.0),
         Ty, "2.0", "integer"),
    Case("loss_curve history", "list", lambda _: plotting.loss_curve([1.0]),
         Ty, r"\[1.0\]", "TrainingHistory"),
    Case("loss_curve history", "empty", lambda _: plotting.loss_curve(TrainingHistory()),
         V, "TrainingHistory", "one epoch"),
    Case("schedule_curves schedules", "one alone", lambda _: plotting.schedule_curves(SCHEDULE),
         Ty, "NoiseSchedule", "dictionary"),
    Case("schedule_curves schedules", "empty", lambda _: plotting.schedule_curves({}), V, r"\{\}", "1 to 32"),
    Case("schedule_curves schedules", "number as name", lambda _: plotting.schedule_curves({1: SCHEDULE}),
         Ty, "1", "names"),
    Case(r"schedule_curves schedules\['a'\]", "betas",
         lambda _: plotting.schedule_curves({"a": SCHEDULE.betas}),
         Ty, "float64 tensor", "NoiseSchedule"),
    Case("chain_strip trajectory", "samples alone", lambda _: plotting.chain_strip(ROWS),
         V, r"\(20, 2\)", r"\(steps \+ 1, n, dim\)"),
    Case("chain_strip trajectory", "no step", lambda _: plotting.chain_strip(CHAIN[:1]),
         V, r"\(1, 20, 2\)", "one step"),
    Case("chain_strip trajectory", "NaN at the end",
         lambda _: plotting.chain_strip(np.concatenate([CHAIN, CHAIN[:1] * np.nan])),
         V, r"\(6, 20, 2\)", "finite"),
    Case("chain_strip trajectory", "list", lambda _: plotting.chain_strip([1, 2]), Ty, r"\[1, 2\]", "steps"),
    Case("chain_strip frames", "one", lambda _: plotting.chain_strip(CHAIN, frames=1), V, "1", "2 to 300"),
    Case("chain_strip frames", "beyond the end", lambda _: plotting.chain_strip(CHAIN, frames=[0, 5]),
         V, "5", "0 to 4"),
    Case("chain_strip frames", "none", lambda _: plotting.chain_strip(CHAIN, frames=[]),
         V, r"\[\]", "1 to 300"),
    Case("chain_strip frames", "text", lambda _: plotting.chain_strip(CHAIN, frames="all"),
         Ty, "'all'", "integer"),
    Case("chain_strip columns", "too many", lambda _: plotting.chain_strip(CHAIN, columns=["x"] * 3),
         V, "'x'", "2 names"),
    Case("chain_strip columns", "of images",
         lambda _: plotting.chain_strip(np.ones((3, 2, 4, 4)), columns=["x"]), V, "'x'", "None for images"),
    Case("chain_strip shape", "other product", lambda _: plotting.chain_strip(CHAIN, shape=(3, 3)),
         V, r"\(3, 3\)", "2 pixels"),
    Case("chain_animation path", "other ending", lambda d: film(d / "a.png"), V, r"a\.png", r"\.gif.*\.mp4"),
    Case("chain_animation path", "no ending", lambda d: film(d / "film"), V, "film", r"\.gif"),
    Case("chain_animation path", "number", lambda d: film(3), Ty, "3", "file name"),
    Case("chain_animation path", "no folder", lambda d: film("no/a.gif"),
         V, r"a\.gif", "folder that exists"),
    Case("chain_animation path", "a folder", lambda d: film("folder.gif"),
         V, r"folder\.gif", "file in a folder"),
    Case("chain_animation fps", "zero", lambda d: film(d / "a.gif", fps=0), V, "0", r"\(0, 50\]"),
    Case("chain_animation fps", "NaN", lambda d: film(d / "a.gif", fps=float("nan")), V, "nan", r"\(0, 50\]"),
    Case("chain_animation title", "bytes", lambda d: film(d / "a.gif", title=b"x"), Ty, "b'x'", "string"),
    Case("chain_animation columns", "too few", lambda d: film(d / "a.gif", columns=["x"]),
         V, "'x'", "2 names"),
    Case("field function", "no function", lambda _: plotting.field(3, SQUARE), Ty, "3", "function"),
    Case("field function", "three columns", lambda _: plotting.field(lambda x: x[:, [0, 0, 1]], SQUARE),
         V, r"\(40000, 3\)", r"\(n, 2\) vectors"),
    Case("field function", "too few values", lambda _: plotting.field(lambda x: x[1:], SQUARE),
         V, r"\(39999, 2\)", r"\(n,\)"),
    Case("field function", "a number", lambda _: plotting.field(lambda x: 1.0, SQUARE), Ty, "1.0", r"\(n,\)"),
    Case("field function", "all NaN", lambda _: plotting.field(lambda x: x * np.nan, SQUARE),
         V, "tensor", "finite values"),
    Case("field limits", "flat", lambda _: plotting.field(lambda x: x, (0, 1, 2, 3)),
         Ty, r"\(0, 1, 2, 3\)", "x_low"),
    Case("field limits", "reversed", lambda _: plotting.field(lambda x: x, ((0, 1), (2, 1))),
         V, r"\(2, 1\)", "below its high"),
    Case("field limits", "infinite", lambda _: plotting.field(lambda x: x, ((0, np.inf), (0, 1))),
         V, "inf", "finite"),
    Case("field resolution", "too low", lambda _: plotting.field(lambda x: x, SQUARE, resolution=5),
         V, "5", "24 to 1000"),
    Case("field label", "number", lambda _: plotting.field(lambda x: x, SQUARE, label=1),
         Ty, "1", "string or None"),
    Case("field columns", "three", lambda _: plotting.field(lambda x: x, SQUARE, columns=["a", "b", "c"]),
         V, "'c'", "2 names"),
]
# fmt: on


@pytest.mark.parametrize("case", CASES, ids=[f"{case.argument}: {case.fault}" for case in CASES])
def test_bad_input(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)  # a long path is cut in a message
    (tmp_path / "folder.gif").mkdir()
    with pytest.raises((V, Ty)) as caught:
        case.call(tmp_path)
    assert caught.type is case.error, caught.value
    name, _, rest = str(caught.value).partition(": got ")
    given, _, accepted = rest.rpartition("; accepted: ")
    assert re.fullmatch(case.argument.partition(" ")[2], name), caught.value
    assert re.search(case.given, given), caught.value
    assert re.search(case.accepted, accepted), caught.value
    assert [path.name for path in tmp_path.rglob("*")] == ["folder.gif"]


def test_a_folder_that_cannot_be_written_is_found_out_before_any_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plotting.animation, "ChainPainter", lambda *_, **__: pytest.fail("the work began"))
    monkeypatch.setattr(plotting.animation.os, "access", lambda *_: False)  # root may write anywhere
    with pytest.raises(ValueError, match=r"^path: got '.*a\.gif'.*accepted: .*can be written"):
        film(tmp_path / "a.gif")


def test_the_table_has_no_repetition() -> None:
    pairs = {(case.argument, case.fault) for case in CASES}
    assert len(pairs) == len(CASES) >= 70
