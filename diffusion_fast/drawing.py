"""The samples of a checked call: memory for them, the chain that fills it, the data's own units."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from diffusion_fast import _cpu, _tensors, sampler_checks
from diffusion_fast.cpu_chain import CpuChain
from diffusion_fast.cuda_chain import CudaChain, copied_out, to_host
from diffusion_fast.standardiser import Standardiser
from diffusion_fast.torch_chain import DEVICE_CHUNK, MODULE_CHUNK, Call, ModuleChain, NotFinite


@contextmanager
def _out_of_memory(name: str, given: int, smaller: str) -> Iterator[None]:
    try:
        yield
    except torch.cuda.OutOfMemoryError as error:
        raise MemoryError(
            f"{name}: got {given}; accepted: what there is memory for: {smaller} ({error})"
        ) from error


@dataclass(frozen=True)
class Drawing:
    """chain runs on device. shape: of one sample. n_rows: of the table."""

    chain: CpuChain | CudaChain | ModuleChain
    device: torch.device
    shape: tuple[int, ...]
    n_rows: int
    standardiser: Standardiser | None

    def target(self, call: Call, out: Any) -> Tensor:
        """Memory for the samples or the trajectory: out, on the device or on the CPU, or without it new."""
        shape = self._shape(call)
        if out is None:
            return _tensors.allocate(shape, self.device)
        there = isinstance(out, Tensor) and not out.is_cpu
        device = self.device if there else _tensors.CPU
        return _tensors.output("out", out, torch.float32, shape, call.inputs, in_place=False, device=device)

    def draw(self, call: Call, target: Tensor, progress: bool) -> None:
        """Fills the target and warns of samples that are not finite; MemoryError where a device runs out."""
        if not progress:
            sampler_checks.warn_not_finite(self._run(call, target), call)
            return
        with tqdm(total=call.n, unit="sample", unit_scale=True) as bar:
            sampler_checks.warn_not_finite(self._run(replace(call, bar=bar), target), call)
            bar.update(call.n - bar.n)

    def _run(self, call: Call, target: Tensor) -> NotFinite:
        if self.device is _tensors.CPU:
            return self._fill(call, target)
        with _out_of_memory("n", call.n, "a smaller n, stream(), or out= with memory on the CPU"):
            if target.is_cpu:
                return to_host(self._fill, call, target, device=self.device)
            return self._fill(call, target)

    def chunks(self, call: Call, size: int, progress: bool, check: Callable[[], None]) -> Iterator[Tensor]:
        """The samples on the CPU, size at a time; those of a device come while the next are drawn there.

        check is called before each.
        """
        if self.device is _tensors.CPU:
            for at in range(0, call.n, size):
                check()
                part = call.part(at, min(at + size, call.n))
                target = _tensors.allocate(self._shape(part), name="chunk_size")
                self.draw(part, target, progress)
                yield target
            return
        drawn = copied_out(self._fill, call, self._shape(call), size, self.device)
        with tqdm(total=call.n, unit="sample", unit_scale=True, disable=not progress) as bar:
            for _ in range(0, call.n, size):
                check()
                yield self._next(drawn, call, size, bar)

    def _next(self, drawn: Iterator[tuple[int, Tensor, Tensor]], call: Call, size: int, bar: Any) -> Tensor:
        with _out_of_memory("chunk_size", size, "a smaller one"):
            at, samples, bad = next(drawn)
        chunk = _tensors.allocate(samples.shape, name="chunk_size").copy_(samples)
        sampler_checks.warn_not_finite(bad, call.part(at, at + len(bad)))
        bar.update(len(bad))
        return chunk

    def _shape(self, call: Call) -> tuple[int, ...]:
        return (*([self.n_rows + 1] if call.trajectory else []), call.n, *self.shape)

    def _fill(self, given: Call, target: Tensor) -> NotFinite:
        """Fills a target on the device."""
        call = given if self.device is _tensors.CPU else given.to(self.device)
        outside = fixed = call.fixed
        if fixed is not None and self.standardiser is not None:
            inside = self.standardiser.transform(fixed.values)
            call = replace(call, fixed=replace(fixed, values=inside))
        bad = self.chain.run(call, target) if call.n else (0, [])
        if self.standardiser is None:
            return bad
        for part in target.view(-1, *self.shape).split(MODULE_CHUNK if target.is_cpu else DEVICE_CHUNK):
            part.copy_(self.standardiser.inverse(part))
        last = target[-1] if call.trajectory else target
        if outside is not None:  # there and back rounds
            last.copy_(outside.exact(last))
        if last.is_cpu and _cpu.all_finite(last.data_ptr(), last.numel()):
            return 0, []
        return ~torch.isfinite(last.flatten(1)).all(1)  # counted here, for the inverse may overflow
