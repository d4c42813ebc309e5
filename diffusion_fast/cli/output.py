"""What commands write: files that appear whole or not at all, and one report on standard output.

A new file gets a temporary name in its own folder and its real one when it is complete.
"""

from __future__ import annotations

import csv
import importlib.util
import io
import json
import math
import os
import shutil
import uuid
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import click
import numpy as np

ARRAYS_OF_NPZ = ("x", "X", "columns")  # where the samples are found, and their names


@dataclass(frozen=True)
class Samples:
    """n rows of float32 that come in chunks, and where they have classes the class of each."""

    chunks: Iterator[np.ndarray]
    n: int
    columns: Sequence[str]
    label_column: str
    classes: np.ndarray  # names
    labels: np.ndarray | None  # (n,) integers that count into them

    def labelled_chunks(self) -> Iterator[tuple[np.ndarray, list[str] | None]]:
        """Rows, and the names of their classes."""
        at = 0
        for chunk in self.chunks:
            part = None if self.labels is None else self.labels[at : at + len(chunk)]
            yield chunk, None if part is None else self.classes[part].tolist()
            at += len(chunk)


def check(path: str, suffixes: Sequence[str], *, force: bool) -> Path:
    """The file to write, once it is sure that it can be written; an error of --out else."""
    target = Path(os.path.realpath(path))  # a link stays a link, to the new content
    suffix = target.suffix.lower()
    accepted = f"a file name ending in {', '.join(suffixes)}"
    if suffix not in suffixes:
        raise _refusal(path, "of no kind that can be written", accepted)
    if suffix == ".parquet" and importlib.util.find_spec("pyarrow") is None:
        raise _refusal(path, "which needs pyarrow", "this after pip install diffusion_fast[parquet]")
    if suffix == ".mp4" and shutil.which("ffmpeg") is None:
        raise _refusal(path, "which needs ffmpeg", "a name ending in .gif, or this with ffmpeg installed")
    try:
        if target.exists() and not target.is_file():
            raise _refusal(path, "which is no regular file", accepted)
        if target.exists() and not force:
            raise _refusal(path, "which exists", "a new name, or --force to replace it")
        if not target.parent.is_dir():
            raise _refusal(path, "whose folder does not exist", "a file name in a folder that exists")
        with _temporary(target) as probe:
            probe.touch(exist_ok=False)
    except OSError as error:
        why = f"which cannot be written ({error.strerror})"
        raise _refusal(path, why, "a file name in a folder that can be written") from error
    return target


def check_folder(path: str, names: Sequence[str], *, force: bool) -> Path:
    """The folder, new or not, once it is sure that files of those names can be written into it."""
    folder = Path(os.path.realpath(path))
    try:
        nearest = next(p for p in (folder, *folder.parents) if p.exists())
        if not nearest.is_dir():
            raise _refusal(path, f"but {nearest} is a file", "a folder, new or not")
        if nearest == folder:
            for name in names:
                check(str(Path(path) / name), (Path(name).suffix,), force=force)
        else:
            with _temporary(nearest / folder.relative_to(nearest).parts[0]) as probe:
                probe.touch(exist_ok=False)
    except OSError as error:
        why = f"which cannot be made ({error.strerror})"
        raise _refusal(path, why, "a folder in one that can be written") from error
    return folder


def check_names(path: str, columns: Sequence[str], label_column: str) -> None:
    """That the file can hold the column of classes beside the others; an error of --out else."""
    suffix = Path(path).suffix.lower()
    if suffix == ".npy":
        return  # has no names
    if label_column in columns:
        why = f"which would have two columns named {label_column!r}"
        raise _refusal(path, why, "a file name ending in .npy, without classes")
    if suffix == ".npz" and label_column in ARRAYS_OF_NPZ:
        why = f"where the column of classes, {label_column!r}, has the name of another array"
        raise _refusal(path, why, "a file name ending in .csv, .parquet, .npy")


def _refusal(path: str, why: str, accepted: str) -> click.BadParameter:
    return click.BadParameter(f"got {path!r}, {why}; accepted: {accepted}", param_hint="--out")


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A temporary name: it becomes the target's when the block ends well and is removed when it does not."""
    with _temporary(target) as temporary:
        yield temporary
        os.replace(temporary, target)


@contextmanager
def _temporary(target: Path) -> Iterator[Path]:
    path = target.with_name(f".{uuid.uuid4().hex[:12]}.{target.name}")  # the suffix tells the format
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def write(target: Path, samples: Samples) -> None:
    """The samples as the format of the target's suffix."""
    with replacing(target) as temporary:
        WRITERS[target.suffix.lower()](temporary, samples)


def _write_npy(path: Path, samples: Samples) -> None:
    with path.open("xb") as file:
        _write_array(file, samples)


def _write_npz(path: Path, samples: Samples) -> None:
    with zipfile.ZipFile(path, "x") as archive:
        with archive.open("x.npy", "w", force_zip64=True) as entry:
            _write_array(entry, samples)
        more = {"columns": np.array(samples.columns)}
        if samples.labels is not None:
            more[samples.label_column] = samples.classes[samples.labels]
        for name, array in more.items():
            with archive.open(f"{name}.npy", "w") as entry:
                np.save(entry, array, allow_pickle=False)


def _write_array(file: BinaryIO | Any, samples: Samples) -> None:
    """A .npy file chunk by chunk, in the memory of one chunk."""
    header = {"descr": "<f4", "fortran_order": False, "shape": (samples.n, len(samples.columns))}
    np.lib.format.write_array_header_1_0(file, header)
    for chunk in samples.chunks:
        file.write(np.ascontiguousarray(chunk, dtype="<f4").data)


def _write_csv(path: Path, samples: Samples) -> None:
    with path.open("x", encoding="utf-8", newline="") as file:
        names = [*samples.columns, *([] if samples.labels is None else [samples.label_column])]
        file.write(_csv_line(names) + "\n")
        numbers = ",".join(["%.9g"] * len(samples.columns))  # nine digits tell any two float32 apart
        for rows, labels in samples.labelled_chunks():
            lines = [numbers % tuple(row) for row in rows.tolist()]
            if labels is not None:
                quoted = {name: _csv_line([name]) for name in set(labels)}
                lines = [f"{line},{quoted[name]}" for line, name in zip(lines, labels, strict=True)]
            file.write("\n".join([*lines, ""]))


def _csv_line(values: Sequence[str]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="").writerow(values)
    return buffer.getvalue()


def _write_parquet(path: Path, samples: Samples) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields = [(name, pa.float32()) for name in samples.columns]
    if samples.labels is not None:
        fields.append((samples.label_column, pa.string()))
    schema = pa.schema(fields)
    with path.open("xb") as file, pq.ParquetWriter(file, schema) as writer:
        for rows, labels in samples.labelled_chunks():
            columns = [pa.array(column) for column in np.ascontiguousarray(rows.T)]
            if labels is not None:
                columns.append(pa.array(labels, pa.string()))
            writer.write_table(pa.Table.from_arrays(columns, schema=schema))


WRITERS: dict[str, Callable[[Path, Samples], None]] = {
    ".npy": _write_npy,
    ".npz": _write_npz,
    ".csv": _write_csv,
    ".parquet": _write_parquet,
}


def report(as_json: bool, values: dict[str, Any], text: str) -> None:
    """The result of a command: the values as one JSON object, or the text."""
    click.echo(json.dumps(_json_value(values), allow_nan=False) if as_json else text)


def _json_value(value: Any) -> Any:
    """JSON has no NaN: what could not be told is null."""
    if isinstance(value, dict):
        return {key: _json_value(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_value(item) for item in value]
    if isinstance(value, Path):
        return str(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value
