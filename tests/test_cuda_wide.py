"""Chains of wide layers on tensor cores, run by the emulator: each precision beside float64, and to the bit
what does not depend on it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_chains import Arrays, assert_cpu_bits, cuda_chain, labels_of, normals, program
from nets import random_plan, with_rows
from test_chain import same_bits
from test_cuda_mma import PRECISIONS, check_precision, constant_plan

from diffusion_fast.tile_ops import ACTIVATIONS

SOME = ["float32", "bfloat16"]
# One multiprocessor: blocks of as many samples as there is room for, one after the other
LARGE_BLOCKS = {"multiprocessors": 1}

SHAPES: list[tuple[int, tuple[int, ...]]] = [
    (1, (129,)),
    (2, (200, 72)),
    (9, (128, 128)),  # more columns of x than layers of that width have in registers
    (8, (9, 130, 7)),  # layers that have fewer columns than there are warps
    (20, (100, 65, 90)),
    (64, (264, 264)),
    (3, (256, 512, 256)),
    (250, (24, 300)),
]


@pytest.mark.parametrize("precision", SOME)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape: tuple[int, tuple[int, ...]], precision: str) -> None:
    plan = random_plan(sum(shape[1]), *shape, n_rows=3)
    check_precision(plan, 50, precision, path="wide")


def test_layers_of_128_in_float32() -> None:
    check_precision(random_plan(2, 2, (128, 100)), 70, "float32", path="wide")


@pytest.mark.parametrize("precision", SOME)
@pytest.mark.parametrize("shape", [(5, (136, 40)), (64, (264, 30))], ids=str)
def test_full_blocks(shape: tuple[int, tuple[int, ...]], precision: str) -> None:
    """One after the other on a multiprocessor, and the last not quite full."""
    plan = random_plan(1, *shape, n_rows=2, full=False)
    check_precision(plan, 250, precision, path="wide", on=LARGE_BLOCKS)


@pytest.mark.parametrize("precision", SOME)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation: str, precision: str) -> None:
    plan = random_plan(3, 3, (130,), activation=activation, n_rows=3)
    check_precision(plan, 20, precision, path="wide")


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("branches", [1, 2])
@pytest.mark.parametrize("dim", [2, 21])
def test_classes_and_guidance(dim: int, branches: int, precision: str) -> None:
    plan, n = random_plan(dim, dim, (140, 9), n_classes=5, branches=branches, n_rows=4), 40
    check_precision(plan, n, precision, path="wide", **labels_of(plan, n))
    if branches == 2:
        scales = np.random.default_rng(dim).uniform(0, 2, n).astype(np.float32)
        check_precision(plan, n, precision, path="wide", guidance=scales, **labels_of(plan, n))


# ---- what is float32 in every precision, to the bit


@pytest.mark.parametrize("precision", SOME)
@pytest.mark.parametrize("dim", [1, 2, 3, 9, 33, 70])
def test_noise_and_update_have_the_cpus_bits(dim: int, precision: str) -> None:
    """History, clamp, rows without evaluation, the noise of every quad; given noise and start values."""
    plan = constant_plan(dim, dim, (130, 20), n_classes=4)
    on = {"precision": precision, "tensor_cores": True}
    assert program(plan, **on).path == "wide"
    for n, start in ((1, 0), (67, 2**32 - 30)):
        assert_cpu_bits(plan, n, seed=dim, start=start, trajectory=True, **on, **labels_of(plan, n))
    n = 40
    assert_cpu_bits(plan, n, x_T=normals(1, n, dim), **on, labels=3)
    assert_cpu_bits(plan, n, noise=normals(2, 7, n, dim), trajectory=True, **on, labels=0)


@pytest.mark.parametrize("clean", [False, True])
@pytest.mark.parametrize("dim", [2, 21])
def test_fixed_coordinates(dim: int, clean: bool) -> None:
    plan, n = constant_plan(dim, dim, (130,)), 67
    plan = with_rows(plan, signal=normals(5, len(plan.rows)), noise=normals(6, len(plan.rows)))
    mask = (np.arange(dim) % 3 == 0).astype(np.uint8)
    for rows in (1, n):
        call: Arrays = {"mask": mask, "fixed": normals(7, rows, dim), "clean": clean, "trajectory": True}
        assert_cpu_bits(plan, n, seed=2, start=11, tensor_cores=True, **call)


@pytest.mark.parametrize("precision", SOME)
def test_any_split_start_block_and_grid(precision: str) -> None:
    plan, n = random_plan(1, 11, (130, 30), n_classes=5, branches=2, n_rows=3), 70
    on: dict[str, Any] = {"precision": precision, "tensor_cores": True}
    y = labels_of(plan, n)
    whole = cuda_chain(plan, n, seed=7, start=2**48 - n, **y, **on)
    for limits in ({"max_blocks": 1}, LARGE_BLOCKS, {"multiprocessors": 100}, {"shared_bytes": 70_000}):
        assert same_bits(cuda_chain(plan, n, seed=7, start=2**48 - n, **y, **on, **limits), whole)
    for size in (17, 69):
        parts = []
        for at in range(0, n, size):
            m = min(size, n - at)
            part = {k: v[at : at + m] for k, v in y.items()} | on
            parts.append(cuda_chain(plan, m, seed=7, start=2**48 - n + at, **part))
        assert same_bits(np.vstack(parts), whole)


def test_a_label_out_of_range_makes_its_sample_nan() -> None:
    plan, n = random_plan(8, 3, (140, 9), n_classes=5, n_rows=3), 40
    labels = np.zeros(n, np.int32)
    whole = cuda_chain(plan, n, labels=labels, tensor_cores=True)
    labels[[3, 33]] = 5, -1
    got = cuda_chain(plan, n, labels=labels, tensor_cores=True)
    assert np.isnan(got[[3, 33]]).all()
    others = np.delete(np.arange(n), [3, 33])
    assert same_bits(got[others], whole[others])


def test_a_seed_in_device_memory() -> None:
    plan = random_plan(1, 2, (130,), n_rows=3)
    want = cuda_chain(plan, 9, seed=2**63 + 5, tensor_cores=True)
    seed = np.array([2**63 + 5], np.uint64)
    assert same_bits(cuda_chain(plan, 9, seed=1, device_seed=seed, tensor_cores=True), want)


def test_a_block_has_as_many_samples_as_its_memory() -> None:
    """On devices of 227, 163 and 99 KB; said in the reason."""
    plan = random_plan(0, 3, (256, 512, 256), n_rows=2, full=False)
    samples = {}
    for precision in ("float32", "bfloat16"):
        told = [
            program(plan, precision, tensor_cores=True, shared_bytes=b << 10).reason for b in (227, 163, 99)
        ]
        samples[precision] = [int(reason.split(" samples a block")[0].split()[-1]) for reason in told]
        assert all("up to 512 wide" in reason and "weights streamed" in reason for reason in told)
    assert samples["bfloat16"][0] == 2 * samples["float32"][0] == 128
    assert samples["bfloat16"][1] >= 64 and samples["bfloat16"][2] >= 32 and samples["float32"][2] >= 16
