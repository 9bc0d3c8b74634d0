"""Small dense linear algebra on Gram matrices: checks, factors, centring."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from normscope.core.errors import UsageError
from normscope.core.memory import check_room
from normscope.core.tensors import check_plain

Array = NDArray[np.float64]


def checked_gram(gram: object, name: str = "gram") -> Array:
    """``gram`` as a symmetric positive semi-definite float64 matrix (n, n), or a ``UsageError`` that says why not.

    Eigenvalues down to -n * 1e-12 times the largest entry are rounding and pass.
    """
    g = _numbers(gram, name)
    if g.ndim != 2 or g.shape[0] != g.shape[1]:
        raise UsageError(f"{name} must be square, (n, n) for n samples; got shape {g.shape}. Pass inputs as inputs=.")
    largest = float(np.abs(g).max(initial=0.0))
    if largest == 0:
        raise UsageError(f"{name} is zero: all samples are 0, so there is no geometry to follow.")
    if np.abs(g - g.T).max() > 1e-9 * largest:
        raise UsageError(f"{name} must be symmetric; its asymmetry is {np.abs(g - g.T).max():.1e}.")
    g = (g + g.T) / 2
    least = float(np.linalg.eigvalsh(g)[0])
    if least < -1e-12 * len(g) * largest:
        raise UsageError(
            f"{name} must be positive semi-definite; its smallest eigenvalue is {least:.2e}. "
            "A Gram matrix is X @ X.T / features for inputs X (n, features)."
        )
    return g


def checked_inputs(inputs: object, name: str = "inputs") -> Array:
    """``inputs`` as float64 (n, features), or a ``UsageError``; further dimensions are flattened."""
    x = _numbers(inputs, name)
    if x.ndim < 2 or x.size == 0:
        raise UsageError(f"{name} must have shape (n, features), n samples as rows; got shape {x.shape}.")
    if not x.any():
        raise UsageError(f"{name} are all zero: there is no geometry to follow.")
    return x.reshape(len(x), -1)


def _numbers(value: Any, name: str) -> Array:
    if isinstance(value, Tensor):
        check_plain(name, value)
        check_room(8 * value.numel(), f"{name} in double precision", "Take fewer samples.")
        value = value.detach().cpu()
        value = value.double().numpy() if value.is_floating_point() else value.numpy()
    try:
        if np.iscomplexobj(value):
            raise UsageError(
                f"{name} must be real numbers; got complex ones. Pass real and imaginary parts side by side."
            )
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError, MemoryError):
        raise UsageError(f"{name} must be an array of numbers; got {type(value).__name__}.") from None
    if not np.isfinite(array).all():
        raise UsageError(f"{name} must be finite; it contains NaN or infinity.")
    return array


def looks_like_gram(value: object) -> bool:
    """Is this array square, symmetric and positive semi-definite, as a Gram matrix is?"""
    try:
        checked_gram(value)
    except UsageError:
        return False
    return True


def gram_factor(gram: Array) -> Array:
    """R (n, n) with R^T R = gram (n, n), from the eigenvectors, so that a singular Gram has a factor too."""
    values, vectors = np.linalg.eigh(gram)
    return np.asarray(np.linalg.qr((vectors * np.sqrt(values.clip(0))).T, mode="r"))


def input_factor(inputs: Array) -> Array:
    """R (k, n), k = min(features, n), with R^T R = X X^T / features, from the QR of X^T (not by squaring)."""
    return np.asarray(np.linalg.qr(inputs.T / np.sqrt(inputs.shape[1]), mode="r"))


def contrasts(n: int) -> Array:
    """Orthonormal basis (n, n-1) of the vectors that sum to zero (Helmert contrasts)."""
    basis = np.zeros((n, n - 1))
    for j in range(1, n):
        basis[:j, j - 1], basis[j, j - 1] = 1, -j
        basis[:, j - 1] /= np.sqrt(j * (j + 1))
    return basis


def centred(gram: Array) -> Array:
    """P G P with P = I - 11^T/n, for G (..., n, n): the Gram of the samples minus their mean."""
    g = gram - gram.mean(-1, keepdims=True)
    return g - g.mean(-2, keepdims=True)
