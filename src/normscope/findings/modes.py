"""NS5xx: training mode against eval mode."""

from __future__ import annotations

from collections.abc import Iterator

from normscope.findings._rules import Hit, View, inside, listed, rule, where

DISTANCE, FAR = 0.5, 5.0
#: Steps x momentum from which on the running statistics have had time to move: e^-2.5 = 8 % of the start is left.
SETTLED = 2.5


@rule(
    "NS501",
    "running statistics far from the batch's",
    severity="warning",
    meaning="In eval mode the network is another function than the one that trains: expect a gap between the "
    "two accuracies.",
    cure="Let the running statistics catch up (more steps, a larger momentum), set them anew (torch.optim.swa_utils."
    "update_bn over the data, or normscope.cure(model, 'recalibrate', inputs)), or check that this batch looks like "
    "the data.",
    source="chosen by us: about a shift of one standard deviation, or a variance off by a factor of 3.5",
)
def running_statistics(view: View) -> Iterator[Hit]:
    """A batch norm's running statistics differ from those of this batch by more than 0.5 nat a channel.

    The distance is the mean over channels of the Kullback-Leibler divergence between the two Gaussians, ½ [((μ_B -
    μ_R)² + v_B) / v_R - 1 - log(v_B / v_R)]; sampling alone gives about 1/n. Only batch norms whose statistics have had
    time to move are judged (2.5 / momentum steps: 25). Warning from 5 nat, info below: statistics lag behind weights
    that train. Other causes: a batch from another distribution, statistics frozen from pre-training, a tiny batch size.
    """
    young = view.section("wiring").get("young_norms", [])
    curve = [r for r in view.curve("running_statistics_distance") if r.value > DISTANCE and r.name not in young]
    if curve:
        worst = max(curve, key=lambda r: r.value)
        text = (
            f"{len(curve)} batch norm(s) beyond {DISTANCE} nat; the worst is {where(worst)} with {worst.value:.2g} nat"
        )
        yield Hit(
            curve[0], "running_statistics_distance", worst.value, DISTANCE, text, "" if worst.value > FAR else "info"
        )


@rule(
    "NS502",
    "eval mode on an untrained network",
    severity="warning",
    meaning="In eval mode these batch norms do nothing at all (mean 0, variance 1): the numbers are those of "
    "another network.",
    cure="Diagnose in training mode (mode='train', the default).",
    source="running statistics equal to their initial values",
)
def untrained_eval(view: View) -> Iterator[Hit]:
    """Eval mode was asked for, and batch norms have never seen data.

    Their running statistics are mean 0 and variance 1, so the layer is the identity: the network that was measured has
    no batch norm. Curvature and gradients measured so are off by factors of 2 to over 100, in either direction.
    """
    untrained = int(view.facts.get("untrained_batch_norms", 0))
    if untrained and view.facts.get("mode") == "eval":
        yield Hit(None, "untrained_batch_norms", untrained, 0, f"{untrained} batch norm(s) have never seen a batch")


@rule(
    "NS503",
    "dropout that stays on",
    severity="warning",
    meaning="Predictions in eval mode are random, and worse than they need be.",
    cure="Pass the mode on: F.dropout(h, p, training=self.training), or use nn.Dropout(p).",
    source="a call of F.dropout with training=True while the model is in eval mode",
)
def dropout(view: View) -> Iterator[Hit]:
    """In eval mode a functional dropout is called with ``training=True``, its default."""
    c = view.section("calls").get("dropout")
    if c:
        text = (
            f"F.dropout(p={c['p']:g}){inside(c['module'])} stays on in eval mode (random): training=self.training "
            "is missing"
        )
        yield Hit(None, "dropout", c["p"], 0.0, text, name=c["module"])


@rule(
    "NS504",
    "running statistics that hardly move",
    severity="warning",
    meaning="In eval mode these batch norms still use their initial mean 0 and variance 1 after hundreds of steps.",
    cure="torch's momentum is the share of the new batch: momentum=0.1 (another framework's 0.9 or 0.99 is 0.1 or 0.01 "
    "here).",
    source="chosen by us: below 0.005, more than 200 steps to move by 1 - 1/e",
)
def slow_statistics(view: View) -> Iterator[Hit]:
    """A batch norm in training mode with running statistics has a momentum above 0 and below 0.005; or buffers called
    running did not move at all in the user's own steps.
    """
    own = view.section("trial").get("own", {})
    still = own.get("still", []) if not own.get("evaluates") and not view.section("wiring").get("eval_norms") else []
    if still:
        text = (
            f"{listed(still)} did not move in {own['steps']} steps of training: the running statistics (buffers) are "
            "never updated, and eval mode uses the initial ones"
        )
        yield Hit(None, "still", len(still), 0.0, text, name=still[0].rpartition(".")[0])
        return
    slow = view.section("wiring").get("slow_norms", [])
    if slow:
        name, momentum = slow[0]
        text = (
            f"{len(slow)} batch norm(s), the first is {name}, with momentum={momentum:g}: the running statistics move "
            f"by that share a step, and need {1 / momentum:.0f} steps to follow; eval mode will use the initial ones"
        )
        yield Hit(None, "momentum", momentum, 0.005, text, name=name)


@rule(
    "NS505",
    "dropout that keeps almost nothing",
    severity="warning",
    meaning="Of each sample's features a fifth or less gets through, and others at every step: the gradient is mostly "
    "noise.",
    cure="p is the share that is dropped, not kept: nn.Dropout(0.1).",
    source="chosen by us: 0.8; published rates lie between 0.1 and 0.5 (Srivastava et al. 2014)",
)
def heavy_dropout(view: View) -> Iterator[Hit]:
    """A dropout in training mode drops 80 % or more of its inputs."""
    heavy = view.section("calls").get("heavy", [])
    if heavy:
        name, p = heavy[0]
        names = list(dict.fromkeys(n for n, _ in heavy if n))
        text = (
            f"dropout with p={p:g}{inside(listed(names) if names else '')} keeps {1 - p:.0%} only: p is dropped, "
            "not keep_prob"
        )
        yield Hit(None, "dropout", p, 0.8, text, name=name)


@rule(
    "NS506",
    "norms with random gains",
    severity="warning",
    meaning="A norm multiplies by its weight: near zero and of either sign, it takes away what the layers before it "
    "made.",
    cure="Initialize weights of two axes or more only: if p.dim() > 1: nn.init.normal_(p, std=0.02); norms start at "
    "weight 1, bias 0.",
    source="chosen by us: all gains below 0.3, a fifth or more of them negative",
)
def gains(view: View) -> Iterator[Hit]:
    """The gains of a normalization layer are small random numbers of both signs; gains of exactly zero are no such
    case.

    As ``for p in model.parameters(): nn.init.normal_(p, 0, 0.02)`` leaves them.
    """
    names = view.section("wiring").get("random_gains", [])
    if names:
        text = (
            f"the weight (gain, gamma) of the norms {listed(names)} is near 0 and of both signs: an initialization "
            "(normal_, xavier) overwrote the ones"
        )
        yield Hit(None, "gains", len(names), 0, text, name=names[0])


@rule(
    "NS507",
    "one norm for unlike inputs",
    severity="warning",
    meaning="A batch norm that is called on inputs of different scales keeps one running mean for all: in training "
    "each call has its own statistics, in eval mode all have a mixture that is right for none.",
    cure="Give each input its own norm: self.norm_a(a), self.norm_b(b).",
    source="chosen by us: statistics of two calls 3 standard deviations or a factor 3 apart, the median over channels",
)
def mixed(view: View) -> Iterator[Hit]:
    """One batch norm in training mode is called two to four times in a forward pass, on inputs whose means are three
    standard deviations apart, or whose standard deviations a factor three.
    """
    for name, apart in view.section("wiring").get("mixed_norms", []):
        if apart > 3:
            text = (
                f"{name} is shared: it is called several times in one pass on inputs whose means or scales are "
                f"{apart:.3g} standard deviations (a factor) apart; its running statistics mix them, and eval mode is "
                "another function"
            )
            yield Hit(None, "apart", apart, 3.0, text, name=name)


#: alpha times the rms of the input of a curve, from nets that we trained (the source of NS508): too much, too little
#: where it has fallen on the way to FALLEN of the first one's.
STEEP, FLAT, FALLEN = 20.0, 0.05, 0.2


@rule(
    "NS508",
    "alpha far from its input's scale",
    severity="warning",
    meaning="A curve tanh(alpha x) in the place of a norm (DyT, or erf) is a sign where alpha x is large, so that "
    "gradients are lost or explode, and the factor alpha where it is small, so that a plain net's signal shrinks layer "
    "by layer.",
    cure="Start each at alpha = 1 / rms of its input on a batch, first layers first (0.5 to 1.5 of that trains alike): "
    "module.alpha.data.fill_(1 / x.square().mean().sqrt()).",
    source="trained nets (12 plain layers on digits, SGD and Adam): .10, .20 as published (alpha = 0.5), .86, .86 with "
    "alpha x at rms 1, .57, .68 at 2, .10, .12 at 5; 8 residual blocks .93 up to 3, .88 at 20, .42 at 50",
)
def unfit_alpha(view: View) -> Iterator[Hit]:
    """By what a module does, not by its name: tanh or erf of a parameter (one number) times its input.

    With a the product of alpha and the rms of the input, Gaussian inputs pass the mean square E tanh(a z)^2 (0.17 at
    a = 0.5, 0.39 at 1, 1 when large) and, times alpha^2, the squared gradient E sech(a z)^4 (0.72, 0.46, 0.53/a when
    large). A norm divides by what comes; a fixed alpha does not, and a plain layer multiplies a by alpha times the
    gain. Fires where the median of a is above 20; or, of three or more, where the last a is below 0.05 and a fifth of
    the first one's. With skip connections small ones are fine, and are silent: a does not fall. Published starts: 0.5;
    of large language models 0.8 in front of attention, 0.2 elsewhere, less when wider.

    Reference: Zhu, Chen, He, LeCun, Liu 2025.
    """
    curves = view.section("norms").get("curves", [])
    scales = [(alpha * rms, name, alpha, rms) for name, _, alpha, rms in curves]
    if not scales:
        return
    middle, (first, *_), last = sorted(scales)[len(scales) // 2], scales[0], scales[-1]
    if middle[0] > STEEP:
        a, name, alpha, rms = next(s for s in scales if s[0] > STEEP)
        text = f"{name}: alpha = {alpha:.3g} times inputs of rms {rms:.3g} is {a:.3g}: all but a sign is lost"
    elif len(scales) >= 3 and last[0] < FLAT and last[0] < FALLEN * first:
        a, name, alpha, rms = last
        text = (
            f"alpha times the rms of the input falls from {first:.2g} at {scales[0][1]} to {a:.2g} at {name}: they "
            "multiply by alpha alone, and the signal shrinks"
        )
    else:
        return
    yield Hit(None, "alpha", a, STEEP if a > STEEP else FLAT, f"{text}; alpha = {1 / rms:.2g} fits {name}", name=name)
