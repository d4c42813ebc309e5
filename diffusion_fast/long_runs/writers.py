"""Where the rows of a run lie: one .npy file or a folder of .npy shards, written at their positions.

Plain positional writes: the pages of a written memory map would count as the process's own.
"""

from __future__ import annotations

import hashlib
import io
import os
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from diffusion_fast._files import naming_file, sync_file

WAITING = 2  # buffers beside those that are drawn into: one is written, one waits
HASH_BLOCK = 1 << 22


@dataclass(frozen=True)
class RowFiles:
    """n float32 rows of a shape at `path`; with `folder` in shards 000000.npy and on, of rows_per_file."""

    path: Path
    n: int
    shape: tuple[int, ...]
    rows_per_file: int
    folder: bool

    @property
    def row_bytes(self) -> int:
        return 4 * int(np.prod(self.shape))

    def files(self) -> list[tuple[Path, int]]:
        """Each file with its number of rows."""
        if not self.folder:
            return [(self.path, self.n)]
        firsts = range(0, self.n, self.rows_per_file)
        return [(self._shard(i), min(self.rows_per_file, self.n - first)) for i, first in enumerate(firsts)]

    def _shard(self, i: int) -> Path:
        return self.path / f"{i:06d}.npy"

    def header(self, rows: int) -> bytes:
        buffer = io.BytesIO()
        shape = (rows, *self.shape)
        np.lib.format.write_array_header_1_0(buffer, {"descr": "<f4", "fortran_order": False, "shape": shape})
        return buffer.getvalue()

    def create(self) -> None:
        """Files of their full size, which take no space before they are written. Those that are there keep
        their rows, and their headers and sizes are mended."""
        if self.folder:
            self.path.mkdir(exist_ok=True)
        for path, rows in self.files():
            with naming_file(path), open(path, "r+b", opener=_create_no_link) as file:
                header = self.header(rows)
                file.write(header)
                file.truncate(len(header) + rows * self.row_bytes)

    def fault(self) -> str | None:
        """What is wrong with the files' sizes and headers, or None."""
        for path, rows in self.files():
            header = self.header(rows)
            try:
                with path.open("rb") as file:
                    if file.read(len(header)) != header:
                        return f"{path} has another header"
                    size = os.fstat(file.fileno()).st_size
            except OSError as error:
                return f"{path}: {error.strerror}"
            if size != len(header) + rows * self.row_bytes:
                return f"{path} has {size} bytes, not {len(header) + rows * self.row_bytes}"
        return None

    def _place(self, first: int) -> tuple[Path, int]:
        """The file of a row and the position in it."""
        if not self.folder:
            return self.path, len(self.header(self.n)) + first * self.row_bytes
        i, row = divmod(first, self.rows_per_file)
        rows = min(self.rows_per_file, self.n - i * self.rows_per_file)
        return self._shard(i), len(self.header(rows)) + row * self.row_bytes

    def write(self, first: int, rows: np.ndarray) -> None:
        """Rows of one file. It is opened for each write: what happened to it since is noticed, and other
        machines see what is closed."""
        path, at = self._place(first)
        left = rows.data.cast("B")
        with naming_file(path), path.open("r+b", buffering=0) as file:
            while left:
                written = os.pwrite(file.fileno(), left, at)
                left, at = left[written:], at + written

    def read(self, first: int, count: int) -> np.ndarray:
        """(count, *shape) rows of one file; EOFError where it ends before."""
        path, at = self._place(first)
        rows = np.empty((count, *self.shape), "<f4")
        with naming_file(path), path.open("rb", buffering=0) as file:
            file.seek(at)
            left = rows.data.cast("B")
            while left:
                got = file.readinto(left)
                if not got:
                    raise EOFError(f"{path} ends before row {first + count}")
                left = left[got:]
        return rows

    def digest(self, first: int, count: int) -> str:
        """SHA-256 of rows of one file, read in pieces: how many they are a manifest may choose."""
        path, at = self._place(first)
        left, found = count * self.row_bytes, hashlib.sha256()
        with naming_file(path), path.open("rb") as file:
            file.seek(at)
            while left:
                block = file.read(min(left, HASH_BLOCK))
                if not block:
                    raise EOFError(f"{path} ends before row {first + count}")
                found.update(block)
                left -= len(block)
        return found.hexdigest()

    def sync(self) -> None:
        """Until the disk has it all."""
        for path, _ in self.files():
            sync_file(path)


def _create_no_link(path: str, flags: int) -> int:
    """A link may lead to a file that is nobody's rows."""
    return os.open(path, flags | os.O_CREAT | os.O_NOFOLLOW, 0o666)


def digest(rows: np.ndarray) -> str:
    return hashlib.sha256(rows.data.cast("B")).hexdigest()


class Writer:
    """A thread that writes chunks while the next are drawn, and then calls record(chunk, SHA-256).

    drawing: how many threads draw.

    A with block: at its end all that was put is written. An error of the thread is raised by the next call.
    """

    def __init__(
        self, files: RowFiles, chunk_size: int, drawing: int, record: Callable[[int, str], None]
    ) -> None:
        self._files, self._chunk_size, self._record = files, chunk_size, record
        self._free: queue.SimpleQueue[np.ndarray] = queue.SimpleQueue()
        self._full: queue.SimpleQueue[tuple[int, np.ndarray, int] | None] = queue.SimpleQueue()
        for _ in range(drawing + WAITING):
            self._free.put(np.empty((min(chunk_size, files.n), *files.shape), "<f4"))
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._work, name="diffusion_fast writer")

    def __enter__(self) -> Writer:
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._full.put(None)
        self._thread.join()
        if exception[0] is None:
            self._check()

    def buffer(self) -> np.ndarray:
        """Memory for a chunk, once there is some."""
        buffer = self._free.get()
        self._check()
        return buffer

    def put(self, chunk: int, buffer: np.ndarray, count: int) -> None:
        self._full.put((chunk, buffer, count))

    def _check(self) -> None:
        if self._error is not None:
            raise self._error

    def _work(self) -> None:
        while (item := self._full.get()) is not None:
            chunk, buffer, count = item
            if self._error is None:
                try:
                    self._files.write(chunk * self._chunk_size, buffer[:count])
                    self._record(chunk, digest(buffer[:count]))
                except BaseException as error:  # of the disk, most of all; raised where the run is
                    self._error = error
            self._free.put(buffer)
