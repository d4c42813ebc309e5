"""diffusion-fast explain: how a checkpoint is run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from diffusion_fast.cli import options
from diffusion_fast.cli.errors import Command


@click.command(cls=Command)
@click.argument("checkpoint", type=options.CHECKPOINT)
@options.sampling
@options.as_json
def explain(checkpoint: Path, labels: str | None, as_json: bool, **how: Any) -> None:
    """Show what sampling a CHECKPOINT folds into tables, fuses into the kernel or leaves to torch, and why.

    \b
    Example:
      diffusion-fast explain helix.safetensors --solver ddim --steps 10
    """
    from diffusion_fast.cli import output, stored

    trained = stored.load_checkpoint(checkpoint)
    stored.label_cycle(trained, labels)
    sampler = stored.make_sampler(trained, **how)
    settings = stored.settings(trained)
    result = {
        "explain": sampler.explain().splitlines(),
        "native": sampler.plan is not None,
        "plan": None if sampler.plan is None else sampler.plan.hash,
        "model": trained.model.config,
        "schedule": repr(trained.schedule),
        "settings": settings,
    }
    remembered = [f"  {name} = {value}" for name, value in settings.items() if value is not None]
    text = [sampler.explain(), f"model: {trained.model.config}", f"schedule: {trained.schedule!r}"]
    output.report(as_json, result, "\n".join(text + ["trained with:"] * bool(remembered) + remembered))
