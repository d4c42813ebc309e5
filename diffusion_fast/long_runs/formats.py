"""Files with columns: .csv, .parquet and .npz, written block by block from rows that come in order."""

from __future__ import annotations

import csv
import io
import itertools
import zipfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_fast import _checks
from diffusion_fast._files import naming_file, refusal

BLOCK = 1 << 16  # numbers: as text they take megabytes, and a signal waits for some hundredths of a second
Ranges = Sequence[tuple[int, int]]
# Of a .parquet file's row group, or of each column in it where that is more. 0.9 kB a column and group are
# kept to the end, at most 1.3 % of the file: 0.4 GB for ten million rows of 784 columns, and a group, 51 MB.
GROUP_BYTES, COLUMN_BYTES = 1 << 24, 1 << 16
ARRAYS_OF_NPZ = ("x", "X", "columns")  # where the samples are found, and their names


@dataclass(frozen=True)
class Columns:
    """Names for a file of samples: of the columns, of the column of classes, of the classes themselves."""

    names: Sequence[str]
    label_column: str = "label"
    classes: Sequence[str] = ()

    def check(self, path: str, form: str, labelled: bool) -> None:
        """That the file can hold the column of classes beside the others; a ValueError of path else."""
        if not labelled or form in ("npy", "folder"):
            return
        if self.label_column in self.names:
            why = f"which would have two columns named {self.label_column!r}"
            raise refusal("path", path, why, "a file name ending in .npy, without classes")
        if form == "npz" and self.label_column in ARRAYS_OF_NPZ:
            why = f"where the column of classes, {self.label_column!r}, has the name of another array"
            raise refusal("path", path, why, "a file name ending in .csv, .parquet, .npy")


@dataclass(frozen=True)
class Labels:
    """The classes that samples take in turn: sample i of the seed's stream has cycle[i % len(cycle)]."""

    cycle: np.ndarray

    def part(self, first: int, count: int) -> np.ndarray:
        return self.cycle[np.arange(first, first + count) % len(self.cycle)]


@dataclass(frozen=True)
class Table:
    """n rows that come in order, in blocks; `start` is the index of the first in the seed's stream."""

    blocks: Iterable[np.ndarray]
    n: int
    shape: tuple[int, ...]
    columns: Columns
    labels: Labels | None
    start: int

    @property
    def class_names(self) -> list[str]:
        """By their numbers; the null class, which is one more than the classes, is 'none'."""
        return [*self.columns.classes, "none"]

    def labelled_blocks(self) -> Iterator[tuple[np.ndarray, list[str] | None]]:
        """Rows, and the names of their classes."""
        at = self.start
        for block in self.blocks:
            yield block, None if self.labels is None else self.names_of(self.labels.part(at, len(block)))
            at += len(block)

    def names_of(self, labels: np.ndarray) -> list[str]:
        return np.array(self.class_names)[labels].tolist()


def rows_of_block(shape: tuple[int, ...]) -> int:
    return max(1, BLOCK // int(np.prod(shape)))


def check_columns(
    columns: Columns | None, shape: tuple[int, ...], form: str, n_classes: int | None
) -> Columns:
    """Names for each column and each class: those given, else 'column 0' and on, and '0' and on."""
    elements = int(np.prod(shape))
    if form in ("csv", "parquet") and len(shape) != 1:
        raise _checks.bad_value(
            "path", f"a .{form} file for samples of shape {shape}", ".npy, .npz, or a folder"
        )
    if columns is None:
        classes = [str(i) for i in range(n_classes or 0)]
        return Columns([f"column {i}" for i in range(elements)], classes=classes)
    if not isinstance(columns, Columns):
        raise _checks.bad_type("columns", columns, "a Columns or None")
    for name, given, count in (
        ("names", columns.names, elements),
        ("classes", columns.classes, n_classes or 0),
    ):
        if len(given) != count or not all(isinstance(text, str) for text in given):
            raise _checks.bad_value(f"columns.{name}", given, f"{count} strings")
    return columns


def _write_npz(path: Path, table: Table) -> None:
    with naming_file(path), zipfile.ZipFile(path, "x") as archive:

        def write(name: str, dtype: str, shape: tuple[int, ...], parts: Iterable[Any]) -> None:
            with archive.open(f"{name}.npy", "w", force_zip64=True) as entry:
                header = {"descr": dtype, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(entry, header)
                for part in parts:
                    entry.write(np.ascontiguousarray(part, dtype=dtype).data.cast("B"))

        write("x", "<f4", (table.n, *table.shape), table.blocks)
        with archive.open("columns.npy", "w") as entry:
            np.save(entry, np.array(table.columns.names), allow_pickle=False)
        if table.labels is not None:
            width = max(map(len, table.class_names))
            firsts = range(0, table.n, BLOCK)
            parts = (table.labels.part(table.start + at, min(BLOCK, table.n - at)) for at in firsts)
            write(table.columns.label_column, f"<U{width}", (table.n,), map(table.names_of, parts))


def _write_csv(path: Path, table: Table) -> None:
    with naming_file(path), path.open("x", encoding="utf-8", newline="") as file:
        names = [*table.columns.names, *([] if table.labels is None else [table.columns.label_column])]
        file.write(_csv_line(names) + "\n")
        numbers = ",".join(["%.9g"] * len(table.columns.names))  # nine digits tell any two float32 apart
        for rows, labels in table.labelled_blocks():
            lines = [numbers % tuple(row) for row in rows.tolist()]
            if labels is not None:
                quoted = {name: _csv_line([name]) for name in set(labels)}
                lines = [f"{line},{quoted[name]}" for line, name in zip(lines, labels, strict=True)]
            file.write("\n".join([*lines, ""]))


def _csv_line(values: Sequence[str]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="").writerow(values)
    return buffer.getvalue()


def _write_parquet(path: Path, table: Table) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    fields = [(name, pa.float32()) for name in table.columns.names]
    few: list[str] = []  # columns of few values; a dictionary makes one of samples larger, and takes longer
    if table.labels is not None:
        few = [table.columns.label_column]
        fields.append((table.columns.label_column, pa.string()))
    schema, classes = pa.schema(fields), pa.array(table.class_names)
    with (
        naming_file(path),
        path.open("xb") as file,
        pq.ParquetWriter(file, schema, use_dictionary=few or False) as writer,
    ):
        for first, rows in _groups(table):
            columns = [pa.array(column) for column in rows]
            if table.labels is not None:
                columns.append(classes.take(pa.array(table.labels.part(table.start + first, rows.shape[1]))))
            group = pa.Table.from_arrays(columns, schema=schema)
            writer.write_table(group, row_group_size=len(group))


def _groups(table: Table) -> Iterator[tuple[int, np.ndarray]]:
    """The first row of each row group, and its (columns, rows) array, whose memory the next one has too."""
    columns = table.shape[0]
    most = max(1, max(GROUP_BYTES // columns, COLUMN_BYTES) // 4)
    held = np.empty((columns, min(most, table.n)), "<f4")
    first = filled = 0
    for block in table.blocks:
        at = 0
        while at < len(block):
            part = block[at : at + held.shape[1] - filled]
            held[:, filled : filled + len(part)] = part.T
            at, filled = at + len(part), filled + len(part)
            if filled == held.shape[1] or first + filled == table.n:
                yield first, held[:, :filled]
                first, filled = first + filled, 0


WRITERS: dict[str, Callable[[Path, Table], None]] = {
    "npz": _write_npz,
    "csv": _write_csv,
    "parquet": _write_parquet,
}


# ---- the samples of such a file, for `verify`: of ranges (first row, rows), which ascend


def _read_npz(path: Path, shape: tuple[int, ...], ranges: Ranges) -> Iterator[np.ndarray]:
    with zipfile.ZipFile(path) as archive, archive.open("x.npy") as entry:
        np.lib.format.read_magic(entry)
        _, _, dtype = np.lib.format.read_array_header_1_0(entry)
        if dtype != np.dtype("<f4"):
            raise ValueError(f"x is of {dtype}")
        begin, row_bytes = entry.tell(), 4 * int(np.prod(shape))
        for first, count in ranges:
            entry.seek(begin + first * row_bytes)
            yield np.frombuffer(entry.read(count * row_bytes), "<f4").reshape(-1, *shape)


def _read_csv(path: Path, shape: tuple[int, ...], ranges: Ranges) -> Iterator[np.ndarray]:
    with path.open(encoding="utf-8", newline="") as file:
        lines = csv.reader(file)
        next(lines)
        at = 0
        for first, count in ranges:
            part = itertools.islice(lines, first - at, first - at + count)
            # By way of float64: nine digits lie too near their float32 for the second rounding to miss it.
            rows = [[float(text) for text in line[: shape[0]]] for line in part]
            yield np.array(rows, "<f4").reshape(len(rows), shape[0])
            at = first + count


def _read_parquet(path: Path, shape: tuple[int, ...], ranges: Ranges) -> Iterator[np.ndarray]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        sizes = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
        ends = np.cumsum(sizes)
        known, table = range(0), None
        for first, count in ranges:
            groups = range(*np.searchsorted(ends, [first, first + count - 1], side="right") + [0, 1])
            if table is None or groups != known:  # many chunks lie in one group
                known, table = groups, file.read_row_groups(groups)
            part = table.slice(first - int(ends[groups[0]] - sizes[groups[0]]), count)
            yield np.stack([part.column(i).to_numpy() for i in range(shape[0])], axis=1)


READERS: dict[str, Callable[[Path, tuple[int, ...], Ranges], Iterator[np.ndarray]]] = {
    "npz": _read_npz,
    "csv": _read_csv,
    "parquet": _read_parquet,
}
