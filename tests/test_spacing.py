"""Which timesteps run: known lists, the C++ core against its twin, explicit lists, peers."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from diffusion_fast import _cpu
from diffusion_fast.schedules import NoiseSchedule
from diffusion_fast.solvers import ddim, ddpm
from diffusion_fast.solvers.spacing import SPACINGS, spaced_timesteps_ref

LISTS = {
    ("leading", 1000, 5): [800, 600, 400, 200, 0],
    ("trailing", 1000, 5): [999, 799, 599, 399, 199],
    ("linspace", 1000, 5): [999, 749, 500, 250, 0],  # 749.25, 499.5 -> 500, 249.75
    ("leading", 10, 4): [6, 4, 2, 0],
    ("trailing", 10, 4): [9, 7, 4, 1],  # 10, 7.5 -> 8, 5, 2.5 -> 2: halves to even
    ("linspace", 10, 4): [9, 6, 3, 0],
    ("leading", 150, 1): [0],
    ("trailing", 150, 1): [149],
    ("linspace", 150, 1): [0],
}


@pytest.mark.parametrize("key", LISTS)
def test_spacing_lists(key: tuple[str, int, int]) -> None:
    spacing, n_train, steps = key
    for solver in (ddpm, ddim):
        table = solver(NoiseSchedule.linear(n_train), steps=steps, spacing=spacing)
        assert table.timesteps.tolist() == table.table_timesteps.tolist() == LISTS[key]
        assert table.timesteps.dtype == np.int64 and table.rows["table"].tolist() == list(range(steps))


@pytest.mark.parametrize("spacing", SPACINGS)
def test_spacings_equal_their_twin_and_descend(spacing: str) -> None:
    for n_train in (1, 2, 3, 7, 50, 150, 151, 1000):
        for steps in {1, 2, 3, 5, 6, 7, 20, 49, 50, 100, 149, 150, 333, 400, 999, 1000}:
            if steps > n_train:
                continue
            ours = _cpu.spaced_timesteps(spacing, n_train, steps)
            np.testing.assert_array_equal(ours, spaced_timesteps_ref(spacing, n_train, steps))
            assert ours.dtype == np.int64 and len(ours) == steps
            assert (np.diff(ours) < 0).all() and ours[0] < n_train and ours[-1] >= 0
        full = _cpu.spaced_timesteps(spacing, n_train, n_train)
        assert full.tolist() == list(range(n_train))[::-1]


@pytest.mark.parametrize("make", [list, tuple, np.array, torch.tensor, lambda t: np.array(t, dtype=np.uint8)])
def test_explicit_timesteps(make: Any) -> None:
    schedule = NoiseSchedule.linear(100)
    table = ddpm(schedule, timesteps=make([90, 37, 36, 2]))
    assert table.timesteps.tolist() == [90, 37, 36, 2]
    alpha = schedule.alphas.numpy()
    # the previous level is the next of the list: each stride is the product of the alphas it skips
    strides = [alpha[38:91].prod(), alpha[37], alpha[3:37].prod(), alpha[:3].prod()]
    np.testing.assert_allclose(table.rows["a"], 1 / np.sqrt(strides), rtol=1e-7)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_timesteps_of_diffusers(spacing: str) -> None:
    diffusers = pytest.importorskip("diffusers", reason="diffusers is not installed: pip install '.[bench]'")
    for n_train, steps in [(1000, n) for n in (1, 3, 7, 20, 50, 400, 999, 1000)] + [(150, 7), (35, 6)]:
        peer = diffusers.DDIMScheduler(num_train_timesteps=n_train, timestep_spacing=spacing)
        peer.set_timesteps(steps)
        if len(peer.timesteps) != steps:
            continue  # its arange overshoots and ends at -1
        assert peer.timesteps.tolist() == _cpu.spaced_timesteps(spacing, n_train, steps).tolist()
