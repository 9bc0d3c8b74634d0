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


def he(model, seed):
    generator = gen(seed)
    for layer in model:
        if isinstance(layer, nn.Linear):
            nn.init.kaiming_normal_(layer.weight, generator=generator)
    return model


@pytest.mark.parametrize(
    ("variant", "times", "seed"), [("A", 8, 1), ("A", 8, 3), *(("B", 4, seed) for seed in range(4))]
)
def test_the_rank_of_the_last_hidden_layer_multiplies(variant, times, seed, x):
    """Measured on seeds 0 to 5, both laws: A 17 to 27 times, B 5.6 to 10 times."""
    for model in (net(seed=seed), he(net(seed=seed), seed)):
        start = rank_of(hidden(init.raise_rank_(copy.deepcopy(model), x, goal=0.5), x))
        init.raise_rank_(model, x, variant)
        assert rank_of(hidden(model, x)) > times * start


def test_variant_b_raises_every_layer(x):
    """Measured: smallest r of the hidden layers 1.0x before and 2 or more after, seeds 0 to 2."""
    for seed in range(3):
        model = he(net(seed=seed), seed)
        before = [rank_of(model[: k + 1](x)) for k in range(1, 32, 2)]
        init.raise_rank_(model, x)
        after = [rank_of(model[: k + 1](x)) for k in range(1, 32, 2)]
        assert min(after) > min(before) + 0.3
        assert sum(after) > 2 * sum(before)


def test_a_stage_moves_only_the_layers_since_the_one_before(x):
    model, weights = net(), {}

    def look(stage, _stages, _step, _rank):
        weights.setdefault(stage, []).append([layer.weight.detach().clone() for layer in model[::2]])

    init.raise_rank_(model, x, steps=2, progress=look)
    assert sorted(weights) == [0, 1, 2, 3]
    for stage, seen in weights.items():
        moved = [not torch.equal(a, b) for a, b in zip(seen[0], seen[-1], strict=True)]
        assert all(moved[4 * stage : 4 * stage + 4])
        assert not any(moved[: 4 * stage] + moved[4 * stage + 4 :])


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


def test_the_rank_of_the_batch_itself_never_falls(x):
    """Not only by the function's own account: singular values of the weights as they are after each step."""
    for seed in range(3):
        model, ranks = net(seed=seed), []
        init.raise_rank_(model, x, "A", steps=25, progress=lambda *_, m=model, r=ranks: r.append(rank_of(hidden(m, x))))
        assert len(ranks) == 25
        assert all(b > a * (1 - 1e-5) for a, b in pairwise(ranks))


def test_a_running_mean_that_leads_nowhere_is_forgotten(x, monkeypatch):
    """Directions that lower r at every share: the stage goes on with the gradient's own signs."""
    module = sys.modules["normscope.init.rank"]
    honest = module._Adam.directions
    monkeypatch.setattr(
        module._Adam, "directions", lambda self, s: [d if self.steps == 1 else -d for d in honest(self, s)]
    )
    model, steps = net(), []
    init.raise_rank_(model, x, "A", steps=6, progress=lambda _at, _of, step, _r: steps.append(step))
    assert steps == [1, 2, 3, 4, 5, 6]


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


class Residual(nn.Module):
    """Skip connections, with weights of its own or one for all blocks."""

    def __init__(self, tied):
        super().__init__()
        self.first, self.last = nn.Linear(12, 32), nn.Linear(32, 3)
        self.blocks = nn.ModuleList(nn.Linear(32, 32) for _ in range(8))
        for block in self.blocks if tied else ():
            block.weight = self.blocks[0].weight

    def body(self, x):
        h = self.first(x)
        for block in self.blocks:
            h = h + torch.relu(block(h))
        return h

    def forward(self, x):
        return self.last(self.body(x))


@pytest.mark.parametrize("tied", [False, True], ids=["skips", "tied"])
def test_skip_connections_and_tied_weights(tied, x):
    """Measured on seeds 0 to 5: 1.9 to 2.7 times, tied 2.5 to 3.4 times."""
    for seed in range(3):
        torch.manual_seed(seed)
        model = Residual(tied)
        with torch.no_grad():
            before = rank_of(model.body(x))
            made = sys.modules["normscope.init.rank"].rank(model, x)
            assert rank_of(model.body(x)) > 1.4 * before
        assert len(made.treated) == (2 if tied else 9)
        assert all(b.weight is model.blocks[0].weight for b in model.blocks) is tied


def test_nothing_but_weights_is_left_behind(x):
    model = net(depth=8)
    model.insert(2, nn.BatchNorm1d(32))
    model.eval()
    kept = {n: v.clone() for n, v in model.state_dict().items() if not n.endswith("weight") or n == "2.weight"}
    state, hooks = torch.get_rng_state(), [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()]
    init.raise_rank_(model, x, steps=2)
    assert all(torch.equal(v, model.state_dict()[n]) for n, v in kept.items())
    assert torch.equal(state, torch.get_rng_state())
    assert hooks == [len(m._forward_pre_hooks) + len(m._forward_hooks) for m in model.modules()]
    assert not model.training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("bad", [lambda x: x[:1], lambda x: x.clone().fill_(float("nan"))], ids=["one sample", "nan"])
def test_a_bad_batch_is_told_and_changes_nothing(bad, x):
    model = net(depth=4)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(UsageError):
        init.raise_rank_(model, bad(x))
    assert all(torch.equal(v, model.state_dict()[n]) for n, v in before.items())


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
