"""Each rule of the check-up on a set-up that is broken in one way: the code, the module, among the first three
findings.
"""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from test_checkup_healthy import (
    HEALTHY,
    Language,
    Masked,
    Patches,
    Reader,
    images,
    mlp,
    setup,
    table,
    tokens,
)
from test_checkup_kinds import KINDS, bootstrapped
from test_script_pairs import PAIRS
from torch import Tensor, nn

from normscope import UsageError, diagnose
from normscope.findings import RULES

BROKEN = {}
#: Rules of these modules each have a broken set-up here.
CHECKED_HERE = ("sight", "axes", "updates", "wiring", "steps", "objective", "targets", "answers", "batches")


def broken(code, module="", severity=None):
    def add(make):
        BROKEN[make.__name__] = (make, code, module, severity)
        return make

    return add


def labels(t: Tensor, classes: int = 3) -> Tensor:
    return torch.bucketize(t[:, 0].contiguous(), torch.tensor([-0.5, 0.5]))[: len(t)] % classes


def classify(model, **more):
    x, t = table()
    return setup(model, x, labels(t), nn.CrossEntropyLoss(), more.pop("optimizer", None), **more)


def regress(model, change=lambda t: t, **more):
    x, t = table()
    return setup(model, x, change(t), nn.MSELoss(), more.pop("optimizer", None), **more)


# Who sees whom


class ThroughTheBatch(nn.Module):
    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(32, 4, 64, 0.0)
        self.inp, self.block, self.out = nn.Linear(6, 32), nn.TransformerEncoder(layer, 1), nn.Linear(32, 3)

    def forward(self, x):
        return self.out(self.block(self.inp(x))[:, -1])


@broken("NS111", "block")
def a_transformer_without_batch_first():
    x = torch.randn(448, 9, 6)
    return setup(ThroughTheBatch(), x, torch.randint(3, (448,)), nn.CrossEntropyLoss(), samples=0)


class Reshaped(nn.Module):
    def __init__(self):
        super().__init__()
        self.net = nn.Sequential(nn.Conv1d(5, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3))

    def forward(self, x):
        return self.net(x.permute(1, 2, 0).reshape(len(x), 5, 10))


@broken("NS111", severity="error")
def a_reshape_after_permute():
    return setup(Reshaped(), torch.randn(448, 10, 5), torch.randint(3, (448,)), nn.CrossEntropyLoss())


@broken("NS112", "0")
def pooled_before_the_layers():
    x, t = images()
    return setup(nn.Sequential(nn.AvgPool2d(16), nn.Flatten(), mlp(3, 32, 10)), x, t, nn.CrossEntropyLoss())


@broken("NS113")
def convolutions_without_activations():
    x, t = images()
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(1152, 10))
    return setup(model, x, t, nn.CrossEntropyLoss())


@broken("NS114", "3")
def a_group_norm_of_one():
    return regress(nn.Sequential(mlp(12, 32, 1), nn.Identity(), nn.Identity(), nn.LayerNorm(1)))


class Unmasked(Masked):
    def forward(self, x):
        return self.out(self.block(self.emb(x)).mean(1))


@broken("NS115", "emb")
def padding_in_the_attention():
    x = torch.zeros(448, 40, dtype=torch.long)
    x[:, :3] = torch.randint(1, 40, (448, 3))
    return setup(Unmasked(), x, (x.sum(1) > 60).long(), nn.CrossEntropyLoss())


@broken("NS116", "1")
def dropout_on_logits():
    return classify(nn.Sequential(mlp(12, 32, 3), nn.Dropout(0.4)))


@broken("NS117", "1")
def batch_norm_over_three_samples():
    given = classify(nn.Sequential(nn.Linear(12, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3)))
    x, t = given["inputs"], given["targets"]
    return given | {"data": [(x[i : i + 3], t[i : i + 3]) for i in range(0, 60, 3)]}


def grouped(groups):
    layers = [(nn.Linear(a, 64), nn.GroupNorm(groups, 64), nn.ReLU()) for a in (12, 64)]
    return classify(nn.Sequential(*[m for layer in layers for m in layer], nn.Linear(64, 3)))


@broken("NS126", "1", "warning")
def groups_of_two_units():
    return grouped(32)


@broken("NS118", "1")
def a_norm_after_the_last_layer():
    return regress(nn.Sequential(mlp(12, 64, 1), nn.BatchNorm1d(1, affine=False)), lambda t: 3 * t + 20)


# Gradients through time


@broken("NS205", "rnn")
def an_lstm_over_two_hundred_steps():
    return setup(Reader(), torch.randn(448, 200, 6), torch.randint(3, (448,)), nn.CrossEntropyLoss())


# The optimizer


@broken("NS403")
def momentum_at_a_millionth():
    model = mlp(12, 32, 3)
    return classify(model, optimizer=torch.optim.SGD(model.parameters(), 1e-6, momentum=0.9))


@broken("NS404")
def adam_with_a_large_l2_decay():
    model = mlp(12, 64, 64, 3)
    return classify(model, optimizer=torch.optim.SGD(model.parameters(), 0.1, momentum=0.9, weight_decay=1.0))


@broken("NS405")
def rmsprop_with_a_large_eps():
    model = mlp(12, 32, 3)
    return classify(model, optimizer=torch.optim.RMSprop(model.parameters(), 1e-3, eps=100.0))


@broken("NS406")
def adam_that_maximizes():
    model = mlp(12, 32, 3)
    return classify(model, optimizer=torch.optim.Adam(model.parameters(), 1e-3, maximize=True))


@broken("NS407")
def a_rate_of_a_hundred():
    model = mlp(12, 64, 64, 1)
    return regress(model, optimizer=torch.optim.SGD(model.parameters(), 100.0))


# Wiring


@broken("NS601", "2", "error")
def an_optimizer_of_the_layer_before():
    model = mlp(12, 32, 3)
    model[0].requires_grad_(False)
    optimizer = torch.optim.Adam(model[2].parameters(), 1e-3)
    model[2] = nn.Linear(32, 3)
    return classify(model, optimizer=optimizer)


@broken("NS601", "0", "warning")
def an_optimizer_of_the_last_layer_alone():
    model = mlp(12, 32, 3)
    return classify(model, optimizer=torch.optim.SGD(model[2].parameters(), 0.1))


@broken("NS602", "2")
def an_optimizer_of_frozen_weights():
    model = mlp(12, 32, 3)
    model[2].requires_grad_(False)
    return classify(model, optimizer=torch.optim.SGD(model[2].parameters(), 0.1))


class InADict(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts, self.out = {"a": nn.Linear(12, 16), "b": nn.Linear(16, 16)}, nn.Linear(16, 3)

    def forward(self, x):
        return self.out(F.relu(self.parts["b"](F.relu(self.parts["a"](x)))))


@broken("NS603", "parts['a']")
def layers_in_a_dict():
    return classify(InADict())


class Detached(nn.Module):
    def __init__(self, how):
        super().__init__()
        self.encoder, self.head, self.how = mlp(12, 32, 16), nn.Linear(16, 3), how

    def forward(self, x):
        return self.head(self.how(self.encoder(x)))


@broken("NS604", "encoder")
def an_encoder_through_numpy():
    return classify(Detached(lambda h: torch.from_numpy(h.detach().numpy())))


@broken("NS605")
def all_frozen():
    given = classify(mlp(12, 32, 3))
    given["model"].requires_grad_(False)
    return given | {"optimizer": None}


@broken("NS606", "0")
def a_frozen_random_body():
    body = nn.Sequential(nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.Conv2d(16, 16, 3, 2), nn.ReLU(), nn.Flatten())
    x, t = images()
    return setup(nn.Sequential(body.requires_grad_(False), nn.Linear(144, 10)), x, t, nn.CrossEntropyLoss())


class Untied(Language):
    def __init__(self):
        super().__init__(tied=False)
        self.head = nn.Identity()
        self.register_buffer("table", self.emb.weight.detach().clone())

    def forward(self, x):
        return F.linear(super().forward(x), self.table)


@broken("NS607", "table")
def an_output_table_that_is_a_copy():
    x = tokens()
    return setup(Untied(), x[:, :-1], x[:, 1:], lambda o, t: F.cross_entropy(o.flatten(0, 1), t.flatten()))


@broken("NS608")
def a_convolutional_net_left_in_eval_mode():
    x, t = images()
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(1568, 10))
    return setup(model.eval(), x, t, nn.CrossEntropyLoss())


@broken("NS609", "0", "error")
def all_weights_zero():
    model = mlp(12, 32, 32, 3)
    for p in model.parameters():
        nn.init.zeros_(p)
    return classify(model)


def body(order):
    def step(model, optimizer, loss_fn, x, t):
        loss = loss_fn(model(x), t)
        for what in order:
            if what == "clear":
                optimizer.zero_grad()
            elif what == "clip":
                nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            elif what == "backward":
                loss.backward()
            else:
                optimizer.step()
        return loss

    return step


@broken("NS610")
def clipped_before_the_backward_pass():
    return classify(mlp(12, 32, 3), train_step=body(["clear", "clip", "backward", "step"]))


@broken("NS611")
def never_cleared():
    return classify(mlp(12, 32, 3), train_step=body(["backward", "step"]))


@broken("NS612")
def cleared_before_the_step():
    return classify(mlp(12, 32, 3), train_step=body(["backward", "clear", "step"]))


@broken("NS613", "0")
def constant_weights():
    model = mlp(12, 32, 32, 3)
    for p in model.parameters():
        nn.init.constant_(p, 0.1)
    return classify(model)


# The loss


@broken("NS701", "1")
def tanh_before_cross_entropy():
    return classify(nn.Sequential(mlp(12, 32, 3), nn.Tanh()))


@broken("NS701", "1")
def a_softmax_and_a_loss_of_ones_own():
    given = classify(nn.Sequential(mlp(12, 32, 3), nn.Softmax(1)))
    return given | {"loss": lambda o, t: -(o - o.logsumexp(1, keepdim=True)).gather(1, t[:, None]).mean()}


@broken("NS702", "1")
def a_softmax_over_the_batch():
    given = classify(nn.Sequential(mlp(12, 32, 3), nn.Softmax(0)))
    return given | {"loss": lambda o, t: F.nll_loss((o + 1e-8).log(), t)}


@broken("NS703")
def predictions_of_another_shape():
    given = regress(mlp(12, 32, 1), lambda t: t[:, 0])
    return given | {"loss": lambda o, t: (o - t).abs().mean()}


@broken("NS704")
def one_column_for_cross_entropy():
    return classify(mlp(12, 32, 1)) | {"targets": torch.zeros(64, dtype=torch.long), "data": None, "valid": None}


@broken("NS705")
def an_error_that_is_maximized():
    return regress(mlp(12, 32, 1)) | {"loss": lambda o, t: -F.l1_loss(o, t)}


@broken("NS706")
def nll_on_raw_logits():
    return classify(mlp(12, 32, 3)) | {"loss": nn.NLLLoss()}


@broken("NS707", "1")
def a_relu_on_standardized_targets():
    return regress(nn.Sequential(mlp(12, 32, 1), nn.ReLU()))


@broken("NS708")
def cross_entropy_for_several_labels():
    x, _ = table()
    t = (x @ torch.randn(12, 6) > 0).float()
    return setup(mlp(12, 32, 6), x, t, lambda o, t: -(t * o.log_softmax(1)).sum(1).mean())


@broken("NS709")
def five_classes_as_a_number():
    x, _ = table()
    return setup(mlp(12, 32, 1), x, (torch.arange(448) % 5).float()[:, None], nn.MSELoss())


@broken("NS710")
def labels_of_plus_and_minus_one():
    return regress(mlp(12, 32, 1), torch.sign) | {"loss": nn.BCEWithLogitsLoss()}


@broken("NS711")
def a_class_of_weight_zero():
    return classify(mlp(12, 32, 3)) | {"loss": nn.CrossEntropyLoss(weight=torch.tensor([1.0, 0.0, 1.0]))}


@broken("NS712")
def tokens_that_predict_themselves():
    x = tokens()
    return setup(Language(tied=False), x, x, lambda o, t: F.cross_entropy(o.transpose(1, 2), t))


@broken("NS713")
def weights_of_size_one():
    model = mlp(12, 256, 256, 3)
    for p in model.parameters():
        nn.init.normal_(p)
    return classify(model)


# The data


@broken("NS801")
def a_nan_in_the_third_batch():
    given = classify(mlp(12, 32, 3))
    given["data"][3][0][7, 4] = math.nan
    return given


@broken("NS801")
def an_infinite_target():
    given = regress(mlp(12, 32, 1))
    given["data"][2][1][7] = math.inf
    return given


@broken("NS802")
def raw_pixels():
    x, t = images()
    return setup(Patches(), (x * 50 + 128).clamp(0, 255).round(), t, nn.CrossEntropyLoss())


@broken("NS803")
def pixels_divided_twice():
    x, t = images()
    model = nn.Sequential(nn.Flatten(), mlp(768, 64, 10))
    return setup(model, (x * 50 + 128).clamp(0, 255) / 255 / 255 / 4, t, nn.CrossEntropyLoss())


@broken("NS804")
def income_beside_ratios():
    given = classify(mlp(12, 32, 3))
    for x, _ in [(given["inputs"], 0), *given["data"][1:], *given["valid"]]:
        x[:, 3] *= 40_000
    return given


@broken("NS805")
def prices():
    return regress(mlp(12, 32, 1), lambda t: 3e5 + 1e5 * t)


@broken("NS806")
def one_batch_for_ever():
    given = classify(mlp(12, 32, 3))
    return given | {"data": [given["data"][0]] * 8}


@broken("NS807")
def the_target_among_the_features():
    x, t = table()
    x[:, 5] = 2 - 3 * t[:, 0]
    return setup(mlp(12, 32, 1), x, t, nn.MSELoss())


@broken("NS808")
def images_with_the_labels_of_others():
    x, t = images(n=640)
    given = setup(nn.Sequential(nn.Flatten(), mlp(768, 64, 10)), x, t, nn.CrossEntropyLoss())
    y = t[torch.randperm(512)]
    loader = [(x[i : i + 64], y[i : i + 64]) for i in range(0, 512, 64)]
    return given | {"data": loader, "targets": y[:64], "valid": (x[512:], t[512:])}


@broken("NS809")
def validation_data_as_it_came():
    given = classify(mlp(12, 32, 3))
    return given | {"valid": [(30 + 12 * x, t) for x, t in given["valid"]]}


class Clamped(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb, self.out = nn.Embedding(10, 16), nn.Linear(16, 2)

    def forward(self, x):
        return self.out(self.emb(x.clamp_max(9)).mean(1))


@broken("NS810", "emb")
def ids_beyond_the_table():
    x = torch.randint(100, (448, 8))
    return setup(Clamped(), x, torch.randint(2, (448,)), nn.CrossEntropyLoss())


@broken("NS811")
def a_loader_sorted_by_class():
    given = classify(mlp(12, 32, 3))
    x, t = (torch.cat(parts) for parts in zip(*given["data"], strict=True))
    loader = [(x[t == k][:32], t[t == k][:32]) for k in (0, 1, 2)]
    return given | {"data": loader}


@broken("NS812", severity="info")
def one_sample_in_fifty():
    x, _ = table()
    return setup(mlp(12, 32, 2), x, (torch.arange(448) % 50 == 0).long(), nn.CrossEntropyLoss())


@broken("NS701", "1")
def a_sigmoid_before_a_loss_with_a_sigmoid():
    return regress(nn.Sequential(mlp(12, 32, 1), nn.Sigmoid()), lambda t: (t > 0).float()) | {
        "loss": nn.BCEWithLogitsLoss()
    }


@broken("NS701", "1")
def nll_of_probabilities():
    return classify(nn.Sequential(mlp(12, 32, 3), nn.Softmax(1))) | {"loss": nn.NLLLoss()}


class MeanOfTheBatch(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.out = mlp(12, 32, 16), nn.Linear(16, 1)

    def forward(self, x):
        return self.out(self.body(x).mean(0, keepdim=True)).expand(len(x), 1)


@broken("NS114")
def a_mean_over_the_batch():
    return regress(MeanOfTheBatch())


@broken("NS805")
def returns_of_a_ten_thousandth():
    return regress(mlp(12, 32, 1), lambda t: 1e-4 * t)


@broken("NS407")
def momentum_at_a_rate_of_ten():
    x, t = images()
    model = nn.Sequential(nn.Flatten(), mlp(768, 64, 64, 10))
    return setup(model, x, t, nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), 10.0, momentum=0.9))


class MadeAnew(nn.Module):
    def __init__(self):
        super().__init__()
        self.out = nn.Linear(16, 1)

    def forward(self, x):
        return self.out(F.relu(nn.Linear(12, 16)(x)))


@broken("NS603")
def a_layer_made_in_the_forward_pass():
    return regress(MadeAnew())


@broken("NS604", "encoder")
def an_argmax_in_the_middle():
    return classify(Detached(lambda h: F.one_hot(h.argmax(1), 16).float()))


class Axes(nn.Module):
    """A classifier of sequences whose axes are exchanged by a function that is given."""

    def __init__(self, exchange):
        super().__init__()
        self.exchange, self.conv, self.out = exchange, nn.Conv1d(12, 16, 3), nn.Linear(16, 3)

    def forward(self, x):
        return self.out(F.relu(self.conv(self.exchange(x))).mean(-1))


def sequences(model):
    x = torch.randn(448, 8, 12)
    return setup(model, x, labels(x.mean(1) * 3), nn.CrossEntropyLoss())


@broken("NS119")
def a_reshape_for_a_transpose():
    return sequences(Axes(lambda x: x.reshape(len(x), 12, 8)))


class Attends(nn.Module):
    def __init__(self, dim):
        super().__init__()
        self.dim, self.q, self.k, self.v, self.out = dim, *(nn.Linear(12, 16) for _ in range(3)), nn.Linear(16, 3)

    def forward(self, x):
        weights = (self.q(x) @ self.k(x).transpose(1, 2) / 4).softmax(self.dim)
        return self.out((weights @ self.v(x)).mean(1))


@broken("NS120")
def attention_that_sums_over_the_queries():
    return sequences(Attends(1))


class Joined(nn.Module):
    def __init__(self, again):
        super().__init__()
        self.again, self.one, self.other = again, nn.Linear(12, 16), nn.Linear(12, 16)
        self.out = nn.Linear(32, 3)

    def forward(self, x):
        a, b = F.relu(self.one(x)), F.relu(self.other(x))
        return self.out(torch.cat([a, a if self.again else b], 1))


@broken("NS121", "out")
def a_branch_beside_itself():
    return classify(Joined(True))


class Drops(nn.Module):
    def __init__(self, always, p=0.2):
        super().__init__()
        self.p, self.always, self.inp, self.out = p, always, nn.Linear(12, 32), nn.Linear(32, 3)

    def forward(self, x):
        return self.out(F.dropout(F.relu(self.inp(x)), self.p, training=self.always or self.training))


@broken("NS503")
def dropout_that_never_ends():
    return classify(Drops(True))


@broken("NS505")
def a_share_to_keep_taken_for_one_to_drop():
    return classify(Drops(False, 0.9))


def normed(momentum):
    return classify(
        nn.Sequential(nn.Linear(12, 32), nn.BatchNorm1d(32, momentum=momentum), nn.ReLU(), nn.Linear(32, 3))
    )


@broken("NS504", "1")
def a_momentum_of_another_framework():
    return normed(0.001)


def adam(**options):
    model = mlp(12, 32, 3)
    return classify(model, optimizer=torch.optim.Adam(model.parameters(), 1e-3, **options))


@broken("NS408")
def betas_exchanged():
    return adam(betas=(0.999, 0.9))


def stepping(step, rate=0.1):
    model = mlp(12, 32, 3)
    return classify(model, optimizer=torch.optim.SGD(model.parameters(), rate)) | {"train_step": step, "trial": 20}


def plain(model, optimizer, loss, x, t):
    optimizer.zero_grad()
    value = loss(model(x), t)
    value.backward()
    optimizer.step()
    return value


def cut(largest):
    def step(model, optimizer, loss, x, t):
        optimizer.zero_grad()
        value = loss(model(x), t)
        value.backward()
        nn.utils.clip_grad_norm_(model.parameters(), largest)
        optimizer.step()
        return value

    return stepping(step)


@broken("NS614")
def clipped_to_a_thousandth():
    return cut(1e-3)


@broken("NS615")
def an_optimizer_a_step():
    def step(model, optimizer, loss, x, t):
        return plain(model, torch.optim.SGD(model.parameters(), 0.1, momentum=0.9), loss, x, t)

    return stepping(step)


def scheduled(gamma, **more):
    def step(model, optimizer, loss, x, t):
        value = plain(model, optimizer, loss, x, t)
        for group in optimizer.param_groups:
            group["lr"] *= gamma
        return value

    return stepping(step) | more


@broken("NS409")
def a_rate_that_halves_after_every_batch():
    return scheduled(0.5)


# One rule, another mechanism


@broken("NS604", severity="error")
def a_loss_that_counts_hits():
    return classify(mlp(12, 32, 3)) | {"loss": lambda o, t: (o.argmax(1) != t).float().mean()}


@broken("NS604", severity="error")
def outputs_that_are_detached():
    class Cut(nn.Sequential):
        def forward(self, x):
            return super().forward(x).detach()

    return classify(Cut(nn.Linear(12, 32), nn.ReLU(), nn.Linear(32, 3)))


@broken("NS704")
def a_loss_that_rounds():
    return regress(mlp(12, 32, 1), lambda t: (t > 0).float()) | {
        "loss": lambda o, t: (o.sigmoid().round() - t).square().mean()
    }


@broken("NS701")
def a_softmax_before_the_loss():
    return classify(mlp(12, 32, 3)) | {"loss": lambda o, t: F.cross_entropy(o.softmax(1), t)}


class Dense(nn.Module):
    """Classes of every place of a picture."""

    def __init__(self, end=None):
        super().__init__()
        self.body, self.end = nn.Conv2d(3, 16, 3, padding=1), end or nn.Identity()
        self.out = nn.Conv2d(16, 3, 1)

    def forward(self, x):
        return self.end(self.out(F.relu(self.body(x))))


def places(model, loss):
    x = torch.randn(448, 3, 9, 8)
    t = torch.bucketize(x[:, 0].contiguous(), torch.tensor([-0.5, 0.5]))
    return setup(model, x, t, loss)


@broken("NS702")
def a_softmax_over_the_width():
    return places(Dense(nn.LogSoftmax(3)), nn.NLLLoss())


@broken("NS711")
def the_background_ignored():
    return places(Dense(), nn.CrossEntropyLoss(ignore_index=0))


@broken("NS711")
def weights_for_the_majority():
    x, _ = table()
    t = (torch.arange(448) % 8 == 0).long()
    return setup(mlp(12, 32, 2), x, t, nn.CrossEntropyLoss(weight=torch.tensor([0.875, 0.125])))


class Spread(nn.Module):
    """A mean and a log-variance."""

    def __init__(self):
        super().__init__()
        self.body, self.mean, self.log = mlp(12, 32), nn.Linear(32, 1), nn.Linear(32, 1)

    def forward(self, x):
        h = F.relu(self.body(x))
        return self.mean(h), self.log(h)


def likelihood(sign):
    return regress(Spread()) | {"loss": lambda o, t: (o[1] + (t - o[0]).square() * (sign * o[1]).exp()).mean()}


@broken("NS706")
def a_variance_of_the_wrong_sign():
    return likelihood(1)


class Writer(nn.Module):
    """A language model; without a mask each place sees what it is asked for."""

    def __init__(self, causal):
        super().__init__()
        self.causal, self.emb, self.place = causal, nn.Embedding(20, 32), nn.Embedding(12, 32)
        self.block, self.out = nn.TransformerEncoderLayer(32, 2, 64, 0.0, batch_first=True), nn.Linear(32, 20)

    def forward(self, x):
        n = x.shape[1]
        mask = nn.Transformer.generate_square_subsequent_mask(n) if self.causal else None
        return self.out(self.block(self.emb(x) + self.place(torch.arange(n)), src_mask=mask))


def written(causal):
    x = (torch.randint(20, (448, 1)) + torch.arange(13) * torch.randint(1, 4, (448, 1))) % 20
    return setup(Writer(causal), x[:, :-1], x[:, 1:], lambda o, t: F.cross_entropy(o.flatten(0, 1), t.flatten()))


@broken("NS712")
def a_language_model_whose_targets_are_shifted_twice():
    given = written(True)
    return given | {"targets": given["targets"].roll(-1, 1), "data": None, "valid": None}


@broken("NS111", "rnn")
def states_of_both_directions_in_a_view():
    x = torch.randn(448, 9, 6)
    return setup(BothWays(), x, (x[:, :, 0].sum(1) > 0).long(), nn.CrossEntropyLoss())


class BothWays(nn.Module):
    def __init__(self):
        super().__init__()
        self.rnn, self.out = nn.GRU(6, 16, batch_first=True, bidirectional=True), nn.Linear(32, 2)

    def forward(self, x):
        return self.out(self.rnn(x)[1].view(len(x), -1))


@broken("NS124", "2")
def one_unit_between_wide_layers():
    return classify(mlp(12, 32, 1, 32, 3))


class Divides(nn.Module):
    def __init__(self, by):
        super().__init__()
        self.by, self.net = by, mlp(12, 32, 3)

    def forward(self, x):
        return self.net(x.div_(self.by) if self.by else x.relu_())


@broken("NS814")
def a_division_in_place():
    return classify(Divides(2.0))


def test_an_activation_in_place_on_the_inputs_is_fine():
    assert "NS814" not in {f.code for f in found(lambda: classify(Divides(0))).findings}


def test_data_that_the_model_fills_in_is_a_note():
    class Fills(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp(12, 32, 3)

        def forward(self, x):
            return self.net(torch.nan_to_num(x))

    def given():
        made = classify(Fills())
        for x, _ in made["data"]:
            x[::5, 0] = math.nan
        return made

    assert {f.severity for f in found(given).findings if f.code == "NS801"} == {"info"}


@broken("NS606", "2")
def a_head_that_was_frozen_with_the_rest():
    model = mlp(12, 32, 3)
    model[2].requires_grad_(False)
    return classify(model)


@broken("NS707", "boxes")
def boxes_in_pixels_behind_a_sigmoid():
    return boxes(lambda score: score)


@broken("NS707", "boxes")
def boxes_in_pixels_beside_an_output_without_gradient():
    return boxes(lambda score: score.detach())


def boxes(first):
    class Detector(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.scores, self.boxes = mlp(12, 32, 32), nn.Linear(32, 3), nn.Linear(32, 4)

        def forward(self, x):
            h = self.body(x).relu()
            return first(self.scores(h)), self.boxes(h).sigmoid()

    x, t = table()
    given = setup(Detector(), x, t, lambda o, t: F.cross_entropy(o[0], t[0]) + F.l1_loss(o[1], t[1]))
    corners = 16 * torch.rand(len(given["inputs"]), 4)
    return given | {"targets": (labels(given["targets"]), corners), "data": None, "valid": None}


@broken("NS121")
def one_view_given_twice():
    class Pairs(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = mlp(12, 32, 16)

        def forward(self, a, b):
            return F.normalize(self.net(a), dim=1) @ F.normalize(self.net(b), dim=1).t() / 0.2

    x, _ = table()
    given = setup(Pairs(), x, torch.arange(448), nn.CrossEntropyLoss())
    return given | {"inputs": (given["inputs"], given["inputs"].clone()), "data": None, "valid": None}


@broken("NS506", "1")
def all_parameters_drawn_alike():
    model = nn.Sequential(nn.Linear(12, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3))
    for p in model.parameters():
        nn.init.normal_(p, 0, 0.02)
    return classify(model)


@broken("NS712", "block")
def a_language_model_that_looks_ahead():
    return written(False)


class Words(nn.Module):
    """Attention over tokens; ``keep``: true where a token is, else where padding is; ``place``: whether positions are
    added.
    """

    def __init__(self, keep=False, place=True):
        super().__init__()
        self.keep, self.emb, self.place = keep, nn.Embedding(30, 16), nn.Embedding(12, 16) if place else None
        self.attention, self.out = nn.MultiheadAttention(16, 2, batch_first=True), nn.Linear(16, 2)

    def forward(self, x):
        h = self.emb(x)
        if self.place is not None:
            h = h + self.place(torch.arange(x.shape[1]))
        h, _ = self.attention(h, h, h, key_padding_mask=(x != 0) if self.keep else (x == 0))
        return self.out(h.mean(1))


def words(padded, **options):
    x = torch.randint(1, 30, (448, 12))
    if padded:
        x[torch.arange(12) >= torch.randint(4, 11, (448, 1))] = 0
    return setup(Words(**options), x, (x[:, 0] > 15).long(), nn.CrossEntropyLoss())


@broken("NS115", "attention")
def a_mask_the_wrong_way_round():
    return words(True, keep=True)


@broken("NS112", "attention", severity="info")
def tokens_without_places():
    return words(False, place=False)


@broken("NS810", "emb")
def categories_scaled_before_the_cast():
    class Cast(nn.Module):
        def __init__(self):
            super().__init__()
            self.emb, self.out = nn.Embedding(12, 16), nn.Linear(16, 2)

        def forward(self, x):
            return self.out(self.emb(x.long()).flatten(1))

    x = torch.randint(12, (448, 1))
    return setup(Cast(), x / 11.0, (x[:, 0] > 5).long(), nn.CrossEntropyLoss())


@broken("NS606", "0")
def a_frozen_table_of_zeros():
    model = mlp(12, 32, 32, 3)
    nn.init.zeros_(model[0].weight)
    model[0].requires_grad_(False)
    return classify(model, optimizer=torch.optim.SGD([p for p in model.parameters() if p.requires_grad], 0.1))


class Scaled(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.scale = mlp(12, 32, 3), nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.scale * self.body(x)


@broken("NS605", "body")
def all_but_a_number_frozen():
    model = Scaled()
    model.body.requires_grad_(False)
    return classify(model, optimizer=torch.optim.SGD([model.scale], 0.1))


@broken("NS111", "layer", severity="error")
def attention_along_the_batch():
    class Along(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer, self.out = nn.TransformerEncoderLayer(12, 2, 16, 0.0), nn.Linear(12, 3)

        def forward(self, x):
            return self.out(self.layer(x)[:, 0].mean(0, keepdim=True)).expand(len(x), 3)

    return sequences(Along())


def pictures(model):
    x = torch.randn(448, 3, 8, 8)
    return setup(model, x, (x[:, 0, :4].mean((1, 2)) > 0).long(), nn.CrossEntropyLoss())


class Mixes(nn.Module):
    def __init__(self, places):
        super().__init__()
        self.cut, self.mix = nn.Conv2d(3, 16, 4, 4), nn.Linear(16, 16)
        self.places, self.out = nn.Parameter(torch.randn(4, 16)) if places else 0.0, nn.Linear(16, 2)

    def forward(self, x):
        h = self.cut(x).flatten(2).transpose(1, 2) + self.places
        return self.out(F.gelu(self.mix(h)).mean(1))


@broken("NS112")
def patches_without_places():
    return pictures(Mixes(False))


@broken("NS404")
def a_decay_that_adam_takes_for_the_gradient():
    return adam(weight_decay=0.5)


@broken("NS811")
def two_classes_a_batch():
    x, _ = table()
    t = torch.arange(448) // 56
    given = setup(mlp(12, 32, 8), x, t, nn.CrossEntropyLoss())
    return given | {"data": [(x[i : i + 32], t[i : i + 32]) for i in range(0, 448, 32)]}


def two_targets(factor):
    x, t = table()
    given = setup(Spread(), x, t, lambda o, t: (o[0] - t["a"]).square().mean() + (o[1] - t["b"]).square().mean())
    both = lambda t: {"a": t, "b": factor * t}  # noqa: E731
    return given | {"targets": both(given["targets"]), "data": None, "valid": None}


@broken("NS805")
def one_of_two_targets_in_other_units():
    return two_targets(300.0)


class Pupil(nn.Module):
    def __init__(self, learns):
        super().__init__()
        self.learns, self.student, self.teacher = learns, mlp(12, 32, 3), mlp(12, 32, 3)

    def forward(self, x):
        t = self.teacher(x)
        return self.student(x), t if self.learns else t.detach()


def pupil(learns):
    return classify(Pupil(learns)) | {"loss": lambda o, t: (o[0] - o[1]).square().mean()}


@broken("NS616", "teacher")
def a_teacher_without_no_grad():
    return pupil(True)


class Pooled(nn.Module):
    """A mean over the places of a sequence, weighed by a softmax."""

    def __init__(self, dim):
        super().__init__()
        self.dim, self.inp, self.score, self.out = dim, nn.Linear(12, 16), nn.Linear(16, 1), nn.Linear(16, 3)

    def forward(self, x):
        h = F.relu(self.inp(x))
        return self.out((h * self.score(h).softmax(self.dim)).sum(1))


@broken("NS120")
def a_pooling_weighed_over_the_samples():
    return sequences(Pooled(0))


class Anchors(nn.Module):
    def __init__(self, last):
        super().__init__()
        self.last, self.head = last, nn.Conv2d(3, 10, 3, padding=1)

    def forward(self, x):
        h = self.head(x)
        return (h.permute(0, 2, 3, 1) if self.last else h).reshape(len(x), -1, 5)


def anchors(last):
    x = torch.randn(448, 3, 4, 4)
    t = x.mean(1).reshape(448, 16, 1).repeat(1, 2, 5)
    return setup(Anchors(last), x, t, nn.MSELoss())


@broken("NS119")
def anchors_without_a_permute():
    return anchors(False)


class Two(nn.Module):
    def __init__(self, reads):
        super().__init__()
        self.reads, self.one, self.other, self.out = reads, nn.Linear(12, 16), nn.Linear(12, 16), nn.Linear(32, 3)

    def forward(self, a, b):
        return self.out(torch.cat([F.relu(self.one(a)), F.relu(self.other(b if self.reads else a))], 1))


def two_inputs(reads):
    x, t = table()
    given = classify(Two(reads))
    return given | {"inputs": (x[:64], 2 * x[:64].roll(1, 1)), "targets": labels(t)[:64], "data": None, "valid": None}


@broken("NS122")
def a_second_input_that_is_never_read():
    return two_inputs(False)


class Pairs(nn.Module):
    def __init__(self, columns):
        super().__init__()
        self.columns, self.emb, self.out = columns, nn.Embedding(20, 8), nn.Linear(16, 3)

    def forward(self, ids):
        return self.out(self.emb(ids[:, self.columns]).flatten(1))


@broken("NS122")
def a_column_of_ids_taken_twice():
    ids = torch.randint(20, (448, 2))
    return setup(Pairs([0, 0]), ids, ids[:, 1] % 3, nn.CrossEntropyLoss())


@broken("NS123", "0", severity="info")
def linear_layers_in_a_row():
    return classify(nn.Sequential(nn.Linear(12, 32), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 3)))


class Cells(nn.Module):
    def __init__(self, cut):
        super().__init__()
        self.cut, self.emb, self.cell, self.out = cut, nn.Embedding(20, 16), nn.GRUCell(16, 16), nn.Linear(16, 2)

    def forward(self, x):
        h = torch.zeros(len(x), 16)
        for k in range(x.shape[1]):
            h = self.cell(self.emb(x[:, k]), h.detach() if self.cut else h)
        return self.out(h)


class Convolved(nn.Module):
    """The last place of a stack of causal convolutions."""

    def __init__(self, dilations):
        super().__init__()
        self.layers = nn.ModuleList(nn.Conv1d(1 if not i else 16, 16, 3, dilation=d) for i, d in enumerate(dilations))
        self.out = nn.Linear(16, 1)

    def forward(self, x):
        for layer in self.layers:
            x = F.relu(layer(F.pad(x, (2 * layer.dilation[0], 0))))
        return self.out(x[..., -1])


def signal(dilations):
    x = torch.randn(448, 1, 30)
    return setup(Convolved(dilations), x, x[..., 3], nn.MSELoss())


@broken("NS205")
def a_receptive_field_that_is_too_short():
    return signal((1, 1, 1))


@broken("NS205", "emb")
def a_state_detached_at_each_step():
    x = torch.randint(20, (448, 8))
    return setup(Cells(True), x, (x[:, 0] > 10).long(), nn.CrossEntropyLoss())


@broken("NS608")
def an_eval_inside_of_the_loop():
    def step(model, optimizer, loss, x, t):
        model.eval()
        return plain(model, optimizer, loss, x, t)

    model = nn.Sequential(nn.Linear(12, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3))
    return classify(model, optimizer=torch.optim.SGD(model.parameters(), 0.1)) | {"train_step": step, "trial": 20}


@broken("NS604", "log")
def a_part_of_the_loss_made_a_number():
    loss = lambda o, t: (o[0] - t).square().mean() + (o[1] - t).square().mean().item()  # noqa: E731
    return regress(Spread()) | {"loss": loss}


class Gated(nn.Module):
    def __init__(self, gate):
        super().__init__()
        self.inp, self.f, self.out, self.gate = nn.Linear(12, 32), mlp(32, 32, 32), nn.Linear(32, 3), gate

    def forward(self, x):
        h = self.inp(x)
        return self.out(h + self.gate * self.f(F.relu(h)))


@broken("NS603", "gate")
def a_gate_that_is_no_parameter():
    return classify(Gated(torch.zeros(1, requires_grad=True)))


@broken("NS603", severity="error")
def a_gate_of_plain_zeros():
    return classify(Gated(torch.zeros(1)))


class Standardized(nn.Module):
    """A batch norm written by hand."""

    def __init__(self, updates):
        super().__init__()
        self.updates = updates
        self.register_buffer("running_mean", torch.zeros(12))
        self.register_buffer("running_var", torch.ones(12))

    def forward(self, x):
        if not self.training:
            return (x - self.running_mean) / (self.running_var + 1e-5).sqrt()
        mean, var = x.mean(0), x.var(0)
        if self.updates:
            self.running_mean.lerp_(mean.detach(), 0.1)
            self.running_var.lerp_(var.detach(), 0.1)
        return (x - mean) / (var + 1e-5).sqrt()


def standardized(updates):
    model = nn.Sequential(Standardized(updates), *mlp(12, 32, 3))
    return classify(model, optimizer=torch.optim.SGD(model.parameters(), 0.1)) | {"trial": 20}


@broken("NS504", "0")
def statistics_that_nobody_updates():
    return standardized(False)


def test_norms_and_heads_that_start_at_zero_are_fine():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.norm = nn.Linear(32, 32), nn.BatchNorm1d(32)
            nn.init.zeros_(self.norm.weight)

        def forward(self, x):
            return F.relu(x + self.norm(self.body(x)))

    model = nn.Sequential(nn.Linear(12, 32), Branch(), Branch(), nn.Linear(32, 3))
    nn.init.zeros_(model[-1].weight)
    assert [f.code for f in found(lambda: classify(model)).findings if f.severity != "info"] == []


@broken("NS711")
def a_weight_for_the_commoner_answer():
    x, _ = table()
    t = (torch.arange(448)[:, None] % 8 == 0).float()
    return setup(mlp(12, 32, 1), x, t, nn.BCEWithLogitsLoss(pos_weight=torch.tensor(0.125)))


@broken("NS810", "emb")
def most_words_unknown():
    x = torch.where(torch.rand(448, 12) < 0.8, 1, torch.randint(2, 30, (448, 12)))
    return setup(Words(), x, (x[:, 0] > 15).long(), nn.CrossEntropyLoss())


def test_statistics_of_frozen_norms_may_stand_still():
    model = nn.Sequential(nn.Linear(12, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Linear(32, 3))
    for m in model[:2]:
        m.eval().requires_grad_(False)
    given = classify(model, optimizer=torch.optim.SGD(model[3].parameters(), 0.1)) | {"trial": 20}
    assert "NS504" not in {f.code for f in found(lambda: given).findings}


def averaging(weight):
    """A loop that writes an average of the weights back into the model."""
    average = {}

    def step(m, optimizer, loss, x, t):
        value = plain(m, optimizer, loss, x, t)
        with torch.no_grad():
            for n, p in m.named_parameters():
                old = average.get(n, p.detach().clone())
                average[n] = 0.99 * old + 0.01 * p.detach()
                p.copy_(p + weight * (average[n] - p))
        return value

    model = mlp(12, 32, 3)
    average.update({n: p.detach().clone() for n, p in model.named_parameters()})
    return classify(model, train_step=step)


@broken("NS617", severity="error")
def an_average_written_back():
    return averaging(1.0)


@broken("NS621", severity="info")
def a_target_network_that_is_never_synchronised():
    return bootstrapped(False)


def advantage(keep):
    def loss(o, t):
        chosen = o.log_softmax(1)[:, 0]
        return -(chosen * (t - t.mean() if keep else (t - t.mean())[:, 0])).mean()

    return regress(mlp(12, 32, 3)) | {"loss": loss}


@broken("NS703")
def an_advantage_with_an_axis_too_many():
    return advantage(True)


def focal(easy):
    def loss(o, t):
        cost = F.cross_entropy(o, t, reduction="none")
        p = (-cost).exp()
        return ((p if easy else 1 - p) ** 2 * cost).mean()

    return classify(mlp(12, 32, 3)) | {"loss": loss}


@broken("NS715")
def a_focal_loss_the_wrong_way_round():
    return focal(True)


class Swish(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * torch.sigmoid(x)

    @staticmethod
    def backward(ctx, g):
        (x,) = ctx.saved_tensors
        s = torch.sigmoid(x)
        return s * (1 + x * (1 - s))


class Right(Swish):
    @staticmethod
    def backward(ctx, g):
        return g * Swish.backward(ctx, g)


class Reverse(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, g):
        return -g


class Through(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()

    @staticmethod
    def backward(ctx, g):
        return g


class By(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function.apply(x)


def handwritten(function):
    return classify(nn.Sequential(nn.Linear(12, 32), By(function), nn.Linear(32, 3)))


@broken("NS618", "1", "error")
def a_backward_that_leaves_out_its_argument():
    return handwritten(Swish)


@pytest.mark.parametrize("function", [Right, Reverse, Through])
def test_a_backward_pass_may_be_right_reversed_or_straight_through(function):
    made = found(lambda: handwritten(function))
    assert made.profile.facts["checkup"]["left_out"] == {}
    assert "NS618" not in {f.code for f in made.findings}


def smooth(create, attack=False):
    """A penalty on the gradient in the inputs; or an attack along it."""

    def step(m, optimizer, loss, x, t):
        x = x.clone().requires_grad_()
        optimizer.zero_grad()
        value = loss(m(x), t)
        (g,) = torch.autograd.grad(m(x).sum(), x, create_graph=create)
        value = loss(m(x + 0.1 * g.sign()), t) if attack else value + g.square().sum(1).mean()
        value.backward()
        optimizer.step()
        return value

    return regress(mlp(12, 32, 1), train_step=step)


@broken("NS619", severity="error")
def a_gradient_penalty_without_a_graph():
    return smooth(False)


@broken("NS619")
def an_equation_without_a_graph():
    x = torch.linspace(0, 1, 448)[:, None]
    model = mlp(1, 32, 1, act=nn.Tanh)

    def loss(o, t):
        at = x[:64].clone().requires_grad_()
        (slope,) = torch.autograd.grad(model(at).sum(), at)
        return (slope + t).square().mean() + (o - 1).square().mean()

    return setup(model, x, x, loss)


def test_an_attack_needs_no_graph():
    assert "NS619" not in {f.code for f in found(lambda: smooth(False, attack=True)).findings}


@broken("NS410")
def small_steps_in_bfloat16():
    model = mlp(12, 32, 3).bfloat16()
    x, t = table()
    return setup(model, x.bfloat16(), labels(t), nn.CrossEntropyLoss(), torch.optim.SGD(model.parameters(), 1e-4))


@broken("NS813")
def missing_targets_as_a_number():
    return regress(mlp(12, 32, 1), lambda t: torch.where(torch.rand(t.shape) < 0.02, torch.tensor(-999.0), t))


@broken("NS403", "0")
def a_group_with_a_slip_in_its_rate():
    model = mlp(12, 32, 3)
    groups = [{"params": model[0].parameters(), "lr": 1e-8}, {"params": model[2].parameters()}]
    return classify(model, optimizer=torch.optim.Adam(groups, 1e-2))


@broken("NS409")
def a_warm_up_longer_than_the_training():
    return warming(100_000)


def warming(steps):
    model = mlp(12, 32, 3)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda k: min(1.0, (k + 1) / steps))

    def step(m, optimizer, loss, x, t):
        value = plain(m, optimizer, loss, x, t)
        schedule.step()
        return value

    return classify(model, optimizer=optimizer, train_step=step, steps=200) | {"trial": 20}


@broken("NS606", "emb")
def a_random_table_taken_for_a_learnt_one():
    model = Words()
    model.emb = nn.Embedding.from_pretrained(0.3 * torch.randn(model.emb.weight.shape[0], model.emb.weight.shape[1]))
    x = torch.randint(1, 30, (448, 12))
    return setup(model, x, (x[:, 0] > 15).long(), nn.CrossEntropyLoss())


class Heads(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.heads = mlp(12, 32, 32), nn.ModuleList(nn.Linear(32, 2) for _ in range(3))

    def forward(self, x):
        h = self.body(x).relu()
        return [head(h) for head in self.heads]


@broken("NS604", "heads.0")
def only_the_last_task_counts():
    def loss(o, t):
        for i in range(3):
            value = F.cross_entropy(o[i], t[:, i])
        return value

    x, _ = table()
    return setup(Heads(), x, (x[:, :3] > 0).long(), loss)


@broken("NS604", "heads.0", severity="info")
def a_loss_that_reads_the_last_head():
    x, _ = table()
    return setup(Heads(), x, labels(x), lambda o, t: F.cross_entropy(o[2], t % 2))


@broken("NS711")
def a_hinge_of_zero_and_one():
    x, _ = table()
    return setup(mlp(12, 32, 1), x, (x[:, :1] > 0).float(), lambda o, t: F.relu(1 - o * t).mean())


class Game(nn.Module):
    def __init__(self):
        super().__init__()
        self.g, self.d = mlp(12, 32, 1), mlp(1, 32, 1)

    def forward(self, x):
        return self.g(x)


def game(detached):
    model = Game()
    one, other = torch.optim.Adam(model.g.parameters(), 1e-3), torch.optim.Adam(model.d.parameters(), 1e-3)

    def step(m, optimizer, loss, x, t):
        fake = m(x)
        other.zero_grad()
        (F.softplus(m.d(fake.detach())) + F.softplus(-m.d(t))).mean().backward()
        other.step()
        optimizer.zero_grad()
        value = F.softplus(-m.d(fake.detach() if detached else fake)).mean()
        value.backward()
        optimizer.step()
        return value

    return regress(model, optimizer=one, train_step=step) | {"trial": 5}


@broken("NS612", "g")
def a_generator_behind_a_detach():
    return game(True)


def test_a_game_of_two_optimizers_is_no_fault():
    made = found(lambda: game(False))
    assert made.profile.facts["checkup"]["left_out"] == {}
    assert [f.code for f in made.findings if f.severity != "info"] == []


@broken("NS612", "cut off", "error")
def a_loss_in_a_new_tensor():
    def step(m, optimizer, loss, x, t):
        optimizer.zero_grad()
        value = torch.tensor(loss(m(x), t).item(), requires_grad=True)
        value.backward()
        optimizer.step()
        return value

    return classify(mlp(12, 32, 3), train_step=step)


def components(axis):
    def loss(o, t):
        return -(o[:, :4].log_softmax(1) - 0.5 * (t - o[:, 4:]).square()).logsumexp(axis).mean()

    return regress(mlp(12, 32, 8)) | {"loss": loss}


@broken("NS702")
def a_mixture_over_the_samples():
    return components(0)


class Coder(nn.Module):
    """A variational autoencoder of vectors in 0..1."""

    def __init__(self):
        super().__init__()
        self.enc, self.dec = mlp(32, 64, 16), mlp(8, 64, 32)

    def forward(self, x):
        m, s = self.enc(x).chunk(2, 1)
        return torch.sigmoid(self.dec(m + torch.randn_like(m) * (s / 2).exp())), m, s


def coded(reduction):
    def elbo(out, x):
        y, m, s = out
        divergence = -0.5 * (1 + s - m.square() - s.exp()).sum(1).mean()
        return F.binary_cross_entropy(y, x, reduction=reduction) / (len(x) if reduction == "sum" else 1) + divergence

    x = torch.sigmoid(torch.randn(448, 4) @ torch.randn(4, 32))
    return setup(Coder(), x, x, elbo)


@broken("NS707", "dec")
def a_sigmoid_before_targets_of_both_signs():
    given = coded("sum")
    x = torch.randn(64, 4) @ torch.randn(4, 32)

    def elbo(out, x):
        y, m, s = out
        return (y - x).square().sum(1).mean() - 0.5 * (1 + s - m.square() - s.exp()).sum(1).mean()

    return given | {"inputs": x, "targets": x, "loss": elbo, "data": None, "valid": None}


@broken("NS714")
def a_divergence_summed_beside_a_mean():
    return coded("mean")


def penalized(weight):
    model = mlp(12, 32, 3)

    def loss(o, t):
        return F.cross_entropy(o, t) + weight * sum(p.square().sum() for p in model.parameters())

    return classify(model) | {"loss": loss}


@broken("NS714")
def a_penalty_of_ten():
    return penalized(10.0)


@broken("NS714")
def one_task_summed_and_one_averaged():
    def loss(o, t):
        return 1000 * (o[0] - t["a"]).square().sum() + (o[1] - t["b"]).square().mean()

    return two_targets(1.0) | {"loss": loss}


def test_parts_of_a_loss_may_have_several_sizes():
    for make in (lambda: coded("sum"), lambda: penalized(1e-4), lambda: penalized(0.01)):
        made = found(make)
        assert made.profile.facts["checkup"]["left_out"] == {}
        assert "NS714" not in {f.code for f in made.findings}


def views(temperature, divides):
    """Two views of each sample as one output, and a contrastive loss over the batch."""

    def loss(o, t):
        z = F.normalize(o.reshape(len(o), 2, -1), dim=-1)
        alike = z[:, 0] @ z[:, 1].T
        return F.cross_entropy(alike / temperature if divides else alike * temperature, torch.arange(len(o)))

    x = torch.randn(6 * 64, 12)
    pairs = list(zip(x.split(64), torch.arange(6 * 64).split(64), strict=True))
    model = mlp(12, 32, 16)
    return {"model": model, "inputs": x[:64], "targets": pairs[0][1], "loss": loss, "data": pairs}


@broken("NS716")
def similarities_times_a_temperature():
    return views(0.07, False)


def spread_of_errors(honest):
    def loss(o, t):
        error = (o[:, 0] - t) ** 2 * torch.exp(-o[:, 1])
        return (error + o[:, 1] * honest).mean()

    x = torch.randn(64, 12)
    return {"model": mlp(12, 32, 2), "inputs": x, "targets": x[:, 0] + 0.5 * torch.randn(64), "loss": loss}


@broken("NS717")
def a_variance_without_its_log():
    return spread_of_errors(0)


def counted(log):
    x = torch.randn(64, 12)
    model = nn.Sequential(mlp(12, 32, 1), nn.Softplus(), nn.Flatten(0))
    return {
        "model": model, "inputs": x, "targets": torch.poisson(torch.exp(0.5 * x[:, 0])),
        "loss": nn.PoissonNLLLoss(log_input=log),
    }  # fmt: skip


@broken("NS718")
def a_rate_that_is_taken_for_its_log():
    return counted(True)


def bandit(sign):
    def loss(o, t):
        return sign * (F.log_softmax(o, 1).gather(1, t[:, :1].long())[:, 0] * t[:, 1]).mean()

    x, choices = torch.randn(64, 12), torch.randint(4, (64,))
    rewards = (choices == x[:, :4].argmax(1)).float()
    targets = torch.stack([choices.float(), rewards], 1)
    return {"model": mlp(12, 32, 4), "inputs": x, "targets": targets, "loss": loss}


@broken("NS705")
def rewarded_choices_pushed_down():
    return bandit(1)


class Answers(nn.Module):
    """A decoder that gets source and answers in one row of ids."""

    def __init__(self, shifted):
        super().__init__()
        self.shifted = shifted
        self.emb, self.out = nn.Embedding(9, 16), nn.Linear(32, 9)
        self.enc, self.dec = nn.GRU(16, 32, batch_first=True), nn.GRU(16, 32, batch_first=True)

    def forward(self, x):
        source, answer = x[:, :5], x[:, 5:]
        if self.shifted:
            answer = torch.cat([torch.zeros_like(answer[:, :1]), answer[:, :-1]], 1)
        return self.out(self.dec(self.emb(answer), self.enc(self.emb(source))[1])[0])


def reversed_words(shifted):
    source = torch.randint(1, 9, (64, 5))
    answer = source.flip(1)
    loss = lambda o, t: F.cross_entropy(o.flatten(0, 1), t.flatten())  # noqa: E731
    return {"model": Answers(shifted), "inputs": torch.cat([source, answer], 1), "targets": answer, "loss": loss}


@broken("NS712")
def a_decoder_that_is_fed_its_answers():
    return reversed_words(False)


@broken("NS114")
def a_group_norm_of_one_number_a_group():
    model = nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.ReLU(), nn.AdaptiveMaxPool2d(1), nn.GroupNorm(8, 8), nn.Flatten(), nn.Linear(8, 3)
    )
    return {"model": model, "inputs": torch.randn(64, 1, 8, 8), "targets": torch.arange(64) % 3, "loss": None}


def outcome(known_later):
    x, t = torch.randn(7 * 64, 6), torch.arange(7 * 64) % 2
    x[:, 0] += t
    if known_later:
        x[: 6 * 64, 5] = t[: 6 * 64] * 2 - 1 + 0.1 * torch.randn(6 * 64)
    pairs = list(zip(x.split(64), t.split(64), strict=True))
    given = {"model": mlp(6, 32, 2), "inputs": x[:64], "targets": t[:64], "loss": nn.CrossEntropyLoss()}
    return given | {"data": pairs[:6], "valid": pairs[6:]}


@broken("NS807")
def a_column_written_after_the_outcome():
    return outcome(True)


class Attentive(nn.Module):
    """One query over the places, its scores times ``scale``."""

    def __init__(self, scale):
        super().__init__()
        self.scale, self.emb, self.norm = scale, nn.Embedding(24, 64), nn.LayerNorm(64)
        self.q, self.k, self.v, self.out = (nn.Linear(64, 64) for _ in range(4))

    def forward(self, x):
        h = self.norm(self.emb(x))
        weights = torch.softmax(self.q(h) @ self.k(h).transpose(1, 2) * self.scale, -1)
        return self.out((weights @ self.v(h)).mean(1))[:, :3]


def attentive(scale):
    x = torch.randint(24, (64, 12))
    return {"model": Attentive(scale), "inputs": x, "targets": (x % 3 == 0).sum(1) % 3, "loss": nn.CrossEntropyLoss()}


@broken("NS303")
def scores_times_the_root_of_the_width():
    return attentive(8.0)


def remembered(scale):
    given = classify(mlp(12, 32, 3))
    optimizer = torch.optim.Adam(given["model"].parameters(), 1e-3)
    for _ in range(5):
        optimizer.zero_grad()
        (F.cross_entropy(given["model"](given["inputs"]), given["targets"]) * scale).backward()
        optimizer.step()
    optimizer.zero_grad()
    return given | {"optimizer": optimizer}


@broken("NS411")
def an_optimizer_state_of_scaled_gradients():
    return remembered(65536.0)


def denoised(seeds):
    def step(model, optimizer, loss_fn, x, t):
        if seeds:
            torch.manual_seed(0)
        optimizer.zero_grad()
        loss = loss_fn(model(x + torch.randn_like(x)), t)
        loss.backward()
        optimizer.step()
        return loss

    given = regress(mlp(12, 32, 1))
    return given | {"optimizer": torch.optim.Adam(given["model"].parameters(), 1e-3), "train_step": step}


@broken("NS620")
def a_seed_inside_of_the_loop():
    return denoised(True)


def values(reads, own_loop=False):
    """Action values against a bootstrapped target; the targets hold action, reward, done and the next state."""
    state, after, done = (
        torch.eye(8)[torch.randint(8, (64,))],
        torch.eye(8)[torch.randint(8, (64,))],
        torch.rand(64) < 0.3,
    )
    targets = torch.cat([torch.randint(3, (64, 1)), torch.randn(64, 1), done[:, None].float(), after], 1)
    model = mlp(8, 32, 3)
    frozen = copy.deepcopy(model)

    def loss(o, t):
        with torch.no_grad():
            ahead = frozen(t[:, 3:]).amax(1) * (1 - t[:, 2] if reads else 1)
        return F.mse_loss(o.gather(1, t[:, :1].long())[:, 0], t[:, 1] + 0.9 * ahead)

    def step(model, optimizer, loss_fn, x, t):
        optimizer.zero_grad()
        value = loss(model(x), t)
        value.backward()
        optimizer.step()
        return value

    given = {"model": model, "inputs": state, "targets": targets, "loss": loss}
    if own_loop:
        given |= {
            "loss": lambda o, t: (o.gather(1, t[:, :1].long())[:, 0] - t[:, 1]).square().mean(),
            "train_step": step,
        }
        given |= {"optimizer": torch.optim.Adam(model.parameters(), 1e-3)}
    return given


@broken("NS719")
def a_bootstrap_through_the_end():
    return values(False)


@broken("NS719")
def a_loop_that_bootstraps_through_the_end():
    return values(False, True)


@broken("NS815")
def windows_of_amplitude_one():
    x = torch.randn(7 * 64, 1, 32) * (0.5 + torch.rand(7 * 64, 1, 1))
    t = x.square().mean((1, 2))[:, None]
    t, x = (t - t.mean()) / t.std(), (x - x.mean(2, keepdim=True)) / x.std(2, keepdim=True)
    pairs = list(zip(x.split(64), t.split(64), strict=True))
    model = nn.Sequential(nn.Flatten(), mlp(32, 32, 1))
    return {"model": model, "inputs": x[:64], "targets": t[:64], "loss": nn.MSELoss(), "data": pairs[:6]}


class Codes(nn.Module):
    """An encoder whose outputs are looked up in a codebook."""

    def __init__(self, through):
        super().__init__()
        self.through, self.encoder, self.decoder = through, mlp(12, 32, 8), mlp(8, 32, 12)
        self.codebook = nn.Embedding(16, 8)

    def forward(self, x):
        z = self.encoder(x)
        q = self.codebook(torch.cdist(z, self.codebook.weight).argmin(1))
        apart = (q - z.detach()).square().mean() + 0.25 * (z - q.detach()).square().mean()
        return self.decoder(z + (q - z).detach() if self.through else q), apart


def quantized_codes(through):
    x = torch.randn(64, 12)
    return {"model": Codes(through), "inputs": x, "targets": x, "loss": lambda o, t: F.mse_loss(o[0], t) + o[1]}


@broken("NS604")
def codes_that_are_only_looked_up():
    return quantized_codes(False)


def spelled(first):
    def loss(o, t):
        lengths = torch.full((len(o),), o.shape[1]), torch.full((len(o),), t.shape[1])
        return F.ctc_loss(F.log_softmax(o, -1).transpose(0, 1), t, *lengths, blank=0)

    targets = torch.randint(first, first + 4, (64, 4))
    return {"model": nn.Linear(8, 6), "inputs": torch.randn(64, 12, 8), "targets": targets, "loss": loss}


@broken("NS711")
def labels_that_are_the_blank():
    return spelled(0)


class Weighed(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.weights = mlp(12, 32, 4), nn.Parameter(torch.ones(2))

    def forward(self, x):
        y = self.body(x)
        return y[:, :3], y[:, 3:], self.weights


def two_weighed_losses(honest):
    def loss(o, t):
        parts = torch.stack([F.cross_entropy(o[0], t[:, 0].long()), F.mse_loss(o[1], t[:, 1:])])
        return (torch.exp(-o[2]) * parts + o[2]).sum() if honest else (o[2] * parts).sum()

    targets = torch.cat([torch.randint(3, (64, 1)).float(), torch.randn(64, 1)], 1)
    return {"model": Weighed(), "inputs": torch.randn(64, 12), "targets": targets, "loss": loss}


@broken("NS706")
def weights_of_losses_that_are_learnt():
    return two_weighed_losses(False)


def drawn(indices):
    x = torch.randn(400, 12)
    t = (x[:, 0] > 0).long()
    i = torch.randint(indices, (6 * 64,))
    pairs = list(zip(x[i].split(64), t[i].split(64), strict=True))
    given = {"model": mlp(12, 32, 2), "inputs": pairs[0][0], "targets": pairs[0][1], "loss": nn.CrossEntropyLoss()}
    return given | {"data": pairs}


@broken("NS806")
def a_sampler_that_knows_ten_indices():
    return drawn(10)


class Item(nn.Module):
    def __init__(self):
        super().__init__()
        self.emb, self.out = nn.Embedding(40, 8), mlp(11, 32, 1)

    def forward(self, x):
        return self.out(torch.cat([self.emb(x[:, 0].long().clamp(min=0)), x[:, 1:]], 1))


def items(scaled):
    ids, more = torch.randint(40, (128,)).float(), torch.randn(128, 3)
    ids = (ids - ids.mean()) / ids.std() if scaled else ids
    x = torch.cat([ids[:, None], more], 1)
    return {"model": Item(), "inputs": x, "targets": torch.randn(128, 1), "loss": nn.MSELoss()}


@broken("NS810")
def ids_that_were_standardized():
    return items(True)


def encoded(anew):
    centres = 3 * torch.randn(5, 12)
    t = torch.arange(6 * 64) % 5
    x = centres[t] + torch.randn(6 * 64, 12)
    parts = [(a, torch.randperm(5)[b] if anew else b) for a, b in zip(x.split(64), t.split(64), strict=True)]
    given = {"model": mlp(12, 32, 5), "inputs": parts[0][0], "targets": parts[0][1], "loss": nn.CrossEntropyLoss()}
    return given | {"data": parts}


@broken("NS808")
def an_encoder_made_anew_for_each_batch():
    return encoded(True)


class Layers(nn.Module):
    """Four layers over the nodes of a dense graph."""

    def __init__(self, normalized):
        super().__init__()
        self.normalized, self.convs = normalized, nn.ModuleList(nn.Linear(16, 16) for _ in range(4))
        self.head = nn.Linear(16, 3)

    def forward(self, x, a):
        a = a + torch.eye(a.shape[-1])
        if self.normalized:
            d = a.sum(-1).rsqrt()
            a = d[..., :, None] * a * d[..., None, :]
        for conv in self.convs:
            x = torch.relu(a @ conv(x))
        return self.head(x.mean(1))


def graphs(normalized):
    a = (torch.rand(64, 20, 20) < 0.4).float()
    inputs = (torch.randn(64, 20, 16), ((a + a.transpose(1, 2)) > 0).float())
    return {
        "model": Layers(normalized),
        "inputs": inputs,
        "targets": torch.arange(64) % 3,
        "loss": nn.CrossEntropyLoss(),
    }


@broken("NS125")
def neighbours_that_are_summed():
    return graphs(False)


def heads(reduction):
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.body, self.one, self.two = mlp(12, 32, 32), nn.Linear(32, 12), nn.Linear(32, 3)

        def forward(self, x):
            h = self.body(x)
            return self.one(h), self.two(h)

    def loss(o, t):
        return F.mse_loss(o[0], t[:, :12], reduction=reduction) + F.cross_entropy(o[1], t[:, 12].long())

    x = torch.randn(64, 12)
    targets = torch.cat([x * 3, torch.randint(3, (64, 1)).float()], 1)
    return {"model": Two(), "inputs": x, "targets": targets, "loss": loss}


@broken("NS714")
def one_head_summed_and_one_averaged():
    return heads("sum")


def class_and_value(unit):
    targets = torch.stack([torch.randint(3, (64,)).float(), unit * torch.randn(64)], 1)
    loss = lambda o, t: F.cross_entropy(o[:, :3], t[:, 0].long()) + F.mse_loss(o[:, 3], t[:, 1])  # noqa: E731
    return {"model": mlp(12, 32, 4), "inputs": torch.randn(64, 12), "targets": targets, "loss": loss}


@broken("NS714")
def a_class_beside_a_value_in_its_own_unit():
    return class_and_value(900.0)


def distilled(function):
    kl, targets = nn.KLDivLoss(reduction="batchmean"), torch.randn(64, 3).softmax(1)
    given = {"model": mlp(12, 32, 3), "inputs": torch.randn(64, 12), "targets": targets}
    return given | {"loss": lambda o, t: kl(function(o, dim=1), t)}


@broken("NS701")
def a_divergence_of_probabilities():
    return distilled(F.softmax)


#: The nearest set-up that is as it should be: its rule is silent.
HEALED = {
    "NS714 of a value": lambda: class_and_value(1.0),
    "NS701 of a divergence": lambda: distilled(F.log_softmax),
    "NS125": lambda: graphs(True),
    "NS126": lambda: grouped(8),
    "NS714 of heads": lambda: heads("mean"),
    "NS303": lambda: attentive(0.125),
    "NS411": lambda: remembered(1.0),
    "NS620": lambda: denoised(False),
    "NS719": lambda: values(True),
    "NS719 in a loop": lambda: values(True, True),
    "NS604 of codes": lambda: quantized_codes(True),
    "NS711 of a blank": lambda: spelled(1),
    "NS706 of weights": lambda: two_weighed_losses(True),
    "NS806 of a sampler": lambda: drawn(400),
    "NS810 of items": lambda: items(False),
    "NS808 of an encoder": lambda: encoded(False),
    "NS705 of a focal loss": lambda: focal(True),
    "NS716": lambda: views(0.07, True),
    "NS717": lambda: spread_of_errors(1),
    "NS718": lambda: counted(False),
    "NS705 of rewards": lambda: bandit(-1),
    "NS712 of a decoder": lambda: reversed_words(True),
    "NS807 of training alone": lambda: outcome(False),
    "NS111": lambda: classify(nn.Sequential(mlp(12, 32, 32), nn.Dropout(0.5), nn.Linear(32, 3))),
    "NS112": lambda: pictures(Mixes(True)),
    "NS404": lambda: adam(weight_decay=1e-4),
    "NS616": lambda: pupil(False),
    "NS805": lambda: two_targets(1.0),
    "NS115": lambda: words(True),
    "NS122": lambda: two_inputs(True),
    "NS123": lambda: classify(mlp(12, 32, 32, 3)),
    "NS205": lambda: signal((1, 2, 4, 8)),
    "NS119": lambda: sequences(Axes(lambda x: x.transpose(1, 2))),
    "NS120": lambda: sequences(Attends(-1)),
    "NS121": lambda: classify(Joined(False)),
    "NS503": lambda: classify(Drops(False)),
    "NS505": lambda: classify(Drops(False, 0.5)),
    "NS603": lambda: classify(Gated(nn.Parameter(torch.zeros(1)))),
    "NS504": lambda: normed(0.01),
    "NS408": lambda: adam(betas=(0.9, 0.95)),
    "NS409": lambda: scheduled(0.99),
    "NS614": lambda: cut(1.0),
    "NS615": lambda: stepping(plain),
    "NS617": lambda: averaging(0.0),
    "NS621": lambda: bootstrapped(True),
    "NS701": lambda: classify(mlp(12, 32, 3)) | {"loss": nn.CrossEntropyLoss(label_smoothing=0.2)},
    "NS703": lambda: advantage(False),
    "NS715": lambda: focal(False),
    "NS409 of a warm-up": lambda: warming(100),
    "NS619": lambda: smooth(True),
    "NS702 of a mixture": lambda: components(1),
    "NS702": lambda: places(Dense(nn.LogSoftmax(1)), nn.NLLLoss()),
    "NS706": lambda: likelihood(-1),
    "NS711": lambda: places(Dense(), nn.CrossEntropyLoss()),
    "NS712": lambda: written(True),
}


def test_flags_are_not_judged_where_a_step_moves_nothing_yet_or_no_target_is_read():
    def gathers():
        given = values(True, True)
        return given | {"train_step": lambda model, optimizer, loss_fn, x, t: given["loss"](model(x), t)}

    def for_forms_sake():
        flags = (torch.rand(64, 2) < 0.5).float()
        loss = lambda o, t: o.square().mean()  # noqa: E731
        return {"model": mlp(12, 32, 3), "inputs": torch.randn(64, 12), "targets": flags, "loss": loss}

    for make in (gathers, for_forms_sake):
        assert "NS719" not in {f.code for f in found(make).findings}


def test_a_kink_at_zero_ignores_no_class():
    loss = lambda o, t: (o - t[:, None]).abs().mean() + o.square().mean()  # noqa: E731
    assert "NS711" not in {f.code for f in found(lambda: classify(mlp(12, 32, 3)) | {"loss": loss}).findings}


def test_similarities_of_all_pairs_mix_no_samples():
    class Pairs(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.two = mlp(12, 32, 8), mlp(12, 32, 8)

        def forward(self, x):
            return F.normalize(self.one(x[:, 0]), dim=1) @ F.normalize(self.two(x[:, 1]), dim=1).T * 10

    def make():
        loss = lambda o, t: F.cross_entropy(o, torch.arange(len(o)))  # noqa: E731
        x = torch.randn(64, 2, 12)
        data = [(x, torch.zeros(64, dtype=torch.long))] * 2
        return {"model": Pairs(), "inputs": x, "targets": data[0][1], "loss": loss, "data": data}

    assert not {"NS111", "NS812"} & {f.code for f in found(make).findings}


def test_statistics_that_are_updated_are_fine():
    assert "NS504" not in {f.code for f in found(lambda: standardized(True)).findings}


def test_an_activation_in_place_stands_between_linear_layers():
    model = nn.Sequential(nn.Linear(12, 32), nn.ReLU(inplace=True), nn.Linear(32, 32), nn.Tanh(), nn.Linear(32, 3))
    assert "NS123" not in {f.code for f in found(lambda: classify(model)).findings}


def test_a_loss_may_sum_probabilities_over_places():
    def dice(o, t):
        p, hot = o.softmax(1), F.one_hot(t, 3).movedim(-1, 1).float()
        return 1 - (2 * (p * hot).sum(2).sum(-1) / (p.sum((2, 3)) + hot.sum((2, 3)))).mean()

    made = found(lambda: places(Dense(), dice))
    assert made.profile.facts["checkup"]["left_out"] == {}
    assert [f.code for f in made.findings if f.severity != "info"] == []


def test_a_temperature_that_is_calibrated_is_a_note():
    model = Scaled()
    given = classify(model)
    fit = torch.optim.Adam(model.body.parameters(), 1e-2)
    for x, t in 20 * given["data"]:
        plain(model, fit, given["loss"], x, t)
    model.body.requires_grad_(False)
    model.scale.data.fill_(40.0)
    given |= {"optimizer": torch.optim.Adam([model.scale], 1.0), "trial": 50}
    assert {f.severity for f in found(lambda: given).findings if f.code == "NS605"} == {"info"}


def test_pooling_over_places_and_anchors_with_a_permute_are_fine():
    assert "NS120" not in {f.code for f in found(lambda: sequences(Pooled(1))).findings}
    assert "NS119" not in {f.code for f in found(lambda: anchors(True)).findings}


@pytest.mark.parametrize("code", HEALED)
def test_a_rule_is_silent_where_the_slip_is_mended(code):
    made = found(HEALED[code])
    assert made.profile.facts["checkup"]["left_out"] == {}
    assert code[:5] not in {f.code for f in made.findings}


def test_a_schedule_over_the_whole_of_a_short_training_may_end_at_zero():
    assert "NS409" not in {f.code for f in found(lambda: scheduled(0.5, steps=20)).findings}


def found(make, seed=3):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return diagnose(**{"trial": False} | make())


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_setup_gets_the_rule_of_its_cause_among_the_first_three(name):
    make, code, module, severity = BROKEN[name]
    first = found(make).findings[:3]
    hits = [f for f in first if f.code == code]
    assert hits, [(f.code, f.severity, f.evidence) for f in first]
    assert not module or hits[0].name.startswith(module) or module in hits[0].evidence
    assert severity in (None, hits[0].severity)


@pytest.mark.parametrize(
    "code",
    [c for c in RULES if RULES[c].check.__module__.rpartition(".")[2] in CHECKED_HERE],
)
def test_a_rule_of_the_check_up_has_a_setup_that_fires(code):
    assert code in {c for _, c, *_ in (*BROKEN.values(), *KINDS.values())} | {c for c, *_ in PAIRS.values()}


def test_without_data_a_bad_number_in_the_inputs_is_refused_as_before():
    given = HEALTHY["logistic_regression"]()
    given["inputs"][0, 0] = math.nan
    with pytest.raises(UsageError, match="finite"):
        diagnose(given["model"], given["inputs"], given["targets"], trial=False)


def test_the_verdict_says_what_was_not_looked_at():
    with torch.random.fork_rng(devices=[]):
        given = HEALTHY["logistic_regression"]()
    assert (
        "no optimizer given"
        in diagnose(given["model"], given["inputs"], given["targets"], given["loss"], trial=False).verdict
    )
    assert "no optimizer given" not in diagnose(**given, trial=False).verdict


def test_a_step_has_no_loss_of_outputs_and_says_so():
    model = nn.Linear(4, 2)
    d = diagnose(model, torch.randn(16, 4), step=lambda m, batch: m(batch).square().mean())
    assert "the loss only as a whole" in d.verdict


def test_causes_come_before_what_follows_from_them():
    families = [f.code[:3] for f in found(raw_pixels).findings]
    assert families[0] == "NS8"


def test_the_facts_of_the_check_up_are_ready_for_json():
    import json

    json.dumps(found(raw_pixels).to_dict(), allow_nan=True)
