"""DDPM and DDIM: rows by timestep, on the levels of alphas_cumprod."""

from __future__ import annotations

import operator
from collections.abc import Iterable

import numpy as np
import torch
from diffusers import DDIMScheduler, DDPMScheduler
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput
from diffusers.schedulers.scheduling_ddpm import DDPMSchedulerOutput
from torch import Tensor

from diffusion_fast import _checks
from diffusion_fast.integrations.diffusers import fused
from diffusion_fast.solvers.chain import M, X, Z
from diffusion_fast.solvers.ddim import split_noise
from diffusion_fast.solvers.ddpm import posterior
from diffusion_fast.solvers.levels import PREDICTION_TYPES, Levels
from diffusion_fast.solvers.table import StepRow

_LEAST_VARIANCE = 1e-20  # as in the original, which takes its logarithm


class _VarianceStep(fused.FusedStep):
    """Levels sqrt(abar) x0 + sqrt(1 - abar) epsilon, and what both schedulers make of an output."""

    _LEVELS = "alphas_cumprod"
    _PREDICTION_TYPES = PREDICTION_TYPES

    def _set_levels(self, t: np.ndarray, prev: np.ndarray, final: float) -> None:
        """Levels at timesteps t and at those before; at a negative one alphas_cumprod is final."""
        config = self.config
        abar = self.alphas_cumprod.cpu().numpy()
        before = np.where(prev >= 0, abar[prev], abar.dtype.type(final))
        # in float32, as the original has it: 1 - alpha keeps that rounding, which is 1e-3 of a small beta
        alpha = (abar[t] / before).astype(np.float64)
        now, before = abar[t].astype(np.float64), before.astype(np.float64)
        self._q = Levels(t, np.sqrt(now), np.sqrt(before), 1 - now, 1 - before, alpha, 1 - alpha)
        kind = config.prediction_type
        self._x0, self._epsilon = fused.predictions(kind, self._q.sqrt_abar, np.sqrt(self._q.var))
        clip = config.clip_sample and not config.thresholding
        self._bounds = self._limits(config.clip_sample_range if clip else None)
        self._x0_is_output = kind == "sample" and not clip and not config.thresholding

    def _level(self, i: int) -> Levels:
        return Levels(*(column[i] for column in vars(self._q).values()))


class FastDDPMScheduler(_VarianceStep, DDPMScheduler):
    """DDPMScheduler with a fused step; see the package's page."""

    __init__ = fused.checked(DDPMScheduler)
    set_timesteps = fused.prepared(DDPMScheduler)

    def _check_config(self) -> None:
        super()._check_config()
        if self.variance_type == "fixed_large_log":
            accepted = "'fixed_large', its variance (with 'fixed_large_log' the original's step gives NaN)"
            raise _checks.bad_value("variance_type", self.variance_type, accepted)

    def _prepare(self) -> None:
        if self.custom_timesteps or self.num_inference_steps:
            t = self.timesteps.cpu().numpy()
            prev = np.append(t[1:], -1)
        else:
            t = np.arange(self.config.num_train_timesteps)
            prev = t - 1
        self._index = {int(time): i for i, time in reversed(list(enumerate(t)))}
        self._set_levels(t, prev, 1.0)
        self._learned = self.variance_type in ("learned", "learned_range")

    def _usual_keys(self) -> Iterable[int]:
        return self._index

    def _make(self, key: int) -> StepRow:
        if key not in self._index:
            raise IndexError(f"timestep: got {key}; accepted: one of the scheduler's timesteps")
        i = self._index[key]
        q = self._level(i)
        mean_x, mean_x0, small = posterior(q)
        s = 0.0
        if key > 0:
            s = 1.0 if self._learned else self._deviation(q, np.maximum(small, _LEAST_VARIANCE))
        return fused.fused_row(mean_x * X + mean_x0 * M + s * Z, (self._x0.x[i], self._x0.F[i]), self._bounds)

    def _deviation(self, q: Levels, small: np.ndarray) -> float:
        large = self.variance_type == "fixed_large"
        return float(np.sqrt(q.beta if large else small))  # any other name is "fixed_small"

    def _log_variance(self, key: int, predicted: Tensor) -> Tensor:
        """Nichol & Dhariwal 2021, eq. 15, for learned_range; learned is the variance itself."""
        if self.variance_type == "learned":
            return predicted.log()
        q = self._level(self._index[key])
        low, high = (float(np.log(v)) for v in (np.maximum(posterior(q)[2], _LEAST_VARIANCE), q.beta))
        return (predicted * ((high - low) / 2)).add_((high + low) / 2)

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> DDPMSchedulerOutput | tuple[Tensor, ...]:
        """As DDPMScheduler.step."""
        key = operator.index(timestep)
        row = self._row(key)
        output, predicted = model_output, None
        if self._learned and row is not None:
            output, predicted = self._split(model_output, sample, needed=row.s != 0)
        pair = fused.tensors(output, sample)
        if row is None or pair is None:
            return DDPMScheduler.step(self, model_output, timestep, sample, generator, return_dict)
        F, x = pair
        prev_sample, x0 = self._next_and_x0(
            row,
            x,
            F,
            output,
            noise=fused.drawn(generator, output) if row.s != 0 else None,
            log_variance=None if predicted is None or row.s == 0 else self._log_variance(key, predicted),
        )
        return fused.result(DDPMSchedulerOutput, return_dict, prev_sample, x0)

    def _split(self, model_output: Tensor, sample: Tensor, needed: bool) -> tuple[Tensor, Tensor | None]:
        """The output and the predicted variance, which are halves of the channels."""
        if model_output.shape[1] == 2 * sample.shape[1]:
            output, predicted = model_output.split(sample.shape[1], dim=1)
            return output, predicted.to(torch.result_type(output, sample))
        if needed:
            accepted = (
                f"twice the {sample.shape[1]} channels of sample with variance_type={self.variance_type!r}"
            )
            raise _checks.bad_value("model_output", model_output, accepted)
        return model_output, None


class FastDDIMScheduler(_VarianceStep, DDIMScheduler):
    """DDIMScheduler with a fused step; see the package's page."""

    __init__ = fused.checked(DDIMScheduler)
    set_timesteps = fused.prepared(DDIMScheduler)

    _last: Tensor | None = None  # the level that a run ended at when its rows were made

    def _refresh(self) -> bool:
        if self._last is not self.final_alpha_cumprod:
            self._last, self._made_from, self._made_of = self.final_alpha_cumprod, (None, None, None), ()
        return super()._refresh()

    def _prepare(self) -> None:
        t = np.arange(self.config.num_train_timesteps)
        # the original's stride, whatever the list of timesteps is
        stride = self.config.num_train_timesteps // self.num_inference_steps
        self._set_levels(t, t - stride, float(self.final_alpha_cumprod))

    def _usual_keys(self) -> Iterable[tuple[int, float, bool]]:
        return ((t, 0.0, False) for t in self.timesteps.tolist())

    def _make(self, key: tuple[int, float, bool]) -> StepRow:
        t, eta, clipped = key
        if not 0 <= t < len(self._x0.x):
            raise ValueError(t)
        q = self._level(t)
        direction, s = split_noise(q, eta)
        x0, epsilon = ((pair.x[t], pair.F[t]) for pair in (self._x0, self._epsilon))
        update = q.sqrt_abar_prev * M + (s if eta > 0 else 0.0) * Z
        if clipped:  # the epsilon of the clamped x0
            return fused.fused_row(
                update + direction / np.sqrt(q.var) * (X - q.sqrt_abar * M), x0, self._bounds
            )
        return fused.fused_row(
            update + direction * epsilon[0] * X, x0, self._bounds, e=direction * epsilon[1]
        )

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        eta: float = 0.0,
        use_clipped_model_output: bool = False,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> DDIMSchedulerOutput | tuple[Tensor, ...]:
        """As DDIMScheduler.step."""
        if self.num_inference_steps is None:
            raise ValueError("num_inference_steps: got None; accepted: call set_timesteps before step")
        row = self._row((operator.index(timestep), float(eta), bool(use_clipped_model_output)))
        pair = fused.tensors(model_output, sample)
        if row is None or pair is None:
            return DDIMScheduler.step(
                self,
                model_output,
                timestep,
                sample,
                eta,
                use_clipped_model_output,
                generator,
                variance_noise,
                return_dict,
            )
        F, x = pair
        noise = None
        if eta > 0:
            if variance_noise is not None and generator is not None:
                raise ValueError("variance_noise: got it and generator together; accepted: one of them")
            noise = variance_noise if variance_noise is not None else fused.drawn(generator, model_output)
        prev_sample, x0 = self._next_and_x0(row, x, F, model_output, noise=noise)
        return fused.result(DDIMSchedulerOutput, return_dict, prev_sample, x0)
