"""Small images of digits: scikit-learn's, and MNIST or any set in its four files.

Rows are pixels in [0, 1], row by row. Scaled to [-0.5, 0.5].
"""

from __future__ import annotations

import gzip
import math
import os
import struct
import zlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from diffusion_fast import _checks
from diffusion_fast.datasets.dataset import MIN_ROWS, Dataset, sizes
from diffusion_fast.standardiser import Standardiser

DIGIT_CLASSES = tuple(str(digit) for digit in range(10))
N_DIGITS = 1797
DIGIT_SIDE, MAX_SIDE = 8, 256
MNIST_ROWS = 60_000, 10_000
MNIST_HOME = "https://ossci-datasets.s3.amazonaws.com/mnist/"
MNIST_FROM = f"as from {MNIST_HOME}"
UNSIGNED_BYTES = 0x08


def digits(n_train: int = 1_437, n_test: int = 360, seed: int = 0, *, side: int = DIGIT_SIDE) -> Dataset:
    """scikit-learn's 1,797 handwritten digits of 8 x 8 pixels in ten classes; seed says which are held out.

    n_train + n_test: at most 1,797. side: from 8 up; images above 8 x 8 are interpolated (bicubic).
    Pixels in [0, 1], float64; scaled to [-0.5, 0.5]. Raises TypeError or ValueError for other numbers.
    """
    from sklearn.datasets import load_digits

    n_train, n_test = sizes(n_train, n_test)
    if n_train + n_test > N_DIGITS:
        raise _checks.bad_value("n_train", n_train, f"n_train + n_test at most {N_DIGITS}, with {n_test = }")
    rng = np.random.default_rng(_checks.seed("seed", seed))
    order = rng.permutation(N_DIGITS)[: n_train + n_test]
    data = load_digits()
    images, labels = data.images[order] / 16, data.target[order].astype(np.int64)
    if _checks.integer("side", side, DIGIT_SIDE, MAX_SIDE) > DIGIT_SIDE:
        larger = F.interpolate(torch.from_numpy(images)[:, None], (side, side), mode="bicubic")
        images = larger[:, 0].clamp(0, 1).numpy()
    rows = images.reshape(len(images), -1)
    return _image_set(
        "digits", (rows[:n_train], rows[n_train:]), (labels[:n_train], labels[n_train:]), (side, side)
    )


def mnist(folder: str | os.PathLike[str] | None = None) -> Dataset:
    """The 60,000 + 10,000 digits of 28 x 28 pixels of MNIST (LeCun et al. 1998), from its four files.

    folder: has train-images-idx3-ubyte, train-labels-idx1-ubyte, t10k-images-idx3-ubyte and
    t10k-labels-idx1-ubyte, each as it is or with .gz. Other sets in these files, such as Fashion-MNIST, are
    read too, whatever the size of their images. None: from openml.org, by scikit-learn, which keeps them for
    the next time. Pixels in [0, 1], float32; scaled to [-0.5, 0.5].

    Raises FileNotFoundError where a file is missing, ValueError where one is damaged or does not fit the
    others, and where nothing comes from openml.org.
    """
    if folder is None:
        return _openml_mnist()
    if not isinstance(folder, str | os.PathLike):
        raise _checks.bad_type("folder", folder, "the path of a folder with the four files of MNIST")
    images, labels = [], []
    for part in ("train", "t10k"):
        file, x = _read_idx(Path(folder), f"{part}-images-idx3-ubyte", 3)
        label_file, y = _read_idx(Path(folder), f"{part}-labels-idx1-ubyte", 1)
        if len(x) < MIN_ROWS or not x[0].size:
            raise _bad_file(
                file, f"{len(x)} images of shape {x.shape[1:]}", f"at least {MIN_ROWS}, not empty"
            )
        if len(y) != len(x):
            raise _bad_file(label_file, f"{len(y)} labels", f"as many as there are images, {len(x)}")
        if y.max() > 9:
            raise _bad_file(label_file, f"the label {y.max()}", "labels from 0 to 9")
        images.append(x)
        labels.append(y.astype(np.int64))
    train, test = images
    if train.shape[1:] != test.shape[1:]:
        raise _bad_file(file, f"images of shape {test.shape[1:]}", f"{train.shape[1:]}, as for training")
    rows = [x.reshape(len(x), -1) / np.float32(255) for x in images]
    height, width = train.shape[1:]
    return _image_set("mnist", rows, labels, (height, width))


def _openml_mnist() -> Dataset:
    from sklearn.datasets import fetch_openml

    try:
        found = fetch_openml("mnist_784", version=1, as_frame=False, parser="liac-arff")
    except (OSError, ValueError) as error:  # no network, or not what was asked for
        problem = f"None, but nothing comes from openml.org ({error})"
        raise ValueError(
            f"folder: got {problem}; accepted: a folder with its four files, {MNIST_FROM}"
        ) from error
    rows = (found.data / 255).astype(np.float32)
    labels = found.target.astype(np.int64)
    n_train, n_test = MNIST_ROWS
    parts = slice(n_train), slice(n_train, n_train + n_test)
    return _image_set("mnist", [rows[part] for part in parts], [labels[part] for part in parts], (28, 28))


def _image_set(
    name: str, rows: Sequence[np.ndarray], labels: Sequence[np.ndarray], shape: tuple[int, int]
) -> Dataset:
    """rows, labels: those to learn from, those held out."""
    columns = tuple(f"pixel_{i}_{j}" for i in range(shape[0]) for j in range(shape[1]))
    dim = len(columns)
    centered = Standardiser(np.full(dim, 0.5), np.ones(dim))
    return Dataset(name, rows[0], rows[1], columns, centered, labels[0], labels[1], DIGIT_CLASSES, shape)


def _read_idx(folder: Path, name: str, ndim: int) -> tuple[Path, np.ndarray]:
    """The file, and its array of bytes: a magic number, ndim sizes (big-endian 32 bits), then the bytes."""
    file = next((path for path in (folder / name, folder / f"{name}.gz") if path.is_file()), None)
    if file is None:
        raise FileNotFoundError(
            f"folder: got {str(folder)!r} without {name}; accepted: with it, or {name}.gz, {MNIST_FROM}"
        )
    content = file.read_bytes()
    if file.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise _bad_file(file, f"damaged data ({error})", "a whole gzip file") from error
    start = 4 + 4 * ndim
    magic = struct.pack(">HBB", 0, UNSIGNED_BYTES, ndim)
    if content[:4] != magic:
        raise _bad_file(file, f"the first bytes {content[:4].hex()!r}", f"{magic.hex()!r}, of an IDX file")
    shape = struct.unpack(f">{ndim}I", content[4:start]) if len(content) >= start else ()
    if not shape or len(content) != start + math.prod(shape):
        wanted = f"{start + math.prod(shape)} bytes for the shape {shape}" if shape else "a whole header"
        raise _bad_file(file, f"{len(content)} bytes", wanted)
    return file, np.frombuffer(content, np.uint8, offset=start).reshape(shape)


def _bad_file(file: Path, got: Any, accepted: str) -> ValueError:
    return ValueError(f"folder: got {got} in {str(file)!r}; accepted: {accepted}; the files {MNIST_FROM}")
