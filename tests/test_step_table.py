"""StepTable: its layout, what an immutable sequence of rows promises, refusals."""

from __future__ import annotations

import pickle
import re
from typing import Any

import numpy as np
import pytest

from diffusion_fast.schedules import NoiseSchedule
from diffusion_fast.solvers import ROW_DTYPE, TERM_BITS, StepRow, StepTable, ddim, ddpm

FOUR = NoiseSchedule([0.1, 0.2, 0.3, 0.4])


def one_row(**fields: Any) -> np.ndarray:
    rows = np.zeros(1, dtype=ROW_DTYPE)
    rows["c_in"], rows["clip"], rows["flags"], rows["guidance"], rows["signal"] = 1.0, np.inf, 1, 1.0, 1.0
    for name, value in fields.items():
        rows[name] = value
    return rows


def test_row_layout() -> None:
    assert ROW_DTYPE.itemsize == 80
    offsets = [ROW_DTYPE.fields[name][1] for name in ROW_DTYPE.names]
    assert ROW_DTYPE.names == (
        *("c_in", "p_x", "p_F", "clip", "a", "b", "e", "c1", "c2", "c3", "s", "table", "flags"),
        *("guidance", "rescale", "quantile", "signal", "noise", "reserved"),
    )
    assert offsets == list(range(0, 76, 4))
    assert [TERM_BITS[n].bit_length() - 1 for n in ("c_in", "clip", "a", "s", "push")] == [0, 3, 4, 10, 11]


def test_table_is_an_immutable_sequence() -> None:
    table = ddpm(FOUR, variance="beta")
    assert len(table) == 4 and isinstance(table[0], StepRow) and table[-1].timestep == 0.0
    assert [row.table for row in table] == [0, 1, 2, 3] and len(table[1:3]) == 2
    assert table[0].eval and not table[0].push and table[0].guidance == 1.0 and table[0].terms == table.terms
    assert table[0] == table[0] and table[0] != table[1] and table.solver == "ddpm"
    with pytest.raises(IndexError):
        table[4]
    with pytest.raises(TypeError):
        table["a"]
    for array in (table.rows, table.timesteps, table.table_timesteps):
        with pytest.raises(ValueError, match=r"WRITEABLE|writeable"):
            array.setflags(write=True)
    for change in (lambda: setattr(table, "nfe", 1), lambda: delattr(table, "rows")):
        with pytest.raises(AttributeError, match="immutable"):
            change()
    assert repr(table) == "StepTable('ddpm', 4 rows, nfe=4, timesteps 3 .. 0)"


def test_table_equality_hash_pickle() -> None:
    table = ddim(FOUR, eta=0.5)
    twin = pickle.loads(pickle.dumps(table))
    assert twin == table and hash(twin) == hash(table) and twin.terms == table.terms
    assert not twin.rows.flags.writeable
    assert table != ddim(FOUR, eta=0.4) and table != ddpm(FOUR) and table != 3


def test_replace_gives_another_table() -> None:
    table = ddpm(FOUR, clip=2.0)
    other = table.replace(quantile=0.9, guidance=[1, 2, 2, 1])
    assert other != table and other.replace(quantile=0, guidance=1) == table
    assert [row.guidance for row in other] == [1, 2, 2, 1] and other[0].quantile == float(np.float32(0.9))
    assert len(other[0].packed) == 80 and other[0].packed == other.rows[0].tobytes()
    with pytest.raises(ValueError, match="quantile = 2"):
        table.replace(quantile=2)


def test_terms_and_evaluations_of_a_general_table() -> None:
    rows = np.concatenate([one_row(a=1, s=0.5, flags=0), one_row(a=1, e=2, c2=1, flags=3, c_in=0.5)])
    table = StepTable(rows, [0.5, 0.5], [0.5], "made by hand")
    assert table.nfe == 1 and table.timesteps.dtype == np.float64 and not table[0].eval and table[1].push
    assert table.terms == sum(TERM_BITS[n] for n in ("c_in", "a", "e", "c2", "s", "push"))


def test_zero_coefficients_are_plus_zero_and_never_subnormal() -> None:
    times = np.arange(3)
    table = StepTable.from_columns("x", times, a=[-0.0, 1e-40, 1e-37], e=1.0)
    assert table.rows["a"].tobytes() == np.array([0, 0, 1e-37], dtype=np.float32).tobytes()


# ---- refusals: (call, error, what the message must hold) ----


def hand(
    rows: Any = None, times: Any = (0,), table_times: Any = (0,), solver: Any = "x", **fields: Any
) -> Any:
    return lambda: StepTable(one_row(**fields) if rows is None else rows, times, table_times, solver)


REFUSALS = {
    "rows type": (hand([1]), TypeError, r"rows: got \[1\] .*ROW_DTYPE"),
    "rows dtype": (hand(np.zeros(1)), TypeError, "rows: got a float64 array .*ROW_DTYPE"),
    "rows empty": (hand(np.zeros(0, ROW_DTYPE)), ValueError, "rows: got .*1 to 1048576 rows"),
    "rows nan": (hand(a=np.nan), ValueError, "rows: got a = nan in row 0; accepted: a finite number"),
    "rows guidance": (hand(guidance=np.inf), ValueError, "rows: got guidance = inf in row 0"),
    "rows clip": (hand(clip=-1), ValueError, "rows: got clip = -1.0 in row 0; accepted: a number > 0"),
    "rows clip nan": (hand(clip=np.nan), ValueError, "rows: got clip = nan in row 0"),
    "rows flags": (hand(flags=4), ValueError, "rows: got flags = 4 in row 0"),
    "rows table": (hand(table=1), ValueError, "rows: got table = 1 in row 0; accepted: an index below the 1"),
    "rows reserved": (hand(reserved=(0, 1)), ValueError, "rows: got reserved = .* in row 0; accepted: zeros"),
    "rows rescale": (
        hand(rescale=1.5),
        ValueError,
        "rows: got rescale = 1.5 in row 0; accepted: a number from",
    ),
    "rows quantile": (
        hand(quantile=-1),
        ValueError,
        "rows: got quantile = -1.0 in row 0; accepted: a number",
    ),
    "rows threshold": (
        hand(quantile=0.5, clip=0.5),
        ValueError,
        "rows: got clip = 0.5 in row 0; accepted: 1 or more beside",
    ),
    "rows noise": (hand(noise=np.nan), ValueError, "rows: got noise = nan in row 0"),
    "rows p_F": (
        hand(flags=0, p_F=1),
        ValueError,
        "rows: got p_F = 1.0 in row 0; accepted: 0 in a row without",
    ),
    "rows e": (
        hand(flags=0, e=1),
        ValueError,
        "rows: got e = 1.0 in row 0; accepted: 0 in a row without EVAL",
    ),
    "times length": (hand(times=(1, 0)), ValueError, r"timesteps: got \(1, 0\) .*1 \(one per row\)"),
    "times type": (hand(times=("1",)), TypeError, r"timesteps: got \('1',\) .*integers or floats"),
    "times nan": (hand(times=(np.nan,)), ValueError, "timesteps: got .*finite numbers"),
    "no tables": (hand(table_times=np.zeros(0)), ValueError, "table_timesteps: got .*1 to 1048576"),
    "solver name": (hand(solver=1), TypeError, "solver: got 1 .*a string"),
    "column": (
        lambda: StepTable.from_columns("x", np.arange(2), d=1.0),
        TypeError,
        "columns: got d; accepted: c_in, p_x",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals(case: str) -> None:
    call, error, pattern = REFUSALS[case]
    with pytest.raises(error) as caught:
        call()
    assert type(caught.value) is error
    assert re.search(pattern, str(caught.value), re.S), str(caught.value)


def test_a_row_by_itself() -> None:
    table = StepTable.from_columns(
        "x", np.array([7.0]), p_x=0.1, p_F=-0.3, clip=2.0, a=1 / 3, s=1e-40, push=True
    )
    values = {"p_x": 0.1, "p_F": -0.3, "clip": 2.0, "a": 1 / 3, "s": 1e-40}
    row = StepRow.of(7.0, values, push=True)
    assert row == table[0] and row.packed == table[0].packed and row.s == 0
    for bad in (float("nan"), float("inf"), 1e39):
        with pytest.raises(ValueError, match="coefficients: got"):
            StepRow.of(0.0, {"a": bad})
