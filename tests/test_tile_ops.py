"""Every tile operation: the kernel beside the interpreter in float64, and one set of bits on every path."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from graphs import random_graph_plan
from test_chain import FAST_ISAS, ISAS, check_plan, run, same_bits

from diffusion_fast import _cpu
from diffusion_fast.plan import Plan


@pytest.fixture(autouse=True)
def one_torch_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("block", range(10))
def test_random_programs_follow_the_rule(block: int) -> None:
    """Ten seeds each."""
    for seed in range(10 * block, 10 * block + 10):
        classes, dim = 3 * (seed % 2), 1 + seed % 9
        plan = random_graph_plan(
            seed, dim, 3 + seed % 7, n_classes=classes, branches=1 + (classes > 0 and seed % 4 == 1)
        )
        labels = np.random.default_rng(seed).integers(0, 3, 3000, dtype=np.int32) if classes else None
        check_plan(plan, 3000, labels=labels)


@pytest.mark.parametrize("seed", range(40))
def test_one_set_of_bits(seed: int) -> None:
    """Few-sample path, tiles of one to three vectors, every instruction set, several threads."""
    classes = 3 * (seed % 2)
    plan = random_graph_plan(
        1000 + seed, 1 + seed % 6, 4 + seed % 8, n_classes=classes, branches=1 + (classes > 0)
    )
    n = 61
    labels = np.random.default_rng(seed).integers(0, 3, n, dtype=np.int32) if classes else None
    whole = run(plan, n, seed=seed, labels=labels)
    assert np.isfinite(whole).all()
    for isa in ISAS:
        program = _cpu.Program(plan.to_bytes(), isa)
        for size in (1, 2, 17, 33, 61) if isa in FAST_ISAS else (1, 61):
            parts = []
            for at in range(0, n, size):
                m = min(size, n - at)
                y = None if labels is None else labels[at : at + m]
                parts.append(run(program, m, seed=seed, start=at, labels=y, dim=plan.dim, threads=2))
            assert same_bits(np.vstack(parts), whole), f"{isa}, {size} at a time"


def test_plans_survive_their_bytes() -> None:
    for seed in range(30):
        plan = random_graph_plan(seed, 4, 12, n_classes=3)
        copy = Plan.from_bytes(plan.to_bytes())
        assert copy == plan and len(copy.operations) == len(plan.ops)
        for a, b in zip(plan.operations, copy.operations, strict=True):
            assert type(a) is type(b) and (a.src if hasattr(a, "src") else 0) == getattr(b, "src", 0)


def test_random_bytes_are_refused_by_both_sides_alike() -> None:
    """A flipped byte in header, rows, widths or ops: either both take the plan or neither does."""
    rng = np.random.default_rng(0)
    refused = 0
    for seed in range(40):
        plan = random_graph_plan(seed, 3, 8, n_classes=3)
        data = plan.to_bytes()
        head = len(data) - 4 * len(plan.blob)
        for _ in range(25):
            broken = bytearray(data)
            broken[rng.integers(8, head)] ^= 1 << int(rng.integers(8))
            taken = []
            for parse in (Plan.from_bytes, _cpu.Program):
                try:
                    parse(bytes(broken))
                    taken.append(True)
                except ValueError:
                    taken.append(False)
            assert taken[0] == taken[1]
            refused += not taken[0]
    assert refused > 300
