"""The reverse chain as an animated GIF or an MP4 film."""

from __future__ import annotations

import os
import shutil
import subprocess
import uuid
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from diffusion_fast import _checks
from diffusion_fast.plotting import style
from diffusion_fast.plotting.chain import ChainPainter

SIZE = (4.4, 4.6)  # inches; at DPI an even number of pixels each way, as H.264 demands
DPI = 100
HOLD_MS = 1500  # for the samples at the end, before the film begins again
GIF_COLORS = 64
INSTALL = "with ffmpeg installed (apt install ffmpeg, brew install ffmpeg or conda install ffmpeg)"


def chain_animation(
    trajectory: Any,
    path: str | os.PathLike[str],
    *,
    frames: int | Sequence[int] = 60,
    fps: float = 15,
    columns: Sequence[str] | None = None,
    shape: tuple[int, int] | None = None,
    title: str | None = None,
) -> None:
    """Write the chain from noise to samples as a film, which stands still on the samples at its end.

    The file appears whole or not at all, and replaces one that is there.

    Args:
        trajectory, frames, columns, shape: as for `chain_strip`.
        path: ending in .gif (repeats for ever), or in .mp4 where the program ffmpeg is installed.
        fps: frames per second, in (0, 50].

    Raises TypeError or ValueError naming the argument before anything is written, OSError where the file
    cannot be written, RuntimeError with ffmpeg's own words where it fails.
    """
    target = _check_path(path)
    rate = _checks.real("fps", fps, 0.0, 50.0, open_low=True)
    painter = ChainPainter(trajectory, frames, columns, shape, compact=False)
    pictures = _pictures(painter, title)
    temporary = target.with_name(f".{target.stem}.{uuid.uuid4().hex}{target.suffix}")
    try:
        write = _write_gif if target.suffix.lower() == ".gif" else _write_mp4
        write(temporary, pictures, rate)
        os.replace(temporary, target)
    finally:
        temporary.unlink(missing_ok=True)


def _pictures(painter: ChainPainter, title: str | None) -> Iterator[Image.Image]:
    figure = style.make_figure(*SIZE, painter.say_columns(title))
    canvas = FigureCanvasAgg(figure)
    axes = painter.add_axes(figure, (1, 1, 1))
    for k, index in enumerate(painter.chosen):
        axes.clear()
        painter.draw(axes, index, f"step {index} of {painter.steps}")
        canvas.draw()
        if k == 0:
            figure.set_layout_engine("none")  # what is laid out anew for each frame would tremble
        yield Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")


def _write_gif(path: Path, pictures: Iterator[Image.Image], fps: float) -> None:
    frames = list(pictures)
    # One palette, that of the last frame, which shows all there is: with one for each, colors would flicker.
    palette = frames[-1].quantize(GIF_COLORS)
    indexed = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    durations = [round(1000 / fps)] * (len(frames) - 1) + [HOLD_MS]
    indexed[0].save(path, save_all=True, append_images=indexed[1:], duration=durations, loop=0)


def _write_mp4(path: Path, pictures: Iterator[Image.Image], fps: float) -> None:
    frames = list(pictures)
    frames += [frames[-1]] * round(fps * HOLD_MS / 1000)
    source = ["-f", "rawvideo", "-pix_fmt", "rgb24", "-s", "{}x{}".format(*frames[0].size), "-r", f"{fps:g}"]
    # yuv420p, because many players show nothing else
    film = ["-vcodec", "libx264", "-pix_fmt", "yuv420p", "-y", str(path)]
    done = subprocess.run(
        ["ffmpeg", "-loglevel", "error", *source, "-i", "-", *film],
        input=b"".join(frame.tobytes() for frame in frames),
        capture_output=True,
    )
    if done.returncode != 0:
        raise RuntimeError(f"ffmpeg could not write the film: {done.stderr.decode(errors='replace').strip()}")


def _check_path(path: Any) -> Path:
    accepted = f"a file name ending in .gif, or in .mp4 {INSTALL}"
    if not isinstance(path, (str, os.PathLike)):
        raise _checks.bad_type("path", path, accepted)
    target = Path(path)
    if target.suffix.lower() not in (".gif", ".mp4"):
        raise _checks.bad_value("path", str(target), accepted)
    if target.suffix.lower() == ".mp4" and shutil.which("ffmpeg") is None:
        raise ValueError(
            f"path: got {str(target)!r} where no ffmpeg is found; accepted: .gif, or .mp4 {INSTALL}"
        )
    if target.is_dir() or not target.parent.is_dir() or not os.access(target.parent, os.W_OK):
        raise _checks.bad_value("path", str(target), "a file in a folder that exists and can be written")
    return target
