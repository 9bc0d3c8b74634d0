"""The typer application, and what every command shares: one clear line for bad input, exit code 2."""

from __future__ import annotations

import json
import math
import sys
from importlib.metadata import version
from typing import Annotated, Any

import typer
from rich.console import Console

app = typer.Typer(
    name="normscope",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Will this deep network train? Measure its layers on a batch, before you spend a GPU-hour.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"normscope {version('normscope')}")
        raise typer.Exit


@app.callback()
def _main(
    _version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


console = Console(emoji=False)  # ":x:" in a name is no picture
errors = Console(stderr=True, emoji=False)


def print_json(data: Any) -> None:
    """One JSON document on standard output; non-finite numbers become null."""
    sys.stdout.write(json.dumps(_finite(data), indent=2, default=str) + "\n")


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {str(k): _finite(v) for k, v in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(v) for v in data]
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return data
