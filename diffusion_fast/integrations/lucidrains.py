"""denoising_diffusion_pytorch's GaussianDiffusion and GaussianDiffusion1D, sampled by this package.

    diffusion = accelerate(GaussianDiffusion1D(model, seq_length=32, timesteps=1000))
    diffusion.sample(batch_size=10_000)

`sample` keeps its arguments and its results: DDPM, or DDIM where sampling_timesteps < timesteps, with x0
clamped to [-1, 1], and what `unnormalize` makes of it. The network runs in the fused chain where `Sampler`
can capture it, else in torch with the fused step; diffusion.sample.explain() tells. Weights, betas and
sampling settings may change between calls: the next call makes its Sampler anew. The model must be in eval
mode.

Noise is the package's stream, with a seed drawn from torch's global generator: torch.manual_seed repeats a
run, with other samples than without `accelerate`. return_noise gives the noise that the chain started from.
Written for version 2 of the library, which is not imported.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from math import prod
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from diffusion_fast import _checks, ops, solvers
from diffusion_fast.noise import normal
from diffusion_fast.sampler import BACKENDS, Sampler
from diffusion_fast.schedules import NoiseSchedule
from diffusion_fast.solvers.table import StepTable
from diffusion_fast.weights import Weights

_PREDICTION_TYPES = {"pred_noise": "epsilon", "pred_x0": "sample", "pred_v": "v_prediction"}
_ACCEPTED = "a GaussianDiffusion or GaussianDiffusion1D of denoising_diffusion_pytorch"
_ATTRIBUTES = (
    *("model", "betas", "alphas_cumprod", "num_timesteps", "sampling_timesteps", "is_ddim_sampling"),
    *("ddim_sampling_eta", "objective", "channels", "self_condition", "unnormalize"),
)
# What `sample` stands for: a subclass with one of its own samples otherwise.
_METHODS = (
    *("sample", "p_sample_loop", "ddim_sample", "p_sample", "p_mean_variance", "model_predictions"),
    *("q_posterior", "predict_start_from_noise", "predict_start_from_v", "predict_noise_from_start"),
)


def accelerate(diffusion: nn.Module, *, backend: str = "auto") -> nn.Module:
    """Replaces diffusion.sample and returns diffusion; `restore` undoes it.

    diffusion: a GaussianDiffusion or GaussianDiffusion1D on the CPU. backend: as for Sampler.

    Raises TypeError or ValueError for another object, and for a subclass that changes how a step is made (a
    learned variance, guidance); diffusion.sample raises them for a model in train mode, CaptureError where
    backend="native" cannot run the model.
    """
    _checks.choice("backend", backend, BACKENDS)
    if not isinstance(diffusion, nn.Module):
        raise _checks.bad_type("diffusion", diffusion, _ACCEPTED)
    kind = _Images if hasattr(diffusion, "image_size") else _Sequences
    missing = [name for name in (*_ATTRIBUTES, *kind.attributes) if not hasattr(diffusion, name)]
    if missing:
        raise TypeError(
            f"diffusion: got a {type(diffusion).__name__} without {', '.join(missing)}; accepted: {_ACCEPTED}"
        )
    _check_methods(diffusion, kind)
    vars(diffusion)["sample"] = kind(diffusion, backend)
    return diffusion


def restore(diffusion: nn.Module) -> nn.Module:
    """Gives diffusion its own sample back, and returns diffusion. ValueError where it is not accelerated."""
    if not isinstance(getattr(diffusion, "sample", None), _Accelerated):
        raise _checks.bad_value("diffusion", type(diffusion).__name__, "one that accelerate has returned")
    del vars(diffusion)["sample"]
    return diffusion


class _Accelerated(ABC):
    """What stands in for diffusion.sample. Copies and pickles go with the copy of the diffusion."""

    attributes: ClassVar[tuple[str, ...]]
    parameters: ClassVar[tuple[str, ...]]
    no_condition: ClassVar[tuple[None, ...]]  # arguments after x, t where nothing is conditioned on
    # the last sampler, what it was made from, and the diffusion's weights as they were then
    made: tuple[Any, Sampler, Weights, Any] | None = None

    def __init__(self, diffusion: nn.Module, backend: str) -> None:
        self.diffusion: Any = diffusion
        self.backend = backend

    def __getstate__(self) -> dict[str, Any]:
        return {"diffusion": self.diffusion, "backend": self.backend}

    @abstractmethod
    def shape(self) -> tuple[int, ...]:
        """Of one sample."""

    @abstractmethod
    def keeps_epsilon(self) -> bool:
        """Whether DDIM steps along the epsilon predicted; otherwise along that of the clamped x0."""

    @abstractmethod
    def predict(self, x: Tensor, t: Tensor, x0: Tensor | None, arguments: dict[str, Any]) -> Tensor:
        """The model's output, with the x0 of the step before where it is asked for."""

    def explain(self) -> str:
        """What the fused kernel runs, what is left to torch, and why."""
        d = self.diffusion
        head = f"{type(d).__name__} of a {type(d.model).__name__}\n"
        if d.self_condition:
            return head + "The model runs in torch, with the fused step, because: self_condition gives it x0"
        return head + self._sampler().explain()

    def draw(self, n: int, arguments: dict[str, Any], trajectory: bool = False) -> tuple[Tensor, int]:
        """(n, *shape) samples, or (n, rows + 1, *shape), and the seed that gives their noise."""
        n = _checks.integer("batch_size", n, 0, _checks.MAX_SAMPLES)
        for part in self.diffusion.model.modules():
            if part.training:
                given = f"{type(part).__name__} in train mode"
                raise _checks.bad_value("diffusion.model", given, "one in eval mode: call model.eval()")
        # made before the seed is drawn: a refused call leaves the generator as it was
        if arguments or self.diffusion.self_condition:
            table = self._table(arguments)
            seed = _checks.seed("seed", torch.default_generator)
            result = self._run(table, self.start(n, seed), seed, arguments, trajectory)
        else:
            sampler = self._sampler()
            seed = _checks.seed("seed", torch.default_generator)
            result = sampler.sample(n, seed=seed, return_trajectory=trajectory)
            result = result.transpose(0, 1).contiguous() if trajectory else result
        return self.diffusion.unnormalize(result), seed

    def _table(self, arguments: dict[str, Any]) -> StepTable:
        """The rows for a model that takes more than x and t, which only torch can run."""
        if self.backend == "native":
            reason = ", ".join(arguments) or "self_condition"
            raise _checks.bad_value("backend", "native", f"'auto' or 'torch', for the model takes {reason}")
        name, options = self._solver()
        return solvers.solve(name, self._schedule(), **options)

    @torch.no_grad()
    def _run(
        self, table: StepTable, x: Tensor, seed: int, arguments: dict[str, Any], trajectory: bool
    ) -> Tensor:
        states, x0 = [x], None
        for i, row in enumerate(table):
            t = torch.full((len(x),), int(row.timestep), dtype=torch.int64)
            output = self.predict(x, t, x0, arguments)
            if self.diffusion.self_condition:
                x0 = (row.p_x * x + row.p_F * output).clamp_(-row.clip, row.clip)
            x = ops.reverse_step(x, output, row, seed=seed, step=i)
            if trajectory:
                states.append(x)
        return torch.stack(states, dim=1) if trajectory else x

    def start(self, n: int, seed: int) -> Tensor:
        """The noise that the chain starts from."""
        shape = self.shape()
        return normal(n, prod(shape), seed=seed, step=0, purpose="initial").view(n, *shape)

    def _sampler(self) -> Sampler:
        """The sampler for the weights, betas and settings as they are now."""
        name, options = self._solver()
        # the model too: another one may have the same weights
        source = self.diffusion.model, name, options, self.shape()
        if self.made is None or self.made[0] != source or self.made[2].fingerprint() != self.made[3]:
            weights = Weights(self.diffusion)
            state = weights.fingerprint()
            network = _Network(self.diffusion.model, self.no_condition)
            options = options | {"shape": self.shape(), "backend": self.backend}
            sampler = Sampler(network, self._schedule(), solver=name, **options)
            self.made = (source, sampler, weights, state)
        return self.made[1]

    def _solver(self) -> tuple[str, dict[str, Any]]:
        """The solver and its options for the settings as they are now."""
        d = self.diffusion
        kind = _PREDICTION_TYPES[_checks.choice("diffusion.objective", d.objective, _PREDICTION_TYPES)]
        options: dict[str, Any] = {"prediction_type": kind, "clip": 1.0}
        if not d.is_ddim_sampling:
            return "ddpm", options
        steps = _checks.integer("diffusion.sampling_timesteps", d.sampling_timesteps, 1, d.num_timesteps)
        times = torch.linspace(-1, d.num_timesteps - 1, steps + 1).int().tolist()
        options["timesteps"] = times[:0:-1]
        options["eta"] = _checks.real("diffusion.ddim_sampling_eta", d.ddim_sampling_eta, 0.0, 1.0)
        # With eta the noise of DDIM (Song et al. 2020, eq. 16) is that of euler_ancestral, whose epsilon is
        # the one of the clamped x0.
        return "ddim" if self.keeps_epsilon() else "euler_ancestral", options

    def _schedule(self) -> NoiseSchedule:
        d = self.diffusion
        if not bool((d.betas > 0).all()):  # a leading 0 would shift the timesteps
            raise _checks.bad_value("diffusion.betas", d.betas.min().item(), "numbers above 0")
        schedule = NoiseSchedule(d.betas.double(), name=type(d).__name__)
        products, buffer = schedule.alphas_cumprod.numpy(), d.alphas_cumprod.double().cpu().numpy()
        if products.shape != buffer.shape or not np.allclose(products, buffer, rtol=1e-3, atol=1e-12):
            accepted = "the cumulative products of 1 - diffusion.betas"
            raise _checks.bad_value("diffusion.alphas_cumprod", d.alphas_cumprod, accepted)
        return schedule


class _Images(_Accelerated):
    attributes = ("image_size",)
    parameters = ("batch_size", "return_all_timesteps")
    no_condition = (None,)

    def __call__(self, batch_size: int = 16, return_all_timesteps: bool = False) -> Tensor:
        """(batch_size, channels, height, width); with return_all_timesteps (batch_size, steps + 1, ...)."""
        _checks.flag("return_all_timesteps", return_all_timesteps)
        return self.draw(batch_size, {}, return_all_timesteps)[0]

    def shape(self) -> tuple[int, ...]:
        return (self.diffusion.channels, *self.diffusion.image_size)

    def keeps_epsilon(self) -> bool:
        return False

    def predict(self, x: Tensor, t: Tensor, x0: Tensor | None, arguments: dict[str, Any]) -> Tensor:
        return self.diffusion.model(x, t, x0)


class _Sequences(_Accelerated):
    attributes = ("seq_length", "channel_first")
    parameters = ("batch_size", "return_noise", "model_forward_kwargs")
    no_condition = ()

    def __call__(
        self,
        batch_size: int = 16,
        return_noise: bool = False,
        model_forward_kwargs: dict[str, Any] | None = None,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """(batch_size, channels, length), or (batch_size, length, channels) without channel_first; with
        return_noise also the noise, of the same shape, that the chain started from."""
        _checks.flag("return_noise", return_noise)
        arguments = {} if model_forward_kwargs is None else model_forward_kwargs
        if not isinstance(arguments, dict):
            raise _checks.bad_type("model_forward_kwargs", arguments, "a dict of arguments of the model")
        result, seed = self.draw(batch_size, arguments)
        return (result, self.start(len(result), seed)) if return_noise else result

    def shape(self) -> tuple[int, ...]:
        d = self.diffusion
        return (d.channels, d.seq_length) if d.channel_first else (d.seq_length, d.channels)

    def keeps_epsilon(self) -> bool:
        return self.diffusion.objective == "pred_noise"

    def predict(self, x: Tensor, t: Tensor, x0: Tensor | None, arguments: dict[str, Any]) -> Tensor:
        return self.diffusion.model(x, t, **arguments, **({} if x0 is None else {"x_self_cond": x0}))


class _Network(nn.Module):
    """The model as the diffusion calls it, hiding attributes that mean something to Sampler (n_classes)."""

    def __init__(self, model: nn.Module, no_condition: tuple[None, ...]) -> None:
        super().__init__()
        self.model = model
        self.no_condition = no_condition
        self.training = False

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.model(x, t, *self.no_condition)


def _check_methods(diffusion: nn.Module, kind: type[_Accelerated]) -> None:
    """That the class samples as its own methods say: all of them come from the class that has `sample`."""

    def home(name: str) -> Any:
        own = vars(diffusion).get(name)  # a method replaced on this very object
        if own is not None and not isinstance(own, _Accelerated):
            return diffusion
        return next((c for c in type(diffusion).__mro__ if name in vars(c)), None)

    source = next((c for c in type(diffusion).__mro__ if "sample" in vars(c)), type(diffusion))
    changed = [name for name in _METHODS if home(name) is not source]
    if changed:
        given = f"a {type(diffusion).__name__} with its own {', '.join(changed)}"
        raise TypeError(f"diffusion: got {given}; accepted: {_ACCEPTED}, with the methods it came with")
    found = tuple(inspect.signature(vars(source)["sample"]).parameters)[1:]
    if found != kind.parameters:
        given = f"a {type(diffusion).__name__} with sample({', '.join(found)})"
        raise TypeError(
            f"diffusion: got {given}; accepted: {_ACCEPTED}, sample({', '.join(kind.parameters)})"
        )
