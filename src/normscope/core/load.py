"""Python objects by name, ``package.module:name`` or ``path/to/file.py:name,key=value``, and whose line an error is
from.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import os
import re
import sys
import sysconfig
import traceback
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from normscope.core.errors import UsageError, brief
from normscope.core.files import expanded, whole

#: A file is executed once for each content it has had: ``{path: (content, module)}``.
_FILES: dict[Path, tuple[bytes, ModuleType]] = {}
_OURS = ("<", os.path.join(os.fspath(Path(__file__).parents[1]), ""))
_STANDARD = tuple(os.path.join(sysconfig.get_path(key), "") for key in ("stdlib", "platstdlib"))


class Crashed(UsageError):
    """The user's own code raised: nothing that was asked for is wrong. The command line exits with code 3."""


def load_object(name: str) -> object:
    """The object that ``package.module:name`` or ``path/to/file.py:name`` names; ``name`` may have dots.

    A relative path starts at the current folder. The file becomes a module of its own, executed once for each content
    it has had, with its folder first on ``sys.path`` meanwhile; a package is imported as Python does, with the current
    folder first on the path. The path is as before afterwards.

    Raises ``UsageError``: not such a name; no such file, module or attribute (nearest one offered); an exception while
    the module runs, an ImportError of its own too, shown with its message and the innermost line of the user's code.
    """
    target, attributes = _parts(name)
    with _importable(_folder(target)):
        found: object = _from_file(Path(target)) if target.endswith(".py") else _from_package(target)
        for attribute in attributes:
            found = _attribute(found, attribute, target)
    return found


def call_object(name: str) -> object:
    """What a callable returns: that of ``load_object(name)``, called with the keyword arguments written after the name.

    ``net.py:make,depth=3,norm=batch``: values are read by `value_of`. Imports made inside the call find the same files
    as those at the top of its module.
    Raises ``UsageError``: all that ``load_object`` raises; not callable; arguments that it does not take (it names
    those that it does). ``Crashed``: an exception in the call, shown with its line.
    """
    called, given = callable_object(name)
    with _importable(_folder(_parts(split_arguments(name)[0])[0])):
        try:
            return called(**given)
        except (Exception, SystemExit) as error:
            raise user_error(f"Calling {name}", error) from error


def callable_object(name: str) -> tuple[Callable[..., Any], dict[str, Any]]:
    """The callable of ``net.py:make,depth=3`` and its keyword arguments, which it takes: nothing is called."""
    name, given = split_arguments(name)
    called = load_object(name)
    if not callable(called):
        raise UsageError(f"{name} must be a callable; it is a {type(called).__name__}.")
    try:
        signature = inspect.signature(called)
    except (TypeError, ValueError):  # built in, without a signature
        return called, given
    try:
        signature.bind(**given)
    except TypeError as error:
        raise UsageError(_wrong_arguments(name, signature, given, error)) from None
    return called, given


def _wrong_arguments(name: str, signature: inspect.Signature, given: Mapping[str, Any], error: TypeError) -> str:
    known = signature.parameters
    near = [close for key in given if key not in known for close in difflib.get_close_matches(key, known, n=1)]
    hint = f"Did you mean {near[0]!r}?" if near else f"Write {name}{f',{next(iter(known))}=VALUE' if known else ''}."
    takes = ", ".join(map(str, known.values()))
    return f"{name} must be called with arguments that it takes, ({takes}): {error}. {hint}"


def split_arguments(name: str) -> tuple[str, dict[str, Any]]:
    """``net.py:make,depth=3`` -> (``net.py:make``, {depth: 3}). Raises ``UsageError`` for what is not ``key=value``."""
    found = re.fullmatch(r"(.*?:[^\W\d][\w.]*),(.*)", str(name))
    if found is None:
        return str(name), {}
    return found[1], arguments_of(found[2].split(","), str(name))


def arguments_of(items: list[str], name: str) -> dict[str, Any]:
    """``["depth=3", "norm=batch"]`` as keyword arguments; ``name``: where they stand."""
    given: dict[str, Any] = {}
    for item in items:
        key, equals, value = item.partition("=")
        if not equals or not key.isidentifier():
            raise UsageError(f"An argument is written key=value; got {item!r} in {name!r}.")
        if key in given:
            raise UsageError(f"An argument is given once; {key!r} stands twice in {name!r}.")
        given[key] = value_of(value)
    return given


def value_of(text: str) -> Any:
    """A value as the command line has it: a whole number, a number, true, false, none, or the text itself."""
    for read in (int, float):
        try:
            return read(text)
        except ValueError:
            continue
    return {"true": True, "false": False, "none": None}.get(text.lower(), text)


def user_error(doing: str, error: BaseException, advice: str = "") -> UsageError:
    """``Crashed`` for an exception in the user's own code: its type, its message, and their innermost file:line.

    doing: what normscope did when it was raised, the start of a sentence: ``Importing net.py``. The exception's notes
    and ``advice`` follow. A ``UsageError``, raised by what they called of normscope, stays one.
    """
    frames = [f for f in _frames(error) if not f[0].startswith(_OURS)]
    own = [f for f in frames if not _foreign(f[0])] or frames
    where = f" at {own[-1][0]}:{own[-1][1]}" if own else ""
    said = f"{type(error).__name__}: {brief(error)}" if str(error) else type(error).__name__
    notes = [n.removeprefix("normscope: ") for n in getattr(error, "__notes__", [])]
    more = [f"{n[:1].upper()}{n[1:].rstrip('.')}." for n in (*notes, advice) if n]
    told = f"{doing} failed{where} with {said}"
    kind = UsageError if isinstance(error, UsageError) else Crashed
    return kind(" ".join([f"{told.rstrip('.')}.", *more]) if more else told)


def origin(error: BaseException) -> str:
    """Whose code was running when an exception was raised: the ``user``'s, a ``package``'s, or ``ours`` (torch's)
    alone.
    """
    files = [file for file, _ in _frames(error)]
    if not all(map(_foreign, files)):
        return "user"
    torch = os.path.join(os.path.dirname(getattr(sys.modules.get("torch"), "__file__", None) or "torch"), "")
    return "package" if any(_installed(f) and not f.startswith((*_OURS, torch)) for f in files) else "ours"


def _frames(error: BaseException) -> list[tuple[str, int]]:
    """(file, line) of every call that was under way, the innermost last."""
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        frames.append((error.filename, error.lineno or 0))
    return frames


def _parts(name: str) -> tuple[str, list[str]]:
    """``a.b:c.d`` -> (``a.b``, [``c``, ``d``])."""
    target, _, attribute = str(name).rpartition(":")
    if not target or not all(part.isidentifier() for part in attribute.split(".")):
        raise UsageError(f"A name must be package.module:name or path/to/file.py:name; got {name!r}.")
    if not target.endswith(".py") and not all(part.isidentifier() for part in target.split(".")):
        hint = f" Is it the file {target}.py:{attribute}?" if Path(f"{target}.py").is_file() else ""
        raise UsageError(
            f"Before the colon must stand an importable package.module or a path ending in .py; got {target!r}.{hint}"
        )
    return target, attribute.split(".")


def _folder(target: str) -> Path:
    return expanded(target).absolute().parent if target.endswith(".py") else Path.cwd()


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """``folder`` first on ``sys.path``. Its modules win over the user's other ones of the same name, until the end.

    So ``a/net.py`` and ``b/net.py`` may each ``import helper`` and get the file beside them.
    """
    names = {p.stem for p in folder.glob("*.py")} | {p.parent.name for p in folder.glob("*/__init__.py")}
    hidden = {name for name in names if _elsewhere(name, folder)}
    kept = _take(hidden)
    sys.path.insert(0, os.fspath(folder))
    importlib.invalidate_caches()  # the user may have written a file since the last look
    try:
        yield
    finally:
        if os.fspath(folder) in sys.path:
            sys.path.remove(os.fspath(folder))
        _take(hidden)
        sys.modules.update(kept)


def _elsewhere(name: str, folder: Path) -> bool:
    """Whether a module ``name`` of the user's own is loaded, from another folder than this."""
    file = getattr(sys.modules.get(name), "__file__", None)
    mine = {str(folder / f"{name}.py"), str(folder / name / "__init__.py")}
    return isinstance(file, str) and name != "__main__" and file not in mine and not _foreign(file)


def users_own(file: str) -> bool:
    """Whether a source file is the user's own."""
    return not _foreign(file)


def _foreign(file: str) -> bool:
    """Whether a source file is normscope's, Python's, or an installed package's: not the user's own."""
    return file.startswith((*_OURS, *_STANDARD)) or _installed(file)


def _installed(file: str) -> bool:
    return "site-packages" in file or "dist-packages" in file


def _take(names: set[str]) -> dict[str, ModuleType]:
    """Remove these modules and their submodules from ``sys.modules``; return them."""
    found = {m for m in sys.modules if m.partition(".")[0] in names}
    return {m: sys.modules.pop(m) for m in found}


def _from_file(path: Path) -> ModuleType:
    path = expanded(path).absolute()
    try:
        source = whole(path)
    except OSError as error:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.py")], n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise UsageError(f"There must be a readable file {path}: {error.strerror}.{hint}") from None
    if path in _FILES and _FILES[path][0] == source:
        return _FILES[path][1]
    # Not the bare stem: a user's json.py must not become everybody's json.
    spec = importlib.util.spec_from_file_location(f"{path.stem}_{zlib.crc32(os.fsencode(path)):08x}", path)
    assert spec is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module.__name__] = module  # dataclasses and pickle look there
    try:
        exec(compile(source, os.fspath(path), "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        raise user_error(f"Importing {path.name}", error) from error
    _FILES[path] = source, module
    return module


def _from_package(target: str) -> ModuleType:
    try:
        return importlib.import_module(target)
    except (Exception, SystemExit) as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing and (target == missing or target.startswith(missing + ".")):
            file = target.replace(".", "/") + ".py"
            raise UsageError(
                f"There must be a module {target} that Python can import from here: {error}. "
                f"Install it, run in its folder, or name its file: {file}:name."
            ) from None
        raise user_error(f"Importing {target}", error) from error


def _attribute(owner: object, name: str, target: str) -> object:
    try:
        return getattr(owner, name)
    except AttributeError:
        here = getattr(owner, "__dict__", {})  # no getattr: modules may import on demand
        own = [n for n, v in here.items() if getattr(v, "__module__", None) == getattr(owner, "__name__", "")]
        near = difflib.get_close_matches(name, [n for n in dir(owner) if not n.startswith("_")], n=1, cutoff=0.5)
        hint = f" Did you mean {near[0]!r}?" if near else f" It defines: {', '.join(own[:10])}." if own else ""
        raise UsageError(f"{target} must have the attribute {name!r}; it has not.{hint}") from None
    except Exception as error:
        raise user_error(f"Getting {name} from {target}", error) from error
