"""Speed of `simulate` beside explicit weights written as a notebook would, and beside the floor of its own random
numbers.

    OMP_NUM_THREADS=1 python benchmarks/simulate.py            # speed, n = 32, L = 100, 20 seeds, d = 1024 and 4096
    OMP_NUM_THREADS=1 python benchmarks/simulate.py --large    # d = 10^6, n = 16, L = 100: seconds and memory
    OMP_NUM_THREADS=1 python benchmarks/simulate.py --chain    # d = N = 256, CPU time a layer of one chain

All parts of one comparison run in turn, several times; medians of CPU seconds per layer and chain. The explicit loop
is timed
over a few layers and scaled linearly (each of its layers costs the same).
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable

import numpy as np
import torch

from normscope import Spec
from normscope.theory.simulated import simulate

LINEAR = {"norm": "batch_rescale", "activation": "identity"}


def explicit(d: int, n: int, layers: int) -> float:
    """CPU seconds a layer: the recursion with d x d weights, float64, the gap at every layer."""
    h = np.random.randn(d, n) / np.sqrt(d)  # noqa: NPY002 - as in the notebooks
    start = time.process_time()
    for _ in range(layers):
        w = np.random.randn(d, d) / np.sqrt(d)  # noqa: NPY002
        h = w @ h
        h = h / np.linalg.norm(h, axis=1, keepdims=True) / np.sqrt(d)
        c = h.T @ h
        np.linalg.norm(c / np.trace(c) - np.eye(n) / n)
    return (time.process_time() - start) / layers


def ours(d: int, n: int, layers: int, seeds: int, normals: str) -> float:
    """CPU seconds a layer and chain of `simulate`, everything included."""
    x = np.random.default_rng(0).standard_normal((n, d))
    start = time.process_time()
    simulate(
        Spec(depth=layers, width=d, **LINEAR), inputs=x, seeds=seeds, metrics=["orthogonality_gap"], normals=normals
    )  # fmt: skip
    return (time.process_time() - start) / (layers * seeds)


def floor(d: int, n: int, layers: int, normals: str, qr: bool) -> float:
    """CPU seconds a layer: d n normals and one factorisation with the library calls that `simulate` makes."""
    if normals == "float32":
        z = np.empty((1, d, n), np.float32)
        flat, generator = torch.from_numpy(z.reshape(-1)), torch.Generator().manual_seed(0)
        draw: Callable[[], object] = lambda: flat.normal_(generator=generator)  # noqa: E731
    else:
        z = np.empty((1, d, n))
        stream = np.random.Generator(np.random.SFC64(0))
        draw = lambda: stream.standard_normal(out=z)  # noqa: E731
    start = time.process_time()
    for _ in range(layers):
        draw()
        if qr:
            torch.linalg.qr(torch.from_numpy(z), mode="r")
        else:
            gram = np.matmul(z.transpose(0, 2, 1), z).astype(np.float64)
            torch.linalg.cholesky_ex(torch.from_numpy(gram))
    return (time.process_time() - start) / layers


def compare(d: int, n: int, layers: int, seeds: int, repeats: int) -> None:
    """One block of the table."""
    rows: dict[str, list[float]] = {}
    few = 8 if d <= 1024 else 2
    for _ in range(repeats):
        rows.setdefault("explicit", []).append(explicit(d, n, few))
        for normals in ("float64", "float32"):
            rows.setdefault(normals, []).append(ours(d, n, layers, seeds, normals))
            rows.setdefault(f"floor {normals}", []).append(floor(d, n, 200, normals, qr=False))
            rows.setdefault(f"floor {normals} with QR", []).append(floor(d, n, 100, normals, qr=True))
    median = {name: statistics.median(v) for name, v in rows.items()}
    print(f"d = {d}, n = {n}, {layers} layers, {seeds} seeds; medians of {repeats} repeats")
    print(f"  (explicit weights: {few} layers a repeat, scaled linearly)")
    for name, seconds in median.items():
        low, high = min(rows[name]) * 1e6, max(rows[name]) * 1e6
        print(f"  {name:24s} {seconds * 1e6:10.1f} us a layer and chain   ({low:.1f} .. {high:.1f})")
    for normals, goal in (("float64", {1024: 25, 4096: 100}), ("float32", {1024: 80, 4096: 300})):
        speed = median["explicit"] / median[normals]
        over, over_qr = (
            median[normals] / median[f"floor {normals}"],
            median[normals] / median[f"floor {normals} with QR"],
        )
        print(
            f"  {normals}: {speed:.0f}x the explicit loop (goal {goal.get(d, '-')}x), {over:.2f}x its floor "
            f"with a Cholesky factor (goal 1.5x), {over_qr:.2f}x the floor with a QR"
        )
    print(f"  20 seeds x 100 layers: explicit {median['explicit'] * 2000:.0f} s, here {median['float64'] * 2000:.2f} s")


def large() -> None:
    """d = 10^6 on this machine."""
    x = np.random.default_rng(0).standard_normal((16, 64))
    for spec in (Spec(depth=100, width=10**6, **LINEAR), Spec(depth=100, width=10**6, norm="batch", activation="relu")):
        start = time.perf_counter()
        simulate(spec, inputs=x, seeds=1)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
        print(f"{spec}: {time.perf_counter() - start:.0f} s, peak memory {peak:.2f} GiB")


def chain(layers: int) -> None:
    """One long chain of the rank paper, gamma = infinity, d = N = 256."""
    for normals in ("float64", "float32"):
        start = time.process_time()
        profile = simulate(
            Spec(depth=layers, width=256, **LINEAR), inputs=np.eye(256), metrics=["participation_rank", "soft_rank"],
            every=100, normals=normals,
        )  # fmt: skip
        used = time.process_time() - start
        rank = [v for layer, v in profile.series("participation_rank").items() if layer > layers // 4]
        print(f"{normals}: {used / layers * 1e3:.3f} ms CPU a layer over {layers} layers; mean r = {np.mean(rank):.2f}")


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--large", action="store_true")
    options.add_argument("--chain", type=int, nargs="?", const=20_000)
    options.add_argument("--repeats", type=int, default=5)
    chosen = options.parse_args()
    if chosen.large:
        large()
    elif chosen.chain:
        chain(chosen.chain)
    else:
        for width in (1024, 4096):
            compare(width, 32, 100, 20, chosen.repeats)
