"""k-diffusion's sample_* functions with every step in one fused pass over memory (`ops.reverse_step`).

Arguments and results are those of k_diffusion.sampling. model(x, sigma, **extra_args) is a denoiser, with
sigma of shape (B,). x (B, *shape), float32 or half precision on the CPU, is the noise to start from, already
of deviation sigmas[0]. sigmas (n + 1,) descends strictly and ends with 0. callback is given a dict of x, i,
sigma, sigma_hat and denoised once a step; disable is tqdm's. The functions differ in their table only.

Noise comes from noise_sampler(sigma, sigma_next) where it is given, else from the package's stream with a
seed drawn from torch's global generator, so that torch.manual_seed repeats a run. k-diffusion's default for
the SDE solvers is a Brownian tree: on fixed sigmas that has the same law.

Without a callback the x that model is given is updated in place after the call: a model that keeps it must
copy.

>>> import torch
>>> from diffusion_fast.integrations import k_diffusion as K
>>> sigmas = torch.tensor([10.0, 3.0, 1.0, 0.3, 0.0])
>>> x = K.sample_dpmpp_2m(lambda x, sigma: x / (1 + sigma[:, None] ** 2), 10 * torch.ones(4, 2), sigmas)
>>> x.shape
torch.Size([4, 2])
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from tqdm.auto import tqdm

from diffusion_fast import _checks, ops, solvers
from diffusion_fast.noise import normal
from diffusion_fast.sigma_schedules import SigmaSchedule
from diffusion_fast.solvers.table import TERM_BITS, StepTable

Denoiser = Callable[..., Tensor]
NoiseSampler = Callable[[Tensor, Tensor], Tensor]
Callback = Callable[[dict[str, Any]], object]
Arguments = dict[str, Any] | None


def sample_euler(
    model: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Arguments = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Tensor:
    """Karras et al. 2022, Algorithm 2, with steps of Euler. Returns x like x; see the module.

    Raises TypeError or ValueError naming the argument.
    """
    churn = {"s_churn": s_churn, "s_tmin": s_tmin, "s_tmax": s_tmax, "s_noise": s_noise}
    table = _table(solvers.edm, sigmas, solver_order=1, **churn)
    return _run(table, model, x, sigmas, extra_args, callback, disable)


def sample_heun(
    model: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Arguments = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Tensor:
    """Karras et al. 2022, Algorithm 2. Returns x like x; see the module.

    Raises TypeError or ValueError naming the argument.
    """
    churn = {"s_churn": s_churn, "s_tmin": s_tmin, "s_tmax": s_tmax, "s_noise": s_noise}
    table = _table(solvers.edm, sigmas, **churn)
    return _run(table, model, x, sigmas, extra_args, callback, disable, two_stages=True)


def sample_dpm_2(
    model: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Arguments = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    s_churn: float = 0.0,
    s_tmin: float = 0.0,
    s_tmax: float = math.inf,
    s_noise: float = 1.0,
) -> Tensor:
    """DPM-Solver-2 (Lu et al. 2022, Algorithm 1). Returns x like x; see the module.

    s_churn must be 0, and then s_tmin, s_tmax and s_noise have no effect.

    Raises TypeError or ValueError naming the argument.
    """
    if s_churn != 0:
        raise _checks.bad_value("s_churn", s_churn, "0 in sample_dpm_2; sample_euler and sample_heun churn")
    table = _table(solvers.dpm_solver_2, sigmas)
    return _run(table, model, x, sigmas, extra_args, callback, disable, two_stages=True)


def sample_euler_ancestral(
    model: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Arguments = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """`solvers.euler_ancestral`. Returns x like x; see the module.

    Raises TypeError or ValueError naming the argument.
    """
    table = _table(solvers.euler_ancestral, sigmas, eta=eta, s_noise=s_noise)
    return _run(table, model, x, sigmas, extra_args, callback, disable, noise_sampler)


def sample_lms(
    model: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Arguments = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    order: int = 4,
) -> Tensor:
    """`solvers.lms`, with order 1 to 4. Returns x like x; see the module.

    Raises TypeError or ValueError naming the argument.
    """
    table = _table(solvers.lms, sigmas, solver_order=_checks.integer("order", order, 1, 4))
    return _run(table, model, x, sigmas, extra_args, callback, disable)


def sample_dpmpp_2s_ancestral(
    model: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Arguments = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """`solvers.dpmpp_2s_ancestral`. Returns x like x; see the module.

    Raises TypeError or ValueError naming the argument.
    """
    table = _table(solvers.dpmpp_2s_ancestral, sigmas, eta=eta, s_noise=s_noise)
    return _run(table, model, x, sigmas, extra_args, callback, disable, noise_sampler, two_stages=True)


def sample_dpmpp_2m(
    model: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Arguments = None,
    callback: Callback | None = None,
    disable: bool | None = None,
) -> Tensor:
    """`solvers.dpmpp_2m`. Returns x like x; see the module.

    Raises TypeError or ValueError naming the argument.
    """
    return _run(_table(solvers.dpmpp_2m, sigmas), model, x, sigmas, extra_args, callback, disable)


def sample_dpmpp_2m_sde(
    model: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Arguments = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
    solver_type: str = "midpoint",
) -> Tensor:
    """`solvers.dpmpp_2m_sde`, solver_type "midpoint" or "heun". Returns x like x; see the module.

    Raises TypeError or ValueError naming the argument.
    """
    table = _table(solvers.dpmpp_2m_sde, sigmas, eta=eta, s_noise=s_noise, solver_type=solver_type)
    return _run(table, model, x, sigmas, extra_args, callback, disable, noise_sampler)


def sample_dpmpp_3m_sde(
    model: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Arguments = None,
    callback: Callback | None = None,
    disable: bool | None = None,
    eta: float = 1.0,
    s_noise: float = 1.0,
    noise_sampler: NoiseSampler | None = None,
) -> Tensor:
    """`solvers.dpmpp_3m_sde`. Returns x like x; see the module.

    Raises TypeError or ValueError naming the argument.
    """
    table = _table(solvers.dpmpp_3m_sde, sigmas, eta=eta, s_noise=s_noise)
    return _run(table, model, x, sigmas, extra_args, callback, disable, noise_sampler)


def noise_sampler(x: Tensor, *, seed: int | torch.Generator | None = None) -> NoiseSampler:
    """A noise_sampler for k-diffusion's own functions: call k returns step k of the package's stream, like x.

    x: (B, *shape). seed: in [0, 2^64), or a torch.Generator from which one is drawn; None for torch's global
    one. Sample i's noise depends on (seed, i, k) alone: neither on the batch nor on the sigmas, so that a run
    with other sigmas is another path of the SDE. Raises TypeError or ValueError naming the argument.
    """
    _check_x(x)
    key = _checks.seed("seed", torch.default_generator if seed is None else seed)
    steps = itertools.count()

    def draw(sigma: Any, sigma_next: Any) -> Tensor:
        z = normal(x.shape[0], math.prod(x.shape[1:]), seed=key, step=next(steps))
        return z.view(x.shape).to(x.dtype)

    return draw


def _check_x(x: Any) -> None:
    accepted = "a tensor of at least one axis, which counts samples"
    if not isinstance(x, Tensor):
        raise _checks.bad_type("x", x, accepted)
    if x.ndim == 0:
        raise _checks.bad_value("x", x, accepted)


def _table(solver: Callable[..., StepTable], sigmas: Any, **options: Any) -> StepTable:
    """The solver's rows for a network that returns x0, on an x that has its noise already.

    The first row, which evaluates nothing, would scale N(0, I) to deviation sigmas[0]. Scaling by 1 makes it
    the copy that leaves the caller's x as it is; the noise that `edm` puts there stays.
    """
    accepted = "a 1-D tensor of at least two strictly descending numbers, the last of them 0"
    if not isinstance(sigmas, Tensor):
        raise _checks.bad_type("sigmas", sigmas, accepted)
    if sigmas.ndim != 1 or len(sigmas) < 2 or sigmas[-1] != 0:
        given = sigmas.tolist() if sigmas.ndim == 1 and len(sigmas) < 8 else sigmas
        raise _checks.bad_value("sigmas", given, accepted)
    table = solver(SigmaSchedule(sigmas[:-1]), prediction_type="sample", **options)
    rows = table.rows.copy()
    rows["a"][0] = 1.0
    return StepTable(rows, table.timesteps, table.table_timesteps, table.solver)


@torch.no_grad()
def _run(
    table: StepTable,
    model: Denoiser,
    x: Tensor,
    sigmas: Tensor,
    extra_args: Arguments,
    callback: Callback | None,
    disable: bool | None,
    noise_sampler: NoiseSampler | None = None,
    *,
    two_stages: bool = False,
) -> Tensor:
    """Runs the table; two_stages: a row that pushes is the first half of a step."""
    _check_x(x)
    given = {} if extra_args is None else extra_args
    if not isinstance(given, dict):
        raise _checks.bad_type("extra_args", extra_args, "a dict of arguments of the model, or None")
    depth = max((k for k in (1, 2, 3) if table.terms & TERM_BITS[f"c{k}"]), default=0)
    history = [torch.zeros_like(x, memory_format=torch.contiguous_format) for _ in range(depth)]
    draws = noise_sampler is None and table.terms & TERM_BITS["s"]
    seed = _checks.seed("seed", torch.default_generator) if draws else None
    step, begins = 0, True
    with tqdm(total=len(sigmas) - 1, disable=disable) as bar:
        for i, row in enumerate(table):
            denoised = None
            if row.eval:
                # detached, for guidance by a gradient enables grad inside the model
                denoised = model(x, x.new_full((len(x),), row.timestep), **given).detach()
                if begins and callback is not None:
                    level = {"sigma": sigmas[step], "sigma_hat": sigmas.new_tensor(row.timestep)}
                    callback({"x": x, "i": step, **level, "denoised": denoised})
            noise = None
            if noise_sampler is not None and row.s != 0:
                noise = noise_sampler(sigmas[step], sigmas[step + 1])
            # a callback may keep x
            out = x if i and callback is None else None
            x = ops.reverse_step(x, denoised, row, seed=seed, step=i, noise=noise, history=history, out=out)
            begins = not (two_stages and row.push)
            if row.eval and begins:
                step += 1
                bar.update()
    return x
