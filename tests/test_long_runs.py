"""Samples to disk: the same bytes however a run is cut, stopped and spread; manifests; verification."""

from __future__ import annotations

import errno
import hashlib
import itertools
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from samplers import N_CLASSES, SCHEDULE, make_model

import diffusion_fast as df
from diffusion_fast.long_runs import run, target, writers

N, CHUNK = 1000, 96


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def expected(path: Path, samples: torch.Tensor) -> str:
    np.save(path, samples.numpy())
    return sha256(path)


class Stopped(Exception):
    """Raised in the middle of a run."""


@contextmanager
def stopped_after(chunks: int) -> Iterator[None]:
    """A run in the block fails when so many chunks are written."""
    write, left = writers.RowFiles.write, [chunks]

    def failing(self: Any, first: int, rows: np.ndarray) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Stopped
        write(self, first, rows)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(writers.RowFiles, "write", failing)
        yield


# ---- the bytes


@pytest.mark.parametrize("n", [1, CHUNK, N])
@pytest.mark.parametrize("start", [0, 12345])
def test_a_file_is_the_array_of_sample(tmp_path: Path, sampler: df.Sampler, n: int, start: int) -> None:
    result = df.sample_to(tmp_path / "x.npy", sampler, n, seed=7, start=start, chunk_size=CHUNK)
    assert (result.path, result.n, result.drawn) == (tmp_path / "x.npy", n, n)
    assert sha256(tmp_path / "x.npy") == expected(tmp_path / "y.npy", sampler.sample(n, seed=7, start=start))
    assert {p.name for p in tmp_path.iterdir()} == {"x.npy", "x.npy.manifest.json", "y.npy"}


def test_chunks_and_threads_change_no_byte(tmp_path: Path, sampler: df.Sampler) -> None:
    for form in ("npy", "npz", "csv", "parquet"):
        found = set()
        sizes = [(None, 2), (1, 1), (7, 2), (N, 1), (10 * N, 1)] if form == "npy" else [(None, 2), (7, 1)]
        for i, (chunk_size, threads) in enumerate(sizes):
            path = tmp_path / f"{i}.{form}"
            df.sample_to(path, sampler, N, chunk_size=chunk_size, threads=threads)
            found.add(sha256(path))
        assert len(found) == 1, form


def test_a_folder_of_shards(tmp_path: Path, sampler: df.Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "SHARD_BYTES", 3 * CHUNK * sampler.shape[0] * 4 - 1)
    df.sample_to(f"{tmp_path}/rows/", sampler, N, chunk_size=CHUNK)
    shards = [np.load(path) for path in sorted((tmp_path / "rows").iterdir())]
    assert [len(shard) for shard in shards] == [288, 288, 288, 136]
    assert np.array_equal(np.concatenate(shards), sampler.sample(N).numpy())
    assert df.verify(tmp_path / "rows").good
    df.sample_to(f"{tmp_path}/rows/", sampler, 50, overwrite=True)  # takes the old shards away
    assert [len(np.load(path)) for path in (tmp_path / "rows").iterdir()] == [50]


def test_samples_of_several_axes(tmp_path: Path) -> None:
    class Grid(torch.nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return 0.1 * x

    sampler = df.Sampler(Grid().eval(), SCHEDULE, shape=(2, 3))
    for name in ("x.npy", "x.npz"):
        df.sample_to(tmp_path / name, sampler, 20, chunk_size=8)
    assert np.array_equal(np.load(tmp_path / "x.npy"), sampler.sample(20).numpy())
    assert np.array_equal(np.load(tmp_path / "x.npz")["x"], sampler.sample(20).numpy())
    with pytest.raises(ValueError, match=r"^path: got .*\(2, 3\).*accepted: \.npy"):
        df.sample_to(tmp_path / "x.csv", sampler, 20)


@pytest.mark.parametrize("suffix", ["npz", "csv", "parquet"])
def test_files_with_columns_and_classes(tmp_path: Path, conditional: df.Sampler, suffix: str) -> None:
    """Labels go round by the sample's own index, wherever a run begins."""
    names = df.Columns(["a", "b", "c"], "kind", ["p", "q", "r", "s"])
    path = tmp_path / f"x.{suffix}"
    df.sample_to(path, conditional, 100, start=5, labels=[2, 0, 1], columns=names, chunk_size=32)
    labels = np.array([2, 0, 1])[np.arange(5, 105) % 3]
    table = df.datasets.read(path, label_column="kind")
    assert table.columns == ("a", "b", "c")
    assert np.array_equal(
        table.rows.astype(np.float32), conditional.sample(100, start=5, labels=labels).numpy()
    )
    assert [table.classes[label] for label in table.labels] == ["pqrs"[label] for label in labels]
    assert df.verify(path).good
    assert {p.name for p in tmp_path.iterdir()} == {path.name, f"{path.name}.manifest.json"}


def test_one_label_and_the_null_class(tmp_path: Path, conditional: df.Sampler) -> None:
    for labels, name in ((1, "1"), (N_CLASSES, "none")):
        df.sample_to(tmp_path / "x.csv", conditional, 5, labels=labels, overwrite=True)
        table = df.datasets.read(tmp_path / "x.csv", label_column="label")
        assert table.classes == (name,)
        assert np.array_equal(table.rows.astype(np.float32), conditional.sample(5, labels=labels).numpy())


def test_several_samplers_share_a_run(tmp_path: Path, sampler: df.Sampler) -> None:
    """As with one for each device of a process."""
    again = df.Sampler(sampler.model, SCHEDULE, backend="native")
    df.sample_to(tmp_path / "x.npy", [sampler, again], N, chunk_size=16, threads=1)
    assert np.array_equal(np.load(tmp_path / "x.npy"), sampler.sample(N).numpy())


@pytest.mark.alone
@pytest.mark.parametrize("backend", ["native", "torch"])
def test_a_signal_stops_the_chunks_of_all_threads(tmp_path: Path, backend: str) -> None:
    """Chunks of many seconds; the signal comes to the main thread, in its own."""
    samplers = [df.Sampler(make_model(hidden=(256, 256)), SCHEDULE, backend=backend) for _ in range(3)]
    n, chunk_size = 6_000_000, 1_000_000  # of 3e12 multiply-adds each
    seconds: list[float] = []
    while len(seconds) < 3 and min(seconds, default=9.0) >= 0.5:  # a busy machine may delay any of them
        sent: list[float] = []

        def send(sent: list[float] = sent) -> None:
            sent.append(time.perf_counter())
            os.kill(os.getpid(), signal.SIGINT)

        timer = threading.Timer(0.4, send)
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            df.sample_to(tmp_path / "x.npy", samplers, n, chunk_size=chunk_size, threads=1, overwrite=True)
        seconds.append(time.perf_counter() - sent[0])
        timer.join()
    assert min(seconds) < 0.5
    found = df.verify(tmp_path / "x.npy")
    assert (found.chunks, found.done, found.faults) == (6, 0, ())


def test_what_one_thread_raises_stops_the_others(
    tmp_path: Path, sampler: df.Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    again, sample = df.Sampler(sampler.model, SCHEDULE), df.Sampler.sample

    def failing(self: df.Sampler, *given: Any, **options: Any) -> Any:
        if self is again:
            raise Stopped("in a thread")
        return sample(self, *given, **options)

    monkeypatch.setattr(df.Sampler, "sample", failing)
    began = time.perf_counter()
    with pytest.raises(Stopped, match="in a thread"):
        df.sample_to(tmp_path / "x.npy", [sampler, again], 40_000_000, chunk_size=20_000_000, threads=1)
    assert time.perf_counter() - began < 5  # where a chunk takes a minute


def test_ranges_join_to_the_whole(tmp_path: Path, sampler: df.Sampler) -> None:
    cuts = [0, 1, 500, 990, N]
    for i, (a, b) in enumerate(itertools.pairwise(cuts)):
        df.sample_to(tmp_path / f"{i}.npy", sampler, b - a, start=a)
    parts = [np.load(tmp_path / f"{i}.npy") for i in range(len(cuts) - 1)]
    assert np.array_equal(np.concatenate(parts), sampler.sample(N).numpy())


# ---- stopped and resumed


@pytest.mark.parametrize("name", ["x.npy", "rows/", "x.csv", "x.npz", "x.parquet"])
@pytest.mark.parametrize("chunks", [0, 1, 5])
def test_a_stopped_run_goes_on(tmp_path: Path, sampler: df.Sampler, name: str, chunks: int) -> None:
    with stopped_after(chunks):
        df.sample_to(f"{tmp_path}/{name}", sampler, N, chunk_size=CHUNK)
    assert not (tmp_path / name).exists()
    half = df.verify(f"{tmp_path}/{name}")
    assert (half.done, half.faults, half.good) == (chunks, (), False)
    result = df.sample_to(f"{tmp_path}/{name}", sampler, N, resume=True)
    assert result.drawn == N - chunks * CHUNK
    assert df.verify(f"{tmp_path}/{name}").good
    rows = np.load(tmp_path / "rows" / "000000.npy") if name == "rows/" else None
    rows = df.datasets.read(tmp_path / name).rows.astype(np.float32) if rows is None else rows
    assert np.array_equal(rows, sampler.sample(N).numpy())


def test_resume_begins_on_a_fresh_path_and_leaves_a_complete_one(tmp_path: Path, sampler: df.Sampler) -> None:
    path = tmp_path / "x.npy"
    assert df.sample_to(path, sampler, N, resume=True).drawn == N
    before = path.stat()
    assert df.sample_to(path, sampler, N, resume=True).drawn == 0
    assert path.stat().st_mtime_ns == before.st_mtime_ns
    path.unlink()
    assert df.sample_to(path, sampler, N, resume=True).drawn == N


@pytest.mark.parametrize("form", ["csv", "npz", "parquet"])
@pytest.mark.parametrize("left", [None, b""])
def test_rows_are_kept_until_the_file_made_of_them_is_whole(
    tmp_path: Path, sampler: df.Sampler, form: str, left: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stopped between the manifest's last save and the unlinking of the rows, and the file then lost."""
    path = tmp_path / f"x.{form}"

    def stops(self: object) -> None:
        raise OSError(errno.EIO, "stopped")

    with monkeypatch.context() as patch:
        patch.setattr(run.Target, "publish", stops)
        with pytest.raises(OSError, match="stopped"):
            df.sample_to(path, sampler, N)
    whole = path.read_bytes()
    path.unlink() if left is None else path.write_bytes(left)
    assert df.sample_to(path, sampler, N, resume=True).drawn == 0
    assert path.read_bytes() == whole and df.verify(path).good
    assert sorted(p.name for p in tmp_path.iterdir()) == [path.name, f"{path.name}.manifest.json"]


def test_every_moment_between_the_last_write_and_the_name(tmp_path: Path, sampler: df.Sampler) -> None:
    """Killed after the manifest says complete, the output still gets its name."""
    path, partial = tmp_path / "x.npy", tmp_path / "x.npy.partial"
    df.sample_to(path, sampler, N)
    path.rename(partial)
    assert df.verify(path).good
    assert df.sample_to(path, sampler, N, resume=True).drawn == 0
    assert path.exists() and not partial.exists()


@pytest.mark.parametrize("name", ["x.npy", "x.csv", "x.parquet"])
def test_a_complete_output_that_is_damaged_is_no_success(
    tmp_path: Path, sampler: df.Sampler, name: str
) -> None:
    path = tmp_path / name
    df.sample_to(path, sampler, N, chunk_size=CHUNK)
    content = path.read_bytes()
    for damaged in (content[:-1], content[:-9] + bytes([content[-9] ^ 1]) + content[-8:]):
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match=r"^path: got .*complete and damaged: .*; accepted: overwrite"):
            df.sample_to(path, sampler, N, resume=True)
        assert path.read_bytes() == damaged
    path.write_bytes(content)
    assert df.sample_to(path, sampler, N, resume=True).drawn == 0


# ---- faults of the disk


@pytest.mark.parametrize("code", ["ENOSPC", "EROFS", "EIO"])
@pytest.mark.parametrize("name", ["x.npy", "x.csv"])
def test_a_failing_disk_leaves_a_run_that_goes_on(
    tmp_path: Path, sampler: df.Sampler, monkeypatch: pytest.MonkeyPatch, code: str, name: str
) -> None:

    number = getattr(errno, code)
    write, left = os.pwrite, [30]

    def failing(descriptor: int, data: Any, at: int) -> int:
        left[0] -= 1
        if left[0] < 0:
            raise OSError(number, os.strerror(number))
        return write(descriptor, data[: len(data) // 2 + 1], at)  # as a disk may that is nearly full

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", failing)
        with pytest.raises(OSError, match=os.strerror(number)) as caught:
            df.sample_to(tmp_path / name, sampler, N, chunk_size=CHUNK)
    assert caught.value.filename == str(tmp_path / f"{name}.partial")
    assert df.sample_to(tmp_path / name, sampler, N, resume=True).drawn < N
    assert df.verify(tmp_path / name).good


def test_a_vanished_folder_is_an_error_of_the_disk(
    tmp_path: Path, sampler: df.Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "gone"
    folder.mkdir()
    write = writers.RowFiles.write

    def vanish(self: Any, first: int, rows: np.ndarray) -> None:
        if first:
            folder.rename(tmp_path / "elsewhere")
        write(self, first, rows)

    monkeypatch.setattr(writers.RowFiles, "write", vanish)
    with pytest.raises(FileNotFoundError):
        df.sample_to(folder / "x.npy", sampler, N, chunk_size=CHUNK)


def test_no_space_is_noticed_before_the_first_sample(tmp_path: Path, sampler: df.Sampler) -> None:
    with pytest.raises(ValueError, match=r"^path: got .*takes [\d,]+ bytes where [\d,]+ are free"):
        df.sample_to(tmp_path / "x.npy", sampler, 1 << 46)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x.npy", "x.csv", "rows/"])
def test_old_rows_are_space_for_new_ones(
    tmp_path: Path, sampler: df.Sampler, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    n = 4000  # 48,000 bytes
    with stopped_after(9):
        df.sample_to(f"{tmp_path}/{name}", sampler, n, chunk_size=400)
    monkeypatch.setattr(target.shutil, "disk_usage", lambda _: SimpleNamespace(free=33_000))
    with pytest.raises(ValueError, match=r"^path: got .*takes [\d,]+ bytes where 33,000 are free"):
        df.sample_to(f"{tmp_path}/new-{name}", sampler, n)
    assert df.sample_to(f"{tmp_path}/{name}", sampler, n, overwrite=True).drawn == n


def test_files_with_columns_need_space_beside_their_rows(
    tmp_path: Path, sampler: df.Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    for form, needed in (("npy", 12_000), ("csv", 18_000), ("npz", 24_000), ("parquet", 24_000)):
        monkeypatch.setattr(target.shutil, "disk_usage", lambda _, free=needed: SimpleNamespace(free=free))
        df.sample_to(tmp_path / f"x.{form}", sampler, 1000)
        with pytest.raises(
            ValueError, match=f"takes {needed + needed // 1000:,} bytes where {needed:,} are free"
        ):
            df.sample_to(tmp_path / f"y.{form}", sampler, 1001)


@pytest.mark.skipif(sys.platform != "linux", reason="memory is read from /proc")
def test_memory_does_not_grow_with_the_run(tmp_path: Path) -> None:
    """400 MB of samples through a few megabytes; a write through a memory map would count every page."""
    sampler = df.Sampler(make_model(dim=128, hidden=(4,)), SCHEDULE, steps=1, solver="ddim")

    def peak() -> int:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))

    df.sample_to(tmp_path / "x.npy", sampler, 20_000)
    before = peak()
    df.sample_to(tmp_path / "x.npy", sampler, 800_000, overwrite=True)
    assert peak() - before < 40_000
