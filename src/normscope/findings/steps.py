"""NS610 to NS623: what the steps of the user's own loop do, and what they start from."""

from __future__ import annotations

import math
from collections.abc import Iterator

from normscope.findings._rules import Hit, View, listed, rule

#: Of what the loss had lost the share that is back when other weights stand in the parameters (chosen by us).
LOST = 0.5
#: Steps in which a loop that accumulates has stepped (chosen by us).
LONG = 30


@rule(
    "NS610",
    "gradients clipped too early",
    severity="warning",
    meaning="Clipping before the backward pass clips nothing: the optimizer gets the raw gradients.",
    cure="loss.backward(); torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0); optimizer.step(), in this order.",
    source="order of the calls in one real step",
)
def clip_early(view: View) -> Iterator[Hit]:
    """In one real step of ``train_step``, on copies, the gradients are clipped before ``backward`` and not after it; or
    while they are still multiplied by the scale of mixed precision.
    """
    s = view.section("loop")
    if s and s.get("clip_scaled"):
        text = (
            f"the step's order is {', '.join(s['events'])}: gradients are clipped while they are multiplied by the "
            "GradScaler's scale (65536 at first), and divided by it afterwards: next to nothing is left"
        )
        cure = "Call scaler.unscale_(optimizer) behind backward() and before the clip."
        yield Hit(None, "clip", 1, 0, text, cure=cure)
    if s and s["clip_early"]:
        text = (
            f"the step's order is {', '.join(s['events'])}: the clip comes before backward, so gradients are "
            "never clipped"
        )
        yield Hit(None, "clip", 1, 0, text)


@rule(
    "NS611",
    "gradients never cleared",
    severity="warning",
    meaning="Each step adds its gradient to those of all steps before.",
    cure="Call optimizer.zero_grad() before loss.backward().",
    source="two real steps on copies",
)
def never_cleared(view: View) -> Iterator[Hit]:
    """Two steps of ``train_step`` in a row, both with an update, and the second one's gradient still holds the
    first's; or one step whose closure adds to the gradients of its own earlier calls.
    """
    s = view.section("loop")
    if s and s["never_cleared"]:
        text = (
            f"two steps ran ({', '.join(s['events'])}), and nothing cleared the gradients between them: "
            "zero_grad() is missing"
        )
        yield Hit(None, "cleared", 0, 1, text)
    elif s and s["summed"]:
        text = (
            "the optimizer's step calls the closure several times, and the closure never clears the gradients: each "
            "backward pass adds to those before"
        )
        yield Hit(None, "cleared", 0, 1, text, cure="Call optimizer.zero_grad() inside the closure, before backward().")


@rule(
    "NS612",
    "a step that changes nothing",
    severity="error",
    meaning="The loop's own step leaves every parameter as it was.",
    cure="optimizer.zero_grad(); loss.backward(); optimizer.step(), in this order, on the optimizer that holds "
    "this model.",
    source="two real steps on copies",
)
def idle_step(view: View) -> Iterator[Hit]:
    """After two real steps of ``train_step`` on copies of model and optimizer no parameter has changed.

    ``backward`` or ``step`` is never called, or the gradients are cleared between them. Or one of several optimizers
    steps without any gradient.
    """
    s, w = view.section("loop"), view.section("wiring")
    if s.get("starved") and s["handed"]:
        text = (
            f"the optimizer of {listed(s['starved'])} steps, but no gradient ever reaches it: what its loss is "
            "computed from is detached, or cut off from the graph"
        )
        yield Hit(None, "starved", len(s["starved"]), 0, text, name=s["starved"][0])
    if not s or s["moved"] or not w.get("moving") or w.get("optimizer", {}).get("held_moving") == 0:
        return
    own, events = view.section("trial").get("own", {}), s["events"]
    early = "step" in events and "backward" in events and events.index("step") < events.index("backward")
    why = "backward is never called" if not s["backward"] else (
        "optimizer.step is never called" if not s["stepped"]
        else "the optimizer steps before backward(), on gradients that were cleared" if early
        else "the gradients are cleared between backward and step" if s["cleared_late"]
        else "no gradient reaches a parameter, the loss that goes backward is cut off from the model (a new "
        "tensor, detach, .item())" if not s.get("handed", True) else "the update is zero"
    )  # fmt: skip
    still = own.get("again", math.nan) == own.get("start") and own["steps"] >= LONG
    severity = "info" if s["backward"] and not s["stepped"] and not still else ""  # it may accumulate
    text = f"{own['steps'] if still else 'two'} steps changed no parameter: {why} (order: {', '.join(events)})"
    yield Hit(None, "moved", 0, 1, text, severity)


@rule(
    "NS613",
    "identical units",
    severity="error",
    meaning="All units of these layers start equal, get equal gradients, and stay equal: a layer is as wide as "
    "one unit.",
    cure="Start from random weights: nn.init.kaiming_normal_(layer.weight).",
    source="rows of the weights equal to the last bit",
)
def identical(view: View) -> Iterator[Hit]:
    """Every row of a hidden layer's weight is the same, and every column of the next one's: constant initialization."""
    names = view.section("wiring").get("equal_units", [])
    if names:
        text = f"all units of {listed(names)} have identical weights: constant (symmetric) initialization"
        yield Hit(None, "equal", len(names), 0, text, name=names[0])


@rule(
    "NS614",
    "gradients cut to nothing",
    severity="warning",
    meaning="The optimizer is handed a small part of the gradient of the loss: every step is as much too small (of "
    "SGD).",
    cure="Clip where gradients explode, not all of them: torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0); look "
    "at factors by which the loss is divided.",
    source="chosen by us: a fiftieth of the gradient's norm",
)
def cut(view: View) -> Iterator[Hit]:
    """In the user's own loop the optimizer gets a gradient of less than a fiftieth of the norm of the loss's own.

    As a clipping norm far below the gradients does. Not for optimizers that rescale each entry (Adam).
    """
    own, u = view.section("trial").get("own", {}), view.section("update")
    handed = [(a, b) for a, b in own.get("handed", []) if b > 0]
    if not handed or "ada" in u.get("class", "ada").lower():
        return
    share = max(a / b for a, b in handed)
    if 0 < share < 0.02:
        a, b = handed[0]
        text = (
            f"the optimizer is handed gradients of norm {a:.2g}, that of the loss is {b:.2g}: clipping (max_norm) or a "
            f"factor cuts each step to {share:.1%}, the steps are too small"
        )
        yield Hit(None, "handed", share, 0.02, text)


@rule(
    "NS615",
    "a new optimizer at every step",
    severity="warning",
    meaning="What an optimizer gathers over steps (moments, momentum) is thrown away each time, and the given one "
    "never steps.",
    cure="Build the optimizer once, before the loop, and step that one.",
    source="the object that steps",
)
def anew(view: View) -> Iterator[Hit]:
    """No optimizer that stepped in one run of the user's own loop body stepped in the next."""
    if view.section("trial").get("own", {}).get("anew") or view.section("observed").get("anew"):
        text = (
            "two runs of the loop's body took their steps with different optimizers: a new optimizer is created "
            "(recreated) every step, its state is lost"
        )
        yield Hit(None, "optimizers", 2, 1, text)


@rule(
    "NS616",
    "a teacher that learns",
    severity="warning",
    meaning="The loss changes the network that is to be followed too, so the two meet halfway, or collapse.",
    cure="with torch.no_grad(): t = teacher(x), or teacher.requires_grad_(False), and leave it out of the optimizer.",
    source="a gradient that is not zero in a module called teacher, target_net, ema, momentum_encoder or the like",
)
def taught(view: View) -> Iterator[Hit]:
    """Parameters of a module that is called a teacher or target network get a gradient from the loss."""
    names = view.section("wiring").get("teachers", [])
    if names:
        text = (
            f"{listed(names)} gets a gradient from the loss, and is trained with the other network: it is not frozen, "
            "its outputs are not detached (no_grad)"
        )
        yield Hit(None, "teachers", len(names), 0, text, name=names[0])


@rule(
    "NS617",
    "steps that are taken back",
    severity="error",
    meaning="After the optimizer's step something else writes into the weights and undoes most of it.",
    cure="Keep averages (EMA) in a copy of the model: ema = copy.deepcopy(model); load them for evaluation alone.",
    source="chosen by us: more than half of a step is undone, against its direction",
)
def undone(view: View) -> Iterator[Hit]:
    """Between the optimizer's step and the end of the user's own loop body the parameters move back, by more than half
    of it, or by less, but in its very direction. Or, once in a while, other weights stand in the parameters than the
    step before left, and at least half of what the loss had lost is back.

    As an average that is written into the trained model, old weights that are loaded again, or a copy that is restored
    do.
    """
    s = view.section("loop")
    if s.get("undone", 0.0) > 0.5:
        text = (
            f"{s['undone']:.0%} of the optimizer's step is undone before the loop's body ends: something overwrites "
            f"the weights in place ({listed(s['undone_in'])}): an average (EMA) copied back, a state that is restored "
            "(load_state_dict)"
        )
        yield Hit(None, "undone", s["undone"], 0.5, text, name=s["undone_in"][0])
    elif s.get("undone", 0.0) > 0.002 and s.get("straight", 0.0) > 0.999:
        text = (
            f"{s['undone']:.1%} of the optimizer's step is taken back in its very direction before the loop's body "
            f"ends ({listed(s['undone_in'])}): the trained weights are overwritten with an average of themselves and "
            "older ones, pulled back to where they were (an EMA of a teacher with its arguments exchanged?)"
        )
        yield Hit(None, "undone", s["undone"], 0.002, text, name=s["undone_in"][0])
    own = view.section("trial").get("own", {})
    for k in own.get("rewritten", []):
        x, begun = own["losses"], own["losses"][0]
        if 0 < k < len(x) and len(own["rewritten"]) < len(x) / 4 and x[k] - x[k - 1] > LOST * (begun - x[k - 1]) > 0:
            text = (
                f"at step {k + 1} something writes other values into the weights and the loss is back from "
                f"{x[k - 1]:.3g} at {x[k]:.3g} ({begun:.3g} at the start): they are initialised anew (reset, restart) "
                "or loaded from before, and what was learnt is lost"
            )
            yield Hit(None, "rewritten", k, 0, text)
            break


@rule(
    "NS618",
    "a backward pass of another function",
    severity="error",
    meaning="Whoever trains through this module follows a gradient that is not the loss's.",
    cure="In backward multiply grad_output by the derivative at the saved input, and try "
    "torch.autograd.gradcheck(Function.apply, x.double()).",
    source="chosen by us: 10 % off the central difference, in float64, by factors that differ from direction to "
    "direction",
)
def other_backward(view: View) -> Iterator[Hit]:
    """A ``torch.autograd.Function`` of the user's: along random directions its gradient is not what differences give.

    Silent where the function has steps (a straight-through gradient is meant), and for one constant factor (a gradient
    reversal).
    """
    s = view.section("backward")
    if s:
        text = (
            f"the custom backward of {s['module']} is wrong: along a direction the gradient says {s['gradient']:.3g}, "
            f"the forward pass moves by {s['difference']:.3g} (grad_output left out?)"
        )
        yield Hit(None, "gradient", s["gradient"], s["difference"], text, name=s["module"])


@rule(
    "NS619",
    "a derivative without a graph",
    severity="error",
    meaning="What is computed from this derivative is a constant to the backward pass: the penalty or equation trains "
    "nothing.",
    cure="torch.autograd.grad(outputs, inputs, grad_outputs, create_graph=True).",
    source="a result of autograd.grad(create_graph=False) in the inputs that the loss reads",
)
def no_graph(view: View) -> Iterator[Hit]:
    """The loss (or the loop's body) differentiates by the inputs with ``torch.autograd.grad``, without
    ``create_graph=True``, and computes with what it gets; no forward pass comes after, as in an adversarial attack.
    """
    if view.section("calls").get("derived") or view.section("loop").get("derived"):
        text = (
            "torch.autograd.grad in the inputs is called without create_graph=True, and the loss reads the result (a "
            "gradient penalty, a differential equation): that term has no gradient in the weights"
        )
        yield Hit(None, "create_graph", 0.0, 1.0, text)


@rule(
    "NS620",
    "the same random numbers in every step",
    severity="warning",
    meaning="The loop sets the seed anew in every step: noise, dropout and augmentation are the same each time, and "
    "are learnt by heart.",
    cure="Seed once, before the loop: torch.manual_seed(0).",
    source="the state of torch's generator behind two steps that began with different ones",
)
def reseeded(view: View) -> Iterator[Hit]:
    """Two steps of ``train_step`` begin with different states of torch's random generator and end with the same one."""
    if view.section("loop").get("reseeded"):
        text = (
            "every step ends with the same state of the random generator, whatever it began with: manual_seed inside "
            "of the loop repeats the same noise (dropout, augmentation) in each step"
        )
        yield Hit(None, "reseeded", 1, 0, text)


@rule(
    "NS621",
    "a copy that stays behind",
    severity="info",
    meaning="The loop holds a copy of the model that nothing brings up to date: right for a reference, wrong for a "
    "target network or an average.",
    cure="Every few hundred steps target.load_state_dict(model.state_dict()), or after each of them "
    "for t, p in zip(target.parameters(), model.parameters()): t.data.lerp_(p.data, 0.005).",
    source="a frozen module, or one beside the model, with its very values, that the trial's steps leave as it is",
)
def stays_behind(view: View) -> Iterator[Hit]:
    """A module has the very values of another, of the same class, that learns: beside the model in the user's loop, or
    a frozen part of it. After the trial's steps it is as it was.
    """
    own = view.section("trial").get("own", {})
    if own.get("asides"):
        text = (
            f"{own['asides'][0]} is a copy of what learns, and in {own['steps']} steps was not updated: as a reference "
            "that is right, but a target network that is never synchronised keeps its random start"
        )
        yield Hit(None, "copies", len(own["asides"]), 0, text, name=own["asides"][0])


@rule(
    "NS622",
    "weights that are clipped",
    severity="warning",
    meaning="The loop cuts the weights off at a small number: the net can be no steeper than that allows.",
    cure="Leave it out (it belongs to the critic of a Wasserstein GAN), or clip the gradients instead: "
    "torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0).",
    source="chosen by us: a tenth of the entries lie at the largest magnitude, of both signs, behind a step",
)
def clipped(view: View) -> Iterator[Hit]:
    """Behind the user's own steps a tenth of a weight's entries, or more, have one and the same largest magnitude,
    which they had not at the start. A note where the loss knows no right answers: of a critic it is meant.
    """
    found = view.section("loop").get("clipped", {})
    if found:
        most = max(found.values())
        text = (
            f"the loop clips (clamps) the weights of {listed(list(found))} to +-{most:.2g}: they are restricted to "
            "small values, so the outputs cannot grow"
        )
        known = view.section("loss").get("task") in ("classes", "regression", "binary")
        yield Hit(None, "clipped", most, 0, text, "" if known else "info", next(iter(found)))


@rule(
    "NS623",
    "weights that were not loaded",
    severity="warning",
    meaning="A checkpoint was loaded without strict, and weights that it holds by another name stay as they were.",
    cure="Load before the model is wrapped or changed, or rename the keys; print(model.load_state_dict(state, "
    "strict=False)) lists both sides.",
    source="the keys that load_state_dict says are missing and unexpected, of equal ends and shapes",
)
def unloaded(view: View) -> Iterator[Hit]:
    """In a script ``load_state_dict(strict=False)`` left two parameters or more although the state holds as large ones
    whose names end alike and that the model has not; or it left all of them. A later call may make it good.
    """
    u = view.section("observed").get("unloaded")
    if u:
        mine, other = u["pair"]
        as_named = f": what the model calls {mine} the checkpoint calls {other}" if mine else ""
        text = (
            f"load_state_dict(strict=False) at {u['place']} left {u['missing']} of {u['of']} parameters as they "
            f"were{as_named}"
        )
        yield Hit(None, "missing", u["missing"], 0, text, name=mine.rpartition(".")[0])


@rule(
    "NS624",
    "gradients thrown away",
    severity="warning",
    meaning="Of several backward passes of one line all gradients but the last are cleared before the step.",
    cure="Clear once a step, before the first of the passes whose gradients are to be added up.",
    source="the order of calls, at unchanged weights",
)
def thrown_away(view: View) -> Iterator[Hit]:
    """The optimizer is cleared between passes of one line, with the weights as they were, and steps on what the last of
    them left. Gradients that the loop sets by hand are its own (PCGrad, clipping by sample).
    """
    place, lost = view.section("loop").get("lost", ("", 0))
    if lost:
        text = (
            f"of {lost + 1} backward passes at {place} only the last one's gradient is stepped on: zero_grad() stands "
            "between them, inside of the accumulation"
        )
        yield Hit(None, "lost", lost, 0, text)
