"""What `predict` costs: CPU seconds and peak memory, each net in a fresh process.

    python benchmarks/program_costs.py [NAME ...]

Memory is the peak of the process above that when the net was built (its own copies and scipy's import included); one
core. Writes the last section of results/programs.md: with names, these rows of it.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from normscope import Spec, UsageError, predict

OUT = Path(__file__).parent.parent / "results" / "programs.md"
TITLE = "## Time and memory"
Case = Callable[[], tuple[Any, Any]]


class Basic(nn.Module):
    """A basic block of a ResNet."""

    def __init__(self, a: int, b: int, stride: int) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(a, b, 3, stride, 1, bias=False), nn.Conv2d(b, b, 3, 1, 1, bias=False)
        self.n1, self.n2 = nn.BatchNorm2d(b), nn.BatchNorm2d(b)
        change = nn.Sequential(nn.Conv2d(a, b, 1, stride, bias=False), nn.BatchNorm2d(b))
        self.skip = nn.Identity() if a == b and stride == 1 else change

    def forward(self, x: Tensor) -> Tensor:
        y = self.n2(self.two(torch.relu(self.n1(self.one(x)))))
        return torch.relu(y + self.skip(x))


def images(n: int) -> Tensor:
    """(n, 3, 32, 32)."""
    return torch.randn(n, 3, 32, 32)


def resnet18(n: int) -> tuple[nn.Module, Tensor]:
    """torchvision's, on small images."""
    widths = (64, 64, 64, 128, 128, 256, 256, 512, 512)
    blocks = [Basic(a, b, 1 if a == b else 2) for a, b in pairwise(widths)]
    stem = [nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.BatchNorm2d(64), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 10)), images(n)


def plain(n: int, norm: bool) -> tuple[nn.Module, Tensor]:
    """20 convolutions at three resolutions."""
    parts: list[nn.Module] = []
    widths = [3, *[64] * 5, *[128] * 5, *[256] * 10]
    for i, (a, b) in enumerate(pairwise(widths)):
        parts += [nn.Conv2d(a, b, 3, 2 if i in (5, 10) else 1, 1), *([nn.BatchNorm2d(b)] if norm else []), nn.ReLU()]
    return nn.Sequential(*parts, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 10)), images(n)


def mlp(n: int, depth: int, d: int) -> tuple[nn.Module, Tensor]:
    """Batch norm and ReLU."""
    layers = [nn.Sequential(nn.Linear(d, d), nn.BatchNorm1d(d), nn.ReLU()) for _ in range(depth)]
    return nn.Sequential(*layers), torch.randn(n, d)


def spec(n: int) -> tuple[Spec, Any]:
    """The same, as data."""
    return Spec(depth=100, width=512, norm="batch", activation="relu"), torch.randn(n, 512).numpy()


def library(kind: str, *size: int) -> tuple[nn.Module, Any]:
    """The default configuration of ``transformers``, random weights."""
    import transformers as hf

    model = getattr(hf, f"{kind}Model")(getattr(hf, f"{kind}Config")())
    if kind == "ViT":
        return model, {"pixel_values": torch.randn(*size, 3, 224, 224)}
    return model, {"input_ids": torch.randint(0, 30000, size)}


CASES: dict[str, Case] = {
    "MLP, 100 layers, BN, ReLU, n = 128": lambda: mlp(128, 100, 512),
    "the same as a `Spec`": lambda: spec(128),
    "MLP, 100 layers, BN, ReLU, n = 256": lambda: mlp(256, 100, 512),
    "the same as a `Spec`, n = 256": lambda: spec(256),
    "MLP, 20 layers, BN, ReLU, n = 1024": lambda: mlp(1024, 20, 1024),
    "ResNet-18, 3 x 32 x 32, n = 8": lambda: resnet18(8),
    "ResNet-18, 3 x 32 x 32, n = 32": lambda: resnet18(32),
    "ResNet-18, 3 x 32 x 32, n = 128": lambda: resnet18(128),
    "ResNet-18, 3 x 32 x 32, n = 256": lambda: resnet18(256),
    "20 convolutions, n = 2": lambda: plain(2, False),
    "20 convolutions, n = 32": lambda: plain(32, False),
    "20 convolutions, BN, n = 2": lambda: plain(2, True),
    "20 convolutions, BN, n = 32": lambda: plain(32, True),
    "20 convolutions, BN, n = 256": lambda: plain(256, True),
    "GPT-2, 2 x 64 tokens": lambda: library("GPT2", 2, 64),
    "GPT-2, 2 x 128 tokens": lambda: library("GPT2", 2, 128),
    "GPT-2, 4 x 128 tokens": lambda: library("GPT2", 4, 128),
    "GPT-2, 8 x 128 tokens": lambda: library("GPT2", 8, 128),
    "BERT base, 4 x 128 tokens": lambda: library("Bert", 4, 128),
    "ViT base, 4 x 3 x 224 x 224": lambda: library("ViT", 4),
}


def peak() -> float:
    """MB that this process has held at most."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith("VmHWM"))
    return int(line.split()[1]) / 1024


def measured(name: str) -> str:
    """The row of one net, in this process."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    model, inputs = CASES[name]()
    before, began = peak(), time.process_time()
    said = "all"
    try:
        facts = predict(model, inputs=inputs).facts
        if facts.get("measured"):
            said = f"{facts['layers'] - len(facts['measured'])} of {facts['layers']}"
    except UsageError as error:
        said = f"refused: {error}"
    return f"| {name} | {said} | {time.process_time() - began:.1f} | {peak() - before:.0f} |"


def main(wanted: list[str]) -> None:
    """Each in a process of its own; and write the section."""
    before, _, section = OUT.read_text().partition(TITLE)
    kept = {line.split(" | ")[0][2:]: line for line in section.splitlines() if line.startswith("| ")}
    for name in wanted or CASES:
        done = subprocess.run([sys.executable, __file__, "--one", name], capture_output=True, text=True, check=True)
        kept[name] = done.stdout.strip().splitlines()[-1]
        print(kept[name], flush=True)
    rows = [kept[name] for name in CASES if name in kept]
    text = f"""{TITLE}

`python benchmarks/program_costs.py`: `predict` with gradients, each net in a fresh process on one core; MB: its peak
above that when the net was built. Layers of more than 2048 samples x positions are measured, not predicted (the
facts and notes of the profile name them): pass fewer samples.

| net | layers with a law | CPU s | MB |
|---|---|---|---|
""" + "\n".join(rows) + "\n"  # fmt: skip
    OUT.write_text(before.rstrip() + "\n\n" + text)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--one"]:
        print(measured(sys.argv[2]))
    else:
        main(sys.argv[1:])
