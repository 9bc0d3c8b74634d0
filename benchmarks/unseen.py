"""Nets and data of `transfer.py` that were not looked at before the fit of `normscope.transfer` was fixed."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CANCER, WINE, DIABETES, PIXELS = 30, 13, 10, 64


def table(name: str, seed: int, regression: bool = False) -> tuple[Tensor, Tensor]:
    """64 rows of a table that scikit-learn brings along, each column with mean 0 and deviation 1."""
    from sklearn import datasets

    data = getattr(datasets, f"load_{name}")()
    rows = torch.randperm(len(data.data), generator=torch.Generator().manual_seed(seed))[:64]
    x, y = torch.tensor(data.data).float()[rows], torch.tensor(data.target)[rows]
    x = (x - x.mean(0)) / x.std(0).clamp_min(1e-6)
    return x, ((y - y.mean()) / y.std()).float()[:, None] if regression else y.long()


def patches(n: int, seed: int) -> tuple[Tensor, Tensor]:
    """(n, 3, 8, 8) of scikit-learn's two photographs, a quarter as large, and of which of them each is."""
    from sklearn.datasets import load_sample_images

    pictures = torch.stack([torch.tensor(x).float() for x in load_sample_images().images]).permute(0, 3, 1, 2)
    small = F.avg_pool2d(pictures / 255, 4)
    g = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    tops, lefts = (torch.randint(small.shape[i] - 8, (n,), generator=g).tolist() for i in (2, 3))
    x = torch.stack([small[c, :, t : t + 8, s : s + 8] for c, t, s in zip(y.tolist(), tops, lefts, strict=True)])
    return (x - x.mean()) / x.std(), y


def grey(seed: int) -> tuple[Tensor, Tensor]:
    """64 patches in grey, flat: inputs and, again, targets."""
    x = patches(64, seed)[0].mean(1).flatten(1)
    return x, x.clone()


def sequences(seed: int) -> tuple[Tensor, Tensor]:
    """16 sequences of 8 of ten tokens; the class is the sum of the first and the last, modulo ten."""
    x = torch.randint(10, (16, 8), generator=torch.Generator().manual_seed(seed))
    return x, (x[:, 0] + x[:, -1]) % 10


def he(a: int, b: int) -> nn.Linear:
    made = nn.Linear(a, b)
    nn.init.kaiming_normal_(made.weight)
    nn.init.zeros_(made.bias)
    return made


def gelu(width: int, depth: int) -> nn.Module:
    layers = [m for i in range(depth) for m in (he(width if i else CANCER, width), nn.GELU())]
    return nn.Sequential(*layers, nn.Linear(width, 2))


def layer_norm(width: int, depth: int) -> nn.Module:
    layers = [m for i in range(depth) for m in (nn.Linear(width if i else WINE, width), nn.LayerNorm(width), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(width, 3))


def tanh_regression(width: int, depth: int) -> nn.Module:
    layers: list[nn.Module] = []
    for i in range(depth):
        made = nn.Linear(width if i else DIABETES, width)
        nn.init.xavier_uniform_(made.weight)
        layers += [made, nn.Tanh()]
    return nn.Sequential(*layers, nn.Linear(width, 1))


class Added(nn.Module):
    """x + scale branch(x)."""

    def __init__(self, branch: nn.Module, scale: float = 1.0) -> None:
        super().__init__()
        self.branch, self.scale = branch, scale

    def forward(self, x: Tensor) -> Tensor:
        return x + self.scale * self.branch(x)


def scaled_residual(width: int, depth: int) -> nn.Module:
    blocks = [Added(nn.Sequential(he(width, width), nn.ReLU()), 1 / math.sqrt(depth)) for _ in range(depth)]
    return nn.Sequential(nn.Linear(CANCER, width), *blocks, nn.Linear(width, 2))


def autoencoder(width: int, depth: int) -> nn.Module:
    """``depth`` hidden layers; that in the middle has a quarter of the width."""
    sizes = [PIXELS, *[width] * (depth // 2), width // 4, *[width] * (depth - 1 - depth // 2), PIXELS]
    layers = [m for a, b in itertools.pairwise(sizes) for m in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def residual_conv(width: int, depth: int) -> nn.Module:
    blocks = [Added(nn.Sequential(nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))) for _ in range(depth)]
    stem = nn.Conv2d(3, width, 3, stride=2, padding=1)
    return nn.Sequential(stem, *blocks, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 2))


def group_norm(width: int, depth: int) -> nn.Module:
    layers: list[nn.Module] = []
    for i in range(depth):
        made = nn.Conv2d(width if i else 3, width, 3, stride=1 if i else 2, padding=1)
        nn.init.kaiming_normal_(made.weight)
        layers += [made, nn.GroupNorm(4, width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 2))


class Transformer(nn.Module):
    """Blocks of attention (two heads) and of two layers behind layer norms; the mean over the sequence is read out."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(10, width), nn.Embedding(8, width)
        self.blocks = nn.Sequential(
            *(
                nn.TransformerEncoderLayer(width, 2, 4 * width, dropout=0.0, batch_first=True, norm_first=True)
                for _ in range(depth)
            )
        )
        self.norm, self.out = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        whole: Tensor = self.blocks(self.token(x) + self.place.weight)
        return self.out(self.norm(whole).mean(1))  # type: ignore[no-any-return]


def rms_norm(width: int, depth: int) -> nn.Module:
    layers = [m for i in range(depth) for m in (he(width if i else WINE, width), nn.RMSNorm(width), nn.SiLU())]
    return nn.Sequential(*layers, nn.Linear(width, 3))


def elu_regression(width: int, depth: int) -> nn.Module:
    layers = [m for i in range(depth) for m in (he(width if i else DIABETES, width), nn.ELU())]
    return nn.Sequential(*layers, nn.Linear(width, 1))


def orthogonal(width: int, depth: int) -> nn.Module:
    layers: list[nn.Module] = []
    for i in range(depth):
        made = nn.Linear(width if i else WINE, width)
        nn.init.orthogonal_(made.weight, math.sqrt(2))
        layers += [made, nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(width, 3))


def tanh_conv(width: int, depth: int) -> nn.Module:
    layers = [m for i in range(depth) for m in (nn.Conv2d(width if i else 3, width, 3, padding=1), nn.Tanh())]
    return nn.Sequential(nn.AvgPool2d(2), *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 2))


def gelu_residual(width: int, depth: int) -> nn.Module:
    def branch() -> nn.Module:
        return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Linear(width, width))

    blocks = [Added(branch()) for _ in range(depth)]
    return nn.Sequential(nn.Linear(CANCER, width), *blocks, nn.LayerNorm(width), nn.Linear(width, 2))


def normed_residual_conv(width: int, depth: int) -> nn.Module:
    def branch() -> nn.Module:
        return nn.Sequential(nn.GroupNorm(2, width), nn.ReLU(), nn.Conv2d(width, width, 3, padding=1))

    blocks = [Added(branch()) for _ in range(depth)]
    stem = nn.Conv2d(3, width, 3, stride=2, padding=1)
    return nn.Sequential(stem, *blocks, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(width, 2))


class Recurrent(nn.Module):
    """An LSTM of ``depth`` layers, read out at the end."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.token, self.out = nn.Embedding(10, width), nn.Linear(width, 10)
        self.cells = nn.LSTM(width, width, depth, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.cells(self.token(x))[0][:, -1])  # type: ignore[no-any-return]


class PostNorm(nn.Module):
    """Blocks of attention and of two layers, each with a layer norm behind its sum."""

    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.token, self.place = nn.Embedding(10, width), nn.Embedding(8, width)
        made = [nn.TransformerEncoderLayer(width, 2, 4 * width, dropout=0.0, batch_first=True) for _ in range(depth)]
        self.blocks, self.out = nn.Sequential(*made), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.blocks(self.token(x) + self.place.weight).mean(1))  # type: ignore[no-any-return]


MLP, CONV = ((16, 32, 64), (2, 4, 8)), ((4, 8, 16), (2, 3, 4))
#: What makes the nets, the optimizer, widths, depths, data, loss.
KINDS: dict[str, tuple[Callable[[int, int], nn.Module], str, Any, Any, Callable[[], tuple[Tensor, Tensor]], str]] = {
    "mlp gelu, momentum": (gelu, "momentum", *MLP, lambda: table("breast_cancer", 5), "cross_entropy"),
    "mlp layer norm, adam": (layer_norm, "adam", *MLP, lambda: table("wine", 6), "cross_entropy"),
    "mlp tanh, regression, adam": (tanh_regression, "adam", *MLP, lambda: table("diabetes", 7, True), "mse"),
    "residual mlp / sqrt(depth), momentum": (
        scaled_residual, "momentum", *MLP, lambda: table("breast_cancer", 8), "cross_entropy",
    ),
    "autoencoder, adam": (autoencoder, "adam", *MLP, lambda: grey(9), "mse"),
    "residual conv, sgd": (residual_conv, "sgd", *CONV, lambda: patches(32, 10), "cross_entropy"),
    "conv group norm, sgd": (group_norm, "sgd", *CONV, lambda: patches(32, 11), "cross_entropy"),
    "pre-norm transformer, adam": (Transformer, "adam", (8, 16, 32), (1, 2, 3), lambda: sequences(12), "cross_entropy"),
}  # fmt: skip
#: Others, that were made after the edge had taken the place of the reach: what is said of these chose nothing.
LATER: dict[str, tuple[Callable[[int, int], nn.Module], str, Any, Any, Callable[[], tuple[Tensor, Tensor]], str]] = {
    "mlp silu, rms norm, sgd": (rms_norm, "sgd", *MLP, lambda: table("wine", 21), "cross_entropy"),
    "mlp elu, regression, sgd": (elu_regression, "sgd", *MLP, lambda: table("diabetes", 22, True), "mse"),
    "conv tanh, adam": (tanh_conv, "adam", *CONV, lambda: patches(32, 23), "cross_entropy"),
    "pre-norm gelu residual mlp, momentum": (
        gelu_residual, "momentum", *MLP, lambda: table("breast_cancer", 24), "cross_entropy",
    ),
    "lstm, adam": (Recurrent, "adam", (8, 16, 32), (1, 2, 3), lambda: sequences(25), "cross_entropy"),
    "mlp relu, orthogonal, momentum": (orthogonal, "momentum", *MLP, lambda: table("wine", 26), "cross_entropy"),
    "residual conv group norm, adam": (normed_residual_conv, "adam", *CONV, lambda: patches(32, 27), "cross_entropy"),
    "post-norm transformer, sgd": (PostNorm, "sgd", (8, 16, 32), (1, 2, 3), lambda: sequences(28), "cross_entropy"),
}  # fmt: skip
