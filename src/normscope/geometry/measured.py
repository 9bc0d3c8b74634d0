"""`measure`: all metrics of one representation, as an array comes."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from normscope.core.errors import MANY, UsageError, flag, shown
from normscope.core.tensors import check_plain
from normscope.geometry.metric import METRICS, evaluate
from normscope.geometry.statistic import Statistic
from normscope.geometry.streamed import KEPT, accumulated, check_names

if TYPE_CHECKING:
    from jaxtyping import Float


#: Below this the square of a number has fewer digits than float64's: it is subnormal below 1.5e-154.
SMALLEST = 1e-146


def measure(
    x: Float[Tensor, "n ..."] | None = None,
    metrics: str | Iterable[str] | None = None,
    *,
    null: bool = False,
    data: Iterable[Any] | None = None,
) -> dict[str, float]:
    """Metrics of one representation.

    x: (n, ...), batch first, or what ``torch.as_tensor`` makes one of; everything after the first axis is one sample's
        features, the second axis (the last of three, which are read as (n, tokens, d)) counts as the units. Any
        floating dtype, any device; integers are taken as numbers.
    metrics: names; default all metrics of representations.
    null: put ``<name>_null`` behind each, what i.i.d. standard normal entries of the same n and d give: the mean over
        16 draws, without those of lengths and entries, which depend on more than n and d.
    data: batches of one representation, in the place of ``x``: they are measured as one, and only their second moments
        are kept, (d, d). For metrics of the spectrum alone (`normscope.geometry.streamed.KEPT`), without null values.

    Returns name -> value, in float64, NaN where the value is undefined (a batch of one has no pairs).
    Raises ``UsageError`` for an empty batch, what is no dense tensor of numbers, or an unknown name.
    """
    null = flag("null", null)
    if (x is None) == (data is None):
        raise UsageError(
            f"measure() takes x, or data= with batches of it; got {'None' if x is None else 'both'}. Pass one."
        )
    if data is not None:
        if null:
            raise UsageError("measure(data=...) has no null values; call METRICS[name].null(n, d) for them.")
        names = list(KEPT) if metrics is None else metric_names(metrics)
        check_names(names)
        moments = accumulated(data, representation)
        return {name: METRICS[name](moments) for name in names}
    x = representation(x)
    names = [m.name for m in METRICS.values() if m.signal == "activation"] if metrics is None else metric_names(metrics)
    chosen = [METRICS[name] for name in names]
    statistic = Statistic.of(x, exact=True, units=unit_axis(x), sequences=x)
    found = evaluate([statistic], chosen)[0]
    for metric in chosen if null else ():
        if "scale" in metric.invariant and metric.needs != "entries":
            found[f"{metric.name}_null"] = metric.null(statistic.samples, statistic.features, draws=16)
    return found


def representation(x: Any, what: str = "measure") -> Tensor:
    """A representation, (n, ...): a tensor, an array, or lists of numbers."""
    needs = f"{what}() needs a tensor of numbers of shape (n, ...), batch first"
    if not isinstance(x, Tensor):
        try:
            x = torch.as_tensor(x)
        except (TypeError, ValueError, RuntimeError) as error:
            said = str(error).splitlines()[0]
            raise UsageError(
                f"{needs}; got a {type(x).__name__} (torch: {said}). Pass an array, or rows of equal length."
            ) from None
    check_plain(f"What {what}() takes", x)
    if x.dim() == 0:
        raise UsageError(f"{needs}; got a scalar. Give it an axis of samples.")
    if x.is_complex():
        raise UsageError(f"{needs}, real ones; got {x.dtype}. Pass torch.view_as_real(x): the parts as features.")
    if x.dtype == torch.float64 and x.numel() and len(x):
        longest = x.detach().abs().flatten(1).amax(1) if x.dim() > 1 else x.detach().abs()
        small = (longest > 0) & (longest < SMALLEST)
        if small.any():
            raise UsageError(
                f"{needs} whose squares float64 can hold; the largest entry of a sample is "
                f"{float(longest[small].min()):.1e}. Scale them: x / x.abs().max()."
            )
    return x


def metric_names(metrics: str | Iterable[str], *more: str) -> list[str]:
    """The names asked for, each once, all known; ``more``: names beside those of `METRICS`."""
    try:
        names = [metrics] if isinstance(metrics, str) else list(dict.fromkeys(itertools.islice(metrics, MANY)))
    except TypeError:
        raise UsageError(
            f"metrics must be a name or several; got {shown(metrics)}. Pass metrics=['rms', 'sigma_min']."
        ) from None
    return [name if name in more else METRICS[name].name for name in names]


def unit_axis(x: Tensor) -> int:
    """The axis of the units: the last of (n, d) and (n, tokens, d), the second of images (n, d, height, width)."""
    return -1 if x.dim() <= 3 else 1
