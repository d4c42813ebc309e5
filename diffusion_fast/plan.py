"""The Plan: everything that one sampling run needs, in one validated, immutable, serialisable value.

A Plan holds the rows of a solver's table, the layers of the captured network (the tile program), and one
array of float32 numbers with all weights and tables. Its bytes are what crosses into the kernels; both
sides validate them. Layout (little endian), the same as csrc/plan.h:

    header, 64 bytes | rows, 64 each | value widths, u32, padded to 64 bytes | ops, 64 each | float32 blob

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
import numpy.typing as npt

from diffusion_fast import _checks
from diffusion_fast.solvers.table import COEFFICIENTS, EVAL, PUSH, ROW_DTYPE, TERM_BITS, StepTable

MAGIC = b"DFPLAN\r\n"
VERSION = 1
# magic, version, dim, n_rows, n_ops, n_tables, n_classes, n_values, out_value, terms, branches, n_floats,
# reserved x 2
HEADER = struct.Struct("<8s10IQ2I")
OP_DTYPE = np.dtype(
    [
        *((name, "<u4") for name in ("kind", "activation", "src", "dst", "n_in", "n_out")),
        ("act_param", "<f4"),
        ("reserved", "<u4"),
        *((name, "<i8") for name in ("weight", "bias", "step_table", "class_table")),
    ]
)
_DTYPES = {"rows": ROW_DTYPE, "value_widths": np.dtype("<u4"), "ops": OP_DTYPE, "blob": np.dtype("<f4")}
MAX_DIM = 256
MAX_WIDTH = 2048
MAX_LAYERS = 16
MAX_ROWS = MAX_TABLES = MAX_CLASSES = 1 << 20

OP_LINEAR = 1
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

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class LinearOp:
    """One layer: value[dst] = act(bias + step_table[table] + class_table[label] + weight @ value[src]).

    weight (n_out, n_in), bias (n_out,), step_table (n_tables, n_out), class_table (n_classes, n_out): float32
    arrays, None where absent. activation is one of ACTIVATIONS; act_param its parameter.
    """

    src: int
    dst: int
    weight: Array
    bias: Array | None = None
    step_table: Array | None = None
    class_table: Array | None = None
    activation: str = "identity"
    act_param: float = 0.0


@dataclass(frozen=True, eq=False)
class TileProgram:
    """What a captured network computes for one sample, as layers over values.

    dim: width of the input (value 0) and of out_value; n_tables: rows of the step tables; n_classes: rows
    of the class tables, the null class included, 0 without classes; explain: one line per decision of the
    capture.
    """

    dim: int
    layers: tuple[LinearOp, ...]
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
        return self.branches * sum(2 * int(op["n_in"]) * int(op["n_out"]) for op in self.ops)

    @cached_property
    def layers(self) -> tuple[LinearOp, ...]:
        """The ops with their arrays, as read-only views of the blob."""

        def view(offset: int, *shape: int) -> Array | None:
            return None if offset < 0 else self.blob[offset : offset + int(np.prod(shape))].reshape(shape)

        layers = []
        for _, code, src, dst, n_in, n_out, param, _, weight, bias, step, label in self.ops.tolist():
            matrix = view(weight, n_out, n_in)
            assert matrix is not None  # validate() has seen to it
            tables = (view(bias, n_out), view(step, self.n_tables, n_out), view(label, self.n_classes, n_out))
            layers.append(LinearOp(src, dst, matrix, *tables, ACTIVATIONS[code], param))
        return tuple(layers)

    def validate(self) -> None:
        """Raises ValueError naming the first field that breaks the contract (the kernels check the same
        again)."""
        for name, count, high in (("rows", len(self.rows), MAX_ROWS), ("ops", len(self.ops), MAX_LAYERS)):
            _require(1 <= count <= high, name, count, f"1 to {high} of them")
        for name, low, high in (
            ("dim", 1, MAX_DIM),
            ("n_tables", 1, MAX_TABLES),
            ("n_classes", 0, MAX_CLASSES),
            ("branches", 1, 2),
            ("out_value", 1, MAX_LAYERS),
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

    widths = np.zeros(len(program.layers) + 1, "<u4")
    widths[0] = program.dim
    ops = np.zeros(len(program.layers), OP_DTYPE)
    for op, layer in zip(ops, program.layers, strict=True):
        n_out, n_in = layer.weight.shape
        widths[layer.dst] = n_out
        op["kind"], op["activation"] = OP_LINEAR, ACTIVATIONS.index(layer.activation)
        op["src"], op["dst"], op["n_in"], op["n_out"] = layer.src, layer.dst, n_in, n_out
        op["act_param"] = layer.act_param
        for name in ("weight", "bias", "step_table", "class_table"):
            op[name] = place(getattr(layer, name))
    rows = np.asarray(table.rows)
    floats = np.concatenate(blob) if blob else np.zeros(0, np.float32)
    sizes = (program.n_tables, program.n_classes, branches, program.out_value)
    return Plan(program.dim, rows, widths, ops, floats, *sizes, terms_of(rows))


def _require(holds: bool | np.bool_, name: str, given: Any, accepted: str) -> None:
    if not holds:
        raise _checks.bad_value(f"plan.{name}", given, accepted)


def _check_column(rows: Array, field: str, good: Array, accepted: str) -> None:
    """Names the first row whose field is not good."""
    if not good.all():
        i = int(np.argmin(good.reshape(len(rows), -1).all(axis=1)))
        raise _checks.bad_value(f"plan.rows[{i}].{field}", rows[field][i].tolist(), accepted)


def _check_rows(rows: Array, n_tables: int) -> None:
    for name in (*(name for name in COEFFICIENTS if name != "clip"), "guidance"):
        _check_column(rows, name, np.isfinite(rows[name]), "a finite number")
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
    _require(len(widths) == len(plan.ops) + 1, "n_values", len(widths), f"n_ops + 1 = {len(plan.ops) + 1}")
    _require(plan.out_value < len(widths), "out_value", plan.out_value, f"1 to {len(widths) - 1}")
    good = (widths >= 1) & (widths <= MAX_WIDTH)
    if not good.all():
        i = int(np.argmin(good))
        _require(False, f"value_widths[{i}]", int(widths[i]), f"1 to {MAX_WIDTH}")
    for i in (0, plan.out_value):
        _require(widths[i] == plan.dim, f"value_widths[{i}]", int(widths[i]), f"dim = {plan.dim}")


def _check_ops(plan: Plan) -> None:
    widths = plan.value_widths.tolist()
    written = {0}
    for i, op in enumerate(plan.ops):
        at = f"ops[{i}]."
        src, dst, n_in, n_out = (int(op[name]) for name in ("src", "dst", "n_in", "n_out"))
        _require(op["kind"] == OP_LINEAR, at + "kind", int(op["kind"]), f"{OP_LINEAR} (linear)")
        _require(
            op["activation"] < len(ACTIVATIONS),
            at + "activation",
            int(op["activation"]),
            "a known activation's code",
        )
        _require(np.isfinite(op["act_param"]), at + "act_param", float(op["act_param"]), "a finite number")
        _require(op["reserved"] == 0, at + "reserved", int(op["reserved"]), "0")
        _require(src in written, at + "src", src, "a value written by an earlier op, or 0")
        _require(dst < len(widths) and dst not in written, at + "dst", dst, "a value not written before")
        _require(n_in == widths[src], at + "n_in", n_in, f"the width {widths[src]} of value {src}")
        _require(n_out == widths[dst], at + "n_out", n_out, f"the width {widths[dst]} of value {dst}")
        _require(op["weight"] >= 0, at + "weight", int(op["weight"]), "an offset into the blob")
        if op["class_table"] != -1:
            _require(plan.n_classes > 0, at + "class_table", int(op["class_table"]), "-1 with n_classes = 0")
        sizes = {"weight": n_in, "bias": 1, "step_table": plan.n_tables, "class_table": plan.n_classes}
        for name, count in sizes.items():
            _check_array(plan.blob, at + name, int(op[name]), count * n_out)
        written.add(dst)


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
