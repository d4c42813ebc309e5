"""The reverse chain with the network run by torch: for modules the fused kernel cannot run, and as reference.

The noise is the package's stream, so a sample's noise does not depend on the batch it is in; the module's own
products may, for torch's GEMM can round differently with the batch size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_fast import _checks
from diffusion_fast.conditions import Conditions
from diffusion_fast.noise import normal
from diffusion_fast.reference import Fixed
from diffusion_fast.solvers.table import StepRow, StepTable

MODULE_CHUNK = 1 << 13  # samples per network call: about the best for small nets on a CPU


@dataclass
class Call:
    """The checked arguments of one call of Sampler.sample."""

    n: int
    start: int
    seed: int
    threads: int
    labels: Tensor | int | None
    context: Tensor | None  # (n, n_context), or one row for all
    guidance: Tensor | None  # (n,)
    fixed: Fixed | None
    x_T: Tensor | None
    noise: Tensor | None
    trajectory: bool
    bar: Any = None

    def part(self, begin: int, end: int) -> Call:
        """The samples begin .. end - 1 of the call; what is the same for all samples stays so."""

        def cut(value: Any) -> Any:
            return value[begin:end] if isinstance(value, Tensor) and len(value) == self.n else value

        fixed = self.fixed
        if fixed is not None:
            fixed = replace(fixed, values=cut(fixed.values))
        return replace(
            self,
            n=end - begin,
            start=self.start + begin,
            labels=cut(self.labels),
            context=cut(self.context),
            guidance=cut(self.guidance),
            fixed=fixed,
            x_T=cut(self.x_T),
            noise=None if self.noise is None else self.noise[:, begin:end],
        )

    def show(self, done: int) -> None:
        self.bar.update(done - self.bar.n)


@dataclass(frozen=True)
class Network:
    """The module with what it is called with. times: (n_tables,), what it is given as t."""

    model: nn.Module
    conditions: Conditions
    times: Tensor
    shape: tuple[int, ...]
    guided: bool

    def evaluate(self, row: StepRow, u: Tensor, call: Call) -> tuple[Tensor | None, dict[str, Any]]:
        """The module's output for a row and, with guidance, that for the null class and context."""
        if not row.eval:
            return None, {}
        t = self.times[row.table].expand(len(u))
        how = self.conditions.call
        labels = None if call.labels is None else torch.as_tensor(call.labels).long().expand(len(u))
        context = None if call.context is None else call.context.expand(len(u), -1)
        F = _like(u, how(self.model, u, t, labels, context))
        if not self.guided or row.guidance == 1:
            return F, {}
        if self.conditions.null_class is not None:
            labels = torch.full((len(u),), self.conditions.null_class)
        if self.conditions.null_context is not None:
            context = self.conditions.null_context.expand(len(u), -1)
        scale = row.guidance if call.guidance is None else call.guidance
        unconditional = _like(u, how(self.model, u, t, labels, context))
        return F, {"uncond_output": unconditional, "guidance_scale": scale}


@torch.no_grad()
def run_module(
    network: Network, table: StepTable, call: Call, target: Tensor, step: Callable[..., Tensor]
) -> list[int]:
    """Fills target, (n, *shape) or with a trajectory (rows + 1, n, *shape); returns the samples not finite.

    step: ops.reverse_step or its twin.
    """
    bad: list[int] = []
    for at in range(0, call.n, MODULE_CHUNK):
        rows = slice(at, min(at + MODULE_CHUNK, call.n))
        part = target[:, rows] if call.trajectory else target[rows]
        x = _chain(network, table, call.part(rows.start, rows.stop), part, step)
        bad += (~torch.isfinite(x.flatten(1)).all(1)).nonzero().flatten().add(call.start + at).tolist()
        if call.bar is not None:
            call.show(rows.stop)
    return bad


def _chain(
    network: Network, table: StepTable, call: Call, target: Tensor, step: Callable[..., Tensor]
) -> Tensor:
    """The samples of one chunk."""
    shape, fixed = (call.n, *network.shape), call.fixed
    if call.x_T is not None:
        x = call.x_T.clone()
    else:
        stream = normal(
            call.n, prod(network.shape), seed=call.seed, step=0, purpose="initial", start=call.start
        )
        x = stream.view(shape)
    history = [torch.zeros_like(x) for _ in range(3)]
    if call.trajectory:
        target[0] = x
    for i, row in enumerate(table):
        source: dict[str, Any] = {"seed": call.seed} if call.noise is None else {"noise": call.noise[i]}
        if fixed is not None and row.eval:
            x = fixed.at_level(x, row.signal, row.noise, call.seed, i, call.start)
        F, guided = network.evaluate(row, row.c_in * x, call)
        x = step(x, F, row, step=i, start=call.start, history=history, **source, **guided)
        if fixed is not None and i + 1 == len(table):
            x = fixed.exact(x)
        if call.trajectory:
            target[i + 1] = x
    if not call.trajectory:
        target[:] = x
    return x


def _like(u: Tensor, output: Any) -> Tensor:
    """The module's output, if it is what a step takes: a single column, say, would broadcast unseen."""
    if not isinstance(output, Tensor):
        raise _checks.bad_type("model", output, f"one that returns a tensor of shape {tuple(u.shape)}")
    if output.shape != u.shape or output.dtype != u.dtype:
        raise _checks.bad_value("model", output, f"one that returns {u.dtype} of shape {tuple(u.shape)}")
    return output
