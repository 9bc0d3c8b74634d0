"""What theory gives: order parameters, Gaussian moments, and the lines of the learning-rate maps."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np

from normscope.claims._tables import highest
from normscope.claims.claim import Run
from normscope.claims.karakida2019._paper import LINEAR, PAPER, RELU, TANH, Kind, moments, spec_of, theory
from normscope.claims.reading import Reading, at_most, near
from normscope.gaussian import product_moment
from normscope.theory import fisher_statistics, order_parameters

#: kind -> alpha kappa_1, alpha kappa_2, q_1 - q_2 of the output (the recursions of section 2 by hand).
REFERENCE: tuple[tuple[Kind, float, float, float | None], ...] = ((Kind(layers=2), 2, 0.31831, 1.36338),
                 (RELU, 3, 0.685709, 1.01254), (Kind(sb2=0.1), 3.15, 0.80299, 1.04098),
                 (Kind(sw2=4, sb2=1), 14.5, 4.66352, 8.93729), (Kind(layers=4), 4, 1.06039, 0.79035),
                 (TANH, 1.9110, 0.23723, 1.13398), (LINEAR, 3.3, 0.3, 1.0),
                 (Kind("erf", 3, 0.64), 2.47864, 0.25142, 1.34777),
                 (Kind(sb2=0.1, hidden="batch_recenter"), 2.36338, 0.21699, None),
                 (Kind(sb2=0.1, hidden="batch"), 1.73347, 0.15915, None),
                 (Kind(sb2=0.1, hidden="layer"), 1.38745, 0.37113, None),
                 (replace(TANH, hidden="batch_recenter"), 2.1180, 0, None),
                 (replace(TANH, hidden="batch"), 1.40567, 0, None),
                 (replace(TANH, hidden="layer"), 0.98818, 0.21061, None))  # fmt: skip


@PAPER.claim(
    "order-parameters", "Eight order parameters, by recursions over layers, determine kappa_1 and kappa_2.",
    where="section 2.2 (setting)", covers="S2.recursions S2.table S1", quick={},
    control=({"readout": False}, {"exchange": {"relu": "tanh", "tanh": "relu", "identity": "relu", "erf": "relu"}}),
    because="a readout of another variance has other back-propagated moments, and so has another activation",
    seconds=(0.14, 1),
)  # fmt: skip
def order(run: Run, readout: bool = True, exchange: Mapping[str, str] = {}) -> Iterator[Reading]:
    """The library's order parameters of fourteen nets, hidden norms included, against the table of reference values and
    against the same recursions in plain arithmetic (closed forms, or a trapezoid rule for tanh and erf).
    """
    for kind, k1, k2, spread in REFERENCE:
        name = f"{kind.activation} {kind.layers} ({kind.sw2:g}, {kind.sb2:g}) {kind.hidden}"
        built = replace(kind, activation=exchange.get(kind.activation, kind.activation))
        found = order_parameters(spec_of(built, 200, 1), readout_gain=math.sqrt(kind.sw2) if readout else 1.0)
        own = theory(kind)
        yield near(f"alpha kappa_1, {name}", found.kappa[0], k1, 1e-4, reason="digits of the table")
        yield near(f"alpha kappa_2, {name}", found.kappa[1], k2, 1e-4, reason="digits of the table")
        yield at_most(f"difference of plain arithmetic, {name}", abs(own.k1 - k1) + abs(own.k2 - k2), 2e-4,
                      exact="one recursion, twice; the plain sums are coarse")  # fmt: skip
        if spread is not None:
            value = float(found.q1[-1] - found.q2[-1])
            yield near(f"spread of the output, {name}", value, spread, 1e-4, reason="digits of the table")
    plain = replace(RELU, activation=exchange.get("relu", "relu"))
    kappa = order_parameters(spec_of(plain, 200, 1), readout_gain=1.0).kappa[0]
    yield near("alpha kappa_1 at a readout of variance 1", kappa, 2.0, 1e-4, reason="each layer before it counts half")


@PAPER.claim(
    "gaussian-moments", "The Gaussian moments of ReLU, linear, erf and tanh and of their derivatives.",
    where="closed forms (theory.md)", covers="S2.closed", quick={}, control={"derivative": False},
    because="the moments of phi are not those of its derivative", seconds=(0.3, 0.3),
)  # fmt: skip
def gaussian_moments(run: Run, derivative: bool = True) -> Iterator[Reading]:
    """E phi^2, E phi phi and the same of phi' at several variances and correlations: the library against closed forms
    or a trapezoid rule, which for tanh beats Gauss-Hermite by far (poles at i pi/2).
    """
    for name in ("relu", "identity", "erf", "tanh"):
        worst = 0.0
        for q1, c in ((1.0, 0.0), (3.0, 0.5), (0.4, -0.7), (5.0, 0.95)):
            e1, e2, d1, d2 = moments(name, q1, c * q1)
            gram = np.array([[q1, c * q1], [c * q1, q1]])
            value, slope = product_moment(name, gram)[0], product_moment(name, gram, derivative=derivative)[0]
            worst = highest(worst, *(abs(x - y) for x, y in zip((*value, *slope), (e1, e2, d1, d2), strict=True)))
        yield at_most(f"largest difference, {name}", worst, 1e-6, reason="quadrature")
    known = float(product_moment("tanh", np.eye(2) * 3, derivative=derivative)[0, 0])
    yield near("E tanh'^2 at q = 3", known, 0.29202, 1e-5, reason="digits of the reference runs")


@PAPER.claim(
    "fisher-prediction", "What the library predicts for wide nets are the lines of the paper's learning-rate maps.",
    where="slides 32 and 40", covers="S3.predicted Fig.B.lines Fig.C.line", quick={}, control={"readout": False},
    because="the readout's variance enters", seconds=(0.1, 0.1),
)  # fmt: skip
def fisher_prediction(run: Run, readout: bool = True) -> Iterator[Reading]:
    """For ReLU (4, 1), 2/(alpha kappa_2 M) at M = 10 and 1000, and 2/(rho alpha (kappa_1-kappa_2)) with mean
    subtraction: .0425, 4.2e-4 and .203 read off the slide. Of the predecessor's MNIST map, 7.2e-4 at M = 4000 is ReLU
    (2, 0).
    """
    big = Kind(sw2=4.0, sb2=1.0)
    gain = 2.0 if readout else 1.0
    kappa = order_parameters(spec_of(big, 10, 1), readout_gain=gain).kappa[1]
    for m, printed in ((10, 0.0425), (1000, 4.2e-4)):
        yield near(f"none, M = {m}", 2 / (m * kappa), printed, relative=0.025, printed=printed,
                   reason="read off to 1.5 %, printed to two digits")  # fmt: skip
    exact = fisher_statistics(spec_of(big, 1000, 1), 1000, readout_gain=gain).max_learning_rate
    yield near("none, M = 1000, finite N and biases", exact, 4.29e-4, relative=0.01, reason="the reference runs' value")
    centred = fisher_statistics(spec_of(replace(big, last="batch_recenter"), 1000, 1), 1000, readout_gain=gain)
    yield near("mean subtraction", centred.max_learning_rate, 0.203, relative=0.01, printed=0.203, reason="read off")
    k1, k2 = order_parameters(spec_of(big, 10, 1), readout_gain=2.0).kernels
    few = fisher_statistics(spec_of(big, 10, 1), 10, readout_gain=gain).lambda_max
    top = 0.9 * k2 + 0.1 * k1
    yield near("lambda_max at N = 10", few, top, relative=1e-9, reason="(N-1)/N K_2 + K_1/N, Theorem 1")
    mnist = fisher_statistics(spec_of(RELU, 4000, 1), 4000, readout_gain=gain / math.sqrt(2)).max_learning_rate
    yield near("ReLU (2, 0), M = 4000", mnist, 7.2e-4, relative=0.03, printed=7.2e-4, reason="read off")
