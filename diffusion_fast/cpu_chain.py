"""The fused chain on the CPU: a packed plan, and its run for a checked call."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from diffusion_fast import _cpu, _tensors
from diffusion_fast.network_table import NetworkTable
from diffusion_fast.plan import Plan
from diffusion_fast.torch_chain import Call, NotFinite


class CpuChain:
    """A plan, packed for the processor's instruction set. table: in place of its network, or None. low_rows:
    the first rows, in which wide layers multiply in bfloat16."""

    def __init__(self, plan: Plan, table: NetworkTable | None = None, low_rows: int = 0) -> None:
        self._program: Any = _cpu.Program(plan.to_bytes(), low_rows=low_rows)
        self._table = None if table is None else table.packed()
        how = "" if table is None else ", from a table"
        self.name = f"native ({self._program.isa}{how}{', bfloat16' if low_rows else ''})"

    def run(self, call: Call, target: Tensor) -> NotFinite:
        """Fills target, (n, *shape) or with a trajectory (rows + 1, n, *shape)."""
        last = _tensors.allocate(target.shape[1:]) if call.trajectory else target
        bad: NotFinite = self._program.run(
            last.data_ptr(),
            call.n,
            call.start,
            call.seed,
            call.threads,
            *call.addresses(target),
            call.show,
            self._table,
        )
        return bad
