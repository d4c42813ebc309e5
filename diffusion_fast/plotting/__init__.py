"""Pictures of samples beside data, of training runs, schedules, reverse chains and fields, all in one style.

The functions return matplotlib Figures made without pyplot: no window, no global state, any thread;
`figure.savefig(path)` writes them. Only `chain_animation` writes a file itself.

Limits follow the data, without the few rows that lie far from all others; what lies outside of them is
counted in the picture. Of many rows a random 5000 are drawn as points (the same ones each time); histograms,
limits and counts use all. The colors are those of Okabe and Ito, told apart with any kind of color vision.
"""

from diffusion_fast.plotting.animation import chain_animation
from diffusion_fast.plotting.chain import chain_strip
from diffusion_fast.plotting.curves import loss_curve, schedule_curves
from diffusion_fast.plotting.fields import field
from diffusion_fast.plotting.images import image_grid, image_panels
from diffusion_fast.plotting.pairs import pair_plot
from diffusion_fast.plotting.panels import sample_panels
from diffusion_fast.plotting.samples import compare_samples

__all__ = [
    "chain_animation",
    "chain_strip",
    "compare_samples",
    "field",
    "image_grid",
    "image_panels",
    "loss_curve",
    "pair_plot",
    "sample_panels",
    "schedule_curves",
]
