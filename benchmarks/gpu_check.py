"""The CUDA kernels on a device: proved first, then measured beside torch, torch.compile and diffusers.

python -m benchmarks.gpu_check, or `make gpu-check`. Needs a GPU, a build with nvcc and torch; no download.
Writes benchmarks/results/DEVICE-DATE.json and prints a table. Exit code 0: all proofs hold; 1: one does not;
2: there is no device that can be used, which one line says.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import diffusion_fast as df
from benchmarks import machine, peers
from benchmarks.run import RESULTS
from diffusion_fast._timing import Contender, Result, compare
from diffusion_fast._torch_peers import Coefficients, linear_betas

ROOT = Path(__file__).resolve().parent.parent
NOISE_VALUES = 10**8
NOISE_DIMS = (1, 2, 3, 4, 5, 64, 3072)
STEPS, T = 1000, 500
# Kernel launches under the sanitizers take a hundred times longer: the tests that touch every kernel once.
SANITIZED = "sizes or statistics or noise"


@dataclass(frozen=True)
class Proof:
    name: str
    holds: bool
    detail: str

    def __str__(self) -> str:
        return f"{'ok  ' if self.holds else 'FAIL'}  {self.name}: {self.detail}"


# ---- proofs


def noise_bits(values: int) -> Proof:
    """The stream on the device beside the CPU's, value by value."""
    each, wrong, compared = values // len(NOISE_DIMS), 0, 0
    for dim in NOISE_DIMS:
        n = -(-each // dim)
        for step, purpose in ((0, "step"), (3, "step"), (0, "initial")):
            part = -(-n // 3)
            how: dict[str, Any] = {
                "seed": 2**63 + dim,
                "step": step,
                "purpose": purpose,
                "start": 2**32 - part // 2,
            }
            here = df.noise.normal(part, dim, **how)
            there = df.noise.normal(part, dim, device="cuda", **how).cpu()
            wrong += int((here.view(torch.int32) != there.view(torch.int32)).sum())
            compared += here.numel()
    return Proof("noise bits, CPU and CUDA", wrong == 0, f"{wrong} of {compared:,} values differ")


def run(name: str, command: list[str], seconds: int) -> Proof:
    """A process that must end well; its last line that is not empty is told."""
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return Proof(name, False, f"not finished after {seconds} s")
    lines = [line for line in (done.stdout + done.stderr).splitlines() if line.strip()]
    if done.returncode != 0:
        print("\n".join(lines[-40:]))
    return Proof(name, done.returncode == 0, lines[-1].strip("= ") if lines else "no output")


def device_tests() -> Proof:
    return run("tests marked cuda", [sys.executable, "-m", "pytest", "-q", "-m", "cuda", "tests"], 240)


def sanitized(tool: str) -> Proof:
    name = f"compute-sanitizer {tool}"
    places = ["compute-sanitizer", "/usr/local/cuda/bin/compute-sanitizer"]
    found = next((path for path in places if shutil.which(path)), None)
    if found is None:
        return Proof(name, True, "not run: compute-sanitizer is not installed")
    pytest = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-m",
        "cuda",
        "-k",
        SANITIZED,
        "tests/test_cuda_device.py",
    ]
    return run(name, [found, "--tool", tool, "--error-exitcode=9", *pytest], 120)


def proofs(quick: bool) -> list[Callable[[], Proof]]:
    return [
        partial(noise_bits, NOISE_VALUES // (100 if quick else 1)),
        device_tests,
        *(partial(sanitized, tool) for tool in ("memcheck", "racecheck", "synccheck")),
    ]


# ---- measurements


def on_device(work: Callable[[], object], calls: int = 5) -> Callable[[], float]:
    """Seconds of a call by the device's own clock: `calls` in a row, so that launching is hidden."""
    work()  # compiles, loads, fills caches of memory
    torch.cuda.synchronize()

    def timed() -> float:
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        for _ in range(calls):
            work()
        end.record()
        end.synchronize()
        return begin.elapsed_time(end) / 1e3 / calls

    return timed


def copy_bandwidth() -> float:
    """GB/s of a copy of 512 MB on the device, bytes read and bytes written, the best of some."""
    source = torch.zeros(1 << 27, device="cuda")
    target = torch.empty_like(source)
    copy = on_device(partial(target.copy_, source))
    return 2 * source.nbytes / min(copy() for _ in range(5)) / 1e9


@dataclass(frozen=True)
class Step:
    """One reverse step with noise, in place, on what 64 images of 3 x 1024 x 1024 hold."""

    dtype: torch.dtype
    guided: bool
    required: float  # share of the measured copy bandwidth

    @property
    def name(self) -> str:
        kind = "guided-" if self.guided else ""
        return f"step-{kind}{str(self.dtype).removeprefix('torch.')}"

    def measure(self, quick: bool) -> Result:
        images = 4 if quick else 64
        x, c, u = (torch.randn(images, 3, 1024, 1024, device="cuda").to(self.dtype) for _ in range(3))
        moved = (4 if self.guided else 3) * x.element_size()  # bytes an element: x, c (and u) read, x written
        title = f"reverse_step with noise, {x.numel():,} elements; ceiling = copy bandwidth"
        result = Result(self.name, title, "Melem/s")
        found = []
        for name, make in self.contenders().items():
            try:
                found.append(Contender(name, on_device(make(x, c, u if self.guided else None))))
            except (ImportError, RuntimeError) as error:
                result.missing.append(f"{name}: {str(error).splitlines()[0]}")
        ceiling = 1e3 * copy_bandwidth() / moved
        return compare(result, found, x.numel() / 1e6, 3 if quick else 7, lambda: ceiling, self.required)

    def contenders(self) -> dict[str, Callable[..., Callable[[], object]]]:
        made = {"ours": ours, "torch eager": eager, "torch.compile": compiled}
        return made if self.guided else made | {"diffusers": diffusers_step}


SCALE = 7.5


def ours(x: Tensor, c: Tensor, u: Tensor | None) -> Callable[[], object]:
    schedule = df.NoiseSchedule(linear_betas(STEPS))
    row = df.solvers.ddpm(schedule, variance="posterior")[STEPS - 1 - T]
    how: dict[str, Any] = {"seed": 0, "step": STEPS - 1 - T}
    if u is not None:
        how |= {"uncond_output": u, "guidance_scale": SCALE}
    return partial(df.ops.reverse_step, x, c, row, out=x, **how)


def formula(x: Tensor, c: Tensor, u: Tensor | None) -> Tensor:
    steps = Coefficients.ddpm(STEPS)
    a, e, s = (float(column[T]) for column in (steps.a, steps.e, steps.s))
    F = c if u is None else u + SCALE * (c - u)
    return a * x + e * F + s * torch.randn_like(x)


def eager(x: Tensor, c: Tensor, u: Tensor | None) -> Callable[[], object]:
    return partial(formula, x, c, u)


def compiled(x: Tensor, c: Tensor, u: Tensor | None) -> Callable[[], object]:
    return partial(torch.compile(formula, dynamic=False, fullgraph=True), x, c, u)


def diffusers_step(x: Tensor, c: Tensor, _: Tensor | None) -> Callable[[], object]:
    return partial(peers.DiffusersStep(STEPS, T), x, c)


MEASUREMENTS = [
    Step(torch.float32, False, 0.90),
    Step(torch.bfloat16, True, 0.75),
    Step(torch.float32, True, 0.90),
    Step(torch.bfloat16, False, 0.70),
]


# ---- the whole


def no_device() -> str | None:
    """Why there is nothing to check."""
    if not df.cuda_available():
        return str(df.cuda.problem())
    if not torch.cuda.is_available():
        return f"this torch ({torch.__version__}) sees no CUDA device"
    return None


def describe() -> dict[str, Any]:
    properties = torch.cuda.get_device_properties(0)
    return machine.describe() | {
        "device": properties.name,
        "multiprocessors": properties.multi_processor_count,
        "device_memory_gib": round(properties.total_memory / 2**30, 1),
        "cuda": df.build_info()["cuda"],
        "copy_gb_s": copy_bandwidth(),
    }


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--quick", action="store_true", help="fewer values and smaller tensors; no file is written"
    )
    options = parser.parse_args()
    reason = no_device()
    if reason is not None:
        print(f"gpu-check: nothing checked: {reason}", file=sys.stderr)
        return 2
    begin = time.perf_counter()
    hardware = describe()
    print(f"{hardware['device']}, copy {hardware['copy_gb_s']:.0f} GB/s, torch {torch.__version__}\n")
    shown = []
    for proof in proofs(options.quick):
        shown.append(proof())
        print(shown[-1], flush=True)
    results = []
    with torch.inference_mode():
        for case in MEASUREMENTS:
            results.append(case.measure(options.quick))
            print(f"\n{results[-1]}", flush=True)
    content = {
        "machine": hardware,
        "proofs": [vars(proof) for proof in shown],
        "results": [result.as_dict() for result in results],
        "seconds": round(time.perf_counter() - begin),
    }
    if not options.quick:
        slug = re.sub(r"[^a-z0-9]+", "-", hardware["device"].lower()).strip("-")
        path = RESULTS / f"{slug}-{datetime.date.today().isoformat()}.json"
        path.write_text(json.dumps(content, indent=1) + "\n")
        print(f"\nwritten: {path.relative_to(ROOT)}")
    return 0 if all(proof.holds for proof in shown) else 1


if __name__ == "__main__":
    os.environ.setdefault("PYTHONWARNINGS", "ignore::FutureWarning")
    sys.exit(main())
