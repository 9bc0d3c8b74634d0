"""What a layer does to pre-activations Z (runs, d, n): norm and activation, in place, in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from normscope.core.spec import Spec
from normscope.gaussian import activation

#: Norms that act on each feature (row of Z) by itself, so that rows can be streamed.
ROW_LOCAL = ("none", "batch", "batch_rescale", "batch_recenter")


def groups_of(features: int) -> int:
    """Number of groups of the group norm, as ``nn.make_norm`` chooses it."""
    return next(g for g in (32, 16, 8, 4, 2, 1) if features % g == 0 and (features // g > 1 or g == 1))


def normalize(z: NDArray[Any], norm: str, eps: float, is_centred: bool = False) -> NDArray[Any]:
    """The norm over Z (runs, d, n), in place. ``is_centred``: the batch mean of every row is zero already."""
    if norm == "none":
        return z
    if norm in ROW_LOCAL:
        if norm != "batch_rescale" and not is_centred:
            z -= z.mean(-1, keepdims=True)
        if norm != "batch_recenter":
            squares = np.einsum("rij,rij->ri", z, z)
            squares /= z.shape[-1]
            z *= _reciprocal_root(squares, eps)[..., None]
        return z
    if norm == "rms":
        squares = np.einsum("rij,rij->rj", z, z) / z.shape[1]
        z *= _reciprocal_root(squares, eps)[:, None, :]
        return z
    groups = 1 if norm == "layer" else groups_of(z.shape[1])
    parts = z.reshape(len(z), groups, -1, z.shape[-1])
    parts -= parts.mean(2, keepdims=True)
    squares = np.einsum("rgij,rgij->rgj", parts, parts) / parts.shape[2]
    parts *= _reciprocal_root(squares, eps)[:, :, None, :]
    return parts.reshape(z.shape)


def _reciprocal_root(squares: NDArray[Any], eps: float) -> NDArray[Any]:
    """1 / sqrt(squares + eps); 0 where that is 1/0, so that a dead feature stays dead instead of NaN."""
    if eps:
        squares = squares + squares.dtype.type(eps)
    root = np.sqrt(squares)
    return np.divide(1, root, out=np.zeros_like(root), where=root > 0)


def apply_layer(z: NDArray[Any], spec: Spec, eps: float, is_centred: bool = False) -> NDArray[Any]:
    """Norm and activation in the order of the spec; Z is overwritten."""
    if spec.norm_first:
        return _activate(normalize(z, spec.norm, eps, is_centred), spec.activation)
    return normalize(_activate(z, spec.activation), spec.norm, eps)


def _activate(z: NDArray[Any], name: str) -> NDArray[Any]:
    if name == "identity":
        return z
    if name == "relu":
        return np.maximum(z, 0, out=z)
    z[...] = activation(name).phi(z)
    return z


def recentres_first(spec: Spec) -> bool:
    """Does the norm subtract the batch mean from W H itself? Then the mean can go before the weights."""
    return spec.norm in ("batch", "batch_recenter") and (spec.norm_first or spec.activation == "identity")


def output_is_centred(spec: Spec) -> bool:
    """Does the layer's output have batch mean zero, exactly, in every feature?"""
    return spec.norm in ("batch", "batch_recenter") and (not spec.norm_first or spec.activation == "identity")


def is_scale_free(spec: Spec) -> bool:
    """Does scaling the input only scale the output? Then an unnormalised chain may be rescaled at will."""
    return spec.norm in ("none", "batch_recenter") and activation(spec.activation).homogeneous and not spec.bias


def is_linear_vanilla(spec: Spec) -> bool:
    """Only Gaussian matrices: the Gram is a product of Wishart factors."""
    gaussian = spec.weights in ("gaussian", "xavier_normal")
    return gaussian and spec.norm == "none" and spec.activation == "identity" and spec.skip is None and not spec.bias
