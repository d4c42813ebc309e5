"""From an exported graph to expressions: binding times, memory that is shared, and what is refused.

Every node of the graph has a set of inputs that it depends on, out of x, t, y and the context c (its binding
time). A node without x and c, and not with both t and y, is run by torch itself (worlds.py) and enters as a
table. The others are followed as expressions by the rules. What joins t and y by sums is a sum of two tables;
any other joint value is evaluated once for all pairs of step and class, within JOINT_BYTES.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from diffusion_fast.capture import moves
from diffusion_fast.capture.expr import Builder, Context, Expr, Input, Joint, Table
from diffusion_fast.capture.graph import (
    DROPOUTS,
    METADATA_OPERANDS,
    MIXES,
    MOVES,
    NO_KERNEL,
    POSITION,
    VIEW_OR_COPY,
    CaptureError,
    draws,
    op_name,
    operands,
    refusal,
    tail_of,
    where,
)
from diffusion_fast.capture.rules import RULES
from diffusion_fast.capture.worlds import World, Worlds

# Of all step x class tables together, in float32.
JOINT_BYTES = 256 << 20


@dataclass
class Slot:
    """The memory that a node's tensor lives in; views and in-place results share their base's slot.

    content: root's features, flattened, once they depend on x or on t and y together; an error where only
    torch can compute them.
    """

    root: fx.Node
    depends: frozenset[str]
    protected: str = ""  # what it is, if the module must not write to it
    content: Expr | CaptureError | None = None


class Lowering:
    """Walks the graph once, in its order; `output` gives the expression of the result."""

    def __init__(self, dim: int, worlds: Worlds, n_context: int = 0) -> None:
        self.dim, self.worlds = dim, worlds
        self.context, self._context_read = Context(width=n_context), 0
        self.build = Builder()
        self.slots: dict[fx.Node, Slot] = {}
        self.parents: dict[fx.Node, fx.Node] = {}  # of a view: the node it is a view of
        self.batch: Any = None
        self.current: frozenset[str] = frozenset()
        self._indices: dict[fx.Node, Any] = {}
        self._settled: dict[int, Expr] = {}
        self._joint_bytes = 0

    # --- nodes ---------------------------------------------------------------------------------------------

    def placeholder(self, node: fx.Node, name: str, kind: str, value: Any) -> None:
        """An input of the graph: x, t, y, a part of c (kind names it) or a parameter, buffer or constant."""
        self.slots[node] = slot = Slot(node, frozenset(kind), protected=name)
        self.worlds.place(node, kind, value)
        if kind == "x":
            self.batch = node.meta["val"].shape[0].node.expr
            slot.content = Input(width=self.dim)
        elif kind == "c":
            begin, width = self._context_read, math.prod(tail_of(node))
            self._context_read += width
            slot.content = self.build.pick(self.context, np.arange(begin, begin + width))

    def call(self, node: fx.Node) -> None:
        name = op_name(node)
        if name.startswith(("_assert", "sym_constrain")):
            return
        in_eval = name.removesuffix("_") in DROPOUTS and not node.args[2]
        self._refuse_random(node, in_eval)
        written = self._written_operand(node)
        base = self._shared_operand(node, name, in_eval)
        depends = self._dependence(node, name)
        slot = self.slots[base] if base is not None else Slot(node, frozenset())
        if written is not None and slot.protected:
            reason = f"it writes to {slot.protected}, which sampling must leave as it is"
            raise refusal(node, reason, "use the form of the operation that returns a new tensor")
        before, slot.depends = slot.depends, slot.depends | depends
        self.slots[node] = slot
        if base is not None:
            self.parents[node] = base
        if not per_sample(slot.depends):
            if symbolic(slot.depends):
                self.worlds.ran.append((node, written is not None))
            else:
                self.worlds.evaluate(node, slot.depends, written is not None)
                return
        self.current = slot.depends
        self.build.place = (name, where(node))
        if base is not None and written is None:
            self._view(node)
        elif written is None:
            slot.content = self._content(node, name)
        else:
            if not symbolic(before):
                slot.content = self._of_worlds(slot, before, node)
            slot.content = self._written(node, name, slot)

    def output(self, node: fx.Node) -> Expr:
        self.current = frozenset("x")
        self.build.place = ("output", "")
        return self.read(node, tuple(tail_of(node)), node)

    # --- reading -------------------------------------------------------------------------------------------

    def read(self, operand: Any, tail: tuple[int, ...], node: fx.Node) -> Expr:
        """An operand of node, spread to samples of shape tail, flattened."""
        if not isinstance(operand, fx.Node):
            return self.build.number(math.prod(tail), float(operand))
        slot = self.slots[operand]
        if not symbolic(slot.depends):
            return self._table(operand, tail, node)
        content = self._settle(slot.content, node)
        index = self.index_of(operand, node)
        if len(index.shape) != len(tail):
            raise refusal(node, *MIXES)
        return self.build.pick(content, np.broadcast_to(index, tail))

    def read_as_is(self, operand: fx.Node, node: fx.Node) -> Expr:
        return self.read(operand, tuple(tail_of(operand)), node)

    def constant(self, operand: Any, node: fx.Node, reason: str) -> Tensor:
        """The value of an operand that depends on nothing, float64; refused with the reason otherwise."""
        if self.slots[operand].depends:
            raise refusal(
                node, reason, "let the step, the class or x scale and shift features in place of it"
            )
        value = self.worlds.samples.operand(operand)
        return value.detach().to("cpu", torch.float64)

    def _settle(self, content: Expr | CaptureError | None, node: fx.Node) -> Expr:
        """What a reader of a slot gets; a joint value becomes a table when something with x or c reads it."""
        if isinstance(content, Joint):
            if not per_sample(self.current):
                content = content.inner
            elif content.serial in self._settled:
                return self._settled[content.serial]
            else:
                content = self._settled[content.serial] = self._joint_table(content, node)
        if isinstance(content, CaptureError):
            raise content
        if content is None:
            raise refusal(node, NO_KERNEL)
        return content

    def _joint_table(self, joint: Joint, node: fx.Node) -> Expr:
        size = 4 * len(self.worlds.times) * self.worlds.n_classes * joint.width
        if self._joint_bytes + size > JOINT_BYTES:
            if not isinstance(joint.inner, CaptureError):
                return joint.inner
            inner = joint.inner
            reason = f"a step x class table of it would take {size >> 20} MB, over {JOINT_BYTES >> 20} MB"
            raise CaptureError(f"{reason}, and else {inner.reason}", inner.op, inner.where, inner.advice)
        self._joint_bytes += size
        value = self.worlds.pairs(
            joint.root, joint.upto, lambda n: self.slots[n].root if n in self.slots else n
        )
        if value.shape[-1] != joint.width:
            raise refusal(node, "it mixes the step or class of one sample with others'")
        return self.build.table(joint.width, joint=value)

    def _table(self, operand: fx.Node, tail: tuple[int, ...], node: fx.Node) -> Table:
        """A tensor that depends on t or y or neither, for samples of shape tail."""
        depends = self.slots[operand].depends
        world = self.worlds.of(depends)
        value = world.operand(operand)
        if not isinstance(value, Tensor):
            reason = "it uses the batch size, or an element of t, as a plain number"
            raise refusal(node, reason, "use t as the tensor that it is, and sizes for shapes alone")
        width = math.prod(tail)
        value = value.detach().to("cpu", torch.float64)
        value = value.expand(world.rows, *tail).reshape(world.rows, width).clone()
        if depends:
            return self.build.table(width, **{"label" if "y" in depends else "step": value[: world.used]})
        if not bool((value == value[0]).all() | value.isnan().any()):
            raise refusal(node, *POSITION)
        return self.build.table(width, bias=value[0])

    # --- new contents --------------------------------------------------------------------------------------

    def _content(self, node: fx.Node, name: str) -> Expr | CaptureError:
        """What a rule makes of the node. Errors are kept for values without x: torch may evaluate them."""
        if per_sample(self.slots[node].depends):
            return self._by_rule(node, name)
        try:
            content: Expr | CaptureError = self._by_rule(node, name)
        except CaptureError as error:
            content = error
        return self._joint(node, node, content)

    def _joint(self, node: fx.Node, root: fx.Node, content: Expr | CaptureError) -> Expr | CaptureError:
        if isinstance(content, Table):
            return content
        value = self._results(root, root.meta["val"])[0]
        if not isinstance(value, Tensor):
            return refusal(node, NO_KERNEL)
        shape = value.shape
        if not all(isinstance(size, int) for size in shape[1:]):
            return refusal(node, "its result's shape depends on the batch size")
        return Joint(width=math.prod(shape[1:]), place=self.build.place, root=root, upto=node, inner=content)

    def _by_rule(self, node: fx.Node, name: str) -> Expr:
        name = name if name.startswith("_") else name.removesuffix("_")
        self._check_batch(node, node.meta["val"])
        if name not in MOVES and name not in RULES:
            raise refusal(node, NO_KERNEL)
        self._check_dtype(node, node.meta["val"])
        expr = moves.moved(self, node) if name in MOVES else RULES[name](self, node)
        if expr is None:
            raise refusal(node, NO_KERNEL)
        assert expr.width == math.prod(self._results(node, node.meta["val"])[0].shape[1:]), name
        return expr

    def _written(self, node: fx.Node, name: str, slot: Slot) -> Expr | CaptureError:
        """The whole of a slot after an operation wrote to a view of it."""
        try:
            new = self._by_rule(node, name)
            whole = self._settle(slot.content, node)
            index = self.index_of(node, node).ravel()
            which, position = np.zeros(whole.width, np.int64), np.arange(whole.width)
            which[index], position[index] = 1, np.arange(len(index))
            content: Expr | CaptureError = self.build.gather([whole, new], which, position)
        except CaptureError as error:
            if per_sample(slot.depends):
                raise
            content = error
        return content if per_sample(slot.depends) else self._joint(node, slot.root, content)

    def _of_worlds(self, slot: Slot, depends: frozenset[str], node: fx.Node) -> Table:
        """The content of a slot that torch computed, about to be written what torch cannot."""
        reason = "it writes a value that depends on x (or on t and y) into one that does not"
        shape = slot.root.meta["val"].shape
        if not shape or isinstance(shape[0], int) or not all(isinstance(size, int) for size in shape[1:]):
            raise refusal(node, reason)
        value = self.worlds.of(depends).operand(slot.root)
        # As it is now: the same as what another node's in-place result would show.
        width = math.prod(shape[1:])
        value = value.detach().to("cpu", torch.float64).reshape(-1, width).clone()
        world = self.worlds.of(depends)
        if depends:
            return self.build.table(width, **{"label" if "y" in depends else "step": value[: world.used]})
        if not bool((value == value[0]).all()):
            raise refusal(node, *POSITION)
        return self.build.table(width, bias=value[0])

    # --- elements that only move ---------------------------------------------------------------------------

    def _view(self, node: fx.Node) -> None:
        """Checks a view as soon as it is made, so that the error names its line."""
        if per_sample(self.slots[node].depends):
            self._check_batch(node, node.meta["val"])
            self._check_dtype(node, node.meta["val"])
            self.index_of(node, node)

    def index_of(self, node: fx.Node, reader: fx.Node) -> Any:
        """Where a node's elements are in its slot's content: indices of the shape of one sample; a tuple of
        them for a node with several results."""
        if node not in self._indices:
            parent = self.parents.get(node)
            if parent is None:
                value = node.meta["val"]
                shape = (value if isinstance(value, Tensor) else value[0]).shape[1:]
                own = np.arange(math.prod(shape)).reshape(tuple(shape))
                self._indices[node] = own if isinstance(value, Tensor) else (own,)
            else:
                above = self.index_of(parent, reader)
                self._indices[node] = self._moved_index(node, parent, above)
        return self._indices[node]

    def _moved_index(self, node: fx.Node, parent: fx.Node, above: Any) -> Any:
        if node.target is operator.getitem:
            at = node.args[1]
            assert isinstance(at, int)
            if at >= len(above):
                raise refusal(node, NO_KERNEL)
            return above[at]
        if self._written_operand(node) is not None or op_name(node).removesuffix("_") in DROPOUTS:
            return above
        return moves.run_on_indices(self, node, {parent: above})

    # --- what a node does ----------------------------------------------------------------------------------

    def _refuse_random(self, node: fx.Node, in_eval: bool) -> None:
        if (draws(node) or op_name(node).removesuffix("_") in DROPOUTS) and not in_eval:
            reason = "it draws random numbers, so the result is no function of x, t and y"
            raise refusal(node, reason, "leave it out in eval mode, or pass what it draws as a context")

    def _written_operand(self, node: fx.Node) -> fx.Node | None:
        for operand, declared in operands(node):
            if declared.alias_info is not None and declared.alias_info.is_write:
                return operand
        return None

    def _shared_operand(self, node: fx.Node, name: str, in_eval: bool) -> fx.Node | None:
        """The operand whose memory the result is in, if any."""
        if node.target is operator.getitem or in_eval:
            return node.args[0] if isinstance(node.args[0], fx.Node) else None
        for operand, declared in operands(node):
            if declared.alias_info is not None:
                copies = name in VIEW_OR_COPY and not self._is_view(node, operand)
                return None if copies else operand
        return None

    def _is_view(self, node: fx.Node, operand: fx.Node) -> bool:
        world = World(self.worlds.samples.rows, 0)
        world.values.update(self.worlds.samples.values)
        memory = world.values[operand] = world.like(operand.meta["val"])
        out = world.call(node, world.operand)
        return out.untyped_storage().data_ptr() == memory.untyped_storage().data_ptr()

    def _dependence(self, node: fx.Node, name: str) -> frozenset[str]:
        skipped = METADATA_OPERANDS.get(name, ())
        read: list[fx.Node] = []
        data = [arg for i, arg in enumerate(node.args) if i not in skipped]
        fx.node.map_arg((data, dict(node.kwargs)), read.append)
        return frozenset().union(*(self.slots[operand].depends for operand in read))

    def _check_batch(self, node: fx.Node, fake: Any) -> None:
        """The batch is the first axis of a tensor, and no other."""
        for part in self._results(node, fake):
            if not isinstance(part, Tensor):
                raise refusal(node, NO_KERNEL)
            size = part.shape[0] if part.ndim else 1
            if isinstance(size, int) or size.node.expr != self.batch:
                raise refusal(node, *MIXES)
            if not all(isinstance(size, int) for size in part.shape[1:]):
                raise refusal(node, "its result's shape depends on the batch size")

    def _check_dtype(self, node: fx.Node, fake: Any) -> None:
        for part in self._results(node, fake):
            if part.dtype != torch.float32:
                reason = f"it computes in {part.dtype}; the kernels compute in float32"
                raise refusal(node, reason, "keep in float32 what depends on x")

    def _results(self, node: fx.Node, fake: Any) -> list[Any]:
        """The results that count: a native norm's statistics are for training."""
        if not isinstance(fake, (list, tuple)):
            return [fake]
        return list(fake[:1] if op_name(node).startswith("native") else fake)


def per_sample(depends: frozenset[str]) -> bool:
    """On x or the context, which no table can hold."""
    return bool(depends & {"x", "c"})


def symbolic(depends: frozenset[str]) -> bool:
    return per_sample(depends) or depends >= {"t", "y"}
