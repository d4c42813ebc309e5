"""What diffusion models are compared with: an energy-based model, denoising score matching, and a GAN.

Each module has the networks and `train`. Samples of the first two come from Langevin dynamics, which
`Sampler(..., solver="langevin", prediction_type="score")` runs in the fused kernel.
"""

from __future__ import annotations

from diffusion_fast.baselines import energy, gan, score

__all__ = ["energy", "gan", "score"]
