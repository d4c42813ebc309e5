"""The noise stream, version 1: normals as a pure function of (seed, sample, step, element).

Philox4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011) with key = seed and
counter = (quad, step word, sample[31:0], sample[47:32] | substream << 16); each call gives elements
4 quad .. 4 quad + 3 of one sample through two Box-Muller transforms. The step word is the step index plus a
4-bit purpose on top; for purpose "step" in one and two dimensions one call serves four or two consecutive
steps.

`normal` is the C++ kernel; `normal_ref` is its twin in NumPy, equal to the last bit.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from diffusion_fast import _checks, _cpu, _tensors, cuda, threads

VERSION = 1  # of the stream: another one gives other samples
PURPOSES = {"step": 0, "initial": 1, "forward": 3}
MAX_STEP = (1 << 28) - 1

F32 = npt.NDArray[np.float32]
U32 = npt.NDArray[np.uint32]


def normal(
    n: int,
    dim: int,
    *,
    seed: int | torch.Generator,
    step: int,
    purpose: str = "step",
    start: int = 0,
    substream: int = 0,
    device: torch.device | str | None = None,
) -> torch.Tensor:
    """Standard normals of samples start .. start + n - 1 at one step: an (n, dim) float32 tensor.

    seed: int in [0, 2^64), or a torch.Generator from which one is drawn. step: position of the row in its
    table, below 2^28. purpose: "step", "initial" (x_T) or "forward" (noising of data). start + n <= 2^48.
    substream: 16 bits, for methods that draw several candidates. device: the CPU (None), or a CUDA device,
    where the same bits are drawn on torch's current stream.

    Raises ValueError or TypeError naming the argument.

    >>> z = normal(4, 3, seed=42, step=0)
    >>> torch.equal(normal(2, 3, seed=42, step=0, start=2), z[2:])
    True
    """
    if torch.compiler.is_compiling():
        from diffusion_fast import compile_ops

        if device is not None:
            raise _checks.bad_value("device", device, "None, in a compiled function")
        return compile_ops.normal(
            n, dim, seed=seed, step=step, purpose=purpose, start=start, substream=substream
        )
    count, first, key, index, use = _check(n, dim, seed, step, purpose, start, substream)
    place = _tensors.CPU if device is None else cuda.device_of("device", device)
    if place.type == "cuda":
        out = torch.empty((count, dim), dtype=torch.float32, device=place)
        cuda.normal(out, first, key, index, use, substream)
        return out
    out = _tensors.allocate((count, dim))
    _cpu.normal(out.data_ptr(), count, dim, first, key, index, use, substream, threads.resolve(None))
    return out


def normal_ref(
    n: int,
    dim: int,
    *,
    seed: int | torch.Generator,
    step: int,
    purpose: str = "step",
    start: int = 0,
    substream: int = 0,
) -> torch.Tensor:
    """The twin of `normal` in NumPy: the same arguments, the same bits."""
    count, first, key, index, use = _check(n, dim, seed, step, purpose, start, substream)
    share = {1: 4, 2: 2}.get(dim, 1) if purpose == "step" else 1
    word = np.uint32(index // share | use << 28)
    quads = -(-dim // 4)
    sample = (np.arange(count, dtype=np.uint64) + np.uint64(first))[:, None]
    counter = (
        np.broadcast_to(np.arange(quads, dtype=np.uint32), (count, quads)),
        np.broadcast_to(word, (count, quads)),
        np.broadcast_to(sample.astype(np.uint32), (count, quads)),
        np.broadcast_to(
            (sample >> np.uint64(32)).astype(np.uint32) | np.uint32(substream << 16), (count, quads)
        ),
    )
    r0, r1, r2, r3 = philox4x32_10(counter, key & 0xFFFFFFFF, key >> 32)
    z = np.stack([*box_muller(r0, r1), *box_muller(r2, r3)], axis=-1).reshape(count, 4 * quads)
    component = index % share * dim
    return torch.from_numpy(np.ascontiguousarray(z[:, component : component + dim]))


def _check(
    n: Any, dim: Any, seed: Any, step: Any, purpose: Any, start: Any, substream: Any
) -> tuple[int, int, int, int, int]:
    count, first = _checks.sample_range(n, start)
    _checks.integer("dim", dim, 1, min(1 << 32, (1 << 60) // max(count, 1)))
    _checks.integer("substream", substream, 0, (1 << 16) - 1)
    index = _checks.integer("step", step, 0, MAX_STEP)
    return (
        count,
        first,
        _checks.seed("seed", seed),
        index,
        PURPOSES[_checks.choice("purpose", purpose, PURPOSES)],
    )


def philox4x32_10(counter: tuple[U32, U32, U32, U32], key_lo: int, key_hi: int) -> tuple[U32, U32, U32, U32]:
    """Ten rounds of Philox4x32 on four arrays of counter words."""
    c0, c1, c2, c3 = counter
    low = np.uint64(0xFFFFFFFF)
    for _ in range(10):
        p0 = c0.astype(np.uint64) * np.uint64(0xD2511F53)
        p1 = c2.astype(np.uint64) * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (
            (p1 >> np.uint64(32)).astype(np.uint32) ^ c1 ^ np.uint32(key_lo),
            (p1 & low).astype(np.uint32),
            (p0 >> np.uint64(32)).astype(np.uint32) ^ c3 ^ np.uint32(key_hi),
            (p0 & low).astype(np.uint32),
        )
        key_lo = (key_lo + 0x9E3779B9) & 0xFFFFFFFF
        key_hi = (key_hi + 0xBB67AE85) & 0xFFFFFFFF
    return c0, c1, c2, c3


def box_muller(a: U32, b: U32) -> tuple[F32, F32]:
    """Two arrays of uniform words -> two arrays of normals; polynomials and bit steps as in csrc/noise.h."""
    # u = (a + 1/2) / 2^32 in (0, 1], u = 2^e (1 + t), l = -2 ln u
    u = _fma(a.astype(np.float32), 2.0**-32, 2.0**-33)
    ix = u.view(np.uint32) + np.uint32(0x3F800000 - 0x3F3504F3)
    e = ((ix >> np.uint32(23)).astype(np.int32) - 127).astype(np.float32)
    t = ((ix & np.uint32(0x007FFFFF)) + np.uint32(0x3F3504F3)).view(np.float32) - np.float32(1.0)
    p = _horner(t, _LOG)
    l = _fma(e, -1.38629436492919921875, np.float32(-2.0) * _fma(p, t * t, t))  # noqa: E741
    r = np.sqrt(np.maximum(l, np.float32(2.0**-60)))
    # angle = quadrant q[31:30] plus a remainder z in [-1, 1) of pi / 4
    q = b + np.uint32(0x20000000)
    z = (b - (q & np.uint32(0xC0000000))).view(np.int32).astype(np.float32) * np.float32(2.0**-29)
    w = z * z
    s = _horner(w, _SIN) * z
    c = _horner(w, _COS)
    swap = (q & np.uint32(0x40000000)) != 0
    sign = np.uint32(0x80000000)
    r_cos = (r.view(np.uint32) ^ ((q + np.uint32(0x40000000)) & sign)).view(np.float32)
    r_sin = (r.view(np.uint32) ^ (q & sign)).view(np.float32)
    return r_cos * np.where(swap, s, c), r_sin * np.where(swap, c, s)


# Highest power first.
_LOG = (
    -0.07644994526465995,
    0.12921948383697276,
    -0.1324271869082755,
    0.14179254662217655,
    -0.16608795737960333,
    0.20002087862519263,
    -0.25001598487095755,
    0.333333242310728,
    -0.4999998816669841,
)
_SIN = (-3.595045227485046e-05, 0.0024900010240756837, -0.0807454325291785, 0.7853981608541724)
_COS = (3.5287616258452394e-06, -0.00032593650043471524, 0.015854323912249568, -0.3084251348911883, 1.0)


def _horner(x: F32, coefficients: tuple[float, ...]) -> F32:
    p: F32 = np.full_like(x, coefficients[0])
    for c in coefficients[1:]:
        p = _fma(p, x, c)
    return p


def _fma(a: F32, b: F32 | float, c: F32 | float) -> F32:
    """float32 a b + c with one rounding.

    The product is exact in float64. The sum is rounded to odd there (Boldo and Melquiond, "Emulation of FMA
    and correctly rounded sums", 2008), which makes the second rounding, to float32, the only one that counts.
    """
    product = a.astype(np.float64) * np.asarray(b, np.float32).astype(np.float64)
    addend = np.asarray(c, np.float32).astype(np.float64)
    total = product + addend
    back = total - product
    error = (product - (total - back)) + (addend - back)
    bits = total.view(np.int64)
    away = np.where((error > 0) == (total > 0), 1, -1)
    bits += np.where((error != 0) & (bits & 1 == 0), away, 0)
    return bits.view(np.float64).astype(np.float32)
