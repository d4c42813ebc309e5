"""What a Sampler is made from and called with: checked before anything runs."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffusion_fast import _checks, _tensors, capture, cuda
from diffusion_fast.cuda_chain import PRECISIONS as ON_CUDA
from diffusion_fast.precision import PRECISIONS as ON_CPU
from diffusion_fast.schedules import NoiseSchedule
from diffusion_fast.sigma_schedules import FlowSchedule, SigmaSchedule
from diffusion_fast.solvers.table import StepTable
from diffusion_fast.standardiser import Standardiser
from diffusion_fast.torch_chain import Call, NotFinite


def check_model(model: Any, schedule: Any, time_input: str) -> torch.device:
    """The device of the model's weights; the CPU where it has none."""
    if not isinstance(model, nn.Module):
        raise _checks.bad_type("model", model, "a torch.nn.Module")
    for part in model.modules():
        if isinstance(part, torch.jit.ScriptModule):  # no Python to capture, no dicts to watch
            accepted = "the torch.nn.Module that torch.jit.script or torch.jit.trace was given"
            raise _checks.bad_value("model", f"the TorchScript module {type(part).__name__}", accepted)
    check_eval_mode(model.modules())
    if not isinstance(schedule, (NoiseSchedule, SigmaSchedule, FlowSchedule)):
        raise _checks.bad_type("schedule", schedule, "a NoiseSchedule, SigmaSchedule or FlowSchedule")
    limit = getattr(model, "n_steps", None)
    counts = isinstance(schedule, NoiseSchedule) or time_input not in capture.CONTINUOUS_TIME
    if counts and isinstance(limit, int) and schedule.n_steps > limit:
        raise _checks.bad_value("schedule", f"{schedule.n_steps} steps", f"at most model.n_steps = {limit}")
    tensors = [*model.named_parameters(), *model.named_buffers()]
    place = tensors[0][1].device if tensors else _tensors.CPU
    for name, tensor in tensors:
        if tensor.device.type not in ("cpu", "cuda") or tensor.device != place:
            accepted = "a module on the CPU or on one CUDA device, all of it: model.to(device)"
            others = "" if tensor.device == place else f", {tensors[0][0]} on {place}"
            raise _checks.bad_value("model", f"{name} on {tensor.device}{others}", accepted)
        _checks.weights(f"model.{name}", tensor)
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise _checks.bad_value(f"model.{name}", parameter, "float32 weights: model.float()")
    return place


def sampler_device(given: Any, place: torch.device, precision: Any, backend: str) -> torch.device:
    """Where the samples are drawn: the device asked for, else the place of the model's weights."""
    if given is None:
        found = cuda.device_of("model", place)
    else:
        found = cuda.device_of("device", given)
    _checks.choice("precision", precision, dict.fromkeys((*ON_CUDA, *ON_CPU)))
    there: tuple[str, ...] = ON_CPU if found.type == "cpu" else ON_CUDA
    where = "on the CPU" if found.type == "cpu" else "on CUDA"
    if backend == "torch":
        there, where = ("float32",), "with backend='torch'"
    if precision not in there:
        raise _checks.bad_value("precision", precision, f"{', '.join(map(repr, there))} {where}")
    return _tensors.CPU if found.type == "cpu" else found


def on_cpu(model: nn.Module, place: torch.device) -> nn.Module:
    """The model, or where its weights are on a device a copy of it on the CPU."""
    if place.type == "cpu":
        return model
    try:
        return copy.deepcopy(model).cpu()
    except Exception as error:  # of whatever the module holds
        given = f"one on {place} that cannot be copied to the CPU ({error})"
        accepted = "a module that copy.deepcopy copies, or model.cpu() with the device as device="
        raise _checks.bad_value("model", given, accepted) from error


def check_place(place: torch.device, device: torch.device, why: str) -> None:
    """A module that torch runs must be where the samples are."""
    if place != device:
        accepted = f"a module on {device}, where torch is to run it{why}: model.to('{device}')"
        raise _checks.bad_value("model", f"one on {place}", accepted)


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


def warn_not_finite(bad: NotFinite, call: Call) -> None:
    """Waits for a device, but not while a graph is being captured."""
    if isinstance(bad, Tensor):
        if bad.is_cuda and torch.cuda.is_current_stream_capturing():
            return
        count = int(bad.sum())
        rows = bad.nonzero()[:8].flatten().tolist() if count else []
    else:
        count, rows = bad
    if count:
        more = ", ..." if count > len(rows) else ""
        named = ", ".join(str(call.start + row) for row in rows)
        warnings.warn(
            f"{count} of {call.n} samples hold NaN or infinity: sample {named}{more} "
            "(the model's output or the standardiser's inverse overflowed; the others are unaffected)",
            RuntimeWarning,
            stacklevel=4,
        )
