"""verify: whether the data of a run is what its manifest says, and what a sampler draws."""

from __future__ import annotations

import csv
import os
import struct
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_fast import _checks
from diffusion_fast._files import check_pyarrow
from diffusion_fast.long_runs import manifest as manifests
from diffusion_fast.long_runs.formats import READERS
from diffusion_fast.long_runs.identity import cycle_of, identity
from diffusion_fast.long_runs.manifest import Manifest
from diffusion_fast.long_runs.target import Target
from diffusion_fast.sampler import Sampler

# What a damaged file makes of its reader, pyarrow's errors among them: no lack of memory or of a package.
DAMAGE = (
    OSError,
    EOFError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    RuntimeError,
    csv.Error,
    struct.error,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True)
class Verification:
    """What `verify` found of a run of `chunks` chunks, `n` samples.

    done: chunks that are written. faults: what is wrong with the files, one line each. redrawn: chunks drawn
    again. different: those of them whose samples differ from the rows in the files. unfinished: chunks that
    were to be drawn again and are not written yet.
    """

    n: int
    chunks: int
    done: int
    faults: tuple[str, ...]
    redrawn: tuple[int, ...]
    different: tuple[int, ...]
    unfinished: tuple[int, ...] = ()

    @property
    def good(self) -> bool:
        """Complete, as its manifest says, and as drawn again."""
        return self.done == self.chunks and not self.faults and not self.different


def verify(
    path: str | os.PathLike[str],
    *,
    sampler: Sampler | None = None,
    redraw: Sequence[int] | str = (),
    labels: Any = None,
    context: Any = None,
    threads: int | None = None,
) -> Verification:
    """Checks an output of `sample_to`, or what there is of an unfinished one, against its manifest.

    redraw: chunks to draw again with a sampler, labels and context made as for the run, or "all". They are
    compared bit for bit with the rows in the files; what a .csv says is read back, and any NaN is as another.

    Raises ValueError for a path without a manifest, for one whose .parquet needs pyarrow to be redrawn, and
    naming what differs for another sampler; TypeError for arguments of other types.
    """
    return verify_run(*load(path), sampler, redraw, labels, context, threads)


def load(path: str | os.PathLike[str]) -> tuple[Target, Manifest]:
    """What lies at a path, and its manifest."""
    text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else path
    if not isinstance(text, str):
        raise _checks.bad_type("path", path, "a str or a path")
    target = None if "\0" in text else Path(os.path.realpath(text))
    if target is None or not manifests.path_of(target).is_file():
        raise _checks.bad_value("path", text, "the output of sample_to, with its manifest beside it")
    made = manifests.load(manifests.path_of(target))
    return Target(text, target, made.form), made


def verify_run(
    target: Target,
    made: Manifest,
    sampler: Sampler | None = None,
    redraw: Sequence[int] | str = (),
    labels: Any = None,
    context: Any = None,
    threads: int | None = None,
) -> Verification:
    """As `verify`, of what `load` found."""
    chosen = _chosen(redraw, made.n_chunks, sampler)
    if chosen and target.form == "parquet" and target.is_published(made):
        check_pyarrow(target.given, "path")
    try:
        faults = list(target.faults(made))
    except OSError as error:
        faults = [f"{error.filename or target.path}: {error.strerror}"]
    written = sorted({chunk for chunk in chosen if chunk in made.done})
    different: list[int] = []
    if sampler is not None:
        different = _drawn_otherwise(made, target, sampler, written, labels, context, threads)
    unfinished = tuple(chunk for chunk in chosen if chunk not in made.done)
    return Verification(
        made.n, made.n_chunks, len(made.done), tuple(faults), tuple(written), tuple(different), unfinished
    )


def _chosen(redraw: Any, chunks: int, sampler: Any) -> Sequence[int]:
    everything = isinstance(redraw, str) and redraw == "all"
    if not everything and not isinstance(redraw, (list, tuple, range)):
        raise _checks.bad_type("redraw", redraw, "'all', or a list of chunks")
    chosen = range(chunks) if everything else [_checks.integer("redraw", i, 0, chunks - 1) for i in redraw]
    if chosen and not isinstance(sampler, Sampler):
        raise _checks.bad_type("sampler", sampler, "a Sampler, made as for the run, to draw chunks again")
    return chosen


def _drawn_otherwise(
    made: Manifest,
    target: Target,
    sampler: Sampler,
    chunks: Sequence[int],
    labels: Any,
    context: Any,
    threads: int | None,
) -> list[int]:
    """Those of the chunks, which ascend, that the sampler draws with other bits than the files have."""
    seed, (start, end) = made.run["seed"], made.run["index range"]
    cycle = cycle_of(sampler, labels)
    new = identity(sampler, seed, start, end - start, cycle, context)
    made.check_same("sampler", new, "as of the run")
    different = []
    for chunk, rows in zip(chunks, _rows_written(made, target, chunks), strict=True):
        at, count = start + chunk * made.chunk_size, made.size_of(chunk)
        part = None if cycle is None else cycle.part(at, count)
        drawn = sampler.sample(count, seed=seed, start=at, labels=part, context=context, threads=threads)
        if rows is None or not _same_bits(drawn.cpu().numpy(), rows):
            different.append(chunk)
    return different


def _rows_written(made: Manifest, target: Target, chunks: Sequence[int]) -> Iterator[np.ndarray | None]:
    """The rows of each chunk as the files have them, None from where they cannot be read."""
    ranges = [(chunk * made.chunk_size, made.size_of(chunk)) for chunk in chunks]
    there = target.is_published(made)
    shape = tuple(made.run["shape"])
    read = 0
    try:
        if there and target.form in READERS:
            parts = READERS[target.form](target.path, shape, ranges)
        else:
            files = target.rows(made, target.path if there else None)
            parts = (files.read(*part) for part in ranges)
        for rows in parts:
            read += 1
            whole = rows.shape == (ranges[read - 1][1], *shape) and rows.dtype == np.dtype("<f4")
            yield rows if whole else None
    except DAMAGE:  # `faults` has what is wrong with the file
        yield from [None] * (len(ranges) - read)


def _same_bits(drawn: np.ndarray, rows: np.ndarray) -> bool:
    same = np.ascontiguousarray(drawn).view("<u4") == np.ascontiguousarray(rows).view("<u4")
    return bool(np.all(same | (np.isnan(drawn) & np.isnan(rows))))
