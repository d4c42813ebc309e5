"""Published point sets that ship with the tests."""

from __future__ import annotations

import functools
from pathlib import Path

import numpy as np

from diffusion_fast.standardiser import Standardiser


@functools.cache
def published_helix() -> tuple[np.ndarray, np.ndarray]:
    """The train and test sets of helix_3D, standardised by the train set."""
    with np.load(Path(__file__).parent / "data" / "helix_3d.npz") as file:
        train, test = file["train"], file["test"]
    standardiser = Standardiser.fit(train)
    return standardiser.transform(train), standardiser.transform(test)
