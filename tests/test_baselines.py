"""The baselines: the networks, their training loops, and what they learn of laws that are known."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch

from diffusion_fast.baselines import energy, gan, score
from diffusion_fast.models import EnergyMLP, EnergyScore
from diffusion_fast.sampler import Sampler
from diffusion_fast.sigma_schedules import SigmaSchedule

DATA = np.random.default_rng(0).standard_normal((400, 2)) * [1.0, 0.5] + [0.5, 0.0]
LANGEVIN = {"solver": "langevin", "prediction_type": "score", "backend": "native", "start_scale": 2.0}
MAKE = {energy: EnergyMLP, score: score.ScoreMLP, gan: gan.GAN}


def train(module: Any, **options: Any) -> tuple[Any, Any]:
    torch.manual_seed(0)
    model = MAKE[module](2, (16, 16))
    return model, module.train(model, DATA, progress=False, **options)


@pytest.mark.parametrize("module", MAKE)
def test_training_is_a_function_of_its_seed(module: Any) -> None:
    options = {"batch_size": 32, **({"chain_steps": 2} if module is energy else {})}
    runs = [train(module, steps=20, seed=seed, **options)[0].state_dict() for seed in (1, 1, 2)]
    same, other = (all(torch.equal(runs[0][k], run[k]) for k in run) for run in runs[1:])
    assert same and not other
    model, history = train(module, steps=250, **options)
    first = history[0] if module is gan else history
    assert len(first.train_loss) == 125 and not model.training  # a mean of every second step


def test_histories_have_means_and_validation() -> None:
    _, history = train(score, steps=205, batch_size=16, validation=DATA[:50])
    assert len(history.train_loss) == len(history.validation_loss) == 103  # the last of one step alone
    assert history.validation_loss[-1] < history.validation_loss[0]
    _, history = train(energy, steps=10, batch_size=16, chain_steps=2, validation=DATA[:50])
    assert len(history.validation_loss) == 10 and np.isfinite(history.validation_loss).all()


def test_the_score_of_a_gaussian() -> None:
    """Of N(m, S + sigma^2 I), on the points where its data lie; and Langevin samples of it."""
    model, _ = train(score, steps=1500, sigma=0.5, clip_norm=None, lr=3e-3)
    variance = torch.tensor(DATA.var(0) + 0.25, dtype=torch.float32)
    x = torch.tensor(DATA, dtype=torch.float32)
    want = (torch.tensor(DATA.mean(0), dtype=torch.float32) - x) / variance
    with torch.no_grad():
        assert float((model(x) - want).norm(dim=1).mean()) < 0.25 * float(want.norm(dim=1).mean())
    sampler = Sampler(model, SigmaSchedule([0.5]), steps=400, step_size=2e-2, **LANGEVIN)  # type: ignore[arg-type]
    drawn = sampler.sample(4000)
    np.testing.assert_allclose(drawn.std(0), variance.sqrt(), rtol=0.12)


def falling(optimizer: torch.optim.Optimizer, lr: float, k: int, steps: int) -> None:
    optimizer.param_groups[0]["lr"] = lr / 2 * (1 + math.cos(math.pi * k / steps))


def assert_same_way(start: torch.nn.Module, model: torch.nn.Module, twin: torch.nn.Module) -> None:
    """Adam turns the rounding of a gradient near 0 into a step of its own, so not each weight is compared."""
    begun, ours, theirs = (
        torch.cat([p.detach().flatten() for p in net.parameters()]) for net in (start, model, twin)
    )
    assert float((ours - theirs).norm()) < 5e-3 * float((theirs - begun).norm())


def test_the_energy_descends_its_loss_as_autograd_does() -> None:
    """As written: a difference of means, penalized, not the regression that the C++ steps are given."""
    options = {"batch_size": 32, "lr": 1e-2, "penalty": 0.05, "clip_norm": 0.1, "ema": 0.0}
    model, _ = train(energy, steps=4, chains=40, chain_steps=3, seed=7, **options)
    torch.manual_seed(0)
    twin = EnergyMLP(2, (16, 16))
    start = copy.deepcopy(twin)
    source = energy.Data(DATA, 2, 32, 7)
    chains = energy._Chains(EnergyScore(twin), source, 40, 3, 5e-3, 2.0, 0.05, "sum")
    optimizer = torch.optim.Adam(twin.parameters())
    for k in range(4):
        negative = chains.advance()
        e = twin(torch.cat([source.batches(), negative])).reshape(2, -1)
        loss = e[0].mean() - e[1].mean() + 0.05 * (e[0].square().mean() + e[1].square().mean())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.1)
        falling(optimizer, 1e-2, k, 4)
        optimizer.step()
    assert_same_way(start, model, twin)


def test_the_score_descends_its_loss_as_autograd_does() -> None:
    model, history = train(score, steps=4, batch_size=32, lr=1e-2, sigma=0.2, clip_norm=0.1, seed=7)
    torch.manual_seed(0)
    twin = score.ScoreMLP(2, (16, 16))
    start = copy.deepcopy(twin)
    source = score.Data(DATA, 2, 32, 7)
    optimizer = torch.optim.Adam(twin.parameters())
    for k in range(4):
        x = source.batches()
        w = source.normal(*x.shape)
        loss = (0.2 * twin(x + 0.2 * w) + w).square().mean()
        assert history.train_loss[k] == pytest.approx(loss.item(), rel=1e-5)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(twin.parameters(), 0.1)
        falling(optimizer, 1e-2, k, 4)
        optimizer.step()
    assert_same_way(start, model, twin)


def test_the_energy_of_a_gaussian() -> None:
    options = {"steps": 400, "batch_size": 128, "lr": 3e-3, "chain_steps": 8, "step_size": 2e-2}
    model, _ = train(energy, **options)
    sampler = Sampler(EnergyScore(model).eval(), SigmaSchedule([0.1]), steps=400, step_size=2e-2, **LANGEVIN)  # type: ignore[arg-type]
    drawn = sampler.sample(4000)
    np.testing.assert_allclose(drawn.mean(0), DATA.mean(0), atol=0.25)
    np.testing.assert_allclose(drawn.std(0), DATA.std(0), rtol=0.3)


def test_the_gradient_of_the_mean_walks_at_random() -> None:
    """With drift="mean" the negatives stay about start_scale wide, whatever the energy."""
    model = EnergyMLP(2, (8,))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(20.0)
    widths = []
    for drift in ("sum", "mean"):
        source = energy.Data(DATA, 2, 256, 0)
        chains = energy._Chains(EnergyScore(model), source, 256, 20, 5e-3, 2.0, 1.0, drift)
        start = chains.scale * energy.Data(DATA, 2, 256, 0).normal(256, 2)
        widths.append(float(chains.advance().std()))
        assert start.shape == (256, 2)
    assert widths[1] == pytest.approx((4 + 20 * 2 * 5e-3) ** 0.5, rel=0.1)
    assert widths[0] != pytest.approx(widths[1], rel=0.05)


def test_a_gan_moves_to_the_data() -> None:
    model, (generator, discriminator) = train(gan, steps=300, lr=2e-3, clip_norm=None)
    drawn = model.sample(2000, seed=1)
    assert torch.equal(drawn, model.sample(2000, seed=1))
    assert float((drawn.mean(0) - torch.tensor(DATA.mean(0))).norm()) < 0.6
    assert len(generator.train_loss) == len(discriminator.train_loss) == 100


@pytest.mark.parametrize(
    ("module", "options", "name"),
    [
        (energy, {"steps": 0}, "steps"),
        (energy, {"batch_size": 0}, "batch_size"),
        (energy, {"drift": "median"}, "drift"),
        (energy, {"restart": 1.5}, "restart"),
        (energy, {"chains": 5}, "chains"),
        (energy, {"step_size": 0.0}, "step_size"),
        (energy, {"penalty": 0.0}, "penalty"),
        (score, {"sigma": 0.0}, "sigma"),
        (score, {"clip_norm": 0.0}, "clip_norm"),
        (score, {"validation": np.zeros((3, 5))}, "data"),
        (gan, {"lr": 0.0}, "lr"),
        (gan, {"progress": 1}, "progress"),
    ],
)
def test_bad_arguments(module: Any, options: dict[str, Any], name: str) -> None:
    with pytest.raises((TypeError, ValueError), match=f"^{name}: got"):
        module.train(MAKE[module](2, (8,)), DATA, **({"progress": False} | options))


@pytest.mark.parametrize("module", MAKE)
def test_bad_models_and_data(module: Any) -> None:
    with pytest.raises(TypeError, match="accepted: a"):
        module.train(torch.nn.Linear(2, 1), DATA, progress=False)
    with pytest.raises(ValueError, match="data: got"):
        module.train(MAKE[module](3, (8,)), DATA, progress=False)
    with pytest.raises(ValueError, match="dim: got"):
        MAKE[module](0)
