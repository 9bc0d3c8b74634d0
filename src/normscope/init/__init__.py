"""Weights that let a deep net train: cures, their controls, and the usual laws they are compared with.

Functions with torch's trailing underscore change a model in place and return it. They find Linear and Conv1d/2d/3d
layers anywhere in the module tree, in the order in which a forward pass runs them; a layer that cannot be treated is
left alone. `CURES` has them by the names that users type; ``CURES[name].apply`` returns a `Treatment`, which says what
was done to which layer, and why not to the others.
"""

from normscope.init._cures import CURES, Cure
from normscope.init._layers import Treatment, unchanged_on_error
from normscope.init.branches import branch_scale_, zero_branches_
from normscope.init.centering import center_weights_
from normscope.init.folding import fold_batch_norm_
from normscope.init.identity import identity_
from normscope.init.laws import break_batch_norm_, delta_orthogonal_, he_, lower_rank_, torch_default_, xavier_
from normscope.init.lsuv import lsuv_
from normscope.init.orthogonal import haar_, orthogonal_representations_
from normscope.init.rank import raise_rank_
from normscope.init.shape import shape_
from normscope.init.statistics import recalibrate_
from normscope.init.wrappers import off_centre

__all__ = [
    "CURES",
    "Cure",
    "Treatment",
    "branch_scale_",
    "break_batch_norm_",
    "center_weights_",
    "delta_orthogonal_",
    "fold_batch_norm_",
    "haar_",
    "he_",
    "identity_",
    "lower_rank_",
    "lsuv_",
    "off_centre",
    "orthogonal_representations_",
    "raise_rank_",
    "recalibrate_",
    "shape_",
    "torch_default_",
    "unchanged_on_error",
    "xavier_",
    "zero_branches_",
]
