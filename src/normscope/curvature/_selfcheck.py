"""Which compositions of forward and reverse mode can be trusted on this torch, device and dtype."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import grad, hessian, jacrev, jvp, vjp

from normscope.core.errors import UsageError
from normscope.curvature._operators import fisher, jacobian
from normscope.curvature._operators import hessian as hessian_map

#: Relative error up to which a composition counts as exact (chosen by us: 1000 times what correct ones show).
TOLERANCE = {torch.float64: 1e-11, torch.float32: 1e-3}
Params = dict[str, Tensor]
Scalar = Callable[[Params], Tensor]


@dataclass(frozen=True)
class Check:
    """One composition on one layer: ``error`` is relative to the same layer from primitive operations.

    relied_on: whether normscope's own operators are built on it. ``status``: ``exact``, ``WRONG`` or ``raises``.
    """

    layer: str
    composition: str
    relied_on: bool
    error: float
    status: str
    note: str = ""


def selfcheck(device: str | torch.device = "cpu", dtype: torch.dtype = torch.float32, seed: int = 0) -> list[Check]:
    """Run the compositions through batch and layer norm that are known to be silently wrong, and those relied on.

    Each is compared with the same net whose norm is written from means and a square root, by double backward.
    """
    if dtype not in TOLERANCE:
        raise UsageError(
            f"selfcheck runs in float32 or float64; got {dtype}. Half precision is computed in float32 anyway."
        )
    device = torch.device(device)
    checks = [c for layer in LAYERS for c in _layer_checks(layer, device, dtype, seed)]
    return checks + list(_operator_checks(device, dtype, seed)) + [_no_grad_check(device, dtype)]


def _batch_norm(z: Tensor, g: Tensor | None, b: Tensor | None) -> Tensor:
    return F.batch_norm(z, None, None, g, b, True, 0.1, 1e-5)


def _plain_batch_norm(z: Tensor, g: Tensor | None, b: Tensor | None) -> Tensor:
    u = z - z.mean(0)
    u = u / (u.square().mean(0) + 1e-5).sqrt()
    return u if g is None or b is None else u * g + b


def _layer_norm(z: Tensor, g: Tensor | None, b: Tensor | None) -> Tensor:
    return F.layer_norm(z, z.shape[1:], g, b)


def _plain_layer_norm(z: Tensor, g: Tensor | None, b: Tensor | None) -> Tensor:
    u = z - z.mean(1, keepdim=True)
    u = u / (u.square().mean(1, keepdim=True) + 1e-5).sqrt()
    return u if g is None or b is None else u * g + b


LAYERS = {
    "batch norm": (_batch_norm, _plain_batch_norm, True),
    "batch norm, no affine": (_batch_norm, _plain_batch_norm, False),
    "layer norm": (_layer_norm, _plain_layer_norm, True),
}


def _problem(
    device: torch.device, dtype: torch.dtype, seed: int, affine: bool
) -> tuple[Params, Params, Callable[..., Scalar]]:
    """Parameters, a direction, and norm -> loss(parameters): two layers of 12 on 32 samples, cross-entropy."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(device, dtype)

    d, n = 12, 32
    x, readout = normal(n, d), normal(d, d) / d**0.5
    y = torch.randint(0, d, (n,), generator=generator).to(device)
    p = {"W": normal(d, d) / d**0.5}
    if affine:
        p |= {"g": torch.ones(d, device=device, dtype=dtype), "b": torch.zeros(d, device=device, dtype=dtype)}
    v = {k: normal(*t.shape) for k, t in p.items()}

    def loss(norm: Callable[..., Tensor]) -> Scalar:
        return lambda q: F.cross_entropy(torch.tanh(norm(x @ q["W"], q.get("g"), q.get("b"))) @ readout, y)

    return p, v, loss


def _double_backward(f: Scalar, p: Params, v: Params) -> Params:
    leaves = {k: t.detach().clone().requires_grad_() for k, t in p.items()}
    first = torch.autograd.grad(f(leaves), list(leaves.values()), create_graph=True)
    again = torch.autograd.grad(
        torch.stack([(a * b).sum() for a, b in zip(first, v.values(), strict=True)]).sum(), list(leaves.values())
    )
    return dict(zip(p, again, strict=True))


def _applied(matrix: dict[str, Params], v: Params) -> Params:
    """A Hessian as nested dictionaries times a vector."""
    return {
        k: sum((torch.tensordot(block, v[j], v[j].dim()) for j, block in row.items()), torch.zeros_like(v[k]))
        for k, row in matrix.items()
    }


#: Hessian-vector products by composition; those relied on first.
PRODUCTS: dict[str, tuple[Callable[[Scalar, Params, Params], Params], bool]] = {
    "double backward": (_double_backward, True),
    "jvp(grad)": (lambda f, p, v: jvp(grad(f), (p,), (v,))[1], False),
    "jvp(jacrev)": (lambda f, p, v: jvp(jacrev(f), (p,), (v,))[1], False),
    "torch.func.hessian": (lambda f, p, v: _applied(hessian(f)(p), v), False),
    "grad(jvp)": (lambda f, p, v: grad(lambda q: jvp(f, (q,), (v,))[1])(p), False),
}


def _layer_checks(layer: str, device: torch.device, dtype: torch.dtype, seed: int) -> Iterator[Check]:
    native, plain, affine = LAYERS[layer]
    p, v, loss = _problem(device, dtype, seed, affine)
    slope = grad(loss(plain))(p)
    first = {"vjp": lambda: vjp(loss(native), p)[1](torch.ones((), device=device, dtype=dtype))[0]}
    yield _check(layer, "vjp", True, first["vjp"], slope, dtype)
    along = {"": torch.stack([(slope[k] * v[k]).sum() for k in p]).sum()}
    yield _check(layer, "jvp", True, lambda: {"": jvp(loss(native), (p,), (v,))[1]}, along, dtype)
    product = _double_backward(loss(plain), p, v)
    for name, (method, relied) in PRODUCTS.items():
        yield _check(layer, name, relied, partial(method, loss(native), p, v), product, dtype)
    twice = {"": torch.stack([(product[k] * v[k]).sum() for k in p]).sum()}

    def forward_forward() -> Params:
        return {"": jvp(lambda q: jvp(loss(native), (q,), (v,))[1], (p,), (v,))[1]}

    yield _check(layer, "jvp(jvp)", False, forward_forward, twice, dtype)


def _check(layer: str, name: str, relied: bool, run: Callable[[], Params], want: Params, dtype: torch.dtype) -> Check:
    try:
        got = run()
    except (RuntimeError, NotImplementedError) as error:
        return Check(layer, name, relied, float("nan"), "raises", str(error).splitlines()[0][:100])
    scale = sum(float(t.double().square().sum()) for t in want.values()) ** 0.5
    off = sum(float((got[k].double() - want[k].double()).square().sum()) for k in want) ** 0.5 / max(scale, 1e-300)
    return Check(layer, name, relied, off, "exact" if off <= TOLERANCE[dtype] else "WRONG")


def _pushed(model: nn.Module, x: Tensor, route: str, w: Tensor) -> Params:
    return {"": jacobian(model, x, route=route) @ w}


class _Plain(nn.Module):
    """Batch norm from primitive operations with the parameters of a fused one."""

    def __init__(self, norm: nn.BatchNorm2d) -> None:
        super().__init__()
        self.weight, self.bias = norm.weight, norm.bias

    def forward(self, x: Tensor) -> Tensor:
        u = x - x.mean((0, 2, 3), keepdim=True)
        u = u / (u.square().mean((0, 2, 3), keepdim=True) + 1e-5).sqrt()
        return u * self.weight[:, None, None] + self.bias[:, None, None]


def _operator_checks(device: torch.device, dtype: torch.dtype, seed: int) -> Iterator[Check]:
    """normscope's own maps on a small convolutional net with batch norm, against the primitive net's dense Jacobian."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        norm = nn.BatchNorm2d(4)
        body: list[nn.Module] = [nn.Conv2d(2, 4, 3), norm, nn.Tanh(), nn.Flatten(), nn.Linear(64, 3)]
        model = nn.Sequential(*body).to(device, dtype)
        twin = nn.Sequential(body[0], _Plain(norm), *body[2:])
        x, y = torch.randn(10, 2, 6, 6, dtype=torch.float64), torch.randn(10, 3, dtype=torch.float64)
    x, y = x.to(device, dtype), y.to(device, dtype)
    params = list(twin.parameters())
    rows = [
        torch.cat([g.reshape(-1) for g in torch.autograd.grad(o, params, retain_graph=True)])
        for o in twin(x).reshape(-1)
    ]
    j = torch.stack(rows)
    w = torch.randn(j.shape[1], generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(device, dtype)
    named = "normscope on conv + batch norm"
    for route in ("jvp", "double_vjp"):
        yield _check(
            named,
            f"Jacobian, {route}",
            True,
            partial(_pushed, model, x, route, w),
            {"": j @ w},
            dtype,
        )
    yield _check(named, "Fisher", True, lambda: {"": fisher(model, x) @ w}, {"": j.T @ (j @ w) / 10}, dtype)
    slope = torch.cat(
        [g.reshape(-1) for g in torch.autograd.grad((twin(x) - y).square().mean(), params, create_graph=True)]
    )
    want = torch.cat([g.reshape(-1) for g in torch.autograd.grad(slope @ w, params)])
    yield _check(named, "Hessian", True, lambda: {"": hessian_map(model, x, y) @ w}, {"": want}, dtype)


def _no_grad_check(device: torch.device, dtype: torch.dtype) -> Check:
    """Forward mode through a ``torch.no_grad`` block, where reverse mode sees a constant."""
    x = torch.linspace(1, 2, 5, device=device, dtype=dtype)

    def f(q: Params) -> Tensor:
        with torch.no_grad():
            scale = q["x"].sum()
        return (q["x"] * scale).sum()

    v = {"x": torch.ones_like(x)}
    want = {"": (grad(f)({"x": x})["x"] * v["x"]).sum()}
    return _check("a no_grad block", "jvp", False, lambda: {"": jvp(f, ({"x": x},), (v,))[1]}, want, dtype)
