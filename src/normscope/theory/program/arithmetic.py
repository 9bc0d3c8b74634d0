"""Sums, products, means over features, dropout, and tensors beside each other."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from normscope.theory.program.interpreter import Program, rule
from normscope.theory.program.laws import Field, Known, Law, Pulled, Scores, dtype_of, of_data, uncanonical
from normscope.theory.program.moves import beside, cross
from normscope.theory.program.reading import Call, basis, by_feature, law_of


def _operands(call: Call) -> tuple[Any, Any]:
    a, b = call.args[0], call.argument(1, "other")
    return (b, a) if call.reflected else (a, b)


@rule("add", "sub")
def add(program: Program, call: Call, out: Tensor) -> Law | None:
    """a + b: second moments add where no source is shared; data and biases of features count as they are."""
    a, b = _operands(call)
    alpha = call.kwargs.get("alpha", 1)
    sign = (-1 if call.name == "sub" else 1) * alpha
    return combined(program, call, out, a, b, sign)


def combined(program: Program, call: Call, out: Tensor, a: Any, b: Any, sign: float) -> Law | None:
    """a + sign b."""
    laws = law_of(a), law_of(b)
    if any(isinstance(x, Scores) for x in laws) or not any(isinstance(x, Field) for x in laws):
        return None
    if all(isinstance(x, Field) for x in laws):
        x, y = laws
        assert isinstance(x, Field)
        assert isinstance(y, Field)
        same = x.base is not None and x.base is y.base and not (x.gaussian and y.gaussian)
        if same and x.shape == y.shape:
            return program.pointwise(call, [x, y])
        x, y = (program.expanded(f, out.shape) for f in (x, y))
        if x is None or y is None or x.features != y.features:
            return None
        return _sum(program, x, y, sign)
    at = 0 if isinstance(laws[0], Field) else 1
    field, other, law = laws[at], (a, b)[1 - at], laws[1 - at]
    assert isinstance(field, Field)
    own, signs = (1.0, sign) if at == 0 else (sign, 1.0)
    if isinstance(law, Known):
        other = law.value
    if not isinstance(other, Tensor) or other.numel() == 1:
        return linear_of(program, field, own, signs * float(other))
    wide = program.expanded(field, out.shape)
    if wide is None:
        return None
    data = other.detach().expand(out.shape)
    if own == 1 and _same(wide.canonical(data)):
        return _per_feature(program, wide, 1.0, signs * data, lambda x: x + signs * data)
    return _sum(program, wide, program.data(data, wide.features), signs, own)


def _sum(program: Program, x: Field, y: Field, sign: float, own: float = 1.0) -> Field:
    """own x + sign y."""

    def moments() -> tuple[Tensor, Tensor]:
        (mx, kx), (my, ky) = x.moments, y.moments
        total = own**2 * kx + sign**2 * ky
        if x.sources & y.sources or (bool(mx.any()) and bool(my.any())):
            both = own * sign * cross(x, y)
            total = total + both + both.T
        return own * mx + sign * my, total

    def pull(grad: Tensor) -> Pulled:
        return [(x, own**2 * grad), *([(y, sign**2 * grad)] if y.sources else [])]

    return Field(
        x.shape, x.features, program.draws, of=(x, y), by=lambda a, b: own * a + sign * b, moments=moments, pull=pull,
        gaussian=x.gaussian and y.gaussian,
    )  # fmt: skip


def linear_of(program: Program, field: Field, scale: float, shift: float = 0.0) -> Field:
    """scale x + shift, entry by entry."""
    inner = field.function

    def moments() -> tuple[Tensor, Tensor]:
        m, k = field.moments
        moved = scale * shift * (m[:, None] + m[None, :]) + shift**2 if shift else 0.0
        return scale * m + shift, scale**2 * k + moved

    made = Field(
        field.shape, field.features, program.draws, of=(field,), by=lambda x: scale * x + shift, moments=moments,
        pull=lambda grad: [(field, scale**2 * grad)], gaussian=field.gaussian, kept=False,
    )  # fmt: skip
    made.base = field.base
    made.function = lambda x: scale * inner(x) + shift
    return made


@rule("mul", "multiply")
def mul(program: Program, call: Call, out: Tensor) -> Law | None:
    """a b: second moments multiply where no source is shared."""
    return _scaled(program, call, out, *_operands(call))


@rule("div", "truediv", "divide")
def div(program: Program, call: Call, out: Tensor) -> Law | None:
    """a / b; two fields by draws."""
    a, b = _operands(call)
    law = law_of(b)
    if call.kwargs.get("rounding_mode"):
        return None
    if isinstance(law, Known):
        b = law.value
    elif law is not None:
        x, y = law_of(a), law
        if not isinstance(x, Field) or not isinstance(y, Field) or (x.base is not None and x.base is y.base):
            return None
        wide = program.expanded(x, out.shape), program.expanded(y, out.shape)
        if wide[0] is None or wide[1] is None or wide[0].features != wide[1].features:
            return None
        return program.sampled(lambda p, q: p / q, [w for w in wide if w is not None], out, wide[0].features)
    return _scaled(program, call, out, a, 1 / b)


def _scaled(program: Program, call: Call, out: Tensor, a: Any, b: Any) -> Law | None:
    laws = law_of(a), law_of(b)
    if any(isinstance(x, Scores) for x in laws) or not any(isinstance(x, Field) for x in laws):
        return None
    if all(isinstance(x, Field) for x in laws):
        x, y = laws
        assert isinstance(x, Field)
        assert isinstance(y, Field)
        if x.shape == y.shape and x.base is not None and x.base is y.base:
            return program.pointwise(call, [x, y])
        x, y = (program.expanded(f, out.shape) for f in (x, y))
        if x is None or y is None or x.features != y.features:
            return None
        return _product(program, call, out, x, y)
    at = 0 if isinstance(laws[0], Field) else 1
    field, other, law = laws[at], (a, b)[1 - at], laws[1 - at]
    assert isinstance(field, Field)
    if isinstance(law, Known):
        other = law.value
    if not isinstance(other, Tensor) or other.numel() == 1:
        return linear_of(program, field, float(other))
    wide = program.expanded(field, out.shape)
    return None if wide is None else times_data(program, wide, other.detach().expand(out.shape))


def times_data(program: Program, field: Field, data: Tensor) -> Field:
    """Times numbers of each site and feature, as they are."""
    rows = field.canonical(data)
    if _same(rows):
        return _per_feature(program, field, data, 0.0, lambda x: x * data)
    found: list[tuple[Tensor, Tensor]] = []

    def of() -> tuple[Tensor, Tensor]:
        if not found:
            found.append(of_data(data, field.features))
        return found[0]

    def moments() -> tuple[Tensor, Tensor]:
        (m, k), (md, kd) = field.moments, of()
        return m * md, k * kd

    plain = bool((rows == rows[:, :1]).all())
    return Field(
        field.shape, field.features, program.draws, of=(field,), by=lambda x: x * data, moments=moments,
        pull=lambda grad: [(field, grad * of()[1])], gaussian=field.gaussian and plain,
    )  # fmt: skip


def affine(m: Tensor, k: Tensor, w: Tensor | None, b: Tensor | None) -> tuple[Tensor, Tensor]:
    """Behind a gain and a bias of each feature, as they are."""
    if w is None and b is None:
        return m, k
    one = torch.ones(1, dtype=torch.float64)
    w = one if w is None else w.detach().double().reshape(-1)
    b = torch.zeros_like(w) if b is None else b.detach().double().reshape(-1)
    ww, wb, bb = (float((x * y).mean()) for x, y in ((w, w), (w, b), (b, b)))
    shifted = wb * (m[:, None] + m[None, :]) + bb if wb or bb else 0.0
    return float(w.mean()) * m + float(b.mean()), ww * k + shifted


def _same(rows: Tensor) -> bool:
    """Are these numbers (N, size) the same for all sites?"""
    return torch.equal(rows, rows[:1].expand_as(rows))


def _per_feature(program: Program, field: Field, gain: Any, shift: Any, by: Callable[[Tensor], Tensor]) -> Field:
    """gain x + shift with numbers that each feature has for all sites, tensors of the field's shape."""
    w, b = (
        field.canonical(x)[0].double() if isinstance(x, Tensor) else torch.tensor([x]).double() for x in (gain, shift)
    )
    size = float(w.square().mean())
    return Field(
        field.shape, field.features, program.draws, of=(field,), by=by, gaussian=field.gaussian, kept=False,
        moments=lambda: affine(*field.moments, w, b), pull=lambda grad: [(field, size * grad)],
    )  # fmt: skip


def _product(program: Program, call: Call, out: Tensor, x: Field, y: Field) -> Field | None:
    if x.sources & y.sources and not _halves(x, y):
        return program.sampled(lambda a, b: a * b, [x, y], out, x.features)

    def moments() -> tuple[Tensor, Tensor]:
        return x.moments[0] * y.moments[0], x.moments[1] * y.moments[1]

    def pull(grad: Tensor) -> Pulled:
        return [(x, grad * y.moments[1]), (y, grad * x.moments[1])]

    return Field(
        out.shape, x.features, program.draws, of=(x, y), by=lambda a, b: a * b, moments=moments, pull=pull,
    )  # fmt: skip


def _halves(x: Field, y: Field) -> bool:
    """Whether two fields of the same sources are of other features: parts of one output."""
    a, b = x.canonical(x.draw(0)).double(), y.canonical(y.draw(0)).double()
    a, b = a - a.mean(), b - b.mean()
    scale = float(a.norm() * b.norm())
    return scale > 0 and abs(float((a * b).sum())) / scale < 5 / math.sqrt(a.shape[1])


@rule("dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_dropout")
def dropout(program: Program, call: Call, out: Tensor) -> Law | None:
    """In training mode a site's own square grows by 1 / (1 - p); channels that drop whole, all of a sample's."""
    law, p, training = law_of(call.args[0]), call.argument(1, "p", 0.5), call.argument(2, "training", True)
    if not training or not p:
        return law
    if call.name == "alpha_dropout" or not isinstance(law, Field | Scores):
        return None
    return dropped(program, law, p, whole=call.name != "dropout")


def dropped(program: Program, law: Law, p: float, whole: bool = False) -> Law:
    """Behind dropout; ``whole``: of channels."""
    seed = program.seed * 1_000_003 + len(program.nodes)
    axes = 2 if whole else len(law.shape)

    shape = [size if at < axes else 1 for at, size in enumerate(law.shape)]

    def drawn(i: int) -> Tensor:
        random = torch.Generator().manual_seed(seed + 7919 * i)
        return (torch.rand(shape, generator=random) >= p).to(law.draw(i).dtype) / (1 - p)

    mask = Law(shape, program.draws, draw=drawn)
    parts: dict[str, Any] = {"of": (law, mask), "by": lambda x, m: x * m}

    if isinstance(law, Scores):
        return Scores(law.shape, law.draws, **parts)
    assert isinstance(law, Field)
    sample = torch.arange(law.shape[0]).repeat_interleave(law.count // law.shape[0])

    def grown(k: Tensor) -> Tensor:
        if whole:
            return k * (1 + (sample[:, None] == sample).to(k.dtype) * (p / (1 - p)))
        k = k.clone()
        k.diagonal().mul_(1 + p / (1 - p))
        return k

    return Field(
        law.shape, law.features, program.draws, moments=lambda: (law.moments[0], grown(law.moments[1])),
        pull=lambda grad: [(law, grown(grad))], kept=False, **parts,
    )  # fmt: skip


@rule("mean", "sum", "var", "std", "norm", "vector_norm", "linalg_vector_norm", "var_mean", "std_mean")
def reduced(program: Program, call: Call, out: Tensor) -> Law | None:
    """Over features: a number of infinite width, from the first two moments; over sites: a map of these."""
    field = law_of(call.args[0])
    if not isinstance(field, Field):
        return None
    acts = by_feature(call, field, out.dtype)
    if acts is not None:
        return (
            program.mixed(call, field, out, acts[0]) if acts[1] else program.sampled(call.again, [field], out, acts[0])
        )
    if out.numel() * field.size > 2 * field.shape.numel() or call.name.endswith("_mean"):
        return None
    m, k = field.moments
    spread = (k.diagonal() - m.square()).clamp_min(0).sqrt()
    signs = torch.ones(field.size, dtype=m.dtype)
    signs[1::2] = -1
    # Features with the mean and the spread of the field's.
    value = call.again(uncanonical(m[:, None] + spread[:, None] * signs, field.shape, field.features).to(out.dtype))
    return Known(value)


@rule("cat", "concat", "concatenate")
def cat(program: Program, call: Call, out: Tensor) -> Law | None:
    """Tensors beside each other: along features a mean over all of them, along sites all together."""
    parts, dim = [x for x in call.args[0] if x.numel()], call.argument(1, "dim", 0) % out.dim()
    first = next((x for x in map(law_of, parts) if isinstance(x, Field)), None)
    if first is None or any(isinstance(law_of(x), Scores) for x in parts):
        return None
    fields: list[Field] = []
    for x in parts:
        law = law_of(x)
        fields.append(law if isinstance(law, Field) else program.data(x.detach(), first.features))
    if any(f.features != first.features for f in fields):
        return None
    dtype = out.dtype
    parts_of: dict[str, Any] = {"of": fields, "by": lambda *x: torch.cat([a.to(dtype) for a in x], dim)}

    if dim in first.features:
        shares = [f.size / sum(g.size for g in fields) for f in fields]

        def mean() -> tuple[Tensor, Tensor]:
            return _weighted([f.moments[0] for f in fields], shares), _weighted([f.moments[1] for f in fields], shares)

        return Field(
            out.shape, first.features, program.draws, moments=mean, **parts_of,
            pull=lambda grad: [(f, s * grad) for f, s in zip(fields, shares, strict=True) if f.sources],
        )  # fmt: skip
    order = _site_order(fields, dim)
    if len(order) > program.most:
        return None
    counts = [f.count for f in fields]
    moments = beside(fields)

    def ordered() -> tuple[Tensor, Tensor]:
        m, k = moments()
        return m[order], k[order][:, order]

    def pull(grad: Tensor) -> Pulled:
        back = torch.empty_like(grad)
        back[order[:, None], order[None, :]] = grad
        starts = [sum(counts[:i]) for i in range(len(counts))]
        return [(f, back[s : s + c, s : s + c]) for f, s, c in zip(fields, starts, counts, strict=True) if f.sources]

    gaussian = all(f.gaussian for f in fields)
    return Field(
        out.shape, first.features, program.draws, moments=ordered, pull=pull, gaussian=gaussian, kept=False, **parts_of
    )


def _weighted(parts: list[Tensor], shares: list[float]) -> Tensor:
    return sum(s * x for s, x in zip(shares, parts, strict=True))  # type: ignore[return-value]


def _site_order(fields: list[Field], dim: int) -> Tensor:
    """Place among the sites of all fields, one after the other, of each site behind ``cat``."""
    start, ids = 0, []
    for f in fields:
        shape = [1 if i in f.features else f.shape[i] for i in range(len(f.shape))]
        ids.append(torch.arange(start, start + f.count).reshape(shape))
        start += f.count
    return torch.cat(ids, dim).reshape(-1)


def by_channel(program: Program, field: Field, gain: Tensor, shift: Tensor) -> Field:
    """gain x + shift, numbers of each channel of axis 1, as they are."""
    shape = [-1 if i == 1 else 1 for i in range(len(field.shape))]
    scaled = times_data(program, field, gain.reshape(shape).expand(field.shape))
    program.nodes.append(scaled)
    data = shift.reshape(shape).expand(field.shape)
    return _sum(program, scaled, program.data(data, field.features), 1.0)


def mixed_with_bias(program: Program, call: Call, field: Field, out: Tensor) -> Field | None:
    """A linear layer along an axis of sites, its weights as they are: the same map for each feature."""
    new = out.numel() // field.size
    if max(field.count, new) > program.most:
        return None
    like = dtype_of(field.count)

    def cast(x: Any) -> Any:
        return x.to(like) if isinstance(x, Tensor) and law_of(x) is None else x

    leaves = Call(call.func, tuple(map(cast, call.args)), {k: cast(x) for k, x in call.kwargs.items()})
    zero = leaves.again(torch.zeros(field.shape, dtype=like))
    shift = zero.movedim(field.features[0], -1).reshape(new, -1)[:, 0]
    s = basis(leaves, field, field.features, like) - shift[:, None]

    def moments() -> tuple[Tensor, Tensor]:
        m, k = field.moments
        u, moved = s @ m, s @ k @ s.T
        return u + shift, moved + torch.outer(u, shift) + torch.outer(shift, u) + torch.outer(shift, shift)

    return Field(
        out.shape, field.features, program.draws, of=(field,), by=call.again, moments=moments,
        pull=lambda grad: [(field, s.T @ grad @ s)], gaussian=field.gaussian,
    )  # fmt: skip
