"""What an installer sees: build requirements, version, and an extension that no torch build can break."""

from __future__ import annotations

import ctypes
import importlib.metadata
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import diffusion_fast as df

ROOT = Path(__file__).resolve().parent.parent


def test_build_requirements_are_three_and_never_torch() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    requires = re.search(r"^requires = \[(.*?)\]", text, re.MULTILINE | re.DOTALL)
    assert requires is not None
    names = re.findall(r'"([A-Za-z0-9_-]+)', requires.group(1))
    assert sorted(names) == ["ninja", "pybind11", "setuptools"]
    assert "torch" not in re.findall(
        r"^\s*(?:import|from) (\w+)", (ROOT / "setup.py").read_text(), re.MULTILINE
    )


def test_version_is_the_same_everywhere() -> None:
    assert importlib.metadata.version("diffusion-fast") == df.__version__
    changelog = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(rf"^## {re.escape(df.__version__)}\b", changelog, re.MULTILINE)


def test_constraints_pin_every_requirement() -> None:
    pins = {
        re.sub(r"[-_.]+", "-", line.split("==")[0]).lower()
        for line in (ROOT / "constraints.txt").read_text().splitlines()
        if "==" in line
    }
    needed = importlib.metadata.requires("diffusion-fast") or []
    names = {re.match(r"[A-Za-z0-9._-]+", line).group().lower() for line in needed}  # type: ignore[union-attr]
    assert {re.sub(r"[-_.]+", "-", name) for name in names} | {"setuptools", "pybind11", "ninja"} <= pins
    assert "torch==2.13.0" in (ROOT / "constraints.txt").read_text().splitlines()


@pytest.mark.skipif(shutil.which("readelf") is None, reason="readelf is not installed")
def test_extension_does_not_link_torch() -> None:
    from diffusion_fast import _cpu

    dynamic = subprocess.run(
        ["readelf", "-d", _cpu.__file__], capture_output=True, text=True, check=True
    ).stdout
    libraries = re.findall(r"NEEDED.*\[(.*)\]", dynamic)
    assert libraries
    assert not [name for name in libraries if re.search("torch|c10|gomp|iomp|python", name)]


def test_extension_exports_only_its_entry_point() -> None:
    from diffusion_fast import _cpu

    library = ctypes.CDLL(_cpu.__file__)
    assert hasattr(library, "PyInit__cpu")
    if shutil.which("nm"):
        listing = subprocess.run(
            ["nm", "-D", "--defined-only", _cpu.__file__], capture_output=True, text=True, check=True
        ).stdout
        assert not [line for line in listing.splitlines() if "2df" in line], (
            "a symbol of namespace df is visible"
        )


def test_import_pulls_in_nothing_heavy() -> None:
    """Plotting, metrics and data helpers load what they need when used, so that workers start quickly."""
    heavy = ["matplotlib", "sklearn", "ot", "jax", "diffusers", "pandas"]
    code = f"import sys, torch; import diffusion_fast; print([m for m in {heavy!r} if m in sys.modules])"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert result.stdout.strip() == "[]"


def test_typed_marker_is_installed() -> None:
    assert (Path(df.__file__).parent / "py.typed").exists()
