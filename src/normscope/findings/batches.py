"""NS8xx: the data."""

from __future__ import annotations

import math
from collections.abc import Iterator

from normscope.findings._rules import Hit, View, inside, rule

LARGE, TINY, COLUMNS = 25.0, 0.05, 1e3
#: Size of one of several targets from which on its squares drown the rest (chosen by us).
UNITS = 30.0
PRICES, SMALL_TARGETS, LEAK = 1e3, 300.0, 1e-6


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
    """Of the batches after the first, 60 % or more are equal to an earlier one, to the last bit."""
    r = view.section("data").get("repeated", 0.0)
    if r >= 0.6:
        yield Hit(
            None,
            "repeated",
            r,
            0.6,
            f"{r:.0%} of the loader's batches are identical to an earlier one: the same samples repeat",
        )


@rule(
    "NS807",
    "a feature holds the target",
    severity="warning",
    meaning="One input column gives the target away: training looks perfect, and nothing is learnt for data "
    "without it.",
    cure="Drop the column: x = torch.cat([x[:, :k], x[:, k + 1:]], 1).",
    source="chosen by us: a squared correlation of 1 within 1e-6",
)
def leak(view: View) -> Iterator[Hit]:
    """A column of the inputs is an affine function of the target, in every sample that was read. Or it goes with the
    target in the training data (correlation above .9), and not in the validation data (below a third of that).
    """
    apart = view.section("data").get("leak_of_training")
    if apart and apart["correlation"] > 0.9 and apart["valid"] < apart["correlation"] / 3:
        text = (
            f"feature {apart['column']} gives the target away in the training data (correlation "
            f"{apart['correlation']:.3f}), and not in the validation data ({apart['valid']:.3f}): a leak, a column "
            "that is written after the outcome"
        )
        yield Hit(None, "correlation", apart["correlation"], 0.9, text)
        return
    found = view.section("data").get("leak")
    if found and 1 - found["correlation"] ** 2 < LEAK:
        text = (
            f"feature {found['column']} equals the target in every sample (correlation "
            f"{found['correlation']:.6f}): a leak"
        )
        yield Hit(None, "correlation", found["correlation"], 1.0, text)


@rule(
    "NS808",
    "labels shuffled apart",
    severity="warning",
    meaning="The training labels say nothing about the inputs, while those of the validation data do.",
    cure="Shuffle inputs and labels with one permutation: i = torch.randperm(n); x, y = x[i], y[i].",
    source="chosen by us: nearest neighbours 6 standard errors above chance in the validation data, and within "
    "3 of it from the training data",
)
def shuffled_labels(view: View) -> Iterator[Hit]:
    """The nearest neighbour of a validation sample has its label far above chance in the validation data, and at chance
    in training.

    Three numbers: neighbours within the validation set, from the training set to it, and within the training set.
    Without validation data this cannot be told: a hard task looks the same.
    """
    k = view.section("data").get("neighbours")
    if not k:
        return
    error = math.sqrt(k["chance"] * (1 - k["chance"]) / k["n_valid"])
    here = math.sqrt(k["train_chance"] * (1 - k["train_chance"]) / k["n_train"])
    lost = k["train_to_valid"] < k["chance"] + 3 * error and k["train"] < k["train_chance"] + 3 * here
    if k["valid"] > k["chance"] + 6 * error and lost:
        text = (
            f"the nearest neighbour has the label in {k['valid']:.0%} of the validation samples, but in "
            f"{k['train']:.0%} of the training samples (chance {k['chance']:.0%}): the training labels are random, "
            "shuffled apart from the inputs"
        )
        yield Hit(None, "neighbours", k["train_to_valid"], k["chance"] + 3 * error, text)


@rule(
    "NS809",
    "validation data of another scale",
    severity="warning",
    meaning="The validation inputs were prepared in another way than the training inputs.",
    cure="Use one transform, with the training set's mean and standard deviation, for both.",
    source="chosen by us: a shift of one standard deviation, or a factor of 5",
)
def other_valid(view: View) -> Iterator[Hit]:
    """The mean of the validation inputs is a standard deviation off, or their standard deviation differs by a factor of
    5.
    """
    v = view.section("data").get("valid")
    if v and (v["shift"] > 1 or not 0.2 < v["ratio"] < 5):
        text = (
            f"the validation inputs are shifted by {v['shift']:.2g} standard deviations, their scale is "
            f"{v['ratio']:.3g} times the training's"
        )
        yield Hit(None, "valid", v["ratio"], 5.0, text)


@rule(
    "NS810",
    "tokens fall into one row",
    severity="warning",
    meaning="Many different tokens share one row of the embedding, so the network cannot tell them apart.",
    cure="Make the embedding as large as the vocabulary: nn.Embedding(int(ids.max()) + 1, width).",
    source="chosen by us: ids beyond the table, and a third of all tokens in one row",
)
def one_row(view: View) -> Iterator[Hit]:
    """The inputs hold ids beyond the embedding's rows, and on the way to it a third of all tokens or more became one
    id; or all ids of a batch are one, of a table of more than three rows; or one token that is no padding has 60 % of
    all places.
    """
    t = view.section("data").get("tokens")
    if (
        t
        and t["largest_id"] >= t["rows"]
        and t["one_row"] > 1 / 3
        and t["one_row"] > 3 * t["given_one"]
        and t["got"] < t["given"]
    ):
        text = (
            f"{t['one_row']:.0%} of the tokens map to row {t['row']} of {t['module']}: ids go up to {t['largest_id']}, "
            f"the embedding has {t['rows']} rows, and they are clamped to its vocabulary"
        )
        yield Hit(None, "one_row", t["one_row"], 1 / 3, text, name=t["module"])
    u = (t or {}).get("unknown", {})
    if t and u and u["share"] > 0.6 and u["kinds"] > 3:
        text = (
            f"{u['share']:.0%} of all tokens are id {u['id']}: it dominates; are most unknown words (out of "
            "vocabulary)?"
        )
        yield Hit(None, "one_row", u["share"], 0.6, text, name=t["module"])
    one = view.section("data").get("one_id")
    if one:
        text = (
            f"{one['share']:.0%} of the ids that {one['module']} (an embedding of {one['rows']} rows) gets are "
            f"{one['id']}: a constant; were categories scaled, then cast to integers (all zero)?"
        )
        yield Hit(None, "one_row", one["share"], 1 / 3, text, name=one["module"])


@rule(
    "NS811",
    "sorted by class",
    severity="warning",
    meaning="Each batch holds one class only, so every step teaches the network to say that class.",
    cure="Shuffle: DataLoader(..., shuffle=True).",
    source="chosen by us: 80 % of the batches, with three batches and two classes or more; half of the pairs",
)
def sorted_classes(view: View) -> Iterator[Hit]:
    """In 80 % of the batches all targets are one class, though the data has several; or pairs within a batch are of one
    class three times as often as pairs of all data.
    """
    d = view.section("data")
    alike = d.get("alike", {"within": 0.0, "overall": 1.0})
    if d.get("pure_batches", 0.0) >= 0.8 and d.get("classes", 0) >= 2 and d.get("majority", 1.0) < 0.8:
        text = f"{d['pure_batches']:.0%} of the batches hold one class only: the data is sorted"
        yield Hit(None, "pure", d["pure_batches"], 0.8, text)
    elif alike["within"] > 0.5 and alike["within"] > 3 * alike["overall"]:
        text = (
            f"two samples of a batch are of one class in {alike['within']:.0%} of all pairs, two of the data in "
            f"{alike['overall']:.0%}: the data is sorted by class, a batch holds one class or two (no negatives)"
        )
        yield Hit(None, "alike", alike["within"], 0.5, text)


@rule(
    "NS812",
    "imbalanced classes",
    severity="info",
    meaning="One class has nearly all samples, so accuracy says little and the others are learnt late.",
    cure="Weigh the classes, nn.CrossEntropyLoss(weight=...), or sample them evenly; judge by balanced accuracy.",
    source="chosen by us: 90 % of the samples",
)
def imbalance(view: View) -> Iterator[Hit]:
    """One class has 90 % of the samples or more; a warning where it has all of them."""
    m = view.section("data").get("majority", 0.0)
    if m > 0.9:
        yield Hit(
            None,
            "majority",
            m,
            0.9,
            f"{m:.1%} of the samples are of one class, the majority",
            "warning" if m == 1 else "",
        )


@rule(
    "NS813",
    "a number that stands for nothing",
    severity="warning",
    meaning="Missing values were written as a number far from all others: they outweigh everything that was measured.",
    cure="keep = targets != -999; model(x[keep]), or fill in the column's mean, with a column that says where.",
    source="chosen by us: one value ten times as far from the median as any other, in 0.2 % of the rows or more",
)
def sentinel(view: View) -> Iterator[Hit]:
    """In a column of the inputs or targets one extreme value occurs again and again, and no other comes near it."""
    s = view.section("data").get("sentinel")
    if s:
        text = (
            f"{s['share']:.1%} of column {s['column']} of the {s['what']} are {s['value']:g}, ten times as far out as "
            f"any other value ({s['wide']:.2g} from the median): a sentinel for missing values, an outlier"
        )
        yield Hit(None, "share", s["share"], 0.002, text)


@rule(
    "NS814",
    "inputs that wear off",
    severity="warning",
    meaning="The forward pass writes into the batch it is given, so data that is kept in memory is other data in each "
    "epoch.",
    cure="Work on a new tensor: x = x / 255, not x /= 255 or x.div_(255).",
    source="the inputs after one and after two forward passes, to the last bit",
)
def worn(view: View) -> Iterator[Hit]:
    """A forward pass changes its input tensors in place, and a second one changes them again; an activation in place
    does not.
    """
    worn = view.section("calls").get("worn")
    if worn:
        text = (
            f"{worn[0]}{inside(worn[1])} changes the batch that is given in place, and again at the next pass: cached "
            "inputs shrink or drift from epoch to epoch"
        )
        yield Hit(None, "in_place", 1.0, 0.0, text, name=worn[1])
