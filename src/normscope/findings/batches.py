"""NS801 to NS806: the numbers of the data, and how the batches repeat."""

from __future__ import annotations

import math
from collections.abc import Iterator

from normscope.findings._rules import Hit, View, rule

LARGE, TINY, COLUMNS = 25.0, 0.05, 1e3
#: Size of one of several targets from which on its squares drown the rest (chosen by us).
UNITS = 30.0
#: Share of samples that are zero everywhere by which something has emptied them (chosen by us).
EMPTY = 0.6
PRICES, SMALL_TARGETS = 1e3, 300.0


@rule(
    "NS801",
    "data that is not finite",
    severity="error",
    meaning="One NaN or infinity makes the loss, the gradient and after one step all weights NaN.",
    cure="Find and fill them before training: assert torch.isfinite(inputs).all(); inputs = torch.nan_to_num(inputs).",
    source="IEEE 754",
)
def not_finite(view: View) -> Iterator[Hit]:
    """A batch of the loader holds NaN or infinity, in the inputs or the targets; the first one is named.

    At most 64 batches are read. The rest of the diagnosis ran with zeros in their place. A note where the model deals
    with it: the loss of that batch is finite.
    """
    b = view.section("data").get("broken")
    if b:
        where = f"batch {b['batch']} of the loader" if b["batch"] >= 0 else "the batch that was given"
        column = f"column {', '.join(map(str, b['columns']))}" if b["columns"] else "some samples"
        share = f" ({b['rows']:.1%} of the rows read)" if b["rows"] == b["rows"] and b["rows"] else ""
        text = f"{where} holds {b['kind']} in its {b['what']}: sample {b['sample']}, {column}{share}"
        text += "; the loss of that batch is finite all the same" if b.get("meant") else ""
        yield Hit(None, "not_finite", math.nan, math.inf, text, "info" if b.get("meant") else "")


@rule(
    "NS802",
    "inputs far too large",
    severity="warning",
    meaning="The first layer gets numbers far above 1, so its outputs, its gradients and the sharpness are as "
    "much too large.",
    cure="Standardize: x = (x - mean) / std, for pixels transforms.Normalize after ToTensor (x / 255).",
    source="chosen by us: an rms of 25; standardized data has 1, raw pixels about 100",
)
def large_inputs(view: View) -> Iterator[Hit]:
    """The rms of what the first layer with weights gets is above 25. Layers that normalize first are silent; a
    note where the user's own trial trains.
    """
    f = view.section("data").get("first_layer")
    if f and f["rms"] > LARGE and f.get("column_ratio", 1.0) < COLUMNS:
        text = (
            f"the inputs of {f['module'] or 'the first layer'} have rms {f['rms']:.3g} (largest "
            f"{f['largest']:.3g}): not standardized"
        )
        trains = view.section("trial").get("own", {}).get("trains")  # a norm right behind it makes up for it
        yield Hit(None, "rms", f["rms"], LARGE, text, "info" if trains else "")


@rule(
    "NS803",
    "inputs far too small",
    severity="warning",
    meaning="The first layer hardly sees the inputs beside its own biases, so all samples look alike.",
    cure="Scale the inputs once, not twice: x = (x - mean) / std.",
    source="chosen by us: rows of norm 0.05, where a fresh layer's biases outweigh them twentyfold",
)
def tiny_inputs(view: View) -> Iterator[Hit]:
    """The rows that the first layer with weights gets have a median norm below 0.05.

    A fresh ``nn.Linear`` has weights and biases of one distribution, so that the part of the input in its output,
    beside the bias, is the norm of the row.
    """
    f = view.section("data").get("first_layer")
    if f and 0 < f["row"] < TINY:
        text = (
            f"the inputs of {f['module'] or 'the first layer'} are tiny: rms {f['rms']:.2g}, rows of norm "
            f"{f['row']:.2g}; scaled twice?"
        )
        yield Hit(None, "row_norm", f["row"], TINY, text)


@rule(
    "NS804",
    "columns of different scales",
    severity="warning",
    meaning="A few columns drown the others, and no learning rate fits all of them.",
    cure="Standardize each column with the training set's numbers: x = (x - x.mean(0)) / x.std(0).",
    source="chosen by us: standard deviations that differ a thousandfold (curvatures a millionfold)",
)
def column_scales(view: View) -> Iterator[Hit]:
    """The standard deviations of the columns that the first layer gets differ by more than a factor of 1000."""
    f = view.section("data").get("first_layer")
    if f and f.get("column_ratio", 1.0) > COLUMNS and f["widest_std"] > 10:
        text = (
            f"the features' standard deviations range from {f['narrowest_std']:.2g} to {f['widest_std']:.2g} "
            f"(column {f['widest']} of what {f['module'] or 'the first layer'} gets): a factor of "
            f"{f['column_ratio']:.1g} in scale, not standardized"
        )
        yield Hit(None, "column_ratio", f["column_ratio"], COLUMNS, text)


@rule(
    "NS805",
    "targets far from the outputs",
    severity="warning",
    meaning="Outputs and targets are worlds apart in size: a small rate never gets there, a large one diverges.",
    cure="Standardize the targets, t = (t - t.mean()) / t.std(), and undo it in the answers.",
    source="chosen by us: an rms of 1000, a hundred times the outputs'",
)
def target_scale(view: View) -> Iterator[Hit]:
    """The targets of a regression have an rms above 1000, and the outputs less than a hundredth of it; or the outputs
    are 300 times the targets' standard deviation; or one of several targets has an rms above 30 (a note where the
    user's own trial trains).
    """
    t, s, u = view.section("data").get("target_rms", 0.0), view.section("loss"), view.section("update")
    if s.get("task") == "regression" and t > PRICES and s.get("output_rms", math.inf) < t / 100:
        text = (
            f"the targets have rms {t:.2g}, the outputs {s['output_rms']:.2g}: the targets' scale is not standardized"
        )
        if u.get("outputs_moved"):
            text += (
                f"; at the learning rate {u['lr']:.2g} they are "
                f"{u['outputs_to_go'] / u['outputs_moved']:.1e} steps away"
            )
        yield Hit(None, "target_rms", t, PRICES, text)
    std = view.section("data").get("target_std", 0.0)
    if s.get("task") == "regression" and 0 < std < s.get("output_rms", 0.0) / SMALL_TARGETS:
        text = (
            f"the targets have standard deviation {std:.2g}, the outputs rms {s['output_rms']:.2g}: the "
            "targets' scale is tiny"
        )
        yield Hit(None, "target_std", std, s["output_rms"] / SMALL_TARGETS, text)
    one = view.section("data").get("largest_target", 0.0)
    if one > UNITS:
        text = (
            f"of several targets one has rms {one:.3g}: its part of the loss dominates the others by its units alone; "
            "bring all to one magnitude (standardize), or weigh the parts (balance)"
        )
        trains = view.section("trial").get("own", {}).get("trains")  # boxes in pixels, returns
        yield Hit(None, "target_rms", one, UNITS, text, "info" if trains else "")


@rule(
    "NS806",
    "the same batch again and again",
    severity="warning",
    meaning="The loader gives the same samples over and over, so the network sees a small part of the data.",
    cure="Shuffle once for all workers: DataLoader(..., shuffle=True), and seed numpy in worker_init_fn.",
    source="chosen by us: 60 % of the batches equal an earlier one",
)
def repeated(view: View) -> Iterator[Hit]:
    """Of the batches after the first, 60 % or more are equal to an earlier one, to the last bit.

    Or all samples are one and the same, and their targets are not (an error); or six of ten are zero everywhere.

    Not where one batch is all there is: the validation data have the same inputs (nodes of one graph), the model holds
    a matrix of all pairs of rows, or the optimizer takes all data at once (a closure).
    """
    r = view.section("data").get("repeated", 0.0)
    few, every = view.section("data").get("distinct", [1, 1])
    if few == 1 < every and view.section("data").get("target_std", 0.0) > 0:
        text = (
            f"all {every} samples in the batches are one and the same, their targets are not: one array that was "
            "filled anew for each sample and kept without a copy"
        )
        yield Hit(None, "distinct", few, every, text, "error", cure="Keep a copy of each: kept.append(buffer.copy()).")
        return
    empty = view.section("data").get("empty", 0.0)
    if empty > EMPTY:
        text = (
            f"{empty:.0%} of the samples in the batches are zero everywhere: nothing is left in them (an integer "
            "division, a cast, a mask that hides all)"
        )
        yield Hit(None, "empty", empty, EMPTY, text, cure="x = images.float() / 255, not images // 255.")
        return
    if r < 0.6 and few <= min(64, every / 10):
        text = (
            f"of {every} samples in the batches {few} are distinct, the others repeat them: a sampler that draws from "
            "few indices only (one weight a class instead of one a sample?), duplicated rows"
        )
        each = "Give the sampler a weight a sample: WeightedRandomSampler(class_weights[targets], len(targets))."
        yield Hit(None, "distinct", few, every / 10, text, cure=each)
    if r >= 0.6 and not view.section("data").get("closure") and not view.section("data").get("all_at_once"):
        yield Hit(
            None,
            "repeated",
            r,
            0.6,
            f"{r:.0%} of the loader's batches are identical to an earlier one: the same samples repeat",
        )
