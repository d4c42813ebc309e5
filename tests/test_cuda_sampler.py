"""Sampler on a CUDA device, without one: host tensors that say they are there, kernels by the emulator.

A tensor on the device meets none on the CPU but in a copy, and a copy that need not be waited for is made
when its event is: what a device would refuse, or get wrong, shows here.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import pickle
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import samplers
import torch
from conditional_nets import FilmPolicy, LateContext, made
from conditional_nets import T as POLICY_STEPS
from cuda_build import emulated
from cuda_chains import LIMITS
from samplers import N_CLASSES, SCHEDULE, WithCumsum
from test_cuda_ops import DEVICE, OnAnother, OnDevice, device, to  # noqa: F401  (device: for every test)
from torch import Tensor, nn

import diffusion_fast as df
from diffusion_fast import capture, cuda_chain

N = 70
WIDE = {"hidden": (72,)}
POLICY_SCHEDULE = df.NoiseSchedule.linear(POLICY_STEPS, beta_start=1e-2, beta_end=0.4)
_to, _copy, _empty = Tensor.to, Tensor.copy_, torch.empty
_captured: dict[Any, tuple[nn.Module, Any]] = {}  # with the module, so that its id is no other's
make_model = functools.cache(samplers.make_model)  # captured once


@functools.cache
def _program() -> Any:
    return emulated().Program


@pytest.fixture
def tensor_cores(torch_there: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(emulated(), "Program", _program())


def plain(value: Tensor) -> Tensor:
    with torch._C.DisableTorchFunctionSubclass():
        return value.as_subclass(Tensor)


def strict(kind: type, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
    """An operation on the device. Numbers of no dimension may come from the CPU, as in torch."""
    flat = [part for arg in args for part in (arg if isinstance(arg, (list, tuple)) else [arg])]
    if any(type(part) in (Tensor, nn.Parameter) and part.dim() for part in flat):
        raise RuntimeError(f"{function}: tensors on two devices")
    return Tensor.__torch_function__.__func__(kind, function, types, args, kwargs)  # type: ignore[attr-defined]


def is_cuda(place: Any) -> bool:
    return isinstance(place, (str, torch.device)) and torch.device(place).type == "cuda"


def to_there(self: Tensor, *args: Any, **options: Any) -> Tensor:
    if args and isinstance(args[0], Tensor):
        return to_there(self, args[0].device, args[0].dtype)
    if not args or not isinstance(args[0], (str, torch.device)):
        return _to(self, *args, **options)
    there = is_cuda(args[0])
    if isinstance(self, OnDevice) is there and len(args) == 1 and not options:
        return self
    made = plain(self).clone()
    made = _to(made, *args[1:], **options) if args[1:] or options else made
    return made.as_subclass(OnDevice) if there else made


class Copies:
    """Copies that are made when they are waited for."""

    def __init__(self) -> None:
        self.queued: list[Callable[[], Any]] = []

    def copy_(self, target: Tensor, source: Tensor, non_blocking: bool = False) -> Tensor:
        if non_blocking:
            self.queued.append(lambda: _copy(plain(target), plain(source)))
            return target
        _copy(plain(target), plain(source))
        return target

    def event(self) -> Any:
        waiting: list[Callable[[], Any]] = []

        def record(stream: Any) -> None:
            assert not waiting, "a buffer is written again before it was read"
            waiting.extend(self.queued)
            self.queued.clear()

        def synchronize() -> None:
            for queued in waiting:
                queued()
            waiting.clear()

        return SimpleNamespace(record=record, synchronize=synchronize)


@pytest.fixture(autouse=True)
def torch_there(device: Any, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    torch.set_num_threads(1)
    copies, empty = Copies(), torch.empty

    def pinned(*size: Any, pin_memory: bool = False, **options: Any) -> Tensor:
        made = empty(*size, **options)
        return made.fill_(7) if pin_memory else made

    def there(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def wrapped(*args: Any, device: Any = None, **options: Any) -> Tensor:
            made = make(*args, **options)
            return made.as_subclass(OnDevice) if is_cuda(device) else made

        return wrapped

    def module_to_cpu(module: nn.Module) -> nn.Module:
        for part in module.modules():
            for name, tensor in part._parameters.items():
                part._parameters[name] = None if tensor is None else nn.Parameter(plain(tensor.data))
            part._buffers.update(
                {name: plain(tensor) for name, tensor in part._buffers.items() if tensor is not None}
            )
        return module

    stream = SimpleNamespace(cuda_stream=0, synchronize=lambda: None, wait_stream=lambda other: None)
    monkeypatch.setattr(OnDevice, "__torch_function__", classmethod(strict))
    # the general path, which has the CPU's bits
    monkeypatch.setattr(device, "Program", functools.partial(_program(), tensor_cores=False))
    limits = SimpleNamespace(
        shared_memory_per_block_optin=LIMITS["shared_bytes"],
        major=9,
        minor=0,
        multi_processor_count=LIMITS["multiprocessors"],
    )
    again = lambda self, memo: to(plain(self))  # noqa: E731
    monkeypatch.setattr(OnDevice, "__deepcopy__", again, raising=False)
    fakes: list[tuple[Any, str, Any]] = [
        (Tensor, "to", to_there),
        (Tensor, "cpu", lambda self: to_there(self, "cpu")),
        (Tensor, "copy_", lambda *args, **options: copies.copy_(*args, **options)),
        (Tensor, "record_stream", lambda self, stream: None),
        (nn.Module, "cpu", module_to_cpu),
        (torch, "empty", pinned),
        (torch, "full", there(torch.full)),
        (torch, "as_tensor", there(torch.as_tensor)),
        (torch.cuda, "get_device_properties", lambda device: limits),
        (torch.cuda, "current_stream", lambda device: stream),
        (torch.cuda, "Stream", lambda device: stream),
        (torch.cuda, "Event", copies.event),
        (torch.cuda, "stream", lambda stream: contextlib.nullcontext()),
        (torch.cuda, "mem_get_info", lambda device: (1 << 30, 1 << 30)),
        (torch.cuda, "memory_reserved", lambda device: 0),
        (torch.cuda, "memory_allocated", lambda device: 0),
    ]
    trace = capture.capture

    def capture_with_torch_as_it_is(*args: Any) -> Any:
        with pytest.MonkeyPatch.context() as undone:
            for (owner, name, _), real in zip(fakes, reals, strict=True):
                undone.setattr(owner, name, real)
            undone.setattr(torch, "empty", _empty)
            if (key := (id(args[0]), repr(args[1:]))) not in _captured:
                _captured[key] = args[0], trace(*args)
            return _captured[key][1]

    reals = [getattr(owner, name) for owner, name, _ in fakes]
    for owner, name, fake in fakes:
        monkeypatch.setattr(owner, name, fake)
    monkeypatch.setattr(capture, "capture", capture_with_torch_as_it_is)


def on_device(module: nn.Module) -> nn.Module:
    """A copy of the module with its weights on the device."""
    module = copy.deepcopy(module)
    for part in module.modules():
        for store in (part._parameters, part._buffers):
            for name, tensor in store.items():
                store[name] = None if tensor is None else to(tensor.data)
    return module


def pair(model: nn.Module, schedule: Any = SCHEDULE, **options: Any) -> tuple[df.Sampler, df.Sampler]:
    """The samplers on the CPU and on the device."""
    options = {"backend": "native", "steps": 4} | options
    return df.Sampler(model, schedule, **options), df.Sampler(model, schedule, device="cuda", **options)


def check_same(samplers: tuple[df.Sampler, df.Sampler], n: int = N, **call: Any) -> None:
    """The same bits, whether what is given lies on the CPU or on the device."""
    cpu, there = samplers
    want = cpu.sample(n, **call)
    for given in (call, {name: placed(value) for name, value in call.items()}):
        got = there.sample(n, **given)
        assert isinstance(got, OnDevice) and got.device == DEVICE and torch.equal(plain(got), want)
    out = torch.zeros_like(want)
    assert there.sample(n, out=out, **call) is out and torch.equal(out, want)


def placed(value: Any) -> Any:
    return {k: to(v) for k, v in value.items()} if isinstance(value, dict) else to(value)


# ---- the samples of the CPU


@pytest.mark.parametrize("trajectory", [False, True])
def test_the_general_path_has_the_cpus_bits(trajectory: bool) -> None:
    samplers = pair(make_model(**WIDE))
    assert "general" in samplers[1].explain()
    check_same(samplers, seed=2**64 - 5, start=2**40, return_trajectory=trajectory)
    check_same(samplers, x_T=torch.randn(N, 3), noise=torch.randn(4, N, 3), return_trajectory=trajectory)


@pytest.mark.usefixtures("tensor_cores")
def test_tensor_cores_agree() -> None:
    cpu, there = pair(make_model(N_CLASSES), guidance_scale=2.0)
    assert "mma" in there.explain() and "cuda:0" in there.explain()
    labels = torch.arange(N) % (N_CLASSES + 1)
    want = cpu.sample(N, labels=labels, seed=5)
    got = plain(there.sample(N, labels=labels, seed=5))
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-4)
    for precision in ("bfloat16", "float16"):
        low = df.Sampler(
            there.model, SCHEDULE, device="cuda", precision=precision, steps=4, guidance_scale=2.0
        )
        assert precision in low.explain()
        rough = plain(low.sample(N, labels=labels, seed=5))
        assert not torch.equal(rough, got)
        torch.testing.assert_close(rough, want, rtol=0.1, atol=0.1)


def test_labels_and_guidance() -> None:
    samplers = pair(make_model(N_CLASSES, **WIDE), guidance_scale=2.5, guidance_rescale=0.5)
    labels = torch.arange(N) % (N_CLASSES + 1)
    check_same(samplers, labels=labels)
    check_same(samplers, labels=3, guidance_scale=torch.linspace(0, 3, N))
    check_same(pair(make_model(N_CLASSES, **WIDE)))  # all of the null class


def test_contexts() -> None:
    one = pair(
        made(LateContext), POLICY_SCHEDULE, shape=9, context_shape=5, null_context=0.0, guidance_scale=2.0
    )
    check_same(one, context=torch.randn(N, 5))
    check_same(one, context=torch.randn(5))
    shapes = {"obs": (2, 2), "goal": (3,)}
    named = pair(
        made(FilmPolicy), POLICY_SCHEDULE, shape=3, n_classes=4, null_class=False, context_shape=shapes
    )
    context = {"obs": torch.randn(N, 2, 2), "goal": torch.randn(3)}
    check_same(named, labels=torch.arange(N) % 4, context=context)
    mixed = {"obs": to(context["obs"]), "goal": context["goal"]}
    there = plain(named[1].sample(N, labels=1, context=mixed))
    assert torch.equal(there, named[0].sample(N, labels=1, context=context))


@pytest.mark.parametrize("clean", [False, True])
def test_fixed_coordinates_and_the_standardiser(clean: bool) -> None:
    scale = df.Standardiser([10.0, -2.0, 0.5], [2.0, 0.1, 1.0])
    samplers = pair(make_model(**WIDE), standardiser=scale)
    mask = torch.tensor([True, False, True])
    check_same(samplers, fixed_mask=mask, fixed_values=torch.randn(N, 3) + 9, fixed_clean=clean)
    check_same(samplers, fixed_mask=mask, fixed_values=torch.ones(3), return_trajectory=True)


def test_a_langevin_table() -> None:
    schedule = df.SigmaSchedule.exponential(3, 0.1, 2.0)
    how: dict[str, Any] = {"solver": "annealed_langevin", "steps_per_level": 2, "steps": None}
    check_same(pair(make_model(**WIDE), schedule, prediction_type="score", **how))


@pytest.mark.parametrize("hidden", [(72,), (32, 24)], ids=["wide", "narrow"])
@pytest.mark.usefixtures("tensor_cores")
def test_any_split_has_the_same_bits(hidden: tuple[int, ...]) -> None:
    there = df.Sampler(make_model(N_CLASSES, hidden=hidden), SCHEDULE, steps=3, device="cuda")
    y = torch.arange(N) % 5
    whole = plain(there.sample(N, seed=7, start=1000, labels=y))
    parts = [plain(there.sample(1, seed=7, start=1000 + i, labels=y[i : i + 1])) for i in (0, 33, N - 1)]
    assert torch.equal(torch.cat(parts), whole[[0, 33, N - 1]])
    chunks = list(there.stream(N, 33, seed=7, start=1000, labels=y))
    assert all(isinstance(chunk, OnDevice) for chunk in chunks)
    assert torch.equal(torch.cat([plain(chunk) for chunk in chunks]), whole)


# ---- samples that leave the device


@pytest.mark.parametrize("size", [1, 30, 35, 69, 70])
def test_chunks_on_their_way_to_the_cpu(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda_chain, "chunk_size", lambda *_: size)
    cpu, there = pair(make_model(N_CLASSES, **WIDE))
    n = 6 if size == 1 else N
    given: dict[str, Any] = {
        "labels": torch.arange(n) % 5,
        "x_T": torch.randn(n, 3),
        "noise": torch.randn(4, n, 3),
    }
    for trajectory in (False, True):
        want = cpu.sample(n, return_trajectory=trajectory, **given)
        for out in (torch.zeros_like(want), np.zeros(want.shape, np.float32)):
            got = there.sample(n, return_trajectory=trajectory, out=out, **given)
            assert type(got) is Tensor and torch.equal(got, want)
            assert np.array_equal(np.asarray(out), want.numpy())


def test_chunk_size(monkeypatch: pytest.MonkeyPatch) -> None:
    def sizes(n: int, sample_bytes: int) -> int:
        return cuda_chain.chunk_size(n, sample_bytes, DEVICE)

    assert sizes(10, 12) >= 10 and sizes(0, 0) >= 1
    assert sizes(4_000_000, 12) == 1_000_000
    assert sizes(1 << 40, 16) == cuda_chain.PINNED_BYTES // 16
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (1 << 20, 1 << 30))
    assert sizes(1 << 20, 16) == (1 << 20) // 8 // 16
    assert sizes(1 << 20, 1 << 30) == 1


def test_out_on_the_device_and_progress(capfd: pytest.CaptureFixture[str]) -> None:
    there = pair(make_model(**WIDE))[1]
    want = there.sample(N)
    out = to(torch.zeros(N, 3))
    assert there.sample(N, out=out) is out and torch.equal(plain(out), plain(want))
    for target in (None, np.zeros((N, 3), np.float32)):
        there.sample(N, out=target, progress=True)
        assert "100%" in capfd.readouterr().err
    assert there.sample(0).shape == (0, 3) and there.sample(0, out=torch.empty(0, 3)).shape == (0, 3)


def test_samples_that_are_not_finite_are_named() -> None:
    there = pair(make_model(**WIDE))[1]
    x_T = torch.randn(N, 3)
    x_T[[4, 60]] = 3e38
    for out in (None, torch.empty(N, 3)):
        with pytest.warns(
            RuntimeWarning, match="2 of 70 samples hold NaN or infinity: sample 9, 65 "
        ) as told:
            there.sample(N, start=5, x_T=x_T, out=out)
        assert told[0].filename == __file__


# ---- the module, its weights, the sampler itself


def test_the_device_of_the_weights() -> None:
    model = make_model(**WIDE)
    want = df.Sampler(model, SCHEDULE, steps=4).sample(N)
    there = df.Sampler(on_device(make_model(**WIDE)), SCHEDULE, steps=4, backend="native")
    assert there.device == DEVICE and torch.equal(plain(there.sample(N)), want)
    assert isinstance(next(iter(there.model.parameters())), OnDevice)  # the module is as it was
    here = df.Sampler(there.model, SCHEDULE, steps=4, device="cpu")
    assert torch.equal(here.sample(N), want)
    with torch.no_grad():
        next(iter(there.model.parameters())).add_(1)
    for sampler in (there, here):
        with pytest.raises(RuntimeError, match="weights have changed"):
            sampler.sample(N)


@pytest.mark.parametrize("backend", ["torch", "auto"])
def test_the_module_in_torch(backend: str) -> None:
    model = WithCumsum().eval()
    here = df.Sampler(model, SCHEDULE, shape=2, steps=4, backend=backend)
    for device in ("cuda", "cuda:0"):  # noqa: F402
        with pytest.raises(ValueError, match=r"model: got 'one on cpu'.*model\.to\('cuda:0'\)"):
            df.Sampler(model, SCHEDULE, shape=2, backend=backend, device=device)
    there = df.Sampler(on_device(model), SCHEDULE, shape=2, steps=4, backend=backend)
    assert ", torch" in there.explain()
    mask = torch.tensor([True, False])
    for call in ({}, {"fixed_mask": mask, "fixed_values": torch.ones(2)}, {"return_trajectory": True}):
        for out in (None, torch.zeros(5 * N * 2).view(5, N, 2) if "return_trajectory" in call else None):
            got, want = there.sample(N, seed=3, out=out, **call), here.sample(N, seed=3, **call)
            torch.testing.assert_close(plain(got), want)


def test_a_guided_module_in_torch() -> None:
    model, how = make_model(N_CLASSES), {"backend": "torch", "steps": 3, "guidance_scale": 2.0}
    here = df.Sampler(model, SCHEDULE, **how)  # type: ignore[arg-type]
    there = df.Sampler(on_device(make_model(N_CLASSES)), SCHEDULE, **how)  # type: ignore[arg-type]
    labels = torch.arange(N) % N_CLASSES
    scales = torch.linspace(0, 3, N)
    for call in ({"labels": labels}, {"labels": 2, "guidance_scale": scales}):
        torch.testing.assert_close(plain(there.sample(N, **call)), here.sample(N, **call))  # type: ignore[arg-type]


def test_pickle() -> None:
    cpu, there = pair(make_model(**WIDE))
    again = pickle.loads(pickle.dumps(there))
    assert again.device == DEVICE and again.explain() == there.explain()
    assert torch.equal(plain(again.sample(N)), cpu.sample(N))


def test_a_seed_in_device_memory() -> None:
    there = pair(make_model(**WIDE))[1]
    seed = torch.tensor([-3])
    want = plain(there.sample(N, seed=2**64 - 3))
    assert torch.equal(plain(there.sample(N, seed=to(seed))), want)
    for bad in (seed, to(seed, OnAnother), to(torch.ones(1)), to(torch.tensor([1, 2]))):
        with pytest.raises(ValueError, match=r"seed: got .*int64 tensor of one element on cuda:0"):
            there.sample(N, seed=bad)
    generators = [torch.Generator().manual_seed(1) for _ in range(2)]
    first, second = (plain(there.sample(N, seed=g)) for g in generators)
    assert torch.equal(first, second)


# ---- refusals


def made_on(device: Any = "cuda", model: Any = None, **options: Any) -> df.Sampler:  # noqa: F811
    return df.Sampler(model or make_model(**WIDE), SCHEDULE, device=device, steps=2, **options)


def two_devices() -> nn.Module:
    model = on_device(make_model(**WIDE))
    _name, last = list(model.named_modules())[-1]
    for key, tensor in last._parameters.items():
        last._parameters[key] = plain(tensor.data).as_subclass(OnAnother)  # type: ignore[assignment,union-attr]
    return model


BAD_SAMPLERS: dict[str, tuple[Callable[[], Any], type[Exception], str]] = {
    "no such device": (lambda: made_on("cuda:7"), ValueError, "device: got 'cuda:7'.*a CUDA device below"),
    "another kind": (lambda: made_on("mps"), ValueError, "device: got 'mps'.*the CPU or a CUDA device"),
    "no device": (lambda: made_on(3.5), TypeError, "device: got 3.5"),
    "a precision of CUDA": (
        lambda: made_on("cpu", precision="bfloat16"),
        ValueError,
        "precision: got 'bfloat16'.*'float32' on the CPU",
    ),
    "a precision of the kernels": (
        lambda: made_on(precision="float16", backend="torch"),
        ValueError,
        "precision: .*backend='torch'",
    ),
    "an unknown precision": (lambda: made_on(precision="fp16"), ValueError, "did you mean 'float16'"),
    "weights on two devices": (
        lambda: made_on(None, two_devices()),
        ValueError,
        "model: got .* on cuda:1, .* on cuda:0.*on one CUDA device",
    ),
}


@pytest.mark.parametrize("name", BAD_SAMPLERS)
def test_samplers_that_are_refused(name: str) -> None:
    make, error, pattern = BAD_SAMPLERS[name]
    with pytest.raises(error, match=pattern):
        make()


BAD_CALLS: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "x_T elsewhere": ({"x_T": to(torch.zeros(4, 3), OnAnother)}, ValueError, "x_T: got .*cuda:1.*cuda:0"),
    "noise elsewhere": ({"noise": to(torch.zeros(2, 4, 3), OnAnother)}, ValueError, "noise: got .*cuda:1"),
    "NaN in x_T": ({"x_T": to(torch.full((4, 3), torch.nan))}, ValueError, r"x_T: got nan at index \(0, 0\)"),
    "x_T of another shape": ({"x_T": to(torch.zeros(3, 3))}, ValueError, r"x_T: got .*\(3, 3\).*\(4, 3\)"),
    "x_T in float64": ({"x_T": to(torch.zeros(4, 3).double())}, ValueError, "x_T: got a torch.float64"),
    "out elsewhere": ({"out": to(torch.zeros(4, 3), OnAnother)}, ValueError, "out: got .*cuda:1.*cuda:0"),
    "out of another shape": ({"out": to(torch.zeros(3, 3))}, ValueError, r"out: got .*\(3, 3\)"),
    "out not contiguous": ({"out": to(torch.zeros(3, 4)).t()}, ValueError, "out: got .*strides"),
    "a label too large": ({"labels": to(torch.tensor([0, 1, 9, 0]))}, ValueError, "labels: got 9"),
    "scales": ({"guidance_scale": to(torch.ones(4))}, ValueError, "guidance_scale: got .*accepted: None"),
    "values elsewhere": (
        {"fixed_mask": torch.ones(3).bool(), "fixed_values": to(torch.zeros(3), OnAnother)},
        ValueError,
        "fixed_values: got .*cuda:1",
    ),
}


@pytest.mark.parametrize("name", BAD_CALLS)
def test_calls_that_are_refused(name: str) -> None:
    given, error, pattern = BAD_CALLS[name]
    sampler = made_on(model=make_model(N_CLASSES, **WIDE))
    with pytest.raises(error, match=pattern):
        sampler.sample(4, **given)


def test_a_sampler_on_the_cpu_takes_nothing_of_a_device() -> None:
    sampler = made_on("cpu")
    for name in ("x_T", "out"):
        with pytest.raises(ValueError, match=f"{name}: got .*cuda:0; accepted: .* on the CPU"):
            sampler.sample(4, **{name: to(torch.zeros(4, 3))})
    with pytest.raises(TypeError, match="seed: got"):
        sampler.sample(4, seed=torch.tensor([1]))


def test_running_out_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    sampler, there = made_on(), torch.empty

    def exhausted(*size: Any, device: Any = None, **options: Any) -> Tensor:  # noqa: F811
        if is_cuda(device):
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return there(*size, **options)

    monkeypatch.setattr(torch, "empty", exhausted)
    with pytest.raises(
        MemoryError, match=r"n: an output of shape \(4, 3\).*on cuda:0; use stream\(\), or out="
    ):
        sampler.sample(4)
    monkeypatch.setattr(torch, "aminmax", lambda *_, **__: exhausted(1, device="cuda"))
    monkeypatch.setattr(torch, "empty", there)
    with pytest.raises(MemoryError, match=r"n: got 4; accepted: .*a smaller n, stream"):
        sampler.sample(4)


def test_a_torch_without_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    for place in ("cuda", "cuda:0"):
        with pytest.raises(ValueError, match=r"device: got .*the CPU, for this torch is built without CUDA"):
            made_on(place)


def test_no_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    pickled = pickle.dumps(made_on())
    monkeypatch.setattr(df.cuda, "_state", lambda: (None, "not built: build it"))
    for call in (made_on, lambda: pickle.loads(pickled)):
        with pytest.raises(ValueError, match=r"device: got .*the CPU, for not built: build it"):
            call()
    with pytest.raises(ValueError, match=r"model: got .*the CPU, for not built"):
        made_on(None, on_device(make_model(**WIDE)))
