"""The environment of a call: instruction set, number of threads, the processor's rounding state, fork."""

from __future__ import annotations

import ctypes
import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from nets import random_plan
from test_chain import run, same_bits

import diffusion_fast as df
from diffusion_fast import _cpu, noise, ops, threads

ISAS = _cpu.isas()

# The extension alone: torch would take seconds to import.
SCRIPT = """
import hashlib, importlib.util, sys
import numpy as np
spec = importlib.util.spec_from_file_location("_cpu", sys.argv[1])
_cpu = importlib.util.module_from_spec(spec)
spec.loader.exec_module(_cpu)
program = _cpu.Program(open(sys.argv[2], "rb").read())
out, normals = np.zeros((4000, 3), np.float32), np.zeros((4000, 3), np.float32)
program.run(out.ctypes.data, 4000, 0, 1, 2)
_cpu.normal(normals.ctypes.data, 4000, 3, 0, 1, 0, 0, 0, 2)
print(_cpu.isa(), program.isa, *(hashlib.sha256(a.tobytes()).hexdigest() for a in (out, normals)))
"""


def forced(isa: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """A fresh process, for the instruction set is chosen once in each."""
    plan = folder / "plan"
    plan.write_bytes(random_plan(3, 3, (40, 70)).to_bytes())
    command = [sys.executable, "-c", SCRIPT, _cpu.__file__, str(plan)]
    environment = {**os.environ, "DIFFUSION_FAST_ISA": isa}
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)


# ---- instruction sets


def test_the_portable_one_is_always_there() -> None:
    assert ISAS[-1] == "portable"
    assert set(ISAS) <= {"avx512_bf16", "avx512", "avx2", "portable"}
    assert _cpu.Program(random_plan(0).to_bytes()).isa == _cpu.isa()
    for isa in ISAS:
        assert _cpu.Program(random_plan(0).to_bytes(), isa).isa == isa


def test_the_environment_forces_one(tmp_path: Path) -> None:
    done = {isa: forced(isa, tmp_path) for isa in ["", *ISAS]}
    assert not any(d.returncode for d in done.values()), done
    words = {isa: d.stdout.split() for isa, d in done.items()}
    assert words[""][:2] == [ISAS[0]] * 2  # the best of them where none is forced
    assert all(words[isa][:2] == [isa] * 2 for isa in ISAS)
    assert len({tuple(given[2:]) for given in words.values()}) == 1  # the same samples and noise from all


@pytest.mark.parametrize("name", ["avx1024", "AVX2", "avx2,avx512"])
def test_an_unknown_one_is_an_error(name: str, tmp_path: Path) -> None:
    done = forced(name, tmp_path)
    assert done.returncode != 0
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("ValueError: ")
    assert f"got '{name}'" in last
    assert f"accepted on this processor: {', '.join(ISAS)}" in last
    with pytest.raises(ValueError, match="accepted on this processor"):
        _cpu.Program(random_plan(0).to_bytes(), name)


# ---- threads


def test_threads_from_argument_environment_and_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DIFFUSION_FAST_THREADS", raising=False)
    torch.set_num_threads(3)
    assert threads.resolve(None) == 3
    monkeypatch.setenv("DIFFUSION_FAST_THREADS", "")
    assert threads.resolve(None) == 3
    monkeypatch.setenv("DIFFUSION_FAST_THREADS", "5")
    assert threads.resolve(None) == 5
    assert threads.resolve(2) == 2
    assert threads.resolve(np.int64(4096)) == 4096


@pytest.mark.parametrize("text", ["0", "-1", "+2", "4097", "2.0", "two", " 2", "1_0", "٣", "9" * 30])
def test_wrong_threads_in_the_environment(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DIFFUSION_FAST_THREADS", text)
    with pytest.raises(ValueError, match=r"DIFFUSION_FAST_THREADS: got .*; accepted: an integer from 1"):
        threads.resolve(None)
    with pytest.raises(ValueError, match="DIFFUSION_FAST_THREADS"):
        noise.normal(1, 1, seed=0, step=0)


@pytest.mark.parametrize(
    ("value", "error"),
    [(0, ValueError), (4097, ValueError), (1.0, TypeError), ("2", TypeError), (True, TypeError)],
)
def test_wrong_threads_as_argument(value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"^threads: got .*; accepted: an integer from 1 to 4096"):
        threads.resolve(value)


def test_more_threads_than_samples_or_cores() -> None:
    plan = random_plan(3, 3, (64, 64))
    whole = run(plan, 500)
    for count in (7, 64, 4096):
        assert same_bits(run(plan, 500, threads=count), whole)
        assert same_bits(run(plan, 1, threads=count), whole[:1])


# ---- the floating point control register


@pytest.fixture
def flushing() -> Iterator[None]:
    """Subnormals count as zero in this thread while the test runs."""
    assert torch.set_flush_denormal(True)
    yield
    torch.set_flush_denormal(False)


def flushes() -> bool:
    return bool((torch.full((1,), 1e-39) * 1 == 0).all())


@pytest.mark.skipif(not torch.set_flush_denormal(False), reason="this processor cannot flush subnormals")
@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("workers", [1, 2])
def test_flush_to_zero_changes_nothing(isa: str, workers: int, request: pytest.FixtureRequest) -> None:
    plan = random_plan(3, 3, (64, 64), activation="identity")
    tiny = (np.random.default_rng(0).standard_normal((500, 3)) * 1e-39).astype(np.float32)
    quiet = np.zeros((6, 500, 3), np.float32)
    step = df.solvers.ddpm(df.NoiseSchedule.linear(n_steps=10, beta_start=0.01, beta_end=0.2))[9]
    calls = {
        "samples": lambda: run(plan, 500, isa=isa, threads=workers),
        "subnormal": lambda: run(plan, 500, isa=isa, threads=workers, x_T=tiny, noise=quiet),
        "step": lambda: ops.reverse_step(torch.from_numpy(tiny), torch.from_numpy(tiny), step).numpy(),
        "activation": lambda: _cpu.activate(6, 0.0, np.linspace(-103, -80, 500, dtype=np.float32), isa),
        "noise": lambda: noise.normal(400, 3, seed=1, step=0).numpy(),
    }
    before = {name: call() for name, call in calls.items()}
    assert not flushes()
    request.getfixturevalue("flushing")
    assert flushes()
    for name, call in calls.items():
        assert same_bits(call(), before[name]), name
        assert flushes(), name  # the caller's setting is as it was


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the rounding modes' numbers are those of x86-64")
@pytest.mark.parametrize("mode", [0x400, 0x800, 0xC00])
def test_rounding_mode_changes_nothing(mode: int) -> None:
    libm = ctypes.CDLL("libm.so.6")
    plan = random_plan(3, 3, (64, 64), activation="mish")
    before = run(plan, 100)
    normals = noise.normal(400, 3, seed=1, step=0)
    assert libm.fesetround(mode) == 0
    try:
        after, drawn = run(plan, 100), noise.normal(400, 3, seed=1, step=0)
        kept = libm.fegetround()
    finally:
        libm.fesetround(0)
    assert same_bits(after, before)
    assert torch.equal(drawn, normals)
    assert kept == mode


# ---- processes and threads of the caller


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_fork_after_a_threaded_call() -> None:
    body = """
import os, torch
import diffusion_fast as df
torch.manual_seed(0)
schedule = df.NoiseSchedule.linear(n_steps=20, beta_start=1e-3, beta_end=0.2)
model = df.models.MLPDenoiser(3, (40, 70), "gelu", "learned", 20).eval()
sampler = df.Sampler(model, schedule, backend="native")
first = sampler.sample(4000, threads=2)
pid = os.fork()
if pid == 0:
    same = [torch.equal(sampler.sample(4000, threads=n), first) for n in (2, 1)]
    os._exit(0 if all(same) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), torch.equal(sampler.sample(4000, threads=2), first))
"""
    command = [sys.executable, "-W", "ignore", "-c", body]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.stdout.split() == ["0", "True"], done.stderr


def test_python_threads_at_once() -> None:
    model = df.models.MLPDenoiser(3, (64, 64), "tanh", "learned", 30).eval()
    schedule = df.NoiseSchedule.linear(n_steps=30, beta_start=1e-3, beta_end=0.2)
    sampler = df.Sampler(model, schedule, backend="native")
    jobs = [{"seed": i % 4, "start": 500 * (i // 4), "threads": 1 + i % 2} for i in range(16)]
    expected = [sampler.sample(700, **job) for job in jobs]
    with ThreadPoolExecutor(4) as pool:
        got = list(pool.map(lambda job: sampler.sample(700, **job), jobs))
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
