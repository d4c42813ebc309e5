"""What DPM-Solver and UniPC share: their levels, and the predictions that they keep."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from diffusion_fast import _checks
from diffusion_fast.integrations.diffusers import fused
from diffusion_fast.solvers.chain import Terms
from diffusion_fast.solvers.levels import PREDICTION_TYPES, Affine, Level
from diffusion_fast.solvers.table import StepRow


class MultistepStep(fused.IndexedStep):
    """x = signal x0 + noise epsilon with noise / signal = sigma, or the flow's 1 - sigma and sigma.

    A subclass says in `_keeps_x0` whether m, of which the history is kept, is x0 or epsilon.
    """

    model_outputs: list[Any]
    lower_order_nums: int

    def _keeps_x0(self) -> bool:
        raise NotImplementedError

    def _check_config(self) -> None:
        _checks.integer("solver_order", self.config.solver_order, 1)
        known = [*PREDICTION_TYPES, "flow_prediction"] if self._keeps_x0() else PREDICTION_TYPES
        _checks.choice("prediction_type", self.config.prediction_type, known)

    def _prepare(self) -> None:
        config = self.config
        self._of_x0 = self._keeps_x0()
        self._order = config.solver_order
        self._count = len(self.timesteps)
        sigma = self.sigmas.double().cpu().numpy()
        signal, noise = 1 / np.hypot(1, sigma), sigma / np.hypot(1, sigma)
        if config.use_flow_sigmas:
            signal, noise = 1 - sigma, sigma
        levels = np.stack([np.zeros_like(sigma), signal, noise], axis=1)
        self._levels = [Level(*row) for row in levels.tolist()]
        self._steps = list(zip(self._levels[:-1], self._levels[1:], strict=True))
        if config.prediction_type == "flow_prediction":
            x0 = epsilon = Affine(np.ones_like(sigma), -sigma)  # x0 alone is asked for
        else:
            x0, epsilon = fused.predictions(config.prediction_type, signal, noise)
        pair = zip(*(column.tolist() for column in (x0 if self._of_x0 else epsilon)), strict=True)
        self._kept = list(pair)  # m, which the history is of, from x and the network's output
        self._bounds = self._limits() if self._of_x0 else fused.UNLIMITED

    def _fused_row(self, i: int, update: Terms) -> StepRow:
        return fused.fused_row(update, self._kept[i], self._bounds)

    def _require_timesteps(self) -> None:
        if self.num_inference_steps is None:
            raise ValueError("num_inference_steps: got None; accepted: call set_timesteps before step")

    def _past(self, reads: int, x: Tensor) -> list[Any]:
        """The newest predictions of the history, the last first."""
        past = self.model_outputs[-1 : -1 - reads : -1]
        return [h.to(x.dtype) if isinstance(h, Tensor) else h for h in past]

    def _keep(self, m: Tensor) -> None:
        """m becomes the newest of the history, in a new list: one that was copied stays as it was."""
        self.model_outputs = [*self.model_outputs[1:], m]
        if self.lower_order_nums < self._order:
            self.lower_order_nums += 1
