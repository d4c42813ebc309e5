"""Random tile programs from every operation, each a function of its seed."""

from __future__ import annotations

import numpy as np
from nets import random_table

from diffusion_fast.plan import Plan, TileProgram, build_plan
from diffusion_fast.tile_ops import (
    ACTIVATIONS,
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


class Graph:
    """Builds a program op by op; values stay near unit size, and arguments inside each function's domain."""

    def __init__(self, seed: int, dim: int, n_tables: int, n_classes: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.n_tables, self.n_classes = n_tables, n_classes
        self.ops: list[Op] = []
        self.widths = [dim]

    def add(self, op: Op, width: int) -> int:
        self.ops.append(op)
        self.widths.append(width)
        return op.dst

    @property
    def next(self) -> int:
        return len(self.widths)

    def normal(self, *shape: int) -> np.ndarray:
        return self.rng.standard_normal(shape).astype(np.float32)

    def tables(self, n: int) -> dict[str, np.ndarray]:
        found = {"bias": self.normal(n)} if self.rng.random() < 0.6 else {}
        if self.rng.random() < 0.5 or not found:
            found["step_table"] = self.normal(self.n_tables, n)
        if self.n_classes and self.rng.random() < 0.5:
            found["class_table"] = self.normal(self.n_classes, n)
        return found

    def linear(self, src: int, n_out: int, activation: str = "identity") -> int:
        n_in = self.widths[src]
        weight = self.normal(n_out, n_in) / np.float32(np.sqrt(n_in))
        return self.add(LinearOp(src, self.next, weight, **self.tables(n_out), activation=activation), n_out)

    def map(self, src: int, function: str, param: float = 0.0) -> int:
        return self.add(MapOp(src, self.next, function, param), self.widths[src])

    def binary(self, a: int, b: int, function: str) -> int:
        return self.add(BinaryOp(a, b, self.next, function), self.widths[a])

    def positive(self, src: int) -> int:
        return self.map(self.map(src, "abs"), "add", 0.5)

    def gather(self, src: int, index: np.ndarray) -> int:
        return self.add(GatherOp(src, self.next, index), len(index))

    def join(self, a: int, b: int) -> int:
        dst, n_a, n_b = self.next, self.widths[a], self.widths[b]
        self.add(GatherOp(a, dst, np.arange(n_a)), n_a + n_b)
        self.ops.append(GatherOp(b, dst, np.arange(n_b), n_a))
        return dst

    def random_op(self) -> int:
        """One operation on a recent value, sometimes with a helper before it."""
        rng, recent = self.rng, max(0, len(self.widths) - 3)
        src = int(rng.integers(recent, len(self.widths)))
        n = self.widths[src]
        kind = rng.integers(10)
        if kind <= 1:
            return self.linear(src, int(rng.integers(1, 40)), str(rng.choice(ACTIVATIONS[1:3])))
        if kind == 2:
            name = str(rng.choice([*ACTIVATIONS, "sin", "cos", "abs", *SLOPES.values()]))
            if name in SLOPES and src % 2:
                return self.add(MapOp(src, self.next, name, 0.7, with_slope=True), 2 * n)
            return self.map(src, name, 0.7)
        if kind == 3:
            return self.map(self.positive(src), str(rng.choice(["log", "sqrt", "reciprocal"])))
        if kind == 4:
            return self.map(self.positive(src), "pow", float(rng.choice([1.5, -0.5, 2.0, 0.3, 3.0])))
        if kind == 5:
            name = str(rng.choice(["clamp_min", "clamp_max", "add", "mul"]))
            return self.map(src, name, float(np.float32(rng.uniform(-1, 1))))
        if kind == 6:
            table = self.add(TableOp(self.next, **self.tables(n)), n)
            if rng.random() < 0.3:
                return self.binary(src, self.positive(table), "div")
            return self.binary(src, table, str(rng.choice(["add", "sub", "mul"])))
        if kind == 7:
            divisors = [g for g in range(1, n + 1) if n % g == 0]
            groups = int(rng.choice(divisors))
            if rng.random() < 0.3:
                reduced = self.add(ReduceOp(src, self.next, str(rng.choice(["sum", "mean"])), groups), groups)
                return self.gather(reduced, np.repeat(np.arange(groups), n // groups))
            name = str(rng.choice(["layer_norm", "rms_norm", "softmax"]))
            arrays = {"weight": self.normal(n)} if name != "softmax" and rng.random() < 0.6 else {}
            if arrays and rng.random() < 0.6:
                arrays["bias"] = self.normal(n)
            epsilon = 0.0 if name == "softmax" else 1e-2
            return self.add(NormOp(src, self.next, name, groups, epsilon, **arrays), n)
        if kind == 8:
            return self.gather(src, rng.integers(0, n, rng.integers(1, 30)))
        other = int(rng.integers(recent, len(self.widths)))
        return self.join(src, other)


def random_graph(
    seed: int, dim: int, n_ops: int = 8, *, n_tables: int = 4, n_classes: int = 0
) -> TileProgram:
    graph = Graph(seed, dim, n_tables, n_classes)
    for _ in range(n_ops):
        graph.random_op()
    # bounded before the last layer, so that the chain stays near unit size
    out = graph.linear(graph.map(len(graph.widths) - 1, "tanh"), dim)
    return TileProgram(dim, tuple(graph.ops), out, n_tables, n_classes)


def random_graph_plan(
    seed: int, dim: int, n_ops: int = 8, *, n_rows: int = 4, n_classes: int = 0, branches: int = 1
) -> Plan:
    program = random_graph(seed, dim, n_ops, n_tables=n_rows, n_classes=n_classes)
    return build_plan(random_table(seed + 1, n_rows), program, branches=branches)
