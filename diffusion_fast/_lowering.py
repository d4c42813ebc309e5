"""From an exported graph to the layers of a tile program: what depends on x stays, all the rest becomes
tables.

Every node of the graph has a set of inputs that it depends on, out of x, t and y (its binding time). A node
without x, and not with both t and y, is run by torch itself, once for all timesteps or classes together;
such nodes enter the layers as tables. The others are followed symbolically as feature rows: segments of a
layer's output, each plus a Shift (bias + f(t) + g(y)), until a linear layer takes them in.
"""

from __future__ import annotations

import operator
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from diffusion_fast._graph import (
    CONCATENATIONS,
    DROPOUTS,
    KEEPS,
    METADATA_OPERANDS,
    RESHAPES,
    CaptureError,
    activation_of,
    argument,
    number,
    op_name,
    operands,
    refusal,
    tail_of,
    where,
)
from diffusion_fast.plan import MAX_LAYERS, MAX_WIDTH, LinearOp

NOT_A_SUM = "it joins the time step and the class other than by a sum or side by side"


@dataclass(frozen=True, eq=False)
class Shift:
    """A row vector that does not depend on x: bias (width,) + step[table] + label[class], float64; None is
    zero."""

    bias: Tensor | None = None
    step: Tensor | None = None
    label: Tensor | None = None

    def __add__(self, other: Shift) -> Shift:
        pairs = ((self.bias, other.bias), (self.step, other.step), (self.label, other.label))
        return Shift(*(b if a is None else a if b is None else a + b for a, b in pairs))

    def through(self, weight: Tensor) -> Shift:
        """The shift that a linear layer with these weight columns makes of this one, in float64."""
        matrix = weight.double().T
        return Shift(
            *(None if part is None else part @ matrix for part in (self.bias, self.step, self.label))
        )

    def __bool__(self) -> bool:
        return any(part is not None for part in (self.bias, self.step, self.label))


@dataclass(frozen=True, eq=False)
class Layer:
    """A linear layer that reads x; it becomes an op only if the network's output comes from it."""

    source: Layer  # or INPUT
    weight: Tensor
    shift: Shift
    where: str
    folded: int  # columns of the module's weight that went into tables
    activation: str = "identity"
    act_param: float = 0.0


# The network's input, which has no source.
INPUT = Layer(None, torch.empty(0), Shift(), "", 0)  # type: ignore[arg-type]


@dataclass(frozen=True, eq=False)
class Segment:
    """Neighbouring columns of a feature row: a layer's output (or none) plus a shift."""

    layer: Layer | None
    width: int
    shift: Shift


Features = tuple[Segment, ...]


@dataclass
class Slot:
    """The memory that a node's tensor lives in; views and in-place results share their base's slot."""

    depends: frozenset[str]
    protected: str = ""  # what it is, if the module must not write to it
    features: Features | None = None


@dataclass
class World:
    """Values of the nodes that depend on t (or y) alone, for all timesteps (or classes) as one batch."""

    rows: int  # of the batch
    used: int  # how many of them are timesteps (classes), the rest is padding
    values: dict[fx.Node, Any] = field(default_factory=dict)

    def operand(self, node: fx.Node) -> Any:
        """A node's value; one that cannot exist here is read for its shape only, so zeros do."""
        if node not in self.values:
            self.values[node] = self._zeros(node.meta["val"])
        return self.values[node]

    def _zeros(self, fake: Tensor) -> Tensor:
        shape = [self._size(size) for size in fake.shape]
        return torch.zeros(shape, dtype=fake.dtype, device=fake.device)

    def _size(self, size: Any) -> int:
        if isinstance(size, int):
            return size
        expression = size.node.expr
        return int(expression.subs({symbol: self.rows for symbol in expression.free_symbols}))


class Lowering:
    """Walks the graph once, in its order; `ops` and `explain` are the result after `finish`."""

    def __init__(self, dim: int, steps: World, classes: World | None) -> None:
        self.dim, self.steps, self.classes = dim, steps, classes
        self.slots: dict[fx.Node, Slot] = {}
        self.batch: Any = None
        self.ops: list[LinearOp] = []
        self.explain: list[str] = []
        self.evaluated = 0

    # --- nodes ---------------------------------------------------------------------------------------------

    def placeholder(self, node: fx.Node, name: str, depends: str, value: Any) -> None:
        """An input of the graph: x, t, y (depends names it) or a parameter, buffer or constant."""
        self.slots[node] = Slot(frozenset(depends), protected=name)
        if depends == "x":
            self.batch = node.meta["val"].shape[0].node.expr
            self.slots[node].features = (Segment(INPUT, self.dim, Shift()),)
        for world in self._worlds():
            if not depends:
                world.values[node] = value

    def call(self, node: fx.Node) -> None:
        name = op_name(node)
        if name.startswith(("_assert", "sym_constrain")):
            return
        in_eval = name.removesuffix("_") in DROPOUTS and not node.args[2]
        self._refuse_random(node, in_eval)
        written = self._written_operand(node)
        base = self._shared_operand(node, in_eval)
        depends = self._dependence(node, name)
        slot = self.slots[base] if base is not None else Slot(frozenset())
        if written is not None and slot.protected:
            raise refusal(node, f"it writes to {slot.protected}, which sampling must leave as it is")
        before, slot.depends = slot.depends, slot.depends | depends
        self.slots[node] = slot
        if not _symbolic(slot.depends):
            self._evaluate(node, slot.depends)
            return
        if written is not None and not _symbolic(before):
            raise refusal(node, "it writes a value that depends on x (or on t and y) into one that does not")
        features = self._lower(node, "keep" if in_eval else name)
        if base is None or written is not None:
            slot.features = features

    def finish(self, node: fx.Node) -> int:
        """The value id of the graph's output."""
        slot = self.slots[node]
        single = slot.features[0] if slot.features and len(slot.features) == 1 else None
        if single is None or single.layer is None or single.layer is INPUT or single.shift:
            raise refusal(node, "the output is not that of a linear layer on values that depend on x")
        if single.width != self.dim:
            raise refusal(node, f"the output has {single.width} elements per sample and x has {self.dim}")
        chain = [single.layer]
        while chain[-1].source is not INPUT:
            chain.append(chain[-1].source)
        for layer in reversed(chain):
            self._emit(layer)
        once = f"{self.evaluated} operations that do not read x: run once, for all steps together"
        self.explain.insert(0, once)
        return len(self.ops)

    def _worlds(self) -> list[World]:
        return [self.steps] if self.classes is None else [self.steps, self.classes]

    def _refuse_random(self, node: fx.Node, in_eval: bool) -> None:
        random = torch.Tag.nondeterministic_seeded in getattr(node.target, "tags", ())
        if (random or op_name(node).removesuffix("_") in DROPOUTS) and not in_eval:
            raise refusal(node, "it draws random numbers, so the result is no function of x, t and y")

    def _written_operand(self, node: fx.Node) -> fx.Node | None:
        for operand, declared in operands(node):
            if declared.alias_info is not None and declared.alias_info.is_write:
                return operand
        return None

    def _shared_operand(self, node: fx.Node, in_eval: bool) -> fx.Node | None:
        """The operand whose memory the result is in, if any."""
        if node.target is operator.getitem or in_eval:
            return node.args[0] if isinstance(node.args[0], fx.Node) else None
        for operand, declared in operands(node):
            if declared.alias_info is not None:
                after = node.meta["val"]
                # .to() another dtype has to copy, though its schema allows for a view.
                converted = isinstance(after, Tensor) and operand.meta["val"].dtype != after.dtype
                return None if converted else operand
        return None

    def _dependence(self, node: fx.Node, name: str) -> frozenset[str]:
        skipped = METADATA_OPERANDS.get(name, ())
        read: list[fx.Node] = []
        data = [arg for i, arg in enumerate(node.args) if i not in skipped]
        fx.node.map_arg((data, dict(node.kwargs)), read.append)
        return frozenset().union(*(self.slots[operand].depends for operand in read))

    def _evaluate(self, node: fx.Node, depends: frozenset[str]) -> None:
        """Runs a node as it stands in every world where its operands exist."""
        self.evaluated += 1
        for world, kind in zip(self._worlds(), "ty", strict=False):
            if depends <= {kind}:
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), world.operand)
                try:
                    assert callable(node.target)
                    world.values[node] = node.target(*args, **kwargs)
                except Exception as error:
                    reason = f"it cannot be run for all steps or classes at once ({error})"
                    raise refusal(node, reason) from error

    # --- symbolic operations -------------------------------------------------------------------------------

    def _lower(self, node: fx.Node, name: str) -> Features:
        name = name if name.startswith("_") else name.removesuffix("_")
        self._check_shape(node)
        args = node.args
        if name in KEEPS or name in RESHAPES or name == "keep":
            return self._features(args[0], node)
        if name == "linear":
            return self._linear(node, args[0], args[1], argument(node, "bias", None), transposed=False)
        if name == "addmm" and number(node, "beta", 1) == 1 and number(node, "alpha", 1) == 1:
            return self._linear(node, args[1], args[2], args[0], transposed=True)
        if name in CONCATENATIONS:
            return self._cat(node)
        if name == "add" and number(node, "alpha", 1) == 1:
            return self._add(node, args[0], args[1])
        activation = activation_of(node, name)
        if activation is not None:
            return self._activate(node, *activation)
        if "x" not in self.slots[node].depends:
            raise refusal(node, NOT_A_SUM)
        raise refusal(node, "no fused kernel has this operation on values that depend on x")

    def _check_shape(self, node: fx.Node) -> None:
        fake = node.meta["val"]
        if not isinstance(fake, Tensor):
            raise refusal(node, "no fused kernel has this operation on values that depend on x")
        size = fake.shape[0] if fake.ndim else 1
        if isinstance(size, int) or size.node.expr != self.batch:
            raise refusal(node, "it mixes the samples of a batch, or moves the batch from the first axis")
        if not all(isinstance(size, int) for size in fake.shape[1:]):
            raise refusal(node, "its result's shape depends on the batch size")
        if "x" not in self.slots[node].depends and not fake.is_floating_point():
            raise refusal(node, NOT_A_SUM)
        if fake.dtype != torch.float32:
            raise refusal(node, f"it computes in {fake.dtype}; the kernels compute in float32")

    def _features(self, operand: Any, node: fx.Node) -> Features:
        """An operand as a feature row; what does not depend on x is spread to the width of the node."""
        if isinstance(operand, fx.Node) and _symbolic(self.slots[operand].depends):
            features = self.slots[operand].features
            width = tail_of(operand).numel()
            if features is None or sum(s.width for s in features) != width:
                raise refusal(node, "it reads a part of a value that depends on x")
            return features
        tail = tail_of(operand if isinstance(operand, fx.Node) and op_name(node) in CONCATENATIONS else node)
        return (Segment(None, tail.numel(), self._table(operand, tail, node)),)

    def _table(self, operand: Any, tail: torch.Size, node: fx.Node) -> Shift:
        """A number, or a tensor that depends on t or y or neither, as a shift for samples of shape tail."""
        if not isinstance(operand, fx.Node):
            return Shift(bias=torch.full((tail.numel(),), float(operand), dtype=torch.float64))
        depends = self.slots[operand].depends
        world = self.classes if "y" in depends else self.steps
        assert world is not None
        value = world.operand(operand)
        if not isinstance(value, Tensor):
            raise refusal(node, "it uses the batch size, or an element of t, as a plain number")
        value = value.detach().to("cpu", torch.float64)
        value = value.expand(world.rows, *tail).reshape(world.rows, tail.numel()).clone()
        if depends:
            return Shift(**{"label" if "y" in depends else "step": value[: world.used]})
        if not bool((value == value[0]).all()):
            raise refusal(node, "it uses a sample's position in the batch")
        return Shift(bias=value[0])

    def _linear(self, node: fx.Node, operand: Any, matrix: Any, bias: Any, *, transposed: bool) -> Features:
        if self.slots[matrix].depends or (bias is not None and _symbolic(self.slots[bias].depends)):
            raise refusal(node, "its weights depend on the step, the class or x")
        if tail_of(operand).numel() != tail_of(operand)[-1:].numel():
            raise refusal(node, "it is applied to several rows per sample")
        weight = self.steps.operand(matrix).detach().to("cpu")
        weight = weight.T.contiguous() if transposed else weight
        shift = Shift() if bias is None else self._table(bias, tail_of(node), node)
        start, found = 0, []
        for segment in self._features(operand, node):
            columns = weight[:, start : start + segment.width]
            start += segment.width
            shift = shift + segment.shift.through(columns)
            if segment.layer is not None:
                found.append((segment.layer, columns))
        n_out = weight.shape[0]
        if not found:
            return (Segment(None, n_out, shift),)
        if len(found) > 1:
            raise refusal(node, "it reads two values that depend on x side by side (a skip connection)")
        source, columns = found[0]
        layer = Layer(source, columns, shift, where(node), weight.shape[1] - columns.shape[1])
        return (Segment(layer, n_out, Shift()),)

    def _cat(self, node: fx.Node) -> Features:
        operands: Sequence[Any] = node.args[0]  # type: ignore[assignment]
        if len(tail_of(node)) != 1 or argument(node, "dim", 0) not in (1, -1):
            raise refusal(node, "it joins along another axis than the features'")
        return tuple(segment for operand in operands for segment in self._features(operand, node))

    def _add(self, node: fx.Node, first: Any, second: Any) -> Features:
        for operand in (first, second):
            symbolic = isinstance(operand, fx.Node) and _symbolic(self.slots[operand].depends)
            if symbolic and tail_of(operand) != tail_of(node):
                raise refusal(node, "it spreads a value that depends on x over several columns")
        a, b = self._features(first, node), self._features(second, node)
        if len(a) > 1 or len(b) > 1:
            raise refusal(node, "it adds to values that were joined side by side")
        (left,), (right,) = a, b
        if left.layer is not None and right.layer is not None:
            raise refusal(node, "it adds two values that depend on x (a residual connection)")
        layer, shift = left.layer or right.layer, left.shift + right.shift
        if layer is not None and layer is not INPUT and layer.activation == "identity":
            # Added to a linear layer before its activation: part of the layer's own bias or tables.
            layer, shift = replace(layer, shift=layer.shift + shift), Shift()
        return (Segment(layer, left.width, shift),)

    def _activate(self, node: fx.Node, activation: str, param: float) -> Features:
        features = self._features(node.args[0], node)
        if "x" not in self.slots[node].depends:
            raise refusal(node, NOT_A_SUM)
        layer = features[0].layer
        if len(features) > 1 or layer is None or layer is INPUT or features[0].shift:
            raise refusal(node, "an activation that does not follow a linear layer directly")
        if layer.activation != "identity":
            raise refusal(node, f"an activation on top of another ({layer.activation})")
        return (replace(features[0], layer=replace(layer, activation=activation, act_param=param)),)

    # --- ops -----------------------------------------------------------------------------------------------

    def _emit(self, layer: Layer) -> None:
        """Appends the op of a layer; it reads the value that the op before it wrote."""
        n_out, n_in = layer.weight.shape
        if n_out > MAX_WIDTH:
            raise CaptureError(f"a layer of width {n_out}, over {MAX_WIDTH}", "", layer.where)
        if len(self.ops) == MAX_LAYERS:
            raise CaptureError(f"more than {MAX_LAYERS} linear layers that depend on x", "", layer.where)
        shift = layer.shift
        if shift.bias is not None and shift.step is not None:
            shift = Shift(None, shift.step + shift.bias, shift.label)
        # The one rounding to float32 of what was folded.
        bias, step, label = (
            None if part is None else part.float().numpy() for part in (shift.bias, shift.step, shift.label)
        )
        weight = layer.weight.contiguous().numpy().copy()
        if not all(np.isfinite(array).all() for array in (weight, bias, step, label) if array is not None):
            raise CaptureError("a layer's weights or tables hold NaN or infinity", "", layer.where)
        src, dst = len(self.ops), len(self.ops) + 1
        self.ops.append(LinearOp(src, dst, weight, bias, step, label, layer.activation, layer.act_param))
        self.explain.append(_line(dst, n_in, n_out, layer))


def _line(number: int, n_in: int, n_out: int, layer: Layer) -> str:
    parts = [f"layer {number}: linear {n_in} -> {n_out}"]
    if layer.folded:
        parts.append(f"{layer.folded} columns that do not read x folded")
    for table, name in ((layer.shift.step, "step"), (layer.shift.label, "class")):
        if table is not None:
            parts.append(f"{name} table {table.shape[0]} x {n_out}")
    if layer.activation != "identity":
        parts.append(f"{layer.activation} fused")
    return ", ".join(parts)


def _symbolic(depends: frozenset[str]) -> bool:
    return "x" in depends or depends >= {"t", "y"}
