"""Schedulers of diffusers whose step is one pass of our kernel over memory.

Each is a subclass of the original: its configuration, timesteps, levels, forward noising, files and names are
the original's own, and only `step` is ours:

    pipe.scheduler = FastDPMSolverMultistepScheduler.from_config(pipe.scheduler.config)

Noise: a generator, or a list of them, draws what the original draws. Without one the noise is our own stream,
made inside the kernel, with a seed drawn from torch's global generator for each step: torch.manual_seed makes
a run reproducible, and copies of a scheduler do not share their noise.

Tensors are on the CPU or, where the kernels are built, on a CUDA device, whose current stream runs the step;
nothing waits for it. The original's step runs, with the same state, for tensors elsewhere or of another dtype
than float32, bfloat16 and float16, and for a step whose coefficients float32 cannot hold, such as that of an
epsilon prediction at alphas_cumprod = 0.

Refused when made: an unknown prediction_type; variance_type="fixed_large_log" of DDPM and solver_order=3 with
algorithm_type="sde-dpmsolver", for which the original's step gives NaN and fails. Refused by step: tensors
that require grad, and a model_output of another shape than sample, which the original would broadcast.

What a run is made from (timesteps, sigmas, alphas_cumprod, config) may be assigned anew at any time; a change
of these tensors in place after the first step is not seen.
"""

from __future__ import annotations

from diffusers import SchedulerMixin  # noqa: F401  (a saved pipeline looks for it beside its scheduler's class)

from diffusion_fast.integrations.diffusers.dpm import FastDPMSolverMultistepScheduler
from diffusion_fast.integrations.diffusers.sigma import (
    FastEulerAncestralDiscreteScheduler,
    FastEulerDiscreteScheduler,
    FastHeunDiscreteScheduler,
)
from diffusion_fast.integrations.diffusers.unipc import FastUniPCMultistepScheduler
from diffusion_fast.integrations.diffusers.variance import FastDDIMScheduler, FastDDPMScheduler

__all__ = [
    "FastDDIMScheduler",
    "FastDDPMScheduler",
    "FastDPMSolverMultistepScheduler",
    "FastEulerAncestralDiscreteScheduler",
    "FastEulerDiscreteScheduler",
    "FastHeunDiscreteScheduler",
    "FastUniPCMultistepScheduler",
]

for _name in __all__:  # a saved pipeline names this page as the home of its scheduler
    globals()[_name].__module__ = __name__
