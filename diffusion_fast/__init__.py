"""Fast, reproducible, large-batch sampling of small diffusion models.

import diffusion_fast as df

schedule = df.NoiseSchedule.linear(n_steps=150, beta_start=1e-5, beta_end=0.0128)
model = df.models.MLPDenoiser(dim=3, n_steps=150)
df.train(model, schedule, data)
x = df.sample(model, schedule, 1_000_000, seed=0)
"""

from __future__ import annotations

import importlib
from typing import Any

from diffusion_fast import _cpu, models, noise, ops, reference, solvers
from diffusion_fast.capture import CaptureError
from diffusion_fast.checkpoint import Checkpoint, load, save
from diffusion_fast.plan import Plan
from diffusion_fast.sampler import Sampler, sample
from diffusion_fast.schedules import NoiseSchedule
from diffusion_fast.solvers.table import StepRow, StepTable
from diffusion_fast.standardiser import Standardiser
from diffusion_fast.training import TrainingHistory, train

__version__ = "0.1.0"
__all__ = [
    "CaptureError",
    "Checkpoint",
    "NoiseSchedule",
    "Plan",
    "Sampler",
    "Standardiser",
    "StepRow",
    "StepTable",
    "TrainingHistory",
    "build_info",
    "datasets",
    "load",
    "metrics",
    "models",
    "noise",
    "ops",
    "plotting",
    "reference",
    "sample",
    "save",
    "solvers",
    "train",
]

_LAZY = ("datasets", "metrics", "plotting")  # they import SciPy, POT or matplotlib


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return importlib.import_module(f"diffusion_fast.{name}")
    raise AttributeError(f"module 'diffusion_fast' has no attribute {name!r}")


def build_info() -> dict[str, Any]:
    """Version, the instruction sets this build has and this processor runs, the one in use, and torch's."""
    import torch

    return {
        "version": __version__,
        "instruction_sets": _cpu.isas(),
        "instruction_set": _cpu.isa(),
        "torch": torch.__version__,
    }
