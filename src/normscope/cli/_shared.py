"""What the commands that take a model share: the names of models and data, devices, types."""

from __future__ import annotations

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch

from normscope.core.errors import UsageError, unknown
from normscope.data.datasets import Batch, load
from normscope.data.models import fitting_data, load_model, synthetic

#: Samples of a batch when none were asked for.
BATCH = 128
MODEL_HELP = (
    "mlp:depth=32,norm=batch (also vgg:, resnet:), path/to/file.py:callable, package.module:callable, "
    "transformers:gpt2, timm:NAME, torchvision:NAME."
)
DATA_HELP = (
    "digits (bundled), mnist, fashion-mnist, cifar10 (with --data-dir), a .npz / .safetensors / .pt file, "
    "package.module:callable, random:3x32x32 or tokens:32x50257. Default: digits, or what a library's config asks for."
)


def load_named(
    name: str, data: str | None, data_dir: Path | None, n: int | None, seed: int
) -> tuple[Batch, torch.nn.Module]:
    """The model, and the batch that was named or that fits it."""
    if data is None:
        if name.partition(":")[0] in ("mlp", "vgg", "resnet"):
            batch = read_batch("digits", None, n, seed)
            return batch, load_model(name, batch, seed=seed)
        model = load_model(name, None, seed=seed)
        # A library's model at 224 x 224 or 32 tokens: 16 samples tell, 128 would take minutes.
        made_up = fitting_data(model)
        batch = (
            synthetic(made_up, n=16 if n is None else n, seed=seed) if made_up else read_batch("digits", None, n, seed)
        )
        return batch, model
    if data.partition(":")[0] in ("random", "tokens"):
        batch = synthetic(data, n=BATCH if n is None else n, seed=seed)
    else:
        batch = read_batch(data, data_dir, n, seed)
    return batch, load_model(name, batch, seed=seed)


def read_batch(data: str, data_dir: Path | None, n: int | None, seed: int) -> Batch:
    """``n`` samples; where n was left open, `BATCH` of them, or all of a smaller file."""
    if n is not None:
        return load(data, data_dir, n=n, seed=seed)
    try:
        return load(data, data_dir, n=BATCH, seed=seed)
    except UsageError:
        batch = load(data, data_dir, seed=seed)
        if len(batch) >= BATCH:
            raise
        return batch


def device_named(name: str) -> torch.device:
    """The torch device of a name, if it works here."""
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except Exception as error:
        raise UsageError(
            f"--device must be one that works here; {name!r} does not ({str(error).splitlines()[0]})."
        ) from None
    return device


def dtype_named(name: str | None) -> torch.dtype | None:
    """The torch dtype of a name."""
    known = {"float32": torch.float32, "float64": torch.float64, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name is not None and name not in known:
        raise unknown("dtype", name, known)
    return known[name] if name else None


def moved(value: Any, device: torch.device, dtype: torch.dtype | None) -> Any:
    """Tensors in any structure on a device, floating ones in a dtype."""
    if isinstance(value, torch.Tensor):
        return value.to(device, dtype if value.is_floating_point() else None)
    if isinstance(value, dict):
        return {k: moved(v, device, dtype) for k, v in value.items()}
    if isinstance(value, tuple | list):
        return tuple(moved(v, device, dtype) for v in value)
    return value


def check_lr(lr: float | None) -> None:
    """A learning rate that was given is a positive number."""
    if lr is not None and not 0 < lr < math.inf:
        raise UsageError(f"--lr must be a positive number; got {lr}. Leave it out to judge no rate.")


def quiet() -> Any:
    """A status line that shows nothing."""
    return nullcontext()
