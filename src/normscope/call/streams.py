"""The residual stream of a network of repeated blocks, found as it runs: who adds to what it was given, and the parts
that the layers play in it.

A block is an element of a container that has modules of its own. It is part of a residual stream if its input is a term
of a sum, in its own forward (x + f(x)) or around it (x + block(x)). No class is asked for its name.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from normscope.call.arguments import first_tensor, tensors
from normscope.call.attention import Attention, Listener

if TYPE_CHECKING:
    from normscope.call.taps import Tap

ADDS = {torch.add, Tensor.add, Tensor.add_, Tensor.__add__, Tensor.__radd__, Tensor.__iadd__}
#: The parts a layer may play: the outputs of blocks; within them attention, norms and all else; and what runs before
#: the first block, between and behind them. ``""``: the network has no residual stream.
PARTS = ("stream", "attention", "mlp", "branch", "norm", "embedding", "between", "head")
_NORMS = (nn.LayerNorm, nn.RMSNorm, nn.GroupNorm, _NormBase)

Ref = weakref.ref[Tensor]


@dataclass(eq=False)
class _Block:
    """One call of a block: its input, the sums in it so far, its layers with the number of sums before each, and the
    modules around attention with the same."""

    module: nn.Module
    given: Ref
    shape: torch.Size
    sums: int = 0
    adds: bool = False
    layers: list[tuple[Tap, int]] = field(default_factory=list)
    attends: list[tuple[nn.Module | None, int]] = field(default_factory=list)
    out: Ref | None = None
    end: Tap | None = None


class Sum(nn.Module):
    """What a sum behind a block is shown as."""


class Streams:
    """Listens to one forward pass of ``root``; `parts` says afterwards which part each layer played."""

    def __init__(self, root: nn.Module) -> None:
        self.names = {m: n for n, m in root.named_modules()}
        self.kinds = dict(_candidates(root))
        self._open: list[_Block] = []
        self._calls: list[_Block] = []
        self._outside: list[tuple[Tap, int]] = []
        self._norms: set[int] = set()
        self._last: tuple[Ref, Tap] | None = None
        self._listener = Listener()
        self._waiting: list[Attention] = []
        #: Told of every attention, with the layer that its heads went to; ``None``: nobody asks for the weights.
        self.attended: Callable[[Tap, Attention], None] | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Hooks on the blocks, inside."""
        handles: list[Any] = []
        try:
            for module in self.kinds:
                handles.append(module.register_forward_pre_hook(self._enter, with_kwargs=True, prepend=True))
                handles.append(module.register_forward_hook(self._leave))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        x = None if torch.compiler.is_compiling() else first_tensor([*args, *kwargs.values()])
        if x is not None and module in self.kinds:  # no replica of ``nn.DataParallel``
            self._open.append(_Block(module, weakref.ref(x), x.shape))

    def _leave(self, module: nn.Module, _: Any, output: Any) -> None:
        if all(block.module is not module for block in self._open):
            return
        while (block := self._open.pop()).module is not module:
            pass
        y = first_tensor(output)
        block.out = None if y is None else weakref.ref(y)
        if self._last is not None and y is not None and self._last[0]() is y:
            block.end = self._last[1]
        self._calls.append(block)
        if self._open:  # what is in a part of a block is in the block
            around = self._open[-1]
            around.layers += [(tap, around.sums) for tap, _ in block.layers]
            around.attends += [(at, around.sums) for at, _ in block.attends]

    def shown(self, tap: Tap, x: Tensor) -> None:
        """A layer ran: the attentions that wait are told with it."""
        self._last = weakref.ref(x), tap
        if self._open:
            self._open[-1].layers.append((tap, self._open[-1].sums))
        else:
            self._outside.append((tap, len(self._calls)))
        if _normalizes(tap.module, x):
            self._norms.add(id(tap))
        while self._waiting:
            attention = self._waiting.pop(0)
            if self.attended is not None:
                self.attended(tap, attention)

    def called(
        self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any, around: Any
    ) -> nn.Module | None:
        """A function ran; returns the block whose output was added to its input, where that is seen here.

        around: gives the module that called it.
        """
        if func in ADDS:
            return self._added(args, kwargs, out)
        if self._listener.ends(func, args, kwargs, out):
            if self._open:
                self._open[-1].attends.append((around(), self._open[-1].sums))
            if self.attended is not None and (attention := self._listener.read(func, args, kwargs, out)) is not None:
                self._waiting.append(attention)
        return None

    def _added(self, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> nn.Module | None:
        terms = list(tensors((list(args), dict(kwargs))))
        if len(terms) != 2 or not isinstance(out, Tensor) or terms[0].shape != terms[1].shape:
            return None
        block = self._open[-1] if self._open else None
        if block is not None and terms[0].shape == block.shape:
            block.sums += 1
            if any(x is block.given() for x in terms):
                block.adds = True
                return None
        before = self._calls[-1] if self._calls else None
        if before is None or before.adds or before.shape != out.shape or not before.layers:
            return None
        if any(x is before.given() or (before.out is not None and x is before.out()) for x in terms):
            before.adds = True  # x + block(norm(x)), in the forward around the block
            return before.module
        return None

    def ended(self, module: nn.Module, tap: Tap) -> None:
        """The sum behind a block is this layer."""
        block = next(c for c in reversed(self._calls) if c.module is module)
        block.end = tap

    def parts(self) -> dict[str, str]:
        """Name of a layer -> the part it plays; empty without a residual stream: two blocks of a kind that add."""
        adding = Counter(self.kinds[c.module] for c in self._calls if c.adds)
        number = Counter(self.kinds[c.module] for c in self._calls)
        kinds = {k for k, count in adding.items() if count >= 2 and 2 * count >= number[k]}
        blocks = [c for c in self._calls if self.kinds[c.module] in kinds]
        found: dict[str, str] = {}
        attends = any(c.attends for c in blocks)
        inside: list[int] = []
        for i, c in enumerate(self._calls):
            if c not in blocks:
                continue
            inside.append(i)
            for tap, sums in c.layers:
                found.setdefault(tap.name, self._part(c, tap, sums, "mlp" if attends else "branch"))
        first, last = (inside[0], inside[-1]) if inside else (0, 0)
        others = [(t, i) for i, c in enumerate(self._calls) if c not in blocks for t, _ in c.layers]
        for tap, before in [*self._outside, *others] if blocks else ():
            where = "embedding" if before <= first else "head" if before > last else "between"
            found.setdefault(tap.name, "norm" if id(tap) in self._norms and where != "embedding" else where)
        for c in blocks:
            if c.end is not None:
                found[c.end.name] = "stream"
        return found if "stream" in found.values() else {}

    def _part(self, block: _Block, tap: Tap, sums: int, other: str) -> str:
        if id(tap) in self._norms:
            return "norm"
        for module, at in block.attends:
            if at == sums and self._branch(block, module) in (None, self._branch(block, tap.name)):
                return "attention"
        return other

    def _branch(self, block: _Block, at: nn.Module | str | None) -> str | None:
        """The child of a block in which something is; ``None``: in none of them."""
        name = at if isinstance(at, str) else self.names.get(at, "") if at is not None else ""
        whole = f"{self.names[block.module]}."
        return name.removeprefix(whole).partition(".")[0] if name.startswith(whole) else None


def _candidates(root: nn.Module) -> Iterator[tuple[nn.Module, Any]]:
    """Composite elements of containers, and what makes two of them alike: the class, of plain chains the container."""
    for container in root.modules():
        if isinstance(container, nn.ModuleList | nn.ModuleDict | nn.Sequential):
            for child in container.children():
                composite = any(True for _ in child.children()) and not getattr(child, "normscope_layer", False)
                if composite and not isinstance(child, nn.ModuleList | nn.ModuleDict):
                    yield child, (id(container) if isinstance(child, nn.Sequential) else 0, type(child))


def _normalizes(module: nn.Module, y: Tensor) -> bool:
    """Whether a layer is a norm: one of torch's, or gains at most (each axis scaled) behind which every token, or every
    channel, has root mean square 1."""
    if isinstance(module, _NORMS):
        return True
    held = dict(module.named_parameters())
    if not held or any(True for _ in module.children()) or any(p.dim() != 1 for p in held.values()):
        return False
    if y.dim() < 2 or not y.is_floating_point() or any(len(p) != y.shape[-1] for p in held.values()):
        return False
    with torch.no_grad(), torch._C.DisableTorchFunction():
        gain = next((p for n, p in held.items() if "bias" not in n), None)
        shift = next((p for n, p in held.items() if "bias" in n), None)
        x = y.detach()[:4].float()
        x = x if shift is None else x - shift
        x = x if gain is None or not bool((gain != 0).all()) else x / gain
        return bool(((x.square().mean(-1).sqrt() - 1).abs() < 0.05).all())
