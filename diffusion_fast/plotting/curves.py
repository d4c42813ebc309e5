"""Curves: losses by epoch, and what noise schedules do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure

from diffusion_fast import _checks
from diffusion_fast.plotting import style
from diffusion_fast.schedules import NoiseSchedule
from diffusion_fast.training import TrainingHistory

FEW_EPOCHS = 20  # so few are marked, and a single one is seen at all
MAX_SCHEDULES = len(style.COLORS) * len(style.LINES)


def loss_curve(history: TrainingHistory) -> Figure:
    """Training and validation loss by epoch, with the epoch whose weights were kept.

    history: what `train` returns. The loss axis is logarithmic unless a loss is not positive; epochs whose
    loss is NaN or infinite are left out and counted in the legend. Raises TypeError for anything else,
    ValueError for a history without an epoch.
    """
    if not isinstance(history, TrainingHistory):
        raise _checks.bad_type("history", history, "the TrainingHistory that train returns")
    if not history.train_loss:
        raise _checks.bad_value("history", history, "the history of a run of at least one epoch")
    figure = style.make_figure(6.5, 4)
    axes = figure.subplots()
    marker = "o" if len(history.train_loss) <= FEW_EPOCHS else None
    parts = [
        ("training", history.train_loss, style.BLUE),
        ("validation", history.validation_loss, style.VERMILION),
    ]
    for name, losses, color in parts:
        if losses:
            label = name + _not_finite(losses)
            axes.plot(losses, color=color, linewidth=1.2, marker=marker, markersize=4, label=label)
    if history.validation_loss:
        label = f"weights kept (epoch {history.best_epoch})"
        axes.axvline(history.best_epoch, color=style.GREY, linewidth=1.2, linestyle=":", label=label)
    finite = [loss for loss in history.train_loss + history.validation_loss if np.isfinite(loss)]
    axes.set(yscale="log" if finite and min(finite) > 0 else "linear")
    axes.locator_params(axis="x", integer=True, min_n_ticks=1)
    if len(history.train_loss) == 1:
        axes.set(xlim=(-0.5, 0.5))
    style.decorate(axes, "epoch", "mean squared error")
    style.open_frame(axes)
    axes.legend(frameon=False, fontsize=9)
    return figure


def schedule_curves(schedules: Mapping[str, NoiseSchedule], *, title: str | None = None) -> Figure:
    """Noise schedules side by side: beta, the share of the signal abar and log(abar / (1 - abar)) by step.

    schedules: name -> NoiseSchedule, up to 32. Where their numbers of steps differ, the steps are shown as
    fractions of T. A log SNR of minus infinity (abar = 0) is left out. Raises TypeError or ValueError naming
    the argument for anything else.
    """
    _check_schedules(schedules)
    same = len({len(schedule) for schedule in schedules.values()}) == 1
    figure = style.make_figure(11, 3.6 + 0.2 * -(-len(schedules) // 5), title)
    panels = figure.subplots(1, 3)
    for k, schedule in enumerate(schedules.values()):
        steps = np.arange(len(schedule)) if same else (np.arange(len(schedule)) + 1) / len(schedule)
        # A line under another shows between its dashes, if every one is dashed otherwise.
        dashes = style.LINES[(k + k // len(style.COLORS)) % len(style.LINES)]
        look = style.line_look(k) | {"linestyle": dashes, "marker": "o" if len(schedule) == 1 else None}
        curves = (schedule.betas, schedule.alphas_cumprod, schedule.log_snr)
        for axes, curve in zip(panels, curves, strict=True):
            values = curve.numpy()
            axes.plot(steps, np.where(np.isfinite(values), values, np.nan), **look)
    panels[0].set_yscale("log")
    panels[1].set_ylim(-0.02, 1.02)
    titles = ("noise added per step: beta", "signal left: abar", "log signal-to-noise ratio")
    for axes, name in zip(panels, titles, strict=True):
        style.decorate(axes, "step t" if same else "step, as a fraction of T", title=name)
        style.open_frame(axes)
    lines = panels[0].get_lines()
    names = [style.shorten(name) for name in schedules]
    style.legend(figure, lines, names, loc="outside lower center", ncols=min(5, len(lines)))
    return figure


def _check_schedules(schedules: Mapping[str, NoiseSchedule]) -> None:
    accepted = f"a dictionary of 1 to {MAX_SCHEDULES} names with a NoiseSchedule each"
    if not isinstance(schedules, Mapping):
        raise _checks.bad_type("schedules", schedules, accepted)
    if not 1 <= len(schedules) <= MAX_SCHEDULES:
        raise _checks.bad_value("schedules", schedules, accepted)
    for name, schedule in schedules.items():
        if not isinstance(name, str):
            raise _checks.bad_type("schedules", name, accepted)
        if not isinstance(schedule, NoiseSchedule):
            raise _checks.bad_type(f"schedules[{name!r}]", schedule, "a NoiseSchedule")


def _not_finite(losses: Sequence[float]) -> str:
    count = len(losses) - int(np.count_nonzero(np.isfinite(losses)))
    return f" ({count} not finite)" if count else ""
