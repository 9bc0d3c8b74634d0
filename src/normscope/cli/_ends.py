"""How a command line ends, whatever happens: one line on standard error and an exit code; `main` lists them."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from threading import Event, current_thread, main_thread
from typing import Any

from normscope.core.errors import UsageError, brief
from normscope.core.files import private_folder, put
from normscope.core.load import Crashed, origin, user_error
from normscope.core.memory import does_not_fit


def code_of(work: Callable[[], int]) -> int:
    """What ``work`` returns, or the code of what it raised, which is told."""
    _open_streams()
    with _interrupts() as pressed:
        try:
            try:
                code = work()
            finally:
                sys.stdout.flush()  # a reader that is gone, a disk that is full: noticed now, not while Python ends
        except BaseException as stop:
            code = 3
            with contextlib.suppress(OSError, ValueError):  # standard error that takes nothing
                code, told = _told(stop, pressed)
                if told:
                    _app().say(told)
            for stream in (sys.stdout, sys.stderr):
                _let_go(stream)
    return code


def _app() -> Any:
    from normscope.cli import _app

    return _app


def _told(stop: BaseException, pressed: Event) -> tuple[int, str]:
    """The exit code, and the line that is told, if any."""
    app = _app()
    stop = stop.__cause__ if isinstance(stop, app.Ended) and stop.__cause__ else stop
    if any(isinstance(e, BrokenPipeError) and origin(e) != "user" for e in _chain(stop)):
        return app.BROKEN_PIPE, ""  # typer and rich make an exit of it, with code 1
    if isinstance(stop, KeyboardInterrupt) and pressed.is_set():
        app.say_stopped(stop)
        return app.INTERRUPTED, ""
    if isinstance(stop, UsageError):
        return (app.CRASHED if isinstance(stop, Crashed) else 2), str(stop)
    if hasattr(stop, "format_message"):  # the parser's; of which module depends on typer's version
        return _misused(stop)
    if does_not_fit(stop):
        return 2, f"What is asked for must fit in memory; it does not ({brief(stop) or 'no more'}). Take less of it."
    if isinstance(stop, OSError) and stop.errno in (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EBADF):
        where = f"{stop.filename!r}" if stop.filename else "Standard output"
        return 2, f"{where} must take what is written to it; it does not ({stop.strerror}). Write to another place."
    if origin(stop) == "user":  # SystemExit and KeyboardInterrupt that a model raises too
        return app.CRASHED, str(user_error("Running your code", stop))
    kind = type(stop).__name__
    said = f"{kind}: {brief(stop)}" if str(stop) else kind
    return app.CRASHED, f"Something unexpected happened in normscope: {said.rstrip('.')}. {_kept(stop)}"


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An exception and those during which it was raised."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _misused(error: Any) -> tuple[int, str]:
    """What the parser refuses; its help where nothing was asked."""
    if not (ctx := getattr(error, "ctx", None)) or "Help" in type(error).__name__:
        error.show()
        return error.exit_code, ""
    said = brief(error.format_message())
    return error.exit_code, f"{said}{'' if said.endswith(('.', '?')) else '.'} See: {ctx.command_path} --help"


def _kept(error: BaseException) -> str:
    """Where the traceback is: in a folder that nobody else can read, or on standard error."""
    text = "".join(traceback.format_exception(error))
    try:
        path = private_folder("crash") / "traceback.txt"
        put(text.encode("utf-8", "backslashreplace"), path)
        return f"The traceback is in {path}: please report it."
    except OSError:
        sys.stderr.write(text)
        return "Please report the lines above."


def _open_streams() -> None:
    """Standard streams that take any text: what is closed goes nowhere, what cannot be encoded is replaced."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the number, which the next file of ours would have
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, "r+", encoding="utf-8"))  # noqa: SIM115
        if number and hasattr(stream := getattr(sys, name), "reconfigure"):
            stream.reconfigure(errors="replace")


def _let_go(stream: Any) -> None:
    """What is still in the buffer of a stream that takes nothing goes nowhere, quietly."""
    try:
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError):  # no real file behind it
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@contextlib.contextmanager
def _interrupts() -> Iterator[Event]:
    """An event that is set once Ctrl-C was pressed: any other KeyboardInterrupt is one that somebody's code raised."""
    pressed = Event()
    before = signal.getsignal(signal.SIGINT)

    def press(number: int, frame: Any) -> None:
        pressed.set()
        raise KeyboardInterrupt

    ours = before is signal.default_int_handler and current_thread() is main_thread()
    if ours:
        signal.signal(signal.SIGINT, press)
    elif callable(before):  # another's handler: nothing is known
        pressed.set()
    try:
        yield pressed
    finally:
        if ours:
            signal.signal(signal.SIGINT, before)
