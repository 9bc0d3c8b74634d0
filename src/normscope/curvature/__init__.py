"""Curvature of the whole-batch function: exact with batch norm in training mode."""

from normscope.curvature._operators import fisher, hessian, jacobian, ntk

__all__ = ["fisher", "hessian", "jacobian", "ntk"]
