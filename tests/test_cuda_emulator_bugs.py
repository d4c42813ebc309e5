"""What the CUDA emulator is there for: each kind of bug is an error, NaN, or a sanitizer's report."""

from __future__ import annotations

import ctypes
import re
import subprocess
from pathlib import Path

import cuda_build
import numpy as np
import pytest
from cuda_self_test import CLEAN, SelfTest, inputs, run

GIVEN = inputs()


@pytest.fixture(scope="module")
def path() -> Path:
    return cuda_build.self_test()


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
    ("hand_over", "half a warp at a barrier", r"bar.sync: only some lanes of a warp arrived"),
    ("hand_over", "lost warp", r"deadlock; thread 32 waits at bar.sync; thread 33 waits at bar.sync;"),
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
    bits = np.zeros((64, 32), np.uint16)
    with pytest.raises(RuntimeError):
        test.wgmma(False, False, bits, bits, np.zeros((64, 64), np.float32), bug="missing product wait")
    assert np.isnan(test.out).all()


@pytest.mark.parametrize("name", ["mma", "wgmma"])
def test_swapped_fragments_are_wrong(path: Path, name: str) -> None:
    good, bad = run(path, name).out, run(path, name, "swapped fragments").out
    assert np.abs(good - bad).max() > 1


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


# ---- sanitizers

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
