"""Classifier-free guidance (Ho & Salimans 2022): how strong, at which rows, for which samples.

    F = u + s (c - u)

with c and u the network's output for the sample's own condition and for the null condition. s = 1 is no
guidance; the paper's weight is w = s - 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from diffusion_fast import _checks, _tensors
from diffusion_fast.solvers.table import StepTable

# That float32 holds, and twice over for the products.
LARGEST = 1e38


@dataclass(frozen=True)
class Guidance:
    """scale s; rescale phi of Lin et al. 2024 (section 3.4); interval: the rows [first, last) that are
    guided, None for all (Kynkaanniemi et al. 2024)."""

    scale: float
    rescale: float = 0.0
    interval: tuple[int, int] | None = None

    def on(self, table: StepTable) -> StepTable:
        """The table with this guidance in its rows; a row outside of the interval has s = 1."""
        first, last = (0, len(table)) if self.interval is None else self.interval
        if not 0 <= first < last <= len(table):
            accepted = f"(first, last) with 0 <= first < last <= {len(table)}, the rows of the table"
            raise _checks.bad_value("guidance_interval", self.interval, accepted)
        row = np.arange(len(table))
        inside = (first <= row) & (row < last)
        columns = {"guidance": np.where(inside, self.scale, 1), "rescale": np.where(inside, self.rescale, 0)}
        return table.replace(**columns)

    def explain(self, rows: int) -> str:
        first, last = self.interval or (0, rows)
        where = "two evaluations a row" + (
            "" if (first, last) == (0, rows) else f" in rows {first} .. {last - 1}"
        )
        rescaled = f", rescaled by {self.rescale:g}" if self.rescale else ""
        return f"u + {self.scale:g} (c - u){rescaled}, {where}"


def scales_of(
    guidance: Guidance | None, scale: Any, weight: Any, n: int, device: torch.device
) -> Tensor | None:
    """(n,) scales of one call, from its guidance_scale or guidance_weight; None without. They may lie on the
    CPU or on the device."""
    if scale is None and weight is None:
        return None
    name, given = one_of(scale, weight)
    if guidance is None or np.float32(guidance.scale) == 1:  # as the kernels see it, which then skip it
        accepted = "None, for the sampler was made without guidance: guidance_scale other than 1 in float32"
        raise _checks.bad_value(name, given, accepted)
    tensor = _tensors.of_array(name, given)
    if not isinstance(tensor, Tensor):
        accepted = f"an ({n},) float32 tensor, one for each sample; one number for all belongs to the Sampler"
        raise _checks.bad_type(name, given, accepted)
    checked = _tensors.given_near(name, tensor, torch.float32, (n,), device)
    return _checks.finite(name, checked if weight is None else checked + 1)


def guidance_of(scale: Any, weight: Any, interval: Any, rescale: Any, elements: int) -> Guidance | None:
    """The guidance that a sampler is made with; None where neither scale nor weight is given.

    elements: of one sample. Raises TypeError or ValueError naming the argument.
    """
    if scale is None and weight is None:
        for name, given in (("guidance_interval", interval), ("guidance_rescale", rescale or None)):
            if given is not None:
                raise _checks.bad_value(name, given, "None without guidance_scale or guidance_weight")
        return None
    name, given = one_of(scale, weight)
    s = _checks.real(name, given, -LARGEST, LARGEST) + (scale is None)
    phi = _checks.real("guidance_rescale", 0.0 if rescale is None else rescale, 0.0, 1.0)
    if phi and elements == 1:
        accepted = "0 for samples of one element, which have no standard deviation"
        raise _checks.bad_value("guidance_rescale", rescale, accepted)
    if interval is None:
        return Guidance(s, phi)
    if not isinstance(interval, (tuple, list)) or len(interval) != 2:
        raise _checks.bad_type("guidance_interval", interval, "(first, last), the rows that are guided")
    first, last = (_checks.integer("guidance_interval", row, 0) for row in interval)
    return Guidance(s, phi, (first, last))


def one_of(scale: Any, weight: Any) -> tuple[str, Any]:
    """The name and value of the one that is given."""
    if scale is not None and weight is not None:
        raise _checks.bad_value("guidance_weight", weight, "None where guidance_scale is given: s = 1 + w")
    return ("guidance_scale", scale) if weight is None else ("guidance_weight", weight)
