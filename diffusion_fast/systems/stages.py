"""Stages of a run in files: each is done or not done, and one that is done is read back.

A stage is one safetensors file: its arrays as tensors; in the header, as JSON, everything else that the work
returned, the seconds it took, and which run it belongs to. Nothing is pickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from diffusion_fast._files import replacing
from diffusion_fast.metrics.result import MetricResult

HEADER_KEY = "diffusion_fast.stage"
METRIC = "metric result"  # a JSON object with this one key is a MetricResult


def write(path: Path, identity: Mapping[str, Any], seconds: float, values: Mapping[str, Any]) -> None:
    """Keep what a stage returned; the file appears whole or not at all."""
    tensors: dict[str, Tensor] = {}
    arrays: list[str] = []  # those of NumPy, which come back as such
    plain: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, np.ndarray):
            arrays.append(name)
            value = torch.from_numpy(value)
        if isinstance(value, Tensor):
            tensors[name] = value.detach().cpu().contiguous().clone()  # the file holds no shared memory
        else:
            plain[name] = value
    header = {**identity, "seconds": seconds, "arrays": arrays, "values": plain}
    content = to_bytes(tensors, metadata={HEADER_KEY: json.dumps(header, default=_as_json)})
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def read(path: Path, identity: Mapping[str, Any]) -> tuple[float, dict[str, Any]]:
    """The seconds that a stage took and what it returned.

    Raises ValueError for a file that is damaged or belongs to another run.
    """
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads((file.metadata() or {})[HEADER_KEY], object_hook=_from_json)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        found = {name: header[name] for name in identity}
        seconds, arrays, values = header["seconds"], header["arrays"], header["values"]
    except (SafetensorError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"out: got {str(path)!r}, which is no stage of a run or damaged ({error}); accepted: a folder "
            "that reproduce wrote, or this one without that file"
        ) from error
    for name, wanted in identity.items():
        if found[name] != wanted:
            raise ValueError(
                f"out: got {str(path)!r}, where {name} is {found[name]!r}; accepted: a run with {wanted!r}, "
                "or a new folder"
            )
    loaded = {name: value.numpy() if name in arrays else value for name, value in tensors.items()}
    return seconds, {**values, **loaded}


def _as_json(value: Any) -> Any:
    if isinstance(value, MetricResult):
        return {METRIC: asdict(value)}
    if isinstance(value, np.generic):
        return value.item()
    raise TypeError(f"a stage returned a {type(value).__name__}, which is no JSON value, tensor or array")


def _from_json(value: dict[str, Any]) -> Any:
    if value.keys() == {METRIC}:
        fields = value[METRIC]
        return MetricResult(fields["value"], fields["floor"], fields["spread"], tuple(fields["n"]))
    return value
