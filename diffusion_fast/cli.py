"""The command `diffusion-fast`."""

from __future__ import annotations

from pathlib import Path

import click
import torch

from diffusion_fast import __version__
from diffusion_fast.datasets import helix_3d, load_array
from diffusion_fast.demo import run_demo
from diffusion_fast.threads import resolve


@click.group(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(__version__, prog_name="diffusion-fast")
def main() -> None:
    """Fast, reproducible, large-batch sampling for small diffusion models."""


@main.command()
@click.option(
    "--data",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A .npy file with an (n, dim) array to learn from.  [default: the helix, by its formula]",
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path("demo-output"),
    help="Folder for the checkpoint and the pictures.",
)
@click.option("--num-samples", type=click.IntRange(1), default=1_000_000, help="Samples to draw.")
@click.option("--epochs", type=click.IntRange(1), help="Passes over the data.  [default: about 5000 steps]")
@click.option(
    "--seed", type=click.IntRange(0, (1 << 64) - 1), default=0, help="Everything random follows from it."
)
@click.option(
    "--threads",
    type=click.IntRange(1),
    help="CPU threads.  [default: DIFFUSION_FAST_THREADS, else as many as torch takes]",
)
def demo(
    data: Path | None, out: Path, num_samples: int, epochs: int | None, seed: int, threads: int | None
) -> None:
    """Train a small model, draw a million samples, show their speed and their distance to held-out data."""
    try:
        torch.set_num_threads(resolve(threads))  # for both sides of the comparison
        dataset = helix_3d(seed=seed) if data is None else load_array(data, seed=seed)
        result = run_demo(dataset, out, n_samples=num_samples, epochs=epochs, seed=seed)
    except (ValueError, OSError) as error:
        raise click.ClickException(str(error)) from error
    click.echo("\n" + result.report)
    click.echo(f"\nwrote samples.png, loss.png and checkpoint.safetensors in {out}")
