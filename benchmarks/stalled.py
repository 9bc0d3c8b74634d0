"""Nets that stall as they are: how many does ``cure --how auto`` bring to where their shallow twin comes?

    python benchmarks/stalled.py --work runs/stalled            # goes on where it stopped; three hours on one core
    python benchmarks/stalled.py --work runs/stalled --again    # only the cures of what is there: they were changed
    python benchmarks/stalled.py --work runs/stalled --table    # what is finished, as results/stalled.md

A net, of digits, is trained for `STEPS` steps at each rate of SGD and of Adam, as it is, with its scale repaired alone
(``lsuv``, the control) and cured by ``auto``. Accuracy is that of held-out samples, with the statistics of their batch.
It stalls with an optimizer if no rate brings it to .95 of what its twin of few layers reaches at its best rate; a cure
has worked if one does.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from normscope.data.datasets import load
from normscope.findings.cures import rank_cures, treat
from normscope.nn import make_activation

STEPS, BATCH, ENOUGH, CHECK = 200, 128, 0.95, 40
RATES = {"sgd": (0.25, 0.06, 0.015, 0.004, 0.001), "adam": (0.0064, 0.0016, 0.0004, 0.0001)}
NORMS = {"none": lambda d: nn.Identity(), "batch": nn.BatchNorm1d, "layer": nn.LayerNorm}


class Added(nn.Module):
    """x + f(x)."""

    def __init__(self, inner: nn.Module, behind: nn.Module | None = None) -> None:
        super().__init__()
        self.inner, self.behind = inner, behind or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.behind(x + self.inner(x))


class Attention(nn.Module):
    """One head pair over the rows of an image, without anything beside it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.mix = nn.MultiheadAttention(width, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.mix(x, x, x, need_weights=False)[0]


def net(kind: str, depth: int, norm: str, act: str, init: str, seed: int) -> nn.Module:
    """A net of 8 x 8 digits. depth: layers of weights that are in a row, or branches."""
    torch.manual_seed(seed)
    width = {"mlp": 48, "residual": 48, "conv": 12, "post-norm": 24, "attention": 24}[kind]
    body: list[nn.Module] = []
    for _ in range(depth):
        if kind == "mlp":
            body += [nn.Linear(width, width), NORMS[norm](width), make_activation(act)]
        elif kind == "conv":
            layer = nn.BatchNorm2d(width) if norm == "batch" else nn.Identity()
            body += [nn.Conv2d(width, width, 3, padding=1), layer, make_activation(act)]
        elif kind == "residual":
            inner = nn.Sequential(NORMS[norm](width), nn.Linear(width, width), make_activation(act))
            body.append(Added(nn.Sequential(*inner, nn.Linear(width, width))))
        else:
            behind = nn.LayerNorm(width) if norm == "layer" else None
            mlp = nn.Sequential(nn.Linear(width, 2 * width), make_activation(act), nn.Linear(2 * width, width))
            body += (
                [Added(Attention(width), behind)]
                if kind == "attention"
                else [Added(Attention(width), behind), Added(mlp, None if behind is None else nn.LayerNorm(width))]
            )
    first: list[nn.Module]
    if kind == "conv":
        first, last = (
            [nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, width, 3, padding=1)],
            [nn.Flatten(), nn.Linear(64 * width, 10)],
        )
    elif kind in ("post-norm", "attention"):
        first, last = [nn.Unflatten(1, (8, 8)), nn.Linear(8, width)], [nn.Flatten(), nn.Linear(8 * width, 10)]
    else:
        first, last = [nn.Linear(64, width)], [nn.Linear(width, 10)]
    model = nn.Sequential(*first, *body, *last)
    for m in model.modules():
        if isinstance(m, nn.Linear | nn.Conv2d) and init != "torch":
            {"he": nn.init.kaiming_normal_, "xavier": nn.init.xavier_uniform_}[init](m.weight)
            nn.init.zeros_(m.bias)
    return model


def entrants() -> Iterator[tuple[str, int, str, str, str]]:
    """Nets of which most stall."""
    acts = ("relu", "tanh", "gelu")
    yield from itertools.product(("mlp",), (20, 40, 80), ("none",), acts, ("torch", "he", "xavier"))
    yield from itertools.product(("mlp",), (40, 80), ("batch",), acts, ("torch",))
    yield from itertools.product(("mlp",), (40, 80), ("layer",), acts, ("torch", "xavier"))
    yield from itertools.product(("conv",), (20, 40), ("none",), acts, ("torch", "he"))
    yield from itertools.product(("conv",), (40,), ("batch",), acts, ("torch",))
    yield from itertools.product(("residual",), (30, 60), ("none", "batch"), acts, ("he",))
    yield from itertools.product(("post-norm",), (16, 32), ("layer", "none"), ("relu", "gelu"), ("torch", "xavier"))
    yield from itertools.product(("attention",), (16, 32), ("layer",), ("relu",), ("torch", "xavier"))
    yield from (
        ("mlp", 200, "none", "relu", "he"),
        ("mlp", 200, "none", "tanh", "xavier"),
        ("mlp", 200, "batch", "relu", "he"),
    )


def reached(
    model: nn.Module, x: Tensor, y: Tensor, held: tuple[Tensor, Tensor], optimizer: str, rate: float, goal: float
) -> float:
    """The best accuracy on the way; the training ends early where it has diverged, or has reached the goal."""
    make = torch.optim.SGD if optimizer == "sgd" else torch.optim.Adam
    moved = make(model.parameters(), rate)
    order, best = torch.Generator().manual_seed(0), 0.0
    for step in range(1, STEPS + 1):
        rows = torch.randint(len(x), (BATCH,), generator=order)
        moved.zero_grad()
        loss = nn.functional.cross_entropy(model(x[rows]), y[rows])
        if not torch.isfinite(loss):
            break
        loss.backward()
        moved.step()
        if step % CHECK == 0:
            with torch.no_grad():
                best = max(best, float((model(held[0]).argmax(1) == held[1]).float().mean()))
            if best >= goal:
                break
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--again", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("results/stalled.md"))
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    rows = args.work / "rows.jsonl"
    done = [json.loads(line) for line in rows.read_text().splitlines()] if rows.exists() else []
    if args.table:
        args.out.write_text(table(done))
        return
    torch.set_num_threads(1)
    train, test = load("digits", split="train"), load("digits", split="test")
    x, y = train.inputs.flatten(1), train.targets
    held = (test.inputs.flatten(1), test.targets)
    order = list(entrants())
    order = order[::7] + [e for i, e in enumerate(order) if i % 7]  # every kind early
    known = {row["net"]: row for row in done}
    fresh = rows.with_suffix(".again") if args.again else rows
    twins: dict[tuple[Any, ...], dict[str, float]] = {}
    for entrant in order:
        name = " ".join(map(str, entrant))
        if (name in known) is not args.again:
            continue
        kind, _, norm, act, init = entrant
        began = time.process_time()
        row = known.get(name)
        if row is None:
            twin = (kind, norm, act, init)
            if twin not in twins:
                twins[twin] = {
                    o: max(reached(net(kind, 2, norm, act, init, 0), x, y, held, o, r, 2.0) for r in rates)
                    for o, rates in RATES.items()
                }
            row = {"net": name, "twin": twins[twin]}
            row["none"] = {o: best(entrant, "none", x, y, held, o, ENOUGH * twins[twin][o]) for o in RATES}
        stalled = [o for o in RATES if row["none"][o] < ENOUGH * row["twin"][o]]
        if stalled:
            started = time.process_time()
            row["chosen"] = rank_cures(net(*entrant, 0), x[:BATCH], y[:BATCH])[0].name
            row["seconds"] = time.process_time() - started
            for key, how in (("lsuv", "lsuv"), ("auto", row["chosen"])):
                if key == "auto" or key not in row:
                    row[key] = {o: best(entrant, how, x, y, held, o, ENOUGH * row["twin"][o]) for o in stalled}
        row["all"] = time.process_time() - began
        with fresh.open("a") as file:
            file.write(json.dumps(row) + "\n")
        print(row, flush=True)
    if args.again:
        fresh.replace(rows)


def best(
    entrant: tuple[str, int, str, str, str], how: str, x: Tensor, y: Tensor, held: Any, optimizer: str, goal: float
) -> float:
    """Over the rates, each from the same start, until one reaches the goal."""
    found = 0.0
    for rate in RATES[optimizer]:
        model = net(*entrant, 0)
        if how != "none":
            model = treat(model, how, x[:BATCH], y[:BATCH], loss="cross_entropy").model
        found = max(found, reached(model, x, y, held, optimizer, rate, goal))
        if found >= goal:
            break
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Markdown: how many, by optimizer and kind; then every net."""
    lines = ["# Nets that stall", "", "Made by `python benchmarks/stalled.py`: digits, "
             f"{STEPS} steps, one seed. Reached: {ENOUGH:g} of the shallow twin's best accuracy, at one rate or more.",
             "",
             "| optimizer | kind | stall as they are | reach it by scale alone (lsuv) | reach it cured by auto |",
             "|---|---|---:|---:|---:|"]  # fmt: skip
    kinds = sorted({r["net"].split()[0] for r in rows})
    for optimizer in RATES:
        for kind in [*kinds, "all"]:
            some = [r for r in rows if optimizer in r.get("auto", {}) and kind in (r["net"].split()[0], "all")]
            worked = {k: sum(r[k][optimizer] >= ENOUGH * r["twin"][optimizer] for r in some) for k in ("lsuv", "auto")}
            share = f" ({worked['auto'] / len(some):.0%})" if some else ""
            lines.append(f"| {optimizer} | {kind} | {len(some)} | {worked['lsuv']} | {worked['auto']}{share} |")
    lines += [
        "", f"Of {len(rows)} nets (of {len(list(entrants()))} on the list), {sum('auto' not in r for r in rows)} train "
        "as they are with both.", "",
        "| net | twin SGD, Adam | as it is | lsuv | auto | chosen | CPU s of auto |", "|---|---|---|---|---|---|---:|",
    ]  # fmt: skip
    for r in sorted((r for r in rows if "auto" in r), key=lambda r: r["net"]):
        found = [[f"{r[k][o]:.2f}" if o in r[k] else "-" for o in RATES] for k in ("twin", "none", "lsuv", "auto")]
        cells = " | ".join(map(" ".join, found))
        lines.append(f"| {r['net']} | {cells} | {r['chosen']} | {r['seconds']:.0f} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
