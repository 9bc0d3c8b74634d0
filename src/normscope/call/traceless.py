"""Run a user's model and leave nothing behind: it works on copies of every tensor it holds, and gets its own back."""

from __future__ import annotations

import functools
import os
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor, nn

from normscope.call.reach import MOST_BYTES, Place, Reach, retupled
from normscope.call.surroundings import Surroundings, unwind
from normscope.core.memory import check_copies

T = TypeVar("T")
P = ParamSpec("P")
#: One model runs at a time: torch's random streams and settings belong to the process.
_LOCK = threading.RLock()


#: Seconds that a fork waits for a run of another thread.
FORK = 10.0
_waited: list[bool] = []


def _wait() -> None:
    _waited.append(_LOCK.acquire(timeout=FORK))


def _go_on() -> None:
    if _waited.pop():
        _LOCK.release()


def _new_lock() -> None:
    global _LOCK
    _LOCK = threading.RLock()
    _waited.clear()


# A child must not wait for a thread that it does not have, nor for a lock of torch's that such a thread holds.
os.register_at_fork(before=_wait, after_in_parent=_go_on, after_in_child=_new_lock)


def alone(verb: Callable[P, T]) -> Callable[P, T]:
    """Decorator: calls wait for each other, and what an interrupt leaves of torch's state is put back. While one runs,
    another thread would find copies in the place of parameters.
    """

    @functools.wraps(verb)
    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        if _LOCK._is_owned():  # type: ignore[attr-defined]
            return verb(*args, **kwargs)
        with _LOCK:
            around = Surroundings(set())
            with around, around:
                return verb(*args, **kwargs)

    return call


def locked() -> threading.RLock:
    """The lock under which torch's random streams and settings may be changed for a while."""
    return _LOCK


class Traceless:
    r"""A model to be run any number of times, each time as if it had not been.

    Inside ``run`` every parameter, buffer and plain tensor that can be reached from the model (`Reach`) is replaced, by
    identity and wherever it is held, by a copy; containers, attributes, flags, hooks, random streams and settings are
    put back at the end. So a forward or backward pass may overwrite, grow, count or draw what it likes: the caller's
    objects are never touched. An exception, an interrupt at any moment included, changes nothing of this: two guards
    stand around the work, and an interrupt can hit only one of them.

    mode: ``"train"``, ``"eval"``, or ``None``: each module as it is. seed: of the random streams inside. also: the
    user's functions that run beside the model, a loss with a network of its own, say: what they hold is treated alike.
    Runs of several threads wait for each other.
    """

    def __init__(
        self, model: nn.Module, *, mode: str | None = None, seed: int = 0, dtype: torch.dtype | None = None,
        also: Sequence[Any] = (),
    ) -> None:  # fmt: skip
        self.also = also
        self.model, self.mode, self.seed, self.dtype = model, mode, seed, dtype
        #: Names of parameters that the last run itself wrote to (on the copies), and that it changed beyond undoing.
        self.rewritten: tuple[str, ...] = ()
        self.changed: tuple[str, ...] = ()

    def run(self, work: Callable[[], T], given: Mapping[int, Tensor] | None = None) -> T:
        """``work()`` with the model on copies.

        given: what stands for a tensor instead of a copy of it, by ``id``. With ``dtype`` floating copies have it.
        """
        with _LOCK:
            entry = _Entry(self, given or {})
            with entry.guard, torch._C._InferenceMode(False), entry:
                # Compiled modules exist only once dynamo was imported, and importing it takes seconds.
                compiled = "torch._dynamo" in sys.modules
                with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
                    return work()


class _Entry:
    """One run: what was there, and what stands in for it."""

    def __init__(self, owner: Traceless, given: Mapping[int, Tensor]) -> None:
        self.owner, self.given = owner, given
        self.reach = Reach.of([owner.model, *owner.also])
        self.guard = _Guard(self)
        named = list(owner.model.named_parameters())
        self.parameters = [(name, p, *_mark(p)) for name, p in named]
        devices = {p.device for _, p in named} | {b.device for b in owner.model.buffers()}
        self.surroundings = Surroundings(devices)
        self.touched = False
        #: Storages of the tensors that stand for themselves: a pass may give them others (``.data =``).
        self.storages = {id(p): p.detach() for _, p in named if self.given.get(id(p)) is p}
        self.dictionaries = {id(m.__dict__) for m in self.reach.modules}
        self.copies: dict[int, Tensor] = {}
        self.addresses: dict[int, tuple[int, int]] = {}

    def __enter__(self) -> None:
        self.touched = True
        owner = self.owner
        self.surroundings.seed(owner.seed)
        torch._C._set_grad_enabled(True)
        registered = {id(t) for m in self.reach.modules for t in (*m._parameters.values(), *m._buffers.values())}
        copies = self.copies = dict(self.given)
        check_copies((t for key, t in self.reach.tensors.items() if key in registered - copies.keys()), 1, "a copy")
        plain = 0
        for key, tensor in self.reach.tensors.items():
            if key in copies:
                continue
            if key not in registered:
                size = tensor.numel() * tensor.element_size()
                if plain + size > MOST_BYTES:
                    continue
                plain += size
            copies[key] = _copy(tensor, owner.dtype)
        self.addresses = {id(p): _mark(copies[id(p)]) for _, p, *_ in self.parameters}
        tuples: dict[int, tuple[Any, ...]] = {}
        for value in self.reach.tuples.values():
            _rebuilt(value, copies, tuples)
        others = copies.keys() | tuples.keys()
        for place in self.reach.places:
            items = place.items
            if items and not others.isdisjoint(map(id, items.values() if isinstance(items, dict) else items)):
                _substitute(place, copies, tuples)
        if owner.mode is not None:
            for module in owner.model.modules():  # the flag alone: a user's train() or __setattr__ may do more
                if "training" in module.__dict__:
                    module.__dict__["training"] = owner.mode == "train"
                else:
                    module.training = owner.mode == "train"

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        unwind(error)
        self.restore()

    def _same_storages(self) -> None:
        for _, p, *_ in self.parameters:
            storage = self.storages.get(id(p))
            if storage is not None and p.data_ptr() != storage.data_ptr():
                storage.copy_(p.detach())
                p.data = storage

    def _made(self, place: Place) -> dict[str, Tensor]:
        """Tensors that the pass left as attributes of a module where none was: its last features, say. They stay, as
        they would after the user's own call, without their graph.
        """
        found = {k: v for k, v in place.read().items() if isinstance(v, Tensor) and k not in place.items}
        return {k: v if v.grad_fn is None else v.detach() for k, v in found.items()}

    def _written(self, key: int) -> bool:
        return _mark(self.copies[key]) != self.addresses[key]

    def restore(self) -> None:
        """Everything as it was; idempotent."""
        if not self.touched:
            return
        self.surroundings.restore()  # first: a mode that is still on would see what comes
        for place in self.reach.places:
            if not place.holds(place.items):
                place.write(place.items | self._made(place) if id(place.owner) in self.dictionaries else place.items)
        self._same_storages()
        self.reach.restore_randomness()
        moved = {
            name for name, p, version, address in self.parameters
            if _mark(p) != (version, address)
        }  # fmt: skip
        given = {name for name, p, *_ in self.parameters if id(p) in self.given}
        self.owner.changed = tuple(sorted(moved - given))
        self.owner.rewritten = tuple(
            name for name, p, *_ in self.parameters
            if name not in given and id(p) in self.addresses and self._written(id(p))
        )  # fmt: skip
        self.touched = False


class _Guard:
    """Stands around the entry: restores what an interrupt in the entry itself left undone."""

    def __init__(self, entry: _Entry) -> None:
        self.entry = entry

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        unwind(error)
        self.entry.restore()


class Kept:
    """For long work on copies of models, in a ``with kept, kept:`` (an interrupt can hit one exit only): what the
    models hold in containers and closures, settings and random streams are as before at the end. Tensors are not
    copied.
    """

    def __init__(self, *models: Any) -> None:
        self.reach = Reach.of(models)
        self.surroundings = Surroundings(set())

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        unwind(error)
        self.surroundings.restore()
        for place in self.reach.places:
            place.write(place.items)
        self.reach.restore_randomness()


def _mark(tensor: Tensor) -> tuple[int, int]:
    """What changes when a tensor is written to."""
    return 0 if tensor.is_inference() else tensor._version, tensor.data_ptr()


def _copy(tensor: Tensor, dtype: torch.dtype | None) -> Tensor:
    value = tensor.detach().clone()
    if dtype is not None and value.is_floating_point():
        value = value.to(dtype)
    if nn.Parameter in type(tensor).__mro__:
        value = Tensor._make_subclass(type(tensor), value, tensor.requires_grad)
    elif tensor.requires_grad and tensor.is_leaf:
        value.requires_grad_()
    for name, more in getattr(tensor, "__dict__", {}).items():
        setattr(value, name, more)
    return value


def _rebuilt(value: tuple[Any, ...], copies: Mapping[int, Tensor], done: dict[int, tuple[Any, ...]]) -> tuple[Any, ...]:
    """The tuple with copies of its tensors, those in tuples inside it too; itself if it has none. ``done``: by
    ``id``.
    """
    if id(value) not in done:
        items = [_rebuilt(x, copies, done) if isinstance(x, tuple) else copies.get(id(x), x) for x in value]
        same = all(a is b for a, b in zip(items, value, strict=True))
        done[id(value)] = value if same else retupled(value, items)
    return done[id(value)]


def _substitute(place: Place, copies: Mapping[int, Tensor], tuples: Mapping[int, tuple[Any, ...]]) -> None:
    def other(item: Any) -> Any:
        return copies[id(item)] if id(item) in copies else tuples.get(id(item), item)

    items = place.items
    if isinstance(items, dict):
        changed = {key: new for key, item in items.items() if (new := other(item)) is not item}
        if changed:
            place.write(items | changed)
        return
    if isinstance(items, set):
        if any(id(item) in copies for item in items):
            place.write({other(item) for item in items})
        return
    fresh = [other(item) for item in items]
    if any(a is not b for a, b in zip(fresh, items, strict=True)):
        place.write(fresh)


def simple(model: nn.Module) -> bool:
    """Whether a backward pass through the model can run none of the user's code: only torch's modules and ours, no
    hooks.
    """
    hooks = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
    return all(
        type(m).__module__.startswith(("torch.nn.modules.", "normscope.")) and not any(getattr(m, h) for h in hooks)
        for m in model.modules()
    )
