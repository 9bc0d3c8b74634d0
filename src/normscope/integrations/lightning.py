"""A tracker as a Lightning callback, for ``lightning`` and ``pytorch_lightning``."""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from normscope.core.errors import UsageError
from normscope.core.extra import needs_extra
from normscope.integrations.loggers import LoggerWriter
from normscope.probing.logs import kinds
from normscope.probing.tracker import Tracker
from normscope.probing.writers import ParquetWriter, as_writers


def _callbacks() -> list[type]:
    """The callback classes of the flavours in use: of those imported already, else of the first that is installed."""
    flavours = {"lightning": "lightning.pytorch", "pytorch_lightning": "pytorch_lightning"}
    used = [name for name in flavours if sys.modules.get(name)]
    found = used or [name for name in flavours if importlib.util.find_spec(name) is not None][:1] or ["lightning"]
    with needs_extra("normscope.integrations.lightning needs", "lightning"):
        return [importlib.import_module(flavours[name]).Callback for name in found]


class TrackerCallback(*_callbacks()):  # type: ignore[misc]
    """``Trainer(callbacks=[TrackerCallback(every=100)])``: records each layer while ``Trainer.fit`` runs.

    every: optimizer steps (``trainer.global_step``) between measurements; of the batches that a step accumulates the
        first is measured.
    folder: of the full table, parquet parts written as they are measured; default ``normscope`` in the folder of the
        trainer's logger. A run that goes on from a checkpoint, or fits again, adds to it.
    log: whether a few scalars (`summary`: minimum, median, maximum over layers, deepest) go to the trainer's loggers.
    options: go to `Tracker` (metrics, layers, rows, tokens, writers).

    Only the process of rank 0 measures. ``callback.tracker`` is the tracker: ``.frame()``, ``.overhead``, ``.notes``.
    """

    def __init__(self, every: int = 100, *, folder: str | Path | None = None, log: bool = True, **options: Any) -> None:
        super().__init__()
        if "by" in options:
            raise UsageError("A callback counts optimizer steps as the trainer does; leave by= out.")
        self.tracker: Tracker | None = None
        self._every, self._folder, self._log, self._options = every, folder, log, options

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        """The tracker is made, on rank 0."""
        self._close()
        log_dir = trainer.log_dir  # asks all processes
        if not trainer.is_global_zero:
            return
        folder = self._folder or os.path.join(log_dir or trainer.default_root_dir, "normscope")
        writers: list[Any] = [ParquetWriter(folder, append=True), *as_writers(self._options.get("writers", ()))]
        if self._log:
            writers += [LoggerWriter(logger) for logger in trainer.loggers]
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        options = {"scaler": scaler, **self._options, "writers": writers}
        self.tracker = Tracker(pl_module, self._every, by="step", **options)
        self.tracker.step(trainer.global_step)

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        """A step begins, if it is one to be measured."""
        if self.tracker is not None:
            self.tracker.begin(batch)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        """The forward and backward pass of the batch are over; its loss and the rate are kept."""
        if self.tracker is not None:
            self.tracker.end()
            told: dict[str, Any] = {}
            loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
            if isinstance(loss, torch.Tensor) and loss.numel() == 1:  # divided by how many batches a step takes
                told["loss"] = loss.detach() * trainer.accumulate_grad_batches
            if trainer.optimizers:
                told["lr"] = float(trainer.optimizers[0].param_groups[0]["lr"])
            self.tracker.log(step=self.tracker.steps, **told)
            self.tracker.step(trainer.global_step)

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        """The loss of a validation is kept, where the module logs one by a usual name."""
        metrics = {str(k): v for k, v in trainer.callback_metrics.items()}
        name = kinds(list(metrics)).get("val_loss")
        if self.tracker is not None and name is not None and not trainer.sanity_checking:
            self.tracker.log(val_loss=metrics[name])

    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        """What was measured stays; the hooks come off."""
        self._close()

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        """The hooks come off, the files are whole."""
        self._close()

    def _close(self) -> None:
        if self.tracker is not None:
            self.tracker.close()
