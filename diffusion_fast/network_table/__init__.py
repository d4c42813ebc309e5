"""The network of a plan as tables: precision="table" of Sampler, for samples of one and two elements."""

from diffusion_fast.network_table.builder import MAX_BYTES, build, build_evaluations
from diffusion_fast.network_table.table import NetworkTable

__all__ = ["MAX_BYTES", "NetworkTable", "build", "build_evaluations"]
