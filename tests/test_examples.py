"""Examples in docstrings and the README run as written (the README's with fewer epochs and samples)."""

from __future__ import annotations

import doctest
import importlib
import itertools
import pkgutil
import re
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

import diffusion_fast
from diffusion_fast.cli import main

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
        code = re.sub(r"epochs=\d+", "epochs=1", block).replace("1_000_000", "1000")
        exec(compile(code, "README.md", "exec"), {})
    assert capsys.readouterr().out.count("operations that do not read x: run once") == len(blocks)


@pytest.mark.skipif(not (ROOT / "README.md").is_file(), reason="the README is not beside the tests")
def test_readme_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The transcript's commands, one after the other, with one epoch and few samples; each line is said."""
    text = (ROOT / "README.md").read_text()
    commands = re.findall(r"^    \$ diffusion-fast (.*)$", text, re.M)
    assert [command.split()[0] for command in commands] == ["train", "sample", "evaluate", "plot", "explain"]
    monkeypatch.chdir(tmp_path)
    for command in commands:
        words = command.replace("1000000", "2000").split()
        result = CliRunner().invoke(main, [*words, *(["--epochs", "1"] if words[0] == "train" else [])])
        assert result.exit_code == 0, result.output
        for line in result.output.splitlines():
            heading = itertools.takewhile(lambda word: not re.search(r"\d", word), line.split(" "))
            assert " ".join(heading).strip() in text, f"{command}: README lacks {line!r}"
