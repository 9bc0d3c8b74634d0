r"""Isometry of a Gram matrix (joudaki2023; meterez2024): how normalization and Haar weights act on it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from normscope.core.errors import UsageError
from normscope.gaussian import activation, mean, one_dimensional, second_moment


def isometry(gram: Any) -> float:
    r"""$I(M) = \det(M)^{1/n} / (\mathrm{tr} M / n)$, in [0, 1]; 1 iff all eigenvalues are equal.

    -log I is the isometry gap.
    """
    values = np.linalg.eigvalsh(np.asarray(gram, dtype=np.float64)).clip(0)
    if not values.sum() > 0:
        raise UsageError("Isometry needs a Gram matrix that is not zero.")
    with np.errstate(divide="ignore"):
        return float(np.exp(np.log(values).mean()) / values.mean())


def normalization_gain(gram: Any) -> tuple[float, float]:
    r"""What scaling each sample to norm 1 adds to log I: exactly $\log\overline{a^2} - \overline{\log a^2}$, and the
    printed lower bound.

    $a_i = \sqrt{M_{ii}}$; the bound is $\log(1 + \mathrm{var}\,a / \bar a^2)$. Never negative. joudaki2023.
    """
    squares = np.diag(np.asarray(gram, dtype=np.float64))
    if not (squares > 0).all():
        raise UsageError("Every sample must have a positive norm.")
    a = np.sqrt(squares)
    return float(math.log(squares.mean()) - np.log(squares).mean()), float(math.log1p(a.var() / a.mean() ** 2))


def nonlinearity_strength(name: str) -> float:
    r"""$\beta_0 = 2 - c_1^2/(E f^2 - c_0^2)$, $c_0 = E f$, $c_1 = E z f(z)$: relu 1.2665, tanh 1.069, sin 1.149,
    identity 1.

    With layer norm and a centred activation the isometry gap shrinks per layer at least by about $1/\beta_0$.
    """
    a = activation(name)
    # E z f(z) = E f'(z) (Stein); the derivative's mean by the same rule as the other moments.
    c1 = float(one_dimensional(a.derivative, np.array(1.0)))
    variance = float(second_moment(name, 1.0)) - float(mean(name, 1.0)) ** 2
    return 2 - c1**2 / variance


def haar_contraction(d: int) -> float:
    """Factor per layer on a small isometry gap: linear batch norm without recentring, Haar weights, n = d: d/(d+2).

    Derived.
    """
    return d / (d + 2)
