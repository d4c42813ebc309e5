"""An energy of points, and its score: the gradient that Langevin dynamics follows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from diffusion_fast import _checks
from diffusion_fast.models.mlp import ACTIVATIONS, MAX_WIDTH, hidden_widths, make_layers

aten = torch.ops.aten

# grad f'(z) for each activation module, as autograd computes it. These operations are part of torch's graphs,
# so that the fused chain runs them; autograd itself is not.
BACKWARD: dict[type[nn.Module], Callable[[Any, Tensor, Tensor], Tensor]] = {
    nn.ReLU: lambda _, grad, z: aten.threshold_backward(grad, z, 0),
    nn.LeakyReLU: lambda m, grad, z: aten.leaky_relu_backward(grad, z, m.negative_slope, False),
    nn.ELU: lambda m, grad, z: aten.elu_backward(grad, m.alpha, 1, 1, False, z),
    nn.Tanh: lambda _, grad, z: aten.tanh_backward(grad, torch.tanh(z)),
    nn.Sigmoid: lambda _, grad, z: aten.sigmoid_backward(grad, torch.sigmoid(z)),
    nn.SiLU: lambda _, grad, z: aten.silu_backward(grad, z),
    nn.GELU: lambda m, grad, z: aten.gelu_backward(grad, z, approximate=m.approximate),
    nn.Softplus: lambda m, grad, z: aten.softplus_backward(grad, z, m.beta, m.threshold),
    nn.Mish: lambda _, grad, z: aten.mish_backward(grad, z),
    nn.Identity: lambda _, grad, z: grad,
}


class EnergyMLP(nn.Module):
    """E(x), one number for each point: Linear - activation - ... -> Linear(1).

    Args:
        dim: columns of the data.
        hidden: widths of the hidden layers, at least one.
        activation: as for MLPDenoiser.

    Attributes: dim, shape = (dim,), config (the arguments: `EnergyMLP(**config)`), net (the layers).
    Raises ValueError or TypeError for an argument outside of what is listed.
    """

    def __init__(self, dim: int, hidden: Sequence[int] = (64, 64), activation: str = "silu") -> None:
        super().__init__()
        self.dim = _checks.integer("dim", dim, 1, MAX_WIDTH)
        widths = hidden_widths(hidden)
        _checks.choice("activation", activation, ACTIVATIONS)
        self.shape = (self.dim,)
        self.config: dict[str, Any] = {"dim": self.dim, "hidden": widths, "activation": activation}
        self.net = make_layers(self.dim, widths, 1, activation)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, dim) floating -> (B,). Raises ValueError for an x of another shape."""
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise _checks.bad_value("x", x, f"a (batch, {self.dim}) tensor")
        return self.net(x).squeeze(1)


class EnergyScore(nn.Module):
    """-dE/dx, the gradient of the log density of exp(-E): a denoiser of prediction_type="score".

    The backward pass of the energy's layers written out in torch operations, so that Sampler fuses it and
    runs whole Langevin chains in one call. It equals what autograd gives for each point alone: the gradient
    of the sum of E, not of its mean. For sampling: not all of it can be differentiated again.

    Args:
        energy: an EnergyMLP, or an nn.Sequential that ends in a Linear with one output; the layers are
            Linear, with an activation (ReLU, LeakyReLU, ELU, Tanh, Sigmoid, SiLU, GELU, Softplus, Mish,
            Identity) behind all but the last. Its weights are shared, not copied.

    Attributes: dim, shape = (dim,). Raises TypeError or ValueError for another energy.
    """

    def __init__(self, energy: EnergyMLP | nn.Sequential) -> None:
        super().__init__()
        accepted = (
            "an EnergyMLP or an nn.Sequential of Linear layers and activations in turn, Linear(n, 1) last"
        )
        if not isinstance(energy, (EnergyMLP, nn.Sequential)):
            raise _checks.bad_type("energy", energy, accepted)
        self.net = energy.net if isinstance(energy, EnergyMLP) else energy
        layers: list[Any] = list(self.net)
        linear, between = layers[::2], layers[1::2]
        good = len(layers) % 2 == 1 and all(type(layer) is nn.Linear for layer in linear)
        if not good or any(type(layer) not in BACKWARD for layer in between):
            raise _checks.bad_value("energy", [type(layer).__name__ for layer in layers], accepted)
        if linear[-1].out_features != 1:
            raise _checks.bad_value("energy", f"{linear[-1].out_features} outputs", accepted)
        self.dim = int(linear[0].in_features)
        self.shape = (self.dim,)

    def forward(self, x: Tensor, t: Tensor | None = None) -> Tensor:
        """x (B, dim) floating -> (B, dim); t is not read. Raises ValueError for an x of another shape."""
        if x.ndim != 2 or x.shape[1] != self.dim:
            raise _checks.bad_value("x", x, f"a (batch, {self.dim}) tensor")
        layers: list[Any] = list(self.net)
        *linear, last = layers[::2]
        activations = layers[1::2]
        before, h = [], x
        for i, layer in enumerate(linear):
            before.append(layer(h))
            if i + 1 < len(linear):  # E itself is not needed
                h = activations[i](before[i])
        grad = -last.weight.expand(x.shape[0], -1)
        for i in range(len(linear))[::-1]:
            grad = BACKWARD[type(activations[i])](activations[i], grad, before[i]) @ linear[i].weight
        return grad
