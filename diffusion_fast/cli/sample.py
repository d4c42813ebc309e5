"""diffusion-fast sample: a checkpoint's samples to a file."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from diffusion_fast.cli import options
from diffusion_fast.cli.errors import Command


@click.command(cls=Command)
@click.argument("checkpoint", type=options.CHECKPOINT)
@options.num_samples(1_000_000)
@options.seed
@options.sampling
@options.out(".npy, .npz, .csv or .parquet")
@options.force
@options.threads
@options.progress
@options.as_json
def sample(
    checkpoint: Path,
    num_samples: int,
    seed: int,
    labels: str | None,
    out: str,
    force: bool,
    threads: int | None,
    progress: bool | None,
    as_json: bool,
    **how: Any,
) -> None:
    """Draw samples from a CHECKPOINT, in the units of its data.

    Sample i depends on the checkpoint, the options and the seed alone: not on the number of samples or
    threads. A .npy file holds an (n, columns) array of float32; .csv, .parquet and .npz files have the names
    of the columns as well, and the class of each sample where the model has classes. All are written
    chunk by chunk.

    \b
    Example:
      diffusion-fast sample helix.safetensors --num-samples 1000000 --out samples.npy
    """
    from diffusion_fast.cli import output, stored

    target = output.check(out, stored.FILE_SUFFIXES, force=force)
    trained = stored.load_checkpoint(checkpoint)
    cycle = stored.label_cycle(trained, labels)
    names, label_column = stored.columns(trained), stored.label_column(trained)
    if cycle is not None:
        output.check_names(out, names, label_column)
    sampler = stored.make_sampler(trained, **how)
    draw = stored.Draw(sampler, num_samples, seed=seed, labels=cycle, threads=threads, progress=progress)
    output.write(target, draw.samples(names, stored.classes(trained), label_column))

    rate = num_samples / draw.seconds
    result = {
        "out": out,
        "num_samples": num_samples,
        "columns": names,
        "seed": seed,
        "solver": how["solver"],
        "steps": len(sampler.table),
        "seconds": draw.seconds,
        "samples_per_second": rate,
    }
    output.report(
        as_json,
        result,
        f"{num_samples:,} samples of {len(names)} columns, {len(sampler.table)} steps each, in "
        f"{draw.seconds:.2f} s: {rate:,.0f} samples/s\nwrote {out}",
    )
