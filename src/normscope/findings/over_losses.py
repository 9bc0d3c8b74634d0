"""NS92x: what the curves of a training say: its losses, the validation's, the learning rate."""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from normscope.findings._rules import Hit, rule
from normscope.findings.course import FEW, SPAN, Course, Missing, Series

#: How near to ln C the loss of a guess among C classes is, and for which C: those of more are too close to each other.
NEAR, CLASSES = 0.005, (*range(2, 21), 100, 1000)
#: Falls that may come before a rest at ln C: outputs that start too large.
FALLEN = 0.3
#: The part of what was gained that is lost again.
LOST = 0.5
#: How much the validation's loss rises above its least, over that.
RISEN = 0.1
#: Jumps over the neighbours: in robust standard deviations, in parts of the loss there, of the loss at the start.
JUMP, JUMP_HERE, JUMP_START = 10.0, 0.5, 0.2


@rule(
    "NS921", "loss diverges", severity="error", over="steps",
    meaning="The loss ends far above its start, or loses what it had gained: the steps do not lead downhill.",
    cure="Lower the learning rate tenfold, warm up, or clip the gradients; look at the batches where it begins.",
    source="chosen by us: twice the loss of the start is beyond the noise of batches",
)  # fmt: skip
def diverges(course: Course) -> Iterator[Hit]:
    """The median of the last fifth of the losses is above that of the first by its own size and by four times its
    spread (error); or half of what was gained at the best, by a running median, is lost again (warning).
    """
    loss = course.scalar("loss")
    start, end = loss.start, loss.tail
    spread = float(np.ptp(loss.values[: loss.edge])) if start == loss.head else 0.0
    smooth = _smooth(loss.values)
    best = int(np.argmin(smooth))
    gain, lost = start - smooth[best], end - smooth[best]
    if end > start + max(abs(start), 4 * spread):
        step = _after(loss, loss.values > start + max(abs(start), spread), best)
        text = f"the loss ends at {end:.3g}, above the {start:.3g} of the start,"
        yield _hit(course, "loss", end, start + max(abs(start), 4 * spread), step, text)
    elif gain > max(0.1 * abs(start), 4 * loss.noise) and lost > max(LOST * gain, 4 * loss.noise):
        step = _after(loss, smooth > smooth[best] + LOST * gain, best)
        text = f"the loss rises again from {smooth[best]:.3g} to {end:.3g}, having started at {start:.3g},"
        yield _hit(course, "loss", end, smooth[best] + LOST * gain, step, text, "warning")


@rule(
    "NS922", "loss does not fall", severity="warning", over="steps",
    meaning="After all these steps the net is no better than at its start, or than a guess that knows no input.",
    cure="Run `normscope why train.py` or `normscope diagnose`: labels that are shuffled apart, a layer that is never "
    "moved, a rate far too large or too small, a collapse.",
    source="chosen by us: medians of batches' losses stray by less than 2 %; a loss at ln C is that of equal odds",
)  # fmt: skip
def plateau(course: Course) -> Iterator[Hit]:
    r"""The median of the last fifth of the losses is below that of the first by less than 2 %, or than their noise; or
    the loss rests, over its last half, within 0.5 % of $\ln C$ (C up to 20, 100, 1000), the cross-entropy of equal
    odds, having fallen by less than 30 %. At least ten losses over 40 steps.
    """
    loss = course.scalar("loss")
    if course.unit == "step" and loss.steps[-1] - loss.steps[0] < SPAN:
        raise Missing(f"losses over {SPAN} steps at least")
    start, end = loss.start, loss.tail
    gain, size = start - end, abs(start) or 1.0
    half = Series(loss.steps[len(loss.steps) // 2 :], loss.values[len(loss.steps) // 2 :])
    classes = next((c for c in CLASSES if abs(end - math.log(c)) < NEAR * math.log(c)), None)
    rests = abs(half.head - half.tail) <= max(NEAR * size, half.noise)
    guess = f": that of a guess, ln {classes} = {math.log(classes):.3f}," if classes and rests else ""
    if course.still(loss) and end <= start + size:
        first = int(loss.steps[0])
        yield _hit(course, "loss", end, start - 0.02 * size, first, f"the loss stays at {end:.3g}{guess or ','}")
    elif guess and 0 <= gain < FALLEN * size:
        step = _after(loss, np.abs(_smooth(loss.values) - end) < 2 * NEAR * size, 0)
        yield _hit(course, "loss", end, math.log(classes or 1), step, f"the loss rests at {end:.4g}{guess}")


@rule(
    "NS923", "validation rises while training falls", severity="warning", over="steps",
    meaning="The net learns by heart what does not hold for other data: later weights are worse than earlier ones.",
    cure="Keep the weights of the least validation loss (early stopping); more data, augmentation, dropout or weight "
    "decay.",
    source="chosen by us: a tenth above its least is beyond the noise of a validation set",
)  # fmt: skip
def overfits(course: Course) -> Iterator[Hit]:
    """The median of the last fifth of the validation's losses (three at least) is above the least of their running
    medians by a tenth of it and by twice the noise, while the training's loss fell since. At least six validations.
    """
    valid, loss = course.scalar("val_loss", 2 * FEW), course.scalar("loss", 2 * FEW)
    smooth = _smooth(valid.values)
    best = int(np.argmin(smooth))
    lowest = slice(max(best - 1, 0), best + 2)
    step = int(valid.steps[lowest][np.argmin(valid.values[lowest])])
    rise = valid.tail - smooth[best]
    near = np.argsort(np.abs(loss.steps - step), kind="stable")[: loss.edge]
    falls = loss.tail < float(np.median(loss.values[near]))
    if best < len(smooth) - FEW and falls and rise > max(RISEN * abs(smooth[best]), 2 * valid.noise):
        text = f"the validation's loss rises from {smooth[best]:.3g} to {valid.tail:.3g} while the training's falls,"
        yield _hit(course, "val_loss", valid.tail, (1 + RISEN) * smooth[best], step, text)


@rule(
    "NS924", "learning rate is zero", severity="warning", over="steps",
    meaning="Steps at rate zero change nothing.",
    cure="Look at the schedule: its number of steps, whether it is stepped once a batch or once an epoch, and whether "
    "its warm-up ever ends.",
    source="chosen by us: a tenth of the steps; a warm-up starts, and a decay ends, with a single one",
)  # fmt: skip
def rate_is_zero(course: Course) -> Iterator[Hit]:
    """The rate is exactly zero in a tenth of the steps it is known of, and at least three of them."""
    rate = course.scalar("lr", FEW)
    zero = rate.values == 0
    if zero.sum() >= max(FEW, 0.1 * len(zero)):
        text = f"the learning rate is 0 in {zero.sum()} of {len(zero)} logged steps,"
        yield _hit(course, "lr", 0.0, 0.0, rate.first(zero), text, "error" if zero.all() else "")


@rule(
    "NS925", "loss jumps", severity="info", over="steps",
    meaning="Single steps throw the net back: batches unlike the others, or a rate at the edge of what is stable.",
    cure="Clip the gradients, lower the learning rate a little, or look at the batches of these steps.",
    source="chosen by us: beyond ten standard deviations batches do not stray by chance",
)  # fmt: skip
def jumps(course: Course) -> Iterator[Hit]:
    """A loss lies above the median of its eleven neighbours by ten robust standard deviations of such differences, by
    half of that median, and by a fifth of the loss at the start.
    """
    loss = course.scalar("loss", 2 * LOSSES_OF_A_JUMP)
    middle = _smooth(loss.values, LOSSES_OF_A_JUMP)
    over = loss.values - middle
    scale = 1.4826 * float(np.median(np.abs(over)))
    bound = np.maximum.reduce([JUMP * scale + 0 * middle, JUMP_HERE * np.abs(middle), JUMP_START * abs(loss.head)
                               + 0 * middle])  # fmt: skip
    bad = over > bound
    bad[: loss.edge] = False  # the start may be anything
    places = int(bad[0]) + int(np.sum(bad[1:] & ~bad[:-1]))
    if places:
        i = int(np.argmax(over))
        text = (
            f"the loss jumps {places} time{'s' * (places > 1)}, at most from {middle[i]:.3g} to {loss.values[i]:.3g},"
        )
        yield _hit(course, "loss", loss.values[i], middle[i] + bound[i], loss.first(bad), text)


#: Neighbours of a loss.
LOSSES_OF_A_JUMP = 11


def _hit(course: Course, metric: str, value: float, bound: float, step: int, text: str, severity: str = "") -> Hit:
    return Hit(None, metric, float(value), float(bound), f"{text} from {course.unit} {step} on", severity, step=step)


def _smooth(values: np.ndarray, width: int = 0) -> np.ndarray:
    """Running medians, as wide as a tenth of the values, three at least."""
    wide = width or max(FEW, len(values) // 10) | 1
    padded = np.pad(values, wide // 2, mode="edge")
    return np.median(np.lib.stride_tricks.sliding_window_view(padded, wide), axis=-1)


def _after(s: Series, bad: np.ndarray, start: int) -> int:
    """The step from which on it stays bad, not before ``start``."""
    bad = bad.copy()
    bad[:start] = False
    good = np.flatnonzero(~bad)
    at = min(int(good[-1]) + 1 if len(good) else 0, len(bad) - 1)
    return int(s.steps[at])
