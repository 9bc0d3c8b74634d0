"""What a model does by functions instead of modules: activations, batch norms and products with parameters, as they
run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from normscope.call.streams import Streams
from normscope.core.errors import UsageError
from normscope.core.modes import Mode
from normscope.core.spec import POINTWISE

#: Products of an input with a parameter that the model holds itself.
PRODUCTS: dict[Any, type[nn.Module]] = {
    F.linear: nn.Linear, torch.matmul: nn.Linear, Tensor.matmul: nn.Linear, torch.mm: nn.Linear, Tensor.mm: nn.Linear,
    Tensor.__matmul__: nn.Linear, F.conv1d: nn.Conv1d, F.conv2d: nn.Conv2d, F.conv3d: nn.Conv3d,
}  # fmt: skip

#: Called with (enclosing module, name of the function, kind of module, output, parameters it used).
Seen = Callable[[nn.Module, str, type[nn.Module], Tensor, list[nn.Parameter]], None]


class Functions(Mode):
    """Inside, functional calls in the model's own code are shown as they run; those within torch's modules are not.

    seen: see `Seen`. norms: the modules around functional batch norms that ran. drift: of each that uses
    running statistics, how far the batch's are from them, as `drift_of`. untrained: what to do about batch norm that
    takes running statistics which have never moved (mean 0, variance 1): called with the enclosing module.
    """

    def __init__(self, seen: Seen | None = None, untrained: Callable[[nn.Module], None] | None = None) -> None:
        super().__init__()
        self.seen, self.untrained = seen, untrained
        #: Told of every function that ran, but batch norm: (function, arguments, named ones, what it returned).
        self.called: Callable[[Any, Sequence[Any], Mapping[str, Any], Any], None] | None = None
        self.streams: Streams | None = None
        self._activations = {f: p.kind for p in POINTWISE.values() for f in p.functions}
        self.norms: set[nn.Module] = set()
        self.drift: dict[nn.Module, float] = {}

    def __torch_function__(
        self, func: Any, types: Sequence[type], args: Sequence[Any] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("sparse") and func in (F.embedding, F.embedding_bag):
            kwargs["sparse"] = False  # the same map; sparse gradients have no second derivative
        if func is torch._weight_norm:  # its second derivative on a CPU takes the norms for constants (torch 2.13)
            return _weight_norm(*args, **kwargs)
        if func is F.batch_norm:
            self._batch_norm(*args, **kwargs)
            return func(*args, **kwargs)
        kind = self._activations.get(func)
        if kind is None and (func not in PRODUCTS or not any(isinstance(a, nn.Parameter) for a in args)):
            out = func(*args, **kwargs)
            if self.called is not None:
                self.called(func, args, kwargs, out)
            return out
        module = enclosing()
        out = func(*args, **kwargs)
        if self.called is not None:
            self.called(func, args, kwargs, out)
        if module is None or self.seen is None or not isinstance(out, Tensor) or not _own_code(module):
            return out
        if kind is not None:
            if any(True for _ in module.parameters()):  # a module without any is an activation itself
                self.seen(module, func.__name__.strip("_"), kind, out, [])
        else:
            self.seen(
                module, func.__name__.strip("_"), PRODUCTS[func], out, [a for a in args if isinstance(a, nn.Parameter)]
            )
        return out

    def _batch_norm(
        self, input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Any = None,
        bias: Any = None,
        training: bool = False, *_: Any, **__: Any,
    ) -> None:  # fmt: skip
        module = enclosing()
        if module is None or running_mean is None or running_var is None or hasattr(module, "running_mean"):
            return  # a module with statistics by their usual names is looked at as such
        self.norms.add(module)
        never = bool((running_mean == 0).all()) and bool((running_var == 1).all())
        if never:
            if not training and self.untrained is not None:
                self.untrained(module)
        elif module not in self.drift and input.dim() > 1:
            self.drift[module] = drift_of(input, running_mean, running_var)


def _weight_norm(v: Tensor, g: Tensor, dim: int = 0) -> Tensor:
    """g v / |v|, the norm over all axes but ``dim``."""
    axes = [i for i in range(v.dim()) if i != dim % v.dim()] if dim != -1 else list(range(v.dim()))
    return v * (g / torch.linalg.vector_norm(v, dim=axes, keepdim=True))


def drift_of(x: Tensor, mean: Tensor, var: Tensor, eps: float = 1e-5) -> float:
    r"""Mean over channels of KL(N(batch) || N(running)), nat: $((\mu_B-\mu_R)^2 + v_B)/v_R - 1 - \log(v_B/v_R)$,
    halved.
    """
    v, m = (t.double() for t in torch.var_mean(x.detach(), [i for i in range(x.dim()) if i != 1], correction=0))
    v, var = v.clamp_min(0) + eps, var.detach().double() + eps
    kl = ((m - mean.detach().double()).square() + v) / var - 1 - (v / var).log()
    return kl.mean().item() / 2


def refuse_untrained(module: nn.Module) -> None:
    """``UsageError``: a functional batch norm in eval mode that has seen no batch."""
    raise UsageError(
        f"The batch norm in {type(module).__name__} is in eval mode but has seen no batch: its running mean is 0 and "
        "its variance 1, so the answer would be for a network without batch norm. Use mode='train' (or model.train()), "
        "or mode='eval' to insist."
    )


def enclosing() -> nn.Module | None:
    """The module whose ``forward`` is running, read off the stack."""
    frame = sys._getframe(2)
    while frame is not None:
        if frame.f_code.co_name == "forward" or "self" in frame.f_locals:
            module = frame.f_locals.get("self")
            if isinstance(module, nn.Module):
                return module
        frame = frame.f_back  # type: ignore[assignment]
    return None


def _own_code(module: nn.Module) -> bool:
    return not type(module).__module__.startswith(("torch.nn.", "normscope."))
