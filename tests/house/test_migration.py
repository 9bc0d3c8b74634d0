"""docs/migration.md says where things went: each row is tried."""

import importlib
import re
from pathlib import Path

import pytest

import normscope
from normscope import jacobian

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "migration.md").read_text()
ROWS = re.findall(r"^\| `(normscope\.\S+)` \| `(normscope\.\S+)` \| (works in 0\.2|gone) \|$", PAGE, re.M)


def at(path):
    """What a user gets who imports it: ``from module import name``, or the module."""
    try:
        return importlib.import_module(path)
    except ModuleNotFoundError:
        module, _, name = path.rpartition(".")
        return getattr(importlib.import_module(module), name)


@pytest.mark.parametrize(("old", "new", "state"), ROWS)
def test_a_row_is_true(old, new, state):
    found = at(new)
    if state == "gone":
        with pytest.raises((ImportError, AttributeError)):
            at(old)
    else:
        assert all(getattr(at(old), n) is v for n, v in vars(found).items() if not n.startswith("_"))


def test_every_old_path_that_works_is_in_the_table():
    public = {p.stem for p in Path(normscope.__file__).parent.glob("*.py")} - {
        "__init__",
        "__main__",
        "gaussian",
        "tasks",
    }
    assert {f"normscope.{name}" for name in public} == {old for old, _, state in ROWS if state != "gone"}


def test_the_version_is_that_of_the_page():
    version = re.search(r'^version = "(.*)"', (ROOT / "pyproject.toml").read_text(), re.M)[1]
    assert version == re.search(r"^version: (.*)", (ROOT / "CITATION.cff").read_text(), re.M)[1]
    assert version == re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.M)[1]


# Every path that the pages and the docstrings name leads somewhere

NAMED = re.compile(r"`+(?:~)?((?:normscope)(?:\.[A-Za-z_]\w*)+)")
PAGES = [*ROOT.glob("docs/*.md"), ROOT / "README.md", *Path(normscope.__file__).parent.rglob("*.py")]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_path_that_is_named_is_there(page):
    text = PAGE.partition("## Defaults")[2] if page.name == "migration.md" else page.read_text()
    wrong = [path for path in NAMED.findall(text) if not leads_somewhere(path)]
    assert wrong == []


def leads_somewhere(path):
    found = normscope
    for i, name in enumerate(path.split(".")[1:], 2):
        try:
            found = importlib.import_module(".".join(path.split(".")[:i]))
        except ModuleNotFoundError:
            if not hasattr(found, name):
                return False
            found = getattr(found, name)
    return True


def test_what_the_source_names_by_module_and_function_is_there():
    """Tasks and faces go by ``module:function``; no import would tell that a module has moved."""
    named = {
        found
        for path in Path(normscope.__file__).parent.rglob("*.py")
        for found in re.findall(r'"(normscope(?:\.\w+)+:\w+)"', path.read_text())
    }
    assert "normscope.claims.verification:cell" in named
    assert [found for found in named if not leads_somewhere(found.replace(":", "."))] == []


def test_a_path_that_leads_nowhere_is_seen():
    assert leads_somewhere("normscope.findings.cures.treat")
    assert not leads_somewhere("normscope.cure.treat")
    assert not leads_somewhere("normscope.nothing")


# The defaults


@pytest.fixture
def batch():
    import torch
    from torch import nn

    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    return net, torch.randn(12, 6).double(), torch.randn(12, 3).double(), torch.arange(12) % 3


def test_the_curvature_of_mse_is_two_over_c_of_the_papers(batch):
    net, x, y, _ = batch
    j = jacobian(net, x).dense()
    papers = float((j.T @ j / 12).trace())
    assert float(normscope.fisher(net, x).dense().trace()) == pytest.approx(papers)
    assert float(normscope.fisher(net, x, y, "squared_error").dense().trace()) == pytest.approx(papers)
    assert float(normscope.fisher(net, x, y).dense().trace()) == pytest.approx(papers * 2 / 3)
    assert float(normscope.fisher(net, x, y, "mse").dense().trace()) == pytest.approx(papers * 2 / 3)


def test_the_default_goes_by_the_targets(batch):
    net, x, y, k = batch
    said = [normscope.sharpness(net, x, t).facts["loss"] for t in (None, y, k)]
    assert said == ["squared_error", "mse", "cross_entropy"]
    assert "loss cross_entropy" in repr(normscope.sharpness(net, x, k))


def test_several_batches_come_as_data(batch):
    net, x, y, _ = batch
    with pytest.raises(normscope.UsageError):
        normscope.hessian(net, [x, x], [y, y])
    a = normscope.hessian(net, data=[(x[:6], y[:6]), (x[6:], y[6:])]).dense()
    b = normscope.hessian(net, x, y).dense()
    assert float((a - b).abs().max()) < 1e-12
