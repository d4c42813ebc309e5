"""Fast, reproducible, large-batch sampling of small diffusion models.

import diffusion_fast as df

schedule = df.NoiseSchedule.linear(n_steps=150, beta_start=1e-5, beta_end=0.0128)
model = df.models.MLPDenoiser(dim=3, n_steps=150)
df.train(model, schedule, data)
x = df.sample(model, schedule, 1_000_000, seed=0)
"""

from __future__ import annotations

import gc
import importlib
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from diffusion_fast import (
        baselines,
        cuda,
        datasets,
        metrics,
        models,
        noise,
        ops,
        plotting,
        reference,
        solvers,
    )
    from diffusion_fast.capture import CaptureError
    from diffusion_fast.checkpoint import Checkpoint, load, save
    from diffusion_fast.classifier import ClassifierDDPM
    from diffusion_fast.cuda import cuda_available
    from diffusion_fast.functional import sample
    from diffusion_fast.long_runs import Columns, RunResult, Verification, sample_to, verify
    from diffusion_fast.plan import Plan
    from diffusion_fast.sampler import Sampler
    from diffusion_fast.schedules import NoiseSchedule
    from diffusion_fast.sigma_schedules import FlowSchedule, SigmaSchedule
    from diffusion_fast.solvers.table import StepRow, StepTable
    from diffusion_fast.standardiser import Standardiser
    from diffusion_fast.svdd import SVDDSampler
    from diffusion_fast.training import TrainingHistory, train

__version__ = "0.1.0"
__all__ = [
    "CaptureError",
    "Checkpoint",
    "ClassifierDDPM",
    "Columns",
    "FlowSchedule",
    "NoiseSchedule",
    "Plan",
    "RunResult",
    "SVDDSampler",
    "Sampler",
    "SigmaSchedule",
    "Standardiser",
    "StepRow",
    "StepTable",
    "TrainingHistory",
    "Verification",
    "baselines",
    "build_info",
    "cuda",
    "cuda_available",
    "datasets",
    "load",
    "metrics",
    "models",
    "noise",
    "ops",
    "plotting",
    "reference",
    "sample",
    "sample_to",
    "save",
    "solvers",
    "train",
    "verify",
]

# Public names and the modules they come from, imported at first use (PEP 562): torch, SciPy, POT and
# matplotlib take seconds, and `diffusion-fast info` or a completion of the shell needs none of them.
_HOME = {
    "CaptureError": "capture",
    "Checkpoint": "checkpoint",
    "ClassifierDDPM": "classifier",
    "Columns": "long_runs",
    "FlowSchedule": "sigma_schedules",
    "NoiseSchedule": "schedules",
    "Plan": "plan",
    "RunResult": "long_runs",
    "SVDDSampler": "svdd",
    "Sampler": "sampler",
    "SigmaSchedule": "sigma_schedules",
    "Standardiser": "standardiser",
    "StepRow": "solvers.table",
    "StepTable": "solvers.table",
    "TrainingHistory": "training",
    "Verification": "long_runs",
    "cuda_available": "cuda",
    "load": "checkpoint",
    "sample": "functional",
    "sample_to": "long_runs",
    "save": "checkpoint",
    "train": "training",
    "verify": "long_runs",
}
_MODULES = {
    *("baselines", "cuda", "datasets", "metrics", "models", "noise", "ops", "plotting", "reference"),
    "solvers",
}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return _load(name)
    if name not in _HOME:
        raise AttributeError(f"module 'diffusion_fast' has no attribute {name!r}")
    value = getattr(_load(_HOME[name]), name)
    globals()[name] = value  # the next look-up finds it without coming here
    return value


def _load(name: str) -> ModuleType:
    """The submodule. Modules leave no garbage behind, and one pass of the collector over the 170,000 objects
    of torch takes a third of the time of loading this package: it is put off until they are there."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        return importlib.import_module(f"diffusion_fast.{name}")
    finally:
        if collecting:
            gc.enable()


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


def build_info() -> dict[str, Any]:
    """Version, the instruction sets this build has and this processor runs, the one in use, and torch's.

    "cuda": whether its kernels can be used, else why not and what to do; versions and architectures.
    """
    import torch

    from diffusion_fast import _cpu, cuda

    return {
        "version": __version__,
        "instruction_sets": _cpu.isas(),
        "instruction_set": _cpu.isa(),
        "cuda": cuda.info(),
        "torch": torch.__version__,
    }
