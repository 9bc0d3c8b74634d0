"""`normscope.transfer`: laws of known exponents, sizes that are known, and the command line."""

import copy
import json
import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

import normscope as ns
from normscope.learning_rates._laws import FLAT, a_layer, fitted, said
from normscope.learning_rates._sizes import Sizes, edge, reach


def mlp(width, depth):
    hidden = [m for _ in range(depth - 1) for m in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), *hidden, nn.Linear(width, 3))


def batch_norm(width, depth):
    hidden = [m for _ in range(depth - 1) for m in (nn.Linear(width, width), nn.BatchNorm1d(width), nn.ReLU())]
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), *hidden, nn.Linear(width, 3))


def dead(width, depth):
    return mlp(width, depth).requires_grad_(False)


def batch(n=24):
    g = torch.Generator().manual_seed(0)
    return torch.randn(n, 6, generator=g), torch.randint(3, (n,), generator=g)


def found(make=mlp, *given, **more):
    options = {"widths": (4, 8, 16), "depths": (1, 2), "seeds": 2, "executor": ThreadPoolExecutor(1)} | more
    return ns.transfer(make, *batch(), "cross_entropy", *given, **options)


@pytest.fixture(scope="module")
def one():
    return found(mlp, "adam")


def points(scatter, seed=0):
    rng = np.random.default_rng(seed)
    return [
        (w, d, 3.0 * w**-1.0 * d**-0.5 * math.exp(scatter * rng.normal()))
        for w in (16, 32, 64) for d in (2, 4, 8) for _ in range(3)
    ]  # fmt: skip


def test_the_exponents_of_a_power_law_are_found():
    law = fitted(points(0.0))
    assert (law.width, law.depth) == pytest.approx((-1.0, -0.5))
    assert math.exp(law.at(512, 32)[0]) == pytest.approx(3.0 / 512 / 32**0.5)


def test_ninety_percent_intervals_cover_nine_of_ten():
    """Of 400 laws; k = 3 standard errors."""
    laws = [fitted(points(0.3, seed)) for seed in range(400)]
    band = 3 * math.sqrt(0.09 / 400)
    assert np.mean([x.width_interval[0] < -1 < x.width_interval[1] for x in laws]) == pytest.approx(0.9, abs=band)
    true, rng = math.log(3.0 / 512 / 32**0.5), np.random.default_rng(9)
    inside = [abs(x.at(512, 32)[0] - true - 0.3 * rng.normal()) < x.at(512, 32)[1] for x in laws]
    assert np.mean(inside) == pytest.approx(0.9, abs=band)


def test_intervals_cover_nine_of_ten_too_where_larger_nets_count_more():
    """Of 400 laws; k = 3 standard errors."""
    laws = [fitted(points(0.3, seed), larger_count_more=True) for seed in range(400)]
    band = 3 * math.sqrt(0.09 / 400)
    assert np.mean([x.width_interval[0] < -1 < x.width_interval[1] for x in laws]) == pytest.approx(0.9, abs=band)
    true, rng = math.log(3.0 / 512 / 32**0.5), np.random.default_rng(9)
    inside = [abs(x.at(512, 32)[0] - true - 0.3 * rng.normal()) < x.at(512, 32)[1] for x in laws]
    assert np.mean(inside) == pytest.approx(0.9, abs=band)
    assert np.mean([x.scatter**2 for x in laws]) == pytest.approx(0.09, rel=3 / math.sqrt(400 * laws[0].free / 2))


def test_the_exponent_of_a_law_that_bends_is_nearer_to_that_of_large_nets_where_they_count_more():
    bent = [(w, d, w**-1.0 * (1 + 16 / w)) for w, d, _ in points(0.0)]
    equal, by_size = fitted(bent), fitted(bent, larger_count_more=True)
    assert equal.width < by_size.width - 0.01 < -1
    x, k = np.array([[1, math.log(d), math.log(w)] for w, d, _ in bent]), np.array([w * d for w, d, _ in bent])
    root = np.sqrt(k)
    plain = np.linalg.lstsq(x * root[:, None], root * np.log([q for *_, q in bent]), rcond=None)[0]
    assert (by_size.constant, by_size.depth, by_size.width) == pytest.approx(plain, abs=1e-9)


def test_the_interval_widens_with_the_distance_from_the_sizes_that_were_seen():
    law = fitted(points(0.0))
    assert law.beyond(32, 4) == law.at(32, 4)
    far = 1.6449 * FLAT * math.hypot(math.log(8), math.log(4))
    assert law.beyond(512, 32)[1] == pytest.approx(far, rel=1e-3)
    assert law.beyond(2, 4)[1] == pytest.approx(1.6449 * FLAT * math.log(8), rel=1e-3)


def test_growth_that_is_exponential_in_depth_is_told_from_a_power():
    sizes = [(w, d) for w in (16, 32) for d in (2, 4, 8, 32)]
    assert a_layer([(w, d, w * 1.3**d) for w, d in sizes]) == pytest.approx(1.3)
    assert a_layer([(w, d, w * d**1.3) for w, d in sizes]) is None
    assert a_layer([(w, d, w * 1.3**d) for w, d in sizes if d < 8]) is None


def test_no_rate_is_foretold_where_gradients_grow_exponentially_with_depth_but_it_is_measured():
    options = {"depths": (2, 3, 4), "to": (32, 32)}
    exploded = found(batch_norm, **options, measure=False)
    assert math.isnan(exploded.rate)
    assert "times a layer: exponentially with depth" in exploded.reason
    assert "at width 32 and depth 32 it cannot be told from these nets" in exploded.verdict
    measured = found(batch_norm, **options)
    assert measured.rate < measured.by_law[0] / 1000
    assert "as measured; it cannot be told from these nets" in measured.verdict
    for one in (exploded, measured):
        assert math.isnan(one.by_edge[0])
        assert "NaN" not in one._repr_html_()


def test_an_axis_of_one_size_has_no_exponent_and_too_few_points_no_law():
    law = fitted([(w, 2, q) for w, _, q in points(0.1)])
    assert law.depth_interval == (0.0, 0.0)
    assert fitted([*points(0.1)[:1], *points(0.1)[-2:-1]]) is None
    assert fitted([(16, 2, math.nan)] * 9) is None


@pytest.mark.parametrize(
    ("exponent", "interval", "words"),
    [(0.0, (-0.1, 0.1), "transfers"), (-1.0, (-1.2, -0.8), "shrinks like"), (-0.1, (-0.5, 0.3), "may transfer")],
)
def test_an_exponent_in_words(exponent, interval, words):
    assert said("width", exponent, interval).startswith(words)


def test_the_reach_is_that_of_one_plain_step():
    """In float64, by hand: the change of each layer's outputs over their size, a unit of the rate."""
    task = Sizes(lambda w, d, s: mlp(w, d), *batch(), "cross_entropy")
    trials = task.trials(8, 2, 0, "sgd", 5)
    trials.begin()
    model = trials.at.root.double()
    x, y = batch()
    grads = torch.autograd.grad(nn.functional.cross_entropy(model(x.double()), y), list(model.parameters()))

    def outputs():
        h, seen = x.double(), []
        for m in model:
            h = m(h)
            seen += [h] if isinstance(m, nn.Linear) else []
        return seen

    with torch.no_grad():
        before, rate = outputs(), 1e-6
        for p, g in zip(model.parameters(), grads, strict=True):
            p -= rate * g
        moved = max(float((b - a).norm() / a.norm()) for a, b in zip(before, outputs(), strict=True)) / rate
    model.float()
    with torch.no_grad():
        for p, g in zip(model.parameters(), grads, strict=True):
            p += rate * g.float()
    assert reach(trials) == pytest.approx(moved, rel=0.02)


def test_the_edge_is_where_eight_plain_steps_begin_to_raise_the_loss():
    x, y = batch()
    trials = Sizes(lambda w, d, s: mlp(w, d), x, y, "cross_entropy").trials(8, 2, 0, "sgd", 8)
    found, state = edge(trials), copy.deepcopy(trials.at.root.state_dict())

    def rises(rate):
        model = mlp(8, 2)
        model.load_state_dict(state)
        optimizer, seen = torch.optim.SGD(model.parameters(), rate), []
        for _ in range(9):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            seen.append(loss.item())
            loss.backward()
            optimizer.step()
        return max(seen) > seen[0]

    assert not rises(found / 1.1)
    assert rises(found * 1.1)


def test_a_law_without_exponents_is_the_mean_in_which_larger_nets_count_more():
    some = points(0.3, 1)
    law, k = fitted(some, larger_count_more=True, flat=True), np.array([w * d for w, d, _ in some])
    assert (law.depth, law.width) == (0.0, 0.0)
    assert law.constant == pytest.approx(np.average(np.log([q for *_, q in some]), weights=k))
    assert law.at(512, 32) == law.at(2, 1)


def best(transfer):
    return {(w, d, s): v for w, d, s, m, v in transfer.table.iter_rows() if m == "best"}


def test_the_rates_are_those_of_rates_and_the_large_net_is_measured_like_the_small_ones(one):
    mine, small = best(one), {(w, d, s) for w in (4, 8, 16) for d in (1, 2) for s in range(2)}
    assert set(mine) == small | {(128, 8, 0), (128, 8, 1)}
    for w, d, s in ((8, 2, 1), (128, 8, 0)):
        torch.manual_seed(s)
        assert mine[w, d, s] == ns.rates(mlp(w, d), *batch(), "cross_entropy", "adam", seed=s).best
    assert (one.width, one.depth) == (128, 8)
    assert one.rate == pytest.approx(math.sqrt(mine[128, 8, 0] * mine[128, 8, 1]))
    assert one.by_edge[1] < one.by_edge[0] < one.by_edge[2]
    assert one.by_law[1] < one.by_law[0] < one.by_law[2]


def test_half_the_interval_of_a_measured_rate_is_that_of_one_more_net_by_the_scatter_of_all_seeds(one):
    seven = [np.log([v for k, v in best(one).items() if k[:2] == size]) for size in {k[:2] for k in best(one)}]
    scatter = math.sqrt(np.mean([np.var(logs, ddof=1) for logs in seven]))
    half = float(stats.t.ppf(0.95, 7)) * scatter * math.sqrt(1 + 1 / 2)
    assert one.interval == pytest.approx((one.rate / math.exp(half), one.rate * math.exp(half)))


def test_without_measuring_the_large_net_is_not_trained_and_the_edge_foretells_the_same(one):
    foretold = found(mlp, "adam", measure=False)
    assert {k for k in best(foretold) if k[0] == 128} == set()
    assert (foretold.rate, *foretold.interval) == foretold.by_edge == one.by_edge
    assert foretold.laws == one.laws
    assert not foretold.measured


def test_the_verdict_says_how_the_rate_goes_and_what_would_make_it_transfer(one):
    assert "depth^" in one.verdict
    assert "width^" in one.verdict
    assert f"{one.rate:.3g}" in str(one)
    assert {"best", "edge", "reach", "activation hidden", "change outputs", "update hidden"} <= set(one.laws)
    json.dumps(one.to_dict())


def test_a_net_that_does_not_train_gets_the_reason_and_no_rate():
    nothing = found(dead)
    assert math.isnan(nothing.rate)
    assert "too few of the small nets" in nothing.verdict


def test_what_is_done_is_not_done_again(tmp_path):
    options = {"widths": (4, 8), "depths": (1, 2), "seeds": 1, "store": tmp_path / "store"}
    first = found(**options)
    assert found(**options, executor=None, workers=1).table.sort("*").equals(first.table.sort("*"))
    files = len(list((tmp_path / "store").rglob("*.parquet")))
    found(**options)
    assert len(list((tmp_path / "store").rglob("*.parquet"))) == files == 2 * 4 + 1


def test_an_optimizer_of_ones_own_keeps_the_ratios_of_its_groups():
    def grouped(model):
        first, *rest = model.parameters()
        return torch.optim.SGD([{"params": [first], "lr": 1.0}, {"params": rest, "lr": 0.1}])

    assert found(mlp, grouped, widths=(4, 8), depths=(1,)).optimizer == "grouped"


def test_a_spec_and_a_module_that_is_none():
    spec = ns.Spec(depth=1, width=4)
    one = found(spec, widths=(4, 8), depths=(1, 2), seeds=1)
    assert 0 < one.interval[0] < one.rate < one.interval[1] < math.inf
    with pytest.raises(ns.UsageError, match=r"must return an nn\.Module"):
        found(lambda width, depth: width)


@pytest.mark.parametrize(
    ("options", "says"),
    [({"widths": (0,)}, "Each of widths"), ({"depths": ()}, "depths must hold"), ({"seeds": 0}, "seeds must"),
     ({"widths": "16"}, "widths must be whole"), ({"budget": 3}, "budget must"), ({"measure": "no"}, "measure must")],
)  # fmt: skip
def test_what_it_cannot_use_is_one_error(options, says):
    with pytest.raises(ns.UsageError, match=says):
        found(**options)


SMALL = ("transfer", "mlp:", "--width", "4,8", "--depth", "1,2", "--seeds", 1, "--steps", 3, "-n", 16, "--workers", 1)


def test_the_command_line_prints_a_verdict_and_json(run):
    code, out, _ = run(*SMALL)
    assert code == 0
    assert "The best rate of sgd" in out
    code, out, _ = run(*SMALL, "--to", "16x4", "--json", "--no-measure")
    told = json.loads(out)
    assert (told["width"], told["depth"], told["measured"]) == (16, 4, False)
    assert {"width", "depth", "seed", "metric", "value"} == set(told["numbers"][0])


@pytest.mark.parametrize(("option", "value"), [("--to", "big"), ("--optimizer", "sdg"), ("--width", "a,b")])
def test_the_command_line_refuses_what_it_cannot_use(run, option, value):
    code, out, _ = run(*SMALL, option, value)
    assert (code, out) == (2, "")
