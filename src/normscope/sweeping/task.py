"""Tasks: functions of a cell's parameters, by name or in person, checked before anything runs."""

from __future__ import annotations

import inspect
import pickle
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from normscope.core.errors import UsageError, unknown
from normscope.core.load import load_object
from normscope.core.registry import Registry
from normscope.sweeping.grid import Cell

#: name -> function: parameters -> what `normscope.sweeping._rows.records` takes. A function may carry ``check``, a
#: function of the same parameters that raises ``UsageError`` before anything runs.
TASKS: Registry[Callable[..., Any]] = Registry("task", home="normscope.tasks")


@dataclass(frozen=True)
class Task:
    """A task as it travels: its name (part of every key) and the reference by which a worker finds it."""

    name: str
    reference: str | bytes

    @classmethod
    def of(cls, task: str | Callable[..., Any]) -> Task:
        """From a registered name, ``package.module:function``, ``path/file.py:function`` or a function."""
        if isinstance(task, Task):
            return task
        if isinstance(task, str):
            made = cls(task, task)
            made.function  # noqa: B018  (an unknown name is told now)
            return made
        if not callable(task):
            raise UsageError(f"A task is a function or its name; got a {type(task).__name__}.")
        own = next((name for name, function in TASKS.items() if function is task), None)
        if own is not None:
            return cls(own, own)
        name = f"{getattr(task, '__module__', '')}:{getattr(task, '__qualname__', type(task).__qualname__)}"
        return cls(name, _pickled(task, name))

    @property
    def function(self) -> Callable[..., Any]:
        """The function itself."""
        return _found(self.reference)

    @property
    def takes_seed(self) -> bool:
        """Whether the function has a parameter ``seed`` (or takes any)."""
        return "seed" in _signature(self.function).parameters

    def check(self, cells: Iterable[Cell]) -> None:
        """Raise the ``UsageError`` of the first cell that the function cannot be called with; nothing is computed."""
        function = self.function
        known = _signature(function).parameters
        names = [n for n, p in known.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        open_ended = any(p.kind is p.VAR_KEYWORD for p in known.values())
        needed = {n for n in names if known[n].default is inspect.Parameter.empty} - {"seed"}
        inner = getattr(function, "check", None)
        for cell in cells:
            for name in cell.parameters:
                if name not in names and not open_ended:
                    raise unknown(f"parameter of the task {self.name}", name, names)
            missing = needed - set(cell.parameters)
            if missing:
                raise UsageError(f"The task {self.name} needs {', '.join(sorted(missing))}; {cell.text} lacks it.")
            if inner is not None:
                inner(**cell.parameters)

    def __call__(self, parameters: Mapping[str, Any], seed: int | None) -> Any:
        """Call it on a cell; ``seed`` where the parameters have none and the function takes one."""
        given = dict(parameters)
        if seed is not None:
            given.setdefault("seed", seed)
        return self.function(**given)


@lru_cache(maxsize=8)
def _found(reference: str | bytes) -> Callable[..., Any]:
    if isinstance(reference, bytes):
        return pickle.loads(reference)  # made by `_pickled` in the driver
    if ":" not in reference:
        return TASKS[reference]
    function = load_object(reference)
    if not callable(function):
        raise UsageError(f"{reference} must be a function of the cell's parameters; it is a {type(function).__name__}.")
    return function


@lru_cache(maxsize=8)
def _signature(function: Callable[..., Any]) -> inspect.Signature:
    try:
        return inspect.signature(function)
    except (TypeError, ValueError):
        return inspect.signature(lambda **anything: None)


def _pickled(task: Callable[..., Any], name: str) -> bytes:
    """The function for other processes: by reference, or by value where cloudpickle is there (notebooks, lambdas)."""
    try:
        import cloudpickle  # type: ignore[import-not-found, import-untyped, unused-ignore]

        return bytes(cloudpickle.dumps(task))
    except ImportError:
        pass
    except Exception as error:
        raise UsageError(_unpicklable(name, error)) from error
    try:
        if getattr(sys.modules.get(getattr(task, "__module__", "")), "__file__", None) is None:
            raise pickle.PicklingError("it was defined in a session, not in a file")
        return pickle.dumps(task)
    except Exception as error:
        raise UsageError(_unpicklable(name, error)) from error


def _unpicklable(name: str, error: Exception) -> str:
    return (
        f"A task must travel to other processes; {name} does not ({error}). Define it at the top level of a file and "
        "name it path/file.py:function, or pip install cloudpickle."
    )
