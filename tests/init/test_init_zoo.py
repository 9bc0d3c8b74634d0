"""Cures on models as users write them, and all that a cure must not touch."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from normscope import UsageError, cure, init
from normscope.init import CURES

#: Cures of weights; `recalibrate` sets buffers (test_recalibrate.py).
IN_PLACE = [name for name, c in CURES.items() if not c.wraps and name not in ("none", "recalibrate")]


def gen(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(autouse=True)
def _seeded():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


class Block(nn.Module):
    """A residual block with batch norm, dropout and a projection that is registered before the convolutions."""

    def __init__(self, a, b):
        super().__init__()
        self.shortcut = nn.Conv2d(a, b, 1, 2)
        self.conv2 = nn.Conv2d(b, b, 3, padding=1, groups=2)
        self.conv1 = nn.Conv2d(a, b, 3, 2, 1)
        self.norm, self.drop = nn.BatchNorm2d(b), nn.Dropout(0.3)

    def forward(self, x):
        h = self.drop(torch.relu(self.norm(self.conv1(x))))
        return torch.relu(self.shortcut(x) + self.conv2(h))


class Resnet(nn.Module):
    def __init__(self):
        super().__init__()
        self.head = nn.Linear(8, 3)
        self.stem = nn.Conv2d(2, 4, 3)
        self.blocks = nn.ModuleList([Block(4, 8), Block(8, 8)])
        self.up = nn.ConvTranspose2d(8, 8, 2)

    def forward(self, x):
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(self.up(x).mean((2, 3)))


class Transformer(nn.Module):
    """Tokens in, a dictionary of arguments, an output layer tied to the embedding."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.block = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.more = nn.Linear(8, 8)
        self.last = nn.Linear(8, 8)
        self.out = nn.Linear(8, 11, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, ids, scale=None):
        h = self.last(torch.relu(self.more(self.block(self.embed(ids)))))
        return self.out(h if scale is None else h * scale)


class Shared(nn.Module):
    """One layer called three times, two layers with one weight, one that is never called, one that is frozen."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(5, 6)
        self.again, self.twin, self.unused = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 6)
        self.twin.weight = self.again.weight
        self.frozen = nn.Linear(6, 6).requires_grad_(False)
        self.normed = nn.utils.parametrizations.spectral_norm(nn.Linear(6, 6))
        self.old = prune.identity(nn.Linear(6, 6), "weight")
        self.mid, self.last = nn.Linear(6, 6), nn.Linear(6, 2)

    def forward(self, x, y):
        h = torch.relu(self.first(x + y))
        for _ in range(3):
            h = torch.relu(self.again(h))
        h = torch.tanh(self.old(self.normed(self.frozen(self.twin(h)))))
        return self.last(torch.relu(self.mid(h)))


class Volumes(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Conv3d(1, 3, 2), nn.Conv3d(3, 3, 2), nn.Conv1d(3, 4, 3)
        self.d = nn.Conv1d(4, 4, 3, padding=1)
        self.e = nn.Linear(4, 2)

    def forward(self, x):
        h = torch.relu(self.b(torch.relu(self.a(x)))).flatten(2)
        return self.e(torch.relu(self.d(torch.relu(self.c(h)))).mean(-1))


class Skip(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.up, self.down, self.last = (nn.Linear(a, b) for a, b in ((6, 8), (8, 8), (8, 8), (8, 3)))

    def forward(self, x):
        h = torch.relu(self.first(x))
        return self.last(torch.relu(h + self.down(torch.relu(self.up(h)))))


ZOO = {
    "resnet": (Resnet, lambda: torch.randn(12, 2, 11, 11)),
    "transformer": (Transformer, lambda: {"ids": torch.randint(11, (10, 6)), "scale": torch.rand(10, 6, 1)}),
    "shared": (Shared, lambda: (torch.randn(20, 5), torch.randn(20, 5))),
    "volumes": (Volumes, lambda: torch.randn(9, 1, 5, 5, 5)),
}


def refuse_where_it_must(name, make, inputs):
    """Skip a cure of branches or norms on a net that has none, once it said so."""
    if name not in ("zero-branches", "branch-scale", "shape"):
        return
    torch.manual_seed(1)
    try:
        CURES[name].apply(make(), inputs(), None, gen())
    except UsageError as error:
        if str(error).startswith("There must be a"):
            pytest.skip(str(error))
        raise


@pytest.fixture(params=ZOO)
def zoo(request):
    make, inputs = ZOO[request.param]
    with torch.random.fork_rng(devices=[]):
        refuse_where_it_must(request.node.callspec.params.get("name"), make, inputs)
        torch.manual_seed(1)
        return make(), inputs()


def call(model, inputs):
    args, kwargs = (
        ((), inputs) if isinstance(inputs, dict) else (inputs if isinstance(inputs, tuple) else (inputs,), {})
    )
    return model(*args, **kwargs)


def bits(t):
    return t.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes(), t.dtype, tuple(t.shape)


def state(model, but=()):
    """All of a model but the weights and biases of some layers."""
    hooks = [h for h in vars(nn.Module()) if "hook" in h]
    return {
        "parameters": {n: (id(p), bits(p)) for n, p in model.named_parameters() if n.rpartition(".")[0] not in but},
        "requires": {n: p.requires_grad for n, p in model.named_parameters()},
        "buffers": {n: (id(b), bits(b)) for n, b in model.named_buffers()},
        "grads": {n: None if p.grad is None else (id(p.grad), bits(p.grad)) for n, p in model.named_parameters()},
        "flags": {n: m.training for n, m in model.named_modules()},
        "hooks": {(n, h): list(getattr(m, h)) for n, m in model.named_modules() for h in hooks if hasattr(getattr(m, h),
            "keys")},
        "modules": {n: id(m) for n, m in model.named_modules()},
    }  # fmt: skip


def streams():
    return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()  # noqa: NPY002


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("name", IN_PLACE)
def test_only_the_treated_layers_change(zoo, name, training):
    model, inputs = zoo
    call(model, inputs).sum().backward()
    model.train(training)
    next(iter(model.children())).train(not training)
    made = CURES[name].apply(type(model)(), inputs, None, gen())
    but = set(made.treated) | (
        {"stem", "first", "a", "block.linear1"} if name in ("orthogonal", "identity", "haar") else set()
    )
    before, drawn = state(model, but), streams()
    CURES[name].apply(model, inputs, None, gen())
    after = state(model, but)
    for part, value in before.items():
        assert after[part] == value, part
    assert streams() == drawn


@pytest.mark.parametrize("name", IN_PLACE)
def test_every_module_with_weights_is_treated_or_left_alone_with_a_reason(zoo, name):
    model, inputs = zoo
    made = CURES[name].apply(model, inputs, None, gen())
    named = set(made.treated) | set(made.left_alone)
    weighty = {n for n, m in model.named_modules() if any(p.dim() > 1 for p in m._parameters.values() if p is not None)}
    assert {n for n in weighty if ".parametrizations" not in n} <= named
    assert not set(made.treated) & set(made.left_alone)
    assert all(made.left_alone.values())


@pytest.mark.parametrize("name", IN_PLACE)
def test_a_cured_model_runs_and_is_finite(zoo, name):
    model, inputs = zoo
    CURES[name].apply(model, inputs, None, gen())
    assert torch.isfinite(call(model, inputs)).all()


def test_the_order_is_that_of_the_forward_pass_not_of_the_module_tree():
    made = CURES["lsuv"].apply(Resnet(), torch.randn(12, 2, 11, 11), None, gen())
    blocks = [f"blocks.{i}.{c}" for i in (0, 1) for c in ("conv1", "shortcut", "conv2")]
    assert made.treated == ("stem", *blocks, "head")


def test_each_layer_sees_the_layers_treated_before_it():
    """Under LSUV every output of the cured net has unit variance, so each layer was treated on its final input."""
    model = nn.Sequential(nn.Linear(5, 9), nn.Tanh(), nn.Linear(9, 9), nn.Tanh(), nn.Linear(9, 9)).double()
    x = torch.randn(30, 5, dtype=torch.float64) * 7
    init.lsuv_(model, x, generator=gen())
    with torch.no_grad():
        for k in (1, 3, 5):
            assert float(model[:k](x).var(correction=0)) == pytest.approx(1)


REASONS = {
    "twin": "its weight is that of 'again'",
    "unused": "never called",
    "frozen": "frozen",
    "normed": "parametrization",
    "old": "computed from other parameters",
}


@pytest.mark.parametrize("layer", REASONS)
def test_a_layer_that_cannot_be_treated_is_named_with_the_reason(layer):
    model = Shared()
    made = CURES["orthogonal"].apply(model, (torch.randn(20, 5), torch.randn(20, 5)), None, gen())
    assert REASONS[layer] in made.left_alone[layer]
    assert made.treated == ("again", "mid")


def test_a_weight_tied_to_an_embedding_is_left_alone():
    model = Transformer()
    made = CURES["lsuv"].apply(model, {"ids": torch.randint(11, (10, 6))}, None, gen())
    assert "embed" in made.left_alone["out"]
    assert "MultiheadAttention" in made.left_alone["block.self_attn"]
    assert "never called" in made.left_alone["block.self_attn.out_proj"]


def test_a_transposed_convolution_is_left_alone():
    made = CURES["he"].apply(Resnet(), None, None, gen())
    assert made.left_alone["up"] == "a ConvTranspose2d is not treated"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("name", IN_PLACE)
def test_other_dtypes_work(name, dtype):
    refuse_where_it_must(name, Skip, lambda: torch.rand(20, 6))
    model = Skip().to(dtype)
    made = CURES[name].apply(model, torch.rand(20, 6).to(dtype), None, gen()).model
    assert all(p.dtype == dtype for p in made.parameters())
    assert all(torch.isfinite(p).all() for p in made.parameters())


def test_the_weights_do_not_depend_on_the_callers_gradient_mode():
    model, x = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)), torch.rand(20, 6)
    made = []
    for mode in (torch.no_grad, torch.enable_grad):
        with mode():
            made.append(cure(copy.deepcopy(model), "rank", x)[2].weight)
    assert torch.equal(*made)


# Bad input


@pytest.mark.parametrize("name", [n for n in IN_PLACE if CURES[n].needs_inputs])
def test_one_sample_is_too_few(name):
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    with pytest.raises(UsageError, match="at least 2 samples; got 1"):
        CURES[name].apply(model, torch.rand(1, 6), None, gen())


@pytest.mark.parametrize("name", ["orthogonal", "identity", "lsuv", "rank"])
def test_a_layer_whose_input_is_not_finite_is_named_and_nothing_changes(name):
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    with torch.no_grad():
        model[0].bias[0] = torch.inf
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(UsageError, match="finite; the input of '2'"):
        CURES[name].apply(model, torch.rand(20, 6), None, gen())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))


class Falls(nn.Module):
    """Raises at its second layer from the second forward pass on."""

    calls = 0

    def __init__(self):
        super().__init__()
        self.a, self.b, self.c = nn.Linear(6, 8), nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        Falls.calls += 1  # of the class: what a model itself counts is put back
        h = self.b(self.a(x))
        if Falls.calls > 1:
            raise RuntimeError("fell")
        return self.c(h)


@pytest.mark.parametrize("name", ["orthogonal", "identity", "lsuv", "rank"])
def test_a_forward_that_raises_leaves_the_model_as_it_was(name):
    Falls.calls = 0
    model = Falls()
    before = [p.clone() for p in model.parameters()]
    with pytest.raises(RuntimeError, match="fell"):
        CURES[name].apply(model, torch.rand(20, 6), None, gen())
    assert all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


@pytest.mark.parametrize("name", [n for n in IN_PLACE if n != "none"])
def test_a_model_without_layers_to_treat_is_told(name):
    with pytest.raises(UsageError, match="this model has none"):
        CURES[name].apply(nn.Sequential(nn.Embedding(4, 3), nn.ReLU()), torch.randint(4, (9, 2)), None, gen())


def test_a_lazy_module_is_named():
    with pytest.raises(UsageError, match=r"'1\.weight' has no shape yet"):
        CURES["he"].apply(nn.Sequential(nn.Linear(3, 3), nn.LazyLinear(4)), torch.rand(9, 3), None, gen())


def test_a_layer_that_gets_zeros_is_left_alone():
    class Zeros(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b, self.c, self.d = (nn.Linear(4, 4) for _ in range(4))

        def forward(self, x):
            return self.d(self.c(self.a(x)) + self.b(x * 0))

    made = CURES["orthogonal"].apply(Zeros(), torch.rand(9, 4), None, gen())
    assert made.left_alone["b"] == "its output is zero on this batch"
    assert made.treated == ("c",)


class ReadsItsWeight(nn.Module):
    """Calls its first layer, then reads that layer's weight."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        return self.b(self.a(x).relu()) + self.a.weight.sum()


def test_a_model_that_batch_norm_would_break_is_put_back():
    model = ReadsItsWeight()
    before = dict(model.named_modules())
    with pytest.raises(UsageError, match="put back"):
        CURES["bn"].apply(model, torch.randn(16, 8), None, None)
    assert dict(model.named_modules()) == before
