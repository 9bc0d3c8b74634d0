"""What a run trains on: samples as rows, and their order, which depends on nothing but the seed and the epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from normscope.core.errors import UsageError


@dataclass(frozen=True, eq=False)
class Samples:
    """``inputs``: a tensor (n, ...), or a dict or tuple of tensors with n rows each; ``targets`` (n, ...) or ``None``."""

    inputs: Any
    targets: Tensor | None = None

    def __post_init__(self) -> None:
        leaves = self._tensors()
        if not leaves or len({len(x) if x.dim() else 0 for x in leaves}) != 1 or not len(self):
            shapes = [tuple(x.shape) for x in leaves]
            raise UsageError(f"Samples need inputs and targets of n >= 1 rows each; their shapes are {shapes}.")
        for x in leaves:
            if x.is_floating_point() and not bool(torch.isfinite(x).all()):
                raise UsageError("The samples must be finite numbers; there are NaN or infinite ones. Clean the data.")

    def __len__(self) -> int:
        return len(self._tensors()[0])

    def take(self, index: Tensor | slice) -> Samples:
        """The rows of an index, unchecked."""
        part = object.__new__(Samples)
        inputs = self.inputs[index] if isinstance(self.inputs, Tensor) else _map(lambda x: x[index], self.inputs)
        object.__setattr__(part, "inputs", inputs)
        object.__setattr__(part, "targets", None if self.targets is None else self.targets[index])
        return part

    def to(self, device: torch.device, dtype: torch.dtype | None) -> Samples:
        """On a device, floating inputs and targets in a dtype."""

        def moved(x: Tensor) -> Tensor:
            return x.to(device, dtype if x.is_floating_point() else None)

        return Samples(_map(moved, self.inputs), None if self.targets is None else moved(self.targets))

    def fingerprint(self) -> str:
        """Shapes, types and every byte, as ``60000x1x28x28 float32 1f2e...``: equal for equal samples only."""
        digest = hashlib.sha256()
        for x in self._tensors():
            digest.update(f"{x.dtype}{tuple(x.shape)}".encode())
            digest.update(x.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        first = self._tensors()[0]
        shape = "x".join(map(str, first.shape))
        return f"{shape} {str(first.dtype).removeprefix('torch.')} {digest.hexdigest()[:12]}"

    def _tensors(self) -> list[Tensor]:
        found: list[Tensor] = []
        _map(found.append, (self.inputs, () if self.targets is None else self.targets))
        return found


def permutation(seed: int, epoch: int, n: int) -> Tensor:
    """The order of the n samples in an epoch (int64, CPU): the same for whatever model trains with this seed."""
    key = int(np.random.SeedSequence((seed % 2**64, epoch)).generate_state(1, np.uint64)[0])
    return torch.randperm(n, generator=torch.Generator().manual_seed(key))


def call(model: Callable[..., Any], inputs: Any) -> Any:
    """``model`` on inputs: a dict is keyword arguments, a tuple or list positional ones."""
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple | list) else model(inputs)


def _map(change: Callable[[Tensor], Any], tree: Any) -> Any:
    if isinstance(tree, Mapping):
        return {key: _map(change, value) for key, value in tree.items()}
    if isinstance(tree, tuple | list):
        return tuple(_map(change, value) for value in tree)
    return change(tree) if isinstance(tree, Tensor) else tree
