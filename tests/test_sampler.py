"""Sampler: three ways to run one chain, and modules it cannot fuse."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from samplers import N_CLASSES, SCHEDULE, Foreign, T, WithCumsum, assert_close_as_torch, make_model
from torch import Tensor, nn

import diffusion_fast as df
from diffusion_fast import reference


@pytest.fixture(autouse=True)
def one_torch_thread() -> None:
    """Torch's products here are too small for two threads; the kernels' threads are asked for by argument."""
    torch.set_num_threads(1)


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


class WithClasses(nn.Module):
    """Cumulative sums, so not for the kernel; y in 0 .. 3, 3 the null class."""

    def __init__(self) -> None:
        super().__init__()
        self.label = nn.Embedding(4, 2)
        self.net = WithCumsum()

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        return self.net(x + self.label(y), t)


UNFUSED: dict[str, tuple[Callable[[], nn.Module], dict[str, Any], dict[str, Any], str]] = {
    "a CNN": (SmallCNN, {"shape": (1, 8, 8)}, {}, "conv2d"),
    "cumsum": (WithCumsum, {"shape": (2,), "clip": 1.0}, {}, "cumsum"),
    "classes": (WithClasses, {"shape": 2, "n_classes": 3}, {"labels": 1}, "cumsum"),
    "guided": (
        WithClasses,
        {"shape": 2, "n_classes": 3, "guidance_scale": 3.0},
        {"labels": torch.arange(37) % 4},
        "cumsum",
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


class Writes(nn.Module):
    """Computes the same with and without writing to the argument that it is told to write to."""

    def __init__(self, written: str) -> None:
        super().__init__()
        self.written = written
        self.net, self.label = WithCumsum(), nn.Embedding(4, 2)

    def forward(self, x: Tensor, t: Tensor, y: Tensor, context: Tensor) -> Tensor:
        given = {"x": x, "t": t, "y": y, "context": context}
        x, t, y, context = (v if name == self.written else v.clone() for name, v in given.items())
        x.mul_(0.5), t.add_(3), y.bitwise_xor_(1), context.add_(0.25)
        return self.net(x + context + self.label(y), t)


@pytest.mark.parametrize("written", ["x", "t", "y", "context"])
def test_what_a_module_writes_to_its_arguments_changes_no_other_call(written: str) -> None:
    options = {"shape": 2, "n_classes": 3, "context_shape": 2, "null_context": 0.0, "guidance_scale": 2.0}
    modules = Writes(written).eval(), Writes("").eval()
    modules[1].load_state_dict(modules[0].state_dict())
    writes, clean = (df.Sampler(module, SCHEDULE, steps=4, **options) for module in modules)
    assert f"writes to its argument {written}" in writes.explain()
    for n in (1, 5):
        context = torch.ones(n, 2)
        for labels, given in ((2, context), (torch.full((n,), 2), context[0])):
            want = clean.sample(n, labels=labels, context=given)
            for _ in range(2):
                assert torch.equal(writes.sample(n, labels=labels, context=given), want)
        assert torch.equal(context, torch.ones(n, 2))


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
