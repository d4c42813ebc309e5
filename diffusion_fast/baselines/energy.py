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
from diffusion_fast.baselines.loop import Data, one_by_one, run_steps
from diffusion_fast.fused_training import FusedTrainer
from diffusion_fast.models.energy import EnergyMLP, EnergyScore
from diffusion_fast.training import TrainingHistory

DRIFTS = ("sum", "mean")
LEAST_PENALTY = 1e-6  # 1 / (2 penalty) plus an energy is still a float32 that tells energies apart


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
    Adam, whose rate falls to 0 along a cosine. But for a constant that is penalty times the mean square of
    E + 1 / (2 penalty) on data and of E - 1 / (2 penalty) on chains: the steps run in C++ as those of a
    regression (fused_training.FusedTrainer), on one thread.

    Args:
        data: (n, dim) finite numbers, used as they are.
        clip_norm: of the gradient, None for none.
        penalty: at least 1e-6.
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
    total = _checks.integer("steps", steps, 1)
    rate = _checks.real("lr", lr, 0.0, open_low=True)
    scale = 2 * _checks.real("penalty", penalty, LEAST_PENALTY)  # of the loss, by the trainer's mean square
    norm = None if clip_norm is None else _checks.real("clip_norm", clip_norm, 0.0, open_low=True) / scale
    decay = _checks.real("ema", ema, 0.0, 1.0)
    trainer = FusedTrainer(energy.net, max_norm=norm, ema=decay or None)
    score = EnergyScore(energy)
    sampler = _Chains(score, source, chains, chain_steps, step_size, start_scale, restart, drift)
    latest: list[Tensor] = []
    aims = torch.full((2, source.batch_size), 1 / scale)
    aims[0] *= -1

    @torch.no_grad()
    def step(k: int) -> tuple[Tensor, ...]:
        negative = sampler.advance()
        both = torch.cat([source.batches(), negative])
        e = energy(both).reshape(2, -1)
        falling = rate * 0.5 * (1 + math.cos(math.pi * k / total))
        trainer.run(both, aims.view(-1, 1), batch_size=len(both), lr=falling, threads=1)
        latest[:] = [negative]
        return (e[0].mean() - e[1].mean(),)

    def validate() -> Tensor:
        assert held_out is not None
        return energy(held_out).mean() - energy(latest[0]).mean()

    energy.train()
    try:
        block = one_by_one(step)
        history = run_steps(total, block, None if held_out is None else validate, "energy", progress)[0]
        with torch.no_grad():
            for parameter, value in (trainer.average() if decay else {}).items():
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
