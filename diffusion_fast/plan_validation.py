"""What makes a Plan valid: every field, every row, every operation. csrc/plan.cpp checks the same again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from diffusion_fast import _checks
from diffusion_fast.solvers.table import COEFFICIENTS, EVAL, EXTRAS, PUSH, TERM_BITS
from diffusion_fast.tile_ops import (
    ARRAYS,
    FUNCTION_NAMES,
    JOINT,
    OP_BINARY,
    OP_DTYPE,
    OP_GATHER,
    OP_LINEAR,
    OP_MAP,
    OP_NORM,
    OP_REDUCE,
    OP_TABLE,
    SLOPES,
    Array,
)

if TYPE_CHECKING:
    from diffusion_fast.plan import Plan

MAX_DIM = 256
MAX_WIDTH = 2048
MAX_OPS = 256
MAX_ROWS = MAX_TABLES = MAX_CLASSES = 1 << 20


def validate(plan: Plan) -> None:
    """Raises ValueError naming the first field that breaks the contract."""
    for name, count, high in (("rows", len(plan.rows), MAX_ROWS), ("ops", len(plan.ops), MAX_OPS)):
        require(1 <= count <= high, name, count, f"1 to {high} of them")
    for name, low, high in (
        ("dim", 1, MAX_DIM),
        ("n_tables", 1, MAX_TABLES),
        ("n_classes", 0, MAX_CLASSES),
        ("branches", 1, 2),
        ("out_value", 1, MAX_OPS + 1),
        ("terms", 0, sum(TERM_BITS.values())),
        ("n_context", 0, MAX_WIDTH),
        ("n_prologue", 0, len(plan.ops)),
    ):
        _checks.integer(f"plan.{name}", getattr(plan, name), low, high)
    _check_null_context(plan)
    unconditional = plan.n_classes >= 2 or plan.null_context >= 0
    guided = "2 or more with branches = 2, where the last is the null class; or a null_context"
    require(plan.branches == 1 or unconditional, "n_classes", plan.n_classes, guided)
    _check_rows(plan.rows, plan.n_tables)
    terms = terms_of(plan.rows)
    require(plan.terms == terms, "terms", plan.terms, f"{terms}, the terms that the rows use")
    _check_widths(plan)
    _check_ops(plan)


def terms_of(rows: Array) -> int:
    """The mask of TERM_BITS that occur in any of the rows (c_in counts where it is not 1, clip where it is
    finite)."""
    used = {name: rows[name] != 0 for name in COEFFICIENTS}
    used.update(c_in=rows["c_in"] != 1, clip=np.isfinite(rows["clip"]), push=rows["flags"] & PUSH)
    return sum(TERM_BITS[name] for name, present in used.items() if np.any(present))


def require(holds: bool | np.bool_, name: str, given: Any, accepted: str) -> None:
    if not holds:
        raise _checks.bad_value(f"plan.{name}", given, accepted)


def _check_column(rows: Array, field: str, good: Array, accepted: str) -> None:
    """Names the first row whose field is not good."""
    if not good.all():
        i = int(np.argmin(good.reshape(len(rows), -1).all(axis=1)))
        raise _checks.bad_value(f"plan.rows[{i}].{field}", rows[field][i].tolist(), accepted)


def _check_rows(rows: Array, n_tables: int) -> None:
    for name in (*(name for name in COEFFICIENTS if name != "clip"), *EXTRAS):
        _check_column(rows, name, np.isfinite(rows[name]), "a finite number")
    for name in ("rescale", "quantile"):
        _check_column(rows, name, (rows[name] >= 0) & (rows[name] <= 1), "a number from 0 to 1")
    thresholds = (rows["quantile"] == 0) | (rows["clip"] >= 1)
    _check_column(rows, "clip", thresholds, "1 or more beside a quantile")
    _check_column(rows, "clip", rows["clip"] > 0, "a positive number, or +inf for no clamp")  # NaN fails too
    _check_column(rows, "table", rows["table"] < n_tables, f"0 to {n_tables - 1}")
    _check_column(
        rows, "flags", (rows["flags"] & ~np.uint32(EVAL | PUSH)) == 0, "a sum of 1 (eval) and 2 (push)"
    )
    _check_column(rows, "reserved", rows["reserved"] == 0, "zeros")
    evaluated = (rows["flags"] & EVAL) != 0
    for name in ("p_F", "e"):
        _check_column(rows, name, evaluated | (rows[name] == 0), "0 in a row without eval")


def _check_null_context(plan: Plan) -> None:
    offset = _checks.integer("plan.null_context", plan.null_context, -1, len(plan.blob))
    usable = offset == -1 or (plan.n_context > 0 and plan.branches == 2)
    require(usable, "null_context", offset, "-1 without n_context, and with one branch")
    _check_array(plan.blob, "null_context", offset, plan.n_context)


def _check_widths(plan: Plan) -> None:
    widths = plan.value_widths
    given = 1 + (plan.n_context > 0)  # values that are inputs
    most = len(plan.ops) + given
    require(given < len(widths) <= most, "n_values", len(widths), f"{given + 1} to n_ops + {given} = {most}")
    outputs = given <= plan.out_value < len(widths)
    require(outputs, "out_value", plan.out_value, f"{given} to {len(widths) - 1}")
    good = (widths >= 1) & (widths <= MAX_WIDTH)
    if not good.all():
        i = int(np.argmin(good))
        require(False, f"value_widths[{i}]", int(widths[i]), f"1 to {MAX_WIDTH}")
    for i in (0, plan.out_value):
        require(widths[i] == plan.dim, f"value_widths[{i}]", int(widths[i]), f"dim = {plan.dim}")
    if plan.n_context:
        accepted = f"n_context = {plan.n_context}"
        require(widths[1] == plan.n_context, "value_widths[1]", int(widths[1]), accepted)


def _check_ops(plan: Plan) -> None:
    widths = plan.value_widths.tolist()
    given = 1 + (plan.n_context > 0)
    filled = widths[:given] + [0] * (len(widths) - given)  # features of each value written so far
    for i, row in enumerate(plan.ops):
        op = {name: row[name].item() for name in OP_DTYPE.names or ()}
        if i < plan.n_prologue:
            _check_prologue_op(f"ops[{i}].", op)
        _check_op(plan, f"ops[{i}].", op, widths, filled)
        _check_arrays(plan, f"ops[{i}].", op)
        if op["kind"] == OP_GATHER:
            index = plan.blob[op["weight"] : op["weight"] + op["n_in"]]
            good = (index >= 0) & (index < widths[op["src"]]) & (index == np.floor(index))
            accepted = f"whole numbers from 0 to {widths[op['src']] - 1}"
            require(good.all(), f"ops[{i}].weight", index.tolist(), accepted)
    for value, (have, width) in enumerate(zip(filled, widths, strict=True)):
        require(have == width, f"value_widths[{value}]", width, f"{have}, the features that ops write")


def _check_prologue_op(at: str, op: dict[str, Any]) -> None:
    """An op that runs once for all rows reads neither x nor the step."""
    reads_x = op["kind"] != OP_TABLE and op["src"] == 0
    reads_x |= op["kind"] == OP_BINARY and op["extra"] == 0
    require(not reads_x, at + "src", 0, "another value in the first n_prologue ops")
    require(op["step_table"] == -1, at + "step_table", op["step_table"], "-1 in the first n_prologue ops")
    joint = op["kind"] == OP_TABLE and op["function"] == JOINT
    require(not joint, at + "function", op["function"], "0 in the first n_prologue ops")


def _check_op(plan: Plan, at: str, op: dict[str, Any], widths: list[int], filled: list[int]) -> None:
    kind, src, dst, n_in, n_out, extra = (op[k] for k in ("kind", "src", "dst", "n_in", "n_out", "extra"))
    require(kind in FUNCTION_NAMES, at + "kind", kind, f"1 (linear) to {len(FUNCTION_NAMES)} (gather)")
    names = FUNCTION_NAMES[kind]
    require(op["function"] < len(names), at + "function", op["function"], f"0 to {len(names) - 1}")
    require(np.isfinite(op["param"]), at + "param", op["param"], "a finite number")
    based = names[op["function"]] == "exponential"
    require(not based or op["param"] > 0, at + "param", op["param"], "a positive base")

    def read(field: str, value: int, count: int, size: str = "n_in") -> None:
        written = value < len(widths) and filled[value] == widths[value]
        require(written, at + field, value, "a value written by an earlier op, or 0")
        require(count == widths[value], at + size, count, f"the width {widths[value]} of value {value}")

    if kind == OP_TABLE:
        require(src == 0 and n_in == 0, at + "src", (src, n_in), "0 with n_in = 0")
    elif kind == OP_GATHER:
        read("src", src, widths[src] if src < len(widths) else 0)
        require(src != dst, at + "dst", dst, "another value than src")
    else:
        read("src", src, n_in)
    if kind == OP_BINARY:
        read("extra", extra, n_in)
    elif kind in (OP_NORM, OP_REDUCE):
        require(extra >= 1 and n_in % extra == 0, at + "extra", extra, f"a divisor of n_in = {n_in}")
        require(op["param"] >= 0, at + "param", op["param"], "a number from 0 up")
    elif kind == OP_LINEAR and extra:
        read("extra", extra, n_out, "n_out, with extra")
        require(op["class_table"] == -1, at + "class_table", op["class_table"], "-1 beside an addend")
    elif kind == OP_MAP:
        sloped = extra == 0 or (extra == 1 and names[op["function"]] in SLOPES)
        require(sloped, at + "extra", extra, "0, or 1 for an activation with its slope")
    elif kind != OP_GATHER:
        require(extra == 0, at + "extra", extra, "0")
    made = {OP_MAP: n_in * (1 + extra), OP_BINARY: n_in, OP_NORM: n_in, OP_REDUCE: extra}.get(kind, n_out)
    offset, count = (extra, n_in) if kind == OP_GATHER else (0, n_out)
    require(dst < len(widths), at + "dst", dst, f"0 to {len(widths) - 1}")
    accepted = "a value not written before, or the next part of one"
    require(filled[dst] == offset < widths[dst], at + "dst", dst, accepted)
    require(n_out == widths[dst] == made, at + "n_out", n_out, f"the width {widths[dst]} of value {dst}")
    require(1 <= count <= widths[dst] - offset, at + "n_in", count, f"1 to {widths[dst] - offset}")
    filled[dst] += count


def _check_arrays(plan: Plan, at: str, op: dict[str, Any]) -> None:
    kind, n_in, n_out = op["kind"], op["n_in"], op["n_out"]
    joint = kind == OP_TABLE and op["function"] == JOINT
    classes = plan.n_classes * (plan.n_tables if joint else 1)
    sizes = {
        "weight": {OP_LINEAR: n_in * n_out, OP_NORM: n_out, OP_GATHER: n_in}.get(kind),
        "bias": n_out if kind in (OP_LINEAR, OP_TABLE, OP_NORM) and not joint else None,
        "step_table": plan.n_tables * n_out if kind in (OP_LINEAR, OP_TABLE) and not joint else None,
        "class_table": classes * n_out if kind in (OP_LINEAR, OP_TABLE) else None,
    }
    if kind in (OP_LINEAR, OP_GATHER):
        require(op["weight"] >= 0, at + "weight", op["weight"], "an offset into the blob")
    if joint:
        require(op["class_table"] >= 0, at + "class_table", op["class_table"], "an offset into the blob")
    if op["class_table"] != -1:
        require(plan.n_classes > 0, at + "class_table", op["class_table"], "-1 with n_classes = 0")
    for name in ARRAYS:
        size = sizes[name]
        if size is None:
            require(op[name] == -1, at + name, op[name], "-1 for an op of this kind")
        else:
            _check_array(plan.blob, at + name, op[name], size)


def _check_array(blob: Array, name: str, offset: int, size: int) -> None:
    if offset == -1:
        return
    require(
        0 <= offset <= len(blob) - size,
        name,
        offset,
        f"-1, or an offset with {size} floats inside the {len(blob)}",
    )
    require(np.isfinite(blob[offset : offset + size]).all(), name, "NaN or infinity", "finite numbers")
