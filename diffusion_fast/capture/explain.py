"""One line for each operation of a captured program."""

from __future__ import annotations

from collections.abc import Sequence

from diffusion_fast.tile_ops import (
    Array,
    BinaryOp,
    GatherOp,
    LinearOp,
    MapOp,
    NormOp,
    Op,
    ReduceOp,
    TableOp,
)

_SIGNS = {"add": "+", "sub": "-", "mul": "*", "div": "/"}


def line_of(op: Op, widths: Sequence[int], folded: int = 0) -> str:
    """Such as "layer 3: linear 128 -> 128, step table 50 x 128, silu fused"; widths: of the values so far.

    folded: columns of the module's weight that went into the layer's tables.
    """
    if isinstance(op, LinearOp):
        return _layer_line(op, folded)
    width = widths[op.dst]
    if isinstance(op, TableOp):
        return f"{op.dst}: " + ", ".join(_tables(op) or ["constants"]) + f" of {width}"
    if isinstance(op, MapOp):
        slope = " and its slope" if op.with_slope else ""
        return f"{op.dst}: {op.function}{slope} of value {op.src}" + (f", {op.param:g}" if op.param else "")
    if isinstance(op, BinaryOp):
        return f"{op.dst}: value {op.src} {_SIGNS[op.function]} value {op.src2}, {width} features"
    if isinstance(op, NormOp):
        groups = f" in {op.groups} groups" if op.groups > 1 else ""
        return f"{op.dst}: {op.function} over {width // op.groups}{groups}"
    if isinstance(op, ReduceOp):
        return f"{op.dst}: {op.function} of {widths[op.src]} features in {op.groups} groups"
    assert isinstance(op, GatherOp)
    return f"{op.dst}: {len(op.index)} features of value {op.src}, from feature {op.offset} on"


def _layer_line(op: LinearOp, folded: int) -> str:
    n_out, n_in = op.weight.shape
    parts = [f"layer {op.dst}: linear {n_in} -> {n_out}"]
    if folded:
        parts.append(f"{folded} columns that do not read x folded")
    parts += _tables(op)
    if op.addend:
        parts.append(f"value {op.addend} added")
    if op.activation != "identity":
        parts.append(f"{op.activation} fused")
    return ", ".join(parts)


def _tables(op: LinearOp | TableOp) -> list[str]:
    tables: list[tuple[str, Array | None]] = [("step", op.step_table), ("class", op.class_table)]
    if isinstance(op, TableOp):
        tables.append(("step x class", op.joint_table))
    return [
        f"{name} table {' x '.join(map(str, table.shape))}" for name, table in tables if table is not None
    ]
