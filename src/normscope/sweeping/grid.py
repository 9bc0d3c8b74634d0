"""Grids of cells: a cell is a set of parameters, and is known by its content."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from normscope.core.errors import MANY, UsageError
from normscope.core.records import COLUMNS

#: Columns of the table that a parameter cannot be; ``seed`` is a parameter and a column at once.
RESERVED = (*(c for c in COLUMNS if c != "seed"), "error")
#: Whole floats up to here are exact, and equal to their integer.
_EXACT = 2**53
#: Cells of one grid, at most: each is an object and a file.
MOST_CELLS = 2_000_000


@dataclass(frozen=True, eq=False)
class Cell:
    """One point of a grid; two cells with equal content are equal, whatever the order of their parameters."""

    parameters: Mapping[str, Any]

    @cached_property
    def text(self) -> str:
        """Canonical JSON of the parameters: keys sorted, no spaces, ASCII, 1.0 written 1 (see `canonical`)."""
        return canonical(self.parameters)

    @cached_property
    def seed(self) -> int:
        """63 bits of the SHA-256 of the content: the seed of a cell whose grid has no axis ``seed``."""
        return int.from_bytes(_digest("seed", self.text)[:8], "big") >> 1

    def key(self, task: str) -> str:
        """128 bits of the SHA-256 of the task's name and the content, in hexadecimal: the cell's name in a store."""
        return _digest("cell", canonical(task), self.text)[:16].hex()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cell) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)


class Grid:
    """Cells in order, each once.

    ``Grid(depth=[1, 2, 4], norm=["none", "batch"])``: the product of the axes, the last one fastest. An axis is a list,
    tuple, range, set-like or array; anything else (a string too) is one value. ``Grid.zip(depth=[2, 4], lr=[1, 0.5])``:
    axes side by side. ``Grid([{"depth": 2}, {"depth": 4, "lr": 1}])``: explicit cells. ``a * b``: every cell of a with
    every cell of b. ``a + b``: the cells of both, each once.

    Values: whatever JSON can hold (numbers, strings, booleans, None, lists, dicts with string keys) and infinity;
    numpy's and torch's scalars become Python's. NaN is refused: such a cell would differ from itself.
    Raises ``UsageError``: a value that is none of these, a value twice on one axis, a parameter named as a column.
    """

    def __init__(self, cells: Iterable[Mapping[str, Any]] = (), /, **axes: Any) -> None:
        if axes and cells:
            raise UsageError("A grid takes explicit cells or axes, not both; join two grids with + or *.")
        if isinstance(cells, Mapping):
            raise UsageError("Explicit cells are a list of dicts; got one dict. For a product of axes: Grid(**axes).")
        if axes:
            values = {name: _axis(name, values) for name, values in axes.items()}
            _check_count(math.prod(map(len, values.values())))
            cells = [dict(zip(values, point, strict=True)) for point in itertools.product(*values.values())]
        self._cells = tuple(dict.fromkeys(_cell(c) for c in cells))

    @classmethod
    def product(cls, **axes: Any) -> Grid:
        """The product of the axes, the last one fastest: ``Grid(**axes)``."""
        return cls(**axes)

    @classmethod
    def zip(cls, **axes: Any) -> Grid:
        """Axes side by side: the i-th cell has the i-th value of each; a single value goes to every cell."""
        listed = {name: values if is_axis(values) else [values] for name, values in axes.items()}
        columns = {name: _plain_axis(name, values) for name, values in listed.items()}
        sizes = {len(c) for name, c in columns.items() if is_axis(axes[name])} or {1}
        if len(sizes) > 1:
            told = ", ".join(f"{name} {len(c)}" for name, c in columns.items() if is_axis(axes[name]))
            raise UsageError(f"Axes side by side must be equally long; got {told}.")
        (size,) = sizes
        full = {name: c if is_axis(axes[name]) else c * size for name, c in columns.items()}
        return cls([dict(zip(full, point, strict=True)) for point in zip(*full.values(), strict=True)])

    @property
    def names(self) -> tuple[str, ...]:
        """The parameters, in the order in which cells first have them."""
        return tuple(dict.fromkeys(name for cell in self._cells for name in cell.parameters))

    def __mul__(self, other: Grid) -> Grid:
        both = set(self.names) & set(other.names)
        if both:
            raise UsageError(
                f"Grids that multiply must have different parameters; both have {', '.join(sorted(both))}."
            )
        _check_count(len(self) * len(other))
        return Grid([{**a.parameters, **b.parameters} for a in self for b in other])

    def __add__(self, other: Grid) -> Grid:
        return Grid([c.parameters for c in (*self, *other)])

    def __iter__(self) -> Iterator[Cell]:
        return iter(self._cells)

    def __len__(self) -> int:
        return len(self._cells)

    def __getitem__(self, index: int) -> Cell:
        return self._cells[index]

    def __repr__(self) -> str:
        return f"Grid({len(self)} cells: {', '.join(self.names) or 'no parameters'})"


def canonical(value: Any) -> str:
    """JSON that depends on the content alone: sorted keys, no spaces, ASCII, shortest floats, whole floats as integers.

    1, 1.0 and numpy's 1 are one value (as in Python); True is not 1; -0.0 is 0; (1, 2) is [1, 2]; infinity is
    ``Infinity``. Stable between processes, machines and versions of Python.
    """
    return json.dumps(_as_written(plain(value)), sort_keys=True, separators=(",", ":"), ensure_ascii=True)


def plain(value: Any, where: str = "A parameter") -> Any:
    """``value`` as plain Python, or ``UsageError``."""
    if isinstance(value, bool | str | type(None)) and type(value) in (bool, str, type(None)):
        return value
    if type(value) in (int, float):
        if value != value:
            raise UsageError(f"{where} must equal itself; NaN does not. Use None for a value that is missing.")
        return value
    if isinstance(value, Mapping):
        wrong = [k for k in value if not isinstance(k, str)]
        if wrong:
            raise UsageError(f"{where} must have strings as keys of its dict; got {wrong[0]!r}.")
        return {k: plain(v, where) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v, where) for v in value]
    if hasattr(value, "item") and getattr(value, "ndim", None) == 0:  # numpy's and torch's scalars
        return plain(value.item(), where)
    for kind in (bool, int, float, str):  # subclasses: enumerations of strings and the like
        if isinstance(value, kind):
            return plain(kind(value), where)
    raise UsageError(
        f"{where} must be what JSON can hold (a number, string, boolean, None, list or dict); "
        f"got a {type(value).__name__}: {str(value)[:80]}. Name the object as a string, and make it in the task."
    )


def is_axis(values: Any) -> bool:
    """Whether this is several values: a list, tuple, range, set, generator, array or series; no string, no dict."""
    if isinstance(values, str | bytes | Mapping) or getattr(values, "ndim", None) == 0:
        return False
    return isinstance(values, Iterable)


def _as_written(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _as_written(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_as_written(v) for v in value]
    if isinstance(value, float) and math.isfinite(value) and abs(value) < _EXACT and value == int(value):
        return int(value)
    return value


def _axis(name: str, values: Any) -> list[Any]:
    if not is_axis(values):
        return [plain(values, name)]
    listed = _plain_axis(name, values)
    texts = [canonical(value) for value in listed]
    if len(set(texts)) < len(texts):
        twice = next(v for i, v in enumerate(listed) if texts[i] in texts[:i])
        raise UsageError(f"An axis has each value once; {name} has {twice!r} twice. (One list as a value: [[...]].)")
    if not listed:
        raise UsageError(f"An axis needs at least one value; {name} has none.")
    return listed


def _plain_axis(name: str, values: Any) -> list[Any]:
    listed = list(itertools.islice(values, MANY + 1))  # a generator may never end
    if len(listed) > MANY:
        raise UsageError(f"An axis has at most {MANY} values; {name} has more.")
    return [plain(v, name) for v in listed]


def _check_count(cells: int) -> None:
    if cells > MOST_CELLS:
        raise UsageError(f"A grid has at most {MOST_CELLS} cells; this one has {cells}. Sweep it in parts.")


def _cell(parameters: Mapping[str, Any]) -> Cell:
    if not isinstance(parameters, Mapping):
        raise UsageError(f"A cell is a dict of parameters; got a {type(parameters).__name__}.")
    for name in parameters:
        if not isinstance(name, str) or not name.isidentifier():
            raise UsageError(f"A parameter's name must be a Python name; got {name!r}.")
        if name in RESERVED:
            raise UsageError(f"{name!r} is a column of the table, so it cannot be a parameter. Choose another name.")
    return Cell({name: plain(value, name) for name, value in parameters.items()})


def _digest(*parts: str) -> bytes:
    return hashlib.sha256("\n".join(("normscope 1", *parts)).encode()).digest()
