"""NS4xx: the curvature of the whole batch, where it was measured (``diagnose(..., curvature=True)``)."""

from __future__ import annotations

from collections.abc import Iterator

from normscope.findings._rules import Hit, View, rule

GAIN_INFO, GAIN_WARNING, RATE = 5.0, 20.0, 1.0


@rule(
    "NS401",
    "pathological sharpness",
    severity="warning",
    meaning="A few directions, the mean gradients of the outputs, are far steeper than all others and cap the learning "
    "rate.",
    cure="Subtract the batch mean of the outputs (`normscope cure MODEL --how center-outputs`), or put batch norm "
    "after the last layer (`--how last-batch-norm`). Centred outputs cannot have a mean: with squared loss subtract "
    "the targets' too.",
    source="chosen by us; both values are measured on this batch",
)
def pathological_sharpness(view: View) -> Iterator[Hit]:
    """The largest eigenvalue of the Fisher matrix falls more than fivefold when the outputs are centred over the batch.

    Without a norm after the last layer λ_max grows like the width, while the mean eigenvalue falls: its eigenvectors
    are the mean gradients of the outputs. Mean subtraction or batch norm in the last layer removes them; batch norm in
    hidden layers of a ReLU net does not (λ_max ≈ width / 2π), nor does layer norm. Plain gradient descent is linearly
    stable up to the rate 2 / λ_max. Info from a factor of 5, warning from 20, nothing while 2 / λ_max is above 1: then
    it caps no rate in use. Few samples for the width leave less to gain.

    Reference: Karakida, Akaho, Amari 2019.
    """
    top, centred = view.facts.get("lambda_max"), view.facts.get("lambda_max_centred")
    if top and centred and top > GAIN_INFO * centred and 2 / top < RATE:
        yield Hit(
            None,
            "lambda_max",
            top,
            GAIN_INFO * centred,
            f"λ_max is {top:.4g}; with the outputs centred over the batch it is {centred:.4g}: the largest stable rate "
            f"goes from {2 / top:.2g} to {2 / centred:.2g}",
            "warning" if top > GAIN_WARNING * centred else "info",
        )


@rule(
    "NS402",
    "learning rate above the stable one",
    severity="warning",
    meaning="Linearised gradient descent at this rate grows along the sharpest direction: the net may catapult, slow "
    "down or diverge, or not notice.",
    cure="Try it: `normscope sharpness MODEL --rates` says which rates train. Or start below 2 / λ_max and warm up, or "
    "lower the sharpness first (NS401).",
    source="2 / λ_max, linear stability of gradient descent",
)
def rate_too_large(view: View) -> Iterator[Hit]:
    """The learning rate in use is above 2 / λ_max of this batch: the linear stability of full-batch gradient descent.

    It is no bound on the rates that train. From initialization nets can pass through it to flatter places, or rise
    below it; momentum β makes it 2 (1 + β) / λ_max, and of Adam it says nothing. How far it is off was measured on
    small nets: docs/rates.md. `normscope sharpness MODEL --rates` tries what trains, in at most 200 passes an
    optimizer.

    Reference: Karakida, Akaho, Amari 2019, section on the learning rate; Cohen et al. 2021 (edge of stability).
    """
    top, rate = view.facts.get("lambda_max"), view.facts.get("learning_rate")
    if top and rate and rate > 2 / top:
        yield Hit(
            None,
            "learning_rate",
            rate,
            2 / top,
            f"the rate {rate:.3g} is {rate * top / 2:.3g} times 2 / λ_max = {2 / top:.3g}",
        )
