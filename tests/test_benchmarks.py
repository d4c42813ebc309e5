"""That the benchmarks measure what they say: right networks, right chains, right arithmetic."""

from __future__ import annotations

import json
import sys
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
from diffusion_fast import _cpu, _timing, _torch_peers
from diffusion_fast.models.mlp import ACTIVATIONS

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


def test_traffic_of_the_folded_chain_by_hand() -> None:
    model = small_model(hidden=(24, 40))
    n = 64
    floats = 3 + 24 + 2 * 24 + 24 + 40 + 2 * 40 + 40 + 3  # layers read and write, activations in place
    floats += 2 * 3 + 3 * 3 + 3 + 3 * 3  # mul_, add_ of eps, noise written, add_ of noise
    weights = 3 * 24 + 24 * 40 + 40 * 3 + 24 + 40 + 3
    moved = traffic.bytes_per_sample_step(_torch_peers.TorchFolded(model), n)
    assert moved == pytest.approx(4 * (floats + weights / n))


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
