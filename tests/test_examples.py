"""Examples in docstrings and the README run as written (the README's with fewer epochs and samples)."""

from __future__ import annotations

import doctest
import importlib
import importlib.util
import itertools
import os
import pkgutil
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

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


README = ROOT / "README.md"
beside = pytest.mark.skipif(not README.is_file(), reason="the README is not beside the tests")
TEXT = README.read_text() if README.is_file() else ""
# Those of other libraries run where these are installed; Ray's, which starts a cluster, in test_ray.py.
LIBRARIES = ("ray", "diffusers", "denoising_diffusion_pytorch")


def blocks() -> list[Any]:
    found = []
    for block in re.findall(r"```python\n(.*?)```", TEXT, re.S):
        needs = next(
            (name for name in LIBRARIES if re.search(rf"^(import|from) {name}\b", block, re.M)), None
        )
        missing = needs is not None and importlib.util.find_spec(needs) is None
        marks = [pytest.mark.skipif(missing, reason=f"{needs} is not installed")]
        if needs != "ray":
            found.append(pytest.param(block, marks=marks, id=f"{len(found)}-{needs or 'torch'}"))
    return found


def small(text: str) -> str:
    """The same with one epoch and few samples."""
    text = re.sub(r"epochs=\d+", "epochs=1", re.sub(r'"epochs": \d+', '"epochs": 1', text))
    for large, few in {
        "1_000_000": "1000",
        "999_990": "990",
        "500000:1000000": "500:1000",
        "0,7": "0",
        "tolerance=1e-3": "tolerance=0.1",
    }.items():
        text = text.replace(large, few)
    return re.sub(r"--num-samples \d+", "--num-samples 2000", text)


@beside
@pytest.mark.parametrize("block", blocks())
def test_readme(
    block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each block on its own names."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    exec(compile(small(block), "README.md", "exec"), {})
    fused = block.count("print(sampler.explain())")
    assert capsys.readouterr().out.count("operations that do not read x: run once") == fused


@beside
def test_readme_shows_no_other_code() -> None:
    """A block of another kind would run in no test: ``` alone is for pictures."""
    assert set(re.findall(r"^```(\w+)$", TEXT, re.M)) == {"python", "sh"}
    assert len(blocks()) >= 8


@beside
@pytest.mark.slow  # a shell, a process for each command and a cluster of Ray's
def test_readme_from_top_to_bottom(tmp_path: Path) -> None:
    """All blocks pasted in order in one folder, Python's and the shell's."""
    parts = re.findall(
        r"```(python|sh)\n(.*?)```|((?:^    \$ [^\n]*\n(?:^    [^\n]*\n|^\n(?=    ))*)+)", TEXT, re.S | re.M
    )
    kinds = [kind or "transcript" for kind, _, _ in parts]
    assert kinds.count("transcript") == 1 and kinds.count("sh") == 2
    package = f"{sys.executable} -m diffusion_fast"
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    for kind, code, transcript in parts:
        if "reproduce all" in code:
            continue  # an hour; tests/test_systems.py has the command
        if kind == "python":
            needs = next((name for name in LIBRARIES if name in code), None)
            if needs is not None and importlib.util.find_spec(needs) is None:
                continue  # test_readme says so
            script = tmp_path / "block.py"
            script.write_text(small(code))
            command = f"{sys.executable} block.py"
        else:
            lines = re.findall(r"^    \$ (.*)$", transcript, re.M) or code.splitlines()
            command = "\n".join(["set -e", *lines])
            command = re.sub(r"^diffusion-fast (train)?", rf"{package} \1 ", small(command), flags=re.M)
            command = command.replace(" train ", " train --epochs 1 ")
            command = re.sub(r"^torchrun", f"{sys.executable} -m torch.distributed.run", command, flags=re.M)
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"


@beside
def test_readme_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The transcript's commands, one after the other, with one epoch and few samples; each line is said."""
    commands = re.findall(r"^    \$ diffusion-fast (.*)$", TEXT, re.M)
    assert [command.split()[0] for command in commands] == ["train", "sample", "evaluate", "plot", "explain"]
    monkeypatch.chdir(tmp_path)
    for command in commands:
        words = command.replace("1000000", "2000").split()
        result = CliRunner().invoke(main, [*words, *(["--epochs", "1"] if words[0] == "train" else [])])
        assert result.exit_code == 0, result.output
        for line in result.output.splitlines():
            heading = itertools.takewhile(lambda word: not re.search(r"\d", word), line.split(" "))
            assert " ".join(heading).strip() in TEXT, f"{command}: README lacks {line!r}"
