"""The loss of a training step: by name, torch's own modules and functions, the user's callable, or the model's own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normscope.call.arguments import check_filled, first_tensor, tensors
from normscope.call.targets import HALF, broadcasts, by_class, class_axis, classes, is_soft, one_hot, rows_in, what
from normscope.core.errors import UsageError, noted, unknown
from normscope.core.tensors import check_plain

LossLike = Any  # str | Callable[[Any, Any], Tensor] | nn.Module | Loss | None; Any, for the users' own types
#: Names with torch's own value, and the module that has it; ``squared_error`` is the papers' sum over outputs, halved.
MODULES: dict[str, Callable[[], nn.Module] | None] = {
    "mse": nn.MSELoss, "cross_entropy": nn.CrossEntropyLoss, "bce_with_logits": nn.BCEWithLogitsLoss, "l1": nn.L1Loss,
    "huber": nn.HuberLoss, "nll": nn.NLLLoss, "squared_error": None,
}  # fmt: skip
LOSSES = tuple(MODULES)
_FUNCTIONS: dict[Any, Callable[[], nn.Module]] = {
    F.mse_loss: nn.MSELoss, F.cross_entropy: nn.CrossEntropyLoss, F.l1_loss: nn.L1Loss, F.huber_loss: nn.HuberLoss,
    F.binary_cross_entropy_with_logits: nn.BCEWithLogitsLoss, F.nll_loss: nn.NLLLoss,
}  # fmt: skip
COTANGENT, OWN, CALLABLE = "random cotangent", "the model's own loss", "callable"
#: Losses between numbers of one shape.
_ALIKE = ("mse", "l1", "huber", "squared_error", "bce_with_logits")


@dataclass(frozen=True)
class Loss:
    r"""What is differentiated: ``value(whole, targets)`` of whatever the model returned.

    name: what results print. kind: a name of `LOSSES`, ``callable``, ``the model's own loss``, ``random cotangent``, or
    empty: still to be settled by what the model returns and by the targets. call: the user's function of (outputs,
    targets). module: torch's module with its weights, ``ignore_index`` and reduction, private. strict: torch's reading
    of targets alone (the module or function came from the user); by name, one-hot targets, classes on the last axis and
    negative = ignored are read too.
    """

    name: str
    kind: str = CALLABLE
    call: Callable[[Any, Any], Any] | None = None
    module: nn.Module | None = None
    strict: bool = False

    @classmethod
    def of(cls, loss: LossLike) -> Loss:
        """From what a user passes; raises ``UsageError`` for an unknown name (nearest one offered) or no loss at
        all.
        """
        if isinstance(loss, Loss):
            return loss
        if loss is None:
            return cls("", "")
        if isinstance(loss, str):
            if loss not in MODULES:
                raise unknown("loss", loss, LOSSES)
            make = MODULES[loss]
            return cls(loss, loss, module=None if make is None else make())
        if isinstance(loss, type) and issubclass(loss, nn.Module):
            raise UsageError(f"loss must be a loss, not its class; got {loss.__name__}. Pass {loss.__name__}().")
        if not callable(loss):
            raise UsageError(
                f"loss must be one of {', '.join(LOSSES)}, a torch loss module or a callable (outputs, targets) -> "
                f"scalar; got {type(loss).__name__}: {str(loss)[:60]}."
            )
        check_filled("loss", loss)
        try:
            known = _FUNCTIONS.get(loss)
        except TypeError:  # not hashable
            known = None
        module = known() if known is not None else loss
        kinds = {type(make()): name for name, make in MODULES.items() if make is not None}
        if isinstance(module, nn.Module) and type(module) in kinds:
            kind = kinds[type(module)]
            plain = getattr(module, "reduction", "mean")
            return cls(
                kind if plain == "mean" else f"{kind} ({plain})", kind, module=copy.deepcopy(module), strict=True
            )
        name = getattr(loss, "__name__", type(loss).__name__)
        return cls("loss" if name == "<lambda>" else name, CALLABLE, call=loss)

    @property
    def named(self) -> bool:
        """Whether its Hessian in the outputs has a formula."""
        return self.kind in ("mse", "cross_entropy", "squared_error")

    def settled(self, whole: Any, targets: Any, default: str = COTANGENT) -> Loss:
        """The loss of this step: the model's own if none was given and it returns one, else by the targets, else
        ``default``.
        """
        if self.kind:
            if self.kind in MODULES and targets is None and self.kind not in ("mse", "cross_entropy", "squared_error"):
                raise UsageError(
                    f"loss={self.name!r} needs targets; got None. Pass targets, or leave the loss away too."
                )
            return self
        if (own := _own_losses(whole)) is not None:
            names = [name for name, _ in own if name]
            return Loss(f"sum of the model's losses ({' + '.join(names)})" if len(own) > 1 else OWN, OWN)
        if targets is None:
            return Loss.of(default) if default in MODULES else Loss(default, default)
        if not isinstance(targets, Tensor):
            kind = type(targets).__name__
            raise UsageError(
                f"Targets that are a {kind} need a loss that reads them; got none. Pass loss=lambda outputs, targets: "
                "..., or tensors as targets."
            )
        return Loss.of("mse" if targets.is_floating_point() or targets.is_complex() else "cross_entropy")

    def value(self, whole: Any, targets: Any, seed: int = 0) -> Tensor:
        """The scalar that is differentiated.

        Raises ``UsageError`` where targets do not fit the outputs, and for a callable that returns no scalar; a
        callable's own exception passes through.
        """
        if self.kind == OWN:
            own = _own_losses(whole)
            if own is None:
                raise UsageError(f"The model returned no loss of its own this time; got {type(whole).__name__}.")
            return torch.stack([x.reshape(()) for _, x in own]).sum() if len(own) > 1 else own[0][1].reshape(())
        if self.call is not None:
            given = whole
            if isinstance(self.call, nn.modules.loss._Loss) and not isinstance(whole, Tensor):
                given = self._output(whole)
            with noted(f"the loss {self.name}"):
                value = self.call(given, targets)
            return self.scalar(value)
        output = self._output(whole)
        if output.is_complex() and self.kind != COTANGENT:
            raise UsageError(
                f"{self.name} compares real numbers; the model returned {what(output)}. Return its parts or its size."
            )
        if self.kind == COTANGENT:
            if not output.dim():
                return output
            real = torch.view_as_real(output) if output.is_complex() else output
            noise = torch.randn(real.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
            return (real * noise.to(real)).sum() / len(output)
        if self.strict:
            return self._as_torch(output, targets)
        wanted = self.read(output, targets)
        if self.kind == "cross_entropy":
            logits, wanted = (
                by_class(output, targets, self.strict),
                wanted.flatten(0, -2) if is_soft(wanted) else wanted.flatten(),
            )
            logits = logits.float() if logits.dtype in HALF else logits
            return self._module(logits)(logits, wanted)
        if self.kind == "squared_error":
            return (output - wanted).square().sum() / (2 * rows_in(output))
        return self._module(output)(output, wanted)

    def scalar(self, value: Any) -> Tensor:
        """What a callable returned, as a scalar: a dict of losses is summed."""
        if (
            isinstance(value, Mapping)
            and value
            and all(isinstance(v, Tensor) and v.numel() == 1 for v in value.values())
        ):
            return torch.stack([v.reshape(()) for v in value.values()]).sum()
        if not (isinstance(value, Tensor) and value.numel() == 1):
            came = (
                f"a dict of {', '.join(what(v) for v in value.values())}" if isinstance(value, Mapping) else what(value)
            )
            raise UsageError(
                f"The loss must return a scalar tensor; {self.name} returned {came}. Take its mean: reduction='mean'."
            )
        if not value.is_floating_point():
            raise UsageError(f"The loss must return a floating-point scalar; {self.name} returned {what(value)}.")
        return value.reshape(())

    def read(self, output: Tensor, targets: Any) -> Tensor:
        """The targets as this loss, given by name, reads them for these outputs: checked, in the outputs' dtype."""
        check_plain("targets", *tensors(targets))
        if not isinstance(targets, Tensor):
            raise UsageError(f"loss={self.name!r} needs a tensor of targets; got {what(targets)}. Pass targets=....")
        targets = targets.detach().to(output.device)
        if self.kind in ("cross_entropy", "nll"):
            return classes(self.name, self.kind == "cross_entropy", output, targets)
        if self.kind in _ALIKE:
            if targets.is_complex() or output.is_complex():
                raise UsageError(
                    f"{self.name} compares real numbers; got outputs {what(output)} and targets {what(targets)}. Pass "
                    "torch.view_as_real of both."
                )
            floating = targets.is_floating_point()
            if not floating and self.kind != "bce_with_logits" and targets.shape != output.shape:
                targets = one_hot(self.name, output, targets)
            if targets.shape != output.shape:
                raise UsageError(
                    f"{self.name} needs targets of the outputs' shape {tuple(output.shape)}; got {what(targets)}"
                    f"{', which would broadcast' if broadcasts(output, targets) else ''}. Reshape one: "
                    "targets[:, None] or outputs.squeeze(1)."
                )
            if floating and not bool(torch.isfinite(targets).all()):
                raise UsageError(
                    f"The targets must be finite; {int((~torch.isfinite(targets)).sum())} of {targets.numel()} are "
                    "not. Clean the data."
                )
            return targets.to(output.dtype)
        return targets

    def notes(self, whole: Any, targets: Any) -> list[str]:
        """What a reader must know about how the targets were read."""
        summed = isinstance(whole, Mapping) and all(isinstance(x, Tensor) and x.numel() == 1 for x in whole.values())
        if self.kind == CALLABLE and summed and self.call is not None and _own_losses(whole):
            return [f"the loss is the sum of {' + '.join(map(str, whole))}"] if len(whole) > 1 else []
        output = first_tensor(whole)
        torchs = isinstance(self.call, nn.modules.loss._Loss) and not isinstance(self.call, _OF_CLASSES)
        if output is None or not isinstance(targets, Tensor) or not (self.kind in MODULES or torchs):
            return []
        said = []
        if (
            (torchs or (self.strict and self.kind in _ALIKE))
            and output.shape != targets.shape
            and broadcasts(output, targets)
        ):
            said.append(
                f"outputs {tuple(output.shape)} and targets {tuple(targets.shape)} have different shapes and broadcast "
                f"in {self.name}: every output is compared with every target"
            )
        if self.strict or torchs:
            return said
        if self.kind == "cross_entropy" and output.dim() > 2:
            said.append(
                f"classes were read along axis {class_axis(output, targets)} of the outputs {tuple(output.shape)}"
            )
        if self.kind == "cross_entropy" and not is_soft(targets) and not targets.is_floating_point():
            if targets.shape == output.shape:
                said.append("integer targets of the outputs' shape were read as one-hot rows")
            elif bool((targets < 0).any()):
                said.append(f"{int((targets < 0).sum())} negative targets of {targets.numel()} were ignored")
        elif (
            self.kind in ("mse", "squared_error") and not targets.is_floating_point() and targets.shape != output.shape
        ):
            said.append("integer targets were read as one-hot rows")
        return said

    def _output(self, whole: Any) -> Tensor:
        output = first_tensor(whole)
        if output is None:
            raise UsageError(
                f"A loss needs an output tensor; the model returned {what(whole)}. Pass a callable loss of what it "
                "returns."
            )
        return output

    def _module(self, like: Tensor) -> nn.Module:
        """A copy of the module on the outputs' device and in their dtype: a cast of the module itself would round its
        weights.
        """
        return copy.deepcopy(self.module).to(like.device, like.dtype)  # type: ignore[union-attr]

    def _as_torch(self, output: Tensor, targets: Any) -> Tensor:
        check_plain("targets", *tensors(targets))
        if not isinstance(targets, Tensor):
            raise UsageError(
                f"{type(self.module).__name__} needs a tensor of targets; got {what(targets)}. Pass targets."
            )
        wanted = targets.detach().to(output.device)
        if wanted.is_floating_point() and wanted.dtype != output.dtype:
            wanted = wanted.to(output.dtype)
        import warnings

        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of the broadcast that `notes` tells
                return self.scalar(self._module(output)(output, wanted))
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            if isinstance(error, UsageError):
                raise
            raise UsageError(
                f"{type(self.module).__name__} cannot compare outputs {what(output)} with targets {what(targets)} "
                f"({str(error).splitlines()[0]}). Pass targets as it takes them."
            ) from error


#: Losses of torch's whose targets have another shape than the outputs.
_OF_CLASSES = (nn.NLLLoss, nn.CrossEntropyLoss, nn.MultiMarginLoss, nn.MultiLabelMarginLoss, nn.CTCLoss)


def _own_losses(whole: Any) -> list[tuple[str, Tensor]] | None:
    """The losses that a model returns: ``.loss``, a scalar, a dict of scalars, or a scalar before its outputs."""

    def scalar(x: Any) -> bool:
        return isinstance(x, Tensor) and x.numel() == 1 and x.dim() == 0 and x.is_floating_point()

    if scalar(whole):
        return [("", whole)]
    found = whole.get("loss") if isinstance(whole, Mapping) else getattr(whole, "loss", None)
    if isinstance(found, Tensor) and scalar(found):
        return [("", found)]
    if isinstance(whole, Mapping) and whole:
        losses = [(str(k), v) for k, v in whole.items() if scalar(v) and "loss" in str(k).lower()]
        if all(scalar(v) for v in whole.values()):
            losses = losses or [(str(k), v) for k, v in whole.items()]
        return losses or None
    if isinstance(whole, tuple) and len(whole) > 1 and scalar(whole[0]) and whole[0].requires_grad:
        return [("", whole[0])]
    return None
