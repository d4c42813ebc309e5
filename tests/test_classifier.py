"""ClassifierDDPM beside exact posteriors and a plain loop over the bound."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from bad_input import N_CLASSES, SCHEDULE, net
from torch import Tensor, nn

import diffusion_fast as df

LONG = df.NoiseSchedule.linear(400, 1e-4, 0.05)  # abar_T = 4e-5: nothing of the class is left at the end
CENTERS = torch.tensor([[-0.6, 0.0], [0.5, 0.3], [0.3, -0.5]])
VARIANCES = torch.tensor([0.09, 0.04, 0.16])


class ExactGaussians(nn.Module):
    """E[eps | x_t, y] for classes N(center, variance I); index 3, the null class, stands for N(0, I)."""

    def __init__(self) -> None:
        super().__init__()
        abar = LONG.alphas_cumprod
        self.register_buffer("signal", abar.sqrt().float())
        self.register_buffer("noise", (1 - abar).sqrt().float())
        self.centers = nn.Parameter(torch.cat([CENTERS, torch.zeros(1, 2)]))
        self.variances = nn.Parameter(torch.cat([VARIANCES, torch.ones(1)])[:, None].expand(4, 2).clone())

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        signal, noise = self.signal[t][:, None], self.noise[t][:, None]
        total = signal * signal * self.variances[y] + noise * noise
        return noise * (x - signal * self.centers[y]) / total


def rows_of_gaussians(n: int, shares: Tensor) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    labels = torch.multinomial(shares, n, replacement=True, generator=generator)
    z = torch.randn(n, 2, generator=generator)
    return CENTERS[labels] + VARIANCES[labels, None].sqrt() * z, labels


def true_posterior(x: Tensor, shares: Tensor) -> Tensor:
    squares = (x[:, None] - CENTERS).square().sum(2) / VARIANCES
    return torch.softmax(shares.log() - VARIANCES.log() - squares / 2, dim=1)


@pytest.fixture(scope="module")
def exact() -> nn.Module:
    return ExactGaussians().eval()


def test_the_posterior_of_an_exact_denoiser_is_bayes(exact: nn.Module) -> None:
    """Overlapping classes of different spreads and shares: what is left is the bound's gap at 400 steps and
    four draws of noise each, 0.01 in probability (measured 0.006)."""
    shares = torch.tensor([0.6, 0.3, 0.1])
    x, labels = rows_of_gaussians(1500, shares)
    classifier = df.ClassifierDDPM(exact, LONG, shape=2, n_classes=3, prior=shares, pairs=2)
    probability, best = classifier.predict_proba(x), true_posterior(x, shares)
    torch.testing.assert_close(probability.sum(1), torch.ones(len(x)))
    assert float((probability - best).abs().mean()) < 0.01
    predicted = classifier.predict(x)
    assert torch.equal(predicted, probability.argmax(1))
    rate = float((best.argmax(1) == labels).float().mean())
    assert float((predicted == labels).float().mean()) > rate - 0.01
    torch.testing.assert_close(classifier(x).exp(), probability)


def test_without_a_prior_the_least_error_is_chosen(exact: nn.Module) -> None:
    x, _ = rows_of_gaussians(200, torch.ones(3))
    classifier = df.ClassifierDDPM(exact, LONG, shape=2, n_classes=3, steps=20)
    assert torch.equal(classifier.predict(x), classifier.errors(x).argmin(dim=1))
    weighted = df.ClassifierDDPM(exact, LONG, shape=2, n_classes=3, steps=20, prior=[1, 1, 2])
    difference = weighted(x)[:, 2] - weighted(x)[:, 0] - (classifier(x)[:, 2] - classifier(x)[:, 0])
    torch.testing.assert_close(difference, torch.full_like(difference, np.log(2)), atol=1e-4, rtol=0)


@pytest.mark.parametrize("backend", ["native", "torch"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_errors_are_the_bound_of_epsilon(backend: str, prediction_type: str) -> None:
    """Against eps itself, in float64: w_t |eps - eps_y|^2, w_t = (snr_{t-1} / snr_t - 1) / 2."""
    model, x = net(N_CLASSES), torch.randn(40, 2)
    how = {"pairs": 3, "seed": 8, "prediction_type": prediction_type, "backend": backend}
    errors = df.ClassifierDDPM(model, SCHEDULE, **how).errors(x)
    abar = SCHEDULE.alphas_cumprod
    snr = abar / (1 - abar)
    expected = torch.zeros(40, N_CLASSES, dtype=torch.float64)
    for row, t in enumerate(reversed(range(len(SCHEDULE)))):
        weight = (snr[t - 1] / snr[t] - 1) / 2 if t else 1 / (2 * SCHEDULE.betas[0] * snr[0])
        for pair in range(3):
            z = df.noise.normal(1, 2, seed=8, step=row, purpose="forward", substream=pair).double()
            for eps in (z, -z):
                noisy = abar[t].sqrt() * x + (1 - abar[t]).sqrt() * eps
                for y in range(N_CLASSES):
                    with torch.no_grad():
                        output = model(noisy.float(), torch.full((40,), t), torch.full((40,), y)).double()
                    if prediction_type == "v_prediction":
                        output = abar[t].sqrt() * output + (1 - abar[t]).sqrt() * noisy
                    expected[:, y] += weight * (eps - output).square().sum(1) / 6
    torch.testing.assert_close(errors, expected, rtol=1e-4, atol=1e-4)


def test_a_row_is_classified_alike_wherever_it_stands() -> None:
    classifier = df.ClassifierDDPM(net(N_CLASSES), SCHEDULE, backend="native")
    x = torch.randn(300, 2)
    assert torch.equal(classifier.errors(x)[123:125], classifier.errors(x[123:125]))
    assert torch.equal(classifier.errors(x.numpy()), classifier.errors(x))


BAD = {
    "model": (lambda: df.ClassifierDDPM(net(), SCHEDULE), "model: got .* with classes"),
    "prior shape": (lambda: df.ClassifierDDPM(net(3), SCHEDULE, prior=[1, 1]), r"prior: got .*\(3,\) shares"),
    "prior zero": (lambda: df.ClassifierDDPM(net(3), SCHEDULE, prior=[1, 0, 1]), "prior: got .* above 0"),
    "prior nan": (lambda: df.ClassifierDDPM(net(3), SCHEDULE, prior=[1, np.nan, 1]), "prior: got"),
    "prior type": (lambda: df.ClassifierDDPM(net(3), SCHEDULE, prior="even"), "prior: got 'even'"),
    "pairs": (lambda: df.ClassifierDDPM(net(3), SCHEDULE, pairs=0), "pairs: got 0"),
    "steps": (lambda: df.ClassifierDDPM(net(3), SCHEDULE, steps=11), "steps: got 11"),
    "an option": (lambda: df.ClassifierDDPM(net(3), SCHEDULE, solver="ddim"), "unknown option 'solver'"),
    "train mode": (lambda: df.ClassifierDDPM(net(3).train(), SCHEDULE), "model: got .* train mode"),
    "x columns": (lambda: df.ClassifierDDPM(net(3), SCHEDULE)(torch.zeros(4, 3)), r"x: got .*\(n, 2\)"),
    "x rows": (lambda: df.ClassifierDDPM(net(3), SCHEDULE)(torch.zeros(0, 2)), "x: got .* n >= 1"),
    "x type": (lambda: df.ClassifierDDPM(net(3), SCHEDULE)([[0.0, 1.0]]), r"x: got .*\(n, 2\)"),
    "x nan": (lambda: df.ClassifierDDPM(net(3), SCHEDULE)(torch.full((2, 2), torch.nan)), "x: got nan"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    call, message = BAD[name]
    with pytest.raises((TypeError, ValueError)) as caught:
        call()
    assert re.search(message, str(caught.value)), str(caught.value)
