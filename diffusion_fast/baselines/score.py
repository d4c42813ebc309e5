"""Denoising score matching at one noise level (Vincent 2011), sampled by Langevin dynamics."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_fast import _checks
from diffusion_fast.baselines.loop import Data, run_steps
from diffusion_fast.fused_training import FusedTrainer
from diffusion_fast.models.mlp import ACTIVATIONS, MAX_WIDTH, hidden_widths, make_layers
from diffusion_fast.training import TrainingHistory


class ScoreMLP(nn.Module):
    """The score of points with noise in them: Linear - activation - ... -> Linear(dim). It reads no time.

    Args:
        dim: columns of the data.
        hidden: widths of the hidden layers, at least one.
        activation: as for MLPDenoiser.

    Attributes: dim, shape = (dim,), config (the arguments), net (the layers). Raises ValueError or TypeError
    for an argument outside of what is listed.
    """

    def __init__(self, dim: int, hidden: Sequence[int] = (128, 128), activation: str = "silu") -> None:
        super().__init__()
        self.dim = _checks.integer("dim", dim, 1, MAX_WIDTH)
        widths = hidden_widths(hidden)
        _checks.choice("activation", activation, ACTIVATIONS)
        self.shape = (self.dim,)
        self.config: dict[str, Any] = {"dim": self.dim, "hidden": widths, "activation": activation}
        self.net = make_layers(self.dim, widths, self.dim, activation)

    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        """x (B, dim) floating -> (B, dim); t is not read."""
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise _checks.bad_value("x", x, f"a (batch, {self.dim}) tensor")
        return self.net(x)


def train(
    model: ScoreMLP,
    data: Any,
    *,
    sigma: float = 0.1,
    steps: int = 10_000,
    batch_size: int = 128,
    lr: float = 1e-3,
    clip_norm: float | None = 0.1,
    validation: Any = None,
    seed: int | torch.Generator = 0,
    progress: bool = True,
) -> TrainingHistory:
    """Train model(x) towards the score of data + sigma N(0, I), in place, and leave it in eval mode.

    loss = mean (sigma f(x + sigma w) + w)^2; Adam, whose rate falls to 0 along a cosine. The steps run in
    C++ (fused_training.FusedTrainer), on one thread.

    Args:
        data: (n, dim) finite numbers, used as they are.
        sigma: above 0, in units of the data.
        clip_norm: of the gradient, None for none.
        validation: rows held out, whose loss under noise drawn once is history.validation_loss.

    Returns a history of 100 means of the loss. Raises TypeError or ValueError naming the argument, and
    FloatingPointError if the loss becomes NaN or infinite.
    """
    if not isinstance(model, ScoreMLP):
        raise _checks.bad_type("model", model, "a ScoreMLP")
    source = Data(data, model.dim, batch_size, seed)
    sigma = _checks.real("sigma", sigma, 0.0, open_low=True)
    rate = _checks.real("lr", lr, 0.0, open_low=True)
    total = _checks.integer("steps", steps, 1)
    # The trainer's loss is the square of f(x + sigma w) + w / sigma.
    scale = sigma**2
    norm = None if clip_norm is None else _checks.real("clip_norm", clip_norm, 0.0, open_low=True) / scale
    trainer = FusedTrainer(model.net, max_norm=norm)
    fixed: tuple[Tensor, Tensor] | None = None
    if validation is not None:
        held_out = Data(validation, model.dim, batch_size, 0)
        fixed = held_out.rows, held_out.normal(*held_out.rows.shape)

    def block(first: int, count: int) -> tuple[Tensor, ...]:
        x = source.batches(count)
        w = source.normal(*x.shape)
        turns = torch.arange(first, first + count, dtype=torch.float64) * (math.pi / total)
        losses = trainer.run(
            x + sigma * w,
            w / -sigma,
            batch_size=source.batch_size,
            lr=rate / 2 * (1 + turns.cos()),
            threads=1,
        )
        return (scale * losses.double().sum(),)

    def validate(x: Tensor, w: Tensor) -> Tensor:
        return (sigma * model(x + sigma * w) + w).square().mean()

    model.train()
    try:
        held_out_loss = None if fixed is None else lambda: validate(*fixed)
        return run_steps(total, block, held_out_loss, "score", progress)[0]
    finally:
        model.eval()
