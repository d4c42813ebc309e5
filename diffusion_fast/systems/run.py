"""One run of a system in one folder: its sizes, its stages, which a later run takes up, and its report."""

from __future__ import annotations

import json
import os
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

import torch
from matplotlib.figure import Figure
from torch import nn
from tqdm.auto import tqdm

from diffusion_fast import __version__, _checks, build_info
from diffusion_fast.fused_training import FusedTrainer
from diffusion_fast.systems import stages
from diffusion_fast.systems.report import RESULTS, Cell, Report

KINDS = ("training", "sampling", "evaluation")
WEIGHTS = "model."  # what names a model's weights among a stage's values
CALIBRATION_STEPS = 20
REFERENCE_SECONDS = 0.07  # of CALIBRATION_STEPS where SECONDS of the systems were measured

T = TypeVar("T")


@dataclass
class Run:
    """How a system does its work.

    A stage (`trained`, `stage`) is kept in the run's folder when it is done; with resume, one that is there
    is read back and its work left out. `table`, `picture` and `text` follow each other in report.md as they
    were called; `finish` writes it and results.json, `interrupted` what there is of them.

    full: the reports' own sizes, else a selection that says what it left out (`cut`). as_published: show the
    published behaviour, mistakes included, beside the right one. data: a folder of the user's own files.
    out: the run's folder, made when something is written.
    """

    system: str
    out: Path
    full: bool = False
    as_published: bool = False
    resume: bool = False
    seed: int = 0
    progress: bool = False
    data: Path | None = None
    cuts: list[str] = field(default_factory=list, init=False)
    seconds: dict[str, float] = field(default_factory=lambda: dict.fromkeys(KINDS, 0.0), init=False)

    def __post_init__(self) -> None:
        self.report = Report(self.out)
        self.out.mkdir(parents=True, exist_ok=True)

    @property
    def size(self) -> str:
        return "full" if self.full else "quick"

    def pick(self, quick: T, full: T) -> T:
        return full if self.full else quick

    def cut(self, what: str) -> None:
        """Say in the report what a quick run left out."""
        if not self.full:
            self.cuts.append(what)

    def stage(self, name: str, kind: str, work: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
        """What work() returns, JSON values, tensors and arrays by name; of a stage done before, what it did.

        kind: which of "training", "sampling" and "evaluation" its seconds count as.
        """
        return self._done(self.out / "stages" / f"{name}.safetensors", name, kind, work)

    def trained(
        self, name: str, model: nn.Module, fit: Callable[[nn.Module], Mapping[str, Any]]
    ) -> dict[str, Any]:
        """What fit(model) returns, which trains the model in place; both are kept in the checkpoint `name`.

        The model is left in eval mode.
        """

        def work() -> dict[str, Any]:
            values = dict(fit(model))
            return values | {WEIGHTS + key: value for key, value in model.state_dict().items()}

        values = self._done(self.out / "checkpoints" / f"{name}.safetensors", name, "training", work)
        weights = {key: values.pop(key) for key in list(values) if key.startswith(WEIGHTS)}
        model.load_state_dict({key.removeprefix(WEIGHTS): value for key, value in weights.items()})
        model.eval()
        return values

    def _done(
        self, path: Path, name: str, kind: str, work: Callable[[], Mapping[str, Any]]
    ) -> dict[str, Any]:
        _checks.choice("kind", kind, KINDS)
        identity = {"system": self.system, "stage": name, "size": self.size, "seed": self.seed}
        known = self.resume and path.exists()
        if known:
            seconds, values = stages.read(path, identity)
        else:
            began = time.perf_counter()
            values = dict(work())
            seconds = time.perf_counter() - began
            stages.write(path, identity, seconds, values)
        self.seconds[kind] += seconds
        if self.progress:
            tqdm.write(f"{self.system}: {name}, {seconds:.1f} s{' (done before)' if known else ''}")
        return values

    def text(self, markdown: str) -> None:
        self.report.text(markdown)

    def table(
        self, title: str, columns: Sequence[str], rows: Sequence[Sequence[Cell]], note: str = ""
    ) -> None:
        self.report.table(title, columns, rows, note)

    def picture(self, name: str, figure: Figure, caption: str) -> None:
        """The figure as NAME.png, below 200 kB."""
        self.report.picture(name, figure, caption)

    def interrupted(self, title: str) -> None:
        """Write what there is of the report, unless the folder has a whole one from before."""
        results = self.out / RESULTS
        if results.exists() and not json.loads(results.read_text(encoding="utf-8"))["interrupted"]:
            return
        self.finish(title, interrupted=True)

    def finish(self, title: str, interrupted: bool = False) -> dict[str, Any]:
        """Write report.md and results.json; -> the facts that both open with."""
        total = sum(self.seconds.values())
        facts = {
            "system": self.system,
            "title": title,
            "size": self.size,
            "as_published": self.as_published,
            "seed": self.seed,
            "version": __version__,
            "date": date.today().isoformat(),
            "machine": machine(),
            "seconds": {**self.seconds, "total": total},
            "cuts": self.cuts,
            "interrupted": interrupted,
        }
        spent = ", ".join(f"{kind} {seconds:.0f} s" for kind, seconds in self.seconds.items())
        opening = [
            f"`diffusion-fast reproduce {self.system} --{self.size}{' --as-published' * self.as_published} "
            f"--seed {self.seed}`, version {__version__}, {facts['date']}, on {facts['machine']}: {spent}.",
        ]
        if interrupted:
            opening += [
                "",
                "**Interrupted: tables that are missing here were not reached; `--resume` goes on.**",
            ]
        if self.cuts:
            opening += ["", "What this size leaves out, which `--full` has:", ""]
            opening += [f"* {what}" for what in self.cuts]
        self.report.write(f"System {self.system}: {title}", opening, facts)
        return facts


def machine() -> str:
    """The processor and how much of it is used, for reports."""
    name = platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            names = [line.partition(":")[2].strip() for line in file if line.startswith("model name")]
        name = names[0] if names else name
    return f"{name} ({build_info()['instruction_set']}), {torch.get_num_threads()} threads"


def expected_seconds(reference: float) -> float:
    """What took `reference` seconds where it was measured, on this machine and torch's number of threads: by
    a short training."""
    network = nn.Sequential(nn.Linear(3, 256), nn.Tanh(), nn.Linear(256, 256), nn.Tanh(), nn.Linear(256, 3))
    trainer, x = FusedTrainer(network), torch.zeros(CALIBRATION_STEPS * 1024, 3)
    seconds = []
    for _ in range(3):
        began = time.perf_counter()
        trainer.run(x, x, batch_size=1024, lr=1e-3)
        seconds.append(time.perf_counter() - began)
    return reference * min(seconds) / REFERENCE_SECONDS
