"""`python -m diffusion_fast` is the command `diffusion-fast`."""

from __future__ import annotations

from diffusion_fast.cli import main

main(prog_name="diffusion-fast")
