"""Loops over a scheduler of diffusers and over ours, given the same network and the same noise."""

from __future__ import annotations

import math
from typing import Any

import diffusers
import torch
from torch import Tensor

from diffusion_fast.integrations import diffusers as fast

NAMES = tuple(name.removeprefix("Fast") for name in fast.__all__)
NOISY = {"DDPMScheduler", "EulerAncestralDiscreteScheduler"}  # with any options
_G = torch.Generator().manual_seed(0)
START = torch.randn(2, 3, 4, 5, generator=_G)
WEIGHT = 0.5 * torch.randn(3, 3, generator=_G)


def original(name: str, **config: Any) -> Any:
    return getattr(diffusers, name)(**config)


def ours(name: str, **config: Any) -> Any:
    return getattr(fast, f"Fast{name}")(**config)


def network(x: Tensor, channels: int = 3) -> Tensor:
    mixed = torch.einsum("ij,bj...->bi...", WEIGHT.to(x.dtype), torch.tanh(x)) + 0.1
    return mixed if channels == 3 else torch.cat([mixed, 0.5 + 0.4 * torch.tanh(x)], dim=1)


def set_exact(scheduler: Any) -> None:
    """The scheduler's own levels in float64, so that its step computes in float64."""
    for key in ("sigmas", "alphas_cumprod", "final_alpha_cumprod", "one"):
        if key in vars(scheduler):
            setattr(scheduler, key, vars(scheduler)[key].double())


def run(
    scheduler: Any,
    *,
    steps: int | None = 12,
    start: Tensor = START,
    exact: bool = False,
    noisy: bool = False,
    channels: int = 3,
    begin: int | None = None,
    times: dict[str, Any] | None = None,
    dense: bool = False,
    **options: Any,
) -> list[Tensor]:
    """prev_sample, and pred_original_sample where there is one, of every step. dense: the network's output is
    contiguous, as it is of most models; small tensors take another way then."""
    if steps is not None or times:
        scheduler.set_timesteps(**({"num_inference_steps": steps} if times is None else times))
    if exact:
        set_exact(scheduler)
        start = start.double()
    if begin is not None:
        scheduler.set_begin_index(begin)
    x = start * torch.as_tensor(scheduler.init_noise_sigma, dtype=start.dtype)
    if noisy:
        options["generator"] = torch.Generator().manual_seed(1)
    states = []
    for t in scheduler.timesteps[begin or 0 :]:
        output = network(scheduler.scale_model_input(x, t), channels)
        made = scheduler.step(output.contiguous() if dense else output, t, x, return_dict=False, **options)
        x = made[0]
        states += made
    return states


def gap(got: list[Tensor], want: list[Tensor]) -> float:
    """The largest difference of a state, by the rms of the state; inf for NaN in one of them alone."""
    assert [s.shape for s in got] == [s.shape for s in want]
    worst = 0.0
    for a, b in zip(got, want, strict=True):
        both = torch.isnan(a) & torch.isnan(b)
        a, b = (s.double().masked_fill(both, 0.0) for s in (a, b))
        value = float((a - b).square().mean().sqrt() / b.square().mean().sqrt().clamp(min=1e-30))
        worst = max(worst, math.inf if math.isnan(value) else value)
    return worst
