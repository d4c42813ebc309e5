"""Capture: a module and its tile program compute the same."""

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf
from capture_nets import SCHEDULE, STEPS, ULP, Net
from nets import ForeignNet, foreign_net
from torch import Tensor, nn

from diffusion_fast import reference
from diffusion_fast.capture import capture
from diffusion_fast.models.mlp import ACTIVATIONS, MLPDenoiser
from diffusion_fast.plan import TileProgram


def inputs(dim: int, n_classes: int, n: int = 200) -> tuple[Tensor, Tensor, Tensor]:
    """x, table index and label for n rows."""
    return torch.randn(n, dim), torch.randint(0, len(STEPS), (n,)), torch.randint(0, max(n_classes, 1), (n,))


def assert_equals_module(program: TileProgram, module: nn.Module, n_classes: int = 0) -> None:
    """|program - float64 module| <= 2 |float32 module - float64 module| + 4 ulp of the rms."""
    x, table, y = inputs(program.dim, n_classes)
    t = torch.tensor(STEPS)[table]
    args = [t, y][: 2 if n_classes else 1]
    with torch.no_grad():
        exact = copy.deepcopy(module).double()(x.double(), *args)
        plain = module(x, *args)
    got = reference.net(program, x, table, y)
    rms = exact.square().mean().sqrt()
    assert (got - exact).abs().max() <= 2 * (plain - exact).abs().max() + 4 * ULP * rms
    # In float64 only the rounding of the folded tables is left.
    wide = reference.net(program, x.double(), table, y)
    assert (wide - exact).abs().max() <= 2 * (plain - exact).abs().max() + 4 * ULP * rms


@pytest.mark.parametrize("embedding", ["learned", "sinusoidal", "table", "scalar"])
@pytest.mark.parametrize("n_classes", [None, 3])
def test_our_models(embedding: str, n_classes: int | None) -> None:
    model = MLPDenoiser(3, (24, 17), "tanh", embedding, 20, time_dim=5, n_classes=n_classes).eval()
    rows = 0 if n_classes is None else n_classes + 1
    program = capture(model, (3,), STEPS, rows, SCHEDULE)
    assert_equals_module(program, model, rows)
    first, second, last = program.ops
    assert (program.dim, program.n_tables, program.n_classes, program.out_value) == (3, 10, rows, 3)
    assert first.weight.shape == (24, 3) and first.bias is None
    assert first.step_table is not None and first.step_table.shape == (10, 24)
    assert first.class_table is None if n_classes is None else first.class_table.shape == (4, 24)
    assert second.step_table is None and second.bias is not None and second.activation == "tanh"
    assert last.activation == "identity"
    np.testing.assert_array_equal(second.weight, model.model[2].weight.detach().numpy())
    lines = "\n".join(program.explain)
    assert "run once, for all steps" in lines and "step table 10 x 24" in lines and "tanh fused" in lines
    assert ("class table 4 x 24" in lines) == (n_classes is not None)


def test_a_model_with_classes_but_without_labels() -> None:
    model = MLPDenoiser(2, (8,), n_steps=20, n_classes=3).eval()
    program = capture(model, (2,), STEPS, 0, SCHEDULE)
    assert program.n_classes == 0 and program.ops[0].class_table is None
    assert_equals_module(program, model)


@pytest.mark.parametrize("name", sorted(ACTIVATIONS))
def test_activations(name: str) -> None:
    model = MLPDenoiser(2, (16,), name, "table", 20).eval()
    program = capture(model, (2,), STEPS, 0, SCHEDULE)
    assert program.ops[0].activation == name
    assert program.ops[0].act_param == pytest.approx({"leaky_relu": 0.01, "elu": 1.0}.get(name, 0.0))
    assert_equals_module(program, model)


@pytest.mark.parametrize("fold", ForeignNet.FOLDS)
@pytest.mark.parametrize("n_classes", [0, 3])
@pytest.mark.parametrize("seed", range(2))
def test_foreign_modules(fold: str, n_classes: int, seed: int) -> None:
    module = foreign_net(seed, n_classes, fold)
    assert_equals_module(capture(module, (module.dim,), STEPS, n_classes, SCHEDULE), module, n_classes)


@pytest.mark.slow
@pytest.mark.parametrize("fold", ForeignNet.FOLDS)
@pytest.mark.parametrize("n_classes", [0, 3])
def test_hundreds_of_random_modules(fold: str, n_classes: int) -> None:
    for seed in range(100, 140):
        module = foreign_net(seed, n_classes, fold)
        assert_equals_module(capture(module, (module.dim,), STEPS, n_classes, SCHEDULE), module, n_classes)


def in_place(m: Net, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
    hidden = m.first(x)
    view = hidden.view(-1, 8)
    hidden += m.time(t)
    view.tanh_()
    return m.last(hidden)


def filled(m: Net, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
    features = torch.zeros(x.shape[0], 8)
    features[:, :4] = m.time(t)[:, :4]
    features[:, 4:] += t[:, None] * 0.1
    return m.last(torch.relu(m.first(x) + features))


def scaled_time(m: Net, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
    time = t.float()
    time += 1  # a copy of t, not t itself
    return m.last(torch.relu(m.first(x) + time[:, None] / 20))


def read_twice(m: Net, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
    hidden = m.first(x) + m.time(t)
    torch.tanh(hidden)  # read by nobody
    torch.sigmoid(m.square(torch.relu(hidden)))
    return m.last(hidden)


@torch.no_grad()
def no_gradients(m: Net, x: Tensor, t: Tensor) -> Tensor:
    with torch.no_grad():
        frequencies = torch.exp(-0.1 * torch.arange(8))
    return m.last(m.first(x) * torch.sin(t[:, None] * frequencies))


# What a module may do; every entry equals its module.
ACCEPTED: dict[str, Callable[..., Any]] = {
    "in place, through a view": in_place,
    "a buffer filled in place": filled,
    "a converted copy of t": scaled_time,
    "a value read raw and activated": read_twice,
    "shapes of x": lambda m, x, t, y: m.last(torch.tanh(m.first(x) + m.offset.expand(x.size(0), -1))),
    "expand_as": lambda m, x, t, y: m.short(x) + m.time(t)[:, :1].expand_as(x),
    "zeros_like and full": lambda m, x, t, y: (
        m.short(x) + torch.zeros_like(x) + torch.full((x.shape[0], 3), 2.0)
    ),
    "shape of a hidden value": lambda m, x, t, y: m.last((h := m.first(x)) + torch.ones_like(h) * m.time(t)),
    "reshapes": lambda m, x, t, y: m.last(
        m.first(x.flatten(1).view(-1, 3).reshape(x.shape[0], 1, 3).squeeze(1))
    ),
    "clone, detach, to": lambda m, x, t, y: m.last(
        m.first(x.clone().to(torch.float32).contiguous()).detach()
    ),
    "own view_as": lambda m, x, t, y: m.short(x.view_as(x).type_as(x)),
    "addmm": lambda m, x, t, y: torch.addmm(m.last.bias, m.first(x), m.last.weight.T),
    "addmm with a time bias": lambda m, x, t, y: m.last(torch.addmm(m.time(t), x, m.first.weight.T).relu()),
    "constants": lambda m, x, t, y: m.short(x) + torch.tensor([1.0, 2.0, 3.0]) + 0.5,
    "shift of x": lambda m, x, t, y: m.short(x + m.time(t)[:, :3] + 1.0),
    "shift after an activation": lambda m, x, t, y: m.last(torch.relu(m.first(x)) + m.time(t)),
    "two additions": lambda m, x, t, y: m.last(nnf.silu(m.time(t) + (m.first(x) + m.offset)) + 1),
    "x behind the embedding": lambda m, x, t, y: m.last(m.wide(torch.cat([m.time(t), x], 1)).relu()),
    "cat of cats": lambda m, x, t, y: m.last(
        m.wide(torch.cat([torch.cat([m.time(t)[:, :4], x], 1), m.offset[:, :4].expand(x.shape[0], 4)], -1))
    ),
    "float64 table, rounded": lambda m, x, t, y: m.last(torch.relu(m.first(x) + m.table[t].float())),
    "norm of t alone": lambda m, x, t, y: m.last(torch.relu(m.first(x) + m.groups(m.time(t)))),
    "dropout in eval": lambda m, x, t, y: m.last(nnf.dropout(torch.relu(m.first(x)), 0.5, m.training)),
    "activated output": lambda m, x, t, y: torch.tanh(m.short(x)),
    "no t at all": lambda m, x, t, y: m.last(torch.relu(m.first(x))),
    "the same layer twice": lambda m, x, t, y: m.last(torch.tanh(m.square(torch.tanh(m.square(m.first(x)))))),
    "constants of other types": lambda m, x, t, y: (
        m.short(x) * m.count.long() * torch.tensor(0.1, dtype=torch.float64) + torch.arange(3)
    ),
    "layer on a sum with an integer": lambda m, x, t, y: m.last(m.first(x * t[:, None] / 20).tanh()),
    "no gradients": lambda m, x, t, y: no_gradients(m, x, t),
    "weight of two parameters": lambda m, x, t, y: m.last(nnf.linear(x, m.first.weight * m.count)),
}
CONDITIONED: dict[str, Callable[..., Any]] = {
    "class added": lambda m, x, t, y: m.last(torch.relu(m.first(x) + m.label(y))),
    "sum of t and y": lambda m, x, t, y: m.last(torch.relu(m.first(x) + (m.time(t) + m.label(y)))),
    "projected sum": lambda m, x, t, y: m.last(torch.relu(m.first(x) + m.square(m.time(t) + m.label(y)))),
    "joined": lambda m, x, t, y: m.last(
        torch.relu(m.first(x) + m.wide(torch.cat([m.time(t), m.label(y)[:, :3]], 1)))
    ),
    "in place on the layer": lambda m, x, t, y: m.last(m.first(x).add_(m.time(t)).add_(m.label(y)).relu_()),
    "class alone, activated": lambda m, x, t, y: m.last(
        torch.relu(m.first(x) + torch.tanh(m.label(y)) + m.time(t))
    ),
    "y not read": lambda m, x, t, y: m.last(torch.relu(m.first(x) + m.time(t))),
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepted(name: str) -> None:
    module = Net(ACCEPTED[name]).eval()
    program = capture(module, (3,), STEPS, 0, SCHEDULE)
    x, table, _ = inputs(3, 0)
    expected = module(x, torch.tensor(STEPS)[table]).detach()
    torch.testing.assert_close(reference.net(program, x, table), expected, rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize("name", CONDITIONED)
def test_accepted_with_classes(name: str) -> None:
    module = Net(CONDITIONED[name]).eval()
    program = capture(module, (3,), STEPS, 4, SCHEDULE)
    x, table, y = inputs(3, 4)
    expected = module(x, torch.tensor(STEPS)[table], y).detach()
    torch.testing.assert_close(reference.net(program, x, table, y), expected, rtol=1e-5, atol=2e-6)


def test_only_what_is_read_becomes_a_layer() -> None:
    program = capture(Net(read_twice).eval(), (3,), STEPS, 0, SCHEDULE)
    assert [layer.activation for layer in program.ops] == ["identity", "identity"]
    twice = capture(
        Net(lambda m, x, t, y: m.last((h := m.first(x)) + torch.zeros_like(torch.tanh(h)))).eval(),
        (3,),
        STEPS,
        0,
        SCHEDULE,
    )
    assert len(twice.ops) == 2


@pytest.mark.parametrize("steps", [[5], [5, 4], list(range(20))])
def test_any_number_of_steps_and_classes(steps: list[int]) -> None:
    module = Net(CONDITIONED["sum of t and y"]).eval()
    program = capture(module, (3,), steps, 1, SCHEDULE)
    first = program.ops[0]
    assert first.step_table is not None and first.step_table.shape == (len(steps), 8)
    assert first.class_table is not None and first.class_table.shape == (1, 8)
    x = torch.randn(5, 3)
    for i, step in enumerate(steps):
        expected = module(x, torch.full((5,), step), torch.zeros(5, dtype=torch.int64)).detach()
        torch.testing.assert_close(reference.net(program, x, i, 0), expected, rtol=1e-5, atol=2e-6)


def test_one_step_beside_a_value_shaped_like_x() -> None:
    beside = lambda m, x, t, y: torch.cat([torch.zeros_like(x), m.time(t)[:, :5]], 1)  # noqa: E731
    module = Net(lambda m, x, t, y: m.last(torch.relu(m.first(x) + beside(m, x, t, y)))).eval()
    program = capture(module, (3,), [5], 0, SCHEDULE)
    x = torch.randn(5, 3)
    expected = module(x, torch.full((5,), 5)).detach()
    torch.testing.assert_close(reference.net(program, x, 0), expected, rtol=1e-5, atol=2e-6)


def check_image(module: nn.Module, *shape: int) -> None:
    program = capture(module.eval(), shape, STEPS, 0, SCHEDULE)
    x = torch.randn(6, *shape)
    expected = module(x, torch.zeros(6)).detach().flatten(1)
    torch.testing.assert_close(reference.net(program, x.flatten(1), 0), expected, rtol=1e-5, atol=2e-6)


def test_samples_of_several_axes() -> None:
    class Image(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = nn.Sequential(nn.Flatten(), nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 8))

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return self.layers(x).unflatten(1, (2, 4))

    check_image(Image(), 2, 4)


def test_norms_and_sums_over_axes_of_a_sample() -> None:
    class Channels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.group, self.batch = nn.GroupNorm(2, 4), nn.BatchNorm1d(4)
            self.layer, self.rms = nn.LayerNorm((4, 6)), nn.RMSNorm(6)
            self.mix = nn.Linear(6, 6)
            for tensor in (*self.parameters(), self.batch.running_mean, self.batch.running_var):
                nn.init.uniform_(tensor, 0.5, 1.5)

        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            h = self.batch(self.group(x)) + self.layer(x) + self.rms(x.roll(1, 2))
            h = h + x.softmax(1) * x.mean((1, 2), keepdim=True) + x.sum(1, keepdim=True)
            h = self.mix(h) + x.permute(0, 2, 1).sum(2)[:, None] + x.var(dim=2, keepdim=True)
            return h / (1 + x.norm(dim=1)[:, None]) + torch.einsum("bcl,ml->bcm", x, self.mix.weight)

    torch.manual_seed(0)
    check_image(Channels(), 4, 6)
