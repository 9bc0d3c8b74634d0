"""Who sees whom: one sample, the pixels, or the line between two samples changed, and look which outputs answer."""

from __future__ import annotations

import copy
import inspect
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from normscope.call.arguments import first_tensor, mapped, tensors
from normscope.call.samples import SEQUENCE, Samples
from normscope.findings.checkup.scene import Call, Rerun, Scene
from normscope.findings.checkup.tokens import padding

#: Correlation of targets with the samples' size that is worth a look (chosen by us).
SIZE = 0.5


def of_mixing(scene: Scene) -> dict[str, Any]:
    """Numbers about who sees whom; see NS106 to NS112."""
    found: dict[str, Any] = _constant(scene) | {"along_batch": _along_batch(scene)}
    found["size_lost"] = _size_lost(scene)
    again = Rerun.of(scene.at)
    if again is None:
        return found
    inputs = list(tensors((again.args, again.kwargs)))

    def work() -> None:
        base = again.output()
        if not bool(torch.isfinite(base).all()) or not torch.equal(base, again.output()):
            return  # what it holds (a queue, a memory) changes from one pass to the next
        whole, n = scene.output, scene.at.rows.n
        rows = len(whole) if whole is not None and whole.dim() > 1 and again.samples.axis == 0 else None
        if rows == len(base) == n != again.samples.n:
            found["rows"] = [n, again.samples.n]
            return
        found.update(_mixes(again, base, inputs))
        alone = len(inputs) == 1 and inputs[0].is_floating_point()
        found.update(_affine(again, scene) if alone else {})
        with _woken(again.at.root):  # branches that start at zero will open
            open_ = again.output()
            found.update(_place(again, open_))
            found.update(_order(again, open_, inputs))
            found.update(_unread(again))
            if alone:
                found.update(_pixels(again, open_, inputs[0]))
                found.update(_patches(again, open_, inputs[0]) if _cuts(scene) else {})
                found["first"] = scene.calls[0].name if scene.calls else ""
                kernels = [c.module.kernel_size for c in scene.calls if isinstance(c.module, nn.modules.conv._ConvNd)]
                found["pointwise"] = bool(kernels) and all(k == 1 for size in kernels for k in size)
        if scene.output is not None and scene.output.is_floating_point():
            zero = float((scene.output == 0).float().mean())
            found["zeroed"] = {"train": zero, "eval": float((base == 0).float().mean()), "module": scene.calls[-1].name}
            found["zeroed"]["redrawn"] = 0.0

    again.run(work, "eval")
    if found.get("zeroed", {}).get("train"):
        one, other = (again.run(partial(again.output, seed=scene.at.seed + s), "train") for s in (0, 1))
        if one is not None and other is not None:
            found["zeroed"]["redrawn"] = float(((one == 0) != (other == 0)).float().mean())
    found["padding"] = padding(scene)
    found["padded_ends"] = _padded_ends(scene)
    return found


def _along_batch(scene: Scene) -> dict[str, Any]:
    """The first attention or recurrent layer that takes the samples for its sequence: built for (length, n, d), given
    (n, ...).
    """
    n = scene.at.rows.n
    for c in scene.calls:
        first = getattr(c.module, "batch_first", None)
        inner = getattr(c.module, "self_attn", None)
        first = getattr(inner, "batch_first", first) if first is None else first
        if isinstance(c.module, SEQUENCE) and first is False and len(c.shape) == 3 and c.shape[0] == n:
            told = {"module": c.name, "kind": type(c.module).__name__, "shape": list(c.shape)}
            if c.shape[1] != n:
                return told
            if any(t.dim() < 2 for t in tensors((scene.at.args, scene.at.kwargs))):
                continue
            halves = (Rerun.of(replace(scene.at, samples=axis), n // 2) for axis in (0, 1))
            if all(half is not None and half.run(half.output, None) is None for half in halves):
                return told | {"square": True}
    return {}


def _differences(outputs: Tensor) -> float:
    """The largest difference of an output from its mean over samples; 0 where it is rounding."""
    most = float((outputs - outputs.mean(0)).abs().max())
    return most if most > 1e-5 * float(outputs.abs().max()) else 0.0


def _place(again: Rerun, base: Tensor) -> dict[str, Any]:
    """How far a sample's output moves when the samples change places, relative to the spread of the outputs."""
    n = again.samples.n
    if len(base) != n or n < 4 or not base.is_floating_point() or n in base.shape[1:]:
        return {}
    rolled = again.output(*again.alter(lambda x: x.roll(1, 0)))
    # Noise has its own place in the batch: what a second seed changes is not told from it.
    if rolled.shape != base.shape or not torch.equal(base, again.output(seed=again.at.seed + 1)):
        return {}
    spread = _differences(base)
    return {"place": float((rolled - base.roll(1, 0)).abs().max()) / spread} if spread else {}


def _unread(again: Rerun) -> dict[str, Any]:
    """Which of several inputs, or of a few columns of ids, other samples' values can stand in for without any
    change.
    """
    if again.at.train_step is not None and isinstance(again.at.inputs, Mapping):
        return {}  # the user's loop may read what its model does not
    given = (again.args, again.kwargs)
    answers = list(tensors(again.at.targets))  # that travel with the inputs, in a batch of one object
    every = [t for t in tensors(given) if not any(torch.equal(t, a[: len(t)]) for a in answers if a.dim())]
    names = _paths(again)
    base = list(tensors(again.whole()))

    def stands(old: Tensor, new: Tensor) -> bool:
        if torch.equal(old, new):
            return False
        args, kwargs = mapped(given, lambda x: new if x is old else x)
        return all(map(torch.equal, base, tensors(again.whole(args, kwargs))))

    for t in every if len(every) > 1 else []:
        if t.dim() and stands(t, t.roll(1, 0)):
            return {"unread": {"name": names.get(id(t), "an input"), "shape": list(t.shape)}}
    placed = {b.shape[:2] for b in base if b.dim() > 1}  # an answer at each place: what stands last has none to move
    for t in every:
        if t.dim() == 2 and 2 <= t.shape[1] <= 8 and not t.is_floating_point() and t.dtype != torch.bool:
            if t.shape in placed:
                continue
            for j in range(t.shape[1]):
                column = t.clone()
                column[:, j] = t[:, j].roll(1, 0)
                if stands(t, column):
                    return {"unread": {"name": f"column {j} of {names.get(id(t), 'the ids')}", "shape": list(t.shape)}}
    return {}


def _paths(again: Rerun) -> dict[int, str]:
    """What the arguments are called, by ``id``."""
    try:
        bound = inspect.signature(again.at.root.forward).bind_partial(*again.args, **again.kwargs).arguments
    except (TypeError, ValueError):
        return {}
    return {id(v): f"input {k!r}" for k, v in bound.items() if isinstance(v, Tensor)}


def _order(again: Rerun, base: Tensor, inputs: list[Tensor]) -> dict[str, Any]:
    """How far the outputs of token ids move when the tokens change places, beyond changing places themselves."""
    ids = [x for x in inputs if not x.is_floating_point() and x.dtype != torch.bool and x.dim() == 2]
    if len(ids) != 1 or len(inputs) != 1 or again.samples.axis != 0 or ids[0].shape[1] < 4:
        return {}
    length = ids[0].shape[1]
    order = torch.randperm(length, generator=torch.Generator().manual_seed(8)).to(ids[0].device)
    shuffled = again.output(*again.alter(lambda x: x[:, order]))
    spread = _differences(base)
    if shuffled.shape != base.shape or spread == 0:
        return {}
    along = base[:, order] if base.dim() > 2 and base.shape[1] == length else base
    return {"order": float((shuffled - along).abs().max()) / spread}


def _size_lost(scene: Scene) -> float:
    """How closely targets go with the size of each sample (the correlation's amount), where the outputs do not depend
    on it; 0 elsewhere.
    """
    x, t = first_tensor([*scene.at.args, *scene.at.kwargs.values()]), scene.targets
    norms = [c for c in scene.calls if "norm" in type(c.module).__name__.lower()]
    if x is None or not isinstance(t, Tensor) or not norms or len(x) < 32 or t.numel() != len(x) or x.dim() < 2:
        return 0.0
    size = x.double().flatten(1).square().mean(1).clamp_min(1e-30).log()
    t = t.flatten().double().to(size)
    r = float(torch.corrcoef(torch.stack([size, t]))[0, 1].abs().nan_to_num(0.0)) if bool(size.std() > 0.05) else 0.0
    again = Rerun.of(scene.at, 16) if r > SIZE else None
    if again is None:
        return 0.0

    def blind() -> bool:
        base, larger = again.output(), again.output(*again.alter(_second_half_larger))
        return float((base - larger).abs().max()) < 1e-3 * float(base.std())

    return r if again.run(blind, None) else 0.0


def _second_half_larger(x: Tensor) -> Tensor:
    if x.is_floating_point():
        x[len(x) // 2 :] *= 2
    return x


def _constant(scene: Scene) -> dict[str, Any]:
    """The first layer behind which nothing differs between samples, though what goes in does, and the outputs do
    not.
    """
    one = next((c for c in scene.calls if isinstance(c.module, nn.GroupNorm) and _one_each(c)), None)
    if one is not None:
        return {"constant": {"module": one.name, "kind": type(one.module).__name__, "size": 1}}
    ends = [c for c in scene.calls if not math.isnan(c.varies_out)]
    if not ends or ends[-1].varies_out > 1e-6 or scene.output is None:
        return {}
    for c in scene.calls:
        weights = [p for n, p in c.module.named_parameters(recurse=False) if n.startswith("weight")]
        zero = bool(weights) and not any(bool((p != 0).any()) for p in weights)
        if c.varies_in > 1e-3 and c.varies_out <= 1e-6 and not zero and c.size_out > 0:
            later = scene.calls[scene.calls.index(c) :]
            if all(not x.varies_out > 1e-6 for x in later) and _flattens(c.module, c.shape):
                return {"constant": {"module": c.name, "kind": type(c.module).__name__, "size": c.size_out}}
    return {}


def _one_each(c: Call) -> bool:
    """Whether a group norm has one number in each group: it leaves rounding errors."""
    return c.shape[1] == c.module.num_groups and math.prod(c.shape[2:]) == 1


def _flattens(module: nn.Module, shape: tuple[int, ...]) -> bool:
    """Whether a module gives the same for any input: a unit that is merely off does not."""
    twin = copy.deepcopy(module)
    like = next(twin.parameters(), torch.zeros(()))
    x = 3 * torch.randn(shape, generator=torch.Generator().manual_seed(6)).to(like.device, like.dtype)
    with torch.no_grad():
        y = first_tensor(twin(x))
    return y is not None and float(y.std(0).abs().max()) <= 1e-6 * max(1.0, float(y.abs().max()))


def _mixes(again: Rerun, base: Tensor, inputs: list[Tensor]) -> dict[str, Any]:
    """Change sample 0 alone; other samples' outputs, and the first module where they answer."""
    if again.samples.n in base.shape[1:]:  # similarities of all pairs
        return {}
    rows = again.samples.of(base)
    if rows is None or len(rows) < 4:
        return {}
    seen: list[tuple[str, nn.Module, Tensor | None, Tensor | None]] = []
    names = {m: n for n, m in again.at.root.named_modules()}

    def look(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        x, y = first_tensor([*args, *kwargs.values()]), first_tensor(output)
        seen.append((names[module], module, x, y))

    handles = [
        m.register_forward_hook(look, with_kwargs=True)
        for m in names
        if not any(True for _ in m.children()) or isinstance(m, SEQUENCE)
    ]
    try:
        first = again.output()
        before, seen[:] = list(seen), []
        second = again.output(*again.alter(_swap_first))
    finally:
        for handle in handles:
            handle.remove()
    a, b = again.samples.of(first), again.samples.of(second)
    if a is None or b is None or a.shape != b.shape:
        return {}
    scale = float((a - a.mean(0)).square().mean().sqrt()) + 1e-12
    moved = (a - b).reshape(len(a), -1).square().mean(1).sqrt() / scale
    own, others = float(moved[0]), float(moved[1:].max())
    found: dict[str, Any] = {"own": own, "others": others, "axes": max(x.dim() for x in inputs)}
    if others < 1e-3:
        return {"mixes": found}
    for (name, module, x, y), (_, _, x2, y2) in zip(before, seen, strict=False):
        if _others_moved(again.samples, module, x, x2) is False and _others_moved(again.samples, module, y, y2):
            sequence = isinstance(module, SEQUENCE)
            return {"mixes": found | {"module": name, "kind": type(module).__name__, "sequence": sequence}}
    return {"mixes": found}


def _swap_first(x: Tensor) -> Tensor:
    x[0] = x[1] if not torch.equal(x[0], x[1]) else x[2]
    return x


def _others_moved(samples: Samples, module: nn.Module, a: Tensor | None, b: Tensor | None) -> bool | None:
    if a is None or b is None or a.shape != b.shape:
        return None
    # A module that takes the first axis for time is just what is looked for: the axis is the batch's here.
    one, two = (a.transpose(0, 1), b.transpose(0, 1)) if samples.axis == 1 and a.dim() > 2 else (a, b)
    if len(one) != samples.n:
        return None
    change = (one.float() - two.float())[1:].abs().max()
    return bool(change > 1e-5 * one.float().abs().max().clamp_min(1e-12))


def _affine(again: Rerun, scene: Scene) -> dict[str, Any]:
    """Whether the function is affine on the line between samples, with two layers of weights or more."""
    layers = [c for c in scene.weighted if any(p.dim() > 1 for p in c.module.parameters(recurse=False))]
    norms = [c for c in scene.weighted if c not in layers]
    if len(layers) < 2 or norms or any(c.size_out < min(layers[0].size_in, layers[-1].size_out) for c in layers):
        return {}
    with _woken(again.at.root):
        here = again.output()
        there = again.output(*again.alter(lambda x: x.roll(1, 0)))
        between = again.output(*again.alter(lambda x: 0.3 * x + 0.7 * x.roll(1, 0)))
        beyond = again.output(*again.alter(lambda x: 20 * x - 19 * x.roll(1, 0)))
    scale = float((here - there).abs().max())
    if scale == 0:
        return {}
    gap = float((between - 0.3 * here - 0.7 * there).abs().max()) / scale
    gap = max(gap, float((beyond - 20 * here + 19 * there).abs().max()) / (40 * scale))
    return {"affine": {"gap": gap, "layers": [c.name for c in layers]}}


@contextmanager
def _woken(root: nn.Module) -> Iterator[None]:
    """Inside a run: weights and gates that are exactly zero get numbers, as branches that start closed will open."""
    closed = [p for p in root.parameters() if p.is_floating_point() and p.numel() and not bool(p.detach().any())]
    generator = torch.Generator().manual_seed(7)
    for p in closed:
        p.data.copy_(0.1 * torch.randn(p.shape, generator=generator))
    try:
        yield
    finally:
        for p in closed:
            p.data.zero_()


def _pixels(again: Rerun, base: Tensor, x: Tensor) -> dict[str, Any]:
    """Whether the outputs of images stay the same when the pixels are shuffled."""
    if x.dim() != 4 or x.shape[-1] * x.shape[-2] < 16:
        return {}
    order = torch.randperm(x.shape[-1] * x.shape[-2], generator=torch.Generator().manual_seed(5)).to(x.device)
    shuffled = again.output(*again.alter(lambda t: t.flatten(2)[:, :, order].reshape(t.shape)))
    scale = _differences(base)
    change = float((shuffled - base).abs().max()) / scale if scale else math.inf
    return {"shuffled_pixels": change}


def _cuts(scene: Scene) -> bool:
    """Whether what first reads an image may cut it into patches: no convolution whose windows overlap."""
    first = next((c.module for c in scene.weighted if c.data is not None), None)
    return not isinstance(first, nn.Conv2d) or first.kernel_size == first.stride


def _patches(again: Rerun, base: Tensor, x: Tensor) -> dict[str, Any]:
    """The size of square patches of an image whose places do not matter to the outputs, if there is one."""
    scale = _differences(base)
    if x.dim() != 4 or scale == 0:
        return {}
    h, w = x.shape[2:]
    for p in (2, 3, 4, 5, 6, 7, 8, 14, 16, 32):
        if h % p or w % p or (h // p) * (w // p) < 4:
            continue
        order = torch.randperm((h // p) * (w // p), generator=torch.Generator().manual_seed(9)).to(x.device)

        def shuffled(t: Tensor, p: int = p, order: Tensor = order) -> Tensor:
            cut = t.reshape(len(t), -1, h // p, p, w // p, p).permute(0, 2, 4, 1, 3, 5).flatten(1, 2)[:, order]
            back = cut.reshape(len(t), h // p, w // p, -1, p, p).permute(0, 3, 1, 4, 2, 5)
            return back.reshape(t.shape)

        moved = again.output(*again.alter(shuffled))
        if moved.shape == base.shape and float((moved - base).abs().max()) < 1e-4 * scale:
            return {"patch": p}
    return {}


def _padded_ends(scene: Scene) -> float:
    """The share of rows of tokens, or of series, that end in three equal tokens or zeros, though no row begins so."""
    for x in tensors((scene.at.args, scene.at.kwargs)):
        series = x.dim() == 3 and x.is_floating_point()
        if x.dtype == torch.bool or x.shape[:1] != (scene.at.rows.n,) or not (series or x.dim() == 2) or x.shape[1] < 6:
            continue
        pad = (x == 0).all(-1) if series else (x == x[:, -1].mode().values) if not x.is_floating_point() else None
        if pad is not None and not bool(pad[:, :3].all(1).any()):
            return float(pad[:, -3:].all(1).float().mean())
    return 0.0
