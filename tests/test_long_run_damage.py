"""An unfinished run whose files are damaged, as a power cut may: its checksums decide what is drawn again."""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import numpy as np
import pytest
from test_long_runs import CHUNK, N, stopped_after

import diffusion_fast as df
from diffusion_fast.long_runs import run


def test_damaged_chunks_are_drawn_again(tmp_path: Path, sampler: df.Sampler) -> None:
    path, partial = tmp_path / "x.npy", tmp_path / "x.npy.partial"
    with stopped_after(5):
        df.sample_to(path, sampler, N, chunk_size=CHUNK)
    content = bytearray(partial.read_bytes())
    content[128 + 4 * 3 * CHUNK] ^= 1  # in chunk 1
    partial.write_bytes(content)
    assert [fault.split(",")[0] for fault in df.verify(path).faults] == ["chunk 1"]
    with pytest.warns(UserWarning, match="1 chunks differ from their checksums"):
        result = df.sample_to(path, sampler, N, resume=True)
    assert result.drawn == N - 4 * CHUNK
    assert np.array_equal(np.load(path), sampler.sample(N).numpy())


def zero_header(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(bytes(128) + content[128:])


# output, the file that is lost or spoilt, how, and which of the five chunks written go with it
LOSSES: dict[str, tuple[str, str, Callable[[Path], None], int]] = {
    "header of zeros": ("x.npy", "x.npy.partial", zero_header, 0),
    "no header": ("x.npy", "x.npy.partial", lambda path: os.truncate(path, 0), 5),
    "rows cut off": ("x.npy", "x.npy.partial", lambda path: os.truncate(path, 127 + 12 * CHUNK * 4), 2),
    "rows too many": ("x.npy", "x.npy.partial", lambda path: os.truncate(path, 99999), 0),
    "rows of a .csv cut off": ("x.csv", "x.csv.partial", lambda path: os.truncate(path, 200), 5),
    "header of a shard": ("rows/", "rows.partial/000000.npy", zero_header, 0),
    "a shard cut off": ("rows/", "rows.partial/000001.npy", lambda path: os.truncate(path, 999), 2),
    "a shard lost": ("rows/", "rows.partial/000000.npy", Path.unlink, 3),
    "a shard lost without rows": ("rows/", "rows.partial/000003.npy", Path.unlink, 0),
}


@pytest.mark.parametrize("loss", LOSSES)
def test_what_the_power_took_is_drawn_again_and_nothing_else(
    tmp_path: Path, sampler: df.Sampler, monkeypatch: pytest.MonkeyPatch, loss: str
) -> None:
    name, file, lose, chunks = LOSSES[loss]
    monkeypatch.setattr(run, "SHARD_BYTES", 3 * CHUNK * 12)
    df.sample_to(f"{tmp_path}/whole-{name}", sampler, N, chunk_size=CHUNK)
    with stopped_after(5):
        df.sample_to(f"{tmp_path}/{name}", sampler, N, chunk_size=CHUNK)
    lose(tmp_path / file)
    assert df.verify(f"{tmp_path}/{name}").faults
    expected = pytest.warns(UserWarning, match=f" {chunks} chunks differ") if chunks else nullcontext()
    with expected:
        result = df.sample_to(f"{tmp_path}/{name}", sampler, N, resume=True)
    assert result.drawn == N - (5 - chunks) * CHUNK
    found = [tmp_path / name] if name != "rows/" else sorted((tmp_path / name).iterdir())
    for path in found:
        whole = tmp_path / f"whole-{path.relative_to(tmp_path)}"
        assert path.read_bytes() == whole.read_bytes()


def test_a_link_in_the_place_of_the_rows_is_not_followed(tmp_path: Path, sampler: df.Sampler) -> None:
    path, partial = tmp_path / "x.npy", tmp_path / "x.npy.partial"
    with stopped_after(5):
        df.sample_to(path, sampler, N, chunk_size=CHUNK)
    partial.unlink()
    (tmp_path / "mine").write_bytes(b"mine")
    partial.symlink_to(tmp_path / "mine")
    with pytest.raises(OSError, match="symbolic link") as caught:
        df.sample_to(path, sampler, N, resume=True)
    assert caught.value.filename == str(partial)
    assert (tmp_path / "mine").read_bytes() == b"mine"
