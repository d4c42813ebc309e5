"""One small function per aten operation: from an fx node to the expression of its result.

A rule gets the Lowering, which reads operands, and the node; it returns None for a form of the operation
that no kernel has. What only moves elements needs no rule (moves.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import fx

from diffusion_fast._tensors import CPU
from diffusion_fast.capture.expr import Expr, Map, Table
from diffusion_fast.capture.graph import activation_of, argument, number, operands, refusal, tail_of
from diffusion_fast.capture.rules_norm import NORM_RULES
from diffusion_fast.tile_ops import SLOPES

if TYPE_CHECKING:
    from diffusion_fast.capture.lowering import Lowering

Rule = Callable[["Lowering", fx.Node], Expr | None]


# ---- linear layers


def linear(low: Lowering, node: fx.Node) -> Expr | None:
    return _layer(low, node, node.args[0], node.args[1], argument(node, "bias", None), transposed=False)


def addmm(low: Lowering, node: fx.Node) -> Expr | None:
    bias, operand, matrix = node.args[:3]
    scales = number(node, "beta", 1), number(node, "alpha", 1)
    return _layer(low, node, operand, matrix, bias, transposed=True, scales=scales)


def matmul(low: Lowering, node: fx.Node) -> Expr | None:
    operand, matrix = node.args[:2]
    if low.slots[operand].depends and matrix.meta["val"].ndim == 2:  # type: ignore[index, union-attr]
        return _layer(low, node, operand, matrix, None, transposed=True)
    return None


def _layer(
    low: Lowering,
    node: fx.Node,
    operand: object,
    matrix: object,
    bias: object,
    *,
    transposed: bool,
    scales: tuple[float, float] = (1, 1),
) -> Expr:
    """operand @ weight.T + bias, for one row or several rows of each sample."""
    assert isinstance(operand, fx.Node) and isinstance(matrix, fx.Node)
    weight = low.constant(matrix, node, "its weights depend on the step, the class or x")
    weight = (weight.T if transposed else weight) * scales[1]
    if weight.ndim != 2:
        raise refusal(node, "its weight is not a matrix")
    tail = tuple(tail_of(operand))
    n_rows, n_in = math.prod(tail[:-1]), tail[-1]
    src = low.read_as_is(operand, node)
    if n_rows == 1:
        out = low.build.linear(src, weight)
    else:
        indices = torch.arange(n_rows * n_in, device=CPU).reshape(n_rows, n_in).numpy()
        rows = [low.build.linear(low.build.pick(src, index), weight) for index in indices]
        out = low.build.join(rows)
    if bias is None or scales[0] == 0:
        return out
    return low.build.add(out, low.build.scale(low.read(bias, tuple(tail_of(node)), node), scales[0]))


# ---- two operands


def _both(low: Lowering, node: fx.Node) -> tuple[Expr, Expr]:
    tail = tuple(tail_of(node))
    return low.read(node.args[0], tail, node), low.read(node.args[1], tail, node)


def _alpha(low: Lowering, node: fx.Node, expr: Expr) -> Expr:
    return low.build.scale(expr, number(node, "alpha", 1))


def add(low: Lowering, node: fx.Node) -> Expr:
    a, b = _both(low, node)
    return low.build.add(a, _alpha(low, node, b))


def sub(low: Lowering, node: fx.Node) -> Expr:
    a, b = _both(low, node)
    return low.build.sub(a, _alpha(low, node, b))


def rsub(low: Lowering, node: fx.Node) -> Expr:
    a, b = _both(low, node)
    return low.build.sub(b, _alpha(low, node, a))


def mul(low: Lowering, node: fx.Node) -> Expr:
    return low.build.mul(*_both(low, node))


def div(low: Lowering, node: fx.Node) -> Expr | None:
    if argument(node, "rounding_mode", None) is not None:
        return None
    return low.build.div(*_both(low, node))


def addcmul(low: Lowering, node: fx.Node) -> Expr:
    tail = tuple(tail_of(node))
    a, b, c = (low.read(operand, tail, node) for operand in node.args[:3])
    return low.build.add(a, low.build.scale(low.build.mul(b, c), number(node, "value", 1)))


def lerp(low: Lowering, node: fx.Node) -> Expr:
    tail = tuple(tail_of(node))
    a, b, weight = (low.read(operand, tail, node) for operand in node.args[:3])
    return low.build.add(a, low.build.mul(weight, low.build.sub(b, a)))


def extremum(function: str) -> Rule:
    """maximum or minimum with a number."""

    def rule(low: Lowering, node: fx.Node) -> Expr | None:
        a, b = _both(low, node)
        a, b = (b, a) if isinstance(a, Table) else (a, b)
        limit = b.scalar if isinstance(b, Table) else None
        return None if limit is None else low.build.map(a, function, limit)

    return rule


# ---- single features


def _own(low: Lowering, node: fx.Node) -> Expr:
    return low.read(node.args[0], tuple(tail_of(node)), node)


def activation(name: str) -> Rule:
    def rule(low: Lowering, node: fx.Node) -> Expr | None:
        found = activation_of(node, name)
        return None if found is None else low.build.map(_own(low, node), *found)

    return rule


def function(name: str) -> Rule:
    return lambda low, node: low.build.map(_own(low, node), name)


def prelu(low: Lowering, node: fx.Node) -> Expr | None:
    """With one slope for all features, which is leaky_relu."""
    slopes = low.constant(node.args[1], node, "its slopes depend on the step, the class or x")
    if slopes.numel() != 1:
        return None
    return low.build.map(_own(low, node), "leaky_relu", float(slopes))


def softplus(low: Lowering, node: fx.Node) -> Expr | None:
    """softplus(beta x) / beta; the threshold, for beta x, has to be the usual one."""
    beta = number(node, "beta", 1)
    if number(node, "threshold", 20) != 20 or not beta:
        return None
    inner = low.build.map(low.build.scale(_own(low, node), beta), "softplus")
    return low.build.scale(inner, 1 / beta)


def elu(low: Lowering, node: fx.Node) -> Expr:
    """scale (x or alpha (exp(input_scale x) - 1))."""
    scale, inner = number(node, "scale", 1), number(node, "input_scale", 1)
    if inner != 1:
        raise refusal(node, "elu with an input_scale", "scale its input before")
    return low.build.scale(low.build.map(_own(low, node), "elu", number(node, "alpha", 1)), scale)


def celu(low: Lowering, node: fx.Node) -> Expr:
    alpha = number(node, "alpha", 1)
    inner = low.build.scale(_own(low, node), 1 / alpha)
    return low.build.scale(low.build.map(inner, "elu", 1.0), alpha)


def selu(low: Lowering, node: fx.Node) -> Expr:
    elu_of = low.build.map(_own(low, node), "elu", 1.6732632423543772)
    return low.build.scale(elu_of, 1.0507009873554805)


def log_sigmoid(low: Lowering, node: fx.Node) -> Expr:
    build = low.build
    return build.scale(build.map(build.scale(_own(low, node), -1.0), "softplus"), -1.0)


def hard_sigmoid(low: Lowering, node: fx.Node) -> Expr:
    shifted = low.build.add(x := _own(low, node), low.build.number(x.width, 3.0))
    return low.build.scale(_between(low, shifted, 0.0, 6.0), 1 / 6)


def hard_swish(low: Lowering, node: fx.Node) -> Expr:
    return low.build.mul(_own(low, node), hard_sigmoid(low, node))


def hard_tanh(low: Lowering, node: fx.Node) -> Expr:
    return _between(low, _own(low, node), number(node, "min_val", -1), number(node, "max_val", 1))


def relu6(low: Lowering, node: fx.Node) -> Expr:
    return _between(low, _own(low, node), 0.0, 6.0)


def clamp(low: Lowering, node: fx.Node) -> Expr | None:
    limits = []
    for name in ("min", "max"):
        given = argument(node, name, None)
        limit = None if given is None else low.read(given, tuple(tail_of(node)), node)
        limits.append(limit.scalar if isinstance(limit, Table) else limit)
    if any(isinstance(limit, Expr) for limit in limits) or limits == [None, None]:
        return None
    return _between(low, _own(low, node), *limits)  # type: ignore[arg-type]


def _between(low: Lowering, expr: Expr, low_limit: float | None, high_limit: float | None) -> Expr:
    for name, limit in (("clamp_min", low_limit), ("clamp_max", high_limit)):
        expr = expr if limit is None else low.build.map(expr, name, limit)
    return expr


def neg(low: Lowering, node: fx.Node) -> Expr:
    return low.build.scale(_own(low, node), -1.0)


def square(low: Lowering, node: fx.Node) -> Expr:
    return low.build.mul(x := _own(low, node), x)


def rsqrt(low: Lowering, node: fx.Node) -> Expr:
    return low.build.map(low.build.map(_own(low, node), "sqrt"), "reciprocal")


def log_of_base(base: float) -> Rule:
    return lambda low, node: low.build.scale(low.build.map(_own(low, node), "log"), 1 / math.log(base))


def power(low: Lowering, node: fx.Node) -> Expr | None:
    """x^c, for the exponents that modules use products and roots, as torch has them; c^x."""
    build = low.build
    x, exponent = _both(low, node)
    c = exponent.scalar if isinstance(exponent, Table) else None
    if c is None:
        base = x.scalar if isinstance(x, Table) else None
        float32 = torch.finfo(torch.float32)  # of which the kernels take it
        if base is None or not float32.tiny <= base <= float32.max:
            return None
        return build.map(exponent, "exponential", base)
    small: dict[float, Callable[[], Expr]] = {
        0.0: lambda: build.number(x.width, 1.0),
        1.0: lambda: x,
        2.0: lambda: build.mul(x, x),
        3.0: lambda: build.mul(build.mul(x, x), x),
        0.5: lambda: build.map(x, "sqrt"),
        -0.5: lambda: build.map(build.map(x, "sqrt"), "reciprocal"),
        -1.0: lambda: build.map(x, "reciprocal"),
        -2.0: lambda: build.map(build.mul(x, x), "reciprocal"),
    }
    return small[c]() if c in small else build.map(x, "pow", c)


def exp2(low: Lowering, node: fx.Node) -> Expr:
    return low.build.map(_own(low, node), "exponential", 2.0)


def backward(name: str) -> Rule:
    """grad f'(z), the backward operation of the activation `name`: of (grad, z), or (grad, f(z))."""

    def rule(low: Lowering, node: fx.Node) -> Expr | None:
        found = activation_of(node, name)
        of_result = argument(node, "self_is_result", False) or argument(node, "is_result", False)
        if found is None or of_result or (name == "relu" and number(node, "threshold", 0) != 0):
            return None
        tail = tuple(tail_of(node))
        grad, z = (low.read(operand, tail, node) for operand, _ in operands(node))
        if name in ("tanh", "sigmoid"):  # these give f(z)
            if not isinstance(z, Map) or z.function != name:
                return None
            z = z.src
        return low.build.mul(grad, low.build.map(z, SLOPES[found[0]], found[1]))

    return rule


# ---- gated units, writes


def glu(low: Lowering, node: fx.Node) -> Expr | None:
    operand = node.args[0]
    assert isinstance(operand, fx.Node)
    tail, axis = tuple(tail_of(operand)), int(argument(node, "dim", -1))
    axis = axis - 1 if axis > 0 else axis + len(tail)
    if axis < 0:
        return None
    halves = torch.arange(math.prod(tail), device=CPU).reshape(tail).chunk(2, axis)
    src = low.read_as_is(operand, node)
    value, gate = (low.build.pick(src, half.numpy()) for half in halves)
    return low.build.mul(value, low.build.map(gate, "sigmoid"))


def copy(low: Lowering, node: fx.Node) -> Expr:
    return low.read(node.args[1], tuple(tail_of(node)), node)


def zero(low: Lowering, node: fx.Node) -> Expr:
    return low.build.number(math.prod(tail_of(node)), 0.0)


def pad(low: Lowering, node: fx.Node) -> Expr | None:
    operand, sides = node.args[0], node.args[1]
    assert isinstance(operand, fx.Node)
    value = argument(node, "value", None) or 0.0
    if argument(node, "mode", "constant") != "constant":
        return None
    tail = tuple(tail_of(operand))
    if len(sides) > 2 * len(tail):  # type: ignore[arg-type]
        return None
    width = math.prod(tail)
    index = torch.nn.functional.pad(torch.arange(width, device=CPU).reshape(tail), tuple(sides), value=width)  # type: ignore[arg-type]
    both = low.build.join([low.read_as_is(operand, node), low.build.number(1, float(value))])
    return low.build.pick(both, index.numpy())


def weighted_sum(low: Lowering, node: fx.Node) -> Expr | None:
    """einsum with a constant matrix over the last axis: "bi,ji->bj" and its like."""
    equation, operands = node.args[:2]
    assert isinstance(equation, str) and isinstance(operands, (list, tuple))
    left, arrow, out = equation.replace(" ", "").partition("->")
    terms = left.split(",")
    if len(operands) != 2 or not arrow or "." in left or any(len(set(t)) != len(t) for t in [*terms, out]):
        return None
    operand, matrix = operands
    assert isinstance(operand, fx.Node) and isinstance(matrix, fx.Node)
    if not low.slots[operand].depends:
        operand, matrix, terms = matrix, operand, terms[::-1]
    value, letters = terms
    summed = set(value) - set(out)
    if len(letters) != 2 or summed != {value[-1]} or value[-1] not in letters:
        return None
    if out[:-1] != value[:-1] or set(letters) != {value[-1], out[-1]} or out[-1] in value:
        return None
    return _layer(low, node, operand, matrix, None, transposed=letters[0] == value[-1])


RULES: dict[str, Rule] = {
    "linear": linear,
    "addmm": addmm,
    "mm": matmul,
    "matmul": matmul,
    "einsum": weighted_sum,
    "add": add,
    "sub": sub,
    "subtract": sub,
    "rsub": rsub,
    "mul": mul,
    "multiply": mul,
    "div": div,
    "divide": div,
    "true_divide": div,
    "addcmul": addcmul,
    "lerp": lerp,
    "maximum": extremum("clamp_min"),
    "minimum": extremum("clamp_max"),
    **{name: activation(name) for name in ("relu", "tanh", "sigmoid", "silu", "mish", "leaky_relu", "gelu")},
    **{name: function(name) for name in ("sin", "cos", "exp", "log", "sqrt", "abs", "reciprocal")},
    **{
        f"{name}_backward": backward(name)
        for name in ("tanh", "sigmoid", "silu", "mish", "leaky_relu", "gelu", "softplus", "elu")
    },
    "threshold_backward": backward("relu"),
    "prelu": prelu,
    "softplus": softplus,
    "elu": elu,
    "celu": celu,
    "selu": selu,
    "log_sigmoid": log_sigmoid,
    "hardsigmoid": hard_sigmoid,
    "hardswish": hard_swish,
    "hardtanh": hard_tanh,
    "relu6": relu6,
    "clamp": clamp,
    "clip": clamp,
    "clamp_min": clamp,
    "clamp_max": clamp,
    "neg": neg,
    "negative": neg,
    "square": square,
    "rsqrt": rsqrt,
    "log2": log_of_base(2.0),
    "log10": log_of_base(10.0),
    "pow": power,
    "exp2": exp2,
    "glu": glu,
    "copy": copy,
    "fill": copy,
    "zero": zero,
    "pad": pad,
    **NORM_RULES,
}
