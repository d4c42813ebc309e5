"""Networks given a class or a context beside x and t, guided or not, and their chains as written in torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.nets import ContextMLP, TabDDPM
from diffusion_fast import NoiseSchedule, Sampler
from diffusion_fast._torch_peers import (
    CHUNKS,
    Coefficients,
    Folded,
    TorchFolded,
    flop_per_sample_step,
    linear_betas,
)
from diffusion_fast.models import MLPDenoiser


@dataclass(frozen=True)
class Condition:
    """What the network is given beside x and t.

    rows: a class (n,) int64 or a context (n, c) for each sample; columns (n, k): what the first layer reads
    of it, the embedded class or the context itself. null and null_columns: one row of each for the
    unconditional branch of guidance, u + scale (c - u); None without guidance.
    """

    rows: Tensor
    columns: Tensor
    null: Tensor | None = None
    null_columns: Tensor | None = None
    scale: float = 1.0


@dataclass(frozen=True)
class Problem:
    """A network, what it is asked for, and its weights with the time folded into a table by hand."""

    module: nn.Module
    folded: Folded
    condition: Condition | None = None

    @property
    def dim(self) -> int:
        return self.folded.weights[-1].shape[1]

    @property
    def steps(self) -> int:
        return len(self.folded.table)

    @property
    def branches(self) -> int:
        return 1 if self.condition is None or self.condition.null is None else 2

    @property
    def gflop_per_sample(self) -> float:
        """Of the products with x: those with the time, a class or a context need no repeating."""
        widths = [self.dim, *(weight.shape[1] for weight in self.folded.weights)]
        return 1e-9 * self.branches * self.steps * flop_per_sample_step(widths)


class TorchConditional:
    """The loop of a tutorial; with guidance, both branches as one doubled batch."""

    name = "torch eager"
    chunks: Sequence[int] = CHUNKS

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.steps = Coefficients.ddpm(problem.steps)

    @torch.inference_mode()
    def eps(self, x: Tensor, t: int) -> Tensor:
        module, condition = self.problem.module, self.problem.condition
        times = torch.full((len(x),), t, dtype=torch.long)
        if condition is None:
            return module(x, times)
        rows = condition.rows[: len(x)]
        if condition.null is None:
            return module(x, times, rows)
        both = torch.cat([rows, condition.null.expand_as(rows)])
        c, u = module(torch.cat([x, x]), torch.cat([times, times]), both).chunk(2)
        return u + condition.scale * (c - u)

    @torch.inference_mode()
    def chunk(self, n: int, n_steps: int | None = None) -> Tensor:
        x = torch.randn(n, self.problem.dim)
        for t in reversed(range(n_steps or self.problem.steps)):
            x = float(self.steps.a[t]) * x + float(self.steps.e[t]) * self.eps(x, t)
            if t > 0:
                x = x + float(self.steps.s[t]) * torch.randn_like(x)
        return x


class FoldedConditional(TorchFolded):
    """The best of plain torch: the table, buffers, all in place, and one product for both branches.

    The first layer reads x and the condition's columns from one buffer, of which only x changes: faster than
    rows of the condition added to its result, which is much wider than what it reads.
    """

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.folded)
        self.problem = problem

    def inputs(self, x: Tensor) -> Tensor:
        """(branches, n, dim + k): x in front of the condition's columns, or x itself."""
        condition, n = self.problem.condition, len(x)
        if condition is None:
            return x[None]
        columns = [condition.columns[:n]]
        if condition.null_columns is not None:
            columns.append(condition.null_columns.expand_as(columns[0]))
        return torch.cat([x.expand(len(columns), -1, -1), torch.stack(columns)], dim=2)

    @torch.inference_mode()
    def guided_eps(self, inputs: Tensor, t: int) -> Tensor:
        eps = self.eps(inputs.flatten(0, 1), t)
        if self.problem.branches == 1:
            return eps
        c, u = eps.chunk(2)
        assert self.problem.condition is not None
        return u.lerp_(c, self.problem.condition.scale)

    @torch.inference_mode()
    def chunk(self, n: int, n_steps: int | None = None) -> Tensor:
        steps = self.steps
        x = torch.randn(n, self.problem.dim)
        noise, inputs = torch.empty_like(x), self.inputs(x)
        part = inputs[:, :, : self.problem.dim]
        for t in reversed(range(n_steps or self.n_steps)):
            eps = self.guided_eps(inputs, t)
            x.mul_(float(steps.a[t])).add_(eps, alpha=float(steps.e[t]))
            if t > 0:
                x.add_(noise.normal_(), alpha=float(steps.s[t]))
            if self.problem.condition is not None:
                part.copy_(x)
        return x


class OursConditional:
    """This package's sampler, called as the peers are. guided: False leaves out the unconditional branch."""

    name = "ours"
    chunks: Sequence[int] = (1536,)  # whole tiles for each thread; the rate is that of any larger number

    def __init__(self, problem: Problem, guided: bool = True) -> None:
        self.problem = problem
        options: dict[str, Any] = {}
        condition = problem.condition
        self.call: str | None = None
        if condition is not None:
            context = condition.rows.ndim == 2
            self.call = "context" if context else "labels"
            if context:
                options["context_shape"] = condition.rows.shape[1]
            if guided and condition.null is not None:
                options["guidance_scale"] = condition.scale
                if context:
                    options["null_context"] = condition.null
        schedule = NoiseSchedule(linear_betas(problem.steps))
        shared: dict[str, Any] = {"shape": problem.dim, "variance": "posterior", "backend": "native"}
        self.sampler = Sampler(problem.module, schedule, **shared, **options)

    def chunk(self, n: int, n_steps: int | None = None, **options: Any) -> Tensor:
        if self.call is not None and self.problem.condition is not None:
            options[self.call] = self.problem.condition.rows[:n]
        return self.sampler.sample(n, **options)


PEERS: dict[str, type[TorchConditional] | type[FoldedConditional]] = {
    peer.name: peer for peer in (TorchConditional, FoldedConditional)
}


# ---- the problems


def points(steps: int = 200, hidden: Sequence[int] = (128, 128)) -> Problem:
    """A foreign module that is the same network as MLPDenoiser(2, hidden, "relu", "sinusoidal", steps)."""
    return context_problem(2, hidden, nn.ReLU, "relu", steps)


def tabddpm(dim: int = 14, hidden: tuple[int, ...] = (256, 256), steps: int = 1000) -> Problem:
    """TabDDPM with its time MLP in a table, all products with x as they are."""
    torch.manual_seed(0)
    net = TabDDPM(dim, hidden, dim_t=128).eval()
    linears = [net.proj, *(block[0] for block in net.blocks), net.head]
    weights = [layer.weight.detach().t().contiguous() for layer in linears]
    biases = [layer.bias.detach() for layer in linears[1:]]
    with torch.no_grad():
        table = net.proj.bias + net.embed(torch.arange(steps))
    return Problem(net, Folded(weights, biases, table, "relu", projection=True))


def merged(problem: Problem) -> Problem:
    """With the projection, which no activation follows, multiplied into the layer after it."""
    folded = problem.folded
    first, second, *others = folded.weights
    table = torch.addmm(folded.biases[0], folded.table, second)
    weights = [first @ second, *others]
    return Problem(problem.module, Folded(weights, folded.biases[1:], table, folded.activation))


def policy(steps: int, hidden: Sequence[int] = (256, 256, 256)) -> Problem:
    """The policy of Diffusion-QL for 17 columns of state and 6 of action; a state for each sample."""
    return context_problem(6, hidden, nn.Mish, "mish", steps, context_dim=17)


def guided_classes(steps: int = 200, hidden: Sequence[int] = (128, 128), n_classes: int = 10) -> Problem:
    torch.manual_seed(0)
    net = MLPDenoiser(2, hidden, "relu", "learned", steps, n_classes=n_classes).eval()
    with torch.no_grad():
        embedded = net.class_embed(torch.arange(n_classes + 1))
    labels = torch.randint(n_classes, (CHUNKS[-1],))
    null = torch.tensor(n_classes)
    return Problem(net, Folded.of(net), Condition(labels, embedded[labels], null, embedded[-1], scale=2.0))


def guided_contexts(steps: int = 200, hidden: Sequence[int] = (128, 128), context_dim: int = 8) -> Problem:
    """A context of zeros stands for none."""
    return context_problem(2, hidden, nn.ReLU, "relu", steps, context_dim, scale=2.0)


def context_problem(
    dim: int,
    hidden: Sequence[int],
    activation: type[nn.Module],
    name: str,
    steps: int,
    context_dim: int = 0,
    scale: float | None = None,
) -> Problem:
    torch.manual_seed(0)
    net = ContextMLP(dim, hidden, activation, context_dim).eval()
    linears = [layer for layer in net.net if isinstance(layer, nn.Linear)]
    folded = Folded.of_layers(linears, dim, net.embed(torch.arange(steps)), name)
    if not context_dim:
        return Problem(net, folded)
    rows = torch.randn(CHUNKS[-1], context_dim)
    if scale is None:
        return Problem(net, folded, Condition(rows, rows))
    null = torch.zeros(context_dim)
    return Problem(net, folded, Condition(rows, rows, null, null, scale))
