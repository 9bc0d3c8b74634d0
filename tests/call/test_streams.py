"""The residual stream is found by what runs, and attention is read whichever way torch computes it."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import normscope as ns
from normscope.cli._shared import Given
from normscope.report.html import of_profile


class Block(nn.Module):
    """Pre-norm, everything held flat: only the order of what runs tells attention from the rest."""

    def __init__(self, d=16, heads=2, causal=True):
        super().__init__()
        self.norm, self.qkv, self.out = nn.LayerNorm(d), nn.Linear(d, 3 * d), nn.Linear(d, d)
        self.norm2, self.up, self.down = nn.LayerNorm(d), nn.Linear(d, 2 * d), nn.Linear(2 * d, d)
        self.heads, self.causal = heads, causal

    def split(self, x):
        return [y.unflatten(-1, (self.heads, -1)).transpose(1, 2) for y in self.qkv(self.norm(x)).chunk(3, -1)]

    def attend(self, q, k, v):
        return F.scaled_dot_product_attention(q, k, v, is_causal=self.causal)

    def forward(self, x):
        x = x + self.out(self.attend(*self.split(x)).transpose(1, 2).flatten(2))
        return x + self.down(self.up(self.norm2(x)).relu())


class ByHand(Block):
    """The same attention as a softmax and two products."""

    def attend(self, q, k, v):
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        if self.causal:
            scores = scores.masked_fill(torch.ones(scores.shape[-2:]).tril() == 0, -math.inf)
        return F.dropout(scores.softmax(-1), 0.0) @ v


class Outside(nn.Module):
    """The sums are in the forward around the blocks, behind norms."""

    def __init__(self):
        super().__init__()
        self.norms = nn.ModuleList(nn.LayerNorm(16) for _ in range(2))
        self.attends = nn.ModuleList(nn.MultiheadAttention(16, 2, batch_first=True) for _ in range(2))
        self.mlps = nn.ModuleList(nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 16)) for _ in range(2))

    def forward(self, x):
        for norm, attend, mlp in zip(self.norms, self.attends, self.mlps, strict=True):
            y = norm(x)
            x = x + attend(y, y, y)[0]
            x = x + mlp(norm(x))
        return x


def net(kind=Block, **options):
    torch.manual_seed(0)
    return nn.Sequential(nn.Embedding(30, 16), *[kind(**options) for _ in range(3)], nn.LayerNorm(16), nn.Linear(16, 5))


IDS = torch.randint(30, (6, 9), generator=torch.Generator().manual_seed(0))


def parts(model, x):
    profile = ns.probe(model, x)
    names = {r.layer: r.name for r in profile.records}
    return {names[layer]: part for layer, part in profile.facts["parts"].items()}


@pytest.mark.parametrize("kind", [Block, ByHand])
def test_the_layers_of_a_flat_block_are_told_apart_by_the_order_in_which_they_run(kind):
    found = parts(net(kind), IDS)
    assert found["2"] == "stream"
    assert (found["2.norm"], found["2.norm2"]) == ("norm", "norm")
    assert (found["2.qkv"], found["2.out"]) == ("attention", "attention")
    assert (found["2.up"], found["2.down"]) == ("mlp", "mlp")
    assert (found["0"], found["4"], found["5"]) == ("embedding", "norm", "head")


@pytest.mark.parametrize(("first", "end"), [(True, "layers.1"), (False, "layers.1.norm2")])
def test_the_stream_of_torchs_encoder_is_where_its_layers_end(first, end):
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True, norm_first=first)
    found = parts(nn.TransformerEncoder(layer, 3, enable_nested_tensor=False), torch.randn(6, 9, 16))
    assert found[end] == "stream"
    assert found["layers.1.self_attn"] == "attention"
    assert sorted(found.values()).count("stream") == 3


def test_sums_around_the_blocks_are_shown_as_layers():
    found = parts(Outside(), torch.randn(6, 9, 16))
    assert [name for name, part in found.items() if part == "stream"] == [
        "attends.0.add", "mlps.0.add", "attends.1.add", "mlps.1.add"
    ]  # fmt: skip


@pytest.mark.parametrize("spec", ["mlp:depth=6,width=12", "mlp:depth=6,width=12,skip=1.0", "vgg:depth=3,width=4"])
def test_a_chain_has_no_residual_stream(spec):
    step, _ = Given(n=8).step(spec)
    assert ns.probe(step).facts["parts"] == {}


def test_a_net_whose_norms_are_its_own_has_them_recognised_by_what_comes_out():
    class Rms(nn.Module):
        def __init__(self):
            super().__init__()
            self.gain = nn.Parameter(torch.full((16,), 3.0))

        def forward(self, x):
            return self.gain * x / x.square().mean(-1, keepdim=True).add(1e-8).sqrt()

    class Scaled(Rms):
        def forward(self, x):
            return self.gain * x

    model = net()
    for block in list(model)[1:4]:
        block.norm, block.norm2 = Rms(), Scaled()
    found = parts(model, IDS)
    assert (found["2.norm"], found["2.norm2"]) == ("norm", "mlp")


# Attention


def by_hand(q, k, v, keep):
    """Entropies (h,) and participation ranks (h,) with loops."""
    entropies, ranks = [], []
    for h in range(q.shape[1]):
        each, rows = [], []
        for n in range(len(q)):
            for i in range(q.shape[2]):
                scores = [float(q[n, h, i] @ k[n, h, j]) / math.sqrt(q.shape[-1]) for j in range(k.shape[2])]
                size = [math.exp(s) if keep[i][j] else 0.0 for j, s in enumerate(scores)]
                p = [s / sum(size) for s in size]
                each.append(-sum(a * math.log(a) for a in p if a > 0))
                rows.append(sum(a * v[n, h, j].double() for j, a in enumerate(p)))
        sigma = torch.linalg.svdvals(torch.stack(rows)) ** 2
        entropies.append(sum(each) / len(each))
        ranks.append(float(sigma.sum() ** 2 / (sigma**2).sum()))
    return entropies, ranks


@pytest.mark.parametrize("kind", [Block, ByHand])
@pytest.mark.parametrize("causal", [True, False])
def test_entropy_and_rank_of_the_heads_are_those_by_hand(kind, causal):
    model = net(kind, causal=causal)
    told = ns.probe(model, IDS).facts["attention"][0]
    keep = [[j <= i or not causal for j in range(9)] for i in range(9)]
    with torch.no_grad():
        entropy, rank = by_hand(*model[1].split(model[0](IDS)), keep)
    assert told["entropy"] == pytest.approx(entropy, rel=1e-4)
    assert told["rank"] == pytest.approx(rank, rel=1e-4)
    uniform = math.log(math.factorial(9)) / 9 if causal else math.log(9)
    assert told["entropy_null"] == pytest.approx(uniform, rel=1e-9)


@pytest.mark.parametrize("first", [True, False])
def test_torchs_attention_is_read_with_its_masks(first):
    torch.manual_seed(1)
    module = nn.MultiheadAttention(16, 2, batch_first=first, dropout=0.3)
    x = torch.randn(6, 9, 16)
    pad = torch.zeros(6, 9, dtype=torch.bool)
    pad[:, 7:] = True

    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.attend = module

        def forward(self, x):
            x = x if first else x.transpose(0, 1)
            y = self.attend(x, x, x, key_padding_mask=pad)[0]
            return y if first else y.transpose(0, 1)

    told = ns.probe(Net(), x, samples=0).facts["attention"][0]
    made = F.linear(x, module.in_proj_weight, module.in_proj_bias).detach().unflatten(-1, (6, 8))
    q, k, v = made.transpose(1, 2).chunk(3, 1)
    entropy, rank = by_hand(q, k, v, [[j < 7 for j in range(9)]] * 9)
    assert told["entropy"] == pytest.approx(entropy, rel=1e-4)
    assert told["rank"] == pytest.approx(rank, rel=1e-4)
    assert told["entropy_null"] == pytest.approx(math.log(7), rel=1e-9)


def test_the_means_over_heads_stand_in_the_table_with_their_null_values():
    profile = ns.probe(net(), IDS)
    told = profile.facts["attention"]
    for metric, key in (("attention_entropy", "entropy"), ("head_rank", "rank")):
        assert list(profile.series(metric).values()) == pytest.approx([sum(a[key]) / 2 for a in told])
        assert list(profile.series(f"{metric}_null").values()) == [a[f"{key}_null"] for a in told]


def test_reading_attention_draws_no_random_numbers():
    model = net()
    before = torch.get_rng_state()
    ns.probe(model, IDS)
    assert torch.equal(before, torch.get_rng_state())


def test_the_page_has_the_stream_as_its_line_and_the_other_kinds_small():
    profile = ns.probe(net(), IDS)
    sheet = of_profile(profile)
    stream = sheet.charts["participation_rank"].table
    assert {int(row[0]) for row in stream.rows} == {r.layer for r in profile.records if r.name in ("1", "2", "3")}
    assert {"participation_rank.attention", "mean_norm.norm", "attention_entropy", "heads0"} <= set(sheet.charts)


def test_a_convolutional_net_with_skips_has_a_stream_of_branches():
    class Unit(nn.Module):
        def __init__(self, a, b, stride):
            super().__init__()
            self.layers = nn.Sequential(*[nn.Sequential(nn.Conv2d(c, b, 3, s, 1), nn.BatchNorm2d(b)) for c, s in
                                          ((a, stride), (b, 1))])  # fmt: skip
            self.skip = nn.Identity() if a == b else nn.Conv2d(a, b, 1, stride)

        def forward(self, x):
            return (self.skip(x) + self.layers(x)).relu()

    units = [nn.Sequential(Unit(4, 4, 1), Unit(4, 4, 1)), nn.Sequential(Unit(4, 8, 2), Unit(8, 8, 1))]
    found = parts(nn.Sequential(nn.Conv2d(3, 4, 3), *units, nn.Flatten(), nn.Linear(72, 5)), torch.randn(4, 3, 8, 8))
    assert [name for name, part in found.items() if part == "stream"] == [
        "1.0.relu",
        "1.1.relu",
        "2.0.relu",
        "2.1.relu",
    ]
    assert found["1.1.layers.0.0"] == "branch"
    assert found["1.1.layers.0.1"] == "norm"
    assert (found["0"], found["4"]) == ("embedding", "head")
