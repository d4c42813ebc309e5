"""The output of a run: what is there before it, the rows while they come, its name when they are complete."""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import re
import shutil
import warnings
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from diffusion_fast._files import check_folder_of, check_target, naming_file, refusal, sync_folder
from diffusion_fast.long_runs import manifest as manifests
from diffusion_fast.long_runs.formats import WRITERS, Columns
from diffusion_fast.long_runs.manifest import FORMS, Manifest
from diffusion_fast.long_runs.writers import HASH_BLOCK, RowFiles

# What a run takes of the disk until it is complete, in multiples of its rows: of .npz and .parquet twice, as
# random bits do not get smaller. A number of a .csv has 2 bytes or more: its digits nobody knows beforehand.
SPACE = {"npz": 2.0, "parquet": 2.0, "csv": 1.5}
SUFFIXES = tuple(f".{form}" for form in FORMS if form != "folder")


@dataclass(frozen=True)
class Target:
    """given: the path as the caller wrote it. path: the output. form: one of manifest.FORMS."""

    given: str
    path: Path
    form: str

    @classmethod
    def of(cls, given: str | os.PathLike[str]) -> Target:
        """The target of a path in a folder that can be written; a ValueError of path else."""
        text = os.fspath(given)
        if not text.endswith("/"):
            try:
                path = check_target(text, SUFFIXES, replace=True, longest=manifests.path_of)
            except ValueError as error:
                raise ValueError(f"{error}, or a folder, with a / at its end") from None
            return cls(text, path, path.suffix.lower().removeprefix("."))
        if "\0" in text:
            raise refusal("path", text, "with a null character", "a new folder, or a file name without the /")
        path = Path(os.path.realpath(text))
        if path.exists() and not path.is_dir():
            raise refusal("path", text, "which is no folder", "a new folder, or a file name without the /")
        try:
            check_folder_of(manifests.path_of(path), text, "path")
        except OSError as error:
            why = f"which cannot be made ({error.strerror})"
            raise refusal("path", text, why, "a folder in one that can be written") from error
        return cls(text, path, "folder")

    @property
    def manifest(self) -> Path:
        return manifests.path_of(self.path)

    @property
    def partial(self) -> Path:
        """The rows of a run that is not complete."""
        return self.path.with_name(f"{self.path.name}.partial")

    def digest_of_names(self, columns: Columns, labelled: bool) -> str | None:
        """SHA-256 of the names that the output has of its columns, and with labels of its classes."""
        if self.form not in WRITERS:
            return None
        of_classes = [columns.label_column, *columns.classes] if labelled else None
        return hashlib.sha256(json.dumps([list(columns.names), of_classes]).encode()).hexdigest()

    def rows(self, made: Manifest, path: Path | None = None) -> RowFiles:
        """The partial rows, or those at a path."""
        shape = tuple(made.run["shape"])
        return RowFiles(path or self.partial, made.n, shape, made.rows_per_file, self.form == "folder")

    @property
    def is_there(self) -> bool:
        """An empty folder is nothing."""
        return any(self.path.iterdir()) if self.path.is_dir() else self.path.exists()

    def lock(self) -> Callable[[], None]:
        """Keeps other processes from the output and what lies beside it, as long as this one lives. Returns
        the release."""
        path = self.path.with_name(f".{self.path.name}.lock")
        while True:
            with naming_file(path):
                descriptor = os.open(path, os.O_RDONLY | os.O_CREAT, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                os.close(descriptor)
                why = "which another process is writing"
                raise refusal("path", self.given, why, "another name") from error
            except OSError:
                pass  # a file system without locks
            if _names(path, descriptor):
                break
            os.close(descriptor)  # its holder has released it since: a file that nobody else finds

        def release() -> None:
            with suppress(OSError):  # of a folder that has vanished, or become read-only
                if _names(path, descriptor):
                    path.unlink()  # before another can have it
            os.close(descriptor)

        return release

    # ---- the beginning

    def create(self, new: Manifest) -> None:
        """New rows and a new manifest."""
        needed = int(new.n * self.rows(new).row_bytes * SPACE.get(self.form, 1))
        old = self.partial.iterdir() if self.partial.is_dir() else filter(Path.exists, [self.partial])
        freed = 512 * sum(path.lstat().st_blocks for path in old)  # by remove_partial
        free = shutil.disk_usage(self.path.parent).free + freed
        if needed > free:
            why = f"which takes {needed:,} bytes where {free:,} are free"
            raise refusal("path", self.given, why, "a folder with more space, or fewer samples")
        new.check_savable()
        self.remove_partial()
        new.save(self.manifest)  # before its rows: those without one are refused
        self.rows(new).create()

    def refuse_existing(self) -> None:
        if self.is_there:
            raise refusal("path", self.given, "which exists", "a new name, or overwrite=True to replace it")
        if self.partial.exists():
            accepted = "resume=True to go on with it, or overwrite=True to begin again"
            raise refusal("path", self.given, "of which there is an unfinished run", accepted)

    def is_of_job(self, job: str | None) -> bool:
        """Whether it is a job of ranks that has begun the run of the manifest."""
        with suppress(OSError, ValueError):  # none, or one that only overwrite=True replaces
            return manifests.load(self.manifest).job == job
        return False

    def load_begun(self, new: Manifest) -> Manifest | None:
        """The same run as it was left, with the chunks that its rows prove; None where there is nothing."""
        if not self.manifest.exists():
            accepted = f"a new name, {self.manifest.name} put back, or overwrite=True to begin again"
            if self.is_there:
                raise refusal("path", self.given, "which exists without a manifest", accepted)
            if self.partial.exists():
                why = f"of which there is {self.partial.name} without a manifest"
                raise refusal("path", self.given, why, accepted)
            return None
        try:
            old = manifests.load(self.manifest)
        except ValueError as error:
            raise ValueError(f"{error}, or overwrite=True to begin again") from error
        self.check_same(old, new)
        if old.complete and (self.partial.exists() or self.is_there):
            fault = next(self.faults(old), None)
            if fault is not None:
                why = f"which is complete and damaged: {fault}"
                raise refusal("path", self.given, why, "overwrite=True to begin again")
            return old
        if not self.partial.exists():
            return None
        rows = self.rows(old)
        rows.create()  # what a lost power, or a kill while they were created, has left out
        bad = set(self.damaged_chunks(old, rows))
        if bad:
            warnings.warn(
                f"{self.partial}: {len(bad)} chunks differ from their checksums and are drawn again",
                stacklevel=4,
            )
        return replace(old, done={chunk: known for chunk, known in old.done.items() if chunk not in bad})

    def damaged_chunks(self, made: Manifest, rows: RowFiles) -> Iterator[int]:
        """Those of the manifest whose rows differ from their checksums."""
        for chunk, known in sorted(made.done.items()):
            if rows.digest(chunk * made.chunk_size, made.size_of(chunk)) != known:
                yield chunk

    def is_published(self, made: Manifest) -> bool:
        """Whether the rows are where the output is, or were made into it."""
        return made.complete and not self.partial.exists()

    def faults(self, made: Manifest) -> Iterator[str]:
        """What in the files differs from a manifest, one line each."""
        there = self.is_published(made)
        if there and self.form in WRITERS:
            if file_digest(self.path) != made.file_sha256:
                yield f"{self.path} differs from its checksum"
            return
        rows = self.rows(made, self.path if there else None)
        fault = rows.fault()
        if fault is not None:
            yield fault
            return
        for chunk in self.damaged_chunks(made, rows):
            at = chunk * made.chunk_size
            yield f"chunk {chunk}, rows {at} to {at + made.size_of(chunk) - 1}, differs from its checksum"

    def check_same(self, old: Manifest, new: Manifest) -> None:
        accepted = f"with which {self.manifest.name} was begun, or overwrite=True to begin again"
        old.check_same("resume", new.run | {"form": new.form, "list of column names": new.columns}, accepted)

    # ---- the end

    def complete(self, made: Manifest) -> None:
        """All rows are written, and a file with columns is made of them: the output gets its name."""
        self.rows(made).sync()
        if self.form == "folder":
            sync_folder(self.partial)
        made.complete = True
        made.save(self.manifest, sync=True)
        self.publish()

    def has_columns(self, made: Manifest) -> bool:
        """Whether a run that ended before its rows were unlinked left the file that was made of them."""
        if self.form not in WRITERS or not self.partial.exists():
            return True
        return self.path.is_file() and file_digest(self.path) == made.file_sha256

    def publish(self) -> None:
        if self.form == "folder":
            self.remove_shards(self.path)
            self.partial.rename(self.path)
        elif self.form == "npy":
            self.partial.replace(self.path)
        else:
            self.partial.unlink()
        sync_folder(self.path.parent)

    def remove_partial(self) -> None:
        if self.form == "folder":
            self.remove_shards(self.partial)
        else:
            self.partial.unlink(missing_ok=True)

    def check_replaceable(self) -> None:
        """Of a folder only shards are replaced."""
        for folder in (self.path, self.partial):
            others = [p.name for p in folder.iterdir() if not _is_shard(p)] if folder.is_dir() else []
            if others:
                why = f"in which there is {others[0]!r} as well"
                raise refusal("path", self.given, why, "a new folder, or one with nothing but shards")

    @staticmethod
    def remove_shards(folder: Path) -> None:
        if folder.is_dir():
            for path in filter(_is_shard, folder.iterdir()):
                path.unlink()
            folder.rmdir()


def _names(path: Path, descriptor: int) -> bool:
    """Whether a path leads to an open file."""
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _is_shard(path: Path) -> bool:
    return re.fullmatch(r"\d{6,}\.npy", path.name) is not None


def file_digest(path: Path, go_on: Callable[[], None] = lambda: None) -> str:
    """SHA-256 of a file; go_on is called now and then and may raise."""
    found = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(HASH_BLOCK):
            found.update(block)
            go_on()
    return found.hexdigest()
