"""What bad arguments to a metric get: an error that names the argument, the value and what is accepted.

One row per (argument, fault); every message has the form "argument: got GIVEN; accepted: WHAT", and the two
regular expressions are searched in GIVEN and WHAT.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from bad_input import INF, META, NAN, SCHEDULE, Either, T, Ty, V, net
from torch import nn

import diffusion_fast as df
from diffusion_fast import metrics as m

X = np.random.default_rng(0).standard_normal((12, 2))
PLANE = np.stack([X[:, 0], 3 * X[:, 0]], axis=1)
MODEL, CONDITIONAL = net(), net(3)
BAD_ROWS = X.copy()
BAD_ROWS[3, 1] = NAN


class Case(NamedTuple):
    argument: str  # the metric and the argument that the message names
    fault: str
    call: Callable[[], Any]
    error: tuple[type[Exception], ...]
    given: str
    accepted: str


class Says(nn.Module):
    """A model whose output is not what it should be."""

    def __init__(self, output: Any) -> None:
        super().__init__()
        self.output, self.shape = output, (2,)
        self.eval()

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> Any:
        return self.output(x)


class OfAnyShape(nn.Module):
    """A model that does not say the shape of a sample."""

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return x


def exact(model: Any = MODEL, schedule: Any = SCHEDULE, data: Any = X, **options: Any) -> Any:
    return m.log_likelihood(model, schedule, data, **options)


def bound(model: Any = MODEL, schedule: Any = SCHEDULE, data: Any = X, **options: Any) -> Any:
    return m.variational_bound(model, schedule, data, **options)


def modes(x: Any = X, data: Any = X, centers: Any = X[:3], radius: Any = 0.5, **options: Any) -> Any:
    return m.mode_coverage(x, data, centers, radius, **options)


# Checked alike by every metric of two sets, in every position.
TWO_SETS: dict[str, Callable[[Any, Any], Any]] = {
    "emd x y": m.emd,
    "emd_sum x y": lambda x, y: m.emd_sum(x, y, 2),
    "sliced_wasserstein x y": m.sliced_wasserstein,
    "energy_distance x y": m.energy_distance,
    "kernel_nll x data": m.kernel_nll,
    "kde_score x data": m.kde_score,
    "mode_coverage x data": modes,
    "precision_recall x data": m.precision_recall,
}
BAD_SETS: list[tuple[str, Any, tuple[type[Exception], ...], str, str]] = [
    ("one axis", X[:, 0], V, r"\(12,\)", r"\(n, dim\)"),
    ("three axes", X[None], V, r"\(1, 12, 2\)", r"\(n, dim\)"),
    ("empty", X[:0], V, r"\(0, 2\)", "n >= 1"),
    ("NaN", BAD_ROWS, V, r"nan at index \(3, 1\)", "finite"),
    ("infinity", np.full((12, 2), INF), V, "inf", "finite"),
    (
        "beyond float32",
        np.where(np.arange(24).reshape(12, 2) == 7, -1e39, X),
        V,
        r"-1e\+39 at row 3, column 1",
        "finite numbers of magnitude up to 1e\\+30, for",
    ),
    ("square beyond float64", 1e200 * X, V, r"e\+\d+ at row 0, column 0", "up to 1e\\+30"),
    ("masked", np.ma.masked_array(X, X > 1), Ty, r"masked array of shape \(12, 2\)", "without a mask"),
    ("list", X.tolist(), Ty, "list", "array or tensor"),
    ("text", np.array([["a", "b"]]), Ty, "<U1 array", "numbers"),
    ("complex tensor", torch.zeros(5, 2, dtype=torch.complex64), Ty, "complex64", "numbers"),
    ("meta device", torch.zeros(5, 2, device=META), V, "on meta", "array or tensor"),
]


def two_set_cases() -> list[Case]:
    cases = []
    for names, metric in TWO_SETS.items():
        name, first, second = names.split()
        for fault, bad, error, given, accepted in BAD_SETS:
            cases.append(
                Case(f"{name} {first}", fault, lambda f=metric, b=bad: f(b, X), error, given, accepted)
            )
            cases.append(
                Case(f"{name} {second}", fault, lambda f=metric, b=bad: f(X, b), error, given, accepted)
            )
        wide = np.zeros((12, 3))
        accepted = "rows of 2 numbers"
        cases.append(
            Case(
                f"{name} {first}", "dimension", lambda f=metric, b=wide: f(b, X), V, "3", "rows of 2 numbers"
            )
        )
    return cases


# fmt: off
CASES = [
    *two_set_cases(),
    Case("emd n", "above the rows of x", lambda: m.emd(X[:7], X, 8), V, "8", "1 to 7"),
    Case("emd n", "above the rows of y", lambda: m.emd(X, X[:6], 7), V, "7", "1 to 6"),
    Case("emd n", "0", lambda: m.emd(X, X, 0), V, "0", "1 to 12"),
    Case("emd n", "float", lambda: m.emd(X, X, 2.0), Ty, "2.0", "integer"),
    Case("emd repeats", "0", lambda: m.emd(X, X, repeats=0), V, "0", "from 1"),
    Case("emd seed", "negative", lambda: m.emd(X, X, seed=-1), V, "-1", "from 0"),
    Case("emd_sum pairs", "default above the rows", lambda: m.emd_sum(X, X), V, "128", "1 to 12"),
    Case("emd_sum pairs", "0", lambda: m.emd_sum(X, X, 0), V, "0", "1 to 12"),
    Case("emd_sum runs", "0", lambda: m.emd_sum(X, X, 5, runs=0), V, "0", "from 1"),
    Case("sliced_wasserstein n_projections", "0", lambda: m.sliced_wasserstein(X, X, n_projections=0),
         V, "0", "from 1"),
    Case("sliced_wasserstein repeats", "bool", lambda: m.sliced_wasserstein(X, X, repeats=True),
         Ty, "True", "integer"),
    Case("kernel_nll tau", "0", lambda: m.kernel_nll(X, X, 0), V, "0", r"\[1e-30, 1e\+30\]"),
    Case("kernel_nll tau", "above 1e30", lambda: m.kernel_nll(X, X, 1e31),
         V, "1e\\+31", r"\[1e-30, 1e\+30\]"),
    Case("kernel_nll tau", "below 1e-30", lambda: m.kernel_nll(X, X, 1e-200),
         V, "1e-200", r"\[1e-30, 1e\+30\]"),
    Case("kernel_nll tau", "negative", lambda: m.kernel_nll(X, X, -0.1), V, "-0.1", r"\[1e-30, 1e\+30\]"),
    Case("kernel_nll tau", "NaN", lambda: m.kernel_nll(X, X, NAN), V, "nan", "finite"),
    Case("kernel_nll tau", "text", lambda: m.kernel_nll(X, X, "1"), Ty, "'1'", "number"),
    Case("kde_score data", "one row", lambda: m.kde_score(X, X[:1]), V, r"\(1, 2\)", "singular.*at least 3"),
    Case("kde_score data", "as many rows as columns", lambda: m.kde_score(X, X[:2]),
         V, r"\(2, 2\)", "singular.*at least 3"),
    Case("kde_score data", "on a plane", lambda: m.kde_score(X, PLANE), V, "singular", "plane"),
    Case("kde_score data", "constant column", lambda: m.kde_score(X, X * [1, 0] + [0, 0.1]),
         V, "column 1 constant", "singular"),
    Case("kde_score data", "variances below float64", lambda: m.kde_score(X, X * 1e-170),
         V, "column 0 constant", "singular"),
    Case("mode_coverage centers", "dimension", lambda: modes(centers=np.zeros((3, 1))),
         V, r"\(3, 1\)", "rows of 2 numbers"),
    Case("mode_coverage centers", "one axis", lambda: modes(centers=np.zeros(2)),
         V, r"\(2,\)", r"\(n, dim\)"),
    Case("mode_coverage centers", "NaN", lambda: modes(centers=np.full((1, 2), NAN)), V, "nan", "finite"),
    Case("mode_coverage centers", "empty", lambda: modes(centers=X[:0]), V, r"\(0, 2\)", "n >= 1"),
    Case("mode_coverage radius", "0", lambda: modes(radius=0.0), V, "0.0", r"\(0, inf\)"),
    Case("mode_coverage radius", "negative", lambda: modes(radius=-1), V, "-1", r"\(0, inf"),
    Case("mode_coverage radius", "infinite", lambda: modes(radius=INF), V, "inf", "finite"),
    Case("mode_coverage radius", "without data", lambda: modes(centers=X[:2] + 100),
         V, "0.5", "rows of data"),
    Case("precision_recall k", "0", lambda: m.precision_recall(X, X, 0), V, "0", "from 1 up"),
    Case("precision_recall x", "k as many as rows", lambda: m.precision_recall(X, X, 12),
         V, r"\(12, 2\)", "more than k = 12 rows"),
    Case("precision_recall x", "few rows for the default k", lambda: m.precision_recall(X[:4], X),
         V, r"\(4, 2\)", "more than k = 5 rows"),
    Case("precision_recall data", "few rows for the default k", lambda: m.precision_recall(X, X[:2]),
         V, r"\(2, 2\)", "more than k = 5 rows"),
    Case("precision_recall k", "float", lambda: m.precision_recall(X, X, 1.5), Ty, "1.5", "integer"),
    Case("precision_recall x", "one row", lambda: m.precision_recall(X[:1], X, 1),
         V, r"\(1, 2\)", "more than"),
    Case("precision_recall data", "one row", lambda: m.precision_recall(X, X[:1], 1),
         V, r"\(1, 2\)", "more than"),
    Case("log_likelihood data", "dimension", lambda: exact(data=np.zeros((4, 3))), V, r"\(4, 3\)", r"\(2,\)"),
    Case("log_likelihood data", "NaN", lambda: exact(data=BAD_ROWS), V, "nan", "finite"),
    Case("log_likelihood data", "one axis", lambda: exact(data=X[0]), V, r"\(2,\)", r"\(n, dim\)"),
    Case("log_likelihood data", "65 columns", lambda: exact(OfAnyShape().eval(), data=np.zeros((4, 65))),
         V, r"\(4, 65\)", "at most 64"),
    Case("log_likelihood data", "beyond float32", lambda: exact(data=X * 1e39), V, "at row 0", "up to 1e"),
    Case("log_likelihood data", "masked", lambda: exact(data=np.ma.masked_array(X)), Ty, "masked", "mask"),
    Case("log_likelihood reference", "dimension", lambda: exact(reference=np.zeros((4, 3))),
         V, r"\(4, 3\)", r"\(2,\)"),
    Case("log_likelihood reference", "dimension, of a model without a shape",
         lambda: exact(OfAnyShape().eval(), reference=np.zeros((4, 3))),
         V, r"\(4, 3\)", "rows of 2 numbers"),
    Case("log_likelihood reference", "NaN", lambda: exact(reference=BAD_ROWS), V, "nan", "finite"),
    Case("log_likelihood reference", "list", lambda: exact(reference=[[0.0, 1.0]]), Ty, "list", "array"),
    Case("log_likelihood reference_labels", "without reference",
         lambda: exact(CONDITIONAL, labels=np.zeros(12, int), reference_labels=np.zeros(12, int)),
         V, "int64", "None without reference"),
    Case("log_likelihood reference_labels", "missing",
         lambda: exact(CONDITIONAL, labels=np.zeros(12, int), reference=X), V, "None", "labels of the ref"),
    Case("variational_bound reference_labels", "too large",
         lambda: bound(CONDITIONAL, labels=np.zeros(12, int), reference=X[:2], reference_labels=[0, 4]),
         V, "4", "from 0 to 3"),
    Case("variational_bound reference", "empty", lambda: bound(reference=X[:0]), V, r"\(0, 2\)", "n >= 1"),
    Case("log_likelihood model", "function", lambda: exact(lambda x, t: x), Ty, "function", "Module"),
    Case("log_likelihood model", "train mode", lambda: exact(net().train()), V, "train mode", "eval"),
    Case("log_likelihood model", "output None", lambda: exact(Says(lambda x: None)),
         Ty, "None", r"\(12, 2\)"),
    Case("log_likelihood model", "output shape", lambda: exact(Says(lambda x: x[:, :1])),
         V, r"\(12, 1\)", r"\(12, 2\)"),
    Case("log_likelihood schedule", "betas", lambda: exact(schedule=SCHEDULE.betas),
         Ty, "tensor", "Schedule"),
    Case("log_likelihood schedule", "longer than the model's",
         lambda: exact(schedule=df.NoiseSchedule.linear(T + 1)), V, f"{T + 1} steps", f"{T}"),
    Case("log_likelihood steps", "0", lambda: exact(steps=0), V, "0", f"1 to {T // 2}"),
    Case("log_likelihood steps", "above half of T", lambda: exact(steps=T), V, f"{T}", f"1 to {T // 2}"),
    Case("log_likelihood prediction_type", "unknown", lambda: exact(prediction_type="eps"),
         V, "'eps'", "'epsilon'"),
    Case("log_likelihood prediction_type", "epsilon without signal",
         lambda: exact(schedule=SCHEDULE.zero_terminal_snr()), V, "epsilon", "sample"),
    Case("log_likelihood time_input", "unknown", lambda: exact(time_input="t"), V, "'t'", "index"),
    Case("log_likelihood labels", "model without classes", lambda: exact(labels=np.zeros(12, int)),
         V, "int64", "None"),
    Case("log_likelihood labels", "too large", lambda: exact(CONDITIONAL, labels=np.full(12, 4)),
         V, "4", "from 0 to 3"),
    Case("log_likelihood labels", "other length", lambda: exact(CONDITIONAL, labels=np.zeros(3, int)),
         V, r"\(3,\)", r"\(12,\)"),
    Case("log_likelihood labels", "text", lambda: exact(CONDITIONAL, labels=["a"] * 12),
         Ty, "'a'", "integers"),
    Case("variational_bound variance", "unknown", lambda: bound(variance="none"), V, "'none'", "posterior"),
    Case("variational_bound data", "dimension", lambda: bound(data=np.zeros((4, 1))),
         V, r"\(4, 1\)", r"\(2,\)"),
    Case("variational_bound data", "empty", lambda: bound(data=X[:0]), V, r"\(0, 2\)", "n >= 1"),
    Case("variational_bound model", "output shape", lambda: bound(Says(lambda x: x[:, 0])),
         V, r"\(12,\)", r"\(12, 2\)"),
    Case("variational_bound seed", "float", lambda: bound(seed=0.5), Either, "0.5", "integer"),
]
# fmt: on


@pytest.mark.parametrize("case", CASES, ids=[f"{case.argument}: {case.fault}" for case in CASES])
def test_bad_metric_arguments(case: Case) -> None:
    with pytest.raises(case.error) as caught:
        case.call()
    message = re.fullmatch(r"(\S+): got (.*); accepted( there)?: (.*)", str(caught.value))
    assert message, caught.value
    assert message[1] == case.argument.split()[1]
    assert re.search(case.given, message[2]), caught.value
    assert re.search(case.accepted, message[4]), caught.value


def test_the_table_is_long_enough_and_without_repetition() -> None:
    pairs = {(case.argument, case.fault) for case in CASES}
    assert len(pairs) == len(CASES) >= 150


def test_a_refused_call_leaves_the_generator() -> None:
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    for call in (
        lambda: m.emd(X, X, 99, seed=generator),
        lambda: m.emd_sum(X, X, 5, runs=0, seed=generator),
        lambda: m.sliced_wasserstein(X, X, repeats=0, seed=generator),
        lambda: m.kernel_nll(X, X, -1, seed=generator),
        lambda: modes(radius=-1, seed=generator),
        lambda: modes(centers=X[:2] + 100, seed=generator),
        lambda: m.precision_recall(X, X, 99, seed=generator),
        lambda: bound(data=BAD_ROWS, seed=generator),
    ):
        with pytest.raises(ValueError, match="accepted"):
            call()
    assert torch.equal(generator.get_state(), before)
