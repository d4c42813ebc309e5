"""The weights of a module, watched: a sampler must not run on what they were."""

from __future__ import annotations

from itertools import chain
from typing import Any

from torch import Tensor, nn

from diffusion_fast import _cpu, _tensors  # noqa: F401  (_tensors tells _cpu what a tensor is)


class Weights:
    """Where a module keeps its parameters, buffers and submodules.

    Made once: walking the modules at each call of a sampler took as long as a small chain.
    """

    _WATCHED = (bool, int, float, str, Tensor)  # attributes, as they are when this is made

    def __init__(self, module: nn.Module) -> None:
        self._modules = modules = list(module.modules())  # kept, so that no id comes twice
        self._stores: list[dict[str, Any]] = [d for m in modules for d in (m._parameters, m._buffers) if d]
        self._children: list[dict[Any, Any]] = [m._modules for m in modules if m._modules]
        self._children += [hooks for m in modules for hooks in (m._forward_pre_hooks, m._forward_hooks)]
        self._attributes = [
            (vars(m), name)
            for m in modules
            for name, value in vars(m).items()
            if name[0] != "_" and name != "training" and type(value) in self._WATCHED
        ]

    def fingerprint(self) -> Any:
        """Of (data_ptr, _version) of every parameter and buffer, the submodules, forward hooks, and the
        attributes that are numbers, strings or tensors: changes when one is replaced or written to. Writes
        through `.data` or a NumPy view, and what lies in lists, objects or names that begin with _, leave no
        trace here."""
        state = _cpu.fingerprint(self._stores, self._children, self._attributes)
        if state is not None:
            return state
        attributes = [store.get(name) for store, name in self._attributes]
        stored = chain(*(store.values() for store in self._stores), attributes)
        tensors = [value for value in stored if isinstance(value, Tensor)]
        found = tuple((t.data_ptr(), 0 if t.is_inference() else t._version) for t in tensors)
        values = tuple((type(value), value) for value in attributes if not isinstance(value, Tensor))
        return (found, values, *map(id, chain(*(parts.values() for parts in self._children))))
