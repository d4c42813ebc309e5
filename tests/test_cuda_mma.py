"""Chains on tensor cores, run by the emulator: each precision beside float64, and to the bit what does not
depend on it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from cuda_chains import Arrays, assert_cpu_bits, cpu_chain, cuda_chain, labels_of, normals, program
from nets import random_plan, random_program, random_table, with_rows
from test_chain import check_rule, same_bits, stream

from diffusion_fast import reference
from diffusion_fast.plan import Plan, build_plan
from diffusion_fast.tile_ops import ACTIVATIONS

# The error of a chain's samples in rms, relative to the samples': two roundings of the format.
# The largest over these tests is half of that.
TOLERANCE = {"bfloat16": 2.0**-8, "float16": 2.0**-11}
PRECISIONS = ["float32", *TOLERANCE]


def path_of(dim: int, precision: str) -> str:
    """That of layers up to 64 wide"""
    return "wide" if dim > 8 and precision == "float32" else "mma"


def check_precision(
    plan: Plan, n: int, precision: str, *, path: str = "mma", on: Any = None, **call: np.ndarray
) -> None:
    """on: the emulated module and the device's limits."""
    on = {"precision": precision, "tensor_cores": True} | (on or {})
    assert program(plan, **on).path == path
    got = cuda_chain(plan, n, **on, **call)
    given = {k: torch.from_numpy(v) for k, v in {**stream(plan, n), **call}.items()}
    if "labels" in given:
        given["labels"] = given["labels"].long()
    plain, exact = (reference.run(plan, n, dtype=dtype, **given) for dtype in (torch.float32, torch.float64))
    if precision == "float32":
        return check_rule(got, plain, exact)
    error = np.sqrt(np.mean((got - exact.numpy()) ** 2)) / np.sqrt(np.mean(exact.numpy() ** 2))
    assert error < TOLERANCE[precision]


SHAPES = [
    (1, (16, 16)),
    (2, (64, 64)),
    (3, (1,)),
    (7, (33, 64, 17)),
    (8, (24,) * 7),
    (9, (9,)),
    (31, (20, 30)),
    (33, (64,)),
    (64, (50, 64)),
]
WIDER = [(3, (128, 100)), (8, (65,))]


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape: tuple[int, tuple[int, ...]], precision: str) -> None:
    plan = random_plan(sum(shape[1]), *shape)
    for n in (1, 70):
        check_precision(plan, n, precision, path=path_of(shape[0], precision))


@pytest.mark.parametrize("precision", TOLERANCE)
@pytest.mark.parametrize("shape", WIDER, ids=str)
def test_wider_shapes_of_16_bits(shape: tuple[int, tuple[int, ...]], precision: str) -> None:
    check_precision(random_plan(sum(shape[1]), *shape), 70, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation: str, precision: str) -> None:
    check_precision(random_plan(3, 3, (20, 30), activation=activation), 70, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("branches", [1, 2])
@pytest.mark.parametrize("dim", [2, 11])
def test_classes_and_guidance(dim: int, branches: int, precision: str) -> None:
    plan, n = random_plan(dim, dim, (40, 9), n_classes=5, branches=branches), 70
    path = path_of(dim, precision)
    check_precision(plan, n, precision, path=path, **labels_of(plan, n))
    if branches == 2:
        scales = np.random.default_rng(dim).uniform(0, 2, n).astype(np.float32)
        check_precision(plan, n, precision, path=path, guidance=scales, **labels_of(plan, n))


# ---- what is float32 in every precision, to the bit


def constant_plan(seed: int, dim: int, widths: tuple[int, ...] = (12, 20), **options: int) -> Plan:
    """A network whose last layer has no weights: F is its start value in every precision."""
    table = random_table(seed, 7)
    net = random_program(seed + 1, dim, widths, n_tables=7, **options)
    last = replace(net.ops[-1], weight=np.zeros_like(net.ops[-1].weight))
    return build_plan(table, replace(net, ops=(*net.ops[:-1], last)))


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dim", [1, 2, 3, 4, 5, 8, 9, 32, 50])
def test_noise_and_update_have_the_cpus_bits(dim: int, precision: str) -> None:
    """History, clamp, rows without evaluation, the noise of every quad; given noise and start values."""
    plan = constant_plan(dim, dim, n_classes=4)
    on = {"precision": precision, "tensor_cores": True}
    for n, start in ((1, 0), (67, 2**32 - 30), (130, 2**48 - 130)):
        assert_cpu_bits(plan, n, seed=dim, start=start, trajectory=True, **on, **labels_of(plan, n))
    n = 40
    assert_cpu_bits(plan, n, x_T=normals(1, n, dim), **on, labels=3)
    assert_cpu_bits(plan, n, noise=normals(2, 7, n, dim), trajectory=True, **on, labels=0)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("clean", [False, True])
@pytest.mark.parametrize("dim", [1, 2, 9])
def test_fixed_coordinates(dim: int, clean: bool, precision: str) -> None:
    plan, n = constant_plan(dim, dim), 67
    plan = with_rows(plan, signal=normals(5, len(plan.rows)), noise=normals(6, len(plan.rows)))
    mask = (np.arange(dim) % 3 == 0).astype(np.uint8)
    for rows in (1, n):
        call: Arrays = {"mask": mask, "fixed": normals(7, rows, dim), "clean": clean, "trajectory": True}
        assert_cpu_bits(plan, n, seed=2, start=11, precision=precision, tensor_cores=True, **call)


@pytest.mark.parametrize("precision", PRECISIONS)
def test_any_split_start_and_grid(precision: str) -> None:
    for plan in (random_plan(1, 2, (40, 30), n_classes=5, branches=2), random_plan(2, 20, (30,))):
        n, on = 150, {"precision": precision, "tensor_cores": True}
        y = labels_of(plan, n)
        whole = cuda_chain(plan, n, seed=7, start=2**48 - n, **y, **on)
        assert same_bits(cuda_chain(plan, n, seed=7, start=2**48 - n, max_blocks=1, **y, **on), whole)
        for size in (1, 17, 149):
            parts = []
            for at in range(0, n, size):
                m = min(size, n - at)
                part = {k: v[at : at + m] for k, v in y.items()} | on
                parts.append(cuda_chain(plan, m, seed=7, start=2**48 - n + at, **part))
            assert same_bits(np.vstack(parts), whole)


def test_a_label_out_of_range_makes_its_sample_nan() -> None:
    plan, n = random_plan(8, 3, (40, 9), n_classes=5), 40
    labels = np.zeros(n, np.int32)
    whole = cuda_chain(plan, n, labels=labels, tensor_cores=True)
    labels[[3, 33]] = 5, -1
    got = cuda_chain(plan, n, labels=labels, tensor_cores=True)
    assert np.isnan(got[[3, 33]]).all()
    others = np.delete(np.arange(n), [3, 33])
    assert same_bits(got[others], whole[others])


def test_a_seed_in_device_memory() -> None:
    plan = random_plan(1, 2, (5, 3))
    want = cuda_chain(plan, 9, seed=2**63 + 5, tensor_cores=True)
    seed = np.array([2**63 + 5], np.uint64)
    assert same_bits(cuda_chain(plan, 9, seed=1, device_seed=seed, tensor_cores=True), want)


def test_values_beyond_float16_are_not_hidden() -> None:
    plan, n = random_plan(1, 2, (8,), activation="relu"), 20
    x_T = np.full((n, 2), 1e6, np.float32)
    for precision in ("float32", "float16"):
        assert not np.isfinite(cuda_chain(plan, n, x_T=x_T, precision=precision, tensor_cores=True)).any()
    assert np.isfinite(cuda_chain(plan, n, x_T=x_T, precision="bfloat16", tensor_cores=True)).all()
    assert np.isfinite(cpu_chain(plan, n, x_T=x_T)).all()


OBSTACLES: dict[str, tuple[Plan, Arrays, str]] = {
    "depth": (random_plan(0, 3, (4,) * 8), {}, "it has not 2 to 8 layers"),
    "branching": (random_plan(6, 3, (24, 24), branching=True), {}, "not a chain of linear layers"),
    "quantile": (with_rows(random_plan(0, 3), quantile=0.5, clip=2.0), {}, "a row takes statistics"),
    "memory": (random_plan(0, 3, (64, 64)), {"shared_bytes": 20_000}, r"tile .* \d+ bytes .* has 20000"),
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_what_takes_the_general_path(name: str) -> None:
    """Said with the reason, and in float32 whatever was asked for."""
    plan, limits, reason = OBSTACLES[name]
    p = program(plan, "bfloat16", tensor_cores=True, **limits)
    assert p.path == "general"
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(p.reason)
    n = 5
    assert_cpu_bits(plan, n, precision="bfloat16", tensor_cores=True, **limits)


def test_weights_beyond_float16_take_the_general_path() -> None:
    net = random_program(0, 3, (8,))
    large = replace(net.ops[0], weight=net.ops[0].weight * np.float32(1e6))
    plan = build_plan(random_table(0), replace(net, ops=(large, *net.ops[1:])))
    assert program(plan, "float32", tensor_cores=True).path == "general"
    assert "beyond the range of float16" in program(plan, "float16", tensor_cores=True).reason
    assert program(plan, "bfloat16", tensor_cores=True).path == "mma"
