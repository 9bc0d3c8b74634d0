"""Residual branches that start at zero: a residual net that begins as its trunk."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normscope._errors import UsageError
from normscope._taps import as_call, first_tensor, no_trace
from normscope.init._layers import (
    Layer,
    Treatment,
    all_or_nothing,
    generator_of,
    in_order,
    model_of,
    require,
    survey,
    untied,
)


def zero_branches_(model: nn.Module, inputs: Any, *, generator: torch.Generator | None = None) -> nn.Module:
    r"""Set the last layer of each residual branch to zero, weight and bias; in place.

    $x + W_2\,\phi(W_1 x)$ with $W_2 = 0$: at the start every block passes on what it gets, so that neither scales nor angles
    change along the trunk, whatever the depth; $W_2$ moves with the first step and $W_1$ from the second.

    A layer ends a branch if its input depends on some layer that, with zeros in it, no gradient reaches any more, while the
    first layer still gets one (by the skip): three forward and backward passes a layer. Branches of a single layer look like
    shortcuts and are left alone, and so is the attention without which the output would not see the inputs.

    Misleads: the untrained net is a shallow one, and its geometry as healthy as the trunk's.
    Source: Zhang, Dauphin, Ma 2019 (Fixup); De and Smith 2020 (SkipInit), who scale the branch by a learned number that
    starts at 0 and show that this is what batch norm does for deep residual nets.
    """
    return zero_branches(model, inputs, generator=generator).model


def zero_branches(model: nn.Module, inputs: Any, *, generator: torch.Generator | None = None) -> Treatment:
    """`zero_branches_` with the account of what it did."""
    model = model_of(model)
    layers, left = survey(model)
    require(layers, left)
    seed = int(torch.randint(2**31, (), generator=generator_of(generator)))
    order = untied(in_order(model, inputs, layers, left, seed=seed), left)
    require(order, left)
    done: list[str] = []
    with all_or_nothing(order):
        reached = _reached(model, inputs, order, None, seed)
        for i in reversed(range(1, len(order))):
            if not reached[i]:
                left[order[i].name] = "inside a branch that starts at zero"
                continue
            before = _reached(model, inputs, order[:i], order[i], seed)
            weight, bias = order[i].weight.detach().clone(), order[i].module.bias
            kept = None if bias is None else bias.detach().clone()
            order[i].set(torch.zeros_like(weight))
            now = _reached(model, inputs, order, None, seed)
            if now[0] and any(up and was and not has for up, was, has in zip(before, reached, now, strict=False)):
                reached = now
                done.append(order[i].name)
                continue
            order[i].set(weight, bias=False)
            if bias is not None and kept is not None:
                with torch.no_grad():
                    bias.copy_(kept)
            left[order[i].name] = "not the end of a residual branch"
        left[order[0].name] = "the first layer"
        if not done:
            raise UsageError(
                "There must be a residual branch (x + f(x), f of two layers or more) to start at zero; no skip connection "
                "was found around any layer. Choose another cure: normscope list cures."
            )
    done.reverse()
    return Treatment(model, tuple(done), left)


def _reached(model: nn.Module, inputs: Any, layers: list[Layer], at: Layer | None, seed: int) -> list[bool]:
    """Whether a gradient reaches each layer's weight from the outputs, or from the input of the layer ``at``."""
    seen: list[Tensor | None] = []

    def look(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.append(first_tensor([*args, *kwargs.values()]))

    with no_trace(model, mode="train", seed=seed):
        args, kwargs, _ = as_call(inputs, grad=False)
        handle = None if at is None else at.module.register_forward_pre_hook(look, with_kwargs=True)
        try:
            out = first_tensor(model(*args, **kwargs))
        finally:
            if handle is not None:
                handle.remove()
        x = seen[0] if seen else out
        if x is None or not x.requires_grad:
            return [False] * len(layers)
        direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        weights: list[Tensor] = [layer.module.weight for layer in layers]
        slopes = torch.autograd.grad(x, weights, direction.to(x), allow_unused=True)
    return [slope is not None and bool(slope.count_nonzero()) for slope in slopes]
