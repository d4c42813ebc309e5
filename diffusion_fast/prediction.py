"""The clean sample that a denoiser predicts, at one timestep at a time.

Classifying and choosing by a reward need the network at noise levels and for rows of their own. A DDPM table
of one row that ends at the data is just that: what it makes of x is the predicted x0 (Ho et al. 2020, eq. 7
with abar_prev = 1).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from diffusion_fast.plan import Plan, TileProgram, build_plan
from diffusion_fast.sampler import Sampler
from diffusion_fast.schedules import NoiseSchedule
from diffusion_fast.solvers.ddpm import ddpm
from diffusion_fast.solvers.levels import Levels
from diffusion_fast.solvers.table import StepTable

# Of Sampler, the options that say how the network is called and what it returns.
OPTIONS = ("shape", "steps", "prediction_type", "clip", "n_classes", "null_class", "time_input", "backend")


class CleanPrediction:
    """x0 as a denoiser predicts it from x at a level of its schedule, natively where it can be.

    model, schedule and options (of OPTIONS): as for Sampler. `levels`: those of the rows, the noisiest first.

    Raises as Sampler does; TypeError for an option that is none of these.
    """

    def __init__(self, model: nn.Module, schedule: NoiseSchedule, **options: Any) -> None:
        for name in options:
            if name not in OPTIONS:
                raise TypeError(f"got an unknown option {name!r}; accepted: {', '.join(OPTIONS)}")
        self.levels = Levels.of(schedule, options.get("steps"), "leading", None)
        self.sampler = Sampler(model, schedule, solver="ddpm", **options)
        self._schedule = schedule
        self._output = {key: options[key] for key in ("prediction_type", "clip") if key in options}

    def at(self, row: int) -> Sampler:
        """The sampler of one row of the levels: sample(n, x_T=x) is x0 predicted from x there, like x.

        The network, which takes long to capture, is the one captured for all rows.
        """
        whole = self.sampler
        table = ddpm(self._schedule, timesteps=self.levels.t[row : row + 1], **self._output)
        plan = None if whole.plan is None else _plan_at(whole.plan, row, table)
        own = {"table": table, "plan": plan, "_times": whole._times[row : row + 1]}
        single = Sampler.__new__(Sampler)
        single.__setstate__(whole.__getstate__() | own)
        return single


def _plan_at(plan: Plan, row: int, table: StepTable) -> Plan:
    """A plan of a table of one row, with the network as it is at a row of another plan."""
    ops = []
    for op in plan.operations:
        tables = {name: getattr(op, name, None) for name in ("step_table", "joint_table")}
        cut = {name: values[row : row + 1] for name, values in tables.items() if values is not None}
        ops.append(replace(op, **cut))
    program = TileProgram(
        plan.dim, tuple(ops), plan.out_value, n_tables=1, n_classes=plan.n_classes, n_prologue=plan.n_prologue
    )
    return build_plan(table, program)
