"""The whole-chain kernel gives one set of bits: however n is split, on any threads and instruction set.

Also what it does with zeros, infinities and NaN, and the calls it refuses.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from nets import random_plan
from test_chain import FAST_ISAS, GUARD, ISAS, address, run, same_bits

from diffusion_fast import _cpu, reference
from diffusion_fast.plan import Plan, TileProgram, build_plan
from diffusion_fast.solvers.table import EVAL, ROW_DTYPE, StepTable
from diffusion_fast.tile_ops import LinearOp

PLANS: dict[str, Plan] = {
    "one vector": random_plan(0, 1, (16, 16), activation="relu"),
    "small": random_plan(1, 2, (5, 3)),
    "mixed": random_plan(2, 3, (33, 64, 17)),
    "wide": random_plan(3, 4, (130, 257, 3), n_rows=3),
    "large dim": random_plan(4, 200, (20,), n_rows=3),
    "three quads": random_plan(5, 12, (40, 40)),
    "branching": random_plan(6, 3, (24, 24), branching=True),
    "deep": random_plan(7, 3, (9,) * 15),
    "classes": random_plan(8, 3, (40, 9), n_classes=5),
    "guided": random_plan(9, 2, (40, 9), n_classes=5, branches=2),
    "wide and guided": random_plan(10, 2, (200, 151), n_classes=5, branches=2, n_rows=3),
}


@pytest.mark.parametrize("name", PLANS)
def test_any_split_and_instruction_set(name: str) -> None:
    """Few-sample path, both shapes of tile, one to three vectors, partly filled tiles: one set of bits."""
    plan, n = PLANS[name], 100
    labels = np.random.default_rng(0).integers(0, 5, n, dtype=np.int32) if plan.n_classes else None
    for start in (0, 2**32 - 50, 2**48 - n):
        whole = run(plan, n, seed=7, start=start, labels=labels)
        for isa in ISAS:
            program = _cpu.Program(plan.to_bytes(), isa)
            sizes = (
                (1, 2, 3, 7, 15, 16, 17, 31, 32, 33, 47, 48, 49, 100) if isa != "portable" else (1, 5, 100)
            )
            for size in sizes:
                parts = []
                for at in range(0, n, size):
                    m = min(size, n - at)
                    y = None if labels is None else labels[at : at + m]
                    parts.append(run(program, m, seed=7, start=start + at, labels=y, dim=plan.dim))
                assert same_bits(np.vstack(parts), whole), f"{isa}, {size} at a time, start {start}"


@pytest.mark.parametrize("name", PLANS)
def test_any_number_of_threads(name: str) -> None:
    plan, n = PLANS[name], 4001
    labels = np.random.default_rng(0).integers(0, 5, n, dtype=np.int32) if plan.n_classes else None
    for isa in FAST_ISAS:
        program = _cpu.Program(plan.to_bytes(), isa)
        options = {"seed": 7, "dim": plan.dim}
        whole = run(program, n, labels=labels, **options)
        for threads in (2, 3, 5):
            assert same_bits(run(program, n, labels=labels, threads=threads, **options), whole)
        for m in (97, 160, 1000):  # tiles are smaller where there are few of them for the threads
            y = None if labels is None else labels[:m]
            assert same_bits(run(program, m, labels=y, threads=2, **options), whole[:m])


@pytest.mark.parametrize("seed", range(30))
def test_random_plans_on_every_path(seed: int) -> None:
    rng = np.random.default_rng(seed)
    dim, depth = int(rng.integers(1, 24)), int(rng.integers(0, 5))
    widths = tuple(int(w) for w in rng.integers(1, 70, depth))
    classes = int(rng.integers(0, 2)) * 3
    plan = random_plan(seed, dim, widths, n_classes=classes, branches=1 + (classes > 0 and seed % 2))
    n = int(rng.integers(1, 70))
    labels = rng.integers(0, 3, n, dtype=np.int32) if classes else None
    whole = run(plan, n, seed=seed, labels=labels)
    for isa in ISAS:
        assert same_bits(run(plan, n, isa=isa, seed=seed, labels=labels), whole)
        program = _cpu.Program(plan.to_bytes(), isa)
        for i in range(0, n, 7):
            y = None if labels is None else labels[i : i + 1]
            one = run(program, 1, seed=seed, start=i, labels=y, dim=dim)
            assert same_bits(one, whole[i : i + 1])
    if labels is not None:
        one = run(plan, n, seed=seed, labels=int(labels[0]))
        assert same_bits(one[labels == labels[0]], whole[labels == labels[0]])


# ---- zeros, infinities, NaN


def one_row(**columns: Any) -> StepTable:
    """x <- e F with e = 1, or what the columns say."""
    rows = np.zeros(1, ROW_DTYPE)
    rows["c_in"], rows["clip"], rows["guidance"], rows["flags"], rows["e"] = 1, np.inf, 1, EVAL, 1
    for name, value in columns.items():
        rows[name] = value
    return StepTable(rows, np.zeros(1), np.zeros(1), "one row")


def linear_plan(weights: list[Any], **columns: Any) -> Plan:
    """one_row with F the product of the weights; no bias."""
    layers = tuple(LinearOp(i, i + 1, np.asarray(w, np.float32)) for i, w in enumerate(weights))
    return build_plan(one_row(**columns), TileProgram(layers[0].weight.shape[1], layers, len(layers), 1))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("n", [1, 5, 16, 33, 48])
def test_order_of_the_sum(isa: str, n: int) -> None:
    """Bias, then step table, then class table, then the products with k ascending, one fma for each."""
    big = 2.0**25  # big + 1 is big in float32
    products = np.zeros((20, 3), np.float32)
    bias, step, label = np.zeros(20, np.float32), np.zeros((1, 20), np.float32), np.zeros((1, 20), np.float32)
    products[0] = big, -big, 1  # 1: the first two cancel before the last is added
    products[1], bias[1] = (big, -big, 0), 1  # 0: the bias is there first and lost
    bias[2], step[0, 2], label[0, 2] = big, -big, 1  # 1
    bias[3], step[0, 3], label[0, 3] = 1, big, -big  # 0
    products[4], label[0, 4] = (big, -big, 0), 1  # 0
    products[5], bias[5] = (1 + 2.0**-12, 0, 0), -(1 + 2.0**-11)  # 2^-24 with x = 1 + 2^-12: one rounding
    pick = np.zeros((3, 20), np.float32)
    for row, columns in zip(pick, ((0, 1), (2, 3, 4), (5,)), strict=True):
        row[list(columns)] = 1
    layers = (LinearOp(0, 1, products, bias, step, label), LinearOp(1, 2, pick))
    plan = build_plan(one_row(), TileProgram(3, layers, 2, 1, n_classes=1))
    x_T = np.tile(np.array([1 + 2.0**-12, 1, 1], np.float32), (n, 1))
    x_T[:, 0] = 1
    for labels in (0, np.zeros(n)):
        got = run(plan, n, isa=isa, labels=labels, x_T=x_T)
        assert got[:, :2].tolist() == [[1, 1]] * n
    x_T[:, 0] = 1 + 2.0**-12
    assert run(plan, n, isa=isa, labels=0, x_T=x_T)[:, 2].tolist() == [2.0**-24] * n


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("threads", [1, 2])
def test_overflow_is_counted_and_stays_in_its_sample(isa: str, threads: int) -> None:
    """Finite weights whose products overflow: infinity where the sum is, NaN where infinities cancel."""
    up = np.zeros((40, 2), np.float32)
    up[0], up[1] = [3e38, 0], [3e38, 0]
    down = np.zeros((2, 40), np.float32)
    down[:, :2] = [[0.5, 0.5], [1, -1]]
    plan = linear_plan([up, down])
    for n in (1, 5, 40, 2000):
        x_T = np.random.default_rng(n).standard_normal((n, 2), np.float32)
        over = np.abs(x_T[:, 0].astype(np.float64)) * np.float32(3e38) > np.finfo(np.float32).max
        bad = (int(over.sum()), np.flatnonzero(over)[:8].tolist())
        got = run(plan, n, isa=isa, threads=threads, x_T=x_T, bad=bad)
        assert np.array_equal(got[over, 0], np.copysign(np.float32(np.inf), x_T[over, 0]))
        assert np.isnan(got[over, 1]).all()
        assert np.array_equal(got[~over, 0], x_T[~over, 0] * np.float32(3e38))
        assert (got[~over, 1] == 0).all()


@pytest.mark.parametrize("isa", ISAS)
def test_nan_and_infinity_in_a_clamp(isa: str) -> None:
    """A clamp takes an infinite prediction to its limit and lets NaN through."""
    up = np.full((2, 1), 3e38, np.float32)
    x_T = np.array([[2], [-2], [0.0], [1e-38]], np.float32)
    got = run(linear_plan([up[:1]], p_F=1, b=1, e=0, clip=2), 4, isa=isa, x_T=x_T)
    assert got[:, 0].tolist() == [2, -2, 0, 2]
    got = run(linear_plan([up, [[1, -1]]], p_F=1, b=1, e=0, clip=2), 4, isa=isa, x_T=x_T, bad=(2, [0, 1]))
    assert np.isnan(got[:2]).all()
    assert (got[2:] == 0).all()


@pytest.mark.parametrize("isa", ISAS)
def test_a_term_that_no_row_has_is_left_out(isa: str) -> None:
    """a = 0 in every row: x is not multiplied by 0, which would make NaN of an infinity."""
    x_T = np.array([[np.inf], [-np.inf], [3]], np.float32)
    plan = linear_plan([np.eye(1)], p_x=1, b=1, e=0, clip=2)
    want = reference.run(plan, 3, x_T=torch.from_numpy(x_T)).numpy()
    assert want[:, 0].tolist() == [2, -2, 2]
    assert np.array_equal(run(plan, 3, isa=isa, x_T=x_T), want)


@pytest.mark.parametrize("isa", ISAS)
def test_subnormals_and_signed_zeros(isa: str) -> None:
    """No flush to zero; the first term of a row is a product, which keeps its sign, not a sum with 0."""
    x_T = np.array([[0.0], [-0.0], [1e-45], [-1e-45], [1e-39]], np.float32)
    for n in (1, 5):
        got = run(linear_plan([np.eye(1)], a=1, e=0), n, isa=isa, x_T=x_T[:n].copy())
        assert same_bits(got, x_T[:n])
        got = run(linear_plan([[[2]]]), n, isa=isa, x_T=x_T[:n].copy())
        assert np.array_equal(got, 2 * x_T[:n])


@pytest.mark.parametrize("isa", ISAS)
def test_zero_of_a_class_table(isa: str) -> None:
    """A layer with no more than a class table starts from 0 + its entry: for an entry of -0 that is 0."""
    tables = np.full((2, 16), -0.0, np.float32)
    layer = LinearOp(0, 1, np.zeros((16, 16), np.float32), class_table=tables)
    plan = build_plan(one_row(a=1), TileProgram(16, (layer,), 1, 1, n_classes=2))
    x_T = np.full((16, 16), -0.0, np.float32)
    want = reference.run(plan, 16, labels=0, x_T=torch.from_numpy(x_T)).numpy()
    for n in (1, 16):
        for labels in (0, np.zeros(n)):
            assert same_bits(run(plan, n, isa=isa, labels=labels, x_T=x_T[:n].copy()), want[:n])


# ---- what run refuses


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"n": -1}, "n:"),
        ({"n": (1 << 48) + 1}, "n:"),
        ({"start": 1 << 48}, "n:"),
        ({"out": 0}, "out:"),
        ({"threads": 0}, "threads:"),
        ({"threads": 4097}, "threads:"),
        ({"label": -1}, "labels:"),
        ({"label": 5}, "labels:"),
    ],
)
def test_bad_arguments(wrong: dict[str, Any], message: str) -> None:
    program = _cpu.Program(PLANS["classes"].to_bytes())
    out = np.full(30, GUARD)
    good = {"out": address(out), "n": 4, "start": 0, "seed": 0, "threads": 1}
    with pytest.raises(ValueError, match=message):
        program.run(**{**good, **wrong})
    assert (out == GUARD).all()


def test_bad_labels() -> None:
    out = np.full(30, GUARD)
    for name, labels in (
        ("classes", [0, 5]),
        ("classes", [-1, 0]),
        ("guided", [1, 2**30]),
        ("small", [0, 0]),
    ):
        y = np.array(labels, np.int32)
        with pytest.raises(ValueError, match="labels:"):
            _cpu.Program(PLANS[name].to_bytes()).run(address(out), 2, 0, 0, 1, labels=address(y))
    assert (out == GUARD).all()


def test_no_samples() -> None:
    assert _cpu.Program(PLANS["small"].to_bytes()).run(0, 0, 5, 0, 2) == (0, [])
