"""A new norm, activation, metric, finding, cure or claim is one file: everything else reads it from its registry."""

import importlib.util
import json
import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from normscope import Spec, build, diagnose, gaussian, predict, simulate
from normscope.claims import CLAIMS, Verdicts, judge, load
from normscope.cli import _index, main
from normscope.core.spec import ACTIVATIONS, NORMS, POINTWISE
from normscope.findings import RULES
from normscope.geometry.metrics import METRICS
from normscope.init import CURES
from normscope.report import _theme
from normscope.theory import spec_of

TESTS = Path(__file__).parents[1]
FILES = {
    "a_norm": """
from normscope.nn.norms import OverFeatures

OverFeatures(
    "halves", "Each half of a sample to mean 0 and mean square 1.", True, True, groups=lambda features: 2
).register()
""",
    "an_activation": """
from torch import nn

from normscope.nn.activations import Activation


class Cube(nn.Module):
    def forward(self, x):
        return x**3


Activation(
    name="cube", summary="x cubed.", kind=Cube, odd=True, phi=lambda x: x**3, derivative=lambda x: 3 * x**2
).register()
""",
    "a_metric": """
from normscope.geometry.metric import register


@register(unit="1", needs="norms", source="a test", reading="Near 1 where the samples are alike.", high=1.0)
def shortest_share(s):
    \"\"\"Norm of the shortest sample over that of the longest.\"\"\"
    return s.norms.amin(-1) / s.norms.amax(-1)
""",
    "a_finding": """
from normscope.findings._rules import Hit, rule


@rule(
    "NS199", "more than one sample", severity="info", meaning="Samples can be compared.", cure="Nothing to do.",
    source="a test",
)
def more_than_one_sample(view):
    \"\"\"The number of samples of the batch.\"\"\"
    if view.samples > 1:
        yield Hit(None, "samples", view.samples, 1, f"{view.samples} samples came")
""",
    "a_cure": """
from normscope.init._cures import register
from normscope.init._layers import Treatment


@register("as-it-came", "a test")
def as_it_came(model):
    \"\"\"The model is left alone.\"\"\"
    return Treatment(model)
""",
    "a_claim": """
from normscope.claims import PAPERS, at_most, load

load()


@PAPERS["nachum2024"].claim(
    "one-home", "one half is less than one", where="a test", covers="T1", quick={"x": 0.5}, control={"x": 2.0},
    because="two is not", seconds=(1, 1),
)
def one_home(run, x):
    \"\"\"A number.\"\"\"
    return [at_most("x", x, 1.0, reason="it is one half")]
""",
}  # fmt: skip
REGISTRIES = (NORMS, ACTIVATIONS, POINTWISE, METRICS, RULES, CURES, CLAIMS)
#: list -> name of what the files add.
ADDED = {
    "norms": "halves", "activations": "cube", "metrics": "shortest_share", "findings": "NS199", "cures": "as-it-came",
    "claims": "nachum2024/one-home",
}  # fmt: skip


def write(folder):
    for name, text in FILES.items():
        (folder / f"{name}.py").write_text(text)


@pytest.fixture(scope="module", autouse=True)
def added(tmp_path_factory):
    """The six files run; what they enrolled is taken out again."""
    load()
    before = [dict(registry) for registry in REGISTRIES]
    folder = tmp_path_factory.mktemp("house")
    write(folder)
    for name in FILES:
        spec = importlib.util.spec_from_file_location(name, folder / f"{name}.py")
        spec.loader.exec_module(importlib.util.module_from_spec(spec))
    yield
    for registry, things in zip(REGISTRIES, before, strict=True):
        registry._things.clear()
        registry._things.update(things)


@pytest.fixture
def run(capsys, monkeypatch):
    """A command that was to read what is registered now."""
    monkeypatch.setattr("normscope.cli.explain.index", lambda: json.loads(_index.text()))
    monkeypatch.setenv("COLUMNS", "200")

    def run(*words):
        with pytest.raises(SystemExit) as stop:
            main([*map(str, words)])
        assert not stop.value.code
        return capsys.readouterr().out

    return run


X = np.random.default_rng(0).standard_normal((6, 8))


@pytest.fixture
def spec():
    return Spec(depth=2, width=8, norm="halves", activation="cube")


@pytest.mark.parametrize("kind", ADDED)
def test_it_is_listed_by_the_command_line(run, kind):
    assert json.loads(run("list", kind, "--json"))[kind][ADDED[kind]]


def test_a_finding_is_explained(run):
    assert "The number of samples of the batch." in run("explain", "NS199")


@pytest.mark.parametrize("kind", ADDED)
def test_it_is_in_the_docs(kind):
    page = runpy.run_path(str(TESTS.parent / "docs" / "generate.py"))
    made = {"metrics": page["metrics_page"], "findings": page["findings_page"]}
    text = page["paper_page"]("nachum2024", None, None) if kind == "claims" else made.get(kind, page["lists_page"])()
    assert ADDED[kind].rpartition("/")[2] in text


# What it is


def test_a_norm_and_an_activation_are_built_predicted_simulated_and_recognised(spec):
    net = build(spec, 8, dtype=torch.float64)
    weights = [layer.linear.weight.detach().numpy() for layer in net.layers]
    h = X
    for w in weights:
        u = (h @ w.T).reshape(6, 2, 4)
        u = u - u.mean(2, keepdims=True)
        h = ((u / np.sqrt((u**2).mean(2, keepdims=True) + 1e-5)) ** 3).reshape(6, 8)
    np.testing.assert_allclose(net(torch.from_numpy(X)).detach(), h, rtol=1e-9)
    assert spec_of(build(spec, 8)).activation == "cube"
    for profile in (predict(spec, inputs=X, metrics=["rms"]), simulate(spec, inputs=X, metrics=["rms"])):
        assert np.isfinite([r.value for r in profile.records]).all()


def test_an_activation_has_moments():
    assert gaussian.second_moment("cube", 1.0) == pytest.approx(15, rel=1e-9)  # E z^6


# Pages


def test_a_norm_and_an_activation_have_their_page(spec, run, tmp_path):
    page = tmp_path / "page.html"
    run("predict", spec, "-n", 6, "--simulate", 1, "--html", page)
    assert "norm=halves,activation=cube" in page.read_text()


def test_a_norm_has_its_colour_behind_those_that_are_there():
    assert _theme.order(["halves", "batch"])[0] == "batch"
    assert _theme.order(["halves", "batch"])[-1] == "halves"


@pytest.fixture(scope="module")
def diagnosis():
    model = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.ReLU(), torch.nn.Linear(8, 3))
    return diagnose(model, torch.from_numpy(X).float(), torch.arange(6) % 3, trial=False)


def test_a_metric_and_a_finding_are_on_the_page_of_a_diagnosis(diagnosis, tmp_path):
    diagnosis.to_html(tmp_path / "page.html")
    text = (tmp_path / "page.html").read_text()
    assert [said for said in ("Near 1 where the samples are alike.", "6 samples came") if said not in text] == []


def test_a_cure_is_on_the_page_of_its_race(run, tmp_path):
    page = tmp_path / "race.html"
    few = ("--samples", 64, "--test-samples", 0, "--epochs", 1, "--batch", 32, "--seeds", 2, "--geometry", 0)
    run("race", "mlp:depth=2,width=8", "--cures", "none,as-it-came", *few, "--html", page)
    assert "as-it-came" in page.read_text()


def test_a_claim_is_on_the_page_of_its_verdict(tmp_path):
    verdict = judge(ADDED["claims"])
    assert (verdict.status, verdict.control) == ("holds", "fails")
    Verdicts((verdict,)).save(tmp_path / "page.html")
    assert "one half is less than one" in (tmp_path / "page.html").read_text()


# Contract tests

CONTRACTS = {
    "nn/test_norm_contract.py": "halves", "nn/test_norms.py": "halves", "core/test_spec.py": "halves",
    "geometry/test_gaussian.py": "cube", "geometry/test_metrics.py": "shortest_share",
    "findings/test_findings.py": "NS199", "init/test_init.py": "as-it-came",
    "claims/test_claim_contract.py": "one-home",
}  # fmt: skip


def test_the_contract_tests_of_its_kind_have_a_case_of_it(tmp_path):
    write(tmp_path)
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import pytest; sys.exit(pytest.main(sys.argv[1:]))"
    plugins = [word for name in FILES for word in ("-p", name)]
    files = [str(TESTS / name) for name in CONTRACTS]
    quiet = ("--collect-only", "-n", "0", "-p", "no:cacheprovider")
    done = subprocess.run([sys.executable, "-c", code, *plugins, *quiet, *files], capture_output=True, text=True)
    cases = [line for line in done.stdout.splitlines() if "::" in line]
    assert cases, done.stdout[-2000:] + done.stderr[-2000:]
    assert [f for f, name in CONTRACTS.items() if not any(f in c and name in c for c in cases)] == []
