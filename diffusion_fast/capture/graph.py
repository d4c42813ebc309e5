"""Reading the nodes of an exported graph: names, operands, shapes, and where in the module they come from."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import fx

# How a layer's activation is called in the graph, without the underscore of the in-place form.
SIMPLE_ACTIVATIONS = {"relu", "tanh", "sigmoid", "silu", "mish"}
# These return a view of their first operand where they can, else a copy.
VIEW_OR_COPY = {"to", "contiguous", "reshape", "reshape_as", "flatten", "type_as"}
# These only put elements elsewhere, so they are followed by running them on the elements' indices.
MOVES = VIEW_OR_COPY | {
    *("_to_copy", "clone", "lift_fresh_copy", "_unsafe_view", "cat", "concat", "concatenate", "stack"),
    *("flip", "fliplr", "flipud", "roll", "rot90", "repeat", "tile", "index_select", "index", "gather"),
    *("where", "hstack", "column_stack", "repeat_interleave", "take_along_dim", "dropout"),
    *("feature_dropout", "alpha_dropout", "feature_alpha_dropout"),
}
DROPOUTS = {"dropout", "feature_dropout", "alpha_dropout", "feature_alpha_dropout"}
# Which operands are asked only for their shape and dtype (all of them for sym_*): no dependence on data.
METADATA_OPERANDS = {
    **{f"{name}_like": (0,) for name in ("zeros", "ones", "full", "empty")},
    **{f"new_{name}": (0,) for name in ("zeros", "ones", "full", "empty")},
    **{name: (1,) for name in ("expand_as", "view_as", "reshape_as", "type_as")},
    **{f"sym_{name}": (0,) for name in ("size", "stride", "numel", "storage_offset")},
}

# Reasons of more than one refusal, and what to do.
OWN_ROW = "keep the samples on the first axis, and compute each row from the same row of x, t, y and context"
MIXES = ("it mixes the samples of a batch, or moves the batch from the first axis", OWN_ROW)
POSITION = ("it uses a sample's position in the batch", "use nothing of a sample but its x, t, y and context")
SMALLER = "keep within the limit"
NO_KERNEL = "no fused kernel has this operation on values that depend on x"


class CaptureError(ValueError):
    """A module that no fused kernel can run. reason: why; op: the operation; where: the module's line;
    advice: what to do to have it fused."""

    PARTS = "linear layers, element-wise functions, norms, slices and concatenations of features"
    ACCEPTED = f"by backend='native': {PARTS}. Use backend='auto' or 'torch' for this model"

    def __init__(self, reason: str, op: str = "", where: str = "", advice: str = "") -> None:
        self.reason, self.op, self.where = reason, op, where
        self.advice = advice or f"write this part with {self.PARTS}"
        super().__init__(
            f"model: {self.problem}; accepted {self.ACCEPTED}" + (f", or {advice}" * bool(advice))
        )

    @property
    def problem(self) -> str:
        """The reason and its place."""
        place = f" (operation {self.op})" if self.op else ""
        return self.reason + place + (f" at {self.where}" if self.where else "")

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.reason, self.op, self.where, self.advice)


class CallError(CaptureError):
    """A module that cannot be called with what a sampler calls it with, on any path."""

    ACCEPTED = "are modules called as module(x, t), then y with n_classes, then what context_shape names"


def op_name(node: fx.Node) -> str:
    """Such as "linear" for aten.linear.default, "getitem" for the operator of Python."""
    schema = getattr(node.target, "_schema", None)
    return schema.name.split("::")[-1] if schema else getattr(node.target, "__name__", str(node.target))


def operands(node: fx.Node) -> list[tuple[fx.Node, Any]]:
    """The tensor operands with their arguments in the operation's schema."""
    schema = getattr(node.target, "_schema", None)
    if schema is None:
        return []
    by_name = {argument.name: argument for argument in schema.arguments}
    pairs = [
        *zip(node.args, schema.arguments, strict=False),
        *((v, by_name[k]) for k, v in node.kwargs.items()),
    ]
    return [(operand, argument) for operand, argument in pairs if isinstance(operand, fx.Node)]


def argument(node: fx.Node, name: str, default: Any) -> Any:
    if name in node.kwargs:
        return node.kwargs[name]
    names = [argument.name for argument in node.target._schema.arguments]  # type: ignore[union-attr]
    if name not in names:
        return default
    position = names.index(name)
    return node.args[position] if position < len(node.args) else default


def number(node: fx.Node, name: str, default: float) -> float:
    value = argument(node, name, default)
    return float(value) if isinstance(value, (int, float)) else float("nan")


def activation_of(node: fx.Node, name: str) -> tuple[str, float] | None:
    """The activation's name in a plan and its parameter, or None if the node is something else."""
    if name in SIMPLE_ACTIVATIONS:
        return name, 0.0
    if name == "leaky_relu":
        return name, number(node, "negative_slope", 0.01)
    if name == "elu" and number(node, "scale", 1) == 1 and number(node, "input_scale", 1) == 1:
        return name, number(node, "alpha", 1)
    if name == "gelu":
        return ("gelu_tanh" if argument(node, "approximate", "none") == "tanh" else "gelu"), 0.0
    if name == "softplus" and number(node, "beta", 1) == 1 and number(node, "threshold", 20) == 20:
        return name, 0.0
    return None


def draws(node: fx.Node) -> bool:
    """Whether an operation draws random numbers, as it is called: an LSTM in eval mode does not."""
    if torch.Tag.nondeterministic_seeded not in getattr(node.target, "tags", ()):
        return False
    for declared in node.target._schema.arguments:  # type: ignore[union-attr]
        if declared.name in ("dropout_p", "train", "training"):
            return bool(argument(node, declared.name, declared.default_value))
    return True


def tail_of(node: fx.Node) -> torch.Size:
    """The shape of one sample of a node's value."""
    return torch.Size(node.meta["val"].shape[1:])


def refusal(node: fx.Node, reason: str, advice: str = "") -> CaptureError:
    return CaptureError(reason, op_name(node), where(node), advice)


def where(node: fx.Node) -> str:
    """The module's own line behind a node, as "file:line: code (in the submodule's name)".

    Tracing keeps the frames of forward methods only; the innermost one outside of torch is the module's.
    """
    frames = re.findall(r'File "(.*?)", line (\d+), in .*\n\s*(.*)', node.meta.get("stack_trace") or "")
    library = str(Path(torch.__file__).parent)
    own = [frame for frame in frames if not frame[0].startswith(library)] or frames
    if not own:
        return ""
    file, line, code = own[-1]
    names = [name for name, _ in (node.meta.get("nn_module_stack") or {}).values() if name]
    return f"{Path(file).name}:{line}: {code}" + (f" (in {names[-1]})" if names else "")
