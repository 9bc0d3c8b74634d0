"""NS807 to NS815: what the samples hold, beside their targets and beside the validation data."""

from __future__ import annotations

import math
from collections.abc import Iterator

from normscope.findings._rules import Hit, View, inside, rule

LEAK = 1e-6


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
    """One class has 90 % of the samples or more; a warning where it has all of them, and a trial brings the loss to
    nothing: elsewhere the first place may be the answer that is meant, as of a pair among others of a queue.
    """
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
    meaning="The forward pass, or the reading of a sample, writes into data that is kept in memory: it is other data "
    "in each epoch.",
    cure="Work on a new tensor: x = x / 255, not x /= 255 or x.div_(255).",
    source="the inputs after one and after two forward passes, to the last bit",
)
def worn(view: View) -> Iterator[Hit]:
    """A forward pass changes its input tensors in place, and a second one changes them again; an activation in place
    does not. Or a sample of the data set that is read twice, with the same random numbers, is another one the second
    time, and the numbers that the data set holds have changed.
    """
    kept = view.section("data").get("rewritten")
    if kept:
        text = (
            f"of {kept['read']} samples that are read twice {kept['others']} are others the second time, with the same "
            f"random numbers: {kept['name']}.__getitem__ writes into what it holds (an augmentation in place), and the "
            "changes add up over the epochs"
        )
        yield Hit(None, "rewritten", kept["others"], 0, text, cure="Change a copy: image = self.images[i].clone().")
    worn = view.section("calls").get("worn")
    if worn:
        text = (
            f"{worn[0]}{inside(worn[1])} changes the batch that is given in place, and again at the next pass: cached "
            "inputs shrink or drift from epoch to epoch"
        )
        yield Hit(None, "in_place", 1.0, 0.0, text, name=worn[1])


@rule(
    "NS815",
    "samples standardized one by one",
    severity="info",
    meaning="Each sample has mean 0 and standard deviation 1 by itself: its level and its amplitude are gone.",
    cure="Standardize with the training set's mean and standard deviation, the same for all samples.",
    source="means within 1e-3, standard deviations equal to 1e-3",
)
def one_by_one(view: View) -> Iterator[Hit]:
    """Every sample of the inputs, or each of its series, has mean zero and one and the same standard deviation. Usual
    for images; a warning where nothing that is learnt carries over to other batches (NS426): the answer may have been
    in what was removed. Or the model's own norm does so, and the targets go with the size of the samples.
    """
    lost = view.section("mixing").get("size_lost", 0.0)
    if lost:
        norm = view.section("wiring").get("first_norm", "")
        text = (
            f"the targets go with the size (amplitude) of the samples (correlation {lost:.2f}), and the outputs do not "
            f"change when a sample is doubled: {norm or 'a norm'} removes it, each sample normalized by itself "
            "(instance norm, layer norm on the inputs)"
        )
        yield Hit(None, "size", lost, 0.5, text, "warning", norm)
    if view.section("data").get("alone"):
        t = view.section("trial")
        lost = t.get("own", {}).get("trains") is False and t.get("stream", {}).get("progress", 1.0) < 0.1
        text = (
            "every sample (window) was normalized by its own mean and standard deviation: the information in level and "
            "amplitude is erased"
        )
        yield Hit(None, "alone", 1.0, 0.0, text, "warning" if lost else "")


@rule(
    "NS816",
    "interleaved colours",
    severity="warning",
    meaning="Images of (height, width, channels) were given the shape (channels, height, width) without moving their "
    "numbers: pixels and colours are scrambled.",
    cure="Move the axis: x.permute(0, 3, 1, 2), not x.view(n, c, h, w) or reshape.",
    source="chosen by us: the correlation with the c-th row below is .15 above that with the next one",
)
def interleaved(view: View) -> Iterator[Hit]:
    """Of images of 3 or 4 channels a row is more like the third (fourth) below than like the next."""
    s = view.section("data").get("interleaved", {})
    if s and s["below"] > s["next"] + 0.15:
        text = (
            f"rows of the images are more like the row that is as many below as there are channels (correlation "
            f"{s['below']:.2f}) than like the next one ({s['next']:.2f}): channels last (HWC) were viewed or reshaped "
            "as channels first instead of permuted, the layout of the pixels is scrambled"
        )
        yield Hit(None, "interleaved", s["below"], s["next"] + 0.15, text)


@rule(
    "NS817",
    "edges of the first graph alone",
    severity="warning",
    meaning="Graphs were put into one batch without counting their nodes on: all edges join nodes of the first one.",
    cure="Add to each graph's edges the number of nodes before it: edges + offset.",
    source="node numbers below the size of the largest graph, of a batch more than twice as large",
)
def one_graph(view: View) -> Iterator[Hit]:
    """Of nodes (N, d), edges (2, e) and the graph of each node (N,) the edges name no node beyond the largest graph's
    number of nodes, and are more than half as many as all nodes.
    """
    g = view.section("graphs")
    if "named" in g:
        text = (
            f"the edges join nodes 0 to {g['named'] - 1} alone, of {g['nodes']} nodes in {g['graphs']} graphs: the "
            "node numbers of each graph were not shifted by those before it (no offset)"
        )
        yield Hit(None, "named", g["named"], g["nodes"], text)


@rule(
    "NS818",
    "edges read along the wrong axis",
    severity="warning",
    meaning="A list of edges (e, 2) was reshaped to (2, e), not transposed: it joins nodes that no edge joins.",
    cure="edges.t().contiguous() instead of edges.view(2, -1) or reshape.",
    source="chosen by us: half of the edges go one way only, while 99 % of the pairs in memory have their reverse",
)
def scrambled_edges(view: View) -> Iterator[Hit]:
    """Of integers (2, e) few columns have their reverse among them, while the pairs that follow each other in memory
    do. Of a graph whose edges go one way nothing is known.
    """
    g = view.section("graphs")
    if "both_ways" in g:
        text = (
            f"of the edges {tuple(g['shape'])} {g['both_ways']:.0%} go both ways, and {g['pairs']:.0%} when numbers "
            "that follow each other in memory are read as pairs: a list (e, 2) was reshaped, not transposed"
        )
        yield Hit(None, "both_ways", g["both_ways"], 0.5, text)


@rule(
    "NS819",
    "fields that share rows",
    severity="warning",
    meaning="Columns of categories look into one embedding without their own offsets: one row stands for a value of "
    "each.",
    cure="Add to each column the sizes of those before it: x + torch.tensor([0, *sizes[:-1]]).cumsum(0).",
    source="a table with a row for each value of each column, of which the columns reach the first alone",
)
def shared_rows(view: View) -> Iterator[Hit]:
    """An embedding has as many rows as its ids' columns have values together, and the largest id of all is one of the
    largest column.
    """
    f = view.section("data").get("fields")
    if f:
        text = (
            f"{f['module']} (an embedding of {f['rows']} rows) gets ids up to {f['largest']}, in {f['columns']} "
            f"columns that have {f['values']} values together: they were not shifted by those before them (no offset), "
            "and share rows"
        )
        yield Hit(None, "largest", f["largest"], f["rows"], text, name=f["module"])
