"""train: bad input is named, and the model is left alone."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from test_training import points, quick, small_model, weights
from torch import nn

from diffusion_fast.schedules import NoiseSchedule
from diffusion_fast.training import train

GENERAL = [
    ({"epochs": 0}, ValueError, "epochs", "0", "from 1"),
    ({"epochs": 1.5}, TypeError, "epochs", "1.5", "integer"),
    ({"batch_size": 0}, ValueError, "batch_size", "0", "from 1"),
    ({"lr": 0.0}, ValueError, "lr", "0.0", "(0, inf)"),
    ({"lr": "fast"}, TypeError, "lr", "'fast'", "finite number"),
    ({"lr": math.nan}, ValueError, "lr", "nan", "finite number"),
    ({"lr_decay": "cosin"}, ValueError, "lr_decay", "'cosin'", "'cosine'"),
    ({"optimizer": "sgd"}, ValueError, "optimizer", "'sgd'", "adam, adamw"),
    ({"weight_decay": -1}, ValueError, "weight_decay", "-1", "[0, inf)"),
    ({"validation": 0.0}, ValueError, "validation", "0.0", "(0, 1]"),
    ({"validation": 1.0}, ValueError, "validation", "1.0", "leaves some"),
    ({"validation": np.zeros((5, 3))}, ValueError, "validation", "(5, 3)", "(2,)"),
    ({"patience": 0, "validation": 0.1}, ValueError, "patience", "0", "from 1"),
    ({"patience": 3}, ValueError, "patience", "3", "validation"),
    ({"ema": 1.0}, ValueError, "ema", "1.0", "(0, 1)"),
    ({"ema": 0}, ValueError, "ema", "0", "(0, 1]"),
    ({"seed": -1}, ValueError, "seed", "-1", "from 0"),
    ({"progress": 1}, TypeError, "progress", "1", "True or False"),
    ({"prediction_type": "eps"}, ValueError, "prediction_type", "'eps'", "'epsilon'"),
    ({"labels": np.zeros(400, int)}, ValueError, "labels", "(400,)", "no classes"),
    ({"label_dropout": 0.1}, ValueError, "label_dropout", "0.1", "labels"),
    ({"label_dropout": 1.0}, ValueError, "label_dropout", "1.0", "[0, 1)"),
]


@pytest.mark.parametrize(("options", "error", "name", "given", "accepted"), GENERAL)
def test_bad_options_are_named_and_the_model_is_left_alone(options, error, name, given, accepted):
    model = small_model()
    before = weights(model)
    with pytest.raises(error) as caught:
        quick(model, points(), **options)
    message = str(caught.value)
    assert message.startswith(f"{name}: got")
    assert given in message
    assert accepted in message
    assert torch.equal(weights(model), before)


@pytest.mark.parametrize(
    ("data", "error", "part"),
    [
        (points().tolist(), TypeError, "Dataset"),
        (np.array([["a", "b"]]), TypeError, "numbers"),
        (np.zeros((4, 2), complex), TypeError, "numbers"),
        (np.zeros((4, 3)), ValueError, "(2,)"),
        (np.zeros(4), ValueError, "(n, dim)"),
        (np.zeros((0, 2)), ValueError, "n >= 1"),
        (np.array([[0.0, np.nan]]), ValueError, "index (0, 1)"),
        (np.array([[0.0, 1e300]]), ValueError, "inf"),
        (torch.zeros(4, 2, requires_grad=True), ValueError, "detached"),
    ],
)
def test_bad_data_is_named(data, error, part):
    with pytest.raises(error) as caught:
        quick(small_model(), data)
    assert str(caught.value).startswith("data: got")
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("labels", "error"),
    [
        (np.full(400, 3), ValueError),
        (np.full(400, -1), ValueError),
        (np.zeros(399, int), ValueError),
        (np.zeros((400, 1), int), ValueError),
        (np.zeros(400), TypeError),
        ("abc", TypeError),
    ],
)
def test_bad_labels_are_named(labels, error):
    with pytest.raises(error, match=r"^labels: got .*\(400,\) integers from 0 to 2"):
        quick(small_model(n_classes=3), points(), labels=labels)


class Answers(nn.Module):
    """A module that answers anything, and has a weight and a part with a state."""

    def __init__(self, answer) -> None:
        super().__init__()
        self.linear, self.norm, self.answer = nn.Linear(2, 2), nn.BatchNorm1d(2), answer

    def forward(self, x, t):
        return self.answer(self.norm(self.linear(x + torch.rand(()))))


@pytest.mark.parametrize(
    ("answer", "error", "given"),
    [
        (lambda out: out[:, :1], ValueError, "shape (2, 1)"),
        (lambda out: out[0], ValueError, "shape (2,)"),
        (torch.sum, ValueError, "shape ()"),
        (lambda out: out.double(), ValueError, "float64"),
        (lambda out: (out, out), TypeError, "tuple"),
        (lambda out: None, TypeError, "None"),
    ],
)
def test_outputs_that_the_loss_would_broadcast_are_refused(answer, error, given):
    model = Answers(answer)
    model.norm.eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    with pytest.raises(error) as caught:
        quick(model, points())
    message = str(caught.value)
    assert message.startswith("model: got")
    assert given in message
    assert "accepted: one that returns one tensor of x's shape and dtype, (2, 2) torch.float32" in message
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert (model.training, model.linear.training, model.norm.training) == (True, True, False)
    assert torch.equal(torch.get_rng_state(), random_state)


def test_bad_models_and_schedules_are_named():
    long = NoiseSchedule.linear(21, 1e-3, 0.3)
    with pytest.raises(ValueError, match=r"^schedule: got one of 21 steps; .*model.n_steps = 20"):
        train(small_model(), long, points(), progress=False)
    with pytest.raises(TypeError, match=r"^schedule: got .*NoiseSchedule"):
        train(small_model(), [0.1, 0.2], points(), progress=False)
    with pytest.raises(ValueError, match=r"^prediction_type: got 'epsilon'.*v_prediction"):
        train(small_model(), NoiseSchedule([0.5, 1.0]), points(), progress=False)
    with pytest.raises(TypeError, match=r"^model: got .*torch.nn.Module"):
        quick(lambda x, t: x, points())
    with pytest.raises(ValueError, match=r"^model: got .*without trainable"):
        quick(nn.ReLU(), points())
    with pytest.raises(ValueError, match=r"^model: got .*float64"):
        quick(small_model().double(), points())
    broken = small_model()
    with torch.no_grad():
        broken.model[0].weight[3, 1] = math.nan
    with pytest.raises(ValueError, match=r"^model.model.0.weight: got nan at index \(3, 1\)"):
        quick(broken, points())
