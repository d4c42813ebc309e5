"""The machine and its measured ceilings: what a figure is worth depends on these."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import time
from pathlib import Path
from typing import Any

import torch

from diffusion_fast._timing import fma_peak

PACKAGES = ["diffusion-fast", "torch", "numpy", "scipy", "POT", "jax", "diffusers", "onnxruntime"]


def _first_line(path: str, key: str) -> str:
    """The value of `key` in a "key : value" file of the Linux kernel, or "" where there is none."""
    try:
        lines = Path(path).read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(key)), "")


def cpu_name() -> str:
    return _first_line("/proc/cpuinfo", "model name") or platform.processor() or platform.machine()


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def describe() -> dict[str, Any]:
    """CPU, memory, operating system and versions."""
    memory_kb = _first_line("/proc/meminfo", "MemTotal").split()
    flags = _first_line("/proc/cpuinfo", "flags").split()
    return {
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "load": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "memory_gib": round(int(memory_kb[0]) / 2**20, 1) if memory_kb else None,
        "simd": [flag for flag in flags if flag in ("avx2", "fma") or flag.startswith(("avx512", "amx"))],
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "versions": {name: version_of(name) for name in PACKAGES},
    }


def copy_bandwidth(repeats: int = 7) -> float:
    """GB/s of a 256 MB float32 copy, counting the bytes read and the bytes written."""
    source = torch.ones(1 << 26)
    target = torch.zeros_like(source)
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        target.copy_(source)
        times.append(time.perf_counter() - begin)
    return 2 * source.nbytes / min(times) / 1e9


def sgemm_gflops(size: int = 2048, repeats: int = 5) -> float:
    """Best GFLOP/s of torch's float32 product of two square matrices (MKL in the usual builds)."""
    a, b = torch.randn(size, size), torch.randn(size, size)
    out = torch.empty(size, size)
    torch.mm(a, b, out=out)
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        torch.mm(a, b, out=out)
        times.append(time.perf_counter() - begin)
    return 2 * size**3 / min(times) / 1e9


if __name__ == "__main__":
    ceilings = {"copy_gb_s": copy_bandwidth(), "sgemm_gflops": sgemm_gflops(), "fma_gflops": fma_peak()}
    print(json.dumps(describe() | ceilings, indent=2))
