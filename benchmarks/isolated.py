"""Measurements that need a process of their own: a forced instruction set, and memory.

`measure(...)` runs this file with `python -m benchmarks.isolated WHAT full` and reads one line of JSON.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import tracemalloc
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = 10_000_000
CHUNK = 1 << 18
MEGABYTE = 1e6
FILE_BLOCK_ROWS = 625_000  # 10 MB of four float32 columns


def measure(what: str, quick: bool, **environment: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.isolated", what, "quick" if quick else "full"]
    run = subprocess.run(
        command, cwd=ROOT, env=os.environ | environment, stdout=subprocess.PIPE, text=True, check=True
    )
    return json.loads(run.stdout.splitlines()[-1])


def _memory(key: str) -> float:
    """VmRSS (now) or VmHWM (the highest so far) of this process in MB.

    Not getrusage: Linux hands a parent's ru_maxrss on to the program that it starts, which would hide growth.
    """
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(key):
            return int(line.split()[1]) * 1024 / MEGABYTE
    raise RuntimeError(f"/proc/self/status has no {key}")


def _peak_share(quick: bool) -> dict[str, Any]:
    """Ours against the FMA peak of the instruction set that this process was started with."""
    from benchmarks import cases
    from diffusion_fast import _cpu
    from diffusion_fast._timing import fma_peak

    shares = {}
    for chain in cases.CHAINS:
        if chain.peak_share is not None:
            rounds = [(fma_peak(), chain.burst()) for _ in range(5 if quick else 60)]
            peak, ours = map(max, zip(*rounds, strict=True))
            shares[chain.name] = {"share": ours / peak, "gflops": ours}
    return {"isa": _cpu.isa(), "chains": shares}


def _memory_growth(quick: bool, stream: bool) -> dict[str, Any]:
    """MB by which the highest resident size of one long call exceeds the resident size before it."""
    from benchmarks.cases import Chain

    chain = Chain((2, 64, 64, 2), "relu", 2 if quick else 10, SAMPLES)
    chain.ours(100_000)
    if stream:
        parts = chain.sampler.stream(SAMPLES, chunk_size=CHUNK, seed=0)
        rows = len(next(parts))
        before = _memory("VmRSS")
        rows += sum(len(part) for part in parts)
    else:
        before = _memory("VmRSS")
        rows = len(chain.sampler.sample(SAMPLES, seed=0))
    if rows != SAMPLES:
        raise RuntimeError(f"asked for {SAMPLES} samples, got {rows}")
    output = (CHUNK if stream else SAMPLES) * 8 / MEGABYTE
    return {"growth_mb": _memory("VmHWM") - before, "output_mb": output}


def _open_file(quick: bool) -> dict[str, Any]:
    """MB of memory, the file's own pages not counted, that opening a large .npy takes."""
    import numpy as np

    from diffusion_fast import datasets

    blocks = 10 if quick else 100
    block = np.random.default_rng(0).standard_normal((FILE_BLOCK_ROWS, 4), dtype=np.float32)
    shape = (blocks * FILE_BLOCK_ROWS, 4)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.npy"
        with path.open("wb") as file:
            header = {"descr": "<f4", "fortran_order": False, "shape": shape}
            np.lib.format.write_array_header_1_0(file, header)
            for _ in range(blocks):
                block.tofile(file)
        before = _memory("RssAnon")
        # What is allocated meanwhile and given back, which the system no longer shows.
        tracemalloc.start()
        began = time.perf_counter()
        table = datasets.read(path)
        seconds = time.perf_counter() - began
        growth = max(tracemalloc.get_traced_memory()[1] / MEGABYTE, _memory("RssAnon") - before)
        if table.rows.shape != shape:
            raise RuntimeError(f"wrote rows of shape {shape}, read {table.rows.shape}")
        return {"growth_mb": growth, "file_mb": path.stat().st_size / MEGABYTE, "seconds": seconds}


def main() -> None:
    what, quick = sys.argv[1], sys.argv[2] == "quick"
    if what == "peak":
        found = _peak_share(quick)
    elif what == "open":
        found = _open_file(quick)
    else:
        found = _memory_growth(quick, stream=what == "stream")
    print(json.dumps(found))


if __name__ == "__main__":
    main()
