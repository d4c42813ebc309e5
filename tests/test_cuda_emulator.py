"""The CUDA emulator against plain loops, in several orders of the threads; and the bugs it is there for."""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path

import cuda_build
import numpy as np
import pytest
from cuda_self_test import SelfTest, half, inputs, run, single

SCHEDULES = [0, 1, 2, 3]  # by index, then random ones
GIVEN = inputs()
CLEAN = [
    "center_rows",
    "warp_operations",
    "exchange",
    "hand_over",
    "copy",
    "touch",
    "mma",
    "ldmatrix",
    "wgmma",
]


@pytest.fixture(scope="module")
def path() -> Path:
    return cuda_build.self_test()


@pytest.fixture(params=SCHEDULES)
def emulated(path: Path, request: pytest.FixtureRequest) -> SelfTest:
    cuda_build.configure(path, schedule=request.param)
    return SelfTest(path)


def halves(f16: bool, *shape: int, seed: int = 0) -> np.ndarray:
    return half(f16, np.random.default_rng(seed).normal(size=shape).astype(np.float32))


# ---- collectives


def test_barriers_and_a_butterfly(emulated: SelfTest) -> None:
    rows = GIVEN["rows"]
    assert np.allclose(emulated.center_rows(rows), rows - rows.mean(1, keepdims=True), atol=1e-6)


def test_operations_of_a_warp(emulated: SelfTest) -> None:
    values = GIVEN["integers"]
    out = emulated.warp_operations(values)
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


def test_exchange_in_a_warp(emulated: SelfTest) -> None:
    assert np.array_equal(emulated.exchange(GIVEN["values"]), GIVEN["values"].reshape(32, 2)[:, ::-1].ravel())


def test_atomics_over_blocks(emulated: SelfTest) -> None:
    values = np.random.default_rng(0).integers(-99, 99, 3 * 64).astype(np.int32)
    sums, total = np.array([5, -1000], np.int32), np.zeros(1, np.float32)
    emulated.call("atomics", values, sums, total, 3)
    assert sums.tolist() == [5 + values.sum(), values.max()]
    assert total[0] == values.sum()


def test_named_barriers(emulated: SelfTest) -> None:
    assert np.array_equal(emulated.hand_over(GIVEN["messages"]), GIVEN["messages"][:, ::-1])


def test_copies_in_two_groups(emulated: SelfTest) -> None:
    pieces = GIVEN["pieces"]
    middle = len(pieces) // 2
    assert np.array_equal(
        emulated.copy(pieces), np.concatenate([pieces[:middle][::-1], pieces[middle:][::-1]])
    )


# ---- the wrappers of csrc/cuda/ptx.h


@pytest.mark.parametrize("f16", [False, True])
def test_16_bit_formats(path: Path, f16: bool) -> None:
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 1 << 32, 20_000, dtype=np.uint64).astype(np.uint32)
    # every 16-bit pattern, what lies half-way between two, and one more
    grid = np.arange(1 << 16, dtype=np.uint16)
    value = single(f16, grid).view(np.uint32)
    tie = np.uint32(1 << (12 if f16 else 15))
    values = np.concatenate([bits, value, value + tie, value + tie + 1, value + tie - 1]).view(np.float32)
    packed, unpacked, alone, back = SelfTest(path).convert(f16, values)
    expected = np.where(np.isnan(values), np.uint16(0x7FFF), half(f16, values))
    assert np.array_equal(packed.view(np.uint16), expected)
    assert np.array_equal(alone, expected[::2])
    number = ~np.isnan(values)
    assert np.array_equal(unpacked.view(np.uint32)[number], single(f16, expected).view(np.uint32)[number])
    assert np.isnan(unpacked[~number]).all()
    assert np.array_equal(back[number[::2]], single(f16, expected[::2])[number[::2]])


def test_approximate_functions(path: Path) -> None:
    values = np.concatenate([np.linspace(-200, 200, 4001), [0, -0.0, np.inf, -np.inf, np.nan, 1e-39, 3e38]])
    values = values.astype(np.float32)
    tanh, exp2, reciprocal = SelfTest(path).approximate(values)
    with np.errstate(all="ignore"):
        flushed = np.where(np.abs(values) < 2.0**-126, np.copysign(np.float32(0), values), values)
        exact = [f(x.astype(np.float64)) for f, x in ((np.tanh, values), (np.exp2, flushed))]
        exact.append(1 / flushed.astype(np.float64))
        for given, want in zip((tanh, exp2, reciprocal), exact, strict=True):
            want = want.astype(np.float32)
            if given is not tanh:
                want = np.where(np.abs(want) < 2.0**-126, np.copysign(np.float32(0), want), want)
            assert np.allclose(given, want, rtol=2e-7, atol=0, equal_nan=True)


@pytest.mark.parametrize("f16", [False, True])
def test_mma(emulated: SelfTest, f16: bool) -> None:
    left, right = halves(f16, 16, 16), halves(f16, 8, 16, seed=1)
    c = np.random.default_rng(2).normal(size=(16, 8)).astype(np.float32)
    exact = c + single(f16, left).astype(np.float64) @ single(f16, right).astype(np.float64).T
    assert np.array_equal(emulated.mma(f16, left, right, c), exact.astype(np.float32))


@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix(emulated: SelfTest, transposed: bool) -> None:
    rows = np.arange(256, dtype=np.uint16).reshape(32, 8) * 7
    out = emulated.ldmatrix(transposed, rows)
    for lane in range(32):
        for matrix in range(4):
            m = rows[8 * matrix :][:8]
            m = m.T if transposed else m
            low, high = m[lane // 4, lane % 4 * 2], m[lane // 4, lane % 4 * 2 + 1]
            assert out[lane, matrix] == int(low) | int(high) << 16


@pytest.mark.parametrize("n, transposed", [(64, False), (64, True), (128, False), (136, False), (256, False)])
@pytest.mark.parametrize("f16", [False, True])
def test_wgmma(path: Path, f16: bool, n: int, transposed: bool) -> None:
    left, right = halves(f16, 64, 32), halves(f16, n, 32, seed=1)
    d = np.random.default_rng(2).normal(size=(64, n)).astype(np.float32)
    product = single(f16, left).astype(np.float64) @ single(f16, right).astype(np.float64).T
    for schedule in (0, 1):
        cuda_build.configure(path, schedule=schedule)
        accumulated = SelfTest(path).wgmma(f16, transposed, left, right, d)
        assert np.allclose(accumulated, d + product, rtol=0, atol=4e-6)
        assert np.allclose(
            SelfTest(path).wgmma(f16, transposed, left, right, d, accumulate=False),
            product,
            rtol=0,
            atol=4e-6,
        )


def test_wgmma_in_two_groups(emulated: SelfTest) -> None:
    left, right = halves(False, 64, 32), halves(False, 64, 32, seed=1)
    out = emulated.wgmma_pipeline(left, right)
    a, b = single(False, left).astype(np.float64), single(False, right).astype(np.float64)
    for k in range(2):
        columns = slice(16 * k, 16 * k + 16)
        assert np.allclose(out[k], a[:, columns] @ b[:, columns].T, rtol=0, atol=4e-6)


# ---- bugs: an error that says what is wrong, or NaN where nothing was written

ERRORS = [
    ("center_rows", "divergent barrier", r"divergent barrier: at __syncthreads \(self_test_block.cu:\d+\)"),
    ("center_rows", "two barriers", r"divergent barrier: at __syncthreads .* others at __syncthreads"),
    ("center_rows", "early exit", r"thread \(5, 0, 0\): exits while|have exited"),
    ("warp_operations", "divergent warp", r"divergent warp: at __\w+_sync .*, others at __\w+_sync"),
    ("warp_operations", "lane outside mask", r"__shfl_sync .*: the calling lane is not in the mask"),
    ("warp_operations", "shuffle from outside", r"reads from a lane that is not in the mask"),
    ("warp_operations", "exited lane", r"exits while lanes of its warp wait|names lanes that have exited"),
    ("hand_over", "missing handover", r"bar.\w+: arrives twice before others have"),
    ("hand_over", "wrong barrier count", r"bar.\w+: expects \d+ threads, others \d+"),
    ("hand_over", "half a warp at a barrier", r"bar.\w+: arrives twice before others have"),
    ("copy", "missing copy wait", r"exits with cp.async copies that it never waited for"),
    ("copy", "missing copy commit", r"exits with cp.async copies that it never waited for"),
    ("copy", "copy misaligned", r"cp.async: addresses that are no multiple of 16"),
    ("copy", "copy out of range", r"cp.async: the target is outside dynamic shared memory"),
    ("touch", "write out of range", r"block \(0, 0, 0\): wrote outside its dynamic shared memory"),
    ("ldmatrix", "row out of range", r"ldmatrix: a row outside dynamic shared memory"),
    ("wgmma", "wrong stride", r"an address outside dynamic shared memory"),
    ("wgmma", "stride out of range", r"an address outside dynamic shared memory"),
    ("wgmma", "missing proxy fence", r"no fence.proxy.async made visible"),
    ("wgmma", "missing fence", r"no wgmma.fence before the first product"),
    ("wgmma", "missing product wait", r"exits with wgmma that it never waited for"),
    ("wgmma", "operands differ", r"operands differ within the warpgroup"),
]


@pytest.mark.parametrize("schedule", [0, 7])
@pytest.mark.parametrize("name, bug, message", ERRORS)
def test_bugs_are_errors(path: Path, schedule: int, name: str, bug: str, message: str) -> None:
    cuda_build.configure(path, schedule=schedule)
    with pytest.raises(RuntimeError, match=message) as error:
        run(path, name, bug)
    assert "block (0, 0, 0)" in str(error.value)
    assert not np.isnan(run(path, "center_rows").out).any()  # the next launch is not affected


@pytest.mark.parametrize(
    "name, bug",
    [
        ("center_rows", "missing barrier"),
        ("exchange", "missing syncwarp"),
        ("touch", "read unwritten"),
    ],
)
def test_bugs_are_nan(path: Path, name: str, bug: str) -> None:
    cuda_build.configure(path, schedule=0)
    assert np.isnan(run(path, name, bug).out).any()


@pytest.mark.parametrize("bug", ["missing copy wait", "missing copy commit"])
def test_a_copy_before_its_wait_is_nan(path: Path, bug: str) -> None:
    test = SelfTest(path)
    with pytest.raises(RuntimeError):
        test.copy(GIVEN["pieces"], bug)
    assert (test.out[len(test.out) // 2 :] == 0xFFFFFFFF).all()  # NaN


def test_a_product_before_its_wait_is_nan(path: Path) -> None:
    test = SelfTest(path)
    zero = np.zeros((64, 64), np.float32)
    with pytest.raises(RuntimeError):
        test.wgmma(
            False, False, halves(False, 64, 32), halves(False, 64, 32), zero, bug="missing product wait"
        )
    assert np.isnan(test.out).all()


@pytest.mark.parametrize("name", ["mma", "wgmma"])
def test_swapped_fragments_are_wrong(path: Path, name: str) -> None:
    assert np.abs(run(path, name).out - run(path, name, "swapped fragments").out).max() > 1


# ---- what the device would refuse


@pytest.mark.parametrize(
    "grid, block, shared, allowed, name",
    [
        (0, 64, 256, 0, "cudaErrorInvalidConfiguration"),
        (1, 0, 256, 0, "cudaErrorInvalidConfiguration"),
        (1, 1056, 256, 0, "cudaErrorInvalidConfiguration"),
        (1, 64, (48 << 10) + 1, 0, "cudaErrorInvalidValue"),
        (1, 64, 70_001, 70_000, "cudaErrorInvalidValue"),
        (1, 64, 256, (227 << 10) + 1, "cudaErrorInvalidValue"),
    ],
)
def test_refused_launches(path: Path, grid: int, block: int, shared: int, allowed: int, name: str) -> None:
    values = GIVEN["values"].copy()
    with pytest.raises(RuntimeError, match=rf"^(kernel launch|cudaFuncSetAttribute): .* \({name}\)$"):
        SelfTest(path).call("launch", grid, block, ctypes.c_size_t(shared), allowed, values)
    assert np.array_equal(values, GIVEN["values"])
    for size in (227 << 10, 256):  # in the end as at the start
        values[:] = GIVEN["values"]
        SelfTest(path).call("launch", 1, 64, ctypes.c_size_t(size), size, values)
        assert not np.array_equal(values, GIVEN["values"])


@pytest.mark.parametrize(
    "settings, name",
    [
        ({"driver": 0}, "cudaErrorInsufficientDriver"),
        ({"driver": 12080}, "cudaErrorInsufficientDriver"),
        ({"devices": 0}, "cudaErrorNoDevice"),
    ],
)
def test_machines_without_a_device(path: Path, settings: dict[str, int], name: str) -> None:
    values = GIVEN["values"].copy()
    cuda_build.configure(path, **settings)
    try:
        with pytest.raises(RuntimeError, match=rf"^cudaGetDevice: .* \({name}\)$"):
            SelfTest(path).call("launch", 1, 64, ctypes.c_size_t(256), 0, values)
    finally:
        cuda_build.configure(path, driver=13000, devices=1)


def test_an_unknown_setting(path: Path) -> None:
    with pytest.raises(ValueError, match="'speed'"):
        cuda_build.configure(path, speed=1)


# ---- other builds: contexts of the C library, sanitizers, nvcc


def test_contexts_of_the_c_library() -> None:
    """The way fibers are switched where the processor is not x86-64."""
    path = cuda_build.self_test(None, "DF_EMULATOR_UCONTEXT")
    for schedule in (0, 1):
        cuda_build.configure(path, schedule=schedule)
        for name in CLEAN:
            assert np.array_equal(run(path, name).out, run(cuda_build.self_test(), name).out)


SCRIPT = """
import sys
import cuda_build, cuda_self_test
path, schedules, *names = sys.argv[1:]
for schedule in range(int(schedules)):
    cuda_build.configure(path, schedule=schedule)
    for name in names:
        cuda_self_test.run(path, *name.split(":"))
"""


def sanitized(sanitizer: str, schedules: int, *names: str) -> subprocess.CompletedProcess[str]:
    if not cuda_build.runtimes(sanitizer):
        pytest.skip(f"the compiler has no {sanitizer} sanitizer")
    path = cuda_build.self_test(sanitizer)
    return cuda_build.run_sanitized(sanitizer, SCRIPT, str(path), str(schedules), *names)


@pytest.mark.parametrize("sanitizer", ["thread", "address"])
def test_sanitizers_find_nothing_in_good_kernels(sanitizer: str) -> None:
    done = sanitized(sanitizer, 2, *CLEAN)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    "name, bug",
    [
        ("center_rows", "missing barrier"),
        ("center_rows", "missing second barrier"),  # which changes no result
        ("exchange", "missing syncwarp"),
        ("hand_over", "missing handover"),
        ("copy", "missing copy barrier"),
        ("wgmma", "missing copy barrier"),
    ],
)
def test_races_are_found(name: str, bug: str) -> None:
    done = sanitized("thread", 1, f"{name}:{bug}")
    assert done.returncode != 0
    assert "ThreadSanitizer: data race" in done.stderr
    assert f"tests/cuda_emulator/self_test_{'tensor' if name == 'wgmma' else 'block'}.cu" in done.stderr


@pytest.mark.parametrize(
    "bug, message",
    [
        ("write out of range", "AddressSanitizer: use-after-poison"),
        ("global out of range", "AddressSanitizer: heap-buffer-overflow"),
        ("read misaligned", "misaligned address .* for type 'const struct"),
    ],
)
def test_wrong_addresses_are_found(bug: str, message: str) -> None:
    done = sanitized("address", 1, f"touch:{bug}")
    assert done.returncode != 0
    assert re.search(message, done.stderr)
    assert "self_test_block.cu" in done.stderr
