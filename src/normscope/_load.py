"""Names of Python objects, ``package.module:name`` and ``path/to/file.py:name``: import them, call them, blame the right line."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import sys
import sysconfig
import traceback
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

from normscope._errors import UsageError

#: A file is executed once for each content it has had: ``{path: (content, module)}``.
_FILES: dict[Path, tuple[bytes, ModuleType]] = {}
#: Top-level modules found beside a user's file, and the folder they came from: ``{name: folder}``.
_SIBLINGS: dict[str, Path] = {}
#: Code in these folders is not the user's own.
_FOREIGN = (*(sysconfig.get_paths()[key] for key in ("stdlib", "platstdlib", "purelib", "platlib")), str(Path(__file__).parent))


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
    """``load_object(name)()``: what the callable returns when called with no arguments.

    Imports made inside the call find the same files as those at the top of its module.
    Raises ``UsageError``: all that ``load_object`` raises; not callable; an exception in the call, shown with its line.
    """
    called = load_object(name)
    if not callable(called):
        raise UsageError(f"{name} must be a callable that takes no arguments; it is a {type(called).__name__}.")
    with _importable(_folder(_parts(name)[0])):
        try:
            return called()
        except (Exception, SystemExit) as error:
            raise user_error(f"Calling {name} with no arguments", error) from error


def user_error(doing: str, error: BaseException) -> UsageError:
    """``UsageError`` for an exception in the user's own code: its type, its message, file:line of the user's innermost frame.

    doing: what normscope did when it was raised, the start of a sentence: ``Importing net.py``.
    """
    frames = [(frame.f_code.co_filename, line) for frame, line in traceback.walk_tb(error.__traceback__)]
    if isinstance(error, SyntaxError) and error.filename:
        frames.append((error.filename, error.lineno or 0))
    own = [f for f in frames if not f[0].startswith(("<frozen", *_FOREIGN))] or frames
    where = f" at {own[-1][0]}:{own[-1][1]}" if own else ""
    said = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    return UsageError(f"{doing} raised an exception{where}. It says {said}")


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
    return Path(target).expanduser().absolute().parent if target.endswith(".py") else Path.cwd()


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """``folder`` first on ``sys.path``; siblings that another folder's file imported do not stand in for this folder's."""
    for name, origin in list(_SIBLINGS.items()):
        if origin != folder:
            for loaded in [m for m in sys.modules if m == name or m.startswith(name + ".")]:
                del sys.modules[loaded]
            del _SIBLINGS[name]
    before = set(sys.modules)
    sys.path.insert(0, os.fspath(folder))
    importlib.invalidate_caches()  # the user may have written a file since the last look
    try:
        yield
    finally:
        if os.fspath(folder) in sys.path:
            sys.path.remove(os.fspath(folder))
        for name in set(sys.modules) - before:
            if "." not in name and _places(sys.modules[name]) & {folder / f"{name}.py", folder / name}:
                _SIBLINGS[name] = folder


def _places(module: ModuleType) -> set[Path]:
    """The file or the folders a module was imported from."""
    try:
        return {Path(p) for p in (*getattr(module, "__path__", ()), getattr(module, "__file__", None)) if p}
    except TypeError:  # modules that are made up at run time may answer anything
        return set()


def _from_file(path: Path) -> ModuleType:
    path = path.expanduser().absolute()
    try:
        source = path.read_bytes()
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
        names = [n for n in dir(owner) if not n.startswith("_")]
        near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
        own = [n for n in names if getattr(getattr(owner, n, None), "__module__", None) == getattr(owner, "__name__", "")]
        hint = f" Did you mean {near[0]!r}?" if near else f" It defines: {', '.join(own[:10])}." if own else ""
        raise UsageError(f"{target} must have the attribute {name!r}; it has not.{hint}") from None
