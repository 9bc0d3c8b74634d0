"""NS40x: what one step of the user's own optimizer does, measured on copies."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator

from normscope.findings._rules import Hit, View, listed, rule

#: Steps in which a rate must not vanish (chosen by us).
SOON = 60
#: The share of the rate below which nothing is left of it.
GONE = 1e-3
#: Even rises of a rate, one an epoch, that make a warm-up which nobody means (chosen by us).
RISES = 50
#: A rate that rises to the end of a training and stays below this share of what it is to be (chosen by us).
RISEN = 0.5
SMALL, HALF = 1.5e-5, 0.5
#: The share of a new gradient that never gets into the momentum; an ``lr_decay`` that leaves a twentieth of the rate.
DAMPED, OWN_DECAY = 0.99, 19 / SOON
DECAY = 0.7
#: Groups of parameters, and the ratio of the first one's rate to the last one's, for a decay that is reversed.
STAIRS, STEEP = 3, 10.0
#: SGD's momentum beyond which no training goes (chosen by us).
MOMENTUM = 0.995
#: A share of the weights that no decay takes away in one step (chosen by us: AdamW's is 1e-5 to 1e-3).
RUSH = 0.02
#: How many times as large as the gradients of now those that an optimizer remembers may be.
REMEMBERED = 1e3


@rule(
    "NS403",
    "steps too small",
    severity="warning",
    meaning="The optimizer changes no layer by more than a hundred-thousandth a step: the loss hardly moves in "
    "thousands of steps.",
    cure="Raise the learning rate: optimizer = torch.optim.Adam(model.parameters(), lr=1e-3), or SGD from 0.01 to 0.1.",
    source="chosen by us: 1000 steps that all point one way then change the weights by 1.5 %; fine-tuning BERT "
    "at 1e-5 is at 2e-4",
)
def small_steps(view: View) -> Iterator[Hit]:
    """The largest relative change of a weight matrix in one step of the user's optimizer is below 1.5e-5.

    One step is taken on copies, with the gradient of this batch and the optimizer's own settings; momentum counts with
    its factor 1 / (1 - momentum), and of a warm-up the rate that it goes to. Or ``dampening`` keeps new gradients out
    of the momentum. Or one group of parameters has a rate below 1e-6 and a ten-thousandth of another group's. Not
    judged where wiring, loss or data are at fault, or ``eps`` makes the steps small (NS405).
    """
    u = view.section("update")
    group = u.get("slow_group")
    if group and group["rate"] < 1e-4 * group["largest"] and group["rate"] < 1e-6:
        text = (
            f"the parameter group of {listed(group['modules'])} has learning rate {group['rate']:.2g}, another one "
            f"{group['largest']:.2g}: it {'hardly moves' if group['rate'] else 'never moves'}, its rate is too small"
        )
        yield Hit(None, "learning_rate", group["rate"], 1e-4 * group["largest"], text, name=group["modules"][0])
    if u.get("momentum", 0.0) > 0 and u["damped"] > DAMPED:
        text = (
            f"dampening={u['damped']:g} lets {1 - u['damped']:.2g} of each gradient into the momentum: after the first "
            "step nothing new is followed"
        )
        yield Hit(None, "dampening", u["damped"], DAMPED, text, cure="Leave dampening at 0.")
    if not u or "largest" not in u or u["largest"] >= SMALL or next(iter(eps.check(view)), None):
        return
    if u["along_gradient"] > 0 or max(view.section("trial").get("own", {}).get("rates", [0.0])) > 3 * u["lr"]:
        return  # a warm-up that the loop sets by hand
    text = (
        f"one step of {u['class']} at learning rate {u['lr']:.2g} changes no weight matrix by more than "
        f"{u['largest']:.1e} of its norm ({u['largest_at']}): the rate is too small"
    )
    yield Hit(None, "relative_update", u["largest"], SMALL, text)


@rule(
    "NS404",
    "weight decay outweighs the gradient",
    severity="warning",
    meaning="The decay pulls the weights to zero harder than the loss pulls them anywhere: the outputs shrink "
    "to a constant.",
    cure="Lower it: weight_decay=5e-4 for SGD, 1e-2 for AdamW.",
    source="chosen by us: with and without decay the first step points in directions more than 45 degrees apart",
)
def decay(view: View) -> Iterator[Hit]:
    """The step with weight decay has a cosine below 0.7 with the step without, where the gradient is not zero.

    And the decay is fast: it shrinks the weights by more than a thousandth a step (x 1 / (1 - momentum)): learning rate
    x decay, or nearly the whole step of Adam, which divides decay and gradient alike by their size. Or learning
    rate x decay is above a fiftieth, wherever the gradient points.
    """
    u = view.section("update")
    if u and u["decay"] and (u["decay_cosine"] < DECAY or u["lr"] * u["decay"] > RUSH) and u["decay_pace"] > 1e-3:
        text = (
            f"weight_decay={u['decay']:g} outweighs the gradient: the steps with and without it have cosine "
            f"{u['decay_cosine']:.2f}, and the weights shrink by e in {1 / u['decay_pace']:.0f} steps"
        )
        yield Hit(None, "decay_cosine", u["decay_cosine"], DECAY, text)


@rule(
    "NS405",
    "eps far above the gradients",
    severity="warning",
    meaning="The optimizer divides by eps instead of the gradients' own size: it is plain gradient descent at a "
    "tiny rate.",
    cure="Leave eps at its default: torch.optim.Adam(model.parameters(), lr=1e-3, eps=1e-8).",
    source="chosen by us: ten times the rms gradient, and no layer moves by more than a thousandth",
)
def eps(view: View) -> Iterator[Hit]:
    """``eps`` is more than ten times the rms of the gradient, and the steps are small for it."""
    u = view.section("update")
    if u and u["eps"] > 1e-4 and u["eps"] > 10 * u["gradient_rms"] and u.get("largest", 1.0) < 1e-3:
        text = (
            f"eps={u['eps']:g} is {u['eps'] / max(u['gradient_rms'], 1e-30):.1e} times the rms gradient "
            f"{u['gradient_rms']:.1e}: the "
            f"largest relative update is {u['largest']:.1e}, the learning rate is too small for that epsilon"
        )
        yield Hit(None, "eps", u["eps"], 10 * u["gradient_rms"], text)


@rule(
    "NS406",
    "the optimizer climbs",
    severity="error",
    meaning="Its steps go up the loss, not down.",
    cure="Build it without maximize=True, and with a positive learning rate.",
    source="chosen by us: cosine between step and gradient above 0.3",
)
def climbs(view: View) -> Iterator[Hit]:
    """The step (without weight decay) points along the gradient instead of against it: ``maximize=True``, or a negative
    rate.
    """
    u = view.section("update")
    if u and u["along_gradient"] > 0.3:
        text = (
            f"a step of {u['class']} has cosine {u['along_gradient']:.2f} with the gradient: the loss increases "
            f"(gradient ascent, maximize=True); on this batch from {u.get('loss_before', float('nan')):.3g} to "
            f"{u.get('loss_after', float('nan')):.3g}"
        )
        yield Hit(None, "along_gradient", u["along_gradient"], 0.3, text)


@rule(
    "NS407",
    "steps too large",
    severity="warning",
    meaning="One step of the optimizer makes the loss of the same batch many times worse: training will jump "
    "about or diverge.",
    cure="Lower the learning rate tenfold, warm it up, or clip: torch.nn.utils.clip_grad_norm_(model.parameters(), "
    "1.0) between backward() and step().",
    source="chosen by us: five times the loss after one step; on MNIST SGD from 10 and Adam from 0.1; the largest "
    "momentum in use is nnU-Net's 0.99",
)
def large_steps(view: View) -> Iterator[Hit]:
    """After one step on a copy the loss of the same batch is more than five times what it was, or no number.

    Or more than twice, and the median weight matrix changed by half its norm; or that change, with the momentum's
    factor 1 / (1 - momentum), is above 1.5; or the momentum is above 0.995. Or the rates of three groups or more fall
    with depth, tenfold in all. Not judged where wiring, loss or data are at fault, nor while the loss is below that of
    a constant answer's tenth.
    """
    u, loss = view.section("update"), view.section("loss")
    groups = (u or {}).get("by_depth", [])
    rates = [rate for _, rate in groups]
    if len(rates) >= STAIRS and rates[0] > STEEP * rates[-1] and all(a > b for a, b in itertools.pairwise(rates)):
        text = (
            f"the parameter groups' rates fall from {rates[0]:.2g} at the first layers to {rates[-1]:.2g} at the last: "
            "a layer-wise decay of the rate gives the first layers the smallest (its exponent reversed?), here they "
            "are too large there"
        )
        yield Hit(None, "by_depth", rates[0] / rates[-1], STEEP, text, name=groups[0][0])
    if u and u["momentum"] > MOMENTUM:
        text = (
            f"momentum={u['momentum']:g} averages over {1 / max(1 - u['momentum'], 1e-9):.0f} steps, and a rate of "
            f"{u['lr']:.2g} becomes one of {u['lr'] / max(1 - u['momentum'], 1e-9):.2g}: the weights swing"
        )
        cure = "torch.optim.SGD(model.parameters(), lr=..., momentum=0.9)."
        yield Hit(None, "momentum", u["momentum"], MOMENTUM, text, cure=cure)
    if not u or "loss_after" not in u or u["along_gradient"] > 0:
        return
    before, after = u["loss_before"], u["loss_after"]
    base = max(before, 0.1 * loss.get("constant", before))
    turned = u.get("median", 0.0)  # of the weights, in one step
    settled = turned / (1 - u["momentum"]) if u["momentum"] < 1 else turned
    worse = after != after or after > 5 * base > 0 or (after > 2 * base > 0 and turned > HALF)
    far = settled > 3 * HALF and not loss.get("reach", {}).get("tiny")  # small weights change by much
    if before == before and (worse or far):
        step = f"one step of {u['class']} at learning rate {u['lr']:.2g}"
        text = (
            f"{step} takes the loss of this batch from {before:.3g} to {after:.3g}: the rate is too large, it will "
            f"diverge (the weights change by {turned:.0%} a step)"
        )
        if not worse and after <= before:
            more = f", and a momentum of {u['momentum']:g} goes {settled / turned:.0f} times as far"
            text = (
                f"{step} changes the weights by {turned:.2g} of their size{more if u['momentum'] else ''}: the rate is "
                "too large, although the loss of this batch falls at first"
            )
        yield Hit(None, "loss_after", after, 5 * base, text)


@rule(
    "NS408",
    "moments the wrong way round",
    severity="warning",
    meaning="The first moment averages over more steps than the second: the steps follow gradients that are long gone.",
    cure="torch.optim.Adam(model.parameters(), lr=1e-3, betas=(0.9, 0.999)).",
    source="every published setting has beta1 <= beta2; chosen by us: beta1 above 0.99 and above beta2",
)
def betas(view: View) -> Iterator[Hit]:
    """``betas`` of the optimizer are exchanged: beta1 > beta2, and beta1 above 0.99."""
    b = view.section("update").get("betas")
    if b and b[0] > b[1] and b[0] > 0.99:
        text = (
            f"betas=({b[0]:g}, {b[1]:g}) are swapped: a momentum over {1 / (1 - b[0]):.0f} steps, and a second moment "
            f"(beta2) over {1 / (1 - b[1]):.0f}"
        )
        yield Hit(None, "beta1", b[0], b[1], text)


@rule(
    "NS409",
    "the schedule takes the rate away",
    severity="warning",
    meaning="Early in the training the learning rate is so small (or zero) that nothing more is learnt.",
    cure="Step the scheduler once an epoch, not once a batch, or stretch it; a warm-up begins above zero: (step + 1) / "
    "warmup.",
    source="chosen by us: a twentieth of its first value after the trial's steps, zero throughout, or a thousandth for "
    "more than half of all steps that were seen",
)
def schedule(view: View) -> Iterator[Hit]:
    """In the user's own first 60 steps the learning rate is zero at all of them, or falls to less than a twentieth; or
    rises so slowly that a warm-up would end long after the training (``steps``), or after 20 000 steps. Or for more
    than half of all the steps that were seen it is less than a thousandth. Or the loop sets an attribute of the
    optimizer in the place of its groups' rate.

    Or it rises once in a few steps, and would take 50 such rises or more. Or it still rises when the training ends,
    below half of what it is to be. Not where the whole training (``steps``) is hardly longer than that, as a schedule
    over few steps ends so.
    """
    deaf = view.section("update").get("deaf")
    if deaf:
        text = (
            f"the loop sets optimizer.lr ({deaf['set']:.2g}), which no optimizer of torch's reads: the rate stays "
            f"{deaf['lr']:.2g}"
        )
        read = "Set it where it is read: for group in optimizer.param_groups: group['lr'] = lr."
        yield Hit(None, "learning_rate", deaf["lr"], deaf["set"], text, cure=read)
    own, divides = view.section("trial").get("own", {}), view.section("update").get("own_decay", 0.0)
    if divides > OWN_DECAY:
        text = (
            f"lr_decay={divides:g} divides the rate by {1 + SOON * divides:.0f} in {SOON} steps: it counts updates, "
            "not epochs"
        )
        yield Hit(None, "lr_decay", divides, OWN_DECAY, text, cure="Leave lr_decay at 0: Adagrad slows down by itself.")
    seen = own.get("rates", [])
    if len(seen) > 5 and seen[1] < seen[0] and all(a <= b for a, b in itertools.pairwise(seen[1:])):
        seen = seen[1:]  # the loop sets it, from its first step on
    rates, steps = seen[:SOON], view.facts.get("checkup", {}).get("steps") or math.inf
    if len(rates) < 5:
        return
    full, most = view.section("update").get("lr", 0.0), max(seen)
    stairs = _stairs(seen, full)
    if stairs:
        text = (
            f"the learning rate rises every {stairs[0]} steps (once an epoch?), from {seen[0]:.2g} to {most:.2g} after "
            f"{len(seen)}: at this pace it takes {stairs[1]:.0f} such rises to {full:.2g}; is the warm-up counted in "
            "steps, and the scheduler stepped once an epoch?"
        )
        cure = "Step the scheduler after every batch; in Lightning: {'scheduler': scheduler, 'interval': 'step'}."
        yield Hit(None, "learning_rate", most, RISEN * full, text, cure=cure)
        return
    if own.get("all") and len(seen) >= 2 * SOON and 1.5 * seen[0] < most == seen[-1] < RISEN * full:
        text = (
            f"the learning rate rises from {seen[0]:.2g} through all {len(seen)} steps of the training, and ends at "
            f"{most:.2g} of {full:.2g}: the warm-up never ends (stepped once an epoch, and counted in steps?)"
        )
        yield Hit(None, "learning_rate", most, RISEN * full, text)
        return
    if max(rates) == 0:
        text = f"the learning rate is 0 in all of the first {len(rates)} steps: the schedule (warm-up) never raises it"
        yield Hit(None, "learning_rate", 0.0, 0.0, text)
    elif (
        rates[-1] > 1.5 * rates[0]
        and not own.get("trains")
        and (late := _still_warming(rates, steps, view.section("update").get("lr", 0.0)))
    ):
        text = (
            f"the learning rate warms up from {rates[0]:.2g}, and after {len(rates)} steps is {rates[-1]:.2g} of "
            f"{view.section('update')['lr']:.2g}: at this pace the warm-up takes {late:.0f} steps, "
            + (f"the training has {steps:.0f}" if math.isfinite(steps) else "the rate stays too small")
        )
        yield Hit(None, "learning_rate", rates[-1], 0.1 * view.section("update")["lr"], text)
    elif rates[-1] < 0.05 * rates[0] and steps > 1.5 * len(rates):
        text = (
            f"the learning rate falls from {rates[0]:.2g} to {rates[-1]:.2g} within {len(rates)} steps: "
            f"{_by_what(rates)}, and nothing is left"
        )
        yield Hit(None, "learning_rate", rates[-1], 0.05 * rates[0], text)
    elif (far := _gone_after(seen)) is not None:
        text = (
            f"within {far} of the {len(seen)} steps that were seen the learning rate falls from {max(seen):.2g} to a "
            f"thousandth, and in the end to {seen[-1]:.2g}: {_by_what(seen)}, and nothing is left"
        )
        yield Hit(None, "learning_rate", seen[-1], GONE * max(seen), text)


def _by_what(rates: list[float]) -> str:
    """Who takes the rate away: a decay at each step, or cuts now and then."""
    falls = [i for i in range(1, len(rates)) if rates[i] < rates[i - 1]]
    if len(falls) < 2 or len(falls) > len(rates) / 4:
        return "the scheduler decays it after every batch (per step, not per epoch)"
    return (
        f"the scheduler cuts it {len(falls)} times, first at step {falls[0] + 1} (counted in steps, not in epochs? or "
        "a ReduceLROnPlateau that takes a falling loss for a plateau: mode='min' is for losses)"
    )


def _stairs(rates: list[float], full: float) -> tuple[int, float] | None:
    """The steps between two rises of a rate that rises evenly every few steps, and how many rises lead to ``full``;
    ``None`` where it does not, or where these are less than `RISES`.
    """
    rises = [i for i in range(1, len(rates)) if rates[i] > rates[i - 1]]
    gaps = {b - a for a, b in itertools.pairwise(rises)}
    if len(rises) < 4 or len(gaps) > 1 or min(gaps) < 5 or any(b < a for a, b in itertools.pairwise(rates)):
        return None
    each = (rates[-1] - rates[0]) / len(rises)
    return (min(gaps), full / each) if full / each >= RISES else None


def _gone_after(rates: list[float]) -> int | None:
    """The step from which on, for more than half of all, a rate is `GONE` of the largest at most."""
    last = max((i for i, r in enumerate(rates) if r > GONE * max(rates)), default=0) + 1
    return last if last < len(rates) / 2 else None


def _still_warming(rates: list[float], steps: float, full: float) -> float:
    """Steps that a warm-up takes at the pace of the first ones, where they are far too many; else 0."""
    pace = (rates[-1] - rates[0]) / (len(rates) - 1)
    needed = full / pace if pace > 0 else math.inf
    many = 20_000 if math.isinf(steps) else 10 * steps
    return needed if many < needed < math.inf else 0.0


@rule(
    "NS410",
    "steps lost to rounding",
    severity="warning",
    meaning="The weights are kept in a type so coarse that most steps are rounded away: they stay where they are.",
    cure="Keep the weights in float32 and compute in bfloat16: torch.autocast(device, dtype=torch.bfloat16).",
    source="chosen by us: half of the entries with a gradient are the same, to the last bit, after a step",
)
def rounded(view: View) -> Iterator[Hit]:
    """Of weights in half precision half the entries that have a gradient, or more, do not change in one step of the
    optimizer.

    A note where the user's own trial trains.
    """
    r, trains = view.section("update").get("rounded"), view.section("trial").get("own", {}).get("trains")
    if r and r["share"] > 0.5:
        text = (
            f"{r['share']:.0%} of the weights in {r['dtype']} (half precision) do not change in a step of "
            f"{r['step']:.1g} relative to their size: the updates are rounded away"
        )
        yield Hit(None, "rounded", r["share"], 0.5, text, "info" if trains else "", r["module"])


@rule(
    "NS411",
    "moments of another training",
    severity="warning",
    meaning="The optimizer divides by gradients that it remembers and that are far larger than those of now: its steps "
    "are tiny.",
    cure="Start it anew: optimizer = torch.optim.Adam(model.parameters(), lr=1e-3), or load the state of this very "
    "run.",
    source="chosen by us: a thousand times as large, in half of the tensors",
)
def memory(view: View) -> Iterator[Hit]:
    """The root of the optimizer's second moments, without their bias, is a thousand times the gradient's rms.

    As after a state was loaded from a run with another loss scale (gradients not unscaled), reduction or model.
    """
    m = view.section("update").get("memory", math.nan)
    if m > REMEMBERED:
        text = (
            f"the optimizer state (second moment, exp_avg_sq) is of gradients {m:.1e} times as large as those of now: "
            "steps are as much too small; a checkpoint of another run, or of scaled gradients?"
        )
        yield Hit(None, "memory", m, REMEMBERED, text)
