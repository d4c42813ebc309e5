"""The reverse chain in pictures: frames, limits, and the files of the films."""

from __future__ import annotations

import io
import itertools
import json
import os
import stat
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageSequence

import diffusion_fast as df
from diffusion_fast import plotting

STEPS = 20


def chain(dim, n=400, steps=STEPS):
    """From N(0, I) to points on a line of length 1, as an array (steps + 1, n, dim)."""
    rng = np.random.default_rng(0)
    ends = np.broadcast_to(rng.uniform(-0.5, 0.5, (n, 1)), (n, dim))
    share = np.linspace(0, 1, steps + 1)[:, None, None]
    return np.sqrt(1 - share) * rng.standard_normal((n, dim)) + np.sqrt(share) * ends


def titles(figure):
    return [axes.get_title() for axes in figure.axes]


def test_a_strip_shows_evenly_spaced_frames_from_noise_to_samples():
    rows = chain(2)
    figure = plotting.chain_strip(torch.from_numpy(rows), columns=["u", "v"], title="line")
    assert titles(figure) == [f"step {k}" for k in (0, 4, 8, 12, 16)] + ["step 20: samples"]
    assert {axes.get_xlim() for axes in figure.axes} == {figure.axes[0].get_xlim()}
    low, high = figure.axes[0].get_xlim()
    for axes, index in zip(figure.axes, (0, 4, 8, 12, 16, 20), strict=True):
        drawn = np.asarray(axes.collections[0].get_offsets())
        kept = rows[index][(np.abs(rows[index] - (low + high) / 2) <= (high - low) / 2 + 0.3).all(axis=1)]
        assert {tuple(row) for row in drawn} <= {tuple(row) for row in rows[index]}
        assert len(kept) >= len(drawn) >= 0.9 * len(kept)
    assert [axes.get_xlabel() for axes in figure.axes] == ["u"] * 6
    assert figure.get_suptitle() == "line"


def test_every_frame_counts_what_lies_outside():
    rows = chain(2)
    rows[8, :5] = 1e3
    rows[-1, 0] = np.nan
    figure = plotting.chain_strip(rows)
    low, high = np.array([figure.axes[0].get_xlim(), figure.axes[0].get_ylim()]).T
    notes = [axes.texts[0].get_text() for axes in figure.axes]
    for note, index in zip(notes, (0, 4, 8, 12, 16, 20), strict=True):
        outside = int((~((rows[index] >= low) & (rows[index] <= high)).all(axis=1)).sum())
        assert note.split(" outside")[0].strip() == (str(outside) if outside else "")
    assert notes[-1] == "1 outside (1 not finite)"
    assert int(notes[2].split()[0]) >= 5
    assert high.max() < 4  # the noise and its tails, not the thousand


def test_frames_may_be_chosen_and_short_chains_have_fewer():
    assert titles(plotting.chain_strip(chain(1), frames=[3, 19, 20])) == [
        "step 3",
        "step 19",
        "step 20: samples",
    ]
    assert len(plotting.chain_strip(chain(1, steps=2)).axes) == 3
    assert len(plotting.chain_strip(chain(1), frames=14).axes) == 14


def test_a_chain_in_one_dimension_is_a_row_of_densities():
    rows = chain(1, n=5000)
    figure = plotting.chain_strip(rows)
    for axes, index in zip(figure.axes, (0, 4, 8, 12, 16, 20), strict=True):
        x, y = axes.patches[0].get_xy().T
        area = float(np.sum(np.abs(np.diff(x)) * y[:-1] * (np.diff(y) == 0)))
        low, high = axes.get_xlim()
        inside = np.mean((rows[index] >= low) & (rows[index] <= high))
        assert area == pytest.approx(inside, rel=1e-9)
        assert axes.get_ylim()[1] >= y.max()
    assert len({axes.get_ylim() for axes in figure.axes}) == 1


def test_in_space_the_first_three_columns_are_drawn():
    rows = chain(4)
    figure = plotting.chain_strip(rows, frames=[20], columns=list("abcd"))
    (axes,) = figure.axes
    drawn = np.stack([np.asarray(part) for part in axes.collections[0]._offsets3d], axis=1)
    assert {tuple(row) for row in drawn} == {tuple(row) for row in rows[20, :, :3]}
    assert [axes.get_xlabel(), axes.get_ylabel(), axes.get_zlabel()] == ["a", "b", "c"]


def test_chains_of_images_have_the_grey_scale_of_the_samples():
    rows = np.random.default_rng(0).uniform(-1, 1, (5, 30, 6, 6))
    rows[0] *= 100
    strips = [rows, rows[:, :, None], torch.from_numpy(rows), rows.reshape(5, 30, 36)]
    figures = [
        plotting.chain_strip(strip, shape=(6, 6) if strip.ndim == 3 else None, frames=5) for strip in strips
    ]
    pictures = [[axes.images[0].get_array() for axes in figure.axes] for figure in figures]
    assert all(np.array_equal(a, b) for other in pictures for a, b in zip(other, pictures[0], strict=True))
    last = pictures[0][-1]
    assert last.shape == (4 * 7 - 1, 4 * 7 - 1, 3)  # 16 images
    low, high = rows[-1].min(), rows[-1].max()
    expected = (rows[-1, 0] - low) / (high - low) * 255
    np.testing.assert_allclose(last[:6, :6, 0], expected, atol=0.51)
    assert np.isin(pictures[0][0][:6, :6, 0], (0, 255)).mean() > 0.9


def test_a_sampler_s_trajectory_goes_straight_in():
    model = df.models.MLPDenoiser(2, (8,), n_steps=10).eval()
    sampler = df.Sampler(model, df.NoiseSchedule.cosine(10))
    x = sampler.sample(100, seed=0, return_trajectory=True)
    figure = plotting.chain_strip(x, frames=[10])
    drawn = np.asarray(figure.axes[0].collections[0].get_offsets())
    assert 95 <= len(drawn) <= 100
    assert {tuple(row) for row in drawn} <= {tuple(row) for row in x[-1].double().numpy()}


# ---- films


@pytest.mark.parametrize("dim", [1, 2, 3])
def test_a_gif_has_every_frame_and_stands_still_at_the_end(tmp_path, dim):
    path = tmp_path / "chain.gif"
    path.write_bytes(b"an old file, to be replaced")
    assert plotting.chain_animation(chain(dim), path, frames=6, fps=10) is None
    with Image.open(path) as film:
        assert film.format == "GIF" and film.n_frames == 6 and film.info["loop"] == 0
        frames = [(f.info["duration"], np.asarray(f.convert("RGB"))) for f in ImageSequence.Iterator(film)]
    assert [duration for duration, _ in frames] == [100] * 5 + [1500]
    assert all((a != b).any() for (_, a), (_, b) in itertools.pairwise(frames))
    assert path.stat().st_size < 200_000
    assert [file.name for file in tmp_path.iterdir()] == ["chain.gif"]


def test_the_axes_of_a_film_do_not_move(tmp_path):
    """Every pixel of the frame's left edge and the names is the same throughout."""
    plotting.chain_animation(chain(2), tmp_path / "a.gif", frames=[0, 10, 20])
    with Image.open(tmp_path / "a.gif") as film:
        pictures = [np.asarray(frame.convert("RGB")) for frame in ImageSequence.Iterator(film)]
    edges = [picture[60:, :50] for picture in pictures]
    assert (edges[0] == edges[1]).all() and (edges[0] == edges[2]).all()
    assert (edges[0] < 128).any()


FAKE = """#!{python}
import json, sys
arguments = sys.argv[1:]
open({log!r}, "w").write(json.dumps(arguments))
content = sys.stdin.buffer.read()
if {fails}:
    open(arguments[-1], "wb").write(b"half a film")
    sys.exit("Unknown encoder 'libx264'")
open(arguments[-1], "wb").write(len(content).to_bytes(8, "little"))
"""


@pytest.fixture
def fake_ffmpeg(tmp_path, monkeypatch):
    """A program of that name that writes down how it was called and how much it was given."""
    folder, log = tmp_path / "bin", tmp_path / "log"
    folder.mkdir()

    def install(fails):
        program = folder / "ffmpeg"
        program.write_text(FAKE.format(python=sys.executable, log=str(log), fails=fails))
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
        return log

    return install


@pytest.mark.skipif(os.name == "nt", reason="the stand-in is a script with a shebang")
def test_an_mp4_is_what_ffmpeg_makes_of_all_frames(tmp_path, fake_ffmpeg):
    log = fake_ffmpeg(False)
    plotting.chain_animation(chain(2), tmp_path / "a.mp4", frames=5, fps=10)
    arguments = json.loads(log.read_text())
    width, height = map(int, arguments[arguments.index("-s") + 1].split("x"))
    assert width % 2 == height % 2 == 0
    assert arguments[arguments.index("-r") + 1] == "10"
    count = int.from_bytes((tmp_path / "a.mp4").read_bytes(), "little")
    assert count == width * height * 3 * (5 + 15)  # 1.5 s more of the last one
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "bin", "log"]


@pytest.mark.skipif(os.name == "nt", reason="the stand-in is a script with a shebang")
def test_where_ffmpeg_fails_nothing_is_left_behind(tmp_path, fake_ffmpeg):
    fake_ffmpeg(True)
    (tmp_path / "a.mp4").write_bytes(b"old")
    with pytest.raises(RuntimeError, match="Unknown encoder"):
        plotting.chain_animation(chain(2), tmp_path / "a.mp4", frames=3)
    assert (tmp_path / "a.mp4").read_bytes() == b"old"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.mp4", "bin", "log"]


def test_without_ffmpeg_the_message_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ValueError, match=r"^path: got '.*a\.mp4'.*accepted: \.gif, or .*install ffmpeg"):
        plotting.chain_animation(chain(2), tmp_path / "a.mp4")
    assert list(tmp_path.iterdir()) == []


def test_a_strip_as_a_png_is_small():
    for dim in (1, 2, 3):
        buffer = io.BytesIO()
        plotting.chain_strip(chain(dim, n=10_000)).savefig(buffer, dpi=100)
        assert 10_000 < buffer.tell() < 200_000
