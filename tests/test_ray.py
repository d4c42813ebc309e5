"""The README's example of Ray Data, as written there."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from samplers import SCHEDULE, make_model

import diffusion_fast as df

README = Path(__file__).resolve().parent.parent / "README.md"


@pytest.mark.slow  # a local cluster takes many seconds to start
def test_ray_draws_the_same_samples(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ray", reason="ray is not installed: pip install '.[ray]'")
    monkeypatch.setenv("PYTHONPATH", str(README.parent))  # of the workers
    monkeypatch.chdir(tmp_path)
    df.save("helix.safetensors", make_model(), SCHEDULE)
    text = README.read_text()
    block = next(block for block in re.findall(r"```python\n(.*?)```", text, re.S) if "ray.data" in block)
    names: dict[str, Any] = {}
    exec(compile(block.replace("1_000_000", "5000"), "README.md", "exec"), names)
    rows = names["rows"].take_all()
    rows.sort(key=lambda row: row["id"])
    assert [row["id"] for row in rows] == list(range(5000))
    expected = df.load("helix.safetensors").sampler().sample(5000, seed=0)
    assert np.array_equal(np.stack([row["x"] for row in rows]), expected.numpy())
