"""The operations of a tile program: what a captured network computes for one sample, feature by feature.

Values are vectors of features. Each operation reads values written before it and writes its own, `dst`; only
GatherOp writes a part of one, so that several of them join values side by side. csrc/plan.h has the same
list. `encode` and `decode` are the border to the plan's bytes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

# The position is the code. leaky_relu and elu have a parameter (slope, alpha); softplus is beta = 1,
# threshold = 20. gelu is the erf form.
ACTIVATIONS = [
    "identity",
    "relu",
    "leaky_relu",
    "elu",
    "tanh",
    "sigmoid",
    "silu",
    "gelu",
    "gelu_tanh",
    "softplus",
    "mish",
]
# The derivative of each activation, with the parameter of its activation.
SLOPES = {name: f"{name}_slope" for name in ACTIVATIONS if name not in ("identity", "softplus")}
SLOPES["softplus"] = "sigmoid"
# What else modules do to single features; pow (x^param), exponential (param^x), clamp_min, clamp_max, add and
# mul have a parameter. sin and cos are NaN beyond 2^20, where the kernel's reduction by pi / 2 would lose its
# digits.
FUNCTIONS = [
    *ACTIVATIONS,
    "sin",
    "cos",
    "exp",
    "log",
    "sqrt",
    "abs",
    "reciprocal",
    "pow",
    "clamp_min",
    "clamp_max",
    "add",
    "mul",
    *(slope for slope in SLOPES.values() if slope not in ACTIVATIONS),
    "exponential",
]
BINARY_FUNCTIONS = ["add", "sub", "mul", "div"]
NORM_FUNCTIONS = ["layer_norm", "rms_norm", "softmax"]
REDUCE_FUNCTIONS = ["sum", "mean"]


@dataclass(frozen=True, eq=False)
class LinearOp:
    """value[dst] = activation(init + weight @ value[src]), init = bias + step_table[t] + class_table[y] +
    value[addend].

    weight (n_out, n_in), bias (n_out,), step_table (n_tables, n_out), class_table (n_classes, n_out): float32
    arrays, None where absent. activation is one of FUNCTIONS; act_param its parameter. addend: a value of
    n_out features that starts the sum (a residual), 0 = none; not together with class_table.
    """

    src: int
    dst: int
    weight: Array
    bias: Array | None = None
    step_table: Array | None = None
    class_table: Array | None = None
    activation: str = "identity"
    act_param: float = 0.0
    addend: int = 0


@dataclass(frozen=True, eq=False)
class TableOp:
    """value[dst] = bias + step_table[t] + class_table[y], shapes as for LinearOp, at least one present; or
    joint_table[t, y], (n_tables, n_classes, n_out), and none of the others."""

    dst: int
    bias: Array | None = None
    step_table: Array | None = None
    class_table: Array | None = None
    joint_table: Array | None = None


@dataclass(frozen=True, eq=False)
class MapOp:
    """value[dst] = function(value[src], param), feature by feature; with_slope: and behind these features as
    many of its derivative, SLOPES[function]."""

    src: int
    dst: int
    function: str
    param: float = 0.0
    with_slope: bool = False


@dataclass(frozen=True, eq=False)
class BinaryOp:
    """value[dst] = value[src] function value[src2], feature by feature."""

    src: int
    src2: int
    dst: int
    function: str


@dataclass(frozen=True, eq=False)
class NormOp:
    """value[dst] = norm of each of `groups` groups of neighbouring features, times weight, plus bias.

    layer_norm (x - mean) / sqrt(var + epsilon), rms_norm x / sqrt(mean x^2 + epsilon), softmax. weight, bias:
    (n,) or None.
    """

    src: int
    dst: int
    function: str
    groups: int = 1
    epsilon: float = 0.0
    weight: Array | None = None
    bias: Array | None = None


@dataclass(frozen=True, eq=False)
class ReduceOp:
    """value[dst][g] = sum or mean of group g of value[src]."""

    src: int
    dst: int
    function: str
    groups: int = 1


@dataclass(frozen=True, eq=False)
class GatherOp:
    """value[dst][offset + j] = value[src][index[j]]: slices, chunks, permutations, repeats; concatenation."""

    src: int
    dst: int
    index: Array
    offset: int = 0


Op = LinearOp | TableOp | MapOp | BinaryOp | NormOp | ReduceOp | GatherOp

OP_LINEAR, OP_TABLE, OP_MAP, OP_BINARY, OP_NORM, OP_REDUCE, OP_GATHER = range(1, 8)
ARRAYS = ("weight", "bias", "step_table", "class_table")
OP_DTYPE = np.dtype(
    [
        *((name, "<u4") for name in ("kind", "function", "src", "dst", "n_in", "n_out")),
        ("param", "<f4"),
        ("extra", "<u4"),
        *((name, "<i8") for name in ARRAYS),
    ]
)
# The function of a table op that has one row for each pair of step and class.
JOINT = 1
# The names that `function` counts, for each kind.
FUNCTION_NAMES = {
    OP_LINEAR: FUNCTIONS,
    OP_TABLE: ["sum", "joint"],
    OP_MAP: FUNCTIONS,
    OP_BINARY: BINARY_FUNCTIONS,
    OP_NORM: NORM_FUNCTIONS,
    OP_REDUCE: REDUCE_FUNCTIONS,
    OP_GATHER: ["none"],
}


def sources_of(op: Op) -> tuple[int, ...]:
    """The values that op reads."""
    if isinstance(op, TableOp):
        return ()
    if isinstance(op, BinaryOp):
        return op.src, op.src2
    return (op.src, op.addend) if isinstance(op, LinearOp) and op.addend else (op.src,)


def changes(op: Op) -> bool:
    """Whether op itself has another value at another step, by a table."""
    if not isinstance(op, LinearOp | TableOp):
        return False
    return op.step_table is not None or (isinstance(op, TableOp) and op.joint_table is not None)


def width_of(op: Op, widths: dict[int, int]) -> int:
    """Features of the value that op writes (of a GatherOp: up to the end of its part)."""
    if isinstance(op, LinearOp):
        return op.weight.shape[0]
    if isinstance(op, TableOp):
        tables = (op.bias, op.step_table, op.class_table, op.joint_table)
        return next(a.shape[-1] for a in tables if a is not None)
    if isinstance(op, ReduceOp):
        return op.groups
    if isinstance(op, GatherOp):
        return max(widths.get(op.dst, 0), op.offset + len(op.index))
    return widths[op.src] * (2 if isinstance(op, MapOp) and op.with_slope else 1)


def encode(op: Op, widths: dict[int, int], place: Callable[[Array | None], int]) -> tuple[Any, ...]:
    """The op as a row of OP_DTYPE; `place` puts an array into the blob and returns its offset."""
    n_out = widths[op.dst]
    if isinstance(op, LinearOp):
        arrays = (op.weight, op.bias, op.step_table, op.class_table)
        code = FUNCTIONS.index(op.activation)
        head = (OP_LINEAR, code, op.src, op.dst, op.weight.shape[1], n_out, op.act_param, op.addend)
        return (*head, *map(place, arrays))
    if isinstance(op, TableOp):
        if op.joint_table is not None:
            return (OP_TABLE, JOINT, 0, op.dst, 0, n_out, 0.0, 0, -1, -1, -1, place(op.joint_table))
        tables = (op.bias, op.step_table, op.class_table)
        return (OP_TABLE, 0, 0, op.dst, 0, n_out, 0.0, 0, -1, *map(place, tables))
    if isinstance(op, MapOp):
        code, n_in = FUNCTIONS.index(op.function), widths[op.src]
        return (OP_MAP, code, op.src, op.dst, n_in, n_out, op.param, int(op.with_slope), -1, -1, -1, -1)
    if isinstance(op, BinaryOp):
        code = BINARY_FUNCTIONS.index(op.function)
        return (OP_BINARY, code, op.src, op.dst, n_out, n_out, 0.0, op.src2, -1, -1, -1, -1)
    if isinstance(op, NormOp):
        code = NORM_FUNCTIONS.index(op.function)
        head = (OP_NORM, code, op.src, op.dst, n_out, n_out, op.epsilon, op.groups)
        return (*head, place(op.weight), place(op.bias), -1, -1)
    if isinstance(op, ReduceOp):
        code = REDUCE_FUNCTIONS.index(op.function)
        return (OP_REDUCE, code, op.src, op.dst, widths[op.src], n_out, 0.0, op.groups, -1, -1, -1, -1)
    index = place(np.asarray(op.index, np.float32))
    return (OP_GATHER, 0, op.src, op.dst, len(op.index), n_out, 0.0, op.offset, index, -1, -1, -1)


def decode(row: tuple[Any, ...], n_tables: int, n_classes: int, view: Callable[..., Array | None]) -> Op:
    """The op of a validated row; view(offset, *shape) is an array of the blob, None for -1."""
    kind, code, src, dst, n_in, n_out, param, extra, weight, bias, step, label = row
    if kind == OP_TABLE and code == JOINT:
        return TableOp(dst, joint_table=view(label, n_tables, n_classes, n_out))
    tables = (view(bias, n_out), view(step, n_tables, n_out), view(label, n_classes, n_out))
    if kind == OP_LINEAR:
        matrix = view(weight, n_out, n_in)
        assert matrix is not None  # the plan's validation has seen to it
        return LinearOp(src, dst, matrix, *tables, FUNCTIONS[code], param, extra)
    if kind == OP_TABLE:
        return TableOp(dst, *tables)
    if kind == OP_MAP:
        return MapOp(src, dst, FUNCTIONS[code], param, bool(extra))
    if kind == OP_BINARY:
        return BinaryOp(src, extra, dst, BINARY_FUNCTIONS[code])
    if kind == OP_NORM:
        return NormOp(src, dst, NORM_FUNCTIONS[code], extra, param, view(weight, n_out), tables[0])
    if kind == OP_REDUCE:
        return ReduceOp(src, dst, REDUCE_FUNCTIONS[code], extra)
    index = view(weight, n_in)
    assert index is not None
    return GatherOp(src, dst, index.astype(np.int64), extra)
