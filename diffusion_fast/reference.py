"""A Plan in plain torch: the algorithm as the papers write it, and what every kernel is compared with.

`run` is the reverse chain, `net` one evaluation of the network, `reverse_step_ref` the twin of
`ops.reverse_step`. All follow the noise stream of `diffusion_fast.noise`, in whatever dtype is asked for:
float64 computes with the same float32 weights, coefficients and noise, only without rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from diffusion_fast import _checks
from diffusion_fast import noise as noise_stream
from diffusion_fast.plan import Plan, TileProgram
from diffusion_fast.solvers.table import COEFFICIENTS, EVAL, PUSH, TERM_BITS, StepRow

# activation(value, parameter), by the names of plan.ACTIVATIONS.
ACTIVATIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "identity": lambda v, _: v,
    "relu": lambda v, _: nnf.relu(v),
    "leaky_relu": lambda v, slope: nnf.leaky_relu(v, slope),
    "elu": lambda v, alpha: nnf.elu(v, alpha),
    "tanh": lambda v, _: torch.tanh(v),
    "sigmoid": lambda v, _: torch.sigmoid(v),
    "silu": lambda v, _: nnf.silu(v),
    "gelu": lambda v, _: nnf.gelu(v),
    "gelu_tanh": lambda v, _: nnf.gelu(v, approximate="tanh"),
    "softplus": lambda v, _: nnf.softplus(v),
    "mish": lambda v, _: nnf.mish(v),
}


def run(
    plan: Plan,
    n: int,
    *,
    seed: int = 0,
    start: int = 0,
    labels: Tensor | int | None = None,
    x_T: Tensor | None = None,
    noise: Tensor | None = None,
    dtype: torch.dtype = torch.float32,
    return_trajectory: bool = False,
) -> Tensor:
    """Samples start .. start + n of the seed's stream, (n, dim) in dtype.

    labels: an int or (n,) integers below n_classes, for a plan with classes. x_T: (n, dim) start values
    instead of the stream's. noise: (n_rows, n, dim) normals instead of the stream's. return_trajectory:
    (n_rows + 1, n, dim), from x_T to the samples. Ho et al. 2020, algorithm 2, with the row's general
    coefficients.
    """
    n, start = _checks.sample_range(n, start)
    y = _class_indices(plan, n, labels)
    x = (_normal(n, plan.dim, seed, 0, "initial", start) if x_T is None else x_T).to(dtype)
    history = [torch.zeros_like(x) for _ in range(3)]
    trajectory = [x]
    for i, row in enumerate(plan.rows):
        model_output = (
            _guided(plan, row, float(row["c_in"]) * x, y) if row["flags"] & EVAL else torch.zeros_like(x)
        )
        z = None
        if row["s"] != 0:
            z = (_normal(n, plan.dim, seed, i, "step", start) if noise is None else noise[i]).to(dtype)
        coefficients = {name: float(row[name]) for name in COEFFICIENTS}
        x, m = _advance(x, model_output, z, history, coefficients, plan.terms)
        if row["flags"] & PUSH:
            history = [m, *history[:2]]
        trajectory.append(x)
    return torch.stack(trajectory) if return_trajectory else x


def net(
    plan: Plan | TileProgram, u: Tensor, table: Tensor | int, labels: Tensor | int | None = None
) -> Tensor:
    """The network once: u (n, dim), table and labels an index each or (n,) of them -> (n, dim) in u's
    dtype."""
    values = {0: u}
    for layer in plan.layers:
        init = u.new_zeros(layer.weight.shape[0])
        if layer.bias is not None:
            init = _cast(layer.bias, u)
        if layer.step_table is not None:
            init = init + _rows(layer.step_table, table, u)
        if layer.class_table is not None:
            if labels is None:
                raise _checks.bad_value("labels", labels, f"class indices from 0 to {plan.n_classes - 1}")
            init = init + _rows(layer.class_table, labels, u)
        linear = init + values[layer.src] @ _cast(layer.weight, u).T
        values[layer.dst] = ACTIVATIONS[layer.activation](linear, layer.act_param)
    return values[plan.out_value]


def reverse_step_ref(
    x: Tensor,
    model_output: Tensor | None,
    row: StepRow,
    *,
    seed: int | None = None,
    step: int = 0,
    start: int = 0,
    noise: Tensor | None = None,
    uncond_output: Tensor | None = None,
    guidance_scale: float | Tensor | None = None,
    history: Sequence[Tensor] = (),
    log_variance: Tensor | None = None,
) -> Tensor:
    """One row of a table on a batch: x (n, *shape) and the network's output for it -> the new x, like x.

    model_output: like x; None where the row evaluates no network. step: the row's position in its table,
    which together with seed and start fixes the noise; noise: (n, *shape) normals instead.
    uncond_output u and guidance_scale s (a number or (n,)): F = u + s (model_output - u).
    history: up to three tensors h1, h2, h3 like x, shifted in place when the row pushes.
    log_variance: (n, *shape), the noise is scaled by exp(log_variance / 2) in place of row.s; a row with
    s = 0 stays free of noise.
    Half-precision tensors are computed with in float32 and rounded once at the end.
    """
    work = torch.float64 if x.dtype is torch.float64 else torch.float32
    needed = max((k for k in (1, 2, 3) if row.terms & TERM_BITS[f"c{k}"]), default=0)
    if not needed <= len(history) <= 3:
        raise _checks.bad_value("history", f"{len(history)} tensors", f"{needed} to 3 tensors of x's shape")
    coefficients: dict[str, Any] = {name: getattr(row, name) for name in COEFFICIENTS}
    z = None
    if row.s != 0:
        if noise is not None:
            z = noise
        elif seed is not None:
            z = _normal(x.shape[0], math.prod(x.shape[1:]), seed, step, "step", start).reshape(x.shape)
        else:
            raise _checks.bad_value("seed", seed, "an integer, or noise, for a row that adds noise")
        z = z.to(work)
        if log_variance is not None:
            coefficients["s"] = torch.exp(log_variance.to(work) / 2)
    predicted = torch.zeros_like(x, dtype=work) if model_output is None else model_output.to(work)
    if uncond_output is not None and guidance_scale is not None:
        base = uncond_output.to(work)
        scale = torch.as_tensor(guidance_scale, dtype=work)
        predicted = base + scale.reshape(scale.shape + (1,) * (x.ndim - scale.ndim)) * (predicted - base)
    past = [h.to(work, copy=True) for h in history]  # for history is about to be written
    x_next, m = _advance(x.to(work), predicted, z, past, coefficients, row.terms)
    if row.push:
        for kept, value in zip(history, [m, *past], strict=False):
            kept.copy_(value)
    return x_next.to(x.dtype)


def _advance(
    x: Tensor,
    model_output: Tensor,
    z: Tensor | None,
    history: Sequence[Tensor],
    row: Mapping[str, Any],
    terms: int,
) -> tuple[Tensor, Tensor]:
    """m = clamp(p_x x + p_F F);  x <- a x + b m + e F + c1 h1 + c2 h2 + c3 h3 + s z.  Returns (x, m).

    The sum runs in this order and leaves out the terms that are zero in the whole table, as the kernels do.
    """
    m = torch.zeros_like(x)
    if terms & TERM_BITS["p_x"]:
        m = row["p_x"] * x
    if terms & TERM_BITS["p_F"]:
        m = m + row["p_F"] * model_output
    if terms & TERM_BITS["clip"]:
        m = m.clamp(-row["clip"], row["clip"])
    operands = {"a": x, "b": m, "e": model_output, **{f"c{k}": h for k, h in enumerate(history, start=1)}}
    total = torch.zeros_like(x)
    for name, value in operands.items():
        if terms & TERM_BITS[name]:
            total = total + row[name] * value
    if z is not None:
        total = total + row["s"] * z
    return total, m


def _guided(plan: Plan, row: Any, u: Tensor, labels: Tensor | None) -> Tensor:
    """F, or with two branches F_u + s (F_c - F_u) (Ho & Salimans 2022, with s = 1 + w)."""
    conditional = net(plan, u, int(row["table"]), labels)
    if plan.branches == 1:
        return conditional
    unconditional = net(plan, u, int(row["table"]), plan.n_classes - 1)
    return unconditional + float(row["guidance"]) * (conditional - unconditional)


def _class_indices(plan: Plan, n: int, labels: Tensor | int | None) -> Tensor | None:
    if plan.n_classes == 0:
        if labels is not None:
            raise _checks.bad_value("labels", labels, "None, for the plan has no classes")
        return None
    accepted = f"an integer from 0 to {plan.n_classes - 1}, or ({n},) of them"
    if labels is None:
        raise _checks.bad_value("labels", labels, accepted)
    y = torch.as_tensor(labels)
    if y.is_floating_point() or y.shape not in ((), (n,)) or bool(((y < 0) | (y >= plan.n_classes)).any()):
        raise _checks.bad_value("labels", labels, accepted)
    return y.to(torch.int64).expand(n)


def _normal(n: int, dim: int, seed: int, step: int, purpose: str, start: int) -> Tensor:
    return torch.as_tensor(
        noise_stream.normal_ref(n, dim, seed=seed, step=step, purpose=purpose, start=start)
    )


def _cast(array: Any, like: Tensor) -> Tensor:
    return torch.tensor(array, dtype=like.dtype, device=like.device)


def _rows(array: Any, index: Tensor | int, like: Tensor) -> Tensor:
    return _cast(array[index.cpu().numpy() if isinstance(index, Tensor) else index], like)
