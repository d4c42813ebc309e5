"""The Plan: round trips, what it refuses, and bytes from strangers."""

from __future__ import annotations

import dataclasses
import hashlib
import math
import pickle
import struct
import tracemalloc
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from nets import random_plan, random_program, random_table

from diffusion_fast import _cpu
from diffusion_fast.plan import HEADER, Plan, build_plan, terms_of
from diffusion_fast.solvers.table import ROW_DTYPE, TERM_BITS, StepTable
from diffusion_fast.tile_ops import FUNCTIONS, OP_DTYPE

N_ROWS, N_OPS, N_CLASSES = 6, 4, 3
ROWS = 80
WIDTHS = ROWS + 80 * N_ROWS
OPS = WIDTHS + 64
BLOB = OPS + 64 * N_OPS
NAN, INF = float("nan"), float("inf")
ROW_OFFSETS = {name: ROW_DTYPE.fields[name][1] for name in ROW_DTYPE.names}
OP_OFFSETS = {name: OP_DTYPE.fields[name][1] for name in OP_DTYPE.names}
HEADER_OFFSETS = {
    name: 8 + 4 * i
    for i, name in enumerate(
        [
            "version",
            "dim",
            "n_rows",
            "n_ops",
            "n_tables",
            "n_classes",
            "n_values",
            "out_value",
            "terms",
            "branches",
            "n_floats",
        ]
    )
} | {"n_context": 56, "n_prologue": 60, "null_context": 64, "reserved": 72}


def small_plan(**options: Any) -> Plan:
    return random_plan(5, 3, (7, 5), n_rows=N_ROWS, n_classes=N_CLASSES, branching=True, **options)


DATA = small_plan(branches=2).to_bytes()


# Of a plan written out below, from a first run; a change here is a change of the format, so of `version`.
STABLE_HASH = "beade4a604d11053c08b8df68cbef491426f7f7feb33ca3ed95e7aff20c3a8c8"


def test_layout_is_that_of_the_kernels() -> None:
    assert HEADER.size == ROW_DTYPE.itemsize == 80 and OP_DTYPE.itemsize == 64
    assert list(ROW_OFFSETS.values()) == [*range(0, 76, 4)]
    assert list(OP_OFFSETS.values()) == [*range(0, 32, 4), 32, 40, 48, 56]
    plan = small_plan(branches=2)
    assert len(DATA) == BLOB + 4 * len(plan.blob)
    assert DATA[:8] == b"DFPLAN\r\n"
    fields = struct.unpack_from("<10IQ2IqQ", DATA, 8)
    assert fields == (3, 3, N_ROWS, N_OPS, 6, N_CLASSES, 5, 3, plan.terms, 2, len(plan.blob), 0, 0, -1, 0)
    assert struct.unpack_from("<16I", DATA, WIDTHS) == (3, 7, 5, 3, 4, *[0] * 11)
    assert DATA[ROWS:WIDTHS] == plan.rows.tobytes() and DATA[BLOB:] == plan.blob.tobytes()


@pytest.mark.parametrize("seed", range(5))
def test_round_trip(seed: int) -> None:
    plan = random_plan(seed, 1 + seed, (4,) * (seed + 1), n_classes=2 * (seed % 2), full=bool(seed % 3))
    assert parses(plan.to_bytes())
    copy = Plan.from_bytes(plan.to_bytes())
    assert copy == plan and copy.to_bytes() == plan.to_bytes() and hash(copy) == hash(plan)
    assert Plan.from_bytes(memoryview(bytearray(plan.to_bytes()))) == plan
    restored = pickle.loads(pickle.dumps(plan))
    assert restored == plan and not restored.blob.flags.writeable
    assert plan != random_plan(seed + 1)


def test_the_hash_names_the_bytes_and_is_stable() -> None:
    table = StepTable.from_columns("by hand", np.array([1, 0]), a=[0.5, 0.75], e=[-0.25, 1.0], s=[2.0, 0.0])
    weight = np.array([[1.0, -2.0], [0.5, 0.25]], np.float32)
    program = random_program(0, 2, (), n_tables=2)
    layer = dataclasses.replace(program.ops[0], weight=weight, bias=None, step_table=weight)
    plan = build_plan(table, dataclasses.replace(program, ops=(layer,)))
    assert plan.hash == hashlib.sha256(plan.to_bytes()).hexdigest()
    assert plan.hash == STABLE_HASH
    assert small_plan().hash != small_plan(branches=2).hash


def test_arrays_cannot_be_written() -> None:
    plan = small_plan()
    for array in (plan.rows, plan.value_widths, plan.ops, plan.blob, plan.operations[0].weight):
        assert not array.flags.writeable
        with pytest.raises(ValueError, match=r"writeable|WRITEABLE"):
            array.setflags(write=True)
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.dim = 4  # type: ignore[misc]


def test_a_plan_keeps_its_own_copy() -> None:
    plan = small_plan()
    rows = plan.rows.copy()
    other = dataclasses.replace(plan, rows=rows)
    rows["a"] = NAN
    assert other == plan


def test_layers_are_the_program() -> None:
    table, program = random_table(1), random_program(2, n_classes=2, branching=True)
    plan = build_plan(table, program)
    for layer, given_layer in zip(plan.operations, program.ops, strict=True):
        for name in ("src", "dst", "activation"):
            assert getattr(layer, name) == getattr(given_layer, name)
        assert layer.act_param == pytest.approx(given_layer.act_param)
        for name in ("weight", "bias", "step_table", "class_table"):
            a, b = getattr(layer, name), getattr(given_layer, name)
            assert (a is None) == (b is None)
            if a is not None:
                np.testing.assert_array_equal(a, b)
    assert plan.flops_per_sample_step == 2 * (3 * 7 + 7 * 5 + 5 * 3 + 7 * 4)
    assert build_plan(table, program, branches=2).flops_per_sample_step == 2 * plan.flops_per_sample_step


def test_program_and_table_must_fit() -> None:
    with pytest.raises(ValueError, match=r"program.n_tables: got 5 .*accepted: 6"):
        build_plan(random_table(1, 6), random_program(1, n_tables=5))


@pytest.mark.parametrize("name", [*TERM_BITS])
def test_terms(name: str) -> None:
    rows = np.zeros(2, ROW_DTYPE)
    rows["c_in"], rows["clip"] = 1, INF
    assert terms_of(rows) == 0
    rows["flags" if name == "push" else name][1] = 2 if name == "push" else 0.5
    assert terms_of(rows) == TERM_BITS[name]
    table = random_table(3)
    assert terms_of(table.rows) == table.terms


def test_terms_that_no_row_has() -> None:
    plan = small_plan(full=False)
    with pytest.raises(ValueError, match=r"plan\.terms: got .*the terms that the rows use"):
        dataclasses.replace(plan, terms=plan.terms | TERM_BITS["push"])


def u32(offset: int, value: int) -> tuple[int, bytes]:
    return offset, struct.pack("<I", value)


def f32(offset: int, value: float) -> tuple[int, bytes]:
    return offset, struct.pack("<f", value)


def header(name: str, value: int) -> tuple[int, bytes]:
    return HEADER_OFFSETS[name], struct.pack({"n_floats": "<Q", "null_context": "<q"}.get(name, "<I"), value)


def row(name: str, value: float, i: int = 1) -> tuple[int, bytes]:
    return (f32 if isinstance(value, float) else u32)(ROWS + 80 * i + ROW_OFFSETS[name], value)  # type: ignore[operator]


def op(name: str, value: float, i: int = 1) -> tuple[int, bytes]:
    at = OPS + 64 * i + OP_OFFSETS[name]
    if name in ("weight", "bias", "step_table", "class_table"):
        return at, struct.pack("<q", value)
    return (f32 if isinstance(value, float) else u32)(at, value)  # type: ignore[operator]


N_FLOATS = len(small_plan().blob)
BIG = 2**32 - 1
HOSTILE: list[tuple[tuple[int, bytes], str]] = [
    ((0, b"X"), "magic"),
    ((6, b"\n"), "magic"),
    (header("version", 0), "version"),
    (header("version", 1), "version"),
    (header("version", 2), "version"),
    (header("reserved", 1), "reserved"),
    (header("n_context", 1), r"value_widths\[1\]"),
    (header("n_context", BIG), "n_context"),
    (header("n_prologue", N_OPS + 1), "n_prologue"),
    (header("n_prologue", 1), r"ops\[0\]\.src"),
    (header("null_context", 0), "null_context"),
    (header("null_context", -2), "null_context"),
    (header("dim", 0), r"plan\.dim"),
    (header("dim", 257), r"plan\.dim"),
    (header("dim", BIG), r"plan\.dim"),
    (header("dim", 4), r"value_widths\[0\]"),
    *((header(name, BIG), "bytes; accepted") for name in ("n_rows", "n_ops", "n_values")),
    *((header(name, 0), "bytes; accepted") for name in ("n_rows", "n_ops", "n_values", "n_floats")),
    (header("n_rows", N_ROWS - 1), "bytes; accepted"),
    (header("n_floats", N_FLOATS + 1), "bytes; accepted"),
    (header("n_floats", 2**64 - 1), "bytes; accepted"),
    (header("n_floats", 2**62), "bytes; accepted"),
    (header("n_values", 4), "value_widths padding"),
    (header("n_values", 6), r"n_values"),
    (header("n_tables", 0), "n_tables"),
    (header("n_tables", 2**20 + 1), "n_tables"),
    (header("n_tables", 1), r"rows\[\d\]\.table"),
    (header("n_tables", 2**20), "step_table"),
    (header("n_classes", 0), "n_classes"),
    (header("n_classes", 1), "n_classes"),
    (header("n_classes", 2**20), "class_table"),
    (header("n_classes", BIG), "n_classes"),
    (header("branches", 0), "branches"),
    (header("branches", 3), "branches"),
    (header("out_value", 0), "out_value"),
    (header("out_value", 5), "out_value"),
    (header("out_value", 2), r"value_widths\[2\]"),
    (header("terms", 0), "terms"),
    (header("terms", 1 << 12), "terms"),
    *(
        (row(name, value), rf"rows\[1\]\.{name}")
        for name in ("c_in", "p_x", "a", "s", "guidance")
        for value in (NAN, INF)
    ),
    *((row("signal", value), r"rows\[1\]\.signal") for value in (NAN, INF)),
    *(
        (row(name, value), rf"rows\[1\]\.{name}")
        for name in ("rescale", "quantile")
        for value in (NAN, -0.5, 1.5)
    ),
    *((row("clip", value), r"rows\[1\]\.clip") for value in (NAN, 0.0, -1.0, -INF)),
    (row("table", 6), r"rows\[1\]\.table"),
    (row("table", BIG, 5), r"rows\[5\]\.table"),
    (row("flags", 4), r"rows\[1\]\.flags"),
    (row("flags", 1 << 31, 0), r"rows\[0\]\.flags"),
    (row("flags", 0, 0), r"rows\[0\]\.p_F: .*without eval"),
    (row("reserved", 1), r"rows\[1\]\.reserved"),
    (u32(ROWS + 76, 7), r"rows\[0\]\.reserved"),
    (u32(WIDTHS + 4, 0), r"value_widths\[1\]"),
    (u32(WIDTHS + 4, 2049), r"value_widths\[1\]"),
    (u32(WIDTHS + 4, 8), r"ops\[0\]\.n_out"),
    (u32(WIDTHS + 12, 2), r"value_widths\[3\]"),
    (u32(WIDTHS + 60, 1), "value_widths padding"),
    (op("kind", 0), r"ops\[1\]\.kind"),
    (op("kind", 8, 0), r"ops\[0\]\.kind"),
    (op("kind", 2, 0), r"ops\[0\]\.function|ops\[0\]\.src"),
    (op("function", len(FUNCTIONS)), r"ops\[1\]\.function"),
    (op("function", BIG), r"ops\[1\]\.function"),
    (op("function", FUNCTIONS.index("exponential")), r"ops\[1\]\.param: .*positive base"),
    (op("src", 2), r"ops\[1\]\.src"),
    (op("src", 3), r"ops\[1\]\.src"),
    (op("src", BIG), r"ops\[1\]\.src"),
    (op("dst", 0), r"ops\[1\]\.dst"),
    (op("dst", 1), r"ops\[1\]\.dst"),
    (op("dst", BIG), r"ops\[1\]\.dst"),
    (op("n_in", 8), r"ops\[1\]\.n_in"),
    (op("n_out", BIG), r"ops\[1\]\.n_out"),
    (op("param", NAN), r"ops\[1\]\.param"),
    (op("param", -INF), r"ops\[1\]\.param"),
    (op("extra", 2), r"ops\[1\]\.extra"),
    (op("extra", 1), r"ops\[1\]\.n_out, with extra"),
    (op("weight", -1), r"ops\[1\]\.weight"),
    *((op(name, -2), rf"ops\[1\]\.{name}") for name in ("weight", "bias", "step_table", "class_table")),
    *(
        (op(name, 2**63 - 1), rf"ops\[1\]\.{name}")
        for name in ("weight", "bias", "step_table", "class_table")
    ),
    *((op(name, -(2**63)), rf"ops\[1\]\.{name}") for name in ("weight", "bias", "step_table", "class_table")),
    (op("weight", N_FLOATS - 34), r"ops\[1\]\.weight"),
    (op("bias", N_FLOATS - 4), r"ops\[1\]\.bias"),
    (op("step_table", N_FLOATS - 29), r"ops\[1\]\.step_table"),
    (op("class_table", N_FLOATS - 14), r"ops\[1\]\.class_table"),
    (f32(BLOB, NAN), r"ops\[0\]\.weight: .*NaN"),
    (f32(len(DATA) - 4, -INF), r"ops\[3\]\.\w+: .*NaN"),
]


@pytest.mark.parametrize(("patch", "message"), HOSTILE)
def test_hostile_bytes(patch: tuple[int, bytes], message: str) -> None:
    at, value = patch
    data = DATA[:at] + value + DATA[at + len(value) :]
    assert data != DATA and len(data) == len(DATA)
    with pytest.raises(ValueError, match=message):
        Plan.from_bytes(data)
    assert not parses(data)


@pytest.mark.parametrize("last", [N_FLOATS - 35, 0])
def test_an_array_may_end_with_the_blob(last: int) -> None:
    at, value = op("weight", last)
    Plan.from_bytes(DATA[:at] + value + DATA[at + 8 :])


def test_a_class_table_needs_classes() -> None:
    plan = small_plan()
    with pytest.raises(ValueError, match=r"class_table: .*n_classes = 0"):
        dataclasses.replace(plan, n_classes=0)


@pytest.mark.parametrize("size", [0, 1, 8, 63, 64, 65, ROWS + 64, WIDTHS, OPS + 1, BLOB, len(DATA) - 1])
def test_truncated(size: int) -> None:
    with pytest.raises(ValueError, match="bytes; accepted"):
        Plan.from_bytes(DATA[:size])


def test_bytes_that_follow() -> None:
    with pytest.raises(ValueError, match="bytes; accepted"):
        Plan.from_bytes(DATA + b"\0")


@pytest.mark.parametrize("wrong", [None, "text", 3, [1]])
def test_not_bytes(wrong: Any) -> None:
    with pytest.raises(TypeError, match=r"plan: got .*accepted: bytes"):
        Plan.from_bytes(wrong)


FIELDS: list[tuple[Callable[[Plan], dict[str, Any]], type[Exception], str]] = [
    (lambda p: {"dim": True}, TypeError, r"plan\.dim"),
    (lambda p: {"dim": 3.0}, TypeError, r"plan\.dim"),
    (lambda p: {"rows": p.rows[:0], "terms": 0}, ValueError, r"plan\.rows"),
    (lambda p: {"rows": p.rows.tolist()}, TypeError, r"plan\.rows"),
    (lambda p: {"rows": p.rows[None]}, ValueError, r"plan\.rows"),
    (lambda p: {"ops": np.zeros(17, OP_DTYPE)}, ValueError, r"plan\.ops"),
    (lambda p: {"ops": p.ops[:0]}, ValueError, r"plan\.ops"),
    (lambda p: {"blob": p.blob.astype(np.float64)}, TypeError, r"plan\.blob"),
    (lambda p: {"value_widths": p.value_widths.astype(np.int64)}, TypeError, r"plan\.value_widths"),
]


@pytest.mark.parametrize(("change", "error", "message"), FIELDS)
def test_fields(change: Callable[[Plan], dict[str, Any]], error: type[Exception], message: str) -> None:
    plan = small_plan()
    with pytest.raises(error, match=message):
        dataclasses.replace(plan, **change(plan))


def parses(data: bytes) -> bool:
    """Whether it is a plan, to Python and C++ alike; any error but ValueError fails the test.

    What parses is written the same.
    """
    try:
        _cpu.validate_plan(data)
        kernels_take_it = True
    except ValueError:
        kernels_take_it = False
    try:
        plan = Plan.from_bytes(data)
    except ValueError:
        assert not kernels_take_it
        return False
    assert kernels_take_it
    assert plan.to_bytes() == data
    return True


def test_flipped_bits() -> None:
    rng = np.random.default_rng(1)
    outcomes = []
    for _ in range(1500):
        data = np.frombuffer(DATA, np.uint8).copy()
        # Half of the flips in the structure, for the blob is most of the bytes.
        high = BLOB if rng.random() < 0.5 else len(data)
        for at in rng.integers(0, high, rng.integers(1, 4)):
            data[at] ^= 1 << rng.integers(8)
        outcomes.append(parses(data.tobytes()))
    assert 100 < sum(outcomes) < 1400  # both ends are reached


@given(st.binary(max_size=300))
def test_any_bytes(data: bytes) -> None:
    assert not parses(data)
    parses(DATA[:64] + data)
    parses(DATA[: -len(data)] + data if data else DATA)


def test_hostile_sizes_take_no_memory() -> None:
    tracemalloc.start()
    try:
        for name in ("n_rows", "n_ops", "n_tables", "n_classes", "n_values", "n_floats"):
            at, value = header(name, 2**64 - 1 if name == "n_floats" else BIG)
            assert not parses(DATA[:at] + value + DATA[at + len(value) :])
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_largest_widths() -> None:
    plan = random_plan(1, 256, (2048,), n_rows=1)
    assert Plan.from_bytes(plan.to_bytes()) == plan
    assert plan.flops_per_sample_step == 2 * 2 * 256 * 2048
    for dim, widths, message in ((257, (4,), r"plan\.dim"), (2, (2049,), r"value_widths\[1\]")):
        with pytest.raises(ValueError, match=message):
            random_plan(1, dim, widths, n_rows=1)
    assert len(random_plan(1, 2, (2,) * 255).ops) == 256
    with pytest.raises(ValueError, match=r"plan\.ops"):
        random_plan(1, 2, (2,) * 256)
    assert math.isinf(float(random_plan(1, full=False).rows["clip"][0]))
