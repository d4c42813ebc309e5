"""Reading files: what comes back is what was written, whatever the format; a .npy is not copied."""

from __future__ import annotations

import gzip
import os
import struct
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from diffusion_fast import datasets
from diffusion_fast.datasets import load_file, read

ROWS = np.random.default_rng(0).standard_normal((50, 3))
KINDS = np.array(["dog", "cat", "eel", "cat", "dog"] * 10)


def base_of(array: np.ndarray) -> object:
    while isinstance(array.base, np.ndarray) and not isinstance(array, np.memmap):
        array = array.base
    return array


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("order", ["C", "F"])
def test_npy_is_a_view_of_the_file(tmp_path, dtype, order):
    np.save(tmp_path / "rows.npy", np.asarray(ROWS, dtype, order=order))
    table = read(tmp_path / "rows.npy")
    np.testing.assert_array_equal(table.rows, ROWS.astype(dtype))
    assert table.rows.dtype == dtype
    assert table.columns == ("column 0", "column 1", "column 2")
    assert (table.labels, table.classes) == (None, ())
    assert isinstance(base_of(table.rows), np.memmap)
    data = load_file(tmp_path / "rows.npy", shuffle=False, test_fraction=0.3)
    for part, expected in [(data.train, ROWS[:35]), (data.test, ROWS[35:])]:
        np.testing.assert_array_equal(part, expected.astype(dtype))
        assert isinstance(base_of(part), np.memmap)
    assert not isinstance(base_of(load_file(tmp_path / "rows.npy").train), np.memmap)


@pytest.mark.parametrize("dtype", [">f8", np.float16, np.longdouble, np.int8, np.uint64, bool])
def test_other_numbers_become_float64(tmp_path, dtype):
    given = (10 * ROWS).astype(np.int8).astype(dtype)
    np.save(tmp_path / "rows.npy", given)
    rows = read(tmp_path / "rows.npy").rows
    assert rows.dtype == np.float64
    assert rows.dtype.isnative
    np.testing.assert_array_equal(rows, given.astype(float))


def test_one_axis_is_one_column(tmp_path):
    np.save(tmp_path / "rows.npy", ROWS[:, 0])
    np.testing.assert_array_equal(read(tmp_path / "rows.npy").rows, ROWS[:, :1])


def test_labels_from_a_column_of_a_npy(tmp_path):
    np.save(tmp_path / "rows.npy", np.c_[ROWS[:, 0], np.arange(50) % 3 + 5, ROWS[:, 1]])
    table = read(tmp_path / "rows.npy", label_column="column 1")
    np.testing.assert_array_equal(table.rows, ROWS[:, :2])
    np.testing.assert_array_equal(table.labels, np.arange(50) % 3)
    assert table.columns == ("column 0", "column 2")
    assert table.classes == ("5", "6", "7")


def test_npz_by_name(tmp_path):
    """The array x among others, or the only one there is besides labels and names."""
    np.savez(tmp_path / "a.npz", x=ROWS, y=KINDS, z=ROWS[:4], columns=np.array(["u", "v", "w"]))
    np.savez(tmp_path / "b.npz", points=ROWS, kind=KINDS)
    np.savez_compressed(tmp_path / "c.npz", X=ROWS.astype(np.float32), y=KINDS == "cat", X_raw=ROWS)
    a, b, c = (
        read(tmp_path / f"{n}.npz", label_column=y) for n, y in [("a", "y"), ("b", "kind"), ("c", "y")]
    )
    for table in (a, b):
        np.testing.assert_array_equal(table.rows, ROWS)
        assert table.classes == ("cat", "dog", "eel")
        np.testing.assert_array_equal(np.array(table.classes)[table.labels], KINDS)
    assert a.columns == ("u", "v", "w")
    assert b.columns == ("column 0", "column 1", "column 2")
    assert c.rows.dtype == np.float32
    assert c.classes == ("False", "True")
    np.testing.assert_array_equal(c.labels, KINDS == "cat")
    assert read(tmp_path / "a.npz").labels is None


def csv_text(header: str | None, end: str = "\n") -> str:
    rows = [
        f"{x!r},{kind},{y!r}"
        for x, kind, y in zip(ROWS[:, 0].tolist(), KINDS, ROWS[:, 1].tolist(), strict=True)
    ]
    return end.join(([] if header is None else [header]) + rows) + end


@pytest.mark.parametrize(
    ("text", "columns"),
    [
        (csv_text("height,kind,weight"), ("height", "weight")),
        (csv_text('"height","kind","weight"', "\r\n"), ("height", "weight")),
        (csv_text("# height, kind , weight"), ("height", "weight")),
        ("\n\n" + csv_text("height,kind,weight\n"), ("height", "weight")),
        ("\ufeff" + csv_text("höhe,kind,\u91cd\u3055"), ("höhe", "\u91cd\u3055")),
        (csv_text("height,kind,weight").replace(",", " , "), ("height", "weight")),
        (csv_text("height,kind,weight").replace("cat", '" cat"'), ("height", "weight")),
    ],
)
def test_csv_with_names(tmp_path, text, columns):
    (tmp_path / "rows.csv").write_bytes(text.encode())
    table = read(tmp_path / "rows.csv", label_column="kind")
    np.testing.assert_array_equal(table.rows, ROWS[:, :2])
    np.testing.assert_array_equal(np.array(table.classes)[table.labels], KINDS)
    assert table.columns == columns
    assert table.classes == ("cat", "dog", "eel")


def test_csv_without_names(tmp_path):
    (tmp_path / "rows.csv").write_text(csv_text(None))
    table = read(tmp_path / "rows.csv", label_column="column 1")
    np.testing.assert_array_equal(table.rows, ROWS[:, :2])
    assert table.columns == ("column 0", "column 2")
    np.testing.assert_array_equal(np.array(table.classes)[table.labels], KINDS)


@pytest.mark.parametrize("names", [("2020", "2021"), ("height", "2020"), ("nan", "inf")])
def test_csv_with_numbers_as_names(tmp_path, names):
    (tmp_path / "rows.csv").write_text("\n".join([",".join(names), *(f"{i},{i * i}" for i in range(20))]))
    table = read(tmp_path / "rows.csv", header=True)
    assert table.columns == names
    np.testing.assert_array_equal(table.rows, [[i, i * i] for i in range(20)])
    assert load_file(tmp_path / "rows.csv", header=True).columns == names


def test_csv_with_words_in_the_first_row(tmp_path):
    """Labels alone are words: the first line is one of the rows."""
    (tmp_path / "rows.csv").write_text("nan,cat\n" + "1,cat\n" * 3)
    (tmp_path / "words.csv").write_text("a\nb\n" * 5)
    with pytest.raises(ValueError, match="nan in row 0"):
        read(tmp_path / "rows.csv", label_column="column 1", header=False)
    with pytest.raises(ValueError, match="'column 0'"):
        read(tmp_path / "words.csv", header=False)


def test_csv_of_savetxt(tmp_path):
    np.savetxt(tmp_path / "rows.CSV", ROWS, delimiter=",", header="a,b,c")
    table = read(tmp_path / "rows.CSV")
    np.testing.assert_array_equal(table.rows, ROWS)
    assert table.columns == ("a", "b", "c")


def test_whole_numbers_as_labels_are_sorted_as_numbers(tmp_path):
    labels = np.array([10, 9, -1, 100, 9] * 4)
    for written in (labels, labels.astype(float), [f" {label}" for label in labels]):
        rows = [f"{i},{label}" for i, label in enumerate(written)]
        (tmp_path / "rows.csv").write_text("\n".join(["a,b", *rows]))
        table = read(tmp_path / "rows.csv", label_column="b")
        assert table.classes == ("-1", "9", "10", "100")
        np.testing.assert_array_equal(np.array(table.classes)[table.labels].astype(int), labels)


def test_parquet(tmp_path):
    pa, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    columns = {
        "a": ROWS[:, 0],
        "kind": pa.array(KINDS).dictionary_encode(),
        "b": pa.array(np.arange(50), pa.int16()),
        "c": ROWS[:, 1].astype(np.float32),
        "d": ROWS[:, 2] > 0,
    }
    parquet.write_table(pa.table(columns), tmp_path / "rows.parquet", row_group_size=7)
    table = read(tmp_path / "rows.parquet", label_column="kind")
    expected = np.c_[ROWS[:, 0], np.arange(50), ROWS[:, 1].astype(np.float32), ROWS[:, 2] > 0]
    np.testing.assert_array_equal(table.rows, expected)
    assert table.columns == ("a", "b", "c", "d")
    assert table.classes == ("cat", "dog", "eel")
    np.testing.assert_array_equal(np.array(table.classes)[table.labels], KINDS)
    parquet.write_table(pa.table({"c": columns["c"], "k": np.arange(50) % 2}), tmp_path / "single.parquet")
    single = read(tmp_path / "single.parquet", label_column="k")
    assert single.rows.dtype == np.float32
    np.testing.assert_array_equal(single.labels, np.arange(50) % 2)


def test_load_file_splits_all_rows_by_seed(tmp_path):
    np.savez(tmp_path / "rows.npz", x=np.arange(100, dtype=np.int64), y=np.arange(100) % 4)
    file = tmp_path / "rows.npz"
    data = load_file(file, label_column="y", test_fraction=0.25, seed=1)
    assert data.name == "rows"
    assert data.train.shape == (75, 1)
    assert data.test.shape == (25, 1)
    assert sorted(np.concatenate([data.train, data.test])[:, 0]) == list(range(100))
    for rows, labels in [(data.train, data.train_labels), (data.test, data.test_labels)]:
        assert labels.dtype == np.int64
        np.testing.assert_array_equal(labels, rows[:, 0] % 4)
    assert (data.n_classes, data.classes) == (4, ("0", "1", "2", "3"))
    np.testing.assert_array_equal(
        data.test, load_file(file, label_column="y", test_fraction=0.25, seed=1).test
    )
    assert not np.array_equal(data.test, load_file(file, test_fraction=0.25, seed=2).test)
    in_order = load_file(file, test_fraction=0.25, shuffle=False)
    np.testing.assert_array_equal(in_order.test[:, 0], np.arange(75, 100))
    assert in_order.train_labels is None


def test_load_file_scales_by_the_training_rows(tmp_path):
    np.save(tmp_path / "rows.npy", ROWS * [1, 10, 100] + [5, 0, 1e4])
    standard, min_max, none = (
        load_file(tmp_path / "rows.npy", scaling=scaling) for scaling in ("standard", "min_max", "none")
    )
    np.testing.assert_allclose(standard.standardised_train.mean(axis=0), 0, atol=1e-12)
    np.testing.assert_allclose(standard.standardised_train.std(axis=0), 1, rtol=1e-12)
    np.testing.assert_allclose(min_max.standardised_train.min(axis=0), -1, rtol=1e-12)
    np.testing.assert_allclose(min_max.standardised_train.max(axis=0), 1, rtol=1e-12)
    np.testing.assert_array_equal(none.standardised_test, none.test)
    np.testing.assert_array_equal(standard.train, none.train)


def test_a_constant_column_is_kept_without_scaling(tmp_path):
    np.save(tmp_path / "rows.npy", np.c_[ROWS, np.ones(50)])
    assert load_file(tmp_path / "rows.npy", scaling="none").dim == 4


def test_huge_numbers_are_kept_without_scaling(tmp_path):
    np.save(tmp_path / "rows.npy", ROWS * 1e200)
    np.testing.assert_array_equal(read(tmp_path / "rows.npy").rows, ROWS * 1e200)
    assert np.abs(load_file(tmp_path / "rows.npy", scaling="none").train).max() > 1e200


def test_pickles_are_never_run(tmp_path):
    class Bomb:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    np.save(tmp_path / "rows.npy", np.array([Bomb()] * 20, dtype=object), allow_pickle=True)
    np.savez(tmp_path / "rows.npz", x=np.array([Bomb()] * 20, dtype=object))
    for name in ("rows.npy", "rows.npz"):
        with pytest.raises(ValueError, match="cannot be read"):
            read(tmp_path / name)
    assert not (tmp_path / "ran").exists()


def test_a_header_that_claims_terabytes_is_refused(tmp_path):
    content = b"".join(
        [b"\x93NUMPY\x01\x00", struct.pack("<H", 118)]
        + [
            b"{'descr': '<f8', 'fortran_order': False, 'shape': (99999999999, 2), }".ljust(117) + b"\n",
            bytes(320),
        ]
    )
    (tmp_path / "rows.npy").write_bytes(content)
    with pytest.raises(ValueError, match=r"cannot be read \(mmap length is greater"):
        read(tmp_path / "rows.npy")


OPEN_A_FILE = """
import sys
from pathlib import Path
from diffusion_fast import datasets  # before the first look at the memory

def private():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("RssAnon")) // 1024

datasets.read(sys.argv[2])
before = private()
table = datasets.read(sys.argv[1])
opened = private()
data = datasets.load_file(sys.argv[1], shuffle=False)
print(opened - before, private() - opened, table.rows.shape[0], data.standardiser.std.tolist())
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs /proc")
def test_a_file_of_1_gb_takes_no_memory(tmp_path):
    """Neither to open it nor to fit the scaling to it, which takes blocks of 16 MB at a time."""
    n = 89_478_486  # 3 float32 each: 1 GiB, most of it a hole in the file
    rows = np.lib.format.open_memmap(tmp_path / "rows.npy", "w+", np.float32, (n, 3))
    rows[:: n // 7] = 1.0
    share = (rows[:: n // 7].shape[0] - 2) / round(0.8 * n)
    rows.flush()
    np.save(tmp_path / "small.npy", ROWS)
    command = [sys.executable, "-c", OPEN_A_FILE, tmp_path / "rows.npy", tmp_path / "small.npy"]
    words = subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()
    opened, loaded, n_read = (int(word) for word in words[:3])
    assert n_read == n
    assert opened < 20
    assert loaded < 150
    assert float(words[3].strip("[],")) == pytest.approx(np.sqrt(share * (1 - share)), rel=1e-9)


def write_mnist(folder: Path, images: dict[str, np.ndarray], zipped: bool) -> dict[str, np.ndarray]:
    labels = {part: np.arange(len(x), dtype=np.uint8) % 10 for part, x in images.items()}
    for part, x in images.items():
        for kind, values in [("images-idx3", x), ("labels-idx1", labels[part])]:
            head = struct.pack(f">HBB{values.ndim}I", 0, 8, values.ndim, *values.shape)
            content = head + values.tobytes()
            file = folder / f"{part}-{kind}-ubyte{'.gz' if zipped else ''}"
            file.write_bytes(gzip.compress(content) if zipped else content)
    return labels


@pytest.mark.parametrize("zipped", [False, True])
def test_mnist_reads_idx_files(tmp_path, zipped):
    rng = np.random.default_rng(0)
    images = {
        part: rng.integers(0, 256, (n, 3, 2), dtype=np.uint8) for part, n in [("train", 20), ("t10k", 12)]
    }
    labels = write_mnist(tmp_path, images, zipped)
    data = datasets.mnist(tmp_path)
    assert data.image_shape == (3, 2)
    assert data.columns == ("pixel_0_0", "pixel_0_1", "pixel_1_0", "pixel_1_1", "pixel_2_0", "pixel_2_1")
    assert data.classes == tuple("0123456789")
    for part, rows, y in [("train", data.train, data.train_labels), ("t10k", data.test, data.test_labels)]:
        assert rows.dtype == np.float32
        np.testing.assert_allclose(rows.reshape(images[part].shape) * 255, images[part], rtol=1e-6)
        np.testing.assert_array_equal(y, labels[part])
    np.testing.assert_allclose(data.standardised_train, data.train - 0.5, atol=1e-7)


def test_mnist_itself(test_data):
    """Counts of the digits and moments of the pixels as published."""
    data = datasets.mnist(test_data / "mnist")
    assert data.train.shape == (60_000, 784)
    assert data.test.shape == (10_000, 784)
    counts = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert np.bincount(data.train_labels).tolist() == counts
    assert np.bincount(data.test_labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
    assert data.train.mean(dtype=np.float64) == pytest.approx(0.1307, abs=5e-5)
    assert data.train.std(dtype=np.float64) == pytest.approx(0.3081, abs=5e-5)
    scaled = data.standardised_test
    assert (scaled.min(), scaled.max(), scaled.dtype) == (-0.5, 0.5, np.float32)
