"""What the kernels refuse of tables, and of what makes them: nothing is read beside an array."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from nets import random_plan
from test_chain import address
from test_network_table import PLANS

from diffusion_fast import _cpu
from diffusion_fast.solvers.table import EVAL


def parts_of(**other: Any) -> dict[str, Any]:
    """Arguments of _cpu.Tables: two grids of a cell in the plane, for three rows."""
    ones = np.ones((2, 2), np.float32)
    return {
        "dim": 2,
        "n_classes": 0,
        "of_row": np.array([0, 1, 0], np.int32),
        "scale": ones,
        "shift": ones,
        "cells": ones.astype(np.int32),
        "values": np.zeros(2 * 2 * 4**2, np.float32),
    } | other


@pytest.mark.parametrize(
    ("other", "words"),
    [
        ({"dim": 3}, "dim"),
        ({"dim": 0}, "scale"),
        ({"n_classes": -1}, "n_classes"),
        ({"n_classes": 2}, "values"),
        ({"values": np.zeros(63, np.float32)}, "values"),
        ({"values": np.zeros(65, np.float32)}, "values"),
        ({"of_row": np.array([0, 2], np.int32)}, "of_row"),
        ({"of_row": np.array([0, -2], np.int32)}, "of_row"),
        ({"cells": np.zeros((2, 2), np.int32)}, "cells"),
        ({"cells": np.full((2, 2), -4, np.int32)}, "cells"),
        ({"cells": np.full((2, 2), (1 << 20) + 1, np.int32)}, "cells"),
        ({"cells": np.full((2, 2), 1 << 20, np.int32)}, "2\\^31"),
        ({"cells": np.ones((1, 2), np.int32)}, "cells"),
        ({"scale": np.full((2, 2), np.nan, np.float32)}, "finite"),
        ({"shift": np.full((2, 2), np.inf, np.float32)}, "finite"),
        ({"scale": np.ones(4, np.float32)}, "scale"),
        ({"scale": np.ones((4, 1), np.float32)}, "scale"),
    ],
)
def test_tables_that_do_not_hold_together(other: dict[str, Any], words: str) -> None:
    _cpu.Tables(**parts_of())
    given = parts_of() | other
    if given["dim"] == 3:
        given |= {name: np.ones((2, 3), given[name].dtype) for name in ("scale", "shift", "cells")}
    with pytest.raises(ValueError, match=words):
        _cpu.Tables(**given)


def test_values_are_not_converted() -> None:
    """A copy would be gone while the kernels read it."""
    with pytest.raises(TypeError):
        _cpu.Tables(**parts_of(values=np.zeros(64)))


def test_chains_refuse_tables_of_another_plan() -> None:
    rows: dict[str, Any] = {"n_rows": 3, "full": False}
    others = [
        random_plan(0, 1, (4,), **rows),
        random_plan(0, 2, (4,), n_rows=4, full=False),
        random_plan(0, 2, (4,), n_classes=3, **rows),
    ]
    out = np.zeros((5, 2), np.float32)
    for plan in others:
        with pytest.raises(ValueError, match="tables: of another plan"):
            _cpu.Program(plan.to_bytes()).run(address(out), 5, 0, 0, 1, tables=_cpu.Tables(**parts_of()))
    right = _cpu.Program(random_plan(0, 2, (4,), **rows).to_bytes())
    for missing in range(3):
        of_row = np.zeros(3, np.int32)
        of_row[missing] = -1
        with pytest.raises(ValueError, match="tables: a row has none"):
            right.run(address(out), 5, 0, 0, 1, tables=_cpu.Tables(**parts_of(of_row=of_row)))
    guided = _cpu.Program(random_plan(0, 2, (4,), n_classes=3, branches=2, **rows).to_bytes())
    scales, tables = (
        np.ones(5, np.float32),
        _cpu.Tables(**parts_of(n_classes=3, values=np.zeros(192, np.float32))),
    )
    with pytest.raises(ValueError, match="guidance"):
        guided.run(address(out), 5, 0, 0, 1, guidance=address(scales), tables=tables)
    guided.run(address(out), 5, 0, 0, 1, tables=tables)


def test_networks_fits_and_lookups_refuse() -> None:
    plan = PLANS["line, every term"]
    program, x = _cpu.Program(plan.to_bytes()), np.zeros((8, 2), np.float32)
    idle = np.flatnonzero(plan.rows["flags"] & EVAL == 0)
    for row in (-1, len(plan.rows), *idle.tolist()):
        with pytest.raises(ValueError, match="rows"):
            program.network(np.array([0, row], np.int32), address(x), address(x), 4, 0, 1)
    with pytest.raises(ValueError, match="threads"):
        program.network(np.zeros(1, np.int32), address(x), address(x), 4, 0, 0)
    classes = _cpu.Program(PLANS["line, classes"].to_bytes())
    for label in (-1, 3):
        with pytest.raises(ValueError, match="labels"):
            classes.network(np.zeros(1, np.int32), address(x), address(x), 4, label, 1)
    for cells in ([], [1, 1, 1], [0], [1, (1 << 20) + 1]):
        with pytest.raises(ValueError, match="cells"):
            _cpu.fit(np.array(cells, np.int32), address(x), address(x), 1)
    tables = _cpu.Tables(**parts_of())
    for grid in (-1, 2):
        with pytest.raises(ValueError, match="grids"):
            tables.lookup(np.array([grid], np.int32), address(x), address(x), 1)
    for k in (-1, (1 << 24) + 1):
        with pytest.raises(ValueError, match="k: "):
            tables.lookup(np.zeros(1, np.int32), address(x), address(x), k)
    for label in (-1, 1):
        with pytest.raises(ValueError, match="labels"):
            tables.lookup(np.zeros(1, np.int32), address(x), address(x), 1, label)
    with pytest.raises(ValueError, match="accepted"):
        tables.lookup(np.zeros(1, np.int32), address(x), address(x), 1, 0, "avx9000")
