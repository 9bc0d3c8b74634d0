r"""Norms: over features (each site divided by what its features have at infinite width) and over the batch.

A batch norm over up to `SPECTRAL` sites is the integral that `normscope.nn.norms` has, over up to `FEW` the activation
behind it included (an average over neurons outside the leaky family). Over more, with S the centred covariance, N sites
and $t = \mathrm{tr} S^2 / (\mathrm{tr} S)^2$, $K = N [S / \mathrm{tr} S (1 + 2 t) - 2 S^2 / (\mathrm{tr} S)^2]$: the
first order in t, one over the effective number of sites, and what follows sees a Gaussian.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from normscope.core.spec import ACTIVATIONS, NORMS
from normscope.nn.norms.integrals import linear_batch_norm_pull, rescaled_spectrum
from normscope.theory.grams import quasi_normals
from normscope.theory.program.arithmetic import affine, by_channel
from normscope.theory.program.interpreter import SPECIAL, Program, rule
from normscope.theory.program.kernels import Scalar, as_function, first_moment, recognised
from normscope.theory.program.laws import Field, Law, Pulled, of_draws, uncanonical
from normscope.theory.program.reading import Call, law_of
from normscope.theory.program.weights import offsets

#: Sites up to which a batch norm is taken at its finite size: with the activation behind it, and alone.
FEW, SPECTRAL = 192, 768
#: log2 of the neurons that an average over them takes.
_POINTS = 12


def standardised(
    program: Program, field: Field, out: Tensor, group: Tensor | None, *, recentre: bool, eps: float, w: Any, b: Any
) -> Field:
    """Each site minus the mean of its features over the root of their mean square: over the sites of its ``group`` (N,)
    too; ``None``: each its own. Then gain and bias.
    """

    def statistics() -> tuple[Tensor, Tensor]:
        m, k = field.moments
        square = k.diagonal()
        if group is not None:
            m, square = _averaged(m, group), _averaged(square, group)
        m = m if recentre else torch.zeros_like(m)
        return m, (square - m.square()).clamp_min(0).add(eps).rsqrt()

    gain = 1.0 if w is None else float(w.detach().double().square().mean())

    def moments() -> tuple[Tensor, Tensor]:
        m, k = field.moments
        mean, inverse = statistics()
        k = k - torch.outer(mean, m) - torch.outer(m, mean) + torch.outer(mean, mean)
        return affine((m - mean) * inverse, k * torch.outer(inverse, inverse), w, b)

    def by(x: Tensor) -> Tensor:
        mean, inverse = statistics()
        x = field.canonical(x)
        y = uncanonical((x - mean[:, None].to(x.dtype)) * inverse[:, None].to(x.dtype), field.shape, field.features)
        axis = field.features[0]
        shape = [-1 if i == axis else 1 for i in range(y.dim())]
        y = y if w is None else y * w.detach().reshape(shape)
        return y if b is None else y + b.detach().reshape(shape)

    def pull(grad: Tensor) -> Pulled:
        _, inverse = statistics()
        return [(field, gain * grad * torch.outer(inverse, inverse))]

    return Field(
        out.shape, field.features, program.draws, of=(field,), by=by, moments=moments, pull=pull,
        gaussian=field.gaussian, kept=False,
    )  # fmt: skip


def _averaged(x: Tensor, group: Tensor) -> Tensor:
    total = torch.zeros(int(group.max()) + 1, dtype=x.dtype).index_add_(0, group, x)
    return (total / torch.bincount(group))[group]


@rule("layer_norm", "rms_norm")
def layer_norm(program: Program, call: Call, out: Tensor) -> Law | None:
    """Over the last axes."""
    field = law_of(call.args[0])
    if not isinstance(field, Field):
        return None
    count = len(call.argument(1, "normalized_shape"))
    axes = set(range(len(field.shape) - count, len(field.shape)))
    w = call.argument(2, "weight")
    plain = call.name == "rms_norm"
    b = None if plain else call.argument(3, "bias")
    eps = call.argument(3 if plain else 4, "eps", 1e-5)
    eps = torch.finfo(out.dtype).eps if eps is None else eps
    if not set(field.features) <= axes or any(x is not None and law_of(x) is not None for x in (w, b)):
        return None
    group = _outside(field, axes) if set(field.sites) & axes else None
    return standardised(program, field, out, group, recentre=not plain, eps=eps, w=w, b=b)


@rule("group_norm")
def group_norm(program: Program, call: Call, out: Tensor) -> Law | None:
    """Over the positions of a sample and groups of its channels; small groups (fewer than 64 numbers) by draws."""
    field = law_of(call.args[0])
    groups = call.argument(1, "num_groups")
    if not isinstance(field, Field) or field.features != (1,):
        return None
    if math.prod(field.shape[1:]) // groups < 64:
        return program.sampled(call.again, [field], out, (1,))
    w, b, eps = call.argument(2, "weight"), call.argument(3, "bias"), call.argument(4, "eps", 1e-5)
    group = _outside(field, set(range(1, len(field.shape)))) if len(field.shape) > 2 else None
    return standardised(program, field, out, group, recentre=True, eps=eps, w=w, b=b)


def _outside(field: Field, axes: set[int]) -> Tensor:
    """For each site a number that is the same along these axes."""
    shape = [field.shape[i] for i in field.sites]
    kept = [1 if i in axes else field.shape[i] for i in field.sites]
    return torch.arange(math.prod(kept)).reshape(kept).expand(shape).reshape(-1)


@rule("batch_norm")
def batch_norm(program: Program, call: Call, out: Tensor) -> Law | None:
    """Over samples and positions, in training mode; with running statistics a gain and a bias of each channel."""
    field = law_of(call.args[0])
    if not isinstance(field, Field) or field.features != (1,):
        return None
    running = [call.argument(i, name) for i, name in ((1, "running_mean"), (2, "running_var"))]
    w, b = call.argument(3, "weight"), call.argument(4, "bias")
    eps = call.argument(7, "eps", 1e-5)
    if call.argument(5, "training", False) or running[0] is None:
        return over_batch(
            program, field, out, lambda x: F.batch_norm(x, None, None, w, b, True, 0.0, eps), NORMS["batch"], eps, w, b
        )
    inverse = (running[1].double() + eps).rsqrt()
    gain = inverse if w is None else inverse * w.detach().double()
    shift = -running[0].double() * gain + (0 if b is None else b.detach().double())
    return by_channel(program, field, gain.to(out.dtype), shift.to(out.dtype))


def over_batch(
    program: Program, field: Field, out: Tensor, again: Callable[[Tensor], Tensor], norm: Any, eps: float,
    w: Any = None, b: Any = None,
) -> Field:  # fmt: skip
    """A norm of `NORMS` that rescales, over all sites of a field."""
    n = field.count
    gain, shift = offsets(w)[1] if w is not None else 1.0, offsets(b)[1]

    def centred_moments() -> Tensor:
        k = field.moments[1]
        return (k - k.mean(0)).sub_(k.mean(1)[:, None]).add_(k.mean()) if norm.recenter else k

    def behind() -> Tensor:
        """K without gain and bias; eps as at the mean size."""
        s = centred_moments()
        size = float(s.diagonal().mean())
        shrink = size / (size + eps)
        if not size > 0:
            return torch.zeros_like(s)
        if field.gaussian and n <= SPECTRAL:
            values, vectors = np.linalg.eigh(s.double().numpy())
            exactly = (vectors * rescaled_spectrum(values.clip(0))) @ vectors.T
            return torch.from_numpy(exactly).to(s.dtype) * shrink
        trace, square = s.diagonal().sum(), s @ s
        first = (s / trace).mul_(1 + 2 * share(s))
        return first.sub_(square.mul_(2).div_(trace**2)).mul_(n * shrink)

    def moments() -> tuple[Tensor, Tensor]:
        m = torch.zeros(n, dtype=field.moments[1].dtype)
        if not norm.recenter:
            m = field.moments[0] / math.sqrt(float(field.moments[1].diagonal().mean()) + eps)
        return affine(m, behind(), w, b)

    def pull(grad: Tensor) -> Pulled:
        s, pi = centred_moments(), gain * grad
        size = float(s.diagonal().mean())
        factor = 1 / (size + eps)
        if field.gaussian and n <= SPECTRAL and _rank(s) > 2:
            exactly = linear_batch_norm_pull(field.moments[1].double().numpy(), pi.double().numpy(), norm.recenter)
            return [(field, torch.from_numpy(exactly).to(s.dtype) * (size * factor))]
        # One neuron y ~ N(0, K) of mean square 1: J = (P - y y^T / n) / sigma, sigma^2 of a Gamma law of its variance.
        factor = factor / max(1 - 2 * share(s), 0.2)
        del s
        k = (made.moments[1] - shift).div_(gain) if gain else behind()
        kp = k @ pi
        found = pi.sub_((kp + kp.mT).div_(n))
        second = (2 * kp) @ k
        found.add_(second.add_(k.mul_(kp.diagonal().sum())).div_(n**2))
        if norm.recenter:
            rows, columns, whole = found.mean(0), found.mean(1)[:, None], found.mean()
            found.sub_(rows).sub_(columns).add_(whole)
        return [(field, found.mul_(factor))]

    made = Field(
        out.shape, field.features, program.draws, of=(field,), by=again, moments=moments, pull=pull,
        gaussian=field.gaussian, kept=n <= SPECTRAL,
    )  # fmt: skip
    if not field.gaussian and n <= FEW:
        return _of_function(program, field, out, again, norm, gain, shift)
    if not field.gaussian:
        program.noted["batch norm of what is not Gaussian: its mean size for each neuron"] = None
    made.normed = (field, norm, gain if not shift else None)
    return made


def _of_function(
    program: Program, field: Field, out: Tensor, again: Callable[[Tensor], Tensor], norm: Any, gain: float, shift: float
) -> Field:
    """Few sites of what is not Gaussian: of a function of a Gaussian an average over neurons, else by draws."""
    made = Field(out.shape, field.features, program.draws, of=(field,), by=again)
    base = field.base
    if base is None or base.normed is not None or shift or bool(base.moments[0].any()):
        return made

    def moments() -> tuple[Tensor, Tensor]:
        assert base is not None
        covariance = base.moments[1].double().numpy()
        points = quasi_normals(field.count, _POINTS, 1, 0)[0]
        k = torch.from_numpy(norm.forward(covariance, as_function(field.function), False, points))
        mean = torch.zeros(len(k), dtype=k.dtype) if norm.recenter else of_draws(made)[0].to(k.dtype)
        return mean, gain * k

    return made.with_moments(moments)


def exact(field: Field) -> bool:
    """Is a batch norm over this field taken at its finite size?"""
    return field.gaussian and field.count <= FEW


def share(s: Tensor) -> float:
    """tr S^2 / (tr S)^2: one over the effective number of sites."""
    return float(s.square().sum() / s.diagonal().sum() ** 2)


def _rank(s: Tensor) -> int:
    return int(np.linalg.matrix_rank(s.double().numpy(), tol=1e-12 * float(s.diagonal().sum()), hermitian=True))


def through_norm(base: Field, of: Scalar) -> tuple[Tensor, Tensor] | None:
    """Moments of a function of a batch-normed Gaussian field, at the finite size of the batch; ``None``: not here."""
    if base.normed is None:
        return None
    field, norm, gain = base.normed
    if gain is None or not exact(field):
        return None
    known = recognised(of)
    phi, scale = as_function(lambda x: of(math.sqrt(gain) * x)), 1.0
    if known is not None and known.function.slope is not None:
        phi, scale = ACTIVATIONS["leaky_relu"].of_slope(known.function.slope), known.scale * math.sqrt(gain)
    points = quasi_normals(field.count, _POINTS, 1, 0)[0] if norm.samples(phi, True) else None
    found = torch.from_numpy(norm.forward(field.moments[1].double().numpy(), phi, True, points)) * scale**2
    variance = torch.full((field.count,), gain, dtype=torch.float64)
    return first_moment(of, torch.zeros_like(variance), variance), found


SPECIAL.append(through_norm)


@rule("standardised")
def standardised_batch(program: Program, call: Call, out: Tensor) -> Law | None:
    """The statistics of our own batch norms, in their switches (`normscope.nn.norms.batch`)."""
    field, mean, var, eps = law_of(call.args[0]), *call.args[1:4]
    if not isinstance(field, Field) or field.features != (1,):
        return None
    if any(law_of(x) is None for x in (mean, var) if x is not None):  # running ones
        one = torch.ones(field.shape[1])
        gain = one if var is None else (var + eps).rsqrt()
        return by_channel(program, field, gain.to(out.dtype), (0 * one if mean is None else -mean * gain).to(out.dtype))
    if var is None:
        return None if mean is None else _recentred(program, call, field)
    axes = [i for i in range(len(field.shape)) if i != 1]

    def again(x: Tensor) -> Tensor:
        m = x.mean(axes, keepdim=True) if mean is not None else torch.zeros(())
        return (x - m) / ((x - m).square().mean(axes, keepdim=True) + eps).sqrt()

    return over_batch(program, field, out, again, NORMS["batch" if mean is not None else "batch_rescale"], eps)


def _recentred(program: Program, call: Call, field: Field) -> Field:
    def centred(k: Tensor) -> Tensor:
        return k - k.mean(0) - k.mean(1)[:, None] + k.mean()

    def by(x: Tensor) -> Tensor:
        return x - x.mean([i for i in range(x.dim()) if i != 1], keepdim=True)

    return Field(
        field.shape, (1,), program.draws, of=(field,), by=by,
        moments=lambda: (field.moments[0] - field.moments[0].mean(), centred(field.moments[1])),
        pull=lambda grad: [(field, centred(grad))], gaussian=field.gaussian,
    )  # fmt: skip
