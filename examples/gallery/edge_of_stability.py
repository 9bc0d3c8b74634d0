"""Sharpness while a net trains.

Full-batch gradient descent raises the largest curvature of the loss until 2 / lambda_max is the rate, and stays there:
the edge of stability (Cohen et al. 2021, arXiv 2103.00065). `ns.sharpness` leaves no trace, so a loop may ask it at any
step; the Hessian's largest eigenvalue is that of `ns.hessian`.
"""

import altair as alt
import polars as pl
import torch
from torch import nn

import normscope as ns

RATE = 0.3
torch.manual_seed(0)
x = torch.randn(48, 10)
y = torch.tanh(2 * x[:, :1]) + x[:, 1:2].square() - 1
model = nn.Sequential(nn.Linear(10, 24), nn.Tanh(), nn.Linear(24, 24), nn.Tanh(), nn.Linear(24, 1))
optimizer = torch.optim.SGD(model.parameters(), RATE)
rows = []
for step in range(401):
    if step % 40 == 0:
        found = ns.spectrum(ns.hessian(model, x, y, "mse"), k=1, tol=0.01)
        rows.append({"step": step, "largest eigenvalue of the Hessian": found.largest})
    optimizer.zero_grad()
    nn.functional.mse_loss(model(x), y).backward()
    optimizer.step()

table = pl.DataFrame(rows)
line = alt.Chart(table).mark_line(point=True).encode(x="step", y="largest eigenvalue of the Hessian")
edge = alt.Chart(pl.DataFrame({"edge": [2 / RATE]})).mark_rule(strokeDash=[4, 3]).encode(y=alt.Y("edge", title=""))
chart = (line + edge).properties(width=460, height=240, title=f"Dashed: 2 / rate = {2 / RATE:.3g}")
chart.save("edge_of_stability.svg")

sharp = table["largest eigenvalue of the Hessian"]
assert sharp[0] < 0.7 * 2 / RATE
assert abs(sharp[-4:].mean() * RATE / 2 - 1) < 0.05
