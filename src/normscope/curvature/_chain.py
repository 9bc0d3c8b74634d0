"""The Gram matrix J J^T of a plain multilayer perceptron, layer by layer, without its Jacobian."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from normscope.core.memory import check_room
from normscope.core.spec import POINTWISE
from normscope.curvature._batch import Batch

if TYPE_CHECKING:
    from jaxtyping import Float


def chain_gram(f: Batch) -> Callable[[], Float[Tensor, "m m"]] | None:
    r"""J J^T (n c, n c) of a chain of ``Linear``, elementwise activations and leading ``Flatten``; ``None`` for other
    models.

    With $h^{l-1}$ (n, d) the input of layer l and $\delta^l_k(i)$ the gradient of output k of sample i in that layer's
    output: $(J J^T)_{(i,k),(j,k')} = \sum_l (\delta^l_k(i) \cdot \delta^l_{k'}(j)) (h^{l-1}(i) \cdot h^{l-1}(j) + 1)$,
        the product
    of the h's where the layer's weight is among the parameters asked for, the 1 where its bias is. Work
    $O((n c)^2 \sum_l d_l)$; nothing of the length of the parameters is made.

    Norms, dropout, shared or parametrised weights, hooks and subclasses are other models: they couple samples, or are
        not
    what their class says.
    """
    if f.options.outputs is not None or len(f.step.args) != 1 or not isinstance(f.step.args[0], Tensor):
        return None
    modules = list(_chain(f.model))
    linear = [m for m in modules if type(m) is nn.Linear]
    first = next((i for i, m in enumerate(modules) if type(m) is nn.Linear), 0)
    plain = all(
        type(m) is nn.Linear or _elementwise(m) or (type(m) is nn.Flatten and i < first and m.start_dim == 1)
        for i, m in enumerate(modules)
    )
    held = [p for m in linear for p in m.parameters()]
    alone = len({id(p) for p in held}) == len(held) == len(list(f.model.parameters()))
    flat = f.step.args[0].dim() == 2 or type(modules[0]) is nn.Flatten
    hooked = any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in f.model.modules())
    if not (linear and plain and alone and flat) or hooked:
        return None
    return lambda: _gram(f, modules)


def _elementwise(module: nn.Module) -> bool:
    """Whether it acts on each entry alone, and is no subclass."""
    return type(module) is nn.Identity or getattr(POINTWISE.get(type(module).__name__), "kind", None) is type(module)


def _chain(model: nn.Module) -> Iterator[nn.Module]:
    """The modules that a (nested) ``Sequential`` runs, in their order; itself if it is none."""
    if type(model) is nn.Sequential:
        for module in model:
            yield from _chain(module)
    else:
        yield model


@torch.no_grad()
def _gram(f: Batch, modules: list[nn.Module]) -> Float[Tensor, "m m"]:
    chosen = {id(p) for name, p in f.model.named_parameters() if name in set(f.names)}
    weights = {id(m): m.weight.detach().to(f.dtype) for m in modules if isinstance(m, nn.Linear)}
    h: Tensor = f.step.arguments(dtype=f.cast)[0][0]
    tape: list[tuple[nn.Module, Tensor, Tensor | None]] = []  # module, its input, the slope of an elementwise one
    for module in modules:
        before = h
        if isinstance(module, nn.Linear):
            bias = None if module.bias is None else module.bias.detach().to(f.dtype)
            h = nn.functional.linear(h, weights[id(module)], bias)
            tape.append((module, before, None))
        elif isinstance(module, nn.Flatten):
            h = module(h)
        else:
            with torch.enable_grad():
                leaf = before.detach().requires_grad_()
                out = module(leaf.clone())  # an activation may work in place
                (slope,) = torch.autograd.grad(out.sum(), leaf)
            h = out.detach()
            tape.append((module, before, slope))
    n, c = f.n, f.c
    check_room(8 * (n * c) ** 2, f"The kernel of {n} samples x {c} outputs", "Take fewer samples or outputs.")
    delta = torch.eye(c, dtype=f.dtype, device=f.device).expand(n, c, c)
    total = torch.zeros(n, c, n, c, dtype=f.dtype, device=f.device)
    for module, before, gain in reversed(tape):
        if not isinstance(module, nn.Linear):
            assert gain is not None
            delta = delta * gain[:, None]
            continue
        overlap = before.new_zeros(n, n)
        if id(module.weight) in chosen:
            overlap += before @ before.T
        if module.bias is not None and id(module.bias) in chosen:
            overlap += 1
        rows = delta.reshape(n * c, -1)
        total += (rows @ rows.T).view(n, c, n, c) * overlap[:, None, :, None]
        delta = delta @ weights[id(module)]
    return total.view(n * c, n * c)
