"""Who races, and on what: models, each with every cure, as functions of the seed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from normscope.call.step import Step
from normscope.cli._shared import check_runs, running
from normscope.core.errors import UsageError
from normscope.data.datasets import DATASETS, Batch, load
from normscope.data.models import load_model
from normscope.findings.cures import cure, parts_of
from normscope.training import Samples, permutation

FITS = "give data that fits it: --data with a data set, a file, or file.py:fn that returns (inputs, targets)."


def samples_of(name: str, data_dir: Path | None, n: int | None, n_test: int | None) -> tuple[Batch, Batch | None]:
    """Training and test samples; no test where the data has no such split, or none was wanted."""
    if name.partition(":")[0] in ("random", "tokens"):
        raise UsageError(
            f"A race needs data with targets to train on; {name} is made up and has none. Give one of "
            f"{', '.join(DATASETS)}, or a file with targets."
        )
    train = load(name, data_dir, n=n)
    if train.targets is None:
        raise UsageError(f"A race needs targets; {name} has inputs only. Give data with targets.")
    if n_test == 0:
        return train, None
    try:
        return train, load(name, data_dir, split="test", n=n_test)
    except UsageError:
        if name.lower().replace("_", "-") in DATASETS or n_test is not None:
            raise
        return train, None  # an unsplit file or callable


def variants_of(
    models: list[str], cures: str | None, train: Batch, batch: int
) -> dict[str, Callable[[int], torch.nn.Module]]:
    """name -> function of the seed, for every model with every cure."""
    names = [c.strip() for c in cures.split(",") if c.strip()] if cures is not None else []
    for what, given in (("model", models), ("cure", names)):
        twice = next((x for x in given if given.count(x) > 1), None)
        if twice is not None:
            raise UsageError(f"A {what} is named once; {twice!r} stands twice. Seeds repeat a run: --seeds.")
    if cures is not None and not names:
        raise UsageError("--cures needs at least one name, as in --cures none,orthogonal.")
    for how in names:
        if how != "none":
            parts_of(how)  # names the nearest cure if there is none of this name
    made = {}
    for model in models:
        for how in names or ["none"]:
            name = how if len(models) == 1 and names else f"{model} + {how}" if names and how != "none" else model
            made[name] = _maker(model, how, train, batch)
    return made


def _maker(model: str, how: str, train: Batch, batch: int) -> Callable[[int], torch.nn.Module]:
    def make(seed: int) -> torch.nn.Module:
        # A name may stand for one module object; the next seed must not find it trained.
        net = copy.deepcopy(load_model(model, train, seed=seed))
        first = permutation(seed, 0, len(train))[:batch]  # the first batch of the race
        part = _rows(train, first)
        with running(model, part.name, {"model": net, "inputs": part.inputs}, FITS):
            check_runs(Step(net, part.inputs, part.targets))
        if how == "none":
            return net
        try:
            return cure(net, how, part.inputs, part.targets, seed=seed)
        except UsageError as error:
            raise UsageError(f"{how} does not apply to {model}: {error} Leave it out of --cures.") from error

    return make


def _rows(batch: Batch, index: torch.Tensor) -> Batch:
    part = Samples(batch.inputs, batch.targets).take(index)
    return replace(batch, inputs=part.inputs, targets=part.targets)
