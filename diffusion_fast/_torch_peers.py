"""The chain as others write it in torch: the loop of a tutorial, and the best that plain torch allows.

Measured beside the fused chain by `shape_benchmark` and benchmarks/. Each peer is made once (weights packed)
and then called with a number of samples. The coefficients are those of DDPM with the posterior variance (Ho
et al. 2020, algorithm 2), computed here from the betas, so that no peer depends on what it is compared with.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion_fast.models import MLPDenoiser

BETA_START, BETA_END = 1e-4, 0.02
LONGEST_AT_FULL_BETAS = 1000
CHUNKS = (256, 512, 1024, 2048, 4096, 8192, 16384, 32768)
FEW_STEPS = 5
TRIAL_SAMPLES = 4096
TRIAL_SECONDS = 0.02
TRIALS = 3

aten = torch.ops.aten
# In place, as `activation(h)`; those without such a form write to their own input.
INPLACE_ACTIVATIONS: dict[str, Callable[[Tensor], Any]] = {
    "relu": torch.relu_,
    "leaky_relu": lambda h: F.leaky_relu(h, 0.01, inplace=True),
    "elu": lambda h: F.elu(h, inplace=True),
    "tanh": torch.tanh_,
    "sigmoid": torch.sigmoid_,
    "silu": lambda h: F.silu(h, inplace=True),
    "gelu": lambda h: aten.gelu_(h),
    "gelu_tanh": lambda h: aten.gelu_(h, approximate="tanh"),
    "softplus": lambda h: aten.softplus.out(h, out=h),
    "mish": lambda h: F.mish(h, inplace=True),
    "identity": lambda h: h,
}


class ChainPeer(Protocol):
    """chunk(n) draws n samples by the last `n_steps` steps of the chain (all by default)."""

    name: str
    chunks: Sequence[int]

    def chunk(self, n: int, n_steps: int | None = None) -> Any: ...

    def eps(self, x: Tensor, t: int) -> Tensor:
        """The network alone: x (n, dim) at timestep t."""


def linear_betas(n_steps: int) -> np.ndarray:
    """Ho et al. 2020, section 4; smaller for longer chains, through which an untrained net would overflow."""
    return np.linspace(BETA_START, BETA_END, n_steps) * min(1.0, LONGEST_AT_FULL_BETAS / n_steps)


def flop_per_sample_step(widths: Sequence[int]) -> int:
    """Useful work: the products that depend on x, without the time embedding."""
    return 2 * sum(a * b for a, b in itertools.pairwise(widths))


@dataclass(frozen=True)
class Coefficients:
    """x <- a x + e eps + s z for each step t, float64 arrays of length T; s[0] = 0."""

    a: np.ndarray
    e: np.ndarray
    s: np.ndarray

    @classmethod
    def ddpm(cls, n_steps: int) -> Coefficients:
        betas = linear_betas(n_steps)
        alphas = 1 - betas
        abar = np.cumprod(alphas)
        abar_prev = np.append(1.0, abar[:-1])
        a = 1 / np.sqrt(alphas)
        return cls(a, -a * betas / np.sqrt(1 - abar), np.sqrt(betas * (1 - abar_prev) / (1 - abar)))


@dataclass(frozen=True)
class Folded:
    """A denoiser with its time embedding folded into one bias row of the first layer for each step.

    weights[i] is (n_in, n_out), so that a layer is x @ w + b. table (T, n_out) holds the first layer's
    biases; biases[i] belongs to layer i + 1. The first layer reads x and, beside it, the columns of a class
    or a context where there are any. projection: it has no activation.
    """

    weights: list[Tensor]
    biases: list[Tensor]
    table: Tensor
    activation: str
    projection: bool = False

    @classmethod
    def of(cls, model: MLPDenoiser) -> Folded:
        linears = [layer for layer in model.model if isinstance(layer, nn.Linear)]
        time = model.time_embed(torch.arange(model.n_steps))
        return cls.of_layers(linears, model.dim, time, model.config["activation"])

    @classmethod
    @torch.no_grad()
    def of_layers(cls, linears: Sequence[nn.Linear], dim: int, time: Tensor, activation: str) -> Folded:
        """Of linear layers, the first of which reads x (dim columns), the embedded time (T, n) and what
        follows.
        """
        of_x, of_time, of_rest = linears[0].weight.tensor_split((dim, dim + time.shape[1]), dim=1)
        matrices = [torch.cat([of_x, of_rest], dim=1)] + [layer.weight for layer in linears[1:]]
        weights = [matrix.detach().t().contiguous() for matrix in matrices]
        biases = [layer.bias.detach() for layer in linears[1:]]
        return cls(weights, biases, F.linear(time, of_time, linears[0].bias), activation)


class TorchEager:
    """The loop of a tutorial: a batch of equal t, the model, the update with fresh tensors."""

    name = "torch eager"
    chunks: Sequence[int] = CHUNKS

    def __init__(self, model: MLPDenoiser) -> None:
        self.model = model.eval()
        self.steps = Coefficients.ddpm(model.n_steps)

    @torch.inference_mode()
    def eps(self, x: Tensor, t: int) -> Tensor:
        return self.model(x, torch.full((len(x),), t, dtype=torch.long))

    @torch.inference_mode()
    def chunk(self, n: int, n_steps: int | None = None) -> Tensor:
        x = torch.randn(n, self.model.dim)
        for t in reversed(range(self.model.n_steps if n_steps is None else n_steps)):
            eps = self.model(x, torch.full((n,), t, dtype=torch.long))
            x = float(self.steps.a[t]) * x + float(self.steps.e[t]) * eps
            if t > 0:
                x = x + float(self.steps.s[t]) * torch.randn_like(x)
        return x


class TorchFolded:
    """The best of plain torch: table instead of embedding, buffers instead of allocations, all in place."""

    name = "torch folded"
    chunks: Sequence[int] = CHUNKS

    def __init__(self, model: MLPDenoiser | Folded) -> None:
        self.folded = model if isinstance(model, Folded) else Folded.of(model)
        self.n_steps = len(self.folded.table)
        self.steps = Coefficients.ddpm(self.n_steps)
        self.act = INPLACE_ACTIVATIONS[self.folded.activation]
        self.buffers: list[Tensor] = []

    @torch.inference_mode()
    def eps(self, x: Tensor, t: int) -> Tensor:
        """The network's output, in a buffer that the next call overwrites."""
        weights, biases = self.folded.weights, self.folded.biases
        if not self.buffers or len(self.buffers[0]) != len(x):
            self.buffers = [torch.empty(len(x), w.shape[1]) for w in weights]
        h = torch.addmm(self.folded.table[t], x, weights[0], out=self.buffers[0])
        if not self.folded.projection:
            h = self.act(h)
        for bias, weight, out in zip(biases[:-1], weights[1:-1], self.buffers[1:-1], strict=True):
            h = self.act(torch.addmm(bias, h, weight, out=out))
        return torch.addmm(biases[-1], h, weights[-1], out=self.buffers[-1])

    @torch.inference_mode()
    def chunk(self, n: int, n_steps: int | None = None) -> Tensor:
        steps = self.steps
        x = torch.randn(n, self.folded.weights[-1].shape[1])
        noise = torch.empty_like(x)
        for t in reversed(range(self.n_steps if n_steps is None else n_steps)):
            eps = self.eps(x, t)
            x.mul_(float(steps.a[t])).add_(eps, alpha=float(steps.e[t]))
            if t > 0:
                x.add_(noise.normal_(), alpha=float(steps.s[t]))
        return x


def seconds_for(peer: ChainPeer, n: int, size: int, n_steps: int | None = None) -> float:
    """Seconds for n samples in chunks of one size; a last chunk that is not full counts in proportion."""
    chunks = -(-n // size)
    begin = time.perf_counter()
    for _ in range(chunks):
        peer.chunk(size, n_steps)
    return (time.perf_counter() - begin) * n / (chunks * size)


def limited_run(
    peer: ChainPeer, n: int, size: int, limit: float, n_steps: int | None = None
) -> tuple[Callable[[], float], str]:
    """Runs n samples in chunks of `size`, or as many as take about `limit` seconds, and returns the seconds
    scaled to n; and a note that says so. n_steps: the length of the chain, where it may be cut as well,
    because a single chunk of it may take longer than that.
    """
    steps, scale = None, 1.0
    few = None if n_steps is None else min(FEW_STEPS, n_steps)
    peer.chunk(size, few)
    if few is not None and n_steps is not None:
        quickest = min(seconds_for(peer, size, size, few) for _ in range(TRIALS))
        fitting = round(few * limit / quickest)
        if fitting < n_steps:
            steps = max(few, fitting)
            scale = n_steps / steps
    part = min(n, max(size, round(size * limit / seconds_for(peer, size, size, steps))))

    def run() -> float:
        return seconds_for(peer, part, size, steps) * scale * n / part

    cut = "" if steps is None else f" and {steps} steps"
    scaled = "" if part == n and steps is None else f", scaled from {part:,} samples{cut}"
    return run, f"chunk {size}{scaled}"


def best_chunk(peer: ChainPeer, n: int, n_steps: int) -> int:
    """Of the peer's sizes the one with the most samples a second: the best of a few short runs of each.

    Each trial is about 20 ms for the smaller sizes, and in proportion for the larger ones.
    """
    sizes = [size for size in peer.chunks if size <= max(n, peer.chunks[0])]
    if len(sizes) == 1:
        return sizes[0]
    short = _trial_steps(peer, n_steps, sizes)
    rates = {}
    for size in sizes:
        peer.chunk(size, short)
        count = max(1, TRIAL_SAMPLES // size)
        times = []
        for _ in range(TRIALS):
            begin = time.perf_counter()
            for _ in range(count):
                peer.chunk(size, short)
            times.append(time.perf_counter() - begin)
        rates[size] = count * size / min(times)
    return max(rates, key=lambda size: rates[size])


def _trial_steps(peer: ChainPeer, n_steps: int, sizes: Sequence[int]) -> int:
    few = min(2, n_steps)
    size = min(sizes, key=lambda size: abs(size - TRIAL_SAMPLES))
    peer.chunk(size, few)
    begin = time.perf_counter()
    peer.chunk(size, few)
    per_step = (time.perf_counter() - begin) / few * TRIAL_SAMPLES / size
    return max(few, min(n_steps, round(TRIAL_SECONDS / per_step)))
