"""The door on a GPU: streams, numbers and traces. Skipped where there is none."""

import pytest
import torch
from torch import nn

import normscope as ns

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here: this part was not run")


def net(device):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 3))
        x, y = torch.randn(32, 8), torch.randint(0, 3, (32,))
    return model.to(device), x.to(device), y.to(device)


@pytest.mark.parametrize("verb", [ns.probe, ns.diagnose, ns.sharpness, ns.hessian], ids=lambda v: v.__name__)
def test_random_streams_and_buffers_come_back(verb):
    model, x, y = net("cuda")
    before = {k: v.clone() for k, v in model.state_dict().items()}
    streams = torch.cuda.get_rng_state_all(), torch.get_rng_state()
    verb(model, x, y)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(torch.equal(a, b) for a, b in zip(torch.cuda.get_rng_state_all(), streams[0], strict=True))
    assert torch.equal(torch.get_rng_state(), streams[1])


def test_lambda_max_is_that_of_the_cpu():
    (model, x, y), (twin, u, v) = net("cuda"), net("cpu")
    model[3].p = twin[3].p = 0.0
    here, there = (ns.sharpness(m, a, b, dtype=torch.float64).lambda_max for m, a, b in ((model, x, y), (twin, u, v)))
    assert here == pytest.approx(there, rel=1e-6)


def test_whole_precision_is_a_matter_of_the_run():
    model, x, y = net("cuda")
    before = torch.backends.cudnn.allow_tf32
    ns.sharpness(model, x, y)
    assert torch.backends.cudnn.allow_tf32 == before
