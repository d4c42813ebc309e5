"""What the bytes of a run are a function of, by names: runs with the same entries give the same samples."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion_fast import _checks
from diffusion_fast.long_runs.formats import Labels
from diffusion_fast.noise import VERSION as NOISE_VERSION
from diffusion_fast.sampler import Sampler


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
    """The entry "run" of a manifest. context: one row for all samples."""
    table, scale = sampler.table, sampler.standardiser
    row = sampler.conditions.context(context, 1, sampler.device)
    weights = [*sampler.model.named_parameters(), *sampler.model.named_buffers()]
    named = ((f"{name} {value.dtype} {tuple(value.shape)}", _bytes(value)) for name, value in weights)
    return {
        "noise version": NOISE_VERSION,
        "seed": seed,
        "index range": [start, start + n],
        "shape": list(sampler.shape),
        "dtype": "<f4",
        "solver": f"{table.solver}, {len(table)} rows, {_hash([('rows', table.rows)])}",
        "model": f"{type(sampler.model).__name__[:100]} {_hash(named)}",
        "standardiser": None
        if scale is None
        else _hash([("mean", scale.mean.numpy()), ("std", scale.std.numpy())]),
        "labels": None if labels is None else _hash([("labels", labels.cycle)]),
        "context": None if row is None else _hash([("context", row.cpu().numpy())]),
        "precision": sampler.tier.identity,
        "device": sampler.device.type,
        "plan": None if sampler.plan is None else sampler.plan.hash,
    }


def _bytes(value: Tensor) -> np.ndarray:
    return value.detach().cpu().reshape(-1).view(torch.uint8).numpy()


def _hash(arrays: Iterable[tuple[str, np.ndarray]]) -> str:
    digest = hashlib.sha256()
    for name, array in arrays:
        digest.update(f"{name} {array.dtype.str} {array.shape}\n".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:32]
