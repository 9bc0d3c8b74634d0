"""Torch while a script is watched: its own functions, each of which says that it ran."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

from normscope.findings.why.tape import Recorder, place
from normscope.findings.why.watch import Watch


@contextmanager
def watching(watch: Watch) -> Iterator[None]:
    """Torch with patches that tell what a script calls, and torch as it was at the end."""
    calls, inits, clears, module_clears = (
        nn.Module.__call__, torch.optim.Optimizer.__init__, torch.optim.Optimizer.zero_grad, nn.Module.zero_grad,
    )  # fmt: skip
    backward, apply = torch.autograd.backward, torch.autograd.Function.__dict__["apply"]
    scales, unscales = torch.amp.GradScaler.scale, torch.amp.GradScaler.unscale_
    loads = nn.Module.load_state_dict

    def module_call(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        return watch.call(calls, module, args, kwargs)

    def build(optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> None:
        watch.built.setdefault(id(optimizer), place(optimizer))
        inits(optimizer, *args, **kwargs)

    def clear(optimizer: torch.optim.Optimizer, *args: Any, **kwargs: Any) -> Any:
        watch.clear(optimizer)
        return clears(optimizer, *args, **kwargs)

    def clear_module(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        watch.events.append("clear")
        return module_clears(module, *args, **kwargs)

    def go_back(roots: Any, *args: Any, **kwargs: Any) -> Any:
        watch.backward(roots)
        backward(roots, *args, **kwargs)
        watch.thrown.backward(place())

    def scale(scaler: Any, *args: Any, **kwargs: Any) -> Any:
        if scaler.is_enabled():
            watch.events.append("scaled")
        return scales(scaler, *args, **kwargs)

    def unscale(scaler: Any, *args: Any, **kwargs: Any) -> Any:
        watch.events.append("unscale")
        return unscales(scaler, *args, **kwargs)

    def load(module: nn.Module, state: Any, *args: Any, **kwargs: Any) -> Any:
        found = loads(module, state, *args, **kwargs)
        watch.loads.add(module, state, found, place())
        return found

    def drawn(_: Any) -> None:
        watch.drawn = True

    def dense(density: Any) -> None:
        if isinstance(density, Tensor):
            watch.tape.densities.add(id(density))

    function = torch.autograd.Function

    def applied(cls: Any, *args: Any, **kwargs: Any) -> Any:
        return watch.apply(partial(apply.__func__, cls, **kwargs), args)

    def clipping(original: Callable[..., Any]) -> Callable[..., Any]:
        def clip(*args: Any, **kwargs: Any) -> Any:
            watch.events.append("clip")
            return original(*args, **kwargs)

        return clip

    def eager(model: Any = None, **_: Any) -> Any:
        return model if model is not None else lambda f: f

    utils = torch.nn.utils
    patches: list[tuple[Any, str, Any]] = [
        (nn.Module, "__call__", module_call), (torch.optim.Optimizer, "__init__", build),
        (torch.optim.Optimizer, "zero_grad", clear), (nn.Module, "zero_grad", clear_module),
        (torch.autograd, "backward", go_back), (function, "apply", classmethod(applied)), (torch, "compile", eager),
        (nn.Module, "compile", lambda *_, **__: None), (nn.Module, "load_state_dict", load),
        (torch.amp.GradScaler, "scale", scale), (torch.amp.GradScaler, "unscale_", unscale),
    ]  # fmt: skip
    patches += [*_after("sample", drawn), *_after("log_prob", dense)]
    for name in ("clip_grad_norm_", "clip_grad_value_"):
        patched = clipping(getattr(utils, name))
        patches += [(utils, name, patched), (utils.clip_grad, name, patched)]
    with ExitStack() as stack:
        for owner, name, new in patches:
            stack.callback(setattr, owner, name, owner.__dict__[name])
            setattr(owner, name, new)
        for register, hook in (
            (register_optimizer_step_pre_hook, watch.about_to_step),
            (register_optimizer_step_post_hook, watch.stepped),
        ):
            stack.callback(register(hook).remove)
        with Recorder(watch):
            yield


def _after(name: str, look: Callable[[Any], None]) -> list[tuple[Any, str, Any]]:
    """Patches of a method of torch's distributions that look at what it gave."""

    def looking(method: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)
            look(result)
            return result

        return run

    kinds = [k for k in vars(torch.distributions).values() if isinstance(k, type) and name in vars(k)]
    return [(k, name, looking(vars(k)[name])) for k in kinds]
