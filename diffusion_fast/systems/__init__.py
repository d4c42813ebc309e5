"""The five systems of the published reports, each run by one command: `diffusion-fast reproduce A`.

A: points in three dimensions, schedules and lengths of the chain. B: Gaussian mixtures in one dimension.
C: energies, scores, a GAN and diffusion on four sets of points in the plane. D: classes, guidance,
classification and rewards. E: handwritten digits by a CNN, and cold diffusion.

A system is a module with TITLE, SECONDS (what it took on two cores, by size) and run(run), which does its
work through a `Run` and reads like the experiment. One that reads files of the user's has
check_data(folder or None, full) as well, which raises ValueError where they will not do.
"""

from __future__ import annotations

import importlib
from types import ModuleType

MODULES = {
    "A": "points_3d",
    "B": "mixtures_1d",
    "C": "energies_2d",
    "D": "guidance_2d",
    "E": "digits",
}
SIZES = ("quick", "full")


def load(system: str) -> ModuleType:
    """The module of a system, by its letter."""
    return importlib.import_module(f"diffusion_fast.systems.{MODULES[system]}")
