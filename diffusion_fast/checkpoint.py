"""One file for a model, its schedule and its standardiser: safetensors with a JSON header, never pickle.

Tensors: `model.<state dict name>`, `schedule.betas` (float64), `standardiser.mean` and `.std` (float64).
The header's entry "diffusion_fast" is the JSON text of
{format_version, model: {class, config}, schedule: {name}, metadata}, held against SCHEMA.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

from diffusion_fast import _checks, _schema
from diffusion_fast._files import check_target, replacing
from diffusion_fast.models import ConditionalMLPDenoiser, MLPDenoiser
from diffusion_fast.sampler import Sampler
from diffusion_fast.schedules import NoiseSchedule
from diffusion_fast.solvers.levels import PREDICTIONS
from diffusion_fast.standardiser import Standardiser

FORMAT_VERSION = 1
HEADER_KEY = "diffusion_fast"
MAX_HEADER = 1 << 24  # characters
MAX_NAME = 1000
SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["format_version", "model", "schedule", "metadata"],
    "additionalProperties": False,
    "properties": {
        "format_version": {"const": FORMAT_VERSION},
        "model": {
            "type": "object",
            "required": ["class", "config"],
            "additionalProperties": False,
            "properties": {
                "class": {"type": "string"},
                "config": {"type": "object", "maxProperties": 64},  # checked by the class
            },
        },
        "schedule": {
            "type": "object",
            "required": ["name"],
            "additionalProperties": False,
            "properties": {"name": {"type": "string", "maxLength": MAX_NAME}},
        },
        "metadata": {"type": "object"},
    },
}
MODEL_CLASSES: dict[str, type[MLPDenoiser]] = {
    "MLPDenoiser": MLPDenoiser,
    "ConditionalMLPDenoiser": ConditionalMLPDenoiser,
}


@dataclass(frozen=True)
class Checkpoint:
    """What `load` found: the model (in eval mode), its schedule, its standardiser or None, the metadata."""

    model: MLPDenoiser
    schedule: NoiseSchedule
    standardiser: Standardiser | None
    metadata: dict[str, Any]

    def sampler(self, **options: Any) -> Sampler:
        """Sampler(model, schedule, **options) that gives samples in the data's own units.

        What the model predicts is what metadata["prediction_type"] says, where nothing else is asked for.
        Raises as Sampler does, and ValueError for a prediction type in the metadata that there is not.
        """
        if "prediction_type" in self.metadata and "prediction_type" not in options:
            known, accepted = self.metadata["prediction_type"], PREDICTIONS[NoiseSchedule]
            if known not in accepted:
                given = f"got the prediction_type {known!r} in it"
                raise ValueError(f"metadata: {given}; accepted: one of {', '.join(accepted)}")
            options["prediction_type"] = known
        return Sampler(self.model, self.schedule, standardiser=self.standardiser, **options)


def save(
    path: str | os.PathLike[str],
    model: MLPDenoiser,
    schedule: NoiseSchedule,
    standardiser: Standardiser | None = None,
    *,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint; the file appears whole or not at all, and replaces one that is there.

    Args:
        model: of one of the package's model classes, with finite weights.
        schedule: at most as long as model.n_steps.
        standardiser: of the model's dim; samples are brought back to the data's units with it.
        metadata: a dictionary of JSON values to keep with it, such as "prediction_type",
            which Checkpoint.sampler takes from there.

    Raises ValueError or TypeError for other arguments, among them a path where no file can be written, and
    OSError where writing fails all the same.
    """
    _check_type(path)
    target = check_target(path, (), replace=True)
    if MODEL_CLASSES.get(type(model).__name__) is not type(model):
        raise TypeError(f"model: got a {type(model).__name__}; accepted: a {' or '.join(MODEL_CLASSES)}")
    if not isinstance(schedule, NoiseSchedule):
        raise _checks.bad_type("schedule", schedule, "a NoiseSchedule")
    if standardiser is not None and not isinstance(standardiser, Standardiser):
        raise _checks.bad_type("standardiser", standardiser, "a Standardiser or None")
    state: dict[str, Tensor] = {}
    for name, value in model.state_dict().items():
        weights = _checks.readable(f"model.{name}", value.detach(), "weights with values")
        state[f"model.{name}"] = weights.cpu().contiguous()
    state["schedule.betas"] = schedule.betas.detach().cpu().to(torch.float64)
    if standardiser is not None:
        state["standardiser.mean"] = standardiser.mean
        state["standardiser.std"] = standardiser.std
    _check_parts(model, state, "")
    _check_modules(model)
    if len(schedule.name) > MAX_NAME:
        raise ValueError(
            f"schedule: got a name of {len(schedule.name)} characters; accepted: at most {MAX_NAME}"
        )
    header = {
        "format_version": FORMAT_VERSION,
        "model": {"class": type(model).__name__, "config": model.config},
        "schedule": {"name": schedule.name},
        "metadata": _schema.json_object("metadata", metadata),
    }
    text = json.dumps(header)
    if len(text) > MAX_HEADER:
        given = f"{len(text)} characters of JSON, with the model's configuration"
        raise ValueError(f"metadata: got {given}; accepted: at most {MAX_HEADER}")
    content = to_bytes(state, metadata={HEADER_KEY: text})

    with replacing(target) as temporary, temporary.open("xb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())  # else a crash could leave the new name with an empty file


def load(path: str | os.PathLike[str]) -> Checkpoint:
    """Read what `save` wrote. Nothing in the file is executed, and nothing is allocated before it is checked.

    Raises FileNotFoundError, and ValueError, which names what is wrong, for a file of another format or
    version, cut short, with an unknown model class, missing, additional or misshapen tensors, or NaN in them.
    """
    _check_type(path)
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"path: got {str(file)!r}, which is no file; accepted: a checkpoint file")
    try:
        with safe_open(file, framework="pt") as tensors:
            header = _header((tensors.metadata() or {}).get(HEADER_KEY))
            model_class, config = _model_header(header)
            shapes = {name: list(tensors.get_slice(name).get_shape()) for name in tensors.keys()}  # noqa: SIM118
            dtypes = {name: tensors.get_slice(name).get_dtype() for name in shapes}
            # Without memory first: a damaged configuration may ask for any amount of it.
            with torch.device("meta"):
                _check_layout(_build(model_class, config), shapes, dtypes)
            state = {name: tensors.get_tensor(name) for name in shapes}
        with torch.device("cpu"):
            model = _build(model_class, config).float()
        _check_parts(model, state, "tensor ")
        model.load_state_dict(
            {name.removeprefix("model."): value for name, value in state.items() if name.startswith("model.")}
        )
        schedule = NoiseSchedule(state["schedule.betas"], name=header["schedule"]["name"])
        standardiser = None
        if "standardiser.mean" in state:
            standardiser = Standardiser(state["standardiser.mean"], state["standardiser.std"])
    except (ValueError, TypeError, SafetensorError) as error:
        raise ValueError(
            f"path: got {str(file)!r}, which cannot be used: {error}; accepted: a checkpoint "
            f"written by save, format version {FORMAT_VERSION}"
        ) from error
    return Checkpoint(model.eval(), schedule, standardiser, header["metadata"])


def _check_type(path: Any) -> None:
    if not isinstance(path, (str, os.PathLike)):
        raise _checks.bad_type("path", path, "a str or a path")


def _header(text: str | None) -> dict[str, Any]:
    """The parsed header, of a known version and of the schema."""
    if text is None:
        raise ValueError(f"the file has no entry {HEADER_KEY!r} in its header")
    if len(text) > MAX_HEADER:
        raise ValueError(f"its header has more than {MAX_HEADER} characters")
    header: dict[str, Any] = _schema.parse(text, SCHEMA)
    return header


def _model_header(header: dict[str, Any]) -> tuple[type[MLPDenoiser], dict[str, Any]]:
    name = _checks.choice("model class", header["model"]["class"], MODEL_CLASSES)
    return MODEL_CLASSES[name], header["model"]["config"]


def _build(model_class: type[MLPDenoiser], config: dict[str, Any]) -> MLPDenoiser:
    """The model of a configuration, with no draw from torch's global generator."""
    with torch.random.fork_rng(devices=[]):
        return model_class(**config)


def _check_modules(model: MLPDenoiser) -> None:
    """Refuse a module that has been put in another's place: the file keeps the configuration alone."""
    with torch.device("meta"):
        made = dict(_build(type(model), model.config).named_modules())
    given = dict(model.named_modules())
    for name in {**made, **given}:
        if _kind(made.get(name)) != _kind(given.get(name)):
            raise _checks.bad_value(
                f"model.{name}", given.get(name), f"{made.get(name)!r}, as its config says"
            )


def _kind(part: nn.Module | None) -> Any:
    """What a module computes, but for its weights; in place it is the same."""
    return None if part is None else (type(part), part.extra_repr().removesuffix("inplace=True").rstrip(", "))


def _check_layout(model: MLPDenoiser, shapes: dict[str, list[int]], dtypes: dict[str, str]) -> None:
    """Refuse tensors that are missing, additional, or of another shape or type than the model has."""
    wanted = {f"model.{name}": (list(value.shape), "F32") for name, value in model.state_dict().items()}
    wanted["schedule.betas"] = (shapes.get("schedule.betas", [])[:1] or [1], "F64")  # of any length
    if "standardiser.mean" in shapes or "standardiser.std" in shapes:
        wanted["standardiser.mean"] = wanted["standardiser.std"] = (list(model.shape), "F64")
    missing, more = sorted(wanted.keys() - shapes), sorted(shapes.keys() - wanted)
    if missing or more:
        raise ValueError(f"it lacks the tensors {missing[:4]} and has the unknown tensors {more[:4]}")
    for name, (shape, dtype) in wanted.items():
        if shapes[name] != shape or dtypes[name] != dtype:
            raise ValueError(f"its tensor {name} is {dtypes[name]} {shapes[name]}, not {dtype} {shape}")


def _check_parts(model: MLPDenoiser, state: dict[str, Tensor], prefix: str) -> None:
    """Refuse values that no sampler could use."""
    for name, value in state.items():
        if name.startswith("model.") and value.dtype != torch.float32:
            raise _checks.bad_value(prefix + name, value, "float32 weights")
        _checks.finite(prefix + name, value)
    betas = state["schedule.betas"]
    if not 1 <= len(betas) <= model.n_steps:
        raise ValueError(
            f"schedule: got one of {len(betas)} steps; accepted: 1 to {model.n_steps} (model.n_steps)"
        )
    if bool((betas <= 0).any()):
        raise _checks.bad_value(prefix + "schedule.betas", betas.min().item(), "numbers in (0, 1]")
    mean = state.get("standardiser.mean")
    if mean is not None and mean.shape != model.shape:
        raise _checks.bad_value("standardiser", mean, f"one of model.dim = {model.shape[0]} columns")
