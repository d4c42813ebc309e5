"""How many threads a call uses: its argument, else DIFFUSION_FAST_THREADS, else torch.get_num_threads()."""

from __future__ import annotations

import os
from typing import Any

import torch

from diffusion_fast import _checks, _cpu

MAX_THREADS = 4096

# Threads that have worked for torch are not there in a forked process, where an operation that has work for
# them would wait for ever. With one it needs none; the fused chain starts its own, as many as are asked for.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=lambda: torch.set_num_threads(1))


def resolve(threads: Any) -> int:
    """The threads of a call, 1 to 4096; the samples do not depend on them. Raises ValueError, TypeError."""
    if threads is not None:
        return _checks.integer("threads", threads, 1, MAX_THREADS)
    text = _cpu.environment("DIFFUSION_FAST_THREADS")
    if not text:
        return torch.get_num_threads()
    if not text.isascii() or not text.isdigit():
        raise _checks.bad_value("DIFFUSION_FAST_THREADS", text, f"an integer from 1 to {MAX_THREADS}")
    return _checks.integer("DIFFUSION_FAST_THREADS", int(text), 1, MAX_THREADS)
