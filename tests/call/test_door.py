"""The door, tried by models and batches that were made to slip through it."""

import dataclasses
from collections import OrderedDict
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils import data

import normscope as ns
from normscope.call.reach import MOST
from normscope.curvature._rates import descend

X = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
Y = torch.arange(12) % 3


class Base(nn.Module):
    def __init__(self, **held):
        super().__init__()
        self.linear = nn.Linear(4, 3)
        for name, value in held.items():
            setattr(self, name, value)

    def forward(self, x):
        return self.linear(x)


def net():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Tanh(), nn.Linear(5, 3))


DATA = [(X[:5], Y[:5]), (X[5:], Y[5:])]


@pytest.mark.parametrize(
    "other", [lambda s: dataclasses.replace(s, mode="train"), lambda s: ns.Step.of(s, mode="train", seed=3)]
)
def test_a_step_made_from_another_still_has_all_of_its_data(other):
    step = ns.Step(net(), data=DATA)
    found = ns.fisher(other(step))
    assert found.facts["batches"] == 2
    torch.testing.assert_close(found.dense(), ns.fisher(step).dense())


def test_other_inputs_or_no_data_make_a_step_of_one_batch():
    step = ns.Step(net(), data=DATA)
    assert dataclasses.replace(step, inputs=X, targets=Y).alone
    first = dataclasses.replace(step, data=None)
    assert first.alone
    assert first.inputs is DATA[0][0]
    other = dataclasses.replace(step, data=DATA[::-1])
    assert not other.alone
    assert other.inputs is DATA[1][0]


def test_targets_beside_a_step_with_data_are_refused():
    with pytest.raises(ns.UsageError, match="which has its own"):
        ns.fisher(ns.Step(net(), data=DATA), targets=Y)


@dataclasses.dataclass(slots=True)
class Slotted:
    x: Tensor
    n: int = 0


def test_an_input_with_slots_is_copied():
    class Model(Base):
        def forward(self, batch):
            batch.n += 1
            return self.linear(batch.x.mul_(2))

    batch = Slotted(X.clone())
    ns.probe(Model(), batch, Y)
    assert torch.equal(batch.x, X)
    assert batch.n == 0


def test_an_input_may_hold_itself():
    class Model(Base):
        def forward(self, batch):
            return self.linear(batch.me.x.mul_(2))

    batch = SimpleNamespace(x=X.clone())
    batch.me = batch
    ns.probe(Model(), batch, Y)
    assert torch.equal(batch.x, X)


class Cache:
    __slots__ = ("calls", "late", "seen", "sums")

    def __init__(self):
        self.calls, self.seen, self.sums = 0, [], torch.zeros(3)


def test_slots_of_what_a_model_holds_come_back():
    class Model(Base):
        def forward(self, x):
            self.cache.calls += 1
            self.cache.seen.append(x)
            self.cache.late = x
            return self.linear(x) + self.cache.sums.add_(1)

    model = Model(cache=(cache := Cache()))
    sums = cache.sums
    ns.probe(model, X, Y)
    assert (cache.calls, cache.seen, hasattr(cache, "late")) == (0, [], False)
    assert cache.sums is sums
    assert torch.equal(sums, torch.zeros(3))


def test_tensors_in_tuples_of_tuples_are_copied():
    class Model(Base):
        def forward(self, x):
            return self.linear(x) + self.past[0][1].add_(1)

    model = Model(past=((torch.zeros(3), torch.zeros(3)), (torch.zeros(3),)))
    past, inner = model.past, model.past[0][1]
    ns.probe(model, X, Y)
    assert model.past is past
    assert past[0][1] is inner
    assert torch.equal(inner, torch.zeros(3))


class Refusing(OrderedDict):
    """As Hugging Face's outputs: no ``update``, and every key an attribute too."""

    def update(self, *_, **__):
        raise TypeError("not here")

    def __setitem__(self, key, value):
        super().__setitem__(key, value)
        object.__setattr__(self, key, value)


def test_a_dictionary_that_refuses_update_comes_back():
    class Model(Base):
        def forward(self, x):
            self.last["a"].add_(1)
            return self.linear(x) + self.last.a

    model = Model(last=Refusing())
    model.last["a"] = a = torch.zeros(3)
    weight = model.linear.weight
    ns.probe(model, X, Y)
    assert model.last["a"] is a
    assert model.last.a is a
    assert torch.equal(a, torch.zeros(3))
    assert model.linear.weight is weight


def test_parameters_are_found_behind_a_data_set_of_any_length():
    model = Base(rows=[(i, str(i)) for i in range(MOST + 10)])
    found = ns.fisher(model, X, Y, parameters="linear.bias").dense()
    g = model(X).softmax(1).detach()
    torch.testing.assert_close(found, (g.mean(0).diag() - g.T @ g / 12))


def test_a_large_tensor_leaves_small_ones_protected(monkeypatch):
    monkeypatch.setattr("normscope.call.traceless.MOST_BYTES", 4000)

    class Model(Base):
        def forward(self, x):
            return self.linear(x) + self.cache.add_(1)

    for names in (("cache", "table"), ("table", "cache")):
        held = {"cache": torch.zeros(3), "table": torch.zeros(2000)}
        model = Model(**{name: held[name] for name in names})
        ns.probe(model, X, Y)
        assert torch.equal(held["cache"], torch.zeros(3))


@pytest.mark.parametrize(
    "verb", [lambda m: ns.jacobian(m, X, route="jvp").dense(), lambda m: descend(m, X, Y, rates=[0.1])]
)
def test_a_forward_pass_that_writes_to_parameters_writes_to_copies(verb):
    class Model(Base):
        def forward(self, x):
            self.linear.weight.data.clamp_(-0.1, 0.1)
            return self.linear(x)

    model = Model()
    before = model.linear.weight.detach().clone()
    verb(model)
    assert torch.equal(model.linear.weight, before)


def test_class_weights_in_bfloat16_are_torchs():
    model = net().bfloat16()
    loss = nn.CrossEntropyLoss(weight=torch.tensor([1.0, 2, 3]).bfloat16())
    found = ns.probe(model, X.bfloat16(), Y, loss).facts["loss_value"]
    assert found == loss(model(X.bfloat16()), Y).item()


def test_one_verb_does_not_round_the_class_weights_of_the_next():
    model, weight = net().double(), torch.tensor([0.1, 0.7, 1 / 3], dtype=torch.float64)
    step = ns.Step(model, X.double(), Y, nn.CrossEntropyLoss(weight=weight))
    ns.fisher(step, dtype=torch.float32).dense()
    wanted = F.cross_entropy(model(X.double()), Y, weight).item()
    assert ns.probe(step).facts["loss_value"] == pytest.approx(wanted, rel=1e-14)


def test_a_file_and_a_lock_on_the_model_are_no_trouble(tmp_path):
    import threading

    with (tmp_path / "log").open("w") as file:
        model = Base(file=file, lock=threading.Lock(), steps=(i for i in range(3)))
        ns.probe(model, X, Y)
        assert next(model.steps) == 0


def test_a_model_that_guards_its_attributes_is_probed_in_either_mode():
    class Model(Base):
        def __setattr__(self, name, value):
            if "linear" in self.__dict__.get("_modules", {}):
                raise RuntimeError(f"{name} is not to be set")
            super().__setattr__(name, value)

    model = Model()
    assert ns.probe(model, X, Y, mode="eval").facts["mode"] == "eval"
    assert model.training


def test_a_scripted_part_is_refused_by_name():
    part = torch.jit.script(nn.Linear(4, 4))  # deprecated, still met
    with pytest.raises(ns.UsageError, match="'0' is a TorchScript one"):
        ns.fisher(nn.Sequential(part, nn.Linear(4, 3)), X, Y)


def test_what_torch_max_returned_keeps_its_names():
    class Model(Base):
        def forward(self, x):
            return self.linear(x) + self.top.values

    ns.probe(Model(top=torch.max(torch.randn(3, 3), 0)), X, Y)


def test_a_parameter_of_a_class_of_its_own_stays_one():
    class Own(nn.Parameter):
        def twice(self):
            return 2 * self

    class Model(Base):
        def forward(self, x):
            return self.linear(x) * self.scale.twice()

    ns.probe(Model(scale=Own(torch.ones(3))), X, Y)


def test_attributes_of_a_function_that_a_model_holds_come_back():
    def count():
        count.calls += 1

    count.calls = 0

    class Model(Base):
        def forward(self, x):
            self.count()
            return self.linear(x)

    ns.probe(Model(count=count), X, Y)
    assert count.calls == 0


def test_a_loss_with_a_network_of_its_own_leaves_no_trace():
    judge, calls = nn.Sequential(nn.BatchNorm1d(3), nn.Linear(3, 1)), []
    before = {k: v.clone() for k, v in judge.state_dict().items()}

    def loss(outputs, targets):
        calls.append(1)
        return judge(outputs).square().mean()

    for verb in (ns.probe, ns.fisher, ns.hessian, ns.sharpness):
        verb(net(), X, Y, loss)
    ns.hessian(net(), X, Y, step=lambda model, batch: loss(model(batch[0]), batch[1]))
    assert all(torch.equal(v, before[k]) for k, v in judge.state_dict().items())
    assert calls == []


DECAYED = nn.Linear(4, 3)
PARAMETERS = list(DECAYED.parameters())


def test_a_penalty_on_parameters_that_the_loss_holds_is_in_the_hessian():
    """A penalty of half the squares adds the identity; the list is in a closure, or at the top of a file."""
    held = list(DECAYED.parameters())

    def near(outputs, targets):
        return F.cross_entropy(outputs, targets) + sum(p.square().sum() for p in held) / 2

    def far(outputs, targets):
        return F.cross_entropy(outputs, targets) + sum(p.square().sum() for p in PARAMETERS) / 2

    plain = ns.hessian(DECAYED, X, Y).dense()
    for loss in (near, far):
        torch.testing.assert_close(ns.hessian(DECAYED, X, Y, loss).dense(), plain + torch.eye(15))


@pytest.mark.parametrize("how", ["orthogonal+zero-branches", "bn+zero-branches"])
def test_joined_cures_are_all_or_nothing(how):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 3))
    before, modules = {k: v.clone() for k, v in model.state_dict().items()}, list(model.modules())
    with pytest.raises(ns.UsageError):
        ns.cure(model, how, X, Y)
    assert list(model.modules()) == modules
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_generators_of_a_data_set_and_of_a_batch_sampler_are_as_before():
    class Noisy(data.Dataset):
        def __init__(self):
            self.noise = np.random.default_rng(0)

        def __len__(self):
            return 12

        def __getitem__(self, i):
            return X[i] + self.noise.normal(), Y[i]

    noisy, generator = Noisy(), torch.Generator().manual_seed(1)
    sampler = data.BatchSampler(data.RandomSampler(range(12), generator=generator), 6, drop_last=False)
    before = noisy.noise.bit_generator.state, generator.get_state()
    ns.probe(net(), data=data.DataLoader(data.Subset(noisy, range(12)), batch_sampler=sampler))
    assert noisy.noise.bit_generator.state == before[0]
    assert torch.equal(generator.get_state(), before[1])


def test_no_parameters_are_refused():
    with pytest.raises(ns.UsageError, match="at least one parameter"):
        ns.fisher(net(), X, Y, parameters=[])
