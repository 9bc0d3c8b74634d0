"""Which axis of what a layer gave a model averages, sums up or takes the maximum of."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

#: Functions that give features on their last axis, on axis 1, and that leave the axes of what they get as they are.
_LAST = {F.linear, F.layer_norm, F.embedding}
_FIRST = {F.conv1d, torch.conv1d}
_KEEP = {
    F.relu, F.gelu, F.silu, F.elu, F.leaky_relu, F.dropout, F.batch_norm, torch.relu, torch.tanh, torch.sigmoid,
    Tensor.relu, Tensor.tanh, Tensor.sigmoid,
}  # fmt: skip
_POOLS = {
    getattr(where, name) for where in (torch, Tensor) for name in ("mean", "sum", "max", "amax", "logsumexp")
}  # fmt: skip


class Pooling:
    """Follows features through a model: where their axis is pooled, not that of the places, for the next layer."""

    def __init__(self) -> None:
        #: The first such call: the shape, the axis, and the modules around and behind it.
        self.found: dict[str, Any] | None = None
        self._features: dict[int, tuple[Tensor, int]] = {}
        self._pooled: dict[int, tuple[Tensor, dict[str, Any]]] = {}

    def see(self, name: str, func: Any, args: Any, kwargs: Any, x: Tensor, y: Tensor) -> None:
        """One call inside a model."""
        if func is F.linear and self.found is None and id(x) in self._pooled:
            self.found = self._pooled[id(x)][1] | {"next": name}
        if y.dim() == 3 and func in _LAST | _FIRST:
            self._features[id(y)] = y, 2 if func in _LAST else 1
        elif func in _KEEP and x.shape == y.shape:
            for known in (self._features, self._pooled):
                if id(x) in known:
                    known[id(y)] = y, known[id(x)][1]  # type: ignore[assignment]
        elif func in _POOLS and x.dim() == 3 and y.dim() == 2 and id(x) in self._features:
            axis = kwargs.get("dim", kwargs.get("axis", args[1] if len(args) > 1 else None))
            if isinstance(axis, int) and axis % 3 == self._features[id(x)][1] and min(x.shape[1:]) > 1:
                shape = {"function": func.__name__, "shape": list(x.shape), "axis": axis % 3, "module": name}
                self._pooled[id(y)] = y, shape
