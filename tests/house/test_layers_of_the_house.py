"""Imports go down only: the floors of DESIGN section 3, read from the source; and every name means one thing."""

import ast
import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import normscope
from normscope.core.faces import FACES

ROOT = Path(normscope.__file__).parent
#: Old paths of modules that moved, kept for one version.
SHIMS = ("datasets", "losses", "metrics", "models", "spec", "statistic", "tracker", "writers")
FLOORS = (
    ("core",),
    ("linalg", "geometry", "gaussian"),
    ("call", "nn"),
    ("probing", "curvature", "init", "training", "theory", "data", "sweeping"),
    ("learning_rates",),
    ("findings", "claims", "racing", "tasks"),
    ("report",),
    ("cli", "integrations", "testing"),
    ("", "__main__", *SHIMS),  # the package itself, python -m, and the old paths: one room, which sees all
)
#: The frame of the other faces: ``normscope`` prints reports.
SEES_ALL = {"cli", *FLOORS[-1]}


def room_of(module):
    """``normscope.nn.norms`` -> ``nn``; the package itself -> ``""``."""
    return module.partition(".")[2].partition(".")[0]


def floor_of(room):
    return next((i for i, rooms in enumerate(FLOORS) if room in rooms), None)


def module_of(path, root=ROOT):
    parts = ("normscope", *path.relative_to(root).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path, root=ROOT):
    """(imported module, name in it or "", where) of each import of normscope; where: top, function or typing."""

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
            yield from ((alias.name, "", where) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                package = ["normscope", *path.relative_to(root).parts[:-1]]
                base = ".".join([*package[: len(package) - node.level + 1], *([base] if base else [])])
            for alias in node.names:
                inner = f"{base}.{alias.name}"
                file = root / Path(*inner.split(".")[1:])
                is_module = file.with_suffix(".py").exists() or (file / "__init__.py").exists()
                yield (inner, "", where) if base.startswith("normscope") and is_module else (base, alias.name, where)
        for child in ast.iter_child_nodes(node):
            yield from walk(child, where)

    found = walk(ast.parse(path.read_text()), "top")
    return [one for one in found if one[0].split(".")[0] == "normscope"]


def wrong(importer, imported, where):
    """Whether this import breaks the arrow."""
    here, there = room_of(importer), room_of(imported)
    if here == there or here in SEES_ALL or where == "typing":
        return False
    return floor_of(there) >= floor_of(here)


FILES = sorted(ROOT.rglob("*.py"))
by_module = pytest.mark.parametrize("path", FILES, ids=module_of)


@by_module
def test_a_file_stands_on_a_floor(path):
    assert floor_of(room_of(module_of(path))) is not None


@by_module
def test_a_file_imports_downwards_only(path):
    importer = module_of(path)
    assert [(name, where) for name, _, where in imports(path) if wrong(importer, name, where)] == []


@by_module
def test_a_room_keeps_its_inner_files_and_names_to_itself(path):
    """Other rooms import what has no leading underscore."""
    here = room_of(module_of(path))
    inner = [
        (module, name)
        for module, name, where in imports(path)
        if where != "typing" and room_of(module) != here and _is_inner(f"{module}.{name}")
    ]
    assert inner == []


def _is_inner(dotted):
    return any(part.startswith("_") and not part.startswith("__") for part in dotted.split("."))


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


# Circles


def circles(root=ROOT):
    """Sets of modules that cannot be imported without each other, by what runs when a module is imported."""
    edges = {}
    for path in root.rglob("*.py"):
        importer = module_of(path, root)
        edges[importer] = set()
        for name, _, where in imports(path, root):
            if where == "top":
                # ``a.b.c`` runs a and a.b first; those that hold the importer are running already.
                parts = name.split(".")
                packages = {".".join(parts[:i]) for i in range(1, len(parts))}
                running = {p for p in packages if f"{importer}.".startswith(f"{p}.")}
                edges[importer] |= ({name} | packages) - running - {importer}
    reach = {start: _reach(edges, start) for start in edges}
    return {frozenset(m for m in reach[start] if start in reach.get(m, ())) for start in edges if start in reach[start]}


def _reach(edges, start):
    seen, todo = set(), [start]
    while todo:
        for name in edges.get(todo.pop(), ()):
            if name not in seen:
                seen.add(name)
                todo.append(name)
    return seen


def test_no_modules_import_each_other_in_a_circle():
    assert [sorted(found) for found in circles()] == []


@pytest.mark.parametrize(
    ("files", "found"),
    [
        ({"a.py": "import normscope.b", "b.py": "from normscope import a"}, [["normscope.a", "normscope.b"]]),
        ({"a.py": "import normscope.b", "b.py": "def f():\n    from normscope import a"}, []),
        ({"a.py": "from normscope.r.x import f", "r/__init__.py": "from normscope import a", "r/x.py": ""},
         [["normscope.a", "normscope.r"]]),
        ({"r/__init__.py": "from normscope.r.x import f", "r/x.py": "from normscope.r.y import g", "r/y.py": ""}, []),
        ({"r/__init__.py": "from normscope.r.x import f", "r/x.py": "from normscope.r import g"},
         [["normscope.r", "normscope.r.x"]]),
    ],
)  # fmt: skip
def test_a_circle_is_seen(tmp_path, files, found):
    for name, text in {"__init__.py": "", **files}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert sorted(sorted(c) for c in circles(tmp_path)) == found


# One name, one thing


PACKAGES = [normscope.__name__, *(m.name for m in pkgutil.walk_packages(normscope.__path__, "normscope.") if m.ispkg)]


@pytest.mark.parametrize("name", PACKAGES)
def test_no_module_is_shadowed_by_what_has_its_name(name):
    package = importlib.import_module(name)
    for module in pkgutil.iter_modules(package.__path__):
        if module.name != "__main__":
            importlib.import_module(f"{name}.{module.name}")
            found = getattr(package, module.name)
            assert isinstance(found, ModuleType), f"{name}.{module.name} is both a module and {found!r}"


@pytest.mark.parametrize("name", SHIMS)
def test_an_old_path_is_a_re_export_and_works(name):
    text = (ROOT / f"{name}.py").read_text()
    body = ast.parse(text).body
    assert len(body) <= 3
    (found,) = [node for node in body if isinstance(node, ast.ImportFrom) and node.module != "__future__"]
    old, new = importlib.import_module(f"normscope.{name}"), importlib.import_module(found.module)
    public = [n for n in getattr(new, "__all__", vars(new)) if not n.startswith("_")]
    assert public
    assert all(getattr(old, n) is getattr(new, n) for n in public)


# What a lower floor shows of a higher one


@pytest.mark.parametrize("face", FACES)
def test_a_face_is_made_where_it_says(face):
    module, _, function = FACES[face].partition(":")
    assert callable(getattr(importlib.import_module(module), function))


def alone(code):
    """What a fresh Python prints."""
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()


def test_importing_the_package_imports_none_of_its_rooms():
    assert (
        alone("import sys, normscope; print(*[m for m in sys.modules if m.startswith(('normscope.', 'torch'))])") == []
    )


def test_a_registry_is_filled_whatever_was_imported_first():
    first = "from normscope.core.faces import FACES; from normscope.sweeping import TASKS; "
    assert alone(first + "print('race' in FACES, 'probe' in TASKS)") == ["True", "True"]


def test_the_package_knows_where_each_of_its_names_is_made():
    assert set(normscope._HOMES) == set(normscope.__all__) <= set(dir(normscope))
    assert [n for n in normscope.__all__ if getattr(normscope, n).__module__.split(".")[0] != "normscope"] == []


def test_a_room_is_an_attribute_of_the_package_and_a_slip_is_not():
    assert alone("import normscope; print(normscope.nn.__name__, hasattr(normscope, 'nm'))") == [
        "normscope.nn",
        "False",
    ]


# The check itself can fail


@pytest.mark.parametrize(
    ("text", "importer", "bad"),
    [
        ("from normscope.probing.passes import probe", "geometry/metrics.py", True),
        ("from normscope import probe", "geometry/metrics.py", True),
        ("import normscope.report.html", "findings/units.py", True),
        ("from ..findings.diagnosis import run", "nn/norms.py", True),
        ("def f():\n    from normscope.report import html", "probing/passes.py", True),
        ("def f():\n    from normscope.report import html", "findings/diagnosis.py", True),
        (
            "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from normscope.report import Content",
            "probing/passes.py",
            False,
        ),
        ("from normscope.data.datasets import load", "probing/passes.py", True),
        ("from normscope.geometry.statistic import Statistic", "linalg/eigen.py", True),
        ("from normscope.call.losses import Loss", "probing/passes.py", False),
        ("from normscope.losses import Loss", "probing/passes.py", True),
        ("from normscope.call.taps import Tap", "nn/nets.py", True),
        ("from . import norms", "nn/nets.py", False),
        ("from normscope.report import html", "cli/diagnose.py", False),
        ("from normscope.cli import main", "report/html.py", True),
        ("from normscope import Spec", "findings/units.py", True),
        ("from normscope.core.spec import *", "spec.py", False),
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
    assert any(wrong(module, name, where) for name, _, where in imports(path, tmp_path)) == bad
