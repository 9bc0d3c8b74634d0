"""Bounds and laws as functions, one file a subject; each states its assumptions and refuses arguments outside them."""

from normscope.theory.laws import isometry, odd_point, orthogonality, rank

__all__ = ["isometry", "odd_point", "orthogonality", "rank"]
