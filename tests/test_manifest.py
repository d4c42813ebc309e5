"""Manifests, and the proof of what they say."""

from __future__ import annotations

import hashlib
import json
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import diffusion_fast as df
from diffusion_fast.long_runs import manifest as manifests
from diffusion_fast.long_runs.writers import RowFiles

N, CHUNK = 1000, 96


# ---- the manifest


def test_a_manifest_says_what_a_run_is(tmp_path: Path, sampler: df.Sampler) -> None:
    df.sample_to(
        tmp_path / "x.npy", sampler, N, seed=2**64 - 1, start=3, chunk_size=CHUNK, made_by={"by": "hand"}
    )
    known = json.loads((tmp_path / "x.npy.manifest.json").read_text())
    assert sampler.plan is not None
    assert known["run"]["plan"] == sampler.plan.hash
    assert known["run"]["seed"] == 2**64 - 1
    assert known["run"]["index range"] == [3, N + 3]
    assert known["run"]["noise version"] == 1
    assert known["made_by"] == {"by": "hand"}
    assert known["complete"]
    rows = np.load(tmp_path / "x.npy")
    digests = [hashlib.sha256(rows[at : at + CHUNK].tobytes()).hexdigest() for at in range(0, N, CHUNK)]
    assert known["done"] == {str(i): digest for i, digest in enumerate(digests)}


CHANGES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "version": (lambda m: m.update(format_version=2), "format_version"),
    "no run": (lambda m: m.pop("run"), "'run' is a required property"),
    "more": (lambda m: m.update(more=1), "'more' was unexpected"),
    "form": (lambda m: m.update(form="../x"), "form"),
    "seed": (lambda m: m["run"].update(seed=1 << 64), "seed"),
    "range": (lambda m: m["run"].update({"index range": [5, 5]}), "do not go together"),
    "range down": (lambda m: m["run"].update({"index range": [5, 1]}), "do not go together"),
    "huge range": (lambda m: m["run"].update({"index range": [0, 1 << 49]}), "index range"),
    "many chunks": (lambda m: m["run"].update({"index range": [0, 1 << 40]}), "do not go together"),
    "shape": (lambda m: m["run"].update(shape=[0]), "shape"),
    "shape beyond 64 bits": (lambda m: m["run"].update(shape=[1 << 32, 1 << 32]), "take more than"),
    "shape text": (lambda m: m["run"].update(shape="3"), "shape"),
    "dtype": (lambda m: m["run"].update(dtype="|O"), "dtype"),
    "chunk size": (lambda m: m.update(chunk_size=0), "chunk_size"),
    "chunk size a float": (lambda m: m.update(chunk_size=96.0), "96.0 is not of type 'integer'"),
    "rows a float": (lambda m: m.update(rows_per_file=float(m["rows_per_file"])), "rows_per_file: .*integer"),
    "seed a float": (lambda m: m["run"].update(seed=0.0), r"seed: 0\.0 is not of type 'integer'"),
    "seed a bool": (lambda m: m["run"].update(seed=False), "seed: False is not of type 'integer'"),
    "range of floats": (lambda m: m["run"].update({"index range": [0.0, 1000.0]}), "index range.*integer"),
    "shape a float": (lambda m: m["run"].update(shape=[3.0]), r"shape\[0\]: 3\.0 is not of type 'integer'"),
    "shards": (lambda m: m.update(rows_per_file=CHUNK + 1), "do not go together"),
    "chunk beyond": (lambda m: m["done"].update({"11": "0" * 64}), "'11' is no chunk"),
    "chunk negative": (lambda m: m["done"].update({"-1": "0" * 64}), "'-1' is no chunk"),
    "chunk twice": (lambda m: m["done"].update({"00": "0" * 64}), "'00' is no chunk"),
    "digest": (lambda m: m["done"].update({"0": "0" * 63}), "'0' is no chunk"),
    "digest a number": (lambda m: m["done"].update({"0": 1}), "'0' is no chunk"),
    "complete too early": (lambda m: m["done"].pop("3"), "complete with 10 of 11 chunks"),
    "NaN": (lambda m: m.update(chunk_size=float("nan")), "NaN is no JSON number"),
    "no columns": (lambda m: m.pop("columns"), "'columns' is a required property"),
    "columns": (lambda m: m.update(columns=["a"]), "columns"),
    "file checksum": (lambda m: m.update(file_sha256="x"), "file_sha256"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_changed_manifest_is_refused_with_the_place(tmp_path: Path, sampler: df.Sampler, name: str) -> None:
    df.sample_to(tmp_path / "x.npy", sampler, N, chunk_size=CHUNK)
    path = tmp_path / "x.npy.manifest.json"
    known = json.loads(path.read_text())
    change, reason = CHANGES[name]
    change(known)
    path.write_text(json.dumps(known))
    for call in (
        lambda: df.verify(tmp_path / "x.npy"),
        lambda: df.sample_to(tmp_path / "x.npy", sampler, N, resume=True),
    ):
        with pytest.raises(ValueError, match=f"^manifest: got '{path}', .*{reason}.*; accepted: a manifest"):
            call()


def test_what_is_written_is_read_again(
    tmp_path: Path, sampler: df.Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As many chunks as there may be, with as much of made_by as is taken."""
    last = json.dumps({manifests.MAX_CHUNKS - 1: "0" * 64})
    assert len(last) <= manifests.DONE_BYTES and manifests.MAX_CHUNKS * manifests.DONE_BYTES < 1 << 25
    monkeypatch.setattr(manifests, "MAX_CHUNKS", 1000)
    monkeypatch.setattr(manifests, "MAX_BYTES", 100_000)
    df.sample_to(tmp_path / "x.npy", sampler, 1000, chunk_size=1)
    made = manifests.load(tmp_path / "x.npy.manifest.json")
    digests, made.done, made.complete = made.done, {}, False
    room = 100_000 - 1000 * manifests.DONE_BYTES - len(replace(made, made_by={"by": ""}).to_text())
    with pytest.raises(ValueError, match=r"^made_by: got .*; accepted: at most 20000, with 1000 chunks"):
        replace(made, made_by={"by": "x" * (room + 1)}).check_savable()
    made.made_by = {"by": "x" * room}
    made.check_savable()
    made.done = digests
    made.save(tmp_path / "x.npy.manifest.json")
    assert manifests.load(tmp_path / "x.npy.manifest.json") == made


@pytest.mark.parametrize("text", ["", "{", "[" * 100_000, "[]", "null", "\x00"])
def test_other_files_are_no_manifest(tmp_path: Path, sampler: df.Sampler, text: str) -> None:
    df.sample_to(tmp_path / "x.npy", sampler, 10)
    (tmp_path / "x.npy.manifest.json").write_text(text)
    with pytest.raises(ValueError, match=r"^manifest: got .*cannot be used"):
        df.verify(tmp_path / "x.npy")


def test_a_manifest_without_end_is_not_read(
    tmp_path: Path, sampler: df.Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    df.sample_to(tmp_path / "x.npy", sampler, 10)
    monkeypatch.setattr(manifests, "MAX_BYTES", 100)
    with pytest.raises(ValueError, match=r"^manifest: got .*more than 100 bytes"):
        df.verify(tmp_path / "x.npy")


# ---- verify


def test_verify_reads_a_chunk_of_any_size_in_pieces(tmp_path: Path, sampler: df.Sampler) -> None:
    """A manifest may say that a file of 240 MB, which takes no space, is one chunk."""
    path, manifest = tmp_path / "x.npy", tmp_path / "x.npy.manifest.json"
    df.sample_to(path, sampler, 10)
    values, n = json.loads(manifest.read_text()), 20_000_000
    values["run"]["index range"] = [0, n]
    values["chunk_size"] = values["rows_per_file"] = n
    manifest.write_text(json.dumps(values))
    RowFiles(path, n, sampler.shape, n, False).create()
    tracemalloc.start()
    try:
        assert df.verify(path).faults == (f"chunk 0, rows 0 to {n - 1}, differs from its checksum",)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("name", ["x.npy", "x.csv", "x.npz", "x.parquet"])
def test_verify_sees_one_changed_bit(tmp_path: Path, sampler: df.Sampler, name: str) -> None:
    path = tmp_path / name
    df.sample_to(path, sampler, N, chunk_size=CHUNK)
    content = path.read_bytes()
    for at in (0, len(content) // 2, len(content) - 1):
        changed = bytearray(content)
        changed[at] ^= 1
        path.write_bytes(changed)
        found = df.verify(path)
        assert not found.good and len(found.faults) == 1
    path.write_bytes(content[:-1])
    assert not df.verify(path).good
    path.write_bytes(content)
    assert df.verify(path).good


def test_verify_draws_again_what_it_is_asked_to(tmp_path: Path, sampler: df.Sampler) -> None:
    path = tmp_path / "x.npy"
    df.sample_to(path, sampler, N, chunk_size=CHUNK)
    assert df.verify(path, sampler=sampler, redraw=[0, 10]).redrawn == (0, 10)
    assert df.verify(path, sampler=sampler, redraw="all").redrawn == tuple(range(11))
    # a chunk that somebody exchanged, checksum and all
    rows = np.load(path)
    rows[CHUNK : 2 * CHUNK] = rows[:CHUNK]
    np.save(path, rows)
    manifest = tmp_path / "x.npy.manifest.json"
    known = json.loads(manifest.read_text())
    known["done"]["1"] = known["done"]["0"]
    manifest.write_text(json.dumps(known))
    assert df.verify(path).good
    found = df.verify(path, sampler=sampler, redraw="all")
    assert found.different == (1,) and not found.good
