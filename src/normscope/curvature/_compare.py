"""lambda_max of the same inputs in other modes, and with a norm after the last layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from normscope.call.isolate import has_batch_statistics
from normscope.core.errors import UsageError
from normscope.curvature._batches import is_several
from normscope.curvature._budget import FEWEST_STEPS, Budget
from normscope.curvature._loss import LossLike, make_loss
from normscope.curvature._operators import fisher
from normscope.curvature._variants import VARIANTS, last_layer
from normscope.linalg.spectra import Spectrum, spectrum

#: Products for one other mode at most, as for lambda_max itself.
MOST_PRODUCTS = 200
Values = dict[str, float]


def other_modes(
    model: nn.Module, inputs: Any, loss: LossLike, here: Spectrum, tol: float, budget: Budget, seed: int,
    options: Mapping[str, Any],
) -> tuple[Values, Values, list[str]]:  # fmt: skip
    """lambda_max a mode, what it may be off by, and a warning where two differ by more than twice whatever the errors."""
    if not has_batch_statistics(model) or (callable(loss) and make_loss(loss).call is not None):
        return {}, {}, []
    several = is_several(inputs)
    more = {k: v for k, v in options.items() if k != "mode"}
    mode = options.get("mode") or ("train" if model.training else "eval")
    name = f"{mode}, mean over batches" if several else f"{mode}, whole batch"
    values, errors = {name: here.largest}, {name: float(here.errors[0])}

    def add(name: str, inputs: Any, mode: str) -> None:
        most = min(budget.products(), MOST_PRODUCTS)
        if most < FEWEST_STEPS and not budget.affords(f"lambda_max, {name}", max(here.products, FEWEST_STEPS)):
            return
        a = fisher(model, inputs, None, loss, mode=mode, seed=seed, **more)
        s = spectrum(a, tol=tol, seed=seed, max_products=max(int(most), FEWEST_STEPS))
        values[name], errors[name] = s.largest, float(s.errors[0])

    if several and mode == "train" and all(isinstance(x, Tensor) for x in inputs):
        add("train, whole batch", torch.cat(inputs), mode)
    other = "eval" if mode == "train" else "train"
    try:
        add(other, inputs, other)
    except (UsageError, ValueError):  # one sample a channel, or non-finite without normalization
        return values, errors, []
    low, high = min(v + errors[name] for name, v in values.items()), max(values.values())
    if high <= 2 * low:
        return values, errors, []
    said = ", ".join(f"{name} {value:.3g}" for name, value in values.items())
    ratio = high / max(min(values.values()), 1e-300)
    return (
        values,
        errors,
        [f"lambda_max differs by {ratio:.1f}x between modes ({said}): a rate chosen in one is wrong in another."],
    )


def variants(
    model: nn.Module, inputs: Any, loss: LossLike, tol: float, seed: int, options: Mapping[str, Any]
) -> tuple[Values, Values, float]:
    """lambda_max with each of ``VARIANTS`` after the last layer, what it may be off by, and the products spent."""
    values, errors, spent = {}, {}, 0.0
    for name in VARIANTS:
        if name != "none":
            s = spectrum(last_layer(model, inputs, name, loss, seed=seed, **options), tol=tol, seed=seed)
            values[name], errors[name] = s.largest, float(s.errors[0])
            spent += s.products
    return values, errors, spent
