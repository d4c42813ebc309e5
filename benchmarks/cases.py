"""Chains, short calls and single steps: what is measured and what each must reach on two cores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any, Protocol

import torch

from benchmarks import machine, peers, traffic
from diffusion_fast import NoiseSchedule, Sampler, ops, solvers
from diffusion_fast._timing import Contender, Result, burst_rate, compare, fma_peak
from diffusion_fast._torch_peers import (
    ChainPeer,
    Coefficients,
    TorchEager,
    TorchFolded,
    best_chunk,
    flop_per_sample_step,
    limited_run,
    linear_betas,
)
from diffusion_fast.models import MLPDenoiser

REPEATS = 5
PEER_SECONDS = 1.0  # a peer's run is cut there and scaled
SMALL = 4096  # samples of an entry under pytest-benchmark
STEP_FLOP = 5  # a x + e eps + s z; drawing z is not counted


class Case(Protocol):
    """What is measured.

    names: the contenders, ours first. prepare(name): one of them at a small size, to be called any number of
    times; ImportError where a package is missing. measure: all beside each other, and the requirements.
    """

    @property
    def name(self) -> str: ...

    @property
    def names(self) -> tuple[str, ...]: ...

    def prepare(self, name: str) -> Callable[[], object]: ...

    def measure(self, quick: bool) -> Any: ...


def peer_or_reason(make: Callable[[], Any], result: Result, name: str) -> Any | None:
    """The peer, or None with a note in the result where an optional package is missing."""
    try:
        return make()
    except ImportError as error:
        result.missing.append(f"{name} not measured: {error}")
        return None


def one_chunk(peer: ChainPeer, n: int) -> None:
    peer.chunk(n)


@dataclass(frozen=True)
class Chain:
    """The whole reverse chain of one denoiser. `faster`: a peer's name and the ratio ours must reach."""

    widths: tuple[int, ...]
    activation: str
    steps: int
    samples: int
    peak_share: float | None = None
    faster: dict[str, float] = field(default_factory=dict)

    @property
    def shape(self) -> str:
        return "-".join(map(str, self.widths))

    @property
    def name(self) -> str:
        return f"chain-{self.shape}"

    @property
    def names(self) -> tuple[str, ...]:
        return "ours", *peers.CHAIN_PEERS

    @property
    def gflop_per_sample(self) -> float:
        return 1e-9 * self.steps * flop_per_sample_step(self.widths)

    @cached_property
    def model(self) -> MLPDenoiser:
        torch.manual_seed(0)
        hidden = self.widths[1:-1]
        return MLPDenoiser(self.widths[0], hidden, self.activation, "learned", self.steps).eval()

    @cached_property
    def sampler(self) -> Sampler:
        schedule = NoiseSchedule(linear_betas(self.steps))
        return Sampler(self.model, schedule, variance="posterior", backend="native")

    def ours(self, n: int) -> None:
        self.sampler.sample(n, seed=0)

    def burst(self) -> float:
        return burst_rate(self.ours, self.gflop_per_sample)

    def prepare(self, name: str) -> Callable[[], object]:
        if name == "ours":
            return partial(self.ours, SMALL)
        return partial(one_chunk, peers.CHAIN_PEERS[name](self.model), SMALL)

    def contenders(self, n: int, result: Result) -> list[Contender]:
        self.ours(min(n, SMALL))
        flop = flop_per_sample_step(self.widths)
        intensity = self.steps * flop / (4 * self.widths[0])  # x stays in registers and the first cache
        found = [Contender("ours", partial(self.ours, n), flop_per_byte=intensity)]
        for name, make in peers.CHAIN_PEERS.items():
            peer = peer_or_reason(partial(make, self.model), result, name)
            if peer is None:
                continue
            size = best_chunk(peer, n, self.steps)
            run, note = limited_run(peer, n, size, PEER_SECONDS)
            plain = isinstance(peer, TorchEager | TorchFolded)  # of the others it is not known
            found.append(
                Contender(
                    name,
                    run,
                    note=note,
                    required=self.faster.get(name),
                    flop_per_byte=flop / traffic.bytes_per_sample_step(peer, size) if plain else None,
                )
            )
            if name == peers.JaxScan.name:  # and as it is usually written: one scan over all samples
                peer.chunk(n)
                required = self.faster.get("jax one scan")
                found.append(Contender("jax one scan", partial(one_chunk, peer, n), required=required))
        return found

    def measure(self, quick: bool) -> Result:
        n = self.samples // 4 if quick else self.samples
        title = f"{self.activation}, {self.steps} steps, {n:,} samples; ceiling = FMA peak"
        result = Result(self.name, title, "GFLOP/s", gflop_per_unit=1.0)
        repeats = 3 if quick else REPEATS
        found = self.contenders(n, result)
        work = self.gflop_per_sample * n
        return compare(result, found, work, repeats, fma_peak, self.peak_share, self.burst)


@dataclass(frozen=True)
class Latency:
    """A few samples at once, in one call: what a call costs, and from where on the work counts."""

    samples: int
    calls: tuple[int, int]  # of ours and of a peer, timed in a row
    rounds: int
    faster: dict[str, float] = field(default_factory=dict)
    chain: Chain = Chain((2, 64, 64, 2), "relu", 50, 64)

    @property
    def name(self) -> str:
        return f"latency-{self.samples}"

    @property
    def names(self) -> tuple[str, ...]:
        # Each size is compiled for itself; trying out every kernel would take half a minute for each.
        return tuple(name for name in self.chain.names if name != peers.TorchCompileMax.name)

    def prepare(self, name: str) -> Callable[[], object]:
        if name == "ours":
            return partial(self.chain.ours, self.samples)
        return partial(one_chunk, peers.CHAIN_PEERS[name](self.chain.model), self.samples)

    def measure(self, quick: bool) -> Result:
        title = f"sample({self.samples}), {self.chain.steps} steps of {self.chain.shape}"
        result = Result(self.name, title, "samples/s")
        found = []
        for name in self.names:
            run = peer_or_reason(partial(self.prepare, name), result, name)
            if run is not None:
                run()
                calls = self.calls[0 if name == "ours" else 1]
                found.append(Contender(name, run, calls, required=self.faster.get(name)))
        return compare(result, found, self.samples, 5 if quick else self.rounds)


@dataclass(frozen=True)
class Step:
    """One fused reverse step with noise, in place, on 2^25 elements."""

    dim: int
    dtype: torch.dtype = torch.float32
    faster: dict[str, float] = field(default_factory=dict)
    steps: int = 1000
    t: int = 500

    @property
    def name(self) -> str:
        return f"step-{self.dim}-{str(self.dtype).removeprefix('torch.')}"

    @property
    def names(self) -> tuple[str, ...]:
        return "ours", "torch in place", "diffusers"

    def prepare(self, name: str) -> Callable[[], object]:
        return self.run(name, *self.tensors(1 << 20))

    def tensors(self, elements: int) -> tuple[torch.Tensor, torch.Tensor]:
        shape = (elements // self.dim, self.dim)
        return torch.randn(shape).to(self.dtype), torch.randn(shape).to(self.dtype)

    def run(self, name: str, x: torch.Tensor, eps: torch.Tensor) -> Callable[[], object]:
        if name == "ours":
            row = solvers.ddpm(NoiseSchedule(linear_betas(self.steps)), variance="posterior")[
                self.steps - 1 - self.t
            ]
            return partial(ops.reverse_step, x, eps, row, seed=0, step=self.steps - 1 - self.t, out=x)
        if name == "diffusers":
            return partial(peers.DiffusersStep(self.steps, self.t), x, eps)
        c = Coefficients.ddpm(self.steps)
        a, e, s = (float(column[self.t]) for column in (c.a, c.e, c.s))
        return partial(peers.inplace_step, x, eps, torch.empty_like(x), a, e, s)

    @torch.inference_mode()
    def measure(self, quick: bool) -> Result:
        x, eps = self.tensors(1 << (22 if quick else 25))
        size = x.element_size()
        title = f"reverse_step with noise, {len(x):,} x {self.dim}; ceiling = copy bandwidth"
        result = Result(self.name, title, "Melem/s", gflop_per_unit=1e-3 * STEP_FLOP)
        found = []
        for name in self.names:
            run = peer_or_reason(partial(self.run, name, x, eps), result, name)
            if run is not None:
                run()
                # The fused step reads x and eps and writes x.
                moved = 3 * size if name == "ours" else traffic.bytes_moved(run) / x.numel()
                intensity = STEP_FLOP / moved
                found.append(Contender(name, run, required=self.faster.get(name), flop_per_byte=intensity))

        def ceiling() -> float:
            return 1e3 * machine.copy_bandwidth(1) / (3 * size)

        return compare(result, found, x.numel() / 1e6, 3 if quick else REPEATS, ceiling)


STEP_FASTER = {"torch in place": 6.0, "diffusers": 20.0}
CHAINS = [
    Chain((2, 128, 128, 2), "relu", 200, 20_000, 0.85, {"torch folded": 1.5, "jax one scan": 2.0}),
    Chain((64, 264, 264, 64), "relu", 50, 20_000, 0.85, {"torch folded": 1.5}),
    Chain((3, 256, 512, 256, 3), "tanh", 20, 10_000, 0.80, {"torch folded": 1.4}),
    Chain(
        (1, 16, 16, 1), "relu", 250, 100_000, None, {"torch eager": 12, "torch folded": 3, "jax one scan": 3}
    ),
]
LATENCIES = [
    Latency(1, (200, 20), 15, {"torch eager": 20.0}),
    Latency(64, (200, 20), 15, {"torch eager": 20.0}),
    Latency(4096, (10, 3), 9),
]
STEPS = [
    *(Step(dim, faster=STEP_FASTER if dim >= 3 else {}) for dim in (1, 2, 3, 64, 1024)),
    *(Step(dim, torch.bfloat16) for dim in (1, 2, 3, 64, 1024)),
]
