"""Sampler: a denoiser, a schedule and a solver, made once into a Plan; then samples, any number, any time.

Sample i is a function of (plan, seed, i) alone on the native backend: the same bits for every n, start, chunk
size and number of threads.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import replace
from math import prod
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from diffusion_fast import _checks, _tensors, capture, cuda, ops, plan, sampler_checks, solvers
from diffusion_fast import precision as tiers
from diffusion_fast.conditions import conditions_of, fixed_of
from diffusion_fast.cpu_chain import CpuChain
from diffusion_fast.cuda_chain import CudaChain
from diffusion_fast.drawing import Drawing
from diffusion_fast.guidance import guidance_of, one_of, scales_of
from diffusion_fast.reference import reverse_step_ref
from diffusion_fast.schedules import NoiseSchedule
from diffusion_fast.sigma_schedules import FlowSchedule, SigmaSchedule
from diffusion_fast.standardiser import Standardiser
from diffusion_fast.threads import resolve as resolve_threads
from diffusion_fast.torch_chain import Call, ModuleChain, Network
from diffusion_fast.weights import Weights

BACKENDS = ("auto", "native", "torch")


class Sampler:
    """Draws samples from a trained denoiser.

    model: an nn.Module in eval mode, called as model(x, t), then y with classes, then its context; x is
    (B, *shape) float32, t (B,), y (B,) int64. schedule: its NoiseSchedule, SigmaSchedule or FlowSchedule.
    shape: of one sample; taken from model.shape where the model has it. solver: a name of solvers.SOLVERS,
    with its own options as further keywords (variance, eta, spacing, timesteps, sigmas; see that function).
    steps: levels to visit, all by default; the default spacing of one is timestep 0 alone. prediction_type:
    "epsilon", "sample", "v_prediction", "score", "edm" or "flow" (solvers.levels.GridOptions). clip: clamp of
    the predicted x0 to [-clip, clip].
    dynamic_threshold: a ratio in (0, 1], such as 0.995: x0 is clamped to that quantile of |x0| over the
    sample, limited to [1, clip], and divided by it (Saharia et al. 2022, section 2.3).
    n_classes: of a conditional model, the null class not counted; taken from model.n_classes. null_class:
    whether the model has a row for it, index n_classes.
    context_shape: of what else the model reads for each sample, float32: a size or shape for one more
    positional argument, or a dict of them by the names of the model's arguments. null_context: its value in
    the unconditional branch, a number for all elements or one row of it.
    guidance_scale s: F = u + s (c - u), 1 = none; or guidance_weight w = s - 1 (Ho & Salimans 2022); u is of
    the null class and the null context. guidance_interval: (first, last), only rows first .. last - 1 of the
    table are guided. guidance_rescale: phi of Lin et al. 2024, section 3.4, in [0, 1].
    time_input: what the model takes for t: "index" (0-based), "index1", "unit" ((t + 1) / T, or the time of a
    flow), "sigma", "log_sigma/4".
    backend: "native" runs the fused kernel or says why it cannot; "torch" runs the module with plain torch
    steps; "auto" is native where it can, else the module with the fused step (explain() tells).
    precision: "float32", or for the network's products "bfloat16", and on CUDA "float16"; a plan that has no
    kernel of that precision runs in float32 (explain() tells). On the CPU "bfloat16" takes a processor with
    AVX-512 BF16. There, for samples of one or two elements without a context, "table" reads the network's
    output from grids, made here once (network_table); tolerance, 1e-3 by default, is of its error, relative
    to its RMS in each row. "auto" takes the fastest of them whose samples hold the tolerance beside float32
    (precision.py), and with expected_samples makes no table that so few would not pay for. explain() has what
    was measured.
    standardiser: its inverse is applied to the samples. device: where the samples are drawn, that of the
    model's weights by default. The fused kernel runs a plan made from them, wherever they are; torch runs the
    module where it is.

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
        dynamic_threshold: float | None = None,
        guidance_scale: float | None = None,
        guidance_weight: float | None = None,
        guidance_interval: tuple[int, int] | None = None,
        guidance_rescale: float | None = None,
        n_classes: int | None = None,
        null_class: bool = True,
        context_shape: Any = None,
        null_context: Any = None,
        time_input: str = "index",
        backend: str = "auto",
        precision: str = "float32",
        tolerance: float | None = None,
        expected_samples: int | None = None,
        device: str | torch.device | None = None,
        standardiser: Standardiser | None = None,
        **solver_options: Any,
    ) -> None:
        for name in solver_options.keys() - OF_SOLVERS:
            _checks.choice("options of Sampler", name, sorted(OPTIONS))
        _checks.choice("time_input", time_input, capture.TIME_INPUTS)
        place = sampler_checks.check_model(model, schedule, time_input)
        _checks.choice("backend", backend, BACKENDS)
        self.device = sampler_checks.sampler_device(device, place, precision, backend)
        self.precision = precision
        asked_precision = tiers.asked(precision, tolerance, expected_samples)
        self.model = model
        self.schedule = schedule
        self.shape = sampler_checks.sample_shape(model, shape)
        self.conditions = conditions_of(model, n_classes, null_class, context_shape, null_context)
        if backend == "torch":  # capture calls it, and says more
            self.conditions.call.check(model)
        self.n_classes = self.conditions.n_classes
        self.time_input = time_input
        self.standardiser = sampler_checks.check_standardiser(standardiser, self.shape)
        guided = guidance_scale, guidance_weight, guidance_interval, guidance_rescale
        self.guidance = guidance_of(*guided, elements=prod(self.shape))
        if self.guidance is not None and not self.conditions.has_null:
            name, given = one_of(guidance_scale, guidance_weight)
            accepted = "None, for there is no null class (null_class), or without classes no null_context"
            raise _checks.bad_value(name, given, accepted)
        # an index takes the timestep nearest to a level between two, a continuous time its own
        if time_input in capture.CONTINUOUS_TIME and "fractional_time" in solvers.options_of(solver):
            solver_options = {"fractional_time": True} | solver_options
        common = {"steps": steps, "prediction_type": prediction_type, "clip": clip}
        table = solvers.solve(solver, schedule, **common, **solver_options)
        if dynamic_threshold is not None:
            table = sampler_checks.with_threshold(table, dynamic_threshold, clip)
        if self.guidance is not None:
            table = self.guidance.on(table)
        self.table = table
        self._times = capture.network_time(table.table_timesteps, time_input, schedule)
        self.backend = backend
        self.plan: plan.Plan | None = None
        self._notes: list[str] = []
        if backend != "torch":
            self._capture(place, required=backend == "native" or precision == "table")
        if self.plan is None:
            sampler_checks.check_place(place, self.device, "".join(f" ({note})" for note in self._notes[:1]))
        self.tier = tiers.Tier(precision)
        if self.plan is None:
            self.tier = tiers.without_plan(precision, self.device is _tensors.CPU)
        elif self.device is _tensors.CPU:
            self.tier = tiers.tier_of(self.plan, asked_precision, resolve_threads(None))
        self._drawing = self._make_drawing()
        self._weights = Weights(model)
        self._fingerprint = self._weights.fingerprint()

    def _capture(self, place: torch.device, required: bool) -> None:
        call, null = self.conditions.call, self.conditions.null_context
        times = self.table.table_timesteps.tolist()
        how = call.n_classes, self.schedule, self.time_input, call.context
        try:
            with torch.autocast("cpu", enabled=False):  # a caller's is for training; samples are float32
                program = capture.capture(sampler_checks.on_cpu(self.model, place), self.shape, times, *how)
            program = replace(program, null_context=None if null is None else null.numpy())
            self.plan = plan.build_plan(self.table, program, branches=2 if self.guidance is not None else 1)
        except capture.CaptureError as reason:
            no_null = self.guidance is not None and "null_class=False" in reason.reason
            if required or no_null or isinstance(reason, capture.CallError):
                raise
            self._notes = [
                f"The module runs in torch, with the fused step, because: {reason.problem}",
                f"To have it fused: {reason.advice}",
            ]
            return
        self._notes = list(program.explain)

    def _make_drawing(self) -> Drawing:
        chain: CpuChain | CudaChain | ModuleChain
        if self.plan is None:
            twin = self.backend == "torch" and self.device is _tensors.CPU
            times, guided = self._times.to(self.device), self.guidance is not None
            network = Network(self.model, self.conditions, times, self.shape, guided)
            chain = ModuleChain(network, self.table, reverse_step_ref if twin else ops.reverse_step)
        elif self.device is _tensors.CPU:
            chain = CpuChain(self.plan, self.tier.table, self.tier.low_rows)
        else:
            chain = CudaChain(self.plan, self.precision, self.device)
        return Drawing(chain, self.device, self.shape, len(self.table), self.standardiser)

    # ---- drawing

    def sample(
        self,
        n: int,
        *,
        seed: int | torch.Generator | Tensor = 0,
        start: int = 0,
        labels: int | Tensor | np.ndarray | None = None,
        context: Tensor | dict[str, Tensor] | None = None,
        guidance_scale: Tensor | None = None,
        guidance_weight: Tensor | None = None,
        fixed_mask: Tensor | None = None,
        fixed_values: Tensor | None = None,
        fixed_clean: bool = False,
        x_T: Tensor | None = None,
        noise: Tensor | None = None,
        return_trajectory: bool = False,
        out: Tensor | np.ndarray | None = None,
        progress: bool = False,
        threads: int | None = None,
    ) -> Tensor:
        """Samples start .. start + n - 1 of the seed's stream: (n, *shape) float32, on the sampler's device.

        seed: int in [0, 2^64), or a torch.Generator from which one is drawn. labels: an int or (n,) integers
        in [0, n_classes], n_classes being the null class, which None means too. context: (n, *context_shape)
        float32, or one row for all samples; a dict of them where the inputs have names. guidance_scale or
        guidance_weight: (n,), each sample's own, in place of that which the sampler was made with (not 1).
        fixed_mask (*shape) bool, fixed_values (n, *shape) or (*shape): coordinates that are given, in the
        units of the samples; before each evaluation they are set to their values with the noise of that level
        (the replacement method, Song et al. 2021, appendix I.2), with fixed_clean without noise (as planners
        and policies are trained, Janner et al. 2022), and in the end to the values themselves. Their noise
        is always the stream's.
        x_T (n, *shape) and noise
        (rows, n, *shape), float32, replace the stream's. return_trajectory: (rows + 1, n, *shape), from x_T
        to the samples. out: a contiguous float32 tensor or array to write to. threads: at most so
        many of the fused chain; default DIFFUSION_FAST_THREADS, else torch.get_num_threads().

        A sampler on CUDA works on torch's current stream of its device, waits once, to look for NaN, and
        returns a tensor there. What is given may be on the CPU or on that device. out= with memory on the
        CPU is for more samples than fit there: they are copied out in chunks while the next are drawn. A call
        of the fused chain can be captured in a CUDA graph with no tensor given but out, on the device, and
        seed: an int64 tensor of one element there, which a replay reads anew.

        Samples that hold NaN or infinity are counted and named in a RuntimeWarning. Ctrl-C stops the call.
        Raises TypeError or ValueError naming the argument before anything is written, RuntimeError when the
        model's weights, attributes or hooks have changed since the sampler was made.
        """
        call = self._prepare(
            n,
            seed=seed,
            start=start,
            labels=labels,
            context=context,
            guidance_scale=guidance_scale,
            guidance_weight=guidance_weight,
            fixed_mask=fixed_mask,
            fixed_values=fixed_values,
            fixed_clean=fixed_clean,
            x_T=x_T,
            noise=noise,
            return_trajectory=return_trajectory,
            progress=progress,
            threads=threads,
        )
        target = self._drawing.target(call, out)
        call.seed = self._seed(seed)  # drawn last: a refused call leaves the generator as it was
        self._drawing.draw(call, target, progress)
        return target

    def stream(
        self,
        n: int,
        chunk_size: int = 1 << 18,
        *,
        seed: int | torch.Generator | Tensor = 0,
        start: int = 0,
        labels: int | Tensor | np.ndarray | None = None,
        context: Tensor | dict[str, Tensor] | None = None,
        guidance_scale: Tensor | None = None,
        guidance_weight: Tensor | None = None,
        fixed_mask: Tensor | None = None,
        fixed_values: Tensor | None = None,
        fixed_clean: bool = False,
        return_trajectory: bool = False,
        progress: bool = False,
        threads: int | None = None,
        **unknown: Any,
    ) -> Iterator[Tensor]:
        """The samples of `sample(n, ...)` in chunks of at most chunk_size, in bounded memory.

        The chunks are on the CPU: those of a sampler on CUDA are copied out through pinned memory while the
        next ones are drawn. `sample` with start= and chunk by chunk leaves them on the device.
        The arguments are checked and copied at the call, before the first chunk is asked for. out, x_T and
        noise, which belong to whole calls, are not accepted. Raises what `sample` does, and TypeError or
        ValueError for another chunk_size.
        """
        for name in unknown:
            if name in ("out", "x_T", "noise"):
                raise _checks.bad_value(name, unknown[name], "nothing here: call sample for each chunk")
            _checks.choice("options of stream", name, list(inspect.signature(self.stream).parameters)[1:-1])
        call = self._prepare(
            n,
            seed=seed,
            start=start,
            labels=labels,
            context=context,
            guidance_scale=guidance_scale,
            guidance_weight=guidance_weight,
            fixed_mask=fixed_mask,
            fixed_values=fixed_values,
            fixed_clean=fixed_clean,
            x_T=None,
            noise=None,
            return_trajectory=return_trajectory,
            progress=progress,
            threads=threads,
        )
        size = _checks.integer("chunk_size", chunk_size, 1)
        call.seed = self._seed(seed)
        return self._drawing.chunks(call.copied(), size, progress, self._check_weights)

    def explain(self) -> str:
        """What was folded into tables, what the fused kernel runs, what is left to torch, and why."""
        first, last = float(self._times[0]), float(self._times[-1])
        head = [
            f"{self.table!r} on {type(self.model).__name__}, shape {self.shape}",
            f"backend: {self.backend!r}, {self._drawing.chain.name}",
            f"the model's t: {self.time_input!r}, from {first:g} to {last:g}",
        ]
        if self.plan is not None:
            head.append(
                f"plan {self.plan.hash[:16]}: {self.plan.flops_per_sample_step} flop a sample and step"
            )
        if self.guidance is not None:
            head.append(f"guidance: {self.guidance.explain(len(self.table))}")
        return "\n".join(head + [f"  {line}" for line in (*self.tier.notes, *self._notes)])

    def __setattr__(self, key: str, value: Any) -> None:
        if "_fingerprint" in vars(self):  # the last that __init__ sets
            raise AttributeError(f"{key}: a Sampler is immutable")
        super().__setattr__(key, value)

    def __repr__(self) -> str:
        return f"Sampler({type(self.model).__name__}, {self.table!r}, backend={self.backend!r})"

    # ---- one call

    def _prepare(
        self,
        n: Any,
        *,
        seed: Any,
        start: Any,
        labels: Any,
        context: Any,
        guidance_scale: Any,
        guidance_weight: Any,
        fixed_mask: Any,
        fixed_values: Any,
        fixed_clean: Any,
        x_T: Any,
        noise: Any,
        return_trajectory: Any,
        progress: Any,
        threads: Any,
    ) -> Call:
        """The arguments of a call, checked; its seed is drawn later."""
        count, first = _checks.sample_range(n, start)
        if type(seed) is int or not isinstance(seed, torch.Generator):
            self._seed(seed)
        _checks.flag("progress", progress)
        self._check_weights()
        return Call(
            count,
            first,
            seed=0,
            threads=resolve_threads(threads),
            labels=self.conditions.labels(labels, count, guided=self.guidance is not None),
            context=self.conditions.context(context, count, self.device),
            guidance=self._scales(guidance_scale, guidance_weight, count),
            fixed=fixed_of(fixed_mask, fixed_values, fixed_clean, count, self.shape, self.device),
            x_T=None if x_T is None else _tensors.finite_near("x_T", x_T, (count, *self.shape), self.device),
            noise=None
            if noise is None
            else _tensors.finite_near("noise", noise, (len(self.table), count, *self.shape), self.device),
            trajectory=_checks.flag("return_trajectory", return_trajectory),
        )

    def _scales(self, scale: Any, weight: Any, n: int) -> Tensor | None:
        given = scales_of(self.guidance, scale, weight, n, self.device)
        if given is not None and self.tier.table is not None:
            accepted = "None: the table holds the network guided by the Sampler's own scale"
            if self.precision == "auto":
                accepted += "; with precision='float32' of the Sampler, in place of 'auto', a scale for each"
            raise _checks.bad_value(*one_of(scale, weight), accepted)
        return given

    def _seed(self, seed: Any) -> int | Tensor:
        if type(seed) is not int and isinstance(seed, Tensor) and isinstance(self._drawing.chain, CudaChain):
            return cuda.number("seed", seed, self.device)
        return _checks.seed("seed", seed)

    # ---- checks at call time

    def _check_weights(self) -> None:
        # The kernel runs what was captured; a part switched to train mode since then matters to torch alone.
        sampler_checks.check_eval_mode([self.model] if self.plan is not None else self.model.modules())
        self._check_fingerprint()

    def _check_fingerprint(self) -> None:
        if self.plan is not None and self._weights.fingerprint() != self._fingerprint:
            raise RuntimeError(
                "model: its weights have changed, or an attribute or hook of a module, since this Sampler "
                "was made from them; make a new Sampler"
            )

    # ---- pickling: the chain is made again from the plan

    def __getstate__(self) -> dict[str, Any]:
        self._check_fingerprint()  # the copy takes its own, and would not notice
        return {k: v for k, v in vars(self).items() if k not in ("_drawing", "_weights", "_fingerprint")}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state)
        found = cuda.device_of("device", self.device)
        self.device = _tensors.CPU if found.type == "cpu" else found
        self._drawing = self._make_drawing()
        self._weights = Weights(self.model)
        self._fingerprint = self._weights.fingerprint()


OF_SOLVERS = {option for name in solvers.SOLVERS for option in solvers.options_of(name)}
# What Sampler takes by name, the options of every solver among it.
OPTIONS = inspect.signature(Sampler).parameters.keys() - {"model", "schedule", "solver_options"} | OF_SOLVERS
