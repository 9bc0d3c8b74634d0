"""Theory of a model's own program against what is measured: nets of many kinds at random initialization.

    python benchmarks/programs.py [NAME ...]

For each net: mean cosine, participation rank, root mean square and gradient growth of every layer, predicted
(`normscope.predict` of that net) and measured (`normscope.probe`), both averaged over nets drawn anew. The error is
|predicted - measured| / |measured|; of a mean cosine below .1, over .1. Writes results/programs.md.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from program_costs import TITLE
from torch import Tensor, nn

from normscope import Spec, build, predict, probe

METRICS = {
    "mean_cosine": "mean cosine",
    "participation_rank": "rank",
    "rms": "rms",
    "gradient_growth": "gradient growth",
}
LEAST = 0.1
OUT = Path(__file__).parent.parent / "results" / "programs.md"


@dataclass
class Net:
    """A kind of net: what makes one, its batch, how many are drawn."""

    make: Callable[[], nn.Module]
    inputs: Any
    seeds: int = 3


def images(n: int = 8, size: int = 16, grain: int = 4) -> Tensor:
    """Smooth random images, (n, 3, size, size)."""
    noise = torch.randn(n, 3, grain, grain, generator=torch.Generator().manual_seed(0))
    return F.interpolate(noise, size, mode="bilinear")


def vectors(n: int = 16, d: int = 256) -> Tensor:
    """Correlated vectors, (n, d)."""
    x = torch.randn(n, d, generator=torch.Generator().manual_seed(0))
    return x + 0.7 * x[:1]


def tokens(n: int = 8, t: int = 32) -> Tensor:
    """Token ids."""
    return torch.randint(0, 1000, (n, t), generator=torch.Generator().manual_seed(0))


class Block(nn.Module):
    """A transformer block."""

    def __init__(self, d: int, post: bool = False, heads: int = 8, causal: bool = False) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.one, self.two = nn.LayerNorm(d), nn.LayerNorm(d)
        self.up, self.act, self.down = nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d)
        self.post, self.heads, self.causal = post, heads, causal

    def attention(self, x: Tensor) -> Tensor:
        q, k, v = (y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in self.qkv(x).chunk(3, -1))
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=self.causal).transpose(1, 2).flatten(2))

    def forward(self, x: Tensor) -> Tensor:
        if self.post:
            x = self.one(x + self.attention(x))
            return self.two(x + self.down(self.act(self.up(x))))
        x = x + self.attention(self.one(x))
        return x + self.down(self.act(self.up(self.two(x))))


class Residual(nn.Module):
    """A basic block, the activation behind the sum (post) or in front (pre)."""

    def __init__(self, a: int, b: int, stride: int = 1, norm: bool = True, pre: bool = False) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.Conv2d(b, b, 3, 1, 1, bias=False)
        of = (a, b) if pre else (b, b)
        self.n1, self.n2 = (nn.BatchNorm2d(c) if norm else nn.Identity() for c in of)
        change = a != b or stride != 1
        self.skip = nn.Conv2d(a, b, 1, stride, bias=False) if change else nn.Identity()
        self.pre = pre

    def forward(self, x: Tensor) -> Tensor:
        if self.pre:
            y = self.two(F.relu(self.n2(self.one(F.relu(self.n1(x))))))
            return y + self.skip(x)
        return F.relu(self.n2(self.two(F.relu(self.n1(self.one(x))))) + self.skip(x))


def resnet(norm: bool = True, pre: bool = False, c: int = 256) -> nn.Module:
    """Four blocks at two resolutions."""
    blocks = [Residual(c, c, 1, norm, pre), Residual(c, c, 2, norm, pre), Residual(c, c, 1, norm, pre)]
    return nn.Sequential(nn.Conv2d(3, c, 3, 2, 1), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, c))


class Mixer(nn.Module):
    """Tokens mixed along their axis, then channels."""

    def __init__(self, t: int, d: int) -> None:
        super().__init__()
        self.one, self.two = nn.LayerNorm(d), nn.LayerNorm(d)
        self.tokens = nn.Sequential(nn.Linear(t, 32), nn.GELU(), nn.Linear(32, t))
        self.channels = nn.Sequential(nn.Linear(d, 4 * d), nn.GELU(), nn.Linear(4 * d, d))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.tokens(self.one(x).transpose(1, 2)).transpose(1, 2)
        return x + self.channels(self.two(x))


class Patches(nn.Module):
    """Images as tokens (n, t, d), a trunk, their mean."""

    def __init__(self, trunk: nn.Module, d: int = 256) -> None:
        super().__init__()
        self.embed, self.trunk, self.norm = nn.Conv2d(3, d, 4, 4), trunk, nn.LayerNorm(d)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.trunk(self.embed(x).flatten(2).transpose(1, 2))).mean(1)


def words(trunk: nn.Module, d: int = 256) -> nn.Module:
    """Token ids through an embedding."""
    return nn.Sequential(nn.Embedding(1000, d), trunk)


def mlp(
    act: Callable[[], nn.Module], norm: Callable[[int], nn.Module] | None = None, depth: int = 6, d: int = 512
) -> Any:
    """A maker of plain nets with torch's own initialization."""

    def make() -> nn.Module:
        parts: list[nn.Module] = []
        for i in range(depth):
            parts += [nn.Linear(256 if i == 0 else d, d), *([norm(d)] if norm else []), act()]
        return nn.Sequential(*parts)

    return make


class Swish(nn.Module):
    """The user's own function: x sigmoid(1.5 x) - .1 sin 3 x."""

    def forward(self, x: Tensor) -> Tensor:
        return x * torch.sigmoid(1.5 * x) - 0.1 * torch.sin(3 * x)


def library() -> dict[str, Net]:
    """Configurations of ``transformers``, random weights."""
    try:
        import transformers as hf
    except ImportError:
        return {}
    shape = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 8, "intermediate_size": 1024}
    gpt2 = hf.GPT2Config(
        vocab_size=1000, n_embd=256, n_layer=4, n_head=8, n_positions=64, bos_token_id=0, eos_token_id=0
    )
    llama = {**shape, "num_key_value_heads": 4, "vocab_size": 1000}
    return {
        "GPT-2 (4 layers)": Net(lambda: hf.GPT2Model(gpt2), {"input_ids": tokens()}),
        "BERT (4 layers)": Net(lambda: hf.BertModel(hf.BertConfig(vocab_size=1000, **shape)), {"input_ids": tokens()}),
        "Llama (4 layers)": Net(lambda: hf.LlamaModel(hf.LlamaConfig(**llama)), {"input_ids": tokens()}),
        "ViT (4 layers)": Net(
            lambda: hf.ViTModel(hf.ViTConfig(image_size=32, patch_size=8, **shape)), {"pixel_values": images(8, 32)}
        ),
        "ConvNeXt-T": Net(lambda: hf.ConvNextModel(hf.ConvNextConfig()), {"pixel_values": images(8, 32)}, 2),
        "ResNet-50": Net(lambda: hf.ResNetModel(hf.ResNetConfig()), {"pixel_values": images(8, 64, 8)}, 2),
    }


BN1, LN = nn.BatchNorm1d, nn.LayerNorm
NETS: dict[str, Net] = {
    "MLP ReLU": Net(mlp(nn.ReLU), vectors()),
    "MLP tanh": Net(mlp(nn.Tanh), vectors()),
    "MLP own function, LN": Net(mlp(Swish, LN), vectors()),
    "MLP GELU, LN": Net(mlp(nn.GELU, LN), vectors()),
    "MLP ReLU, BN": Net(mlp(nn.ReLU, BN1), vectors()),
    "MLP SiLU, BN": Net(mlp(nn.SiLU, BN1), vectors()),
    "MLP ReLU, BN, 100 layers": Net(mlp(nn.ReLU, BN1, 100), vectors(), 1),
    "MLP residual, BN, ReLU": Net(
        lambda: build(Spec(depth=8, width=512, norm="batch", skip=0.5), inputs=256, seed=_seed()), vectors()
    ),
    "plain conv, ReLU": Net(
        lambda: nn.Sequential(
            nn.Conv2d(3, 256, 3, 2, 1), nn.ReLU(), nn.Conv2d(256, 256, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(256, 256, 3, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(256 * 16, 256), nn.ReLU(),
        ), images(),
    ),
    "plain conv, BN, ELU": Net(
        lambda: nn.Sequential(
            nn.Conv2d(3, 256, 3, 2, 1), nn.BatchNorm2d(256), nn.ELU(),
            nn.Conv2d(256, 256, 3, 1, 1), nn.BatchNorm2d(256), nn.ELU(), nn.AvgPool2d(2),
            nn.Conv2d(256, 256, 3, 1, 1), nn.GroupNorm(8, 256), nn.ELU(),
        ), images(),
    ),
    "ResNet, BN": Net(resnet, images()),
    "ResNet, no norm": Net(lambda: resnet(False), images()),
    "ResNet, BN, pre-activation": Net(lambda: resnet(True, True), images()),
    "transformer, pre-LN": Net(lambda: words(nn.Sequential(*[Block(256) for _ in range(4)], LN(256))), tokens()),
    "transformer, pre-LN, causal": Net(
        lambda: words(nn.Sequential(*[Block(256, causal=True) for _ in range(4)], LN(256))), tokens()
    ),
    "transformer, post-LN": Net(lambda: words(nn.Sequential(*[Block(256, True) for _ in range(4)])), tokens()),
    "torch's encoder, dropout .1": Net(
        lambda: words(nn.TransformerEncoder(nn.TransformerEncoderLayer(256, 8, 1024, batch_first=True), 4)), tokens()
    ),
    "ViT-like, pre-LN": Net(lambda: Patches(nn.Sequential(*[Block(256) for _ in range(4)])), images(8, 32)),
    "MLP-Mixer-like": Net(lambda: Patches(nn.Sequential(*[Mixer(64, 256) for _ in range(3)])), images(8, 32)),
}  # fmt: skip


def _seed() -> int:
    return int(torch.randint(0, 2**31, ()))


def compared(net: Net) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """metric -> errors of the layers; and what is said of the net."""
    pairs: dict[Any, list[tuple[float, float]]] = {}
    seconds, facts = 0.0, {}
    for seed in range(net.seeds):
        torch.manual_seed(seed)
        model = net.make()
        began = time.process_time()
        found = predict(model, net.inputs, metrics=[m for m in METRICS if m != "gradient_growth"])
        seconds += time.process_time() - began
        facts = dict(found.facts)
        without = set(facts["measured"])
        measured = {
            (r.layer, r.name, r.call, r.signal, r.metric): r.value
            for r in probe(model, net.inputs, backward=True, mode="train").records
        }
        for r in found.records:
            key = (r.layer, r.name, r.call, r.signal, r.metric)
            if r.layer and r.metric in METRICS and r.name not in without and key in measured:
                pairs.setdefault(key, []).append((r.value, measured[key]))
    errors: dict[str, list[float]] = {m: [] for m in METRICS}
    for key, values in pairs.items():
        a, b = np.mean(values, 0)
        size = max(abs(b), LEAST) if key[-1] == "mean_cosine" else abs(b)
        errors[key[-1]].append(float(abs(a - b) / size) if size else 0.0)
    return errors, {**facts, "cpu": seconds / net.seeds}


def main(wanted: list[str]) -> None:
    """Compare, and write the table."""
    rows, every = [], {m: list[float]() for m in METRICS}
    for name, net in {**NETS, **library()}.items():
        if wanted and name not in wanted:
            continue
        errors, facts = compared(net)
        cells = [f"{np.median(e):.3f} / {np.quantile(e, 0.95):.3f}" if e else "-" for e in errors.values()]
        total = facts["layers"]
        said = ", ".join(facts["no_rule"]) or "-"
        rows.append(f"| {name} | {total - len(facts['measured'])} of {total} | " + " | ".join(cells)
                    + f" | {facts['cpu']:.1f} | {said} |")  # fmt: skip
        print(rows[-1], flush=True)
        for m, e in errors.items():
            every[m] += e
    whole = [x for e in every.values() for x in e]
    cells = [f"{np.median(e):.3f} / {np.quantile(e, 0.95):.3f}" for e in every.values()]
    share = np.mean(np.array(whole) <= 0.15)
    rows.append(f"| all {len(rows)} | | " + " | ".join(cells) + " | | |")
    text = f"""# Theory of a model's own program, against measurement

`python benchmarks/programs.py`: nets at random initialization, batches of 8 to 16, widths of 256 to 2048; predicted by
`normscope.predict(model, inputs)`, measured by `probe` on the same nets, both averaged over 1 to 3 of them. Errors
relative to the measured value (of a mean cosine below {LEAST:g}: over {LEAST:g}), median / 95 % quantile over layers.
torch's encoder starts with copies of one layer (`nn.TransformerEncoder`), which the theory takes for independent.
Over all layers and metrics: median {np.median(whole):.3f}, {share:.1%} within .15.

| net | layers with a law | {" | ".join(METRICS.values())} | CPU s | no rule |
|---|---|{"---|" * (len(METRICS) + 2)}
""" + "\n".join(rows) + "\n"  # fmt: skip
    print(text)
    if not wanted:
        _, title, costs = OUT.read_text().partition(TITLE)
        OUT.write_text(text + (f"\n{title}{costs}" if title else ""))


if __name__ == "__main__":
    main(sys.argv[1:])
