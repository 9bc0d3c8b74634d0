"""Norms on outputs: their values on images, and their folding into the last layer."""

import copy

import pytest
import torch
from torch import nn

from normscope import UsageError
from normscope.nn import CenterOutputs, NormalizeOutputs


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("features", [(), (4,), (2, 3)])
def test_centred_outputs_with_positions_have_the_shift_of_their_channel(features):
    x = torch.randn(8, 3, *features, generator=gen(), dtype=torch.float64)
    model = CenterOutputs(nn.Identity(), 3, affine=True).double()
    with torch.no_grad():
        model.bias.copy_(torch.tensor([1.0, -2.0, 5.0]))
    flat = x.transpose(0, 1).flatten(1)
    expected = flat - flat.mean(1, keepdim=True) + torch.tensor([[1.0], [-2.0], [5.0]])
    assert torch.allclose(model(x).transpose(0, 1).flatten(1), expected, atol=1e-12)


@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("wrap", [CenterOutputs, NormalizeOutputs])
def test_folding_keeps_the_outputs_of_eval_mode(wrap, dtype, bias, affine):
    plain = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3, bias=bias), nn.Flatten()).to(dtype)
    model = wrap(plain, 3, affine=affine).to(dtype)
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=gen(len(p))))
    x = torch.randn(40, 6, generator=gen(), dtype=dtype)
    for _ in range(3):
        model(x + 1)
    model.eval()
    expected = model(x).detach()
    folded = model.fold_(x)
    assert folded is plain
    assert torch.allclose(folded(x), expected, rtol=0, atol=1e-12 if dtype == torch.float64 else 1e-5)
    assert isinstance(folded[2].bias, nn.Parameter)


def test_folding_a_convolution_keeps_the_outputs():
    model = CenterOutputs(nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 1)), 3).double()
    x = torch.randn(8, 2, 5, 5, dtype=torch.float64)
    model(x)
    model.eval()
    expected = model(x).detach()
    assert torch.allclose(model.fold_(x)(x), expected, atol=1e-12)


class Scaled(nn.Module):
    """Ends in a linear layer as far as the module tree can tell, but not in fact."""

    def __init__(self):
        super().__init__()
        self.last = nn.Linear(6, 3)

    def forward(self, x):
        return self.last(x).exp()


def test_folding_is_refused_where_the_outputs_would_change():
    model = CenterOutputs(Scaled(), 3)
    x = torch.randn(8, 6, generator=gen())
    model(x)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UsageError, match="outputs would change"):
        model.fold_(x)
    assert all(torch.equal(before[k], v) for k, v in model.state_dict().items())


def test_folding_needs_a_layer_at_the_end():
    model = CenterOutputs(nn.Sequential(nn.Linear(6, 3), nn.Softmax(1)), 3)
    with pytest.raises(UsageError, match="there is a Softmax"):
        model.fold_()


def test_folding_refuses_to_scale_a_tied_weight():
    net = nn.Sequential(nn.Embedding(3, 6), nn.Linear(6, 3))
    net[1].weight = net[0].weight
    model = NormalizeOutputs(net, 3)
    with torch.no_grad():
        model.norm.running_var.fill_(4.0)
    with pytest.raises(UsageError, match="tied"):
        model.fold_()
