"""A flow's log-determinant, held against that of its Jacobian, and what the loss does with it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from normscope.call.arguments import mapped, tensors
from normscope.call.losses import COTANGENT, OWN
from normscope.findings.checkup.scene import FEW, Scene

#: Features of a sample up to which its Jacobian is formed (chosen by us).
WIDE = 64
#: How near numbers must be to be the log-determinant, relative to their size.
NEAR = 1e-3


def of_volume(scene: Scene) -> dict[str, Any]:
    r"""Of a model that gives z (n, d) of x (n, d) and a number for each sample: ``sign``, 1 where that is
    $\log|\det \partial z / \partial x|$ and -1 where it is minus that (elsewhere: nothing); ``slope``, the sign of the
    loss's derivative by it, where it has one sign, of a loss that draws z to 0.
    """
    at, loss = scene.at, scene.loss
    given = [t for t in tensors((at.args, at.kwargs)) if t.is_floating_point()]
    if loss is None or loss.kind in (COTANGENT, OWN) or at.step is not None or len(given) != 1:
        return {}
    x, outputs = given[0], [t for t in tensors(scene.whole) if t.is_floating_point()]
    place = next((i for i, o in enumerate(outputs) if o.shape == x.shape and o.dim() == 2), None)
    told = next((o for o in outputs if o.shape == x.shape[:1]), None)
    if place is None or told is None or len(outputs) > 3 or not 2 <= x.shape[1] <= WIDE:
        return {}
    leaves = {id(o): o.detach().clone().requires_grad_() for o in (outputs[place], told)}
    with torch.enable_grad():
        value = loss.value(mapped(scene.whole, lambda t: leaves.get(id(t), t)), scene.targets, at.seed)
        slopes = torch.autograd.grad(value, list(leaves.values()), allow_unused=True) if value.requires_grad else ()
    if len(slopes) < 2 or slopes[0] is None or slopes[1] is None:
        return {}
    ways = slopes[1].sign().unique().tolist()
    if len(ways) > 1 or not ways[0] or float((slopes[0] * outputs[place]).sum()) <= 0:
        return {}

    def work() -> Tensor:
        leaf = x.detach().clone().requires_grad_()
        args, kwargs, _ = at.arguments()
        args, kwargs = mapped((args, kwargs), lambda t: leaf if t.is_floating_point() else t)
        z = [t for t in tensors(at.whole(args, kwargs)) if t.is_floating_point()][place]
        rows = [torch.autograd.grad(z[:, k].sum(), leaf, retain_graph=True)[0][:FEW] for k in range(z.shape[1])]
        return torch.linalg.slogdet(torch.stack(rows, 1).double())[1]

    true, said = at.run(work, scene.copies), told[:FEW].double()
    size = float(true.abs().max())
    for sign in (1, -1):
        if size > NEAR and float((said - sign * true).abs().max()) < NEAR * max(size, 1.0) < size:
            return {"sign": sign, "slope": int(ways[0])}
    return {}
