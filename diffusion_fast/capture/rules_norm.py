"""The rules of norms, softmax and sums over features; see rules.py."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import fx

from diffusion_fast._tensors import CPU
from diffusion_fast.capture.expr import Expr, Table
from diffusion_fast.capture.graph import MIXES, argument, number, refusal, tail_of
from diffusion_fast.tile_ops import Array

if TYPE_CHECKING:
    from diffusion_fast.capture.lowering import Lowering


def _source(low: Lowering, node: fx.Node) -> tuple[Expr, tuple[int, ...]]:
    operand = node.args[0]
    assert isinstance(operand, fx.Node)
    return low.read_as_is(operand, node), tuple(tail_of(operand))


def _sample_axes(node: fx.Node, axes: Any, n_axes: int) -> list[int]:
    """Axes of the tensor as axes of one sample; refused if the batch is among them."""
    given = list(range(n_axes + 1)) if axes is None or axes == [] else axes
    given = [given] if isinstance(given, int) else list(given)
    found = sorted(axis % (n_axes + 1) - 1 for axis in given)
    if -1 in found:
        raise refusal(node, *MIXES)
    return found


def _grouped(tail: Sequence[int], axes: Sequence[int]) -> tuple[Array, int]:
    """The features in an order with axes last, and how many groups the other axes make."""
    others = [axis for axis in range(len(tail)) if axis not in axes]
    index = np.arange(math.prod(tail)).reshape(tail).transpose(*others, *axes).ravel()
    return index, math.prod(tail[axis] for axis in others)


def _affine(low: Lowering, node: fx.Node, normed: Expr, operands: Sequence[Any], index: Array) -> Expr:
    """normed * weight + bias, which are operands or None; feature j has number index[j] of each."""
    for operand, join in zip(operands, (low.build.mul, low.build.add), strict=True):
        if operand is not None:
            value = low.constant(operand, node, "its weight or bias depends on the step, the class or x")
            normed = join(normed, low.build.table(len(index), bias=value.flatten()[torch.from_numpy(index)]))
    return normed


def layer_norm(low: Lowering, node: fx.Node) -> Expr | None:
    src, tail = _source(low, node)
    size = math.prod(argument(node, "normalized_shape", ()))
    weight, bias = argument(node, "weight", None), argument(node, "bias", None)
    groups = math.prod(tail) // size
    normed = low.build.norm(src, "layer_norm", groups, number(node, "eps", 1e-5))
    return _affine(low, node, normed, (weight, bias), np.tile(np.arange(size), groups))


def rms_norm(low: Lowering, node: fx.Node) -> Expr | None:
    src, tail = _source(low, node)
    size = math.prod(argument(node, "normalized_shape", ()))
    epsilon = argument(node, "eps", None)
    epsilon = torch.finfo(torch.float32).eps if epsilon is None else float(epsilon)
    groups = math.prod(tail) // size
    normed = low.build.norm(src, "rms_norm", groups, epsilon)
    return _affine(
        low, node, normed, (argument(node, "weight", None), None), np.tile(np.arange(size), groups)
    )


def group_norm(low: Lowering, node: fx.Node) -> Expr | None:
    src, tail = _source(low, node)
    groups = argument(node, "num_groups", None) or argument(node, "group", 1)
    normed = low.build.norm(src, "layer_norm", int(groups), number(node, "eps", 1e-5))
    channels = np.repeat(np.arange(tail[0]), math.prod(tail[1:]))
    return _affine(
        low, node, normed, (argument(node, "weight", None), argument(node, "bias", None)), channels
    )


def batch_norm(low: Lowering, node: fx.Node) -> Expr | None:
    """In eval mode a product and a sum with constants."""
    src, tail = _source(low, node)
    mean, var = argument(node, "running_mean", None), argument(node, "running_var", None)
    if argument(node, "training", False) or mean is None or var is None:
        raise refusal(node, "it takes statistics over the batch", "keep running ones, for eval mode")
    reason = "its statistics depend on the step, the class or x"
    factor = 1 / torch.sqrt(low.constant(var, node, reason) + number(node, "eps", 1e-5))
    shift = -low.constant(mean, node, reason) * factor
    weight, bias = argument(node, "weight", None), argument(node, "bias", None)
    if weight is not None:
        scale = low.constant(weight, node, reason)
        factor, shift = factor * scale, shift * scale
    if bias is not None:
        shift = shift + low.constant(bias, node, reason)
    channels = torch.arange(tail[0], device=CPU).repeat_interleave(math.prod(tail[1:]))
    width = len(channels)
    scaled = low.build.mul(src, low.build.table(width, bias=factor[channels]))
    return low.build.add(scaled, low.build.table(width, bias=shift[channels]))


def softmax(low: Lowering, node: fx.Node) -> Expr | None:
    src, tail = _source(low, node)
    index, groups = _grouped(tail, _sample_axes(node, argument(node, "dim", -1), len(tail)))
    normed = low.build.norm(low.build.pick(src, index), "softmax", groups)
    return low.build.pick(normed, np.argsort(index))


def _reduced(low: Lowering, src: Expr, tail: tuple[int, ...], axes: list[int], function: str) -> Expr:
    index, groups = _grouped(tail, axes)
    if isinstance(src, Table):
        shape = (groups, len(index) // groups)
        taken = low.build.pick(src, index)
        assert isinstance(taken, Table)

        def reduce(part: torch.Tensor) -> torch.Tensor:
            split = part.reshape(*part.shape[:-1], *shape)
            return split.mean(-1) if function == "mean" else split.sum(-1)

        return taken.each(reduce, groups)
    return low.build.reduce(low.build.pick(src, index), function, groups)


def reduction(function: str) -> Any:
    def rule(low: Lowering, node: fx.Node) -> Expr | None:
        src, tail = _source(low, node)
        return _reduced(low, src, tail, _sample_axes(node, argument(node, "dim", None), len(tail)), function)

    return rule


def _spread(low: Lowering, reduced: Expr, tail: tuple[int, ...], axes: list[int]) -> Expr:
    """A reduction's result for each of the features it was taken over."""
    index, groups = _grouped(tail, axes)
    return low.build.pick(reduced, np.repeat(np.arange(groups), len(index) // groups)[np.argsort(index)])


def _variance(low: Lowering, node: fx.Node) -> Expr:
    src, tail = _source(low, node)
    axes = _sample_axes(node, argument(node, "dim", None), len(tail))
    size = math.prod(tail[axis] for axis in axes)
    correction = argument(node, "correction", None)
    if correction is None:
        correction = 1 if argument(node, "unbiased", True) else 0
    centered = low.build.sub(src, _spread(low, _reduced(low, src, tail, axes, "mean"), tail, axes))
    squares = _reduced(low, low.build.mul(centered, centered), tail, axes, "sum")
    return low.build.scale(squares, 1 / (size - correction) if size > correction else math.nan)


def variance(low: Lowering, node: fx.Node) -> Expr | None:
    return _variance(low, node)


def deviation(low: Lowering, node: fx.Node) -> Expr | None:
    return low.build.map(_variance(low, node), "sqrt")


def vector_norm(low: Lowering, node: fx.Node) -> Expr | None:
    if number(node, "ord", 2) != 2:
        return None
    src, tail = _source(low, node)
    axes = _sample_axes(node, argument(node, "dim", None), len(tail))
    return low.build.map(_reduced(low, low.build.mul(src, src), tail, axes, "sum"), "sqrt")


NORM_RULES = {
    "layer_norm": layer_norm,
    "native_layer_norm": layer_norm,
    "rms_norm": rms_norm,
    "group_norm": group_norm,
    "native_group_norm": group_norm,
    "batch_norm": batch_norm,
    "native_batch_norm": batch_norm,
    "_native_batch_norm_legit_no_training": batch_norm,
    "softmax": softmax,
    "_softmax": softmax,
    "mean": reduction("mean"),
    "sum": reduction("sum"),
    "var": variance,
    "std": deviation,
    "linalg_vector_norm": vector_norm,
}
