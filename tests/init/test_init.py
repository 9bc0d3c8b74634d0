"""Cures of the weights: the identity that defines each, against slow oracles that share no code with the library."""

import copy
import math
from itertools import pairwise

import pytest
import torch
from torch import nn

from normscope import UsageError, init
from normscope.init import CURES
from normscope.init.orthogonal import complement, completion, directions, orthogonalizer


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=gen(seed), dtype=torch.float64).to(dtype)


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


def mlp(*widths, bias=True, dtype=torch.float64):
    layers = []
    for a, b in pairwise(widths):
        layers += [nn.Linear(a, b, bias=bias, dtype=dtype), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def inputs_of(model, x, at):
    """What module number ``at`` of a Sequential gets."""
    with torch.no_grad():
        return model[:at](x)


def gap(x):
    """Orthogonality gap by its definition, samples as rows."""
    g = x @ x.T
    return float((g / g.trace() - torch.eye(len(x), dtype=x.dtype) / len(x)).norm())


def conv_matrix(conv, shape):
    """The matrix (outputs, inputs) of a convolution without bias, column by column."""
    size = math.prod(shape)
    with torch.no_grad():
        columns = [conv(e.reshape(1, *shape)).flatten() for e in torch.eye(size, dtype=conv.weight.dtype)]
        zero = conv(torch.zeros(1, *shape, dtype=conv.weight.dtype)).flatten()
    return torch.stack([c - zero for c in columns], 1)


# Directions


@pytest.mark.parametrize("shape", [(40, 12), (12, 40), (20, 20)])
@pytest.mark.parametrize("cut", [1e-14, 1e-6])
def test_directions_are_the_singular_values_and_vectors(shape, cut):
    x = draw(*shape)
    sigma, v = directions(x, cut)
    assert torch.allclose(sigma, torch.linalg.svdvals(x), rtol=1e-7)
    assert torch.allclose((x @ v).norm(dim=0), sigma, rtol=1e-7)
    assert torch.allclose(v.T @ v, torch.eye(v.shape[1], dtype=v.dtype), atol=1e-9)


@pytest.mark.parametrize("shape", [(40, 12), (12, 40)])
def test_directions_of_nearly_rank_one_rows_are_resolved_in_float64(shape):
    x = torch.ones(shape, dtype=torch.float64) + 1e-9 * draw(*shape)
    sigma, v = directions(x, 10 * torch.finfo(torch.float64).eps)
    assert len(sigma) == 12
    assert torch.allclose((x @ v).norm(dim=0), sigma, rtol=1e-4)


def test_directions_below_the_cut_are_left_out():
    x = draw(30, 3) @ draw(3, 10, seed=1) + 1e-9 * draw(30, 10, seed=2)
    assert len(directions(x, 1e-6)[0]) == 3


def test_a_complement_is_orthonormal_and_orthogonal():
    a = torch.linalg.qr(draw(9, 4)).Q
    rest = complement(a)
    assert rest.shape == (9, 5)
    assert torch.allclose(rest.T @ rest, torch.eye(5, dtype=a.dtype), atol=1e-12)
    assert torch.allclose(a.T @ rest, torch.zeros(4, 5, dtype=a.dtype), atol=1e-12)


def test_the_completion_of_nothing_but_the_identity_is_the_identity():
    v = torch.eye(6, dtype=torch.float64)[:, :2]
    rest = completion(v, v, torch.eye(6, dtype=torch.float64))
    assert torch.allclose(rest + v @ v.T, torch.eye(6, dtype=torch.float64), atol=1e-12)


# Orthogonal representations


@pytest.mark.parametrize("power", [0.5, 1.0])
@pytest.mark.parametrize("basis", ["polar", "haar"])
@pytest.mark.parametrize("n", [8, 16, 40])
def test_the_output_has_the_singular_values_of_equation_6(n, basis, power):
    """sigma_i^(1-p) / ||sigma^(1-p)||, for fewer samples than features, as many, and more."""
    model, x = mlp(10, 16, 16, 3), draw(n, 10).abs()
    init.orthogonal_representations_(model, x, power=power, basis=basis, scale="paper", generator=gen())
    h = inputs_of(model, x, 2)
    sigma = torch.linalg.svdvals(h)
    sigma = sigma[sigma > 1e-10 * sigma[0]].pow(1 - power)
    found = torch.linalg.svdvals(h @ model[2].weight.T)[: len(sigma)]
    assert torch.allclose(found, sigma / sigma.norm(), rtol=1e-9)


def test_at_power_one_half_the_singular_values_are_sqrt_sigma_over_sqrt_of_their_sum():
    model, x = mlp(10, 16, 16, 3), draw(30, 10)
    init.orthogonal_representations_(model, x, basis="polar", scale="paper", generator=gen())
    sigma = torch.linalg.svdvals(inputs_of(model, x, 2))
    found = torch.linalg.svdvals(inputs_of(model, x, 3))
    assert torch.allclose(found, sigma.sqrt() / sigma.sum().sqrt(), rtol=1e-9)


def test_the_sliced_form_is_equation_6_with_the_first_rows_of_u():
    model, x = mlp(10, 16, 16, 3), draw(40, 10)
    init.orthogonal_representations_(model, x, scale="paper", generator=gen())
    h = inputs_of(model, x, 2)
    u, s, vt = torch.linalg.svd(h, full_matrices=False)
    expected = u[:16] @ torch.diag(s.rsqrt()) @ vt
    expected = expected / (h @ expected.T).norm()
    assert torch.allclose(model[2].weight, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("seed", range(30))
def test_orthogonal_outputs_have_a_smaller_gap_than_inputs(seed):
    """App. E, by Hoelder; full-rank batches with orthonormal U'."""
    n = (6, 16)[seed % 2]
    x = draw(n, 12, seed=seed) @ torch.diag(draw(12, seed=seed + 99).exp())
    w = orthogonalizer(x, 12, 0.5, "polar", 1e-14, gen(seed))
    sigma = torch.linalg.svdvals(x)
    sigma = sigma / sigma.norm()
    assert gap(x @ w.T) ** 2 == pytest.approx(float(sigma.sum() ** -2) - 1 / n, rel=1e-8)
    assert gap(x @ w.T) < gap(x)


@pytest.mark.parametrize("n", [5, 12])
@pytest.mark.parametrize("basis", ["sliced", "polar", "haar"])
def test_a_square_layer_keeps_full_rank_whatever_the_batch_spans(n, basis):
    x = draw(n, 2) @ draw(2, 8, seed=1)
    w = orthogonalizer(x, 8, 0.5, basis, 1e-10, gen())
    assert torch.linalg.matrix_rank(w) == 8


def test_a_layer_off_the_batch_has_the_gain_of_the_batch():
    x = draw(5, 12)
    w = orthogonalizer(x, 12, 0.5, "polar", 1e-12, gen())
    off = complement(directions(x, 1e-12)[1])
    gain = (x @ w.T).norm() / x.norm()
    assert torch.allclose((w @ off).norm(dim=0), gain.expand(7), rtol=1e-9)


@pytest.mark.parametrize(("d", "out"), [(12, 5), (5, 12)])
def test_a_layer_that_is_not_square_keeps_the_strongest_directions(d, out):
    x = draw(40, d) @ torch.diag(torch.arange(d, 0, -1, dtype=torch.float64) ** 3)
    w = orthogonalizer(x, out, 0.5, "polar", 1e-12, gen())
    k = min(d, out)
    sigma = torch.linalg.svdvals(x)[:k]
    assert torch.allclose(torch.linalg.svdvals(x @ w.T)[:k], sigma.sqrt(), rtol=1e-8)


def test_units_beyond_the_samples_repeat_them():
    """With fewer samples than outputs no unit is dead: unit j answers to sample j mod n."""
    x = draw(4, 8)
    w = orthogonalizer(x, 8, 1.0, "sliced", 1e-12, gen())
    y = x @ w.T
    assert torch.allclose(y[:, :4], y[:, 4:], atol=1e-9)
    assert y.norm(dim=0).min() > 0.1


def test_the_scale_rms_gives_every_layer_outputs_of_unit_rms():
    model, x = mlp(10, 16, 24, 16, 3), draw(64, 10)
    init.orthogonal_representations_(model, x, generator=gen())
    for at in (1, 3, 5):
        h = inputs_of(model, x, at)
        if at > 1:
            assert float(h.square().mean().sqrt()) == pytest.approx(1, rel=1e-9)
    first = inputs_of(model, x, 1) - model[0].bias
    assert float(first.detach().square().mean().sqrt()) == pytest.approx(1, rel=1e-9)


def test_the_scale_paper_leaves_the_first_layer_as_it_is():
    model, x = mlp(10, 16, 16, 3), draw(64, 10)
    before = model[0].weight.clone()
    init.orthogonal_representations_(model, x, scale="paper", generator=gen())
    assert torch.equal(model[0].weight, before)


def test_ends_treats_the_first_and_the_last_layer_too():
    model, x = mlp(10, 16, 3), draw(64, 10)
    init.orthogonal_representations_(model, x, ends=True, basis="polar", generator=gen())
    sigma = torch.linalg.svdvals(x)
    found = torch.linalg.svdvals(inputs_of(model, x, 1))[:10]
    assert torch.allclose(found / found.norm(), sigma.sqrt() / sigma.sum().sqrt())
    assert float(model(x).detach().square().mean()) == pytest.approx(1)


def test_deep_relu_nets_are_orthogonal_on_the_batch_and_not_on_fresh_samples():
    """The mechanism of section 5: units answer to samples of the batch; fresh samples profit less."""
    model = mlp(20, *[32] * 20, 3, bias=False, dtype=torch.float32)
    x = draw(40, 20, dtype=torch.float32) + 1
    fresh = draw(40, 20, seed=7, dtype=torch.float32) + 1
    plain = gap(inputs_of(model, fresh, 39).double())
    init.orthogonal_representations_(model, x, generator=gen())
    assert gap(inputs_of(model, x, 39).double()) < 0.2
    assert 0.2 < gap(inputs_of(model, fresh, 39).double()) < plain - 0.2


def test_a_unit_that_one_sample_barely_wakes_does_not_take_over_on_fresh_samples():
    """A unit wakes by 1e-4, for the first sample alone: the one that the next layer's first unit is to answer to."""
    first, x, fresh = torch.tensor([[3.0] + 5 * [0.0]]), draw(63, 6).clamp(-2.9, 2.9), 2 * draw(64, 6, seed=7)
    x = torch.cat([first.double(), x])

    def gap_on_fresh_samples(wakes):
        torch.manual_seed(0)
        model = mlp(6, 16, 16, 3)
        with torch.no_grad():
            model[0].weight[0] = first
            model[0].bias[0] = wakes - (x @ model[0].weight[0]).max()
        init.orthogonal_representations_(model, x, scale="paper", generator=gen())
        return gap(inputs_of(model, fresh, 3))

    assert gap_on_fresh_samples(1e-4) == pytest.approx(gap_on_fresh_samples(0), abs=0.05)


@pytest.mark.parametrize("cut", [-1, 1, math.nan, "a", None])
def test_a_cut_is_a_share(cut):
    with pytest.raises(UsageError, match="cut must"):
        init.orthogonal_representations_(mlp(6, 16, 16, 3), draw(8, 6), cut=cut)


def test_the_sliced_weights_become_multiples_of_the_identity():
    """Section 5: why the identity is its control."""
    model = mlp(20, *[32] * 20, 3, bias=False)
    init.orthogonal_representations_(model, draw(96, 20) + 1, generator=gen())

    def distance(w):
        w = w.detach()
        return float((w - w.diagonal().mean() * torch.eye(32)).norm() / w.norm())

    assert distance(model[2].weight) > 0.2
    assert distance(model[38].weight) < 0.1


def test_a_saturating_activation_is_not_driven_further_in():
    """Behind tanh the identity keeps its gain at most 1; behind ReLU it makes up for what was rectified."""
    for activation, gain in ((nn.Tanh, 1.0), (nn.ReLU, None)):
        model = nn.Sequential(
            nn.Linear(10, 16), activation(), nn.Linear(16, 16), activation(), nn.Linear(16, 3)
        ).double()
        x = draw(64, 10)
        init.identity_(model, x, generator=gen())
        h = inputs_of(model, x, 2)
        size = float(h.square().mean().sqrt())
        assert size < 1
        assert float(model[2].weight[0, 0].detach()) == pytest.approx(gain or 1 / size)


# Convolutions

CONVS = {
    "plain": {"kernel_size": 3, "padding": 1},
    "strided": {"kernel_size": 3, "stride": 2, "padding": 1},
    "dilated": {"kernel_size": 3, "dilation": 2, "padding": 2},
    "unpadded": {"kernel_size": 2},
    "reflect": {"kernel_size": 3, "padding": 1, "padding_mode": "reflect"},
    "circular": {"kernel_size": (3, 1), "padding": (1, 0), "padding_mode": "circular"},
    "same": {"kernel_size": 4, "padding": "same"},
    "grouped": {"kernel_size": 3, "padding": 1, "groups": 2},
}


@pytest.mark.parametrize("kind", CONVS)
def test_the_rows_of_a_convolution_are_what_its_weight_meets(kind):
    from normscope.init._layers import Layer, input_rows

    conv = nn.Conv2d(4, 6, bias=False, dtype=torch.float64, **CONVS[kind])
    x = draw(3, 4, 6, 7)
    rows, part = input_rows(Layer("conv", conv), x, 10**6, gen())
    assert not part
    groups = conv.groups
    made = torch.cat([r @ w.flatten(1).T for r, w in zip(rows, conv.weight.chunk(groups), strict=True)], 1)
    with torch.no_grad():
        expected = conv(x).movedim(1, -1).reshape(-1, 6)
    order = torch.randperm(len(expected), generator=gen())
    assert torch.allclose(made, expected[order], atol=1e-10)


@pytest.mark.parametrize("kind", CONVS)
def test_a_convolution_is_orthogonalized_as_the_matrix_on_its_unfolded_input(kind):
    conv = nn.Conv2d(4, 6, dtype=torch.float64, **CONVS[kind])
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3, padding=1, dtype=torch.float64), nn.ReLU(), conv, nn.Flatten(), nn.LazyLinear(3)
    )
    model.double()
    x = draw(9, 2, 6, 7)
    model(x)
    init.orthogonal_representations_(model, x, basis="polar", scale="paper", generator=gen())
    h = inputs_of(model, x, 2)
    y = torch.cat([conv_matrix(conv, (4, 6, 7)) @ s.flatten()[:, None] for s in h], 1).T.reshape(9, 6, -1)
    assert float(y.norm()) == pytest.approx(1, rel=1e-9)
    for g, block in enumerate(y.chunk(conv.groups, 1)):
        # Columns of the output matrix are orthogonal where U' is: W X^T X W^T has the eigenvalues sigma^(2 - 2p).
        out = block.movedim(1, -1).reshape(-1, block.shape[1])
        patches = patches_of(conv, h.chunk(conv.groups, 1)[g])
        sigma = torch.linalg.svdvals(patches)[: block.shape[1]]
        found = torch.linalg.svdvals(out)
        assert torch.allclose(found / found.norm(), (sigma / sigma.sum()).sqrt(), rtol=1e-7)


def patches_of(conv, x):
    """The unfolded input, patch by patch, through one-hot kernels."""
    size = x.shape[1] * math.prod(conv.kernel_size)
    probe = nn.Conv2d(
        x.shape[1], size, conv.kernel_size, conv.stride, conv.padding, conv.dilation, bias=False,
        padding_mode=conv.padding_mode, dtype=x.dtype,
    )  # fmt: skip
    with torch.no_grad():
        probe.weight.copy_(torch.eye(size).reshape(probe.weight.shape))
        return probe(x).movedim(1, -1).reshape(-1, size)


def test_a_large_image_is_looked_at_in_part():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    seen = []
    model[2].register_forward_pre_hook(lambda _m, a: seen.append(a[0]))
    init.orthogonal_representations_(model, torch.randn(4, 1, 40, 40), rows=100, generator=gen())
    assert torch.isfinite(model[2].weight).all()


# Identity


def test_identity_layers_pass_on_what_they_get():
    model, x = mlp(10, 16, 16, 16, 3), draw(30, 10)
    init.identity_(model, x, generator=gen())
    h = inputs_of(model, x, 2)
    assert torch.allclose(inputs_of(model, x, 5), h / h.square().mean().sqrt(), rtol=1e-9)


def test_dirac_kernels_pass_on_what_they_get():
    convs = [nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 5, padding=2, groups=2)]
    model = nn.Sequential(convs[0], nn.ReLU(), convs[1], nn.ReLU(), convs[2], nn.ReLU(), nn.Conv2d(4, 2, 1)).double()
    x = draw(5, 3, 6, 6)
    init.identity_(model, x, generator=gen())
    h = inputs_of(model, x, 2)
    assert torch.allclose(inputs_of(model, x, 6), h / h.square().mean().sqrt(), rtol=1e-9)


def test_a_wider_identity_repeats_and_a_narrower_one_adds_up():
    model, x = mlp(10, 4, 8, 4, 3), draw(30, 10)
    init.identity_(model, x, generator=gen())
    wide, narrow = model[2].weight, model[4].weight
    assert torch.equal(wide[:4] / wide[0, 0], torch.eye(4, dtype=torch.float64))
    assert torch.equal(wide[:4], wide[4:])
    assert torch.equal(narrow[:, :4], narrow[:, 4:])


# Laws


def weights(model):
    return torch.cat([p.detach().flatten() for n, p in model.named_parameters() if n.endswith("weight")])


def test_broken_weights_are_uniform_from_zero_to_two_a():
    model = mlp(100, 200, 200)
    bias = model[0].bias.clone()
    init.lower_rank_(model, generator=gen())
    a = [1 / math.sqrt(100), 1 / math.sqrt(200)]
    for layer, scale in zip((model[0], model[2]), a, strict=True):
        w = layer.weight.detach()
        assert 0 <= w.min() < 0.001
        assert 1.999 * scale < w.max() <= 2 * scale
        # Kolmogorov distance from U(0, 2a); 1.95 / sqrt(N) is exceeded with probability 0.001.
        u, _ = (w.flatten() / (2 * scale)).sort()
        grid = torch.arange(1, len(u) + 1) / len(u)
        assert float((u - grid).abs().max()) < 1.95 / math.sqrt(len(u))
    assert torch.equal(model[0].bias, bias)


def test_broken_weights_make_a_batch_norm_net_collapse():
    from normscope import Spec, build, probe

    net = build(Spec(depth=8, width=64, norm="batch", weights="torch"), 64)
    x = draw(64, 64, dtype=torch.float32)
    before = probe(net, x).series("participation_rank")[8]
    init.break_batch_norm_(net, generator=gen())
    assert before > 4
    assert probe(net, x).series("participation_rank")[8] < 1.05


def test_torch_default_is_what_reset_parameters_does():
    model, other = mlp(10, 16, 3), mlp(10, 16, 3)
    generator = gen(5)
    init.torch_default_(model, generator=generator)
    generator = gen(5)
    for layer in (other[0], other[2]):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
            layer.reset_parameters()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize(("function", "variance"), [(init.xavier_, 2 / 500), (init.he_, 2 / 300)], ids=["xavier", "he"])
def test_a_law_has_its_variance(function, variance):
    model = mlp(300, 200)
    function(model, generator=gen())
    w = weights(model)
    # 4 standard errors of a variance: sqrt((kurtosis - 1) / N) <= sqrt(2 / N).
    assert float(w.var()) == pytest.approx(variance, rel=4 * math.sqrt(2 / len(w)))
    assert abs(float(w.mean())) < 4 * math.sqrt(variance / len(w))
    assert not model[0].bias.any()


@pytest.mark.parametrize("groups", [1, 2])
def test_delta_orthogonal_convolutions_keep_the_norm_of_every_image(groups):
    conv = nn.Conv2d(4, 8, 3, padding=1, groups=groups, dtype=torch.float64)
    init.delta_orthogonal_(conv, generator=gen())
    x = draw(5, 4, 6, 6)
    with torch.no_grad():
        y = conv(x)
    assert torch.allclose(y.flatten(1).norm(dim=1), x.flatten(1).norm(dim=1), rtol=1e-12)
    m = conv_matrix(conv, (4, 6, 6))
    assert torch.allclose(m.T @ m, torch.eye(144, dtype=torch.float64), atol=1e-12)


def test_haar_matrices_have_no_preferred_sign():
    """Without the sign correction of QR the diagonal of R stays positive and the first entry negative."""
    from normscope.init._layers import haar

    signs = [float(haar(3, 3, gen(s))[0, 0].sign()) for s in range(100)]
    assert abs(sum(signs)) < 4 * 10  # 4 standard errors of 100 signs


def test_lsuv_gives_every_layer_unit_variance():
    model, x = mlp(10, 16, 24, 3), draw(64, 10) * 5 + 1
    init.lsuv_(model, x, generator=gen())
    for at in (1, 3, 5):
        assert float(inputs_of(model, x, at).var(correction=0)) == pytest.approx(1, rel=1e-9)
    w = model[2].weight.detach()
    assert torch.allclose(w.T @ w, w[:, 0].square().sum() * torch.eye(16, dtype=w.dtype), atol=1e-9)


def test_lsuv_gives_a_convolution_unit_variance():
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Tanh(), nn.Conv2d(4, 4, 3, groups=2)).double()
    x = draw(8, 2, 9, 9)
    init.lsuv_(model, x, generator=gen())
    assert float(model(x).detach().var(correction=0)) == pytest.approx(1, rel=1e-9)


def test_the_haar_control_makes_gradients_explode_where_the_sliced_form_does_not():
    from normscope import Spec, build, probe
    from normscope.data.datasets import load

    digits = load("digits", n=128)
    growth = {}
    for name in ("orthogonal", "haar"):
        net = build(Spec(depth=48, width=64, outputs=10), 64)
        CURES[name].apply(net, digits.inputs, None, gen())
        norms = probe(net, digits.inputs, digits.targets, metrics=["gradient_norm"]).series("gradient_norm", "gradient")
        growth[name] = norms[2] / norms[47]
    assert growth["orthogonal"] < 100
    assert growth["haar"] > 1e4


# Names


class Residual(nn.Module):
    """A branch around two layers, between two others."""

    def __init__(self):
        super().__init__()
        self.first, self.up, self.down, self.last = (nn.Linear(a, b) for a, b in ((6, 8), (8, 8), (8, 8), (8, 3)))

    def forward(self, x):
        h = self.first(x).relu()
        return self.last((h + self.down(self.up(h).relu())).relu())


#: Cures of nets with batch norm, which are tried in test_shape.py and test_recalibrate.py.
NORMED = ("shape", "fold-batch-norm", "recalibrate")


@pytest.mark.parametrize("name", [n for n in CURES if n not in NORMED])
def test_a_cure_is_the_same_for_the_same_seed(name):
    model, x, y = Residual().double(), draw(20, 6), torch.arange(20) % 3
    states = []
    for global_seed in (1, 2):
        torch.manual_seed(global_seed)
        made = CURES[name].apply(copy.deepcopy(model), x, y, gen(3)).model
        states.append(made.state_dict())
    assert list(states[0]) == list(states[1])
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


@pytest.mark.parametrize("name", ["orthogonal", "haar", "lsuv", "delta-orthogonal", "xavier", "he", "torch", "break"])
def test_another_seed_gives_other_weights(name):
    conv = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3))
    x = draw(6, 1, 12, 12, dtype=torch.float32)
    made = [CURES[name].apply(copy.deepcopy(conv), x, None, gen(s)).model[2].weight for s in (0, 1)]
    assert not torch.equal(*made)


@pytest.mark.parametrize("name", [n for n, c in CURES.items() if not c.wraps and n not in NORMED])
def test_a_cure_returns_the_same_model(name):
    model = Residual().double()
    assert CURES[name].apply(model, draw(20, 6), None, gen()).model is model


@pytest.mark.parametrize("name", CURES)
def test_a_cure_says_what_it_is_and_where_it_comes_from(name):
    cure = CURES[name]
    assert cure.doc.endswith(".")
    assert cure.source


@pytest.mark.parametrize("options", [{"basis": "slice"}, {"scale": "unit"}, {"power": 2}])
def test_a_wrong_option_is_told(options):
    with pytest.raises(UsageError):
        init.orthogonal_representations_(mlp(6, 8, 8, 3), draw(20, 6), **options)
