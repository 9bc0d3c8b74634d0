"""Modules: batch norm taken apart, output centring, and the reference nets a `Spec` describes."""

from normscope.nn.activations import make_activation
from normscope.nn.nets import build
from normscope.nn.norms import BatchNorm, RMSNorm, make_norm
from normscope.nn.outputs import CenterOutputs, NormalizeOutputs
from normscope.nn.shaped import Shaped

__all__ = [
    "BatchNorm",
    "CenterOutputs",
    "NormalizeOutputs",
    "RMSNorm",
    "Shaped",
    "build",
    "make_activation",
    "make_norm",
]
