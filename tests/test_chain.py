"""The whole-chain kernel beside the plan's interpreter in float64: every shape, term and input in the rule.

That the bits are the same on every path is in test_chain_bits.py.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from nets import random_plan, random_program, random_table

from diffusion_fast import _cpu, models, noise, reference, solvers
from diffusion_fast.capture import capture
from diffusion_fast.plan import Plan, TileProgram, build_plan
from diffusion_fast.schedules import NoiseSchedule
from diffusion_fast.solvers.table import EVAL, ROW_DTYPE, StepTable
from diffusion_fast.tile_ops import ACTIVATIONS, LinearOp

ISAS = _cpu.isas()
FAST_ISAS = ISAS[:-1] or ISAS  # the portable one emulates fma: small sizes only
GUARD = np.float32(-12345)


def address(array: np.ndarray | None) -> int:
    return 0 if array is None else array.ctypes.data


def run(
    program: Plan | _cpu.Program,
    n: int,
    *,
    isa: str = "",
    seed: int = 0,
    start: int = 0,
    threads: int = 1,
    labels: Any = None,
    x_T: np.ndarray | None = None,
    noise: np.ndarray | None = None,
    trajectory_rows: int = 0,
    dim: int = 0,
    bad: tuple[int, list[int]] = (0, []),
) -> np.ndarray:
    """The kernel's samples, or its trajectory; nothing beyond the arrays may be written."""
    if isinstance(program, Plan):
        program, dim = _cpu.Program(program.to_bytes(), isa), program.dim
    out = np.full(n * dim + 64, GUARD)
    trajectory = np.full((trajectory_rows + 1) * n * dim + 64, GUARD) if trajectory_rows else None
    array = np.ascontiguousarray(labels, np.int32) if np.ndim(labels) else None
    label = 0 if labels is None or array is not None else int(labels)
    report = program.run(
        address(out),
        n,
        start,
        seed,
        threads,
        x_T=address(x_T),
        noise=address(noise),
        trajectory=address(trajectory),
        labels=address(array),
        label=label,
    )
    assert report == bad
    assert (out[n * dim :] == GUARD).all()
    samples = out[: n * dim].reshape(n, dim)
    if trajectory is None:
        return samples
    size = (trajectory_rows + 1) * n * dim
    assert (trajectory[size:] == GUARD).all()
    states = trajectory[:size].reshape(trajectory_rows + 1, n, dim)
    assert same_bits(states[-1], samples)
    return states


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    return a.shape == b.shape and bool((a.view(np.uint32) == b.view(np.uint32)).all())


def check_rule(got: np.ndarray, plain: torch.Tensor, exact: torch.Tensor) -> None:
    """|kernel - ref64| <= 2 |torch32 - ref64| + 4 ulp of ref64's rms, by rms and by 99.9th percentile."""
    want = exact.numpy()
    ours, theirs = (np.abs(np.asarray(v, np.float64) - want) for v in (got, plain))
    ulp = float(np.spacing(np.float32(np.sqrt(np.mean(want**2)))))
    assert np.isfinite(want).all()
    for measure in (lambda e: np.sqrt(np.mean(e**2)), lambda e: np.quantile(e, 0.999)):
        limit = 2 * measure(theirs) + 4 * ulp
        assert measure(ours) <= limit, (
            f"{measure(ours):.3g}, {measure(theirs):.3g} for torch; limit {limit:.3g}"
        )


def stream(plan: Plan, n: int, seed: int = 0, start: int = 0) -> dict[str, np.ndarray]:
    """The noise that a chain draws, for the reference: the same bits as its own, and much sooner."""

    def normal(step: int, purpose: str) -> np.ndarray:
        return noise.normal(n, plan.dim, seed=seed, step=step, purpose=purpose, start=start).numpy()

    return {
        "x_T": normal(0, "initial"),
        "noise": np.stack([normal(i, "step") for i in range(len(plan.rows))]),
    }


def check_plan(
    plan: Plan,
    n: int,
    *,
    labels: Any = None,
    isas: list[str] = ISAS[:1],
    **options: np.ndarray,
) -> None:
    given = {k: torch.from_numpy(v) for k, v in {**stream(plan, n), **options}.items()}
    y = torch.from_numpy(labels).long() if isinstance(labels, np.ndarray) else labels
    plain, exact = (
        reference.run(plan, n, labels=y, dtype=dtype, **given) for dtype in (torch.float32, torch.float64)
    )
    for isa in isas:
        check_rule(run(plan, n, isa=isa, labels=labels, **options), plain, exact)


@pytest.fixture(autouse=True)
def one_torch_thread() -> None:
    """The reference's tensors are small: a second thread would wait more than it works."""
    torch.set_num_threads(1)


# ---- accuracy


@pytest.mark.parametrize("width", [1, 2, 3, 5, 7, 8, 9, 15, 16, 17, 31, 33, 64, 100, 257])
def test_widths(width: int) -> None:
    for seed, widths in enumerate([(width,), (width, 4), (6, width, width)]):
        check_plan(random_plan(10 * width + seed, 3, widths), 500)


@pytest.mark.parametrize("act", ["relu", "tanh"])
@pytest.mark.parametrize("width", [127, 128, 129, 256, 257, 511, 512, 1024, 1025, 2047, 2048])
def test_widest(width: int, act: str) -> None:
    """Wide layers, and around the 128 terms at which the kernel begins a new chain of additions."""
    for seed in range(3):
        check_plan(random_plan(seed, 4, (width, 3, width), n_rows=2, activation=act), 80)


@pytest.mark.parametrize("dim", [1, 2, 3, 4, 5, 7, 8, 15, 16, 17, 33, 64, 255, 256])
def test_dims(dim: int) -> None:
    check_plan(random_plan(dim, dim, (24, 17), full=False), 400)
    check_plan(random_plan(dim + 1, dim, (9,)), 301, isas=FAST_ISAS)


@pytest.mark.parametrize("depth", range(1, 17))
def test_depths(depth: int) -> None:
    rng = np.random.default_rng(depth)
    widths = tuple(int(w) for w in rng.integers(1, 40, depth - 1))
    check_plan(random_plan(depth, 3, widths), 400)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations(name: str) -> None:
    for seed in range(3):
        check_plan(random_plan(seed, 3, (19, 8, 33), activation=name), 600)


@pytest.mark.parametrize("isa", ISAS)
def test_every_instruction_set(isa: str) -> None:
    for seed in range(4):
        check_plan(random_plan(seed, 1 + seed, (17, 6)), 200, isas=[isa])


@pytest.mark.parametrize("seed", range(6))
def test_values_that_branch(seed: int) -> None:
    check_plan(random_plan(seed, 3, (11, 7), branching=True), 300)


@pytest.mark.parametrize("branches", [1, 2])
@pytest.mark.parametrize("seed", range(6))
def test_classes(seed: int, branches: int) -> None:
    plan = random_plan(seed, 1 + seed, (13, 21), n_classes=4, branches=branches)
    labels = np.random.default_rng(seed).integers(0, 4, 400, dtype=np.int32)
    check_plan(plan, 400, labels=labels)
    check_plan(plan, 400, labels=seed % 4, isas=FAST_ISAS)


@pytest.mark.parametrize("parts", range(8))
def test_start_values_of_a_layer(parts: int) -> None:
    """Bias, step table and class table in every combination, one layer with all three."""
    rng = np.random.default_rng(parts)

    def layer(src: int, dst: int, n_in: int, n_out: int, act: str) -> LinearOp:
        shapes = [(n_out,), (4, n_out), (3, n_out)]
        tables = [
            rng.standard_normal(s).astype(np.float32) if parts >> i & 1 else None
            for i, s in enumerate(shapes)
        ]
        weight = rng.standard_normal((n_out, n_in)).astype(np.float32) / np.float32(np.sqrt(n_in))
        return LinearOp(src, dst, weight, *tables, act)

    layers = (layer(0, 1, 3, 21, "tanh"), layer(1, 2, 21, 3, "identity"))
    program = TileProgram(3, layers, 2, n_tables=4, n_classes=3)
    plan = build_plan(random_table(parts, 9, n_tables=4), program)
    labels = rng.integers(0, 3, 300, dtype=np.int32)
    check_plan(plan, 300, labels=labels, isas=FAST_ISAS)
    check_plan(plan, 300, labels=1, isas=FAST_ISAS)
    mixed = run(plan, 300, labels=labels)
    for label in range(3):
        assert same_bits(mixed[labels == label], run(plan, 300, labels=label)[labels == label])


@pytest.mark.parametrize("seed", range(10))
def test_random_tables(seed: int) -> None:
    """History, clamp, c_in, rows without evaluation, network times used again or never."""
    table = random_table(seed, 14, n_tables=3)
    check_plan(build_plan(table, random_program(seed, 3, (10,), n_tables=3)), 500)


@pytest.mark.parametrize("column", ["c_in", "p_x", "p_F", "clip", "a", "b", "e", "c1", "c2", "c3", "s"])
def test_each_term_alone(column: str) -> None:
    """Tables in which one term is missing: its code is skipped, the others are as before."""
    table = random_table(5, 8)
    rows = table.rows.copy()
    rows[column] = {"c_in": 1, "clip": np.inf}.get(column, 0)
    table = StepTable(rows, table.timesteps, table.table_timesteps, "random")
    check_plan(build_plan(table, random_program(6, 3, (10,), n_tables=8)), 400)


def test_history_by_hand() -> None:
    """h1, h2, h3 are the last pushed m, newest first: exact in small integers."""
    rows = np.zeros(8, ROW_DTYPE)
    rows["c_in"], rows["clip"], rows["guidance"], rows["flags"] = 1, np.inf, 1, EVAL
    rows["p_x"], rows["a"] = 1, 1
    rows["flags"] |= np.array([2, 2, 0, 2, 2, 0, 0, 2], np.uint32)
    rows["c1"], rows["c2"], rows["c3"] = (
        [0, 1, 0, 0, 2, 0, 1, 0],
        [0, 0, 1, 0, 0, 3, 0, 0],
        [0, 0, 0, 0, 1, 0, 1, 1],
    )
    table = StepTable(rows, np.arange(8), np.arange(8), "by hand")
    plan = build_plan(table, random_program(0, 2, (3,), n_tables=8))
    x_T = np.arange(2 * 53, dtype=np.float32).reshape(53, 2)
    states, history, x = [x_T], [0 * x_T] * 3, x_T
    for row in rows:
        m = x
        x = x + row["c1"] * history[0] + row["c2"] * history[1] + row["c3"] * history[2]
        if row["flags"] & 2:
            history = [m, *history[:2]]
        states.append(x)
    for n in (1, 16, 53):
        got = run(plan, n, x_T=x_T[:n].copy(), trajectory_rows=8)
        assert np.array_equal(got, np.stack(states)[:, :n])


def test_given_noise_and_start() -> None:
    plan = random_plan(3, 5, (20,), n_rows=7)
    rng = np.random.default_rng(0)
    x_T = rng.standard_normal((150, 5), np.float32)
    z = rng.standard_normal((7, 150, 5), np.float32)
    check_plan(plan, 150, x_T=x_T, noise=z, isas=FAST_ISAS)
    check_plan(plan, 150, noise=z)
    check_plan(plan, 150, x_T=x_T)
    own = run(plan, 150, seed=4, start=9)
    assert same_bits(run(plan, 150, **stream(plan, 150, seed=4, start=9)), own)


@pytest.mark.parametrize("dim", [1, 2, 3, 6])
def test_trajectory(dim: int) -> None:
    plan = random_plan(dim, dim, (12,), n_rows=9)
    plain, exact = (
        reference.run(plan, 120, seed=1, dtype=dtype, return_trajectory=True)
        for dtype in (torch.float32, torch.float64)
    )
    got = run(plan, 120, seed=1, trajectory_rows=9)
    first = noise.normal(120, dim, seed=1, step=0, purpose="initial").numpy()
    assert same_bits(got[0], first)
    for i in range(1, 10):
        check_rule(got[i], plain[i], exact[i])
    parts = [run(plan, m, seed=1, start=at, trajectory_rows=9) for at, m in ((0, 1), (1, 50), (51, 69))]
    assert same_bits(np.concatenate(parts, axis=1), got)


@pytest.mark.parametrize(
    ("dim", "act", "solver"), [(2, "relu", "ddpm"), (3, "tanh", "ddpm"), (1, "silu", "ddim")]
)
def test_a_thousand_steps(dim: int, act: str, solver: str) -> None:
    schedule = NoiseSchedule.linear(n_steps=1000, beta_start=1e-4, beta_end=0.02)
    model = models.MLPDenoiser(dim, (24, 32), act, "sinusoidal", 1000).eval()
    options = {"eta": 1.0} if solver == "ddim" else {}
    table = solvers.solve(solver, schedule, **options)
    check_plan(
        build_plan(table, capture(model, (dim,), table.table_timesteps, 0, schedule)), 300, isas=FAST_ISAS
    )
