"""What long runs cost: writing beside drawing, memory, two processes beside one, what a kill loses.

python -m benchmarks.long_runs [--samples N] [--save FILE]: a 2-64-64-2 network, 20 steps, on two cores.
100,000,000 samples, the default, take twenty minutes and are written to benchmarks/results/; fewer are only
printed, or written to FILE.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from multiprocessing import Value
from pathlib import Path
from typing import Any

import torch

import diffusion_fast as df
from benchmarks import machine, run
from benchmarks.isolated import ROOT
from diffusion_fast._timing import Check, Result

STEPS = 20
ROUNDS = 3
PAIRS = 7  # of ranks: short runs and many, for each pair sees the same neighbours
SAMPLES = 100_000_000


def checkpoint(folder: Path) -> Path:
    torch.manual_seed(0)
    path = folder / "net.safetensors"
    df.save(path, df.models.MLPDenoiser(2, (64, 64), "relu", n_steps=STEPS), df.NoiseSchedule.cosine(STEPS))
    return path


def seconds(call: Any) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def streaming(sampler: df.Sampler, folder: Path, n: int) -> float:
    """The time of sample_to over that of sample, median of pairs."""
    ratios = []
    for _ in range(ROUNDS):
        memory = seconds(lambda: sampler.sample(n))
        disk = seconds(lambda: df.sample_to(folder / "x.npy", sampler, n, overwrite=True))
        ratios.append(disk / memory)
    return statistics.median(ratios)


def command(path: Path, n: int, *more: str) -> list[str]:
    return ["sample", str(path), "--num-samples", str(n), "--json", "--force", *more]


def peak_megabytes(path: Path, folder: Path, n: int) -> float:
    """VmHWM of a process that writes n samples."""
    code = (
        "import sys; from benchmarks.isolated import _memory; from diffusion_fast.cli import main\n"
        "main(sys.argv[1:], standalone_mode=False); print(_memory('VmHWM'))"
    )
    arguments = command(path, n, "--out", str(folder / "x.npy"))
    return float(last_line([sys.executable, "-c", code, *arguments]))


def last_line(command: list[str]) -> str:
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()[-1]


def rate(path: Path, folder: Path, n: int, world: int) -> float:
    """Samples a second of so many ranks of one thread each, from the time that rank 0 tells."""
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={world}"]
    arguments = command(path, n, "--threads", "1", "--out", str(folder / "x.npy"))
    told = last_line([sys.executable, *launcher, "-m", "diffusion_fast", *arguments])
    return json.loads(told)["samples_per_second"]


def drawn_twice(sampler: df.Sampler, folder: Path, n: int) -> float:
    """The share of the samples that a run draws again which was killed in its middle."""
    begun = Value("q", 0)
    sample = df.Sampler.sample

    def counted(self: df.Sampler, count: int, **options: Any) -> torch.Tensor:
        with begun.get_lock():
            begun.value += count
        return sample(self, count, **options)

    df.Sampler.sample = counted  # type: ignore[method-assign]
    try:
        path = folder / "killed.npy"
        pid = os.fork()
        if pid == 0:
            df.sample_to(path, sampler, n, threads=2)
            os._exit(0)
        while begun.value < n // 2:
            time.sleep(0.001)
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        df.sample_to(path, sampler, n, resume=True)
    finally:
        df.Sampler.sample = sample  # type: ignore[method-assign]
    return begun.value / n - 1


def speedup(path: Path, folder: Path, n: int) -> float:
    """Two ranks of one thread over one, median of pairs."""
    ratios = []
    for _ in range(PAIRS):
        one, two = (rate(path, folder, n, world) for world in (1, 2))
        ratios.append(two / one)
    return statistics.median(ratios)


def checks(folder: Path, n: int) -> Iterator[Check]:
    """Writing is measured with all n samples, what depends less on their number with a part of them."""
    path = checkpoint(folder)
    sampler = df.load(path).sampler()
    sampler.sample(100_000)
    extra = streaming(sampler, folder, n)
    yield Check("writing to .npy over sampling into memory", extra, 1.05, most=True)
    again = 100 * drawn_twice(sampler, folder, n // 10)
    yield Check(f"of {n // 10:,} samples drawn twice after a kill", again, 2.0, " %", most=True)
    yield Check("peak memory", peak_megabytes(path, folder, n // 10), 600, " MB", most=True)
    yield Check("two ranks of one thread over one", speedup(path, folder, n // 20), 1.9)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--samples", type=int, default=SAMPLES)
    parser.add_argument("--save", metavar="FILE", type=Path, help="write the results as JSON")
    options = parser.parse_args()
    torch.set_num_threads(min(2, torch.get_num_threads()))  # the requirements are stated for two cores
    hardware = machine.describe()
    result = Result("long-runs", f"{options.samples:,} samples to disk, 2-64-64-2, {STEPS} steps")
    print(result, flush=True)
    with tempfile.TemporaryDirectory() as name:
        for check in checks(Path(name), options.samples):
            print(f"  {check}", flush=True)
            result.checks.append(check)
    target = options.save or (run.dated("long-runs") if options.samples == SAMPLES else None)
    if target is not None:
        run.save(target, [result], hardware)
        print(f"written: {target}")


if __name__ == "__main__":
    main()
