"""precision="bfloat16" on the CPU: the kernel beside its twin, one set of bits, what Sampler makes of it.

Where the processor lacks the instruction, what stands in for it is run: the same products and sums but for
subnormal numbers.
"""

from __future__ import annotations

import functools
import pickle
import platform
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from nets import random_plan
from samplers import SCHEDULE, make_model
from test_chain import ISAS, run, same_bits

import diffusion_fast as df
from diffusion_fast import _cpu, precision, reference
from diffusion_fast.plan import Plan
from diffusion_fast.plan_validation import terms_of

PLANS: dict[str, Plan] = {
    "one wide layer": random_plan(1, 2, (64, 64), activation="silu"),
    "odd widths": random_plan(2, 3, (33, 65, 47)),
    "more than a chain of sums": random_plan(3, 40, (300, 270), n_rows=3, activation="relu"),
    "guided": random_plan(4, 2, (40, 40), n_classes=5, branches=2),
    "narrow": random_plan(5, 2, (31, 31)),
}


def program(plan: Plan, low_rows: int | None = None, isa: str = "") -> Any:
    rows = len(plan.rows) if low_rows is None else low_rows
    return _cpu.Program(plan.to_bytes(), isa, low_rows=rows, emulated=True)


def labels_of(plan: Plan, n: int) -> np.ndarray | None:
    return np.arange(n, dtype=np.int32) % plan.n_classes if plan.n_classes else None


@pytest.mark.parametrize("name", PLANS)
def test_the_kernel_is_its_twin(name: str) -> None:
    """One row, beside the twin in float64. Where two sums differ in their last bit, a value may round to
    another neighbour in bfloat16: a few samples then differ by its 2^-8, whoever adds up."""
    plan, n = PLANS[name], 500
    plan = replace(plan, rows=plan.rows[:1], terms=terms_of(plan.rows[:1]))
    y = labels_of(plan, n)
    labels = None if y is None else torch.from_numpy(y)
    ours = run(program(plan), n, labels=y, dim=plan.dim)
    exact, theirs = (
        reference.run(plan, n, labels=labels, low_rows=1, dtype=dtype).double().numpy()
        for dtype in (torch.float64, torch.float32)
    )
    scale = np.sqrt(np.square(exact).mean())
    errors = [np.abs(given - exact).max(axis=1) / scale for given in (ours, theirs)]
    assert np.quantile(errors[0], 0.8) <= 2 * np.quantile(errors[1], 0.8) + 5e-7
    assert errors[0].max() < 2**-7
    full = reference.run(plan, n, labels=labels, dtype=torch.float64).numpy()
    rounded = np.sqrt(np.square(exact - full).mean()) / scale
    assert rounded == 0 if name == "narrow" else 1e-5 < rounded < 1e-2


@pytest.mark.parametrize("name", PLANS)
def test_any_split_threads_and_stand_in(name: str) -> None:
    """Tiles of one to three vectors, single samples, threads; portable and AVX2 have the same stand-in."""
    plan, n = PLANS[name], 100
    y = labels_of(plan, n)
    whole = run(program(plan), n, seed=7, labels=y, dim=plan.dim, threads=2)
    stands_in = [isa for isa in ISAS if isa != "avx512_bf16"]
    for isa in stands_in if _cpu.isa() in stands_in else [_cpu.isa()]:
        for size in (1, 7, 16, 33, 48, 100) if isa != "portable" else (1, 100):
            parts = []
            for at in range(0, n, size):
                m = min(size, n - at)
                part = None if y is None else y[at : at + m]
                parts.append(run(program(plan, isa=isa), m, seed=7, start=at, labels=part, dim=plan.dim))
            assert same_bits(np.vstack(parts), whole), (isa, size)


@pytest.mark.skipif(not _cpu.has_bfloat16(), reason="this processor has no AVX-512 BF16")
@pytest.mark.parametrize("name", PLANS)
def test_the_stand_in_is_the_instruction(name: str) -> None:
    plan, n = PLANS[name], 100
    y = labels_of(plan, n)
    both = [
        run(program(plan, isa=isa), n, seed=7, labels=y, dim=plan.dim) for isa in ("avx512_bf16", "avx512")
    ]
    assert same_bits(*both)


def test_the_last_rows_in_float32() -> None:
    plan, n = PLANS["one wide layer"], 64
    rows = len(plan.rows)
    full, half, none = (
        run(program(plan, low), n, dim=plan.dim, trajectory_rows=rows) for low in (rows, 3, 0)
    )
    assert same_bits(none, run(plan, n, trajectory_rows=rows))
    assert same_bits(half[:4], full[:4]) and not same_bits(half[-1], full[-1])
    assert not same_bits(half[1], none[1])


def test_nan_and_infinity_come_through() -> None:
    plan = PLANS["one wide layer"]
    x = np.zeros((40, 2), np.float32)
    x[3, 0], x[7, 1] = np.nan, np.inf
    report = (2, [3, 7])
    out = run(program(plan), 40, x_T=x, dim=2, bad=report)
    assert np.isfinite(np.delete(out, [3, 7], axis=0)).all()


# ---- Sampler


@pytest.fixture
def able(monkeypatch: pytest.MonkeyPatch) -> None:
    """A processor that has the instruction, or the stand-in for it."""
    monkeypatch.setattr(_cpu, "has_bfloat16", lambda: True)
    monkeypatch.setattr(_cpu, "Program", functools.partial(_cpu.Program, emulated=True))


def make(hidden: tuple[int, ...] = (64, 64), dim: int = 3, **options: Any) -> df.Sampler:
    return df.Sampler(make_model(dim=dim, hidden=hidden), SCHEDULE, steps=10, **options)


@pytest.mark.skipif(_cpu.has_bfloat16(), reason="this processor has AVX-512 BF16")
def test_without_the_instruction_it_is_refused() -> None:
    with pytest.raises(ValueError, match=r"precision: got 'bfloat16'.*'float32', 'table' or 'auto'.*BF16"):
        make(precision="bfloat16")
    with pytest.raises(ValueError, match="low_rows"):
        _cpu.Program(PLANS["narrow"].to_bytes(), low_rows=1)
    assert "bfloat16" not in make(precision="auto", tolerance=0.5).explain()
    with pytest.raises(ValueError, match=r"precision: got 'bfloat16'.*BF16"):
        df.Sampler(Sorting().eval(), SCHEDULE, shape=3, precision="bfloat16")


def test_a_sampler(able: None) -> None:
    exact, low = make(), make(precision="bfloat16")
    a, b = exact.sample(4000, seed=3), low.sample(4000, seed=3)
    error = float((a - b).square().mean().sqrt() / a.std())
    assert 1e-5 < error < 2e-2
    assert torch.equal(low.sample(1, seed=3, start=17)[0], b[17])
    assert "bfloat16" in low.explain() and low.tier.identity == "bfloat16, 10 rows"
    assert torch.equal(pickle.loads(pickle.dumps(low)).sample(100, seed=3), b[:100])
    with pytest.raises(ValueError, match=r"tolerance: got 0\.1"):
        make(precision="bfloat16", tolerance=0.1)


class Sorting(torch.nn.Module):
    """What cannot be fused."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x.sort(dim=1).values


def test_where_torch_runs_the_module_it_is_float32(able: None) -> None:
    for name in ("bfloat16", "auto"):
        sampler = df.Sampler(Sorting().eval(), SCHEDULE, shape=3, precision=name)
        assert sampler.tier.identity == "float32" and f"{name}: float32, for torch" in sampler.explain()


def test_auto_has_no_pilot_with_a_context(able: None) -> None:
    class Conditioned(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = torch.nn.Sequential(
                torch.nn.Linear(9, 64), torch.nn.SiLU(), torch.nn.Linear(64, 64), torch.nn.Linear(64, 3)
            )

        def forward(self, x: torch.Tensor, t: torch.Tensor, c: torch.Tensor) -> torch.Tensor:
            return self.net(torch.cat([x, t[:, None] / 40, c], dim=1))

    how: dict[str, Any] = {"shape": 3, "context_shape": 5, "steps": 5}
    auto, low = (df.Sampler(Conditioned().eval(), SCHEDULE, **how, precision=p) for p in ("auto", "bfloat16"))
    assert auto.tier.name == "float32" and low.tier.name == "bfloat16"
    assert low.sample(10, context=torch.ones(5)).isfinite().all()


def test_narrow_networks_stay_in_float32(able: None) -> None:
    narrow = make((31, 31), precision="bfloat16")
    assert torch.equal(narrow.sample(99), make((31, 31)).sample(99))
    assert "no layer has 32 inputs and outputs" in narrow.explain() and narrow.tier.identity == "float32"


def test_auto_takes_it_where_the_samples_hold(able: None) -> None:
    wide = make(precision="auto", tolerance=0.1)
    assert wide.tier.identity == "bfloat16, 10 rows"
    assert "auto: no table, for a sample has 3 elements" in wide.explain()
    assert "auto: bfloat16 holds" in wide.explain()
    tight = make(precision="auto", tolerance=1e-6)
    assert tight.tier.name == "float32" and "no faster tier holds" in tight.explain()
    # between: an error that goes as rows at the end are left out
    errors = [float(e) for e in re.findall(r"differ by (\S+) rms", tight.explain())]
    assert len(errors) == len(precision.LOW_SHARES) and errors == sorted(errors, reverse=True)
    some = make(precision="auto", tolerance=(errors[0] + errors[1]) / 2)
    assert some.tier.identity == "bfloat16, 8 rows"
    few = make(precision="auto", tolerance=0.1, expected_samples=1000)
    assert few.tier.name == "float32"


# ---- the instruction, in what was compiled


def test_the_kernel_has_the_instruction() -> None:
    disassembler = shutil.which("objdump")
    if disassembler is None:
        pytest.skip("objdump (binutils) is not installed")
    if platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("instructions of x86-64")
    library = Path(_cpu.__file__)
    text = subprocess.run(
        [disassembler, "-d", "--no-show-raw-insn", library], capture_output=True, text=True, check=True
    ).stdout
    assert text.count("vdpbf16ps") > 100 and "vcvtne2ps2bf16" in text
    # In the largest block 24 products run between two jumps, their sums in registers.
    bodies = re.split(r"\n.*\tj[a-z]+ ", text)
    largest = max(bodies, key=lambda body: body.count("vdpbf16ps"))
    products = re.findall(r"vdpbf16ps .*,(%zmm\d+)\n", largest)
    assert len(products) >= 24 and len(set(products[:24])) == 24
