"""diffusion-fast demo: the whole way once."""

from __future__ import annotations

import sys
from dataclasses import asdict

import click

from diffusion_fast.cli import options
from diffusion_fast.cli.errors import Command

FILES = ("checkpoint.safetensors", "samples.png", "loss.png")


@click.command(cls=Command)
@options.data
@options.label_column
@click.option(
    "--out",
    type=options.text("folder", "the path of a folder"),
    default="demo-output",
    help="Folder to write to.",
)
@options.force
@options.num_samples(1_000_000)
@click.option(
    "--epochs",
    type=options.integer(1),
    help=f"Passes over the data.  [default: about {options.TRAINING_STEPS} steps]",
)
@options.seed
@options.threads
@options.progress
@options.as_json
def demo(
    data: str,
    label_column: str | None,
    out: str,
    force: bool,
    num_samples: int,
    epochs: int | None,
    seed: int,
    threads: int | None,
    progress: bool | None,
    as_json: bool,
) -> None:
    """Train a small model, draw a million samples, show their speed and their distance to held-out data.

    Writes checkpoint.safetensors, samples.png and loss.png; --force replaces those of an earlier run.

    \b
    Example:
      diffusion-fast demo
    """
    from diffusion_fast.cli import output, stored

    folder = output.check_folder(out, FILES, force=force)

    dataset = stored.load_data(data, label_column, seed)

    import torch

    from diffusion_fast.demo import run_demo
    from diffusion_fast.threads import resolve

    torch.set_num_threads(resolve(threads))  # for both sides of the comparison
    settings = {
        "data": data,
        "label_column": label_column,
        "seed": seed,
        "epochs": epochs,
        "prediction_type": "epsilon",
    }
    show = sys.stderr.isatty() if progress is None else progress
    result = run_demo(
        dataset,
        folder,
        n_samples=num_samples,
        epochs=epochs,
        seed=seed,
        progress=show,
        metadata=stored.metadata(dataset, settings),
    )
    files = "wrote samples.png, loss.png and checkpoint.safetensors in"
    output.report(as_json, {"out": out, **asdict(result)}, f"{result.report}\n\n{files} {out}")
