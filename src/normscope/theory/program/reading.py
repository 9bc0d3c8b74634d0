"""What a function call does, found out by what it does to other numbers: does it move entries, act on each alone, on
each feature alone, linearly?
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from normscope.theory.program.laws import Field, Law, canonical

_LAW, _WEIGHT = "_normscope_law", "_normscope_weight"


def law_of(x: Any) -> Law | None:
    """The law of a tensor of the program; ``None``: it is data."""
    return getattr(x, _LAW, None) if isinstance(x, Tensor) else None


def set_law(x: Tensor, law: Law | None) -> None:
    """Say what a tensor's law is."""
    setattr(x, _LAW, law)


def is_weight(x: Any) -> bool:
    """Is it a parameter, or made of parameters alone?"""
    return isinstance(x, nn.Parameter) or getattr(x, _WEIGHT, False)


def set_weight(x: Tensor) -> None:
    """Say that it is made of parameters alone."""
    setattr(x, _WEIGHT, True)


def forget(x: Tensor | None) -> None:
    """Take off what was said of a tensor."""
    for name in (_LAW, _WEIGHT):
        if x is not None and name in vars(x):
            delattr(x, name)


class Call:
    """A call in the program, to be done again with other tensors in the place of those that have a law."""

    def __init__(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> None:
        self.func, self.args, self.kwargs = func, tuple(args), dict(kwargs)
        self.leaves, self._spec = tree_flatten((self.args, self.kwargs))
        self.at = [i for i, x in enumerate(self.leaves) if law_of(x) is not None]
        self.laws: list[Any] = [law_of(self.leaves[i]) for i in self.at]
        name = getattr(func, "__name__", "")
        self.in_place = name.endswith("_") and not name.endswith("__")
        self.name: str = name.strip("_")
        if self.name == "get":  # a property
            self.name = getattr(getattr(func, "__self__", None), "__name__", "")
        if self.name[:1] in "ri" and self.name[1:] in _ARITHMETIC:
            self.reflected, self.name = self.name[0] == "r", self.name[1:]
        else:
            self.reflected = self.name == "rsub"

    def again(self, *tensors: Tensor) -> Any:
        """The call with these in place of the laws' tensors, which it does not change."""
        leaves = list(self.leaves)
        for i, x in zip(self.at, tensors, strict=True):
            leaves[i] = x.clone()
        args, kwargs = tree_unflatten(leaves, self._spec)
        return self.func(*args, **kwargs)

    def release(self) -> None:
        """Hold on to no tensor of the program: `again` works still."""
        for i in self.at:
            self.leaves[i] = None
        self.args, self.kwargs = (), {}

    def others(self) -> list[Tensor]:
        """The tensors without a law."""
        return [x for i, x in enumerate(self.leaves) if isinstance(x, Tensor) and i not in self.at]

    def argument(self, at: int, name: str, default: Any = None) -> Any:
        """An argument by place or name."""
        return self.args[at] if len(self.args) > at else self.kwargs.get(name, default)


_ARITHMETIC = ("add", "sub", "mul", "truediv", "div", "matmul", "pow")


def tried(work: Callable[[], Any]) -> Any:
    """What it returns; ``None`` if torch refuses these numbers."""
    try:
        return work()
    except (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError):
        return None


def places(shape: Sequence[int]) -> Tensor:
    """1, 2, ... in that shape, as numbers that functions of floats take."""
    size = int(torch.Size(shape).numel())
    return torch.arange(1, size + 1, dtype=torch.float64).reshape(tuple(shape))


def moved(call: Call, shape: Sequence[int]) -> list[Tensor] | None:
    """Of a call with one law that only moves entries, for each tensor that it returns: 1 + the place where each entry
    was, or 0 where it is a zero; ``None``: it does more.
    """
    ids = tried(lambda: call.again(places(shape)))
    noise = torch.randn(tuple(shape), dtype=torch.float64)
    seen = tried(lambda: call.again(noise)) if ids is not None else None
    ids, seen = _tensors(ids), _tensors(seen)
    if not ids or len(ids) != len(seen):
        return None
    padded = torch.cat([torch.zeros(1, dtype=torch.float64), noise.reshape(-1)])
    for a, b in zip(ids, seen, strict=True):
        if a.dtype not in (torch.float64, torch.float32) or a.numel() == 0 or bool((a != a.round()).any()):
            return None
        if bool((a < 0).any()) or bool((a >= len(padded)).any()) or a.shape != b.shape:
            return None
        if not torch.equal(padded[a.long()].to(b.dtype), b):
            return None
    return [a.long() for a in ids]


def _tensors(x: Any) -> list[Tensor]:
    return (
        [x] if isinstance(x, Tensor) else [t for t in x if isinstance(t, Tensor)] if isinstance(x, list | tuple) else []
    )


def pointwise(call: Call, shape: Sequence[int]) -> bool:
    """Of a call with laws of one shape: does it do the same to every entry, whatever the others are?"""
    if any(x.numel() != 1 for x in call.others()):
        return False
    x = [torch.randn(24, dtype=torch.float64) for _ in call.laws]
    whole = tried(lambda: call.again(*x))
    if not isinstance(whole, Tensor) or whole.shape != x[0].shape or not whole.is_floating_point():
        return False
    order = torch.randperm(24)
    turned = tried(lambda: call.again(*[a[order] for a in x]))
    part = tried(lambda: call.again(*[a[:7] for a in x]))
    return bool(
        isinstance(turned, Tensor)
        and isinstance(part, Tensor)
        and torch.equal(turned, whole[order])
        and torch.equal(part, whole[:7])
    )


def by_feature(call: Call, field: Field, like: torch.dtype) -> tuple[tuple[int, ...], bool] | None:
    """Of a call with one field: the axes of features of what it returns, where it does the same to each feature, and
    whether it is linear; ``None``: it mixes features.
    """
    if len(field.features) != 1:
        return None
    axis = field.features[0]
    shape = list(field.shape)

    def on(x: Tensor) -> Tensor | None:
        found = tried(lambda: call.again(x))
        found = found[0] if isinstance(found, tuple) and found else found
        return found if isinstance(found, Tensor) and found.is_floating_point() else None

    shape[axis] = 5
    a, b = torch.randn(shape, dtype=like), torch.randn(shape, dtype=like)
    whole, part = on(a), on(a.narrow(axis, 0, 3))
    if whole is None or part is None:
        return None
    for out in range(whole.dim()):
        same = whole.shape[out] == 5 and part.shape[out] == 3
        if same and torch.allclose(whole.narrow(out, 0, 3), part, atol=1e-5):
            other, both = on(b), on(a + b)
            zero = on(torch.zeros_like(a))
            if other is None or both is None or zero is None or zero.any():
                return (out,), False
            return (out,), torch.allclose(whole + other, both, atol=1e-4, rtol=1e-4)
    return None


def basis(call: Call, field: Field, features: tuple[int, ...], like: torch.dtype) -> Tensor:
    """The matrix (N', N) of a call that does the same linear thing to each feature: done to a basis of the sites."""
    shape = list(field.shape)
    shape[field.features[0]] = field.count
    sites = torch.eye(field.count, dtype=like)
    order = [i for i in range(len(shape)) if i not in field.features] + list(field.features)
    x = sites.reshape([shape[i] for i in order]).permute([order.index(i) for i in range(len(order))])
    found = call.again(x)
    return canonical(found[0] if isinstance(found, tuple) else found, features)


def nth(again: Callable[..., Any], at: int) -> Callable[..., Tensor]:
    """The same for functions that return several tensors: one of these."""

    def nth(*tensors: Tensor) -> Tensor:
        found = again(*tensors)
        return [x for x in found if isinstance(x, Tensor)][at] if isinstance(found, list | tuple) else found

    return nth
