"""Curvature of the whole-batch function: exact with batch norm in training mode."""

from normscope.curvature._critical import CriticalRate, critical_rate
from normscope.curvature._operators import fisher, hessian, jacobian, ntk
from normscope.curvature._rates import Descent, descend, stable_rates
from normscope.curvature._selfcheck import Check, selfcheck
from normscope.curvature._sharpness import Sharpness, sharpness
from normscope.curvature._variants import VARIANTS, last_layer

__all__ = [
    "VARIANTS",
    "Check",
    "CriticalRate",
    "Descent",
    "Sharpness",
    "critical_rate",
    "descend",
    "fisher",
    "hessian",
    "jacobian",
    "last_layer",
    "ntk",
    "selfcheck",
    "sharpness",
    "stable_rates",
]
