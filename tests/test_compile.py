"""The ops inside torch.compile and torch.export: one graph, and the samples of the eager call."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import diffusion_fast as df
from diffusion_fast.ops import reverse_step

SCHEDULE = df.NoiseSchedule.linear(n_steps=6, beta_start=0.01, beta_end=0.3)
ROWS = list(df.solvers.ddpm(SCHEDULE, variance="beta"))
MULTISTEP = list(df.solvers.dpmpp_2m(SCHEDULE, steps=4))
LARGE_SEED = 0xFEDC_BA98_7654_3210


@pytest.fixture(autouse=True)
def fresh_compiler() -> Iterator[None]:
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def same(function: Callable[..., Any], *args: Tensor, backend: str = "aot_eager") -> None:
    """Compiled and eager, on clones: the same results, and the same writes into the arguments."""
    ours, theirs = [a.clone() for a in args], [a.clone() for a in args]
    got = torch.compile(function, fullgraph=True, backend=backend)(*ours)
    want = function(*theirs)
    for a, b in zip([got, *ours], [want, *theirs], strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_loop_over_rows_is_one_graph(backend: str) -> None:
    def loop(x: Tensor) -> Tensor:
        for i, row in enumerate(ROWS):
            eps = torch.tanh(x)
            x = reverse_step(x, eps, row, seed=LARGE_SEED, step=i, start=5)
        return x

    same(loop, torch.randn(9, 3), backend=backend)


def test_a_table_may_be_walked_inside() -> None:
    table = df.solvers.ddpm(SCHEDULE, variance="beta")

    def by_index(x: Tensor) -> Tensor:
        for i in range(len(table)):
            x = reverse_step(x, torch.tanh(x), table[i], seed=3, step=i)
        return reverse_step(x, x, table[-1], seed=4)

    def by_iteration(x: Tensor) -> Tensor:
        for i, row in enumerate(table):
            x = reverse_step(x, torch.tanh(row.c_in * x), row, seed=3, step=i)
        return x

    x = torch.randn(9, 3)
    same(by_index, x)
    same(by_iteration, x)


def test_another_table_is_another_graph() -> None:
    """Even where it may lie at the address of one that is gone."""

    def loop(x: Tensor, table: Any) -> Tensor:
        return reverse_step(x, x, table[1], seed=3)

    compiled, x = torch.compile(loop, fullgraph=True, backend="eager"), torch.randn(9, 3)
    for k in range(6):
        table = df.solvers.ddpm(df.NoiseSchedule.linear(6, 0.01, 0.3 + 0.05 * k))
        want = loop(x, table)
        assert torch.equal(compiled(x, table), want)
        del table


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_in_place_with_history_and_prediction(backend: str) -> None:
    def loop(x: Tensor, h1: Tensor, h2: Tensor, prediction: Tensor) -> Tensor:
        for i, row in enumerate(MULTISTEP):
            eps = torch.tanh(x)
            df.ops.reverse_step(x, eps, row, step=i, history=[h1, h2], prediction=prediction, out=x)
        return 2 * x + h1 + prediction

    same(loop, *torch.randn(4, 9, 3), backend=backend)


def test_a_push_without_out_is_seen() -> None:
    def step(x: Tensor, h1: Tensor) -> Tensor:
        return reverse_step(x, x.sin(), MULTISTEP[0], history=(h1,)) + h1

    same(step, *torch.randn(2, 9, 3))
    # The op that says what it writes: a graph may reorder what it does not know to be written.
    seen: list[Any] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Callable[..., Any]:
        seen.extend(node.target for node in graph.graph.nodes)
        return graph.forward

    torch._dynamo.reset()
    torch.compile(step, fullgraph=True, backend=backend)(*torch.randn(2, 9, 3))
    assert torch.ops.diffusion_fast.reverse_step_.default in seen


def test_guidance_and_noise() -> None:
    def step(x: Tensor, u: Tensor, z: Tensor, scales: Tensor, both: Tensor) -> Tensor:
        row, eps = ROWS[2], x.cos()
        one = reverse_step(x, eps, row, noise=z, uncond_output=u, guidance_scale=3)
        two = reverse_step(one, eps, row, seed=1, uncond_output=u, guidance_scale=scales, log_variance=z)
        return reverse_step(two, both, row, seed=1, step=1, doubled="uncond_first", guidance_scale=2.5)

    same(step, *torch.randn(3, 9, 3), torch.linspace(0, 4, 9), torch.randn(18, 3))


def test_out_may_be_the_models_output() -> None:
    def step(x: Tensor, eps: Tensor) -> Tensor:
        return reverse_step(x, eps, ROWS[2], seed=1, out=eps) + x

    same(step, *torch.randn(2, 9, 3))


def test_normal() -> None:
    def draw(x: Tensor) -> Tensor:
        return x + df.noise.normal(
            len(x), 3, seed=LARGE_SEED, step=4, purpose="initial", start=2, substream=7
        )

    same(draw, torch.randn(9, 3))


def test_the_batch_and_the_step_may_change_without_another_graph() -> None:
    counter = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    step = torch.compile(
        lambda x, i, seed: reverse_step(x, x, ROWS[1], seed=seed, step=i),
        fullgraph=True,
        backend=counter,
        dynamic=True,
    )
    for n, i, seed in ((4, 2, 3), (9, 3, 2**63 + 9), (11, 4, LARGE_SEED), (12, 5, 2**64 - 1)):
        x = torch.randn(n, 3)
        assert torch.equal(step(x, i, seed), reverse_step(x, x, ROWS[1], seed=seed, step=i))
    assert counter.frame_count <= 2


def test_export_keeps_the_step_as_one_node() -> None:
    class Step(torch.nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return reverse_step(x, x.sin(), ROWS[1], seed=3)

    x = torch.randn(5, 3)
    for strict in (False, True):
        program = torch.export.export(Step(), (x,), strict=strict)
        assert torch.equal(program.module()(x), Step()(x))


def test_what_a_graph_cannot_hold_is_refused() -> None:
    x, generator = torch.randn(5, 3), torch.Generator()

    def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
        return torch.compile(function, fullgraph=True, backend="eager")

    with pytest.raises(Exception, match="generator: got"):
        compiled(lambda x: reverse_step(x, x, ROWS[1], generator=generator))(x)
    with pytest.raises(Exception, match="seed: got"):
        compiled(lambda x: x + df.noise.normal(5, 3, seed=generator, step=0))(x)
    with pytest.raises(Exception, match="model_output: got"):
        compiled(lambda x, F: reverse_step(x, F, ROWS[1], seed=1))(x, x.clone().requires_grad_())


def test_the_checks_run_when_the_graph_runs() -> None:
    x = torch.randn(5, 3)
    step = torch.compile(
        lambda x, F: reverse_step(x, F, ROWS[1], seed=1), fullgraph=True, backend="aot_eager"
    )
    with pytest.raises(ValueError, match=r"model_output: got .*shape \(5, 2\)"):
        step(x, x[:, :2])
    with pytest.raises(ValueError, match="seed: got"):
        torch.compile(lambda x: reverse_step(x, x, ROWS[1]), fullgraph=True, backend="aot_eager")(x)


def op_arguments(row: Any, **changes: Any) -> dict[str, Any]:
    from diffusion_fast import compile_ops

    given = {
        "model_output": torch.randn(5, 3),
        "row": [getattr(row, name) for name in compile_ops._NUMBERS],
        "flags": [int(row.eval), int(row.push), row.terms],
        "seed": [7, 1 << 31],
        "step": 3,
        "start": 4,
        "noise": None,
        "uncond_output": None,
        "scale": None,
        "scales": None,
        "history": [],
        "log_variance": None,
        "doubled": None,
    }
    return {name: changes.get(name, given[name]) for name in compile_ops._ARGUMENTS}


def test_opcheck() -> None:
    from diffusion_fast import compile_ops  # registers the ops

    ops = torch.ops.diffusion_fast
    x = torch.randn(5, 3)
    guided = {"uncond_output": torch.randn(5, 3), "scales": torch.rand(5), "log_variance": torch.randn(5, 3)}
    for changes in ({}, guided, {"noise": torch.randn(5, 3), "seed": []}):
        torch.library.opcheck(ops.reverse_step.default, (x, *op_arguments(ROWS[1], **changes).values()))
    push = dataclasses.replace(MULTISTEP[1], push=True)
    history = [torch.randn(5, 3), torch.randn(5, 3)]
    for source in (x, None):
        rest = op_arguments(push, history=history, seed=[]).values()
        torch.library.opcheck(
            ops.reverse_step_.default, (torch.randn(5, 3), source, *rest, torch.empty(5, 3))
        )
    torch.library.opcheck(ops.normal.default, (4, 3, [1, 2], 5, "step", 6, 7))
    assert compile_ops._row.cache_info().currsize > 0


def test_nothing_is_registered_before_it_is_needed() -> None:
    code = (
        "import sys, diffusion_fast as df\n"
        "row = df.solvers.ddpm(df.NoiseSchedule.linear(4))[2]\n"
        "x = df.noise.normal(2, 3, seed=0, step=0)\n"
        "df.ops.reverse_step(x, x, row, seed=0)\n"
        "lazy = {'diffusion_fast.compile_ops', 'diffusion_fast.foreign_arrays', 'torch._dynamo'}\n"
        "assert not lazy & {*sys.modules}\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.slow
def test_inductor() -> None:
    def loop(x: Tensor, h1: Tensor, h2: Tensor) -> Tensor:
        for i, row in enumerate(MULTISTEP):
            x = reverse_step(x, x * 0.5, row, step=i, history=[h1, h2], out=x)
        return reverse_step(x, x * 0.5, ROWS[1], seed=LARGE_SEED) + df.noise.normal(9, 3, seed=1, step=2)

    same(loop, *torch.randn(3, 9, 3), backend="inductor")
