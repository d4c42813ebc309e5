"""diffusion-fast evaluate: how far samples are from data, beside how far other real data is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

import diffusion_fast as df
from diffusion_fast.cli import options
from diffusion_fast.cli.errors import Command, refuse_unused

if TYPE_CHECKING:
    import numpy as np

    from diffusion_fast.metrics import MetricResult


MIN_ROWS = 10  # of either side, for precision and recall have neighbours to count
ALL_PAIRS_ROWS = 10_000  # of either side, for what takes time in proportion to their product


@click.command(cls=Command)
@click.argument("samples", type=options.SAMPLES)
@options.other_data
@options.label_column
@options.data_seed
@options.num_samples(10_000, "Samples to draw from a checkpoint.", MIN_ROWS)
@options.seed
@options.sampling
@options.threads
@options.progress
@options.as_json
def evaluate(samples: Path, seed: int, as_json: bool, **how: Any) -> None:
    """Compare SAMPLES, a file of them or a checkpoint to draw them from, with held-out data.

    Each distance stands beside its floor: what fresh real data in place of the samples would get. Columns are
    scaled as for training. A checkpoint knows its data and the rows held out; for a file of samples give
    --data, and --data-seed where the training had another --seed than 0.

    \b
    Examples:
      diffusion-fast evaluate helix.safetensors
      diffusion-fast evaluate samples.npy --data helix_3d
    """
    from diffusion_fast.cli import output, stored

    if stored.is_checkpoint(samples):
        refuse_unused(["data_seed"], "a checkpoint, which knows its own")
    else:
        refuse_unused(options.DRAWING_OPTIONS, "a file of samples")
    data, rows, _ = stored.data_and_rows(samples, seed=seed, at_least=MIN_ROWS, **how)
    results = measure(data.standardiser.transform(rows), data.standardised_test, seed)
    values = {
        "samples": str(samples),
        "data": data.name,
        "num_samples": len(rows),
        "rows": len(data.test),
        "metrics": {
            name: {"value": m.value, "floor": m.floor, "spread": m.spread, "n": list(m.n)}
            for name, m in results.items()
        },
    }
    head = f"{len(rows):,} samples against {len(data.test):,} held-out rows of {data.name}"
    output.report(as_json, values, f"{head}\n\n{table(results)}")


def measure(rows: np.ndarray, held_out: np.ndarray, seed: int) -> dict[str, MetricResult]:
    few, some = _part(rows, seed), _part(held_out, seed)
    near = df.metrics.precision_recall(few, some)
    return {
        "emd": df.metrics.emd(rows, held_out, seed=seed),
        "sliced_wasserstein": df.metrics.sliced_wasserstein(rows, held_out, seed=seed),
        "energy_distance": df.metrics.energy_distance(few, some),
        "precision": near.precision,
        "recall": near.recall,
        "kernel_nll": df.metrics.kernel_nll(few, some, seed=seed),
    }


def _part(rows: np.ndarray, seed: int) -> np.ndarray:
    import numpy as np

    if len(rows) <= ALL_PAIRS_ROWS:
        return rows
    return rows[np.random.default_rng(seed).choice(len(rows), ALL_PAIRS_ROWS, replace=False)]


NAMES = {
    "emd": "earth mover's distance, per pair",
    "sliced_wasserstein": "sliced Wasserstein distance",
    "energy_distance": "energy distance",
    "precision": "precision (share of samples near data)",
    "recall": "recall (share of data near samples)",
    "kernel_nll": "kernel NLL, tau 0.1",
}


def table(results: dict[str, MetricResult]) -> str:
    lines = [f"{'':<40}{'rows':>15}{'samples':>22}{'real against real':>20}"]
    for name, m in results.items():
        value = f"{m.value:.4f}" + ("" if math.isnan(m.spread) else f" +- {m.spread:.4f}")
        floor = "-" if math.isnan(m.floor) else f"{m.floor:.4f}"
        lines.append(f"{NAMES[name]:<40}{f'{m.n[0]:,} / {m.n[1]:,}':>15}{value:>22}{floor:>20}")
    return "\n".join(lines)
