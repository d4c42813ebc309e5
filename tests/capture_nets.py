"""The module, schedule and steps that the tests of capture share."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from diffusion_fast.schedules import NoiseSchedule

SCHEDULE = NoiseSchedule.linear(n_steps=20, beta_start=1e-4, beta_end=0.2)
STEPS = list(range(19, -1, -2))
ULP = 2.0**-23


class Net(nn.Module):
    """A module with some layers whose forward is the given function of (self, x, t, y)."""

    def __init__(self, body: Callable[..., Any]) -> None:
        super().__init__()
        self.body = body
        self.first, self.last, self.square = nn.Linear(3, 8), nn.Linear(8, 3), nn.Linear(8, 8)
        self.wide, self.short = nn.Linear(11, 8), nn.Linear(3, 3)
        self.time, self.label = nn.Embedding(20, 8), nn.Embedding(4, 8)
        self.offset = nn.Parameter(torch.randn(1, 8))
        self.register_buffer("count", torch.ones(1))
        self.register_buffer("table", torch.randn(20, 8, dtype=torch.float64))
        self.norm, self.groups = nn.BatchNorm1d(8), nn.LayerNorm(8)
        self.calls = 0

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Any:
        return self.body(self, x, t, y)


class _InFloat64(TorchFunctionMode):
    """Casts to float32 become casts to float64."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        def wide(value: Any) -> Any:
            return torch.float64 if value is torch.float32 else value

        if func is Tensor.float:
            return args[0].double()
        return func(*map(wide, args), **{k: wide(v) for k, v in (kwargs or {}).items()})


@torch.no_grad()
def in_float64(module: nn.Module, *args: Tensor) -> Tensor:
    """The module's result in float64, whatever it casts to float32 itself. The module stays in float64."""
    wide = [arg.double() if arg.is_floating_point() else arg for arg in args]
    torch.set_default_dtype(torch.float64)
    try:
        with _InFloat64():
            return module.double()(*wide)
    finally:
        torch.set_default_dtype(torch.float32)
