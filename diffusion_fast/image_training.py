"""Training a denoiser of images epoch by epoch, with the loss of every step and a state to go on from.

`train` is for points, where a run takes seconds. An epoch of images takes minutes, so what trains them is an
object that is asked for one more epoch, with samples drawn in between, and kept with its optimizer's state.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from diffusion_fast import _checks
from diffusion_fast.schedules import NoiseSchedule

# clean images (B, *shape) -> what the model sees, (B, *shape) and t (B,) int64, and what it should answer
Corruption = Callable[[Tensor, torch.Generator], tuple[Tensor, Tensor, Tensor]]
SEED_STRIDE = 1_000_003  # between the seeds of epochs
HELD_OUT_SEED = 1 << 40


def gaussian(schedule: NoiseSchedule) -> Corruption:
    """x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) eps, t uniform; the answer is eps (Ho et al. 2020, eq. 14)."""
    abar = schedule.alphas_cumprod[:, None, None, None]
    signal, noise = abar.sqrt().float(), (1 - abar).sqrt().float()

    def corrupt(x0: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor, Tensor]:
        t = torch.randint(len(signal), (len(x0),), generator=generator)
        eps = torch.randn(x0.shape, generator=generator)
        return (signal[t] * x0).addcmul_(noise[t], eps), t, eps

    return corrupt


class EpochTrainer:
    """Trains model(x, t) in place, one epoch a call, with Adam.

    Args:
        corrupt: makes the model's input and its target of clean images.
        loss: of two (B, *shape) tensors, the answer and the target; a mean.
        lr, batch_size: the last partial batch of an epoch is left out.
        seed: with the number of the epoch it fixes the order of the images and all that corrupt draws, so
            training that was taken up again goes on as if it had not been interrupted.

    Attributes: epochs_done.
    """

    def __init__(
        self,
        model: nn.Module,
        corrupt: Corruption,
        loss: Callable[[Tensor, Tensor], Tensor],
        *,
        lr: float,
        batch_size: int,
        seed: int = 0,
    ) -> None:
        self.model, self.corrupt, self.loss = model, corrupt, loss
        self.device = next(model.parameters()).device
        self.batch_size = _checks.integer("batch_size", batch_size, 1)
        self.seed = _checks.integer("seed", seed, 0, HELD_OUT_SEED)
        lr = _checks.real("lr", lr, 0.0, open_low=True)
        self.optimizer = torch.optim.Adam(model.parameters(), lr=lr, fused=True)
        self.epochs_done = 0

    def epoch(self, images: Tensor, *, progress: bool = False) -> Tensor:
        """The loss of each step, float32, before the step; images (n, *shape), n at least batch_size.

        Raises FloatingPointError if a loss is NaN or infinite.
        """
        generator = torch.Generator().manual_seed(self.seed * SEED_STRIDE + self.epochs_done)
        self.model.train()
        losses = []
        batches = torch.randperm(len(images), generator=generator).split(self.batch_size)
        full = len(images) // self.batch_size
        for rows in tqdm(batches[:full], disable=not progress, unit="step", leave=False):
            value = self._loss(images[rows], generator)
            self.optimizer.zero_grad()
            value.backward()
            self.optimizer.step()
            losses.append(value.detach())
        self.model.eval()
        self.epochs_done += 1
        result = torch.stack(losses).cpu()
        if not bool(result.isfinite().all()):
            epoch = self.epochs_done - 1
            raise FloatingPointError(f"the loss became {result.mean()} in epoch {epoch}: a lower lr may help")
        return result

    @torch.no_grad()
    def held_out(self, images: Tensor) -> float:
        """The mean loss on images that are not trained on, with the same noise in every epoch."""
        generator = torch.Generator().manual_seed(HELD_OUT_SEED)
        self.model.eval()
        parts = [len(part) * self._loss(part, generator) for part in images.split(self.batch_size)]
        return float(sum(parts)) / len(images)

    def _loss(self, x0: Tensor, generator: torch.Generator) -> Tensor:
        x, t, target = (part.to(self.device) for part in self.corrupt(x0, generator))
        return self.loss(self.model(x, t), target)

    def state(self) -> dict[str, Tensor]:
        """What `restore` takes, beside the model's weights: the optimizer's moments and the epochs done."""
        moments = {
            f"adam.{index}.{name}": value
            for index, values in self.optimizer.state_dict()["state"].items()
            for name, value in values.items()
        }
        return {"epochs_done": torch.tensor(self.epochs_done), **moments}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Go on where the trainer that gave the state was; other entries of state are left alone."""
        moments: dict[int, dict[str, Tensor]] = {}
        for key, value in state.items():
            if key.startswith("adam."):
                _, index, name = key.split(".")
                moments.setdefault(int(index), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        self.epochs_done = int(state["epochs_done"])
