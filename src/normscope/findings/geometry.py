"""NS1xx: what the layers do to the geometry of the batch."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator

from normscope.core.records import Record
from normscope.core.words import amount
from normscope.findings._rules import Hit, View, rule, settles, where

#: Participation ranks, from trained nets (docs/findings.md): nets without skip connections that ended below
#: RANK_ERROR did not train; those that spent more than LAYERS_LOW layers below RANK_LOW, or ended below RANK_END,
#: trained worse than shallower ones of their kind.
RANK_END, RANK_LOW, LAYERS_LOW = 1.03, 1.15, 10
#: Torch's default ReLU nets of 10 layers and widths of 16 to 512 end between 1 + 5e-6 and 1 + 1e-4, and train with
#: Adam; below RANK_LOST plain SGD trains none of ours; below RANK_ERROR, in more than 10 layers, Adam hardly does.
RANK_LOST, RANK_ERROR = 1 + 4e-6, 1 + 1e-9
ALIGNED_INPUT = 0.95
SCALE = 100.0
#: 1 - cosine between the tokens of a sequence, from trained nets (tests/findings/test_token_collapse.py): where they
#: are one vector, one vector to rounding, and where inputs are alike themselves.
MERGED, ROUNDING, ALIKE = 2e-2, 1e-9, 0.1
#: Differences between tokens shrink, in absolute terms, to this much of what they were at the same place of an earlier
#: block; where a skip keeps them and only what they have in common grows, nets train.
SHRUNK = 0.2
#: Blocks in a row with merged tokens: a warning, an error. Two are within what a batch learnt by heart undoes.
BLOCKS_WARNING, BLOCKS_ERROR = 3, 8


@rule(
    "NS101",
    "rank collapse",
    severity="error",
    meaning="The deep layers see nearly the same vector for every input, so the loss stays near that of a constant.",
    cure="Put batch norm before each activation, or a skip connection round each layer, or make the net shallower; "
    "without normalization start from other weights: `normscope cure MODEL --how auto` (orthogonal, identity).",
    source="trained nets (docs/findings.md)",
)
def rank_collapse(view: View) -> Iterator[Hit]:
    """The batch has fallen onto one line.

    Measured by the participation rank of the hidden representations, r = (tr G)² / ‖G‖²_F with G = H Hᵀ the Gram matrix
    of the batch: r = 1 means that all samples are multiples of one vector, and 1/r is about the mean squared cosine
    between samples. It does not depend much on the batch size.

    Without normalization the normalized product of random layers tends to rank one with depth; in linear nets at the
    rate exp(-depth / (2 width)), in wide ReLU nets like 1 - cos ≈ 9π² / (2 depth²), and faster with biases.
    If the last hidden representation has rank one, the gradients that any two samples send to the weights of an output
    neuron are collinear. With batch norm r stays near sqrt(width).

    Warning when the last hidden layer lies below 1.15 and more than 10 layers do, or when it lies below 1 + 4e-6; error
    when both, and below 1 + 1e-9; info below 1.03. The layer named is the first from which r stays below 1.15. Layers
    of the commonest kind of module are compared, without those of one unit (whose rank is always 1) and those that
    start at zero. Nets with skip connections keep a path for the gradient and can still train at a low rank: read NS2xx
    beside this. A net of a few layers may end low without harm.

    References: Daneshmand, Kohler, Bach, Hofmann, Lucchi 2020 (Lemma 1, Theorem 2, Fig. 1); Daneshmand, Joudaki, Bach
        2021.
    """
    zero = view.section("wiring").get("zero_layers", ())
    curve = [r for r in view.alike("participation_rank") if view.width(r) > 1 and r.name not in zero]
    if not curve or view.at_input("participation_rank") < RANK_END:
        return
    last, start = curve[-1].value, settles(curve, lambda r: r < RANK_LOW)
    low = sum(r.value < RANK_LOW for r in curve)
    odd = next(iter(odd_point.check(view)), None)  # the sharper word for the same low rank
    if start is None or odd or not (low > LAYERS_LOW or last < RANK_END):
        return
    rank32 = {(r.layer, r.call): r.value for r in view.hidden("numerical_rank_float32")}
    seen = rank32.get((curve[-1].layer, curve[-1].call), math.nan)
    yield Hit(
        start,
        "participation_rank",
        last,
        RANK_ERROR if last < RANK_ERROR else RANK_LOW,
        f"participation rank {_short(view.at_input('participation_rank'), curve[0].value)} falls below {RANK_LOW} at "
        f"{where(start)} and ends at {last:.4g} of at most {view.samples}; float32 sees rank {seen:.0f} there",
        "error"
        if last < RANK_ERROR and low > LAYERS_LOW
        else "warning"
        if low > LAYERS_LOW or last < RANK_LOST
        else "info",
    )


@rule(
    "NS102",
    "aligned input",
    severity="warning",
    meaning="The samples already point the same way before the first layer, so every layer starts from little "
    "contrast.",
    cure="Subtract the mean of the data (and divide by its standard deviation) before the first layer.",
    source="chosen by us: the mean direction then carries over 90 % of the energy",
)
def aligned_input(view: View) -> Iterator[Hit]:
    """The mean cosine between two input samples is above 0.95.

    Typical of images in [0, 1] or [0, 255] that were not standardized. Silent before a norm, and for a single feature.
    The first layers of a ReLU net cannot undo it: the cosine map κ(c) = (√(1-c²) + c (π - arccos c)) / π of a wide ReLU
    layer only ever increases c.
    """
    if view.section("data").get("normed_input"):
        return
    inputs = [r for r in view.curve("mean_cosine") if r.layer == 0 and view.width(r) > 1]
    if inputs and inputs[0].value > ALIGNED_INPUT:
        cosine = inputs[0].value
        yield Hit(inputs[0], "mean_cosine", cosine, ALIGNED_INPUT, f"mean cosine between two samples is {cosine:.3f}")


@rule(
    "NS103",
    "cluster and one odd point",
    severity="error",
    meaning="All samples but one, or a few, are almost the same point to the deep layers: the net can single out "
    "these, not classes.",
    cure="Divide by the batch standard deviation as well (complete batch norm), or leave the recentring out.",
    source="detector calibrated on simulated batches (docs/findings.md)",
)
def odd_point(view: View) -> Iterator[Hit]:
    """The batch has become one tight cluster and a single far, nearly orthogonal sample, or a few of them.

    This is what recentring + ReLU without per-neuron rescaling does to a batch of 7 samples or more; with rescaling
    (complete batch norm) the state is unstable and the batch becomes equiangular instead. The odd sample never changes
    once it has separated, it is decided by the inputs' distances from their mean and by the weights.

    With S = P G P the centred Gram matrix, R2 = max_i n/(n-1) S_ii / tr S is the share of the centred energy that is
    "one sample against the mean of the others". Fires when R2 ≥ 0.8 and the others' coherence |m|² / (|m|² + W²) ≥ 0.6
    (m their mean, W² their mean squared distance from it), from some layer to the end; for more than 50 samples also
    when no second sample has a tenth of that share and the odd one lies 10 spreads away. Never below 7 samples, nor
    where it is nearer to m than |m| / 2: in a collapsed batch some sample always differs most.

    Several odd samples, 2 to n/8, together or each by itself, live long in large batches (two grow apart by 1 + 2/n a
    layer). They are the most for which each lies 10 spreads W and half of |m| away from m, off its ray (cosine below
    0.98: on it they are of a rank collapse), the others' coherence is 0.85, and none of these is a third as far from
    the middle. It takes their number from a layer to the end. Silent where the loss is below that of a constant answer
    already: trained nets bring a rare class together.

    Reference: Nachum, Bondaschi, Gastpar, Khina 2024 (the phenomenon); the detector and its thresholds are ours.
    """
    if view.samples < 7:
        return
    several = _several_odd(view)
    if several:
        yield several
        return
    scores = view.hidden("odd_point_score")
    counted = {(r.layer, r.call): r.value for r in view.hidden("odd_samples")}
    at = {m: {(r.layer, r.call): r.value for r in view.hidden(m)} for m in _ODD}
    odd = []
    for r in scores:
        coherence, separation, margin, index = (at[m].get((r.layer, r.call), math.nan) for m in _ODD)
        strong = r.value >= 0.8 or (view.samples > 50 and margin >= 0.9 and separation >= 10)
        apart = counted.get((r.layer, r.call), 1) > 0
        odd.append((r, strong and coherence >= 0.6 and apart, coherence, index))
    if not odd or not odd[-1][1]:
        return
    start = odd[-1]
    for item in reversed(odd):
        if not item[1] or item[3] != odd[-1][3]:
            break
        start = item
    last, _, coherence, index = odd[-1]
    yield Hit(
        start[0],
        "odd_point_score",
        last.value,
        0.8,
        f"from {where(start[0])} on, sample {index:.0f} stands against the other {view.samples - 1}: it has "
        f"{last.value:.1%} of the centred energy at the end, the others' coherence is {coherence:.2f}",
    )


def _several_odd(view: View) -> Hit | None:
    """The finding of two odd samples or more; a warning where the batch came so, or with samples of very unequal
    length.
    """
    counts, which = view.hidden("odd_samples"), view.facts.get("odd_samples", ())
    loss = view.section("loss")
    if not counts or len(which) < 2 or loss.get("value", 0.0) < 0.8 * loss.get("constant", 0.0):
        return None
    start = settles(counts, lambda k: k == len(which))
    if start is None:
        return None
    names = ", ".join(map(str, which[:-1])) + f" and {which[-1]}"
    return Hit(
        start,
        "odd_samples",
        len(which),
        1,
        f"from {where(start)} on, samples {names} stand against the other {view.samples - len(which)}, which are one "
        "cluster",
        "warning" if view.at_input("odd_samples") == len(which) or view.at_input("norm_spread") > 1 else "error",
    )


_ODD = ("odd_point_coherence", "odd_point_separation", "odd_point_margin", "odd_point_index")


@rule(
    "NS104",
    "directions lost",
    severity="info",
    meaning="The batch keeps a healthy average rank, but some directions are gone in float32: those contrasts "
    "cannot be learnt.",
    cure="Use a batch of at most about 1.8 sqrt(width) samples to look at, or a wider net, if every direction matters.",
    source="daneshmand2021: full rank is kept iff n is below about 1.8 sqrt(width) (our measurement, linear "
    "batch norm)",
)
def directions_lost(view: View) -> Iterator[Hit]:
    """Fewer directions than samples survive in float32, though the participation rank is healthy.

    Random nets with batch norm keep full rank iff the batch is not larger than about 1.8 to 2 times sqrt(width); beyond
    that small directions decay exponentially with depth while the orthogonality gap looks healthy. Fires when the
    numerical rank in float32 falls, from its largest value along the net, below 95 % of min(n - 1, d) at the last
    hidden layer of a net with batch norm that has no rank collapse.

    Reference: Daneshmand, Joudaki, Bach 2021, section 3 (assumption A1, d = Ω(n²)).
    """
    ranks = view.hidden("numerical_rank_float32")
    if not ranks or not view.facts.get("batch_norms") or view.hidden("participation_rank")[-1].value < RANK_END:
        return
    best, last = max(r.value for r in ranks), ranks[-1]
    if last.value < 0.95 * min(best, view.samples - 1):
        limit = 0.95 * min(best, view.samples - 1)
        start = settles(ranks, lambda v: v < limit)
        text = (
            f"float32 sees rank {last.value:.0f} of {view.samples} samples at {where(last)}; it was {best:.0f} before"
        )
        yield Hit(start, "numerical_rank_float32", last.value, limit, text)


@rule(
    "NS105",
    "signal scale drifts",
    severity="warning",
    meaning="Activations grow or shrink layer by layer, and gradients with them: no single learning rate fits "
    "all layers.",
    cure="Match the gain of the weights to the activation (sqrt(2 / fan_in) for ReLU), or add a norm; "
    "`normscope cure MODEL --how lsuv` sets every layer's scale on a batch.",
    source="trained nets (docs/findings.md)",
)
def signal_scale(view: View) -> Iterator[Hit]:
    """The root mean square activation changes more than a hundredfold between the first and the last hidden layer.

    A plain layer multiplies the mean square by gain² E φ(u)² / E u²: 1 for ReLU with weights N(0, 2/fan_in), 1/2 with
    N(0, 1/fan_in), which is 10⁻¹⁰ in the rms after 64 layers. Biases put a floor under it, and then the signal is the
    bias, not the input.

    Reference: He, Zhang, Ren, Sun 2015.
    """
    zero = set(view.section("wiring").get("zero_layers", []))
    curve = [r for r in view.hidden("rms") if not math.isnan(r.value) and r.name not in zero]
    alive = max((i for i, r in enumerate(curve) if r.value > 0), default=0)
    # A zero with a signal behind it is beside the chain: a table or a branch that starts at zero.
    curve = [r for i, r in enumerate(curve) if r.value > 0 or i > alive]
    if len(curve) < 2 or curve[0].value == 0:
        return
    first, last = curve[0].value, curve[-1].value
    factor = last / first
    if factor > SCALE or factor < 1 / SCALE:
        start = settles(curve, lambda v: (v > SCALE * first) if factor > 1 else (v < first / SCALE))
        verb = "grows" if factor > 1 else "shrinks"
        severity = "error" if not 1e-6 < factor < 1e6 else "warning"
        yield Hit(
            start,
            "rms",
            factor,
            SCALE if factor > 1 else 1 / SCALE,
            f"the rms activation {verb} from {amount(first)} to {amount(last)} over {len(curve)} layers",
            severity,
        )


@rule(
    "NS106",
    "tokens merge",
    severity="warning",
    meaning="The deep layers hold nearly the same vector for every token of a sequence (node of a graph), so what "
    "belongs to one token cannot be learnt.",
    cure="Put a skip connection round each layer, its branch scaled by 1/sqrt(depth): x = x + depth**-0.5 * "
    "attention(norm(x)), norms inside the branch (norm_first=True); or fewer layers (a graph net: 2 or 3).",
    source="chosen by us: none of our nets with three merged blocks learnt a class of each token from fresh batches in "
    "200 steps of Adam (one batch of 256 tokens some do learn by heart)",
)
def tokens_merge(view: View) -> Iterator[Hit]:
    """The tokens within a sequence have become one vector, from some layer to the last hidden one.

    Measured by `token_cosine`: the mean cosine between two tokens of a sequence, the median over sequences. Attention
    is a weighted mean over tokens, nearly uniform at the start, and a mean leaves of n independent vectors one; without
    skip connections 1 - cosine falls doubly exponentially with depth (Dong et al. 2021). Skips slow it, branches
    scaled by 1/sqrt(depth) stop it (Noci et al. 2022); norms after the addition weaken the skip. In a graph net the
    normalized adjacency is the mean (oversmoothing); where the samples are the nodes of one graph (a constant matrix
    (n, n) is multiplied with them) the mean cosine between samples is read.

    Fires where 1 - cosine stays below 0.02 for three blocks or more, and some layer before had more than
    0.1 (tokens that were alike from the start, by padding or repetition, are none of the network's doing), and where
    their differences have shrunk to a fifth in absolute terms, too: a skip connection without a norm behind it can keep
    them while what they have in common grows. Error where it is
    below 1e-9 for eight blocks and the outputs are one for each token. Silent where the loss is below that of a
    constant answer already (trained language models have one large common direction), at recurrent layers, whose
    neighbouring states are alike, and at channels.

    References: Dong, Cordonnier, Loukas 2021; Noci, Anagnostidis, Biggio, Orvieto, Singh, Lucchi 2022; Oono, Suzuki
        2020 (graphs).
    """
    loss, curve = view.section("loss"), view.hidden("token_cosine")
    metric = "token_cosine"
    if not curve and view.section("calls").get("graph"):
        metric, curve = "mean_cosine", [r for r in view.hidden("mean_cosine") if view.width(r) > 1]
    curve = [r for r in curve if r.kind not in ("RNN", "LSTM", "GRU")]
    start = settles(curve, lambda cosine: 1 - cosine < MERGED)
    if start is None or loss.get("value", 0.0) < 0.8 * loss.get("constant", 0.0):
        return
    merged = [r for r in curve[curve.index(start) :] if not math.isnan(r.value)]
    first = min((r.value for r in curve[: curve.index(start)]), default=1.0)
    blocks = _blocks(merged)
    if 1 - first < ALIKE or blocks < BLOCKS_WARNING or _kept(view, curve, start) > SHRUNK:
        return
    gone = settles(merged, lambda cosine: 1 - cosine < ROUNDING)
    lost = gone is not None and _blocks(merged[merged.index(gone) :]) >= BLOCKS_ERROR
    each = len(view.curve("token_cosine")) > len(view.hidden("token_cosine"))
    what = "tokens of a sequence" if metric == "token_cosine" else "nodes of the graph"
    yield Hit(
        start,
        metric,
        merged[-1].value,
        1 - MERGED,
        f"from {where(start)} on, {blocks} blocks deep, the {what} are one vector: the mean cosine between them is "
        f"{first:.2g} at first, and ends at 1 - {1 - merged[-1].value:.1e}",
        "error" if lost and each else "warning",
    )


def _blocks(records: list[Record]) -> int:
    """How many repeated blocks the records are of: the most that hold one kind of layer, by the first number of a name
    and what is before it; calls of one block count each.
    """
    of: dict[tuple[str, str], set[tuple[str, int]]] = {}
    for r in records:
        block = (re.match(r"\D*\d+", r.name) or [r.name])[0]
        of.setdefault((block.rstrip("0123456789_"), r.kind), set()).add((block, r.call))
    return max(map(len, of.values()), default=0)


def _kept(view: View, curve: list[Record], start: Record) -> float:
    """The size of the differences between tokens at the last layer whose like ran before ``start``, over that of its
    first like; 0 where none did.
    """
    scale = {(r.layer, r.call): r.value for r in view.hidden("rms")}
    before: dict[str, float] = {}
    for r in curve[: curve.index(start)]:
        before.setdefault(_role(r), scale.get((r.layer, r.call), 0.0) * math.sqrt(max(1 - r.value, 0.0)))
    for r in reversed(curve[curve.index(start) :]):
        if before.get(_role(r), 0.0) > 0 and not math.isnan(r.value):
            size = scale.get((r.layer, r.call), 0.0) * math.sqrt(max(1 - r.value, 0.0))
            return size / before[_role(r)]
    return 0.0


def _role(r: Record) -> str:
    return re.sub(r"\d+", "#", r.name)


def _short(*values: float) -> str:
    return next((f"{v:.3g}" for v in values if not math.isnan(v)), "")
