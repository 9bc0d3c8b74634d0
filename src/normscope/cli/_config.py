"""``[tool.normscope]`` of the nearest pyproject.toml: the models of a project, how they are diagnosed, what is ignored.

Read as it is written, and checked before anything runs: a slip is one line with the nearest key.
"""

from __future__ import annotations

import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normscope.core.errors import UsageError, finite_number, shown, unknown, whole_number
from normscope.core.files import expanded, whole

if TYPE_CHECKING:
    from normscope.findings.guard import Ignore

FILE, TABLE = "pyproject.toml", "tool.normscope"
OTHERWISE = "Correct it, or pass --no-config."


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value:
        raise UsageError(f"{name} must be a text in quotes; got {shown(value)}. {OTHERWISE}")
    return value


def _texts(name: str, value: Any) -> list[str]:
    given = value if isinstance(value, list) else [value]
    return [_text(name, one) for one in given]


def _flag(name: str, value: Any) -> bool:
    if not isinstance(value, bool):
        raise UsageError(f"{name} must be true or false; got {shown(value)}. {OTHERWISE}")
    return value


def _trial(name: str, value: Any) -> str:
    return value if isinstance(value, str) else str(whole_number(name, value, 5, OTHERWISE))


#: Key of a model, or of all of them -> (argument of ``diagnose``, what reads it).
OPTIONS: dict[str, tuple[str, Any]] = {
    "data": ("data", _text), "data-dir": ("data_dir", _text), "loss": ("loss", _text), "mode": ("mode", _text),
    "optimizer": ("optimizer", _text), "device": ("device", _text), "dtype": ("dtype", _text),
    "batch": ("n", lambda name, value: whole_number(name, value, 1, OTHERWISE)),
    "samples": ("samples", lambda name, value: whole_number(name, value, 0, OTHERWISE)),
    "seed": ("seed", lambda name, value: whole_number(name, value, 0, OTHERWISE)),
    "lr": ("lr", lambda name, value: finite_number(name, value, above=0, do=OTHERWISE)),
    "layers": ("layers", _texts), "tokens": ("tokens", _flag), "theory": ("theory", _flag),
    "sharpness": ("curvature", _flag), "rates": ("rates", _flag), "trial": ("trial", _trial),
}  # fmt: skip
#: Keys of the table that are of no single model.
SHARED = ("models", "fail-on", "baseline", "ignore")


@dataclass(frozen=True)
class Entry:
    """A model to diagnose: its MODEL string, its name in reports, and arguments of ``diagnose`` that it has."""

    model: str
    label: str
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Config:
    """What a configuration says; without a file: nothing."""

    path: Path | None = None
    entries: tuple[Entry, ...] = ()
    shared: Mapping[str, Any] = field(default_factory=dict)
    fail_on: tuple[str, ...] = ()
    baseline: Path | None = None
    ignores: tuple[Ignore, ...] = ()

    def chosen(self, models: Sequence[str]) -> list[Entry]:
        """The models that were asked for, with what the configuration says of them; none asked for: all of it."""
        if not models and not self.entries:
            where = f"models = [...] under [{TABLE}] of {self.path or FILE}"
            raise UsageError(f"diagnose needs a MODEL; none was given. Name one, or list them: {where}.")
        mine = {key: e for e in reversed(self.entries) for key in (e.model, e.label)}
        return [mine.get(m, Entry(m, m)) for m in models] if models else list(self.entries)


def configuration(path: Path | None, none: bool) -> Config:
    """The configuration of ``--config FILE``, else the nearest one from the working folder upwards, unless ``none``."""
    if path is not None and none:
        raise UsageError("--config and --no-config exclude each other. Leave one of them out.")
    if none:
        return Config()
    if path is not None:
        path = expanded(path).absolute()
        table = _table(path)
        if table is None:
            raise UsageError(f"{path} must have a table [{TABLE}]; it has none. Add it, or leave --config out.")
        return _config(path, table)
    here = Path.cwd()
    for folder in (here, *here.parents):
        file = folder / FILE
        if file.is_file() and (table := _table(file)) is not None:
            return _config(file, table)
    return Config()


def _table(path: Path) -> dict[str, Any] | None:
    """The table of a file; ``None`` if it has none."""
    try:
        data = whole(path)
    except OSError as error:
        raise UsageError(f"There must be a readable file {path}: {error.strerror}. {OTHERWISE}") from None
    if b"normscope" not in data:  # another project's, broken or not
        return None
    try:
        tool = tomllib.loads(data.decode("utf-8")).get("tool")
    except (ValueError, RecursionError) as error:  # no TOML, or no UTF-8
        raise UsageError(f"A configuration must be TOML; {path} is not: {error}. {OTHERWISE}") from None
    table = tool.get("normscope") if isinstance(tool, dict) else None
    if table is not None and not isinstance(table, dict):
        raise UsageError(f"{TABLE} in {path} must be a table; got {shown(table)}. Write [{TABLE}].")
    return table


def _config(path: Path, table: dict[str, Any]) -> Config:
    from normscope.cli._index import index
    from normscope.findings.guard import Ignore, check_wanted

    try:
        _known(f"key of [{TABLE}]", table, [*OPTIONS, *SHARED])
        entries = tuple(_entry(i, given) for i, given in enumerate(_list(table, "models"), 1))
        twice = next((e for e in entries if sum(e.label == o.label for o in entries) > 1), None)
        if twice is not None:
            raise UsageError(f'Models must be told apart; {twice.label!r} stands twice. Give each a name = "...".')
        fail_on = tuple(_texts("fail-on", table.get("fail-on", [])))
        check_wanted(fail_on, index()["rules"])
        baseline = _text("baseline", table["baseline"]) if "baseline" in table else None
        ignores = []
        for i, given in enumerate(_list(table, "ignore"), 1):
            name = f"[[{TABLE}.ignore]] {i}"
            if not isinstance(given, dict) or "code" not in given:
                raise UsageError(f'{name} must be a table with a code; got {shown(given)}. Write code = "NS201".')
            _known(f"key of {name}", given, ("code", "model", "module", "reason"))
            ignores.append(Ignore(**{key: _text(f"{key} of {name}", value) for key, value in given.items()}))
        shared = _options(table, "")
        return Config(
            path, entries, shared, fail_on, path.parent / baseline if baseline else None, tuple(ignores)
        )  # fmt: skip
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from None


def _list(table: Mapping[str, Any], key: str) -> list[Any]:
    given = table.get(key, [])
    if not isinstance(given, list):
        raise UsageError(f"{key} must be a list; got {shown(given)}. {OTHERWISE}")
    return given


def _known(kind: str, given: Mapping[str, Any], known: Sequence[str]) -> None:
    for key in given:
        if key not in known:
            raise unknown(kind, key, known)


def _entry(number: int, given: Any) -> Entry:
    if isinstance(given, str) and given:
        return Entry(given, given)
    where = f"model {number}"
    if not isinstance(given, dict) or "model" not in given:
        raise UsageError(f'{where} must be a text or a table with model = "..."; got {shown(given)}. {OTHERWISE}')
    _known(f"key of {where}", given, ("model", "name", *OPTIONS))
    model = _text(f"model of {where}", given["model"])
    return Entry(model, _text(f"name of {where}", given.get("name", model)), _options(given, f" of {where}"))


def _options(given: Mapping[str, Any], of: str) -> dict[str, Any]:
    """The arguments of ``diagnose`` that keys stand for."""
    return {argument: read(f"{key}{of}", given[key]) for key, (argument, read) in OPTIONS.items() if key in given}


def anchored(name: str, folder: Path) -> str:
    """A MODEL, data, loss or optimizer that names a file, its path as seen from ``folder``; others as they are."""
    file, colon, _ = name.partition(":")
    return str(folder / name) if file.endswith(".py") or (not colon and Path(name).suffix) else name


#: Arguments of ``diagnose`` that may name a file.
NAMES = ("data", "loss", "optimizer", "data_dir")


def settled(
    entry: Entry, config: Config, line: Mapping[str, Any], given: Mapping[str, Any], folder: Path
) -> tuple[str, dict[str, Any]]:
    """MODEL and the arguments of ``diagnose`` for one entry, as seen from the folder in which it runs.

    line: every argument of the command line, defaults too; given: those of them that were typed, which win.
    """

    def seen(options: Mapping[str, Any], home: Path) -> dict[str, Any]:
        if home == folder:
            return dict(options)
        moved = {k: v for k, v in options.items() if k in NAMES and v is not None}
        return {**options, **{k: anchored(str(v), home) if k != "data_dir" else home / v for k, v in moved.items()}}

    home = config.path.parent if config.path else folder
    options = {**line, **seen({**config.shared, **entry.options}, home), **seen(given, Path.cwd())}
    if options["data_dir"] is not None:
        options["data_dir"] = Path(options["data_dir"])
    model = anchored(entry.model, home) if home != folder and entry in config.entries else entry.model
    return model, options
