"""Public functions say what they raise."""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest

import diffusion_fast as df

# Of the modules without __all__: the rest of them serves other modules and tests.
PUBLIC = {
    "cuda": ["cuda_available", "prepare"],
    "noise": ["normal"],
    "ops": ["reverse_step"],
    "reference": [],  # the twins trust their arguments, and read like the papers
}
# What takes its arguments unchecked.
UNCHECKED = {
    "metrics.ImageClassifier": "torch's layers refuse what they cannot take",
    "metrics.ImageClassifier.features": "torch's layers refuse what they cannot take",
    "metrics.ImageClassifier.forward": "torch's layers refuse what they cannot take",
    "metrics.classifier_accuracy": "torch's layers refuse what they cannot take",
    "Columns.check": "called by sample_to, whose docstring says so",
}
RAISES = re.compile(r"\b[Rr]aises?\b|\b\w+Error\b")


def arguments(function: Callable[..., Any]) -> list[str]:
    return [name for name in inspect.signature(function).parameters if name not in ("self", "cls")]


def members(name: str, value: Any) -> Iterator[tuple[str, str]]:
    """Names of what takes arguments, and where its errors are told."""
    if inspect.ismodule(value):
        for member in PUBLIC.get(name) or getattr(value, "__all__", ()):
            of_all = "\n" + (value.__doc__ or "") if name == "datasets" else ""
            for found, told in members(f"{name}.{member}", getattr(value, member)):
                shared = arguments(getattr(value, member)) == ["n_train", "n_test", "seed"]
                yield found, told + of_all * shared
    elif inspect.isclass(value) and not issubclass(value, Exception):
        told = inspect.getdoc(value) or ""
        written = "__post_init__" if dataclasses.is_dataclass(value) else "__init__"
        if written in vars(value):
            yield name, told
        for member, found in vars(value).items():
            function = getattr(found, "__func__", found)
            if not member.startswith("_") and inspect.isfunction(function) and arguments(function):
                of_class = told if isinstance(found, classmethod) else ""
                yield f"{name}.{member}", (inspect.getdoc(function) or "") + of_class
    elif inspect.isfunction(value) and arguments(value):
        yield name, inspect.getdoc(value) or ""


FOUND = dict(pair for name in df.__all__ for pair in members(name, getattr(df, name)))


@pytest.mark.parametrize("name", FOUND)
def test_errors_are_told(name: str) -> None:
    assert RAISES.search(FOUND[name]) or name in UNCHECKED, f"{name}: no word on what it raises"


def test_the_walk_reaches_all_kinds() -> None:
    """A function, a method, a constructor by name, a class, a data set; and no exception for what is gone."""
    known = {"train", "Sampler.stream", "NoiseSchedule.cosine", "models.MLPDenoiser", "datasets.moons"}
    assert known <= FOUND.keys() and UNCHECKED.keys() <= FOUND.keys() and len(FOUND) > 100
