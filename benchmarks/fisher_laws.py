"""The laws of the Fisher matrix of wide nets at larger sizes, beside the theory: a table of tables in Markdown.

    OMP_NUM_THREADS=1 python benchmarks/fisher_laws.py --rows ROWS.jsonl --out results/fisher_laws.md

Each measured net is one line of ROWS.jsonl, written as it comes: an interrupted run goes on where it stopped, and the
report is made of whatever rows are there. ``--only scaled fixed hidden ratio critical`` and ``--largest M`` take parts
of it. Nets of three weight layers, biases on, equal widths M, standard normal inputs, statistics over all N samples.
Plain nets and norms on their outputs go through the layer-wise Gram matrix (float32) and the projections of
`normscope.curvature.last_layer`; hidden norms through `normscope.fisher`, products only.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import polars as pl
import torch
from rich.progress import track
from torch import Tensor

from normscope import Spec, curvature, fisher, spectrum
from normscope.curvature._variants import project
from normscope.linalg import LinearMap
from normscope.theory.fisher import fisher_statistics

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))
from fisher_nets import data, layer_grams, net

NETS = {
    "ReLU (2, 0)": {"act": "relu", "sw": 2.0, "sb": 0.0},
    "ReLU (2, 0.1)": {"act": "relu", "sw": 2.0, "sb": 0.1},
    "ReLU (4, 1)": {"act": "relu", "sw": 4.0, "sb": 1.0},
    "tanh (3, 0.64)": {"act": "tanh", "sw": 3.0, "sb": 0.64},
    "linear (1, 0.1)": {"act": "linear", "sw": 1.0, "sb": 0.1},
}
NORMS = {"none": "none", "ms": "batch_recenter", "bn": "batch", "ln": "layer"}
SEEDS = {50: 3, 100: 8, 200: 8, 400: 4, 500: 5, 800: 2, 1000: 3, 2000: 2}


def predicted(name: str, m: int, n: int, c: int, hidden: str = "none", last: str = "none", **more: Any) -> Any:
    """`fisher_statistics` of one of NETS."""
    kind = NETS[name]
    spec = Spec(
        depth=more.pop("depth", 2), width=m, activation={"linear": "identity"}.get(kind["act"], kind["act"]),
        gain=math.sqrt(kind["sw"]), bias=math.sqrt(kind["sb"]), norm=NORMS[hidden], output_norm=NORMS[last], outputs=c,
    )  # fmt: skip
    return fisher_statistics(spec, n, readout_gain=math.sqrt(kind["sw"]), **more)


def top(matrix: Tensor) -> float:
    """Largest eigenvalue of a symmetric matrix, relative error 1e-3."""
    side = len(matrix)
    return spectrum(
        LinearMap((side, side), lambda v: matrix @ v, lambda v: matrix @ v, matrix.dtype), tol=1e-3, method="lanczos"
    ).largest


def plain(name: str, m: int, n: int, c: int, seed: int, bn: bool = True) -> dict[str, float]:
    """Largest eigenvalues without norm, with mean subtraction and with batch norm on the outputs; m M and s."""
    model, x = net([m, m, m, c], seed, **NETS[name]), data(n, m, seed)
    grams = layer_grams(model, x)
    gram = grams.pop()
    for part in grams:
        gram += part
    g = gram.permute(2, 0, 3, 1).reshape(n * c, n * c)  # sample-major, as the library has it
    outputs = model(x).detach()
    size = 2 * m * m
    found = {"none": top(g), "M m none": m * float(g.trace()) / size, "s none": float(g.square().sum()) / size}
    for variant in ("center", "batch") if bn else ("center",):
        b = project(g, outputs, variant, 1e-12)
        key = {"center": "MS", "batch": "BN"}[variant]
        square, trace = float(b.square().sum()), float(b.trace())
        found |= {key: top(b), f"M m {key}": m * trace / size, f"bound {key}": square / trace}
        found[f"upper {key}"] = math.sqrt(square)
    return found


def hidden(name: str, m: int, kinds: Any, seed: int) -> dict[str, float]:
    """Largest eigenvalue through the library's products, float32."""
    model, x = net([m, m, m, 2], seed, hidden=kinds, **NETS[name]), data(m, m, seed)
    return {"lambda": spectrum(fisher(model, x), tol=3e-3).largest}


def critical(name: str, m: int, last: str, inner: str, seed: int) -> dict[str, float]:
    """Critical rate and its ratio to 2 / lambda_max, float64."""
    f64 = torch.float64
    model = net([m, m, m, 2], seed, hidden=inner, last=last, dtype=f64, **NETS[name])
    targets = torch.randn(m, 2, generator=torch.Generator().manual_seed(20_000 + seed), dtype=f64)
    found = curvature.critical_rate(model, data(m, m, seed, dtype=f64), targets, "squared_error", steps=15, tol=0.01)
    return {"eta_c": found.rate, "margin": found.margin}


def jobs(parts: list[str], largest: int) -> Iterator[tuple[dict[str, Any], Any]]:
    """(key, function) of every net, small ones first."""
    for m in (50, 100, 200, 400):
        for name in ("ReLU (2, 0)", "tanh (3, 0.64)"):
            for label, last, inner in (
                ("none", "none", "none"),
                ("last MS", "ms", "none"),
                ("hidden BN", "none", "bn"),
            ):
                for seed in range(3):
                    yield (
                        {"part": "critical", "net": name, "norm": label, "M": m, "seed": seed},
                        lambda a=(name, m, last, inner, seed): critical(*a),
                    )
    for m in (100, 200, 400, 800):
        for name, kinds in (
            *(("ReLU (2, 0.1)", k) for k in ("ms", "bn", "ln", ["bn", "none"], ["none", "bn"])),
            *(("tanh (3, 0.64)", k) for k in ("ms", "bn", "ln")),
        ):
            label = kinds if isinstance(kinds, str) else f"bn at layer {1 + kinds.index('bn')} only"
            for seed in range(min(4, SEEDS[m])):
                yield (
                    {"part": "hidden", "net": name, "norm": label, "M": m, "seed": seed},
                    lambda a=(name, m, kinds, seed): hidden(*a),
                )
    for n in (100, 200, 400, 800, 1600):
        for seed in range(4):
            yield (
                {"part": "ratio", "net": "ReLU (2, 0)", "M": 400, "N": n, "seed": seed},
                lambda a=("ReLU (2, 0)", 400, n, 2, seed): plain(*a, bn=False),
            )
    for m in (100, 200, 500, 1000, 2000):
        for seed in range(5):
            yield (
                {"part": "fixed", "net": "ReLU (2, 0.1)", "M": m, "N": 100, "seed": seed},
                lambda a=("ReLU (2, 0.1)", m, 100, 1, seed): plain(*a, bn=False),
            )
    for m in (100, 200, 500, 1000, 2000):
        for name in ("ReLU (2, 0)", "tanh (3, 0.64)", "linear (1, 0.1)", "ReLU (4, 1)"):
            for seed in range(SEEDS[m]):
                yield (
                    {"part": "scaled", "net": name, "M": m, "N": m, "seed": seed},
                    lambda a=(name, m, m, 2, seed): plain(*a),
                )


def measure(rows: Path, parts: list[str], largest: int) -> None:
    """Every net that has no row yet."""
    done = {json.dumps(json.loads(line)["key"]) for line in rows.read_text().splitlines()} if rows.exists() else set()
    todo = [
        (key, run)
        for key, run in jobs(parts, largest)
        if key["part"] in parts and key["M"] <= largest and json.dumps(key) not in done
    ]
    with rows.open("a") as out:
        for key, run in track(todo, description="nets"):
            start = time.process_time()
            found = run()
            line = {"key": key, "found": found, "cpu": round(time.process_time() - start, 2)}
            print(json.dumps(line), file=out, flush=True)
            print(" ".join(map(str, key.values())), {k: round(v, 4) for k, v in found.items()}, flush=True)


#: What the theory's own small study found, mean over its nets (other seeds): the column "reference".
REFERENCE: dict[tuple[str, str, str], list[float]] = {
    ("scaled", "ReLU (2, 0)", "none"): [86.9, 145.8, 362, 682, 1419],
    ("scaled", "ReLU (2, 0)", "MS"): [10.7, 8.8, 9.0, 8.6, 8.7],
    ("scaled", "ReLU (2, 0)", "BN"): [9.7, 8.6, 8.9, 8.6, 8.7],
    ("scaled", "ReLU (2, 0)", "M m none"): [3.28, 2.95, 3.02, 2.98, 3.04],
    ("scaled", "ReLU (2, 0)", "M m MS"): [2.50, 2.26, 2.32, 2.31, 2.34],
    ("scaled", "ReLU (2, 0)", "M m BN"): [2.18, 2.16, 2.28, 2.29, 2.32],
    ("scaled", "ReLU (2, 0)", "s none"): [0.762, 0.542, 0.518, 0.466, 0.498],
    ("scaled", "ReLU (2, 0)", "bound MS"): [3.93, 3.35, 3.35, 3.27, 3.31],
    ("scaled", "ReLU (2, 0)", "upper MS"): [45, 55, 88, 123, 176],
    ("scaled", "tanh (3, 0.64)", "none"): [30.7, 54.9, 127.2, 243.7, 487.3],
    ("scaled", "tanh (3, 0.64)", "MS"): [6.9, 6.3, 6.2, 6.2, 6.3],
    ("scaled", "tanh (3, 0.64)", "BN"): [6.3, 5.9, 5.6, 5.5, 5.5],
    ("scaled", "linear (1, 0.1)", "none"): [42.0, 72.0, 164.4, 308.1, 615],
    ("scaled", "linear (1, 0.1)", "MS"): [20.3, 18.2, 18.1, 18.1, 18.5],
    ("scaled", "ReLU (4, 1)", "none"): [553, 978, 2548, 4664, 9188],
    ("scaled", "ReLU (4, 1)", "MS"): [53, 43, 46, 44, 44],
    ("scaled", "ReLU (4, 1)", "BN"): [5.1, 4.9, 5.1, 5.1, 5.0],
    ("fixed", "ReLU (2, 0.1)", "none"): [91.7, 170, 423, 828, 1610],
    ("fixed", "ReLU (2, 0.1)", "MS"): [10.0, 12.4, 22.3, 36.6, 64.2],
    ("ratio", "ReLU (2, 0)", "MS"): [19.5, 12.8, 8.8, 7.0, 6.0],
    ("hidden", "ReLU (2, 0.1)", "ms"): [25.5, 45.5, 90.0, 176.3],
    ("hidden", "ReLU (2, 0.1)", "bn"): [17.99, 33.66, 65.55, 129.10],
    ("hidden", "ReLU (2, 0.1)", "ln"): [43.4, 78.6, 155.7, 310.6],
    ("hidden", "ReLU (2, 0.1)", "bn at layer 1 only"): [45.5, 75.5, 172.7],
    ("hidden", "ReLU (2, 0.1)", "bn at layer 2 only"): [18.0, 33.7, 65.5],
    ("hidden", "tanh (3, 0.64)", "ms"): [8.9, 8.6, 8.3, 8.6],
    ("hidden", "tanh (3, 0.64)", "bn"): [7.1, 6.9, 6.7],
    ("hidden", "tanh (3, 0.64)", "ln"): [25.6, 46.7, 88.9, 167.9],
    ("critical", "ReLU (2, 0)", "none"): [0.0491, 0.0266, 0.0158, 0.0077],
    ("critical", "ReLU (2, 0)", "last MS"): [0.491, 0.634, 0.674, 0.654],
    ("critical", "ReLU (2, 0)", "hidden BN"): [0.217, 0.119, 0.061, 0.031],
    ("critical", "tanh (3, 0.64)", "none"): [0.165, 0.089, 0.042, 0.020],
    ("critical", "tanh (3, 0.64)", "last MS"): [0.79, 0.77, 0.83, 0.82],
    ("critical", "tanh (3, 0.64)", "hidden BN"): [0.62, 0.74, 0.74, 0.74],
}
TITLES = {
    "scaled": "Width and samples grow together (N = M, two outputs)",
    "fixed": "Samples fixed (N = 100, one output): mean subtraction still grows with the width",
    "ratio": "Mean subtraction at M = 400 against the number of samples, two outputs",
    "hidden": "Norms in the hidden layers (N = M, two outputs)",
    "critical": "Critical rates from initialization (N = M, two outputs, random targets, float64)",
}
NOTES = {
    "scaled": "Largest eigenvalue without norm, with the outputs' mean subtracted (MS), with batch norm of the outputs "
    "(BN). Theory is the leading order with the biases' share; where it is a lower bound it says >=. `bound` is tr F^2 "
    "/ tr F and `upper` is sqrt(tr F^2), both measured: they hold the bounds' constants c_1 and c_2, which the leading "
    "order leaves out. `M m` = M tr F / (2 M^2), `s` = tr F^2 / (2 M^2).",
    "fixed": "The same quantities. The factor of MS from M = 500 to 2000 is to lie in [2.3, 4].",
    "ratio": "The same quantities.",
    "hidden": "Theory is empty where the leading order vanishes (tanh behind ms or bn: bounded, no outlier).",
    "critical": "`eta_c` is the largest rate whose loss never exceeds its initial value in 15 steps of full-batch "
    "gradient descent on 1/(2N) sum |f - y|^2, bisected to 1 %; `margin` is eta_c lambda_max / 2.",
}


def theory(key: dict[str, Any], quantity: str) -> float | None:
    """What the theory says of one cell, if anything."""
    name, m, part = key["net"], key["M"], key["part"]
    c, n = 1 if part == "fixed" else 2, key.get("N", m)
    if part in ("scaled", "fixed", "ratio"):
        if quantity == "none":
            return float(predicted(name, m, n, c).lambda_max)
        if quantity == "s none":
            p = predicted(name, m, n, c)
            return p.second_moment * p.parameters / (2 * m * m)
        what, _, last = quantity.rpartition(" ")
        p = predicted(name, m, n, c, last=last.lower())
        return {"M m": m * p.trace / (2 * m * m), "": p.lower, "bound": p.lower, "upper": p.upper}[what]
    if part == "hidden" and key["norm"] == "bn at layer 1 only":
        return float(predicted(name, m, m, 2, depth=1, second_moment=0.5, overlap=0.5 / math.pi).lambda_max)
    if part == "hidden":
        kind = "bn" if "layer 2" in key["norm"] else key["norm"]
        value = float(predicted(name, m, m, 2, hidden=kind).lambda_max)
        return None if math.isnan(value) else value
    return None


def report(rows: Path) -> str:
    """The rows as Markdown."""
    lines = [json.loads(line) for line in rows.read_text().splitlines()]
    records, first = [], {}
    for line in lines:
        key = line["key"]
        for quantity, value in line["found"].items():
            at = (key["part"], key["net"], key.get("norm", quantity), quantity, key["M"], key.get("N", key["M"]))
            first[at] = key
            records.append((*at, value))
    frame = pl.DataFrame(records, schema=["part", "net", "norm", "quantity", "M", "N", "value"], orient="row")
    cells = frame.group_by(["part", "net", "norm", "quantity", "M", "N"], maintain_order=True).agg(
        pl.col("value").mean().alias("mean"), pl.col("value").std().alias("sd"), pl.len().alias("nets")
    )
    sizes = {
        part: sorted({(r["M"], r["N"]) for r in cells.filter(pl.col("part") == part).to_dicts()}) for part in TITLES
    }
    steps = {"scaled": [100, 200, 500, 1000, 2000], "fixed": [100, 200, 500, 1000, 2000], "hidden": [100, 200, 400,
        800],
             "critical": [50, 100, 200, 400], "ratio": [100, 200, 400, 800, 1600]}  # fmt: skip
    cpu = sum(line["cpu"] for line in lines)
    text = [
        "# The laws of the Fisher matrix, measured\n",
        "`OMP_NUM_THREADS=1 python benchmarks/fisher_laws.py --rows ROWS.jsonl --out results/fisher_laws.md`, "
        f"torch {torch.__version__}, one thread of a shared x86-64 "
        f"machine, {len(lines)} nets, {cpu:.0f} CPU seconds. Net number s has weights from generator seed s, "
        "inputs from 10000 + s and targets from 20000 + s. float32, critical rates float64. Three weight "
        "layers, biases on, equal widths M, standard normal inputs; "
        "(a, b) are the variances sigma_w^2, sigma_b^2. Reference: the numbers of the theory's specification, from "
        "other seeds.\n",
    ]
    for part, title in TITLES.items():
        if not sizes[part]:
            continue
        text += [f"\n## {title}\n", NOTES[part] + "\n"]
        text.append("| net | quantity | M | N | nets | mean | sd of a net | theory | mean / theory | reference |")
        text.append("|" + "---|" * 10)
        for row in cells.filter(pl.col("part") == part).sort("net", "norm", "quantity", "M", "N").to_dicts():
            at = (part, row["net"], row["norm"], row["quantity"], row["M"], row["N"])
            said = theory(first[at], row["quantity"])
            known = REFERENCE.get((part, row["net"], row["norm"])) if row["quantity"] != "margin" else None
            index = steps[part].index(row["N"] if part == "ratio" else row["M"])
            other = f"{known[index]:g}" if known and index < len(known) else ""
            label = row["norm"] + (
                f": {row['quantity']}" if row["quantity"] != row["norm"] and part == "critical" else ""
            )
            least = row["quantity"].startswith(("MS", "BN", "bound", "upper"))
            ratio = f"{row['mean'] / said:.3f}" if said and not least else ""
            shown = "" if said is None else f"{'>= ' if least else ''}{said:.4g}"
            text.append(
                f"| {row['net']} | {label} | {row['M']} | {row['N']} | {row['nets']} | {row['mean']:.4g} | "
                f"{row['sd'] or 0:.2g} | {shown} | {ratio} | {other} |"
            )
    return "\n".join(text) + "\n"


if __name__ == "__main__":
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--rows", type=Path, required=True)
    options.add_argument("--out", type=Path)
    options.add_argument("--only", nargs="+", choices=list(TITLES), default=list(TITLES))
    options.add_argument("--largest", type=int, default=2000)
    chosen = options.parse_args()
    measure(chosen.rows, chosen.only, chosen.largest)
    if chosen.out:
        chosen.out.write_text(report(chosen.rows))
