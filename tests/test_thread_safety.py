"""One Sampler in many threads and in forks: the same bytes, and each thread's floating-point mode stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

import diffusion_fast as df

N = 3000


def test_many_threads_at_once(sampler: df.Sampler, conditional: df.Sampler) -> None:
    """Different calls of two samplers, each with threads of its own, all begun together."""
    labels = torch.arange(N) % 3
    calls = [lambda s=s: sampler.sample(N, seed=s, threads=2) for s in range(4)]
    calls += [lambda s=s: conditional.sample(N, seed=s, labels=labels, start=s, threads=2) for s in range(4)]
    alone = [call() for call in calls]
    barrier = threading.Barrier(len(calls))

    def together(i: int) -> list[torch.Tensor]:
        barrier.wait()
        return [calls[i]() for _ in range(3)]

    with ThreadPoolExecutor(len(calls)) as pool:
        for i, results in enumerate(pool.map(together, range(len(calls)))):
            assert all(torch.equal(result, alone[i]) for result in results)


def denormals_are_zero() -> bool:
    return float(torch.tensor([1e-40]) * torch.tensor([1.0])) == 0


def test_a_caller_s_floating_point_mode_changes_no_bit_and_stays(sampler: df.Sampler) -> None:
    expected = sampler.sample(N, threads=2)

    def in_flush_mode() -> tuple[bool, bool]:
        assert torch.set_flush_denormal(True)
        same = torch.equal(sampler.sample(N, threads=2), expected)
        return same, denormals_are_zero()

    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(in_flush_mode).result() == (True, True)
        pool.submit(torch.set_flush_denormal, False).result()
        assert pool.submit(sampler.sample, N).result().equal(expected)
        assert not pool.submit(denormals_are_zero).result()


FORK = """
import os, sys, torch
sys.path.insert(0, sys.argv[1])
from samplers import SCHEDULE, make_model
import diffusion_fast as df
torch.set_num_threads(2)
scale = df.Standardiser([0.0] * 3, [2.0] * 3)
options = {"standardiser": scale, "steps": 4, "solver": "ddim"}
samplers = [df.Sampler(make_model(), SCHEDULE, backend=b, **options) for b in ("native", "torch")]
expected = [sampler.sample(40_000) for sampler in samplers]  # torch's own threads have worked
pid = os.fork()
if pid == 0:
    same = [torch.equal(s.sample(40_000), e) for s, e in zip(samplers, expected)]
    os._exit(0 if same[0] and torch.allclose(samplers[1].sample(40_000), expected[1], atol=1e-3) else 1)
print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
def test_a_fork_after_use_draws_the_same() -> None:
    """torch's threads are not in the child, and waiting for them would take for ever."""
    tests = os.path.dirname(__file__)
    environment = {**os.environ, "PYTHONPATH": os.path.dirname(tests), "OMP_NUM_THREADS": "2"}
    process = subprocess.Popen(
        [sys.executable, "-c", FORK, tests],
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        stdout, _ = process.communicate(timeout=60)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
    assert stdout.split() == ["0"]
