"""Run a model without leaving a trace: flags, buffers, random streams."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import nn

from normscope.call.taps import normalizers, untrained_statistics
from normscope.core.errors import UsageError

MODES = ("train", "eval")


@contextmanager
def flags(model: nn.Module, mode: str | None) -> Iterator[None]:
    """The model in training or eval mode (``None``: as it is), each module's own flag put back at the end."""
    before = [(m, m.training) for m in model.modules()]
    try:
        if mode is not None:
            for module, _ in before:
                module.training = mode == "train"
        yield
    finally:
        for module, flag in before:
            module.training = flag


@contextmanager
def random_streams(seed: int, device: torch.device) -> Iterator[None]:
    """Every random stream a model may draw from, seeded inside and put back at the end."""
    python, numpy_state, cpu = random.getstate(), np.random.get_state(), torch.default_generator.get_state()  # noqa: NPY002
    cuda = torch.cuda.get_rng_state(device) if device.type == "cuda" else None
    try:
        random.seed(seed)
        np.random.seed(seed % 2**32)  # noqa: NPY002
        torch.default_generator.manual_seed(seed)
        if device.type == "cuda":
            index = device.index if device.index is not None else torch.cuda.current_device()
            torch.cuda.default_generators[index].manual_seed(seed)
        yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy_state)  # noqa: NPY002
        torch.default_generator.set_state(cpu)
        if cuda is not None:
            torch.cuda.set_rng_state(cuda, device)


@contextmanager
def full_precision(device: torch.device) -> Iterator[None]:
    """Convolutions on CUDA in whole float32 inside: torch's default there is TF32, three digits, below the tolerances."""
    try:
        before = torch.backends.cudnn.allow_tf32 if device.type == "cuda" else None
    except RuntimeError:  # set through torch's newer switch, which does not mix with this one: the user's word counts
        before = None
    if not before:
        yield
        return
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def check_mode(model: nn.Module, mode: str | None) -> None:
    """Refuse a batch norm in eval mode that has never seen a batch, unless eval mode was asked for by name."""
    if mode not in (None, *MODES):
        raise UsageError(f"mode must be 'train', 'eval' or None (as the model is); got {mode!r}.")
    if mode is not None:
        return
    for name, module in normalizers(model):
        if not module.training and untrained_statistics(module):
            raise UsageError(
                f"Batch norm {name!r} is in eval mode but has seen no batch: its running mean is 0 and its variance 1, so "
                "the answer would be for a network without batch norm. Use mode='train' (or model.train()), or say "
                "mode='eval' if that network is meant."
            )


def has_batch_statistics(model: nn.Module) -> bool:
    """Whether some module keeps running statistics, so that training and eval mode are different networks."""
    return bool(normalizers(model))


def describe_mode(model: nn.Module, mode: str | None) -> str:
    """``train``, ``eval`` or ``mixed``, in force."""
    if mode is not None:
        return mode
    seen = {m.training for m in model.modules() if next(m.parameters(recurse=False), None) is not None} or {
        model.training
    }
    return "mixed" if len(seen) == 2 else ("train" if seen == {True} else "eval")
