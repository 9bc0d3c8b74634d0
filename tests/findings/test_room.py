"""What a model needs beside itself is estimated before it is taken, and one line says so where it does not fit."""

import subprocess
import sys

import pytest
import torch
from torch import nn

import normscope as ns
from normscope.core.errors import UsageError

#: A copy of this net, its gradients, and a bit less than both.
SIDE = 1500
COPY = 4 * 4 * SIDE * (SIDE + 1)


@pytest.fixture(scope="module")
def net():
    return nn.Sequential(*[nn.Linear(SIDE, SIDE) for _ in range(4)])


def inputs(n=4):
    return torch.randn(n, SIDE), torch.randn(n, SIDE)


VERBS = {
    "diagnose": (lambda net: ns.diagnose(net, *inputs()), 2),
    "probe": (lambda net: ns.probe(net, *inputs()), 2),
    "sharpness": (lambda net: ns.sharpness(net, *inputs()), 3),
    "rates": (lambda net: ns.rates(net, *inputs()), 3),
}


@pytest.mark.parametrize("verb", VERBS)
def test_a_model_that_leaves_no_room_is_refused_before_anything_is_taken(verb, net, monkeypatch):
    work, copies = VERBS[verb]
    monkeypatch.setenv("NORMSCOPE_MEMORY", str(copies * COPY - 1))
    with pytest.raises(UsageError, match=r"beside the model .*must fit in memory; it takes about .* MB, and") as caught:
        work(net)
    assert "\n" not in str(caught.value)


def test_one_that_fits_by_a_byte_is_measured(net, monkeypatch):
    monkeypatch.setenv("NORMSCOPE_MEMORY", str(2 * COPY))
    assert ns.probe(net, *inputs()).facts["layers"] == 4


def test_without_a_backward_pass_it_takes_one_copy(net, monkeypatch):
    monkeypatch.setenv("NORMSCOPE_MEMORY", str(COPY))
    assert ns.probe(net, inputs()[0], backward=False).facts["layers"] == 4


def test_a_batch_whose_activations_do_not_fit_is_refused_in_the_pass(monkeypatch):
    net = nn.Sequential(nn.Linear(4, 600), nn.ReLU(), nn.Linear(600, 2))
    monkeypatch.setenv("NORMSCOPE_MEMORY", "70MB")
    with pytest.raises(UsageError, match=r"behind 0 put out, and its measurement, must fit .* Take fewer samples"):
        ns.probe(net, torch.randn(30_000, 4))  # 72 MB an output


LIMITED = """
import resource, torch
import normscope as ns
net = torch.nn.Sequential(*[torch.nn.Linear(2000, 2000) for _ in range(8)])
x = torch.randn(8, 2000)
ns.probe(torch.nn.Linear(2, 2), x[:, :2])
held = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (held + 100_000_000,) * 2)
try:
    ns.diagnose(net, x)
except ns.UsageError as error:
    print(error)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="a limit of addresses")
def test_a_process_with_a_limit_of_its_own_is_told(tmp_path):
    done = subprocess.run([sys.executable, "-c", LIMITED], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert "What is made beside the model (a copy, and gradients) must fit in memory; it takes about 256 MB" in (
        done.stdout
    ), done.stderr
