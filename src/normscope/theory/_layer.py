"""What a layer does to pre-activations Z (runs, d, n): norm and activation, in place, in numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from normscope.core.spec import Spec
from normscope.gaussian import activation
from normscope.nn.norms import ALGEBRA, normalize


def apply_layer(z: NDArray[Any], spec: Spec, eps: float, is_centred: bool = False) -> NDArray[Any]:
    """Norm and activation in the order of the spec; Z is overwritten."""
    if spec.norm_first:
        return _activate(normalize(z, spec.norm, eps, is_centred=is_centred), spec.activation)
    return normalize(_activate(z, spec.activation), spec.norm, eps)


def _activate(z: NDArray[Any], name: str) -> NDArray[Any]:
    if name == "identity":
        return z
    if name == "relu":
        return np.maximum(z, 0, out=z)
    z[...] = activation(name).phi(z)
    return z


def is_row_local(spec: Spec) -> bool:
    """Does the norm act on each feature (row of Z) by itself, so that rows can be streamed?"""
    return ALGEBRA[spec.norm].over != "features"


def recentres_first(spec: Spec) -> bool:
    """Does the norm subtract the batch mean from W H itself? Then the mean can go before the weights."""
    return ALGEBRA[spec.norm].recenters_batch and (spec.norm_first or spec.activation == "identity")


def output_is_centred(spec: Spec) -> bool:
    """Does the layer's output have batch mean zero, exactly, in every feature?"""
    return ALGEBRA[spec.norm].recenters_batch and (not spec.norm_first or spec.activation == "identity")


def is_scale_free(spec: Spec) -> bool:
    """Does scaling the input only scale the output? Then an unnormalised chain may be rescaled at will."""
    return not ALGEBRA[spec.norm].rescale and activation(spec.activation).homogeneous and not spec.bias


def is_linear_vanilla(spec: Spec) -> bool:
    """Only Gaussian matrices: the Gram is a product of Wishart factors."""
    gaussian = spec.weights in ("gaussian", "xavier_normal")
    return gaussian and spec.norm == "none" and spec.activation == "identity" and spec.skip is None and not spec.bias
