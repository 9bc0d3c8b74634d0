"""An assertion that nothing stands in the way of a network's training."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from normscope.call.losses import LossLike
from normscope.call.step import Step
from normscope.core.errors import UsageError, shown
from normscope.findings import RULES, Finding
from normscope.findings.diagnosis import Diagnosis, diagnose
from normscope.findings.guard import Ignore, check_wanted, named


def assert_trainable(
    model: nn.Module | Step,
    inputs: Any = None,
    targets: Any = None,
    loss: LossLike = None,
    *,
    optimizer: torch.optim.Optimizer | None = None,
    fail_on: str | Sequence[str] = "error",
    ignore: Iterable[str | tuple[str, str]] = (),
    trial: bool | int | str = "auto",
    **options: Any,
) -> Diagnosis:
    """Raise ``AssertionError`` if a diagnosis finds what should fail a test; its text is the verdict and the findings.

    model, inputs, targets, loss, optimizer, trial, and ``options`` (``data``, ``valid``, ``train_step``, ``rates``,
        ``label`` ...): as in `normscope.diagnose`. A trial of a fixed number of steps does not depend on the machine.
    fail_on: ``"error"``, ``"warning"``, ``"info"``, or codes such as ``"NS101"``; one or several.
    ignore: codes that are meant, or pairs of a code and a glob pattern of module paths, ``("NS301", "encoder.*")``.

    Returns the `Diagnosis` where nothing fails. The model is left as it was, bit for bit.
    Raises ``UsageError`` for a severity or code that there is not, and whatever `normscope.diagnose` raises.
    """
    __tracebackhide__ = True  # of pytest: the line that is shown is the caller's
    wanted = (fail_on,) if isinstance(fail_on, str) else tuple(fail_on)
    check_wanted(wanted, RULES)
    ignores = [_ignore(one) for one in ((ignore,) if isinstance(ignore, str) else ignore)]
    found = diagnose(model, inputs, targets, loss, optimizer=optimizer, trial=trial, **options)
    meant = [f for f in found.findings if any(i.covers(found.label, f) for i in ignores)]
    fatal = [f for f in found.findings if f not in meant and named(f, wanted)]
    if fatal:
        raise AssertionError(_told(found, fatal, len(meant)))
    return found


def _ignore(given: Any) -> Ignore:
    pair = (given,) if isinstance(given, str) else given
    if not (isinstance(pair, tuple | list) and 1 <= len(pair) <= 2 and all(isinstance(x, str) for x in pair)):
        raise UsageError(f"ignore must be codes, or pairs of a code and a pattern of modules; got {shown(given)}.")
    return Ignore(pair[0], module=pair[1] if len(pair) == 2 else None)


def _told(found: Diagnosis, fatal: Sequence[Finding], ignored: int) -> str:
    """The message: verdict, then each finding that fails the test, then what was left out of it."""
    lines = [f"{found.label}: {found.verdict}"]
    for f in fatal:
        at = f" in {f.name}" if f.name else ""
        lines += ["", f"{f.severity} {f.code} {f.title}{at}", f"  {f.evidence}", f"  {f.meaning}", f"  to do: {f.cure}"]
    others = len(found.findings) - len(fatal) - ignored
    if others or ignored:
        lines += ["", f"Beside these: {others} found that do not fail this test, {ignored} ignored."]
    return "\n".join(lines)
