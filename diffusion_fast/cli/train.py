"""diffusion-fast train: data to a checkpoint that remembers how it was made."""

from __future__ import annotations

import sys
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

import diffusion_fast as df
from diffusion_fast.cli import config, options
from diffusion_fast.cli.errors import Command

if TYPE_CHECKING:
    from diffusion_fast.datasets import Dataset


@click.command(cls=Command)
@click.option(
    "--config",
    type=options.existing_file("TOML file"),
    callback=config.load,
    is_eager=True,
    help="A TOML file with settings, such as epochs = 100; options given here win.",
)
@options.data
@options.label_column
@click.option("--hidden", type=options.widths(), default="128,128", help="Widths of the hidden layers.")
@click.option(
    "--activation",
    type=options.choice(options.ACTIVATIONS),
    default="relu",
    help=f"{options.listed(options.ACTIVATIONS)}.",
)
@click.option(
    "--time-embedding",
    type=options.choice(options.TIME_EMBEDDINGS),
    default="sinusoidal",
    help=f"{options.listed(options.TIME_EMBEDDINGS)}.",
)
@click.option(
    "--schedule",
    type=options.choice(options.SCHEDULES),
    default="cosine",
    help=f"{options.listed(options.SCHEDULES)}.",
)
@click.option("--n-steps", type=options.integer(1, 1 << 20), default=100, help="Steps of the schedule.")
@click.option("--beta-start", type=options.BETA, help="First beta, of a schedule between two.")
@click.option("--beta-end", type=options.BETA, help="Last beta, of a schedule between two.")
@click.option(
    "--prediction-type",
    type=options.choice(options.PREDICTION_TYPES),
    default="epsilon",
    help=f"What the network predicts: {options.listed(options.PREDICTION_TYPES)}.",
)
@click.option(
    "--epochs",
    type=options.integer(1),
    help=f"Passes over the data.  [default: about {options.TRAINING_STEPS} steps]",
)
@click.option("--batch-size", type=options.integer(1), default=1024, help="Rows per step.")
@click.option("--lr", type=options.POSITIVE, default=3e-3, help="Learning rate.")
@click.option(
    "--lr-decay",
    type=options.choice(["none", "cosine"]),
    default="cosine",
    help="none, or cosine: down to 0.",
)
@click.option(
    "--ema", type=options.FRACTION, default=0.999, help="Decay of the moving average of the weights."
)
@click.option("--validation", type=options.FRACTION, help="Part of the rows to validate on.  [default: none]")
@click.option(
    "--patience", type=options.integer(1), help="Stop after so many epochs without a better validation."
)
@click.option(
    "--label-dropout",
    type=options.real("a number in [0, 1)", lambda p: 0 <= p < 1),
    help="Part of the labels hidden in training, for guidance.  [default: 0.1 with labels]",
)
@options.seed
@options.out(".safetensors")
@options.force
@click.option(
    "--threads",
    type=options.integer(1, options.MAX_THREADS),
    default=1,
    help="CPU threads; the weights depend on their number, and narrow networks gain little from more.",
)
@options.progress
@options.as_json
def train(out: str, force: bool, progress: bool | None, as_json: bool, **settings: Any) -> None:
    """Train a denoiser on a data set or a file, and write a checkpoint.

    A part of the data is held out: `evaluate` compares with it. A labelled set, and a file with a column of
    classes (--label-column), give a model of each class, to be drawn with `sample --labels`. The checkpoint
    remembers all settings. The defaults suit a few columns: on the helix they take half a minute.

    \b
    Examples:
      diffusion-fast train --data helix_3d --out helix.safetensors
      diffusion-fast train --data helix_3d --hidden 64,64 --epochs 100 --out small.safetensors
    """
    from diffusion_fast.cli import output, stored

    # What needs no torch is refused before its import, which takes seconds.
    target = output.check(out, (".safetensors",), force=force)
    settings.pop("config")
    betas = given_betas(settings)
    data = stored.load_data(settings["data"], settings["label_column"], settings["seed"])
    settings = complete(settings, data)
    schedule = df.NoiseSchedule.from_name(settings["schedule"], settings["n_steps"], **betas)
    import torch

    torch.set_num_threads(settings["threads"])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings["seed"])
        model = df.models.MLPDenoiser(
            data.dim,
            settings["hidden"],
            settings["activation"],
            settings["time_embedding"],
            settings["n_steps"],
            n_classes=data.n_classes or None,
        )
    passed_on = "epochs batch_size lr lr_decay ema validation patience prediction_type label_dropout"
    passed_on += " seed threads"
    history = df.train(
        model,
        schedule,
        data,
        labels=data.train_labels,
        progress=sys.stderr.isatty() if progress is None else progress,
        **{name: settings[name] for name in passed_on.split()},
    )
    remembered = stored.metadata(data, settings) | {"history": asdict(history)}
    df.save(target, model, schedule, data.standardiser, metadata=remembered)

    result = {
        "out": out,
        "data": data.name,
        "rows": len(data.train),
        "columns": list(data.columns),
        "classes": list(data.classes),
        "epochs": len(history.train_loss),
        "train_loss": history.train_loss[-1],
        "validation_loss": min(history.validation_loss, default=None),
        "best_epoch": history.best_epoch,
        "stopped_early": history.stopped_early,
        "seconds": history.seconds,
        "settings": settings,
    }
    losses = f"loss {history.train_loss[-1]:.4f}"
    if history.validation_loss:
        losses += f", lowest in validation {min(history.validation_loss):.4f} (epoch {history.best_epoch})"
    text = (
        f"{data.name}: {len(data.train):,} rows of {data.dim} columns, {len(history.train_loss)} epochs in "
        f"{history.seconds:.1f} s, {losses}\nwrote {out}"
    )
    output.report(as_json, result, text)


def complete(settings: dict[str, Any], data: Dataset) -> dict[str, Any]:
    """The settings with the defaults that depend on the data."""
    settings = dict(settings)
    if settings["epochs"] is None:
        settings["epochs"] = options.default_epochs(len(data.train), settings["batch_size"])
    if settings["label_dropout"] is None:
        settings["label_dropout"] = 0.1 if data.n_classes else 0.0
    return settings


def given_betas(settings: dict[str, Any]) -> dict[str, float]:
    """The ends of the schedule's range of betas, as far as they are given."""
    name = settings["schedule"]
    betas = {key: settings[key] for key in ("beta_start", "beta_end") if settings[key] is not None}
    if betas and name in options.SCHEDULES_WITHOUT_RANGE:
        key, value = next(iter(betas.items()))
        raise ValueError(f"{key}: got {value}; accepted: nothing with --schedule {name}")
    return betas
