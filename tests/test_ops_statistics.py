"""Guidance rescale and dynamic thresholding in reverse_step, and a doubled batch: beside float64."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from samplers import SCHEDULE, WithCumsum, assert_close_as_torch
from torch import Tensor

import diffusion_fast as df
from diffusion_fast import reference

TABLE = df.solvers.ddpm(SCHEDULE, clip=2.0).replace(guidance=3.0, rescale=0.7, quantile=0.9)
HISTORY = df.solvers.dpmpp_2m(SCHEDULE, clip=2.0).replace(guidance=3.0, rescale=0.7, quantile=0.9)


def tensors(n: int, shape: tuple[int, ...], dtype: torch.dtype = torch.float32) -> tuple[Tensor, ...]:
    generator = torch.Generator().manual_seed(n)
    return tuple((2 * torch.randn(n, *shape, generator=generator)).to(dtype) for _ in range(3))


@pytest.mark.parametrize("shape", [(2,), (3,), (16,), (33,), (3, 5, 7), (3, 64, 64)])
@pytest.mark.parametrize("per_sample", [False, True])
def test_beside_float64(shape: tuple[int, ...], per_sample: bool) -> None:
    n = 7 if len(shape) == 3 else 301
    x, c, u = tensors(n, shape)
    if shape in ((2,), (3,)):  # away from deviations near 0, which nothing divides by to 24 bits
        c, u = c + torch.arange(shape[0]) * 20, u - torch.arange(shape[0]) * 10
    scale = torch.linspace(1, 4, n) if per_sample else 3.0
    for i in (0, 5, 39):
        how: dict[str, Any] = {"seed": 4, "step": i, "start": 9, "uncond_output": u, "guidance_scale": scale}
        got = df.ops.reverse_step(x, c, TABLE[i], **how)
        plain = reference.reverse_step_ref(x, c, TABLE[i], **how)
        wide = how | {"uncond_output": u.double()}
        exact = reference.reverse_step_ref(x.double(), c.double(), TABLE[i], **wide)
        assert_close_as_torch(got, plain, exact)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision(dtype: torch.dtype) -> None:
    """Computed with in float32 and rounded once: the twin's values, or their neighbours where it rounds
    the other way."""
    x, c, u = tensors(50, (12,), dtype)
    how: dict[str, Any] = {"seed": 4, "step": 3, "uncond_output": u, "guidance_scale": 2.0}
    got = df.ops.reverse_step(x, c, TABLE[3], **how)
    want = reference.reverse_step_ref(x, c, TABLE[3], **how)
    difference = (got.float() - want.float()).abs() / want.float().abs().clamp(min=1e-2)
    assert difference.max() <= torch.finfo(dtype).eps and (difference > 0).float().mean() < 0.02


def test_the_threshold_is_numpys_quantile() -> None:
    """A row that gives m alone: x' = m."""
    rows = TABLE.rows[:1].copy()
    for name in ("a", "e", "s", "p_F"):
        rows[name] = 0
    rows["p_x"] = rows["b"] = 1
    rows["clip"], rows["quantile"], rows["rescale"], rows["guidance"] = 1e3, 0.37, 0, 1
    row = df.StepTable(rows, [0], [0], "m alone")[0]
    x = torch.randn(40, 100) * 5
    q = np.quantile(x.abs().double().numpy(), float(np.float32(0.37)), axis=1, keepdims=True).clip(1)
    got = df.ops.reverse_step(x, torch.zeros_like(x), row)
    np.testing.assert_allclose(got.numpy(), x.double().numpy().clip(-q, q) / q, rtol=4e-7)


def test_history_and_in_place() -> None:
    x, c, u = tensors(60, (9,))
    kept, want_kept = [torch.zeros_like(x)], [torch.zeros_like(x)]
    y, want = x.clone(), x.clone()
    for i in range(5):
        how: dict[str, Any] = {"step": i, "uncond_output": u, "guidance_scale": 3.0}
        df.ops.reverse_step(y, c, HISTORY[i], history=kept, out=y, **how)
        want = reference.reverse_step_ref(want, c, HISTORY[i], history=want_kept, **how)
        torch.testing.assert_close(y, want, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(kept[0], want_kept[0], rtol=1e-5, atol=1e-5)


def test_a_sample_does_not_depend_on_the_others() -> None:
    """Nor on the number of threads: one sample at a time gives the same bits."""
    x, c, u = tensors(3000, (30,))
    how: dict[str, Any] = {"seed": 1, "step": 2, "guidance_scale": 3.0}
    before = torch.get_num_threads()
    whole = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        whole.append(df.ops.reverse_step(x, c, TABLE[2], uncond_output=u, **how))
    torch.set_num_threads(before)
    assert torch.equal(*whole)
    for i in (0, 1, 1499, 2999):
        part = slice(i, i + 1)
        one = df.ops.reverse_step(x[part], c[part], TABLE[2], uncond_output=u[part], start=i, **how)
        assert torch.equal(one, whole[0][part])


@pytest.mark.parametrize("order", ["uncond_first", "cond_first"])
def test_a_doubled_batch(order: str) -> None:
    x, c, u = tensors(40, (4, 5))
    both = torch.cat([u, c] if order == "uncond_first" else [c, u])
    how: dict[str, Any] = {"seed": 4, "step": 3, "guidance_scale": torch.linspace(0, 3, 40)}
    want = df.ops.reverse_step(x, c, TABLE[3], uncond_output=u, **how)
    assert torch.equal(df.ops.reverse_step(x, both, TABLE[3], doubled=order, **how), want)


def test_the_chain_with_the_module_in_torch() -> None:
    """backend="auto" of a module that is not fused takes these steps: as backend="torch"."""
    module = WithCumsum().eval()
    how: dict[str, Any] = {"shape": 2, "clip": 1.5, "dynamic_threshold": 0.5}
    auto, plain = (df.Sampler(module, SCHEDULE, backend=b, **how).sample(100) for b in ("auto", "torch"))
    torch.testing.assert_close(auto, plain, rtol=1e-4, atol=1e-5)
    assert not torch.allclose(auto, df.Sampler(module, SCHEDULE, shape=2, clip=1.5).sample(100), atol=1e-3)


X, C, U = tensors(4, (3,))
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "an unknown order": ({"model_output": torch.cat([C, U]), "doubled": "both"}, "doubled: got 'both'"),
    "twice": (
        {"model_output": torch.cat([C, U]), "uncond_output": U, "doubled": "cond_first"},
        "uncond_output: .*None with doubled",
    ),
    "not doubled": ({"model_output": C, "doubled": "cond_first"}, r"model_output: got .*\(4, 3\).*\(8, 3\)"),
    "no unconditional output": ({"model_output": C, "guidance_scale": None}, "uncond_output: .*guided by 3"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(name: str) -> None:
    given, pattern = REFUSED[name]
    out = torch.full_like(X, 7.0)
    with pytest.raises(ValueError, match=pattern):
        df.ops.reverse_step(X, row=TABLE[0], seed=1, out=out, **{"guidance_scale": 2.0} | given)
    assert (out == 7).all()


def test_rescale_of_one_element_is_refused() -> None:
    x = torch.ones(4, 1)
    with pytest.raises(ValueError, match=r"x: got .*two elements a sample or more"):
        df.ops.reverse_step(x, x, TABLE[0], seed=1, uncond_output=x, guidance_scale=2.0)
