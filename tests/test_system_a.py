"""System A: what it says of the published training, its final model, and a whole run at tiny size."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import diffusion_fast as df
from diffusion_fast import datasets
from diffusion_fast.metrics import MetricResult
from diffusion_fast.plotting import sample_panels
from diffusion_fast.systems import points_3d, published_a
from diffusion_fast.systems.published_a import HELIX, SIN
from diffusion_fast.systems.run import Run
from diffusion_fast.training import TrainingHistory, train


@pytest.mark.parametrize(
    ("schedule", "abar"),
    [("linear", 0.381), ("constant", 0.145), ("quadratic", 0.515), ("warmup10", 0.160), ("warmup50", 0.235)],
)
def test_the_schedules_are_the_published_ones(schedule: str, abar: float) -> None:
    noise = points_3d.Setting(SIN, (8,), 1, 150, schedule).noise()
    assert float(noise.alphas_cumprod[-1]) == pytest.approx(abar, abs=0.0006)


@pytest.mark.parametrize(("n", "abar"), [(10, 0.938), (50, 0.725), (100, 0.526), (200, 0.276)])
def test_length_and_noise_change_together(n: int, abar: float) -> None:
    noise = points_3d.Setting(SIN, (8,), 1, n).noise()
    assert float(noise.alphas_cumprod[-1]) == pytest.approx(abar, abs=0.0006)


@pytest.mark.parametrize(
    ("size", "parameters"), [("small", 71_987), ("middle", 269_107), ("large", 1_319_219)]
)
def test_the_networks_have_the_published_sizes(size: str, parameters: int) -> None:
    model = points_3d.new_model(points_3d.Setting(SIN, points_3d.SIZES[size], 1, 50), seed=0)
    assert sum(p.numel() for p in model.parameters()) == parameters


def test_the_published_training_pairs_each_level_with_the_time_of_the_next() -> None:
    """At array index t = 1 .. T - 1 the network is trained on the time t / T - 1/2; index 0 is not drawn."""
    noise = df.NoiseSchedule.linear(10, 1e-3, 0.3)
    seen = points_3d.shifted(noise)
    torch.testing.assert_close(seen.alphas_cumprod, noise.alphas_cumprod[1:], rtol=1e-12, atol=0)
    embed = points_3d.new_model(points_3d.Setting(SIN, (8,), 1, 10), seed=0).time_embed
    t = torch.arange(9)  # steps of `seen`, array indices 1 .. 9
    layers = list(embed.children())
    wanted = (torch.arange(1, 10) / 10 - 0.5)[:, None]
    for layer in layers:
        wanted = layer(wanted)
    torch.testing.assert_close(embed(t), wanted)


def test_a_frozen_embedding_keeps_its_weights(tmp_path: Path, tiny: None) -> None:
    lab = points_3d.Lab(Run("A", tmp_path))
    for learned in (True, False):
        setting = points_3d.Setting(HELIX, (8,), 1, 10, learned_time=learned)
        before, after = points_3d.new_model(setting, 0), lab.trained(setting)
        same = torch.equal(before.time_embed[0].weight, after.time_embed[0].weight)
        assert same is not learned
        assert not torch.equal(before.model[0].weight, after.model[0].weight)


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Small sets and one epoch a stage; -> the epochs that were asked for, in order."""
    asked: list[int] = []
    load = datasets.load

    def one_epoch(*given: Any, epochs: int, **options: Any) -> TrainingHistory:
        asked.append(epochs)
        return train(*given, epochs=1, **options)

    monkeypatch.setattr(points_3d, "train", one_epoch)
    monkeypatch.setattr(points_3d.datasets, "load", lambda name, seed: load(name, 700, 320, seed=seed))
    monkeypatch.setattr(points_3d, "EMD_ROWS", 50)
    monkeypatch.setattr(points_3d, "SIZES", dict.fromkeys(points_3d.SIZES, (8,)) | {"small": (6, 6)})
    return asked


def test_longer_trainings_go_on_from_shorter_ones(tmp_path: Path, tiny: list[int]) -> None:
    lab = points_3d.Lab(Run("A", tmp_path, full=True))
    setting = points_3d.Setting(HELIX, (8,), 250, 10)
    lab.trained(setting)
    lab.trained(points_3d.replace(setting, epochs=300))
    assert tiny == [100, 100, 50, 100]
    assert len(list((tmp_path / "checkpoints").iterdir())) == 4


def test_samples_are_of_the_published_chain(tmp_path: Path, tiny: list[int]) -> None:
    """sigma^2 = beta, from the seed of the run, as many as the test set has rows."""
    lab = points_3d.Lab(Run("A", tmp_path, full=True, seed=5))
    setting = points_3d.Setting(HELIX, (8,), 1, 10, "quadratic")
    found = lab.result(setting).samples
    noise = df.NoiseSchedule.quadratic(10, 1e-5, 0.0128)
    wanted = df.sample(lab.trained(setting), noise, 320, seed=5, variance="beta", backend="native")
    assert np.array_equal(found, wanted.numpy())


def test_clipping_is_of_the_sampling_alone(tmp_path: Path, tiny: list[int]) -> None:
    lab = points_3d.Lab(Run("A", tmp_path))
    setting = points_3d.Setting(HELIX, (8,), 1, 10, "cosine")
    free, clipped = (lab.result(points_3d.replace(setting, clipped=c)).samples for c in (False, True))
    assert tiny == [1], "one training"
    bound = abs(lab.data[HELIX].standardised_train).max()
    assert abs(clipped).max() <= bound * (1 + 1e-6) < abs(free).max()


class Noise:
    """In place of a Sampler: what the tables hold is not of interest, and each one takes a second to make."""

    def __init__(self, *given: Any, **options: Any) -> None:
        pass

    def sample(self, n: int, *, seed: int) -> torch.Tensor:
        return torch.randn(min(n, 400), 3)


def mean_scores(x: Any, *rows: np.ndarray, repeats: int, seed: int) -> dict[str, MetricResult]:
    value = MetricResult(float(x.mean()), 0.0, 0.0, (repeats, repeats))
    return dict.fromkeys(points_3d.COLUMNS.values(), value)


def test_scores_are_those_of_both_halves_of_the_data() -> None:
    rng = np.random.default_rng(0)
    x, test, train_rows = rng.standard_normal((400, 3)), rng.standard_normal((300, 3)), rng.random((500, 3))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(points_3d, "EMD_ROWS", 200)
        found = points_3d.scores(x, test, train_rows, repeats=2, seed=1)
    assert found["nll_train"] == df.metrics.kernel_nll(x, train_rows, seed=1)
    assert found["emd_sum_test"] == df.metrics.emd_sum(x, test, seed=1)
    assert found["emd_test"].n == (200, 200) and found["emd_test"].value < found["emd_train"].value
    assert found.keys() == set(points_3d.COLUMNS.values())


@pytest.mark.parametrize("full", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_run_reports_all_tables(
    tmp_path: Path, tiny: list[int], monkeypatch: pytest.MonkeyPatch, full: bool
) -> None:
    monkeypatch.setattr(points_3d, "Sampler", Noise)
    monkeypatch.setattr(points_3d, "scores", mean_scores)
    pictures: list[str] = []
    monkeypatch.setattr(Run, "picture", lambda self, name, figure, caption: pictures.append(name))
    monkeypatch.setattr(points_3d, "compare_samples", lambda *given, **options: None)
    monkeypatch.setattr(points_3d, "sample_panels", lambda *given, **options: None)
    run = Run("A", tmp_path, full=full, as_published=True)
    points_3d.run(run)
    facts = run.finish(points_3d.TITLE)
    tables = {
        table["title"]: table for table in json.loads((tmp_path / "results.json").read_text())["tables"]
    }
    assert {title.partition(": ")[0] for title in tables} == {SIN, HELIX}
    assert len(tables) == (14 if full else 11) == len(set(pictures)) - 1 == len(pictures) - 1
    lengths = [row[0] for row in tables[f"{HELIX}: Number of steps"]["rows"]]
    assert lengths[:2] == ["T = 10", "T = 10, published"] and lengths[-1] == "fresh real data"
    assert len(lengths) == (11 if full else 5)
    final = tables[f"{SIN}: final model"]["rows"]
    assert [row[0].split(",")[0] for row in final][1:] == [
        "the report's: warmup50",
        "the report's",
        "published",
        "fresh real data",
    ]
    assert final[0][1] == pytest.approx(final[0][4]["value"] / final[-1][4]["value"])
    assert bool(facts["cuts"]) is not full
    count = len(tiny)
    points_3d.run(Run("A", tmp_path, full=full, as_published=True, resume=True))
    assert len(tiny) == count, "with resume nothing is trained again"


def test_panels_show_each_set_on_the_data_s_axes() -> None:
    data = np.random.default_rng(0).standard_normal((200, 3))
    figure = sample_panels(
        {"one": data[:50] + 100, "two": torch.randn(3000, 3)}, data, columns=["x", "y", "z"]
    )
    assert [axes.get_title() for axes in figure.axes] == ["data", "one", "two"]
    assert len({axes.get_xlim() for axes in figure.axes}) == 1
    assert "50 outside" in {text.get_text() for text in figure.axes[1].texts}
    with pytest.raises(TypeError, match=r"^samples: got"):
        sample_panels([data], data)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"^samples: got"):
        sample_panels({}, data)
    with pytest.raises(ValueError, match=r"^data: got"):
        sample_panels({"one": data[:, :1]}, data[:, :1])


@pytest.mark.slow
@pytest.mark.parametrize("name", [SIN, HELIX])
def test_the_final_model_beats_the_published_one(tmp_path: Path, name: str) -> None:
    """Test NLL and distance per pair below the published, and the latter within 1.3 of real against real."""
    lab = points_3d.Lab(Run("A", tmp_path))
    found = lab.final(name).scores
    schedule = published_a.FINAL_SCHEDULE[name]
    assert found["nll_test"].value < published_a.SCHEDULES[name][schedule][2]
    assert found["emd_test"].value < published_a.FINAL_EMD[name][0]
    assert found["emd_test"].value < 1.3 * lab.fresh(name).scores["emd_test"].value
    assert found["emd_test"].value < 1.3 * {SIN: 0.158, HELIX: 0.114}[name]
