"""Rank 0's record of a run: which chunks are done, in the manifest, on the bar, for the file with columns."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from diffusion_fast._files import naming_file, remove_left, sync_file
from diffusion_fast.long_runs.distributed import POLL_SECONDS, Alone, Ranks
from diffusion_fast.long_runs.formats import WRITERS, Columns, Labels, Table, rows_of_block
from diffusion_fast.long_runs.manifest import Manifest
from diffusion_fast.long_runs.target import Target, file_digest

# A kill loses the chunks that the manifest does not have yet. It is saved once it lacks 1 / SAVES of the run,
# and not before the last save is SAVING_SHARE of the time since: the more chunks, the longer a save takes.
SAVES = 400
SAVING_SHARE = 0.05


class _Stopped(Exception):
    """The run ends before its rows are complete."""


class Keeper:
    """A with block: at its end, however it ends, the manifest says what is written."""

    def __init__(self, made: Manifest, target: Target, peers: Alone | Ranks, bar: Any) -> None:
        self.made, self._target, self._peers, self._bar = made, target, peers, bar
        self._changed = threading.Condition()
        self._stopped = False
        self._unsaved = 0
        self._save_after = 0.0
        self._columns: Future[str] | None = None

    def __enter__(self) -> Keeper:
        remove_left(self._target.manifest)  # of runs that were killed: nobody else saves it now
        return self

    def __exit__(self, *exception: object) -> None:
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
            if not self.made.complete:
                with suppress(OSError):  # what ended the run is told, and the manifest of before is true
                    self.made.save(self._target.manifest)
        if self._columns is not None:
            self._columns.exception()  # waits: the thread takes its unfinished file away
        with suppress(OSError):  # of the bar's last line, which must not hide what ended the run
            self._bar.close()

    def record(self, chunk: int, digest: str) -> None:
        """A chunk of this process is written."""
        self._note([(chunk, digest), *self._peers.reports()])

    def wait_for_all(self) -> None:
        """Until the other ranks have written theirs, and the file with columns is made."""
        while len(self.made.done) < self.made.n_chunks:
            self._note(self._peers.reports())
            self._peers.check()
            time.sleep(POLL_SECONDS)
        if self._columns is not None:
            self.made.file_sha256 = self._columns.result()

    def _note(self, written: list[tuple[int, str]]) -> None:
        if self._columns is not None and self._columns.done():
            self._columns.result()  # raises: it ends before its last rows by an error alone
        if not written:
            return
        with self._changed:
            for chunk, digest in written:
                self.made.done[chunk] = digest
                self._show(self.made.size_of(chunk))
            self._changed.notify_all()
            self._unsaved += len(written)
            began = time.monotonic()
            if self._unsaved * SAVES >= self.made.n_chunks and began >= self._save_after:
                self.made.save(self._target.manifest)
                now = time.monotonic()
                self._save_after = now + (now - began) / SAVING_SHARE
                self._unsaved = 0

    def _show(self, samples: int) -> None:
        try:
            with naming_file(Path("the progress bar")):
                self._bar.update(samples)
        except OSError:
            # tqdm's refresh keeps the lock of all bars, for which their ends, in the main thread, would wait.
            self._bar.disable = True
            with suppress(RuntimeError):  # of a tqdm that gives it back itself
                self._bar.get_lock().release()
            raise

    # ---- the file with columns

    def make_columns(self, columns: Columns, labels: Labels | None) -> None:
        """Begins to write it, in a thread, from the rows in their order as they come."""
        if self._target.form == "parquet":  # here: a signal would wait seconds for a thread that imports
            import pyarrow.parquet

            pyarrow.array(np.zeros(1))  # the first imports pandas too, if it is there
        run = self.made.run
        table = Table(
            self._blocks(), self.made.n, tuple(run["shape"]), columns, labels, run["index range"][0]
        )
        pool = ThreadPoolExecutor(1, "diffusion_fast columns")
        self._columns = pool.submit(self._write_columns, table)
        pool.shutdown(wait=False)

    def _write_columns(self, table: Table) -> str:
        path = self._target.path
        # One name, so that of killed runs one is left at most.
        unfinished = path.with_name(f".{path.name}.columns{path.suffix}")
        unfinished.unlink(missing_ok=True)
        try:
            WRITERS[self._target.form](unfinished, table)
            sync_file(unfinished, self._go_on)  # its rows are unlinked next
            found = file_digest(unfinished, self._go_on)
            os.replace(unfinished, path)
        finally:
            unfinished.unlink(missing_ok=True)
        return found

    def _blocks(self) -> Iterator[np.ndarray]:
        """Of a size that does not depend on the chunks: a block is a row group of a .parquet file."""
        rows, size = self._target.rows(self.made), self.made.chunk_size
        most = rows_of_block(rows.shape)
        for at in range(0, self.made.n, most):
            end = min(at + most, self.made.n)
            needed = range(at // size, -(-end // size))
            with self._changed:
                while not (self._stopped or self.made.done.keys() >= set(needed)):
                    self._changed.wait()
            self._go_on()
            yield rows.read(at, end - at)

    def _go_on(self) -> None:
        if self._stopped:
            raise _Stopped
