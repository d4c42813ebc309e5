"""What report 004 published: its settings, figures and weights, and how its schedule is written here."""

from __future__ import annotations

import os
import re
import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from diffusion_fast import _checks
from diffusion_fast.datasets.readers import UNREADABLE
from diffusion_fast.models import CNNDenoiser
from diffusion_fast.schedules import NoiseSchedule

WEIGHTS_FILE = "published_set1_weights.npz"


@dataclass(frozen=True)
class Settings:
    """A set of hyper-parameters and what the report got with it.

    first_loss, last_loss: of the first epoch and the mean of the last ten. shown_loss, stopped: the mean
    since the start that the report shows at the end, and the epoch at which that mean stopped the training.
    """

    name: str
    n_hidden: tuple[int, ...]
    lr: float
    n_steps: int
    beta_start: float
    beta_end: float
    first_loss: float
    last_loss: float
    shown_loss: float
    stopped: int


SET_1 = Settings("set 1", (32, 64, 64, 32), 2e-4, 1000, 1e-4, 0.02, 0.0816, 0.0163, 0.019, 88)
SET_2 = Settings("set 2", (32, 64, 128, 64, 32), 5e-4, 2000, 1e-5, 0.01, 0.0768, 0.0163, 0.0187, 84)


def report_schedule(settings: Settings) -> NoiseSchedule:
    """The T = n_steps noise levels that the report's training and sampling visit."""
    line = NoiseSchedule.linear(settings.n_steps + 1, settings.beta_start, settings.beta_end)
    return folded(line.betas)


def folded(betas: torch.Tensor) -> NoiseSchedule:
    """The report's T + 1 betas as T.

    Its products alpha_t start at index 0, and its chain runs from t = T to 1, with the time t / T: index 0
    is never visited. So level t there is index t - 1 here, with the same abar and time, (index + 1) / T. The
    first beta here takes the first two together: the last step ends at the data, not at an abar of
    1 - beta_0 as there (0.9999).
    """
    first = 1 - (1 - betas[0]) * (1 - betas[1])
    return NoiseSchedule(torch.cat([first[None], betas[2:]]), name="linear")


def load_published(path: str | os.PathLike[str]) -> tuple[CNNDenoiser, NoiseSchedule]:
    """The published network of set 1, in eval mode, and its schedule, from an .npz file of its arrays.

    path: the file has beta_t (T + 1,) and the network's weights as gt.blocks.0.net.0.weight and so on.
    Raises FileNotFoundError, and ValueError for a file that is something else.
    """
    accepted = f"an .npz file with the weights of a published network of digits, such as {WEIGHTS_FILE}"
    if not isinstance(path, str | os.PathLike):
        raise _checks.bad_type("path", path, "the path of " + accepted)
    file = Path(path)
    if not file.is_file():
        raise FileNotFoundError(f"path: got {str(file)!r}, which is no file; accepted: {accepted}")
    try:
        if not zipfile.is_zipfile(file):
            raise ValueError("no archive")
        with np.load(file, allow_pickle=False) as archive:
            arrays = {name: torch.from_numpy(archive[name]) for name in archive.files}
        schedule = folded(arrays.pop("beta_t").double())
        weights = {_our_name(name): array for name, array in arrays.items() if name.startswith("gt.")}
        del weights["frequencies"]  # which follow from their number
        convolutions = [
            value for name, value in weights.items() if re.fullmatch(r"blocks\.\d\.conv.bias", name)
        ]
        model = CNNDenoiser([len(bias) for bias in convolutions], len(schedule.betas))
        model.load_state_dict(weights)
    except (*UNREADABLE, AttributeError, KeyError, TypeError) as error:
        why = " ".join(str(error).split())[:200]
        raise ValueError(
            f"path: got {str(file)!r}, which is not one ({why}); accepted: {accepted}"
        ) from error
    for name, value in weights.items():
        _checks.finite(f"path: array {name}", value)
    return model.eval(), schedule


def _our_name(published: str) -> str:
    name = published.removeprefix("gt.").replace(".net.0.", ".conv.").replace(".net.1.", ".norm.")
    return re.sub(r"^blocks\.\d\.(weight|bias)$", r"last.\1", name)
