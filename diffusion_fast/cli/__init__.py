"""The command `diffusion-fast`: each command reads its arguments here and does its work with the library.

The modules of the commands import nothing heavy at the top, and `import diffusion_fast` loads its parts at
first use: help, completion, `info` and most refusals need no torch.
"""

from __future__ import annotations

import click

from diffusion_fast import __version__
from diffusion_fast.cli import bench, demo, evaluate, explain, info, plot, reproduce, sample, train, verify
from diffusion_fast.cli.errors import Program


@click.group(
    cls=Program,
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "show_default": True, "max_content_width": 100},
)
@click.version_option(__version__, prog_name="diffusion-fast")
@click.pass_context
def main(ctx: click.Context) -> None:
    """Fast, reproducible, large-batch sampling for small diffusion models.

    \b
    From training to a picture:
      diffusion-fast train --data helix_3d --out helix.safetensors
      diffusion-fast sample helix.safetensors --num-samples 1000000 --out samples.npy
      diffusion-fast evaluate helix.safetensors
      diffusion-fast plot helix.safetensors --out helix.png
      diffusion-fast explain helix.safetensors

    \b
    Exit codes: 0 done, 1 a failure while running, 2 bad input or usage, 130 interrupted, 143 terminated.
    DIFFUSION_FAST_DEBUG=1 shows the traceback of an error as well.

    \b
    Completion of commands, options and names in the shell, as a line of its start-up file:
      bash  eval "$(_DIFFUSION_FAST_COMPLETE=bash_source diffusion-fast)"
      zsh   eval "$(_DIFFUSION_FAST_COMPLETE=zsh_source diffusion-fast)"
      fish  _DIFFUSION_FAST_COMPLETE=fish_source diffusion-fast | source
    """
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


for command in (
    demo.demo,
    train.train,
    sample.sample,
    verify.verify,
    evaluate.evaluate,
    plot.plot,
    explain.explain,
    info.info,
    bench.bench,
    reproduce.reproduce,
):
    main.add_command(command)
