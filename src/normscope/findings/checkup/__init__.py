"""The check-up: what one step shows of the wiring, the loss, the data and the optimizer, as plain numbers and names."""

from __future__ import annotations

import time
from typing import Any

from torch import Tensor

from normscope.call.arguments import tensors
from normscope.call.losses import COTANGENT
from normscope.call.step import Step
from normscope.findings.checkup import data as batches_of
from normscope.findings.checkup.data import of_data
from normscope.findings.checkup.loop import of_loop
from normscope.findings.checkup.loss import of_loss
from normscope.findings.checkup.mixing import of_mixing
from normscope.findings.checkup.scene import watch
from normscope.findings.checkup.update import of_update
from normscope.findings.checkup.wiring import of_wiring

__all__ = ["check_up"]

Batches = list[tuple[Tensor, Tensor | None]]


def check_up(at: Step, broken: dict[str, Any] | None = None, batches: Batches | None = None) -> dict[str, Any]:
    """Every measurement that this step makes possible, by section; ``left_out``: sections that failed, and why.

    broken: what was found non-finite in the data already. batches: those of ``data``, where they were read already.
    """
    start = time.perf_counter()
    found: dict[str, Any] = {"left_out": {}, "seconds": 0.0}
    given = {"optimizer": at.optimizer, "data": at.data, "valid": at.valid, "train_step": at.train_step}
    found["given"] = [k for k, v in given.items() if v is not None]
    try:
        scene = watch(at)
    except Exception as error:
        found["left_out"]["wiring"] = f"{type(error).__name__}: {error}"
        return found
    found["has_loss"] = scene.loss is not None and scene.loss.kind != COTANGENT
    entry = next((t for t in tensors((at.args, at.kwargs)) if t.is_floating_point()), None)
    found["widths"] = {c.name: c.size_out for c in scene.calls}
    found["widths"] |= {} if entry is None else {"the inputs": entry.numel() / at.rows.n}
    read = (batches_of.read(at, at.data) if at.data is not None else []) if batches is None else batches

    def every(section: str, work: Any) -> None:
        try:
            found[section] = work()
        except Exception as error:
            found["left_out"][section] = f"{type(error).__name__}: {error}"

    every("wiring", lambda: of_wiring(scene))
    every("loss", lambda: of_loss(scene))
    every("data", lambda: of_data(scene, read, batches_of.read(at, at.valid, 8)) | {"broken": broken or {}})
    every("mixing", lambda: of_mixing(scene))
    every("update", lambda: of_update(scene))
    every("loop", lambda: of_loop(scene))
    found["seconds"] = time.perf_counter() - start
    return found
