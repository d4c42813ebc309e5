"""How a denoiser is called: module(x, t), then the class and the context where it has them."""

from __future__ import annotations

import inspect
import math
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from diffusion_fast import _checks


@dataclass(frozen=True)
class ModuleCall:
    """module(x, t[, y][, context]), or module(x, t[, y], name=context, ...) with named inputs.

    n_classes: rows of the class tables, the null class included; 0 without classes. context: the name and the
    shape of one sample of each context input, in their order; the name of a positional one is "".
    """

    n_classes: int = 0
    context: tuple[tuple[str, tuple[int, ...]], ...] = ()

    @property
    def n_context(self) -> int:
        """Features of the whole context, the inputs side by side."""
        return sum(math.prod(shape) for _, shape in self.context)

    def check(self, module: nn.Module) -> None:
        """Raises ValueError where the module's forward does not take what it would be called with."""
        positional = 2 + (self.n_classes > 0) + sum(not name for name, _ in self.context)
        named = dict.fromkeys(name for name, _ in self.context if name)
        try:
            inspect.signature(module.forward).bind(*[None] * positional, **named)
        except TypeError as error:
            given = f"{type(module).__name__}, whose forward says: {error}"
            accepted = "one called as module(x, t), then y with classes, then what context_shape names"
            raise ValueError(f"model: got {given}; accepted: {accepted}") from error

    def arguments(
        self, x: Tensor, t: Tensor, labels: Tensor | None, context: Tensor | None
    ) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
        """What the module is called with. x (B, *shape), t (B,), labels (B,), context (B, n_context)."""
        positional = [x, t]
        if self.n_classes:
            assert labels is not None
            positional.append(labels)
        named = {}
        at = 0
        for name, shape in self.context:
            assert context is not None
            part = context[:, at : at + math.prod(shape)].reshape(-1, *shape)
            at += math.prod(shape)
            if name:
                named[name] = part
            else:
                positional.append(part)
        return tuple(positional), named

    def __call__(
        self, module: nn.Module, x: Tensor, t: Tensor, labels: Tensor | None, context: Tensor | None
    ) -> Any:
        args, kwargs = self.arguments(x, t, labels, context)
        return module(*args, **kwargs)


def output_like(x: Tensor, output: Any) -> Tensor:
    """The module's output, if it is of x's shape and dtype: a single column, say, would broadcast unseen."""
    accepted = f"one that returns one tensor of x's shape and dtype, {tuple(x.shape)} {x.dtype}"
    if not isinstance(output, Tensor):
        raise _checks.bad_type("model", output, accepted)
    if output.shape != x.shape or output.dtype != x.dtype:
        raise _checks.bad_value("model", output, accepted)
    return output
