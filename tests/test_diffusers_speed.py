"""What the schedulers do to be fast must not be seen: rows kept from run to run, outputs made by hand."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor

pytest.importorskip("diffusers", reason="diffusers is not installed: pip install '.[diffusers]'")
from diffusers_loops import NAMES, START, network, original, ours

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # theirs, about NumPy 2


def first_step(scheduler: Any, **options: Any) -> Any:
    torch.manual_seed(0)
    return scheduler.step(network(START), scheduler.timesteps[0], START, **options)


@pytest.mark.parametrize("name", NAMES)
def test_an_output_is_what_the_constructor_makes(name: str) -> None:
    scheduler, theirs = ours(name), original(name)
    for one in (scheduler, theirs):
        one.set_timesteps(4)
    got, kind = first_step(scheduler), type(first_step(theirs))
    want = kind(*got.to_tuple())
    assert type(got) is kind
    assert list(got.keys()) == list(want.keys()) and vars(got).keys() == vars(want).keys()
    for key in want:
        assert got[key] is want[key] is getattr(got, key)
    for again in (pickle.loads(pickle.dumps(got)), copy.deepcopy(got)):
        assert all(torch.equal(again[key], got[key]) for key in got)
    got.prev_sample = START  # an attribute that is set is an item too
    assert got["prev_sample"] is START and got[0] is START
    assert isinstance(first_step(ours_ready(name), return_dict=False), tuple)


def ours_ready(name: str) -> Any:
    scheduler = ours(name)
    scheduler.set_timesteps(4)
    return scheduler


@pytest.mark.parametrize("name", NAMES)
def test_the_same_run_again_keeps_its_rows(name: str) -> None:
    scheduler = ours_ready(name)
    rows, states = scheduler._rows, []
    for _ in range(2):
        states.append(first_step(scheduler).prev_sample)
        scheduler.set_timesteps(4)
    assert scheduler._rows is rows and torch.equal(*states)


CHANGES: list[tuple[str, dict[str, Any]]] = [
    ("DDPMScheduler", {"variance_type": "fixed_large"}),
    ("DDPMScheduler", {"clip_sample_range": 0.5}),
    ("DDIMScheduler", {"set_alpha_to_one": False, "steps_offset": 1}),
    ("DPMSolverMultistepScheduler", {"solver_order": 1}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min"}),
    ("EulerDiscreteScheduler", {"prediction_type": "v_prediction"}),
    ("HeunDiscreteScheduler", {"clip_sample": True}),
    ("UniPCMultistepScheduler", {"solver_type": "bh1"}),
]


@pytest.mark.parametrize(("name", "change"), CHANGES, ids=str)
def test_a_changed_run_has_new_rows(name: str, change: dict[str, Any]) -> None:
    scheduler, fresh = ours_ready(name), ours(name, **change)
    first_step(scheduler)
    scheduler.register_to_config(**change)
    if "variance_type" in change:
        scheduler.variance_type = change["variance_type"]
    for one in (scheduler, fresh):
        one.set_timesteps(7)
    results: list[Tensor] = [first_step(one).prev_sample for one in (scheduler, fresh)]
    assert torch.equal(*results)
    scheduler.set_timesteps(4)
    assert not torch.equal(first_step(scheduler).prev_sample, results[0])


@pytest.mark.parametrize("name", ["EulerDiscreteScheduler", "DDPMScheduler"])
def test_levels_of_another_run_are_noticed(name: str) -> None:
    """Assigned anew with as many entries, as user code does with sigmas."""
    scheduler = ours_ready(name)
    before = first_step(scheduler).prev_sample
    levels = "sigmas" if name.startswith("Euler") else "alphas_cumprod"
    setattr(scheduler, levels, getattr(scheduler, levels) * 0.9)
    scheduler._step_index = None
    assert not torch.equal(first_step(scheduler).prev_sample, before)
