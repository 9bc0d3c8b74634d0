"""Parameters that stand for themselves in a pass: a copy of all is as much memory as the net.

A call that only reads its weights may have the user's own. Before any other is done the pass ends, and is taken once
more on copies.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from torch import Tensor, nn

from normscope.call.step import Step
from normscope.theory.program.reading import Call, is_weight

T = TypeVar("T")
#: Functions and properties, by the name that they have in torch, that write to none of their arguments.
_READING = {
    "linear", "matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "addmm", "conv1d", "conv2d", "conv3d", "embedding",
    "layer_norm", "group_norm", "rms_norm", "batch_norm", "standardised", "scaled_dot_product_attention",
    "multi_head_attention_forward", "add", "__add__", "__radd__", "sub", "__sub__", "__rsub__", "mul", "__mul__",
    "__rmul__", "expand", "view", "reshape", "flatten", "transpose", "t", "permute", "unsqueeze", "squeeze", "chunk",
    "split", "__getitem__", "size", "dim", "numel", "cat", "shape", "dtype", "device", "ndim", "requires_grad", "T",
    "mT", "is_cuda",
}  # fmt: skip


class Refused(BaseException):
    """A call might write to a weight. No ``Exception``: no model of the user's is to catch it."""


def reads(call: Call) -> bool:
    """Does the call leave the weights among its arguments as they are, for all that is known?"""
    name = getattr(call.func, "__name__", "")
    if not any(isinstance(x, Tensor) and is_weight(x) for x in call.leaves):
        return name != "backward"
    name = call.name if name == "__get__" else name
    if name == "batch_norm" and any(
        is_weight(call.argument(i, k)) for i, k in ((1, "running_mean"), (2, "running_var"))
    ):
        return False
    if name == "embedding" and call.argument(3, "max_norm") is not None:
        return False
    return name in _READING and call.kwargs.get("out") is None


def lending(at: Step, work: Callable[[bool], T], refused: Callable[[], bool]) -> T:
    """``work(True)`` on the model's own parameters; where that was ``refused``, ``work(False)`` on copies."""
    own = {id(p): p for p in at.root.parameters() if type(p) is nn.Parameter and p.grad is None}
    try:
        found = at.run(lambda: work(True), own)
        if not refused():  # the model may have caught it
            return found
    except Refused:
        pass
    finally:
        for p in own.values():
            p.grad = None
    return at.run(lambda: work(False))
