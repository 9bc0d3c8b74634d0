"""The typer application, and what every command shares: how it ends, and how it prints."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from typer.core import TyperGroup

from normscope.cli._examples import under

#: Exit codes beside 0 (fine), 1 (a check failed) and 2 (misuse or bad input, the parser's code too).
CRASHED, INTERRUPTED, BROKEN_PIPE = 3, 130, 141


class Ended(Exception):
    """Carries what ended a command past typer, which would make something of its own of it."""


class _Commands(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        """By name: in which order they were enrolled is of no meaning."""
        return sorted(self.commands)

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        """With its examples under its help."""
        found = super().get_command(ctx, cmd_name)
        if found is not None and "Examples:" not in (found.epilog or ""):
            found.epilog = under(cmd_name, found.epilog)
        return found

    def invoke(self, ctx: Any) -> Any:
        """Run the command that was asked for."""
        try:
            return super().invoke(ctx)
        except (OSError, EOFError, KeyboardInterrupt, SystemExit) as stop:
            raise Ended from stop


app = typer.Typer(
    name="normscope",
    cls=_Commands,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
    help="Will this deep network train? Measure its layers on a batch, before you spend a GPU-hour.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

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


def say(text: str) -> None:
    """One message on standard error, as it is."""
    errors.print(f"[bold red]error:[/] {escape(text)}", soft_wrap=True, highlight=False)


def warn(text: str) -> None:
    """What a user should know, on standard error; nothing ends for it."""
    errors.print(f"[bold yellow]warning:[/] {escape(text)}", soft_wrap=True, highlight=False)


def say_stopped(stop: KeyboardInterrupt) -> None:
    """What Ctrl-C left behind, by the notes of the interrupt."""
    told = " ".join(["stopped.", *getattr(stop, "__notes__", [])])
    errors.print(told, markup=False, highlight=False, soft_wrap=True)


def print_json(data: Any) -> None:
    """One JSON document on standard output; non-finite numbers become null."""
    sys.stdout.write(json_text(data))


def json_text(data: Any) -> str:
    """One JSON document; non-finite numbers become null."""
    return json.dumps(_finite(data), indent=2, default=str) + "\n"


def _finite(data: Any) -> Any:
    if isinstance(data, dict):
        return {str(k): _finite(v) for k, v in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(v) for v in data]
    if isinstance(data, float) and not math.isfinite(data):
        return None
    return data


@contextmanager
def counted(doing: str, *, shown: bool = True) -> Iterator[Callable[[int, int], None]]:
    """A bar on standard error that is told (steps done, of how many)."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=errors, transient=True, disable=not (shown and errors.is_terminal)) as bar:
        task = bar.add_task(doing, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
