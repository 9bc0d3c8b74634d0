"""What a cure is, and the cures by name: what `normscope.findings.cures`, the command line and races can apply."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ParamSpec, TypeVar

import torch
from torch import nn

from normscope.core.registry import Registry
from normscope.init._layers import Treatment, model_of

P = ParamSpec("P")
F = TypeVar("F", bound=Callable[..., Treatment])


@dataclass(frozen=True)
class Cure:
    """A named treatment. ``apply(model, inputs, targets, generator)`` changes the model and returns a `Treatment`.

    ``needs_inputs``: looks at the batch; ``wraps``: changes the module tree, so the treatment's model may be another
    object and the keys of its state dict change; ``control``: there to be compared with, not to be used; ``auto``:
    whether ``--how auto`` tries it, "quick", "middle" or "slow" (in this order), "" if not.
    """

    name: str
    doc: str
    source: str
    needs_inputs: bool
    wraps: bool
    control: bool
    auto: str
    apply: Callable[[nn.Module, Any, Any, torch.Generator | None], Treatment]


CURES: Registry[Cure] = Registry("cure")


def register(
    name: str, source: str, *, doc: str = "", wraps: bool = False, control: bool = False, auto: str = ""
) -> Callable[[F], F]:
    """Decorator: enrol a function of the model and of what it names of ``inputs``, ``targets`` and ``generator``.

    It returns a `Treatment`. doc: the line shown; default the first paragraph of its docstring.
    """

    def enrol(function: F) -> F:
        takes = inspect.signature(function).parameters
        line = doc or " ".join((inspect.getdoc(function) or "").partition("\n\n")[0].split())

        def apply(model: nn.Module, inputs: Any, targets: Any, generator: torch.Generator | None) -> Treatment:
            given = {"inputs": inputs, "targets": targets, "generator": generator}
            return function(model, **{k: value for k, value in given.items() if k in takes})

        CURES.add(name, Cure(name, line, source, "inputs" in takes, wraps, control, auto, apply))
        return function

    return enrol


def in_place(account: Callable[P, Treatment], name: str) -> Callable[P, nn.Module]:
    """The function ``name`` that does the same and returns the model, without the account of what it did."""

    @functools.wraps(account)
    def changed(*args: P.args, **kwargs: P.kwargs) -> nn.Module:
        return account(*args, **kwargs).model

    changed.__name__ = changed.__qualname__ = name
    changed.__annotations__ = {**account.__annotations__, "return": "nn.Module"}
    vars(changed)["__signature__"] = inspect.signature(account).replace(return_annotation="nn.Module")
    return changed


@register("none", "-", auto="quick")
def none(model: nn.Module) -> Treatment:
    """The model as it is."""
    return Treatment(model_of(model))
