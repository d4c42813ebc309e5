"""Fixed coordinates (inpainting by replacement) and dynamic thresholding, beside float64 and closed forms."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from nets import statistical_plan
from samplers import N_CLASSES, SCHEDULE, T, assert_close_as_torch, make_model
from test_chain_bits import linear_plan
from torch import Tensor, nn

import diffusion_fast as df
from diffusion_fast import _cpu, reference
from diffusion_fast.solvers.spacing import resolve_sigmas

N = 130
MASK = torch.tensor([True, False, True])
VALUES = torch.randn(N, 3, generator=torch.Generator().manual_seed(8))


def kernel(plan: df.Plan, x_T: Tensor, isa: str = "") -> Tensor:
    out = torch.empty_like(x_T)
    _cpu.Program(plan.to_bytes(), isa).run(out.data_ptr(), len(x_T), 0, 0, 1, x_T=x_T.data_ptr())
    return out


# ---- fixed coordinates


@pytest.mark.parametrize("backend", ["native", "torch", "auto"])
@pytest.mark.parametrize("clean", [False, True])
@pytest.mark.parametrize("solver", ["ddpm", "dpmpp_2m", "heun"])
def test_fixed_coordinates_beside_float64(solver: str, clean: bool, backend: str) -> None:
    options: dict[str, Any] = {"solver": solver, "steps": 12}
    native = df.Sampler(make_model(), SCHEDULE, backend="native", **options)
    sampler = df.Sampler(make_model(), SCHEDULE, backend=backend, **options)
    assert native.plan is not None
    call: dict[str, Any] = {"fixed_mask": MASK, "fixed_values": VALUES, "fixed_clean": clean}
    got = sampler.sample(N, seed=6, start=40, **call)
    fixed = reference.Fixed(MASK, VALUES, clean)
    plain, exact = (
        reference.run(native.plan, N, seed=6, start=40, fixed=fixed, dtype=d)
        for d in (torch.float32, torch.float64)
    )
    assert torch.equal(got[:, MASK], VALUES[:, MASK])
    assert_close_as_torch(got[:, ~MASK], plain[:, ~MASK], exact[:, ~MASK])


def test_the_level_of_a_replaced_coordinate() -> None:
    """The trajectory's rows hold what the chain made of x; what the network saw is its input: a network that
    returns it, in a table that keeps F alone, shows it."""
    seen = nn.Identity()

    class Seen(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            return seen(x)

    sampler = df.Sampler(Seen().eval(), SCHEDULE, shape=3, backend="torch")
    record: list[Tensor] = []
    seen.register_forward_hook(lambda module, args, out: record.append(args[0].clone()))
    sampler.sample(N, seed=2, start=9, fixed_mask=MASK, fixed_values=VALUES)
    assert len(record) == T
    for i, u in enumerate(record):
        abar = SCHEDULE.alphas_cumprod[T - 1 - i]
        z = df.noise.normal(N, 3, seed=2, step=i, purpose="forward", start=9)
        want = abar.sqrt() * VALUES + (1 - abar).sqrt() * z
        torch.testing.assert_close(u[:, MASK], want.float()[:, MASK])


def test_levels_of_every_kind_of_schedule() -> None:
    """A row's level is that which the solver steps from, whatever the network is told of the time."""
    for solver in ("ddpm", "ddim", "euler", "dpmpp_2m", "unipc"):
        rows = df.solvers.solve(solver, SCHEDULE).rows
        abar = SCHEDULE.alphas_cumprod.flip(0).numpy()
        np.testing.assert_allclose(rows["signal"], np.sqrt(abar), rtol=1e-6)
        np.testing.assert_allclose(rows["noise"], np.sqrt(1 - abar), rtol=1e-6)
        for spacing in ("karras", "exponential", "logsnr"):
            rows = df.solvers.solve(solver, SCHEDULE, steps=7, spacing=spacing).rows
            want = resolve_sigmas(SCHEDULE, 7, spacing, None)
            np.testing.assert_allclose(rows["noise"] / rows["signal"], want, rtol=1e-5)
    sigma, flow = df.SigmaSchedule.karras(7), df.FlowSchedule.linear(7)
    rows = df.solvers.solve("euler", sigma).rows[1:]  # the first scales x
    np.testing.assert_allclose(rows["noise"], sigma.sigmas[: len(rows)], rtol=1e-6)
    assert (rows["signal"] == 1).all()
    rows = df.solvers.solve("flow_euler", flow).rows
    np.testing.assert_allclose(rows["noise"], flow.times[: len(rows)], rtol=1e-6)
    np.testing.assert_allclose(rows["signal"], 1 - flow.times[: len(rows)], atol=1e-6)
    two = df.solvers.solve("dpm_solver_2", SCHEDULE, steps=4).rows
    levels = two["noise"] / two["signal"]
    np.testing.assert_allclose(levels[1:-1:2] ** 2, levels[:-2:2] * levels[2::2], rtol=1e-5)


def test_the_law_of_an_inpainted_gaussian() -> None:
    """Data N(0, C) with its exact, linear denoiser: the mean under replacement is the chain without noise, in
    float64. (The method is not exact: the conditional mean is 1.35.) 4.5 sigma of 5,000 samples:
    a false alarm in 10^5 seeds."""
    C = torch.tensor([[1.0, 0.9], [0.9, 1.0]])
    schedule = df.NoiseSchedule.linear(50, beta_start=1e-3, beta_end=0.25)

    class Exact(nn.Module):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:
            abar = schedule.alphas_cumprod.float()[t][:, None, None]
            total = abar * C + (1 - abar) * torch.eye(2)
            score = -torch.linalg.solve(total, x[:, :, None])[:, :, 0]
            return -score * (1 - abar[:, :, 0]).sqrt()

    sampler = df.Sampler(Exact().eval(), schedule, shape=2)
    mask, values = torch.tensor([True, False]), torch.tensor([1.5, 0.0])
    x = sampler.sample(5_000, seed=0, fixed_mask=mask, fixed_values=values)
    assert (x[:, 0] == 1.5).all()
    mean = torch.zeros(1, 2, dtype=torch.float64)
    for i, row in enumerate(sampler.table):
        mean[0, 0] = row.signal * 1.5
        F = Exact()(mean.float(), torch.tensor([49 - i])).double()
        mean = row.a * mean + row.e * F
    assert 0.5 < mean[0, 1] < 1.35
    assert abs(x[:, 1].mean() - mean[0, 1]) < 4.5 * x[:, 1].std() / 5_000**0.5


@pytest.mark.parametrize("dim", [1, 2, 3, 9])
def test_the_same_bits_however_split(dim: int) -> None:
    sampler = df.Sampler(make_model(dim=dim), SCHEDULE, backend="native", steps=7)
    mask = torch.arange(dim) % 2 == 0
    call: dict[str, Any] = {"fixed_mask": mask, "fixed_values": torch.randn(N, dim), "seed": 1, "start": 5}
    whole = sampler.sample(N, threads=1, **call)
    assert torch.equal(sampler.sample(N, threads=2, **call), whole)
    for size in (1, 33):
        assert torch.equal(torch.cat(list(sampler.stream(N, size, **call))), whole)
    row = call["fixed_values"][0]
    same = call | {"fixed_values": row}
    assert torch.equal(
        sampler.sample(N, **same), sampler.sample(N, **call | {"fixed_values": row.expand(N, -1)})
    )
    path = sampler.sample(N, return_trajectory=True, **call)
    assert torch.equal(path[-1], whole)


def test_values_are_in_the_units_of_the_samples() -> None:
    standardiser = df.Standardiser([100.0, -2.0, 7.0], [30.0, 0.1, 3.0])
    values = torch.tensor([123.456, 0.0, 6.789])
    sampler = df.Sampler(make_model(), SCHEDULE, standardiser=standardiser, steps=5)
    x = sampler.sample(N, fixed_mask=MASK, fixed_values=values)
    assert torch.equal(x[:, MASK], values[MASK].expand(N, -1))
    inside = df.Sampler(make_model(), SCHEDULE, steps=5).sample(
        N, fixed_mask=MASK, fixed_values=standardiser.transform(values[None])[0]
    )
    torch.testing.assert_close(x[:, 1], standardiser.inverse(inside)[:, 1])


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "a mask alone": ({"fixed_mask": MASK}, r"fixed_values: got None"),
    "values alone": ({"fixed_values": VALUES[:4]}, r"fixed_mask: got None"),
    "clean alone": ({"fixed_clean": True}, r"fixed_clean: got True .*without fixed_mask"),
    "a mask of numbers": ({"fixed_mask": MASK.float(), "fixed_values": VALUES[0]}, r"fixed_mask: got .*bool"),
    "a mask per sample": (
        {"fixed_mask": MASK.expand(4, 3), "fixed_values": VALUES[0]},
        r"fixed_mask: got .*\(4, 3\).*\(3,\)",
    ),
    "values too short": ({"fixed_mask": MASK, "fixed_values": VALUES[:3]}, r"fixed_values: got .*\(3, 3\)"),
    "NaN": ({"fixed_mask": MASK, "fixed_values": VALUES[0] * float("nan")}, r"fixed_values: got nan"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refusals_of_fixed_coordinates(name: str) -> None:
    call, pattern = REFUSED[name]
    out = torch.full((4, 3), 7.0)
    with pytest.raises((ValueError, TypeError), match=pattern):
        df.Sampler(make_model(), SCHEDULE, steps=2).sample(4, out=out, **call)
    assert (out == 7).all()


# ---- dynamic thresholding


@pytest.mark.parametrize("isa", _cpu.isas())
@pytest.mark.parametrize("dim", [1, 2, 5, 16, 33, 100, 256])
@pytest.mark.parametrize("ratio", [0.01, 0.5, 0.9, 0.995, 1.0])
def test_the_threshold_is_the_quantile(dim: int, ratio: float, isa: str) -> None:
    """x <- m with m = x thresholded, against numpy.quantile in float64, ties and zeros among the values."""
    table = {"p_x": 1, "b": 1, "e": 0, "clip": 3.0, "quantile": ratio}
    plan = linear_plan([np.eye(dim)], **table)
    rng = np.random.default_rng(dim)
    x = rng.standard_normal((70, dim)).astype(np.float32) * rng.choice([0.3, 1, 4], (70, 1)).astype(
        np.float32
    )
    x[::3, ::2] = x[::3, :1]
    x[5] = 0
    q = np.quantile(np.abs(x.astype(np.float64)), float(np.float32(ratio)), axis=1, keepdims=True).clip(1, 3)
    want = x.clip(-q, q) / q
    got = kernel(plan, torch.from_numpy(x), isa).numpy()
    np.testing.assert_allclose(got, want, rtol=4e-7, atol=1e-7)
    for i in (0, 3, 69):  # the few-sample path
        assert (kernel(plan, torch.from_numpy(x[i : i + 1]), isa).numpy() == got[i : i + 1]).all()


def test_nan_stays_in_its_sample() -> None:
    plan = linear_plan([np.eye(4)], p_x=1, b=1, e=0, clip=3.0, quantile=0.7)
    x = torch.randn(40, 4)
    x[3, 1] = float("nan")
    x[8, 0] = float("inf")
    program = _cpu.Program(plan.to_bytes())
    out = torch.empty_like(x)
    bad, rows = program.run(out.data_ptr(), 40, 0, 0, 1, x_T=x.data_ptr())
    assert 3 in rows and set(rows) <= {3, 8} and bad == len(rows)
    fine = [i for i in range(40) if i not in (3, 8)]
    assert torch.equal(out[fine], kernel(plan, x[fine]))


@pytest.mark.parametrize("solver", ["ddpm", "ddim", "dpmpp_2m"])
def test_thresholded_chains(solver: str) -> None:
    how: dict[str, Any] = {"solver": solver, "steps": 9, "clip": 1.5, "dynamic_threshold": 0.8}
    native, plain = (df.Sampler(make_model(), SCHEDULE, backend=b, **how) for b in ("native", "torch"))
    assert native.plan is not None
    got, exact = native.sample(N, seed=1), reference.run(native.plan, N, seed=1, dtype=torch.float64)
    assert_close_as_torch(got, plain.sample(N, seed=1), exact)
    clipped = df.Sampler(make_model(), SCHEDULE, **how | {"dynamic_threshold": None}).sample(N, seed=1)
    assert not torch.allclose(got, clipped, atol=1e-3)


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"dynamic_threshold": 0.9}, r"clip: got None .*from 1 up beside dynamic_threshold"),
        ({"dynamic_threshold": 0.9, "clip": 0.5}, r"clip: got 0\.5 .*from 1 up"),
        ({"dynamic_threshold": 1.5, "clip": 1.0}, r"dynamic_threshold: got 1\.5"),
        ({"dynamic_threshold": 0, "clip": 1.0}, r"dynamic_threshold: got 0 "),
    ],
)
def test_refusals_of_thresholds(options: dict[str, Any], pattern: str) -> None:
    with pytest.raises(ValueError, match=pattern):
        df.Sampler(make_model(), SCHEDULE, **options)


@pytest.mark.parametrize("seed", range(12))
def test_random_plans_with_every_flag(seed: int) -> None:
    """Rows with thresholds, rescale and guidance of their own on random programs: one set of bits, and the
    reference within the rule."""
    plan = statistical_plan(seed, N_CLASSES)
    dim = plan.dim
    labels = torch.arange(60, dtype=torch.int32) % N_CLASSES
    results = []
    for isa in _cpu.isas():
        out = torch.empty(60, dim)
        _cpu.Program(plan.to_bytes(), isa).run(out.data_ptr(), 60, 0, 9, 1, labels=labels.data_ptr())
        results.append(out)
    assert all(torch.equal(results[0], other) for other in results[1:])
    one = torch.empty(1, dim)
    _cpu.Program(plan.to_bytes()).run(one.data_ptr(), 1, 11, 9, 1, label=int(labels[11]))
    assert torch.equal(one[0], results[0][11])
    plain, exact = (
        reference.run(plan, 60, seed=9, labels=labels, dtype=d) for d in (torch.float32, torch.float64)
    )
    assert_close_as_torch(results[0], plain, exact)
