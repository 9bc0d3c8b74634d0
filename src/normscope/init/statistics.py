"""Running statistics brought up to date: batch norms in eval mode as they are in training mode."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from normscope.call.taps import normalizers
from normscope.core.errors import UsageError
from normscope.init._cures import in_place, register
from normscope.init._layers import Treatment, model_of, step_of


@register(
    "recalibrate", "izmailov2018, jordan2022",
    doc="The running statistics of each batch norm become those of this batch: eval mode gives what training does.",
)  # fmt: skip
def recalibrate(model: nn.Module, inputs: Any) -> Treatment:
    r"""Set running mean and variance of each batch norm to the moments of what it takes in one pass in training mode.

    In place; weights stay. Of a norm that is called several times they are the means over its calls, and the variance
    is that of a sample (n - 1), as a step with ``momentum=None`` leaves them (`torch.optim.swa_utils.update_bn`, which
    goes over a whole loader). Use it where the weights were averaged, merged, or moved on in large steps, or where one
    norm's statistics lag behind (NS501).

    Misleads: one batch is a noisy sample of the data; a net whose samples need each other stays another net in eval
    mode however its statistics are set.
    Source: Izmailov et al. 2018, arXiv 1803.05407, section 3.2; Jordan et al. 2022, arXiv 2211.08403 (for merged nets).
    """
    model = model_of(model)
    instance = nn.modules.instancenorm._InstanceNorm  # its statistics are means over samples of their own
    names: dict[Any, str] = {m: n for n, m in normalizers(model) if not isinstance(m, instance)}
    seen: dict[Any, list[tuple[Tensor, Tensor]]] = {m: [] for m in names}
    if not seen:
        raise UsageError(
            "There must be a batch norm with running statistics; this model has none. Choose another cure: normscope "
            "list cures."
        )

    def look(norm: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0].double()
        axes = [d for d in range(x.dim()) if d != 1]
        if x.numel() == x.shape[1]:
            raise UsageError(f"A variance needs two values a channel; {names[norm]!r} gets one. Pass a larger batch.")
        recentred = getattr(norm, "recenter", True)  # else its variance is a mean square
        seen[norm].append((x.mean(axes), x.var(axes)) if recentred else (0 * x.mean(axes), x.square().mean(axes)))
        if not all(bool(torch.isfinite(m).all()) for m in seen[norm][-1]):
            raise UsageError(
                f"Activations must be finite; what {names[norm]!r} gets holds NaN or infinity. Clean the data, or "
                "lower the gain of the layers before it."
            )

    step_of(model, inputs).watched(lambda: [m.register_forward_pre_hook(look) for m in seen])
    left = {names[m]: "it does not run" for m, moments in seen.items() if not moments}
    done = {m: moments for m, moments in seen.items() if moments}
    with torch.no_grad():
        for norm, moments in done.items():
            mean, variance = (torch.stack(part).mean(0) for part in zip(*moments, strict=True))
            norm.running_mean.copy_(mean)
            norm.running_var.copy_(variance)
    return Treatment(model, tuple(names[m] for m in done), left)


recalibrate_ = in_place(recalibrate, "recalibrate_")
