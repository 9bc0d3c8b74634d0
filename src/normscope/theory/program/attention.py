r"""Attention at initialization: scores of independent queries and keys, and what they mix.

Queries and keys are Gaussian fields, so the scores of a head are products of draws of the law of these, with as many
features a head as the program has: their softmax is averaged over drawn heads, no expansion, uniform where the
logits are small. With the attention matrices A of a head, $E o o^T = E[A K_v A^T]$, the values being independent of
them; backwards $\Pi_v = E[A^T \Pi A]$, and what goes through the scores is a vector-Jacobian product on draws.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from normscope.theory.program.arithmetic import dropped
from normscope.theory.program.interpreter import COMPOSITE, Program, rule
from normscope.theory.program.laws import Field, Law, Pulled, Scores, dtype_of
from normscope.theory.program.reading import Call, law_of, places

#: Heads that an average takes at most.
_HEADS = 32


def scored(program: Program, call: Call, a: Field, b: Field, out: Tensor) -> Scores | None:
    """a b over the features of both."""
    if len(a.shape) - 1 not in a.features or len(b.shape) - 2 not in b.features:
        return None
    return program.scores(call.again, [a, b], out)


@rule("scaled_dot_product_attention")
def attention(program: Program, call: Call, out: Tensor) -> Law | None:
    """softmax(q k^T / sqrt(d) + mask) v."""
    q, k, v = (law_of(x) for x in call.args[:3])
    if not (isinstance(q, Field) and isinstance(k, Field) and isinstance(v, Field)):
        return None
    mask, dropout = call.argument(3, "attn_mask"), call.argument(4, "dropout_p", 0.0)
    causal, scale = call.argument(5, "is_causal", False), call.kwargs.get("scale")
    if law_of(mask) is not None:
        return None
    if call.kwargs.get("enable_gqa"):
        k, v = (_repeated(program, x, q.shape[1]) for x in (k, v))
        if k is None or v is None:
            return None
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else scale

    def softmax(q: Tensor, k: Tensor) -> Tensor:
        logits = scale * (q @ k.mT)
        if causal:
            keep = torch.ones(logits.shape[-2:], dtype=torch.bool).tril()
            logits = logits.masked_fill(~keep, -math.inf)
        if mask is not None:
            logits = logits.masked_fill(~mask, -math.inf) if mask.dtype == torch.bool else logits + mask
        return logits.softmax(-1)

    shape = (*q.shape[:-1], k.shape[-2])
    found: Law = program.scores(softmax, [q, k], torch.empty(shape, device="meta"))
    program.nodes.append(found)
    if dropout:
        found = dropped(program, found, dropout)
        program.nodes.append(found)
    return attended(program, found, v, out)


def _repeated(program: Program, field: Field, heads: int) -> Field | None:
    """Each of few heads for several queries'."""
    times = heads // field.shape[1]
    ids = places(field.shape).repeat_interleave(times, 1).long()
    found = program.moved(field, ids, lambda x: x.repeat_interleave(times, 1))
    if found is not None:
        program.nodes.append(found)
    return found


def attended(program: Program, scores: Law, v: Field, out: Tensor) -> Field | None:
    """A v for scores A (n, heads, t, s) or (n, t, s) and v (n, heads, s, d) or (n, s, d)."""
    dim = len(v.shape)
    if not isinstance(scores, Scores) or dim not in (3, 4) or v.sites != (0, dim - 2) or len(scores.shape) != dim:
        return None
    n, s, t = v.shape[0], v.shape[-2], scores.shape[-2]
    if n * t > program.most:
        return None
    dtype = dtype_of(max(v.count, n * t))

    def heads() -> list[Tensor]:
        """(n, t, s) of each head that is averaged over."""
        each = scores.draw(0).reshape(n, -1, t, s).shape[1]
        some = range(min(program.draws.count, -(-_HEADS // each)))
        a = torch.cat([scores.draw(i).reshape(n, -1, t, s) for i in some], 1)[:, :_HEADS]
        return list(a.to(dtype).unbind(1))

    def moments() -> tuple[Tensor, Tensor]:
        m, k = (x.to(dtype) for x in v.moments)
        found = heads()
        mean = sum(torch.einsum("nts,ns->nt", a, m.reshape(n, s)).reshape(-1) for a in found) / len(found)
        return mean, sum(between(a, k, a) for a in found) / len(found)  # type: ignore[return-value]

    field = Field(out.shape, v.features, program.draws, of=(scores, v), by=lambda a, x: a @ x, moments=moments)

    def pull(grad: Tensor) -> Pulled:
        found = heads()
        values = sum(between(a.mT, grad.to(dtype), a.mT) for a in found) / len(found)
        del found
        back = [g @ v.draw(i).mT for i, g in enumerate(program.cotangents(field, grad))]
        return [(v, values), (scores, back)]

    field.pull = pull
    return field


def between(a: Tensor, k: Tensor, b: Tensor) -> Tensor:
    """a k b^T over the positions of each two samples: a (n, t, s), k (n s, n s), b (n, u, s)."""
    n, t, s = a.shape
    left = torch.bmm(a, k.reshape(n, s, n * s)).reshape(n * t, n, s)
    return torch.bmm(left.transpose(0, 1), b.mT).transpose(0, 1).reshape(n * t, -1)


def multi_head(
    query: Tensor, key: Tensor, value: Tensor, embed_dim_to_check: int, num_heads: int, in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None, bias_k: Any, bias_v: Any, add_zero_attn: bool, dropout_p: float,
    out_proj_weight: Tensor, out_proj_bias: Tensor | None, training: bool = True, key_padding_mask: Any = None,
    need_weights: bool = True, attn_mask: Tensor | None = None, use_separate_proj_weight: bool = False,
    q_proj_weight: Any = None, k_proj_weight: Any = None, v_proj_weight: Any = None, static_k: Any = None,
    static_v: Any = None, average_attn_weights: bool = True, is_causal: bool = False,
) -> tuple[Tensor, None]:  # fmt: skip
    """``F.multi_head_attention_forward`` in the functions that have rules; inputs (t, n, d)."""
    separate = (q_proj_weight, k_proj_weight, v_proj_weight)
    weights = separate if in_proj_weight is None else in_proj_weight.chunk(3)
    biases = (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
    q, k, v = (
        F.linear(x, w, b).unflatten(-1, (num_heads, -1)).permute(1, 2, 0, 3)
        for x, w, b in zip((query, key, value), weights, biases, strict=True)
    )
    if key_padding_mask is not None:
        padding = key_padding_mask[:, None, None, :]
        if padding.dtype == torch.bool:
            padding = torch.zeros(padding.shape, dtype=query.dtype).masked_fill(padding, -math.inf)
        attn_mask = padding if attn_mask is None else attn_mask + padding
    if attn_mask is not None and attn_mask.dtype == torch.bool:
        attn_mask = ~attn_mask
    if attn_mask is not None and attn_mask.dim() == 3:
        attn_mask = attn_mask.unflatten(0, (-1, num_heads))
    causal = is_causal and attn_mask is None
    out = F.scaled_dot_product_attention(q, k, v, attn_mask, dropout_p if training else 0.0, causal)
    return F.linear(out.permute(2, 0, 1, 3).flatten(2), out_proj_weight, out_proj_bias), None


COMPOSITE["multi_head_attention_forward"] = multi_head
