"""The multilayer perceptron that denoises points."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_fast import _checks
from diffusion_fast.models.embeddings import CLASS_EMBEDDINGS, TIME_EMBEDDINGS, make_time_embedding

ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "silu": nn.SiLU,
    "gelu": nn.GELU,
    "gelu_tanh": lambda: nn.GELU(approximate="tanh"),
    "softplus": nn.Softplus,
    "mish": nn.Mish,
    "identity": nn.Identity,
}
# Far above any denoiser of points; they keep a damaged configuration from asking for terabytes.
MAX_WIDTH = 1 << 16
MAX_HIDDEN = 64
MAX_STEPS = 1 << 20
MAX_CLASSES = 1 << 20


class MLPDenoiser(nn.Module):
    """Predicts the noise (or x0, or v) in a batch of noisy points.

    concat[x (dim), time embedding, class embedding (time_dim, only with n_classes)]
    -> Linear - activation - ... -> Linear(dim).

    Args:
        dim: columns of the data.
        hidden: widths of the hidden layers, at least one.
        activation: relu, leaky_relu (slope 0.01), elu, tanh, sigmoid, silu, gelu (erf), gelu_tanh, softplus,
            mish or identity.
        time_embedding: "learned" (two-layer tanh network of (t + 1) / n_steps - 1/2), "sinusoidal" (of
            t + 1), "table" (nn.Embedding) or "scalar" (t + 1 itself as one column).
        n_steps: the number of timesteps T that it is made for; a longer schedule is refused.
        time_dim: width of the time embedding and of the class embedding.
        n_classes: None, or the number of classes; index n_classes is the null class ("no label").

    Attributes: dim, shape = (dim,), n_steps, n_classes, config (the arguments: `MLPDenoiser(**config)`).
    The weights are `time_embed.*`, `class_embed.weight` and `model.0`, `model.2`, ... (the linear layers).
    Raises ValueError or TypeError for an argument outside of what is listed.
    """

    def __init__(
        self,
        dim: int,
        hidden: Sequence[int] = (256, 512, 256),
        activation: str = "tanh",
        time_embedding: str = "learned",
        n_steps: int = 150,
        *,
        time_dim: int = 16,
        n_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.dim = _checks.integer("dim", dim, 1, MAX_WIDTH)
        widths = hidden_widths(hidden)
        _checks.choice("activation", activation, ACTIVATIONS)
        _checks.choice("time_embedding", time_embedding, TIME_EMBEDDINGS)
        self.n_steps = _checks.integer("n_steps", n_steps, 1, MAX_STEPS)
        time_dim = _checks.integer("time_dim", time_dim, 1, MAX_WIDTH)
        if n_classes is not None:
            n_classes = _checks.integer("n_classes", n_classes, 1, MAX_CLASSES)
        self.n_classes = n_classes
        self.shape = (self.dim,)
        self.config: dict[str, Any] = {
            "dim": self.dim,
            "hidden": widths,
            "activation": activation,
            "time_embedding": time_embedding,
            "n_steps": self.n_steps,
            "time_dim": time_dim,
            "n_classes": self.n_classes,
        }

        self.time_embed, time_width = make_time_embedding(time_embedding, self.n_steps, time_dim)
        n_in = self.dim + time_width
        if self.n_classes is not None:
            self.class_embed: nn.Embedding | nn.Linear = nn.Embedding(self.n_classes + 1, time_dim)
            n_in += time_dim
        self.model = make_layers(n_in, widths, self.dim, activation)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        """x (B, dim) floating, t (B,) integer in [0, n_steps), y (B,) integer in [0, n_classes] -> (B, dim).

        y = None means the null class for every row. Values of t and y are not read here (that would stop
        the device and break graph capture): they are the caller's to keep in range. Raises ValueError for an
        x of another shape, an index that is no (B,) int64 or int32, and a y that the model has no use for.
        """
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise _checks.bad_value("x", x, f"a (batch, {self.dim}) tensor")
        _check_index("t", t)
        columns = [x, self.time_embed(t).to(x.dtype)]
        if self.n_classes is not None:
            labels = torch.full_like(t, self.n_classes) if y is None else y
            _check_index("y", labels)
            columns.append(self.class_embed(labels))
        elif y is not None:
            raise _checks.bad_value("y", y, "None, for the model was made without n_classes")
        return self.model(torch.cat(columns, dim=-1))


class ConditionalMLPDenoiser(MLPDenoiser):
    """An MLPDenoiser of n_classes classes and a null class, index n_classes, for classifier-free guidance.

    concat[x (dim), time embedding (time_dim), class embedding (class_dim)] -> as MLPDenoiser. Train it with
    labels and label_dropout, which replaces some labels by the null class (Ho & Salimans 2022, algorithm 1).

    Args (the others are MLPDenoiser's):
        n_classes: the number of classes, the null class not counted.
        class_embedding: "one_hot", Linear(n_classes + 1, class_dim) of the one-hot class, or "table",
            nn.Embedding.
        class_dim: columns of the class embedding; n_classes + 1 by default for "one_hot", else time_dim.

    Raises ValueError or TypeError for an argument outside of what is listed.
    """

    def __init__(
        self,
        dim: int,
        n_classes: int,
        hidden: Sequence[int] = (256, 512, 256),
        activation: str = "relu",
        time_embedding: str = "sinusoidal",
        n_steps: int = 100,
        *,
        class_embedding: str = "one_hot",
        class_dim: int | None = None,
        time_dim: int = 16,
    ) -> None:
        _checks.integer("n_classes", n_classes, 1, MAX_CLASSES)
        _checks.choice("class_embedding", class_embedding, CLASS_EMBEDDINGS)
        if class_dim is not None:
            _checks.integer("class_dim", class_dim, 1, MAX_WIDTH)
        elif class_embedding == "one_hot" and n_classes >= MAX_WIDTH:
            accepted = f"a width up to {MAX_WIDTH} for one-hot classes of this number"
            raise _checks.bad_value("class_dim", class_dim, accepted)
        super().__init__(
            dim, hidden, activation, time_embedding, n_steps, time_dim=time_dim, n_classes=n_classes
        )
        self.config |= {"class_embedding": class_embedding, "class_dim": class_dim}
        if class_dim is None:
            class_dim = n_classes + 1 if class_embedding == "one_hot" else time_dim
        self.class_embed = CLASS_EMBEDDINGS[class_embedding](n_classes + 1, class_dim)
        first = self.model[0]
        assert isinstance(first, nn.Linear)
        self.model[0] = nn.Linear(first.in_features - time_dim + class_dim, first.out_features)


def make_layers(n_in: int, widths: Sequence[int], n_out: int, activation: str) -> nn.Sequential:
    """Linear - activation - ... -> Linear(n_out)."""
    layers: list[nn.Module] = []
    for width in widths:
        layers += [nn.Linear(n_in, width), ACTIVATIONS[activation]()]
        n_in = width
    return nn.Sequential(*layers, nn.Linear(n_in, n_out))


def hidden_widths(hidden: Any) -> list[int]:
    accepted = f"a sequence of 1 to {MAX_HIDDEN} integers from 1 to {MAX_WIDTH}"
    if isinstance(hidden, str) or not isinstance(hidden, Sequence):
        raise _checks.bad_type("hidden", hidden, accepted)
    if not 1 <= len(hidden) <= MAX_HIDDEN:
        raise _checks.bad_value("hidden", hidden, accepted)
    return [_checks.integer(f"hidden[{i}]", width, 1, MAX_WIDTH) for i, width in enumerate(hidden)]


def _check_index(name: str, index: Tensor) -> None:
    if index.ndim != 1 or index.dtype not in (torch.int64, torch.int32):
        raise _checks.bad_value(name, index, "a (batch,) tensor of int64")
