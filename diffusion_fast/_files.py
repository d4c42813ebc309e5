"""Files that appear whole or not at all: a temporary name beside it first, the real one when done."""

from __future__ import annotations

import importlib.util
import mmap
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

SYNC_BYTES = 1 << 26


def refusal(name: str, path: str | os.PathLike[str], why: str, accepted: str) -> ValueError:
    return ValueError(f"{name}: got {os.fspath(path)!r}, {why}; accepted: {accepted}")


def check_target(
    path: str | os.PathLike[str],
    suffixes: Sequence[str],
    *,
    replace: bool,
    name: str = "path",
    to_replace: str = "overwrite=True",
    longest: Callable[[Path], Path] = lambda target: target,
) -> Path:
    """The file to write, once it is sure that it can be written; a ValueError of the argument `name` else.

    suffixes: of the kinds that the caller writes; none where it writes one kind under any name. to_replace:
    how the caller is told to replace a file that exists. longest: the longest name of what the caller puts
    beside the target.
    """
    accepted = f"a file name ending in {', '.join(suffixes)}" if suffixes else "a file name"
    if "\0" in os.fspath(path):
        raise refusal(name, path, "with a null character", accepted)
    target = Path(os.path.realpath(path))  # a link stays a link, to the new content
    suffix = target.suffix.lower() if suffixes else ""
    if suffixes and suffix not in suffixes:
        raise refusal(name, path, "of no kind that can be written", accepted)
    if suffix == ".parquet":
        check_pyarrow(path, name)
    if suffix == ".mp4" and shutil.which("ffmpeg") is None:
        raise refusal(
            name, path, "which needs ffmpeg", "a name ending in .gif, or this with ffmpeg installed"
        )
    try:
        if target.exists() and not target.is_file():
            raise refusal(name, path, "which is no regular file", accepted)
        if target.exists() and not replace:
            raise refusal(name, path, "which exists", f"a new name, or {to_replace} to replace it")
        check_folder_of(longest(target), path, name)
    except OSError as error:
        why = f"which cannot be written ({error.strerror})"
        raise refusal(name, path, why, "a file name in a folder that can be written") from error
    return target


def check_pyarrow(path: str | os.PathLike[str], name: str) -> None:
    if importlib.util.find_spec("pyarrow") is None:
        raise refusal(name, path, "which needs pyarrow", "this after pip install diffusion_fast[parquet]")


def check_folder_of(target: Path, path: str | os.PathLike[str], name: str) -> None:
    """That something new can be put beside the target: OSError where not."""
    if not target.parent.is_dir():
        raise refusal(name, path, "whose folder does not exist", "a file name in a folder that exists")
    with temporary(target) as probe:
        probe.touch(exist_ok=False)


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A temporary name: it becomes the target's when the block ends well and is removed when it does not."""
    with temporary(target) as path:
        yield path
        os.replace(path, target)


@contextmanager
def temporary(target: Path) -> Iterator[Path]:
    path = target.with_name(f".{uuid.uuid4().hex[:12]}.{target.name}")  # the suffix tells the format
    try:
        yield path
    finally:
        path.unlink(missing_ok=True)


def remove_left(target: Path) -> None:
    """Unlinks what programs that were killed left of `temporary`; where that may not be, it stays."""
    ours = re.compile(rf"\.[0-9a-f]{{12}}\.{re.escape(target.name)}")
    with suppress(OSError):
        for path in target.parent.iterdir():
            if ours.fullmatch(path.name) and path.is_file():
                path.unlink(missing_ok=True)


def sync_file(path: Path, go_on: Callable[[], None] = lambda: None) -> None:
    """Until the disk has it all; part by part, between which a signal is answered and go_on, which may raise,
    is called."""
    with naming_file(path), path.open("r+b") as file:
        size = os.fstat(file.fileno()).st_size
        for at in range(0, size, SYNC_BYTES):
            try:
                part = mmap.mmap(file.fileno(), min(SYNC_BYTES, size - at), offset=at)
            except OSError:
                break  # a file system without maps: all at once
            with part:
                part.flush()  # no page of it is touched, so none counts as memory
            go_on()
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Until the disk has the names in a folder: a new one may else be lost with the power."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system that keeps its names otherwise
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def naming_file(path: Path) -> Iterator[None]:
    """Errors of the system about an open file say which it is; those that name a file already keep it."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error
