"""What a run is: it goes on with the sampler that it was begun with, and refuses another by name."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from samplers import SCHEDULE, make_model
from test_long_runs import N, sha256, stopped_after
from torch import Tensor, nn
from torch.nn import functional as F

import diffusion_fast as df
from diffusion_fast.long_runs import manifest as manifests
from diffusion_fast.long_runs.identity import identity


def other(**options: Any) -> df.Sampler:
    return df.Sampler(make_model(), SCHEDULE, **options)


def shifted() -> df.Sampler:
    model = make_model()
    with torch.no_grad():
        model.get_parameter("model.0.bias")[0] += 1e-6
    return df.Sampler(model, SCHEDULE)


DIFFERENT: dict[str, tuple[Callable[[], df.Sampler], dict[str, Any]]] = {
    "seed": (other, {"seed": 1}),
    "index range": (other, {"start": 1}),
    "solver": (lambda: other(solver="ddim"), {}),
    "model": (shifted, {}),
    "standardiser": (lambda: other(standardiser=df.Standardiser([0.0] * 3, [2.0] * 3)), {}),
}


@pytest.mark.parametrize("name", DIFFERENT)
def test_another_run_is_refused_by_name(tmp_path: Path, sampler: df.Sampler, name: str) -> None:
    df.sample_to(tmp_path / "x.npy", sampler, N)
    before = sha256(tmp_path / "x.npy"), sha256(tmp_path / "x.npy.manifest.json")
    make, options = DIFFERENT[name]
    with pytest.raises(
        ValueError, match=f"^resume: got another {name}, .*accepted: .* x.npy.manifest.json was begun"
    ):
        df.sample_to(tmp_path / "x.npy", make(), N, resume=True, **options)
    if not options:
        with pytest.raises(ValueError, match=f"^sampler: got another {name}"):
            df.verify(tmp_path / "x.npy", sampler=make(), redraw=[0])
    assert before == (sha256(tmp_path / "x.npy"), sha256(tmp_path / "x.npy.manifest.json"))


def test_another_noise_version_is_refused(
    tmp_path: Path, sampler: df.Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    df.sample_to(tmp_path / "x.npy", sampler, N)
    monkeypatch.setattr("diffusion_fast.long_runs.identity.NOISE_VERSION", 2)
    with pytest.raises(ValueError, match=r"^resume: got another noise version, 2; accepted: 1"):
        df.sample_to(tmp_path / "x.npy", sampler, N, resume=True)


def test_labels_are_part_of_a_run(tmp_path: Path, conditional: df.Sampler) -> None:
    df.sample_to(tmp_path / "x.npy", conditional, 10, labels=[0, 1])
    with pytest.raises(ValueError, match=r"^resume: got another labels"):
        df.sample_to(tmp_path / "x.npy", conditional, 10, labels=[1, 0], resume=True)
    assert df.verify(tmp_path / "x.npy", sampler=conditional, labels=[0, 1], redraw="all").good


# ---- modules that torch runs, of which there is no plan


class Net(nn.Module):
    """Attributes of every kind: some change the samples, some have another address in every process."""

    def __init__(self, scale: float = 0.1, mode: Any = ("tanh", 2), layer: type[nn.Module] = nn.ReLU) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)
        nn.init.eye_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)
        self.activation, self.scale, self.mode = layer(), scale, mode
        self.seen: list[object] = [object()]
        self.helper, self.marker = (lambda x: x), object()

    def forward(self, x: Tensor, t: Tensor, *more: Tensor) -> Tensor:
        return self.scale * self.activation(self.linear(x)) + sum(m.reshape(len(x), -1)[:, :1] for m in more)


class Other(Net):
    """Another type of the same weights."""


def doubled(module: nn.Module, given: Any, output: Tensor) -> Tensor:
    return 2 * output


def hooked() -> Net:
    net = Net()
    net.linear.register_forward_hook(doubled)
    return net


def by_torch(net: nn.Module | None = None, **options: Any) -> df.Sampler:
    return df.Sampler((net or Net()).eval(), SCHEDULE, shape=3, **{"backend": "torch"} | options)


GUIDED = {"context_shape": 1, "guidance_scale": 2.0}
# what differs by name: two samplers, whose samples differ, and what they are called with
TORCH: dict[str, tuple[str, Callable[[], df.Sampler], Callable[[], df.Sampler], dict[str, Any]]] = {
    "number": ("model", by_torch, lambda: by_torch(Net(0.2)), {}),
    "tuple": ("model", by_torch, lambda: by_torch(Net(mode=("tanh", 3))), {}),
    "none": ("model", by_torch, lambda: by_torch(Net(mode=None)), {}),
    "function": ("model", lambda: by_torch(Net(mode=F.relu)), lambda: by_torch(Net(mode=F.silu)), {}),
    "tensor": (
        "model",
        lambda: by_torch(Net(mode=torch.ones(2))),
        lambda: by_torch(Net(mode=torch.tensor([1.0, 2.0]))),
        {},
    ),
    "array": (
        "model",
        lambda: by_torch(Net(mode=np.ones(2))),
        lambda: by_torch(Net(mode=np.array([1.0, 2.0]))),
        {},
    ),
    "NumPy's number": (
        "model",
        lambda: by_torch(Net(mode=np.float32(1))),
        lambda: by_torch(Net(mode=np.float32(2))),
        {},
    ),
    "submodule": ("model", by_torch, lambda: by_torch(Net(layer=nn.Tanh)), {}),
    "type": ("model", by_torch, lambda: by_torch(Other()), {}),
    "hook": ("model", by_torch, lambda: by_torch(hooked()), {}),
    "time": ("time input", by_torch, lambda: by_torch(time_input="index1"), {}),
    "times": ("time input", lambda: by_torch(time_input="unit"), lambda: by_torch(time_input="sigma"), {}),
    "null context": (
        "null context",
        lambda: by_torch(null_context=0.0, **GUIDED),
        lambda: by_torch(null_context=1.0, **GUIDED),
        {"context": torch.ones(1)},
    ),
    "classes": (
        "conditions",
        lambda: by_torch(n_classes=3),
        lambda: by_torch(n_classes=4),
        {"labels": 1},
    ),
}


@pytest.mark.parametrize("case", TORCH)
def test_another_module_that_torch_runs_is_refused_by_name(tmp_path: Path, case: str) -> None:
    name, begun, another, options = TORCH[case]
    path = tmp_path / "x.npy"
    df.sample_to(path, begun(), 10, **options)
    with pytest.raises(ValueError, match=f"^resume: got another {name}, "):
        df.sample_to(path, another(), 10, resume=True, **options)
    assert df.sample_to(path, begun(), 10, resume=True, **options).drawn == 0  # made anew, with new addresses


def test_a_module_whose_code_has_changed_draws_otherwise(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, whole = tmp_path / "x.npy", tmp_path / "whole.npy"
    df.sample_to(whole, by_torch(), 300, chunk_size=100)
    with stopped_after(2):
        df.sample_to(path, by_torch(), 300, chunk_size=100)
    forward = Net.forward
    monkeypatch.setattr(Net, "forward", lambda *given: 1.1 * forward(*given))
    with pytest.raises(ValueError, match=r"^resume: .*whose chunk 0 this model draws otherwise; accepted: "):
        df.sample_to(path, by_torch(), 300, resume=True)
    monkeypatch.undo()
    assert df.sample_to(path, by_torch(), 300, resume=True).drawn == 100
    assert path.read_bytes() == whole.read_bytes()


def test_batches_of_a_module_that_torch_runs_do_not_depend_on_the_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samplers = [by_torch() for _ in range(3)]
    df.sample_to(tmp_path / "one.npy", samplers[0], 20_000)
    df.sample_to(tmp_path / "three.npy", samplers, 20_000)
    first, second = (manifests.load(manifests.path_of(tmp_path / f"{k}.npy")) for k in ("one", "three"))
    assert first.chunk_size == second.chunk_size


def test_another_torch_is_refused_where_it_runs_the_module(
    tmp_path: Path, sampler: df.Sampler, monkeypatch: pytest.MonkeyPatch
) -> None:
    df.sample_to(tmp_path / "torch.npy", by_torch(), 10)
    df.sample_to(tmp_path / "plan.npy", sampler, 10)
    monkeypatch.setattr(torch, "__version__", "9.9.9")
    with pytest.raises(ValueError, match=r"^resume: got another torch, 9\.9\.9, backend torch; accepted: "):
        df.sample_to(tmp_path / "torch.npy", by_torch(), 10, resume=True)
    assert df.sample_to(tmp_path / "plan.npy", sampler, 10, resume=True).drawn == 0


def test_times_of_a_table_are_part_of_a_run() -> None:
    """The same rows may evaluate the network at other times."""
    sampler = by_torch()
    before = identity(sampler, 0, 0, 1, None, None)
    vars(sampler)["_times"] = sampler._times + 1
    after = identity(sampler, 0, 0, 1, None, None)
    assert [name for name in before if before[name] != after[name]] == ["time input"]
