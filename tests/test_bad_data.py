"""What bad data gets: an error that names the argument, what was found and what is accepted.

One row per (argument, fault). `call` gets an empty folder; every message has the form
"argument: got GIVEN; accepted: WHAT", and the regular expressions are searched in those parts.
"""

from __future__ import annotations

import gzip
import io
import re
import struct
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from diffusion_fast import Standardiser, datasets

NAN, INF = float("nan"), float("inf")
V, Ty = ValueError, TypeError
GRID = np.arange(40.0).reshape(20, 2)
HALVES = np.arange(20) % 2
NAMES = (
    "train-images-idx3-ubyte",
    "train-labels-idx1-ubyte",
    "t10k-images-idx3-ubyte",
    "t10k-labels-idx1-ubyte",
)


def csv(folder: Path, text: str | bytes, **options: Any) -> Any:
    file = folder / "bad.csv"
    file.write_bytes(text if isinstance(text, bytes) else text.encode())
    return datasets.load_file(file, **options)


def lines(*changed: str, header: str = "a,b,kind") -> str:
    """Twenty good lines, the last of them replaced."""
    good = [f"{i},{i * i},{'cat' if i % 2 else 'dog'}" for i in range(20 - len(changed))]
    return "\n".join([header, *good, *changed]) + "\n"


def npy(folder: Path, array: Any, **options: Any) -> Any:
    np.save(folder / "bad.npy", array)
    return datasets.load_file(folder / "bad.npy", **options)


def npz(folder: Path, label_column: str | None = None, **arrays: Any) -> Any:
    np.savez(folder / "bad.npz", **arrays)
    return datasets.load_file(folder / "bad.npz", label_column=label_column)


def raw(folder: Path, name: str, content: bytes) -> Any:
    (folder / name).write_bytes(content)
    return datasets.load_file(folder / name)


def with_value(value: float) -> np.ndarray:
    rows = GRID.copy()
    rows[17, 1] = value
    return rows


def parquet(folder: Path, label_column: str | None = None, **columns: Any) -> Any:
    pa = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(pa.table(columns), folder / "bad.parquet")
    return datasets.load_file(folder / "bad.parquet", label_column=label_column)


def parquet_bytes(folder: Path, content: bytes) -> Any:
    pytest.importorskip("pyarrow")
    return raw(folder, "bad.parquet", content)


def idx(*shape: int, fill: int = 1) -> bytes:
    return struct.pack(f">HBB{len(shape)}I", 0, 8, len(shape), *shape) + bytes([fill]) * int(np.prod(shape))


def mnist(folder: Path, index: int | None = None, content: bytes | None = None, suffix: str = "") -> Any:
    """Four good files, that of the index replaced (None takes it away)."""
    for i, (name, good) in enumerate(
        zip(NAMES, [idx(12, 3, 2), idx(12), idx(10, 3, 2), idx(10)], strict=True)
    ):
        data = content if i == index else good
        if data is not None:
            (folder / (name + (suffix if i == index else ""))).write_bytes(data)
    return datasets.mnist(folder)


class Case(NamedTuple):
    argument: str
    fault: str
    call: Callable[[Path], Any]
    error: type[Exception]
    given: str
    accepted: str


load, load_file, read = datasets.load, datasets.load_file, datasets.read
# fmt: off
CASES = [
    # load and the functions of the sets
    Case("name", "unknown", lambda f: load("helix"), V, "'helix'", "helix_3d.*did you mean 'helix_3d'"),
    Case("name", "type", lambda f: load(3), Ty, "3", "one of 3d_sin_5_5"),
    Case("n_train", "too small", lambda f: load("moons", 9), V, "9", "from 10 up"),
    Case("n_train", "float", lambda f: datasets.spiral(1e4), Ty, "10000.0", "integer"),
    Case("n_train", "more than there are", lambda f: load("digits", 1438), V, "1438", "at most 1797"),
    Case("n_test", "too small", lambda f: datasets.blobs(100, 0), V, "0", "from 10 up"),
    Case("n_test", "bool", lambda f: datasets.digits(100, True), Ty, "True", "integer"),
    Case("seed", "negative", lambda f: load("pinwheel", seed=-1), V, "-1", "from 0"),
    Case("seed", "2^64", lambda f: load("moons", seed=2**64), V, str(2**64), str(2**64 - 1)),
    Case("seed", "float", lambda f: load("digits", seed=0.5), Ty, "0.5", "integer"),
    Case("scaling", "unknown", lambda f: load("blobs", scaling="minmax"),
         V, "'minmax'", "did you mean 'min_max'"),
    Case("scaling", "type", lambda f: load("blobs", scaling=True), Ty, "True", "standard, min_max, none"),
    # any file
    Case("path", "type", lambda f: load_file(3), Ty, "3", r"\.npy, \.npz, \.csv, \.parquet"),
    Case("path", "an array", lambda f: read(GRID), Ty, r"float64 array of shape \(20, 2\)", "path of a file"),
    Case("path", "missing", lambda f: load_file(f / "none.csv"), FileNotFoundError, "none.csv", "a file"),
    Case("path", "a folder", lambda f: load_file(f), V, "a folder", r"a file: .*datasets\.mnist"),
    Case("path", "unknown suffix", lambda f: raw(f, "bad.txt", b"1,2\n"), V, r"bad\.txt.*'\.txt'", r"\.csv"),
    Case("path", "no suffix", lambda f: raw(f, "bad", b"1,2\n"), V, "suffix ''", r"\.csv"),
    Case("path", "too few rows", lambda f: npy(f, GRID[:9]), V, r"\(9, 2\)", "at least 10 rows"),
    Case("path", "constant column", lambda f: csv(f, "a,b\n" + "1,2\n3,2\n" * 9), V,
         r"column 'b' is 2.0 in all training rows", "vary, or scaling='none'"),
    Case("path", "constant over the training rows",
         lambda f: npy(f, np.repeat([[1.0], [2.0]], [16, 4], axis=0), shuffle=False), V,
         "column 'column 0' is 1.0 in all", "vary"),
    # arguments of load_file
    Case("test_fraction", "0", lambda f: npy(f, GRID, test_fraction=0.0), V, "0.0", r"\(0, 0.9\]"),
    Case("test_fraction", "0.95", lambda f: npy(f, GRID, test_fraction=0.95), V, "0.95", r"\(0, 0.9\]"),
    Case("test_fraction", "NaN", lambda f: npy(f, GRID, test_fraction=NAN), V, "nan", "finite"),
    Case("test_fraction", "type", lambda f: npy(f, GRID, test_fraction="a"), Ty, "'a'", "number"),
    Case("seed", "of load_file", lambda f: npy(f, GRID, seed=-3), V, "-3", "from 0"),
    Case("scaling", "of load_file", lambda f: npy(f, GRID, scaling="std"), V, "'std'", "standard"),
    Case("shuffle", "type", lambda f: npy(f, GRID, shuffle=1), Ty, "1", "True or False"),
    # .npy
    Case("npy path", "empty file", lambda f: raw(f, "bad.npy", b""), V, "cannot be read", r"\(n, dim\)"),
    Case("npy path", "cut header", lambda f: raw(f, "bad.npy", b"\x93NUMPY\x01\x00"),
         V, "cannot be read", "npy"),
    Case("npy path", "cut data", lambda f: raw(f, "bad.npy", npy_bytes(f)[:-8]), V, "cannot be read", "npy"),
    Case("npy path", "text", lambda f: raw(f, "bad.npy", b"1,2\n3,4\n"), V, "cannot be read", "npy"),
    Case("npy path", "an archive", lambda f: raw(f, "bad.npy", npz_bytes(f)), V, "cannot be read", "npy"),
    Case("npy path", "pickled objects", lambda f: npy(f, np.array([{}] * 20, dtype=object)),
         V, "cannot be read.*objects", "numbers"),
    Case("npy path", "complex", lambda f: npy(f, GRID + 1j), V, "complex128", "real numbers"),
    Case("npy path", "strings", lambda f: npy(f, np.array(["a"] * 20)), V, "<U1", "real numbers"),
    Case("npy path", "records", lambda f: npy(f, np.zeros(20, dtype=[("a", "f4"), ("b", "f4")])),
         V, r"'a'", "real numbers"),
    Case("npy path", "three axes", lambda f: npy(f, np.ones((20, 2, 2))), V, r"\(20, 2, 2\)", r"\(n, dim\)"),
    Case("npy path", "no axis", lambda f: npy(f, np.float64(1)), V, r"shape \(\)", r"\(n, dim\)"),
    Case("npy path", "no rows", lambda f: npy(f, np.ones((0, 2))), V, r"\(0, 2\)|cannot be read", "row|npy"),
    Case("npy path", "no columns", lambda f: npy(f, np.ones((20, 0))), V, r"\(20, 0\)|cannot be read", "dim"),
    Case("npy path", "NaN", lambda f: npy(f, with_value(NAN)),
         V, r"nan in row 17, column 'column 1' \(1 such",
         "finite"),
    Case("npy path", "infinity", lambda f: npy(f, with_value(-INF)), V, "-inf in row 17", "finite"),
    Case("npy path", "beyond 1e30", lambda f: npy(f, with_value(-1e200)),
         V, r"bad\.npy', with -1e\+200 in row 17, column 'column 1'", r"up to 1e\+30, or scaling='none'"),
    Case("npy path", "beyond 1e30, min_max", lambda f: npy(f, with_value(1e31), scaling="min_max"),
         V, "1e.31 in row 17", "magnitude"),
    Case("header", "of a .npy", lambda f: npy(f, GRID, header=True), V, "True", r"None for a \.npy file"),
    # .npz
    Case("npz path", "no archive", lambda f: raw(f, "bad.npz", b"PK\x03\x04" + bytes(40)),
         V, "not an archive", "archive"),
    Case("npz path", "one array, not in an archive", lambda f: raw(f, "bad.npz", npy_bytes(f)),
         V, "not an archive", "archive"),
    Case("npz path", "empty archive", lambda f: npz(f), V, "empty archive", "'x'"),
    Case("npz path", "several arrays", lambda f: npz(f, a=GRID, b=GRID), V, "arrays a, b", "'x'"),
    Case("npz path", "pickled objects", lambda f: npz(f, x=np.array([{}] * 20)),
         V, "Object arrays", "archive"),
    Case("npz path", "encrypted", lambda f: raw(f, "bad.npz", zipped(("x.npy", npy_bytes(f)), flags=1)),
         V, "cannot be read.*encrypted", "archive"),
    Case("npz path", "unknown method",
         lambda f: raw(f, "bad.npz", zipped(("x.npy", npy_bytes(f)), method=99)),
         V, "cannot be read.*compression method", "archive"),
    Case("npz path", "unknown version",
         lambda f: raw(f, "bad.npz", zipped(("x.npy", npy_bytes(f)), version=173)),
         V, "cannot be read.*17.3", "archive"),
    Case("npz path", "damaged bzip2",
         lambda f: raw(f, "bad.npz", zipped(("x.npy", b"BZh9" + bytes(99)), method=zipfile.ZIP_BZIP2)),
         V, "cannot be read", "archive"),
    Case("npz path", "damaged LZMA",
         lambda f: raw(f, "bad.npz", zipped(("x.npy", b"\4\6\5\0" + b"\xff" * 99), method=zipfile.ZIP_LZMA)),
         V, "cannot be read", "archive"),
    Case("npz path", "text", lambda f: raw(f, "bad.npz", zipped(("x", b"1,2"))), V, "'x' is no array", "'x'"),
    Case("npz path", "names of columns as text",
         lambda f: raw(f, "bad.npz", zipped(("x.npy", npy_bytes(f)), ("columns", b"a,b"))),
         V, "'columns' is no array", "archive"),
    Case("npz path", "three axes", lambda f: npz(f, x=np.ones((20, 2, 2))), V, r"'x'.*\(20, 2, 2\)", "dim"),
    Case("npz path", "complex", lambda f: npz(f, x=GRID * 1j), V, "complex128", "real numbers"),
    Case("npz path", "NaN", lambda f: npz(f, x=with_value(NAN), y=HALVES), V, "nan in row 17", "finite"),
    Case("npz path", "names of other columns", lambda f: npz(f, x=GRID, columns=np.array(["a", "b", "c"])),
         V, r"'columns'.*\(3,\)", "a name for each column"),
    Case("npz path", "columns of one name", lambda f: npz(f, x=GRID, columns=np.array(["a", "a"])),
         V, "several columns 'a'", "all different"),
    Case("npz path", "too few labels", lambda f: npz(f, "y", x=GRID, y=HALVES[:19]),
         V, r"'y' .*\(19,\)", "20 rows"),
    Case("npz path", "labels one-hot", lambda f: npz(f, "y", x=GRID, y=np.eye(2)[HALVES]),
         V, r"\(20, 2\)", "20 rows"),
    # .csv
    Case("csv path", "empty file", lambda f: csv(f, ""), V, "without any row", "at least one row"),
    Case("csv path", "blank lines", lambda f: csv(f, "\n\n\n"), V, "without any row", "at least one row"),
    Case("csv path", "names only", lambda f: csv(f, "a,b\n"), V, "without any row", "at least one row"),
    Case("csv path", "not text", lambda f: csv(f, b"\xff\xfe\x00\x01" * 9),
         V, "cannot be read.*utf-8", "UTF-8"),
    Case("csv path", "short line", lambda f: csv(f, lines("1,2"), label_column="kind"),
         V, "2 fields in line 21", "3 fields"),
    Case("csv path", "long line", lambda f: csv(f, lines("1,2,cat,4"), label_column="kind"),
         V, "4 fields in line 21", "3 fields"),
    Case("csv path", "all lines longer than the names", lambda f: csv(f, "a,b\n" + "1,2,3\n" * 20),
         V, "3 fields in line 2", "2 fields"),
    Case("csv path", "a word", lambda f: csv(f, lines("1,two,cat"), label_column="kind"),
         V, "'two' in line 21, column 'b'", "a number in each field$"),
    Case("csv path", "an empty field", lambda f: csv(f, lines("1,,cat"), label_column="kind"),
         V, "with nothing in line 21, column 'b'", r"a number in each field$"),
    Case("csv path", "labels not named", lambda f: csv(f, lines()),
         V, "'dog' in line 2, column 'kind'", "field, or label_column='kind' where those are classes$"),
    Case("csv path", "names with a number", lambda f: csv(f, "x,2020\n" + "1,2\n" * 20),
         V, "'x' in line 1", "a number in each field, or header=True where that line has the columns' names"),
    Case("csv path", "semicolons", lambda f: csv(f, "1;2\n" * 20),
         V, "the first line '1;2'", "commas between the fields"),
    Case("csv path", "NaN", lambda f: csv(f, lines("1,nan,cat"), label_column="kind"),
         V, "nan in row 19, column 'b'", "finite"),
    Case("csv path", "beyond float64", lambda f: csv(f, lines("1,1e999,cat"), label_column="kind"),
         V, "inf in row 19, column 'b'", "finite"),
    Case("csv path", "columns of one name", lambda f: csv(f, lines(header="a,a,kind")),
         V, "several columns 'a'", "all different"),
    Case("csv path", "a written index", lambda f: csv(f, lines(header=",b,kind")),
         V, "column 0 has no name", "a name for each"),
    Case("csv path", "open quote", lambda f: csv(f, lines('1,"2,cat'), label_column="kind"),
         V, "cannot be read", "commas"),
    Case("csv path", "nothing besides labels", lambda f: csv(f, "kind\n" + "0\n1\n" * 9, label_column="kind"),
         V, r"\(18, 0\)", "one column besides"),
    Case("header", "type", lambda f: csv(f, lines(), header=1), Ty, "1", "True or False"),
    Case("csv path", "numbers as names, twice", lambda f: csv(f, "2020,2020\n" + "1,2\n" * 20, header=True),
         V, "several columns '2020'", "all different"),
    Case("csv path", "names said to be numbers", lambda f: csv(f, "a,b\n" + "1,2\n" * 20, header=False),
         V, "'a' in line 1", "header=True"),
    Case("csv path", "empty file without names", lambda f: csv(f, "", header=False),
         V, "without any row", "at least one row"),
    # .parquet
    Case("parquet path", "text", lambda f: parquet_bytes(f, b"a,b\n1,2\n"),
         V, "cannot be read", "Parquet"),
    Case("parquet path", "empty file", lambda f: parquet_bytes(f, b""),
         V, "cannot be read", "Parquet"),
    Case("parquet path", "a null", lambda f: parquet(f, a=[1.0] * 19 + [None]),
         V, "row 19, column 'a'", "nulls"),
    Case("parquet path", "strings", lambda f: parquet(f, a=["x"] * 20),
         V, "'a' has values of type string", "numbers"),
    Case("parquet path", "lists", lambda f: parquet(f, a=[[1.0], [1.0, 2.0]] * 10),
         V, "type list", "numbers"),
    Case("parquet path", "NaN", lambda f: parquet(f, a=[0.0] * 19 + [NAN]),
         V, "nan in row 19, column 'a'", "finite"),
    Case("parquet path", "no rows", lambda f: parquet(f, a=np.zeros(0)), V, r"\(0, 1\)", "at least one row"),
    Case("parquet path", "nothing besides labels", lambda f: parquet(f, "a", a=[0, 1] * 10),
         V, "no column besides", "numbers"),
    Case("parquet label_column", "unknown", lambda f: parquet(f, "kid", kind=[0, 1] * 10, a=range(20)),
         V, "'kid'", "kind, a.*did you mean 'kind'"),
    Case("parquet label_column", "lists", lambda f: parquet(f, "kind", kind=[[0], [1]] * 10, a=range(20)),
         V, "'kind' with values of type list", "whole number or a string in each row"),
    Case("parquet label_column", "ragged lists",
         lambda f: parquet(f, "kind", kind=[[0], [1, 0]] * 10, a=range(20)), V, "type list", "in each row"),
    Case("parquet path", "a label missing", lambda f: parquet(f, "kind", kind=[0] * 19 + [None], a=range(20)),
         V, "row 19, column 'kind'", "nulls"),
    # labels
    Case("label_column", "type", lambda f: npy(f, GRID, label_column=2), Ty, "2", "name of a column"),
    Case("label_column", "unknown in .csv", lambda f: csv(f, lines(), label_column="Kind"),
         V, "'Kind'", "a, b, kind.*did you mean 'kind'"),
    Case("label_column", "unknown in .npy", lambda f: npy(f, GRID, label_column="y"),
         V, "'y'", "column 0, column 1"),
    Case("label_column", "unknown in .npz", lambda f: npz(f, "z", x=GRID, y=HALVES), V, "'z'", "column 0"),
    Case("label_column", "a measurement", lambda f: csv(f, "a,b\n" + "1,0.5\n2,1.5\n" * 9, label_column="b"),
         V, "'b' with '0.5' in row 0", "whole number or a string"),
    Case("label_column", "NaN", lambda f: npz(f, "y", x=GRID, y=np.r_[HALVES[:19], NAN]),
         V, "'y' with nan in row 19", "whole number"),
    Case("label_column", "NaN as text",
         lambda f: csv(f, "a,b\n" + "1,0\n" * 19 + "2,nan\n", label_column="b"),
         V, "'b' with 'nan' in row 19", "whole number"),
    Case("label_column", "an empty one", lambda f: csv(f, lines("1,2,"), label_column="kind"),
         V, "'kind' with '' in row 19", "string in each row"),
    Case("label_column", "complex", lambda f: npz(f, "y", x=GRID, y=HALVES + 1j),
         V, "complex128", "whole number"),
    Case("label_column", "one class", lambda f: npz(f, "y", x=GRID, y=np.full(20, 7)),
         V, "'y' with classes 7 .1 in 20 rows", "2 to 10 classes"),
    Case("label_column", "a class for each row", lambda f: npz(f, "y", x=GRID, y=np.arange(20)),
         V, r"0, 1, 2, \.\.\. \(20 in 20 rows", "2 to 10 classes"),
    Case("label_column", "a class that is held out",
         lambda f: csv(f, "a,b\n" + "".join(f"{i},{i // 10}\n" for i in range(20)), label_column="b",
                       shuffle=False, test_fraction=0.5),
         V, "class '1' in no training row", "occur"),
    # mnist
    Case("folder", "type", lambda f: datasets.mnist(3), Ty, "3", "path of a folder"),
    Case("folder", "missing", lambda f: datasets.mnist(f / "none"),
         FileNotFoundError, "none.*train-images", "gz"),
    Case("folder", "a file missing", lambda f: mnist(f, 3),
         FileNotFoundError, "without t10k-labels", r"\.gz"),
    Case("folder", "empty file", lambda f: mnist(f, 0, b""), V, "first bytes ''", "00000803"),
    Case("folder", "labels for images", lambda f: mnist(f, 0, idx(12)), V, "00000801", "00000803"),
    Case("folder", "cut header", lambda f: mnist(f, 2, idx(10, 3, 2)[:9]),
         V, "9 bytes in .*t10k-images", "header"),
    Case("folder", "cut data", lambda f: mnist(f, 2, idx(10, 3, 2)[:-1]),
         V, "75 bytes", r"76 bytes .*\(10, 3, 2\)"),
    Case("folder", "data too long", lambda f: mnist(f, 1, idx(12) + b"\0"), V, "21 bytes", "20 bytes"),
    Case("folder", "cut gzip", lambda f: mnist(f, 0, gzip.compress(idx(12, 3, 2))[:-9], ".gz"),
         V, "damaged data", "gzip"),
    Case("folder", "not gzip", lambda f: mnist(f, 0, idx(12, 3, 2), ".gz"), V, "damaged data", "gzip"),
    Case("folder", "too few labels", lambda f: mnist(f, 3, idx(9)),
         V, "9 labels in .*t10k-labels", "images, 10"),
    Case("folder", "a label of 10", lambda f: mnist(f, 1, idx(12, fill=10)), V, "label 10", "0 to 9"),
    Case("folder", "images of another size", lambda f: mnist(f, 2, idx(10, 2, 3)),
         V, r"\(2, 3\)", r"\(3, 2\)"),
    Case("folder", "no images", lambda f: mnist(f, 0, idx(0, 3, 2)), V, "0 images", "at least 10"),
    Case("folder", "images of no pixels", lambda f: mnist(f, 0, idx(12, 0, 2)),
         V, r"12 images of shape \(0, 2\)", "10"),
    # Standardiser
    Case("data", "no rows", lambda f: Standardiser.min_max(GRID[:0]), V, r"\(0, 2\)", "at least one row"),
    Case("data", "one axis", lambda f: Standardiser.fit(GRID[0]), V, r"\(2,\)", r"\(n, dim\)"),
    Case("data", "NaN", lambda f: Standardiser.min_max(with_value(NAN)),
         V, r"nan at index \(17, 1\)", "finite"),
    Case("data", "strings", lambda f: Standardiser.fit(np.array([["1", "2"]])), Ty, "<U1", "numbers"),
    Case("dim", "0", lambda f: Standardiser.identity(0), V, "0", "from 1"),
    Case("x", "complex", lambda f: Standardiser.identity(2).transform(GRID + 1j),
         Ty, "complex128", r"\(n, 2\)"),
]
# fmt: on


def npy_bytes(folder: Path) -> bytes:
    np.save(folder / "good.npy", GRID)
    return (folder / "good.npy").read_bytes()


def zipped(*members: tuple[str, bytes], version: int = 20, flags: int = 0, method: int = 0) -> bytes:
    """An archive of these members, the first said to be of this version, flags and method."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        for name, content in members:
            archive.writestr(name, content)
    data = bytearray(memory.getvalue())
    struct.pack_into("<HH", data, 6, flags, method)  # of the first member, and in the directory
    struct.pack_into("<HHH", data, data.index(b"PK\1\2") + 6, version, flags, method)
    return bytes(data)


def npz_bytes(folder: Path) -> bytes:
    np.savez(folder / "good.npz", x=GRID)
    return (folder / "good.npz").read_bytes()


@pytest.mark.parametrize("case", CASES, ids=[f"{case.argument}: {case.fault}" for case in CASES])
def test_bad_data(case: Case, tmp_path: Path) -> None:
    with pytest.raises(case.error) as caught:
        case.call(tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    name, _, rest = message.partition(": got ")
    given, semicolon, accepted = rest.rpartition("; accepted: ")
    assert semicolon, message
    assert name == case.argument.split()[-1], message
    assert re.search(case.given, given), message
    assert re.search(case.accepted, accepted), message


def test_the_table_is_long_enough_and_without_repetition() -> None:
    pairs = {(case.argument, case.fault) for case in CASES}
    assert len(pairs) == len(CASES) >= 100


def test_parquet_without_pyarrow_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    (tmp_path / "rows.parquet").write_bytes(b"")
    with pytest.raises(
        ValueError, match=r"^path: got .*pip install diffusion_fast\[parquet\].*accepted: .npy"
    ):
        datasets.load_file(tmp_path / "rows.parquet")
