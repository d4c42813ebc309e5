"""The convolutional network that denoises small images."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from diffusion_fast import _checks
from diffusion_fast.models.mlp import MAX_HIDDEN, MAX_STEPS, MAX_WIDTH

NORMS = ("image", "channel")
PRECISIONS = ("float32", "bfloat16")
MAX_SIDE = 1024
TIME_WIDTH = 128  # of the hidden layers that the time goes through


class CNNDenoiser(nn.Module):
    """Predicts the noise (or x0, or v) in a batch of noisy images, all layers at the images' full size.

    Blocks of convolution - layer norm - GELU, then one convolution more. Four linear layers make of the time
    one number for each channel of the first block, which is added to its output at every pixel.

    Args:
        n_hidden: channels of the blocks, at least one.
        n_steps: the number of timesteps T that it is made for; a longer schedule is refused.
        image_shape: (channels, height, width) of an image.
        kernel_size, last_kernel_size: odd; of the blocks' convolutions and of the last one.
        norm: "image", a mean and a variance for all channels and pixels of an image, and a scale and an
            offset for each of them; "channel", a mean and a variance for each channel, and a scale and an
            offset for each pixel.
        time_features: an even number; sines and cosines of as many frequencies: 0 and 2 pi 1.5^i.
        precision: "float32", or "bfloat16" for the products, in training and in sampling; weights, norms and
            what is returned are float32.

    Its weights are kept with torch (df.save is for denoisers of points).
    Attributes: shape = image_shape, n_steps, n_classes = None, config (the arguments).
    Raises ValueError or TypeError for an argument outside of what is listed.
    """

    n_classes = None

    def __init__(
        self,
        n_hidden: Sequence[int] = (32, 64, 64, 32),
        n_steps: int = 1000,
        *,
        image_shape: Sequence[int] = (1, 28, 28),
        kernel_size: int = 7,
        last_kernel_size: int = 3,
        norm: str = "image",
        time_features: int = 16,
        precision: str = "float32",
    ) -> None:
        super().__init__()
        widths = _integers("n_hidden", n_hidden, range(1, MAX_HIDDEN + 1), MAX_WIDTH)
        channels, height, width = _integers("image_shape", image_shape, (3,), MAX_SIDE)
        for name, size in (("kernel_size", kernel_size), ("last_kernel_size", last_kernel_size)):
            if _checks.integer(name, size, 1, MAX_SIDE) % 2 == 0:
                raise _checks.bad_value(name, size, "an odd number, so that images keep their size")
        self.n_steps = _checks.integer("n_steps", n_steps, 1, MAX_STEPS)
        self.shape = (channels, height, width)
        self.precision = _checks.choice("precision", precision, PRECISIONS)
        self.config: dict[str, Any] = {
            "n_hidden": widths,
            "n_steps": self.n_steps,
            "image_shape": [channels, height, width],
            "kernel_size": kernel_size,
            "last_kernel_size": last_kernel_size,
            "norm": _checks.choice("norm", norm, NORMS),
            "time_features": _checks.integer("time_features", time_features, 1, MAX_WIDTH),
            "precision": precision,
        }

        inputs = [channels, *widths]
        self.blocks = nn.ModuleList(
            _Block(n_in, n_out, kernel_size, (height, width), norm)
            for n_in, n_out in zip(inputs, widths, strict=False)
        )
        self.last = nn.Conv2d(widths[-1], channels, last_kernel_size, padding=last_kernel_size // 2)
        frequencies = [0.0] + [2 * math.pi * 1.5**i for i in range(time_features - 1)]
        self.register_buffer("frequencies", torch.tensor(frequencies), persistent=False)
        self.time_embed = nn.Sequential(
            nn.Linear(2 * time_features, TIME_WIDTH),
            nn.GELU(),
            nn.Linear(TIME_WIDTH, TIME_WIDTH),
            nn.GELU(),
            nn.Linear(TIME_WIDTH, TIME_WIDTH),
            nn.GELU(),
            nn.Linear(TIME_WIDTH, widths[0]),
        )

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x (B, channels, height, width) floating, t (B,) integer in [0, n_steps) -> as x.

        The network sees the time (t + 1) / n_steps, in (0, 1]. Raises ValueError for an x of another shape.
        """
        if x.shape[1:] != self.shape:
            raise _checks.bad_value("x", x, f"a (batch, {', '.join(map(str, self.shape))}) tensor")
        angles = ((t + 1) / self.n_steps).unsqueeze(-1) * self.get_buffer("frequencies")
        features = torch.cat([torch.sin(angles), torch.cos(angles) - 1], dim=-1)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.precision == "bfloat16"):
            time = self.time_embed(features)[:, :, None, None]
            first, *others = self.blocks
            h = first(x) + time
            for block in others:
                h = block(h)
            return self.last(h).to(x.dtype)


class _Block(nn.Module):
    """Convolution, layer norm, GELU."""

    def __init__(self, n_in: int, n_out: int, kernel_size: int, size: tuple[int, int], norm: str) -> None:
        super().__init__()
        self.conv = nn.Conv2d(n_in, n_out, kernel_size, padding=kernel_size // 2)
        self.norm = nn.LayerNorm((n_out, *size) if norm == "image" else size)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(self.norm(self.conv(x)))


def _integers(name: str, value: Any, counts: Sequence[int], high: int) -> list[int]:
    accepted = f"a sequence of {counts[0]}{f' to {counts[-1]}' * (len(counts) > 1)} integers from 1 to {high}"
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise _checks.bad_type(name, value, accepted)
    if len(value) not in counts:
        raise _checks.bad_value(name, value, accepted)
    return [_checks.integer(f"{name}[{i}]", number, 1, high) for i, number in enumerate(value)]
