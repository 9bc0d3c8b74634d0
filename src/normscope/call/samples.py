"""Which axis runs over the samples: of the inputs, and of what a layer returns."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from normscope.call.arguments import length, tensors
from normscope.core.errors import UsageError, whole_number

#: Modules that take (time, batch, features) unless ``batch_first`` is set.
SEQUENCE = (nn.RNNBase, nn.MultiheadAttention, nn.TransformerEncoderLayer, nn.TransformerDecoderLayer, nn.Transformer)


@dataclass(frozen=True)
class Samples:
    """n samples along ``axis`` of the inputs; ``rows``: samples of the targets, where these are others (pooled graphs).

    sequence_first: a module of the model takes (time, batch, features), so that axis 1 of its outputs runs over
        samples.
    notes: what was taken where more than one reading fits.
    """

    n: int
    axis: int = 0
    rows: int | None = None
    sequence_first: bool = False
    notes: tuple[str, ...] = ()

    def of(self, x: Tensor, module: nn.Module | None = None, *, tokens: bool = False) -> Tensor | None:
        """``x`` with one row a sample (or a token of a sequence (n, t, d), with ``tokens``); ``None`` if no axis has
        them.

        A first axis that merges samples with windows or tokens is split, samples outermost. Complex numbers are pairs
        of real ones.
        """
        if x.dim() == 0 or x.numel() == 0 or x.layout is not torch.strided or x.is_nested:
            return None
        if x.is_complex():
            x = torch.view_as_real(x).flatten(-2)
        axis, count = self._axis(x, module)
        if axis is None:
            return None
        if axis == 1:
            x = x.transpose(0, 1)
        if tokens and x.dim() == 3:
            return x.flatten(0, 1)
        if len(x) == count or tokens:
            return x
        if self.axis == 1:  # (time x batch, ...), time outermost
            return x.reshape(-1, count, *x.shape[1:]).transpose(0, 1)
        return x.reshape(count, -1, *x.shape[1:])

    def sequences(self, x: Tensor, module: nn.Module | None = None) -> Tensor | None:
        """``x`` as (n, tokens, d), merged axes split; ``None`` where it has no such axes."""
        rows = self.of(x, module) if 2 <= x.dim() <= 3 and x.is_floating_point() else None
        return rows if rows is not None and rows.dim() == 3 else None

    def split(self, x: Tensor) -> bool:
        """Whether `of` would have to split a merged first axis."""
        return len(x) not in (self.n, self.rows) and x.dim() > 0 and self._axis(x, None) == (0, self.n)

    def _axis(self, x: Tensor, module: nn.Module | None) -> tuple[int | None, int]:
        n = self.n
        second = x.dim() > 2 and x.shape[1] == n
        if second and (self.axis == 1 or is_sequence_first(module)):
            return 1, n
        if self.axis == 0 and len(x) == n:
            return 0, n
        if second and self.sequence_first:
            return 1, n
        if self.axis == 1 and x.dim() == 2 and len(x) == n:
            return 0, n
        if self.rows is not None and len(x) == self.rows:
            return 0, self.rows
        return (0, n) if len(x) % n == 0 else (None, n)


def is_sequence_first(module: nn.Module | None) -> bool:
    """Whether a module takes (time, batch, features)."""
    return isinstance(module, SEQUENCE) and not _batch_first(module)


def _batch_first(module: nn.Module) -> bool:
    inner = getattr(module, "self_attn", None) or module
    return bool(getattr(inner, "batch_first", False))


def read_samples(
    model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], targets: Any, axis: int | None
) -> Samples | None:
    """The samples of a batch: along ``axis`` if given, else along the one whose length the targets have, else the
    first.

    ``None`` where both first axes fit and only the model's layout can tell (`from_layout`).
    """
    values = [*args, *kwargs.values()]
    found = [x for x in tensors(values) if x.dim()]
    found = [x for x in found if x.is_floating_point() or x.is_complex()] + [
        x for x in found if not (x.is_floating_point() or x.is_complex())
    ]
    first = any(map(is_sequence_first, model.modules()))
    if axis is not None:
        return _along(axis, found, first)
    if first and (text := _time_first(found, targets)) is not None:
        note = "axis 1 of the inputs runs over the samples: the targets are the next tokens along axis 0"
        return Samples(text.shape[1], 1, sequence_first=True, notes=(f"{note} (samples= decides)",))
    if first and (text := _counted(found)) is not None:
        note = f"axis 1 of the inputs runs over the samples: {text.shape[1]} lengths came with them"
        return Samples(text.shape[1], 1, sequence_first=True, notes=(f"{note} (samples= decides)",))
    lengths = [n for v in values if (n := length(v)) is not None]
    if found:
        lengths = [len(found[0]) if isinstance(values[0], Tensor) or len(values) > 1 else lengths[0], *lengths]
    if not lengths:
        raise UsageError("inputs hold no tensor with a batch axis, so there is nothing to probe. Pass a batch.")
    n, wanted = lengths[0], None if targets is None else length(targets)
    lists = [len(v) for v in values if isinstance(v, list)]
    if lists and isinstance(values[0], list):
        n = length(values[0]) or n
    floating = bool(found) and (found[0].is_floating_point() or found[0].is_complex())
    deep = [x for x in found if x.dim() > (2 if floating else 1)]
    square = bool(deep) and deep[0].shape[0] == deep[0].shape[1]
    if wanted is not None:
        both = square and deep[0].shape[0] == wanted and deep[0].dim() == (3 if floating else 2)
        if wanted in lengths and not (first and both):
            note = (
                f"axes 0 and 1 of the inputs both have the targets' {wanted} rows; axis 0 was taken (samples= decides)"
            )
            return Samples(wanted, 0, sequence_first=first, notes=(note,) if both else ())
        if any(x.shape[1] == wanted for x in deep[:1]) and wanted not in lengths:
            note = f"axis 1 of the inputs runs over the samples: the targets have {wanted} rows (samples= decides)"
            return Samples(wanted, 1, sequence_first=True, notes=(note,))
    if first and deep and (wanted is None or square):
        return None
    if wanted is None or wanted == n:
        return Samples(n, 0, sequence_first=first)
    other = n
    if wanted % n:  # pooled: the targets and the outputs have the samples, the layers before them rows of their own
        n, wanted = wanted, n
    note = (
        f"the inputs have {other} rows and the targets {length(targets)}: layers with {n} rows are measured over "
        f"these, layers with {wanted} over those (samples= names the axis)"
    )
    return Samples(n, 0, rows=wanted, sequence_first=first, notes=(note,))


def _time_first(found: list[Tensor], targets: Any) -> Tensor | None:
    """The tokens (time, samples) whose next ones the targets are, along time."""
    ids = next((x for x in found if x.dim() == 2 and not x.is_floating_point() and min(x.shape) > 1), None)
    wanted = next((t for t in tensors(targets) if ids is not None and t.numel() == ids.numel()), None)
    if ids is None or wanted is None:
        return None
    after = wanted.reshape(ids.shape)
    down, along = (after[:-1] == ids[1:]).float().mean(), (after[:, :-1] == ids[:, 1:]).float().mean()
    return ids if down > 0.9 > along else None


def _counted(found: list[Tensor]) -> Tensor | None:
    """Sequences (time, samples, ...) that came with the length of each sample."""
    plain = [x for x in found if x.dim() == 1 and not x.is_floating_point() and not x.is_complex() and len(x) > 1]
    for x in (x for x in found if x.dim() > 1 and x.shape[0] != x.shape[1]):
        if any(len(k) == x.shape[1] and int(k.max()) == x.shape[0] and int(k.min()) > 0 for k in plain):
            return x
    return None


def _along(axis: int, found: list[Tensor], first: bool) -> Samples:
    whole_number("samples, the axis of the inputs that runs over samples,", axis, 0, "Use 0 or 1.")
    has = [x for x in found if x.dim() > axis]
    if not has:
        shapes = [tuple(x.shape) for x in found[:3]]
        raise UsageError(f"samples must be an axis that the inputs have; got {axis} for shapes {shapes}. Use 0.")
    return Samples(has[0].shape[axis], axis, sequence_first=first or axis == 1)


def from_layout(x: Tensor, seen: Tensor | None) -> Samples:
    """The reading of inputs ``x`` (a, b, ...) whose model hands ``seen`` (time, batch, ...) to a sequence-first
    module.
    """
    a, b = x.shape[0], x.shape[1]
    if seen is None or seen.dim() < 2 or a == b or seen.shape[1] not in (a, b):
        note = f"axes 0 and 1 of the inputs could both run over samples ({a}, {b}); axis 0 was taken (samples= decides)"
        return Samples(a, 0, sequence_first=True, notes=(note,))
    if seen.shape[1] == b:
        note = (
            f"axis 1 of the inputs runs over the samples: the model takes (time, batch, ...) = ({a}, {b}) (samples= "
            "decides)"
        )
        return Samples(b, 1, sequence_first=True, notes=(note,))
    return Samples(a, 0, sequence_first=True)
