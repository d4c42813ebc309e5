"""The optimizer steps of train(): in C++ where the model is a small MLP denoiser, else in torch.

Both do the same to the weights, to rounding: the torch loop is the reference of the other.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion_fast import fused_training as fused
from diffusion_fast._tensors import CPU
from diffusion_fast.models import ConditionalMLPDenoiser, MLPDenoiser
from diffusion_fast.models import embeddings as em

OPTIMIZERS = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}
FUSED_WORK = 1 << 29  # weights x rows of a batch: above, torch's matrix products are as fast
MAX_ONE_HOT = 256  # classes: of more, the ones and zeros are no small table


@dataclass
class Noisy:
    """Rows with noise added: what the model sees and what it should answer."""

    x: Tensor
    t: Tensor
    labels: Tensor | None
    target: Tensor

    def batches(self, size: int) -> Iterator[tuple[tuple[Tensor, ...], Tensor]]:
        """(arguments of the model, target) for each batch."""
        inputs = [self.x, self.t] + ([] if self.labels is None else [self.labels])
        parts = zip(*(tensor.split(size) for tensor in inputs), strict=True)
        return zip(parts, self.target.split(size), strict=True)


class Steps(Protocol):
    """average: of the weights, in the order of the parameters; empty where none is kept."""

    average: list[Tensor]

    def run(self, noisy: Noisy, batch_size: int, rates: Sequence[float]) -> float:
        """A step on each batch, with its learning rate -> the sum over the rows of their losses."""

    def sync(self) -> None:
        """Brings the model's weights and `average` up to date."""


class TorchSteps:
    def __init__(
        self,
        model: nn.Module,
        parameters: list[nn.Parameter],
        optimizer: str,
        weight_decay: float,
        ema: float | None,
    ) -> None:
        self.model, self.ema = model, ema
        self.weights: list[Tensor] = list(parameters)
        # The fused optimizer is one call per step in place of a dozen per weight tensor.
        self.optimizer = OPTIMIZERS[optimizer](parameters, weight_decay=weight_decay, fused=True)
        self.average = [] if ema is None else [p.detach().clone() for p in parameters]
        self.steps_done = 0

    def run(self, noisy: Noisy, batch_size: int, rates: Sequence[float]) -> float:
        total = torch.zeros((), dtype=torch.float32, device=noisy.x.device)
        for (inputs, target), rate in zip(noisy.batches(batch_size), rates, strict=True):
            total.add_(self._step(inputs, target, rate), alpha=len(target))
        return total.item()

    def _step(self, inputs: tuple[Tensor, ...], target: Tensor, rate: float) -> Tensor:
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.zero_grad(set_to_none=True)
        loss = F.mse_loss(self.model(*inputs), target)
        loss.backward()
        self.optimizer.step()
        self.steps_done += 1
        if self.ema is not None:
            # Early on a short memory, so that the random initial weights are soon forgotten.
            decay = min(self.ema, (1 + self.steps_done) / (10 + self.steps_done))
            with torch.no_grad():
                torch._foreach_lerp_(self.average, self.weights, 1 - decay)
        return loss.detach()

    def sync(self) -> None:
        pass


class FusedSteps:
    """Raises fused_training.NotFusable where the C++ core cannot train the model."""

    def __init__(
        self,
        model: nn.Module,
        parameters: list[nn.Parameter],
        optimizer: str,
        weight_decay: float,
        ema: float | None,
        threads: int,
    ) -> None:
        self.core = denoiser_core(model, optimizer=optimizer, weight_decay=weight_decay, ema=ema)
        if set(self.core.parameters) != set(parameters):
            raise fused.not_fusable("model", model, "a denoiser whose weights are all used and trainable")
        self.parameters, self.threads, self.ema = parameters, threads, ema
        self.average: list[Tensor] = []
        self.sync()

    def run(self, noisy: Noisy, batch_size: int, rates: Sequence[float]) -> float:
        indices = [noisy.t] if noisy.labels is None else [noisy.t, noisy.labels]
        losses = self.core.run(
            noisy.x,
            noisy.target,
            batch_size=batch_size,
            lr=np.asarray(rates),
            indices=indices,
            threads=self.threads,
        ).double()
        rows = torch.full_like(losses, batch_size)
        rows[-1] = len(noisy.x) - batch_size * (len(losses) - 1)
        return torch.dot(losses, rows).item()

    def sync(self) -> None:
        self.core.store()
        if self.ema is not None:
            of = dict(zip(self.core.parameters, self.core.average(), strict=True))
            self.average = [of[p] for p in self.parameters]


def make_steps(
    backend: str,
    model: nn.Module,
    parameters: list[nn.Parameter],
    batch_size: int,
    optimizer: str,
    weight_decay: float,
    ema: float | None,
    threads: int,
) -> Steps:
    """The steps of train(): for "auto" in C++ where that is possible and faster."""
    large = sum(p.numel() for p in parameters) * batch_size > FUSED_WORK
    if backend == "native" or (backend == "auto" and not large):
        try:
            return FusedSteps(model, parameters, optimizer, weight_decay, ema, threads)
        except fused.NotFusable:
            if backend == "native":
                raise
    return TorchSteps(model, parameters, optimizer, weight_decay, ema)


def denoiser_core(model: nn.Module, **options: Any) -> fused.Core:
    """The C++ trainer of an MLPDenoiser, with fused_training.Core's options. Raises NotFusable."""
    if not any(fused.is_plain(model, kind) for kind in (MLPDenoiser, ConditionalMLPDenoiser)):
        raise fused.not_fusable("model", model, "an MLPDenoiser or a ConditionalMLPDenoiser, without hooks")
    assert isinstance(model, MLPDenoiser)
    conditions = [_time_condition(model.time_embed, model.n_steps)]
    if model.n_classes is not None:
        conditions.append(_class_condition(model.class_embed, model.n_classes + 1))
    return fused.Core(fused.layers_of(model.model), conditions, **options)


def _time_condition(embedding: nn.Module, n_steps: int) -> fused.Condition:
    """A table with a row for each step, fixed or trained, and the layers that follow it."""
    t = torch.arange(n_steps, device=CPU)
    if fused.is_plain(embedding, em.LearnedTimeEmbedding):
        assert isinstance(embedding, em.LearnedTimeEmbedding)
        layers = fused.layers_of(embedding, em.LearnedTimeEmbedding)
        return fused.Condition(embedding.features(t), tuple(layers))
    if fused.is_plain(embedding, em.SinusoidalTimeEmbedding):
        assert isinstance(embedding, em.SinusoidalTimeEmbedding)
        layers = fused.layers_of(nn.Sequential(embedding.proj))
        return fused.Condition(embedding.features(t), tuple(layers))
    if fused.is_plain(embedding, em.ScalarTime):
        return fused.Condition(embedding(t))
    return fused.Condition(fused.embedding_table(embedding))


def _class_condition(embedding: nn.Module, n_rows: int) -> fused.Condition:
    if fused.is_plain(embedding, em.OneHotEmbedding) and n_rows <= MAX_ONE_HOT:
        assert isinstance(embedding, em.OneHotEmbedding)
        return fused.Condition(torch.eye(n_rows, dtype=torch.float32, device=CPU), (fused.Layer(embedding),))
    return fused.Condition(fused.embedding_table(embedding))
