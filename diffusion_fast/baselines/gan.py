"""A generative adversarial network of two MLPs, with the non-saturating loss (Goodfellow et al. 2014)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_fast import _checks
from diffusion_fast.baselines.loop import Data, one_by_one, run_steps
from diffusion_fast.models.mlp import ACTIVATIONS, MAX_WIDTH, hidden_widths, make_layers
from diffusion_fast.training import TrainingHistory

LATENT_SCALE = 2.0  # z = 2 N(0, I)


class GAN(nn.Module):
    """generator: z (B, dim) -> points (B, dim); discriminator: points -> logit that they are data (B, 1).

    Args:
        dim: columns of the data, and of z.
        hidden: widths of the hidden layers of both, at least one.
        activation: as for MLPDenoiser.

    Attributes: dim, config (the arguments), generator, discriminator. Raises ValueError or TypeError for an
    argument outside of what is listed.
    """

    def __init__(self, dim: int, hidden: Sequence[int] = (256, 256), activation: str = "silu") -> None:
        super().__init__()
        self.dim = _checks.integer("dim", dim, 1, MAX_WIDTH)
        widths = hidden_widths(hidden)
        _checks.choice("activation", activation, ACTIVATIONS)
        self.config: dict[str, Any] = {"dim": self.dim, "hidden": widths, "activation": activation}
        self.generator = make_layers(self.dim, widths, self.dim, activation)
        self.discriminator = make_layers(self.dim, widths, 1, activation)

    @torch.no_grad()
    def sample(self, n: int, seed: int | torch.Generator = 0) -> Tensor:
        """(n, dim) points."""
        generator = torch.Generator().manual_seed(_checks.seed("seed", seed))
        return self.generator(LATENT_SCALE * torch.randn(n, self.dim, generator=generator))


def train(
    gan: GAN,
    data: Any,
    *,
    steps: int = 10_000,
    batch_size: int = 64,
    lr: float = 1e-4,
    clip_norm: float | None = 0.1,
    seed: int | torch.Generator = 0,
    progress: bool = True,
) -> tuple[TrainingHistory, TrainingHistory]:
    """Train both networks in turn, in place, and leave them in eval mode; -> (generator's, discriminator's).

    Each step: G on -log D(G(z)), then D on -log D(x) - log(1 - D(G(z))), with the same z. In logits, which
    need no small number inside of the logarithms.

    Args:
        data: (n, dim) finite numbers, used as they are.
        clip_norm: of each network's gradient, None for none.

    Returns histories of 100 means of each loss. Raises TypeError or ValueError naming the argument, and
    FloatingPointError if a loss becomes NaN or infinite.
    """
    if not isinstance(gan, GAN):
        raise _checks.bad_type("gan", gan, "a GAN")
    source = Data(data, gan.dim, batch_size, seed)
    g_updates, d_updates = (_Updates(part, lr, clip_norm) for part in (gan.generator, gan.discriminator))

    def step(_: int) -> tuple[Tensor, ...]:
        x, z = source.batches(), LATENT_SCALE * source.normal(source.batch_size, gan.dim)
        fake = gan.generator(z)
        g_loss = nn.functional.softplus(-gan.discriminator(fake)).mean()
        g_updates.step(g_loss)
        logits = gan.discriminator(torch.cat([x, fake.detach()])).reshape(2, -1)
        d_loss = (nn.functional.softplus(-logits[0]) + nn.functional.softplus(logits[1])).mean()
        d_updates.step(d_loss)
        return g_loss, d_loss

    gan.train()
    try:
        g_history, d_history = run_steps(steps, one_by_one(step), None, "gan", progress)
    finally:
        gan.eval()
    return g_history, d_history


class _Updates:
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
