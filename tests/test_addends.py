"""Addends of linear ops and tables for pairs of step and class: kernels, interpreter, bytes, refusals."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from nets import random_table
from test_chain import FAST_ISAS, ISAS, check_plan, run, same_bits

from diffusion_fast import _cpu
from diffusion_fast.plan import Plan, TileProgram, build_plan
from diffusion_fast.tile_ops import LinearOp, Op, TableOp

N_TABLES, N_CLASSES = 4, 3


@pytest.fixture(autouse=True)
def one_torch_thread() -> None:
    torch.set_num_threads(1)


def operations(seed: int = 0, dim: int = 3, width: int = 21) -> tuple[Op, ...]:
    """A layer, a joint table and a layer that add to it, a residual with a step table, a last layer."""
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        return (rng.standard_normal(shape) / np.sqrt(shape[-1])).astype(np.float32)

    return (
        LinearOp(0, 1, normal(width, dim), normal(width), activation="tanh"),
        TableOp(2, joint_table=3 * normal(N_TABLES, N_CLASSES, width)),
        LinearOp(1, 3, normal(width, width), activation="silu", addend=2),
        LinearOp(3, 4, normal(width, width), None, normal(N_TABLES, width), activation="sin", addend=1),
        LinearOp(4, 5, normal(dim, width), normal(dim)),
    )


def plan_of(ops: tuple[Op, ...], branches: int = 1, n_classes: int = N_CLASSES) -> Plan:
    program = TileProgram(3, ops, 5, N_TABLES, n_classes)
    return build_plan(random_table(1, N_TABLES), program, branches=branches)


@pytest.mark.parametrize("branches", [1, 2])
@pytest.mark.parametrize("width", [1, 8, 21, 130])
def test_kernels_follow_the_rule(branches: int, width: int) -> None:
    labels = np.random.default_rng(0).integers(0, N_CLASSES, 2000, dtype=np.int32)
    check_plan(plan_of(operations(width, 3, width), branches), 2000, labels=labels)


@pytest.mark.parametrize("branches", [1, 2])
def test_one_set_of_bits(branches: int) -> None:
    plan, n = plan_of(operations(), branches), 61
    labels = np.random.default_rng(0).integers(0, N_CLASSES, n, dtype=np.int32)
    whole = run(plan, n, labels=labels)
    for isa in ISAS:
        program = _cpu.Program(plan.to_bytes(), isa)
        for size in (1, 2, 17, 33, 61) if isa in FAST_ISAS else (1, 61):
            parts = [
                run(program, min(size, n - at), start=at, labels=labels[at : at + size], dim=3)
                for at in range(0, n, size)
            ]
            assert same_bits(np.vstack(parts), whole), f"{isa}, {size} at a time"
    same_label = run(plan, n, labels=2)
    assert same_bits(same_label, run(plan, n, labels=np.full(n, 2, np.int32)))


def test_plans_survive_their_bytes() -> None:
    plan = plan_of(operations())
    copy = Plan.from_bytes(plan.to_bytes())
    assert copy == plan
    table, layer = copy.operations[1], copy.operations[2]
    assert isinstance(table, TableOp) and isinstance(layer, LinearOp)
    assert table.joint_table is not None and table.joint_table.shape == (N_TABLES, N_CLASSES, 21)
    assert table.bias is None and table.class_table is None
    assert [getattr(op, "addend", None) for op in copy.operations] == [0, None, 2, 1, 0]


def patched(op: int, **fields: int) -> bytes:
    plan = plan_of(operations())
    ops = plan.ops.copy()
    for name, value in fields.items():
        ops[name][op] = value
    data = bytearray(plan.to_bytes())
    at = len(data) - plan.blob.nbytes - plan.ops.nbytes
    data[at : at + plan.ops.nbytes] = ops.tobytes()
    return bytes(data)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (patched(2, extra=3), r"ops\[2\]\.extra"),
        (patched(2, extra=6), r"ops\[2\]\.extra"),
        (patched(4, extra=2), r"ops\[4\]\.n_out, with extra"),
        (patched(2, class_table=0), r"ops\[2\]\.class_table: .*addend"),
        (patched(1, class_table=-1), r"ops\[1\]\.class_table"),
        (patched(1, bias=0), r"ops\[1\]\.bias"),
        (patched(1, step_table=0), r"ops\[1\]\.step_table"),
        (patched(1, class_table=1 << 20), r"ops\[1\]\.class_table"),
        (patched(1, function=2), r"ops\[1\]\.function"),
        (patched(1, extra=1), r"ops\[1\]\.extra"),
    ],
)
def test_what_does_not_hold_together_is_refused_by_both_sides(data: bytes, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Plan.from_bytes(data)
    with pytest.raises(ValueError):
        _cpu.Program(data)


def test_a_joint_table_needs_classes() -> None:
    with pytest.raises(ValueError, match=r"class_table: .*n_classes = 0"):
        dataclasses.replace(plan_of(operations()), n_classes=0)
