"""Residual branches that start at zero or small: a residual net that begins as its trunk, or near it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from normscope.call.arguments import first_tensor, mapped
from normscope.call.graph import rejoins
from normscope.call.step import Step
from normscope.core.errors import UsageError
from normscope.init._cures import in_place, register
from normscope.init._layers import (
    Layer,
    Treatment,
    generator_of,
    in_order,
    kept,
    require,
    step_of,
    takers,
)

#: Samples that the passes look at (chosen by us: where a gradient goes is a matter of the net's structure).
SEEN = 8


@register(
    "zero-branches", "goyal2017, zhang2019, de2020", auto="middle",
    doc="The last layer of every residual branch starts at zero: a residual net begins as its trunk.",
)  # fmt: skip
def zero_branches(model: nn.Module, inputs: Any, *, generator: torch.Generator | None = None) -> Treatment:
    r"""Start each residual branch at zero: its last layer, weight and bias, or the norm behind that layer; in place.

    $x + W_2\,\phi(W_1 x)$ with $W_2 = 0$: at the start every block passes on what it gets, so that neither scales nor
    angles change along the trunk, whatever the depth; $W_2$ moves with the first step and $W_1$ from the second. Where
    a norm with weights takes the layer's output, its weight becomes zero instead: a norm of zeros has huge gradients.

    A layer ends a branch if its input depends on some layer that, with zeros in it, no gradient reaches any more, while
    one still reaches the inputs (by the skip) and the zeros themselves (else they would stay: an activation follows):
    two or three forward and backward passes a layer, on the first 8 samples. Branches of a single layer look like
    shortcuts and are left alone, and so is the attention without which the output would not see the inputs. Paths that
    are multiplied or concatenated instead of added cannot be told from branches.

    Misleads: the untrained net is a shallow one, and its geometry as healthy as the trunk's.
    Source: Goyal et al. 2017 (the last norm of a block); Zhang, Dauphin, Ma 2019 (Fixup); De and Smith 2020 (SkipInit),
    who scale the branch by a learned number that starts at 0 and show that this is what batch norm does for deep
    residual nets.
    """
    found = _branches(model, inputs, generator)
    for end in found.ends:
        _fill(end.parameters, [torch.zeros_like(p) for p in end.parameters])
    return found.treatment


zero_branches_ = in_place(zero_branches, "zero_branches_")


@register("branch-scale", "he2020, bordelon2023", auto="middle")
def branch_scale(model: nn.Module, inputs: Any, *, generator: torch.Generator | None = None) -> Treatment:
    r"""Each of L residual branches scaled by 1 / sqrt(L): the sum of all is as large as one, at any depth.

    The last layer of the branch, weight and bias, or the norm with weights behind it, is multiplied, in place; what
    ends a branch is found as for `zero_branches`. Then the trunk grows by a factor e at most, angles between samples
    and between tokens stay away from collapse, and the best learning rate of SGD hardly depends on depth.

    Misleads: where the norm behind the sum (post-norm) rescales it again, the branches matter less than they seem.
    Source: Bordelon, Noci et al. 2023, arXiv 2309.16620; Hayou et al. 2021, arXiv 2010.12859; for tokens Noci et al.
    2022, arXiv 2206.03126.
    """
    found = _branches(model, inputs, generator)
    scale = len(found.ends) ** -0.5
    for end in found.ends:
        _fill(end.parameters, [p * scale for p in end.parameters])
    return found.treatment


branch_scale_ = in_place(branch_scale, "branch_scale_")


@dataclass(frozen=True)
class _End:
    """What ends a branch: a layer or the norm behind it; the parameters that scale what it returns."""

    name: str
    parameters: list[Tensor]


@dataclass(frozen=True)
class _Branches:
    ends: list[_End]
    treatment: Treatment


def _branches(model: nn.Module, inputs: Any, generator: torch.Generator | None) -> _Branches:
    """The ends of all residual branches, found by zeros that are put there and taken away again."""
    model, order, left, seed = in_order(model, inputs, generator_of(generator))
    require(order, left)
    ends: list[_End] = []
    names = {m: n for n, m in model.named_modules()}
    step = step_of(model, inputs, seed)
    look = _Look(step, order, SEEN)
    norms = look.norms()
    zeroed: list[tuple[list[Tensor], list[Tensor]]] = []
    try:
        try:
            reached = look.reached()
        except Exception:  # a part of the batch is not always one, as where other inputs index the samples
            look = replace(look, samples=step.rows.n)
            reached = look.reached()
        for i, layer in reversed(list(enumerate(order))) if reached.rejoins else ():
            if not reached.layers[i]:
                left[layer.name] = "inside a branch that ends later"
                continue
            module: nn.Module = norms.get(layer.module, layer.module)
            own = [p for p in (module.weight, module.bias) if isinstance(p, Tensor) and p.requires_grad]
            zeroed.append((own, [p.detach().clone() for p in own]))
            _fill(own, [torch.zeros_like(p) for p in own])
            now = look.reached(own[0])
            dead = [was and not has for was, has in zip(reached.layers[:i], now.layers[:i], strict=True)]
            if now.inputs and now.zeros and any(dead):
                upstream = look.reached(at=layer).layers
                if any(up and gone for up, gone in zip(upstream, dead, strict=False)):
                    reached = now
                    ends.append(_End(names[module], own))
                    continue
            _fill(*zeroed.pop())
            left[layer.name] = "no end of a residual branch"
    finally:
        for parameters, values in zeroed:
            _fill(parameters, values)
    if not ends:
        raise UsageError(
            "There must be a residual branch (x + f(x), f of two layers or more); no skip connection was found around "
            "any layer. Choose another cure: normscope list cures."
        )
    ends.reverse()
    return _Branches(ends, Treatment(model, tuple(end.name for end in ends), left))


def _fill(parameters: list[Tensor], values: list[Tensor]) -> None:
    with torch.no_grad():
        for parameter, value in zip(parameters, values, strict=True):
            parameter.copy_(value)


@dataclass(frozen=True)
class _Reached:
    """What a gradient reaches: each layer's weight, the inputs, the weight that was set to zero; and whether paths part
    and come together on its way.
    """

    layers: list[bool]
    inputs: bool
    zeros: bool
    rejoins: bool


@dataclass(frozen=True)
class _Look:
    """Forward and backward passes in training mode that ask where a gradient goes."""

    step: Step
    order: list[Layer]
    samples: int

    def norms(self) -> dict[nn.Module, nn.Module]:
        """Layer to the norm with weights that takes its very output."""
        kinds = (nn.modules.batchnorm._NormBase, nn.GroupNorm, nn.LayerNorm)
        norms = [
            m for m in self.step.root.modules()
            if isinstance(m, kinds) and isinstance(m.weight, Tensor) and m.weight.requires_grad
        ]  # fmt: skip
        return dict(takers(self.step, [layer.module for layer in self.order], norms))

    def reached(self, zeros: Tensor | None = None, at: Layer | None = None) -> _Reached:
        """From a random direction of the outputs, or of the input of the layer ``at``."""
        weights: list[Tensor] = [layer.module.weight for layer in self.order]
        entry, joined, slopes = self._run(at, [*weights, *([] if zeros is None else [zeros])])
        got = [slope is not None and bool(slope.count_nonzero()) for slope in slopes]
        layers = got[: len(weights)]
        return _Reached(layers, layers[0] if entry is None else entry, zeros is None or got[-1], joined)

    def _run(self, at: Layer | None, wanted: Sequence[Tensor]) -> tuple[bool | None, bool, list[Any]]:
        """Whether a gradient reaches the inputs (``None`` where these are integers), whether its paths come together,
        and the slopes of ``wanted``.
        """
        joined = False
        seen: list[Tensor | None] = []
        entries: list[Tensor] = []
        samples = self.step.rows.n

        def head(x: Tensor) -> Tensor:
            x = (x[: self.samples] if x.dim() and len(x) == samples else x).detach()
            if x.is_floating_point():
                entries.append(x.requires_grad_())
            return x

        def look(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen.append(first_tensor([*args, *kwargs.values()]))

        def work() -> list[Any] | None:
            args, kwargs, _ = self.step.arguments()
            args, kwargs = mapped(args, head), mapped(kwargs, head)
            handle = None if at is None else at.module.register_forward_pre_hook(look, with_kwargs=True)
            try:
                out = first_tensor(self.step.whole(args, kwargs))
            finally:
                if handle is not None:
                    handle.remove()
            x = seen[0] if seen else out
            if x is None or not x.requires_grad:
                return None
            nonlocal joined
            joined = rejoins(x)
            direction = torch.randn(
                x.shape, generator=torch.Generator().manual_seed(self.step.seed), dtype=torch.float64
            )
            return list(torch.autograd.grad(x, [*wanted, *entries], direction.to(x), allow_unused=True))

        weighed = (m for m in self.step.root.modules() if isinstance(getattr(m, "weight", None), Tensor))
        norms = [Layer("", m) for m in weighed]  # type: ignore[arg-type]
        slopes = self.step.run(work, kept(self.order) | kept(norms))
        if slopes is None:
            return None, joined, [None] * len(wanted)
        ends = slopes[len(wanted) :]
        entry = any(e is not None and bool(e.count_nonzero()) for e in ends) if entries else None
        return entry, joined, slopes[: len(wanted)]
