"""The denoisers, and energies with their scores."""

from __future__ import annotations

from diffusion_fast.models.cnn import CNNDenoiser
from diffusion_fast.models.energy import EnergyMLP, EnergyScore
from diffusion_fast.models.mixture import MixtureDenoiser
from diffusion_fast.models.mlp import ConditionalMLPDenoiser, MLPDenoiser

__all__ = [
    "CNNDenoiser",
    "ConditionalMLPDenoiser",
    "EnergyMLP",
    "EnergyScore",
    "MLPDenoiser",
    "MixtureDenoiser",
]
