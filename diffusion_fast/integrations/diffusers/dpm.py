"""DPM-Solver and DPM-Solver++, deterministic and with noise, of order 1 to 3."""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import torch
from diffusers import DPMSolverMultistepScheduler
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from diffusion_fast import _checks
from diffusion_fast.integrations.diffusers import fused
from diffusion_fast.integrations.diffusers.multistep import MultistepStep
from diffusion_fast.solvers.chain import M, Terms, X, Z
from diffusion_fast.solvers.dpmpp import Steps, derivatives, multistep, slope
from diffusion_fast.solvers.phi import phi
from diffusion_fast.solvers.table import TERM_BITS, StepRow

_READS = [(TERM_BITS[f"c{k}"], k) for k in (2, 1)]


class FastDPMSolverMultistepScheduler(MultistepStep, DPMSolverMultistepScheduler):
    """DPMSolverMultistepScheduler with a fused step; see the package's page."""

    __init__ = fused.checked(DPMSolverMultistepScheduler)
    set_timesteps = fused.prepared(DPMSolverMultistepScheduler)

    def _check_config(self) -> None:
        super()._check_config()
        order = self.config.solver_order
        if self.config.algorithm_type == "sde-dpmsolver" and order > 2:
            accepted = "1 or 2 with algorithm_type='sde-dpmsolver' (the original's step fails with 3)"
            raise _checks.bad_value("solver_order", order, accepted)

    def _keeps_x0(self) -> bool:
        return self.config.algorithm_type in ("dpmsolver++", "sde-dpmsolver++")

    def _prepare(self) -> None:
        super()._prepare()
        config = self.config
        self._noisy = config.algorithm_type.startswith("sde")
        few = config.lower_order_final and self._count < 15
        self._first_order_last = config.euler_at_final or few or config.final_sigmas_type == "zero"
        self._second_order_last = few
        self._cut = (
            config.variance_type in ("learned", "learned_range") and config.prediction_type == "epsilon"
        )
        # the epsilon of a thresholded x0 is not linear in what a row sees: it takes a pass of its own
        self._converts = not self._of_x0 and config.thresholding

    def _order_at(self, i: int, made: int) -> int:
        """The original's order of step i, the one after `made` others."""
        left = self._count - i
        if self._order == 1 or made < 1 or (left == 1 and self._first_order_last):
            return 1
        if self._order == 2 or made < 2 or (left == 2 and self._second_order_last):
            return 2
        return 3

    def _usual_keys(self) -> Iterable[tuple[int, int]]:
        return ((i, min(i, self._order)) for i in range(self._count))

    def _make(self, key: tuple[int, int]) -> StepRow:
        i, made = key
        self._next_level(i)
        update = (_plus_plus if self._of_x0 else _of_epsilon)(
            self._steps, i, self._order_at(i, made), self._noisy, self.config.solver_type
        )
        if self._converts:
            self._threshold_row(i)  # raises where no row can be this
            return fused.converted_row(update)
        return self._fused_row(i, update)

    def _threshold_row(self, i: int) -> StepRow:
        """The row that gives the epsilon of the thresholded x0."""
        now = self._levels[i]
        x0, _ = fused.predictions(self.config.prediction_type, np.array([now.signal]), np.array([now.noise]))
        update = (X - now.signal * M) / now.noise
        return fused.fused_row(update, (x0.x[0], x0.F[0]), self._limits())

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        variance_noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        """As DPMSolverMultistepScheduler.step."""
        self._require_timesteps()
        i = self._index(timestep)
        row = self._row((i, self.lower_order_nums))
        output = model_output[:, :3] if self._cut else model_output  # the rest is the variance
        pair = fused.tensors(output, sample)
        if row is None or pair is None:
            options = (generator, variance_noise, return_dict)
            return DPMSolverMultistepScheduler.step(self, model_output, timestep, sample, *options)
        F, x = pair
        noise = variance_noise if self._noisy else None
        if self._noisy and noise is None:
            noise = fused.drawn(generator, output, torch.float32)
        past = self._past(next((k for bit, k in _READS if row.terms & bit), 0), x)
        if self._converts:
            m = fused.apply(self._threshold_row(i), x, F)
            prev_sample = fused.apply(row, x, m, noise=noise, history=past)
        else:
            prev_sample, m = fused.apply(row, x, F, True, noise=noise, history=past)
        if self._of_x0 and self.config.prediction_type == "sample":
            prev_sample = prev_sample.to(output.dtype)
        self._keep(m)
        self._step_index = i + 1
        return fused.result(SchedulerOutput, return_dict, prev_sample)


def _plus_plus(steps: Steps, i: int, order: int, noisy: bool, solver_type: str) -> Terms:
    """DPM-Solver++ (Lu et al. 2022b), where m is x0."""
    x = multistep(steps, i, order, 1.0 if noisy else 0.0, 1.0, solver_type)
    now, after = steps[i]
    h = after.lam - now.lam
    if order == 3 and noisy and math.isfinite(h):  # the original has the other sign of 1/2 in this weight
        x -= after.signal * derivatives(steps, i, h)[1]
    return x


def _of_epsilon(steps: Steps, i: int, order: int, noisy: bool, solver_type: str) -> Terms:
    """DPM-Solver (Lu et al. 2022a, eq. 3.7 and appendix), where m is epsilon.

    x_next = (signal_next / signal) x - noise_next (e^h - 1) m - ..., and twice the terms of m for the SDE.
    """
    now, after = steps[i]
    h = after.lam - now.lam
    weight = (2.0 if noisy else 1.0) * after.noise
    x = after.signal / now.signal * X - weight * math.expm1(h) * M
    if order == 2:
        second = 0.5 * math.expm1(h) if solver_type == "midpoint" else h * phi(2, h)
        x -= weight * second * slope(steps, i, h)
    elif order == 3:
        first, curvature = derivatives(steps, i, h)
        x -= weight * (h * phi(2, h) * first + h * phi(3, h) * curvature)
    return x + (after.noise * math.sqrt(math.expm1(2 * h)) if noisy else 0.0) * Z
