"""ops.reverse_step with both halves of the guidance in one doubled batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import diffusion_fast as df
from diffusion_fast.ops import reverse_step

ROW = df.solvers.ddpm(df.NoiseSchedule.linear(10, 0.01, 0.3))[4]
DTYPES = [torch.float32, torch.bfloat16, torch.float16]


def batch(dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    x, cond, uncond = (torch.randn(7, 3, 5).to(dtype) for _ in range(3))
    return x, cond, uncond


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [2.5, torch.linspace(0, 4, 7)], ids=["one", "per sample"])
def test_a_doubled_batch_is_its_halves_to_the_bit(dtype: torch.dtype, scale: float | Tensor) -> None:
    x, cond, uncond = batch(dtype)
    want = reverse_step(x, cond, ROW, seed=1, uncond_output=uncond, guidance_scale=scale)
    swapped = reverse_step(x, uncond, ROW, seed=1, uncond_output=cond, guidance_scale=scale)
    assert not torch.equal(want, swapped)  # so that the order counts
    for order, halves in (("uncond_first", [uncond, cond]), ("cond_first", [cond, uncond])):
        both = torch.cat(halves)
        strided = torch.stack([both, both], dim=-1)[..., 0]
        for given in (both, strided):
            out = x.clone()
            got = reverse_step(out, given, ROW, seed=1, guidance_scale=scale, doubled=order, out=out)
            assert got is out and torch.equal(got, want)


def test_a_doubled_batch_of_none() -> None:
    empty = torch.empty(0, 3)
    assert reverse_step(empty, empty, ROW, seed=1, guidance_scale=2.0, doubled="cond_first").shape == (0, 3)


def test_the_conditional_half_may_take_the_result() -> None:
    x, cond, uncond = batch()
    both = torch.cat([uncond, cond])
    want = reverse_step(x, both, ROW, seed=1, guidance_scale=2.0, doubled="uncond_first")
    out = both[7:]
    reverse_step(x, both, ROW, seed=1, guidance_scale=2.0, doubled="uncond_first", out=out)
    assert torch.equal(out, want) and torch.equal(both[:7], uncond)


def test_an_output_across_the_halves_is_refused() -> None:
    x, cond, uncond = batch()
    both = torch.cat([uncond, cond])
    before = both.clone()
    for shift in (1, 6):
        with pytest.raises(ValueError, match=r"out: got .*; accepted: memory"):
            reverse_step(
                x,
                both,
                ROW,
                seed=1,
                guidance_scale=2.0,
                doubled="uncond_first",
                out=both[shift : shift + 7],
            )
    assert torch.equal(both, before)


def test_x_in_place_may_not_overlap_the_output_of_the_model() -> None:
    memory = torch.randn(100)
    x, F = memory[:60].view(12, 5), memory[5:65].view(12, 5)
    before = memory.clone()
    with pytest.raises(ValueError, match=r"out: got .*; accepted: memory"):
        reverse_step(x, F, ROW, seed=1, out=x)
    assert torch.equal(memory, before)
