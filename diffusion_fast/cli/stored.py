"""What a checkpoint remembers of its training, and what follows from it: data, sampler, labels, samples."""

from __future__ import annotations

import hashlib
import os
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import numpy as np

import diffusion_fast as df
from diffusion_fast.cli.errors import naming
from diffusion_fast.cli.options import DATA_SETS

FILE_SUFFIXES = (".npy", ".npz", ".csv", ".parquet")
CHUNK = 1 << 16  # samples: often enough for the bar, and 200 MB of images of 784 pixels


def is_checkpoint(path: Path) -> bool:
    return path.suffix.lower() not in FILE_SUFFIXES


def metadata(data: df.datasets.Dataset, settings: dict[str, Any]) -> dict[str, Any]:
    """What the checkpoint of a run remembers, but for its history."""
    known = {
        "source": settings["data"],
        "label_column": settings["label_column"],
        "seed": settings["seed"],
    }
    if known["source"] not in df.datasets.NAMES:
        known["source"] = Path(known["source"]).resolve().name  # found again beside the checkpoint
        known |= fingerprint(data)
    return {
        "version": df.__version__,
        "data": known,
        "columns": list(data.columns),
        "classes": list(data.classes),
        "image_shape": None if data.image_shape is None else list(data.image_shape),
        "prediction_type": settings["prediction_type"],
        "settings": settings,
    }


def fingerprint(data: df.datasets.Dataset) -> dict[str, Any]:
    """What tells that a file has the rows, in the split, of the training."""
    digest = hashlib.sha256()
    for rows in (data.train, data.test):
        for at in range(0, len(rows), CHUNK):  # of a mapped file, without a copy of it
            digest.update(np.ascontiguousarray(rows[at : at + CHUNK]).data)
    return {"rows": len(data.train) + len(data.test), "sha256": digest.hexdigest()}


def load_checkpoint(path: Path, name: str = "CHECKPOINT") -> df.Checkpoint:
    with naming("path", name):
        return df.load(path)


def load_data(source: str, label_column: str | None, seed: int) -> df.datasets.Dataset:
    """The data set of that name, the file, or the folder of MNIST's files; rows held out as the seed says."""
    if source in DATA_SETS:
        if label_column is not None:
            raise ValueError(f"--label-column: got {label_column!r}; accepted: nothing with the set {source}")
        return df.datasets.load(source, seed=seed)
    if Path(source).is_dir():
        with naming("folder", "--data"):
            return df.datasets.mnist(source)
    with naming("path", "--data"), naming("label_column", "--label-column"):
        return df.datasets.load_file(source, label_column=label_column, seed=seed)


def training_data(
    checkpoint: df.Checkpoint, path: Path, source: str | None, label_column: str | None
) -> df.datasets.Dataset:
    """The data given, else that which the model at the path was trained on, split as it was then."""
    known = _known_data(checkpoint)
    name = source or known.get("source")
    if name is None:
        raise ValueError(
            "--data: not given; accepted: a data set's name or a file to compare with, for the checkpoint "
            "does not say what it was trained on"
        )
    if source is None:
        label_column = label_column or known.get("label_column")
        if name not in df.datasets.NAMES:
            name = str(_beside(path, known))
    data = load_data(name, label_column, known.get("seed", 0))
    as_then = source is None and label_column == known.get("label_column")
    if as_then and "sha256" in known and not fingerprint(data).items() <= known.items():
        raise click.UsageError(
            f"CHECKPOINT: its data {name} has changed since training, and so have the rows held out; "
            "accepted: the file as it was, or --data to compare with it anyway"
        )
    dim = checkpoint.model.dim
    if data.dim != dim:
        raise ValueError(
            f"--data: got {data.name!r} of {data.dim} columns; accepted: {dim} columns, as the model has"
        )
    return data


def _beside(checkpoint: Path, known: dict[str, Any]) -> Path:
    """The file of the training. Whoever wrote a checkpoint must not choose what else is opened: it is a plain
    name in the checkpoint's own folder, of a file whose checksum the training kept."""
    name = known["source"]
    wanted = "a file beside the checkpoint; accepted: --data"
    if not isinstance(known.get("sha256"), str):
        raise click.UsageError(
            f"CHECKPOINT: got its data {name!r} without the checksum of the training; accepted: --data"
        )
    if "/" in name or "\\" in name or "\0" in name or name in ("", ".", ".."):
        raise click.UsageError(f"CHECKPOINT: got its data {name!r}, which is not the bare name of {wanted}")
    path = checkpoint.resolve().with_name(name)
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise click.UsageError(f"CHECKPOINT: got its data {name!r}, a link or no regular file, not {wanted}")
    if not path.exists():
        raise click.UsageError(f"CHECKPOINT: its data {name} is not beside it; accepted: --data")
    return path


def _known_data(checkpoint: df.Checkpoint) -> dict[str, Any]:
    """The entry "data" as `metadata` writes it, or a name alone, or {} for anything else."""
    known = checkpoint.metadata.get("data")
    if isinstance(known, str):
        return {"source": known}
    if not isinstance(known, dict):
        return {}
    right = (
        isinstance(known.get("source"), str)
        and isinstance(known.get("label_column"), str | None)
        and type(known.get("seed", 0)) is int
        and 0 <= known.get("seed", 0) < 1 << 64
    )
    return known if right else {}


def settings(checkpoint: df.Checkpoint) -> dict[str, Any]:
    known = checkpoint.metadata.get("settings")
    return known if isinstance(known, dict) else {}


def history(checkpoint: df.Checkpoint) -> df.TrainingHistory | None:
    known = checkpoint.metadata.get("history")
    if not isinstance(known, dict) or not known.keys() <= {f.name for f in fields(df.TrainingHistory)}:
        return None
    losses = [known.get(name, []) for name in ("train_loss", "validation_loss")]
    right = all(isinstance(part, list) and all(type(x) in (int, float) for x in part) for part in losses)
    right = right and bool(losses[0]) and type(known.get("best_epoch", -1)) is int
    return df.TrainingHistory(**known) if right else None


def columns(checkpoint: df.Checkpoint) -> list[str]:
    known = checkpoint.metadata.get("columns")
    dim = checkpoint.model.dim
    return _names(known, dim) or [f"column {i}" for i in range(dim)]


def classes(checkpoint: df.Checkpoint) -> list[str]:
    """The names of the model's classes, [] for a model without."""
    count = checkpoint.model.n_classes or 0
    known = checkpoint.metadata.get("classes")
    return _names(known, count) or [str(i) for i in range(count)]


def _names(known: Any, count: int) -> list[str]:
    """The names that `metadata` wrote, or []: a program may have saved something else under that key."""
    right = isinstance(known, list) and len(known) == count and all(isinstance(n, str) for n in known)
    return known if right else []


def image_shape(checkpoint: df.Checkpoint) -> tuple[int, int] | None:
    """(height, width) where a row is an image."""
    known = checkpoint.metadata.get("image_shape")
    if not isinstance(known, list) or len(known) != 2 or not all(type(n) is int and n > 0 for n in known):
        return None
    height, width = known
    return (height, width) if height * width == checkpoint.model.dim else None


def label_column(checkpoint: df.Checkpoint) -> str:
    """The name of the column that holds the classes of its data, and so those of its samples."""
    return _known_data(checkpoint).get("label_column") or "label"


def make_sampler(
    checkpoint: df.Checkpoint,
    *,
    solver: str,
    steps: int | None,
    spacing: str | None,
    variance: str | None,
    guidance_scale: float | None,
    precision: str,
    tolerance: float | None,
    device: str,
    expected_samples: int | None = None,
) -> df.Sampler:
    given = {"variance": variance, "spacing": spacing}
    options = {name: value for name, value in given.items() if value is not None}
    for name, value in options.items():
        if name not in df.solvers.options_of(solver):
            raise ValueError(f"--{name}: got {value!r}; accepted: nothing with --solver {solver}")
    if device == "cuda" and "LOCAL_RANK" in os.environ:
        device = f"cuda:{os.environ['LOCAL_RANK']}"
    with naming("metadata", "CHECKPOINT"):
        return checkpoint.sampler(
            solver=solver,
            steps=steps,
            guidance_scale=guidance_scale,
            precision=precision,
            tolerance=tolerance,
            expected_samples=expected_samples if precision == "auto" else None,
            device=device,
            **options,
        )


def label_cycle(checkpoint: df.Checkpoint, labels: str | None) -> np.ndarray | None:
    """The class indices that the samples take in turn; None without classes or without a label."""
    names = classes(checkpoint)
    if not names:
        if labels is not None:
            raise ValueError(f"--labels: got {labels!r}; accepted: nothing, for the model has no classes")
        return None
    if labels is None:
        return np.arange(len(names))
    if labels == "none" and "none" not in names:
        return None
    wanted = [labels] if labels in names else [part.strip() for part in labels.split(",")]
    for name in wanted:
        if name not in names:
            accepted = f"{', '.join(names)} (several with commas), or none"
            raise ValueError(f"--labels: got {name!r}; accepted: {accepted}")
    return np.array([names.index(name) for name in wanted])


def draw(
    sampler: df.Sampler,
    n: int,
    *,
    seed: int,
    labels: np.ndarray | None,
    threads: int | None,
    progress: bool | None,
) -> np.ndarray:
    """n samples in memory, with a bar."""
    from tqdm import tqdm

    parts = []
    with tqdm(total=n, unit="sample", unit_scale=True, disable=not shown(progress)) as bar:
        for chunk in sampler.stream(n, CHUNK, seed=seed, threads=threads, labels=labels):
            parts.append(chunk.numpy())
            bar.update(len(chunk))
    return np.concatenate(parts)


def shown(progress: bool | None) -> bool:
    """Whether a bar is: where standard error is a terminal, unless the command line says."""
    return sys.stderr.isatty() if progress is None else progress


def data_and_rows(
    source: Path,
    *,
    data: str | None,
    label_column: str | None,
    data_seed: int,
    num_samples: int,
    seed: int,
    labels: str | None,
    threads: int | None,
    progress: bool | None,
    at_least: int = 1,
    **how: Any,
) -> tuple[df.datasets.Dataset, np.ndarray, np.ndarray | None]:
    """The data; the samples to compare with it, from a file or drawn from a checkpoint; their classes.

    Without labels named, classes are drawn as often as the held-out rows have them. The classes are None
    where there are none, and for a file. Fewer rows than at_least on a side are refused.
    """
    if not is_checkpoint(source):
        if data is None:
            raise ValueError(
                "--data: not given; accepted: a data set's name or a file to compare samples from a file with"
            )
        known = load_data(data, label_column, data_seed)
        _check_count("--data", f"{known.name!r}", "held-out rows", len(known.test), at_least)
        rows = _read_samples(source, label_column, known)
        _check_count("SAMPLES", f"'{source}'", "rows", len(rows), at_least)
        return known, rows, None
    trained = load_checkpoint(source, "SAMPLES")
    known = training_data(trained, source, data, label_column)
    _check_count("--data", f"{known.name!r}", "held-out rows", len(known.test), at_least)
    cycle = label_cycle(trained, labels)
    same_classes = list(known.classes) == classes(trained)
    if labels is None and cycle is not None and same_classes:
        cycle = known.test_labels
    sampler = make_sampler(trained, **how)
    drawn = None if cycle is None else np.resize(cycle, num_samples)
    rows = draw(sampler, num_samples, seed=seed, labels=drawn, threads=threads, progress=progress)
    return known, rows, drawn if same_classes else None


def _check_count(name: str, given: str, kind: str, count: int, at_least: int) -> None:
    if count < at_least:
        raise ValueError(f"{name}: got {given} of {count} {kind}; accepted: at least {at_least}")


def _read_samples(path: Path, label_column: str | None, data: df.datasets.Dataset) -> np.ndarray:
    with naming("path", "SAMPLES"), naming("label_column", "--label-column"):
        rows = df.datasets.read(path, label_column=label_column).rows
    if rows.shape[1] != data.dim:
        accepted = f"{data.dim} columns, as {data.name!r} has"
        raise ValueError(f"SAMPLES: got '{path}' of {rows.shape[1]} columns; accepted: {accepted}")
    return rows
