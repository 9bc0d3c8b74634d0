"""Activations by torch's lower-case names."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from normscope.core.spec import activation_slope


class Abs(nn.Module):
    """|x|, the leaky ReLU of slope -1."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return x.abs()


class Sin(nn.Module):
    """sin x."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return x.sin()


class Erf(nn.Module):
    """erf x."""

    def forward(self, x: Tensor) -> Tensor:
        """Elementwise."""
        return torch.erf(x)


_MODULES: dict[str, type[nn.Module]] = {
    "identity": nn.Identity, "relu": nn.ReLU, "leaky_relu": nn.LeakyReLU, "tanh": nn.Tanh, "sigmoid": nn.Sigmoid,
    "gelu": nn.GELU, "silu": nn.SiLU, "elu": nn.ELU, "selu": nn.SELU, "softplus": nn.Softplus,
    "abs": Abs, "sin": Sin, "erf": Erf,
}  # fmt: skip


def make_activation(name: str) -> nn.Module:
    """The module of an activation's name; ``leaky_relu(0.2)`` sets the slope."""
    base, slope = activation_slope(name)
    return nn.LeakyReLU(slope) if base == "leaky_relu" else _MODULES[base]()
