"""What `sample --quality` stands for: settings from the study of benchmarks/frontier.py."""

from __future__ import annotations

from typing import Any

import diffusion_fast as df

# Distance to the data over that of the whole ddpm chain, models of systems A, B, C, D, in
# benchmarks/results/frontier-quick.json. fast: 2.3, 0.7, 1.0, 0.9; balanced: 0.8, 1.0, 1.0, 0.9
# (deterministic solvers have 5.6 on D, which is guided). exact: the chain of the training, nothing left out.
QUALITIES: dict[str, dict[str, Any]] = {
    "fast": {"solver": "dpmpp_2m_sde", "steps": 12, "spacing": "logsnr", "precision": "auto"},
    "balanced": {"solver": "dpmpp_2m_sde", "steps": 20, "spacing": "logsnr", "precision": "auto"},
    "exact": {"solver": "ddpm", "steps": None, "spacing": None, "precision": "float32"},
}


def chosen(quality: str, checkpoint: df.Checkpoint, how: dict[str, Any]) -> dict[str, Any]:
    """The options of sampling with those that the quality chooses."""
    settings, schedule = QUALITIES[quality], checkpoint.schedule
    if settings["steps"] is not None and settings["steps"] >= len(schedule):  # the whole chain is no longer
        settings = settings | {"steps": None, "spacing": None}
    elif settings["spacing"] == "logsnr" and schedule.alphas_cumprod[-1] == 0:  # the SNR ends at 0
        settings = settings | {"spacing": "trailing"}
    if how["device"] != "cpu":  # where there are no tables, and precision is not chosen by an error
        settings = settings | {"precision": "float32"}
    return how | settings


def described(quality: str, sampler: df.Sampler, how: dict[str, Any]) -> str:
    spacing = f", spacing {how['spacing']}" if how["spacing"] else ""
    steps = f"{how['solver']}, {len(sampler.table)} steps{spacing}"
    return f"quality {quality}: {steps}, precision {sampler.tier.identity}"
