"""Each script of the gallery draws its picture, and what its text claims holds (its own last line checks it)."""

import runpy
import warnings
from importlib.util import find_spec
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = runpy.run_path(str(ROOT / "docs" / "gallery.py"))
SCRIPTS = sorted((ROOT / "examples" / "gallery").glob("*.py"))
DRAWN = ROOT / "docs" / "gallery"


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda script: script.stem)
def test_a_script_draws_its_picture_and_its_claim_holds(script, tmp_path, monkeypatch):
    if script.stem == "language_model" and find_spec("transformers") is None:
        pytest.skip("transformers is not installed")
    assert "\nassert " in script.read_text(), "a script ends with the check of its claim"
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # transformers' own
        runpy.run_path(str(script))
    picture = (tmp_path / f"{script.stem}.svg").read_text()
    assert picture.startswith("<svg")
    assert "</svg>" in picture
    assert "NaN" not in picture


def test_every_script_is_on_the_page():
    assert sorted(name for names in PAGE["ORDER"].values() for name in names) == [s.stem for s in SCRIPTS]
    assert (ROOT / "docs" / "gallery.md").read_text() == PAGE["page"](), "run: python docs/gallery.py"


def test_the_pictures_are_there_and_small():
    sizes = {path.stem: path.stat().st_size for path in DRAWN.glob("*.svg")}
    assert sorted(sizes) == [s.stem for s in SCRIPTS]
    assert max(sizes.values()) <= 60_000
    assert sum(sizes.values()) <= 800_000
