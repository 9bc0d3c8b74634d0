"""A sweep as a file: task, grid, store, executor, picture; every key checked."""

from __future__ import annotations

import inspect
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from normscope.core.errors import MANY, UsageError, brief, unknown, whole_number
from normscope.core.files import expanded, whole
from normscope.sweeping.grid import Grid
from normscope.sweeping.ranges import axis
from normscope.sweeping.task import Task


@dataclass(frozen=True)
class Executor:
    """Where the cells run: table ``[executor]`` of the file."""

    workers: int | None = None
    scheduler: str | None = None
    dask: bool = False
    in_flight: int | None = None
    retries: int = 0
    timeout: float | None = None
    memory: str | int | None = None


@dataclass(frozen=True)
class Plot:
    """What is drawn: table ``[plot]`` of the file. What is left open follows from the grid."""

    x: str | None = None
    y: str | None = None
    metrics: tuple[str, ...] | None = None
    colour: str | None = None
    facet: str | None = None
    kind: str = "auto"
    title: str | None = None
    log: tuple[str, ...] = ()


KINDS = ("auto", "lines", "heat")


@dataclass(frozen=True)
class Plan:
    """A whole sweep: ``axes`` multiply, ``together`` go side by side, ``cells`` are explicit; all three multiply."""

    task: str
    axes: Mapping[str, Any] = field(default_factory=dict)
    together: Mapping[str, Any] = field(default_factory=dict)
    cells: tuple[Mapping[str, Any], ...] = ()
    seeds: int | None = None
    store: str | None = None
    executor: Executor = Executor()
    plot: Plot = Plot()

    def grid(self) -> Grid:
        """The cells: explicit ones x axes side by side x axes that multiply x seeds (the last fastest)."""
        kinds = kinds_of(self.task)
        grids = [Grid(self.cells)] if self.cells else []
        if self.together:
            grids.append(Grid.zip(**{n: _values(n, v, kinds) for n, v in self.together.items()}))
        if self.axes:
            grids.append(Grid(**{n: _values(n, v, kinds) for n, v in self.axes.items()}))
        if self.seeds is not None:
            grids.append(Grid(seed=range(self.seeds)))
        if not grids:
            raise UsageError("A sweep needs a grid: [grid] in the file, or --depth 1:64:log2 --norm none,batch ...")
        whole = grids[0]
        for grid in grids[1:]:
            whole = whole * grid
        return whole


_TOP = {"task", "grid", "zip", "cells", "seeds", "store", "executor", "plot"}


def read(path: str | Path) -> Plan:
    """The plan in a TOML file. Raises ``UsageError``: no such file, no TOML, an unknown key (the nearest is named)."""
    file = expanded(path)
    try:
        content = tomllib.loads(whole(file).decode("utf-8"))
    except UsageError:
        raise
    except FileNotFoundError:
        raise UsageError(
            f"There is no file {str(path)!r}. A sweep is a TOML file, or --task with --PARAMETER ..."
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"The sweep must be a TOML file; {str(path)!r} cannot be read ({error}).") from error
    except (ValueError, RecursionError) as error:  # numbers of too many digits, lists in lists
        raise UsageError(f"{path} is not TOML: {brief(error)}.") from error
    for key in content:
        if key not in _TOP:
            raise unknown(f"key of {file.name}", key, _TOP)
    if "task" not in content:
        raise UsageError(f'{file.name} must say its task: task = "simulate", or task = "path/file.py:function".')
    for key, kind in (("grid", dict), ("zip", dict), ("cells", list), ("executor", dict), ("plot", dict)):
        if not isinstance(content.get(key, kind()), kind):
            written = f"[[{key}]]" if kind is list else f"[{key}]"
            raise UsageError(f"{key} of {file.name} must be a table, {written}; got {content[key]!r}.")
    for key in ("task", "store"):
        if not isinstance(content.get(key, ""), str):
            raise UsageError(f"{key} of {file.name} must be a string; got {content[key]!r}.")
    return Plan(
        task=_beside(content["task"], file),
        axes=content.get("grid", {}),
        together=content.get("zip", {}),
        cells=tuple(content.get("cells", ())),
        seeds=checked_seeds(content.get("seeds")),
        store=content.get("store"),
        executor=_table(Executor, content.get("executor", {}), f"[executor] of {file.name}"),
        plot=checked_plot(_table(Plot, content.get("plot", {}), f"[plot] of {file.name}")),
    )


def changed(plan: Plan, axes: Mapping[str, Any], **options: Any) -> Plan:
    """The plan with these axes in the place of its own (wherever they stood), and options that are not ``None``."""
    together = {n: v for n, v in plan.together.items() if n not in axes}
    cells = tuple({n: v for n, v in cell.items() if n not in axes} for cell in plan.cells)
    top = {k: v for k, v in options.items() if k in ("task", "seeds", "store") and v is not None}
    where = {f.name for f in fields(Executor)}
    inner = replace(plan.executor, **{k: v for k, v in options.items() if k in where and v is not None})
    drawn = {f.name for f in fields(Plot)}
    plot = replace(plan.plot, **{k: v for k, v in options.items() if k in drawn and v is not None})
    seeds = None if "seed" in axes else plan.seeds
    return replace(
        plan, axes={**plan.axes, **axes}, together=together, cells=cells, executor=inner, plot=checked_plot(plot),
        **{"seeds": seeds, **top},
    )  # fmt: skip


def kinds_of(task: str) -> dict[str, str]:
    """Parameter -> its annotation as text, empty where there is none."""
    signature = inspect.signature(Task.of(task).function)
    return {
        name: p.annotation if isinstance(p.annotation, str) else getattr(p.annotation, "__name__", str(p.annotation))
        for name, p in signature.parameters.items()
        if p.annotation is not inspect.Parameter.empty
    }


def checked_seeds(seeds: Any) -> int | None:
    """A number of seeds >= 1."""
    return None if seeds is None else whole_number("seeds", seeds, 1, "It is how many there are.", most=MANY)


def checked_plot(plot: Plot) -> Plot:
    """The plot, of a known kind."""
    if plot.kind not in KINDS:
        raise unknown("kind of plot", plot.kind, KINDS)
    return plot


def _values(name: str, value: Any, kinds: Mapping[str, str]) -> Any:
    """An axis of the file: a list as it stands, a string read as a range where the parameter is no string."""
    if not isinstance(value, str):
        return value
    kind = kinds.get(name, "")
    if "str" in kind:
        return [value]
    found = axis(value, name, kind)
    return found if len(found) > 1 else found[0]


def _table(kind: type[Any], table: Mapping[str, Any], where: str) -> Any:
    known = {f.name: f for f in fields(kind)}
    for key in table:
        if key not in known:
            raise unknown(f"key of {where}", key, known)
    given: dict[str, Any] = {}
    for key, value in table.items():
        annotation = str(known[key].type)
        if "tuple" in annotation:
            value = (value,) if isinstance(value, str) else tuple(value)
        fits = {
            "bool": bool, "int": int, "float": (int, float), "str": str, "tuple": tuple, "None": type(None),
        }  # fmt: skip
        kinds = tuple(k for n, ks in fits.items() if n in annotation for k in (ks if isinstance(ks, tuple) else (ks,)))
        if not isinstance(value, kinds) or (isinstance(value, bool) and "bool" not in annotation):
            raise UsageError(f"{key} of {where} must be {annotation.replace(' | None', '')}; got {value!r}.")
        given[key] = value
    return kind(**given)


def _beside(task: str, file: Path) -> str:
    """A task in a file of Python is looked for beside the TOML file too."""
    target, colon, name = task.rpartition(":")
    beside = file.parent / target
    if colon and target.endswith(".py") and not Path(target).exists() and beside.exists():
        return f"{beside}:{name}"
    return task
