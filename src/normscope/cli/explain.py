"""``normscope explain CODE`` and ``normscope list WHAT``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from normscope.cli import _options as option
from normscope.cli._app import app, console, print_json
from normscope.core.errors import unknown
from normscope.core.registry import Registry
from normscope.findings import RULES
from normscope.geometry.metrics import METRICS


@app.command()
def explain(
    code: Annotated[str, typer.Argument(help="A finding's code, such as NS101.")],
    json: option.Json = False,
) -> None:
    """Explain a finding: what is measured, the formula, the threshold, what to do, the reference."""
    rule = RULES[code.upper()]
    paragraphs = [" ".join(p.split()) for p in inspect.cleandoc(rule.text).split("\n\n")]
    text = "\n\n".join(paragraphs)
    if json:
        fields = ("code", "title", "severity", "meaning", "cure", "source")
        print_json({k: getattr(rule, k) for k in fields} | {"text": text})
        return
    console.print(f"[bold]{rule.code}[/] [bold]{escape(rule.title)}[/] ({rule.severity})\n")
    console.print(escape(text) + "\n", highlight=False)
    for head, body in (("What it means", rule.meaning), ("What to do", rule.cure), ("Threshold", rule.source)):
        console.print(f"[bold]{head}:[/] {escape(body)}", highlight=False)


def _summary(thing: object) -> str:
    lines = (inspect.getdoc(thing) or "").splitlines()
    return lines[0] if lines else ""


def _metrics() -> Mapping[str, str]:
    return {m.name: f"{_summary(m.function)} [{m.unit}; {m.source}]" for m in METRICS.values()}


def _findings() -> Mapping[str, str]:
    return {r.code: f"{r.title} ({r.severity}): {r.meaning}" for r in RULES.values()}


def _models() -> Mapping[str, str]:
    from normscope.data.models import SOURCES

    return {name: _summary(make) for name, make in SOURCES.items()}


def _datasets() -> Mapping[str, str]:
    from normscope.data.datasets import describe

    return describe()


def _norms() -> Mapping[str, str]:
    from normscope.core.spec import NORMS

    return dict.fromkeys(NORMS, "")


def _activations() -> Mapping[str, str]:
    from normscope.core.spec import ACTIVATIONS

    return dict.fromkeys(ACTIVATIONS, "")


def _weights() -> Mapping[str, str]:
    from normscope.core.spec import WEIGHTS

    return WEIGHTS


def _cures() -> Mapping[str, str]:
    from normscope.init import CURES

    return {c.name: f"{c.doc} [{c.source}]" for c in CURES.values()}


def _claims() -> Mapping[str, str]:
    from normscope import claims

    claims.load()
    return {c.name: f"{c.statement} [{c.where}]" for c in claims.CLAIMS.values()}


#: What ``normscope list`` can list; each entry is one function name -> one line.
LISTS: Registry[Callable[[], Mapping[str, str]]] = Registry("list")
for _name, _function in {
    "findings": _findings, "metrics": _metrics, "models": _models, "datasets": _datasets, "norms": _norms,
    "activations": _activations, "weights": _weights,
    "cures": _cures, "claims": _claims,
}.items():  # fmt: skip
    LISTS.add(_name, _function)


@app.command("list")
def list_(
    what: Annotated[
        str | None,
        typer.Argument(help="findings, metrics, models, datasets, norms, activations, weights, cures, claims."),
    ] = None,
    json: option.Json = False,
) -> None:
    """List what there is: findings, metrics, models, data sets, norms, activations, weights, cures, claims."""
    if what is not None and what not in LISTS:
        raise unknown("list", what, LISTS)
    chosen = [what] if what else list(LISTS)
    if json:
        print_json({name: dict(LISTS[name]()) for name in chosen})
        return
    for name in chosen:
        table = Table(title=name, title_justify="left", title_style="bold", box=None, show_header=False, pad_edge=False)
        table.add_column(no_wrap=True, style="cyan")
        table.add_column(overflow="fold")
        for key, text in LISTS[name]().items():
            table.add_row(escape(key), escape(text))
        console.print(table)
        console.print()
