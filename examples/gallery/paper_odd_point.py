"""Nachum et al. 2024: recentring and ReLU make a cluster and one odd point.

Batch norm without its rescaling, in a random deep net: all samples but one merge, and the odd one stands apart,
orthogonal to them. Each panel is the batch itself on its two main directions, some layers deeper.
"""

import altair as alt
import polars as pl
import torch

import normscope as ns


def axis(name):
    """The same scale in every panel; lengths are shares of the longest sample's."""
    return (
        alt.X(name).scale(domain=[-0.1, 1.1]).title(None)
        if name == "x"
        else alt.Y(name).scale(domain=[-1, 1]).title(None)
    )


generator = torch.Generator().manual_seed(0)
h, depths, panels = torch.randn(16, 512, generator=generator), (0, 4, 16, 64), []
for layer in range(max(depths) + 1):
    if layer in depths:
        found = ns.configuration(h)
        u, s, _ = torch.linalg.svd(h / h.norm(dim=1).max(), full_matrices=False)
        rows = pl.DataFrame(
            {
                "x": (u[:, 0] * s[0]).abs(),
                "y": u[:, 1] * s[1] * u[:, 1].sum().sign(),
                "odd one": torch.arange(16) == found.index,
            }
        )
        points = alt.Chart(rows, title=f"layer {layer}: {found.label}", width=170, height=170)
        panels.append(points.mark_circle(size=60, opacity=0.7).encode(x=axis("x"), y=axis("y"), color="odd one"))
    weights = torch.randn(512, 512, generator=generator) / 512**0.5
    h = (h @ weights.T - (h @ weights.T).mean(0)).relu()
    h = h / h.square().mean().sqrt()

alt.hconcat(*panels).save("paper_odd_point.svg")

assert found.label == "odd"
