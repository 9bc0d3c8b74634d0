"""What a run trains on: samples as rows, and their order, which depends on nothing but the seed and the epoch."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from normscope.call.arguments import mapped, read_inputs, tensors
from normscope.core.errors import UsageError, shown
from normscope.core.tensors import check_plain


@dataclass(frozen=True, eq=False)
class Samples:
    """``inputs`` and ``targets`` (or ``None``): tensors (n, ...), or any structure of tensors with n rows each."""

    inputs: Any
    targets: Any = None

    def __post_init__(self) -> None:
        _check("inputs", self.inputs)
        if self.targets is not None:
            _check("targets", self.targets)
        leaves = self._tensors()
        if len({len(x) if x.dim() else 0 for x in leaves}) != 1 or not len(self):
            shapes = [tuple(x.shape) for x in leaves]
            raise UsageError(
                f"Samples need inputs and targets of n >= 1 rows each; their shapes are {shapes}. Pass one row a "
                "sample."
            )
        for x in leaves:
            if x.is_floating_point() and not bool(torch.isfinite(x).all()):
                raise UsageError("The samples must be finite numbers; there are NaN or infinite ones. Clean the data.")

    def __len__(self) -> int:
        return len(self._tensors()[0])

    def take(self, index: Tensor | slice) -> Samples:
        """The rows of an index, unchecked."""
        part = object.__new__(Samples)
        for name in ("inputs", "targets"):
            object.__setattr__(part, name, mapped(getattr(self, name), lambda x: x[index]))
        return part

    def to(self, device: torch.device, dtype: torch.dtype | None) -> Samples:
        """On a device, floating inputs and targets in a dtype."""

        def moved(x: Tensor) -> Tensor:
            return x.to(device, dtype if x.is_floating_point() else None)

        return Samples(mapped(self.inputs, moved), mapped(self.targets, moved))

    @property
    def device(self) -> torch.device:
        """Where the samples are."""
        return self._tensors()[0].device

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
        return list(tensors((self.inputs, self.targets)))


def permutation(seed: int, epoch: int, n: int) -> Tensor:
    """The order of the n samples in an epoch (int64, CPU): the same for whatever model trains with this seed."""
    key = int(np.random.SeedSequence((seed % 2**64, epoch)).generate_state(1, np.uint64)[0])
    return torch.randperm(n, generator=torch.Generator().manual_seed(key))


def call(model: nn.Module, inputs: Any) -> Any:
    """``model`` on inputs, read as every verb reads them: a dict is keyword arguments, a tuple or list positional
    ones.
    """
    if isinstance(inputs, Tensor):
        return model(inputs)
    args, kwargs = read_inputs(model, inputs)
    return model(*args, **kwargs)


def _check(name: str, value: Any) -> None:
    """``UsageError`` for what holds no rows that can be taken one by one."""
    inside = value.values() if isinstance(value, Mapping) else value if isinstance(value, tuple | list) else ()
    for item in (value, *inside):
        if not isinstance(item, Tensor) and hasattr(item, "__array__") and hasattr(item, "dtype"):
            raise UsageError(f"{name} must be tensors; got a {type(item).__name__}. Pass torch.as_tensor of it.")
        if isinstance(item, PackedSequence):
            raise UsageError(
                f"{name} must have one row a sample; got a PackedSequence. Pass it padded, with its lengths."
            )
        if isinstance(item, Tensor):
            check_plain(name, item)
    found = list(tensors(value))
    if not found:
        raise UsageError(
            f"{name} must be tensors of n >= 1 rows each; got {shown(value)}, in which there is none. Pass "
            "torch.as_tensor of it."
        )
