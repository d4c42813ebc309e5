"""System D at tiny size, the laws that it knows exactly, the user's files, and its claims (slow)."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

import diffusion_fast as df
from diffusion_fast import datasets
from diffusion_fast.systems import (
    guidance_2d,
    labelled_points,
    published_d,
    report,
    rewards_2d,
    schedules_2d,
    vectors_64d,
)
from diffusion_fast.systems.run import Run

BAYES = {"moons": 1.0, "circles": 1.0, "manycircles": 0.871, "blobs": 0.971, "helix_labelled": 0.811}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """One set of 200 rows, one schedule, an epoch: every part of the experiment runs, nothing is learned."""
    load = datasets.load

    def few(name: str, n_train: int = 200, n_test: int = 100, *, seed: int = 0) -> datasets.Dataset:
        return load(name, min(n_train, 1000), n_test, seed=seed)

    monkeypatch.setattr(datasets, "load", few)
    monkeypatch.setattr(report, "RESOLUTIONS", (30,))
    monkeypatch.setattr(labelled_points, "POOL", 1000)
    monkeypatch.setattr(published_d, "SETS", ("moons",))
    monkeypatch.setattr(schedules_2d, "SCHEDULES", {"linear": "linear"})
    monkeypatch.setattr(schedules_2d, "EPOCHS", 1)
    monkeypatch.setattr(schedules_2d, "EMD_ROWS", 50)
    monkeypatch.setattr(schedules_2d, "ALL_BETAS", (schedules_2d.BETAS,))
    few_steps = {"epochs": 1, "batch_size": 100, "lr": 0.01}
    monkeypatch.setattr(guidance_2d, "FITTING", few_steps)
    monkeypatch.setattr(guidance_2d, "WIDE_FITTING", few_steps)
    monkeypatch.setattr(guidance_2d, "EMD_ROWS", 20)
    monkeypatch.setattr(rewards_2d, "CANDIDATES", 2)
    monkeypatch.setattr(rewards_2d, "VALUE_STEPS", 2)
    monkeypatch.setattr(rewards_2d, "BLOCK_STEPS", 1)
    monkeypatch.setattr(guidance_2d, "WEIGHTS", (0.0, 1.0))
    monkeypatch.setattr(vectors_64d, "N_ROWS", 700)
    monkeypatch.setattr(published_d, "EMD_ROWS_64D", 50)


def test_the_whole_of_it(tiny: None, tmp_path: Path) -> None:
    run = Run("D", tmp_path, as_published=True)
    state = torch.random.get_rng_state()
    guidance_2d.run(run)
    facts = run.finish(guidance_2d.TITLE)
    assert torch.equal(torch.random.get_rng_state(), state)
    results = json.loads((tmp_path / "results.json").read_text())
    tables = {table["title"].split(" ")[0]: table for table in results["tables"]}
    assert list(tables) == ["Unconditional", "Five", "Guidance", "Accuracy", "A", "64"]
    assert len(tables["Unconditional"]["rows"]) == 2
    assert len(tables["Guidance"]["rows"]) == 2 + 1
    assert "published rule" in tables["Accuracy"]["columns"]
    assert [row[0] for row in tables["64"]["rows"]][:3] == ["ancestral", "deterministic", "DDIM"]
    assert {p["file"] for p in results["pictures"]} == {
        "nll_by_steps.png",
        "guided_moons.png",
        "vectors_64d.png",
    }
    assert facts["cuts"] and all(
        facts["seconds"][kind] > 0 for kind in ("training", "sampling", "evaluation")
    )


# ---- the laws


@pytest.mark.parametrize("name", BAYES)
def test_posteriors_give_the_bayes_rates(name: str) -> None:
    """40,000 rows: a standard error of at most 0.0024, and the rates are rounded to 0.001."""
    data = datasets.load(name, 40_000, 10, seed=3)
    p = labelled_points.posterior(data, data.train, data.train_labels)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-9)
    rate = labelled_points.bayes_rate(data, data.train, data.train_labels)
    assert rate == pytest.approx(BAYES[name], abs=0.0075)
    assert rate == pytest.approx(float(p.max(axis=1).mean()), abs=0.0075)
    for label in range(data.n_classes):  # calibrated: rows of p near 1/2 are of the class half of the time
        near = np.abs(p[:, label] - 0.5) < 0.1
        if near.sum() > 400:
            expected, own = p[near, label].mean(), (data.train_labels[near] == label).mean()
            assert own == pytest.approx(expected, abs=4.5 * 0.5 / np.sqrt(near.sum()))


def test_the_guided_law_thins_the_overlap() -> None:
    data = datasets.load("manycircles", seed=1)
    plain, strong = (labelled_points.guided_law(data, w, 0) for w in (0.0, 2.0))
    assert sum(map(len, plain)) == labelled_points.POOL
    for label, rows in enumerate(strong):
        raw = data.standardiser.inverse(rows)
        p = labelled_points.posterior(data, raw, np.full(len(raw), label))[:, label]
        everything = data.standardiser.inverse(plain[label])
        own = labelled_points.posterior(data, everything, np.full(len(everything), label))[:, label]
        assert p.mean() == pytest.approx((own**3).mean() / (own**2).mean(), abs=0.02)


def test_the_judge_is_the_classifier_of_scikit_learn(tmp_path: Path) -> None:
    from sklearn.neural_network import MLPClassifier

    for name in ("moons", "manycircles"):
        data = datasets.load(name, 500, 200)
        module = labelled_points.judge(Run("D", tmp_path), data)
        own = MLPClassifier((100, 50), max_iter=60, random_state=42)
        with pytest.warns(match="Maximum iterations"):
            own.fit(data.standardised_train, data.train_labels)
        x = torch.from_numpy(data.standardised_test).float()
        found = labelled_points.log_probability(module, x).exp()
        np.testing.assert_allclose(found, own.predict_proba(x.numpy()), atol=1e-5)
        score = labelled_points.accuracy(module, x, data.test_labels)
        assert score == pytest.approx(own.score(x.numpy(), data.test_labels))


def test_the_published_rule_prefers_what_differs_most() -> None:
    """A denoiser that answers class 1 far from the null class whatever x: the published rule takes 1."""

    class Odd(torch.nn.Module):
        def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
            return torch.zeros_like(x) if y is None else (y == 1).float()[:, None].expand_as(x)

    sums = guidance_2d.norm_differences(Odd(), 3, torch.zeros(5, 2), seed=0)
    torch.testing.assert_close(sums, torch.tensor([0.0, 10 * 2**0.5, 0.0]).expand(5, 3))


# ---- the user's files


def test_files_of_the_user(tmp_path: Path) -> None:
    rows = np.random.default_rng(0).standard_normal((20, 16, 4))
    np.save(tmp_path / "albatross.npy", rows)
    np.save(tmp_path / "albatross_prior_samples.npy", rows.reshape(20, 64))
    own, name = vectors_64d.latents(tmp_path)
    assert name == "albatross.npy"
    np.testing.assert_array_equal(own, rows.reshape(20, 64).astype(np.float32))
    run = Run("D", tmp_path / "out", data=tmp_path)
    x_T, start = vectors_64d.prior(run, 7)
    assert start == "albatross_prior_samples.npy"
    np.testing.assert_array_equal(x_T, own[:7])
    made, name = vectors_64d.latents(None)
    assert (made.shape, name) == ((32_561, 64), "the stand-in")
    np.testing.assert_array_equal(made[:5], vectors_64d.stand_in(32_561)[:5])


def test_the_deterministic_chain_is_the_mean_of_every_step() -> None:
    schedule = df.NoiseSchedule.linear(100, 0.001, 0.02)
    model = df.models.MLPDenoiser(64, (16,), n_steps=100).eval()
    x_T = torch.randn(30, 64)
    drawn = vectors_64d.draws(model, schedule, x_T, seed=1)
    x, abar = x_T.double(), schedule.alphas_cumprod
    for t in reversed(range(100)):
        with torch.no_grad():
            eps = model(x.float(), torch.full((30,), t)).double()
        x = (x - schedule.betas[t] / (1 - abar[t]).sqrt() * eps) / schedule.alphas[t].sqrt()
    torch.testing.assert_close(drawn["deterministic"].double(), x, rtol=1e-4, atol=1e-4)
    assert not torch.equal(drawn["ancestral"], drawn["deterministic"])
    assert torch.equal(
        vectors_64d.draws(model, schedule, x_T, seed=2)["deterministic"], drawn["deterministic"]
    )


@pytest.mark.parametrize(
    "content",
    [
        np.zeros((20, 16, 5)),
        np.zeros((20, 63)),
        np.zeros((3, 64)),
        np.full((20, 64), np.nan),
        np.full((20, 64), "a"),
        b"no array",
        b"",
    ],
    ids=["shape", "columns", "few", "nan", "text", "damaged", "empty"],
)
def test_bad_files(content: np.ndarray | bytes, tmp_path: Path) -> None:
    file = tmp_path / "albatross.npy"
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        np.save(file, content)
    with pytest.raises(
        ValueError, match=r"data: got '.*albatross.npy'.*accepted: a .npy file of \(n, 16, 4\)"
    ):
        vectors_64d.latents(tmp_path)


# ---- the claims


@pytest.mark.slow
@pytest.mark.parametrize("name", BAYES)
def test_the_diffusion_classifier_is_near_the_bayes_rate(name: str, tmp_path: Path) -> None:
    """Within 0.03 on the held-out rows, by the denoiser that the first column of the table is of."""
    data = datasets.load(name, seed=42)
    how = guidance_2d.WIDE, guidance_2d.WIDE_FITTING
    model = guidance_2d.conditional(Run("D", tmp_path), data, *how)
    prior = np.bincount(data.train_labels) / len(data.train_labels)
    classifier = df.ClassifierDDPM(model, guidance_2d.SCHEDULE, prior=prior, backend="native")
    found = guidance_2d.agreement(
        classifier.predict(data.standardised_test), torch.from_numpy(data.test_labels)
    )
    assert found > labelled_points.bayes_rate(data, data.test, data.test_labels) - 0.03
    assert found > BAYES[name] - 0.03
    sums = guidance_2d.norm_differences(
        model, data.n_classes, torch.from_numpy(data.standardised_test).float(), 0
    )
    wrong = guidance_2d.agreement(sums.argmax(1), torch.from_numpy(data.test_labels))
    assert wrong < found - 0.25


@pytest.mark.slow
def test_a_learned_value_comes_near_the_law_that_the_reward_at_the_mean_misses(tmp_path: Path) -> None:
    run, data = Run("D", tmp_path), datasets.load("moons", seed=42)
    model = guidance_2d.conditional(run, data, guidance_2d.WIDE, guidance_2d.WIDE_FITTING)
    case = guidance_2d.Labelled(data, model, labelled_points.judge(run, data))
    labels, found = case.labels[0][:1000], {}
    for method in rewards_2d.METHODS:
        x = rewards_2d.samples(run, case, guidance_2d.SCHEDULE, method, labels, 0.0)
        found[method] = guidance_2d.class_scores(run, case, method, x, labels, 0.0)["aim"]
    assert found["SVDD-MC"].value < 2 * found["SVDD-MC"].floor
    assert found["SVDD-PM"].value > 3 * found["SVDD-PM"].floor
