"""Stand-ins for lucidrains' classes and the published algorithms in float64, for test_lucidrains.py."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffusion_fast import _checks, noise
from diffusion_fast.integrations import lucidrains

T = 40
N = 50
SHAPE = (2, 3)  # channels and length; an image is 2 x 3 x 3


class MLP(nn.Module):
    """What the library asks of a network: channels, out_dim, self_condition; x0 of the last step beside x."""

    n_classes = 5  # means nothing here

    def __init__(self, *, size: int, self_condition: bool = False) -> None:
        super().__init__()
        self.channels = self.out_dim = SHAPE[0]
        self.self_condition = self_condition
        self.time = nn.Embedding(T, 4)
        self.first = nn.Linear(size * (1 + self_condition) + 4, 16)
        self.last = nn.Linear(16, size)

    def forward(
        self, x: Tensor, t: Tensor, x_self_cond: Tensor | None = None, shift: Tensor | None = None
    ) -> Tensor:
        parts = [x.flatten(1), self.time(t)]
        if self.self_condition:
            parts.append(torch.zeros_like(parts[0]) if x_self_cond is None else x_self_cond.flatten(1))
        out = self.last(nn.functional.silu(self.first(torch.cat(parts, dim=1)))).reshape(x.shape)
        return out if shift is None else out + shift[:, None, None]


def unused(self: Any, *args: Any, **kwargs: Any) -> Any:
    raise AssertionError("the library's own code ran")


def sample_images(self: Any, batch_size: int = 16, return_all_timesteps: bool = False) -> Any:
    return "the library's own sample"


def sample_sequences(
    self: Any, batch_size: int = 16, return_noise: bool = False, model_forward_kwargs: Any = None
) -> Any:
    return "the library's own sample"


def diffusion_class(name: str, sample: Callable[..., Any]) -> type[nn.Module]:
    methods = {method: unused for method in lucidrains._METHODS if method != "sample"}
    return type(name, (nn.Module,), methods | {"sample": sample})


IMAGES = diffusion_class("GaussianDiffusion", sample_images)
SEQUENCES = diffusion_class("GaussianDiffusion1D", sample_sequences)


def make(kind: str = "sequences", *, self_condition: bool = False, **settings: Any) -> Any:
    """A diffusion without the library; kind "images", "sequences" or "channels last"."""
    images = kind == "images"
    torch.manual_seed(1)
    d: Any = (IMAGES if images else SEQUENCES)()
    d.model = MLP(size=18 if images else 6, self_condition=self_condition)
    given = {"objective": "pred_noise", "sampling_timesteps": T, "ddim_sampling_eta": 0.0} | settings
    d.__dict__.update(given, channels=2, num_timesteps=T, self_condition=self_condition)
    d.__dict__.update({"image_size": (3, 3)} if images else {"seq_length": 3})
    d.channel_first = kind != "channels last"
    d.is_ddim_sampling = d.sampling_timesteps < T
    d.unnormalize = lambda x: (x + 1) / 2
    u = torch.linspace(0, 1, T + 1, dtype=torch.float64)
    angle = torch.cos((u + 0.008) / 1.008 * torch.pi / 2) ** 2
    betas = (1 - angle[1:] / angle[:-1]).clamp(0, 0.999)
    d.register_buffer("betas", betas.float())
    d.register_buffer("alphas_cumprod", (1 - betas).cumprod(0).float())
    d.exact_betas = betas.numpy()
    return d.eval()


def float64_loop(d: Any, x: Tensor, z: Callable[[int], Tensor], **kwargs: Any) -> list[Tensor]:
    """Ho et al. 2020, Algorithm 2, or Song et al. 2020, eq. 12, with x0 clamped: all states, normalised."""
    model = copy.deepcopy(d.model).double()
    abar = np.append(np.cumprod(1 - d.exact_betas), 1.0)  # abar[-1] is that of the data
    times = list(range(T - 1, -1, -1))
    if d.is_ddim_sampling:
        times = torch.linspace(-1, T - 1, d.sampling_timesteps + 1).int().tolist()[:0:-1]
    states, x0 = [x.double()], None
    for k, (t, t_next) in enumerate(zip(times, [*times[1:], -1], strict=True)):
        x = states[-1]
        extra = {"x_self_cond": x0} if d.self_condition and x0 is not None else {}
        F = model(x, torch.full((len(x),), t), **extra, **kwargs).detach()
        signal, sigma = np.sqrt(abar[t]), np.sqrt(1 - abar[t])
        x0 = {
            "pred_noise": (x - sigma * F) / signal,
            "pred_x0": F,
            "pred_v": signal * x - sigma * F,
        }[d.objective].clamp(-1, 1)
        beta, below = 1 - abar[t] / abar[t_next], 1 - abar[t_next]
        variance = beta * below / (1 - abar[t])
        draw = z(k).double() if t_next >= 0 else 0.0
        if d.is_ddim_sampling:
            keeps = type(d) is SEQUENCES and d.objective == "pred_noise"
            epsilon = F if keeps else (x - signal * x0) / sigma
            s = d.ddim_sampling_eta * np.sqrt(variance)
            states.append(np.sqrt(abar[t_next]) * x0 + np.sqrt(below - s**2) * epsilon + s * draw)
        else:
            mean = np.sqrt(abar[t_next]) * beta * x0 + np.sqrt(abar[t] / abar[t_next]) * below * x
            states.append(mean / (1 - abar[t]) + np.sqrt(variance) * draw)
    return states


def stream(seed: int, shape: tuple[int, ...]) -> tuple[Tensor, Callable[[int], Tensor]]:
    """The start and the noise of step k, for torch.manual_seed(seed) before the call."""
    torch.manual_seed(seed)
    key = _checks.seed("seed", torch.default_generator)
    torch.manual_seed(seed)
    n, dim = shape[0], int(np.prod(shape[1:]))
    start = noise.normal(n, dim, seed=key, step=0, purpose="initial").view(shape)
    return start, lambda k: noise.normal(n, dim, seed=key, step=k).view(shape)


def assert_close(ours: Tensor, theirs: Tensor, share: float = 1e-4) -> None:
    assert ours.shape == theirs.shape and ours.dtype is torch.float32
    rms = theirs.double().square().mean().sqrt().item()
    torch.testing.assert_close(ours.double(), theirs.double(), rtol=0, atol=share * rms)
