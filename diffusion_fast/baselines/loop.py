"""What the baselines' training loops share: rows, and the record of the losses."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from diffusion_fast import _checks
from diffusion_fast._timing import torch_threads
from diffusion_fast.metrics.result import rows
from diffusion_fast.training import TrainingHistory

RECORDS = 100  # points of a loss curve
MOST_AT_ONCE = 200  # steps of a block
Block = Callable[[int, int], tuple[Tensor, ...]]


class Data:
    """Rows to draw batches from, with replacement, and the generator that everything random comes from."""

    def __init__(self, data: Any, dim: int, batch_size: int, seed: Any) -> None:
        array = rows("data", data)
        if array.shape[1] != dim:
            raise _checks.bad_value("data", data, f"rows of {dim} numbers, as the model takes")
        self.rows = torch.from_numpy(array).float()
        self.batch_size = _checks.integer("batch_size", batch_size, 1)
        self.generator = torch.Generator().manual_seed(_checks.seed("seed", seed))

    def batches(self, count: int = 1) -> Tensor:
        """The rows of `count` batches one after the other."""
        size = (count * self.batch_size,)
        return self.rows[torch.randint(len(self.rows), size, generator=self.generator)]

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator)


def one_by_one(step: Callable[[int], tuple[Tensor, ...]]) -> Block:
    """A block of steps from a single one, which returns its losses."""

    def block(first: int, count: int) -> tuple[Tensor, ...]:
        losses = zip(*(step(k) for k in range(first, first + count)), strict=True)
        return tuple(torch.stack(each).sum() for each in losses)

    return block


def run_steps(
    steps: Any, block: Block, validate: Callable[[], Tensor] | None, name: str, progress: bool
) -> tuple[TrainingHistory, ...]:
    """block(first, count), the steps from number `first` on -> the sum of each loss over them; on one thread.

    -> a history of RECORDS means for each loss. validate: the loss on held-out rows, recorded with the first.
    """
    steps = _checks.integer("steps", steps, 1)
    _checks.flag("progress", progress)
    every = max(1, steps // RECORDS)
    histories: tuple[TrainingHistory, ...] = ()
    totals: list[Tensor] = []
    done = recorded = 0
    began = time.perf_counter()
    with (
        torch_threads(1),  # several would wait for each other in networks of this size
        tqdm(total=steps, disable=not progress, desc=name, unit="step", mininterval=0.5) as bar,
    ):
        while done < steps:
            count = min(MOST_AT_ONCE, recorded + every - done, steps - done)
            sums = [loss.detach() for loss in block(done, count)]
            totals = [a + b for a, b in zip(totals, sums, strict=True)] if totals else sums
            done += count
            bar.update(count)
            if done < min(recorded + every, steps):
                continue
            histories = histories or tuple(TrainingHistory() for _ in totals)
            for history, total in zip(histories, totals, strict=True):
                value = float(total) / (done - recorded)
                if not abs(value) < float("inf"):
                    raise FloatingPointError(f"the loss became {value} by step {done}: a lower lr may help")
                history.train_loss.append(value)
            totals, recorded = [], done
            if validate is not None:
                with torch.no_grad():
                    histories[0].validation_loss.append(float(validate()))
    for history in histories:
        history.best_epoch, history.seconds = len(history.train_loss) - 1, time.perf_counter() - began
    return histories
