"""One door: model, batch and loss are read by the rules of docs/inputs.md, the same by every verb.

The oracle of a case is what a user's loop would write: `call` the model, `pick` the outputs, `of` them the loss, in
plain torch. From it come the loss, the Gauss-Newton matrix and the Hessian that the verbs must have.
"""

import copy
import inspect
import math
import re
from collections import OrderedDict, UserDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.utils.rnn import pack_padded_sequence
from torch.utils.data import DataLoader, TensorDataset

import normscope as ns
from normscope.call.arguments import length

# Batches

draw = torch.Generator().manual_seed(0)
N = 12
X, Z = torch.randn(N, 6, generator=draw), torch.randn(N, 6, generator=draw)
Y = torch.arange(N) % 3
FLOATS = torch.randn(N, 3, generator=draw)
CHANCES = torch.randn(N, 3, generator=draw).softmax(1)
TOKENS, MASK = torch.randint(0, 9, (N, 5), generator=draw), torch.arange(5) < torch.arange(1, N + 1)[:, None]
PHOTOS, MASKS = torch.randn(4, 2, 3, 3, generator=draw), torch.randint(0, 3, (4, 3, 3), generator=draw)
STEPS, TAGS = torch.randn(N, 4, 6, generator=draw), torch.randint(0, 3, (N, 4), generator=draw)
FIVE = torch.randint(0, 3, (N, 5), generator=draw)
TIMED = torch.randn(7, N, 6, generator=draw)  # time first
EDGES = torch.randint(0, N, (2, 30), generator=draw)
NODES, GRAPH_OF = torch.randn(25, 6, generator=draw), torch.arange(25) * 6 // 25
UNEQUAL = [torch.randn(2, 4 + i % 2, 4, generator=draw) for i in range(6)]
BOXES = [{"labels": torch.tensor([i % 3])} for i in range(6)]
PACKED = pack_padded_sequence(STEPS, [4, 2] * 6, batch_first=True, enforce_sorted=False)
HOLES = torch.where(Y == 2, -100, Y)
WEIGHT = torch.tensor([1.0, 2.0, 3.0])

# Models


def net(outputs=3):
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, outputs))


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x, z):
        return self.head(torch.tanh(self.a(x) + self.b(z)))


class Parts(Two):
    def forward(self, parts):
        return super().forward(*parts)


class Wrapped(nn.Module):
    """A net whose outputs come in something."""

    def __init__(self, wrap):
        super().__init__()
        self.net, self.wrap = net(), wrap

    def forward(self, x):
        return self.wrap(self.net(x))


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(9, 4), nn.Linear(4, 3)

    def forward(self, tokens, mask):
        return self.head(torch.tanh(self.embed(tokens) * mask[..., None]).sum(1))


class Graph(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.head = nn.Linear(6, 4), nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, edge_index, x):
        neighbours = self.a(x)[edge_index[0]]
        return self.head(torch.tanh(self.b(x).index_add(0, edge_index[1], neighbours)))


class OfData(Graph):
    def forward(self, data):
        return super().forward(data.edge_index, data.x)


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.node, self.whole, self.head = nn.Linear(6, 5), nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x, graph):
        pooled = torch.zeros(6, 5).index_add(0, graph, torch.tanh(self.node(x)))
        return self.head(torch.tanh(self.whole(pooled)))


class Recurrent(nn.Module):
    def __init__(self, batch_first=False):
        super().__init__()
        self.lstm, self.head = nn.LSTM(6, 2, batch_first=batch_first), nn.Linear(2, 3)

    def forward(self, x):
        _, (last, _) = self.lstm(x)
        return self.head(last[-1])


class Attention(nn.Module):
    """torch's default: (time, samples, features)."""

    def __init__(self):
        super().__init__()
        self.inside, self.layer = nn.Linear(6, 2), nn.TransformerEncoderLayer(2, 1, 3, dropout=0.0)
        self.head = nn.Linear(2, 3)

    def forward(self, x):
        return self.head(self.layer(self.inside(x))[-1])


class TimeFirst(nn.Module):
    """No module says that time is first."""

    def __init__(self):
        super().__init__()
        self.inside, self.head = nn.Linear(6, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.inside(x)).mean(0))


class ModelOutput(OrderedDict):
    """As Hugging Face has them: a mapping with attributes."""

    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class Labelled(nn.Module):
    """As Hugging Face has them: labels in, loss and logits out."""

    def __init__(self):
        super().__init__()
        self.net = net()

    def forward(self, x, labels=None):
        logits = self.net(x)
        loss = {} if labels is None else {"loss": F.cross_entropy(logits, labels)}
        return ModelOutput(**loss, logits=logits)


class ScalarLoss(Labelled):
    def forward(self, x, labels):
        return F.cross_entropy(self.net(x), labels)


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.kind, self.size = nn.Linear(6, 4), nn.Linear(4, 3), nn.Linear(4, 1)

    def forward(self, x):
        h = torch.tanh(self.body(x))
        return {"kind": self.kind(h), "size": self.size(h)}


class Losses(Heads):
    def forward(self, x, kind, size):
        out = super().forward(x)
        return {"loss_kind": F.cross_entropy(out["kind"], kind), "loss_size": 5 * F.mse_loss(out["size"], size)}


class Detector(nn.Module):
    """Images of unequal size in a list, one dict of targets each, a dict of losses while training."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 3, 1)

    def forward(self, images, targets=None):
        tall = max(i.shape[1] for i in images)
        stacked = torch.stack([F.pad(i, (0, 0, 0, tall - i.shape[1])) for i in images])
        scores = self.head(torch.tanh(self.body(stacked))).mean((2, 3))
        return {
            "loss_kind": F.cross_entropy(scores, torch.cat([t["labels"] for t in targets])),
            "loss_size": scores.norm(),
        }


class Batched(nn.Module):
    """A layer for each axis of a square batch to be mistaken for the samples."""

    def __init__(self):
        super().__init__()
        self.inside, self.norm, self.head = nn.Linear(6, 5), nn.BatchNorm1d(5), nn.Linear(5, 3)

    def forward(self, x):
        return self.head(torch.tanh(self.norm(self.inside(x))))


# Cases


def same(out):
    return out


def loop_calls(inputs):
    """How a user's loop calls the model on these inputs."""
    if isinstance(inputs, Mapping):
        return lambda model: model(**inputs)
    if isinstance(inputs, tuple | list) and not hasattr(inputs, "_fields"):
        return lambda model: model(*inputs)
    return lambda model: model(inputs)


@dataclass(frozen=True)
class Case:
    """``given``: what follows the model; ``options``: keywords of a Step; ``n``: samples.

    ggn: ``due``: the curvature is the Gauss-Newton matrix of the loss in the outputs; ``open``: it is a number, the
        same
    in every verb, or is refused, in every verb. without: verbs that cannot be asked.
    """

    name: str
    make: Callable[[], nn.Module]
    given: tuple
    of: Callable[[Any], torch.Tensor]
    call: Callable[[nn.Module], Any]
    pick: Callable[[Any], torch.Tensor] = same
    options: dict = field(default_factory=dict)
    n: int = N
    ggn: str = "due"
    without: str = ""

    def model(self):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            return self.make()

    def loss(self, model):
        return self.of(self.pick(self.call(model)))

    def value(self, model):
        return self.loss(model).item()

    def first(self, model):
        """The leading arguments of a verb."""
        return (ns.Step(model, *self.given, **self.options),) if self.options else (model, *self.given)


def case(name, make, inputs=None, targets=None, loss=None, *, of, call=None, options=None, **more):
    given = () if inputs is None else (inputs, targets, loss)
    while given and given[-1] is None:
        given = given[:-1]
    without = more.pop("without", "") + (" race" if options else "")
    return Case(name, make, given, of, call or loop_calls(inputs), options=options or {}, without=without, **more)


def ce(targets=Y, **options):
    return lambda out: F.cross_entropy(out, targets, **options)


def one_hot_mse(out):
    return F.mse_loss(out, F.one_hot(Y, 3).float())


def bce(out, targets=Y == 1, **options):
    return F.binary_cross_entropy_with_logits(out[:, 0], targets.float(), **options)


def columns(out, targets=None):
    """Three yes-or-no questions."""
    return F.binary_cross_entropy_with_logits(out, F.one_hot(Y, 3).float())


def tasks(out, targets):
    return {"kind": F.cross_entropy(out["kind"], targets["kind"]), "size": F.mse_loss(out["size"], targets["size"])}


def both(out, targets):
    return sum(tasks(out, targets).values())


TASKS = {"kind": Y, "size": FLOATS[:, :1]}

CASES = [
    # inputs
    case("tensor", net, X, Y, of=ce()),
    case("tuple-of-one", net, (X,), Y, of=ce()),
    case("list-of-one", net, [X], Y, of=ce()),
    case("tuple-of-arguments", Two, (X, Z), Y, of=ce()),
    case("list-of-arguments", Two, [X, Z], Y, of=ce()),
    case("dict-of-arguments", Two, {"x": X, "z": Z}, Y, of=ce()),
    case("dict-like", Two, UserDict(x=X, z=Z), Y, of=ce(), call=lambda m: m(X, Z)),
    case("one-argument-is-a-list", Parts, ([X, Z],), Y, of=ce()),
    case("one-argument-is-a-tuple", Parts, (X, Z), Y, of=ce(), call=lambda m: m((X, Z))),
    case("tokens-and-a-mask", Masked, (TOKENS, MASK), Y, of=ce()),
    case("graph-data", OfData, SimpleNamespace(x=X, edge_index=EDGES), Y, of=ce(), without="race"),
    case("edges-first", Graph, (EDGES, X), Y, of=ce(), without="race"),
    case("packed-sequence", lambda: Recurrent(True), PACKED, Y, of=ce(), without="race"),
    case("sequence-first-lstm", Recurrent, TIMED, Y, of=ce(), without="race"),
    case("sequence-first-attention", Attention, TIMED, Y, of=ce(), without="race"),
    case("samples-on-axis-1", TimeFirst, TIMED, Y, of=ce(), options={"samples": 1}, without="tracker"),
    case("pooled-graphs", Pooled, (NODES, GRAPH_OF), Y[:6], of=ce(Y[:6]), n=6, without="race tracker"),
    case("detection", Detector, (UNEQUAL, BOXES), of=lambda out: sum(out.values()), n=6, ggn="open", without="race"),
    # outputs
    case("logits-of-a-dict", lambda: Wrapped(lambda f: {"logits": f}), X, Y, pick=lambda out: out["logits"], of=ce()),
    case("only-tensor-of-a-dict", lambda: Wrapped(lambda f: {"out": f}), X, Y, pick=lambda out: out["out"], of=ce()),
    case("logits-of-an-object", lambda: Wrapped(lambda f: SimpleNamespace(logits=f)), X, Y, pick=lambda o: o.logits,
        of=ce()),
    case("first-of-a-tuple", lambda: Wrapped(lambda f: (f, f.detach())), X, Y, pick=lambda out: out[0], of=ce()),
    case(
        "flat-outputs", lambda: Wrapped(lambda f: f[:, 0]), X, Z[:, 0], ggn="open",
        of=lambda out: F.mse_loss(out, Z[:, 0]),
    ),
    case("classes-on-axis-1-of-images", lambda: nn.Sequential(nn.Conv2d(2, 3, 3, padding=1)), PHOTOS, MASKS,
        of=ce(MASKS), n=4),
    case("classes-last-of-positions", net, STEPS, TAGS, of=lambda out: F.cross_entropy(out.flatten(0, 1),
        TAGS.flatten())),
    case(
        "classes-on-axis-1-of-positions", lambda: nn.Sequential(nn.Linear(6, 5), nn.Conv1d(4, 3, 1)), STEPS, FIVE,
        of=ce(FIVE), ggn="open",
    ),
    # targets
    case("ignored", net, X, HOLES, of=ce(HOLES)),
    case("minus-one-is-ignored-too", net, X, torch.where(Y == 2, -1, Y), of=ce(HOLES)),
    case(
        "ignored-positions", net, STEPS, torch.where(TAGS == 2, -100, TAGS),
        of=lambda out: F.cross_entropy(out[TAGS < 2], TAGS[TAGS < 2]),
    ),
    case("int32-classes", net, X, Y.int(), of=ce()),
    case("one-hot-integers", net, X, F.one_hot(Y, 3), "cross_entropy", of=ce()),
    case("one-hot-floats", net, X, F.one_hot(Y, 3).float(), "cross_entropy", of=ce()),
    case("probabilities", net, X, CHANCES, "cross_entropy", of=ce(CHANCES)),
    case("classes-with-mse", net, X, Y, "mse", of=one_hot_mse),
    case("floats", net, X, FLOATS, of=lambda out: F.mse_loss(out, FLOATS)),
    case("float64-floats", net, X, FLOATS.double(), of=lambda out: F.mse_loss(out, FLOATS)),
    case("float64-probabilities", net, X, CHANCES.double(), "cross_entropy", of=ce(CHANCES)),
    case("a-column", lambda: net(1), X, FLOATS[:, :1], of=lambda out: F.mse_loss(out, FLOATS[:, :1])),
    case("booleans", net, X, F.one_hot(Y, 3).bool(), "bce_with_logits", of=columns),
    case("dict-of-targets", Heads, X, TASKS, both, of=lambda out: both(out, TASKS), ggn="open"),
    # losses by name
    case("mse", net, X, FLOATS, "mse", of=lambda out: F.mse_loss(out, FLOATS)),
    case("squared-error", net, X, FLOATS, "squared_error", of=lambda out: (out - FLOATS).square().sum() / (2 * N)),
    case("cross-entropy", net, X, Y, "cross_entropy", of=ce()),
    case("bce-with-logits", net, X, F.one_hot(Y, 3).float(), "bce_with_logits", of=columns),
    case("l1", net, X, FLOATS, "l1", of=lambda out: F.l1_loss(out, FLOATS), ggn="open"),
    case("huber", net, X, FLOATS, "huber", of=lambda out: F.huber_loss(out, FLOATS)),
    case("nll", lambda: net().append(nn.LogSoftmax(1)), X, Y, "nll", of=lambda out: F.nll_loss(out, Y), ggn="open"),
    # losses of torch
    case("module-mse", net, X, FLOATS, nn.MSELoss(), of=lambda out: F.mse_loss(out, FLOATS)),
    case("module-mse-sum", net, X, FLOATS, nn.MSELoss(reduction="sum"), of=lambda out: (out - FLOATS).square().sum()),
    case("module-huber", net, X, FLOATS, nn.HuberLoss(delta=0.5), of=lambda out: F.huber_loss(out, FLOATS, delta=0.5)),
    case("module-smooth-l1", net, X, FLOATS, nn.SmoothL1Loss(beta=0.5), of=lambda out: F.smooth_l1_loss(out, FLOATS,
        beta=0.5)),
    case("module-cross-entropy", net, X, Y, nn.CrossEntropyLoss(), of=ce()),
    case("module-weights", net, X, Y, nn.CrossEntropyLoss(weight=WEIGHT), of=ce(weight=WEIGHT)),
    case("module-ignore-index", net, X, Y, nn.CrossEntropyLoss(ignore_index=1), of=ce(ignore_index=1)),
    case("module-label-smoothing", net, X, Y, nn.CrossEntropyLoss(label_smoothing=0.2), of=ce(label_smoothing=0.2)),
    case("module-sum", net, X, HOLES, nn.CrossEntropyLoss(reduction="sum"), of=ce(HOLES, reduction="sum")),
    case("module-probabilities", net, X, CHANCES, nn.CrossEntropyLoss(), of=ce(CHANCES)),
    case(
        "module-images", lambda: nn.Sequential(nn.Conv2d(2, 3, 1)), PHOTOS, MASKS, nn.CrossEntropyLoss(WEIGHT),
        of=ce(MASKS, weight=WEIGHT), n=4,
    ),
    case(
        "module-bce-weights", net, X, F.one_hot(Y, 3).float(), nn.BCEWithLogitsLoss(pos_weight=WEIGHT),
        of=lambda out: F.binary_cross_entropy_with_logits(out, F.one_hot(Y, 3).float(), pos_weight=WEIGHT),
    ),
    case(
        "module-nll-weights", lambda: net().append(nn.LogSoftmax(1)), X, Y, nn.NLLLoss(WEIGHT), ggn="open",
        of=lambda out: F.nll_loss(out, Y, WEIGHT),
    ),
    # losses of the user
    case("callable", net, X, Y, lambda out, t: F.cross_entropy(2 * out, t), of=lambda out: F.cross_entropy(2 * out, Y)),
    case("callable-of-no-targets", net, X, None, lambda out, t: out.square().mean(),
        of=lambda out: out.square().mean()),
    case("callable-one-logit", net, X, Y == 1, bce, of=bce),
    case("functional", net, X, Y, F.cross_entropy, of=ce()),
    case("functional-mse", net, X, FLOATS, F.mse_loss, of=lambda out: F.mse_loss(out, FLOATS)),
    # losses of the model
    case("own-loss", Labelled, {"x": X, "labels": Y}, pick=lambda out: out.logits, of=ce(), ggn="open"),
    case(
        "own-loss-by-a-callable", Labelled, {"x": X, "labels": Y}, None, lambda out, t: out.loss,
        pick=lambda out: out.loss, of=same, ggn="open",
    ),
    case("own-scalar", ScalarLoss, (X, Y), of=same, ggn="open"),
    case("dict-of-losses", Losses, (X, Y, FLOATS[:, :1]), of=lambda out: sum(out.values()), ggn="open"),
    # batches of a loop
    case("list-of-pairs", net, of=ce(), call=lambda m: m(X), options={"data": [(X, Y)]}),
    case("loader", net, of=ce(), call=lambda m: m(X), options={"data": DataLoader(TensorDataset(X, Y), N)}),
    case("loader-and-loss", net, of=one_hot_mse, call=lambda m: m(X), options={"data": [[X, Y]], "loss": "mse"}),
    case("pairs-of-arguments", Two, of=ce(), call=lambda m: m(X, Z), options={"data": [((X, Z), Y)]}),
    case(
        "dicts-with-labels", Labelled, of=ce(), call=lambda m: m(X), pick=lambda out: out.logits, ggn="open",
        options={"data": [{"x": X, "labels": Y}]},
    ),
    case(
        "step", net, of=ce(), call=lambda m: m(X), ggn="open", without="cure",
        options={"data": [(X, Y)], "step": lambda model, batch: F.cross_entropy(model(batch[0]), batch[1])},
    ),
    case(
        "step-with-a-dict-of-losses", Heads, of=lambda out: both(out, TASKS), call=lambda m: m(X), ggn="open",
        without="cure",
        options={
            "data": [(X, TASKS)],
            "step": lambda model, batch: tasks(model(batch[0]), batch[1]),
        },
    ),
]  # fmt: skip


def each(without="", plain=False):
    """All cases that can be asked; ``plain``: those that need no Step."""
    kept = [c for c in CASES if without not in c.without.split() and not (plain and c.options)]
    return pytest.mark.parametrize("case", kept, ids=[c.name for c in kept])


def close(found, wanted, rtol=1e-4):
    torch.testing.assert_close(
        torch.as_tensor(found, dtype=torch.float64), torch.as_tensor(wanted, dtype=torch.float64),
        rtol=rtol, atol=rtol * float(torch.as_tensor(wanted).detach().abs().max()), equal_nan=True,
    )  # fmt: skip


def gauss_newton(case, model):
    """J^T H J, H the Hessian of the loss in the outputs, row by row."""
    parameters = list(model.parameters())
    out = case.pick(case.call(model))
    rows = [
        torch.cat(
            [g.flatten() for g in torch.autograd.grad(entry, parameters, retain_graph=True, materialize_grads=True)]
        )
        for entry in out.flatten()
    ]
    hessian = torch.autograd.functional.hessian(case.of, out.detach()).reshape(out.numel(), out.numel())
    jacobian = torch.stack(rows)
    return jacobian.T @ hessian @ jacobian


def full_hessian(case, model):
    """The Hessian of the loss in the parameters, row by row."""
    parameters = list(model.parameters())
    with sdpa_kernel(SDPBackend.MATH):
        slope = torch.autograd.grad(case.loss(model), parameters, create_graph=True, materialize_grads=True)
        flat = torch.cat([g.flatten() for g in slope])
        return torch.stack([
            torch.cat([g.flatten() for g in torch.autograd.grad(entry, parameters, retain_graph=True,
                materialize_grads=True)])
            if entry.requires_grad else torch.zeros_like(flat)
            for entry in flat
        ])  # fmt: skip


def top(matrix):
    return float(torch.linalg.eigvalsh(matrix.double())[-1])


# The table


@each()
def test_probe_and_diagnose_have_the_loss_that_the_loop_has(case):
    model = case.model()
    wanted = case.value(model)
    close(ns.probe(*case.first(model), backward=True).facts["loss_value"], wanted)
    close(ns.diagnose(*case.first(model)).facts["loss_value"], wanted)


@each()
def test_probe_and_diagnose_count_the_samples(case):
    model = case.model()
    assert ns.probe(*case.first(model), backward=True).facts["batch_size"] == case.n
    assert ns.diagnose(*case.first(model)).facts["batch_size"] == case.n


@each(plain=True)
def test_a_step_is_read_as_the_arguments_are(case):
    model = case.model()
    plain = ns.probe(model, *case.given, backward=True)
    step = ns.probe(ns.Step(model, *case.given), backward=True)
    assert repr(step.records) == repr(plain.records)
    assert step.facts["loss_value"] == plain.facts["loss_value"]


@each()
def test_the_curvature_is_that_of_the_same_loss(case):
    model = case.model()
    diagnosed = ns.diagnose(*case.first(model), lr=0.1, theory=False).facts
    if case.ggn == "due":
        wanted = gauss_newton(case, model)
        fisher = ns.fisher(*case.first(model)).dense()
        close(fisher, wanted, 1e-3)
    try:
        found = ns.sharpness(*case.first(model), probes=0, compare_modes=False)
    except ns.UsageError:
        assert case.ggn == "open"
        assert "lambda_max" not in diagnosed
        assert any("sharpness" in note for note in diagnosed["notes"])
        return
    if case.ggn == "due":
        close(found.lambda_max, top(wanted), 2e-3)
    close(diagnosed["lambda_max"], found.lambda_max, 2e-3)
    close(diagnosed["max_stable_lr"], found.max_stable_lr, 2e-3)


@each()
def test_the_hessian_is_that_of_the_same_loss(case):
    model = case.model()
    close(ns.hessian(*case.first(model)).dense(), full_hessian(case, model), 1e-3)


@each(without="cure")
def test_cure_takes_what_diagnose_takes(case):
    model = case.model()
    before = copy.deepcopy(model.state_dict())
    step = case.first(model)
    options = {} if len(step) < 4 else {"loss": step[3]}
    cured = ns.cure(step[0], "lsuv", *step[1:3], **options)
    assert isinstance(cured, nn.Module)
    assert any(not torch.equal(before[name], value) for name, value in cured.state_dict().items())
    assert math.isfinite(case.value(cured))


@each(without="race")
def test_a_race_starts_from_the_same_loss(case):
    model = case.model()
    inputs, targets, loss = (*case.given, None, None)[:3]
    race = ns.race({"it": model}, (inputs, targets), loss=loss, batch=case.n, epochs=1, lr=1e-3, seeds=1, geometry=0)
    first = race.table.filter((race.table["signal"] == "batch") & (race.table["metric"] == "loss")).sort("step")
    close(first["value"][0], case.value(model))


@each(without="tracker")
def test_the_tracker_has_the_numbers_of_probe(case):
    model = case.model()
    metrics = ("orthogonality_gap", "gradient_norm", "relative_gradient")
    probed = ns.probe(*case.first(model), backward=True).frame()
    with ns.Tracker(model, every=1, metrics=metrics) as tracker:
        case.loss(model).backward()
    tracked = tracker.frame()
    assert set(tracked["samples"]) == {case.n}
    both = tracked.join(probed, on=["name", "kind", "call", "signal", "metric"], suffix="_probed")
    assert {"activation", "gradient", "weight"} <= set(both["signal"])
    for row in both.iter_rows(named=True):
        close(row["value"], row["value_probed"])


# Refused alike

REFUSED = {
    "vector-loss": (net, X, Y, nn.CrossEntropyLoss(reduction="none")),
    "loss-of-nothing": (net, X, Y, lambda out, t: None),
    "no-such-loss": (net, X, Y, "crossentropy"),
    "wrong-length": (net, X, Y[:10], None),
    "no-such-class": (net, X, Y + 1, None),
    "floats-for-classes": (net, X, Y.float(), "cross_entropy"),
    "mse-of-another-shape": (net, X, FLOATS[:, :2], "mse"),
    "all-ignored": (net, X, torch.full_like(Y, -100), None),
    "non-finite-targets": (net, X, FLOATS / 0, None),
    "a-list-of-batches": (net, [X, X], Y, None),
    "a-loader": (net, DataLoader(TensorDataset(X, Y), 4), None, None),
    "numpy-inputs": (net, X.numpy(), Y, None),
    "wrong-width": (net, X[:, :4], Y, None),
    "column-against-flat": (lambda: net(1), X, FLOATS[:, 0], "mse"),
    "classes-for-torchs-mse": (net, X, Y, nn.MSELoss()),  # as torch does; one-hot rows are read by name only
    "unnamed-dict-of-targets": (net, X, {"kind": Y}, None),
}
ASK = {
    "probe": lambda m, x, y, loss: ns.probe(m, x, y, loss, backward=True),
    "diagnose": lambda m, x, y, loss: ns.diagnose(m, x, y, loss),
    "sharpness": lambda m, x, y, loss: ns.sharpness(m, x, y, loss),
    "fisher": lambda m, x, y, loss: ns.fisher(m, x, y, loss),
    "hessian": lambda m, x, y, loss: ns.hessian(m, x, y, loss).dense(),
    "cure": lambda m, x, y, loss: ns.cure(m, "lsuv", x, y, loss=loss),
    "race": lambda m, x, y, loss: ns.race(
        {"it": m}, (x, y), loss=loss, batch=N, epochs=1, lr=1e-3, seeds=1, geometry=0
    ),
    "step": lambda m, x, y, loss: ns.probe(ns.Step(m, x, y, loss), backward=True),
}


def said_no(ask, make, *given):
    """The error that a verb raises, ``None`` if it answers."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        model = make()
    try:
        ask(model, *given)
    except Exception as error:
        return error
    return None


@pytest.mark.parametrize("verb", ASK)
@pytest.mark.parametrize("name", REFUSED)
def test_what_one_verb_refuses_every_verb_refuses(name, verb):
    error = said_no(ASK[verb], *REFUSED[name])
    assert isinstance(error, ns.UsageError), f"{verb}: {error!r}"


#: What the contract leaves open: every verb answers, with one loss, or every verb refuses.
OPEN = {
    "float64-inputs": (net, X.double(), Y, None),
    "numpy-targets": (net, X, FLOATS.numpy(), "mse"),
    "list-of-classes": (net, X, Y.tolist(), None),
    "boolean-classes": (lambda: net(2), X, Y == 1, "cross_entropy"),
    "column-of-classes": (net, X, Y[:, None], None),
    "bytes-for-classes": (net, X, Y.byte(), None),
    "flat-against-column": (lambda: Wrapped(lambda f: f[:, 0]), X, FLOATS[:, :1], "mse"),
    "half-inputs": (net, X.half(), Y, None),
}


@pytest.mark.parametrize("name", OPEN)
def test_every_verb_answers_or_every_verb_refuses(name):
    errors = {verb: said_no(ask, *OPEN[name]) for verb, ask in ASK.items()}
    assert len({e is None for e in errors.values()}) == 1, errors
    assert all(e is None or isinstance(e, ns.UsageError) for e in errors.values()), errors


def in_inference_mode():
    with torch.inference_mode():
        return net()


@pytest.mark.parametrize("verb", ASK)
def test_a_model_made_in_inference_mode_is_read_or_refused(verb):
    error = said_no(ASK[verb], in_inference_mode, X, Y, None)
    assert error is None or isinstance(error, ns.UsageError), f"{verb}: {error!r}"


BROADCAST = ["mse", "l1", "huber", nn.MSELoss(), nn.L1Loss(), nn.HuberLoss(), nn.SmoothL1Loss(), None]


@pytest.mark.filterwarnings("ignore:Using a target size")
@pytest.mark.parametrize("verb", ["probe", "diagnose", "sharpness", "hessian", "race"])
@pytest.mark.parametrize("loss", BROADCAST, ids=str)
def test_a_column_against_flat_targets_is_never_broadcast_without_a_word(loss, verb):
    given = (lambda: net(1), X, FLOATS[:, 0], loss)
    found = []
    ask = ns.hessian if verb == "hessian" else ASK[verb]  # the map, which has facts
    error = said_no(lambda *a: found.append(ask(*a)), *given)
    if error is not None:
        assert isinstance(error, ns.UsageError)
        assert "(12, 1)" in str(error)
        assert "(12,)" in str(error)
        return
    facts = getattr(found[0], "facts", {})
    told = " ".join(map(str, [*facts.get("notes", ()), *getattr(found[0], "warnings", ())]))
    assert "(12, 1)" in told or "broadcast" in told


# Losses, and what belongs to them


def jacobian_of(model, x=X):
    out = model(x)
    return torch.stack([
        torch.cat([g.flatten() for g in torch.autograd.grad(e, list(model.parameters()), retain_graph=True)])
        for e in out.flatten()
    ])  # fmt: skip


def made(make=net):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return make()


def test_without_targets_the_curvature_is_that_of_half_the_squared_error():
    model = made()
    j = jacobian_of(model)
    close(ns.fisher(model, X).dense(), j.T @ j / N, 1e-3)
    close(ns.fisher(model, X, loss="squared_error").dense(), j.T @ j / N, 1e-3)
    close(ns.ntk(model, X).dense(), j @ j.T, 1e-3)
    close(ns.sharpness(model, X).lambda_max, top(j.T @ j / N), 2e-3)
    close(ns.diagnose(model, X, lr=0.1).facts["lambda_max"], top(j.T @ j / N), 2e-3)


def test_mse_is_two_over_c_times_half_the_squared_error():
    model = made()
    small, torchs = (ns.fisher(model, X, FLOATS, loss).dense() for loss in ("squared_error", "mse"))
    close(torchs, 2 / 3 * small)
    close(ns.fisher(model, X, FLOATS, nn.MSELoss()).dense(), torchs)
    close(ns.fisher(model, X, FLOATS).dense(), torchs)


@pytest.mark.parametrize("targets", [Y, FLOATS], ids=["classes", "floats"])
def test_without_a_loss_the_targets_choose_it_in_every_verb(targets):
    model, name = made(), "mse" if targets.is_floating_point() else "cross_entropy"
    for verb in (ns.fisher, ns.hessian):
        close(verb(model, X, targets).dense(), verb(model, X, targets, name).dense())
    assert ns.sharpness(model, X, targets).loss == name
    assert ns.probe(model, X, targets).facts["loss"] == name
    assert ns.diagnose(model, X, targets, lr=0.1).fisher.loss == name
    race = ns.race({"it": model}, (X, targets), batch=N, epochs=1, lr=1e-3, seeds=1, geometry=0)
    assert race.facts["loss"] == name


@pytest.mark.parametrize(
    ("loss", "value"),
    [
        ("mse", F.mse_loss),
        ("squared_error", lambda out, t: (out - t).square().sum() / (2 * len(out))),
        (nn.MSELoss(), F.mse_loss),
        (nn.MSELoss(reduction="sum"), lambda out, t: (out - t).square().sum()),
        (lambda out, t: 7 * F.mse_loss(out, t), lambda out, t: 7 * F.mse_loss(out, t)),
    ],
    ids=["mse", "squared_error", "module", "module-sum", "callable"],
)
def test_gradient_descent_on_the_given_loss_turns_unstable_at_max_stable_lr(loss, value):
    rate = ns.sharpness(made(lambda: nn.Linear(6, 3)), X, FLOATS, loss).max_stable_lr

    def end(lr):
        model = made(lambda: nn.Linear(6, 3))
        optimiser = torch.optim.SGD(model.parameters(), lr)
        for _ in range(300):
            optimiser.zero_grad()
            (now := value(model(X), FLOATS)).backward()
            optimiser.step()
        return float(now.detach())

    start = float(value(made(lambda: nn.Linear(6, 3))(X), FLOATS).detach())
    assert end(0.97 * rate) < start
    assert end(1.03 * rate) > 10 * start


def said(facts, word):
    """Whether a word that begins so stands in what the facts say."""
    return re.search(rf"\b{word}", " ".join(map(str, facts.values())).lower()) is not None


@pytest.mark.parametrize(
    ("given", "word"),
    [
        ((net, X, Y, "mse"), "one-hot"),
        ((net, X, F.one_hot(Y, 3), "cross_entropy"), "one-hot"),
        ((net, X, HOLES, None), "ignor"),
        ((lambda: nn.Conv2d(2, 3, 1), PHOTOS, MASKS, None), "axis"),
        ((Losses, (X, Y, FLOATS[:, :1]), None, None), "sum"),
        ((net, X, None, None), "random cotangent"),
        ((Labelled, {"x": X, "labels": Y}, None, None), "own"),
    ],
    ids=["classes-with-mse", "one-hot", "ignored", "class-axis", "dict-of-losses", "no-targets", "own-loss"],
)
def test_our_readings_are_said_in_the_facts(given, word):
    make, *rest = given
    assert said(ns.diagnose(made(make), *rest).facts, word)


def test_nothing_is_said_where_nothing_was_read_otherwise():
    assert ns.diagnose(made(), X, Y).facts["notes"] == []
    assert ns.probe(made(), X, FLOATS, "mse").facts["notes"] == []


def test_results_print_the_loss_that_was_used():
    assert "cross_entropy" in repr(ns.sharpness(made(), X, Y))
    assert "squared_error" in repr(ns.sharpness(made(), X))


def test_how_cross_entropy_is_spelled_changes_no_finding():
    model, losses = (
        made(),
        (None, "cross_entropy", nn.CrossEntropyLoss(), F.cross_entropy, lambda out, t: F.cross_entropy(out, t)),
    )
    assert len({str(ns.diagnose(model, X, Y, loss).findings) for loss in losses}) == 1


# The model's own step


def test_a_language_model_of_hugging_face_has_its_own_loss():
    transformers = pytest.importorskip("transformers")
    config = transformers.GPT2Config(
        n_embd=8, n_layer=1, n_head=1, vocab_size=9, n_positions=8, bos_token_id=0, eos_token_id=0,
        resid_pdrop=0, embd_pdrop=0, attn_pdrop=0,
    )  # fmt: skip
    model = made(lambda: transformers.GPT2LMHeadModel(config))
    batch = transformers.BatchEncoding({"input_ids": TOKENS, "labels": TOKENS})
    wanted = float(model(**batch).loss.detach())
    for step in (ns.Step(model, batch), ns.Step(model, data=[batch])):
        facts = ns.diagnose(step).facts
        close(facts["loss_value"], wanted)
        assert facts["batch_size"] == N


def stepping(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1])


@pytest.mark.parametrize("verb", [ns.jacobian, ns.fisher, ns.ntk, ns.sharpness], ids=lambda v: v.__name__)
def test_what_needs_outputs_says_so_when_there_is_only_a_step(verb):
    with pytest.raises(ns.UsageError, match="output") as caught:
        verb(ns.Step(made(), data=[(X, Y)], step=stepping))
    assert "step" in str(caught.value)


def test_a_step_takes_the_batch_from_inputs_too():
    model = made()
    wanted = float(F.cross_entropy(model(X), Y).detach())
    for step in (ns.Step(model, (X, Y), step=stepping), ns.Step(model, X, Y, step=stepping)):
        close(ns.diagnose(step).facts["loss_value"], wanted)


def test_the_sum_of_a_steps_losses_is_said():
    step = ns.Step(made(), data=[(X, Y)], step=lambda m, b: {"a": stepping(m, b), "b": m(b[0]).norm()})
    assert said(ns.diagnose(step).facts, "sum")


def test_a_whole_loop_body_is_taken_and_leaves_the_model_alone():
    model = made()
    before, optimiser = copy.deepcopy(model.state_dict()), torch.optim.SGD(model.parameters(), 0.1)

    def body(model, optimizer, loss_fn, inputs, targets):
        optimizer.zero_grad()
        loss = loss_fn(model(inputs), targets)
        loss.backward()
        optimizer.step()
        return loss

    step = ns.Step(model, X, Y, nn.CrossEntropyLoss(), optimizer=optimiser, train_step=body)
    close(ns.diagnose(step).facts["loss_value"], float(F.cross_entropy(model(X), Y).detach()))
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not optimiser.state


# Several batches

PARTS = [(X[:8], Y[:8]), (X[8:], Y[8:])]


def test_the_curvature_of_several_batches_weighs_them_by_their_samples():
    model = made(Batched)  # batch norm: each batch is coupled inside itself
    for verb in (ns.fisher, ns.hessian):
        first, second = (verb(model, x, y).dense() for x, y in PARTS)
        close(verb(ns.Step(model, data=PARTS)).dense(), (8 * first + 4 * second) / N)


def test_what_looks_at_one_batch_takes_the_first():
    model = made()
    step = ns.Step(model, data=PARTS)
    wanted = float(F.cross_entropy(model(X[:8]), Y[:8]).detach())
    for facts in (ns.probe(step).facts, ns.diagnose(step).facts):
        assert facts["batch_size"] == 8
        close(facts["loss_value"], wanted)


def test_a_step_of_an_iterator_is_refused_or_can_be_asked_twice():
    try:
        step = ns.Step(made(), data=iter(PARTS))
    except ns.UsageError as error:
        assert "iterator" in str(error)  # noqa: PT017
        return
    assert ns.probe(step).facts["loss_value"] == ns.probe(step).facts["loss_value"]


def test_a_step_is_frozen():
    step = ns.Step(made(), X, Y)
    with pytest.raises(AttributeError):
        step.loss = "mse"


def test_step_of_is_the_door():
    model = made()
    step = ns.Step.of(model, X, Y)
    assert isinstance(step, ns.Step)
    assert ns.Step.of(step) is step


def test_a_step_has_the_signature_of_the_design():
    names = list(inspect.signature(ns.Step).parameters)
    assert names[:4] == ["model", "inputs", "targets", "loss"]
    assert {"optimizer", "data", "valid", "step", "train_step", "mode", "samples", "seed"} <= set(names)


LOADER = DataLoader(TensorDataset(X, Y), N)


@pytest.mark.parametrize(
    ("verb", "options"),
    [
        (ns.probe, {"data": LOADER}), (ns.diagnose, {"data": LOADER}), (ns.sharpness, {"data": LOADER}),
        (ns.hessian, {"data": LOADER}), (ns.probe, {"data": LOADER, "step": stepping}),
        (ns.diagnose, {"data": LOADER, "step": stepping}), (ns.hessian, {"data": LOADER, "step": stepping}),
    ],
    ids=lambda v: v.__name__ if callable(v) else "-".join(v),
)  # fmt: skip
def test_a_verb_takes_the_keywords_of_a_step(verb, options):
    verb(made(), **options)


@pytest.mark.parametrize("verb", [ns.probe, ns.diagnose, ns.sharpness, ns.hessian], ids=lambda v: v.__name__)
def test_a_verb_takes_the_axis_of_the_samples(verb):
    verb(made(TimeFirst), TIMED, Y, samples=1)


# The axis of the samples


def cosine(rows):
    """Mean |cosine| of the pairs of rows."""
    unit = F.normalize(rows.detach().double().flatten(1), dim=1)
    return float((unit @ unit.T).abs()[~torch.eye(len(unit), dtype=torch.bool)].mean())


def seen(found, name):
    return [r.value for r in found.records if (r.name, r.metric, r.signal) == (name, "mean_abs_cosine", "activation")]


def test_rows_of_a_sequence_first_lstm_are_its_samples():
    model = made(Recurrent)
    found = ns.probe(model, TIMED, Y)
    close(seen(found, "lstm")[0], cosine(model.lstm(TIMED)[0].transpose(0, 1)))
    close(seen(found, "")[0], cosine(TIMED.transpose(0, 1)))


def test_rows_behind_a_pooling_are_the_pooled_ones():
    model, kept = made(Pooled), []
    with model.whole.register_forward_hook(lambda _m, _args, out: kept.append(out)):
        model(NODES, GRAPH_OF)
    found = seen(ns.probe(model, (NODES, GRAPH_OF), Y[:6]), "whole")
    assert not found or abs(found[0] - cosine(kept[0])) < 1e-4


def test_a_width_equal_to_the_batch_is_not_taken_for_the_samples():
    class Summary(nn.Module):
        def __init__(self):
            super().__init__()
            self.inside, self.whole, self.head = nn.Linear(6, N), nn.Linear(N, N), nn.Linear(N, 3)

        def forward(self, x):
            h = torch.tanh(self.inside(x))
            return self.head(h + self.whole(h[:5]).mean(0))  # (5, 12): five rows that are no samples

    assert not seen(ns.probe(made(Summary), X, Y), "whole")


def test_the_rows_of_the_nodes_count_where_the_edges_come_first():
    model = made(Graph)
    close(seen(ns.probe(model, (EDGES, X), Y), "b")[0], cosine(model.b(X)))


SQUARE = torch.randn(N, N, 6, generator=draw)


def test_a_note_says_which_of_two_axes_was_taken():
    for facts in (ns.probe(made(TimeFirst), SQUARE, Y).facts, ns.diagnose(made(TimeFirst), SQUARE, Y).facts):
        assert any("samples=" in note for note in facts["notes"])


@pytest.mark.parametrize("axis", [0, 1])
def test_samples_decides_between_two_axes(axis):
    model = made(TimeFirst)
    found = ns.probe(ns.Step(model, SQUARE, Y, samples=axis))
    assert not any("samples=" in note for note in found.facts["notes"])
    close(seen(found, "inside")[0], cosine(model.inside(SQUARE).transpose(0, axis)))


# Modes


@pytest.mark.parametrize("mode", ["train", "eval"])
def test_a_steps_mode_is_that_of_every_verb(mode):
    model = made(Batched)
    step = ns.Step(model, X, Y, mode=mode)
    assert ns.probe(step).facts["mode"] == mode
    assert ns.diagnose(step).facts["mode"] == mode
    close(ns.fisher(step).dense(), ns.fisher(model, X, Y, mode=mode).dense())
    close(ns.hessian(step).dense(), ns.hessian(model, X, Y, mode=mode).dense())


def test_arguments_are_cured_alike_however_they_are_written():
    ways = [(X, Z)], [[X, Z]], [{"x": X, "z": Z}], [UserDict(x=X, z=Z)]
    first, *rest = (ns.cure(made(Two), "lsuv", *way, Y).state_dict() for way in ways)
    for other in rest:
        assert all(torch.equal(first[name], other[name]) for name in first)


def test_the_callers_tensors_are_as_before_where_a_model_works_in_place():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            return self.net(x.mul_(2.0))

    x = X.clone()
    for verb in (ns.probe, ns.diagnose, ns.sharpness, ns.hessian):
        verb(made(InPlace), x, Y)
        assert torch.equal(x, X)


@pytest.mark.parametrize(
    ("batch", "n"),
    [((torch.zeros(64, 10), torch.zeros(64, 10), torch.arange(128)), 64),
     ((torch.zeros(2, 5), torch.zeros(2), torch.zeros(2)), 2),
     ([torch.zeros(3, 8, 9), torch.zeros(3, 7, 8), torch.zeros(3, 9, 9)], 3)],
)  # fmt: skip
def test_a_batch_of_tensors_of_several_ranks_has_as_many_samples_as_the_first(batch, n):
    assert length(batch) == n
