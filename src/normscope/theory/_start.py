"""Where a chain starts: a Gram matrix or a batch of inputs, checked, as a factor R with R^T R = X X^T / features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from normscope.core.errors import UsageError, shown
from normscope.core.memory import check_room
from normscope.core.spec import NORMS, Spec
from normscope.linalg import Array, checked_gram, checked_inputs, gram_factor, input_factor, looks_like_gram


@dataclass(frozen=True)
class Start:
    """The batch a chain starts from.

    factor: R (k, n), k <= n, with R^T R = X X^T / features for inputs X (n, features).
    inputs: X, or ``None`` when only the Gram is known; ``features``: its second dimension, else ``None``.
    """

    factor: Array
    inputs: Array | None = None

    @property
    def samples(self) -> int:
        """n."""
        return int(self.factor.shape[1])

    @property
    def features(self) -> int | None:
        """Features of the inputs, if they are known."""
        return None if self.inputs is None else int(self.inputs.shape[1])

    @property
    def gram(self) -> Array:
        """X X^T / features, (n, n)."""
        return self.factor.T @ self.factor


def read_start(gram: Any = None, inputs: Any = None, what: str = "simulate") -> Start:
    """A start from ``gram`` or ``inputs``; a ``gram`` that is no Gram matrix is read as inputs (n, features)."""
    if (gram is None) == (inputs is None):
        raise UsageError(f"{what}() needs one start: a Gram matrix (n, n), or inputs=X with X (n, features).")
    if gram is not None:
        try:
            shape = getattr(gram, "shape", None) or np.shape(gram)
        except (ValueError, MemoryError) as error:  # lists of unequal lengths, or without end
            raise UsageError(f"{what}() needs inputs (n, features) or a Gram matrix; got {shown(gram)}.") from error
        if len(shape) < 2 or (shape[0] == shape[1] and len(shape) == 2) or looks_like_gram(gram):
            return Start(gram_factor(checked_gram(gram)))
        inputs = gram
    x = checked_inputs(inputs)
    check_room(24 * len(x) ** 2, f"Gram matrices of {len(x)} samples", "Take fewer.")
    return Start(input_factor(x), x)


def checked_spec(spec: Any, what: str) -> Spec:
    """The spec of an MLP, or a ``UsageError``."""
    if not isinstance(spec, Spec):
        raise UsageError(f"{what}() needs a Spec as its first argument; got {type(spec).__name__}.")
    if spec.family != "mlp":
        raise UsageError(f"{what}() knows the chain of dense layers (family 'mlp'); got {spec.family!r}. Use probe().")
    return spec


def check_samples(spec: Spec, start: Start, grams: int = 3) -> None:
    """``UsageError`` where a batch is too small for the spec's norm, or so large that ``grams`` of it do not fit."""
    n = start.samples
    check_room(8 * grams * n**2, f"Gram matrices of {n} samples", "Take fewer samples, or a smaller depth.")
    if NORMS[spec.norm].over == "batch" and start.samples < 2:
        raise UsageError("Batch norm needs at least 2 samples; got 1.")
