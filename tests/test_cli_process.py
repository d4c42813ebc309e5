"""The command as the shell runs it: how fast it starts, Ctrl-C, a reader that goes away, completion."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

import diffusion_fast as df

ROOT = Path(__file__).resolve().parent.parent
COMMAND = [sys.executable, "-m", "diffusion_fast"]
# The package need not be installed for these tests.
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])}
ENVIRONMENT.pop("PYTHONUNBUFFERED", None)  # with it errors that nobody reads leave nothing behind to flush
INFO_LIMIT = 1.5  # seconds of wall clock; 0.4 measured on a busy machine, 0.2 on a quiet one


def python(code: str) -> str:
    result = subprocess.run(
        [sys.executable, "-c", code], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    return result.stdout


@pytest.mark.alone
def test_info_starts_quickly() -> None:
    """The best of up to five starts: other programs can make any of them slow."""
    seconds = []
    while len(seconds) < 5 and min(seconds, default=9.0) >= INFO_LIMIT:
        began = time.perf_counter()
        result = subprocess.run(
            [*COMMAND, "info", "--json"], env=ENVIRONMENT, capture_output=True, check=True
        )
        seconds.append(time.perf_counter() - began)
    assert min(seconds) < INFO_LIMIT
    assert json.loads(result.stdout)["diffusion_fast"] == df.__version__


def test_help_and_refusals_import_nothing_heavy(tmp_path: Path) -> None:
    """torch's import takes seconds: an answer that needs no torch does not wait for it."""
    (tmp_path / "x.safetensors").touch()
    (tmp_path / "s.npy").touch()
    commands = [
        "--help",
        "train --help",
        "trian",
        "train --epoch 3",
        "train",
        "train --epochs x --out new.safetensors",
        "train --out new.npy",
        "train --out x.safetensors",
        "train --data helx --out new.safetensors",
        "train --label-column a --out new.safetensors",
        "train --beta-end 0.1 --out new.safetensors",
        "demo --data helx",
        "demo --label-column a",
        "demo --out s.npy",
        "sample x.safetensors --num-samples 9 --index-range 3:10 --out new.npy",
        "sample x.safetensors --quality fast --steps 3 --out new.npy",
        "evaluate s.npy",
        "evaluate s.npy --data moons --steps 3",
        "plot s.npy --out new.txt",
        "plot s.npy --chain --out new.png",
        "verify s.npy --redraw all",
        "bench --net 2-3-4",
        "reproduce E --data s.npy",
    ]
    code = (
        "import os, sys; from diffusion_fast.cli import main\n"
        f"os.chdir({str(tmp_path)!r})\n"
        f"for command in {commands!r}:\n"
        "    try: main(command.split())\n"
        "    except SystemExit as end: code = end.code\n"
        "    heavy = {'torch', 'scipy', 'sklearn', 'ot', 'matplotlib'} & set(sys.modules)\n"
        "    assert code == (0 if '--help' in command else 2), (command, code)\n"
        "    assert not heavy, (command, heavy)\n"
    )
    python(code)


@pytest.mark.alone
def test_import_adds_little_to_torch_s(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Below 0.3 s of processor time, with the parts that sampling and training need; 0.17 s measured.

    With compiled files, as an installed package has them: the first import writes them.
    """
    monkeypatch.setitem(ENVIRONMENT, "PYTHONPYCACHEPREFIX", str(tmp_path))
    monkeypatch.setitem(ENVIRONMENT, "PYTHONDONTWRITEBYTECODE", "")
    code = (
        "import time, torch; began = time.process_time(); import diffusion_fast as df\n"
        "df.Sampler, df.NoiseSchedule, df.models, df.train, df.load, df.ops, df.noise, df.datasets\n"
        "print(time.process_time() - began)"
    )
    assert min(float(python(code)) for _ in range(3)) < 0.3


def test_public_names_are_there_without_being_loaded() -> None:
    code = (
        "import sys, diffusion_fast as df; before = 'torch' in sys.modules\n"
        "listed = set(df.__all__) <= set(dir(df)); alone = 'torch' in sys.modules\n"
        "import diffusion_fast.training\n"
        "from diffusion_fast import Sampler, datasets, train\n"
        "print(before, listed, alone, Sampler is df.Sampler, datasets.__name__)\n"
        "print(callable(df.train), train is df.train)\n"
        "print(hasattr(df, 'nothing'))"
    )
    assert python(code).splitlines() == [
        "False True False True diffusion_fast.datasets",
        "True True",
        "False",
    ]


@pytest.mark.parametrize("name", sorted(df.__all__))
def test_type_checkers_and_users_find_the_same(name: str) -> None:
    """What is imported for type checkers alone is what the look-up at run time gives."""
    text = (ROOT / "diffusion_fast" / "__init__.py").read_text()
    for_checkers = text.partition("if TYPE_CHECKING:")[2].partition("__version__")[0]
    assert name == "build_info" or name in for_checkers.replace(",", " ").split()
    assert getattr(df, name) is not None


@pytest.mark.skipif(sys.platform == "win32", reason="pipes of another kind")
def test_a_reader_that_goes_away_is_no_traceback() -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed:
        result = subprocess.run(
            [*COMMAND, "info"], env=ENVIRONMENT, stdout=closed, stderr=subprocess.PIPE, text=True
        )
    assert result.returncode == 1
    assert result.stderr == ""


# A command that ends as commands do, after what a test has put in.
ENDING = """
import os, signal, time
import click
from diffusion_fast.cli.errors import Command, Program

@click.group(cls=Program)
def main(): pass

@main.command(cls=Command)
def end():
    THIS
    time.sleep(30)

main(["end"])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full, and signals and pipes of its kind")
@pytest.mark.parametrize(
    ("this", "code"),
    [
        ("os.kill(os.getpid(), signal.SIGINT)", 130),
        ("os.kill(os.getpid(), signal.SIGTERM)", 143),
        ("raise MemoryError", 1),
        ("raise ValueError('n: got 0; accepted: 1')", 2),
    ],
    ids=["SIGINT", "SIGTERM", "an error", "a refusal"],
)
@pytest.mark.parametrize("full", [False, True], ids=["no reader", "a full disk"])
def test_an_error_that_cannot_be_told_has_its_exit_code(this: str, code: int, full: bool) -> None:
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "wb") as closed, open("/dev/full", "wb") as on_full_disk:
        result = subprocess.run(
            [sys.executable, "-c", ENDING.replace("THIS", this)],
            env=ENVIRONMENT,
            stderr=on_full_disk if full else closed,
            timeout=20,
        )
    assert result.returncode == code


def test_completion_of_commands_and_names() -> None:
    def complete(*words: str) -> list[str]:
        asked = {
            "_DIFFUSION_FAST_COMPLETE": "bash_complete",
            "COMP_WORDS": " ".join(["diffusion-fast", *words]),
            "COMP_CWORD": str(len(words)),
        }
        result = subprocess.run(COMMAND, env=ENVIRONMENT | asked, capture_output=True, text=True, check=True)
        return [line.partition(",")[2] for line in result.stdout.splitlines()]

    assert complete("e") == ["evaluate", "explain"]
    assert complete("sample", "--solver", "dd") == ["ddpm", "ddim"]
