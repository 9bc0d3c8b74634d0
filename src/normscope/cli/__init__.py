"""The command line, ``normscope ...``: one file a command."""

from __future__ import annotations

import sys
import traceback
from importlib import import_module

from normscope.core.errors import UsageError

#: Command -> the file here that enrols it when it is imported; what is heavy is imported when the command runs.
COMMANDS = {
    "cure": "cure", "diagnose": "diagnose", "explain": "explain", "list": "explain", "predict": "predict",
    "race": "race",
    "selfcheck": "selfcheck", "sharpness": "sharpness", "sweep": "sweep",
    "transfer": "transfer", "verify": "verify", "why": "why",
}  # fmt: skip


def main(args: list[str] | None = None) -> None:
    """Run the command line; what ends it is one message on standard error and an exit code.

    0: fine. 1: a check failed (``--fail-on``, a claim, cells of a sweep). 2: misuse or bad input. 3: the user's script
    or model raised an exception of its own, or something unexpected happened here. 4: nothing can be told.
    130: Ctrl-C. 141: a broken pipe.
    """
    from normscope.cli import _app

    asked = (sys.argv[1:] if args is None else args)[:1]
    for command in asked if COMMANDS.keys() & set(asked) else COMMANDS:
        import_module(f"normscope.cli.{COMMANDS[command]}")
    try:
        try:
            _app.app(args=args)
        finally:
            sys.stdout.flush()  # a reader that is gone is noticed now, not while Python ends
    except UsageError as error:
        from normscope.core.load import Crashed

        _app.say(str(error))
        sys.exit(_app.CRASHED if isinstance(error, Crashed) else 2)
    except (SystemExit, BrokenPipeError) as stop:
        if not _app.is_broken_pipe(stop):
            raise
        _app.let_go()
        sys.exit(_app.BROKEN_PIPE)
    except Exception as error:  # a fault of ours, whatever it is
        traceback.print_exc()
        _app.say(f"Something unexpected happened in normscope: {type(error).__name__}. Please report the lines above.")
        sys.exit(_app.CRASHED)
