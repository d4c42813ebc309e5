"""From a torch module to the program of one network evaluation that the fused kernels run.

`capture` traces the module with torch.export, lets torch compute once whatever depends on the timestep and
the class alone, and keeps the operations that depend on x. Each capture is checked against the module itself:
other batch sizes, rows in another order, mixed timesteps, a second call. What cannot be captured raises
CaptureError with the operation, the reason and the module's own line.
"""

from __future__ import annotations

import contextlib
import inspect
import io
import math
import traceback
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx, nn

from diffusion_fast import _checks, reference
from diffusion_fast._tensors import CPU
from diffusion_fast.capture.graph import OWN_ROW, SMALLER, CallError, CaptureError, op_name, where
from diffusion_fast.capture.lowering import Lowering
from diffusion_fast.capture.program import Program
from diffusion_fast.capture.worlds import Worlds
from diffusion_fast.module_call import ModuleCall
from diffusion_fast.plan import TileProgram
from diffusion_fast.plan_validation import MAX_CLASSES, MAX_DIM, MAX_TABLES, MAX_WIDTH
from diffusion_fast.schedules import NoiseSchedule
from diffusion_fast.sigma_schedules import FlowSchedule, SigmaSchedule
from diffusion_fast.solvers.spacing import sigma_of_time

__all__ = ["TIME_INPUTS", "CallError", "CaptureError", "capture", "network_time", "verify"]

TIME_INPUTS = ("index", "index1", "unit", "sigma", "log_sigma/4")
CONTINUOUS_TIME = ("unit", "sigma", "log_sigma/4")
# Far above float32's rounding in any net that trains, far below the effect of a wrong graph.
VERIFY_TOLERANCE = 1e-4


def network_time(
    times: Any, time_input: str, schedule: NoiseSchedule | SigmaSchedule | FlowSchedule
) -> Tensor:
    """What the network is given at the times of a table: a tensor of their shape.

    times: of a NoiseSchedule 0-based indices into betas, of a SigmaSchedule sigmas, of a FlowSchedule its
    times. "index": the position in the schedule's own list and "index1": one more, int64. "unit":
    (t + 1) / n_steps, or the time of a flow itself. "sigma": the noise level of Karras et al. 2022,
    sqrt((1 - abar) / abar), or t / (1 - t) of a flow, and "log_sigma/4": log(sigma) / 4, their c_noise;
    float32, rounded once. All but the first two take indices with a fraction as well, log(sigma)
    interpolated.

    Raises ValueError for an unknown time_input, a time outside of the schedule or one that has no index.
    """
    _checks.choice("time_input", time_input, TIME_INPUTS)
    if isinstance(schedule, NoiseSchedule):
        return _time_of_index(times, time_input, schedule)
    t = torch.tensor(np.asarray(times), dtype=torch.float64, device=CPU)
    if time_input in ("index", "index1"):
        position = {float(value): i for i, value in enumerate(schedule._values)}
        missing = [value for value in t.flatten().tolist() if value not in position]
        if missing:
            accepted = f"a continuous one, for the solver visits {missing[0]:g}, between the levels listed"
            raise _checks.bad_value("time_input", time_input, accepted)
        index = torch.tensor([position[value] for value in t.flatten().tolist()], device=CPU).reshape(t.shape)
        return index if time_input == "index" else index + 1
    if isinstance(schedule, FlowSchedule):
        sigma = t / (1 - t)
        if time_input == "unit":
            return t.float()
    elif time_input == "unit":
        raise _checks.bad_value("time_input", time_input, "'sigma', 'log_sigma/4', 'index' or 'index1'")
    else:
        sigma = t
    return _noise_level(sigma, time_input)


def _time_of_index(t_index: Any, time_input: str, schedule: NoiseSchedule) -> Tensor:
    t = t_index if isinstance(t_index, Tensor) else torch.tensor(t_index, dtype=torch.float64, device=CPU)
    whole = not bool((t != t.round()).any())
    out_of_range = bool(((t < 0) | (t > schedule.n_steps - 1)).any())
    if out_of_range or (time_input in ("index", "index1") and not whole):
        raise _checks.bad_value("timesteps", t_index, f"integers from 0 to {schedule.n_steps - 1}")
    if time_input in ("index", "index1"):
        return t.to(torch.int64) + (time_input == "index1")
    if time_input == "unit":
        return ((t + 1).double() / schedule.n_steps).float()
    if not whole:
        return _noise_level(
            torch.as_tensor(sigma_of_time(schedule, t.double().numpy()), device=CPU), time_input
        )
    abar = schedule.alphas_cumprod.double()[t.to(torch.int64)]
    return _noise_level(torch.sqrt((1 - abar) / abar), time_input)


def _noise_level(sigma: Tensor, time_input: str) -> Tensor:
    if not bool(torch.isfinite(sigma).all()):
        raise _checks.bad_value(
            "time_input", time_input, "one that is finite at every timestep of the schedule"
        )
    return (sigma if time_input == "sigma" else torch.log(sigma) / 4).float()


def capture(
    module: nn.Module,
    shape: Sequence[int],
    timesteps: Iterable[float],
    n_classes: int,
    schedule: NoiseSchedule | SigmaSchedule | FlowSchedule,
    time_input: str = "index",
    context: Sequence[tuple[str, tuple[int, ...]]] = (),
) -> TileProgram:
    """The tile program of module(x, t), or of module(x, t, y) with n_classes > 0.

    x is (B, *shape) float32, t (B,) as network_time gives it, y (B,) int64 below n_classes (count the null
    class in, where there is one). timesteps: the distinct times of the table; step table i belongs to the
    i-th. context: the inputs that follow, float32, as in ModuleCall.

    Raises TypeError or ValueError naming the argument for a module in train mode or with NaN weights, and
    CaptureError (a ValueError) for what the kernels cannot run; backend="auto" then takes the torch path.
    """
    shape, n_classes = _check_arguments(module, shape, n_classes)
    call = ModuleCall(n_classes, tuple(context))
    if call.n_context > MAX_WIDTH:
        reason = f"got a context of {call.n_context} elements, the kernels take up to {MAX_WIDTH}"
        raise CaptureError(reason, advice=SMALLER)
    times = network_time(list(timesteps), time_input, schedule)
    if not 1 <= len(times) <= MAX_TABLES:
        raise _checks.bad_value("timesteps", len(times), f"1 to {MAX_TABLES} of them")
    device = next((tensor.device for _, tensor in _tensors(module)), CPU)
    times = times.to(device)
    # The caller's random state stays as it was, whatever the module draws.
    with torch.no_grad(), torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        program = _lower(module, call, shape, times)
        verify(module, call, program, shape, times)
    return program


def verify(
    module: nn.Module, call: ModuleCall, program: TileProgram, shape: Sequence[int], times: Tensor
) -> None:
    """Compares a program with its module where a wrong capture shows; raises CaptureError that names the
    place.

    times: the network times, (n_tables,), on the module's device. Every row has its own timestep and class.
    """
    generator = torch.Generator(CPU).manual_seed(0)
    float32: Any = {"dtype": torch.float32, "device": CPU}

    def random(high: int, n: int) -> Tensor:
        return torch.randint(0, max(high, 1), (n,), generator=generator, device=CPU)

    for n in (1, 3, 257):
        x = torch.randn(n, *shape, generator=generator, **float32)
        context = torch.randn(n, call.n_context, generator=generator, **float32)
        table, labels = random(program.n_tables, n), random(program.n_classes, n)
        order = torch.randperm(n, generator=generator, device=CPU)
        expected = reference.net(program, x.flatten(1), table, labels, context)
        inputs = x, times[table.to(times.device)], labels, context
        first, again = (_called(module, call, *inputs) for _ in range(2))
        moved = _called(module, call, *(part[order.to(part.device)] for part in inputs))
        if not bool(torch.isfinite(first).all()):
            advice = "make it finite there, at every step and class"
            raise CaptureError("it returns NaN or infinity for normally distributed x", advice=advice)
        if not _close(again, first):
            reason = "a second call with the same arguments gives another result: it has a state of its own"
            raise CaptureError(reason, advice="keep nothing from one call for the next")
        if not _close(moved, first[order]):
            reason = "rows in another order give other results: the samples of a batch influence each other"
            raise CaptureError(reason, advice=OWN_ROW)
        if not _close(expected, first):
            raise CaptureError(
                f"the traced operations differ from the module at a batch of {n}: it depends on Python "
                "values, on the batch size, or on other rows' t",
                advice=OWN_ROW,
            )


def _tensors(module: nn.Module) -> list[tuple[str, Tensor]]:
    return [*module.named_parameters(), *module.named_buffers()]


def _check_arguments(module: Any, shape: Any, n_classes: Any) -> tuple[tuple[int, ...], int]:
    if not isinstance(module, nn.Module):
        raise _checks.bad_type("model", module, "a torch.nn.Module")
    if any(part.training for part in module.modules()):
        raise ValueError(
            f"model: got {type(module).__name__} in train mode; accepted: eval mode, call model.eval()"
        )
    for name, tensor in _tensors(module):
        if tensor.is_floating_point():
            _checks.finite(f"model.{name}", tensor.detach())
    for name, parameter in module.named_parameters():
        if parameter.dtype != torch.float32:
            raise CaptureError(f"got {parameter.dtype} weights in {name}, the kernels need torch.float32")
    sides = tuple(_checks.integer("shape", side, 1) for side in shape)
    if not 1 <= math.prod(sides) <= MAX_DIM or not sides:
        reason = f"got samples of {math.prod(sides)} elements, the kernels take 1 to {MAX_DIM}"
        raise CaptureError(reason, advice=SMALLER)
    return sides, _checks.integer("n_classes", n_classes, 0, MAX_CLASSES)


def _lower(module: nn.Module, call: ModuleCall, shape: tuple[int, ...], times: Tensor) -> TileProgram:
    device = times.device
    # Two rows: export takes a batch of one for a constant.
    x = torch.zeros(2, *shape, dtype=torch.float32, device=device)
    labels = torch.zeros(2, dtype=torch.int64, device=device)
    context = torch.zeros(2, call.n_context, dtype=torch.float32, device=device)
    args, kwargs = call.arguments(x, times[:1].repeat(2), labels, context)
    exported = _export(module, args, kwargs)
    worlds = Worlds(times, call.n_classes)
    lowering = Lowering(math.prod(shape), worlds, call.n_context)
    held = {**exported.state_dict, **exported.constants}
    inputs = iter("xty" if call.n_classes else "xt")
    for node, spec in zip(exported.graph.nodes, exported.graph_signature.input_specs, strict=False):
        if spec.target is not None:
            lowering.placeholder(node, f"the module's {spec.target}", "", held[spec.target])
        else:
            kind = next(inputs, "c")
            lowering.placeholder(node, f"its argument {node.name}", kind, None)
    for node in exported.graph.nodes:
        if node.op == "call_function":
            lowering.call(node)
        elif node.op == "output":
            program = Program(lowering.output(node.args[0][0]), lowering.dim, call.n_context)
        elif node.op != "placeholder":
            part = getattr(exported.graph_module, str(node.target), None)
            nodes = part.graph.nodes if isinstance(part, fx.GraphModule) else ()
            inside = next((one for one in nodes if one.meta.get("stack_trace")), node)
            raise CaptureError(
                "it runs a part of itself under a mode or a branch of torch's, which cannot be followed",
                op_name(next(iter(node.users), node)),
                where(inside),
                "take torch.autocast, torch.no_grad or torch.cond out of forward",
            )
    once = f"{worlds.evaluated} operations that do not read x: run once, for all steps together"
    explain = [once, *program.explain]
    for i in range(1, program.n_prologue + 1):
        explain[i] += ", once for a chain"
    sizes = (len(times), call.n_classes, tuple(explain), call.n_context, program.n_prologue)
    return TileProgram(lowering.dim, tuple(program.ops), program.out_value, *sizes)


class _WithNames(nn.Module):
    """A module that takes **kwargs, as one that takes two tuples."""

    def __init__(self, module: nn.Module, names: list[str]) -> None:
        super().__init__()
        self.module, self.names = module, names
        self.training = module.training

    def forward(self, args: tuple[Tensor, ...], named: tuple[Tensor, ...]) -> Any:
        return self.module(*args, **dict(zip(self.names, named, strict=True)))


def _export(
    module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Tensor]
) -> torch.export.ExportedProgram:
    """The module's graph with a dynamic batch, not decomposed, after one plain call that shows what it
    returns."""
    import torch.export  # seconds at its first use, so not before somebody captures

    given = {**{str(i): tensor for i, tensor in enumerate(args)}, **kwargs}
    try:
        out = module(*args, **kwargs)
    except Exception as error:
        shapes = ", ".join(f"{tuple(tensor.shape)} {tensor.dtype}" for tensor in given.values())
        names = "".join(f", {name}=" for name in kwargs)
        reason = f"it raised {type(error).__name__} when called with ({shapes}{names}): {error}"
        raise CallError(reason, where=_raised_at(error)) from error
    if not isinstance(out, Tensor) or out.shape != args[0].shape or out.dtype != args[0].dtype:
        reason = f"it returned {_checks.describe(out)} for x of shape {tuple(args[0].shape)}, {args[0].dtype}"
        raise CallError(reason, advice="return one tensor of x's shape and dtype")
    parameters = inspect.signature(module.forward).parameters.values()
    if kwargs and any(p.kind is p.VAR_KEYWORD for p in parameters):  # for which export cannot name the sizes
        module, args, kwargs = _WithNames(module, list(kwargs)), (args, tuple(kwargs.values())), {}
    batch, shapes_of = torch.export.Dim("batch"), torch.export.ShapesCollection()
    for tensor in given.values():
        shapes_of[tensor] = {0: batch}
    try:
        # A failed export prints the graph so far; the error says enough.
        with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            shapes = shapes_of.dynamic_shapes(module, args, kwargs)
            return torch.export.export(module, args, kwargs, dynamic_shapes=shapes, strict=False)
    except Exception as error:
        line, advice = str(error).strip().partition("\n")[0], ""
        if line.startswith("Constraints violated"):
            line = "it fixes the batch size, by len(x) in place of x.shape[0] or by a branch on it"
            advice = "read it as x.shape[0], and for shapes alone"
        if "data-dependent" in line:
            line = "it decides by the values of x, t or y (an if, while, bool() or int() of a tensor)"
            advice = "write the choice as arithmetic on the whole batch: relu, clamp, a gate"
        if "fake tensor" in line:
            line = "it differentiates inside forward (torch.autograd.grad)"
            advice = "write the derivative as operations, as df.models.EnergyScore does for an energy"
        reason = f"torch.export cannot trace it: {line}"
        raise CaptureError(reason, where=_raised_at(error), advice=advice) from error


def _raised_at(error: BaseException) -> str:
    """The innermost line outside of torch and of this module that an error came through."""
    library = str(Path(torch.__file__).parent)
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if not frame.filename.startswith((library, __file__, "<")):
            return f"{Path(frame.filename).name}:{frame.lineno}: {frame.line}"
    return ""


def _called(
    module: nn.Module, call: ModuleCall, x: Tensor, t: Tensor, labels: Tensor, context: Tensor
) -> Tensor:
    try:
        on_device = (part.to(t.device) for part in (labels, context))
        return call(module, x.to(t.device), t, *on_device).flatten(1).cpu()
    except Exception as error:
        reason = f"it raised {type(error).__name__} for a batch of {len(x)}: {error}"
        raise CaptureError(reason, where=_raised_at(error)) from error


def _close(value: Tensor, expected: Tensor) -> bool:
    """Within the tolerance of the values' rms; the constant covers outputs that cancel to about zero."""
    scale = expected.double().square().mean().sqrt()
    return value.shape == expected.shape and bool(
        (value - expected).abs().max() <= VERIFY_TOLERANCE * scale + 1e-7
    )
