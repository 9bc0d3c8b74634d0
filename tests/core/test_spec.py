"""A spec says what it builds: its text, its laws of weights, and the module against the formula in numpy."""

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from normscope import Spec, UsageError, build
from normscope.core.spec import ACTIVATIONS, FAMILIES, NORMS, WEIGHTS, activation, parse
from normscope.nn import make_activation

K = 5  # standard errors allowed to a statistic of drawn weights

# Text

finite = st.floats(allow_nan=False, allow_infinity=False)
slopes = st.floats(-2, 2).map(lambda a: f"leaky_relu({a})")
specs = st.builds(
    Spec,
    depth=st.integers(1, 10**6),
    width=st.integers(1, 10**6),
    norm=st.sampled_from(list(NORMS)),
    activation=st.sampled_from(list(ACTIVATIONS)) | slopes,
    norm_first=st.booleans(),
    skip=st.none() | finite,
    weights=st.sampled_from(list(WEIGHTS)),
    gain=st.none() | st.floats(0, 1e6),
    bias=st.none() | st.floats(0, 1e6),
    outputs=st.none() | st.integers(1, 1000),
    output_norm=st.sampled_from(list(NORMS)),
    family=st.sampled_from(FAMILIES),
)


@settings(max_examples=200, deadline=None)
@given(specs)
def test_a_spec_is_read_back_from_its_text(spec):
    assert parse(str(spec)) == spec


@pytest.mark.parametrize("field", ["skip", "gain", "bias"])
def test_a_whole_number_is_read_back_too(field):
    spec = Spec(**{field: 2})
    assert parse(str(spec)) == spec


def test_the_text_shows_what_differs_from_the_default():
    assert str(Spec(depth=4, norm="batch", family="vgg")) == "vgg:depth=4,width=256,norm=batch"


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_alone_is_its_default(family):
    depth = {"resnet": 33}.get(family, 32)  # an odd number: a stem and blocks of two
    assert parse(family) == Spec(family=family, depth=depth)


@pytest.mark.parametrize(("text", "value"), [("true", True), ("False", False), ("1", True), ("0", False)])
def test_truth_is_written_in_words_or_digits(text, value):
    assert parse(f"mlp:norm_first={text}").norm_first is value


@pytest.mark.parametrize("field", ["skip", "gain", "bias", "outputs"])
def test_none_is_read_as_nothing(field):
    assert getattr(parse(f"mlp:{field}=none"), field) is None


def test_the_norm_called_none_stays_a_name():
    assert parse("mlp:norm=none").norm == "none"


def test_the_parameters_are_the_fields():
    spec = Spec(depth=3)
    assert spec.parameters() == {f.name: getattr(spec, f.name) for f in dataclasses.fields(Spec)}


# Misuse


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("mpl:depth=3", "Did you mean 'mlp'"),
        ("mlp:deepth=3", "Did you mean 'depth'"),
        ("mlp:norm=bach", "Did you mean 'batch'"),
        ("mlp:activation=rel", "Did you mean 'relu'"),
        ("mlp:weights=gausian", "Did you mean 'gaussian'"),
        ("mlp:output_norm=layr", "Did you mean 'layer'"),
    ],
)
def test_an_unknown_name_is_refused_with_the_nearest(text, hint):
    with pytest.raises(UsageError, match=hint):
        parse(text)


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        ("mlp:depth", "name=value"),
        ("mlp:depth=", "name=value"),
        ("mlp:depth=three", "must be a number"),
        ("mlp:depth=2.5", "must be a number"),
        ("mlp:gain=big", "must be a number"),
        ("mlp:gain=nan", "finite number"),
        ("mlp:skip=inf", "finite number"),
        ("mlp:depth=0", "whole number >= 1"),
        ("mlp:width=-3", "whole number >= 1"),
        ("mlp:outputs=0", "whole number >= 1"),
        ("mlp:norm_first=maybe", "true or false"),
        ("mlp:activation=relu(0.2)", "Only leaky_relu"),
        ("mlp:activation=leaky_relu(steep)", "must be a number"),
        ("mlp:activation=leaky_relu(inf)", "must be a number"),
        ("mlp:activation=leaky_relu(0.2", "must be a number"),
        ("mlp:activation=leaky_relu()", "must be a number"),
    ],
)
def test_a_value_that_makes_no_sense_is_refused(text, fault):
    with pytest.raises(UsageError, match=fault):
        parse(text)


@pytest.mark.parametrize("name", ["relu(", "leaky_relu(", "tanh()"])
def test_a_parenthesis_with_nothing_in_it_is_refused(name):
    with pytest.raises(UsageError, match="leaky_relu"):
        Spec(activation=name)


@pytest.mark.parametrize("field", ["depth", "width", "skip", "gain", "bias", "outputs"])
def test_true_is_not_a_number(field):
    # Spec(bias=True) would mean biases of standard deviation 1, and its text could not be read back
    with pytest.raises(UsageError, match=f"Spec.{field}"):
        Spec(**{field: True})


@pytest.mark.parametrize("field", ["gain", "bias"])
def test_a_standard_deviation_is_not_negative(field):
    with pytest.raises(UsageError, match=f"Spec.{field}"):
        Spec(**{field: -1.0})


def test_norm_first_is_true_or_false():
    with pytest.raises(UsageError, match="norm_first"):
        Spec(norm_first="false")


@pytest.mark.parametrize("family", ["vgg", "resnet"])
def test_convolutions_refuse_flat_samples(family):
    with pytest.raises(UsageError, match="images"):
        build(Spec(depth=3, width=4, family=family), (64,))


@pytest.mark.parametrize("depth", [1, 2, 8])
def test_a_resnet_has_an_odd_depth(depth):
    with pytest.raises(UsageError, match="odd depth"):
        build(Spec(depth=depth, width=4, family="resnet"))


# Laws of the weights


def drawn(law, *, fan_in=120, fan_out=250, gain=1.5, seed=0, family="mlp"):
    """First weight matrix of a net with this law, float64 numpy, (fan_out, fan_in)."""
    spec = Spec(depth=1, width=fan_out, weights=law, gain=gain, family=family)
    model = build(spec, fan_in, seed=seed, dtype=torch.float64)
    return model.layers[0].linear.weight.detach().numpy()


FAN_IN, FAN_OUT, GAIN = 120, 250, 1.5
#: law -> mean, variance and kurtosis (fourth central moment over the square of the variance) of an entry
MOMENTS = {
    "gaussian": (0, GAIN**2 / FAN_IN, 3),
    "uniform": (0, GAIN**2 / FAN_IN, 9 / 5),
    "xavier": (0, GAIN**2 * 2 / (FAN_IN + FAN_OUT), 9 / 5),
    "xavier_normal": (0, GAIN**2 * 2 / (FAN_IN + FAN_OUT), 3),
    "torch": (0, 1 / (3 * FAN_IN), 9 / 5),
    "positive": (1 / math.sqrt(FAN_IN), 1 / (3 * FAN_IN), 9 / 5),
}


def test_every_law_has_its_moments_or_its_own_test():
    assert set(MOMENTS) | {"orthogonal", "identity"} == set(WEIGHTS)


@pytest.mark.parametrize("law", MOMENTS)
def test_a_law_has_its_mean(law):
    w, (mean, variance, _) = drawn(law), MOMENTS[law]
    assert abs(w.mean() - mean) <= K * math.sqrt(variance / w.size)


@pytest.mark.parametrize("law", MOMENTS)
def test_a_law_has_its_variance(law):
    w, (mean, variance, kurtosis) = drawn(law), MOMENTS[law]
    error = variance * math.sqrt((kurtosis - 1) / w.size)
    assert abs(np.mean((w - mean) ** 2) - variance) <= K * error


@pytest.mark.parametrize("law", MOMENTS)
def test_a_law_has_its_kurtosis(law):
    # the variance of z^4 is 105 - 9 for a Gaussian, 1/9 - 1/25 of 81 for a uniform law: less
    w, (mean, variance, kurtosis) = drawn(law), MOMENTS[law]
    assert abs(np.mean((w - mean) ** 4) / variance**2 - kurtosis) <= K * math.sqrt(96 / w.size)


@pytest.mark.parametrize("law", [law for law in MOMENTS if MOMENTS[law][2] < 3])
def test_a_uniform_law_keeps_to_its_interval(law):
    mean, variance, _ = MOMENTS[law]
    w, half = drawn(law), math.sqrt(3 * variance)
    assert mean - half <= w.min() < mean - 0.999 * half < mean + 0.999 * half < w.max() <= mean + half


@pytest.mark.parametrize("law", MOMENTS)
def test_the_rows_of_a_law_are_uncorrelated(law):
    w, (mean, variance, _) = drawn(law), MOMENTS[law]
    correlation = (w - mean) @ (w - mean).T / (variance * FAN_IN)
    off = correlation[~np.eye(FAN_OUT, dtype=bool)]
    assert abs(off.mean()) <= K * math.sqrt(2 / (off.size * FAN_IN))  # each pair is counted twice


@pytest.mark.parametrize("law", ["torch", "positive"])
def test_torchs_own_law_does_not_use_the_gain(law):
    np.testing.assert_array_equal(drawn(law, gain=1.0), drawn(law, gain=7.0))


def test_the_torch_law_is_that_of_a_linear_layer():
    # both uniform: the same variance, within K standard errors of the difference
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = torch.nn.Linear(FAN_IN, FAN_OUT).weight.detach().double().numpy()
    ours = drawn("torch")
    error = ours.var() * math.sqrt(2 * (9 / 5 - 1) / ours.size)
    assert abs(ours.var() - theirs.var()) <= K * error


@pytest.mark.parametrize("shape", [(60, 60), (60, 90), (90, 60)])
def test_the_orthogonal_law_is_orthogonal(shape):
    w = drawn("orthogonal", fan_in=shape[1], fan_out=shape[0])
    small = w @ w.T if shape[0] <= shape[1] else w.T @ w
    np.testing.assert_allclose(small, 1.5**2 * np.eye(len(small)), atol=1e-10)


def test_the_orthogonal_law_has_no_preferred_sign():
    # Haar: an entry is symmetric; a QR without the correction of signs has a diagonal of one sign
    corners = [drawn("orthogonal", fan_in=4, fan_out=4, gain=1.0, seed=s)[0, 0] for s in range(200)]
    assert abs(np.mean(corners)) <= K * math.sqrt(1 / 4 / len(corners))  # variance of an entry: 1/d


@pytest.mark.parametrize("gain", [1.0, 2.5])
def test_the_identity_law_is_gain_times_the_identity(gain):
    np.testing.assert_array_equal(drawn("identity", fan_in=9, fan_out=9, gain=gain), gain * np.eye(9))


@pytest.mark.parametrize("law", MOMENTS)
def test_the_fan_of_a_convolution_counts_its_window(law):
    spec = Spec(depth=1, width=40, weights=law, gain=1.0, family="vgg")
    w = build(spec, (30, 8, 8), seed=1, dtype=torch.float64).layers[0].linear.weight.detach().numpy()
    fan_in, fan_out = 9 * 30, 9 * 40
    by_fan = {"xavier": 2 / (fan_in + fan_out), "xavier_normal": 2 / (fan_in + fan_out)}
    by_fan |= dict.fromkeys(("torch", "positive"), 1 / (3 * fan_in))
    variance, kurtosis = by_fan.get(law, 1 / fan_in), MOMENTS[law][2]
    assert abs(w.var() - variance) <= K * variance * math.sqrt((kurtosis - 1) / w.size)


@pytest.mark.parametrize("law", sorted(set(WEIGHTS) - {"identity"}))
def test_layers_are_drawn_independently(law):
    model = build(Spec(depth=2, width=80, weights=law), seed=0, dtype=torch.float64)
    a, b = (layer.linear.weight.detach().numpy() for layer in model.layers)
    correlation = np.mean((a - a.mean()) * (b - b.mean())) / (a.std() * b.std())
    assert abs(correlation) <= K / math.sqrt(a.size)


# Biases


def biases(law, bias, fan_in=100, fan_out=8000):
    spec = Spec(depth=1, width=fan_out, weights=law, bias=bias)
    return build(spec, fan_in, dtype=torch.float64).layers[0].linear.bias.detach().numpy()


def test_there_is_no_bias_unless_asked():
    assert build(Spec(depth=2, width=4, outputs=3)).layers[0].linear.bias is None


def test_a_bias_has_the_standard_deviation_that_was_asked_for():
    b = biases("gaussian", 0.7)
    assert abs(b.std() - 0.7) <= K * 0.7 / math.sqrt(2 * b.size)
    assert abs(b.mean()) <= K * 0.7 / math.sqrt(b.size)


def test_a_bias_of_zero_is_zero():
    assert not biases("gaussian", 0.0).any()


@pytest.mark.parametrize("bias", [0.0, 3.0])
def test_under_torchs_law_a_bias_is_uniform_up_to_the_root_of_the_fan(bias):
    b = biases("torch", bias)
    assert 0.999 * 0.1 < np.abs(b).max() <= 0.1
    assert abs(b.var() - 0.1**2 / 3) <= K * 0.1**2 / 3 * math.sqrt(0.8 / b.size)


def test_a_readout_has_a_bias_where_the_layers_have_one():
    assert build(Spec(depth=1, width=4, outputs=3, bias=1.0)).readout.bias is not None


# Gains


@pytest.mark.parametrize(
    ("activation", "gain"),
    [("relu", math.sqrt(2)), ("leaky_relu", math.sqrt(2 / 1.0001)), ("leaky_relu(0.5)", math.sqrt(1.6))]
    + [("leaky_relu(-1)", 1.0)]
    + [(name, 1.0) for name in ACTIVATIONS if "relu" not in name],
)
def test_the_gain_in_force(activation, gain):
    assert Spec(activation=activation).effective_gain == pytest.approx(gain, rel=1e-12)


def test_a_gain_that_is_given_wins():
    assert Spec(activation="relu", gain=0.3).effective_gain == 0.3


@pytest.mark.parametrize("activation", ["relu", "leaky_relu(0.5)", "leaky_relu(-1)", "identity", "abs"])
def test_the_default_gain_keeps_the_scale_of_a_plain_layer(activation):
    # E h^2 = |x|^2 / d for W Gaussian; the variance of h^2 is at most E h^4 <= 3 * 4
    width = 20_000
    x = torch.ones(1, 30, dtype=torch.float64)
    model = build(Spec(depth=1, width=width, activation=activation), 30, dtype=torch.float64)
    assert abs(model(x).square().mean().item() - 1) <= K * math.sqrt(12 / width)


def test_the_readout_keeps_the_scale_with_gain_one():
    w = build(Spec(depth=1, width=400, outputs=100), dtype=torch.float64).readout.weight.detach().numpy()
    assert abs(w.var() - 1 / 400) <= K / 400 * math.sqrt(2 / w.size)


# One seed, one net


def state(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def assert_same_state(a, b):
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("law", WEIGHTS)
def test_a_seed_determines_the_net(law, family):
    spec = Spec(depth=3, width=4, weights=law, norm="batch", bias=0.5, outputs=3, family=family)
    assert_same_state(state(build(spec, seed=7)), state(build(spec, seed=7)))


def test_the_net_does_not_depend_on_torchs_global_stream():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        first = state(build(Spec(depth=3, width=4, bias=0.5), seed=7))
        torch.manual_seed(2)
        assert_same_state(state(build(Spec(depth=3, width=4, bias=0.5), seed=7)), first)


def test_another_seed_gives_another_net():
    a, b = (build(Spec(depth=1, width=4), seed=s).layers[0].linear.weight for s in (0, 1))
    assert not torch.equal(a, b)


@pytest.mark.parametrize("law", WEIGHTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_building_leaves_torchs_global_stream_where_it_was(family, law):
    before = torch.get_rng_state()
    build(Spec(depth=3, width=4, weights=law, norm="batch", bias=1.0, outputs=3, family=family))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_generator_wins_over_the_seed():
    spec = Spec(depth=2, width=4)
    by_generator = build(spec, seed=99, generator=torch.Generator().manual_seed(7))
    assert_same_state(state(by_generator), state(build(spec, seed=7)))


def test_a_generator_moves_on():
    generator = torch.Generator().manual_seed(7)
    a, b = (build(Spec(depth=1, width=4), generator=generator).layers[0].linear.weight for _ in range(2))
    assert not torch.equal(a, b)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("law", WEIGHTS)
def test_a_net_has_the_type_that_was_asked_for(law, dtype):
    model = build(Spec(depth=2, width=4, weights=law, norm="batch", outputs=3), dtype=dtype)
    assert {p.dtype for p in model.parameters()} == {dtype}


def test_a_new_net_is_in_training_mode():
    assert build(Spec(depth=2, width=4, norm="batch")).training


# The chain against the formula


def rows(n, d, seed=3):
    return torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def weights(model):
    return [layer.linear.weight.detach().numpy() for layer in model.layers]


def relu(z):
    return np.where(z > 0, z, 0)


def batch_norm(z, eps=1e-5):
    return (z - z.mean(0)) / np.sqrt(z.var(0) + eps)


def assert_outputs(model, x, expected):
    np.testing.assert_allclose(model(x).detach().numpy(), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("depth", [1, 2, 7])
def test_depth_counts_the_weight_layers_of_the_chain(depth):
    model = build(Spec(depth=depth, width=6, outputs=3), inputs=5)
    assert [tuple(w.shape) for w in weights(model)] == [(6, 5)] + [(6, 6)] * (depth - 1)


def test_norm_first_is_norm_then_activation():
    model = build(Spec(depth=2, width=6, norm="batch"), inputs=5, dtype=torch.float64)
    x, (w, v) = rows(7, 5), weights(model)
    assert_outputs(model, x, relu(batch_norm(relu(batch_norm(x.numpy() @ w.T)) @ v.T)))


def test_norm_last_is_activation_then_norm():
    model = build(Spec(depth=2, width=6, norm="batch", norm_first=False), inputs=5, dtype=torch.float64)
    x, (w, v) = rows(7, 5), weights(model)
    assert_outputs(model, x, batch_norm(relu(batch_norm(relu(x.numpy() @ w.T)) @ v.T)))


@pytest.mark.parametrize("skip", [0.0, 0.3, -1.0])
def test_a_skip_of_strength_gamma_is_h_plus_gamma_w_h(skip):
    model = build(Spec(depth=3, width=6, skip=skip), dtype=torch.float64)
    x = rows(7, 6)
    h = x.numpy()
    for w in weights(model):
        h = relu(h + skip * (h @ w.T))
    assert_outputs(model, x, h)


def test_a_skip_comes_before_the_norm():
    model = build(Spec(depth=1, width=6, skip=0.3, norm="batch"), dtype=torch.float64)
    x = rows(7, 6)
    assert_outputs(model, x, relu(batch_norm(x.numpy() + 0.3 * (x.numpy() @ weights(model)[0].T))))


def test_a_layer_that_changes_the_width_has_no_skip():
    model = build(Spec(depth=1, width=6, skip=0.3), inputs=5, dtype=torch.float64)
    x = rows(7, 5)
    assert_outputs(model, x, relu(x.numpy() @ weights(model)[0].T))


def test_a_readout_is_linear_on_the_last_layer():
    model = build(Spec(depth=1, width=6, outputs=3, bias=1.0), inputs=5, dtype=torch.float64)
    x, layer, readout = rows(7, 5), model.layers[0].linear, model.readout
    h = relu(x.numpy() @ layer.weight.detach().numpy().T + layer.bias.detach().numpy())
    assert_outputs(model, x, h @ readout.weight.detach().numpy().T + readout.bias.detach().numpy())


def test_an_output_norm_normalizes_the_readout():
    model = build(Spec(depth=1, width=6, outputs=3, output_norm="batch"), inputs=5, dtype=torch.float64)
    x, linear = rows(7, 5), model.readout[0]
    h = relu(x.numpy() @ weights(model)[0].T)
    assert_outputs(model, x, batch_norm(h @ linear.weight.detach().numpy().T))


def test_without_outputs_a_net_ends_with_its_last_layer():
    assert build(Spec(depth=1, width=6), inputs=5)(torch.zeros(2, 5)).shape == (2, 6)


def test_an_mlp_flattens_its_samples():
    x = rows(3, 24)
    model = build(Spec(depth=1, width=6), inputs=(2, 3, 4), dtype=torch.float64)
    assert torch.equal(model(x.reshape(3, 2, 3, 4)), model(x))


# Activations

FORMULAS = {
    "identity": lambda z: z,
    "relu": lambda z: max(z, 0),
    "leaky_relu": lambda z: z if z > 0 else 0.01 * z,
    "tanh": math.tanh,
    "sigmoid": lambda z: 1 / (1 + math.exp(-z)),
    "gelu": lambda z: z * (1 + math.erf(z / math.sqrt(2))) / 2,
    "silu": lambda z: z / (1 + math.exp(-z)),
    "elu": lambda z: z if z > 0 else math.exp(z) - 1,
    "selu": lambda z: 1.0507009873554805 * (z if z > 0 else 1.6732632423543772 * (math.exp(z) - 1)),
    "softplus": lambda z: math.log(1 + math.exp(z)),
    "abs": abs,
    "sin": math.sin,
    "erf": math.erf,
}


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_an_activation_is_its_formula(name):
    points = np.linspace(-3, 3, 13)
    found = make_activation(name)(torch.from_numpy(points))
    np.testing.assert_allclose(found, [FORMULAS[name](z) for z in points], rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("slope", [0.2, 0.0, -1.0, 1e-3])
def test_a_leaky_slope_is_the_one_in_its_name(slope):
    found = make_activation(f"leaky_relu({slope})")(torch.tensor([-2.0, 3.0], dtype=torch.float64))
    assert found.tolist() == [-2 * slope, 3]


def test_a_slope_is_read_from_the_name():
    assert activation("leaky_relu(0.2)").slope == 0.2


# Convolutional nets


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("family", "depth"), [("vgg", 1), ("vgg", 2), ("vgg", 9), ("resnet", 3), ("resnet", 9)])
def test_a_convolutional_net_runs(family, depth, norm):
    spec = Spec(depth=depth, width=4, norm=norm, outputs=3, family=family)
    out = build(spec, (2, 9, 9))(torch.randn(3, 2, 9, 9, generator=torch.Generator().manual_seed(0)))
    assert out.shape == (3, 3)
    assert out.isfinite().all()


def convolutions(model):
    """Weight layers of the chain; the 1x1 projections of a shortcut stand beside it."""
    return [m for m in model.modules() if isinstance(m, torch.nn.Conv2d) and m.kernel_size == (3, 3)]


@pytest.mark.parametrize(("family", "depth"), [("vgg", 1), ("vgg", 6), ("resnet", 3), ("resnet", 11)])
def test_a_convolutional_net_has_as_many_weight_layers_as_its_depth(family, depth):
    assert len(convolutions(build(Spec(depth=depth, width=2, family=family)))) == depth


@pytest.mark.parametrize(("family", "depth", "stages"), [("vgg", 8, [3, 6, 12, 24]), ("resnet", 7, [3, 6, 12])])
def test_channels_double_from_stage_to_stage(family, depth, stages):
    model = build(Spec(depth=depth, width=3, family=family))
    assert sorted({c.out_channels for c in convolutions(model)}) == stages


def test_a_vgg_layer_is_the_formula():
    model = build(Spec(depth=1, width=4, norm="batch_rescale", family="vgg"), (2, 5, 5), dtype=torch.float64)
    x, w = rows(3, 50).reshape(3, 2, 5, 5), weights(model)[0]
    padded = np.pad(x.numpy(), ((0, 0), (0, 0), (1, 1), (1, 1)))
    z = np.zeros((3, 4, 5, 5))
    for i in range(5):
        for j in range(5):
            z[:, :, i, j] = np.einsum("ncab,ocab->no", padded[:, :, i : i + 3, j : j + 3], w)
    z /= np.sqrt((z**2).mean((0, 2, 3), keepdims=True) + 1e-5)
    assert_outputs(model, x, relu(z).mean((2, 3)))


def test_a_residual_block_of_strength_zero_is_its_shortcut():
    model = build(Spec(depth=3, width=4, skip=0.0, family="resnet"), (2, 6, 6), dtype=torch.float64)
    x = rows(3, 72).reshape(3, 2, 6, 6)
    assert_outputs(model, x, model.stem(x).detach().numpy().mean((2, 3)))
