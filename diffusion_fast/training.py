"""Training a denoiser on the simple loss of DDPM (Ho et al. 2020, equation 14).

For each row x0 of a batch: t uniform in {0 .. T-1}, eps ~ N(0, I),
x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) eps, loss = mean (model(x_t, t) - target)^2.
"""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from diffusion_fast import _checks
from diffusion_fast._timing import torch_threads
from diffusion_fast.datasets import Dataset
from diffusion_fast.module_call import ModuleCall, output_like
from diffusion_fast.schedules import NoiseSchedule
from diffusion_fast.solvers.levels import PREDICTION_TYPES
from diffusion_fast.threads import MAX_THREADS
from diffusion_fast.training_steps import OPTIMIZERS, Noisy, Steps, make_steps

# Noise is drawn for many batches at once, which costs less per number; this bounds the memory it takes.
BLOCK_ELEMENTS = 1 << 20
VALIDATION_BATCH = 8192
SMALL_STEP = 1 << 27  # weights x rows: below, a second thread costs more than it brings


@dataclass
class TrainingHistory:
    """What a training run did. Losses are means over an epoch, one number per epoch.

    `validation_loss` is empty without validation. `best_epoch` is the 0-based epoch whose weights the model
    was left with: the lowest validation loss, or the last epoch without validation.
    """

    train_loss: list[float] = field(default_factory=list)
    validation_loss: list[float] = field(default_factory=list)
    seconds: float = 0.0
    best_epoch: int = -1
    stopped_early: bool = False


def train(
    model: nn.Module,
    schedule: NoiseSchedule,
    data: np.ndarray | Tensor | Dataset,
    *,
    epochs: int = 100,
    batch_size: int = 1024,
    lr: float = 1e-3,
    lr_decay: str = "none",
    optimizer: str = "adam",
    weight_decay: float = 0.0,
    validation: float | np.ndarray | Tensor | None = None,
    patience: int | None = None,
    ema: float | None = None,
    seed: int | torch.Generator = 0,
    progress: bool = True,
    prediction_type: str = "epsilon",
    labels: Any = None,
    label_dropout: float = 0.0,
    backend: str = "auto",
    threads: int | None = None,
) -> TrainingHistory:
    """Train `model(x, t)` (or `model(x, t, y)` with labels) in place and leave it in eval mode.

    Args:
        schedule: its length T must not exceed `model.n_steps`, where the model has that attribute.
        data: (n, *shape) finite numbers, used as they are, in float32; of a Dataset, the standardised
            training rows.
        epochs, batch_size: passes over the data, rows per step; the last partial batch is used too.
        lr, lr_decay: learning rate, and "none" or "cosine" (down to 0 over the `epochs`).
        optimizer, weight_decay: "adam" (weight decay added to the gradient) or "adamw" (decoupled).
        validation: a fraction of the rows in (0, 1), held out at random, or an array like data. Its noise
            and timesteps are drawn once, so that epochs compare. The model is left with the weights of the
            epoch of the lowest validation loss.
        patience: stop after this many epochs in a row without a new lowest validation loss.
        ema: decay in (0, 1) of an exponential moving average of the weights, which then is what is
            validated and what the model is left with. The decay of step k is at most (1 + k) / (10 + k).
        seed: everything random comes from it; torch's global generator is left as it was. On one machine
            the same seed gives the same weights; with torch's steps, at one number of threads.
        prediction_type: what the model learns to predict: "epsilon", "sample" (x0) or "v_prediction"
            (sqrt(abar) eps - sqrt(1 - abar) x0).
        labels: (n,) integers in [0, model.n_classes), which a model with classes needs.
        label_dropout: probability in [0, 1) that a row's label is replaced by the null class n_classes,
            for classifier-free guidance.
        backend: "native" (the steps in C++, for a small MLPDenoiser or ConditionalMLPDenoiser on the CPU; an
            error with the reason where it cannot), "torch", or "auto": native where it can and is faster. The
            weights agree to rounding.
        threads: on the CPU. None takes as many as torch is set to, where the network is large enough for
            them: with torch's steps, one below 2^27 weights times rows in a batch.

    Raises ValueError or TypeError for an argument outside of what is listed, before the model is touched;
    FloatingPointError if the loss becomes NaN or infinite. Ctrl-C leaves the model in eval mode.

    >>> from diffusion_fast.models import MLPDenoiser
    >>> schedule, model = NoiseSchedule.cosine(20), MLPDenoiser(2, (16,), n_steps=20)
    >>> history = train(model, schedule, np.zeros((100, 2)), epochs=2, progress=False)
    >>> len(history.train_loss)
    2
    """
    epochs = _checks.integer("epochs", epochs, 1)
    batch_size = _checks.integer("batch_size", batch_size, 1)
    if patience is not None:
        _checks.integer("patience", patience, 1)
        if validation is None:
            raise _checks.bad_value("patience", patience, "None, unless validation is given")
    _checks.flag("progress", progress)
    if threads is not None:
        _checks.integer("threads", threads, 1, MAX_THREADS)
    _checks.choice("backend", backend, ("auto", "native", "torch"))
    parameters = _trainable(model)
    generator = torch.Generator(parameters[0].device).manual_seed(_checks.seed("seed", seed))
    noiser = _Noiser(model, schedule, prediction_type, label_dropout, generator)
    if labels is None and noiser.label_dropout > 0:
        raise _checks.bad_value("label_dropout", label_dropout, "0, unless labels are given")
    rows, held_out = _split(model, _training_rows(model, data, labels), validation, generator)
    ModuleCall(int(rows.labels is not None)).check(model)
    _check_output(model, rows.take(slice(2)))
    steps = epochs * math.ceil(len(rows) / batch_size)
    rates = _Rates(lr, lr_decay, steps)
    _checks.choice("optimizer", optimizer, OPTIMIZERS)
    decay = _checks.real("weight_decay", weight_decay, 0.0)
    if ema is not None and _checks.real("ema", ema, 0.0, 1.0, open_low=True) == 1.0:
        raise _checks.bad_value("ema", ema, "a decay in (0, 1)")
    most_threads = threads or torch.get_num_threads()
    made = make_steps(backend, model, parameters, batch_size, optimizer, decay, ema, most_threads)
    trainer = _Trainer(model, parameters, noiser, made, rates)
    fixed = None if held_out is None else noiser.corrupt(held_out)
    if threads is None:
        small = sum(p.numel() for p in parameters) * batch_size < SMALL_STEP
        threads = 1 if small else torch.get_num_threads()

    history = TrainingHistory()
    began = time.perf_counter()
    # A module of the user's own may have dropout, which draws from the global generator.
    devices = [generator.device] if generator.device.type == "cuda" else []
    with torch_threads(threads), torch.random.fork_rng(devices):
        torch.manual_seed(generator.initial_seed())
        try:
            for epoch in tqdm(
                range(epochs), disable=not progress, unit="epoch", desc="training", mininterval=0.5
            ):
                history.train_loss.append(_finite(trainer.epoch(rows, batch_size), epoch))
                if fixed is None:
                    history.best_epoch = epoch
                    continue
                history.validation_loss.append(_finite(trainer.validate(fixed), epoch))
                history.best_epoch = int(np.argmin(history.validation_loss))
                if patience is not None and epoch - history.best_epoch >= patience:
                    history.stopped_early = epoch + 1 < epochs
                    break
            trainer.finish()
        except KeyboardInterrupt:
            made.sync()
            raise
        finally:
            model.eval()
    history.seconds = time.perf_counter() - began
    return history


@dataclass
class _Rows:
    """Clean rows and their labels."""

    x: Tensor
    labels: Tensor | None

    def __len__(self) -> int:
        return len(self.x)

    def take(self, index: Tensor | slice) -> _Rows:
        return _Rows(self.x[index], None if self.labels is None else self.labels[index])


class _Noiser:
    """Adds the noise of random timesteps to rows, and drops labels."""

    def __init__(
        self,
        model: nn.Module,
        schedule: NoiseSchedule,
        prediction_type: str,
        label_dropout: float,
        generator: torch.Generator,
    ) -> None:
        if not isinstance(schedule, NoiseSchedule):
            raise _checks.bad_type("schedule", schedule, "a NoiseSchedule")
        self.n_steps = len(schedule.betas)
        longest = getattr(model, "n_steps", None)
        if longest is not None and self.n_steps > longest:
            raise ValueError(
                f"schedule: got one of {self.n_steps} steps; accepted: at most model.n_steps = {longest}"
            )
        self.prediction_type = _checks.choice("prediction_type", prediction_type, PREDICTION_TYPES)
        abar = schedule.alphas_cumprod.to(torch.float64)
        if prediction_type == "epsilon" and bool((abar <= 0).any()):
            raise _checks.bad_value(
                "prediction_type",
                prediction_type,
                "v_prediction or sample, for this schedule ends in pure noise (abar = 0), where epsilon says "
                "nothing about the data",
            )
        self.null_class: int = getattr(model, "n_classes", None) or 0
        self.label_dropout = _checks.real("label_dropout", label_dropout, 0.0, 1.0)
        if self.label_dropout == 1.0:
            raise _checks.bad_value("label_dropout", label_dropout, "a probability in [0, 1)")
        self.generator = generator
        self.signal = abar.sqrt().float().to(generator.device)
        self.noise = (1 - abar).sqrt().float().to(generator.device)

    def corrupt(self, rows: _Rows) -> Noisy:
        x0, generator, device = rows.x, self.generator, self.generator.device
        t = torch.randint(self.n_steps, (len(x0),), generator=generator, device=device)
        eps = torch.randn(x0.shape, generator=generator, dtype=torch.float32, device=device)
        column = (-1,) + (1,) * (x0.ndim - 1)
        signal, noise = self.signal[t].view(column), self.noise[t].view(column)
        x = (signal * x0).addcmul_(noise, eps)
        labels = rows.labels
        if labels is not None and self.label_dropout > 0:
            chance = torch.rand(len(x0), generator=generator, dtype=torch.float32, device=device)
            dropped = chance < self.label_dropout
            labels = labels.masked_fill(dropped, self.null_class)
        if self.prediction_type == "sample":
            return Noisy(x, t, labels, x0)
        if self.prediction_type == "v_prediction":
            return Noisy(x, t, labels, (signal * eps).addcmul_(noise, x0, value=-1))
        return Noisy(x, t, labels, eps)


class _Rates:
    """The learning rates of a run, step by step."""

    def __init__(self, lr: float, decay: str, total_steps: int) -> None:
        self.lr = _checks.real("lr", lr, 0.0, open_low=True)
        self.cosine = _checks.choice("lr_decay", decay, ("none", "cosine")) == "cosine"
        self.total_steps, self.steps_done = total_steps, 0

    def take(self, count: int) -> list[float]:
        begin, self.steps_done = self.steps_done, self.steps_done + count
        if not self.cosine:
            return [self.lr] * count
        turns = (math.pi * step / self.total_steps for step in range(begin, self.steps_done))
        return [self.lr * 0.5 * (1 + math.cos(turn)) for turn in turns]


class _Trainer:
    """The epochs of a run, and the best weights so far."""

    def __init__(
        self, model: nn.Module, parameters: list[nn.Parameter], noiser: _Noiser, steps: Steps, rates: _Rates
    ) -> None:
        self.model, self.parameters, self.noiser = model, parameters, noiser
        self.steps, self.rates = steps, rates
        self.best_loss = math.inf
        self.best: dict[str, Tensor] | None = None

    def epoch(self, rows: _Rows, batch_size: int) -> float:
        """One pass over the rows in random order -> the mean training loss."""
        self.model.train()
        total = 0.0
        order = torch.randperm(len(rows), generator=self.noiser.generator, device=rows.x.device)
        batches_per_block = max(1, BLOCK_ELEMENTS // (batch_size * rows.x[0].numel()))
        for index in order.split(batch_size * batches_per_block):
            noisy = self.noiser.corrupt(rows.take(index))
            total += self.steps.run(noisy, batch_size, self.rates.take(math.ceil(len(index) / batch_size)))
        return total / len(rows)

    @torch.no_grad()
    def validate(self, fixed: Noisy) -> float:
        """The mean loss of the averaged weights, which are kept if it is the lowest so far."""
        self.steps.sync()
        current = [p.clone() for p in self.parameters] if self.steps.average else []
        self._load_average()
        self.model.eval()
        total = torch.zeros((), dtype=torch.float32, device=fixed.x.device)
        for inputs, target in fixed.batches(VALIDATION_BATCH):
            total.add_(F.mse_loss(self.model(*inputs), target), alpha=len(target))
        loss = total.item() / len(fixed.x)
        if loss < self.best_loss:
            self.best_loss = loss
            self.best = {name: value.clone() for name, value in self.model.state_dict().items()}
        for parameter, value in zip(self.parameters, current, strict=False):
            parameter.copy_(value)
        return loss

    @torch.no_grad()
    def finish(self) -> None:
        """Leave the model with its best weights."""
        self.steps.sync()
        if self.best is not None:
            self.model.load_state_dict(self.best)
        else:
            self._load_average()

    def _load_average(self) -> None:
        for parameter, value in zip(self.parameters, self.steps.average, strict=False):
            parameter.copy_(value)


def _finite(loss: float, epoch: int) -> float:
    if not math.isfinite(loss):
        raise FloatingPointError(f"the loss became {loss} in epoch {epoch}: a lower lr may help")
    return loss


def _trainable(model: nn.Module) -> list[nn.Parameter]:
    if not isinstance(model, nn.Module):
        raise _checks.bad_type("model", model, "a torch.nn.Module")
    for name, parameter in model.named_parameters():
        _checks.weights(f"model.{name}", parameter)
    parameters = [p for p in model.parameters() if p.requires_grad]
    if not parameters:
        raise ValueError("model: got one without trainable parameters; accepted: a module that has some")
    if any(p.dtype != torch.float32 for p in parameters):
        raise ValueError(f"model: got weights of {parameters[0].dtype}; accepted: float32")
    return parameters


def _check_output(model: nn.Module, rows: _Rows) -> None:
    """Refuses what the loss would broadcast. With gradients, for a score may differentiate inside forward."""
    modes = {part: part.training for part in model.modules()}
    device = rows.x.device
    t = torch.zeros(len(rows), dtype=torch.int64, device=device)
    inputs = (rows.x.clone(), t) if rows.labels is None else (rows.x.clone(), t, rows.labels.clone())
    # A caller's autocast is for training, where the loss takes its half precision.
    unchanged = torch.random.fork_rng([device] if device.type == "cuda" else [])
    with unchanged, torch.autocast(device.type, enabled=False):
        try:
            output_like(rows.x, model.eval()(*inputs))
        finally:
            for part, mode in modes.items():
                part.training = mode


def _training_rows(model: nn.Module, data: Any, labels: Any) -> _Rows:
    x = _clean("data", data.standardised_train if isinstance(data, Dataset) else data, model)
    n_classes = getattr(model, "n_classes", None)
    if n_classes is None:
        if labels is not None:
            raise _checks.bad_value("labels", labels, "None, for the model has no classes")
        return _Rows(x, None)
    accepted = f"({len(x)},) integers from 0 to {n_classes - 1}, one per row of data"
    if labels is None:  # the null class alone would learn, and samples of the classes be noise
        raise _checks.bad_value("labels", labels, f"{accepted}, for the model has {n_classes} classes")
    y = _checks.class_labels("labels", labels, len(x), n_classes - 1, accepted)
    return _Rows(x, y.to(x.device))


def _clean(name: str, data: Any, model: nn.Module) -> Tensor:
    """data as finite float32 rows on the model's device."""
    accepted = "an (n, dim) NumPy array or tensor of numbers with n >= 1"
    if not isinstance(data, np.ndarray | Tensor):
        raise _checks.bad_type(name, data, accepted + ", or a Dataset")
    if isinstance(data, np.ndarray) and data.dtype.kind not in "fiub":
        raise _checks.bad_type(name, data, accepted)
    rows = _checks.readable(name, torch.as_tensor(data), accepted)
    if rows.is_complex():
        raise _checks.bad_type(name, data, accepted)
    if rows.requires_grad:
        raise ValueError(f"{name}: got a tensor that requires grad; accepted: {accepted}, detached")
    shape = tuple(rows.shape[1:])
    wanted = getattr(model, "shape", None)
    if rows.ndim < 2 or rows.numel() == 0 or (wanted is not None and shape != tuple(wanted)):
        rest = "" if wanted is None else f" and rows of the model's shape {tuple(wanted)}"
        raise _checks.bad_value(name, data, accepted + rest)
    device = next(model.parameters()).device
    return _checks.finite(name, rows.to(device, torch.float32)).contiguous()


def _split(
    model: nn.Module, rows: _Rows, validation: Any, generator: torch.Generator
) -> tuple[_Rows, _Rows | None]:
    """The rows to learn from and those to validate on."""
    if validation is None:
        return rows, None
    if isinstance(validation, np.ndarray | Tensor):
        if rows.labels is not None:
            raise _checks.bad_value("validation", validation, "a fraction, with labels")
        return rows, _Rows(_clean("validation", validation, model), None)
    fraction = _checks.real("validation", validation, 0.0, 1.0, open_low=True)
    held_out = max(1, round(fraction * len(rows)))
    if held_out >= len(rows):
        raise _checks.bad_value("validation", validation, f"a fraction that leaves some of {len(rows)} rows")
    order = torch.randperm(len(rows), generator=generator, device=rows.x.device)
    return rows.take(order[held_out:]), rows.take(order[:held_out])
