"""System E at tiny size: its stages and early stopping, and what bad files of digits get."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner

import diffusion_fast as df
from diffusion_fast.cli import main
from diffusion_fast.datasets import images
from diffusion_fast.image_training import EpochTrainer
from diffusion_fast.systems import digits, epochs
from diffusion_fast.systems.published_e import WEIGHTS_FILE, load_published
from diffusion_fast.systems.run import Run


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    small = tuple(replace(settings, n_hidden=(3,), n_steps=51) for settings in digits.QUICK_SETS)
    for name, value in {
        "QUICK_SETS": small,
        "QUICK_EPOCHS": (2, 1),
        "QUICK_ROWS": (64, 40),
        "QUICK_DDPM_STEPS": 5,
        "SAMPLES": (16, 16),
    }.items():
        monkeypatch.setattr(digits, name, value)
    torch.set_num_threads(1)


def test_the_system_runs_and_goes_on(tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run("E", tmp_path / "E")
    digits.run(run)
    run.finish(digits.TITLE)
    found = json.loads((tmp_path / "E" / "results.json").read_text())
    tables = {table["title"]: table for table in found["tables"]}
    losses = {row[0]: row[1:] for row in tables["Losses"]["rows"]}
    assert losses["set 1, published"][:3] == [88, 0.0816, 0.0163]
    assert losses["set 1"][0] == 2 and losses["set 2"][0] == 1
    fidelity = tables["Fidelity"]
    models = [row[0] for row in fidelity["rows"]]
    assert models == ["real digits"] + ["set 1"] * 4 + ["set 2"] * 4 + ["cold"] * 3
    assert [row[2] for row in fidelity["rows"]] == [None, 5, 50, 20, 10, 5, 50, 20, 10, 1, 20, 20]
    for picture in found["pictures"]:
        assert 0 < (tmp_path / "E" / picture["file"]).stat().st_size < 200_000
    assert any("8 x 8 digits" in cut for cut in found["cuts"])

    def again(*_: object) -> None:
        raise AssertionError("this epoch was done")

    monkeypatch.setattr(EpochTrainer, "epoch", again)
    monkeypatch.setattr(Run, "picture", lambda *_: None)  # which take most of the time
    resumed = Run("E", tmp_path / "E", resume=True, as_published=True)
    digits.run(resumed)
    resumed.finish(digits.TITLE)
    rows = json.loads((tmp_path / "E" / "results.json").read_text())["tables"][-1]["rows"]
    assert sum(row[1] == digits.AS_PUBLISHED[0] for row in rows) == 2  # beside the right ones
    assert [row for row in rows if row[1] != digits.AS_PUBLISHED[0]] == fidelity["rows"]


def test_training_stops_on_its_own_losses_before_it_would_on_their_mean() -> None:
    """The report's curve is a mean since the start: it falls when nothing more is learned."""
    losses = [0.05 + 0.5 * 0.5**epoch for epoch in range(200)]
    steps = [torch.full((4,), loss) for loss in losses]

    def stops(curve: list[float]) -> int:
        return next(epoch for epoch in range(1, 201) if epochs.has_stopped(curve[:epoch]))

    np.testing.assert_allclose(epochs.epoch_means(steps), losses, rtol=1e-6)
    means = np.cumsum(losses) / np.arange(1, 201)
    np.testing.assert_allclose(epochs.running_means(steps), means, rtol=1e-5)
    first, last = stops(epochs.epoch_means(steps)), stops(epochs.running_means(steps))
    # the loss is within 5e-4 of its end after 10 epochs; 1 / (n - 15) - 1 / n is below 5e-4 from n = 181
    assert first == 10 + epochs.PATIENCE + 1
    assert last == 181


def test_early_stopping_waits_for_its_patience() -> None:
    assert not epochs.has_stopped([1.0] * 16) and epochs.has_stopped([1.0] * 17)
    falling = [1 - 1e-3 * epoch for epoch in range(40)]
    assert not epochs.has_stopped(falling)


# ---- bad files


def idx(*shape: int) -> bytes:
    sizes = b"".join(size.to_bytes(4, "big") for size in shape)
    return bytes([0, 0, 8, len(shape)]) + sizes + bytes(int(np.prod(shape)))


FILES = {
    "train-images-idx3-ubyte": idx(12, 28, 28),
    "train-labels-idx1-ubyte": idx(12),
    "t10k-images-idx3-ubyte": idx(12, 28, 28),
    "t10k-labels-idx1-ubyte": idx(12),
}


def write(folder: Path, changed: dict[str, bytes | None]) -> Path:
    folder.mkdir()
    for name, content in (FILES | changed).items():
        if content is not None:
            (folder / name).write_bytes(content)
    return folder


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"train-labels-idx1-ubyte": None}, "without train-labels-idx1-ubyte"),
        ({"t10k-images-idx3-ubyte": idx(12, 28, 28)[:-5]}, "t10k-images-idx3-ubyte"),
        ({"train-images-idx3-ubyte": b"\x89PNG and so on"}, "train-images-idx3-ubyte.*an IDX file"),
        ({name: idx(12, 14, 14) for name in FILES if "images" in name}, r"\(14, 14\)"),
    ],
)
def test_bad_files_of_digits_are_named_with_where_to_get_them(
    tmp_path: Path, changed: dict[str, bytes | None], named: str
) -> None:
    run = Run("E", tmp_path / "out", data=write(tmp_path / "mnist", changed))
    with pytest.raises(ValueError, match=f"--data: got .*{named}.*https://"):
        digits.load_data(run)


def test_bad_files_of_digits_are_bad_input(tmp_path: Path) -> None:
    folder = write(tmp_path / "mnist", {"t10k-labels-idx1-ubyte": idx(11)})
    arguments = ["reproduce", "E", "--out", str(tmp_path / "out"), "--data", str(folder)]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == 2
    assert "error: --data: got 11 labels" in result.stderr and "t10k-labels-idx1-ubyte" in result.stderr


# ---- digits of other sizes and from the network


def test_digits_are_enlarged() -> None:
    small, large = df.datasets.digits(50, 20), df.datasets.digits(50, 20, side=28)
    assert large.image_shape == (28, 28) and large.train.shape == (50, 784)
    assert np.array_equal(small.train_labels, large.train_labels)
    blocks = torch.from_numpy(large.train).view(-1, 1, 28, 28)
    back = torch.nn.functional.interpolate(blocks, (8, 8), mode="area").flatten(1).numpy()
    assert np.corrcoef(back.ravel(), small.train.ravel())[0, 1] > 0.97  # 0.96 if it were a pixel aside
    assert 0 <= large.train.min() <= large.train.max() <= 1
    assert np.array_equal(df.datasets.digits(50, 20, side=8).train, small.train)
    with pytest.raises(ValueError, match="side: got 7"):
        df.datasets.digits(side=7)


def test_mnist_comes_from_openml_where_there_is_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    import sklearn.datasets

    class Found:
        data = np.full((70, 784), 51, np.int64)
        target = np.array(["7"] * 60 + ["3"] * 10)

    assert images.MNIST_ROWS == (60_000, 10_000)
    monkeypatch.setattr(images, "MNIST_ROWS", (60, 10))
    monkeypatch.setattr(sklearn.datasets, "fetch_openml", lambda *_, **__: Found)
    data = df.datasets.mnist()
    assert data.train.shape == (60, 784) and data.train.dtype == np.float32
    assert data.test_labels is not None and data.test_labels.tolist() == [3] * 10
    np.testing.assert_allclose(data.train, 0.2, rtol=1e-6)

    def offline(*_: object, **__: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr(sklearn.datasets, "fetch_openml", offline)
    with pytest.raises(ValueError, match=r"folder: got None.*no network.*accepted: .*https://"):
        df.datasets.mnist()


@pytest.mark.slow
def test_the_published_weights_sample_digits(test_data: Path) -> None:
    """In 20 evaluations, as a classifier of real digits sees it."""
    model, schedule = load_published(test_data / "system_e" / WEIGHTS_FILE)
    data = df.datasets.mnist(test_data / "mnist")
    train, test = (
        torch.from_numpy(part).view(-1, 1, 28, 28)
        for part in (data.standardised_train, data.standardised_test)
    )
    torch.manual_seed(0)
    judge = df.metrics.ImageClassifier((1, 28, 28), 10)
    df.metrics.train_classifier(judge, train[:12_000], torch.from_numpy(data.train_labels[:12_000]), epochs=4)
    accuracy = df.metrics.classifier_accuracy(judge, test, torch.from_numpy(data.test_labels))
    assert accuracy.value > 0.95
    sampler = df.Sampler(model, schedule, solver="dpmpp_2m", steps=20, clip=0.5)
    x = torch.cat(list(sampler.stream(96, 32, seed=0)))
    found = df.metrics.image_fidelity(judge, x, test)
    noise = df.metrics.image_fidelity(judge, torch.randn(96, 1, 28, 28).clamp(-0.5, 0.5), test)
    assert found.confidence.value > 0.85
    assert found.coverage.value > 0.7
    assert found.frechet.value < 0.3 * noise.frechet.value
