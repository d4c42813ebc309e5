"""How fast a shape of denoiser runs here, beside plain torch and the processor's multiply-add peak.

>>> print(measure_shape([2, 128, 128, 2], steps=200))  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch

from diffusion_fast import _checks, _cpu
from diffusion_fast._timing import Contender, Result, Row, compare, fma_peak, torch_threads
from diffusion_fast._torch_peers import (
    ChainPeer,
    TorchEager,
    TorchFolded,
    best_chunk,
    flop_per_sample_step,
    limited_run,
    linear_betas,
)
from diffusion_fast.models import MLPDenoiser
from diffusion_fast.models.mlp import ACTIVATIONS
from diffusion_fast.plan_validation import MAX_DIM, MAX_OPS, MAX_WIDTH
from diffusion_fast.sampler import Sampler
from diffusion_fast.schedules import NoiseSchedule
from diffusion_fast.threads import resolve as resolve_threads

MAX_STEPS = 10_000
MAX_SAMPLES = 1 << 26
PILOT_SAMPLES = 1024
RUN_SECONDS = 0.4
PEER_SECONDS = 0.8
ROUNDS = 5


@dataclass(frozen=True)
class ShapeResult:
    """Times of the whole reverse chain; the first of `rows` is this package, the others are torch.

    n: samples that the times are for. flop_per_sample: multiplications and additions of the layers over all
    steps, the time embedding not counted. peak_gflops: the highest multiply-add rate that was measured
    between the runs, with this instruction set and number of threads. Of each row: seconds and rate (GFLOP/s)
    are medians over five rounds, best_rate the best of them, of_ceiling = best_rate / peak_gflops, ratio =
    its time over ours (median of the ratios within a round).
    """

    widths: tuple[int, ...]
    activation: str
    steps: int
    n: int
    threads: int
    instruction_set: str
    flop_per_sample: int
    peak_gflops: float
    rows: tuple[Row, ...]

    @property
    def samples_per_second(self) -> float:
        return self.n / self.rows[0].seconds

    def as_dict(self) -> dict[str, Any]:
        """Numbers, strings, lists and dicts only, as JSON takes them."""
        found = asdict(self) | {"samples_per_second": self.samples_per_second}
        return found | {"widths": list(self.widths), "rows": list(found["rows"])}

    def __str__(self) -> str:
        shape = "-".join(map(str, self.widths))
        title = f"{self.activation}, {self.steps} steps, {self.n:,} samples, {self.threads} thread(s)"
        table = Result(shape, title, "GFLOP/s", self.peak_gflops, self.peak_gflops, list(self.rows))
        speed = f"ours: {self.samples_per_second:,.0f} samples a second"
        return f"{table}  the measured multiply-add peak, {self.instruction_set}\n  {speed}"


def measure_shape(
    widths: Sequence[int],
    activation: str = "relu",
    steps: int = 100,
    n: int | None = None,
    *,
    threads: int | None = None,
) -> ShapeResult:
    """Time the fused chain of an untrained denoiser beside two torch chains, in 10 to 20 seconds.

    The model is MLPDenoiser(widths[0], widths[1:-1], activation, "learned", steps), sampled by DDPM with the
    posterior variance. "torch eager" is the loop of a tutorial; "torch folded" precomputes the time embedding
    and works in place. Both run in chunks of the best size of 256 to 32768, and on part of n, scaled, where
    all of it would take long.

    Args:
        widths: columns of the data (up to 256), 1 to 255 hidden widths up to 2048, columns of the data again.
        activation: as of MLPDenoiser.
        steps: reverse steps, 1 to 10,000.
        n: samples; None takes as many as run in about 0.4 s.
        threads: of both sides; None takes DIFFUSION_FAST_THREADS, else torch.get_num_threads().

    Raises ValueError or TypeError for an argument outside of what is listed.
    """
    sizes = _widths(widths)
    _checks.choice("activation", activation, ACTIVATIONS)
    steps = _checks.integer("steps", steps, 1, MAX_STEPS)
    count = None if n is None else _checks.integer("n", n, 1, MAX_SAMPLES)
    workers = resolve_threads(threads)
    with torch.random.fork_rng(devices=[]), torch_threads(workers):
        torch.manual_seed(0)
        model = MLPDenoiser(sizes[0], sizes[1:-1], activation, "learned", steps).eval()
        return _measure(model, sizes, activation, count, workers)


def _measure(
    model: MLPDenoiser, widths: tuple[int, ...], activation: str, n: int | None, threads: int
) -> ShapeResult:
    schedule = NoiseSchedule(linear_betas(model.n_steps))
    sampler = Sampler(model, schedule, variance="posterior", backend="native")
    if n is None:
        n = _samples_for(sampler, threads)
    contenders = [Contender("ours", partial(_ours, sampler, n, threads))]
    contenders += [_contender(make(model), n, model.n_steps) for make in (TorchEager, TorchFolded)]
    flop = flop_per_sample_step(widths) * model.n_steps
    result = compare(Result("", ""), contenders, 1e-9 * flop * n, ROUNDS, fma_peak)
    assert result.best_ceiling is not None
    return ShapeResult(
        widths,
        activation,
        model.n_steps,
        n,
        threads,
        _cpu.isa(),
        flop,
        result.best_ceiling,
        tuple(result.rows),
    )


def _ours(sampler: Sampler, n: int, threads: int) -> None:
    sampler.sample(n, seed=0, threads=threads)


def _samples_for(sampler: Sampler, threads: int) -> int:
    pilot = Contender("", partial(_ours, sampler, PILOT_SAMPLES, threads))
    pilot.seconds()
    seconds = min(pilot.seconds() for _ in range(3))
    return min(MAX_SAMPLES, max(PILOT_SAMPLES, round(PILOT_SAMPLES * RUN_SECONDS / seconds)))


def _contender(peer: ChainPeer, n: int, steps: int) -> Contender:
    size = min(best_chunk(peer, n, steps), n)
    run, note = limited_run(peer, n, size, PEER_SECONDS)
    return Contender(peer.name, run, note=note)


def _widths(widths: Any) -> tuple[int, ...]:
    accepted = (
        f"a sequence of 3 to {MAX_OPS + 1} integers from 1 to {MAX_WIDTH}, the last equal to the first, "
        f"those two at most {MAX_DIM}"
    )
    if isinstance(widths, str) or not isinstance(widths, Sequence):
        raise _checks.bad_type("widths", widths, accepted)
    if not 3 <= len(widths) <= MAX_OPS + 1:
        raise _checks.bad_value("widths", widths, accepted)
    sizes = tuple(_checks.integer(f"widths[{i}]", width, 1, MAX_WIDTH) for i, width in enumerate(widths))
    if sizes[0] != sizes[-1] or sizes[0] > MAX_DIM:
        raise _checks.bad_value("widths", widths, accepted)
    return sizes
