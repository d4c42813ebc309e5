"""Chains of linear layers on Hopper's tensor cores, run by the emulator: each precision beside float64, and
to the bit what does not depend on it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from cuda_chains import Arrays, assert_cpu_bits, cuda_chain, labels_of, normals, program
from nets import random_plan, with_rows
from test_chain import same_bits
from test_cuda_mma import PRECISIONS, check_precision, constant_plan

from diffusion_fast.plan import Plan
from diffusion_fast.tile_ops import ACTIVATIONS

HOPPER = {"capability": 90}
ONE_BLOCK = HOPPER | {"multiprocessors": 1}  # of as many warpgroups as there may be
SOME = ["float32", "bfloat16"]

SHAPES: list[tuple[int, tuple[int, ...]]] = [
    (1, (65,)),
    (2, (128, 100)),
    (8, (3, 66, 7)),
]
COLUMNS: list[tuple[int, tuple[int, ...]]] = [(9, (128, 128)), (64, (70, 1))]  # of 16 bits alone


def check(plan: Plan, n: int, precision: str, on: Any = HOPPER, **call: np.ndarray) -> None:
    check_precision(plan, n, precision, path="wgmma", on=on, **call)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shapes(shape: tuple[int, tuple[int, ...]], precision: str) -> None:
    plan = random_plan(sum(shape[1]), *shape, n_rows=3)
    for n in (1, 70):
        check(plan, n, precision)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("shape", COLUMNS, ids=str)
def test_many_columns_of_16_bits(shape: tuple[int, tuple[int, ...]], precision: str) -> None:
    check(random_plan(sum(shape[1]), *shape, n_rows=3), 70, precision)


@pytest.mark.parametrize("dim, precision", [(5, "float32"), (5, "bfloat16"), (40, "bfloat16")])
def test_full_blocks(dim: int, precision: str) -> None:
    """One after the other on a multiprocessor, and the last not quite full."""
    check(random_plan(1, dim, (72,), n_rows=2, full=False), 330, precision, ONE_BLOCK)


@pytest.mark.parametrize("precision", SOME)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_activations(activation: str, precision: str) -> None:
    check(random_plan(3, 3, (70,), activation=activation, n_rows=3), 20, precision)


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("branches", [1, 2])
@pytest.mark.parametrize("dim", [2, 21])
def test_classes_and_guidance(dim: int, branches: int, precision: str) -> None:
    if (dim, precision) == (21, "float32"):
        dim = 8  # the most in this precision
    plan, n = random_plan(dim, dim, (90,), n_classes=5, branches=branches, n_rows=3), 70
    check(plan, n, precision, **labels_of(plan, n))
    if branches == 2:
        scales = np.random.default_rng(dim).uniform(0, 2, n).astype(np.float32)
        check(plan, n, precision, guidance=scales, **labels_of(plan, n))


def test_what_threads_keep_in_global_memory() -> None:
    """The history and the null branch, where weights leave no room in shared memory."""
    plan, n = random_plan(1, 64, (100, 70), n_classes=3, branches=2, n_rows=3), 150
    small = HOPPER | {"shared_bytes": 90_000}
    p = program(plan, "bfloat16", tensor_cores=True, **small)
    assert "from step to step in global memory" in p.reason
    assert p.scratch_bytes(n) == 3 * 2 * 128 * 8 * (12 + 4) * 4 and p.scratch_bytes(0) == 0
    for on in (small, small | ONE_BLOCK):
        check(plan, n, "bfloat16", on, **labels_of(plan, n))


# ---- what is float32 in every precision, to the bit


@pytest.mark.parametrize(
    "dim, precision", [(d, "float32") for d in (1, 3, 8)] + [(d, "bfloat16") for d in (2, 9, 64)]
)
def test_noise_and_update_have_the_cpus_bits(dim: int, precision: str) -> None:
    """History, clamp, rows without evaluation, the noise of every quad; given noise and start values."""
    plan = constant_plan(dim, dim, (80, 20), n_classes=4)
    on = {"precision": precision, "tensor_cores": True} | HOPPER
    assert program(plan, **on).path == "wgmma"
    for n, start in ((1, 0), (67, 2**32 - 30)):
        assert_cpu_bits(plan, n, seed=dim, start=start, trajectory=True, **on, **labels_of(plan, n))
    n = 40
    assert_cpu_bits(plan, n, x_T=normals(1, n, dim), **on, labels=3)
    assert_cpu_bits(plan, n, noise=normals(2, 7, n, dim), trajectory=True, **on, labels=0)


@pytest.mark.parametrize("clean", [False, True])
@pytest.mark.parametrize("dim", [2, 21])
def test_fixed_coordinates(dim: int, clean: bool) -> None:
    plan, n = constant_plan(dim, dim, (80,)), 67
    plan = with_rows(plan, signal=normals(5, len(plan.rows)), noise=normals(6, len(plan.rows)))
    mask = (np.arange(dim) % 3 == 0).astype(np.uint8)
    for rows in (1, n):
        call: Arrays = {"mask": mask, "fixed": normals(7, rows, dim), "clean": clean, "trajectory": True}
        assert_cpu_bits(plan, n, seed=2, start=11, precision="float16", tensor_cores=True, **HOPPER, **call)


@pytest.mark.parametrize("precision", SOME)
def test_any_split_start_block_and_grid(precision: str) -> None:
    plan, n = random_plan(1, 6, (100,), n_classes=5, branches=2, n_rows=2), 200
    on: dict[str, Any] = {"precision": precision, "tensor_cores": True} | HOPPER
    y = labels_of(plan, n)
    whole = cuda_chain(plan, n, seed=7, start=2**48 - n, **y, **on)
    for limits in ({"max_blocks": 1}, {"multiprocessors": 1}, {"multiprocessors": 100}):
        assert same_bits(cuda_chain(plan, n, seed=7, start=2**48 - n, **y, **on | limits), whole)
    for size in (65, 199):
        parts = []
        for at in range(0, n, size):
            m = min(size, n - at)
            part = {k: v[at : at + m] for k, v in y.items()} | on
            parts.append(cuda_chain(plan, m, seed=7, start=2**48 - n + at, **part))
        assert same_bits(np.vstack(parts), whole)


def test_a_label_out_of_range_makes_its_sample_nan() -> None:
    plan, n = random_plan(8, 3, (100, 9), n_classes=5, n_rows=3), 40
    labels = np.zeros(n, np.int32)
    whole = cuda_chain(plan, n, labels=labels, tensor_cores=True, **HOPPER)
    labels[[3, 33]] = 5, -1
    got = cuda_chain(plan, n, labels=labels, tensor_cores=True, **HOPPER)
    assert np.isnan(got[[3, 33]]).all()
    others = np.delete(np.arange(n), [3, 33])
    assert same_bits(got[others], whole[others])


def test_a_seed_in_device_memory() -> None:
    plan = random_plan(1, 2, (72,), n_rows=3)
    want = cuda_chain(plan, 9, seed=2**63 + 5, tensor_cores=True, **HOPPER)
    seed = np.array([2**63 + 5], np.uint64)
    assert same_bits(cuda_chain(plan, 9, seed=1, device_seed=seed, tensor_cores=True, **HOPPER), want)


# ---- which plans take it, and why others do not


@pytest.mark.parametrize("capability", [80, 86, 89, 100, 120])
def test_other_devices_keep_their_paths(capability: int) -> None:
    for widths, path in (((128,), "mma"), ((264,), "wide")):
        p = program(random_plan(0, 2, widths), "bfloat16", tensor_cores=True, capability=capability)
        assert p.path == path and ("weights streamed, as wgmma is of" in p.reason) is (path == "wide")


OBSTACLES: dict[str, tuple[Plan, str, Arrays, str, str]] = {
    "narrow": (random_plan(0, 2, (64, 64)), "bfloat16", {}, "mma", "64 wide, 32 samples a warp"),
    "narrow layers, many columns": (random_plan(0, 9, (64,)), "float32", {}, "wide", "layers of 65 to 128"),
    "wide": (random_plan(0, 2, (129,)), "bfloat16", {}, "wide", "as wgmma takes layers of 65 to 128"),
    "columns": (random_plan(0, 65, (128,)), "bfloat16", {}, "wide", "as wgmma takes at most 64 columns"),
    "columns in parts": (random_plan(0, 9, (128,)), "float32", {}, "wide", "takes at most 8 columns"),
    "deep": (
        random_plan(0, 2, (128,) * 5),
        "float32",
        {},
        "wide",
        r"resident weights need 2\d{5} bytes of shared memory, of which the device has 232448",
    ),
}


@pytest.mark.parametrize("name", OBSTACLES)
def test_what_takes_another_path(name: str) -> None:
    plan, precision, limits, path, reason = OBSTACLES[name]
    p = program(plan, precision, tensor_cores=True, **HOPPER | limits)
    assert p.path == path
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(p.reason)
