"""Likelihood and bound of denoisers known in closed form, and of untrained networks by quadrature."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.distributions import MultivariateNormal

import diffusion_fast as df
from diffusion_fast.metrics import likelihood, log_density, log_likelihood, variational_bound
from diffusion_fast.models import MLPDenoiser

MEAN = torch.tensor([0.5, -1.0, 2.0], dtype=torch.float64)
MIX = torch.tensor([[1.2, 0.3, 0.0], [-0.4, 0.8, 0.2], [0.1, 0.5, 0.5]], dtype=torch.float64)
COVARIANCE = MIX @ MIX.T  # eigenvalues from 0.2 to 1.8
SHORT = df.NoiseSchedule.linear(100, 1e-4, 0.2)  # abar_T = 2e-5


@pytest.fixture(autouse=True)
def one_thread(fixed_seeds: None) -> None:
    """Thousands of tiny products: threads cost more than they save, and most on a busy machine."""
    torch.set_num_threads(1)


class Mixture(nn.Module):
    """The optimal denoiser of a mixture of Gaussians of one covariance, in closed form and float64."""

    def __init__(
        self,
        schedule: df.NoiseSchedule,
        means: Tensor = MEAN[None],
        covariance: Tensor = COVARIANCE,
        weights: Tensor | None = None,
        kind: str = "epsilon",
    ) -> None:
        super().__init__()
        self.register_buffer("abar", schedule.alphas_cumprod)
        self.means, self.covariance, self.kind = means, covariance, kind
        self.weights = torch.ones(len(means), dtype=torch.float64) if weights is None else weights
        self.train(False)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        abar = self.get_buffer("abar")[t[0]]
        signal, noise = abar.sqrt(), (1 - abar).sqrt()
        eye = torch.eye(x.shape[1], dtype=x.dtype)
        spread = abar * self.covariance + noise**2 * eye
        offsets = x[:, None] - signal * self.means  # (n, k, dim)
        solved = torch.linalg.solve(spread, offsets.flatten(0, 1).T).T.view_as(offsets)
        share = torch.softmax(self.weights.log() - 0.5 * (offsets * solved).sum(-1), dim=1)
        x0 = (share[..., None] * (self.means + signal * solved @ self.covariance)).sum(1)
        epsilon = (x - signal * x0) / noise
        return {"epsilon": epsilon, "sample": x0, "v_prediction": signal * epsilon - noise * x0}[self.kind]


def gaussian_rows(n: int) -> Tensor:
    return MultivariateNormal(MEAN, COVARIANCE).sample((n,))


def root(matrix: Tensor, power: float) -> Tensor:
    values, vectors = torch.linalg.eigh(matrix)
    return vectors @ torch.diag(values**power) @ vectors.T


def exact_flow(schedule: df.NoiseSchedule, x: Tensor) -> np.ndarray:
    """log p under the exact flow of the Gaussian, which maps it to that at abar_T, and N(0, I) there.

    The flow is affine: each level's standard coordinates stay as they are.
    """
    abar = float(schedule.alphas_cumprod[-1])
    eye = torch.eye(3, dtype=torch.float64)
    last = abar * COVARIANCE + (1 - abar) * eye
    end = math.sqrt(abar) * MEAN + (x - MEAN) @ root(COVARIANCE, -0.5) @ root(last, 0.5)
    change = 0.5 * (torch.logdet(last) - torch.logdet(COVARIANCE))
    return (MultivariateNormal(torch.zeros_like(MEAN), eye).log_prob(end) + change).numpy()


# ---- the exact likelihood


@pytest.mark.parametrize(
    ("schedule", "error"),
    [
        (SHORT, 2e-4),
        (df.NoiseSchedule.linear(100, 1e-5, 0.0128), 1e-6),  # abar_T = 0.53: far from the prior
        (df.NoiseSchedule.linear(101, 1e-5, 0.0128), 1e-6),  # odd, which has a step of its own
        (df.NoiseSchedule.cosine(100), 1e-4),
        (df.NoiseSchedule.warmup50(100, 1e-5, 0.0128), 1e-5),
    ],
    ids=["linear", "100", "101", "cosine", "kink"],
)
def test_density_of_a_gaussian(schedule, error):
    x = gaussian_rows(20)
    np.testing.assert_allclose(
        log_density(Mixture(schedule), schedule, x), exact_flow(schedule, x), atol=error
    )


def test_density_is_that_of_the_data_where_no_signal_is_left():
    """abar_T = 4e-5: the flow's mismatch with the prior is about |MEAN| |x| sqrt(abar_T), 0.02 at a row."""
    x = gaussian_rows(200)
    true = MultivariateNormal(MEAN, COVARIANCE).log_prob(x).numpy()
    result = log_likelihood(Mixture(SHORT), SHORT, x)
    assert result.value == pytest.approx(true.mean(), abs=5e-3)
    assert result.spread == pytest.approx(true.std(ddof=1) / math.sqrt(200), rel=0.01)
    assert math.isnan(result.floor)
    assert result.n == (200, 200)


@pytest.mark.parametrize("kind", ["sample", "v_prediction"])
def test_density_from_every_prediction(kind):
    x = gaussian_rows(5)
    expected = log_density(Mixture(SHORT), SHORT, x)
    found = log_density(Mixture(SHORT, kind=kind), SHORT, x, prediction_type=kind)
    np.testing.assert_allclose(found, expected, atol=1e-9)


def test_density_with_zero_terminal_snr():
    schedule = SHORT.zero_terminal_snr()
    x = gaussian_rows(20)
    found = log_density(Mixture(schedule, kind="sample"), schedule, x, prediction_type="sample")
    expected = MultivariateNormal(MEAN, COVARIANCE).log_prob(x).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_density_of_a_mixture():
    """No flow in closed form, but the data's density; the flow's mismatch with the prior is below 0.02."""
    means = torch.tensor([[-1.5, 0.0], [1.0, 1.0]], dtype=torch.float64)
    covariance = torch.tensor([[0.3, 0.1], [0.1, 0.2]], dtype=torch.float64)
    weights = torch.tensor([1 / 3, 2 / 3], dtype=torch.float64)
    x = torch.randn(40, 2, dtype=torch.float64) * 1.5
    parts = MultivariateNormal(means, covariance).log_prob(x[:, None]) + weights.log()
    model = Mixture(SHORT, means, covariance, weights)
    np.testing.assert_allclose(log_density(model, SHORT, x), torch.logsumexp(parts, 1), atol=0.03)


def test_density_converges_with_order_4():
    x = gaussian_rows(10)
    schedule = df.NoiseSchedule.linear(64, 1e-4, 0.2)
    model, exact = Mixture(schedule), exact_flow(schedule, x)
    errors = [np.abs(log_density(model, schedule, x, steps=n) - exact).max() for n in (8, 16, 32)]
    assert errors[0] > 8 * errors[1] > 64 * errors[2]  # 16 and 256 in the limit


@pytest.mark.parametrize("kind", ["epsilon", "v_prediction"])
def test_density_of_any_network_has_mass_1(kind):
    """A flow of N(0, 1) has mass 1 whatever the network says: a wrong divergence would show."""
    torch.manual_seed(3)
    model = MLPDenoiser(1, (32, 32), n_steps=60).eval()
    schedule = df.NoiseSchedule.linear(60, 1e-4, 0.15)
    grid = np.linspace(-60, 60, 3001)[:, None]
    density = np.exp(log_density(model, schedule, grid, prediction_type=kind))
    assert density.sum() * (grid[1, 0] - grid[0, 0]) == pytest.approx(1, abs=1e-3)


def test_density_takes_labels_and_parts(monkeypatch):
    model = MLPDenoiser(2, (16,), n_steps=20, n_classes=3).eval()
    nn.init.normal_(model.class_embed.weight, std=5.0)  # so that labels matter
    schedule = df.NoiseSchedule.linear(20, 1e-3, 0.3)
    x, labels = torch.randn(7, 2), np.array([0, 1, 2, 3, 0, 1, 2])
    both = log_density(model, schedule, x, labels=labels)
    one = [log_density(model, schedule, x[i : i + 1], labels=labels[i : i + 1])[0] for i in range(7)]
    np.testing.assert_allclose(both, one, atol=1e-4)
    assert log_density(model, schedule, x)[3] == pytest.approx(both[3], abs=1e-4)  # 3 is the null class
    assert abs(log_density(model, schedule, x)[0] - both[0]) > 0.01
    monkeypatch.setattr(likelihood, "MODULE_CHUNK", 3)
    np.testing.assert_allclose(log_density(model, schedule, x, labels=labels), both, atol=1e-4)
    assert math.isfinite(variational_bound(model, schedule, x, labels=labels).value)


def test_density_leaves_the_model_as_it_was():
    model = MLPDenoiser(2, (16,), n_steps=20).eval()
    schedule = df.NoiseSchedule.linear(20, 1e-3, 0.3)
    before = torch.random.get_rng_state()
    log_likelihood(model, schedule, torch.randn(4, 2, generator=torch.Generator()))
    variational_bound(model, schedule, np.zeros((4, 2)))
    assert all(weight.grad is None for weight in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize("n_steps", [1, 2, 3])
def test_density_of_the_shortest_schedules(n_steps):
    """The score of the first level stands for all that is nearer to the data: right as its beta goes to 0."""
    schedule = df.NoiseSchedule.constant(n_steps, 1e-3)
    x = gaussian_rows(20)
    np.testing.assert_allclose(
        log_density(Mixture(schedule), schedule, x), exact_flow(schedule, x), atol=1e-3
    )


def test_floor_is_the_value_of_the_reference():
    """With the labels of each, and without a change to the value of data."""
    model = MLPDenoiser(2, (16,), n_steps=20, n_classes=3).eval()
    nn.init.normal_(model.class_embed.weight, std=5.0)  # so that labels matter
    schedule = df.NoiseSchedule.linear(20, 1e-3, 0.3)
    x, real = torch.randn(7, 2), 2 * torch.randn(5, 2)
    a, b = np.arange(7) % 3, np.arange(5) % 2
    result = log_likelihood(model, schedule, x, labels=a, reference=real, reference_labels=b)
    assert result.value == log_likelihood(model, schedule, x, labels=a).value
    assert result.floor == log_likelihood(model, schedule, real, labels=b).value
    assert result.floor != log_likelihood(model, schedule, x, labels=a, reference=x, reference_labels=a).floor
    assert result.n == (7, 5)
    plain = log_likelihood(model, schedule, x, reference=real)
    assert plain.floor == log_likelihood(model, schedule, real).value


def test_floor_of_the_bound_is_that_of_the_reference():
    """Of other draws than an own call takes: within 5 standard errors of the two, odds of 6e-7."""
    x, real = gaussian_rows(500), 2 * gaussian_rows(400)
    result = variational_bound(Mixture(SHORT), SHORT, x, reference=real)
    own = variational_bound(Mixture(SHORT), SHORT, real)
    assert result.value == variational_bound(Mixture(SHORT), SHORT, x).value
    assert result.floor == pytest.approx(own.value, abs=5 * math.sqrt(2) * own.spread)
    assert abs(result.floor - result.value) > 5 * own.spread
    assert result.n == (500, 400)


# ---- the variational bound


def expected_bound(schedule: df.NoiseSchedule, variance: str) -> float:
    """The bound's expectation for the Gaussian and its optimal denoiser, term by term.

    The posterior of x0 given x_t has covariance C_t = (COVARIANCE^-1 + abar / (1 - abar) I)^-1, and the error
    of the predicted x0 has a mean square of its trace.
    """
    beta, abar = schedule.betas.numpy(), schedule.alphas_cumprod.numpy()
    second = float(torch.trace(COVARIANCE) + MEAN @ MEAN)
    total = 0.5 * (abar[-1] * second + 3 * (1 - abar[-1]) - 3 - 3 * math.log(1 - abar[-1]))
    precision = np.linalg.inv(COVARIANCE.numpy())
    for t in range(len(beta)):
        square = np.trace(np.linalg.inv(precision + abar[t] / (1 - abar[t]) * np.eye(3)))
        if t == 0:
            total += 1.5 * math.log(2 * math.pi * beta[0]) + square / (2 * beta[0])
            continue
        true = beta[t] * (1 - abar[t - 1]) / (1 - abar[t])
        own = beta[t] if variance == "beta" else true
        shift = math.sqrt(abar[t - 1]) * beta[t] / (1 - abar[t])
        total += 1.5 * (true / own - 1 - math.log(true / own)) + shift**2 * square / (2 * own)
    return total


@pytest.mark.parametrize("variance", ["beta", "posterior"])
@pytest.mark.parametrize("kind", ["epsilon", "sample"])
def test_bound_has_its_expectation(variance, kind):
    """Within 5 of its own standard errors, odds of 6e-7; and the standard error is small enough to tell."""
    x = gaussian_rows(2000)
    model = Mixture(SHORT, kind=kind)
    result = variational_bound(model, SHORT, x, variance=variance, prediction_type=kind)
    assert result.value == pytest.approx(expected_bound(SHORT, variance), abs=5 * result.spread)
    assert result.spread < 0.05 * result.value
    assert math.isnan(result.floor)
    assert result.n == (2000, 2000)


@pytest.mark.parametrize(("steps", "top"), [(20, 0.7), (100, 0.2)])
def test_bound_lies_above_the_likelihood_by_the_gap_in_closed_form(steps, top):
    """On the same rows, whose part in the noise the difference takes away; 5 standard errors of 20 seeds."""
    schedule = df.NoiseSchedule.linear(steps, 1e-4, top)
    x = gaussian_rows(500)
    exact = log_likelihood(Mixture(SHORT), SHORT, x).value
    gaps = [variational_bound(Mixture(schedule), schedule, x, seed=seed).value + exact for seed in range(20)]
    error = np.std(gaps, ddof=1) / math.sqrt(20)
    gap = expected_bound(schedule, "beta") - float(MultivariateNormal(MEAN, COVARIANCE).entropy())
    assert np.mean(gaps) == pytest.approx(gap, abs=5 * error)
    assert np.mean(gaps) > (5 * error if steps == 20 else 0)


def test_bound_spread_is_that_of_fresh_data():
    """Over 40 data sets: the deviation of the values has a standard error of 11 %."""
    schedule = df.NoiseSchedule.linear(30, 1e-3, 0.4)
    results = [variational_bound(Mixture(schedule), schedule, gaussian_rows(50), seed=s) for s in range(40)]
    deviation = np.std([r.value for r in results], ddof=1)
    assert np.mean([r.spread for r in results]) == pytest.approx(deviation, rel=0.5)


def test_bound_is_seeded():
    x = gaussian_rows(20)
    first, again, other = (variational_bound(Mixture(SHORT), SHORT, x, seed=seed).value for seed in (3, 3, 4))
    assert first == again != other
