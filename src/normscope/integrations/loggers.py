"""A tracker's writer for any logger: Lightning's, ``wandb``, MLflow, a ``SummaryWriter``, a function of yours."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

from normscope.core.errors import UsageError, shown
from normscope.integrations._summary import scalars

if TYPE_CHECKING:
    import polars


class LoggerWriter:
    """Scalars of every measured step: ``Tracker(model, writers=LoggerWriter(wandb.run))``.

    target: what takes them: an object or module with ``log_metrics(dict, step=)`` (Lightning's loggers, ``mlflow``),
        ``log(dict, step=)`` (``wandb.run``, and what is like it), ``add_scalar(name, value, step)`` (``SummaryWriter``,
        ClearML and others), or a function ``(dict, step)``. It stays open when the tracker closes.
    layers: also the numbers of each layer, ``prefix/<number>-<module>/<signal>_<metric>``; else a few: minimum, median,
        maximum over layers, and the deepest (``prefix/<signal>_<metric>/median``).

    A step is handed over when the next one begins. Weights & Biases takes no step back: there the scalars have an axis
    of their own, ``prefix/step``, and join whatever the loop logs next.
    Raises ``UsageError`` for a target that has none of these.
    """

    def __init__(self, target: Any, *, layers: bool = False, prefix: str = "normscope") -> None:
        self._send = _sender(target, prefix)
        self._layers, self._prefix = layers, prefix

    def __call__(self, frame: polars.DataFrame) -> None:
        """Hand over one measured step."""
        found = scalars(frame, self._prefix, self._layers)
        if found:
            self._send(found, int(frame["step"][0]))


def _sender(target: Any, prefix: str) -> Callable[[dict[str, float], int], object]:
    """How a target takes scalars of a step."""
    if callable(getattr(target, "log", None)) and callable(getattr(target, "define_metric", None)):  # wandb
        axis = f"{prefix}/step"
        target.define_metric(f"{prefix}/*", step_metric=axis)
        return lambda found, step: target.log({**found, axis: step}, commit=False)
    for name in ("log_metrics", "log") if not hasattr(target, "add_scalar") else ("log_metrics",):
        if callable(send := getattr(target, name, None)):
            return partial(_by_name, send)
    if callable(add := getattr(target, "add_scalar", None)):

        def each(found: dict[str, float], step: int) -> None:
            for name, value in found.items():
                add(name, value, step)

        return each
    if callable(target):
        return target
    raise UsageError(
        "A logger must have log_metrics(dict, step=), log(dict, step=) or add_scalar(name, value, step), or be a "
        f"function of (dict, step); got {shown(target)}. Pass wandb.run, mlflow, trainer.logger or a SummaryWriter."
    )


def _by_name(send: Callable[..., object], found: dict[str, float], step: int) -> object:
    return send(found, step=step)
