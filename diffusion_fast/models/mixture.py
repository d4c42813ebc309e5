"""The exact denoiser of a mixture of Gaussians on the line: what a network of any size can at best learn."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from diffusion_fast import _checks
from diffusion_fast.datasets import Mixture
from diffusion_fast.schedules import NoiseSchedule


class MixtureDenoiser(nn.Module):
    """E[epsilon | x_t = x] where x_0 is of a mixture of one-dimensional Gaussians.

    x_t = sqrt(abar_t) x_0 + sqrt(1 - abar_t) epsilon is a mixture of as many Gaussians, with means
    m_k = sqrt(abar_t) mu_k and variances v_k = abar_t var_k + 1 - abar_t. By Tweedie's formula (Robbins 1956)
    E[epsilon | x] = sqrt(1 - abar_t) sum_k r_k (x - m_k) / v_k, r_k the posterior weights of the components.
    Nothing in it is trained.

    mixture: of one-dimensional rows (`Dataset.mixture`), else ValueError. Attributes: dim = 1, shape = (1,),
    n_steps.
    """

    def __init__(self, mixture: Mixture, schedule: NoiseSchedule) -> None:
        super().__init__()
        if not isinstance(mixture, Mixture):
            raise _checks.bad_type("mixture", mixture, "a datasets.Mixture")
        if mixture.centers.shape[1] != 1:
            given = f"one of {mixture.centers.shape[1]}-dimensional rows"
            raise _checks.bad_value("mixture", given, "one of one-dimensional rows")
        if not isinstance(schedule, NoiseSchedule):
            raise _checks.bad_type("schedule", schedule, "a NoiseSchedule")
        self.dim, self.shape, self.n_steps = 1, (1,), len(schedule)
        abar = schedule.alphas_cumprod.unsqueeze(1)
        weights, centers = torch.from_numpy(mixture.weights), torch.from_numpy(mixture.centers[:, 0])
        variances = abar * torch.from_numpy(mixture.covariances[:, 0, 0]) + 1 - abar
        tables = {
            "means": abar.sqrt() * centers,
            "precisions": 1 / variances,
            "log_weights": weights.log() - variances.log() / 2,
            "noise": (1 - abar).sqrt(),
        }
        for name, table in tables.items():
            self.register_buffer(name, table.float())

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """x (B, 1) floating, t (B,) integer in [0, n_steps) -> (B, 1).

        Raises ValueError for an x of another shape.
        """
        if x.ndim != 2 or x.shape[1] != 1:
            raise _checks.bad_value("x", x, "a (batch, 1) tensor")
        gaps = x - self.get_buffer("means")[t]
        pulls = gaps * self.get_buffer("precisions")[t]
        shares = torch.softmax(self.get_buffer("log_weights")[t] - gaps * pulls / 2, dim=-1)
        return self.get_buffer("noise")[t] * (shares * pulls).sum(dim=-1, keepdim=True)
