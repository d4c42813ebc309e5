"""diffusion-fast sample: a checkpoint's samples to a file, of any number, by any number of processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from diffusion_fast.cli import options
from diffusion_fast.cli.errors import Command, Terminated, naming, refuse_unused, tell

# What a manifest says of the sampler's making; those of before an option was there have its default.
FROM_MANIFEST = ("labels", *options.SAMPLER_OPTIONS, "expected_samples")
ADDED = {"spacing": None, "tolerance": None, "expected_samples": None}


@click.command(cls=Command)
@click.argument("checkpoint", type=options.CHECKPOINT)
@options.num_samples(1_000_000)
@click.option(
    "--index-range",
    type=options.INDEX_RANGE,
    help="Draw the samples A to B - 1 of the seed's stream alone, for jobs that share a run: each writes a "
    "file of its own.  [default: 0 to --num-samples]",
)
@options.seed
@options.sampling
@click.option(
    "--quality",
    type=options.choice(options.QUALITIES),
    help="In place of --solver, --steps, --spacing, --variance, --precision and --tolerance: fast, balanced, "
    "or exact, which is the chain of the training. The choice is printed.",
)
@options.out(".npy, .npz, .csv, .parquet, or a folder of .npy shards, with a / at its end")
@options.force
@click.option("--resume", is_flag=True, help="Go on with a run that was stopped; begin where there is none.")
@options.threads
@options.progress
@options.as_json
@click.pass_context
def sample(
    ctx: click.Context,
    checkpoint: Path,
    num_samples: int,
    index_range: tuple[int, int] | None,
    seed: int,
    labels: str | None,
    quality: str | None,
    out: str,
    force: bool,
    resume: bool,
    threads: int | None,
    progress: bool | None,
    as_json: bool,
    **how: Any,
) -> None:
    """Draw samples from a CHECKPOINT, in the units of its data.

    Sample i depends on the checkpoint, the options and the seed alone: not on the number of samples, threads
    or processes. A .npy file holds an (n, columns) array of float32; .csv, .parquet and .npz files have the
    names of the columns as well, and the class of each sample where the model has classes.

    The memory is that of a few chunks, whatever the number. The output gets its name when it is complete;
    until then OUT.partial and OUT.manifest.json are what --resume goes on with, whatever stopped the run.
    Started by torchrun, the processes share one output.

    \b
    Examples:
      diffusion-fast sample helix.safetensors --num-samples 1000000 --out samples.npy
      diffusion-fast sample helix.safetensors --index-range 100:200 --out part-1.npy
    """
    from diffusion_fast.cli import output, stored
    from diffusion_fast.cli import quality as qualities

    start, n = _range(ctx, num_samples, index_range)
    if quality is not None:
        refuse_unused(options.CHAIN_OPTIONS, "--quality, which chooses it")
    trained = stored.load_checkpoint(checkpoint)
    if quality is not None:
        how = qualities.chosen(quality, trained, how)
    # Jobs with ranges of their own know nothing of the whole: theirs must not choose by their share of it.
    how["expected_samples"] = None if index_range else n
    cycle = stored.label_cycle(trained, labels)
    names = stored.columns(trained)
    sampler = stored.make_sampler(trained, **how)
    from diffusion_fast import Columns, sample_to
    from diffusion_fast.long_runs.distributed import launched

    with _as_typed(out):
        result = sample_to(
            out,
            sampler,
            n,
            seed=seed,
            start=start,
            labels=cycle,
            columns=Columns(names, stored.label_column(trained), stored.classes(trained)),
            resume=resume,
            overwrite=force,
            threads=threads,
            progress=stored.shown(progress),
            made_by={"labels": labels} | how,
        )
    if launched()[0] != 0:
        return  # rank 0 reports for all

    rate = result.drawn / result.seconds
    values = {
        "out": out,
        "num_samples": n,
        "index_range": [start, start + n],
        "drawn": result.drawn,
        "columns": names,
        "seed": seed,
        "quality": quality,
        "solver": how["solver"],
        "steps": len(sampler.table),
        "spacing": how["spacing"],
        "precision": sampler.tier.identity,
        "seconds": result.seconds,
        "samples_per_second": rate,
    }
    choice = "" if quality is None else f"{qualities.described(quality, sampler, how)}\n"
    before = "" if result.drawn == n else f" ({n - result.drawn:,} were there)"
    output.report(
        as_json,
        values,
        f"{choice}{n:,} samples of {len(names)} columns, {len(sampler.table)} steps each, in "
        f"{result.seconds:.2f} s{before}: {rate:,.0f} samples/s\nwrote {out}",
    )


def _range(ctx: click.Context, num_samples: int, index_range: tuple[int, int] | None) -> tuple[int, int]:
    """The first index and the number of samples."""
    if index_range is None:
        return 0, num_samples
    first, end = index_range
    if end > num_samples and ctx.get_parameter_source("num_samples") is not ParameterSource.DEFAULT:
        raise ValueError(
            f"--index-range: got {first}:{end}; accepted: an end of at most --num-samples, {num_samples}"
        )
    return first, end - first


@contextmanager
def _as_typed(out: str) -> Iterator[None]:
    """Errors in the words of the command line, and what a stopped run has left."""
    try:
        with naming("path", "--out"), naming("resume", "--resume"), naming("overwrite", "--force"):
            yield
    except ValueError as error:
        words = str(error).replace("resume=True", "--resume").replace("overwrite=True", "--force")
        raise ValueError(words) from error
    except OSError as error:
        raise OSError(error.errno, f"{error.strerror} (--resume goes on)", error.filename) from error
    except (KeyboardInterrupt, Terminated) as stopped:
        tell(f"{out} is not complete: --resume goes on")
        raise click.Abort if isinstance(stopped, KeyboardInterrupt) else stopped from None
