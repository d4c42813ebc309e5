"""What a Sampler is made from and called with: checked before anything runs."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffusion_fast import _checks, _tensors, capture
from diffusion_fast.schedules import NoiseSchedule
from diffusion_fast.sigma_schedules import FlowSchedule, SigmaSchedule
from diffusion_fast.solvers.table import StepTable
from diffusion_fast.standardiser import Standardiser


def check_model(model: Any, schedule: Any, time_input: str) -> None:
    if not isinstance(model, nn.Module):
        raise _checks.bad_type("model", model, "a torch.nn.Module")
    check_eval_mode(model.modules())
    if not isinstance(schedule, (NoiseSchedule, SigmaSchedule, FlowSchedule)):
        raise _checks.bad_type("schedule", schedule, "a NoiseSchedule, SigmaSchedule or FlowSchedule")
    limit = getattr(model, "n_steps", None)
    counts = isinstance(schedule, NoiseSchedule) or time_input not in capture.CONTINUOUS_TIME
    if counts and isinstance(limit, int) and schedule.n_steps > limit:
        raise _checks.bad_value("schedule", f"{schedule.n_steps} steps", f"at most model.n_steps = {limit}")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.device.type != "cpu":
            raise _checks.bad_value("model", f"{name} on {tensor.device}", "a module on the CPU: model.cpu()")
        if tensor.is_floating_point():
            _checks.finite(f"model.{name}", tensor.detach())
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise _checks.bad_value(f"model.{name}", parameter, "float32 weights: model.float()")


def check_eval_mode(parts: Iterable[nn.Module]) -> None:
    for part in parts:
        if part.training:
            given = f"{type(part).__name__} in train mode"
            raise _checks.bad_value("model", given, "one in eval mode: call model.eval()")


def sample_shape(model: nn.Module, shape: Any) -> tuple[int, ...]:
    own = getattr(model, "shape", None)
    given = own if shape is None else shape
    if isinstance(given, (int, np.integer)) and not isinstance(given, bool):
        given = (given,)
    if not isinstance(given, (tuple, list, torch.Size)) or not given:
        raise _checks.bad_type(
            "shape", given, "the shape of one sample, a tuple of positive integers such as (3,)"
        )
    sizes = tuple(_checks.integer("shape", size, 1, 1 << 32) for size in given)
    if isinstance(own, tuple) and sizes != own:
        raise _checks.bad_value("shape", sizes, f"the model's own {own}")
    return sizes


def with_threshold(table: StepTable, ratio: Any, clip: Any) -> StepTable:
    quantile = _checks.real("dynamic_threshold", ratio, 0.0, 1.0, open_low=True)
    if clip is None or _checks.real("clip", clip) < 1:
        accepted = "a number from 1 up beside dynamic_threshold: the most that the threshold may be"
        raise _checks.bad_value("clip", clip, accepted)
    return table.replace(quantile=np.where(np.isfinite(table.rows["clip"]), quantile, 0))


def check_standardiser(standardiser: Any, shape: tuple[int, ...]) -> Standardiser | None:
    if standardiser is not None:
        if not isinstance(standardiser, Standardiser):
            raise _checks.bad_type("standardiser", standardiser, "a Standardiser or None")
        if shape != (standardiser.dim,):
            raise _checks.bad_value(
                "standardiser", f"{standardiser.dim} columns", f"the sample's shape {shape}"
            )
    return standardiser


def finite_input(name: str, tensor: Any, shape: tuple[int, ...]) -> Tensor:
    return _checks.finite(name, _tensors.given(name, tensor, torch.float32, shape))


def warn_not_finite(count: int, n: int, rows: list[int]) -> None:
    if count:
        more = ", ..." if count > len(rows) else ""
        warnings.warn(
            f"{count} of {n} samples hold NaN or infinity: sample {', '.join(map(str, rows))}{more} "
            "(the model's output overflowed; the others are unaffected)",
            RuntimeWarning,
            stacklevel=5,
        )
