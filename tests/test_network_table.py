"""The network as a table: the kernel beside its twin, one set of bits, what a table promises of its error."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from nets import random_plan, with_rows
from samplers import assert_close_as_torch
from test_chain import FAST_ISAS, ISAS, address, run, same_bits

from diffusion_fast import _cpu, network_table, reference
from diffusion_fast.network_table import NetworkTable
from diffusion_fast.network_table.twin import interpolated
from diffusion_fast.plan import Plan
from diffusion_fast.plan_validation import terms_of
from diffusion_fast.solvers.table import EVAL

PLANS: dict[str, Plan] = {
    "line": random_plan(0, 1, (16, 16), activation="silu", full=False),
    "line, every term": random_plan(1, 1, (20,), activation="tanh"),
    "line, classes": random_plan(2, 1, (9, 9), activation="gelu", n_classes=3),
    "plane": random_plan(3, 2, (24, 17), activation="silu", full=False),
    "plane, every term": random_plan(4, 2, (16,), activation="tanh"),
    "plane, guided": random_plan(5, 2, (12, 12), activation="silu", n_classes=4, branches=2, full=False),
    # so wide that the network runs on tiles of fewer samples, on every instruction set that has these
    "plane, wide": random_plan(6, 2, (350, 350), activation="tanh", full=False, n_rows=3),
}


def made_up(dim: int, cells: list[int], n_classes: int = 0, seed: int = 0) -> NetworkTable:
    """Grids of random values on [-1, 1]^dim, one for each of as many rows."""
    rng = np.random.default_rng(seed)
    floats = [4 * n if dim == 1 else 2 * (n + 3) ** 2 for n in cells]
    sizes = np.repeat(np.array(cells, np.int32)[:, None], dim, axis=1)
    half = sizes.astype(np.float32) / 2
    values = rng.standard_normal(sum(floats) * max(n_classes, 1), np.float32)
    known = np.zeros(len(cells))
    every = np.arange(len(cells), dtype=np.int32)
    return NetworkTable(1e-3, every, half, half, sizes, values, n_classes, known, known, 0, True, 0)


def looked_up(table: NetworkTable, grid: int, x: np.ndarray, *, label: int = 0, isa: str = "") -> np.ndarray:
    out = np.full_like(x, np.inf)
    grids = np.array([grid], np.int32)
    table.packed().lookup(grids, address(x), address(out), len(x), label, isa)
    return out


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("dim", "n_classes"), [(1, 0), (1, 3), (2, 0), (2, 3)])
def test_look_up_beside_its_twin(isa: str, dim: int, n_classes: int) -> None:
    """Every grid, class and number of points: at most twice torch's own error; one set of bits."""
    table = made_up(dim, [1, 7, 40], n_classes)
    rng = np.random.default_rng(1)
    for grid in range(3):
        for n in (1, 5, 16, 203):
            x = rng.uniform(-1, 1, (n, dim)).astype(np.float32)
            label = int(rng.integers(max(n_classes, 1)))
            found = looked_up(table, grid, x, label=label, isa=isa)
            y = torch.full((n,), label) if n_classes else None
            theirs, inside = interpolated(table, grid, torch.from_numpy(x), y)
            exact, _ = interpolated(table, grid, torch.from_numpy(x).double(), y)
            assert inside.all()
            assert_close_as_torch(torch.from_numpy(found), theirs, exact)
            assert same_bits(found, looked_up(table, grid, x, label=label, isa="portable"))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dim", [1, 2])
def test_what_is_not_on_the_grid(isa: str, dim: int) -> None:
    """NaN for what lies beside it along any axis, is infinite or NaN, and never a read beside the table."""
    table = made_up(dim, [8])
    below = np.nextafter(np.float32(-1), np.float32(-2))
    last = np.float32(1 - 2.0**-22)  # whose position, 8 - 2^-20, does not round to 8
    for axis in range(dim):
        x = np.zeros((9, dim), np.float32)
        x[:, axis] = [-1, last, 0, below, 1, np.nan, np.inf, -np.inf, 3e38]
        bad = np.isnan(looked_up(table, 0, x, isa=isa))
        assert bad.all(axis=1).tolist() == [False] * 3 + [True] * 6
        assert bad.any(axis=1).tolist() == bad.all(axis=1).tolist()


def fitted(function: Any, dim: int, cells: int) -> NetworkTable:
    """The table of a function (n, dim) -> (n, dim) on [-1, 1]^dim."""
    at = np.arange(-_cpu.FIT_MARGIN, cells + 1 + _cpu.FIT_MARGIN) * 2 / cells - 1
    nodes = at[:, None] if dim == 1 else np.stack(np.meshgrid(at, at), axis=-1).reshape(-1, 2)
    empty = made_up(dim, [cells])
    values = np.empty_like(empty.values)
    given = function(nodes).astype(np.float32)
    _cpu.fit(empty.cells[0], address(given), address(values), 1)
    return replace(empty, values=values)


def test_a_quadratic_is_itself() -> None:
    def function(x: np.ndarray) -> np.ndarray:
        return 1 + x - 2 * x[:, ::-1] ** 2 + x * x[:, :1]

    for dim in (1, 2):
        x = np.random.default_rng(0).uniform(-1, 1, (500, dim)).astype(np.float32)
        found = looked_up(fitted(function, dim, 9), 0, x)
        assert np.abs(found - function(x.astype(np.float64))).max() < 4e-6


def test_the_error_falls_with_the_fourth_power_of_the_spacing() -> None:
    """h^4 / 384 times the fourth derivative, up to the box's edge; axes and outputs are not mixed up."""

    def function(x: np.ndarray) -> np.ndarray:
        return np.stack([np.sin(3 * x[:, 0]), np.cos(2 * x[:, -1])], axis=1)[:, : x.shape[1]]

    for dim in (1, 2):
        x = np.random.default_rng(0).uniform(-1, 1, (4000, dim)).astype(np.float32)
        for cells in (8, 16):
            error = np.abs(looked_up(fitted(function, dim, cells), 0, x) - function(x.astype(np.float64)))
            for j, frequency in enumerate((3, 2)[:dim]):
                inherent = (frequency * 2 / cells) ** 4 / 384
                assert inherent * 0.7 < error[:, j].max() < inherent * 1.6


# ---- whole chains


def table_of(plan: Plan, tolerance: float = 1e-3) -> NetworkTable:
    return network_table.build(plan, tolerance, threads=1)


def draw(
    plan: Plan, table: NetworkTable | None, n: int, *, isa: str = "", labels: Any = None, **how: Any
) -> np.ndarray:
    out = np.empty((n, plan.dim), np.float32)
    y = None if labels is None else np.ascontiguousarray(labels, np.int32)
    options = {"start": 0, "seed": 0, "threads": 1} | how
    packed = None if table is None else table.packed()
    report = _cpu.Program(plan.to_bytes(), isa).run(
        address(out), n, labels=address(y), tables=packed, **options
    )
    assert report == (0, [])
    return out


def labels_for(plan: Plan, n: int) -> np.ndarray | None:
    if not plan.n_classes:
        return None
    return np.random.default_rng(0).integers(0, plan.n_classes, n, dtype=np.int32)


def narrow(table: NetworkTable) -> NetworkTable:
    """The table with its grids cut to the middle third: most samples are beside them in some row."""
    third = table.cells // 3
    assert (third > 0).all()
    kept, at = [], 0
    classes = max(table.n_classes, 1)
    for cells, inner in zip(table.cells[:, 0].tolist(), third[:, 0].tolist(), strict=True):
        shape = (classes, cells, 4) if table.dim == 1 else (classes, cells + 3, cells + 3, 2)
        size = int(np.prod(shape))
        block = table.values[at : at + size].reshape(shape)
        at += size
        part = slice(inner, 2 * inner + (0 if table.dim == 1 else 3))
        kept.append((block[:, part] if table.dim == 1 else block[:, part, part]).ravel())
    shift = table.shift - third.astype(np.float32)
    return replace(table, shift=shift, cells=third, values=np.concatenate(kept))


@pytest.fixture(scope="module")
def tables() -> dict[str, NetworkTable]:
    return {name: table_of(plan) for name, plan in PLANS.items()}


@pytest.mark.parametrize("name", PLANS)
@pytest.mark.parametrize("cut", [False, True])
def test_chain_beside_its_twin(name: str, cut: bool, tables: dict[str, NetworkTable]) -> None:
    plan, table, n = PLANS[name], tables[name], 300
    table = narrow(table) if cut else table
    y = labels_for(plan, n)
    given = {"labels": None if y is None else torch.from_numpy(y), "seed": 3, "table": table}
    theirs = reference.run(plan, n, **given)
    exact = reference.run(plan, n, dtype=torch.float64, **given)
    assert_close_as_torch(torch.from_numpy(draw(plan, table, n, labels=y, seed=3)), theirs, exact)


@pytest.mark.parametrize("name", PLANS)
def test_one_set_of_bits(name: str, tables: dict[str, NetworkTable]) -> None:
    """Any split, number of threads and instruction set, with samples on and beside the grids."""
    plan, table, n = PLANS[name], narrow(tables[name]), 203
    y = labels_for(plan, n)
    for start in (0, 2**32 - 50):
        whole = draw(plan, table, n, labels=y, start=start)
        assert not same_bits(whole, draw(plan, None, n, labels=y, start=start))
        for isa in ISAS:
            for size in (1, 7, 16, 24, 100) if isa != "portable" else (100,):
                for at in range(0, n, size):
                    m = min(size, n - at)
                    part = None if y is None else y[at : at + m]
                    drawn = draw(plan, table, m, labels=part, start=start + at, isa=isa)
                    assert same_bits(drawn, whole[at : at + m]), f"{isa}, {m} from {at}"


def test_blocks_and_threads() -> None:
    """More samples than a block has, in blocks of several sizes."""
    plan = PLANS["plane"]
    table = table_of(plan, 1e-2)
    whole = draw(plan, table, 40_000)
    for threads in (2, 3):
        assert same_bits(draw(plan, table, 40_000, threads=threads), whole)
    assert same_bits(draw(plan, table, 17_000, start=23_000), whole[23_000:])


def test_nothing_but_the_network_beside_the_grids(tables: dict[str, NetworkTable]) -> None:
    """With no sample on a grid, the samples of float32 to the bit."""
    for name in ("line, classes", "plane, guided", "plane, wide"):
        plan = PLANS[name]
        away = replace(tables[name], shift=tables[name].shift + np.float32(1e6))
        for n in (8, 17, 24, 100):
            y = labels_for(plan, n)
            assert same_bits(draw(plan, away, n, labels=y), draw(plan, None, n, labels=y)), (name, n)


# ---- how a table is made


@pytest.mark.parametrize("name", PLANS)
def test_the_error_is_what_it_says(name: str, tables: dict[str, NetworkTable]) -> None:
    """On points of our own in the box, beside the network in float64: within the tolerance, or nearly."""
    plan, table = PLANS[name], tables[name]
    assert table.smooth
    assert table.max_error.max() <= table.tolerance
    rng = np.random.default_rng(9)
    for row in np.flatnonzero(plan.rows["flags"] & EVAL):
        grid = table.of_row[row]
        position = rng.uniform(0, 1, (2000, plan.dim)) * table.cells[grid]
        x = ((position - table.shift[grid]) / table.scale[grid]).astype(np.float32)
        for label in range(max(plan.n_classes, 1)):
            found = looked_up(table, int(grid), x, label=label)
            exact = network(plan, int(row), torch.from_numpy(x).double(), label).numpy()
            error = np.nanmax(np.abs(found - exact))
            rms = np.sqrt(np.square(exact).mean())
            assert error <= 1.5 * table.tolerance * rms, f"row {row}"


def network(plan: Plan, row: int, x: torch.Tensor, label: int) -> torch.Tensor:
    """The row's guided output by the reference: x <- F alone."""
    labels = label if plan.n_classes else None
    return reference.run(output_alone(plan, row), len(x), x_T=x, labels=labels, dtype=torch.float64)


def output_alone(plan: Plan, row: int) -> Plan:
    """The chain of that row with x <- F."""
    chosen = plan.rows[row : row + 1].copy()
    for name in ("p_x", "p_F", "a", "b", "c1", "c2", "c3", "s"):
        chosen[name] = 0
    chosen["e"], chosen["clip"] = 1, np.inf
    return replace(plan, rows=chosen, terms=terms_of(chosen))


@pytest.mark.parametrize("name", ["line, classes", "plane, guided", "plane, wide"])
def test_the_networks_own_points_are_the_chains(name: str) -> None:
    """Program.network is what a row sees, guided, to the bit of a chain of that row."""
    plan = PLANS[name]
    rows = np.flatnonzero(plan.rows["flags"] & EVAL)[[0, -1]].astype(np.int32)
    label = 2 if plan.n_classes else 0
    for isa in FAST_ISAS:
        program = _cpu.Program(plan.to_bytes(), isa)
        for n, threads in ((1, 1), (7, 2), (24, 1), (70, 2), (4000, 3)):
            x = np.random.default_rng(n).standard_normal((2, n, plan.dim), np.float32)
            out = np.empty_like(x)
            program.network(rows, address(x), address(out), n, label, threads)
            for i, row in enumerate(rows.tolist()):
                chain = run(
                    output_alone(plan, row), n, isa=isa, x_T=x[i], labels=label if plan.n_classes else None
                )
                assert same_bits(out[i], chain), (isa, n, row)


def test_kinks() -> None:
    """Of ReLU the rms is held, and the maximum is told."""
    plan = random_plan(11, 2, (20, 20), activation="relu", full=False, n_rows=3)
    table = table_of(plan)
    assert not table.smooth
    assert table.rms_error.max() <= 1e-3 < table.max_error.max()
    assert "rms, for the network has kinks" in "\n".join(table.explain(1000))


def test_rows_that_evaluate_the_same_share_a_grid() -> None:
    plan = random_plan(12, 1, (8,), activation="tanh", full=False, n_rows=6)
    shared = with_rows(plan, table=np.array([0, 0, 1, 1, 0, 2], np.uint32))
    table = table_of(shared)
    assert table.of_row.tolist() == [0, 0, 1, 1, 0, 2]
    assert len(table.cells) == 3


def test_a_table_is_a_function_of_plan_and_tolerance() -> None:
    plan = PLANS["plane"]
    first = table_of(plan)
    assert first.digest == network_table.build(plan, 1e-3, threads=2).digest
    finer = table_of(plan, 2e-4)
    assert finer.digest != first.digest
    assert finer.values.nbytes > first.values.nbytes


def test_memory_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network_table.builder, "MAX_BYTES", 1 << 20)
    with pytest.raises(ValueError, match=r"tolerance: got 1e-06 .*accepted: a larger one, .* more than 1 MB"):
        table_of(PLANS["plane"], 1e-6)


@pytest.mark.parametrize("name", ["line", "plane, guided"])
def test_memory_is_looked_at_before_it_is_taken(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the first grids, and of the points that they are judged by."""
    plan = PLANS[name]
    least = 4 * 16 if plan.dim == 1 else 2 * 19 * 19
    tables = 4 * least * len(network_table.builder._grids_of(plan)[1]) * max(plan.n_classes, 1)
    for limit in (1, tables + 1000):
        monkeypatch.setattr(network_table.builder, "MAX_BYTES", limit)
        with pytest.raises(ValueError, match=r"precision: got 'table'.*more than 0 MB"):
            table_of(plan)


def test_a_grid_of_more_nodes_than_a_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = PLANS["plane, guided"]
    whole = table_of(plan).digest
    monkeypatch.setattr(network_table.builder, "BATCH", 60)
    assert table_of(plan).digest == whole
