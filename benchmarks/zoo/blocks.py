"""The parts that the nets of the zoo are made of: activations, laws of weights, norms, skips; and the nets
themselves.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from normscope.nn import make_activation
from normscope.nn.norms import RMSNorm


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class SquaredRelu(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.relu().square()


ACTIVATIONS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "silu": nn.SiLU, "elu": nn.ELU, "selu": nn.SELU,
    "leaky": lambda: nn.LeakyReLU(0.1), "sigmoid": nn.Sigmoid, "softplus": nn.Softplus, "softsign": nn.Softsign,
    "hardtanh": nn.Hardtanh, "mish": nn.Mish, "sin": lambda: make_activation("sin"),
    "abs": lambda: make_activation("abs"),
    "relu2": SquaredRelu, "identity": nn.Identity,
}  # fmt: skip


def _fans(w: Tensor) -> tuple[int, int]:
    field = w[0, 0].numel() if w.ndim > 2 else 1
    return w.shape[1] * field, w.shape[0] * field


def _normal(power: Callable[[int, int], float]) -> Callable[[Tensor], Tensor]:
    return lambda w: nn.init.normal_(w, std=math.sqrt(power(*_fans(w))))


def _uniform(power: Callable[[int, int], float]) -> Callable[[Tensor], Tensor]:
    return lambda w: nn.init.uniform_(w, -math.sqrt(3 * power(*_fans(w))), math.sqrt(3 * power(*_fans(w))))


def _identity(w: Tensor) -> Tensor:
    """The identity (padded, at the centre of kernels)."""
    return nn.init.eye_(w) if w.ndim == 2 else nn.init.dirac_(w)


def _sparse(w: Tensor) -> Tensor:
    """Few entries a unit, of variance 2 / their number (Martens 2010 takes 15)."""
    inputs, _ = _fans(w)
    few = min(8, inputs)
    flat = torch.zeros(w.shape[0], inputs)
    at = torch.stack([torch.randperm(inputs)[:few] for _ in range(w.shape[0])])
    flat.scatter_(1, at, torch.randn(at.shape) * math.sqrt(2 / few))
    return w.copy_(flat.view_as(w))


#: Laws of weights, in place; "torch" leaves what torch's own layers draw.
LAWS: dict[str, Callable[[Tensor], Tensor]] = {
    "torch": lambda w: w,
    "he": _normal(lambda i, o: 2 / i),
    "he uniform": _uniform(lambda i, o: 2 / i),
    "lecun": _normal(lambda i, o: 1 / i),
    "xavier": _normal(lambda i, o: 2 / (i + o)),
    "xavier uniform": _uniform(lambda i, o: 2 / (i + o)),
    "orthogonal": nn.init.orthogonal_,
    "identity": _identity,
    "sparse": _sparse,
    "gpt": lambda w: nn.init.trunc_normal_(w, std=0.02),
    "keras": lambda w: nn.init.uniform_(w, -0.05, 0.05),
    "normal 0.1": lambda w: nn.init.normal_(w, std=0.1),
    "normal 1": nn.init.normal_,
    "positive": lambda w: nn.init.uniform_(w, 0, 2 * math.sqrt(1 / _fans(w)[0])),
    "constant": lambda w: nn.init.constant_(w, 1 / _fans(w)[0]),
    "zero": nn.init.zeros_,
}
HOLDS_WEIGHTS = (nn.Linear, nn.Conv2d, nn.ConvTranspose2d, nn.RNNBase)


def weights(model: nn.Module) -> Iterator[tuple[nn.Module, str, Tensor]]:
    """(layer, name, matrix) of every linear, convolutional and recurrent layer."""
    for layer in model.modules():
        if isinstance(layer, HOLDS_WEIGHTS):
            yield from ((layer, n, p) for n, p in layer.named_parameters(recurse=False) if "weight" in n)


@torch.no_grad()
def draw_(model: nn.Module, law: str = "torch", gain: float = 1.0, bias: float | None = None) -> nn.Module:
    """New weights of a law times ``gain``, and a constant bias (``None``: torch's, 0 for other laws)."""
    for layer, _, w in weights(model):
        for chunk in w.chunk(w.shape[0] // w.shape[1]) if isinstance(layer, nn.RNNBase) and law != "torch" else [w]:
            LAWS[law](chunk)
        w.mul_(gain)
    if bias is not None or law != "torch":
        for layer in model.modules():
            if isinstance(layer, HOLDS_WEIGHTS):
                for name, b in layer.named_parameters(recurse=False):
                    if "bias" in name:
                        b.fill_(bias or 0.0)
    return model


def norm_of(name: str, d: int, flat: bool = True) -> nn.Module | None:
    """The norm that stands behind a layer of d features; ``None`` for none and for those of weights."""
    if name == "batch":
        return nn.BatchNorm1d(d) if flat else nn.BatchNorm2d(d)
    if name == "layer":
        return nn.LayerNorm(d) if flat else nn.GroupNorm(1, d)
    if name == "rms":
        return nn.RMSNorm(d) if flat else RMSNorm(d)
    if name == "group":
        return nn.GroupNorm(4, d)
    if name == "instance":
        return nn.GroupNorm(8, d) if flat else nn.InstanceNorm2d(d, affine=True)
    return None


def with_weight_norm(layer: nn.Module, name: str) -> nn.Module:
    """Weight and spectral norm, which stand in the layer."""
    if name == "weight":
        return parametrizations.weight_norm(layer)
    return parametrizations.spectral_norm(layer) if name == "spectral" else layer


def zero_last_(branch: nn.Module) -> None:
    """The last layer of a branch gives zeros; the norm behind it, where there is one."""
    inside = [m for m in branch.modules() if isinstance(getattr(m, "weight", None), Tensor) and not list(m.children())]
    for p in inside[-1].parameters() if inside else []:
        nn.init.zeros_(p)


class Skip(nn.Module):
    """A branch beside a skip.

    how: ``plain`` x + f; ``scaled`` x + f/sqrt(blocks); ``rezero`` x + a f with a = 0; ``zero`` plain with a last layer
        of
    zeros; ``gated`` (1 - g) x + g f with g = sigmoid(w x - 1); ``double`` 2x + f, a fault.
    """

    def __init__(self, branch: nn.Module, how: str, width: int, blocks: int, flat: bool = True) -> None:
        super().__init__()
        self.branch, self.how = branch, how
        self.scale = 1 / math.sqrt(blocks)
        if how == "rezero":
            self.alpha = nn.Parameter(torch.zeros(()))
        if how == "gated":
            self.gate = nn.Linear(width, width) if flat else nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        f = self.branch(x)
        if self.how == "rezero":
            return x + self.alpha * f
        if self.how == "scaled":
            return x + self.scale * f
        if self.how == "gated":
            g = torch.sigmoid(self.gate(x) - 1)
            return (1 - g) * x + g * f
        return (2 * x if self.how == "double" else x) + f


class Concat(nn.Module):
    """Every block sees the inputs too: f_k(cat(f_(k-1), x))."""

    def __init__(self, blocks: Iterable[nn.Module], axis: int = 1) -> None:
        super().__init__()
        self.blocks, self.axis = nn.ModuleList(blocks), axis

    def forward(self, x: Tensor) -> Tensor:
        y = x
        for block in self.blocks:
            y = block(torch.cat([y, x], self.axis))
        return y


class Last(nn.Module):
    """One row from a sequence (n, t, d): its last, or the mean."""

    def __init__(self, how: str = "last") -> None:
        super().__init__()
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        return x[:, -1] if self.how == "last" else x.mean(1)


class Rows(nn.Module):
    """An image (n, c, h, w) as h tokens of c w numbers."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2).flatten(2)


class ByClass(nn.Module):
    """(n, t, c) as torch's cross entropy takes it, (n, c, t)."""

    def forward(self, x: Tensor) -> Tensor:
        return x.transpose(1, 2)


class Recurrent(nn.Module):
    """The outputs of a recurrent layer."""

    def __init__(self, kind: str, inputs: int, width: int, layers: int, relu: bool) -> None:
        super().__init__()
        more = {"nonlinearity": "relu"} if kind == "rnn" and relu else {}
        make = {"rnn": nn.RNN, "lstm": nn.LSTM, "gru": nn.GRU}[kind]
        self.cell = make(inputs, width, layers, batch_first=True, **more)

    def forward(self, x: Tensor) -> Tensor:
        return self.cell(x)[0]


class Attention(nn.Module):
    """Softmax attention of some heads; ``scale``: of the logits, in units of 1/sqrt(d)."""

    def __init__(self, width: int, heads: int, scale: float = 1.0, causal: bool = False) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.heads, self.scale, self.causal = heads, scale, causal

    def forward(self, x: Tensor) -> Tensor:
        n, t, d = x.shape
        q, k, v = self.qkv(x).view(n, t, 3, self.heads, d // self.heads).permute(2, 0, 3, 1, 4)
        scale = self.scale / math.sqrt(d // self.heads)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=self.causal, scale=scale)
        return self.out(y.transpose(1, 2).reshape(n, t, d))


class Position(nn.Module):
    """Adds a learned vector a position."""

    def __init__(self, t: int, width: int, std: float = 0.02) -> None:
        super().__init__()
        self.table = nn.Parameter(std * torch.randn(t, width))

    def forward(self, x: Tensor) -> Tensor:
        return x + self.table


class Whole(nn.Sequential):
    """A net of the zoo: the outermost module, by which passes are counted."""
