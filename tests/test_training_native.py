"""train: the steps in C++ against the steps in torch, on the same draws."""

from __future__ import annotations

import _thread
import threading
import time

import numpy as np
import pytest
import torch
from test_training import points, quick, small_model, weights
from torch import nn

from diffusion_fast.models import ConditionalMLPDenoiser, MLPDenoiser
from diffusion_fast.models.embeddings import CLASS_EMBEDDINGS, TIME_EMBEDDINGS
from diffusion_fast.models.mlp import ACTIVATIONS

LABELS = np.arange(400) % 3
# Of the weights' RMS and of the losses. Rounding alone parts the two loops by 1e-6 to 3e-5 in 210 steps.
CLOSE = 2e-4


def both(make, **options):
    """A run of 210 steps with either backend -> (model, history) of torch's and of ours."""
    runs = []
    for backend in ("torch", "native"):
        model = make()
        history = quick(model, points(), **{"epochs": 30, "lr": 3e-3, "backend": backend, **options})
        runs.append((model, history))
    return runs


def assert_alike(runs) -> None:
    (twin, expected), (model, history) = runs
    assert not model.training
    assert float((weights(model) - weights(twin)).norm() / weights(twin).norm()) < CLOSE
    np.testing.assert_allclose(history.train_loss, expected.train_loss, rtol=CLOSE)
    np.testing.assert_allclose(history.validation_loss, expected.validation_loss, rtol=CLOSE)
    assert history.stopped_early == expected.stopped_early


@pytest.fixture
def float64_by_default():
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("time_embedding", TIME_EMBEDDINGS)
def test_torch_s_default_dtype_has_no_part_in_it(time_embedding, request):
    """Same bits as with float32 by default; a strided view of a weight is where the C++ core writes to a
    tensor of its own."""

    def make() -> MLPDenoiser:
        torch.manual_seed(1)
        options = {"time_embedding": time_embedding, "n_steps": 20}
        return ConditionalMLPDenoiser(2, 3, (24, 17), "silu", **options).float()

    options = {"labels": LABELS, "label_dropout": 0.2, "ema": 0.9, "validation": 0.2, "epochs": 5}
    before = both(make, **options)
    start = make().state_dict()
    request.getfixturevalue("float64_by_default")

    def again() -> MLPDenoiser:
        model = make()
        model.load_state_dict(start)
        return model

    for (old, expected), (new, history) in zip(before, both(again, **options), strict=True):
        assert torch.equal(weights(new), weights(old))
        assert history.train_loss == expected.train_loss
        assert history.validation_loss == expected.validation_loss


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_each_activation(activation):
    assert_alike(both(lambda: small_model(activation=activation, hidden=(24, 17))))


@pytest.mark.parametrize("time_embedding", TIME_EMBEDDINGS)
def test_each_time_embedding_without_labels(time_embedding):
    make = lambda: small_model(time_embedding=time_embedding)  # noqa: E731
    assert_alike(both(make, prediction_type="v_prediction"))


@pytest.mark.parametrize("class_embedding", CLASS_EMBEDDINGS)
@pytest.mark.parametrize("time_embedding", TIME_EMBEDDINGS)
def test_each_class_embedding_with_labels(time_embedding, class_embedding):
    def make() -> ConditionalMLPDenoiser:
        torch.manual_seed(1)
        options = {"time_embedding": time_embedding, "class_embedding": class_embedding}
        return ConditionalMLPDenoiser(2, 3, (32, 16), "silu", n_steps=20, **options)

    assert_alike(both(make, labels=LABELS, label_dropout=0.2))


@pytest.mark.parametrize(
    "options",
    [
        {"lr_decay": "cosine", "ema": 0.9},
        {"optimizer": "adamw", "weight_decay": 0.1, "ema": 0.95},
        {"weight_decay": 0.01},
        {"validation": 0.25, "ema": 0.9},
        {"validation": points(50), "patience": 2, "lr": 0.05},
    ],
)
@pytest.mark.parametrize("time_embedding", ["learned", "table"])
def test_each_option(options, time_embedding):
    assert_alike(both(lambda: small_model(time_embedding=time_embedding), **options))


def test_blocks_of_noise_make_no_difference(monkeypatch):
    """Several calls of the core in an epoch; the moments go on from one to the next."""
    monkeypatch.setattr("diffusion_fast.training.BLOCK_ELEMENTS", 256)
    assert_alike(both(lambda: small_model(time_embedding="table"), ema=0.9))


def test_auto_takes_the_native_steps_and_no_thread_changes_a_bit():
    results = []
    for options in ({"backend": "native"}, {}, {"threads": 1}, {"threads": 2}, {"threads": 3}):
        model = small_model(hidden=(200, 200), time_embedding="table")
        quick(model, points(), **options)
        results.append(weights(model))
    assert all(torch.equal(results[0], other) for other in results[1:])


def with_dropout() -> MLPDenoiser:
    model = small_model()
    model.model[1] = nn.Dropout(0.1)
    return model


def with_a_hook() -> MLPDenoiser:
    model = small_model()
    model.model[0].register_forward_hook(lambda *_: None)
    return model


def half_frozen() -> MLPDenoiser:
    model = small_model()
    model.model[0].requires_grad_(False)
    return model


def with_a_stranger() -> MLPDenoiser:
    model = small_model()
    model.more = nn.Linear(2, 2)
    return model


class Foreign(MLPDenoiser):
    """A subclass may compute anything."""


@pytest.mark.parametrize(
    "make", [with_dropout, with_a_hook, half_frozen, with_a_stranger, lambda: Foreign(2, n_steps=20)]
)
def test_what_the_core_cannot_train_is_left_to_torch(make):
    torch.manual_seed(1)
    model = make()
    before = weights(model)
    with pytest.raises(ValueError, match="accepted"):
        quick(model, points(), backend="native")
    assert torch.equal(weights(model), before)
    results = []
    for backend in ("auto", "torch"):
        torch.manual_seed(1)
        model = make()
        quick(model, points(), backend=backend)
        results.append(weights(model))
    assert torch.equal(*results)


@pytest.mark.alone
def test_ctrl_c_is_answered_in_the_middle_of_an_epoch():
    model = small_model(hidden=(64, 64))
    before = weights(model)
    timer = threading.Timer(0.5, _thread.interrupt_main)
    timer.start()
    began = time.perf_counter()
    with pytest.raises(KeyboardInterrupt):
        quick(model, points(200_000), epochs=1000, backend="native")
    assert time.perf_counter() - began < 3
    assert not model.training
    assert not torch.equal(weights(model), before)
    assert torch.isfinite(weights(model)).all()
