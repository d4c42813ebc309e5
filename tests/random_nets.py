"""Random modules from every operation that capture follows, each a function of its seed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

Values = list[Tensor]
ACTIVATIONS = [
    *(torch.relu, torch.tanh, torch.sigmoid, nnf.silu, nnf.gelu, nnf.softplus, nnf.mish, nnf.elu),
    *(nnf.leaky_relu, nnf.selu, nnf.celu, nnf.hardtanh, nnf.hardswish, nnf.relu6, nnf.logsigmoid),
]


def positive(v: Tensor) -> Tensor:
    return v.abs() + 0.5


def manual_norm(v: Tensor) -> Tensor:
    centered = v - v.mean(-1, keepdim=True)
    return centered / torch.sqrt((centered**2).mean(dim=1, keepdim=True) + 0.1)


# Functions of one value that keep its width. Nothing grows far beyond unit size.
SAME_WIDTH: list[Callable[[Tensor], Tensor]] = [
    lambda v: torch.sin(2 * v),
    torch.cos,
    torch.abs,
    lambda v: torch.exp(-v.square()),
    lambda v: positive(v).log(),
    lambda v: positive(v).sqrt(),
    lambda v: positive(v).rsqrt(),
    lambda v: 1 / positive(v),
    lambda v: v / positive(v).reciprocal(),
    lambda v: positive(v) ** -0.5,
    lambda v: positive(v).pow(1.3),
    lambda v: positive(v) ** -2,
    lambda v: v.clamp(-0.5, 0.8) ** 3,
    lambda v: v.clamp(min=-0.3) - 1.5,
    lambda v: 1 - v,
    lambda v: -v * 0.7 + 2,
    lambda v: torch.add(v, v.flip(-1), alpha=-0.5),
    lambda v: v - v.mean(dim=-1, keepdim=True),
    lambda v: v * v.sum(1)[:, None].tanh(),
    lambda v: v.softmax(-1) * 3,
    lambda v: nnf.rms_norm(v, (v.shape[1],), eps=0.1),
    lambda v: nnf.layer_norm(v, (v.shape[1],), eps=0.1),
    manual_norm,
    lambda v: v.roll(1, -1),
    lambda v: v.unsqueeze(1).permute(0, 2, 1).squeeze(-1) / 3.0,
    lambda v: v.view(v.shape[0], -1, 1).expand(-1, -1, 2).mean(-1),
    lambda v: torch.stack([v, v.flip(1)], dim=-1).flatten(1)[:, ::2],
    lambda v: torch.maximum(v, torch.zeros_like(v)) - torch.minimum(v, torch.full_like(v, 0.2)),
    lambda v: nnf.dropout(v, 0.3, training=False).contiguous().to(torch.float32),
    lambda v: v.clone().mul_(0.5).add_(1).relu_(),
    lambda v: torch.where(torch.arange(v.shape[1]) % 2 == 0, v, -v),
]


def halves(v: Tensor) -> tuple[Tensor, ...]:
    return v[:, : v.shape[1] // 2 * 2].chunk(2, dim=-1) if v.shape[1] > 1 else (v, v)


def assigned(v: Tensor, w: Tensor) -> Tensor:
    out = torch.zeros(v.shape[0], v.shape[1] + 1)
    out[:, 1:] = v
    out[:, 0] += w.mean(1)
    return out


def padded(v: Tensor, w: Tensor) -> Tensor:
    return nnf.pad(v, (1, 0), value=0.5) * w[:, :1].unsqueeze(-1).squeeze(2)


# Functions of two values of any widths, to a value of another width.
ANY_WIDTH: list[Callable[[Tensor, Tensor], Tensor]] = [
    lambda v, w: torch.cat([v, w], dim=-1),
    lambda v, w: torch.cat([w, v[:, :2], w[:, -1:]], dim=1),
    lambda v, w: halves(v)[0] * torch.sigmoid(halves(v)[1]),
    lambda v, w: nnf.glu(torch.cat([halves(v)[0], halves(v)[1]], 1)),
    lambda v, w: v[:, 1:] if v.shape[1] > 1 else v * 2,
    lambda v, w: v.select(1, 0).unsqueeze(-1) + w,
    lambda v, w: w.narrow(1, 0, 1) * v,
    lambda v, w: v.repeat(1, 2)[:, : v.shape[1] + 1],
    lambda v, w: v.index_select(1, torch.arange(v.shape[1] - 1, -1, -1)),
    lambda v, w: v[:, [0, -1, 0]],
    lambda v, w: torch.stack(torch.unbind(v, dim=1)[:2] + torch.unbind(w, 1)[:1], dim=1),
    lambda v, w: v.split(max(1, v.shape[1] // 3), dim=1)[-1],
    lambda v, w: v * (1 + w.mean(1, keepdim=True)) + w.sum(-1, keepdim=True).sin(),
    assigned,
    padded,
]


class RandomNet(nn.Module):
    """module(x, t[, y][, context]): n_ops random steps on a growing list of values."""

    def __init__(self, seed: int, dim: int, n_classes: int = 0, n_ops: int = 7, n_context: int = 0) -> None:
        super().__init__()
        self.rng = np.random.default_rng(seed)
        self.time = nn.Sequential(nn.Linear(2, 6), nn.SiLU(), nn.Linear(6, 6))
        self.label = nn.Embedding(n_classes, 6) if n_classes else None
        self.parts = nn.ModuleList()
        self.steps: list[Callable[[Values], Tensor]] = []
        self.n_context = n_context
        widths = [dim, 6, *([6] if n_classes else []), *([n_context] if n_context else [])]
        unread, self.on_x = {0}, [0]
        with torch.no_grad():
            for _ in range(n_ops):
                self.read: set[int] = set()
                self.steps.append(self.random_step(widths))
                unread = (unread - self.read) | {len(widths)}
                self.on_x += [len(widths)] if self.read & set(self.on_x) else []
                probe = self.steps[-1]([torch.zeros(2, w) for w in widths])
                widths.append(probe.shape[1])
        self.unread = sorted(unread)  # every step is part of the result
        self.last = nn.Linear(sum(widths[i] for i in self.unread), dim)
        self.dim, self.through_x = dim, bool(self.rng.random() < 0.3)
        self.eval()

    def part(self, module: nn.Module) -> nn.Module:
        for tensor in module.buffers():
            if tensor.is_floating_point():  # statistics of a batch norm
                tensor.copy_(torch.rand_like(tensor) + 0.5)
        self.parts.append(module.eval())
        return module

    def pick(self, n: int) -> int:
        """Mostly a recent value, sometimes x, t or y."""
        return int(self.rng.integers(n) if self.rng.random() < 0.3 else max(0, n - 1 - self.rng.integers(3)))

    def random_step(self, widths: list[int]) -> Callable[[Values], Tensor]:
        rng, j = self.rng, self.pick(len(widths))
        i = (
            self.on_x[-1 - rng.integers(min(3, len(self.on_x)))]
            if rng.random() < 0.8
            else self.pick(len(widths))
        )
        n, kind = widths[i], rng.integers(10)
        self.read.add(i)
        if kind <= 1 or n > 40:
            return self.layer(i, j, widths)
        if kind == 2:
            act = ACTIVATIONS[rng.integers(len(ACTIVATIONS))]
            return lambda v: act(v[i])
        if kind in (3, 9):
            first, second = (SAME_WIDTH[k] for k in rng.integers(len(SAME_WIDTH), size=2))
            return lambda v: second(first(v[i]))
        if kind == 4:
            self.read.add(j)
            other = ANY_WIDTH[rng.integers(len(ANY_WIDTH))]
            return lambda v: other(v[i], v[j])
        if kind == 5:
            return self.norm(i, n)
        if kind == 6:
            self.read.add(j)
            film = self.part(nn.Linear(widths[j], 2 * n))

            def scale_and_shift(v: Values) -> Tensor:
                scale, shift = film(v[j]).chunk(2, -1)
                return v[i] * (1 + scale.tanh()) + shift

            return scale_and_shift
        self.read.add(j)
        project = self.part(nn.Linear(widths[j], n))
        join: Any = [torch.add, torch.sub, torch.mul, lambda a, b: a / positive(b)][rng.integers(4)]
        return lambda v: join(v[i], project(v[j])) if kind == 7 else torch.tanh(join(project(v[j]), v[i]))

    def layer(self, i: int, j: int, widths: list[int]) -> Callable[[Values], Tensor]:
        rng, n = self.rng, int(self.rng.integers(1, 24))
        one = self.part(nn.Linear(widths[i], n, bias=bool(rng.random() < 0.7)))
        act = ACTIVATIONS[rng.integers(len(ACTIVATIONS))]
        if rng.random() < 0.3:
            self.read.add(j)
            two = self.part(nn.Linear(widths[j], n))
            return lambda v: act(one(v[i]) + two(v[j]))
        if rng.random() < 0.2:
            return lambda v: v[i] @ one.weight.T
        return lambda v: act(one(v[i]))

    def norm(self, i: int, n: int) -> Callable[[Values], Tensor]:
        divisors = [g for g in range(1, n + 1) if n % g == 0 and n // g > 1] or [1]
        groups = int(self.rng.choice(divisors))
        makers = [
            lambda: nn.LayerNorm(n, eps=0.1),
            lambda: nn.RMSNorm(n, eps=0.1),
            lambda: nn.GroupNorm(groups, n, eps=0.1) if n > 1 else nn.Identity(),
            lambda: nn.BatchNorm1d(n),
        ]
        made = self.part(makers[self.rng.integers(4)]())
        return lambda v: made(v[i])

    def forward(self, x: Tensor, t: Tensor, *conditions: Tensor) -> Tensor:
        angle = t.to(x.dtype)[:, None] * torch.tensor([0.3, 0.02], dtype=x.dtype)
        values = [x, self.time(torch.sin(angle))]
        for i, condition in enumerate(conditions):
            values.append(self.label(condition) if self.label is not None and i == 0 else condition)
        for step in self.steps:
            values.append(step(values))
        out = self.last(torch.tanh(torch.cat([values[i] for i in self.unread], dim=-1)))
        return x + out if self.through_x else out


def random_net(seed: int) -> RandomNet:
    """The module of this seed, in eval mode; torch's global generator is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        n_context = 3 if seed % 4 >= 2 else 0
        return RandomNet(seed, 1 + seed % 6, 4 * (seed % 2), 3 + seed % 5, n_context)
