"""The figure of the solvers: its exact score, its distance, that no solver is missing."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

import diffusion_fast as df
from benchmarks import solver_figure, solver_panels
from benchmarks.exact import ExactDenoiser, SlicedLaw
from diffusion_fast.solvers import SOLVERS

LAW: Any = df.datasets.gaussian_ring(10, 10).mixture
N = 4096
PAIRS = {  # signal and noise at t
    "preserving": lambda t: (1 / np.hypot(1, t), t / np.hypot(1, t)),
    "exploding": lambda t: (1.0, t),
    "flow": lambda t: (1 - t, t),
}


@pytest.mark.parametrize("t", [0.02, 0.5, 1.0])
@pytest.mark.parametrize("kind", PAIRS)
def test_exact_denoiser_by_tweedie(kind: str, t: float) -> None:
    """E[n | x] = -noise grad log q(x), the gradient by autograd in float64."""
    signal, noise = PAIRS[kind](t)
    x = torch.randn(200, 2, dtype=torch.float64).mul(1.3 if t > 0.1 else 0.9).requires_grad_()
    centers, weights = torch.from_numpy(LAW.centers), torch.from_numpy(LAW.weights)
    total = signal**2 * LAW.covariances[0, 0, 0] + noise**2
    squares = ((x[:, None] - signal * centers) ** 2).sum(-1)
    log_q = torch.logsumexp(weights.log() - squares / (2 * total), dim=1).sum()
    (score,) = torch.autograd.grad(log_q, x)
    expected = -noise * score
    if kind == "flow":
        # at t = 1 the noise is all of x, and E[x0 | x] that of the data
        x0 = (x - noise * expected) / signal if signal else torch.zeros_like(x)
        expected = expected - x0
    got = ExactDenoiser(LAW, kind)(x.detach().float(), torch.full((200,), t))
    # float32, where logits of about 100 are differences of rounded terms
    torch.testing.assert_close(got.double(), expected.detach(), rtol=1e-4, atol=1e-4)


def test_exact_denoiser_refuses_other_mixtures() -> None:
    with pytest.raises(ValueError, match="multiple of the identity"):
        ExactDenoiser(df.datasets.blobs(10, 10).mixture, "flow")


def test_distance_of_a_shift_and_of_the_law() -> None:
    rows = LAW.draw(np.random.default_rng(0), N)[0]
    law = SlicedLaw.of_rows(rows)
    shift = np.array([0.3, -0.4])
    expected = np.abs(law.directions @ shift).mean()  # 0.5 times 2 / pi, about
    assert law.distance(rows) == pytest.approx(0, abs=1e-6)
    assert law.distance(rows + shift) == pytest.approx(expected, rel=1e-4)
    assert law.distance(np.where(rows == rows[7], np.nan, rows)) == np.inf

    exact = SlicedLaw.of_mixture(LAW, N)
    far, near = (exact.distance(LAW.draw(np.random.default_rng(1), N)[0] * scale) for scale in (1.1, 1))
    assert near < 0.02 < far
    metric = df.metrics.sliced_wasserstein(rows, LAW.draw(np.random.default_rng(1), 1 << 17)[0])
    assert exact.distance(rows) == pytest.approx(metric.value, abs=0.005)


def test_quantiles_of_the_mixture_have_its_distribution() -> None:
    exact = SlicedLaw.of_mixture(LAW, 999)
    rows = LAW.draw(np.random.default_rng(2), 200_000)[0] @ exact.directions.T
    below = (rows < exact.quantiles[:, 499]).mean(axis=0)
    assert np.abs(below - 0.5).max() < 5 * 0.5 / np.sqrt(200_000)


def test_every_solver_is_drawn() -> None:
    runs = solver_figure.RUNS
    assert {run.solver for run in runs} == set(SOLVERS)
    assert {run.family for run in runs} == set(solver_panels.FAMILIES)
    assert len({run.name for run in runs}) == len(runs)
    most = max(sum(run.family == family for run in runs) for family in solver_panels.FAMILIES)
    assert most <= min(len(solver_panels.COLORS), len(solver_panels.MARKERS))


def test_runs_take_the_evaluations_they_are_asked_for() -> None:
    for run in solver_figure.RUNS:
        for n in (4, 25, 200):
            options = run.options(n)
            if run.kind == "flow":
                options["prediction_type"] = "flow"
            nfe = df.solvers.solve(run.solver, run.schedule(n), **options).nfe
            assert nfe == n or n - 10 < nfe <= n, (run.name, n)


@pytest.fixture(scope="module")
def content() -> dict[str, Any]:
    names = ("ddim", "ddpm", "flow_heun", "langevin")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(solver_figure, "RUNS", [run for run in solver_figure.RUNS if run.name in names])
        patch.setattr(solver_figure, "EVALUATIONS", {"mixture": (6, 30), "moons": (5,)})
        return json.loads(json.dumps(solver_figure.measure(scale=32, epochs=1)))


def test_what_is_measured(content: dict[str, Any]) -> None:
    mixture, moons = (content["targets"][name] for name in ("mixture", "moons"))
    assert [line["name"] for line in mixture["lines"]] == ["ddim", "ddpm", "flow_heun", "langevin"]
    assert [line["name"] for line in moons["lines"]] == ["ddim", "ddpm"]
    assert (mixture["samples"], moons["samples"]) == (2048, 1024)
    for line in mixture["lines"]:
        few, many = line["distance"]
        assert few > many > 0.5 * min(mixture["floor"]) and min(line["seconds"]) > 0


def test_figure(content: dict[str, Any]) -> None:
    figure = solver_panels.draw(content)
    assert isinstance(figure, Figure)
    shown = [axes for axes in figure.axes if axes.axison]
    assert len(shown) == 10  # three rows of four, the trained network without two families
    drawn = {line.get_label(): line.get_xydata() for line in shown[0].lines}
    line = content["targets"]["mixture"]["lines"][0]
    np.testing.assert_allclose(drawn["ddim"], np.transpose([line["evaluations"], line["distance"]]))
    assert "2,048 samples" in solver_panels.caption(content)


def test_frontier_never_rises() -> None:
    lines = [{"n": [1, 3], "distance": [5.0, 4.0]}, {"n": [2, 4], "distance": [1.0, 2.0]}]
    cost, best = solver_panels.frontier(lines, "n")
    assert cost.tolist() == [1, 2, 3, 4] and best.tolist() == [5, 1, 1, 1]
