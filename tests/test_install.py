"""The source distribution holds what a build needs, and builds apart from all that is installed."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
DRAWN = """
import torch, diffusion_fast as df
torch.manual_seed(0)
model = df.models.MLPDenoiser(2, (16, 16), n_steps=5).eval()
sampler = df.Sampler(model, df.NoiseSchedule.linear(5))
print(df.__file__, sampler.plan.hash, sampler.sample(3, seed=1).tolist())
"""


def run(*command: str, folder: Path, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env={**os.environ, "DIFFUSION_FAST_CUDA": "0", **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.slow  # compiles for six minutes
def test_a_source_distribution_is_built_and_installed_in_isolation(tmp_path: Path) -> None:
    """pip fetches the build's requirements, without torch: where it cannot, this fails with what pip says."""
    run("setup.py", "--quiet", "sdist", "--dist-dir", str(tmp_path), folder=ROOT)
    (source,) = tmp_path.glob("*.tar.gz")
    run("-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(tmp_path), str(source), folder=tmp_path)
    (wheel,) = tmp_path.glob("*.whl")
    site = tmp_path / "site"
    run("-m", "pip", "install", "--no-deps", "--target", str(site), str(wheel), folder=tmp_path)

    installed = run("-c", DRAWN, folder=tmp_path, PYTHONPATH=str(site)).split(" ", 1)
    here = run("-c", DRAWN, folder=ROOT).split(" ", 1)
    assert installed[0].startswith(str(site)) and not here[0].startswith(str(site))
    assert installed[1] == here[1]
