"""Distances between samples and data, and likelihoods of data, each with what fresh real data would get.

A number alone says little: even perfect samples have a distance above 0 to a finite data set, and a share
below 1 of it. So every result carries a `floor`, real data in the place of the samples, and a `spread`. The
two likelihoods have a floor only if held-out rows are given as `reference`, and NaN otherwise; so have the
others where the rows are too few to be split.

All but those of images take (n, dim) arrays or tensors of finite numbers of magnitude up to 1e30, without a
mask.

    distances       emd, emd_sum, sliced_wasserstein, energy_distance, frechet_distance
    densities       kernel_nll, kde_score
    coverage        mode_coverage, precision_recall
    of images       image_fidelity, by an ImageClassifier (train_classifier, classifier_accuracy)
    of a model      log_likelihood (log_density per row), variational_bound
"""

from __future__ import annotations

from diffusion_fast.metrics.coverage import PrecisionRecall, mode_coverage, precision_recall
from diffusion_fast.metrics.density import kde_log_density, kde_score, kernel_nll
from diffusion_fast.metrics.frechet import frechet_distance
from diffusion_fast.metrics.image_fidelity import (
    ImageClassifier,
    ImageFidelity,
    classifier_accuracy,
    image_fidelity,
    train_classifier,
)
from diffusion_fast.metrics.likelihood import log_density, log_likelihood, variational_bound
from diffusion_fast.metrics.result import MetricResult
from diffusion_fast.metrics.transport import emd, emd_sum, energy_distance, sliced_wasserstein

__all__ = [
    "ImageClassifier",
    "ImageFidelity",
    "MetricResult",
    "PrecisionRecall",
    "classifier_accuracy",
    "emd",
    "emd_sum",
    "energy_distance",
    "frechet_distance",
    "image_fidelity",
    "kde_log_density",
    "kde_score",
    "kernel_nll",
    "log_density",
    "log_likelihood",
    "mode_coverage",
    "precision_recall",
    "sliced_wasserstein",
    "train_classifier",
    "variational_bound",
]
