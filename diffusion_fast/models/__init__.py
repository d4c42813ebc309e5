"""The denoisers."""

from __future__ import annotations

from diffusion_fast.models.cnn import CNNDenoiser
from diffusion_fast.models.mixture import MixtureDenoiser
from diffusion_fast.models.mlp import ConditionalMLPDenoiser, MLPDenoiser

__all__ = ["CNNDenoiser", "ConditionalMLPDenoiser", "MLPDenoiser", "MixtureDenoiser"]
