"""torch.set_default_dtype and torch.set_default_device: samples and noise are the same with any of them."""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from samplers import N_CLASSES, SCHEDULE, make_model
from torch import Tensor, nn

import diffusion_fast as df


@pytest.fixture(params=["float64", "meta"])
def torch_default(request: pytest.FixtureRequest) -> Iterator[None]:
    """Not what a new tensor has without it: of another dtype, or without memory."""
    if request.param == "float64":
        torch.set_default_dtype(torch.float64)
    else:
        torch.set_default_device("meta")
    yield
    torch.set_default_dtype(torch.float32)
    torch.set_default_device(None)


BACKENDS = ("native", "torch")


class WithContext(nn.Module):
    """With a layer norm, a chunk and a pad, which capture follows by indices."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(6, 8), nn.GroupNorm(2, 8), nn.Linear(5, 3)

    def forward(self, x: Tensor, t: Tensor, context: Tensor) -> Tensor:
        a, b = self.norm(self.first(torch.cat([x, context, t.float()[:, None] / 10], dim=1))).chunk(2, dim=1)
        return self.last(nn.functional.pad(a * torch.sigmoid(b), (0, 1)))


MODELS: dict[str, tuple[nn.Module, dict[str, Any]]] = {
    "plain": (make_model(), {}),
    "classes": (make_model(N_CLASSES), {"guidance_scale": 2.0}),
    "scalar time": (df.models.MLPDenoiser(3, (8,), time_embedding="scalar", n_steps=50).eval(), {}),
    "context": (
        WithContext().eval(),
        {"shape": 3, "context_shape": 2, "null_context": 0.5, "guidance_scale": 2.0},
    ),
    "continuous time": (
        WithContext().eval(),
        {"solver": "ddim", "shape": 3, "context_shape": 2, "time_input": "log_sigma/4"},
    ),
}


def drawn(name: str, backend: str) -> list[Tensor]:
    model, options = MODELS[name]
    options = {"backend": backend, "steps": 4} | options
    sampler = df.Sampler(model, SCHEDULE, **options)
    how: dict[str, Any] = {}
    if "context_shape" in options:
        how["context"] = torch.ones(2, dtype=torch.float32, device="cpu")
    if sampler.n_classes:
        how["labels"] = 1
    whole = sampler.sample(9, seed=1, return_trajectory=True, **how)
    return [whole, *sampler.stream(9, 5, seed=1, **how)]


@functools.cache
def expected(name: str, backend: str) -> list[Tensor]:
    return drawn(name, backend)


@pytest.fixture
def wanted(name: str, backend: str) -> list[Tensor]:
    """Asked for before torch_default, so drawn without it."""
    return expected(name, backend)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", MODELS)
def test_samples_are_the_same(name: str, backend: str, wanted: list[Tensor], torch_default: None) -> None:
    for got, want in zip(drawn(name, backend), wanted, strict=True):
        assert torch.equal(got, want)


SAMPLES = df.sample(MODELS["plain"][0], SCHEDULE, 9, seed=1, steps=4, backend="native")
NOISE = df.noise.normal(5, 3, seed=1, step=2)


def test_sample_is_the_same(torch_default: None) -> None:
    model, options = MODELS["plain"][0], {"seed": 1, "steps": 4, "backend": "native"}
    assert torch.equal(df.sample(model, SCHEDULE, 9, **options), SAMPLES)


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    path = tmp_path / "x.safetensors"
    df.save(path, make_model(), SCHEDULE, df.Standardiser([0.0, 1.0, 2.0], [1.0, 2.0, 3.0]))
    return path


def test_a_checkpoint_is_the_same(checkpoint: Path, torch_default: None) -> None:
    back = df.load(checkpoint)
    assert torch.equal(back.sampler(steps=4).sample(9, seed=1), back.standardiser.inverse(SAMPLES))


def test_noise_is_the_same(torch_default: None) -> None:
    assert torch.equal(df.noise.normal(5, 3, seed=1, step=2), NOISE)
    assert torch.equal(df.noise.normal_ref(5, 3, seed=1, step=2), NOISE)
