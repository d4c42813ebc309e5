"""The fused chain on a CUDA device: a packed plan in its memory, and its run for a checked call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from diffusion_fast import _tensors, cuda
from diffusion_fast.plan import Plan
from diffusion_fast.torch_chain import Call, NotFinite

PRECISIONS = ("float32", "bfloat16", "float16")

# Bytes of pinned memory for one of the two buffers through which samples leave the device.
PINNED_BYTES = 1 << 27
# Samples that keep a large device busy; a chunk for the sake of overlap alone is not smaller.
_BUSY = 1 << 17
# Shared memory that a block may have on every device from compute capability 8.0 on.
_SHARED_BYTES = 99 << 10


class CudaChain:
    """A plan, packed for one device and loaded there.

    Raises ValueError where the device cannot run it, RuntimeError during the capture of a graph.
    """

    def __init__(self, plan: Plan, precision: str, device: torch.device) -> None:
        properties = torch.cuda.get_device_properties(device)
        self._program = cuda.module_for(device.index).Program(
            plan.to_bytes(),
            precision,
            getattr(properties, "shared_memory_per_block_optin", _SHARED_BYTES),
            10 * properties.major + properties.minor,
            properties.multi_processor_count,
        )
        self._program.prepare(device.index)
        self._image = torch.from_numpy(self._program.image.view(np.int32).copy()).to(device)
        torch.cuda.current_stream(device).synchronize()  # calls may come on other streams
        self.device = device
        self.name = f"native on {device}, {self._program.path} ({self._program.reason})"

    def run(self, call: Call, target: Tensor) -> NotFinite:
        """Queues the chain on the current stream of the device; target and what the call holds lie there.

        target: (n, *shape), or with a trajectory (rows + 1, n, *shape).
        """
        stream = torch.cuda.current_stream(self.device)
        last = _tensors.allocate(target.shape[1:], self.device) if call.trajectory else target
        scratch_bytes = self._program.scratch_bytes(call.n)
        scratch = torch.empty(scratch_bytes, dtype=torch.uint8, device=self.device) if scratch_bytes else None
        self._image.record_stream(stream)  # the sampler may be gone before the kernel is
        seed, seed_at = cuda.by_address(call.seed)
        self._program.run(
            self._image.data_ptr(),
            0 if scratch is None else scratch.data_ptr(),
            last.data_ptr(),
            call.n,
            call.start,
            seed,
            stream.cuda_stream,
            self.device.index,
            *call.addresses(target),
            seed_at,
        )
        low, high = torch.aminmax(last.flatten(1), dim=1)  # of a sample with NaN both are NaN
        return ~(torch.isfinite(low) & torch.isfinite(high))


def copied_out(
    fill: Callable[[Call, Tensor], NotFinite],
    call: Call,
    shape: Sequence[int],
    size: int,
    device: torch.device,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """Chunks of at most size samples, drawn on the device by fill, and copied out while the next is drawn.

    shape: of all samples, or of the trajectory. Yields where a chunk begins, its samples, and a mask of those
    not finite, both in pinned memory that is written to again once the next chunk is asked for.
    """
    axis = 1 if call.trajectory else 0  # that counts the samples
    copies = torch.cuda.Stream(device)
    whole = (*shape[:axis], min(size, call.n), *shape[axis + 1 :])
    buffers = [torch.empty(whole, dtype=torch.float32, pin_memory=True) for _ in range(2)]
    masks = [torch.empty(whole[axis], dtype=torch.bool, pin_memory=True) for _ in range(2)]
    copied = [torch.cuda.Event() for _ in range(2)]

    def finished(at: int) -> tuple[int, Tensor, Tensor]:
        i, n = at // size % 2, min(size, call.n - at)
        copied[i].synchronize()
        return at, buffers[i].narrow(axis, 0, n), masks[i][:n]

    for at in range(0, call.n, size):
        i, part = at // size % 2, replace(call.part(at, min(at + size, call.n)), bar=None)
        made = torch.empty((*shape[:axis], part.n, *shape[axis + 1 :]), dtype=torch.float32, device=device)
        mask = fill(part, made)
        copies.wait_stream(torch.cuda.current_stream(device))
        with torch.cuda.stream(copies):
            for host, there in ((buffers[i].narrow(axis, 0, part.n), made), (masks[i][: part.n], mask)):
                assert isinstance(there, Tensor)
                host.copy_(there, non_blocking=True)
                there.record_stream(copies)
            copied[i].record(copies)
        if at:
            yield finished(at - size)
    if call.n:
        yield finished((call.n - 1) // size * size)


def to_host(
    fill: Callable[[Call, Tensor], NotFinite], call: Call, target: Tensor, device: torch.device
) -> Tensor:
    """The samples of a call, drawn on the device by fill, to the CPU; returns a mask of those not finite."""
    size = chunk_size(call.n, target.nbytes // max(call.n, 1), device)
    bad = torch.zeros(call.n, dtype=torch.bool)
    for at, samples, mask in copied_out(fill, call, target.shape, size, device):
        target.narrow(1 if call.trajectory else 0, at, len(mask)).copy_(samples)
        bad[at : at + len(mask)] = mask
        call.show(at + len(mask))
    return bad


def chunk_size(n: int, sample_bytes: int, device: torch.device) -> int:
    """Samples that are drawn at a time for a target on the CPU.

    A quarter of n, so that copies overlap with work, but enough to keep the device busy; no more than a
    pinned buffer holds, nor than an eighth of the free memory: a chunk lies there twice, beside its inputs
    and temporaries.
    """
    free = torch.cuda.mem_get_info(device)[0]
    free += torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    room = min(PINNED_BYTES, free // 8) // max(sample_bytes, 1)
    return max(1, min(room, max(-(-n // 4), _BUSY)))
