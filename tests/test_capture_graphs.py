"""Random modules through capture and the native kernel beside torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from capture_nets import SCHEDULE, STEPS, in_float64
from random_nets import random_net
from samplers import assert_close_as_torch

from diffusion_fast import _cpu, reference
from diffusion_fast.capture import capture
from diffusion_fast.plan import Plan, TileProgram, build_plan
from diffusion_fast.solvers.table import EVAL, ROW_DTYPE, StepTable

N = 400


@pytest.fixture(autouse=True)
def one_torch_thread() -> None:
    torch.set_num_threads(1)


def one_evaluation(program: TileProgram, table: int) -> Plan:
    """A plan whose only row gives the network's output for x_T."""
    rows = np.zeros(1, ROW_DTYPE)
    rows["e"], rows["c_in"], rows["clip"], rows["guidance"] = 1, 1, np.inf, 1
    rows["flags"], rows["table"] = EVAL, table
    return build_plan(StepTable(rows, np.array([0]), np.arange(program.n_tables), "one"), program)


def native(
    program: TileProgram, x: torch.Tensor, labels: torch.Tensor | None, context: torch.Tensor | None
) -> torch.Tensor:
    """Equal parts of x with each step."""
    parts = []
    for table, rows in enumerate(torch.arange(len(x)).chunk(len(STEPS))):
        kernel = _cpu.Program(one_evaluation(program, table).to_bytes())
        u = x[rows]
        out, given = torch.empty_like(u), {}
        y = None if labels is None else labels[rows].int()
        c = None if context is None else context[rows]
        if y is not None:
            given["labels"] = y.data_ptr()
        if c is not None:
            given |= {"context": c.data_ptr(), "context_stride": c.shape[1]}
        kernel.run(out.data_ptr(), len(u), 0, 0, 1, x_T=u.data_ptr(), **given)
        parts.append(out)
    return torch.cat(parts)


def check(seed: int) -> None:
    module = random_net(seed)
    n_classes = 4 if module.label is not None else 0
    inputs = [("", (module.n_context,))] if module.n_context else []
    program = capture(module, (module.dim,), STEPS, n_classes, SCHEDULE, context=inputs)
    table = torch.arange(N) // (N // len(STEPS))
    x, t = torch.randn(N, module.dim), torch.tensor(STEPS)[table]
    y = torch.randint(0, 4, (N,)) if n_classes else None
    c = torch.randn(N, module.n_context) if module.n_context else None
    args = [t, *(given for given in (y, c) if given is not None)]
    plain = module(x, *args).detach()
    exact = in_float64(module, x, *args)
    assert_close_as_torch(reference.net(program, x, table, y, c), plain, exact)
    assert_close_as_torch(native(program, x, y, c), plain, exact)


def check_all(seeds: range) -> None:
    wrong = []
    for seed in seeds:
        try:
            check(seed)
        except Exception as error:
            wrong.append(f"seed {seed}: {type(error).__name__}: {error}")
    assert not wrong, f"{len(wrong)} of {len(seeds)}:\n" + "\n".join(wrong)


@pytest.mark.parametrize("block", range(10))
def test_random_modules(block: int) -> None:
    """Ten seeds each."""
    check_all(range(10 * block, 10 * block + 10))


@pytest.mark.slow
@pytest.mark.parametrize("block", range(2, 10))
def test_hundreds_of_random_modules(block: int) -> None:
    """Fifty seeds each."""
    check_all(range(50 * block, 50 * block + 50))
