"""diffusion-fast bench: the speed of a network's shape on this machine."""

from __future__ import annotations

from typing import Any

import click

from diffusion_fast.cli import options
from diffusion_fast.cli.errors import Command, naming


def _net(value: Any) -> list[int]:
    widths = [int(part) for part in str(value).split("-")]
    if len(widths) < 3 or min(widths) < 1 or widths[0] != widths[-1]:
        raise ValueError
    return widths


NET = options.Kind("widths", _net, "widths from input to output, which are equal, such as 2-128-128-2")


@click.command(cls=Command)
@click.option("--net", type=NET, default="2-128-128-2", help="Widths of the network, from input to output.")
@click.option(
    "--activation",
    type=options.choice(options.ACTIVATIONS),
    default="relu",
    help=f"{options.listed(options.ACTIVATIONS)}.",
)
@click.option("--steps", type=options.integer(1, 10_000), default=200, help="Steps of the chain.")
@click.option(
    "--num-samples",
    type=options.integer(1, options.MAX_SAMPLES),
    help="Samples to draw.  [default: as many as take about 0.4 s]",
)
@options.threads
@options.as_json
def bench(
    net: list[int], activation: str, steps: int, num_samples: int | None, threads: int | None, as_json: bool
) -> None:
    """Measure the sampling speed of a network's shape, beside plain PyTorch and the processor's peak.

    \b
    Example:
      diffusion-fast bench --net 2-128-128-2 --steps 200
    """
    from diffusion_fast.cli import output
    from diffusion_fast.shape_benchmark import measure_shape

    with naming("widths", "--net"), naming("n", "--num-samples"):
        result = measure_shape(net, activation, steps, num_samples, threads=threads)
    output.report(as_json, result.as_dict(), str(result))
