"""Where a probe looks: the modules it observes, and those that keep statistics of the batch."""

from __future__ import annotations

import fnmatch
import itertools
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils import parametrize

from normscope.call.arguments import first_tensor
from normscope.call.functional import Functions, enclosing
from normscope.call.samples import SEQUENCE
from normscope.call.streams import Streams, Sum
from normscope.core.errors import UsageError, unknown

#: Modules whose output is their input seen otherwise, or noise put on it.
_TRANSPARENT = (nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d,
                nn.AlphaDropout, nn.FeatureAlphaDropout)  # fmt: skip
#: Modules that compute without calling their children.
_WHOLE = (nn.MultiheadAttention, nn.RNNBase)


@dataclass
class Tap:
    """One module under observation: its path, itself, and its place in the order of first execution (from 1).

    weighted: whether it has weights of its own though its module holds none (a functional product; the input).
    parameters: those it uses, for a functional product.
    """

    name: str
    module: nn.Module
    layer: int = 0
    calls: int = 0
    weighted: bool = False
    parameters: tuple[str, ...] = ()

    @property
    def kind(self) -> str:
        """Class of the module."""
        return type(self.module).__name__


def find_taps(model: nn.Module, layers: str | Sequence[str] | None = None) -> list[Tap]:
    """The modules to observe, in the order of ``named_modules``.

    layers: glob patterns on module paths (``"*"`` is every module). Default: every module without children,
        marked with ``normscope_layer``, or repeated (an element of a ``ModuleList``, a composite element of a
        ``Sequential``); not those that only pass on their input (identity, flatten, dropout).
    Raises ``UsageError`` for a pattern that matches nothing.
    """
    named = {name: module for name, module in model.named_modules() if name}
    if layers is None and _leaf(model):
        return [Tap("", model)]
    if layers is None:
        return [Tap(name, module) for name, module in _default(model)] or [Tap("", model)]
    if not isinstance(layers, str) and not (isinstance(layers, Sequence) and all(isinstance(x, str) for x in layers)):
        raise UsageError(f"layers must be patterns of module paths; got {layers!r}. Pass '*.norm' or ['0', '2'].")
    patterns = [layers] if isinstance(layers, str) else list(layers)
    found: dict[str, nn.Module] = {}
    for pattern in patterns:
        hits = fnmatch.filter(named, pattern)
        if not hits:
            raise unknown("module that matches the pattern", pattern, list(named)[:40])
        found |= {name: named[name] for name in hits}
    return [Tap(name, module) for name, module in named.items() if name in found]


def _leaf(module: nn.Module) -> bool:
    return (
        not any(True for _ in module.children())
        or isinstance(module, _WHOLE)
        or getattr(module, "normscope_layer", False)
        or parametrize.is_parametrized(module)
    )


def _default(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    for key, child in module.named_children():
        name = f"{prefix}{key}"
        leaf = _leaf(child)
        repeated = isinstance(module, nn.ModuleList | nn.ModuleDict | nn.Sequential)
        if leaf:
            if not isinstance(child, _TRANSPARENT):
                yield name, child
            continue
        yield from _default(child, f"{name}.")
        if repeated and not isinstance(child, nn.ModuleList | nn.ModuleDict):
            yield name, child


#: Modules whose last axis is features, and those whose second axis is channels.
_FEATURES = (nn.Linear, nn.Embedding, nn.LayerNorm, nn.RMSNorm, *SEQUENCE)
_CHANNELS = (_ConvNd, _NormBase, nn.GroupNorm)


class LastAxis:
    """Whether the last axis of what ran holds features (tokens before it), as layers with weights tell it.

    What has no weights of its own (activations, containers) is as the last layer that said, where the shape is the
    same.
    """

    def __init__(self) -> None:
        self._features, self._shape = False, torch.Size()

    def features(self, tap: Tap, x: Tensor) -> bool:
        """Of the output ``x`` of a tap, called in the order of execution."""
        module = tap.module
        own = any(x.shape[-1] in p.shape for p in module.parameters(recurse=False))
        if isinstance(module, (*_FEATURES, *_CHANNELS)) or own:
            self._features, self._shape = not isinstance(module, _CHANNELS), x.shape
        return self._features and x.shape == self._shape


#: Called with (tap, call, output) after each observed module.
Observer = Callable[[Tap, int, Tensor], None]


def _in_place(module: nn.Module) -> bool:
    return bool(getattr(module, "inplace", False))


@contextmanager
def observed(taps: list[Tap], observer: Observer, root: nn.Module | None = None) -> Iterator[Functions | None]:
    """Forward hooks on the taps; each output tensor is shown once, to the first module that returns it.

    Layers are numbered as they first run. root: the model whose functional calls are shown too
    (`Functions`), as taps of their own, named after the module around them and the function. The hooks come off in any
    case.
    """
    seen: list[tuple[weakref.ref[Tensor], int] | None] = [None]
    order = itertools.count(1)
    by_module: dict[nn.Module, Tap] = {}
    for tap in taps:
        by_module.setdefault(tap.module, tap)

    def show(tap: Tap, tensor: Tensor) -> None:
        seen[0] = weakref.ref(tensor), _version(tensor)
        if not tap.layer:
            tap.layer = next(order)
        call, tap.calls = tap.calls, tap.calls + 1
        if streams is not None:
            streams.shown(tap, tensor)
        observer(tap, call, tensor)

    def hook(module: nn.Module, _inputs: Any, output: Any) -> None:
        if torch.compiler.is_compiling():  # never into a compiled graph, which would keep it
            return
        with torch._C.DisableTorchFunction():  # what is asked here is not the model's: no mode is to see it
            look(module, output)

    def look(module: nn.Module, output: Any) -> None:
        tensor = first_tensor(output)
        if tensor is None or tensor.dim() == 0:
            return
        # An in-place module returns its input object, changed: the version tells it from a container's passing on.
        last = seen[0]
        if last is not None and tensor is last[0]() and _version(tensor) == last[1] and not _in_place(module):
            return
        tap = by_module.get(module)
        if tap is None:  # a replica that nn.DataParallel made for another device
            seen[0] = weakref.ref(tensor), _version(tensor)
            return
        show(tap, tensor)

    mode = streams = None
    if root is not None:
        calls, streams = _Calls(root, by_module, show), Streams(root)
        mode = Functions(calls.seen)
        mode.streams, mode.called = streams, partial(calls.called, streams)
    try:
        try:
            for module in by_module:
                module.register_forward_hook(hook)
            with nullcontext() if mode is None or streams is None else streams.listening(), mode or nullcontext():
                yield mode
        finally:
            _take_off(hook, by_module)
    finally:  # an interrupt can fall into one of them only
        _take_off(hook, by_module)


def _take_off(hook: Callable[..., Any], modules: Iterable[nn.Module]) -> None:
    for hooks in (module._forward_hooks for module in modules):
        for key in [k for k, h in hooks.items() if h is hook]:
            del hooks[key]


def _version(tensor: Tensor) -> int:
    return -1 if tensor.is_inference() else tensor._version


class _Calls:
    """Functional calls as taps: ``block.relu``, and ``block.relu_2`` for the second one in the same pass."""

    def __init__(self, root: nn.Module, taps: dict[nn.Module, Tap], show: Callable[[Tap, Tensor], None]) -> None:
        self.root, self.taps, self.show = root, taps, show
        self.counts: dict[tuple[nn.Module, str], int] = {}
        self.names = {m: n for n, m in root.named_modules()}
        self.parameters = {id(p): n for n, p in root.named_parameters()}

    def seen(self, module: nn.Module, name: str, kind: type[nn.Module], out: Tensor, used: list[nn.Parameter]) -> None:
        """Show the output of a function as that of a module of ``kind``."""
        tap = self.taps.get(module)
        if module not in self.names or not out.dim():
            return
        if used and tap is not None and module is not self.root:
            return  # a leaf that multiplies by its own weight: it is the layer
        count = self.counts[module, name] = self.counts.get((module, name), 0) + 1
        path = ".".join(part for part in (self.names[module], name if count == 1 else f"{name}_{count}") if part)
        parameters = tuple(self.parameters[id(p)] for p in used if id(p) in self.parameters)
        self.show(Tap(path, _blank(kind), weighted=bool(used), parameters=parameters), out)

    def called(self, streams: Streams, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> None:
        """A function ran; a sum behind a block is shown as a layer."""
        block = streams.called(func, args, kwargs, out, enclosing)
        if block is not None:
            tap = Tap(f"{self.names[block]}.add", Sum())
            self.show(tap, out)
            streams.ended(block, tap)


def _blank(kind: type[nn.Module]) -> nn.Module:
    """A module of this class without weights: what a functional call is taken for."""
    module = kind.__new__(kind)
    nn.Module.__init__(module)
    return module


def normalizers(model: nn.Module) -> list[tuple[str, nn.Module]]:
    """Modules that keep running statistics over the batch (torch's batch norms, ours, and look-alikes)."""
    return [
        (name, m)
        for name, m in model.named_modules()
        if isinstance(getattr(m, "running_mean", None), Tensor) and isinstance(getattr(m, "running_var", None), Tensor)
    ]


def untrained_statistics(module: nn.Module) -> bool:
    """Whether running statistics have never moved: counted zero times, or still mean 0 and variance 1."""
    tracked = getattr(module, "num_batches_tracked", None)
    if isinstance(tracked, Tensor) and int(tracked) > 0:
        return False
    mean, var = module.running_mean, module.running_var
    return bool((mean == 0).all() and (var == 1).all())  # type: ignore[union-attr]
