"""Settings of a train run in a TOML file: one key for each option, in the option's own spelling or with _."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import click

from diffusion_fast._spelling import did_you_mean

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

NOT_SETTINGS = ("config", "force", "progress", "as_json", "help")


def load(ctx: click.Context, param: click.Parameter, path: Path | None) -> Path | None:
    """The callback of --config: the file's values become the command's defaults."""
    if path is None:
        return None
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise click.BadParameter(
            f"got {str(path)!r}, which is no TOML ({error}); accepted: key = value lines"
        ) from error
    keys = [option.name or "" for option in ctx.command.params if option.name not in NOT_SETTINGS]
    values: dict[str, Any] = {}
    for key, value in content.items():
        name = key.replace("-", "_")
        if name not in keys:
            hint = did_you_mean(name, keys)
            raise click.BadParameter(f"got {path} with the key {key!r}; accepted: {', '.join(keys)}{hint}")
        values[name] = value
    ctx.default_map = values
    ctx.meta["config"] = path
    return path
