"""The Plan: everything that one sampling run needs, in one validated, immutable, serialisable value.

A Plan holds the rows of a solver's table, the layers of the captured network (the tile program), and one
array of float32 numbers with all weights and tables. Its bytes are what crosses into the kernels; both
sides validate them. Layout (little endian), the same as csrc/plan.h:

    header, 64 bytes | rows, 80 each | value widths, u32, padded to 64 bytes | ops, 64 each | float32 blob

Value 0 is the network's input u = c_in x. Every op reads a value written before it and writes a new one.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from diffusion_fast import _checks
from diffusion_fast.solvers.table import COEFFICIENTS, EVAL, EXTRAS, PUSH, ROW_DTYPE, TERM_BITS, StepTable
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
    Array,
    Op,
    decode,
    encode,
    width_of,
)

MAGIC = b"DFPLAN\r\n"
VERSION = 3
# magic, version, dim, n_rows, n_ops, n_tables, n_classes, n_values, out_value, terms, branches, n_floats,
# reserved x 2
HEADER = struct.Struct("<8s10IQ2I")
_DTYPES = {"rows": ROW_DTYPE, "value_widths": np.dtype("<u4"), "ops": OP_DTYPE, "blob": np.dtype("<f4")}
MAX_DIM = 256
MAX_WIDTH = 2048
MAX_OPS = 256
MAX_ROWS = MAX_TABLES = MAX_CLASSES = 1 << 20


@dataclass(frozen=True, eq=False)
class TileProgram:
    """What a captured network computes for one sample, as operations on values.

    dim: width of the input (value 0) and of out_value; n_tables: rows of the step tables; n_classes: rows
    of the class tables, the null class included, 0 without classes; explain: one line per decision of the
    capture.
    """

    dim: int
    ops: tuple[Op, ...]
    out_value: int
    n_tables: int
    n_classes: int = 0
    explain: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Plan:
    """A validated plan; see the module's page for the layout. All arrays are read-only.

    dim: elements of one sample. rows: (n_rows,) ROW_DTYPE, in the order they run. value_widths: (n_values,)
    uint32. ops: (n_ops,) OP_DTYPE, offsets in floats into blob, -1 = absent. blob: (n_floats,) float32.
    n_tables, n_classes: rows of the step and class tables (0 classes = unconditional, the null class is the
    last). branches: 1, or 2 for guidance (the sample's label, then the null class). out_value: the
    network's output. terms: mask of TERM_BITS over all rows.

    Raises ValueError, naming the field, for anything that does not hold together; TypeError for a wrong type.
    """

    dim: int
    rows: Array
    value_widths: Array
    ops: Array
    blob: Array
    n_tables: int
    n_classes: int
    branches: int
    out_value: int
    terms: int

    def __post_init__(self) -> None:
        for name, dtype in _DTYPES.items():
            given = getattr(self, name)
            if not isinstance(given, np.ndarray) or given.dtype != dtype:
                raise _checks.bad_type(f"plan.{name}", given, f"a NumPy array of {dtype}")
            if given.ndim != 1:
                raise _checks.bad_value(f"plan.{name}", given, "an array of one axis")
            # A view of bytes cannot be made writable again.
            object.__setattr__(self, name, np.frombuffer(given.tobytes(), dtype))
        self.validate()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Plan) and self.to_bytes() == other.to_bytes()

    def __hash__(self) -> int:
        return hash(self.hash)

    def __reduce__(self) -> tuple[Callable[[bytes], Plan], tuple[bytes]]:
        return Plan.from_bytes, (self.to_bytes(),)

    def to_bytes(self) -> bytes:
        """The plan in the layout above; equal plans give equal bytes."""
        sizes = (len(self.rows), len(self.ops), self.n_tables, self.n_classes, len(self.value_widths))
        fields = (VERSION, self.dim, *sizes, self.out_value, self.terms, self.branches, len(self.blob), 0, 0)
        padding = np.zeros(-len(self.value_widths) % 16, "<u4")
        arrays = (self.rows, self.value_widths, padding, self.ops, self.blob)
        return b"".join([HEADER.pack(MAGIC, *fields), *(array.tobytes() for array in arrays)])

    @staticmethod
    def from_bytes(data: bytes | bytearray | memoryview) -> Plan:
        """The plan that `to_bytes` wrote. Any other bytes raise ValueError, before memory beyond their size
        is used."""
        if not isinstance(data, (bytes, bytearray, memoryview)):
            raise _checks.bad_type("plan", data, "bytes")
        data = bytes(data)
        if len(data) < HEADER.size:
            raise ValueError(
                f"plan: got {len(data)} bytes; accepted: at least a header of {HEADER.size} bytes"
            )
        magic, version, *fields, n_floats, reserved, reserved_2 = HEADER.unpack_from(data)
        dim, n_rows, n_ops, n_tables, n_classes, n_values, out_value, terms, branches = fields
        _require(magic == MAGIC, "magic", magic, repr(MAGIC))
        _require(version == VERSION, "version", version, str(VERSION))
        _require(reserved == reserved_2 == 0, "reserved", (reserved, reserved_2), "zeros")
        counts = {"rows": n_rows, "value_widths": n_values + -n_values % 16, "ops": n_ops, "blob": n_floats}
        # Python integers: no overflow.
        expected = HEADER.size + sum(_DTYPES[name].itemsize * count for name, count in counts.items())
        if len(data) != expected:
            raise ValueError(
                f"plan: got {len(data)} bytes; accepted: {expected} bytes, as n_rows = {n_rows}, "
                f"n_values = {n_values}, n_ops = {n_ops} and n_floats = {n_floats} say"
            )
        offset = HEADER.size
        arrays = []
        for name, count in counts.items():
            arrays.append(np.frombuffer(data, _DTYPES[name], count, offset))
            offset += arrays[-1].nbytes
        rows, widths, ops, blob = arrays
        _require(not widths[n_values:].any(), "value_widths padding", widths[n_values:], "zeros")
        return Plan(dim, rows, widths[:n_values], ops, blob, n_tables, n_classes, branches, out_value, terms)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the bytes, in hexadecimal: the name of a run together with its seed."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @property
    def flops_per_sample_step(self) -> int:
        """Multiplications and additions of the linear layers for one sample and one evaluated row, all
        branches."""
        linear = self.ops[self.ops["kind"] == OP_LINEAR]
        return self.branches * sum(2 * int(op["n_in"]) * int(op["n_out"]) for op in linear)

    @cached_property
    def operations(self) -> tuple[Op, ...]:
        """The ops with their arrays, as read-only views of the blob."""

        def view(offset: int, *shape: int) -> Array | None:
            return None if offset < 0 else self.blob[offset : offset + int(np.prod(shape))].reshape(shape)

        return tuple(decode(row, self.n_tables, self.n_classes, view) for row in self.ops.tolist())

    def validate(self) -> None:
        """Raises ValueError naming the first field that breaks the contract (the kernels check the same
        again)."""
        for name, count, high in (("rows", len(self.rows), MAX_ROWS), ("ops", len(self.ops), MAX_OPS)):
            _require(1 <= count <= high, name, count, f"1 to {high} of them")
        for name, low, high in (
            ("dim", 1, MAX_DIM),
            ("n_tables", 1, MAX_TABLES),
            ("n_classes", 0, MAX_CLASSES),
            ("branches", 1, 2),
            ("out_value", 1, MAX_OPS),
            ("terms", 0, sum(TERM_BITS.values())),
        ):
            _checks.integer(f"plan.{name}", getattr(self, name), low, high)
        guided = "2 or more with branches = 2, where the last is the null class"
        _require(self.branches == 1 or self.n_classes >= 2, "n_classes", self.n_classes, guided)
        _check_rows(self.rows, self.n_tables)
        terms = terms_of(self.rows)
        _require(self.terms == terms, "terms", self.terms, f"{terms}, the terms that the rows use")
        _check_widths(self)
        _check_ops(self)


def terms_of(rows: Array) -> int:
    """The mask of TERM_BITS that occur in any of the rows (c_in counts where it is not 1, clip where it is
    finite)."""
    used = {name: rows[name] != 0 for name in COEFFICIENTS}
    used.update(c_in=rows["c_in"] != 1, clip=np.isfinite(rows["clip"]), push=rows["flags"] & PUSH)
    return sum(TERM_BITS[name] for name, present in used.items() if np.any(present))


def build_plan(table: StepTable, program: TileProgram, *, branches: int = 1) -> Plan:
    """Joins a solver's table and a captured network; program.n_tables must be the number of the table's
    timesteps.

    branches = 2 evaluates each row for the sample's label and for the null class, the last row of the class
    tables, and combines them with the row's guidance scale.
    """
    if program.n_tables != len(table.table_timesteps):
        accepted = f"{len(table.table_timesteps)}, one for each network time of the table"
        raise _checks.bad_value("program.n_tables", program.n_tables, accepted)
    blob: list[Array] = []
    size = 0

    def place(array: Array | None) -> int:
        nonlocal size
        if array is None:
            return -1
        blob.append(np.asarray(array, np.float32).ravel())
        size += array.size
        return size - array.size

    widths = {0: program.dim}
    for op in program.ops:
        widths[op.dst] = width_of(op, widths)
    ops = np.array([encode(op, widths, place) for op in program.ops], OP_DTYPE)
    value_widths = np.array([widths.get(i, 0) for i in range(max(widths) + 1)], "<u4")
    rows = np.asarray(table.rows)
    floats = np.concatenate(blob) if blob else np.zeros(0, np.float32)
    sizes = (program.n_tables, program.n_classes, branches, program.out_value)
    return Plan(program.dim, rows, value_widths, ops, floats, *sizes, terms_of(rows))


def _require(holds: bool | np.bool_, name: str, given: Any, accepted: str) -> None:
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


def _check_widths(plan: Plan) -> None:
    widths = plan.value_widths
    most = len(plan.ops) + 1
    _require(2 <= len(widths) <= most, "n_values", len(widths), f"2 to n_ops + 1 = {most}")
    _require(plan.out_value < len(widths), "out_value", plan.out_value, f"1 to {len(widths) - 1}")
    good = (widths >= 1) & (widths <= MAX_WIDTH)
    if not good.all():
        i = int(np.argmin(good))
        _require(False, f"value_widths[{i}]", int(widths[i]), f"1 to {MAX_WIDTH}")
    for i in (0, plan.out_value):
        _require(widths[i] == plan.dim, f"value_widths[{i}]", int(widths[i]), f"dim = {plan.dim}")


def _check_ops(plan: Plan) -> None:
    widths = plan.value_widths.tolist()
    filled = [widths[0]] + [0] * (len(widths) - 1)  # features of each value written so far
    for i, row in enumerate(plan.ops):
        op = {name: row[name].item() for name in OP_DTYPE.names or ()}
        _check_op(plan, f"ops[{i}].", op, widths, filled)
        _check_arrays(plan, f"ops[{i}].", op)
        if op["kind"] == OP_GATHER:
            index = plan.blob[op["weight"] : op["weight"] + op["n_in"]]
            good = (index >= 0) & (index < widths[op["src"]]) & (index == np.floor(index))
            accepted = f"whole numbers from 0 to {widths[op['src']] - 1}"
            _require(good.all(), f"ops[{i}].weight", index.tolist(), accepted)
    for value, (have, width) in enumerate(zip(filled, widths, strict=True)):
        _require(have == width, f"value_widths[{value}]", width, f"{have}, the features that ops write")


def _check_op(plan: Plan, at: str, op: dict[str, Any], widths: list[int], filled: list[int]) -> None:
    kind, src, dst, n_in, n_out, extra = (op[k] for k in ("kind", "src", "dst", "n_in", "n_out", "extra"))
    _require(kind in FUNCTION_NAMES, at + "kind", kind, f"1 (linear) to {len(FUNCTION_NAMES)} (gather)")
    names = FUNCTION_NAMES[kind]
    _require(op["function"] < len(names), at + "function", op["function"], f"0 to {len(names) - 1}")
    _require(np.isfinite(op["param"]), at + "param", op["param"], "a finite number")

    def read(field: str, value: int, count: int, size: str = "n_in") -> None:
        written = value < len(widths) and filled[value] == widths[value]
        _require(written, at + field, value, "a value written by an earlier op, or 0")
        _require(count == widths[value], at + size, count, f"the width {widths[value]} of value {value}")

    if kind == OP_TABLE:
        _require(src == 0 and n_in == 0, at + "src", (src, n_in), "0 with n_in = 0")
    elif kind == OP_GATHER:
        read("src", src, widths[src] if src < len(widths) else 0)
        _require(src != dst, at + "dst", dst, "another value than src")
    else:
        read("src", src, n_in)
    if kind == OP_BINARY:
        read("extra", extra, n_in)
    elif kind in (OP_NORM, OP_REDUCE):
        _require(extra >= 1 and n_in % extra == 0, at + "extra", extra, f"a divisor of n_in = {n_in}")
        _require(op["param"] >= 0, at + "param", op["param"], "a number from 0 up")
    elif kind == OP_LINEAR and extra:
        read("extra", extra, n_out, "n_out, with extra")
        _require(op["class_table"] == -1, at + "class_table", op["class_table"], "-1 beside an addend")
    elif kind != OP_GATHER:
        _require(extra == 0, at + "extra", extra, "0")
    made = {OP_MAP: n_in, OP_BINARY: n_in, OP_NORM: n_in, OP_REDUCE: extra}.get(kind, n_out)
    offset, count = (extra, n_in) if kind == OP_GATHER else (0, n_out)
    _require(dst < len(widths), at + "dst", dst, f"0 to {len(widths) - 1}")
    accepted = "a value not written before, or the next part of one"
    _require(filled[dst] == offset < widths[dst], at + "dst", dst, accepted)
    _require(n_out == widths[dst] == made, at + "n_out", n_out, f"the width {widths[dst]} of value {dst}")
    _require(1 <= count <= widths[dst] - offset, at + "n_in", count, f"1 to {widths[dst] - offset}")
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
        _require(op["weight"] >= 0, at + "weight", op["weight"], "an offset into the blob")
    if joint:
        _require(op["class_table"] >= 0, at + "class_table", op["class_table"], "an offset into the blob")
    if op["class_table"] != -1:
        _require(plan.n_classes > 0, at + "class_table", op["class_table"], "-1 with n_classes = 0")
    for name in ARRAYS:
        size = sizes[name]
        if size is None:
            _require(op[name] == -1, at + name, op[name], "-1 for an op of this kind")
        else:
            _check_array(plan.blob, at + name, op[name], size)


def _check_array(blob: Array, name: str, offset: int, size: int) -> None:
    if offset == -1:
        return
    _require(
        0 <= offset <= len(blob) - size,
        name,
        offset,
        f"-1, or an offset with {size} floats inside the {len(blob)}",
    )
    _require(np.isfinite(blob[offset : offset + size]).all(), name, "NaN or infinity", "finite numbers")
