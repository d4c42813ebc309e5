"""An energy-based model: exp(-E), trained by contrastive divergence with persistent Langevin chains.

The gradient of the log likelihood is that of mean E(samples of the model) - mean E(data); the samples come
from chains that are carried on from step to step (Tieleman 2008; Du & Mordatch 2019, with restarts).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from diffusion_fast import _checks
from diffusion_fast.baselines.loop import Data, Updates, run_steps
from diffusion_fast.models.energy import EnergyMLP, EnergyScore
from diffusion_fast.training import TrainingHistory

DRIFTS = ("sum", "mean")


def train(
    energy: EnergyMLP,
    data: Any,
    *,
    steps: int = 2000,
    batch_size: int = 128,
    lr: float = 1e-3,
    clip_norm: float | None = 1.0,
    penalty: float = 1e-3,
    chains: int = 2000,
    chain_steps: int = 20,
    step_size: float = 5e-3,
    start_scale: float = 2.0,
    restart: float = 0.05,
    drift: str = "sum",
    ema: float = 0.99,
    validation: Any = None,
    seed: int | torch.Generator = 0,
    progress: bool = True,
) -> TrainingHistory:
    """Train the energy in place and leave it in eval mode, with averaged weights.

    loss = mean E(x) - mean E(x') + penalty (mean E(x)^2 + mean E(x')^2), x from data and x' from the chains;
    the learning rate falls to 0 along a cosine.

    Args:
        data: (n, dim) finite numbers, used as they are.
        clip_norm: of the gradient, None for none.
        chains, chain_steps: how many are kept, of which batch_size go on by so many steps of
            x <- x + step_size score(x) + sqrt(2 step_size) z in each training step.
        start_scale, restart: chains start from start_scale N(0, I), and each again with this probability
            whenever it goes on; 1 forgets all of them every time.
        drift: "sum", the score -dE/dx of each chain. "mean" divides it by batch_size, as a gradient of the
            mean energy over the batch does: published code has it so, and its chains are random walks.
        ema: decay of the average of the weights.
        validation: rows held out: their mean E in place of the data's, in history.validation_loss.

    Returns a history of 100 means of the loss. Raises TypeError or ValueError naming the argument, and
    FloatingPointError if the loss becomes NaN or infinite.
    """
    if not isinstance(energy, EnergyMLP):
        raise _checks.bad_type("energy", energy, "an EnergyMLP")
    source = Data(data, energy.dim, batch_size, seed)
    held_out = None if validation is None else Data(validation, energy.dim, batch_size, 0).rows
    penalty, decay = _checks.real("penalty", penalty, 0.0), _checks.real("ema", ema, 0.0, 1.0)
    score = EnergyScore(energy)
    sampler = _Chains(score, source, chains, chain_steps, step_size, start_scale, restart, drift)
    updates = Updates(energy, lr, clip_norm)
    average = [p.detach().clone() for p in energy.parameters()]
    latest: list[Tensor] = []

    def step(k: int) -> tuple[Tensor, ...]:
        x, negative = source.batch(), sampler.advance()
        e = energy(torch.cat([x, negative])).reshape(2, -1)
        loss = e[0].mean() - e[1].mean()
        for group in updates.optimizer.param_groups:
            group["lr"] = lr * 0.5 * (1 + math.cos(math.pi * k / steps))
        updates.step(loss + penalty * e.square().mean(1).sum())
        with torch.no_grad():
            torch._foreach_lerp_(average, list(energy.parameters()), 1 - min(decay, (1 + k) / (10 + k)))
        latest[:] = [negative]
        return (loss,)

    def validate() -> Tensor:
        assert held_out is not None
        return energy(held_out).mean() - energy(latest[0]).mean()

    energy.train()
    try:
        history = run_steps(steps, step, None if held_out is None else validate, "energy", progress)[0]
        with torch.no_grad():
            for parameter, value in zip(energy.parameters(), average, strict=True):
                parameter.copy_(value)
    finally:
        energy.eval()
    return history


class _Chains:
    """The persistent chains. They run in torch: a plan of the fused kernel holds the weights, and would have
    to be made anew after each update, which takes longer than the few steps of a batch."""

    def __init__(
        self,
        score: EnergyScore,
        source: Data,
        chains: Any,
        chain_steps: Any,
        step_size: Any,
        start_scale: Any,
        restart: Any,
        drift: Any,
    ) -> None:
        self.score, self.source = score, source
        self.count = source.batch_size
        chains = _checks.integer("chains", chains, self.count)
        self.steps = _checks.integer("chain_steps", chain_steps, 1)
        eta = _checks.real("step_size", step_size, 0.0, open_low=True)
        self.noise = math.sqrt(2 * eta)
        self.drift = eta / (1 if _checks.choice("drift", drift, DRIFTS) == "sum" else self.count)
        self.scale = _checks.real("start_scale", start_scale, 0.0)
        self.restart = _checks.real("restart", restart, 0.0, 1.0)
        self.x = self.scale * source.normal(chains, score.dim)

    @torch.no_grad()
    def advance(self) -> Tensor:
        """batch_size of the chains, chain_steps further."""
        source = self.source
        chosen = torch.randperm(len(self.x), generator=source.generator)[: self.count]
        anew = torch.rand(self.count, 1, generator=source.generator) < self.restart
        x = torch.where(anew, self.scale * source.normal(self.count, self.score.dim), self.x[chosen])
        for _ in range(self.steps):
            x = x.add_(self.score(x), alpha=self.drift).add_(source.normal(*x.shape), alpha=self.noise)
        # A chain that an early, steep energy threw out starts again.
        lost = ~torch.isfinite(x).all(1, keepdim=True) | (x.abs() > 100).any(1, keepdim=True)
        x = torch.where(lost, self.scale * source.normal(*x.shape), x)
        self.x[chosen] = x
        return x
