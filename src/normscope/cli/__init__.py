"""The command line, ``normscope ...``: one file a command."""

from __future__ import annotations

import sys

from normscope.core.errors import UsageError


def main(args: list[str] | None = None) -> None:
    """Run the command line; a ``UsageError`` is one message on standard error and exit code 2."""
    from rich.markup import escape

    # A command enrols itself when its file is imported.
    from normscope.cli import (  # noqa: F401
        cure,
        diagnose,
        explain,
        predict,
        race,
        selfcheck,
        sharpness,
        sweep,
        verify,
    )
    from normscope.cli._app import app, errors

    try:
        app(args=args)
    except UsageError as error:
        errors.print(f"[bold red]error:[/] {escape(str(error))}", soft_wrap=True, highlight=False)
        sys.exit(2)
    except BrokenPipeError:
        sys.stderr.close()
        sys.exit(0)
