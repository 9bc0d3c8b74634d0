"""``normscope explain CODE`` and ``normscope list WHAT``."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.markup import escape

from normscope.cli import _options as option
from normscope.cli._app import app, console, print_json
from normscope.cli._index import index
from normscope.core.errors import unknown


@app.command()
def explain(
    code: Annotated[str, typer.Argument(help="A finding's code, such as NS101.")],
    json: option.Json = False,
) -> None:
    """Explain a finding: what is measured, the formula, the threshold, what to do, the reference."""
    rules = index()["rules"]
    if code.upper() not in rules:
        raise unknown("finding code", code.upper(), rules)
    rule = rules[code.upper()]
    if json:
        print_json(rule)
        return
    console.print(f"[bold]{rule['code']}[/] [bold]{escape(rule['title'])}[/] ({rule['severity']})\n")
    console.print(escape(rule["text"]) + "\n", highlight=False)
    for head, field in (("What it means", "meaning"), ("What to do", "cure"), ("Threshold", "source")):
        console.print(f"[bold]{head}:[/] {escape(rule[field])}", highlight=False)


@app.command("list")
def list_(
    what: Annotated[
        str | None,
        typer.Argument(help="findings, metrics, models, datasets, norms, activations, weights, cures, claims."),
    ] = None,
    json: option.Json = False,
) -> None:
    """List what there is: findings, metrics, models, data sets, norms, activations, weights, cures, claims."""
    from rich.table import Table

    lists = index()["lists"]
    if what is not None and what not in lists:
        raise unknown("list", what, lists)
    chosen = [what] if what else list(lists)
    if json:
        print_json({name: lists[name] for name in chosen})
        return
    for name in chosen:
        table = Table(title=name, title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False)
        table.add_column(no_wrap=True, style="cyan")
        table.add_column(overflow="fold")
        for key, text in lists[name].items():
            table.add_row(escape(key), escape(text))
        console.print(table)
        console.print()
