"""UniPC: a corrector of the last step, then a predictor."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable
from typing import Any

from diffusers import UniPCMultistepScheduler
from diffusers.schedulers.scheduling_utils import SchedulerOutput
from torch import Tensor

from diffusion_fast.integrations.diffusers import fused
from diffusion_fast.integrations.diffusers.multistep import MultistepStep
from diffusion_fast.solvers.chain import H1, H2, H3, M, Terms, X
from diffusion_fast.solvers.table import StepRow
from diffusion_fast.solvers.unipc import differences


class FastUniPCMultistepScheduler(MultistepStep, UniPCMultistepScheduler):
    """UniPCMultistepScheduler with a fused step; see the package's page.

    Three passes a step, for the conversion, the corrector and the predictor, as the corrector starts from the
    sample before the last step, which a caller may have replaced in between (inpainting). With solver_type
    "bh1" and a last sigma of 0 the original ends in NaN, and this in x0. With solver_p the original runs.
    """

    __init__ = fused.checked(UniPCMultistepScheduler)
    set_timesteps = fused.prepared(UniPCMultistepScheduler)

    last_sample: Any
    this_order: int
    timestep_list: list[Any]

    def _keeps_x0(self) -> bool:
        return bool(self.predict_x0)

    def _prepare(self) -> None:
        super()._prepare()
        self._lowers = self.config.lower_order_final

    def _order_at(self, i: int, made: int) -> int:
        """The original's order of step i, the one after `made` others."""
        return min(self._order, made + 1, self._count - i if self._lowers else self._order)

    def _usual_keys(self) -> Iterable[tuple[str, int, int]]:
        orders = [self._order_at(i, min(i, self._order)) for i in range(self._count)]
        yield "first", 0, orders[0]
        for i, (last, order) in enumerate(itertools.pairwise(orders), start=1):
            yield from (("convert", i, 0), ("correct", i, last), ("predict", i, order))

    def _make(self, key: tuple[str, int, int]) -> StepRow:
        use, i, order = key
        if order > 3:
            raise ValueError("more of the history than a row has")
        if use == "convert":
            return self._fused_row(i, M)
        if use == "correct":
            nodes = [*((i - 2, H2), (i - 3, H3))[: order - 1], (i, M)]
            return fused.converted_row(self._update(i - 1, H1, nodes))
        self._next_level(i)
        update = self._update(i, M, [(i - 1, H1), (i - 2, H2)][: order - 1])
        return self._fused_row(i, update) if use == "first" else fused.converted_row(update)

    def _update(self, i: int, m: Terms, nodes: list[tuple[int, Terms]]) -> Terms:
        """From level i to the next, with the prediction m there and those of nodes at other levels."""
        now, after = self._steps[i]
        kept, weight, sign = after.noise / now.noise, after.signal, 1.0
        if not self._of_x0:  # signal and noise change places
            kept, weight, sign = after.signal / now.signal, after.noise, -1.0
        start, end = sign * now.lam, sign * after.lam
        others = {sign * self._levels[k].lam: term for k, term in nodes}
        rest = differences(self.config.solver_type, start, end, m, others)
        return kept * X + weight * (rest - math.expm1(start - end) * m)

    def step(
        self, model_output: Tensor, timestep: int | Tensor, sample: Tensor, return_dict: bool = True
    ) -> SchedulerOutput | tuple[Tensor, ...]:
        """As UniPCMultistepScheduler.step."""
        self._require_timesteps()
        i = self._index(timestep)
        convert = self._row(("convert", i, 0))
        corrects = i > 0 and self.last_sample is not None and i - 1 not in self.disable_corrector
        order = self._order_at(i, self.lower_order_nums)
        rows: list[Any]
        if corrects:
            rows = [convert, self._row(("correct", i, self.this_order)), self._row(("predict", i, order))]
        else:
            rows = [self._row(("first", i, order))]
        pair = fused.tensors(model_output, sample)
        if pair is None or None in rows or self.solver_p is not None:
            return UniPCMultistepScheduler.step(self, model_output, timestep, sample, return_dict)
        F, x = pair
        if corrects:
            m = fused.apply(rows[0], x, F)
            x = fused.apply(rows[1], self.last_sample, m, history=self._past(self.this_order, x))
            prev_sample = fused.apply(rows[2], x, m, history=self._past(order - 1, x))
        else:
            prev_sample, m = fused.apply(rows[0], x, F, True, history=self._past(order - 1, x))
        self._keep(m)
        self.timestep_list = [*self.timestep_list[1:], timestep]
        self.this_order, self.last_sample, self._step_index = order, x, i + 1
        prev_sample = prev_sample.to(sample.dtype)
        return fused.result(SchedulerOutput, return_dict, prev_sample)
