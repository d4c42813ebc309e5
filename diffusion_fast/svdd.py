"""Sampling towards a reward without gradients or training: soft value-based decoding of a diffusion model.

Li et al. 2024, "Derivative-free guidance in continuous and discrete diffusion models with soft value-based
decoding" (arXiv 2408.08252), algorithm 1 in its posterior-mean form, SVDD-PM. At every step

    draw M candidates   x^m ~ p(x_{t-1} | x_t)      (at first x_T^m ~ N(0, I))
    value               v^m = r(x0 predicted from x^m)
    choose              m with probability proportional to exp(v^m / alpha)

which draws from p(x) exp(r(x) / alpha) as M grows, as far as r(E[x0 | x_t]) stands for the soft value
alpha log E[exp(r(x0) / alpha) | x_t]. Where the mean of what x_t may become lies off the data and r is steep
there, it does not; SVDD-MC (the same paper) takes a soft value that was learned of noisy rows.

The target of classifier-free guidance of weight w, p(x) p(y | x)^(1 + w), is that of the reward
r(x) = log p(y | x) with alpha = 1 / (1 + w).
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from diffusion_fast import _checks, _tensors, sampler_checks
from diffusion_fast.noise import normal
from diffusion_fast.prediction import CleanPrediction
from diffusion_fast.schedules import NoiseSchedule
from diffusion_fast.solvers.ddpm import posterior
from diffusion_fast.standardiser import Standardiser

MAX_CANDIDATES = (1 << 16) - 1  # substreams of the noise, one more of which makes the choice
CANDIDATE_ROWS = 1 << 17  # of all samples together that are evaluated at once


class SVDDSampler:
    """Draws samples of a denoiser that a reward prefers.

    model, schedule: as for Sampler; of a model with classes the null class is sampled. reward: called with
    (m, *shape) float32 rows, predicted clean samples in the data's units, without gradients; returns (m,)
    finite numbers, higher is better, each of which must depend on its own row alone. value: in place of it,
    for SVDD-MC: called with (m, *shape) candidates as the model sees them and their timestep, an int; returns
    the soft value of each. alpha >= 0: the smaller, the greedier; 0 takes the best candidate. candidates: M,
    drawn at each step, of x_T too where it is not given. variance: of a step, "beta" or "posterior", as for
    solvers.ddpm. standardiser: its inverse is applied to the samples, and to what the reward is given.
    options: shape, steps, prediction_type, clip, n_classes, null_class, time_input, backend, as for Sampler.

    Candidate m takes the noise of substream m, the choice that of substream M: with backend="native" sample i
    is a function of (model, schedule, reward or value, alpha, candidates, seed, i), whatever the batch. One
    candidate is plain ancestral sampling. Costs M evaluations of network and reward a sample and step.
    Raises TypeError or ValueError naming the argument; CaptureError as Sampler does.
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: NoiseSchedule,
        reward: Callable[[Tensor], Any] | None = None,
        *,
        alpha: float,
        value: Callable[[Tensor, int], Any] | None = None,
        candidates: int = 10,
        variance: str = "posterior",
        standardiser: Standardiser | None = None,
        **options: Any,
    ) -> None:
        name, given = ("reward", reward) if value is None else ("value", value)
        if not callable(given):
            raise _checks.bad_type(name, given, "a function from (m, *shape) rows to (m,) numbers")
        if value is not None and reward is not None:
            raise _checks.bad_value("reward", reward, "None beside a value")
        self.reward, self.value = reward, value
        self.alpha = _checks.real("alpha", alpha, 0.0)
        self.candidates = _checks.integer("candidates", candidates, 1, MAX_CANDIDATES)
        _checks.choice("variance", variance, ("beta", "posterior"))
        self.prediction = CleanPrediction(model, schedule, **options)
        self.shape, self.device = self.prediction.sampler.shape, self.prediction.sampler.device
        self.standardiser = sampler_checks.check_standardiser(standardiser, self.shape)
        levels = self.prediction.levels
        self._mean_x, self._mean_x0, small = posterior(levels)
        self._deviation = np.sqrt(levels.beta if variance == "beta" else small)
        self._deviation[-1] = 0.0

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        seed: int | torch.Generator = 0,
        start: int = 0,
        x_T: Tensor | None = None,
        progress: bool = False,
    ) -> Tensor:
        """Samples start .. start + n - 1 of the seed's stream, (n, *shape) float32.

        seed, start, x_T (n, *shape): as for Sampler.sample. Raises TypeError or ValueError naming the
        argument, also where the reward returns something else than one finite number for each row.
        """
        count, first = _checks.sample_range(n, start)
        _checks.flag("progress", progress)
        if x_T is not None:
            x_T = _tensors.finite_near("x_T", x_T, (count, *self.shape), self.device)
        out = _tensors.allocate((count, *self.shape), self.device)
        size = max(1, CANDIDATE_ROWS // self.candidates)
        key = _checks.seed("seed", seed)
        with tqdm(total=count, unit="sample", disable=not progress) as bar:
            for at in range(0, count, size):
                part = slice(at, min(at + size, count))
                given = None if x_T is None else x_T[part].to(self.device)
                out[part] = self._data(self._chain(part.stop - at, key, first + at, given))
                bar.update(part.stop - at)
        return out

    def _chain(self, n: int, seed: int, start: int, x_T: Tensor | None) -> Tensor:
        shape = (n, *self.shape)
        how: dict[str, Any] = {"seed": seed, "start": start, "device": self.device}

        def candidates(row: int, purpose: str) -> Tensor:
            parts = [
                normal(n, prod(self.shape), step=row, purpose=purpose, substream=m, **how)
                for m in range(self.candidates)
            ]
            return torch.stack(parts).view(self.candidates, *shape)

        def pick(drawn: Tensor, level: int, row: int, purpose: str) -> tuple[Tensor, Tensor]:
            """One candidate of each sample, and the x0 that is predicted from it."""
            flat = drawn.flatten(0, 1)
            predicted = self.prediction.at(level).sample(len(flat), x_T=flat).view(drawn.shape)
            z = normal(n, 1, step=row, purpose=purpose, substream=self.candidates, **how)
            uniform = torch.special.ndtr(z[:, 0].double())
            chosen = choose(self._values(drawn, predicted, level), self.alpha, uniform)
            of_each = torch.arange(n, device=self.device)
            return drawn[chosen, of_each], predicted[chosen, of_each]

        if x_T is None:
            x, x0 = pick(candidates(0, "initial"), 0, 0, "initial")
        else:
            x, x0 = x_T, self.prediction.at(0).sample(n, x_T=x_T)
        for row, deviation in enumerate(self._deviation[:-1].tolist()):
            mean = float(self._mean_x[row]) * x + float(self._mean_x0[row]) * x0
            x, x0 = pick(mean + deviation * candidates(row, "step"), row + 1, row, "step")
        # The last step has no noise, and so nothing to choose from.
        return float(self._mean_x[-1]) * x + float(self._mean_x0[-1]) * x0

    def _values(self, drawn: Tensor, predicted: Tensor, row: int) -> Tensor:
        """Of (M, n, *shape) candidates at a level and what is predicted from them: (M, n) float64."""
        if self.value is not None:
            name, given = "value", self.value(drawn.flatten(0, 1).clone(), int(self.prediction.levels.t[row]))
        else:
            assert self.reward is not None
            rows = self._data(predicted.flatten(0, 1))
            name, given = (
                "reward",
                self.reward(rows.clone() if rows.data_ptr() == predicted.data_ptr() else rows),
            )
        count = drawn.shape[0] * drawn.shape[1]
        accepted = f"one that returns ({count},) finite numbers for as many rows"
        value = (
            torch.from_numpy(given) if isinstance(given, np.ndarray) and given.dtype.kind == "f" else given
        )
        if not isinstance(value, Tensor) or not value.is_floating_point():
            raise _checks.bad_type(name, given, accepted)
        if value.shape != (count,):
            raise _checks.bad_value(name, given, accepted)
        return _checks.finite(name, value.to(self.device, torch.float64)).view(drawn.shape[:2])

    def _data(self, x: Tensor) -> Tensor:
        """Rows in the data's own units."""
        return x if self.standardiser is None else self.standardiser.inverse(x)


def choose(value: Tensor, alpha: float, uniform: Tensor) -> Tensor:
    """One of M candidates for each of n samples, with probability proportional to exp(value / alpha).

    value (M, n) float64; uniform (n,) in (0, 1) is where in the cumulative distribution the choice falls.
    alpha = 0: the first of the highest. -> (n,) int64.
    """
    if alpha == 0:
        return value.argmax(dim=0)
    share = torch.softmax(value / alpha, dim=0)
    return (share.cumsum(0) < uniform * share.sum(0)).sum(0).clamp_max(len(value) - 1)
