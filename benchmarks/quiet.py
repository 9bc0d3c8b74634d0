"""Sound networks on which a diagnosis has to be quiet: before and after a forward pass, and after 50 steps.

python benchmarks/quiet.py [NAME ...] [--seeds 3] [--trial]     prints a line a net, and what was said of it
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import normscope as ns

NETS: dict[str, Callable[[], tuple[nn.Module, Any, Any, Any]]] = {}


def net(build: Callable[[], tuple[nn.Module, Any, Any, Any]]) -> Callable[[], tuple[nn.Module, Any, Any, Any]]:
    NETS[build.__name__.strip("_").replace("_", " ")] = build
    return build


def table(n: int = 256, d: int = 20) -> Tensor:
    return torch.randn(n, d)


def classes(x: Tensor, c: int = 10) -> Tensor:
    """Classes by a random two-layer teacher."""
    x = x.flatten(1)
    return (torch.tanh(x @ torch.randn(x.shape[1], 16) / x.shape[1] ** 0.5) @ torch.randn(16, c)).argmax(1)


def numbers(x: Tensor) -> Tensor:
    """A target (n, 1) of mean 0 and variance 1."""
    x = x.flatten(1)
    t = torch.tanh(x @ torch.randn(x.shape[1], 16) / x.shape[1] ** 0.5) @ torch.randn(16, 1)
    return (t - t.mean()) / t.std()


def images(n: int = 64, c: int = 3, size: int = 32, k: int = 10) -> tuple[Tensor, Tensor]:
    """Smooth patterns, one a class, in noise."""
    y = torch.arange(n) % k
    patterns = F.interpolate(torch.randn(k, c, 4, 4), size=(size, size), mode="bilinear")
    x = patterns[y] + 0.5 * torch.randn(n, c, size, size)
    return (x - x.mean()) / x.std(), y


def chain(widths: list[int], act: type[nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(widths):
        layers += [nn.Linear(a, b), act()]
    return nn.Sequential(*layers[:-1])


@net
def linear_regression():
    x = table()
    return nn.Linear(20, 1), x, numbers(x), nn.MSELoss()


@net
def logistic_regression():
    x = table()
    return nn.Linear(20, 1), x, (x[:, :1] + 0.3 * torch.randn(256, 1) > 0).float(), nn.BCEWithLogitsLoss()


@net
def softmax_regression():
    x = table()
    return nn.Linear(20, 10), x, classes(x), nn.CrossEntropyLoss()


@net
def binary_with_a_sigmoid():
    x = table()
    net = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 1), nn.Sigmoid())
    return net, x, (numbers(x) > 0).float(), nn.BCELoss()


@net
def sigmoid_mlp():
    x = table()
    return chain([20, 64, 64, 10], nn.Sigmoid), x, classes(x), nn.CrossEntropyLoss()


for depth in range(2, 11):

    def plain(depth: int = depth):
        x = table()
        return chain([20, *[64] * (depth - 1), 10], nn.ReLU), x, classes(x), nn.CrossEntropyLoss()

    NETS[f"torch default relu {depth}"] = plain


class Adapted(nn.Module):
    """y = W x + B A x with W frozen, B zero."""

    def __init__(self, base: nn.Linear, rank: int = 4) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.a = nn.Parameter(torch.randn(rank, base.in_features) / rank**0.5)
        self.b = nn.Parameter(torch.zeros(base.out_features, rank))

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + x @ self.a.T @ self.b.T


@net
def lora():
    x = table(d=32)
    base = chain([32, 64, 64, 10], nn.ReLU)
    optimizer = torch.optim.Adam(base.parameters(), 3e-3)
    y = classes(x)
    for _ in range(100):
        optimizer.zero_grad()
        F.cross_entropy(base(x), y.roll(0)).backward()
        optimizer.step()
    for i in (0, 2, 4):
        base[i] = Adapted(base[i])  # type: ignore[arg-type]
    return base, x + 0.3 * torch.randn_like(x), (y + 1) % 10, nn.CrossEntropyLoss()


@net
def zero_head():
    x = table()
    net = chain([20, 64, 64, 10], nn.ReLU)
    nn.init.zeros_(net[-1].weight)  # type: ignore[arg-type]
    nn.init.zeros_(net[-1].bias)  # type: ignore[arg-type]
    return net, x, classes(x), nn.CrossEntropyLoss()


class Residual(nn.Module):
    def __init__(self, branch: nn.Module, alpha: bool = False) -> None:
        super().__init__()
        self.branch = branch
        self.alpha = nn.Parameter(torch.zeros(1)) if alpha else None

    def forward(self, x: Tensor) -> Tensor:
        return x + self.branch(x) * (1 if self.alpha is None else self.alpha)


def branches(count: int, kind: str) -> nn.Sequential:
    out: list[nn.Module] = [nn.Linear(20, 64)]
    for _ in range(count):
        one, two = nn.Linear(64, 64), nn.Linear(64, 64)
        if kind == "zero":
            nn.init.zeros_(two.weight)
        if kind == "fixup":
            nn.init.kaiming_normal_(one.weight)
            one.weight.data.mul_(count**-0.5)
            nn.init.zeros_(two.weight)
        out.append(Residual(nn.Sequential(one, nn.ReLU(), two), alpha=kind == "rezero"))
    head = nn.Linear(64, 10)
    if kind == "fixup":
        nn.init.zeros_(head.weight)
    return nn.Sequential(*out, nn.ReLU(), head)


for kind, count in (("zero", 8), ("fixup", 16), ("rezero", 12)):

    def residual(kind: str = kind, count: int = count):
        x = table()
        return branches(count, kind), x, classes(x), nn.CrossEntropyLoss()

    NETS[f"{kind} branches"] = residual


class Basic(nn.Module):
    def __init__(self, a: int, b: int, stride: int, bottleneck: bool = False) -> None:
        super().__init__()
        if bottleneck:
            m = b // 4
            parts = [(a, m, 1, 1), (m, m, 3, stride), (m, b, 1, 1)]
        else:
            parts = [(a, b, 3, stride), (b, b, 3, 1)]
        layers: list[nn.Module] = []
        for i, o, k, s in parts:
            layers += [nn.Conv2d(i, o, k, s, k // 2, bias=False), nn.BatchNorm2d(o), nn.ReLU(inplace=True)]
        self.branch = nn.Sequential(*layers[:-1])
        self.short = (
            nn.Identity()
            if stride == 1 and a == b
            else nn.Sequential(nn.Conv2d(a, b, 1, stride, bias=False), nn.BatchNorm2d(b))
        )
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.branch(x) + self.short(x))


def resnet(counts: list[int], width: int, bottleneck: bool) -> nn.Sequential:
    factor = 4 if bottleneck else 1
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    a = width
    for stage, count in enumerate(counts):
        for i in range(count):
            b = width * 2**stage * factor
            layers.append(Basic(a, b, 2 if stage and i == 0 else 1, bottleneck))
            a = b
    net = nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(a, 10))
    for m in net.modules():
        if isinstance(m, nn.Conv2d):
            nn.init.kaiming_normal_(m.weight, mode="fan_out", nonlinearity="relu")
    return net


@net
def resnet_18():
    x, y = images(32)
    return resnet([2, 2, 2, 2], 32, False), x, y, nn.CrossEntropyLoss()


@net
def resnet_50():
    x, y = images(16)
    return resnet([3, 4, 6, 3], 16, True), x, y, nn.CrossEntropyLoss()


def _hf(name: str, config: Any) -> Any:
    import transformers

    return getattr(transformers, name)(config)


@net
def vit():
    import transformers as t

    x, y = images(32)
    config = t.ViTConfig(
        hidden_size=96, num_hidden_layers=6, num_attention_heads=4, intermediate_size=192, image_size=32, patch_size=8,
        num_labels=10,
    )  # fmt: skip
    return _hf("ViTForImageClassification", config), {"pixel_values": x, "labels": y}, None, None


for layers in (1, 2, 4, 12):

    def bert(layers: int = layers):
        import transformers as t

        config = t.BertConfig(
            vocab_size=200, hidden_size=64, num_hidden_layers=layers, num_attention_heads=4, intermediate_size=128,
            num_labels=4,
        )  # fmt: skip
        x = torch.randint(200, (32, 24))
        y = (x[:, 1:5].sum(1) // 50) % 4
        return _hf("BertForSequenceClassification", config), {"input_ids": x, "labels": y}, None, None

    NETS[f"bert {layers}"] = bert


@net
def gpt2():
    import transformers as t

    config = t.GPT2Config(vocab_size=120, n_embd=64, n_layer=4, n_head=4, n_positions=64)
    x = torch.arange(32)[None] * torch.randint(1, 9, (16, 1)) % 120
    return _hf("GPT2LMHeadModel", config), {"input_ids": x, "labels": x}, None, None


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rnn, self.out = nn.LSTM(6, 48, 2, batch_first=True), nn.Linear(48, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.rnn(x)[0][:, -1])


@net
def lstm():
    x = torch.randn(128, 16, 6)
    return Recurrent(), x, (x[:, -6:, 0].sum(1) > 0).long(), nn.CrossEntropyLoss()


class UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()

        def unit(a: int, b: int) -> nn.Sequential:
            return nn.Sequential(nn.Conv2d(a, b, 3, padding=1), nn.BatchNorm2d(b), nn.ReLU())

        self.one, self.two, self.three = unit(3, 16), unit(16, 32), unit(32, 32)
        self.up, self.last = unit(64, 16), nn.Conv2d(32, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.one(x)
        b = self.two(F.max_pool2d(a, 2))
        c = self.three(F.max_pool2d(b, 2))
        d = self.up(torch.cat([F.interpolate(c, scale_factor=2), b], 1))
        return self.last(torch.cat([F.interpolate(d, scale_factor=2), a], 1))


@net
def unet():
    x, _ = images(16)
    return UNet(), x, (x.mean(1) > 0).long(), nn.CrossEntropyLoss()


class Modulated(nn.Module):
    def __init__(self, d: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(d, elementwise_affine=False)
        self.mlp = nn.Sequential(nn.Linear(d, 2 * d), nn.GELU(), nn.Linear(2 * d, d))
        self.ada = nn.Linear(d, 3 * d)
        nn.init.zeros_(self.ada.weight)
        nn.init.zeros_(self.ada.bias)

    def forward(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale, gate = self.ada(c).chunk(3, -1)
        return x + gate * self.mlp(self.norm(x) * (1 + scale) + shift)


class Diffusion(nn.Module):
    """A denoiser with adaptive layer norms that start at zero, and a zero head."""

    def __init__(self, d: int = 64) -> None:
        super().__init__()
        self.enter, self.time = nn.Linear(8, d), nn.Sequential(nn.Linear(16, d), nn.SiLU())
        self.blocks = nn.ModuleList(Modulated(d) for _ in range(6))
        self.out = nn.Linear(d, 8)
        nn.init.zeros_(self.out.weight)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        angle = t[:, None] * torch.exp(torch.linspace(0, 4, 8))
        c = self.time(torch.cat([angle.sin(), angle.cos()], 1))
        h = self.enter(x)
        for block in self.blocks:
            h = block(h, c)
        return self.out(h)


@net
def adaln_diffusion():
    clean, t = torch.randn(128, 4).repeat(1, 2), torch.rand(128)
    noise = torch.randn(128, 8)
    x = (1 - t[:, None]).sqrt() * clean + t[:, None].sqrt() * noise
    return Diffusion(), (x, t), noise, nn.MSELoss()


class Graph(nn.Module):
    def __init__(self, adjacency: Tensor, width: int = 32, classes: int = 4) -> None:
        super().__init__()
        a = adjacency + torch.eye(len(adjacency))
        scale = a.sum(1).rsqrt()
        self.register_buffer("a", scale[:, None] * a * scale)
        self.one, self.two = nn.Linear(16, width), nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        return self.a @ self.two(torch.relu(self.a @ self.one(x)))


@net
def gcn():
    y = torch.arange(120) % 4
    same = y[:, None] == y
    links = (torch.rand(120, 120) < torch.where(same, 0.15, 0.01)).float().triu(1)
    x = torch.randn(4, 16)[y] * 0.5 + torch.randn(120, 16)
    return Graph(links + links.T), x, y, nn.CrossEntropyLoss()


@net
def autoencoder():
    x = torch.tanh(torch.randn(128, 6) @ torch.randn(6, 64))
    return chain([64, 32, 8, 32, 64], nn.ReLU), x, x, nn.MSELoss()


@net
def sigmoid_autoencoder():
    x = torch.sigmoid(torch.randn(128, 6) @ torch.randn(6, 64))
    net = nn.Sequential(nn.Linear(64, 16), nn.Sigmoid(), nn.Linear(16, 64), nn.Sigmoid())
    return net, x, x, nn.MSELoss()


def steps(model: nn.Module, x: Any, t: Any, loss: Any, count: int) -> None:
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-3)
    model.train()
    for _ in range(count):
        optimizer.zero_grad()
        out = model(**x) if isinstance(x, dict) else model(*x) if isinstance(x, tuple) else model(x)
        (out.loss if loss is None else loss(out, t)).backward()
        optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--trial", action="store_true", help="with the trial, and an optimizer (Adam at .001)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    loud = told = 0
    for name in options.names or NETS:
        for seed in range(options.seeds):
            torch.manual_seed(seed)
            model, x, t, loss = NETS[name]()
            for when in ("fresh", "after a forward pass", "after 50 steps"):
                if when == "after a forward pass":
                    model(**x) if isinstance(x, dict) else model(*x) if isinstance(x, tuple) else model(x)
                if when == "after 50 steps":
                    steps(model, x, t, loss, 50)
                began = time.process_time()
                more: dict[str, Any] = {"trial": False}
                if options.trial:
                    adam = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], 1e-3)
                    more = {"optimizer": adam}
                found = ns.diagnose(model, x, t, loss, **more)
                said = [f"{f.code} {f.severity}: {f.evidence}" for f in found.findings if f.severity != "info"]
                told, loud = told + 1, loud + bool(said)
                print(f"{name:24} {seed} {when:22} {time.process_time() - began:6.2f} s  {'; '.join(said) or 'quiet'}")
    print(f"{loud} of {told} diagnoses were not quiet")


if __name__ == "__main__":
    main()
