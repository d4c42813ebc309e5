"""sample_to: samples to a file, any number of them in constant memory, by any number of processes.

The samples are drawn in chunks. Until all are there they lie in PATH.partial, at the positions that they will
have, and PATH.manifest.json says which chunks are done; then the output gets its name. So an output is whole
or not there, and a run that was stopped, however it was, goes on with resume=True.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from tqdm.auto import tqdm

from diffusion_fast import _checks
from diffusion_fast._files import refusal
from diffusion_fast._schema import json_object
from diffusion_fast.long_runs.distributed import launched, peers
from diffusion_fast.long_runs.formats import WRITERS, Columns, Labels, check_columns
from diffusion_fast.long_runs.identity import cycle_of, identity
from diffusion_fast.long_runs.keeper import Keeper
from diffusion_fast.long_runs.manifest import MAX_CHUNKS, Manifest
from diffusion_fast.long_runs.target import Target
from diffusion_fast.long_runs.writers import Writer
from diffusion_fast.sampler import Sampler
from diffusion_fast.stopping import Stopped, stopped_by
from diffusion_fast.threads import resolve as resolve_threads

# A kill loses the chunks in flight: of each process one of each sampler, and up to two that are not written.
# So a run has CHUNKS for each sampler of all its processes, unless they were shorter than what pays for a
# call: CHUNK_WORK multiply-adds, which take some milliseconds, or CHUNK_ROWS.
CHUNKS = 1024
CHUNK_WORK = 1 << 28
TILES = 192  # rows that are whole tiles of every instruction set, four or more
CHUNK_ROWS = 21 * TILES
CHUNK_BYTES = 1 << 22  # at most
BATCH = 64  # rows with which torch is busy when it runs the module
SHARD_BYTES = 1 << 28
# Shards are whole chunks, and must not end elsewhere with another number of ranks; nor must the batches of a
# module that torch runs, which may round differently. Then there are chunks for this many samplers.
ANY_SAMPLERS = 16
REDRAWN_RMS = 1e-3  # of the rows: more than a module's rounding, less than another module


@dataclass(frozen=True)
class RunResult:
    """The n samples are in `path`; `drawn` of them were drawn in this run, by all its processes together, in
    `seconds`."""

    path: Path
    n: int
    drawn: int
    seconds: float


def sample_to(
    path: str | os.PathLike[str],
    sampler: Sampler | Sequence[Sampler],
    n: int,
    *,
    seed: int = 0,
    start: int = 0,
    labels: Any = None,
    context: Any = None,
    columns: Columns | None = None,
    resume: bool = False,
    overwrite: bool = False,
    chunk_size: int | None = None,
    threads: int | None = None,
    progress: bool = False,
    made_by: dict[str, Any] | None = None,
) -> RunResult:
    """Writes samples start .. start + n - 1 of the seed's stream to a file, in constant memory.

    path: a .npy file, which holds the (n, *shape) float32 array of sampler.sample(n, ...), bit for bit; a
    folder, written with a / at its end, of .npy shards 000000.npy and on; or .npz, .csv, .parquet, which are
    made from such an array while it grows, and need the space of both until they are complete. Beside it lies
    PATH.manifest.json, for `verify`. sampler: one, or one for each device of this process, made of the same
    model with the same options. labels: an int, or integers that the samples take in turn: sample i has
    labels[i % len(labels)]. context: one row for all samples. columns: names for files with columns.
    chunk_size: samples drawn at once, of a new run. made_by: JSON values to keep in the manifest.

    resume: goes on with a run that was stopped, or begins one; what is done is held against its checksums
    first, and the sampler against that of the run (long_runs.identity has what is seen of one). overwrite:
    replaces an output, or begins again. Under torchrun, or where RANK, WORLD_SIZE and MASTER_ADDR are set
    otherwise, all ranks make the same call, which returns when the output is complete; rank 0 keeps the
    manifest and shows the progress. If a rank fails, or is gone for half a minute, all end; where torchrun
    starts them again, the run that they have begun goes on, without resume as well.
    Without ranks, calls with ranges of their own, start and n, to files of their own share a run among
    processes that do not know of each other.

    A kill loses the samples of the last moment: less than 2 % of a run of more than two seconds, and of
    20,000 samples for each thread of all ranks; with a table one or two of its blocks, of 8,208 to 65,520
    samples.

    Raises ValueError or TypeError naming the argument before anything is written, resume with what differs
    from the run that was begun; OSError where the disk or another rank fails. Whatever it raises, resume=True
    goes on.
    """
    samplers = _samplers(sampler)
    _checks.integer("n", n, 1, _checks.MAX_SAMPLES)
    _checks.sample_range(n, start)
    _checks.integer("seed", seed, 0, (1 << 64) - 1)
    for name, flag in (("resume", resume), ("overwrite", overwrite), ("progress", progress)):
        _checks.flag(name, flag)
    if resume and overwrite:
        raise _checks.bad_value("overwrite", True, "False with resume=True")
    if not isinstance(path, (str, os.PathLike)):
        raise _checks.bad_type("path", path, "a str or a path")
    first = samplers[0]
    cycle = cycle_of(first, labels)
    runs = [identity(each, seed, start, n, cycle, context) for each in samplers]
    if any(run != runs[0] for run in runs):
        raise _checks.bad_value(
            "sampler", "samplers that differ", "samplers of one model with the same options"
        )
    target = Target.of(path)
    columns = check_columns(columns, first.shape, target.form, first.n_classes)
    columns.check(target.given, target.form, cycle is not None)
    how = {"seed": seed, "context": context, "threads": resolve_threads(threads)}
    drawing = launched()[1] * len(samplers)
    if target.form == "folder" or first.plan is None:
        drawing = ANY_SAMPLERS
    size = _chunk_size(chunk_size, n, first, how["threads"], drawing)
    shard = -(-SHARD_BYTES // (size * 4 * prod(first.shape))) * size
    names = target.digest_of_names(columns, cycle is not None)
    new = Manifest(runs[0], target.form, names, size, shard, made_by=json_object("made_by", made_by))

    began = time.perf_counter()
    drawn = _run(
        samplers, new, target, columns, cycle, how, resume=resume, overwrite=overwrite, progress=progress
    )
    return RunResult(target.path, n, drawn, time.perf_counter() - began)


def _samplers(given: Any) -> Sequence[Sampler]:
    found = [given] if isinstance(given, Sampler) else given
    right = isinstance(found, (list, tuple)) and all(isinstance(each, Sampler) for each in found)
    if not right or not found:
        raise _checks.bad_type("sampler", given, "a Sampler, or a list of them, one for each device")
    return found


def _chunk_size(given: Any, n: int, sampler: Sampler, threads: int, drawing: int) -> int:
    """drawing: samplers that draw at once, in all ranks together."""
    least = -(-n // MAX_CHUNKS)
    if given is not None:
        return min(n, _checks.integer("chunk_size", given, least))
    rows = max(_rows_of_a_call(sampler, threads), -(-n // (CHUNKS * drawing)))
    # With a table the samples of a block share the reading of it.
    unit = TILES if sampler.tier.table is None else sampler.tier.table.block
    if rows > unit:
        rows = -(-rows // unit) * unit
    fit = max(1, CHUNK_BYTES // (4 * prod(sampler.shape)))
    return min(n, max(least, min(fit, rows)))


def _rows_of_a_call(sampler: Sampler, threads: int) -> int:
    """The fewest rows with which a call of the sampler pays, from the work of one."""
    if sampler.device.type != "cpu":
        return CHUNK_ROWS
    if sampler.tier.table is not None:
        return sampler.tier.table.block
    weights = sum(value.numel() for value in sampler.model.parameters())
    positions = prod(sampler.shape[1:])  # at which a convolution uses its weights
    branches = 1 if sampler.guidance is None else 2
    work = max(1, weights * positions * branches * sampler.table.nfe)
    least = BATCH if sampler.plan is None else TILES * threads
    return min(CHUNK_ROWS, max(least, CHUNK_WORK // work))


def _run(
    samplers: Sequence[Sampler],
    new: Manifest,
    target: Target,
    columns: Columns,
    cycle: Labels | None,
    how: dict[str, Any],
    *,
    resume: bool,
    overwrite: bool,
    progress: bool,
) -> int:
    """The samples that were drawn."""
    ranks = peers()
    with ExitStack() as stack:
        stack.enter_context(ranks)
        made = new
        if ranks.rank == 0:
            stack.callback(target.lock())  # before the first look
            new.job = ranks.job
            if ranks.started_again and target.is_of_job(new.job):
                resume, overwrite = True, False  # with the arguments of the first time
            made = _begin(new, target, resume=resume, overwrite=overwrite)
            if samplers[0].plan is None and made.done and not made.complete:
                _check_redrawn(samplers[0], made, target, cycle, how)
        state = ranks.agree(vars(made) | {"done": sorted(made.done)})
        if ranks.rank != 0:
            made = Manifest(**state | {"done": dict.fromkeys(state["done"], "")})
            target.check_same(made, new)
        left = [chunk for chunk in range(made.n_chunks) if chunk not in made.done]
        before, record = made.samples_done, ranks.report
        if ranks.rank == 0:
            if made.complete and target.has_columns(made):
                if target.partial.exists():
                    target.publish()
                return 0
            bar = tqdm(total=made.n, initial=before, unit="sample", unit_scale=True, disable=not progress)
            stack.enter_context(bar)
            keeper = stack.enter_context(Keeper(made, target, ranks, bar))
            if target.form in WRITERS:
                keeper.make_columns(columns, cycle)
            record = keeper.record
        rows = target.rows(made)
        with Writer(rows, made.chunk_size, len(samplers), record) as writer:
            _draw(samplers, made, ranks.claims(left), writer, cycle, how)
        if ranks.rank == 0:
            keeper.wait_for_all()
            target.complete(made)
    return made.n - before


def _begin(new: Manifest, target: Target, *, resume: bool, overwrite: bool) -> Manifest:
    """Rank 0's: the run as it was left, or a new one."""
    if not resume and not overwrite:
        target.refuse_existing()
    target.check_replaceable()
    old = target.load_begun(new) if resume else None
    if old is not None:
        return old
    target.create(new)
    return new


def _check_redrawn(
    sampler: Sampler, made: Manifest, target: Target, cycle: Labels | None, how: dict[str, Any]
) -> None:
    """The identity of a module that torch runs does not see all that its forward does: it must draw a chunk
    that is there once more."""
    chunk = min(made.done)
    there = target.rows(made).read(chunk * made.chunk_size, made.size_of(chunk))
    drawn = _draw_chunk(sampler, made, chunk, cycle, how).cpu().numpy()
    rows, again = (np.nan_to_num(x.astype(np.float64), posinf=0, neginf=0) for x in (there, drawn))
    if np.square(again - rows).mean() > REDRAWN_RMS**2 * np.square(rows).mean():
        raise refusal(
            "resume", target.given, f"whose chunk {chunk} this model draws otherwise", "the model of the run"
        )


def _draw_chunk(
    sampler: Sampler,
    made: Manifest,
    chunk: int,
    cycle: Labels | None,
    how: dict[str, Any],
    out: np.ndarray | None = None,
) -> Any:
    at, count = made.run["index range"][0] + chunk * made.chunk_size, made.size_of(chunk)
    labels = None if cycle is None else cycle.part(at, count)
    return sampler.sample(count, start=at, labels=labels, out=None if out is None else out[:count], **how)


def _draw(
    samplers: Sequence[Sampler],
    made: Manifest,
    claims: Iterator[int],
    writer: Writer,
    cycle: Labels | None,
    how: dict[str, Any],
) -> None:
    """Draws the chunks that this process claims. This thread draws too: signals come to it."""
    stop = threading.Event()

    def draw(sampler: Sampler) -> None:
        try:
            with stopped_by(stop):
                while not stop.is_set() and (chunk := next(claims, None)) is not None:
                    buffer = writer.buffer()
                    _draw_chunk(sampler, made, chunk, cycle, how, buffer)
                    writer.put(chunk, buffer, made.size_of(chunk))
        except Stopped:
            pass  # by a thread that raises
        except BaseException:
            stop.set()
            raise

    if len(samplers) == 1:
        return draw(samplers[0])
    with ThreadPoolExecutor(len(samplers) - 1, "diffusion_fast device") as pool:
        try:
            others = [pool.submit(draw, sampler) for sampler in samplers[1:]]
            draw(samplers[0])
            for other in others:
                other.result()
        finally:
            stop.set()
