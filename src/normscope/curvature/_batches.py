"""Several batches as one function, each coupled inside itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from normscope.core.errors import UsageError
from normscope.curvature._batch import Batch, Options, memory_budget
from normscope.curvature._chain import chain_gram


class Batches:
    """Several batches, each coupled inside itself: their outputs stacked into one function (N, c)."""

    def __init__(self, model: nn.Module, inputs: Any, options: Options) -> None:
        items = list(inputs) if is_several(inputs) else [inputs]
        if not items:
            raise UsageError("There is no batch: the list of inputs is empty.")
        self.model, self.options = model, options
        first = Batch(model, items[0], options)
        several = len(items) > 1
        keep = 2 * first.saved_bytes * len(items) <= memory_budget(options.memory, first.device)
        if not keep:
            first.release()
        self.parts = [first] + [Batch(model, item, options, keep=keep) for item in items[1:]]
        self.c, self.p, self.dtype, self.device = first.c, first.p, first.dtype, first.device
        if several and any(part.c != self.c for part in self.parts):
            raise UsageError(f"All batches must have the same outputs; got {[part.c for part in self.parts]} columns.")
        self.sizes = [part.n for part in self.parts]
        self.n = sum(self.sizes)

    @property
    def value(self) -> Tensor:
        """The outputs, (N, c)."""
        return torch.cat([part.value for part in self.parts])

    def vjp(self, v: Tensor) -> Tensor:
        """J^T v: (N c, k) -> (p, k), the sum over the batches."""
        pieces = v.split([n * self.c for n in self.sizes])
        total = self.parts[0].vjp(pieces[0])
        for part, piece in zip(self.parts[1:], pieces[1:], strict=True):
            total = total + part.vjp(piece)
        return total

    def jvp(self, w: Tensor) -> Tensor:
        """J w: (p, k) -> (N c, k)."""
        return torch.cat([part.jvp(w) for part in self.parts])

    def gram(self) -> Callable[[], Tensor] | None:
        """How to write J J^T (N c, N c) down without J, for one batch of a plain multilayer perceptron; else ``None``."""
        return chain_gram(self.parts[0]) if len(self.parts) == 1 else None

    def facts(self) -> dict[str, Any]:
        """How the numbers came about."""
        facts = self.parts[0].facts()
        sizes = dict(zip(self.parts[0].names, self.parts[0].sizes, strict=True))
        more = {"batches": len(self.parts), "samples": self.n // self.parts[0].positions, "parameter_sizes": sizes}
        return {**facts, **more}


def is_several(inputs: Any) -> bool:
    """Whether the inputs are several batches: a list of them."""
    return isinstance(inputs, list)
