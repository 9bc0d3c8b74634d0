r"""Order parameters of a wide net, and what they say of its Fisher matrix (karakida2019, amari/karakida 2019-2021).

A net of L weight layers of width M (hidden) on N inputs whose entries have second moment v and whose pairs overlap by
o (v = 1, o = 0 for standard Gaussian data). $F = J^T J / N$, the Fisher matrix per sample of the squared loss.
Leading order in M; all of it under gradient independence. Widths, biases and the batch size enter as they are, not as
M -> infinity.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from normscope.core.errors import UsageError, whole_number
from normscope.core.spec import NORMS, Spec
from normscope.gaussian import product_moment
from normscope.linalg import Array
from normscope.nn.nets import weight_scale
from normscope.nn.norms import Norm
from normscope.theory._start import checked_spec, read_start
from normscope.theory.grams import WideLayer, check_wide, quasi_normals


@dataclass(frozen=True)
class OrderParameters:
    r"""Second moments layer by layer; index t = 1 one input, t = 2 two different inputs.

    q1, q2: $q_t^l$ of the pre-activations, l = 1..L. qhat1, qhat2: $\hat q_t^l$ of the layer inputs, l = 0..L-1.
    qtilde1, qtilde2: $\tilde q_t^l$ of the back-propagated $\partial f_k / \partial u^l$, l = 1..L.
    fan_in: $M_{l-1}$; centred: weight layers whose own pre-activation is centred over the batch (they see centred
        inputs).
    bias: whether the layers have biases, whose gradients count 1 beside the $M_{l-1} \hat q$ of the weights.
    """

    q1: Array
    q2: Array
    qhat1: Array
    qhat2: Array
    qtilde1: Array
    qtilde2: Array
    fan_in: Array
    centred: tuple[bool, ...]
    bias: bool

    @property
    def alpha_m2(self) -> float:
        r"""$\alpha M^2 = \sum_{l<L} M_l M_{l-1}$ for equal hidden widths."""
        widths = np.append(self.fan_in[1:], 0)
        return float((widths * self.fan_in).sum())

    @property
    def kernels(self) -> tuple[float, float]:
        r"""$K_t$ = alpha M kappa_t with the biases: diagonal and off-diagonal entries of the NTK of one output.

        A layer whose pre-activation is centred over the batch adds $\tilde q_1 (\hat q_1 - \hat q_2)$ to $K_1$, 0 to
        $K_2$.
        """
        return float(self._terms(1).sum()), float(self._terms(2).sum())

    @property
    def kappa(self) -> tuple[float, float]:
        r"""$\alpha\kappa_t = \frac1M \sum_l M_{l-1} \tilde q_t^l \hat q_t^{l-1}$ over the hidden width M, without
        the biases.
        """
        width = float(self.fan_in[-1])
        return float(self._terms(1, bias=False).sum() / width), float(self._terms(2, bias=False).sum() / width)

    def _terms(self, t: int, bias: bool = True) -> Array:
        ones = 1.0 if self.bias and bias else 0.0
        c = np.array(self.centred)
        first = self.qtilde1 * (self.fan_in * np.where(c, self.qhat1 - self.qhat2, self.qhat1) + np.where(c, 0, ones))
        second = self.qtilde2 * np.where(c, 0, self.fan_in * self.qhat2 + ones)
        return first if t == 1 else second

    def outlier(self, samples: int) -> Array:
        r"""Each layer's share of the top eigenvalue, $\frac{N-1}{N} K_2^l + \frac1N K_1^l$ along the vector of ones."""
        first = np.where(self.centred, 0, self._terms(1))
        return (samples - 1) / samples * self._terms(2) + first / samples


def order_parameters(
    spec: Spec,
    *,
    inputs: int | None = None,
    second_moment: float = 1.0,
    overlap: float = 0.0,
    readout_gain: float | None = None,
) -> OrderParameters:
    r"""Order parameters of the chain and its readout: L = ``spec.depth`` + 1 weight layers.

    $q_t^l = \sigma_w^2 \hat q_t^{l-1} + \sigma_b^2$, $\hat q_1 = E\varphi(u)^2$, $\hat q_2 = E\varphi(u)\varphi(v)$;
    backwards $\tilde q_1^l = \sigma_w^2 \tilde q_1^{l+1} E\varphi'(u)^2$, from 1 at the output. A hidden norm
    replaces $(q_1, q_2)$ before the activation by $(q_1 - q_2, 0)$ (batch_recenter), $(1, 0)$ (batch) or $(1,
    q_2/q_1)$ (layer), and multiplies $\tilde q$ by 1, $1/(q_1 - q_2)$, $1/q_1$; the batch is taken large.

    inputs: features of the input, default ``spec.width``. second_moment, overlap: of the data, mean over features.
    readout_gain: sigma_w of the readout; default 1, as ``build`` has it. Papers take the same as in the chain.
    """
    spec = checked_spec(spec, "order_parameters")
    norm: Norm = NORMS[spec.norm]
    if norm.order(np.array([1.0, 0.0])) is None or not spec.norm_first or spec.skip is not None:
        known = [name for name, other in NORMS.items() if other.order(np.array([1.0, 0.0])) is not None]
        raise UsageError(
            f"Order parameters are known for norms {', '.join(known)} before the activation, without skip; got "
            f"norm={spec.norm!r}, norm_first={spec.norm_first}, skip={spec.skip}."
        )
    if spec.weights in ("positive", "identity"):
        raise UsageError(f"Order parameters need weights of mean zero; got weights={spec.weights!r}.")
    if not abs(overlap) <= second_moment:
        raise UsageError(f"overlap must lie within +-second_moment; got {overlap!r} and {second_moment!r}.")
    depth = spec.depth
    sb2 = 0.0 if spec.weights == "torch" else (spec.bias or 0.0) ** 2
    fan_ins = [inputs or spec.width] + [spec.width] * (depth - 1)
    gains = [weight_scale(spec, fan_in, spec.width) ** 2 for fan_in in fan_ins]
    gains.append((1.0 if readout_gain is None else readout_gain) ** 2)
    qhat, q, slopes = [np.array([second_moment, overlap])], [], []
    for layer in range(depth + 1):
        q.append(gains[layer] * qhat[-1] + sb2)
        if layer == depth:
            break
        found = norm.order(q[-1])
        assert found is not None
        pair, factor = found
        gram = np.array([[pair[0], pair[1]], [pair[1], pair[0]]])
        qhat.append(product_moment(spec.activation, gram)[0])
        slopes.append(factor * product_moment(spec.activation, gram, derivative=True)[0])
    qtilde = [np.ones(2)]
    for layer in range(depth - 1, -1, -1):
        qtilde.insert(0, gains[layer + 1] * qtilde[0] * slopes[layer])
    fan_in = np.array([*fan_ins, spec.width], dtype=float)
    centred = tuple([norm.recenters_batch] * depth + [False])
    a, b, c = np.array(q).T, np.array(qhat).T, np.array(qtilde).T
    return OrderParameters(a[0], a[1], b[0], b[1], c[0], c[1], fan_in, centred, spec.bias is not None)


def wide_ntk(
    spec: Spec, gram: Any = None, *, inputs: Any = None, features: int | None = None, readout_gain: float | None = None,
    log2_points: int = 12, seed: int = 0,
) -> Array:  # fmt: skip
    r"""Neural tangent kernel of one output of the chain and its readout, (n, n), for any batch: widths as they are.

    Forwards through the layers, standard parametrisation: $\Theta_0 = 0$ and, J the Jacobian of norm and activation
    over the batch, $\Theta_l = E\,J(u)\,(M_{l-1} \hat q^{l-1} + 1_{bias} + \sigma_w^2 \Theta_{l-1})\,J(u)^T$: for norms
    of one sample J is diagonal, batch norm couples the samples. At the end the readout's own $M_L \hat q^L + 1_{bias}$
    and its variance times $\Theta_L$. Leading order in the width; gains and biases of norms are left out (of order 1
    beside the width). Its largest eigenvalue over n is $\lambda_{max}$ of the Fisher matrix of n samples, once for each
    output; that of single nets lies above it where many are nearly equal (20 % for 8 samples, ReLU, width 256).

    gram: (n, n) X X^T / features, or ``inputs`` X; features: of the input, default those of X, else ``spec.width``.
    log2_points, seed: of the quasi-random neurons that batch norm with a nonlinearity is averaged over.
    """
    spec, start = checked_spec(spec, "wide_ntk"), read_start(gram, inputs, "wide_ntk")
    check_wide(spec)
    sampled = WideLayer(spec).map.samples
    points = quasi_normals(start.samples, log2_points, 1, seed)[0] if sampled else None
    layer = WideLayer(spec, points)
    bias, kernel, q = float(spec.bias is not None), np.zeros_like(start.gram), start.gram
    for at in range(spec.depth):
        here = layer if at else layer.reading(features or start.features)
        fan_in = spec.width if at else features or start.features or spec.width
        kernel = here.push(q, kernel, fan_in * q + bias)
        q = here.forward(q)
    gain = 1.0 if readout_gain is None else readout_gain
    return np.asarray(spec.width * q + bias + gain**2 * kernel)


@dataclass(frozen=True)
class FisherPrediction:
    r"""Predicted statistics of the Fisher matrix (P x P) of a wide net with C outputs on N samples.

    trace: tr F; mean: m = tr F / P; second_moment: s = tr F^2 / P (``nan`` where no constant is known).
    lambda_max: leading order of the largest eigenvalue, ``nan`` where only bounds are known.
    lower, upper: bounds at leading order (``upper`` leaves out the theorem's constant c_2 >= 0). outliers: how many
        O(M) eigenvalues.
    bulk: mean of the other eigenvalues. per_layer: the largest eigenvalue of each layer's diagonal block.
    order: the order parameters. assumptions: what has to hold, in words.
    """

    trace: float
    mean: float
    second_moment: float
    lambda_max: float
    lower: float
    upper: float
    outliers: int
    bulk: float
    per_layer: Array
    order: OrderParameters
    parameters: int
    assumptions: tuple[str, ...]

    @property
    def max_learning_rate(self) -> float:
        r"""$2 / \lambda_{max}$ for $E = \frac{1}{2N} \sum \|f - y\|^2$, from ``lower`` where the eigenvalue has only
        bounds.
        """
        top = self.lower if math.isnan(self.lambda_max) else self.lambda_max
        return 2 / top if top > 0 else math.inf


def fisher_statistics(
    spec: Spec,
    samples: int,
    *,
    inputs: int | None = None,
    second_moment: float = 1.0,
    overlap: float = 0.0,
    readout_gain: float | None = None,
) -> FisherPrediction:
    r"""m, s and lambda_max of $F = \frac1N \sum_n \sum_k \nabla f_k \nabla f_k^T$ for the spec, hidden and output
    norms included.

    With $K_t = \alpha M \kappa_t$: none: $tr F = C K_1$, $tr F^2 = C(\frac{N-1}{N} K_2^2 + \frac1N K_1^2)$, C
        outliers at $\frac{N-1}{N} K_2 + \frac1N K_1$ (with hidden batch norm only uncentred layers count).
        ``output_norm``:
    ``batch_recenter``: $tr F = C(1 - \frac1N)(K_1 - K_2)$ and $\frac1N(K_1 - K_2) \le \lambda_{max} \le
        \sqrt{C/N}\,(K_1-K_2)$ + O(c);
    ``batch``: the same over $v = q_1^L - q_2^L$ and 1 - 2/N; ``layer``: C-1 outliers, needs C >= 5.

    samples: N. The outlier formula may be used at any N; the bounds want N of the order of the width.
    Source: karakida2019; constants for batch and layer norm in the last layer are our derivations (docs/theory.md).
    """
    if spec.outputs is None:
        raise UsageError("Fisher statistics need outputs: give the Spec a readout, outputs=C.")
    samples = whole_number("samples", samples, 2, "A second moment compares samples.")
    o = order_parameters(spec, inputs=inputs, second_moment=second_moment, overlap=overlap, readout_gain=readout_gain)
    n, c = samples, spec.outputs
    k1, k2 = o.kernels
    p = _parameters(spec, inputs or spec.width)
    per_layer = o.outlier(n)
    top = float(per_layer.sum())
    common = ("width large", "gradient independence", "samples alike: same second moment, same overlap")
    last: Norm = NORMS[spec.output_norm]
    if not last.over and not last.bends:
        squares = c * ((n - 1) / n * k2**2 + k1**2 / n)
        bulk = (k1 - k2) / n
        value, outliers, said = (math.nan, 0, "no outlier: kappa_2 ~ 0")
        if not top <= 4 * bulk:
            value, outliers, said = (top, c, "kappa_2 > 0 (non-centred)")
        return FisherPrediction(
            c * k1, c * k1 / p, squares / p, value, max(top, bulk), math.sqrt(squares), outliers, bulk, per_layer, o, p,
            (*common, said),
        )  # fmt: skip
    if last.recenters_batch:
        v, lost = (float(o.q1[-1] - o.q2[-1]), 2) if last.rescale else (1.0, 1)
        trace = c * (1 - lost / n) * (k1 - k2) / v
        lower, upper = (k1 - k2) / (n * v), math.sqrt(c / n) * (k1 - k2) / v
        notes = (*common, "samples proportional to width", "statistics over the whole batch, differentiated through")
        return FisherPrediction(
            trace, trace / p, math.nan, math.nan, lower, upper, 0, lower, np.full(len(per_layer), math.nan), o, p, notes
        )
    if last.standardises_samples:
        if c < 5:
            raise UsageError(f"Layer norm on {c} outputs has no finite prediction (E 1/sigma^2 diverges); use C >= 5.")
        inverse = c / (float(o.q1[-1]) * (c - 3))  # E 1/sigma^2 of C Gaussian outputs
        trace, share = k1 * (c - 2) * inverse, inverse * (c - 2) / (c - 1)
        return FisherPrediction(
            trace, trace / p, math.nan, top * share, top * share, math.nan, c - 1, (k1 - k2) * share / n,
            per_layer * share, o, p, (*common, "outputs Gaussian; heavy tails of 1/sigma^2 for small C"),
        )  # fmt: skip
    raise UsageError(
        f"There is no formula for output_norm={spec.output_norm!r}; known: none, batch_recenter, batch, layer."
    )


def softmax_outliers(order: OrderParameters, probabilities: Array) -> tuple[float, Array]:
    r"""Trace and outliers of the cross-entropy Fisher $\frac1N \sum_n J_n^T Q(n) J_n$, $Q = \mathrm{diag}(g) - g g^T$.

    probabilities: softmax outputs g (N, C). The outliers are $\frac{N-1}{N} K_2 + \frac1N K_1$ times the eigenvalues
        of the mean Q: C - 1 of them, for Q 1 = 0; descending. Trace: $K_1 (1 - E\sum_k g_k^2)$. Our derivation; each
        at most half the squared loss's.
    """
    g = np.asarray(probabilities, dtype=np.float64)
    if g.ndim != 2 or (np.abs(g.sum(1) - 1) > 1e-6).any():
        raise UsageError(f"probabilities must be (N, C) with rows that sum to 1; got shape {g.shape}.")
    mean_q = np.diag(g.mean(0)) - g.T @ g / len(g)
    top = float(order.outlier(len(g)).sum())
    return order.kernels[0] * (1 - float(np.square(g).sum(1).mean())), np.asarray(
        top * np.linalg.eigvalsh(mean_q)[:0:-1], dtype=np.float64
    )


def _parameters(spec: Spec, inputs: int) -> int:
    bias = int(spec.bias is not None)
    chain = spec.width * (inputs + bias) + (spec.depth - 1) * spec.width * (spec.width + bias)
    return chain + (spec.outputs or 0) * (spec.width + bias)
