"""NS814 to NS819: what was done to samples before the model gets them, and ids that name other rows than they mean."""

from __future__ import annotations

from collections.abc import Iterator

from normscope.findings._rules import Hit, View, inside, rule


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
