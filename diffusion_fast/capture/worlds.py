"""What torch computes once: nodes that do not depend on x, for all timesteps, classes or pairs at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from diffusion_fast.capture.graph import op_name, refusal

# Rows of the pairs of step and class that are evaluated at a time.
PAIRS_AT_A_TIME = 1 << 14


@dataclass
class World:
    """Values of the nodes that depend on one thing alone, for all of its values as one batch."""

    rows: int  # of the batch
    used: int  # how many of them count, the rest is padding
    values: dict[fx.Node, Any] = field(default_factory=dict)

    def operand(self, node: fx.Node) -> Any:
        """A node's value; one that cannot exist here is read for its shape only, so zeros do."""
        if node not in self.values:
            self.values[node] = self.zeros(node.meta["val"])
        return self.values[node]

    def run(self, node: fx.Node) -> Any:
        """The node's result, kept as its value."""
        self.values[node] = self.call(node, self.operand)
        return self.values[node]

    def call(self, node: fx.Node, operand: Callable[[fx.Node], Any]) -> Any:
        args, kwargs = fx.node.map_arg((node.args, node.kwargs), operand)
        try:
            assert callable(node.target)
            return node.target(*args, **kwargs)
        except Exception as error:
            reason = f"it cannot be run for all steps or classes at once ({error})"
            if isinstance(error, IndexError) or node.target is torch.ops.aten.one_hot.default:
                reason += "; a model without a row for the null class needs null_class=False"
            raise refusal(node, reason) from error

    def zeros(self, fake: Any) -> Any:
        if isinstance(fake, (list, tuple)):
            return type(fake)(self.zeros(part) for part in fake)
        if not isinstance(fake, Tensor):
            return self.size(fake)
        shape = [self.size(size) for size in fake.shape]
        return torch.zeros(shape, dtype=fake.dtype, device=fake.device)

    def like(self, fake: Tensor) -> Tensor:
        """Memory with the strides of the traced tensor."""
        sizes = [[self.size(size) for size in sizes] for sizes in (fake.shape, fake.stride())]
        return torch.empty_strided(*sizes, dtype=fake.dtype, device=fake.device)

    def size(self, size: Any) -> Any:
        expression = getattr(getattr(size, "node", None), "expr", None)
        if expression is None:
            return size
        return int(expression.subs({symbol: self.rows for symbol in expression.free_symbols}))


class Worlds:
    """One world each for timesteps, classes and, with three rows, for what depends on neither.

    times: (n_tables,), what the module is given as t; n_classes: 0 without classes.
    """

    def __init__(self, times: Tensor, n_classes: int) -> None:
        self.times, self.n_classes = times, n_classes
        labels = torch.arange(n_classes, device=times.device)
        self.samples = World(3, 3)
        self.steps = World(max(2, len(times)), len(times))
        self.classes = World(max(2, n_classes), n_classes) if n_classes else None
        self.inputs = {"t": _padded(times), "y": _padded(labels) if n_classes else labels}
        self.held: dict[fx.Node, tuple[str, Any]] = {}
        self.ran: list[tuple[fx.Node, bool]] = []  # what depends on no x, and whether it writes in place
        self.evaluated = 0

    def place(self, node: fx.Node, kind: str, value: Any) -> None:
        """An input of the graph. kind: "t", "y", "x", "c", or "" for a constant with its value."""
        if kind not in ("x", "c"):
            self.held[node] = (kind, value)
        if not kind:
            for world in self._all():
                world.values[node] = value
        elif kind == "t":
            self.steps.values[node] = self.inputs["t"]
        elif kind == "y" and self.classes is not None:
            self.classes.values[node] = self.inputs["y"]

    def evaluate(self, node: fx.Node, depends: frozenset[str], writes: bool) -> None:
        """Runs a node as it stands in every world where its operands exist."""
        self.evaluated += 1
        self.ran.append((node, writes))
        if not depends:
            self.samples.run(node)
        if depends <= {"t"}:
            self.steps.run(node)
        if depends <= {"y"} and self.classes is not None:
            self.classes.run(node)

    def of(self, depends: frozenset[str]) -> World:
        if not depends:
            return self.samples
        world = self.classes if "y" in depends else self.steps
        assert world is not None
        return world

    def _all(self) -> list[World]:
        return [self.samples, self.steps] + ([self.classes] if self.classes is not None else [])

    def pairs(self, root: fx.Node, upto: fx.Node, base_of: Callable[[fx.Node], fx.Node]) -> Tensor:
        """root's value after the node `upto`, for all pairs: (n_tables, n_classes, width) float64.

        base_of: the node whose memory a node's value lives in.
        """
        nodes = self._needed(root, upto, base_of)
        self.evaluated += len(nodes)
        chunk = max(1, PAIRS_AT_A_TIME // self.n_classes)
        found = []
        for at in range(0, len(self.times), chunk):
            times = self.times[at : at + chunk]
            found.append(self._chunk_of_pairs(root, nodes, times))
        return torch.cat(found)

    def _chunk_of_pairs(self, root: fx.Node, nodes: list[fx.Node], times: Tensor) -> Tensor:
        k, n = len(times), self.n_classes
        labels = torch.arange(n, device=times.device).repeat(k)
        inputs = {"t": _padded(times.repeat_interleave(n)), "y": _padded(labels)}
        world = World(max(2, k * n), k * n)
        world.values.update({node: inputs.get(kind, value) for node, (kind, value) in self.held.items()})
        for node in nodes:
            world.run(node)
        value = world.values[root]
        value = value if isinstance(value, Tensor) else value[0]
        return value.detach().to("cpu", torch.float64).reshape(world.rows, -1)[: k * n].reshape(k, n, -1)

    def _needed(self, root: fx.Node, upto: fx.Node, base_of: Callable[[fx.Node], fx.Node]) -> list[fx.Node]:
        """The nodes that root's value after upto comes from, in order."""
        wanted, bases = {root}, {base_of(root)}
        needed = []
        end = next(i for i, (node, _) in enumerate(self.ran) if node is upto)
        for node, writes in reversed(self.ran[: end + 1]):
            if node in wanted or (writes and base_of(node) in bases):
                needed.append(node)
                for operand in node.all_input_nodes:
                    if operand not in self.held and op_name(operand) != "placeholder":
                        wanted.add(operand)
                        bases.add(base_of(operand))
        return needed[::-1]


def _padded(values: Tensor) -> Tensor:
    """At least two rows, for the graph was traced with two."""
    return values if len(values) > 1 else values.repeat(2)
