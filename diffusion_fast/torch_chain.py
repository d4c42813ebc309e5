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

from diffusion_fast import stopping
from diffusion_fast.conditions import Conditions
from diffusion_fast.module_call import output_like
from diffusion_fast.noise import normal
from diffusion_fast.reference import Fixed
from diffusion_fast.solvers.table import StepRow, StepTable

MODULE_CHUNK = 1 << 13  # samples per network call: about the best for small nets on a CPU
DEVICE_CHUNK = 1 << 17  # on a CUDA device, which is not busy with fewer

# The samples that hold NaN or infinity: how many, and the positions of the first; or an (n,) mask, which on a
# device nobody has waited for.
NotFinite = tuple[int, list[int]] | Tensor


@dataclass
class Call:
    """The checked arguments of one call of Sampler.sample."""

    n: int
    start: int
    seed: Any  # an int; for the fused chain on a device also an int64 tensor of one element there
    threads: int
    labels: Tensor | int | None
    context: Tensor | None  # (n, n_context), or one row for all
    guidance: Tensor | None  # (n,)
    fixed: Fixed | None
    x_T: Tensor | None
    noise: Tensor | None
    trajectory: bool
    bar: Any = None

    @property
    def inputs(self) -> list[Tensor | None]:
        """The memory that is read while samples are written."""
        values = None if self.fixed is None else self.fixed.values
        return [self.x_T, self.noise, self.context, self.guidance, values]

    def to(self, device: torch.device) -> Call:
        """The call with all that it holds on a device, dense."""
        return self._each(lambda tensor: tensor.to(device).contiguous())

    def copied(self) -> Call:
        """The call with memory of its own: what the caller writes to later is not read."""
        return self._each(Tensor.clone)

    def _each(self, change: Callable[[Tensor], Tensor]) -> Call:
        def changed(value: Any) -> Any:
            return change(value) if isinstance(value, Tensor) else value

        fixed = self.fixed
        if fixed is not None:
            fixed = replace(fixed, mask=change(fixed.mask), values=change(fixed.values))
        return replace(
            self,
            seed=changed(self.seed),
            labels=changed(self.labels),
            context=changed(self.context),
            guidance=changed(self.guidance),
            fixed=fixed,
            x_T=changed(self.x_T),
            noise=changed(self.noise),
        )

    def addresses(self, target: Tensor) -> tuple[int, ...]:
        """What both kernels take from x_T on, by position: names take 3.5 us more."""
        labels, context, fixed = self.labels, self.context, self.fixed
        return (
            0 if self.x_T is None else self.x_T.data_ptr(),
            0 if self.noise is None else self.noise.data_ptr(),
            target.data_ptr() if self.trajectory else 0,
            labels.data_ptr() if isinstance(labels, Tensor) else 0,
            labels if isinstance(labels, int) else 0,
            0 if self.guidance is None else self.guidance.data_ptr(),
            0 if context is None else context.data_ptr(),
            0 if context is None or context.shape[0] == 1 else context.shape[1],  # context_stride
            0 if fixed is None else fixed.mask.data_ptr(),
            0 if fixed is None else fixed.values.data_ptr(),
            0 if fixed is None or len(fixed.values) == 1 else fixed.mask.numel(),  # fixed_stride
            fixed is not None and fixed.clean,
        )

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
        """Called now and then: what it raises ends the call."""
        stopping.check()
        if self.bar is not None:
            self.bar.update(done - self.bar.n)


@dataclass(frozen=True)
class Network:
    """The module with what it is called with. times: (n_tables,), what it is given as t."""

    model: nn.Module
    conditions: Conditions
    times: Tensor
    shape: tuple[int, ...]
    guided: bool

    def evaluate(self, row: StepRow, x: Tensor, call: Call) -> tuple[Tensor | None, dict[str, Any]]:
        """The module's output for a row and, with guidance, that for the null class and context."""
        if not row.eval:
            return None, {}
        labels, context = call.labels, call.context
        F = self._output(row, x, labels, context)
        if not self.guided or row.guidance == 1:
            return F, {}
        if self.conditions.null_class is not None:
            labels = self.conditions.null_class
        if self.conditions.null_context is not None:
            context = self.conditions.null_context[None].to(x.device)
        scale = row.guidance if call.guidance is None else call.guidance
        return F, {"uncond_output": self._output(row, x, labels, context), "guidance_scale": scale}

    def _output(self, row: StepRow, x: Tensor, labels: Tensor | int | None, context: Tensor | None) -> Tensor:
        """The arguments are copies, for a module may write to them: the next call has to find them as they
        were."""
        n = len(x)
        u, t = row.c_in * x, self.times[row.table].repeat(n)
        if labels is not None:
            labels = torch.as_tensor(labels, device=x.device).to(torch.int64).expand(n).clone()
        if context is not None:
            context = context.expand(n, -1).clone()
        with torch.autocast(u.device.type, enabled=False):  # a caller's is for training; samples are float32
            output = output_like(u, self.conditions.call(self.model, u, t, labels, context))
        return output.detach()  # a module may switch gradients on


@dataclass(frozen=True)
class ModuleChain:
    """step: ops.reverse_step or its twin."""

    network: Network
    table: StepTable
    step: Callable[..., Tensor]
    name = "torch"

    @torch.no_grad()
    def run(self, call: Call, target: Tensor) -> NotFinite:
        """Fills target, (n, *shape) or with a trajectory (rows + 1, n, *shape), on the module's device."""
        bad = []
        size = MODULE_CHUNK if target.is_cpu else DEVICE_CHUNK
        for at in range(0, call.n, size):
            rows = slice(at, min(at + size, call.n))
            part = target[:, rows] if call.trajectory else target[rows]
            x = _chain(self.network, self.table, call.part(rows.start, rows.stop), part, self.step)
            bad.append(~torch.isfinite(x.flatten(1)).all(1))
            call.show(rows.stop)
        return torch.cat(bad)


def _chain(
    network: Network, table: StepTable, call: Call, target: Tensor, step: Callable[..., Tensor]
) -> Tensor:
    """The samples of one chunk."""
    shape, fixed = (call.n, *network.shape), call.fixed
    if call.x_T is not None:
        x = call.x_T.clone()
    else:
        how: dict[str, Any] = {"seed": call.seed, "start": call.start, "device": target.device}
        x = normal(call.n, prod(network.shape), step=0, purpose="initial", **how).view(shape)
    history = [torch.zeros_like(x) for _ in range(3)]
    initial = x
    for i, row in enumerate(table):
        stopping.check()
        source: dict[str, Any] = {"seed": call.seed} if call.noise is None else {"noise": call.noise[i]}
        if fixed is not None and row.eval:
            x = fixed.at_level(x, row.signal, row.noise, call.seed, i, call.start)
        F, guided = network.evaluate(row, x, call)
        if call.trajectory and i == 0:  # nothing is written before the module's first output was looked at
            target[0] = initial
        x = step(x, F, row, step=i, start=call.start, history=history, **source, **guided)
        if fixed is not None and i + 1 == len(table):
            x = fixed.exact(x)
        if call.trajectory:
            target[i + 1] = x
    if not call.trajectory:
        target[:] = x
    return x
