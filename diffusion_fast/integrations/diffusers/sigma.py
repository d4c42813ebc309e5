"""Euler, Euler ancestral and Heun: x = x0 + sigma epsilon."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from diffusers import EulerAncestralDiscreteScheduler, EulerDiscreteScheduler, HeunDiscreteScheduler
from diffusers.schedulers.scheduling_euler_ancestral_discrete import EulerAncestralDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteSchedulerOutput
from diffusers.schedulers.scheduling_heun_discrete import HeunDiscreteSchedulerOutput
from diffusers.utils import logging
from torch import Tensor

from diffusion_fast import _checks, _tensors
from diffusion_fast.integrations.diffusers import fused
from diffusion_fast.solvers.chain import H1, H2, M, Z
from diffusion_fast.solvers.euler import ancestral, epsilon_of
from diffusion_fast.solvers.levels import Level
from diffusion_fast.solvers.table import StepRow

logger = logging.get_logger(__name__)


class _SigmaStep(fused.IndexedStep):
    """For networks trained on sqrt(abar) x0 + sqrt(1 - abar) epsilon: scale_model_input leads back there."""

    def _prepare(self) -> None:
        sigma = self.sigmas.double().cpu().numpy()
        signal = 1 / np.hypot(1, sigma)
        self._kind = self.config.prediction_type.removeprefix("original_")
        self._x0_is_output = self._kind == "sample"
        x0, _ = fused.predictions(self._kind, signal, sigma * signal)
        self._x0 = list(zip((x0.x * signal).tolist(), x0.F.tolist(), strict=True))
        self._levels = [Level(0.0, 1.0, s) for s in sigma.tolist()]

    def _check_call(self, timestep: Any) -> None:
        """The original's own complaints."""
        if isinstance(timestep, (int, torch.IntTensor, torch.LongTensor)):
            accepted = "one of scheduler.timesteps, which are floats, and no index of them"
            raise _checks.bad_value("timestep", timestep, accepted)
        if not self.is_scale_input_called:
            logger.warning("step: scale_model_input was not called before, which gives the network its input")


class FastEulerDiscreteScheduler(_SigmaStep, EulerDiscreteScheduler):
    """EulerDiscreteScheduler with a fused step; see the package's page."""

    __init__ = fused.checked(EulerDiscreteScheduler)
    set_timesteps = fused.prepared(EulerDiscreteScheduler)
    _PREDICTION_TYPES = ("epsilon", "v_prediction", "sample", "original_sample")

    def _usual_keys(self) -> Iterable[tuple[int, float]]:
        return ((i, 0.0) for i in range(len(self._levels) - 1))

    def _make(self, key: tuple[int, float]) -> StepRow:
        i, gamma = key
        after = self._next_level(i)
        hat = Level(0.0, 1.0, self._levels[i].noise * (gamma + 1))
        # "v_prediction" goes by the level before the churn, as in the original
        x0 = (1.0, -hat.noise) if self._kind == "epsilon" else self._x0[i]
        return fused.fused_row(M + after.noise * epsilon_of(hat), x0, fused.UNLIMITED)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        s_churn: float = 0.0,
        s_tmin: float = 0.0,
        s_tmax: float = math.inf,
        s_noise: float = 1.0,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> EulerDiscreteSchedulerOutput | tuple[Tensor, ...]:
        """As EulerDiscreteScheduler.step."""
        self._check_call(timestep)
        i, gamma = self._index(timestep), 0.0
        if s_churn and s_tmin <= float(self.sigmas[i]) <= s_tmax:
            gamma = min(s_churn / (len(self.sigmas) - 1), 2**0.5 - 1)
        row = self._row((i, gamma))
        pair = fused.tensors(model_output, sample, upcast=True)
        if row is None or pair is None:
            options = (s_churn, s_tmin, s_tmax, s_noise, generator, return_dict)
            return EulerDiscreteScheduler.step(self, model_output, timestep, sample, *options)
        F, x = pair
        if gamma > 0:  # up to the higher level, where the network is taken to have been
            rise = self._levels[i].noise * math.sqrt(gamma * (gamma + 2))
            stir = StepRow.of(0.0, evaluates=False, coefficients={"a": 1.0, "s": rise * s_noise})
            x = fused.apply(stir, x, None, noise=fused.drawn(generator, model_output))
        prev_sample, x0 = self._next_and_x0(row, x, F, model_output)
        if prev_sample.dtype is not model_output.dtype:
            prev_sample = prev_sample.to(model_output.dtype)
        self._step_index = i + 1
        return fused.result(EulerDiscreteSchedulerOutput, return_dict, prev_sample, x0)


class FastEulerAncestralDiscreteScheduler(_SigmaStep, EulerAncestralDiscreteScheduler):
    """EulerAncestralDiscreteScheduler with a fused step; see the package's page."""

    __init__ = fused.checked(EulerAncestralDiscreteScheduler)
    set_timesteps = fused.prepared(EulerAncestralDiscreteScheduler)
    _PREDICTION_TYPES = ("epsilon", "v_prediction")

    def _usual_keys(self) -> Iterable[int]:
        return range(len(self._levels) - 1)

    def _make(self, key: int) -> StepRow:
        now, after = self._levels[key], self._next_level(key)
        down, up = ancestral(now, after, 1.0)
        return fused.fused_row(M + down * epsilon_of(now) + up * Z, self._x0[key], fused.UNLIMITED)

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> EulerAncestralDiscreteSchedulerOutput | tuple[Tensor, ...]:
        """As EulerAncestralDiscreteScheduler.step."""
        self._check_call(timestep)
        i = self._index(timestep)
        row = self._row(i)
        pair = fused.tensors(model_output, sample, upcast=True)
        if row is None or pair is None:
            options = (generator, return_dict)
            return EulerAncestralDiscreteScheduler.step(self, model_output, timestep, sample, *options)
        F, x = pair
        noise = fused.drawn(generator, model_output)
        prev_sample, x0 = self._next_and_x0(row, x, F, model_output, noise=noise)
        if prev_sample.dtype is not model_output.dtype:
            prev_sample = prev_sample.to(model_output.dtype)
        self._step_index = i + 1
        return fused.result(EulerAncestralDiscreteSchedulerOutput, return_dict, prev_sample, x0)


class FastHeunDiscreteScheduler(_SigmaStep, HeunDiscreteScheduler):
    """HeunDiscreteScheduler with a fused step; see the package's page."""

    __init__ = fused.checked(HeunDiscreteScheduler)
    set_timesteps = fused.prepared(HeunDiscreteScheduler)
    _PREDICTION_TYPES = ("epsilon", "v_prediction", "sample")
    sample: Any
    prev_derivative: Any
    _first: Any = None  # x0 as predicted in the first stage, in memory of its own

    def _prepare(self) -> None:
        super()._prepare()
        clip = self.config.clip_sample
        self._bounds = self._limits(self.config.clip_sample_range if clip else None)
        self._x0_is_output = self._x0_is_output and not clip

    def _usual_keys(self) -> Iterable[tuple[int, bool]]:
        return ((i, i % 2 == 1) for i in range(len(self._levels) - 1))

    def _make(self, key: tuple[int, bool]) -> StepRow:
        i, second = key
        x0 = self._x0[i]
        if not second:
            now, after = self._levels[i], self._next_level(i)
            return fused.fused_row(M + after.noise * epsilon_of(now), x0, self._bounds, push=True)
        now, after = self._levels[i - 1], self._levels[i]  # h1: x0 at the first stage, h2: x there
        slopes = (H2 - H1) / now.noise + epsilon_of(after)
        return fused.fused_row(H2 + 0.5 * (after.noise - now.noise) * slopes, x0, self._bounds)

    def step(
        self, model_output: Tensor, timestep: float | Tensor, sample: Tensor, return_dict: bool = True
    ) -> HeunDiscreteSchedulerOutput | tuple[Tensor, ...]:
        """As HeunDiscreteScheduler.step."""
        i, second = self._index(timestep), not self.state_in_first_order
        row = self._row((i, second))
        pair = fused.tensors(model_output, sample)
        if row is None or pair is None or (second and self.prev_derivative is not None):
            if second and self.prev_derivative is None:  # the first stage was ours
                self.prev_derivative = (self.sample - self._first) / self.sigmas[i - 1]
            return HeunDiscreteScheduler.step(self, model_output, timestep, sample, return_dict)
        F, x = pair
        if second:
            past = (self._first, self.sample)
            prev_sample, x0 = self._next_and_x0(row, x, F, model_output, None, past)
            self._first = self.sample = self.dt = None
        else:
            self._first = _tensors.empty_like(x)
            prev_sample, x0 = self._next_and_x0(row, x, F, model_output, None, (self._first,))
            self.sample, self.dt = x, self._levels[i + 1].noise - self._levels[i].noise
        self._step_index = i + 1
        return fused.result(HeunDiscreteSchedulerOutput, return_dict, prev_sample, x0)
