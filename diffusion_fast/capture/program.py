"""From expressions to the operations of a tile program: what is fused, what is folded, what is left out.

Expressions are taken in the order of their making, so operands come first. Each becomes a pending operation
that its only reader may still complete (an activation, a sum, a scale); it is emitted when something reads
it as a value. What nothing reads is never emitted. What reads the context and the class alone, neither x nor
the step, is kept apart from what changes, for it runs once for a sample's whole chain.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from diffusion_fast.capture.explain import line_of
from diffusion_fast.capture.expr import (
    Binary,
    Context,
    Expr,
    Gather,
    Input,
    Linear,
    Map,
    Norm,
    Reduce,
    Table,
    reachable,
    slope_pairs,
)
from diffusion_fast.capture.graph import SMALLER, CaptureError
from diffusion_fast.plan_validation import MAX_OPS, MAX_WIDTH
from diffusion_fast.tile_ops import (
    Array,
    BinaryOp,
    GatherOp,
    LinearOp,
    MapOp,
    NormOp,
    Op,
    ReduceOp,
    TableOp,
    changes,
    sources_of,
)

# A larger table is added to x itself rather than folded into the layer behind: x is subtracted from something
# of its own size there, and through the layer the difference would keep the rounding of both.
FOLDED_SHIFT = 8.0


@dataclass
class Layer:
    """activation(weight value[src] + shift + value[addend])."""

    src: int
    weight: Tensor
    shift: Table
    addend: int = 0
    activation: str = "identity"
    param: float = 0.0
    folded: int = 0  # columns of the module's weight that went into tables

    @property
    def open(self) -> bool:
        return self.activation == "identity"


@dataclass
class Normed:
    """A norm, then times weight, plus bias."""

    src: int
    norm: Norm
    weight: Tensor | None = None
    bias: Tensor | None = None


@dataclass
class Affine:
    """scale value[src] + shift."""

    src: int
    scale: Tensor | None
    shift: Table


Pending = int | Table | Gather | Layer | Normed | Affine


@dataclass
class Program:
    """ops, explain and out_value of the expression `out`; the first n_prologue ops run once for a chain."""

    out: Expr
    dim: int
    n_context: int = 0
    ops: list[Op] = field(default_factory=list)
    explain: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.widths = [self.dim, self.n_context] if self.n_context else [self.dim]
        self.once = set(range(1, len(self.widths)))  # values that are the same at every step
        self._constant: dict[int, bool] = {}
        self.pending: dict[int, Pending] = {}
        self.gathered: dict[object, int] = {}
        order = reachable(self.out)
        self.uses = Counter(source.serial for expr in order for source in expr.sources)
        self.uses[self.out.serial] += 1
        self.pairs = slope_pairs(order)
        for expr in order:
            self.place = expr.place
            self.pending[expr.serial] = self._pend(expr)
        self.out_value = self.read(self.out)
        if self.out_value == 0:
            self.out_value = self._emit(MapOp(0, len(self.widths), "identity"), self.out.width)
        prologue_first = sorted(range(len(self.ops)), key=lambda i: self.ops[i].dst not in self.once)
        self.n_prologue = sum(op.dst in self.once for op in self.ops)
        self.ops = [self.ops[i] for i in prologue_first]
        self.explain = [self.explain[i] for i in prologue_first]

    # ---- operations that may still grow

    def _pend(self, expr: Expr) -> Pending:
        if isinstance(expr, (Input, Context)):
            return int(isinstance(expr, Context))
        if isinstance(expr, (Table, Gather)):
            return expr
        if isinstance(expr, Linear):
            return self._linear(expr)
        if isinstance(expr, Map):
            return self._map(expr)
        if isinstance(expr, Norm):
            return Normed(self.read(expr.src), expr)
        if isinstance(expr, Reduce):
            src = self.read(expr.src)
            return self._emit(ReduceOp(src, len(self.widths), expr.function, expr.width), expr.width)
        assert isinstance(expr, Binary)
        found: Pending | None = None
        if expr.function in ("add", "sub"):
            found = self._add(expr)
        elif expr.function == "mul" and isinstance(expr.b, Table):
            found = self._scale(expr.a, expr.b)
        if found is None:
            op = BinaryOp(self.read(expr.a), self.read(expr.b), len(self.widths), expr.function)
            found = self._emit(op, expr.width)
        return found

    def _only_reader(self, expr: Expr) -> Pending | None:
        """The pending operation behind an expression with one reader, which may take it over."""
        return self.pending[expr.serial] if self.uses[expr.serial] == 1 else None

    def _is_once(self, expr: Expr) -> bool:
        """Whether it reads the context, the class or constants alone."""
        if expr.serial not in self._constant:
            own = not isinstance(expr, Input) and not (isinstance(expr, Table) and expr.changes)
            self._constant[expr.serial] = own and all(self._is_once(source) for source in expr.sources)
        return self._constant[expr.serial]

    def _linear(self, expr: Linear) -> Layer | Affine:
        src, weight = expr.src, expr.weight
        if isinstance(src, Gather):
            return self._linear_of_parts(expr, src)
        before = self._only_reader(src)
        if isinstance(before, Affine) and _foldable(before.shift):
            shift = before.shift.each(lambda part: part @ weight.T, expr.width)
            weight = weight if before.scale is None else weight * before.scale
            return self._unchanging(Layer(before.src, weight, shift))
        return Layer(self.read(src), weight, Table(width=expr.width))

    def _unchanging(self, layer: Layer) -> Layer | Affine:
        """A layer of what is the same at every step stays so: its step table is added behind it."""
        if layer.src not in self.once or not layer.shift.changes:
            return layer
        steps = layer.shift.without("bias", "label")
        layer.shift = layer.shift.without("step", "joint")
        return Affine(self._emit_layer(layer), None, steps)

    def _linear_of_parts(self, expr: Linear, src: Gather) -> Layer | Affine:
        """Columns of joined tables go into the layer's own; a permutation into the order of the columns;
        columns of what is the same at every step into a layer of the prologue, which starts the sum."""
        shift, start = Table(width=expr.width), 0
        kept: dict[bool, list[tuple[Expr, Array, Tensor]]] = {True: [], False: []}
        for source, index in src.parts:
            weight = expr.weight[:, start : start + len(index)]
            start += len(index)
            if isinstance(source, Table):
                taken = torch.from_numpy(index)
                shift = shift.plus(source.each(lambda p, i=taken, w=weight: p[..., i] @ w.T, expr.width))  # type: ignore[misc]
            else:
                kept[self._is_once(source)].append((source, index, weight))
        folded = expr.src.width - sum(weight.shape[1] for _, _, weight in kept[True] + kept[False])
        addend = 0
        if kept[True] and kept[False]:
            first = Layer(*self._columns(kept[True]), shift.without("bias", "step", "joint"))
            addend, shift = self._emit_layer(first), shift.without("label")
        layer = Layer(*self._columns(kept[False] or kept[True]), shift, addend, folded=folded)
        return self._unchanging(layer)

    def _columns(self, parts: list[tuple[Expr, Array, Tensor]]) -> tuple[int, Tensor]:
        """The value that holds the parts side by side, or in their source's order, and the weight."""
        weight = torch.cat([columns for _, _, columns in parts], 1)
        source, index, _ = parts[0]
        if len(parts) == 1 and np.array_equal(np.sort(index), np.arange(source.width)):
            return self.read(source), weight[:, torch.from_numpy(np.argsort(index))]
        return self._gather([(source, index) for source, index, _ in parts]), weight

    def _map(self, expr: Map) -> Pending:
        if expr.serial in self.pairs:
            return self._of_pair(expr)
        before = self._only_reader(expr.src)
        if isinstance(before, Layer) and before.open:
            before.activation, before.param = expr.function, expr.param
            return before
        op = MapOp(self.read(expr.src), len(self.widths), expr.function, expr.param)
        return self._emit(op, expr.width)

    def _of_pair(self, expr: Map) -> Pending:
        """Half of what one operation makes of an activation and its slope, which share their costly part."""
        both = self.pairs[expr.serial]
        if both.serial not in self.pending:
            op = MapOp(self.read(both.src), len(self.widths), both.function, both.param, with_slope=True)
            self.pending[both.serial] = self._emit(op, both.width)
        first = 0 if expr.function == both.function else expr.width
        return Gather(width=expr.width, parts=((both, np.arange(first, first + expr.width)),))

    def _scale(self, src: Expr, table: Table) -> Pending | None:
        factor = table.constant
        if factor is None:
            return None
        before = self._only_reader(src)
        if isinstance(before, Layer) and before.open and not before.addend:
            before.weight = before.weight * factor[:, None]
            before.shift = before.shift.each(lambda part: part * factor)
            return before
        if isinstance(before, Normed) and before.norm.function != "softmax":
            before.weight = factor if before.weight is None else before.weight * factor
            before.bias = None if before.bias is None else before.bias * factor
            return before
        if isinstance(before, Affine):
            before.scale = factor if before.scale is None else before.scale * factor
            before.shift = before.shift.each(lambda part: part * factor)
            return before
        return Affine(self.read(src), factor, Table(width=src.width))

    def _add(self, expr: Binary) -> Pending | None:
        if isinstance(expr.b, Table):
            return self._shift(expr.a, expr.b)
        a, b = self._only_reader(expr.a), self._only_reader(expr.b)
        sign = -1.0 if expr.function == "sub" else 1.0
        once_a, once_b = self._is_once(expr.a), self._is_once(expr.b)
        if self._takes_addend(b) and once_a >= once_b:
            assert isinstance(b, Layer)
            b.weight, b.shift = b.weight * sign, b.shift.each(lambda part: part * sign)
            return self._with_addend(b, expr.a, a)
        if sign == 1.0 and self._takes_addend(a) and once_b >= once_a:
            assert isinstance(a, Layer)
            return self._with_addend(a, expr.b, b)
        return None

    def _takes_addend(self, before: Pending | None) -> bool:
        return isinstance(before, Layer) and before.open and not before.addend and before.shift.joint is None

    def _with_addend(self, layer: Layer, other: Expr, before: Pending | None) -> Pending | None:
        """layer + other, or None where a class table or x itself is in the way."""
        if isinstance(before, Affine) and before.scale is None and before.src in self.once:
            layer.addend, layer.shift = before.src, layer.shift.plus(before.shift)
            return layer
        if isinstance(before, (Layer, Affine)) and not (isinstance(before, Layer) and not before.open):
            # One init is enough for both; a class table cannot stand beside an addend.
            moved = layer.shift
            if self._is_once(other):  # which a step table would end
                moved = moved.without("step", "joint")
            before.shift = before.shift.plus(moved)
            kept = layer.shift.without("bias", "label")
            layer.shift = kept if self._is_once(other) else Table(width=len(layer.weight))
        addend = self.read(other) if layer.shift.label is None else 0
        if not addend:
            return self._emit(BinaryOp(self.read(other), self._emit_layer(layer), len(self.widths), "add"))
        layer.addend = addend
        return layer

    def _shift(self, src: Expr, table: Table) -> Pending:
        before = self._only_reader(src)
        if isinstance(before, Layer) and before.open:
            before.shift = before.shift.plus(table)
            return self._unchanging(before)
        constant = table.constant
        if isinstance(before, Normed) and before.norm.function != "softmax" and constant is not None:
            before.bias = constant if before.bias is None else before.bias + constant
            return before
        if isinstance(before, Affine):
            before.shift = before.shift.plus(table)
            return before
        return Affine(self.read(src), None, table)

    # ---- emission

    def read(self, expr: Expr) -> int:
        """The id of the value; emits what is pending."""
        pending = self.pending[expr.serial]
        if isinstance(pending, int):
            return pending
        self.place = expr.place
        if isinstance(pending, Table):
            value = self._table(pending)
        elif isinstance(pending, Gather):
            value = self._gather(list(pending.parts))
        elif isinstance(pending, Layer):
            value = self._emit_layer(pending)
        elif isinstance(pending, Affine):
            value = self._emit_affine(pending)
        else:
            norm = pending.norm
            arrays = self._array(pending.weight), self._array(pending.bias)
            op = NormOp(pending.src, len(self.widths), norm.function, norm.groups, norm.epsilon, *arrays)
            value = self._emit(op, expr.width)
        self.pending[expr.serial] = value
        return value

    def _table(self, table: Table) -> int:
        joint = table.joint
        if joint is not None:
            for part, axis in ((table.bias, 0), (table.step, 1), (table.label, 0)):
                joint = joint + (0 if part is None else part.unsqueeze(axis))
            return self._emit(TableOp(len(self.widths), joint_table=self._array(joint)), table.width)
        bias, step, label = self._arrays(table)
        if bias is None and step is None and label is None:
            bias = np.zeros(table.width, np.float32)
        return self._emit(TableOp(len(self.widths), bias, step, label), table.width)

    def _gather(self, parts: list[tuple[Expr, Array]]) -> int:
        sources = [self.read(source) for source, _ in parts]
        if len(parts) == 1 and np.array_equal(parts[0][1], np.arange(parts[0][0].width)):
            return sources[0]
        key = tuple((source, index.tobytes()) for source, (_, index) in zip(sources, parts, strict=True))
        if key not in self.gathered:
            dst, offset, width = len(self.widths), 0, sum(len(index) for _, index in parts)
            for source, (_, index) in zip(sources, parts, strict=True):
                self._emit(GatherOp(source, dst, index, offset), width)
                offset += len(index)
            if not self.once.issuperset(sources):
                self.once.discard(dst)
            self.gathered[key] = dst
        return self.gathered[key]

    def _emit_layer(self, layer: Layer) -> int:
        width, shift, addend = len(layer.weight), layer.shift, layer.addend
        if shift.joint is not None or (addend and shift.label is not None):
            shift, table = Table(width=width), self._table(shift)
            addend = self._emit(BinaryOp(addend, table, len(self.widths), "add"), width) if addend else table
        weight = self._array(layer.weight)
        assert weight is not None
        op = LinearOp(
            layer.src,
            len(self.widths),
            weight,
            *self._arrays(shift),
            layer.activation,
            layer.param,
            addend,
        )
        return self._emit(op, width, layer.folded)

    def _emit_affine(self, affine: Affine) -> int:
        value, shift = affine.src, affine.shift
        if affine.scale is not None:
            table = Table(width=shift.width, bias=affine.scale)
            value = self._with_table(value, table, "mul")
        return value if shift.is_zero else self._with_table(value, shift, "add")

    def _with_table(self, value: int, table: Table, function: str) -> int:
        number = table.scalar
        if number is not None:
            return self._emit(MapOp(value, len(self.widths), function, number), table.width)
        other = self._table(table)
        return self._emit(BinaryOp(value, other, len(self.widths), function), table.width)

    def _arrays(self, table: Table) -> tuple[Array | None, Array | None, Array | None]:
        bias, step = table.bias, table.step
        if bias is not None and step is not None:
            step, bias = step + bias, None
        return self._array(bias), self._array(step), self._array(table.label)

    def _array(self, part: Tensor | None) -> Array | None:
        """The one rounding to float32 of what was folded."""
        if part is None:
            return None
        rounded = part.float().contiguous().numpy().copy()
        if not np.isfinite(rounded).all():
            raise CaptureError("a layer's weights or tables hold NaN or infinity", *self.place)
        return rounded

    def _emit(self, op: Op, width: int | None = None, folded: int = 0) -> int:
        width = self.widths[op.src] if width is None else width  # type: ignore[union-attr]
        if width > MAX_WIDTH:
            raise CaptureError(f"a layer of width {width}, over {MAX_WIDTH}", *self.place, SMALLER)
        if len(self.ops) == MAX_OPS:
            raise CaptureError(f"more than {MAX_OPS} operations that depend on x", *self.place, SMALLER)
        if not np.isfinite(np.float32(getattr(op, "param", 0.0))):
            raise CaptureError("a parameter is NaN or infinity", *self.place)
        self.ops.append(op)
        if op.dst == len(self.widths):
            self.widths.append(width)
            if self.once.issuperset(sources_of(op)) and not changes(op):
                self.once.add(op.dst)
        self.explain.append(line_of(op, self.widths, folded))
        return op.dst


def _foldable(shift: Table) -> bool:
    return all(part is None or bool(part.abs().max() <= FOLDED_SHIFT) for part in shift.parts)
