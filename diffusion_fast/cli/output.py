"""What commands write: checks of the output before any work, and one report on standard output."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from diffusion_fast._files import check_target, refusal, temporary


def check(path: str, suffixes: Sequence[str], *, force: bool) -> Path:
    """The file to write, once it is sure that it can be written; an error of --out else."""
    return check_target(path, suffixes, replace=force, name="--out", to_replace="--force")


def check_folder(path: str, names: Sequence[str], *, force: bool) -> Path:
    """The folder, new or not, once it is sure that files of those names can be written into it."""
    folder = Path(os.path.realpath(path))
    try:
        nearest = next(p for p in (folder, *folder.parents) if p.exists())
        if not nearest.is_dir():
            raise refusal("--out", path, f"but {nearest} is a file", "a folder, new or not")
        if nearest == folder:
            for name in names:
                check(str(Path(path) / name), (Path(name).suffix,), force=force)
        else:
            with temporary(nearest / folder.relative_to(nearest).parts[0]) as probe:
                probe.touch(exist_ok=False)
    except OSError as error:
        why = f"which cannot be made ({error.strerror})"
        raise refusal("--out", path, why, "a folder in one that can be written") from error
    return folder


def report(as_json: bool, values: dict[str, Any], text: str) -> None:
    """The result of a command: the values as one JSON object, or the text."""
    click.echo(json.dumps(_json_value(values), allow_nan=False) if as_json else text)


def _json_value(value: Any) -> Any:
    """JSON has no NaN: what could not be told is null."""
    if isinstance(value, dict):
        return {key: _json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
