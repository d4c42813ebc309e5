"""The chain kernels for CUDA, run by the emulator: the general path has the CPU's bits on every plan."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conditional_nets import FilmPolicy, Policy, T, made
from cuda_build import emulated
from cuda_chains import LIMITS, Arrays, assert_cpu_bits, cuda_chain, labels_of, normals, program
from graphs import random_graph_plan
from nets import random_plan, statistical_plan, with_rows
from test_chain import check_rule, same_bits, stream

import diffusion_fast as df
from diffusion_fast import reference
from diffusion_fast.plan import Plan

# ---- the general path: the bits of the CPU


@pytest.mark.parametrize("seed", range(40))
def test_every_operation(seed: int) -> None:
    classes = 3 * (seed % 2)
    branches = 1 + (classes > 0 and seed % 4 == 1)
    plan = random_graph_plan(seed, 1 + seed % 9, 3 + seed % 7, n_classes=classes, branches=branches)
    n = (1, 31, 64, 67)[seed % 4]
    assert_cpu_bits(plan, n, seed=seed, **labels_of(plan, n))


PLANS: dict[str, Plan] = {
    "one dimension": random_plan(0, 1, (16, 16), activation="relu"),
    "two dimensions": random_plan(1, 2, (5, 3)),
    "mixed": random_plan(2, 3, (33, 64, 17)),
    "wide": random_plan(3, 4, (130, 257, 3), n_rows=3),
    "large dim": random_plan(4, 90, (20,), n_rows=3),
    "three quads": random_plan(5, 12, (40, 40)),
    "deep": random_plan(7, 3, (9,) * 15),
    "classes": random_plan(8, 3, (40, 9), n_classes=5),
    "guided": random_plan(9, 2, (40, 9), n_classes=5, branches=2),
}


SIZES = {"64 samples": 2, "32 samples": 1, "global memory": 0}  # by what the reason says: vectors of 32


def shared_bytes(plan: Plan, vectors: int) -> int:
    """Room for a workspace of 32 vectors samples, and no more."""
    return 128 + program(plan, shared_bytes=0).scratch_bytes(1) // 2 * vectors if vectors else 0


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("size", SIZES)
def test_shapes(name: str, size: str) -> None:
    """Every size of tile and both places of the workspace; whole and partly filled tiles."""
    plan = PLANS[name]
    shared = shared_bytes(plan, SIZES[size])
    assert size in program(plan, shared_bytes=shared).reason
    for n in (1, 70):
        start = 2**32 - 30
        assert_cpu_bits(plan, n, seed=3, start=start, shared_bytes=shared, **labels_of(plan, n))


def test_any_split_start_and_grid() -> None:
    for name in ("two dimensions", "guided"):
        plan, n = PLANS[name], 150
        y = labels_of(plan, n)
        whole = cuda_chain(plan, n, seed=7, start=2**48 - n, **y)
        for blocks in (1, 2):
            assert same_bits(cuda_chain(plan, n, seed=7, start=2**48 - n, max_blocks=blocks, **y), whole)
        for size in (1, 33, 149):
            parts = []
            for at in range(0, n, size):
                m = min(size, n - at)
                part = {k: v[at : at + m] for k, v in y.items()}
                parts.append(cuda_chain(plan, m, seed=7, start=2**48 - n + at, **part))
            assert same_bits(np.vstack(parts), whole)


@pytest.mark.parametrize("seed", range(12))
def test_thresholds_rescale_and_guidance(seed: int) -> None:
    """Rows with statistics of each sample, and scales of each sample's own."""
    plan = statistical_plan(seed, 4)
    n = 50
    call = labels_of(plan, n)
    if seed % 3 == 0:
        call["guidance"] = np.random.default_rng(seed).uniform(0, 3, n).astype(np.float32)
    assert_cpu_bits(plan, n, seed=seed, **call)


@pytest.mark.parametrize("name", ["one dimension", "two dimensions", "three quads", "guided"])
def test_given_noise_start_and_trajectory(name: str) -> None:
    plan, n = PLANS[name], 67
    y = labels_of(plan, n)
    for given in (
        {"x_T": normals(1, n, plan.dim)},
        {"noise": normals(2, len(plan.rows), n, plan.dim)},
        {"x_T": normals(1, n, plan.dim), "noise": normals(2, len(plan.rows), n, plan.dim)},
    ):
        assert_cpu_bits(plan, n, trajectory=True, **given, **y)
    path = cuda_chain(plan, n, trajectory=True, seed=4, **y)
    assert same_bits(path[-1], cuda_chain(plan, n, seed=4, **y))


@pytest.mark.parametrize("clean", [False, True])
@pytest.mark.parametrize("dim", [1, 2, 9])
def test_fixed_coordinates(dim: int, clean: bool) -> None:
    plan, n = random_plan(dim, dim, (12,)), 67
    plan = with_rows(plan, signal=normals(5, len(plan.rows)), noise=normals(6, len(plan.rows)))
    mask = np.arange(dim) % 3 == 0
    for rows in (1, n):
        call = {"mask": mask.astype(np.uint8), "fixed": normals(7, rows, dim), "clean": clean}
        assert_cpu_bits(plan, n, seed=2, start=11, trajectory=True, **call)


@pytest.mark.parametrize("name", ["one row", "a row each", "guided"])
def test_context(name: str) -> None:
    """A prologue that runs once for a chain, and of a guided plan the null context beside it."""
    how: Arrays = {"null_context": 0.25, "guidance_scale": 2.5} if name == "guided" else {}
    schedule = df.NoiseSchedule.linear(T, beta_start=1e-2, beta_end=0.4)
    sampler = df.Sampler(made(Policy), schedule, shape=6, context_shape=17, backend="native", **how)
    n, plan = 67, sampler.plan
    assert plan is not None and plan.n_prologue and plan.branches == 1 + (name == "guided")
    assert_cpu_bits(plan, n, context=normals(3, 1 if name == "one row" else n, 17))


def test_step_and_class_that_do_not_add_up() -> None:
    """FiLM: a joint table, labels each and one for all."""
    sampler = df.Sampler(
        made(FilmPolicy),
        df.NoiseSchedule.linear(T, beta_start=1e-2, beta_end=0.4),
        **{"shape": 3, "n_classes": 3, "context_shape": {"obs": (5, 1), "goal": 2}, "backend": "native"},
    )
    plan, n = sampler.plan, 40
    assert plan is not None
    for y in (labels_of(plan, n), {"labels": 2}):
        assert_cpu_bits(plan, n, context=normals(3, n, 7), **y)


@pytest.mark.parametrize("name", ["mixed", "wide", "guided"])
def test_the_rule_beside_float64(name: str) -> None:
    plan, n = PLANS[name], 300
    y = labels_of(plan, n)
    given = {k: torch.from_numpy(v) for k, v in stream(plan, n).items()}
    classes = {k: torch.from_numpy(v).long() for k, v in y.items()}
    plain, exact = (
        reference.run(plan, n, dtype=dtype, **given, **classes) for dtype in (torch.float32, torch.float64)
    )
    check_rule(cuda_chain(plan, n, **y), plain, exact)


# ---- what is refused, and what is not undefined


def test_a_label_out_of_range_makes_its_sample_nan() -> None:
    plan, n = PLANS["classes"], 40
    labels = np.zeros(n, np.int32)
    whole = cuda_chain(plan, n, labels=labels)
    labels[[3, 33]] = 5, -1
    got = cuda_chain(plan, n, labels=labels)
    assert np.isnan(got[[3, 33]]).all()
    others = np.delete(np.arange(n), [3, 33])
    assert same_bits(got[others], whole[others])


def test_a_seed_in_device_memory() -> None:
    plan = PLANS["two dimensions"]
    seed = np.array([2**63 + 5], np.uint64)
    want = cuda_chain(plan, 9, seed=2**63 + 5)
    assert same_bits(cuda_chain(plan, 9, seed=1, device_seed=seed), want)


BAD_CALLS: dict[str, tuple[Arrays, str]] = {
    "n": ({"n": -1}, "n: start"),
    "start": ({"start": 2**48}, "n: start"),
    "no image": ({"image": 0}, "image: a null"),
    "misaligned image": ({"image": 24}, "image: .*misaligned"),
    "no out": ({"out": 0}, "out: a null"),
    "scratch": ({"scratch": 64}, "scratch: given without need"),
    "misaligned": ({"x_T": 2}, "x_T: misaligned"),
    "guidance": ({"guidance": 16}, "guidance: the plan has one branch"),
    "context": ({"context": 16}, "context: given without need"),
    "labels": ({"labels": 16}, "labels: the plan has no classes"),
    "mask alone": ({"fixed_mask": 16}, "fixed: mask and values"),
    "stride": ({"fixed_stride": 5}, "fixed: a stride"),
    "blocks": ({"max_blocks": -1}, "max_blocks"),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_bad_calls(name: str) -> None:
    change, message = BAD_CALLS[name]
    call = {"image": 16, "scratch": 0, "out": 16, "n": 4, "start": 0, "seed": 0, "stream": 0, "device": 0}
    with pytest.raises(ValueError, match=message):
        program(PLANS["mixed"]).run(**(call | change))


def test_bad_programs() -> None:
    plan = PLANS["mixed"]
    with pytest.raises(ValueError, match=r"precision: given: 'int8'; accepted: 'float32'"):
        program(plan, "int8")
    with pytest.raises(ValueError, match=r"compute capability is 7\.5; accepted: 8\.0"):
        program(plan, capability=75)
    with pytest.raises(ValueError, match="plan: "):
        emulated().Program(plan.to_bytes()[:-4], "float32", **LIMITS)
