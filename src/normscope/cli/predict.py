"""``normscope predict``: what theory says of a spec or a model; random chains of finite width beside a spec."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from normscope.cli import _options as option
from normscope.cli._app import app, console, print_json
from normscope.cli._outputs import NO_PAGES, Pages, attempt, say_written, tables, with_pages
from normscope.core.errors import MANY, UsageError, seed_of, whole_number
from normscope.core.favourites import PREDICTED
from normscope.core.memory import check_room
from normscope.core.spec import Spec, parse

if TYPE_CHECKING:
    from normscope.core.records import Profile

_ROWS, _CELL = 24, 17


@app.command()
@with_pages
def predict(
    spec: Annotated[str, typer.Argument(help=f"mlp:depth=32,width=256,norm=batch ..., or a model: {option.MODEL_HELP}",
                                        metavar="SPEC")],
    n: Annotated[int, typer.Option("--batch", "-n", help="Samples in the batch.")] = 16,
    cosine: Annotated[float | None, typer.Option(help="Start from samples with this cosine to one another.")] = None,
    data: Annotated[str | None, typer.Option(help="Start from data: digits, or a file (see diagnose).")] = None,
    data_dir: option.DataDir = None,
    simulate: Annotated[int, typer.Option(metavar="SEEDS", help="Also simulate this many chains of the width.")] = 0,
    seed: Annotated[int, typer.Option(help="Of the start, the simulation and quasi-random averages.")] = 0,
    every: Annotated[int, typer.Option(help="Layers between two simulated records.")] = 1,
    pages: Pages = NO_PAGES,
    csv: option.Csv = None,
    json: option.Json = False,
) -> None:  # fmt: skip
    """Follow a batch through infinitely wide layers, forwards and backwards; chains of finite width beside it.

    Of a spec the default start is standard Gaussian samples of its width; of a model its own batch or data that fits.
    Exit code 0: fine, 2: misuse.
    """
    from normscope.theory.predicted import predict as run
    from normscope.theory.simulated import simulate as chains

    chain = spec.partition(":")[0] == "mlp"
    described = parse(spec) if chain else None
    pages.check(csv=csv)
    whole_number("--simulate", simulate, do="It is a number of chains.", most=MANY)
    whole_number("--every", every, 1)
    seed_of(seed, "--seed")
    if described is not None:
        start = _start(described, n, cosine, data, data_dir, seed)
        profiles = [run(described, **start, seed=seed)]
        if simulate:
            profiles.append(chains(described, **start, seeds=simulate, seed=seed, every=every))
    else:
        profiles = [_of_model(spec, n, cosine, data, data_dir, simulate, seed)]
    label = str(described) if chain else spec
    written, lost = _write(label, profiles, pages, csv)
    if json:
        print_json(_document(label, described, profiles))
    else:
        _print(label, described, profiles)
        say_written(written)
    if lost is not None:
        raise lost


def _of_model(
    name: str, n: int, cosine: float | None, data: str | None, data_dir: Path | None, simulate: int, seed: int
) -> Profile:
    from normscope.cli._shared import Given, running
    from normscope.theory.predicted import predict as run

    if cosine is not None or simulate:
        raise UsageError("--cosine and --simulate are for a spec (mlp:...); a model is predicted on data. Use --data.")
    step, source = Given(data, data_dir, None if data is None else n, seed=seed).step(name)
    with running(name, source, step):
        return run(step, seed=seed)


def _start(
    spec: Spec, n: int, cosine: float | None, data: str | None, data_dir: Path | None, seed: int
) -> dict[str, Any]:
    import numpy as np

    whole_number("--batch", n, 2, "One sample has no geometry.")
    if cosine is not None and data is not None:
        raise UsageError("Give --cosine or --data, not both.")
    if data is not None:
        from normscope.data.datasets import load

        return {"inputs": load(data, data_dir, n=n, seed=seed).inputs}
    if cosine is not None:
        if not -1 / (n - 1) <= cosine <= 1:
            raise UsageError(f"{n} samples can share a cosine from {-1 / (n - 1):.3g} to 1; got {cosine}.")
        check_room(32 * n**2, f"A Gram matrix of {n} samples", "Take fewer: -n.")
        return {"gram": (1 - cosine) * np.eye(n) + cosine}
    check_room(16 * n * min(spec.width, 4096), f"{n} samples", "Take fewer: -n.")
    return {"inputs": np.random.default_rng(seed).standard_normal((n, min(spec.width, 4096)))}


def _print(label: str, spec: Spec | None, profiles: list[Profile]) -> None:
    from rich.table import Table

    predicted = profiles[0]
    table = Table(title=label, title_justify="left", box=None, header_style="bold", padding=(0, 2, 0, 0))
    table.add_column("layer", justify="right")
    names = {} if spec is not None else {r.layer: r.name for r in predicted.records}
    if names:
        table.add_column("name", overflow="fold")
    room = console.width - 7 - (24 if names else 0)
    shown = dict(list(PREDICTED.items())[: max(3, room // _CELL)])
    for name in shown:
        table.add_column(name.replace("_", " ", 1).replace(" ", "\n"), justify="right")
    columns = [[_by_layer(p, name, signal) for p in profiles] for name, signal in shown.items()]
    for layer in sorted(names) if spec is None else _shown_layers(spec.depth):
        cells = [names[layer]] if names else []
        for found in columns:
            cell = _cell(found[0].get(layer))
            if len(found) > 1 and layer in found[1]:
                cell += f"\n[dim]{_cell(found[1][layer])}[/]"
            cells.append(cell)
        table.add_row(str(layer), *cells)
    console.print(table)
    console.print(f"[dim]infinite width: {predicted.facts['method']}; gradients relative to the last layer[/]")
    if len(shown) < len(PREDICTED):
        console.print(
            f"[dim]in a wider terminal, or with --csv: {', '.join(k for k in PREDICTED if k not in shown)}[/]"
        )
    if spec is None:
        for note in predicted.facts["notes"][:5]:
            console.print(f"[yellow]{note}[/]", highlight=False)
    elif len(profiles) > 1:
        facts = profiles[1].facts
        console.print(f"[dim]second lines: mean +- sd of simulated chains of width {spec.width} ({facts['law']})[/]")
        for note in facts["notes"][:5]:
            console.print(f"[yellow]{note}[/]")


def _shown_layers(depth: int) -> list[int]:
    """All layers of a shallow net; else the first ones and then ever fewer."""
    import numpy as np

    if depth < _ROWS:
        return list(range(depth + 1))
    return sorted({0, 1, 2, 3, 4, *np.geomspace(5, depth, _ROWS - 5).round().astype(int).tolist()})


def _by_layer(profile: Profile, metric: str, signal: str) -> dict[int, tuple[float, float]]:
    """layer -> (mean over seeds, spread: standard deviation over seeds, or the standard error of one record)."""
    found: dict[int, list[tuple[float, float]]] = {}
    for r in profile.records:
        if r.metric == metric and r.signal == signal:
            found.setdefault(r.layer, []).append((r.value, r.stderr))
    return {layer: _summary(values) for layer, values in found.items()}


def _summary(values: list[tuple[float, float]]) -> tuple[float, float]:
    import numpy as np

    numbers = np.array([v for v, _ in values])
    if len(numbers) == 1:
        return values[0]
    with np.errstate(invalid="ignore"):
        return float(numbers.mean()), float(numbers.std(ddof=1))


def _cell(value: tuple[float, float] | None) -> str:
    if value is None or math.isnan(value[0]):
        return "-"
    mean, spread = value
    shown = "inf" if math.isinf(mean) else f"{mean:.4g}"
    return shown + (f" +- {spread:.1g}" if spread > 1e-3 * abs(mean) and math.isfinite(mean) else "")


def _document(label: str, spec: Spec | None, profiles: list[Profile]) -> dict[str, Any]:
    return {
        "spec": label,
        "parameters": {} if spec is None else dataclasses.asdict(spec),
        "facts": {p.records[0].source: dict(p.facts) for p in profiles},
        "records": [
            {k: getattr(r, k) for k in ("source", "seed", "layer", "name", "signal", "metric", "value", "stderr")}
            for p in profiles
            for r in p.records
        ],
    }


def _write(label: str, profiles: list[Profile], pages: Pages, csv: Path | None) -> tuple[list[Path], UsageError | None]:
    import polars as pl

    from normscope.core.records import concat

    table = concat(profiles)

    def made() -> Any:
        from normscope.report import Content
        from normscope.report.html import sheet_of

        layers = max(r.layer for p in profiles for r in p.records)
        shared = {"label": label, "layers": layers, "batch_size": profiles[0].facts["samples"]}
        notes = [note for p in profiles for note in p.facts["notes"]]
        named = table.select(pl.lit(label).alias("model"), pl.all())
        content = Content(f"Prediction: {label}", named, pl.DataFrame(), ({**shared, "notes": notes},))
        return sheet_of(content, quiet=True)

    return attempt({**pages.writers(made), **tables(table, csv, None)})
