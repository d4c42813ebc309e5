"""Fixtures shared by all tests: fixed seeds, two threads, optional data."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import numpy as np
import pytest
import torch
from samplers import N_CLASSES, SCHEDULE, make_model

import diffusion_fast as df

torch.set_num_threads(2)

# The same examples in every run: a failure seen once is seen again. Deadlines would fail on a busy machine.
hypothesis.settings.register_profile("repeatable", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("repeatable")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="no CUDA device")
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def fixed_seeds() -> Iterator[None]:
    """Same random inputs whatever ran before; the thread count is restored for the next test."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def test_data() -> Path:
    """The folder of data sets and published weights that are too large to ship with the tests."""
    folder = os.environ.get("DIFFUSION_FAST_TEST_DATA")
    if not folder:
        pytest.skip("DIFFUSION_FAST_TEST_DATA is not set to the folder of the optional test data")
    path = Path(folder)
    if not path.is_dir():
        pytest.fail(f"DIFFUSION_FAST_TEST_DATA: got {folder!r}; accepted: an existing folder")
    return path


@pytest.fixture(scope="session")
def sampler() -> df.Sampler:
    return df.Sampler(make_model(), SCHEDULE, backend="native")


@pytest.fixture(scope="session")
def conditional() -> df.Sampler:
    return df.Sampler(make_model(N_CLASSES), SCHEDULE, backend="native")
