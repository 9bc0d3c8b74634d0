"""Families of nets: each function makes one for a task, from the parts in blocks.py."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from blocks import (
    ACTIVATIONS,
    Apply,
    Attention,
    ByClass,
    Concat,
    Last,
    Position,
    Recurrent,
    Rows,
    Skip,
    Whole,
    draw_,
    norm_of,
    with_weight_norm,
    zero_last_,
)  # fmt: skip
from tasks import Task
from torch import Tensor, nn


@dataclass(frozen=True)
class Style:
    """What the layers of a net share. place: of the norm, ``before`` or ``after`` the activation."""

    act: str = "relu"
    norm: str = "none"
    law: str = "torch"
    gain: float = 1.0
    bias: float | None = None
    skip: str = "none"
    place: str = "before"

    def layer(self, layer: nn.Module) -> nn.Module:
        """With weights of the law, under a norm of weights if that is the norm."""
        return with_weight_norm(draw_(layer, self.law, self.gain, self.bias), self.norm)

    def unit(self, layer: nn.Module, width: int, flat: bool = True) -> nn.Sequential:
        """Layer, norm and activation."""
        norm, act = norm_of(self.norm, width, flat), ACTIVATIONS[self.act]()
        behind = [norm, act] if self.place == "before" else [act, norm]
        return nn.Sequential(self.layer(layer), *(m for m in behind if m is not None))

    def chain(
        self, make: Callable[[int], nn.Module], count: int, width: int, more: int, flat: bool = True
    ) -> nn.Module:
        """``count`` blocks ``make(inputs)`` with the skip around each; ``more``: features of what a `Concat`
        repeats.
        """
        if self.skip == "none":
            return nn.Sequential(*(make(width) for _ in range(count)))
        if self.skip == "concat":
            return Concat(make(width + more) for _ in range(count))
        blocks = [Skip(make(width), self.skip, width, max(count, 1), flat) for _ in range(count)]
        if self.skip == "zero":
            for block in blocks:
                zero_last_(block.branch)
        return nn.Sequential(*blocks)


def mlp(task: Task, depth: int, width: int, ahead: Callable[[int], nn.Module] | None = None, **style: Any) -> Whole:
    """``depth`` hidden layers; ``ahead``: what the flat inputs pass first."""
    s = Style(**style)
    inputs = functools.reduce(lambda a, b: a * b, task.shape)
    return Whole(
        nn.Flatten(),
        *([] if ahead is None else [ahead(inputs)]),
        s.unit(nn.Linear(inputs, width), width),
        s.chain(lambda d: s.unit(nn.Linear(d, width), width), depth - 1, width, width),
        draw_(nn.Linear(width, task.outputs), s.law, 1.0, s.bias),
    )


def _pooled(how: str, width: int, size: int, task: Task, s: Style) -> list[nn.Module]:
    """From maps to classes: by their means, or all of them."""
    pool = [nn.AdaptiveAvgPool2d(1)] if how == "mean" else []
    inputs = width if how == "mean" else width * size * size
    return [*pool, nn.Flatten(), draw_(nn.Linear(inputs, task.outputs), s.law, 1.0, s.bias)]


def cnn(task: Task, depth: int, width: int, pool: str = "mean", kernel: int = 3, **style: Any) -> Whole:
    """``depth`` convolutions, the first of stride 2 on images of more than 8 pixels."""
    s = Style(**style)
    channels, size, _ = task.shape
    stride = 1 if size <= 8 else 2
    size = -(-size // stride)
    first = nn.Conv2d(channels, width, kernel, stride, kernel // 2)
    return Whole(
        s.unit(first, width, False),
        s.chain(
            lambda d: s.unit(nn.Conv2d(d, width, kernel, 1, kernel // 2), width, False), depth - 1, width, width, False
        ),
        *_pooled(pool, width, size, task, s),
    )


def resnet(task: Task, depth: int, width: int, form: str = "pre", **style: Any) -> Whole:
    """``depth`` blocks of two convolutions: ``pre`` (norm, activation, convolution) or ``post`` (activation behind the
    sum).
    """
    s = Style(**style)
    channels, size, _ = task.shape
    stride = 1 if size <= 8 else 2

    def conv() -> nn.Module:
        return s.layer(nn.Conv2d(width, width, 3, 1, 1, bias=s.norm == "none"))

    def parts(*modules: nn.Module | None) -> nn.Sequential:
        return nn.Sequential(*(m for m in modules if m is not None))

    def norm() -> nn.Module | None:
        return norm_of(s.norm, width, False)

    def act() -> nn.Module:
        return ACTIVATIONS[s.act]()

    blocks: list[nn.Module] = []
    for _ in range(depth):
        if form == "pre":
            branch = parts(norm(), act(), conv(), norm(), act(), conv())
        else:
            branch = parts(conv(), norm(), act(), conv(), norm())
        if s.skip == "zero":
            zero_last_(branch)
        block = branch if s.skip == "none" else Skip(branch, s.skip, width, depth, False)
        blocks += [block] if form == "pre" else [block, act()]
    stem = parts(s.layer(nn.Conv2d(channels, width, 3, stride, 1)), None if form == "pre" else norm())
    ending = parts(norm(), act()) if form == "pre" else nn.Identity()
    return Whole(stem, *blocks, ending, *_pooled("mean", width, size, task, s))


def tokens_in(task: Task, width: int, s: Style, std: float | None = None) -> list[nn.Module]:
    """(n, t, width) from images (by rows), series or tokens; ``std``: of the embedding, default torch's 1."""
    if task.tokens:
        table = nn.Embedding(task.tokens, width)
        if std is not None:
            nn.init.normal_(table.weight, std=std)
        return [table]
    if len(task.shape) == 3:
        return [Rows(), draw_(nn.Linear(task.shape[0] * task.shape[2], width), s.law, 1.0, s.bias)]
    return [draw_(nn.Linear(task.shape[-1], width), s.law, 1.0, s.bias)]


def steps_of(task: Task) -> int:
    return task.shape[1] if len(task.shape) == 3 else task.shape[0]


def tokens_out(task: Task, width: int, read: str, s: Style) -> list[nn.Module]:
    """Classes of the whole sequence, or of every token."""
    head = draw_(nn.Linear(width, task.outputs), s.law, 1.0, s.bias)
    return [head, ByClass()] if task.name == "markov" else [Last(read), head]


class Sublayer(nn.Module):
    """Norm and branch and skip of a transformer, in the order of ``form``: pre, post, or bare (no norm)."""

    def __init__(self, branch: nn.Module, s: Style, form: str, width: int, blocks: int) -> None:
        super().__init__()
        norm = None if form == "bare" else norm_of(s.norm, width)
        if s.skip == "zero":
            zero_last_(branch)
        inner = nn.Sequential(norm, branch) if form == "pre" and norm is not None else branch
        self.body = inner if s.skip == "none" else Skip(inner, s.skip, width, blocks)
        self.norm = norm if form == "post" and norm is not None else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.body(x))


def transformer(
    task: Task, depth: int, width: int, form: str = "pre", heads: int = 2, read: str = "mean", scale: float = 1.0,
    std: float | None = None, **style: Any,
) -> Whole:  # fmt: skip
    """``depth`` layers of attention and MLP (twice as wide); causal where every token is answered."""
    s = Style(**({"act": "gelu", "norm": "layer", "skip": "plain"} | style))
    layers: list[nn.Module] = []
    for _ in range(depth):
        attention = draw_(Attention(width, heads, scale, task.name == "markov"), s.law, s.gain, s.bias)
        dense = nn.Sequential(
            s.layer(nn.Linear(width, 2 * width)), ACTIVATIONS[s.act](), s.layer(nn.Linear(2 * width, width))
        )
        layers += [Sublayer(b, s, form, width, 2 * depth) for b in (attention, dense)]
    last = norm_of(s.norm, width) if form == "pre" else None
    return Whole(
        *tokens_in(task, width, s, std), Position(steps_of(task), width), *layers,
        *([] if last is None else [last]), *tokens_out(task, width, read, s),
    )  # fmt: skip


def recurrent(
    task: Task, cell: str, depth: int, width: int, read: str = "last", forget: float | None = None, **style: Any
) -> Whole:
    """``depth`` layers of an RNN, LSTM or GRU; a norm stands before the classes; ``forget``: bias of an LSTM's gate."""
    s = Style(**({"act": "tanh"} | style))
    core = Recurrent(cell, width, width, depth, s.act == "relu")
    draw_(core, s.law, s.gain, s.bias)
    if forget is not None:
        for name, p in core.cell.named_parameters():
            if name.startswith("bias_ih"):
                nn.init.constant_(p[width : 2 * width], forget)
    norm = norm_of(s.norm, width)
    ends = tokens_out(task, width, read, Style())
    between = [] if norm is None or task.name == "markov" else [norm]
    return Whole(*tokens_in(task, width, Style()), core, *ends[:-1], *between, ends[-1])


def autoencoder(task: Task, depth: int, width: int, code: int, ahead: nn.Module | None = None, **style: Any) -> Whole:
    """``depth`` hidden layers down to the code, and as many up; ``ahead``: noise, say."""
    s = Style(**style)

    def side(inputs: int) -> list[nn.Module]:
        if depth == 0:
            return []
        hidden = s.chain(lambda d: s.unit(nn.Linear(d, width), width), depth - 1, width, width)
        return [s.unit(nn.Linear(inputs, width), width), hidden]

    wide = width if depth else task.outputs
    narrow = draw_(nn.Linear(wide, code), s.law, 1.0, s.bias)
    last = draw_(nn.Linear(width if depth else code, task.outputs), s.law, 1.0, s.bias)
    first = [] if ahead is None else [ahead]
    return Whole(nn.Flatten(), *first, *side(task.outputs), narrow, *side(code), last)


def conv_autoencoder(task: Task, depth: int, width: int, **style: Any) -> Whole:
    """Convolutions, a stride of 2 down, as many up by a transposed one."""
    s = Style(**style)
    channels, size, _ = task.shape
    middle = s.chain(lambda d: s.unit(nn.Conv2d(d, width, 3, 1, 1), width, False), depth, width, width, False)
    return Whole(
        s.unit(nn.Conv2d(channels, width, 3, 2, 1), width, False), middle,
        draw_(nn.ConvTranspose2d(width, channels, 2, 2), s.law, 1.0, s.bias),
        Apply(lambda x: x[..., :size, :size]), nn.Flatten(),
    )  # fmt: skip
