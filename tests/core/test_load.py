"""Objects by name: the right one is found, and an error points at the user's own line."""

import sys
from pathlib import Path

import pytest

from normscope.core.errors import UsageError
from normscope.core.load import Crashed, call_object, load_object, origin, user_error, value_of


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty current folder; ``sys.modules`` is as before afterwards."""
    monkeypatch.chdir(tmp_path)
    before = dict(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - set(before):
        del sys.modules[name]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def message(name: str, how=load_object) -> str:
    with pytest.raises(UsageError) as caught:
        how(name)
    return str(caught.value)


def test_an_installed_module_gives_its_attribute():
    assert load_object("os.path:join") is __import__("os").path.join


def test_dotted_attributes_are_followed(here):
    write(here / "net.py", "class A:\n    class B:\n        c = 7\n")
    assert load_object("net.py:A.B.c") == 7


def test_an_absolute_path_works(here):
    path = write(here / "deep" / "net.py", "x = 3\n")
    assert load_object(f"{path}:x") == 3


def test_a_package_in_the_current_folder_is_importable(here):
    write(here / "mine" / "__init__.py", "")
    write(here / "mine" / "net.py", "x = 5\n")
    assert load_object("mine.net:x") == 5


def test_a_file_may_import_its_neighbours(here):
    write(here / "a" / "near.py", "x = 11\n")
    write(here / "a" / "net.py", "from near import x\n")
    assert load_object("a/net.py:x") == 11


def test_neighbours_of_the_same_name_are_not_mixed_up(here):
    for folder, value in (("a", 1), ("b", 2)):
        write(here / folder / "near.py", f"x = {value}\n")
        write(here / folder / "net.py", "from near import x\n")
    assert [load_object(f"{f}/net.py:x") for f in "ab"] == [1, 2]


def test_a_module_the_user_has_imported_stays_the_imported_one(here):
    for folder in "ab":
        write(here / folder / "near.py", "")
        write(here / folder / "net.py", "import near as x\n")
    first = load_object("a/net.py:x")
    load_object("b/net.py:x")
    assert sys.modules["near"] is first


def test_the_path_is_as_before(here):
    write(here / "a" / "net.py", "x = 1\n")
    before = list(sys.path)
    load_object("a/net.py:x")
    assert sys.path == before


def test_the_path_is_as_before_when_the_file_raises(here):
    write(here / "net.py", "1 / 0\n")
    before = list(sys.path)
    message("net.py:x")
    assert sys.path == before


def test_a_file_is_executed_once(here):
    write(here / "net.py", "with open('log', 'a') as f:\n    f.write('x')\na = b = 1\n")
    load_object("net.py:a")
    load_object("net.py:b")
    assert (here / "log").read_text() == "x"


def test_an_edited_file_is_executed_again(here):
    write(here / "net.py", "x = 1\n")
    load_object("net.py:x")
    write(here / "net.py", "x = 2\n")
    assert load_object("net.py:x") == 2


def test_a_file_named_as_a_standard_module_does_not_replace_it(here):
    import json

    write(here / "json.py", "x = 1\n")
    load_object("json.py:x")
    assert sys.modules["json"] is json


def test_dataclasses_work_in_a_file(here):
    text = "from __future__ import annotations\nimport dataclasses\n@dataclasses.dataclass\nclass A:\n    x: int = 4\n"
    write(here / "net.py", text)
    assert load_object("net.py:A")().x == 4


@pytest.mark.parametrize("name", ["net", "net.py", ":make", "net:", "net.py:", "net.py:a b", "net.py:a..b"])
def test_a_name_without_its_two_halves_is_refused(name):
    assert "must be package.module:name or path/to/file.py:name" in message(name)


def test_a_path_without_its_ending_is_offered_with_it(here):
    write(here / "deep" / "net.py", "x = 1\n")
    assert "Is it the file deep/net.py:x?" in message("deep/net:x")


def test_a_missing_file_is_named(here):
    assert str(here / "nix.py") in message("nix.py:x")


def test_a_misspelt_file_gets_the_nearest(here):
    write(here / "network.py", "")
    assert "Did you mean network.py?" in message("netwrok.py:x")


def test_a_missing_module_is_named(here):
    assert "There must be a module no_such_thing.net" in message("no_such_thing.net:x")


def test_a_misspelt_attribute_gets_the_nearest(here):
    write(here / "net.py", "def make_net(): pass\n")
    assert "Did you mean 'make_net'?" in message("net.py:mkae_net")


def test_a_far_off_attribute_gets_the_names_of_the_file(here):
    write(here / "net.py", "from os import path\ndef make_net(): pass\n")
    assert message("net.py:zzz").endswith("It defines: make_net.")


def test_an_exception_in_the_file_is_shown_with_type_and_message(here):
    write(here / "net.py", "1 / 0\n")
    assert message("net.py:x").endswith("with ZeroDivisionError: division by zero")


def test_an_exception_is_placed_at_the_innermost_line_of_the_user(here):
    write(here / "near.py", "import json\n\ndef f():\n    json.loads('{')\n")
    write(here / "net.py", "import near\n\nnear.f()\n")
    assert f"at {here / 'near.py'}:4 with JSONDecodeError" in message("net.py:x")


def test_a_syntax_error_has_its_line(here):
    write(here / "net.py", "x = 1\ny = = 2\n")
    assert f"at {here / 'net.py'}:2 with SyntaxError" in message("net.py:x")


def test_an_import_error_inside_the_users_file_is_shown_as_such(here):
    write(here / "net.py", "import no_such_thing\n")
    assert message("net.py:x").endswith("with ModuleNotFoundError: No module named 'no_such_thing'")


def test_an_import_error_inside_the_users_package_is_shown_as_such(here):
    write(here / "mine.py", "\nimport no_such_thing\n")
    assert f"at {here / 'mine.py'}:2 with ModuleNotFoundError: No module named 'no_such_thing'" in message("mine:x")


def test_a_file_that_exits_is_an_error_of_the_file(here):
    write(here / "net.py", "raise SystemExit(3)\n")
    assert "SystemExit: 3" in message("net.py:x")


def test_a_file_that_failed_is_tried_again(here):
    write(here / "net.py", "import os\nif not os.path.exists('ready'):\n    raise RuntimeError\nx = 1\n")
    message("net.py:x")
    write(here / "ready", "")
    assert load_object("net.py:x") == 1


def test_a_call_returns_what_the_callable_returns(here):
    write(here / "net.py", "def make():\n    return 9\n")
    assert call_object("net.py:make") == 9


def test_a_call_may_import_the_neighbours(here):
    write(here / "a" / "near.py", "x = 12\n")
    write(here / "a" / "net.py", "def make():\n    from near import x\n    return x\n")
    assert call_object("a/net.py:make") == 12


def test_a_call_that_raises_shows_the_users_line(here):
    write(here / "net.py", "def make():\n    raise KeyError('width')\n")
    assert f"at {here / 'net.py'}:2 with KeyError: 'width'" in message("net.py:make", call_object)


def test_an_object_that_is_not_callable_is_refused(here):
    write(here / "net.py", "x = 1\n")
    assert "must be a callable; it is a int" in message("net.py:x", call_object)


# Arguments

MAKE = """
def make(depth, norm='none', **rest):
    return depth, norm, rest

class Net:
    def __init__(self, width: int = 4):
        self.width = width
"""


def test_arguments_reach_the_callable(here):
    write(here / "net.py", MAKE)
    assert call_object("net.py:make,depth=3,norm=batch,bias=none") == (3, "batch", {"bias": None})


def test_arguments_reach_a_callable_of_a_package(here):
    write(here / "mine" / "__init__.py", MAKE)
    assert call_object("mine:make,depth=3") == (3, "none", {})


def test_a_class_takes_arguments(here):
    write(here / "net.py", MAKE)
    assert call_object("net.py:Net,width=9").width == 9


def test_a_value_may_hold_a_colon_and_an_equals_sign(here):
    write(here / "net.py", MAKE)
    assert call_object("net.py:make,depth=1,at=C:/x=2") == (1, "none", {"at": "C:/x=2"})


def test_a_path_may_hold_a_comma(here):
    write(here / "a,b=1" / "net.py", MAKE)
    assert call_object("a,b=1/net.py:make,depth=3") == (3, "none", {})


@pytest.mark.parametrize(
    ("text", "value"),
    [("3", 3), ("-3", -3), ("0.5", 0.5), ("1e-3", 1e-3), ("true", True), ("False", False), ("None", None),
     ("batch", "batch"), ("", ""), ("3x3", "3x3")],
)  # fmt: skip
def test_a_value_is_read_as_what_it_looks_like(text, value):
    assert (value_of(text), type(value_of(text))) == (value, type(value))


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("net.py:make,dept=3", ["(depth, norm='none', **rest)", "missing a required argument: 'depth'"]),
        ("net.py:make", ["missing a required argument: 'depth'", "Write net.py:make,depth=VALUE."]),
        ("net.py:Net,widht=3", ["(width: 'int' = 4)", "unexpected keyword argument 'widht'", "Did you mean 'width'?"]),
        ("net.py:Net,zzz=3", ["unexpected keyword argument 'zzz'", "Write net.py:Net,width=VALUE."]),
        ("net.py:plain,x=1", ["takes, ()", "Write net.py:plain."]),
        ("net.py:make,depth", ["key=value; got 'depth' in 'net.py:make,depth'"]),
        ("net.py:make,", ["key=value; got ''"]),
        ("net.py:make,=3", ["key=value; got '=3'"]),
        ("net.py:make,depth=1,depth=2", ["'depth' stands twice"]),
    ],
)
def test_wrong_arguments_are_told_with_those_that_it_takes(here, name, says):
    write(here / "net.py", "from __future__ import annotations\n" + MAKE + "\ndef plain():\n    return 1\n")
    told = message(name, call_object)
    assert [s for s in says if s not in told] == []


# Whose fault it is


def raised(name, how=call_object):
    with pytest.raises(UsageError) as caught:
        how(name)
    return type(caught.value)


@pytest.mark.parametrize(
    "text", ["1 / 0\n", "x = = 1\n", "import no_such_thing\n", "def make():\n    1 / 0\n", "def make():\n    exit(1)\n"]
)
def test_what_the_users_code_raises_is_a_crash(here, text):
    write(here / "net.py", text)
    assert raised("net.py:make") is Crashed


@pytest.mark.parametrize("name", ["nix.py:make", "no_such_thing:make", "net.py:mkae", "net.py:x", "net.py:make,y=1"])
def test_a_wrong_name_is_no_crash(here, name):
    write(here / "net.py", "x = 1\ndef make():\n    pass\n")
    assert raised(name) is UsageError


def test_a_usage_error_in_the_users_code_stays_one_and_has_their_line(here):
    write(here / "net.py", "import normscope\ndef make():\n    return normscope.Spec(depth=0)\n")
    assert raised("net.py:make") is UsageError
    assert f"at {here / 'net.py'}:3 with UsageError: Spec.depth" in message("net.py:make", call_object)


def caught(call):
    try:
        call()
    except Exception as error:
        return error


def test_an_error_is_the_users_when_their_code_was_running(here):
    write(here / "net.py", "import json\ndef make():\n    json.loads('{')\n")
    assert origin(caught(load_object("net.py:make"))) == "user"


def without(error, frames):
    """The error without this test's own frames."""
    for _ in range(frames):
        error.__traceback__ = error.__traceback__.tb_next
    return error


def test_an_error_of_torch_or_of_normscope_alone_is_ours():
    import torch

    from normscope.core.spec import parse

    layer = torch.nn.Linear(2, 3)
    assert origin(without(caught(lambda: layer(torch.ones(5))), 2)) == "ours"
    assert origin(without(caught(lambda: parse("x")), 2)) == "ours"


def test_an_error_of_an_installed_package_is_its_own():
    import polars

    assert origin(without(caught(lambda: polars.DataFrame({"a": [1], "b": [1, 2]})), 2)) == "package"


def test_notes_and_advice_follow_the_error():
    error = ValueError("odd")
    error.add_note("normscope: it was in layer 3")
    assert str(user_error("Running it", error, "do this.")) == (
        "Running it failed with ValueError: odd. It was in layer 3. Do this."
    )
