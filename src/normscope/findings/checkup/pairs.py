"""Pairs of samples that a loss is to pull together or push apart, beside how alike they are."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from normscope.call.arguments import mapped, tensors
from normscope.findings.checkup.scene import Rerun, Scene

#: Pairs of each kind that are needed (chosen by us).
PAIRS = 8


def of_pairs(scene: Scene) -> dict[str, Any]:
    """How often a pair that the loss pulls together is less alike in the inputs than one that it pushes apart, of a
    model that returns their distance or similarity, or both embeddings.
    """
    given = _inputs(scene)
    outputs = [t for t in tensors(scene.whole) if t.is_floating_point()]
    if not given or scene.loss is None or scene.at.step is not None:
        return {}
    if isinstance(scene.targets, Tensor) and scene.targets.dim() and scene.targets.numel() > len(scene.targets):
        return {}  # a label of a pair is one
    apart, *others = [(given[0].float() - x.float()).flatten(1).norm(dim=1) for x in given[1:]]
    leaves = [t.detach().clone().requires_grad_() for t in outputs]
    by = {id(old): new for old, new in zip(outputs, leaves, strict=True)}
    with torch.enable_grad():
        value = scene.loss.value(_replaced(scene.whole, by), scene.targets, scene.at.seed)
        if not value.requires_grad:
            return {}
        slopes = torch.autograd.grad(value, leaves, allow_unused=True)
    if len(outputs) == 1 and outputs[0].dim() == 3 and outputs[0].shape[1] == len(given) and slopes[0] is not None:
        outputs, slopes = list(outputs[0].unbind(1)), slopes[0].unbind(1)  # side by side in one tensor
    if others:
        return _triplets(outputs, slopes, apart, others[0])
    if len(outputs) == 1 and outputs[0].numel() == len(apart) and slopes[0] is not None:
        towards = slopes[0].flatten() * _orientation(scene, outputs[0].flatten())
    elif len(outputs) == 2 and outputs[0].shape == outputs[1].shape and None not in slopes and outputs[0].dim() == 2:
        if len(outputs[0]) != len(apart):
            return {}
        towards = ((slopes[0] - slopes[1]) * (outputs[0] - outputs[1])).sum(1)
    else:
        return {}
    pulled, pushed = apart[towards > 0], apart[towards < 0]
    if min(len(pulled), len(pushed)) < PAIRS:
        return {}
    return {"pulled_apart": float((pulled[:, None] > pushed).float().mean())}


def _replaced(whole: Any, by: dict[int, Tensor]) -> Any:
    return mapped(whole, lambda t: by.get(id(t), t))


def _triplets(outputs: list[Tensor], slopes: tuple[Tensor | None, ...], one: Tensor, other: Tensor) -> dict[str, Any]:
    """The same of three embeddings, of which the first is drawn to one of the others and pushed from the other."""
    if len(outputs) != 3 or len({x.shape for x in outputs}) > 1 or outputs[0].dim() != 2 or len(outputs[0]) != len(one):
        return {}
    pulls = [-(g * (outputs[0] - x)).sum(1) for g, x in zip(slopes[1:], outputs[1:], strict=True) if g is not None]
    if len(pulls) < 2:
        return {}
    first, second = (pulls[0] > 0) & (pulls[1] < 0), (pulls[0] < 0) & (pulls[1] > 0)
    if int(first.sum() + second.sum()) < PAIRS:
        return {}
    return {"pulled_apart": float(torch.cat([one[first] > other[first], other[second] > one[second]]).float().mean())}


def _inputs(scene: Scene) -> list[Tensor]:
    """The two or three parts of the inputs: tensors of one shape, or one (n, 2 or 3, ...)."""
    given = [t for t in tensors((scene.at.args, scene.at.kwargs)) if t.is_floating_point()]
    if len(given) in (2, 3) and len({t.shape for t in given}) == 1 and given[0].dim() > 1:
        return given
    if len(given) == 1 and given[0].dim() > 2 and given[0].shape[1] in (2, 3):
        return list(given[0].unbind(1))
    return []


def _orientation(scene: Scene, seen: Tensor) -> float:
    """1 of an output that is 0 for two equal inputs and positive otherwise, -1 of one that is then at its largest, the
    same for all; 0 of any other: a head that may learn either.
    """
    again = Rerun.of(scene.at, 16)
    if again is None:
        return 0.0
    given = [t for t in tensors((again.args, again.kwargs)) if t.is_floating_point()]

    def equal() -> Tensor:
        first = given[0]

        def doubled(t: Tensor) -> Tensor:
            if not t.is_floating_point():
                return t
            return first if len(given) == 2 else torch.stack([t[:, 0], t[:, 0]], 1)

        return again.output(*mapped((again.args, again.kwargs), doubled)).flatten()

    found = again.run(equal, None)
    if found is None:
        return 0.0
    size = float(seen.abs().median())
    if float(found.abs().max()) < 0.01 * size and bool((seen >= 0).all()):
        return 1.0
    same = float(found.std()) < 1e-3 * float(seen.std()) and float(found.min()) >= float(seen.max())
    return -1.0 if same else 0.0
