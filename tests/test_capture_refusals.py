"""Capture: what cannot be captured is refused with its place, and what a capture leaves behind."""

import itertools
import pickle
import random
import re
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as nnf
from capture_nets import SCHEDULE, STEPS, Net
from test_capture import CONDITIONED
from torch import Tensor, nn

import diffusion_fast as df
from diffusion_fast import capture as capture_module
from diffusion_fast import reference
from diffusion_fast.capture import CallError, CaptureError, capture, network_time
from diffusion_fast.models.mlp import MLPDenoiser
from diffusion_fast.module_call import ModuleCall
from diffusion_fast.plan import TileProgram
from diffusion_fast.weights import Weights


def count_calls(m: Net, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
    m.calls += 1
    return m.short(x) + 0.01 * m.calls


def in_bfloat16(m: Net, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        y = m.short(x)
    return y.float()


def derivative(m: Net, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        return torch.autograd.grad(m.short(x).tanh().sum(), x)[0]


# What is refused, and a part of the reason.
REFUSED: dict[str, tuple[Callable[..., Any], str]] = {
    "mean over the batch": (lambda m, x, t, y: m.short(x + x.mean(0, keepdim=True)), "samples of a batch"),
    "sum of everything": (lambda m, x, t, y: m.short(x) + x.sum(), "samples of a batch"),
    "deviation over the batch": (lambda m, x, t, y: m.short(x) / x.std(0), "samples of a batch"),
    "softmax over the batch": (lambda m, x, t, y: m.short(x.softmax(0)), "samples of a batch"),
    "flip of the batch": (lambda m, x, t, y: m.short(x.flip(0)), "samples of a batch"),
    "roll of everything": (lambda m, x, t, y: m.short(x.roll(1)), "samples of a batch"),
    "transposed": (lambda m, x, t, y: m.short(x.T.T), "samples of a batch"),
    "all pairs of samples": (lambda m, x, t, y: m.short(x) + (x @ x.T) @ x, "samples of a batch"),
    "features as samples": (
        lambda m, x, t, y: m.short(x.reshape(-1, 1).reshape(-1, 3)),
        "samples of a batch",
    ),
    "cumsum over the batch": (lambda m, x, t, y: m.short(x.cumsum(0)), "no fused kernel"),
    "cumsum over features": (lambda m, x, t, y: m.short(x.cumsum(1)), "no fused kernel"),
    "sorted features": (lambda m, x, t, y: m.short(x.sort(1)[0]), "no fused kernel"),
    "largest feature": (lambda m, x, t, y: m.short(x) + x.amax(1, keepdim=True), "no fused kernel"),
    "convolution": (
        lambda m, x, t, y: m.short(nnf.conv1d(x[:, None], m.count.view(1, 1, 1))[:, 0]),
        "no fused kernel",
    ),
    "outer product": (lambda m, x, t, y: m.short((x[:, :, None] @ x[:, None, :])[:, 0]), "no fused kernel"),
    "power of x": (lambda m, x, t, y: m.short(x**x), "no fused kernel"),
    "power of a negative number": (lambda m, x, t, y: m.short((-2) ** x), "no fused kernel"),
    "a slope for each feature": (
        lambda m, x, t, y: m.last(nnf.prelu(m.first(x), m.offset[0])),
        "no fused kernel",
    ),
    "rounding": (lambda m, x, t, y: m.short(x.round()), "no fused kernel"),
    "rounded quotient": (lambda m, x, t, y: m.short(torch.div(x, 2, rounding_mode="floor")), "no fused"),
    "sum of absolute values": (lambda m, x, t, y: x / (x.norm(p=1, dim=1, keepdim=True) + 1), "no fused"),
    "softplus threshold": (
        lambda m, x, t, y: m.last(nnf.softplus(m.first(x), threshold=5)),
        "no fused kernel",
    ),
    "scaled elu": (lambda m, x, t, y: m.last(torch.ops.aten.elu(m.first(x), 1.0, 1.0, 2.0)), "input_scale"),
    "choice by x": (lambda m, x, t, y: m.short(torch.where(x > 0, x, -x)), "no fused kernel"),
    "x as an index": (lambda m, x, t, y: m.last(m.time(x[:, 0].long())), "computes in torch.int64"),
    "t as an index": (
        lambda m, x, t, y: m.short(x) + x.gather(1, t[:, None] % 3),
        "which elements it takes depends",
    ),
    "batch norm without statistics": (
        lambda m, x, t, y: m.short(nnf.batch_norm(x, None, None, training=True)),
        "statistics over the batch",
    ),
    "norm weights of t": (
        lambda m, x, t, y: m.last(nnf.layer_norm(m.first(x), [8], m.time(t)[0])),
        "its weight or bias depends",
    ),
    "hypernetwork": (
        lambda m, x, t, y: nnf.linear(x, m.time(t)[0][:3, None] * m.short.weight),
        "its weights depend",
    ),
    "random": (lambda m, x, t, y: m.short(x) + torch.randn_like(x), "random"),
    "random, of t": (lambda m, x, t, y: m.last(m.first(x) + torch.rand(t.shape[0], 8)), "random"),
    "dropout that stays on": (lambda m, x, t, y: m.last(nnf.dropout(m.first(x), 0.5, True)), "random"),
    "bernoulli": (lambda m, x, t, y: m.short(x) + torch.bernoulli(torch.full_like(x, 0.5)), "random"),
    "writes to x": (lambda m, x, t, y: m.short(x.mul_(2)), "its argument x"),
    "writes to a view of x": (lambda m, x, t, y: m.short(x.view(-1, 3).relu_()), "its argument x"),
    "writes to a slice of x": (lambda m, x, t, y: m.short(x) + x[:, :1].fill_(0.0), "its argument x"),
    "writes to t": (lambda m, x, t, y: m.last(m.first(x) + m.time(t.clamp_(0, 5))), "its argument t"),
    "writes to a buffer": (lambda m, x, t, y: m.short(x) + m.count.add_(1), "the module's count"),
    "position in the batch": (
        lambda m, x, t, y: m.short(x) + torch.arange(x.shape[0])[:, None],
        "position in the batch",
    ),
    "batch size as a number": (lambda m, x, t, y: m.short(x) + x.shape[0], "batch size, or"),
    "half precision": (
        lambda m, x, t, y: nnf.linear(x.half(), m.short.weight.half()).float(),
        "computes in torch.float16",
    ),
    "autocast": (in_bfloat16, "under a mode or a branch"),
    "double precision": (
        lambda m, x, t, y: (m.short(x) + m.table[t][:, :3]).float(),
        "computes in torch.float64",
    ),
    "t as one number": (lambda m, x, t, y: m.short(x) + t[0].item(), "element of t, as a plain number"),
}
# What explain() says is to be done; about all others it names the parts that are fused.
ADVICE = {
    "mean over the batch": "compute each row from the same row",
    "norm weights of t": "scale and shift features",
    "random": "leave it out in eval mode",
    "writes to x": "returns a new tensor",
    "half precision": "keep in float32",
    "t as one number": "use t as the tensor that it is",
    "autocast": "out of forward",
    "derivative": r"df\.models\.EnergyScore",
    "branch on data": "relu, clamp, a gate",
    "len(x)": r"x\.shape\[0\], and for shapes alone",
    "state": "keep nothing from one call",
}
# Found by comparing with the module, so there is no single line to name.
NOTICED: dict[str, tuple[Callable[..., Any], str]] = {
    "mean over t": (lambda m, x, t, y: m.last(m.first(x) + m.time(t).mean(0)), "differ from the module"),
    "time of the first row": (lambda m, x, t, y: m.last(m.first(x) + m.time(t[:1])), "on other rows' t"),
    "state": (count_calls, "second call"),
    "random of Python": (lambda m, x, t, y: m.short(x) + random.random(), "second call"),
    "random of NumPy": (lambda m, x, t, y: m.short(x) + float(np.random.rand()), "second call"),
    "scaled by the batch size": (
        lambda m, x, t, y: m.last(m.first(x) + m.time(t) / t.shape[0]),
        "batch of 1",
    ),
    "branch on the batch size": (
        lambda m, x, t, y: m.short(x) + (1.0 if len(x) > 100 else 0.0),
        "torch.export",
    ),
    "len(x)": (lambda m, x, t, y: m.short(x) + torch.ones(len(x), 3), "fixes the batch size, by len"),
    "branch on data": (lambda m, x, t, y: m.short(x) if x.mean() > 0 else x, "decides by the values of x"),
    "branch on t": (lambda m, x, t, y: m.short(x) * (2 if t[0] > 5 else 1), "decides by the values of x"),
    "derivative": (derivative, "differentiates inside forward"),
    "infinity": (lambda m, x, t, y: m.short(x).log(), "NaN or infinity for normally"),
    "slice of the batch": (lambda m, x, t, y: m.short(x[:2]), "samples of a batch"),
    "a dictionary": (lambda m, x, t, y: {"sample": m.short(x)}, "returned"),
    "a tuple": (lambda m, x, t, y: (m.short(x),), "returned"),
    "another shape": (lambda m, x, t, y: m.first(x), "returned"),
    "an error of its own": (lambda m, x, t, y: m.first(t), "raised"),
    "NaN in a table": (
        lambda m, x, t, y: m.last(m.first(x) + torch.log(t - 50.0)[:, None]),
        "NaN or infinity",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_with_the_place(name: str) -> None:
    body, reason = REFUSED[name]
    with pytest.raises(CaptureError, match=reason) as caught:
        capture(Net(body).eval(), (3,), STEPS, 0, SCHEDULE)
    assert isinstance(caught.value, ValueError) and "backend='auto' or 'torch'" in str(caught.value)
    assert caught.value.op
    assert re.fullmatch(
        r"capture_nets\.py:\d+: return self\.body\(self, x, t, y\)( \(in \w+\))?", caught.value.where
    )


@pytest.mark.parametrize("name", ["a dictionary", "a tuple", "another shape"])
def test_an_output_that_no_path_takes(name: str) -> None:
    with pytest.raises(CallError, match=r"model: it returned .*return one tensor of x's shape and dtype"):
        df.Sampler(Net(NOTICED[name][0]).eval(), SCHEDULE, shape=3)


@pytest.mark.parametrize("name", ["convolution", *ADVICE])
def test_explain_says_why_where_and_what_to_do(name: str) -> None:
    body, reason = (REFUSED | NOTICED)[name]
    text = df.Sampler(Net(body).eval(), SCHEDULE, shape=3).explain()
    *_, why, advice = text.splitlines()
    assert re.search(f"runs in torch, with the fused step, because: .*{reason}", why)
    assert ("capture_nets.py:" in why or name not in REFUSED) and "backend=" not in why + advice
    assert re.search("To have it fused: .*" + ADVICE.get(name, "linear layers, element-wise"), advice)


def test_explain_says_what_the_model_is_given_for_t() -> None:
    module = Net(lambda m, x, t, y: m.short(x)).eval()
    table = df.Sampler(module, SCHEDULE, shape=3, steps=5)
    assert "the model's t: 'index', from 16 to 0" in table.explain()
    unit = df.Sampler(module, SCHEDULE, shape=3, time_input="unit", backend="torch")
    assert "the model's t: 'unit', from 1 to 0.05" in unit.explain()


def test_a_module_that_switches_gradients_on() -> None:
    def body(m: Net, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        with torch.enable_grad():
            return m.short(x.cumsum(1))

    module = Net(body).eval()
    samplers = [df.Sampler(module, SCHEDULE, shape=3, backend=backend) for backend in ("auto", "torch")]
    ours, plain = (sampler.sample(4) for sampler in samplers)
    assert not ours.requires_grad
    torch.testing.assert_close(ours, plain, rtol=1e-4, atol=1e-4)


# Torch calls them random, and in eval mode they are not: refused on x for another reason, and on t run once.
EVAL_MODE: dict[str, tuple[Callable[..., Any], str]] = {
    "attention": (
        lambda x: nnf.scaled_dot_product_attention(x[:, None], x[:, None], x[:, None])[:, 0],
        "no fused",
    ),
    "rrelu": (lambda x: nnf.rrelu(x, training=False), "no fused"),
}


@pytest.mark.parametrize("name", EVAL_MODE)
def test_what_draws_in_training_alone_is_not_called_random(name: str) -> None:
    function, reason = EVAL_MODE[name]
    with pytest.raises(CaptureError, match=reason):
        capture(Net(lambda m, x, t, y: m.short(function(x))).eval(), (3,), STEPS, 0, SCHEDULE)
    of_time = Net(lambda m, x, t, y: m.last(m.first(x) + function(m.time(t)))).eval()
    assert len(capture(of_time, (3,), STEPS, 0, SCHEDULE).ops) == 2


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Linear(3, 4), nn.Sequential(nn.ReLU(), nn.Softplus(threshold=3)), nn.Linear(4, 3)
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x = x.clone()
        return self.layers(x)


def test_the_place_is_the_line_and_the_submodule() -> None:
    line = Nested.forward.__code__.co_firstlineno + 2
    with pytest.raises(CaptureError) as caught:
        capture(Nested().eval(), (3,), STEPS, 0, SCHEDULE)
    assert caught.value.op == "softplus"
    assert caught.value.where == f"test_capture_refusals.py:{line}: return self.layers(x) (in layers.1.1)"
    assert f"(operation softplus) at {caught.value.where}" in str(caught.value)


@pytest.mark.parametrize("name", NOTICED)
def test_noticed(name: str) -> None:
    body, reason = NOTICED[name]
    with pytest.raises(CaptureError, match=reason):
        capture(Net(body).eval(), (3,), STEPS, 0, SCHEDULE)


def test_errors_of_tracing_name_the_line() -> None:
    for name in ("branch on data", "an error of its own"):
        with pytest.raises(CaptureError) as caught:
            capture(Net(NOTICED[name][0]).eval(), (3,), STEPS, 0, SCHEDULE)
        assert re.match(rf"test_capture_refusals\.py:\d+: .*{name}", caught.value.where)


def deep(depth: int, width: int = 4) -> Net:
    module = Net(lambda m, x, t, y: m.stack(x))
    widths = [3, *[width] * (depth - 1), 3]
    module.stack = nn.Sequential(*(nn.Linear(a, b) for a, b in itertools.pairwise(widths)))
    return module.eval()


def test_limits() -> None:
    assert len(capture(deep(256), (3,), [0], 0, SCHEDULE).ops) == 256
    with pytest.raises(CaptureError, match="more than 256 operations"):
        capture(deep(257), (3,), [0], 0, SCHEDULE)
    capture(deep(2, 2048), (3,), [0], 0, SCHEDULE)
    with pytest.raises(CaptureError, match="width 2049"):
        capture(deep(2, 2049), (3,), [0], 0, SCHEDULE)


@torch.no_grad()
def set_nan(module: Net) -> None:
    module.short.weight[1, 2] = float("nan")


# What is wrong with the module or an argument.
WRONG: list[tuple[type[Exception], str, Callable[[Net], Any] | None, dict[str, Any]]] = [
    (TypeError, r"model: got .*accepted: a torch.nn.Module", None, {"module": len}),
    (ValueError, r"train mode; accepted: .*model.eval\(\)", nn.Module.train, {}),
    (ValueError, r"train mode", lambda m: m.norm.train(), {}),
    (ValueError, r"model.short.weight: got nan at index \(1, 2\)", set_nan, {}),
    (CaptureError, r"torch.float64 weights", nn.Module.double, {}),
    (CaptureError, r"torch.float16 weights", nn.Module.half, {}),
    (ValueError, r"timesteps: got .*accepted: integers from 0 to 19", None, {"timesteps": [20]}),
    (ValueError, r"timesteps: got .*accepted: integers from 0 to 19", None, {"timesteps": [-1]}),
    (ValueError, r"timesteps: got .*accepted: integers", None, {"timesteps": [0.5]}),
    (ValueError, r"timesteps: got .*accepted: 1 to", None, {"timesteps": []}),
    (ValueError, r"time_input: .*did you mean 'index1'", None, {"time_input": "index_1"}),
    (ValueError, r"n_classes: got -1", None, {"n_classes": -1}),
    (ValueError, r"shape: got 0", None, {"shape": (0,)}),
    (CaptureError, r"samples of 257 elements", None, {"shape": (257,)}),
]


@pytest.mark.parametrize(("error", "message", "change", "arguments"), WRONG)
def test_wrong_arguments(
    error: type[Exception], message: str, change: Callable[[Net], Any] | None, arguments: dict[str, Any]
) -> None:
    module = Net(lambda m, x, t, y: m.short(x)).eval()
    if change is not None:
        change(module)
    given = {"module": module, "shape": (3,), "timesteps": [0], "n_classes": 0, "schedule": SCHEDULE}
    with pytest.raises(error, match=message):
        capture(**(given | arguments))


def test_capture_leaves_no_trace() -> None:
    module = Net(CONDITIONED["class added"]).eval()
    before, state = Weights(module).fingerprint(), torch.get_rng_state()
    capture(module, (3,), STEPS, 4, SCHEDULE)
    assert Weights(module).fingerprint() == before
    assert torch.equal(torch.get_rng_state(), state)


def test_the_fingerprint_sees_changes() -> None:
    module = MLPDenoiser(2, (4,)).eval()
    weights = Weights(module)
    before = weights.fingerprint()
    assert before == weights.fingerprint()
    with torch.no_grad():
        module.model[0].bias.add_(1)
    written = weights.fingerprint()
    assert written != before
    first, second = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))
    module.model[0].bias = first
    replaced = weights.fingerprint()
    module.model[0].bias = second
    again = weights.fingerprint()
    module.model[0] = nn.Linear(18, 4)
    assert len({written, replaced, again, weights.fingerprint()}) == 4


def test_the_program_keeps_its_own_weights() -> None:
    module = Net(lambda m, x, t, y: m.last(torch.relu(m.first(x)))).eval()
    program = capture(module, (3,), STEPS, 0, SCHEDULE)
    x = torch.randn(4, 3)
    before = reference.net(program, x, 0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.fill_(7)
    assert torch.equal(reference.net(program, x, 0), before)


@pytest.mark.parametrize("name", ["index", "index1", "unit", "sigma", "log_sigma/4"])
def test_network_time(name: str) -> None:
    t = torch.tensor([0, 7, 19])
    time = network_time(t, name, SCHEDULE)
    sigma = ((1 - SCHEDULE.alphas_cumprod) / SCHEDULE.alphas_cumprod).sqrt()[t]
    expected = {
        "index": t,
        "index1": t + 1,
        "unit": (t + 1) / 20,
        "sigma": sigma,
        "log_sigma/4": sigma.log() / 4,
    }[name]
    assert time.dtype == (torch.int64 if name.startswith("index") else torch.float32)
    torch.testing.assert_close(time, expected.to(time.dtype), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["index1", "unit", "sigma", "log_sigma/4"])
def test_time_inputs_reach_the_module(name: str) -> None:
    module = Net(lambda m, x, t, y: m.last(torch.relu(m.first(x) + torch.sin(t.float())[:, None]))).eval()
    program = capture(module, (3,), STEPS, 0, SCHEDULE, name)
    x = torch.randn(5, 3)
    for i, step in enumerate(STEPS):
        t = network_time(step, name, SCHEDULE).expand(5)
        torch.testing.assert_close(reference.net(program, x, i), module(x, t).detach(), rtol=1e-5, atol=1e-6)


def test_verify_compares_with_the_module(monkeypatch: pytest.MonkeyPatch) -> None:
    module = Net(lambda m, x, t, y: m.short(x)).eval()
    program = capture(module, (3,), [0, 1], 0, SCHEDULE)
    layer = program.ops[0]
    weight = layer.weight.copy()
    weight[0, 0] += 0.01
    layers = (type(layer)(layer.src, layer.dst, weight, layer.bias),)
    with pytest.raises(CaptureError, match="differ from the module at a batch of 1"):
        capture_module.verify(module, ModuleCall(), TileProgram(3, layers, 1, 2), (3,), torch.tensor([0, 1]))


def test_verify_calls_with_rows_in_another_order() -> None:
    def every_third(m: Net, x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        m.calls += 1
        return m.short(x) + 0.1 * (m.calls % 3 == 0)

    module = Net(lambda m, x, t, y: m.short(x)).eval()
    program = capture(module, (3,), [0, 1], 0, SCHEDULE)
    module.body = every_third
    with pytest.raises(CaptureError, match="rows in another order"):
        capture_module.verify(module, ModuleCall(), program, (3,), torch.tensor([0, 1]))


def test_errors_survive_pickling() -> None:
    error = CaptureError("reason", "sin", "net.py:3: sin(x)", "use cos")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) and vars(again) == vars(error)
    assert (again.reason, again.op, again.where, again.advice) == (
        "reason",
        "sin",
        "net.py:3: sin(x)",
        "use cos",
    )


def test_importing_does_not_load_the_exporter() -> None:
    code = "import sys, diffusion_fast.capture; sys.exit('torch.export._trace' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
