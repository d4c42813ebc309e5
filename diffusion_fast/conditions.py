"""What a model's samples are conditioned on: classes, a context, coordinates that are given."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffusion_fast import _checks, _cpu, _tensors
from diffusion_fast.module_call import ModuleCall
from diffusion_fast.plan_validation import MAX_CLASSES
from diffusion_fast.reference import Fixed


@dataclass(frozen=True)
class Conditions:
    """call: how the module takes its conditions. null_class: its index, None without one. null_context: the
    (n_context,) float32 context of the unconditional branch, None without one."""

    call: ModuleCall
    null_class: int | None
    null_context: Tensor | None

    @property
    def n_classes(self) -> int:
        """The null class not counted."""
        return self.call.n_classes - (self.null_class is not None)

    @property
    def has_null(self) -> bool:
        """Whether there is an unconditional branch: the null class where there are classes, or else a null
        context."""
        return (self.null_class if self.call.n_classes else self.null_context) is not None

    def labels(self, labels: Any, n: int, guided: bool) -> Tensor | int | None:
        """None without classes; an int, or (n,) int32, below the rows of the class tables."""
        highest = self.call.n_classes - 1
        if highest < 0:
            if labels is not None:
                raise _checks.bad_value("labels", labels, "None, for the model has no classes (n_classes)")
            return None
        null = " (the null class)" if self.null_class is not None else ""
        accepted = f"an integer from 0 to {highest}{null}, or ({n},) of them"
        if labels is None:
            if self.null_class is None or guided:
                why = ", for a guided sampler" if guided else ", for the model has no null class"
                raise _checks.bad_value("labels", labels, accepted + why)
            return self.null_class
        if not isinstance(labels, (Tensor, np.ndarray, list, tuple)):
            return _checks.integer("labels", labels, 0, highest)
        return _checks.class_labels("labels", labels, n, highest, accepted).to(torch.int32)

    def context(self, context: Any, n: int, device: torch.device) -> Tensor | None:
        """(n, n_context) float32, or (1, n_context) where one row serves all samples; None without one. It
        may lie on the CPU or on the device."""
        inputs = self.call.context
        if not inputs:
            if context is not None:
                raise _checks.bad_value("context", context, "None, for the sampler has no context_shape")
            return None
        names = [name for name, _ in inputs]
        if names == [""]:
            return _rows("context", context, n, inputs[0][1], device)
        accepted = f"a dict of tensors with the keys {', '.join(names)}"
        if not isinstance(context, Mapping):
            raise _checks.bad_type("context", context, accepted)
        if set(context) != set(names):
            raise _checks.bad_value("context", f"a dict with the keys {', '.join(context)}", accepted)
        parts = [_rows(f"context[{name!r}]", context[name], n, shape, device) for name, shape in inputs]
        rows = max(len(part) for part in parts) if n else 0
        return torch.cat([part[:rows].expand(rows, -1).to(parts[0].device) for part in parts], dim=1)


def conditions_of(
    model: nn.Module, n_classes: Any, null_class: Any, context_shape: Any, null_context: Any
) -> Conditions:
    """The conditions that a sampler is made with. Raises TypeError or ValueError naming the argument."""
    own = getattr(model, "n_classes", None)
    count = own or 0
    if n_classes is not None:
        count = _checks.integer("n_classes", n_classes, 1, MAX_CLASSES - 1)
        if own is not None and own != count:
            raise _checks.bad_value("n_classes", count, f"the model's own {own}")
    has_null = _checks.flag("null_class", null_class) and count > 0
    call = ModuleCall(count + has_null, _context_inputs(context_shape))
    null = None
    if null_context is not None:
        if not call.context:
            raise _checks.bad_value("null_context", null_context, "None without context_shape")
        null = _null_context(call, null_context)
    return Conditions(call, count if has_null else None, null)


def fixed_of(
    mask: Any, values: Any, clean: Any, n: int, shape: tuple[int, ...], device: torch.device
) -> Fixed | None:
    """The coordinates that are given, for n samples or one row for all; None where none are. They may lie on
    the CPU or on the device."""
    _checks.flag("fixed_clean", clean)
    if mask is None and values is None:
        if clean:
            raise _checks.bad_value("fixed_clean", clean, "False without fixed_mask and fixed_values")
        return None
    if mask is None or values is None:
        missing, given = ("fixed_mask", values) if mask is None else ("fixed_values", mask)
        raise _checks.bad_value(missing, None, f"a tensor beside {_checks.describe(given)}")
    accepted = f"a bool tensor of shape {shape}"
    chosen = _tensors.of_array("fixed_mask", mask, np.bool_)
    if not isinstance(chosen, Tensor) or chosen.dtype != torch.bool:
        raise _checks.bad_type("fixed_mask", mask, accepted)
    if tuple(chosen.shape) != shape:
        raise _checks.bad_value("fixed_mask", mask, accepted)
    rows = _rows("fixed_values", values, n, shape, device)
    chosen = _checks.readable("fixed_mask", chosen, accepted).cpu().contiguous()
    return Fixed(chosen, rows.reshape(-1, *shape).contiguous(), clean)


def _rows(name: str, given: Any, n: int, shape: tuple[int, ...], device: torch.device) -> Tensor:
    """(n, elements) float32 from a tensor or array (n, *shape), or (1, elements) from one of `shape`."""
    if len(shape) == 1 and _cpu.finite_floats(given, n, *shape):
        return given
    accepted = f"a float32 tensor of shape {(n, *shape)}, or {shape} for all samples"
    tensor = _tensors.of_array(name, given)
    if not isinstance(tensor, Tensor):
        raise _checks.bad_type(name, given, accepted)
    if n != 1 and tuple(tensor.shape) == (1, *shape):
        tensor = tensor[0]
    one = tuple(tensor.shape) == shape
    if not one and tuple(tensor.shape) != (n, *shape):
        raise _checks.bad_value(name, given, accepted)
    checked = _tensors.finite_near(name, tensor, shape if one else (n, *shape), device)
    return checked.reshape(1 if one else n, math.prod(shape))


def _context_inputs(given: Any) -> tuple[tuple[str, tuple[int, ...]], ...]:
    """((name, shape), ...) of context_shape: a size, a shape, or a dict of them by the argument's name."""
    if given is None:
        return ()
    if not isinstance(given, Mapping):
        return (("", _shape("context_shape", given)),)
    for name in given:
        if not isinstance(name, str) or not name.isidentifier():
            raise _checks.bad_value("context_shape", name, "names of the module's arguments")
    if not given:
        raise _checks.bad_value("context_shape", given, "at least one name")
    return tuple((name, _shape(f"context_shape[{name!r}]", shape)) for name, shape in given.items())


def _shape(name: str, given: Any) -> tuple[int, ...]:
    sizes = given if isinstance(given, (tuple, list, torch.Size)) else (given,)
    if not sizes:
        raise _checks.bad_value(name, given, "a positive integer or a tuple of them, such as (17,)")
    return tuple(_checks.integer(name, size, 1, 1 << 20) for size in sizes)


def _null_context(call: ModuleCall, given: Any) -> Tensor:
    """(n_context,) from a number for all elements, or as one row of the context is given."""
    if not isinstance(given, (Tensor, np.ndarray, Mapping)):
        number = _checks.real("null_context", given, -1e38, 1e38)
        return torch.full((call.n_context,), number, dtype=torch.float32, device=_tensors.CPU)
    try:
        row = Conditions(call, None, None).context(given, 1, _tensors.CPU)
    except (TypeError, ValueError) as error:
        raise type(error)(f"null_{error}") from None
    assert row is not None
    return row[0].clone()
