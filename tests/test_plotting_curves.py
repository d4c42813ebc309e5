"""Loss curves, schedules and fields: the numbers behind the lines, colors and arrows."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch

import diffusion_fast as df
from diffusion_fast import plotting
from diffusion_fast.training import TrainingHistory


def png_size(figure):
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=100)
    return buffer.tell()


def test_loss_curve_marks_the_kept_epoch_and_counts_what_is_not_finite():
    history = TrainingHistory([0.9, 0.5, float("nan")], [1.0, 0.6, 0.7], 1.0, 1)
    axes = plotting.loss_curve(history).axes[0]
    assert axes.get_yscale() == "log"
    assert axes.lines[2].get_xdata() == [1, 1]
    written = [text.get_text() for text in axes.get_legend().get_texts()]
    assert "training (1 not finite)" in written and "weights kept (epoch 1)" in written
    assert plotting.loss_curve(TrainingHistory([0.1, -0.2])).axes[0].get_yscale() == "linear"
    (line,) = plotting.loss_curve(TrainingHistory([0.1])).axes[0].lines
    assert line.get_marker() == "o"  # a line of one point is not seen


def test_schedule_curves_draw_what_the_schedules_hold():
    schedules = {name: df.NoiseSchedule.from_name(name, 50) for name in df.schedules.SCHEDULE_NAMES}
    figure = plotting.schedule_curves(schedules, title="all")
    assert len(figure.axes) == 3
    for k, schedule in enumerate(schedules.values()):
        expected = (schedule.betas, schedule.alphas_cumprod, schedule.log_snr)
        for axes, values in zip(figure.axes, expected, strict=True):
            assert np.array_equal(axes.lines[k].get_ydata(), values.numpy())
            assert axes.lines[k].get_xdata().tolist() == list(range(50))
    looks = {(line.get_color(), line.get_linestyle()) for line in figure.axes[0].lines}
    assert len(looks) == len(schedules)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(schedules)
    assert png_size(figure) < 200_000


def test_schedules_of_different_length_share_an_axis_and_infinite_snr_is_left_out():
    zero = df.NoiseSchedule.linear(20).zero_terminal_snr()
    figure = plotting.schedule_curves({"a": df.NoiseSchedule.linear(10), "b": zero})
    assert [line.get_xdata()[-1] for line in figure.axes[0].lines] == [1, 1]
    assert "fraction" in figure.axes[0].get_xlabel()
    log_snr = figure.axes[2].lines[1].get_ydata()
    assert np.isnan(log_snr[-1]) and np.isfinite(log_snr[:-1]).all()


# ---- fields


def test_a_score_field_has_unit_arrows_over_its_magnitude():
    given = []

    def score(x):
        given.append((x.dtype, x.shape))
        return -x * torch.tensor([1.0, 4.0])

    figure = plotting.field(score, ((-2, 2), (-1, 1)), resolution=50, columns=["u", "v"], title="score")
    assert given == [(torch.float32, (2500, 2))]
    axes, bar = figure.axes
    mesh, arrows = axes.collections
    x, y = np.meshgrid(np.linspace(-2, 2, 50), np.linspace(-1, 1, 50))
    np.testing.assert_allclose(mesh.get_array(), np.hypot(x, 4 * y), rtol=1e-5)
    at = arrows.get_offsets()
    expected = -at * [1, 4] / np.linalg.norm(at * [1, 4], axis=1)[:, None]
    np.testing.assert_allclose(np.stack([arrows.U, arrows.V], 1), expected, atol=1e-5)
    assert axes.get_xlim() == (-2, 2) and axes.get_ylim() == (-1, 1)
    assert [axes.get_xlabel(), axes.get_ylabel(), bar.get_ylabel()] == ["u", "v", "magnitude"]
    assert png_size(figure) < 200_000


@pytest.mark.parametrize("shape", [(-1,), (-1, 1)])
def test_an_energy_field_has_levels_around_its_low_part(shape):
    figure = plotting.field(lambda x: x.square().sum(1).exp().reshape(shape), ((-3, 3), (-3, 3)), label="E")
    axes, bar = figure.axes
    filled, lines = axes.collections
    assert filled.levels[0] <= 1 < filled.levels[-1] < np.exp(18) / 5
    assert filled.extend == "max" and len(filled.levels) > 8
    assert np.array_equal(lines.levels, filled.levels[1:])
    assert bar.get_ylabel() == "E"


def test_places_where_a_field_is_not_finite_stay_blank():
    def holed(x):
        return torch.where(x[:, :1] > 0, x, torch.nan)

    mesh, arrows = plotting.field(holed, ((-1, 1), (-1, 1)), resolution=40).axes[0].collections
    magnitude = np.ma.filled(mesh.get_array(), np.nan)
    assert np.isnan(magnitude[:, :20]).all() and np.isfinite(magnitude[:, 20:]).all()
    assert arrows.Umask.sum() == 24 * 12
    figure = plotting.field(lambda x: torch.zeros(len(x)), ((0, 1), (0, 1)))  # no range at all
    figure.savefig(io.BytesIO())
