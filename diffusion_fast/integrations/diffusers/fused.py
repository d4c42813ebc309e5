"""What the schedulers share: rows made once in a run, checked tensors, noise, and the call of the kernel."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

import numpy as np
import torch
from torch import Tensor

from diffusion_fast import _checks, _cpu, _tensors, cuda, ops
from diffusion_fast.solvers.chain import Terms
from diffusion_fast.solvers.levels import Affine, Level, predict
from diffusion_fast.solvers.table import StepRow

try:
    from diffusers.utils.torch_utils import randn_tensor
except ImportError as error:
    raise ImportError(
        "diffusion_fast.integrations.diffusers needs diffusers: pip install 'diffusion-fast[diffusers]'"
    ) from error

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
UNLIMITED = (1.0, math.inf, 0.0)  # what becomes of a predicted x0: a factor, then a row's clip and quantile
Output = TypeVar("Output", bound="OrderedDict[str, Tensor]")  # a BaseOutput of diffusers
_SMALLEST_RATIO = float(np.finfo(np.float32).tiny)  # a row's quantile of 0 means none


class FusedStep:
    """In front of a diffusers scheduler in the bases of a class: rows instead of tensor arithmetic.

    A subclass names the tensor of its levels in `_LEVELS` and the prediction types of the original, and says
    with `_prepare` what is computed once for a run and with `_make` what the row of a key is. A key is all
    that a step depends on.
    """

    _LEVELS: str
    _PREDICTION_TYPES: tuple[str, ...]
    _made_from: tuple[Any, Any, Any] = (None, None, None)
    _made_of: tuple[Any, ...] = ()
    _rows: dict[Any, StepRow | None] = {}
    _is_made = False
    _x0_is_output = False  # the prediction is the network's output as it is
    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any: ...  # what the original has

    def _check_config(self) -> None:
        """Refuses what the original's step refuses; ValueError or TypeError naming the argument."""
        _checks.choice("prediction_type", self.config.prediction_type, self._PREDICTION_TYPES)

    def _prepare(self) -> None:
        raise NotImplementedError

    def _make(self, key: Any) -> StepRow | None:
        raise NotImplementedError

    def _usual_keys(self) -> Iterable[Any]:
        """The keys of a run from its first step to its last, with the default options of step."""
        raise NotImplementedError

    def _row(self, key: Any) -> StepRow | None:
        """The row of a key; None where float32 cannot hold it."""
        self._refresh()
        try:
            return self._rows[key]
        except KeyError:
            pass
        try:
            with np.errstate(all="ignore"):
                row = self._make(key)
            if row is not None:
                row.packed  # noqa: B018  (it raises where no row can be this)
        except (ArithmeticError, ValueError):
            row = None
        self._rows[key] = row
        return row

    def _refresh(self) -> bool:
        """Forgets the rows where the run is made from something else than they were; whether it did."""
        timesteps, levels, config = self._made_from
        now = self.__dict__
        if timesteps is now["timesteps"] and levels is now[self._LEVELS] and config is now["_internal_dict"]:
            return False
        self._made_from = now["timesteps"], now[self._LEVELS], now["_internal_dict"]
        run = self._contents()
        if run == self._made_of:  # another run like the last: set_timesteps at each call of a pipeline
            return False
        with np.errstate(all="ignore"):
            self._prepare()
        self._rows, self._made_of = {}, run
        return True

    def _contents(self) -> tuple[Any, ...]:
        """What `_prepare` and `_make` read, by value."""
        now = vars(self)
        tensors = (now["timesteps"], now[self._LEVELS])
        read = tuple((t.dtype, t.cpu().numpy().tobytes()) for t in tensors)
        attributes = (
            "_internal_dict",
            "num_inference_steps",
            "custom_timesteps",
            "variance_type",
            "predict_x0",
        )
        return (*read, *map(now.get, attributes))

    def _next_and_x0(
        self,
        row: StepRow,
        x: Tensor,
        F: Tensor,
        output: Tensor,
        noise: Tensor | None = None,
        history: Sequence[Tensor] = (),
        log_variance: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """prev_sample and pred_original_sample."""
        if self._x0_is_output:
            return apply(row, x, F, None, noise, history, log_variance), output
        return apply(row, x, F, True, noise, history, log_variance)

    def _limits(self, clip: float | None = None) -> tuple[float, float, float]:
        """What thresholding, else a clamp at clip, make of a predicted x0; the form of UNLIMITED."""
        config = self.config
        if not getattr(config, "thresholding", False):
            return 1.0, math.inf if clip is None else float(clip), 0.0
        most = float(config.sample_max_value)
        if most <= 1:  # the threshold is most for every sample
            return 1.0 / most, 1.0, 0.0
        return 1.0, most, max(float(config.dynamic_thresholding_ratio), _SMALLEST_RATIO)


class IndexedStep(FusedStep):
    """A scheduler that counts its steps, on the levels of `sigmas`."""

    _LEVELS = "sigmas"

    def _index(self, timestep: Any) -> int:
        """The step at hand; looked up by its timestep in the first step of a run alone."""
        if self._step_index is None:
            self._init_step_index(timestep)
        index: int = self._step_index
        return index

    def _next_level(self, i: int) -> Level:
        if i >= len(self._levels) - 1:
            accepted = f"0 to {len(self._levels) - 2}; set_timesteps or set_begin_index begins another run"
            raise IndexError(f"step_index: got {i}; accepted: {accepted}")
        level: Level = self._levels[i + 1]
        return level


def prepared(original: Any) -> Callable[..., None]:
    """A set_timesteps with the original's signature that also makes the rows of the run to come.

    Lists that do not strictly descend are refused, of which some originals make NaN.
    """
    set_timesteps: Callable[..., None] = original.set_timesteps
    signature = inspect.signature(set_timesteps)

    @functools.wraps(set_timesteps)
    def prepared_timesteps(self: Any, *args: Any, **kwargs: Any) -> None:
        given = signature.bind(self, *args, **kwargs).arguments
        for name in ("timesteps", "sigmas"):
            if given.get(name) is not None:
                _check_descending(name, given[name])
        set_timesteps(self, *args, **kwargs)
        if self._is_made and self._refresh():  # one constructor sets its timesteps too
            for key in self._usual_keys():
                self._row(key)

    return prepared_timesteps


def _check_descending(name: str, given: Any) -> None:
    values = torch.as_tensor(given, dtype=torch.float64).flatten()
    descends = values[:-1] > values[1:]
    if name == "sigmas":  # a run's own end with its last twice, where final_sigmas_type is "sigma_min"
        descends[-1:] |= values[-2:-1] == values[-1:]
    wrong = (~descends).nonzero().flatten()
    if len(wrong):
        at = int(wrong[0])
        pair = [float(value) for value in values[at : at + 2]]
        raise _checks.bad_value(f"{name}[{at}], {name}[{at + 1}]", pair, "a list that strictly descends")


def checked(original: Any) -> Callable[..., None]:
    """An __init__ with the original's signature, which from_config reads, that also checks the values."""
    init: Callable[..., None] = original.__init__

    @functools.wraps(init)
    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self._check_config()
        self._is_made = True

    return __init__


def tensors(model_output: Any, sample: Any, *, upcast: bool = False) -> tuple[Tensor, Tensor] | None:
    """Both in the dtype of the computation; None where only the original's step takes them.

    upcast: to float32.

    Raises TypeError or ValueError naming the argument.
    """
    if _cpu.alike(model_output, sample) and not (upcast and sample.dtype is not torch.float32):
        return model_output, sample  # the usual case; `apply` asks whether they need gradients
    for name, tensor in (("model_output", model_output), ("sample", sample)):
        if not isinstance(tensor, Tensor):
            raise _checks.bad_type(name, tensor, "a tensor")
    F, x = model_output, sample
    if F.dtype not in DTYPES or x.dtype not in DTYPES or not (x.ndim and _have_kernel(F, x)):
        return None
    if F.shape != x.shape:
        raise _checks.bad_value("model_output", F, f"a tensor of sample's shape, {tuple(x.shape)}")
    if F.requires_grad or x.requires_grad:
        name = "model_output" if F.requires_grad else "sample"
        _tensors.no_gradient(name, F if F.requires_grad else x)
    if F.dtype is not x.dtype or (upcast and x.dtype is not torch.float32):
        return F.float(), x.float()
    return F, x


def _have_kernel(F: Tensor, x: Tensor) -> bool:
    """Whether both are on one device, and one for which there are kernels."""
    if x.is_cpu or F.is_cpu:
        return x.is_cpu and F.is_cpu
    return x.is_cuda and F.device == x.device and cuda.problem() is None


def drawn(generator: Any, like: Tensor, dtype: torch.dtype | None = None) -> Tensor | None:
    """The original's noise, from the generator or the list of generators given."""
    if generator is None:
        return None
    return randn_tensor(like.shape, generator=generator, device=like.device, dtype=dtype or like.dtype)


@overload
def apply(
    row: StepRow,
    x: Tensor,
    F: Tensor | None,
    predicts: None = None,
    noise: Tensor | None = None,
    history: Sequence[Tensor] = (),
    log_variance: Tensor | None = None,
) -> Tensor: ...
@overload
def apply(
    row: StepRow,
    x: Tensor,
    F: Tensor | None,
    predicts: Literal[True],
    noise: Tensor | None = None,
    history: Sequence[Tensor] = (),
    log_variance: Tensor | None = None,
) -> tuple[Tensor, Tensor]: ...
def apply(
    row: StepRow,
    x: Tensor,
    F: Tensor | None,
    predicts: Literal[True] | None = None,
    noise: Tensor | None = None,
    history: Sequence[Tensor] = (),
    log_variance: Tensor | None = None,
) -> Any:
    """One call of the kernel: x of the row; with `predicts` also its m, in a new tensor.

    Noise that is needed and not given comes from a new seed.
    """
    seed: int | None = None
    if row.s == 0:
        noise = None
    elif noise is None:
        seed = _checks.seed("seed", torch.default_generator)
    small = _cpu.small_step(
        row.packed, row.terms, x, F, None, None, history, log_variance, noise, predicts, None, seed, 0, 0
    )
    if small is not None:
        return small
    out, prediction = _tensors.empty_like(x), _tensors.empty_like(x) if predicts else None
    x, F = _like("sample", x, x), None if F is None else _like("model_output", F, x)
    past = [_like("history", h, x) for h in history]
    if noise is not None:
        noise = _like("noise", noise.to(x.dtype) if isinstance(noise, Tensor) else noise, x)
    if log_variance is not None:
        log_variance = _like("log_variance", log_variance, x)
    if x.numel():
        ops.launch(
            row,
            out,
            x,
            F,
            history=[h.data_ptr() for h in past] + [0] * (3 - len(past)),
            variance=log_variance,
            z=noise,
            prediction=prediction,
            seed=seed or 0,
        )
    return (out, prediction) if predicts else out


def result(kind: type[Output], return_dict: bool, *values: Tensor) -> Output | tuple[Tensor, ...]:
    """kind(*values), or the values."""
    if not return_dict:
        return values
    made: Output = _cpu.dict_output(kind, _field_names(kind), values)
    return made


@functools.cache
def _field_names(kind: type) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(kind))


def _like(name: str, tensor: Any, x: Tensor) -> Tensor:
    """A contiguous tensor of x's dtype, shape and device that needs no gradient."""
    return _tensors.given(name, tensor, x.dtype, x.shape, _tensors.CPU if x.is_cpu else x.device)


def predictions(kind: str, signal: np.ndarray, noise: np.ndarray) -> tuple[Affine, Affine]:
    """x0 and epsilon, affine in x = signal x0 + noise epsilon and the network's output; NaN where there is
    no x0 in an epsilon prediction, so that no row comes of it."""
    if kind == "epsilon":
        signal = np.where(signal > 0, signal, np.nan)
    return predict(kind, noise, signal, noise)


def fused_row(
    update: Terms,
    x0: tuple[float, float],
    limits: tuple[float, float, float],
    *,
    e: float = 0.0,
    push: bool = False,
) -> StepRow:
    """update in x, m, h1 .. h3 and z, with m = x0[0] x + x0[1] F within limits; e more of F."""
    scale, clip, quantile = limits
    a, b, c1, c2, c3, s = update.c
    m = {"p_x": scale * x0[0], "p_F": scale * x0[1], "clip": clip}
    x = {"a": a, "b": b, "e": e, "c1": c1, "c2": c2, "c3": c3, "s": s}
    return StepRow.of(0.0, push=push, quantile=quantile, coefficients=m | x)


def converted_row(update: Terms) -> StepRow:
    """update, where m is what is passed as the network's output."""
    a, b, c1, c2, c3, s = update.c
    return StepRow.of(0.0, coefficients={"a": a, "e": b, "c1": c1, "c2": c2, "c3": c3, "s": s})
