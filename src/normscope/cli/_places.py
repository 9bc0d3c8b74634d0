"""Where a model stands in the user's files: what an annotation points at."""

from __future__ import annotations

import ast
import os
import sys
from pathlib import Path

from normscope.core.files import whole
from normscope.core.load import split_arguments, users_own


def place_of(model: str) -> tuple[str, int]:
    """File and line of what a MODEL names, by its last top-level definition; ("", 0) for what is in no file of the
    user's.
    """
    target, _, attribute = split_arguments(model)[0].rpartition(":")
    file = target if target.endswith(".py") else getattr(sys.modules.get(target), "__file__", None)
    if not file or not users_own(file):
        return "", 0
    try:
        body: list[ast.stmt] = ast.parse(whole(file)).body
    except (OSError, ValueError, SyntaxError):
        return "", 0
    line = 1
    for name in attribute.split("."):
        found = next((node for node in reversed(body) if name in _names(node)), None)
        if found is None:
            break
        line, body = found.lineno, getattr(found, "body", [])
    return shown(file), line


def _names(node: ast.stmt) -> set[str]:
    """The names that a statement binds."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        return {node.name}
    if isinstance(node, ast.Import | ast.ImportFrom):
        return {alias.asname or alias.name for alias in node.names}
    return {n.id for n in ast.walk(node) if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}


def shown(file: str) -> str:
    """A file's path from the root of its repository, as annotations and SARIF have it; else as it is."""
    path = Path(file).absolute()
    workspace = os.environ.get("GITHUB_WORKSPACE")
    roots = [Path(workspace)] if workspace else []
    roots += [folder for folder in path.parents if (folder / ".git").exists()][:1]
    for root in (*roots, Path.cwd()):
        if path.is_relative_to(root):
            return path.relative_to(root).as_posix()
    return path.as_posix()
