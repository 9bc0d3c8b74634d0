"""The norms: of each one record that holds its module, its arrays, its maps at infinite width and how it is known.

`Norm` says what a record answers; the families `OverBatch`, `OverFeatures` and `Squash` answer for all norms of their
kind, so that a norm of one of them is one more line. Every room reads ``core.spec.NORMS``; none has a copy of a rule.
"""

from normscope.nn.norms.batch import BatchNorm, OverBatch
from normscope.nn.norms.features import OverFeatures, RMSNorm, groups_of
from normscope.nn.norms.norm import EPS, Norm, make_norm
from normscope.nn.norms.squash import DyT, Squash, curve_of

__all__ = [
    "EPS", "BatchNorm", "DyT", "Norm", "OverBatch", "OverFeatures", "RMSNorm", "Squash", "curve_of", "groups_of",
    "make_norm",
]  # fmt: skip
