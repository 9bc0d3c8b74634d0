"""``normscope.testing``: an assertion about a network, in another project's tests."""

import textwrap

import pytest
import torch
from torch import nn

import normscope
from normscope import Diagnosis, UsageError
from normscope.testing import assert_trainable


def batch():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(24, 6, generator=generator), torch.randn(24, generator=generator)


@pytest.fixture
def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 1))


def test_what_trains_is_returned_as_its_diagnosis(net):
    x, y = batch()
    assert isinstance(assert_trainable(net, x, y[:, None], "mse", trial=False), Diagnosis)


def test_what_does_not_is_an_assertion_with_the_verdict_and_the_finding(net):
    with pytest.raises(AssertionError) as told:
        assert_trainable(net, *batch(), lambda a, b: ((a - b) ** 2).mean(), trial=False)
    text = str(told.value)
    assert text.startswith("Sequential: Will hardly train as it is: targets broadcast")
    assert "\n\nerror NS703 targets broadcast\n  outputs (24, 1) and targets (24,)" in text
    assert "\n  to do: Give both one shape" in text


@pytest.mark.parametrize("ignore", ["NS703", ["NS703"], [("NS703", "*")]])
def test_what_is_ignored_passes(net, ignore):
    assert_trainable(net, *batch(), lambda a, b: ((a - b) ** 2).mean(), trial=False, ignore=ignore)


def test_a_pattern_of_other_modules_ignores_nothing(net):
    with pytest.raises(AssertionError, match="NS703"):
        assert_trainable(net, *batch(), lambda a, b: ((a - b) ** 2).mean(), trial=False, ignore=[("NS703", "head.*")])


def test_fail_on_is_a_severity_or_codes(net):
    x, y = batch()
    frozen = torch.optim.SGD(net[0].parameters(), lr=0.1)
    assert_trainable(net, x, y[:, None], "mse", optimizer=frozen, trial=False)
    with pytest.raises(AssertionError, match="NS601"):
        assert_trainable(net, x, y[:, None], "mse", optimizer=frozen, trial=False, fail_on=["NS601"])


@pytest.mark.parametrize(
    ("options", "says"),
    [({"fail_on": "eror"}, "'error'"), ({"ignore": ["ns101"]}, "'NS101'"), ({"ignore": [3]}, "ignore must")],
)
def test_a_slip_is_a_usage_error(net, options, says):
    with pytest.raises(UsageError, match=says):
        assert_trainable(net, *batch(), trial=False, **options)


def test_the_model_is_as_it_was_when_the_assertion_fails_too(net):
    before = {k: v.clone() for k, v in net.state_dict().items()}
    with pytest.raises(AssertionError):
        assert_trainable(net, *batch(), lambda a, b: ((a - b) ** 2).mean(), trial=5)
    assert all(torch.equal(v, before[k]) for k, v in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())


def test_pytest_shows_the_line_of_the_test_and_the_findings(tmp_path, capsys):
    (tmp_path / "test_of_a_user.py").write_text(
        textwrap.dedent("""
            import torch
            from normscope.testing import assert_trainable

            def test_mine():
                x, y = torch.randn(16, 4), torch.randn(16)
                assert_trainable(torch.nn.Linear(4, 1), x, y, lambda a, b: ((a - b) ** 2).mean(), trial=False)
        """)
    )
    code = pytest.main(["-q", "-n", "0", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)])
    out = capsys.readouterr().out
    assert code == 1, out
    assert "error NS703 targets broadcast" in out
    assert "test_of_a_user.py:7: AssertionError" in out
    assert "trainable.py" not in out.replace("normscope.testing", "")


def test_the_room_is_reached_from_the_package():
    assert normscope.testing.assert_trainable is assert_trainable
