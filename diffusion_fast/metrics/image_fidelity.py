"""How much samples look like the images of labelled classes, as a classifier sees them that is trained on the
spot: nothing is downloaded, and its own accuracy on held-out images says how far it can be believed.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from tqdm.auto import tqdm

from diffusion_fast import _checks
from diffusion_fast.metrics.coverage import mode_coverage
from diffusion_fast.metrics.frechet import frechet_distance
from diffusion_fast.metrics.result import MetricResult, standard_error

N_FEATURES = 32
WIDTHS = (16, 32, 64)
MIN_SIDE = 4
BATCH = 64
LR = 2e-3
SHIFT = 2  # pixels: the classifier learns from images shifted by up to so many either way


class ImageClassifier(nn.Module):
    """Classes of small images: three convolutions of stride 2, N_FEATURES features, and their classes.

    shape: (channels, height, width), sides of at least 4. Attributes: shape, n_classes.
    """

    def __init__(self, shape: tuple[int, int, int], n_classes: int) -> None:
        super().__init__()
        channels, *sides = (_checks.integer(f"shape[{i}]", side, 1) for i, side in enumerate(shape))
        if min(sides) < MIN_SIDE:
            raise _checks.bad_value(
                "shape", shape, f"(channels, height, width), at least {MIN_SIDE} high and wide"
            )
        self.shape = (channels, *sides)
        self.n_classes = _checks.integer("n_classes", n_classes, 2)
        layers: list[nn.Module] = []
        for n_in, n_out in zip((channels, *WIDTHS), WIDTHS, strict=False):
            layers += [nn.Conv2d(n_in, n_out, 3, stride=2, padding=1), nn.ReLU()]
        pixels = math.prod(-(-side // 2 ** len(WIDTHS)) for side in sides)
        self.body = nn.Sequential(*layers, nn.Flatten(), nn.Linear(WIDTHS[-1] * pixels, N_FEATURES))
        self.head = nn.Linear(N_FEATURES, self.n_classes)

    def features(self, x: Tensor) -> Tensor:
        """(n, *shape) -> (n, N_FEATURES), before the last ReLU."""
        return self.body(x)

    def forward(self, x: Tensor) -> Tensor:
        """(n, *shape) -> logits (n, n_classes)."""
        return self.head(F.relu(self.features(x)))


def train_classifier(
    model: ImageClassifier,
    images: Tensor,
    labels: Tensor,
    *,
    epochs: int,
    seed: int = 0,
    progress: bool = False,
) -> list[float]:
    """Train in place by cross-entropy, with Adam and a rate that falls to 0; -> the mean loss of each epoch.

    images (n, *model.shape) float32, labels (n,) int64. Images are shifted at random by up to two pixels.
    The model is left in eval mode. Raises TypeError or ValueError for epochs below 1 and a seed outside of
    [0, 2^64); images and labels are torch's to refuse.
    """
    generator = torch.Generator().manual_seed(_checks.seed("seed", seed))
    epochs = _checks.integer("epochs", epochs, 1)
    optimizer = torch.optim.Adam(model.parameters(), lr=LR, fused=True)
    steps = epochs * -(-len(images) // BATCH)
    falling = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    losses = []
    model.train()
    for _ in tqdm(range(epochs), disable=not progress, unit="epoch", desc="classifier"):
        total = 0.0
        for rows in torch.randperm(len(images), generator=generator).split(BATCH):
            dy, dx = torch.randint(-SHIFT, SHIFT + 1, (2,), generator=generator).tolist()
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images[rows].roll((dy, dx), (2, 3))), labels[rows])
            loss.backward()
            optimizer.step()
            falling.step()
            total += len(rows) * loss.item()
        losses.append(total / len(images))
    model.eval()
    return losses


class ImageFidelity(NamedTuple):
    """confidence: the mean over samples of the highest class probability. entropy: the mean entropy of a
    sample's class probabilities, in nats. coverage: the sum over the classes of the lesser of the shares of
    samples and of real images that are taken for it, 1 where they agree (mode_coverage). frechet:
    frechet_distance of the features, as a share of the real features' total variance. The floor of each is
    what held-out real images score.
    """

    confidence: MetricResult
    entropy: MetricResult
    coverage: MetricResult
    frechet: MetricResult


@torch.no_grad()
def classifier_accuracy(model: ImageClassifier, images: Tensor, labels: Tensor) -> MetricResult:
    """The share of images whose class is recognised; its floor is NaN, for there is nothing to compare."""
    right = (_in_batches(model, images).argmax(1) == labels).double().numpy()
    return MetricResult(float(right.mean()), math.nan, standard_error(right), (len(images), len(images)))


@torch.no_grad()
def image_fidelity(
    model: ImageClassifier, samples: Tensor, real: Tensor, *, seed: int | torch.Generator = 0
) -> ImageFidelity:
    """Samples against held-out real images, both (n, *model.shape) float32 and finite, at least 4 of each.

    model: trained on other images of the same kind, in eval mode.
    Raises TypeError or ValueError naming the argument.
    """
    for name, images in (("samples", samples), ("real", real)):
        accepted = f"an (n, {', '.join(map(str, model.shape))}) float32 tensor of at least 4 images"
        if not isinstance(images, Tensor) or images.dtype != torch.float32:
            raise _checks.bad_type(name, images, accepted)
        if images.shape[1:] != model.shape or len(images) < 4:
            raise _checks.bad_value(name, images, accepted)
        _checks.finite(name, images)
    classes = np.eye(model.n_classes)
    p, q = (_in_batches(model, images).double().softmax(1).numpy() for images in (samples, real))
    x, y = (_in_batches(model.features, images).double() for images in (samples, real))
    scale = y.var(0).sum().sqrt().clamp_min(1e-300)  # the unit of features means nothing
    return ImageFidelity(
        _mean(p.max(1), q.max(1)),
        _mean(_entropy(p), _entropy(q)),
        mode_coverage(classes[p.argmax(1)], classes[q.argmax(1)], classes, 0.5, seed=seed),
        frechet_distance(x / scale, y / scale, seed=seed),
    )


def _in_batches(function: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    return torch.cat([function(part) for part in images.split(1024)])


def _mean(values: np.ndarray, real: np.ndarray) -> MetricResult:
    return MetricResult(
        float(values.mean()), float(real.mean()), standard_error(values), (len(values), len(real))
    )


def _entropy(p: np.ndarray) -> np.ndarray:
    return -np.sum(p * np.log(np.maximum(p, 1e-300)), axis=1)
