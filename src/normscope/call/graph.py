"""What an autograd graph is made of, where that decides whether it can be differentiated as we do."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor
from torch.autograd.function import BackwardCFunction

from normscope.core.errors import UsageError


class NoGradient(UsageError):
    """Nothing that can be differentiated in: no parameter and no floating input reaches the loss."""


def nodes(*tensors: Tensor) -> Iterator[Any]:
    """Every node behind the tensors, each once."""
    stack = [t.grad_fn for t in tensors if t.grad_fn is not None]
    seen = set(stack)
    while stack:
        node = stack.pop()
        yield node
        for parent, _ in node.next_functions:
            if parent is not None and parent not in seen:
                seen.add(parent)
                stack.append(parent)


def rejoins(y: Tensor) -> bool:
    """Whether some node behind ``y`` takes two things that depend on one leaf: a path parted and came together."""
    leaves: dict[Any, int] = {}  # the leaves behind a node, as the bits of a number
    stack = [] if y.grad_fn is None else [(y.grad_fn, False)]
    while stack:
        node, done = stack.pop()
        parents = [parent for parent, _ in node.next_functions if parent is not None]
        if not done and node not in leaves:
            stack.append((node, True))
            stack.extend((parent, False) for parent in parents if parent not in leaves)
        elif done:
            held = 0 if parents else 1 << len(leaves)
            for parent in parents:
                if held & leaves[parent]:
                    return True
                held |= leaves[parent]
            leaves[node] = held
    return False


def handwritten(y: Tensor, x: Tensor) -> bool:
    """Whether a ``torch.autograd.Function`` with a backward pass of its own lies among the nodes from ``y`` down to
    ``x``.
    """
    stack, seen = [y.grad_fn], {x.grad_fn}
    while stack and len(seen) < 100:
        node = stack.pop()
        if node is not None and node not in seen:
            seen.add(node)
            if isinstance(node, BackwardCFunction):
                return True
            stack.extend(parent for parent, _ in node.next_functions)
    return False


def unreached(leaves: Sequence[Tensor], *tensors: Tensor) -> list[int]:
    """Which of the leaves no path leads to from the tensors, by position."""
    there = {id(node.variable) for node in nodes(*tensors) if hasattr(node, "variable")}
    return [i for i, leaf in enumerate(leaves) if id(leaf) not in there]


def refuse_reentrant(*tensors: Tensor) -> None:
    """``UsageError`` where a reentrant checkpoint hides parameters from ``autograd.grad``."""
    if any(type(node).__name__ == "CheckpointFunctionBackward" for node in nodes(*tensors)):
        raise UsageError(
            "Reentrant checkpointing allows no look at single gradients. Switch checkpointing off to probe, or call "
            "checkpoint with use_reentrant=False (Hugging Face: gradient_checkpointing_kwargs)."
        )
