"""Capture: which operations come out, what is fused and folded, and step and class together."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as nnf
from capture_nets import SCHEDULE, STEPS, Net
from test_capture import assert_equals_module
from torch import Tensor, nn

import diffusion_fast as df
from diffusion_fast import reference
from diffusion_fast.capture import CaptureError, capture, lowering
from diffusion_fast.plan import TileProgram
from diffusion_fast.tile_ops import BinaryOp, LinearOp, MapOp, NormOp, TableOp

Body = Callable[[Net, Tensor, Tensor, Tensor | None], Tensor]


@pytest.fixture(autouse=True)
def one_torch_thread() -> None:
    torch.set_num_threads(1)


def kinds(program: TileProgram) -> str:
    """Such as "linear silu, table, binary add"; a linear op with an addend is "linear+"."""
    names = []
    for op in program.ops:
        name = type(op).__name__[:-2].lower() + ("+" if isinstance(op, LinearOp) and op.addend else "")
        if isinstance(op, TableOp) and op.joint_table is not None:
            name = "joint table"
        function = getattr(op, "activation", getattr(op, "function", "identity"))
        names.append(name if function == "identity" else f"{name} {function}")
    return ", ".join(names)


def captured(body: Body, n_classes: int = 0, steps: list[int] = STEPS) -> TileProgram:
    module = Net(body).eval()
    module.norm.running_mean.uniform_(-1, 1)
    module.norm.running_var.uniform_(0.5, 2)
    for parameter in (*module.norm.parameters(), *module.groups.parameters()):
        nn.init.uniform_(parameter, 0.5, 1.5)
    program = capture(module, (3,), steps, n_classes, SCHEDULE)
    assert_equals_module(program, module, n_classes)
    return program


def gated(m: Net, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
    a, b = m.square(m.first(x)).chunk(2, dim=-1)
    return nnf.linear(a * nnf.silu(b), m.last.weight[:, :4])


def filled_with_x(m: Net, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
    out = x.new_zeros(x.shape[0], 8)
    out[:, 1:4] = x
    out[:, 2:] += m.time(t)[:, :6]
    part = out[:, ::2]
    part.mul_(2).relu_()
    return m.last(out)


def several_rows(m: Net, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
    rows = torch.stack([x, x.flip(-1), x * 2], dim=1)  # (B, 3, 3)
    rows = m.short(rows) + rows.transpose(1, 2)
    return nnf.group_norm(rows, 3, eps=0.1).softmax(1).sum(dim=2)


# A forward and the operations it becomes.
PROGRAMS: dict[str, tuple[Body, str]] = {
    "residual": (
        lambda m, x, t, y: m.last((h := m.first(x)) + m.square(h)),
        "linear, linear+, linear",
    ),
    "residual of x itself": (lambda m, x, t, y: x + m.short(x), "linear, binary add"),
    "residual, activated": (
        lambda m, x, t, y: m.last(nnf.silu(m.square(h := m.first(x).relu()) + h)),
        "linear relu, linear+ silu, linear",
    ),
    "residual less a layer": (
        lambda m, x, t, y: m.last((h := m.first(x)) - m.square(h)),
        "linear, linear+, linear",
    ),
    "sum of two layers": (
        lambda m, x, t, y: m.last(torch.tanh(m.first(x) + m.square(m.first(x).relu()))),
        "linear relu, linear, linear+ tanh, linear",
    ),
    "sum of two layers and t": (
        lambda m, x, t, y: m.last(m.first(x) + m.time(t) + m.square(m.first(x).sin())),
        "linear sin, linear, linear+, linear",
    ),
    "scaled layer": (lambda m, x, t, y: m.last(torch.relu(0.5 * m.first(x) - 1)), "linear relu, linear"),
    "batch norm behind": (lambda m, x, t, y: m.last(m.norm(m.first(x)).relu()), "linear relu, linear"),
    "batch norm before": (lambda m, x, t, y: m.last(m.norm(m.first(x).relu())), "linear relu, linear"),
    "layer norm": (
        lambda m, x, t, y: m.last(m.groups(m.first(x)) * m.offset[0] + 1),
        "linear, norm layer_norm, linear",
    ),
    "softmax, scaled": (lambda m, x, t, y: m.short(x.softmax(-1) * 3), "norm softmax, linear"),
    "gated": (
        gated,
        "linear, linear, gather, map silu, gather, binary mul, linear",
    ),
    "gated linear unit": (
        lambda m, x, t, y: nnf.linear(nnf.glu(m.first(x)), m.last.weight[:, :4]),
        "linear, gather, map sigmoid, gather, binary mul, linear",
    ),
    "a permutation before a layer": (lambda m, x, t, y: m.short(x.roll(1, 1)), "linear"),
    "a constant beside x": (
        lambda m, x, t, y: m.last(m.wide(torch.cat([m.offset.repeat(x.shape[0], 1), x], 1))),
        "linear, linear",
    ),
    "an activated constant beside x": (
        lambda m, x, t, y: m.last(m.wide(torch.cat([m.time(t), x], 1)).exp()),
        "linear exp, linear",
    ),
    "an activation of x beside t": (
        lambda m, x, t, y: m.last(m.wide(torch.tanh(torch.cat([m.time(t), x], 1)))),
        "map tanh, linear, linear",
    ),
    "preconditioning": (
        lambda m, x, t, y: (c := 1 / (1 + t[:, None])) * x + c.sqrt() * m.short(x),
        "table, binary mul, linear, table, binary mul, binary add",
    ),
    "a value shared by two": (
        lambda m, x, t, y: m.last((h := m.first(x)).relu() + h.sin()),
        "linear, map relu, map sin, binary add, linear",
    ),
    "small powers": (
        lambda m, x, t, y: m.last((h := m.first(x)) ** 2 + h**3 + h.abs().add(1) ** -1),
        "linear, binary mul, binary mul, binary mul, binary add, map abs, map add, map reciprocal, "
        "binary add, linear",
    ),
    "a power of two": (
        lambda m, x, t, y: m.last(2 ** m.first(x) + torch.tensor(0.3) ** (x @ m.first.weight.T)),
        "linear exponential, linear exponential, binary add, linear",
    ),
    "exp2": (lambda m, x, t, y: m.short(x.exp2()), "map exponential, linear"),
    "leaky with a slope of its own": (
        lambda m, x, t, y: m.last(nnf.prelu(m.first(x), m.offset[0, :1])),
        "linear leaky_relu, linear",
    ),
    "a large shift stays before the layer": (
        lambda m, x, t, y: m.short(x - 1000.0),
        "map add, linear",
    ),
    "an unread norm": (lambda m, x, t, y: (m.norm(m.first(x)), m.short(x))[1], "linear"),
    "time alone": (lambda m, x, t, y: m.time(t)[:, :3], "table"),
    "x alone": (lambda m, x, t, y: x, "map"),
}


@pytest.mark.parametrize("name", PROGRAMS)
def test_programs(name: str) -> None:
    body, expected = PROGRAMS[name]
    assert kinds(captured(body)) == expected


def test_values_written_in_parts() -> None:
    assert kinds(captured(filled_with_x)).endswith("linear")


def test_several_rows_of_a_sample() -> None:
    text = kinds(captured(several_rows))
    assert text.count("linear") == 3 and "norm layer_norm" in text and "norm softmax" in text


def test_explain_names_every_operation() -> None:
    lines = captured(PROGRAMS["residual, activated"][0]).explain
    assert lines[2] == "layer 2: linear 8 -> 8, value 1 added, silu fused"
    lines = captured(PROGRAMS["layer norm"][0]).explain
    assert lines[2] == "2: layer_norm over 8" and "run once" in lines[0]


def in_place(m: Net, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    e = m.time(t)
    e += m.label(y)
    e[:, :4] *= e[:, 4:]
    e.tanh_()
    return m.last(m.first(x) * e)


def joined(m: Net, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    f = torch.zeros(x.shape[0], 8)
    f[:, :4] = m.time(t)[:, :4]
    f[:, 4:] = m.label(y)[:, 4:]
    return m.last(m.first(x) + f.relu_())


# What joins t and y, and the operations with a table for all pairs and without.
JOINT: dict[str, tuple[Body, str, str]] = {
    "silu of a sum": (
        lambda m, x, t, y: m.last(m.first(x) + nnf.silu(m.time(t) + m.label(y))),
        "joint table, linear+, linear",
        "table, map silu, linear+, linear",
    ),
    "product": (
        lambda m, x, t, y: m.last(m.first(x) + m.time(t) * m.label(y)),
        "joint table, linear+, linear",
        "table, table, binary mul, linear+, linear",
    ),
    "layers": (
        lambda m, x, t, y: m.last(m.first(x) * m.square(nnf.silu(m.square(m.time(t) + m.label(y)).tanh()))),
        "linear, joint table, binary mul, linear",
        "table, map tanh, map silu, linear, linear, binary mul, linear",
    ),
    "in place": (
        in_place,
        "linear, joint table, binary mul, linear",
        "table, table, binary mul, table, gather, gather, map tanh, linear, binary mul, linear",
    ),
    "side by side": (
        joined,
        "joint table, linear+, linear",
        "table, map relu, linear+, linear",
    ),
    "a sum": (lambda m, x, t, y: m.last(m.first(x) + m.time(t) + m.label(y)), "linear, linear", ""),
    "a class table and a residual": (
        lambda m, x, t, y: m.last(torch.relu(m.square(h := torch.tanh(m.first(x))) + h + m.label(y))),
        "table, linear tanh, binary add, linear+ relu, linear",
        "",
    ),
    "a joint table and a residual": (
        lambda m, x, t, y: m.last(
            m.square(h := torch.tanh(m.first(x))) + h + (m.time(t) + m.label(y)).relu()
        ),
        "linear tanh, joint table, binary add, linear+, linear",
        "",
    ),
}


@pytest.mark.parametrize("name", JOINT)
@pytest.mark.parametrize("steps", [STEPS, [5]])
def test_step_and_class_together(name: str, steps: list[int]) -> None:
    body, expected, _ = JOINT[name]
    module = Net(body).eval()
    program = capture(module, (3,), steps, 4, SCHEDULE)
    assert kinds(program) == expected
    compare(program, module, steps)


@pytest.mark.parametrize("name", [name for name, (_, _, without) in JOINT.items() if without])
def test_too_many_pairs_become_operations(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lowering, "JOINT_BYTES", 100)
    body, _, expected = JOINT[name]
    module = Net(body).eval()
    program = capture(module, (3,), STEPS, 4, SCHEDULE)
    assert kinds(program) == expected
    compare(program, module, STEPS)


def compare(program: TileProgram, module: nn.Module, steps: list[int]) -> None:
    x, table, y = torch.randn(200, 3), torch.randint(0, len(steps), (200,)), torch.randint(0, 4, (200,))
    expected = module(x, torch.tensor(steps)[table], y).detach()
    torch.testing.assert_close(reference.net(program, x, table, y), expected, rtol=1e-5, atol=2e-6)


def test_pairs_that_only_torch_can_compute_are_refused_beyond_the_limit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    module = Net(lambda m, x, t, y: m.last(m.first(x) + m.time((t + y) % 20))).eval()
    program = capture(module, (3,), STEPS, 4, SCHEDULE)
    assert kinds(program) == "joint table, linear+, linear"
    compare(program, module, STEPS)
    monkeypatch.setattr(lowering, "JOINT_BYTES", 100)
    with pytest.raises(CaptureError, match="step x class table") as caught:
        capture(module, (3,), STEPS, 4, SCHEDULE)
    assert caught.value.op == "embedding" and "capture_nets.py" in caught.value.where


def test_pairs_are_evaluated_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Net(JOINT["in place"][0]).eval()
    whole = capture(module, (3,), STEPS, 4, SCHEDULE)
    monkeypatch.setattr("diffusion_fast.capture.worlds.PAIRS_AT_A_TIME", 12)
    parts = capture(module, (3,), STEPS, 4, SCHEDULE)
    assert (whole.ops[1].joint_table == parts.ops[1].joint_table).all()
    assert whole.ops[1].joint_table.shape == (len(STEPS), 4, 8)


def test_a_wrong_operation_would_be_seen() -> None:
    """assert_equals_module notices another function, another epsilon and another order."""
    module = Net(lambda m, x, t, y: m.last(m.groups(m.first(x)).sin())).eval()
    program = capture(module, (3,), STEPS, 0, SCHEDULE)
    first, norm, function, last = program.ops
    assert isinstance(norm, NormOp) and isinstance(function, MapOp)
    others = [
        (first, norm, MapOp(2, 3, "cos"), last),
        (first, NormOp(1, 2, "layer_norm", 1, 1e-2, norm.weight, norm.bias), function, last),
        (first, NormOp(1, 2, "rms_norm", 1, norm.epsilon, norm.weight, norm.bias), function, last),
        (first, norm, BinaryOp(2, 1, 3, "add"), last),
    ]
    for ops in others:
        with pytest.raises(AssertionError):
            assert_equals_module(TileProgram(3, ops, 4, len(STEPS)), module)


@pytest.mark.parametrize("base", [1e-50, 1e39, -2.0])
def test_a_base_that_the_kernels_cannot_have_runs_in_torch(base: float) -> None:
    class Power(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return torch.pow(base, x)

    sampler = df.Sampler(Power().eval(), df.NoiseSchedule.linear(3), shape=2)
    assert sampler.plan is None and "pow" in sampler.explain()
