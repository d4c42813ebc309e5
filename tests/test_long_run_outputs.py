"""What is at a path before a run and when it is complete: nothing is replaced unasked, and one run writes."""

from __future__ import annotations

import fcntl
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_long_runs import CHUNK, N, Stopped, stopped_after

import diffusion_fast as df
from diffusion_fast.long_runs import run, writers


def test_nothing_is_replaced_unasked(tmp_path: Path, sampler: df.Sampler) -> None:
    path = tmp_path / "x.npy"
    path.write_bytes(b"mine")
    for options, reason in (({}, "which exists"), ({"resume": True}, "which exists without a manifest")):
        with pytest.raises(ValueError, match=f"^path: got .*{reason}"):
            df.sample_to(path, sampler, N, **options)
    assert path.read_bytes() == b"mine"
    with stopped_after(2):
        df.sample_to(path, sampler, N, chunk_size=CHUNK, overwrite=True)
    assert path.read_bytes() == b"mine"  # until there is something in its place
    path.unlink()
    with pytest.raises(ValueError, match=r"^path: got .*unfinished run; accepted: resume=True"):
        df.sample_to(path, sampler, N)


@pytest.mark.parametrize("name", ["x.npy", "rows/", "x.csv"])
def test_rows_without_their_manifest_are_kept(tmp_path: Path, sampler: df.Sampler, name: str) -> None:
    """Of a run that was stopped and of a finished one: what they are nobody knows."""
    path, manifest = f"{tmp_path}/{name}", tmp_path / f"{name.rstrip('/')}.manifest.json"
    for left in (".partial", ""):
        with nullcontext() if left == "" else stopped_after(3):
            df.sample_to(path, sampler, N, chunk_size=CHUNK, overwrite=True)
        manifest.unlink()
        rows = tmp_path / f"{name.rstrip('/')}{left}"
        with pytest.raises(
            ValueError, match=rf"^path: got .*{left} .*without a manifest; .*put back.*overwrite"
        ):
            df.sample_to(path, sampler, N, resume=True)
        assert rows.exists()


@pytest.mark.parametrize("name", ["x.npy", "rows/"])
@pytest.mark.parametrize("place", ["before", "between", "after"])
def test_a_run_stopped_in_its_first_moment_goes_on(
    tmp_path: Path, sampler: df.Sampler, monkeypatch: pytest.MonkeyPatch, name: str, place: str
) -> None:
    """Before its rows are created, in the midst of that, and before the first of them is written."""
    monkeypatch.setattr(run, "SHARD_BYTES", 3 * CHUNK * 12)
    create = writers.RowFiles.create

    def stops(self: writers.RowFiles) -> None:
        if place != "before":
            create(self)
        if place == "between":
            last = self.files()[-1][0]
            last.unlink() if self.folder else os.truncate(last, 20)
        raise Stopped

    with monkeypatch.context() as patch, pytest.raises(Stopped):
        patch.setattr(writers.RowFiles, "create", stops)
        df.sample_to(f"{tmp_path}/{name}", sampler, N, chunk_size=CHUNK)
    assert df.sample_to(f"{tmp_path}/{name}", sampler, N, resume=True).drawn == N
    assert df.verify(f"{tmp_path}/{name}").good


def test_a_folder_with_other_files_is_left_alone(tmp_path: Path, sampler: df.Sampler) -> None:
    (tmp_path / "rows").mkdir()
    df.sample_to(f"{tmp_path}/rows/", sampler, 10)  # an empty one is as good as none
    (tmp_path / "rows" / "notes.txt").write_text("mine")
    with pytest.raises(ValueError, match=r"^path: got .*'notes.txt'"):
        df.sample_to(f"{tmp_path}/rows/", sampler, 10, overwrite=True)
    assert len(list((tmp_path / "rows").iterdir())) == 2


@pytest.mark.parametrize("options", [{}, {"resume": True}, {"overwrite": True}])
def test_two_runs_do_not_write_the_same_rows(
    tmp_path: Path, sampler: df.Sampler, monkeypatch: pytest.MonkeyPatch, options: dict[str, bool]
) -> None:
    """A second one is refused from before the first has written anything. A lock is its holder's: one taken
    here refuses another that is taken here."""
    create, refused = run.Target.create, []

    def second_comes(self: run.Target, new: Any) -> None:
        if not refused:
            with pytest.raises(ValueError, match=r"^path: got .*another process is writing") as caught:
                df.sample_to(tmp_path / "x.npy", sampler, N, seed=1, **options)
            refused.append(caught.value)
        create(self, new)

    monkeypatch.setattr(run.Target, "create", second_comes)
    df.sample_to(tmp_path / "x.npy", sampler, N)
    assert refused and np.array_equal(np.load(tmp_path / "x.npy"), sampler.sample(N).numpy())
    assert {p.name for p in tmp_path.iterdir()} == {"x.npy", "x.npy.manifest.json"}


def test_a_lock_is_of_the_file_that_others_find(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its holder may take it away between the opening and the locking of another."""
    target = run.Target.of(tmp_path / "x.npy")
    flock, opened = fcntl.flock, []

    def taken_away(descriptor: int, how: int) -> None:
        if not opened:
            (tmp_path / ".x.npy.lock").unlink()
        opened.append(descriptor)
        flock(descriptor, how)

    monkeypatch.setattr(fcntl, "flock", taken_away)
    release = target.lock()
    assert len(opened) == 2
    with pytest.raises(ValueError, match="another process is writing"):
        target.lock()
    release()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["x.npy", "rows/", "x.csv"])
def test_what_is_complete_outlives_the_power(
    tmp_path: Path, sampler: df.Sampler, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """The names are on the disk before the rows lose theirs, and after."""
    plain, synced, fsync = name.rstrip("/"), [], os.fsync

    def noted(descriptor: int) -> None:
        synced.append((os.fstat(descriptor).st_ino, {p.name for p in tmp_path.iterdir() if p.name[0] != "."}))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", noted)
    df.sample_to(f"{tmp_path}/{name}", sampler, N)
    folder = tmp_path.stat().st_ino
    made = {plain} if name == "x.csv" else set()
    there = {f"{plain}.partial", f"{plain}.manifest.json"} | made
    assert [names for node, names in synced if node == folder] == [there, {plain, f"{plain}.manifest.json"}]
    if name == "rows/":
        assert (tmp_path / "rows").stat().st_ino in [node for node, _ in synced]
