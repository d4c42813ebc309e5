"""Small checkpoints and data for the tests of the command line, and a way to run a command beside them."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
from click.testing import CliRunner, Result

import diffusion_fast as df
from diffusion_fast.cli import main

SMALL = ["--hidden", "8", "--n-steps", "10", "--epochs", "1"]


def run(folder: Path, *arguments: object) -> Result:
    """The command with its files in the folder."""
    before = Path.cwd()
    os.chdir(folder)
    try:
        return CliRunner().invoke(main, [str(a) for a in arguments])
    finally:
        os.chdir(before)


def done(folder: Path, *arguments: object) -> Result:
    result = run(folder, *arguments)
    assert result.exit_code == 0, result.output
    return result


def json_of(folder: Path, *arguments: object) -> dict:
    """The one JSON object that a command prints on standard output."""
    result = done(folder, *arguments, "--json")
    assert result.stdout.count("\n") == 1
    return json.loads(result.stdout)


def make_bench(folder: Path) -> Path:
    """helix.safetensors; kinds.csv, two clusters 'left' and 'right' as 1 to 3; kinds.safetensors."""
    done(folder, "train", "--out", "helix.safetensors", *SMALL)
    rng = np.random.default_rng(0)
    right = np.arange(400) % 4 > 0
    rows = np.where(right, 5.0, -5.0)[:, None] + 0.1 * rng.standard_normal((400, 2))
    lines = [
        f"{x},{y},{'right' if side else 'left'}"
        for (x, y), side in zip(rows.tolist(), right.tolist(), strict=True)
    ]
    (folder / "kinds.csv").write_text("\n".join(["u,v,kind", *lines]) + "\n")
    arguments = ["--data", "kinds.csv", "--label-column", "kind", "--hidden", "32", "--n-steps", "10"]
    done(folder, "train", *arguments, "--epochs", "150", "--batch-size", "64", "--out", "kinds.safetensors")
    return folder


def rewrite(folder: Path, old: str, new: str, **metadata: object) -> None:
    """A checkpoint of the same model with other metadata, as another program may save it."""
    was = df.load(folder / f"{old}.safetensors")
    known = was.metadata | metadata
    df.save(folder / f"{new}.safetensors", was.model, was.schedule, was.standardiser, metadata=known)


def listing(folder: Path) -> dict[str, bytes]:
    """Every file below the folder with its content."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}
