"""The program as it runs: each call is done, and beside its tensors their laws are worked out by the rule of the call.

What has a rule of its own is in `RULES`, by the name of the function; what has none is found out by what it does
(`reading`): moves of entries, functions of one entry, linear maps of the sites; other maps that leave the features
apart are averaged over draws. The rest is data from there on: its measured numbers, and it is named.
"""

from __future__ import annotations

import itertools
import math
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from normscope.core.errors import UsageError
from normscope.core.memory import trim
from normscope.core.modes import Mode
from normscope.theory.program.kernels import first_moment, second_moments
from normscope.theory.program.laws import (
    Draws,
    Field,
    Known,
    Law,
    Pulled,
    Scores,
    canonical,
    dtype_of,
    normals,
    of_data,
    root_of,
    uncanonical,
)
from normscope.theory.program.lent import Refused, reads
from normscope.theory.program.moves import Pattern
from normscope.theory.program.reading import (
    Call,
    basis,
    by_feature,
    forget,
    is_weight,
    moved,
    nth,
    places,
    pointwise,
    set_law,
    set_weight,
)

#: name of a function -> its rule: from the program, the call and the tensor that it returned, the law of that tensor;
#: ``None``: this call has none. Filled by the modules beside this one.
RULES: dict[str, Callable[[Program, Call, Tensor], Law | None]] = {}
#: Laws after which freed memory goes back to the system.
TRIM = 4
#: Gaussian fields drawn at a time: with 256 features 1024 neurons.
DRAWS = 4


def rule(*names: str) -> Callable[[Any], Any]:
    """Enrol the rule of the functions of these names."""

    def enrol(function: Any) -> Any:
        RULES.update(dict.fromkeys(names, function))
        return function

    return enrol


class Program(Mode):
    """A run of a model in which tensors have laws.

    seed, draws: of the draws, and how many. until: when it gives up, by ``time.perf_counter``. sites: samples x
    positions that a field may have; what has more is measured. lent: weights are the user's own, so that a call that
    might write to them is ``refused``.
    nodes: laws in the order in which they were found. unknown: what was measured, by the name of the function, and
    why. noted: approximations that were made. weights: where those of so many entries, this sum and mean square are.
    """

    def __init__(
        self, seed: int = 0, sites: int = 2048, until: float = math.inf, draws: int = DRAWS, lent: bool = False
    ) -> None:  # fmt: skip
        super().__init__()
        self.seed, self.most, self.draws = seed, sites, Draws(draws)
        self.until = until
        self.nodes: list[Law] = []
        self.lent = lent
        self.refused = False
        self.unknown: dict[str, str] = {}
        self.weights: dict[tuple[int, float, float], int] = {}
        self.noted: dict[str, None] = {}
        self.random = torch.Generator().manual_seed(seed)
        self._names = itertools.count(1)
        self._said: list[weakref.ref[Tensor]] = []

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        call = Call(func, args, kwargs or {})
        if self.lent and not reads(call):
            self.refused = True
            raise Refused
        special = COMPOSITE.get(call.name)
        if special is not None and (call.at or not all(map(is_weight, call.others()))):
            with self:
                return special(*call.args, **call.kwargs)
        out = func(*call.args, **call.kwargs)
        tensors = [x for x in (out if isinstance(out, list | tuple) else [out]) if isinstance(x, Tensor)]
        if not tensors:
            self._set_items(call)
            return out
        if not call.at:
            given = call.others()
            if given and all(is_weight(x) for x in given):
                for x in tensors:
                    if not is_weight(x):
                        set_weight(x)
                        self._said.append(weakref.ref(x))
                return out
            if call.name not in PRODUCTS or not any(is_weight(x) and x.dim() > 1 for x in given):
                return out
        if not all(x.is_floating_point() for x in tensors[:1]):
            for x in tensors:
                self._say(x, None)
            return out
        with torch.no_grad():
            self._work_out(call, tensors)
        call.release()
        return out

    def _say(self, x: Tensor, law: Law | None) -> None:
        set_law(x, law)
        self._said.append(weakref.ref(x))

    def forget(self) -> None:
        """Take the laws off all tensors: a model may keep some of its pass."""
        for mark in self._said:
            forget(mark())
        self._said.clear()

    def _set_items(self, call: Call) -> None:
        """A tensor that was written into."""
        if call.name == "setitem" and call.at and isinstance(call.args[0], Tensor):
            self._say(call.args[0], None)
            self.unknown.setdefault("setitem", "entries were written into a tensor")

    def _work_out(self, call: Call, tensors: list[Tensor]) -> None:
        self.in_time()
        found: list[Law | None] = [None] * len(tensors)
        own = RULES.get(call.name)
        law = own(self, call, tensors[0]) if own is not None else None
        if law is not None:
            found[0] = law
        elif call.at:
            laws = self._by_what_it_does(call, tensors)
            found[: len(laws)] = laws
        for x, law in zip(tensors, found, strict=True):
            self._say(x, law)
            if law is not None:
                if not isinstance(law, Known) and law not in call.laws:
                    self.nodes.append(law)
                    if len(self.nodes) % TRIM == 0:
                        trim()
            elif call.at and x.is_floating_point() and not (call.in_place and 0 not in call.at):
                self.unknown.setdefault(call.name, "no rule")

    def _by_what_it_does(self, call: Call, tensors: list[Tensor]) -> Sequence[Law | None]:
        laws, out = call.laws, tensors[0]
        if any(isinstance(x, Scores) for x in laws):
            return [self.scores(call.again, laws, out)] if len(tensors) == 1 else []
        if all(isinstance(x, Known) for x in laws):
            value = call.again(*[x.value for x in laws])
            return [Known(v) for v in (value if isinstance(value, list | tuple) else [value])]
        if not all(isinstance(x, Field) for x in laws):
            return []
        if len(laws) == 1:
            ids = moved(call, laws[0].shape)
            if ids is not None and len(ids) == len(tensors):
                return [self.moved(laws[0], i, nth(call.again, at)) for at, i in enumerate(ids)]
        if all(x.shape == out.shape for x in laws) and pointwise(call, out.shape):
            if len({id(x.base) for x in laws}) == 1:
                return [self.pointwise(call, laws)]
            return [self.sampled(call.again, laws, out, laws[0].features)]
        if len(laws) == 1:
            acts = by_feature(call, laws[0], out.dtype)
            if acts is not None and acts[1]:
                return [self.mixed(call, laws[0], out, acts[0])]
            if acts is not None:
                return [self.sampled(call.again, laws, out, acts[0])]
        return []

    def in_time(self) -> None:
        """``UsageError`` where it takes too long."""
        if time.perf_counter() > self.until:
            raise UsageError(
                "the laws of this program would take longer than the budget. Pass fewer samples, or call predict()."
            )

    def too_many(self, name: str) -> None:
        """Note that a call has more sites than this program takes."""
        self.unknown[name] = f"more than {self.most} samples x positions (pass fewer samples)"

    # The ways in which laws are made

    def fresh(
        self, out: Tensor, features: tuple[int, ...], moments: Callable[[], tuple[Tensor, Tensor]],
        pull: Callable[[Any], Pulled], kept: bool = True,
    ) -> Field:  # fmt: skip
        """A Gaussian field that is independent of all others, drawn from its moments."""
        name, dtype = next(self._names), out.dtype
        seed = (self.seed * 1_000_003 + 7919 * name) % 2**31

        def drawn(i: int) -> Tensor:
            random = torch.Generator().manual_seed(seed + i)
            u = normals(field.root, field.size, random, field.moments[0])
            u = u if field.gains is None else u * field.gains.sqrt()
            return uncanonical(u.to(dtype), field.shape, field.features)

        field = Field(
            out.shape,
            features,
            self.draws,
            draw=drawn,
            source=name,
            moments=moments,
            pull=pull,
            gaussian=True,
            kept=kept,
        )
        return field

    def data(self, x: Tensor, features: tuple[int, ...]) -> Field:
        """Numbers as they are, for a field: what they are averages over their features, taken for Gaussian."""
        return Field(
            x.shape, features, self.draws, draw=lambda _: x, moments=lambda: of_data(x, features), gaussian=True
        )

    def expanded(self, field: Field, shape: torch.Size) -> Field | None:
        """A field repeated along axes where it has one place, as torch broadcasts."""
        if field.shape == shape:
            return field
        found = self.moved(field, places(field.shape).expand(shape).long(), lambda x: x.expand(shape))
        if found is not None:
            self.nodes.append(found)
        return found

    def moved(self, field: Field, ids: Tensor, by: Callable[[Tensor], Tensor]) -> Field | None:
        """A field whose entries are elsewhere: the ``ids`` as of `reading.moved`, and what moves a tensor."""
        if field.count > 4 * self.most or ids.numel() == 0:
            return None
        pattern = Pattern(ids, field)

        found = Field(
            ids.shape, pattern.features, self.draws, of=(field,), by=by, gaussian=field.gaussian, kept=False,
            moments=lambda: pattern.forward(*field.moments), pull=lambda grad: [(field, pattern.backward(grad))],
        )  # fmt: skip
        found.gains = pattern.gains
        return found if found.count <= self.most else None

    def pointwise(self, call: Call, laws: Sequence[Field]) -> Field | None:
        """A function of one entry of a field, or of several that are functions of the same one."""
        first = laws[0]
        base, inner = first.base, [x.function for x in laws]
        if base is None:
            return self.sampled(call.again, laws, first.draw(0), first.features)

        def function(x: Tensor) -> Tensor:
            return call.again(*[f(x) for f in inner])

        def moments() -> tuple[Tensor, Tensor]:
            for special in SPECIAL:
                found = special(base, function)
                if found is not None:
                    return found
            m, c = base.moments[0], base.covariance
            return first_moment(function, m.double(), c.diagonal()).to(c.dtype), second_moments(function, m, c)

        def pull(grad: Tensor) -> Pulled:
            return [(base, grad * second_moments(function, base.moments[0], base.covariance, derivative=True))]

        field = Field(
            first.shape, first.features, self.draws, of=laws, by=call.again, moments=moments, pull=pull, kept=False
        )
        field.base, field.function = base, function
        return field

    def mixed(self, call: Call, field: Field, out: Tensor, features: tuple[int, ...]) -> Field | None:
        """A linear map of the sites, the same for each feature."""
        if max(field.count, canonical(out, features).shape[0]) > self.most:
            return None
        s = basis(call, field, features, dtype_of(field.count))

        def moments() -> tuple[Tensor, Tensor]:
            m, k = field.moments
            return s @ m, s @ k @ s.T

        return Field(
            out.shape, features, self.draws, of=(field,), by=nth(call.again, 0), moments=moments,
            pull=lambda grad: [(field, s.T @ grad.to(s.dtype) @ s)], gaussian=field.gaussian,
        )  # fmt: skip

    def scores(self, again: Callable[..., Any], laws: Sequence[Law], out: Tensor) -> Scores:
        """Numbers that are drawn, from other laws."""
        return Scores(out.shape, self.draws, of=laws, by=again)

    def sampled(
        self, again: Callable[..., Any], laws: Sequence[Law], out: Tensor, features: tuple[int, ...]
    ) -> Field | None:
        """A field known by draws alone."""
        field = Field(out.shape, features, self.draws, of=laws, by=nth(again, 0))
        return field if field.count <= self.most else None

    def release(self, node: Law) -> None:
        """Nothing behind this node is asked for again."""
        if isinstance(node, Field):
            node.release()

    def cotangents(self, field: Field, outer: Tensor) -> list[Tensor]:
        """Tensors of the field's shape whose products over sites, summed over features, have the mean ``outer``."""
        found, root = [], root_of(outer / field.size)
        for i in range(self.draws.count):
            u = normals(root, field.size, self.random)
            found.append(uncanonical(u.to(field.draw(i).dtype), field.shape, field.features))
        return found

    def backward(self, law: Law, outer: Tensor) -> dict[int, float]:
        """Squared gradient norms by the ``id`` of the law, from the moments of one law's gradient.

        What comes from weights comes as moments; through functions of one neuron that is not Gaussian it goes as
        cotangents of the draws, so that a neuron that is alive stays the same neuron on its way back.
        """
        moments: dict[int, Tensor] = {id(law): outer}
        drawn: dict[int, list[Tensor]] = {}
        sizes: dict[int, float] = {}

        def add(parent: Law, grad: Any) -> None:
            key = id(parent)
            if isinstance(grad, list):
                have = drawn.get(key)
                drawn[key] = grad if have is None else [a + b for a, b in zip(have, grad, strict=True)]
            else:
                moments[key] = moments[key] + grad if key in moments else grad

        for at, node in enumerate(reversed(self.nodes)):
            self.in_time()
            if at % TRIM == 0:
                trim()
            moment, back = moments.pop(id(node), None), drawn.pop(id(node), None)
            if moment is None and back is None:
                self.release(node)
                continue
            sizes[id(node)] = _size(moment, back)
            if isinstance(node, Field) and back is not None and node.by is None:
                total = torch.zeros(node.count, node.count, dtype=dtype_of(node.count))
                for g in back:
                    r = node.canonical(g).to(total.dtype)
                    total.addmm_(r, r.T)
                total /= len(back)
                moment, back = total if moment is None else moment + total, None
            if isinstance(node, Field) and node.sampled and moment is not None:
                more = self.cotangents(node, moment)
                moment, back = None, more if back is None else [a + b for a, b in zip(more, back, strict=True)]
            for parent, grad in node.pull(moment) if moment is not None else ():
                add(parent, grad)
            if back is not None:
                for parent, grads in _through(node, back):
                    add(parent, grads)
            self.release(node)
        return sizes


def _size(moment: Tensor | None, back: list[Tensor] | None) -> float:
    total = 0.0 if moment is None else float(moment.diagonal().sum())
    return total + (0.0 if back is None else sum(float(g.double().square().sum()) for g in back) / len(back))


def _through(node: Law, back: list[Tensor]) -> Pulled:
    """Cotangents of the draws, through the function that made them."""
    assert node.by is not None
    found: list[list[Tensor]] = [[] for _ in node.of]
    for i, g in enumerate(back):
        with torch.enable_grad():
            inputs = [x.draw(i).detach().clone().requires_grad_() for x in node.of]
            total = (node.by(*inputs) * g).sum()  # given g, torch would import sympy
            grads = torch.autograd.grad(total, inputs, allow_unused=True)
        for kept, grad, x in zip(found, grads, inputs, strict=True):
            kept.append(torch.zeros_like(x) if grad is None else grad)
    return [(law, kept) for law, kept in zip(node.of, found, strict=True) if law.sources]


#: Functions in which weights meet data; and those that are done as several others: name -> the others. Filled beside.
PRODUCTS: set[str] = set()
COMPOSITE: dict[str, Callable[..., Any]] = {}
#: Moments of a function of a Gaussian field that is no ordinary one: from the field and the function, or ``None``.
SPECIAL: list[Callable[[Field, Callable[[Tensor], Tensor]], tuple[Tensor, Tensor] | None]] = []
