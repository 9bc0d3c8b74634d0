"""What a tracker costs: a step without it, a step that it lets pass, and a step that it measures.

    python benchmarks/tracker.py                   # ResNet-18, an MLP, a transformer; medians of interleaved steps
    python benchmarks/tracker.py --metrics all     # with every metric, eigenvalues too

The same model trains in one process; in turn one step runs with no tracker, one with a tracker that lets it pass, one
with a tracker that measures it (and turns what it saw into rows of the table). A difference of medians over the median
of the plain steps is the cost, in steps; ``every`` for 5 % and 1 % follow from it, and the overhead that the tracker
itself reports for its measured steps stands beside it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy

from normscope import Spec, Tracker, build

Case = tuple[torch.nn.Module, Callable[[], torch.Tensor]]


def resnet(batch: int) -> Case:
    """ResNet-18 (basic blocks 2-2-2-2), images 3 x 64 x 64."""
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(
        num_labels=10, layer_type="basic", depths=[2, 2, 2, 2], hidden_sizes=[64, 128, 256, 512], embedding_size=64
    )
    model = ResNetForImageClassification(config).train()
    x, y = torch.randn(batch, 3, 64, 64), torch.randint(10, (batch,))
    return model, lambda: cross_entropy(model(x).logits, y)


def mlp(batch: int) -> Case:
    model = build(Spec(depth=16, width=512, norm="batch", outputs=10), 512)
    x, y = torch.randn(batch, 512), torch.randint(10, (batch,))
    return model, lambda: cross_entropy(model(x), y)


def transformer(batch: int) -> Case:
    layer = torch.nn.TransformerEncoderLayer(128, 4, 512, batch_first=True)
    model = torch.nn.TransformerEncoder(layer, 4, enable_nested_tensor=False).train()
    x = torch.randn(batch, 64, 128)
    return model, lambda: model(x).square().mean()


CASES = {
    "ResNet-18, n = 32": (resnet, 32, 7),
    "ResNet-18, n = 64": (resnet, 64, 5),
    "MLP 16 x 512 + batch norm, n = 128": (mlp, 128, 25),
    "MLP 16 x 512 + batch norm, n = 1024": (mlp, 1024, 9),
    "transformer 4 x 128, n = 32 x 64": (transformer, 32, 15),
}


def measure(name: str, metrics: str | None) -> None:
    make, batch, repeats = CASES[name]
    torch.manual_seed(0)
    model, loss = make(batch)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)

    def step() -> float:
        start = time.perf_counter()
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
        return time.perf_counter() - start

    def passing() -> float:
        with Tracker(model, 10**9) as tracker:
            tracker._due = 10**9
            return step()

    def measured() -> float:
        with Tracker(model, 10**9, metrics=metrics) as tracker:
            start = time.perf_counter()
            step()
            tracker.frame()
            seconds = time.perf_counter() - start
        own.append(tracker.seconds / seconds)
        return seconds

    own: list[float] = []
    arms = {"plain": step, "passing": passing, "measured": measured}
    times: dict[str, list[float]] = {arm: [] for arm in arms}
    for repeat in range(repeats + 1):
        for arm, run in arms.items():
            seconds = run()
            if repeat:
                times[arm].append(seconds)
    plain, passed, seen = (statistics.median(t) for t in times.values())
    extra, idle = (seen - plain) / plain, (passed - plain) / plain
    share = statistics.median(own[1:])
    print(
        f"{name:38}{plain:9.3f}{idle:+10.2%}{extra:+10.2f}{share / (1 - share):10.2f}{extra / 100:+11.2%}"
        f"{max(1, round(extra / 0.05)):8}{max(1, round(extra / 0.01)):8}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--metrics", default=None)
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"torch {torch.__version__}, 1 thread, medians; costs in plain steps; metrics: {args.metrics or 'default'}")
    print(
        f"{'':38}{'step, s':>9}{'passing':>10}{'measured':>10}{'reported':>10}"
        f"{'every=100':>11}{'<= 5 %':>8}{'<= 1 %':>8}"
    )
    for name in CASES:
        if args.only in name:
            measure(name, args.metrics)


if __name__ == "__main__":
    main()
