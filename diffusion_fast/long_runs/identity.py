"""What the bytes of a run are a function of, by names: runs with the same entries give the same samples."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion_fast import _checks
from diffusion_fast.long_runs.formats import Labels
from diffusion_fast.noise import VERSION as NOISE_VERSION
from diffusion_fast.sampler import Sampler

NOTHING = np.empty(0, np.uint8)


def cycle_of(sampler: Sampler, labels: Any) -> Labels | None:
    """The classes that samples take in turn, checked; None where none were given."""
    many = isinstance(labels, (Tensor, np.ndarray, list, tuple))
    k = len(labels) if many and np.ndim(labels) else 1
    if k == 0:
        raise _checks.bad_value("labels", labels, "at least one")
    found = sampler.conditions.labels(labels, k, guided=sampler.guidance is not None)
    return None if labels is None else Labels(torch.as_tensor(found).reshape(k).long().numpy())


def identity(
    sampler: Sampler, seed: int, start: int, n: int, labels: Labels | None, context: Any
) -> dict[str, Any]:
    """The entry "run" of a manifest. context: one row for all samples.

    A plan's hash holds all that the fused chain computes. Of a module that torch runs there are its type and
    its submodules', their attributes that are numbers, strings, arrays, tensors, functions by their names and
    tuples of these, the names of their forward hooks, and torch's version, another of which may round
    otherwise. All of it is the same in every process.
    """
    table, scale = sampler.table, sampler.standardiser
    row = sampler.conditions.context(context, 1, sampler.device)
    conditions = sampler.conditions
    null = conditions.null_context
    return {
        "noise version": NOISE_VERSION,
        "seed": seed,
        "index range": [start, start + n],
        "shape": list(sampler.shape),
        "dtype": "<f4",
        "solver": f"{table.solver}, {len(table)} rows, {_hash([('rows', table.rows)])}",
        "time input": f"{sampler.time_input}, {_hash([('times', sampler._times.numpy())])}",
        "model": f"{type(sampler.model).__name__[:100]} {_hash(_parts(sampler))}",
        "standardiser": None
        if scale is None
        else _hash([("mean", scale.mean.numpy()), ("std", scale.std.numpy())]),
        "conditions": _hash([(repr((conditions.call, conditions.null_class)), NOTHING)]),
        "null context": None if null is None else _hash([("null context", null.numpy())]),
        "labels": None if labels is None else _hash([("labels", labels.cycle)]),
        "context": None if row is None else _hash([("context", row.cpu().numpy())]),
        "precision": sampler.tier.identity,
        "device": sampler.device.type,
        "torch": f"{torch.__version__}, backend {sampler.backend}" if sampler.plan is None else None,
        "plan": None if sampler.plan is None else sampler.plan.hash,
    }


def _parts(sampler: Sampler) -> Iterator[tuple[str, np.ndarray]]:
    """What the model computes: its weights, and without a plan what can be told of its forward."""
    model = sampler.model
    for name, value in chain(model.named_parameters(), model.named_buffers()):
        yield f"{name} {value.dtype} {tuple(value.shape)}", _bytes(value)
    if sampler.plan is not None:
        return
    for name, module in model.named_modules():
        hooks = chain(module._forward_pre_hooks.values(), module._forward_hooks.values())
        parts = [type(module), *(hook if hasattr(hook, "__qualname__") else type(hook) for hook in hooks)]
        told = [f"{part.__module__}.{part.__qualname__}" for part in parts]
        # those that Weights.fingerprint watches, of the values that are the same in every process
        watched = {k: v for k, v in vars(module).items() if k[:1] != "_" and k != "training"}
        yield f"{name} {told} {sorted((k, _told(v)) for k, v in watched.items())}", NOTHING


def _told(value: Any) -> str:
    if isinstance(value, tuple):
        return str([type(value).__name__, *map(_told, value)])
    if isinstance(value, np.ndarray | Tensor):
        array = value if isinstance(value, np.ndarray) else _bytes(value)
        return _hash([(f"{value.dtype} {tuple(value.shape)}", array)]) if array.dtype != object else ""
    if value is None or isinstance(value, int | float | str | np.generic):
        return f"{type(value).__name__} {value!r}"
    name = getattr(value, "__qualname__", None)
    return type(value).__qualname__ if name is None else f"{value.__module__}.{name}"


def _bytes(value: Tensor) -> np.ndarray:
    return value.detach().cpu().reshape(-1).view(torch.uint8).numpy()


def _hash(arrays: Iterable[tuple[str, np.ndarray]]) -> str:
    digest = hashlib.sha256()
    for name, array in arrays:
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:32]
