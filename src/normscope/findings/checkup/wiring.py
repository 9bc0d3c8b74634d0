"""Who moves: parameters, what the optimizer holds, the gradient, and what the forward pass did with them."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace as changed
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from normscope.call.arguments import mapped
from normscope.call.reach import Reach
from normscope.core.tensors import moves
from normscope.findings.checkup.norms import mixed_norms, random_gains, slow_norms
from normscope.findings.checkup.scene import Rerun, Scene
from normscope.training.held import held_by

#: What modules are called that another one is to follow or to imitate, and that get no gradient.
TEACHERS = {
    "teacher", "teacher_model", "teacher_net", "ema", "ema_model", "target_net", "target_network", "target_encoder",
    "momentum_encoder", "ref_model", "reference_model",
}  # fmt: skip


def _plain(root: nn.Module) -> dict[str, Tensor]:
    """Floating tensors that modules hold as attributes, neither parameters nor buffers, and that want no gradient."""
    return {
        f"{name}.{key}" if name else key: value
        for name, module in root.named_modules() for key, value in vars(module).items()
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel() and not value.requires_grad
    }  # fmt: skip


def _last_of_their_kind(names: list[str], every: Iterable[str]) -> bool:
    """Whether these are a part of the last of several blocks alike, of which the others are not among them."""
    blocks = {n: re.sub(r"[^0-9]*$", "", n) for n in names}
    whole = any(all(n in blocks for n in every if n.startswith(f"{b}.")) for b in blocks.values() if b)
    kinds: dict[str, list[tuple[list[int], bool]]] = {}
    for n in every:
        found = kinds.setdefault(re.sub(r"\d+", "#", n), [])
        found.append(([int(k) for k in re.findall(r"\d+", n)], n in names))
    mine = [sorted(k) for k in kinds.values() if any(lost for _, lost in k)]
    return not whole and all(len(k) > 2 and k[-1][1] and not any(lost for _, lost in k[:-1]) for k in mine)


def _fed(scene: Scene) -> dict[str, str]:
    """By module name, the last module with weights that ran before it."""
    before, found = "", dict[str, str]()
    for c in scene.calls:
        found.setdefault(c.name, before)
        before = c.name if c.weighted else before
    return found


def of_wiring(scene: Scene, elsewhere: Collection[int] = ()) -> dict[str, Any]:
    """Names and numbers about who moves; see the rules NS6xx. elsewhere: the ``id`` of each parameter that another
    optimizer trains, as of the other side of a game.
    """
    root, at = scene.at.root, scene.at
    named = dict(root.named_parameters())
    trains = [n for n, p in named.items() if p.requires_grad]
    others = [] if at.train_step is None else held_by(at.train_step)
    mine = [o for o in (at.optimizer, *others) if isinstance(o, torch.optim.Optimizer)]
    held = {id(p) for o in mine for g in o.param_groups for p in g["params"]} if at.optimizer is not None else None
    found: dict[str, Any] = {"parameters": len(named), "trainable": len(trains)}
    numbers = [sum(p.numel() for n, p in named.items() if (n in trains) is kind) for kind in (True, False)]
    if trains and numbers[0] <= 4 and numbers[1] >= 100:
        found["all_but"] = {"numbers": numbers, "names": trains, "modules": modules_of(set(named) - set(trains), root)}
    if named and not trains:
        found["frozen_modules"] = modules_of(named, root)
    lost = [n for n in trains if scene.grads and scene.grads.get(n) is None]
    moving = [n for n, g in scene.grads.items() if moves(g)]
    found["moving"] = len(moving)
    found["zero"] = [n for n, g in scene.grads.items() if g is not None and not bool((g != 0).any())]
    if scene.grads and found["zero"] and len(found["zero"]) >= 0.3 * len(scene.grads):
        found["asleep"] = asleep(scene)
    ran = {c.name for c in scene.calls}
    found["cut"] = bool(scene.grads) and all(g is None for g in scene.grads.values())
    found["cut_in_loss"] = found["cut"] and bool(scene.reached)
    share = sum(named[n].numel() for n in trains) or 1
    returned = [n for n in lost if n in scene.reached]
    found["returned"] = {
        "modules": modules_of(returned, root), "tensors": len(returned),
        "share": sum(named[n].numel() for n in returned) / share,
    }  # fmt: skip
    deliberate = [n for n in lost if held is not None and id(named[n]) not in held]
    lost = [n for n in lost if n not in deliberate and n not in scene.reached]
    used = [n for n in lost if scene.layer_of(n) in ran]
    found["lost"] = {
        "modules": modules_of(used, root), "tensors": len(used), "share": sum(named[n].numel() for n in used) / share,
        "last": bool(used) and _last_of_their_kind(used, named),
    }  # fmt: skip
    idle = [n for n in lost if n not in used]
    found["idle"] = {"modules": modules_of(idle, root), "tensors": len(idle)}
    found["unregistered"] = sorted(
        {name for name, original in scene.unregistered if held is None or original not in held}
    )
    if held is not None:
        assert at.optimizer is not None
        found["optimizer"] = _optimizer(scene, named, held, moving, elsewhere)
    found["broken_buffers"] = [
        n for n, b in root.named_buffers()
        if (b.is_floating_point() and bool(b.isnan().any())) or (n.endswith("running_var")
            and not bool(b.isfinite().all()))
    ]  # fmt: skip
    found["young_norms"] = [
        n for n, m in root.named_modules()
        if isinstance(m, nn.modules.batchnorm._NormBase) and m.num_batches_tracked is not None
        and m.momentum is not None and int(m.num_batches_tracked) * m.momentum < 2.5
    ]  # fmt: skip
    found["zero_layers"] = [
        c.name for c in scene.weighted
        if not any(bool((p != 0).any()) for p in c.module.parameters(recurse=False) if p.dim() > 1)
        and any(p.dim() > 1 for p in c.module.parameters(recurse=False))
    ]  # fmt: skip
    found["remade"] = scene.remade
    found["zero_rows"] = scene.zero_rows if 0.1 < scene.zero_rows.get("share", 0.0) < 1 else {}
    found["first_norm"] = next((c.name for c in scene.calls if "norm" in type(c.module).__name__.lower()), "")
    found["mixed_norms"] = mixed_norms(scene)
    found["random_gains"] = random_gains(scene)
    found["slow_norms"] = slow_norms(root)
    found["equal_units"] = _equal_units(scene)
    taught = [n for n in moving if TEACHERS & set(n.split("."))]
    found["teachers"] = modules_of(taught, root) if 0 < len(taught) < len(moving) else []
    found["in_a_row"] = scene.in_a_row
    held_plain = _plain(root)
    found["plain_zero"] = [n for n, t in held_plain.items() if not bool((t != 0).any())]
    found["zero_frozen"] = [
        c.name for c in scene.weighted
        if (own := [p for n, p in named.items() if scene.layer_of(n) == c.name and p.dim() > 1])
        and not any(p.requires_grad or bool((p != p.flatten()[0]).any()) for p in own)
    ]  # fmt: skip
    found["random_frozen"] = _random_frozen(scene, named, held) or _random_head(scene, named)
    found["copy"] = _copy(scene)
    found["fed"] = _fed(scene)
    found["modes"] = sum(
        isinstance(m, nn.modules.batchnorm._NormBase | nn.modules.dropout._DropoutNd) for m in root.modules()
    )
    found["eval_norms"], found["eval_drops"] = _left_in_eval(root)
    return found


def modules_of(names: Iterable[str], root: nn.Module) -> list[str]:
    """The largest modules all of whose trainable parameters are among ``names``; single parameters for the rest."""
    left = set(names)
    out: list[str] = []
    for path, module in root.named_modules():
        every = dict(module.named_parameters(prefix=path))
        mine = {n for n, p in every.items() if p.requires_grad} or set(every)
        if mine and path and mine <= left:
            out.append(path)
            left -= mine
    return out + sorted(left)


def _optimizer(
    scene: Scene, named: Mapping[str, Tensor], held: set[int], moving: list[str], elsewhere: Collection[int]
) -> dict[str, Any]:
    root = scene.at.root
    missing = [n for n in moving if id(named[n]) not in held and id(named[n]) not in elsewhere]
    mine = {id(p) for p in named.values()} | set(Reach.of([root]).tensors)
    inside = [n for n, p in named.items() if id(p) in held]
    fresh = [n for n in missing if is_default(owner_of(root, n), named[n], n.rpartition(".")[2])]
    weights = [n for n in missing if named[n].dim() > 1]
    return {
        "missing": modules_of(missing, root), "missing_tensors": len(missing),
        "fresh": bool(weights) and sum(n in fresh for n in weights) >= 0.5 * len(weights),
        "foreign": len([k for k in held if k not in mine]),
        "held": len(inside), "held_modules": modules_of(inside, root),
        "held_frozen": bool(inside) and not any(named[n].requires_grad for n in inside),
        "held_moving": len([n for n in moving if id(named[n]) in held]),
    }  # fmt: skip


def owner_of(root: nn.Module, parameter: str) -> nn.Module:
    """The module that holds a parameter."""
    return root.get_submodule(parameter.rpartition(".")[0])


def is_default(module: nn.Module, p: Tensor, name: str) -> bool:
    """Whether a weight's distribution is exactly that of a fresh torch layer (or BERT's N(0, .02²)): nothing was
    loaded.

    Uniform in ±1/sqrt(fan_in) (Linear, convolutions, recurrent layers), ± Xavier's bound (attention), N(0, 1)
    (embeddings): no entry outside the bound, and a Kolmogorov-Smirnov distance below 2.2 / sqrt(size): P = 1e-4 for a
    fresh one. Training pushes entries over the bound at once.
    """
    w = p.detach().flatten().float()
    if p.dim() < 2 or len(w) < 32:
        return False
    w = w[:: max(1, len(w) // 20_000)].sort().values
    k = len(w)
    grid = (torch.arange(k, device=w.device) + 0.5) / k

    def near(cdf: Tensor) -> bool:
        return float((cdf - grid).abs().max()) < 2.2 / math.sqrt(k)

    fan_in = p[0].numel()
    bounds = [1 / math.sqrt(fan_in), math.sqrt(6 / (fan_in + len(p)))]
    if isinstance(module, nn.RNNBase):
        bounds.append(1 / math.sqrt(module.hidden_size))
    top = float(p.detach().abs().max())
    if any(b * (1 - 20 / p.numel()) - 1e-9 < top <= b * (1 + 1e-6) and near((w / b + 1) / 2) for b in bounds):
        return True
    normal = torch.distributions.Normal(0.0, 1.0)
    stds = [1.0] if isinstance(module, nn.Embedding | nn.EmbeddingBag) else []
    return any(near(normal.cdf(w / s)) for s in [*stds, 0.02])


def _random_frozen(scene: Scene, named: Mapping[str, Tensor], held: set[int] | None) -> dict[str, Any]:
    """The first part of the net, frozen although its weights are those of fresh layers; the rest trains."""
    root = scene.at.root
    frozen = {n for n, p in named.items() if not p.requires_grad}
    if not frozen or len(frozen) == len(named):
        return {}
    fixed = {c.name for c in scene.weighted if not c.trained_in}
    for path, module in root.named_modules():
        inner = [n for n, _ in module.named_parameters(prefix=path)] if path else []
        weights = [n for n in inner if named[n].dim() > 1]
        table = isinstance(module, nn.Embedding | nn.EmbeddingBag) and inner and _gaussian(named[inner[0]])
        if (not table and (len(weights) < 2 or not any(True for _ in module.children()))) or not set(inner) <= frozen:
            continue
        if not all(scene.layer_of(n) in fixed for n in weights if scene.layer_of(n) in {c.name for c in scene.calls}):
            continue
        if all(any(_alike(named[n], p) for k, p in named.items() if k not in frozen) for n in weights):
            continue  # a teacher that starts as a copy of what trains, or follows it
        fresh = sum(named[n].numel() for n in weights if table or is_default(owner_of(root, n), named[n], n))
        every = sum(named[n].numel() for n in weights)
        if fresh >= 0.9 * every and every >= 0.2 * sum(p.numel() for p in named.values()):
            return {"module": path, "share": fresh / every, "tensors": len(weights)}
    return {}


def _random_head(scene: Scene, named: Mapping[str, Tensor]) -> dict[str, Any]:
    """The last layer with weights, frozen at a fresh start, behind layers that train; without what an adapter trains
    beside.
    """
    last = scene.weighted[-1] if scene.weighted else None
    if last is None or not last.trained_in:
        return {}
    mine = [n for n in named if scene.layer_of(n) == last.name and named[n].dim() > 1]
    parent = last.name.rpartition(".")[0]
    around = scene.at.root.get_submodule(parent)
    adapted = parent and not isinstance(around, nn.Sequential) and any(p.requires_grad for p in around.parameters())
    if not mine or adapted or any(named[n].requires_grad or not is_default(last.module, named[n], n) for n in mine):
        return {}
    return {"module": last.name, "share": 1.0, "tensors": len(mine)}


def _gaussian(p: Tensor) -> bool:
    """Whether a table looks like independent Gaussian numbers of one size: by their distribution, and by the largest
    singular value, that of noise (Marchenko and Pastur) to 10 %; embeddings that were learnt have directions.
    """
    w = p.detach().float()
    if w.dim() != 2 or w.numel() < 256 or not bool(w.std() > 0):
        return False
    z = (w.flatten() / w.square().mean().sqrt())[:: max(1, w.numel() // 20_000)].sort().values
    cdf = torch.distributions.Normal(0.0, 1.0).cdf(z)
    grid = (torch.arange(len(z), device=z.device) + 0.5) / len(z)
    edge = float(w.square().mean().sqrt()) * (math.sqrt(len(w)) + math.sqrt(w.shape[1]))
    top = float(torch.linalg.matrix_norm(w[:5000] if len(w) > 5000 else w, 2)) * math.sqrt(max(1.0, len(w) / 5000))
    return float((cdf - grid).abs().max()) < 2.2 / math.sqrt(len(z)) and top < 1.1 * edge


def _alike(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors point nearly the same way."""
    return a.shape == b.shape and float(torch.cosine_similarity(a.detach().flatten(), b.detach().flatten(), 0)) > 0.9


def _same(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.equal(a, b)


def _copy(scene: Scene) -> dict[str, Any]:
    """A tensor that no optimizer can hold, equal to a parameter that trains, and used by the forward pass."""
    root = scene.at.root
    registered = {id(p) for p in root.parameters()}
    plain = {id(b): (n, b) for n, b in root.named_buffers()}
    if len(plain) > 2000:
        return {}
    for n, p in root.named_parameters():
        if not p.requires_grad or p.dim() < 2 or p.numel() < 16 or float(p.detach().std()) == 0:
            continue
        for key, (name, b) in plain.items():
            same = b.shape == p.shape or (b.dim() == 2 and b.t().shape == p.shape)
            if key in registered or not same or b.dtype != p.dtype or b.data_ptr() == p.data_ptr():
                continue
            turned = b.dim() == 2 and b.shape[::-1] == p.shape and torch.equal(b.t(), p.detach())
            if (turned or torch.equal(b, p.detach())) and _used(scene, b):
                return {"copy": name, "of": n}
    return {}


def _used(scene: Scene, tensor: Tensor) -> bool:
    again = Rerun.of(scene.at)
    if again is None:
        return False
    base = again.run(again.output, "eval")
    other = changed(scene.at, mode="eval").traceless().run(again.output, {id(tensor): torch.randn_like(tensor)})
    return base is not None and not torch.equal(base, other)


def _equal_units(scene: Scene) -> list[str]:
    """Layers with several units, all of them equal and not zero, whose readers treat them alike."""
    layers = [
        (c.name, p) for c in scene.weighted for n, p in c.module.named_parameters(recurse=False)
        if n == "weight" and p.dim() > 1 and c.size_out > 1 and "norm" not in type(c.module).__name__.lower()
    ]  # fmt: skip
    out = []
    for (name, p), (_, after) in pairwise(layers):
        w, r = p.detach().flatten(1), after.detach()
        same = len(w) > 1 and bool((w != 0).any()) and bool((w == w[:1]).all())
        if same and r.dim() > 1 and bool((r == r[:, :1]).all()):
            out.append(name)
    return list(dict.fromkeys(out))


def _left_in_eval(root: nn.Module) -> tuple[int, int]:
    """Batch norms and dropouts in eval mode, where the whole model is."""
    if root.training:
        return 0, 0
    norms = [m for m in root.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and not m.training]
    drops = [m for m in root.modules() if isinstance(m, nn.modules.dropout._DropoutNd) and not m.training and m.p > 0]
    frozen = [m for m in norms if m.affine and not any(p.requires_grad for p in m.parameters())]
    return len(norms) - len(frozen), len(drops)


def asleep(scene: Scene, steps: int = 3) -> dict[str, Any]:
    """Which weights have a gradient of exactly zero still after a few steps of plain gradient descent.

    A head or a branch that starts at zero, as it may, wakes what lies behind it in the first step.
    """
    at, again = scene.at, Rerun.of(scene.at)
    whole = not isinstance(scene.targets, Tensor) or not scene.targets.dim() or len(scene.targets) != at.rows.n
    few = None if whole else again  # a few samples do: a gradient of exactly zero is so for each

    def work() -> list[str]:
        mine = {n: scene.copies[k] for k, n in scene.names.items() if scene.copies[k].requires_grad}
        zero: list[str] = []
        for _ in range(steps):
            args, kwargs, _ = at.arguments()
            targets = at.own_targets()
            if few is not None:
                args, kwargs = mapped((few.args, few.kwargs), lambda t: t.clone())
                targets = targets[: few.samples.n]
            value = at.value(at.whole(args, kwargs), targets)
            if not value.requires_grad:
                return list(mine)
            grads = torch.autograd.grad(value, list(mine.values()), allow_unused=True)
            zero = []
            for (n, p), given in zip(mine.items(), grads, strict=True):
                g = None if given is None else given.to_dense()
                if g is None or not moves(g):
                    zero.append(n)
                elif bool(torch.isfinite(g).all()):
                    size = p.detach().norm().clamp_min(math.sqrt(p.numel()) * 0.1)
                    p.data.sub_(g * (0.1 * size / g.norm()))
            if not zero:
                break
        return zero

    start = {k: c.detach().clone() for k, c in scene.copies.items()}
    stuck = at.run(work, scene.copies)
    for k, c in scene.copies.items():
        c.data.copy_(start[k])
    named = dict(at.root.named_parameters())
    weights = [n for n in stuck if named[n].dim() > 1]
    total = [n for n in scene.grads if named[n].dim() > 1]
    return {
        "weights": len(weights), "of": len(total), "modules": modules_of(stuck, at.root),
        "all_zero": bool(weights) and all(not bool((named[n] != 0).any()) for n in weights),
        "first": scene.layer_of(weights[-1]) if weights else "",
    }  # fmt: skip
