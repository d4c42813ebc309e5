"""diffusion-fast reproduce: the five systems of the published reports, with their tables and pictures."""

from __future__ import annotations

import json
import os
import sys
from functools import partial
from pathlib import Path
from typing import Any

import click

from diffusion_fast._files import refusal
from diffusion_fast.cli import options
from diffusion_fast.cli.errors import Command, Terminated

SYSTEMS = ("A", "B", "C", "D", "E")
SETTINGS = "run.json"  # what a run in a folder was begun with, which going on must agree with


@click.command(cls=Command)
@click.argument("system", type=options.choice([*SYSTEMS, "all"]))
@click.option("--full/--quick", "full", default=False, help="The reports' own sizes, or a quick selection.")
@click.option(
    "--out",
    type=options.text("folder", "the path of a folder"),
    default="reproduction",
    help="Folder to write to, one folder in it for each system.",
)
@click.option("--resume", is_flag=True, help="Go on with the run in the folder: what is done is kept.")
@click.option(
    "--as-published",
    is_flag=True,
    help="Show what was published, mistakes included, beside what is right.",
)
@click.option(
    "--data",
    type=options.text("folder", "a folder that exists"),
    help="Folder with files of your own: albatross.npy and albatross_prior_samples.npy for D, the four files "
    "of MNIST for E.",
)
@options.seed
@options.threads
@options.progress
@options.as_json
def reproduce(
    system: str,
    full: bool,
    out: str,
    resume: bool,
    as_published: bool,
    data: str | None,
    seed: int,
    threads: int | None,
    progress: bool | None,
    as_json: bool,
) -> None:
    """Train, sample and measure a published system: A, B, C, D, E or all of them.

    Writes report.md, results.json, pictures and checkpoints of each. A run that was interrupted leaves the
    report of what was done, and goes on with --resume; without it the folder must be new or empty.

    \b
    Example:
      diffusion-fast reproduce A --quick --out reproduction
    """
    if data is not None and not Path(data).is_dir():
        raise click.BadParameter(f"got {data!r}; accepted: a folder that exists", param_hint="--data")
    import torch

    from diffusion_fast import systems
    from diffusion_fast.cli.output import report
    from diffusion_fast.systems.run import Run, expected_seconds
    from diffusion_fast.threads import resolve

    own_files = None if data is None else Path(data)
    modules = {name: systems.load(name) for name in (SYSTEMS if system == "all" else (system,))}
    for module in modules.values():
        if hasattr(module, "check_data"):  # not hours later, when it is their turn
            module.check_data(own_files, full)
    settings = {"size": "full" if full else "quick", "seed": seed, "data": data}
    folder = _folder(out, resume, settings)
    torch.set_num_threads(resolve(threads))
    show = sys.stderr.isatty() if progress is None else progress
    expected = expected_seconds(sum(module.SECONDS[settings["size"]] for module in modules.values()))
    click.echo(f"this will take about {_duration(expected)}{', less what is done' * resume}", err=True)
    done = []
    for name, module in modules.items():
        run = Run(
            name,
            folder / name,
            full=full,
            as_published=as_published,
            resume=resume,
            seed=seed,
            progress=show,
            data=own_files,
        )
        try:
            module.run(run)
        except (KeyboardInterrupt, Terminated):
            run.interrupted(module.TITLE)
            raise
        done.append(run.finish(module.TITLE))
    lines = [
        f"{facts['system']}: {facts['title']}, {_duration(facts['seconds']['total'])}, "
        f"{folder / facts['system'] / 'report.md'}"
        for facts in done
    ]
    report(as_json, {"out": str(folder), "systems": done}, "\n".join(lines))


def _folder(out: str, resume: bool, settings: dict[str, Any]) -> Path:
    """The folder to write to, made and found fit, with the settings of its run in it."""
    folder = Path(os.path.realpath(out))
    refuse = partial(refusal, "out", out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        known = folder / SETTINGS
        if any(folder.iterdir()):
            if not resume:
                accepted = "a new or empty folder, or --resume to go on with the run in it"
                raise refuse("which is not empty", accepted)
            if not known.is_file():
                raise refuse(f"which holds no {SETTINGS}", "a folder that reproduce wrote")
            try:
                before = json.loads(known.read_text(encoding="utf-8"))
            except ValueError as error:
                accepted = "a folder that reproduce wrote"
                raise refuse(f"where {SETTINGS} is damaged", accepted) from error
            if before != settings:
                raise refuse(f"where {SETTINGS} has {before}", f"a run with {settings}, or a new folder")
        else:
            known.write_text(json.dumps(settings) + "\n", encoding="utf-8")
        if not os.access(folder, os.W_OK):
            raise refuse("which cannot be written", "a folder that can be written")
    except OSError as error:
        why = f"which cannot be used ({error.strerror})"
        raise refuse(why, "a folder that can be made and written") from error
    return folder


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 6000 else f"{seconds / 3600:.1f} hours"
