"""The factor of the Fisher, and the theory's top directions in its dual, screened on a part of the batch."""

from __future__ import annotations

import copy
import glob
import math
from dataclasses import replace

import torch
from torch import Tensor

from normscope.call.arguments import mapped
from normscope.call.losses import Loss
from normscope.call.step import Step
from normscope.core.errors import UsageError
from normscope.curvature._batches import Batches
from normscope.curvature._form import Form
from normscope.linalg.eigen import lanczos
from normscope.linalg.maps import Directions, LinearMap

#: Samples and share of the batch that the screening of start vectors looks at (chosen by us: on nets (a)-(c) of
#: benchmarks/curvature.py an eighth of the batch names the top direction well enough for 1e-3 in two more products).
SCREEN_SAMPLES, SCREEN_SHARE = 16, 1 / 8
#: No screening where it would cost more products than this (chosen by us: it saves about three).
SCREEN_COST = 1.5
#: Up to so many outputs the screening takes one VJP each; above, a few Lanczos steps in the space of outputs.
SCREEN_OUTPUTS = 24
#: The gap that the part of the batch sees is divided by this (chosen by us: with 2 the error was up to 1.7 times what
#: it was said to be, and above the tolerance on 1 of 30 nets).
SCREEN_SAFETY = 4.0
#: First residual up to which a start is believed through a softmax of more outputs than `SCREEN_OUTPUTS`: all
#: parameters are screened there, not biases alone, and a worse start still leads to the top (chosen by us: on 55
#: language models and plain nets of 27 to 65 classes, new and trained, the error was at most a third of what it was
#: said to be; of few outputs, or mean squared errors, some are missed from 0.2 on).
SCREEN_SOFTMAX = 0.45


def ggn_factor(f: Batches, form: Form) -> LinearMap:
    """A = J^T S / sqrt(n), (p, n c)."""
    forward, transposed = form.factor(f.value)
    root, shape, plain = math.sqrt(f.n), (f.n, f.c, -1), form.plain

    def apply(v: Tensor) -> Tensor:
        v = v / root
        return f.vjp(v if plain else forward(v.reshape(shape)).reshape(len(v), -1))

    def adjoint(w: Tensor) -> Tensor:
        out = f.jvp(w) / root
        return out if plain else transposed(out.reshape(shape)).reshape(len(out), -1)

    written = f.gram()

    def inner() -> Tensor:
        assert written is not None
        half = transposed(written().reshape(shape)).reshape(f.n * f.c, -1).T.contiguous()
        return transposed(half.reshape(shape)).reshape(f.n * f.c, -1) / f.n

    return LinearMap(
        (f.p, f.n * f.c),
        apply,
        adjoint,
        f.dtype,
        f.device,
        inner=None if written is None else inner,
        note="factor of the Fisher",
        facts=f.facts(),
    )


def mean_directions(f: Batches, form: Form) -> Directions:
    r"""The dual vectors of the mean gradients of the outputs: 1 (x) e_k / sqrt(n), through S^T for the softmax.

    Karakida, Akaho, Amari 2019: they carry the c largest eigenvalues of a wide net whose outputs are not centred.
    """

    def make(weights: Tensor) -> Tensor:
        v = (weights.to(f.device, f.dtype) / math.sqrt(f.n)).expand(f.n, *weights.shape).reshape(f.n, f.c, -1)
        return (v if form.uniform else form.factor(f.value)[1](v)).reshape(f.n * f.c, -1)

    plain = Directions(f.c, f.n * f.c, make, gram=None if form.uniform else lambda: form.mean_hessian(f.value))
    several, positions = len(f.parts) > 1, f.parts[0].positions
    size = max(math.ceil(SCREEN_SAMPLES / positions), round(f.n / positions * SCREEN_SHARE))
    share = size * positions / f.n
    piece = None if several or share > 1 / 2 or f.c == 1 else _head(f, size)
    if piece is None:
        return plain
    cost = (f.c + 1) / 2 * share if f.c <= SCREEN_OUTPUTS else 8 * share
    if cost > SCREEN_COST:
        return plain
    expected = SCREEN_SOFTMAX if form.softmax and f.c > SCREEN_OUTPUTS else None
    return replace(plain, screen=lambda: _screen(f, form, piece), screen_cost=cost, expected=expected)


def _head(f: Batches, size: int) -> Step | None:
    """The step on the first samples of the batch; ``None`` where some tensor of the inputs does not run over them."""
    step = f.parts[0].step
    rows, cut = step.rows, True

    def head(x: Tensor) -> Tensor:
        nonlocal cut
        if x.dim() <= rows.axis or x.shape[rows.axis] != rows.n:
            cut = False
            return x
        return x.narrow(rows.axis, 0, size)

    if rows.n * f.parts[0].positions != f.n or rows.rows is not None:
        return None
    args, kwargs = mapped(step.args, head), mapped(step.kwargs, head)
    if not cut:
        return None
    small = copy.copy(step)
    small.__dict__.pop("rows", None)
    for name, value in {"args": args, "kwargs": kwargs, "targets": None, "criterion": Loss.of("squared_error")}.items():
        object.__setattr__(small, name, value)
    return small


def _screen(f: Batches, form: Form, piece: Step) -> tuple[Tensor, float] | None:
    """Top weights and relative gap of the mean directions on a part of the batch; ``None`` where they do not stand out.

    Any start vector is a valid one, so that a part of the batch is as good as the whole for choosing it, and so are the
    gradients in biases and norm parameters alone: at every layer a weight's mean gradient is about the bias's times
    the mean activation, so that the outputs' overlaps are alike. It saves the passes' larger half. Through the softmax,
    which weights samples, the overlaps are not alike enough, and all parameters are taken.
    """
    vectors = [n for n, p in zip(f.parts[0].names, f.parts[0].theta, strict=True) if p.dim() == 1]
    only = [glob.escape(n) for n in vectors] if vectors and form.uniform else f.options.parameters
    options = replace(f.options, parameters=only)
    try:
        small = Batches(piece, options)
    except (UsageError, ValueError, RuntimeError):  # a batch size that the model does not take
        return None
    there = Form(form.softmax, form.rows[: small.n], None)
    factor, directions = ggn_factor(small, there), mean_directions(small, there)
    c, m = f.c, factor.shape[1]
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(m, 1, generator=generator, dtype=torch.float64).to(f.device) / math.sqrt(m)
    background = float(factor.matmat(noise).double().square().sum())
    if c <= SCREEN_OUTPUTS:
        y = factor.matmat(directions.make(torch.eye(c, dtype=torch.float64)))
        theta, q = torch.linalg.eigh((y.T @ y).double().cpu())
        theta, q = theta.flip(0), q.flip(1)
    else:

        def product(z: Tensor) -> Tensor:
            v = directions.make(z)
            image = factor.rmatmat(factor.matmat(v))
            forward = there.factor(small.value)[0]
            return forward(image.reshape(small.n, c, -1)).sum(0) / math.sqrt(small.n)

        ritz = lanczos(
            LinearMap((c, c), product, product, f.dtype, f.device), max_products=8, tol=0, k=6, generator=generator
        )
        theta, q = ritz.values, ritz.vectors.cpu()
    # A mean gradient's form is its own plus one bulk eigenvalue, and the bulk goes down as 1 / n.
    share = small.n / f.n
    if float(theta[0]) - background <= 3 * background * share:
        return None
    return q[:, 0], max(float((theta[0] - theta[1]) / theta[0]), 1e-6) / SCREEN_SAFETY
