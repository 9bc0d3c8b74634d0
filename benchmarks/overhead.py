"""What a probe costs: CPU seconds and peak memory against a plain forward, and a plain forward + backward.

    python benchmarks/overhead.py               # all cases, medians of ratios
    python benchmarks/overhead.py --peers       # also delve and torchlens, where they are installed
    python benchmarks/overhead.py --theory      # the theory line of a diagnosis, n = 128 to 1024
    python benchmarks/overhead.py --only GPT    # the cases whose names hold this

Every arm runs in the same process in turn (A B C A B C ...), so that a change of the machine's speed hits all alike;
peak memory is that of a fresh process per arm. "no eigenvalues": the metrics that need none; "by hand": a hook on every
layer that copies the output and takes the eigenvalues of its Gram matrix, nothing else, nothing put back.
"""

from __future__ import annotations

import argparse
import copy
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from normscope import Spec, build, diagnose, probe
from normscope.call.taps import find_taps
from normscope.geometry.metrics import METRICS

Case = tuple[torch.nn.Module, Any, torch.Tensor]


def mlp(depth: int, width: int, n: int, norm: str = "none") -> Case:
    generator = torch.Generator().manual_seed(0)
    x = torch.rand(n, width, generator=generator)
    model = build(Spec(depth=depth, width=width, norm=norm, outputs=10), width)
    return model, x, torch.randint(10, (n,), generator=generator)


def stack(depth: int, width: int, n: int) -> Case:
    """``Sequential`` of Linear and ReLU: each of the two is a layer that is measured."""
    generator = torch.Generator().manual_seed(0)
    parts = [part for _ in range(depth) for part in (torch.nn.Linear(width, width), torch.nn.ReLU())]
    model = torch.nn.Sequential(*parts, torch.nn.Linear(width, 10))
    return model, torch.rand(n, width, generator=generator), torch.randint(10, (n,), generator=generator)


def resnet(small: bool) -> Case:
    """ResNet-50 (bottlenecks 3-4-6-3), or 18 (basic blocks 2-2-2-2), on 64 images of 3 x 64 x 64."""
    from transformers import ResNetConfig, ResNetForImageClassification

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 3, 64, 64, generator=generator)
    basic = {"layer_type": "basic", "depths": [2, 2, 2, 2], "hidden_sizes": [64, 128, 256, 512]} if small else {}
    model = ResNetForImageClassification(ResNetConfig(num_labels=1000, **basic)).train()
    return model, x, torch.randint(1000, (64,), generator=generator)


def gpt2() -> Case:
    """GPT-2 (12 blocks of width 768) on 4 texts of 128 tokens; targets are the next tokens."""
    from transformers import GPT2Config, GPT2LMHeadModel

    tokens = torch.randint(50257, (4, 129), generator=torch.Generator().manual_seed(0))
    return GPT2LMHeadModel(GPT2Config(use_cache=False)).train(), tokens[:, :-1], tokens[:, 1:]


NETS: dict[str, Callable[[], Case]] = {
    "MLP 32 x 128, n = 128": lambda: mlp(32, 128, 128),
    "MLP 32 x (Linear 128, ReLU), n = 128": lambda: stack(32, 128, 128),
    "MLP 32 x 256, n = 128": lambda: mlp(32, 256, 128),
    "MLP 32 x 256 + batch norm, n = 128": lambda: mlp(32, 256, 128, "batch"),
    "MLP 16 x 256, n = 1024": lambda: mlp(16, 256, 1024),
    "ResNet-18, n = 64, 64 x 64": lambda: resnet(small=True),
    "ResNet-50, n = 64, 64 x 64": lambda: resnet(small=False),
    "GPT-2, n = 4 x 128": gpt2,
}


def arms(model: torch.nn.Module, x: Any, y: torch.Tensor, peers: bool) -> dict[str, Callable[[], Any]]:
    parameters = list(model.parameters())

    def logits() -> torch.Tensor:
        out = model(x)
        out = out if isinstance(out, torch.Tensor) else out.logits
        return out.movedim(-1, 1)

    def forward() -> None:
        with torch.no_grad():
            logits()

    def both() -> None:
        torch.autograd.grad(cross_entropy(logits(), y), parameters)

    def by_hand() -> None:
        def look(_module: Any, _args: Any, output: Any) -> None:
            if isinstance(output, torch.Tensor):
                rows = output.detach().flatten(1).double()
                torch.linalg.eigvalsh(rows @ rows.T)

        hooks = [tap.module.register_forward_hook(look) for tap in find_taps(model)]
        both()
        for hook in hooks:
            hook.remove()

    cheap = [m.name for m in METRICS.values() if m.needs != "eigenvalues"]
    out: dict[str, Callable[[], Any]] = {
        "forward": forward,
        "forward + backward": both,
        "by hand": by_hand,
        "probe, no eigenvalues": lambda: probe(model, x, y, mode="train", metrics=cheap),
        "probe, all, forward": lambda: probe(model, x, mode="train"),
        "probe, all, both": lambda: probe(model, x, y, mode="train"),
    }
    if peers:
        out |= peer_arms(model, x)
    return out


def peer_arms(model: torch.nn.Module, x: torch.Tensor) -> dict[str, Callable[[], Any]]:
    found: dict[str, Callable[[], Any]] = {}
    try:
        import torchlens

        found["torchlens trace"] = lambda: torchlens.trace(copy.deepcopy(model), x)
    except Exception as error:
        print(f"torchlens left out: {type(error).__name__}: {error}")
    try:
        import logging

        from delve import SaturationTracker

        logging.disable(logging.INFO)

        def delve() -> None:
            mine = copy.deepcopy(model)  # its hooks stay on
            with tempfile.TemporaryDirectory() as folder:
                where = f"{folder}/out"
                tracker = SaturationTracker(where, save_to="csv", modules=mine, stats=["idim"], device="cpu")
                mine(x)
                tracker.add_saturations()
                tracker.close()

        found["delve (intrinsic dimension)"] = delve
    except Exception as error:
        print(f"delve left out: {type(error).__name__}: {error}")
    return found


def measure(name: str, repeats: int, peers: bool) -> None:
    runs = arms(*NETS[name](), peers)
    times: dict[str, list[float]] = {arm: [] for arm in runs}
    for repeat in range(repeats + 1):
        for arm, run in list(runs.items()):
            start = time.process_time()
            try:
                run()
            except Exception as error:
                print(f"{arm} refuses: {type(error).__name__}: {str(error).splitlines()[0]}")
                del runs[arm]
                continue
            if repeat:
                times[arm].append(time.process_time() - start)
    print(f"\n{name}: median of {repeats}, 1 thread")
    print(f"{'':32}{'CPU s':>9}{'/ forward':>11}{'/ both':>9}{'peak MB':>9}")
    for arm, seconds in times.items():
        if not seconds:
            continue
        ratios = [
            statistics.median(a / b for a, b in zip(seconds, times[base], strict=True))
            for base in ("forward", "forward + backward")
        ]
        print(f"{arm:32}{statistics.median(seconds):9.3f}{ratios[0]:11.2f}{ratios[1]:9.2f}{peak(name, arm):9.0f}")


def theory(samples: int) -> None:
    """CPU seconds of a probe, and of a diagnosis without trial, without and with its theory line: 4 layers, batch norm,
    ReLU.
    """
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(samples, 64, generator=generator), torch.randint(10, (samples,), generator=generator)
    model = build(Spec(depth=4, width=256, norm="batch", outputs=10), 64)
    runs: dict[str, Callable[[], Any]] = {
        "probe": lambda: probe(model, x, y),
        "diagnose": lambda: diagnose(model, x, y, trial=False, theory=False),
        "diagnose + theory": lambda: diagnose(model, x, y, trial=False),
    }
    diagnose(model, x[:8], y[:8], trial=False)  # imports
    for arm, run in runs.items():
        before, start = _peak_rss(), time.process_time()
        run()
        print(
            f"n = {samples:5} {arm:20}{time.process_time() - start:8.2f} CPU s{_peak_rss() - before:+8.0f} MB of peak"
        )


def importing() -> None:
    """CPU seconds of importing torch and, on top of it, the verbs; each in a fresh process."""
    verbs = "from normscope import cure, diagnose, fisher, probe, race, sweep"
    clock = "time.process_time()"
    code = (
        f"import gc, time; a = {clock}; import torch, numpy; b = {clock}; gc.collect(); c = {clock}; {verbs}; "
        f"print(b - a, {clock} - c)"
    )
    for _ in range(3):
        took = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
        print(f"import torch {float(took[0]):.2f} CPU s, the verbs of normscope {float(took[1]):.2f}")


def peak(name: str, arm: str) -> float:
    """Peak memory of a fresh process that runs one arm once, above one that only builds the net; MB."""

    def rss(which: str) -> float:
        command = [sys.executable, __file__, "--one", name, "--arm", which]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])

    return rss(arm) - rss("nothing")


def _peak_rss() -> float:
    """Peak resident memory of this process, MB (Linux: ``ru_maxrss`` would start from the parent's)."""
    status = Path("/proc/self/status")
    if status.exists():
        line = next(line for line in status.read_text().splitlines() if line.startswith("VmHWM"))
        return int(line.split()[1]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--only", default="")
    parser.add_argument("--theory", action="store_true")
    parser.add_argument("--importing", action="store_true")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--arm", help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(1)
    if args.one:
        runs = arms(*NETS[args.one](), peers="torchlens" in args.arm or "delve" in args.arm)
        runs.get(args.arm, lambda: None)()
        print(_peak_rss())
        return
    if args.importing:
        importing()
        return
    if args.theory:
        for samples in (128, 256, 512, 1024):
            theory(samples)
        return
    for name in NETS:
        if args.only in name:
            measure(name, args.repeats if "MLP" in name else max(3, args.repeats // 2), args.peers)


if __name__ == "__main__":
    main()
