"""A run's state on disk: the old file or the new one, never half of one."""

from __future__ import annotations

import io
import os
from pathlib import Path
from typing import Any

import torch

from normscope.core.errors import UsageError


def write(path: Path, state: dict[str, Any] | bytes) -> None:
    """Write a state (``torch.save``) or bytes to a file beside ``path``, flush it to the disk, then rename it."""
    if isinstance(state, bytes):
        content = state
    else:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getvalue()
    scratch = path.with_name(path.name + ".part")
    try:
        with scratch.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise UsageError(
            f"{path} must be writable; it is not ({error.strerror or error}). Free it, or move."
        ) from error


def read(path: Path) -> tuple[dict[str, Any] | None, str | None]:
    """The state in a file, ``None`` if there is no file; and, if the file was torn, the name it was set aside under."""
    if not path.exists():
        return None, None
    try:
        # Tensors come to the CPU first: random states must stay there.
        state = torch.load(path, map_location="cpu", weights_only=True)
        if not isinstance(state, dict):
            raise ValueError("no dictionary")
        return state, None
    except Exception:  # a damaged archive raises anything
        return None, set_aside(path).name


def set_aside(path: Path) -> Path:
    """Rename a file that cannot be read, so that it is neither used nor lost; its new path."""
    number = next(i for i in range(1, 10_000) if not path.with_name(f"{path.name}.torn-{i}").exists())
    return path.rename(path.with_name(f"{path.name}.torn-{number}"))
