"""SVDD-PM: one candidate is plain sampling, many follow the law aimed at, and what a reward may be."""

from __future__ import annotations

import math
import re
from typing import Any

import numpy as np
import pytest
import torch
from bad_input import SCHEDULE, net
from torch import Tensor, nn

import diffusion_fast as df
from diffusion_fast.svdd import choose

STEPS = 60
LONG = df.NoiseSchedule.cosine(STEPS)


class ExactNormal(nn.Module):
    """E[eps | x_t] for data N(0, 0.25) in one dimension."""

    variance = 0.25

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(1))
        abar = LONG.alphas_cumprod
        slope = (1 - abar).sqrt() / (abar * self.variance + 1 - abar)
        self.register_buffer("slope", slope.float())

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.weight * self.slope[t][:, None] * x


def linear(rows: Tensor) -> Tensor:
    return rows[:, 0]


def test_choices_follow_the_softmax() -> None:
    """20,000 choices among values that ties and large numbers would upset; 4.5 standard errors."""
    value = torch.tensor([1000.0, 1000.3, 1000.3, 999.0, 0.0], dtype=torch.float64)[:, None].expand(5, 20_000)
    uniform = torch.rand(20_000, dtype=torch.float64)
    shares = torch.bincount(choose(value, 0.5, uniform), minlength=5) / 20_000
    expected = torch.softmax(torch.tensor([0.0, 0.6, 0.6, -2.0, -2000.0]), dim=0)
    assert bool(((shares - expected).abs() <= 4.5 * (expected / 20_000).sqrt() + 1e-9).all())
    assert set(choose(value, 0.0, uniform).tolist()) == {1}
    assert choose(value[:, :2], 0.5, torch.tensor([1.0 - 1e-16, 1e-300], dtype=torch.float64)).tolist() == [
        3,
        0,
    ]


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("variance", ["beta", "posterior"])
def test_one_candidate_is_ancestral_sampling(backend: str, variance: str) -> None:
    model = net()
    one = df.SVDDSampler(model, SCHEDULE, linear, alpha=0.1, candidates=1, variance=variance, backend=backend)
    x = df.Sampler(model, SCHEDULE, variance=variance, backend="native").sample(500, seed=3, start=7)
    torch.testing.assert_close(one.sample(500, seed=3, start=7), x, rtol=1e-4, atol=1e-4)


def test_a_chain_by_hand() -> None:
    """Algorithm 1 in float64; candidate m takes the noise of substream m, the choice that of substream M."""
    model, m, alpha = net(3), 4, 0.3
    sampler = df.SVDDSampler(model, SCHEDULE, lambda rows: (rows**2).sum(1), alpha=alpha, candidates=m)
    betas, abar = SCHEDULE.betas, SCHEDULE.alphas_cumprod
    n, null = 200, torch.full((200,), 3)

    def clean(x: Tensor, t: int) -> Tensor:
        with torch.no_grad():
            eps = model(x.float(), torch.full((n,), t), null).double()
        return (x - (1 - abar[t]).sqrt() * eps) / abar[t].sqrt()

    def choice(drawn: list[Tensor], t: int, **stream: Any) -> Tensor:
        value = torch.stack([(clean(each, t) ** 2).sum(1) for each in drawn])
        z = df.noise.normal(n, 1, seed=1, substream=m, **stream)[:, 0].double()
        uniform = 0.5 * (1 + torch.erf(z / math.sqrt(2)))
        order = (torch.softmax(value / alpha, 0).cumsum(0) < uniform).sum(0).clamp_max(m - 1)
        return torch.stack(drawn)[order, torch.arange(n)]

    first: dict[str, Any] = {"step": 0, "purpose": "initial"}
    starts = [df.noise.normal(n, 2, seed=1, substream=k, **first).double() for k in range(m)]
    x = choice(starts, len(SCHEDULE) - 1, **first)
    for row, t in enumerate(reversed(range(len(SCHEDULE)))):
        if t == 0:
            x = clean(x, 0)
            break
        mean = (
            betas[t] * abar[t - 1].sqrt() * clean(x, t) + (1 - abar[t - 1]) * (1 - betas[t]).sqrt() * x
        ) / (1 - abar[t])
        sigma = (betas[t] * (1 - abar[t - 1]) / (1 - abar[t])).sqrt()
        drawn = [mean + sigma * df.noise.normal(n, 2, seed=1, step=row, substream=k) for k in range(m)]
        x = choice(drawn, t - 1, step=row)
    apart = (sampler.sample(n, seed=1) - x).abs().amax(1)
    assert (
        float((apart < 1e-3).float().mean()) > 0.98
    )  # a choice may fall the other way where shares nearly tie


def test_the_law_is_the_tilted_one() -> None:
    """Data N(0, v), r(x) = x: p exp(r / alpha) is N(v / alpha, v). For a linear reward the posterior mean
    gives the soft value but for a constant, so that only the number of candidates is approximate."""
    sampler = df.SVDDSampler(
        ExactNormal().eval(),
        LONG,
        linear,
        alpha=0.5,
        candidates=50,
        shape=1,
        variance="beta",
        backend="native",
    )
    x = sampler.sample(4000, seed=2)[:, 0].double()
    shift = ExactNormal.variance / 0.5
    assert float(x.mean()) == pytest.approx(shift, abs=0.06)  # 0.008 is the standard error
    assert float(x.std()) == pytest.approx(math.sqrt(ExactNormal.variance), rel=0.1)
    opposite = df.SVDDSampler(
        ExactNormal().eval(),
        LONG,
        lambda rows: -rows[:, 0],
        alpha=0.5,
        candidates=50,
        shape=1,
        variance="beta",
    )
    assert float(opposite.sample(1000, seed=2).mean()) == pytest.approx(-shift, abs=0.1)


def half_normal_value(x: Tensor, t: int) -> Tensor:
    """log P(x0 > 0 | x_t), the soft value of the reward log 1[x0 > 0], for ExactNormal."""
    abar, v = LONG.alphas_cumprod[t], ExactNormal.variance
    total = abar * v + 1 - abar
    mean, deviation = abar.sqrt() * v / total * x[:, 0], (v * (1 - abar) / total).sqrt()
    return torch.special.log_ndtr(mean / deviation)


def test_a_soft_value_of_noisy_rows_gives_its_law() -> None:
    """Of N(0, v) the positive half, of mean sqrt(2 v / pi) and variance (1 - 2 / pi) v."""
    how: dict[str, Any] = {"alpha": 1.0, "candidates": 50, "shape": 1, "variance": "beta"}
    sampler = df.SVDDSampler(ExactNormal().eval(), LONG, value=half_normal_value, **how)
    x, v = sampler.sample(4000, seed=2)[:, 0].double(), ExactNormal.variance
    assert float((x > 0).double().mean()) > 0.97
    assert float(x.mean()) == pytest.approx(math.sqrt(2 * v / math.pi), rel=0.04)
    assert float(x.std()) == pytest.approx(math.sqrt((1 - 2 / math.pi) * v), rel=0.06)


def test_samples_do_not_depend_on_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler = df.SVDDSampler(net(), SCHEDULE, linear, alpha=0.2, candidates=5, backend="native")
    x = sampler.sample(300, seed=4, start=10)
    assert torch.equal(sampler.sample(100, seed=4, start=110), x[100:200])
    assert not torch.equal(sampler.sample(300, seed=5, start=10), x)
    monkeypatch.setattr("diffusion_fast.svdd.CANDIDATE_ROWS", 64)
    assert torch.equal(sampler.sample(300, seed=4, start=10), x)
    given = df.noise.normal(300, 2, seed=4, step=0, purpose="initial", start=10)
    x = sampler.sample(300, seed=4, start=10, x_T=given)
    assert torch.equal(sampler.sample(100, seed=4, start=110, x_T=given[100:200]), x[100:200])
    assert sampler.sample(0).shape == (0, 2)


def test_the_reward_sees_the_data_s_own_units() -> None:
    scale, seen = df.Standardiser([100.0, -5.0], [10.0, 0.1]), []

    def reward(rows: Tensor) -> np.ndarray:
        seen.append(rows)
        return scale.transform(rows)[:, 0].numpy()

    own = df.SVDDSampler(net(), SCHEDULE, reward, alpha=0.2, candidates=3, standardiser=scale)
    plain = df.SVDDSampler(net(), SCHEDULE, linear, alpha=0.2, candidates=3)
    x = plain.sample(50, seed=1)
    torch.testing.assert_close(own.sample(50, seed=1), scale.inverse(x), rtol=1e-4, atol=1e-3)
    assert seen[0].shape == (150, 2) and len(seen) == len(SCHEDULE)


def test_a_reward_may_write_to_its_rows() -> None:
    def careless(rows: Tensor) -> Tensor:
        value = rows[:, 0].clone()
        rows.zero_()
        return value

    how: dict[str, Any] = {"alpha": 0.2, "candidates": 3}
    x = df.SVDDSampler(net(), SCHEDULE, linear, **how).sample(50)
    assert torch.equal(df.SVDDSampler(net(), SCHEDULE, careless, **how).sample(50), x)


def sampled(reward: Any) -> Tensor:
    return df.SVDDSampler(net(), SCHEDULE, reward, alpha=0.1, candidates=2).sample(3)


BAD = {
    "reward": (lambda: df.SVDDSampler(net(), SCHEDULE, None, alpha=0.1), "reward: got None"),  # type: ignore[arg-type]
    "alpha": (lambda: df.SVDDSampler(net(), SCHEDULE, linear, alpha=-1.0), "alpha: got -1.0"),
    "alpha nan": (lambda: df.SVDDSampler(net(), SCHEDULE, linear, alpha=math.nan), "alpha: got nan"),
    "candidates": (
        lambda: df.SVDDSampler(net(), SCHEDULE, linear, alpha=1, candidates=1 << 16),
        "candidates: got",
    ),
    "variance": (
        lambda: df.SVDDSampler(net(), SCHEDULE, linear, alpha=1, variance="none"),
        "variance: got 'none'",
    ),
    "option": (lambda: df.SVDDSampler(net(), SCHEDULE, linear, alpha=1, eta=1.0), "unknown option 'eta'"),
    "standardiser": (
        lambda: df.SVDDSampler(net(), SCHEDULE, linear, alpha=1, standardiser=df.Standardiser([0.0], [1.0])),
        "standardiser: got '1 columns'",
    ),
    "both": (
        lambda: df.SVDDSampler(net(), SCHEDULE, linear, alpha=0.1, value=half_normal_value),
        "reward: got .*accepted: None beside a value",
    ),
    "value": (lambda: df.SVDDSampler(net(), SCHEDULE, alpha=0.1, value=3), "value: got 3"),  # type: ignore[arg-type]
    "value's nan": (
        lambda: df.SVDDSampler(
            net(), SCHEDULE, alpha=0.1, value=lambda rows, t: rows[:, 0] * math.nan, candidates=2
        ).sample(3),
        "value: got nan",
    ),
    "reward's shape": (
        lambda: sampled(lambda rows: rows),
        r"reward: got .*accepted: one that returns \(6,\)",
    ),
    "reward's type": (lambda: sampled(lambda rows: 1.0), "reward: got 1.0"),
    "reward's integers": (lambda: sampled(lambda rows: rows[:, 0].long()), "reward: got a torch.int64"),
    "reward's nan": (lambda: sampled(lambda rows: rows[:, 0] * math.nan), "reward: got nan"),
    "x_T": (
        lambda: df.SVDDSampler(net(), SCHEDULE, linear, alpha=1).sample(3, x_T=torch.zeros(2, 2)),
        "x_T: got",
    ),
    "n": (lambda: df.SVDDSampler(net(), SCHEDULE, linear, alpha=1).sample(-1), "n: got -1"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    call, message = BAD[name]
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    assert re.search(message, str(caught.value)), str(caught.value)
