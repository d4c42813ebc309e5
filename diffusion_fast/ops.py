"""The fused operations on the caller's own tensors, checked before a pointer crosses into C++.

`reverse_step` is for people who keep their own sampling loop: one pass over memory for the row's update, its
noise and the guidance combine. Its twin in plain torch is reference.reverse_step_ref.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffusion_fast import _checks, _cpu, threads
from diffusion_fast.noise import MAX_STEP
from diffusion_fast.solvers.table import TERM_BITS, StepRow

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_ACCEPTED = "a float32, bfloat16 or float16 tensor on the CPU"


def reverse_step(
    x: Tensor,
    model_output: Tensor | None,
    row: StepRow,
    *,
    seed: int | None = None,
    step: int = 0,
    start: int = 0,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    uncond_output: Tensor | None = None,
    guidance_scale: float | Tensor | None = None,
    history: Sequence[Tensor] = (),
    log_variance: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """One row of a StepTable applied to a batch:

        m = clamp(p_x x + p_F F);   x' = a x + b m + e F + c1 h1 + c2 h2 + c3 h3 + s z

    x: (n, *shape) float32, bfloat16 or float16 on the CPU; the first axis counts samples. Half-precision
    tensors are computed with in float32 and rounded once at the end.
    model_output: F, like x; None for a row without evaluation.
    Noise, for a row with s != 0, comes from exactly one of: seed, the package's stream at (seed, start + i,
    step), where step is the row's position in its table; noise, normals like x; generator, torch's own.
    uncond_output, guidance_scale: F = u + scale (F - u), with scale a number or an (n,) tensor (Ho &
    Salimans 2022, scale = 1 + w).
    history: up to three tensors h1, h2, h3 like x, shifted in place when the row pushes.
    log_variance: like x; the noise is scaled by exp(log_variance / 2) in place of s.
    out: like x, contiguous; out=x updates in place. A new tensor when None.

    Returns out. Raises TypeError or ValueError, naming the argument, before anything is written.
    """
    if not isinstance(row, StepRow):
        raise _checks.bad_type("row", row, "a StepRow, such as solvers.ddpm(schedule)[i]")
    _check_tensor("x", x)
    n = x.shape[0] if x.ndim else 0
    if x.ndim < 1:
        raise _checks.bad_value("x", x, "at least one axis, the first counting samples")
    inputs = [_input("x", x, x), _input("model_output", model_output, x) if row.eval else None]
    if row.eval is False and model_output is not None:
        raise _checks.bad_value("model_output", model_output, "None, for the row evaluates no network")
    inputs.append(None if uncond_output is None else _input("uncond_output", uncond_output, x))
    scale = _guidance(uncond_output, guidance_scale, n)
    past = _history(history, row, x)
    variance = None if log_variance is None else _input("log_variance", log_variance, x)
    key, z = _noise(row, x, seed, noise, generator)
    position = _checks.integer("step", step, 0, MAX_STEP)
    _, first = _checks.sample_range(n, start)
    result = torch.empty_like(x, memory_format=torch.contiguous_format) if out is None else _output(out, x)
    if out is not None:
        _check_overlap(result, [*inputs, variance, z, *past])
    if x.numel() == 0:
        return result
    ins = [0 if t is None else t.data_ptr() for t in (*inputs, scale)]
    hist = [h.data_ptr() for h in past] + [0] * (3 - len(past))
    _cpu.reverse_step(
        row.packed,
        row.terms,
        _DTYPES[x.dtype],
        result.data_ptr(),
        *ins,
        int(scale is not None and scale.numel() > 1),
        *hist,
        0 if variance is None else variance.data_ptr(),
        0 if z is None else z.data_ptr(),
        n,
        x.numel() // n,
        first,
        key,
        position,
        threads.resolve(None),
    )
    return result


def _check_tensor(name: str, tensor: Any) -> None:
    if not isinstance(tensor, Tensor):
        raise _checks.bad_type(name, tensor, _ACCEPTED)
    if tensor.dtype not in _DTYPES or tensor.device.type != "cpu" or tensor.layout is not torch.strided:
        raise _checks.bad_value(name, tensor, _ACCEPTED)
    if tensor.requires_grad:
        raise _checks.bad_value(name, "a tensor that requires grad", "one without: pass x.detach()")


def _input(name: str, tensor: Any, x: Tensor) -> Tensor:
    """A contiguous tensor like x; a strided one is copied."""
    if tensor is not x:
        _check_tensor(name, tensor)
        if tensor.shape != x.shape or tensor.dtype != x.dtype:
            raise _checks.bad_value(name, tensor, f"a tensor like x, {x.dtype} of shape {tuple(x.shape)}")
    return tensor.contiguous()


def _output(out: Any, x: Tensor, name: str = "out") -> Tensor:
    _check_tensor(name, out)
    if out.shape != x.shape or out.dtype != x.dtype or not out.is_contiguous():
        raise _checks.bad_value(
            name,
            f"{_checks.describe(out)}, strides {out.stride()}",
            f"a contiguous tensor like x, {x.dtype} of shape {tuple(x.shape)}",
        )
    return out


def _check_overlap(out: Tensor, others: Sequence[Tensor | None]) -> None:
    """The same memory is fine, for each element is read before it is written; a shifted overlap is not."""
    begin, size = out.data_ptr(), out.numel() * out.element_size()
    for other in others:
        if other is not None and other.data_ptr() != begin and abs(other.data_ptr() - begin) < size:
            raise _checks.bad_value("out", out, "memory that is one of the inputs or overlaps none of them")


def _guidance(uncond_output: Tensor | None, scale: Any, n: int) -> Tensor | None:
    if uncond_output is None:
        if scale is not None:
            raise _checks.bad_value("guidance_scale", scale, "None where uncond_output is not given")
        return None
    accepted = f"a finite number, or a float32 tensor of shape ({n},), where uncond_output is given"
    if isinstance(scale, Tensor):
        if scale.shape != (n,) or scale.dtype != torch.float32 or scale.device.type != "cpu":
            raise _checks.bad_value("guidance_scale", scale, accepted)
        return _checks.finite("guidance_scale", scale.detach().contiguous())
    if scale is None:
        raise _checks.bad_value("guidance_scale", scale, accepted)
    return torch.tensor([_checks.real("guidance_scale", scale)], dtype=torch.float32)


def _history(history: Any, row: StepRow, x: Tensor) -> list[Tensor]:
    needed = max((k for k in (1, 2, 3) if row.terms & TERM_BITS[f"c{k}"]), default=0)
    if not isinstance(history, (list, tuple)):
        raise _checks.bad_type("history", history, "a list or tuple of tensors like x")
    if not needed <= len(history) <= 3:
        raise _checks.bad_value("history", f"{len(history)} tensors", f"{needed} to 3 tensors like x")
    return [_output(h, x, f"history[{i}]") for i, h in enumerate(history)]


def _noise(row: StepRow, x: Tensor, seed: Any, noise: Any, generator: Any) -> tuple[int, Tensor | None]:
    """(seed, normals or None): the one source that was named."""
    sources = [k for k, v in {"seed": seed, "noise": noise, "generator": generator}.items() if v is not None]
    if len(sources) > 1:
        raise _checks.bad_value(sources[1], f"{' and '.join(sources)} together", "one source of noise")
    if noise is not None:
        return 0, _input("noise", noise, x)
    if generator is not None:
        if not isinstance(generator, torch.Generator):
            raise _checks.bad_type("generator", generator, "a torch.Generator")
        if row.s == 0:
            return 0, None
        return 0, torch.randn(x.shape, dtype=x.dtype, generator=generator)
    if seed is not None:
        return _checks.seed("seed", seed), None
    if row.s != 0:
        raise _checks.bad_value("seed", seed, "seed, noise or generator, for a row that adds noise")
    return 0, None
