"""Good arguments for every entry point, to be spoilt one at a time; shared by the tables of bad input."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load as read_tensors
from safetensors.torch import save as write_tensors
from torch import Tensor, nn

import diffusion_fast as df
from diffusion_fast.models import MLPDenoiser

T, N_CLASSES = 10, 3
NAN, INF = float("nan"), float("inf")
V, Ty, Either = (ValueError,), (TypeError,), (ValueError, TypeError)
SCHEDULE = df.NoiseSchedule.linear(T, 1e-3, 0.3)
ROW = df.solvers.ddpm(SCHEDULE)[3]
META = torch.device("meta")


def net(n_classes: int | None = None) -> MLPDenoiser:
    with torch.random.fork_rng():
        return MLPDenoiser(2, (8,), n_steps=T, time_dim=4, n_classes=n_classes).eval()


class Wide(nn.Module):
    """Samples of 2^20 elements; only ever asked for too many of them."""

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return x


def spoilt(value: float) -> MLPDenoiser:
    """A model with one weight that is no number."""
    model = net()
    nn.init.constant_(model.get_parameter("model.0.bias")[3:4].detach(), value)
    return model


class Bench:
    """Good arguments to spoil, and everything that a refused call must leave as it was."""

    model, conditional = net(), net(N_CLASSES)
    sampler = df.Sampler(model, SCHEDULE)
    by_class = df.Sampler(conditional, SCHEDULE)
    guided = df.Sampler(conditional, SCHEDULE, guidance_scale=2.0)
    plan = sampler.plan
    assert plan is not None
    plan_bytes = plan.to_bytes()

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.good = folder / "good"
        df.save(self.good, self.model, SCHEDULE)
        self.outputs: list[Tensor] = []
        self.generator = torch.Generator().manual_seed(1)
        self.before = self.state()

    def state(self) -> list[Any]:
        """Bytes of all files, weights and outputs, and what the generator would give next."""
        files = [(path.name, path.read_bytes()) for path in sorted(self.folder.iterdir())]
        weights = [p.detach().clone().numpy().tobytes() for p in self.model.parameters()]
        return [files, weights, self.model.training, self.generator.get_state().tolist()]

    def out(self, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        tensor = torch.full(shape or (4, 2), 7.0).to(dtype)
        self.outputs.append(tensor)
        return tensor

    def array(self, *shape: int, read_only: bool = False) -> np.ndarray:
        array = self.out(*shape).numpy()
        if read_only:
            array.flags.writeable = False
        return array

    def file(self, content: bytes) -> Path:
        path = self.folder / "given"
        path.write_bytes(content)
        self.before = self.state()
        return path

    def checkpoint(
        self, change: Callable[[dict[str, Any]], Any] = lambda header: None, **tensors: Any
    ) -> Path:
        """The good checkpoint with its header changed, and tensors replaced (None takes one away)."""
        data = self.good.read_bytes()
        size = struct.unpack("<Q", data[:8])[0]
        header = json.loads(json.loads(data[8 : 8 + size])["__metadata__"]["diffusion_fast"])
        change(header)
        state = read_tensors(data) | {name.replace("__", "."): value for name, value in tensors.items()}
        state = {name: value for name, value in state.items() if value is not None}
        return self.file(write_tensors(state, metadata={"diffusion_fast": json.dumps(header)}))

    # ---- good calls with something changed

    def make(self, model: Any = None, schedule: Any = SCHEDULE, **options: Any) -> Any:
        return df.Sampler(self.model if model is None else model, schedule, **options)

    def draw(self, n: Any = 4, sampler: Any = None, **options: Any) -> Any:
        return (sampler or self.sampler).sample(n, **{"out": self.out(), **options})

    def step(self, **options: Any) -> Any:
        x = torch.ones(4, 2)
        return df.ops.reverse_step(
            **{"x": x, "model_output": x, "row": ROW, "seed": 0, "out": self.out()} | options
        )

    def normal(self, **options: Any) -> Any:
        return df.noise.normal(**{"n": 4, "dim": 3, "seed": 0, "step": 0} | options)

    def train(self, model: Any = None, schedule: Any = SCHEDULE, data: Any = None, **options: Any) -> Any:
        data = torch.zeros(32, 2) if data is None else data
        model = self.model if model is None else model
        return df.train(model, schedule, data, **{"epochs": 1, "progress": False} | options)

    def save(
        self, path: Any = None, model: Any = None, schedule: Any = SCHEDULE, *rest: Any, **options: Any
    ) -> Any:
        path = self.good if path is None else path
        df.save(path, self.model if model is None else model, schedule, *rest, **options)

    def patched(self, offset: int, form: str, value: Any) -> Any:
        """The good plan with one field overwritten."""
        data = bytearray(self.plan_bytes)
        struct.pack_into("<" + form, data, offset, value)
        return df.Plan.from_bytes(bytes(data))


def overlapping(bench: Bench) -> tuple[Tensor, Tensor]:
    memory = bench.out(20)
    return memory[:8].view(4, 2), memory[3:11].view(4, 2)


class Case(NamedTuple):
    """One row: a good call with one fault.

    argument is the entry point and its argument; given, accepted and name are regular expressions for the
    parts of the message "NAME: got GIVEN; accepted: ACCEPTED". NAME is the argument's own where none is
    written.
    """

    argument: str
    fault: str
    call: Callable[[Bench], Any]
    error: tuple[type[Exception], ...]
    given: str
    accepted: str
    name: str = ""
