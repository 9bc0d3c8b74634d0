"""The few large eigenvalues: their directions, their layers, and nets that have none."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from normscope.claims._tables import Array, lowest, mean_and_error, ratio_and_error
from normscope.claims.claim import Axes, Curve, Evidence, Run
from normscope.claims.karakida2019._paper import PAPER, RELU, TANH, Kind, batch, behind, grams, largest, net, theory
from normscope.claims.reading import Reading, at_least, between, near
from normscope.curvature import ntk


@PAPER.claim(
    "outliers", "C eigenvalues stand out, their eigenvectors span the mean gradients of the C outputs.",
    where="Theorem 1 (eigenvectors)", covers="7.6 T1.outliers Fig.D", quick={"samples": 100, "outputs": 10, "nets": 4},
    full={"samples": 100, "outputs": 10, "nets": 100}, control={"last": "batch_recenter", "nets": 1},
    because="mean subtraction removes them", seconds=(6, 120), axes=Axes("index", "eigenvalue", False, True),
)  # fmt: skip
def outliers(run: Run, samples: int, outputs: int, nets: int, last: str = "none") -> Evidence:
    """Ten outputs, a hundred samples. ReLU, M = 400: the C-th eigenvalue is over five times the next, and the top C
    eigenvectors lie in the span of the mean gradients (least squared cosine .999). Then the predecessor's spectrum
    figure, tanh, M = 200: two populations, the outliers from 49.6 to 60.7 in the reference runs' three nets.
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
                at_least("l_C / l_C+1, ReLU, M = 400", lowest(gaps), 5, reason="bound set beforehand"),
                at_least("least squared cosine, ReLU, M = 400", lowest(cosines), 0.999, reason="bound set beforehand"),
            ]
        else:
            mean, error = mean_and_error(means)
            readings.append(between("mean outlier, tanh, M = 200", mean, 49.6, 60.7, stderr=error,
                                    expected=theory(TANH).top(m, samples),
                                    reason="the reference runs' outliers"))  # fmt: skip
        name = f"{kind.activation}, M = {m}"
        curves.append(Curve(name, list(range(1, 3 * outputs + 1)), values[: 3 * outputs].tolist(), panel=name))
    return Evidence(tuple(readings), tuple(curves))


@PAPER.claim(
    "per-layer", "The blocks of the layers have outliers of the same order, and their largest eigenvalues add up.",
    where="PS21, blocks", covers="7.18 T1.layers", quick={"width": 300, "nets": 12}, full={"width": 1000, "nets": 12},
    control={"last": "batch_recenter", "nets": 4}, because="without the common eigenvector they do not add",
    seconds=(10, 80),
)  # fmt: skip
def per_layer(run: Run, width: int, nets: int, last: str = "none") -> Iterator[Reading]:
    """lambda_max of the diagonal blocks of nets with two outputs, N = M: their sum is the whole's within 3 %, never
    less (ReLU: 2.4 + 76.4 + 168.6 = 247.4 against 246.1 in the reference runs). Along the vector of ones, which they
    share, each is M q~ q^ of its layer (on a hundred samples: the law holds at any N).
    """
    for kind in (RELU, TANH):
        sums, own = [], theory(kind)
        for r in range(nets):
            blocks = _blocks(run, kind, width, width, r, last)
            tops = [largest(b) for b in (*blocks, np.sum(blocks, 0))]
            sums.append(sum(tops[:3]) / tops[3])
        mean, error = mean_and_error(sums)
        yield near(f"sum of the blocks over the whole, {kind.activation}", mean, 1.0, 0.03, stderr=error,
                   reason="tolerance set beforehand")  # fmt: skip
        yield at_least(f"least sum over the whole, {kind.activation}", lowest(sums), 1 - 1e-9,
                       exact="a bound of every sum of matrices")  # fmt: skip
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
    because="biases make the net non-centred", seconds=(1.2, 80),
)  # fmt: skip
def centred_nets(run: Run, widths: Sequence[int], nets: int, sb2: float = 0.0) -> Iterator[Reading]:
    """lambda_max without and with mean subtraction, of the same nets with two outputs: within 3 %, and flat in the
    width (7.6, 9.4, 8.8 at M = 100, 200, 400 for tanh, 17.1, 20.7, 19.0 for linear in reference runs, one net each).
    """
    for activation, sw2 in (("tanh", 3.0), ("identity", 1.0)):
        means = {}
        for m in widths:
            none, ratio = [], []
            for kernel, f in grams(run, Kind(activation, sw2, sb2), (m, m, m, 2), m, nets):
                none.append(largest(kernel))
                ratio.append(none[-1] / largest(behind(kernel, f, "batch_recenter")))
            means[m] = mean_and_error(none)
            value, error = mean_and_error(ratio)
            yield near(f"without over with, {activation}, M = {m}", value, 1.0, 0.03, stderr=error,
                       reason="tolerance set beforehand")  # fmt: skip
        growth, error = ratio_and_error(means[widths[-1]], means[widths[0]])
        yield between(f"growth over the widths, {activation}", growth, 0.75, 1.33, expected=1.0, stderr=error,
                      reason="flat")  # fmt: skip
