"""The noise stream, version 1: published vectors, pinned values, the same bits in every implementation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from diffusion_fast import _cpu, noise

ISAS = _cpu.isas()
PURPOSES = list(noise.PURPOSES)
MAX = 1 << 48
DIMS = [1, 2, 3, 4, 5, 7, 8, 9, 12, 13, 16, 17, 31, 63, 64, 65, 129, 256, 1000]

# (counter, key, output): kat_vectors of Random123, the authors' own library
PHILOX = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
]

# (seed, substream, sample, step, quad, Philox words, normals) of the stream's first implementation
STREAM = [
    (0, 0, 0, 0, 0, "6627e8d5 e169c58d bc57ac4c 9b00dbd8", "3f7dbb31 bf6cb6b0 bf1e1b9f bef6d1b2"),
    (42, 0, 0, 0, 0, "9ceaf053 77f5493b 12bf50ad 5742b3d7", "bf785e5c 3e46ace8 bf9e28d3 3ff6433c"),
    (42, 0, 1, 0, 0, "02933769 2051e913 3b68b038 b62c409c", "40082c16 400a53f4 bed108e0 bfd472ca"),
    (42, 0, 0, 1, 0, "42e0b8b3 7dbf5de8 2fe739d4 6aaf03eb", "bfd167b9 3db96ac6 bfcb000b 3f6a2dc6"),
    (42, 0, 0, 0, 1, "fcdb2127 53ba6cfd 838f5a6e 744e06fb", "bd95e033 3e0e7a13 bf8da734 3ea742fe"),
    (42, 1, 0, 0, 0, "610ce4e4 7fd5c499 d49de68f f70f1e6e", "bfb246ee 3bb8ca64 3f184411 be07d7be"),
    (
        *(0x123456789ABCDEF0, 7, 0xABCDEF012345, 999, 63),
        "f28b7bf1 3d393047 b9d0f2c3 1a2dc06d",
        "3cb74efe 3ea7dafe 3f24114e 3ef59996",
    ),
]


def words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def bits(values: Any) -> np.ndarray:
    return np.asarray(values, np.float32).view(np.uint32)


def kernel(n: int, dim: int, isa: str, *, step: int = 0, purpose: str = "step", **options: int) -> np.ndarray:
    """The kernel of one instruction set, without the Python layer; guards against writes beyond the end."""
    guard = np.float32(-12345)
    out = np.full(n * dim + 64, guard)
    _cpu.normal(
        out.ctypes.data,
        n,
        dim,
        options.get("start", 0),
        options.get("seed", 0),
        step,
        noise.PURPOSES[purpose],
        options.get("substream", 0),
        options.get("threads", 1),
        isa,
    )
    assert (out[n * dim :] == guard).all()
    return out[: n * dim].reshape(n, dim)


def by_hand(dim: int, *, seed: int, step: int, purpose: str, sample: int, substream: int) -> list[int]:
    """One sample's bits, the counter put together as the specification says it."""
    share = {1: 4, 2: 2}.get(dim, 1) if purpose == "step" else 1
    word = step // share + noise.PURPOSES[purpose] * 2**28
    values: list[float] = []
    for quad in range((dim + 3) // 4):
        counter = [quad, word, sample % 2**32, sample // 2**32 + substream * 2**16]
        a, b, c, d = _cpu.philox(counter, seed % 2**32, seed // 2**32)
        values += [*_cpu.box_muller(a, b), *_cpu.box_muller(c, d)]
    first = step % share * dim
    return bits(values[first : first + dim]).tolist()


@pytest.mark.parametrize(("counter", "key", "output"), PHILOX)
def test_published_philox_vectors(counter: str, key: str, output: str) -> None:
    assert list(_cpu.philox(words(counter), *words(key))) == words(output)
    arrays = tuple(np.array([word], np.uint32) for word in words(counter))
    assert [int(word[0]) for word in noise.philox4x32_10(arrays, *words(key))] == words(output)


@pytest.mark.parametrize(("seed", "substream", "sample", "step", "quad", "philox", "normals"), STREAM)
def test_pinned_values(
    seed: int, substream: int, sample: int, step: int, quad: int, philox: str, normals: str
) -> None:
    counter = [quad, step, sample % 2**32, sample // 2**32 | substream << 16]
    assert list(_cpu.philox(counter, seed % 2**32, seed >> 32)) == words(philox)
    options = {"seed": seed, "step": step, "start": sample, "substream": substream}
    drawn = [draw(1, 256, **options) for draw in (noise.normal, noise.normal_ref)]
    for row in drawn + [kernel(1, 256, isa, **options) for isa in ISAS]:
        assert bits(row)[0, 4 * quad : 4 * quad + 4].tolist() == words(normals)


def test_one_and_two_dimensions_share_a_call() -> None:
    call = words("bf785e5c 3e46ace8 bf9e28d3 3ff6433c")
    for draw in (noise.normal, noise.normal_ref):
        assert [int(bits(draw(1, 1, seed=42, step=i))[0, 0]) for i in range(4)] == call
        assert [bits(draw(1, 2, seed=42, step=i))[0].tolist() for i in range(2)] == [call[:2], call[2:]]


@pytest.mark.parametrize("purpose", PURPOSES)
@pytest.mark.parametrize(("dim", "share"), [(1, 4), (2, 2), (3, 1), (4, 1)])
def test_packing_rule(dim: int, share: int, purpose: str) -> None:
    """Steps share k .. share k + share - 1 are the components of call k; other purposes do not share."""
    if purpose != "step":
        share = 1
    for step in [*range(9), 1001, 1002, 1003, noise.MAX_STEP - 1, noise.MAX_STEP]:
        word = step // share | noise.PURPOSES[purpose] << 28
        a, b, c, d = _cpu.philox([0, word, 77, 0], 5, 0)
        call = bits([*_cpu.box_muller(a, b), *_cpu.box_muller(c, d)])
        first = step % share * dim
        drawn = noise.normal(1, dim, seed=5, step=step, purpose=purpose, start=77)
        assert bits(drawn)[0].tolist() == call[first : first + dim].tolist()


def test_box_muller_corners() -> None:
    """a = ffffffff is u = 1, whose logarithm is 0; and each octant of the angle, exact to a few ulp."""
    assert bits(_cpu.box_muller(0xFFFFFFFF, 0)).tolist() == [0x30800000, 0]
    edges = [0, 1, 2, 3, 2**24 - 1, 2**24, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 129, 2**32 - 128, 2**32 - 1]
    angles = [(k * 2**29 + d) % 2**32 for k in range(8) for d in (-1, 0, 1)]
    random = np.random.default_rng(0).integers(0, 2**32, (20_000, 2), dtype=np.uint32)
    pairs = np.vstack([np.array([(a, b) for a in edges for b in angles], np.uint32), random])
    reference = np.stack(noise.box_muller(pairs[:, 0].copy(), pairs[:, 1].copy()), axis=1)
    scalar = np.array([_cpu.box_muller(int(a), int(b)) for a, b in pairs], np.float32)
    assert np.array_equal(bits(reference), bits(scalar))
    u = np.float32(pairs[:, 0]).astype(np.float64) / 2**32 + 2.0**-33  # 2^-32 float32(a) is exact
    radius = np.sqrt(np.maximum(-2 * np.log(np.float32(u).astype(np.float64)), 2.0**-60))
    angle = 2 * np.pi * pairs[:, 1] / 2**32
    exact = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)
    assert np.abs(reference - exact).max() < 1e-6
    assert np.abs(reference).max() < 6.8  # sqrt(-2 ln 2^-33) = 6.76


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dim", DIMS)
def test_kernel_is_the_reference(dim: int, isa: str) -> None:
    n = max(3, 600 // dim)
    for i, start in enumerate([0, 1, 2**32 - 5, 2**32, 2**40 + 3, MAX - n]):
        purpose = PURPOSES[i % 3]
        options = {"step": 4 * i + i % 4, "start": start, "seed": 2**64 - 1 - i, "substream": 65535 * (i % 2)}
        expected = bits(noise.normal_ref(n, dim, purpose=purpose, **options))
        assert np.array_equal(bits(kernel(n, dim, isa, purpose=purpose, **options)), expected)
        if i == 2:
            del options["start"]
            assert expected[2].tolist() == by_hand(dim, purpose=purpose, sample=start + 2, **options)


@pytest.mark.parametrize("purpose", PURPOSES)
def test_random_arguments(purpose: str) -> None:
    rng = np.random.default_rng(PURPOSES.index(purpose))
    for _ in range(40):
        n, dim = int(rng.integers(0, 90)), int(rng.integers(1, 40))
        options = {
            "step": int(rng.integers(0, noise.MAX_STEP + 1)),
            "start": int(rng.integers(0, MAX - n + 1)),
            "seed": int(rng.integers(0, 2**64, dtype=np.uint64)),
            "substream": int(rng.integers(0, 2**16)),
        }
        expected = bits(noise.normal_ref(n, dim, purpose=purpose, **options))
        assert expected.shape == (n, dim)
        for isa in ISAS:
            assert np.array_equal(bits(kernel(n, dim, isa, purpose=purpose, **options)), expected)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dim", [1, 2, 3, 5, 16])
def test_any_split_draws_the_same(dim: int, isa: str) -> None:
    start = 2**32 - 50
    whole = kernel(100, dim, isa, step=3, start=start)
    for size in (1, 3, 15, 16, 17, 64):
        cuts = range(0, 100, size)
        parts = [kernel(min(size, 100 - at), dim, isa, step=3, start=start + at) for at in cuts]
        assert np.array_equal(bits(np.vstack(parts)), bits(whole))


@pytest.mark.parametrize(("n", "dim"), [(300_000, 1), (150_001, 2), (100_001, 3), (1000, 300), (70_000, 5)])
def test_threads_draw_the_same(n: int, dim: int) -> None:
    expected = bits(kernel(n, dim, "", step=1, seed=9))
    for isa in ISAS[:2]:
        for threads in (1, 2, 3):
            assert np.array_equal(bits(kernel(n, dim, isa, step=1, seed=9, threads=threads)), expected)
    rows = slice(n - 50, n)
    reference = noise.normal_ref(50, dim, step=1, seed=9, start=n - 50)
    assert np.array_equal(bits(reference), expected[rows])


def test_the_front_door() -> None:
    drawn = noise.normal(5, 3, seed=1, step=2)
    assert drawn.shape == (5, 3)
    assert drawn.dtype == torch.float32
    assert drawn.is_contiguous()
    assert noise.normal(0, 3, seed=1, step=2).shape == (0, 3)
    for n, dim in ((0, 1), (0, 7)):
        assert noise.normal_ref(n, dim, seed=1, step=2).shape == (n, dim)
    state = torch.Generator().manual_seed(7)
    first, second = (noise.normal(2, 3, seed=state, step=0) for _ in range(2))
    assert not torch.equal(first, second)
    assert torch.equal(first, noise.normal_ref(2, 3, seed=torch.Generator().manual_seed(7), step=0))


@pytest.mark.parametrize("dim", [1, 2, 4, 6])
def test_no_two_counters_collide(dim: int) -> None:
    """Every (purpose, substream, step, sample) has normals of its own: 64 bits or more are compared."""
    samples = [0, 1, 2, 2**16, 2**28, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**33, 2**44, MAX - 8]
    steps = [0, 4, 8, 12, 16, 2**14, 2**16, 2**20, 2**26, 2**27, noise.MAX_STEP - 7]
    rows = []
    for purpose in PURPOSES:
        for substream in (0, 1, 2, 2**12, 2**15, 65535):
            for step in steps:
                for start in samples:
                    at = {"seed": 3, "purpose": purpose, "substream": substream, "start": start}
                    # one dimension has 32 bits a step: four steps beside one another, which share a call
                    parts = [noise.normal(2, dim, step=step + i, **at) for i in range(4 if dim == 1 else 1)]
                    rows.append(np.hstack([bits(part) for part in parts]))
    drawn = np.vstack(rows)
    # samples 0, 1, 2 and 2^32 - 1, 2^32, 2^32 + 1 are drawn twice, as they overlap on purpose
    distinct = len({s for start in samples for s in (start, start + 1)})
    assert len(np.unique(drawn, axis=0)) == len(PURPOSES) * 6 * len(steps) * distinct


def test_seeds_do_not_collide() -> None:
    seeds = [0, 1, 2, 2**31, 2**32 - 1, 2**32, 2**32 + 1, 2**63, 2**64 - 1]
    assert len({tuple(bits(noise.normal(1, 4, seed=seed, step=0))[0]) for seed in seeds}) == len(seeds)


GOOD: dict[str, Any] = {"n": 2, "dim": 3, "seed": 0, "step": 0}
BAD: list[tuple[str, Any, type[Exception], str]] = [
    ("n", -1, ValueError, "from 0 to"),
    ("n", 2.0, TypeError, "an integer"),
    ("n", True, TypeError, "an integer"),
    ("n", MAX + 1, ValueError, "from 0 to"),
    ("dim", 0, ValueError, "from 1 to"),
    ("dim", 1 << 60, ValueError, "from 1 to"),
    ("dim", "3", TypeError, "an integer"),
    ("seed", -1, ValueError, "from 0 to"),
    ("seed", 1 << 64, ValueError, "from 0 to"),
    ("seed", None, TypeError, "an integer"),
    ("step", -1, ValueError, "from 0 to"),
    ("step", 1 << 28, ValueError, "from 0 to"),
    ("purpose", "steps", ValueError, "did you mean 'step'"),
    ("purpose", 0, TypeError, "one of step, initial, forward"),
    ("start", -1, ValueError, "from 0 to"),
    ("start", MAX - 1, ValueError, "at most 2^48, with n = 2"),
    ("start", 1.5, TypeError, "an integer"),
    ("substream", -1, ValueError, "from 0 to 65535"),
    ("substream", 1 << 16, ValueError, "from 0 to 65535"),
]


@pytest.mark.parametrize("draw", [noise.normal, noise.normal_ref])
@pytest.mark.parametrize(("name", "value", "error", "accepted"), BAD)
def test_bad_arguments(
    draw: Callable[..., Any], name: str, value: Any, error: type[Exception], accepted: str
) -> None:
    with pytest.raises(error) as caught:
        draw(**{**GOOD, name: value})
    message = str(caught.value)
    assert message.startswith(f"{name}: got {value!r}")
    assert accepted in message


KERNEL_BAD: list[tuple[dict[str, Any], str]] = [
    ({"n": -1}, "n:"),
    ({"n": MAX + 1}, "n:"),
    ({"start": MAX}, "n:"),
    ({"dim": 0}, "dim:"),
    ({"n": 1 << 40, "dim": 1 << 30}, "dim:"),
    ({"out": 0}, "out:"),
    ({"step": 1 << 28}, "step"),
    ({"purpose": 16}, "purpose"),
    ({"substream": 1 << 16}, "substream"),
    ({"threads": 0}, "threads:"),
    ({"threads": 4097}, "threads:"),
    ({"isa": "avx1024"}, "isa: got 'avx1024'"),
]


@pytest.mark.parametrize(("wrong", "message"), KERNEL_BAD)
def test_the_kernel_checks_again(wrong: dict[str, Any], message: str) -> None:
    out = np.zeros(64, np.float32)
    good = {"out": out.ctypes.data, "n": 4, "dim": 3, "start": 0, "seed": 0, "step": 0, "purpose": 0}
    good |= {"substream": 0, "threads": 1, "isa": ""}
    with pytest.raises(ValueError, match=message):
        _cpu.normal(**{**good, **wrong})
    assert not out.any()
