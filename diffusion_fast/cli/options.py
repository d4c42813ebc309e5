"""The kinds of values that options take, and the options that several commands share.

Nothing here imports torch, so that help, completion and refusals are instant: names such as those of the
solvers are written out, and a test compares them with the library's.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import click
from click.shell_completion import CompletionItem

from diffusion_fast._spelling import did_you_mean

ACTIVATIONS = (
    "relu",
    "leaky_relu",
    "elu",
    "tanh",
    "sigmoid",
    "silu",
    "gelu",
    "gelu_tanh",
    "softplus",
    "mish",
    "identity",
)
TIME_EMBEDDINGS = ("learned", "sinusoidal", "table", "scalar")
SCHEDULES_WITHOUT_RANGE = ("cosine", "constant")  # of betas
SCHEDULES = (
    *SCHEDULES_WITHOUT_RANGE,
    "linear",
    "quadratic",
    "scaled_linear",
    "warmup10",
    "warmup50",
    "sigmoid",
    "sigmoid_ramp",
    "sine_squared",
)
PREDICTION_TYPES = ("epsilon", "sample", "v_prediction")
DATA_SETS = (
    "3d_sin_5_5",
    "helix_3d",
    "two_gaussians",
    "two_gaussians_wide",
    "three_gaussians",
    "checkerboard",
    "gaussian_ring",
    "pinwheel",
    "spiral",
    "moons",
    "circles",
    "manycircles",
    "blobs",
    "helix_labelled",
    "swiss_roll",
    "digits",
)
SOLVERS = (
    "ddpm",
    "ddim",
    "euler",
    "euler_ancestral",
    "heun",
    "dpm_solver_2",
    "dpmpp_2m",
    "dpmpp_2s_ancestral",
    "dpmpp_2m_sde",
    "dpmpp_3m_sde",
    "unipc",
    "plms",
    "lms",
    "edm",
    "flow_euler",
    "flow_heun",
    "langevin",
    "annealed_langevin",
)
TRAINING_STEPS = 5000  # where --epochs is not given
VARIANCES = ("beta", "posterior")
SPACINGS = ("leading", "trailing", "linspace", "karras", "exponential", "logsnr")
QUALITIES = ("fast", "balanced", "exact")
PRECISIONS = ("float32", "bfloat16", "table", "auto")
MAX_SAMPLES = 1 << 48
MAX_THREADS = 4096

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class Kind(click.ParamType):
    """A kind of value: a parser that raises ValueError or TypeError, and what it accepts, in words."""

    def __init__(
        self,
        name: str,
        parse: Callable[[Any], Any],
        accepted: str,
        *,
        choices: Sequence[str] = (),
        files: bool = False,
    ) -> None:
        self.name, self.accepted = name, accepted
        self._parse, self._choices, self._files = parse, choices, files

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return self._parse(value)
        except (ValueError, TypeError):
            hint = did_you_mean(str(value), self._choices)
            self.fail(f"got {value!r}; accepted: {self.accepted}{hint}", param, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        names = [CompletionItem(name) for name in self._choices if name.startswith(incomplete)]
        return names or ([CompletionItem(incomplete, type="file")] if self._files else [])


def integer(low: int, high: int | None = None) -> Kind:
    accepted = f"an integer from {low} {'up' if high is None else f'to {high}'}"
    return Kind("integer", lambda value: _integer(value, low, high), accepted)


def real(accepted: str, inside: Callable[[float], bool] = math.isfinite) -> Kind:
    """A finite number for which `inside` holds."""

    def parse(value: Any) -> float:
        number = float(value if type(value) in (int, float) else _text(value))
        if not math.isfinite(number) or not inside(number):
            raise ValueError
        return number

    return Kind("number", parse, accepted)


def choice(names: Sequence[str], note: str = "") -> Kind:
    def parse(value: Any) -> str:
        if value not in names:
            raise ValueError
        return str(value)

    accepted = names[0] if len(names) == 1 else f"one of {', '.join(names)}"
    return Kind("name", parse, accepted + note, choices=names)


def widths() -> Kind:
    def parse(value: Any) -> list[int]:
        parts = value if isinstance(value, list) and value else _text(value).split(",")
        return [_integer(part, 1, None) for part in parts]

    return Kind("integers", parse, "widths of layers from 1 up, such as 128,128")


def listed(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def text(name: str, accepted: str, *, files: bool = False) -> Kind:
    return Kind(name, _text, accepted, files=files)


def existing_file(accepted: str) -> Kind:
    def parse(value: Any) -> Path:
        if not Path(_text(value)).is_file():
            raise ValueError
        return Path(value)

    return Kind("file", parse, f"an existing {accepted}", files=True)


def _index_range(value: Any) -> tuple[int, int]:
    first, end = (_integer(part, 0, MAX_SAMPLES) for part in _text(value).split(":"))
    if first >= end:
        raise ValueError
    return first, end


def _chunks(value: Any) -> list[int] | str:
    text = _text(value)
    return text if text == "all" else [_integer(part, 0, None) for part in text.split(",")]


def _data(value: Any) -> str:
    source = _text(value)
    if source not in DATA_SETS and not Path(source).exists():
        raise ValueError
    return source


def _integer(value: Any, low: int, high: int | None) -> int:
    number = int(value) if isinstance(value, str) else value
    if type(number) is not int or number < low or (high is not None and number > high):
        raise ValueError
    return number


def _text(value: Any) -> str:
    # A settings file may hold any type; a path is what a default or a test may be.
    if not isinstance(value, str | Path) or not str(value):
        raise ValueError
    return str(value)


# ---- options of several commands

POSITIVE = real("a number above 0", lambda x: x > 0)
FRACTION = real("a number in (0, 1)", lambda x: 0 < x < 1)
BETA = FRACTION
INDEX_RANGE = Kind("A:B", _index_range, f"A:B with 0 <= A < B <= {MAX_SAMPLES}")
CHUNKS = Kind("chunks", _chunks, "all, or numbers of chunks with commas between them")
CHECKPOINT = existing_file("checkpoint file, as train writes it")
SAMPLES = existing_file("file of samples (.npy, .npz, .csv, .parquet) or checkpoint")
DATA = Kind(
    "name|file",
    _data,
    f"one of {', '.join(DATA_SETS)}, or a .npy, .npz, .csv or .parquet file that exists",
    choices=DATA_SETS,
    files=True,
)
data = click.option(
    "--data",
    type=DATA,
    default="helix_3d",
    help="What to learn from: a .npy, .npz, .csv or .parquet file, the folder with the four files of MNIST, "
    f"or one of {', '.join(DATA_SETS)}.",
)

seed = click.option(
    "--seed",
    type=integer(0, (1 << 64) - 1),
    default=0,
    help="Everything random follows from it.",
)
threads = click.option(
    "--threads",
    type=integer(1, MAX_THREADS),
    help="CPU threads; the samples do not depend on them.  [default: DIFFUSION_FAST_THREADS, else torch's]",
)
as_json = click.option(
    "--json", "as_json", is_flag=True, help="One JSON object on standard output, all else on standard error."
)
force = click.option("--force", is_flag=True, help="Replace an output that exists.")
progress = click.option(
    "--progress/--no-progress",
    default=None,
    help="A bar on standard error.  [default: where that is a terminal]",
)
other_data = click.option(
    "--data", type=DATA, help="The data to compare with.  [default: that of the checkpoint's training]"
)
label_column = click.option(
    "--label-column",
    type=text("name", "the name of a column"),
    help="The column of a file that holds the classes.",
)


data_seed = click.option(
    "--data-seed",
    type=integer(0, (1 << 64) - 1),
    default=0,
    help="For a file of samples: the seed that --data is drawn and split by, which is the --seed of the "
    "training. A checkpoint knows it.",
)


def num_samples(
    default: int, help: str = "Samples to draw.", low: int = 1
) -> Callable[[Decorated], Decorated]:
    return click.option("--num-samples", type=integer(low, MAX_SAMPLES), default=default, help=help)


def default_epochs(rows: int, batch_size: int) -> int:
    """As many as make about TRAINING_STEPS steps."""
    return max(1, round(TRAINING_STEPS / math.ceil(rows / batch_size)))


def out(accepted: str, required: bool = True) -> Callable[[Decorated], Decorated]:
    return click.option(
        "--out",
        type=text("file", accepted, files=True),
        required=required,
        help=f"File to write: {accepted}.",
    )


def sampling(command: Decorated) -> Decorated:
    """How a checkpoint is sampled: solver, steps, variance, labels, guidance, precision, device."""
    for option in reversed(_SAMPLING):
        command = option(command)
    return command


CHAIN_OPTIONS = ("solver", "steps", "spacing", "variance", "precision", "tolerance")
SAMPLER_OPTIONS = (*CHAIN_OPTIONS, "guidance_scale", "device")
DRAWING_OPTIONS = ("num_samples", "labels", "threads", *SAMPLER_OPTIONS)
DATA_OPTIONS = ("data", "data_seed", "label_column")
_SAMPLING = (
    click.option("--solver", type=choice(SOLVERS), default="ddpm", help=f"{listed(SOLVERS)}."),
    click.option(
        "--steps", type=integer(1), help="Steps of the chain.  [default: as many as it was trained with]"
    ),
    click.option(
        "--spacing",
        type=choice(SPACINGS),
        help=f"Which levels of the schedule --steps visits: {listed(SPACINGS)}.  [default: leading]",
    ),
    click.option(
        "--variance",
        type=choice(VARIANCES),
        help=f"Noise of a ddpm step: {listed(VARIANCES)}.  [default: posterior]",
    ),
    click.option(
        "--labels",
        type=text("classes", "names of classes with commas between them, or none"),
        help="Classes to draw, with commas between them, which the samples take in turn, or one whose name "
        "has commas; 'none' for the "
        "model's law without a label.  [default: all classes, where the model has some]",
    ),
    click.option(
        "--guidance-scale",
        type=real("a finite number"),
        help="Classifier-free guidance u + s (c - u); 1 is none.",
    ),
    click.option(
        "--precision",
        type=choice((*PRECISIONS, "float16")),
        default="float32",
        help="Of the network in the chain: float32; bfloat16, on cuda or a processor with AVX-512 BF16; "
        "float16, on cuda; on the CPU also table, which reads it from grids, for one or two columns, and "
        "auto, the fastest of them whose samples hold the tolerance.",
    ),
    click.option(
        "--tolerance",
        type=real("a number in [1e-6, 1]", lambda x: 1e-6 <= x <= 1),
        help="Relative error that --precision table or auto may have.  [default: 0.001]",
    ),
    click.option(
        "--device",
        type=choice(["cpu", "cuda"]),
        default="cpu",
        help="Where to run: cpu, or cuda for a GPU, under torchrun one for each process of a machine.",
    ),
)
