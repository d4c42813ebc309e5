"""That the benchmarks measure what they say: right networks, right chains, right arithmetic."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import diffusion_fast as df
from benchmarks import (
    around,
    captured,
    cases,
    figures,
    guided,
    low_precision,
    peers,
    run,
    scaling,
    schedulers,
    tables,
    traffic,
    training,
)
from benchmarks.registry import CASES
from diffusion_fast import _cpu, _timing, _torch_peers, shape_benchmark
from diffusion_fast.models.mlp import ACTIVATIONS
from diffusion_fast.shape_benchmark import measure_shape

STEPS = 60
ROWS = 500
QUICK_PEERS = [name for name in peers.CHAIN_PEERS if not name.startswith("torch.compile")]


@pytest.fixture(autouse=True)
def one_thread(fixed_seeds: None) -> None:
    """Small products on two threads mostly wait for each other where other programs run."""
    torch.set_num_threads(1)


def small_model(activation: str = "relu", hidden: tuple[int, ...] = (24, 40), dim: int = 3) -> Any:
    torch.manual_seed(0)
    return df.models.MLPDenoiser(dim, hidden, activation, "learned", STEPS).eval()


def peer_named(name: str, model: Any) -> Any:
    try:
        return peers.CHAIN_PEERS[name](model)
    except ImportError as error:
        pytest.skip(f"{error}; install the extra 'bench'")


def largest_difference(a: Any, b: Any) -> float:
    return float((as_tensor(a) - b).abs().max())


def as_tensor(a: Any) -> torch.Tensor:
    return a if isinstance(a, torch.Tensor) else torch.from_numpy(np.array(a))


# ---- the peers compute what the model and this package compute


def check_eps(name: str, activation: str, t: int) -> None:
    model = small_model(activation)
    x = torch.randn(ROWS, 3)
    with torch.no_grad():
        expected = model(x, torch.full((ROWS,), t))
    # float32 sums of 40 terms in another order
    assert largest_difference(peer_named(name, model).eps(x, t), expected) < 1e-6


@pytest.mark.parametrize("t", [0, 17, STEPS - 1])
@pytest.mark.parametrize("activation", ["relu", "tanh"])
@pytest.mark.parametrize("name", QUICK_PEERS)
def test_peer_network(name: str, activation: str, t: int) -> None:
    check_eps(name, activation, t)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(peers.CHAIN_PEERS) - set(QUICK_PEERS)))
def test_compiled_network(name: str) -> None:
    check_eps(name, "tanh", 17)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_folded_network_of_every_activation(activation: str) -> None:
    check_eps("torch folded", activation, 17)


def noise_of_torch(n: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    """What the torch peers draw after manual_seed(1): x_T, then z of each step but the last."""
    torch.manual_seed(1)
    x = torch.randn(n, dim)
    return x, torch.stack([torch.randn(n, dim) for _ in range(STEPS - 1)] + [torch.zeros(n, dim)])


def ours(model: Any, **options: Any) -> torch.Tensor:
    schedule = df.NoiseSchedule(_torch_peers.linear_betas(STEPS))
    return df.Sampler(model, schedule, variance="posterior", backend="native").sample(ROWS, **options)


def check_chain(name: str) -> None:
    model = small_model()
    x_T, noise = noise_of_torch(ROWS, 3)
    expected = ours(model, x_T=x_T, noise=noise)
    peer = peer_named(name, model)
    torch.manual_seed(1)
    # 60 steps of float32 rounding on values up to 5; diffusers keeps its schedule in float32 as well.
    assert largest_difference(peer.chunk(ROWS), expected) < (5e-4 if name == "diffusers" else 3e-5)


@pytest.mark.parametrize("name", sorted(set(QUICK_PEERS) - {"jax scan"}))
def test_peer_chain_is_ours_with_the_same_noise(name: str) -> None:
    check_chain(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(set(peers.CHAIN_PEERS) - set(QUICK_PEERS)))
def test_compiled_chain_is_ours_with_the_same_noise(name: str) -> None:
    check_chain(name)


def noise_of_jax(n: int, dim: int) -> tuple[torch.Tensor, torch.Tensor]:
    import jax

    key, first = jax.random.split(jax.random.key(0))
    noise = []
    for _ in range(STEPS):
        key, fresh = jax.random.split(key)
        noise.append(as_tensor(jax.random.normal(fresh, (n, dim))))
    return as_tensor(jax.random.normal(first, (n, dim))), torch.stack(noise)


def test_jax_chain_is_ours_with_the_same_noise() -> None:
    model = small_model()
    peer = peer_named("jax scan", model)
    x_T, noise = noise_of_jax(ROWS, 3)
    assert largest_difference(peer.chunk(ROWS), ours(model, x_T=x_T, noise=noise)) < 3e-5


def test_trial_runs_take_the_last_steps() -> None:
    model = small_model()
    for name in ("torch eager", "torch folded", "onnx runtime", "diffusers"):
        peer = peer_named(name, model)
        torch.manual_seed(1)
        x = torch.randn(ROWS, 3)
        eps = peer.eps(x, 0).clone()
        torch.manual_seed(1)
        c = _torch_peers.Coefficients.ddpm(STEPS)
        assert largest_difference(peer.chunk(ROWS, 1), float(c.a[0]) * x + float(c.e[0]) * eps) < 1e-6, name


def test_coefficients_are_those_of_the_solver() -> None:
    table = df.solvers.ddpm(df.NoiseSchedule(_torch_peers.linear_betas(STEPS)), variance="posterior")
    c = _torch_peers.Coefficients.ddpm(STEPS)
    for i, row in enumerate(table):
        t = STEPS - 1 - i
        np.testing.assert_allclose([row.a, row.e, row.s], [c.a[t], c.e[t], c.s[t]], rtol=1e-6)


def test_steps_beside_each_other_do_the_same() -> None:
    case = cases.Step(3)
    x, eps = torch.randn(1000, 3), torch.randn(1000, 3)
    row = df.solvers.ddpm(df.NoiseSchedule(_torch_peers.linear_betas(case.steps)), variance="posterior")[
        case.steps - 1 - case.t
    ]
    c = _torch_peers.Coefficients.ddpm(case.steps)
    a, e, s = (float(column[case.t]) for column in (c.a, c.e, c.s))
    torch.manual_seed(0)
    noise = torch.randn(1000, 3)
    expected = df.ops.reverse_step(x, eps, row, noise=noise)
    torch.manual_seed(0)
    in_place = x.clone()
    peers.inplace_step(in_place, eps, torch.empty_like(x), a, e, s)
    assert largest_difference(in_place, expected) < 1e-6


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


def test_traffic_of_the_folded_chain_by_hand() -> None:
    model = small_model(hidden=(24, 40))
    n = 64
    floats = 3 + 24 + 2 * 24 + 24 + 40 + 2 * 40 + 40 + 3  # layers read and write, activations in place
    floats += 2 * 3 + 3 * 3 + 3 + 3 * 3  # mul_, add_ of eps, noise written, add_ of noise
    weights = 3 * 24 + 24 * 40 + 40 * 3 + 24 + 40 + 3
    moved = traffic.bytes_per_sample_step(_torch_peers.TorchFolded(model), n)
    assert moved == pytest.approx(4 * (floats + weights / n))


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


# ---- the registry and what is written


def test_registry_is_whole() -> None:
    kinds = {name.split("-")[0] for name in CASES}
    assert kinds == {
        "chain",
        "latency",
        "step",
        "scaling",
        "captured",
        "guided",
        "around",
        "scheduler",
        "table",
        "training",
    } | ({"bfloat16"} if _cpu.has_bfloat16() else set())
    lists = (cases.CHAINS, cases.LATENCIES, cases.STEPS, scaling.SCALINGS)
    more = (captured.CASES, guided.CASES, around.CASES, training.CASES, schedulers.SCHEDULERS)
    more += (tables.CASES, low_precision.CASES)
    assert len(CASES) == sum(map(len, (*lists, *more))), "two cases of one name"
    assert all(case.names[0] == "ours" for case in CASES.values())


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    for package in ("jax", "onnxruntime", "diffusers"):
        monkeypatch.setitem(sys.modules, package, None)
    result = cases.Latency(4, (1, 1), 1, chain=cases.Chain((2, 8, 2), "relu", 3, 4))
    monkeypatch.setattr(
        peers, "CHAIN_PEERS", {name: make for name, make in peers.CHAIN_PEERS.items() if name in QUICK_PEERS}
    )
    found = result.measure(quick=True)
    assert [row.name for row in found.rows] == ["ours", "torch eager", "torch folded"]
    assert [line.split(" not measured")[0] for line in found.missing] == QUICK_PEERS[2:]


def small_run() -> list[Any]:
    """A run of the smallest cases with a figure's worth of points, without the peers that compile."""
    chain = cases.Chain((2, 8, 2), "relu", 3, 600)
    step = cases.Step(3)
    result = _timing.Result(chain.name, "", "GFLOP/s", gflop_per_unit=1.0)
    names = ("torch eager", "torch folded")
    kept = {name: peers.CHAIN_PEERS[name] for name in names}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(peers, "CHAIN_PEERS", kept)
        found = chain.contenders(600, result)
        chain_result = _timing.compare(result, found, 1.0, 1, lambda: 100.0)
        steps = _timing.Result(step.name, "", "Melem/s", gflop_per_unit=5e-3)
        x, eps = step.tensors(3000)
        rows = [_timing.Contender(name, step.run(name, x, eps), flop_per_byte=0.4) for name in step.names[:2]]
        step_result = _timing.compare(steps, rows, 0.003, 1, lambda: 1000.0)
        growths = [scaling.Growth(case.name, case.axis, list(case.values)) for case in scaling.SCALINGS]
    for growth in growths:
        growth.seconds = {name: [1e-3 * (i + 1) for i in range(len(growth.values))] for name in scaling.NAMES}
        growth.at_peak = [5e-4 * (i + 1) for i in range(len(growth.values))]
    return [chain_result, step_result, *growths]


def test_written_run_and_its_figures(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(run, "RESULTS", tmp_path / "results")
    results = small_run()
    written = run.write(results, {"copy_gb_s": 30.0, "fma_gflops": 200.0})
    assert [path.suffix for path in written] == [".json", ".png", ".png"]
    content = json.loads(written[0].read_text())
    assert [result["name"] for result in content["results"]] == [result.name for result in results]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written[1:])

    axes = figures.roofline(content).axes[0]
    drawn = {line.get_label(): line.get_xydata() for line in axes.lines if line.get_marker() != "None"}
    assert set(drawn) == {"ours", "torch eager", "torch folded", "torch in place"}
    chain = content["results"][0]["rows"][0]
    intensity = 3 * 2 * (2 * 8 + 8 * 2) / 8  # three steps; two numbers written
    assert chain["flop_per_byte"] == intensity
    np.testing.assert_allclose(drawn["ours"][0], [intensity, chain["best_rate"]])

    panels = figures.scaling(content).axes
    assert [panel.get_xlabel() for panel in panels] == list(figures.AXES.values())


def test_one_point_of_scaling(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_torch_peers, "TRIAL_SECONDS", 0.001)
    monkeypatch.setattr(_torch_peers.TorchFolded, "chunks", (256,))
    case = scaling.Scaling("width", (8, 16, 1, 1))
    growth = case.measure(quick=True)  # which leaves out the two largest
    assert growth.values == [8, 16]
    assert all(len(seconds) == 2 and min(seconds) > 0 for seconds in growth.seconds.values())
    work = [1e-9 * 4096 * 50 * 2 * (2 * width + width * width + width * 2) for width in (8, 16)]
    assert growth.at_peak[1] / growth.at_peak[0] == pytest.approx(work[1] / work[0])
    assert "steps 50" in str(growth)


def test_loop_by_hand_learns_as_train_does() -> None:
    data = torch.from_numpy(df.datasets.helix_3d(2000, 100).standardised_train).float()
    schedule = df.NoiseSchedule.cosine(df.demo.N_STEPS)
    losses = []
    for fit in (around.Training.ours, around.loop_by_hand):
        torch.manual_seed(0)
        model = df.models.MLPDenoiser(3, (32, 32), "relu", "sinusoidal", df.demo.N_STEPS)
        torch.manual_seed(0)
        fit(model, schedule, data, 100)
        model.eval()
        generator = torch.Generator().manual_seed(2)
        t = torch.randint(len(schedule), (len(data),), generator=generator)
        eps = torch.randn(data.shape, generator=generator)
        abar = schedule.alphas_cumprod[t, None].float()
        with torch.no_grad():
            losses.append(float(((model(abar.sqrt() * data + (1 - abar).sqrt() * eps, t) - eps) ** 2).mean()))
    assert losses[0] == pytest.approx(losses[1], rel=0.1) and max(losses) < 0.6


def test_calls_whose_overhead_is_measured() -> None:
    from benchmarks.call_overhead import calls, microseconds

    for call in calls().values():
        call()
    assert microseconds(lambda: None) < 10
