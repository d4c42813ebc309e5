"""The step on CUDA, run by the emulator from the same source: as the CPU's kernel to the bit, and float64."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from cuda_build import emulated
from test_ops import DTYPES, FULL, assert_close_as_torch, made_row
from torch import Tensor

import diffusion_fast as df
from diffusion_fast.ops import reverse_step
from diffusion_fast.reference import reverse_step_ref
from diffusion_fast.solvers.table import StepRow

LARGE_SEED = 0xFEDC_BA98_7654_3210
PLAIN = made_row(eval=True, a=0.7, e=-0.2, s=0.3)
EVERY = made_row(eval=True, clip=0.8, push=True, **FULL)
# dims of both ways to pack normals, of whole and short last quads; samples that leave a pack unfilled
SIZES = [
    (1, 1),
    (7, 1),
    (16, 1),
    (3, 2),
    (9, 2),
    (1, 3),
    (6, 3),
    (5, 4),
    (3, 5),
    (4, 12),
    (3, 20),
    (2, 63),
    (3, 260),
]


@pytest.fixture(scope="module")
def module() -> Any:
    return emulated()


def guarded(shape: tuple[int, ...], dtype: torch.dtype, shift: int = 0) -> tuple[Tensor, Tensor]:
    """Memory to write to, and the whole with margins of sevens around it. shift: elements from alignment."""
    margin = 64
    whole = torch.full((math.prod(shape) + 2 * margin,), 7.0, dtype=dtype)
    first = margin + shift - whole.data_ptr() % 16 // whole.element_size()
    return whole[first : first + math.prod(shape)].view(shape), whole


def copied(value: Tensor, shift: int = 0) -> Tensor:
    copy, _ = guarded(value.shape, value.dtype, shift)
    return copy.copy_(value)


def address(value: Tensor | None) -> int:
    return 0 if value is None else value.data_ptr()


def emulated_step(
    module: Any,
    x: Tensor,
    F: Tensor | None,
    row: StepRow,
    *,
    seed: int = 0,
    step: int = 0,
    start: int = 0,
    noise: Tensor | None = None,
    uncond_output: Tensor | None = None,
    guidance_scale: float | Tensor = 1.0,
    history: Any = (),
    log_variance: Tensor | None = None,
    prediction: Tensor | None = None,
    out: Tensor | None = None,
    seed_at: Tensor | None = None,
    step_at: Tensor | None = None,
) -> Tensor:
    """As diffusion_fast.cuda calls the module, device memory being the host's."""
    n, scales = len(x), guidance_scale if isinstance(guidance_scale, Tensor) else None
    result, whole = guarded(x.shape, x.dtype) if out is None else (out, None)
    factor, threshold = torch.full((2, n), math.nan)
    kept = [address(h) for h in history] + [0] * (3 - len(history))
    module.reverse_step(
        row.packed,
        row.terms,
        DTYPES.index(x.dtype),
        (
            address(result),
            address(x),
            address(F),
            address(uncond_output),
            address(scales),
            *kept,
            address(log_variance),
            address(noise),
            address(prediction),
        ),
        1.0 if scales is not None else guidance_scale,
        n,
        x.numel() // n,
        start,
        seed,
        step,
        address(seed_at),
        address(step_at),
        address(factor),
        address(threshold),
        0,
        0,
    )
    if whole is not None:
        assert int((whole == 7).sum()) >= 128  # the margins
    return result


def same(a: Tensor, b: Tensor) -> bool:
    """To the bit; of a NaN only that it is one."""
    return torch.equal(torch.nan_to_num(a, 123.0), torch.nan_to_num(b, 123.0)) and torch.equal(
        a.signbit() & (a == 0), b.signbit() & (b == 0)
    )


def check(
    module: Any, x: Tensor, F: Tensor | None, row: StepRow, history: Any = (), **options: Any
) -> Tensor:
    """The emulated kernel and the CPU's on copies: results, histories and predictions are the same."""
    pasts = [[copied(h) for h in history] for _ in range(2)]
    predicted = [torch.zeros_like(x) for _ in range(2)] if options.pop("predicts", False) else [None, None]
    got = emulated_step(module, x, F, row, history=pasts[0], prediction=predicted[0], **options)
    want = reverse_step(x, F, row, history=pasts[1], prediction=predicted[1], **options)
    assert same(got, want)
    assert all(same(ours, theirs) for ours, theirs in zip(*pasts, strict=True))
    assert predicted[0] is None or same(predicted[0], predicted[1])
    return got


def values(count: int, n: int, dim: int, dtype: torch.dtype) -> list[Tensor]:
    generator = torch.Generator().manual_seed(100 * n + dim)
    return [copied(torch.randn(n, dim, generator=generator).to(dtype)) for _ in range(count)]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("n", "dim"), SIZES)
def test_every_size_as_on_the_cpu(module: Any, n: int, dim: int, dtype: torch.dtype) -> None:
    x, F, u, h1, h2, h3 = values(6, n, dim, dtype)
    for step in (0, 3, 6) if dim <= 2 else (6,):
        check(module, x, F, PLAIN, seed=LARGE_SEED, step=step, start=2**32 - 2)
        check(module, x, F, PLAIN, seed=1, step=step, uncond_output=u, guidance_scale=2.5)
        scales = torch.linspace(0, 4, n)
        check(module, x, F, EVERY, [h1, h2, h3], step=step, seed=3, uncond_output=u, guidance_scale=scales)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_unaligned_rows_get_the_same(module: Any, dtype: torch.dtype) -> None:
    for n, dim in ((5, 4), (9, 2), (3, 24)):
        x, F = values(2, n, dim, dtype)
        want = emulated_step(module, x, F, PLAIN, seed=5, step=1)
        for shift in (1, 3):
            assert same(emulated_step(module, copied(x, shift), F, PLAIN, seed=5, step=1), want)
            out, whole = guarded((n, dim), dtype, shift)
            assert same(emulated_step(module, x, F, PLAIN, seed=5, step=1, out=out), want)
            assert int((whole == 7).sum()) >= 128


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [2, 3, 8])
def test_every_combination_of_options(module: Any, dim: int, dtype: torch.dtype) -> None:
    n = 5
    cases = itertools.product((False, True), (math.inf, 0.5), (False, True), range(4), range(3), range(3))
    for push, clip, learned, n_history, guidance, source in cases:
        x, F, u, z, v, *history = values(5 + n_history, n, dim, dtype)
        names = ("p_x", "p_F", "a", "b", "e", "s")[: 5 if source == 2 else 6]
        used = {name: FULL[name] for name in (*names, *(f"c{k + 1}" for k in range(n_history)))}
        options: dict[str, Any] = [{"seed": 5, "step": 2, "start": 9}, {"noise": z}, {}][source]
        if learned:
            options["log_variance"] = v
        if guidance:
            scale = 2.5 if guidance == 1 else torch.linspace(0, 4, n)
            options |= {"uncond_output": u, "guidance_scale": scale}
        row = made_row(eval=True, **used, clip=clip, push=push)
        check(module, x, F, row, history, predicts=learned, **options)


def test_in_place(module: Any) -> None:
    x, F, u = values(3, 7, 12, torch.float32)
    want = emulated_step(module, x, F, PLAIN, seed=1, uncond_output=u, guidance_scale=2.0)
    for position in range(3):
        given = [copied(value) for value in (x, F, u)]
        got = emulated_step(
            module, *given[:2], PLAIN, seed=1, uncond_output=given[2], guidance_scale=2.0, out=given[position]
        )
        assert same(got, want)


def test_a_row_without_evaluation(module: Any) -> None:
    x, h = values(2, 7, 3, torch.float32)
    check(module, x, None, made_row(a=0.9, s=0.5, c1=0.2, eval=False), [h], seed=1)


def test_extreme_values(module: Any) -> None:
    for dtype in DTYPES:
        top = torch.finfo(dtype).max
        numbers = [math.nan, math.inf, -math.inf, 0.0, -0.0, 1e-7, top, -top, top / 2, 1.0, 1e-40, -3e-8]
        x = copied(torch.tensor(numbers * 3, dtype=dtype).reshape(9, 4))
        F, v = values(2, 9, 4, dtype)
        for row in (made_row(a=1.0, e=0.25), made_row(p_x=0.5, p_F=0.5, b=0.5, clip=1.0)):
            check(module, x, F, row)
        check(module, x, F, made_row(a=1.0, s=1.0), seed=2, log_variance=x)
        check(module, x, F, made_row(a=1.0, s=1.0), seed=2, log_variance=(80 * v).to(dtype))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("dim", [2, 3, 16, 37, 512, 600, 5000])
def test_statistics_as_on_the_cpu(module: Any, dim: int, dtype: torch.dtype) -> None:
    """A warp has a sample of up to 512 elements, a block a larger one."""
    n = 9 if dim < 100 else 3
    x, F, u = values(3, n, dim, dtype)
    moments = {"p_x": 1.5, "p_F": -0.5, "a": 0.5, "b": 0.5, "s": 0.3}
    for rescale, quantile in ((0.7, 0.0), (0.0, 0.9), (0.7, 0.37), (1.0, 1.0)):
        row = made_row(eval=True, rescale=rescale, quantile=quantile, clip=2.0, **moments)
        scales = torch.linspace(1, 4, n)
        check(module, x, F, row, seed=4, uncond_output=u, guidance_scale=scales, predicts=True)
        if not rescale:
            check(module, x, F, row, seed=4)


def test_statistics_of_equal_and_strange_magnitudes(module: Any) -> None:
    row = made_row(eval=True, quantile=0.5, clip=1e3, p_x=1.0, b=1.0)
    for fill in (3.0, -3.0, 0.0, math.nan, math.inf):
        x = torch.full((2, 40), fill)
        check(module, x, x, row)
        x[:, ::3] = 5.0
        check(module, x, x, row)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_beside_float64(module: Any, dtype: torch.dtype) -> None:
    for n, dim in ((9, 2), (6, 3), (3, 20)):
        x, F, u, *history = values(6, n, dim, dtype)
        how: dict[str, Any] = {"seed": 3, "step": 6, "start": 11, "guidance_scale": 2.5}
        pasts = [[copied(h) for h in history], [h.clone() for h in history], [h.double() for h in history]]
        got = emulated_step(module, x, F, EVERY, history=pasts[0], uncond_output=u, **how)
        twin = reverse_step_ref(x, F, EVERY, history=pasts[1], uncond_output=u, **how)
        wide = reverse_step_ref(
            x.double(), F.double(), EVERY, history=pasts[2], uncond_output=u.double(), **how
        )
        assert_close_as_torch(got, twin, wide)
        for ours, theirs, true in zip(*pasts, strict=True):
            assert_close_as_torch(ours, theirs, true)


# ---- the noise stream


def emulated_normal(module: Any, n: int, dim: int, shift: int = 0, **how: int) -> Tensor:
    given = {"start": 0, "seed": 0, "step": 0, "purpose": 0, "substream": 0, "seed_at": 0, "step_at": 0} | how
    out, whole = guarded((n, dim), torch.float32, shift)
    module.normal(out.data_ptr(), n, dim, *given.values(), 0, 0)
    assert int((whole == 7).sum()) >= 128
    return out


@pytest.mark.parametrize("dim", [1, 2, 3, 4, 5, 8, 63, 64, 65])
@pytest.mark.parametrize("start", [0, 2**32 - 3, 2**48 - 9])
def test_normals_to_the_bit(module: Any, dim: int, start: int) -> None:
    for step, shift in ((0, 0), (1, 1), (2, 0), (3, 0), ((1 << 28) - 1, 0)):
        got = emulated_normal(module, 9, dim, shift, start=start, seed=LARGE_SEED, step=step)
        assert torch.equal(got, df.noise.normal(9, dim, seed=LARGE_SEED, step=step, start=start))
    for purpose, name in ((1, "initial"), (3, "forward")):
        got = emulated_normal(module, 9, dim, start=start, seed=1, step=3, purpose=purpose, substream=77)
        assert torch.equal(
            got, df.noise.normal(9, dim, seed=1, step=3, purpose=name, start=start, substream=77)
        )


def test_seed_and_step_from_memory(module: Any) -> None:
    """What a replayed graph reads: the same as if they had been given."""
    step = torch.tensor([9])
    for seed in (0, 7, LARGE_SEED):
        at = torch.from_numpy(np.array([seed], np.uint64).view(np.int64))
        for dim in (1, 2, 3, 8):
            x, F = values(2, 5, dim, torch.float32)
            want = emulated_step(module, x, F, PLAIN, seed=seed, step=9)
            assert same(emulated_step(module, x, F, PLAIN, seed_at=at, step_at=step), want)
            assert same(emulated_step(module, x, F, PLAIN, seed=seed, step=1, step_at=step), want)
            given = {"seed_at": at.data_ptr(), "step_at": step.data_ptr()}
            for purpose in (0, 1):
                want = emulated_normal(module, 5, dim, seed=seed, step=9, purpose=purpose)
                assert torch.equal(emulated_normal(module, 5, dim, purpose=purpose, **given), want)
