"""verify: whether the data of a run is what its manifest says, and what a sampler draws."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from diffusion_fast import _checks
from diffusion_fast.long_runs import manifest as manifests
from diffusion_fast.long_runs.identity import cycle_of, identity
from diffusion_fast.long_runs.manifest import Manifest
from diffusion_fast.long_runs.target import Target
from diffusion_fast.long_runs.writers import digest
from diffusion_fast.sampler import Sampler


@dataclass(frozen=True)
class Verification:
    """What `verify` found of a run of `chunks` chunks, `n` samples.

    done: chunks that are written. faults: what is wrong with the files, one line each. redrawn: chunks drawn
    again. different: those of them whose samples differ from what is written.
    """

    n: int
    chunks: int
    done: int
    faults: tuple[str, ...]
    redrawn: tuple[int, ...]
    different: tuple[int, ...]

    @property
    def good(self) -> bool:
        """Complete, as its manifest says, and as drawn again."""
        return self.done == self.chunks and not self.faults and not self.different


def verify(
    path: str | os.PathLike[str],
    *,
    sampler: Sampler | None = None,
    redraw: Iterable[int] | str = (),
    labels: Any = None,
    context: Any = None,
    threads: int | None = None,
) -> Verification:
    """Checks an output of `sample_to`, or what there is of an unfinished one, against its manifest.

    redraw: chunks to draw again with a sampler, labels and context made as for the run, or "all".

    Raises ValueError for a path without a manifest, and naming what differs for another sampler.
    """
    text = os.fspath(path)
    target_path = Path(os.path.realpath(text))
    if not manifests.path_of(target_path).is_file():
        raise _checks.bad_value("path", text, "the output of sample_to, with its manifest beside it")
    made = manifests.load(manifests.path_of(target_path))
    target = Target(text, target_path, made.form)
    chosen = _chosen(redraw, made.n_chunks, sampler)
    faults = list(target.faults(made))
    different: list[int] = []
    if sampler is not None:
        different = _drawn_otherwise(made, sampler, chosen, labels, context, threads)
    return Verification(made.n, made.n_chunks, len(made.done), tuple(faults), tuple(chosen), tuple(different))


def _chosen(redraw: Any, chunks: int, sampler: Any) -> Sequence[int]:
    everything = isinstance(redraw, str) and redraw == "all"
    if not everything and not isinstance(redraw, (list, tuple, range)):
        raise _checks.bad_type("redraw", redraw, "'all', or a list of chunks")
    chosen = range(chunks) if everything else [_checks.integer("redraw", i, 0, chunks - 1) for i in redraw]
    if chosen and not isinstance(sampler, Sampler):
        raise _checks.bad_type("sampler", sampler, "a Sampler, made as for the run, to draw chunks again")
    return chosen


def _drawn_otherwise(
    made: Manifest, sampler: Sampler, chosen: Iterable[int], labels: Any, context: Any, threads: int | None
) -> list[int]:
    """The chunks that the sampler draws with other bytes."""
    seed, (start, end) = made.run["seed"], made.run["index range"]
    cycle = cycle_of(sampler, labels)
    new = identity(sampler, seed, start, end - start, cycle, context)
    name = made.difference(new)
    if name is not None:
        raise ValueError(
            f"sampler: got another {name}, {new[name]}; accepted: {made.run[name]}, as of the run"
        )
    different = []
    for chunk in chosen:
        at, count = start + chunk * made.chunk_size, made.size_of(chunk)
        part = None if cycle is None else cycle.part(at, count)
        drawn = sampler.sample(count, seed=seed, start=at, labels=part, context=context, threads=threads)
        if digest(drawn.cpu().numpy()) != made.done.get(chunk):
            different.append(chunk)
    return different
