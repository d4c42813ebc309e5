"""The manifest beside a run's output: what the run is, and which chunks of it are done, with their checksums.

One JSON file, PATH.manifest.json, replaced atomically: a reader, or a program killed at any moment, finds the
old one or the new one. It holds no path: files have the names that writers.py gives them.
"""

from __future__ import annotations

import json
import os
import re
from dataclasses import dataclass, field
from math import prod
from pathlib import Path
from typing import Any

from diffusion_fast import _schema
from diffusion_fast._checks import MAX_SAMPLES
from diffusion_fast._files import naming_file, replacing, sync_folder

FORMAT_VERSION = 1
FORMS = ("npy", "folder", "npz", "csv", "parquet")
MAX_BYTES = 1 << 25  # of a manifest: room for MAX_CHUNKS checksums, and twelve megabytes
MAX_DATA_BYTES = 1 << 60  # below what a 64-bit size wraps at, and above any disk
MAX_CHUNKS = 1 << 18
DONE_BYTES = 80  # at most, of a chunk's number and checksum
_DIGEST = re.compile("[0-9a-f]{64}")
_NUMBER = re.compile("0|[1-9][0-9]{0,8}")

_TEXT = {"type": "string", "maxLength": 200}
_TEXT_OR_NULL = {"type": ["string", "null"], "maxLength": 200}
_COUNT = {"type": "integer", "minimum": 0, "maximum": MAX_SAMPLES}
_SIZE = _COUNT | {"minimum": 1}
SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": [
        "format_version",
        "run",
        "form",
        "columns",
        "chunk_size",
        "rows_per_file",
        "complete",
        "done",
    ],
    "additionalProperties": False,
    "properties": {
        "format_version": {"const": FORMAT_VERSION},
        "form": {"enum": list(FORMS)},
        "columns": _TEXT_OR_NULL,
        "chunk_size": _SIZE,
        "rows_per_file": _SIZE,
        "complete": {"type": "boolean"},
        "file_sha256": {"type": ["string", "null"], "pattern": "^[0-9a-f]{64}$"},
        "made_by": {"type": "object"},
        "job": _TEXT_OR_NULL,
        "done": {"type": "object", "maxProperties": MAX_CHUNKS},
        "run": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "noise version": {"type": "integer"},
                "seed": {"type": "integer", "minimum": 0, "maximum": (1 << 64) - 1},
                "index range": {"type": "array", "items": _COUNT, "minItems": 2, "maxItems": 2},
                "shape": {"type": "array", "items": _SIZE, "minItems": 1, "maxItems": 16},
                "dtype": {"const": "<f4"},
                "solver": _TEXT,
                "time input": _TEXT,
                "model": _TEXT,
                "standardiser": _TEXT_OR_NULL,
                "conditions": _TEXT,
                "null context": _TEXT_OR_NULL,
                "labels": _TEXT_OR_NULL,
                "context": _TEXT_OR_NULL,
                "precision": _TEXT,
                "device": _TEXT,
                "torch": _TEXT_OR_NULL,
                "plan": _TEXT_OR_NULL,
            },
        },
    },
}
SCHEMA["properties"]["run"]["required"] = list(SCHEMA["properties"]["run"]["properties"])


@dataclass
class Manifest:
    """run: what the samples are a function of, by the names that errors use. form: of the output, of FORMS.
    columns: SHA-256 of the names in it, where it has any. chunk_size: samples. rows_per_file: of a folder's
    shards. done: SHA-256 of the float32 bytes of each chunk that is written. complete: all are, and lie on
    the disk. file_sha256: of an output that is no array. made_by: how the command made its sampler. job: that
    began it, where ranks did."""

    run: dict[str, Any]
    form: str
    columns: str | None
    chunk_size: int
    rows_per_file: int
    complete: bool = False
    file_sha256: str | None = None
    made_by: dict[str, Any] = field(default_factory=dict)
    job: str | None = None
    done: dict[int, str] = field(default_factory=dict)

    @property
    def n(self) -> int:
        first, end = self.run["index range"]
        return end - first

    @property
    def n_chunks(self) -> int:
        return -(-self.n // self.chunk_size)

    @property
    def samples_done(self) -> int:
        return sum(self.size_of(chunk) for chunk in self.done)

    def size_of(self, chunk: int) -> int:
        return min(self.chunk_size, self.n - chunk * self.chunk_size)

    def check_same(self, argument: str, run: dict[str, Any], accepted: str) -> None:
        """A ValueError of the argument with the first name under which another run, with its form and columns
        where they matter, differs."""
        known = self.run | {"form": self.form, "list of column names": self.columns}
        for name, given in run.items():
            if given != known[name]:
                raise ValueError(
                    f"{argument}: got another {name}, {given}; accepted: {known[name]}, {accepted}"
                )

    def to_text(self) -> str:
        values = vars(self) | {"format_version": FORMAT_VERSION}  # asdict copies: five times as long
        return json.dumps(values)  # three times as fast as json.dump

    def check_savable(self) -> None:
        """That `load` will take it, with all chunks done: ValueError for what was given to make it else."""
        text = self.to_text()
        most = MAX_BYTES - self.n_chunks * DONE_BYTES
        if len(text) > most:
            given = f"values that make a manifest of {len(text)} bytes"
            raise ValueError(f"made_by: got {given}; accepted: at most {most}, with {self.n_chunks} chunks")
        try:
            _parse(text)
        except ValueError as error:
            accepted = "one of at most 16 axes, with names of at most 200 characters"
            raise ValueError(
                f"sampler: got one that a manifest cannot describe: {error}; accepted: {accepted}"
            ) from error

    def save(self, path: Path, *, sync: bool = False) -> None:
        with naming_file(path), replacing(path) as temporary, temporary.open("x", encoding="utf-8") as file:
            file.write(self.to_text())
            if sync:
                file.flush()
                os.fsync(file.fileno())
        if sync:
            sync_folder(path.parent)


def path_of(target: Path) -> Path:
    return target.with_name(f"{target.name}.manifest.json")


def load(path: Path) -> Manifest:
    """The manifest at a path. ValueError, which names the place, for anything that `save` did not write;
    FileNotFoundError where there is none."""
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ValueError(f"it has more than {MAX_BYTES} bytes")
        return _parse(path.read_bytes())
    except ValueError as error:
        accepted = f"a manifest of format version {FORMAT_VERSION}"
        raise ValueError(
            f"manifest: got {str(path)!r}, which cannot be used: {error}; accepted: {accepted}"
        ) from error


def _parse(text: str | bytes) -> Manifest:
    values = _schema.parse(text, SCHEMA)
    del values["format_version"]
    made = Manifest(**values | {"done": {}})
    if made.n < 1 or made.n_chunks > MAX_CHUNKS or made.rows_per_file % made.chunk_size:
        raise ValueError("its sizes do not go together")
    if made.n * 4 * prod(made.run["shape"]) > MAX_DATA_BYTES:
        raise ValueError(f"its samples take more than {MAX_DATA_BYTES} bytes")
    for name, digest in values["done"].items():
        chunk = int(name) if _NUMBER.fullmatch(name) else made.n_chunks
        if chunk >= made.n_chunks or not isinstance(digest, str) or not _DIGEST.fullmatch(digest):
            raise ValueError(f"at $.done: {name[:20]!r} is no chunk of it with its SHA-256")
        made.done[chunk] = digest
    if made.complete and len(made.done) < made.n_chunks:
        raise ValueError(f"it is complete with {len(made.done)} of {made.n_chunks} chunks")
    return made
