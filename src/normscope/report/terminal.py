"""The terminal face of a diagnosis: verdicts, findings, then the numbers layer by layer, folded to fit."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from normscope.core.favourites import BRIEF
from normscope.findings import RULES
from normscope.report import _labels, _layers, _rows, _sparks, rates, tracker
from normscope.report._content import Content
from normscope.report._fold import Folded, fold
from normscope.report._layers import Layer

if TYPE_CHECKING:
    from normscope.findings.review import Review
    from normscope.learning_rates import Rates

_SEVERITY = {"error": "bold red", "warning": "bold yellow", "info": "bold blue"}
_MODEL = ("blue", "dark_orange", "green", "magenta", "yellow", "cyan", "white")
#: Widths of a number and of the layer and module before them, where models stand side by side.
_NUMBER, _PLACE = 7, 6 + 14


def render(content: Content, console: Console, *, max_layers: int = 24) -> None:
    """Print a report: every model's verdict and findings, then tables of at most about ``max_layers`` layers."""
    found = _layers.layers(content)
    models = {name: _layers.measured(found, name) for name in content.models}
    console.print(_text(content.title, "bold"))
    for i, (name, rows) in enumerate(models.items()):
        console.print()
        _verdict(console, content, name, rows, _MODEL[i % len(_MODEL)])
        findings = content.findings_of(name)
        for finding in findings:
            _finding(console, _rows.finding(finding))
        if not findings:
            console.print(_indented(_text("No findings: quiet.", "green")))
    for table in _tables(content, {name: rows for name, rows in models.items() if rows}, console.width, max_layers):
        console.print()
        console.print(table)
    for fact in content.facts:
        if tried := fact.get("rates"):
            console.print()
            name = fact["label"] if len(models) > 1 else ""
            console.print(_text(f"{name}{': ' if name else ''}{rates.TRIED.format(steps=tried[0].steps)}"))
            console.print(rates_table(tried))


def render_review(found: Review, console: Console) -> None:
    """Print a training: its verdict and curves, what went wrong and where that began, what could not be looked at."""
    console.print(_text(f"Training of {found.run.label}", "bold"))
    console.print(_indented(_text(found.verdict)))
    for line in _lines([f"{k} {v}" for k, v in found.facts.items()], console.width - 2):
        console.print(_indented(_text(line, "dim")))
    for note in found.run.notes:
        console.print(_indented(_text(f"note: {note}", "dim")))
    drawn = tracker.curves(found)
    wide = max((len(title) for title, *_ in drawn), default=0)
    for title, values, log in drawn:
        spark = _sparks.curve(values, log=log, width=max(8, min(40, console.width - wide - 30)))
        ends = f"  {_labels.number(values[0])} → {_labels.number(values[-1])}"
        console.print(_indented(Text.assemble((f"{title:<{wide}} ", "dim"), (spark, _MODEL[0]), ends)))
    for finding in found.findings:
        _finding(console, tracker.told(found, finding))
    if not found.findings:
        console.print(_indented(_text("No findings: quiet.", "green")))
    if found.unseen:
        console.print()
        console.print(_indented(_text("could not run:", "bold")))
    for code, needs in found.unseen.items():
        console.print(_indented(_text(f"{code} {RULES[code].title}: it needs {needs}", "dim"), 4))


def rates_table(tried: Sequence[Rates]) -> Table:
    """Learning rates that were tried, a row an optimizer."""
    table = Table(box=None, header_style="dim", pad_edge=True, padding=(0, 1, 0, 1))
    for i, head in enumerate(rates.HEAD):
        table.add_column(head, justify="right" if i in (1, 3, 5) else "left", no_wrap=i < 6)
    for row in rates.rows(tried):
        table.add_row(*map(_text, row))
    return table


def spark(values: Sequence[float], *, log: bool = False) -> str:
    """A curve in one line of text."""
    return _sparks.curve(values, log=log, width=60)


def _verdict(console: Console, content: Content, name: str, rows: Sequence[Layer], colour: str) -> None:
    """Name, verdict, conditions, and two curves from the input to the output."""
    fact = content.facts_of(name)
    console.print(Text.assemble(("● ", colour), _text(name, "bold"), overflow="fold"))
    if fact.get("verdict"):
        console.print(_indented(_text(fact["verdict"])))
    for line in _rows.headline(fact):
        console.print(_indented(_text(line, "bold")))
    notes = [f"note: {note}" for note in fact.get("notes") or ()]
    for line in (*_lines(_rows.conditions(fact), console.width - 2), *notes):
        console.print(_indented(_text(line, "dim")))
    for column in ("participation_rank", "gradient_norm"):
        values = [at.values[column] for at in rows if column in at.values and at.part in ("", "stream")]
        drawn = _sparks.curve(values, log=_labels.label(column).log, width=max(8, min(40, console.width - 32)))
        if drawn:
            ends = f"  {_labels.number(values[0])} → {_labels.number(values[-1])}"
            console.print(_indented(Text.assemble((f"{_labels.label(column).short:<5}", "dim"), (drawn, colour), ends)))


def _finding(console: Console, finding: dict[str, Any]) -> None:
    """Severity, code and title; where; then evidence, meaning and cure, indented."""
    style = _SEVERITY.get(finding["severity"], "bold")
    head = Text.assemble(
        _text(f"{finding['severity']} {finding['code']}", style), "  ", _text(finding["title"], "bold")
    )
    console.print()
    console.print(_indented(head.append_text(_text(f"  {finding['where']}", "dim"))))
    for label, text in (("", finding["evidence"]), ("", finding["meaning"]), ("to do: ", finding["cure"])):
        if text:
            console.print(_indented(Text.assemble((label, "bold"), _text(text)), 4))


def _tables(content: Content, models: dict[str, list[Layer]], width: int, most: int) -> list[Table]:
    """The models side by side where they have the same layers and the console is wide enough, else one table each."""
    same = len({tuple((at.layer, at.call, at.module) for at in rows) for rows in models.values()}) == 1
    group = len(BRIEF) * (_NUMBER + 1) + 1
    if same and len(models) > 1 and _PLACE + len(models) * group <= width:
        return [_side_by_side(content, models, most, group)]
    return [
        _single(content, name, rows, most, _short(name, width) if len(models) > 1 else "")
        for name, rows in models.items()
    ]


def _single(content: Content, name: str, rows: Sequence[Layer], most: int, title: str) -> Table:
    columns = _columns(rows)
    starts = _codes(content, name)
    table = _place_table(title, fold_names=True)
    _number_columns(table, columns)
    table.add_column("", style="bold")
    for at in fold(rows, set(starts), _scales(columns), most):
        if isinstance(at, Folded):
            table.add_row("", _text(at, "dim"))
        else:
            table.add_row(
                str(at.layer), _text(at.spoken), *_numbers(at, columns), "" if at.call else starts.get(at.layer, "")
            )
    return table


def _side_by_side(content: Content, models: dict[str, list[Layer]], most: int, group: int) -> Table:
    """One row a layer: its place, then a group of numbers for each model."""
    columns = _columns([at for rows in models.values() for at in rows])
    together = [
        replace(
            ats[0], values={f"{i} {c}": at.values[c] for i, at in enumerate(ats) for c in columns if c in at.values}
        )
        for ats in zip(*models.values(), strict=True)
    ]
    scales = [(f"{i} {column}", log) for i in range(len(models)) for column, log in _scales(columns)]
    starts = {layer for name in models for layer in _codes(content, name)}
    shown = fold(together, starts, scales, most)
    places = _place_table(" ", fold_names=False)
    for at in shown:
        places.add_row(*(("", _text(at, "dim")) if isinstance(at, Folded) else (str(at.layer), _text(at.spoken))))
    grid = Table.grid(padding=(0, 1, 0, 0))
    grid.add_column(ratio=1)
    tables = [places]
    for i, name in enumerate(models):
        table = _plain_table(_short(name, group - 2), _MODEL[i % len(_MODEL)])
        _number_columns(table, columns)
        for at in shown:
            own = {} if isinstance(at, Folded) else {c: at.values[k] for c in columns if (k := f"{i} {c}") in at.values}
            table.add_row(
                *([""] * len(columns) if isinstance(at, Folded) else _numbers(replace(at, values=own), columns))
            )
        grid.add_column(no_wrap=True)
        tables.append(table)
    grid.add_row(*tables)
    return grid


def _plain_table(title: str, style: str = "bold") -> Table:
    named = _text(title, style) if title else None
    return Table(box=None, title=named, title_justify="left", pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")


def _place_table(title: str, *, fold_names: bool) -> Table:
    table = _plain_table(title)
    table.add_column("layer", justify="right", style="dim", no_wrap=True)
    table.add_column("module", overflow="fold" if fold_names else "ellipsis", no_wrap=not fold_names, min_width=8)
    return table


def _number_columns(table: Table, columns: Sequence[str]) -> None:
    for column in columns:
        table.add_column(_labels.label(column).short, justify="right", no_wrap=True, min_width=_NUMBER - 1)


def _numbers(at: Layer, columns: Sequence[str]) -> list[Text]:
    """Cells; what is not finite is bold."""
    cells = [(at.values.get(column), _labels.number(at.values.get(column))) for column in columns]
    return [Text(text, style="" if value is None or math.isfinite(value) else "bold red") for value, text in cells]


def _columns(rows: Iterable[Layer]) -> list[str]:
    known = set(_layers.columns(rows))
    return [column for column in BRIEF if column in known]


def _scales(columns: Sequence[str]) -> list[tuple[str, bool]]:
    return [(column, _labels.label(column).log) for column in columns]


def _codes(content: Content, name: str) -> dict[int, str]:
    starts = _layers.codes_at(content.findings_of(name))
    return {layer: " ".join(dict.fromkeys(f["code"] for f in found)) for layer, found in starts.items()}


def _text(text: object, style: str = "") -> Text:
    """Text as it is: no markup, and no control characters that a terminal would obey."""
    return Text("".join(c if c.isprintable() or c == "\n" else "\ufffd" for c in str(text or "")), style=style)


def _lines(parts: Sequence[str], width: int) -> list[str]:
    """The parts, with dots between them, in lines that break between parts only."""
    lines: list[str] = []
    for part in parts:
        if lines and len(lines[-1]) + 3 + len(part) <= width:
            lines[-1] += f" · {part}"
        else:
            lines.append(part)
    return lines


def _short(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(1, width - 1)] + "…"


def _indented(text: Text, by: int = 2) -> Padding:
    text.overflow = "fold"
    return Padding(text, (0, 0, 0, by), expand=False)
