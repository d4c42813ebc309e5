"""What a wrong command line gets: exit code 2, one line naming what was typed, and no file touched."""

from __future__ import annotations

import re
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from cli_bench import listing, make_bench, rewrite, run

import diffusion_fast as df


class Case(NamedTuple):
    """A command with one fault. name, given and accepted are regular expressions for the parts of
    "error: NAME: got GIVEN; accepted: ACCEPTED"."""

    argument: str
    fault: str
    command: str
    given: str
    accepted: str
    name: str = ""


TRAIN = "train --hidden 8 --n-steps 10 --epochs 1 --out new.safetensors"
SAMPLE = "sample helix.safetensors --num-samples 5 --out new.npy"
KINDS = "sample kinds.safetensors --num-samples 5 --out new.npy"
PLOT = "plot helix.safetensors --num-samples 5 --out new.png"

# fmt: off
CASES = [
    # the checkpoint
    Case("CHECKPOINT", "missing file", "sample none.safetensors --out new.npy", "'none.safetensors'",
         "existing"),
    Case("CHECKPOINT", "a folder", "sample . --out new.npy", r"'\.'", "checkpoint"),
    Case("CHECKPOINT", "empty file", "sample empty.safetensors --out new.npy", "'empty.*cannot be used",
         "written by save"),
    Case("CHECKPOINT", "a text", "explain kinds.csv", "'kinds.csv'", "checkpoint"),
    Case("CHECKPOINT", "not given", "explain", "not given", "checkpoint"),
    # the output
    Case("sample --quality", "unknown", f"{SAMPLE} --quality good", "'good'", "fast, balanced, exact"),
    Case("sample --quality", "with a solver", f"{SAMPLE} --quality fast --solver ddim", "'ddim'",
         "nothing with --quality", "--solver"),
    Case("sample --spacing", "with langevin", f"{SAMPLE} --solver langevin --spacing karras", "'karras'",
         "nothing with --solver langevin", "--spacing"),
    Case("sample --spacing", "unknown", f"{SAMPLE} --spacing even", "'even'", "leading, trailing"),
    Case("sample --out", "not given", "sample helix.safetensors", "not given", r"\.npy", "--out"),
    Case("sample --out", "exists", "sample helix.safetensors --out data.npy", "'data.npy', which exists",
         "--force"),
    Case("sample --out", "unknown suffix", "sample helix.safetensors --out new.txt", "'new.txt'",
         r"\.parquet"),
    Case("sample --out", "no suffix", "sample helix.safetensors --out new", "'new'", r"\.npy"),
    Case("sample --out", "missing folder", "sample helix.safetensors --out no/new.npy", "'no/new.npy'",
         "exists"),
    Case("sample --out", "folder is a file", "sample helix.safetensors --out data.npy/new.npy",
         "data.npy/new.npy", "exists"),
    Case("sample --out", "a folder", "sample helix.safetensors --force --out folder.npy", "no regular file",
         r"\.npy"),
    Case("sample --out", "folder that refuses", "sample helix.safetensors --out /proc/new.npy",
         "cannot be written", "can be written"),
    Case("sample --out", "name too long", f"sample helix.safetensors --out {'n' * 252}.npy",
         "cannot be written", "can be written"),
    Case("train --out", "unknown suffix", "train --epochs 1 --out new.npy", "'new.npy'", r"\.safetensors"),
    Case("train --out", "exists", "train --epochs 1 --out helix.safetensors", "which exists", "--force"),
    Case("plot --out", "unknown suffix", "plot helix.safetensors --out new.npy", "'new.npy'", r"\.png"),
    Case("plot --out", "film without --chain", "plot helix.safetensors --out new.gif", "'new.gif'", r"\.png"),
    Case("demo --out", "a file", "demo --out data.npy", "'data.npy'", "folder"),
    Case("demo --out", "below a file", "demo --out data.npy/new", "'data.npy/new'", "folder"),
    Case("demo --out", "an earlier run's", "demo --out earlier", "'earlier/loss.png', which exists",
         "--force"),
    Case("demo --out", "folder that refuses", "demo --out /proc/new/folder", "cannot be made",
         "can be written"),
    Case("sample --out", "two columns of a name", "sample twice.safetensors --out new.csv",
         "two columns named 'u'", r"\.npy"),
    Case("sample --out", "x in .npz", "sample small-x.safetensors --out new.npz", "'x', has the name",
         r"\.csv"),
    Case("sample --out", "X in .npz", "sample large-X.safetensors --out new.npz", "'X', has the name",
         r"\.csv"),
    Case("sample --out", "columns in .npz", "sample columns.safetensors --out new.npz",
         "'columns', has the name", r"\.csv"),
    # numbers
    Case("sample --num-samples", "0", f"{SAMPLE} --num-samples 0", "'0'", "from 1 to"),
    Case("sample --num-samples", "2^48 + 1", f"{SAMPLE} --num-samples 281474976710657", "281474976710657",
         "281474976710656"),
    Case("sample --num-samples", "text", f"{SAMPLE} --num-samples many", "'many'", "an integer"),
    Case("sample --seed", "-1", f"{SAMPLE} --seed -1", "'-1'", "from 0"),
    Case("sample --seed", "2^64", f"{SAMPLE} --seed 18446744073709551616", "18446744073709551616", "from 0"),
    Case("sample --steps", "0", f"{SAMPLE} --steps 0", "'0'", "from 1"),
    Case("sample --steps", "more than trained", f"{SAMPLE} --steps 11", "11", "1 to 10"),
    Case("sample --steps", "fraction", f"{SAMPLE} --steps 2.5", "'2.5'", "an integer"),
    Case("sample --threads", "0", f"{SAMPLE} --threads 0", "'0'", "1 to 4096"),
    Case("sample --threads", "5000", f"{SAMPLE} --threads 5000", "'5000'", "1 to 4096"),
    Case("sample --guidance-scale", "nan", f"{KINDS} --guidance-scale nan", "'nan'", "finite"),
    Case("train --epochs", "0", f"{TRAIN} --epochs 0", "'0'", "from 1"),
    Case("train --batch-size", "-5", f"{TRAIN} --batch-size -5", "'-5'", "from 1"),
    Case("train --lr", "0", f"{TRAIN} --lr 0", "'0'", "above 0"),
    Case("train --lr", "inf", f"{TRAIN} --lr inf", "'inf'", "above 0"),
    Case("train --ema", "1", f"{TRAIN} --ema 1", "'1'", r"\(0, 1\)"),
    Case("train --validation", "1", f"{TRAIN} --validation 1", "'1'", r"\(0, 1\)"),
    Case("train --patience", "no validation", f"{TRAIN} --patience 3", "3", "unless validation"),
    Case("train --hidden", "text", f"{TRAIN} --hidden wide", "'wide'", "128,128"),
    Case("train --hidden", "0", f"{TRAIN} --hidden 8,0", "'8,0'", "from 1"),
    Case("train --hidden", "beyond the model", f"{TRAIN} --hidden 100000", "100000", "65536",
         r"--hidden\[0\]"),
    Case("train --n-steps", "0", f"{TRAIN} --n-steps 0", "'0'", "from 1"),
    Case("train --beta-start", "2", f"{TRAIN} --schedule linear --beta-start 2", "'2'", r"\(0, 1\)"),
    Case("train --beta-end", "with cosine", f"{TRAIN} --beta-end 0.1", "0.1",
         "nothing with --schedule cosine"),
    Case("train --label-dropout", "no labels", f"{TRAIN} --label-dropout 0.1", "0.1", "unless labels"),
    # names
    Case("sample --solver", "misspelt", f"{SAMPLE} --solver ddmp", "'ddmp'", "did you mean 'ddpm'"),
    Case("sample --variance", "unknown", f"{SAMPLE} --variance gamma", "'gamma'", "beta, posterior"),
    Case("sample --variance", "with ddim", f"{SAMPLE} --variance beta --solver ddim", "'beta'",
         "nothing with --solver ddim"),
    Case("sample --device", "unknown", f"{SAMPLE} --device tpu", "'tpu'", "one of cpu, cuda"),
    Case("sample --precision", "bfloat16", f"{SAMPLE} --precision bfloat16", "'bfloat16'", "float32"),
    Case("sample --precision", "misspelt", f"{SAMPLE} --precision tabel", "'tabel'", "did you mean 'table'"),
    Case("sample --tolerance", "0", f"{SAMPLE} --precision table --tolerance 0", "'0'", r"\[1e-6, 1\]"),
    Case("sample --tolerance", "of float32", f"{SAMPLE} --tolerance 0.01", "0.01", "'table' and 'auto'"),
    Case("train --activation", "misspelt", f"{TRAIN} --activation rleu", "'rleu'", "did you mean 'relu'"),
    Case("train --schedule", "unknown", f"{TRAIN} --schedule zigzag", "'zigzag'", "cosine"),
    Case("train --time-embedding", "unknown", f"{TRAIN} --time-embedding clock", "'clock'", "sinusoidal"),
    Case("bench --net", "ends differ", "bench --net 2-8-3", "'2-8-3'", "2-128-128-2"),
    Case("bench --net", "too wide", "bench --net 2-4096-2", "4096", "2048", r"--net\[1\]"),
    # labels
    Case("sample --labels", "model without classes", f"{SAMPLE} --labels 1", "'1'", "no classes"),
    Case("sample --labels", "unknown class", f"{KINDS} --labels left,top", "'top'", "left, right"),
    Case("sample --labels", "empty", f"{KINDS} --labels ''", "''", "classes"),
    Case("sample --labels", "none with guidance", f"{KINDS} --labels none --guidance-scale 2", "None",
         "guided"),
    Case("sample --guidance-scale", "model without classes", f"{SAMPLE} --guidance-scale 2", "2.0",
         "no null class"),
    # data
    Case("train --activation", "another name", f"{TRAIN} --activation swish", "'swish'",
         "did you mean 'silu'"),
    Case("train --data", "misspelt set", f"{TRAIN} --data helix3d", "'helix3d'", "did you mean 'helix_3d'"),
    Case("train --data", "missing file", f"{TRAIN} --data no/data.csv", "'no/data.csv'", "file that exists"),
    Case("train --data", "NaN", f"{TRAIN} --data nan.npy", "'nan.npy'", "finite"),
    Case("train --data", "ragged", f"{TRAIN} --data ragged.csv", "'ragged.csv'", "fields"),
    Case("train --data", "too small", f"{TRAIN} --data small.npy", "'small.npy'", "at least 10"),
    Case("train --data", "of another kind", f"{TRAIN} --data notes.txt", "'notes.txt'", r"\.csv"),
    Case("train --data", "folder without MNIST", f"{TRAIN} --data folder.npy", "'folder.npy'", "with it"),
    Case("train --label-column", "unknown", f"{TRAIN} --data kinds.csv --label-column kidn", "'kidn'",
         "kind"),
    Case("train --label-column", "with a set", f"{TRAIN} --label-column kind", "'kind'",
         "nothing with the set"),
    Case("evaluate --data", "not given", "evaluate data.npy", "not given", "data"),
    Case("evaluate --data", "other dimension", "evaluate helix.safetensors --data moons", "2 columns",
         "3 columns"),
    Case("evaluate SAMPLES", "missing file", "evaluate none.npy --data moons", "'none.npy'", "existing"),
    Case("evaluate SAMPLES", "other dimension", "evaluate data.npy --data helix_3d", "2 columns",
         "3 columns"),
    Case("evaluate SAMPLES", "NaN", "evaluate nan.npy --data moons", "'nan.npy'", "finite"),
    Case("plot SAMPLES", "no checkpoint", "plot data.npy --chain --out new.png", "'data.npy'",
         "a checkpoint"),
    Case("plot --loss", "with --chain", f"{PLOT} --loss --chain", "--chain", "one of the two"),
    Case("evaluate --num-samples", "9", "evaluate helix.safetensors --num-samples 9", "'9'", "from 10"),
    Case("evaluate SAMPLES", "9 rows", "evaluate nine.npy --data moons", "9 rows", "at least 10"),
    Case("evaluate --data", "few held-out rows", "evaluate data.npy --data twenty.npy", "4 held-out rows",
         "at least 10"),
    # options without a use
    Case("evaluate --labels", "with a file", "evaluate data.npy --data moons --labels a,b", "'a,b'",
         "a file of samples"),
    Case("evaluate --guidance-scale", "with a file", "evaluate data.npy --data moons --guidance-scale 7", "7",
         "a file of samples"),
    Case("evaluate --solver", "with a file", "evaluate data.npy --data moons --solver ddpm", "'ddpm'",
         "a file of samples"),
    Case("evaluate --num-samples", "with a file", "evaluate data.npy --data moons --num-samples 30", "30",
         "a file of samples"),
    Case("evaluate --data-seed", "with a checkpoint", "evaluate helix.safetensors --data-seed 1", "1",
         "knows its own"),
    Case("plot --data-seed", "with a checkpoint", f"{PLOT} --data-seed 1", "1", "knows its own"),
    Case("plot --seed", "with a file", "plot data.npy --data moons --seed 1 --out new.png", "1",
         "a file of samples"),
    Case("plot --data", "with --loss", "plot helix.safetensors --loss --data moons --out new.png",
         "'moons'", "nothing with --loss"),
    Case("plot --labels", "with --loss", "plot helix.safetensors --loss --labels zzz --out new.png", "'zzz'",
         "nothing with --loss"),
    Case("plot --data", "with --chain", f"{PLOT} --chain --data moons", "'moons'", "nothing with --chain"),
    Case("plot --label-column", "with --chain", f"{PLOT} --chain --label-column q", "'q'",
         "nothing with --chain"),
    # long runs
    Case("sample --index-range", "no range", f"{SAMPLE} --index-range 5", "'5'", "A:B"),
    Case("sample --index-range", "empty", f"{SAMPLE} --index-range 5:5", "'5:5'", "A < B"),
    Case("sample --index-range", "negative", f"{SAMPLE} --index-range -1:5", "'-1:5'", "0 <= A"),
    Case("sample --index-range", "text", f"{SAMPLE} --index-range a:b", "'a:b'", "A:B"),
    Case("sample --index-range", "beyond --num-samples", f"{SAMPLE} --index-range 0:6", "0:6",
         "--num-samples, 5"),
    Case("sample --force", "with --resume", f"{SAMPLE} --force --resume", "True", "False with --resume"),
    Case("sample --out", "exists without a manifest", "sample helix.safetensors --out data.npy --resume",
         "which exists without a manifest", "--force"),
    Case("verify PATH", "not given", "verify", "not given", "output of sample"),
    Case("verify PATH", "missing", "verify none.npy", "'none.npy'", "manifest beside it"),
    Case("verify PATH", "without a manifest", "verify data.npy", "'data.npy'", "manifest beside it"),
    Case("verify PATH", "without a manifest, redrawn",
         "verify data.npy --redraw 0 --checkpoint helix.safetensors", "'data.npy'", "manifest beside it"),
    Case("verify --redraw", "text", "verify data.npy --redraw x --checkpoint helix.safetensors", "'x'",
         "all"),
    Case("verify --checkpoint", "not given", "verify data.npy --redraw all", "not given", "both"),
    Case("verify --redraw", "not given", "verify data.npy --checkpoint helix.safetensors", "not given",
         "both"),
    Case("verify --checkpoint", "missing file", "verify data.npy --redraw 0 --checkpoint no.safetensors",
         "'no.safetensors'", "existing"),
    # what other programs wrote, or is not what it was
    Case("explain CHECKPOINT", "prediction type", "explain odd.safetensors", "'noise'", "epsilon"),
    Case("plot SAMPLES", "history", "plot odd.safetensors --loss --out new.png", "without a history",
         "written by train"),
    Case("evaluate --data", "seed of the data", "evaluate odd.safetensors", "not given", "does not say"),
    Case("evaluate CHECKPOINT", "data is gone", "evaluate gone.safetensors", "gone.csv is not beside",
         "--data"),
    Case("evaluate CHECKPOINT", "data elsewhere", "evaluate elsewhere.safetensors",
         r"'/.*/kinds.csv'.*bare name", "--data"),
    Case("evaluate CHECKPOINT", "data above", "evaluate above.safetensors", r"'\.\./kinds.csv'.*bare name",
         "--data"),
    Case("evaluate CHECKPOINT", "data behind a link", "evaluate link.safetensors", "'link.csv', a link",
         "--data"),
    Case("evaluate CHECKPOINT", "data that is a folder", "evaluate dir.safetensors", "'earlier'.*no regular",
         "--data"),
    Case("plot CHECKPOINT", "data without its checksum", "plot unhashed.safetensors --out new.png",
         "'kinds.csv' without the checksum", "--data"),
    Case("plot CHECKPOINT", "data has changed", "plot changed.safetensors --out new.png",
         "changed since training", "--data"),
    # a file of settings
    Case("train --config", "missing", f"{TRAIN} --config no.toml", "'no.toml'", "existing"),
    Case("train --config", "no TOML", f"{TRAIN} --config notes.txt", "'notes.txt'", "key = value"),
    Case("train --config", "unknown key", f"{TRAIN} --config unknown.toml", "'epoch'",
         "did you mean 'epochs'"),
    Case("train epochs", "in the file", "train --config wrong.toml --out new.safetensors", "2.5",
         "an integer", "epochs in wrong.toml"),
    Case("train ema", "in the file", "train --config flag.toml --out new.safetensors", "True", r"\(0, 1\)",
         "ema in flag.toml"),
]
# fmt: on


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_bench(tmp_path_factory.mktemp("bad_cli"))
    np.save(folder / "data.npy", np.zeros((50, 2)))
    np.save(folder / "nan.npy", np.full((50, 2), np.nan))
    np.save(folder / "small.npy", np.zeros((5, 2)))
    (folder / "empty.safetensors").touch()
    (folder / "ragged.csv").write_text("a,b\n1,2\n3\n")
    (folder / "notes.txt").write_text("no table, no settings\n")
    (folder / "unknown.toml").write_text("epoch = 3\n")
    (folder / "wrong.toml").write_text("epochs = 2.5\n")
    (folder / "flag.toml").write_text("ema = true\n")
    (folder / "folder.npy").mkdir()
    (folder / "earlier").mkdir()
    (folder / "earlier" / "loss.png").touch()
    np.save(folder / "nine.npy", np.zeros((9, 2)))
    np.save(folder / "twenty.npy", np.arange(40.0).reshape(20, 2))
    kinds = df.load(folder / "kinds.safetensors").metadata["data"]
    for name, column in {"small-x": "x", "large-X": "X", "columns": "columns", "twice": "u"}.items():
        rewrite(folder, "kinds", name, data=kinds | {"label_column": column})
    rewrite(
        folder,
        "helix",
        "odd",
        data={"source": "helix_3d", "seed": "x"},
        history={"a": 1},
        prediction_type="noise",
    )
    rewrite(folder, "kinds", "gone", data=kinds | {"source": "gone.csv"})
    (folder / "link.csv").symlink_to("kinds.csv")
    rewrite(folder, "kinds", "elsewhere", data=kinds | {"source": str(folder / "kinds.csv")})
    rewrite(folder, "kinds", "above", data=kinds | {"source": "../kinds.csv"})
    rewrite(folder, "kinds", "link", data=kinds | {"source": "link.csv"})
    rewrite(folder, "kinds", "dir", data=kinds | {"source": "earlier"})
    rewrite(folder, "kinds", "unhashed", data={"source": "kinds.csv", "label_column": "kind", "seed": 0})
    rewrite(folder, "kinds", "changed", data=kinds | {"sha256": "0" * 64})
    return folder


@pytest.mark.parametrize("case", CASES, ids=[f"{case.argument}: {case.fault}" for case in CASES])
def test_bad_command_line(case: Case, folder: Path) -> None:
    before = listing(folder)
    result = run(folder, *(word.strip("'") for word in case.command.split()))
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    lines = result.stderr.splitlines()
    assert len(lines) == 1, result.stderr
    name, given, accepted = re.fullmatch(
        r"error: ([\w\-\[\]]+(?: in [\w.]+)?): (?:got )?(.*?); accepted: (.*)", lines[0]
    ).groups()  # type: ignore[union-attr]
    assert re.fullmatch(case.name or case.argument.split()[-1], name), lines[0]
    assert re.search(case.given, given), lines[0]
    assert re.search(case.accepted, accepted), lines[0]
    assert listing(folder) == before


@pytest.mark.parametrize(
    ("command", "line"),
    [
        ("smaple", "'smaple'"),
        (f"{SAMPLE} --sed 3", "'?--sed'?.*--seed"),
        (f"{SAMPLE} more", "more"),
        (f"{SAMPLE} --seed", "--seed"),
    ],
)
def test_bad_words(command: str, line: str, folder: Path) -> None:
    """What no command has: the word, and near it what there is."""
    result = run(folder, *command.split())
    assert result.exit_code == 2
    assert re.fullmatch(f"error: .*{line}.*\n", result.stderr)


def test_the_table_is_long_enough_and_without_repetition() -> None:
    pairs = {(case.argument, case.fault) for case in CASES}
    assert len(pairs) == len(CASES) >= 25
