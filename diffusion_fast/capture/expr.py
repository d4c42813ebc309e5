"""What a captured module computes for one sample, as a graph of expressions: between fx and tile operations.

An expression is a vector of features. Table holds what does not depend on x; the constructors of Builder keep
sums, products with constants, linear layers and rearrangements of tables tables, in float64. How the rest
becomes operations is decided in program.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx

from diffusion_fast._tensors import CPU
from diffusion_fast.capture.graph import CaptureError
from diffusion_fast.reference import FUNCTIONS
from diffusion_fast.tile_ops import SLOPES, Array

_serial = itertools.count()


@dataclass(frozen=True, eq=False, kw_only=True)
class Expr:
    """width features; place: the operation's name and the module's line. Operands have lower serials."""

    width: int
    place: tuple[str, str] = ("", "")
    serial: int = field(default_factory=lambda: next(_serial))

    @property
    def sources(self) -> tuple[Expr, ...]:
        return ()


@dataclass(frozen=True, eq=False, kw_only=True)
class Input(Expr):
    """The network's input x."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Context(Expr):
    """A sample's context: the same at every step."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Table(Expr):
    """bias (width,) + step[t] + label[y] + joint[t, y], all float64; None is zero."""

    bias: Tensor | None = None
    step: Tensor | None = None
    label: Tensor | None = None
    joint: Tensor | None = None

    @property
    def parts(self) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        return self.bias, self.step, self.label, self.joint

    def each(self, function: Callable[[Tensor], Tensor], width: int | None = None) -> Table:
        """function of each part, which has to be linear; width of what comes out."""
        bias, step, label, joint = (None if part is None else function(part) for part in self.parts)
        wide = self.width if width is None else width
        return Table(width=wide, place=self.place, bias=bias, step=step, label=label, joint=joint)

    def plus(self, other: Table) -> Table:
        pairs = zip(self.parts, other.parts, strict=True)
        bias, step, label, joint = (b if a is None else a if b is None else a + b for a, b in pairs)
        return Table(width=self.width, place=self.place, bias=bias, step=step, label=label, joint=joint)

    def without(self, *parts: str) -> Table:
        return replace(self, **dict.fromkeys(parts))  # type: ignore[arg-type]

    @property
    def changes(self) -> bool:
        """Whether it depends on the step."""
        return self.step is not None or self.joint is not None

    @property
    def is_zero(self) -> bool:
        return not any(part is not None and bool(part.any()) for part in self.parts)

    @property
    def constant(self) -> Tensor | None:
        """(width,), if it depends on neither t nor y."""
        if self.step is not None or self.label is not None or self.joint is not None:
            return None
        return torch.zeros(self.width, dtype=torch.float64, device=CPU) if self.bias is None else self.bias

    @property
    def one_part(self) -> Table | None:
        """The same in one part, so that any function of it is a table; None if it is a sum over t and y."""
        if self.joint is not None or (self.step is not None and self.label is not None):
            return None
        if self.bias is None or (self.step is None and self.label is None):
            return self
        bias = self.bias
        return replace(self, bias=None).each(lambda part: part + bias)

    @property
    def scalar(self) -> float | None:
        """The number that all features are, if it is one."""
        value = self.constant
        return float(value[0]) if value is not None and bool((value == value[0]).all()) else None


@dataclass(frozen=True, eq=False, kw_only=True)
class Linear(Expr):
    """weight (width, src.width) float64 times src."""

    src: Expr
    weight: Tensor

    @property
    def sources(self) -> tuple[Expr, ...]:
        return (self.src,)


@dataclass(frozen=True, eq=False, kw_only=True)
class Map(Expr):
    src: Expr
    function: str
    param: float = 0.0

    @property
    def sources(self) -> tuple[Expr, ...]:
        return (self.src,)


@dataclass(frozen=True, eq=False, kw_only=True)
class Binary(Expr):
    a: Expr
    b: Expr
    function: str

    @property
    def sources(self) -> tuple[Expr, ...]:
        return (self.a, self.b)


@dataclass(frozen=True, eq=False, kw_only=True)
class Norm(Expr):
    src: Expr
    function: str
    groups: int
    epsilon: float = 0.0
    weight: Tensor | None = None
    bias: Tensor | None = None

    @property
    def sources(self) -> tuple[Expr, ...]:
        return (self.src,)


@dataclass(frozen=True, eq=False, kw_only=True)
class Reduce(Expr):
    src: Expr
    function: str

    @property
    def sources(self) -> tuple[Expr, ...]:
        return (self.src,)


@dataclass(frozen=True, eq=False, kw_only=True)
class Gather(Expr):
    """Features index of each part, one part after the other."""

    parts: tuple[tuple[Expr, Array], ...]

    @property
    def sources(self) -> tuple[Expr, ...]:
        return tuple(src for src, _ in self.parts)


@dataclass(frozen=True, eq=False, kw_only=True)
class Joint(Expr):
    """A value of t and y together that is no sum. root as it stands after the node `upto`, to be evaluated
    for all pairs; inner: the same as operations, or why there is none."""

    root: fx.Node
    upto: fx.Node
    inner: Expr | CaptureError


def reachable(out: Expr) -> list[Expr]:
    """out and what it is made of, operands first; the input always, for it is value 0."""
    found, open_ = {out.serial: out}, [out]
    while open_:
        for source in open_.pop().sources:
            if source.serial not in found:
                found[source.serial] = source
                open_.append(source)
    return [found[serial] for serial in sorted(found)]


def slope_pairs(order: list[Expr]) -> dict[int, Map]:
    """For every map that has its slope, or is it, of the same features: the map of both, twice as wide."""
    maps = {(expr.src.serial, expr.function, expr.param): expr for expr in order if isinstance(expr, Map)}
    found: dict[int, Map] = {}
    for (src, function, param), expr in maps.items():
        slope = maps.get((src, SLOPES.get(function, ""), param))
        if slope is not None:
            both = Map(width=2 * expr.width, place=expr.place, src=expr.src, function=function, param=param)
            found |= {expr.serial: both, slope.serial: both}
    return found


class Builder:
    """Makes expressions, simplified; `place` is put down in each."""

    def __init__(self) -> None:
        self.place = ("", "")
        self._gathers: dict[Any, Expr] = {}

    def table(self, width: int, **parts: Tensor) -> Table:
        return Table(width=width, place=self.place, **parts)  # type: ignore[arg-type]

    def number(self, width: int, value: float) -> Table:
        return self.table(width, bias=torch.full((width,), value, dtype=torch.float64, device=CPU))

    def map(self, src: Expr, function: str, param: float = 0.0) -> Expr:
        if isinstance(src, Table) and (whole := src.one_part) is not None:
            return whole.each(lambda part: FUNCTIONS[function](part, param))
        if isinstance(src, Gather) and any(isinstance(s, Table) and s.one_part for s in src.sources):
            return self._map_parts(src, function, param)
        return Map(width=src.width, place=self.place, src=src, function=function, param=param)

    def _map_parts(self, src: Gather, function: str, param: float) -> Expr:
        """What does not depend on x among joined features is computed here, the rest by one operation."""
        numbers = np.cumsum([0, *(len(index) for _, index in src.parts)])
        places = [np.arange(*ends) for ends in itertools.pairwise(numbers)]
        once = [isinstance(s, Table) and s.one_part is not None for s in src.sources]
        found, order = [], []
        for at_once in (True, False):
            order += [place for place, o in zip(places, once, strict=True) if o is at_once]
            parts = [self.pick(*part) for part, o in zip(src.parts, once, strict=True) if o is at_once]
            parts = parts if at_once else [self.join(parts)]
            found += [self.map(part, function, param) for part in parts]
        return self.pick(self.join(found), np.argsort(np.concatenate(order)))

    def binary(self, a: Expr, b: Expr, function: str) -> Expr:
        return Binary(width=a.width, place=self.place, a=a, b=b, function=function)

    def add(self, a: Expr, b: Expr) -> Expr:
        if isinstance(a, Table):
            a, b = b, a
        if isinstance(a, Table) and isinstance(b, Table):
            return a.plus(b)
        return a if isinstance(b, Table) and b.is_zero else self.binary(a, b, "add")

    def mul(self, a: Expr, b: Expr) -> Expr:
        if isinstance(a, Table):
            a, b = b, a
        for table, factor in ((a, b), (b, a)):
            constant = factor.constant if isinstance(factor, Table) else None
            if isinstance(table, Table) and constant is not None:
                return table.each(lambda part, c=constant: part * c)  # type: ignore[misc]
        return a if isinstance(b, Table) and b.scalar == 1 else self.binary(a, b, "mul")

    def scale(self, a: Expr, factor: float) -> Expr:
        return self.mul(a, self.number(a.width, factor))

    def sub(self, a: Expr, b: Expr) -> Expr:
        if isinstance(b, Table):
            return self.add(a, b.each(torch.neg))
        return self.add(self.scale(b, -1.0), a) if isinstance(a, Table) else self.binary(a, b, "sub")

    def div(self, a: Expr, b: Expr) -> Expr:
        number = b.scalar if isinstance(b, Table) else None
        if isinstance(b, Table) and (number or (isinstance(a, Table) and b.constant is not None)):
            return self.mul(a, b.each(torch.reciprocal))
        if isinstance(a, Table) and a.scalar == 1:
            return self.map(b, "reciprocal")
        return self.binary(a, b, "div")

    def linear(self, src: Expr, weight: Tensor) -> Expr:
        if isinstance(src, Table):
            return src.each(lambda part: part @ weight.T, len(weight))
        return Linear(width=len(weight), place=self.place, src=src, weight=weight)

    def norm(self, src: Expr, function: str, groups: int, epsilon: float = 0.0, **arrays: Any) -> Expr:
        return Norm(
            width=src.width,
            place=self.place,
            src=src,
            function=function,
            groups=groups,
            epsilon=epsilon,
            **arrays,
        )

    def reduce(self, src: Expr, function: str, groups: int) -> Expr:
        return Reduce(width=groups, place=self.place, src=src, function=function)

    def pick(self, src: Expr, index: Array) -> Expr:
        return self.gather([src], np.zeros(index.size, np.int64), index.ravel())

    def join(self, parts: Sequence[Expr]) -> Expr:
        widths = [part.width for part in parts]
        return self.gather(
            parts, np.repeat(np.arange(len(parts)), widths), np.concatenate([np.arange(w) for w in widths])
        )

    def gather(self, sources: Sequence[Expr], which: Array, index: Array) -> Expr:
        """Feature j is sources[which[j]][index[j]]."""
        sources, which, index = _through_gathers(sources, which, index)
        if len(sources) == 1 and np.array_equal(index, np.arange(sources[0].width)):
            return sources[0]
        if all(isinstance(source, Table) for source in sources):
            return self._gather_tables([s for s in sources if isinstance(s, Table)], which, index)
        cuts = np.flatnonzero(np.diff(which)) + 1
        starts = np.concatenate([[0], cuts])
        if len(starts) > 2 * len(sources):
            # Interleaved: joined first, then put in order at once.
            whole = self.join(list(sources))
            offsets = np.cumsum([0, *(source.width for source in sources)])
            return self._gathered([(whole, offsets[which] + index)])
        runs = zip(starts, np.split(index, cuts), strict=True)
        return self._gathered([(sources[which[at]], part) for at, part in runs])

    def _gathered(self, parts: list[tuple[Expr, Array]]) -> Expr:
        key = tuple((source.serial, part.tobytes()) for source, part in parts)
        if key not in self._gathers:
            width = sum(len(part) for _, part in parts)
            self._gathers[key] = Gather(width=width, place=self.place, parts=tuple(parts))
        return self._gathers[key]

    def _gather_tables(self, tables: list[Table], which: Array, index: Array) -> Table:
        """Part by part; a table that lacks a part that another has is zero there."""
        offsets = np.cumsum([0, *(table.width for table in tables)])
        order = torch.from_numpy(offsets[which] + index)
        found: dict[str, Tensor] = {}
        for name in ("bias", "step", "label", "joint"):
            given = [getattr(table, name) for table in tables]
            like = next((part for part in given if part is not None), None)
            if like is not None:
                zeros = [like.new_zeros(*like.shape[:-1], table.width) for table in tables]
                whole = torch.cat(
                    [z if part is None else part for z, part in zip(zeros, given, strict=True)], -1
                )
                found[name] = whole[..., order]
        return self.table(len(index), **found)


def _through_gathers(sources: Sequence[Expr], which: Array, index: Array) -> tuple[list[Expr], Array, Array]:
    """The same features read from what the sources were gathered from; each source once, none unread."""
    found: list[Expr] = []
    number = np.zeros(len(which), np.int64)
    feature = np.zeros(len(which), np.int64)

    def place_of(source: Expr) -> int:
        if not any(source is other for other in found):
            found.append(source)
        return next(i for i, other in enumerate(found) if other is source)

    for i in dict.fromkeys(which.tolist()):
        here = np.flatnonzero(which == i)
        source = sources[i]
        if not isinstance(source, Gather):
            number[here], feature[here] = place_of(source), index[here]
            continue
        ends = np.cumsum([len(part) for _, part in source.parts])
        part_of = np.searchsorted(ends, index[here], side="right")
        for k in dict.fromkeys(part_of.tolist()):
            inner, part = source.parts[k]
            at = here[part_of == k]
            number[at], feature[at] = place_of(inner), part[index[at] - (ends[k] - len(part))]
    return found, number, feature
