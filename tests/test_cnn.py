"""The convolutional denoiser, its training by epochs, and the published weights in it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

import diffusion_fast as df
from diffusion_fast.image_training import EpochTrainer, gaussian
from diffusion_fast.models import CNNDenoiser
from diffusion_fast.systems.published_e import (
    SET_1,
    SET_2,
    WEIGHTS_FILE,
    folded,
    load_published,
    report_schedule,
)

SMALL = {"n_hidden": (4, 6, 5), "n_steps": 20, "image_shape": (2, 8, 9), "kernel_size": 5}


@pytest.mark.parametrize(
    ("n_hidden", "norm", "count"),
    [
        ((16, 32, 32, 16), "channel", 146_961),
        (SET_1.n_hidden, "image", 745_889),
        (SET_2.n_hidden, "image", 1_548_833),
    ],
)
def test_the_networks_have_the_published_numbers_of_weights(n_hidden: Any, norm: str, count: int) -> None:
    assert sum(p.numel() for p in CNNDenoiser(n_hidden, norm=norm).parameters()) == count


def by_hand(model: CNNDenoiser, x: Tensor, t: Tensor) -> Tensor:
    """The network of the report from its description, in float64."""
    w = {name: value.double() for name, value in model.state_dict().items()}
    u = (t.double() + 1) / model.n_steps
    angles = u[:, None] * torch.tensor([0.0] + [2 * math.pi * 1.5**i for i in range(15)]).double()
    h = torch.cat([angles.sin(), angles.cos() - 1], 1)
    for layer in (0, 2, 4):
        h = F.gelu(h @ w[f"time_embed.{layer}.weight"].T + w[f"time_embed.{layer}.bias"])
    time = h @ w["time_embed.6.weight"].T + w["time_embed.6.bias"]
    x = x.double()
    for block in range(len(model.blocks)):
        x = F.conv2d(x, w[f"blocks.{block}.conv.weight"], w[f"blocks.{block}.conv.bias"], padding="same")
        over = (1, 2, 3) if model.config["norm"] == "image" else (2, 3)
        x = (x - x.mean(over, keepdim=True)) / (x.var(over, keepdim=True, correction=0) + 1e-5).sqrt()
        x = F.gelu(x * w[f"blocks.{block}.norm.weight"] + w[f"blocks.{block}.norm.bias"])
        if block == 0:
            x = x + time[:, :, None, None]
    return F.conv2d(x, w["last.weight"], w["last.bias"], padding="same")


@pytest.mark.parametrize("norm", ["image", "channel"])
def test_the_network_is_the_reports(norm: str) -> None:
    model = CNNDenoiser(**SMALL, norm=norm).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x, t = torch.randn(3, 2, 8, 9), torch.tensor([0, 7, 19])
    wanted = by_hand(model, x, t)
    with torch.no_grad():
        torch.testing.assert_close(model(x, t).double(), wanted, rtol=1e-4, atol=1e-4)
        half = CNNDenoiser(**SMALL, norm=norm, precision="bfloat16")
        half.load_state_dict(model.state_dict())
        out = half(x, t)
    assert out.dtype == torch.float32
    error = float((out - wanted).std() / wanted.std())
    assert 1e-4 < error < 0.05  # products in bfloat16, but no worse


@pytest.mark.parametrize(
    ("options", "error", "named"),
    [
        ({"kernel_size": 4}, ValueError, "kernel_size: got 4 .*odd"),
        ({"last_kernel_size": 0}, ValueError, "last_kernel_size: got 0"),
        ({"n_hidden": ()}, ValueError, r"n_hidden: got \(\)"),
        ({"n_hidden": 3}, TypeError, "n_hidden: got 3"),
        ({"n_hidden": (3, 0)}, ValueError, r"n_hidden\[1\]: got 0"),
        ({"image_shape": (28, 28)}, ValueError, "image_shape: .*sequence of 3 "),
        ({"norm": "batch"}, ValueError, "norm: got 'batch'"),
        ({"precision": "float16"}, ValueError, "precision: got 'float16'"),
        ({"n_steps": 0}, ValueError, "n_steps: got 0"),
    ],
)
def test_arguments_are_refused(options: dict[str, Any], error: type[Exception], named: str) -> None:
    with pytest.raises(error, match=named):
        CNNDenoiser(**options)


def test_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match=r"x: got .*\(3, 1, 28, 28\).*\(batch, 2, 8, 9\)"):
        CNNDenoiser(**SMALL)(torch.zeros(3, 1, 28, 28), torch.zeros(3, dtype=torch.int64))


# ---- the report's chain


def published_chain(eps: Any, betas: np.ndarray, z: np.ndarray, noise: np.ndarray) -> list[np.ndarray]:
    """The report's sampler, with its T + 1 betas: the states after each step, in float64."""
    alpha, T = np.cumprod(1 - betas), len(betas) - 1
    states = []
    for k, i in enumerate(range(T, 0, -1)):
        z = (z - betas[i] / np.sqrt(1 - alpha[i]) * eps(z, i / T)) / np.sqrt(1 - betas[i])
        z = z + np.sqrt(betas[i]) * noise[k] if i > 1 else z
        states.append(z)
    return states


class Recorded(torch.nn.Module):
    """Some function of x and of the time that the network of T steps sees at an index."""

    def __init__(self, n_steps: int) -> None:
        super().__init__()
        self.n_steps, self.weight = n_steps, torch.nn.Parameter(torch.ones(1))

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.weight * torch.tanh(x + ((t + 1) / self.n_steps).view(-1, 1, 1, 1))


def test_the_chain_is_the_reports() -> None:
    T = 40
    betas = np.linspace(1e-3, 0.2, T + 1)
    schedule = folded(torch.from_numpy(betas))
    assert len(schedule) == T
    np.testing.assert_allclose(schedule.alphas_cumprod, np.cumprod(1 - betas)[1:], rtol=1e-12)
    sampler = df.Sampler(Recorded(T).eval(), schedule, shape=(1, 3, 3), variance="beta")
    x_T, noise = torch.randn(4, 1, 3, 3), torch.randn(T, 4, 1, 3, 3)
    found = sampler.sample(4, x_T=x_T, noise=noise, return_trajectory=True).double().numpy()
    wanted = published_chain(lambda z, u: np.tanh(z + u), betas, x_T.double().numpy(), noise.double().numpy())
    np.testing.assert_allclose(found[1:-1], wanted[:-1], rtol=2e-5, atol=2e-5)
    # The last step goes on from an abar of 1 - beta_0 to the data: a difference, and of that order.
    assert 1e-5 < np.abs(found[-1] - wanted[-1]).max() < 0.05


def test_the_schedules_end_where_the_reports_do() -> None:
    first, second = report_schedule(SET_1), report_schedule(SET_2)
    assert (len(first), len(second)) == (1000, 2000)
    assert float(first.alphas_cumprod[-1]) == pytest.approx(4.0e-5, rel=0.02)
    assert float(second.alphas_cumprod[-1]) == pytest.approx(4.3e-5, rel=0.02)


# ---- published weights


def published_file(path: Path, **changed: Any) -> Path:
    """A small network in the layout of the published file."""
    model, arrays = CNNDenoiser((3, 4), 10), {"beta_t": np.linspace(1e-4, 0.02, 11, dtype=np.float32)}
    for name, value in model.state_dict().items():
        theirs = name.replace(".conv.", ".net.0.").replace(".norm.", ".net.1.").replace("last.", "blocks.2.")
        arrays[f"gt.{theirs}"] = value.numpy()
    arrays["gt.frequencies"] = model.frequencies.numpy()
    arrays = {name: value for name, value in (arrays | changed).items() if value is not None}
    np.savez(path, **arrays)
    return path


def test_weights_in_the_published_layout_are_read(tmp_path: Path) -> None:
    model, schedule = load_published(published_file(tmp_path / WEIGHTS_FILE))
    assert model.config["n_hidden"] == [3, 4] and model.n_steps == len(schedule) == 10
    assert not model.training


@pytest.mark.parametrize(
    ("changed", "named"),
    [
        ({"beta_t": None}, "beta_t"),
        ({"gt.blocks.1.net.0.weight": None}, "blocks.1.conv.weight"),
        ({"gt.blocks.1.net.1.bias": np.zeros(3, np.float32)}, "blocks.1.norm.bias"),
        ({"gt.frequencies": None}, "frequencies"),
        ({"gt.blocks.2.bias": np.full(1, np.nan, np.float32)}, "last.bias"),
        ({"beta_t": np.full(11, -0.1)}, "betas"),
    ],
)
def test_other_weights_are_refused(tmp_path: Path, changed: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match=f"path: .*{named}"):
        load_published(published_file(tmp_path / "w.npz", **changed))


def test_what_is_no_file_of_weights_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no file; accepted: an \.npz"):
        load_published(tmp_path / "none.npz")
    (tmp_path / "text.npz").write_text("weights")
    with pytest.raises(ValueError, match="no archive"):
        load_published(tmp_path / "text.npz")
    with pytest.raises(TypeError, match="path: got 3"):
        load_published(3)  # type: ignore[arg-type]


def test_the_published_weights_know_digits(test_data: Path) -> None:
    """At a middle level of noise the error is far below that of an answer that knows nothing of digits."""
    model, schedule = load_published(test_data / "system_e" / WEIGHTS_FILE)
    images = torch.from_numpy(df.datasets.mnist(test_data / "mnist").standardised_test[:32]).view(
        -1, 1, 28, 28
    )
    torch.testing.assert_close(schedule.betas, report_schedule(SET_1).betas, rtol=1e-5, atol=1e-9)
    t = torch.full((32,), 300)
    abar = schedule.alphas_cumprod[300].float()
    eps = torch.randn(images.shape)
    with torch.no_grad():
        error = (model(abar.sqrt() * images + (1 - abar).sqrt() * eps, t) - eps).square().mean()
    assert float(error) < 0.03  # the best affine guess of each pixel leaves about 0.15


# ---- training by epochs


def trainer(seed: int = 0) -> EpochTrainer:
    torch.set_num_threads(1)  # images so small leave nothing to a second thread
    torch.manual_seed(1)
    model = CNNDenoiser((4,), 20, image_shape=(1, 6, 6), kernel_size=3)
    corrupt = gaussian(df.NoiseSchedule.linear(20, beta_end=0.4))
    return EpochTrainer(model, corrupt, F.mse_loss, lr=3e-3, batch_size=16, seed=seed)


def test_training_goes_on_as_if_it_had_not_been_interrupted() -> None:
    images = torch.randn(70, 1, 6, 6)
    whole, first, second = trainer(), trainer(), trainer()
    losses = [whole.epoch(images) for _ in range(3)]
    assert all(part.shape == (4,) for part in losses)  # the last, partial batch is left out
    assert torch.equal(first.epoch(images), losses[0])
    second.model.load_state_dict(first.model.state_dict())
    second.restore({**first.state(), "else": torch.zeros(1)})
    assert torch.equal(second.epoch(images), losses[1]) and torch.equal(second.epoch(images), losses[2])
    assert not torch.equal(trainer(seed=1).epoch(images), losses[0])


def test_training_learns_and_measures_held_out_images() -> None:
    images = 0.3 * torch.ones(96, 1, 6, 6)
    run = trainer()
    before = run.held_out(images)
    losses = torch.stack([run.epoch(images).mean() for _ in range(12)])
    assert losses[-1] < 0.5 * losses[0]
    assert run.held_out(images) < 0.5 * before and run.held_out(images) == run.held_out(images)
    assert not run.model.training


def test_a_loss_that_is_no_number_stops_training() -> None:
    with pytest.raises(FloatingPointError, match="the loss became nan in epoch 0"):
        trainer().epoch(torch.full((32, 1, 6, 6), math.nan))
