"""Any text in a MODEL's place is a model, or refused in one line."""

from hypothesis import example, given, settings
from hypothesis import strategies as st

from normscope.cli._places import place_of
from normscope.core.errors import UsageError
from normscope.core.load import split_arguments
from normscope.core.spec import Spec, parse
from normscope.data.models import check_model

FIELDS = ("depth", "width", "norm", "activation", "norm_first", "skip", "weights", "gain", "bias", "outputs")
VALUES = (
    "3",
    "0",
    "-1",
    "1e9",
    "nan",
    "inf",
    "none",
    "true",
    "batch",
    "relu",
    "leaky_relu(0.2)",
    "leaky_relu(",
    "",
    "9" * 5000,
)
anything = st.text(max_size=6)
item = st.builds("{}={}".format, st.sampled_from(FIELDS) | anything, st.sampled_from(VALUES) | anything) | anything
built_in = st.builds(
    lambda family, items: f"{family}:{','.join(items)}",
    st.sampled_from(("mlp", "vgg", "resnet")),
    st.lists(item, max_size=3),
)
#: No text that Python could import: what is tried is the reading.
file = st.builds("{}.py:{},{}".format, st.sampled_from(("no_such_net", "/no/such")), st.just("make") | anything, item)


def read_or_told(read, text):
    """What ``read`` makes of it; the message, one line of it, where it is refused."""
    try:
        return read(text)
    except UsageError as error:
        told = str(error)
    assert told
    assert len(told.splitlines()) == 1
    return None


@settings(max_examples=150, deadline=None)
@given(text=built_in | anything)
def test_a_built_in_net_is_a_spec_whose_name_says_it_again(text):
    spec = read_or_told(parse, text)
    assert spec is None or (isinstance(spec, Spec) and parse(str(spec)) == spec)


@settings(max_examples=100, deadline=None)
@given(text=file | anything)
@example("net.py:make,depth=3,depth=4")
@example("net.py:make,")
def test_arguments_are_names_and_values(text):
    found = read_or_told(split_arguments, text)
    assert found is None or (text.startswith(found[0]) and all(key.isidentifier() for key in found[1]))


@settings(max_examples=60, deadline=None)
@given(text=built_in | file)
def test_a_model_is_checked_without_a_trace(text):
    assert read_or_told(check_model, text) is None


@settings(max_examples=60, deadline=None)
@given(text=built_in | file | anything)
def test_a_place_is_a_file_and_a_line_or_none(text):
    assert read_or_told(place_of, text) in (("", 0), None)
