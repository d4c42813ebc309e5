"""A conditional denoiser as a classifier, without further training: the class that explains the noise best.

Li et al. 2023, "Your diffusion model is secretly a zero-shot classifier"; Clark & Jaini 2023. For a row x and
each class y, with the same noise for all classes,

    error_y(x) = sum_t w_t E_eps |eps - eps(x_t, t, y)|^2,    x_t = sqrt(abar_t) x + sqrt(1 - abar_t) eps,
    w_t = (snr_{t-1} / snr_t - 1) / 2,    snr_t = abar_t / (1 - abar_t),

the weights of the variational bound (Ho et al. 2020, eq. 5, with the posterior's variance), so that minus the
error is a bound on log p(x | y) up to what is the same for all classes. The class is the one of the *least*
error: a denoiser told the wrong class predicts the noise worse.
"""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffusion_fast import _checks
from diffusion_fast.metrics.result import rows as checked_rows
from diffusion_fast.noise import normal
from diffusion_fast.prediction import CleanPrediction
from diffusion_fast.schedules import NoiseSchedule


class ClassifierDDPM:
    """Classifies rows by the class whose expected error of the predicted noise is least.

    model: conditional, as for Sampler, in eval mode: model(x, t, y). schedule: its NoiseSchedule. steps:
    timesteps evenly spread over the schedule's, all by default; the weights are those of the bound over them.
    pairs: of noise (eps and -eps) at each of them, the same for every class and row, so that with
    backend="native" what is found for a row is a function of that row. prior: (n_classes,) shares of the
    classes, above 0; None for equal ones. seed: of the noise.
    options: shape, prediction_type, clip, n_classes, null_class, time_input and backend, as for Sampler.

    Costs 2 pairs n_classes steps evaluations of the network a row. Raises TypeError or ValueError naming the
    argument; CaptureError where backend="native" cannot run the model.
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: NoiseSchedule,
        *,
        steps: int | None = None,
        pairs: int = 4,
        prior: Any = None,
        seed: int | torch.Generator = 0,
        **options: Any,
    ) -> None:
        self.pairs = _checks.integer("pairs", pairs, 1, 1 << 15)
        self.prediction = CleanPrediction(model, schedule, steps=steps, **options)
        self.n_classes = self.prediction.sampler.n_classes
        if not self.n_classes:
            raise _checks.bad_value("model", model, "one with classes: model.n_classes, or n_classes=")
        self.log_prior = _log_prior(prior, self.n_classes)
        self.seed = _checks.seed("seed", seed)

    def __call__(self, x: Any) -> Tensor:
        """log p(y | x) of rows x (n, *shape), finite numbers in the model's units: (n, n_classes) float32.

        Raises TypeError or ValueError for other rows, as `predict`, `predict_proba` and `errors` do.
        """
        errors = self.errors(x)
        return torch.log_softmax(self.log_prior.to(errors.device) - errors, dim=1).float()

    def predict_proba(self, x: Any) -> Tensor:
        """p(y | x) by Bayes' rule from the bounds and the prior, (n, n_classes) float32; rows sum to 1.

        Raises what a call does.
        """
        return self(x).exp()

    def predict(self, x: Any) -> Tensor:
        """The likeliest class of each row, (n,) int64: with equal priors the one of the least error.

        Raises what a call does.
        """
        return self(x).argmax(dim=1)

    def errors(self, x: Any) -> Tensor:
        """The weighted expected error of each row under each class, (n, n_classes) float64.

        In terms of the predicted x0: |eps - eps_y|^2 = snr |x - x0_y|^2. Raises what a call does.
        """
        clean = self._rows(x)
        levels, shape = self.prediction.levels, self.prediction.sampler.shape
        total = torch.zeros(len(clean), self.n_classes, dtype=torch.float64, device=clean.device)
        for row, weight in enumerate(_weights(levels.var, levels.var_prev)):
            at_level = self.prediction.at(row)
            for pair in range(self.pairs):
                how: dict[str, Any] = {"seed": self.seed, "step": row, "purpose": "forward"}
                z = normal(1, prod(shape), substream=pair, device=clean.device, **how).view(shape)
                for eps in (z, -z):
                    noisy = float(levels.sqrt_abar[row]) * clean + float(levels.var[row]) ** 0.5 * eps
                    for label in range(self.n_classes):
                        x0 = at_level.sample(len(noisy), x_T=noisy, labels=label)
                        error = (clean - x0).flatten(1).double()
                        total[:, label] += weight * error.square().sum(1) / (2 * self.pairs)
        return total

    def _rows(self, x: Any) -> Tensor:
        """x as float32 rows of the model's shape, on the sampler's device."""
        shape = self.prediction.sampler.shape
        if not isinstance(x, (Tensor, np.ndarray)) or x.ndim != 1 + len(shape) or tuple(x.shape[1:]) != shape:
            error = _checks.bad_value if isinstance(x, (Tensor, np.ndarray)) else _checks.bad_type
            raise error("x", x, f"an (n, {', '.join(map(str, shape))}) array or tensor of numbers")
        flat = checked_rows("x", x.reshape(len(x), prod(shape)))
        return (
            torch.from_numpy(np.ascontiguousarray(flat, dtype=np.float32))
            .view(-1, *shape)
            .to(self.prediction.sampler.device)
        )


def _weights(var: np.ndarray, var_prev: np.ndarray) -> np.ndarray:
    """Of |x - predicted x0|^2 in the bound: half of what snr grows by in a step. The last step ends at the
    data; its decoder is a Gaussian of variance 1 - abar there, as `metrics.variational_bound` has it."""
    snr = (1 - var) / var
    return 0.5 * np.append((1 - var_prev[:-1]) / var_prev[:-1] - snr[:-1], 1 / var[-1])


def _log_prior(prior: Any, n_classes: int) -> Tensor:
    if prior is None:
        return torch.zeros(n_classes, dtype=torch.float64)
    accepted = f"({n_classes},) shares above 0, one for each class"
    try:
        shares = torch.as_tensor(prior).detach().to("cpu", torch.float64)
    except (TypeError, ValueError, RuntimeError):
        raise _checks.bad_type("prior", prior, accepted) from None
    if shares.shape != (n_classes,) or not bool((shares > 0).all()) or not bool(shares.isfinite().all()):
        raise _checks.bad_value("prior", prior, accepted)
    return (shares / shares.sum()).log()
