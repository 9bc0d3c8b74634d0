"""The nets that a `Spec` describes: an MLP, a VGG and a ResNet, built layer by layer."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from normscope.core.errors import UsageError, seed_of, shown, whole_number
from normscope.core.memory import check_room
from normscope.core.spec import Spec
from normscope.core.tensors import checked_generator, floating_dtype
from normscope.nn.activations import make_activation
from normscope.nn.norms import make_norm


class Layer(nn.Module):
    """One layer of the chain: weights, then norm and activation in the order of the spec."""

    #: A probe takes the whole layer as one, so that ``layer`` of a table is the spec's.
    normscope_layer = True

    def __init__(self, linear: nn.Module, features: int, spec: Spec, skip: float | None = None) -> None:
        super().__init__()
        self.linear = linear
        self.norm = make_norm(spec.norm, features)
        self.activation = make_activation(spec.activation)
        self.norm_first, self.skip = spec.norm_first, skip

    def forward(self, x: Tensor) -> Tensor:
        """h -> norm and activation of W h, or of h + skip * W h."""
        u = self.linear(x)
        if self.skip is not None:
            u = x + self.skip * u
        return self.activation(self.norm(u)) if self.norm_first else self.norm(self.activation(u))


class MLP(nn.Module):
    """A chain of ``depth`` layers on the flattened input, and the readout if the spec has outputs."""

    def __init__(self, spec: Spec, inputs: int) -> None:
        super().__init__()
        widths = [inputs] + [spec.width] * spec.depth
        self.layers = nn.ModuleList()
        for a, b in pairwise(widths):
            linear = nn.Linear(a, b, bias=spec.bias is not None)
            self.layers.append(Layer(linear, b, spec, skip=spec.skip if a == b else None))
        self.readout = _readout(spec, spec.width)

    def forward(self, x: Tensor) -> Tensor:
        """(n, ...) -> (n, outputs), or (n, width) without a readout."""
        h = x.flatten(1)
        for layer in self.layers:
            h = layer(h)
        return self.readout(h)


class VGG(nn.Module):
    """3x3 convolutions in stages that double the channels and halve the image, global average, readout."""

    def __init__(self, spec: Spec, channels: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for index, (a, b, pool) in enumerate(_stages(spec, channels)):
            layer = Layer(_conv(a, b, spec), b, spec, skip=spec.skip if a == b else None)
            self.layers.append(nn.Sequential(nn.MaxPool2d(2, ceil_mode=True), layer) if pool and index else layer)
            last = b
        self.readout = _readout(spec, last)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, height, width) -> (n, outputs)."""
        for layer in self.layers:
            x = layer(x)
        return self.readout(x.mean((2, 3)))


class Residual(nn.Module):
    """Two convolutions and a skip: act(x' + norm(W2 act(norm(W1 x)))), x' projected where the shape changes."""

    def __init__(self, a: int, b: int, stride: int, spec: Spec) -> None:
        super().__init__()
        self.conv1, self.norm1 = _conv(a, b, spec, stride), make_norm(spec.norm, b)
        self.conv2, self.norm2 = _conv(b, b, spec), make_norm(spec.norm, b)
        self.act1, self.act2 = make_activation(spec.activation), make_activation(spec.activation)
        change = stride != 1 or a != b
        self.shortcut = nn.Conv2d(a, b, 1, stride, bias=False) if change else nn.Identity()
        self.strength = 1.0 if spec.skip is None else spec.skip

    def forward(self, x: Tensor) -> Tensor:
        """The block."""
        u = self.norm2(self.conv2(self.act1(self.norm1(self.conv1(x)))))
        return self.act2(self.shortcut(x) + self.strength * u)


class ResNet(nn.Module):
    """A stem and (depth - 1) / 2 basic blocks in three stages, global average, readout."""

    def __init__(self, spec: Spec, channels: int) -> None:
        super().__init__()
        blocks = (spec.depth - 1) // 2
        if spec.depth < 3 or spec.depth % 2 == 0:
            raise UsageError(f"A resnet needs an odd depth >= 3 (a stem and blocks of two); got {spec.depth}.")
        self.stem = Layer(_conv(channels, spec.width, spec), spec.width, spec)
        self.blocks = nn.ModuleList()
        a = spec.width
        for i in range(blocks):
            stage = i * 3 // blocks
            b = spec.width * 2**stage
            self.blocks.append(Residual(a, b, 2 if b != a else 1, spec))
            a = b
        self.readout = _readout(spec, a)

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, height, width) -> (n, outputs)."""
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.readout(x.mean((2, 3)))


def _conv(a: int, b: int, spec: Spec, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(a, b, 3, stride, 1, bias=spec.bias is not None)


def _stages(spec: Spec, channels: int) -> Iterator[tuple[int, int, bool]]:
    """(channels in, channels out, pool before) of each VGG layer; four stages at most, widths w, 2w, 4w, 8w."""
    stages = min(4, spec.depth)
    a = channels
    for i in range(spec.depth):
        stage = i * stages // spec.depth
        b = spec.width * 2**stage
        yield a, b, i > 0 and b != spec.width * 2 ** ((i - 1) * stages // spec.depth)
        a = b


def _readout(spec: Spec, features: int) -> nn.Module:
    if spec.outputs is None:
        return nn.Identity()
    readout = nn.Linear(features, spec.outputs, bias=spec.bias is not None)
    if spec.output_norm == "none":
        return readout
    return nn.Sequential(readout, make_norm(spec.output_norm, spec.outputs))


#: Bytes that a layer's modules take beside their weights, about.
MODULE = 10_000


def build(
    spec: Spec,
    inputs: int | Sequence[int] | None = None,
    *,
    seed: int = 0,
    generator: torch.Generator | None = None,
    dtype: torch.dtype | None = None,
) -> nn.Module:
    """The module that a spec describes, its weights drawn from the spec's law.

    inputs: shape of one sample, (784,) or (3, 32, 32), or a number of features; default: ``spec.width`` features
        (three channels for the convolutional families).
    seed, generator: where the weights come from (the generator wins); torch's global stream is left alone.
    dtype: of the parameters; default torch's default dtype. The module is in training mode.
    """
    if not isinstance(spec, Spec):
        raise UsageError(f"build() needs a Spec; got {shown(spec)}. Pass normscope.Spec(depth=..., width=...).")
    shape, dtype = _shape(inputs), torch.get_default_dtype() if dtype is None else floating_dtype(dtype)
    seed = seed_of(seed)
    if spec.family == "mlp":
        make, features = MLP, math.prod(shape) if shape else spec.width
        weights = features * spec.width + (spec.depth - 1) * spec.width**2
    else:
        weights = 9 * spec.depth * spec.width**2  # or more: stages are wider
        make, features = (VGG if spec.family == "vgg" else ResNet), shape[0] if shape else 3  # type: ignore[assignment]
        if shape and len(shape) != 3:
            raise UsageError(f"A {spec.family} needs images (channels, height, width); the samples have shape {shape}.")
    do = "Take a smaller depth or width."
    check_room(weights * dtype.itemsize + MODULE * spec.depth, f"The weights of {spec}", do)
    generator = torch.Generator().manual_seed(seed) if generator is None else checked_generator(generator)
    with torch.random.fork_rng(devices=[]):  # torch's own initialisation draws from the global stream
        model = make(spec, features)
    model.to(dtype)
    for module in model.modules():
        if isinstance(module, nn.Linear | nn.Conv2d):
            readout = isinstance(module, nn.Linear) and _is_readout(model, module)
            init_weights_(module, spec, generator, gain=1.0 if readout else None)
    return model


def _shape(inputs: int | Sequence[int] | None) -> tuple[int, ...]:
    """The shape of one sample; empty where it is left to the spec."""
    sizes = () if inputs is None else inputs if isinstance(inputs, tuple | list) else (inputs,)
    do = "It is a number of features, or the shape of one sample: (3, 32, 32)."
    return tuple(whole_number("inputs", size, 1, do) for size in sizes)


def _is_readout(model: nn.Module, module: nn.Module) -> bool:
    readout = model.readout
    return module is readout or any(m is module for m in readout.modules())  # type: ignore[union-attr]


def weight_scale(spec: Spec, fan_in: int, fan_out: int) -> float:
    """Standard deviation of a weight times sqrt(fan_in), of the laws with mean zero; see `init_weights_`, which draws
    them.
    """
    if spec.weights in ("xavier", "xavier_normal"):
        return spec.effective_gain * math.sqrt(2 * fan_in / (fan_in + fan_out))
    if spec.weights == "orthogonal":
        return spec.effective_gain * math.sqrt(fan_in / max(fan_in, fan_out))
    return 1 / math.sqrt(3) if spec.weights == "torch" else spec.effective_gain


@torch.no_grad()
def init_weights_(module: nn.Linear | nn.Conv2d, spec: Spec, generator: torch.Generator, gain: float | None) -> None:
    """Draw one layer's weight and bias from the law of the spec, in place (see ``spec.WEIGHTS``)."""
    weight, gain = module.weight, spec.effective_gain if gain is None else gain
    fan_out, fan_in = weight.shape[0] * weight[0, 0].numel(), weight[0].numel()
    match spec.weights:
        case "gaussian":
            weight.normal_(0, gain / math.sqrt(fan_in), generator=generator)
        case "uniform":
            a = gain * math.sqrt(3 / fan_in)
            weight.uniform_(-a, a, generator=generator)
        case "xavier":
            a = gain * math.sqrt(6 / (fan_in + fan_out))
            weight.uniform_(-a, a, generator=generator)
        case "xavier_normal":
            weight.normal_(0, gain * math.sqrt(2 / (fan_in + fan_out)), generator=generator)
        case "torch":
            a = 1 / math.sqrt(fan_in)
            weight.uniform_(-a, a, generator=generator)
        case "positive":
            weight.uniform_(0, 2 / math.sqrt(fan_in), generator=generator)
        case "orthogonal":
            exact = torch.empty_like(weight, dtype=torch.promote_types(weight.dtype, torch.float32))
            weight.copy_(nn.init.orthogonal_(exact, gain, generator=generator))  # no QR in narrow types
        case "identity":
            nn.init.dirac_(weight) if weight.dim() > 2 else nn.init.eye_(weight)
            weight.mul_(gain)
    if module.bias is not None:
        if spec.weights == "torch":
            module.bias.uniform_(-1 / math.sqrt(fan_in), 1 / math.sqrt(fan_in), generator=generator)
        else:
            module.bias.normal_(0, spec.bias or 0.0, generator=generator)
