"""Nets with a planted fault, and oddities that look like one: {name: (task, build)}.

The faults are of initialization, of norms at the wrong place, of outputs and of wiring; the names of oddities start
with "odd". Whether either kind trains is for the training to say.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from blocks import Apply, Whole, weights
from families import autoencoder, cnn, mlp, recurrent, resnet, transformer
from tasks import Task
from torch import Tensor, nn

Build = Callable[[Task], nn.Module]
Change = Callable[[Any], None]


def changed(build: Callable[..., nn.Module], change: Callable[[Any], Any] | None = None, **fields: Any) -> Build:
    """A net of a family to which something is done; what ``change`` returns, if a module, takes its place."""

    def make(task: Task) -> nn.Module:
        model = build(task, **fields)
        with torch.no_grad():
            new = change(model) if change else None
        return new if isinstance(new, nn.Module) else model

    return make


def linears(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]


def norms(model: nn.Module) -> list[Any]:
    return [m for m in model.modules() if isinstance(m, nn.BatchNorm1d | nn.BatchNorm2d | nn.LayerNorm | nn.GroupNorm)]


def behind(*modules: nn.Module) -> Callable[[nn.Module], nn.Module]:
    """More modules at the end."""
    return lambda model: Whole(*model, *modules)  # type: ignore[misc]


def ahead(*modules: nn.Module) -> Callable[[nn.Module], nn.Module]:
    """More modules before the first."""
    return lambda model: Whole(*modules, *model)  # type: ignore[misc]


def scale_(pick: Callable[[nn.Module], list[Any]], factor: float) -> Change:
    """Weights of the picked layers times a factor."""

    def change(model: nn.Module) -> None:
        for layer in pick(model):
            layer.weight.mul_(factor)

    return change


def bias_(pick: Callable[[nn.Module], list[Any]], value: float) -> Change:
    def change(model: nn.Module) -> None:
        for layer in pick(model):
            layer.bias.fill_(value)

    return change


def fill_(pick: Callable[[nn.Module], list[Any]], value: float) -> Change:
    def change(model: nn.Module) -> None:
        for layer in pick(model):
            layer.weight.fill_(value)

    return change


def same_units(model: nn.Module) -> None:
    """All units of a layer alike."""
    for layer in linears(model):
        layer.weight.copy_(layer.weight[:1].expand_as(layer.weight))


def first(model: nn.Module) -> list[Any]:
    return linears(model)[:1]


def last(model: nn.Module) -> list[Any]:
    return linears(model)[-1:]


def hidden(model: nn.Module) -> list[Any]:
    return linears(model)[1:-1]


def all_but_last(model: nn.Module) -> list[Any]:
    return linears(model)[:-1]


def middle(model: nn.Module) -> list[Any]:
    found = linears(model)
    return found[len(found) // 2 : len(found) // 2 + 1]


def frozen(pick: Callable[[nn.Module], list[Any]]) -> Change:
    def change(model: nn.Module) -> None:
        for layer in pick(model):
            layer.requires_grad_(False)

    return change


def rank_one(model: nn.Module) -> None:
    """Hidden weights of rank one."""
    for layer in hidden(model):
        u, s, v = torch.linalg.svd(layer.weight)
        layer.weight.copy_(s[0] * u[:, :1] @ v[:1])


def dead_units(share: float) -> Change:
    """A share of the units of each hidden layer that no input switches on."""

    def change(model: nn.Module) -> None:
        for layer in all_but_last(model):
            layer.bias[: int(share * len(layer.bias))] = -50.0

    return change


def inside(name: str, module: nn.Module) -> Callable[[nn.Module], nn.Module]:
    """A module in the middle of the hidden layers."""

    def change(model: nn.Module) -> nn.Module:
        parts = list(model)  # type: ignore[call-overload]
        at = next(i for i, m in enumerate(parts) if isinstance(m, nn.Sequential) and len(m) > 2 and i > 1)
        blocks = list(parts[at])
        parts[at] = nn.Sequential(*blocks[: len(blocks) // 2], module, *blocks[len(blocks) // 2 :])
        return Whole(*parts)

    return change


def dropping(p: float) -> Change:
    """Dropout behind every ReLU."""

    def change(model: nn.Module) -> None:
        for block in [m for m in model.modules() if isinstance(m, nn.Sequential)]:
            for i, part in enumerate(block):
                if isinstance(part, nn.ReLU):
                    block[i] = nn.Sequential(part, nn.Dropout(p))

    return change


def embedding(std: float) -> Change:
    def change(model: nn.Module) -> None:
        for m in model.modules():
            if isinstance(m, nn.Embedding):
                nn.init.normal_(m.weight, std=std)

    return change


def recurrent_gain(factor: float) -> Change:
    def change(model: nn.Module) -> None:
        for _, name, w in weights(model):
            if "hh" in name:
                w.mul_(factor)

    return change


def echo(model: nn.Module) -> None:
    """Recurrent weights stay as they are drawn."""
    for cell in model.modules():
        if isinstance(cell, nn.RNN):
            cell.requires_grad_(False)


net4 = functools.partial(changed, mlp, depth=4, width=64, law="he")
net8 = functools.partial(changed, mlp, depth=8, width=64, law="he")
conv4 = functools.partial(changed, cnn, depth=4, width=8, law="he")
res3 = functools.partial(changed, resnet, depth=3, width=8, norm="batch", law="he")
former = functools.partial(changed, transformer, depth=2, width=32)
softmax = functools.partial(nn.Softmax, 1)


def detach() -> nn.Module:
    return Apply(Tensor.detach)


PLANTED: dict[str, tuple[str, Build]] = {
    # Weights.
    "positive weights": ("mnist", changed(mlp, depth=4, width=64, law="positive")),
    "positive weights, batch norm": ("mnist", changed(mlp, depth=4, width=64, law="positive", norm="batch")),
    "constant weights": ("mnist", changed(mlp, depth=3, width=64, law="constant")),
    "all weights zero": ("mnist", changed(mlp, depth=2, width=64, law="zero")),
    "all units alike": ("digits", net4(same_units)),
    "units of a CNN alike": ("mnist 4", conv4(same_units)),
    "rank-one weights": ("mnist", net4(rank_one)),
    "gain 0.1": ("mnist", net4(gain=0.1)),
    "gain 0.2, 8 layers": ("fashion", net8(gain=0.2)),
    "gain 4": ("mnist", net4(gain=4.0)),
    "gain 10": ("fashion", net4(gain=10.0)),
    "normal(0, 1)": ("mnist", changed(mlp, depth=3, width=128, law="normal 1")),
    "normal(0, 1) CNN": ("fashion 4", changed(cnn, depth=3, width=8, law="normal 1")),
    "middle layer x 1e-4": ("mnist", net4(scale_(middle, 1e-4))),
    "middle layer x 100": ("mnist", net4(scale_(middle, 100.0))),
    "middle layer zero": ("mnist", net4(fill_(middle, 0.0))),
    "first layer zero": ("fashion", net4(fill_(first, 0.0))),
    "last layer x 100": ("mnist", net4(scale_(last, 100.0))),
    # Activations.
    "sigmoid stack": ("mnist", changed(mlp, depth=6, width=64, act="sigmoid", law="xavier")),
    "sigmoid stack, conv": ("fashion 4", changed(cnn, depth=5, width=8, act="sigmoid", law="xavier")),
    "saturated tanh": ("mnist", changed(mlp, depth=4, width=64, act="tanh", law="xavier", gain=10.0)),
    "saturated tanh, bias 5": ("fashion", changed(mlp, bias_(all_but_last, 5.0), depth=3, width=64, act="tanh",
        law="xavier")),
    "dead relus": ("mnist", net4(bias_(all_but_last, -20.0))),
    "dead relus in the middle": ("mnist", net4(bias_(middle, -50.0))),
    "dead relus, conv": ("mnist 4", conv4(bias_(all_but_last, -20.0))),
    "60 % dead": ("mnist", net4(dead_units(0.6))),
    "98 % dead": ("mnist", net4(dead_units(0.98))),
    # Outputs.
    "softmax before cross entropy": ("digits", net4(behind(softmax()))),
    "two softmaxes": ("mnist", net4(behind(softmax(), softmax()))),
    "sigmoid outputs": ("digits", net4(behind(nn.Sigmoid()))),
    "relu outputs": ("mnist", net4(behind(nn.ReLU()))),
    "logits x 1e-3": ("mnist", net4(behind(Apply(lambda x: 1e-3 * x)))),
    "logits x 300": ("mnist", net4(behind(Apply(lambda x: 300 * x)))),
    "relu on signed targets": ("friedman", changed(mlp, behind(nn.ReLU()), depth=2, width=64)),
    "tanh outputs x 0.1": ("friedman", changed(mlp, behind(nn.Tanh(), Apply(lambda x: 0.1 * x)), depth=2, width=64)),
    "sigmoid autoencoder": ("mnist pixels", changed(autoencoder, behind(nn.Sigmoid()), depth=1, width=64, code=32)),
    # Norms.
    "norm weights zero": ("mnist", net4(fill_(norms, 0.0), norm="batch")),
    "norm weights 1e-3": ("fashion", net4(fill_(norms, 1e-3), norm="layer")),
    "norm over one group a unit": ("fashion", net4(inside("norm", nn.GroupNorm(64, 64)))),
    "batch norm on the maps' corner": ("mnist 4", changed(cnn, depth=4, width=8, norm="instance", place="after",
        pool="mean")),
    "layer norm of one output": ("friedman", changed(mlp, behind(nn.LayerNorm(1)), depth=2, width=64)),
    "layer norm on the classes": ("mnist", net4(behind(nn.LayerNorm(10)))),
    "batch norm on the classes": ("digits", net4(behind(nn.BatchNorm1d(10)))),
    "no norm, skip doubles": ("mnist 4", changed(resnet, depth=8, width=8, skip="double", law="he")),
    # Wiring.
    "detached in the middle": ("mnist", net8(inside("cut", detach()))),
    "detached before the classes": ("mnist", net4(lambda m: Whole(*list(m)[:-1], detach(), list(m)[-1]))),
    "frozen but for the first layer": ("mnist", net8(lambda m: [frozen(hidden)(m), frozen(last)(m), None][-1])),
    "frozen hidden layers, 8 of them": ("fashion", net8(frozen(all_but_last))),
    "bottleneck of one unit": ("digits", net4(inside("neck", nn.Sequential(nn.Linear(64, 1), nn.Linear(1, 64))))),
    "constant inputs": ("digits", net4(ahead(Apply(lambda x: 0 * x + 1)))),
    "inputs x 1e-4": ("mnist", net4(ahead(Apply(lambda x: 1e-4 * x)))),
    "inputs x 1000": ("mnist", net4(ahead(Apply(lambda x: 1e3 * x)))),
    "inputs + 30": ("fashion", net4(ahead(Apply(lambda x: x + 30)))),
    "inputs 0 to 255": ("digits 0-255", net4()),
    "dropout 0.95": ("mnist", net8(inside("dropout", nn.Dropout(0.95)))),
    "dropout 0.8 after every layer": ("mnist", changed(mlp, dropping(0.8), depth=6, width=64, law="he")),
    # Sequences.
    "attention logits x 100": ("majority", former(scale=100.0)),
    "embedding of variance 1e4": ("majority", former(embedding(100.0), form="bare")),
    "post-norm, 10 layers": ("mnist 4", former(depth=10, width=16, form="post", law="gpt")),
    "no skip, 6 layers": ("majority", former(depth=6, skip="none")),
    "recurrent gain 3": ("waves", changed(recurrent, recurrent_gain(3.0), cell="rnn", depth=1, width=32, act="relu")),
    "recurrent weights zero": ("recall", changed(recurrent, recurrent_gain(0.0), cell="rnn", depth=1, width=32)),
    "forget gate shut": ("recall", changed(recurrent, cell="lstm", depth=1, width=32, forget=-6.0)),
    # Oddities.
    "odd: last layer zero": ("mnist", net4(fill_(last, 0.0))),
    "odd: last layer x 1e-3": ("fashion", net4(scale_(last, 1e-3))),
    "odd: biases 1": ("mnist", net4(bias=1.0)),
    "odd: branches start at zero": ("mnist 4", res3(skip="zero")),
    "odd: norms of branches x 0.1": ("fashion 4", res3(fill_(norms, 0.1), skip="plain")),
    "odd: first layer random and frozen": ("mnist", net4(frozen(first))),
    "odd: two norms in a row": ("digits", net4(inside("norm", nn.BatchNorm1d(64)), norm="batch")),
    "odd: norm on the inputs": ("digits 0-255", net4(ahead(nn.BatchNorm2d(1)))),
    "odd: gain 5 under batch norm": ("mnist", net4(gain=5.0, norm="batch")),
    "odd: gain 0.01 under layer norm": ("fashion", net4(gain=0.01, norm="layer")),
    "odd: inputs x 10, batch norm": ("fashion 4", conv4(ahead(Apply(lambda x: 10 * x)), norm="batch")),
    "odd: identity weights": ("mnist", changed(mlp, depth=6, width=64, law="identity")),
    "odd: rezero, 40 layers": ("mnist", changed(mlp, depth=40, width=64, law="he", skip="rezero")),
    "odd: linear net": ("mnist", changed(mlp, depth=6, width=64, act="identity", law="orthogonal")),
    "odd: 30 % dead": ("digits", net4(dead_units(0.3))),
    "odd: dropout 0.3": ("mnist", net4(inside("dropout", nn.Dropout(0.3)))),
    "odd: bottleneck of eight units": ("mnist", net4(inside("neck", nn.Sequential(nn.Linear(64, 8), nn.Linear(8,
        64))))),
    "odd: embedding of variance 1e-4": ("majority", former(embedding(0.01))),
    "odd: forget gate open": ("recall", changed(recurrent, cell="lstm", depth=1, width=32, forget=2.0)),
    "odd: echo RNN, frozen": ("waves", changed(recurrent, echo, cell="rnn", depth=1, width=64)),
}  # fmt: skip
