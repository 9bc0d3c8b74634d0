"""The command line, ``normscope ...``: one file a command."""

from __future__ import annotations

import sys
from importlib import import_module

#: Command -> the file here that enrols it when it is imported; what is heavy is imported when the command runs.
COMMANDS = {
    "cure": "cure", "diagnose": "diagnose", "explain": "explain", "list": "explain", "predict": "predict",
    "overfit": "overfit", "race": "race", "rates": "rates", "report": "report",
    "selfcheck": "selfcheck", "sharpness": "sharpness", "sweep": "sweep",
    "transfer": "transfer", "verify": "verify", "why": "why",
}  # fmt: skip


def main(args: list[str] | None = None) -> None:
    """Run the command line; what ends it is one message on standard error and an exit code.

    0: fine. 1: a check failed (``--fail-on``, a claim, cells of a sweep). 2: misuse or bad input. 3: the user's script
    or model raised an exception of its own, or something unexpected happened here. 4: nothing can be told.
    130: Ctrl-C. 141: a broken pipe, in silence.
    """
    from normscope.cli import _ends

    sys.exit(_ends.code_of(lambda: _run(args)))


def _run(args: list[str] | None) -> int:
    asked = (sys.argv[1:] if args is None else args)[:1]
    for command in asked if COMMANDS.keys() & set(asked) else COMMANDS:
        import_module(f"normscope.cli.{COMMANDS[command]}")
    from normscope.cli._app import app

    return app(args=args, standalone_mode=False) or 0
