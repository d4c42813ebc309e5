"""The Plan: everything that one sampling run needs, in one validated, immutable, serialisable value.

A Plan holds the rows of a solver's table, the layers of the captured network (the tile program), and one
array of float32 numbers with all weights and tables. Its bytes are what crosses into the kernels; both
sides validate them. Layout (little endian), the same as csrc/plan.h:

    header, 80 bytes | rows, 80 each | value widths, u32, padded to 64 bytes | ops, 64 each | float32 blob

Value 0 is the network's input u = c_in x, and value 1 a sample's context where the network has one. Every op
reads values written before it and writes a new one. The first n_prologue ops read neither x nor the step, and
run once for a sample's whole chain.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from diffusion_fast import _checks, plan_validation
from diffusion_fast.plan_validation import require, terms_of
from diffusion_fast.solvers.table import ROW_DTYPE, StepTable
from diffusion_fast.tile_ops import OP_DTYPE, OP_LINEAR, Array, Op, decode, encode, width_of

MAGIC = b"DFPLAN\r\n"
VERSION = 3
# magic, version, dim, n_rows, n_ops, n_tables, n_classes, n_values, out_value, terms, branches, n_floats,
# n_context, n_prologue, null_context, reserved
HEADER = struct.Struct("<8s10IQ2IqQ")
_DTYPES = {"rows": ROW_DTYPE, "value_widths": np.dtype("<u4"), "ops": OP_DTYPE, "blob": np.dtype("<f4")}


@dataclass(frozen=True, eq=False)
class TileProgram:
    """What a captured network computes for one sample, as operations on values.

    dim: width of the input (value 0) and of out_value; n_tables: rows of the step tables; n_classes: rows
    of the class tables, the null class included, 0 without classes; explain: one line per decision of the
    capture. n_context: width of the context (value 1), 0 without. n_prologue: how many ops, the first, run
    once for all steps. null_context: (n_context,), the context of the unconditional branch; None keeps the
    sample's.
    """

    dim: int
    ops: tuple[Op, ...]
    out_value: int
    n_tables: int
    n_classes: int = 0
    explain: tuple[str, ...] = ()
    n_context: int = 0
    n_prologue: int = 0
    null_context: Array | None = None


@dataclass(frozen=True, eq=False)
class Plan:
    """A validated plan; see the module's page for the layout. All arrays are read-only.

    dim: elements of one sample. rows: (n_rows,) ROW_DTYPE, in the order they run. value_widths: (n_values,)
    uint32. ops: (n_ops,) OP_DTYPE, offsets in floats into blob, -1 = absent. blob: (n_floats,) float32.
    n_tables, n_classes: rows of the step and class tables (0 classes = unconditional, the null class is the
    last). branches: 1, or 2 for guidance (the sample's label, then the null class). out_value: the
    network's output. terms: mask of TERM_BITS over all rows. n_context, n_prologue: as in TileProgram.
    null_context: offset of (n_context,) floats that stand for the context in the second branch, -1 = absent.
    The second branch has the null class where there are classes, and the null context where there is one.

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
    n_context: int = 0
    n_prologue: int = 0
    null_context: int = -1

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
        fields = (VERSION, self.dim, *sizes, self.out_value, self.terms, self.branches, len(self.blob))
        more = (self.n_context, self.n_prologue, self.null_context, 0)
        padding = np.zeros(-len(self.value_widths) % 16, "<u4")
        arrays = (self.rows, self.value_widths, padding, self.ops, self.blob)
        return b"".join([HEADER.pack(MAGIC, *fields, *more), *(array.tobytes() for array in arrays)])

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
        magic, version, *fields, n_floats, n_context, n_prologue, null_context, reserved = HEADER.unpack_from(
            data
        )
        dim, n_rows, n_ops, n_tables, n_classes, n_values, out_value, terms, branches = fields
        require(magic == MAGIC, "magic", magic, repr(MAGIC))
        require(version == VERSION, "version", version, str(VERSION))
        require(reserved == 0, "reserved", reserved, "0")
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
        require(not widths[n_values:].any(), "value_widths padding", widths[n_values:], "zeros")
        sizes = (n_tables, n_classes, branches, out_value, terms, n_context, n_prologue, null_context)
        return Plan(dim, rows, widths[:n_values], ops, blob, *sizes)

    @cached_property
    def hash(self) -> str:
        """SHA-256 of the bytes, in hexadecimal: the name of a run together with its seed."""
        return hashlib.sha256(self.to_bytes()).hexdigest()

    @property
    def flops_per_sample_step(self) -> int:
        """Multiplications and additions of the linear layers for one sample and one evaluated row, all
        branches; what runs once for a chain is not counted."""
        each = self.ops[self.n_prologue :]
        linear = each[each["kind"] == OP_LINEAR]
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
        plan_validation.validate(self)


def build_plan(table: StepTable, program: TileProgram, *, branches: int = 1) -> Plan:
    """Joins a solver's table and a captured network; program.n_tables must be the number of the table's
    timesteps.

    branches = 2 evaluates each row for the sample's label and context and for the null class, the last row of
    the class tables, and the null context, and combines them with the row's guidance scale.
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

    null = place(program.null_context if branches == 2 else None)
    widths = {0: program.dim} | ({1: program.n_context} if program.n_context else {})
    for op in program.ops:
        widths[op.dst] = width_of(op, widths)
    ops = np.array([encode(op, widths, place) for op in program.ops], OP_DTYPE)
    value_widths = np.array([widths.get(i, 0) for i in range(max(widths) + 1)], "<u4")
    rows = np.asarray(table.rows)
    floats = np.concatenate(blob) if blob else np.zeros(0, np.float32)
    sizes = (program.n_tables, program.n_classes, branches, program.out_value)
    context = (program.n_context, program.n_prologue, null)
    return Plan(program.dim, rows, value_widths, ops, floats, *sizes, terms_of(rows), *context)
