"""The ops as torch.library sees them: a function compiled by torch.compile or torch.export keeps one graph.

ops.reverse_step and noise.normal come here while such a function is traced; an eager call never does, for
the dispatcher takes longer than a small step. When the graph runs, each op calls the public function, which
checks its arguments as always.

A row is a constant of the graph. A compiled function that takes rows as arguments is therefore compiled once
for each, as often as torch._dynamo.config.recompile_limit allows: loop over the table inside it instead.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from diffusion_fast import _checks, _tensors, noise, ops
from diffusion_fast.solvers.table import COEFFICIENTS, EXTRAS, StepRow, StepTable

_NUMBERS = (*COEFFICIENTS, *EXTRAS)
# What both step ops take after x, in this order. flags: eval, push and terms. seed: its low and high 32 bits,
# for a dispatcher's integers are signed; none without a seed. {}: whether history is written to.
_ARGUMENTS = {
    "model_output": "Tensor?",
    "row": "float[]",
    "flags": "int[]",
    "seed": "SymInt[]",
    "step": "SymInt",
    "start": "SymInt",
    "noise": "Tensor?",
    "uncond_output": "Tensor?",
    "scale": "float?",
    "scales": "Tensor?",
    "history": "Tensor{}[]",
    "log_variance": "Tensor?",
    "doubled": "str?",
}
_SCHEMA = ", ".join(f"{kind} {name}" for name, kind in _ARGUMENTS.items())


def reverse_step(
    x: Tensor, model_output: Tensor | None, row: StepRow, *, prediction: Any, out: Any, **options: Any
) -> Tensor:
    """ops.reverse_step with every argument given, as one node of the graph.

    Raises TypeError or ValueError, while tracing, for what a graph cannot hold: a generator, a gradient.
    """
    if not isinstance(row, StepRow):
        raise _checks.bad_type("row", row, "a StepRow, such as solvers.ddpm(schedule)[i]")
    generator, seed, scale = options.pop("generator"), options.pop("seed"), options.pop("guidance_scale")
    if generator is not None:
        raise _checks.bad_value("generator", "a torch.Generator", "seed or noise, in a compiled function")
    tensors = {"x": x, "model_output": model_output, "prediction": prediction, "out": out}
    for name, value in (tensors | options).items():
        if isinstance(value, Tensor):
            _tensors.no_gradient(name, value)
    per_sample = isinstance(scale, Tensor)
    given = options | {
        "model_output": model_output,
        "row": [getattr(row, name) for name in _NUMBERS],
        "flags": [int(row.eval), int(row.push), row.terms],
        "seed": [] if seed is None else _words(seed),
        "scale": None if per_sample or scale is None else _checks.real("guidance_scale", scale),
        "scales": scale if per_sample else None,
        "history": list(options["history"]),
    }
    rest = [given[name] for name in _ARGUMENTS]
    writes = out is not None or prediction is not None or (row.push and len(given["history"]) > 0)
    if not writes:
        return _reverse_step(x, *rest)
    if out is None:
        out = torch.empty_like(x, memory_format=torch.contiguous_format)
    _reverse_step_(out, None if out is x else x, *rest, prediction)
    return out


def normal(n: int, dim: int, *, seed: Any, step: int, purpose: str, start: int, substream: int) -> Tensor:
    """noise.normal with every argument given, as one node of the graph; a generator raises ValueError."""
    return _normal(n, dim, _words(seed), step, purpose, start, substream)


@torch.compiler.assume_constant_result  # a table never changes
def row_at(table: StepTable, index: int) -> StepRow:
    """table[index], read while tracing: a graph holds no structured array."""
    return table.read_row(index)


def _words(seed: Any) -> list[int]:
    if isinstance(seed, torch.Generator):
        raise _checks.bad_value("seed", "a torch.Generator", "an integer, in a compiled function")
    key = _checks.seed("seed", seed)
    return [key & 0xFFFFFFFF, key >> 32]


@lru_cache(maxsize=4096)
def _row(numbers: tuple[float, ...], evaluates: int, push: int, terms: int) -> StepRow:
    """The row again, kept because its packed bytes are."""
    values: dict[str, Any] = dict(zip(_NUMBERS, numbers, strict=True))
    values |= {"table": 0, "timestep": 0.0}  # the network's, which play no part in the update
    return StepRow(**values, eval=bool(evaluates), push=bool(push), terms=terms)


def _options(rest: tuple[Any, ...]) -> dict[str, Any]:
    """The arguments of ops.reverse_step that stand in an op's arguments."""
    given = dict(zip(_ARGUMENTS, rest, strict=True))
    scale, scales, words = given.pop("scale"), given.pop("scales"), given["seed"]
    return given | {
        "row": _row(tuple(given["row"]), *given.pop("flags")),
        "seed": words[0] | words[1] << 32 if words else None,
        "guidance_scale": scale if scales is None else scales,
    }


@torch.library.custom_op(
    "diffusion_fast::reverse_step",
    mutates_args=(),
    schema=f"(Tensor x, {_SCHEMA.format('')}) -> Tensor",
)
def _reverse_step(x: Tensor, *rest: Any) -> Tensor:
    return ops.reverse_step(x, **_options(rest))


@_reverse_step.register_fake
def _(x: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(x, memory_format=torch.contiguous_format)


@torch.library.custom_op(
    "diffusion_fast::reverse_step_",
    mutates_args=("out", "history", "prediction"),
    schema=f"(Tensor(a!) out, Tensor? x, {_SCHEMA.format('(b!)')}, Tensor(c!)? prediction) -> ()",
)
def _reverse_step_(out: Tensor, x: Tensor | None, *rest: Any) -> None:
    """x: None where it is out itself, which a schema cannot say of two arguments."""
    *rest_, prediction = rest
    ops.reverse_step(out if x is None else x, **_options(tuple(rest_)), prediction=prediction, out=out)


@_reverse_step_.register_fake
def _(out: Tensor, x: Tensor | None, *rest: Any) -> None:
    pass


@torch.library.custom_op(
    "diffusion_fast::normal",
    mutates_args=(),
    schema="(SymInt n, SymInt dim, SymInt[] seed, SymInt step, str purpose, SymInt start, SymInt substream)"
    " -> Tensor",
)
def _normal(n: int, dim: int, seed: list[int], step: int, purpose: str, start: int, substream: int) -> Tensor:
    key = seed[0] | seed[1] << 32
    return noise.normal(n, dim, seed=key, step=step, purpose=purpose, start=start, substream=substream)


@_normal.register_fake
def _(n: int, dim: int, *rest: Any) -> Tensor:
    return torch.empty((n, dim), dtype=torch.float32)
