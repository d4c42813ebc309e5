"""The bfloat16 tier: chains beside the float32 chain and PyTorch in bfloat16; ceiling = products of pairs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

import torch

from benchmarks import cases
from diffusion_fast import NoiseSchedule, Sampler, _cpu
from diffusion_fast._timing import PEAK_SECONDS, Contender, Result, burst_rate, compare, fma_peak
from diffusion_fast._torch_peers import TorchEager, best_chunk, limited_run, linear_betas
from diffusion_fast.models import MLPDenoiser

FASTER = 1.6  # than the float32 chain


class TorchAutocast(TorchEager):
    """The loop of a tutorial under bfloat16 autocast."""

    name = "torch bfloat16"

    @torch.inference_mode()
    def chunk(self, n: int, n_steps: int | None = None) -> torch.Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return super().chunk(n, n_steps)


@dataclass(frozen=True)
class Bfloat16:
    """One of cases.CHAINS in bfloat16."""

    chain: cases.Chain
    peak_share: float

    @property
    def name(self) -> str:
        return f"bfloat16-{self.chain.shape}"

    @property
    def names(self) -> tuple[str, ...]:
        return "ours", "float32", TorchAutocast.name

    @property
    def model(self) -> MLPDenoiser:
        return self.chain.model

    @cached_property
    def sampler(self) -> Sampler:
        schedule = NoiseSchedule(linear_betas(self.chain.steps))
        return Sampler(self.model, schedule, variance="posterior", backend="native", precision="bfloat16")

    def prepare(self, name: str) -> Callable[[], object]:
        if name == "float32":
            return partial(self.chain.ours, cases.SMALL)
        if name == "ours":
            return partial(self.sampler.sample, cases.SMALL)
        return partial(cases.one_chunk, TorchAutocast(self.model), cases.SMALL)

    def measure(self, quick: bool) -> Result:
        n = self.chain.samples // (4 if quick else 1)
        title = f"{self.chain.shape} {self.chain.activation}, {self.chain.steps} steps, {n:,} samples"
        result = Result(self.name, f"{title}; ceiling = products of pairs", "GFLOP/s", gflop_per_unit=1.0)
        peer = TorchAutocast(self.model)
        run, note = limited_run(peer, n, best_chunk(peer, n, self.chain.steps), cases.PEER_SECONDS)
        found = [
            Contender("ours", partial(self.sampler.sample, n, seed=0)),
            Contender("float32", partial(self.chain.ours, n), required=FASTER),
            Contender(peer.name, run, note=note),
        ]
        work, repeats = self.chain.gflop_per_sample, 3 if quick else cases.REPEATS
        peak = partial(fma_peak, PEAK_SECONDS, True)
        burst = partial(burst_rate, self.sampler.sample, work)
        return compare(result, found, work * n, repeats, peak, self.peak_share, burst)


# None on a processor without the instruction.
SHARES = (0.85, 0.75, 0.70) if _cpu.has_bfloat16() else ()
CASES = [Bfloat16(chain, share) for chain, share in zip(cases.CHAINS, SHARES, strict=False)]
