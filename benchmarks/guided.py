"""Classifier-free guidance: two evaluations a step, against one and against torch's doubled batch."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from benchmarks import conditional
from benchmarks.captured import Captured, Peers
from diffusion_fast._timing import Check, Result

UNGUIDED = "unguided"
MOST = 2.05  # times the unguided chain
PEERS: Peers = conditional.PEERS | {UNGUIDED: partial(conditional.OursConditional, guided=False)}


@dataclass(frozen=True)
class Guided(Captured):
    """As Captured, with ours once more without guidance."""

    def measure(self, quick: bool) -> Result:
        result = super().measure(quick)
        plain = next(row for row in result.rows if row.name == UNGUIDED)
        result.checks.append(Check("time over the unguided chain's", 1 / plain.ratio, MOST, most=True))
        return result


CASES = [
    Guided(
        "guided-class",
        "2-128-128-2 relu, 10 classes, guidance scale 2",
        conditional.guided_classes,
        20_000,
        faster={"torch folded": 1.5},
        peers=PEERS,
    ),
    Guided(
        "guided-context",
        "2-128-128-2 relu, 8 columns of context, guidance scale 2",
        conditional.guided_contexts,
        20_000,
        faster={"torch folded": 1.5},
        peers=PEERS,
    ),
]
