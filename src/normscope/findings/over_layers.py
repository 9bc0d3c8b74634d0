"""NS91x: what goes wrong in the layers while a net trains."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

import numpy as np

from normscope.findings._rules import Hit, rule
from normscope.findings.course import FEW, Course, Missing, Series, place

#: Participation rank at and below which a layer holds one direction: `normscope.findings.geometry.RANK_END`.
COLLAPSED = 1.03
#: Shares of dead units: as NS301, and how much more they must be than at the start.
DEAD, ALL_DEAD, GROWN = 0.75, 0.99, 0.2
#: The gradient at the end over that at the start; a single step's over the usual one; over the weights, from the start.
EXPLODED, SPIKE, BEYOND = 100.0, 1000.0, 1000.0
#: The gradient at the end over that at the start, and a layer's, over its weights, beside that of the largest.
VANISHED, UNHEARD = 1e-3, 1e-6
#: A step over the weights: of the middle layer, of one layer, of the middle one at the first step; what is no step.
LARGE, ONE_LARGE, FIRST, SMALL = 0.1, 0.3, 1.0, 1e-6
#: The norm of all weights at the end over that at the start.
SHRUNK = 0.5
#: The gradient of a layer over that of the others from which on it moves its weights, whatever the rounding.
PULLED = 1e-3


def _hit(course: Course, s: Series, metric: str, value: float, bound: float, step: int, text: str,
         severity: str = "") -> Hit:  # fmt: skip
    from normscope.core.records import Record

    at = None if s.layer is None else Record(s.layer, metric, value, name=s.name, kind=s.kind)
    return Hit(at, metric, value, bound, f"{text} from {course.unit} {step} on", severity, step=step)


@rule(
    "NS911", "numbers stop being finite", severity="error", over="steps",
    meaning="The training overflowed, and what is not finite never becomes a number again.",
    cure="Lower the learning rate, clip the gradients (clip_grad_norm_), warm up, or look at the layer named here: a "
    "logarithm or a division of zero, a number format that is too narrow.",
    source="IEEE 754",
)  # fmt: skip
def not_finite(course: Course) -> Iterator[Hit]:
    """The first step at which an output, a gradient, a weight or the loss is NaN or infinite, and the first layer in
    the order of the forward pass (for gradients: the first on the way back). A note where the numbers become finite
    again, as after a step that a GradScaler leaves out.
    """
    looked = False
    found: list[tuple[int, int, Series, str, bool]] = []
    for order, (metric, signal) in enumerate(
        (("weight_norm", "weight"), ("rms", "activation"), ("loss", "run"), ("gradient_norm", "gradient"),
         ("gradient_norm", "weight"), ("grad_norm", "run"))
    ):  # fmt: skip
        every = list(course.of(signal, metric).values())
        looked |= bool(every)
        for s in reversed(every) if metric == "gradient_norm" else every:
            bad = ~np.isfinite(s.values)
            if bad.any():
                found.append((s.first(bad), order, s, metric, bool(bad[-1])))
    if not looked:
        raise Missing("norms of the layers, or a loss")
    if not found:
        return
    step, _, s, metric, stays = min(found, key=lambda f: f[:2])
    seen = min((f for f in found if f[2].layer is not None), key=lambda f: f[:2], default=None)
    what = {"weight_norm": "the weights of ", "rms": "the output of ", "gradient_norm": "the gradient of "}
    words = {"loss": "the loss", "grad_norm": "the gradient norm"}.get(metric) or what[metric] + place(s)
    stays |= any(still for *_, still in found)
    text = f"{words} is not finite" if stays else f"{words} was not finite for a while,"
    if s.layer is None and seen is not None:
        text = f"{text} (of the layers {what[seen[3]]}{place(seen[2])} first, at the measured {course.unit} {seen[0]})"
        s = seen[2]
    yield _hit(course, s, metric, math.nan, math.inf, step, text, "error" if stays else "info")


@rule(
    "NS912", "representation collapses", severity="warning", over="steps",
    meaning="While it trains the net comes to see nearly the same vector for every input, so that no layer behind can "
    "tell them apart.",
    cure="Lower the learning rate or warm up; put a norm before the activations; lower the weight decay; look at "
    "`normscope diagnose` if it is so from the first step.",
    source="that of NS101, chosen by us: of 361 nets those that ended below it at the start did not train",
)  # fmt: skip
def collapses(course: Course) -> Iterator[Hit]:
    r"""The participation rank of hidden outputs, $\mathrm{tr}(G)^2/\|G\|_F^2$, is at most 1.03 at the end (median of
    the last fifth of the measured steps), in a layer and in all hidden ones behind it.

    A note where the loss falls: features of a regression, or of two classes, may end on one line.
    """
    ranks = [s.finite for s in course.hidden("participation_rank")]
    low = [len(s.values) >= FEW and s.tail <= COLLAPSED for s in ranks]
    start = next((i for i in range(len(ranks)) if all(low[i:])), None)
    if start is not None:
        s = ranks[start]
        step = _onset(s, s.values <= COLLAPSED)
        text = f"the participation rank is {s.tail:.3g} in {place(s)} and behind it (at first {s.values[0]:.3g})"
        text += f"{course.aside},"
        yield _hit(course, s, "participation_rank", s.tail, COLLAPSED, step, text, course.severity("error"))


@rule(
    "NS913", "units die", severity="warning", over="steps",
    meaning="More and more units are zero for every sample, get no gradient and do not come back.",
    cure="Lower the learning rate or warm up; use leaky ReLU or GELU, or a norm before the activation.",
    source="chosen by us: the bounds of NS301, and a fifth more than at the start, which chance does not reach",
)  # fmt: skip
def units_die(course: Course) -> Iterator[Hit]:
    """At the end (median of the last fifth of the measured steps) at least 75 % of a layer's units are exactly zero for
    every sample that was looked at, 20 points more than at the start. An error from 99 % on where the loss does not
    fall, as nothing passes; a note where it falls.
    """
    shares = [s.finite for s in course.layers("dead_units")]
    worst = [s for s in shares if len(s.values) >= FEW and s.tail >= DEAD and s.tail >= s.values[0] + GROWN]
    if worst:
        s = worst[0]
        most = max(x.tail for x in worst)
        text = f"{s.tail:.0%} of the units of {place(s)} are zero for all samples, {s.values[0]:.0%} at first"
        text += f"{course.aside},"
        severity = course.severity("error" if most >= ALL_DEAD else "warning")
        yield _hit(course, s, "dead_units", s.tail, DEAD, _onset(s, s.values >= DEAD), text, severity)


@rule(
    "NS914", "gradients explode over the steps", severity="warning", over="steps",
    meaning="The gradient grows while it trains, or is so large that a usual step throws the weights away.",
    cure="Clip the gradients (clip_grad_norm_(model.parameters(), 1.0)), lower the learning rate, warm up; of a "
    "recurrent net start its matrix orthogonal, or take a gated cell.",
    source="chosen by us: no healthy net of ours grows by more than 30, and a step at rate 0.001 then moves a layer by "
    "more than its own size",
)  # fmt: skip
def explode(course: Course) -> Iterator[Hit]:
    r"""The norm of the gradient of all weights, $g_t$, has at the end (median of the last fifth) 100 times its size at
    the start; or one step has 1000 times the median of all; or a layer's gradient over its weights is above 1000 at the
    start already. A note where the loss falls.
    """
    g = course.gradient()
    severity = course.severity("error")
    if len(g.values) < 2 * FEW:
        raise Missing("more measured gradients")
    if g.head > 0 and g.tail >= EXPLODED * g.head:
        step = _onset(g, g.values >= EXPLODED * g.head)
        s = _worst(course, step) or g
        text = f"the gradient is {g.tail / g.head:.3g} times that of the start, most at {_where(s)}{course.aside},"
        yield _hit(course, s, "gradient_norm", g.tail / g.head, EXPLODED, step, text, severity)
        return
    usual = float(np.median(g.values))
    if usual > 0 and g.values.max() >= SPIKE * usual:
        step = g.first(g.values >= SPIKE * usual)
        s = _worst(course, step) or g
        text = f"the gradient of one step is {g.values.max() / usual:.3g} times the usual one{course.aside}, first"
        yield _hit(course, s, "gradient_norm", g.values.max() / usual, SPIKE, step, text, severity)
        return
    if course.of("weight", "relative_gradient"):
        heads = [s.finite for s in course.layers("relative_gradient", "weight")]
        over = [s for s in heads if len(s.values) >= FEW and s.head > BEYOND and float(np.median(s.values)) > BEYOND]
        if len(over) * 2 > len(heads):
            s = max(over, key=lambda s: s.head)
            text = f"the gradient of {place(s)} is {s.head:.3g} times its weights{course.aside},"
            yield _hit(course, s, "relative_gradient", s.head, BEYOND, int(s.steps[0]), text, severity)


@rule(
    "NS915", "gradients vanish over the steps", severity="warning", over="steps",
    meaning="The first layers get next to no gradient although the outputs are still wrong: they stay as they are.",
    cure="Use a norm, skip connections, or an activation that does not saturate; look at `normscope diagnose` if it is "
    "so from the first step; lower the learning rate if it is not.",
    source="chosen by us: healthy nets lose that much only with their loss",
)  # fmt: skip
def vanish(course: Course) -> Iterator[Hit]:
    r"""At the end (median of the last fifth) the norm of the gradient of all weights is at most 0.001 of that at the
    start; or the gradient over the weights is, from the first layer up to one, below one millionth of that of the
    largest. Not judged where the loss has fallen: its gradient falls with it.
    """
    g = course.gradient()
    if course.learnt:
        return
    if len(g.values) >= 2 * FEW and g.head > 0 and g.tail <= VANISHED * g.head:
        step = _onset(g, g.values <= VANISHED * g.head)
        text = f"the gradient is {g.tail / g.head:.2g} of that of the start{course.aside},"
        yield _hit(
            course, g, "gradient_norm", g.tail / g.head, VANISHED, step, text, course.severity("warning", "info")
        )
        return
    if not course.of("weight", "relative_gradient"):
        return
    all_ = [s.finite for s in course.layers("relative_gradient", "weight")]
    all_ = [s for s in all_ if len(s.values) >= FEW and "mbedding" not in s.kind]
    most = max((s.tail for s in all_), default=0.0)
    if len(all_) > 2 and most > 0 and all_[0].tail < UNHEARD * most:
        last = next((a for a, b in itertools.pairwise(all_) if b.tail >= UNHEARD * most), all_[0])
        s = all_[0]
        text = (
            f"up to {place(last)} the gradient over the weights is below {UNHEARD:g} of the largest: "
            f"{s.tail:.2g} in {place(s)}, {most:.2g} at most{course.aside},"
        )
        peak = max(all_, key=lambda s: s.tail)
        small = min(len(s.values), len(peak.values))
        step = _onset(s, s.values < UNHEARD * peak.values[-small:].max())
        yield _hit(course, s, "relative_gradient", s.tail, UNHEARD * most, step, text)


@rule(
    "NS916", "steps too large for the weights", severity="warning", over="steps",
    meaning="Every step moves the weights by a large part of themselves: what was learnt is written over.",
    cure="Lower the learning rate tenfold (`normscope sharpness MODEL --rates` tries some), or warm up.",
    source="chosen by us: nets that train move by 0.001 to 0.01 of their weights a step",
)  # fmt: skip
def steps_too_large(course: Course) -> Iterator[Hit]:
    r"""$\|w_{t+1}-w_t\|/\|w_t\|$ of a layer's parameters, by the median over the measured steps: above 0.1 in the
    middle layer, or above 0.3 in one; or above 1 in the middle layer at the first measured step (Adam's steps are as
    large as the rate: the weights grow until these are small). Norms are left out. A note where the loss falls.
    """
    moves = [s.finite for s in course.layers("relative_update", "weight", least=2 * FEW)]
    sizes = [(float(np.median(s.values)), s) for s in moves if len(s.values) >= 2 * FEW and not _norm(s)]
    if not sizes:
        return
    worst, s = max(sizes, key=lambda m: m[0])
    middle = float(np.median([m for m, _ in sizes]))
    at_first = float(np.median([s.values[0] for _, s in sizes]))
    if at_first > FIRST and middle <= LARGE and worst <= ONE_LARGE:
        s = max((s for _, s in sizes), key=lambda s: s.values[0])
        text = f"a step moves the middle layer by {at_first:.3g} times its weights, most {place(s)}{course.aside},"
        yield _hit(course, s, "relative_update", at_first, FIRST, int(s.steps[0]), text, course.severity("error"))
    elif middle > LARGE or worst > ONE_LARGE:
        text = f"a step moves {place(s)} by {worst:.2g} of its weights, the middle layer by {middle:.2g}{course.aside},"
        step = s.first(s.values > LARGE)
        yield _hit(course, s, "relative_update", worst, ONE_LARGE if worst > ONE_LARGE else LARGE, step, text,
                   course.severity("error"))  # fmt: skip


@rule(
    "NS917", "steps too small for the weights", severity="warning", over="steps",
    meaning="At this pace it would take a million steps to change any layer: the net stays at its start.",
    cure="Raise the learning rate; look whether a schedule takes it away, whether the gradients are cut to nothing, "
    "and whether optimizer.step() is reached.",
    source="chosen by us: ten roundings of float32",
)  # fmt: skip
def steps_too_small(course: Course) -> Iterator[Hit]:
    r"""$\|w_{t+1}-w_t\|/\|w_t\|$ is below one millionth in every layer, by the median over the measured steps; or the
    norm of no layer's weights ever changes (an error). Not judged where the loss has fallen.
    """
    norms = [s for s in course.layers("weight_norm", "weight") if len(s.values) >= FEW]
    if norms and all(len(set(s.values.tolist())) == 1 for s in norms):
        s = norms[0]
        text = f"the weights of all {len(norms)} layers that get a gradient stay the same"
        yield _hit(course, s, "weight_norm", 0.0, SMALL, int(s.steps[0]), text, "error")
        return
    moves = [s.finite for s in course.layers("relative_update", "weight")]
    sizes = [(float(np.median(s.values)), s) for s in moves if len(s.values) >= FEW]
    if sizes and not course.learnt and (most := max(sizes, key=lambda m: m[0]))[0] < SMALL:
        s = most[1]
        text = f"a step moves no layer by more than {most[0]:.2g} of its weights{course.aside},"
        yield _hit(course, s, "relative_update", most[0], SMALL, _onset(s, s.values < SMALL), text)


@rule(
    "NS918", "weight decay wins", severity="warning", over="steps",
    meaning="The weights shrink to nothing while the loss does not fall: decay pulls harder than the gradient.",
    cure="Lower the weight decay tenfold, and leave it off biases and norms.",
    source="chosen by us: healthy nets of ours keep more than two thirds of their norm in their first 200 steps",
)  # fmt: skip
def decay_wins(course: Course) -> Iterator[Hit]:
    r"""The norm of all weights, $\sqrt{\sum_l\|w_l\|^2}$, is at the end (median of the last fifth of the measured
    steps) at most half of that at the first step, and the loss has not fallen.
    """
    parts = [s for s in course.layers("weight_norm", "weight") if len(s.finite.values) == len(s.values)]
    longest = max((len(s.values) for s in parts), default=0)
    parts = [s for s in parts if len(s.values) == longest and s.values[0] > 0]
    if not parts or course.learnt:
        return
    whole = Series(parts[0].steps, np.sqrt(sum(s.values**2 for s in parts)))
    if whole.tail <= SHRUNK * whole.values[0]:
        s = min(parts, key=lambda s: s.tail / s.values[0])
        step = _onset(whole, whole.values <= SHRUNK * whole.values[0])
        severity = course.severity("error")
        text = (
            f"the norm of all weights falls from {whole.values[0]:.3g} to {whole.tail:.3g}, most in {place(s)}"
            f"{course.aside},"
        )
        yield _hit(course, s, "weight_norm", whole.tail / whole.values[0], SHRUNK, step, text, severity)


@rule(
    "NS919", "a layer does not move", severity="warning", over="steps",
    meaning="This layer gets a gradient and stays exactly as it was, while others move.",
    cure="Give its parameters to the optimizer (build it after the layers and after model.to(device)), or set "
    "requires_grad_(False) if it is meant to stay.",
    source="chosen by us: three measured steps without any change; none is left to chance",
)  # fmt: skip
def does_not_move(course: Course) -> Iterator[Hit]:
    """Between each measured step and the next one no entry that was looked at changes, in all measured steps and at
    least three, while other layers move, though the layer's gradient is not below a thousandth of theirs (which may be
    lost to rounding). Embeddings are left out: only rows that are used move.
    """
    moves = [s.finite for s in course.layers("relative_update", "weight", least=FEW)]
    pulls = {s.layer: s.finite.tail for s in course.of("weight", "gradient_norm").values()}
    usual = float(np.median([pulls[s.layer] for s in moves if s.values.any() and s.layer in pulls] or [0.0]))
    still = [
        s for s in moves
        if len(s.values) >= FEW and not s.values.any() and "mbedding" not in s.kind
        and pulls.get(s.layer, math.inf) > PULLED * usual
    ]  # fmt: skip
    if still and len(still) < len(moves):
        s = still[0]
        more = f" and {len(still) - 1} more" if len(still) > 1 else ""
        text = f"no step moves {place(s)}{more}, though a gradient comes,"
        yield _hit(course, s, "relative_update", 0.0, 0.0, int(s.steps[0]), text)


def _onset(s: Series, bad: np.ndarray) -> int:
    """The step from which on most is bad: single better ones at the end do not hide when it began."""
    run = np.cumsum(np.where(bad[::-1], 1, -3))
    return int(s.steps[len(bad) - 1 - int(np.argmax(run))])


def _norm(s: Series) -> bool:
    """Whether a layer only scales and shifts: its few parameters start anywhere."""
    return "Norm" in s.kind


def _worst(course: Course, step: int) -> Series | None:
    """The layer with the largest gradient at a step."""
    at = [
        (float(v[0]), s) for s in course.of("weight", "gradient_norm").values() if len(v := s.values[s.steps == step])
    ]
    return max(at, key=lambda m: m[0] if math.isfinite(m[0]) else -1.0)[1] if at else None


def _where(s: Series) -> str:
    return "no layer that is known" if s.layer is None else place(s)
