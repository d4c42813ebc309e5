"""Denoisers written afresh from their published descriptions, as their authors' users would have them."""

from __future__ import annotations

import itertools
import math

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn

from benchmarks.nets import TabDDPM as TabDDPM


class TabSyn(nn.Module):
    """Zhang et al. 2024: EDM preconditioning around an MLP with SiLU; called with sigma."""

    def __init__(self, dim: int, dim_t: int = 32, sigma_data: float = 0.5) -> None:
        super().__init__()
        self.dim_t, self.sigma_data = dim_t, sigma_data
        self.proj = nn.Linear(dim, dim_t)
        widths = (dim_t, 2 * dim_t, 2 * dim_t, dim_t)
        layers: list[nn.Module] = []
        for n_in, n_out in itertools.pairwise(widths):
            layers += [nn.Linear(n_in, n_out), nn.SiLU()]
        self.mlp = nn.Sequential(*layers, nn.Linear(dim_t, dim))
        self.time_embed = nn.Sequential(nn.Linear(dim_t, dim_t), nn.SiLU(), nn.Linear(dim_t, dim_t))

    def positional(self, x: Tensor) -> Tensor:
        freqs = torch.arange(start=0, end=self.dim_t // 2, dtype=torch.float32, device=x.device)
        freqs = (1 / 10000) ** (freqs / (self.dim_t // 2 - 1))
        x = x.ger(freqs.to(x.dtype))
        return torch.cat([x.cos(), x.sin()], dim=1)

    def denoise(self, x: Tensor, noise_labels: Tensor) -> Tensor:
        emb = self.positional(noise_labels)
        emb = emb.reshape(emb.shape[0], 2, -1).flip(1).reshape(*emb.shape)
        return self.mlp(self.proj(x) + self.time_embed(emb))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        x, sigma = x.to(self.proj.weight.dtype), sigma.to(self.proj.weight.dtype).reshape(-1, 1)
        c_skip = self.sigma_data**2 / (sigma**2 + self.sigma_data**2)
        c_out = sigma * self.sigma_data / (sigma**2 + self.sigma_data**2).sqrt()
        c_in = 1 / (self.sigma_data**2 + sigma**2).sqrt()
        c_noise = sigma.log() / 4
        return c_skip * x + c_out * self.denoise(c_in * x, c_noise.flatten())


class SinusoidalPosEmb(nn.Module):
    def __init__(self, dim: int, scale: float = 1.0) -> None:
        super().__init__()
        self.dim, self.scale = dim, scale

    def forward(self, x: Tensor) -> Tensor:
        half = self.dim // 2
        emb = torch.exp(torch.arange(half, device=x.device) * -(math.log(10000) / (half - 1)))
        emb = (x * self.scale)[:, None] * emb[None, :]
        return torch.cat((emb.sin(), emb.cos()), dim=-1)


class DiffusionQL(nn.Module):
    """Wang et al. 2023: action, time and state side by side, three layers of Mish; one fixed state."""

    def __init__(self, action_dim: int = 6, state_dim: int = 17, t_dim: int = 16, hidden: int = 64) -> None:
        super().__init__()
        self.time_mlp = nn.Sequential(
            SinusoidalPosEmb(t_dim), nn.Linear(t_dim, t_dim * 2), nn.Mish(), nn.Linear(t_dim * 2, t_dim)
        )
        layers: list[nn.Module] = []
        for n_in in (state_dim + action_dim + t_dim, hidden, hidden):
            layers += [nn.Linear(n_in, hidden), nn.Mish()]
        self.mid_layer, self.final_layer = nn.Sequential(*layers), nn.Linear(hidden, action_dim)
        self.register_buffer("state", torch.randn(1, state_dim))

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        t = self.time_mlp(time)
        x = torch.cat([x, t, self.state.expand(x.shape[0], -1)], dim=1)
        return self.final_layer(self.mid_layer(x))


class ResNetBlock(nn.Module):
    def __init__(self, features: int) -> None:
        super().__init__()
        self.dropout, self.norm = nn.Dropout(0.1), nn.LayerNorm(features)
        self.up, self.down = nn.Linear(features, 4 * features), nn.Linear(4 * features, features)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(nnf.mish(self.up(self.norm(self.dropout(x)))))


class IDQL(nn.Module):
    """Hansen-Estruch et al. 2023: learned Fourier features of t, residual blocks with layer norm."""

    def __init__(self, dim: int = 3, state_dim: int = 11, hidden: int = 48, n_blocks: int = 3) -> None:
        super().__init__()
        self.frequencies = nn.Parameter(torch.randn(16, 1) * 0.2)
        self.cond = nn.Sequential(nn.Linear(32, 32), nn.Mish(), nn.Linear(32, 32))
        self.register_buffer("state", torch.randn(state_dim))
        self.first = nn.Linear(dim + state_dim + 32, hidden)
        self.blocks = nn.Sequential(*(ResNetBlock(hidden) for _ in range(n_blocks)))
        self.last = nn.Linear(hidden, dim)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angle = 2 * torch.pi * t.to(x.dtype).unsqueeze(-1) @ self.frequencies.T
        cond = self.cond(torch.cat([angle.cos(), angle.sin()], dim=-1))
        state = self.state[None].repeat(x.shape[0], 1)
        return self.last(nnf.mish(self.blocks(self.first(torch.cat([x, state, cond], dim=-1)))))


class ToyBlock(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.ff, self.act = nn.Linear(size, size), nn.GELU()

    def forward(self, x: Tensor) -> Tensor:
        return x + self.act(self.ff(x))


class Toy2D(nn.Module):
    """The 2-D nets of tutorials, after NeRF: both coordinates and t sinusoidally embedded, GELU blocks."""

    def __init__(self, hidden: int = 48, layers: int = 3, size: int = 16) -> None:
        super().__init__()
        self.time_mlp = SinusoidalPosEmb(size)
        self.input_mlp1, self.input_mlp2 = SinusoidalPosEmb(size, 25.0), SinusoidalPosEmb(size, 25.0)
        blocks = [ToyBlock(hidden) for _ in range(layers)]
        self.joint_mlp = nn.Sequential(nn.Linear(3 * size, hidden), nn.GELU(), *blocks, nn.Linear(hidden, 2))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        x1, x2 = self.input_mlp1(x[:, 0]), self.input_mlp2(x[:, 1])
        return self.joint_mlp(torch.cat((x1, x2, self.time_mlp(t)), dim=-1))


class FiLMBlock(nn.Module):
    def __init__(self, size: int, cond: int) -> None:
        super().__init__()
        self.norm, self.film = nn.LayerNorm(size), nn.Linear(cond, 2 * size)
        self.one, self.two = nn.Linear(size, size), nn.Linear(size, size)

    def forward(self, h: Tensor, c: Tensor) -> Tensor:
        scale, shift = self.film(nnf.silu(c)).chunk(2, dim=-1)
        return h + self.two(nnf.silu(self.one(self.norm(h)) * (1 + scale) + shift))


class FiLM(nn.Module):
    """Perez et al. 2018 in a residual MLP: scale and shift from the sum of a time and a class embedding."""

    def __init__(self, dim: int = 4, size: int = 40, n_classes: int = 4, cond: int = 24) -> None:
        super().__init__()
        self.time = nn.Sequential(SinusoidalPosEmb(16), nn.Linear(16, cond), nn.SiLU(), nn.Linear(cond, cond))
        self.label = nn.Embedding(n_classes, cond)
        self.first, self.last = nn.Linear(dim, size), nn.Linear(size, dim)
        self.blocks = nn.ModuleList(FiLMBlock(size, cond) for _ in range(3))

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        c, h = self.time(t) + self.label(y), self.first(x)
        for block in self.blocks:
            h = block(h, c)
        return self.last(h)


class SmallDiffusion(nn.Module):
    """Yuan's smalldiffusion, TimeInputMLP: sine and cosine of log(sigma) / 2 beside x, GELU layers."""

    def __init__(self, dim: int = 2, hidden: tuple[int, ...] = (16, 64, 96, 64, 16)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for n_in, n_out in zip((dim + 2, *hidden), hidden, strict=False):
            layers += [nn.Linear(n_in, n_out), nn.GELU()]
        self.net = nn.Sequential(*layers, nn.Linear(hidden[-1], dim))

    def forward(self, x: Tensor, sigma: Tensor) -> Tensor:
        sigma = sigma.unsqueeze(1)
        embeds = torch.cat([torch.sin(torch.log(sigma) / 2), torch.cos(torch.log(sigma) / 2)], dim=1)
        return self.net(torch.cat([x, embeds], dim=1))
