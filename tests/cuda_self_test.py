"""The kernels of tests/cuda_emulator/self_test*.cu, called on NumPy arrays; for sanitized processes too.

Each takes the name of a bug to contain, "" for none, and returns what it computed.
"""

from __future__ import annotations

import ctypes
from pathlib import Path
from typing import Any

import numpy as np

Array = np.ndarray[Any, Any]
ROWS = 5


class SelfTest:
    def __init__(self, path: Path | str) -> None:
        self.path = path
        self.library = ctypes.CDLL(str(path))
        self.out: Array = np.empty(0)  # what the last kernel wrote, also where it failed

    def call(self, name: str, *arguments: Array | int | str) -> None:
        """Raises RuntimeError with the message of the C++ exception."""
        function = getattr(self.library, f"test_{name}")
        function.restype = ctypes.c_char_p
        converted: list[Any] = []
        for value in arguments:
            if isinstance(value, np.ndarray):
                assert value.flags.c_contiguous
                converted.append(ctypes.c_void_p(value.ctypes.data))
            else:
                converted.append(value.encode() if isinstance(value, str) else value)
        message = function(*converted)
        if message is not None:
            raise RuntimeError(message.decode())

    def center_rows(self, x: Array, bug: str = "") -> Array:
        self.out = x.copy()
        self.call("center_rows", self.out, len(x), bug)
        return self.out

    def warp_operations(self, values: Array, bug: str = "") -> Array:
        self.out = np.zeros((16, 64), np.int32)
        self.call("warp_operations", values, self.out, bug)
        return self.out

    def exchange(self, values: Array, bug: str = "") -> Array:
        self.out = np.empty(64, np.float32)
        self.call("exchange", values, self.out, bug)
        return self.out

    def hand_over(self, rows: Array, bug: str = "") -> Array:
        self.out = np.empty_like(rows)
        self.call("hand_over", rows, self.out, len(rows), bug)
        return self.out

    def copy(self, pieces: Array, bug: str = "") -> Array:
        self.out = np.empty_like(pieces)
        self.call("copy", pieces, self.out, len(pieces), bug)
        return self.out

    def touch(self, values: Array, bug: str = "") -> Array:
        self.out = np.empty_like(values)
        self.call("touch", values, self.out, len(values), bug)
        return self.out

    def convert(self, f16: bool, values: Array) -> tuple[Array, Array, Array, Array]:
        """Pairs of values packed and unpacked; the first of each pair converted alone, there and back."""
        n = len(values) // 2
        packed, unpacked = np.empty(n, np.uint32), np.empty(2 * n, np.float32)
        halves, singles = np.empty(n, np.uint16), np.empty(n, np.float32)
        self.call("convert", f16, values, packed, unpacked, halves, singles, n)
        return packed, unpacked, halves, singles

    def approximate(self, values: Array) -> tuple[Array, Array, Array]:
        results = tuple(np.empty_like(values) for _ in range(3))
        self.call("approximate", values, *results, len(values))
        return results[0], results[1], results[2]

    def mma(self, f16: bool, left: Array, right: Array, c: Array, bug: str = "") -> Array:
        self.out = np.empty_like(c)
        self.call("mma", f16, left, right, c, self.out, bug)
        return self.out

    def ldmatrix(self, transposed: bool, rows: Array, bug: str = "") -> Array:
        self.out = np.empty((32, 4), np.uint32)
        self.call("ldmatrix", transposed, rows, self.out, bug)
        return self.out

    def wgmma(self, f16: bool, transposed: bool, left: Array, right: Array, d: Array, accumulate: bool = True,
              bug: str = "") -> Array:  # fmt: skip
        self.out = d.copy()
        image = core_matrices(right, transposed)
        self.call("wgmma", f16, transposed, len(right), left, image, self.out, accumulate, bug)
        return self.out

    def wgmma_pipeline(self, left: Array, right: Array) -> Array:
        self.out = np.empty((2, 64, 64), np.float32)
        self.call("wgmma_pipeline", left, core_matrices(right, False), self.out)
        return self.out


def core_matrices(right: Array, transposed: bool) -> Array:
    """The image in shared memory of a right operand (n, k): 8 x 8 matrices, those of the same k together.

    Inside each k is fastest, or n where transposed.
    """
    n, k = right.shape
    blocks = right.reshape(n // 8, 8, k // 8, 8)
    return np.ascontiguousarray(blocks.transpose(2, 0, 3, 1) if transposed else blocks.transpose(2, 0, 1, 3))


def half(f16: bool, values: Array) -> Array:
    """Bit patterns of 16-bit values, rounded to nearest even; for values that are no NaN."""
    if f16:
        with np.errstate(over="ignore"):
            return values.astype(np.float16).view(np.uint16)
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def single(f16: bool, bits: Array) -> Array:
    """The float32 values of 16-bit patterns."""
    if f16:
        return bits.view(np.float16).astype(np.float32)
    return (bits.astype(np.uint32) << 16).view(np.float32)


def inputs(seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    return {
        "rows": rng.normal(size=(ROWS, 128)).astype(np.float32),
        "integers": rng.integers(-999, 999, 64).astype(np.int32),
        "values": rng.normal(size=64).astype(np.float32),
        "messages": rng.normal(size=(ROWS, 32)).astype(np.float32),
        "pieces": rng.integers(0, 2**31, (150, 4)).astype(np.uint32),
        "left": rng.normal(size=(64, 32)).astype(np.float32),
        "right": rng.normal(size=(64, 32)).astype(np.float32),
    }


def run(path: Path | str, name: str, bug: str = "") -> SelfTest:
    """Runs one kernel, with a bug or without."""
    test, given = SelfTest(path), inputs()
    left, right = half(False, given["left"]), half(False, given["right"])
    corner = np.ascontiguousarray(left[:16, :16]), np.ascontiguousarray(right[:8, :16])
    calls = {
        "center_rows": lambda: test.center_rows(given["rows"], bug),
        "warp_operations": lambda: test.warp_operations(given["integers"], bug),
        "exchange": lambda: test.exchange(given["values"], bug),
        "hand_over": lambda: test.hand_over(given["messages"], bug),
        "copy": lambda: test.copy(given["pieces"], bug),
        "touch": lambda: test.touch(given["values"], bug),
        "mma": lambda: test.mma(False, *corner, np.zeros((16, 8), np.float32), bug),
        "ldmatrix": lambda: test.ldmatrix(False, np.ascontiguousarray(left[:32, :8]), bug),
        "wgmma": lambda: test.wgmma(False, False, left, right, np.zeros((64, 64), np.float32), True, bug),
    }
    calls[name]()
    return test
