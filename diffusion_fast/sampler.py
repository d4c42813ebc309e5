"""Sampler: a denoiser, a schedule and a solver, made once into a Plan; then samples, any number, any time.

Sample i is a function of (plan, seed, i) alone on the native backend: the same bits for every n, start, chunk
size and number of threads.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from diffusion_fast import _checks, _cpu, _tensors, capture, ops, plan, plan_validation, reference, solvers
from diffusion_fast.schedules import NoiseSchedule
from diffusion_fast.sigma_schedules import FlowSchedule, SigmaSchedule
from diffusion_fast.solvers.table import StepTable
from diffusion_fast.standardiser import Standardiser
from diffusion_fast.threads import resolve as resolve_threads
from diffusion_fast.torch_chain import MODULE_CHUNK, Call, run_module

BACKENDS = ("auto", "native", "torch")


class Sampler:
    """Draws samples from a trained denoiser.

    model: an nn.Module in eval mode, called as model(x, t) or, with classes, model(x, t, y); x is (B, *shape)
    float32, t (B,), y (B,) int64. schedule: its NoiseSchedule, SigmaSchedule or FlowSchedule.
    shape: of one sample; taken from model.shape where the model has it. solver: a name of solvers.SOLVERS,
    with its own options as further keywords (variance, eta, spacing, timesteps, sigmas; see that function).
    steps: levels to visit, all by default. prediction_type: "epsilon", "sample", "v_prediction", "score",
    "edm" or "flow" (solvers.levels.GridOptions). clip: clamp of the predicted x0 to [-clip, clip].
    n_classes: of a conditional model, the null class not counted; taken from model.n_classes. guidance_scale
    s: F = u + s (c - u), 1 = none; or guidance_weight w = s - 1 (Ho & Salimans 2022).
    time_input: what the model takes for t: "index" (0-based), "index1", "unit" ((t + 1) / T, or the time of a
    flow), "sigma", "log_sigma/4".
    backend: "native" runs the fused kernel or says why it cannot; "torch" runs the module with plain torch
    steps; "auto" is native where it can, else the module with the fused step (explain() tells).
    precision: "float32". device: "cpu". standardiser: its inverse is applied to the samples.

    Immutable, thread-safe, picklable. Raises TypeError or ValueError naming the argument; CaptureError (a
    ValueError) where backend="native" cannot run the model.
    """

    def __init__(
        self,
        model: nn.Module,
        schedule: NoiseSchedule | SigmaSchedule | FlowSchedule,
        *,
        shape: Any = None,
        solver: str = "ddpm",
        steps: int | None = None,
        prediction_type: str = "epsilon",
        clip: float | None = None,
        guidance_scale: float | None = None,
        guidance_weight: float | None = None,
        n_classes: int | None = None,
        time_input: str = "index",
        backend: str = "auto",
        precision: str = "float32",
        device: str | torch.device | None = None,
        standardiser: Standardiser | None = None,
        **solver_options: Any,
    ) -> None:
        _checks.choice("time_input", time_input, capture.TIME_INPUTS)
        _check_model(model, schedule, time_input)
        _checks.choice("backend", backend, BACKENDS)
        _checks.choice("precision", precision, ["float32"])
        if device is not None:
            _checks.choice("device", str(device), ["cpu"])
        self.model = model
        self.schedule = schedule
        self.shape = _sample_shape(model, shape)
        self.n_classes = _class_count(model, n_classes)
        self.time_input = time_input
        self.standardiser = _check_standardiser(standardiser, self.shape)
        self.guidance = _guidance(guidance_scale, guidance_weight, self.n_classes)
        # an index takes the timestep nearest to a level between two, a continuous time its own
        if time_input in capture.CONTINUOUS_TIME and "fractional_time" in solvers.options_of(solver):
            solver_options = {"fractional_time": True} | solver_options
        common = {"steps": steps, "prediction_type": prediction_type, "clip": clip}
        table = solvers.solve(solver, schedule, **common, **solver_options)
        self.table = _with_guidance(table, self.guidance)
        self._times = capture.network_time(table.table_timesteps, time_input, schedule)
        self.backend = backend
        self.plan: plan.Plan | None = None
        self._notes: list[str] = []
        self._program: _cpu.Program | None = None
        if backend != "torch":
            self._capture(required=backend == "native")
        self._fingerprint = capture.weights_fingerprint(model)

    def _capture(self, required: bool) -> None:
        classes = self.n_classes + 1 if self.n_classes else 0
        times = self.table.table_timesteps.tolist()
        try:
            program = capture.capture(self.model, self.shape, times, classes, self.schedule, self.time_input)
            self.plan = plan.build_plan(self.table, program, branches=2 if self.guidance is not None else 1)
        except capture.CaptureError as reason:
            if required:
                raise
            self._notes = [f"The module runs in torch, with the fused step, because: {reason}"]
            return
        self._program = _cpu.Program(self.plan.to_bytes())
        self._notes = list(program.explain)

    # ---- drawing

    def sample(
        self,
        n: int,
        *,
        seed: int | torch.Generator = 0,
        start: int = 0,
        labels: int | Tensor | None = None,
        x_T: Tensor | None = None,
        noise: Tensor | None = None,
        return_trajectory: bool = False,
        out: Tensor | np.ndarray | None = None,
        progress: bool = False,
        threads: int | None = None,
    ) -> Tensor:
        """Samples start .. start + n - 1 of the seed's stream: (n, *shape) float32 on the CPU.

        seed: int in [0, 2^64), or a torch.Generator from which one is drawn. labels: an int or (n,) integers
        in [0, n_classes], n_classes being the null class, which None means too. x_T (n, *shape) and noise
        (rows, n, *shape), float32, replace the stream's. return_trajectory: (rows + 1, n, *shape), from x_T
        to the samples. out: a contiguous float32 tensor or array to write to. threads: at most so
        many of the fused chain; default DIFFUSION_FAST_THREADS, else torch.get_num_threads().

        Samples that hold NaN or infinity are counted and named in a RuntimeWarning. Ctrl-C stops the call.
        Raises TypeError or ValueError naming the argument before anything is written, RuntimeError when the
        model's weights have changed since the sampler was made.
        """
        count, first = _checks.sample_range(n, start)
        if not isinstance(seed, torch.Generator):
            _checks.seed("seed", seed)
        workers = resolve_threads(threads)
        _checks.flag("return_trajectory", return_trajectory)
        _checks.flag("progress", progress)
        y = self._labels(labels, count)
        rows = len(self.table)
        begin = None if x_T is None else _finite_input("x_T", x_T, (count, *self.shape))
        z = None if noise is None else _finite_input("noise", noise, (rows, count, *self.shape))
        self._check_weights()
        shape = (rows + 1, count, *self.shape) if return_trajectory else (count, *self.shape)
        if out is None:
            target = _tensors.allocate(shape)
        else:
            target = _tensors.output("out", out, torch.float32, shape, [begin, z], in_place=False)
        key = _checks.seed("seed", seed)  # drawn last: a refused call leaves the generator as it was
        if count:
            run = self._run_native if self._program is not None else self._run_module
            report = tqdm(total=count, unit="sample", unit_scale=True) if progress else None
            try:
                run(target, Call(count, first, key, workers, y, begin, z, return_trajectory, report))
                if report is not None:
                    report.update(count - report.n)
            finally:
                if report is not None:
                    report.close()
        if self.standardiser is not None:
            for part in target.view(-1, *self.shape).split(MODULE_CHUNK):
                part.copy_(self.standardiser.inverse(part))
        return target

    def stream(self, n: int, chunk_size: int = 1 << 18, **options: Any) -> Iterator[Tensor]:
        """The samples of `sample(n, **options)` in chunks of at most chunk_size, in bounded memory.

        The arguments are checked at the call, before the first chunk is asked for. out, x_T and noise, which
        belong to whole calls, are not accepted.
        """
        count, first = _checks.sample_range(n, options.pop("start", 0))
        size = _checks.integer("chunk_size", chunk_size, 1)
        for name in ("out", "x_T", "noise"):
            if name in options:
                raise _checks.bad_value(name, options[name], "nothing here: call sample for each chunk")
        seed = options.pop("seed", 0)
        y = self._labels(options.pop("labels", None), count)
        # checks the rest; with the labels of no sample, for a guided sampler wants some
        self.sample(0, labels=y[:0] if isinstance(y, Tensor) else y, **options)

        key = _checks.seed("seed", seed)

        def chunks() -> Iterator[Tensor]:
            for at in range(0, count, size):
                m = min(size, count - at)
                part = y[at : at + m] if isinstance(y, Tensor) else y
                yield self.sample(m, seed=key, start=first + at, labels=part, **options)

        return chunks()

    def explain(self) -> str:
        """What was folded into tables, what the fused kernel runs, what is left to torch, and why."""
        head = [
            f"{self.table!r} on {type(self.model).__name__}, shape {self.shape}",
            f"backend: {self.backend!r}"
            + (f", native ({self._program.isa})" if self._program is not None else ", torch"),
        ]
        if self.plan is not None:
            head.append(
                f"plan {self.plan.hash[:16]}: {self.plan.flops_per_sample_step} flop a sample and step"
            )
        if self.guidance is not None:
            head.append(f"guidance: u + {self.guidance:g} (c - u), two evaluations a row")
        return "\n".join(head + [f"  {line}" for line in self._notes])

    def __setattr__(self, key: str, value: Any) -> None:
        if "_fingerprint" in vars(self):  # the last that __init__ sets
            raise AttributeError(f"{key}: a Sampler is immutable")
        super().__setattr__(key, value)

    def __repr__(self) -> str:
        return f"Sampler({type(self.model).__name__}, {self.table!r}, backend={self.backend!r})"

    # ---- the two ways to run

    def _run_native(self, target: Tensor, call: Call) -> None:
        assert self._program is not None
        last = _tensors.allocate((call.n, *self.shape)) if call.trajectory else target
        labels = call.labels
        bad, rows = self._program.run(
            last.data_ptr(),
            call.n,
            call.start,
            call.seed,
            call.threads,
            x_T=0 if call.x_T is None else call.x_T.data_ptr(),
            noise=0 if call.noise is None else call.noise.data_ptr(),
            trajectory=target.data_ptr() if call.trajectory else 0,
            labels=labels.data_ptr() if isinstance(labels, Tensor) else 0,
            label=labels if isinstance(labels, int) else 0,
            progress=call.show if call.bar is not None else None,
        )
        _warn_not_finite(bad, call.n, [call.start + row for row in rows])

    def _run_module(self, target: Tensor, call: Call) -> None:
        step = reference.reverse_step_ref if self.backend == "torch" else ops.reverse_step
        null = self.n_classes if self.guidance is not None else None
        bad = run_module(self.model, self.table, self._times, self.shape, call, target, step, null)
        _warn_not_finite(len(bad), call.n, bad[:8])

    # ---- checks at call time

    def _labels(self, labels: Any, n: int) -> Tensor | int | None:
        """None without classes; an int, or (n,) int32 in [0, n_classes]."""
        if not self.n_classes:
            if labels is not None:
                raise _checks.bad_value("labels", labels, "None, for the model has no classes (n_classes)")
            return None
        accepted = f"an integer from 0 to {self.n_classes} (the null class), or ({n},) of them"
        if labels is None:
            if self.guidance is not None:
                raise _checks.bad_value("labels", labels, accepted + ", for a guided sampler")
            return self.n_classes
        if not isinstance(labels, (Tensor, np.ndarray, list, tuple)):
            return _checks.integer("labels", labels, 0, self.n_classes)
        return _checks.class_labels("labels", labels, n, self.n_classes, accepted).to(torch.int32)

    def _check_weights(self) -> None:
        # The kernel runs what was captured; a part switched to train mode since then matters to torch alone.
        _check_eval_mode([self.model] if self._program is not None else self.model.modules())
        self._check_fingerprint()

    def _check_fingerprint(self) -> None:
        if self._program is not None and capture.weights_fingerprint(self.model) != self._fingerprint:
            raise RuntimeError(
                "model: its weights have changed since this Sampler was made from them; make a new Sampler"
            )

    # ---- pickling: the packed program is rebuilt from the plan

    def __getstate__(self) -> dict[str, Any]:
        self._check_fingerprint()  # the copy takes its own, and would not notice
        return {k: v for k, v in vars(self).items() if k not in ("_program", "_fingerprint")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        self._program = None if self.plan is None else _cpu.Program(self.plan.to_bytes())
        self._fingerprint = capture.weights_fingerprint(self.model)


_CALL_TIME = ("seed", "start", "labels", "x_T", "noise", "return_trajectory", "out", "progress", "threads")


def sample(
    model: nn.Module, schedule: NoiseSchedule | SigmaSchedule | FlowSchedule, n: int, **options: Any
) -> Tensor:
    """Sampler(model, schedule, **plan-time options).sample(n, **call-time options): (n, *shape) float32."""
    call = {name: options.pop(name) for name in _CALL_TIME if name in options}
    return Sampler(model, schedule, **options).sample(n, **call)


# ---- checks at plan time


def _check_model(model: Any, schedule: Any, time_input: str) -> None:
    if not isinstance(model, nn.Module):
        raise _checks.bad_type("model", model, "a torch.nn.Module")
    _check_eval_mode(model.modules())
    if not isinstance(schedule, (NoiseSchedule, SigmaSchedule, FlowSchedule)):
        raise _checks.bad_type("schedule", schedule, "a NoiseSchedule, SigmaSchedule or FlowSchedule")
    limit = getattr(model, "n_steps", None)
    counts = isinstance(schedule, NoiseSchedule) or time_input not in capture.CONTINUOUS_TIME
    if counts and isinstance(limit, int) and schedule.n_steps > limit:
        raise _checks.bad_value("schedule", f"{schedule.n_steps} steps", f"at most model.n_steps = {limit}")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.device.type != "cpu":
            raise _checks.bad_value("model", f"{name} on {tensor.device}", "a module on the CPU: model.cpu()")
        if tensor.is_floating_point():
            _checks.finite(f"model.{name}", tensor.detach())
    for name, parameter in model.named_parameters():
        if parameter.dtype != torch.float32:
            raise _checks.bad_value(f"model.{name}", parameter, "float32 weights: model.float()")


def _check_eval_mode(parts: Iterable[nn.Module]) -> None:
    for part in parts:
        if part.training:
            given = f"{type(part).__name__} in train mode"
            raise _checks.bad_value("model", given, "one in eval mode: call model.eval()")


def _sample_shape(model: nn.Module, shape: Any) -> tuple[int, ...]:
    own = getattr(model, "shape", None)
    given = own if shape is None else shape
    if isinstance(given, (int, np.integer)) and not isinstance(given, bool):
        given = (given,)
    if not isinstance(given, (tuple, list, torch.Size)) or not given:
        raise _checks.bad_type(
            "shape", given, "the shape of one sample, a tuple of positive integers such as (3,)"
        )
    sizes = tuple(_checks.integer("shape", size, 1, 1 << 32) for size in given)
    if isinstance(own, tuple) and sizes != own:
        raise _checks.bad_value("shape", sizes, f"the model's own {own}")
    return sizes


def _class_count(model: nn.Module, n_classes: Any) -> int:
    own = getattr(model, "n_classes", None)
    if n_classes is None:
        return own or 0
    count = _checks.integer("n_classes", n_classes, 1, plan_validation.MAX_CLASSES - 1)
    if own is not None and own != count:
        raise _checks.bad_value("n_classes", count, f"the model's own {own}")
    return count


def _guidance(scale: Any, weight: Any, n_classes: int) -> float | None:
    """The scale s of u + s (c - u), or None for no guidance."""
    if scale is None and weight is None:
        return None
    if scale is not None and weight is not None:
        raise _checks.bad_value("guidance_weight", weight, "None where guidance_scale is given: s = 1 + w")
    if not n_classes:
        name, given = ("guidance_scale", scale) if weight is None else ("guidance_weight", weight)
        raise _checks.bad_value(name, given, "None, for the model has no classes (n_classes)")
    top = 1e38  # that float32 holds, and twice over for the products
    if weight is None:
        return _checks.real("guidance_scale", scale, -top, top)
    return 1 + _checks.real("guidance_weight", weight, -top, top)


def _with_guidance(table: StepTable, guidance: float | None) -> StepTable:
    if guidance is None:
        return table
    rows = table.rows.copy()
    rows["guidance"] = guidance
    return StepTable(rows, table.timesteps, table.table_timesteps, table.solver)


def _check_standardiser(standardiser: Any, shape: tuple[int, ...]) -> Standardiser | None:
    if standardiser is not None:
        if not isinstance(standardiser, Standardiser):
            raise _checks.bad_type("standardiser", standardiser, "a Standardiser or None")
        if shape != (standardiser.dim,):
            raise _checks.bad_value(
                "standardiser", f"{standardiser.dim} columns", f"the sample's shape {shape}"
            )
    return standardiser


def _finite_input(name: str, tensor: Any, shape: tuple[int, ...]) -> Tensor:
    return _checks.finite(name, _tensors.given(name, tensor, torch.float32, shape))


def _warn_not_finite(count: int, n: int, rows: list[int]) -> None:
    if count:
        more = ", ..." if count > len(rows) else ""
        warnings.warn(
            f"{count} of {n} samples hold NaN or infinity: sample {', '.join(map(str, rows))}{more} "
            "(the model's output overflowed; the others are unaffected)",
            RuntimeWarning,
            stacklevel=4,
        )
