"""What a result shows of itself on a higher floor: its page, its notebook cell, the tables of its report.

The higher floor enters where each face is made; it is imported when it is first asked for, and may need an extra.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

from normscope.core.registry import Registry

#: ``race.page`` -> ``module:function``.
FACES: Registry[str] = Registry("face", home="normscope.report")


def show(face: str, *args: Any) -> Any:
    """What the function of this name makes of the arguments."""
    module, _, function = FACES[face].partition(":")
    return getattr(import_module(module), function)(*args)
