"""Long runs to disk: chunks at their positions, a manifest beside them, any number of processes."""

from diffusion_fast.long_runs.formats import Columns
from diffusion_fast.long_runs.run import RunResult, sample_to
from diffusion_fast.long_runs.verification import Verification, verify

__all__ = ["Columns", "RunResult", "Verification", "sample_to", "verify"]
