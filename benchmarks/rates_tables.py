"""What results/rates.csv says: the acceptance figures by optimizer and by kind, and the misses."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import polars as pl

OPTIMIZERS = ("sgd", "momentum", "adam")
LONG = 200
Row = dict[str, Any]


def tables(table: pl.DataFrame) -> str:
    """All of them, as Markdown."""
    rows = list(table.iter_rows(named=True))
    parts = [f"{len(rows)} nets, {sum(r['cpu'] for r in rows) / 60:.1f} CPU minutes\n", largest(rows), best(rows)]
    parts += [f"\nWithin 25 %, by kind\n\n{by_kind(rows)}", f"\nMisses of `rates`\n\n{misses(rows)}"]
    return "\n".join(parts)


def get(row: Row, key: str) -> float:
    """A number of a row; NaN where there is none."""
    return math.nan if row.get(key) is None else float(row[key])


def share(values: Iterable[bool]) -> str:
    given = list(values)
    return f"{100 * sum(given) / len(given):.0f} %" if given else "-"


def ratios(rows: list[Row], said: str, true: str, times: float = 1.0) -> list[float]:
    """said / true of the nets of which there is a true one; NaN where nothing was said."""
    return [times * get(r, said) / get(r, true) for r in rows if math.isfinite(get(r, true))]


def near(x: float, factor: float) -> bool:
    """Within a factor; a rate on the edge of it counts."""
    return 0.999 / factor <= x <= 1.001 * factor


def known(rows: list[Row], o: str) -> list[Row]:
    """Nets of which some rate trains, and some does not."""
    return [r for r in rows if math.isfinite(get(r, f"{o} true")) and math.isfinite(get(r, f"{o} edge"))]


def largest(rows: list[Row]) -> str:
    head = (
        "| largest rate | nets | within 25 % | within 2 x | above by > 5 % | interval covers | passes, median, most |"
    )
    lines = [head, "|---|---|---|---|---|---|---|"]
    for o in OPTIMIZERS:
        some = known(rows, o)
        peers = {"`rates`": (f"{o} largest", 1.0)}
        if o != "adam":
            peers["2 / lambda_max" + (" times 1.9" if o == "momentum" else "")] = (
                "2/lambda",
                1.9 if o == "momentum" else 1,
            )
        peers |= {
            "finder, where its loss is least": (f"{o} finder min", 1.0),
            "finder, a tenth of it": (f"{o} finder min", 0.1),
        }
        for name, (said, times) in peers.items():
            more = "- | -"
            if said == f"{o} largest":
                costs = sorted(get(r, f"{o} cost") for r in rows)
                cover = share(get(r, f"{o} low") <= get(r, f"{o} true") <= get(r, f"{o} high") for r in some)
                more = f"{cover} | {costs[len(costs) // 2]:.0f}, {costs[-1]:.0f}"
            lines.append(f"| {o}: {name} | {line(ratios(some, said, f'{o} true', times))} | {more} |")
        others = [r for r in some if r["fresh"]]
        lines.append(
            f"| {o}: `rates`, of other batches | {line(ratios(others, f'{o} largest', f'{o} other true'))} | - | - |"
        )
    return "\n".join([*lines, *without(rows)])


def line(found: list[float]) -> str:
    within = [share(near(x, factor) for x in found) for factor in (1.25, 2)]
    return f"{len(found)} | {' | '.join(within)} | {share(x > 1.05 for x in found)}"


def without(rows: list[Row]) -> list[str]:
    """Nets without a true rate, and runs on which the loop and the library differ."""
    none = sum(len(rows) - len(known(rows, o)) for o in OPTIMIZERS)
    differ, tried = (sum(get(r, f"{o} {key}") for r in rows for o in OPTIMIZERS) for key in ("differ", "runs"))
    said = f"Of {tried:.0f} runs of `rates` the plain loop says another thing of {differ:.0f}."
    return ["", f"{said} Nets times optimizers at which all rates train, or none: {none}."]


def best(rows: list[Row]) -> str:
    lines = [
        "\n| best rate | nets | within 2 x, after 20 | nets | within 2 x, after 200 | 95 % of the fall, after 200 |"
    ]
    lines.append("|---|---|---|---|---|---|")
    for o in OPTIMIZERS:
        ways = {"`rates`": (f"{o} best", 1.0), "finder, steepest": (f"{o} finder slope", 1.0)}
        if any(get(r, f"{o} horizon best") > 0 for r in rows):
            ways |= {f"`rates(horizon={LONG})`": (f"{o} horizon best", 1.0)}
        ways |= {"finder, a tenth of the least": (f"{o} finder min", 0.1)}
        for name, (said, times) in ways.items():
            cells = []
            for after in (f"{o} true best below", f"{o} best {LONG}"):
                if "horizon" in said and "below" in after:  # of 200 steps, not of 20
                    cells.append("- | -")
                    continue
                found = ratios(known(rows, o), said, after, times)
                cells.append(f"{len(found)} | {share(near(x, 2) for x in found)}")
            where = {f"{o} best": "short", f"{o} horizon best": "horizon"}.get(said)
            cells.append("-" if where is None else share(falls(known(rows, o), o, where)))
            lines.append(f"| {o}: {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def falls(rows: list[Row], o: str, where: str) -> Iterable[bool]:
    """Whether the rate that was told makes 95 % of the way from the first loss to the least after 200 steps."""
    for r in rows:
        start, least = get(r, f"{o} {LONG} start"), get(r, f"{o} {LONG} least")
        if math.isfinite(least):
            yield start - get(r, f"{o} {LONG} {where}") >= 0.95 * (start - least)


def by_kind(rows: list[Row]) -> str:
    lines = [f"| kind | {' | '.join(OPTIMIZERS)} |", "|---|" + "---|" * len(OPTIMIZERS)]
    for kind in dict.fromkeys(r["kind"] for r in rows):
        cells = []
        for o in OPTIMIZERS:
            found = ratios(known([r for r in rows if r["kind"] == kind], o), f"{o} largest", f"{o} true")
            cells.append(f"{sum(near(x, 1.25) for x in found)} of {len(found)}")
        lines.append(f"| {kind} | {' | '.join(cells)} |")
    return "\n".join(lines)


def misses(rows: list[Row]) -> str:
    lines = [
        "| net | optimizer | `rates` | true | highest that trains | batches | passes |",
        "|---|---|---|---|---|---|---|",
    ]
    for o in OPTIMIZERS:
        for r in known(rows, o):
            said, true = get(r, f"{o} largest"), get(r, f"{o} true")
            if not near(said / true, 1.25):
                lines.append(
                    f"| {r['net']} ({r['recipe']}) | {o} | {said:.3g} | {true:.3g} | {get(r, f'{o} highest'):.3g} | "
                    f"{'fresh' if r['fresh'] else 'one'} | {get(r, f'{o} cost'):.0f} |"
                )
    return "\n".join(lines)
