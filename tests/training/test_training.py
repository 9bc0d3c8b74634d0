"""The training loop: bit for bit the loop a user would write, stopped anywhere, resumed to the same bits."""

import copy
import itertools
import math

import pytest
import torch
from torch import nn

import normscope as ns
from normscope import Spec, UsageError, build
from normscope.core.files import read, write
from normscope.training import Recipe, Samples, Training, evaluate, permutation
from normscope.training.held import twin


def net(seed=0, dropout=0.0):
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Linear(12, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(dropout), nn.Linear(16, 16), nn.ReLU(),
        nn.Linear(16, 4),
    )  # fmt: skip


@pytest.fixture
def samples():
    g = torch.Generator().manual_seed(1)
    return Samples(torch.randn(70, 12, generator=g), torch.randint(4, (70,), generator=g))


# The oracle: torch.optim in a loop, torch's scheduler for the warm-up, nothing of normscope's but the order of samples.


def plain_loop(model, x, y, make_optimiser, *, epochs, batch, seed, warmup=0, loss=nn.functional.cross_entropy):
    optimiser = make_optimiser(model.parameters())
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda s: min(1, (s + 1) / warmup) if warmup else 1)
    losses = []
    torch.manual_seed(seed)
    model.train()
    for epoch in range(epochs):
        order = permutation(seed, epoch, len(x))
        for rows in order.split(batch):
            if len(rows) < batch:
                continue
            optimiser.zero_grad()
            value = loss(model(x[rows]), y[rows])
            value.backward()
            optimiser.step()
            schedule.step()
            losses.append(value.item())
    return losses


@pytest.mark.parametrize(
    ("make", "options"),
    [
        (lambda p: torch.optim.SGD(p, lr=0.1), {"lr": 0.1}),
        (
            lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
            {"lr": 0.1, "momentum": 0.9, "nesterov": True, "weight_decay": 0.01},
        ),
        (lambda p: torch.optim.Adam(p, lr=0.01), {"lr": 0.01, "optimiser": "adam"}),
        (lambda p: torch.optim.AdamW(p, lr=0.01, weight_decay=0.1), {"lr": 0.01, "optimiser": "adamw",
            "weight_decay": 0.1}),
    ],
    ids=["sgd", "nesterov", "adam", "adamw"],
)  # fmt: skip
@pytest.mark.parametrize("warmup", [0, 5])
def test_losses_and_weights_are_those_of_the_plain_loop(samples, make, options, warmup):
    mine, theirs = net(dropout=0.3), net(dropout=0.3)
    run = Training(mine, samples, Recipe(epochs=3, batch=16, warmup=warmup, seed=7, **options))
    run.advance(run.steps)
    expected = plain_loop(theirs, samples.inputs, samples.targets, make, epochs=3, batch=16, seed=7, warmup=warmup)
    assert run.losses == expected
    assert len(expected) == run.steps == 12
    for a, b in zip(mine.state_dict().values(), theirs.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_regression_is_that_of_the_plain_loop(samples):
    mine, theirs, y = net(), net(), torch.randn(70, 4, generator=torch.Generator().manual_seed(3))
    run = Training(mine, Samples(samples.inputs, y), Recipe(epochs=2, batch=16, lr=0.1))
    run.advance(run.steps)
    sgd = plain_loop(theirs, samples.inputs, y, lambda p: torch.optim.SGD(p, 0.1), epochs=2, batch=16, seed=0,
                     loss=nn.functional.mse_loss)  # fmt: skip
    assert run.losses == sgd


def test_an_epoch_is_a_permutation_of_its_own():
    orders = [permutation(seed, epoch, 50) for seed, epoch in itertools.product((0, 1, 2**40), (0, 1))]
    assert all(sorted(o.tolist()) == list(range(50)) for o in orders)
    assert len({tuple(o.tolist()) for o in orders}) == 6
    assert torch.equal(permutation(1, 1, 50), orders[3])


def test_a_run_leaves_the_global_stream_alone(samples):
    model = net(dropout=0.5)
    before = torch.get_rng_state()
    Training(model, samples, Recipe(batch=16)).advance(5)
    assert torch.equal(torch.get_rng_state(), before)


# Stop and resume


@pytest.mark.parametrize("stop", [1, 5, 8])
@pytest.mark.parametrize("optimiser", ["sgd", "adam"])
def test_a_resumed_run_has_the_same_bits(samples, tmp_path, stop, optimiser):
    recipe = Recipe(epochs=3, batch=16, lr=0.05, optimiser=optimiser, momentum=0.9 * (optimiser == "sgd"), warmup=6)
    whole = Training(net(dropout=0.3), samples, recipe)
    whole.advance(whole.steps)
    first = Training(net(dropout=0.3), samples, recipe)
    first.advance(stop)
    state = first.state_dict()
    write(lambda file: torch.save(state, file), tmp_path / "state.pt")
    second = Training(net(seed=99, dropout=0.3), samples, recipe)  # other weights: all must come from the file
    second.load_state_dict(read(tmp_path / "state.pt", lambda file: torch.load(file, weights_only=True)))
    second.advance(second.steps)
    assert second.losses == whole.losses
    for a, b in zip(second.model.state_dict().values(), whole.model.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_a_buffer_that_state_dict_leaves_out_is_resumed_too(samples):
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(12, 4)
            self.register_buffer("calls", torch.zeros(()), persistent=False)

        def forward(self, x):
            self.calls += 1
            return self.inner(x) * (1 + self.calls / 10)

    recipe = Recipe(batch=16)
    torch.manual_seed(0)
    start = Counting()
    whole, first, second = (Training(copy.deepcopy(start), samples, recipe) for _ in range(3))
    whole.advance(8)
    first.advance(3)
    second.load_state_dict(first.state_dict())
    second.advance(8)
    assert second.losses == whole.losses


# Divergence


class Given(nn.Module):
    """A model whose loss at call i is the i-th of the given numbers."""

    def __init__(self, values):
        super().__init__()
        self.weight, self.values, self.calls = nn.Parameter(torch.ones(())), values, 0

    def forward(self, x):
        self.calls += 1
        return self.weight.detach() * 0 + self.values[self.calls - 1] + 0 * self.weight


def ran(values, **options):
    data = Samples(torch.zeros(len(values), 1))
    run = Training(Given(values), data, Recipe(epochs=1, batch=1, loss=lambda out, _: out, **options))
    run.advance(run.steps)
    return run


def test_a_loss_that_is_not_finite_ends_the_run():
    run = ran([1.0, 2.0, math.inf, 1.0, 1.0])
    assert (run.diverged, run.losses, run.step) == (2, [1.0, 2.0, math.inf], 3)


def test_a_loss_that_stays_high_ends_the_run_after_its_patience():
    run = ran([1.0, *[10.5] * 9], patience=4)
    assert run.diverged == 4  # the fourth in a row above ten times the first
    assert len(run.losses) == 5


def test_a_catapult_is_no_divergence():
    values = [1.0, *[50.0] * 3, 1.0, *[50.0] * 3, 0.5]
    assert ran(values, patience=4).diverged is None
    assert ran(values, patience=3).diverged == 3


def test_a_run_that_ends_high_has_diverged_whatever_its_patience():
    assert ran([1.0, 1.0, 50.0], patience=4).diverged == 2


def test_a_loss_at_the_limit_is_not_above_it():
    assert ran([1.0, *[10.0] * 9], patience=4).diverged is None


# Evaluation


def test_evaluation_is_that_of_the_plain_way_and_leaves_no_trace(samples, monkeypatch):
    monkeypatch.setattr("normscope.training._loop.EVALUATION_BATCH", 32)  # three batches, the last one smaller
    model = net(dropout=0.5)
    Training(model, samples, Recipe(batch=16)).advance(4)
    before = copy.deepcopy(model.state_dict())
    found = evaluate(model, samples, Recipe())
    assert model.training
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), before.values(), strict=True))
    model.eval()
    with torch.no_grad():
        out = model(samples.inputs)
    assert found["loss"] == pytest.approx(nn.functional.cross_entropy(out, samples.targets).item(), rel=1e-6)
    assert found["accuracy"] == (out.argmax(1) == samples.targets).double().mean().item()


def test_a_regression_has_no_accuracy(samples):
    assert set(evaluate(net(), Samples(samples.inputs, torch.zeros(70, 4)), Recipe())) == {"loss"}


# Dicts and tuples of inputs


def test_inputs_may_be_keyword_arguments():
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(3, 2)

        def forward(self, ids, scale):
            return {"logits": self.inner(ids) * scale}

    x = {"ids": torch.randn(8, 3), "scale": torch.ones(8, 1)}
    data = Samples(x, torch.zeros(8, dtype=torch.long))
    run = Training(Net(), data, Recipe(batch=4, epochs=5, lr=0.5))
    run.advance(run.steps)
    assert run.losses[-1] < run.losses[0]


# Bad input


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"optimiser": "sdg"}, "Did you mean 'sgd'"),
        ({"lr": 0.0}, "lr must be a finite number > 0"),
        ({"lr": math.nan}, "lr must be a finite number > 0"),
        ({"epochs": 0}, "epochs"),
        ({"batch": 1.5}, "batch"),
        ({"momentum": 1.0}, ">= 0 and < 1; got 1.0"),
        ({"momentum": 0.9, "optimiser": "adam"}, "has its own"),
        ({"nesterov": True}, "momentum > 0"),
        ({"weight_decay": -1.0}, "weight_decay"),
        ({"warmup": -1}, "warmup"),
        ({"explosion": 1.0}, "explosion"),
    ],
)
def test_a_bad_recipe_is_refused(options, says):
    with pytest.raises(UsageError, match=says):
        Recipe(**options)


def test_fewer_samples_than_a_batch_are_refused(samples):
    with pytest.raises(UsageError, match="at most 70"):
        Training(net(), samples, Recipe(batch=71))


def test_a_model_with_nothing_to_train_is_refused(samples):
    with pytest.raises(UsageError, match="requires_grad"):
        Training(net().requires_grad_(False), samples, Recipe(batch=16))


def test_a_class_beyond_the_outputs_is_told_at_the_first_step_wherever_it_stands(samples):
    samples.targets[int(permutation(0, 2, 70)[-1])] = 4  # not in the first batch
    with pytest.raises(UsageError, match="largest is 4"):
        Training(net(), samples, Recipe(batch=16)).advance(1)


@pytest.mark.parametrize(
    ("inputs", "targets", "says"),
    [
        (torch.tensor([[1.0], [math.nan]]), None, "finite"),
        (torch.ones(3, 1), torch.ones(2), "rows each"),
        (torch.ones(0, 1), None, "n >= 1"),
        ("text", None, "n >= 1"),
        (torch.ones(3, 1).numpy(), None, "ndarray"),
        ({"x": torch.ones(3, 1), "z": torch.ones(3, 1).numpy()}, None, "ndarray"),
        (torch.ones(3, 1), ["a", "b", "c"], "'a', 'b', 'c'"),
        (torch.ones(3, 1), torch.ones(3, 1).to_sparse(), "targets must be dense"),
        (nn.utils.rnn.pack_sequence([torch.ones(2, 1), torch.ones(1, 1)]), None, "PackedSequence"),
    ],
)
def test_bad_samples_are_refused(inputs, targets, says):
    with pytest.raises(UsageError, match=says):
        Samples(inputs, targets)


@pytest.mark.parametrize(
    "wrap", [lambda y: {"kind": y}, lambda y: (y, y[:, None]), lambda y: [y]], ids=["dict", "tuple", "list"]
)
def test_targets_of_any_structure_are_taken_by_rows(samples, wrap):
    held = Samples(samples.inputs, wrap(samples.targets))
    rows = torch.tensor([3, 0, 69])
    part = held.take(rows)
    assert type(part.targets) is type(held.targets)
    assert torch.equal(tensor_of(part.targets), samples.targets[rows])
    assert tensor_of(held.to(torch.device("cpu"), torch.float64).targets).dtype == torch.int64
    assert held.fingerprint() != Samples(samples.inputs).fingerprint()


def tensor_of(targets):
    return targets["kind"] if isinstance(targets, dict) else targets[0]


def test_a_loss_of_several_targets_is_that_of_the_plain_loop(samples):
    def loss(outputs, targets):
        return nn.functional.cross_entropy(outputs, targets["kind"]) + outputs.square().mean()

    mine, theirs = net(), net()
    run = Training(
        mine, Samples(samples.inputs, {"kind": samples.targets}), Recipe(epochs=1, batch=16, lr=0.1, loss=loss)
    )
    run.advance(run.steps)
    expected = plain_loop(
        theirs, samples.inputs, samples.targets, lambda p: torch.optim.SGD(p, 0.1), epochs=1, batch=16, seed=0,
        loss=lambda out, y: loss(out, {"kind": y}),
    )  # fmt: skip
    assert run.losses == expected


def test_the_accuracy_of_images_is_that_of_their_class_axis():
    model, x = nn.Conv2d(2, 3, 1), torch.randn(6, 2, 5, 5, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        classes = model(x).argmax(1)
    classes[:, 0] = (classes[:, 0] + 1) % 3  # a fifth is wrong
    assert evaluate(model, Samples(x, classes), Recipe())["accuracy"] == pytest.approx(0.8)


def test_a_fingerprint_sees_one_changed_number(samples):
    other = Samples(samples.inputs.clone(), samples.targets)
    assert other.fingerprint() == samples.fingerprint()
    other.inputs[69, 11] += 1e-6
    assert other.fingerprint() != samples.fingerprint()


def test_a_deep_net_trains_in_float64():
    data = Samples(torch.randn(64, 8, dtype=torch.float64), torch.randint(2, (64,)))
    model = build(Spec(depth=4, width=16, norm="batch", outputs=2), 8, dtype=torch.float64)
    run = Training(model, data, Recipe(batch=32, epochs=10, lr=0.1))
    run.advance(run.steps)
    assert run.losses[-1] < 0.8 * run.losses[0]


class Ahead(torch.optim.Optimizer):
    """Lookahead: an optimizer around another one, whose groups it shares."""

    def __init__(self, base):
        self.base_optimizer = base
        super().__init__(base.param_groups, base.defaults)
        self.param_groups = base.param_groups

    def zero_grad(self, set_to_none=True):
        self.base_optimizer.zero_grad(set_to_none)

    def step(self, closure=None):
        self.base_optimizer.step(closure)


def test_an_optimizer_inside_another_works_on_the_copies_too():
    model = nn.Linear(3, 2)
    before = [p.detach().clone() for p in model.parameters()]
    optimizer = Ahead(torch.optim.Adam(model.parameters(), 0.1))
    copies = {id(p): p.detach().clone().requires_grad_() for p in model.parameters()}
    other = twin(optimizer, copies)
    for p in copies.values():
        p.grad = torch.ones_like(p)
    other.step()
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
    assert all(torch.allclose(copies[id(p)], p - 0.1) for p in model.parameters())
    assert other.param_groups is other.base_optimizer.param_groups
    assert not optimizer.base_optimizer.state


def test_a_loop_with_an_optimizer_inside_another_is_run_on_copies_and_moves_them():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))
    x = torch.randn(64, 6)
    optimizer = Ahead(torch.optim.Adam(model.parameters(), 0.01))
    before = [p.detach().clone() for p in model.parameters()]

    def step(model, optimizer, loss_fn, x, y):
        optimizer.zero_grad()
        loss = loss_fn(model(x), y)
        loss.backward()
        optimizer.step()
        return loss

    given = x, x[:, :1] * x[:, 1:2], nn.MSELoss()
    found = ns.diagnose(model, *given, optimizer=optimizer, train_step=step, trial=30)
    own = found.profile.facts["checkup"]["trial"]["own"]
    assert own["again"] < 0.8 * own["start"]
    assert not {"NS612", "NS403"} & {f.code for f in found.findings}
    assert all(torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True))
