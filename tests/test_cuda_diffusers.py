"""The schedulers of integrations.diffusers on a CUDA device that cuda_torch.py stands in for."""

from __future__ import annotations

from typing import Any

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed: pip install '.[diffusers]'")
from cuda_torch import plain, torch_there  # noqa: F401  (a fixture for every test)
from diffusers_loops import NAMES, START, ours
from test_cuda_ops import OnDevice, device, to  # noqa: F401  (device: for every test)
from torch import Tensor

from diffusion_fast import cuda

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # theirs, about NumPy 2
CASES: list[tuple[str, dict[str, Any]]] = [
    *((name, {}) for name in NAMES),
    ("DDPMScheduler", {"variance_type": "learned_range"}),
    ("DDIMScheduler", {"thresholding": True}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    (
        "DPMSolverMultistepScheduler",
        {"solver_order": 3, "thresholding": True},
    ),
    ("UniPCMultistepScheduler", {"solver_order": 3}),
]


def trajectory(name: str, start: Tensor, config: dict[str, Any]) -> list[Tensor]:
    torch.manual_seed(7)  # from which the steps without a generator draw their seeds
    scheduler = ours(name, **config)
    scheduler.set_timesteps(6)
    x, states = start, []
    for t in scheduler.timesteps:
        output = 0.5 * torch.tanh(scheduler.scale_model_input(x, t)) + 0.1
        if config.get("variance_type"):
            output = torch.cat([output, output], dim=1)
        x = scheduler.step(output, t, x).prev_sample
        states.append(x)
    return states


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize(("name", "config"), CASES, ids=str)
def test_the_samples_of_the_cpu(
    name: str, config: dict[str, Any], dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the bit, each state on the device, by the fused step."""
    want = trajectory(name, START.to(dtype), config)
    calls = []
    kernel = cuda.reverse_step
    monkeypatch.setattr(cuda, "reverse_step", lambda *args: (calls.append(1), kernel(*args))[1])
    got = trajectory(name, to(START.to(dtype)), config)
    assert len(calls) >= len(got) and all(isinstance(x, OnDevice) for x in got)
    for x, y in zip(got, want, strict=True):
        assert x.dtype is y.dtype and torch.equal(plain(x), y)


def test_two_devices_are_the_originals() -> None:
    """Which refuses them; as it does where no kernels are built."""
    scheduler = ours("DDIMScheduler")
    scheduler.set_timesteps(3)
    with pytest.raises(RuntimeError, match="tensors on two devices"):
        scheduler.step(START, scheduler.timesteps[0], to(START))


def test_without_kernels_the_originals_step_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    want = trajectory("DDIMScheduler", START, {})
    monkeypatch.setattr(cuda, "problem", lambda: "not built")
    monkeypatch.setattr(cuda, "reverse_step", None)
    for x, y in zip(trajectory("DDIMScheduler", to(START), {}), want, strict=True):
        torch.testing.assert_close(plain(x), y)
