"""The Fisher matrix of wide nets: its largest eigenvalue, mean, second moment, and its outliers."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np

from normscope.claims._tables import Array, mean_and_error, slope_and_error
from normscope.claims.claim import Axes, Curve, Evidence, Run
from normscope.claims.karakida2019._paper import (
    LINEAR,
    PAPER,
    RELU,
    TANH,
    Kind,
    batch,
    behind,
    eigenvalues,
    grams,
    in_place,
    moments,
    net,
    spec_of,
    theory,
)
from normscope.claims.reading import Reading, at_least, at_most, between, near
from normscope.curvature import ntk
from normscope.gaussian import product_moment
from normscope.theory import fisher_statistics, order_parameters

#: kind -> alpha kappa_1, alpha kappa_2, q_1 - q_2 of the output (specification, section 2).
REFERENCE: tuple[tuple[Kind, float, float, float | None], ...] = (
    (Kind(layers=2), 2, 0.31831, 1.36338),
    (RELU, 3, 0.685709, 1.01254),
    (Kind(sb2=0.1), 3.15, 0.80299, 1.04098),
    (Kind(sw2=4, sb2=1), 14.5, 4.66352, 8.93729),
    (Kind(layers=4), 4, 1.06039, 0.79035),
    (TANH, 1.9110, 0.23723, 1.13398),
    (LINEAR, 3.3, 0.3, 1.0),
    (Kind("erf", 3, 0.64), 2.47864, 0.25142, 1.34777),
    (Kind(sb2=0.1, hidden="batch_recenter"), 2.36338, 0.21699, None),
    (Kind(sb2=0.1, hidden="batch"), 1.73347, 0.15915, None),
    (Kind(sb2=0.1, hidden="layer"), 1.38745, 0.37113, None),
    (replace(TANH, hidden="batch_recenter"), 2.1180, 0, None),
    (replace(TANH, hidden="batch"), 1.40567, 0, None),
    (replace(TANH, hidden="layer"), 0.98818, 0.21061, None),
)


@PAPER.claim(
    "order-parameters", "Eight order parameters, by recursions over layers, determine kappa_1 and kappa_2.",
    where="section 2.2 (setting)", covers="S2.recursions S2.table S1", quick={}, control={"readout": False},
    because="a readout of another variance has other back-propagated moments", seconds=(1, 1),
)  # fmt: skip
def order(run: Run, readout: bool = True) -> Iterator[Reading]:
    """The library's order parameters of fourteen nets, hidden norms included, against the specification's table and against
    the same recursions in plain arithmetic (closed forms, or a trapezoid rule for tanh and erf).
    """
    for kind, k1, k2, spread in REFERENCE:
        name = f"{kind.activation} {kind.layers} ({kind.sw2:g}, {kind.sb2:g}) {kind.hidden}"
        found = order_parameters(spec_of(kind, 200, 1), readout_gain=math.sqrt(kind.sw2) if readout else 1.0)
        own = theory(kind)
        yield near(f"alpha kappa_1, {name}", found.kappa[0], k1, 1e-4, reason="digits of the table")
        yield near(f"alpha kappa_2, {name}", found.kappa[1], k2, 1e-4, reason="digits of the table")
        yield at_most(f"difference of plain arithmetic, {name}", abs(own.k1 - k1) + abs(own.k2 - k2), 2e-4)
        if spread is not None:
            value = float(found.q1[-1] - found.q2[-1])
            yield near(f"spread of the output, {name}", value, spread, 1e-4, reason="digits of the table")


@PAPER.claim(
    "gaussian-moments", "The Gaussian moments of ReLU, linear, erf and tanh and of their derivatives.",
    where="closed forms of our section 2", covers="S2.closed", quick={}, control={"derivative": False},
    because="the moments of phi are not those of its derivative", seconds=(0.3, 0.3),
)  # fmt: skip
def gaussian_moments(run: Run, derivative: bool = True) -> Iterator[Reading]:
    """E phi^2, E phi phi and the same of phi' at several variances and correlations: the library against closed forms or a
    trapezoid rule, which for tanh beats Gauss-Hermite by far (poles at i pi/2).
    """
    for name in ("relu", "identity", "erf", "tanh"):
        worst = 0.0
        for q1, c in ((1.0, 0.0), (3.0, 0.5), (0.4, -0.7), (5.0, 0.95)):
            e1, e2, d1, d2 = moments(name, q1, c * q1)
            gram = np.array([[q1, c * q1], [c * q1, q1]])
            value, slope = product_moment(name, gram)[0], product_moment(name, gram, derivative=derivative)[0]
            worst = max(worst, *(abs(x - y) for x, y in zip((*value, *slope), (e1, e2, d1, d2), strict=True)))
        yield at_most(f"largest difference, {name}", worst, 1e-6, reason="quadrature")
    known = moments("tanh", 3.0, 0.0)[2]
    yield near("E tanh'^2 at q = 3", known, 0.29202, 1e-5, reason="digits of the specification")


@PAPER.claim(
    "lambda-max", "Without normalization lambda_max = alpha M ((N-1)/N kappa_2 + kappa_1/N): it grows as the width.",
    where="Theorem 1 (slide 31)", covers="7.1 T1.lambda Fig.A", quick={"widths": (100, 200, 400), "nets": 160, "kinds": (RELU,)},
    full={"widths": (10, 20, 40, 100, 200, 400, 500, 1000), "nets": 100, "kinds": (RELU, TANH, LINEAR)},
    control={"last": "batch_recenter", "nets": 4}, because="mean subtraction in the last layer removes the growth",
    seconds=(13.5, 400), axes=Axes("width M", "lambda_max", True, True),
)  # fmt: skip
def lambda_max(run: Run, widths: Sequence[int], nets: int, kinds: Sequence[Kind], last: str = "none") -> Evidence:
    """Largest eigenvalue of nets with three weight layers, one output, N = M Gaussian inputs, against the width: 139.5 at
    M = 200 within 12 %, and the slope of the logarithms from .9 to 1.1. The paper's figure is read off a slide; a single
    net has 10 % spread, dominated by its readout, and the slope from M = 100 to 400 is .93 (biases and the bulk lift small
    nets), so many nets are needed.
    """
    readings, curves = [], []
    for kind in kinds:
        own = theory(kind)
        means = [mean_and_error(list(_largest(run, kind, m, 1, nets * max(1, 400 // m), last))) for m in widths]
        for m, (value, error) in zip(widths, means, strict=True):
            if (m == 200 and kind == RELU) or m >= 500:
                readings.append(near(f"lambda_max, {kind.activation}, M = {m}", value, own.top(m, m), stderr=error,
                                     relative=0.12 if m == 200 else 0.05, reason="the specification's tolerance"))  # fmt: skip
        large = [i for i, m in enumerate(widths) if m >= 100]
        slope, error = slope_and_error(
            np.log([widths[i] for i in large]), np.log([means[i][0] for i in large]),
            [means[i][1] / means[i][0] for i in large],
        )  # fmt: skip
        readings.append(between(f"slope of logarithms, {kind.activation}", slope, 0.9, 1.1, stderr=error, expected=1.0,
                                reason="the specification's tolerance"))  # fmt: skip
        low, high = zip(*((v - 2 * e, v + 2 * e) for v, e in means), strict=True)
        curves += [
            Curve(f"measured, {kind.activation}", list(widths), [v for v, _ in means], "ours", low, high),
            Curve(f"theory, {kind.activation}", list(widths), [own.top(m, m) for m in widths], "theory"),
        ]
    curves.append(Curve("paper", (6, 10, 20, 40, 100, 200, 400, 1000), (10, 13, 20, 33, 75, 145, 280, 690), "printed"))
    return Evidence(tuple(readings), tuple(curves))


def _largest(run: Run, kind: Kind, width: int, outputs: int, nets: int, last: str) -> Iterator[float]:
    """lambda_max of nets of equal widths, N = M, with a norm behind the last layer."""
    for kernel, f in grams(run, kind, (width,) * kind.layers + (outputs,), width, nets):
        yield float(eigenvalues(behind(kernel, f, last))[0])


@PAPER.claim(
    "mean-subtraction", "Mean subtraction in the last layer keeps lambda_max O(1), between the theorem's bounds.",
    where="Theorem 2 (slide 38)", covers="7.2 T2.bounds Fig.A.lower Fig.G S0.benefit",
    quick={"widths": (100, 200, 400), "nets": 40}, full={"widths": (10, 20, 40, 100, 200, 400, 1000), "nets": 100},
    control={"last": "none", "nets": 8}, because="without it lambda_max grows as the width", seconds=(3, 150),
    axes=Axes("width M", "lambda_max", True, True),
)  # fmt: skip
def mean_subtraction(run: Run, widths: Sequence[int], nets: int, last: str = "batch_recenter") -> Evidence:
    """The same nets with the batch mean subtracted from the output, N = M: flat at 8.3, above rho alpha (kappa_1 - kappa_2) =
    2.31 and below sqrt(tr F^2). The paper's upper bound is conservative; its figure reads 8.4 from M = 40 on. The mean is
    taken off the Gram of the plain net; one net with the norm in place, in training mode, must agree.
    """
    own = theory(RELU)
    lower = own.k1 - own.k2
    means, inside = {}, 0
    for m in widths:
        values = []
        for kernel, f in grams(run, RELU, (m, m, m, 1), m, nets):
            found = eigenvalues(behind(kernel, f, last))
            values.append(float(found[0]))
            inside += m < 100 or lower <= found[0] <= math.sqrt(float(np.square(found).sum()))
        means[m] = mean_and_error(values)
    (a, ea), (b, eb) = means[100], means[400]
    readings = (
        near("lambda_max, M = 200", means[200][0], 8.3, 0.7, stderr=means[200][1], printed=8.4,
             reason="the specification's tolerance"),
        between("ratio M = 400 to 100", b / a, 0.75, 1.1, stderr=b / a * math.hypot(ea / a, eb / b),
                reason="the specification's tolerance"),
        near("share inside the bounds", inside / (nets * len(widths)), 1.0, 0.0, reason="a bound"),
        near("norm in place over projected", in_place(run, replace(RELU, last=last), 100, 1), 1.0, 1e-3, reason="exact"),
    )  # fmt: skip
    curves = (
        Curve("measured", list(widths), [means[m][0] for m in widths]),
        Curve("lower bound", list(widths), [lower] * len(widths), "theory"),
        Curve("paper", (6, 10, 20, 100, 1000), (5.8, 7.7, 8.5, 8.4, 8.45), "printed"),
    )
    return Evidence(readings, curves)


@PAPER.claim(
    "mean-eigenvalue", "The mean eigenvalue is kappa_1 C/M, with mean subtraction (1-1/N)(kappa_1-kappa_2) C/M.",
    where="Theorems 1 and 2", covers="7.3 T1.mean T2.mean", quick={"width": 200, "nets": 40}, full={"width": 1000, "nets": 40},
    control={"swap": True}, because="the two constants differ by a quarter", seconds=(1.3, 40),
)  # fmt: skip
def mean_eigenvalue(run: Run, width: int, nets: int, swap: bool = False) -> Iterator[Reading]:
    """M m = tr F/(alpha M), C = 2, N = M: .01500 M without and .01151 M with mean subtraction at M = 200, within 6 % (2 %
    at M = 1000).
    """
    own, traces = theory(RELU), {"none": [], "batch_recenter": []}  # type: ignore[var-annotated]
    for kernel, f in grams(run, RELU, (width, width, width, 2), width, nets):
        for last, kept in traces.items():
            kept.append(float(np.trace(behind(kernel, f, last))) / (2 * width))
    expected = {"none": own.k1, "batch_recenter": (1 - 1 / width) * (own.k1 - own.k2)}
    other = {"none": "batch_recenter", "batch_recenter": "none"}
    for last, kept in traces.items():
        mean, error = mean_and_error(kept)
        yield near(f"tr F / (C M), {last}", mean, expected[other[last] if swap else last], stderr=error,
                   relative=0.06 if width < 1000 else 0.02, reason="the specification's tolerance")  # fmt: skip


@PAPER.claim(
    "second-moment", "The second moment of the eigenvalues is alpha C ((N-1)/N kappa_2^2 + kappa_1^2/N).",
    where="Theorem 1", covers="7.4 T1.second", quick={"width": 1000, "samples": 100, "nets": 120},
    full={"width": 2000, "samples": 2000, "nets": 10},
    control={"last": "batch_recenter", "nets": 4}, because="without the outliers it is of order 1/M", seconds=(6, 200),
)  # fmt: skip
def second_moment(run: Run, width: int, samples: int, nets: int, last: str = "none") -> Iterator[Reading]:
    """tr F^2 / (alpha M^2), C = 2, over the formula, within 6 % (3 % at full size). It converges slowly (37 % too large at
    M = 100), so M = 1000; a single net scatters by 8 %, so many nets, on the predecessor's N = 100 samples: the law
    holds at any N.
    """
    own = theory(RELU)
    values = [
        float(np.square(behind(kernel, f, last)).sum()) / (2 * width**2)
        for kernel, f in grams(run, RELU, (width, width, width, 2), samples, nets)
    ]
    mean, error = mean_and_error(values)
    # s = tr F^2 / P and P = alpha M^2, alpha = 2; ``theory`` gives alpha kappa.
    expected = 2 / 2 * ((1 - 1 / samples) * own.k2**2 + own.k1**2 / samples)
    band = 0.06 if width < 2000 else 0.03
    yield near("s over the formula", mean / expected, 1.0, band, stderr=error / expected,
               reason="the specification's tolerance")  # fmt: skip


@PAPER.claim(
    "unequal-widths", "The formulas hold for unequal widths and shifted inputs, with the measured overlap.",
    where="Theorem 1, general widths", covers="7.5 S2.inputs", quick={"nets": 40}, full={"nets": 200},
    control={"shifted": 0.5, "nets": 8}, because="a mean in the inputs that theory is not told raises kappa_2",
    seconds=(3.6, 25),
)  # fmt: skip
def unequal_widths(run: Run, nets: int, shifted: float = 0.0) -> Iterator[Reading]:
    """Trace and largest eigenvalue of nets 200-400-800-2 on 150 inputs: ReLU, tanh, and ReLU with input mean .5, where the
    recursion starts from second moment 1.25 and overlap .25. The specification's theory: 3000 and 559.3, 1671 and 172,
    3700 and 807; trace within 4 %, lambda_max within 8 %.
    """
    widths, n = (200, 400, 800, 2), 150
    for kind, mean in ((Kind(sb2=0.1), 0.0), (TANH, 0.0), (Kind(sb2=0.1), 0.5)):
        own = theory(kind, widths[:3], 1 + mean**2, mean**2)
        traces, largest = [], []
        for kernel, _ in grams(run, kind, widths, n, nets, mean=mean + shifted):
            traces.append(float(np.trace(kernel)))
            largest.append(float(eigenvalues(kernel)[0]))
        name = f"{kind.activation}, input mean {mean:g}"
        (t, te), (v, ve) = mean_and_error(traces), mean_and_error(largest)
        yield near(f"trace, {name}", t, 2 * own.k1, relative=0.04, stderr=te, reason="the specification's tolerance")
        yield near(
            f"lambda_max, {name}", v, own.top(1, n), relative=0.08, stderr=ve, reason="the specification's tolerance"
        )


@PAPER.claim(
    "outliers", "C eigenvalues stand out, their eigenvectors span the mean gradients of the C outputs.",
    where="Theorem 1 (eigenvectors)", covers="7.6 T1.outliers Fig.D", quick={"samples": 100, "outputs": 10, "nets": 4},
    full={"samples": 100, "outputs": 10, "nets": 100}, control={"last": "batch_recenter", "nets": 1},
    because="mean subtraction removes them", seconds=(6, 120), axes=Axes("index", "eigenvalue", False, True),
)  # fmt: skip
def outliers(run: Run, samples: int, outputs: int, nets: int, last: str = "none") -> Evidence:
    """Ten outputs, a hundred samples. ReLU, M = 400: the C-th eigenvalue is over five times the next, and the top C
    eigenvectors lie in the span of the mean gradients (least squared cosine .999). Then the predecessor's spectrum
    figure, tanh, M = 200: two populations, the outliers from 49.6 to 60.7 in the specification's three nets.
    """
    readings, curves = [], []
    for kind, m in ((RELU, 400), (TANH, 200)):
        gaps, cosines, means = [], [], []
        for kernel, f in grams(run, kind, (m, m, m, outputs), samples, nets if kind == RELU else 4 * nets):
            values, vectors = np.linalg.eigh(behind(kernel, f, last))
            values, vectors = values[::-1], vectors[:, ::-1][:, :outputs]
            ones = np.tile(np.eye(outputs), (samples, 1))  # J^T of its columns are the mean gradients
            reach = np.sqrt(np.maximum(values[:outputs], 1e-12))[:, None] * (vectors.T @ ones)
            inside = (reach @ np.linalg.pinv(ones.T @ kernel @ ones) * reach).sum(1)
            gaps.append(float(values[outputs - 1] / values[outputs]))
            cosines.append(float(inside.min()))
            means.append(float(values[:outputs].mean()))
        if kind == RELU:
            readings += [
                at_least("l_C / l_C+1, ReLU, M = 400", min(gaps), 5, reason="the specification's bound"),
                at_least(
                    "least squared cosine, ReLU, M = 400", min(cosines), 0.999, reason="the specification's bound"
                ),
            ]
        else:
            mean, error = mean_and_error(means)
            readings.append(between("mean outlier, tanh, M = 200", mean, 49.6, 60.7, stderr=error,
                                    expected=theory(TANH).top(m, samples), reason="the specification's outliers"))  # fmt: skip
        name = f"{kind.activation}, M = {m}"
        curves.append(Curve(name, list(range(1, 3 * outputs + 1)), values[: 3 * outputs].tolist(), panel=name))
    return Evidence(tuple(readings), tuple(curves))


@PAPER.claim(
    "samples-must-grow", "The benefit needs samples in proportion to the width: at N = 100 fixed it grows again.",
    where="condition of Theorem 2", covers="7.7 T2.condition", quick={"widths": (500, 2000), "nets": 16, "samples": 100},
    full={"widths": (500, 1000, 2000, 4000), "nets": 40, "samples": 100}, control={"proportional": True, "nets": 2},
    because="with N in proportion to M it stays flat", seconds=(3.4, 60), axes=Axes("width M", "lambda_max", True, True),
)  # fmt: skip
def samples_must_grow(run: Run, widths: Sequence[int], nets: int, samples: int, proportional: bool = False) -> Evidence:
    """Mean-subtracted lambda_max at M = 2000 over that at 500, N = 100 at both: from 2.3 to 4 (the specification saw 22.3 to
    64.2, a factor 2.9).
    """
    means = {}
    for m in widths:
        n = samples * m // widths[0] if proportional else samples
        found = grams(run, Kind(sb2=0.1), (m, m, m, 1), n, nets)
        means[m] = mean_and_error([float(eigenvalues(behind(g, f, "batch_recenter"))[0]) for g, f in found])
    (a, ea), (b, eb) = means[500], means[2000]
    reading = between("lambda_max, M = 2000 over 500", b / a, 2.3, 4.0, stderr=b / a * math.hypot(ea / a, eb / b),
                      expected=2.88, reason="the specification's tolerance")  # fmt: skip
    curves = (
        Curve("mean subtraction, N = 100", list(widths), [means[m][0] for m in widths]),
        Curve("specification", (100, 200, 500, 1000, 2000), (10.0, 12.4, 22.3, 36.6, 64.2), "printed"),
    )
    return Evidence((reading,), curves)


@PAPER.claim(
    "per-layer", "The blocks of the layers have outliers of the same order, and their largest eigenvalues add up.",
    where="PS21, blocks", covers="7.18 T1.layers", quick={"width": 300, "nets": 12}, full={"width": 1000, "nets": 12},
    control={"last": "batch_recenter", "nets": 4}, because="without the common eigenvector they do not add", seconds=(10, 80),
)  # fmt: skip
def per_layer(run: Run, width: int, nets: int, last: str = "none") -> Iterator[Reading]:
    """lambda_max of the diagonal blocks of nets with two outputs, N = M: their sum is the whole's within 3 %, never less
    (ReLU: 2.4 + 76.4 + 168.6 = 247.4 against 246.1 in the specification). Along the vector of ones, which they share,
    each is M q~ q^ of its layer (on a hundred samples: the law holds at any N).
    """
    for kind in (RELU, TANH):
        sums, own = [], theory(kind)
        for r in range(nets):
            blocks = _blocks(run, kind, width, width, r, last)
            tops = [float(eigenvalues(b)[0]) for b in (*blocks, np.sum(blocks, 0))]
            sums.append(sum(tops[:3]) / tops[3])
        mean, error = mean_and_error(sums)
        yield near(f"sum of the blocks over the whole, {kind.activation}", mean, 1.0, 0.03, stderr=error,
                   reason="the specification's tolerance")  # fmt: skip
        yield at_least(f"least sum over the whole, {kind.activation}", min(sums), 1 - 1e-9, reason="a bound")
        along = [[_along(b) for b in _blocks(run, kind, width, 100, 1000 + r, last)] for r in range(8 * nets)]
        for layer in (1, 2):
            value, error = mean_and_error([v[layer] for v in along])
            expected = width * (own.terms2[layer] * 0.99 + own.terms1[layer] * 0.01)
            yield near(f"layer {layer + 1} along the ones, {kind.activation}", value, expected, 0.06 * expected + 2,
                       stderr=error, reason="6 % and the O(1) of finite width")  # fmt: skip


def _blocks(run: Run, kind: Kind, width: int, samples: int, r: int, last: str) -> list[Array]:
    """J J^T / N of each of three layers alone, two outputs, with a norm behind the last one."""
    model = net(kind, width, 2, run.generator(r)).to(run.device)
    x = batch(run, samples, width, 50_000 + r).to(run.device)
    f = model(x).detach().double().cpu().numpy()
    kernels = [ntk(model, x, parameters=f"{i}.*").dense().double().cpu().numpy() / samples for i in (0, 2, 4)]
    return [behind(k, f, last) for k in kernels]


def _along(block: Array) -> float:
    """Mean over two outputs of the form 1^T G 1 / N."""
    n = len(block) // 2
    return float(np.mean([block.reshape(n, 2, n, 2)[:, k, :, k].sum() / n for k in range(2)]))


@PAPER.claim(
    "centred-nets", "A centred net (tanh or linear without biases) has no outlier, so there is nothing to remove.",
    where="Theorem 1, kappa_2 = 0", covers="7.19 T1.centred", quick={"widths": (100, 400), "nets": 12},
    full={"widths": (100, 200, 400, 1000), "nets": 20}, control={"sb2": 0.64, "nets": 4},
    because="biases make the net non-centred", seconds=(5, 80),
)  # fmt: skip
def centred_nets(run: Run, widths: Sequence[int], nets: int, sb2: float = 0.0) -> Iterator[Reading]:
    """lambda_max without and with mean subtraction, of the same nets with two outputs: within 3 %, and flat in the width
    (7.6, 9.4, 8.8 at M = 100, 200, 400 for tanh, 17.1, 20.7, 19.0 for linear in the specification, one net each).
    """
    for activation, sw2 in (("tanh", 3.0), ("identity", 1.0)):
        means = {}
        for m in widths:
            none, ratio = [], []
            for kernel, f in grams(run, Kind(activation, sw2, sb2), (m, m, m, 2), m, nets):
                none.append(float(eigenvalues(kernel)[0]))
                ratio.append(none[-1] / float(eigenvalues(behind(kernel, f, "batch_recenter"))[0]))
            means[m] = mean_and_error(none)
            value, error = mean_and_error(ratio)
            yield near(f"without over with, {activation}, M = {m}", value, 1.0, 0.03, stderr=error,
                       reason="the specification's tolerance")  # fmt: skip
        (a, ea), (b, eb) = means[widths[0]], means[widths[-1]]
        yield between(f"growth over the widths, {activation}", b / a, 0.75, 1.33, expected=1.0,
                      stderr=b / a * math.hypot(ea / a, eb / b), reason="flat")  # fmt: skip


@PAPER.claim(
    "fisher-prediction", "What the library predicts for wide nets are the lines of the paper's learning-rate maps.",
    where="slides 32 and 40", covers="S3.predicted Fig.B.lines Fig.C.line", quick={}, control={"readout": False},
    because="the readout's variance enters", seconds=(0.1, 0.1),
)  # fmt: skip
def fisher_prediction(run: Run, readout: bool = True) -> Iterator[Reading]:
    """For ReLU (4, 1), 2/(alpha kappa_2 M) at M = 10 and 1000, and 2/(rho alpha (kappa_1-kappa_2)) with mean subtraction:
    .0425, 4.2e-4 and .203 read off the slide. Of the predecessor's MNIST map, 7.2e-4 at M = 4000 is ReLU (2, 0).
    """
    big = Kind(sw2=4.0, sb2=1.0)
    gain = 2.0 if readout else 1.0
    kappa = order_parameters(spec_of(big, 10, 1), readout_gain=gain).kappa[1]
    for m, printed in ((10, 0.0425), (1000, 4.2e-4)):
        yield near(f"none, M = {m}", 2 / (m * kappa), printed, relative=0.025, printed=printed,
                   reason="read off to 1.5 %, printed to two digits")  # fmt: skip
    exact = fisher_statistics(spec_of(big, 1000, 1), 1000, readout_gain=gain).max_learning_rate
    yield near("none, M = 1000, finite N and biases", exact, 4.29e-4, relative=0.01, reason="the specification's value")
    centred = fisher_statistics(spec_of(replace(big, last="batch_recenter"), 1000, 1), 1000, readout_gain=gain)
    yield near("mean subtraction", centred.max_learning_rate, 0.203, relative=0.01, printed=0.203, reason="read off")
    mnist = fisher_statistics(spec_of(RELU, 4000, 1), 4000, readout_gain=gain / math.sqrt(2)).max_learning_rate
    yield near("ReLU (2, 0), M = 4000", mnist, 7.2e-4, relative=0.03, printed=7.2e-4, reason="read off")
