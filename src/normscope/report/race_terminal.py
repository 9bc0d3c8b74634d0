"""The final table of a race in the terminal."""

from __future__ import annotations

from typing import Literal

from rich.console import Console
from rich.table import Table
from rich.text import Text

from normscope.report._race_content import RaceContent, cells, explained

#: Columns of a terminal that has room for the second p-value.
_WIDE = 100
#: And of one that has room for the time of a step.
_ROOM = 90
_COLOURS = {"better": "green", "worse": "red", "diverged": "bold red"}


def render(content: RaceContent, console: Console) -> None:
    """Print the final table, what its columns are, and the notes."""
    heads = {"variant": "variant", "lr": "lr", "train_loss": "train loss"}
    if content.tested:
        heads["test_accuracy"] = "test acc %"
    if content.target:
        heads["steps"] = f"steps to\n{content.target}"
    heads |= {"diverged": "diverged", "p_loss": "p loss"}
    if content.tested:
        heads["p_accuracy"] = "p acc"
    heads["verdict"] = "verdict"
    if console.width >= _ROOM:
        heads["milliseconds"] = "ms\n/step"
    rows = [cells(line) for line in content.lines]
    if max(len(row["variant"]) for row in rows) > console.width // 4:  # names that would squeeze the numbers
        for i, row in enumerate(rows, 1):
            console.print(Text.assemble((f"#{i} ", "bold"), row["variant"]), overflow="fold")
            row["variant"] = f"#{i}"
        console.print()
    told = any(row["p_loss"] or row["p_accuracy"] for row in rows)
    if not told or console.width < _WIDE:
        heads.pop("p_accuracy", None)
    if not told:
        heads = {key: head for key, head in heads.items() if not key.startswith("p_")}
    table = Table(box=None, header_style="dim", pad_edge=False, padding=(0, 1, 0, 0))
    for key, head in heads.items():
        words = key in ("variant", "verdict")
        fold: Literal["fold", "ellipsis"] = "fold" if key == "variant" else "ellipsis"
        table.add_column(head, justify="left" if words else "right", overflow=fold, no_wrap=key != "verdict")
    for row in rows:
        styled = {"verdict": _COLOURS.get(row["verdict"], ""), "variant": "bold"}
        table.add_row(*(Text(row[key], style=styled.get(key, "")) for key in heads))
    console.print(table)
    console.print()
    for line in explained(content):
        console.print(Text(line, style="dim"))
    for note in content.facts.get("notes", ()):
        console.print(Text(f"note: {note}", style="yellow"))
