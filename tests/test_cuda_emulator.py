"""The CUDA emulator, or a device, against plain loops; test_cuda_emulator_bugs.py has what it must notice."""

from __future__ import annotations

import ctypes
import shutil
from pathlib import Path

import cuda_build
import numpy as np
import pytest
import torch
from cuda_self_test import CLEAN, DeviceSelfTest, SelfTest, half, inputs, run, single

SCHEDULES = [-1, 0, 1, 2, 3]  # a warp as far as it comes, by index, then random ones
GIVEN = inputs()


@pytest.fixture(scope="module")
def path() -> Path:
    return cuda_build.self_test()


@pytest.fixture(params=[*SCHEDULES, pytest.param("device", marks=pytest.mark.cuda)])
def machine(path: Path, request: pytest.FixtureRequest) -> SelfTest:
    """The emulator, with an order of the threads; or a device, which has to do the same."""
    if request.param == "device":
        arch = "".join(map(str, torch.cuda.get_device_capability()))
        return DeviceSelfTest(cuda_build.device_self_test("90a" if arch == "90" else arch)[0])
    cuda_build.configure(path, schedule=request.param)
    return SelfTest(path)


@pytest.fixture
def hopper(machine: SelfTest) -> SelfTest:
    if not machine.exact and torch.cuda.get_device_capability() != (9, 0):
        pytest.skip("wgmma is of compute capability 9.0 alone")
    return machine


def halves(f16: bool, *shape: int, seed: int = 0) -> np.ndarray:
    return half(f16, np.random.default_rng(seed).normal(size=shape).astype(np.float32))


# ---- collectives


def test_barriers_and_a_butterfly(machine: SelfTest) -> None:
    rows = GIVEN["rows"]
    assert np.allclose(machine.center_rows(rows), rows - rows.mean(1, keepdims=True), atol=1e-6)


def test_operations_of_a_warp(machine: SelfTest) -> None:
    values = GIVEN["integers"]
    out = machine.warp_operations(values)
    for thread in range(64):
        lane, warp = thread % 32, thread // 32
        of = values[warp * 32 :][:32]
        first8, first16 = lane // 8 * 8, lane // 16 * 16
        ballot = sum(1 << i for i in range(32) if of[i] > 0)
        mine = 0xFFFF << first16
        expected = [
            of[of[lane] & 31],
            of[first8 + 5],
            of[lane ^ 3],
            of[lane ^ 8 if lane & 8 else lane],  # the earlier section may be read, the later one not
            of[lane + 7 if lane + 7 < 32 else lane],
            of[lane + 3 if lane + 3 < first16 + 16 else lane],
            of[lane - 7 if lane >= 7 else lane],
            of[lane - 3 if lane - 3 >= first16 else lane],
            np.uint32(ballot).view(np.int32),
            any(of > 900),
            all(of > -1000),
            ballot & mine if lane < 16 else of[lane ^ 1],
            sum(values > 0),
            any(values > 900),
            all(values > -1000),
        ]
        assert out[:15, thread].tolist() == [int(e) for e in expected], thread
        assert abs(out[15, thread] - of[lane ^ 1]) <= 1  # truncated


def test_exchange_in_a_warp(machine: SelfTest) -> None:
    assert np.array_equal(machine.exchange(GIVEN["values"]), GIVEN["values"].reshape(32, 2)[:, ::-1].ravel())


def test_atomics_over_blocks(machine: SelfTest) -> None:
    values = np.random.default_rng(0).integers(-99, 99, 3 * 64).astype(np.int32)
    sums, total = np.array([5, -1000], np.int32), np.zeros(1, np.float32)
    machine.call("atomics", values, sums, total, 3)
    assert sums.tolist() == [5 + values.sum(), values.max()]
    assert total[0] == values.sum()


def test_named_barriers(machine: SelfTest) -> None:
    assert np.array_equal(machine.hand_over(GIVEN["messages"]), GIVEN["messages"][:, ::-1])


def test_copies_in_two_groups(machine: SelfTest) -> None:
    pieces = GIVEN["pieces"]
    middle = len(pieces) // 2
    assert np.array_equal(
        machine.copy(pieces), np.concatenate([pieces[:middle][::-1], pieces[middle:][::-1]])
    )


# ---- the wrappers of csrc/cuda/ptx.h


@pytest.mark.parametrize("f16", [False, True])
def test_16_bit_formats(machine: SelfTest, f16: bool) -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 1 << 32, 20_000, dtype=np.uint64).astype(np.uint32)
    # every 16-bit pattern, what lies half-way to the next, and its neighbours
    value = single(f16, np.arange(1 << 16, dtype=np.uint16)).view(np.uint32)
    tie = np.uint32(1 << (12 if f16 else 15))
    values = np.concatenate([bits, value, value + tie, value + tie + 1, value + tie - 1]).view(np.float32)
    packed, unpacked, alone, back = machine.convert(f16, values)
    expected = np.where(np.isnan(values), np.uint16(0x7FFF), half(f16, values))
    assert np.array_equal(packed.view(np.uint16), expected)
    assert np.array_equal(alone, expected[::2])
    number = ~np.isnan(values)
    assert np.array_equal(unpacked.view(np.uint32)[number], single(f16, expected).view(np.uint32)[number])
    assert np.isnan(unpacked[~number]).all()
    assert np.array_equal(back[number[::2]], single(f16, expected[::2])[number[::2]])


def flushed(values: np.ndarray) -> np.ndarray:
    return np.where(np.abs(values) < 2.0**-126, np.copysign(0, values), values)


def test_approximate_functions(machine: SelfTest) -> None:
    special = [0, -0.0, np.inf, -np.inf, np.nan, 1e-39, -1e-39, 3e38]
    values = np.concatenate([np.linspace(-200, 200, 4001), special]).astype(np.float32)
    x = values.astype(np.float64)
    with np.errstate(all="ignore"):
        exact = np.tanh(x), flushed(np.exp2(flushed(x))), flushed(1 / flushed(x))
        exact_single = [want.astype(np.float32) for want in exact]
    documented = (2.0**-10.9, 2.0**-22, 2.0**-23)  # relative, of the instructions
    for given, want, error in zip(machine.approximate(values), exact_single, documented, strict=True):
        tolerance = 2.0**-23 if machine.exact else error
        assert np.allclose(given, want, rtol=tolerance, atol=0, equal_nan=True)


@pytest.mark.parametrize("f16", [False, True])
def test_mma(machine: SelfTest, f16: bool) -> None:
    left, right = halves(f16, 16, 16), halves(f16, 8, 16, seed=1)
    c = np.random.default_rng(2).normal(size=(16, 8)).astype(np.float32)
    exact = c + single(f16, left).astype(np.float64) @ single(f16, right).astype(np.float64).T
    atol = 0 if machine.exact else 1e-5  # tensor cores cut off
    assert np.allclose(machine.mma(f16, left, right, c), exact.astype(np.float32), rtol=0, atol=atol)


@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix(machine: SelfTest, transposed: bool) -> None:
    rows = np.arange(256, dtype=np.uint16).reshape(32, 8) * 7
    out = machine.ldmatrix(transposed, rows)
    for lane in range(32):
        for matrix in range(4):
            m = rows[8 * matrix :][:8]
            m = m.T if transposed else m
            low, high = m[lane // 4, lane % 4 * 2], m[lane // 4, lane % 4 * 2 + 1]
            assert out[lane, matrix] == int(low) | int(high) << 16


@pytest.mark.parametrize("transposed, n", [(True, 64), *((False, n) for n in (8, 64, 128, 136, 256))])
@pytest.mark.parametrize("f16", [False, True])
def test_wgmma(hopper: SelfTest, f16: bool, n: int, transposed: bool) -> None:
    left, right = halves(f16, 64, 32), halves(f16, n, 32, seed=1)
    d = np.random.default_rng(2).normal(size=(64, n)).astype(np.float32)
    product = single(f16, left).astype(np.float64) @ single(f16, right).astype(np.float64).T
    for start, accumulate in ((d, True), (0 * d, False)):
        out = hopper.wgmma(f16, transposed, left, right, d, accumulate)
        assert np.allclose(out, start + product, rtol=0, atol=4e-6 if hopper.exact else 3e-5)


def test_wgmma_in_two_groups(hopper: SelfTest) -> None:
    left, right = halves(False, 64, 32), halves(False, 64, 32, seed=1)
    out = hopper.wgmma_pipeline(left, right)
    a, b = single(False, left).astype(np.float64), single(False, right).astype(np.float64)
    for k in range(2):
        columns = slice(16 * k, 16 * k + 16)
        exact = a[:, columns] @ b[:, columns].T
        assert np.allclose(out[k], exact, rtol=0, atol=4e-6 if hopper.exact else 3e-5)


# ---- other builds


def test_contexts_of_the_c_library() -> None:
    """The way fibers are switched where the processor is not x86-64."""
    path = cuda_build.self_test(None, "DF_EMULATOR_UCONTEXT")
    for schedule in (0, 1):
        cuda_build.configure(path, schedule=schedule)
        for name in CLEAN:
            assert np.array_equal(run(path, name).out, run(cuda_build.self_test(), name).out)


def test_nvcc_compiles_the_wrappers_as_meant() -> None:
    """For Hopper, with asynchronous products. Without a driver, calls fail with the reason."""
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    path, messages = cuda_build.device_self_test("90a")
    assert messages == ""  # neither warnings nor C7514, "wgmma.mma_async instructions are serialized"
    if not torch.cuda.is_available():
        with pytest.raises(RuntimeError, match=r"^cudaGetDevice: .* \(cudaError\w+\)$"):
            SelfTest(path).call("launch", 1, 64, ctypes.c_size_t(256), 0, GIVEN["values"])


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["80", "86", "89", "100", "120"])
def test_nvcc_compiles_the_wrappers_for(arch: str) -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    assert cuda_build.device_self_test(arch)[1] == ""


# ---- bugs planted in diffusion_fast._cuda


def test_changes_are_made_once_and_elsewhere(tmp_path: Path) -> None:
    name, old = "cuda/device.h", "~DeviceGuard() { cudaSetDevice(before_); }"
    tree = cuda_build.changed_tree(tmp_path, [(name, old, "")])
    original = (cuda_build.CSRC / name).read_text()
    assert (tree / name).read_text() == original.replace(old, "") != original
    assert (tree / "plan.h").stat().st_mtime == (cuda_build.CSRC / "plan.h").stat().st_mtime
    with pytest.raises(ValueError, match=r"occurs 0 times in cuda/device\.h"):
        cuda_build.changed_tree(tmp_path, [(name, "no such text", "")])
