"""Sampler: what must not go wrong quietly, and memory."""

from __future__ import annotations

import pickle
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from samplers import SCHEDULE, Foreign, make_model
from torch import Tensor, nn

import diffusion_fast as df


@pytest.fixture(autouse=True)
def one_torch_thread() -> None:
    """Torch's products here are too small for two threads; the kernels' threads are asked for by argument."""
    torch.set_num_threads(1)


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


@pytest.mark.parametrize("backend", ["native", "torch"])
def test_rows_that_overflow_in_the_data_s_units_are_named(backend: str) -> None:
    standardiser = df.Standardiser([0.0] * 3, [1.0, 1e38, 1.0])
    sampler = df.Sampler(make_model(), SCHEDULE, backend=backend, standardiser=standardiser)
    plain = df.Sampler(make_model(), SCHEDULE, backend=backend).sample(600)
    bad = torch.isinf((plain * standardiser.std).float()).any(1)
    assert 0 < bad.sum() < 600
    first = int(bad.nonzero()[0])
    for options in ({}, {"return_trajectory": True}):
        with pytest.warns(RuntimeWarning, match=rf"{int(bad.sum())} of 600 samples .*sample {first}, "):
            sampler.sample(600, **options)


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


class WithState(nn.Module):
    """What it computes depends on more than its parameters; it counts its calls, as some do."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(3, 3)
        self.scale, self.kind, self.shift = 1.5, "linear", torch.ones(3)
        self.whole, self.real, self.none = -1, -1.0, None
        self.listed, self.config = [1, 2], {"dim": 3}
        self.numpy, self.pair, self.inside = np.float32(1), (1, -1), (torch.ones(3), "linear")
        self.register_buffer("first", None)
        self.register_buffer("second", torch.ones(3))
        self._calls = 0

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        self._calls += 1
        return self.layer(x) * self.scale + self.shift


def nothing(*given: object) -> None:
    pass


@pytest.mark.parametrize(
    "change",
    [
        lambda model: setattr(model, "scale", 3.0),
        lambda model: setattr(model, "scale", None),
        lambda model: setattr(model, "scale", [1.5]),
        lambda model: setattr(model, "kind", "other"),
        lambda model: model.shift.mul_(2),
        lambda model: setattr(model, "shift", torch.ones(3)),
        lambda model: delattr(model, "shift"),
        lambda model: setattr(model, "whole", -2),  # hash(-1) is hash(-2)
        lambda model: setattr(model, "whole", -(2**70)),
        lambda model: setattr(model, "real", -2.0),
        lambda model: setattr(model, "none", 2.0),
        lambda model: setattr(model, "numpy", np.float32(2)),
        lambda model: setattr(model, "pair", (1, -2)),
        lambda model: model.inside[0].mul_(2),
        lambda model: setattr(model, "new", 2.0),
        lambda model: setattr(model, "forward", lambda x, t: x),
        lambda model: model.layer.register_buffer("new", torch.ones(3)),
        lambda model: model.layer.register_module("new", nn.ReLU()),
        lambda model: vars(model)["_buffers"].update(first=model.second, second=None),
        lambda model: model.register_forward_hook(nothing),
        lambda model: model.layer.register_forward_pre_hook(nothing),
    ],
)
def test_attributes_and_hooks_that_changed_are_noticed(change: Callable[[nn.Module], None]) -> None:
    model = WithState().eval()
    sampler = df.Sampler(model, SCHEDULE, shape=3, steps=3, backend="native")
    model(torch.zeros(2, 3), torch.zeros(2))
    sampler.sample(5)
    change(model)
    with pytest.raises(RuntimeError, match="weights have changed, or an attribute or hook"):
        sampler.sample(5)


def test_what_is_set_to_an_equal_value_is_no_change() -> None:
    model = WithState().eval()
    sampler = df.Sampler(model, SCHEDULE, shape=3, steps=3, backend="native")
    model.scale, model.kind, model.pair, model._calls = (
        float("1.5"),
        "".join(["lin", "ear"]),
        (1, int("-1")),
        9,
    )
    sampler.sample(5)
    df.Sampler(model, SCHEDULE, shape=3, steps=2, backend="native")  # torch.export copies its containers
    sampler.sample(5)


def hook(factor: float) -> Callable[..., torch.Tensor]:
    return lambda module, given, output: factor * output


@pytest.mark.parametrize("backend", ["native", "auto"])
def test_a_hook_in_another_ones_memory_is_noticed(backend: str) -> None:
    model = make_model()
    for factor in range(5):
        handle = model.model[0].register_forward_hook(hook(factor))
        sampler = df.Sampler(model, SCHEDULE, steps=3, backend=backend)
        handle.remove()
        del handle
        handle = model.model[0].register_forward_hook(hook(factor + 10))
        with pytest.raises(RuntimeError, match="attribute or hook"):
            sampler.sample(5)
        handle.remove()


def test_a_model_of_inference_mode() -> None:
    """Its tensors count no writes, and torch.export does not take them; torch does."""
    with torch.inference_mode():
        model = make_model()
    found = [df.Sampler(model, SCHEDULE, steps=3, backend=name).sample(5) for name in ("auto", "torch")]
    torch.testing.assert_close(*found)


@pytest.mark.parametrize("backend", ["native", "auto", "torch"])
def test_a_callers_autocast_does_not_matter(backend: str) -> None:
    model = make_model()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        made_inside = df.Sampler(model, SCHEDULE, steps=3, backend=backend)
        found = made_inside.sample(5)
    made_outside = df.Sampler(model, SCHEDULE, steps=3, backend=backend)
    assert made_inside.plan is None or made_inside.plan.hash == made_outside.plan.hash
    assert torch.equal(found, made_outside.sample(5))


class WithoutTime(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x)


@pytest.mark.parametrize("backend", ["auto", "native", "torch"])
def test_a_model_that_is_called_otherwise(backend: str) -> None:
    model = WithoutTime(3, 3).eval()
    with pytest.raises(ValueError, match=r"model: .*positional argument.*accepted.*module\(x, t\)"):
        df.Sampler(model, SCHEDULE, shape=3, backend=backend)
    model.train()
    with pytest.raises(ValueError, match=r"model: got WithoutTime, .*accepted: one called as module\(x, t\)"):
        df.train(model, SCHEDULE, torch.zeros(8, 3), epochs=1, progress=False)
    assert model.training


class OfAnother(nn.Module):
    def __init__(self, shape: int, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer = nn.Linear(3, shape)
        self.dtype = dtype

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return self.layer(x).to(self.dtype)


@pytest.mark.parametrize("shape, dtype", [(1, torch.float32), (3, torch.float64)])
def test_an_output_of_another_shape_or_dtype(shape: int, dtype: torch.dtype) -> None:
    model = OfAnother(shape, dtype).eval()
    with pytest.raises(ValueError, match=r"model: it returned .*x's shape and dtype"):
        df.Sampler(model, SCHEDULE, shape=3, steps=3)
    out = torch.full((4, 5, 3), 7.0)
    sampler = df.Sampler(model, SCHEDULE, shape=3, steps=3, backend="torch")
    with pytest.raises(ValueError, match=rf"model: got .*{dtype}"):
        sampler.sample(5, out=out, return_trajectory=True)
    assert (out == 7).all()


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
    "make",
    [lambda x: x[:, :1], lambda x: x.double(), lambda x: (x,), lambda x: x.sum(0)],
    ids=["narrow", "float64", "tuple", "summed"],
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


def test_chunks_that_no_memory_holds_are_too_large(sampler: df.Sampler) -> None:
    with pytest.raises(MemoryError, match=r"^chunk_size: .*GiB on the CPU; use a smaller one"):
        next(sampler.stream(1 << 48, chunk_size=1 << 47))
    with pytest.raises(MemoryError, match=r"^n: .*GiB on the CPU; use stream"):
        sampler.sample(1 << 47)


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
