"""The picture of solvers.json: families of solvers side by side, one row for each thing measured."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from diffusion_fast.plotting.style import (
    BLACK,
    BLUE,
    GREEN,
    GREY,
    LABEL_SIZE,
    ORANGE,
    PURPLE,
    SKY,
    TICK_SIZE,
    VERMILION,
    decorate,
    make_figure,
    open_frame,
)

FAMILIES = ("deterministic", "stochastic", "sigma and flow", "Langevin")
COLORS = (BLUE, VERMILION, GREEN, PURPLE, ORANGE, SKY, BLACK, GREY)
MARKERS = "osD^vPX*"
HIGHEST = 1.0  # a distance of the size of the data says no more
ROWS = (
    ("mixture", "evaluations", "network evaluations"),
    ("mixture", "seconds", "seconds"),
    ("moons", "evaluations", "network evaluations"),
)
NAMES = {"mixture": "exact score", "moons": "trained network"}
CAPTION = """\
Exact score: {mixture:,} samples (one seed, the same x_T for all) against the exact
law of seven Gaussians of deviation 0.12 on a circle of radius 1.2. Trained network:
{moons:,} samples of a 2-128-128-2 MLP trained on two moons, against as many held-out
rows; here only the solvers of a discrete schedule.

Distance: mean Wasserstein-1 distance over 32 directions. Dotted and shaded: fresh data,
mean and range of {draws} draws. Wide grey line: the best of all solvers up to that cost.
ddim and euler are the same without a clamp, ddpm and euler_ancestral as well.

Levels: evenly spaced in log-SNR on the linear schedule of 1000 steps; edm: Karras
sigmas, 80 to 0.02; flow: equal times. langevin stays at sigma = 0.05, and its samples
keep that noise; annealed_langevin: 10 levels from 3 to 0.02, then one denoising step.

Seconds: all samples, {threads} threads of {cpu}; the faster of two calls."""


def draw(content: dict[str, Any]) -> Figure:
    """The content of solvers.json."""
    targets = content["targets"]
    figure = make_figure(13.5, 10.5, "How near each solver comes to the data")
    panels = figure.subplots(len(ROWS), len(FAMILIES), sharey="row", sharex="row")
    for row, (target, axis, label) in zip(panels, ROWS, strict=True):
        found = targets[target]
        for axes, family in zip(row, FAMILIES, strict=True):
            lines = [line for line in found["lines"] if line["family"] == family]
            if lines:
                panel(axes, lines, found, axis)
                decorate(axes, label, title=family if row is panels[0] else None)
                open_frame(axes)
            else:
                axes.set_axis_off()
        row[0].set_ylim(0.6 * min(found["floor"]), HIGHEST)
        row[0].set_ylabel(f"sliced Wasserstein distance, {NAMES[target]}", fontsize=LABEL_SIZE)
    for axes in panels[0]:
        axes.legend(frameon=False, fontsize=TICK_SIZE, loc="upper right")
    empty = panels[-1][2]
    look = {"fontsize": TICK_SIZE, "va": "top", "transform": empty.transAxes, "parse_math": False}
    empty.text(0, 1, caption(content), **look).set_in_layout(False)  # it reaches into the next panel
    return figure


def panel(axes: Any, lines: list[dict[str, Any]], found: dict[str, Any], axis: str) -> None:
    axes.set(xscale="log", yscale="log")
    axes.plot(*frontier(found["lines"], axis), color="0.85", linewidth=5, zorder=0, solid_capstyle="round")
    axes.axhspan(min(found["floor"]), max(found["floor"]), color="0.93", zorder=-1)
    axes.axhline(np.mean(found["floor"]), color=GREY, linewidth=1, linestyle=":", zorder=1)
    for k, line in enumerate(lines):
        # The first is wider, because the second of two families lies upon it.
        width, size = (3.0, 8.0) if k == 0 else (1.3, 4.5)
        look = {"marker": MARKERS[k], "color": COLORS[k], "linewidth": width, "markersize": size}
        axes.plot(line[axis], line["distance"], label=line["name"], zorder=2, **look)


def frontier(lines: list[dict[str, Any]], axis: str) -> tuple[np.ndarray, np.ndarray]:
    """The least distance that any solver reaches up to each cost."""
    points = sorted((x, y) for line in lines for x, y in zip(line[axis], line["distance"], strict=True))
    cost, distance = np.array(points).T
    return cost, np.minimum.accumulate(distance)


def caption(content: dict[str, Any]) -> str:
    samples = {name: found["samples"] for name, found in content["targets"].items()}
    draws = len(content["targets"]["moons"]["floor"])
    hardware = content["machine"]
    return CAPTION.format(**samples, draws=draws, threads=hardware["torch_threads"], cpu=hardware["cpu"])
