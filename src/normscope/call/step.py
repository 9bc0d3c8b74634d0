"""A training step as the user will take it: model, batch, loss and mode, read once and checked at the door."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import InitVar, dataclass, field, fields, replace
from functools import cached_property
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from normscope.call.arguments import check_filled, check_nested, first_tensor, own_call, own_copy, read_inputs, tensors
from normscope.call.batches import check_batches, pull, read_batch
from normscope.call.losses import COTANGENT, Loss, LossLike
from normscope.call.refusals import is_torchs, refusal_of, where
from normscope.call.samples import Samples, from_layout, is_sequence_first, read_samples
from normscope.call.targets import what
from normscope.call.traceless import Traceless
from normscope.core.errors import UsageError, seed_of, shown, whole_number
from normscope.core.tensors import check_plain

T = TypeVar("T")
MODES = ("train", "eval")


@dataclass(frozen=True, repr=False)
class Step:
    """One training step: what every verb reads its arguments into, and takes in a model's place.

    model: any ``nn.Module``; what ``torch.compile`` or ``DataParallel`` wrapped around it is looked through.
    inputs: a tensor is the one argument; a tuple or list the positional, a mapping the keyword arguments; another
        object that holds tensors (a graph, a ``PackedSequence``) the one argument.
    targets, loss: see `Loss`: a name, a torch module or function, a callable (outputs, targets), or nothing.
    optimizer: the one that will train; ``train_step(model, optimizer, loss_fn, inputs, targets) -> loss``: the loop's
        body.
    data, valid: a ``DataLoader`` or other iterable of batches, (inputs, targets) each or a dictionary; without
        ``inputs`` the first batch of ``data`` is the batch.
    step: ``callable(model, batch) -> loss``, where the loss cannot be had from outputs; a dictionary of losses is
        summed.
    mode: ``"train"``, ``"eval"``, or ``None``: each module as it is set.
    samples: the axis of the inputs that runs over samples, where it is not the one the targets have.
    seed: of every random number inside (dropout); the caller's streams are untouched.
    steps: how many updates the training is meant to have.

    Nothing is copied here, and nothing of the user's is ever changed: `run` puts everything back.
    Raises ``UsageError`` for what is no model, batch, loss or mode; ``docs/inputs.md`` is the page of the rules.
    """

    model: nn.Module
    inputs: Any = None
    targets: Any = None
    loss: LossLike = None
    optimizer: torch.optim.Optimizer | None = field(default=None, kw_only=True)
    data: Any = field(default=None, kw_only=True)
    valid: Any = field(default=None, kw_only=True)
    step: Callable[..., Any] | None = field(default=None, kw_only=True)
    train_step: Callable[..., Any] | None = field(default=None, kw_only=True)
    mode: str | None = field(default="train", kw_only=True)
    samples: int | None = field(default=None, kw_only=True)
    seed: int = field(default=0, kw_only=True)
    steps: int | None = field(default=None, kw_only=True)
    #: (data, inputs, targets) where the batch is the first of data: by it a step that ``replace`` makes still has all
    #: of data.
    first: InitVar[tuple[Any, Any, Any] | None] = field(default=None, kw_only=True)
    #: The model inside wrappers; the arguments of its call; the loss as read; what a reader must know;
    #: whether inputs were given, so that this batch is all there is.
    root: nn.Module = field(init=False)
    args: tuple[Any, ...] = field(init=False)
    kwargs: dict[str, Any] = field(init=False)
    criterion: Loss = field(init=False)
    notes: list[str] = field(init=False)
    alone: bool = field(init=False)

    def __post_init__(self, first: tuple[Any, Any, Any] | None) -> None:
        put = object.__setattr__
        check_model(self.model)
        root, notes = unwrap(self.model)
        if self.mode not in (None, *MODES):
            raise UsageError(f"mode must be 'train', 'eval' or None (as the model is); got {shown(self.mode)}.")
        seed_of(self.seed)
        if self.steps is not None:
            whole_number("steps", self.steps, 1, "It is how many updates the training is to have.")
        for name in ("inputs", "targets"):
            check_nested(name, getattr(self, name))
        check_plain("targets", *([self.targets] if isinstance(self.targets, Tensor) else tensors(self.targets)))
        for name in ("step", "train_step"):
            check_filled(name, getattr(self, name))
            if getattr(self, name) is not None and not callable(getattr(self, name)):
                raise UsageError(f"{name} must be a callable; got {type(getattr(self, name)).__name__}.")
        if self.optimizer is not None and not hasattr(self.optimizer, "param_groups"):
            raise UsageError(
                f"optimizer must be a torch optimizer; got {type(self.optimizer).__name__}. Pass the object."
            )
        for name in ("data", "valid"):
            check_batches(name, getattr(self, name))
        if first is not None and not isinstance(first, tuple):
            raise UsageError(f"first is what replace() hands on; got {shown(first)}. Leave it out.")
        read, inputs, targets = first or (None, None, None)
        again = first is not None and self.data is not None and self.inputs is inputs
        if again and self.targets is not targets:
            raise UsageError("targets came beside data, which has its own. Pass inputs and targets, or data= alone.")
        if again and self.data is not read:
            put(self, "inputs", None)
            put(self, "targets", None)
        put(self, "alone", self.inputs is not None and not again)
        put(self, "notes", notes)
        put(self, "root", root)
        put(self, "criterion", Loss.of(self.loss))
        if self.inputs is None:
            if self.data is None:
                raise UsageError("inputs must be a batch; got None. Pass inputs, or data= with a loader of batches.")
            if self.targets is not None:
                raise UsageError("targets came without inputs. Pass both, or data= with pairs (inputs, targets).")
            batch = pull(self.data, 1)[0]
            inputs, targets = (batch, None) if self._whole(root) else read_batch(batch)
            put(self, "inputs", inputs)
            put(self, "targets", targets)
        put(self, "first", None if self.alone else (self.data, self.inputs, self.targets))
        if self.step is None and self._whole(root):
            put(self, "step", lambda model, batch: model.training_step(batch, 0))
            notes.append("the loss is that of the model's training_step")
        if self.step is not None:
            put(self, "args", (self.inputs if self.targets is None else (self.inputs, self.targets),))
            put(self, "kwargs", {})
            if not any(True for _ in tensors(self.inputs)):
                raise UsageError(f"inputs hold no tensor, so there is no batch; got {type(self.inputs).__name__}.")
        else:
            args, kwargs = read_inputs(root, self.inputs)
            put(self, "args", args)
            put(self, "kwargs", kwargs)
        if self.samples is not None:
            _ = self.rows

    def _whole(self, root: nn.Module) -> bool:
        """Whether batches go as they are to ``step``, or to the ``training_step`` of a Lightning module with no other
        loss.
        """
        return self.step is not None or (self.loss is None and self.targets is None and _is_lightning(root))

    @classmethod
    def of(
        cls, model: Any, inputs: Any = None, targets: Any = None, loss: LossLike = None, *, mode: str | None = None,
        seed: int = 0, **more: Any,
    ) -> Step:  # fmt: skip
        """The step that a verb was asked for: made from its arguments, or the ``Step`` that stands in the model's
        place.

        What a verb is given beside a ``Step`` replaces that part of it.
        """
        more = {k: v for k, v in more.items() if v is not None}
        if not isinstance(model, Step):
            return cls(model, inputs, targets, loss, mode=mode, seed=seed, **more)
        if inputs is not None or more.get("data") is not None:
            raise UsageError(
                "A Step has its own batch; other inputs came beside it. Pass the Step alone, or "
                "dataclasses.replace(step, inputs=...)."
            )
        given = {"targets": targets, "loss": loss, "mode": mode, "seed": seed or None, **more}
        changed = {k: v for k, v in given.items() if v is not None}
        return replace(model, **changed) if changed else model

    def each(self) -> Iterator[Step]:
        """A step for every batch of ``data``; this one alone where it has inputs of its own."""
        if self.alone:
            yield self
            return
        rest = {
            f.name: getattr(self, f.name)
            for f in fields(self)
            if f.init and f.name not in ("inputs", "targets", "data")
        }
        for batch in pull(self.data):
            inputs, targets = (batch, None) if self.step is not None else read_batch(batch)
            yield Step(inputs=inputs, targets=targets, **rest)

    @cached_property
    def trace(self) -> Traceless:
        """What runs the model without a trace."""
        return self.traceless()

    def traceless(self, dtype: torch.dtype | None = None) -> Traceless:
        """What runs the model, its loss and ``step`` without a trace; floating numbers in ``dtype``, if it is given."""
        also = (self.criterion.call, self.step, self.train_step)
        return Traceless(self.root, mode=self.mode, seed=self.seed, dtype=dtype, also=also)

    @cached_property
    def rows(self) -> Samples:
        """How many samples there are, and along which axis."""
        found = read_samples(self.root, self.args, self.kwargs, self.targets, self.samples)
        found = self._from_layout() if found is None else found
        self.notes.extend(n for n in found.notes if n not in self.notes)
        return found

    @property
    def device(self) -> torch.device:
        """Where the model is: of its first parameter, else of its first buffer, else the inputs'."""
        held = itertools.chain(self.root.parameters(), self.root.buffers(), tensors((self.args, self.kwargs)))
        return next(held).device

    def run(self, work: Callable[[], T], given: Mapping[int, Tensor] | None = None) -> T:
        """``work()`` with the model on copies of all it holds, everything put back at the end; see `Traceless`."""
        return self.trace.run(work, given)

    def watched(self, hooks: Callable[[], Iterable[Any]], given: Mapping[int, Tensor] | None = None) -> None:
        """One forward pass, inside `run` and without gradients; ``hooks()`` sets some there and returns the handles."""

        def work() -> None:
            handles: list[Any] = []
            try:
                handles += hooks()
                with torch.no_grad():
                    args, kwargs, _ = self.arguments()
                    self.whole(args, kwargs)
            finally:
                for handle in handles:
                    handle.remove()

        self.run(work, given)

    def arguments(self, *, grad: bool = False, dtype: torch.dtype | None = None) -> tuple[Any, Any, list[Tensor]]:
        """Private copies of the arguments on the model's device, and the leaves of the floating ones if ``grad``."""
        return own_call(self.args, self.kwargs, grad=grad, dtype=dtype, device=self.device)

    def whole(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        """What the model returns, or what ``step`` does; inside `run`.

        An exception of the user's own code passes through with a note; one that torch raises in a layer is a
        ``UsageError`` that names the layer and what it got.
        """
        try:
            return self.step(self.root, *args) if self.step is not None else self.root(*args, **kwargs)
        except Exception as error:
            if type(error).__module__.startswith(
                "torch"
            ):  # a signal of its own, as of a checkpoint that has seen enough
                raise
            if not is_torchs(error):
                error.add_note(f"normscope: the model's forward raised this, in {where(error, self.root)}.")
                raise
            raise refusal_of(error, self.root, (self.args, self.kwargs)) from error

    def value(self, whole: Any, targets: Any) -> Tensor:
        """The loss of what the model returned."""
        if self.step is not None:
            return Loss("step").scalar(whole)
        return self.criterion.settled(whole, targets).value(whole, targets, self.seed)

    def settled(self, whole: Any, default: str = COTANGENT) -> Loss:
        """The loss, now that it is known what the model returns."""
        if self.step is not None:
            name = getattr(self.step, "__name__", type(self.step).__name__)
            return Loss("step" if name == "<lambda>" else name, "callable", call=lambda whole, _: whole)
        return self.criterion.settled(whole, self.targets, default)

    def own_targets(self) -> Any:
        """Private copies of the targets, on the model's device."""
        return own_copy(self.targets, self.device)

    def _from_layout(self) -> Samples:
        """One forward pass, to see what the first sequence-first module is given."""
        seen: list[Tensor] = []

        def look(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            x = first_tensor([*args, *kwargs.values()])
            if x is not None and not seen:
                seen.append(x.detach())

        modules = [m for m in self.root.modules() if is_sequence_first(m)]
        self.watched(lambda: [m.register_forward_pre_hook(look, with_kwargs=True) for m in modules])
        found = [x for x in tensors((self.args, self.kwargs)) if x.dim() > 1]
        found.sort(key=lambda x: not x.is_floating_point())
        return from_layout(found[0], seen[0] if seen else None)

    def __repr__(self) -> str:
        came = ", ".join(what(x) for x in list(tensors((self.args, self.kwargs)))[:3])
        loss = self.criterion.name or "its own or by the targets"
        return f"Step({type(self.root).__name__} on {came}; loss {loss}, mode {self.mode})"


def check_model(model: Any, *, lazy: bool = False) -> None:
    """``UsageError`` for what is no model that can be run in Python on numbers; ``lazy``: shapes may still be
    unknown.
    """
    if not isinstance(model, nn.Module):
        name = getattr(model, "__name__", type(model).__name__)
        hint = f" Pass {name}(...)." if isinstance(model, type) else ""
        raise UsageError(f"model must be an nn.Module; got {name}.{hint}")
    scripted = [name for name, m in model.named_modules() if isinstance(m, torch.jit.ScriptModule)]
    if scripted and not (lazy and scripted[0]):  # a tracker only looks at the modules around it
        part = (
            f"{scripted[0]!r} is a TorchScript one"
            if scripted[0]
            else f"got a TorchScript one ({type(model).__name__})"
        )
        raise UsageError(f"model must be a Python module; {part}. Pass the module that was scripted.")
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if nn.parameter.is_lazy(tensor):
            if lazy:
                continue
            raise UsageError(f"{name!r} has no shape yet (a lazy module): run one forward pass first.")
        if tensor.is_meta:
            raise UsageError(f"{name!r} holds no numbers (meta device): load or initialize the model first.")
    quantized = [
        n
        for n, m in model.named_modules()
        if type(m).__module__.startswith(("torch.ao.nn.quantized", "torch.nn.quantized"))
    ]
    if quantized:
        raise UsageError(
            f"model must be in floating point; {quantized[0]!r} is quantized. Pass the model before conversion."
        )


def copied(model: nn.Module) -> nn.Module:
    """A deep copy; ``UsageError`` where a model cannot be copied."""
    try:
        return copy.deepcopy(model)
    except (RuntimeError, TypeError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise UsageError(
            f"This works on copies, and a {type(model).__name__} cannot be copied ({first}). Pass a function that "
            "makes it, or a model without tensors that were computed before."
        ) from error


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


def _is_lightning(model: nn.Module) -> bool:
    return any(c.__name__ == "LightningModule" for c in type(model).__mro__)
