"""A tracker as a callback of Hugging Face's ``Trainer``."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from normscope.core.errors import UsageError
from normscope.core.extra import needs_extra
from normscope.integrations._summary import summary
from normscope.probing.logs import told_by_hugging_face
from normscope.probing.tracker import Tracker
from normscope.probing.writers import ParquetWriter, as_writers

with needs_extra("normscope.integrations.transformers needs", "transformers"):
    from transformers import TrainerCallback as _TrainerCallback


class TrackerCallback(_TrainerCallback):
    """``Trainer(..., callbacks=[TrackerCallback(every=100)])``: records each layer while ``Trainer.train`` runs.

    every: optimizer steps (``state.global_step``) between measurements; of the batches that a step accumulates the
        first is measured (its loss is the trainer's: divided by the number of batches).
    folder: of the full table, parquet parts written as they are measured; default ``normscope`` in
        ``args.output_dir``. A run that goes on from a checkpoint adds to it.
    options: go to `Tracker` (metrics, layers, rows, tokens, writers). ``tokens=True`` suits language models.

    The losses, rates and gradient norms that the trainer logs are kept with the layers'. The latest scalars of the
    tracker (minimum, median, maximum over layers, deepest) stand in ``state.log_history``, and so in
    ``trainer_state.json``; loggers of the trainer that ran before (``report_to``) do not see them: give the tracker a
    `LoggerWriter`. Nothing is added to what the trainer prints.

    Only the process of rank 0 measures. ``callback.tracker`` is the tracker: ``.frame()``, ``.overhead``, ``.notes``.
    """

    def __init__(self, every: int = 100, *, folder: str | Path | None = None, **options: Any) -> None:
        if "by" in options:
            raise UsageError("A callback counts optimizer steps as the trainer does; leave by= out.")
        self.tracker: Tracker | None = None
        self._every, self._folder, self._options = every, folder, options
        self._latest: dict[str, float] = {}

    def on_train_begin(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
        """The tracker is made, on rank 0."""
        if self.tracker is not None:
            self.tracker.close()
        if not state.is_world_process_zero:
            return
        folder = self._folder or os.path.join(args.output_dir, "normscope")
        writers = [ParquetWriter(folder, append=True), self._keep, *as_writers(self._options.get("writers", ()))]
        scaler = getattr(kwargs.get("optimizer"), "scaler", None)
        options = {"scaler": scaler, **self._options, "writers": writers}
        self.tracker = Tracker(model, self._every, by="step", **options)
        self.tracker.step(state.global_step)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """An optimizer step begins: its first batch is watched, if it is one to be measured."""
        if self.tracker is not None:
            self.tracker.begin()

    def on_substep_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A batch of several is done."""
        if self.tracker is not None:
            self.tracker.end()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The optimizer step is done."""
        if self.tracker is not None:
            self.tracker.end()
            self.tracker.step(state.global_step)

    def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
        """What the trainer logs is kept, and gets the scalars of the latest measured step beside it."""
        if self.tracker is None or not isinstance(logs, dict):
            return
        told = told_by_hugging_face(logs)
        self.tracker.log(step=state.global_step, **told)
        if self._latest and "loss" in told and state.log_history:  # not into ``logs``, which are printed
            state.log_history[-1].update(self._latest)

    def _keep(self, frame: Any) -> None:
        latest = summary(frame)
        self._latest = latest or self._latest

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The hooks come off, the files are whole."""
        if self.tracker is not None:
            self.tracker.close()
