"""What a batch is: the arguments of a forward call, how many samples they hold and along which axis, and the
outputs.
"""

from __future__ import annotations

import copy
import inspect
import itertools
from collections.abc import Callable, Iterator, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from normscope.call.reach import attributes, retupled
from normscope.core.errors import DoesNotRun, UsageError
from normscope.core.memory import check_room
from normscope.core.tensors import check_plain

#: Where the outputs lie in what a model returns, when it is no tensor; then the first floating tensor.
OUTPUT_KEYS = ("logits", "last_hidden_state", "out")


#: Layouts of tensors that are handed on as they are: few functions take them, and none in the place of a dense one.
SPARSE = {torch.sparse_coo, torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc}


def mapped(value: Any, change: Callable[[Tensor], Any], done: dict[int, Any] | None = None) -> Any:
    """The same structure with ``change`` of dense tensors: tuples, lists, mappings, dataclasses, and copies of other
    objects.

    done: copies of objects, by ``id``: an object may hold itself.
    """
    done = {} if done is None else done
    if isinstance(value, Tensor):
        return value if value.layout in SPARSE else change(value)
    if isinstance(value, PackedSequence):
        return value._replace(data=change(value.data))
    if isinstance(value, tuple | list):
        items = [mapped(v, change, done) for v in value]
        return retupled(value, items) if isinstance(value, tuple) else items
    if type(value) is dict:
        return {k: mapped(v, change, done) for k, v in value.items()}
    if isinstance(value, Mapping) or _holds(value):
        return _other(value, change, done)
    return value


def _holds(value: Any) -> bool:
    """Whether a value has attributes that may be tensors of a batch."""
    return bool(attributes(value)) and not isinstance(value, type | nn.Module)


def _other(value: Any, change: Callable[[Tensor], Any], done: dict[int, Any]) -> Any:
    """A copy of an object that holds tensors (a graph, a ``BatchEncoding``, a model's output class), them changed."""
    if id(value) in done:
        return done[id(value)]
    if callable(value) or not any(True for _ in tensors(value)):
        return value
    twin = done[id(value)] = copy.copy(value)
    if isinstance(value, Mapping) and hasattr(twin, "__setitem__"):
        for key, item in value.items():
            twin[key] = mapped(item, change, done)
        return twin
    for key, item in attributes(value).items():
        object.__setattr__(twin, key, mapped(item, change, done))
    return twin


def check_nested(name: str, value: Any, depth: int = 20) -> None:
    """``UsageError`` for a list in a list in a list without end, and for a module of Python's in a batch."""
    if not depth or isinstance(value, ModuleType):
        what = "a module of Python's" if depth else "lists in lists that do not end, or nearly"
        raise UsageError(f"{name} must be tensors, or lists and dicts of them; got {what}. Pass the batch alone.")
    if isinstance(value, Mapping | tuple | list):
        for item in itertools.islice(value.values() if isinstance(value, Mapping) else value, 1000):
            check_nested(name, item, depth - 1)


def check_filled(what: str, module: Any) -> None:
    """``UsageError`` for a module, whoever's, some parameter or buffer of which holds no numbers yet."""
    for name, held in [*module.named_parameters(), *module.named_buffers()] if isinstance(module, nn.Module) else []:
        if nn.parameter.is_lazy(held) or held.is_meta:
            raise UsageError(f"The {what}'s {name!r} must hold numbers; it holds none yet. Run the {what} once.")


def tensors(value: Any, depth: int = 6) -> Iterator[Tensor]:
    """Every dense tensor in a structure, in its order. A sparse one (a graph's adjacency) goes with them as it is."""
    if isinstance(value, Tensor):
        if value.layout not in SPARSE:
            yield value
    elif isinstance(value, PackedSequence):
        yield value.data
    elif depth and isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item, depth - 1)
    elif depth and isinstance(value, tuple | list):
        for item in value:
            yield from tensors(item, depth - 1)
    elif depth and not callable(value) and _holds(value):
        for item in attributes(value).values():
            yield from tensors(item, depth - 1)


def read_inputs(model: nn.Module, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """``inputs`` as positional and keyword arguments of the model.

    A tensor is the one argument; a tuple or list the positional arguments, or the one argument where a user's model
    does not take so many; a mapping the keyword arguments, or the one argument where it has none of these names; any
    other object that holds tensors the one argument.
    Raises ``UsageError`` for what is no batch, and for arguments that ``forward`` does not take.
    """
    args: tuple[Any, ...] = (inputs,)
    kwargs: dict[str, Any] = {}
    if isinstance(inputs, Mapping):
        if not _refusal(model, (), inputs) or _refusal(model, args, {}):
            args, kwargs = (), dict(inputs)
    elif isinstance(inputs, tuple | list) and not hasattr(inputs, "_fields"):  # a named tuple is one argument
        own = not type(model).__module__.startswith("torch.")  # torch's modules of one argument take one tensor
        whole = own and _refusal(model, tuple(inputs), {}) and not _refusal(model, args, {})
        args = args if whole else tuple(inputs)
    elif not isinstance(inputs, Tensor | tuple) and not _is_batch(inputs):
        raise _no_batch(inputs)
    _check_tensors(args, kwargs)
    if wrong := _refusal(model, args, kwargs):
        raise DoesNotRun(_advice(model, inputs, wrong))
    return args, kwargs


def _is_batch(inputs: Any) -> bool:
    loader = isinstance(inputs, torch.utils.data.DataLoader | torch.utils.data.Dataset) or hasattr(inputs, "__next__")
    plain = inputs is None or isinstance(inputs, str | bytes | int | float | complex | type | nn.Module)
    return not loader and not plain and not callable(inputs) and any(True for _ in tensors(inputs))


def _no_batch(inputs: Any) -> UsageError:
    name = type(inputs).__name__
    what = "inputs must be a tensor, a tuple of arguments, a dict of keyword arguments or an object that holds tensors"
    if isinstance(inputs, torch.utils.data.DataLoader | torch.utils.data.Dataset) or hasattr(inputs, "__next__"):
        return UsageError(f"{what}; got a {name}. Pass it as data={name.lower()}, or one batch of it.")
    if hasattr(inputs, "__array__"):
        return UsageError(f"{what}; got a {name}. Pass torch.as_tensor(inputs).")
    return UsageError(f"{what}; got {name}: {str(inputs)[:60]!r}. Pass the batch as the model takes it.")


def _check_tensors(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
    found = list(tensors((args, dict(kwargs))))
    for name, value in [*((f"inputs[{i}]", a) for i, a in enumerate(args)), *kwargs.items()]:
        if not isinstance(value, Tensor) and hasattr(value, "__array__") and hasattr(value, "dtype"):
            raise UsageError(f"{name} must be a tensor; got a {type(value).__name__}. Pass torch.as_tensor of it.")
    if not found:
        check_plain("inputs", *(a for a in (*args, *kwargs.values()) if isinstance(a, Tensor)))
        kinds = ", ".join(type(a).__name__ for a in (*args, *kwargs.values())) or "nothing"
        raise UsageError(f"inputs hold no tensor with a batch axis, so there is nothing to probe; got {kinds}.")
    check_plain("inputs", *found)


def _refusal(model: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str | None:
    """Why ``forward`` cannot be called like this, by its signature alone."""
    try:
        signature = inspect.signature(model.forward)
    except (TypeError, ValueError):  # built in, or a wrapper without one
        return None
    try:
        signature.bind(*args, **kwargs)
    except TypeError as error:
        return str(error)
    return None


def _advice(model: nn.Module, inputs: Any, wrong: str) -> str:
    names = list(inspect.signature(model.forward).parameters)
    takes = f"{type(model).__name__}.forward takes ({', '.join(names)})"
    if isinstance(inputs, tuple | list):
        came = f"got {len(inputs)} positional arguments"
        hint = (
            f"A model whose one argument is a {type(inputs).__name__} takes it as ({type(inputs).__name__},): "
            "inputs=(x,)."
        )
        if len(inputs) == 2 and len(names) == 1:
            hint = "If it is a batch: inputs, targets = batch; several batches come as data=. " + hint
    elif isinstance(inputs, Mapping):
        came, hint = f"got the keywords {', '.join(map(str, inputs))}", "Name them as forward does."
    else:
        came, hint = f"got one {type(inputs).__name__}", "Several arguments come as a tuple."
    return f"The inputs must be what the model takes: {takes}; {came} ({wrong}). {hint}"


def own_call(
    args: tuple[Any, ...], kwargs: Mapping[str, Any], *, grad: bool, dtype: torch.dtype | None = None,
    device: torch.device | None = None,
) -> tuple[tuple[Any, ...], dict[str, Any], list[Tensor]]:  # fmt: skip
    """Private copies of the arguments, and the leaves behind their floating tensors if ``grad``."""
    check_copy((args, kwargs), 1 + grad)
    leaves: list[Tensor] = []

    def own(x: Tensor) -> Tensor:
        x = x.detach()
        moved = x if device is None else x.to(device)
        if dtype is not None and moved.is_floating_point():
            moved = moved.to(dtype)
        twin = moved.clone() if moved.data_ptr() == x.data_ptr() else moved
        if not (grad and twin.is_floating_point()):
            return twin
        leaves.append(twin.requires_grad_())
        return twin.clone()  # not a leaf: a model may change its input in place

    own_args = tuple(mapped(a, own) for a in args)
    return own_args, {k: mapped(v, own) for k, v in kwargs.items()}, leaves


def check_copy(value: Any, copies: int = 1) -> None:
    """``UsageError`` where a copy would not fit: an expanded tensor is held nowhere yet."""
    size = sum(x.numel() * x.element_size() for x in tensors(value))
    check_room(copies * size, "A copy of the batch", "Take fewer samples.")


def own_copy(value: Any, device: torch.device | None = None) -> Any:
    """Private copies of the tensors in any structure, gradients off."""
    check_copy(value)
    return mapped(value, lambda x: x.detach().clone() if device is None else x.detach().to(device, copy=True))


def first_tensor(output: Any) -> Tensor | None:
    """The tensor that stands for a module's output: itself, one under `OUTPUT_KEYS`, or the first floating or complex
    one.
    """
    if isinstance(output, Tensor):
        return output if output.is_floating_point() or output.is_complex() else None
    if isinstance(output, PackedSequence):
        return None  # its rows are steps of samples, not samples
    if isinstance(output, Mapping):
        for key in OUTPUT_KEYS:
            if isinstance(output.get(key), Tensor):
                return output[key]
    for key in OUTPUT_KEYS:
        if isinstance(found := getattr(output, key, None), Tensor):
            return found
    return next((x for x in tensors(output) if (x.is_floating_point() or x.is_complex())), None)


def length(value: Any) -> int | None:
    """How many samples a value holds along its first axis: a tensor's, a list's, that of the first tensor in a
    structure.
    """
    if isinstance(value, PackedSequence):
        return int(value.batch_sizes[0])
    if isinstance(value, Tensor):
        return len(value) if value.dim() else None
    if isinstance(value, list | tuple) and value and not hasattr(value, "_fields"):
        inner = [length(v) for v in value]
        if len({v.dim() for v in value if isinstance(v, Tensor)}) > 1:  # inputs and targets, say
            return next((n for n in inner if n is not None), None)
        if any(n is None or n != inner[0] for n in inner) or (inner[0] or 0) <= len(value):
            return len(value)  # one entry a sample, as images of unequal size
        return inner[0]
    if isinstance(value, Mapping):
        return next((n for v in value.values() if (n := length(v)) is not None), None)
    return next((len(x) for x in tensors(value) if x.dim()), None)
