"""diffusion-fast info: what is installed and what it runs on. Imports nothing heavy."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from pathlib import Path

import click

from diffusion_fast import __version__, _cpu
from diffusion_fast.cli import options
from diffusion_fast.cli.errors import Command

PACKAGES = ("torch", "numpy", "scipy", "POT", "scikit-learn", "matplotlib", "safetensors", "pyarrow")


@click.command(cls=Command)
@options.as_json
def info(as_json: bool) -> None:
    """Show versions, the instruction set in use, the processor and the threads.

    \b
    Example:
      diffusion-fast info
    """
    variable = os.environ.get("DIFFUSION_FAST_THREADS") or None
    versions = {name: _version(name) for name in PACKAGES}
    values = {
        "diffusion_fast": __version__,
        "python": platform.python_version(),
        "packages": versions,
        "platform": platform.platform(),
        "cpu": _cpu_name(),
        "cores": _cores(),
        "instruction_set": _cpu.isa(),
        "instruction_sets": _cpu.isas(),
        "DIFFUSION_FAST_THREADS": variable,
    }
    if as_json:
        click.echo(json.dumps(values))
        return
    packages = ", ".join(f"{name} {version or 'not installed'}" for name, version in versions.items())
    lines = {
        "diffusion_fast": __version__,
        "python": values["python"],
        "packages": packages,
        "platform": values["platform"],
        "processor": f"{values['cpu']}, {values['cores']} cores for this process",
        "instruction set": f"{values['instruction_set']} (of {', '.join(_cpu.isas())})",
        "threads": f"{variable} (DIFFUSION_FAST_THREADS)" if variable else "as many as torch takes",
    }
    click.echo("\n".join(f"{name:<17}{value}" for name, value in lines.items()))


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass  # not Linux
    return platform.processor() or platform.machine()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
