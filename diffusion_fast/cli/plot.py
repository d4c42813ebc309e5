"""diffusion-fast plot: pictures of samples, of the reverse chain and of a training run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import diffusion_fast as df
from diffusion_fast._files import replacing
from diffusion_fast.cli import options
from diffusion_fast.cli.errors import Command, refuse_unused

if TYPE_CHECKING:
    from matplotlib.figure import Figure

PICTURES, ANIMATIONS = (".png", ".pdf", ".svg"), (".gif", ".mp4")
MAX_CLASSES = 32  # that colors and markers tell apart


@click.command(cls=Command)
@click.argument("samples", type=options.SAMPLES)
@options.other_data
@options.label_column
@options.data_seed
@click.option(
    "--chain", is_flag=True, help="How noise becomes samples: frames side by side, or a .gif or .mp4."
)
@click.option("--loss", is_flag=True, help="The loss of a checkpoint's training.")
@options.num_samples(5000, "Samples to draw from a checkpoint.")
@options.seed
@options.sampling
@options.out(".png, .pdf or .svg; with --chain .gif or .mp4 as well")
@options.force
@options.threads
@options.progress
@options.as_json
def plot(
    samples: Path, chain: bool, loss: bool, out: str, force: bool, as_json: bool, seed: int, **how: Any
) -> None:
    """Draw SAMPLES, a file of them or a checkpoint to draw them from, beside held-out data.

    \b
    Examples:
      diffusion-fast plot helix.safetensors --out helix.png
      diffusion-fast plot samples.npy --data helix_3d --out samples.png
      diffusion-fast plot helix.safetensors --chain --out chain.gif
      diffusion-fast plot helix.safetensors --loss --out loss.png
    """
    from diffusion_fast.cli import output, stored

    if chain and loss:
        raise click.UsageError("--loss: got it together with --chain; accepted: one of the two")
    target = output.check(out, PICTURES + ANIMATIONS * chain, force=force)
    if (chain or loss) and not stored.is_checkpoint(samples):
        kind = "--chain" if chain else "--loss"
        raise click.UsageError(f"SAMPLES: got '{samples}'; accepted: a checkpoint, with {kind}")
    if loss:
        refuse_unused((*options.DATA_OPTIONS, *options.DRAWING_OPTIONS, "seed"), "--loss")
    elif chain:
        refuse_unused(options.DATA_OPTIONS, "--chain")
    elif stored.is_checkpoint(samples):
        refuse_unused(["data_seed"], "a checkpoint, which knows its own")
    else:
        refuse_unused((*options.DRAWING_OPTIONS, "seed"), "a file of samples")
    with replacing(target) as temporary:
        if chain:
            draw_chain(samples, temporary, seed, how)
        else:
            figure = loss_figure(samples) if loss else comparison(samples, seed, how)
            figure.savefig(temporary, dpi=150)
    output.report(as_json, {"out": out}, f"wrote {out}")


def loss_figure(checkpoint: Path) -> Figure:
    from diffusion_fast.cli import stored

    history = stored.history(stored.load_checkpoint(checkpoint, "SAMPLES"))
    if history is None:
        raise ValueError(
            f"SAMPLES: got '{checkpoint}' without a history; accepted: a checkpoint written by train"
        )
    return df.plotting.loss_curve(history)


def comparison(samples: Path, seed: int, how: dict[str, Any]) -> Figure:
    from diffusion_fast.cli import stored

    data, rows, labels = stored.data_and_rows(samples, seed=seed, **how)
    title = f"{data.name}: held-out data and {len(rows):,} samples"
    if data.image_shape is not None:
        return df.plotting.image_grid(rows, data.test, shape=data.image_shape, title=title)
    colored: dict[str, Any] = {}
    if labels is not None and data.n_classes <= MAX_CLASSES:
        colored = {"sample_labels": labels, "data_labels": data.test_labels, "classes": data.classes}
    return df.plotting.compare_samples(rows, data.test, columns=data.columns, title=title, **colored)


def draw_chain(checkpoint: Path, path: Path, seed: int, how: dict[str, Any]) -> None:
    import numpy as np
    import torch

    from diffusion_fast.cli import stored

    trained = stored.load_checkpoint(checkpoint, "SAMPLES")
    cycle = stored.label_cycle(trained, how["labels"])
    sampler = stored.make_sampler(trained, **{name: how[name] for name in options.SAMPLER_OPTIONS})
    n = how["num_samples"]
    trajectory = sampler.sample(
        n,
        seed=seed,
        labels=None if cycle is None else torch.from_numpy(np.resize(cycle, n)),
        return_trajectory=True,
        threads=how["threads"],
    )
    shape = stored.image_shape(trained)
    look: dict[str, Any] = {"shape": shape} if shape else {"columns": stored.columns(trained)}
    if path.suffix.lower() in ANIMATIONS:
        df.plotting.chain_animation(trajectory, path, **look)
    else:
        df.plotting.chain_strip(trajectory, **look).savefig(path, dpi=150)
