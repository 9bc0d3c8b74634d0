"""Rank-raising pre-training: the rank rises and never falls, the scale stays, only weights move."""

import copy
import sys
from itertools import pairwise

import pytest
import torch
from torch import nn

from normscope import UsageError, init
from normscope.init import CURES
from normscope.init.rank import inverse_rank


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


def rank_of(x):
    """Participation rank from singular values."""
    s = torch.linalg.svdvals(x.detach().double()).square()
    return float(s.sum() ** 2 / s.square().sum())


def net(depth=16, width=32, seed=0, bias=True):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [nn.Linear(12, width, bias=bias), nn.ReLU()]
        for _ in range(depth - 1):
            layers += [nn.Linear(width, width, bias=bias), nn.ReLU()]
        return nn.Sequential(*layers, nn.Linear(width, 3))


@pytest.fixture
def x():
    return torch.rand(32, 12, generator=gen(9))


def hidden(model, x):
    with torch.no_grad():
        return model[:-1](x)


def test_the_objective_is_one_over_the_participation_rank(x):
    assert 1 / float(inverse_rank(x)) == pytest.approx(rank_of(x))


@pytest.mark.parametrize("variant", ["A", "B"])
def test_the_rank_of_the_last_hidden_layer_rises(variant, x):
    model = net()
    before = rank_of(hidden(model, x))
    init.raise_rank_(model, x, variant, steps=20 if variant == "A" else 5)
    assert before < 1.05
    assert rank_of(hidden(model, x)) > 1.5


def test_low_and_high_pretraining_are_in_order(x):
    """Figure 6: more steps a stage give more rank."""
    ranks = [rank_of(hidden(init.raise_rank_(net(), x, steps=steps), x)) for steps in (1, 10)]
    assert ranks[0] < ranks[1]


@pytest.mark.parametrize("variant", ["A", "B"])
def test_no_step_lowers_the_rank_of_its_objective(variant, x):
    seen = {}
    init.raise_rank_(net(), x, variant, steps=6, progress=lambda at, of, step, r: seen.setdefault(at, []).append(r))
    assert seen
    assert all(a < b for ranks in seen.values() for a, b in pairwise(ranks))


def test_every_hidden_layer_ends_at_unit_rms(x):
    model = net()
    init.raise_rank_(model, x, steps=3)
    with torch.no_grad():
        for k in range(0, 32, 2):
            y = model[:k](x) @ model[k].weight.T
            assert float(y.square().mean().sqrt()) == pytest.approx(1, abs=1e-4)


def test_scale_keep_leaves_every_layer_at_its_rms(x):
    model = net(bias=False)
    with torch.no_grad():
        before = [float((model[:k](x) @ model[k].weight.T).square().mean().sqrt()) for k in range(0, 32, 2)]
        init.raise_rank_(model, x, steps=3, scale="keep")
        after = [float((model[:k](x) @ model[k].weight.T).square().mean().sqrt()) for k in range(0, 32, 2)]
    assert after == pytest.approx(before, rel=1e-3)


def test_biases_and_the_last_layer_do_not_move(x):
    model = net()
    before = {n: p.clone() for n, p in model.named_parameters() if n.endswith("bias") or n.startswith("32")}
    init.raise_rank_(model, x, steps=3)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters() if n in before)


def test_a_goal_stops_it(x):
    model = net()
    init.raise_rank_(model, x, "A", steps=200, goal=1.5)
    assert 1.5 <= rank_of(hidden(model, x)) < 3


def test_no_time_leaves_the_scale_and_says_so(x):
    made = sys.modules["normscope.init.rank"].rank(net(), x, seconds=0.0)
    assert any("stopped after 0 seconds" in note for note in made.notes)


def test_a_final_rank_below_the_first_is_put_back(x, monkeypatch):
    module = sys.modules["normscope.init.rank"]

    def worse(self, *_args):
        with torch.no_grad():
            self.order[3].weight.copy_(torch.ones_like(self.order[3].weight))

    monkeypatch.setattr(module._Climb, "stage", worse)
    plain, model = net(), net()
    made = module.rank(model, x)
    assert "nothing was kept" in made.notes[0]
    assert rank_of(hidden(model, x)) == pytest.approx(
        rank_of(hidden(init.raise_rank_(plain, x, goal=0.5), x)), rel=0.05
    )


def test_convolutions_and_dropout_work():
    torch.manual_seed(0)
    convs = [nn.Conv2d(4, 4, 3, padding=1) for _ in range(6)]
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Dropout(0.2))
    for c in convs:
        model.extend([c, nn.ReLU()])
    model.extend([nn.Flatten(), nn.Linear(144, 3)])
    x = torch.rand(16, 1, 8, 8)
    made = CURES["rank"].apply(model, x, None, gen())
    assert len(made.treated) == 7
    before, after = (float(v) for v in made.notes[0].split(": ")[1].split(" on ")[0].split(" -> "))
    assert after > before


def test_two_runs_are_bit_identical(x):
    model = net(depth=8)
    made = [init.raise_rank_(copy.deepcopy(model), x, steps=2) for _ in range(2)]
    assert all(torch.equal(a, b) for a, b in zip(made[0].parameters(), made[1].parameters(), strict=True))


@pytest.mark.parametrize(
    "options",
    [{"variant": "C"}, {"scale": "paper"}, {"steps": 0}, {"every": 0}],
    ids=["variant", "scale", "steps", "every"],
)
def test_a_wrong_option_is_told(x, options):
    with pytest.raises(UsageError):
        init.raise_rank_(net(depth=4), x, **options)
