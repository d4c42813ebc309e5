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

    def __init__(self, module: nn.Module) -> None:
        self._modules = modules = list(module.modules())  # kept, so that no id comes twice
        self._stores: list[dict[str, Any]] = [d for m in modules for d in (m._parameters, m._buffers)]
        self._children: list[dict[Any, Any]] = [
            d for m in modules for d in (m._modules, m._forward_pre_hooks, m._forward_hooks)
        ]
        self._attributes = [(vars(m), len(vars(m)), tuple(filter(_watched, vars(m)))) for m in modules]
        # and nor does the address of what else is told by its own; detached, a tensor keeps its memory even
        # where .data is given another
        named = (names for names, *_ in self._attributes)
        found = chain(*(d.values() for d in chain(self._stores, self._children, named)))
        self._kept = [value.detach() if isinstance(value, Tensor) else value for value in found]

    def fingerprint(self) -> Any:
        """Changes when a parameter or buffer is added, replaced or written to (by its data_ptr and _version),
        a submodule or forward hook added, removed or replaced, or an attribute whose name does not begin with
        _ set: numbers, strings and tuples of them by value, tensors as parameters are, all else but lists and
        dicts by identity. Writes through `.data` or a NumPy view, and what lies in lists, dicts and objects,
        leave no trace here."""
        state = _cpu.fingerprint(self._stores, self._children, self._attributes)
        if state is not None:
            return state
        attributes = (
            (name, value) for names, *_ in self._attributes for name, value in names.items() if _watched(name)
        )
        stored = chain(*(store.items() for store in self._stores), attributes)
        parts = chain(*(parts.items() for parts in self._children))
        return (*((k, _trace(v)) for k, v in stored), *((k, id(v)) for k, v in parts))


def _watched(name: str) -> bool:
    """Whether an attribute is neither torch's own, private to the module, nor the mode: that one a sampler
    looks at by itself."""
    return name[:1] != "_" and name != "training"


def _trace(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value.data_ptr(), 0 if value.is_inference() else value._version
    if isinstance(value, int | float | str):
        return type(value), repr(value)  # 0.0 == -0.0
    if isinstance(value, tuple):
        return type(value), *map(_trace, value)
    if isinstance(value, list | dict):  # torch.export leaves copies in their place
        return type(value)
    return id(value)
