"""Where a probe looks, and how it leaves no trace. The only place that sets hooks on a user's model."""

from __future__ import annotations

import fnmatch
import random
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from normscope.core.errors import UsageError, unknown

#: Modules whose output is their input seen otherwise, or noise put on it.
_TRANSPARENT = (nn.Identity, nn.Flatten, nn.Unflatten, nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d,
                nn.AlphaDropout, nn.FeatureAlphaDropout)  # fmt: skip
#: Modules that compute without calling their children.
_WHOLE = (nn.MultiheadAttention, nn.RNNBase)


@dataclass
class Tap:
    """One module under observation: its path, itself, and its place in the order of first execution (from 1)."""

    name: str
    module: nn.Module
    layer: int = 0
    calls: int = 0

    @property
    def kind(self) -> str:
        """Class of the module."""
        return type(self.module).__name__


def unwrap(model: nn.Module) -> tuple[nn.Module, list[str]]:
    """The model under ``torch.compile``, ``DataParallel`` or ``DistributedDataParallel``, and what was taken off."""
    notes: list[str] = []
    while True:
        inner = getattr(model, "_orig_mod", None)
        if inner is None and isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            inner = model.module
        if not isinstance(inner, nn.Module):
            return model, notes
        notes.append(f"{type(model).__name__} was looked through: the module inside it ran, eagerly, on one device")
        model = inner


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


def first_tensor(output: Any) -> Tensor | None:
    """The tensor that stands for a module's output: itself, or the first floating one of a tuple, mapping, dataclass."""
    if isinstance(output, Tensor):
        return output if output.is_floating_point() else None
    if isinstance(output, Mapping):
        for key in ("logits", "last_hidden_state", "out"):
            if isinstance(output.get(key), Tensor):
                return output[key]
        output = list(output.values())
    elif hasattr(output, "__dataclass_fields__"):
        output = [getattr(output, name) for name in output.__dataclass_fields__]
    if isinstance(output, Sequence) and not isinstance(output, str):
        for item in output:
            if (found := first_tensor(item)) is not None:
                return found
    return None


#: Called with (tap, call, output) after each observed module.
Observer = Callable[[Tap, int, Tensor], None]


def _in_place(module: nn.Module) -> bool:
    return bool(getattr(module, "inplace", False))


@contextmanager
def observed(taps: list[Tap], observer: Observer) -> Iterator[None]:
    """Forward hooks on the taps; each output tensor is shown once, to the first module that returns it.

    Layers are numbered as they first run. The hooks come off in any case.
    """
    seen: list[tuple[weakref.ref[Tensor], int] | None] = [None]
    order = iter(range(1, len(taps) + 1))
    handles = []
    by_module: dict[nn.Module, Tap] = {}
    for tap in taps:
        by_module.setdefault(tap.module, tap)

    def hook(module: nn.Module, _inputs: Any, output: Any) -> None:
        if torch.compiler.is_compiling():  # never into a compiled graph, which would keep it
            return
        tensor = first_tensor(output)
        if tensor is None or tensor.dim() == 0:
            return
        # An in-place module returns its input object, changed: the version tells it from a container's passing on.
        last, version = seen[0], -1 if tensor.is_inference() else tensor._version
        if last is not None and tensor is last[0]() and version == last[1] and not _in_place(module):
            return
        seen[0] = weakref.ref(tensor), version
        tap = by_module.get(module)
        if tap is None:  # a replica that nn.DataParallel made for another device
            return
        if not tap.layer:
            tap.layer = next(order)
        call, tap.calls = tap.calls, tap.calls + 1
        observer(tap, call, tensor)

    try:
        for module in by_module:
            handles.append(module.register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass
class _Snapshot:
    flags: list[tuple[nn.Module, bool]] = field(default_factory=list)
    buffers: list[tuple[nn.Module, dict[str, Tensor | None], set[str]]] = field(default_factory=list)
    values: dict[Tensor, Tensor] = field(default_factory=dict)
    grads: list[tuple[nn.Parameter, Tensor | None]] = field(default_factory=list)
    plain: list[tuple[nn.Module, dict[str, Tensor]]] = field(default_factory=list)  # neither parameters nor buffers


@contextmanager
def no_trace(model: nn.Module, *, mode: str | None, seed: int) -> Iterator[None]:
    """Run a block on ``model`` with its own random stream, then put everything back bit for bit.

    Restored, also after an exception: training flags, buffers (identity and values), tensors that are plain attributes
    (identity: spectral and weight norm put a new one in every forward), ``.grad`` (identity), the
    random states of torch (CPU and CUDA), numpy and Python. Inside, the streams start from ``seed``, gradients are
    on, inference mode is off, and compiled submodules run eagerly. Parameters are not copied: a forward pass that
    changes them in place is the user's, and `probe` notes it.
    """
    snap = _Snapshot()
    for module in model.modules():
        snap.flags.append((module, module.training))
        snap.buffers.append((module, dict(module._buffers), set(module._non_persistent_buffers_set)))
        snap.plain.append((module, {k: v for k, v in module.__dict__.items() if isinstance(v, Tensor)}))
        snap.values |= {b: b.detach().clone() for b in module._buffers.values() if b is not None}
    snap.grads = [(p, p.grad) for p in model.parameters()]
    devices = sorted({t.device.index for t in model.parameters() if t.device.type == "cuda"})
    python, legacy = random.getstate(), np.random.get_state()  # noqa: NPY002 - the user's forward may draw from it
    with torch.random.fork_rng(devices=devices), torch.inference_mode(False), torch.enable_grad():
        try:
            torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every CUDA device too
            for device in devices:
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(seed)
            random.seed(seed)
            # The model runs on copies of its buffers: the originals keep their version, graph and storage.
            copies = {b: v.clone() for b, v in snap.values.items()}
            for module, were, _ in snap.buffers:
                for key, buffer in were.items():
                    module._buffers[key] = None if buffer is None else copies[buffer]
            for parameter, _ in snap.grads:
                parameter.grad = None
            np.random.seed(seed % 2**32)  # noqa: NPY002
            if mode is not None:
                for module in model.modules():  # the flag alone: a user's train() may do more than set it
                    module.training = mode == "train"
            # Compiled modules exist only once dynamo was imported, and importing it takes seconds.
            compiled = "torch._dynamo" in sys.modules
            with torch.compiler.set_stance("force_eager") if compiled else nullcontext():
                yield
        finally:
            with torch.no_grad():
                for module, were, unsaved in snap.buffers:
                    module._buffers.clear()
                    module._buffers.update(were)
                    module._non_persistent_buffers_set.clear()
                    module._non_persistent_buffers_set.update(unsaved)
                for buffer, value in snap.values.items():  # changed under another name
                    if buffer.shape != value.shape:
                        buffer.set_(value)  # type: ignore[call-overload]
                    elif not _identical(buffer, value):
                        buffer.copy_(value)
            for module, attributes in snap.plain:
                module.__dict__.update(attributes)
            for module, flag in snap.flags:
                module.training = flag
            for parameter, grad in snap.grads:
                parameter.grad = grad
            random.setstate(python)
            np.random.set_state(legacy)  # noqa: NPY002


def _identical(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and a.dtype == b.dtype and torch.equal(a, b)


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


def own_copy(value: Any) -> Any:
    """A tensor's private copy, gradients off; what is inside tuples, lists and dicts too."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if type(value) in (tuple, list):
        return type(value)(own_copy(v) for v in value)
    return {k: own_copy(v) for k, v in value.items()} if type(value) is dict else value


def as_call(inputs: Any, *, grad: bool) -> tuple[tuple[Any, ...], dict[str, Any], list[Tensor]]:
    """``inputs`` as the arguments of a forward call, every tensor a private copy, and the floating copies' leaves.

    A tensor is one positional argument, a tuple or list several, a mapping keyword arguments (as Hugging Face does).
    """
    leaves: list[Tensor] = []

    def own(value: Any) -> Any:
        if type(value) is dict:
            return {k: own(v) for k, v in value.items()}
        if type(value) in (tuple, list):
            return type(value)(own(v) for v in value)
        if not isinstance(value, Tensor):
            return value
        if not (grad and value.is_floating_point()):
            return value.detach().clone()
        leaf = value.detach().clone().requires_grad_()
        leaves.append(leaf)
        return leaf.clone()  # not a leaf: a model may change its input in place

    if isinstance(inputs, Tensor):
        return (own(inputs),), {}, leaves
    if isinstance(inputs, Mapping):
        return (), {k: own(v) for k, v in inputs.items()}, leaves
    if isinstance(inputs, tuple | list):
        return tuple(own(v) for v in inputs), {}, leaves
    raise UsageError(
        f"inputs must be a tensor, a tuple of arguments or a dict of keyword arguments; got {type(inputs).__name__}."
    )


def batch_size(inputs: Any) -> int:
    """Length of the first tensor of the inputs; ``UsageError`` when there is none."""
    if not isinstance(inputs, Tensor | Mapping | tuple | list):
        raise UsageError(
            f"inputs must be a tensor, a tuple of arguments or a dict of keyword arguments; got {type(inputs).__name__}."
        )
    values = list(inputs.values()) if isinstance(inputs, Mapping) else inputs
    for value in [values] if isinstance(values, Tensor) else values:
        if isinstance(value, Tensor) and value.dim() > 0:
            return len(value)
    raise UsageError("inputs hold no tensor with a batch axis, so there is nothing to probe.")


def has_samples(x: Tensor, samples: int) -> bool:
    """Whether one of the first two axes of ``x`` runs over the samples, alone or merged with another axis."""
    if x.dim() == 0 or x.numel() == 0:
        return False
    return len(x) % samples == 0 or (x.dim() > 1 and x.shape[1] == samples)


def as_rows(x: Tensor, samples: int, *, tokens: bool) -> Tensor:
    """``x`` with one row a sample (or a token of a sequence (n, t, d), with ``tokens``).

    The batch axis is the first; or the second, as in torch's recurrent layers, if only that has the length; a first
    axis that merges samples with windows or tokens is split, samples outermost.
    """
    if len(x) % samples and x.dim() > 1 and x.shape[1] == samples:
        x = x.transpose(0, 1)
    if tokens and x.dim() == 3:
        return x.flatten(0, 1)
    return x if len(x) == samples or tokens else x.reshape(samples, -1, *x.shape[1:])
