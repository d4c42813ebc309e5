"""How many threads a call uses: its argument, else DIFFUSION_FAST_THREADS, else torch.get_num_threads()."""

from __future__ import annotations

import os
from typing import Any

import torch

from diffusion_fast import _checks

MAX_THREADS = 4096


def resolve(threads: Any) -> int:
    """The threads of a call, 1 to 4096; the samples do not depend on them. Raises ValueError, TypeError."""
    if threads is not None:
        return _checks.integer("threads", threads, 1, MAX_THREADS)
    text = os.environ.get("DIFFUSION_FAST_THREADS", "")
    if not text:
        return torch.get_num_threads()
    if not text.isascii() or not text.isdigit():
        raise _checks.bad_value("DIFFUSION_FAST_THREADS", text, f"an integer from 1 to {MAX_THREADS}")
    return _checks.integer("DIFFUSION_FAST_THREADS", int(text), 1, MAX_THREADS)
