"""What is asked wrongly is answered in our words: what must hold, what came, what to do. Never by an error of torch.

One entry a case: its name, the call, and what the message must show of what came (one of several spellings of the
    value,
the type or the shape). Errors that the model's own code raises pass through as they are, with a note.
"""

import os
import re
import traceback
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import normscope as ns

# What is sent

draw = torch.Generator().manual_seed(0)
X, Y = torch.randn(12, 6, generator=draw), torch.arange(12) % 3
FLOATS = torch.randn(12, 3, generator=draw)
PHOTOS = torch.rand(4, 3, 8, 8, generator=draw)
TOKENS = torch.randint(0, 9, (12, 5), generator=draw)
LOADER = DataLoader(TensorDataset(X, Y), 4)
HOLED = torch.where(torch.arange(6) == 2, torch.nan, X)
ENDLESS = torch.where(torch.arange(6) == 2, torch.inf, X)
with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # prototypes and deprecations of torch
    CSR = X.to_sparse_csr()
    NESTED = torch.nested.nested_tensor([torch.ones(2, 6), torch.ones(3, 6)])
    try:
        QUANTIZED = torch.quantize_per_tensor(X, 0.1, 0, torch.quint8)
    except (AttributeError, RuntimeError):  # on its way out of torch
        QUANTIZED = None


def net(outputs=3):
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, outputs))


def photo_net():
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3))


def token_net():
    return nn.Sequential(nn.Embedding(9, 6), nn.Flatten(), nn.Linear(30, 3))


def normed():
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3))


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x, z):
        return self.a(x) + self.b(z)


class Returns(nn.Module):
    """A net that makes something else of its outputs."""

    def __init__(self, change):
        super().__init__()
        self.net, self.change = net(), change

    def forward(self, x):
        return self.change(self.net(x))


def frozen():
    return net().requires_grad_(False)


def lazy():
    return nn.Sequential(nn.LazyLinear(8), nn.ReLU(), nn.LazyLinear(3))


def unreal():
    return net().to("meta")


def spoilt():
    model = net()
    with torch.no_grad():
        model[0].weight[1, 1] = torch.nan
    return model


def quantized():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.ao.quantization.quantize_dynamic(net(), {nn.Linear}, dtype=torch.qint8)


# How it is asked


def race(data=(X, Y), **options):
    given = {"variants": {"it": net()}, "epochs": 1, "batch": 4, "lr": 0.01, "seeds": 1, "geometry": 0, **options}
    return ns.race(given.pop("variants"), data, **given)


ASK: dict[str, Callable[..., Any]] = {
    "probe": lambda m, x=X, y=None, loss=None: ns.probe(m, x, y, loss),
    "diagnose": lambda m, x=X, y=None, loss=None: ns.diagnose(m, x, y, loss),
    "sharpness": lambda m, x=X, y=None, loss=None: ns.sharpness(
        m, x, y, **({"loss": loss} if loss is not None else {})
    ),
    "fisher": lambda m, x=X, y=None, loss=None: ns.fisher(m, x, y, **({"loss": loss} if loss is not None else {})),
    "hessian": lambda m, x=X, y=FLOATS, loss=None: ns.hessian(
        m, x, FLOATS if y is None else y, **({"loss": loss} if loss is not None else {})
    ).dense(),
    "jacobian": lambda m, x=X: ns.jacobian(m, x),
    "ntk": lambda m, x=X: ns.ntk(m, x),
    "cure": lambda m, x=X, y=None, loss=None: ns.cure(m, "lsuv", x, y, loss=loss),
    "race": lambda m, x=X, y=Y, loss=None: race((x, Y if y is None else y), variants={"it": m}, loss=loss),
    "tracker": lambda m: ns.Tracker(m),
    "step": lambda m, x=X, y=None, loss=None: ns.probe(ns.Step(m, x, y, loss)),
}


@dataclass(frozen=True)
class Wrong:
    """``shows``: the message holds one of these."""

    name: str
    call: Callable[[], Any]
    shows: tuple[str, ...]


def wrong(name, call, *shows):
    return [Wrong(name, call, shows)]


def each(verbs, name, make, *given, shows):
    """The same wrong thing, asked of several verbs."""
    return [Wrong(f"{name}-{verb}", lambda verb=verb: ASK[verb](make(), *given), shows) for verb in verbs.split()]


EVERY = "probe diagnose sharpness fisher hessian jacobian ntk cure step"
LOSSES = "probe diagnose sharpness fisher hessian"

MODELS = [
    *each(EVERY + " tracker race", "model-is-none", lambda: None, shows=("None",)),
    *each(EVERY + " tracker", "model-is-a-function", lambda: lambda x: x, shows=("function", "lambda")),
    *each("probe sharpness hessian tracker step race", "model-is-a-class", lambda: Two, shows=("Two", "class", "type")),
    *each("probe sharpness step", "model-is-a-name", lambda: "resnet18", shows=("str", "resnet18")),
    *each("diagnose fisher", "model-is-a-state-dict", lambda: net().state_dict(), shows=("OrderedDict", "dict")),
    *each("probe ntk", "model-is-a-list-of-layers", lambda: list(net()), shows=("list",)),
    *each(EVERY, "model-is-lazy", lazy, shows=("lazy", "Lazy", "uninitialized")),
    *each("probe diagnose sharpness hessian cure race", "model-on-meta", unreal, shows=("meta",)),
    *each("sharpness fisher hessian", "model-is-quantized", quantized, shows=("quantized", "Quantized", "qint8",
        "parameter")),
    *each("sharpness fisher hessian jacobian ntk race", "no-parameters", nn.ReLU, shows=("ReLU", "parameter")),
    *each("sharpness fisher hessian jacobian ntk race", "all-frozen", frozen, shows=("requires_grad", "frozen")),
    *each("diagnose sharpness hessian cure race", "spoilt-parameter", spoilt, shows=("NaN", "nan", "finite")),
    *each(
        "sharpness jacobian hessian", "outputs-detached", lambda: Returns(lambda f: f.detach()),
        shows=("depend", "detach", "grad"),
    ),
    *each(
        "probe race", "outputs-detached", lambda: Returns(lambda f: f.detach()), X, Y,
        shows=("depend", "detach", "grad"),
    ),
    *each("sharpness jacobian ntk", "outputs-are-integers", lambda: Returns(lambda f: f.argmax(1)), shows=("int64",
        "(12,)")),
    *each("probe hessian", "outputs-are-integers", lambda: Returns(lambda f: f.round().long()), X, FLOATS,
        shows=("int64",)),
    *each(
        "probe sharpness hessian", "outputs-are-complex", lambda: Returns(lambda f: torch.complex(f, f)), X, FLOATS,
        shows=("complex",),
    ),
    *each("sharpness diagnose jacobian", "outputs-are-nothing", lambda: Returns(lambda f: None), shows=("None",)),
    *each("sharpness diagnose jacobian", "outputs-are-a-string", lambda: Returns(lambda f: "cat"), shows=("str",)),
    *each("jacobian ntk", "output-is-one-number", lambda: Returns(lambda f: f.mean()), shows=("()", "scalar")),
    *each("jacobian sharpness hessian", "outputs-not-finite", lambda: Returns(lambda f: f / 0), shows=("finite", "NaN",
        "inf")),
]  # fmt: skip

INPUTS = [
    *each(EVERY + " race", "inputs-are-numpy", net, X.numpy(), shows=("ndarray", "numpy")),
    *each("probe diagnose sharpness jacobian step", "inputs-are-none", net, None, shows=("None",)),
    *each("probe sharpness", "inputs-are-a-string", net, "cifar10", shows=("str", "cifar10")),
    *each("probe sharpness", "inputs-are-a-number", net, 3, shows=("int", "3")),
    *each("probe diagnose sharpness", "inputs-are-lists-of-numbers", net, X.tolist(), shows=("list", "float")),
    *each("probe sharpness", "inputs-are-numbers", net, [1.0, 2.0], shows=("list", "float")),
    *each("probe sharpness", "inputs-are-a-generator", net, (x for x in X), shows=("generator",)),
    *each("probe sharpness", "inputs-are-an-empty-tuple", net, (), shows=("()", "tuple", "empty", "no tensor")),
    *each("probe sharpness", "inputs-are-an-empty-dict", net, {}, shows=("{}", "dict", "empty", "no tensor")),
    *each(EVERY, "inputs-are-a-loader", net, LOADER, shows=("DataLoader",)),
    *each("probe sharpness", "inputs-are-a-dataset", net, TensorDataset(X, Y), shows=("TensorDataset",)),
    *each(EVERY, "inputs-are-a-pair-of-a-loader", net, next(iter(LOADER)), shows=("2", "two")),
    *each("probe sharpness fisher", "inputs-are-a-list-of-batches", net, [X, X], shows=("2", "two", "list")),
    *each("probe sharpness fisher", "inputs-are-a-list-of-pairs", net, [(X, Y), (X, Y)], shows=("2", "two", "list")),
    *each("probe sharpness", "inputs-are-a-scalar", net, torch.tensor(1.0), shows=("()", "scalar", "0-dim", "no "
    "tensor")),
    *each(EVERY + " race", "batch-is-empty", net, X[:0], shows=("0", "empty")),
    *each("probe diagnose cure", "one-sample", net, X[:1], shows=("1", "one")),
    *each("sharpness hessian", "one-sample-and-batch-norm", normed, X[:1], FLOATS[:1], shows=("1", "one")),
    *each("diagnose sharpness fisher hessian jacobian cure", "inputs-hold-nan", net, HOLED, shows=("NaN", "finite")),
    *each("diagnose sharpness race", "inputs-hold-infinity", net, ENDLESS, shows=("inf", "finite")),
    *each(EVERY + " race", "inputs-too-narrow", net, X[:, :5], shows=("(12, 5)", "(4, 5)", "(2, 5)")),
    *each("probe sharpness cure", "images-of-one-channel", photo_net, PHOTOS[:, :1], shows=("(4, 1, 8, 8)",)),
    *each("probe diagnose sharpness", "images-into-a-linear", net, PHOTOS, shows=("(4, 3, 8, 8)",)),
    *each("probe sharpness hessian", "images-too-large", photo_net, torch.ones(4, 3, 9, 9), shows=("(4, 3, 9, 9)",)),
    *each(
        "probe diagnose sharpness cure race", "images-are-bytes", photo_net, (255 * PHOTOS).byte(), Y[:4],
        shows=("uint8",),
    ),
    *each("probe sharpness jacobian", "inputs-are-integers", net, X.long(), shows=("int64",)),
    *each("probe sharpness", "inputs-are-booleans", net, X > 0, shows=("bool",)),
    *each("probe sharpness", "tokens-are-floats", token_net, TOKENS.float(), shows=("float32",)),
    *each("probe diagnose sharpness cure", "tokens-out-of-range", token_net, TOKENS + 90, shows=("9", "Embedding")),
    *each("probe diagnose sharpness", "inputs-are-sparse", net, X.to_sparse(), shows=("sparse",)),
    *each("probe sharpness", "inputs-are-csr", net, CSR, shows=("sparse", "csr")),
    *each("probe diagnose sharpness", "inputs-are-nested", net, NESTED, shows=("nested", "Nested")),
    *each("probe sharpness hessian", "inputs-are-complex", net, X.to(torch.complex64), shows=("complex",)),
    *each("probe diagnose sharpness", "inputs-on-meta", net, X.to("meta"), shows=("meta",)),
    *each("probe diagnose sharpness cure step", "too-many-arguments", net, (X, X), shows=("2", "two")),
    *each("probe sharpness hessian cure step", "too-few-arguments", Two, X, shows=("1", "one", "'z'")),
    *each("probe diagnose sharpness cure", "no-such-keyword", Two, {"x": X, "pixels": X}, shows=("pixels",)),
    *each("probe sharpness", "keyword-missing", Two, {"x": X}, shows=("z",)),
    *each("probe sharpness", "arguments-of-unequal-length", Two, (X, X[:10]), shows=("(10, 6)", "10")),
    *(
        each("probe diagnose sharpness", "inputs-are-quantized", net, QUANTIZED, shows=("quint8", "quantized"))
        if QUANTIZED is not None
        else []
    ),
]  # fmt: skip

LOSS = [
    *each(LOSSES + " race cure step", "no-such-loss", net, X, Y, "crossentropy", shows=("'crossentropy'",)),
    *each(LOSSES, "loss-is-a-number", net, X, Y, 3, shows=("3", "int")),
    *each(LOSSES, "loss-is-a-class", net, X, FLOATS, nn.MSELoss, shows=("MSELoss", "class")),
    *each(
        LOSSES + " race", "loss-is-a-vector", net, X, Y, nn.CrossEntropyLoss(reduction="none"),
        shows=("none", "(12,)", "[12]", "(4,)", "[4]"),
    ),
    *each(
        LOSSES, "loss-of-the-user-is-a-vector", net, X, FLOATS, lambda f, y: (f - y).square().sum(1),
        shows=("(12,)", "[12]"),
    ),
    *each(LOSSES + " race", "loss-is-nothing", net, X, Y, lambda f, y: None, shows=("None",)),
    *each(LOSSES, "loss-is-a-float", net, X, Y, lambda f, y: F.cross_entropy(f, y).item(), shows=("float", "1.")),
    *each(LOSSES, "loss-is-a-pair", net, X, Y, lambda f, y: (F.cross_entropy(f, y), 1.0), shows=("tuple", "(tensor")),
    *each(
        "probe hessian race", "loss-is-detached", net, X, Y, lambda f, y: F.cross_entropy(f, y).detach(),
        shows=("depend", "grad", "detach"),
    ),
    *each(
        "probe hessian", "loss-is-an-integer", net, X, Y, lambda f, y: (f.argmax(1) == y).sum(),
        shows=("int64", "depend"),
    ),
    *each("probe hessian", "loss-is-complex", net, X, Y, lambda f, y: f.sum() * 1j, shows=("complex",)),
    *each("probe diagnose", "loss-without-targets", net, X, None, "mse", shows=("None", "targets")),
    *wrong("loss-without-targets-hessian", lambda: ns.hessian(net(), X, loss="mse"), "None", "targets"),
    *wrong("hessian-of-nothing", lambda: ns.hessian(net(), X), "None", "targets"),
]  # fmt: skip

TARGETS = [
    *each(LOSSES + " race", "class-too-large", net, X, Y + 7, shows=("9", "7..9")),
    *each(LOSSES + " race", "targets-too-few", net, X, Y[:10], shows=("10",)),
    *each(
        LOSSES + " race", "targets-all-ignored", net, X, torch.full((12,), -100),
        shows=("-100", "negative", "ignore"),
    ),
    *each(LOSSES + " race", "classes-are-floats", net, X, Y.float(), "cross_entropy", shows=("float32",)),
    *each(LOSSES + " race", "mse-of-another-width", net, X, FLOATS[:, :2], "mse", shows=("(12, 2)", "(4, 2)")),
    *each(LOSSES, "mse-of-a-class-too-large", net, X, Y + 7, "mse", shows=("9", "7")),
    *each(LOSSES + " race", "targets-hold-nan", net, X, FLOATS * torch.nan, shows=("NaN", "nan", "finite")),
    *each(LOSSES, "targets-are-a-string", net, X, "cat", shows=("str", "cat")),
    *each("probe sharpness race", "targets-are-names", net, X, ["cat"] * 12, shows=("list", "str", "cat")),
    *each(LOSSES, "targets-are-an-object", net, X, object(), shows=("object",)),
    *each(LOSSES + " race", "targets-are-a-dict", net, X, {"labels": Y}, shows=("dict",)),
    *each("probe sharpness hessian", "targets-are-a-dict-for-mse", net, X, {"labels": FLOATS}, "mse", shows=("dict",)),
    *each(
        "probe sharpness hessian", "targets-are-complex", net, X, FLOATS.to(torch.complex64), "mse",
        shows=("complex",),
    ),
    *each("probe sharpness hessian", "targets-are-sparse", net, X, FLOATS.to_sparse(), "mse", shows=("sparse",)),
    *each("probe sharpness hessian", "targets-on-meta", net, X, FLOATS.to("meta"), "mse", shows=("meta",)),
    *each("probe sharpness hessian", "targets-are-a-scalar", net, X, torch.tensor(1), shows=("()", "scalar")),
    *each("probe sharpness", "bce-of-another-width", net, X, (Y > 0).float(), "bce_with_logits", shows=("(12,)",)),
    *each("probe sharpness", "nll-of-floats", net, X, FLOATS, "nll", shows=("float32",)),
    *each(LOSSES, "column-against-flat", lambda: net(1), X, FLOATS[:, 0], "mse", shows=("(12,)",)),
]  # fmt: skip


def spellings(value):
    """How a message may show a value: as it is written, its type, its shape; of several values one of them."""
    if isinstance(value, torch.Tensor):
        return (str(tuple(value.shape)), "Tensor", *(() if value.isfinite().all() else ("NaN", "finite")))
    if isinstance(value, list | tuple | dict):
        inner = [text for item in value for text in spellings(item) if text not in ("int", "float")]
        return (repr(value), type(value).__name__, *inner, *(() if value else ("none", "empty", "least")))
    names = (getattr(value, "__name__", ""), "NaN" if isinstance(value, float) and value != value else "")
    return (repr(value), str(value), type(value).__name__, *filter(None, names))


def options(verb, call, **values):
    """One nonsense value an entry."""
    found = []
    for option, cases in values.items():
        for index, value in enumerate(cases):
            plain = value if isinstance(value, str | int | float) else type(value).__name__
            word = re.sub(r"[^a-z0-9]+", "-", str(plain).lower()).strip("-") or "empty"
            name = f"{verb}-{option}-{word}-{index}".replace("_", "-")
            found += wrong(name, lambda option=option, value=value: call(**{option: value}), *spellings(value))
    return found


def unknown(verb, option, call):
    """A keyword that there is not."""
    return wrong(f"{verb}-no-such-option", lambda: call(**{option: 1}), f"'{option}'")


nan, inf = float("nan"), float("inf")
A_MAP = lambda: ns.fisher(net(), X)  # noqa: E731
SAMPLED = ns.Spec(depth=2, width=8, norm="batch", activation="tanh")  # a prediction that draws
OTHER = torch.optim.SGD(net().parameters(), 0.1)

OPTIONS = [
    *options(
        "probe", lambda **k: ns.probe(net(), X, Y, **k),
        mode=["training", True, 3], layers=["nope*", 3, ["0", "nope"]], metrics=["rnk", ["rms", "rnk"], 3],
        seed=["0", 1.5],
    ),
    *options(
        "diagnose", lambda **k: ns.diagnose(net(), X, Y, **k),
        mode=["test", 1], layers=["nope*"], lr=[0, -1, nan, inf, "0.1", True], seed=["0"],
        optimizer=["adam", torch.optim.SGD],
    ),
    *options(
        "sharpness", lambda **k: ns.sharpness(net(), X, FLOATS, **k),
        tol=[0, 1, -1, nan, "1e-3", True], probes=[-1, 1.5, "8", True], budget=[-1, nan, "60"], descent=[-1, 1.5, True],
        mode=["training"], dtype=["float32", torch.int64, torch.complex64], route=["backward"],
        memory=[-1, "1GB", nan], outputs=[[7], ["a"], "logits", 1.5], parameters=["nope*", 3], seed=["0", 1.5],
    ),
    *options(
        "jacobian", lambda **k: ns.jacobian(net(), X, **k),
        mode=["training"], route=["fast"], outputs=[[3], [-7]], parameters=["nope"], dtype=[torch.int32],
    ),
    *options("ntk", lambda **k: ns.ntk(net(), X, **k), mode=["evaluate"], dtype=["double"], outputs=[[5]]),
    *options(
        "fisher", lambda **k: ns.fisher(net(), X, **k),
        kind=["gnn", None, 3], dtype=["half"], parameters=["5.*"], mode=["both"], memory=["all"], seed=["a"],
    ),
    *options("fisher", lambda **k: ns.fisher(net(), X, kind="monte_carlo", **k), draws=[0, -1, 1.5, "1"]),
    *options(
        "hessian", lambda **k: ns.hessian(net(), X, FLOATS, **k),
        dtype=[torch.int64], parameters=["nope"], mode=["training"], outputs=[[9]], seed=["0"],
    ),
    *options(
        "spectrum", lambda **k: ns.spectrum(A_MAP(), **k),
        k=[0, -1, 1.5, "1", True], method=["qr"], tol=[nan, -1, "a"], probes=[-1], which=["middle"], max_products=[0],
        seed=["0"],
    ),
    *options("measure", lambda **k: ns.measure(X, **k), metrics=["rnk", ["rms", "rnk"], 3, [None]]),
    *options("cure", lambda **k: ns.cure(net(), inputs=X, **k), how=["orthogonl", None, 3, "auto+rank",
        "orthogonal,rank", ""]),
    *options("cure-seed", lambda **k: ns.cure(net(), "orthogonal", X, **k), seed=["0", 1.5]),
    *options(
        "race", race,
        epochs=[0, 1.5, True, "3"], batch=[0, 13, 1.5],
        lr=[0, -0.1, nan, "fast", "search:", "sharpness:0", {"other": 0.1}],
        optimiser=["sgdd", 3], momentum=[1, -0.1, nan], weight_decay=[-1], warmup=[-1, 1.5],
        seeds=[0, [], [1, 1], [-1], "three", 1.5], baseline=["nobody"], geometry=[-1, 1.5], probe_samples=[1],
        device=["gpuu"], dtype=["float32", torch.int64],
        variants=[{}, None, [net()], {3: net()}, {"it": Two}, {"it": 7}],
        data=[X, None, (X,), (X, Y, Y), LOADER], target_loss=["low"],
    ),
    *options(
        "tracker", lambda **k: ns.Tracker(net(), **k),
        every=[0, -1, 1.5, True, "100"], rows=[1, 1.5, "all"], by=["epoch", None], metrics=["rnk", ["rnk"], 3],
        layers=["nope*"], writers=[3],
    ),
    *options(
        "predict", lambda **k: ns.predict(**{"spec": SAMPLED, "inputs": X, **k}),
        spec=["mlp:depth=2", None, {"depth": 2}], metrics=["rnk", ["rnk"]], log2_points=[-1, 1.5, "many"],
        inputs=[torch.tensor(1.0), X[:0], HOLED], seed=["0"],
    ),
    *options(
        "simulate", lambda **k: ns.simulate(**{"spec": ns.Spec(depth=2, width=8), "inputs": X, **k}),
        spec=[None, ns.Spec], seeds=[0, [], [1, 1], [-1], "two"], every=[0, 1.5], normals=["float16"],
        eps=[-1, nan, "a"],
        metrics=[["rnk"]], inputs=[HOLED], seed=["0"],
    ),
    *options(
        "spec", ns.Spec,
        depth=[0, -1, 1.5, True, "3"], width=[0, "wide"], norm=["bach", None, 3], output_norm=["bach"],
        activation=["rleu", "relu(2)", "leaky_relu(x)", None],
        weights=["gausian"], gain=[nan, inf, -1, "a"], bias=[-1, nan], skip=["a", inf], outputs=[0, 1.5],
        family=["mpl"],
        norm_first=["yes", 1],
    ),
    *options(
        "build", lambda **k: ns.build(**{"spec": ns.Spec(depth=2, width=8), **k}),
        spec=[{"depth": 2}, None], inputs=[0, -1, 1.5, "images"], dtype=["float32", torch.int64], seed=["0"],
    ),
    *options("sweep", lambda **k: ns.sweep(**{"grid": ns.Grid(depth=[1]), "task": "simulate", **k}),
        grid=[{"depth": [1]}, None], task=["simulat", None, 3], retries=[-1, 1.5], timeout=[0, "1h"], workers=[0, True],
        memory=[-1], in_flight=[0], executor=["dask"],
    ),
    *options("grid", ns.Grid, depth=[[], [1, 1], nan, object(), [nan]]),
    *options(
        "step", lambda **k: ns.probe(ns.Step(**{"model": net(), "inputs": X, "targets": Y, **k})),
        mode=["training", 3], samples=[2, -7, 1.5, "0", True], seed=["0"], step=[3, "training_step"], train_step=[3],
        optimizer=["adam"], loss=["msee"],
    ),
    *options(
        "step-data", lambda **k: ns.probe(ns.Step(net(), **k)),
        data=[3, "cifar10", [], [3], [None], [("a", "b")], [X.numpy()]],
    ),
]  # fmt: skip


class Grows(nn.Module):
    """Batches of other widths have other outputs."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.scale * x


UNKNOWN = [
    *unknown("probe", "inpus", lambda **k: ns.probe(net(), X, **k)),
    *unknown("diagnose", "learning_rate", lambda **k: ns.diagnose(net(), X, **k)),
    *unknown("sharpness", "max_product", lambda **k: ns.sharpness(net(), X, **k)),
    *unknown("jacobian", "checkpont", lambda **k: ns.jacobian(net(), X, **k)),
    *unknown("ntk", "kind", lambda **k: ns.ntk(net(), X, **k)),
    *unknown("fisher", "sample", lambda **k: ns.fisher(net(), X, **k)),
    *unknown("hessian", "route", lambda **k: ns.hessian(net(), X, FLOATS, **k)),
    *unknown("spectrum", "n", lambda **k: ns.spectrum(A_MAP(), **k)),
    *unknown("measure", "metric", lambda **k: ns.measure(X, **k)),
    *unknown("cure", "lr", lambda **k: ns.cure(net(), "orthogonal", X, **k)),
    *unknown("race", "epoch", race),
    *unknown("tracker", "evry", lambda **k: ns.Tracker(net(), **k)),
    *unknown("predict", "spce", lambda **k: ns.predict(ns.Spec(), inputs=X, **k)),
    *unknown("simulate", "chains", lambda **k: ns.simulate(ns.Spec(), inputs=X, **k)),
    *unknown("spec", "dept", ns.Spec),
    *unknown("build", "outputs", lambda **k: ns.build(ns.Spec(), **k)),
    *unknown("sweep", "cores", lambda **k: ns.sweep(ns.Grid(depth=[1]), "simulate", **k)),
    *unknown("step", "lossfn", lambda **k: ns.Step(net(), X, **k)),
]

OTHERS = [
    *wrong("sharpness-descent-without-targets", lambda: ns.sharpness(net(), X, descent=3), "descent"),
    *wrong("fisher-empirical-without-targets", lambda: ns.fisher(net(), X, kind="empirical"), "empirical"),
    *wrong("jacobian-outputs-of-nothing", lambda: ns.jacobian(net(), X, outputs=lambda out: None), "None"),
    *wrong("spectrum-of-a-tensor", lambda: ns.spectrum(torch.eye(3)), "Tensor"),
    *wrong("spectrum-of-a-model", lambda: ns.spectrum(net()), "Sequential"),
    *wrong("spectrum-of-a-jacobian", lambda: ns.spectrum(ns.jacobian(net(), X)), "(36, 83)", "83"),
    *wrong("measure-a-string", lambda: ns.measure("batch"), "str", "batch"),
    *wrong("measure-nothing", lambda: ns.measure(None), "None"),
    *wrong("measure-a-scalar", lambda: ns.measure(torch.tensor(1.0)), "scalar", "()"),
    *wrong("measure-an-empty-batch", lambda: ns.measure(X[:0]), "0", "empty"),
    *wrong("measure-a-sparse-one", lambda: ns.measure(X.to_sparse()), "sparse"),
    *wrong("measure-a-nested-one", lambda: ns.measure(NESTED), "nested", "Nested"),
    *wrong("measure-a-meta-one", lambda: ns.measure(X.to("meta")), "meta"),
    *wrong("measure-ragged-lists", lambda: ns.measure([[1.0, 2.0], [1.0]]), "list", "ragged"),
    *wrong("measure-a-model", lambda: ns.measure(net()), "Sequential"),
    *wrong("cure-nothing-to-treat", lambda: ns.cure(nn.ReLU(), "orthogonal", X), "ReLU", "layer"),
    *wrong("cure-without-how", lambda: ns.cure(net(), X, Y), "Tensor", "tensor(", "how"),
    *wrong("race-search-of-nothing", lambda: race(lr="search:a,b"), "search:a,b", "'a'"),
    *wrong("race-momentum-of-adam", lambda: race(optimiser="adam", momentum=0.9), "adam"),
    *wrong("race-nesterov-without-momentum", lambda: race(nesterov=True), "nesterov"),
    *wrong("race-variant-makes-nothing", lambda: race(variants={"it": lambda seed: None}), "None"),
    *wrong("race-variant-takes-no-seed", lambda: race(variants={"it": lambda: net()}), "argument", "seed"),
    *wrong("race-test-of-another-width", lambda: race(test=(X[:, :5], Y)), "(2, 5)", "(12, 5)", "5"),
    *wrong("tracker-step-of-forwards", lambda: ns.Tracker(net()).step(), "by='step'"),
    *wrong("predict-without-a-start", lambda: ns.predict(ns.Spec()), "Gram", "inputs"),
    *wrong("predict-two-starts", lambda: ns.predict(ns.Spec(), torch.eye(3), inputs=X), "one start", "both"),
    *wrong("predict-a-gram-not-symmetric", lambda: ns.predict(ns.Spec(), torch.ones(3, 3).triu()), "symmetric"),
    *wrong("predict-a-gram-not-positive", lambda: ns.predict(ns.Spec(), -torch.eye(3)), "-1", "negative"),
    *wrong("predict-a-gram-with-nan", lambda: ns.predict(ns.Spec(), torch.full((3, 3), nan)), "NaN", "finite"),
    *wrong("predict-a-resnet", lambda: ns.predict(ns.Spec(family="resnet", depth=3), inputs=X), "resnet"),
    *wrong("predict-one-sample-and-batch-norm", lambda: ns.predict(ns.Spec(norm="batch"), inputs=X[:1]), "1"),
    *wrong("simulate-without-a-start", lambda: ns.simulate(ns.Spec()), "Gram", "inputs"),
    *wrong("simulate-a-vgg", lambda: ns.simulate(ns.Spec(family="vgg"), inputs=X), "vgg"),
    *wrong("spec-by-position", lambda: ns.Spec(3, 8), "positional"),
    *wrong("build-a-vgg-of-vectors", lambda: ns.build(ns.Spec(family="vgg", depth=2), 8), "(8,)"),
    *wrong("build-an-even-resnet", lambda: ns.build(ns.Spec(family="resnet", depth=4)), "4"),
    *wrong("grid-of-one-dict", lambda: ns.Grid({"depth": 1}), "dict"),
    *wrong("grid-axis-is-a-column", lambda: ns.Grid(layer=[1]), "layer"),
    *wrong("grid-of-numbers", lambda: ns.Grid([1, 2]), "int"),
    *wrong("grid-of-cells-and-axes", lambda: ns.Grid([{"depth": 1}], width=[1]), "both", "width"),
    *wrong("grid-name-is-no-name", lambda: ns.Grid([{"my depth": 1}]), "my depth"),
    *wrong("grid-side-by-side-unequal", lambda: ns.Grid.zip(depth=[1, 2], width=[1, 2, 3]), "3"),
    *wrong("grids-that-share-an-axis", lambda: ns.Grid(depth=[1]) * ns.Grid(depth=[2]), "depth"),
    *wrong("sweep-no-such-parameter", lambda: ns.sweep(ns.Grid(dept=[1]), "simulate"), "dept"),
    *wrong("verify-no-such-claim", lambda: ns.verify("nobody2020"), "nobody2020"),
    *wrong("step-of-a-step-and-inputs", lambda: ns.probe(ns.Step(net(), X, Y), X), "Step", "inputs"),
    *wrong("step-data-of-triples", lambda: ns.probe(ns.Step(net(), data=[(X, Y, Y)])), "3", "tuple"),
    *wrong("step-without-a-batch", lambda: ns.probe(ns.Step(net())), "inputs", "data"),
    *wrong("step-data-is-one-tensor", lambda: ns.probe(ns.Step(net(), data=X)), "Tensor", "(12, 6)"),
    *wrong("step-data-with-targets", lambda: ns.probe(ns.Step(net(), targets=Y, data=[X])), "targets"),
    *wrong("step-data-raises-widths", lambda: ns.fisher(ns.Step(Grows(), data=[X, X[:, :5]])), "5"),
    *wrong("step-returns-nothing", lambda: ns.diagnose(ns.Step(net(), X, step=lambda m, b: None)), "None"),
    *wrong("step-returns-a-vector", lambda: ns.diagnose(ns.Step(net(), X, step=lambda m, b: m(b).sum(1))), "(12,)"),
    *wrong("step-returns-a-number", lambda: ns.diagnose(ns.Step(net(), X, step=lambda m, b: 1.0)), "float"),
    *wrong("step-returns-a-dict-of-words", lambda: ns.diagnose(ns.Step(net(), X, step=lambda m, b: {"a": "b"})), "str"),
    *wrong("step-takes-one-argument", lambda: ns.diagnose(ns.Step(net(), X, step=lambda m: m)), "argument"),
    *wrong("own-losses-of-vectors", lambda: ns.hessian(Returns(lambda f: {"a": f.sum(1), "b": "c"}), X), "None",
        "dict"),
]  # fmt: skip

WRONG = [*MODELS, *INPUTS, *LOSS, *TARGETS, *OPTIONS, *UNKNOWN, *OTHERS]

#: What torch and Python say when nobody has checked.
RAW = (
    "mat1 and mat2", "Expected all tensors", "INTERNAL ASSERT", "expected scalar type", "not implemented for", "Could "
    "not run",
    "does not require grad and does not have", "have the same dtype", "Given groups", "Input type (", "argument "
    "'input'",
    "has no attribute", "object is not", "unsupported operand", "not supported between", "has no len()", "cannot "
    "unpack",
    "must be real number", "Dimension out of range", "index out of range in self", "is invalid for input of size",
    "must match the size", "aten::", "Expected more than 1 value", "Expected input batch_size", "can't be cast",
    "unhashable", "Could not infer dtype", "not enough values", "too many values",
)  # fmt: skip
#: A quotation of torch's words, which a message may add to its own; three deep in brackets.
QUOTED = re.compile(r"\(torch: (?:[^()]|\((?:[^()]|\([^()]*\))*\))*\)")
TORCH = os.path.dirname(torch.__file__)


def complaints(error, shows):
    """What is wrong with how a wrong call was answered; empty if nothing is."""
    if error is None:
        return ["it was answered"]
    text, found = str(error), []
    own = QUOTED.sub("", text).lower()
    last = traceback.extract_tb(error.__traceback__)[-1].filename
    if not isinstance(error, ns.UsageError) and type(error) is not TypeError:
        found.append(f"a {type(error).__name__}")
    if last.startswith(TORCH):
        found.append(f"raised by torch, in {last.removeprefix(TORCH)}")
    if len(text) < 25:
        found.append("too short to say what must hold, what came and what to do")
    found += [f"torch's or Python's words: {raw!r}" for raw in RAW if raw.lower() in own]
    if not any(show in text for show in shows if show):
        found.append(f"nothing of what came: none of {shows}")
    return found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", WRONG, ids=[w.name for w in WRONG])
def test_a_wrong_call_says_what_came_in_our_words(case):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        try:
            case.call()
        except Exception as caught:
            error = caught
        else:
            error = None
    found = complaints(error, case.shows)
    assert not found, f"{'; '.join(found)} | {type(error).__name__}: {error}"


def test_the_list_is_long_and_names_each_case_once():
    names = [w.name for w in WRONG]
    assert len(names) >= 140
    assert len(set(names)) == len(names)
    assert all(re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name) for name in names)
    verbs = [
        "step", "probe", "diagnose", "sharpness", "jacobian", "fisher", "hessian", "ntk", "spectrum", "measure", "cure",
        "race", "tracker", "predict", "simulate", "spec", "build", "grid", "sweep",
    ]  # fmt: skip
    assert all(any(verb in name.split("-") for name in names) for verb in verbs)


@pytest.mark.parametrize(
    ("raised", "word"),
    [
        (None, "answered"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied (12x5 and 6x8)"), "RuntimeError"),
        (ns.UsageError("mat1 and mat2 shapes cannot be multiplied (12x5 and 6x8)"), "words"),
        (ns.UsageError("mat1 and mat2 do not fit, (12, 5) (torch: shapes (12x5) and (6x8)). Reshape."), "words"),
        (ns.UsageError("inputs are wrong"), "short"),
        (ns.UsageError("inputs must be a tensor, and something else came."), "nothing of what came"),
        (TypeError("'NoneType' object is not iterable, said Python"), "words"),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, Exception) else str(v),
)
def test_the_checks_of_an_answer_can_fail(raised, word):
    assert any(word in complaint for complaint in complaints_of(raised, ("(12, 5)",)))


def complaints_of(raised, shows):
    """Of an error that is raised here."""
    if raised is None:
        return complaints(None, shows)
    with pytest.raises(type(raised)) as caught:
        raise raised
    return complaints(caught.value, shows)


def test_a_quotation_of_torch_is_not_held_against_a_message():
    error = ns.UsageError(
        "layer '0' got float32 (12, 5), which it refuses (torch: mat1 and mat2 (12x5 and 6x8)). Reshape."
    )
    assert complaints_of(error, ("(12, 5)",)) == []


# The model's own errors


class Trouble(Exception):
    """Of the user's own library."""


def raises(error):
    """A model that does not hold the error itself: what a model holds is put back, the notes of an error too."""

    class Raises(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = net()

        def forward(self, x):
            self.net(x)
            raise error

    return Raises()


OWN = [
    ValueError("my own"), RuntimeError("my own"), KeyError("my own"), AssertionError("my own"), Trouble("my own"),
    TypeError("my own"), NotImplementedError("my own"), StopIteration("my own"),
]  # fmt: skip


def passes(call, error):
    """The very object comes out, and says in a note that normscope was there."""
    error.__notes__ = []
    with pytest.raises(type(error)) as caught:
        call()
    assert caught.value is error
    assert error.args == ("my own",)
    assert any("normscope" in note for note in error.__notes__)


@pytest.mark.parametrize(
    "verb", ["probe", "diagnose", "sharpness", "fisher", "hessian", "jacobian", "ntk", "cure", "step"]
)
@pytest.mark.parametrize("error", OWN, ids=lambda e: type(e).__name__)
def test_what_the_models_own_forward_raises_passes_with_a_note(error, verb):
    passes(lambda: ASK[verb](raises(error)), error)


@pytest.mark.parametrize("verb", LOSSES.split())
@pytest.mark.parametrize("error", OWN[:3], ids=lambda e: type(e).__name__)
def test_what_the_users_own_loss_raises_passes_with_a_note(error, verb):
    def loss(outputs, targets):
        raise error

    passes(lambda: ASK[verb](net(), X, Y, loss), error)


@pytest.mark.parametrize("error", OWN[:3], ids=lambda e: type(e).__name__)
def test_what_the_users_own_step_raises_passes_with_a_note(error):
    def step(model, batch):
        raise error

    passes(lambda: ns.diagnose(ns.Step(net(), X, step=step)), error)


@pytest.mark.parametrize("error", OWN[:3], ids=lambda e: type(e).__name__)
def test_what_the_users_own_loader_raises_passes_with_a_note(error):
    class Batches:
        def __iter__(self):
            raise error

    passes(lambda: ns.diagnose(ns.Step(net(), data=Batches())), error)


def test_a_usage_error_of_the_models_own_passes_too():
    error = ns.UsageError("my own")
    passes(lambda: ns.probe(raises(error), X), error)


def test_an_error_inside_a_tracked_loop_is_the_loops():
    error = ValueError("my own")
    model = raises(error)
    with ns.Tracker(model, every=1), pytest.raises(ValueError, match="my own") as caught:
        model(X)
    assert caught.value is error


@pytest.mark.parametrize("verb", ["probe", "sharpness", "hessian"])
def test_an_interrupt_is_no_error_of_anybody(verb):
    with pytest.raises(KeyboardInterrupt):
        ASK[verb](raises(KeyboardInterrupt()))
