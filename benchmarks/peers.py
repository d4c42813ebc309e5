"""What others would write for the same job: plain torch, torch by hand, JAX and diffusers.

Each chain peer is made once (weights packed, functions compiled) and then called with a number of samples.
The coefficients are those of DDPM with the posterior variance (Ho et al. 2020, arXiv:2006.11239, algorithm
2), computed here from the betas so that no peer depends on the package it is compared with.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

BETA_START, BETA_END = 1e-4, 0.02
CHUNKS = [256, 512, 1024, 2048, 4096, 8192, 16384, 32768]
ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh}


class Denoiser(nn.Module):
    """concat[x, embedding of t] through a multilayer perceptron, as a user writes it; t counts from 0."""

    def __init__(self, widths: Sequence[int], activation: str, n_steps: int, time_dim: int = 16) -> None:
        super().__init__()
        self.dim = widths[0]
        self.n_steps = n_steps
        self.time_embed = nn.Sequential(
            nn.Linear(1, time_dim), nn.Tanh(), nn.Linear(time_dim, time_dim), nn.Tanh()
        )
        layers: list[nn.Module] = []
        n_in = widths[0] + time_dim
        for width in widths[1:-1]:
            layers += [nn.Linear(n_in, width), ACTIVATIONS[activation]()]
            n_in = width
        self.net = nn.Sequential(*layers, nn.Linear(n_in, widths[-1]))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        embedding = self.time_embed(((t + 1).float() / self.n_steps - 0.5).unsqueeze(-1))
        return self.net(torch.cat([x, embedding], dim=-1))


@dataclass(frozen=True)
class Coefficients:
    """x <- a x + e eps + s z for each step t, float64 arrays of length T; s[0] = 0."""

    a: np.ndarray
    e: np.ndarray
    s: np.ndarray

    @classmethod
    def ddpm(cls, n_steps: int) -> Coefficients:
        betas = np.linspace(BETA_START, BETA_END, n_steps)
        alphas = 1 - betas
        abar = np.cumprod(alphas)
        abar_prev = np.append(1.0, abar[:-1])
        a = 1 / np.sqrt(alphas)
        return cls(a, -a * betas / np.sqrt(1 - abar), np.sqrt(betas * (1 - abar_prev) / (1 - abar)))


@dataclass(frozen=True)
class Folded:
    """The denoiser with its time embedding folded into one bias row of the first layer for each step.

    weights[i] is (n_in, n_out), so that a layer is x @ w + b. table (T, n_out) holds the first layer's
    biases; biases[i] belongs to layer i + 1.
    """

    weights: list[Tensor]
    biases: list[Tensor]
    table: Tensor

    @classmethod
    def of(cls, model: Denoiser) -> Folded:
        linears = [layer for layer in model.net if isinstance(layer, nn.Linear)]
        dim = model.dim
        with torch.no_grad():
            t = torch.arange(model.n_steps)
            embedding = model.time_embed(((t + 1).float() / model.n_steps - 0.5).unsqueeze(-1))
            table = nn.functional.linear(embedding, linears[0].weight[:, dim:], linears[0].bias)
        matrices = [linears[0].weight[:, :dim]] + [layer.weight for layer in linears[1:]]
        weights = [matrix.detach().t().contiguous() for matrix in matrices]
        return cls(weights, [layer.bias.detach() for layer in linears[1:]], table)


class TorchEager:
    """The loop of a tutorial: a batch of equal t, the model, the update with fresh tensors."""

    name = "torch eager"

    def __init__(self, model: Denoiser, activation: str) -> None:
        self.model = model.eval()
        self.steps = Coefficients.ddpm(model.n_steps)
        self.dim = model.dim

    @torch.inference_mode()
    def chunk(self, n: int, n_steps: int | None = None) -> Tensor:
        x = torch.randn(n, self.dim)
        for t in reversed(range(self.model.n_steps if n_steps is None else n_steps)):
            eps = self.model(x, torch.full((n,), t, dtype=torch.long))
            x = float(self.steps.a[t]) * x + float(self.steps.e[t]) * eps
            if t > 0:
                x = x + float(self.steps.s[t]) * torch.randn_like(x)
        return x


class TorchFolded:
    """The best of plain torch: table instead of embedding, buffers instead of allocations, all in place."""

    name = "torch folded"

    def __init__(self, model: Denoiser, activation: str) -> None:
        self.folded = Folded.of(model)
        self.steps = Coefficients.ddpm(model.n_steps)
        self.n_steps = model.n_steps
        self.act = {"relu": torch.relu_, "tanh": torch.tanh_}[activation]
        self.buffers: list[Tensor] = []

    @torch.inference_mode()
    def chunk(self, n: int, n_steps: int | None = None) -> Tensor:
        weights, steps = self.folded.weights, self.steps
        dim = weights[-1].shape[1]
        if not self.buffers or len(self.buffers[0]) != n:
            self.buffers = [torch.empty(n, w.shape[1]) for w in weights] + [torch.empty(n, dim)]
        *hidden, eps, noise = self.buffers
        x = torch.randn(n, dim)
        for t in reversed(range(self.n_steps if n_steps is None else n_steps)):
            h = self.act(torch.addmm(self.folded.table[t], x, weights[0], out=hidden[0]))
            for bias, weight, out in zip(self.folded.biases[:-1], weights[1:-1], hidden[1:], strict=True):
                h = self.act(torch.addmm(bias, h, weight, out=out))
            torch.addmm(self.folded.biases[-1], h, weights[-1], out=eps)
            x.mul_(float(steps.a[t])).add_(eps, alpha=float(steps.e[t]))
            if t > 0:
                x.add_(noise.normal_(), alpha=float(steps.s[t]))
        return x


class JaxScan:
    """One jitted lax.scan over the steps with the table folded in; its key is split once for each step."""

    name = "jax scan"

    def __init__(self, model: Denoiser, activation: str) -> None:
        import jax
        import jax.numpy as jnp

        folded, steps = Folded.of(model), Coefficients.ddpm(model.n_steps)
        weights = [jnp.asarray(w.numpy()) for w in folded.weights]
        biases = [jnp.asarray(b.numpy()) for b in folded.biases]
        act = {"relu": jax.nn.relu, "tanh": jnp.tanh}[activation]
        columns = [c.astype(np.float32) for c in (steps.a, steps.e, steps.s)] + [folded.table.numpy()]
        rows = tuple(jnp.asarray(column[::-1].copy()) for column in columns)
        dim = weights[-1].shape[1]

        def chain(key: Any, rows: Any, n: int) -> Any:
            key, first = jax.random.split(key)

            def step(carry: Any, row: Any) -> Any:
                x, key = carry
                a, e, s, bias = row
                key, fresh = jax.random.split(key)
                h = act(x @ weights[0] + bias)
                for weight, b in zip(weights[1:-1], biases[:-1], strict=True):
                    h = act(h @ weight + b)
                eps = h @ weights[-1] + biases[-1]
                return (a * x + e * eps + s * jax.random.normal(fresh, x.shape), key), None

            return jax.lax.scan(step, (jax.random.normal(first, (n, dim)), key), rows)[0][0]

        self.key = jax.random.key(0)
        self.rows = rows
        self.n_steps = model.n_steps
        self.compiled = jax.jit(chain, static_argnums=2)

    def chunk(self, n: int, n_steps: int | None = None) -> Any:
        rows = self.rows if n_steps is None else tuple(column[-n_steps:] for column in self.rows)
        return self.compiled(self.key, rows, n).block_until_ready()


CHAIN_PEERS: list[Callable[[Denoiser, str], Any]] = [TorchEager, TorchFolded, JaxScan]


def seconds_for(peer: Any, n: int, size: int) -> float:
    """Seconds for n samples in chunks of one size; a last chunk that is not full counts in proportion."""
    chunks = -(-n // size)
    begin = time.perf_counter()
    for _ in range(chunks):
        peer.chunk(size)
    return (time.perf_counter() - begin) * n / (chunks * size)


def best_chunk(peer: Any, n: int, n_steps: int, sizes: Sequence[int] = CHUNKS) -> int:
    """The chunk size with the most samples a second: the best of three runs of a tenth of the steps each."""
    short = max(2, n_steps // 10)
    rates = {}
    for size in (size for size in sizes if size <= max(n, sizes[0])):
        peer.chunk(size, short)
        count = max(1, 4096 // size)
        times = []
        for _ in range(3):
            begin = time.perf_counter()
            for _ in range(count):
                peer.chunk(size, short)
            times.append(time.perf_counter() - begin)
        rates[size] = count * size / min(times)
    return max(rates, key=lambda size: rates[size])


def inplace_step(x: Tensor, eps: Tensor, noise: Tensor, a: float, e: float, s: float) -> None:
    """x <- a x + e eps + s z with three in-place operations and a buffer that is filled anew."""
    x.mul_(a).add_(eps, alpha=e).add_(noise.normal_(), alpha=s)


class DiffusersStep:
    """diffusers' DDPMScheduler.step at one timestep of a linear schedule."""

    name = "diffusers"

    def __init__(self, n_steps: int, t: int) -> None:
        from diffusers import DDPMScheduler

        scheduler: Any = DDPMScheduler(
            n_steps, beta_start=BETA_START, beta_end=BETA_END, clip_sample=False, variance_type="fixed_small"
        )
        scheduler.set_timesteps(n_steps)
        self.scheduler = scheduler
        self.t = t

    def __call__(self, x: Tensor, eps: Tensor) -> None:
        self.scheduler.step(eps, self.t, x)
