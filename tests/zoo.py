"""A zoo of small models that leave traces or trip a reader, and the means to see what changed.

``ZOO[name]()`` makes a `Case` (model, inputs, targets, loss), bit-equal each time. ``ZOO[name].tags``: ``curvature``
(the outputs are a differentiable function of the parameters), ``hessian`` (torch can differentiate it twice), ``cure``
(it has layers for new weights), ``batch_norm``, ``random``, ``stateful`` (a plain forward and backward pass changes
more of it than gradients), ``sets_flags`` (it changes the surroundings), ``slow`` (to import or build).

`fingerprint` is the whole state of a model and its batch, `surroundings` that of torch, numpy and Python around them;
`changes` tells in words how two of them differ.
"""

from __future__ import annotations

import copy
import functools
import random
import re
import signal
import sys
import threading
import types
import warnings
import weakref
import zlib
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.utils import parametrizations, prune
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence
from torch.utils.checkpoint import checkpoint

N, D, W, C = 8, 6, 6, 3  # samples, features, width, classes


class Case(NamedTuple):
    """A model and one batch for it; ``loss`` is a name, a callable (outputs, targets), or None: the model's own."""

    model: nn.Module
    inputs: Any
    targets: Any
    loss: Any


@dataclass(frozen=True)
class Animal:
    """How to make one `Case`; all random streams start from the name and are put back."""

    name: str
    make: Callable[[], Case]
    tags: frozenset[str]

    def __call__(self) -> Case:
        with streams(zlib.crc32(self.name.encode())), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the older norms are deprecated
            return self.make()


ZOO: dict[str, Animal] = {}


def animal(*tags: str) -> Callable[[Any], Any]:
    """Register a class of models on rows with class targets, or a function that makes a whole `Case`."""

    def register(make: Any) -> Any:
        words = re.sub(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", "-", make.__name__).lower().replace("_", "-")
        whole = (lambda: on_rows(make())) if isinstance(make, type) else make
        ZOO[words] = Animal(words, whole, frozenset(tags))
        return make

    return register


@contextmanager
def streams(seed: int) -> Iterator[None]:
    """Every global random stream starts from ``seed`` inside and goes on as before afterwards."""
    python, legacy, own = random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002
    try:
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        torch.default_generator.manual_seed(seed)
        yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)  # noqa: NPY002
        torch.set_rng_state(own)


def labels(*shape: int, classes: int = C) -> Tensor:
    return torch.randint(classes, shape or (N,))


def on_rows(model: nn.Module, loss: Any = "cross_entropy") -> Case:
    return Case(model, torch.randn(N, D), labels(), loss)


def call(case: Case) -> Any:
    """The model's outputs on its batch, as its user would call it."""
    model, inputs = case.model, case.inputs
    if isinstance(inputs, PackedSequence) or isinstance(model, TakesADict):
        return model(inputs)
    if isinstance(inputs, Mapping):
        return model(**inputs)
    return model(*inputs) if isinstance(inputs, tuple) else model(inputs)


def logits(outputs: Any) -> Tensor:
    """The tensor that the loss is about."""
    if isinstance(outputs, Tensor):
        return outputs
    if isinstance(outputs, Mapping):
        return outputs["logits"]
    return outputs.logits if hasattr(outputs, "logits") else outputs[0]


def objective(case: Case) -> Tensor:
    """The loss that its user would train on; classes are on the last axis, or on the second one of images."""
    outputs = call(case)
    if callable(case.loss):
        return case.loss(outputs, case.targets)
    if case.loss is None:
        return outputs if isinstance(outputs, Tensor) else outputs["loss"]
    f = logits(outputs)
    if case.loss == "mse":
        return F.mse_loss(f, case.targets)
    if case.loss == "squared_error":
        return (f - case.targets).square().sum() / (2 * len(f))
    f = f.movedim(1, -1) if f.dim() == 4 else f
    return F.cross_entropy(f.reshape(-1, f.shape[-1]), case.targets.reshape(-1))


# Plain ones


class Net(nn.Module):
    """Four linear layers; a kind of its own puts something on the way by ``middle``."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.m, self.k, self.b = nn.Linear(D, W), nn.Linear(W, W), nn.Linear(W, W), nn.Linear(W, C)

    def middle(self, h: Tensor) -> Tensor:
        return h.tanh()

    def forward(self, x: Tensor) -> Any:
        return self.b(torch.tanh(self.k(torch.tanh(self.m(self.middle(self.a(x)))))))


@animal("curvature", "hessian", "cure")
def mlp_relu() -> Case:
    return on_rows(nn.Sequential(nn.Linear(D, W), nn.ReLU(), nn.Linear(W, W), nn.ReLU(), nn.Linear(W, C)))


@animal("curvature", "hessian", "cure")
def mlp_mean_squared() -> Case:
    return Case(Net(), torch.randn(N, D), torch.randn(N, C), "mse")


@animal("curvature", "hessian", "cure")
def mlp_squared_error() -> Case:
    return Case(Net(), torch.randn(N, D), torch.randn(N, C), "squared_error")


@animal("curvature", "hessian", "cure")
def loss_callable() -> Case:
    return on_rows(Net(), lambda outputs, targets: F.cross_entropy(outputs, targets, label_smoothing=0.1))


# Parameters: shared, derived, masked, raw, frozen, in unusual places


@animal("curvature", "hessian")
class SharedModule(Net):
    def __init__(self) -> None:
        super().__init__()
        self.k = self.m

    def middle(self, h: Tensor) -> Tensor:
        return self.k(h.tanh())


@animal("curvature", "hessian")
def tied_embedding_head() -> Case:
    model = nn.Sequential(nn.Embedding(11, W), nn.Linear(W, W), nn.Tanh(), nn.Linear(W, 11, bias=False))
    model[3].weight = model[0].weight
    return Case(model, labels(4, 5, classes=11), labels(4, 5, classes=11), "cross_entropy")


@animal("curvature", "hessian", "stateful")
class OldSpectralNorm(Net):
    def __init__(self) -> None:
        super().__init__()
        nn.utils.spectral_norm(self.m)


@animal("curvature", "hessian")
class OldWeightNorm(Net):
    def __init__(self) -> None:
        super().__init__()
        nn.utils.weight_norm(self.m)


@animal("curvature", "hessian", "stateful")
class ParametrizedSpectralNorm(Net):
    def __init__(self) -> None:
        super().__init__()
        parametrizations.spectral_norm(self.m)


@animal("curvature", "hessian")
class ParametrizedWeightNorm(Net):
    def __init__(self) -> None:
        super().__init__()
        parametrizations.weight_norm(self.m)


@animal("curvature", "hessian")
class ParametrizedOrthogonal(Net):
    def __init__(self) -> None:
        super().__init__()
        parametrizations.orthogonal(self.m, orthogonal_map="cayley")


@animal("curvature", "hessian")
class Pruned(Net):
    def __init__(self) -> None:
        super().__init__()
        prune.l1_unstructured(self.m, "weight", 0.4)


@animal("curvature", "hessian")
class RawParameters(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w, self.v = nn.Parameter(torch.randn(D, W) / 2), nn.Parameter(torch.randn(W, C) / 2)

    def forward(self, x: Tensor) -> Tensor:
        return (x @ self.w).tanh() @ self.v


@animal("curvature", "hessian")
class ListOfParameters(Net):
    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.ParameterList(torch.randn(W, W) / 2 for _ in range(2))

    def middle(self, h: Tensor) -> Tensor:
        return functools.reduce(lambda h, w: (h @ w).tanh(), self.extra, h)


@animal("curvature", "hessian")
class DictOfParameters(Net):
    def __init__(self) -> None:
        super().__init__()
        self.extra = nn.ParameterDict({"scale": torch.rand(W), "shift": torch.randn(W)})

    def middle(self, h: Tensor) -> Tensor:
        return (h * self.extra["scale"] + self.extra["shift"]).tanh()


@animal("batch_norm", "stateful")
class LayersInAPlainList(Net):
    """The list's layers are no submodules: they get gradients that no optimizer clears."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = [nn.Linear(W, W), nn.BatchNorm1d(W)]

    def middle(self, h: Tensor) -> Tensor:
        return functools.reduce(lambda h, layer: layer(h).tanh(), self.hidden, h)


@animal()
class WeightsInADict(Net):
    """Parameters that ``parameters()`` does not know."""

    def __init__(self) -> None:
        super().__init__()
        self.weights = {"w": nn.Parameter(torch.randn(W, W) / 2)}

    def middle(self, h: Tensor) -> Tensor:
        return (h @ self.weights["w"]).tanh()


@animal("curvature", "hessian")
class FrozenPart(Net):
    def __init__(self) -> None:
        super().__init__()
        self.a.requires_grad_(False)


@animal("curvature", "hessian")
class LowRankAdapter(Net):
    def __init__(self) -> None:
        super().__init__()
        self.requires_grad_(False)
        self.down, self.up = nn.Parameter(torch.randn(W, 2) / 2), nn.Parameter(torch.randn(2, W) / 2)

    def middle(self, h: Tensor) -> Tensor:
        return (h + h @ self.down @ self.up).tanh()


@animal("curvature", "hessian")
class FlatParameters(Net):
    """All weights are views of one buffer that the model keeps, as in sharded training."""

    def __init__(self) -> None:
        super().__init__()
        self.flat = torch.cat([p.detach().reshape(-1) for p in self.parameters()])
        for p, piece in zip(self.parameters(), self.flat.split([p.numel() for p in self.parameters()]), strict=True):
            p.data = piece.view_as(p)


@animal()
class ComplexWeights(Net):
    def __init__(self) -> None:
        super().__init__()
        self.modes = nn.Parameter(torch.randn(W // 2 + 1, dtype=torch.cfloat))

    def middle(self, h: Tensor) -> Tensor:
        return torch.fft.irfft(torch.fft.rfft(h) * self.modes, W)


@animal()
class LazyLinear(Net):
    """Its parameters have no values before the first forward pass, which changes the module's class."""

    def __init__(self) -> None:
        super().__init__()
        self.m = nn.LazyLinear(W)


@animal("stateful")
class HeadMadeInForward(Net):
    def middle(self, h: Tensor) -> Tensor:
        if not hasattr(self, "late"):
            self.late = nn.Linear(W, W)
        return self.late(h).tanh()


# Batch norm and other norms


@animal("curvature", "hessian", "cure", "batch_norm", "stateful")
class BatchNormRows(Net):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(W)

    def middle(self, h: Tensor) -> Tensor:
        return self.norm(h).relu()


@animal("curvature", "hessian", "cure", "batch_norm", "stateful")
def batch_norm_images() -> Case:
    layers = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.BatchNorm2d(4), nn.ReLU()
    return Case(
        nn.Sequential(*layers, nn.Flatten(), nn.Linear(16, C)), torch.randn(N, 2, 6, 6), labels(), "cross_entropy"
    )


@animal("curvature", "hessian", "batch_norm", "stateful")
class BatchNormCumulative(BatchNormRows):
    def __init__(self) -> None:
        super().__init__()
        self.norm.momentum = None


@animal("curvature", "hessian", "batch_norm")
class BatchNormFrozen(BatchNormRows):
    """Fine-tuning: the model trains, its batch norm stays in eval mode with statistics of old."""

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            self.norm(torch.randn(40, W) * 2 + 1)
        self.norm.eval()


@animal("curvature", "hessian", "batch_norm", "stateful")
class BatchNormWithoutAffine(BatchNormRows):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(W, affine=False)


@animal("curvature", "hessian", "batch_norm")
class BatchNormWithoutStatistics(BatchNormRows):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(W, track_running_stats=False)


@animal("curvature", "hessian", "batch_norm", "stateful")
class BatchNormFunctional(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("moving_average", torch.zeros(W))
        self.register_buffer("moving_spread", torch.ones(W))

    def middle(self, h: Tensor) -> Tensor:
        return F.batch_norm(h, self.moving_average, self.moving_spread, training=self.training).relu()


@animal("curvature", "hessian")
def group_norm() -> Case:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.GroupNorm(2, 4), nn.ReLU(), nn.Flatten(), nn.Linear(64, C))
    return Case(model, torch.randn(N, 2, 6, 6), labels(), "cross_entropy")


@animal("curvature", "hessian", "stateful")
def instance_norm() -> Case:
    norm = nn.InstanceNorm2d(4, affine=True, track_running_stats=True)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), norm, nn.ReLU(), nn.Flatten(), nn.Linear(64, C))
    return Case(model, torch.randn(N, 2, 6, 6), labels(), "cross_entropy")


@animal("curvature", "hessian")
class RootMeanSquareNorm(Net):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.RMSNorm(W)

    def middle(self, h: Tensor) -> Tensor:
        return self.norm(h).relu()


@animal("curvature", "hessian")
class LayerNorm(RootMeanSquareNorm):
    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(W)


# Traces of a forward pass


@animal("curvature", "hessian", "random", "batch_norm", "stateful")
class Checkpointed(Net):
    """What runs again in the backward pass moves its statistics twice."""

    def __init__(self) -> None:
        super().__init__()
        self.block = nn.Sequential(nn.Linear(W, W), nn.BatchNorm1d(W), nn.ReLU(), nn.Dropout(0.3))

    def middle(self, h: Tensor) -> Tensor:
        return checkpoint(self.block, h, use_reentrant=False)


@animal("random", "batch_norm", "stateful")
class CheckpointedReentrant(Checkpointed):
    """Goes backward by ``backward()`` only, which writes ``.grad``."""

    def middle(self, h: Tensor) -> Tensor:
        return checkpoint(self.block, h, use_reentrant=True)


@animal("curvature", "hessian")
class InplaceRelu(Net):
    def __init__(self) -> None:
        super().__init__()
        self.relu = nn.ReLU(inplace=True)

    def middle(self, h: Tensor) -> Tensor:
        return self.relu(h)


@animal("curvature", "hessian", "stateful")
class OverwritesItsInput(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.mul_(0.5).add_(0.1))


@animal("curvature", "hessian", "stateful")
class CacheThatGrows(Net):
    def __init__(self) -> None:
        super().__init__()
        self.keys: list[Tensor] = []

    def middle(self, h: Tensor) -> Tensor:
        self.keys.append(h.detach().mean(0))
        return (h + torch.stack(self.keys).sum(0)).tanh()


@animal("curvature", "hessian", "stateful")
class CacheWrittenInPlace(Net):
    def __init__(self) -> None:
        super().__init__()
        self.cache = torch.zeros(W)

    def middle(self, h: Tensor) -> Tensor:
        self.cache.mul_(0.9).add_(h.detach().mean(0))
        return (h + self.cache).tanh()


@animal("curvature", "hessian", "stateful")
class Counters(Net):
    def __init__(self) -> None:
        super().__init__()
        self.calls, self.temperature = 0, 1.0

    def middle(self, h: Tensor) -> Tensor:
        self.calls += 1
        self.temperature *= 0.9
        return (h * self.temperature).tanh()


@animal("curvature", "hessian", "stateful")
class DictDequeArray(Net):
    """State in containers of Python and numpy."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: dict[str, Any] = {"batches": 0}
        self.recent: deque[float] = deque(maxlen=3)
        self.array, self.names = np.zeros(3), {"a"}

    def middle(self, h: Tensor) -> Tensor:
        self.seen["batches"] += 1
        self.seen[f"batch {self.seen['batches']}"] = h.detach()
        self.recent.append(float(h.detach().mean()))
        self.array += 1
        self.names.add(f"{len(self.seen)}")
        return (h * self.array[0]).tanh()


@animal("stateful")
class KeepsItsActivations(Net):
    """Holds the last hidden layer, and the graph behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.last: Tensor | None = None

    def middle(self, h: Tensor) -> Tensor:
        self.last = h.tanh()
        return self.last


@animal("curvature", "hessian", "stateful")
class BuffersNotSaved(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64), persistent=False)
        self.register_buffer("hole", torch.tensor([float("nan"), -0.0]), persistent=False)

    def middle(self, h: Tensor) -> Tensor:
        self.steps += 1
        self.hole.fill_(1)
        return (h / self.steps).tanh()


@animal("curvature", "hessian", "stateful")
class BuffersReplaced(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(W))
        self.register_buffer("empty", None)

    def middle(self, h: Tensor) -> Tensor:
        self.mean = 0.9 * self.mean + h.detach().mean(0)
        self.empty = torch.ones(1)
        return (h - self.mean).tanh()


@animal("curvature", "hessian", "stateful")
class MaxNormByData(Net):
    def middle(self, h: Tensor) -> Tensor:
        self.m.weight.data = self.m.weight.data.renorm(2, 0, 0.5)
        return h.tanh()


@animal("curvature", "hessian", "stateful")
class ClampedInPlace(Net):
    def middle(self, h: Tensor) -> Tensor:
        with torch.no_grad():
            self.m.weight.clamp_(-0.2, 0.2)
        return h.tanh()


@animal("curvature", "hessian", "stateful")
class MomentumEncoder(Net):
    def __init__(self) -> None:
        super().__init__()
        self.key = copy.deepcopy(self.m).requires_grad_(False)
        self.key.weight.data.mul_(0.5)

    def middle(self, h: Tensor) -> Tensor:
        for q, key in zip(self.m.parameters(), self.key.parameters(), strict=True):
            key.data.mul_(0.9).add_(q.data, alpha=0.1)
        return (h + self.key(h).detach()).tanh()


@animal("curvature", "hessian", "stateful")
class AveragedCopy(Net):
    """An exponential average of the weights in a dict, and a whole copy that is no submodule."""

    def __init__(self) -> None:
        super().__init__()
        self.shadow = {name: p.detach().clone() for name, p in self.named_parameters()}
        self.teacher = [copy.deepcopy(self.m)]

    def middle(self, h: Tensor) -> Tensor:
        with torch.no_grad():
            for name, p in self.named_parameters():
                self.shadow[name] = 0.9 * self.shadow[name] + 0.1 * p
            teacher = self.teacher[0]
            teacher.weight.lerp_(self.m.weight.to(teacher.weight.dtype), 0.1)
            taught = F.linear(h, teacher.weight.to(h.dtype), teacher.bias.to(h.dtype))
        return (h + taught).tanh()


@animal("stateful")
class TrainsItselfInBackward(Net):
    """The optimizer lives in hooks: a backward pass that reaches ``.grad`` is a training step."""

    def __init__(self) -> None:
        super().__init__()
        for p in self.parameters():
            p.register_post_accumulate_grad_hook(self.descend)

    @staticmethod
    @torch.no_grad()
    def descend(p: Tensor) -> None:
        p.sub_(p.grad, alpha=0.1)
        p.grad = None


@animal()
class TrainModeOverridden(Net):
    def __init__(self) -> None:
        super().__init__()
        self.switches = 0

    def train(self, mode: bool = True) -> TrainModeOverridden:
        super().train(mode)
        self.k.training = False
        self.switches = getattr(self, "switches", 0) + 1
        return self


# Randomness


@animal("curvature", "hessian", "random")
class RandomOfTorch(Net):
    def middle(self, h: Tensor) -> Tensor:
        return (h + 0.1 * torch.randn(len(h), 1, dtype=torch.float64).to(h)).tanh()


@animal("curvature", "hessian", "random")
class RandomOfNumpy(Net):
    def middle(self, h: Tensor) -> Tensor:
        return (h * float(np.random.rand() + 0.5)).tanh()  # noqa: NPY002


@animal("curvature", "hessian", "random")
class RandomOfPython(Net):
    def middle(self, h: Tensor) -> Tensor:
        return (h * (random.random() + 0.5)).tanh()


@animal("curvature", "hessian", "random", "stateful")
class GeneratorsOfItsOwn(Net):
    def __init__(self) -> None:
        super().__init__()
        self.torchs = torch.Generator().manual_seed(3)
        self.numpys, self.pythons = np.random.default_rng(3), random.Random(3)

    def middle(self, h: Tensor) -> Tensor:
        scale = torch.rand((), generator=self.torchs, dtype=torch.float64).to(h)
        return (h * (scale + self.numpys.random() + self.pythons.random())).tanh()


@animal("curvature", "hessian", "cure", "random")
class Dropout(Net):
    def __init__(self) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.3)

    def middle(self, h: Tensor) -> Tensor:
        return self.drop(h.relu())


# Attention and sequences


class SelfAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.attention, self.b = nn.MultiheadAttention(8, 2, batch_first=True), nn.Linear(8, C)

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.attention(x, x, x)[0].mean(1))


@animal("curvature", "hessian")
def attention() -> Case:
    return Case(SelfAttention(), torch.randn(4, 5, 8), labels(4), "cross_entropy")


@animal("curvature", "hessian", "random")
def transformer_encoder() -> Case:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.1, batch_first=True)
    model = nn.Sequential(
        nn.TransformerEncoder(layer, 1, enable_nested_tensor=False), nn.Flatten(), nn.Linear(5 * 8, C)
    )
    return Case(model, torch.randn(4, 5, 8), labels(4), "cross_entropy")


class DotProduct(nn.Module):
    """A causal head on the fused product; logits at each position."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(8, 24), nn.Linear(8, C)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.a(x).unflatten(-1, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        return self.b(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))


@animal("curvature", "hessian")
def dot_product_attention() -> Case:
    return Case(DotProduct(), torch.randn(4, 5, 8), labels(4, 5), "cross_entropy")


class Recurrent(nn.Module):
    """A recurrent layer and a head on its last step."""

    def __init__(self, core: nn.RNNBase) -> None:
        super().__init__()
        self.core, self.b = core, nn.Linear(core.hidden_size * (1 + core.bidirectional), C)

    def forward(self, x: Tensor | PackedSequence) -> Tensor:
        outputs, state = self.core(x)
        if isinstance(x, PackedSequence):
            return self.b(state[0][-1])
        return self.b(outputs[:, -1] if self.core.batch_first else outputs[-1])


@animal("curvature", "hessian")
def lstm_batch_first() -> Case:
    return Case(Recurrent(nn.LSTM(D, 5, batch_first=True)), torch.randn(N, 4, D), labels(), "cross_entropy")


@animal("curvature", "hessian")
def lstm_time_first() -> Case:
    return Case(Recurrent(nn.LSTM(D, 5)), torch.randn(4, N, D), labels(), "cross_entropy")


@animal("curvature", "hessian")
def gru_bidirectional() -> Case:
    core = nn.GRU(D, 4, batch_first=True, bidirectional=True)
    return Case(Recurrent(core), torch.randn(N, 4, D), labels(), "cross_entropy")


@animal("curvature", "hessian")
def packed_sequence() -> Case:
    lengths = torch.tensor([2, 4, 1, 3])
    packed = pack_padded_sequence(torch.randn(4, 4, D), lengths, batch_first=True, enforce_sorted=False)
    return Case(Recurrent(nn.LSTM(D, 5, batch_first=True)), packed, labels(4), "cross_entropy")


class Bag(nn.Module):
    """The first argument's length is no number of samples."""

    def __init__(self) -> None:
        super().__init__()
        self.bag, self.m, self.b = nn.EmbeddingBag(11, W, mode="sum"), nn.Linear(W, W), nn.Linear(W, C)

    def forward(self, words: Tensor, offsets: Tensor) -> Tensor:
        return self.b(torch.tanh(self.m(self.bag(words, offsets))))


@animal()
def embedding_bag() -> Case:
    return Case(Bag(), (labels(20, classes=11), torch.tensor([0, 4, 9, 15])), labels(4), "cross_entropy")


@animal()
def sparse_gradient() -> Case:
    model = nn.Sequential(nn.Embedding(11, W, sparse=True), nn.Flatten(), nn.Linear(3 * W, C))
    return Case(model, labels(N, 3, classes=11), labels(), "cross_entropy")


# Images


@animal("curvature", "hessian", "cure")
def conv_channels_last() -> Case:
    layers = nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(16, C)
    model = nn.Sequential(*layers).to(memory_format=torch.channels_last)
    x = torch.randn(N, 2, 6, 6).to(memory_format=torch.channels_last)
    return Case(model, x, labels(), "cross_entropy")


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.b = nn.Conv2d(2, 4, 3, padding=1), nn.Linear(4, C)
        self.branch = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4), nn.ReLU(inplace=True))
        self.last = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x)
        h = h + self.last(self.branch(h))
        return self.b(h.relu().mean((2, 3)))


@animal("curvature", "hessian", "cure", "batch_norm", "stateful")
def residual_block() -> Case:
    return Case(Residual(), torch.randn(N, 2, 5, 5), labels(), "cross_entropy")


class UShaped(nn.Module):
    """Logits (n, c, height, width)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.down = nn.Conv2d(2, 4, 3, padding=1), nn.Conv2d(4, 6, 2, stride=2)
        self.up, self.b = nn.ConvTranspose2d(6, 4, 2, stride=2), nn.Conv2d(8, C, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.a(x).relu()
        return self.b(torch.cat([h, self.up(self.down(h).relu()).relu()], 1))


@animal("curvature", "hessian")
def u_net() -> Case:
    return Case(UShaped(), torch.randn(3, 2, 4, 4), labels(3, 4, 4), "cross_entropy")


# What goes in and what comes out


@animal("curvature", "hessian")
class DictOutput(Net):
    def forward(self, x: Tensor) -> dict[str, Tensor]:
        return {"features": self.a(x).tanh(), "logits": super().forward(x)}


@dataclass
class Prediction:
    """A dataclass whose first tensor is not what the loss is about."""

    features: Tensor
    logits: Tensor


@animal("curvature", "hessian")
class DataclassOutput(Net):
    def forward(self, x: Tensor) -> Prediction:
        return Prediction(self.a(x).tanh(), super().forward(x))


class Scores(NamedTuple):
    """Outputs by name."""

    logits: Tensor
    features: Tensor


@animal("curvature", "hessian")
class NamedTupleOutput(Net):
    def forward(self, x: Tensor) -> Scores:
        return Scores(super().forward(x), self.a(x).tanh())


@animal("curvature", "hessian")
class TupleOutput(Net):
    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return super().forward(x), self.a(x).tanh()


class Siamese(Net):
    """Two inputs."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return super().forward(x) - super().forward(y)


@animal("curvature", "hessian")
def two_inputs() -> Case:
    return Case(Siamese(), (torch.randn(N, D), torch.randn(N, D)), labels(), "cross_entropy")


class Masked(Net):
    """Keyword arguments, one of which is no float and one no tensor."""

    def forward(self, x: Tensor, *, mask: Tensor, scale: float = 1.0) -> Tensor:
        return super().forward(x * mask * scale)


@animal("curvature", "hessian")
def keyword_inputs() -> Case:
    inputs = {"x": torch.randn(N, D), "mask": torch.rand(N, D) > 0.2, "scale": 0.5}
    return Case(Masked(), inputs, labels(), "cross_entropy")


class TakesADict(Net):
    """One argument, a dict; it takes what it uses out of it."""

    def forward(self, batch: dict[str, Tensor]) -> Tensor:
        return super().forward(batch.pop("x") + batch["y"])


@animal("curvature", "hessian", "stateful")
def dict_as_the_one_argument() -> Case:
    return Case(TakesADict(), {"x": torch.randn(N, D), "y": torch.randn(N, D)}, labels(), "cross_entropy")


class LossInside(Net):
    """Returns its own loss."""

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(super().forward(x), y)


@animal()
def own_loss() -> Case:
    return Case(LossInside(), (torch.randn(N, D), labels()), None, None)


class LossBeside(Net):
    """Returns logits and a loss where labels come along."""

    def forward(self, x: Tensor, labels: Tensor) -> dict[str, Tensor]:
        f = super().forward(x)
        return {"loss": F.cross_entropy(f, labels), "logits": f}


@animal()
def own_loss_in_a_dict() -> Case:
    return Case(LossBeside(), {"x": torch.randn(N, D), "labels": labels()}, None, None)


class Graph(nn.Module):
    """Two layers of means over neighbours; the first argument is (2, edges)."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(D, W), nn.Linear(W, C)

    def forward(self, edges: Tensor, x: Tensor) -> Tensor:
        def mix(h: Tensor) -> Tensor:
            degree = torch.ones(len(h), dtype=h.dtype).index_add(0, edges[1], torch.ones(edges.shape[1], dtype=h.dtype))
            return h.index_add(0, edges[1], h[edges[0]]) / degree[:, None]

        return self.b(mix(self.a(mix(x)).relu()))


@animal("curvature", "hessian")
def graph_convolution() -> Case:
    return Case(Graph(), (torch.randint(N, (2, 14)), torch.randn(N, D)), labels(), "cross_entropy")


@animal("curvature", "hessian")
class MixtureOfExperts(Net):
    """Each sample goes to one expert: shapes depend on the data, and an expert may stay without gradient."""

    def __init__(self) -> None:
        super().__init__()
        self.gate, self.experts = nn.Linear(W, 4), nn.ModuleList(nn.Linear(W, W) for _ in range(4))

    def middle(self, h: Tensor) -> Tensor:
        weight, chosen = self.gate(h).softmax(-1).max(-1)
        out = torch.zeros_like(h)
        for i, expert in enumerate(self.experts):
            rows = (chosen == i).nonzero()[:, 0]
            if len(rows):
                out = out.index_add(0, rows, expert(h[rows]) * weight[rows, None])
        return out.tanh()


# Hooks


class Counter:
    """A hook that counts."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, *_: Any, **__: Any) -> None:
        self.calls += 1


@animal("curvature", "hessian", "stateful")
class HooksOnGradients(Net):
    def __init__(self) -> None:
        super().__init__()
        self.m.weight.register_hook(Counter())


@animal("curvature", "hessian", "stateful")
class HooksOnForward(Net):
    def __init__(self) -> None:
        super().__init__()
        self.m.register_forward_hook(Counter())
        self.k.register_forward_pre_hook(Counter())
        self.register_state_dict_post_hook(Counter())


@animal("curvature", "hessian", "stateful")
class HooksOnBackward(Net):
    def __init__(self) -> None:
        super().__init__()
        self.m.register_full_backward_hook(Counter())


@animal("stateful")
class HookFillsAClosure(Net):
    """The usual way to take features out: a hook that writes into a dict of the user's."""

    def __init__(self) -> None:
        super().__init__()
        features: dict[str, Any] = {}

        def keep(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
            features[f"h{len(features)}"] = output

        self.m.register_forward_hook(keep)


# Derivatives of its own


class Ramp(torch.autograd.Function):
    """A rectifier of the older style: no forward mode, not for torch.func."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x.clamp_min(0)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * (x > 0)


class RampOnce(Ramp):
    """Its gradient has no gradient."""

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return grad * (x > 0)


@animal("curvature", "hessian")
class CustomFunction(Net):
    def middle(self, h: Tensor) -> Tensor:
        return Ramp.apply(h)


@animal()
class DifferentiableOnce(Net):
    def middle(self, h: Tensor) -> Tensor:
        return RampOnce.apply(h)


@animal("curvature", "hessian")
class PartWithoutGradient(Net):
    def middle(self, h: Tensor) -> Tensor:
        with torch.no_grad():
            fixed = self.k(h)
        return (h + fixed).tanh()


# Types, wrappers, flags


@animal("curvature", "hessian", "slow")
def compiled_eager() -> Case:
    case = mlp_relu()
    return case._replace(model=torch.compile(case.model, backend="eager"))


@animal("curvature", "hessian")
def brain_float() -> Case:
    case = on_rows(Net())
    return case._replace(model=case.model.bfloat16(), inputs=case.inputs.bfloat16())


@animal("curvature", "hessian")
def double_precision() -> Case:
    case = on_rows(Net())
    return case._replace(model=case.model.double(), inputs=case.inputs.double())


@animal()
def made_in_inference_mode() -> Case:
    with torch.inference_mode():
        return on_rows(Net())


@functools.cache
def _transformer(kind: str, **sizes: int) -> nn.Module:
    """Made once, from a stream of its own, to be copied: making one takes a hundred times as long."""
    transformers = pytest.importorskip("transformers")
    ids = {"bos_token_id": None, "eos_token_id": None} if "GPT2" in kind else {}
    family = next(name for name in ("GPT2", "Bert") if kind.startswith(name))
    with streams(0):
        return getattr(transformers, kind)(getattr(transformers, f"{family}Config")(**sizes, **ids)).train()


@animal("random", "slow")
def gpt2() -> Case:
    model = _transformer("GPT2LMHeadModel", vocab_size=13, n_positions=8, n_embd=8, n_layer=1, n_head=2)
    ids = labels(4, 6, classes=13)
    return Case(copy.deepcopy(model), {"input_ids": ids, "labels": ids}, None, None)


@animal("curvature", "random", "slow")
def bert() -> Case:
    model = _transformer(
        "BertForSequenceClassification", vocab_size=13, hidden_size=8, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=12, max_position_embeddings=8, num_labels=C,
    )  # fmt: skip
    ids = labels(4, 6, classes=13)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return Case(copy.deepcopy(model), inputs, labels(4), "cross_entropy")


@animal()
class CannotBeCopied(Net):
    def __init__(self) -> None:
        super().__init__()
        self.lock, self.stream = threading.Lock(), (i for i in range(10))


@animal("stateful")
class LogsLikeLightning(Net):
    """``self.log`` of values that still hold their graph."""

    def __init__(self) -> None:
        super().__init__()
        self.logged: dict[str, list[Tensor]] = {}

    def log(self, name: str, value: Tensor) -> None:
        self.logged.setdefault(name, []).append(value)

    def middle(self, h: Tensor) -> Tensor:
        self.log("mean", h.mean())
        return h.tanh()


@animal("sets_flags")
class SetsDefaultType(Net):
    def middle(self, h: Tensor) -> Tensor:
        torch.set_default_dtype(torch.float64)
        return h.tanh()


@animal("sets_flags")
class SetsThreads(Net):
    def middle(self, h: Tensor) -> Tensor:
        torch.set_num_threads(3)
        return h.tanh()


@animal("sets_flags")
class SetsAttentionKernels(Net):
    def middle(self, h: Tensor) -> Tensor:
        torch.backends.cuda.enable_flash_sdp(False)
        torch.backends.cuda.enable_mem_efficient_sdp(False)
        torch.use_deterministic_algorithms(True, warn_only=True)
        return h.tanh()


@animal("sets_flags")
class SetsGradientMode(Net):
    """Leaves gradients on, whatever the caller's mode."""

    def middle(self, h: Tensor) -> Tensor:
        torch.set_grad_enabled(True)
        return h.tanh()


@animal("sets_flags")
class SetsWarnings(Net):
    def middle(self, h: Tensor) -> Tensor:
        warnings.simplefilter("ignore", ResourceWarning)
        return h.tanh()


# The state of a model and its batch


def bits(t: Tensor) -> Any:
    """A tensor's values as bytes: -0.0 differs from 0.0, NaN equals itself."""
    if isinstance(t, nn.parameter.UninitializedTensorMixin) or t.is_meta:
        return None
    if t.is_sparse:
        whole = t.detach().coalesce()
        return bits(whole.indices()), bits(whole.values())
    # Inside, whatever the caller's modes: a plain copy of the memory.
    with torch._C._DisableFuncTorch(), torch.no_grad():
        return t.detach().cpu().flatten().clone().view(torch.uint8).numpy().tobytes()  # numpy pins what it sees


_PLAIN = (type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size, torch.layout,
          torch.memory_format, type, types.ModuleType, types.BuiltinFunctionType, range, slice, np.generic, np.dtype,
          types.EllipsisType)  # fmt: skip
_OPAQUE = ("torch._", "torch.fx", "torch.jit", "threading", "_thread", "logging", "concurrent", "weakref", "typing")


@functools.cache
def _sort(kind: type) -> str:
    """How objects of a class are read."""
    sorts = {"plain": _PLAIN, "tensor": Tensor, "array": np.ndarray, "generator": torch.Generator,
             "numpy generator": np.random.Generator, "python generator": random.Random, "mapping": Mapping,
             "sequence": (list, tuple, deque), "set": (set, frozenset)}  # fmt: skip
    return next((name for name, classes in sorts.items() if issubclass(kind, classes)), "object")


@functools.cache
def _opaque(kind: type) -> bool:
    return kind.__module__.startswith(_OPAQUE) and not issubclass(kind, nn.Module)


class Fingerprint:
    """Facts by path, and the objects they are about, kept alive so that no address is used twice."""

    def __init__(self) -> None:
        self.facts: dict[tuple[str, str], Any] = {}
        self.objects: dict[str, Any] = {}
        self._paths: dict[int, str] = {}

    def see(self, path: str, x: Any) -> None:
        """Enter ``x`` and everything that can be reached from it."""
        sort = _sort(type(x))
        if sort == "plain":
            self.facts[path, "value"] = (type(x).__qualname__, repr(x))
            return
        known = self._paths.get(id(x))
        self.facts[path, "is the object at"] = known or path
        if known:
            return
        self._paths[id(x)], self.objects[path] = path, x
        self.facts[path, "type"], self.facts[path, "class"] = type(x).__qualname__, Own((type(x),))
        match sort:
            case "tensor":
                self._tensor(path, x)
            case "array":
                self.facts[path, "values"] = (str(x.dtype), x.shape, x.tobytes())
            case "generator":
                self.facts[path, "state"] = bits(x.get_state())
            case "numpy generator":
                self.facts[path, "state"] = repr(x.bit_generator.state)
            case "python generator":
                self.facts[path, "state"] = x.getstate()
            case "mapping":
                self._mapping(path, x)
            case "sequence":
                self.facts[path, "length"] = len(x)
                for i, item in enumerate(x):
                    self.see(f"{path}[{i}]", item)
            case "set":
                self.facts[path, "members"] = sorted(repr(i) for i in x if isinstance(i, _PLAIN))
                self.facts[path, "objects"] = Own(sorted(id(i) for i in x if not isinstance(i, _PLAIN)))
            case _:
                self._callable(path, x)
        if not _opaque(type(x)):
            self._attributes(path, x)

    def _tensor(self, path: str, t: Tensor) -> None:
        with torch._C.DisableTorchFunctionSubclass():
            lazy = isinstance(t, nn.parameter.UninitializedTensorMixin)
            for name in ("dtype", "layout", "device", "requires_grad", "is_leaf", *(() if lazy else ("shape",))):
                self.facts[path, name] = str(getattr(t, name))
            self.facts[path, "inference"] = t.is_inference()
            try:
                self.facts[path, "values"] = bits(t)
            except RuntimeError as error:  # what a transform of torch.func has wrapped and left behind
                self.facts[path, "values"] = f"unreadable {type(t).__name__}: {error}"
            if isinstance(self.facts[path, "values"], bytes):
                self.facts[path, "strides"] = (t.stride(), t.storage_offset())
                self.facts[path, "memory"] = Own((t.untyped_storage().data_ptr(),))
            if t.grad_fn is not None:
                self.see(f"{path}.grad_fn", t.grad_fn)
            self.see(f"{path}.grad", t.grad if t.is_leaf or t.retains_grad else None)
            for hooks in ("_backward_hooks", "_post_accumulate_grad_hooks"):
                for i, hook in enumerate((getattr(t, hooks, None) or {}).values()):
                    self.see(f"{path}.{hooks}[{i}]", hook)
                self.facts[path, hooks] = len(getattr(t, hooks, None) or {})

    def _mapping(self, path: str, x: Mapping[Any, Any]) -> None:
        if "hooks" in path.rpartition(".")[2]:  # their keys are handles, given out in the order of registering
            self.facts[path, "length"], self.facts[path, "keys"] = len(x), Own(x)
            names = [f"{path}[{i}]" for i in range(len(x))]
        else:
            self.facts[path, "keys"] = [repr(k) if isinstance(k, _PLAIN) else str(i) for i, k in enumerate(x)]
            names = [f"{path}[{key}]" for key in self.facts[path, "keys"]]
        if path.endswith(("._parameters", "._buffers", "._modules")):
            names = [f"{path.rpartition('.')[0]}.{key}" for key in x]
        for name, value in zip(names, x.values(), strict=True):
            self.see(name, value)

    def _callable(self, path: str, x: Any) -> None:
        if isinstance(x, functools.partial):
            self.see(f"{path}.func", x.func)
            self.see(f"{path}.args", x.args)
            self.see(f"{path}.keywords", x.keywords)
        elif isinstance(x, types.MethodType):
            self.see(f"{path}.self", x.__self__)
        elif isinstance(x, types.FunctionType) and not x.__module__.startswith("torch"):
            for name, cell in zip(x.__code__.co_freevars, x.__closure__ or (), strict=True):
                self.see(f"{path}<{name}>", getattr(cell, "cell_contents", None))

    def _attributes(self, path: str, x: Any) -> None:
        if isinstance(x, weakref.ReferenceType | types.GeneratorType):
            return
        own = getattr(x, "__dict__", None)
        if isinstance(own, dict):
            own = {name: value for name, value in own.items() if not str(name).startswith("_dynamo")}  # its own marks
            self.facts[path, "attributes"] = sorted(map(str, own))
            for name, value in own.items():
                if name == "_torchdynamo_wrapper_id" or isinstance(x, torch.utils.hooks.RemovableHandle):
                    self.facts[path, name] = Own((value,))
                else:
                    self.see(f"{path}.{name}", value)
        for slots in (vars(kind).get("__slots__", ()) for kind in type(x).__mro__):
            for name in (slots,) if isinstance(slots, str) else slots:
                if name not in ("__dict__", "__weakref__") and hasattr(x, name):
                    self.see(f"{path}.{name}", getattr(x, name))


class Own(tuple):
    """Numbers that this very object was given (an address, a handle): of no meaning between two things made alike."""


def fingerprint(model: nn.Module, inputs: Any = None, targets: Any = None) -> Fingerprint:
    """The whole state of a model and its batch: each attribute, container, tensor, gradient and hook.

    By identity and by value. Versions of tensors do not count, empty dicts of tensor hooks are as good as none, and of
    functions only what they close over counts, not their globals.
    """
    out = Fingerprint()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        out.see("model", model)
        out.see("inputs", inputs)
        out.see("targets", targets)
    return out


def changes(before: Any, after: Any, *, identity: bool = True) -> list[str]:
    """In words, what differs between two fingerprints or two `surroundings`; empty where nothing does.

    identity: whether an equal object in another place is a change; of two models made alike it is not.
    """
    if isinstance(before, dict):
        return [
            f"{name}: {_short(before[name])} -> {_short(after[name])}" for name in before if before[name] != after[name]
        ]
    out = []
    for path, x in before.objects.items():
        if identity and path in after.objects and after.objects[path] is not x:
            out.append(f"{path}: another object of type {type(x).__qualname__}")
    for path, what in dict.fromkeys([*before.facts, *after.facts]):
        old, new = before.facts.get((path, what), "absent"), after.facts.get((path, what), "absent")
        if old != new and (identity or not isinstance(old, Own)):
            out.append(f"{path}: {what}: {_short(old)} -> {_short(new)}")
    return out


def _short(x: Any) -> str:
    if isinstance(x, bytes):
        return f"{len(x)} bytes, {zlib.crc32(x):08x}"
    text = repr(x)
    return text if len(text) <= 60 else f"{text[:40]}... ({zlib.crc32(text.encode()):08x})"


# The state around them


def _numpy_state() -> Any:
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    return kind, keys.tobytes(), *rest


def _set_numpy_state(state: Any) -> None:
    kind, keys, *rest = state
    np.random.set_state((kind, np.frombuffer(keys, np.uint32), *rest))  # noqa: NPY002


def _set_filters(filters: list[Any]) -> None:
    warnings.filters[:] = filters
    warnings._filters_mutated()


def _sigint(handler: Any) -> None:
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, handler)


def _deterministic(state: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(state[0], warn_only=state[1])


def _functorch_depth() -> int:
    return len(torch._C._functorch.get_interpreter_stack() or [])


def _leave_functorch(depth: int) -> None:
    while _functorch_depth() > depth:
        torch._C._functorch.pop_dynamic_layer_stack()


def _set_forward_level(level: int) -> None:
    forward_ad = torch.autograd.forward_ad
    while forward_ad._current_level > level:
        forward_ad.exit_dual_level(level=forward_ad._current_level)


def _saved_hooks() -> Any:
    return torch._C._autograd._top_saved_tensors_default_hooks(True)


def _set_saved_hooks(top: Any) -> None:
    while _saved_hooks() != top and _saved_hooks() is not None:
        torch._C._autograd._pop_saved_tensors_default_hooks()


def _function_modes() -> list[int]:
    return [id(mode) for mode in torch.overrides._get_current_function_mode_stack()]


def _set_function_modes(modes: list[int]) -> None:
    while len(_function_modes()) > len(modes):
        torch._C._pop_torch_function_stack()


def _global_hooks() -> dict[str, list[int]]:
    here = vars(torch.nn.modules.module)
    return {name: [id(h) for h in here[name].values()] for name in here if name.startswith("_global") and here[name]}


def _flag(owner: Any, name: str) -> tuple[Callable[[], Any], Callable[[Any], None]]:
    return lambda: getattr(owner, name), lambda value: setattr(owner, name, value)


def _autocast(kind: str) -> dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]]:
    return {
        f"autocast on {kind}": (
            lambda: torch.is_autocast_enabled(kind),
            lambda on: torch.set_autocast_enabled(kind, on),
        ),
        f"autocast type on {kind}": (
            lambda: torch.get_autocast_dtype(kind),
            lambda dtype: torch.set_autocast_dtype(kind, dtype),
        ),
    }


_cuda, _cudnn = torch.backends.cuda, torch.backends.cudnn
_parametrize = torch.nn.utils.parametrize


def _not_settable(_value: Any) -> None:
    """Only its own context manager can put this back."""


#: What can be asked, and put back, by name.
AROUND: dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]] = {
    # First: inside them no other can be put back.
    "transforms of torch.func": (_functorch_depth, _leave_functorch),
    "level of forward mode": (lambda: torch.autograd.forward_ad._current_level, _set_forward_level),
    "random stream of torch": (lambda: bits(torch.get_rng_state()), lambda s: torch.set_rng_state(_as_state(s))),
    "random stream of numpy": (_numpy_state, _set_numpy_state),
    "random stream of python": (random.getstate, random.setstate),
    "gradient mode": (torch.is_grad_enabled, torch._C._set_grad_enabled),
    "inference mode": (torch.is_inference_mode_enabled, _not_settable),
    "default type": (torch.get_default_dtype, torch.set_default_dtype),
    "threads": (torch.get_num_threads, torch.set_num_threads),
    "flash attention": (_cuda.flash_sdp_enabled, _cuda.enable_flash_sdp),
    "memory-efficient attention": (_cuda.mem_efficient_sdp_enabled, _cuda.enable_mem_efficient_sdp),
    "attention by plain products": (_cuda.math_sdp_enabled, _cuda.enable_math_sdp),
    "attention of cudnn": (_cuda.cudnn_sdp_enabled, _cuda.enable_cudnn_sdp),
    "deterministic algorithms": (
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        _deterministic,
    ),
    "anomaly mode": (
        lambda: (torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()),
        lambda s: torch.autograd.set_detect_anomaly(*s),
    ),
    **_autocast("cpu"),
    **_autocast("cuda"),
    "autocast's cache": (torch.is_autocast_cache_enabled, torch.set_autocast_cache_enabled),
    "cudnn": _flag(_cudnn, "enabled"),
    "cudnn, benchmark": _flag(_cudnn, "benchmark"),
    "cudnn, deterministic": _flag(_cudnn, "deterministic"),
    "cudnn, tf32": _flag(_cudnn, "allow_tf32"),
    "matmul precision": (torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    "attention's fast path": (torch.backends.mha.get_fastpath_enabled, torch.backends.mha.set_fastpath_enabled),
    "warnings always": (torch.is_warn_always_enabled, torch.set_warn_always),
    "warning filters": (lambda: list(warnings.filters), _set_filters),
    "how warnings are shown": _flag(warnings, "showwarning"),
    "handler of SIGINT": (lambda: signal.getsignal(signal.SIGINT), _sigint),
    "function modes": (_function_modes, _set_function_modes),
    "dispatch modes": (lambda: len(torch.utils._python_dispatch._get_current_dispatch_mode_stack()), _not_settable),
    "hooks on saved tensors": (_saved_hooks, _set_saved_hooks),
    "cache of parametrizations": _flag(_parametrize, "_cache_enabled"),
    "hooks on all modules": (_global_hooks, _not_settable),
    "trace function": (sys.gettrace, sys.settrace),
    "profile function": (sys.getprofile, sys.setprofile),
    "numpy's error state": (np.geterr, lambda state: np.seterr(**state)),
}


def _as_state(state: bytes) -> Tensor:
    return torch.frombuffer(bytearray(state), dtype=torch.uint8)


def surroundings() -> dict[str, Any]:
    """Random streams, modes and flags of torch, numpy and Python, by name."""
    with torch._C._DisableFuncTorch():
        return {name: ask() for name, (ask, _) in AROUND.items()}


@contextmanager
def kept_surroundings() -> Iterator[None]:
    """Put the surroundings back at the end, whatever was done to them."""
    before = surroundings()
    try:
        yield
    finally:
        for name, (ask, put) in AROUND.items():
            if ask() != before[name]:
                put(before[name])
