"""lambda_max of the same inputs in other modes, and with a norm after the last layer."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from normscope.call.step import Step
from normscope.call.taps import normalizers
from normscope.core.errors import UsageError
from normscope.curvature._budget import FEWEST_STEPS, Budget
from normscope.curvature._operators import fisher
from normscope.curvature._variants import VARIANTS, last_layer
from normscope.linalg.spectra import Spectrum, spectrum

#: Products for one other mode at most, as for lambda_max itself.
MOST_PRODUCTS = 200
Values = dict[str, float]


def other_modes(
    step: Step, functional: bool, here: Spectrum, tol: float, budget: Budget, options: Mapping[str, Any],
) -> tuple[Values, Values, list[str]]:  # fmt: skip
    """lambda_max a mode, what it may be off by, and a warning where two differ by more than twice whatever the errors.

    functional: whether batch norms ran by function, in a model without norms that are modules.
    """
    if not (normalizers(step.root) or functional):
        return {}, {}, []
    several = not step.alone
    mode = step.mode or ("train" if step.root.training else "eval")
    name = f"{mode}, mean over batches" if several else f"{mode}, whole batch"
    values, errors = {name: here.largest}, {name: float(here.errors[0])}

    def add(name: str, at: Step) -> None:
        most = min(budget.products(), MOST_PRODUCTS)
        if most < FEWEST_STEPS and not budget.affords(f"lambda_max, {name}", max(here.products, FEWEST_STEPS)):
            return
        a = fisher(at, **options)
        s = spectrum(a, tol=tol, seed=step.seed, max_products=max(int(most), FEWEST_STEPS))
        values[name], errors[name] = s.largest, float(s.errors[0])

    if several and mode == "train":
        parts = list(step.each())
        tensors = all(isinstance(x, Tensor) for p in parts for x in (p.inputs, p.targets) if x is not None)
        if tensors:
            whole = torch.cat([p.inputs for p in parts])
            targets = None if parts[0].targets is None else torch.cat([p.targets for p in parts])
            add("train, whole batch", replace(step, inputs=whole, targets=targets, data=None, loss=step.loss))
    other = "eval" if mode == "train" else "train"
    try:
        add(other, replace(step, mode=other))
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


def variants(step: Step, tol: float, options: Mapping[str, Any]) -> tuple[Values, Values, float]:
    """lambda_max with each of ``VARIANTS`` after the last layer, what it may be off by, and the products spent."""
    values, errors, spent = {}, {}, 0.0
    for name in VARIANTS:
        if name != "none":
            s = spectrum(last_layer(step, None, name, **options), tol=tol, seed=step.seed)
            values[name], errors[name] = s.largest, float(s.errors[0])
            spent += s.products
    return values, errors, spent
