"""What the baselines' training loops share: rows, steps of an optimizer, and the record of the losses."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from diffusion_fast import _checks
from diffusion_fast._timing import torch_threads
from diffusion_fast.metrics.result import rows
from diffusion_fast.training import TrainingHistory

RECORDS = 100  # points of a loss curve


class Data:
    """Rows to draw batches from, with replacement, and the generator that everything random comes from."""

    def __init__(self, data: Any, dim: int, batch_size: int, seed: Any) -> None:
        array = rows("data", data)
        if array.shape[1] != dim:
            raise _checks.bad_value("data", data, f"rows of {dim} numbers, as the model takes")
        self.rows = torch.from_numpy(array).float()
        self.batch_size = _checks.integer("batch_size", batch_size, 1)
        self.generator = torch.Generator().manual_seed(_checks.seed("seed", seed))

    def batch(self) -> Tensor:
        return self.rows[torch.randint(len(self.rows), (self.batch_size,), generator=self.generator)]

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)


class Updates:
    """Adam on a module's weights, the gradient clipped to clip_norm in norm (None: not clipped)."""

    def __init__(self, module: nn.Module, lr: float, clip_norm: float | None) -> None:
        self.parameters = list(module.parameters())
        self.clip_norm = (
            clip_norm if clip_norm is None else _checks.real("clip_norm", clip_norm, 0.0, open_low=True)
        )
        rate = _checks.real("lr", lr, 0.0, open_low=True)
        self.optimizer = torch.optim.Adam(self.parameters, lr=rate, fused=True)

    def step(self, loss: Tensor) -> None:
        """Only the module's own weights get gradients."""
        for parameter, grad in zip(self.parameters, torch.autograd.grad(loss, self.parameters), strict=True):
            parameter.grad = grad
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(self.parameters, self.clip_norm)
        self.optimizer.step()


def run_steps(
    steps: Any,
    step: Callable[[int], tuple[Tensor, ...]],
    validate: Callable[[], Tensor] | None,
    name: str,
    progress: bool,
) -> tuple[TrainingHistory, ...]:
    """step(k) for k < steps, on one thread; a history of RECORDS means for each loss that it returns.

    validate: the loss on held-out rows, recorded with the first history.
    """
    steps = _checks.integer("steps", steps, 1)
    _checks.flag("progress", progress)
    every = max(1, steps // RECORDS)
    histories: tuple[TrainingHistory, ...] = ()
    began = time.perf_counter()
    with torch_threads(1):  # several would wait for each other in networks of this size
        totals: list[Tensor] = []
        bar = tqdm(range(steps), disable=not progress, desc=name, unit="step", mininterval=0.5)
        for k in bar:
            losses = [loss.detach() for loss in step(k)]
            totals = [a + b for a, b in zip(totals, losses, strict=True)] if totals else losses
            if (k + 1) % every and k + 1 < steps:
                continue
            count = (k % every) + 1
            histories = histories or tuple(TrainingHistory() for _ in losses)
            for history, total in zip(histories, totals, strict=True):
                value = float(total) / count
                if not abs(value) < float("inf"):
                    raise FloatingPointError(f"the loss became {value} by step {k + 1}: a lower lr may help")
                history.train_loss.append(value)
            totals = []
            if validate is not None:
                with torch.no_grad():
                    histories[0].validation_loss.append(float(validate()))
    for history in histories:
        history.best_epoch, history.seconds = len(history.train_loss) - 1, time.perf_counter() - began
    return histories
