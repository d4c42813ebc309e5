"""The pictures of a benchmark run, from what it wrote: python -m benchmarks.figures results/FILE.json"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from benchmarks.scaling import NAMES, SCALINGS
from diffusion_fast.plotting.style import (
    BLUE,
    GREEN,
    GREY,
    LABEL_SIZE,
    PURPLE,
    TICK_SIZE,
    VERMILION,
    decorate,
    make_figure,
    open_frame,
)

# (color, marker) of each contender whose traffic is known.
LOOKS = {
    "ours": (VERMILION, "o"),
    "torch eager": (BLUE, "s"),
    "torch folded": (GREEN, "^"),
    "torch in place": (GREEN, "v"),
    "diffusers": (PURPLE, "D"),
}
AXES = {"samples": "samples", "steps": "steps", "width": "hidden width", "dim": "dimension"}


def draw(content: dict[str, Any], folder: Path) -> list[Path]:
    """roofline.png and scaling.png of one run, the content of its JSON file."""
    paths = [folder / "roofline.png", folder / "scaling.png"]
    for path, figure in zip(paths, (roofline(content), scaling(content)), strict=True):
        figure.savefig(path, dpi=130)
    return paths


def roofline(content: dict[str, Any]) -> Figure:
    """GFLOP/s against useful operations per byte moved: the chains and the float32 steps."""
    results = [r for r in content["results"] if r.get("gflop_per_unit") and "bfloat16" not in r["name"]]
    points = [(result, row) for result in results for row in result["rows"] if row["flop_per_byte"]]
    chains = [result for result in results if result["name"].startswith("chain-")]
    peak = max(content["machine"]["fma_gflops"], *(result["best_ceiling"] for result in chains))
    bandwidth = content["machine"]["copy_gb_s"]
    figure = make_figure(8.5, 4.6)
    axes = figure.subplots()
    axes.set(xscale="log", yscale="log")
    for name, (color, marker) in LOOKS.items():
        mine = [_place(result, row) for result, row in points if row["name"] == name]
        if mine:
            axes.plot(*zip(*mine, strict=True), marker, color=color, markersize=6, label=name, zorder=3)
    low, high = axes.get_xlim()
    high *= 4  # room for the names
    ridge = peak / bandwidth
    axes.plot([low, ridge, high], [low * bandwidth, peak, peak], color=GREY, linewidth=1.2, zorder=1)
    axes.set(xlim=(low, high), ylim=(None, 2 * peak))
    note: dict[str, Any] = {"fontsize": TICK_SIZE, "color": GREY, "textcoords": "offset points"}
    axes.annotate(f"multiply-add peak, {peak:.0f} GFLOP/s", (high, peak), (-4, 5), ha="right", **note)
    slope = low * (ridge / low) ** 0.5
    axes.annotate(f"copy, {bandwidth:.0f} GB/s", (slope, slope * bandwidth), (-6, 4), ha="right", **note)
    named: list[tuple[float, float]] = []
    for result in chains:
        places = [_place(result, row) for row in result["rows"] if row["flop_per_byte"]]
        axes.plot(*zip(*sorted(places), strict=True), color="0.85", linewidth=1, zorder=0)
        x, y = max(places)
        below = 11 * sum(max(x / u, u / x) < 3 and max(y / v, v / y) < 1.3 for u, v in named)
        axes.annotate(result["name"].removeprefix("chain-"), (x, y), (0, -14 - below), ha="center", **note)
        named.append((x, y))
    steps = [_place(result, row) for result, row in points if result["name"].startswith("step-")]
    slowest = min((place[1], place[0]) for place in steps if place[0] == max(steps)[0])
    axes.annotate("single steps", slowest[::-1], (0, -14), ha="center", **note)
    decorate(axes, "useful operations per byte moved", "GFLOP/s")
    open_frame(axes)
    axes.legend(frameon=False, fontsize=TICK_SIZE, loc="lower right")
    return figure


def scaling(content: dict[str, Any]) -> Figure:
    """Time of a call as each of samples, steps, width and dimension grows, beside folded torch."""
    found = {result["name"]: result for result in content["results"]}
    figure = make_figure(12, 3.4)
    panels = figure.subplots(1, len(SCALINGS))
    for axes, case in zip(panels, SCALINGS, strict=True):
        growth = found[case.name]
        for name in NAMES:
            color, marker = LOOKS[name]
            axes.loglog(growth["values"], growth["seconds"][name], marker + "-", color=color, label=name)
        axes.loglog(growth["values"], growth["at_peak"], ":", color=GREY, label="at the multiply-add peak")
        decorate(axes, AXES[case.axis])
        open_frame(axes)
    panels[0].set_ylabel("seconds", fontsize=LABEL_SIZE)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, frameon=False, fontsize=TICK_SIZE, loc="outside upper center", ncols=3)
    return figure


def _place(result: dict[str, Any], row: dict[str, Any]) -> tuple[float, float]:
    return row["flop_per_byte"], row["best_rate"] * result["gflop_per_unit"]


def main(arguments: Sequence[str]) -> None:
    source = Path(arguments[0])
    for path in draw(json.loads(source.read_text()), source.parent):
        print(f"written: {path}")


if __name__ == "__main__":
    main(sys.argv[1:])
