"""Bytes that nobody meant: plans, step tables, data files, checkpoints and manifests, spoilt at random.

Each is refused with a ValueError (a TypeError for tables), or gives what is valid; nothing else, nothing read
or written out of bounds. A few hundred examples run for each change; `make fuzz` goes on for as long as
DIFFUSION_FAST_FUZZ_SECONDS says, and `make sanitize` has the core check its own addresses meanwhile.
"""

from __future__ import annotations

import functools
import json
import os
import struct
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from graphs import random_graph_plan
from hypothesis import strategies as st
from nets import random_plan, random_table, statistical_plan
from samplers import SCHEDULE, make_model

import diffusion_fast as df
from diffusion_fast import _cpu
from diffusion_fast.plan import HEADER, Plan
from diffusion_fast.solvers.table import ROW_DTYPE, StepTable

SECONDS = float(os.environ.get("DIFFUSION_FAST_FUZZ_SECONDS", "60"))
GUARD = np.float32(-12345)
# what fields of files are most often wrong by
WORDS = [0, 1, 2, 3, 4, 255, 256, 2047, 2048, 2049, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1]
FLOATS = [
    struct.unpack("<I", struct.pack("<f", value))[0] for value in (0.5, -1.0, 1e30, np.inf, -np.inf, np.nan)
]

# (where, 0 to 1; what is done there; a value)
EDITS = st.lists(
    st.tuples(
        st.floats(0, 1, exclude_max=True),
        st.sampled_from(["bit", "byte", "word", "long", "cut", "double", "insert", "swap"]),
        st.one_of(st.sampled_from(WORDS + FLOATS), st.integers(0, (1 << 32) - 1)),
    ),
    min_size=1,
    max_size=6,
)


def spoil(data: bytes, edits: list[tuple[float, str, int]], head: int = 0) -> bytes:
    """Edits that fall below `head`, where it is given, as often as anywhere."""
    for i, (where, kind, value) in enumerate(edits):
        at = int(where * (head if head and i % 2 == 0 else len(data)))
        word = at // 4 * 4
        if kind == "bit":
            data = data[:at] + bytes([data[at] ^ 1 << value % 8]) + data[at + 1 :] if at < len(data) else data
        elif kind == "byte":
            data = data[:at] + bytes([value % 256]) + data[at + 1 :]
        elif kind == "word":
            data = data[:word] + struct.pack("<I", value) + data[word + 4 :]
        elif kind == "long":
            data = data[:word] + struct.pack("<Q", value << 20) + data[word + 8 :]
        elif kind == "cut":
            data = data[:at] + data[at + value % 64 :]
        elif kind == "double":
            data = data[:at] + data[at : at + value % 128] + data[at:]
        elif kind == "insert":
            data = data[:at] + struct.pack("<I", value) + data[at:]
        else:
            other = value % max(len(data), 1) // 4 * 4
            a, b = sorted((word, other))
            if b - a >= 4:
                data = data[:a] + data[b : b + 4] + data[a + 4 : b] + data[a : a + 4] + data[b + 4 :]
    return data


@functools.cache
def plans() -> list[bytes]:
    made = [
        random_plan(1),
        random_plan(2, 2, (4,), n_rows=2, n_classes=3, branches=2),
        statistical_plan(4, 3),
    ]
    made += [random_graph_plan(seed, 3, 10, n_rows=3, n_classes=2 * (seed % 2)) for seed in range(12)]
    return [plan.to_bytes() for plan in made]


def check_plan(which: int, edits: list[tuple[float, str, int]]) -> None:
    """Python and C++ agree on what a plan is, and what is one runs inside its own memory."""
    good = plans()[which % len(plans())]
    data = spoil(good, edits, head=HEADER.size + 600)
    try:
        plan = Plan.from_bytes(data)
    except ValueError:
        with pytest.raises(ValueError):
            _cpu.Program(data)
        return
    program = _cpu.Program(data)
    n = 5
    if len(plan.rows) * max(program.work_per_step, 1) > 1 << 22:
        return  # valid, and too long a chain to wait for
    out = np.full((n + 2, plan.dim), GUARD)
    context = np.zeros(max(plan.n_context, 1), np.float32)
    address = context.ctypes.data if plan.n_context else 0
    program.run(out[1:].ctypes.data, n, 0, 0, 2, context=address)
    assert (out[0] == GUARD).all() and (out[-1] == GUARD).all()


def check_table(which: int, edits: list[tuple[float, str, int]]) -> None:
    table = random_table(which, 4)
    data = spoil(table.rows.tobytes(), edits)
    rows = np.frombuffer(data[: len(data) // ROW_DTYPE.itemsize * ROW_DTYPE.itemsize], ROW_DTYPE)
    times = np.arange(len(rows))
    try:
        made = StepTable(rows, times, table.table_timesteps, "random")
    except (ValueError, TypeError) as error:
        assert "accepted" in str(error)
        return
    assert all(np.isfinite(made.rows[name]).all() for name in ("a", "b", "e", "s", "p_x", "p_F", "c_in"))


@functools.cache
def data_files(folder: Path) -> list[tuple[str, bytes]]:
    rows = np.arange(24, dtype=np.float32).reshape(8, 3)
    np.save(folder / "x.npy", rows)
    np.savez(folder / "x.npz", x=rows, columns=np.array(["a", "b", "c"]))
    np.savetxt(folder / "x.csv", rows, delimiter=",", header="a,b,c", comments="")
    import pyarrow as pa
    import pyarrow.parquet as pq

    pq.write_table(pa.table({name: rows[:, i] for i, name in enumerate("abc")}), folder / "x.parquet")
    names = ("x.npy", "x.npz", "x.csv", "x.parquet")
    return [(Path(name).suffix, (folder / name).read_bytes()) for name in names]


def check_data_file(folder: Path, which: int, edits: list[tuple[float, str, int]]) -> None:
    files = data_files(folder)
    suffix, content = files[which % len(files)]
    path = folder / f"spoilt{suffix}"
    path.write_bytes(spoil(content, edits))
    try:
        table = df.datasets.read(path)
    except ValueError as error:
        assert str(error).startswith("path: got")
        return
    assert table.rows.ndim == 2 and np.isfinite(table.rows).all()


@functools.cache
def checkpoint(folder: Path) -> bytes:
    path = folder / "good.safetensors"
    df.save(path, make_model(2), SCHEDULE, df.Standardiser([0.0] * 3, [2.0] * 3), metadata={"a": [1, "x"]})
    return path.read_bytes()


def check_checkpoint(folder: Path, which: int, edits: list[tuple[float, str, int]]) -> None:
    content = checkpoint(folder)
    path = folder / "spoilt.safetensors"
    path.write_bytes(spoil(content, edits, head=8 + struct.unpack("<Q", content[:8])[0]))
    try:
        back = df.load(path)
    except ValueError as error:
        assert str(error).startswith("path: got")
        return
    assert all(bool(torch.isfinite(p).all()) for p in back.model.parameters())
    assert back.sampler().sample(2).shape == (2, 3)


@functools.cache
def output(folder: Path) -> tuple[df.Sampler, dict[str, bytes], bytes, bytes]:
    """A sampler; a run of it of which a chunk is missing; the manifest and the rows of the whole."""
    sampler = df.Sampler(make_model(), SCHEDULE)
    df.sample_to(folder / "x.npy", sampler, 100, chunk_size=30)
    rows = (folder / "x.npy").read_bytes()
    manifest = folder / "x.npy.manifest.json"
    values = json.loads(manifest.read_bytes())
    values["complete"] = False
    del values["done"]["2"]
    header = len(rows) - 4 * 3 * 100
    partial = bytearray(rows)
    partial[header + 4 * 3 * 60 : header + 4 * 3 * 90] = bytes(4 * 3 * 30)
    begun = {"x.npy.partial": bytes(partial), manifest.name: json.dumps(values).encode()}
    return sampler, begun, manifest.read_bytes(), rows


def check_manifest(folder: Path, which: int, edits: list[tuple[float, str, int]]) -> None:
    """Whatever it says: what is there stays as it was, or becomes the rows of the run."""
    sampler, begun, complete, expected = output(folder)
    rows = folder / "x.npy"
    manifest = folder / "x.npy.manifest.json"
    for path in folder.iterdir():
        path.unlink()
    if which % 2:
        files, left = {rows.name: expected, manifest.name: complete}, rows
    else:
        files, left = begun, folder / "x.npy.partial"
    for name, content in files.items():
        (folder / name).write_bytes(content)
    manifest.write_bytes(spoil(files[manifest.name], edits))
    try:
        assert df.verify(rows).n >= 1
    except ValueError as error:
        assert str(error).startswith("manifest: got")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of chunks that are drawn again
            df.sample_to(rows, sampler, 100, chunk_size=30, resume=True)
    except ValueError as error:
        assert str(error).startswith(("manifest: got", "resume: got", "path: got")), error
        assert left.read_bytes() == files[left.name]
        return
    assert rows.read_bytes() == expected


CHECKS: dict[str, Callable[..., None]] = {
    "plan": check_plan,
    "table": check_table,
    "data file": check_data_file,
    "checkpoint": check_checkpoint,
    "manifest": check_manifest,
}
EXAMPLES = {"plan": 200, "table": 100, "data file": 60, "checkpoint": 60, "manifest": 50}


def examples(name: str, above: Path, count: int, **settings: object) -> Callable[[], None]:
    folder = above / name
    folder.mkdir(exist_ok=True)  # of its own: two of them write an x.npy
    check = CHECKS[name] if name in ("plan", "table") else functools.partial(CHECKS[name], folder)
    checks = list(hypothesis.HealthCheck)
    options = hypothesis.settings(max_examples=count, suppress_health_check=checks, **settings)  # type: ignore[arg-type]

    @options
    @hypothesis.given(which=st.integers(0, 1000), edits=EDITS)
    def each(which: int, edits: list[tuple[float, str, int]]) -> None:
        check(which=which, edits=edits)

    return each


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # of samples that overflow
@pytest.mark.parametrize("name", CHECKS)
def test_spoilt_bytes(name: str, tmp_path: Path) -> None:
    examples(name, tmp_path, EXAMPLES[name])()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_spoilt_bytes_for_long(tmp_path: Path) -> None:
    """Other examples in every round; the round is the seed, and is told when it fails."""
    until, round = time.monotonic() + SECONDS, int(time.time())
    while time.monotonic() < until:
        for name in CHECKS:
            if time.monotonic() > until:
                break
            each = examples(name, tmp_path, EXAMPLES[name], derandomize=False)
            hypothesis.seed(round)(each)()
        round += 1
