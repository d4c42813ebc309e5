"""The picture and the table of frontier.json: distance to the data by seconds, for the models of A to D."""

from __future__ import annotations

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from benchmarks.solver_panels import COLORS, frontier
from diffusion_fast.plotting.style import BLACK, GREY, TICK_SIZE, decorate, make_figure, open_frame

STYLES = {"float32": "-", "table": ":"}
HIGHEST = 1.0  # a distance of the size of the data says no more
NEAR = 1.1  # times the least distance that any run of the model reaches: near enough
CAPTION = (
    "Seconds for {samples:,} samples, {threads} threads of {cpu}, the faster of two calls, the making of a "
    "table not counted. Distance: mean Wasserstein-1 over directions to as many held-out rows; shaded: fresh "
    "data. Full lines: float32; dotted: the table tier. Black: the best of all up to those seconds."
)


def draw(content: dict[str, Any]) -> Figure:
    """The content of frontier.json."""
    hardware = content["machine"]
    caption = CAPTION.format(
        samples=content["samples"], threads=hardware["torch_threads"], cpu=hardware["cpu"]
    )
    figure = make_figure(13.0, 8.5, f"Distance to the data by seconds\n{caption}")
    panels = figure.subplots(2, 2).ravel()
    for axes, found in zip(panels, content["models"].values(), strict=True):
        panel(axes, found)
    panels[0].legend(frameon=False, fontsize=TICK_SIZE, ncols=2, loc="upper right")
    return figure


def panel(axes: Any, found: dict[str, Any]) -> None:
    axes.set(xscale="log", yscale="log", ylim=(0.6 * min(found["floor"]), HIGHEST))
    axes.axhspan(min(found["floor"]), max(found["floor"]), color="0.93", zorder=-1)
    axes.axhline(np.mean(found["floor"]), color=GREY, linewidth=1, linestyle=":", zorder=1)
    names = list(dict.fromkeys(line["name"] for line in found["lines"]))
    for line in found["lines"]:
        k = names.index(line["name"])
        label = line["name"] if line["tier"] == "float32" else None
        look = {"color": COLORS[k % len(COLORS)], "linestyle": STYLES[line["tier"]], "linewidth": 1.1}
        marker = "o" if k < len(COLORS) else "s"
        axes.plot(line["seconds"], line["distance"], marker=marker, markersize=3, label=label, **look)
    axes.step(*frontier(found["lines"], "seconds"), where="post", color=BLACK, linewidth=2, zorder=0)
    decorate(axes, "seconds", "sliced Wasserstein distance", title=found["title"])
    open_frame(axes)


def points(found: dict[str, Any]) -> list[dict[str, Any]]:
    """One for each run: name, tier, evaluations, distance, seconds."""
    columns = ("evaluations", "distance", "seconds")
    return [
        {"name": line["name"], "tier": line["tier"], **dict(zip(columns, values, strict=True))}
        for line in found["lines"]
        for values in zip(*(line[column] for column in columns), strict=True)
    ]


def table(content: dict[str, Any]) -> str:
    """In Markdown: per model what no other run beats, up to the first that is near the least distance."""
    rows = ["| model | solver | tier | evaluations | seconds | distance | fresh data |", "|---" * 7 + "|"]
    for name, found in content["models"].items():
        runs = sorted(points(found), key=lambda run: run["seconds"])
        near, best = NEAR * min(run["distance"] for run in runs), np.inf
        for run in runs:
            if run["distance"] >= best:
                continue
            best = run["distance"]
            rows.append(
                f"| {name} | {run['name']} | {run['tier']} | {run['evaluations']} | {run['seconds']:.3f} "
                f"| {best:.4f} | {np.mean(found['floor']):.4f} |"
            )
            if best <= near:
                break
    return "\n".join(rows)
