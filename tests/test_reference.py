"""The torch interpreter of a Plan, against loops written out by hand."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from nets import ACTIVATION_PARAMS, random_plan, random_program, random_table
from torch import Tensor

from diffusion_fast import noise, reference, solvers
from diffusion_fast.capture import capture
from diffusion_fast.models.mlp import MLPDenoiser
from diffusion_fast.plan import Plan, TileProgram, build_plan
from diffusion_fast.schedules import NoiseSchedule
from diffusion_fast.solvers.table import EVAL, PUSH, StepRow
from diffusion_fast.tile_ops import ACTIVATIONS

SCHEDULE = NoiseSchedule.linear(n_steps=12, beta_start=0.01, beta_end=0.3)


def ddpm_by_hand(model: torch.nn.Module, n: int, seed: int, start: int, dtype: torch.dtype) -> Tensor:
    """Ho et al. 2020, algorithm 2 with sigma^2 = beta, term by term from the schedule."""
    x = noise.normal_ref(n, 3, seed=seed, step=0, purpose="initial", start=start).to(dtype)
    for i, t in enumerate(reversed(range(12))):
        with torch.no_grad():
            eps = model(x, torch.full((n,), t))
        beta, abar = SCHEDULE.betas[t].item(), SCHEDULE.alphas_cumprod[t].item()
        x = (x - beta / math.sqrt(1 - abar) * eps) / math.sqrt(1 - beta)
        if t > 0:
            z = noise.normal_ref(n, 3, seed=seed, step=i, start=start).to(dtype)
            x = x + math.sqrt(beta) * z
    return x


def small_model() -> MLPDenoiser:
    return MLPDenoiser(3, (16, 16), "tanh", "table", 12).eval()


def ddpm_plan(model: MLPDenoiser) -> Plan:
    table = solvers.ddpm(SCHEDULE, variance="beta")
    return build_plan(table, capture(model, (3,), table.table_timesteps, 0, SCHEDULE))


@pytest.mark.parametrize("start", [0, 1000])
def test_ddpm_is_the_papers_algorithm(start: int) -> None:
    model = small_model()
    plan = ddpm_plan(model)
    got = reference.run(plan, 50, seed=3, start=start)
    assert got.dtype == torch.float32 and got.shape == (50, 3)
    torch.testing.assert_close(got, ddpm_by_hand(model, 50, 3, start, torch.float32), rtol=1e-5, atol=2e-5)
    exact = ddpm_by_hand(model.double(), 50, 3, start, torch.float64)
    wide = reference.run(plan, 50, seed=3, start=start, dtype=torch.float64)
    # What is left is the rounding of the table's coefficients to float32.
    torch.testing.assert_close(wide, exact, rtol=1e-6, atol=2e-6)


def test_samples_do_not_depend_on_the_split() -> None:
    plan = random_plan(7)
    whole = reference.run(plan, 9, seed=5, start=2, dtype=torch.float64)
    parts = [
        reference.run(plan, n, seed=5, start=at, dtype=torch.float64) for n, at in ((4, 2), (0, 6), (5, 6))
    ]
    torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-13, atol=1e-13)
    assert not torch.equal(reference.run(plan, 9, seed=6, start=2), whole.float())


def row_by_hand(row: Any, x: float, f: float, h: list[float], z: float) -> tuple[float, list[float]]:
    """One row on one number, with every term written out."""
    m = min(max(row["p_x"] * x + row["p_F"] * f, -row["clip"]), row["clip"])
    new = row["a"] * x + row["b"] * m + row["e"] * f
    new = new + row["c1"] * h[0] + row["c2"] * h[1] + row["c3"] * h[2] + row["s"] * z
    return new, ([m, h[0], h[1]] if row["flags"] & PUSH else h)


@pytest.mark.parametrize("seed", range(4))
def test_every_term_of_the_row(seed: int) -> None:
    plan = random_plan(seed, 1, (5,), n_rows=12)
    assert plan.terms == (1 << 12) - 1
    assert (plan.rows["flags"] & EVAL == 0).any() or seed
    # Wide, so that both ends of the clamp are met.
    x_T, z = 9 * torch.randn(3, 1), 9 * torch.randn(12, 3, 1)
    got = reference.run(plan, 3, x_T=x_T, noise=z, dtype=torch.float64, return_trajectory=True)
    assert got.shape == (13, 3, 1) and torch.equal(got[0], x_T.double())
    for sample in range(3):
        x, h = x_T[sample].item(), [0.0, 0.0, 0.0]
        for i, row in enumerate(plan.rows):
            row = {
                name: row[name].astype(np.float64) if name != "flags" else row[name]
                for name in row.dtype.names
            }
            u = torch.tensor([[row["c_in"] * x]], dtype=torch.float64)
            f = reference.net(plan, u, int(row["table"])).item() if row["flags"] & EVAL else 0.0
            x, h = row_by_hand(row, x, f, h, z[i, sample].item())
            assert got[i + 1, sample].item() == pytest.approx(x, rel=1e-12, abs=1e-12)


def test_the_stream_that_run_draws_from() -> None:
    plan = random_plan(3, 2)
    x_T = noise.normal_ref(5, 2, seed=8, step=0, purpose="initial", start=4)
    z = torch.stack([noise.normal_ref(5, 2, seed=8, step=i, start=4) for i in range(len(plan.rows))])
    assert torch.equal(reference.run(plan, 5, x_T=x_T, noise=z), reference.run(plan, 5, seed=8, start=4))


def test_given_tensors_stay_as_they_are() -> None:
    plan, x_T = random_plan(3, 2), torch.randn(4, 2)
    before = x_T.clone()
    reference.run(plan, 4, x_T=x_T)
    assert torch.equal(x_T, before)


def activation_by_hand(name: str, v: float, param: float) -> float:
    sigmoid = 1 / (1 + math.exp(-v))
    cubic = math.sqrt(2 / math.pi) * (v + 0.044715 * v**3)
    return {
        "identity": v,
        "relu": max(v, 0.0),
        "leaky_relu": v if v > 0 else param * v,
        "elu": v if v > 0 else param * math.expm1(v),
        "tanh": math.tanh(v),
        "sigmoid": sigmoid,
        "silu": v * sigmoid,
        "gelu": v * 0.5 * (1 + math.erf(v / math.sqrt(2))),
        "gelu_tanh": v * 0.5 * (1 + math.tanh(cubic)),
        "softplus": v if v > 20 else math.log1p(math.exp(v)),
        "mish": v * math.tanh(v if v > 20 else math.log1p(math.exp(v))),
    }[name]


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_net_by_hand(name: str) -> None:
    program = random_program(2, 1, (3,), n_classes=2, activation=name)
    first, last = program.ops
    param = ACTIVATION_PARAMS.get(name, 0.0)
    for x in (-3.0, -0.4, 0.0, 0.7, 5.0, 30.0):
        for table, label in ((0, 1), (5, 0)):
            hidden = []
            for j in range(3):
                v = float(first.weight[j, 0]) * x
                for array, index in ((first.step_table, table), (first.class_table, label)):
                    assert array is not None
                    v += float(array[index, j])
                hidden.append(activation_by_hand(name, v, param))
            expected = sum(float(w) * h for w, h in zip(last.weight[0], hidden, strict=True))
            for array, index in ((last.bias, ()), (last.step_table, table), (last.class_table, label)):
                expected += (
                    float(array[index].item() if index != () else array.item()) if array is not None else 0.0
                )
            got = reference.net(program, torch.tensor([[x]], dtype=torch.float64), table, label)
            assert got.item() == pytest.approx(expected, rel=1e-12, abs=1e-12)


def test_net_takes_a_table_and_label_for_each_row() -> None:
    plan = random_plan(4, n_classes=3)
    u, table, labels = torch.randn(7, 3), torch.randint(0, 6, (7,)), torch.randint(0, 3, (7,))
    got = reference.net(plan, u, table, labels)
    for i in range(7):
        one = reference.net(plan, u[i : i + 1], int(table[i]), int(labels[i]))
        torch.testing.assert_close(got[i : i + 1], one, rtol=1e-5, atol=1e-6)


def test_values_need_not_form_a_chain() -> None:
    plan = random_plan(4, widths=(7, 3), branching=True)  # value 4 reads value 1, beside the chain 0, 1, 2, 3
    u = torch.randn(5, 3)
    before = reference.net(plan, u, 0)
    layers = plan.operations
    assert [layer.src for layer in layers] == [0, 1, 2, 1]
    early = replace(plan, out_value=2)
    assert not torch.allclose(reference.net(early, u, 0), before)
    hidden = TileProgram(3, (layers[0], replace(layers[3], dst=2)), 2, 6)
    side = replace(random_program(1), ops=(layers[0], replace(layers[3], dst=4)), out_value=4)
    assert torch.equal(reference.net(hidden, u, 0), reference.net(side, u, 0))


def test_guidance() -> None:
    plan = random_plan(6, n_classes=3, branches=2, n_rows=1)
    plain = random_plan(6, n_classes=3, branches=1, n_rows=1)
    row, x = plan.rows[0], torch.randn(4, 3, dtype=torch.float64)
    labels = torch.tensor([0, 1, 2, 0])
    got = reference.run(plan, 4, x_T=x, labels=labels, noise=torch.zeros(1, 4, 3), dtype=torch.float64)
    c = reference.net(plan, float(row["c_in"]) * x, 0, labels)
    u = reference.net(plan, float(row["c_in"]) * x, 0, 2)
    for i in range(4):
        for j in range(3):
            f = (u + float(row["guidance"]) * (c - u))[i, j].item()
            expected, _ = row_by_hand(row, x[i, j].item(), f, [0.0] * 3, 0.0)
            assert got[i, j].item() == pytest.approx(expected, rel=1e-6)
    # Rows of the null class are not changed by guidance.
    same = reference.run(plain, 4, x_T=x, labels=labels, noise=torch.zeros(1, 4, 3), dtype=torch.float64)
    torch.testing.assert_close(got[2], same[2], rtol=1e-12, atol=1e-12)
    assert not torch.allclose(got[0], same[0])


def test_one_label_for_all() -> None:
    plan = random_plan(6, n_classes=3)
    assert torch.equal(
        reference.run(plan, 3, labels=2), reference.run(plan, 3, labels=torch.tensor([2, 2, 2]))
    )
    assert not torch.equal(reference.run(plan, 3, labels=2), reference.run(plan, 3, labels=1))


@pytest.mark.parametrize(
    "labels", [None, 3, -1, torch.zeros(2, dtype=torch.int64), torch.zeros(3), [0, 1, 3]]
)
def test_wrong_labels(labels: Any) -> None:
    with pytest.raises(ValueError, match=r"labels: got .*accepted: an integer from 0 to 2, or \(3,\)"):
        reference.run(random_plan(6, n_classes=3), 3, labels=labels)


def test_labels_without_classes() -> None:
    with pytest.raises(ValueError, match=r"labels: .*no classes"):
        reference.run(random_plan(6), 3, labels=0)


@pytest.mark.parametrize("arguments", [{"n": -1}, {"n": 1, "start": 1 << 48}, {"n": 1, "start": -1}])
def test_wrong_ranges(arguments: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=r"n: got|start: got"):
        reference.run(random_plan(6), **arguments)


def any_row(seed: int, **changes: Any) -> StepRow:
    """A row with every term; row 2 of a random table, pushing, with noise and an evaluation."""
    base = random_table(seed, 12)
    row = next(row for row in base if row.eval and row.push and row.s and math.isfinite(row.clip))
    return replace(row, **changes)


@pytest.mark.parametrize("shape", [(), (3,), (2, 3, 2)])
def test_reverse_step_by_hand(shape: tuple[int, ...]) -> None:
    row = any_row(1)
    n = 4
    x, f = torch.randn(2, n, *shape, dtype=torch.float64)
    history = [torch.randn(n, *shape, dtype=torch.float64) for _ in range(3)]
    past = [h.clone() for h in history]
    got = reference.reverse_step_ref(x, f, row, seed=9, step=4, start=6, history=history)
    z = noise.normal_ref(n, math.prod(shape), seed=9, step=4, start=6).double().reshape(x.shape)
    fields = {name: getattr(row, name) for name in solvers.table.COEFFICIENTS} | {"flags": PUSH}
    for i in np.ndindex(*x.shape):
        h = [p[i].item() for p in past]
        expected, pushed = row_by_hand(fields, x[i].item(), f[i].item(), h, z[i].item())
        assert got[i].item() == pytest.approx(expected, rel=1e-12)
        assert [kept[i].item() for kept in history] == pytest.approx(pushed, rel=1e-12)


def test_reverse_step_is_a_step_of_run() -> None:
    plan, table = random_plan(11, n_rows=8), random_table(11, 8)
    assert np.array_equal(plan.rows, table.rows)
    trajectory = reference.run(plan, 5, seed=1, start=3, return_trajectory=True)
    history = [torch.zeros(5, 3) for _ in range(3)]
    for i, row in enumerate(table):
        x = trajectory[i]
        f = reference.net(plan, row.c_in * x, row.table) if row.eval else None
        x = reference.reverse_step_ref(x, f, row, seed=1, step=i, start=3, history=history)
        assert torch.equal(x, trajectory[i + 1])


def test_history_moves_only_on_push() -> None:
    row = any_row(2, push=False)
    history = [torch.ones(2, 3) for _ in range(3)]
    reference.reverse_step_ref(torch.randn(2, 3), torch.randn(2, 3), row, seed=0, history=history)
    assert all(torch.equal(h, torch.ones(2, 3)) for h in history)


def test_a_shorter_history() -> None:
    row = any_row(2, terms=1 << 8 | 1 << 2 | 1 << 11, s=0.0)  # c2, p_F, push
    x, f = torch.randn(2, 2, 3)
    history = [torch.ones(2, 3), torch.full((2, 3), 2.0)]
    got = reference.reverse_step_ref(x, f, row, history=history)
    torch.testing.assert_close(got, torch.full((2, 3), 2 * row.c2))
    torch.testing.assert_close(history[0], row.p_F * f)
    assert torch.equal(history[1], torch.ones(2, 3))
    for short in ([], history[:1], [*history, *history]):
        with pytest.raises(ValueError, match=r"history: got .*accepted: 2 to 3"):
            reference.reverse_step_ref(x, f, row, history=short)


@pytest.mark.parametrize("scale", [0.0, 1.0, 2.5, torch.tensor([0.0, 1.0, 2.5])])
def test_guided_step(scale: Any) -> None:
    row = any_row(3, push=False)
    x, c, u, *past = torch.randn(6, 3, 2, 2)
    options: dict[str, Any] = {"seed": 2, "history": past}
    column = scale.reshape(3, 1, 1) if isinstance(scale, Tensor) else scale
    expected = reference.reverse_step_ref(x, u + column * (c - u), row, **options)
    got = reference.reverse_step_ref(x, c, row, uncond_output=u, guidance_scale=scale, **options)
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)


def test_learned_variance() -> None:
    row = any_row(3, push=False)
    x, f, z, variance, *past = torch.randn(7, 3, 2)
    options: dict[str, Any] = {"history": past, "noise": z}
    quiet = reference.reverse_step_ref(x, f, replace(row, s=0.0), **options)
    got = reference.reverse_step_ref(x, f, row, log_variance=variance, **options)
    torch.testing.assert_close(got, quiet + (variance / 2).exp() * z)
    assert torch.equal(
        reference.reverse_step_ref(x, f, replace(row, s=0.0), log_variance=variance, **options), quiet
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_rounded_once(dtype: torch.dtype) -> None:
    row = any_row(4)
    x, f, *past = (tensor.to(dtype) for tensor in torch.randn(5, 6, 3))
    wide = [h.float() for h in past]
    expected = reference.reverse_step_ref(x.float(), f.float(), row, seed=1, history=wide)
    got = reference.reverse_step_ref(x, f, row, seed=1, history=past)
    assert got.dtype == dtype and torch.equal(got, expected.to(dtype))
    assert all(torch.equal(a, b.to(dtype)) for a, b in zip(past, wide, strict=True))


def test_noise_needs_a_source() -> None:
    row = any_row(4)
    x = torch.randn(2, 3)
    with pytest.raises(ValueError, match=r"seed: got None .*accepted: an integer, or noise"):
        reference.reverse_step_ref(x, x, row, history=[x.clone() for _ in range(3)])
    quiet = reference.reverse_step_ref(x, x, replace(row, s=0.0), history=[x.clone() for _ in range(3)])
    assert quiet.shape == x.shape
    assert reference.reverse_step_ref(x[:0], x[:0], row, seed=0, history=[x[:0]] * 3).shape == (0, 3)
