r"""Products with weights: the law of the weights is read from them as they are, and what comes out is Gaussian.

$u = W h$ with i.i.d. entries of mean square $s$ has $E u u^T = s\,d K$, d features of h and K their second moments;
backwards $\Pi = s\,d\,\Pi_{out}$, both summed over features. Convolutions add over their taps, each with the mean
square of its weights: exact for the moments between any two positions, since one tap meets both.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from normscope.theory.program.arithmetic import linear_of, mixed_with_bias
from normscope.theory.program.interpreter import PRODUCTS, Program, rule
from normscope.theory.program.laws import Field, Known, Law, Pulled, dtype_of
from normscope.theory.program.reading import Call, is_weight, law_of, places

PRODUCTS |= {"linear", "matmul", "mm", "bmm", "addmm", "conv1d", "conv2d", "conv3d"}


def _entry(program: Program, x: Tensor, features: tuple[int, ...]) -> Law:
    law = law_of(x)
    return program.data(x, features) if law is None else law


@rule("linear")
def linear(program: Program, call: Call, out: Tensor) -> Law | None:
    """x W^T + b."""
    x, w, b = call.args[0], call.argument(1, "weight"), call.argument(2, "bias")
    return dense(program, call, x, w.mT, b, out) if is_weight(w) else None


@rule("addmm")
def addmm(program: Program, call: Call, out: Tensor) -> Law | None:
    """b + x W."""
    if call.kwargs.get("beta", 1) != 1 or call.kwargs.get("alpha", 1) != 1:
        return None
    b, x, w = call.args[:3]
    return dense(program, call, x, w, b, out) if is_weight(w) else None


def dense(program: Program, call: Call, x: Tensor, w: Tensor, b: Tensor | None, out: Tensor) -> Law | None:
    """x W + b with W (in, out) that is a weight; over features a random matrix, over positions a map of the sites."""
    if w.dim() != 2 or is_weight(x) or x.dim() < 2:
        return None
    axis = x.dim() - 1
    field = _entry(program, x, (axis,))
    if isinstance(field, Known) or not isinstance(field, Field):
        return None
    if axis not in field.features:
        return mixed_with_bias(program, call, field, out)
    if out.numel() // out.shape[-1] > program.most * math.prod(field.shape[i] for i in field.features[:-1]):
        program.too_many("linear")
        return None
    scale = x.shape[-1] * squares(program, w)
    eye = _identity(w)
    if eye is not None and b is None:
        return linear_of(program, field, eye)
    shift = offsets(b)

    def moments() -> tuple[Tensor, Tensor]:
        m, k = field.moments
        return torch.full_like(m, shift[0]), scale * k + shift[1]

    def pull(grad: Tensor) -> Pulled:
        return [(field, scale * grad)]

    made = program.fresh(out, field.features, moments, pull, kept=False)
    rows = w.detach().double().square().mean(0)
    if (
        len(rows) > 1 and rows.var() > 6 / len(w) * rows.mean() ** 2 > 0 and made.size == len(rows)
    ):  # more than i.i.d. entries scatter
        made.gains = rows / rows.mean()
    return made


@rule("conv1d", "conv2d", "conv3d")
def convolution(program: Program, call: Call, out: Tensor) -> Law | None:
    """Over positions, zero padding and strides as they are."""
    x, w = call.args[0], call.argument(1, "weight")
    if not is_weight(w) or is_weight(x) or x.dim() != w.dim():
        return None
    field = _entry(program, x, (1,))
    if not isinstance(field, Field) or field.features != (1,):
        return None
    if out.numel() // out.shape[1] > program.most or (law_of(x) is not None and field.count > 4 * program.most):
        program.too_many(call.name)
        return None
    taps = math.prod(w.shape[2:])
    hot = torch.eye(taps, dtype=torch.float64).reshape(taps, 1, *w.shape[2:])
    sites = [i for i in range(x.dim()) if i != 1]
    ids = places([x.shape[i] for i in sites]).unsqueeze(1)
    names = ("stride", "padding", "dilation")
    more = {name: call.argument(3 + i, name) for i, name in enumerate(names)}
    conv = getattr(F, call.name)
    ids = conv(ids, hot, **{k: v for k, v in more.items() if v is not None}).long()
    index = ids.movedim(1, -1).reshape(-1, taps)  # (N', taps): 1 + the site, or 0 for the padding
    shares = w.detach().double().square().mean((0, 1)).reshape(-1) * w.shape[1]
    squares(program, w)
    shift = offsets(call.argument(2, "bias"))
    dtype, given = dtype_of(len(index)), law_of(x) is None

    def moments() -> tuple[Tensor, Tensor]:
        if given:  # data: never the moments of all their positions
            rows = F.pad(field.canonical(x).to(dtype), (0, 0, 1, 0))
            parts = (rows[at] for at in index.T)
            k = sum(float(s) / rows.shape[1] * (r @ r.T) for s, r in zip(shares, parts, strict=True))
        else:
            padded = F.pad(field.moments[1].to(dtype), (1, 0, 1, 0))
            k = torch.zeros(len(index), len(index), dtype=dtype)
            for s, at in zip(shares, index.T, strict=True):
                k += padded[at[:, None], at].mul_(float(s))
        assert isinstance(k, Tensor)
        return torch.full((len(k),), shift[0], dtype=dtype), k.add_(shift[1])

    def pull(grad: Tensor) -> Pulled:
        if given:
            return []
        total = torch.zeros(field.count + 1, field.count + 1, dtype=grad.dtype)
        for s, at in zip(shares, index.T, strict=True):
            rows = torch.zeros(field.count + 1, len(at), dtype=grad.dtype).index_add_(0, at, grad)
            total.index_add_(1, at, rows, alpha=float(s))
        return [(field, total[1:, 1:].to(dtype_of(field.count)))]

    if w.shape[1] < 8 and not given and w.shape[1] != x.shape[1]:
        program.noted["few channels a group: what comes out is taken as Gaussian"] = None
    return program.fresh(out, (1,), moments, pull)


def squares(program: Program, w: Tensor) -> float:
    """The mean square of a weight; a mean that is no rounding is noted, and weights that are equal elsewhere."""
    place = w.data_ptr()
    w = w.detach().double()
    found = float(w.square().mean())
    if found and program.weights.setdefault((w.numel(), float(w.sum()), found), place) != place:
        program.noted["layers whose weights are copies of each other, taken for independent"] = None
    if abs(float(w.mean())) > 5 * math.sqrt(found / w.numel()):
        program.noted["weights with a mean: taken as without"] = None
    return found


def offsets(b: Tensor | None) -> tuple[float, float]:
    """Mean and mean square of a bias."""
    if b is None:
        return 0.0, 0.0
    b = b.detach().double()
    return float(b.mean()), float(b.square().mean())


def _identity(w: Tensor) -> float | None:
    """The factor of a multiple of the identity."""
    if w.shape[0] != w.shape[1] or not w.numel():
        return None
    c = float(w[0, 0])
    return c if torch.equal(w.detach(), c * torch.eye(len(w), dtype=w.dtype)) else None


@rule("matmul", "mm", "bmm")
def product(program: Program, call: Call, out: Tensor) -> Law | None:
    """Of data and weights, of two fields over their features (scores), of scores and a field."""
    from normscope.theory.program.attention import attended, scored

    a, b = (call.args[1], call.args[0]) if call.reflected else (call.args[0], call.argument(1, "other"))
    if b is None:
        b = call.argument(1, "mat2")
    if is_weight(b) and b.dim() == 2:
        return dense(program, call, a, b, None, out)
    left, right = law_of(a), law_of(b)
    if isinstance(right, Field) and left is None and b.dim() - 2 in right.sites:
        return mixed_with_bias(program, call, right, out)
    if isinstance(left, Field) and isinstance(right, Field):
        return scored(program, call, left, right, out)
    if right is not None and isinstance(right, Field) and left is not None:
        return attended(program, left, right, out)
    return None
