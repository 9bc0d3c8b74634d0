"""What the loss can see: the loss as a function of the outputs alone, and how far the outputs reach."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from normscope.call.arguments import tensors
from normscope.call.targets import class_axis
from normscope.findings.checkup.ends import FAR, floor, reach_of, unbounded
from normscope.findings.checkup.labels import is_binary, reading_of_targets
from normscope.findings.checkup.scene import Scene, as_function, replaced
from normscope.findings.checkup.tokens import next_token, shifted_by_both


def of_loss(scene: Scene) -> dict[str, Any]:
    """Numbers about the loss and the outputs; see the rules NS7xx."""
    found: dict[str, Any] = {"value": scene.value}
    value = as_function(scene)
    if value is None or scene.output is None or scene.loss is None:
        return found | shifted_by_both(scene)
    found |= {"outputs": list(scene.output.shape), "targets": list(scene.targets.shape), "name": scene.loss.name}
    if _squeezes(scene, value):
        _in_the_outputs_shape(scene)
        value = as_function(scene)
        assert value is not None
    o, t = scene.output, scene.targets
    parts = [x.dim() for x in tensors(scene.whole) if x.is_floating_point()]
    found["several"] = len(parts) > 2 or 0 in parts  # with a loss of the model's own among them
    g = _gradient(scene, o, t)
    if g is None:
        return found
    found["reaches_weights"] = any(w is not None and bool((w != 0).any()) for w in scene.grads.values())
    found["zero_gradient"] = not bool((g != 0).any())
    moved = o + o.std(correction=min(1, o.numel() - 1)).clamp_min(1.0) * _noise(o)  # alike outputs tell nothing
    found["moves"] = (there := value(moved, t)) != scene.value
    found["reads"] = not t.is_floating_point() or value(moved, t + 1) != there
    classes = _classes(o, t)
    if classes is not None and not t.is_floating_point():
        other = (t + 1) % classes.shape[class_axis(o, t)]
        classes = None if value(moved, other) == there else classes  # targets for form's sake
    found["task"] = (
        "classes" if classes is not None else "regression" if _regression(scene, value, o,
            t) else "binary" if is_binary(o, t)
        else "other"
    )  # fmt: skip
    found["linear"] = bool(abs(value(2 * o, t) - 2 * scene.value) <= 1e-5 * abs(scene.value))
    found |= _normalized(o, scene, value, t)
    right = classes if found.get("softmax_in_loss") else t if found["task"] == "binary" else None
    if right is not None and "sums_to_one" not in found:
        found |= _capped(value, o, t, right)
    found |= _broadcast(value, o, t)
    found["unread_targets"] = _unread(value, o, t)
    # Near outputs of zero: a saturated softmax has rows without gradient too, which nothing ignores, and |o| has at 0.
    binary = found["task"] == "binary" and scene.loss.kind == "bce_with_logits"
    flat = _gradient(scene, o, t, 0.01 * _noise(o)) if classes is not None or binary else g
    ids = [x for x in tensors((scene.at.args, scene.at.kwargs)) if not x.is_floating_point() and x.dim() > 1]
    found |= reading_of_targets(o, t, g if flat is None else flat, scene.loss, classes, ids, scene.at.rows.n)
    found |= _pulls(scene, o, t, classes if classes is not None else t if found["task"] == "binary" else None)
    found |= _columns(g) if found["task"] == "other" else {}
    found |= _constant_answer(value, o, t, classes, found)
    found |= _sign(value, o, t, g, classes, found["task"], scene.value)
    found["target_rms"] = float(t.float().square().mean().sqrt()) if t.numel() and not t.is_complex() else math.nan
    found["output_rms"] = float(o.square().mean().sqrt())
    found["last"] = scene.calls[-1].name if scene.calls else ""
    found["last_weight"] = _last_weight(scene)
    last = list(scene.at.root.get_submodule(found["last_weight"]).parameters(recurse=False))
    found["last_frozen"] = bool(last) and not any(p.requires_grad for p in last)
    found |= next_token(scene, o, g)
    found["other_classes"] = _other_classes(scene, value, o, t)
    reach = reach_of(scene)
    if reach is not None:
        found |= floor(value, o, t, g, classes, reach, found)
    found |= unbounded(scene, o, t, g, found)
    return found


def _columns(g: Tensor) -> dict[str, Any]:
    """Columns of outputs (n, k) in two groups, by how hard the loss pulls them, where these are far apart."""
    if g.dim() != 2 or not 3 <= g.shape[1] <= 256:
        return {}
    pulls = g.float().square().mean(0).sqrt()
    order = pulls.argsort().tolist()
    steps = [float(pulls[b] / pulls[a].clamp_min(1e-30)) for a, b in pairwise(order)]
    at = max(range(len(steps)), key=steps.__getitem__)
    if float(pulls.min()) == 0:  # columns that the loss does not read
        return {}
    return {"pulled_columns": {"ratio": steps[at], "weak": sorted(order[: at + 1]), "strong": sorted(order[at + 1 :])}}


def _squeezes(scene: Scene, value: Any) -> bool:
    """Whether a loss of the user's own brings outputs and targets that differ by axes of length one, or whole zeros and
    ones, to one shape and kind.
    """
    o, t = scene.output, scene.targets
    assert o is not None
    assert scene.loss is not None
    if scene.loss.call is None or o.squeeze().shape != t.squeeze().shape or t.is_complex():
        return False
    if not t.is_floating_point():
        return bool(((t == 0) | (t == 1)).all())
    return o.shape != t.shape and not _broadcast(value, o, t).get("broadcast")


def _in_the_outputs_shape(scene: Scene) -> None:
    """Targets in the shape of the outputs, as real numbers, and the loss that takes them so."""
    assert scene.output is not None
    assert scene.loss is not None
    assert scene.loss.call is not None
    call, given = scene.loss.call, scene.targets
    real = given if given.is_floating_point() else given.to(scene.output)
    scene.targets = real.reshape(scene.output.shape)
    scene.loss = replace(scene.loss, call=lambda whole, t: call(whole, t.reshape(given.shape).to(given.dtype)))


def _other_classes(scene: Scene, value: Any, o: Tensor, t: Tensor) -> bool:
    """Whether the loss takes axis 1 of outputs (n, k, k) for classes, where the last Linear layer put its features on
    the last one.
    """
    last = scene.calls[-1].module if scene.calls else None
    square = o.dim() == 3 and o.shape[1] == o.shape[2] > 1 and o.stride(-1) == 1 and t.shape == o.shape[:2]
    if not square or t.is_floating_point() or not isinstance(last, nn.Linear) or last.out_features != o.shape[2]:
        return False
    shift, there = _noise(o), value(o, t)
    same, other = (abs(value(o + x, t) - there) for x in (shift[:, :1], shift[:, :, :1]))
    return same <= 1e-5 * abs(there) < 0.01 * other


def _last_weight(scene: Scene) -> str:
    """The first module that holds the last weight matrix that ran: of an output tied to an embedding, the embedding."""
    names = {id(p): n for n, p in scene.at.root.named_parameters()}
    for call in reversed(scene.weighted):
        for p in call.module.parameters(recurse=False):
            key = next((k for k, c in scene.copies.items() if c is p or k == id(p)), None)
            if p.dim() > 1 and key in names:
                return names[key].rpartition(".")[0]
    return ""


def _noise(o: Tensor) -> Tensor:
    return torch.randn(o.shape, generator=torch.Generator().manual_seed(1)).to(o)


def _gradient(scene: Scene, o: Tensor, t: Tensor, there: Tensor | None = None) -> Tensor | None:
    """The loss gradient in the outputs ``o``, or in others in their place."""
    leaf = (o if there is None else there).detach().clone().requires_grad_()
    assert scene.loss is not None
    value = scene.loss.value(replaced(scene.whole, o, leaf), t, scene.at.seed)
    if not value.requires_grad:
        return torch.zeros_like(o)
    (g,) = torch.autograd.grad(value, leaf, allow_unused=True)
    return torch.zeros_like(o) if g is None else g.detach()


def _classes(o: Tensor, t: Tensor) -> Tensor | None:
    """Targets as one-hot entries of the outputs' shape, where they are classes: indices, or rows with a single one."""
    if o.dim() < 2:
        return None
    if t.shape == o.shape:
        axis = class_axis(o)
        ones = ((t == 0) | (t == 1)).all() & (t.sum(axis) == 1).all()
        return t.to(o) if o.shape[axis] > 1 and bool(ones) else None
    if t.is_floating_point() or t.dtype is torch.bool or t.is_complex() or t.numel() == 0:
        return None
    if t.dim() != o.dim() - 1:
        flat = o.dim() == 2 and t.numel() == len(o)
        return _classes(o, t.flatten()) if flat and t.dim() != 1 else None
    axis = class_axis(o, t)
    if o.shape[:axis] + o.shape[axis + 1 :] != t.shape or int(t.max()) >= o.shape[axis] or o.shape[axis] < 2:
        return None
    known = t.clamp_min(0).unsqueeze(axis)
    return torch.zeros_like(o).scatter_(axis, known, 1.0) * (t >= 0).unsqueeze(axis)


def _regression(scene: Scene, value: Any, o: Tensor, t: Tensor) -> bool:
    """Whether the loss is lowest where the outputs equal the targets: zero there, and positive elsewhere; or without a
    gradient in them, where it has other parts (a divergence).
    """
    if not t.is_floating_point() or t.numel() != o.numel():
        return False
    at_targets, elsewhere = value(t.reshape(o.shape).to(o), t.reshape(o.shape)), value(o, t.reshape(o.shape))
    if abs(at_targets) <= 1e-6 * abs(elsewhere) and elsewhere > 0:
        return True
    if t.shape != o.shape or is_binary(o, t) or not at_targets < elsewhere:
        return False
    here, there = _gradient(scene, o, t), _gradient(scene, o, t, t.to(o))
    return here is not None and there is not None and float(there.norm()) <= 1e-6 * float(here.norm())


def _normalized(o: Tensor, scene: Scene, value: Any, t: Tensor) -> dict[str, Any]:
    """Over which axis the outputs (or their exponentials) sum to one, and whether the loss takes a softmax of its
    own.
    """
    if o.dim() < 2 or len(o) < 4:
        return {}
    axis = class_axis(o, t)
    found: dict[str, Any] = {}
    for name, p in (("probabilities", o), ("log-probabilities", o.exp())):
        if not bool(((p >= 0) & (p <= 1 + 1e-5)).all()):
            continue
        others = [(f"axis {i}", i) for i in range(1, o.dim()) if i != axis]
        for where, along in (("classes", axis), ("samples", 0), *others):
            sums = p.sum(along)
            if p.shape[along] > 1 and bool(((sums - 1).abs() < 1e-4).all()) and float(p.std(along).max()) > 1e-6:
                found.setdefault("sums_to_one", {"what": name, "over": where})
    shift = torch.rand(o.select(axis, 0).shape, generator=torch.Generator().manual_seed(2)).to(o).unsqueeze(axis)
    base, moved, other = value(o, t), value(o + shift, t), value(o + 0.3 * _noise(o), t)
    found["softmax_in_loss"] = abs(moved - base) < 1e-5 * max(1.0, abs(base)) and abs(other - base) > 1e-5
    found["columns"] = o.shape[axis]
    return found


def _capped(value: Any, o: Tensor, t: Tensor, classes: Tensor) -> dict[str, Any]:
    """The least and the largest that outputs of any size can make a loss that takes another softmax of its own
    softmax.
    """

    def at(size: float) -> float:
        return float(value(torch.where(classes > 0, o.new_tensor(size), o.new_tensor(-size)), t))

    ends = at(FAR), at(10 * FAR), at(-FAR), at(-10 * FAR)
    same = (
        all(math.isfinite(e) for e in ends)
        and math.isclose(*ends[:2], rel_tol=1e-4)
        and math.isclose(*ends[2:], rel_tol=1e-4)
    )
    return {"capped": [ends[0], ends[2]]} if same and ends[0] < ends[2] else {}


def _broadcast(value: Any, o: Tensor, t: Tensor) -> dict[str, Any]:
    """Whether every output is compared with every target: shapes that broadcast, and no pairing of samples."""
    if o.shape == t.shape or o.numel() != t.numel() or len(o) < 2 or not t.is_floating_point():
        return {}
    order = torch.randperm(t.numel(), generator=torch.Generator().manual_seed(3))
    noisy = o + o.std().clamp_min(0.1) * _noise(o)
    a, b = value(noisy, t), value(noisy, t.flatten()[order].reshape(t.shape))
    uses = value(noisy, t * 2 + 1)
    return {"broadcast": abs(a - b) < 1e-5 * abs(a) and abs(uses - a) > 1e-3 * abs(a) and float(t.std()) > 0}


def _unread(value: Any, o: Tensor, t: Tensor) -> list[str]:
    """The columns of a table of targets that others' values can stand in for without any change, if the loss reads
    some.
    """
    if t.dim() != 2 or not 2 <= t.shape[1] <= 16 or t.shape == o.shape:
        return []
    blind, now = [], value(o, t)
    for j in range(t.shape[1]):
        other = t.clone()
        other[:, j] = t[:, j].flip(0)
        if not torch.equal(other, t) and value(o, other) == now:
            blind.append(f"column {j}")
    return blind if len(blind) < t.shape[1] else []


def _pulls(scene: Scene, o: Tensor, t: Tensor, right: Tensor | None) -> dict[str, Any]:
    """How hard the loss pulls a sample to its right answer (one-hot, or 0 and 1) where it is there already, at logits
    of 2, and where it is at another one, at logits of -2.
    """
    if right is None or len(o) < 2:
        return {}
    wrong = right.roll(1, class_axis(o, t)) if right.dim() > 1 and right.shape[class_axis(o, t)] > 1 else 1 - right
    sign = 2 * right - 1 if wrong.shape == right.shape and bool((wrong == 1 - right).all()) else right
    places = right.select(class_axis(o, t), 0).unsqueeze(class_axis(o, t)) if right.dim() > 1 else right
    half = (torch.arange(places.numel(), device=o.device) % 2 == 0).reshape(places.shape)
    ends = [_gradient(scene, o, t, 4 * x.to(o) - 2) for x in (right, wrong, torch.where(half, right, wrong))]
    one, two, mixed = ends
    if one is None or two is None or mixed is None:
        return {}
    if not torch.allclose(mixed, torch.where(half, one, two), 1e-3, 1e-9):
        return {}  # a loss of all samples together, as an overlap
    return {"pulls": [-float((g * sign).sum()) / max(float(sign.abs().sum()), 1.0) for g in (one, two)]}


def _constant_answer(value: Any, o: Tensor, t: Tensor, classes: Tensor | None, found: dict[str, Any]) -> dict[str, Any]:
    """The loss of the best answer that does not look at the inputs, of those that were tried."""
    tried = [] if found["linear"] else [torch.zeros_like(o)]  # of a loss linear in log probabilities 0 is no answer
    if classes is not None:
        axis = class_axis(o, t)
        others = [i for i in range(o.dim()) if i != axis]
        share = classes.mean(others, keepdim=True)
        if bool((share == share.sum()).any()):  # one class alone: its place is the answer, as of pairs and a queue
            return {}
        tried += [(share / share.sum().clamp_min(1e-9)).clamp_min(1e-4).log().expand_as(o).contiguous()]
    elif found["task"] == "binary":
        if bool((t == t.flatten()[0]).all()):  # pairs, of which each has the same answer by its order
            return {}
        share = t.float().mean(0, keepdim=True)
        tried += [x.to(o).expand_as(o).contiguous() for x in (torch.logit(share, 1e-4), share)]
    elif found["task"] == "regression" and bool(
        (t != t.flatten()[0]).any()
    ):  # a residual that is to vanish has no chance level
        tried += [t.float().reshape(o.shape).mean(0, keepdim=True).to(o).expand_as(o).contiguous()]
    else:
        return {}
    values = [v for c in tried if math.isfinite(v := value(c, t))]
    # No share of classes is foretold that well: such a loss (a margin of angles) is another function out there.
    values = [v for v in values if classes is None or v > 1e-3 * abs(value(o, t)) or bool((share > 0.99).any())]
    return {"constant": min(values)} if values else {}


def _sign(value: Any, o: Tensor, t: Tensor, g: Tensor, classes: Tensor | None, task: str, now: float) -> dict[str, Any]:
    """Whether the right answer costs more than what the net says now."""
    if classes is not None:
        axis = class_axis(o, t)
        known = classes.sum(axis) > 0
        right = (g * classes).sum(axis)[known]
        largest = g.abs().amax(axis)[known]
        strong = largest > 0
        wrong = (right > 0) & (right >= 0.99 * largest)
        share = float(wrong[strong].float().mean()) if bool(strong.any()) else 0.0
        return {
            "wrong_sign": share > 0.95 and min(value(o + far * classes, t) for far in (5, 30)) > now,
            "right_answer": value(o + 5 * classes, t),
        }
    if t.is_floating_point() and t.shape == o.shape:
        right_answer = value(t.to(o), t)
        if (
            value(o + 1e3 * (o - t), t) >= 0
        ):  # a loss that is meant to be small far from the targets: a distance of unlike ones
            return {}
        against = float((g * (t - o)).sum() / (g.norm() * (t - o).norm()).clamp_min(1e-30))
        return {"wrong_sign": against > 0.5 and right_answer > now, "right_answer": right_answer}
    return _against_rewards(value, o, t, g, now)


def _against_rewards(value: Any, o: Tensor, t: Tensor, g: Tensor, now: float) -> dict[str, Any]:
    """Of targets with a column of choices and one of rewards (or advantages): whether the loss pushes every choice that
    was rewarded down, and every other one up.
    """
    if t.dim() != 2 or o.dim() != 2 or not 2 <= t.shape[1] <= 8 or o.shape[1] < 2 or len(t) != len(o):
        return {}
    rows = g.abs().amax(1) > 0
    for j in range(t.shape[1]):
        a = t[:, j]
        if not bool(((a == a.round()) & (a >= 0) & (a < o.shape[1])).all()) or len(a.unique()) < 2:
            continue
        chosen = g.gather(1, a.long()[:, None])[:, 0]
        alone = chosen.abs() >= 0.99 * g.abs().amax(1)
        for k in range(t.shape[1]):
            reward = t[:, k]
            if k == j or not bool(((reward != 0) == rows).all()) or not bool(rows.any()):
                continue
            if bool((chosen[rows].sign() == reward[rows].sign()).all()) and float(alone[rows].float().mean()) > 0.9:
                other = value(o + 5 * torch.zeros_like(o).scatter_(1, a.long()[:, None], reward.sign()[:, None]), t)
                return {"wrong_sign": other > now, "right_answer": other}
    return {}
