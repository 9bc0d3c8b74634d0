"""Batch norm and layer norm, in the last layer and in hidden ones; softmax; frozen statistics; replicas."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy.optimize import brentq
from scipy.sparse.linalg import eigsh
from torch import nn

from normscope.claims._tables import Array, indicator, mean_and_error, ratio_and_error, slope_and_error
from normscope.claims.claim import Axes, Curve, Evidence, Run
from normscope.claims.karakida2019._paper import (
    PAPER,
    RELU,
    TANH,
    Kind,
    batch,
    behind,
    eigenvalues,
    grams,
    in_place,
    largest,  # fmt: skip
    net,
    plain,
    theory,
    tops,
)
from normscope.claims.reading import Reading, at_least, at_most, between, near
from normscope.curvature import fisher, last_layer, ntk
from normscope.linalg import spectrum
from normscope.nn import BatchNorm


@PAPER.claim(
    "last-batch-norm", "Batch norm in the last layer alleviates the sharpness as mean subtraction does.",
    where="abstract; Theorem 3 (constants ours)", covers="7.8 T3.order", quick={"widths": (100, 200, 400), "nets": 60},
    full={"widths": (100, 200, 400, 1000, 2000), "nets": 100}, control={"last": "none", "nets": 8},
    because="without it lambda_max grows as the width", seconds=(15, 1500),
    axes=Axes("width M", "lambda_max", True, True),
)  # fmt: skip
def last_batch_norm(run: Run, widths: Sequence[int], nets: int, last: str = "batch") -> Evidence:
    """ReLU nets with batch norm (whole batch, differentiated through) on two outputs, N = M: 9.32 +- .03 at M = 200 in
    1900 nets, some of them without any code of the library (8.6 +- .3 in the reference runs' eight nets), so M = 200
    has eight times the nets; flat in the width. The mean of its eigenvalues is the theorem's lower bound,
    (kappa_1-kappa_2)/(q_1-q_2) = 2.286. All is taken off the Gram of the plain net; one net with the norm in place, in
    training mode, must agree.
    """
    own = theory(RELU)
    lower = (own.k1 - own.k2) / (own.q1 - own.q2)
    means, traces = {}, {}
    for m in widths:
        many = grams(run, RELU, (m, m, m, 2), m, 8 * nets if m == 200 else nets)
        found = [(largest(b), float(np.trace(b)) / (2 * m)) for b in (behind(g, f, last) for g, f in many)]
        means[m], traces[m] = (mean_and_error(v) for v in zip(*found, strict=True))
    growth, error = ratio_and_error(means[widths[-1]], means[100])
    readings = (
        near("lambda_max, M = 200", means[200][0], 9.32, 0.25, stderr=means[200][1],
             reason="9.32 +- .03 in 1900 nets"),
        near("mean eigenvalue over the lower bound, M = 200", traces[200][0] / lower, 1.0, 0.06,
             stderr=traces[200][1] / lower, reason="as for mean subtraction"),
        between(f"ratio M = {widths[-1]} to 100", growth, 0.75, 1.1, stderr=error,
                reason="as for mean subtraction; 9.7, 8.6, 8.9 in the reference runs"),
        near("norm in place over projected", in_place(run, replace(RELU, last="batch"), 100, 2, last), 1.0, 1e-3,
             reason="eps = 1e-5"),
    )  # fmt: skip
    curves = (Curve("batch norm", list(widths), [means[m][0] for m in widths]),
              Curve("lower bound", list(widths), [lower] * len(widths), "theory"),
              Curve("reference runs", (100, 200, 500, 1000, 2000), (9.7, 8.6, 8.9, 8.6, 8.7), "printed"))  # fmt: skip
    return Evidence(readings, curves)


@PAPER.claim(
    "hidden-batch-norm-relu", "Batch norm in hidden layers of ReLU nets leaves lambda_max = M/(2 pi) + O(1).",
    where="hidden-layer theorem (sharper form ours)", covers="7.10 T4.relu", quick={"widths": (100, 200), "nets": 16},
    full={"widths": (100, 200, 400, 1000, 2000), "nets": 8}, control={"hidden": "none", "nets": 2},
    because="without it the slope is .8", seconds=(4, 120), axes=Axes("width M", "lambda_max"),
)  # fmt: skip
def hidden_batch_norm_relu(run: Run, widths: Sequence[int], nets: int, hidden: str = "batch") -> Evidence:
    """The last layer alone has an outlier, of the mean square of its inputs' means: 1/(2 pi) a unit, whatever the
    variances and the depth. Excess over M/(2 pi) with two outputs, N = M; the same growth with five layers; at full
    size the slope.
    """
    means = {m: mean_and_error(tops(run, Kind(sb2=0.1, hidden=hidden), m, m, 2, nets)) for m in widths}
    deep = Kind(sb2=0.1, hidden=hidden, layers=5)
    (low, below), (high, above) = (mean_and_error(tops(run, deep, m, m, 2, nets, stream=7)) for m in (100, 200))
    readings = [
        between(f"excess, M = {m}", value - m / (2 * math.pi), 0.5, 2.5, stderr=error,
                reason="tolerance set beforehand")
        for m, (value, error) in means.items()
    ]  # fmt: skip
    readings.append(near("five layers, lambda_max(200) - lambda_max(100)", high - low, 100 / (2 * math.pi), 1.0,
                         stderr=math.hypot(below, above),
                         reason="the same slope; half the width of the band above"))  # fmt: skip
    if len(widths) > 2:
        slope, error = slope_and_error(list(widths), [means[m][0] for m in widths], [means[m][1] for m in widths])
        readings.append(near("slope", slope, 0.1592, 0.002, stderr=error, reason="tolerance set beforehand"))
    line = Curve("M / 2 pi", list(widths), [m / (2 * math.pi) for m in widths], "theory")
    known = Curve("reference runs", (100, 200, 400, 800), (17.99, 33.66, 65.55, 129.10), "printed")
    return Evidence(tuple(readings), (Curve("measured", list(widths), [means[m][0] for m in widths]), line, known))


@PAPER.claim(
    "hidden-norms-tanh", "Where the activation has mean zero after the norm (tanh), hidden batch norm does give O(1).",
    where="exception (ours)", covers="7.11 T4.tanh", quick={"widths": (100, 400), "nets": 4},
    full={"widths": (100, 400, 1000, 2000), "nets": 8}, control={"kind": Kind(sb2=0.1), "nets": 2},
    because="ReLU keeps a mean", seconds=(4.2, 90),
)  # fmt: skip
def hidden_norms_tanh(run: Run, widths: Sequence[int], nets: int, kind: Kind = TANH) -> Iterator[Reading]:
    """Ratio of lambda_max at M = 400 to 100 with batch norm and with mean subtraction in the hidden layers, no norm at
    the output: 7.1 to 6.7, and 8.9 to 8.3 in the reference runs, so from .8 to 1.25.
    """
    for hidden in ("batch", "batch_recenter"):
        low, high = (mean_and_error(tops(run, replace(kind, hidden=hidden), m, m, 2, count, tol=0.01)) for m, count in
                     ((widths[0], 3 * nets), (widths[-1], nets)))  # fmt: skip
        ratio = high[0] / low[0]
        error = ratio * math.hypot(high[1] / high[0], low[1] / low[0])
        yield between(f"ratio over the widths, {hidden}", ratio, 0.8, 1.25, stderr=error, expected=1.0,
                      reason="tolerance set beforehand")  # fmt: skip


@PAPER.claim(
    "hidden-early-norm", "Batch norm at an earlier layer leaves the outliers of the layers behind it.",
    where="hidden-layer theorem", covers="T4.partial", quick={"width": 200, "nets": 60},
    full={"width": 400, "nets": 60},
    control={"at": 2, "nets": 3}, because="behind the last hidden layer only the readout is left", seconds=(2, 5.5),
)  # fmt: skip
def hidden_early_norm(run: Run, width: int, nets: int, at: int = 1) -> Iterator[Reading]:
    """ReLU (2, .1), three weight layers, batch norm before the first activation only: sum over the later layers of
    M q~ q^, 79.0 at M = 200 (75.5 in the reference runs' nets); before the second one it is as if everywhere (33.7).
    """
    found = []
    for r in range(nets):
        count = iter(range(1, 9))

        def norm(features: int, count: Iterator[int] = count) -> nn.Module:
            return BatchNorm(features, affine=False) if next(count) == at else nn.Identity()

        model = plain((width, width, width, 2), nn.ReLU, 2.0, 0.1, run.generator(r), hidden=norm, dtype=torch.float32)
        x = batch(run, width, width, 100 + r)
        found.append(spectrum(fisher(model, x), tol=3e-3, method="lanczos").largest)
    mean, error = mean_and_error(found)
    yield near("lambda_max / M", mean / width, 79.0 / 200, relative=0.12, stderr=error / width,
               reason="as for the plain net, 7.1")  # fmt: skip


@PAPER.claim(
    "layer-norm", "Layer norm does not help: averages over units are not averages over samples.",
    where="layer-norm theorem (constants ours)", covers="7.12 T5",
    quick={"width": 400, "samples": 100, "outputs": 10, "nets": 24},
    full={"width": 1000, "samples": 100, "outputs": 10, "nets": 40},
    control={"center": "batch_recenter", "layer": "batch", "hidden": "batch", "nets": 2},
    because="batch statistics in the place of the sample's do help", seconds=(3.7, 22),
)  # fmt: skip
def layer_norm(
    run: Run, width: int, samples: int, outputs: int, nets: int, center: str = "layer_recenter", layer: str = "layer",
    hidden: str = "layer",
) -> Iterator[Reading]:  # fmt: skip
    """In the last layer, ten outputs: mean only keeps the largest eigenvalue (2 %) and C-1 outliers; the full norm
    multiplies them by the eigenvalues of the mean of Q(n)/sigma(n)^2 (12 %), again C-1. In hidden layers: the recursion
    with layer norm (7 %), two outputs.
    """
    only, gap, full, last_gap = [], [], [], []
    for kernel, f in grams(run, RELU, (width, width, width, outputs), samples, nets):
        before, centred, whole = (
            eigsh(behind(kernel, f, v), outputs, v0=np.arange(len(kernel)) + 1.0, return_eigenvectors=False)[::-1]
            for v in ("none", center, layer)
        )
        only.append(float(centred[0] / before[0]))
        gap.append(float(centred[outputs - 2] / centred[outputs - 1]))
        u = f - f.mean(1, keepdims=True)
        variance = u.var(1)
        u = u / np.sqrt(variance)[:, None]
        q = np.eye(outputs) - 1 / outputs - np.einsum("ni,nj->nij", u, u) / outputs
        top = float(np.linalg.eigvalsh((q / variance[:, None, None]).mean(0))[-1])
        full.append(float(whole[0]) / (theory(RELU).top(width, samples) * top))
        last_gap.append(float(whole[outputs - 2] / whole[outputs - 1]))
    mean, error = mean_and_error(only)
    yield near("mean only, largest over plain", mean, 1.0, 0.02, stderr=error, reason="tolerance set beforehand")
    mean, error = mean_and_error(gap)
    yield at_least("mean only, outlier C-1 over the next", mean, 3, stderr=error, reason="C-1 outliers")
    mean, error = mean_and_error(full)
    yield near("full norm, largest over the formula", mean, 1.0, 0.12, stderr=error, reason="tolerance set beforehand")
    mean, error = mean_and_error(last_gap)
    yield at_least("full norm, outlier C-1 over the next", mean, 2, stderr=error, reason="85 against 20.5")
    value, error = mean_and_error(tops(run, Kind(sb2=0.1, hidden=hidden), width, samples, 2, nets))
    own = theory(Kind(sb2=0.1, hidden="layer")).top(width, samples)
    yield near("hidden layers", value / own, 1.0, 0.07, stderr=error / own, reason="tolerance set beforehand")


@PAPER.claim(
    "softmax", "With softmax the outliers are alpha M kappa_2 times the eigenvalues of the mean of diag(g) - g g^T.",
    where="PS21 (constants ours)", covers="7.9 T6 Fig.E",
    quick={"width": 400, "samples": 200, "outputs": 3, "nets": 64},
    full={"width": 1000, "samples": 100, "outputs": 10, "nets": 40},
    control=({"last": "batch_recenter", "nets": 2}, {"loss": "squared_error", "nets": 2}),
    because="mean subtraction in the last layer removes them; the squared loss has one more, and larger ones",
    seconds=(35, 24),
)  # fmt: skip
def softmax(
    run: Run, width: int, samples: int, outputs: int, nets: int, last: str = "none", loss: str = "cross_entropy"
) -> Evidence:
    """Cross-entropy Fisher of ReLU nets: its C-1 outliers over their prediction from the softmax outputs at hand (6 %),
    the next one below 5; the trace; and at most half the squared loss's largest eigenvalue, exactly.

    The leading order leaves out the bulk, which adds to small outliers (at ten outputs 8 % to the eighth, 23 % to the
    ninth): an outlier s above eigenvalues b that are free of it stands at lambda, 1/s = mean 1/(lambda - b). That is
    the prediction here, with the bulk as measured; the notes have the leading order beside it.
    """
    ratios, leading, below, traces, rest, own = [], [], 0.0, [], [], theory(RELU)
    for r in range(nets):
        model = net(replace(RELU, last=last), width, outputs, run.generator(r)).to(run.device)
        x = batch(run, samples, width, 100 + r).to(run.device)
        found = spectrum(fisher(model, x, loss=loss), k=outputs, tol=1e-3, trace=True)
        top = found.eigenvalues[: outputs - 1].double().cpu().numpy()
        g = model(x).detach().double().softmax(1).cpu().numpy()
        bulk = _softmax_eigenvalues(ntk(model, x).dense().double().cpu().numpy() / samples, g)[outputs - 1 :]
        alone = np.linalg.eigvalsh(np.diag(g.mean(0)) - g.T @ g / samples)[:0:-1]
        ratios.append([t / _above(width * own.k2 * a, bulk) for t, a in zip(top, alone, strict=True)])
        leading.append(top / (own.top(width, samples) * alone))
        rest.append(float(found.eigenvalues[outputs - 1]))
        half = spectrum(fisher(model, x), tol=1e-3).largest / 2
        below += float(indicator(found.largest <= half * 1.001, found.largest, half))
        assert found.trace is not None
        traces.append(found.trace.value / (width * own.k1 * (1 - float(np.square(g).sum(1).mean()))))
    few = outputs == 3
    readings = []
    for k in range(outputs - 1):
        mean, error = mean_and_error([float(v[k]) for v in ratios])
        readings.append(near(f"outlier {k + 1} over its prediction", mean, 1.0, 0.06, stderr=error, reason="6 %"))
    if few:
        mean, error = mean_and_error(rest)
        readings.append(
            at_most("next eigenvalue", mean, 5, stderr=error, reason="the reference runs'; 3.17 in one net")
        )
    mean, error = mean_and_error(traces)
    readings += [near("trace over its prediction", mean, 1.0, 0.06, stderr=error, reason="as for the outliers"),
                 near("nets within half of the squared loss's", below / nets, 1.0, 0.0, reason="a bound")]  # fmt: skip
    told = ", ".join(f"{v:.3f} +- {e:.3f}" for v, e in (mean_and_error(column) for column in np.transpose(leading)))
    return Evidence(tuple(readings), notes=(f"Outliers over the leading order alone: {told}.",))


def _softmax_eigenvalues(kernel: Array, g: Array) -> Array:
    """All eigenvalues of the cross-entropy Fisher, descending, but the zero of every sample; from J J^T / N and the
    softmax outputs g (N, C).
    """
    n, c = g.shape
    roots = np.sqrt(g)
    factor = roots[:, :, None] * np.eye(c) - g[:, :, None] * roots[:, None, :]  # S S^T = diag(g) - g g^T
    blocks = np.einsum("nab,nbmd,mde->name", factor.transpose(0, 2, 1), kernel.reshape(n, c, n, c), factor,
                       optimize=True)  # fmt: skip
    return eigenvalues(blocks.reshape(n * c, n * c))[: n * (c - 1)]


def _above(alone: float, bulk: Array) -> float:
    """Where an eigenvalue that is ``alone`` without them stands above the eigenvalues of a free bulk."""
    edge = float(bulk[0]) * (1 + 1e-9)
    return float(brentq(lambda at: np.mean(1 / (at - bulk)) - 1 / alone, edge, 10 * (alone + edge)))


@PAPER.claim(
    "softmax-outliers-as-printed", "Cross-entropy has C outliers.", where="PS21, summary", covers="T6.erratum",
    quick={"counted": "C", "nets": 5}, control={"counted": "C - 1"}, because="Q 1 = 0 takes one away: C - 1",
    should="fail", seconds=(1, 1),
)  # fmt: skip
def softmax_outliers(run: Run, counted: str, nets: int) -> Iterator[Reading]:
    """As reported of the summary in the 2021 paper: C outliers. (diag(g) - g g^T) 1 = 0 for every sample, so there are
    C - 1. We count eigenvalues above the largest ratio of two neighbours, the median over nets: one that gives a class
    next to no probability has an outlier less.
    """
    for c in (2, 3):
        counts = []
        for i in range(nets):
            model = net(RELU, 400, c, run.generator(c + 10 * i))
            x = batch(run, 100, 400, 10 + c + 100 * i)
            values = spectrum(fisher(model, x, loss="cross_entropy"), k=c + 2, method="dense").eigenvalues.numpy()
            counts.append(int(np.argmax(values[: c + 1] / values[1 : c + 2])) + 1)
        count = float(np.median(counts))
        yield near(f"outliers, C = {c}", count, c if counted == "C" else c - 1, 0.1, printed=c, reason="a count")


@PAPER.claim(
    "frozen-statistics", "With frozen statistics (eval mode, detached) the sharpness stays of the order of the width.",
    where="Theorem 3 (remark ours)", covers="7.13 T3.frozen",
    quick={"width": 400, "samples": 200, "outputs": 3, "nets": 16}, control={"frozen": "batch"},
    because="the effect lives in differentiating through mean and variance", seconds=(2.6, 2)
)  # fmt: skip
def frozen_statistics(
    run: Run, width: int, samples: int, outputs: int, nets: int, frozen: str = "frozen"
) -> Iterator[Reading]:
    """lambda_max with the last batch norm's statistics held constant, over that in training mode: 337 against 13.5, 24
    to 27 in the reference runs' three nets, so over 20. One net by the library's own what-if.
    """
    ratios = []
    for kernel, f in grams(run, RELU, (width, width, width, outputs), samples, nets):
        ratios.append(largest(behind(kernel, f, frozen)) / largest(behind(kernel, f, "batch")))
    mean, error = mean_and_error(ratios)
    yield at_least("frozen over training", mean, 20, stderr=error, reason="bound set beforehand")
    kernel, f = next(grams(run, RELU, (100, 100, 100, outputs), 100, 1))
    model, x = net(RELU, 100, outputs, run.generator(100)), batch(run, 100, 100, 500_100)
    whatif = spectrum(last_layer(model, x, "batch_frozen"), tol=1e-4, method="lanczos").largest
    yield near("the library's what-if over ours", whatif / largest(behind(kernel, f, frozen)), 1.0, 1e-3)


@PAPER.claim(
    "replicas", "Replicas with their own statistics: mean subtraction never sharper, batch norm sharper when they are "
    "small.",
    where="section 6 (ours)", covers="7.21", quick={"width": 100, "samples": 100}, full={"width": 200, "samples": 200},
    control={"swap": True}, because="the whole batch is the sharper one under mean subtraction", seconds=(1.7, 38),
)  # fmt: skip
def replicas(run: Run, width: int, samples: int, swap: bool = False) -> Iterator[Reading]:
    """Lists of batches with their own statistics stand for replicas. Mean subtraction: at most the whole batch's
    lambda_max, exactly. Batch norm on five samples: more than twice (116 against 12 in the reference runs).
    """
    x = batch(run, samples, width, 1)
    for last in ("batch_recenter", "batch"):
        model = net(Kind(sb2=0.1, last=last), width, 2, run.generator(0))
        whole = spectrum(fisher(model, x), method="dense").largest
        for size in (5, 10, 20) if last == "batch_recenter" else (5,):
            ratio = spectrum(fisher(model, data=list(x.split(size))), method="dense").largest / whole
            ratio = 1 / ratio if swap else ratio
            name = f"{last}, {size} samples a replica, over the whole batch"
            yield at_most(name, ratio, 1 + 1e-5) if last == "batch_recenter" else at_least(name, ratio, 2)
