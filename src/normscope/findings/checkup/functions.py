"""The functions that a model and its loss call, listened to: axes, masks, dropout, cut graphs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normscope.call.arguments import first_tensor, tensors
from normscope.call.attention import MASKED, PRODUCTS, SOFTMAX, WHOLE, scores_of
from normscope.core.modes import Mode
from normscope.findings.checkup.pooling import Pooling

_RESHAPES = {Tensor.view, Tensor.reshape, torch.reshape}
_OF_MATRICES = {*PRODUCTS, torch.mm, Tensor.mm, torch.sparse.mm, torch.spmm}
_NUMBERS = {Tensor.item, Tensor.tolist, Tensor.__float__, Tensor.numpy}
_ARITHMETIC = {
    getattr(where, name)
    for names, where in (
        (("mul", "sub", "add", "div"), torch),
        (("mul", "sub", "add", "div", "__mul__", "__rmul__", "__sub__", "__rsub__", "__add__", "__radd__"), Tensor),
        (("__truediv__", "__rtruediv__"), Tensor),
    )
    for name in names
}
_OVER = {torch.logsumexp, Tensor.logsumexp, *SOFTMAX, F.log_softmax, torch.log_softmax, Tensor.log_softmax}
_TIMES, _SUMS = {Tensor.mul, Tensor.__mul__, Tensor.__rmul__, torch.mul}, {Tensor.sum, torch.sum}
_ADDS = {torch.add, Tensor.add, Tensor.__add__, Tensor.add_, Tensor.__iadd__}
_STEPS = {
    getattr(where, name) for where in (torch, Tensor) for name in ("round", "floor", "ceil", "trunc", "sign", "sgn")
}  # fmt: skip
_DROPOUT = {F.dropout, F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout}
_DRAWS = {torch.randn, torch.rand, torch.randn_like, torch.rand_like}
_COMPARES = {F.mse_loss, F.l1_loss, F.smooth_l1_loss, F.huber_loss, torch.sub, Tensor.sub, Tensor.__sub__,
             Tensor.__rsub__}  # fmt: skip
_CARRIES = {
    *(getattr(where, name) for where in (torch, Tensor)
      for name in ("flatten", "unsqueeze", "squeeze", "chunk", "split", "unbind", "clone", "detach")),
    torch.stack, torch.cat, Tensor.to, Tensor.float, Tensor.double, Tensor.__getitem__, Tensor.contiguous, *_RESHAPES,
}  # fmt: skip
#: Dropout that leaves hardly anything: the usual rates lie between 0.1 and 0.5.
HEAVY = 0.8
#: Samples from which on a square of similarities is looked at; how far the pairs stand out of their rows, at least, and
#: in standard errors (chosen by us).
PARTNERS, OUT, SURELY = 16, 0.5, 8.0


class Functions(Mode):
    """What the functions that a model and its loss call show of slips;
    ``with functions.inside(model), functions: ...``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.eval = False
        self.reshaped: dict[str, Any] | None = None
        self.softmax: dict[str, Any] | None = None
        self.dropout: dict[str, Any] | None = None
        #: Whether any dropout was on.
        self.drops = False
        self.heavy: list[tuple[str, float]] = []
        #: The first module that attends.
        self.attention: str | None = None
        #: The attention whose weights are the most concentrated: the mean of their largest, and its module.
        self.peaked: dict[str, Any] = {"peak": 0.0, "module": ""}
        self._pending = self.peaked
        #: The first product with a constant square matrix whose rows sum up to more than one: sums over neighbours.
        self.neighbours: dict[str, Any] | None = None
        #: A loss that wants log-probabilities and was given probabilities.
        self.no_logs: str | None = None
        #: Whether the samples are multiplied by a constant (n, n) matrix: they are nodes of one graph.
        self.graph = False
        #: Of a cross-entropy of similarities (n, n) where the pairs stand and where its labels say (`_pairs`).
        self.partners: dict[str, Any] | None = None
        #: The share of the labels of a CTC loss that are its blank.
        self.blank = 0.0
        #: Of every attention the positions (n, length) that some query looks at.
        self.kept: list[tuple[str, Tensor]] = []
        #: The first functions that gave a result without gradient for arguments with one.
        self.cuts: list[dict[str, Any]] = []
        #: Functions that made plain numbers of tensors with a gradient.
        self.numbers: list[str] = []
        #: The first sum or product of a column (n, 1) and a row (n,) of other numbers, which gives (n, n).
        self.crossed: dict[str, Any] | None = None
        self.pooling = Pooling()
        #: Functions of steps, and in which module: no gradient comes back through them.
        self.flat: list[tuple[str, str]] = []
        #: Behind which modules a tensor was added to itself.
        self.doubled: list[str] = []
        #: The first softmax or log-sum-exp in the loss that runs over samples.
        self.over_samples: dict[str, Any] | None = None
        #: The first reshape that cuts the samples' axis, which was not in front: (layers, n, d) made (n, ...).
        self.sliced: dict[str, Any] | None = None
        self.n = 0
        #: The batch, and the first function that wrote into it: (its name, the module).
        self.batch: list[tuple[Tensor, int]] = []
        self.written: tuple[str, str] | None = None
        self._ended: list[str] = []
        #: Whether a derivative by the inputs that has no graph is computed with, and no model runs after.
        self.derived = False
        self.stack: list[str] = []
        self._derivatives: list[Tensor] = []
        #: Tensors that hold noise that was drawn, by ``id``, with the draw; of each draw what was done with it.
        self._noise: dict[int, tuple[Tensor, int]] = {}
        self._draws: list[set[str]] = []
        self._made: dict[int, tuple[Tensor, int]] = {}

    @property
    def aimless(self) -> bool:
        """Whether some noise is what a prediction is compared with, and nothing else has seen it."""
        return {"compared"} in self._draws

    @contextmanager
    def inside(self, root: nn.Module) -> Iterator[None]:
        """Hooks that say which module is running."""
        stack, ended = (
            self.stack,
            self._ended,
        )  # not the mode itself: what a hook's object holds is put back behind a run

        def leave(*_: Any) -> None:
            ended[:] = [stack.pop()]

        handles = []
        for name, m in root.named_modules():
            handles.append(m.register_forward_pre_hook(lambda *_, name=name: stack.append(name)))
            handles.append(m.register_forward_hook(leave, always_call=True))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        whole = func(*args, **kwargs)
        self._derives(func, args, kwargs, whole)
        self._draws_noise(func, args, kwargs, whole)
        if self.written is None and any(t._version != v for t, v in self.batch):
            self.written = (func.__name__, self.stack[-1] if self.stack else "")
        x, y = (args[0] if args else None), first_tensor(whole)
        if func is F.ctc_loss and not self.eval:
            self.blank = float((args[1] == kwargs.get("blank", args[4] if len(args) > 4 else 0)).float().mean())
        if func in (F.kl_div, F.nll_loss) and isinstance(x, Tensor) and x.requires_grad and bool((x >= 0).all()):
            self.no_logs = func.__name__
        if func is F.cross_entropy and len(args) > 1 and not self.eval and self.partners is None:
            self.partners = _pairs(*args[:2])
        if func in _NUMBERS and isinstance(x, Tensor) and x.requires_grad and not self.eval:
            self.numbers.append(func.__name__)
        if isinstance(x, Tensor) and y is not None:
            name = self.stack[-1] if self.stack else ""
            if func in _DROPOUT:
                self._drops(name, args, kwargs)
            if not self.eval:
                self._trains(name, func, args, kwargs, x, y)
        return whole

    def _derives(self, func: Any, args: Any, kwargs: Any, whole: Any) -> None:
        if func is torch.autograd.grad:
            by = kwargs.get("inputs", args[1] if len(args) > 1 else ())
            if not kwargs.get("create_graph") and not any(isinstance(t, nn.Parameter) for t in tensors(by)):
                self._derivatives += list(tensors(whole))
        elif self._derivatives:
            if self.stack:  # an attack: the model runs on what it gave
                self.derived, self._derivatives = False, []
            elif any(t is d for t in tensors((args, kwargs)) for d in self._derivatives):
                self.derived = True

    def _draws_noise(self, func: Any, args: Any, kwargs: Any, whole: Any) -> None:
        if func in _DRAWS and whole.numel() >= 32:
            self._noise[id(whole)] = whole, len(self._draws)
            self._draws.append(set())
            return
        given = list(tensors((args, kwargs))) if self._noise else []
        of = {self._noise[id(t)][1] for t in given if id(t) in self._noise}
        if not of or not any(True for _ in tensors(whole)):  # its shape, say
            return
        if func in _CARRIES:
            self._noise.update({id(t): (t, min(of)) for t in tensors(whole)})
            return
        alike = len({t.shape for t in given}) == 1 and any(t.requires_grad for t in given)
        for draw in of:
            self._draws[draw].add("compared" if func in _COMPARES and len(given) == 2 and alike else "used")

    def _drops(self, name: str, args: Any, kwargs: Any) -> None:
        p = float(kwargs.get("p", args[1] if len(args) > 1 else 0.5))
        if not kwargs.get("training", args[2] if len(args) > 2 else True) or p == 0:
            return
        self.drops = True
        if self.eval and self.dropout is None:
            self.dropout = {"p": p, "module": name}
        if p >= HEAVY and not self.eval:
            self.heavy.append((name, p))

    def _trains(self, name: str, func: Any, args: Any, kwargs: Any, x: Tensor, y: Tensor) -> None:
        cut = len(self.cuts) < 3 and not y.requires_grad and torch.is_grad_enabled()
        if cut and any(t.requires_grad for t in tensors((args, kwargs))):
            self.cuts.append({"function": func.__name__, "module": name})
        if func in _ARITHMETIC | _COMPARES and self.crossed is None and len(args) > 1 and _crosses(*args[:2]):
            self.crossed = {
                "function": func.__name__.strip("_"),
                "shapes": [list(a.shape) for a in args[:2]],
                "module": name,
            }
        if func in _ADDS and len(args) > 1 and args[0] is args[1] and x.dim() > 1 and x.requires_grad:
            self.doubled.append("".join(self._ended))
        if self.stack:
            self.pooling.see(name, func, args, kwargs, x, y)
        if func in _STEPS and x.requires_grad:
            self.flat.append((func.__name__, name))
        if func in _OVER and not name and self.over_samples is None and x.requires_grad and x.dim() == 2:
            dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
            if dim in (0, -2) and len(x) > x.shape[1] > 1:
                self.over_samples = {"function": func.__name__, "shape": list(x.shape)}
        if (
            func in _RESHAPES
            and self.sliced is None
            and y.dim()
            and 1 < self.n == len(y) == (*x.shape, 0, 0)[1] != len(x) > 1
        ):
            self.sliced = {
                "from": list(x.shape), "to": list(y.shape), "module": name, "behind": "".join(self._ended)
            }  # fmt: skip
        if func in PRODUCTS and self.neighbours is None and not x.requires_grad and y.requires_grad:
            self._sums(name, x)
        if func in _OF_MATRICES and x.shape == (self.n, self.n) and not x.requires_grad and y.requires_grad:
            self.graph |= not isinstance(args[1], nn.Parameter)
        if func in _RESHAPES and self.reshaped is None and exchanged(tuple(x.shape), tuple(y.shape)):
            self.reshaped = {"from": list(x.shape), "to": list(y.shape), "module": name}
        elif func in SOFTMAX and x.dim() == 2 and len(self.kept) < 4:
            self.kept.append((name, y > 0))
        elif func in SOFTMAX and x.dim() >= 3:
            dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
            if dim in (-1, x.dim() - 1) and self.stack:
                self._peak(name, x, y)
            if isinstance(dim, int):
                self._made[id(y)] = (y, dim % x.dim())
            if y.dim() in (3, 4) and len(self.kept) < 4:
                self.kept.append((name, (y > 0).flatten(1, -2).any(1)))
        elif func in (*_DROPOUT, *_TIMES) and (
            made := next((self._made[id(a)] for a in args if id(a) in self._made), None)
        ):
            if made[0].dim() == y.dim():
                self._made[id(y)] = (y, made[1])
        elif func in _SUMS and id(x) in self._made:
            dim, known = kwargs.get("dim", args[1] if len(args) > 1 else None), self._made[id(x)][1]
            inside = bool(self.stack) and self.softmax is None  # a loss may sum probabilities over any axis
            if inside and isinstance(dim, int) and dim % x.dim() != known and x.shape[known] > 1:
                self.softmax = {"dim": known, "summed": dim % x.dim(), "shape": list(x.shape), "module": name}
        elif func in PRODUCTS and id(x) in self._made:
            self.attention = name if self.attention is None else self.attention
            self._weighed()
            dim = self._made[id(x)][1]
            if dim != x.dim() - 1 and x.shape[-1] > 1 and self.softmax is None:
                self.softmax = {"dim": dim, "summed": x.dim() - 1, "shape": list(x.shape), "module": name}
        elif func in WHOLE:
            self.attention = name if self.attention is None else self.attention
            self._looks(name, func, args, kwargs)

    def _sums(self, name: str, a: Tensor) -> None:
        """Whether a matrix of a graph is neither averaged nor normalized by the degrees."""
        if a.dim() < 2 or a.shape[-1] != a.shape[-2] or a.shape[-1] < 4 or bool((a < 0).any()):
            return
        degrees = a.detach().sum(-1)
        if float(degrees.median()) > 2 and float(degrees.std()) > 0.1:
            self.neighbours = {"degree": float(degrees.median()), "module": name}

    def _peak(self, name: str, scores: Tensor, weights: Tensor) -> None:
        """How concentrated attention is where six keys or more are not masked."""
        with torch.no_grad():
            free = (scores > MASKED).sum(-1) >= 6
            peak = float(weights.amax(-1)[free].mean()) if bool(free.any()) else 0.0
        self._pending = {"peak": peak, "module": name}

    def _weighed(self) -> None:
        """The last softmax weighs values: it is attention's."""
        if self._pending["peak"] > self.peaked["peak"]:
            self.peaked = self._pending

    def _looks(self, name: str, func: Any, args: Any, kwargs: Any) -> None:
        """At which keys a mask lets attention look: true means ignore for one function, keep for the other."""
        if func is F.multi_head_attention_forward:
            mask = kwargs.get("key_padding_mask")
            if isinstance(mask, Tensor) and mask.dim() == 2:
                self.kept.append((name, ~mask if mask.dtype is torch.bool else mask > MASKED))
            return
        mask = kwargs.get("attn_mask", args[3] if len(args) > 3 else None)
        q, k = (a.detach()[:2] for a in (args[0], args[1] if len(args) > 1 else kwargs["key"]))
        if mask is None and not kwargs.get("is_causal") and q.shape[:-2] == k.shape[:-2]:
            scores = scores_of(q[..., :64, :], k, kwargs.get("scale"))  # some queries tell
            self._peak(name, scores, scores.softmax(-1))
            self._weighed()
        if isinstance(mask, Tensor) and mask.dim() == 4:
            keep = mask if mask.dtype is torch.bool else mask > MASKED
            self.kept.append((name, keep.flatten(1, 2).any(1)))


def _crosses(a: Any, b: Any) -> bool:
    """Whether a column meets a row of as many other numbers; all pairs of the same numbers are meant to be."""
    if not (isinstance(a, Tensor) and isinstance(b, Tensor)) or {a.dim(), b.dim()} != {1, 2} or a.numel() != b.numel():
        return False
    column = a if a.dim() == 2 else b
    floating = a.is_floating_point() and b.is_floating_point()
    return floating and column.shape[1] == 1 < len(column) and not torch.equal(a.flatten(), b.flatten())


def _pairs(scores: Any, labels: Any) -> dict[str, Any] | None:
    """Of scores (n, n) of all samples with each other the places that follow a pattern and stand out (above their row's
    mean, in its standard deviations), and how far those that the labels name do, where it is not these that they name,
    or where they stand out below.
    """
    square = isinstance(scores, Tensor) and isinstance(labels, Tensor) and scores.requires_grad and scores.dim() == 2
    n = len(scores) if square else 0
    if n < PARTNERS or scores.shape[1] != n or labels.shape != (n,) or labels.is_floating_point():
        return None
    s, own = scores.detach().double(), torch.arange(n, device=scores.device)
    rest = s[~torch.eye(n, dtype=torch.bool, device=s.device)].reshape(n, n - 1)
    s = (s - rest.mean(1, keepdim=True)) / rest.std(1, keepdim=True)
    likely = {"i": own, "i + n / 2": (own + n // 2) % n, "i + 1 and i - 1 in turns": (own ^ 1).clamp_max(n - 1)}
    out = {name: float(s[own, at].mean()) for name, at in likely.items()}
    name = max(out, key=lambda k: out[k] if k != "i" else 0.0)
    name = name if out[name] > OUT else "i"  # a sample is like itself
    said, surely = float(s[own, labels.clamp(0, n - 1)].mean()), max(OUT, SURELY / n**0.5)
    elsewhere = float((labels == likely[name]).float().mean()) < 0.1 and said < 0.75 * out[name]
    if said < -surely or (out[name] > surely and elsewhere):
        return {"n": n, "where": name, "out": out[name], "said": said}
    return None


def exchanged(old: tuple[int, ...], new: tuple[int, ...]) -> bool:
    """Whether a reshape gives the axes other places: two neighbours exchanged, (n, a, b) to (n, b, a), classes of
    images made the last axis, (n, c, h, w) to (n h w, c), or heads merged or cut without a transpose, (n, heads, t, d)
    to (n, t, heads d) and back.
    """
    if (len(old), len(new)) in ((4, 3), (3, 4)) and old[0] == new[0]:
        (_, h, t, d), (_, a, b) = (old, new) if len(old) == 4 else (new, old)
        if (a, b) == (t, h * d) and t not in (1, h) and h > 1 and d > 1:
            return True
    if len(old) == len(new) and len(old) >= 3 and old[0] == new[0] and old != new:
        places = [i for i in range(len(old)) if old[i] != new[i]]
        if len(places) == 2 and places[1] == places[0] + 1 and min(old[i] for i in places) > 1:
            return sorted(old) == sorted(new)
        moved = old[1:] != new[1:] and sorted(old[1:]) == sorted(new[1:]) and len(set(old[1:])) > 1
        return moved and (old[2:] + old[1:2] == new[1:] or old[-1:] + old[1:-1] == new[1:]) and min(old[1:]) > 1
    if len(old) == 4 and len(new) == 3 and old[0] == new[0]:  # (n, k c, h, w) to (n, k h w, c)
        return 1 < new[2] < old[1] and old[1] % new[2] == 0 and new[2] not in old[2:] and min(old[2:]) > 1
    if len(old) >= 3 and len(new) == 2 and old[0] > 1:
        c, rest = old[1], 1
        for s in (old[0], *old[2:]):
            rest *= s
        return 1 < c == new[1] and new[0] == rest and old[-1] != c and rest > old[0]
    return False
