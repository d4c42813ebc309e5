"""The schedulers of integrations.diffusers beside the originals: one step, as a pipeline calls it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from diffusion_fast._timing import Contender, Result, compare

STEPS = 50


@dataclass(frozen=True)
class Scheduler:
    """Steps of a run of 50, without a generator, over the same sample and network output."""

    scheduler: str
    elements: int
    faster: dict[str, float] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"scheduler-{self.scheduler}-{self.elements}"

    @property
    def names(self) -> tuple[str, ...]:
        return "ours", "diffusers"

    def prepare(self, name: str) -> Callable[[], object]:
        return self.run(name, *self.tensors(min(self.elements, 1 << 16)), 3)

    def tensors(self, elements: int) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (elements // 1024, 1, 32, 32)
        return torch.randn(shape), torch.randn(shape)

    def run(self, name: str, x: torch.Tensor, output: torch.Tensor, steps: int) -> Callable[[], float]:
        """The first steps of a run, set_timesteps not counted: seconds a step."""
        import diffusers

        from diffusion_fast.integrations import diffusers as fast

        home, prefix = (fast, "Fast") if name == "ours" else (diffusers, "")
        scheduler: Any = getattr(home, f"{prefix}{self.scheduler}Scheduler")()
        scheduler.is_scale_input_called = True  # else Euler's warns

        def run() -> float:
            scheduler.set_timesteps(STEPS)
            times = list(scheduler.timesteps[:steps])
            begin = time.perf_counter()
            for t in times:
                kept = scheduler.step(output, t, x)  # the one before is given back, as in a pipeline
            del kept
            return (time.perf_counter() - begin) / steps

        return run

    @torch.inference_mode()
    def measure(self, quick: bool) -> Result:
        elements = self.elements >> 3 if quick and self.elements > 1 << 20 else self.elements
        large = elements > 1 << 20
        x, output = self.tensors(elements)
        title = f"{self.scheduler}Scheduler.step, {elements:,} elements, {STEPS} steps a run"
        result = Result(self.name, title, "Melem/s")
        found = []
        for name in self.names:
            run = self.run(name, x, output, 4 if large else STEPS - 1)
            run()
            found.append(Contender(name, run, 1 if large else 40, required=self.faster.get(name)))
        return compare(result, found, elements / 1e6, 3 if quick else 5)


_ORIGINALS = {
    "DDPM": 10.0,
    "DDIM": 4.0,
    "DPMSolverMultistep": 4.0,
    "EulerDiscrete": 4.0,
    "HeunDiscrete": 4.0,
    "UniPCMultistep": 4.0,
}
SCHEDULERS = [
    *(Scheduler(name, 1 << 25, {"diffusers": ratio}) for name, ratio in _ORIGINALS.items()),
    *(Scheduler(name, 1 << 12, {"diffusers": 3.0}) for name in _ORIGINALS),
]
