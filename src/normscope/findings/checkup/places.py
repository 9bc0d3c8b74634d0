"""At which places of the data a gradient arrives: time steps of a recurrent layer, entries along an axis."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normscope.call.arguments import own_call, tensors
from normscope.findings.checkup.scene import Rerun, Scene


def of_places(scene: Scene) -> dict[str, Any]:
    """Where no gradient arrives; see NS205."""
    return {"lost": lost_places(scene), "time": through_time(scene)}


def lost_places(scene: Scene) -> dict[str, Any]:
    """At which places along an axis of the data (of embedded ids: time) the loss has a gradient of exactly zero for
    every sample, though the data varies there, and whether the outputs depend on them all the same.
    """
    at = scene.at
    if scene.loss is None or at.step is not None or at.rows.axis != 0 or at.rows.rows is not None:
        return {}
    first = next((c for c in scene.weighted if c.data is not None or isinstance(c.module, nn.Embedding)), None)
    if first is None:
        return {}
    seen: list[Tensor] = []

    def look(module: nn.Module, args: Any, output: Any) -> Any:
        if isinstance(module, nn.Embedding):
            seen.append(output.detach().requires_grad_())
            return seen[-1]
        return None

    again = Rerun.of(at)
    if again is None:
        return {}

    def work() -> dict[str, Any]:
        args, kwargs, leaves = own_call(again.args, again.kwargs, grad=True)
        handle = first.module.register_forward_hook(look)
        try:
            ends = [t for t in tensors(at.whole(args, kwargs)) if t.requires_grad]
        finally:
            handle.remove()
        if not ends:
            return {}
        generator = torch.Generator().manual_seed(10)
        value = torch.stack([(t * torch.randn(t.shape, generator=generator).to(t)).sum() for t in ends]).sum()
        wanted = seen or (leaves if len(leaves) == 1 else [])
        if not wanted or len({x.shape for x in wanted}) > 1:
            return {}
        grads = torch.autograd.grad(value, wanted, allow_unused=True)
        found = [torch.zeros_like(x) if g is None else g for x, g in zip(wanted, grads, strict=True)]
        one = len(wanted) == 1  # else an embedding that is looked up step by step
        leaf, g = (wanted[0], found[0]) if one else (torch.stack(wanted, 1), torch.stack(found, 1))
        if leaf.dim() < 2 or len(leaf) != again.samples.n or not bool((g != 0).any()):
            return {}
        axes = [1] if seen else [i for i in range(1, leaf.dim()) if leaf.shape[i] >= (4 if leaf.dim() < 3 else 2)]
        for i in axes:
            others = [k for k in range(leaf.dim()) if k != i]
            silent = (g == 0).movedim(i, 0).flatten(1).all(1)
            varies = (leaf.detach() - leaf.detach()[:1]).abs().amax(others) > 0
            lost = silent & varies
            if 0.2 <= float(lost.float().mean()) < 1:
                lost_at = lost.nonzero().flatten().tolist()
                return {"axis": i, "of": leaf.shape[i], "lost": lost_at, "module": first.name if seen else ""}
        return {}

    found: dict[str, Any] = again.run(work, at.mode) or {}
    if found:
        places = torch.tensor(found["lost"], device=at.device)

        def other(x: Tensor) -> Tensor:
            return x.index_copy(found["axis"], places, x.index_select(found["axis"], places).roll(1, 0))

        base = again.run(again.output, "eval")
        moved = again.run(lambda: again.output(*again.alter(other)), "eval")
        calls = [c for c in scene.calls if c.weighted and not isinstance(c.module, nn.Embedding)]
        times = {c.name: sum(x.name == c.name for x in calls) for c in calls}
        often = [n for n, k in times.items() if k >= len(found["lost"])]
        cells = [n for n in often if isinstance(at.root.get_submodule(n), nn.RNNCellBase)]
        found["step"] = (cells or often[-1:] or [""])[0]
        found["depends"] = base is not None and moved is not None and not torch.equal(base, moved)
        alone = found["lost"] == list(range(1, found["of"])) and (found["module"] or _attends(at.root))
        few = found["axis"] == 1 and found["of"] < 4
        found["unread"] = "" if found["depends"] else "first" if alone else "view" if few else ""
    return found


def _attends(root: nn.Module) -> bool:
    return any(isinstance(m, nn.MultiheadAttention) for m in root.modules())


def through_time(scene: Scene) -> dict[str, Any]:
    """The gradient at the first and at the last step of what the first recurrent layer gets."""
    at = scene.at
    names = {m: n for n, m in at.root.named_modules() if isinstance(m, nn.RNNBase)}
    if not names or scene.loss is None:
        return {}
    leaves: list[tuple[nn.RNNBase, Tensor]] = []

    def enter(module: nn.RNNBase, args: Any, kwargs: Any) -> Any:
        if leaves or not args or not isinstance(args[0], Tensor) or args[0].dim() != 3:
            return None
        leaf = args[0].detach().clone().requires_grad_()
        leaves.append((module, leaf))
        return (leaf, *args[1:]), kwargs

    def work() -> dict[str, Any]:
        handles = [m.register_forward_pre_hook(enter, with_kwargs=True) for m in names]
        try:
            args, kwargs, _ = at.arguments()
            value = at.value(at.whole(args, kwargs), at.own_targets())
        finally:
            for handle in handles:
                handle.remove()
        if not leaves or not value.requires_grad:
            return {}
        module, leaf = leaves[0]
        (g,) = torch.autograd.grad(value, leaf, allow_unused=True)
        if g is None:
            return {}
        steps = g.transpose(0, 1) if module.batch_first else g
        size = steps.flatten(1).norm(dim=1)
        return {"module": names[module], "steps": len(size), "first": float(size[0]), "last": float(size[-1])}

    return at.run(work)
