"""precision="table" and "auto" of Sampler: samples, choices, what is recorded of them."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from samplers import SCHEDULE, make_model

import diffusion_fast as df
from diffusion_fast import metrics, precision
from diffusion_fast.long_runs import run


def make(dim: int = 2, n_classes: int | None = None, wide: bool = False, **options: Any) -> df.Sampler:
    hidden = (64, 64) if wide else (32, 24)
    return df.Sampler(make_model(n_classes, dim=dim, hidden=hidden), SCHEDULE, **options)


def difference(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).square().mean().sqrt() / b.std())


@pytest.mark.parametrize("dim", [1, 2])
@pytest.mark.parametrize("solver", ["ddpm", "unipc"])
def test_samples_are_those_of_float32_to_the_tolerance(dim: int, solver: str) -> None:
    exact = make(dim, solver=solver, steps=10)
    table = make(dim, solver=solver, steps=10, precision="table", tolerance=1e-4)
    a, b = table.sample(4000, seed=5), exact.sample(4000, seed=5)
    assert not torch.equal(a, b)
    assert difference(a, b) < 1e-3


def test_classes_guidance_fixed_coordinates_and_given_noise() -> None:
    how: dict[str, Any] = {"guidance_scale": 2.0, "steps": 8}
    exact, table = make(2, 3, **how), make(2, 3, **how, precision="table", tolerance=1e-4)
    labels = torch.arange(999) % 4
    fixed = {"fixed_mask": torch.tensor([True, False]), "fixed_values": torch.tensor([0.5, 0.0])}
    noise = torch.randn(8, 999, 2, generator=torch.Generator().manual_seed(0))
    for call in ({}, fixed, {"noise": noise}, {"x_T": noise[0]}, {"return_trajectory": True}):
        a = table.sample(999, labels=labels, **call)
        b = exact.sample(999, labels=labels, **call)
        assert difference(a, b) < 2e-3, call.keys()
        one = table.sample(1, start=500, labels=int(labels[500]), **fixed)
        assert torch.equal(one[0], table.sample(999, labels=labels, **fixed)[500])


def test_dynamic_threshold() -> None:
    how: dict[str, Any] = {"dynamic_threshold": 0.9, "clip": 2.0, "steps": 8}
    exact, table = make(**how), make(**how, precision="table")
    assert difference(table.sample(999), exact.sample(999)) < 1e-2


def test_what_explain_says() -> None:
    text = make(precision="table", steps=5).explain()
    for words in ("from a table", "5 grids of", " MB;", "tolerance 0.001, of the largest", "pays from about"):
        assert words in text
    tiny = make_model(None, dim=2, hidden=(3,))
    assert "does not pay" in df.Sampler(tiny, SCHEDULE, precision="table", steps=2).explain()


def test_a_copy_draws_the_same() -> None:
    sampler = make(precision="table", steps=5)
    copy = pickle.loads(pickle.dumps(sampler))
    assert copy.tier.identity == sampler.tier.identity
    assert torch.equal(copy.sample(100), sampler.sample(100))


def test_each_samples_own_guidance_is_refused() -> None:
    sampler = make(2, 3, guidance_scale=2.0, precision="table", steps=3)
    with pytest.raises(ValueError, match=r"guidance_scale: got a torch.float32 tensor.*the Sampler's own"):
        sampler.sample(4, labels=0, guidance_scale=torch.ones(4))


def test_samples_own_guidance_in_one_call() -> None:
    """No table is made to be refused, and auto does not depend on what it would find."""
    model, scales = make_model(3, dim=2, hidden=(64, 64)), torch.linspace(0, 3, 5000)
    call: dict[str, Any] = {"labels": 0, "guidance_scale": scales, "steps": 5}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(precision.network_table, "build", None)
        auto = df.sample(model, SCHEDULE, 5000, precision="auto", tolerance=0.5, **call)
        assert torch.equal(auto, df.sample(model, SCHEDULE, 5000, **call))
        with pytest.raises(
            ValueError, match=r"guidance_scale: got .*accepted: a number with precision='table'"
        ):
            df.sample(model, SCHEDULE, 5000, precision="table", **call)
        with pytest.raises(ValueError, match="tolerance"):
            df.sample(model, SCHEDULE, 5000, precision="auto", tolerance=-1, **call)
    sampler = make(2, 3, wide=True, guidance_scale=2.0, precision="auto", tolerance=0.1, steps=3)
    assert sampler.tier.name == "table"
    with pytest.raises(
        ValueError, match=r"guidance_scale: .*precision='float32' of the Sampler, in place of"
    ):
        sampler.sample(4, labels=0, guidance_scale=torch.ones(4))


# ---- auto


def test_auto_takes_a_table_that_holds() -> None:
    sampler = make(wide=True, steps=10, precision="auto", tolerance=1e-2)
    assert sampler.tier.name == "table"
    assert "holds: 4,096 samples differ by" in sampler.explain()
    again = make(wide=True, steps=10, precision="auto", tolerance=1e-2)
    assert sampler.tier.identity == again.tier.identity
    a, b = sampler.sample(20_000, seed=9), make(wide=True, steps=10).sample(20_000, seed=9)
    assert difference(a, b) < 2e-2
    distance = metrics.sliced_wasserstein(a, b)
    assert distance.value < distance.floor


def test_auto_measures_what_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """A candidate that does not hold is left for the next, and all of them for float32."""
    found: list[float] = []
    build = precision.network_table.build

    def spoilt(plan: Any, tolerance: float, threads: int) -> Any:
        found.append(tolerance)
        table = build(plan, tolerance, threads)
        table.values[:] += 0.1 if tolerance == 1e-2 else 0.0
        return table

    monkeypatch.setattr(precision.network_table, "build", spoilt)
    sampler = make(wide=True, steps=10, precision="auto", tolerance=1e-2)
    assert found == [1e-2, 1e-2 / 8]
    assert sampler.tier.table is not None
    assert sampler.tier.table.tolerance == 1e-2 / 8
    assert "does not hold" in sampler.explain()
    monkeypatch.setattr(precision, "TABLES", (1.0,))
    sampler = make(wide=True, steps=10, precision="auto", tolerance=1e-2)
    assert sampler.tier.name == "float32"
    assert torch.equal(sampler.sample(50), make(wide=True, steps=10).sample(50))
    assert "no faster tier holds" in sampler.explain()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"dim": 3}, "3 elements"),
        ({"wide": True, "expected_samples": 500}, "500 are expected"),
    ],
)
def test_auto_is_float32_where_a_table_cannot_pay(options: dict[str, Any], why: str) -> None:
    sampler = make(**options, steps=5, precision="auto")
    assert sampler.tier.identity == "float32"
    assert why in sampler.explain()


def test_auto_is_float32_for_a_tiny_network() -> None:
    tiny = df.Sampler(make_model(None, dim=2, hidden=(3,)), SCHEDULE, precision="auto", steps=2)
    assert "less work than reading a table" in tiny.explain()


def test_sample_tells_auto_how_many() -> None:
    model = make_model(None, dim=2, hidden=(64, 64))
    few = df.sample(model, SCHEDULE, 100, precision="auto", steps=5)
    assert torch.equal(few, df.sample(model, SCHEDULE, 100, steps=5))
    assert df.sample(model, SCHEDULE, 0, precision="auto", steps=5).shape == (0, 2)
    for n, error in ((-5, ValueError), (2.5, TypeError)):
        with pytest.raises(error, match=r"^n: "):
            df.sample(model, SCHEDULE, n, precision="auto", steps=5)


def test_samples_that_are_not_finite_do_not_hold() -> None:
    given, exact = np.zeros((50, 3)), np.random.default_rng(0).standard_normal((50, 3))
    for bad in (np.nan, np.inf):
        given[7, 1] = bad
        for pair in ((given, exact), (exact, given)):
            holds, words = precision._compared(*pair, 1e-3)
            assert not holds and "not finite" in words


# ---- long runs


def test_a_runs_chunks_are_blocks_of_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    table = make(precision="table", steps=5)
    block = table.tier.table.block
    assert block % 144 == 0 and 8192 <= block <= 1 << 16
    for n in (100, 200_000, 10**8):
        size = run._chunk_size(None, n, table, 2, 1)
        assert size == n or (size >= block and size % block == 0)
    monkeypatch.setitem(vars(table.tier.table), "block", 144 * 455)
    assert run._chunk_size(None, 10**6, table, 1, 1) == 144 * 455


def test_a_run_goes_on_in_its_own_tier_alone(tmp_path: Path) -> None:
    path = tmp_path / "x.npy"
    table = make(precision="table", steps=5)
    df.sample_to(path, table, 1000)
    assert np.array_equal(np.load(path), table.sample(1000).numpy())
    assert df.verify(path, sampler=make(precision="table", steps=5), redraw="all").good
    for other in (make(steps=5), make(precision="table", steps=5, tolerance=1e-2)):
        with pytest.raises(ValueError, match=r"another precision, .*accepted: table, tolerance 0.001, "):
            df.verify(path, sampler=other, redraw="all")
