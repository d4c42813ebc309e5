"""verify with redraw: what is drawn again is compared with the rows that the files have."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_long_runs import stopped_after

import diffusion_fast as df
from diffusion_fast.long_runs.formats import READERS, WRITERS, Columns, Labels, Table

N, CHUNK = 60, 8


def with_digest_of_now(path: Path) -> None:
    """The manifest with the checksum of the file as it is now: so that only its rows can tell."""
    manifest = path.with_name(f"{path.name}.manifest.json")
    values = json.loads(manifest.read_text())
    values["file_sha256"] = hashlib.sha256(path.read_bytes()).hexdigest()
    manifest.write_text(json.dumps(values))


def spoil_csv(path: Path, row: int) -> None:
    lines = path.read_text().split("\n")
    numbers = lines[row + 1].split(",")
    numbers[2] = f"{np.nextafter(np.float32(numbers[2]), np.float32(9)):.9g}"
    lines[row + 1] = ",".join(numbers)
    path.write_text("\n".join(lines))


def spoil_npz(path: Path, row: int) -> None:
    arrays = dict(np.load(path))
    arrays["x"].view("u4")[row, 2] ^= 1
    np.savez(path, **arrays)


def spoil_parquet(path: Path, row: int) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    column = table.column(2).to_numpy().copy()
    column.view("u4")[row] ^= 1
    table = table.set_column(2, table.column_names[2], pa.array(column))
    pq.write_table(table, path, row_group_size=7)  # a chunk lies in two or three


SPOIL: dict[str, Callable[[Path, int], None]] = {
    "csv": spoil_csv,
    "npz": spoil_npz,
    "parquet": spoil_parquet,
}


@pytest.mark.parametrize("form", SPOIL)
def test_the_rows_of_the_file_are_compared(tmp_path: Path, conditional: df.Sampler, form: str) -> None:
    path = tmp_path / f"x.{form}"
    columns = Columns(["a", "b,", "c"], "k", ['"', "1,", " ", "é"])
    how: dict[str, Any] = {"labels": list(range(4))}
    df.sample_to(path, conditional, N, seed=3, chunk_size=CHUNK, columns=columns, **how)
    how["sampler"] = conditional
    found = df.verify(path, redraw="all", **how)
    assert found.good and found.redrawn == tuple(range(8))
    SPOIL[form](path, 3 * CHUNK)
    with_digest_of_now(path)
    found = df.verify(path, redraw="all", **how)
    assert (found.faults, found.different) == ((), (3,))
    assert df.verify(path, redraw=[4, 2], **how).good  # beside it
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found = df.verify(path, redraw=[7, 0], **how)
    assert 7 in found.different and found.faults


@pytest.mark.parametrize("name", ["x.npy", "x.csv"])
def test_chunks_that_are_not_written_are_unfinished(tmp_path: Path, sampler: df.Sampler, name: str) -> None:
    with stopped_after(2):
        df.sample_to(tmp_path / name, sampler, N, chunk_size=CHUNK)
    found = df.verify(tmp_path / name, sampler=sampler, redraw=[0, 1, 7])
    assert (found.redrawn, found.different, found.unfinished) == ((0, 1), (), (7,))
    assert not found.good and not found.faults


@pytest.mark.parametrize("form", SPOIL)
def test_a_file_that_is_gone_is_named(tmp_path: Path, sampler: df.Sampler, form: str) -> None:
    path = tmp_path / f"x.{form}"
    df.sample_to(path, sampler, N)
    path.unlink()
    found = df.verify(path, sampler=sampler, redraw="all")
    assert found.faults == (f"{path}: No such file or directory",)
    assert found.different == found.redrawn == (0,)


def test_without_pyarrow_good_rows_are_not_accused(
    tmp_path: Path, sampler: df.Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "x.parquet"
    df.sample_to(path, sampler, N)
    for name in [name for name in sys.modules if name.split(".")[0] == "pyarrow"]:
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ValueError, match=r"^path: got .*needs pyarrow; accepted: .*pip install"):
        df.verify(path, sampler=sampler, redraw="all")
    assert df.verify(path).good


def test_no_memory_is_no_damage(tmp_path: Path, sampler: df.Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    def reads(*given: Any) -> Any:
        raise MemoryError("no memory for it")

    df.sample_to(tmp_path / "x.csv", sampler, N)
    monkeypatch.setitem(READERS, "csv", reads)
    with pytest.raises(MemoryError, match="no memory for it"):
        df.verify(tmp_path / "x.csv", sampler=sampler, redraw="all")


@pytest.mark.parametrize("form", SPOIL)
def test_no_damage_is_an_error_of_its_reader(tmp_path: Path, sampler: df.Sampler, form: str) -> None:
    path = tmp_path / f"x.{form}"
    df.sample_to(path, sampler, N, chunk_size=CHUNK)
    content, rng = path.read_bytes(), np.random.default_rng(0)
    for _ in range(40):
        spoilt = bytearray(content)
        at, count = rng.integers(len(content)), int(rng.integers(1, 9))
        spoilt[at : at + count] = rng.bytes(count) if rng.random() < 0.7 else b""
        path.write_bytes(spoilt)
        found = df.verify(path, sampler=sampler, redraw="all")
        assert found.faults or spoilt == content
    path.write_bytes(b"")
    assert df.verify(path, sampler=sampler, redraw="all").different == tuple(range(8))


def test_columns_of_another_type_differ(tmp_path: Path, sampler: df.Sampler) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = tmp_path / "x.parquet"
    df.sample_to(path, sampler, N)
    rows = pq.read_table(path)
    pq.write_table(rows.cast(pa.schema([(name, pa.float64()) for name in rows.column_names])), path)
    assert df.verify(path, sampler=sampler, redraw="all").different == (0,)


@pytest.mark.parametrize("form", SPOIL)
def test_every_float32_survives(tmp_path: Path, form: str) -> None:
    """Also the zeros with their signs, the subnormal and the infinite."""
    rng = np.random.default_rng(0)
    rows = rng.integers(0, 1 << 32, (5000, 2), dtype=np.uint32).view("<f4")
    rows[:4] = [[0.0, -0.0], [np.inf, -np.inf], [1e-45, -1e-45], [np.finfo("f4").max, np.nan]]
    path = tmp_path / f"x.{form}"
    blocks = [rows[:4000], rows[4000:]]
    WRITERS[form](path, Table(blocks, len(rows), (2,), Columns(["a", "b"]), None, 0))
    ranges = [(0, 100), (100, 3999), (4500, 500)]
    for (first, count), read in zip(ranges, READERS[form](path, (2,), ranges), strict=True):
        wanted = rows[first : first + count]
        number = ~np.isnan(wanted)
        assert np.array_equal(wanted.view("u4")[number], read.copy().view("u4")[number])
        assert np.array_equal(np.isnan(read), ~number)


# ---- writing such files


def test_row_groups_are_large_and_a_matter_of_the_rows_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import pyarrow.parquet as pq

    from diffusion_fast.long_runs import formats

    rows = np.arange(1 << 21, dtype="<f4").reshape(-1, 8)  # 8 MB
    monkeypatch.setattr(formats, "GROUP_BYTES", 3 << 20)
    columns = Columns([f"column {i}" for i in range(8)], "class", ["p", "q"])
    labels = Labels(np.array([0, 2, 1]))
    # the last: groups of many columns are larger, so that the file has fewer
    for of_column, blocks, expected in (
        (1 << 16, 32, [98304, 98304, 65536]),
        (1 << 16, 1, [98304, 98304, 65536]),
        (1 << 19, 7, [131072, 131072]),
    ):
        monkeypatch.setattr(formats, "COLUMN_BYTES", of_column)
        path = tmp_path / f"{of_column}-{blocks}.parquet"
        table = Table(np.array_split(rows, blocks), len(rows), (8,), columns, labels, 5)
        WRITERS["parquet"](path, table)
        with pq.ParquetFile(path) as file:
            sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            written = file.read()
        assert sizes == expected
        assert np.array_equal(np.stack([written.column(i).to_numpy() for i in range(8)], axis=1), rows)
        names = np.array(["p", "none", "q"])[np.arange(5, 5 + len(rows)) % 3]
        assert np.array_equal(written.column(8).to_numpy().astype(str), names)


@pytest.mark.parametrize("form", SPOIL)
def test_a_full_disk_names_the_file(tmp_path: Path, form: str) -> None:
    """A limit on the size of files stands for it."""
    import errno
    import resource

    rows = np.random.default_rng(0).standard_normal((100_000, 2)).astype("<f4")
    path = tmp_path / f"x.{form}"
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        with pytest.raises(OSError, match=str(path)) as caught:
            WRITERS[form](path, Table([rows], len(rows), (2,), Columns(["a", "b"]), None, 0))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert (caught.value.errno, caught.value.filename) == (errno.EFBIG, str(path))
