"""StepTable: a sampler as rows of float32 coefficients, one row per step, in the order they run.

A row does (float32, every product-and-sum one fma)

    u = c_in x;  F = net(u, tables[table]) if eval else 0
    m = p_x x + p_F F, clamped to [-clip, clip]
    x <- a x + b m + e F + c1 h1 + c2 h2 + c3 h3 + s z,   z ~ N(0, I)
    if push:  h3 <- h2, h2 <- h1, h1 <- m

with x the sample and h1..h3 earlier values of m (zero at the start). Two flags are no linear terms but
computed per sample: guidance rescale and dynamic thresholding (StepRow.rescale, StepRow.quantile).
"""

from __future__ import annotations

import math
import operator
import struct
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, overload

import numpy as np
import numpy.typing as npt
import torch

from diffusion_fast import _checks

MAX_ROWS = 1 << 20

COEFFICIENTS = ("c_in", "p_x", "p_F", "clip", "a", "b", "e", "c1", "c2", "c3", "s")
_NEUTRAL = {"c_in": 1.0, "clip": np.inf}  # the value that leaves a term out, where it is not 0

ROW_DTYPE = np.dtype(
    [(name, "<f4") for name in COEFFICIENTS]
    + [("table", "<u4"), ("flags", "<u4")]
    + [(name, "<f4") for name in ("guidance", "rescale", "quantile", "signal", "noise")]
    + [("reserved", "<u4", (2,))]
)
assert ROW_DTYPE.itemsize == 80
_FLOAT32_MAX = float(np.finfo(np.float32).max)
_FLOAT32_TINY = float(
    np.finfo(np.float32).tiny
)  # subnormals become 0, as kernels that flush them would have it
_PACK = struct.Struct("<11fII5f2I").pack
_FLOATS = struct.Struct("<12f")
# What a row has beside its terms, with the value that leaves it out.
EXTRAS = {"guidance": 1.0, "rescale": 0.0, "quantile": 0.0, "signal": 1.0, "noise": 0.0}

EVAL, PUSH = 1, 2  # bits of flags
TERM_BITS = {name: 1 << i for i, name in enumerate((*COEFFICIENTS, "push"))}


@dataclass(frozen=True)
class StepRow:
    """One row of a StepTable; every coefficient is a Python float that float32 holds exactly.

    guidance, rescale: F = u + guidance (c - u) of a guided row, then
    F <- (rescale std(c) / std(F) + 1 - rescale) F, deviations over one sample (Lin et al. 2024, eq. 15, 16).
    quantile: 0, or the ratio of dynamic thresholding (Saharia et al. 2022, section 2.3): for the clamp,
    m <- clamp(m, -q, q) / q, with q the quantile of |m| over one sample, limited to [1, clip].
    signal, noise: the level x = signal x0 + noise z where the row evaluates; fixed coordinates are set to it.
    """

    c_in: float
    p_x: float
    p_F: float
    clip: float  # inf: no clamp
    a: float
    b: float
    e: float
    c1: float
    c2: float
    c3: float
    s: float
    table: int  # which network time, an index into StepTable.table_timesteps
    eval: bool
    push: bool
    timestep: float
    terms: int  # the terms of the whole table, bits as in TERM_BITS
    guidance: float = 1.0
    rescale: float = 0.0
    quantile: float = 0.0
    signal: float = 1.0
    noise: float = 0.0

    @classmethod
    def of(
        cls,
        timestep: float,
        coefficients: Mapping[str, float],
        *,
        evaluates: bool = True,
        push: bool = False,
        quantile: float = 0.0,
    ) -> StepRow:
        """A row by itself, from float64 coefficients by name; those not given leave their term out.

        Each is rounded once to float32. Raises ValueError for a coefficient that float32 cannot hold.
        """
        values = dict.fromkeys(COEFFICIENTS, 0.0) | _NEUTRAL | dict(coefficients)
        try:
            rounded = _FLOATS.unpack(_FLOATS.pack(quantile, *values.values()))
        except OverflowError:
            raise _checks.bad_value("coefficients", coefficients, "numbers that float32 can hold") from None
        quantile, *exact = (0.0 if abs(value) < _FLOAT32_TINY else value for value in rounded)
        values = dict(zip(values, exact, strict=True))
        if not all(math.isfinite(value) for name, value in values.items() if name != "clip"):
            raise _checks.bad_value("coefficients", coefficients, "finite numbers")
        terms = sum(TERM_BITS[name] for name, value in values.items() if value != _NEUTRAL.get(name, 0.0))
        return cls(
            **values,
            table=0,
            eval=evaluates,
            push=push,
            timestep=timestep,
            terms=terms | TERM_BITS["push"] * push,
            quantile=quantile,
        )

    @cached_property
    def packed(self) -> bytes:
        """The row in ROW_DTYPE's 80 bytes, as the kernels take it.

        Raises ValueError for a row made by hand that no table could hold.
        """
        for name in (*COEFFICIENTS, *EXTRAS):
            value = getattr(self, name)
            finite = abs(value) <= _FLOAT32_MAX if name != "clip" else value > 0  # NaN compares false
            if not finite:
                accepted = "a finite float32 number; clip: above 0, inf for none"
                raise _checks.bad_value(f"row.{name}", value, accepted)
            used = value != _NEUTRAL.get(name, 0.0)
            if name not in EXTRAS and used and not self.terms & TERM_BITS[name]:
                accepted = f"{_NEUTRAL.get(name, 0.0)}, or terms with the bit TERM_BITS[{name!r}]"
                raise _checks.bad_value(f"row.{name}", value, accepted)
        if self.push and not self.terms & TERM_BITS["push"]:
            raise _checks.bad_value("row.push", True, "False, or terms with the bit TERM_BITS['push']")
        if not self.eval and (self.p_F != 0 or self.e != 0):
            raise _checks.bad_value("row.eval", False, "True, for the row uses the network's output (p_F, e)")
        for name in ("rescale", "quantile"):
            if not 0 <= getattr(self, name) <= 1:
                raise _checks.bad_value(f"row.{name}", getattr(self, name), "a number from 0 to 1")
        if self.quantile and self.clip < 1:
            raise _checks.bad_value("row.clip", self.clip, "1 or more with row.quantile")
        _checks.integer("row.table", self.table, 0, MAX_ROWS - 1)
        flags = EVAL * self.eval | PUSH * self.push
        extras = (getattr(self, name) for name in EXTRAS)
        return _PACK(*(getattr(self, name) for name in COEFFICIENTS), self.table, flags, *extras, 0, 0)


class StepTable(Sequence[StepRow]):
    """An immutable, picklable table of step rows.

    rows: structured array of ROW_DTYPE, (n_rows,) with 1 to 2^20 rows. Coefficients must be finite; clip is
        positive, inf for no clamp; a row without eval has p_F = e = 0; flags hold no bits but EVAL and PUSH;
        rescale and quantile are in [0, 1], and clip is at least 1 beside a quantile.
    timesteps: (n_rows,) int64 or float64, the time of each row, for people.
    table_timesteps: (n_tables,) the distinct times at which the network is evaluated; row["table"] is an
        index into it.
    solver: its name.

    `rows`, `timesteps` and `table_timesteps` are read-only arrays. Raises TypeError or ValueError that names
    the argument.
    """

    rows: np.ndarray
    timesteps: np.ndarray
    table_timesteps: np.ndarray
    solver: str
    n_rows: int  # len(table), an attribute because torch.compile cannot ask an array of rows
    terms: int  # bit of TERM_BITS set where any row has that term: all others may be skipped
    nfe: int  # network evaluations per sample

    def __init__(self, rows: Any, timesteps: Any, table_timesteps: Any, solver: str) -> None:
        if not isinstance(rows, np.ndarray) or rows.dtype != ROW_DTYPE:
            raise _checks.bad_type("rows", rows, "a NumPy array of dtype ROW_DTYPE")
        if rows.ndim != 1 or not 1 <= len(rows) <= MAX_ROWS:
            raise _checks.bad_value("rows", rows, f"a 1-D array of 1 to {MAX_ROWS} rows")
        if not isinstance(solver, str):
            raise _checks.bad_type("solver", solver, "a string")
        times = _frozen_times("timesteps", timesteps, len(rows))
        table_times = _frozen_times("table_timesteps", table_timesteps, None)
        _check_rows(rows, len(table_times))
        # bytes cannot be made writable again, an array's flag can
        frozen = np.frombuffer(rows.tobytes(), dtype=ROW_DTYPE)
        vars(self).update(
            rows=frozen,
            timesteps=times,
            table_timesteps=table_times,
            solver=solver,
            n_rows=len(frozen),
            terms=_terms(frozen),
            nfe=int(np.count_nonzero(frozen["flags"] & EVAL)),
        )

    @classmethod
    def from_columns(
        cls,
        solver: str,
        timesteps: np.ndarray,
        *,
        evaluates: npt.ArrayLike = True,
        push: npt.ArrayLike = False,
        **columns: npt.ArrayLike,
    ) -> StepTable:
        """A table from float64 coefficients by name; row i evaluates the network at timesteps[i].

        Beside COEFFICIENTS, signal and noise: the level of x there.

        Coefficients not given leave their term out; each is rounded once to float32. evaluates, push: bool,
        one for all rows or (n_rows,). Rows at equal timesteps share one network time. Raises ValueError for
        a coefficient that float32 cannot hold.
        """
        rows = np.zeros(len(timesteps), dtype=ROW_DTYPE)
        for name, neutral in EXTRAS.items():
            rows[name] = neutral
        for name in (*COEFFICIENTS, *(name for name in ("signal", "noise") if name in columns)):
            rows[name] = _round_once(name, columns.pop(name, _NEUTRAL.get(name, 0.0)), timesteps)
        if columns:
            raise TypeError(f"columns: got {', '.join(columns)}; accepted: {', '.join(COEFFICIENTS)}")
        distinct = list(dict.fromkeys(timesteps.tolist()))  # in the order they first run
        index = {time: i for i, time in enumerate(distinct)}
        rows["table"] = [index[time] for time in timesteps.tolist()]
        rows["flags"] = EVAL * np.asarray(evaluates, bool) | PUSH * np.asarray(push, bool)
        return cls(rows, timesteps, np.array(distinct, timesteps.dtype), solver)

    def replace(self, **columns: npt.ArrayLike) -> StepTable:
        """The same table with other values of these columns of ROW_DTYPE, one for all rows or (n_rows,).

        Raises ValueError for a name that is no column, values of another length, and what StepTable refuses.
        """
        rows = self.rows.copy()
        for name, values in columns.items():
            rows[name] = values
        return StepTable(rows, self.timesteps, self.table_timesteps, self.solver)

    @overload
    def __getitem__(self, index: int) -> StepRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[StepRow]: ...
    def __getitem__(self, index: int | slice) -> StepRow | list[StepRow]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        index = operator.index(index)  # a string would select a column
        if torch.compiler.is_compiling():
            from diffusion_fast import compile_ops

            return compile_ops.row_at(self, index)
        return self.read_row(index)

    def read_row(self, index: int) -> StepRow:
        """Row `index` as a StepRow, from the array; the same as self[index]. Raises IndexError beyond it."""
        row = self.rows[index]
        flags = int(row["flags"])
        values: dict[str, Any] = {name: float(row[name]) for name in (*COEFFICIENTS, *EXTRAS)}
        return StepRow(
            **values,
            table=int(row["table"]),
            eval=bool(flags & EVAL),
            push=bool(flags & PUSH),
            timestep=float(self.timesteps[index]),
            terms=self.terms,
        )

    def __iter__(self) -> Iterator[StepRow]:
        return (self[i] for i in range(self.n_rows))

    def __len__(self) -> int:
        return self.n_rows

    def __eq__(self, other: object) -> bool:
        return self._key() == other._key() if isinstance(other, StepTable) else NotImplemented

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[Any, ...]:
        return self.solver, self.rows.tobytes(), tuple(self.timesteps), tuple(self.table_timesteps)

    def __repr__(self) -> str:
        first, last = self.timesteps[0], self.timesteps[-1]
        times = f"timesteps {first} .. {last}"
        return f"StepTable({self.solver!r}, {len(self)} rows, nfe={self.nfe}, {times})"

    def __reduce__(self) -> tuple[Any, ...]:
        return StepTable, (self.rows, self.timesteps, self.table_timesteps, self.solver)

    def __setattr__(self, key: str, value: Any) -> None:
        raise AttributeError(f"{key}: a StepTable is immutable")

    def __delattr__(self, key: str) -> None:
        raise AttributeError(f"{key}: a StepTable is immutable")


def _round_once(name: str, values: npt.ArrayLike, timesteps: np.ndarray) -> np.ndarray:
    """float64 to float32 by one rounding; subnormals become 0, as kernels that flush them would have it."""
    limits = np.finfo(np.float32)
    exact = np.broadcast_to(np.asarray(values, dtype=np.float64), timesteps.shape)
    with np.errstate(over="ignore", under="ignore"):
        rounded = exact.astype(np.float32)
    bad = np.isnan(rounded) | np.isinf(rounded) & (name != "clip")
    if bad.any():
        where = int(np.argmax(bad))
        raise ValueError(
            f"schedule: got a coefficient {name} = {exact[where]:g} for timestep {timesteps[where]}, which "
            "float32 cannot hold; accepted: a schedule and a prediction_type with finite coefficients "
            "('v_prediction' needs no division by a small alphas_cumprod)"
        )
    # -0 becomes +0 too, so that equal tables are equal byte for byte
    return np.where(np.abs(rounded) < limits.tiny, np.float32(0), rounded)


def _frozen_times(name: str, times: Any, count: int | None) -> np.ndarray:
    values = np.asarray(times)
    if values.dtype.kind not in "iuf":
        raise _checks.bad_type(name, times, "integers or floats")
    size = f"{count} (one per row)" if count is not None else f"1 to {MAX_ROWS}"
    if values.ndim != 1 or not 1 <= len(values) <= MAX_ROWS or (count is not None and len(values) != count):
        raise _checks.bad_value(name, times, f"a 1-D array of {size} numbers")
    values = values.astype(np.float64 if values.dtype.kind == "f" else np.int64)
    if not np.isfinite(values).all():
        raise _checks.bad_value(name, times, "finite numbers")
    return np.frombuffer(values.tobytes(), dtype=values.dtype)


def _check_rows(rows: np.ndarray, n_tables: int) -> None:
    """The rules of the row layout; the first row that breaks one is named."""
    numbers = [name for name in COEFFICIENTS if name != "clip"]
    no_eval = (rows["flags"] & EVAL) == 0
    rules = [(name, np.isfinite(rows[name]), "a finite number") for name in (*numbers, *EXTRAS)]
    rules += [
        ("clip", rows["clip"] > 0, "a number > 0, or inf for no clamp"),
        ("flags", rows["flags"] <= (EVAL | PUSH), "EVAL and PUSH, the bits 1 and 2"),
        ("table", rows["table"] < n_tables, f"an index below the {n_tables} table_timesteps"),
        ("rescale", (rows["rescale"] >= 0) & (rows["rescale"] <= 1), "a number from 0 to 1"),
        ("quantile", (rows["quantile"] >= 0) & (rows["quantile"] <= 1), "a number from 0 to 1"),
        ("clip", (rows["quantile"] == 0) | (rows["clip"] >= 1), "1 or more beside a quantile"),
        ("reserved", (rows["reserved"] == 0).all(axis=1), "zeros"),
        ("p_F", (rows["p_F"] == 0) | ~no_eval, "0 in a row without EVAL"),
        ("e", (rows["e"] == 0) | ~no_eval, "0 in a row without EVAL"),
    ]
    for name, good, accepted in rules:
        if not good.all():
            where = int(np.argmin(good))
            raise ValueError(f"rows: got {name} = {rows[name][where]} in row {where}; accepted: {accepted}")


def _terms(rows: np.ndarray) -> int:
    used = [name for name in COEFFICIENTS if (rows[name] != _NEUTRAL.get(name, 0.0)).any()]
    if (rows["flags"] & PUSH).any():
        used.append("push")
    return sum(TERM_BITS[name] for name in used)
