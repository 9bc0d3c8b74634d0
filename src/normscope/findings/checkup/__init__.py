"""The check-up: what one step shows of the wiring, the loss, the data and the optimizer, as plain numbers and names."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

from normscope.call.arguments import tensors
from normscope.call.losses import COTANGENT
from normscope.call.step import Step
from normscope.findings.checkup.backward import of_backward
from normscope.findings.checkup.calls import of_calls
from normscope.findings.checkup.data import firsts, load, of_data
from normscope.findings.checkup.flags import of_flags
from normscope.findings.checkup.free import of_free
from normscope.findings.checkup.graphs import of_graphs
from normscope.findings.checkup.loop import of_loop
from normscope.findings.checkup.loss import of_loss
from normscope.findings.checkup.mixing import of_mixing
from normscope.findings.checkup.norms import of_norms
from normscope.findings.checkup.pairs import of_pairs
from normscope.findings.checkup.places import of_places
from normscope.findings.checkup.pull import of_pull
from normscope.findings.checkup.scene import watch
from normscope.findings.checkup.trial import of_trial
from normscope.findings.checkup.update import of_update
from normscope.findings.checkup.volume import of_volume
from normscope.findings.checkup.wiring import of_wiring

__all__ = ["check_up"]


def check_up(
    at: Step,
    broken: dict[str, Any] | None = None,
    batches: list[tuple[Any, Any]] | None = None,
    trial: int | str | bool = False,
    observed: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Every measurement that this step makes possible, by section; ``left_out``: sections that failed, and why.

    broken: what was found non-finite in the data already. batches: those of ``data``, where they were read already.
    trial: see `of_trial`; ``False``: none. observed: what the user's own running loop showed: its ``loop`` (as
    `of_loop`), ``losses`` and ``rates`` of its steps, the parameters that it trains ``elsewhere`` (`of_wiring`), and
    its ``loaders``.
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
    found["steps"] = at.steps
    found["has_loss"] = scene.loss is not None and scene.loss.kind != COTANGENT
    entry = next((t for t in tensors((at.args, at.kwargs)) if t.is_floating_point()), None)
    found["widths"] = {c.name: c.size_out for c in scene.calls}
    found["widths"] |= {} if entry is None else {"the inputs": entry.numel() / at.rows.n}
    read = load(at, at.data) if batches is None else batches
    valid = load(at, at.valid, 8)
    observed = observed or {}
    loaders = observed.get("loaders", [at.data])

    def every(section: str, work: Any) -> None:
        try:
            found[section] = work()
        except Exception as error:
            found["left_out"][section] = f"{type(error).__name__}: {error}"

    every("wiring", lambda: of_wiring(scene, observed.get("elsewhere", ())))
    every("loss", lambda: of_loss(scene))
    every("free", lambda: of_free(scene, found.get("loss", {}).get("task", "")))
    every("data", lambda: of_data(scene, firsts(read), firsts(valid), loaders) | {"broken": broken or {}})
    every("calls", lambda: of_calls(scene) | {"twice": scene.twice, "again": scene.again})
    every("mixing", lambda: of_mixing(scene))
    every("places", lambda: of_places(scene))
    every("pull", lambda: of_pull(scene))
    every("pairs", lambda: of_pairs(scene))
    every("volume", lambda: of_volume(scene))
    every("graphs", lambda: of_graphs(scene))
    every("flags", lambda: of_flags(scene))
    every("norms", lambda: of_norms(scene))
    every("backward", lambda: of_backward(scene))
    every("update", lambda: of_update(scene))
    every("loop", lambda: observed["loop"] if "loop" in observed else of_loop(at))
    found["seconds"] = time.perf_counter() - start
    if trial is not False:
        loss = found.get("loss", {})  # of several outputs one alone being constant says little
        constant = loss.get("constant", math.nan) if not loss.get("several") else math.nan
        every("trial", lambda: of_trial(scene, read, valid, constant, trial, observed))
    found["observed"] = {k: v for k, v in observed.items() if k not in ("loop", "elsewhere", "loaders")}
    return found
