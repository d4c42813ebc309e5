"""train: the objective against closed forms, seeds, validation, averages, bad input."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from diffusion_fast.datasets import helix_3d
from diffusion_fast.models import MLPDenoiser
from diffusion_fast.schedules import NoiseSchedule
from diffusion_fast.training import TrainingHistory, train


@pytest.fixture(autouse=True)
def one_thread():
    """These networks are too small for two, and the seed decides the weights at one number of threads."""
    torch.set_num_threads(1)


SCHEDULE = NoiseSchedule.linear(20, 1e-3, 0.3)


def small_model(**options) -> MLPDenoiser:
    torch.manual_seed(1)
    return MLPDenoiser(**{"dim": 2, "hidden": (32,), "activation": "silu", "n_steps": 20, **options})


def points(n: int = 400) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((n, 2))


def quick(model, data, **options) -> TrainingHistory:
    return train(model, SCHEDULE, data, **{"epochs": 3, "batch_size": 64, "progress": False, **options})


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


class Recorder(nn.Module):
    """Answers zeros (times a weight, so that it can be trained) and keeps what it was given, but in the first
    call, which looks at what it returns."""

    def __init__(self, n_classes: int | None = None) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))
        self.n_classes = n_classes
        self.x, self.t, self.y, self.training_mode = [], [], [], []
        self.looked_at = False

    def forward(self, x, t, y=None):
        if not self.looked_at:
            self.looked_at = True
            return self.scale * x
        self.x.append(x.clone())
        self.t.append(t.clone())
        self.y.append(None if y is None else y.clone())
        self.training_mode.append(self.training)
        return self.scale * x


class PerStep(nn.Module):
    """model(x, t) = slope[t] x: the linear denoiser, whose optimum for N(0, 1) data is known."""

    def __init__(self, n_steps: int) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.zeros(n_steps))

    def forward(self, x, t):
        return self.slope[t].unsqueeze(-1) * x


# ---- the objective ----


@pytest.mark.parametrize("prediction_type", ["epsilon", "sample", "v_prediction"])
def test_learns_the_closed_form_of_normal_data(prediction_type):
    """For x0 ~ N(0, v): E[x0 | x_t] = sqrt(abar) v x_t / (abar v + 1 - abar), and eps, v follow from it.

    Bound 0.06 on each of 5 slopes: about 10,000 rows per step seen in the last tenth of the run give a
    standard error of 0.01; the seed is fixed.
    """
    schedule = NoiseSchedule([0.1, 0.2, 0.3, 0.4, 0.5])
    variance = 0.25
    data = 0.5 * torch.randn(20_000, 1, generator=torch.Generator().manual_seed(0))
    model = PerStep(5)
    history = train(
        model,
        schedule,
        data,
        epochs=12,
        batch_size=500,
        lr=0.05,
        lr_decay="cosine",
        prediction_type=prediction_type,
        progress=False,
    )
    abar = schedule.alphas_cumprod
    total = abar * variance + 1 - abar
    x0_slope, eps_slope = abar.sqrt() * variance / total, (1 - abar).sqrt() / total
    slopes = {
        "sample": x0_slope,
        "epsilon": eps_slope,
        "v_prediction": abar.sqrt() * eps_slope - (1 - abar).sqrt() * x0_slope,
    }
    torch.testing.assert_close(model.slope.detach().double(), slopes[prediction_type], atol=0.06, rtol=0)
    left = {
        "sample": variance - x0_slope**2 * total,
        "epsilon": 1 - eps_slope**2 * total,
        "v_prediction": abar + (1 - abar) * variance - slopes["v_prediction"] ** 2 * total,
    }
    assert history.train_loss[-1] == pytest.approx(left[prediction_type].mean().item(), rel=0.05)


def test_every_timestep_is_drawn_and_the_noise_is_the_schedule_s():
    """Uniform t: chi-square with 19 degrees of freedom below 60 (odds 4e-6). Variance of x_t within 5 sd."""
    model = Recorder()
    data = torch.full((4000, 2), 3.0)
    quick(model, data, epochs=5)
    t, x = torch.cat(model.t), torch.cat(model.x)
    counts = torch.bincount(t, minlength=20).double()
    assert len(counts) == 20
    assert ((counts - 1000) ** 2 / 1000).sum() < 60
    abar = SCHEDULE.alphas_cumprod
    for step in (0, 10, 19):
        rows = x[t == step].double()
        sd = (1 - abar[step]).sqrt().item()
        bound = 5 * sd / math.sqrt(rows.numel())
        assert rows.mean().item() == pytest.approx(3 * abar[step].sqrt().item(), abs=bound)
        assert rows.std().item() == pytest.approx(sd, rel=5 / math.sqrt(2 * rows.numel()))


def test_an_epoch_passes_over_every_row_once(monkeypatch):
    """With next to no noise each row is recognized; the last partial batch is used, the order changes."""
    schedule = NoiseSchedule([1e-12])
    data = torch.arange(100.0).view(100, 1)
    model = Recorder()
    monkeypatch.setattr("diffusion_fast.training.BLOCK_ELEMENTS", 64)  # two batches at a time
    train(model, schedule, data, epochs=2, batch_size=32, progress=False)
    assert [len(x) for x in model.x] == [32, 32, 32, 4] * 2
    first, second = torch.cat(model.x[:4]).round().flatten(), torch.cat(model.x[4:]).round().flatten()
    assert first.sort().values.tolist() == second.sort().values.tolist() == list(range(100))
    assert not torch.equal(first, second)
    assert all(model.training_mode)
    assert not model.training


def test_labels_stay_with_their_rows_and_drop_at_the_given_rate():
    """Drop rate 0.3 over 10,000 rows: 5 standard deviations are 0.023."""
    schedule = NoiseSchedule([1e-12])
    labels = np.arange(1000) % 4
    data = torch.from_numpy(labels[:, None].astype(np.float32))
    model = Recorder(n_classes=4)
    options = {"epochs": 10, "batch_size": 128, "labels": labels, "progress": False}
    train(model, schedule, data, label_dropout=0.3, **options)
    y, row = torch.cat(model.y), torch.cat(model.x).round().flatten().long()
    assert torch.equal(y[y != 4], row[y != 4])
    assert (y == 4).double().mean().item() == pytest.approx(0.3, abs=0.023)
    model = Recorder(n_classes=4)
    train(model, schedule, data, validation=0.2, **options)
    assert torch.equal(torch.cat(model.y), torch.cat(model.x).round().flatten().long())


# ---- seeds and options ----


def test_the_seed_decides_and_the_global_generator_is_untouched():
    def run(seed: int) -> torch.Tensor:
        model = small_model()
        quick(model, points(), seed=seed, validation=0.25, ema=0.9)
        return weights(model)

    torch.manual_seed(7)
    before = torch.get_rng_state()
    model = small_model()
    state = torch.get_rng_state()
    quick(model, points())
    assert torch.equal(torch.get_rng_state(), state)
    torch.set_rng_state(before)
    first = run(3)
    torch.rand(5)
    assert torch.equal(run(3), first)
    assert not torch.equal(run(4), first)


def test_dropout_in_a_foreign_module_is_seeded():
    class Dropping(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.net = nn.Sequential(nn.Linear(3, 16), nn.Dropout(0.5), nn.Linear(16, 2))

        def forward(self, x, t):
            return self.net(torch.cat([x, t.float().unsqueeze(1)], dim=1))

    results = []
    for noise in (1, 2):
        model = Dropping()
        torch.manual_seed(noise)
        quick(model, points(), seed=5)
        results.append(weights(model))
    assert torch.equal(*results)


def test_arrays_tensors_and_data_sets_are_the_same_data():
    data = helix_3d(200, 50)
    results = []
    array = data.standardised_train
    for given in (data, array, torch.from_numpy(array), torch.from_numpy(array).float()):
        model = small_model(dim=3)
        quick(model, given)
        results.append(weights(model))
    assert all(torch.equal(results[0], other) for other in results[1:])


class Sliding(nn.Module):
    """Its gradient is 2e4 whatever the data, so that each Adam step moves the weight by the learning rate."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x, t):
        return 1e4 + self.weight + 0 * x


@pytest.mark.parametrize("lr_decay", ["none", "cosine"])
@pytest.mark.parametrize(("optimizer", "weight_decay"), [("adam", 0.0), ("adamw", 0.0), ("adamw", 0.5)])
@pytest.mark.parametrize("ema", [None, 0.6])
def test_each_step_moves_as_the_options_say(lr_decay, optimizer, weight_decay, ema):
    model = Sliding()
    options = {"optimizer": optimizer, "weight_decay": weight_decay, "ema": ema, "lr_decay": lr_decay}
    quick(model, points(640), epochs=2, lr=0.01, **options)
    weight = average = 1.0
    for k in range(20):
        rate = 0.01 * (1 if lr_decay == "none" else 0.5 * (1 + math.cos(math.pi * k / 20)))
        weight = weight * (1 - rate * weight_decay) - rate
        decay = 0.0 if ema is None else min(ema, (2 + k) / (11 + k))
        average = decay * average + (1 - decay) * weight
    assert model.weight.item() == pytest.approx(average, abs=2e-5)


def test_adam_adds_weight_decay_to_the_gradient():
    plain, decayed = small_model(), small_model()
    quick(plain, points(), lr=1e-2, epochs=20)
    quick(decayed, points(), lr=1e-2, epochs=20, weight_decay=0.1)
    assert weights(decayed).norm() < 0.8 * weights(plain).norm()


# ---- validation ----


def test_the_weights_of_the_best_epoch_are_kept():
    """A learning rate this high makes the loss jump about; keeping the last weights would be seen."""
    model = small_model()
    held_out = points(100) + 0.1
    history = quick(model, points(), epochs=30, lr=0.3, validation=held_out)
    best = history.validation_loss[history.best_epoch]
    assert history.best_epoch == int(np.argmin(history.validation_loss)) != 29
    assert len(history.train_loss) == len(history.validation_loss) == 30
    # The same seed draws the same fixed noise for validation: one more epoch that changes next to nothing.
    again = quick(model, points(), epochs=1, lr=1e-30, validation=held_out)
    assert again.validation_loss[0] == pytest.approx(best, rel=1e-5)


def test_validation_sees_the_averaged_weights():
    """Training the model that the average left, with a rate of next to 0, must find the same loss."""
    model = small_model()
    held_out = points(100)
    history = quick(model, points(), epochs=6, lr=0.05, validation=held_out, ema=0.97)
    again = quick(model, points(), epochs=1, lr=1e-30, validation=held_out)
    assert again.validation_loss[0] == pytest.approx(min(history.validation_loss), rel=1e-5)
    plain = quick(small_model(), points(), epochs=6, lr=0.05, validation=held_out)
    assert plain.train_loss == history.train_loss  # averaging only watches
    assert plain.validation_loss != history.validation_loss


def test_early_stopping_waits_for_patience():
    model = Sliding()  # gets worse by every step while its weight is above -1e4, as target 0 + noise: better
    history = quick(model, points(), epochs=50, lr=1e-30, validation=0.1, patience=4)
    # Nothing changes at this rate, so no epoch is better than the first.
    assert history.best_epoch == 0
    assert history.stopped_early
    assert len(history.train_loss) == 5
    patient = quick(Sliding(), points(), epochs=5, lr=1e-30, validation=0.1, patience=5)
    assert not patient.stopped_early
    assert len(patient.train_loss) == 5


def test_a_fraction_is_held_out_at_random_and_never_trained_on(monkeypatch):
    schedule = NoiseSchedule([1e-12])
    model = Recorder()
    train(
        model,
        schedule,
        torch.arange(50.0).view(50, 1),
        epochs=2,
        batch_size=50,
        validation=0.2,
        progress=False,
    )
    seen = [x.round().flatten().sort().values.tolist() for x in model.x]
    trained, held_out = seen[0], seen[1]
    assert model.training_mode == [True, False, True, False]
    assert len(held_out) == 10
    assert sorted(trained + held_out) == list(range(50))
    assert held_out not in (list(range(10)), list(range(40, 50)))
    assert torch.equal(model.x[1], model.x[3])  # the same noise for every epoch
    assert not torch.equal(model.x[0], model.x[2])


def test_ctrl_c_leaves_eval_mode():
    class Interrupted(Recorder):
        def forward(self, x, t, y=None):
            if len(self.x) == 2:
                raise KeyboardInterrupt
            return super().forward(x, t, y)

    model = Interrupted()
    with pytest.raises(KeyboardInterrupt):
        quick(model, points())
    assert not model.training


def test_divergence_is_an_error_that_says_what_helps():
    with pytest.raises(FloatingPointError, match=r"in epoch \d+: a lower lr may help"):
        quick(small_model(activation="relu", hidden=(64, 64, 64)), points(), lr=1e10, epochs=20)
