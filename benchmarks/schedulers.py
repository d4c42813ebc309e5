"""The schedulers of integrations.diffusers beside the originals: one step, as a pipeline calls it."""

from __future__ import annotations

import itertools
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
        return self.run(name, *self.tensors(min(self.elements, 1 << 16)))

    def tensors(self, elements: int) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (elements // 1024, 1, 32, 32)
        return torch.randn(shape), torch.randn(shape)

    def run(self, name: str, x: torch.Tensor, output: torch.Tensor) -> Callable[[], object]:
        import diffusers

        from diffusion_fast.integrations import diffusers as fast

        home, prefix = (fast, "Fast") if name == "ours" else (diffusers, "")
        scheduler: Any = getattr(home, f"{prefix}{self.scheduler}Scheduler")()
        scheduler.set_timesteps(STEPS)
        scheduler.is_scale_input_called = True  # else Euler's warns
        times = list(scheduler.timesteps)
        position = itertools.count()

        def step() -> object:
            i = next(position) % (len(times) - 1)
            if i == 0:
                scheduler.set_timesteps(STEPS)
            return scheduler.step(output, times[i], x)

        return step

    @torch.inference_mode()
    def measure(self, quick: bool) -> Result:
        elements = self.elements >> 3 if quick and self.elements > 1 << 20 else self.elements
        x, output = self.tensors(elements)
        title = f"{self.scheduler}Scheduler.step, {elements:,} elements, set_timesteps once in {STEPS}"
        result = Result(self.name, title, "Melem/s")
        calls = 2 if elements > 1 << 20 else STEPS
        found = []
        for name in self.names:
            run = self.run(name, x, output)
            run()
            found.append(Contender(name, run, calls, required=self.faster.get(name)))
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
