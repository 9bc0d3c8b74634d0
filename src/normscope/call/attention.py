"""Attention as it runs: the weights of each head and what it returns, whichever way torch computes it."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor

if TYPE_CHECKING:
    from jaxtyping import Bool, Float

SOFTMAX = {F.softmax, torch.softmax, Tensor.softmax}
PRODUCTS = {torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm}
WHOLE = {F.multi_head_attention_forward, F.scaled_dot_product_attention}
#: What may stand between the weights and the product with the values.
_BETWEEN = {F.dropout, Tensor.to, Tensor.float, Tensor.type_as, Tensor.half, Tensor.bfloat16}
#: Scores below this are masks: libraries add the least number of the dtype, or -1e4, in the place of -inf.
MASKED = -1e4
#: Samples, and weights, that are looked at (chosen by us: a mean over them is good to a per cent).
SAMPLES, WEIGHTS = 32, 2**24


@dataclass(frozen=True)
class Attention:
    """What one attention did: ``weights`` of the first samples, ``heads`` (what each returns; ``None``: not known).

    allowed: at which keys a query may look.
    """

    weights: Float[Tensor, "n h t s"]
    allowed: Bool[Tensor, "n h t s"]
    heads: Float[Tensor, "n h t d"] | None


class Listener:
    """Told of each function as it ran."""

    def __init__(self) -> None:
        #: The last softmax, what became of it, and its scores.
        self._last: tuple[list[Tensor], Tensor] | None = None

    def ends(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> bool:
        """Whether ``func`` is an attention, or the end of one: weights times values."""
        if func in WHOLE:
            return True
        x = args[0] if args else kwargs.get("input")
        if func in SOFTMAX and isinstance(x, Tensor) and isinstance(out, Tensor) and out.dim() in (3, 4):
            dim = kwargs.get("dim", args[1] if len(args) > 1 else None)
            self._last = ([out], x) if dim in (-1, out.dim() - 1) else None
        elif self._last is not None and any(x is known for known in self._last[0]):
            if func in _BETWEEN and isinstance(out, Tensor):
                self._last[0].append(out)
            return func in PRODUCTS
        return False

    @torch.no_grad()
    def read(self, func: Any, args: Sequence[Any], kwargs: Mapping[str, Any], out: Any) -> Attention | None:
        """The attention that ``func`` ended; ``None`` where its shapes are of no kind that is known."""
        if func is F.scaled_dot_product_attention:
            return _scaled(*args, **kwargs)
        if func in WHOLE:
            return _multi_head(func, args, kwargs)
        if self._last is None:
            return None
        (weights, *_), scores = self._last
        self._last = None
        return _made(scores, weights, args[1] if len(args) > 1 else None, out)


def scores_of(q: Tensor, k: Tensor, scale: float | None = None) -> Tensor:
    """Scaled products of queries and keys, in float32 at least."""
    q, k = (x if x.dtype == torch.float64 else x.float() for x in (q, k))
    return q @ k.transpose(-1, -2) * (scale or q.shape[-1] ** -0.5)


def _few(n: int, *more: int) -> int:
    """How many of n samples are looked at."""
    each = 1
    for size in more:
        each *= size
    return max(1, min(n, SAMPLES, WEIGHTS // max(each, 1)))


def _scaled(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Attention | None:  # fmt: skip
    """``F.scaled_dot_product_attention`` without its dropout."""
    del dropout_p
    if query.is_nested or query.dim() not in (3, 4):
        return None
    q, k, v = (x if x.dim() == 4 else x[:, None] for x in (query.detach(), key.detach(), value.detach()))
    n, h, t, _ = q.shape
    if len(k) != n:
        return None
    m = _few(n, h, t, k.shape[-2])
    q, k, v = q[:m], k[:m], v[:m]
    if enable_gqa:
        k, v = (x.repeat_interleave(h // x.shape[1], 1) for x in (k, v))
    scores = scores_of(q, k, scale)
    if is_causal:
        scores = scores.masked_fill(torch.ones(scores.shape[-2:], dtype=torch.bool, device=q.device).tril_() == 0,
                                    -torch.inf)  # fmt: skip
    if attn_mask is not None:
        mask = attn_mask.detach()
        mask = mask if mask.dim() < 3 or query.dim() == 4 else mask[:, None]
        mask = mask[:m] if mask.dim() == 4 and len(mask) == n else mask
        scores = scores.masked_fill(~mask, -torch.inf) if mask.dtype is torch.bool else scores + mask
    weights = scores.softmax(-1)
    return Attention(weights, scores > MASKED, weights @ v.to(weights.dtype))


def _multi_head(func: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Attention | None:
    """``F.multi_head_attention_forward``, asked again for its weights, without dropout."""
    given = inspect.signature(func).bind(*args, **kwargs)
    given.apply_defaults()
    a = {k: v.detach() if isinstance(v, Tensor) else v for k, v in given.arguments.items()}
    for name in ("query", "key", "value"):  # (time, batch, features) here, also where the module takes the batch first
        a[name] = a[name] if a[name].dim() == 3 else a[name][:, None]
    pad = a["key_padding_mask"]
    a["key_padding_mask"] = pad[None] if pad is not None and pad.dim() == 1 else pad
    (t, n, width), h, s = a["query"].shape, int(a["num_heads"]), len(a["key"])
    m = _few(n, h, t, s)
    a |= {name: a[name][:, :m] for name in ("query", "key", "value")}
    if a["key_padding_mask"] is not None:
        a["key_padding_mask"] = a["key_padding_mask"][:m]
    if a["attn_mask"] is not None and a["attn_mask"].dim() == 3:
        a["attn_mask"] = a["attn_mask"][: m * h]
    a |= {"training": False, "need_weights": True, "average_attn_weights": False}
    weights = func(**a)[1]
    if weights is None:
        return None
    allowed = torch.ones_like(weights, dtype=torch.bool)
    for mask, shape in ((a["attn_mask"], None), (a["key_padding_mask"], (m, 1, 1, s))):
        if mask is not None and weights.shape[-1] == s:
            hidden = mask if mask.dtype is torch.bool else mask <= MASKED
            hidden = hidden.reshape(shape) if shape else hidden.reshape(-1, h, t, s) if mask.dim() == 3 else hidden
            allowed = allowed & ~hidden
    whole = a["in_proj_weight"] is not None and not a["use_separate_proj_weight"]
    w = a["in_proj_weight"][2 * width :] if whole else a["v_proj_weight"]
    b = None if a["in_proj_bias"] is None else a["in_proj_bias"][2 * width :]
    heads = None
    if w is not None and weights.shape[-1] == s and a["bias_v"] is None:
        v = F.linear(a["value"], w, b).reshape(s, m, h, -1).permute(1, 2, 0, 3)
        heads = weights @ v.to(weights.dtype)
    return Attention(weights, allowed, heads)


def _made(scores: Tensor, weights: Tensor, values: Any, out: Any) -> Attention | None:
    """A softmax, and the product with values behind it."""
    if not isinstance(values, Tensor) or not isinstance(out, Tensor) or values.dim() != weights.dim():
        return None
    n = len(weights)
    weights, scores, out = (x.detach() if x.dim() == 4 else x.detach()[:, None] for x in (weights, scores, out))
    m = _few(n, *weights.shape[1:])
    return Attention(weights[:m], scores[:m].broadcast_to(weights[:m].shape) > MASKED, out[:m])
