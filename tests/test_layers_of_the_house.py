"""Imports go down only: the floors of DESIGN section 3, read from the source."""

import ast
from pathlib import Path

import pytest

import normscope

ROOT = Path(normscope.__file__).parent
FLOORS = (
    ("_errors", "_registry", "_records", "spec", "_load"),
    ("statistic", "metrics", "configuration", "gaussian", "linalg", "_formats"),
    ("nn", "_taps"),
    ("probe", "losses", "curvature", "init", "training", "datasets", "theory"),
    ("sweep", "tracker", "_measurement", "writers"),
    ("tasks", "claims", "findings", "diagnose", "cure", "models", "race"),
    ("report", "cli", "integrations"),
    ("", "__main__"),  # the package itself and python -m: they see all
)
#: Files that are one room together. The core (floor 0) is one room: its files are the errors and names all others share.
ROOMS = (
    ("_errors", "_registry", "_records", "spec", "_load"),
    ("statistic", "metrics", "configuration"),
    ("probe", "losses", "training"),
    ("tracker", "_measurement", "writers"),
    ("diagnose", "findings", "cure", "models"),
    ("tasks", "models"),
    ("", "__main__"),
)
#: (importing module, imported room): the doors that lead up, open only inside a function.
DOORS = {
    ("normscope.findings.diagnosis", "report"),
    ("normscope.racing._result", "report"),
    ("normscope.claims.verify", "report"),
}
#: Faces may see each other where the one is the other's frame: the command line prints reports.
SEES_ALL = {"cli", "", "__main__"}


def room_of(module):
    """``normscope.nn.norms`` -> ``nn``; the package itself -> ``""``."""
    return module.partition(".")[2].partition(".")[0]


def floor_of(room):
    return next((i for i, rooms in enumerate(FLOORS) if room in rooms), None)


def module_of(path):
    parts = ("normscope", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path, root=ROOT):
    """(imported module, where) of every import of normscope in a file; where: ``top``, ``function`` or ``typing``."""

    def walk(node, where):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            where = "function"
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            for child in node.body:
                yield from walk(child, "typing")
            for child in node.orelse:
                yield from walk(child, where)
            return
        if isinstance(node, ast.Import):
            yield from ((alias.name, where) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = ["normscope", *path.relative_to(root).parts[:-1]]
                base = ".".join([*package[: len(package) - node.level + 1], *([base] if base else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                file = root / Path(*inner.split(".")[1:])
                is_module = file.with_suffix(".py").exists() or (file / "__init__.py").exists()
                yield (inner if base.startswith("normscope") and is_module else base), where
        for child in ast.iter_child_nodes(node):
            yield from walk(child, where)

    found = walk(ast.parse(path.read_text()), "top")
    return [(name, where) for name, where in found if name.split(".")[0] == "normscope"]


def wrong(importer, imported, where):
    """Whether this import breaks the arrow."""
    here, there = room_of(importer), room_of(imported)
    if here == there or here in SEES_ALL or where == "typing":
        return False
    if any({here, there} <= set(room) for room in ROOMS):
        return False
    if (importer, there) in DOORS and where == "function":
        return False
    return floor_of(there) >= floor_of(here)


FILES = sorted(ROOT.rglob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda p: module_of(p))
def test_a_file_stands_on_a_floor(path):
    assert floor_of(room_of(module_of(path))) is not None


@pytest.mark.parametrize("path", FILES, ids=lambda p: module_of(p))
def test_a_file_imports_downwards_only(path):
    importer = module_of(path)
    assert [(name, where) for name, where in imports(path) if wrong(importer, name, where)] == []


@pytest.mark.parametrize("door", sorted(DOORS))
def test_a_door_upwards_is_in_use(door):
    importer, room = door
    path = ROOT.joinpath(*importer.split(".")[1:]).with_suffix(".py")
    assert room in {room_of(name) for name, where in imports(path) if where == "function"}


@pytest.mark.parametrize("package", ["report", "cli"])
def test_a_package_keeps_its_inner_files_to_itself(package):
    """Other rooms import a package's public files: not ``_content``, but what the package re-exports."""
    allowed = {"normscope.findings.diagnosis", "normscope.cli.cure", "normscope.cli.diagnose", "normscope.cli.predict"}
    reached = {
        (module_of(p), name)
        for p in FILES
        for name, _ in imports(p)
        if room_of(name) == package != room_of(module_of(p)) and "._" in name and module_of(p) not in allowed
    }
    assert reached == set()


@pytest.mark.parametrize("path", [p for p in FILES if room_of(module_of(p)) == "report"], ids=lambda p: p.name)
def test_a_report_reads_tables_not_models(path):
    assert "torch" not in {name.split(".")[0] for name in _all_imports(path)}


@pytest.mark.parametrize("path", [p for p in FILES if floor_of(room_of(module_of(p))) == 1], ids=lambda p: p.name)
def test_the_maths_knows_no_modules(path):
    assert [n for n in _all_imports(path) if n.startswith("torch.nn")] == []


def _all_imports(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


# The check itself can fail


@pytest.mark.parametrize(
    ("text", "importer", "bad"),
    [
        ("from normscope.probing.passes import probe", "metrics.py", True),
        ("from normscope import probe", "metrics.py", True),
        ("import normscope.report.html", "findings/units.py", True),
        ("from ..diagnose import run", "nn/norms.py", True),
        ("def f():\n    from normscope.report import html", "probe.py", True),
        ("def f():\n    from normscope.report import html", "diagnose.py", False),
        ("from normscope.report import html", "diagnose.py", True),
        (
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from normscope.report import Content",
            "probe.py",
            False,
        ),
        ("from normscope.data.datasets import load", "probe.py", True),
        ("from normscope.call.losses import Loss", "probe.py", False),
        ("from normscope.call.taps import Tap", "nn/nets.py", True),
        ("from . import norms", "nn/nets.py", False),
        ("from normscope.report import html", "cli/diagnose.py", False),
        ("from normscope.cli import main", "report/html.py", True),
        ("from normscope import Spec", "findings/units.py", True),
    ],
)
def test_the_arrow_is_seen(tmp_path, text, importer, bad):
    for p in FILES:
        copy = tmp_path / p.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        copy.write_text("")
    path = tmp_path / importer
    path.write_text(text)
    module = "normscope." + importer.removesuffix(".py").replace("/", ".")
    assert any(wrong(module, name, where) for name, where in imports(path, tmp_path)) == bad
