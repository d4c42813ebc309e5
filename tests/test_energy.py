"""Energies and their scores: the gradient written out, captured, and run as whole Langevin chains."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from diffusion_fast import _cpu, capture, reference, solvers
from diffusion_fast.models import EnergyMLP, EnergyScore
from diffusion_fast.models.mlp import ACTIVATIONS
from diffusion_fast.plan import Plan, TileProgram, build_plan
from diffusion_fast.sampler import Sampler
from diffusion_fast.sigma_schedules import SigmaSchedule
from diffusion_fast.tile_ops import FUNCTIONS, SLOPES, GatherOp, LinearOp, MapOp, Op

SCHEDULE = SigmaSchedule([0.1])
LANGEVIN = {"solver": "langevin", "prediction_type": "score", "step_size": 5e-3, "start_scale": 2.0}
RNG = np.random.default_rng(0)
INPUTS = np.float32(
    np.concatenate(
        [RNG.uniform(-12, 12, 100_000), RNG.uniform(-100, 100, 20_000), [0.0, -0.0, 1e-45, -1e30, 1e30]]
    )
)
PARAMS = {"leaky_relu": float(np.float32(0.2)), "elu": float(np.float32(0.7))}


def energy_of(activation: str, dim: int = 2, hidden: tuple[int, ...] = (24, 17)) -> EnergyMLP:
    torch.manual_seed(len(activation))
    return EnergyMLP(dim, hidden, activation)


def by_autograd(energy: nn.Module, x: Tensor) -> Tensor:
    x = x.detach().clone().requires_grad_()
    return -torch.autograd.grad(energy(x).sum(), x)[0]


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_score_is_autograds(activation: str) -> None:
    energy = energy_of(activation, 3).double()
    x = torch.randn(50, 3, dtype=torch.float64) * 3
    torch.testing.assert_close(EnergyScore(energy)(x), by_autograd(energy, x), rtol=1e-12, atol=1e-14)


def test_the_score_is_each_points_own() -> None:
    score, x = EnergyScore(energy_of("silu")), torch.randn(5, 2)
    torch.testing.assert_close(score(x)[2:3], score(x[2:3]))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_one_evaluation_within_twice_torchs_error(activation: str) -> None:
    """The kernel against autograd in float64, beside autograd in float32."""
    energy = energy_of(activation, 2, (64, 64))
    sampler = Sampler(EnergyScore(energy).eval(), SCHEDULE, **LANGEVIN, steps=1, backend="native")
    x = 2 * torch.randn(4001, 2)
    noise = torch.zeros(len(sampler.table), len(x), 2)
    rows = sampler.table
    start = x / 2.0  # the chain's first row scales by start_scale
    got = sampler.sample(len(x), x_T=start, noise=noise)
    want = x.double() + 5e-3 * by_autograd(energy.double(), x.double())
    plain = x + 5e-3 * by_autograd(energy.float(), x)
    assert rows.nfe == 1
    ours, theirs = ((y.double() - want).abs() for y in (got, plain))
    ulp = np.spacing(np.float32(want.square().mean().sqrt()))
    for measure in (lambda e: e.square().mean().sqrt(), lambda e: e.flatten().quantile(0.999)):
        assert measure(ours) <= 2 * measure(theirs) + 4 * ulp


@pytest.mark.parametrize("activation", ["silu", "tanh", "gelu", "elu"])
def test_a_chain_is_the_references_on_every_path(activation: str) -> None:
    sampler = Sampler(
        EnergyScore(energy_of(activation)).eval(), SCHEDULE, **LANGEVIN, steps=30, backend="native"
    )
    assert sampler.plan is not None
    got = sampler.sample(61, seed=3)
    want = reference.run(sampler.plan, 61, seed=3, dtype=torch.float64)
    torch.testing.assert_close(got.double(), want, rtol=0, atol=2e-5)
    for start, n in ((0, 1), (5, 3), (40, 21)):  # one sample: lanes are features; few: another tile
        assert torch.equal(sampler.sample(n, seed=3, start=start), got[start : start + n])
    for isa in _cpu.isas():
        out = torch.empty(61, 2)
        _cpu.Program(sampler.plan.to_bytes(), isa).run(out.data_ptr(), 61, 0, 3, 1)
        if isa != "portable":
            assert torch.equal(out, got)


def test_an_activation_and_its_slope_are_one_operation() -> None:
    program = capture.capture(EnergyScore(energy_of("silu")).eval(), (2,), [0.1], 0, SCHEDULE, "sigma")
    pairs = [op for op in program.ops if isinstance(op, MapOp)]
    assert len(pairs) == 1 and pairs[0].with_slope and pairs[0].function == "silu"
    fused = [op.activation for op in program.ops if hasattr(op, "activation")]
    assert "silu_slope" in fused  # of the last hidden layer, whose activation nothing reads
    assert "silu and its slope of value 1" in "\n".join(program.explain)


class Backward(nn.Module):
    def __init__(self, operation: str) -> None:
        super().__init__()
        self.layer, self.operation = nn.Linear(2, 2), operation

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        z = self.layer(x)
        aten = torch.ops.aten
        if self.operation == "tanh of what is no tanh":
            return aten.tanh_backward(x, z)
        if self.operation == "elu by its result":
            return aten.elu_backward(x, 1.0, 1.0, 1.0, True, nn.functional.elu(z))
        return aten.threshold_backward(x, z, 0.5)


@pytest.mark.parametrize("operation", ["tanh of what is no tanh", "elu by its result", "a threshold above 0"])
def test_other_backward_operations_are_refused(operation: str) -> None:
    with pytest.raises(capture.CaptureError, match="_backward"):
        Sampler(Backward(operation).eval(), SCHEDULE, shape=2, **LANGEVIN, steps=2, backend="native")


@pytest.mark.parametrize("activation", SLOPES)
def test_slopes_within_twice_torchs_error(activation: str) -> None:
    """Against the derivative by autograd in float64, beside autograd in float32."""
    function, param = reference.FUNCTIONS[activation], PARAMS.get(activation, 0.0)

    def derivative(dtype: torch.dtype) -> np.ndarray:
        x = torch.from_numpy(INPUTS).to(dtype).requires_grad_()
        return torch.autograd.grad(function(x, param).sum(), x)[0].double().numpy()

    got = _cpu.activate(FUNCTIONS.index(SLOPES[activation]), param, INPUTS).astype(np.float64)
    twin = reference.FUNCTIONS[SLOPES[activation]](torch.from_numpy(INPUTS).double(), param).numpy()
    want, plain = derivative(torch.float64), derivative(torch.float32)
    np.testing.assert_allclose(twin, want, rtol=1e-9, atol=3e-9)  # torch's softplus is x itself from 20 on
    usual = np.abs(INPUTS) <= 12
    ours, theirs = (np.abs(y - want)[usual] for y in (got, plain))
    ulp = np.spacing(np.float32(np.sqrt(np.mean(want[usual] ** 2))))
    for measure in (lambda e: np.sqrt(np.mean(e**2)), lambda e: np.quantile(e, 0.999)):
        assert measure(ours) <= 2 * measure(theirs) + 4 * ulp
    assert np.abs(got - want).max() <= 4e-7  # everywhere


@pytest.mark.parametrize("activation", SLOPES)
def test_slopes_have_one_set_of_bits_and_keep_nan(activation: str) -> None:
    code, param = FUNCTIONS.index(SLOPES[activation]), PARAMS.get(activation, 0.0)
    x = np.concatenate([INPUTS, np.float32([np.inf, -np.inf, 3e38, -3e38])])
    first, *others = (_cpu.activate(code, param, x, isa) for isa in _cpu.isas())
    for other in others:
        same = (first.view(np.uint32) == other.view(np.uint32)) | (np.isnan(first) & np.isnan(other))
        assert same.all()
    assert np.isfinite(first[: len(INPUTS)]).all()


def pair_plan(*middle: Op) -> Plan:
    """Linear(2, 13), then these operations of value 1, then Linear(26, 2) of their last value."""
    rng = np.random.default_rng(1)
    w, back = (rng.standard_normal(shape).astype(np.float32) for shape in ((13, 2), (2, 26)))
    last = middle[-1].dst
    ops = (LinearOp(0, 1, w), *middle, LinearOp(last, last + 1, back))
    table = solvers.langevin(SCHEDULE, steps=1, step_size=0.1, prediction_type="score")
    return build_plan(table, TileProgram(2, ops, last + 1, len(table.table_timesteps)))


@pytest.mark.parametrize("activation", SLOPES)
def test_a_pair_has_the_bits_of_the_two_apart(activation: str) -> None:
    """In tiles and for one sample, of a width that fills no vector."""
    param, index = PARAMS.get(activation, 0.0), np.arange(13)
    pair = pair_plan(MapOp(1, 2, activation, param, with_slope=True))
    maps = MapOp(1, 2, activation, param), MapOp(1, 3, SLOPES[activation], param)
    apart = pair_plan(*maps, GatherOp(2, 4, index), GatherOp(3, 4, index, 13))
    for n, start in ((30, 0), (1, 7)):
        drawn = [torch.empty(n, 2) for _ in range(2)]
        for x, plan in zip(drawn, (pair, apart), strict=True):
            _cpu.Program(plan.to_bytes()).run(x.data_ptr(), n, start, 0, 1)
        assert torch.equal(*drawn)
        want = reference.run(pair, n, start=start, dtype=torch.float64)
        torch.testing.assert_close(drawn[0].double(), want, rtol=0, atol=1e-5)


def test_only_activations_have_slopes() -> None:
    """On both sides of the border: the plan of a pair, its function and its widths patched."""
    plan = pair_plan(MapOp(1, 2, "silu", with_slope=True))
    data = plan.to_bytes()
    _cpu.validate_plan(data)
    at = len(data) - plan.blob.nbytes - 2 * plan.ops.itemsize  # of the map, the second of three ops
    for field, value in ((4, FUNCTIONS.index("sin")), (4, 0), (20, 13), (28, 2)):
        bad = data[: at + field] + np.uint32(value).tobytes() + data[at + field + 4 :]
        with pytest.raises(ValueError, match=r"ops\[1\]"):
            Plan.from_bytes(bad)
        with pytest.raises(ValueError, match="op"):
            _cpu.validate_plan(bad)


@pytest.mark.parametrize(
    ("energy", "match"),
    [
        (nn.Linear(2, 1), "energy: got"),
        (nn.Sequential(nn.Linear(2, 4), nn.Hardtanh(), nn.Linear(4, 1)), "Hardtanh"),
        (nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 3)), "3 outputs"),
        (nn.Sequential(nn.Linear(2, 4), nn.Tanh()), "Linear"),
        (nn.Sequential(), "energy: got"),
    ],
)
def test_what_is_no_energy(energy: nn.Module, match: str) -> None:
    with pytest.raises((TypeError, ValueError), match=match):
        EnergyScore(energy)


@pytest.mark.parametrize("options", [{"dim": 0}, {"dim": 2, "hidden": ()}, {"dim": 2, "activation": "swish"}])
def test_bad_energies(options: dict[str, object]) -> None:
    with pytest.raises((TypeError, ValueError), match="accepted"):
        EnergyMLP(**options)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="x: got"):
        EnergyMLP(2)(torch.zeros(3, 4))
    with pytest.raises(ValueError, match="x: got"):
        EnergyScore(EnergyMLP(2))(torch.zeros(3, 4))
