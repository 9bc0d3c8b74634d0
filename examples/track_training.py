"""One line added to a training loop: what happens in every layer while it trains."""

import polars as pl
import torch

import normscope as ns

torch.manual_seed(0)
model = torch.nn.Sequential(*[m for _ in range(24) for m in (torch.nn.Linear(64, 64), torch.nn.ReLU())])
model.append(torch.nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

tracker = ns.Tracker(model, every=10)  # the one line
for _ in range(50):
    x, y = torch.rand(64, 64), torch.randint(10, (64,))
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(model(x), y).backward()
    optimizer.step()

print(tracker)
table = tracker.frame().filter(kind="Linear", metric="participation_rank")
print(table.group_by("step").agg(pl.col("value").min().alias("least rank of a layer")).sort("step"))
