"""The denoisers."""

from __future__ import annotations

from diffusion_fast.models.mlp import MLPDenoiser

__all__ = ["MLPDenoiser"]
