"""In what precision curvature is computed: float32 at least, attention by its formula."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch


def working_dtype(dtype: torch.dtype, device: torch.device) -> torch.dtype:
    """float32 for half precisions (and for float64 on mps, which has none), else the dtype itself."""
    half = dtype in (torch.bfloat16, torch.float16)
    return torch.float32 if half or (device.type == "mps" and dtype == torch.float64) else dtype


def in_full(device: torch.device) -> None:
    """Inside a run, whose end puts all of it back: attention by its formula (the fused kernels have no forward mode and
    no second derivative), no autocast, and convolutions on CUDA in whole float32 (torch's default there is TF32, three
    digits).
    """
    torch.backends.cuda.enable_flash_sdp(False)
    torch.backends.cuda.enable_mem_efficient_sdp(False)
    torch.backends.cuda.enable_cudnn_sdp(False)
    torch.backends.cuda.enable_math_sdp(True)
    for kind in ("cpu", "cuda"):
        torch.set_autocast_enabled(kind, False)
    if device.type == "cuda":
        torch.backends.cudnn.allow_tf32 = False


@contextmanager
def in_full_precision(device: torch.device) -> Iterator[None]:
    """The same precision in a backward pass outside a run."""
    before = torch.backends.cudnn.allow_tf32 if device.type == "cuda" else False
    with torch.autocast(device.type, enabled=False):
        if not before:
            yield
            return
        torch.backends.cudnn.allow_tf32 = False
        try:
            yield
        finally:
            torch.backends.cudnn.allow_tf32 = before
