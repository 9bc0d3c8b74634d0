r"""Few nodes for a family of integrals over one variable: those of a fine rule that tell all others.

A fine rule has nodes s_m and weights w_m, and some integrands f_e of the family are known at every node. Where the
matrix $B_{me} = \sqrt{w_m} f_e(s_m)$ has numerical rank k, k of its rows span the others (interpolative
decomposition; Cheng et al. 2005), so $\sum_m w_m f(s_m) = \sum_k v_k f(s_k)$ for whatever lies in the span, and v
follows from least squares on the known f_e.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from normscope.linalg import Array

#: Share of the largest row below which the rest of a row counts as rounding; chosen by us: between 1e-12 and 1e-14 the
#: error on all pairs falls no further.
_RANK = 1e-13
#: Random mixtures of the integrands that pivots are looked for in; a rank as large is none.
_MIXTURES = 64


def few_nodes(weights: Array, integrands: Array) -> tuple[NDArray[np.intp], Array]:
    """Indices (k,) of the nodes and their weights (k,), from ``weights`` (m,) and ``integrands`` (m, e) at all nodes.

    All m where there is no short rule. Weights may be negative; their sizes add up to little more than the sum.
    """
    from scipy.linalg import qr  # takes a while to import

    rows = np.sqrt(weights)[:, None] * integrands
    mixtures = np.random.default_rng(0).standard_normal((integrands.shape[1], _MIXTURES))
    triangle, order = qr((rows @ mixtures).T, mode="r", pivoting=True)
    pivots = np.abs(np.diagonal(triangle))
    k = int((pivots > _RANK * pivots[0]).sum())
    if k == len(pivots):
        return np.arange(len(weights)), weights
    nodes: NDArray[np.intp] = order[:k]
    shares = np.linalg.lstsq(rows[nodes].T, weights @ integrands, rcond=None)[0]
    return nodes, np.sqrt(weights[nodes]) * shares
