"""diffusion-fast verify: whether samples are what their manifest says, and what the checkpoint draws."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from diffusion_fast.cli import options
from diffusion_fast.cli.errors import Command, naming
from diffusion_fast.cli.sample import ADDED, FROM_MANIFEST

if TYPE_CHECKING:
    from diffusion_fast.long_runs.manifest import Manifest


@click.command(cls=Command)
@click.argument("path", type=options.text("path", "the output of sample", files=True))
@click.option("--checkpoint", type=options.CHECKPOINT, help="The model, to draw chunks again.")
@click.option("--redraw", type=options.CHUNKS, help="Chunks to draw again and compare: all, or such as 0,7.")
@options.threads
@options.as_json
def verify(
    path: str, checkpoint: Path | None, redraw: list[int] | str | None, threads: int | None, as_json: bool
) -> None:
    """Check samples at PATH, as `sample` wrote them, against the manifest beside them.

    Every chunk is held against its checksum. With --redraw and --checkpoint, chunks are drawn again as the
    manifest says they were, and must have the same bytes. The exit code is 1 where anything differs.

    \b
    Examples:
      diffusion-fast verify samples.npy
      diffusion-fast verify samples.npy --redraw all --checkpoint helix.safetensors
    """
    if (redraw is None) != (checkpoint is None):
        missing = "--checkpoint" if checkpoint is None else "--redraw"
        raise ValueError(f"{missing}: not given; accepted: both of --redraw and --checkpoint, or neither")
    from diffusion_fast.cli import output
    from diffusion_fast.long_runs import verification

    with naming("path", "PATH"), naming("manifest", "PATH"), naming("redraw", "--redraw"):
        target, made = verification.load(path)
        how = {} if checkpoint is None else _as_then(path, made, checkpoint)
        found = verification.verify_run(target, made, redraw=redraw or (), threads=threads, **how)
    state = f"{found.done} of {found.chunks} chunks written, {len(found.redrawn)} drawn again"
    lines = [*found.faults, *(f"chunk {chunk} is not what the checkpoint draws" for chunk in found.different)]
    lines += [f"chunk {chunk} is unfinished: not written yet, so not compared" for chunk in found.unfinished]
    if found.done < found.chunks:
        lines.append("the run is not complete")
    text = "\n".join([f"{path}: {found.n:,} samples, {state}", *lines, "good" if found.good else "not good"])
    output.report(as_json, {"path": path, "good": found.good, **asdict(found)}, text)
    if not found.good:
        raise click.exceptions.Exit(1)


def _as_then(path: str, made: Manifest, checkpoint: Path) -> dict[str, Any]:
    """The sampler and the labels that the manifest names."""
    from diffusion_fast.cli import stored

    made_by = ADDED | made.made_by if made.made_by else {}
    if made_by.keys() != set(FROM_MANIFEST):
        accepted = "one whose samples the command `sample` drew"
        raise ValueError(
            f"PATH: got {path!r}, whose manifest does not say how it was made; accepted: {accepted}"
        )
    trained = stored.load_checkpoint(checkpoint, "--checkpoint")
    labels = made_by.pop("labels")
    return {"sampler": stored.make_sampler(trained, **made_by), "labels": stored.label_cycle(trained, labels)}
