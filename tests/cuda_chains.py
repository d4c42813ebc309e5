"""Chains on the emulated device and on the CPU, by the same arguments; shared by the tests."""

from __future__ import annotations

from typing import Any

import numpy as np
from cuda_build import emulated
from test_chain import GUARD, address, same_bits

from diffusion_fast import _cpu
from diffusion_fast.plan import Plan

LIMITS = {"shared_bytes": 232448, "capability": 100, "multiprocessors": 3}
PROGRAM = ("precision", "shared_bytes", "capability", "multiprocessors", "tensor_cores", "module")
Arrays = dict[str, Any]


def program(
    plan: Plan,
    precision: str = "float32",
    *,
    tensor_cores: bool = False,
    module: Any = None,
    **limits: int,
) -> Any:
    """module: the emulated one with other sources."""
    return (module or emulated()).Program(
        plan.to_bytes(), precision, **{**LIMITS, **limits}, tensor_cores=tensor_cores
    )


def pointers(plan: Plan, call: Arrays) -> Arrays:
    """The arguments of run() of either module for arrays by name."""
    names = [name for name in ("x_T", "noise", "guidance", "device_seed") if name in call]
    given = {name: address(call[name]) for name in names}
    labels = call.get("labels")
    if isinstance(labels, np.ndarray):
        given["labels"] = address(labels)
    elif labels is not None:
        given["label"] = labels
    for name in ("context", "fixed"):
        if name in call:
            rows = call[name]
            given |= {name: address(rows), f"{name}_stride": rows.shape[1] if len(rows) > 1 else 0}
    if "fixed" in call:
        given |= {"fixed_mask": address(call["mask"]), "fixed_clean": call.get("clean", False)}
    return given


def cuda_chain(
    plan: Plan, n: int, *, seed: int = 0, start: int = 0, trajectory: bool = False, **call: Any
) -> np.ndarray:
    """Samples, or the trajectory; nothing beyond the arrays may be written."""
    options = {k: call.pop(k) for k in PROGRAM if k in call}
    limits = {k: call.pop(k) for k in ("max_blocks",) if k in call}
    p = program(plan, **options)
    beyond = 64 * plan.dim  # what the last tile could write were it full
    out = np.full(n * plan.dim + beyond, GUARD)
    states = np.full((len(plan.rows) + 1) * n * plan.dim + beyond, GUARD) if trajectory else None
    scratch = np.full(max(1, p.scratch_bytes(n) // 4), np.nan, np.float32)
    given = pointers(plan, call) | limits | {"trajectory": address(states)}
    scratch_at = address(scratch) if p.scratch_bytes(n) else 0
    p.run(address(p.image), scratch_at, address(out), n, start, seed, 0, 0, **given)
    assert (out[n * plan.dim :] == GUARD).all()
    if states is None:
        return out[: n * plan.dim].reshape(n, plan.dim)
    size = (len(plan.rows) + 1) * n * plan.dim
    assert (states[size:] == GUARD).all()
    return states[:size].reshape(-1, n, plan.dim)


def cpu_chain(
    plan: Plan, n: int, *, seed: int = 0, start: int = 0, trajectory: bool = False, **call: Any
) -> np.ndarray:
    out = np.empty((n, plan.dim), np.float32)
    states = np.empty((len(plan.rows) + 1, n, plan.dim), np.float32) if trajectory else None
    given = pointers(plan, call) | {"trajectory": address(states)}
    _cpu.Program(plan.to_bytes()).run(address(out), n, start, seed, 1, **given)
    return out if states is None else states


def assert_cpu_bits(plan: Plan, n: int, **call: Any) -> None:
    options = {k: call.pop(k) for k in (*PROGRAM, "max_blocks") if k in call}
    got, want = cuda_chain(plan, n, **call, **options), cpu_chain(plan, n, **call)
    assert np.isfinite(want).all()
    assert same_bits(got, want), f"{np.abs(got - want).max():.3g} off"


def labels_of(plan: Plan, n: int, seed: int = 0) -> Arrays:
    if not plan.n_classes:
        return {}
    return {"labels": np.random.default_rng(seed).integers(0, plan.n_classes, n, dtype=np.int32)}


def normals(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
