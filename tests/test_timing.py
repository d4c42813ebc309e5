"""The arithmetic of interleaved timing, and measure_shape, which stands on it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

import diffusion_fast as df
from diffusion_fast import _timing, _torch_peers, shape_benchmark
from diffusion_fast.shape_benchmark import measure_shape


@pytest.fixture(autouse=True)
def one_thread(fixed_seeds: None) -> None:
    torch.set_num_threads(1)


# ---- the arithmetic


def test_compare_takes_medians_of_ratios_and_best_over_best() -> None:
    mine, theirs = iter([1.0, 2.0, 4.0]), iter([3.0, 4.0, 20.0])
    found = [
        _timing.Contender("ours", lambda: next(mine)),
        _timing.Contender("other", lambda: next(theirs), required=2.5),
    ]
    peaks = iter([8.0, 10.0, 9.0])
    result = _timing.compare(_timing.Result("x", "y", "u"), found, 5.0, 3, lambda: next(peaks), 0.6)
    first, second = result.rows
    assert (first.seconds, first.rate, first.best_rate, first.of_ceiling) == (2.0, 2.5, 5.0, 0.5)
    assert second.ratio == 3.0  # of 3, 2 and 5; the ratio of the medians would be 2
    assert result.ceiling == 9.0 and result.best_ceiling == 10.0
    assert [check.met for check in result.checks] == [False, True]
    assert "50 %" in str(result) and "3.00x" in str(result)


def test_a_share_in_bursts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_timing, "BURSTS", 1)
    found = [_timing.Contender(name, lambda: 2.0) for name in ("ours", "other")]
    bursts = iter([5.0, 8.0, 6.0])
    result = _timing.compare(_timing.Result("x", "y"), found, 5.0, 3, lambda: 10.0, 0.8, lambda: next(bursts))
    assert [row.of_ceiling for row in result.rows] == [0.25, 0.25] and result.best_burst == 8.0
    assert [(check.value, check.met) for check in result.checks] == [(0.8, True)]
    assert "in bursts: 80 %" in str(result)


def test_bursts_are_as_long_as_the_peaks(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, sizes = [0.0], []

    def run(n: int) -> None:
        sizes.append(n)
        clock[0] += 1e-5 * n * (2 if len(sizes) == 3 else 1)  # the third is disturbed

    monkeypatch.setattr(_timing.time, "perf_counter", lambda: clock[0])
    assert _timing.burst_rate(run, 2.0) == pytest.approx(2e5)
    whole = [n for n in sizes if n % _timing.BURST_SAMPLES]
    assert not whole and sizes[0] < sizes[1] and 1e-5 * sizes[1] == pytest.approx(0.03, rel=0.1)


class FakePeer:
    """Takes `cost[size]` seconds a chunk, whatever the steps."""

    name = "fake"

    def __init__(self, cost: dict[int, float]) -> None:
        self.cost, self.chunks = cost, tuple(cost)
        self.calls: list[int] = []

    def chunk(self, n: int, n_steps: int | None = None) -> None:
        self.calls.append(n)
        time.sleep(self.cost[n])

    def eps(self, x: torch.Tensor, t: int) -> torch.Tensor:
        return x


def test_best_chunk_is_the_fastest_per_sample() -> None:
    cost = {1024: 0.004, 2048: 0.002, 4096: 0.02}
    assert _torch_peers.best_chunk(FakePeer(cost), 100_000, 10) == 2048
    assert _torch_peers.best_chunk(FakePeer(cost), 1500, 10) == 1024  # of those that n fills


def test_seconds_for_counts_a_part_of_the_last_chunk() -> None:
    peer = FakePeer({1000: 0.05})
    seconds = _torch_peers.seconds_for(peer, 1100, 1000)
    assert peer.calls == [1000] * 2
    assert 0.055 <= seconds < 0.09  # of 0.1


# ---- measure_shape


@pytest.fixture
def short_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RUN_SECONDS", "PEER_SECONDS"):
        monkeypatch.setattr(shape_benchmark, name, 0.005)
    monkeypatch.setattr(shape_benchmark, "ROUNDS", 2)
    monkeypatch.setattr(_torch_peers, "TRIAL_SECONDS", 0.001)
    for peer in (_torch_peers.TorchEager, _torch_peers.TorchFolded):
        monkeypatch.setattr(peer, "chunks", (256, 512))


@pytest.mark.usefixtures("short_runs")
def test_measure_shape() -> None:
    torch.set_num_threads(2)
    state = torch.get_rng_state()
    result = measure_shape([2, 16, 8, 2], "silu", 7, n=1000, threads=1)
    assert torch.equal(torch.get_rng_state(), state) and torch.get_num_threads() == 2
    assert (result.widths, result.activation, result.steps) == ((2, 16, 8, 2), "silu", 7)
    assert (result.n, result.threads, result.instruction_set) == (1000, 1, df.build_info()["instruction_set"])
    assert result.flop_per_sample == 7 * 2 * (2 * 16 + 16 * 8 + 8 * 2)
    assert [row.name for row in result.rows] == ["ours", "torch eager", "torch folded"]
    for row in result.rows:
        assert row.rate == pytest.approx(1e-9 * result.flop_per_sample * 1000 / row.seconds)
        assert row.of_ceiling == pytest.approx(row.best_rate / result.peak_gflops)
    assert result.rows[0].ratio == 1.0 and result.rows[1].ratio > 0
    again = json.loads(json.dumps(result.as_dict()))
    assert again["widths"] == [2, 16, 8, 2] and again["rows"][2]["name"] == "torch folded"
    for text in ("2-16-8-2: silu, 7 steps, 1,000 samples", "torch eager", "samples a second"):
        assert text in str(result)


@pytest.mark.usefixtures("short_runs")
def test_measure_shape_chooses_n_by_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shape_benchmark, "PILOT_SAMPLES", 64)
    result = measure_shape([1, 8, 1], steps=5)
    assert result.n > 64 and result.threads == 1
    assert any("scaled from" in row.note for row in result.rows[1:])


def test_longer_chains_stay_finite() -> None:
    """An untrained net takes little away, so x grows by 1 / sqrt(abar) over the chain: at most e^5 here."""
    for steps in (1, 100, 1000, shape_benchmark.MAX_STEPS):
        assert float(np.prod(_torch_peers.Coefficients.ddpm(steps).a)) < 200


BAD: list[tuple[Callable[[], Any], str]] = [
    (lambda: measure_shape("2-8-2"), "widths: got '2-8-2'"),  # type: ignore[arg-type]
    (lambda: measure_shape(7), "widths: got 7"),  # type: ignore[arg-type]
    (lambda: measure_shape([2, 2]), "widths: got [2, 2]"),
    (lambda: measure_shape([2, 8, 3]), "the last equal to the first"),
    (lambda: measure_shape([2, 0, 2]), "widths[1]: got 0"),
    (lambda: measure_shape([2, 8.0, 2]), "widths[1]: got 8.0"),  # type: ignore[list-item]
    (lambda: measure_shape([2, 4096, 2]), "widths[1]: got 4096"),
    (lambda: measure_shape([300, 8, 300]), "those two at most 256"),
    (lambda: measure_shape([2] * 258), "3 to 257 integers"),
    (lambda: measure_shape([2, 8, 2], "rleu"), "did you mean 'relu'?"),
    (lambda: measure_shape([2, 8, 2], steps=0), "steps: got 0"),
    (lambda: measure_shape([2, 8, 2], steps=10_001), "an integer from 1 to 10000"),
    (lambda: measure_shape([2, 8, 2], n=0), "n: got 0"),
    (lambda: measure_shape([2, 8, 2], n=1.5), "n: got 1.5"),  # type: ignore[arg-type]
    (lambda: measure_shape([2, 8, 2], threads=0), "threads: got 0"),
]


@pytest.mark.parametrize(("call", "text"), BAD, ids=[text for _, text in BAD])
def test_bad_input(call: Callable[[], Any], text: str) -> None:
    with pytest.raises((ValueError, TypeError)) as error:
        call()
    assert text in str(error.value) and "accepted: " in str(error.value)
