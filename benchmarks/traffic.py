"""Bytes that a piece of torch code moves: what every operation reads and writes, caches counted as memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from diffusion_fast._torch_peers import ChainPeer


def bytes_moved(run: Callable[[], object]) -> int:
    with _Counter() as counter:
        run()
    return counter.bytes


def bytes_per_sample_step(peer: ChainPeer, size: int) -> float:
    """Of a chain in torch, in chunks of `size`: the difference of three steps and two."""
    counts = [bytes_moved(partial(peer.chunk, size, steps)) for steps in (2, 3)]
    return (counts[1] - counts[0]) / size


class _Counter(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        if not func.is_view:
            # `out` is written, not read; so are the tensors of the operations that only fill or allocate.
            read = () if func.overloadpacket in _ONLY_WRITE else (args, _without_out(kwargs))
            written = () if func.overloadpacket in _ONLY_ALLOCATE else result
            self.bytes += sum(_size(leaf) for leaf in tree_leaves((read, written)))
        return result


_ONLY_ALLOCATE = {torch.ops.aten.empty, torch.ops.aten.empty_like}
_ONLY_WRITE = _ONLY_ALLOCATE | {torch.ops.aten.normal_, torch.ops.aten.randn_like, torch.ops.aten.full_like}


def _without_out(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in kwargs.items() if name != "out"}


def _size(leaf: Any) -> int:
    return leaf.numel() * leaf.element_size() if isinstance(leaf, torch.Tensor) else 0
