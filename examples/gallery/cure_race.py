"""Which cure makes a deep net train? A race on the same batches.

Twenty layers with torch's own initialization do not learn; started with orthogonal representations they do,
and with batch norm they begin to. Every variant sees the same batches in the same order.
"""

import torch

import normscope as ns

spec = ns.Spec(depth=20, width=32, weights="torch", bias=0.0, outputs=4)
generator = torch.Generator().manual_seed(0)
y = torch.arange(512) % 4
x = torch.randn(512, 16, generator=generator) + 3 * torch.eye(16)[y]


def cured(how):
    """A function of the seed that makes the net and cures it."""
    return lambda seed: ns.cure(ns.build(spec, 16, seed=seed), how, x[:64], seed=seed)


variants = {"none": lambda seed: ns.build(spec, 16, seed=seed), "orthogonal": cured("orthogonal"), "bn": cured("bn")}
found = ns.race(variants, (x[:384], y[:384]), (x[384:], y[384:]), epochs=4, batch=64, lr=0.05, seeds=2, geometry=3)
found.save("cure_race.svg")

final = dict(found.summary().select("variant", "train_loss").iter_rows())
assert final["orthogonal"] < final["none"] / 2
