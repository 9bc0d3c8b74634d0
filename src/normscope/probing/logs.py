"""Losses over the steps as other programs keep them: Hugging Face's ``trainer_state.json``, and tables as CSV."""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normscope.core import files
from normscope.core.errors import UsageError, brief

if TYPE_CHECKING:
    import polars

#: What a column is, by its usual names in lower case, ``_`` for all but letters and digits; the first is meant.
NAMES = {
    "loss": ("loss", "train_loss", "training_loss", "loss_train", "loss_training", "train_loss_step", "loss_step",
             "train_loss_epoch", "loss_epoch", "trn_loss", "tr_loss", "batch_loss"),
    "val_loss": ("val_loss", "valid_loss", "validation_loss", "eval_loss", "loss_val", "loss_valid", "loss_validation",
                 "loss_eval", "dev_loss", "test_loss", "loss_test", "val_loss_epoch", "val_loss_step"),
    "lr": ("lr", "learning_rate", "train_lr", "train_learning_rate", "lr_adam", "lr_adamw", "lr_sgd", "eta"),
    "grad_norm": ("grad_norm", "gradient_norm", "train_grad_norm", "grad_norm_total", "total_grad_norm", "gradnorm",
                  "grad_2_0_norm_total", "weight_gradient_norm"),
}  # fmt: skip
STEPS = ("step", "global_step", "trainer_global_step", "train_global_step", "steps", "iteration", "iter", "iters", "it",
         "batch", "update", "updates", "num_updates")  # fmt: skip
EPOCHS = ("epoch", "epochs", "train_epoch", "ep")
#: Bytes of a trainer's state at most: some millions of logged steps.
STATE = 1 << 28
#: Rows, the step, the unit of the steps, facts, notes.
Read = tuple[list[tuple[int, str, float]], str, dict[str, Any], list[str]]


def trainer_state(path: Path) -> Read:
    """The log of a ``trainer_state.json``; its own names: loss, eval_loss, learning_rate, grad_norm."""
    try:
        state = json.loads(files.whole(path, STATE))
    except (ValueError, RecursionError) as error:
        raise UsageError(
            f"{path} must be a trainer_state.json; it is no JSON ({brief(error, 120)}). Name another file."
        ) from None
    log = state.get("log_history") if isinstance(state, Mapping) else None
    if not isinstance(log, list):
        raise UsageError(f"{path} must be Hugging Face's trainer_state.json; it has no log_history. Name another file.")
    rows: list[tuple[int, str, float]] = []
    for i, entry in enumerate(log):
        if isinstance(entry, Mapping):
            at = _count(entry.get("step"), i)
            rows += [(at, kind, value) for kind, value in told_by_hugging_face(entry).items()]
    if not rows:
        raise UsageError(f"{path} must hold losses; its log_history has none. Let the trainer log (logging_steps=10).")
    names = {"max_steps": "steps planned", "num_train_epochs": "epochs planned", "train_batch_size": "batch size"}
    facts = {title: state[key] for key, title in names.items() if isinstance(state.get(key), int | float)}
    notes = [
        "Hugging Face's Trainer leaves losses that are not finite out of its log (logging_nan_inf_filter), so that NaN "
        "shows in the gradient norm alone."
    ]
    return rows, "step", facts, notes


def told_by_hugging_face(entry: Mapping[Any, Any]) -> dict[str, float]:
    """What one entry of a trainer's log says; ``train_loss`` is the mean of the whole training, and of no step."""
    names = {"loss": "loss", "grad_norm": "grad_norm", "learning_rate": "lr"}
    valid = next((k for k in entry if re.fullmatch(r"eval_(\w+_)?loss", str(k))), None)
    names |= {} if valid is None else {valid: "val_loss"}
    return {kind: _float(entry[k]) for k, kind in names.items() if isinstance(entry.get(k), int | float)}


def csv_table(path: Path) -> polars.DataFrame:
    """A CSV file, every cell as it is written."""
    import polars as pl

    with open(path, "rb") as file:
        head = file.readline(1 << 16)
    between = max((b",", b";", b"\t"), key=head.count)
    try:
        return pl.read_csv(
            path, separator=between.decode(), infer_schema=False, truncate_ragged_lines=True, null_values=[""],
            encoding="utf8",
        )  # fmt: skip
    except Exception as error:  # polars raises what its reader in Rust says
        raise UsageError(
            f"{path} must be a table as CSV; it cannot be read ({brief(error, 120)}). Name another file."
        ) from None


def losses(table: polars.DataFrame, path: Path) -> Read:
    """Losses, rates and gradient norms of a table, by the names of its columns."""
    import polars as pl

    known = kinds(table.columns)
    if not known:
        columns = ", ".join(brief(c, 30) for c in table.columns[:8]) or "none"
        raise UsageError(
            f"{path} must have a column of losses, such as loss, val_loss, lr or grad_norm; it has {columns}. "
            "Rename one of them."
        )
    where = {_plain(c): c for c in reversed(table.columns)}
    unit, at = next(
        ((unit, where[n]) for unit, names in (("step", STEPS), ("epoch", EPOCHS)) for n in names if n in where),
        ("row", ""),
    )
    number = pl.int_range(pl.len()).cast(pl.Float64)
    cells = table.select(
        (pl.col(at).str.strip_chars().cast(pl.Float64, strict=False) if at else number).alias("step"),
        *(pl.col(c).str.strip_chars().cast(pl.Float64, strict=False).alias(kind) for kind, c in known.items()),
    )
    cells = cells.with_columns(pl.col("step").forward_fill())
    if unit == "step" and _restarts(cells["step"].to_list()):
        cells, unit = cells.with_columns(number.alias("step")), "row"
    rows = [
        (_count(row["step"], i), kind, float(row[kind]))
        for i, row in enumerate(cells.iter_rows(named=True))
        for kind in known
        if row[kind] is not None
    ]
    if not rows:
        raise UsageError(f"{path} must hold numbers; {', '.join(known.values())} hold none. Name another file.")
    left = [c for c in table.columns if c not in (*known.values(), at)]
    notes = [f"Not read: the columns {', '.join(left[:8])}{' and more' if len(left) > 8 else ''}."] if left else []
    notes += ["No column counts steps or epochs: its rows are counted."] if not at else []
    return rows, unit, {"columns": ", ".join(f"{c} ({k})" for k, c in known.items())}, notes


def _count(step: Any, i: int) -> int:
    """A step as a whole number; where it is none, which row it is."""
    known = isinstance(step, int | float) and -(2**62) < step < 2**62
    return int(step) if known else i


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:  # a whole number of hundreds of digits
        return math.inf


def kinds(columns: Sequence[str]) -> dict[str, str]:
    """Which column is the loss, the validation's, the rate, the gradient norm."""
    where = {_plain(c): c for c in reversed(columns)}
    return {kind: next(where[n] for n in names if n in where) for kind, names in NAMES.items() if {*names} & {*where}}


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "_", name.lower()).strip("_")


def _restarts(steps: Iterable[float | None]) -> bool:
    """Whether a count begins again, as that of the batches of each epoch."""
    known = [s for s in steps if s is not None]
    return sum(b < a for a, b in itertools.pairwise(known)) > 1
