"""NS807 to NS813: what the samples hold, beside their targets and beside the validation data."""

from __future__ import annotations

import math
from collections.abc import Iterator

from normscope.findings._rules import Hit, View, listed, rule

LEAK = 1e-6
#: A share of the entries of a mask that is rare (chosen by us).
RARE = 0.03


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
    Without validation data this cannot be told: a hard task looks the same. Or of a cross-entropy over all pairs of
    samples, (n, n), the most alike follow a pattern (each with its own other view), and the labels another one.
    """
    of = view.section("calls").get("partners") or {}
    if of and of["said"] >= -of["out"]:
        text = (
            f"of the {of['n']} rows of similarities the most alike stand at {of['where']} ({of['out']:.2g} standard "
            f"deviations above their row), and the labels name others ({of['said']:.2g}): the loss pulls together what "
            "are no pairs"
        )
        cure = (
            "Labels follow the order of the batch: arange(n) for u @ v.T of two views; (i + n / 2) % n for the views "
            "one after the other; i + 1 and i - 1 in turns where they are interleaved."
        )
        yield Hit(None, "partners", of["said"], of["out"], text, cure=cure)
    p = view.section("data").get("per_batch")
    error = math.sqrt(p["chance"] / p["n"]) if p else math.nan
    if p and p["within"] > p["chance"] + 12 * error and p["across"] < p["chance"] + 6 * error:
        text = (
            f"the nearest neighbour has the label in {p['within']:.0%} of the samples within a batch, but in "
            f"{p['across']:.0%} among the other batches (chance {p['chance']:.0%}): labels contradict each other from "
            "batch to batch, the class ids mean something else in each (a label encoding or mapping made anew for "
            "every batch)"
        )
        yield Hit(None, "per_batch", p["across"], p["within"], text)
        return
    k, renamed = view.section("data").get("neighbours"), view.section("data").get("renamed")
    if renamed:
        said = listed([f"{c} is what the training data call {m}" for c, m in renamed["classes"].items()])
        text = (
            f"the validation data number their classes otherwise ({renamed['purity']:.0%} or more of each class): "
            f"{said}; each was encoded by itself"
        )
        cure = "One map for both: class_to_idx (or the LabelEncoder) of the training set."
        yield Hit(None, "renamed", len(renamed["classes"]), 0, text, cure=cure)
        return
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
    """The mean of the validation inputs is a standard deviation off (of the targets: two; of what a script holds out
    without saying so: four), or their standard deviation differs by a factor of 5.
    """
    most = 4 if view.section("observed").get("losses") else 1  # a script may hold out what comes later
    u = view.section("data").get("valid_targets")
    if u and "outliers" not in view.section("data") and (u["shift"] > 2 * most or not 0.2 < u["ratio"] < 5):
        text = (
            f"the validation targets are shifted by {u['shift']:.2g} standard deviations, their scale is "
            f"{u['ratio']:.3g} times the training's: they are in other units"
        )
        yield Hit(None, "valid_targets", u["ratio"], 5.0, text)
    v = view.section("data").get("valid")
    if v and (v["shift"] > most or not 0.2 < v["ratio"] < 5):
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
    few = view.section("data").get("few_rows")
    if few:
        text = (
            f"{few['module']} (an embedding of {few['rows']} rows) gets {few['got']} distinct ids only, made of "
            "numbers that are no integers: were the ids standardized or scaled before they were cast to indices "
            "(truncated)?"
        )
        yield Hit(None, "few_rows", few["got"], few["rows"] / 4, text, name=few["module"])
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
    u, own = (t or {}).get("unknown", {}), view.section("trial").get("own", {})
    learnt = own.get("progress", 0.0) > 0.9 and view.section("trial")["batches"] > 1  # the others tell enough
    if t and u and u["share"] > 0.6 and u["kinds"] > 3 and not learnt:
        text = (
            f"{u['share']:.0%} of all tokens are id {u['id']}: it dominates; are most unknown words (out of "
            "vocabulary)?"
        )
        cure = "Print some rows of tokens; take a larger vocabulary, or smaller units (subwords, characters)."
        yield Hit(None, "one_row", u["share"], 0.6, text, name=t["module"], cure=cure)
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
    cure="Weigh the classes, nn.CrossEntropyLoss(weight=...) or nn.BCEWithLogitsLoss(pos_weight=...), or sample them "
    "evenly; judge by balanced accuracy.",
    source="chosen by us: 90 % of the samples",
)
def imbalance(view: View) -> Iterator[Hit]:
    """One class has 90 % of the samples or more, or of the entries of a mask less than 3 % are set and nothing weighs
    them; a warning where it has all of them, and a trial brings the loss to nothing: elsewhere the first place may be
    the answer that is meant, as of a pair among others of a queue.
    """
    positive = view.section("loss").get("positive", 1.0)
    if positive < RARE:
        yield Hit(None, "positive", positive, RARE, f"{positive:.1%} of the targets' entries are 1, the others 0: rare")
    m, trial = view.section("data").get("majority", 0.0), view.section("trial")
    ends = [trial[k]["end"] for k in ("sgd", "adam") if k in trial]
    easy = bool(ends) and min(ends) < 0.1 * trial["start"]
    if m > 0.9 and (m < 1 or view.section("loss").get("task") == "classes"):  # else they may be there for form's sake
        yield Hit(
            None,
            "majority",
            m,
            0.9,
            f"{m:.1%} of the samples are of one class, the majority",
            "warning" if m == 1 and easy else "",
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
    """In a column of the inputs or targets one extreme value occurs again and again, and no other comes near it; or one
    target in a hundred, or fewer, has nine tenths of their squared distance from the median.
    """
    s = view.section("data").get("sentinel")
    if s:
        text = (
            f"{s['share']:.1%} of column {s['column']} of the {s['what']} are {s['value']:g}, ten times as far out as "
            f"any other value ({s['wide']:.2g} from the median): a sentinel for missing values, an outlier"
        )
        yield Hit(None, "share", s["share"], 0.002, text)
    o, named = view.section("data").get("outliers"), str(view.facts.get("loss", "")).lower()
    if o and not s and "l1" not in named and "huber" not in named:
        text = (
            f"{o['count']} of {o['of']} targets lie up to {o['largest']:.2g} standard deviations (of the others) from "
            f"the median, and have {o['share']:.0%} of the squared error: outliers make the loss"
        )
        cure = "Look at these rows: another unit, a typing error? Mend or drop them, or take nn.HuberLoss()."
        yield Hit(None, "outliers", o["largest"], 100.0, text, cure=cure)
