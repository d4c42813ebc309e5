"""What a run found, for readers (report.md with its pictures) and for programs (results.json)."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from PIL import Image

from diffusion_fast._files import replacing
from diffusion_fast.metrics.result import MetricResult

RESULTS = "results.json"
PNG_LIMIT = 200_000  # bytes, so that reports can live in a repository
RESOLUTIONS = (130, 100, 80, 60, 45, 30)  # dots per inch, the first that stays below
PALETTE = 256  # colors, where the picture in all of them is too large

Cell = str | int | float | None | MetricResult


class Report:
    """The parts of a report in the order they were added."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.lines: list[str] = []
        self.tables: list[dict[str, Any]] = []
        self.pictures: list[dict[str, str]] = []

    def text(self, markdown: str) -> None:
        self.lines += [markdown.strip(), ""]

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], note: str) -> None:
        for row in rows:
            if len(row) != len(columns):
                raise ValueError(f"table {title!r}: a row of {len(row)} cells under {len(columns)} columns")
        self.lines += [f"### {title}", "", _line(columns), _line(["---"] * len(columns))]
        self.lines += [_line([_shown(cell) for cell in row]) for row in rows]
        self.lines += ["", note, ""] if note else [""]
        values = [[_value(cell) for cell in row] for row in rows]
        self.tables.append({"title": title, "columns": list(columns), "rows": values, "note": note})

    def picture(self, name: str, figure: Figure, caption: str) -> None:
        with replacing(self.folder / f"{name}.png") as temporary:
            temporary.write_bytes(_png(figure))
        self.lines += [f"![{caption}]({name}.png)", "", f"*{caption}*", ""]
        self.pictures.append({"file": f"{name}.png", "caption": caption})

    def write(self, title: str, opening: Sequence[str], facts: dict[str, Any]) -> None:
        """report.md, with the opening lines under its title, and results.json, with the facts."""
        content = "\n".join([f"# {title}", "", *opening, "", *self.lines])
        with replacing(self.folder / "report.md") as temporary:
            temporary.write_text(content.rstrip() + "\n", encoding="utf-8")
        results = {**facts, "tables": self.tables, "pictures": self.pictures}
        with replacing(self.folder / RESULTS) as temporary:
            temporary.write_text(json.dumps(results, indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |"


def _shown(cell: Cell) -> str:
    if cell is None:
        return ""
    if isinstance(cell, MetricResult):
        spread = "" if math.isnan(cell.spread) else f" ± {cell.spread:.2g}"
        return f"{_shown(cell.value)}{spread}"
    if isinstance(cell, float):
        return "not a number" if math.isnan(cell) else f"{cell:.4g}"
    return f"{cell:,}" if isinstance(cell, int) else cell


def _value(cell: Any) -> Any:
    """As JSON has it: no NaN, no infinity."""
    if isinstance(cell, MetricResult):
        return {name: _value(value) for name, value in asdict(cell).items()}
    return None if isinstance(cell, float) and not math.isfinite(cell) else cell


def _png(figure: Figure) -> bytes:
    for resolution in RESOLUTIONS:
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=resolution)
        if buffer.tell() < PNG_LIMIT:
            return buffer.getvalue()
        reduced = io.BytesIO()
        Image.open(buffer).convert("RGB").quantize(PALETTE).save(reduced, format="png", optimize=True)
        if reduced.tell() < PNG_LIMIT:
            return reduced.getvalue()
    raise ValueError(
        f"a picture takes {reduced.tell():,} bytes at {resolution} dpi; the limit is {PNG_LIMIT:,}"
    )
