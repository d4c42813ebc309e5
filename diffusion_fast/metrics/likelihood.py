"""Likelihood of data under a denoiser: exact by the probability-flow ODE, and the variational bound."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.interpolate import CubicSpline
from torch import Tensor, nn

from diffusion_fast import _checks
from diffusion_fast.capture import network_time
from diffusion_fast.metrics.result import MetricResult, rows, standard_error
from diffusion_fast.sampler import Sampler
from diffusion_fast.schedules import NoiseSchedule
from diffusion_fast.solvers.levels import Levels
from diffusion_fast.torch_chain import MODULE_CHUNK

MAX_EXACT_DIM = 64  # the divergence takes a pass through the network for every column


def log_likelihood(
    model: nn.Module,
    schedule: NoiseSchedule,
    data: Any,
    *,
    steps: int | None = None,
    prediction_type: str = "epsilon",
    time_input: str = "index",
    labels: Any = None,
    reference: Any = None,
    reference_labels: Any = None,
) -> MetricResult:
    """Mean of `log_density` over the rows of data, in nats per row: higher is better.

    `spread` is its standard error over the rows. `floor` is the same mean over `reference`, and NaN without
    it, for the best value, minus the entropy of the data's law, is not known.

    Args:
        reference: real rows that the model was not trained on, (m, dim) as data; or None.
        reference_labels: (m,), as labels are for data; given with both labels and reference, not otherwise.
        others: those of `log_density`.

    Raises TypeError or ValueError naming the argument.
    """
    how = (prediction_type, time_input)
    prepared = _with_reference(model, schedule, (data, labels), (reference, reference_labels), how)
    _check_dim(data)
    steps = _check_steps(steps, schedule)
    return _result([_log_density(network, x, steps) for network, x in prepared])


def log_density(
    model: nn.Module,
    schedule: NoiseSchedule,
    data: Any,
    *,
    steps: int | None = None,
    prediction_type: str = "epsilon",
    time_input: str = "index",
    labels: Any = None,
) -> np.ndarray:
    """log p(x) in nats of every row, (n,) float64, by the probability-flow ODE (Song et al. 2021).

    p is the law of what the ODE makes of N(0, I) at the last timestep (their section 4.3 and appendix D.2).
    With abar = cos^2(phi) the ODE of the variance-preserving process is dx/dphi = v(x, phi), where
    v = cos(phi) epsilon - sin(phi) x0 (Salimans & Ho 2022, appendix D), and log p(x) is log N(x_end; 0, I)
    plus the integral of div v over phi, from 0 at the data to the last timestep. Between timesteps phi^2 is
    a cubic spline, through its values at all of them and 0 at the data; the network is evaluated at
    timesteps of the schedule only. From the data to the first timestep, where no network was trained, its
    score is that of the first timestep: beta_0 must be small beside the variance of the data's finest detail.
    Integrated in float64 by Runge-Kutta of order 4 with exact divergence (dim passes of torch.func.vjp); the
    network runs in the type of its weights.

    The density is that of the rows as given: for standardised rows add minus the sum of log standardiser.std
    to have it in the data's own units.

    Args:
        model: as `Sampler` takes it, on rows: model(x, t) or, with classes, model(x, t, y), in eval mode.
        schedule: its NoiseSchedule; the last abar should be near 0, as for sampling.
        data: (n, dim) finite numbers, dim at most 64.
        steps: Runge-Kutta steps, 1 to T // 2, each with four evaluations; None takes T // 2, two timesteps
            each. Half as many steps tell how large the discretisation error is.
        prediction_type, time_input: as for `Sampler`.
        labels: (n,) integers in [0, n_classes] for a model with classes; None means the null class.

    Raises TypeError or ValueError naming the argument.
    """
    network, x = _prepare(model, schedule, (data, labels), (prediction_type, time_input))
    _check_dim(data)
    return _log_density(network, x, _check_steps(steps, schedule))


def variational_bound(
    model: nn.Module,
    schedule: NoiseSchedule,
    data: Any,
    *,
    variance: str = "beta",
    prediction_type: str = "epsilon",
    time_input: str = "index",
    labels: Any = None,
    seed: int | torch.Generator = 0,
    reference: Any = None,
    reference_labels: Any = None,
) -> MetricResult:
    """Upper bound on the mean of -log p(x) in nats per row, of the discrete chain (Ho et al. 2020, eq. 5).

    p is the law of what ancestral sampling makes of N(0, I), with noise added by the last step too. The bound
    is KL(q(x_T | x) || N(0, I)), plus KL(q(x_prev | x_t, x) || p(x_prev | x_t)) of every later step, plus
    -log p(x | x_first), a Gaussian density (their decoder, for continuous data). The expectations over q
    take one draw of x_t for each row and timestep: n T evaluations of the network.
    `spread` is the standard error over the rows, of these draws included. `floor` is the bound of
    `reference`, and NaN without it.

    Args:
        variance: of a step: "beta" for beta_t, "posterior" for beta_t (1 - abar_prev) / (1 - abar_t), which
            is loose where betas grow fast from step to step. The step that ends at the data, where the
            posterior's is 0, takes beta_0 in both.
        seed: of the draws.
        model, schedule, data, prediction_type, time_input, labels: as for `log_density`; any dim.
        reference, reference_labels: as for `log_likelihood`.

    Raises TypeError or ValueError naming the argument, and ValueError for a schedule whose last abar is 0
    with a prediction of epsilon.
    """
    _checks.choice("variance", variance, ("beta", "posterior"))
    how = (prediction_type, time_input)
    prepared = _with_reference(model, schedule, (data, labels), (reference, reference_labels), how)
    generator = torch.Generator().manual_seed(_checks.seed("seed", seed))
    return _result([_bounds(network, x, variance, generator) for network, x in prepared])


def _result(values: list[np.ndarray]) -> MetricResult:
    """Of the rows' own values: those of data, then those of the reference if there is one."""
    own, real = values[0], values[-1]
    floor = float(real.mean()) if len(values) > 1 else math.nan
    return MetricResult(float(own.mean()), floor, standard_error(own), (len(own), len(real)))


def _check_dim(data: Any) -> None:
    if data.shape[1] > MAX_EXACT_DIM:
        raise _checks.bad_value("data", data, f"rows of at most {MAX_EXACT_DIM} numbers")


def _check_steps(steps: int | None, schedule: NoiseSchedule) -> int:
    half = len(schedule) // 2
    return half if steps is None else _checks.integer("steps", steps, 1, max(1, half))


def _log_density(network: _Network, x: Tensor, steps: int) -> np.ndarray:
    path = list(_path(network.levels, steps))
    found = []
    for part in network.parts():
        end, change = _integrate(network.flow(part), x[part], path)
        found.append(change - 0.5 * (end * end).sum(1) - 0.5 * x.shape[1] * math.log(2 * math.pi))
    return torch.cat(found).numpy()


def _bounds(network: _Network, x: Tensor, variance: str, generator: torch.Generator) -> np.ndarray:
    levels, dim = network.levels, x.shape[1]
    abar, var = float(levels.sqrt_abar[0]) ** 2, float(levels.var[0])
    bounds = 0.5 * (abar * (x * x).sum(1) + dim * (var - 1 - math.log(var)))  # of x_T against the prior
    steps = [_Step.of(levels, row, variance) for row in range(len(levels.t))]
    with torch.no_grad():
        for part in network.parts():
            clean = x[part]
            for row, step in enumerate(steps):
                noise = torch.randn(clean.shape, generator=generator, dtype=torch.float64)
                noisy = levels.sqrt_abar[row] * clean + math.sqrt(levels.var[row]) * noise
                error = clean - network.sample(noisy, row, part)
                bounds[part] += step.weight * (error * error).sum(1) + dim * step.constant
    return bounds.numpy()


class _Step(NamedTuple):
    """A term of the bound: weight |x0 - predicted x0|^2 + dim constant."""

    weight: float
    constant: float

    @classmethod
    def of(cls, levels: Levels, row: int, variance: str) -> _Step:
        beta, var, var_prev = (float(part[row]) for part in (levels.beta, levels.var, levels.var_prev))
        if row == len(levels.t) - 1:  # its mean is the predicted x0 itself
            return cls(0.5 / beta, 0.5 * math.log(2 * math.pi * beta))
        true = beta * var_prev / var
        own = beta if variance == "beta" else true
        shift = float(levels.sqrt_abar_prev[row]) * beta / var  # of the mean, per unit of x0 (eq. 7)
        return cls(0.5 * shift**2 / own, 0.5 * (true / own - 1 - math.log(true / own)))


class _Network:
    """A checked model as predictions in float64 of rows of the data; row 0 of the levels is the noisiest."""

    def __init__(self, sampler: Sampler, prediction_type: str, labels: Tensor | None, n: int) -> None:
        self.model = sampler.model
        self.levels = Levels.of(sampler.schedule, None, "leading", None)
        self.times = network_time(self.levels.t, sampler.time_input, sampler.schedule)
        self.labels, self.n = labels, n
        self.x0, self.epsilon = self.levels.predictions(prediction_type)
        floats = [w for w in (*self.model.parameters(), *self.model.buffers()) if w.is_floating_point()]
        self.dtype = floats[0].dtype if floats else torch.float32

    def parts(self) -> Iterator[slice]:
        for at in range(0, self.n, MODULE_CHUNK):
            yield slice(at, min(at + MODULE_CHUNK, self.n))

    def output(self, x: Tensor, row: int, part: slice) -> Tensor:
        """F(x, t), float64, like x."""
        t = self.times[row].expand(len(x))
        arguments = (t,) if self.labels is None else (t, self.labels[part])
        output = self.model(x.to(self.dtype), *arguments)
        if not isinstance(output, Tensor):
            raise _checks.bad_type("model", output, f"one that returns a tensor of shape {tuple(x.shape)}")
        if output.shape != x.shape:
            raise _checks.bad_value("model", output, f"one that returns a tensor of shape {tuple(x.shape)}")
        return output.to(torch.float64)

    def sample(self, x: Tensor, row: int, part: slice) -> Tensor:
        """The predicted x0."""
        return self.x0.x[row] * x + self.x0.F[row] * self.output(x, row, part)

    def flow(self, part: slice) -> Callable[[Tensor, int], tuple[Tensor, Tensor]]:
        """v and its divergence as a function of x and the row of the levels."""
        cos, sin = self.levels.sqrt_abar, np.sqrt(self.levels.var)
        by_x, by_F = cos * self.epsilon.x - sin * self.x0.x, cos * self.epsilon.F - sin * self.x0.F

        def v(x: Tensor, row: int) -> tuple[Tensor, Tensor]:
            evaluated = torch.func.vjp(lambda u: self.output(u, row, part), x)
            output, pull = evaluated[0], evaluated[1]
            divergence = by_x[row] * x.shape[1] * torch.ones(len(x), dtype=x.dtype)
            for column in range(x.shape[1]):
                # Rows do not mix, so the pull of a whole column gives that entry of every row's Jacobian.
                unit = torch.zeros_like(x)
                unit[:, column] = 1
                divergence += by_F[row] * pull(unit)[0][:, column]
            return by_x[row] * x + by_F[row] * output, divergence

        return v


class _Node(NamedTuple):
    """Where an evaluation happens: dx/du = rate * v(x, row), u counting timesteps from the data at -1."""

    row: int
    rate: float


def _path(levels: Levels, steps: int) -> Iterator[tuple[float, tuple[_Node, _Node, _Node]]]:
    """Lengths in u of the steps from the data to the last timestep, each with its start, middle and end."""
    T = len(levels.t)
    phi = np.arctan2(np.sqrt(levels.var), levels.sqrt_abar)[::-1]
    # phi^2 is smooth where the betas are: at the data, phi starts as a square root or as a straight line.
    square = CubicSpline(np.arange(-1, T), np.concatenate([[0.0], phi**2])).derivative()

    def node(u: float) -> _Node:
        t = max(math.floor(u), 0)
        return _Node(T - 1 - t, float(square(u)) / (2 * phi[t]))  # below 0: v of the first, scaled by phi

    begin = -1
    if T % 2:
        yield 1.0, (node(-1), node(-0.5), node(0))
        begin = 0
    ends = begin + 2 * np.unique(np.round(np.linspace(0, T // 2, steps + 1)).astype(int))
    for low, high in zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True):
        yield float(high - low), (node(low), node((low + high) // 2), node(high))


@torch.no_grad()
def _integrate(
    flow: Callable[[Tensor, int], tuple[Tensor, Tensor]],
    x: Tensor,
    path: list[tuple[float, tuple[_Node, _Node, _Node]]],
) -> tuple[Tensor, Tensor]:
    """The classical Runge-Kutta method: x at the end, and the integral of the divergence along the way."""
    total = torch.zeros(len(x), dtype=torch.float64)
    for length, (low, middle, high) in path:
        move, change = torch.zeros_like(x), torch.zeros_like(total)
        slope = torch.zeros_like(x)
        for node, reach, weight in ((low, 0, 1), (middle, 0.5, 2), (middle, 0.5, 2), (high, 1, 1)):
            v, divergence = flow(x + reach * length * slope, node.row)
            slope = node.rate * v
            move += weight / 6 * length * slope
            change += weight / 6 * length * node.rate * divergence
        x, total = x + move, total + change
    return x, total


def _with_reference(
    model: Any, schedule: Any, given: tuple[Any, Any], reference: tuple[Any, Any], how: tuple[str, str]
) -> list[tuple[_Network, Tensor]]:
    """The network and rows of data, then of the reference if there is one; each given with its labels."""
    prepared = [_prepare(model, schedule, given, how)]
    wanted = reference[0] is not None and given[1] is not None
    if wanted != (reference[1] is not None):
        accepted = "labels of the reference, as data has" if wanted else "None without reference and labels"
        raise _checks.bad_value("reference_labels", reference[1], accepted)
    if reference[0] is not None:
        prepared.append(_prepare(model, schedule, reference, how, ("reference", "reference_labels")))
        (_, x), (_, real) = prepared
        if x.shape[1] != real.shape[1]:
            raise _checks.bad_value("reference", reference[0], f"rows of {x.shape[1]} numbers, as data has")
    return prepared


def _prepare(
    model: Any,
    schedule: Any,
    given: tuple[Any, Any],
    how: tuple[str, str],
    names: tuple[str, str] = ("data", "labels"),
) -> tuple[_Network, Tensor]:
    """Everything checked before work begins. given: rows, labels; how: prediction type, time input."""
    x, labels = rows(names[0], given[0]), given[1]
    prediction_type, time_input = how
    own = getattr(model, "shape", None)
    if isinstance(own, tuple) and own != x.shape[1:]:
        raise _checks.bad_value(names[0], given[0], f"rows of the model's shape {own}")
    sampler = Sampler(
        model,
        schedule,
        shape=x.shape[1:],
        prediction_type=prediction_type,
        time_input=time_input,
        backend="torch",
    )
    classes = sampler.n_classes
    if not classes and labels is not None:
        raise _checks.bad_value(names[1], labels, "None, for the model has no classes")
    y = None
    if classes:
        accepted = f"({len(x)},) integers from 0 to {classes} (the null class), or None"
        labels = np.full(len(x), classes) if labels is None else labels
        y = _checks.class_labels(names[1], labels, len(x), classes, accepted)
    network = _Network(sampler, prediction_type, y, len(x))
    return network, torch.from_numpy(x).to(torch.float64)
