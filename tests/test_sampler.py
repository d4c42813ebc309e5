"""Sampler: three ways to run one chain, what it promises of determinism, and modules it cannot fuse."""

from __future__ import annotations

import itertools
import math
import pickle
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import diffusion_fast as df
from diffusion_fast import _checks, reference
from diffusion_fast.torch_chain import MODULE_CHUNK

T = 40
SCHEDULE = df.NoiseSchedule.linear(n_steps=T, beta_start=1e-3, beta_end=0.15)
N_CLASSES = 4


def make_model(n_classes: int | None = None, dim: int = 3, **options: Any) -> df.models.MLPDenoiser:
    options = {
        "hidden": (32, 24),
        "activation": "silu",
        "time_embedding": "sinusoidal",
        "n_steps": T,
    } | options
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return df.models.MLPDenoiser(dim, n_classes=n_classes, **options).eval()


@pytest.fixture(autouse=True)
def one_torch_thread() -> None:
    """Torch's products here are too small for two threads; the kernels' threads are asked for by argument."""
    torch.set_num_threads(1)


@pytest.fixture(scope="module")
def sampler() -> df.Sampler:
    return df.Sampler(make_model(), SCHEDULE, backend="native")


@pytest.fixture(scope="module")
def conditional() -> df.Sampler:
    return df.Sampler(make_model(N_CLASSES), SCHEDULE, backend="native")


def assert_close_as_torch(ours: Tensor, theirs: Tensor, exact: Tensor) -> None:
    """|ours - float64| <= 2 |theirs - float64| + 4 ulp of the rms, by rms and by the 99.9th percentile."""
    rms = exact.square().mean().sqrt().item()
    slack = 4 * torch.finfo(torch.float32).eps * 2.0 ** math.floor(math.log2(rms))
    a, b = ((value.double() - exact).abs().flatten() for value in (ours, theirs))
    assert a.square().mean().sqrt() <= 2 * b.square().mean().sqrt() + slack
    assert a.quantile(0.999) <= 2 * b.quantile(0.999) + slack


# ---- native, torch and the interpreter of the plan are one chain

SOLVERS: dict[str, dict[str, Any]] = {
    "ddpm": {},
    "ddpm, variance beta": {"variance": "beta"},
    "ddpm, noise at the last row": {"variance": "beta", "last_noise": True},
    "ddpm, leading": {"steps": 13, "spacing": "leading"},
    "ddpm, trailing": {"steps": 13, "spacing": "trailing"},
    "ddpm, linspace": {"steps": 13, "spacing": "linspace"},
    "ddpm, a list": {"timesteps": [39, 22, 21, 3]},
    "ddpm, clamped": {"clip": 1.0},
    "ddpm of x0": {"prediction_type": "sample"},
    "ddpm of v": {"prediction_type": "v_prediction", "variance": "beta"},
    "ddim": {"solver": "ddim"},
    "ddim, eta": {"solver": "ddim", "eta": 0.6},
    "ddim, trailing": {"solver": "ddim", "steps": 10, "spacing": "trailing"},
    "ddim, clamped": {"solver": "ddim", "eta": 0.3, "clip": 0.7},
    "ddim of v": {"solver": "ddim", "prediction_type": "v_prediction", "eta": 1.0},
    "ddim of x0, clamped": {"solver": "ddim", "prediction_type": "sample", "clip": 0.7},
}


def check_all_agree(model: nn.Module, labels: Any = None, n: int = 403, **options: Any) -> None:
    native = df.Sampler(model, SCHEDULE, backend="native", **options)
    assert native.plan is not None
    y = native.n_classes if labels is None and native.n_classes else labels
    exact = reference.run(native.plan, n, seed=9, start=17, labels=y, dtype=torch.float64).view(
        n, *native.shape
    )
    twin = reference.run(native.plan, n, seed=9, start=17, labels=y).view(n, *native.shape)
    with_torch = df.Sampler(model, SCHEDULE, backend="torch", **options).sample(
        n, seed=9, start=17, labels=labels
    )
    got = native.sample(n, seed=9, start=17, labels=labels)
    assert_close_as_torch(got, with_torch, exact)
    assert_close_as_torch(got, twin, exact)
    # The module and its plan are the same function; their float32 errors are of one size.
    assert_close_as_torch(with_torch, twin, exact)


@pytest.mark.parametrize("name", SOLVERS)
def test_native_torch_and_reference_agree(name: str) -> None:
    check_all_agree(make_model(), **SOLVERS[name])


def test_zero_terminal_snr() -> None:
    schedule = SCHEDULE.zero_terminal_snr()
    options: dict[str, Any] = {"prediction_type": "v_prediction", "steps": 10, "spacing": "trailing"}
    got, want = (
        df.Sampler(make_model(), schedule, backend=backend, **options).sample(100)
        for backend in ("native", "torch")
    )
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


LABELS: dict[str, Any] = {
    "an int": 2,
    "the null class": N_CLASSES,
    "none": None,
    "a tensor": torch.arange(403) % (N_CLASSES + 1),
    "an array": np.arange(403, dtype=np.int32) % N_CLASSES,
    "a list": [0, 3] * 201 + [1],
}


GUIDANCE: list[dict[str, float]] = [{}, {"guidance_scale": 2.5}, {"guidance_weight": 0.5, "clip": 1.0}]


@pytest.mark.parametrize("labels", LABELS.values(), ids=list(LABELS))
@pytest.mark.parametrize("guidance", GUIDANCE, ids=str)
def test_conditional_models_agree(labels: Any, guidance: dict[str, float]) -> None:
    if guidance and labels is None:
        labels = N_CLASSES  # a guided sampler wants to be told
    check_all_agree(make_model(N_CLASSES), labels, solver="ddim", steps=8, eta=0.5, **guidance)


def test_every_label_gets_its_own_samples(conditional: df.Sampler) -> None:
    labels = torch.tensor([0, 1, 2, 3, 4, 3, 2])
    mixed = conditional.sample(7, seed=2, labels=labels)
    for i, label in enumerate(labels.tolist()):
        assert torch.equal(mixed[i : i + 1], conditional.sample(1, seed=2, start=i, labels=label))
    assert torch.equal(conditional.sample(5), conditional.sample(5, labels=N_CLASSES))
    assert not torch.equal(mixed, conditional.sample(7, seed=2, labels=0))


def test_guidance_scale_and_weight_are_one_thing() -> None:
    model = make_model(N_CLASSES)
    by_scale, by_weight, plain = (
        df.Sampler(model, SCHEDULE, backend="native", **options).sample(20, labels=1)
        for options in ({"guidance_scale": 2.5}, {"guidance_weight": 1.5}, {})
    )
    assert torch.equal(by_scale, by_weight) and not torch.equal(by_scale, plain)
    for neutral in ({"guidance_scale": 1.0}, {"guidance_weight": 0.0}):
        same = df.Sampler(model, SCHEDULE, backend="native", **neutral).sample(20, labels=1)
        torch.testing.assert_close(same, plain, rtol=1e-4, atol=1e-5)
    null = df.Sampler(model, SCHEDULE, backend="native", guidance_scale=0.0).sample(20, labels=1)
    unlabelled = df.Sampler(model, SCHEDULE, backend="native").sample(20)
    torch.testing.assert_close(null, unlabelled, rtol=1e-4, atol=1e-5)


# ---- modules of other people


class Foreign(nn.Module):
    """An nn.Sequential over x beside the time that it was trained on, whatever that is."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(5)
        self.net = nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2))
        self.seen: list[float] = []

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        if not torch.compiler.is_compiling():
            self.seen.append(float(t[0]))
        time = t.to(torch.float32)[:, None] / 10
        return self.net(torch.cat([x, time.sin(), time.cos(), time], dim=1))


def sigma(t: Tensor) -> Tensor:
    abar = SCHEDULE.alphas_cumprod[t]
    return ((1 - abar) / abar).sqrt()


TIMES: dict[str, Callable[[Tensor], Tensor]] = {
    "index": lambda t: t,
    "index1": lambda t: t + 1,
    "unit": lambda t: (t + 1) / T,
    "sigma": sigma,
    "log_sigma/4": lambda t: sigma(t).log() / 4,
}


@pytest.mark.parametrize("time_input", TIMES)
def test_a_foreign_module_gets_the_time_it_wants(time_input: str) -> None:
    model = Foreign().eval()
    options: dict[str, Any] = {
        "shape": (2,),
        "time_input": time_input,
        "solver": "ddim",
        "steps": 8,
        "eta": 1.0,
    }
    by_torch = df.Sampler(model, SCHEDULE, backend="torch", **options)
    model.seen.clear()
    want = by_torch.sample(200, seed=4)
    times = TIMES[time_input](torch.from_numpy(by_torch.table.timesteps.copy()))
    np.testing.assert_allclose(model.seen, times, rtol=1e-6)
    native = df.Sampler(model, SCHEDULE, backend="native", **options)
    torch.testing.assert_close(native.sample(200, seed=4), want, rtol=1e-4, atol=2e-5)


class SmallCNN(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.conv2 = nn.Conv2d(1, 4, 3, padding=1), nn.Conv2d(4, 1, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.conv2(torch.relu(self.conv1(x) + (t / T)[:, None, None, None]))


class WithLayerNorm(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 16), nn.LayerNorm(16), nn.SiLU(), nn.Linear(16, 2))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.net(torch.cat([x, t[:, None] / T], dim=1))


class WithClasses(nn.Module):
    """Normalised, so not for the kernel; y in 0 .. 3, 3 the null class."""

    def __init__(self) -> None:
        super().__init__()
        self.label = nn.Embedding(4, 2)
        self.net = WithLayerNorm()

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return self.net(x + self.label(y), t)


UNFUSED: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], dict[str, Any], str]] = {
    "a CNN": (SmallCNN, {"shape": (1, 8, 8)}, {}, "conv2d"),
    "layer norm": (WithLayerNorm, {"shape": (2,), "clip": 1.0}, {}, "layer_norm"),
    "classes": (WithClasses, {"shape": 2, "n_classes": 3}, {"labels": 1}, "layer_norm"),
    "guided": (
        WithClasses,
        {"shape": 2, "n_classes": 3, "guidance_scale": 3.0},
        {"labels": torch.arange(37) % 4},
        "layer_norm",
    ),
    "too wide": (lambda: make_model(dim=300, hidden=(8,)), {}, {}, "256"),
}


@pytest.mark.parametrize("name", UNFUSED)
def test_what_cannot_be_fused_runs_in_torch_with_the_fused_step(name: str) -> None:
    make, plan_time, call_time, reason = UNFUSED[name]
    torch.manual_seed(1)
    model = make().eval()
    auto = df.Sampler(model, SCHEDULE, **plan_time)
    assert auto.plan is None and "torch" in auto.explain() and reason in auto.explain()
    with pytest.raises(df.CaptureError, match=reason):
        df.Sampler(model, SCHEDULE, backend="native", **plan_time)
    by_torch = df.Sampler(model, SCHEDULE, backend="torch", **plan_time)
    got = auto.sample(37, seed=6, start=4, return_trajectory=True, **call_time)
    want = by_torch.sample(37, seed=6, start=4, return_trajectory=True, **call_time)
    assert got.shape == (T + 1, 37, *auto.shape)
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    assert torch.equal(got[-1], auto.sample(37, seed=6, start=4, **call_time))
    again = pickle.loads(pickle.dumps(auto))
    assert torch.equal(again.sample(37, seed=6, start=4, **call_time), got[-1])


def test_explain_of_a_fused_model(conditional: df.Sampler) -> None:
    text = conditional.explain()
    for part in ("native", "ddpm", "step table", "class", "silu", "MLPDenoiser"):
        assert part in text


def test_capture_can_be_declined() -> None:
    plain = df.Sampler(make_model(), SCHEDULE, backend="torch")
    assert plain.plan is None and "torch" in plain.explain()


def test_normal_use_is_silent(recwarn: pytest.WarningsRecorder) -> None:
    torch.set_warn_always(True)  # else torch shows some warnings only to the first caller in a process
    try:
        for backend in ("native", "torch", "auto"):
            model = df.Sampler(make_model(N_CLASSES), SCHEDULE, backend=backend, steps=4)
            model.sample(3, labels=np.array([0, 1, 2]))
    finally:
        torch.set_warn_always(False)
    assert [str(w.message) for w in recwarn] == []


# ---- determinism


@pytest.mark.parametrize("dim", [1, 2, 3, 20])
def test_any_split_has_the_same_bits(dim: int) -> None:
    sampler = df.Sampler(make_model(dim=dim), SCHEDULE, backend="native", steps=10)
    whole = sampler.sample(300, seed=7, start=1000)
    for cuts in ([0, 1, 2, 5, 16, 33, 100, 299, 300], list(range(0, 301, 60))):
        parts = [sampler.sample(j - i, seed=7, start=1000 + i) for i, j in itertools.pairwise(cuts)]
        assert torch.equal(torch.cat(parts), whole)
    for size in (1, 7, 64, 299, 1 << 18):
        chunks = list(sampler.stream(300, size, seed=7, start=1000))
        assert max(map(len, chunks)) <= size and torch.equal(torch.cat(chunks), whole)
    for threads in (1, 2, 3, 16):
        assert torch.equal(sampler.sample(300, seed=7, start=1000, threads=threads), whole)


def test_the_environment_sets_the_threads(sampler: df.Sampler, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = sampler.sample(100)
    monkeypatch.setenv("DIFFUSION_FAST_THREADS", "3")
    assert torch.equal(sampler.sample(100), whole)
    monkeypatch.setenv("DIFFUSION_FAST_THREADS", "many")
    with pytest.raises(ValueError, match=r"DIFFUSION_FAST_THREADS: got 'many'.*accepted: an integer"):
        sampler.sample(100)


def test_seed_and_start_name_the_samples(sampler: df.Sampler) -> None:
    draws = [
        sampler.sample(4, seed=seed, start=start) for seed in (0, 1, 2**32, 2**64 - 1) for start in (0, 2**32)
    ]
    draws.append(sampler.sample(4, start=2**48 - 4))
    rows = torch.cat(draws)
    assert len(rows.unique(dim=0)) == len(rows) == 36  # all different
    assert torch.equal(sampler.sample(4), draws[0])


def test_a_generator_gives_one_seed_per_call(sampler: df.Sampler) -> None:
    generators = [torch.Generator().manual_seed(3) for _ in range(3)]
    first = [sampler.sample(5, seed=g) for g in generators[:2]]
    assert torch.equal(*first) and not torch.equal(first[0], sampler.sample(5, seed=generators[0]))
    streamed = torch.cat(list(sampler.stream(5, 2, seed=generators[2])))
    assert torch.equal(streamed, first[0])
    seeds = {_checks.seed("seed", generators[0]) for _ in range(20)}
    assert len(seeds) == len({s >> 32 for s in seeds}) == len({s % 2**32 for s in seeds}) == 20  # all 64 bits


def test_stream_slices_labels(conditional: df.Sampler) -> None:
    labels = torch.arange(50) % 5
    whole = conditional.sample(50, seed=1, labels=labels)
    assert torch.equal(torch.cat(list(conditional.stream(50, 7, seed=1, labels=labels))), whole)


@pytest.mark.parametrize("labels", [1, torch.arange(20) % 5], ids=["an int", "a tensor"])
def test_stream_with_guidance(labels: Any) -> None:
    guided = df.Sampler(make_model(N_CLASSES), SCHEDULE, backend="native", steps=4, guidance_scale=2.0)
    assert torch.equal(torch.cat(list(guided.stream(20, 7, labels=labels))), guided.sample(20, labels=labels))


def test_one_sampler_in_two_threads(conditional: df.Sampler) -> None:
    jobs = [(200 + 13 * i, i % 3, 50 * i, i % 5) for i in range(24)]

    def draw(job: tuple[int, int, int, int]) -> Tensor:
        n, seed, start, label = job
        return conditional.sample(n, seed=seed, start=start, labels=label)

    with ThreadPoolExecutor(2) as pool:
        together = list(pool.map(draw, jobs))
    assert all(torch.equal(got, draw(job)) for got, job in zip(together, jobs, strict=True))


@pytest.mark.parametrize("guidance", [None, 2.0])
def test_pickle(guidance: float | None) -> None:
    standardiser = df.Standardiser([1.0, -2.0, 0.5], [2.0, 0.1, 1.0])
    sampler = df.Sampler(
        make_model(N_CLASSES), SCHEDULE, guidance_scale=guidance, clip=2.0, standardiser=standardiser
    )
    again = pickle.loads(pickle.dumps(sampler))
    assert torch.equal(again.sample(33, seed=2, labels=1), sampler.sample(33, seed=2, labels=1))
    assert again.explain() == sampler.explain() and again.plan == sampler.plan


# ---- what a call takes and gives


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("dim", [1, 2, 3])
def test_start_values_and_noise_of_ones_own(backend: str, dim: int) -> None:
    """Given what the stream would have drawn, the samples are those of the stream, to the bit."""
    sampler = df.Sampler(make_model(dim=dim), SCHEDULE, backend=backend, steps=9)
    want = sampler.sample(21, seed=5, start=3, return_trajectory=True)
    x_T = df.noise.normal(21, dim, seed=5, step=0, purpose="initial", start=3)
    noise = torch.stack([df.noise.normal(21, dim, seed=5, step=i, start=3) for i in range(9)])
    assert torch.equal(want[0], x_T)
    for given in ({"x_T": x_T}, {"noise": noise}, {"x_T": x_T, "noise": noise}):
        assert torch.equal(sampler.sample(21, seed=5, start=3, return_trajectory=True, **given), want)
    assert torch.equal(sampler.sample(21, seed=8, x_T=x_T, noise=noise), want[-1])
    strided = torch.stack([x_T, x_T], dim=-1)[..., 0]
    assert not strided.is_contiguous() and torch.equal(
        sampler.sample(21, seed=5, start=3, x_T=strided), want[-1]
    )


def test_the_trajectory_is_the_chain_row_by_row(sampler: df.Sampler) -> None:
    path = sampler.sample(10, seed=1, return_trajectory=True)
    assert path.shape == (T + 1, 10, 3) and torch.equal(path[-1], sampler.sample(10, seed=1))
    with torch.no_grad():
        for i, row in enumerate(sampler.table):
            F = sampler.model(path[i], torch.full((10,), int(row.timestep)))
            want = df.ops.reverse_step(path[i], F, row, seed=1, step=i)
            torch.testing.assert_close(path[i + 1], want, rtol=1e-5, atol=1e-6)


def test_torch_takes_large_batches_in_parts() -> None:
    """More samples than one call of the module takes: each keeps its own noise and label."""
    model, n = make_model(N_CLASSES, hidden=(8,)), 2 * MODULE_CHUNK + 40
    labels, x_T = torch.arange(n) % 5, torch.randn(n, 3)
    want, got = (
        df.Sampler(model, SCHEDULE, backend=backend, steps=3).sample(n, labels=labels, x_T=x_T, start=9)
        for backend in ("native", "torch")
    )
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("trajectory", [False, True])
def test_out(backend: str, trajectory: bool) -> None:
    sampler = df.Sampler(make_model(), SCHEDULE, backend=backend, steps=5)
    want = sampler.sample(19, seed=3, return_trajectory=trajectory)
    memory = torch.full((want.numel() + 8,), 7.0)
    inside = memory[4:-4].view(want.shape)
    assert sampler.sample(19, seed=3, return_trajectory=trajectory, out=inside) is inside
    assert torch.equal(inside, want) and torch.equal(memory[:4], memory[-4:]) and memory[-1] == 7
    array = np.zeros(want.shape, np.float32)
    got = sampler.sample(19, seed=3, return_trajectory=trajectory, out=array)
    assert np.array_equal(array, want.numpy()) and got.data_ptr() == array.ctypes.data


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_no_samples(backend: str) -> None:
    sampler = df.Sampler(make_model(N_CLASSES), SCHEDULE, backend=backend, steps=5)
    assert sampler.sample(0).shape == (0, 3)
    assert sampler.sample(0, labels=torch.empty(0, dtype=torch.int64), start=2**48).shape == (0, 3)
    assert sampler.sample(0, return_trajectory=True).shape == (6, 0, 3)
    assert list(sampler.stream(0)) == []


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_the_standardiser_is_undone(backend: str) -> None:
    standardiser = df.Standardiser([10.0, -2.0, 0.5], [2.0, 0.1, 1.0])
    plain = df.Sampler(make_model(), SCHEDULE, backend=backend, steps=5)
    sampler = df.Sampler(make_model(), SCHEDULE, backend=backend, steps=5, standardiser=standardiser)
    want = standardiser.inverse(plain.sample(10_000))
    assert torch.equal(sampler.sample(10_000), want)
    out = np.empty((10_000, 3), np.float32)
    sampler.sample(10_000, out=out)
    assert np.array_equal(out, want.numpy())
    assert torch.equal(torch.cat(list(sampler.stream(10_000, 3333))), want) or backend == "torch"
    assert torch.equal(sampler.sample(8, return_trajectory=True)[-1], sampler.sample(8))


def test_sample_splits_the_options() -> None:
    model = make_model(N_CLASSES)
    plan_time: dict[str, Any] = {
        "solver": "ddim",
        "steps": 6,
        "eta": 0.5,
        "backend": "native",
        "guidance_weight": 1.0,
    }
    call_time: dict[str, Any] = {"seed": 3, "start": 5, "labels": 2, "return_trajectory": True, "threads": 1}
    got = df.sample(model, SCHEDULE, 12, **plan_time, **call_time)
    assert torch.equal(got, df.Sampler(model, SCHEDULE, **plan_time).sample(12, **call_time))
    out = torch.empty(12, 3)
    assert df.sample(model, SCHEDULE, 12, labels=0, out=out, steps=4) is out


@pytest.mark.parametrize("backend", ["native", "auto", "torch"])
def test_progress(backend: str, capfd: pytest.CaptureFixture[str]) -> None:
    model = make_model() if backend != "auto" else WithLayerNorm().eval()
    sampler = df.Sampler(model, SCHEDULE, backend=backend, shape=3 if backend != "auto" else 2, steps=4)
    quiet = sampler.sample(20_000)
    assert capfd.readouterr().err == ""
    assert torch.equal(sampler.sample(20_000, progress=True), quiet)
    shown = capfd.readouterr().err
    assert "100%" in shown and "20.0k" in shown and "sample" in shown


# ---- what must not go wrong quietly


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_rows_that_overflow_are_named(backend: str) -> None:
    sampler = df.Sampler(make_model(), SCHEDULE, backend=backend)
    x_T = torch.randn(600, 3)
    want = sampler.sample(600, x_T=x_T, start=100)
    x_T[[5, 571], 1] = 3e38  # a > 1 in every row: beyond float32
    with pytest.warns(RuntimeWarning, match=r"2 of 600 samples .*sample 105, 671 ") as caught:
        got = sampler.sample(600, x_T=x_T, start=100)
    assert caught[0].filename == __file__
    good = torch.ones(600, dtype=torch.bool)
    good[[5, 571]] = False
    assert torch.equal(got[good], want[good]) and not got[~good].isfinite().all(1).any()
    x_T[:, 0] = 3e38
    with pytest.warns(RuntimeWarning, match=r"600 of 600 .*sample 0, 1, 2, .*\.\.\."):
        sampler.sample(600, x_T=x_T)


def change_in_place(model: nn.Module) -> None:
    with torch.no_grad():
        model.get_parameter("model.0.weight").mul_(1.5)


def change_a_tensor(model: nn.Module) -> None:
    model.get_submodule("model.2").bias = nn.Parameter(torch.zeros(24))


def change_by_loading(model: nn.Module) -> None:
    model.load_state_dict({name: value + 1 for name, value in model.state_dict().items()})


@pytest.mark.parametrize("change", [change_in_place, change_a_tensor, change_by_loading])
def test_weights_that_changed_are_noticed(change: Callable[[nn.Module], None]) -> None:
    model = make_model()
    sampler = df.Sampler(model, SCHEDULE, steps=3)
    before = sampler.sample(5)
    change(model)
    out = torch.full((5, 3), 7.0)
    for call in (lambda: sampler.sample(5, out=out), lambda: sampler.stream(5), lambda: sampler.sample(0)):
        with pytest.raises(RuntimeError, match=r"model: its weights have changed.*make a new Sampler"):
            call()
    assert (out == 7).all()
    assert not torch.equal(df.Sampler(model, SCHEDULE, steps=3).sample(5), before)


def test_weights_that_changed_before_pickling_are_noticed() -> None:
    model = make_model()
    sampler = df.Sampler(model, SCHEDULE, steps=3)
    change_in_place(model)
    with pytest.raises(RuntimeError, match="model: its weights have changed"):
        pickle.loads(pickle.dumps(sampler)).sample(5)


def test_train_mode_is_refused(sampler: df.Sampler) -> None:
    model = make_model()
    later = df.Sampler(model, SCHEDULE, steps=3)
    model.train()
    for call in (lambda: df.Sampler(model, SCHEDULE), lambda: later.sample(1), lambda: later.stream(1)):
        with pytest.raises(ValueError, match=r"model: got .*train mode.*accepted: .*model\.eval\(\)"):
            call()


class WithDropout(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer, self.dropout = nn.Linear(2, 2), nn.Dropout(0.5)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.dropout(self.layer(x))


@pytest.mark.parametrize("backend", ["native", "auto", "torch"])
def test_a_part_in_train_mode_is_refused(backend: str) -> None:
    model = WithDropout().eval()
    model.dropout.train()
    with pytest.raises(ValueError, match=r"model: got .*train mode.*accepted: .*model\.eval\(\)"):
        df.Sampler(model, SCHEDULE, shape=2, backend=backend).sample(3)


class Returns(nn.Module):
    """Returns whatever `make` makes of x."""

    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.make = make

    def forward(self, x: Tensor, t: Tensor) -> Any:
        return self.make(x)


@pytest.mark.parametrize("backend", ["native", "auto", "torch"])
@pytest.mark.parametrize(
    "make", [lambda x: x[:, :1], lambda x: x.double(), lambda x: (x,), lambda x: x.sum(0)], ids=str
)
def test_a_module_that_returns_something_else_is_refused(backend: str, make: Callable[[Tensor], Any]) -> None:
    """A column would broadcast, a float64 result would be rounded: neither may pass unseen."""
    out = torch.full((3, 2), 7.0)
    with pytest.raises((ValueError, TypeError), match=r"^model"):
        df.Sampler(Returns(make).eval(), SCHEDULE, shape=2, backend=backend).sample(3, out=out)
    assert (out == 7).all()


@pytest.mark.parametrize("backend", ["native", "auto", "torch"])
def test_a_time_that_is_infinite_is_refused(backend: str) -> None:
    with pytest.raises(ValueError, match=r"time_input: got 'sigma'.*finite"):
        df.Sampler(
            Foreign().eval(),
            SCHEDULE.zero_terminal_snr(),
            shape=2,
            backend=backend,
            time_input="sigma",
            prediction_type="v_prediction",
        )


@pytest.mark.parametrize("name", ["table", "shape", "model", "plan", "anything"])
def test_a_sampler_does_not_change(name: str) -> None:
    sampler = df.Sampler(make_model(), SCHEDULE, backend="torch")
    with pytest.raises(AttributeError, match="immutable"):
        setattr(sampler, name, None)


def test_random_state_is_left_alone(sampler: df.Sampler) -> None:
    before = torch.get_rng_state()
    df.Sampler(sampler.model, SCHEDULE, steps=3).sample(10)
    df.Sampler(sampler.model, SCHEDULE, steps=3, backend="torch").sample(10)
    assert torch.equal(torch.get_rng_state(), before)


# ---- memory

MEMORY = """
import diffusion_fast as df

def peak():  # of this program alone; getrusage would begin with the peak of the parent
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) / 1024

model = df.models.MLPDenoiser(2, (8,), time_dim=2, n_steps=4).eval()
schedule = df.NoiseSchedule.constant(4, 0.1)
standardiser = df.Standardiser([1.0, 2.0], [3.0, 4.0])
samplers = [df.Sampler(model, schedule, steps=2, standardiser=s) for s in (None, standardiser)]
for sampler in samplers:
    sampler.sample(1 << 18)
start = peak()
for sampler in samplers:
    assert sum(len(chunk) for chunk in sampler.stream(10_000_000)) == 10_000_000
streamed = peak()
for sampler in samplers:
    sampler.sample(10_000_000)
print(streamed - start, peak() - streamed)
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads the peak of memory from /proc")
def test_memory_is_the_output_and_little_more() -> None:
    """10,000,000 x 2 float32 are 76.3 MiB; with a standardiser, which is undone piece by piece, no more."""
    done = subprocess.run([sys.executable, "-c", MEMORY], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    streamed, whole = map(float, done.stdout.split())
    assert streamed < 16
    # The kernel writes every page of the output; less would mean that nothing was measured.
    assert 40 < whole < 76.3 + 64


# ---- the exact law

MEAN, DEVIATION = np.array([1.5, -0.7]), np.array([0.6, 2.0])
FALSE_ALARM = 5.0  # standard deviations


class ExactVelocity(nn.Module):
    """E[v | x_t] for data N(MEAN, I): -sqrt(1 - abar) MEAN whatever x is, so that it can be fused."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 2, bias=False)
        nn.init.zeros_(self.layer.weight)
        noise = (1 - SCHEDULE.alphas_cumprod).sqrt()
        self.table = nn.Embedding.from_pretrained((-noise[:, None] * torch.from_numpy(MEAN)).float())

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.layer(x) + self.table(t)


class ExactNoise(nn.Module):
    """E[eps | x_t] for data N(MEAN, DEVIATION^2): x times a function of t, which no tile program has."""

    def __init__(self) -> None:
        super().__init__()
        abar = SCHEDULE.alphas_cumprod[:, None]
        slope = (1 - abar).sqrt() / (abar * torch.from_numpy(DEVIATION) ** 2 + 1 - abar)
        self.slope = nn.Embedding.from_pretrained(slope.float())
        self.shift = nn.Embedding.from_pretrained((-slope * abar.sqrt() * torch.from_numpy(MEAN)).float())

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.slope(t) * x + self.shift(t)


def exact_law(deviation: np.ndarray, eta: float) -> tuple[np.ndarray, np.ndarray]:
    """Mean and variance of the samples, from N(0, 1) on: every row is affine in x, plus independent noise.

    Song et al. 2020, eq. 12 and 16, with x0 and eps replaced by their expectations given x_t.
    """
    abar = np.append(SCHEDULE.alphas_cumprod.numpy(), 1.0)  # index -1: the data
    mean, variance = np.zeros(2), np.ones(2)
    for t in reversed(range(T)):
        now, before = abar[t], abar[t - 1]
        sigma = eta * np.sqrt((1 - before) / (1 - now) * (1 - now / before))
        gain = 1 / (now * deviation**2 + 1 - now)
        x0 = np.sqrt(now) * deviation**2 * gain  # E[x0 | x] = MEAN + x0 (x - sqrt(now) MEAN)
        eps = np.sqrt(1 - now) * gain
        direction = np.sqrt(1 - before - sigma**2)
        slope = np.sqrt(before) * x0 + direction * eps
        mean = np.sqrt(before) * MEAN + slope * (mean - np.sqrt(now) * MEAN)
        variance = slope**2 * variance + sigma**2
    return mean, variance


@pytest.mark.parametrize(
    "solver", [{"solver": "ddpm"}, {"solver": "ddim", "eta": 0.5}, {"solver": "ddim"}], ids=str
)
@pytest.mark.parametrize("fused", [True, False])
def test_samples_of_a_gaussian_have_its_exact_law(fused: bool, solver: dict[str, Any]) -> None:
    """Mean and variance of 100,000 samples within 5 standard errors of the closed form.

    By chance one of the 24 comparisons would be off in 1.4e-5 of the seeds. (ddpm is ddim with eta = 1.)
    """
    n = 100_000
    model, kind = (ExactVelocity(), "v_prediction") if fused else (ExactNoise(), "epsilon")
    sampler = df.Sampler(model.eval(), SCHEDULE, shape=2, prediction_type=kind, **solver)
    assert (sampler.plan is not None) == fused
    x = sampler.sample(n, seed=20).double().numpy()
    mean, variance = exact_law(
        np.ones(2) if fused else DEVIATION, solver.get("eta", 1.0 if solver["solver"] == "ddpm" else 0.0)
    )
    assert (np.abs(x.mean(0) - mean) < FALSE_ALARM * np.sqrt(variance / n)).all()
    assert (np.abs(x.var(0) / variance - 1) < FALSE_ALARM * np.sqrt(2 / n)).all()
    # two independent elements: the correlation of n pairs has standard error 1 / sqrt(n)
    assert abs(np.corrcoef(x.T)[0, 1]) < FALSE_ALARM / np.sqrt(n)
