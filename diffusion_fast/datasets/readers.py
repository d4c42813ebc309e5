"""What a file holds, format by format: names of columns, an array of numbers, labels as they are written."""

from __future__ import annotations

import csv
import errno
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from diffusion_fast import _checks
from diffusion_fast._spelling import did_you_mean

try:
    from lzma import LZMAError
except ImportError:  # a Python built without it, whose zipfile reads no such archive
    LZMAError = zlib.error  # type: ignore[assignment, misc]

ROW_NAMES = ("x", "X")  # of the rows in an archive of several arrays
COLUMN_NAMES = "columns"  # of the names of the columns in an archive
# What readers raise for damaged files; MemoryError where a header claims too much, and what Python's own
# parser raises for the header of an .npy file, which is a dictionary of its. RuntimeError is zipfile's for
# what is encrypted, and with NotImplementedError for a method or version that it does not know.
UNREADABLE = (
    *(ValueError, EOFError, OverflowError, MemoryError, RuntimeError),
    *(csv.Error, zipfile.BadZipFile, zlib.error, LZMAError, SyntaxError, tokenize.TokenError),
)


class Content(NamedTuple):
    """rows (n, dim), numbers of any dtype, maybe not finite; labels (n,) of any dtype, or None."""

    columns: tuple[str, ...]
    rows: np.ndarray
    labels: np.ndarray | None


def bad_file(file: Path, problem: str, accepted: str) -> ValueError:
    return ValueError(f"path: got {str(file)!r}, {problem}; accepted: {accepted}")


def unreadable(file: Path, error: BaseException, accepted: str) -> ValueError:
    return bad_file(file, f"which cannot be read ({' '.join(str(error).split())})", accepted)


def read_npy(file: Path, label_column: str | None) -> Content:
    """The file is mapped into memory: no copy is made, and what is not used is not read."""
    with _readable(file, "a .npy file with an (n, dim) array of numbers"):
        array = np.lib.format.open_memmap(file, mode="r")
    return _take_labels(_matrix(file, "", array.view(np.ndarray)), label_column)


def read_npz(file: Path, label_column: str | None) -> Content:
    """Rows: the array "x" or "X", or the only one besides labels and names of columns."""
    accepted = "an .npz archive with the rows as its array 'x', or as its only one"
    if not zipfile.is_zipfile(file):
        raise bad_file(file, "which is not an archive", accepted)
    with _readable(file, accepted), np.load(file, allow_pickle=False) as archive:
        names = [name for name in archive.files if name not in (label_column, COLUMN_NAMES)]
        chosen = [name for name in ROW_NAMES if name in names] or names
        if len(chosen) != 1:
            found = f"with the arrays {', '.join(archive.files)}" if archive.files else "an empty archive"
            raise bad_file(file, found, accepted)
        used = [name for name in (chosen[0], label_column, COLUMN_NAMES) if name in archive.files]
        arrays = {name: archive[name] for name in used}
    for name, array in arrays.items():
        if not isinstance(array, np.ndarray):  # NumPy gives the bytes of other files
            raise bad_file(file, f"whose {name!r} is no array", accepted)
    rows, labels, given = arrays[chosen[0]], arrays.get(label_column), arrays.get(COLUMN_NAMES)
    content = _matrix(file, f"array {chosen[0]!r}: ", rows)
    if given is not None:
        if given.dtype.kind != "U" or given.shape != (len(content.columns),):
            raise bad_file(
                file, f"whose array {COLUMN_NAMES!r} is {_checks.describe(given)}", "a name for each column"
            )
        content = content._replace(columns=_distinct(file, given.tolist()))
    if labels is None:
        return _take_labels(content, label_column)
    if labels.shape != (len(content.rows),):
        problem = f"whose array {label_column!r} has shape {labels.shape}"
        raise bad_file(file, problem, f"one label for each of the {len(content.rows)} rows")
    return content._replace(labels=labels)


def read_csv(file: Path, label_column: str | None, header: bool | None = None) -> Content:
    """Numbers separated by commas. header: whether the first line has names; None: if no number is in it."""
    accepted = "lines of numbers separated by commas, in UTF-8"
    with _readable(file, accepted):
        skipped, names, width = _csv_start(file, header)
    columns = _distinct(file, names) if skipped else _numbered(width)
    codes: dict[str, int] = {}
    converters: dict[int | str, Callable[[str], int]] = {}
    if label_column is not None:
        column = position(label_column, columns)
        converters[column] = lambda text: codes.setdefault(text, len(codes))
    try:
        rows = np.loadtxt(
            str(file),
            delimiter=",",
            skiprows=skipped,
            comments=None,
            quotechar='"',
            encoding="utf-8-sig",
            converters=converters,
            ndmin=2,
        )
        if rows.shape[1] != len(columns):
            raise ValueError(f"{rows.shape[1]} columns")
    except ValueError as error:
        with _readable(file, accepted):
            _explain_csv(file, skipped, columns, label_column)
        raise unreadable(file, error, accepted) from error
    content = Content(columns, rows, None)
    if label_column is None:
        return content
    content = _take_labels(content, label_column)
    assert content.labels is not None
    return content._replace(labels=np.array(list(codes))[content.labels.astype(np.int64)])


def read_parquet(file: Path, label_column: str | None) -> Content:
    """Columns of numbers without nulls, and one of labels of any simple type."""
    try:
        import pyarrow.parquet
        from pyarrow import ArrowException, types
    except ImportError as error:
        needed = "pyarrow is not installed: pip install diffusion_fast[parquet]"
        raise bad_file(file, f"for which {needed}", ".npy, .npz and .csv files without it") from error
    accepted = "a Parquet file with columns of numbers without nulls"
    try:
        table = pyarrow.parquet.ParquetFile(file).read()
    except (ArrowException, OSError) as error:
        raise unreadable(file, error, accepted) from error
    columns = _distinct(file, table.column_names)
    label = None if label_column is None else position(label_column, columns)
    arrays = []
    for i, (name, values) in enumerate(zip(columns, table.columns, strict=True)):
        kind = values.type
        if i == label and types.is_nested(kind):
            found = f"{label_column!r} with values of type {kind}"
            raise ValueError(f"label_column: got {found}; accepted: a whole number or a string in each row")
        if i != label and not any(f(kind) for f in (types.is_integer, types.is_floating, types.is_boolean)):
            raise bad_file(file, f"whose column {name!r} has values of type {kind}", accepted)
        if values.null_count:
            row = int(np.argmax(values.is_null().to_numpy()))
            raise bad_file(file, f"with nothing in row {row}, column {name!r}", accepted)
        arrays.append(np.array(values.to_pylist()) if i == label else values.to_numpy())
    labels = None if label is None else arrays.pop(label)
    rest = tuple(name for i, name in enumerate(columns) if i != label)
    if not rest:
        raise bad_file(file, "with no column besides the labels", accepted)
    return Content(rest, np.stack(arrays, axis=1), labels)


READERS = {".npy": read_npy, ".npz": read_npz, ".csv": read_csv, ".parquet": read_parquet}


def position(label_column: str, columns: Sequence[str]) -> int:
    if label_column not in columns:
        hint = did_you_mean(label_column, columns)
        names = ", ".join(columns[:10]) + (", ..." if len(columns) > 10 else "")
        raise _checks.bad_value("label_column", label_column, f"one of {names}{hint}")
    return columns.index(label_column)


@contextmanager
def _readable(file: Path, accepted: str) -> Iterator[None]:
    """Errors of NumPy's, csv's and zipfile's readers as one that names the file."""
    try:
        yield
    except (*UNREADABLE, OSError) as error:
        # zipfile seeks to where a damaged archive says, be it before the file's beginning; bz2 gives no errno
        damaged = not isinstance(error, OSError) or error.errno in (errno.EINVAL, None)
        if not damaged or str(error).startswith("path: "):
            raise
        raise unreadable(file, error, accepted) from error


def _numbered(width: int) -> tuple[str, ...]:
    return tuple(f"column {i}" for i in range(width))


def _distinct(file: Path, names: Sequence[str]) -> tuple[str, ...]:
    accepted = "a name for each column, all different"
    if "" in names:
        problem = f"whose column {list(names).index('')} has no name (an index that was written along?)"
        raise bad_file(file, problem, accepted)
    double = next((name for name in names if list(names).count(name) > 1), None)
    if double is not None:
        raise bad_file(file, f"with several columns {double!r}", accepted)
    return tuple(names)


def _matrix(file: Path, where: str, array: np.ndarray) -> Content:
    rows = array[:, None] if array.ndim == 1 else array
    if rows.ndim != 2 or rows.shape[1] == 0 or rows.dtype.kind not in "fiub":
        problem = f"{where}{_checks.describe(array)}"
        raise bad_file(file, problem, "an (n, dim) array of real numbers")
    return Content(_numbered(rows.shape[1]), rows, None)


def _take_labels(content: Content, label_column: str | None) -> Content:
    if label_column is None:
        return content
    column = position(label_column, content.columns)
    rest = content.columns[:column] + content.columns[column + 1 :]
    return Content(rest, np.delete(content.rows, column, axis=1), content.rows[:, column])


def _csv_rows(file: Path) -> Iterator[tuple[int, list[str]]]:
    """The lines of a file that are not blank, and how many lines have been read with each."""
    with file.open(encoding="utf-8-sig", newline="") as text:
        reader = csv.reader(text, strict=True)
        for fields in reader:
            if fields:
                yield reader.line_num, [field.strip() for field in fields]


def _csv_start(file: Path, header: bool | None) -> tuple[int, list[str], int]:
    """The lines to leave out, the names in them, and the width of the first line of numbers."""
    rows = _csv_rows(file)
    line, first = next(rows, (0, []))
    if len(first) == 1 and set(first[0]) & {";", "\t"}:
        raise bad_file(file, f"with the first line {first[0][:80]!r}", "commas between the fields")
    # np.savetxt puts a # before the names.
    names = [name.lstrip("# ") for name in first[:1]] + first[1:]
    if header is None:
        header = not any(_is_number(field) for field in first)
    if header or not first:
        if next(rows, None) is None:
            raise bad_file(file, "without any row", "at least one row of numbers")
        return line, names, len(first)
    return 0, [], len(first)


def _explain_csv(file: Path, skipped: int, columns: Sequence[str], label_column: str | None) -> None:
    """Raise an error for the first line that has another number of fields, or one that is no number."""
    for line, fields in _csv_rows(file):
        if line <= skipped:
            continue
        if len(fields) != len(columns):
            problem = f"with {len(fields)} fields in line {line}"
            raise bad_file(file, problem, f"{len(columns)} fields, as in the first line")
        for name, field in zip(columns, fields, strict=True):
            if name != label_column and not _is_number(field):
                got = f"with {repr(field) if field else 'nothing'} in line {line}, column {name!r}"
                hint = ""
                if line == 1:
                    hint = ", or header=True where that line has the columns' names"
                elif field and label_column is None:
                    hint = f", or label_column={name!r} where those are classes"
                raise bad_file(file, got, f"a number in each field{hint}")


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
