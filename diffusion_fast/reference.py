"""A Plan in plain torch: the algorithm as the papers write it, and what every kernel is compared with.

`run` is the reverse chain, `net` one evaluation of the network, `reverse_step_ref` the twin of
`ops.reverse_step`. All follow the noise stream of `diffusion_fast.noise`, in whatever dtype is asked for:
float64 computes with the same float32 weights, coefficients and noise, only without rounding.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as nnf
from torch import Tensor

from diffusion_fast import _checks
from diffusion_fast import noise as noise_stream
from diffusion_fast.network_table.table import NetworkTable
from diffusion_fast.network_table.twin import interpolated
from diffusion_fast.plan import Plan, TileProgram
from diffusion_fast.solvers.table import COEFFICIENTS, EVAL, PUSH, TERM_BITS, StepRow
from diffusion_fast.tile_ops import (
    SLOPES,
    BinaryOp,
    GatherOp,
    LinearOp,
    MapOp,
    NormOp,
    Op,
    ReduceOp,
    TableOp,
)

BFLOAT16_WIDTH = 32  # inputs and outputs below which a layer stays in float32, as in csrc/cpu/program.cpp

# function(value, parameter), by the names of tile_ops.FUNCTIONS.
FUNCTIONS: dict[str, Callable[[Tensor, float], Tensor]] = {
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
    "sin": lambda v, _: torch.sin(v),
    "cos": lambda v, _: torch.cos(v),
    "exp": lambda v, _: torch.exp(v),
    "log": lambda v, _: torch.log(v),
    "sqrt": lambda v, _: torch.sqrt(v),
    "abs": lambda v, _: torch.abs(v),
    "reciprocal": lambda v, _: torch.reciprocal(v),
    "pow": lambda v, exponent: torch.pow(v, exponent),
    "clamp_min": lambda v, low: torch.clamp(v, min=low),
    "clamp_max": lambda v, high: torch.clamp(v, max=high),
    "add": lambda v, c: v + c,
    "mul": lambda v, c: v * c,
    "relu_slope": lambda v, _: (v > 0).to(v.dtype),
    "leaky_relu_slope": lambda v, slope: torch.where(v > 0, 1.0, slope).to(v.dtype),
    "elu_slope": lambda v, alpha: torch.where(v > 0, 1.0, alpha * torch.exp(v)),
    "tanh_slope": lambda v, _: 1 - torch.tanh(v).square(),
    "sigmoid_slope": lambda v, _: torch.sigmoid(v) * torch.sigmoid(-v),
    "silu_slope": lambda v, _: torch.sigmoid(v) * (1 + v * torch.sigmoid(-v)),
    "gelu_slope": lambda v, _: _gelu_slope(v),
    "gelu_tanh_slope": lambda v, _: _gelu_tanh_slope(v),
    "mish_slope": lambda v, _: _mish_slope(v),
    "exponential": lambda v, base: torch.pow(base, v),
}


def _gelu_slope(v: Tensor) -> Tensor:
    """Phi(v) + v phi(v)"""
    density = torch.exp(-v.square() / 2) / math.sqrt(2 * math.pi)
    return torch.special.ndtr(v) + v * density


def _gelu_tanh_slope(v: Tensor) -> Tensor:
    """s + v s (1 - s) 2 u', s = sigmoid(2 u), u = sqrt(2 / pi) (v + 0.044715 v^3)"""
    scale = 2 * math.sqrt(2 / math.pi)
    twice_u = scale * (v + 0.044715 * v**3)
    s = torch.sigmoid(twice_u)
    return s + v * s * torch.sigmoid(-twice_u) * scale * (1 + 3 * 0.044715 * v.square())


def _mish_slope(v: Tensor) -> Tensor:
    """t + v sigmoid(v) (1 - t^2), t = tanh(softplus(v))"""
    t = torch.tanh(nnf.softplus(v))
    return t + v * torch.sigmoid(v) * (1 - t.square())


BINARY_FUNCTIONS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "add": torch.add,
    "sub": torch.sub,
    "mul": torch.mul,
    "div": torch.div,
}


@dataclass(frozen=True)
class Fixed:
    """Coordinates that are given: the replacement method (Song et al. 2021, appendix I.2).

    They are set to their values before each evaluation, with the noise of that row's level unless clean, and
    exactly in the end. mask: (*shape) bool, values: (n, *shape) or (1, *shape) float32.
    """

    mask: Tensor
    values: Tensor
    clean: bool = False

    def at_level(self, x: Tensor, signal: float, noise: float, seed: int, row: int, start: int) -> Tensor:
        if self.clean:
            return self.exact(x)
        z = _normal(len(x), math.prod(x.shape[1:]), seed, row, "forward", start).reshape(x.shape)
        return torch.where(self.mask, signal * self.values.to(x.dtype) + noise * z.to(x), x)

    def exact(self, x: Tensor) -> Tensor:
        return torch.where(self.mask, self.values.to(x.dtype), x)


def run(
    plan: Plan,
    n: int,
    *,
    seed: int = 0,
    start: int = 0,
    labels: Tensor | int | None = None,
    guidance: Tensor | None = None,
    context: Tensor | None = None,
    x_T: Tensor | None = None,
    noise: Tensor | None = None,
    fixed: Fixed | None = None,
    table: NetworkTable | None = None,
    low_rows: int = 0,
    dtype: torch.dtype = torch.float32,
    return_trajectory: bool = False,
) -> Tensor:
    """Samples start .. start + n of the seed's stream, (n, dim) in dtype.

    labels: an int or (n,) integers below n_classes, for a plan with classes. guidance: (n,) scales in place
    of the rows' own, for a plan with two branches. context: (n, n_context) or (n_context,), for a plan with a
    context. x_T: (n, dim) start values instead of the stream's. noise: (n_rows, n, dim) normals instead of
    the stream's. fixed: coordinates that are given. table: read in place of the network where x is on its
    grids. low_rows: the first rows, in which wide layers multiply what is rounded to bfloat16.
    return_trajectory: (n_rows + 1, n, dim), from x_T to the samples.
    Ho et al. 2020, algorithm 2, with the row's general coefficients.
    """
    n, start = _checks.sample_range(n, start)
    y = _class_indices(plan, n, labels)
    x = (_normal(n, plan.dim, seed, 0, "initial", start) if x_T is None else x_T).to(dtype)
    history = [torch.zeros_like(x) for _ in range(3)]
    trajectory = [x]
    conditions = y, None if context is None else context.to(dtype).expand(n, -1)
    for i, row in enumerate(plan.rows):
        model_output = torch.zeros_like(x)
        if row["flags"] & EVAL:
            if fixed is not None:
                x = fixed.at_level(x, float(row["signal"]), float(row["noise"]), seed, i, start)
            u = float(row["c_in"]) * x
            model_output = _guided(plan, row, u, conditions, guidance, low=i < low_rows)
            if table is not None:
                known, inside = interpolated(table, i, x, y)
                model_output = torch.where(inside[:, None], known, model_output)
        z = None
        if row["s"] != 0:
            z = (_normal(n, plan.dim, seed, i, "step", start) if noise is None else noise[i]).to(dtype)
        coefficients = {name: float(row[name]) for name in (*COEFFICIENTS, "quantile")}
        x, m = _advance(x, model_output, z, history, coefficients, plan.terms)
        if row["flags"] & PUSH:
            history = [m, *history[:2]]
        if fixed is not None and i + 1 == len(plan.rows):
            x = fixed.exact(x)
        trajectory.append(x)
    return torch.stack(trajectory) if return_trajectory else x


def net(
    plan: Plan | TileProgram,
    u: Tensor,
    table: Tensor | int,
    labels: Tensor | int | None = None,
    context: Tensor | None = None,
    low: bool = False,
) -> Tensor:
    """The network once: u (n, dim), table and labels an index each or (n,) of them, context (n, n_context) ->
    (n, dim) in u's dtype. low: the products of wide layers are of bfloat16."""
    values = {0: u}
    if plan.n_context:
        if context is None or context.shape != (len(u), plan.n_context):
            raise _checks.bad_value("context", context, f"a tensor of shape {(len(u), plan.n_context)}")
        values[1] = context
    for i, op in enumerate(plan.operations if isinstance(plan, Plan) else plan.ops):
        if isinstance(op, LinearOp):
            start = _init(op, plan, u, table, labels)
            start = start + values[op.addend] if op.addend else start
            x, weight = values[op.src], _cast(op.weight, u)
            if low and i >= plan.n_prologue and min(weight.shape) >= BFLOAT16_WIDTH:
                x, weight = x.bfloat16().to(u.dtype), weight.bfloat16().to(u.dtype)
            linear = start + x @ weight.T
            values[op.dst] = FUNCTIONS[op.activation](linear, op.act_param)
        elif isinstance(op, TableOp):
            values[op.dst] = _init(op, plan, u, table, labels).expand(len(u), -1)
        elif isinstance(op, GatherOp):  # parts of a value come in order
            part = values[op.src][:, torch.as_tensor(op.index, device=u.device)]
            values[op.dst] = torch.cat([values[op.dst], part], dim=1) if op.offset else part
        else:
            values[op.dst] = _other_op(op, values)
    return values[plan.out_value]


def _init(
    op: LinearOp | TableOp, plan: Plan | TileProgram, u: Tensor, table: Tensor | int, labels: Any
) -> Tensor:
    """bias + step_table[table] + class_table[labels], or joint_table[table, labels]: (n or 1, n_out)."""
    parts = []
    if isinstance(op, TableOp) and op.joint_table is not None:
        return torch.atleast_2d(_cast(op.joint_table[_index(table), _index(labels)], u))
    if op.bias is not None:
        parts.append(_cast(op.bias, u)[None])
    if op.step_table is not None:
        parts.append(torch.atleast_2d(_rows(op.step_table, table, u)))
    if op.class_table is not None:
        if labels is None:
            raise _checks.bad_value("labels", labels, f"class indices from 0 to {plan.n_classes - 1}")
        parts.append(torch.atleast_2d(_rows(op.class_table, labels, u)))
    return sum(parts[1:], parts[0]) if parts else u.new_zeros(1, 1)


def _other_op(op: Op, values: dict[int, Tensor]) -> Tensor:
    if isinstance(op, MapOp):
        names = (op.function, SLOPES[op.function]) if op.with_slope else (op.function,)
        return torch.cat([FUNCTIONS[name](values[op.src], op.param) for name in names], dim=1)
    if isinstance(op, BinaryOp):
        return BINARY_FUNCTIONS[op.function](values[op.src], values[op.src2])
    assert isinstance(op, NormOp | ReduceOp)
    groups = values[op.src].unflatten(1, (op.groups, -1))
    if isinstance(op, ReduceOp):
        return groups.mean(2) if op.function == "mean" else groups.sum(2)
    if op.function == "softmax":
        return groups.softmax(2).flatten(1)
    centered = groups - groups.mean(2, keepdim=True) if op.function == "layer_norm" else groups
    square = centered.square().mean(2, keepdim=True)
    out = (centered / torch.sqrt(square + op.epsilon)).flatten(1)
    if op.weight is not None:
        out = out * _cast(op.weight, out)
    return out if op.bias is None else out + _cast(op.bias, out)


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
    prediction: Tensor | None = None,
) -> Tensor:
    """One row of a table on a batch: x (n, *shape) and the network's output for it -> the new x, like x.

    model_output: like x; None where the row evaluates no network. step: the row's position in its table,
    which together with seed and start fixes the noise; noise: (n, *shape) normals instead.
    uncond_output u and guidance_scale s (a number or (n,)): F = u + s (model_output - u).
    history: up to three tensors h1, h2, h3 like x, shifted in place when the row pushes.
    log_variance: (n, *shape), the noise is scaled by exp(log_variance / 2) in place of row.s; a row with
    s = 0 stays free of noise.
    prediction: like x, m is written there.
    Half-precision tensors are computed with in float32 and rounded once at the end.
    """
    work = torch.float64 if x.dtype is torch.float64 else torch.float32
    needed = max((k for k in (1, 2, 3) if row.terms & TERM_BITS[f"c{k}"]), default=0)
    if not needed <= len(history) <= 3:
        raise _checks.bad_value("history", f"{len(history)} tensors", f"{needed} to 3 tensors of x's shape")
    coefficients: dict[str, Any] = {name: getattr(row, name) for name in (*COEFFICIENTS, "quantile")}
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
    if (uncond_output is None) != (guidance_scale is None):
        raise _checks.bad_value(
            "guidance_scale", guidance_scale, "a scale beside uncond_output, and only there"
        )
    if uncond_output is not None and guidance_scale is not None:
        predicted = guided(predicted, uncond_output.to(work), guidance_scale, row.rescale)
    past = [h.to(work, copy=True) for h in history]  # for history is about to be written
    x_next, m = _advance(x.to(work), predicted, z, past, coefficients, row.terms)
    if row.push:
        for kept, value in zip(history, [m, *past], strict=False):
            kept.copy_(value)
    if prediction is not None:
        prediction.copy_(m)
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

    row: the coefficients, and quantile for dynamic thresholding in place of the clamp.
    The sum runs in this order and leaves out the terms that are zero in the whole table, as the kernels do.
    """
    m = torch.zeros_like(x)
    if terms & TERM_BITS["p_x"]:
        m = row["p_x"] * x
    if terms & TERM_BITS["p_F"]:
        m = m + row["p_F"] * model_output
    if row["quantile"]:
        m = thresholded(m, row["quantile"], row["clip"])
    elif terms & TERM_BITS["clip"]:
        m = m.clamp(-row["clip"], row["clip"])
    operands = {"a": x, "b": m, "e": model_output, **{f"c{k}": h for k, h in enumerate(history, start=1)}}
    total = torch.zeros_like(x)
    for name, value in operands.items():
        if terms & TERM_BITS[name]:
            total = total + row[name] * value
    if z is not None:
        total = total + row["s"] * z
    return total, m


def guided(conditional: Tensor, unconditional: Tensor, scale: float | Tensor, rescale: float = 0.0) -> Tensor:
    """F = u + s (c - u) (Ho & Salimans 2022, with s = 1 + w), times rescale std(c) / std(F) + 1 - rescale.

    scale: a number or (n,). rescale: phi of Lin et al. 2024, section 3.4; deviations over each sample.
    """
    s = torch.as_tensor(scale, dtype=unconditional.dtype, device=unconditional.device)
    column = s.reshape(s.shape + (1,) * (unconditional.ndim - s.ndim)) if s.ndim else s
    F = unconditional + column * (conditional - unconditional)
    if not rescale:
        return F
    axes = tuple(range(1, F.ndim))
    ratio = conditional.std(axes, unbiased=False, keepdim=True) / F.std(axes, unbiased=False, keepdim=True)
    return (rescale * ratio + (1 - rescale)) * F


def thresholded(x0: Tensor, ratio: float, most: float) -> Tensor:
    """Dynamic thresholding (Saharia et al. 2022, section 2.3): x0 (n, *shape) clamped to [-q, q] and divided
    by q, the quantile of |x0| over each sample, limited to [1, most]."""
    q = x0.abs().flatten(1).quantile(ratio, dim=1).clamp(1, most)
    q = q.reshape(-1, *(1,) * (x0.ndim - 1))
    return x0.clamp(-q, q) / q


def _guided(
    plan: Plan,
    row: Any,
    u: Tensor,
    conditions: tuple[Tensor | None, Tensor | None],
    guidance: Tensor | None,
    low: bool,
) -> Tensor:
    """F of one branch, or the guided F of two; a row with s = 1 is outside of the guided interval.

    conditions: labels (n,) and context (n, n_context). guidance: (n,), each sample's own s.
    """
    labels, context = conditions
    conditional = net(plan, u, int(row["table"]), labels, context, low)
    if plan.branches == 1 or row["guidance"] == 1:
        return conditional
    null_class = plan.n_classes - 1 if plan.n_classes else None
    if plan.null_context >= 0:
        null = plan.blob[plan.null_context : plan.null_context + plan.n_context]
        context = _cast(null, u).expand(len(u), -1)
    unconditional = net(plan, u, int(row["table"]), null_class, context, low)
    scale = float(row["guidance"]) if guidance is None else guidance
    return guided(conditional, unconditional, scale, float(row["rescale"]))


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
    return noise_stream.normal_ref(n, dim, seed=seed, step=step, purpose=purpose, start=start)


def _cast(array: Any, like: Tensor) -> Tensor:
    return torch.tensor(array, dtype=like.dtype, device=like.device)


def _rows(array: Any, index: Tensor | int, like: Tensor) -> Tensor:
    return _cast(array[_index(index)], like)


def _index(index: Tensor | int) -> Any:
    return index.cpu().numpy() if isinstance(index, Tensor) else index
