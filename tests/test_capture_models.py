"""Published denoisers, captured as they are: the plan is the module, and the native chain is torch's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import published_nets as nets
import pytest
import torch
from capture_nets import in_float64
from samplers import assert_close_as_torch
from torch import nn

import diffusion_fast as df
from diffusion_fast import reference
from diffusion_fast.capture import network_time

T = 40
SCHEDULE = df.NoiseSchedule.linear(n_steps=T, beta_start=1e-3, beta_end=0.15)
ULP = 2.0**-23


@pytest.fixture(autouse=True)
def one_torch_thread() -> None:
    torch.set_num_threads(1)


# make, shape, options of the sampler, operations of the program at most
MODELS: dict[str, tuple[Callable[[], nn.Module], int, dict[str, Any], int]] = {
    "TabDDPM": (lambda: nets.TabDDPM(14), 14, {}, 4),
    "TabDDPM with classes": (lambda: nets.TabDDPM(14, n_classes=4), 14, {"n_classes": 3}, 4),
    "TabSyn": (lambda: nets.TabSyn(7), 7, {"time_input": "sigma"}, 12),
    "Diffusion-QL": (lambda: nets.DiffusionQL(), 6, {}, 4),
    "IDQL": (lambda: nets.IDQL(), 3, {}, 12),
    "2-D toy": (lambda: nets.Toy2D(), 2, {}, 26),
    "FiLM": (lambda: nets.FiLM(), 4, {"n_classes": 3}, 26),
    "smalldiffusion": (lambda: nets.SmallDiffusion(), 2, {"time_input": "sigma"}, 6),
}


def sampler(name: str, backend: str) -> tuple[df.Sampler, nn.Module]:
    make, dim, options, _ = MODELS[name]
    torch.manual_seed(len(name))
    model = make().eval()
    made = df.Sampler(
        model, SCHEDULE, shape=(dim,), solver="ddim", eta=0.5, steps=20, backend=backend, **options
    )
    return made, model


@pytest.mark.parametrize("name", MODELS)
def test_the_plan_is_the_module(name: str) -> None:
    native, model = sampler(name, "native")
    assert native.plan is not None and len(native.plan.ops) <= MODELS[name][3], native.explain()
    n = 300
    x, table = torch.randn(n, *native.shape), torch.randint(0, 20, (n,))
    t = network_time(native.table.table_timesteps, native.time_input, SCHEDULE)[table]
    y = torch.randint(0, 4, (n,)) if native.n_classes else None
    args = [t] if y is None else [t, y]
    plain = model(x, *args).detach()
    exact = in_float64(model, x, *args)
    slack = 4 * ULP * exact.square().mean().sqrt()
    got = reference.net(native.plan, x, table, y)
    assert (got - exact).abs().max() <= 2 * (plain - exact).abs().max() + slack


@pytest.mark.parametrize("name", MODELS)
def test_the_native_chain_is_torchs(name: str) -> None:
    native, _ = sampler(name, "native")
    by_torch, _ = sampler(name, "torch")
    assert native.plan is not None
    labels = torch.arange(257) % 4 if native.n_classes else None
    exact = reference.run(native.plan, 257, seed=5, labels=labels, dtype=torch.float64)
    got, want = (made.sample(257, seed=5, labels=labels) for made in (native, by_torch))
    assert_close_as_torch(got, want, exact)
