"""The theory's largest Fisher eigenvalue for a model that has a spec: what to expect beside the measurement."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor, nn

from normscope.core.errors import UsageError
from normscope.theory.fisher import fisher_statistics, softmax_outliers
from normscope.theory.recognise import spec_of

#: Outliers below this multiple of the bulk's mean do not stand out of it, and the formula is not theirs (chosen by us).
STANDS_OUT = 5.0


def predicted_sharpness(model: nn.Module, inputs: Tensor, loss: str) -> float | None:
    r"""$\lambda_{max}$ of the whole batch's Fisher matrix at infinite width, or ``None`` where no formula applies.

    inputs: (n, ...), of which only the second moment and the mean overlap enter. loss: ``cross_entropy``, the mean at
        equal class probabilities; ``squared_error``, $F = \frac1n \sum \nabla f \nabla f^T$; ``mse``, torch's, 2/c of
        that; no other loss has a formula. A plain MLP with a linear readout that `spec_of` recognises; leading order in
        the width, so good to 10-20 % at a width of 100 (fluctuations of a single net are as large). ``None`` too where
        the network is nearly centred, such as tanh on centred data: its largest eigenvalue is the edge of the bulk,
        which this formula does not give.
    """
    if loss not in ("cross_entropy", "squared_error", "mse"):
        return None
    spec = spec_of(model)
    readouts = [m for m in model.modules() if isinstance(m, nn.Linear)]
    if spec is None or spec.outputs is None or spec.output_norm != "none" or inputs.dim() < 2 or len(inputs) < 2:
        return None
    x = inputs.detach().flatten(1).double()
    n, d = x.shape
    gram = (x @ x.T / d).cpu().numpy()
    total, diagonal = float(gram.sum()), float(np.trace(gram))
    weight = readouts[-1].weight.detach().double()
    try:
        found = fisher_statistics(
            spec,
            n,
            inputs=d,
            second_moment=diagonal / n,
            overlap=max(0.0, (total - diagonal) / (n * (n - 1))),  # below 0 by chance only
            readout_gain=float(weight.square().mean().sqrt()) * math.sqrt(weight.shape[1]),
        )
        alike, common = found.order.kernels
        if not n * common > STANDS_OUT * (alike - common):
            return None
        if loss != "cross_entropy":
            return float(found.lambda_max) * (2 / spec.outputs if loss == "mse" else 1)
        return float(softmax_outliers(found.order, np.full((n, spec.outputs), 1 / spec.outputs))[1][0])
    except UsageError:
        return None
