"""Training: the plain loop a user would write, made to be stopped, resumed and compared.

`Recipe` says how, `Samples` on what, `Training` is one run of it; `try_out` says before it what will not run;
`permutation` is the order of an epoch's samples.
"""

from normscope.training._loop import Training, evaluate, try_out
from normscope.training._recipe import OPTIMISERS, Recipe
from normscope.training._samples import Samples, permutation

__all__ = ["OPTIMISERS", "Recipe", "Samples", "Training", "evaluate", "permutation", "try_out"]
