"""Each layer's geometry and gradients while the user's own loop trains, seen on the batches that pass by."""

from __future__ import annotations

import atexit
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from normscope.call.arguments import tensors
from normscope.call.samples import Samples
from normscope.call.step import Step, check_model, unwrap
from normscope.call.taps import find_taps
from normscope.core import files
from normscope.core.errors import TrainingStopped, UsageError, shown, whole_number
from normscope.core.faces import Shown
from normscope.core.favourites import TRACKED
from normscope.core.records import csv
from normscope.probing import measurement
from normscope.probing.hooks import Clock, Hook, calls_of, closing_at_exit
from normscope.probing.measurement import Measurement
from normscope.probing.runs import Run
from normscope.probing.scalars import Scalars
from normscope.probing.watch import Watch, review
from normscope.probing.writers import Writer, as_writers

if TYPE_CHECKING:
    import polars


class Tracker(Shown):
    """Records each layer's geometry and gradients while training, from the batches of the user's own loop.

    ``tracker = Tracker(model, every=100)`` before the loop is the one line to add. Every ``every``-th step the forward
    pass is watched by hooks, and so is the backward pass through it; there is no extra pass. Between measured steps
    the layers carry no hooks. Training is the same bit for bit with and without it (`docs/tracker.md` has the one
    exception, compiled models).

    model: what the loop calls; may be wrapped by ``torch.compile`` or (Distributed)DataParallel.
    every: steps between measurements; the first step is measured.
    metrics: names, ``"all"``, or None for a selection that needs no eigenvalues (`favourites.TRACKED`).
    layers: glob patterns of module paths, as in `probe`; default all layers.
    rows: at most so many samples, the first of the batch, enter a Gram matrix (column ``samples``); gradient norms
        are those of the whole batch.
    tokens: sequence activations (n, t, d) count as n*t samples, of which ``rows`` evenly spaced are taken.
    samples: the axis of the inputs that runs over samples; default the first, or as the model's layout says.
    by: what a step is. ``"forward"``: a forward pass of ``model`` in training mode with gradients on (so k passes if
        gradients are accumulated over k). ``"step"``: what lies between two calls of ``tracker.step()``, and the
        first forward pass of it is measured.
    writers: where every measured step goes at once: a path that ends in ``.csv``, a folder (parquet parts), or a
        callable that takes the step's table; or several of them. See `normscope.probing.writers`.
    scaler: the ``GradScaler``, if there is one: gradients are divided by its scale.
    on_finding: called with each `Finding` once, as soon as it is found, and again where it got worse.
    stop_on: ``"error"`` or ``"warning"``: `TrainingStopped` is raised where such a finding is found, from the next
        forward pass (``by="step"``: from ``step()``), the tracker closed and the model without its hooks.
    report: a page (``.html``) or picture that is written again every ``report_every`` measured steps.

    What fails inside the tracker never stops training: it is told in ``notes``.
    """

    face = "tracker"

    def __init__(
        self,
        model: nn.Module | Step,
        every: int = 100,
        *,
        metrics: str | Iterable[str] | None = None,
        layers: str | Sequence[str] | None = None,
        rows: int = 128,
        tokens: bool = False,
        samples: int | None = None,
        by: str = "forward",
        writers: str | Path | Writer | Iterable[str | Path | Writer] = (),
        scaler: Any = None,
        on_finding: Callable[[Any], object] | None = None,
        stop_on: str | None = None,
        report: str | Path | None = None,
        report_every: int = 10,
    ) -> None:
        if isinstance(model, Step):
            samples = model.samples if samples is None else samples
            model = model.model
        check_model(model, lazy=True)
        every = whole_number("every", every, 1, "It counts steps; the default is 100.")
        rows = whole_number("rows", rows, 2, "A Gram matrix compares samples; the default is 128.")
        if by not in ("forward", "step"):
            raise UsageError(f"by must be 'forward' or 'step'; got {shown(by)}. Leave it out for 'forward'.")
        self.every, self.by = every, by
        self.steps = 0
        self.measured = 0
        self.scaler = scaler
        self._root, self._inner = model, unwrap(model)[0]
        self._layers, self._rows, self._tokens, self._axis = layers, rows, tokens, samples
        self._plan = measurement.Plan.of(TRACKED if metrics is None else metrics)
        find_taps(self._inner, layers)  # a pattern that matches nothing is said now
        self._order: dict[str, int] = {}
        self._notes: dict[str, None] = {}
        self._clock = Clock()
        self._first = self._last = math.nan
        self._due = 0
        self._now: Measurement | None = None
        self._known: tuple[Any, Samples | None] | None = None
        self._region = False
        self._store, self._scalars = measurement.Store(), Scalars()
        self._watch = Watch(on_finding, stop_on, report, report_every)
        self._writers = as_writers(writers)
        self._at_exit: Callable[[], None] | None = None
        self._open = True
        try:
            model.register_forward_pre_hook(Hook(self._enter), with_kwargs=True)
            model.register_forward_hook(Hook(self._exit), always_call=True)
            self._at_exit = closing_at_exit(self) if self._writers else None
        except BaseException:  # an interrupt too
            self._unhook()
            raise

    def step(self, number: int | None = None) -> None:
        """With ``by="step"``: an optimizer step is done (``number``: of so many; default one more)."""
        if self.by != "step":
            raise UsageError(
                "step() counts steps only in a tracker made with by='step'; this one counts forward passes. "
                "Pass by='step', or leave the call out."
            )
        with self._clock:
            self._settle()
            self._judge()
            self.steps = self.steps + 1 if number is None else number

    def log(self, step: int | None = None, **numbers: Any) -> None:
        """What the loop knows of the training: ``tracker.log(loss=loss, val_loss=v, lr=rate)``, whenever it is known.

        step: which step they are of; default the one under way. Losses make the page's curves, and let the rules tell
        a net that has learnt from one that does not learn. Raises ``UsageError`` for what is no number.
        """
        now = self.steps if self.by == "step" else max(self.steps - 1, 0)
        with self._clock:
            self._scalars.add(now if step is None else whole_number("step", step), numbers)

    def run(self) -> Run:
        """What was tracked so far, as `normscope.probing.runs.read` reads it from files."""
        facts = {"steps seen": self.steps, "measured": self.measured, "every": self.every,
                 "overhead": f"{self.overhead:.2%}"}  # fmt: skip
        return Run(self.name, self.frame(), facts, self.notes)

    def findings(self) -> list[Any]:
        """The findings so far (``NS9xx``), the worst first, each with the step and the layer at which it began."""
        found: list[Any] = review(self.run()).findings
        return found

    def begin(self, inputs: Any = None) -> None:
        """For loops that do not call the model itself (its parts, several networks): a step starts here.

        inputs: anything that holds the batch; the length of its first tensor is the number of samples. What passes
        the layers until ``end()`` belongs to the step.
        """
        with self._clock:
            self._start((() if inputs is None else (inputs,), {}))
            self._region = True

    def end(self) -> None:
        """The step that ``begin`` opened is over (its backward pass may still come)."""
        with self._clock:
            self._region = False
            if self._now is not None:
                self._now.shut()

    @property
    def name(self) -> str:
        """The class of the model."""
        return type(self._inner).__name__

    @property
    def notes(self) -> tuple[str, ...]:
        """What could not be measured, and why."""
        return tuple(self._notes)

    @property
    def seconds(self) -> float:
        """Seconds spent inside the tracker; on a GPU with the waiting for it, so an upper bound."""
        return self._clock.seconds

    @property
    def overhead(self) -> float:
        """Seconds in the tracker over all other seconds between its first and its latest sight of the loop.

        Those hold whatever the loop does, loading data and evaluating too. 0 before the first step.
        """
        rest = self._last - self._first - self.seconds
        return self.seconds / rest if rest > 0 else 0.0

    def frame(self) -> polars.DataFrame:
        """The tidy table: ``source, step, samples, layer, name, call, kind, signal, metric, value``.

        ``samples``: the rows of the batch that entered the number. ``signal``: the layer's output (``activation``),
        the loss gradient with respect to it (``gradient``) or to the layer's parameters (``weight``), of the backward
        pass that followed, before any clipping. A step whose backward pass is still to come is not in it. What was
        logged (``run``) has no layer.
        """
        with self._clock:
            self._settle()
            return self._store.frame().vstack(self._scalars.frame())

    def to_csv(self, path: str | Path) -> None:
        """Write the table; whole, or not at all."""
        files.write(csv(self.frame()), path)

    def to_parquet(self, path: str | Path) -> None:
        """Write the table; whole, or not at all."""
        files.write(self.frame().write_parquet, path)

    def close(self) -> None:
        """Take the hooks off and close the writers. The table stays."""
        try:
            try:
                if not self._open:
                    return
                self._open = False
                self._finish()
            finally:
                self._unhook()
        finally:  # an interrupt can fall into one of them only
            self._unhook()
        if self._at_exit is not None:
            atexit.unregister(self._at_exit)
        if math.isnan(self._first) and sys.exc_info()[0] is None:
            warnings.warn(
                "The tracker saw no training step. It counts calls model(batch) in training mode with gradients on, of "
                "the very object that it was given: pass it what the loop calls (after torch.compile), or use begin() "
                "and end().",
                stacklevel=2,
            )

    def _finish(self) -> None:
        with self._clock:
            self._region = False
            if self._now is not None:
                self._now.shut()
            self._settle(force=True)
            if self._scalars:  # what was told since the latest measured step
                self._write(self._store.add(self.steps, [], self._told()))
            for writer in self._writers:
                getattr(writer, "close", lambda: None)()
            if self.measured:
                self._watch.write(self)

    def _unhook(self) -> None:
        """Take this tracker's hooks off the model, whichever are there."""
        self._discard()
        root: Any = self._root
        before = (root._forward_pre_hooks, root._forward_pre_hooks_with_kwargs)
        after = (root._forward_hooks, root._forward_hooks_with_kwargs, root._forward_hooks_always_called)
        for tables in (before, after):
            hooks = tables[0].items()
            for key in [k for k, h in hooks if isinstance(h, Hook) and getattr(h.method, "__self__", None) is self]:
                for table in reversed(tables):  # the one that it is found in comes last
                    table.pop(key, None)

    def __enter__(self) -> Tracker:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        state = "" if self._open else ", closed"
        return (
            f"Tracker({self.name}, every={self.every}: {self.steps} steps seen, {self.measured} "
            f"measured, {len(self._order)} layers, overhead {self.overhead:.2%}{state})"
        )

    # The loop passes by

    def _enter(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        if measurement.in_backward():  # a checkpointed model runs again inside the backward pass
            return
        with self._clock:
            if not (module.training and torch.is_grad_enabled()):
                self._settle()
            elif calls_of(module) > 1:
                return
            elif self._region:
                if self._now is not None and self._now.samples is None:
                    self._now.samples = self._read((args, kwargs))
            else:
                self._start((args, kwargs))

    def _read(self, call: tuple[Any, Any]) -> Samples | None:
        if self._known is not None and self._known[0] == _shapes(call):
            return self._known[1]
        found = measurement.count_samples(self._inner, *call, self._axis)
        self._known = _shapes(call), found
        for note in () if found is None else found.notes:
            self.note(note)
        return found

    def _start(self, call: tuple[Any, Any]) -> None:
        self._last = time.perf_counter()
        if math.isnan(self._first):
            self._first = self._last
        if self._now is not None and self._now.open:  # its forward pass was interrupted and never came back
            self._discard()
        self._settle()
        self._judge()
        step = self.steps
        self.steps += self.by == "forward"
        if step < self._due:
            return
        self._settle(force=True)
        self._due = step - step % self.every + self.every
        try:
            taps = find_taps(self._inner, self._layers)
            self._now = Measurement(self, step, taps, self._read(call))
            self._now.begin()
        except Exception as error:
            self.note(f"step {step} was not measured: {type(error).__name__}: {error}")
            self._discard()

    def _exit(self, module: nn.Module, _args: Any, output: Any) -> None:
        now = self._now
        if now is None or not now.open or measurement.in_backward():
            return
        with self._clock:
            if calls_of(module) > 1:
                return
            if output is None and sys.exc_info()[0] is not None:  # the forward pass raised
                self._discard()
                self._due = self.steps
                return
            now.root_returned(output)
            if not self._region:
                now.shut()
            self._last = time.perf_counter()

    def _discard(self) -> None:
        if self._now is not None:
            self._now.shut()
            self._now.finish()
            self._now = None

    def _settle(self, *, force: bool = False) -> None:
        """The measured step becomes rows of the table, once its backward pass has come."""
        now = self._now
        if now is None or now.open or not (force or now.backward_came):
            return
        now.finish()
        self._now = None  # after its hooks are off: an interrupt comes between any two lines
        part = self._store.add(now.step, now.rows(), self._told())
        self.measured += 1
        self._last = time.perf_counter()
        self._write(part, now.step)
        self._watch.measured(self, part)

    def _told(self) -> polars.DataFrame | None:
        """What was logged since the latest measured step."""
        told = self._scalars.frame() if self._scalars else None
        self._scalars.clear()
        return told

    def _write(self, part: Callable[[], polars.DataFrame], step: int | None = None) -> None:
        for writer in self._writers:
            try:
                writer(part())
            except Exception as error:
                what = "what was logged last" if step is None else f"step {step}"
                told = f"{what} could not be written by {type(writer).__name__}: {error}"
                self.note(told)
                warnings.warn(f"normscope.Tracker: {told} (it is kept in memory)", stacklevel=2)

    def _judge(self) -> None:
        """Tell what is new; where training is to stop, the tracker is closed first."""
        try:
            self._watch.judge(self)
        except TrainingStopped:
            self.close()
            raise

    def note(self, text: str) -> None:
        """Remember once what could not be measured."""
        self._notes[text] = None


def _shapes(call: tuple[Any, Any]) -> list[tuple[int, ...]]:
    return [tuple(x.shape) for x in tensors(call)]
