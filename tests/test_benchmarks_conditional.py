"""That the chains beside ours are the same chains: foreign modules, classes, contexts, guidance."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import captured, conditional, guided
from benchmarks.conditional import FoldedConditional, OursConditional, Problem, TorchConditional
from diffusion_fast import _timing, _torch_peers
from diffusion_fast._timing import Result

STEPS = 30
ROWS = 100
PROBLEMS: dict[str, Callable[[], Problem]] = {
    "points": lambda: conditional.points(STEPS, (24, 40)),
    "tabddpm": lambda: conditional.tabddpm(5, (24, 40), STEPS),
    "tabddpm merged": lambda: conditional.merged(conditional.tabddpm(5, (24, 40), STEPS)),
    "policy": lambda: conditional.policy(STEPS, (24, 40, 24)),
    "guided classes": lambda: conditional.guided_classes(STEPS, (24, 40), 3),
    "guided contexts": lambda: conditional.guided_contexts(STEPS, (24, 40), 4),
}


@pytest.fixture(autouse=True)
def one_thread(fixed_seeds: None) -> None:
    torch.set_num_threads(1)


@pytest.fixture(params=PROBLEMS)
def problem(request: pytest.FixtureRequest) -> Problem:
    return PROBLEMS[request.param]()


def folded_eps(problem: Problem, x: Tensor, t: int) -> Tensor:
    peer = FoldedConditional(problem)
    return peer.guided_eps(peer.inputs(x), t)


@torch.no_grad()
def module_eps(problem: Problem, x: Tensor, t: int) -> Tensor:
    """The module's output, with guidance from two calls."""
    times, condition = torch.full((len(x),), t), problem.condition
    if condition is None:
        return problem.module(x, times)
    conditioned = problem.module(x, times, condition.rows[: len(x)])
    if condition.null is None:
        return conditioned
    plain = problem.module(x, times, condition.null.expand(condition.rows[: len(x)].shape))
    return plain + 2 * (conditioned - plain)


@pytest.mark.parametrize("t", [0, 17, STEPS - 1])
def test_networks(problem: Problem, t: int) -> None:
    x = torch.randn(ROWS, problem.dim)
    expected = module_eps(problem, x, t)
    # float32 sums of 40 terms in another order
    assert float((TorchConditional(problem).eps(x, t) - expected).abs().max()) < 2e-6
    assert float((folded_eps(problem, x, t) - expected).abs().max()) < 2e-6


def test_chains_are_ours_with_the_same_noise(problem: Problem) -> None:
    torch.manual_seed(1)
    x_T = torch.randn(ROWS, problem.dim)
    drawn = [torch.randn(ROWS, problem.dim) for _ in range(STEPS - 1)]
    noise = torch.stack([*drawn, torch.zeros(ROWS, problem.dim)])
    expected = OursConditional(problem).chunk(ROWS, x_T=x_T, noise=noise)
    for peer in (TorchConditional(problem), FoldedConditional(problem)):
        torch.manual_seed(1)
        # 30 steps of float32 rounding on values up to 5
        assert float((peer.chunk(ROWS) - expected).abs().max()) < 2e-5, peer.name


def test_the_unguided_chain_has_no_second_branch() -> None:
    for make in (PROBLEMS["guided classes"], PROBLEMS["guided contexts"]):
        problem = make()
        unguided, full = OursConditional(problem, guided=False), OursConditional(problem)
        assert [ours.sampler.plan.branches for ours in (unguided, full)] == [1, 2]
        assert float((unguided.chunk(ROWS) - full.chunk(ROWS)).abs().max()) > 1e-3


def test_work_is_that_of_the_products_with_x() -> None:
    work = {name: 1e9 * make().gflop_per_sample / (2 * STEPS) for name, make in PROBLEMS.items()}
    assert work == pytest.approx(
        {
            "points": 2 * 24 + 24 * 40 + 40 * 2,
            "tabddpm": 5 * 128 + 128 * 24 + 24 * 40 + 40 * 5,
            "tabddpm merged": 5 * 24 + 24 * 40 + 40 * 5,
            "policy": 6 * 24 + 24 * 40 + 40 * 24 + 24 * 6,
            "guided classes": 2 * (2 * 24 + 24 * 40 + 40 * 2),
            "guided contexts": 2 * (2 * 24 + 24 * 40 + 40 * 2),
        }
    )


def test_the_same_network_has_the_same_plan_but_for_the_numbers() -> None:
    case = captured.SameNetwork()
    ours, own = (case.sampler(name).plan for name in case.names)
    assert ours is not None and own is not None
    assert ours.flops_per_sample_step == own.flops_per_sample_step
    assert [(type(op), getattr(op, "activation", "")) for op in ours.ops] == [
        (type(op), getattr(op, "activation", "")) for op in own.ops
    ]


# ---- the cases


class SlowPeer:
    """Takes 20 ms a step of a chunk; its chain has 100."""

    name, chunks = "slow", (1000,)

    def chunk(self, n: int, n_steps: int | None = None) -> None:
        time.sleep(0.02 * (n_steps or 100))

    def eps(self, x: Tensor, t: int) -> Tensor:
        return x


@pytest.mark.alone
def test_a_run_is_cut_to_some_of_the_steps() -> None:
    run, note = _torch_peers.limited_run(SlowPeer(), 3000, 1000, 0.2, 100)
    began = time.perf_counter()
    assert 6.0 <= run() < 9  # three chunks of 2 s
    assert time.perf_counter() - began < 0.5
    assert note.startswith("chunk 1000, scaled from 1,000 samples and ") and note.endswith(" steps")


@pytest.fixture
def short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_torch_peers, "TRIAL_SECONDS", 0.001)
    monkeypatch.setattr(_timing, "BURSTS", 1)
    monkeypatch.setattr(captured, "PEER_SECONDS", 0.01)
    for peer in (TorchConditional, FoldedConditional):
        monkeypatch.setattr(peer, "chunks", (128, 256))
    monkeypatch.setattr(OursConditional, "chunks", (192,))


def measured(case: Any) -> Result:
    result = case.measure(quick=True)
    assert [row.name for row in result.rows] == list(case.names)
    assert str(result).startswith(case.name)
    return result


@pytest.mark.usefixtures("short_runs")
def test_captured_case() -> None:
    small = PROBLEMS["tabddpm"]
    peers = conditional.PEERS | {"torch merged": captured.merged}
    case = captured.Captured("captured-x", "x", small, 1000, 0.5, {"torch eager": 2.0}, peers)
    result = measured(case)
    texts = ["of the ceiling, both in bursts", "faster than torch eager"]
    assert [check.text for check in result.checks] == texts
    work = 1000 * small().gflop_per_sample
    assert result.rows[0].rate == pytest.approx(work / result.rows[0].seconds)
    few = measured(captured.Captured("captured-y", "y", small, 2, calls=(2, 1)))
    assert few.unit == "samples/s" and few.rows[0].rate == pytest.approx(2 / few.rows[0].seconds)
    for name in case.names:
        case.prepare(name)()


@pytest.mark.usefixtures("short_runs")
def test_guided_case() -> None:
    case = guided.Guided("guided-x", "x", PROBLEMS["guided classes"], 1000, peers=guided.PEERS)
    result = measured(case)
    plain = result.rows[-1]
    assert plain.name == guided.UNGUIDED
    (check,) = result.checks
    assert check.most and check.value == pytest.approx(1 / plain.ratio)


def test_every_requirement_is_of_a_contender() -> None:
    for case in (*captured.CASES[1:], *guided.CASES):
        assert isinstance(case, captured.Captured) and set(case.faster) <= set(case.names)
