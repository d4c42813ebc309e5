"""`sample`, the functional form of Sampler: one call from a model to its samples."""

from __future__ import annotations

import inspect
from typing import Any

import numpy as np
from torch import Tensor, nn

from diffusion_fast import _checks
from diffusion_fast import precision as tiers
from diffusion_fast.sampler import OPTIONS, Sampler
from diffusion_fast.schedules import NoiseSchedule
from diffusion_fast.sigma_schedules import FlowSchedule, SigmaSchedule

_CALL_TIME = frozenset(inspect.signature(Sampler.sample).parameters) - {"self", "n"}
_ACCEPTED = sorted(OPTIONS | _CALL_TIME)


def sample(
    model: nn.Module, schedule: NoiseSchedule | SigmaSchedule | FlowSchedule, n: int, **options: Any
) -> Tensor:
    """Sampler(model, schedule, **plan-time options).sample(n, **call-time options): (n, *shape) float32.

    guidance_scale or guidance_weight as a tensor or array is each sample's own; precision="auto" is float32
    then, for what it measures is of one scale.

    Raises what Sampler and its `sample` do, and ValueError for an option that neither has.
    """
    for name in options:
        _checks.choice("options of sample", name, _ACCEPTED)
    count, _ = _checks.sample_range(n, options.get("start", 0))
    call = {name: options.pop(name) for name in _CALL_TIME & set(options)}
    for name, ungraded in (("guidance_scale", 2.0), ("guidance_weight", 1.0)):
        if name in call and not isinstance(call[name], (Tensor, np.ndarray)):
            options[name] = call.pop(name)
        elif name in call:
            options[name] = ungraded  # the plan needs a second branch, whatever its scale
            if options.get("precision") == "table":
                raise _checks.bad_value(name, call[name], "a number with precision='table'")
            if options.get("precision") == "auto":
                tiers.asked("auto", options.pop("tolerance", None), options.pop("expected_samples", None))
                options["precision"] = "float32"
    if options.get("precision") == "auto" and count:
        options.setdefault("expected_samples", count)
    return Sampler(model, schedule, **options).sample(n, **call)
