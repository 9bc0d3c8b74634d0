"""Curves in the place of a norm: DyT, tanh(alpha x), and Derf, erf(alpha x), with a gain and a bias; no statistics."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from normscope.gaussian import Function, activation, product_moment
from normscope.linalg import Array
from normscope.nn.norms.norm import EPS, Norm

if TYPE_CHECKING:
    from jaxtyping import Float

#: The functions of torch that the curves are.
CURVES: dict[str, Callable[[Tensor], Tensor]] = {"tanh": torch.tanh, "erf": torch.erf}


@dataclass(frozen=True)
class Squash(Norm):
    r"""$\phi(\alpha x)$ of each entry, as an activation: samples do not meet, and at infinite width the Gram is
    $E \varphi(\phi(\alpha u)) \varphi(\phi(\alpha v))$, not of a Gaussian again.

    curve: the activation that it is; alpha: of a fresh module, where it is a parameter (Zhu et al. 2025 start at 0.5).
    """

    curve: str = "tanh"
    alpha: float = 0.5

    def make(self, features: int, *, affine: bool = True, eps: float = EPS) -> nn.Module:
        """`DyT`, whatever eps: nothing is divided."""
        return DyT(features, alpha=self.alpha, curve=self.curve, affine=affine)

    def recognises(self, module: nn.Module) -> bool:
        """A module without children and with one number among its tensors whose forward is this curve, by whatever
        name: it is called on a few numbers.
        """
        return curve_of(module) == (self.curve, self.alpha, True)

    @property
    def bends(self) -> bool:
        """It does."""
        return True

    def rows(self, z: NDArray[Any], eps: float = EPS, *, is_centred: bool = False) -> NDArray[Any]:
        """The curve of each entry, in place."""
        return _scaled(self.curve, self.alpha).apply(z)

    def gram(self, moments: Array, means: Array | None = None) -> Array:
        """Of Gaussian neurons of mean zero."""
        return product_moment(_scaled(self.curve, self.alpha), moments)

    def forward(self, covariance: Array, phi: Function, first: bool, points: Array | None) -> Array:
        """The kernel of curve and activation in one."""
        return product_moment(_with(self.curve, self.alpha, phi, first), covariance)

    def backward(self, covariance: Array, outer: Array, phi: Function, first: bool, points: Array | None) -> Array:
        """The kernel of the derivative: the Jacobian is diagonal."""
        return outer * product_moment(_with(self.curve, self.alpha, phi, first), covariance, derivative=True)

    def order(self, q: Array) -> tuple[Array, float] | None:
        """What leaves it is not Gaussian: none is known."""
        return None


@cache
def _scaled(curve: str, alpha: float) -> Function:
    a = activation(curve)

    def products(qi: Any, qj: Any, g: Any, derivative: bool) -> Any:
        assert a.products is not None
        return a.products(alpha**2 * qi, alpha**2 * qj, alpha**2 * g, derivative) * (alpha**2 if derivative else 1)

    return Function(
        name=f"{curve}({alpha:g} x)", phi=lambda x: a.phi(alpha * x),
        derivative=lambda x: alpha * a.derivative(alpha * x), odd=a.odd, products=products if a.products else None,
    )  # fmt: skip


def _with(curve: str, alpha: float, phi: Function, first: bool) -> Function:
    """Curve, then activation, or the other way round."""
    inner, outer = (_scaled(curve, alpha), phi) if first else (phi, _scaled(curve, alpha))
    if phi.linear:
        return _scaled(curve, alpha)
    return Function(
        name=f"{outer.name} of {inner.name}", phi=lambda x: outer.phi(inner.phi(x)),
        derivative=lambda x: outer.derivative(inner.phi(x)) * inner.derivative(x), odd=inner.odd and outer.odd,
    )  # fmt: skip


class DyT(nn.Module):
    r"""$\gamma\,\phi(\alpha x) + \beta$, alpha a parameter, gamma and beta of each feature (Zhu et al. 2025: Dynamic
    Tanh). Over dimension 1, whatever follows it. Without ``affine`` alpha stays as it is.
    """

    alpha: Tensor

    def __init__(self, features: int, *, alpha: float = 0.5, curve: str = "tanh", affine: bool = True) -> None:
        super().__init__()
        self.curve, start = curve, torch.tensor([alpha])
        self.register_parameter("alpha", nn.Parameter(start)) if affine else self.register_buffer("alpha", start)
        self.weight = nn.Parameter(torch.ones(features)) if affine else None
        self.bias = nn.Parameter(torch.zeros(features)) if affine else None

    def forward(self, x: Float[Tensor, "n d *positions"]) -> Float[Tensor, "n d *positions"]:
        """Elementwise."""
        x = CURVES[self.curve](self.alpha * x)
        if self.weight is None or self.bias is None:
            return x
        shape = [1, -1] + [1] * (x.dim() - 2)
        return x * self.weight.reshape(shape) + self.bias.reshape(shape)


@torch.no_grad()
def curve_of(module: nn.Module) -> tuple[str, float, bool] | None:
    """(curve, alpha, whether gain and bias are as they start) of a module that is one of `CURVES` of alpha x, with a
    gain and a bias of each feature or without; ``None`` for any other. By what a copy of it does to a few numbers.
    """
    own = [*module.parameters(), *module.buffers()]
    single = [p for p in own if p.numel() == 1 and p.is_floating_point()]
    features = max((p.numel() for p in own), default=0)
    if not single or len(own) > 3 or any(True for _ in module.children()) or isinstance(module, nn.PReLU):
        return None
    if any(p.dim() > 1 or p.numel() not in (1, features) for p in own) or any(p.is_meta for p in own):
        return None
    fresh = all(bool((p == 1).all() | (p == 0).all()) for p in own if p.numel() > 1)
    gains: list[Tensor] = [torch.ones(1), *(p for p in own if p.numel() == features > 1)]
    for alpha in single:
        x = torch.linspace(-2, 2, 2 * features, dtype=alpha.dtype, device=alpha.device) / alpha  # where it bends
        for shape in ((2, features), (2, features, 1, 1)):
            z = x.reshape(shape)
            try:
                y, centre = (deepcopy(module).forward(v) for v in (z, torch.zeros_like(z)))
            except Exception:  # a user's module, of inputs that it may not be made for
                continue
            if not isinstance(y, Tensor) or y.shape != z.shape or not bool(y.isfinite().all()):
                continue
            for curve, f in CURVES.items():
                for gain in gains:
                    expected = f(alpha * z) * gain.to(z).reshape(1, -1, *[1] * (z.dim() - 2)) + centre
                    if torch.allclose(y, expected, rtol=1e-3, atol=1e-5):
                        return curve, round(float(alpha), 6), fresh and not bool(centre.any())
    return None


Squash("dyt", "Dynamic tanh, tanh(x / 2) at first, of each entry: no statistics.").register()
Squash("derf", "Its erf form, erf(x / 2) at first, of each entry.", curve="erf").register()
