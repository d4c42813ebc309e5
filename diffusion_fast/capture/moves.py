"""Operations that only move elements: followed by running them on the elements' indices.

Three samples are enough to see whether an operation does the same to every sample, and keeps to it.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, fx

from diffusion_fast._tensors import CPU
from diffusion_fast.capture.expr import Expr
from diffusion_fast.capture.graph import METADATA_OPERANDS, MIXES, NO_KERNEL, op_name, refusal
from diffusion_fast.tile_ops import Array

if TYPE_CHECKING:
    from diffusion_fast.capture.lowering import Lowering


def run_on_indices(low: Lowering, node: fx.Node, given: dict[fx.Node, Array]) -> Any:
    """The node run on the elements' indices in place of its operands: indices of one sample's shape, a tuple
    of them for a node with several results. CaptureError where samples mix."""
    world = low.worlds.samples
    positions, rows = {}, {}
    for operand, index in given.items():
        flat = torch.from_numpy(np.ascontiguousarray(index))
        batched = operand.meta["val"].ndim == index.ndim + 1
        size = (world.rows, *index.shape) if batched else index.shape
        device = operand.meta["val"].device
        positions[operand] = flat.expand(size).clone().to(device)
        numbers = (
            torch.arange(world.rows, device=CPU).reshape(-1, *(1,) * index.ndim)
            if batched
            else torch.tensor(-1, device=CPU)
        )
        rows[operand] = numbers.expand(size).clone().to(device)
    _check_other_operands(low, node, given)
    results = []
    for stand_ins in (positions, rows):
        found = world.call(node, lambda n, s=stand_ins: s[n] if n in s else world.operand(n))  # type: ignore[misc]
        results.append([found] if isinstance(found, Tensor) else list(found))
    out = tuple(
        _one_sample(node, p.round().long().cpu(), r.round().long().cpu(), world.rows)
        for p, r in zip(*results, strict=True)
    )
    return out[0] if isinstance(node.meta["val"], Tensor) else out


def _one_sample(node: fx.Node, position: Tensor, row: Tensor, n: int) -> Array:
    if not position.ndim or len(position) != n:
        raise refusal(node, *MIXES)
    own = torch.arange(n, device=CPU).reshape(n, *(1,) * (position.ndim - 1))
    if not bool((((row == own) | (row == -1)) & (position == position[:1])).all()):
        raise refusal(node, *MIXES)
    return position[0].numpy()


def _check_other_operands(low: Lowering, node: fx.Node, given: dict[fx.Node, Array]) -> None:
    skipped = METADATA_OPERANDS.get(op_name(node), ())
    read = [arg for i, arg in enumerate(node.args) if i not in skipped]
    others: list[fx.Node] = []
    fx.node.map_arg((read, dict(node.kwargs)), others.append)
    if any(low.slots[other].depends for other in others if other not in given):
        reason = "which elements it takes depends on the step, the class or x"
        raise refusal(node, reason, "take the same elements for every sample")


def moved(low: Lowering, node: fx.Node) -> Expr:
    """A copy of elements of one or several operands in another order."""
    offset, given, sources = 0, {}, []
    for operand in dict.fromkeys(_data_operands(node)):
        shape = operand.meta["val"].shape
        batched = bool(shape) and not isinstance(shape[0], int)
        tail = tuple(shape[1:] if batched else shape)
        width = math.prod(tail)
        given[operand] = offset + np.arange(width).reshape(tail)
        if not batched and low.slots[operand].depends:
            raise refusal(node, *MIXES)
        sources.append(low.read(operand, tail, node))
        offset += width
    index = run_on_indices(low, node, given).ravel()
    widths = [source.width for source in sources]
    ends = np.cumsum(widths)
    which = np.searchsorted(ends, index, side="right")
    return low.build.gather(sources, which, index - (ends - widths)[which])


def _data_operands(node: fx.Node) -> list[fx.Node]:
    """The tensors whose elements the result consists of."""
    first = node.args[1:3] if op_name(node) == "where" else node.args[0]
    data = list(first) if isinstance(first, (list, tuple)) else [first]
    if not all(isinstance(operand, fx.Node) for operand in data):
        raise refusal(node, NO_KERNEL)
    return data  # type: ignore[return-value]
