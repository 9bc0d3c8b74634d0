"""NS6xx: who moves: parameters, optimizer, gradient and update."""

from __future__ import annotations

from collections.abc import Iterator

from normscope.findings._rules import Hit, View, inside, listed, rule

SHARE = 0.02


@rule(
    "NS601",
    "trainable parameters are not in the optimizer",
    severity="warning",
    meaning="These parameters get a gradient and are never updated.",
    cure="Build the optimizer last, over all that is to train: optimizer = torch.optim.Adam(model.parameters()).",
    source="identity of the tensors in optimizer.param_groups",
)
def not_in_optimizer(view: View) -> Iterator[Hit]:
    """Tensors of the model that get a gradient are not among ``optimizer.param_groups``, by identity.

    Error where the optimizer holds nothing of the model that gets a gradient: it was built before a layer was
    exchanged, or the model copied or moved. Info where what is left out does not look like a fresh start (its weights
    are not torch's default distribution): a trained body under a new head may be left alone on purpose.

    Or, in a script, an optimizer is cleared of gradients again and again and never steps.
    """
    o, idle = view.section("wiring").get("optimizer", {}), view.section("observed").get("idle")
    if idle:
        text = (
            f"the {idle['kind']} of {idle['place']} was cleared of gradients {idle['clears']} times and never stepped: "
            f"its {idle['tensors']} tensors get gradients, and no other optimizer moves them"
        )
        cure = "Call step() of that optimizer behind its backward pass; is another one's called in its place?"
        yield Hit(None, "idle", idle["tensors"], 0, text, cure=cure)
    if not o or not o["missing"]:
        return
    stale = f"; {o['foreign']} tensors in the optimizer are not the model's (it is stale)" if o["foreign"] else ""
    text = (
        f"{o['missing_tensors']} tensors get a gradient but are not in the optimizer and will never change: "
        f"{listed(o['missing'])}{stale}"
    )
    severity = "error" if not o["held_moving"] else "warning" if o["fresh"] or o["foreign"] else "info"
    yield Hit(None, "missing", o["missing_tensors"], 0, text, severity, o["missing"][0])


@rule(
    "NS602",
    "the optimizer holds nothing that trains",
    severity="error",
    meaning="Whatever it does, no weight that could learn is changed.",
    cure="Set requires_grad_(True) on what is to train and pass exactly that: "
    "torch.optim.Adam(p for p in model.parameters() if p.requires_grad).",
    source="requires_grad of the tensors in optimizer.param_groups",
)
def frozen_optimizer(view: View) -> Iterator[Hit]:
    """All parameters of the model that the optimizer holds are frozen (``requires_grad=False``)."""
    o = view.section("wiring").get("optimizer", {})
    if o and o["held_frozen"]:
        names = o["held_modules"]
        text = (
            f"the optimizer holds {o['held']} tensors of the model, all frozen (requires_grad=False): {listed(names)}"
        )
        if o["missing"]:
            text += f"; what gets a gradient is not in the optimizer: {listed(o['missing'])}"
        yield Hit(None, "held", o["held"], 0, text, name=names[0] if names else "")


@rule(
    "NS603",
    "layers that are not registered",
    severity="warning",
    meaning="These tensors shape the outputs and want a gradient, but the model does not list them as its "
    "parameters: no optimizer trains them.",
    cure="Hold layers in nn.ModuleList or nn.ModuleDict, single tensors in nn.Parameter: self.hidden = "
    "nn.ModuleList(layers).",
    source="leaves of the autograd graph that are no parameters of the model",
)
def unregistered(view: View) -> Iterator[Hit]:
    """The graph behind the outputs ends in leaves that require a gradient and are no registered parameters.

    Layers in a plain list, tuple or dict, in a global variable, or made anew in every forward pass. Silent where the
    optimizer given holds the tensors all the same. Or a plain tensor of zeros closes a gate that no optimizer will
    open.
    """
    names = view.section("wiring").get("unregistered", [])
    if names:
        known = [n for n in names if n]
        text = f"{len(names)} tensor(s) behind the outputs are not registered as parameters: "
        anew = view.section("wiring").get("remade", [])
        if anew and not known:
            known = [anew[0].rpartition(".")[0]]
            text += f"{listed(anew)} are created in the forward pass, a new layer at each call: never in the optimizer"
        else:
            text += (
                f"{listed(known)} (a plain list or dict instead of nn.ModuleList)"
                if known
                else "no module holds them (a layer that is created inside of forward, or a global one)"
            )
        yield Hit(None, "unregistered", len(names), 0, text, name=known[0] if known else "")
    zero = view.section("wiring").get("plain_zero", [])
    if zero and view.section("wiring").get("asleep"):
        text = (
            f"{listed(zero)} is a plain tensor of zeros, neither an nn.Parameter nor in the optimizer (not "
            "registered): what it multiplies, a gate, stays closed, and weights behind it get no gradient"
        )
        yield Hit(None, "unregistered", len(zero), 0, text, "error", zero[0].rpartition(".")[0])


@rule(
    "NS604",
    "no gradient reaches trainable layers",
    severity="warning",
    meaning="These layers run, but the loss does not depend on them through the graph, so they stay as they are.",
    cure="Use their output, without .detach(), .item(), torch.no_grad() or numpy between it and the loss.",
    source="gradient None, and chosen by us: 2 % of the trainable weights",
)
def lost(view: View) -> Iterator[Hit]:
    """Parameters that require a gradient get none, although their module ran: the result is not used, or detached.

    A note where the model returns what they compute (a pooler that this loss does not read), where they did not run at
    all, and of a part of the last of three blocks alike or more, which has no next one; silent where the optimizer
    given leaves them out, and below 2 % of the trainable weights. Where no parameter gets any, the first function is
    named whose result carries no gradient though its arguments do.
    """
    w = view.section("wiring")
    if w.get("cut"):
        cuts = view.section("calls").get("cuts", [])
        c: dict[str, str] = cuts[0] if cuts else {}
        who = f": {c['function']}{inside(c['module'])} is the first function that cuts the graph" if c else ""
        at = (
            "the loss is not differentiable or detached from the outputs"
            if w["cut_in_loss"]
            else "the outputs are detached"
        )
        text = f"no parameter receives a gradient: {at}{who} (detach, no_grad, argmax, a comparison, .item(), numpy)"
        yield Hit(None, "lost", 1.0, 0, text, "error", c.get("module", ""))
        return
    numbers, returned = view.section("calls").get("numbers", []), w.get("returned", {"tensors": 0})
    if numbers and returned["tensors"]:
        text = (
            f"{listed(returned['modules'])} gets no gradient though the model returns what it computes: {numbers[0]}() "
            "made a plain number of a part of the loss, which is a constant then (detached)"
        )
        yield Hit(None, "lost", returned["tensors"], 0, text, name=returned["modules"][0])
    copied = view.section("observed").get("copied", [])
    if copied and returned["tensors"]:
        text = (
            f"{listed(returned['modules'])} gets no gradient though the model returns what it computes: the loss reads "
            f"a copy of it at {copied[0]} that something outside of the graph made (a collective such as all_gather)"
        )
        cure = "Put your own part back behind the collective: parts[rank] = local; it alone has a graph."
        yield Hit(None, "lost", returned["tensors"], 0, text, name=returned["modules"][0], cure=cure)
    unread = view.section("loss").get("unread_targets", [])
    if unread and returned["tensors"]:
        text = (
            f"{listed(returned['modules'])} gets no gradient though the model returns what it computes: the loss does "
            f"not use {listed(unread)} of the targets (a part of the loss is overwritten, or not added)"
        )
        yield Hit(None, "lost", returned["tensors"], 0, text, name=returned["modules"][0])
    passes = view.section("loop").get("events", []).count("backward")  # another one may read it
    if not (numbers or copied or unread) and returned.get("share", 0.0) > SHARE and passes < 2:
        text = (
            f"no gradient reaches {listed(returned['modules'])}: the model returns the result, and this loss does not "
            "read it (is it meant for another loss, or is the wrong output taken?)"
        )
        yield Hit(None, "lost", returned["tensors"], 0, text, "info", returned["modules"][0])
    untold = view.section("pull").get("untold", [])
    if untold:
        text = (
            f"{listed(untold)} moves the outputs, and has a gradient that no target changes: what the targets say does "
            "not reach it (cut by argmin or indexing, as codes of a codebook without straight-through, or detached), "
            "only a penalty does"
        )
        yield Hit(None, "untold", len(untold), 0, text, name=untold[0])
    lost = view.section("wiring").get("lost", {})
    if lost and lost["tensors"] and lost["share"] > SHARE:
        text = (
            f"{lost['tensors']} tensors that require a gradient receive no gradient from this loss (unused or "
            f"detached): {listed(lost['modules'])}"
        )
        # what the last of several blocks would hand on to a next one is unused by design
        yield Hit(None, "lost", lost["tensors"], 0, text, "info" if lost["last"] else "", name=lost["modules"][0])
    idle = view.section("wiring").get("idle", {})
    if idle and idle["tensors"]:
        text = f"{idle['tensors']} trainable tensors were not used in this forward pass: {listed(idle['modules'])}"
        yield Hit(None, "idle", idle["tensors"], 0, text, "info", idle["modules"][0])


@rule(
    "NS605",
    "everything is frozen",
    severity="error",
    meaning="No parameter requires a gradient, so nothing can train.",
    cure="Thaw what is to train: model.head.requires_grad_(True).",
    source="requires_grad of all parameters",
)
def frozen(view: View) -> Iterator[Hit]:
    """``requires_grad`` is False for every parameter of the model, or (a warning) for all but four numbers at most."""
    w = view.section("wiring")
    few = w.get("all_but")
    if few:
        text = (
            f"only {listed(few['names'])} ({few['numbers'][0]} of {sum(few['numbers'])} numbers) can train, all else "
            f"is frozen (requires_grad=False): {listed(few['modules'])}"
        )
        trains = view.section("trial").get("own", {}).get("trains")  # a temperature may be all that is meant
        yield Hit(None, "trainable", few["numbers"][0], 4, text, "info" if trains else "warning", few["modules"][0])
    if w.get("parameters") and not w["trainable"] and not w.get("unregistered"):
        yield Hit(None, "trainable", 0, 1, f"all {w['parameters']} parameters are frozen (requires_grad=False)")


@rule(
    "NS606",
    "frozen at a random start",
    severity="warning",
    meaning="A frozen part of the network has the weights of fresh layers: it never learnt anything and never will.",
    cure="Check what was loaded: print(model.load_state_dict(state, strict=False)) lists the missing keys; a "
    "prefix may differ.",
    source="Kolmogorov-Smirnov distance from torch's default distributions, P = 1e-4; entries beyond their bound",
)
def random_frozen(view: View) -> Iterator[Hit]:
    """The first part of the network is frozen, and 90 % of its weights have exactly the distribution of fresh torch
    layers.

    Uniform within 1/sqrt(fan_in), Xavier's bound, N(0, 1) embeddings, N(0, 0.02²): trained weights leave the bound at
    once. Judged for a block of two weights or more in front of all that trains, a fifth of the parameters or more, for
    a table of embeddings (N(0, s²), without any direction), and for the last layer: other single random projections and
    adapters (LoRA) beside fresh layers are silent. Or a frozen layer's weights are one number.
    """
    r = view.section("wiring").get("random_frozen")
    if r:
        text = (
            f"{r['module']} is frozen, and {r['share']:.0%} of its {r['tensors']} weight matrices are distributed "
            "exactly as random initial weights: its checkpoint was not loaded, or it was meant to train (requires_grad)"
        )
        trains = view.section("trial").get("own", {}).get("progress", 0.0) > 0.3  # random features may be meant
        yield Hit(None, "fresh", r["share"], 0.9, text, "info" if trains else "", r["module"])
    zero = view.section("wiring").get("zero_frozen", [])
    if zero:
        text = (
            f"{listed(zero)} is frozen, and every entry of its weights is the same: a constant table, as if nothing "
            "was loaded; the output does not depend on its input"
        )
        yield Hit(None, "fresh", 1.0, 0.9, text, name=zero[0])


@rule(
    "NS607",
    "a copy where a tie was meant",
    severity="warning",
    meaning="A buffer holds the same numbers as a trainable weight and is used beside it, but will not follow it.",
    cure="Share the parameter itself: decoder.weight = encoder.weight, or F.linear(h, self.enc.weight.t()).",
    source="equal values to the last bit, and the outputs depend on the copy",
)
def copied(view: View) -> Iterator[Hit]:
    """A buffer is equal, to the last bit, to a trainable weight (or its transpose), and the outputs change with it."""
    c = view.section("wiring").get("copy")
    if c:
        text = (
            f"{c['copy']} is a copy of {c['of']} in a buffer, not shared with it: it is used, and stays "
            f"behind when {c['of']} trains"
        )
        yield Hit(None, "copy", 1, 0, text, name=c["copy"])


@rule(
    "NS608",
    "eval mode where training was meant",
    severity="warning",
    meaning="The model is in eval mode: batch norms use their running statistics, which no longer move, and "
    "dropout is off.",
    cure="Call model.train() at the start of each epoch, after the validation.",
    source="the flags as the user left them",
)
def eval_mode(view: View) -> Iterator[Hit]:
    """The whole model was left in eval mode, and holds batch norms that train; info with dropout only, or nothing to
    train with.

    The numbers of the diagnosis are those of training mode unless ``mode="eval"`` was asked for.
    """
    w = view.section("wiring")
    norms, drops = w.get("eval_norms", 0), w.get("eval_drops", 0)
    own = view.section("trial").get("own", {})
    if own.get("evaluates") and view.section("wiring").get("modes", 0):
        text = (
            "the loop runs the model in eval mode where it differentiates (model.eval() inside of it, never switched "
            "back by model.train()): batch norms use running statistics that never move, dropout is off"
        )
        yield Hit(None, "eval", 1.0, 0, text)
        return
    if view.facts.get("mode") == "eval" or not (norms or drops):
        return
    training = any(view.given(k) for k in ("optimizer", "data", "train_step"))
    text = (
        f"the model was left in eval mode (model.eval() without model.train() after it): {norms} batch "
        f"norm(s), {drops} dropout(s)"
    )
    yield Hit(None, "eval", norms + drops, 0, text, "warning" if training and norms else "info")


@rule(
    "NS609",
    "weights that never wake",
    severity="error",
    meaning="The gradient of these weights is exactly zero, and stays so after a few steps: the network is "
    "stuck where it is.",
    cure="Start from other weights: nn.init.kaiming_normal_(layer.weight); only the last layer of a branch may "
    "start at zero.",
    source="gradients of exactly zero after three steps",
)
def asleep(view: View) -> Iterator[Hit]:
    """Half of the weight matrices or more have a gradient of exactly zero at the start, and after three steps of plain
    descent.

    With all weights zero (or all units off) no gradient gets anywhere. A head or a branch that starts at zero is no
    such case: it takes a step, and wakes what lies behind it.
    """
    a = view.section("wiring").get("asleep")
    loss = view.section("loss")
    blind = loss.get("zero_gradient") or view.section("mixing").get("constant")
    if not a or blind or not a["of"] or a["weights"] < max(1, 0.5 * a["of"]):
        return
    why = "all of them are zero: every unit is identical" if a["all_zero"] else "no unit passes anything on"
    flat = view.section("calls").get("flat", [])
    if flat and not a["all_zero"]:
        why = f"{flat[0][0]}{inside(flat[0][1])} has the slope 0 everywhere, no gradient comes back through it"
    elif any(r.value == 1 for r in view.hidden("dead_units")):
        why += ": dead, what goes into the activation is always negative (a bias far below zero?)"
    text = (
        f"{a['weights']} of {a['of']} weight matrices have no gradient at all, also after three steps: "
        f"{listed(a['modules'])}; {why}"
    )
    yield Hit(None, "asleep", a["weights"] / a["of"], 0.5, text, name=a["first"])
