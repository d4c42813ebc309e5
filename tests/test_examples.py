"""Examples in docstrings and the README run as written (the README's with fewer epochs and samples)."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
import re
from pathlib import Path

import pytest
import torch

import diffusion_fast

ROOT = Path(__file__).resolve().parent.parent
MODULES = ["diffusion_fast"] + [
    module.name
    for module in pkgutil.walk_packages(diffusion_fast.__path__, "diffusion_fast.")
    if not module.name.endswith(("__main__", "._cpu"))
]


@pytest.mark.parametrize("name", MODULES)
def test_docstrings(name: str) -> None:
    torch.set_num_threads(1)
    module = importlib.import_module(name)
    assert doctest.testmod(module, optionflags=doctest.ELLIPSIS).failed == 0


def test_there_are_examples() -> None:
    finder = doctest.DocTestFinder()
    found = [test for name in MODULES for test in finder.find(importlib.import_module(name)) if test.examples]
    assert len(found) >= 6


@pytest.mark.skipif(not (ROOT / "README.md").is_file(), reason="the README is not beside the tests")
def test_readme(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert blocks
    monkeypatch.chdir(tmp_path)
    for block in blocks:
        code = block.replace("epochs=500", "epochs=1").replace("1_000_000", "1000")
        exec(compile(code, "README.md", "exec"), {})
    assert "layer 1" in capsys.readouterr().out
