"""The reverse chain with the network run by torch: for modules the fused kernel cannot run, and as reference.

The noise is the package's stream, so a sample's noise does not depend on the batch it is in; the module's own
products may, for torch's GEMM can round differently with the batch size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_fast import _checks
from diffusion_fast.noise import normal
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
    x_T: Tensor | None
    noise: Tensor | None
    trajectory: bool
    bar: Any

    def show(self, done: int) -> None:
        self.bar.update(done - self.bar.n)


@torch.no_grad()
def run_module(
    model: nn.Module,
    table: StepTable,
    times: Tensor,
    shape: tuple[int, ...],
    call: Call,
    target: Tensor,
    step: Callable[..., Tensor],
    null_class: int | None,
) -> list[int]:
    """Fills target, (n, *shape) or with a trajectory (rows + 1, n, *shape); returns the samples not finite.

    times: (n_tables,) what the model is given as t. step: ops.reverse_step or its twin. null_class: with
    guidance, the class of the unconditional branch.
    """
    bad: list[int] = []
    for at in range(0, call.n, MODULE_CHUNK):
        part = slice(at, min(at + MODULE_CHUNK, call.n))
        m, first = part.stop - at, call.start + at
        labels = None
        if call.labels is not None:
            chosen = call.labels[part] if isinstance(call.labels, Tensor) else torch.tensor(call.labels)
            labels = chosen.long().expand(m)
        if call.x_T is not None:
            x = call.x_T[part].clone()
        else:
            x = normal(m, prod(shape), seed=call.seed, step=0, purpose="initial", start=first).view(m, *shape)
        history = [torch.zeros_like(x) for _ in range(3)]
        if call.trajectory:
            target[0, part] = x
        for i, row in enumerate(table):
            source: dict[str, Any] = (
                {"seed": call.seed} if call.noise is None else {"noise": call.noise[i, part]}
            )
            F, guided = _evaluate(model, row, row.c_in * x, times, labels, null_class)
            x = step(x, F, row, step=i, start=first, history=history, **source, **guided)
            if call.trajectory:
                target[i + 1, part] = x
        if not call.trajectory:
            target[part] = x
        bad += (~torch.isfinite(x.flatten(1)).all(1)).nonzero().flatten().add(first).tolist()
        if call.bar is not None:
            call.show(part.stop)
    return bad


def _evaluate(
    model: nn.Module, row: StepRow, u: Tensor, times: Tensor, labels: Tensor | None, null_class: int | None
) -> tuple[Tensor | None, dict[str, Any]]:
    """The module's output for a row and, with guidance, that for the null class."""
    if not row.eval:
        return None, {}
    t = times[row.table].expand(len(u))
    if labels is None:
        return _like(u, model(u, t)), {}
    F = _like(u, model(u, t, labels))
    if null_class is None:
        return F, {}
    unconditional = _like(u, model(u, t, torch.full_like(labels, null_class)))
    return F, {"uncond_output": unconditional, "guidance_scale": row.guidance}


def _like(u: Tensor, output: Any) -> Tensor:
    """The module's output, if it is what a step takes: a single column, say, would broadcast unseen."""
    if not isinstance(output, Tensor):
        raise _checks.bad_type("model", output, f"one that returns a tensor of shape {tuple(u.shape)}")
    if output.shape != u.shape or output.dtype != u.dtype:
        raise _checks.bad_value("model", output, f"one that returns {u.dtype} of shape {tuple(u.shape)}")
    return output
