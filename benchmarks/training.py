"""Training steps of small networks: the C++ core beside a torch user's loop, plain and compiled.

Each contender runs the same batches of noisy rows on the number of threads that suits it best.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion_fast._timing import Contender, Result, compare, torch_threads
from diffusion_fast.fused_training import FusedTrainer

T = 1000
LEARNING_RATE = 1e-4


@dataclass(frozen=True)
class Problem:
    network: nn.Sequential
    embeddings: list[nn.Embedding]
    x: Tensor
    indices: list[Tensor]
    target: Tensor

    @property
    def parameters(self) -> list[nn.Parameter]:
        return [p for module in (self.network, *self.embeddings) for p in module.parameters()]


@dataclass(frozen=True)
class TrainingSteps:
    """time_width: columns of a learned table of T rows beside the input, 0 = none. shared_t: one timestep for
    a whole batch, as in report 002, else one for each row.
    """

    name: str
    widths: tuple[int, ...]
    activation: type[nn.Module]
    batch: int
    time_width: int = 0
    shared_t: bool = False
    max_norm: float | None = None
    faster: dict[str, float] = field(default_factory=dict)
    names: tuple[str, ...] = ("ours", "torch loop", "torch.compile")

    def problem(self, steps: int) -> Problem:
        torch.manual_seed(0)
        modules: list[nn.Module] = []
        widths = (self.widths[0] + self.time_width, *self.widths[1:])
        for n_in, n_out in itertools.pairwise(widths):
            modules += [nn.Linear(n_in, n_out), self.activation()]
        n = steps * self.batch
        t = torch.randint(T, (steps if self.shared_t else n,))
        t = t.repeat_interleave(self.batch) if self.shared_t else t
        return Problem(
            nn.Sequential(*modules[:-1]),
            [nn.Embedding(T, self.time_width)] if self.time_width else [],
            torch.randn(n, self.widths[0]),
            [t] if self.time_width else [],
            torch.randn(n, self.widths[-1]),
        )

    def prepare(self, name: str, steps: int = 50) -> Callable[[], object]:
        p = self.problem(steps)
        if name == "ours":
            trainer = FusedTrainer(p.network, embeddings=p.embeddings, max_norm=self.max_norm)
            options: dict[str, Any] = {"batch_size": self.batch, "lr": LEARNING_RATE, "indices": p.indices}
            return partial(trainer.run, p.x, p.target, **options)
        optimizer = torch.optim.Adam(p.parameters, lr=LEARNING_RATE, fused=True)
        loss = partial(loss_of, p.network, p.embeddings)
        return partial(self.loop, p, torch.compile(loss) if name == "torch.compile" else loss, optimizer)

    def loop(self, p: Problem, loss_function: Callable[..., Tensor], optimizer: torch.optim.Adam) -> None:
        for rows in zip(*(tensor.split(self.batch) for tensor in (p.x, p.target, *p.indices)), strict=True):
            optimizer.zero_grad(set_to_none=True)
            loss_function(*rows).backward()
            if self.max_norm is not None:
                nn.utils.clip_grad_norm_(p.parameters, self.max_norm)
            optimizer.step()

    def on_best_threads(self, name: str, steps: int) -> tuple[Callable[[], object], int]:
        """The run, and the number of threads on which it was fastest."""
        run = self.prepare(name, steps)
        found = []
        for threads in range(1, torch.get_num_threads() + 1):
            with torch_threads(threads):
                run()
                began = time.perf_counter()
                run()
                found.append((time.perf_counter() - began, threads))
        return partial(on_threads, run, min(found)[1]), min(found)[1]

    def measure(self, quick: bool) -> Result:
        steps = 200 if quick else 1000
        shape = "-".join(map(str, self.widths))
        time_table = f" with a time table of {T} x {self.time_width}" if self.time_width else ""
        result = Result(self.name, f"{steps} steps of {self.batch} rows, {shape}{time_table}", "steps/s")
        found = []
        for name in self.names:
            run, threads = self.on_best_threads(name, steps)
            note = f"{threads} thread{'s' if threads > 1 else ''}"
            found.append(Contender(name, run, note=note, required=self.faster.get(name)))
        return compare(result, found, steps, 3 if quick else 7)


def loss_of(
    network: nn.Sequential, embeddings: list[nn.Embedding], x: Tensor, y: Tensor, *t: Tensor
) -> Tensor:
    columns = [x, *(embedding(index) for embedding, index in zip(embeddings, t, strict=True))]
    return F.mse_loss(network(torch.cat(columns, dim=1)), y)


def on_threads(run: Callable[[], object], threads: int) -> None:
    with torch_threads(threads):
        run()


FASTER = {"torch loop": 6.0, "torch.compile": 3.0}
CASES = [
    TrainingSteps("training-table", (2, 128, 128, 2), nn.SiLU, 128, 128, faster=FASTER),
    TrainingSteps(
        "training-clipped", (2, 128, 128, 2), nn.SiLU, 128, 128, shared_t=True, max_norm=0.01, faster=FASTER
    ),
    TrainingSteps("training-tiny", (2, 16, 16, 1), nn.ReLU, 64, faster=FASTER),
]
