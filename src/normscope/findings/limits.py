"""NS9xx: where nothing can be said."""

from __future__ import annotations

import math
from collections.abc import Iterator

from normscope.findings._rules import Hit, View, rule, where

SMALL_BATCH = 8


@rule(
    "NS901",
    "batch too small to tell",
    severity="info",
    meaning="Ranks and angles of so few samples are mostly chance; batch norm over them is noisy too.",
    cure="Probe with at least 8 samples, better 32 to 128.",
    source="chosen by us; cluster + odd point does not exist below 7 samples",
)
def small_batch(view: View) -> Iterator[Hit]:
    """Fewer than 8 samples: the geometry rules see too few pairs (8 samples have 28)."""
    if view.samples < SMALL_BATCH:
        yield Hit(None, "batch_size", view.samples, SMALL_BATCH, f"the batch has {view.samples} samples")


@rule(
    "NS902",
    "non-finite values",
    severity="error",
    meaning="The forward or backward pass overflows before the first step: no learning rate can help.",
    cure="Find the layer named here: lower its gain, add a norm, or use a wider number format.",
    source="IEEE 754",
)
def non_finite(view: View) -> Iterator[Hit]:
    """A layer's output, or the gradient that reaches it, holds NaN or infinity; the first such layer is named.

    For activations that is the first in the forward pass, for gradients the first on the way back; the loss itself may
    be the first (the logarithm of zero), and a batch norm's running statistics may hold NaN, which shows in eval mode
    only. NaN in the input or in the parameters is reported as an error in the input, not as a finding.
    """
    loss, name = view.facts.get("loss_value", 0.0), view.facts.get("loss", "none")
    buffers = view.section("wiring").get("broken_buffers", [])
    activations = [r for r in view.curve("mean_norm") if math.isnan(r.value)]
    gradients = [r for r in view.curve("gradient_norm", "gradient") if math.isnan(r.value)]
    if activations:
        yield Hit(activations[0], "mean_norm", math.nan, math.inf, f"not finite from {where(activations[0])} on")
    elif gradients:
        text = f"the gradient is not finite at {where(gradients[-1])}, though the activations are"
        yield Hit(gradients[-1], "gradient_norm", math.nan, math.inf, text)
    elif name != "none" and not math.isfinite(loss):
        text = f"the loss {name} is {loss} at the first step, though activations and gradients are finite"
        yield Hit(None, "loss_value", math.nan, math.inf, text)
    if buffers:
        text = f"the buffer {buffers[0]} holds NaN or infinity: in eval mode the outputs are not finite"
        yield Hit(None, "buffer", math.nan, math.inf, text, name=buffers[0].rpartition(".")[0])
