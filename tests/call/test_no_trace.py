"""A probe and a diagnosis leave no trace: everything of the model, the caller and torch is bit for bit as before."""

import copy
import random
from collections import Counter

import numpy as np
import pytest
import torch
from torch import nn

from normscope import UsageError, diagnose, probe

RUNS = {"probe": probe, "diagnose": diagnose}


@pytest.fixture(autouse=True)
def _seeded():
    """Nets that a test makes without saying how are the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(params=RUNS)
def run(request):
    return RUNS[request.param]


def bits(tensor):
    """A tensor's bytes, type and shape: -0.0 differs from 0.0, NaN equals itself."""
    t = tensor.detach().cpu().contiguous()
    return t.reshape(-1).view(torch.uint8).numpy().tobytes(), t.dtype, tuple(t.shape)


HOOKS = [name for name in vars(nn.Module()) if "hook" in name]


def state(model):
    """Everything a probe could change, by value and, for tensors the model owns, by identity."""
    return {
        "parameters": {n: (id(p), bits(p), p.requires_grad) for n, p in model.named_parameters()},
        "buffers": {n: (id(b), bits(b), b.requires_grad, b.grad_fn) for n, b in model.named_buffers()},
        "buffer names": {n: list(m._buffers) for n, m in model.named_modules()},
        "not saved": {n: set(m._non_persistent_buffers_set) for n, m in model.named_modules()},
        "saved": list(model.state_dict()),
        "grads": {
            n: None if p.grad is None else (id(p.grad), bits(p.grad), p.grad.requires_grad)
            for n, p in model.named_parameters()
        },
        "flags": {n: m.training for n, m in model.named_modules()},
        "hooks": {
            (n, h): list(getattr(m, h).items()) for n, m in model.named_modules() for h in HOOKS if _is_dict(m, h)
        },
        "attributes": {n: sorted(vars(m)) for n, m in model.named_modules()},
        "children": {n: [(k, id(c)) for k, c in m.named_children()] for n, m in model.named_modules()},
    }


def _is_dict(module, name):
    return hasattr(getattr(module, name, None), "items")


def streams():
    kind, keys, *rest = np.random.get_state()  # noqa: NPY002
    return bits(torch.get_rng_state()), random.getstate(), (kind, keys.tolist(), *rest)


class Busy(nn.Module):
    """Everything that leaves traces: batch norm, dropout, buffers of its own, in-place work on its input, three
    streams.
    """

    def __init__(self):
        super().__init__()
        self.a, self.norm, self.drop = nn.Linear(4, 5), nn.BatchNorm1d(5), nn.Dropout(0.4)
        self.relu, self.b, self.other = nn.ReLU(inplace=True), nn.Linear(5, 3), nn.BatchNorm1d(5, momentum=None)
        self.spectral = nn.utils.parametrizations.spectral_norm(nn.Linear(5, 5))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64), persistent=False)
        self.register_buffer("replaced", torch.zeros(2))
        self.register_buffer("empty", None)
        self.register_buffer("hole", torch.tensor([float("nan"), 1.0]))

    def forward(self, x):
        x.mul_(2)
        self.steps += 1
        self.replaced = self.replaced + random.random() + np.random.rand()  # noqa: NPY002
        self.empty = torch.ones(1)
        self.hole.fill_(3.0)
        h = self.relu(self.norm(self.a(x)))
        return self.b(self.other(self.spectral(self.drop(h))))


@pytest.fixture
def model():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = Busy()
        model.b(torch.randn(6, 5)).sum().backward()  # some gradients, None elsewhere
    model.a.bias.requires_grad_(False)
    model.norm.eval()
    model.norm.num_batches_tracked += 3
    model.norm.running_mean += 0.5
    model.drop.eval()
    model.a.register_forward_hook(lambda *_: None)
    model.b.register_full_backward_hook(lambda *_: None)
    model.register_forward_pre_hook(lambda *_: None)
    return model


@pytest.fixture
def data():
    generator = torch.Generator().manual_seed(1)
    return torch.randn(9, 4, generator=generator), torch.randint(3, (9,), generator=generator)


PARTS = list(state(nn.Linear(1, 1)))


@pytest.mark.parametrize("mode", ["train", "eval"])
@pytest.mark.parametrize("part", PARTS)
def test_the_model_is_as_before(run, model, data, part, mode):
    before = state(model)[part]
    run(model, *data, mode=mode)
    assert state(model)[part] == before


@pytest.mark.parametrize("part", PARTS)
def test_the_model_is_as_before_when_each_module_runs_as_it_is_set(model, data, part):
    before = state(model)[part]
    probe(model, *data)
    assert state(model)[part] == before


@pytest.mark.parametrize("caller", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_the_model_is_as_before_whatever_the_callers_mode(run, model, data, caller):
    before = state(model)
    with caller():
        run(model, *data, mode="train")
    assert state(model) == before


@pytest.mark.parametrize("caller", [torch.no_grad, torch.inference_mode])
def test_the_callers_mode_is_as_before(run, model, data, caller):
    with caller():
        before = torch.is_grad_enabled(), torch.is_inference_mode_enabled()
        run(model, *data, mode="train")
        assert (torch.is_grad_enabled(), torch.is_inference_mode_enabled()) == before


@pytest.mark.parametrize("caller", [torch.no_grad, torch.inference_mode])
def test_the_numbers_are_those_of_a_caller_with_gradients(model, data, caller):
    expected = numbers(probe(model, *data, mode="train"))
    with caller():
        assert numbers(probe(model, *data, mode="train")) == expected


@pytest.mark.parametrize(
    "loss", ["mse", "cross_entropy", lambda o, t: ((o - t) ** 2).mean()], ids=["mse", "ce", "callable"]
)
def test_data_made_in_inference_mode_is_accepted(run, loss):
    with torch.inference_mode():
        x, y = torch.ones(6, 4), torch.zeros(6).long() if loss == "cross_entropy" else torch.zeros(6, 3)
    run(nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), x, y, loss)


def test_the_random_streams_are_as_before(run, model, data):
    before = streams()
    run(model, *data, mode="train")
    assert streams() == before


def test_the_random_streams_of_other_devices_are_not_seeded(run, monkeypatch, model, data):
    seeded = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", seeded.append)
    run(model, *data, mode="train")
    assert seeded == []


def test_the_inputs_are_as_before_though_the_model_works_in_place(run, model, data):
    before = bits(data[0])
    run(model, *data, mode="train")
    assert bits(data[0]) == before


def test_the_inputs_get_no_gradient(run, model, data):
    data[0].requires_grad_()
    run(model, *data, mode="train")
    assert data[0].grad is None


@pytest.mark.parametrize("flag", [False, True])
def test_the_inputs_keep_their_flag(run, model, data, flag):
    data[0].requires_grad_(flag)
    run(model, *data, mode="train")
    assert (data[0].requires_grad, data[0].is_leaf) == (flag, True)


def test_nested_inputs_are_as_before_though_the_model_works_in_place(run):
    class First(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x, states):
            return self.linear(x + states[0].add_(1)["h"] if isinstance(states[0], dict) else x + states[0].add_(1))

    states = [torch.zeros(6, 4)]
    run(First(), {"x": torch.ones(6, 4), "states": states})
    assert bits(states[0]) == bits(torch.zeros(6, 4))


def test_the_targets_are_as_before_though_the_loss_works_in_place(run):
    targets = torch.ones(6, 3)
    run(nn.Linear(4, 3), torch.ones(6, 4), targets, lambda o, t: (o - t.mul_(3)).square().mean())
    assert bits(targets) == bits(torch.ones(6, 3))


def test_a_buffer_that_the_graph_runs_through_is_as_before(run, data):
    class Averaged(nn.Module):
        """An exponential average without no_grad: the update is part of the graph."""

        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)
            self.register_buffer("mean", torch.zeros(3))

        def forward(self, x):
            h = self.linear(x)
            self.mean.lerp_(h.mean(0), 0.1)
            return h - self.mean

    model = Averaged()
    before = state(model)
    run(model, *data)
    assert state(model) == before


def test_a_buffer_whose_size_changes_is_as_before(run, data):
    class Queue(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)
            self.register_buffer("queue", torch.zeros(2))
            self.register_buffer("count", torch.zeros(1))

        def forward(self, x):
            self.queue.resize_(5).fill_(1.0)
            self.count += 1
            return self.linear(x)

    model = Queue()
    before = state(model)
    run(model, *data)
    assert state(model) == before


def test_a_negative_zero_in_a_buffer_is_as_before(run, data):
    class Signed(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)
            self.register_buffer("zero", torch.tensor([-0.0]))

        def forward(self, x):
            self.zero.abs_()
            return self.linear(x)

    model = Signed()
    run(model, *data)
    assert model.zero.signbit().all()


def test_a_graph_built_before_can_be_differentiated_after(run, data):
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    model(data[0])
    loss = model.eval()(data[0]).square().sum()  # keeps the running statistics for its backward pass
    run(model, *data, mode="train")
    loss.backward()
    assert model[0].weight.grad.norm() > 0


def test_a_buffer_shared_by_two_modules_stays_shared(run, data):
    model = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.BatchNorm1d(3))
    model[2].running_mean = model[1].running_mean
    before = bits(model[1].running_mean)
    run(model, *data)
    assert (model[2].running_mean is model[1].running_mean, bits(model[1].running_mean)) == (True, before)


def test_a_buffer_known_under_another_name_is_as_before(run, data):
    class Aliased(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)
            self.register_buffer("count", torch.zeros(1))
            self.alias = [self.count]

        def forward(self, x):
            self.alias[0] += 1
            return self.linear(x)

    model = Aliased()
    run(model, *data)
    assert model.count.item() == 0


def test_a_buffer_registered_on_the_way_is_gone(run, data):
    class Late(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x):
            self.register_buffer("late", torch.zeros(1), persistent=False)
            return self.linear(x)

    model = Late()
    before = state(model)
    run(model, *data)
    assert state(model) == before


def test_a_gradient_that_a_loss_accumulates_is_as_before(run, data):
    model = nn.Linear(4, 3)
    model(data[0]).sum().backward()
    before = state(model)

    def careless(outputs, targets):
        loss = nn.functional.cross_entropy(outputs, targets)
        loss.backward(retain_graph=True)
        return loss

    run(model, *data, careless)
    assert state(model) == before


def test_parameters_that_the_forward_pass_changes_are_put_back_and_told():
    class Clipped(nn.Linear):
        def forward(self, x):
            with torch.no_grad():
                self.weight.clamp_(-0.1, 0.1)
            return super().forward(x)

    model = Clipped(4, 3)
    before = model.weight.detach().clone()
    notes = probe(model, torch.ones(6, 4)).facts["notes"]
    assert torch.equal(model.weight, before)
    assert [n for n in notes if "weight" in n and "in place" in n] != []


# Interruptions


class Broken(nn.Module):
    """Raises ``error`` in the middle, after everything that leaves traces has run."""

    def __init__(self, busy, error):
        super().__init__()
        self.busy, self.error = busy, error

    def forward(self, x):
        self.busy(x)
        raise self.error


ERRORS = [RuntimeError("broken"), KeyboardInterrupt(), SystemExit(3), UsageError("mine"), MemoryError()]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_the_model_is_as_before_when_its_forward_raises(run, model, data, error):
    broken = Broken(model, error)
    before = state(broken), streams(), bits(data[0])
    with pytest.raises(type(error)):
        run(broken, *data, mode="train")
    assert (state(broken), streams(), bits(data[0])) == before


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_the_model_is_as_before_when_the_loss_raises(run, model, data, error):
    def loss(_outputs, _targets):
        torch.rand(3), random.random(), np.random.rand()  # noqa: NPY002
        raise error

    before = state(model), streams(), bits(data[0])
    with pytest.raises(type(error)):
        run(model, *data, loss, mode="train")
    assert (state(model), streams(), bits(data[0])) == before


@pytest.mark.parametrize("error", [RuntimeError("broken"), KeyboardInterrupt()], ids=lambda e: type(e).__name__)
def test_the_model_is_as_before_when_the_backward_pass_raises(run, model, data, error):
    class Wall(torch.autograd.Function):
        @staticmethod
        def forward(_ctx, x):
            return x.clone()

        @staticmethod
        def backward(_ctx, _grad):
            raise error

    def loss(outputs, _targets):
        return Wall.apply(outputs).sum()

    before = state(model), streams(), bits(data[0])
    with pytest.raises(type(error)):
        run(model, *data, loss, mode="train")
    assert (state(model), streams(), bits(data[0])) == before


@pytest.mark.parametrize(
    "options",
    [{"layers": "nothing"}, {"mode": "no"}, {"loss": "mze"}, {"targets": torch.zeros(2).long()}],
    ids=["layers", "mode", "loss", "targets"],
)
def test_the_model_is_as_before_after_misuse(run, model, data, options):
    before = state(model), streams()
    with pytest.raises(UsageError):
        run(model, data[0], **({"targets": data[1], "mode": "train"} | options))
    assert (state(model), streams()) == before


def test_the_same_exception_passes_through(run, model, data):
    error = RuntimeError("mine")
    with pytest.raises(RuntimeError) as caught:
        run(Broken(model, error), *data, mode="train")
    assert caught.value is error


# Determinism


def numbers(profile):
    return Counter((r.layer, r.name, r.call, r.signal, r.metric, repr(r.value)) for r in profile.records)


def profile_of(run, *args, **options):
    result = run(*args, **options)
    return result if run is probe else result.profile


def test_the_same_model_probed_twice_gives_equal_numbers(run, model, data):
    first = numbers(profile_of(run, model, *data, mode="train"))
    assert numbers(profile_of(run, model, *data, mode="train")) == first


def test_dropout_is_decided_by_the_seed_not_by_the_global_stream(run, data):
    model = nn.Sequential(nn.Linear(4, 32), nn.Dropout(0.5), nn.Linear(32, 3))
    first = numbers(profile_of(run, model, *data, seed=5))
    torch.rand(7)
    assert numbers(profile_of(run, model, *data, seed=5)) == first


def test_dropout_differs_between_seeds(run, data):
    model = nn.Sequential(nn.Linear(4, 32), nn.Dropout(0.5), nn.Linear(32, 3))
    assert numbers(profile_of(run, model, *data, seed=5)) != numbers(profile_of(run, model, *data, seed=6))


@pytest.mark.parametrize("draw", [random.random, np.random.rand], ids=["python", "numpy"])
def test_the_other_streams_of_the_forward_pass_are_decided_by_the_seed(run, data, draw):
    class Noisy(nn.Linear):
        def forward(self, x):
            return super().forward(x) * draw()

    model = Noisy(4, 3)
    first = numbers(profile_of(run, model, *data, seed=5))
    draw()
    assert numbers(profile_of(run, model, *data, seed=5)) == first


def test_a_training_step_after_a_probe_is_the_step_without_it(run, data):
    def step(look):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = Busy()
            if look:
                run(model, *data, mode="train")
            nn.functional.cross_entropy(model(data[0].clone()), data[1]).backward()
            return {n: bits(p.grad) for n, p in model.named_parameters() if p.grad is not None}

    random.seed(0), np.random.seed(0)  # noqa: NPY002
    expected = step(look=False)
    random.seed(0), np.random.seed(0)  # noqa: NPY002
    assert step(look=True) == expected


def test_no_activation_outlives_the_probe(data):
    import gc
    import weakref

    alive = []

    class Watched(nn.Linear):
        def forward(self, x):
            h = super().forward(x)
            alive.append(weakref.ref(h))
            return h * 1

    profile = probe(nn.Sequential(Watched(4, 5), nn.Tanh(), Watched(5, 3)), *data)
    gc.collect()
    assert (len(profile.records) > 0, [ref() for ref in alive]) == (True, [None, None])


def test_tensors_that_are_plain_attributes_come_back_too():
    """The older spectral_norm keeps its weight as one, made anew in every forward pass."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.utils.spectral_norm(nn.Linear(8, 8)), nn.ReLU(), nn.Linear(8, 2))
    before = model[0].weight
    diagnose(model, torch.randn(20, 8), torch.arange(20) % 2)
    assert model[0].weight is before
    copy.deepcopy(model)


class SwitchesOff(nn.Module):
    """What an interrupt between two lines leaves behind: torch's function modes off, and one on the stack."""

    def forward(self, x):
        torch._C.DisableTorchFunction().__enter__()
        torch.overrides.BaseTorchFunctionMode().__enter__()
        raise KeyboardInterrupt


def test_function_modes_of_torch_come_back_after_an_interrupt():
    state, depth = torch._C._get_torch_function_state(), torch._C._len_torch_function_stack()
    try:
        with pytest.raises(KeyboardInterrupt):
            probe(SwitchesOff(), torch.randn(4, 3))
        assert torch._C._is_torch_function_enabled()
        assert torch._C._len_torch_function_stack() == depth
    finally:
        torch._C._set_torch_function_state(state)
