"""Normalization taken apart: a numpy oracle with loops for every switch, torch's own for the complete case."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from normscope import UsageError
from normscope.core.spec import NORMS
from normscope.nn import BatchNorm, CenterOutputs, RMSNorm, make_norm

SWITCHES = list(itertools.product([False, True], repeat=2))  # recenter, rescale
SHAPES = [(7, 5), (6, 5, 4), (4, 5, 3, 2)]
WHOLE = [(7, 5), (6, 5, 4), (4, 5, 3, 3)]


def normal(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def shifted(*shape, seed=0):
    """Channels of different means and scales."""
    channels = [1, -1] + [1] * (len(shape) - 2)
    scale = torch.linspace(0.5, 2, shape[1], dtype=torch.float64).reshape(channels)
    return (normal(*shape, seed=seed) + 3 * normal(shape[1], seed=9).reshape(channels)) * scale


def channel(x, k):
    """All values of a channel, as a list."""
    return np.take(x, k, 1).ravel()


def statistics(x, k, recenter):
    values = channel(x, k)
    mean = sum(values) / len(values) if recenter else 0.0
    return mean, sum((v - mean) ** 2 for v in values) / len(values)


def oracle(x, recenter, rescale, gain=None, shift=None, eps=1e-5):
    """Channel by channel, value by value."""
    out = np.empty_like(x)
    for k in range(x.shape[1]):
        mean, variance = statistics(x, k, recenter)
        below = math.sqrt(variance + eps) if rescale else 1.0
        values = (np.take(x, k, 1) - mean) / below
        if gain is not None:
            values = values * gain[k] + shift[k]
        out[:, k] = values
    return out


def module(features, **switches):
    return BatchNorm(features, **switches).double()


def assert_close(actual, expected, rtol=1e-10, atol=1e-12):
    as_numpy = [v.detach().double().numpy() if isinstance(v, torch.Tensor) else v for v in (actual, expected)]
    np.testing.assert_allclose(*as_numpy, rtol=rtol, atol=atol)


# Every switch, forward


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize(("recenter", "rescale"), SWITCHES)
def test_batch_norm_in_training_equals_the_oracle(recenter, rescale, affine, shape):
    x = shifted(*shape)
    norm = module(5, recenter=recenter, rescale=rescale, affine=affine)
    gain, shift = normal(5, seed=1), normal(5, seed=2)
    if affine:
        norm.load_state_dict({"weight": gain, "bias": shift}, strict=False)
    expected = oracle(x.numpy(), recenter, rescale, *((gain.numpy(), shift.numpy()) if affine else ()))
    assert_close(norm(x), expected)


@settings(max_examples=40, deadline=None)
@given(
    n=st.integers(2, 6),
    d=st.integers(1, 4),
    positions=st.lists(st.integers(1, 3), max_size=2),
    switches=st.sampled_from(SWITCHES),
    eps=st.sampled_from([1e-12, 1e-5, 0.1]),
)
def test_batch_norm_takes_any_number_of_positions(n, d, positions, switches, eps):
    x = shifted(n, d, *positions)
    norm = module(d, recenter=switches[0], rescale=switches[1], affine=False, eps=eps)
    assert_close(norm(x), oracle(x.numpy(), *switches, eps=eps), rtol=1e-6)


@pytest.mark.parametrize(("recenter", "rescale"), SWITCHES)
def test_epsilon_stands_inside_the_root(recenter, rescale):
    x = 1e-3 * shifted(7, 5)
    norm = module(5, recenter=recenter, rescale=rescale, eps=0.5)
    assert_close(norm(x), oracle(x.numpy(), recenter, rescale, eps=0.5))


def test_rescaling_alone_divides_by_the_root_mean_square():
    # the batch norm of daneshmand2020 and 2021
    x = shifted(9, 5)
    found = module(5, recenter=False, eps=0.0)(x)
    assert_close(found, x.numpy() / np.sqrt(np.mean(x.numpy() ** 2, axis=0)))


def test_without_a_switch_nothing_changes():
    x = shifted(7, 5)
    assert torch.equal(module(5, recenter=False, rescale=False, affine=False)(x), x)


@pytest.mark.parametrize(("recenter", "rescale"), SWITCHES)
def test_the_gradient_is_that_of_the_oracle(recenter, rescale):
    # central differences of the numpy oracle, step 1e-5: error about 1e-10 of the third derivative
    x, direction = shifted(5, 3), normal(5, 3, seed=4).numpy()
    norm = module(3, recenter=recenter, rescale=rescale, affine=False)
    leaf = x.clone().requires_grad_()
    (norm(leaf) * torch.from_numpy(direction)).sum().backward()
    expected = np.zeros((5, 3))
    for i, k in itertools.product(range(5), range(3)):
        step = np.zeros((5, 3))
        step[i, k] = 1e-5
        up, down = (oracle(x.numpy() + s * step, recenter, rescale) for s in (1, -1))
        expected[i, k] = np.sum((up - down) * direction) / 2e-5
    assert_close(leaf.grad, expected, rtol=1e-6, atol=1e-8)


# Every switch, running statistics


@pytest.mark.parametrize(("recenter", "rescale"), SWITCHES)
def test_running_statistics_move_by_the_momentum(recenter, rescale):
    norm = module(5, recenter=recenter, rescale=rescale, momentum=0.3)
    mean, variance = np.zeros(5), np.ones(5)
    for seed in range(3):
        x = shifted(7, 5, seed=seed)
        norm(x)
        for k in range(5):
            m, v = statistics(x.numpy(), k, recenter)
            v = v * 7 / 6 if recenter else v  # unbiased with recentring, 1/n without
            mean[k] = 0.7 * mean[k] + 0.3 * m if recenter else 0.0
            variance[k] = 0.7 * variance[k] + 0.3 * v if rescale else 1.0
    assert_close(norm.running_mean, mean)
    assert_close(norm.running_var, variance)


@pytest.mark.parametrize(("recenter", "rescale"), SWITCHES)
def test_in_eval_mode_the_running_statistics_are_in_force(recenter, rescale):
    norm = module(5, recenter=recenter, rescale=rescale, affine=False)
    for seed in range(3):
        norm(shifted(7, 5, seed=seed))
    x = shifted(4, 5, seed=8)
    mean = norm.running_mean.numpy() if recenter else 0.0
    below = np.sqrt(norm.running_var.numpy() + 1e-5) if rescale else 1.0
    assert_close(norm.eval()(x), (x.numpy() - mean) / below)


@pytest.mark.parametrize(("recenter", "rescale"), SWITCHES)
def test_eval_mode_moves_no_statistics(recenter, rescale):
    norm = module(5, recenter=recenter, rescale=rescale).eval()
    norm(shifted(7, 5))
    assert (norm.running_mean.tolist(), norm.running_var.tolist(), norm.num_batches_tracked) == ([0] * 5, [1] * 5, 0)


def test_eval_mode_before_training_does_nothing():
    x = shifted(7, 5)
    assert_close(module(5, eps=0.0).eval()(x), x)


def test_without_running_statistics_eval_mode_uses_the_batch():
    x = shifted(7, 5)
    norm = module(5, track_running_stats=False)
    assert_close(norm.eval()(x), oracle(x.numpy(), True, True))


def test_without_running_statistics_there_are_no_buffers():
    assert list(module(5, track_running_stats=False).buffers()) == []


# The complete case against torch's own


def twins(shape, affine=True, momentum=0.1):
    """Our module and the arguments of `F.batch_norm` with the same numbers."""
    ours = module(shape[1], affine=affine, momentum=momentum)
    gain, shift = (normal(5, seed=1), normal(5, seed=2)) if affine else (None, None)
    if affine:
        ours.load_state_dict({"weight": gain.clone(), "bias": shift.clone()}, strict=False)
    mean, variance = torch.zeros(5, dtype=torch.float64), torch.ones(5, dtype=torch.float64)
    return ours, [mean, variance, gain, shift]


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("affine", [True, False])
@pytest.mark.parametrize("shape", WHOLE)
def test_the_complete_batch_norm_is_torchs(shape, affine, training):
    ours, theirs = twins(shape, affine)
    for seed in range(2):  # so that eval mode has something to use
        x = shifted(*shape, seed=seed)
        ours(x), F.batch_norm(x, *theirs, training=True)
    x = shifted(*shape, seed=5)
    assert_close(ours.train(training)(x), F.batch_norm(x, *theirs, training=training))


@pytest.mark.parametrize("momentum", [0.1, 1.0])
@pytest.mark.parametrize("shape", WHOLE)
def test_the_running_statistics_are_torchs(shape, momentum):
    ours, theirs = twins(shape)
    ours.momentum = momentum
    for seed in range(3):
        x = shifted(*shape, seed=seed)
        ours(x), F.batch_norm(x, *theirs, training=True, momentum=momentum)
    assert_close(ours.running_mean, theirs[0])
    assert_close(ours.running_var, theirs[1])


@pytest.mark.parametrize("kind", [torch.nn.BatchNorm1d, torch.nn.BatchNorm2d])
def test_batches_are_counted_as_torch_counts_them(kind):
    ours, theirs = BatchNorm(5), kind(5)
    x = shifted(*(WHOLE[0] if kind is torch.nn.BatchNorm1d else WHOLE[2])).float()
    for _ in range(3):
        ours(x), theirs(x)
    ours.eval()(x), theirs.eval()(x)
    assert torch.equal(ours.num_batches_tracked, theirs.num_batches_tracked)


def gradients(f, x, *parameters):
    """d/dx and d/dparameters of a fixed functional of f(x)."""
    leaves = [v.detach().clone().requires_grad_() for v in (x, *parameters)]
    out = f(*leaves)
    return torch.autograd.grad((out * normal(*out.shape, seed=6)).sum(), leaves)


@pytest.mark.parametrize("wanted", ["input", "weight", "bias"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("shape", WHOLE)
def test_the_gradients_of_the_complete_batch_norm_are_torchs(shape, training, wanted):
    ours, theirs = twins(shape)
    x = shifted(*shape, seed=5)
    ours(shifted(*shape)), F.batch_norm(shifted(*shape), *theirs, training=True)
    ours.train(training)

    def call(x, weight, bias):
        return torch.func.functional_call(ours, {"weight": weight, "bias": bias}, (x,))

    def native(x, weight, bias):
        return F.batch_norm(x, theirs[0].clone(), theirs[1].clone(), weight, bias, training=training)

    which = ["input", "weight", "bias"].index(wanted)
    expected = gradients(native, x, theirs[2], theirs[3])[which]
    assert_close(gradients(call, x, theirs[2], theirs[3])[which], expected, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("kind", [torch.nn.BatchNorm1d, torch.nn.BatchNorm2d])
def test_the_state_of_a_torch_batch_norm_loads(kind):
    theirs = kind(5).double()
    x = shifted(*(WHOLE[0] if kind is torch.nn.BatchNorm1d else WHOLE[2]))
    theirs(x)
    ours = module(5)
    ours.load_state_dict(theirs.state_dict())
    assert_close(ours.eval()(x), theirs.eval()(x))


@pytest.mark.parametrize("scale", [1, 300])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("kind", ["batch", "rms"])
def test_a_narrow_type_is_as_accurate_as_torchs(kind, dtype, scale):
    # 300: a square of 90000 is no float16. 4 units in the last place at 4, the largest output
    x = (scale * normal(64, 32)).to(dtype)
    ours = make_norm(kind, 32).to(dtype)(x)
    exact = F.batch_norm(x.double(), None, None, training=True)
    if kind == "rms":
        exact = F.rms_norm(x.double(), (32,), eps=1e-5)
    assert_close(ours, exact, rtol=0, atol=4 * 4 * torch.finfo(dtype).eps)


@pytest.mark.parametrize("kind", ["batch", "batch_rescale", "batch_recenter"])
def test_a_narrow_input_gives_a_narrow_output(kind):
    # as torch's batch norm does under autocast
    assert make_norm(kind, 5)(shifted(7, 5).bfloat16()).dtype == torch.bfloat16


# Misuse


@pytest.mark.parametrize("name", ["batch", "batch_rescale", "batch_recenter"])
@pytest.mark.parametrize("shape", [(1, 5), (1, 5, 1, 1)])
def test_one_value_a_channel_is_refused_in_training(name, shape):
    with pytest.raises(ValueError, match="more than one value per channel"):
        make_norm(name, 5)(torch.ones(shape))


def test_one_image_has_more_than_one_value_a_channel():
    assert_close(module(5)(shifted(1, 5, 3, 3)), oracle(shifted(1, 5, 3, 3).numpy(), True, True))


def test_a_batch_of_one_is_normalized_in_eval_mode():
    x = shifted(1, 5)
    assert_close(module(5, eps=0.0).eval()(x), x)


@pytest.mark.parametrize("shape", [(7, 4), (5,), (7, 4, 5)])
def test_a_wrong_number_of_channels_is_refused(shape):
    with pytest.raises(ValueError, match=r"expects \(n, 5, ...\)"):
        module(5)(normal(*shape))


# The other norms


@pytest.mark.parametrize("eps", [1e-5, 0.1])
def test_rms_norm_is_torchs(eps):
    x = shifted(7, 5)
    assert_close(RMSNorm(5, eps=eps).double()(x), F.rms_norm(x, (5,), eps=eps))


def test_the_gradient_of_rms_norm_is_torchs():
    x, ours = shifted(7, 5), RMSNorm(5).double()
    found = gradients(lambda x, w: torch.func.functional_call(ours, {"weight": w}, (x,)), x, normal(5, seed=1))
    expected = gradients(lambda x, w: F.rms_norm(x, (5,), w, eps=1e-5), x, normal(5, seed=1))
    for ours_, theirs in zip(found, expected, strict=True):
        assert_close(ours_, theirs)


def test_rms_norm_of_an_image_works_at_each_position():
    x = shifted(2, 5, 3, 4)
    last = F.rms_norm(x.movedim(1, -1), (5,), eps=1e-5).movedim(-1, 1)
    assert_close(RMSNorm(5).double()(x), last)


def test_layer_norm_is_torchs():
    x = shifted(7, 6)
    assert_close(make_norm("layer", 6).double()(x), F.layer_norm(x, (6,)))


def test_layer_norm_of_an_image_takes_the_whole_sample():
    x = shifted(3, 6, 4, 4)
    flat = x.numpy().reshape(3, -1)
    expected = (flat - flat.mean(1, keepdims=True)) / np.sqrt(flat.var(1, keepdims=True) + 1e-5)
    assert_close(make_norm("layer", 6).double()(x), expected.reshape(3, 6, 4, 4))


def test_group_norm_normalizes_each_group_of_a_sample():
    x = shifted(3, 256)
    norm = make_norm("group", 256).double()
    groups = x.numpy().reshape(3, norm.num_groups, -1)
    expected = (groups - groups.mean(2, keepdims=True)) / np.sqrt(groups.var(2, keepdims=True) + 1e-5)
    assert_close(norm(x), expected.reshape(3, 256))


@pytest.mark.parametrize("features", range(2, 70))
def test_group_norm_never_erases_an_input(features):
    # a group of one feature is its own mean: its output would be 0 whatever the input
    x = normal(6, features)
    assert make_norm("group", features).double()(x).std() > 0.5


@pytest.mark.parametrize("features", [4, 8, 16, 32, 64, 128, 256, 96, 100])
def test_group_norm_keeps_more_than_the_order_of_two_features(features):
    # a group of two features leaves only the sign of their difference: 1 and -1, with no gradient but near 0
    x = normal(200, features)
    out = make_norm("group", features).double()(x).abs()
    assert out.std() > 0.2


@pytest.mark.parametrize("name", NORMS)
def test_every_norm_name_makes_a_module_that_keeps_the_shape(name):
    x = shifted(4, 8, 3, 3)
    assert make_norm(name, 8).double()(x).shape == x.shape


@pytest.mark.parametrize("name", NORMS)
def test_without_affine_a_norm_has_no_parameters(name):
    assert list(make_norm(name, 8, affine=False).parameters()) == []


@pytest.mark.parametrize(
    ("name", "recenter", "rescale"), [("batch", 1, 1), ("batch_rescale", 0, 1), ("batch_recenter", 1, 0)]
)
def test_the_names_of_batch_norm_are_its_switches(name, recenter, rescale):
    x = shifted(7, 5)
    assert_close(make_norm(name, 5).double()(x), oracle(x.numpy(), recenter, rescale))


def test_an_unknown_norm_is_refused_with_the_nearest_name():
    with pytest.raises(UsageError, match="Did you mean 'batch'"):
        make_norm("bach", 5)


# Centred outputs


@pytest.fixture
def linear():
    model = torch.nn.Linear(4, 3).double()
    with torch.no_grad():
        model.weight.copy_(normal(3, 4, seed=1))
        model.bias.copy_(normal(3, seed=2))
    return model


def test_centred_outputs_lose_their_mean_over_the_batch(linear):
    x = shifted(7, 4)
    outputs = x.numpy() @ linear.weight.detach().numpy().T + linear.bias.detach().numpy()
    assert_close(CenterOutputs(linear, 3).double()(x), outputs - outputs.mean(0))


def test_a_shift_is_added_after_centring(linear):
    x, shift = shifted(7, 4), normal(3, seed=3)
    centred = CenterOutputs(linear, 3, affine=True).double()
    centred.load_state_dict({"bias": shift}, strict=False)
    assert_close(centred(x).mean(0), shift)


def test_in_eval_mode_the_running_mean_is_taken_off(linear):
    x = shifted(7, 4)
    centred = CenterOutputs(linear, 3, momentum=1.0).double()
    centred(x)
    new = shifted(2, 4, seed=5)
    outputs = [batch.numpy() @ linear.weight.detach().numpy().T for batch in (x, new)]
    assert_close(centred.eval()(new), outputs[1] - outputs[0].mean(0))


def test_centred_outputs_do_not_change_with_the_bias_of_the_last_layer(linear):
    x = shifted(7, 4)
    before = CenterOutputs(linear, 3).double()(x)
    with torch.no_grad():
        linear.bias += 5
    assert_close(CenterOutputs(linear, 3).double()(x), before)


def test_the_centred_model_keeps_its_own_arguments():
    class Two(torch.nn.Module):
        def forward(self, x, *, times):
            return times * x

    x = shifted(7, 3)
    assert_close(CenterOutputs(Two(), 3).double()(x, times=2), 2 * (x - x.mean(0)))


def test_one_output_cannot_be_centred(linear):
    with pytest.raises(ValueError, match="more than one value per channel"):
        CenterOutputs(linear, 3).double()(shifted(1, 4))
