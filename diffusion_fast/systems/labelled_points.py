"""Of system D's labelled sets: the true p(y | x), the law that guidance aims at, a trained classifier."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from torch import Tensor, nn

from diffusion_fast import datasets
from diffusion_fast.datasets import Dataset
from diffusion_fast.metrics import MetricResult
from diffusion_fast.systems.run import Run

CLASS_OF = {"manycircles": np.arange(8), "blobs": np.array([0, 1, 1])}  # of each component of the mixture
POOL = 40_000  # fresh rows from which those of a guided law are taken


def posterior(data: Dataset, rows: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The true p(y | x) of rows in the data's own units, (n, n_classes). The classes of moons and circles do
    not overlap: there it is 1 for a row's own label."""
    if data.name == "helix_labelled":
        positive = (1 + np.sin(4 * rows.prod(axis=1))) / 2
        return np.stack([1 - positive, positive], axis=1)
    if data.mixture is None:
        return np.eye(data.n_classes)[labels]
    law = data.mixture
    joint = np.stack(
        [
            np.log(weight) + multivariate_normal(center, covariance).logpdf(rows)
            for weight, center, covariance in zip(law.weights, law.centers, law.covariances, strict=True)
        ],
        axis=1,
    )
    of_class = CLASS_OF[data.name]
    classes = [logsumexp(joint[:, of_class == label], axis=1) for label in range(data.n_classes)]
    log_classes = np.stack(classes, axis=1)
    return np.exp(log_classes - logsumexp(log_classes, axis=1, keepdims=True))


def labels_of(data: Dataset) -> tuple[np.ndarray, np.ndarray]:
    """Of the training and of the held-out rows, which all of these sets have."""
    assert data.train_labels is not None and data.test_labels is not None
    return data.train_labels, data.test_labels


def bayes_rate(data: Dataset, rows: np.ndarray, labels: np.ndarray) -> float:
    """The share of rows, in the data's own units, whose likelier class is theirs: what no classifier exceeds
    but by chance."""
    return float((posterior(data, rows, labels).argmax(axis=1) == labels).mean())


def guided_law(data: Dataset, weight: float, seed: int) -> list[np.ndarray]:
    """Rows, scaled, of each class's p(x | y) p(y | x)^weight: fresh rows of the class, kept with probability
    p(y | x)^weight."""
    rng = np.random.default_rng(seed)
    pool = datasets.load(data.name, POOL, seed=int(rng.integers(1 << 32)))
    labels, _ = labels_of(pool)
    own = posterior(data, pool.train, labels)[np.arange(POOL), labels]
    kept = rng.uniform(size=POOL) < own**weight
    return by_class(data, data.standardiser.transform(pool.train[kept]), labels[kept])


def by_class(data: Dataset, rows: Any, labels: Any) -> list[Any]:
    return [rows[labels == label] for label in range(data.n_classes)]


def class_average(
    metric: Callable[[Any, Any], MetricResult], samples: list[Any], rows: list[Any]
) -> MetricResult:
    """The mean over the classes of a metric of each class's samples against its rows."""
    each = [metric(x, real) for x, real in zip(samples, rows, strict=True)]
    spread = float(np.sqrt(np.sum([result.spread**2 for result in each]))) / len(each)
    value, floor = (float(np.mean([getattr(result, part) for result in each])) for part in ("value", "floor"))
    return MetricResult(value, floor, spread, each[0].n)


def judge(run: Run, data: Dataset) -> nn.Module:
    """scikit-learn's MLPClassifier trained on the set, as a module: scaled rows to (n, n_classes) logits."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.neural_network import MLPClassifier

    def fit(module: nn.Module) -> dict[str, Any]:
        classifier = MLPClassifier((100, 50), max_iter=run.pick(60, 500), random_state=42)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # its accuracy is shown
            classifier.fit(data.standardised_train, data.train_labels)
        linear = [part for part in module.modules() if isinstance(part, nn.Linear)]
        with torch.no_grad():
            for part, weight, bias in zip(linear, classifier.coefs_, classifier.intercepts_, strict=True):
                part.weight.zero_()[-weight.shape[1] :] = torch.from_numpy(weight.T)
                part.bias.zero_()[-len(bias) :] = torch.from_numpy(bias)  # of two classes the second has one
        return {}

    widths = (data.dim, 100, 50, data.n_classes)
    first, second, last = (torch.nn.utils.skip_init(nn.Linear, *pair) for pair in itertools.pairwise(widths))
    module = nn.Sequential(first, nn.ReLU(), second, nn.ReLU(), last)
    run.trained(f"{data.name}-judge", module, fit)
    return module


@torch.no_grad()
def log_probability(judge: nn.Module, x: Tensor) -> Tensor:
    """log p(y | x) of a judge, (n, n_classes)."""
    return torch.log_softmax(judge(x), dim=1)


def accuracy(judge: nn.Module, x: Any, labels: Any) -> float:
    """The share of rows that a judge gives the class they are said to be of."""
    found = log_probability(judge, torch.as_tensor(x, dtype=torch.float32)).argmax(dim=1)
    return float((found == torch.as_tensor(labels)).float().mean())
