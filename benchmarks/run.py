"""Runs the cases, prints a table for each, and writes CPU-DATE.json and the figures into benchmarks/results/.

python -m benchmarks.run [--only NAME] [--quick]; `make bench` runs everything.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks import figures, isolated, machine
from benchmarks.registry import CASES
from benchmarks.scaling import Growth
from diffusion_fast._timing import Check, Result, fma_peak

RESULTS = Path(__file__).resolve().parent / "results"


def avx2(quick: bool) -> Result:
    result = Result("avx2", "the AVX2 kernels against the AVX2 peak, in a process of their own")
    found = isolated.measure("peak", quick, DIFFUSION_FAST_ISA="avx2")
    for name, speed in found["chains"].items():
        text = f"{name}, {speed['gflops']:.0f} GFLOP/s, of the {found['isa']} FMA peak"
        result.checks.append(Check(text, speed["share"], 0.85, "%"))
    return result


def memory(quick: bool) -> Result:
    result = Result("memory", f"growth of peak resident size for {isolated.SAMPLES:,} x 2 samples")
    for what in ("sample", "stream"):
        found = isolated.measure(what, quick)
        text = f"{what}(): growth, with an output of {found['output_mb']:.0f} MB,"
        result.checks.append(Check(text, found["growth_mb"], found["output_mb"] + 64, " MB", most=True))
    return result


def honest_peak(results: Sequence[Result | Growth]) -> Result:
    """Nothing measured in this run may exceed the highest peak that the microbenchmark reported."""
    peaks = [fma_peak() for _ in range(3)]
    sgemm = machine.sgemm_gflops()
    chains = [result for result in results if isinstance(result, Result) and result.name.startswith("chain-")]
    peak = max(peaks + [result.best_ceiling or 0.0 for result in chains])
    result = Result("peak", f"the highest FMA peak of this run is {peak:.1f} GFLOP/s")
    result.checks.append(Check("2048 x 2048 sgemm", sgemm, peak, " GFLOP/s", most=True))
    rates = [(row.best_rate, f"{case.name}, {row.name}") for case in chains for row in case.rows]
    rates += [(case.best_burst, f"{case.name}, a burst of ours") for case in chains if case.best_burst]
    if rates:
        best, name = max(rates)
        result.checks.append(Check(f"fastest chain ({name})", best, peak, " GFLOP/s", most=True))
    return result


def runs() -> Mapping[str, Callable[[bool], Result | Growth]]:
    """The registry, and what runs in processes of its own."""
    return {name: case.measure for name, case in CASES.items()} | {"avx2": avx2, "memory": memory}


def dated(kind: str = "") -> Path:
    """CPU-KIND-DATE.json among the results."""
    slug = re.sub(r"[^a-z0-9]+", "-", f"{machine.cpu_name()}-{kind}".lower()).strip("-")
    RESULTS.mkdir(exist_ok=True)
    return RESULTS / f"{slug}-{datetime.date.today().isoformat()}.json"


def write(results: Sequence[Result | Growth], hardware: dict[str, object]) -> list[Path]:
    path = dated()
    return [path, *figures.draw(save(path, results, hardware), RESULTS)]


def save(path: Path, results: Sequence[Result | Growth], hardware: dict[str, object]) -> dict[str, Any]:
    content = {"machine": hardware, "results": [result.as_dict() for result in results]}
    path.write_text(json.dumps(content, indent=1) + "\n")
    return content


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", metavar="NAME,...", help="only the cases whose name contains one of these")
    parser.add_argument("--save", metavar="FILE", type=Path, help="write the results of these cases as JSON")
    parser.add_argument("--quick", action="store_true", help="smaller and fewer runs; no file is written")
    options = parser.parse_args()
    every = {**runs(), "peak": None}
    parts = (options.only or "").split(",")
    chosen = {name: case for name, case in every.items() if any(part in name for part in parts)}
    if not chosen:
        parser.error(f"--only: got {options.only!r}; the cases are {', '.join(every)}")

    torch.set_num_threads(min(2, torch.get_num_threads()))  # the requirements are stated for two cores
    hardware = machine.describe() | {"copy_gb_s": machine.copy_bandwidth(), "fma_gflops": fma_peak()}
    print(
        f"{hardware['cpu']}, {hardware['torch_threads']} threads, copy {hardware['copy_gb_s']:.0f} GB/s, "
        f"FMA peak {hardware['fma_gflops']:.0f} GFLOP/s\n"
        f"load {hardware['load']} (other work on the machine spoils the figures)\n"
    )
    results: list[Result | Growth] = []
    for case in chosen.values():
        results.append(case(options.quick) if case else honest_peak(results))
        print(results[-1], end="\n\n", flush=True)

    checks = [(result.name, check) for result in results for check in result.checks]
    missed = [f"{name}, {check.text}" for name, check in checks if not check.met]
    print(f"{len(checks) - len(missed)} of {len(checks)} requirements met")
    print("".join(f"  MISS  {text}\n" for text in missed), end="")
    if options.save is not None:
        save(options.save, results, hardware)
    if not options.quick and not options.only:
        for path in write(results, hardware):
            print(f"written: {path}")


if __name__ == "__main__":
    main()
