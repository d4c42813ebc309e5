"""The commands of diffusion-fast: what they write, print and remember."""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import shlex
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import numpy as np
import pytest
import torch
from cli_bench import SMALL, done, json_of, listing, make_bench, rewrite, run

import diffusion_fast as df
from diffusion_fast import demo, precision
from diffusion_fast.cli import main, options, quality, sample
from diffusion_fast.models.embeddings import TIME_EMBEDDINGS
from diffusion_fast.models.mlp import ACTIVATIONS
from diffusion_fast.sampler import Sampler
from diffusion_fast.schedules import SCHEDULE_NAMES
from diffusion_fast.solvers import SOLVERS
from diffusion_fast.solvers.levels import PREDICTION_TYPES
from diffusion_fast.solvers.spacing import SIGMA_SPACINGS, SPACINGS
from diffusion_fast.threads import MAX_THREADS

FORMATS = ["npy", "npz", "csv", "parquet"]


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_bench(tmp_path_factory.mktemp("cli"))


# ---- what is written down twice


def test_names_are_those_of_the_library() -> None:
    assert tuple(ACTIVATIONS) == options.ACTIVATIONS
    assert tuple(SOLVERS) == options.SOLVERS
    assert options.PRECISIONS == precision.PRECISIONS
    assert (*SPACINGS, *SIGMA_SPACINGS) == options.SPACINGS
    assert tuple(quality.QUALITIES) == options.QUALITIES
    assert options.DATA_SETS == df.datasets.NAMES
    assert options.TIME_EMBEDDINGS == TIME_EMBEDDINGS
    assert options.PREDICTION_TYPES == PREDICTION_TYPES
    assert sorted(options.SCHEDULES) == sorted(SCHEDULE_NAMES)
    assert options.MAX_THREADS == MAX_THREADS
    for name in SCHEDULE_NAMES:
        has_range = "beta_start" in inspect.signature(getattr(df.NoiseSchedule, name)).parameters
        assert has_range == (name not in options.SCHEDULES_WITHOUT_RANGE)
    kind, text = next((o.type, o.help) for o in sample.sample.params if o.name == "tolerance")
    assert kind.convert(precision.LEAST_TOLERANCE, None, None) == precision.LEAST_TOLERANCE
    for beyond in (np.nextafter(precision.LEAST_TOLERANCE, 0), 1.0001):
        with pytest.raises(click.BadParameter, match=r"in \[1e-6, 1\]"):
            kind.convert(float(beyond), None, None)
    assert text.endswith(f"[default: {precision.TOLERANCE}]")
    for variance in options.VARIANCES:
        df.solvers.ddpm(df.NoiseSchedule.cosine(5), variance=variance)


def test_the_defaults_of_train_are_the_recipe_of_the_demo() -> None:
    defaults = {p.name: p.default for p in main.commands["train"].params}
    assert defaults["hidden"] == ",".join(map(str, demo.HIDDEN))
    recipe = {
        "activation": demo.ACTIVATION,
        "time_embedding": demo.TIME_EMBEDDING,
        "n_steps": demo.N_STEPS,
        "batch_size": demo.BATCH_SIZE,
        "lr": demo.LEARNING_RATE,
        "ema": demo.EMA,
        "schedule": "cosine",
        "lr_decay": "cosine",
    }
    assert {name: defaults[name] for name in recipe} == recipe


# ---- train


def test_the_checkpoint_remembers_the_run(bench: Path) -> None:
    back = df.load(bench / "kinds.safetensors")
    assert back.model.n_classes == 2
    assert back.metadata["columns"] == ["u", "v"]
    assert back.metadata["classes"] == ["left", "right"]
    data = df.datasets.load_file(bench / "kinds.csv", label_column="kind")
    assert back.metadata["data"] == {
        "source": "kinds.csv",
        "label_column": "kind",
        "seed": 0,
        "rows": 400,
        "sha256": hashlib.sha256(data.train.tobytes() + data.test.tobytes()).hexdigest(),
    }
    assert df.load(bench / "helix.safetensors").metadata["data"].keys() == {"source", "label_column", "seed"}
    assert back.metadata["settings"]["epochs"] == 150
    assert back.metadata["settings"]["label_dropout"] == 0.1
    losses = back.metadata["history"]["train_loss"]
    assert len(losses) == 150
    assert np.mean(losses[-10:]) < 0.7 * losses[0]
    # Centers of +-5 in a ratio of 1 to 3: mean 2.5, deviation 10 sqrt(3) / 4.
    assert back.standardiser.mean.tolist() == pytest.approx([2.5, 2.5], abs=0.5)
    assert back.standardiser.std.tolist() == pytest.approx([4.33, 4.33], abs=0.3)


def test_a_run_is_the_library_s(tmp_path: Path) -> None:
    arguments = ["--schedule", "linear", "--beta-start", "0.001", "--beta-end", "0.3", "--seed", 5]
    more = ["--validation", "0.2", "--prediction-type", "v_prediction", "--ema", "0.9", "--lr", "0.01"]
    done(tmp_path, "train", "--out", "a.safetensors", *SMALL, *arguments, *more)
    torch.set_num_threads(1)
    data = df.datasets.load("helix_3d", seed=5)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = df.models.MLPDenoiser(3, (8,), "relu", "sinusoidal", 10)
    schedule = df.NoiseSchedule.linear(10, 0.001, 0.3)
    history = df.train(
        model,
        schedule,
        data,
        epochs=1,
        batch_size=1024,
        lr=0.01,
        lr_decay="cosine",
        validation=0.2,
        ema=0.9,
        seed=5,
        prediction_type="v_prediction",
        progress=False,
    )
    back = df.load(tmp_path / "a.safetensors")
    assert back.schedule == schedule
    assert back.metadata["history"]["validation_loss"] == history.validation_loss
    for mine, theirs in zip(model.parameters(), back.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    # and sampling knows what the network predicts
    done(tmp_path, "sample", "a.safetensors", "--out", "a.npy", "--num-samples", 20)
    sampler = Sampler(model, schedule, prediction_type="v_prediction", standardiser=data.standardiser)
    assert np.array_equal(np.load(tmp_path / "a.npy"), sampler.sample(20).numpy())
    assert np.array_equal(np.load(tmp_path / "a.npy"), back.sampler().sample(20).numpy())


def test_a_file_of_settings_and_options_that_win(tmp_path: Path) -> None:
    settings = {
        "hidden": [8, 4],
        "n-steps": 10,
        "epochs": 2,
        "lr": 1,
        "data": "moons",
        "out": "a.safetensors",
    }
    text = "\n".join(f"{key} = {json.dumps(value)}" for key, value in settings.items())
    (tmp_path / "run.toml").write_text(text)
    found = json_of(tmp_path, "train", "--config", "run.toml", "--lr", "0.01", "--validation", "0.1")
    assert found["settings"]["hidden"] == [8, 4]
    assert found["settings"]["lr"] == 0.01
    assert found["epochs"] == 2
    assert found["classes"] == ["0", "1"]
    assert df.load(tmp_path / "a.safetensors").model.config["hidden"] == [8, 4]


def test_early_stopping_is_reported(tmp_path: Path) -> None:
    arguments = [*SMALL[:4], "--epochs", 50, "--validation", "0.3", "--patience", 1, "--lr", "1.0"]
    found = json_of(tmp_path, "train", "--data", "spiral", "--out", "a.safetensors", *arguments)
    assert found["stopped_early"]
    assert found["epochs"] < 50


# ---- sample


@pytest.mark.parametrize("suffix", FORMATS)
def test_samples_in_every_format_are_the_library_s(bench: Path, tmp_path: Path, suffix: str) -> None:
    out = tmp_path / f"s.{suffix}"
    found = json_of(bench, "sample", "helix.safetensors", "--num-samples", 300, "--seed", 7, "--out", out)
    checkpoint = df.load(bench / "helix.safetensors")
    expected = checkpoint.sampler().sample(300, seed=7).numpy()
    table = df.datasets.read(out)
    assert np.array_equal(table.rows.astype(np.float32), expected)  # text has digits enough
    if suffix != "npy":
        assert table.columns == ("x", "y", "z")
    assert found["num_samples"] == 300
    assert found["samples_per_second"] == pytest.approx(300 / found["seconds"])
    assert {p.name for p in tmp_path.iterdir()} == {out.name, f"{out.name}.manifest.json"}


def test_a_long_file_comes_in_chunks(bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("diffusion_fast.cli.stored.CHUNK", 64)
    arguments = ["--num-samples", 1000, "--labels", "right,left,left"]
    labels = np.resize([1, 0, 0], 1000)
    expected = df.load(bench / "kinds.safetensors").sampler().sample(1000, labels=labels).numpy()
    for suffix in FORMATS:
        out = tmp_path / f"s.{suffix}"
        done(bench, "sample", "kinds.safetensors", *arguments, "--out", out)
        table = df.datasets.read(out, label_column=None if suffix == "npy" else "kind")
        assert np.array_equal(table.rows.astype(np.float32), expected)
        if suffix != "npy":
            assert table.classes == ("left", "right")
            assert np.array_equal(table.labels, labels)


def test_options_reach_the_sampler(bench: Path, tmp_path: Path) -> None:
    checkpoint = df.load(bench / "kinds.safetensors")
    cases: list[tuple[list[object], dict, dict]] = [
        (["--solver", "ddim", "--steps", 4], {"solver": "ddim", "steps": 4}, {"labels": np.arange(30) % 2}),
        (["--variance", "beta", "--labels", "none"], {"variance": "beta"}, {}),
        (["--guidance-scale", 2, "--labels", "left"], {"guidance_scale": 2.0}, {"labels": 0}),
        (["--threads", 1, "--progress", "--labels", "right"], {}, {"labels": 1}),
    ]
    for arguments, make, draw in cases:
        command = ["sample", "kinds.safetensors", "--num-samples", 30, "--out", tmp_path / "s.npy", "--force"]
        done(bench, *command, *arguments)
        expected = checkpoint.sampler(**make).sample(30, **draw).numpy()
        assert np.array_equal(np.load(tmp_path / "s.npy"), expected), arguments


@pytest.mark.parametrize("name", quality.QUALITIES)
def test_a_quality_is_its_options(tmp_path: Path, name: str) -> None:
    done(tmp_path, "train", "--out", "a.safetensors", "--hidden", "8", "--n-steps", 40, "--epochs", 1)
    command = ["sample", "a.safetensors", "--num-samples", 50]
    text = done(tmp_path, *command, "--quality", name, "--out", "a.npy").output
    chosen = quality.QUALITIES[name]
    assert f"quality {name}: {chosen['solver']}, {chosen['steps'] or 40} steps" in text
    spelled = [word for key, value in chosen.items() if value is not None for word in (f"--{key}", value)]
    done(tmp_path, *command, *spelled, "--out", "b.npy")
    assert (tmp_path / "a.npy").read_bytes() == (tmp_path / "b.npy").read_bytes()
    good = json_of(tmp_path, "verify", "a.npy", "--redraw", 0, "--checkpoint", "a.safetensors")
    assert good["good"]


def test_a_manifest_of_before_an_option_is_redrawn(bench: Path, tmp_path: Path) -> None:
    done(bench, "sample", "helix.safetensors", "--num-samples", 50, "--out", tmp_path / "a.npy")
    path = tmp_path / "a.npy.manifest.json"
    kept = json.loads(path.read_text())
    for added in ("spacing", "tolerance", "expected_samples"):
        del kept["made_by"][added]
    path.write_text(json.dumps(kept))
    again = ["verify", tmp_path / "a.npy", "--redraw", 0, "--checkpoint", "helix.safetensors"]
    assert json_of(bench, *again)["good"]
    del kept["made_by"]["solver"]
    path.write_text(json.dumps(kept))
    assert "does not say how it was made" in run(bench, *again).stderr


def test_auto_knows_how_many_samples_there_are_to_come(bench: Path, tmp_path: Path) -> None:
    """Few do not pay for a table; a job with a range of its own does not choose by its share."""
    train = ["train", "--data", "moons", "--hidden", "32,32", "--n-steps", 20, "--epochs", 1]
    done(bench, *train, "--out", tmp_path / "a.safetensors")
    net = tmp_path / "a.safetensors"
    command = ["sample", net, "--precision", "auto", "--tolerance", 0.5, "--num-samples", 20]
    few = json_of(bench, *command, "--out", tmp_path / "a.npy")
    part = json_of(bench, *command, "--index-range", "0:20", "--out", tmp_path / "b.npy")
    assert few["precision"] == "float32" and part["precision"].startswith("table, tolerance 0.5")
    for name in ("a.npy", "b.npy"):
        assert json_of(bench, "verify", tmp_path / name, "--redraw", 0, "--checkpoint", net)["good"]


def test_a_quality_on_a_gpu_is_in_float32() -> None:
    given = {name: None for name in options.CHAIN_OPTIONS} | {"device": "cuda"}
    checkpoint: Any = SimpleNamespace(schedule=df.NoiseSchedule.linear(100))
    how = quality.chosen("fast", checkpoint, given)
    assert (how["precision"], how["solver"]) == ("float32", "dpmpp_2m_sde")


def test_a_quality_of_a_short_chain_is_the_whole(bench: Path, tmp_path: Path) -> None:
    out = tmp_path / "a.npy"
    text = done(bench, "sample", "helix.safetensors", "--num-samples", 5, "--quality", "fast", "--out", out)
    assert "quality fast: dpmpp_2m_sde, 10 steps, precision float32" in text.output


def test_each_process_of_a_machine_has_a_gpu_of_its_own(
    bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """None has a hundred of them: the refusal tells which was asked for."""
    command = ["sample", "kinds.safetensors", "--out", tmp_path / "s.npy", "--device", "cuda"]
    monkeypatch.setenv("LOCAL_RANK", "99")
    result = run(bench, *command)
    assert result.exit_code == 2
    assert result.stderr.startswith("error: --device: got 'cuda:99' (str); accepted: ")
    assert list(tmp_path.iterdir()) == []


def test_classes_are_where_their_data_is(bench: Path, tmp_path: Path) -> None:
    """Clusters at -5 and +5 of deviation 0.1; a hardly trained model still keeps the sides apart."""
    done(bench, "sample", "kinds.safetensors", "--num-samples", 400, "--out", tmp_path / "s.csv")
    table = df.datasets.read(tmp_path / "s.csv", label_column="kind")
    means = [np.median(table.rows[table.labels == k]) for k in (0, 1)]
    assert means[0] < -2 and means[1] > 2


def test_a_class_with_a_comma_can_be_drawn(bench: Path, tmp_path: Path) -> None:
    rewrite(bench, "kinds", "comma", classes=["left, far", "right"])
    arguments = ["--num-samples", 6, "--labels", "left, far", "--out", tmp_path / "s.csv"]
    done(bench, "sample", "comma.safetensors", *arguments)
    assert df.datasets.read(tmp_path / "s.csv", label_column="kind").classes == ("left, far",)


def test_npy_holds_no_column_of_classes(bench: Path, tmp_path: Path) -> None:
    """So that a name which other formats cannot hold is none of its concern, nor without classes theirs."""
    known = df.load(bench / "kinds.safetensors").metadata["data"]
    rewrite(bench, "kinds", "named-u", data=known | {"label_column": "u"})
    for out, more in {"s.npy": [], "s.csv": ["--labels", "none"]}.items():
        done(bench, "sample", "named-u.safetensors", "--num-samples", 6, "--out", tmp_path / out, *more)
        assert len(df.datasets.read(tmp_path / out).rows) == 6


def test_force_replaces_and_nothing_else_does(bench: Path, tmp_path: Path) -> None:
    arguments = ["sample", "helix.safetensors", "--num-samples", 10, "--out", tmp_path / "s.npy"]
    done(bench, *arguments)
    before = listing(tmp_path)
    refused = run(bench, *arguments, "--seed", 1)
    assert refused.exit_code == 2 and "--force" in refused.stderr
    assert listing(tmp_path) == before
    done(bench, *arguments, "--seed", 1, "--force")
    assert listing(tmp_path).keys() == before.keys() and listing(tmp_path) != before


def test_a_link_is_followed(bench: Path, tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link.npy").symlink_to(tmp_path / "real" / "s.npy")
    done(bench, "sample", "helix.safetensors", "--num-samples", 10, "--out", tmp_path / "link.npy")
    assert (tmp_path / "link.npy").is_symlink()
    assert np.load(tmp_path / "real" / "s.npy").shape == (10, 3)


# ---- long runs


def test_ranges_of_jobs_join_to_the_run(bench: Path, tmp_path: Path) -> None:
    """Classes go round by the sample's own index, so jobs need not know of each other."""
    arguments = ["sample", "kinds.safetensors", "--labels", "right,left,left", "--seed", 3]
    done(bench, *arguments, "--num-samples", 100, "--out", tmp_path / "all.npy")
    parts = []
    for i, (a, b) in enumerate([(0, 41), (41, 100)]):
        found = json_of(bench, *arguments, "--index-range", f"{a}:{b}", "--out", tmp_path / f"{i}.npy")
        assert (found["num_samples"], found["index_range"]) == (b - a, [a, b])
        parts.append(np.load(tmp_path / f"{i}.npy"))
    assert np.array_equal(np.concatenate(parts), np.load(tmp_path / "all.npy"))


def test_verify_draws_again_what_the_manifest_says(bench: Path, tmp_path: Path) -> None:
    out = tmp_path / "s.csv"
    how = ["--solver", "ddim", "--steps", 4, "--guidance-scale", 2, "--labels", "left"]
    done(bench, "sample", "kinds.safetensors", "--num-samples", 50, *how, "--out", out)
    assert "good" in done(bench, "verify", out).stdout
    found = json_of(bench, "verify", out, "--redraw", "0", "--checkpoint", "kinds.safetensors")
    assert found["good"] and found["redrawn"] == [0] and found["done"] == found["chunks"] == 1
    other = run(bench, "verify", out, "--redraw", "all", "--checkpoint", "helix.safetensors")
    assert other.exit_code == 2
    out.write_text(out.read_text().replace("0", "1", 1))
    changed = run(bench, "verify", out)
    assert changed.exit_code == 1
    assert "differs from its checksum" in changed.stdout and changed.stderr == ""


def test_a_folder_and_a_second_resume(bench: Path, tmp_path: Path) -> None:
    arguments = ["sample", "helix.safetensors", "--num-samples", 20, "--out", f"{tmp_path}/rows/", "--resume"]
    assert json_of(bench, *arguments)["drawn"] == 20
    assert json_of(bench, *arguments)["drawn"] == 0
    assert [path.name for path in (tmp_path / "rows").iterdir()] == ["000000.npy"]
    assert "(20 were there)" in done(bench, *arguments).stdout


# ---- help


SHORTER = {
    "demo": ["--epochs", "1", "--num-samples", "500"],
    "train": ["--epochs", "1", "--hidden", "8", "--n-steps", "10"],
    "sample": ["--num-samples", "200"],
    "evaluate": ["--num-samples", "200"],
    "plot": ["--num-samples", "50"],
}


def examples(command: click.Command) -> list[list[str]]:
    text = command.get_help(click.Context(command, info_name="diffusion-fast"))
    return [shlex.split(line) for line in re.findall(r"^ +diffusion-fast (.*)$", text, re.MULTILINE)]


def test_every_example_of_the_help_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In the order of the chain, each made short by options after its own."""
    monkeypatch.setattr(demo, "TORCH_SAMPLES", 64)
    monkeypatch.setattr(demo, "TORCH_CHUNKS", (32,))
    order = ["train", "sample", "verify", "evaluate", "plot", "explain", "info", "demo"]
    assert {*order, "bench", "reproduce"} == set(main.commands)  # the last two take minutes
    for name in order:
        found = examples(main.commands[name])
        assert found
        for arguments in found:
            assert arguments[0] == name
            draws = not {"samples.npy", "--loss"} & set(arguments) or name == "sample"
            done(tmp_path, *arguments, *(SHORTER.get(name, []) if draws else []))
    assert examples(main.commands["bench"]) == [["bench", "--net", "2-128-128-2", "--steps", "200"]]
    assert examples(main.commands["reproduce"]) == [["reproduce", "A", "--quick", "--out", "reproduction"]]
    group = [line for line in examples(main) if line[0] in order]
    assert [line[0] for line in group] == ["train", "sample", "evaluate", "plot", "explain"]
    own = [line for name in order for line in examples(main.commands[name])]
    for line in group[:-1]:
        assert line in own


def test_every_option_has_a_help_text() -> None:
    for command in main.commands.values():
        for param in command.params:
            assert isinstance(param, click.Argument) or param.help, (command.name, param.name)


def test_without_a_command_there_is_help(bench: Path) -> None:
    assert "Commands:" in done(bench).stdout
    assert done(bench, "--version").stdout.strip().endswith(df.__version__)
