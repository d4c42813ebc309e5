"""Random denoisers, tile programs and plans, each a function of its seed; shared by the tests."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from diffusion_fast.plan import Plan, TileProgram, build_plan
from diffusion_fast.plan_validation import terms_of
from diffusion_fast.solvers.table import EVAL, PUSH, ROW_DTYPE, StepTable
from diffusion_fast.tile_ops import ACTIVATIONS, LinearOp

ACTIVATION_PARAMS = {"leaky_relu": 0.2, "elu": 0.7}


def random_table(seed: int, n_rows: int = 6, *, n_tables: int | None = None, full: bool = True) -> StepTable:
    """A table that keeps x near unit size. full: every term of the row, history, clamp, rows without eval."""
    rng = np.random.default_rng(seed)
    n_tables = n_tables or n_rows
    rows = np.zeros(n_rows, ROW_DTYPE)
    rows["c_in"], rows["clip"], rows["guidance"] = 1, np.inf, 1
    rows["flags"] = EVAL
    rows["a"] = rng.uniform(0.7, 0.9, n_rows)
    rows["e"] = rng.uniform(-0.3, 0.3, n_rows)
    rows["s"] = rng.uniform(0.1, 0.4, n_rows)
    rows["s"][-1] = 0
    if full:
        rows["c_in"] = rng.uniform(0.5, 1.5, n_rows)
        rows["guidance"] = rng.uniform(0, 3, n_rows)
        for name in ("p_x", "p_F", "b", "c1", "c2", "c3"):
            rows[name] = rng.uniform(-0.2, 0.2, n_rows)
        rows["clip"] = np.where(rng.random(n_rows) < 0.5, rng.uniform(0.1, 2, n_rows), np.inf)
        rows["flags"] |= np.where(rng.random(n_rows) < 0.7, PUSH, 0).astype(np.uint32)
        idle = rng.random(n_rows) < 0.2
        idle[0] = False
        for name in ("p_F", "e"):
            rows[name][idle] = 0
        rows["flags"][idle] &= ~np.uint32(EVAL)
    rows["table"] = rng.integers(0, n_tables, n_rows)
    times = np.arange(n_tables)[::-1]
    return StepTable(rows, times[rows["table"]], times, "random")


def random_program(
    seed: int,
    dim: int = 3,
    widths: tuple[int, ...] = (7, 5),
    *,
    n_tables: int = 6,
    n_classes: int = 0,
    activation: str | None = None,
    branching: bool = False,
) -> TileProgram:
    """Layers dim -> *widths -> dim with a random mix of bias, step and class tables and activations.

    branching: one more op reads value 1 and is left unread, so that values do not form a chain.
    """
    rng = np.random.default_rng(seed)

    def layer(src: int, dst: int, n_in: int, n_out: int, act: str) -> LinearOp:
        def normal(*shape: int) -> np.ndarray:
            return rng.standard_normal(shape).astype(np.float32)

        step = normal(n_tables, n_out) if rng.random() < 0.5 or dst == 1 else None
        bias = normal(n_out) if step is None and rng.random() < 0.8 else None
        label = normal(n_classes, n_out) if n_classes and (dst == 1 or rng.random() < 0.5) else None
        weight = normal(n_out, n_in) / np.float32(np.sqrt(n_in))
        return LinearOp(src, dst, weight, bias, step, label, act, ACTIVATION_PARAMS.get(act, 0.0))

    sizes = (dim, *widths, dim)
    layers = []
    for i, (n_in, n_out) in enumerate(itertools.pairwise(sizes)):
        act = activation or str(rng.choice(ACTIVATIONS))
        layers.append(layer(i, i + 1, n_in, n_out, "identity" if i == len(widths) else act))
    out = len(layers)
    if branching:
        layers.append(layer(1, out + 1, sizes[1], 4, "relu"))
    return TileProgram(dim, tuple(layers), out, n_tables, n_classes)


def random_plan(
    seed: int,
    dim: int = 3,
    widths: tuple[int, ...] = (7, 5),
    *,
    n_rows: int = 6,
    full: bool = True,
    n_classes: int = 0,
    branches: int = 1,
    activation: str | None = None,
    branching: bool = False,
) -> Plan:
    """A plan of random_table and random_program."""
    table = random_table(seed, n_rows, full=full)
    program = random_program(
        seed + 1,
        dim,
        widths,
        n_tables=n_rows,
        n_classes=n_classes,
        activation=activation,
        branching=branching,
    )
    return build_plan(table, program, branches=branches)


def with_rows(plan: Plan, **columns: np.ndarray) -> Plan:
    """The plan with other values in columns of its rows."""
    rows = plan.rows.copy()
    for name, values in columns.items():
        rows[name] = values
    return replace(plan, rows=rows, terms=terms_of(rows))


def statistical_plan(seed: int, n_classes: int) -> Plan:
    """A guided random plan whose rows have thresholds, rescale and guidance of their own."""
    rng = np.random.default_rng(seed)
    plan = random_plan(seed, int(rng.integers(2, 20)), (17, 9), n_classes=n_classes, branches=2)
    rows = plan.rows
    evaluated = rows["flags"] & EVAL == EVAL
    quantile = np.where(rng.random(len(rows)) < 0.5, rng.uniform(0.1, 1, len(rows)), 0)
    clip = np.where(quantile > 0, rng.uniform(1, 3, len(rows)), rows["clip"])
    rescale = np.where(evaluated & (rng.random(len(rows)) < 0.5), rng.uniform(0, 1, len(rows)), 0)
    return with_rows(plan, quantile=quantile, clip=clip, rescale=rescale)


class ForeignNet(nn.Module):
    """An nn.Sequential over x beside a time feature; `fold` picks how time and class come in.

    "cat": concatenated columns; "add": added to a layer's output before the activation; "after": added
    behind the activation; "sum": time and class summed, then concatenated; "input": added to x itself.
    """

    FOLDS = ("cat", "add", "after", "sum", "input")

    def __init__(self, seed: int, dim: int, n_classes: int = 0, fold: str = "cat") -> None:
        super().__init__()
        rng = np.random.default_rng(seed)
        self.fold, self.n_classes, self.dim = fold, n_classes, dim
        makers = [nn.ReLU, nn.Tanh, nn.Sigmoid, nn.SiLU, nn.GELU, nn.Softplus, nn.Mish, nn.Identity]
        makers += [lambda: nn.LeakyReLU(0.2), lambda: nn.ELU(0.7), lambda: nn.GELU(approximate="tanh")]
        makers += [lambda: nn.ReLU(inplace=True), lambda: nn.SiLU(inplace=True)]
        widths = [int(w) for w in rng.integers(1, 40, rng.integers(1, 4))]
        feature = {"cat": 6, "sum": 6, "input": dim}.get(fold, widths[0])
        self.frequency = nn.Parameter(torch.rand(3))
        self.time = nn.Sequential(nn.Linear(6, feature), nn.Tanh(), nn.Linear(feature, feature))
        self.label = nn.Embedding(n_classes, feature) if n_classes else None
        n_in = dim + {"cat": 12 if n_classes else 6, "sum": 6}.get(fold, 0)
        self.first = nn.Linear(n_in, widths[0], bias=bool(rng.random() < 0.7))
        self.act = makers[rng.integers(len(makers))]()
        rest: list[nn.Module] = []
        for a, b in zip(widths, [*widths[1:], dim], strict=True):
            rest += [nn.Dropout(0.1), nn.Linear(a, b, bias=bool(rng.random() < 0.7))]
            rest += [makers[rng.integers(len(makers))]()] if rng.random() < 0.8 else []
        self.rest = nn.Sequential(*rest)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        angle = t.to(self.frequency.dtype)[:, None] * self.frequency / 10
        embeddings = [self.time(torch.cat([angle.sin(), angle.cos()], dim=-1))]
        if self.label is not None:
            embeddings.append(self.label(y))
        if self.fold == "cat":
            return self.rest(self.act(self.first(torch.cat([x, *embeddings], dim=-1))))
        total = sum(embeddings[1:], embeddings[0])
        if self.fold == "sum":
            return self.rest(self.act(self.first(torch.cat([total, x], dim=1))))
        if self.fold == "input":
            return self.rest(self.act(self.first(x + total)))
        if self.fold == "after":
            return self.rest(self.act(self.first(x)) + total)
        return self.rest(self.act(self.first(x) + total))


def foreign_net(seed: int, n_classes: int = 0, fold: str = "cat") -> ForeignNet:
    """A ForeignNet in eval mode with weights of this seed; torch's global generator is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return ForeignNet(seed, 1 + seed % 5, n_classes, fold).eval()
