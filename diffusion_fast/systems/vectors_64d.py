"""The 64-dimensional set of system D: the user's own file, or rows of the same shape from a generator.

albatross.npy holds (32561, 16, 4) numbers, 16 tokens of 4 for each of as many rows, and
albatross_prior_samples.npy (32561, 64) normals from which a deterministic chain starts. Both are taken from
the folder of the user's files where it has them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffusion_fast import metrics, noise
from diffusion_fast.metrics import MetricResult
from diffusion_fast.models import MLPDenoiser
from diffusion_fast.plotting import compare_samples
from diffusion_fast.sampler import Sampler
from diffusion_fast.schedules import NoiseSchedule
from diffusion_fast.standardiser import Standardiser
from diffusion_fast.systems import published_d as published
from diffusion_fast.systems.run import Run
from diffusion_fast.training import train

N_ROWS, TOKENS, WIDTH = 32_561, 16, 4
DIM = TOKENS * WIDTH
FILE, PRIOR_FILE = "albatross.npy", "albatross_prior_samples.npy"
FILES = {FILE: (TOKENS, WIDTH), PRIOR_FILE: (DIM,)}  # of a row
N_STEPS, BETAS = 100, (0.001, 0.02)
TAU = 1.0


def experiment(run: Run) -> None:
    rows, name = latents(run.data)
    scale = Standardiser.min_max(rows)
    scaled = scale.transform(rows)
    train_rows, held_out = scaled[: len(scaled) * 9 // 10], scaled[len(scaled) * 9 // 10 :]
    schedule = NoiseSchedule.linear(N_STEPS, *BETAS)
    model = denoiser(run, schedule, train_rows)
    x_T, start = prior(run, run.pick(4000, N_ROWS))
    drawn = run.stage("64d-samples", "sampling", lambda: draws(model, schedule, x_T, run.seed))
    scores = {kind: score(run, kind, x, train_rows) for kind, x in drawn.items()}
    scores["fresh data"] = score(run, "fresh", torch.from_numpy(held_out), train_rows)
    scores["N(0, I)"] = score(run, "normal", x_T, train_rows)
    table(run, name, start, scores)
    figure = compare_samples(drawn["ancestral"], train_rows, title=f"{name}, the first three of 64 columns")
    run.picture("vectors_64d", figure, "Samples beside data, scaled to [-1, 1].")


def latents(folder: Path | None) -> tuple[np.ndarray, str]:
    """(n, 64) float32 rows and what they are."""
    own = own_rows(folder, FILE)
    return (stand_in(N_ROWS), "the stand-in") if own is None else (own, FILE)


def own_rows(folder: Path | None, file: str) -> np.ndarray | None:
    """(n, 64) float32 rows of a file of the user's, where there is one."""
    if folder is None or not (folder / file).is_file():
        return None
    return load(folder / file, FILES[file])


def load(path: Path, shape: tuple[int, ...]) -> np.ndarray:
    """(n, 64) float32 rows of a .npy file of finite numbers, (n, *shape) or (n, 64)."""
    accepted = f"a .npy file of (n, {', '.join(map(str, shape))}) finite numbers"
    try:
        array = np.load(path, allow_pickle=False)
    except (ValueError, EOFError, OSError) as error:
        raise ValueError(
            f"data: got {str(path)!r}, which cannot be read ({error}); accepted: {accepted}"
        ) from error
    fits = isinstance(array, np.ndarray) and array.dtype.kind in "fiu" and array.shape[1:] in (shape, (DIM,))
    if not fits or len(array) < 10 or not np.isfinite(array).all():
        found = (
            f"{array.dtype} numbers of shape {array.shape}" if isinstance(array, np.ndarray) else "no array"
        )
        raise ValueError(f"data: got {str(path)!r} with {found}; accepted: {accepted}")
    return array.reshape(len(array), DIM).astype(np.float32)


def stand_in(n: int, seed: int = 0) -> np.ndarray:
    """(n, 64) float32 rows like an autoencoder's latents: clusters on a curved sheet of few dimensions.

    One of 12 clusters with weights proportional to 1/k (k = 1 .. 12) has a center N(0, I) in 8 dimensions and
    spreads by 0.4 N(0, I) around it; z goes through tanh(z A) B, with A (8, 32) and B (32, 64) normal of
    deviations 1 / sqrt(8) and 1 / sqrt(32), plus 0.05 N(0, I). A, B and the centers come from the seed too.
    """
    rng = np.random.default_rng(seed)
    centers = rng.standard_normal((12, 8))
    a, b = rng.standard_normal((8, 32)) / np.sqrt(8), rng.standard_normal((32, DIM)) / np.sqrt(32)
    shares = 1 / np.arange(1, 13)
    z = centers[rng.choice(12, n, p=shares / shares.sum())] + 0.4 * rng.standard_normal((n, 8))
    return (np.tanh(z @ a) @ b + 0.05 * rng.standard_normal((n, DIM))).astype(np.float32)


def prior(run: Run, n: int) -> tuple[Tensor, str]:
    """(n, 64) rows from which the chains start, and where they are from."""
    own = own_rows(run.data, PRIOR_FILE)
    if own is not None:
        return torch.from_numpy(own[:n]), PRIOR_FILE
    return noise.normal(n, DIM, seed=run.seed, step=0, purpose="initial"), "the package's own noise stream"


def denoiser(run: Run, schedule: NoiseSchedule, rows: np.ndarray) -> nn.Module:
    epochs = run.pick(10, 100)
    run.cut(
        "64 dimensions: 10 epochs in batches of 400, not 100 in batches of 100; 4,000 samples, not 32,561."
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(run.seed)
        model = MLPDenoiser(DIM, (264, 264), "relu", "sinusoidal", N_STEPS, time_dim=4)

    def fit(model: nn.Module) -> dict[str, Any]:
        how: dict[str, Any] = {"batch_size": run.pick(400, 100), "lr": 0.01, "lr_decay": "cosine"}
        history = train(model, schedule, rows, epochs=epochs, seed=run.seed, progress=run.progress, **how)
        return {"loss": history.train_loss}

    run.trained("64d", model, fit)
    return model


def draws(model: nn.Module, schedule: NoiseSchedule, x_T: Tensor, seed: int) -> dict[str, Tensor]:
    """Samples from given x_T: with the noise of every step, and without any."""
    samplers = {
        "ancestral": Sampler(model, schedule, backend="native"),
        "deterministic": Sampler(model, schedule, variance="none", backend="native"),
        "DDIM": Sampler(model, schedule, solver="ddim", backend="native"),
    }
    return {name: sampler.sample(len(x_T), x_T=x_T, seed=seed) for name, sampler in samplers.items()}


def score(run: Run, name: str, x: Tensor, rows: np.ndarray) -> dict[str, MetricResult]:
    n = run.pick(2000, len(x))
    some = rows if run.full else rows[:4000]

    def work() -> dict[str, MetricResult]:
        return {
            "nll": metrics.kernel_nll(x[:n], some, TAU, seed=run.seed),
            "emd": metrics.emd(x, rows, published.EMD_ROWS_64D, seed=run.seed, repeats=5),
        }

    return run.stage(f"64d-{name}-scores", "evaluation", work)


def table(run: Run, name: str, start: str, scores: dict[str, dict[str, MetricResult]]) -> None:
    mean, spread = published.EMD_SUM_64D
    pairs = published.EMD_ROWS_64D
    theirs = MetricResult(mean / pairs, float("nan"), spread / pairs, (pairs, pairs))
    rows: list[list[Any]] = [[kind, each["nll"], each["emd"]] for kind, each in scores.items()]
    rows.append(["published, on albatross.npy", published.NLL_64D, theirs])
    run.table(
        f"64 dimensions, {name}: T = 100, linear betas from 0.001 to 0.02",
        ["samples", "NLL, tau 1", f"EMD per pair, {pairs} rows"],
        rows,
        f"x_T from {start}. The deterministic chain leaves the noise out of every step of the ancestral "
        "one, as the assignment asks: each step takes the mean of a law for a draw from it, so samples "
        "contract, which the NLL takes for quality. DDIM is the deterministic chain that keeps the law "
        "it starts from, and so also the error of a start from N(0, I) where abar_T is 0.35. The "
        "constant 32 log(2 pi) = 58.81 is part of every NLL. Figures on other data than the report's do "
        "not compare with its own.",
    )
