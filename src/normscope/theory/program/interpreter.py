"""The program as it runs: each call is done, and beside its tensors their laws are worked out by the rule of the call.

What has a rule of its own is in `RULES`, by the name of the function; what has none is found out by what it does
(`reading`): moves of entries, functions of one entry, linear maps of the sites; other maps that leave the features
apart are averaged over draws. The rest is data from there on: its measured numbers, and it is named.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from normscope.core.errors import UsageError
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
    uncanonical,
)
from normscope.theory.program.moves import Pattern
from normscope.theory.program.reading import (
    Call,
    basis,
    by_feature,
    is_weight,
    moved,
    places,
    pointwise,
    set_law,
    set_weight,
)

#: name of a function -> its rule: from the program, the call and the tensor that it returned, the law of that tensor;
#: ``None``: this call has none. Filled by the modules beside this one.
RULES: dict[str, Callable[[Program, Call, Tensor], Law | None]] = {}
#: Gaussian fields drawn at a time: with 256 features 1024 neurons.
_DRAWS = 4


def rule(*names: str) -> Callable[[Any], Any]:
    """Enrol the rule of the functions of these names."""

    def enrol(function: Any) -> Any:
        RULES.update(dict.fromkeys(names, function))
        return function

    return enrol


class Program(TorchFunctionMode):
    """A run of a model in which tensors have laws.

    seed: of draws. until: when it gives up, by ``time.perf_counter``. sites: how many samples x positions a field may
    have; what has more is measured.
    nodes: laws in the order in which they were found. unknown: what was measured, by the name of the function, and
    why. noted: approximations that were made.
    """

    def __init__(self, seed: int = 0, sites: int = 2048, until: float = math.inf) -> None:
        super().__init__()
        self.seed, self.most, self.draws = seed, sites, Draws(_DRAWS)
        self.until = until
        self.nodes: list[Law] = []
        self.unknown: dict[str, str] = {}
        self.noted: dict[str, None] = {}
        self.random = torch.Generator().manual_seed(seed)
        self._names = itertools.count(1)

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        call = Call(func, args, kwargs or {})
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
                return out
            if call.name not in PRODUCTS or not any(is_weight(x) and x.dim() > 1 for x in given):
                return out
        if not all(x.is_floating_point() for x in tensors[:1]):
            for x in tensors:
                set_law(x, None)
            return out
        with torch.no_grad():
            self._work_out(call, tensors)
        return out

    def _set_items(self, call: Call) -> None:
        """A tensor that was written into."""
        if call.name == "setitem" and call.at and isinstance(call.args[0], Tensor):
            set_law(call.args[0], None)
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
            set_law(x, law)
            if law is not None:
                if not isinstance(law, Known) and law not in call.laws:
                    self.nodes.append(law)
            elif call.at and x.is_floating_point():
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
        same = all(x is laws[0] for x in laws)
        if len(laws) == 1:
            ids = moved(call, laws[0].shape)
            if ids is not None and len(ids) == len(tensors):
                return [self.moved(laws[0], i) for i in ids]
        if all(x.shape == out.shape for x in laws) and pointwise(call, out.shape):
            if same or len({id(x.base) for x in laws}) == 1:
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

    # The ways in which laws are made

    def gaussian(
        self, out: Tensor, features: tuple[int, ...], moments: Callable[[], tuple[Tensor, Tensor]],
        pull: Callable[[Any], Pulled], fresh: bool = True, sources: frozenset[int] = frozenset(),
        draw: Callable[[int], Tensor] | None = None,
    ) -> Field:  # fmt: skip
        """A Gaussian field; ``fresh``: independent of all others, and drawn from its moments."""
        name = next(self._names)
        seed, dtype = (self.seed * 1_000_003 + 7919 * name) % 2**31, out.dtype

        def drawn(i: int) -> Tensor:
            m, _ = field.moments
            u = normals(field.covariance, field.size, torch.Generator().manual_seed(seed + i), m)
            return uncanonical(u.to(dtype), field.shape, field.features)

        sources = frozenset({name}) if fresh else sources
        field = Field(
            out.shape, features, sources, draw or drawn, draws=self.draws, moments=moments, pull=pull, gaussian=True
        )
        return field

    def expanded(self, field: Field, shape: torch.Size) -> Field | None:
        """A field repeated along axes where it has one place, as torch broadcasts."""
        if field.shape == shape:
            return field
        ids = places(field.shape).expand(shape).long()
        found = self.moved(field, ids)
        if found is not None:
            self.nodes.append(found)
        return found

    def data(self, x: Tensor, features: tuple[int, ...]) -> Field:
        """Numbers as they are, for a field: what they are averages over their features."""
        return Field(
            x.shape, features, frozenset(), lambda i: x, draws=self.draws, moments=lambda: of_data(x, features)
        )

    def moved(self, field: Field, ids: Tensor) -> Field | None:
        """A field whose entries are elsewhere."""
        if field.count > 4 * self.most or ids.numel() == 0:
            return None
        pattern = Pattern(ids, field)

        def draw(i: int) -> Tensor:
            flat = torch.cat([field.draw(i).new_zeros(1), field.draw(i).reshape(-1)])
            return flat[ids]

        out = Field(
            ids.shape, pattern.features, field.sources, draw, draws=self.draws, gaussian=False,
            moments=lambda: pattern.forward(*field.moments), pull=lambda grad: [(field, pattern.backward(grad))],
        )  # fmt: skip
        if out.count > self.most:
            return None
        if field.gaussian:
            out.gaussian, out.base = True, out
        return out

    def pointwise(self, call: Call, laws: Sequence[Field]) -> Field | None:
        """A function of one entry of a field, or of several that are functions of the same one."""
        first = laws[0]
        base, inner = first.base, [x.of for x in laws]

        def of(x: Tensor) -> Tensor:
            return call.again(*[f(x) for f in inner])

        def draw(i: int) -> Tensor:
            return call.again(*[x.draw(i) for x in laws])

        sources = frozenset[int]().union(*[x.sources for x in laws])
        if base is None:
            return self.sampled(call.again, laws, first.draw(0), first.features)
        from normscope.theory.program.norms import through_norm

        def moments() -> tuple[Tensor, Tensor]:
            fused = through_norm(base, of)
            if fused is not None:
                return fused
            m, _ = base.moments
            c = base.covariance
            return first_moment(of, m.double(), c.diagonal()).to(c.dtype), second_moments(of, m, c)

        def pull(grad: Tensor) -> Pulled:
            return [(base, grad * second_moments(of, base.moments[0], base.covariance, derivative=True))]

        field = Field(first.shape, first.features, sources, draw, draws=self.draws, moments=moments, pull=pull)
        field.base, field.of = base, of
        return field

    def mixed(self, call: Call, field: Field, out: Tensor, features: tuple[int, ...]) -> Field | None:
        """A linear map of the sites, the same for each feature."""
        new = canonical(out, features).shape[0]
        if max(field.count, new) > self.most:
            return None
        s = basis(call, field, features, dtype_of(field.count))

        def moments() -> tuple[Tensor, Tensor]:
            m, k = field.moments
            return s @ m, s @ k @ s.T

        def pull(grad: Tensor) -> Pulled:
            return [(field, s.T @ grad.to(s.dtype) @ s)]

        def draw(i: int) -> Tensor:
            found = call.again(field.draw(i))
            return found[0] if isinstance(found, tuple) else found

        made = Field(out.shape, features, field.sources, draw, draws=self.draws, moments=moments, pull=pull)
        if field.gaussian:
            made.gaussian, made.base = True, made
        return made

    def scores(self, again: Callable[..., Any], laws: Sequence[Law], out: Tensor) -> Scores:
        """Numbers that are drawn, from other laws."""
        sources = frozenset[int]().union(*[x.sources for x in laws])
        return Scores(
            out.shape, sources, lambda i: again(*[x.draw(i) for x in laws]), self.draws, self._pull(again, laws, None)
        )

    def sampled(
        self, again: Callable[..., Any], laws: Sequence[Law], out: Tensor, features: tuple[int, ...]
    ) -> Field | None:
        """A field known by draws alone."""
        sources = frozenset[int]().union(*[x.sources for x in laws])

        def first(*tensors: Tensor) -> Tensor:
            found = again(*tensors)
            return found[0] if isinstance(found, list | tuple) else found

        field = Field(
            out.shape, features, sources, lambda i: first(*[x.draw(i) for x in laws]), draws=self.draws,
            pull=None,
        )  # fmt: skip
        if field.count > self.most:
            return None
        field.pull = self._pull(first, laws, field)
        return field

    def _pull(self, again: Callable[..., Any], laws: Sequence[Law], field: Field | None) -> Callable[[Any], Pulled]:
        """Backwards through draws: cotangents of the gradient's law (or those that came, of scores) go through the
        function itself.
        """

        def pull(grad: Any) -> Pulled:
            count = self.draws.count
            totals: list[Any] = [None] * len(laws)
            for i in range(count):
                with torch.enable_grad():
                    inputs = [x.draw(i).detach().clone().requires_grad_() for x in laws]
                    out = again(*inputs)
                    back = grad[i] if field is None else self.cotangent(field, grad, out.dtype)
                    found = torch.autograd.grad(out, inputs, back, allow_unused=True)
                for at, (law, g) in enumerate(zip(laws, found, strict=True)):
                    if g is None or isinstance(law, Known):
                        continue
                    if isinstance(law, Field):
                        rows = law.canonical(g).to(dtype_of(law.count))
                        part = rows @ rows.T / count
                        totals[at] = part if totals[at] is None else totals[at] + part
                    else:
                        totals[at] = [*(totals[at] or []), g]
            return [(law, t) for law, t in zip(laws, totals, strict=True) if t is not None]

        return pull

    def cotangent(self, field: Field, outer: Tensor, dtype: torch.dtype) -> Tensor:
        """A tensor of the field's shape whose products over sites, summed over features, have the mean ``outer``."""
        u = normals(outer / field.size, field.size, self.random)
        return uncanonical(u.to(dtype), field.shape, field.features)

    def backward(self, starts: Sequence[tuple[Law, Any]]) -> dict[int, Any]:
        """Gradients by the ``id`` of the law, from those of some: the walk back through the nodes."""
        grads: dict[int, Any] = {}

        def add(law: Law, grad: Any) -> None:
            have = grads.get(id(law))
            if have is None:
                grads[id(law)] = grad
            elif isinstance(grad, list):
                grads[id(law)] = [a + b for a, b in zip(have, grad, strict=True)]
            else:
                grads[id(law)] = have + grad

        for law, grad in starts:
            add(law, grad)
        for node in reversed(self.nodes):
            if id(node) not in grads:
                continue
            self.in_time()
            for parent, grad in node.pull(grads[id(node)]):
                add(parent, grad)
            if isinstance(node, Scores):
                del grads[id(node)]
        return grads


#: Functions in which weights meet data; and those that are done as several others: name -> the others. Filled beside.
PRODUCTS: set[str] = set()
COMPOSITE: dict[str, Callable[..., Any]] = {}
