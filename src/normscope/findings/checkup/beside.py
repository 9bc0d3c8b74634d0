"""What a training step has beside the model, or writes past the optimizer: copies that stay, weights set anew."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from normscope.call.reach import Reach
from normscope.call.step import Step


class Rewritten:
    """At which steps the weights that the optimizer is to move are others than the step before left."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.left: list[Tensor] | None = None

    def behind(self, parameters: Sequence[Tensor]) -> None:
        """The end of a step: sum and size of each tensor."""
        with torch.no_grad():
            self.left = [torch.stack([p.sum(), p.norm()]) for p in parameters if p.is_floating_point()]

    def before(self, step: int, parameters: Sequence[Tensor]) -> None:
        """The optimizer is about to move them."""
        left = self.left
        self.behind(parameters)
        if left is not None and self.left is not None and step not in self.steps:
            moved = [float((a - b).abs().max()) > 1e-2 * float(a[1]) for a, b in zip(left, self.left, strict=True)]
            if sum(moved) > len(moved) / 2:
                self.steps.append(step)


def copies_of(at: Step) -> list[tuple[str, nn.Module, list[Tensor]]]:
    """Modules that have the very values of the model, or frozen ones of a part of it, with those: held by the loop's
    body, or by the model.
    """
    parts = {m: n for n, m in at.root.named_modules() if any(p.dim() > 1 for p in m.parameters())}
    frozen = [m for m in parts if not any(p.requires_grad for p in m.parameters())]
    beside = [m for m in Reach.of([at.train_step]).modules if m not in parts] if at.train_step is not None else []
    learn = [m for m in parts if m not in frozen]
    found: dict[nn.Module, str] = {}
    for one in (*frozen, *beside):
        like = (m for m in learn if type(m) is type(one) and equal(one, list(m.parameters())))
        if not any(one in m.modules() for m in found) and next(like, None) is not None:
            found[one] = parts.get(one, "")
    return [(n, m, [p.detach().clone() for p in m.parameters()]) for m, n in found.items()]


def equal(module: nn.Module, values: Sequence[Tensor]) -> bool:
    """Whether the module's parameters have these values."""
    mine = list(module.parameters())
    return len(mine) == len(values) and all(map(torch.equal, mine, values))
