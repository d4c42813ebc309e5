"""The fused operations on the caller's own tensors, checked before a pointer crosses into C++.

`reverse_step` is for people who keep their own sampling loop: one pass over memory for the row's update, its
noise and the guidance combine. Its twin in plain torch is reference.reverse_step_ref.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from diffusion_fast import _checks, _cpu, _tensors, threads
from diffusion_fast.noise import MAX_STEP
from diffusion_fast.solvers.table import TERM_BITS, StepRow

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_ACCEPTED = "a float32, bfloat16 or float16 tensor on the CPU, the first axis counting samples"
_HISTORY_TERMS = [(k, TERM_BITS[f"c{k}"]) for k in (1, 2, 3)]


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
    prediction: Tensor | None = None,
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
    prediction: like x, contiguous; m is written there.
    out: like x, contiguous; out=x updates in place. A new tensor when None.

    Returns out. Raises TypeError or ValueError, naming the argument, before anything is written.

    >>> import diffusion_fast as df
    >>> table = df.solvers.ddpm(df.NoiseSchedule.linear(50))
    >>> x, eps = torch.ones(4, 2), torch.zeros(4, 2)
    >>> for i, row in enumerate(table):
    ...     x = df.ops.reverse_step(x, eps, row, seed=0, step=i, out=x)
    >>> x.shape
    torch.Size([4, 2])
    """
    if not isinstance(row, StepRow):
        raise _checks.bad_type("row", row, "a StepRow, such as solvers.ddpm(schedule)[i]")
    if not isinstance(x, Tensor):
        raise _checks.bad_type("x", x, _ACCEPTED)
    if x.dtype not in _DTYPES or x.ndim < 1:
        raise _checks.bad_value("x", x, _ACCEPTED)
    n = x.shape[0]
    packed = row.packed
    if not row.eval:
        for name, tensor in (("model_output", model_output), ("uncond_output", uncond_output)):
            if tensor is not None:
                raise _checks.bad_value(name, tensor, "None, for the row evaluates no network")
    inputs = [
        _tensors.given("x", x, x.dtype, x.shape),
        _tensors.given("model_output", model_output, x.dtype, x.shape) if row.eval else None,
        None if uncond_output is None else _tensors.given("uncond_output", uncond_output, x.dtype, x.shape),
    ]
    scale = _guidance(uncond_output, guidance_scale, n)
    variance = (
        None if log_variance is None else _tensors.given("log_variance", log_variance, x.dtype, x.shape)
    )
    z = _given_noise(row, x, seed, noise, generator)
    position = _checks.integer("step", step, 0, MAX_STEP)
    _, first = _checks.sample_range(n, start)
    past = _history(history, row, x, [*inputs, variance, z, scale])
    if out is None:
        result = _tensors.empty_like(x)
    else:
        result = _tensors.output("out", out, x.dtype, x.shape, [*inputs, variance, z], in_place=True)
        _tensors.output("out", out, x.dtype, x.shape, [*past, scale], in_place=False)
    if prediction is not None:
        others = [*inputs, variance, z, *past, scale, result]
        _tensors.output("prediction", prediction, x.dtype, x.shape, others, in_place=False)
    if x.numel() == 0:
        return result
    # Drawn last: a refused call leaves the generator as it was.
    if generator is not None and row.s != 0:
        z = torch.randn(x.shape, dtype=x.dtype, generator=generator)
    key = 0 if seed is None else _checks.seed("seed", seed)
    h1, h2, h3 = [h.data_ptr() for h in past] + [0] * (3 - len(past))
    _cpu.reverse_step(
        packed,
        row.terms,
        _DTYPES[x.dtype],
        result.data_ptr(),
        _pointer(inputs[0]),
        _pointer(inputs[1]),
        _pointer(inputs[2]),
        _pointer(scale),
        int(scale is not None and scale.numel() > 1),
        h1,
        h2,
        h3,
        _pointer(variance),
        _pointer(z),
        _pointer(prediction),
        n,
        x.numel() // n,
        first,
        key,
        position,
        threads.resolve(None),
    )
    return result


def _pointer(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _guidance(uncond_output: Tensor | None, scale: Any, n: int) -> Tensor | None:
    if uncond_output is None:
        if scale is not None:
            raise _checks.bad_value("guidance_scale", scale, "None where uncond_output is not given")
        return None
    accepted = f"a finite number, or a float32 tensor of shape ({n},), where uncond_output is given"
    if isinstance(scale, Tensor):
        if scale.shape != (n,) or scale.dtype != torch.float32 or scale.device.type != "cpu":
            raise _checks.bad_value("guidance_scale", scale, accepted)
        _tensors.no_gradient("guidance_scale", scale)
        return _checks.finite("guidance_scale", scale.contiguous())
    if scale is None:
        raise _checks.bad_value("guidance_scale", scale, accepted)
    return torch.tensor([_checks.real("guidance_scale", scale)], dtype=torch.float32)


def _history(history: Any, row: StepRow, x: Tensor, inputs: list[Tensor | None]) -> list[Tensor]:
    needed = max((k for k, bit in _HISTORY_TERMS if row.terms & bit), default=0)
    if not isinstance(history, (list, tuple)):
        raise _checks.bad_type("history", history, "a list or tuple of tensors like x")
    if not needed <= len(history) <= 3:
        raise _checks.bad_value("history", f"{len(history)} tensors", f"{needed} to 3 tensors like x")
    for i, tensor in enumerate(history):
        others = [*inputs, *history[:i]]
        _tensors.output(f"history[{i}]", tensor, x.dtype, x.shape, others, in_place=False)
    return list(history)


def _given_noise(row: StepRow, x: Tensor, seed: Any, noise: Any, generator: Any) -> Tensor | None:
    """The normals given, None for another source; at most one may be named, and a noisy row needs one."""
    sources = [k for k, v in {"seed": seed, "noise": noise, "generator": generator}.items() if v is not None]
    if len(sources) > 1:
        raise _checks.bad_value(sources[1], f"{' and '.join(sources)} together", "one source of noise")
    if not sources and row.s != 0:
        raise _checks.bad_value("seed", seed, "seed, noise or generator, for a row that adds noise")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise _checks.bad_type("generator", generator, "a torch.Generator")
    if seed is not None and not isinstance(seed, torch.Generator):
        _checks.seed("seed", seed)
    return None if noise is None else _tensors.given("noise", noise, x.dtype, x.shape)
