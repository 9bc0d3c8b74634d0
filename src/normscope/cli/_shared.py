"""What the commands that take a model share: the step that model, data and loss make together, and what stops it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from normscope.call.arguments import mapped, tensors
from normscope.call.losses import LOSSES
from normscope.call.step import MODES, Step
from normscope.call.targets import what
from normscope.core.errors import DoesNotRun, UsageError, seed_of, unknown, whole_number
from normscope.core.load import (
    Crashed,
    arguments_of,
    call_object,
    load_object,
    origin,
    split_arguments,
    user_error,
)
from normscope.core.memory import does_not_fit
from normscope.core.spec import FAMILIES
from normscope.core.tensors import device_of
from normscope.data.datasets import Batch, load
from normscope.data.models import SOURCES, fitting_data, load_step, required, speaks, synthetic, takes

#: Samples of a batch when none were asked for; of a library's model, at 224 x 224 or 32 tokens, 128 would take minutes.
BATCH, LIBRARY_BATCH = 128, 16
#: What stands for the data's name where a Step brings its batch.
OWN = "its own batch"
FITS = (
    "give data that fits it: --data random:3x32x32, tokens:12x50257, a file, or file.py:fn that returns (inputs, "
    "targets)."
)
SEVERAL = (
    "give it several inputs: --data file.py:fn that returns ((x, t), targets), or a callable that returns a Step "
    "with them."
)
CHANGE = "change the batch that it brings, or give another: --data random:3x32x32, a file, or file.py:fn."


@dataclass(frozen=True)
class Given:
    """The options that say how a model is looked at."""

    data: str | None = None
    data_dir: Path | None = None
    n: int | None = None
    loss: str | None = None
    samples: int | None = None
    mode: str | None = None
    seed: int = 0
    device: str = "cpu"
    dtype: str | None = None
    optimizer: str | None = None
    #: How many batches of that size are wanted, in one.
    times: int = 1

    def step(self, name: str) -> tuple[Step, str]:
        """The step of a MODEL, what it brings replaced by what was given; and the name of its data."""
        where, dtype = device_of(self.device, "--device"), dtype_named(self.dtype)
        self._check()
        loss = loss_named(self.loss)
        batch, parts = self._loaded(name)
        model = parts["model"] = parts["model"].to(device=where, dtype=dtype)
        if loss is not None and "step" in parts:
            raise UsageError(
                f"--loss would have no use: {name} brings step=, which gives the loss. Leave one of them out."
            )
        options = {"loss": loss, "samples": self.samples, "mode": self.mode, "seed": self.seed or None}
        parts |= {key: value for key, value in options.items() if value is not None}
        if batch is not None:
            parts = {key: value for key, value in parts.items() if key not in ("inputs", "targets", "data")}
            parts |= _handed_over(model, batch, "loss" in parts)
        if dtype is not None and "data" in parts:
            raise UsageError(
                f"--dtype is for one batch; {name} brings data=. Make its batches in {self.dtype}, or give inputs."
            )

        def cast(x: torch.Tensor) -> torch.Tensor:
            return x.to(where, dtype if x.is_floating_point() else None)

        parts["inputs"] = mapped(parts.get("inputs"), cast)
        source = OWN if batch is None else batch.name
        with running(name, source, parts):
            step = Step(**parts) if batch is None else _made(parts)
        return step if self.optimizer is None else replace(step, optimizer=optimizer_of(self.optimizer, model)), source

    def _check(self) -> None:
        """What can be told before a file of the user's runs."""
        seed_of(self.seed, "--seed")
        if self.n is not None:
            whole_number("--batch", self.n, 1)
        if self.mode not in (None, *MODES):
            raise unknown("mode", self.mode, MODES)
        if self.data is not None and self.data.partition(":")[0] in ("random", "tokens"):
            synthetic(self.data, n=1)

    def _loaded(self, name: str) -> tuple[Batch | None, dict[str, Any]]:
        """The batch that was named or that fits, ``None`` where the step brings its own; and the fields of the step."""
        built_in = name.partition(":")[0] in FAMILIES
        batch = self._batch(self.data or "digits", BATCH) if self.data is not None or built_in else None
        parts = load_step(name, batch, seed=self.seed)
        if batch is None and not parts.keys() & {"inputs", "targets", "data"}:
            made_up = fitting_data(parts["model"])
            batch = self._batch(made_up, LIBRARY_BATCH) if made_up else self._batch("digits", BATCH)
        if batch is None and self.n is not None:
            raise UsageError(
                f"--batch is for data that is named; {name} brings its own batch. Leave it out, or give --data."
            )
        return batch, parts

    def _batch(self, data: str, usual: int) -> Batch:
        """``n`` samples; where n was left open, as many as usual, or all of a smaller file."""
        n = self.times * (usual if self.n is None else self.n)
        if data.partition(":")[0] in ("random", "tokens"):
            return synthetic(data, n=n, seed=self.seed)
        options: dict[str, Any] = {"seed": self.seed, "samples": self.samples or 0}
        try:
            return load(data, self.data_dir, n=n, **options)
        except UsageError as error:
            if n == self.n or isinstance(error, Crashed):
                raise
            return load(data, self.data_dir, n=self.n, **options)  # there are not so many


def _handed_over(model: torch.nn.Module, batch: Batch, chosen: bool) -> dict[str, Any]:
    """Inputs and targets as the model takes them: labels go to a model that makes its own loss of them."""
    inputs, targets = batch.inputs, batch.targets
    if isinstance(inputs, Mapping) and targets is not None and not chosen and takes(model, "labels"):
        inputs, targets = {**inputs, "labels": targets}, None
    ids = isinstance(inputs, torch.Tensor) and inputs.dim() == 2 and not inputs.is_floating_point()
    if ids and targets is None and not chosen and speaks(model):  # the loss that it is trained with
        inputs = {"input_ids": inputs, "labels": inputs}
    return {"inputs": inputs, "targets": targets}


def _made(parts: dict[str, Any]) -> Step:
    """The step; a Lightning module without another loss gets the pair as one batch."""
    if parts["targets"] is None:
        return Step(**parts)
    rest = {key: value for key, value in parts.items() if key not in ("inputs", "targets")}
    whole = Step(**rest, data=[(parts["inputs"], parts["targets"])])
    return whole if whole.step is not None else replace(whole, data=None)


@contextmanager
def running(name: str, data: str, parts: Step | Mapping[str, Any], fits: str = FITS) -> Iterator[None]:
    """Whatever stops a model on its data is told with both names and what to do; ``parts``: the step, or its fields."""
    model, inputs = (parts.model, parts.inputs) if isinstance(parts, Step) else (parts["model"], parts.get("inputs"))
    advice = CHANGE if data == OWN else SEVERAL if required(model) > 1 else fits
    try:
        yield
    except DoesNotRun as error:
        raise UsageError(f"{name} does not run on {data}. {error} {advice[0].upper()}{advice[1:]}") from error
    except UsageError:
        raise
    except Exception as error:
        if does_not_fit(error):
            raise UsageError(
                f"{name} on {data} must fit in memory; it does not. Take fewer samples: --batch."
            ) from error
        whose, source = origin(error), name.partition(":")[0]
        if whose == "ours" or (whose == "package" and source in FAMILIES):
            raise
        came = ", ".join(what(x) for x in list(tensors(inputs))[:4])
        doing = f"Running {name} on {data}{f' ({came})' if came else ''}"
        told = user_error(doing, error, f"If the data is the cause, {advice}")
        raise (UsageError(str(told)) if whose == "package" and source in SOURCES else told) from error


@torch.no_grad()
def check_runs(step: Step) -> None:
    """One forward pass, for what stops the model to be told before anything is done."""

    def work() -> None:
        args, kwargs, _ = step.arguments()
        step.whole(args, kwargs)

    step.run(work)


def loss_named(name: str | None) -> Any:
    """A loss as the library takes it: a name, or the callable or module that ``file.py:fn`` names, a class called."""
    if name is None or name in LOSSES:
        return name
    if ":" not in name:
        raise unknown("loss", name, [*LOSSES, "file.py:fn", "package.module:fn"])
    found = load_object(name)
    if isinstance(found, type):
        found = call_object(name)
    if not callable(found):
        raise UsageError(
            f"--loss must be a callable (outputs, targets), a torch loss module or its class; {name} is a "
            f"{type(found).__name__}."
        )
    return found


def optimizer_of(name: str, model: torch.nn.Module) -> torch.optim.Optimizer:
    """The optimizer that a name makes for a model: ``adamw,lr=0.001`` of torch's, given the parameters, or what
    ``file.py:fn`` returns, given the model.
    """
    known = {kind.__name__.lower(): kind for kind in vars(torch.optim).values() if isinstance(kind, type)}
    known.pop("optimizer", None)
    short, _, rest = name.partition(",")
    if ":" in short:
        plain, given = split_arguments(name)
        made = load_object(plain)
    elif short.lower() in known:
        made, given = known[short.lower()], arguments_of(rest.split(",") if rest else [], name)
    else:
        raise unknown("optimizer", short, [*known, "file.py:fn", "package.module:fn"])
    if not callable(made):
        raise UsageError(f"--optimizer must be a class or a function of the model; {name} is a {type(made).__name__}.")
    of = model.parameters() if isinstance(made, type) and issubclass(made, torch.optim.Optimizer) else model
    try:
        found = made(of, **given)
    except Exception as error:
        if ":" in short:
            raise user_error(f"Calling {name}", error) from error
        raise UsageError(f"{name} makes no optimizer of this model: {type(error).__name__}: {error}.") from error
    if not isinstance(found, torch.optim.Optimizer):
        raise UsageError(f"--optimizer must make a torch optimizer; {name} made a {type(found).__name__}.")
    return found


def dtype_named(name: str | None) -> torch.dtype | None:
    """The torch dtype of a name."""
    known = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name is not None and name not in known:
        raise unknown("dtype", name, known)
    return known[name] if name else None


def check_lr(lr: float | None) -> None:
    """A learning rate that was given is a positive number."""
    if lr is not None and not 0 < lr < math.inf:
        raise UsageError(f"--lr must be a positive number; got {lr}. Leave it out to judge no rate.")


def quiet() -> Any:
    """A status line that shows nothing."""
    return nullcontext()
