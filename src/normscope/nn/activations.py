"""The activations: of each one record that holds its module, the functions that are the same map, its ends, and what
Gaussian moments need of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normscope.core import spec
from normscope.core.spec import ACTIVATIONS, POINTWISE
from normscope.gaussian import Function, normal_cdf, normal_pdf, special

_SELU_SCALE, _SELU_ALPHA = 1.0507009873554804934193349852946, 1.6732632423543772848170429916717


@dataclass(frozen=True, kw_only=True)
class Pointwise:
    """A module that acts on each entry alone, and bends.

    functions: those that are the same map. ends: of its range, where it has two.
    """

    kind: type[nn.Module]
    functions: tuple[Any, ...] = ()
    ends: tuple[float, float] | None = None

    @property
    def dies(self) -> bool:
        """Whether it is flat somewhere where it is 0, far out or beside 0: tanh is 0 at one number, and steep there."""
        try:
            return bool((self.kind()(torch.tensor([-1e4, -1e-3, 1e-3, 1e4])) == 0).any())
        except TypeError:
            return True

    def register(self) -> None:
        """Known to probes, by the name of its class."""
        POINTWISE.add(self.kind.__name__, self)


@dataclass(frozen=True, kw_only=True)
class Activation(Function, Pointwise):
    """One that a `Spec` may name: the module, and the same as functions of numpy arrays.

    summary: one line for lists. arguments: of the module. of_slope: the record of another slope.
    """

    summary: str
    arguments: tuple[float, ...] = ()
    of_slope: Callable[[float], Activation] | None = None

    def register(self) -> None:
        """Enrol it in every list, page and check."""
        ACTIVATIONS.add(self.name, self)
        if not self.linear:
            super().register()

    def make(self) -> nn.Module:
        """The module."""
        return self.kind(*self.arguments)

    def recognises(self, module: nn.Module) -> str | None:
        """The name by which a `Spec` knows this module, or ``None``: another class, or other options."""
        if type(module) is not self.kind:
            return None
        if self.of_slope is not None:
            return f"{self.name}({module.negative_slope:g})"
        mine = vars(self.make())
        same = all(
            vars(module).get(k) == v for k, v in mine.items() if k[0] != "_" and k not in ("training", "inplace")
        )
        return self.name if same else None


def recognised(module: nn.Module) -> str | None:
    """The name by which a `Spec` knows the activation that a module is; ``None`` for another class, or other
    options.
    """
    return next((name for a in ACTIVATIONS.values() if (name := a.recognises(module)) is not None), None)


def make_activation(name: str) -> nn.Module:
    """The module of an activation's name; ``leaky_relu(0.2)`` sets the slope."""
    found: Activation = spec.activation(name)
    return found.make()


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


# The leaky family


@cache
def _leaky(slope: float) -> Activation:
    usual: dict[float, tuple[Any, Any]]
    usual = {0.0: (_RELU.phi, _RELU.derivative), 1.0: (_IDENTITY.phi, _IDENTITY.derivative), -1.0: (np.abs, np.sign)}
    phi, derivative = usual.get(slope, (lambda x: np.where(x > 0, x, slope * x), lambda x: np.where(x > 0, 1.0, slope)))
    return Activation(
        name="leaky_relu", summary="x above 0, slope times x below: leaky_relu(0.2), or 0.01.", kind=nn.LeakyReLU,
        functions=(F.leaky_relu,), slope=slope, phi=phi, derivative=derivative, odd=slope == 1, arguments=(slope,),
        of_slope=_leaky_of,
    )  # fmt: skip


def _leaky_of(slope: float) -> Activation:
    return replace(_leaky(slope), name=f"leaky_relu({slope})")


_IDENTITY = Activation(
    name="identity", summary="x.", kind=nn.Identity, slope=1.0, phi=lambda x: x, derivative=np.ones_like, odd=True
)
_RELU = Activation(
    name="relu", summary="x above 0, 0 below.", kind=nn.ReLU, slope=0.0,
    functions=(F.relu, torch.relu, torch.relu_, Tensor.relu, Tensor.relu_),
    phi=lambda x: np.maximum(x, 0), derivative=lambda x: np.where(x > 0, 1.0, 0.0),
)  # fmt: skip


# The smooth ones, and the exponential family


def _elu(x: Any, alpha: float, scale: float) -> Any:
    return scale * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))


def _elu_derivative(x: Any, alpha: float, scale: float) -> Any:
    return scale * np.where(x > 0, 1.0, alpha * np.exp(np.minimum(x, 0)))


def _products_of_sines(qi: Any, qj: Any, g: Any, derivative: bool) -> Any:
    # sin u sin v = (cos(u-v) - cos(u+v)) / 2 and E cos x = exp(-var x / 2).
    minus, plus = np.exp(g - (qi + qj) / 2) / 2, np.exp(-g - (qi + qj) / 2) / 2
    return minus + plus if derivative else minus - plus


def _products_of_erfs(qi: Any, qj: Any, g: Any, derivative: bool) -> Any:
    # Williams 1998: arcsine kernel; its derivative kernel is d/dg of it.
    if derivative:
        return (4 / np.pi) / np.sqrt((1 + 2 * qi) * (1 + 2 * qj) - 4 * np.square(g))
    return (2 / np.pi) * np.arcsin(2 * g / np.sqrt((1 + 2 * qi) * (1 + 2 * qj)))


for _activation in (
    _IDENTITY,
    _RELU,
    _leaky(0.01),
    Activation(
        name="tanh", summary="tanh x.", kind=nn.Tanh, ends=(-1, 1), odd=True,
        functions=(torch.tanh, torch.tanh_, Tensor.tanh, Tensor.tanh_, F.tanh),
        phi=np.tanh, derivative=lambda x: 1 - np.tanh(x) ** 2,
    ),
    Activation(
        name="sigmoid", summary="1 / (1 + exp(-x)).", kind=nn.Sigmoid, ends=(0, 1),
        functions=(torch.sigmoid, Tensor.sigmoid, Tensor.sigmoid_, F.sigmoid),
        phi=lambda x: special().expit(x), derivative=lambda x: special().expit(x) * special().expit(-x),
    ),
    Activation(
        name="gelu", summary="x P(z < x), z standard normal.", kind=nn.GELU, functions=(F.gelu,),
        phi=lambda x: x * normal_cdf(x), derivative=lambda x: normal_cdf(x) + x * normal_pdf(x),
    ),
    Activation(
        name="silu", summary="x / (1 + exp(-x)).", kind=nn.SiLU, functions=(F.silu,),
        phi=lambda x: x * special().expit(x), derivative=lambda x: special().expit(x) * (1 + x * special().expit(-x)),
    ),
    Activation(
        name="elu", summary="x above 0, exp(x) - 1 below.", kind=nn.ELU, functions=(F.elu,),
        phi=lambda x: _elu(x, 1, 1), derivative=lambda x: _elu_derivative(x, 1, 1),
    ),
    Activation(
        name="selu", summary="The ELU of self-normalizing nets: 1.05 x above 0, 1.76 (exp(x) - 1) below.", kind=nn.SELU,
        functions=(F.selu, torch.selu), phi=lambda x: _elu(x, _SELU_ALPHA, _SELU_SCALE),
        derivative=lambda x: _elu_derivative(x, _SELU_ALPHA, _SELU_SCALE),
    ),
    Activation(
        name="softplus", summary="log(1 + exp(x)).", kind=nn.Softplus, functions=(F.softplus,),
        phi=lambda x: np.logaddexp(0, x), derivative=lambda x: special().expit(x),
    ),
    Activation(
        name="abs", summary="|x|, the leaky ReLU of slope -1.", kind=Abs, slope=-1.0, phi=np.abs, derivative=np.sign
    ),
    Activation(
        name="sin", summary="sin x.", kind=Sin, odd=True, phi=np.sin, derivative=np.cos, products=_products_of_sines
    ),
    Activation(
        name="erf", summary="erf x.", kind=Erf, ends=(-1, 1), odd=True, phi=lambda x: special().erf(x),
        derivative=lambda x: 2 / np.sqrt(np.pi) * np.exp(-np.square(x)), products=_products_of_erfs,
    ),
    # Known to probes; no `Spec` names them.
    Pointwise(kind=nn.ReLU6, functions=(F.relu6,)), Pointwise(kind=nn.PReLU),
    Pointwise(kind=nn.CELU, functions=(F.celu, torch.celu)), Pointwise(kind=nn.Mish, functions=(F.mish,)),
    Pointwise(kind=nn.Hardswish, functions=(F.hardswish,)), Pointwise(kind=nn.LogSigmoid), Pointwise(kind=nn.Threshold),
    Pointwise(kind=nn.Hardshrink), Pointwise(kind=nn.Softshrink), Pointwise(kind=nn.Tanhshrink),
    Pointwise(kind=nn.Hardtanh, functions=(F.hardtanh,), ends=(-1, 1)),
    Pointwise(kind=nn.Hardsigmoid, functions=(F.hardsigmoid,), ends=(0, 1)),
    Pointwise(kind=nn.Softsign, functions=(F.softsign,), ends=(-1, 1)),
):  # fmt: skip
    _activation.register()
#: Hugging Face's names of the GELU.
for _name in ("NewGELUActivation", "GELUActivation"):
    POINTWISE.add(_name, Pointwise(kind=nn.GELU))
