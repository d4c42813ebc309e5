"""What a name that nobody knows was meant to be. Imports nothing heavy: the command line asks here too."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

# Names of the field for what has another one here, which no spelling is near to.
OTHER_NAMES = {
    "swish": "silu",
    "lrelu": "leaky_relu",
    "linear": "identity",
    "none": "identity",
    "eps": "epsilon",
    "noise": "epsilon",
    "x0": "sample",
    "velocity": "v_prediction",
    "fp32": "float32",
    "fp16": "float16",
    "half": "float16",
    "bf16": "bfloat16",
}


def did_you_mean(given: str, names: Iterable[str], cutoff: float = 0.6) -> str:
    """ " (did you mean 'silu'?)", or "" where no name is near; cutoff 0 takes the nearest of them all."""
    accepted = {name.lower(): name for name in names}
    known = OTHER_NAMES.get(given.lower(), "")
    near = [known] if known in accepted else difflib.get_close_matches(given.lower(), accepted, 1, cutoff)
    return f" (did you mean {accepted[near[0]]!r}?)" if near else ""
