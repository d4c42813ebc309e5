"""MLPDenoiser: the published model's numbers, each embedding against its formula, export, and the checks."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

import diffusion_fast as df
from diffusion_fast.models import ConditionalMLPDenoiser, MLPDenoiser
from diffusion_fast.models.mlp import ACTIVATIONS

DATA = Path(__file__).parent / "data"


def published_model() -> MLPDenoiser:
    model = MLPDenoiser(3, (256, 512, 256), "tanh", "learned", 150)
    with np.load(DATA / "published_helix_weights.npz") as weights:
        model.load_state_dict({name: torch.from_numpy(weights[name]) for name in weights})
    return model.eval()


def test_published_weights_load_by_name_and_give_the_published_formula():
    model = published_model()
    with np.load(DATA / "published_helix_weights.npz") as file:
        w = {name: file[name].astype(np.float64) for name in file}
    rng = np.random.default_rng(0)
    x, t = rng.standard_normal((5, 3)), np.array([0, 1, 74, 148, 149])

    # The published sampler, in float64: at array index t the network is given (t + 1) / 150 - 1/2.
    time = ((t + 1) / 150 - 0.5)[:, None]
    e = np.tanh(time @ w["time_embed.0.weight"].T + w["time_embed.0.bias"])
    e = np.tanh(e @ w["time_embed.2.weight"].T + w["time_embed.2.bias"])
    h = np.concatenate([x, e], axis=1)
    for layer in (0, 2, 4):
        h = np.tanh(h @ w[f"model.{layer}.weight"].T + w[f"model.{layer}.bias"])
    expected = h @ w["model.6.weight"].T + w["model.6.bias"]

    with torch.no_grad():
        got = model(torch.from_numpy(x).float(), torch.from_numpy(t)).numpy()
    np.testing.assert_allclose(got, expected, atol=1e-5, rtol=0)


def test_sinusoidal_embedding_is_its_formula():
    model = MLPDenoiser(2, (16, 16), "relu", "sinusoidal", 100, time_dim=4)
    t = np.array([0, 7, 99])
    angles = (t + 1)[:, None] * 100.0 ** (-np.arange(8) / 8)
    features = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    proj = model.time_embed.proj
    expected = features @ proj.weight.detach().numpy().T + proj.bias.detach().numpy()
    got = model.time_embed(torch.from_numpy(t)).detach().numpy()
    assert got.shape == (3, 4)
    np.testing.assert_allclose(got, expected, atol=2e-5)
    assert "time_embed.frequencies" not in model.state_dict()


def test_scalar_and_table_embeddings():
    scalar = MLPDenoiser(1, (16, 16), "relu", "scalar", 250)
    assert scalar.model[0].in_features == 2
    assert scalar.time_embed(torch.tensor([0, 249])).tolist() == [[1.0], [250.0]]
    table = MLPDenoiser(2, (8,), "silu", "table", 10, time_dim=5)
    assert torch.equal(table.time_embed(torch.tensor([3, 9])), table.time_embed.weight[[3, 9]])


REFERENCE_ACTIVATIONS = {
    "relu": F.relu,
    "leaky_relu": lambda z: torch.where(z > 0, z, 0.01 * z),
    "elu": lambda z: torch.where(z > 0, z, torch.expm1(z)),
    "tanh": torch.tanh,
    "sigmoid": lambda z: 1 / (1 + torch.exp(-z)),
    "silu": lambda z: z / (1 + torch.exp(-z)),
    "gelu": lambda z: z * 0.5 * (1 + torch.erf(z / math.sqrt(2))),
    "gelu_tanh": lambda z: 0.5 * z * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))),
    "softplus": lambda z: torch.log1p(torch.exp(z)),
    "mish": lambda z: z * torch.tanh(torch.log1p(torch.exp(z))),
    "identity": lambda z: z,
}


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_activation_is_the_function_of_that_name(name):
    model = MLPDenoiser(2, (7,), name, "table", 3, time_dim=2).double()
    x, t = torch.linspace(-3, 3, 10, dtype=torch.float64).view(5, 2), torch.tensor([0, 1, 2, 0, 1])
    hidden = model.model[0](torch.cat([x, model.time_embed(t)], dim=1))
    torch.testing.assert_close(
        model(x, t), model.model[2](REFERENCE_ACTIVATIONS[name](hidden)), atol=1e-12, rtol=0
    )


def test_no_label_is_the_null_class():
    model = MLPDenoiser(2, (8,), "relu", "learned", 10, time_dim=3, n_classes=4)
    x, t = torch.randn(6, 2), torch.arange(6)
    null = model(x, t, torch.full((6,), 4))
    assert torch.equal(model(x, t), null)
    assert not torch.equal(model(x, t, torch.zeros(6, dtype=torch.int64)), null)
    assert model.class_embed.weight.shape == (5, 3)
    assert model.model[0].in_features == 2 + 3 + 3


@pytest.mark.parametrize(
    ("kind", "class_dim", "columns"), [("one_hot", None, 5), ("one_hot", 7, 7), ("table", None, 6)]
)
def test_conditional_model(kind, class_dim, columns, tmp_path):
    options = {"class_embedding": kind, "class_dim": class_dim, "time_dim": 6, "n_steps": 10}
    model = ConditionalMLPDenoiser(2, 4, (8,), **options).eval()
    assert model.n_classes == 4 and model.model[0].in_features == 2 + 6 + columns
    x, t, y = torch.randn(40, 2), torch.arange(40) % 10, torch.arange(40) % 5
    rows = nn.functional.one_hot(y, 5).float()
    table = model.class_embed.weight if kind == "table" else model.class_embed.weight.T
    embedded = rows @ table + (0 if kind == "table" else model.class_embed.bias)
    want = model.model(torch.cat([x, model.time_embed(t), embedded], dim=1))
    torch.testing.assert_close(model(x, t, y), want)
    assert torch.equal(model(x, t), model(x, t, torch.full((40,), 4)))
    schedule = df.NoiseSchedule.cosine(10)
    df.save(tmp_path / "m.safetensors", model, schedule)
    again = df.load(tmp_path / "m.safetensors").model
    assert type(again) is ConditionalMLPDenoiser and torch.equal(again(x, t, y), model(x, t, y))
    native, plain = (
        df.Sampler(model, schedule, guidance_scale=2.0, backend=b).sample(50, labels=1)
        for b in ("native", "torch")
    )
    torch.testing.assert_close(native, plain, rtol=1e-4, atol=1e-5)


def test_conditional_model_learns_both_with_and_without_labels():
    """Two classes at -2 and 2: label 0 and 1 give their means, the null class both."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(2000) % 2
    data = (labels * 4 - 2)[:, None] + 0.1 * torch.randn(2000, 1, generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = ConditionalMLPDenoiser(1, 2, (32, 32), n_steps=20)
    schedule = df.NoiseSchedule.cosine(20)
    how = {"epochs": 25, "batch_size": 200, "lr": 5e-3, "label_dropout": 0.2, "progress": False}
    df.train(model, schedule, data, labels=labels, **how)
    sampler = df.Sampler(model, schedule)
    for label, low, high in ((0, 0, 0.05), (1, 0.95, 1), (2, 0.3, 0.7)):
        share = (sampler.sample(2000, labels=label) > 0).float().mean()
        assert low <= share <= high, f"{label}: {share}"


@pytest.mark.parametrize(
    ("options", "pattern"),
    [
        ({"n_classes": 0}, "n_classes: got 0 .*from 1"),
        ({"class_embedding": "onehot"}, "class_embedding: got 'onehot'.*did you mean 'one_hot'"),
        ({"class_dim": 0}, "class_dim: got 0"),
        ({"n_classes": 1 << 17}, "class_dim: got None .*one-hot"),
    ],
)
def test_conditional_model_refuses(options, pattern):
    with pytest.raises(ValueError, match=pattern):
        ConditionalMLPDenoiser(**{"dim": 2, "n_classes": 3} | options)


@pytest.mark.parametrize("embedding", ["learned", "sinusoidal", "table", "scalar"])
@pytest.mark.parametrize("n_classes", [None, 3])
def test_config_rebuilds_the_model(embedding, n_classes):
    model = MLPDenoiser(2, [9, 8], "elu", embedding, 12, time_dim=6, n_classes=n_classes)
    again = MLPDenoiser(**json.loads(json.dumps(model.config)))
    again.load_state_dict(model.state_dict())
    x, t = torch.randn(5, 2), torch.tensor([0, 3, 5, 11, 11])
    assert torch.equal(again(x, t), model(x, t))
    assert again.config == model.config
    assert (again.dim, again.shape, again.n_steps, again.n_classes) == (2, (2,), 12, n_classes)


@pytest.mark.parametrize("embedding", ["learned", "sinusoidal", "table", "scalar"])
@pytest.mark.parametrize("n_classes", [None, 3])
def test_export_holds_for_any_batch(embedding, n_classes):
    model = MLPDenoiser(2, (8, 8), "gelu_tanh", embedding, 12, n_classes=n_classes).eval()
    batch = torch.export.Dim.DYNAMIC
    inputs = (torch.zeros(2, 2), torch.zeros(2, dtype=torch.int64))
    shapes = ({0: batch}, {0: batch})
    if n_classes:
        inputs, shapes = (*inputs, inputs[1].clone()), (*shapes, {0: batch})
    program = torch.export.export(model, inputs, dynamic_shapes=shapes, strict=False).module()
    for n in (1, 3, 257):
        arguments = [torch.randn(n, 2), torch.randint(0, 12, (n,))]
        if n_classes:
            arguments.append(torch.randint(0, 4, (n,)))
        torch.testing.assert_close(program(*arguments), model(*arguments), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize(
    ("arguments", "error", "parts"),
    [
        ({"dim": 0}, ValueError, ("dim", "0", "from 1")),
        ({"dim": 2.5}, TypeError, ("dim", "2.5", "integer")),
        ({"dim": True}, TypeError, ("dim", "True", "integer")),
        ({"hidden": ()}, ValueError, ("hidden", "()", "1 to 64")),
        ({"hidden": 128}, TypeError, ("hidden", "128", "sequence")),
        ({"hidden": "128"}, TypeError, ("hidden", "'128'", "sequence")),
        ({"hidden": (8, -1)}, ValueError, ("hidden[1]", "-1", "from 1")),
        ({"hidden": (1 << 20,)}, ValueError, ("hidden[0]", "1048576", "to 65536")),
        ({"activation": "tahn"}, ValueError, ("activation", "'tahn'", "'tanh'")),
        ({"activation": "swish"}, ValueError, ("activation", "'swish'", "did you mean 'silu'")),
        ({"activation": nn.ReLU}, TypeError, ("activation", "ReLU", "relu, ")),
        ({"time_embedding": "sinusoid"}, ValueError, ("time_embedding", "'sinusoid'", "'sinusoidal'")),
        ({"n_steps": 0}, ValueError, ("n_steps", "0", "from 1")),
        ({"time_dim": 0}, ValueError, ("time_dim", "0", "from 1")),
        ({"n_classes": 0}, ValueError, ("n_classes", "0", "from 1")),
    ],
)
def test_bad_arguments_are_named(arguments, error, parts):
    with pytest.raises(error) as caught:
        MLPDenoiser(**{"dim": 2, "hidden": (8,), **arguments})
    assert all(part in str(caught.value) for part in parts)


def test_bad_inputs_are_named():
    model = MLPDenoiser(2, (8,), n_steps=5)
    t = torch.zeros(3, dtype=torch.int64)
    with pytest.raises(ValueError, match=r"^x: got .*\(3, 4\).*\(batch, 2\)"):
        model(torch.zeros(3, 4), t)
    with pytest.raises(ValueError, match=r"^t: got .*float32.*int64"):
        model(torch.zeros(3, 2), t.float())
    with pytest.raises(ValueError, match=r"^t: got .*\(3, 1\)"):
        model(torch.zeros(3, 2), t[:, None])
    with pytest.raises(ValueError, match=r"^y: got .*without n_classes"):
        model(torch.zeros(3, 2), t, t)
