"""The weights of a module, watched: a sampler must not run on what they were."""

from __future__ import annotations

from itertools import chain
from typing import Any

from torch import nn

from diffusion_fast import _cpu, _tensors  # noqa: F401  (_tensors tells _cpu what a tensor is)


class Weights:
    """Where a module keeps its parameters, buffers and submodules.

    Made once: walking the modules at each call of a sampler took as long as a small chain.
    """

    def __init__(self, module: nn.Module) -> None:
        self._modules = modules = list(module.modules())  # kept, so that no id comes twice
        self._stores: list[dict[str, Any]] = [d for m in modules for d in (m._parameters, m._buffers) if d]
        self._children = [m._modules for m in modules if m._modules]

    def fingerprint(self) -> Any:
        """Of (data_ptr, _version) of every parameter and buffer, and the submodules: changes when weights are
        replaced or written to. Writes through `.data` or a NumPy view leave no trace here."""
        state = _cpu.fingerprint(self._stores, self._children)
        if state is not None:
            return state
        tensors = chain(*(store.values() for store in self._stores))
        found = tuple((t.data_ptr(), t._version) for t in tensors if t is not None)
        return (found, *map(id, chain(*(modules.values() for modules in self._children))))
