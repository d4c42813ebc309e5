"""What a scheduler is beside its step: configuration, noise, state, tensors of any kind, pipelines."""

from __future__ import annotations

import copy
import inspect
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed: pip install '.[diffusers]'")
import diffusers
from diffusers_loops import NAMES, START, gap, network, original, ours, run

from diffusion_fast.integrations import diffusers as fast

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")  # theirs, about NumPy 2
WITH_GENERATOR = [name for name in NAMES if name not in ("HeunDiscreteScheduler", "UniPCMultistepScheduler")]
STOCHASTIC: list[tuple[str, dict[str, Any], dict[str, Any]]] = [  # name, config, options of step
    ("DDPMScheduler", {}, {}),
    ("DDIMScheduler", {}, {"eta": 1.0}),
    ("EulerDiscreteScheduler", {}, {"s_churn": 5.0}),
    ("EulerAncestralDiscreteScheduler", {}, {}),
    ("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}, {}),
]


# ---- configuration


@pytest.mark.parametrize("name", NAMES)
def test_config_goes_there_and_back(name: str, tmp_path: Path) -> None:
    theirs = original(name, num_train_timesteps=500, beta_end=0.03, trained_betas=None)
    scheduler = getattr(fast, f"Fast{name}").from_config(theirs.config)
    back = getattr(diffusers, name).from_config(scheduler.config)
    for one in (scheduler, back):
        assert {k: v for k, v in one.config.items() if k[0] != "_"} == {
            k: v for k, v in theirs.config.items() if k[0] != "_"
        }
    scheduler.save_pretrained(tmp_path)
    for cls in (type(scheduler), type(theirs)):
        loaded = cls.from_pretrained(tmp_path)
        assert type(loaded) is cls and loaded.config.beta_end == 0.03
        assert torch.equal(loaded.betas, theirs.betas)


@pytest.mark.parametrize("name", NAMES)
def test_same_signatures_and_attributes(name: str) -> None:
    theirs, scheduler = original(name), ours(name)
    assert isinstance(scheduler, type(theirs))
    for method in ("__init__", "set_timesteps", "step", "add_noise", "scale_model_input"):
        names = [list(inspect.signature(getattr(type(s), method)).parameters) for s in (theirs, scheduler)]
        assert names[0] == names[1]
    assert len(scheduler) == 1000 and scheduler.order == theirs.order
    assert scheduler._compatibles == theirs._compatibles
    assert {type(theirs)} <= set(scheduler.compatibles)
    for one in (theirs, scheduler):
        one.set_timesteps(11)
    assert scheduler.init_noise_sigma == theirs.init_noise_sigma
    assert torch.equal(scheduler.timesteps, theirs.timesteps)
    x, t = START, scheduler.timesteps[4]
    assert torch.equal(scheduler.scale_model_input(x, t), theirs.scale_model_input(x, t))
    assert torch.equal(scheduler.add_noise(x, x, t[None]), theirs.add_noise(x, x, t[None]))
    velocities = [
        one.get_velocity(x, 2 * x, t[None]) for one in (theirs, scheduler) if hasattr(one, "get_velocity")
    ]
    assert len(velocities) == (0 if name.startswith(("DPM", "Heun", "UniPC", "EulerA")) else 2)
    assert all(torch.equal(velocity, velocities[0]) for velocity in velocities)


@pytest.mark.parametrize("name", NAMES)
def test_every_compatible_config_makes_one(name: str) -> None:
    cls = getattr(fast, f"Fast{name}")
    for other in cls().compatibles:
        if other.__name__ not in ("DPMSolverSDEScheduler",):  # needs torchsde
            run(cls.from_config(other().config), steps=3)


@pytest.mark.parametrize("name", NAMES)
def test_output_types(name: str) -> None:
    theirs, scheduler = original(name), ours(name)
    outputs = []
    for one in (theirs, scheduler):
        one.set_timesteps(5)
        t = one.timesteps[0]
        u = one.scale_model_input(START, t)
        outputs.append(one.step(network(u), t, START))
    assert type(outputs[0]) is type(outputs[1]) and list(outputs[0]) == list(outputs[1])
    scheduler.set_timesteps(5)
    t = scheduler.timesteps[0]
    made = scheduler.step(network(scheduler.scale_model_input(START, t)), t, START, return_dict=False)
    assert type(made) is tuple and len(made) == len(outputs[0])


def test_changed_config_and_levels_are_seen() -> None:
    scheduler, theirs = ours("DDIMScheduler"), original("DDIMScheduler")
    for one in (scheduler, theirs):
        run(one)
        one.register_to_config(prediction_type="v_prediction")
    assert gap(run(scheduler), run(theirs)) < 1e-5
    for one in (scheduler, theirs):
        one.alphas_cumprod = one.alphas_cumprod**2
    assert gap(run(scheduler), run(theirs)) < 1e-5
    for one in (scheduler, theirs):
        one.final_alpha_cumprod = torch.tensor(0.9999)
    changed = run(scheduler)
    assert gap(changed, run(theirs)) < 1e-5
    scheduler.final_alpha_cumprod = torch.tensor(1.0)
    assert gap(run(scheduler), changed) > 1e-3


def test_import_of_the_package_alone_imports_no_peer() -> None:
    code = (
        "import sys, diffusion_fast, diffusion_fast.integrations\n"
        "sys.exit(any(m in sys.modules for m in ('diffusers', 'transformers', 'jax')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


# ---- noise


@pytest.mark.parametrize("name, config, options", STOCHASTIC, ids=lambda v: str(v))
def test_generators_end_where_the_original_leaves_them(
    name: str, config: dict[str, Any], options: dict[str, Any]
) -> None:
    for several in (False, True):
        states, generators = [], []
        for make in (original, ours):
            g = [torch.Generator().manual_seed(i) for i in range(2)]
            given: Any = g if several else g[0]
            states.append(run(make(name, **config), generator=given, **options))
            generators.append(g)
        assert gap(states[1], states[0]) < 1e-4
        for a, b in zip(*generators, strict=True):
            assert torch.equal(a.get_state(), b.get_state())


@pytest.mark.parametrize("name, config, options", STOCHASTIC, ids=lambda v: str(v))
def test_manual_seed_fixes_a_run(name: str, config: dict[str, Any], options: dict[str, Any]) -> None:
    scheduler = ours(name, **config)
    runs = []
    for seed in (3, 3, 4):
        torch.manual_seed(seed)
        runs.append(run(scheduler, **options)[-1])
    runs.append(run(scheduler, **options)[-1])
    assert torch.equal(runs[0], runs[1])
    assert not torch.equal(runs[0], runs[2]) and not torch.equal(runs[2], runs[3])


def test_copies_of_a_scheduler_do_not_share_noise() -> None:
    scheduler = ours("DDPMScheduler")
    scheduler.set_timesteps(10)
    x, times = START, scheduler.timesteps
    x = scheduler.step(network(x), times[0], x).prev_sample
    for other in (copy.deepcopy(scheduler), pickle.loads(pickle.dumps(scheduler)), scheduler):
        made = [s.step(network(x), times[1], x) for s in (scheduler, other)]
        assert not torch.equal(made[0].prev_sample, made[1].prev_sample)
        assert torch.equal(made[0].pred_original_sample, made[1].pred_original_sample)


def test_own_noise_has_the_variance() -> None:
    torch.manual_seed(0)
    scheduler, x = ours("DDPMScheduler"), torch.zeros(20_000, 3)
    made = scheduler.step(torch.zeros_like(x), 400, x).prev_sample / scheduler._get_variance(400).sqrt()
    assert abs(made.mean()) < 4 / 245 and abs(made.var() - 1) < 4 * 2**0.5 / 245  # 60,000 normals
    assert torch.corrcoef(made.T).triu(1).abs().max() < 4 / 141


@pytest.mark.parametrize("name", ["DDIMScheduler", "DPMSolverMultistepScheduler"])
def test_variance_noise(name: str) -> None:
    config, options = ({"algorithm_type": "sde-dpmsolver++"}, {}) if "DPM" in name else ({}, {"eta": 0.8})
    z = torch.randn(START.shape)
    runs = [run(make(name, **config), variance_noise=z, **options) for make in (original, ours)]
    assert gap(runs[1], runs[0]) < 1e-4


# ---- tensors


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", NAMES)
def test_half_precision(name: str, dtype: torch.dtype) -> None:
    """Each step from the same state: as close to the float32 step as the original's arithmetic in dtype."""
    config = {"use_karras_sigmas": True} if "DPMSolver" in name else {}
    theirs, half, full = original(name, **config), ours(name, **config), original(name, **config)
    x = START.to(dtype)
    for one in (theirs, half, full):
        one.set_timesteps(8)
    for t in theirs.timesteps[:-1]:
        x = (START * theirs.init_noise_sigma).to(dtype) if t == theirs.timesteps[0] else x
        outputs = [one.scale_model_input(x, t) for one in (theirs, half, full)]
        F = network(outputs[0].float()).to(dtype)
        want = theirs.step(F, t, x, return_dict=False, **_seeded(name))
        got = half.step(F, t, x, return_dict=False, **_seeded(name))
        exact = full.step(F.float(), t, x.float(), return_dict=False, **_seeded(name))
        assert [s.dtype for s in got] == [s.dtype for s in want]
        if name not in ("DDPMScheduler", "EulerAncestralDiscreteScheduler"):  # normals in dtype are others
            for a, b, c in zip(got, want, exact, strict=True):
                ours_off, theirs_off = (gap([s.float()], [c]) for s in (a, b))
                assert ours_off <= 2 * theirs_off + torch.finfo(dtype).eps
        x = want[0]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("pair", [(torch.float32, torch.bfloat16), (torch.float16, torch.float32)], ids=str)
def test_mixed_dtypes(name: str, pair: tuple[torch.dtype, torch.dtype]) -> None:
    made = []
    for make in (original, ours):
        scheduler = make(name)
        scheduler.set_timesteps(6)
        t = scheduler.timesteps[0]
        F = network(scheduler.scale_model_input(START, t)).to(pair[1])
        options = {"generator": torch.Generator().manual_seed(1)} if name in WITH_GENERATOR else {}
        made.append(scheduler.step(F, t, START.to(pair[0]), return_dict=False, **options))
    assert [s.dtype for s in made[1]] == [s.dtype for s in made[0]]
    assert gap(list(made[1]), list(made[0])) < 2e-2  # bfloat16


@pytest.mark.parametrize("name", NAMES)
def test_layouts_and_shapes(name: str) -> None:
    wide = torch.randn(2, 3, 4, 10)
    starts = {
        "strided": wide[..., ::2],
        "channels last": START.to(memory_format=torch.channels_last),
        "transposed": START.transpose(2, 3),
        "two axes": torch.randn(5, 3),
        "five axes": torch.randn(2, 3, 2, 2, 3),
        "empty": torch.empty(0, 3, 4),
    }
    for label, start in starts.items():
        runs = [run(make(name), start=start, steps=5, **_seeded(name)) for make in (original, ours)]
        assert label == "empty" or gap(runs[1], runs[0]) < 1e-4, label
        assert runs[1][-1].shape == start.shape


def _seeded(name: str) -> dict[str, Any]:
    return {"generator": torch.Generator().manual_seed(1)} if name in WITH_GENERATOR else {}


@pytest.mark.parametrize("name", NAMES)
def test_negative_views(name: str) -> None:
    """Memory that holds the negated values, with a bit that says so: no kernel may take it as it is."""
    scheduler, other = ours(name), ours(name)
    x, output = torch.randn(2, 2, 3, 8, 8)
    for one in (scheduler, other):
        one.set_timesteps(5)
    t = scheduler.timesteps[1]
    torch.manual_seed(0)
    expected = scheduler.step(output, t, x).prev_sample
    torch.manual_seed(0)
    negated = [torch._neg_view(-tensor) for tensor in (output, x)]
    assert torch.equal(other.step(negated[0], t, negated[1]).prev_sample, expected)


@pytest.mark.parametrize("name", NAMES)
def test_float64_is_left_to_the_original(name: str) -> None:
    runs = [run(make(name), start=START.double(), **_seeded(name)) for make in (original, ours)]
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))


@pytest.mark.parametrize("name", NAMES)
def test_what_a_step_gave_may_be_overwritten(name: str) -> None:
    """The original holds no reference to what it returned, and neither do we."""
    runs = []
    for make in (original, ours):
        scheduler = make(name)
        scheduler.set_timesteps(8)
        x, states = START * torch.as_tensor(scheduler.init_noise_sigma), []
        for t in scheduler.timesteps:
            output = network(scheduler.scale_model_input(x, t))
            made = scheduler.step(output, t, x, return_dict=False, **_seeded(name))
            x = made[0].clone()
            states.append(x)
            for tensor in (output, *made):
                tensor.fill_(float("nan"))
        runs.append(states)
    assert gap(runs[1], runs[0]) < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_replaced_between_steps(name: str) -> None:
    """As inpainting does: half of it is set to the noised original."""
    runs = []
    for make in (original, ours):
        scheduler = make(name)
        scheduler.set_timesteps(9)
        x, states = START * torch.as_tensor(scheduler.init_noise_sigma), []
        for t in scheduler.timesteps:
            output = network(scheduler.scale_model_input(x, t))
            x = scheduler.step(output, t, x, **_seeded(name)).prev_sample.clone()
            x[:, :, :2] = 0.3 * START[:, :, :2]
            states.append(x)
        runs.append(states)
    assert gap(runs[1], runs[0]) < 1e-4


def test_history_is_kept_as_the_original_keeps_it() -> None:
    """A list of predictions that was put aside, and one given by the caller, stay as they were."""
    scheduler = ours("DPMSolverMultistepScheduler")
    scheduler.set_timesteps(8)
    x, aside = START, []
    for t in scheduler.timesteps[:4]:
        x = scheduler.step(network(x), t, x).prev_sample
        aside.append(
            (scheduler.model_outputs, [None if m is None else m.clone() for m in scheduler.model_outputs])
        )
    for kept, copied in aside:
        assert all(a is b or torch.equal(a, b) for a, b in zip(kept, copied, strict=True))
    given = [torch.ones_like(START), torch.full_like(START, 2.0)]
    scheduler.set_timesteps(8)
    scheduler.model_outputs = given
    scheduler.step(network(START), scheduler.timesteps[0], START)
    assert given[0].eq(1).all() and given[1].eq(2).all() and len(given) == 2


# ---- pipelines


def test_in_a_pipeline(tmp_path: Path) -> None:
    unet = diffusers.UNet2DModel(
        sample_size=8,
        block_out_channels=(8, 16),
        norm_num_groups=4,
        down_block_types=("DownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "UpBlock2D"),
    ).eval()
    pipe = diffusers.DDPMPipeline(unet, original("DDPMScheduler"))
    pipe.set_progress_bar_config(disable=True)
    images = []
    for cls in (diffusers.DDPMScheduler, fast.FastDDPMScheduler, fast.FastDPMSolverMultistepScheduler):
        pipe.scheduler = cls.from_config(pipe.scheduler.config)
        generator = torch.Generator().manual_seed(0)
        options = {"num_inference_steps": 4, "output_type": "np"}
        if cls is not fast.FastDPMSolverMultistepScheduler:
            images.append(pipe(generator=generator, **options).images)
    assert abs(images[0] - images[1]).max() < 1e-4
    pipe.save_pretrained(tmp_path)
    assert type(diffusers.DDPMPipeline.from_pretrained(tmp_path).scheduler).__name__.startswith("FastDPM")
