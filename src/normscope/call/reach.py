"""What a model holds: every container and tensor that a forward pass can reach from its modules."""

from __future__ import annotations

import functools
import operator
import random
import types
import weakref
from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

#: Packages whose objects are not looked into, modules apart: theirs, not the model's.
_FOREIGN = ("torch", "numpy", "builtins", "threading", "logging", "_thread", "io", "weakref", "importlib", "types",
            "lightning", "pytorch_lightning", "lightning_fabric", "polars", "concurrent",
            "multiprocessing")  # fmt: skip
#: Objects looked at, at most (chosen by us: a ResNet-50 has 4000; a model that holds a data set must not hang).
MOST = 200_000
GENERATORS = (torch.Generator, random.Random, np.random.Generator, np.random.RandomState)
#: Bytes of arrays, and of tensors that are neither parameters nor buffers, that are copied (chosen by us: caches fit,
#: data sets do not).
MOST_BYTES = 2**28
_LEAVES = (str, bytes, int, float, complex, bool, type(None), type, types.ModuleType, types.BuiltinFunctionType,
           weakref.ref, torch.dtype, torch.device, torch.Size)  # fmt: skip

#: Of these by their own type, which is quicker to ask; and containers whose methods are nobody's but Python's.
_OFTEN = frozenset({str, int, float, bool, type(None)})
_PLAIN = frozenset({dict, OrderedDict, list, set, deque})


class Slots:
    """The slots of an object as a dictionary, by the class's own descriptors: a user's ``__setattr__`` is not
    called.
    """

    def __init__(self, item: Any) -> None:
        self.item, self.names = item, _slots(type(item))

    def read(self) -> dict[Any, Any]:
        """The slots that are filled."""
        found = {}
        for name in self.names:
            try:
                found[name] = name.__get__(self.item)
            except AttributeError:  # empty
                continue
        return found

    def write(self, items: dict[Any, Any]) -> None:
        """Fill these, and empty the others."""
        for name in self.read():
            name.__delete__(self.item)
        for name, value in items.items():
            self[name] = value

    def __setitem__(self, name: Any, value: Any) -> None:
        name.__set__(self.item, value)


def _slots(kind: type) -> tuple[Any, ...]:
    own = [c for c in kind.__mro__ if "__slots__" in vars(c) and not _foreign(c.__module__)]
    return tuple(d for c in own for d in vars(c).values() if isinstance(d, types.MemberDescriptorType))


def attributes(item: Any) -> dict[str, Any]:
    """What an object holds by name, in its ``__dict__`` or in slots."""
    slots = {d.__name__: value for d, value in Slots(item).read().items()}
    return slots | dict(getattr(item, "__dict__", {}))


def retupled(value: tuple[Any, ...], items: Iterable[Any]) -> tuple[Any, ...]:
    """A tuple of the same kind: named ones, and what ``torch.max`` returns, too."""
    if hasattr(value, "_fields"):
        return type(value)(*items)
    return type(value)(items) if hasattr(value, "n_fields") else tuple(items)


@dataclass(slots=True)
class Place:
    """One container and what it held: ``write(items)`` puts items back into the very object."""

    owner: Any
    items: Any

    def read(self) -> Any:
        """What it holds now, as a plain copy."""
        return _contents(self.owner)

    def holds(self, items: Any) -> bool:
        """Whether it holds ``items``: by identity, and for dictionaries in this order."""
        return _same(self.owner if type(self.owner) in _PLAIN else self.read(), items)

    def write(self, items: Any) -> None:
        """Make it hold ``items``, unless it does."""
        owner = self.owner
        if self.holds(items):
            return
        if isinstance(owner, dict):
            base = _base(owner)  # a subclass may refuse
            base.clear(owner)
            for key, value in items.items():
                base.__setitem__(owner, key, value)
        elif isinstance(owner, Slots):
            owner.write(items)
        elif isinstance(owner, list):
            owner[:] = items
        elif isinstance(owner, set | deque):
            owner.clear()
            owner.update(items) if isinstance(owner, set) else owner.extend(items)
        else:  # a closure's cell
            try:
                owner.cell_contents = items[0]
            except IndexError:
                del owner.cell_contents


def _base(owner: dict[Any, Any]) -> type[dict[Any, Any]]:
    return OrderedDict if isinstance(owner, OrderedDict) else dict


def _contents(owner: Any) -> Any:
    if isinstance(owner, dict):
        return dict(_base(owner).items(owner))
    if isinstance(owner, Slots):
        return owner.read()
    if isinstance(owner, types.CellType):
        try:
            return [owner.cell_contents]
        except ValueError:  # empty
            return []
    return set(owner) if isinstance(owner, set) else list(owner)


def _same(now: Any, then: Any) -> bool:
    """The same objects in the same order, keys and values."""
    if not then:
        return not now
    if isinstance(then, set):
        return now == then
    if len(now) != len(then) or not all(map(operator.is_, now, then)):
        return False
    return not isinstance(then, dict) or all(map(operator.is_, now.values(), then.values()))


@dataclass
class Reach:
    """All that was found, each object once.

    modules: also those in plain lists. places: containers, ``__dict__`` of objects among them. tensors: every tensor
    that a place holds. tuples: those that hold a tensor, which must be rebuilt to hold another. generators: random
    generators of the model's own, with their states. arrays: numpy arrays with copies, up to `MOST_BYTES`.
    """

    modules: list[nn.Module] = field(default_factory=list)
    places: list[Place] = field(default_factory=list)
    tensors: dict[int, Tensor] = field(default_factory=dict)
    tuples: dict[int, tuple[Any, ...]] = field(default_factory=dict)
    generators: list[tuple[Any, Any]] = field(default_factory=list)
    arrays: list[tuple[np.ndarray, np.ndarray]] = field(default_factory=list)

    @classmethod
    def of(cls, roots: Iterable[Any], most: int = MOST) -> Reach:
        """Walk from the roots, without recursion; ``most`` does not count what modules register, which comes first."""
        found, seen, keep = cls(), set[int](), []
        roots = list(roots)
        roots += [value for root in roots for value in _globals(root)]
        modules = [m for root in roots if isinstance(root, nn.Module) for m in root.modules()]
        registered = [d for m in modules for d in (m, m.__dict__, m._parameters, m._buffers, m._modules)]
        stack: list[Any] = []
        first = deque([*roots, *registered])
        most += len(first)
        while first or (stack and len(seen) < most):
            item = first.popleft() if first else stack.pop()
            kind = type(item)
            if kind in _OFTEN or id(item) in seen:
                continue
            if kind is dict or kind is OrderedDict:  # most of what modules hold; `_enter` in a line
                found.places.append(Place(item, dict(item)))
                if item:  # most are empty: hooks that nobody set
                    stack.extend(item.values())
            elif isinstance(item, _LEAVES):
                continue
            else:
                stack.extend(found._enter(item))
            seen.add(id(item))
            keep.append(item)
        found._kept = keep  # type: ignore[attr-defined]  # an id is only an id while its object lives
        return found

    def _enter(self, item: Any) -> Iterator[Any]:
        if isinstance(item, nn.Module):
            self.modules.append(item)
            yield item.__dict__
        elif isinstance(item, Tensor):
            self.tensors[id(item)] = item
            if type(item) is not Tensor and getattr(item, "__dict__", None):
                yield from (v for v in item.__dict__.values() if isinstance(v, Tensor))
        elif isinstance(item, dict):
            self.places.append(place := Place(item, _contents(item)))
            yield from place.items.values()
            yield from self._attributes(item)
        elif isinstance(item, list | set | deque):
            self.places.append(Place(item, _contents(item)))
            yield from item
            yield from self._attributes(item)
        elif isinstance(item, tuple):
            self.tuples[id(item)] = item
            yield from item
        elif isinstance(item, np.ndarray):
            if item.dtype.kind in "biufc" and item.nbytes + sum(a.nbytes for a, _ in self.arrays) <= MOST_BYTES:
                self.arrays.append((item, item.copy()))
        elif isinstance(item, torch.Generator):
            self.generators.append((item, item.get_state()))
        elif isinstance(item, random.Random):
            self.generators.append((item, item.getstate()))
        elif isinstance(item, np.random.Generator | np.random.RandomState):
            self.generators.append((item, _numpy_state(item)))
        elif isinstance(item, types.FunctionType):
            ours = (item.__module__ or "").startswith("normscope.")  # an observer
            if not ours and not _foreign(item.__module__):
                yield from self._cells(item)
                yield from (item.__dict__, item.__defaults__ or ())
        elif isinstance(item, types.MethodType):
            yield item.__self__
            yield item.__func__
        elif isinstance(item, functools.partial):
            yield from (item.func, item.args, item.keywords)
        else:
            yield from self._attributes(item)

    def _attributes(self, item: Any) -> Iterator[Any]:
        kind = type(item)
        if _foreign(kind.__module__) or kind.__module__ == "collections":
            return
        if _slots(kind):
            self.places.append(place := Place(Slots(item), Slots(item).read()))
            yield from place.items.values()
        if hasattr(item, "__dict__"):
            yield item.__dict__

    def _cells(self, function: types.FunctionType) -> Iterator[Any]:
        for cell in function.__closure__ or ():
            place = Place(cell, _contents(cell))
            self.places.append(place)
            yield from place.items

    def restore_generators(self) -> None:
        """Generators as they were."""
        for generator, state in self.generators:
            if isinstance(generator, torch.Generator):
                if not torch.equal(generator.get_state(), state):
                    generator.set_state(state)
            elif isinstance(generator, random.Random):
                generator.setstate(state)
            elif isinstance(generator, np.random.Generator):
                generator.bit_generator.state = state
            else:
                generator.set_state(state)

    @property
    def written(self) -> list[tuple[np.ndarray, np.ndarray]]:
        """The arrays that hold other numbers now, and what they held."""
        return [
            (array, copy) for array, copy in self.arrays
            if array.shape == copy.shape and array.flags.writeable and not _same_bytes(array, copy)
        ]  # fmt: skip

    def restore_randomness(self) -> None:
        """Generators and arrays as they were."""
        self.restore_generators()
        for array, copy in self.written:
            array[...] = copy


def _same_bytes(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two arrays of one shape and type hold the same bits, NaN too."""
    a, b = (np.ascontiguousarray(x).reshape(-1).view(np.uint8) for x in (one, other))
    whole = len(a) // 8 * 8  # eight bytes at a time
    return np.array_equal(a[:whole].view(np.uint64), b[:whole].view(np.uint64)) and np.array_equal(a[whole:], b[whole:])


def _globals(root: Any) -> list[Any]:
    """Models and containers at the top of a user's file that a function of his names."""
    function = getattr(root, "__func__", root)
    if not isinstance(function, types.FunctionType) or _foreign(function.__module__):
        return []
    named = (function.__globals__.get(name) for name in function.__code__.co_names)
    return [value for value in named if isinstance(value, nn.Module | list | tuple | dict)]


def _numpy_state(generator: Any) -> Any:
    if isinstance(generator, np.random.Generator):
        return generator.bit_generator.state
    return generator.get_state()


@functools.cache
def _foreign(module: str | None) -> bool:
    return (module or "builtins").partition(".")[0] in _FOREIGN
