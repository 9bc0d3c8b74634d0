"""The functions that model and loss call, as far as their arguments alone show a slip: axes, and dropout in eval mode."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from normscope.findings.checkup.scene import Scene

_RESHAPES = {Tensor.view, Tensor.reshape, torch.reshape}
_SOFTMAX = {F.softmax, torch.softmax, Tensor.softmax}
_PRODUCTS = {torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm}
_DROPOUT = {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout}


def of_calls(scene: Scene) -> dict[str, Any]:
    """Where axes are exchanged by a reshape, where a softmax runs along another axis than the one that is summed over, and
    dropout that stays on in eval mode.
    """
    at, found = scene.at, _Calls(scene.at.rows.n)

    def work() -> None:
        args, kwargs, _ = at.arguments()
        with found:
            whole = at.whole(args, kwargs)
            if scene.loss is not None and at.step is None:
                at.value(whole, at.own_targets())

    def evaluated() -> None:
        args, kwargs, _ = at.arguments()
        with found:
            at.whole(args, kwargs)

    with found.inside(at.root):
        at.run(work)
        if at.step is None:
            found.eval = True
            replace(at, mode="eval").run(evaluated)
    return {"reshaped": found.reshaped, "softmax": found.softmax, "dropout": found.dropout}


class _Calls(TorchFunctionMode):
    def __init__(self, n: int) -> None:
        super().__init__()
        self.n, self.eval = n, False
        self.reshaped: dict[str, Any] | None = None
        self.softmax: dict[str, Any] | None = None
        self.dropout: dict[str, Any] | None = None
        self.stack: list[str] = []
        self._made: dict[int, tuple[Tensor, int]] = {}

    @contextmanager
    def inside(self, root: nn.Module) -> Iterator[None]:
        """Hooks that say which module is running."""
        stack = self.stack  # not the mode itself: what a hook's object holds is put back behind a run

        def leave(*_: Any) -> None:
            stack.pop()

        handles = []
        for name, m in root.named_modules():
            handles.append(m.register_forward_pre_hook(lambda *_, name=name: stack.append(name)))
            handles.append(m.register_forward_hook(leave, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        x = args[0] if args and isinstance(args[0], Tensor) else None
        if x is None or not isinstance(result, Tensor):
            return result
        name = self.stack[-1] if self.stack else ""
        if func in _RESHAPES and not self.eval and exchanged(tuple(x.shape), tuple(result.shape)):
            if self.reshaped is None:
                self.reshaped = {"from": list(x.shape), "to": list(result.shape), "module": name}
        elif func in _SOFTMAX and x.dim() >= 3:
            dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
            if isinstance(dim, int):
                self._made[id(result)] = (result, dim % x.dim())
        elif func in _DROPOUT and id(x) in self._made:
            self._made[id(result)] = (result, self._made[id(x)][1])
        elif func in _PRODUCTS and id(x) in self._made and self.softmax is None:
            dim = self._made[id(x)][1]
            if dim != x.dim() - 1 and x.shape[-1] > 1:
                self.softmax = {"dim": dim, "summed": x.dim() - 1, "shape": list(x.shape), "module": name}
        if func in _DROPOUT and self.eval and self.dropout is None:
            p = kwargs.get("p", args[1] if len(args) > 1 else 0.5)
            training = kwargs.get("training", args[2] if len(args) > 2 else True)
            if training and p > 0:
                self.dropout = {"p": float(p), "module": name}
        return result


def exchanged(old: tuple[int, ...], new: tuple[int, ...]) -> bool:
    """Whether a reshape gives the axes other places: two neighbours exchanged, (n, a, b) to (n, b, a), or classes of images
    made the last axis, (n, c, h, w) to (n h w, c).
    """
    if len(old) == len(new) and len(old) >= 3 and old[0] == new[0] and old != new:
        places = [i for i in range(len(old)) if old[i] != new[i]]
        if len(places) == 2 and places[1] == places[0] + 1 and min(old[i] for i in places) > 1:
            return sorted(old) == sorted(new)
        moved = old[1:] != new[1:] and sorted(old[1:]) == sorted(new[1:]) and len(set(old[1:])) > 1
        return moved and (old[2:] + old[1:2] == new[1:] or old[-1:] + old[1:-1] == new[1:]) and min(old[1:]) > 1
    if len(old) >= 3 and len(new) == 2 and old[0] > 1:
        c, rest = old[1], 1
        for s in (old[0], *old[2:]):
            rest *= s
        return 1 < c == new[1] and new[0] == rest and old[-1] != c and rest > old[0]
    return False
