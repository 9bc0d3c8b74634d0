"""What a forward pass can change outside the model: random streams, and torch's settings of thread and process."""

from __future__ import annotations

import random
import sys
import traceback
import warnings
from collections.abc import Callable
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.autograd import forward_ad
from torch.overrides import _get_current_function_mode_stack

from normscope.core.modes import restore


class Setting(NamedTuple):
    """One switch: how to read it, and how to set it."""

    get: Callable[[], Any]
    set: Callable[[Any], Any]


def _anomaly() -> tuple[bool, bool]:
    return torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _filter(filters: list[Any]) -> None:
    warnings.filters[:] = filters  # type: ignore[index]
    getattr(warnings, "_filters_mutated", lambda: None)()


def _stance() -> Any:
    """How compiled functions run; only once dynamo was imported, which takes seconds."""
    return getattr(sys.modules.get("torch._dynamo.eval_frame"), "_stance", None)


def _set_stance(stance: Any) -> None:
    if stance is not None:
        sys.modules["torch._dynamo.eval_frame"]._set_stance(stance)


def _tf32() -> bool | None:
    try:
        return torch._C._get_cudnn_allow_tf32()
    except RuntimeError:  # set through torch's newer switch, which does not mix with this one: the user's word counts
        return None


def _set_tf32(on: bool | None) -> None:
    if on is not None:
        torch._C._set_cudnn_allow_tf32(on)


_attention = torch.backends.cuda
_functions: Any = torch._C
_cudnn = torch.backends.cudnn


def transforms() -> int:
    """How many transforms of torch.func are running, one in another."""
    return len(torch._C._functorch.get_interpreter_stack() or ())


def _leave_transforms(depth: int) -> None:
    while transforms() > depth:
        torch._C._functorch.pop_dynamic_layer_stack()


def _dual_level() -> int:
    return forward_ad._current_level


def _leave_dual_levels(level: int) -> None:
    while forward_ad._current_level > level:
        forward_ad.exit_dual_level(level=forward_ad._current_level)


def saved_hooks(ignore_tracing: bool = True) -> Any:
    """The hooks on saved tensors in force, ``None`` without."""
    return torch._C._autograd._top_saved_tensors_default_hooks(ignore_tracing)


def _set_saved_hooks(top: Any) -> None:
    while (now := saved_hooks()) is not None and now != top:
        torch._C._autograd._pop_saved_tensors_default_hooks()


#: Thread first, then process. Autocast belongs to a thread and a kind of device.
SETTINGS: tuple[Setting, ...] = (
    Setting(transforms, _leave_transforms),  # first: what an interrupt left of them stands before all others
    Setting(_dual_level, _leave_dual_levels),
    Setting(saved_hooks, _set_saved_hooks),
    Setting(torch.is_grad_enabled, torch._C._set_grad_enabled),
    Setting(_functions._get_torch_function_state, _functions._set_torch_function_state),
    Setting(_get_current_function_mode_stack, restore),
    Setting(_anomaly, lambda state: torch.autograd.set_detect_anomaly(*state)),
    Setting(torch.get_default_dtype, torch.set_default_dtype),
    Setting(torch.get_num_threads, torch.set_num_threads),
    Setting(_deterministic, lambda state: torch.use_deterministic_algorithms(state[0], warn_only=state[1])),
    Setting(lambda: list(warnings.filters), _filter),
    Setting(_stance, _set_stance),
    Setting(np.geterr, lambda state: np.seterr(**state)),
    Setting(_attention.flash_sdp_enabled, _attention.enable_flash_sdp),
    Setting(_attention.mem_efficient_sdp_enabled, _attention.enable_mem_efficient_sdp),
    Setting(_attention.math_sdp_enabled, _attention.enable_math_sdp),
    Setting(_attention.cudnn_sdp_enabled, _attention.enable_cudnn_sdp),
    Setting(torch._C._get_cudnn_deterministic, torch._C._set_cudnn_deterministic),
    Setting(torch._C._get_cudnn_benchmark, torch._C._set_cudnn_benchmark),
    Setting(torch._C._get_cudnn_enabled, torch._C._set_cudnn_enabled),
    Setting(_tf32, _set_tf32),
    Setting(torch._C._get_mkldnn_enabled, torch._C._set_mkldnn_enabled),
    Setting(torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    *[
        Setting(partial(torch.is_autocast_enabled, kind), partial(torch.set_autocast_enabled, kind))
        for kind in ("cpu", "cuda")
    ],
    *[
        Setting(partial(torch.get_autocast_dtype, kind), partial(torch.set_autocast_dtype, kind))
        for kind in ("cpu", "cuda")
    ],
)  # fmt: skip


def unwind(error: BaseException | None) -> None:
    """End what an interrupt left hanging: a generator that was to put something back, torch's own too, is held by the
    traceback and would do so only once that is dropped, after the user may have set it anew.
    """
    chain = []
    while error is not None and error not in chain:
        chain.append(error)
        error = error.__context__
    if all(isinstance(one, Exception) for one in chain):
        return  # contexts end as they should, and the frames are for the user's debugger
    for one in chain:
        for frame, _ in traceback.walk_tb(one.__traceback__):
            if str(frame.f_globals.get("__name__")).startswith(("torch.", "normscope.", "contextlib")):
                with suppress(RuntimeError):  # it still runs
                    frame.clear()


class Surroundings:
    """The state of everything around a model, read at once; ``restore`` writes back what differs, any number of
    times. Around work it stands twice, ``with around, around:``, for an interrupt can hit one exit only.
    """

    def __init__(self, devices: set[torch.device]) -> None:
        self.settings = [setting.get() for setting in SETTINGS]
        self.python = random.getstate()
        self.numpy = np.random.get_state()  # noqa: NPY002 - the user's forward may draw from it
        self.torch = torch.default_generator.get_state()
        self.cuda = {d: torch.cuda.get_rng_state(d) for d in devices if d.type == "cuda"}
        self.mps = torch.mps.get_rng_state() if any(d.type == "mps" for d in devices) else None

    def seed(self, seed: int) -> None:
        """Start every stream a model may draw from at ``seed``: this CPU's and the model's devices', no others'."""
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would seed every CUDA device too
        for device in self.cuda:
            with torch.cuda.device(device):
                torch.cuda.manual_seed(seed)
        if self.mps is not None:
            torch.mps.manual_seed(seed)

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _traceback: object) -> None:
        unwind(error)
        self.restore()

    def restore(self) -> None:
        """Streams and settings as they were."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)  # noqa: NPY002
        torch.default_generator.set_state(self.torch)
        for device, state in self.cuda.items():
            torch.cuda.set_rng_state(state, device)
        if self.mps is not None:
            torch.mps.set_rng_state(self.mps)
        for setting, was in zip(SETTINGS, self.settings, strict=True):
            if setting.get() != was:
                setting.set(was)
