"""Data of the user's own: .npy, .npz, .csv and .parquet files."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_fast import _checks
from diffusion_fast.datasets.dataset import MIN_ROWS, SCALINGS, Dataset, split
from diffusion_fast.datasets.readers import READERS, bad_file, read_csv
from diffusion_fast.standardiser import LARGEST, row_ranges


@dataclass(frozen=True, eq=False)
class Table:
    """What a file holds: rows (n, dim), float32 or float64, finite, and the names of the dim columns.

    labels: int64 (n,), counting into `classes`; without them None, and classes is ().
    """

    rows: np.ndarray
    labels: np.ndarray | None
    columns: tuple[str, ...]
    classes: tuple[str, ...]


def read(
    path: str | os.PathLike[str], *, label_column: str | None = None, header: bool | None = None
) -> Table:
    """The rows of a file, one of:

    * .npy: an (n, dim) or (n,) array of real numbers. It is mapped into memory: float32 and float64 rows are
      a read-only view of the file, so that opening it takes no memory; the file must stay as it is meanwhile.
    * .npz: the rows as its array "x" or "X", or as the only array; names of the columns as array "columns".
    * .csv: numbers separated by commas, in UTF-8. A first line without any number names the columns, where
      `header` does not say whether the first line does (a year, "nan" and "inf" are numbers).
    * .parquet: columns of numbers (needs pyarrow: pip install diffusion_fast[parquet]).

    label_column: the name of the column of labels, in an .npz also of an array of n labels. Labels are whole
    numbers or strings; the classes are sorted. Columns without a name are called "column 0", "column 1", ...
    Numbers other than float32 and float64 become float64. header: True, False or None; for .csv only.

    Raises FileNotFoundError, and ValueError for another kind of file, for one that cannot be read or has no
    row, and for values that are missing or not finite, with their row (from 0) or line (from 1). Pickled
    objects are never loaded.
    """
    file = _file(path)
    if label_column is not None and not isinstance(label_column, str):
        raise _checks.bad_type("label_column", label_column, "the name of a column, or None")
    if header is None:
        content = READERS[file.suffix.lower()](file, label_column)
    elif file.suffix.lower() != ".csv":
        raise _checks.bad_value("header", header, f"None for a {file.suffix} file; True or False for .csv")
    else:
        content = read_csv(file, label_column, _checks.flag("header", header))
    rows = content.rows
    if rows.dtype not in (np.float32, np.float64):
        rows = rows.astype(np.float64)
    if len(rows) == 0 or rows.shape[1] == 0:
        raise bad_file(
            file, f"with {_checks.describe(rows)}", "at least one row and one column besides labels"
        )
    _check_finite(file, rows, content.columns)
    if content.labels is None:
        return Table(rows, None, content.columns, ())
    labels, classes = _encode(label_column, content.labels)
    return Table(rows, labels, content.columns, classes)


def load_file(
    path: str | os.PathLike[str],
    *,
    label_column: str | None = None,
    header: bool | None = None,
    test_fraction: float = 0.2,
    seed: int = 0,
    scaling: str = "standard",
    shuffle: bool = True,
) -> Dataset:
    """The rows of a file that `read` takes, split into rows to learn from and rows held out.

    Args:
        label_column, header: as for `read`.
        test_fraction: share of the rows to hold out, in (0, 0.9].
        seed: of the order of the rows, with shuffle.
        scaling: "standard" (mean 0, deviation 1 over the training rows), "min_max" (columns to [-1, 1]) or
            "none".
        shuffle: False takes the rows in the order of the file, the last of them held out. Then `train` and
            `test` are views of a .npy file, which may be larger than the memory.

    Raises what `read` does, and ValueError for fewer than 10 rows, for labels of one class only, of more than
    one class for every two rows, or of a class that no training row has. Unless scaling is "none" also for a
    column that has one value in all training rows (it has no deviation to scale by), and for numbers of
    magnitude above 1e30 (whose squares, and float32, may overflow).
    """
    fraction = _checks.real("test_fraction", test_fraction, 0.0, 0.9, open_low=True)
    rng = np.random.default_rng(_checks.seed("seed", seed))
    _checks.choice("scaling", scaling, SCALINGS)
    _checks.flag("shuffle", shuffle)
    table = read(path, label_column=label_column, header=header)
    file, rows, labels = Path(path), table.rows, table.labels
    n = len(rows)
    if n < MIN_ROWS:
        raise bad_file(file, f"with {_checks.describe(rows)}", f"at least {MIN_ROWS} rows")
    if labels is not None and not 2 <= len(table.classes) <= n / 2:
        found = f"with classes {', '.join(table.classes[:3])}{', ...' if len(table.classes) > 3 else ''}"
        raise _bad_labels(
            label_column, f"{found} ({len(table.classes)} in {n} rows)", f"2 to {n // 2} classes"
        )
    if scaling != "none":
        _check_magnitude(file, rows, table.columns)
    if shuffle:
        order = rng.permutation(n)
        rows, labels = rows[order], None if labels is None else labels[order]
    n_train = n - min(max(1, round(fraction * n)), n - 1)
    if scaling != "none":
        _check_varies(file, rows[:n_train], table.columns)
    if labels is not None:
        unseen = np.setdiff1d(labels, labels[:n_train])
        if len(unseen):
            found = f"with class {table.classes[unseen[0]]!r} in no training row"
            raise _bad_labels(label_column, found, "classes that all occur among them")
    return split(
        file.stem, rows, n_train, table.columns, scaling=scaling, labels=labels, classes=table.classes
    )


def _file(path: Any) -> Path:
    kinds = ", ".join(READERS)
    if not isinstance(path, str | os.PathLike):
        raise _checks.bad_type("path", path, f"the path of a file: {kinds}")
    file = Path(path)
    if file.is_dir():
        raise bad_file(file, "a folder", f"a file: {kinds} (a folder of MNIST's files is for datasets.mnist)")
    if not file.is_file():
        raise FileNotFoundError(f"path: got {str(file)!r}, which is no file; accepted: a file: {kinds}")
    if file.suffix.lower() not in READERS:
        raise bad_file(file, f"with the suffix {file.suffix!r}", kinds)
    return file


def _check_finite(file: Path, rows: np.ndarray, columns: tuple[str, ...]) -> None:
    n_bad, where = 0, ""
    for part in row_ranges(rows):
        bad = ~np.isfinite(rows[part])
        if not bad.any():
            continue
        if not n_bad:
            row, column = (int(i) for i in np.argwhere(bad)[0])
            where = f"{rows[part][row, column]} in row {part.start + row}, column {columns[column]!r}"
        n_bad += int(bad.any(axis=1).sum())
    if n_bad:
        raise bad_file(file, f"with {where} ({n_bad} such rows)", "finite numbers")


def _check_magnitude(file: Path, rows: np.ndarray, columns: tuple[str, ...]) -> None:
    for part in row_ranges(rows):
        large = np.abs(rows[part]) > LARGEST
        if large.any():
            row, column = (int(i) for i in np.argwhere(large)[0])
            found = f"with {rows[part][row, column]:g} in row {part.start + row}, column {columns[column]!r}"
            raise bad_file(file, found, f"numbers of magnitude up to {LARGEST:g}, or scaling='none'")


def _check_varies(file: Path, rows: np.ndarray, columns: tuple[str, ...]) -> None:
    constant = np.ones(rows.shape[1], dtype=bool)
    for part in row_ranges(rows):
        constant &= (rows[part] == rows[0]).all(axis=0)
        if not constant.any():
            return
    column = int(constant.argmax())
    found = f"whose column {columns[column]!r} is {rows[0, column]} in all training rows"
    raise bad_file(file, found, "columns that vary, or scaling='none'")


def _encode(label_column: str | None, given: np.ndarray) -> tuple[np.ndarray, tuple[str, ...]]:
    """Labels as written -> numbers from 0, and the classes that these count into."""
    accepted = "a whole number or a string in each row"
    values = _parsed(np.char.strip(given)) if given.dtype.kind == "U" else given
    if values.dtype.kind == "f":
        wrong = ~((values == np.floor(values)) & (np.abs(values) < 1 << 53))
    else:
        wrong = values == "" if values.dtype.kind == "U" else np.zeros(len(values), dtype=bool)
    if wrong.any():
        row = int(wrong.argmax())
        raise _bad_labels(label_column, f"with {given[row].item()!r} in row {row}", accepted)
    if values.dtype.kind not in "fiubU":
        raise _bad_labels(label_column, f"with {_checks.describe(given)}", accepted)
    values = values.astype(np.int64) if values.dtype.kind == "f" else values
    classes, labels = np.unique(values, return_inverse=True)
    return labels.astype(np.int64), tuple(str(name) for name in classes.tolist())


def _parsed(texts: np.ndarray) -> np.ndarray:
    for kind in (np.int64, np.float64):
        try:
            return texts.astype(kind)
        except (ValueError, OverflowError):
            continue
    return texts


def _bad_labels(label_column: str | None, found: str, accepted: str) -> ValueError:
    return ValueError(f"label_column: got {label_column!r} {found}; accepted: {accepted}")
