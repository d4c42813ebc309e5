"""accelerate(diffusion): the published algorithms in float64, the library where it is installed, refusals."""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

import pytest
import torch
from lucidrains_loops import (
    IMAGES,
    MLP,
    SEQUENCES,
    N,
    T,
    assert_close,
    diffusion_class,
    float64_loop,
    make,
    stream,
    unused,
)
from torch import Tensor, nn

from diffusion_fast.integrations.lucidrains import accelerate, restore


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)  # products this small only wait for a second one


SETTINGS: dict[str, dict[str, Any]] = {"ddpm": {}}
SETTINGS["ddim"] = {"sampling_timesteps": 9}
SETTINGS["ddim, noisy"] = {"sampling_timesteps": 12, "ddim_sampling_eta": 0.7}
SHAPES = {"images": (N, 2, 3, 3), "sequences": (N, 2, 3), "channels last": (N, 3, 2)}
OBJECTIVES = ("pred_noise", "pred_x0", "pred_v")


@pytest.mark.parametrize("objective", OBJECTIVES)
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("kind", SHAPES)
def test_published_algorithm(kind: str, settings: str, objective: str) -> None:
    d = make(kind, objective=objective, **SETTINGS[settings])
    # a capture takes a third of a second: one objective of three
    assert accelerate(d, backend="native" if objective == "pred_v" else "torch") is d
    x, z = stream(5, SHAPES[kind])
    expected = [(state + 1) / 2 for state in float64_loop(d, x, z)]
    if kind == "images":
        got = d.sample(batch_size=N, return_all_timesteps=True)
        assert got.is_contiguous()
        assert_close(got, torch.stack(expected, dim=1))
    else:
        got, start = d.sample(batch_size=N, return_noise=True)
        assert torch.equal(start, x)
        assert_close(got, expected[-1])
    torch.manual_seed(5)
    again = d.sample(N)
    assert torch.equal(again, got[:, -1] if kind == "images" else got)
    assert not torch.equal(d.sample(N), again)
    assert d.sample().shape == (16, *SHAPES[kind][1:])


@pytest.mark.parametrize("kind", ["images", "sequences"])
@pytest.mark.parametrize("settings", SETTINGS)
def test_self_condition(kind: str, settings: str) -> None:
    d = accelerate(make(kind, self_condition=True, objective="pred_v", **SETTINGS[settings]))
    assert "self_condition" in d.sample.explain()
    x, z = stream(6, SHAPES[kind])
    states = float64_loop(d, x, z)
    if kind == "images":
        assert_close(d.sample(N, return_all_timesteps=True), (torch.stack(states, dim=1) + 1) / 2)
    else:
        assert_close(d.sample(N), (states[-1] + 1) / 2)


@pytest.mark.parametrize("settings", SETTINGS)
def test_model_forward_kwargs(settings: str) -> None:
    d = accelerate(make(**SETTINGS[settings]))
    shift = torch.linspace(-1, 1, N)
    x, z = stream(7, SHAPES["sequences"])
    states = float64_loop(d, x, z, shift=shift)
    got, start = d.sample(N, True, {"shift": shift})
    assert torch.equal(start, x)
    assert_close(got, (states[-1] + 1) / 2)


def test_torch_path_and_what_explain_says() -> None:
    d = accelerate(make())
    assert "GaussianDiffusion1D of a MLP" in d.sample.explain() and "layer 1: linear" in d.sample.explain()
    torch.manual_seed(3)
    native = d.sample(N)
    accelerate(d, backend="torch")
    torch.manual_seed(3)
    assert_close(d.sample(N), native)
    d.model = Convolution().eval()  # as a Unet: left to torch
    accelerate(d)
    x, z = stream(3, SHAPES["sequences"])
    expected = float64_loop(d, x, z)[-1]
    assert "runs in torch" in d.sample.explain()
    assert_close(d.sample(N), (expected + 1) / 2)


class Convolution(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv1d(2, 2, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.inner(x) * (1 + t[:, None, None] / T)


class Halved(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        return self.inner(x, t) / 2


def test_changes_between_calls() -> None:
    """New weights, settings and another network make another sampler; nothing new makes none."""
    d = accelerate(make(sampling_timesteps=9))

    def check() -> None:
        x, z = stream(8, SHAPES["sequences"])
        expected = (float64_loop(d, x, z)[-1] + 1) / 2
        assert_close(d.sample(N), expected)

    check()
    made = d.sample.made
    check()
    assert d.sample.made is made
    first = d.model.register_forward_hook(lambda module, given, output: 2 * output)
    check()
    first.remove()
    del first
    second = d.model.register_forward_hook(lambda module, given, output: output / 2)
    check()
    second.remove()
    check()
    optimiser = torch.optim.SGD(d.model.parameters(), lr=0.5)
    d.model(torch.randn(8, 2, 3), torch.zeros(8, dtype=torch.int64)).square().sum().backward()
    optimiser.step()
    check()
    assert d.sample.made is not made
    d.sampling_timesteps, d.ddim_sampling_eta = 7, 1.0
    check()
    d.is_ddim_sampling, d.objective = False, "pred_x0"
    check()
    d.model = Halved(d.model).eval()  # of the same weights
    check()


def test_a_copy_samples_from_its_own_weights() -> None:
    """As in the library's trainer, which samples from a deep copy with averaged weights."""
    d = accelerate(make())
    d.sample(1)
    with torch.no_grad():
        d.model.last.bias += 0.5  # the sampler in d is stale now, and refuses to be copied
    twin = copy.deepcopy(d)
    with torch.no_grad():
        twin.model.last.bias -= 1.0
    x, z = stream(9, SHAPES["sequences"])
    states = float64_loop(twin, x, z)
    assert_close(twin.sample(N), (states[-1] + 1) / 2)
    torch.manual_seed(9)
    assert not torch.equal(d.sample(N), (states[-1] + 1) / 2)
    assert "sample" not in d.state_dict() and d.state_dict().keys() == make().state_dict().keys()


def test_restore() -> None:
    d = make("images")
    accelerate(accelerate(d))
    assert restore(d) is d
    assert d.sample() == "the library's own sample"
    with pytest.raises(ValueError, match=r"^diffusion: got 'GaussianDiffusion'.*accelerate"):
        restore(d)


def without(name: str) -> Any:
    d = make()
    delattr(d, name)
    return d


def subclass(base: type[nn.Module], **methods: Any) -> Any:
    d = make("images" if base is IMAGES else "sequences")
    d.__class__ = type("Mine", (base,), methods)
    return d


def replaced(**attributes: Any) -> Any:
    d = make()
    vars(d).update(attributes)
    return d


REFUSED: dict[str, tuple[Callable[[], Any], str]] = {
    "no module": (lambda: "diffusion", "^diffusion: got 'diffusion'.*GaussianDiffusion1D"),
    "a module": (lambda: nn.Linear(2, 2), "Linear without model, betas, alphas_cumprod"),
    "no length": (partial(without, "seq_length"), "without seq_length; accepted"),
    "learned variance": (
        partial(subclass, IMAGES, p_mean_variance=unused, model_predictions=unused),
        "Mine with its own p_mean_variance, model_predictions",
    ),
    "sample": (partial(subclass, SEQUENCES, sample=unused), "with its own p_sample_loop, ddim_sample"),
    "method": (partial(replaced, p_sample=unused), "with its own p_sample; accepted"),
    "own sample": (partial(replaced, sample=unused), "with its own sample; accepted"),
    "guided": (
        partial(subclass, diffusion_class("Guided", lambda self, classes, cond_scale=6.0: None)),
        r"sample\(classes, cond_scale\); accepted: .*sample\(batch_size, return_noise, model",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused(name: str) -> None:
    diffusion, message = REFUSED[name]
    with pytest.raises(TypeError, match=message):
        accelerate(diffusion())
    with pytest.raises(ValueError, match=r"^backend: .*'nativ'"):
        accelerate(make(), backend="nativ")


def with_buffer(name: str, index: int, value: float) -> Any:
    d = make()
    getattr(d, name)[index] = value
    return d


REFUSED_CALLS: dict[str, tuple[Callable[[], Any], dict[str, Any], str]] = {
    "train mode": (lambda: make().train(), {}, "^diffusion.model: got 'MLP in train mode'.*eval"),
    "batch": (make, {"batch_size": -1}, "^batch_size: got -1"),
    "noise": (make, {"return_noise": 1}, "^return_noise: "),
    "objective": (partial(make, objective="pred_x"), {}, "^diffusion.objective: .*pred_x0"),
    "eta": (
        partial(make, sampling_timesteps=9, ddim_sampling_eta=2.0),
        {},
        "^diffusion.ddim_sampling_eta: got 2.0",
    ),
    "steps": (partial(make, sampling_timesteps=0), {}, "^diffusion.sampling_timesteps: got 0"),
    "betas": (partial(with_buffer, "betas", 0, 0.0), {}, "^diffusion.betas: got 0.0"),
    "beta > 1": (partial(with_buffer, "betas", 3, 1.5), {}, "^betas: got 1.5"),
    "products": (partial(with_buffer, "alphas_cumprod", 3, 0.5), {}, "^diffusion.alphas_cumprod: "),
    "no dict": (make, {"model_forward_kwargs": [1]}, "^model_forward_kwargs: .*a dict"),
    "self": (partial(make, self_condition=True), {}, "^backend: got 'native'.*self_condition"),
    "kwargs": (make, {"model_forward_kwargs": {"shift": torch.ones(16)}}, "^backend: got 'native'.*shift"),
}


@pytest.mark.parametrize("name", REFUSED_CALLS)
def test_refused_calls_leave_the_generator(name: str) -> None:
    diffusion, arguments, message = REFUSED_CALLS[name]
    d = accelerate(diffusion(), backend="native")
    state = torch.get_rng_state()
    with pytest.raises((TypeError, ValueError), match=message):
        d.sample(**arguments)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.fixture(scope="module")
def peer() -> ModuleType:
    try:
        import denoising_diffusion_pytorch
    except Exception as reason:  # its torchvision may not fit the torch that is here
        pytest.skip(f"denoising_diffusion_pytorch cannot be imported: {reason!r}")
    return denoising_diffusion_pytorch


def assert_same_as_original(d: Any, shape: tuple[int, ...], patch: pytest.MonkeyPatch, **call: Any) -> None:
    """Its own sample, given the noise that ours has for a seed, and ours."""
    x, z = stream(4, shape)
    steps = iter(range(T))
    with patch.context() as inner:
        inner.setattr(torch, "randn", lambda *size, **options: x.clone())
        inner.setattr(torch, "randn_like", lambda like: z(next(steps)))
        theirs = d.sample(shape[0], **call)
    accelerate(d)
    torch.manual_seed(4)
    assert_close(d.sample(shape[0], **call), theirs)
    restore(d)


@pytest.mark.parametrize("self_condition", [False, True])
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("objective", OBJECTIVES)
def test_the_library_itself(
    peer: ModuleType, objective: str, settings: str, self_condition: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = SETTINGS[settings] | {"timesteps": T, "objective": objective}
    common = {"self_condition": self_condition}
    schedule = dict(zip(OBJECTIVES, ("linear", "cosine", "sigmoid"), strict=True))[objective]
    net = MLP(size=18, **common)
    d = peer.GaussianDiffusion(net, image_size=3, beta_schedule=schedule, **options).eval()
    assert_same_as_original(d, SHAPES["images"], monkeypatch, return_all_timesteps=True)
    for kind, normalised in (("sequences", True), ("channels last", False)):
        d = peer.GaussianDiffusion1D(
            MLP(size=6, **common),
            seq_length=3,
            auto_normalize=normalised,
            channel_first=kind == "sequences",
            **options,
        ).eval()
        assert_same_as_original(d, SHAPES[kind], monkeypatch)
        shift = torch.linspace(-1, 1, N)
        assert_same_as_original(d, SHAPES[kind], monkeypatch, model_forward_kwargs={"shift": shift})


@pytest.mark.parametrize("self_condition", [False, True])
def test_its_unets(peer: ModuleType, self_condition: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    common = {"timesteps": T, "sampling_timesteps": 5, "ddim_sampling_eta": 0.5}
    net = peer.Unet1D(dim=8, dim_mults=(1, 2), channels=2, self_condition=self_condition)
    d = peer.GaussianDiffusion1D(net, seq_length=8, **common).eval()
    assert_same_as_original(d, (3, 2, 8), monkeypatch)
    net = peer.Unet(dim=8, dim_mults=(1, 2), self_condition=self_condition)
    d = peer.GaussianDiffusion(net, image_size=8, **common).eval()
    assert_same_as_original(d, (2, 3, 8, 8), monkeypatch)
    assert "torch" in accelerate(d).sample.explain()


def test_its_other_classes_are_refused(peer: ModuleType) -> None:
    net = peer.Unet(dim=8, dim_mults=(1, 2), learned_variance=True)
    fourier = peer.Unet(dim=8, dim_mults=(1, 2), learned_sinusoidal_cond=True)
    for other in (
        peer.LearnedGaussianDiffusion(net, image_size=8, timesteps=T),
        peer.ElucidatedDiffusion(fourier, image_size=8),
        peer.ContinuousTimeGaussianDiffusion(fourier, image_size=8),
    ):
        with pytest.raises(TypeError, match=r"^diffusion: got a .*accepted: a GaussianDiffusion"):
            accelerate(other)
