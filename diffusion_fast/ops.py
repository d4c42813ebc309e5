"""The fused operations on the caller's own tensors, checked before a pointer crosses into C++.

`reverse_step` is for people who keep their own sampling loop: one pass over memory for the row's update, its
noise and the guidance combine. Its twin in plain torch is reference.reverse_step_ref.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor
from torch.compiler import is_compiling

from diffusion_fast import _checks, _cpu, _tensors, cuda, threads
from diffusion_fast.noise import MAX_STEP
from diffusion_fast.solvers.table import TERM_BITS, StepRow

_DTYPES = {torch.float32: 0, torch.bfloat16: 1, torch.float16: 2}
_KIND = "a float32, bfloat16 or float16 tensor"
_ACCEPTED = f"{_KIND} on the CPU or a CUDA device, the first axis counting samples"
_HISTORY_TERMS = [(k, TERM_BITS[f"c{k}"]) for k in (3, 2, 1)]
_ANY_HISTORY = sum(bit for _, bit in _HISTORY_TERMS)
_FLOAT32_MAX = torch.finfo(torch.float32).max
_MAX_STATISTICS = (1 << 31) - 1  # elements of a sample whose order statistic is looked for
_ONE_THREAD = 1 << 16  # elements that are never worth a second thread; asking how many there are takes time


def reverse_step(
    x: Tensor,
    model_output: Tensor | None,
    row: StepRow,
    *,
    seed: int | Tensor | None = None,
    step: int | Tensor = 0,
    start: int = 0,
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    uncond_output: Tensor | None = None,
    guidance_scale: float | Tensor | None = None,
    history: Sequence[Tensor] = (),
    log_variance: Tensor | None = None,
    doubled: Literal["uncond_first", "cond_first"] | None = None,
    prediction: Tensor | None = None,
    out: Tensor | None = None,
) -> Tensor:
    """One row of a StepTable applied to a batch:

        m = clamp(p_x x + p_F F);   x' = a x + b m + e F + c1 h1 + c2 h2 + c3 h3 + s z

    x: (n, *shape) float32, bfloat16 or float16 on the CPU or a CUDA device, as is every other tensor; the
    first axis counts samples. Half-precision tensors are computed with in float32 and rounded once.
    model_output: F, like x; None for a row without evaluation.
    Noise, for a row with s != 0, comes from exactly one of: seed, the package's stream at (seed, start + i,
    step), where step is the row's position in its table; noise, normals like x; generator, torch's own.
    uncond_output u, guidance_scale s: u + s (model_output - u) takes the place of F, with s a number or an
    (n,) tensor (Ho & Salimans 2022, s = 1 + w). A row of a guided table takes both.
    doubled: says that model_output is one batch (2n, *shape) of both halves, and which comes first; it then
    takes the place of uncond_output. "uncond_first" is what the pipelines of diffusers chunk.
    row.rescale, row.quantile: guidance rescale and dynamic thresholding, their statistics over each sample.
    history: up to three tensors h1, h2, h3 like x, shifted in place when the row pushes, each in memory of
    its own then.
    log_variance: like x; the noise is scaled by exp(log_variance / 2) in place of s.
    prediction: like x, contiguous, in memory of its own; m is written there.
    out: like x, contiguous; out=x updates in place. A new tensor when None.

    On CUDA the kernel is launched on torch's current stream, without waiting, and draws the same noise. seed
    and step may be int64 tensors of one element there, which a replayed CUDA graph reads anew. The values of
    a guidance_scale that is a tensor are not looked at, for that would wait.

    Returns out. Raises TypeError or ValueError, naming the argument, before anything is written.
    Where x is an array of NumPy, JAX, CuPy or another library with DLPack, the others may be too: no memory
    is copied for that, and a new result is an array of x's kind.
    Inside torch.compile it is one node of the graph, with seed or noise, not with a generator.

    >>> import diffusion_fast as df
    >>> table = df.solvers.ddpm(df.NoiseSchedule.linear(50))
    >>> x, eps = torch.ones(4, 2), torch.zeros(4, 2)
    >>> for i, row in enumerate(table):
    ...     x = df.ops.reverse_step(x, eps, row, seed=0, step=i, out=x)
    >>> x.shape
    torch.Size([4, 2])
    """
    if is_compiling() or not isinstance(x, Tensor):
        return _elsewhere(x)(
            x,
            model_output,
            row,
            seed=seed,
            step=step,
            start=start,
            noise=noise,
            generator=generator,
            uncond_output=uncond_output,
            guidance_scale=guidance_scale,
            history=history,
            log_variance=log_variance,
            doubled=doubled,
            prediction=prediction,
            out=out,
        )
    if not isinstance(row, StepRow):
        raise _checks.bad_type("row", row, "a StepRow, such as solvers.ddpm(schedule)[i]")
    if isinstance(prediction, bool):
        raise _checks.bad_type("prediction", prediction, "a tensor like x, to write to, or None")
    if generator is None and doubled is None:
        usual = _cpu.small_step(
            row.packed,
            row.terms,
            x,
            model_output,
            uncond_output,
            guidance_scale,
            history,
            log_variance,
            noise,
            prediction,
            out,
            seed,
            step,
            start,
        )
        if usual is not None:  # else large, or in a form that is looked at below
            return usual
    dtype, shape = x.dtype, x.shape
    if dtype not in _DTYPES or not shape:
        raise _checks.bad_value("x", x, _ACCEPTED)
    device = _tensors.CPU if x.is_cpu else _cuda_device(x)
    n, _ = shape[0], row.packed  # which raises for a row that no table could hold
    if doubled is not None:
        model_output, uncond_output = _halves(model_output, uncond_output, doubled, x, device)
    F = u = variance = scales = None
    given_x = _tensors.given("x", x, dtype, shape, device)
    if row.eval:
        F = _tensors.given("model_output", model_output, dtype, shape, device)
    elif model_output is not None or uncond_output is not None:
        name = "model_output" if model_output is not None else "uncond_output"
        value = model_output if model_output is not None else uncond_output
        raise _checks.bad_value(name, value, "None, for the row evaluates no network")
    scale = 1.0
    if uncond_output is not None:
        u = _tensors.given("uncond_output", uncond_output, dtype, shape, device)
        scale, scales = _guidance(guidance_scale, n, device)
    elif guidance_scale is not None:
        raise _checks.bad_value("guidance_scale", guidance_scale, "None where uncond_output is not given")
    elif row.eval and row.guidance != 1:
        guided = f"for the row is guided by {row.guidance:g}; dataclasses.replace(row, guidance=1.0) is not"
        raise _checks.bad_value("uncond_output", None, f"a tensor like x, {guided}")
    if log_variance is not None:
        variance = _tensors.given("log_variance", log_variance, dtype, shape, device)
    if row.rescale or row.quantile:
        _check_statistics(row, u, x)
    key, z = _noise_source(row, x, seed, noise, generator, device)
    if isinstance(step, Tensor) and device is not _tensors.CPU:
        position: int | Tensor = cuda.number("step", step, device)
    else:
        position = _checks.integer("step", step, 0, MAX_STEP)
    if type(start) is not int or not 0 <= start <= _checks.MAX_SAMPLES - n:
        _, start = _checks.sample_range(n, start)
    inputs, h = (given_x, F, u, variance, z), [0, 0, 0]
    if type(history) is not tuple or history or row.terms & _ANY_HISTORY:
        h = _history(history, row, given_x, (*inputs, scales), device)
    if out is None:
        result = _tensors.empty_like(x)
    elif out is given_x and not history and scales is None:  # the usual call: x has been looked at
        result = x
        _tensors.no_overlap("out", x, inputs, in_place=True)
    else:
        result = _tensors.output("out", out, dtype, shape, inputs, in_place=True, device=device)
        if history or scales is not None:
            _tensors.output("out", out, dtype, shape, (*history, scales), in_place=False, device=device)
    if prediction is not None:
        others = (*inputs, *history, scales, result)
        _tensors.output("prediction", prediction, dtype, shape, others, in_place=False, device=device)
    numel = x.numel()
    if numel == 0:
        return result
    # Drawn last: a refused call leaves the generator as it was.
    if generator is not None and row.s != 0:
        z = torch.randn(shape, dtype=dtype, generator=generator, device=device)
    if isinstance(key, torch.Generator):
        key = _checks.seed("seed", key)
    launch(row, result, given_x, F, u, scales, h, variance, z, prediction, scale, start, key, position)
    return result


def launch(
    row: StepRow,
    out: Tensor,
    x: Tensor,
    F: Tensor | None,
    u: Tensor | None = None,
    scales: Tensor | None = None,
    history: Sequence[int] = (0, 0, 0),
    variance: Tensor | None = None,
    z: Tensor | None = None,
    prediction: Tensor | None = None,
    scale: float = 1.0,
    start: int = 0,
    seed: int | Tensor = 0,
    step: int | Tensor = 0,
) -> None:
    """The kernel itself, for callers that have checked what `reverse_step` checks: contiguous tensors of x's
    dtype, shape and device, with elements; history by address."""
    tensors = (
        out.data_ptr(),
        x.data_ptr(),
        0 if F is None else F.data_ptr(),
        0 if u is None else u.data_ptr(),
        0 if scales is None else scales.data_ptr(),
        *history,
        0 if variance is None else variance.data_ptr(),
        0 if z is None else z.data_ptr(),
        0 if prediction is None else prediction.data_ptr(),
    )
    if not x.is_cpu or isinstance(seed, Tensor) or isinstance(step, Tensor):
        cuda.reverse_step(row, _DTYPES[x.dtype], tensors, scale, x, start, seed, step)
        return
    numel, n = x.numel(), x.shape[0]
    _cpu.reverse_step(
        row.packed,
        row.terms,
        _DTYPES[x.dtype],
        tensors,
        scale,
        n,
        numel // n,
        start,
        seed,
        step,
        1 if numel < _ONE_THREAD else threads.resolve(None),
    )


def _elsewhere(x: Any) -> Callable[..., Any]:
    """reverse_step for a function that is being compiled, or for arrays of another library."""
    if not isinstance(x, Tensor) and not hasattr(x, "__dlpack__"):
        raise _checks.bad_type("x", x, _ACCEPTED)
    if isinstance(x, Tensor):
        from diffusion_fast import compile_ops

        return compile_ops.reverse_step
    from diffusion_fast import foreign_arrays

    return foreign_arrays.reverse_step


def _cuda_device(x: Tensor) -> torch.device:
    """x's device, where there are kernels for it."""
    reason = cuda.problem() if x.is_cuda else None
    if reason is not None:
        raise _checks.bad_value("x", x, f"{_KIND} on the CPU, for CUDA cannot be used: {reason}")
    if not x.is_cuda:
        raise _checks.bad_value("x", x, _ACCEPTED)
    return x.device


def _halves(
    both: Any, uncond_output: Any, doubled: Any, x: Tensor, device: torch.device
) -> tuple[Tensor, Tensor]:
    """The conditional and the unconditional half of one doubled batch."""
    order = _checks.choice("doubled", doubled, ("uncond_first", "cond_first"))
    if uncond_output is not None:
        raise _checks.bad_value("uncond_output", uncond_output, "None with doubled, for model_output has it")
    first, second = _tensors.given(
        "model_output", both, x.dtype, (2 * x.shape[0], *x.shape[1:]), device
    ).tensor_split(2)
    return (second, first) if order == "uncond_first" else (first, second)


def _guidance(scale: Any, n: int, device: torch.device) -> tuple[float, Tensor | None]:
    """One scale for all samples, or a tensor of one a sample."""
    accepted = f"a finite number, or a float32 tensor of shape ({n},), where uncond_output is given"
    if isinstance(scale, Tensor):
        if scale.shape != (n,) or scale.dtype is not torch.float32 or scale.device != device:
            raise _checks.bad_value("guidance_scale", scale, accepted)
        scales = _tensors.given("guidance_scale", scale, scale.dtype, (n,), device)
        return 1.0, _checks.finite("guidance_scale", scales) if device is _tensors.CPU else scales
    if scale is None:
        raise _checks.bad_value("guidance_scale", scale, accepted)
    return _checks.real("guidance_scale", scale, -_FLOAT32_MAX, _FLOAT32_MAX), None


def _check_statistics(row: StepRow, uncond_output: Tensor | None, x: Tensor) -> None:
    """Guidance rescale and dynamic thresholding look at each sample as a whole."""
    dim = x.numel() // max(len(x), 1)
    if row.rescale and uncond_output is not None and dim == 1:
        raise _checks.bad_value("x", x, "two elements a sample or more, for the row rescales by deviations")
    if dim > _MAX_STATISTICS:
        raise _checks.bad_value("x", x, "below 2^31 elements a sample, for the row looks at whole samples")


def _history(
    history: Any, row: StepRow, x: Tensor, inputs: tuple[Tensor | None, ...], device: torch.device
) -> list[int]:
    """The addresses of h1, h2, h3, 0 where absent."""
    needed = next((k for k, bit in _HISTORY_TERMS if row.terms & bit), 0)
    if not isinstance(history, (list, tuple)):
        raise _checks.bad_type("history", history, "a list or tuple of tensors like x")
    if not needed <= len(history) <= 3:
        raise _checks.bad_value("history", f"{len(history)} tensors", f"{needed} to 3 tensors like x")
    addresses = [0, 0, 0]
    for i, tensor in enumerate(history):
        others = (*inputs, *history[:i]) if row.push else ()  # else it is read alone, wherever it lies
        addresses[i] = _tensors.output(
            f"history[{i}]", tensor, x.dtype, x.shape, others, in_place=False, device=device
        ).data_ptr()
    return addresses


def _noise_source(
    row: StepRow, x: Tensor, seed: Any, noise: Any, generator: Any, device: torch.device
) -> tuple[int | Tensor | torch.Generator, Tensor | None]:
    """The seed, and the normals given; at most one source may be named, and a noisy row needs one."""
    if noise is None and generator is None:
        if type(seed) is int and 0 <= seed < 1 << 64:
            return seed, None  # the usual case
        if seed is None and row.s != 0:
            raise _checks.bad_value("seed", seed, "seed, noise or generator, for a row that adds noise")
    named = {"seed": seed, "noise": noise, "generator": generator}
    sources = [name for name, value in named.items() if value is not None]
    if len(sources) > 1:
        raise _checks.bad_value(sources[1], f"{' and '.join(sources)} together", "one source of noise")
    if generator is not None and not isinstance(generator, torch.Generator):
        raise _checks.bad_type("generator", generator, "a torch.Generator")
    z = None if noise is None else _tensors.given("noise", noise, x.dtype, x.shape, device)
    if seed is None:
        return 0, z
    if isinstance(seed, Tensor) and device is not _tensors.CPU:
        return cuda.number("seed", seed, device), z
    return (seed if isinstance(seed, torch.Generator) else _checks.seed("seed", seed)), z
