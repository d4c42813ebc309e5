"""The registry of what is measured, and what each measurement must reach on two cores."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch

from benchmarks import machine, peers
from benchmarks.measure import Contender, Result, compare

REPEATS = 5


def peer_or_reason(make: Callable[[], Any], result: Result) -> Any | None:
    """The peer, or None with a note in the result where an optional package is missing."""
    try:
        return make()
    except ImportError as error:
        result.missing.append(f"not measured: {error}")
        return None


def one_chunk(peer: Any, n: int) -> None:
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
    def name(self) -> str:
        return "chain-" + "-".join(str(width) for width in self.widths)

    @property
    def gflop_per_sample(self) -> float:
        """Useful work: the products that depend on x, without the time embedding."""
        return 2e-9 * self.steps * sum(a * b for a, b in zip(self.widths, self.widths[1:], strict=False))

    @cached_property
    def model(self) -> peers.Denoiser:
        torch.manual_seed(0)
        return peers.Denoiser(self.widths, self.activation, self.steps).eval()

    @cached_property
    def sampler(self) -> Any:
        import diffusion_fast as df

        schedule = df.NoiseSchedule.linear(
            n_steps=self.steps, beta_start=peers.BETA_START, beta_end=peers.BETA_END
        )
        shape = (self.widths[0],)
        return df.Sampler(self.model, schedule, shape=shape, variance="posterior", backend="native")

    def ours(self, n: int) -> None:
        self.sampler.sample(n, seed=0)

    def contenders(self, n: int, result: Result) -> list[Contender]:
        self.ours(min(n, 4096))
        found = [Contender("ours", partial(self.ours, n))]
        for make in peers.CHAIN_PEERS:
            peer = peer_or_reason(partial(make, self.model, self.activation), result)
            if peer is not None:
                size = peers.best_chunk(peer, n, self.steps)
                peer.chunk(size)
                run = partial(peers.seconds_for, peer, n, size)
                required = self.faster.get(peer.name)
                found.append(Contender(peer.name, run, note=f"chunk {size}", required=required))
            if isinstance(peer, peers.JaxScan):  # and as it is usually written: one scan over all samples
                peer.chunk(n)
                required = self.faster.get("jax one scan")
                found.append(Contender("jax one scan", partial(one_chunk, peer, n), required=required))
        return found

    def measure(self, quick: bool) -> Result:
        n = self.samples // 4 if quick else self.samples
        result = Result(
            self.name, f"{self.activation}, {self.steps} steps, {n:,} samples; ceiling = FMA peak", "GFLOP/s"
        )
        repeats = 3 if quick else REPEATS
        work = self.gflop_per_sample * n
        return compare(result, self.contenders(n, result), work, repeats, machine.fma_peak, self.peak_share)


@dataclass(frozen=True)
class Latency:
    """A few samples at once: what a call costs when there is little to compute."""

    samples: int
    chain: Chain = Chain((2, 64, 64, 2), "relu", 50, 64)
    faster: float = 20.0

    @property
    def name(self) -> str:
        return f"latency-{self.samples}"

    def measure(self, quick: bool) -> Result:
        chain, n = self.chain, self.samples
        result = Result(self.name, f"sample({n}), {chain.steps} steps of {chain.name[6:]}", "samples/s")
        chain.ours(n)
        found = [Contender("ours", partial(chain.ours, n), calls=200)]
        for make in peers.CHAIN_PEERS:
            peer = peer_or_reason(partial(make, chain.model, chain.activation), result)
            if peer is not None:
                peer.chunk(n)
                required = self.faster if peer.name == peers.TorchEager.name else None
                found.append(Contender(peer.name, partial(one_chunk, peer, n), calls=20, required=required))
        return compare(result, found, n, 5 if quick else 15)


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

    def contenders(self, x: torch.Tensor, eps: torch.Tensor, result: Result) -> list[Contender]:
        import diffusion_fast as df

        schedule = df.NoiseSchedule.linear(
            n_steps=self.steps, beta_start=peers.BETA_START, beta_end=peers.BETA_END
        )
        row = df.solvers.ddpm(schedule, variance="posterior")[self.steps - 1 - self.t]
        c = peers.Coefficients.ddpm(self.steps)
        a, e, s = (float(column[self.t]) for column in (c.a, c.e, c.s))
        noise = torch.empty_like(x)

        def ours() -> None:
            df.ops.reverse_step(x, eps, row, seed=0, step=self.steps - 1 - self.t, out=x)

        def in_place() -> None:
            peers.inplace_step(x, eps, noise, a, e, s)

        found = [
            Contender("ours", ours),
            Contender("torch in place", in_place, required=self.faster.get("torch in place")),
        ]
        step = peer_or_reason(partial(peers.DiffusersStep, self.steps, self.t), result)
        if step is not None:
            found.append(Contender(step.name, partial(step, x, eps), required=self.faster.get(step.name)))
        return found

    @torch.inference_mode()
    def measure(self, quick: bool) -> Result:
        elements = 1 << (22 if quick else 25)
        shape = (elements // self.dim, self.dim)
        x, eps = torch.randn(shape).to(self.dtype), torch.randn(shape).to(self.dtype)
        title = f"reverse_step with noise, {shape[0]:,} x {self.dim}; ceiling = copy bandwidth"
        result = Result(self.name, title, "Melem/s")
        found = self.contenders(x, eps, result)
        for contender in found:
            contender.run()

        def ceiling() -> float:
            return 1e3 * machine.copy_bandwidth(1) / (3 * x.element_size())

        return compare(result, found, x.numel() / 1e6, 3 if quick else REPEATS, ceiling)


Case = Chain | Latency | Step
STEP_FASTER = {"torch in place": 6.0, "diffusers": 20.0}
CHAINS = [
    Chain((2, 128, 128, 2), "relu", 200, 20_000, 0.85, {"torch folded": 1.5, "jax one scan": 2.0}),
    Chain((64, 264, 264, 64), "relu", 50, 20_000, 0.85, {"torch folded": 1.5}),
    Chain((3, 256, 512, 256, 3), "tanh", 20, 10_000, 0.80, {"torch folded": 1.4}),
    Chain(
        (1, 16, 16, 1), "relu", 250, 100_000, None, {"torch eager": 12, "torch folded": 3, "jax one scan": 3}
    ),
]
LATENCIES = [Latency(1), Latency(64)]
STEPS = [
    *(Step(dim, faster=STEP_FASTER if dim >= 3 else {}) for dim in (1, 2, 3, 64, 1024)),
    *(Step(dim, torch.bfloat16) for dim in (1, 2, 3, 64, 1024)),
]
