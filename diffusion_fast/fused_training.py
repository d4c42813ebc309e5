"""Training of small multilayer perceptrons in C++: forward, backward and Adam of many batches in one call.

With batches of 64 to 1024 rows and layers of 16 to 512 units, a training step in torch is mostly the overhead
of a hundred small operations. Here a step is a few passes over memory that stays in the processor's caches.
It computes what the torch loop computes, in float32, with its own order of sums: the weights agree to
rounding, and are the same to the last bit for every number of threads.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from diffusion_fast import _checks, _cpu, _tensors
from diffusion_fast.threads import resolve
from diffusion_fast.tile_ops import FUNCTIONS

MAX_BATCH = 1 << 24
MAX_WEIGHTS = 1 << 28
OPTIMIZERS = ("adam", "adamw")
_PLAIN: dict[type[nn.Module], str] = {
    nn.Identity: "identity",
    nn.ReLU: "relu",
    nn.Tanh: "tanh",
    nn.Sigmoid: "sigmoid",
    nn.SiLU: "silu",
    nn.Mish: "mish",
}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


class NotFusable(ValueError):
    """The network is not one that the C++ core trains; the message says why."""


@dataclass(frozen=True)
class Layer:
    linear: nn.Linear
    function: str = "identity"
    param: float = 0.0


@dataclass(frozen=True)
class Condition:
    """Columns that a row of the batch takes from row i of a table, (rows, width) float32, through `layers`.

    A table that is a Parameter is trained, like an embedding; another is fixed.
    """

    table: Tensor
    layers: tuple[Layer, ...] = ()

    @property
    def width(self) -> int:
        return self.layers[-1].linear.out_features if self.layers else self.table.shape[1]


class FusedTrainer:
    """Trains concat[x, embeddings] -> network by Adam on the mean squared error, in place.

    Args:
        network: nn.Sequential of nn.Linear and activations (ReLU, LeakyReLU, ELU, Tanh, Sigmoid, SiLU, GELU,
            Softplus, Mish, Identity), float32 on the CPU, every weight trainable.
        embeddings: nn.Embedding, whose rows of each batch's indices stand beside x, in this order, as the
            last columns of the network's input. They are trained too, as torch trains them: every row of the
            table by every step.
        optimizer, weight_decay: "adam" (weight decay added to the gradient) or "adamw" (decoupled), with
            torch's betas (0.9, 0.999) and eps 1e-8.
        max_norm: scales the gradient of all weights together down to this norm
            (torch.nn.utils.clip_grad_norm_), or None.
        ema: decay in (0, 1) of an exponential moving average of the weights, or None. The decay of step k is
            at most (1 + k) / (10 + k).

    The moments and the number of steps last as long as the trainer. Weights that are changed from outside
    between two runs are not seen. Raises NotFusable, a ValueError, for a network outside of what is listed,
    TypeError or ValueError for the other arguments.

    >>> net = nn.Sequential(nn.Linear(2, 16), nn.ReLU(), nn.Linear(16, 1))
    >>> trainer = FusedTrainer(net)
    >>> losses = trainer.run(torch.randn(640, 2), torch.zeros(640, 1), batch_size=64, lr=1e-3)
    >>> losses.shape
    torch.Size([10])
    """

    def __init__(
        self,
        network: nn.Sequential,
        *,
        embeddings: Sequence[nn.Embedding] = (),
        optimizer: str = "adam",
        weight_decay: float = 0.0,
        max_norm: float | None = None,
        ema: float | None = None,
    ) -> None:
        conditions = [Condition(embedding_table(e)) for e in embeddings]
        self._core = Core(
            layers_of(network),
            conditions,
            optimizer=optimizer,
            weight_decay=weight_decay,
            max_norm=max_norm,
            ema=ema,
        )

    def run(
        self,
        inputs: Tensor,
        targets: Tensor,
        *,
        batch_size: int,
        lr: float | np.ndarray | Tensor,
        indices: Sequence[Tensor] = (),
        threads: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Tensor:
        """One step on each batch of consecutive rows -> the losses before each step, (steps,) float32.

        inputs (n, d) and targets (n, n_out) float32; indices: of each embedding (n,) int64. The last batch
        may be a partial one. lr: one rate, or (steps,) rates. threads: an upper limit, by default torch's
        number. progress(steps done) is called about every 50 ms. After Ctrl-C the network has the weights of
        the steps that were done.
        """
        try:
            return self._core.run(
                inputs,
                targets,
                batch_size=batch_size,
                lr=lr,
                indices=indices,
                threads=threads,
                progress=progress,
            )
        finally:
            self._core.store()

    def average(self) -> dict[nn.Parameter, Tensor]:
        """The averaged weights, by the parameter that they are of."""
        return dict(zip(self._core.parameters, self._core.average(), strict=True))


class Core:
    """The C++ trainer of a trunk of layers with conditions, and the torch parameters that it reads and
    writes. Arguments and errors as FusedTrainer's; isa: an instruction set, by default the best.
    """

    def __init__(
        self,
        trunk: Sequence[Layer],
        conditions: Sequence[Condition],
        *,
        optimizer: str = "adam",
        weight_decay: float = 0.0,
        max_norm: float | None = None,
        ema: float | None = None,
        isa: str = "",
    ) -> None:
        decoupled = _checks.choice("optimizer", optimizer, OPTIMIZERS) == "adamw"
        decay = _checks.real("weight_decay", weight_decay, 0.0)
        norm = 0.0 if max_norm is None else _checks.real("max_norm", max_norm, 0.0, open_low=True)
        average = 0.0 if ema is None else _checks.real("ema", ema, 0.0, 1.0, open_low=True)
        if average == 1.0:
            raise _checks.bad_value("ema", ema, "a decay in (0, 1)")
        self._has_average = ema is not None
        self._tables = [len(c.table) for c in conditions]
        self._n_in = trunk[0].linear.in_features - sum(c.width for c in conditions)
        self._n_out = trunk[-1].linear.out_features
        if self._n_in < 1:
            raise NotFusable(
                f"network: got a first layer of {trunk[0].linear.in_features} inputs; accepted: more than "
                f"the {sum(c.width for c in conditions)} of the embeddings"
            )
        # What the C++ trainer calls its parameters, in its order: torch tensors, and which columns of them.
        self._parts: list[tuple[Tensor, slice]] = []
        chains = [*self._conditions(trunk[0].linear, conditions), (self._layers(trunk, self._n_in), 0, False)]
        self.parameters = [p for p in dict.fromkeys(t for t, _ in self._parts) if isinstance(p, nn.Parameter)]
        _check_parameters(self.parameters, self._parts)
        self._trainer: Any = _cpu.Trainer(chains, decoupled, decay, norm, average, isa)
        self._lock = threading.Lock()
        tensors = [tensor.detach()[..., columns].contiguous() for tensor, columns in self._parts]
        self._trainer.load([tensor.data_ptr() for tensor in tensors])

    def _layers(self, layers: Sequence[Layer], n_in: int | None = None) -> list[Any]:
        """What C++ is told of layers, the first of which may see its first n_in columns only."""
        specs = []
        for layer in layers:
            linear, width = layer.linear, n_in or layer.linear.in_features
            self._parts.append((linear.weight, slice(0, width)))
            if linear.bias is not None:
                self._parts.append((linear.bias, slice(None)))
            code = FUNCTIONS.index(layer.function)
            specs.append((width, linear.out_features, linear.bias is not None, code, layer.param))
            n_in = None
        return specs

    def _conditions(self, first: nn.Linear, conditions: Sequence[Condition]) -> list[Any]:
        """Each ends in the columns of the trunk's first layer that it feeds."""
        chains, column = [], self._n_in
        for c in conditions:
            specs = self._layers(c.layers)
            self._parts += [(first.weight, slice(column, column + c.width)), (c.table, slice(None))]
            specs.append((c.width, first.out_features, False, FUNCTIONS.index("identity"), 0.0))
            chains.append((specs, len(c.table), isinstance(c.table, nn.Parameter)))
            column += c.width
        return chains

    def run(
        self,
        inputs: Tensor,
        targets: Tensor,
        *,
        batch_size: int,
        lr: float | np.ndarray | Tensor,
        indices: Sequence[Tensor] = (),
        threads: int | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Tensor:
        """FusedTrainer.run, but the torch parameters are left as they are until `store`."""
        batch = _checks.integer("batch_size", batch_size, 1, MAX_BATCH)
        if not isinstance(inputs, Tensor) or inputs.ndim != 2:
            raise _checks.bad_value("inputs", inputs, f"an (n, {self._n_in}) float32 tensor")
        n = len(inputs)
        x = _tensors.given("inputs", inputs, torch.float32, (n, self._n_in))
        y = _tensors.given("targets", targets, torch.float32, (n, self._n_out))
        if len(indices) != len(self._tables):
            raise _checks.bad_value(
                "indices", indices, f"one tensor for each of {len(self._tables)} embeddings"
            )
        columns = [_indices(f"indices[{i}]", indices[i], n, rows) for i, rows in enumerate(self._tables)]
        steps = -(-n // batch)
        rates = _rates(lr, steps)
        losses = _tensors.allocate((steps,), name="inputs")
        if n == 0:
            return losses
        with self._lock:
            self._trainer.run(
                x.data_ptr(),
                y.data_ptr(),
                [index.data_ptr() for index in columns],
                n,
                batch,
                rates.ctypes.data,
                losses.data_ptr(),
                resolve(threads),
                progress,
            )
        return losses

    def store(self) -> None:
        """Writes the weights to the torch parameters."""
        self._store(self.parameters, average=False)

    def average(self) -> list[Tensor]:
        """The averaged weights, in the order of `parameters`."""
        if not self._has_average:
            raise ValueError("average: got a trainer without ema; accepted: one with a decay")
        found = [torch.empty_like(p) for p in self.parameters]
        self._store(found, average=True)
        return found

    def _store(self, targets: Sequence[Tensor], *, average: bool) -> None:
        of: dict[Tensor, Tensor] = {}
        of.update(zip(self.parameters, targets, strict=True))
        # A fixed table stands for itself and is left alone.
        views = [of.get(t, t).detach()[..., columns] for t, columns in self._parts]
        packed = [view if view.is_contiguous() else _tensors.allocate(view.shape) for view in views]
        with self._lock:
            self._trainer.store([tensor.data_ptr() for tensor in packed], average)
        for view, tensor in zip(views, packed, strict=True):
            view.copy_(tensor)


def layers_of(network: Any, kind: type[nn.Sequential] = nn.Sequential) -> list[Layer]:
    """The linear layers of a Sequential, each with the activation after it. Raises NotFusable."""
    if not is_plain(network, kind) or not len(network):
        raise not_fusable("network", network, "a torch.nn.Sequential of Linear and activations")
    layers: list[Layer] = []
    for i, module in enumerate(network):
        name = f"network[{i}]"
        if isinstance(module, nn.Linear) and is_plain(module, nn.Linear):
            layers.append(Layer(module))
            continue
        function, param = _activation(name, module)
        if not layers or layers[-1].function != "identity":
            raise not_fusable(name, module, "a Linear first, and one activation after each")
        layers[-1] = Layer(layers[-1].linear, function, param)
    return layers


def embedding_table(embedding: Any) -> Tensor:
    """The rows of an nn.Embedding that has no options. Raises NotFusable."""
    options = {"padding_idx": None, "max_norm": None, "scale_grad_by_freq": False, "sparse": False}
    if not is_plain(embedding, nn.Embedding) or any(
        getattr(embedding, name) is not default for name, default in options.items()
    ):
        raise not_fusable("embedding", embedding, f"an nn.Embedding without {', '.join(options)}")
    return cast(nn.Embedding, embedding).weight


def is_plain(module: Any, kind: type[nn.Module]) -> bool:
    """Just this class, with nothing hung on it that would have to run."""
    return type(module) is kind and not any(getattr(module, name) for name in _HOOKS)


def _activation(name: str, module: nn.Module) -> tuple[str, float]:
    kind = type(module)
    if is_plain(module, kind):
        if kind in _PLAIN:
            return _PLAIN[kind], 0.0
        if isinstance(module, nn.LeakyReLU):
            return "leaky_relu", module.negative_slope
        if isinstance(module, nn.ELU):
            return "elu", module.alpha
        if isinstance(module, nn.GELU):
            return "gelu" if module.approximate == "none" else "gelu_tanh", 0.0
        if isinstance(module, nn.Softplus) and (module.beta, module.threshold) == (1, 20):
            return "softplus", 0.0
    raise not_fusable(name, module, "Linear, and an activation that the C++ core has, without hooks")


def not_fusable(name: str, given: Any, accepted: str) -> NotFusable:
    return NotFusable(str(_checks.bad_value(name, given, accepted)))


def _check_parameters(parameters: Sequence[nn.Parameter], parts: Sequence[tuple[Tensor, slice]]) -> None:
    for p in parameters:
        if p.dtype is not torch.float32 or not p.is_cpu or not p.requires_grad or p._backward_hooks:
            raise not_fusable("network", p, "trainable float32 weights on the CPU, without hooks")
        _checks.finite("network", p.detach())
    pieces = sum(t.shape[-1] if c == slice(None) else c.stop - c.start for t, c in parts if t.requires_grad)
    if pieces != sum(p.shape[-1] for p in parameters):
        raise NotFusable("network: got weights that two layers share; accepted: weights used once")
    if sum(t.numel() for t, _ in parts) > MAX_WEIGHTS:
        raise NotFusable(f"network: accepted: at most {MAX_WEIGHTS} weights")


def _indices(name: str, index: Any, n: int, rows: int) -> Tensor:
    checked = _tensors.given(name, index, torch.int64, (n,))
    low, high = (int(checked.min()), int(checked.max())) if n else (0, 0)
    if low < 0 or high >= rows:
        raise _checks.bad_value(name, f"{low} to {high}", f"indices from 0 to {rows - 1}")
    return checked


def _rates(lr: Any, steps: int) -> np.ndarray:
    if not isinstance(lr, np.ndarray | Tensor):
        return np.full(steps, _checks.real("lr", lr, 0.0))
    rates = np.ascontiguousarray(lr, dtype=np.float64)
    if rates.shape != (steps,) or not np.isfinite(rates).all() or (rates < 0).any():
        raise _checks.bad_value("lr", lr, f"a rate, or {steps} finite rates of at least 0")
    return rates
