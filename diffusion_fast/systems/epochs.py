"""Training by epochs in stages of a run: early stopping, curves of the loss, samples of each epoch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_fast import plotting
from diffusion_fast.image_training import Corruption, EpochTrainer
from diffusion_fast.models import CNNDenoiser
from diffusion_fast.systems.run import Run
from diffusion_fast.training import TrainingHistory

PATIENCE, LEAST_GAIN = 15, 5e-4  # the report's
HELD_OUT_ROWS = 256  # for the loss of each epoch
STAGE_EPOCHS = 2  # of a full run: what an interruption may lose
PANELS = 24  # grids in a picture
Curve = Callable[[Sequence[Tensor]], list[float]]  # of the losses of each step of the epochs


class Training:
    """A denoiser on its way, in stages of some epochs each, until a rule of early stopping says enough.

    data: images to learn from, and held out. corrupt, loss, lr: EpochTrainer's. grid() draws the samples that
    are shown of each epoch.
    """

    def __init__(
        self,
        run: Run,
        name: str,
        model: CNNDenoiser,
        data: tuple[Tensor, Tensor],
        corrupt: Corruption,
        loss: Callable[[Tensor, Tensor], Tensor],
        lr: float,
        grid: Callable[[], Tensor],
    ) -> None:
        self.run, self.name, self.model, self.grid = run, name, model, grid
        self.train, self.test = data[0], data[1][:HELD_OUT_ROWS]
        batch_size = run.pick(32, 128)
        self.trainer = EpochTrainer(model, corrupt, loss, lr=lr, batch_size=batch_size, seed=run.seed)
        self.steps: list[Tensor] = []  # the loss of each step, by epoch
        self.held_out: list[float] = []
        self.grids: list[Tensor] = []

    def until(self, curve: Curve, most: int) -> None:
        """Train until the curve of the losses says stop, or for `most` epochs in all."""
        while len(self.steps) < most and not has_stopped(curve(self.steps)):
            name = f"{self.name}-from-epoch-{len(self.steps) + 1:03}"
            count = min(self.run.pick(most, STAGE_EPOCHS), most - len(self.steps))
            found = self.run.trained(name, self.model, partial(self._train, count, curve))
            self.trainer.restore(found)
            self.steps += found["steps"]
            self.held_out += found["held_out"]
            self.grids += list(found["grids"])

    def _train(self, epochs: int, curve: Curve, _: nn.Module) -> dict[str, Any]:
        steps: list[Tensor] = []
        held_out, grids = [], []
        while len(steps) < epochs and not has_stopped(curve(self.steps + steps)):
            steps.append(self.trainer.epoch(self.train, progress=self.run.progress))
            held_out.append(self.trainer.held_out(self.test))
            grids.append(self.grid())
        return {
            "steps": torch.stack(steps),
            "held_out": held_out,
            "grids": torch.stack(grids),
            **self.trainer.state(),
        }

    def losses(self, note: str = "") -> list[Any]:
        means = epoch_means(self.steps)
        last = self.held_out[-1], running_means(self.steps)[-1]
        return [self.name + note, len(means), means[0], means[-1], *last]

    def show(self, what: str) -> None:
        """The curves of the loss and the samples of each epoch."""
        means = epoch_means(self.steps)
        figure = plotting.loss_curve(TrainingHistory(means, self.held_out, best_epoch=len(means) - 1))
        axes = figure.axes[0]
        axes.set_ylabel(what)
        if self.run.as_published:
            label = "mean since the start, as published"
            axes.plot(running_means(self.steps), color="0.35", linestyle="--", label=label)
            axes.legend(frameon=False, fontsize=9)
        name = self.name.replace(" ", "-")
        self.run.picture(f"{name}-loss", figure, f"{self.name}: losses by epoch.")
        for first in range(0, len(self.grids), PANELS):
            shown = enumerate(self.grids[first : first + PANELS], first + 1)
            figure = plotting.image_panels({f"epoch {epoch}": grid for epoch, grid in shown}, columns=6)
            caption = f"{self.name}: 16 samples after each epoch, all from the same noise."
            self.run.picture(f"{name}-epochs-{first + 1:03}", figure, caption)


def epoch_means(steps: Sequence[Tensor]) -> list[float]:
    return [float(losses.mean()) for losses in steps]


def running_means(steps: Sequence[Tensor]) -> list[float]:
    """The mean of all steps since the start, at the end of each epoch: what the report takes for the loss."""
    return [float(torch.cat(list(steps[: epoch + 1])).mean()) for epoch in range(len(steps))]


def has_stopped(curve: Sequence[float]) -> bool:
    return len(curve) > PATIENCE + 1 and abs(min(curve) - curve[-1 - PATIENCE]) <= LEAST_GAIN
